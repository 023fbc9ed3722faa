package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

const (
	// eventQueue is how many unread guard events are kept; the oldest goes first.
	eventQueue = 64
	// reconnectPause is between attempts to reach a guard that is not there.
	reconnectPause = 200 * time.Millisecond
	// dialTimeout bounds one attempt that no caller waits for.
	dialTimeout = time.Second
)

// Client speaks to the guard. It satisfies agent.Guard. Every call is bounded
// by its context and fails at once while there is no guard; the connection is
// made again by itself. All methods may be called from several goroutines.
//
// The guard acts on Extend in the order in which one client sent it, before
// anything sent later. All else runs side by side there: who needs an order
// between two calls awaits the first. A call whose context has ended is never
// sent, so that none follows an End for which its context was ended (I3). What
// gives something takes a cluster.Token, which is asked when nothing but the
// sending is left; what only takes away, or looks, is never refused for want of
// one.
type Client struct {
	path   string
	log    *zap.Logger
	events chan cluster.GuardEvent
	cancel context.CancelFunc
	ended  chan struct{}

	dialing sync.Mutex // one dial at a time
	mu      sync.Mutex
	link    *link                            // nil: not connected
	others  map[chan cluster.GuardEvent]bool // who reads events besides (Subscribe)
}

// NewClient returns a client of the guard that listens on this socket, and
// begins to connect. The caller must Close it.
func NewClient(socketPath string, log *zap.Logger) *Client {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{path: socketPath, log: log, events: make(chan cluster.GuardEvent, eventQueue),
		cancel: cancel, ended: make(chan struct{}), others: map[chan cluster.GuardEvent]bool{}}
	go c.keep(ctx)
	return c
}

// Close ends the connection and returns when the client's goroutines have ended.
// What the guard holds, it goes on holding until its deadline.
func (c *Client) Close() {
	c.cancel()
	<-c.ended
}

// keep holds a connection so that events arrive between calls.
func (c *Client) keep(ctx context.Context) {
	defer close(c.ended)
	missing := false
	for ctx.Err() == nil {
		l, err := c.connect(ctx)
		if err == nil {
			missing = false
			select {
			case <-l.closed:
			case <-ctx.Done():
				l.close(errors.New("the client was closed"))
				<-l.closed
			}
			continue
		}
		if !missing && ctx.Err() == nil {
			missing = true
			c.log.Warn("guard unreachable", zap.Error(err))
		}
		select {
		case <-time.After(reconnectPause):
		case <-ctx.Done():
		}
	}
	if l := c.current(); l != nil { // dialled by a call meanwhile
		l.close(errors.New("the client was closed"))
		<-l.closed
	}
}

// current returns the live connection, nil without one.
func (c *Client) current() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link != nil && c.link.dead() {
		c.link = nil
	}
	return c.link
}

// connect returns the connection, made if need be and greeted.
func (c *Client) connect(ctx context.Context) (*link, error) {
	l, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case <-l.greeted:
		return l, nil
	case <-l.closed:
		return nil, fmt.Errorf("reach the guard at %s: %w", c.path, l.err)
	case <-ctx.Done():
		return nil, fmt.Errorf("reach the guard at %s: it accepted the connection but does not answer (stopped?): %w", c.path, context.Cause(ctx))
	}
}

// dial returns the connection, made if need be. A Unix socket connects or
// refuses without waiting, so holding the lock over it delays nobody.
func (c *Client) dial(ctx context.Context) (*link, error) {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if l := c.current(); l != nil {
		return l, nil
	}
	select {
	case <-c.ended:
		return nil, fmt.Errorf("reach the guard at %s: this client was closed: %w", c.path, net.ErrClosed)
	default:
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return nil, fmt.Errorf("reach the guard at %s: %w; it holds the role's addresses and services: see `systemctl status pvc-guard`, or start `pvcnoded guard`", c.path, err)
	}
	l := newLink(conn)
	go l.read(c.push) // ends when the connection does
	c.mu.Lock()
	c.link = l
	c.mu.Unlock()
	return l, nil
}

// push queues an event for each reader.
func (c *Client) push(e cluster.GuardEvent) {
	queue(c.events, e)
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.others {
		queue(other, e)
	}
}

