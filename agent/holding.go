package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/lease"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// LeaseHoldings are what this node holds as the leader. The zero ones are those
// of a node that leads nothing.
type LeaseHoldings struct {
	Leader bool
	Lease  cluster.NodeLeaseID // under which leases are asked for
	Self   cluster.NodeID
	Held   []cluster.NodeID  // whose leases are held, in order; never edited
	Ends   []cluster.Instant // until when each of them is held; never edited
	Set    []cluster.NodeID  // the quorum set; empty: not known; never edited
	Known  []cluster.NodeID  // all nodes that there are, in order; nil: not known yet; never edited
	// Until is the instant from which this is not true any more unless it is told
	// anew before; Never: nothing is held.
	Until cluster.Instant
}

// LeaseHolder is the part of this node that acts as the leader under node leases.
type LeaseHolder interface {
	// Update tells what is held now. It does not block; what a loss ends is being
	// ended when it returns.
	Update(h LeaseHoldings)
	// Settled returns when nothing lives any more that the updates so far have
	// ended; an error says that something may.
	Settled(ctx context.Context) error
}

// idleHolder leads nothing.
type idleHolder struct{}

func (idleHolder) Update(LeaseHoldings)          {}
func (idleHolder) Settled(context.Context) error { return nil }

// holding is the shell around lease.Holder: while this node is primary it holds
// the leases of all registered nodes. One goroutine steps a worker a node, wakes
// for all of them together and alone enters the ledger; each question is put in
// a goroutine of its own, so that none that hangs in its send holds up anything
// (L7), and counts as sent before that goroutine begins (I3).
//
//	role begins ─▶ acquirer with a new start ─▶ workers ask ─▶ ledger ─▶ LeaseHolder
//	role ends ─▶ nothing is held ─▶ LeaseHolder ─▶ all dead ─▶ leases given back
type holding struct {
	c     Config
	d     Deps
	act   LeaseHolder
	own   func(context.Context, cluster.NodeID, cluster.NodeLeaseRequest) (cluster.NodeLeaseAnswer, error) // this node's granter
	snap  func() *cluster.Snapshot
	keep  *Keepalive
	renew time.Duration // from a question to the next; see newHolding
	// heard is told of epochs larger than this leader's that nodes have seen; it
	// does not block. nil: nobody.
	heard func(cluster.Epoch)

	term     atomic.Pointer[leaderTerm]
	pokes    chan struct{} // one slot: the term has changed
	in       chan leaseNews
	ended    chan struct{}
	stopping atomic.Bool
	owned    sync.WaitGroup
	trips    roundTrips // of all nodes

	mu     sync.RWMutex // guards these, which run alone writes
	reign  uint64       // the term that the ledger is of; 0: none
	id     cluster.NodeLeaseID
	ledger *lease.Ledger
	set    []cluster.NodeID // never edited

	// run's own
	a        *acquirer // nil: this node does not lead
	seen     *cluster.Snapshot
	flying   int // questions under way
	majority bool
	changed  bool // whose leases are held, or the set
	told     LeaseHoldings
	toldAt   cluster.Instant
	released chan struct{} // the newest end of an acquirer is over
	table    leaseTable
	past     lease.HolderCounters // of the terms that are over
}

// leaderTerm is one unbroken time of this node as primary, or as none.
type leaderTerm struct {
	n     uint64
	epoch cluster.Epoch
	leads bool
	// orderly: the role of the term before was given up, not lost.
	orderly bool
}

// leaseNews is something that happened to a worker.
type leaseNews struct {
	of     *acquirer
	w      *leaseWorker // nil: from invites to
	n      uint64
	answer cluster.NodeLeaseAnswer
	err    error
	from   cluster.NodeID
	to     cluster.NodeLeaseID
	finish chan<- <-chan struct{} // asks for the end of the newest acquirer
	look   chan<- holdingFigures  // asks how the workers stand
}

