package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"go.uber.org/zap"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

const (
	// maxFiltered addresses are told apart by the kernel's filter, which holds
	// 4096 instructions; beyond that it passes each claim.
	maxFiltered = 256
	// floodFrames frames within floodWindow are a flood: the rest of the window
	// is slept through, so that claims cannot buy processor time from deadlines.
	floodFrames = 64
	floodWindow = 10 * time.Millisecond
	// ownEach is how long this host's hardware addresses are remembered.
	ownEach = time.Second
)

// listener hears the claims of one interface's addresses of one family, and
// answers them. Its kernel filter passes nothing else, so that it sleeps while
// nobody claims one.
type listener struct {
	d     *defender
	conn  *packet.Conn
	name  string // interface
	turns map[netip.Addr]*turn
	quit  chan struct{} // closed before conn
	done  chan struct{} // closed once its goroutine has ended
	err   error         // why it ended of its own accord; set before done

	mac    net.HardwareAddr // the interface's, announced
	own    map[string]bool  // all of this host's: no strangers
	readAt time.Time        // when these two were read
	window time.Time
	frames int // heard since window
}

// listeners are those of all interfaces.
type listeners struct {
	list   []*listener
	broken bool // one could not be made
}

// failed reports whether one does not listen.
func (l listeners) failed() bool {
	for _, x := range l.list {
		select {
		case <-x.done:
			return true
		default:
		}
	}
	return l.broken
}

// end ends all and waits for them. (Closing a packet socket takes the kernel
// some milliseconds; no end of a role waits for it.)
func (l listeners) end() {
	for _, x := range l.list {
		close(x.quit)
		x.conn.Close()
	}
	for _, x := range l.list {
		<-x.done
		if x.err != nil {
			x.d.deaf(x.name, x.err)
		}
	}
}

// deaf tells once per holding that an interface is not listened on.
func (d *defender) deaf(name string, err error) {
	if !d.said[name] {
		d.log.Warn("floating addresses not defended against strangers for now", zap.String("interface", name), zap.Error(err))
	}
	d.said[name] = true
}

// listen starts one listener per interface and family of the addresses.
func (d *defender) listen(held []cluster.FloatingAddress) listeners {
	type place struct {
		name string
		four bool
	}
	places := map[place]map[netip.Addr]*turn{}
	for _, a := range held {
		p := place{a.Interface, a.Prefix.Addr().Is4()}
		if places[p] == nil {
			places[p] = map[netip.Addr]*turn{}
		}
		places[p][a.Prefix.Addr()] = &turn{address: a}
	}
	if len(held) == 0 {
		clear(d.said)
	}
	var all listeners
	for p, turns := range places {
		l, err := d.listenOn(p.name, p.four, turns)
		if err != nil {
			all.broken = true
			d.deaf(p.name, err)
		}
		if l != nil {
			all.list = append(all.list, l)
		}
	}
	return all
}

// listenOn starts one listener; nil for an interface without neighbours.
func (d *defender) listenOn(name string, four bool, turns map[netip.Addr]*turn) (*listener, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %q: %w", name, err)
	}
	if len(ifi.HardwareAddr) != 6 || ifi.Flags&net.FlagLoopback != 0 {
		return nil, nil
	}
	addrs := make([]netip.Addr, 0, len(turns))
	for a := range turns {
		addrs = append(addrs, a)
	}
	protocol, instructions := unix.ETH_P_IPV6, naFilter(addrs)
	if four {
		protocol, instructions = unix.ETH_P_ARP, arpFilter(addrs)
	}
	filter, err := bpf.Assemble(instructions)
	if err != nil {
		return nil, fmt.Errorf("make the filter of claims: %w", err)
	}
	// Of one protocol's frames the kernel shows those that came in, not our own.
	conn, err := packet.Listen(ifi, packet.Raw, protocol, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("listen for claims on %s: %w", name, err)
	}
	l := &listener{d: d, conn: conn, name: name, turns: turns, quit: make(chan struct{}), done: make(chan struct{})}
	go l.run() // listeners.end waits for it
	return l, nil
}

// run hears and answers until the socket is closed or fails.
func (l *listener) run() {
	defer l.d.wake() // of its end, that is: after the next line
	defer close(l.done)
	buf := make([]byte, 512)
	for {
		_ = l.conn.SetReadDeadline(l.next())
		n, _, err := l.conn.ReadFrom(buf)
		switch {
		case err == nil:
			l.hear(buf[:n])
		case !errors.Is(err, os.ErrDeadlineExceeded):
			select {
			case <-l.quit:
			default:
				l.err = err
			}
			return
		}
		l.answer()
		if !l.pace() {
			return
		}
	}
}

