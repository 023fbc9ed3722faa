// Package peertest is a network in memory for tests of what talks over package
// peer: whole clusters in one testing/synctest bubble, with cuts in one or both
// directions, delay, loss, power failures and refused connections. Nothing in
// it is left to chance.
//
// A connection behaves as TCP does: what is sent into a cut is kept and
// arrives once the cut is healed, a host without power says nothing at all,
// and one that came back without the connection resets it. Two things differ:
// the end of a stream reaches only who reads, and there is no half-close.
package peertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Network is the whole network. Make and Close it inside the bubble.
type Network struct {
	mu        sync.Mutex
	changed   chan struct{} // closed and made anew with each change
	closed    bool
	ways      map[way]*quality
	off       map[string]bool // hosts without power
	listeners map[string]*listener
	pairs     map[*pair]bool
	owned     sync.WaitGroup
}

// way is one direction between two hosts.
type way struct{ from, to string }

// quality is how a way is.
type quality struct {
	cut    bool
	delay  time.Duration
	nth    int // every nth piece is lost once and arrives after again
	again  time.Duration
	passed int
}

// NewNetwork returns a network in which all is well.
func NewNetwork() *Network {
	return &Network{changed: make(chan struct{}), ways: map[way]*quality{}, off: map[string]bool{},
		listeners: map[string]*listener{}, pairs: map[*pair]bool{}}
}

// change runs fn under the lock and wakes all who wait for the network.
func (n *Network) change(fn func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fn()
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *Network) quality(from, to string) *quality {
	w := way{from, to}
	if n.ways[w] == nil {
		n.ways[w] = &quality{}
	}
	return n.ways[w]
}

// Cut lets nothing through from one host to another; the other direction stays.
func (n *Network) Cut(from, to string) { n.change(func() { n.quality(from, to).cut = true }) }

// Part cuts both directions.
func (n *Network) Part(a, b string) { n.Cut(a, b); n.Cut(b, a) }

// Heal ends all cuts, delays and losses. Hosts without power stay so.
func (n *Network) Heal() { n.change(func() { clear(n.ways) }) }

// Delay has everything from one host to another take d longer.
func (n *Network) Delay(from, to string, d time.Duration) {
	n.change(func() { n.quality(from, to).delay = d })
}

// Lose has every nth piece from one host to another arrive only after again, as
// a retransmission would.
func (n *Network) Lose(from, to string, nth int, again time.Duration) {
	n.change(func() { q := n.quality(from, to); q.nth, q.again, q.passed = nth, again, 0 })
}

// PowerOff has a host vanish without a word: its listeners and connections say
// nothing any more, and its own programs must be ended by the test.
func (n *Network) PowerOff(host string) {
	n.change(func() {
		n.off[host] = true
		for addr, l := range n.listeners {
			if l.host == host {
				delete(n.listeners, addr)
			}
		}
		for p := range n.pairs {
			if p.a == host || p.b == host {
				p.lostBy = host
			}
		}
	})
}

// PowerOn brings the host back, without listeners: connections of before are
// reset when something is sent on them, new ones are refused.
func (n *Network) PowerOn(host string) { n.change(func() { delete(n.off, host) }) }

// Reset breaks every connection between two hosts.
func (n *Network) Reset(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.pairs {
		if (p.a == a && p.b == b) || (p.a == b && p.b == a) {
			p.reset()
			delete(n.pairs, p)
		}
	}
}

// Forget has the network forget every present connection between two hosts, as
// a firewall that lost its table does: nothing passes on them any more, without
// a word. New ones work.
func (n *Network) Forget(a, b string) {
	n.change(func() {
		for p := range n.pairs {
			if (p.a == a && p.b == b) || (p.a == b && p.b == a) {
				p.forgotten = true
			}
		}
	})
}

// Connections counts those between two hosts that neither end has closed.
func (n *Network) Connections(a, b string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for p := range n.pairs {
		if (p.a == a && p.b == b) || (p.a == b && p.b == a) {
			count++
		}
	}
	return count
}

// Close breaks all connections and waits for the network's goroutines.
func (n *Network) Close() {
	n.change(func() {
		n.closed = true
		for p := range n.pairs {
			p.reset()
		}
		clear(n.pairs)
	})
	n.owned.Wait()
}

// address is an address of this network.
type address string

func (address) Network() string  { return "memory" }
func (a address) String() string { return string(a) }

// listener is one host's ear at one address.
type listener struct {
	network *Network
	host    string
	addr    string
	queue   chan net.Conn
	done    chan struct{}
	once    sync.Once
}

// Listen has a host listen at an address (host:port, any text with a colon).
func (n *Network) Listen(host, addr string) (net.Listener, error) {
	l := &listener{network: n, host: host, addr: addr, queue: make(chan net.Conn, 128), done: make(chan struct{})}
	err := error(nil)
	n.change(func() {
		if n.listeners[addr] != nil {
			err = &net.OpError{Op: "listen", Net: "memory", Addr: address(addr), Err: syscall.EADDRINUSE}
			return
		}
		n.listeners[addr] = l
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Accept returns the next connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close stops listening; waiting connections are closed.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.change(func() {
			if l.network.listeners[l.addr] == l {
				delete(l.network.listeners, l.addr)
			}
			close(l.done)
		})
		for {
			select {
			case c := <-l.queue:
				_ = c.Close()
			default:
				return
			}
		}
	})
	return nil
}

// Addr is where it listens.
func (l *listener) Addr() net.Addr { return address(l.addr) }