// newHolding makes it; nil where node leases are not in use.
func newHolding(c Config, d Deps, own *granting, snap func() *cluster.Snapshot, keep *Keepalive) *holding {
	if own == nil {
		return nil
	}
	h := &holding{
		c: c, d: d, act: d.LeaseHolder, own: own.ask, snap: snap, keep: keep, renew: c.Timing.NodeLeaseRenew,
		pokes: make(chan struct{}, 1), in: make(chan leaseNews, 64), ended: make(chan struct{}), trips: newRoundTrips(),
	}
	if h.act == nil {
		h.act = idleHolder{}
	}
	if h.aligned() {
		h.renew = h.renew * 7 / 8 // and then on to the next line
	}
	h.term.Store(&leaderTerm{})
	own.toSelf = func(to cluster.NodeLeaseID) { h.post(context.Background(), leaseNews{from: c.Node, to: to}) }
	d.Peers.Handle(cluster.NodeLeaseFree, h.invited)
	return h
}

// aligned reports whether renewals lie on the keepalive's grid, so that the
// processor wakes once for all.
func (h *holding) aligned() bool {
	return h.c.Timing.KeepaliveInterval/2 <= h.c.Timing.NodeLeaseRenew
}

// ---- the role

// follow is told the role's state after each of its steps, by the decider. From
// the return on nothing of a role that has ended is believed to be held.
func (h *holding) follow(s role.State) {
	if h == nil {
		return
	}
	epoch, _, _ := s.Holds()
	leads, was := s.Leads(), h.term.Load()
	if leads == was.leads && (!leads || epoch == was.epoch) {
		return
	}
	orderly := s.Mode == role.Relinquish || h.stopping.Load() ||
		leads && !was.leads && was.orderly // a hand-over that was aborted before run has seen it
	h.term.Store(&leaderTerm{n: was.n + 1, epoch: epoch, leads: leads, orderly: orderly})
	poke(h.pokes)
}

// run holds leases while this node is primary, until ctx ends.
func (h *holding) run(ctx context.Context) {
	defer close(h.ended)
	defer h.owned.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-h.pokes:
		case e := <-h.in:
			h.enter(ctx)
			h.take(ctx, e)
			for range len(h.in) { // what has come meanwhile
				h.take(ctx, <-h.in)
			}
		}
		h.enter(ctx)
		h.turn(ctx)
		now := h.d.Clock.Now()
		h.tell(now)
		h.publish(ctx, now)
		if wake := h.wake(); wake.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(0, wake.Sub(h.d.Clock.Now())))
		}
	}
}

// enter takes in what the role and the records say now.
func (h *holding) enter(ctx context.Context) {
	t := h.term.Load()
	if h.a != nil && h.a.term.n != t.n {
		h.end(ctx, t.orderly)
	}
	if h.a == nil && t.leads {
		h.begin(t)
	}
	if snap := h.snap(); h.a != nil && snap != h.seen {
		h.seen = snap
		h.follows(ctx, snap)
		if h.table.there == nil {
			h.table.make(ctx, h)
		}
	}
}

// begin asks every node anew: an acquirer is never gone on with.
func (h *holding) begin(t *leaderTerm) {
	h.a = &acquirer{term: t, id: cluster.NodeLeaseID{Holder: h.c.Node, Start: newStart(), Epoch: t.epoch}, by: map[cluster.NodeID]*leaseWorker{}}
	h.seen, h.majority, h.changed = nil, false, true
	h.mu.Lock()
	h.reign, h.id, h.ledger, h.set = t.n, h.a.id, lease.NewLedger(), nil
	h.mu.Unlock()
	h.table = leaseTable{changed: true}
	h.d.Log.Info("node leases are acquired", zap.Stringer("lease", h.a.id))
}

// end gives up all: it is told before anybody else may know of it. Leases are
// given back where the role was given up in order, beside everything else.
func (h *holding) end(ctx context.Context, orderly bool) {
	old := h.a
	h.past, h.a = h.figures().counters, nil
	h.mu.Lock()
	h.reign, h.id, h.ledger, h.set = 0, cluster.NodeLeaseID{}, nil, nil
	h.mu.Unlock()
	h.told = LeaseHoldings{Self: h.c.Node}
	h.act.Update(h.told)
	h.keep.Alight(cluster.Key{Kind: cluster.KeyNodeLeases})
	released := make(chan struct{})
	h.released = released
	h.owned.Go(func() {
		defer close(released)
		h.release(ctx, old, orderly)
	})
}

