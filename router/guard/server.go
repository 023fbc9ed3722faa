package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

const (
	// outQueue is how many lines wait for a client that does not read.
	outQueue = 128
	// writeTimeout is how long a client may leave its socket full.
	writeTimeout = 5 * time.Second
)

// serve accepts clients until ctx ends.
func (g *Guard) serve(ctx context.Context) error {
	ln, err := listen(g.cfg.Socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer ln.Close()
	g.log.Info("guard ready", zap.String("socket", g.cfg.Socket), zap.Bool("gate", g.gate != nil))
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			g.log.Warn("client not accepted", zap.Error(err))
			select { // out of descriptors, or the like
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		conns.Go(func() { g.client(ctx, conn) })
	}
}

// listen makes the socket, for root alone from its first moment on.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace the guard's socket: %w", err)
	}
	tmp := path + ".new"
	_ = os.Remove(tmp)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return ln, nil
}

// peer is one connection's outgoing side.
type peer struct {
	conn net.Conn
	pid  int // of the process that connected; 0: not known
	out  chan []byte
}

// client serves one connection until it or life ends. Extend is done in the
// order of arrival; everything else beside, so that nothing delays Extend.
func (g *Guard) client(life context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancelCause(life)
	p := &peer{conn: conn, pid: callerOf(conn), out: make(chan []byte, outQueue)}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var owned sync.WaitGroup
	owned.Go(func() { p.write(ctx) })
	p.send(router.Message{Hello: &router.Hello{Version: router.ProtocolVersion, PID: os.Getpid()}})
	g.hub.add(p)
	calls := newCalls()
	r := router.NewReader(conn)
	for {
		m, err := router.ReadMessage(r)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				g.log.Warn("client dropped", zap.Error(err))
			}
			break
		}
		switch {
		case m.Cancel:
			calls.cancel(m.ID)
		case m.Method == router.MethodExtend:
			p.answer(m.ID, nil, g.handleExtend(m))
		case m.Method == router.MethodEndCaller: // however late it is read, and whatever becomes of the connection
			owned.Go(func() { g.endCaller(life, p, m) })
		default:
			callCtx, done := calls.begin(ctx, m, g.clock.Now())
			owned.Go(func() {
				defer done()
				result, err := g.handle(callCtx, m)
				p.answer(m.ID, result, err)
			})
		}
	}
	g.hub.remove(p)
	cancel(errClientGone)
	_ = conn.Close()
	owned.Wait()
}

// write sends what is queued. A client that does not read is dropped.
func (p *peer) write(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case line := <-p.out:
			_ = p.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := p.conn.Write(line); err != nil {
				_ = p.conn.Close()
				return
			}
			_ = p.conn.SetWriteDeadline(time.Time{}) // one left behind would wake the guard for nothing
		}
	}
}

// send queues a line; a client whose queue is full is dropped, it learns the
// rest from State.
func (p *peer) send(m router.Message) {
	line, err := router.EncodeMessage(m)
	if err != nil {
		line, _ = router.EncodeMessage(router.Message{ID: m.ID, Error: router.ToWire(err)})
	}
	select {
	case p.out <- line:
	default:
		_ = p.conn.Close()
	}
}

func (p *peer) answer(id uint64, result any, err error) {
	m := router.Message{ID: id, Error: router.ToWire(err)}
	if result != nil && err == nil {
		raw, encodeErr := json.Marshal(result)
		m.Result, m.Error = raw, router.ToWire(encodeErr)
	}
	p.send(m)
}

// calls are the requests of one connection that are under way.
type calls struct {
	mu      sync.Mutex
	running map[uint64]context.CancelCauseFunc
}

func newCalls() *calls { return &calls{running: map[uint64]context.CancelCauseFunc{}} }

// begin gives a request a context that ends with the connection, with its
// caller's deadline, or when it is called off.
func (c *calls) begin(ctx context.Context, m router.Message, now cluster.Instant) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stopTimer := func() {}
	if m.Expires != cluster.Never {
		var cancelTime context.CancelFunc
		ctx, cancelTime = context.WithTimeoutCause(ctx, m.Expires.Sub(now), fmt.Errorf("the caller's deadline passed: %w", cluster.ErrDeadline))
		stopTimer = cancelTime
	}
	c.mu.Lock()
	c.running[m.ID] = cancel
	c.mu.Unlock()
	return ctx, func() {
		stopTimer()
		cancel(nil)
		c.mu.Lock()
		delete(c.running, m.ID)
		c.mu.Unlock()
	}
}

