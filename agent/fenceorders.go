package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// orderedFencer is a Fencer that also carries out what operators order, and
// what goes on without a verdict on the node. Its methods block and end as
// those of Fencer.
type orderedFencer interface {
	// Order carries out one order, and ends it in the Multi that is its effect.
	// keepalive is the Mzxid of the newest keepalive of the node that
	// the judgement rests on. A refusal with an empty record leaves the order
	// standing.
	Order(ctx context.Context, t cluster.Token, o cluster.Versioned[cluster.FenceOrder], keepalive int64) (cluster.FenceRecord, *cluster.Refusal, error)
	// Ripe reports whether the node's fence can go on: the node has returned,
	// its watchdog's bound counts by now, or an order was left unfinished: a try
	// of that is all that it is ripe for.
	Ripe(view cluster.NodeView, now cluster.Instant) (ripe, try bool)
	// Settle does what the record is ripe for. Without try it orders no power
	// off: an order's try is weighed before each (I6).
	Settle(ctx context.Context, t cluster.Token, n cluster.NodeID, try bool) (cluster.FenceRecord, *cluster.Refusal, error)
}

// The waits around orders.
const (
	// orderPatience is how long an order may wait for what it needs, the fence
	// lock above all, before it is refused (I7).
	orderPatience = 5 * time.Minute
	// orderSettle is how long an order must have been seen before it is refused:
	// it and what it is judged by arrive one after the other, and who gave it may
	// have seen more than this node has yet.
	orderSettle = 500 * time.Millisecond
	// orderRetry is the pause before an order is tried again.
	orderRetry = time.Second
	// orderWrite bounds the writing of a refusal.
	orderWrite = 2 * time.Second
	// orderConflict is the pause after a write that met another, mostly a renewal
	// of one's own lease.
	orderConflict = 10 * time.Millisecond
)

// fenceOrders carries out the operators' fence orders, where this node is
// primary, and looks after what belongs to fences beside the verdicts: those
// that go on by themselves (orderedFencer.Ripe) and the tests of the devices.
// The node watch steps it and alone uses it. What touches a fence runs in the
// one place for a fence (oneFence), the rest in goroutines of its own, one at a
// time; all of it under the role's context.
type fenceOrders struct {
	c     Config
	d     Deps
	see   func(cluster.NodeID) cluster.Liveness // the detector's word, as of this step
	blind func() string                         // why that counts for nothing now; empty: it counts
	fence oneFence
	// unsafely is fence for what an operator has ordered to be tried without a
	// majority of the node leases.
	unsafely oneFence
	first    func() cluster.NodeID // the old primary, whose fence comes before others'; empty: none

	fencer  orderedFencer // nil: nothing is fenced here
	tests   *deviceTests
	lead    context.Context // while this node is primary; nil otherwise
	endLead context.CancelCauseFunc
	work    sync.WaitGroup
	busy    atomic.Bool
	epoch   cluster.Epoch // of the lease under which it is judged now
	waiting map[cluster.NodeID]waitingOrder
	kept    map[cluster.NodeID]cluster.RefusalCode // why an order's next try waits, as told last
	telling sync.Mutex
	trouble map[cluster.NodeID]orderTrouble // why the last try of an order failed; telling guards it
}

// fenceWork is one fencer's call about one node, with the right to its effects.
type fenceWork func(ctx context.Context, t cluster.Token) (cluster.FenceRecord, *cluster.Refusal, error)

// oneFence begins the work beside the loop if no fence runs, and if, where it
// would be the first order of that fence, no promise stands against it. False
// without a code: another one runs.
// power: the work may take power, for which more leases are needed.
type oneFence func(n cluster.NodeID, first, power bool, work fenceWork) (cluster.Refusal, bool)

