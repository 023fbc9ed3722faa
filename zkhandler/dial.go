package zkhandler

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	sendBuffer    = 576 << 10 // what the library encodes requests into
	receiveBuffer = 640 << 10 // the largest frame that is let through to it
	listBuffer    = 8 << 20   // the same for a list of children: some 600 000 history entries
	maxFrame      = 64 << 20  // a longer one is no ZooKeeper
	handshakeMax  = 1 << 10

	backoffFirst = 20 * time.Millisecond
	backoffYoung = 80 * time.Millisecond // in the first half of the session time-out: a role may hang on the next try
	backoffLast  = 400 * time.Millisecond
)

// The wire's numbers that the wrapper has to know.
const (
	opChildren   = 8
	opSync       = 9
	opPing       = 11
	opChildren2  = 12
	opClose      = -11
	opSetAuth    = 100
	opSetWatches = 101

	// codeDropped is the error code with which a stale request is answered
	// (ZooKeeper's own "connection loss", which no server sends).
	codeDropped = -4
	// codeOversize answers a request whose reply was too long to read
	// (ZooKeeper's own "marshalling error").
	codeOversize = -5
)

var errSessionDead = errors.New("the session is dead")

// dialer makes the connections of one session.
type dialer struct {
	config   Config
	ring     *hostRing
	barrier  func(generation uint64) string
	ctx      context.Context                // ends with the session
	tell     func(server string, err error) // of a server that could not be reached; may be nil
	told     map[string]string              // what was told of each since it was last reached
	attempts int                            // since a connection last lasted
	lost     time.Time                      // when the first of them was begun
	lasted   time.Time                      // when the current connection was made

	mu         sync.Mutex
	current    *boundConn
	generation uint64
	watchZxid  int64 // up to here no watch event can have been missed
	lastZxid   int64 // largest in a reply
}

// dial is the library's Dialer. It is called from one goroutine only.
func (d *dialer) dial(network, addr string, _ time.Duration) (net.Conn, error) {
	d.closeCurrent()
	if !d.lasted.IsZero() && time.Since(d.lasted) > time.Second {
		d.attempts = 0
	}
	d.lasted = time.Time{}
	if err := d.pause(); err != nil {
		return nil, err
	}
	d.attempts++
	ctx, cancel := context.WithTimeout(d.ctx, d.connectTimeout())
	defer cancel()
	conn, raw, err := d.config.connect(ctx, network, addr)
	d.report(addr, err)
	if err != nil {
		return nil, err
	}
	d.lasted = time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx.Err() != nil {
		raw.Close()
		return nil, errSessionDead
	}
	d.generation++
	d.current = &boundConn{
		Conn: conn, raw: raw, in: bufio.NewReaderSize(conn, 4096),
		dialer: d, server: addr, generation: d.generation,
		barrier:   []byte(d.barrier(d.generation)),
		handshake: time.Now().Add(d.handshakeTimeout()),
		limit:     d.config.SessionTimeout * 2 / 3,
		lists:     map[int32]bool{},
	}
	return d.current, nil
}

// report tells once what keeps from a server, until it is reached again.
func (d *dialer) report(addr string, err error) {
	if err == nil {
		delete(d.told, addr)
		return
	}
	if d.tell == nil || d.ctx.Err() != nil || d.told[addr] == err.Error() {
		return
	}
	if d.told == nil {
		d.told = map[string]string{}
	}
	d.told[addr] = err.Error()
	d.tell(addr, err)
}

// connect makes a connection to a server, with TLS where it is set. raw is the
// socket below conn; it is closed on failure.
func (c Config) connect(ctx context.Context, network, addr string) (conn, raw net.Conn, err error) {
	if c.Dial != nil {
		raw, err = c.Dial(ctx, network, addr)
	} else {
		raw, err = new(net.Dialer).DialContext(ctx, network, addr)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("dial ZooKeeper at %s: %w", addr, err)
	}
	if c.TLS == nil {
		return raw, raw, nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		raw.Close()
		return nil, nil, fmt.Errorf("split server address %q: %w", addr, err)
	}
	conn, err = c.TLS.wrap(ctx, raw, host)
	return conn, raw, err
}