// release gives the leases back once nothing lives any more that hung on them:
// the nodes let the next leader in then. Else they end by themselves.
func (h *holding) release(ctx context.Context, a *acquirer, orderly bool) {
	limited, cancel := context.WithTimeout(ctx, 2*h.c.Timing.KeepaliveInterval)
	defer cancel()
	if err := h.act.Settled(limited); err != nil {
		h.d.Log.Warn("work of the leader outlives its role; its node leases are not given back and end by themselves", zap.Error(err))
		return
	}
	if !orderly {
		return
	}
	giving, done := context.WithTimeout(limited, h.c.Timing.RequestTimeout())
	defer done()
	var asked sync.WaitGroup
	defer asked.Wait()
	for _, w := range a.list {
		out, broke := w.step(lease.HolderInput{Dead: true}, h.d.Clock.Now())
		if broke != nil || out.Ask == nil {
			continue
		}
		q := w.number(*out.Ask)
		asked.Go(func() {
			if _, err := h.put(giving, w.node, q); err != nil && ctx.Err() == nil {
				h.d.Log.Debug("a node lease was not given back; it ends by itself", zap.String("peer", string(w.node)), zap.Error(err))
			}
		})
	}
}

// finish waits until the leases of a role that has ended are given back, at most
// until ctx ends.
func (h *holding) finish(ctx context.Context) {
	if h == nil {
		return
	}
	reply := make(chan (<-chan struct{}), 1)
	if !h.post(ctx, leaseNews{finish: reply}) {
		return
	}
	select {
	case released := <-reply:
		select {
		case <-released:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	case <-h.ended:
	}
}

func newStart() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// ---- the workers

// acquirer is who asks for leases in one term.
type acquirer struct {
	term *leaderTerm
	id   cluster.NodeLeaseID
	list []*leaseWorker
	by   map[cluster.NodeID]*leaseWorker
	next int // where the next look at all begins
	// known are the nodes that there are, in order; nil: not all records are read
	// yet. A new slice at each change.
	known []cluster.NodeID
}

// learn notes who is there, and reports whether that has changed.
func (a *acquirer) learn(nodes map[cluster.NodeID]cluster.NodeView) bool {
	same := a.known != nil && len(a.known) == len(nodes)
	for _, n := range a.known {
		if _, there := nodes[n]; !there {
			same = false
		}
	}
	if !same {
		a.known = slices.AppendSeq(make([]cluster.NodeID, 0, len(nodes)), maps.Keys(nodes))
		slices.Sort(a.known)
	}
	return !same
}

// leaseWorker holds one node's lease.
type leaseWorker struct {
	node   cluster.NodeID
	config lease.HolderConfig
	h      lease.Holder
	base   uint64 // numbers that earlier holders of this start have used up
	asked  uint64 // the newest
	wanted bool
	wake   cluster.Instant
	flying int
	shown  leaseShown
	rtt    lease.RoundTrips
	last   time.Duration
}

// step steps the holder. One that panics is made anew, and believes in nothing (L13).
func (w *leaseWorker) step(in lease.HolderInput, now cluster.Instant) (out lease.HolderOutput, broke any) {
	defer func() {
		if broke = recover(); broke != nil {
			w.h, w.base, out = lease.NewHolder(w.config), w.asked, lease.HolderOutput{}
		}
	}()
	w.h, out = w.h.Step(in, now)
	return out, nil
}

// number makes the question's number one that this start has not used yet.
func (w *leaseWorker) number(q cluster.NodeLeaseRequest) cluster.NodeLeaseRequest {
	q.N += w.base
	w.asked = q.N
	return q
}

// follows takes the newest members and quorum set. While not all records are
// read nobody is left out.
func (h *holding) follows(ctx context.Context, snap *cluster.Snapshot) {
	for n, view := range snap.Nodes {
		w, registered := h.a.by[n], view.Record.Present && view.Record.Err == nil
		switch {
		case w == nil && registered:
			config := lease.NewHolderConfig(h.a.id, n, h.c.Timing)
			config.Renew = h.renew
			w = &leaseWorker{node: n, config: config, h: lease.NewHolder(config), wanted: true, wake: h.d.Clock.Now()}
			h.a.by[n] = w
			h.a.list = append(h.a.list, w)
			h.table.changed = true
		case w != nil && registered && !w.wanted:
			w.wanted, w.wake = true, h.d.Clock.Now()
		}
	}
	if !snap.Complete {
		return
	}
	for _, w := range h.a.list {
		if view := snap.Nodes[w.node]; w.wanted && !view.Record.Present {
			w.wanted = false
			h.step(ctx, w, lease.HolderInput{})
			h.table.changed = true
		}
	}
	if h.a.learn(snap.Nodes) {
		h.changed = true
	}
	if set, known := quorumSet(snap); known && !slices.Equal(set, h.set) {
		h.mu.Lock()
		h.set = set
		h.mu.Unlock()
		h.changed, h.table.changed = true, true
	}
}

// quorumSet is the set by its record, or, while there is none, every registered
// coordinator; false where the record cannot be read, and the last one stays.
func quorumSet(snap *cluster.Snapshot) ([]cluster.NodeID, bool) {
	if q := snap.Quorum; q.Present {
		return q.Value.Nodes, q.Err == nil
	}
	var set []cluster.NodeID
	for n, view := range snap.Nodes {
		if view.Mode.Value != cluster.Hypervisor && view.Record.Present {
			set = append(set, n)
		}
	}
	slices.Sort(set)
	return set, true
}

// mostAsking bounds the questions under way: a thousand nodes' handshakes at once
// would make all of them late.
const mostAsking = 64

// turn steps every worker that is due. A lease whose time is over is lost
// whatever else is under way, and one that is held is renewed before anybody is
// asked anew: a thousand first questions must not cost the leases that there are.
func (h *holding) turn(ctx context.Context) {
	if h.a == nil {
		return
	}
	now := h.d.Clock.Now()
	_, h.majority = h.ledger.Satisfied(cluster.Majority(), h.c.Node, h.set, now)
	for _, w := range h.a.list {
		if until := w.h.Until(); !until.IsZero() && !now.Before(until) {
			h.step(ctx, w, lease.HolderInput{})
		}
	}
	for _, renewals := range []bool{true, false} {
		for i := range h.a.list {
			at := (h.a.next + i) % len(h.a.list)
			w := h.a.list[at]
			if w.wake.IsZero() || now.Before(w.wake) || w.h.Until().IsZero() == renewals {
				continue
			}
			if h.flying >= mostAsking {
				h.a.next = at // the one that waits longest comes first
				return
			}
			h.step(ctx, w, lease.HolderInput{})
		}
	}
}

// wake is when to look again; Never: when something happens. Who leads looks at
// the members once a keepalive at least.
func (h *holding) wake() cluster.Instant {
	if h.a == nil {
		return cluster.Never
	}
	now := h.d.Clock.Now()
	wake := now.Add(h.keep.grid.next(now, h.c.Timing.KeepaliveInterval))
	for _, w := range h.a.list {
		at := w.wake
		if h.flying >= mostAsking && !at.IsZero() && !now.Before(at) {
			at = w.h.Until() // an answer makes room
		}
		wake = cluster.Earliest(wake, at)
	}
	return wake
}

// step steps one worker and does what that asks for: a loss is told before
// anything else leaves this node.
func (h *holding) step(ctx context.Context, w *leaseWorker, in lease.HolderInput) {
	in.Wanted, in.Majority = w.wanted, h.majority
	now := h.d.Clock.Now()
	out, broke := w.step(in, now)
	if broke != nil {
		h.d.Log.Error("the worker for a node's lease failed and was made anew", zap.String("peer", string(w.node)), zap.Any("panic", broke), zap.Stack("stack"))
		out.Lost, out.Wake = &lease.Refusal{}, now.Add(h.renew)
	}
	if out.RTT > 0 {
		w.rtt.Add(out.RTT)
		h.trips.add(out.RTT)
		w.last = out.RTT
	}
	if out.Lost != nil {
		h.book(w.node, cluster.Never)
		h.d.Log.Warn("a node's lease is lost", zap.String("peer", string(w.node)), zap.String("code", string(out.Lost.Code)), zap.String("detail", out.Lost.Detail))
		h.tell(now)
	}
	if out.Held {
		h.book(w.node, out.Until)
	}
	if out.Ask != nil {
		h.send(ctx, w, w.number(*out.Ask), out.Timeout)
	}
	w.wake = h.align(w, out.Wake)
	if is := w.show(now); is != w.shown {
		w.shown, h.table.changed = is, true
	}
}

// book enters until when a node's lease is held; Never: it is not.
func (h *holding) book(n cluster.NodeID, until cluster.Instant) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ledger.Until(n).IsZero() != until.IsZero() {
		h.changed = true
	}
	h.ledger.Set(n, until)
}

