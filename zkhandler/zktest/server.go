package zktest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"sort"
	"sync"
	"time"
)

// Options are the ensemble's settings; zero values get the defaults named.
type Options struct {
	Servers           []string      // host:port, first is the leader; default 192.0.2.1:2181 to 192.0.2.3:2181, addresses so that nothing is looked up
	TickTime          time.Duration // default 500 ms
	SyncLimit         int           // ticks until a cut-off follower notices; default 4
	MinSessionTimeout time.Duration // default 2 ticks
	MaxSessionTimeout time.Duration // default 20 ticks
}

func (o Options) withDefaults() Options {
	if len(o.Servers) == 0 {
		o.Servers = []string{"192.0.2.1:2181", "192.0.2.2:2181", "192.0.2.3:2181"}
	}
	if o.TickTime == 0 {
		o.TickTime = 500 * time.Millisecond
	}
	if o.SyncLimit == 0 {
		o.SyncLimit = 4
	}
	if o.MinSessionTimeout == 0 {
		o.MinSessionTimeout = 2 * o.TickTime
	}
	if o.MaxSessionTimeout == 0 {
		o.MaxSessionTimeout = 20 * o.TickTime
	}
	return o
}

// member is one server of the ensemble.
type member struct {
	down  bool  // refuses
	hung  bool  // accepts and says nothing
	stale *tree // cut off from the leader: serves this
	lag   *tree // behind the leader: serves this until a write or sync of its own
}

// knows returns the tree that the server serves if it is not the leader's.
func (m *member) knows() *tree {
	if m.stale != nil {
		return m.stale
	}
	return m.lag
}

// Server is the ensemble. All methods may be called from any goroutine. One
// mutex guards everything and is never held across a wait.
type Server struct {
	opts    Options
	started time.Time
	wg      sync.WaitGroup
	done    chan struct{}

	mu          sync.Mutex
	closed      bool
	tree        *tree
	zxid        int64
	sessions    map[int64]*session
	nextSession int64
	sessionWake chan struct{}
	conns       map[*conn]bool
	nextConn    int
	members     map[string]*member
	history     []HistoryEntry

	dataWatches  map[string]map[*conn]bool
	childWatches map[string]map[*conn]bool

	changed chan struct{} // closed and replaced whenever a fault begins or ends
	blocked map[route]direction
	delays  map[string]time.Duration
	rules   []*Rule
	stalled bool
	outage  bool
	held    []heldRequest
	late    []*lateRequest
	timers  []*time.Timer // stopped by Close
}

// New starts an ensemble with an empty tree. Close ends it.
func New(opts Options) *Server {
	s := &Server{
		opts: opts.withDefaults(), started: time.Now(), done: make(chan struct{}),
		tree: newTree(), zxid: 1 << 32, sessions: map[int64]*session{}, nextSession: 0x100000000000000,
		sessionWake: make(chan struct{}, 1), conns: map[*conn]bool{}, members: map[string]*member{},
		dataWatches: map[string]map[*conn]bool{}, childWatches: map[string]map[*conn]bool{},
		changed: make(chan struct{}), blocked: map[route]direction{}, delays: map[string]time.Duration{},
	}
	for _, addr := range s.opts.Servers {
		s.members[addr] = &member{}
	}
	s.wg.Add(1)
	go s.expire()
	return s
}

// Servers returns the addresses that Dialer accepts, the leader first.
func (s *Server) Servers() []string { return slices.Clone(s.opts.Servers) }

// Close drops every connection and returns when no goroutine is left.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
		for c := range s.conns {
			c.reset()
		}
		for _, timer := range s.timers {
			timer.Stop()
		}
		s.faultsChanged()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Dialer returns the way into the ensemble for the client of this name, by
// which faults are aimed at it. Its signature is net.Dialer.DialContext's.
func (s *Server) Dialer(client string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := s.dial(ctx, client, addr)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Addr: address(addr), Err: err}
		}
		return c, nil
	}
}

// errRefused is what a dialled server that is not there answers.
var errRefused = errors.New("connection refused")