// queue queues an event, dropping the oldest where nobody reads.
func queue(to chan cluster.GuardEvent, e cluster.GuardEvent) {
	for {
		select {
		case to <- e:
			return
		default:
		}
		select {
		case <-to:
		default:
		}
	}
}

// call sends one request that gives nothing, and waits for its answer.
func (c *Client) call(ctx context.Context, m Method, params, result any) error {
	return c.send(ctx, func() error { return nil }, m, params, result)
}

// order sends a request that gives something at an epoch, by a token of it.
func (c *Client) order(ctx context.Context, t cluster.Token, e cluster.Epoch, m Method, params, result any) error {
	if t.Epoch() != e {
		return fmt.Errorf("ask the guard to %s at epoch %d by a token of epoch %d: %w: %w", m, e, t.Epoch(), cluster.ErrNoToken, cluster.ErrRefused)
	}
	return c.send(ctx, t.Check, m, params, result)
}

// send sends one request, if leave is given then, and waits for its answer. A
// request that certainly was not sent goes out again once on a new connection;
// one whose answer was lost does not, and the error says so.
func (c *Client) send(ctx context.Context, leave func() error, m Method, params, result any) error {
	raw, err := json.Marshal(params)
	if err != nil {
		return fmt.Errorf("encode guard request %s: %w", m, err)
	}
	for again := false; ; again = true {
		l, err := c.connect(ctx)
		if err != nil {
			return err
		}
		answer, sent, err := l.roundTrip(ctx, Message{Method: m, Params: raw}, leave)
		switch {
		case err != nil && !sent && !again && ctx.Err() == nil && !errors.Is(err, cluster.ErrNoToken):
			continue
		case err != nil:
			return fmt.Errorf("ask the guard to %s: %w", m, err)
		case answer.Error != nil:
			return FromWire(answer.Error)
		case result == nil || len(answer.Result) == 0:
			return nil
		}
		if err := json.Unmarshal(answer.Result, result); err != nil {
			return fmt.Errorf("decode the guard's answer to %s: %w", m, err)
		}
		return nil
	}
}

// State returns all that the guard holds, as verified against the kernel.
func (c *Client) State(ctx context.Context) (cluster.GuardState, error) {
	var s cluster.GuardState
	err := c.call(ctx, MethodState, struct{}{}, &s)
	return s, err
}

// Begin starts or adopts a role until the deadline. It fails with
// cluster.ErrStaleEpoch or cluster.ErrDeadline.
func (c *Client) Begin(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	return c.order(ctx, t, d.Epoch, MethodBegin, d, nil)
}

// Extend moves a live role's deadline, either way. It fails with
// cluster.ErrDeadline if the guard has ended the role.
func (c *Client) Extend(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	return c.order(ctx, t, d.Epoch, MethodExtend, d, nil)
}

// Present adds the addresses, opens the gate and announces them.
func (c *Client) Present(ctx context.Context, t cluster.Token, e cluster.Epoch, addrs []cluster.FloatingAddress) error {
	return c.order(ctx, t, e, MethodPresent, EpochParams{Epoch: e, Addresses: addrs}, nil)
}

// Withdraw shuts the gate and removes the addresses; they are verified gone.
func (c *Client) Withdraw(ctx context.Context, e cluster.Epoch) error {
	return c.call(ctx, MethodWithdraw, EpochParams{Epoch: e}, nil)
}

// StartService returns when the service's check has passed.
func (c *Client) StartService(ctx context.Context, t cluster.Token, o cluster.DeadlineOwner, e cluster.Epoch, s cluster.ServiceSpec) error {
	return c.order(ctx, t, e, MethodStartService, EpochParams{Owner: o, Epoch: e, Service: &s}, nil)
}

// StopService returns when nothing of the service is left; one that is not
// running is no error.
func (c *Client) StopService(ctx context.Context, t cluster.Token, o cluster.DeadlineOwner, e cluster.Epoch, name string) error {
	return c.order(ctx, t, e, MethodStopService, EpochParams{Owner: o, Epoch: e, Name: name}, nil)
}

