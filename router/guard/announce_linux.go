package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// When an address is announced after it was presented: a burst of five, again
// after 1 s and 5 s, then each 30 s while it is held.
var announceAfter = []time.Duration{0, 10 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond,
	40 * time.Millisecond, time.Second, 5 * time.Second}

const announceEach = 30 * time.Second

// sendTimeout bounds a frame's way into a full transmit queue: an announcement
// must not hold up the addresses.
const sendTimeout = 20 * time.Millisecond

// announcer tells the neighbours who has the addresses.
type announcer struct {
	log *zap.Logger
	may func(netip.Addr) bool // asked right before each frame
	def *defender             // of the same addresses

	mu      sync.Mutex
	held    []cluster.FloatingAddress
	step    int // next of announceAfter
	begun   time.Time
	sockets map[string]*announceSocket
	failed  map[string]bool // said already
	kick    chan struct{}
}

// announceSocket sends raw frames on one interface.
type announceSocket struct {
	conn  *packet.Conn
	index int
	mac   net.HardwareAddr
}

func newAnnouncer(log *zap.Logger, may func(netip.Addr) bool, def *defender) *announcer {
	return &announcer{log: log, may: may, def: def, sockets: map[string]*announceSocket{}, failed: map[string]bool{}, kick: make(chan struct{}, 1)}
}

// start announces the addresses once, now, and further times beside, and has
// them defended.
func (a *announcer) start(held []cluster.FloatingAddress) {
	a.mu.Lock()
	a.held, a.step, a.begun = held, 1, time.Now()
	a.sendAll()
	a.mu.Unlock()
	a.def.hold(held)
	a.wake()
}

// keep has the announcements go on that an earlier guard began: of addresses
// that this host has, once now and then each announceEach. What was begun here
// keeps its own times; nothing held is nothing announced. It never waits: where
// a frame is under way the next tick asks again.
func (a *announcer) keep(present []cluster.FloatingAddress) {
	if !a.mu.TryLock() {
		return
	}
	fresh := len(a.held) == 0 && len(present) > 0
	if fresh {
		a.held, a.step, a.begun = present, len(announceAfter)-1, time.Now().Add(-announceAfter[len(announceAfter)-1])
	} else if len(present) == 0 {
		a.held = nil
	}
	a.mu.Unlock()
	if fresh {
		a.wake()
	}
}

func (a *announcer) wake() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// stop announces and defends nothing any more: where the role has ended no frame leaves
// after it.
func (a *announcer) stop() {
	a.def.hold(nil) // before waiting for a frame under way
	a.mu.Lock()
	a.held = nil
	a.mu.Unlock()
	a.def.quiet()
}

// run sends the later announcements until ctx ends.
func (a *announcer) run(ctx context.Context) {
	for {
		a.mu.Lock()
		wait := time.Hour
		if len(a.held) > 0 {
			wait = max(time.Until(a.due()), 0)
		}
		a.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-a.kick:
			timer.Stop()
		case <-timer.C:
			a.mu.Lock()
			if len(a.held) > 0 && !time.Now().Before(a.due()) {
				a.step++
				a.sendAll()
			}
			a.mu.Unlock()
		}
	}
}

// due is when the next announcement is to be sent. The caller holds mu.
func (a *announcer) due() time.Time {
	if a.step < len(announceAfter) {
		return a.begun.Add(announceAfter[a.step])
	}
	last := announceAfter[len(announceAfter)-1]
	return a.begun.Add(last + time.Duration(a.step-len(announceAfter)+1)*announceEach)
}

// sendAll sends one announcement of each address. The caller holds mu.
func (a *announcer) sendAll() {
	for _, h := range a.held {
		err := a.send(h)
		if err != nil && !a.failed[h.Interface] {
			a.log.Warn("floating address not announced, neighbours may take a while to find it", zap.Stringer("address", h), zap.Error(err))
		}
		a.failed[h.Interface] = err != nil
	}
}