func (s *Server) dial(ctx context.Context, client, addr string) (net.Conn, error) {
	for {
		s.mu.Lock()
		m := s.members[addr]
		changed, delay := s.changed, s.delays[client]
		switch {
		case s.closed, m == nil, m.down, s.outage:
			s.mu.Unlock()
			return nil, errRefused
		case !s.isBlocked(client, addr, toServer|toClient):
			if delay == 0 {
				end := s.attach(client, addr)
				s.mu.Unlock()
				return end, nil
			}
		}
		blackholed := s.isBlocked(client, addr, toServer|toClient)
		s.mu.Unlock()
		if err := s.dialWait(ctx, changed, 2*delay, blackholed); err != nil {
			return nil, err
		}
		if !blackholed {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closed {
				return nil, errRefused
			}
			return s.attach(client, addr), nil
		}
	}
}

// dialWait waits a round trip, or for a blackhole to end.
func (s *Server) dialWait(ctx context.Context, changed <-chan struct{}, roundTrip time.Duration, blackholed bool) error {
	if blackholed {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return errRefused
		case <-changed:
			return nil
		}
	}
	timer := time.NewTimer(roundTrip)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.done:
		return errRefused
	case <-timer.C:
		return nil
	}
}

func (s *Server) attach(client, addr string) net.Conn {
	near, far := net.Pipe()
	s.nextConn++
	c := &conn{s: s, id: s.nextConn, client: client, addr: addr, pipe: far, in: newLink(), out: newLink(),
		data: map[string]bool{}, childs: map[string]bool{}, gone: make(chan struct{})}
	s.conns[c] = true
	s.wg.Add(3)
	go c.readLoop()
	go c.inPump()
	go c.outPump()
	return &clientConn{Conn: near, addr: addr}
}

// forget drops a closed connection and its watches.
func (s *Server) forget(c *conn) {
	delete(s.conns, c)
	for p := range c.data {
		unwatch(s.dataWatches, p, c)
	}
	for p := range c.childs {
		unwatch(s.childWatches, p, c)
	}
}

// accept takes a request that has arrived: rules first, then the leader's
// order for writes, then the tree.
func (s *Server) accept(c *conn, r *request) {
	m := s.members[c.addr]
	if c.session != nil && m.stale == nil {
		s.touch(c.session)
	}
	switch effect, after := s.applyRules(c, r); effect {
	case dropRequest:
		c.shut()
		return
	case lateCommit:
		s.postpone(c, r, after)
		c.shut()
		return
	case dropReply:
		c.shut()
	}
	if r.writes() && (s.stalled || m.stale != nil) {
		c.busy = true
		s.held = append(s.held, heldRequest{c, r})
		return
	}
	s.execute(c, r)
}

// execute carries out one request and answers it.
func (s *Server) execute(c *conn, r *request) {
	if m := s.members[c.addr]; r.writes() && m.lag != nil && c.session != nil {
		s.catchUp(c.addr) // its reply comes after all commits before it
		defer func() { m.lag = s.tree.clone(s.zxid) }()
	}
	switch {
	case r.code == codeConnect:
		s.connect(c, r)
	case r.writes() && s.sessions[c.session.id] == nil:
		c.shut() // the session ended while the request waited
	case r.writes() && c.session.conn != c && c.session.addr != c.addr:
		c.shut() // the session has moved to another server: what came by this one is void
	case r.code == codeMulti:
		s.multi(c, r)
	case r.code == codeClose:
		s.endSession(c.session, "closeSession")
		c.reply(r, errOK, nil)
		c.shut()
	case r.code == codeSync:
		e := &encoder{}
		e.string(r.path)
		c.reply(r, errOK, e.buf)
	case r.writes():
		s.write(c, r)
	default:
		s.read(c, r)
	}
}

// write carries out a single writing operation. A failed one takes a zxid too.
func (s *Server) write(c *conn, r *request) {
	ch := s.begin(c)
	res := ch.do(r)
	e := &encoder{}
	switch {
	case res.code != errOK:
		ch.rollback()
	case r.code == codeCreate:
		e.string(res.path)
	case r.code == codeCreate2, r.code == codeCreateContainer:
		e.string(res.path)
		e.stat(res.stat)
	case r.code == codeSetData, r.code == codeSetACL:
		e.stat(res.stat)
	}
	s.publish(ch, c.session.client)
	c.reply(r, res.code, e.buf)
}