// newOrders makes the part of the node watch that serves orders.
func (w *nodeWatch) newOrders() *fenceOrders {
	see := func(n cluster.NodeID) cluster.Liveness { return w.seen.Nodes[n].Liveness }
	o := newFenceOrders(w.c, w.d, see, func() string { return w.blind }, func(n cluster.NodeID, first, power bool, work fenceWork) (cluster.Refusal, bool) {
		r, ok := w.leave(n, first)
		if ok {
			w.fence(n, power, work)
		}
		return r, ok
	})
	o.unsafely = func(n cluster.NodeID, first, power bool, work fenceWork) (cluster.Refusal, bool) {
		r, ok := w.leave(n, first)
		if ok {
			w.fenceAs(n, power, true, work)
		}
		return r, ok
	}
	o.first = func() cluster.NodeID { return w.before }
	return o
}

// byUrgency is the order in which fences are carried on, one at a time: the old
// primary's first, whose role is what was taken over; then those with the most
// protected workloads.
func byUrgency(nodes map[cluster.NodeID]cluster.NodeView, first cluster.NodeID, protected map[cluster.NodeID]int) []cluster.NodeID {
	names := slices.Sorted(maps.Keys(nodes))
	slices.SortStableFunc(names, func(a, b cluster.NodeID) int { return protected[b] - protected[a] })
	if at := slices.Index(names, first); at > 0 {
		names = slices.Insert(slices.Delete(names, at, at+1), 0, first)
	}
	return names
}

// orderTrouble is why an order could not be carried out, and how often it was so
// in a row.
type orderTrouble struct {
	why   string
	times int
}

// String puts it into words.
func (t orderTrouble) String() string {
	if t.times > 1 && t.why != "" {
		return fmt.Sprintf("%s (%d tries in a row)", t.why, t.times)
	}
	return t.why
}

// waitingOrder is an order that has been seen and not been answered yet.
type waitingOrder struct {
	mzxid int64
	since cluster.Instant
	next  cluster.Instant // no try before
}

func newFenceOrders(c Config, d Deps, see func(cluster.NodeID) cluster.Liveness, blind func() string, fence oneFence) *fenceOrders {
	o := &fenceOrders{
		c: c, d: d, see: see, blind: blind, fence: fence, unsafely: fence, first: func() cluster.NodeID { return "" }, tests: newDeviceTests(c, d),
		waiting: map[cluster.NodeID]waitingOrder{}, trouble: map[cluster.NodeID]orderTrouble{}, kept: map[cluster.NodeID]cluster.RefusalCode{},
	}
	o.fencer, _ = d.Fencer.(orderedFencer)
	return o
}

// step looks at the orders once; it never waits.
func (o *fenceOrders) step(ctx context.Context, status Status, now cluster.Instant) {
	o.look(ctx, status.Role.Leads(), status.Snapshot, now)
}

func (o *fenceOrders) look(ctx context.Context, primary bool, snap *cluster.Snapshot, now cluster.Instant) {
	if !primary {
		o.lose()
		return
	}
	if o.lead == nil {
		o.lead, o.endLead = context.WithCancelCause(ctx)
		o.tests.begin(now)
	}
	if !snap.Live || !snap.Complete {
		return
	}
	o.epoch = snap.Lease.Value.Epoch
	o.obey(snap, now)
	o.settle(snap, now)
	o.tests.step(o.lead, &o.work, snap, now)
}

// lose ends what runs with the role.
func (o *fenceOrders) lose() {
	if o.endLead != nil {
		o.endLead(errNotPrimary)
	}
	o.lead, o.endLead = nil, nil
	clear(o.waiting)
	clear(o.kept)
}

// wait ends what runs and returns once it has ended.
func (o *fenceOrders) wait() {
	o.lose()
	o.work.Wait()
}

// devices are the newest reports of the devices' tests that this node made as
// the primary, for its view.
func (o *fenceOrders) devices() []cluster.DeviceReport { return o.tests.latest() }