// pause backs off once all servers were tried: 20 ms doubling to 80 ms, and to
// 0.4 s once the outage is older than a lost leader's, with jitter, so that a
// restarted ensemble is not met by everybody at once.
func (d *dialer) pause() error {
	if d.ctx.Err() != nil {
		return errSessionDead
	}
	if d.attempts == 0 {
		d.lost = time.Now()
	}
	rounds := d.attempts / d.ring.Len()
	if rounds == 0 || d.attempts%d.ring.Len() != 0 {
		return nil
	}
	wait := backoffLast
	if rounds < 6 {
		wait = min(backoffLast, backoffFirst<<(rounds-1))
	}
	if time.Since(d.lost) < d.config.SessionTimeout/2 {
		wait = min(wait, backoffYoung)
	}
	timer := time.NewTimer(wait/2 + rand.N(wait/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-d.ctx.Done():
		return errSessionDead
	}
}

// connectTimeout is short of TCP's first retransmission (1 s): a lost SYN is
// cured sooner by a new dial.
func (d *dialer) connectTimeout() time.Duration {
	return min(time.Second, max(100*time.Millisecond, d.config.SessionTimeout/12))
}

func (d *dialer) handshakeTimeout() time.Duration {
	return min(time.Second, d.config.SessionTimeout/4)
}

// kill closes the current connection if it is still of this generation (any,
// when 0). The library then goes on at the next server in the same session.
func (d *dialer) kill(generation uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != nil && (generation == 0 || d.current.generation == generation) {
		d.current.raw.Close()
	}
}

// closeCurrent closes the previous connection, which the library forgets to
// when the session has expired.
func (d *dialer) closeCurrent() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != nil {
		d.current.raw.Close()
		d.current = nil
	}
}

// now returns the current connection, nil when there is none.
func (d *dialer) now() *boundConn {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.current
}

// boundConn is a connection that cannot hang, cannot be fed garbage, and
// cannot carry an earlier connection's requests.
//
// Reading and writing are each done by one goroutine of the library; what they
// share is under mu. The wrapped Write never returns an error: the library's
// loop would block for ever on one that comes while it re-sends credentials.
type boundConn struct {
	net.Conn
	raw        net.Conn
	dialer     *dialer
	server     string
	generation uint64
	barrier    []byte
	handshake  time.Time     // until the handshake is read, no deadline is later
	limit      time.Duration // after it, no deadline is further off

	shaken  atomic.Bool
	granted atomic.Int64 // negotiated session time-out, ns
	session atomic.Int64

	// reader's
	in        *bufio.Reader
	out       []byte // bytes to hand out before reading on
	remaining int    // of the current frame's body

	// writer's
	greeted bool // the connect request has been written
	passed  bool // the barrier has been written: all after it is ours

	mu        sync.Mutex
	lists     map[int32]bool // requests for a list of children that are under way, by xid
	injected  []byte         // complete reply frames for dropped requests
	watchXid  int32          // of the library's SetWatches in flight
	startZxid int64          // what this session had seen before this connection
}

// SetDeadline bounds both directions; see bound.
func (c *boundConn) SetDeadline(t time.Time) error { return c.Conn.SetDeadline(c.bound(t)) }

// SetReadDeadline sets the deadline, but no later than the connection allows.
func (c *boundConn) SetReadDeadline(t time.Time) error { return c.Conn.SetReadDeadline(c.bound(t)) }

// SetWriteDeadline sets the deadline, but no later than the connection allows.
func (c *boundConn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(c.bound(t)) }

// bound clamps the library's deadlines: 6.7 times the session time-out, or
// none at all, during the handshake; two thirds of it after.
func (c *boundConn) bound(t time.Time) time.Time {
	latest := c.handshake
	if c.shaken.Load() {
		latest = time.Now().Add(c.limit)
	}
	if t.IsZero() || t.After(latest) {
		return latest
	}
	return t
}

// Close closes the socket without TLS's closing alert, which can block.
func (c *boundConn) Close() error { return c.raw.Close() }

// Read hands out whole, checked frames.
func (c *boundConn) Read(p []byte) (int, error) {
	if len(c.out) == 0 && c.remaining == 0 {
		if err := c.nextFrame(); err != nil {
			c.raw.Close()
			return 0, err
		}
	}
	if len(c.out) > 0 {
		n := copy(p, c.out)
		c.out = c.out[n:]
		return n, nil
	}
	n, err := c.in.Read(p[:min(len(p), c.remaining)])
	c.remaining -= n
	return n, err
}

// nextFrame reads a frame's head and puts what the library shall see of it,
// preceded by the replies to dropped requests, into out.
func (c *boundConn) nextFrame() error {
	var head [4]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return err
	}
	length := int64(binary.BigEndian.Uint32(head[:]))
	if !c.shaken.Load() {
		return c.handshakeFrame(head, length)
	}
	if length < 16 || length > maxFrame {
		return fmt.Errorf("%s sent a frame of %d bytes: not a ZooKeeper server", c.server, length)
	}
	var reply [16]byte
	if _, err := io.ReadFull(c.in, reply[:]); err != nil {
		return err
	}
	c.settleWatches(reply[:])
	c.hideZxid(reply[:])
	xid := int32(binary.BigEndian.Uint32(reply[:]))
	limit := int64(receiveBuffer)
	c.mu.Lock()
	c.out, c.injected = c.injected, nil
	if c.lists[xid] {
		delete(c.lists, xid)
		limit = listBuffer
	}
	c.mu.Unlock()
	if length > limit {
		return c.oversize(reply[:], length)
	}
	c.out = append(append(c.out, head[:]...), reply[:]...)
	c.remaining = int(length) - len(reply)
	return nil
}