// align moves a renewal on to the keepalive's grid; nothing else may wait.
func (h *holding) align(w *leaseWorker, wake cluster.Instant) cluster.Instant {
	until := w.h.Until()
	if !h.aligned() || wake.IsZero() || until.IsZero() || wake == until {
		return wake
	}
	return cluster.Earliest(h.keep.grid.after(wake, h.c.Timing.KeepaliveInterval/2), until)
}

// fliesAtMost bounds what one node's hanging sends may tie up (L7).
const fliesAtMost = 3

// send puts a question in a goroutine of its own. The instant from which the
// lease counts was read before.
func (h *holding) send(ctx context.Context, w *leaseWorker, q cluster.NodeLeaseRequest, timeout time.Duration) {
	if w.flying >= fliesAtMost {
		return // the worker gives it up by itself
	}
	w.flying++
	h.flying++
	news := leaseNews{of: h.a, w: w, n: q.N}
	h.owned.Go(func() {
		func() {
			defer func() {
				if broke := recover(); broke != nil {
					h.d.Log.Error("a question for a node's lease failed", zap.String("peer", string(w.node)), zap.Any("panic", broke), zap.Stack("stack"))
					news.err = fmt.Errorf("the question failed in this program: %v", broke)
				}
			}()
			asking, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			news.answer, news.err = h.put(asking, w.node, q)
		}()
		h.post(ctx, news)
	})
}