// begin runs one effect that touches no fence under the role's context; false
// while another runs.
func (o *fenceOrders) begin(run func(ctx context.Context)) bool {
	if !o.busy.CompareAndSwap(false, true) {
		return false
	}
	lead := o.lead
	o.work.Go(func() {
		defer o.busy.Store(false)
		run(lead)
	})
	return true
}

// obey begins with every order that can be answered now.
func (o *fenceOrders) obey(snap *cluster.Snapshot, now cluster.Instant) {
	for _, n := range slices.Sorted(maps.Keys(snap.Nodes)) {
		view := snap.Nodes[n]
		if !view.Order.Present {
			delete(o.waiting, n)
			continue
		}
		w := o.waiting[n]
		if w.mzxid != view.Order.Mzxid {
			w = waitingOrder{mzxid: view.Order.Mzxid, since: now}
			o.say(n, "")
		}
		o.waiting[n] = w
		if now.Before(w.next) {
			continue
		}
		refusal, wait := o.caseOf(snap, n, now).judge()
		if refusal.Code != "" && now.Sub(w.since) < orderSettle {
			continue
		}
		if wait == "" && o.answer(view, refusal) {
			w.next = now.Add(orderRetry)
			o.waiting[n] = w
		}
	}
}

// answer begins to carry an order out, or to write why not; false: not now.
func (o *fenceOrders) answer(view cluster.NodeView, refusal cluster.Refusal) bool {
	action, epoch := view.Order.Value.Action, o.epoch
	switch {
	case refusal.Code != "":
		return o.begin(func(ctx context.Context) { o.refuse(ctx, view, refusal, epoch) })
	case action == cluster.OrderTest:
		return o.begin(func(ctx context.Context) {
			no, err := o.tests.ordered(ctx, view)
			o.answered(ctx, view, cluster.FenceRecord{}, no, err, epoch)
		})
	}
	begin := o.fence
	if action == cluster.OrderFence && view.Order.Value.Unsafe {
		begin = o.unsafely
	}
	stands, ok := begin(view.Name, action != cluster.OrderCancel, action == cluster.OrderFence, func(ctx context.Context, t cluster.Token) (cluster.FenceRecord, *cluster.Refusal, error) {
		record, no, err := o.fencer.Order(ctx, t, view.Order, view.Keepalive.Mzxid)
		return record, o.answered(ctx, view, record, no, err, epoch), err
	})
	if stands.Code != "" {
		o.say(view.Name, stands.Detail)
	}
	return ok
}

// answered tells how an order went, and writes a refusal that left it standing.
// It returns the refusal of one that was accepted and then came to nothing.
func (o *fenceOrders) answered(ctx context.Context, view cluster.NodeView, record cluster.FenceRecord, no *cluster.Refusal, err error, epoch cluster.Epoch) *cluster.Refusal {
	order := view.Order.Value
	fields := []zap.Field{zap.String("peer", string(view.Name)), zap.String("order", order.ID), zap.String("action", order.Action), zap.String("by", order.By)}
	switch {
	case err != nil:
		log := o.d.Log.Debug // it is tried again and again; the refusal at last says how often
		if o.failed(view.Name, err.Error()) {
			log = o.d.Log.Warn
		}
		log("fence order not carried out yet", append(fields, zap.Error(err))...)
	case no != nil && record.ID == "":
		o.refuse(ctx, view, *no, epoch)
		return nil
	default:
		o.d.Log.Info("fence order carried out", append(fields, zap.String("stage", string(record.Stage)), zap.String("proof", record.Proof))...)
	}
	return no
}

// say keeps why an order has not been carried out.
func (o *fenceOrders) say(n cluster.NodeID, why string) {
	o.telling.Lock()
	defer o.telling.Unlock()
	o.trouble[n] = orderTrouble{why: why}
}