// Dial returns how a host connects; it fits peer.Dial.
func (n *Network) Dial(host string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		refused := &net.OpError{Op: "dial", Net: "memory", Addr: address(addr), Err: syscall.ECONNREFUSED}
		// The one step to the other host and the one back, as TCP's SYN and
		// SYN-ACK: who is behind the address is known by its listener, or, for a
		// closed port, by the part before the colon.
		for _, back := range []bool{false, true} {
			from, to := host, n.hostAt(addr)
			if back {
				from, to = to, from
			}
			if err := n.pass(ctx, from, to); err != nil {
				return nil, &net.OpError{Op: "dial", Net: "memory", Addr: address(addr), Err: err}
			}
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		l := n.listeners[addr]
		if l == nil || n.closed {
			return nil, refused
		}
		near, far := n.join(host, l)
		select {
		case l.queue <- far:
			return near, nil
		default:
			_, _ = near.Close(), far.Close()
			return nil, refused
		}
	}
}

func (n *Network) hostAt(addr string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.listeners[addr]; l != nil {
		return l.host
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// pass waits until one piece has got from one host to another.
func (n *Network) pass(ctx context.Context, from, to string) error {
	for {
		n.mu.Lock()
		q := n.quality(from, to)
		blocked := (q.cut || n.off[from] || n.off[to]) && !n.closed
		wait, changed := q.cost(blocked), n.changed
		n.mu.Unlock()
		if !blocked {
			return sleep(ctx, wait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// cost is how long the next piece takes.
func (q *quality) cost(blocked bool) time.Duration {
	if blocked {
		return 0
	}
	wait := q.delay
	if q.passed++; q.nth > 0 && q.passed%q.nth == 0 {
		wait += q.again
	}
	return wait
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pair is one connection: two pipes with the network between them.
type pair struct {
	network *Network
	a, b    string
	ends    [4]net.Conn // a's own end, its inner one, b's inner one, b's own end
	ctx     context.Context
	end     context.CancelFunc
	lostBy  string // the host that lost power meanwhile; under network.mu
	// forgotten: nothing passes any more; under network.mu.
	forgotten bool
	broken    chan struct{}
	once      sync.Once
}

// join makes the connection; n.mu is held.
func (n *Network) join(host string, l *listener) (near, far net.Conn) {
	p := &pair{network: n, a: host, b: l.host, broken: make(chan struct{})}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.ends[0], p.ends[1] = net.Pipe()
	p.ends[2], p.ends[3] = net.Pipe()
	n.pairs[p] = true
	n.owned.Go(func() { p.carry(p.ends[1], p.ends[2], p.a, p.b) })
	n.owned.Go(func() { p.carry(p.ends[2], p.ends[1], p.b, p.a) })
	return &end{Conn: p.ends[0], pair: p, local: address(host + ":0"), remote: address(l.addr)},
		&end{Conn: p.ends[3], pair: p, local: address(l.addr), remote: address(host + ":0")}
}

// carry brings one direction's bytes across. The pieces wait in a window, so
// that writing does not wait for reading.
func (p *pair) carry(in io.Reader, out net.Conn, from, to string) {
	window := make(chan []byte, 256)
	p.network.owned.Go(func() {
		defer close(window)
		for {
			piece := make([]byte, 16<<10)
			k, err := in.Read(piece)
			if k > 0 {
				select {
				case window <- piece[:k]:
				case <-p.ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	for piece := range window {
		if !p.deliver(out, piece, from, to) {
			for range window { // swallowed
			}
			return
		}
	}
	// The end of a stream is a piece, too: behind a cut nobody learns of it.
	if p.arrives(from, to) {
		_ = out.Close()
		p.forget()
	}
}

// arrives waits for the network to carry one piece.
func (p *pair) arrives(from, to string) bool {
	if p.network.pass(p.ctx, from, to) != nil {
		return false
	}
	p.network.mu.Lock()
	lostBy, forgotten := p.lostBy, p.forgotten
	p.network.mu.Unlock()
	switch {
	case forgotten:
	case lostBy == "":
		return true
	case lostBy == to: // it is back and knows nothing of this connection
		p.reset()
		p.forget()
	}
	return false
}

func (p *pair) deliver(out net.Conn, piece []byte, from, to string) bool {
	if !p.arrives(from, to) {
		return false
	}
	_, err := out.Write(piece)
	return err == nil
}

// reset breaks the connection at both ends at once; the caller forgets it.
func (p *pair) reset() {
	p.once.Do(func() { close(p.broken) })
	p.end()
	for _, c := range p.ends {
		_ = c.Close()
	}
}

func (p *pair) forget() {
	p.network.mu.Lock()
	defer p.network.mu.Unlock()
	delete(p.network.pairs, p)
}

// end is a host's end of a connection.
type end struct {
	net.Conn
	pair          *pair
	local, remote net.Addr
}

// LocalAddr is this end's.
func (e *end) LocalAddr() net.Addr { return e.local }

// RemoteAddr is the other end's.
func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	return n, e.fault("read", err)
}

func (e *end) Write(b []byte) (int, error) {
	n, err := e.Conn.Write(b)
	return n, e.fault("write", err)
}

// fault tells a reset from an orderly end.
func (e *end) fault(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) && !e.wasReset() {
		return err
	}
	if e.wasReset() {
		return &net.OpError{Op: op, Net: "memory", Source: e.local, Addr: e.remote, Err: syscall.ECONNRESET}
	}
	if errors.Is(err, io.ErrClosedPipe) {
		return &net.OpError{Op: op, Net: "memory", Source: e.local, Addr: e.remote, Err: fmt.Errorf("%w: %w", net.ErrClosed, err)}
	}
	return err
}

func (e *end) wasReset() bool {
	select {
	case <-e.pair.broken:
		return true
	default:
		return false
	}
}