func (c *calls) cancel(id uint64) {
	c.mu.Lock()
	cancel := c.running[id]
	c.mu.Unlock()
	if cancel != nil {
		cancel(errors.New("the caller gave up"))
	}
}

// tooLate refuses a request that was read after its caller had given up: this
// process may have been stopped, and the caller has acted on it by now.
func (g *Guard) tooLate(m router.Message) error {
	if m.Expires != cluster.Never && g.clock.Now() > m.Expires {
		return fmt.Errorf("guard request %s came too late, nothing was done: %w", m.Method, cluster.ErrDeadline)
	}
	return nil
}

func (g *Guard) handleExtend(m router.Message) error {
	if err := g.tooLate(m); err != nil {
		return err
	}
	d, err := decode[cluster.RoleDeadline](m)
	if err != nil {
		return err
	}
	return g.extend(d)
}

// handle does one request.
func (g *Guard) handle(ctx context.Context, m router.Message) (any, error) {
	if err := g.tooLate(m); err != nil {
		return nil, err
	}
	switch m.Method {
	case router.MethodState:
		return g.state(ctx)
	case router.MethodBegin:
		d, err := decode[cluster.RoleDeadline](m)
		if err != nil {
			return nil, err
		}
		return nil, g.begin(ctx, d)
	case router.MethodPreflight:
		q, err := decode[cluster.PreflightRequest](m)
		if err != nil {
			return nil, err
		}
		return g.preflight(ctx, q), nil
	case router.MethodRun:
		q, err := decode[cluster.RunRequest](m)
		if err != nil {
			return nil, err
		}
		return g.runProgram(ctx, q)
	case router.MethodRunInCopy:
		q, err := decode[router.CopyRunParams](m)
		if err != nil {
			return nil, err
		}
		return g.runInCopy(ctx, q)
	case router.MethodLook:
		q, err := decode[cluster.RunRequest](m)
		if err != nil {
			return nil, err
		}
		return g.lookFor(ctx, q), nil
	case router.MethodRelinquish:
		return nil, g.relinquish()
	}
	return nil, g.handleUnderEpoch(ctx, m)
}

// handleUnderEpoch does the requests that name an epoch and return nothing.
func (g *Guard) handleUnderEpoch(ctx context.Context, m router.Message) error {
	q, err := decode[router.EpochParams](m)
	if err != nil {
		return err
	}
	switch m.Method {
	case router.MethodPresent:
		return g.present(q.Epoch, q.Addresses)
	case router.MethodWithdraw:
		return g.withdraw(q.Epoch)
	case router.MethodStartService:
		if q.Service == nil {
			return fmt.Errorf("guard request %s names no service: %w", m.Method, cluster.ErrRefused)
		}
		return g.startService(ctx, q.Owner, q.Epoch, *q.Service)
	case router.MethodStopService:
		return g.stopService(ctx, q.Owner, q.Epoch, q.Name)
	case router.MethodEnd:
		return g.end(ctx, q.Owner, q.Epoch)
	}
	return fmt.Errorf("guard request %q is unknown: %w", m.Method, cluster.ErrRefused)
}

func decode[T any](m router.Message) (T, error) {
	var v T
	if err := json.Unmarshal(m.Params, &v); err != nil {
		return v, fmt.Errorf("guard request %s: %w: %w", m.Method, err, cluster.ErrRefused)
	}
	return v, nil
}

// hub tells every client what the guard does of its own accord.
type hub struct {
	log   *zap.Logger
	mu    sync.Mutex
	peers []*peer
}

func newHub(log *zap.Logger) *hub { return &hub{log: log} }

func (h *hub) add(p *peer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.peers = append(h.peers, p)
}

func (h *hub) remove(p *peer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.peers = slices.DeleteFunc(h.peers, func(q *peer) bool { return q == p })
}

// push never waits: a client that does not read is dropped.
func (h *hub) push(e cluster.GuardEvent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.peers {
		p.send(router.Message{Event: &e})
	}
}