// failed keeps why a try has failed, and reports whether that is new.
func (o *fenceOrders) failed(n cluster.NodeID, why string) bool {
	o.telling.Lock()
	defer o.telling.Unlock()
	t := o.trouble[n]
	if t.why != why {
		t = orderTrouble{why: why}
	}
	t.times++
	o.trouble[n] = t
	return t.times == 1
}

func (o *fenceOrders) said(n cluster.NodeID) string {
	o.telling.Lock()
	defer o.telling.Unlock()
	return o.trouble[n].String()
}

// refuse ends the order and writes why, together, so that whoever gave it is told
// exactly once (I8), and under the very role that it was judged in: a primary
// that was stopped for longer than its lease refuses nothing of its successor's
// (I2). What could not be written is judged again at a later look.
func (o *fenceOrders) refuse(ctx context.Context, view cluster.NodeView, r cluster.Refusal, epoch cluster.Epoch) {
	order := view.Order.Value
	writing, cancel := context.WithTimeout(ctx, orderWrite)
	defer cancel()
	outcome, err := o.writeRefusal(writing, view, o.refusalEvent(view, r), epoch)
	o.d.Log.Info("fence order refused", zap.String("peer", string(view.Name)), zap.String("order", order.ID), zap.String("action", order.Action),
		zap.String("code", string(r.Code)), zap.String("detail", r.Detail), zap.Stringer("outcome", outcome), zap.Error(err))
}

func (o *fenceOrders) refusalEvent(view cluster.NodeView, r cluster.Refusal) cluster.Event {
	order := view.Order.Value
	action := order.Action
	if action == "" {
		action = "an order"
	}
	return cluster.Event{
		Version: 1, UnixMS: o.c.WallMS(), Node: o.c.Node, Kind: cluster.EventOrderRefused,
		Text: fmt.Sprintf("refused: %s of node %s: %s", action, view.Name, r.Detail),
		Fields: map[string]string{
			"order": order.ID, "node": string(view.Name), "action": order.Action, "by": order.By, "code": string(r.Code), "detail": r.Detail,
		},
	}
}

// writeRefusal tries until it is written, the order or the role is another's, or
// ctx ends. One whose reply was lost is left as it is: the order's own version
// lets only one of two answers happen.
func (o *fenceOrders) writeRefusal(ctx context.Context, view cluster.NodeView, event cluster.Event, epoch cluster.Epoch) (cluster.Outcome, error) {
	const atOrder = 1
	for {
		snap, err := o.d.Store.Refresh(ctx)
		if err != nil {
			return cluster.OutcomeNotSent, err
		}
		lease := snap.Lease
		if !lease.Present || !lease.Value.HeldBy(o.c.Node, o.c.Incarnation) || lease.Value.Epoch != epoch {
			return cluster.OutcomeNotSent, fmt.Errorf("refuse the order about node %s, judged at epoch %d: %w", view.Name, epoch, errNotPrimary)
		}
		res := o.d.Store.Commit(ctx, cluster.Txn{Purpose: "fence.order.refused", Ops: []cluster.Op{
			cluster.Check(cluster.Key{Kind: cluster.KeyLease}, lease.Version),
			cluster.EndOrder(view.Name, view.Order),
			{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: event},
		}})
		if res.Outcome != cluster.OutcomeConflict || res.FailedOp == atOrder || ctx.Err() != nil {
			return res.Outcome, res.Err
		}
		pause(ctx, orderConflict)
	}
}

// settle carries on what goes on without a verdict; in maintenance nothing does.
func (o *fenceOrders) settle(snap *cluster.Snapshot, now cluster.Instant) {
	if o.fencer == nil || inMaintenance(snap) {
		return
	}
	for _, n := range byUrgency(snap.Nodes, o.first(), protectedOn(snap)) {
		view := snap.Nodes[n]
		ripe, try := o.fencer.Ripe(view, now)
		if n == o.c.Node && try {
			continue // nobody orders his own power off
		}
		if !ripe || try && !o.mayTry(snap, n, now) {
			continue
		}
		_, ok := o.fence(n, noOrderOut(view.Fence.Value.Stage), try, func(ctx context.Context, t cluster.Token) (cluster.FenceRecord, *cluster.Refusal, error) {
			return o.fencer.Settle(ctx, t, n, try)
		})
		if ok {
			return
		}
	}
}