// put asks a node, this one without the network.
func (h *holding) put(ctx context.Context, n cluster.NodeID, q cluster.NodeLeaseRequest) (cluster.NodeLeaseAnswer, error) {
	if n == h.c.Node {
		return h.own(ctx, n, q)
	}
	body, err := cluster.EncodeNodeLeaseRequest(q)
	if err != nil {
		return cluster.NodeLeaseAnswer{}, err
	}
	raw, err := h.d.Peers.Ask(ctx, n, cluster.NodeLeaseQuestion, body)
	if err != nil {
		return cluster.NodeLeaseAnswer{}, err
	}
	a, err := cluster.DecodeNodeLeaseAnswer(raw)
	if err == nil && a.N != q.N {
		err = fmt.Errorf("the answer is to question %d, not %d", a.N, q.N)
	}
	return a, err
}

// post hands something over to run; false if ctx or run has ended.
func (h *holding) post(ctx context.Context, e leaseNews) bool {
	select {
	case h.in <- e:
		return true
	case <-ctx.Done():
	case <-h.ended:
	}
	return false
}

// take takes one thing in that happened.
func (h *holding) take(ctx context.Context, e leaseNews) {
	switch {
	case e.look != nil:
		e.look <- h.figures()
		return
	case e.finish != nil:
		done := h.released
		if done == nil {
			done = make(chan struct{})
			close(done)
		}
		e.finish <- done
		return
	case e.w == nil:
		if h.a != nil && e.to == h.a.id && h.a.by[e.from] != nil {
			h.step(ctx, h.a.by[e.from], lease.HolderInput{Kind: lease.HolderInvited})
		}
		return
	}
	h.flying--
	e.w.flying--
	if e.of != h.a || e.n <= e.w.base { // of an earlier acquirer, or worker
		return
	}
	if e.err != nil {
		h.step(ctx, e.w, lease.HolderInput{Kind: lease.HolderNoAnswer, N: e.n - e.w.base, Why: e.err.Error()})
		return
	}
	seen := e.answer.Epoch
	if seen == h.a.id.Epoch && e.answer.Code == cluster.RefuseLeaseStale {
		seen++ // another's, in records that were put back: only a larger one is this leader's
	}
	if seen > h.a.id.Epoch && h.heard != nil {
		h.heard(seen)
	}
	e.answer.N -= e.w.base
	h.step(ctx, e.w, lease.HolderInput{Kind: lease.HolderAnswer, Answer: e.answer})
}

// invited is a node's word that it serves nobody now: a hint to ask again.
func (h *holding) invited(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
	n, err := cluster.DecodeNodeLeaseNotice(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, cluster.ErrRefused)
	}
	h.post(ctx, leaseNews{from: from, to: n.To})
	return nil, nil
}

// ---- who is told