// StartCopy starts the copy of a workload on the node's own deadline, or adopts one
// that runs by this specification, and returns when its check has passed. It fails
// with cluster.ErrDeadline while this node's own right is not held.
//
// The token is of whatever activity ordered it: what counts is that it lives. The
// epoch is the node's own, for which nobody else competes, so that a leader's says
// nothing of it; whose orders this node obeys was decided where it grants leases
// (I2), and the token asks that again right before the order leaves this process.
func (c *Client) StartCopy(ctx context.Context, t cluster.Token, s cluster.ServiceSpec) error {
	return c.send(ctx, t.Check, MethodStartService, EpochParams{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Service: &s}, nil)
}

// StopCopy stops a copy by its own rules, by a token as StartCopy's, and returns
// when nothing of it is left; one that is not there is no error. Where its end
// cannot be verified it stays held, and the error says what may be left.
func (c *Client) StopCopy(ctx context.Context, t cluster.Token, name string) error {
	return c.send(ctx, t.Check, MethodStopService, EpochParams{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Name: name}, nil)
}

// LetGo stops a copy by its own rules, as StopCopy does. It is this node's own, when
// it stops in order: it only takes away, and so it takes no token.
func (c *Client) LetGo(ctx context.Context, name string) error {
	return c.call(ctx, MethodStopService, EpochParams{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Name: name}, nil)
}

// End ends all that hangs on the owner, now, and returns when verified gone. An
// owner that the guard does not hold is no error.
func (c *Client) End(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch) error {
	return c.call(ctx, MethodEnd, EpochParams{Owner: o, Epoch: e}, nil)
}

// Relinquish is an agent's last word after an orderly end: what it held is
// released and acknowledged. Only after it the guard stops the watchdog, at its
// own orderly end; the next Begin takes it back. It fails with
// cluster.ErrRefused while anything but the node's own deadline is held, or is
// not verified gone.
func (c *Client) Relinquish(ctx context.Context) error {
	return c.call(ctx, MethodRelinquish, struct{}{}, nil)
}

// EndCaller has the guard kill this process that long from now, wherever it hangs
// then: the last rung of a daemon in which something cannot be ended. It is not
// called off by anything. ctx bounds the wait for the answer only: a guard that
// reads the question late kills late, not never. A guard of an earlier program
// does not know it and says so by cluster.ErrRefused.
func (c *Client) EndCaller(ctx context.Context, within time.Duration) error {
	pid := os.Getpid()
	start, err := proc.StartTime(pid)
	if err != nil {
		return fmt.Errorf("read when this process (%d) was started: %w", pid, err)
	}
	endless, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	return c.call(endless, MethodEndCaller, EndCallerParams{Start: start, At: proc.BootClock{}.Now().Add(within)}, nil)
}

// Preflight reports what stands against serving the role on this host.
func (c *Client) Preflight(ctx context.Context, r cluster.PreflightRequest) (cluster.PreflightResult, error) {
	var p cluster.PreflightResult
	err := c.call(ctx, MethodPreflight, r, &p)
	return p, err
}

// Run runs one program under an owner's deadline and returns when it, and all
// that it started, is gone. A program that failed is told in the result.
func (c *Client) Run(ctx context.Context, t cluster.Token, r cluster.RunRequest) (cluster.RunResult, error) {
	res := cluster.RunResult{ExitCode: -1}
	err := c.order(ctx, t, r.Epoch, MethodRun, r, &res)
	return res, err
}

// Events delivers what the guard did of its own accord, oldest dropped. The
// channel is never closed; what happened while no connection stood is in State.
func (c *Client) Events() <-chan cluster.GuardEvent { return c.events }

// Subscribe is Events for one more reader, with a queue of its own, until the
// function that it returns is called.
func (c *Client) Subscribe() (<-chan cluster.GuardEvent, func()) {
	own := make(chan cluster.GuardEvent, eventQueue)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.others[own] = true
	return own, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.others, own)
	}
}

// link is one connection.
type link struct {
	conn    net.Conn
	greeted chan struct{} // closed by a hello of our version
	closed  chan struct{} // closed when the reader has ended
	err     error         // why; valid once closed is

	writing sync.Mutex
	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan Message
	cause   error
}