// mayTry reports whether a try of an ordered fence may be made now, which is
// judged like the order itself: an order says whom to fence, and not how many
// besides (I6). It is told once why not.
func (o *fenceOrders) mayTry(snap *cluster.Snapshot, n cluster.NodeID, now cluster.Instant) bool {
	c := o.caseOf(snap, n, now)
	c.waited = 0
	refusal, wait := c.judgeFence()
	code := refusal.Code
	if wait != "" {
		code, refusal.Detail = cluster.RefuseObserverBlind, wait
	}
	if before, told := o.kept[n]; code != "" && (!told || before != code) {
		o.d.Log.Warn("ordered fence not tried now", zap.String("peer", string(n)), zap.String("order", snap.Nodes[n].Fence.Value.Order),
			zap.String("code", string(code)), zap.String("detail", refusal.Detail))
	}
	if delete(o.kept, n); code != "" {
		o.kept[n] = code
	}
	return code == ""
}

// orderCase is all that an order is judged by.
type orderCase struct {
	order       cluster.Versioned[cluster.FenceOrder]
	node, self  cluster.NodeID
	unread      bool // its record has not been read yet
	registered  bool
	incarnation cluster.Incarnation // of the node's record
	maintenance bool
	blind       string
	liveness    cluster.Liveness
	age         time.Duration // of the newest keepalive, as observed
	down, total int           // other nodes that are down or under a fence; all nodes
	fences      bool          // there is a fencer here
	stopped     bool          // its daemon has written that it stops
	owed        bool          // so it has, and it is gone, but the lease waits for its dead-proof
	waited      time.Duration
	trouble     string // why the last try failed
}

func (o *fenceOrders) caseOf(snap *cluster.Snapshot, n cluster.NodeID, now cluster.Instant) orderCase {
	view := snap.Nodes[n]
	c := orderCase{
		order: view.Order, node: n, self: o.c.Node, unread: view.Record.SeenAt.IsZero(), registered: view.Record.Present && view.Record.Err == nil, incarnation: view.Record.Value.Incarnation,
		maintenance: inMaintenance(snap), blind: o.blind(), liveness: o.see(n), fences: o.fencer != nil,
		waited: now.Sub(o.waiting[n].since), trouble: o.said(n),
		stopped: view.Daemon.Value == cluster.DaemonStop,
	}
	if view.Keepalive.Present {
		c.age = now.Sub(view.Keepalive.SeenAt)
	}
	c.owed = c.stopped && !view.Alive.Present && c.age > o.c.Timing.SuspectAfter() && snap.Lease.Err == nil &&
		slices.Contains(snap.Lease.Value.Unproven, cluster.Unproven{Node: n, Incarnation: c.incarnation})
	for name, other := range snap.Nodes {
		if !other.Record.Present || other.Record.Err != nil {
			continue
		}
		c.total++
		leaving := other.Daemon.Value == cluster.DaemonStop || other.Daemon.Value == cluster.DaemonShutdown
		underWay := other.Fence.Value.ID != "" && !other.Fence.Value.Ended()
		if name != n && name != o.c.Node && (o.see(name).Down() && !leaving || underWay) {
			c.down++
		}
	}
	return c
}