// hideZxid keeps a reply's zxid for ourselves. The library notes it without a
// lock while it may be reading it elsewhere, and sends it too late to be of
// use; it never sees one, and greet and rewatch send ours.
func (c *boundConn) hideZxid(reply []byte) {
	zxid := reply[4:12]
	if seen := int64(binary.BigEndian.Uint64(zxid)); seen > 0 {
		c.dialer.sawZxid(seen)
		clear(zxid)
	}
}

func (c *boundConn) handshakeFrame(head [4]byte, length int64) error {
	if length < 36 || length > handshakeMax {
		return fmt.Errorf("%s answered the handshake with a frame of %d bytes: not a ZooKeeper server", c.server, length)
	}
	reply, err := c.in.Peek(16)
	if err != nil {
		return err
	}
	granted := time.Duration(int32(binary.BigEndian.Uint32(reply[4:]))) * time.Millisecond
	c.granted.Store(int64(granted))
	c.session.Store(int64(binary.BigEndian.Uint64(reply[8:])))
	if granted > 0 {
		c.limit = granted * 2 / 3
	}
	// The whole body must be in before the clamp is lifted.
	body := make([]byte, length)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return err
	}
	c.shaken.Store(true)
	c.out = append(head[:], body...)
	return nil
}

// oversize skips a reply that the library's buffer could not hold and answers
// the request with an error instead of losing the connection over and over.
func (c *boundConn) oversize(head []byte, length int64) error {
	if _, err := io.CopyN(io.Discard, c.in, length-16); err != nil {
		return err
	}
	c.out = appendReply(c.out, int32(binary.BigEndian.Uint32(head)), codeOversize)
	return nil
}

func appendReply(b []byte, xid, code int32) []byte {
	b = binary.BigEndian.AppendUint32(b, 16)
	b = binary.BigEndian.AppendUint32(b, uint32(xid))
	b = binary.BigEndian.AppendUint64(b, 0)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

// Write sends one frame; the library writes each in one piece.
func (c *boundConn) Write(p []byte) (int, error) {
	frame := c.outgoing(p)
	if frame == nil {
		return len(p), nil
	}
	if _, err := c.Conn.Write(frame); err != nil {
		c.raw.Close()
	}
	return len(p), nil
}

// outgoing inspects a frame and returns what to send: nil for one that an
// earlier connection left behind in the library's queue. Such a request is
// answered as dropped, so that its caller knows that it never happened.
func (c *boundConn) outgoing(p []byte) []byte {
	if !c.greeted {
		return c.greet(p)
	}
	if len(p) < 12 {
		return p
	}
	xid := int32(binary.BigEndian.Uint32(p[4:]))
	op := int32(binary.BigEndian.Uint32(p[8:]))
	switch op {
	case opPing, opClose, opSetAuth:
		return p
	case opSetWatches:
		return c.rewatch(p, xid)
	case opSync:
		if len(p) >= 16 && string(p[16:]) == string(c.barrier) {
			c.passed = true
			return p
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.passed {
		if op == opChildren || op == opChildren2 {
			c.lists[xid] = true // its reply may be long
		}
		return p
	}
	c.injected = appendReply(c.injected, xid, codeDropped)
	return nil
}

// greet writes into the connect request what this session has seen, so that a
// server that lags behind it refuses. Once the server has acknowledged that
// all watches are armed here, no later connection looks back further than this.
func (c *boundConn) greet(p []byte) []byte {
	c.greeted = true
	if len(p) < 16 {
		return p
	}
	c.dialer.mu.Lock()
	seen := c.dialer.lastZxid
	c.dialer.mu.Unlock()
	c.mu.Lock()
	c.startZxid = seen
	c.mu.Unlock()
	frame := append([]byte(nil), p...)
	binary.BigEndian.PutUint64(frame[8:], uint64(seen))
	return frame
}

// rewatch puts a zxid into the library's SetWatches from before this
// connection. Its own was read late, when replies on the new connection had
// already advanced it, and a change in between was never signalled.
func (c *boundConn) rewatch(p []byte, xid int32) []byte {
	if len(p) < 20 {
		return p
	}
	d := c.dialer
	d.mu.Lock()
	since := d.watchZxid
	d.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(p) < 100<<10 { // else a further part follows
		c.watchXid = xid
	}
	frame := append([]byte(nil), p...)
	binary.BigEndian.PutUint64(frame[12:], uint64(since))
	return frame
}

// settleWatches advances the watches' zxid once their re-arming is acknowledged.
func (c *boundConn) settleWatches(reply []byte) {
	xid := int32(binary.BigEndian.Uint32(reply))
	c.mu.Lock()
	mine := c.watchXid != 0 && xid == c.watchXid
	since := c.startZxid
	if mine {
		c.watchXid = 0
	}
	c.mu.Unlock()
	if mine && binary.BigEndian.Uint32(reply[12:]) == 0 {
		c.dialer.watchesGood(since)
	}
}

func (d *dialer) watchesGood(zxid int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watchZxid = max(d.watchZxid, zxid)
}

func (d *dialer) sawZxid(zxid int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lastZxid = max(d.lastZxid, zxid)
}
