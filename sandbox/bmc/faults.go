package bmc

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/transport/udp"
)

// Faults are the ways in which a controller misbehaves. The zero value is a
// sound controller; each may be switched at any time, from any goroutine, and
// one value belongs to one controller.
type Faults struct {
	unreachable atomic.Bool
	lying       atomic.Bool
	slow        atomic.Int64 // nanoseconds
	latency     atomic.Int64 // nanoseconds
	bounce      atomic.Int64 // nanoseconds
	boot        atomic.Int64 // nanoseconds

	mu            sync.Mutex
	wrongPassword bool
	controller    *bmc.BMC
	password      string
}

// Unreachable makes the controller drop every datagram unread.
func (f *Faults) Unreachable(on bool) { f.unreachable.Store(on) }

// Lying makes the controller acknowledge power commands and do nothing.
func (f *Faults) Lying(on bool) { f.lying.Store(on) }

// Slow makes power change only d after the command was acknowledged; 0 ends it.
func (f *Faults) Slow(d time.Duration) { f.slow.Store(int64(d)) }

// Bounce makes the machine take power again by itself d after an off, as one
// does that is set to start whenever its supply returns; 0 ends it.
func (f *Faults) Bounce(d time.Duration) { f.bounce.Store(int64(d)) }

// Boot makes the machine run its first program only d after it was given power by
// the controller, as a real one does: meanwhile its power reads on. 0 ends it, and
// has one that boots run at once.
func (f *Faults) Boot(d time.Duration) { f.boot.Store(int64(d)) }

// Clear ends all faults.
func (f *Faults) Clear() {
	f.Unreachable(false)
	f.Lying(false)
	f.WrongPassword(false)
	f.Slow(0)
	f.Latency(0)
	f.Bounce(0)
	f.Boot(0)
}

// Latency delays every answer by d; 0 ends it.
func (f *Faults) Latency(d time.Duration) { f.latency.Store(int64(d)) }

// WrongPassword makes the controller refuse the configured password in new
// sessions.
func (f *Faults) WrongPassword(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrongPassword = on
	f.applyPassword()
}

func (f *Faults) bind(controller *bmc.BMC, password string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.controller, f.password = controller, password
	f.applyPassword()
}

func (f *Faults) applyPassword() {
	if f.controller == nil {
		return
	}
	password := f.password
	if f.wrongPassword {
		password = "changed-by-somebody" // 19 bytes; the limit is 20
	}
	_ = f.controller.Users.Update(userSlot, func(u *bmc.User) error {
		u.SetPassword([]byte(password))
		return nil
	})
}

// faultyConn is the socket with the datagram faults applied.
type faultyConn struct {
	*udp.Conn
	faults *Faults
	stop   <-chan struct{}
}

// ReadFrom implements transport.PacketConn.
func (c *faultyConn) ReadFrom(buf []byte) (int, net.Addr, error) {
	for {
		n, addr, err := c.Conn.ReadFrom(buf)
		if err == nil && c.faults.unreachable.Load() {
			continue
		}
		return n, addr, err
	}
}

// WriteTo implements transport.PacketConn; each answer has a goroutine of its
// own in the server, so waiting here delays that answer alone.
func (c *faultyConn) WriteTo(data []byte, addr net.Addr) (int, error) {
	if d := time.Duration(c.faults.latency.Load()); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.stop:
			return 0, net.ErrClosed
		}
	}
	if c.faults.unreachable.Load() {
		return len(data), nil
	}
	return c.Conn.WriteTo(data, addr)
}