// tell says what is held where that has changed, and now and then until when.
func (h *holding) tell(now cluster.Instant) {
	if h.a == nil || !h.changed && now.Sub(h.toldAt) < h.c.Timing.NodeLeaseRenew/2 {
		return
	}
	is := LeaseHoldings{Leader: true, Lease: h.a.id, Self: h.c.Node, Held: h.told.Held, Set: h.set, Known: h.a.known, Until: h.ledger.NextExpiry(now)}
	if h.changed {
		is.Held = h.ledger.Held(now)
	} else if is.Until == h.told.Until {
		return
	}
	is.Ends = make([]cluster.Instant, len(is.Held))
	for i, n := range is.Held {
		is.Ends[i] = h.ledger.Until(n)
	}
	h.changed, h.told, h.toldAt = false, is, now
	_, h.majority = h.ledger.Satisfied(cluster.Majority(), h.c.Node, h.set, now)
	h.act.Update(is)
}

// Holds reports whether the quorum is held now, and says in words why not.
func (h *holding) holds(q cluster.Quorum) (ok bool, why string) {
	if h == nil {
		return false, "node leases are not in use"
	}
	t := h.term.Load()
	h.mu.RLock()
	defer h.mu.RUnlock()
	now := h.d.Clock.Now()
	switch {
	case !t.leads:
		return false, fmt.Sprintf("node %s is not primary, and holds no node leases", h.c.Node)
	case h.reign != t.n:
		return false, fmt.Sprintf("node %s has just become primary and asks for the first node lease", h.c.Node)
	case len(h.set) == 0:
		return false, "the quorum set is not known yet"
	}
	if _, ok := h.ledger.Satisfied(q, h.c.Node, h.set, now); ok {
		return true, ""
	}
	missing := h.ledger.Missing(q, h.c.Node, h.set, now)
	return false, fmt.Sprintf("node %s does not hold %s of the node leases: those of %s are missing", h.c.Node, q, strings.Trim(fmt.Sprint(missing), "[]"))
}

// without says why a majority of the quorum set is not held without the lease of
// one node; empty: it is.
func (h *holding) without(n cluster.NodeID) string {
	if ok, why := h.holds(cluster.Majority()); !ok {
		return why
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	now, held := h.d.Clock.Now(), 0
	for _, m := range h.set {
		if m != n && now.Before(h.ledger.Until(m)) {
			held++
		}
	}
	if 2*held > len(h.set) {
		return ""
	}
	return fmt.Sprintf("node %s holds a majority of the node leases only with that of node %s itself, which ends with it: bring another coordinator back first", h.c.Node, n)
}

// QuorumHeld reports whether this node holds, as primary, a majority of the node
// leases of these nodes, without any of the quorum set, and says in words why
// not. inUse is false where node leases are switched off, and then nothing of
// the rest means anything. It does not block.
func (a *Agent) QuorumHeld(nodes ...cluster.NodeID) (inUse, held bool, why string) {
	q := cluster.Majority()
	if len(nodes) > 0 {
		q = cluster.Majority(nodes...)
	}
	held, why = a.holding.holds(q)
	return a.holding != nil, held, why
}

// NodeLease is the id under which this node asks for leases now; zero: it does
// not lead, or node leases are not in use.
func (a *Agent) NodeLease() cluster.NodeLeaseID {
	h := a.holding
	if h == nil {
		return cluster.NodeLeaseID{}
	}
	t := h.term.Load()
	h.mu.RLock()
	defer h.mu.RUnlock()
	if !t.leads || h.reign != t.n {
		return cluster.NodeLeaseID{}
	}
	return h.id
}

// CheckNodeLease is asked at the instant of an effect that was ordered under the
// id: an empty code says that this node serves it now. Where node leases are not
// in use nothing stands against any.
func (a *Agent) CheckNodeLease(id cluster.NodeLeaseID) cluster.Refusal {
	if a.granting == nil {
		return cluster.Refusal{}
	}
	return a.granting.check(id)
}

// majorities says why majorities of both sets are not held; nil: they are.
func (h *holding) majorities(old, next []cluster.NodeID) error {
	for _, set := range [][]cluster.NodeID{old, next} {
		if ok, why := h.holds(cluster.Majority(set...)); !ok {
			return fmt.Errorf("%s: %w", why, cluster.ErrRefused)
		}
	}
	return nil
}