func newLink(conn net.Conn) *link {
	return &link{conn: conn, greeted: make(chan struct{}), closed: make(chan struct{}), waiting: map[uint64]chan Message{}}
}

func (l *link) dead() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// close ends the connection; the first cause stands.
func (l *link) close(cause error) {
	l.mu.Lock()
	if l.cause == nil {
		l.cause = cause
	}
	l.mu.Unlock()
	_ = l.conn.Close()
}

// read hands answers to their callers and events to push until the connection ends.
func (l *link) read(push func(cluster.GuardEvent)) {
	r := NewReader(l.conn)
	for {
		m, err := ReadMessage(r)
		if err == nil && m.Hello != nil {
			err = l.greet(m.Hello)
		}
		if err != nil {
			l.close(fmt.Errorf("the guard's connection ended, what it was asked last may or may not be done: %w", err))
			break
		}
		if m.Event != nil {
			push(*m.Event)
			continue
		}
		l.mu.Lock()
		answer := l.waiting[m.ID]
		delete(l.waiting, m.ID)
		l.mu.Unlock()
		if answer != nil {
			answer <- m // has room for the one answer
		}
	}
	l.mu.Lock()
	l.err = l.cause
	l.mu.Unlock()
	close(l.closed)
}

func (l *link) greet(h *Hello) error {
	if h.Version != ProtocolVersion {
		return fmt.Errorf("the guard (pid %d) speaks protocol %d, this program %d: restart pvc-guard, and then pvcnoded, from one version: %w",
			h.PID, h.Version, ProtocolVersion, cluster.ErrRefused)
	}
	select {
	case <-l.greeted:
	default:
		close(l.greeted)
	}
	return nil
}

// roundTrip sends the request; sent is false where the guard cannot have seen it.
func (l *link) roundTrip(ctx context.Context, m Message, leave func() error) (answer Message, sent bool, err error) {
	ch := make(chan Message, 1)
	l.mu.Lock()
	l.next++
	m.ID = l.next
	l.waiting[m.ID] = ch
	l.mu.Unlock()
	defer l.forget(m.ID)
	deadline, bounded := ctx.Deadline()
	if bounded {
		m.Expires = proc.BootClock{}.Now().Add(time.Until(deadline))
	}
	line, err := EncodeMessage(m)
	if err != nil { // no second try makes it fit; the guard has begun nothing
		return answer, true, fmt.Errorf("%w before it was sent: %w", cluster.ErrRefused, err)
	}
	if sent, err = l.write(ctx, leave, line, deadline); err != nil {
		return answer, sent, err
	}
	select {
	case answer = <-ch:
		return answer, true, nil
	case <-l.closed:
		select {
		case answer = <-ch:
			return answer, true, nil
		default:
			return answer, true, l.err
		}
	case <-ctx.Done():
		l.sendCancel(m.ID)
		return answer, true, fmt.Errorf("no answer in time: %w", context.Cause(ctx))
	}
}

// write sends one line, unless ctx has ended while it waited for its turn, or
// the leave to send it. A part of a line makes the connection useless.
func (l *link) write(ctx context.Context, leave func() error, line []byte, deadline time.Time) (sent bool, err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if ctx.Err() != nil {
		return false, fmt.Errorf("not sent: %w", context.Cause(ctx))
	}
	if err := leave(); err != nil {
		return false, fmt.Errorf("not sent: %w", err)
	}
	_ = l.conn.SetWriteDeadline(deadline)
	n, err := l.conn.Write(line)
	_ = l.conn.SetWriteDeadline(time.Time{}) // one left behind would wake the daemon for nothing
	if err != nil {
		l.close(err)
		return n == len(line), fmt.Errorf("send: %w", err)
	}
	return true, nil
}

// sendCancel tells the guard that nobody waits for this answer any more; a
// guard that does not read is not waited for.
func (l *link) sendCancel(id uint64) {
	if line, err := EncodeMessage(Message{ID: id, Cancel: true}); err == nil {
		_, _ = l.write(context.Background(), func() error { return nil }, line, time.Now().Add(10*time.Millisecond))
	}
}

func (l *link) forget(id uint64) {
	l.mu.Lock()
	delete(l.waiting, id)
	l.mu.Unlock()
}