func (s *Server) begin(c *conn) *change {
	s.zxid++
	return &change{tree: s.tree, zxid: s.zxid, now: time.Now(), session: c.session.id, who: c.who}
}

// multi carries out all operations or none. Of a failed one the results are:
// ok for those before the culprit, its error, "runtime inconsistency" after.
func (s *Server) multi(c *conn, r *request) {
	ch := s.begin(c)
	results := make([]result, len(r.ops))
	culprit := -1
	for i := range r.ops {
		if results[i] = ch.do(&r.ops[i]); results[i].code != errOK {
			culprit = i
			break
		}
	}
	e := &encoder{}
	if culprit >= 0 {
		ch.rollback()
		for i := range r.ops {
			code := errOK
			switch {
			case i == culprit:
				code = results[i].code
			case i > culprit:
				code = errRuntimeInconsistency
			}
			e.multiHeader(codeError, false, code)
			e.int32(code)
		}
	} else {
		for i := range r.ops {
			encodeMultiResult(e, &r.ops[i], results[i])
		}
	}
	e.multiHeader(-1, true, -1)
	s.publish(ch, c.session.client)
	c.reply(r, errOK, e.buf)
}

func encodeMultiResult(e *encoder, op *request, res result) {
	kind := op.code
	if kind == codeCreate && op.flags == 4 {
		kind = codeCreateContainer // as the real server: clients that do not know it fail to decode
	}
	e.multiHeader(kind, false, errOK)
	switch kind {
	case codeCreate:
		e.string(res.path)
	case codeCreate2, codeCreateContainer:
		e.string(res.path)
		e.stat(res.stat)
	case codeSetData:
		e.stat(res.stat)
	}
}

// publish appends a transaction to the history and fires its watches.
func (s *Server) publish(ch *change, client string) {
	for _, h := range ch.entries {
		h.Client = client
		s.history = append(s.history, h)
	}
	for _, t := range ch.triggers {
		s.fire(t)
	}
}

// Get returns the data of a znode as the leader has it, and whether it exists.
func (s *Server) Get(path string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.tree.nodes[path]; n != nil {
		return slices.Clone(n.data), true
	}
	return nil, false
}

// Stat returns a znode's bookkeeping as the leader has it, and whether it exists.
func (s *Server) Stat(path string) (Stat, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.tree.nodes[path]; n != nil {
		return n.fullStat(), true
	}
	return Stat{}, false
}

// Children returns the names of a znode's children, sorted.
func (s *Server) Children(path string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.tree.nodes[path]; n != nil {
		return n.childNames()
	}
	return nil
}

// Set writes a znode as an operator would, whatever its version and ACL, and
// creates it and its parents where absent. It works in a stall too.
func (s *Server) Set(p string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := s.beginTrusted()
	if s.tree.nodes[p] != nil {
		ch.setData(p, data, -1)
	} else {
		s.createAll(ch, p, data)
	}
	s.publish(ch, "")
}

func (s *Server) beginTrusted() *change {
	s.zxid++
	return &change{tree: s.tree, zxid: s.zxid, now: time.Now(), trusted: true}
}

func (s *Server) createAll(ch *change, p string, data []byte) {
	if parent := path.Dir(p); s.tree.nodes[parent] == nil {
		s.createAll(ch, parent, nil)
	}
	if res := ch.create(&request{path: p, data: data, acl: OpenACL()}); res.code != errOK {
		panic(fmt.Sprintf("zktest: cannot create %q: error %d", p, res.code))
	}
}

// Delete removes a znode and all below it; an absent one is no error.
func (s *Server) Delete(p string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := s.beginTrusted()
	s.deleteAll(ch, p)
	s.publish(ch, "")
}

func (s *Server) deleteAll(ch *change, p string) {
	n := s.tree.nodes[p]
	if n == nil {
		return
	}
	for _, name := range n.childNames() {
		s.deleteAll(ch, path.Join(p, name))
	}
	ch.delete(p, -1)
}

func (s *Server) sortedSessions() []*session {
	list := make([]*session, 0, len(s.sessions))
	for _, sess := range s.sessions {
		list = append(list, sess)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].id < list[j].id })
	return list
}

func sortedKeys(m map[string]bool) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