// next is when something is to be sent; zero for never.
func (l *listener) next() (next time.Time) {
	for _, t := range l.turns {
		if due := t.due(); !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	return next
}

// hear reads one frame.
func (l *listener) hear(frame []byte) {
	addr, mac, ok := router.Claim(frame)
	t := l.turns[addr]
	if !ok || t == nil {
		return
	}
	now := time.Now()
	l.readOwn(now)
	if l.own[mac.String()] {
		return
	}
	if l.d.claimed(t.address, mac.String(), now) {
		t.claim(now)
	}
}

// readOwn reads this host's hardware addresses, at most each ownEach.
func (l *listener) readOwn(now time.Time) {
	if now.Sub(l.readAt) < ownEach {
		return
	}
	list, err := net.Interfaces()
	if err != nil {
		return // what was read last stays
	}
	l.readAt, l.mac, l.own = now, nil, map[string]bool{}
	for _, ifi := range list {
		l.own[ifi.HardwareAddr.String()] = true
		if ifi.Name == l.name {
			l.mac = ifi.HardwareAddr
		}
	}
}

// answer sends what is due.
func (l *listener) answer() {
	for addr, t := range l.turns {
		if !t.take(time.Now(), l.d.spend) || len(l.mac) != 6 {
			continue
		}
		for _, frame := range router.AnnounceFrames(l.mac, addr, forwards(t.address)) {
			if !l.send(addr, frame) {
				break // the next round, or the next claim, tries again; a dead interface fails the read
			}
		}
	}
}

// send sends a frame if the address is still held, and reports whether it did.
func (l *listener) send(addr netip.Addr, frame []byte) bool {
	l.d.sending.Lock()
	defer l.d.sending.Unlock()
	if !l.d.may(addr) { // a stopped process that goes on must not claim a lost address (I3)
		return false
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, err := l.conn.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
	return err == nil
}

// pace sleeps out a flood. It reports whether to go on.
func (l *listener) pace() bool {
	now := time.Now()
	if now.Sub(l.window) >= floodWindow {
		l.window, l.frames = now, 0
	}
	l.frames++
	if l.frames < floodFrames {
		return true
	}
	timer := time.NewTimer(l.window.Add(floodWindow).Sub(now))
	defer timer.Stop()
	select {
	case <-l.quit:
		return false
	case <-timer.C:
		return true
	}
}

// ours begins a filter: a frame for another host (of a VLAN that is not this
// interface's, say) is heeded by no neighbour table.
func ours() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: unix.PACKET_MULTICAST, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
}

// arpFilter passes ARP packets whose sender is one of the addresses.
func arpFilter(addrs []netip.Addr) []bpf.Instruction {
	f := append(ours(), bpf.LoadAbsolute{Off: 28, Size: 4})
	return passAny(f, addrs, func(a netip.Addr) []bpf.Instruction {
		raw := a.As4()
		return []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(raw[:]), SkipTrue: 1},
		}
	})
}

// naFilter passes neighbour advertisements for one of the addresses.
func naFilter(addrs []netip.Addr) []bpf.Instruction {
	f := append(ours(),
		bpf.LoadAbsolute{Off: 20, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: 54, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 136, SkipTrue: 1},
		bpf.RetConstant{Val: 0})
	return passAny(f, addrs, func(a netip.Addr) []bpf.Instruction {
		raw := a.As16()
		var test []bpf.Instruction
		for word := range uint32(4) {
			test = append(test, bpf.LoadAbsolute{Off: 62 + 4*word, Size: 4},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(raw[4*word:]), SkipTrue: uint8(7 - 2*word)})
		}
		return test
	})
}

// passAny ends a filter: it passes what one of the tests lets through to the
// instruction after it, and with too many addresses everything.
func passAny(f []bpf.Instruction, addrs []netip.Addr, test func(netip.Addr) []bpf.Instruction) []bpf.Instruction {
	pass := bpf.RetConstant{Val: 512}
	if len(addrs) > maxFiltered {
		return append(f, pass)
	}
	for _, a := range addrs {
		f = append(append(f, test(a)...), pass)
	}
	return append(f, bpf.RetConstant{Val: 0})
}
