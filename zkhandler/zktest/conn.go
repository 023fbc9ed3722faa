package zktest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// packet is a frame on its way, or the end of the stream.
type packet struct {
	due   time.Time
	frame []byte
	eof   bool
}

// link is one direction of a connection: what has been sent and has not
// arrived. A partition holds it, as TCP holds what it must retransmit.
type link struct {
	queue []packet
	wake  chan struct{}
}

func newLink() *link { return &link{wake: make(chan struct{}, 1)} }

func (l *link) push(p packet) {
	if n := len(l.queue); n > 0 && l.queue[n-1].due.After(p.due) {
		p.due = l.queue[n-1].due // a stream never reorders
	}
	l.queue = append(l.queue, p)
	l.nudge()
}

func (l *link) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// conn is the server's end of a connection. All fields but pipe are guarded by
// the server's mutex.
type conn struct {
	s        *Server
	id       int
	client   string
	addr     string
	pipe     net.Conn
	in, out  *link
	session  *session
	who      []identity
	data     map[string]bool // data and exist watches
	childs   map[string]bool
	busy     bool // a write waits for the leader: later requests wait behind it
	closed   bool // by the server
	peerGone bool
	gone     chan struct{} // closed with closed: wakes the pump
}

// readLoop moves frames from the pipe into the inward link.
func (c *conn) readLoop() {
	defer c.s.wg.Done()
	for {
		frame, err := readFrame(c.pipe)
		c.s.mu.Lock()
		due := time.Now().Add(c.s.delays[c.client])
		if err != nil {
			c.peerGone = true
			c.in.push(packet{due: due, eof: true})
			c.out.nudge()
			c.s.mu.Unlock()
			return
		}
		c.in.push(packet{due: due, frame: frame})
		c.s.mu.Unlock()
	}
}

// readFrame returns one frame; a four-letter word comes back as it is.
func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if isWord(head[:]) {
		return head[:], nil
	}
	n := int32(binary.BigEndian.Uint32(head[:]))
	if n < 0 || n > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes exceeds the limit of %d", n, maxFrame)
	}
	frame := make([]byte, n)
	_, err := io.ReadFull(r, frame)
	return frame, err
}

// inPump hands frames to the server in order, as they fall due.
func (c *conn) inPump() {
	defer c.s.wg.Done()
	for {
		c.s.mu.Lock()
		if c.closed {
			c.s.mu.Unlock()
			return
		}
		held := c.busy || c.s.holdsIn(c)
		p, wait, ok := c.in.next(held)
		if ok {
			c.receive(p)
		}
		changed := c.s.changed
		c.s.mu.Unlock()
		if !ok {
			pause(c.in.wake, changed, c.gone, wait)
		}
	}
}

// outPump hands replies and events to the client in order, as they fall due.
func (c *conn) outPump() {
	defer c.s.wg.Done()
	defer c.pipe.Close()
	for {
		c.s.mu.Lock()
		if c.peerGone {
			c.s.mu.Unlock()
			return
		}
		p, wait, ok := c.out.next(c.s.holdsOut(c))
		changed := c.s.changed
		c.s.mu.Unlock()
		switch {
		case !ok:
			pause(c.out.wake, changed, nil, wait)
		case p.eof:
			return
		default:
			if _, err := c.pipe.Write(p.frame); err != nil {
				return
			}
		}
	}
}

// next takes the head of the queue if it is due, else says how long to wait;
// 0 is for ever.
func (l *link) next(held bool) (packet, time.Duration, bool) {
	if held || len(l.queue) == 0 {
		return packet{}, 0, false
	}
	head := l.queue[0]
	if wait := time.Until(head.due); wait > 0 {
		return packet{}, wait, false
	}
	l.queue = l.queue[1:]
	return head, 0, true
}

// pause waits until any of the channels has news or the time is over.
func pause(wake, changed, gone <-chan struct{}, wait time.Duration) {
	var timeout <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-wake:
	case <-changed:
	case <-gone:
	case <-timeout:
	}
}

// send queues a frame for the client; a closed connection drops it.
func (c *conn) send(frame []byte) {
	if !c.closed {
		c.out.push(packet{due: time.Now().Add(c.s.delays[c.client]), frame: frame})
	}
}

// shut closes the server's side after what has been sent before.
func (c *conn) shut() {
	if c.closed {
		return
	}
	c.out.push(packet{due: time.Now().Add(c.s.delays[c.client]), eof: true})
	c.closed = true
	close(c.gone)
	c.s.forget(c)
}

// reset closes both directions at once; what was on its way is lost.
func (c *conn) reset() {
	c.out.queue = nil
	c.shut()
	c.pipe.Close()
}

// receive carries out one frame.
func (c *conn) receive(p packet) {
	if p.eof {
		c.shut()
		return
	}
	if len(p.frame) == 4 && isWord(p.frame) {
		c.send([]byte(c.s.word(string(p.frame), c.addr)))
		c.shut()
		return
	}
	parse := parseRequest
	if c.session == nil {
		parse = parseConnect
	}
	r, err := parse(p.frame)
	if err != nil {
		c.shut()
		return
	}
	c.s.accept(c, r)
}

// reply answers a request; the body goes out only without an error.
func (c *conn) reply(r *request, code int32, body []byte) {
	e := &encoder{}
	e.int32(r.xid)
	e.int64(c.s.seen(c.addr))
	e.int32(code)
	if code == errOK {
		e.buf = append(e.buf, body...)
	}
	c.send(e.frame())
}

// event tells the client that a watch fired.
func (c *conn) event(kind int32, path string) {
	e := &encoder{}
	e.int32(xidWatchEvent)
	e.int64(-1)
	e.int32(errOK)
	e.int32(kind)
	e.int32(stateSyncConnected)
	e.string(path)
	c.send(e.frame())
}

// clientConn is what a dialer returns: a pipe end with the dialled address.
type clientConn struct {
	net.Conn
	addr string
}

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// RemoteAddr returns the address that was dialled.
func (c *clientConn) RemoteAddr() net.Addr { return address(c.addr) }
