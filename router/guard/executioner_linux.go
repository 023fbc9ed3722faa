package guard

import (
	"context"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/router"
)

// mostWithin is the longest that a process may ask to be left alive before it is
// killed: who has asked is on its way out.
const mostWithin = 10 * time.Second

// callerOf returns the process that made the connection as the kernel knows it, 0
// where that cannot be told.
func callerOf(conn net.Conn) int {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return 0
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(c.Pid)
		}
	})
	return pid
}

// endCaller is the last rung of an agent in which something cannot be ended: it
// has asked to be killed, and is, wherever it hangs. The connection may be gone by
// then, and a guard that ends kills at once, since no later one knows of it.
//
//	asked ──▶ awaited ──time over, or the guard ends──▶ killed
//	              └──────── ends by itself ──▶ over
//
// Nothing here holds a lock of the guard's or is on its deadlines' path.
func (g *Guard) endCaller(life context.Context, p *peer, m router.Message) {
	q, err := decode[router.EndCallerParams](m)
	var caller *proc.Handle
	if err == nil {
		if caller, err = proc.Hold(p.pid, q.Start); err != nil {
			err = fmt.Errorf("guard request %s: the connection was made by process %d, which is not the one that asks: %w: %w", m.Method, p.pid, err, cluster.ErrRefused)
		}
	}
	p.answer(m.ID, nil, err)
	if err != nil {
		g.log.Error("a process that asked to be killed is not", zap.Int("pid", p.pid), zap.Error(err))
		return
	}
	defer caller.Close()
	wait := min(max(q.At.Sub(g.clock.Now()), 0), mostWithin)
	g.log.Warn("the agent gives itself up, it is killed unless it ends before", zap.Int("pid", p.pid), zap.Duration("within", wait))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-caller.Done():
		g.log.Info("the agent that gave itself up has ended", zap.Int("pid", p.pid))
		return
	case <-timer.C:
	case <-life.Done():
	}
	if err := caller.Kill(); err != nil {
		g.log.Error("the agent that gave itself up cannot be killed", zap.Int("pid", p.pid), zap.Error(err))
		return
	}
	g.log.Warn("the agent that gave itself up was killed", zap.Int("pid", p.pid))
}