// judge says why the order is refused, or why it waits; neither: it is carried
// out. What an operator cannot override: the primary does not fence itself,
// nobody fences a start of a node that is not known, in maintenance, or half or
// more of the nodes (I5, I6); nobody's word kills a node that is heard.
func (c orderCase) judge() (refusal cluster.Refusal, wait string) {
	o, no := c.order.Value, c.no
	switch {
	case c.order.Err != nil:
		return no(cluster.RefuseOrder, "the order cannot be read (%v); give it again", c.order.Err)
	case o.Node != c.node:
		return no(cluster.RefuseOrder, "the order is about node %q and lies where those of this one are", o.Node)
	case c.trouble != "" && c.waited >= orderPatience:
		return no(cluster.RefuseOverdue, "it could not be carried out within %s: %s", orderPatience, c.trouble)
	}
	switch o.Action {
	case cluster.OrderTest:
		return cluster.Refusal{}, ""
	case cluster.OrderFence, cluster.OrderConfirm, cluster.OrderCancel:
	default:
		return no(cluster.RefuseOrder, "action %q is not one of fence, confirm, cancel, test", o.Action)
	}
	switch {
	case !c.fences:
		return no(cluster.RefuseDisabled, "the primary, node %s, fences nobody", c.self)
	case c.node == c.self:
		return no(cluster.RefuseOneself, "it is the primary and does not fence itself; switch the role first")
	case c.unread && c.waited < orderPatience:
		return cluster.Refusal{}, "its record is being read"
	case !c.registered || o.Incarnation == "" || o.Incarnation != c.incarnation:
		return no(cluster.RefuseIncarnation, "the order is about start %q of it, and its present one is %q; look again and order anew", o.Incarnation, c.incarnation)
	}
	switch o.Action {
	case cluster.OrderFence:
		return c.judgeFence()
	case cluster.OrderConfirm:
		return c.judgeConfirm()
	}
	return cluster.Refusal{}, ""
}

func (c orderCase) no(code cluster.RefusalCode, format string, args ...any) (cluster.Refusal, string) {
	return cluster.Refusal{Code: code, Node: c.node, Detail: fmt.Sprintf("node %s: ", c.node) + fmt.Sprintf(format, args...)}, ""
}

// judgeFence is asked before an order's first try and before each later one.
func (c orderCase) judgeFence() (cluster.Refusal, string) {
	no := c.no
	switch {
	case c.blind != "" && c.waited >= orderPatience:
		return no(cluster.RefuseObserverBlind, "for %s the primary could not judge the cluster: %s", orderPatience, c.blind)
	case c.blind != "":
		return cluster.Refusal{}, c.blind
	case c.stopped:
		return no(cluster.RefuseNotSuspectEnough, "it was stopped in order, and nobody fences what has said that it stops")
	case c.maintenance:
		return no(cluster.RefuseMaintenance, "the cluster is in maintenance, in which nobody is fenced; end it first")
	case 2*(c.down+1) >= c.total:
		return no(cluster.RefuseTooMany, "%d of %d nodes would be down, which is half or more; nobody fences those", c.down+1, c.total)
	}
	return cluster.Refusal{}, ""
}

// judgeConfirm: only of a node that is silent and suspect.
func (c orderCase) judgeConfirm() (cluster.Refusal, string) {
	no := c.no
	switch {
	case c.blind != "":
		if c.waited >= orderPatience {
			return no(cluster.RefuseObserverBlind, "for %s the primary could not judge it: %s", orderPatience, c.blind)
		}
		return cluster.Refusal{}, c.blind
	case c.liveness == cluster.LiveIsolated:
		return no(cluster.RefuseNotSuspectEnough, "it answers direct probes, so it has power; its last keepalive is %s old", c.age.Round(100*time.Millisecond))
	case c.owed: // it left the role to its guard when it was stopped; the operator vouches for the rest
		return cluster.Refusal{}, ""
	case c.liveness < cluster.LiveSuspect:
		return no(cluster.RefuseNotSuspectEnough, "it is %s, its last keepalive is %s old; only a silent node can be confirmed to have no power", c.liveness, c.age.Round(100*time.Millisecond))
	}
	return cluster.Refusal{}, ""
}