func (a *announcer) send(h cluster.FloatingAddress) error {
	s, err := a.socket(h.Interface)
	if s == nil || err != nil {
		return err
	}
	for _, frame := range router.AnnounceFrames(s.mac, h.Prefix.Addr(), forwards(h)) {
		if !a.may(h.Prefix.Addr()) { // a stopped process that goes on must not claim a lost address
			return nil
		}
		_ = s.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
		if _, err := s.conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])}); err != nil {
			s.conn.Close()
			delete(a.sockets, h.Interface) // replaced or down: opened anew next time
			return fmt.Errorf("send an announcement on %s: %w", h.Interface, err)
		}
	}
	return nil
}

// socket returns the interface's socket, kept for as long as the interface is
// the same; nil for one without neighbours.
func (a *announcer) socket(name string) (*announceSocket, error) {
	if s := a.sockets[name]; s != nil {
		return s, nil
	}
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", name, err)
	}
	if len(ifi.HardwareAddr) != 6 || ifi.Flags&net.FlagLoopback != 0 {
		return nil, nil
	}
	conn, err := packet.Listen(ifi, packet.Raw, 0, nil) // protocol 0: sends, receives nothing
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", name, err)
	}
	s := &announceSocket{conn: conn, index: ifi.Index, mac: ifi.HardwareAddr}
	a.sockets[name] = s
	return s, nil
}

// prepare opens the sockets beforehand, so that the first announcement is quick.
func (a *announcer) prepare(addrs []cluster.FloatingAddress) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range addrs {
		_, _ = a.socket(h.Interface) // said when it matters
	}
}

// refreshSockets drops sockets of interfaces that were replaced or have a new
// hardware address.
func (a *announcer) refreshSockets() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, s := range a.sockets {
		ifi, err := net.InterfaceByName(name)
		if err != nil || ifi.Index != s.index || ifi.HardwareAddr.String() != s.mac.String() {
			s.conn.Close()
			delete(a.sockets, name)
		}
	}
}

func (a *announcer) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, s := range a.sockets {
		s.conn.Close()
		delete(a.sockets, name)
	}
}

// forwards reports whether this host routes on the address's interface, which
// only an IPv6 announcement says.
func forwards(h cluster.FloatingAddress) bool {
	if h.Prefix.Addr().Is4() {
		return false
	}
	raw, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + h.Interface + "/forwarding")
	return err == nil && len(raw) > 0 && raw[0] == '1'
}

// etherAll receives every protocol; the frames are sorted out by AnswerTo.
const etherAll = 3

// probeConflict asks the network, until ctx ends, whether somebody else has the
// address; it returns the stranger's hardware address, nil if nobody answered.
func probeConflict(ctx context.Context, h cluster.FloatingAddress, known map[string]bool) (net.HardwareAddr, error) {
	ifi, err := net.InterfaceByName(h.Interface)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", h.Interface, err)
	}
	if len(ifi.HardwareAddr) != 6 {
		return nil, nil
	}
	conn, err := packet.Listen(ifi, packet.Raw, etherAll, nil)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", h.Interface, err)
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(100 * time.Millisecond)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	probe := router.ProbeFrame(ifi.HardwareAddr, h.Prefix.Addr())
	again := time.Until(deadline) / 3
	buf := make([]byte, 2048)
	for range 3 {
		if _, err := conn.WriteTo(probe, &packet.Addr{HardwareAddr: net.HardwareAddr(probe[:6])}); err != nil {
			return nil, fmt.Errorf("send a conflict probe on %s: %w", h.Interface, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(again))
		for ctx.Err() == nil {
			n, _, err := conn.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("wait for an answer on %s: %w", h.Interface, err)
			}
			mac, ok := router.AnswerTo(buf[:n], h.Prefix.Addr())
			if ok && mac.String() != ifi.HardwareAddr.String() && !known[mac.String()] {
				return append(net.HardwareAddr(nil), mac...), nil
			}
		}
	}
	return nil, nil
}
