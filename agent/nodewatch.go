package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/detector"
	"pvc.internal/agent/failover"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

var errNotPrimary = errors.New("this node is no longer primary")

// admitting runs what needs coordination once its conditions hold (activity.Manager).
type admitting interface {
	Run(ctx context.Context, s activity.Spec, body activity.Body) error
}

// reigningFencer is a Fencer that counts from when the role was taken.
type reigningFencer interface {
	Reign(e cluster.Epoch)
}

// nodeWatch judges the other nodes a few times a tick, on every coordinator, so
// that a new primary starts with warm counters; only the primary acts. It is
// one goroutine; a fence runs in another, one at a time, under the role's
// context, and run waits for it.
type nodeWatch struct {
	c    Config
	d    Deps
	dec  *decider
	keep *Keepalive

	reach *reach
	acts  admitting // what runs the fences
	// quorum is what the node leases say about acting as the leader; nil: they are
	// not in use.
	quorum func() failover.Opinion

	// lastCopy says whether a fence of the node would lose the last copy of a
	// workload. nil: nobody knows of workloads.
	lastCopy func(snap *cluster.Snapshot, n cluster.NodeID, now cluster.Instant) failover.Opinion
	// faultyWorkloads are the faults of workloads that stand, in words. nil: none.
	faultyWorkloads func() []string

	// without says why a majority of the node leases is not held without that of one
	// node: who is shot holds nothing soon. nil: they are not in use.
	without func(cluster.NodeID) string

	// mayFence is asked right before a fence of a node is begun, or carried on
	// where no order is out yet: it may have been promised that none is claimed
	// (agent/failsafe). An empty code is leave. The node stands in claiming
	// before it is asked, so whoever gives promises reads claiming and is asked
	// this under one lock. nil: leave.
	mayFence func(cluster.NodeID) cluster.Refusal

	seen       detector.State
	judged     failover.State
	framed     failover.Frame
	skipped    bool   // all was calm, so that a look was left out before the next
	blind      string // why nobody is fenced on this node's judgement now, as of the last frame
	refusing   sync.Mutex
	refusals   map[cluster.NodeID]cluster.Refusal // why a down node is not fenced; refusing guards it
	unresumed  []cluster.Refusal                  // the same, of fences to be carried on, as of the last step
	unended    map[cluster.NodeID]string          // why a fence did not end the last time; refusing guards it
	holder     cluster.NodeID                     // of the lease, and who had it before
	before     cluster.NodeID
	lead       context.Context // while this node is primary; nil otherwise
	endLead    context.CancelCauseFunc
	orders     *fenceOrders
	members    *memberWatch
	soft       *softStop
	fencing    atomic.Bool
	claims     claims
	expiring   atomic.Bool
	fences     sync.WaitGroup
	said       saidWords // as published last, and when
	saidAt     cluster.Instant
	published  []byte
	wroteAt    cluster.Instant // when published was written
	publishing atomic.Bool
	unwritten  atomic.Bool // the last view did not reach the store
	stepped    instant
	counted    fenceCounts
}

func newNodeWatch(c Config, d Deps, dec *decider, keep *Keepalive) *nodeWatch {
	w := &nodeWatch{c: c, d: d, dec: dec, keep: keep, refusals: map[cluster.NodeID]cluster.Refusal{}, unended: map[cluster.NodeID]string{}}
	w.reach = newReach(c, d, &w.fences)
	w.orders = w.newOrders()
	w.soft = w.newSoft()
	w.members = newMemberWatch(c, d, d.Records, w.orders.see, func() string { return w.blind })
	return w
}

// run steps detector and failover at a steady rate until ctx ends. A hypervisor
// judges and publishes, too; it never acts, since it is never primary.
func (w *nodeWatch) run(ctx context.Context) {
	interval := w.every()
	timer := time.NewTimer(interval)
	defer timer.Stop()
	defer w.fences.Wait()
	defer w.orders.wait()
	defer w.members.wait()
	defer w.loseLead()
	last := w.d.Clock.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		now := w.d.Clock.Now()
		w.step(ctx, now, now.Sub(last) > 2*interval)
		w.stepped.set(now)
		last, interval = now, w.every()
		if w.skipped = w.calm(); w.skipped {
			interval *= 2
		}
		timer.Reset(w.keep.grid.next(w.d.Clock.Now(), interval))
	}
}

// calm reports that every node is up, as far as this one can tell: then it looks
// half as often, in time still for the first look at one that is late.
func (w *nodeWatch) calm() bool {
	for _, n := range w.seen.Nodes {
		if n.Liveness != cluster.LiveUp {
			return false
		}
	}
	return w.seen.Blind == ""
}

// every is the time between two looks, so that a fence is claimed well within
// 0.5 s of the verdict (protocol §5).
func (w *nodeWatch) every() time.Duration { return failover.Cadence(w.c.Timing) }

// step judges once, and acts where this node is primary.
func (w *nodeWatch) step(ctx context.Context, now cluster.Instant, late bool) {
	status := w.dec.status()
	state, changes := detector.Step(w.seen, detector.Observation{
		Now: now, Self: w.c.Node, Snapshot: status.Snapshot, Timing: w.c.Timing,
		SelfLate: late, OwnKeepalive: w.keep.Acked(), Reports: w.reach.reports(now),
	})
	w.seen = state
	w.reach.follow(ctx, now, state, status.Snapshot)
	w.tell(changes)
	w.followHolder(status)
	primary := status.Role.Leads()
	if primary && w.lead == nil {
		w.lead, w.endLead = context.WithCancelCause(ctx)
		if f, ok := w.d.Fencer.(reigningFencer); ok {
			epoch, _, _ := status.Role.Holds()
			f.Reign(epoch)
		}
	}
	if !primary {
		w.loseLead()
		w.unresumed = nil
	}
	w.frame(status, primary)
	w.orders.step(ctx, status, now)
	w.members.step(ctx, primary, status.Snapshot, now)
	if primary {
		w.resumeFences(status, now)
		w.expireMaintenance(ctx, status)
	}
	if words := w.words(status); len(changes) > 0 || words != w.said || now.Sub(w.saidAt) >= w.c.Timing.KeepaliveInterval {
		w.said, w.saidAt = words, now
		w.publish(ctx, status)
	}
}

// tell logs what has changed in the judgement of the other nodes.
func (w *nodeWatch) tell(changes []detector.Transition) {
	for _, t := range changes {
		w.d.Log.Info("node judged", zap.String("peer", string(t.Node)), zap.Stringer("from", t.From), zap.Stringer("to", t.To),
			zap.Duration("silence", t.Silence), zap.String("reason", t.Reason))
		if t.Warning != "" {
			w.d.Log.Warn("the coordinators contradict each other", zap.String("peer", string(t.Node)), zap.String("warning", t.Warning))
		}
	}
}

// words are what of a view changes at once: for the rest once a keepalive
// interval is soon enough.
func (w *nodeWatch) words(status Status) saidWords {
	m := status.Snapshot.Maintenance
	epoch, _, _ := status.Role.Holds()
	return saidWords{status.Role.Mode, epoch, m.Version, m.Value, w.blind, status.Role.ServiceFault()}
}

type saidWords struct {
	mode        role.Mode
	epoch       cluster.Epoch
	maintenance int32
	on          bool
	blind       string
	service     string
}

func (w *nodeWatch) loseLead() {
	if w.endLead != nil {
		w.endLead(errNotPrimary)
	}
	w.lead, w.endLead = nil, nil
}

// followHolder remembers who held the role before the present holder.
func (w *nodeWatch) followHolder(status Status) {
	l := status.Snapshot.Lease
	if l.Present && l.Err == nil && l.Value.Holder != "" && l.Value.Holder != w.holder {
		w.before, w.holder = w.holder, l.Value.Holder
	}
}

// frame feeds the failover logic and carries out what it decides.
func (w *nodeWatch) frame(status Status, primary bool) {
	snap := status.Snapshot
	settings, blind := cluster.DefaultFailoverSettings(), w.seen.Blind
	switch {
	case snap.Failover.Present && snap.Failover.Err != nil: // what it forbids is not known
		blind = fmt.Sprintf("the failover settings cannot be read (%v); write them anew with `pvc settings autofailover`", snap.Failover.Err)
	case snap.Failover.Present:
		settings = snap.Failover.Value
	}
	w.blind = blind
	w.framed = failover.Frame{
		Every: w.every(), Self: w.c.Node, Timing: w.c.Timing, Settings: settings, SettingsSeen: snap.Failover, Primary: primary,
		Holder: snap.Lease.Value.Holder, Predecessor: w.before, Maintenance: inMaintenance(snap), Blind: blind,
	}
	if w.quorum != nil {
		w.framed.Quorum = w.quorum()
	}
	w.framed.Look(snap, w.judgedOf)
	w.weigh(snap)
	if w.skipped { // the look that was left out would have been this frame, too
		w.judged, _, _ = failover.Step(w.judged, w.framed)
	}
	next, actions, refusals := failover.Step(w.judged, w.framed)
	w.judged = next
	act, withheld := w.permitted(actions)
	w.clearRefusals(next, append(slices.Clone(withheld), w.unresumed...))
	for _, r := range append(refusals, withheld...) {
		if err := snap.Maintenance.Err; r.Code == cluster.RefuseMaintenance && err != nil {
			r.Detail = fmt.Sprintf("%s: the switch cannot be read, which counts as on (%v); set it with `pvc cluster maintenance on` or `off`", r.Detail, err)
		}
		w.refused(r)
	}
	if act != nil {
		w.fence(act.Node, true, func(ctx context.Context, t cluster.Token) (cluster.FenceRecord, *cluster.Refusal, error) {
			return w.d.Fencer.Fence(ctx, t, *act)
		})
	}
}

// weigh adds what workloads have to do with fences of the frame's nodes.
func (w *nodeWatch) weigh(snap *cluster.Snapshot) {
	if len(w.framed.Nodes) == 0 || len(snap.Workloads) == 0 {
		return
	}
	protected := protectedOn(snap)
	now := w.d.Clock.Now()
	for i := range w.framed.Nodes {
		n := &w.framed.Nodes[i]
		n.Protected = protected[n.Name]
		if w.lastCopy != nil {
			n.LastCopy = w.lastCopy(snap, n.Name, now)
		}
	}
}

// judgedOf is the detector's word on one node.
func (w *nodeWatch) judgedOf(n cluster.NodeID) failover.Seen {
	held := w.seen.Nodes[n]
	seen := failover.Seen{Liveness: held.Liveness, Excused: held.Excuse != ""}
	if held.Picture.Mixed() {
		seen.Mixed = held.Picture.String()
	}
	return seen
}

// permitted returns the first action that no promise stands against, which
// counts as a claim from here on, and why not those before it. While a fence
// runs nothing is begun, and nothing is asked.
func (w *nodeWatch) permitted(actions []cluster.Action) (act *cluster.Action, withheld []cluster.Refusal) {
	for i := range actions {
		n := actions[i].Node
		if why := w.unheld(n); why != "" {
			withheld = append(withheld, cluster.Refusal{Code: cluster.RefuseNoQuorum, Node: n, Detail: fmt.Sprintf("node %s: dead, but %s", n, why)})
			continue
		}
		r, ok := w.leave(n, true)
		if ok {
			return &actions[i], withheld
		}
		if r.Code != "" {
			withheld = append(withheld, r)
		}
	}
	return nil, withheld
}

// leave takes the place of the one fence that may run. Where it would be the
// first order of that fence it asks whether a promise stands against it. False
// without a code: another one runs, or nobody fences here.
func (w *nodeWatch) leave(n cluster.NodeID, first bool) (cluster.Refusal, bool) {
	if w.d.Fencer == nil || w.lead == nil || !w.fencing.CompareAndSwap(false, true) {
		return cluster.Refusal{}, false
	}
	w.claims.begin(n)
	if first && w.mayFence != nil {
		if r := w.mayFence(n); r.Code != "" {
			w.claims.end(n, w.d.Clock.Now())
			w.fencing.Store(false)
			return r, false
		}
	}
	return cluster.Refusal{}, true
}

// inMaintenance reports whether maintenance is on. A switch that cannot be read
// counts as on: nobody is fenced on a doubt.
func inMaintenance(snap *cluster.Snapshot) bool {
	m := snap.Maintenance
	return m.Value || m.Present && m.Err != nil
}

// refused keeps why a node is not fenced, and tells it once.
func (w *nodeWatch) refused(r cluster.Refusal) {
	w.refusing.Lock()
	told := w.refusals[r.Node].Code == r.Code
	w.refusals[r.Node] = r
	w.refusing.Unlock()
	if told {
		return
	}
	w.d.Log.Info("not fenced", zap.String("peer", string(r.Node)), zap.String("code", string(r.Code)), zap.String("detail", r.Detail))
}

// clearRefusals forgets what no longer stands against anything: the node is up
// again, or nothing was refused in this frame.
func (w *nodeWatch) clearRefusals(s failover.State, withheld []cluster.Refusal) {
	w.refusing.Lock()
	defer w.refusing.Unlock()
	for n, r := range w.refusals {
		still := slices.ContainsFunc(withheld, func(h cluster.Refusal) bool { return h.Node == n && h.Code == r.Code })
		if held, down := s.Down[n]; !still && (!down || held.Reported == "") {
			delete(w.refusals, n)
		}
	}
}

// resumeFences carries on what an earlier primary left unfinished. Why one may not
// be stands until it may: it is told once, however often that is asked.
func (w *nodeWatch) resumeFences(status Status, now cluster.Instant) {
	before := w.unresumed
	w.unresumed = nil
	if inMaintenance(status.Snapshot) || w.d.Fencer == nil {
		return
	}
	for _, n := range byUrgency(status.Snapshot.Nodes, w.before, protectedOn(status.Snapshot)) {
		record := status.Snapshot.Nodes[n].Fence
		if n == w.c.Node || !w.d.Fencer.Due(record, now) || !w.mayResume(n, record.Value.Stage) {
			continue
		}
		if r := w.losesLastCopy(n); r.Code != "" && record.Value.Order == "" && noOrderOut(record.Value.Stage) {
			w.unresumed = append(w.unresumed, r)
			w.refused(r)
			continue
		}
		r, ok := w.leave(n, noOrderOut(record.Value.Stage))
		if at := slices.IndexFunc(before, func(b cluster.Refusal) bool { return b.Node == n }); !ok && r.Code == "" && at >= 0 {
			r = before[at] // another fence runs, so that nothing was asked
		}
		if r.Code != "" {
			w.unresumed = append(w.unresumed, r)
			w.refused(r)
		}
		if ok {
			w.fence(n, takesPower(record.Value.Stage), func(ctx context.Context, t cluster.Token) (cluster.FenceRecord, *cluster.Refusal, error) {
				return w.d.Fencer.Resume(ctx, t, n)
			})
			return
		}
	}
}

// mayResume reports whether the record may be carried on now. Where no order
// has been sent yet, or the last has failed, it is judged like a new verdict:
// not by who is blind, not of a node that is not dead, not of half or more, and
// not while nodes return after half were silent (I6).
func (w *nodeWatch) mayResume(n cluster.NodeID, stage cluster.FenceStage) bool {
	if takesPower(stage) && w.unheld(n) != "" {
		return false // the activity would be refused, again and again
	}
	if !noOrderOut(stage) {
		return true // its proof is to be had
	}
	held := w.seen.Nodes[n]
	if w.blind != "" || held.Liveness != cluster.LiveDead || held.Excuse != "" || !w.judged.Calm(w.framed) {
		return false
	}
	down := 0
	for _, other := range w.seen.Nodes {
		if other.Liveness.Down() {
			down++
		}
	}
	return 2*down < len(w.seen.Nodes)+1 // and this node itself
}

// losesLastCopy is the refusal of a fence, of nobody's order, that would lose the
// last copy of a workload; no code: the frame says nothing of that.
func (w *nodeWatch) losesLastCopy(n cluster.NodeID) cluster.Refusal {
	for _, f := range w.framed.Nodes {
		if f.Name == n && f.LastCopy.InUse && f.LastCopy.Against != "" {
			return cluster.Refusal{Code: cluster.RefuseLastCopy, Node: n, Detail: fmt.Sprintf("node %s: its fence has not begun: a workload would lose its last copy: %s", n, f.LastCopy.Against)}
		}
	}
	return cluster.Refusal{}
}

// noOrderOut reports whether no device has an order in this stage, so that the
// fence can still be left alone.
func noOrderOut(s cluster.FenceStage) bool {
	return s == cluster.FenceClaimed || s == cluster.FenceSoft || s == cluster.FenceFailed
}

// fenceWait is how long a fence waits for the conditions of its activity: for as
// long as it takes to end another one in its domain, and a renewal of the leases.
const fenceWait = 4 * time.Second

// fence runs the one fence that leave was given for beside the loop; while it
// runs, others wait for a later frame, which repeats them. It is an activity that
// is not interrupted for others. What may take power needs a majority of the node
// leases, so that nothing of another leader's runs beside it; what follows a
// proof, or an operator's word, needs this node's own: where most nodes are gone
// that word must do (I7).
func (w *nodeWatch) fence(n cluster.NodeID, power bool, run fenceWork) {
	w.fenceAs(n, power, false, run)
}

// fenceAs is fence, or, unsafe, that without any leases: what is left to keep two
// primaries' fences apart is what a cluster without node leases has, the role's
// epoch and deadline, at which the guard ends every attempt.
func (w *nodeWatch) fenceAs(n cluster.NodeID, power, unsafe bool, run fenceWork) {
	lead, quorum := w.lead, cluster.All(w.c.Node)
	if power {
		quorum = cluster.Majority()
	}
	w.fences.Go(func() {
		defer w.fencing.Store(false)
		var record cluster.FenceRecord
		var refusal *cluster.Refusal
		spec := activity.Spec{Name: "fence-" + string(n), Quorum: quorum, Timeout: fenceWait, Urgency: activity.Failover, Unsafe: unsafe}
		var err error
		if why := w.unheld(n); power && !unsafe && why != "" {
			err = &cluster.RefusedActivity{Name: spec.Name, Refusal: cluster.Refusal{Code: cluster.RefuseNoQuorum, Node: n, Detail: why}}
		} else {
			err = w.acts.Run(lead, spec, func(ctx context.Context, a *activity.Activity) (err error) {
				record, refusal, err = run(ctx, a.Token())
				return err
			})
		}
		var no *cluster.RefusedActivity
		if errors.As(err, &no) {
			refusal, err = w.notAdmitted(n, no), nil
		}
		until := w.d.Clock.Now()
		if err != nil {
			until = until.Add(w.c.Timing.SessionTimeout) // a claim whose reply was lost may still land
		}
		w.claims.end(n, until)
		w.counted.add(record.Stage, refusal, err)
		log := w.d.Log.Debug
		if w.unendedAnew(n, err) {
			log = w.d.Log.Warn
		}
		switch {
		case err != nil:
			log("fence did not end", zap.String("peer", string(n)), zap.String("stage", string(record.Stage)), zap.Error(err))
		case refusal != nil:
			w.refused(*refusal)
		default:
			w.d.Log.Info("fence ended", zap.String("peer", string(n)), zap.String("stage", string(record.Stage)), zap.String("proof", record.Proof))
		}
	})
}

// unendedAnew reports whether the node's fence did not end for another reason than
// the last time, nil being none: what is tried once a second is told once.
func (w *nodeWatch) unendedAnew(n cluster.NodeID, err error) bool {
	w.refusing.Lock()
	defer w.refusing.Unlock()
	if err == nil {
		delete(w.unended, n)
		return false
	}
	before := w.unended[n]
	w.unended[n] = err.Error()
	return before != err.Error()
}

// unheld says why too few leases are held to take the power of this node; empty:
// enough are. Its own does not count: it ends with the node, and would end the
// fence halfway, with the node dark and nobody to give it power again.
func (w *nodeWatch) unheld(n cluster.NodeID) string {
	if w.without == nil {
		return ""
	}
	return w.without(n)
}

// takesPower reports whether a fence that stands in this stage may order power off.
func takesPower(s cluster.FenceStage) bool {
	return s != cluster.FenceFenced && s != cluster.FenceRecover
}

// notAdmitted says why a fence did not begin: to who asks about the node, and to
// who has ordered it.
func (w *nodeWatch) notAdmitted(n cluster.NodeID, no *cluster.RefusedActivity) *cluster.Refusal {
	w.orders.failed(n, no.Error())
	return &cluster.Refusal{Code: no.Code, Node: n, Detail: fmt.Sprintf("node %s: its fence has not begun: %s", n, no.Detail)}
}

// claiming lists the nodes that a claim of this node's own, under way or with
// its reply lost, may still give a fence record.
func (w *nodeWatch) claiming() []cluster.NodeID { return w.claims.at(w.d.Clock.Now()) }

// claims are the nodes with a claim under way, and until when one may land.
type claims struct {
	mu    sync.Mutex
	until map[cluster.NodeID]cluster.Instant
}

func (c *claims) begin(n cluster.NodeID) { c.end(n, cluster.Forever) }

func (c *claims) end(n cluster.NodeID, until cluster.Instant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.until == nil {
		c.until = map[cluster.NodeID]cluster.Instant{}
	}
	c.until[n] = until
}

func (c *claims) at(now cluster.Instant) []cluster.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.until, func(_ cluster.NodeID, until cluster.Instant) bool { return !now.Before(until) })
	return slices.Sorted(maps.Keys(c.until))
}

// expireMaintenance ends a maintenance whose time is over. The wall clock is
// the operator's, who named the time; a wrong one only lengthens or shortens it.
func (w *nodeWatch) expireMaintenance(ctx context.Context, status Status) {
	snap := status.Snapshot
	record := snap.MaintenanceRecord
	if !snap.Maintenance.Value || !record.Present || record.Value.ExpiresMS == 0 || w.c.WallMS() < record.Value.ExpiresMS ||
		!w.expiring.CompareAndSwap(false, true) {
		return
	}
	w.fences.Go(func() {
		defer w.expiring.Store(false)
		ctx, cancel := context.WithTimeout(ctx, w.c.Timing.KeepaliveInterval)
		defer cancel()
		r := w.d.Store.Commit(ctx, cluster.Txn{Purpose: "maintenance.expire", Ops: []cluster.Op{
			cluster.Set(cluster.Key{Kind: cluster.KeyMaintenance}, snap.Maintenance.Version, false),
			cluster.Check(cluster.Key{Kind: cluster.KeyMaintenanceRecord}, record.Version),
		}})
		w.d.Log.Info("maintenance has reached its end", zap.String("owner", record.Value.Owner), zap.Stringer("outcome", r.Outcome))
	})
}

// View is what a node publishes of what it sees and decides.
type View = cluster.View

// NodeSeen is how a node judges one other node.
type NodeSeen = cluster.NodeSeen

// publish writes the view when it has changed, or each valueRefresh, one write
// at a time.
func (w *nodeWatch) publish(ctx context.Context, status Status) {
	now := w.d.Clock.Now()
	v := w.view(status, now)
	if w.unwritten.Swap(false) || len(v.Reach) > 0 && now.Sub(w.wroteAt) >= w.c.Timing.KeepaliveInterval/2 {
		w.published = nil // what is reached is said anew
	}
	raw, err := json.Marshal(v)
	if err == nil && string(raw) == string(w.published) && now.Sub(w.wroteAt) >= valueRefresh {
		w.wroteAt = now // what somebody else wrote over it does not stay
		w.keep.Ride(cluster.Set(cluster.Key{Kind: cluster.KeyView, Node: w.c.Node}, cluster.AnyVersion, json.RawMessage(raw)))
		w.keep.Ride(cluster.Set(cluster.Key{Kind: cluster.KeyDaemonMode, Node: w.c.Node}, cluster.AnyVersion, w.c.Mode))
	}
	if err != nil || string(raw) == string(w.published) || !status.Snapshot.Live || !w.publishing.CompareAndSwap(false, true) {
		return
	}
	w.published, w.wroteAt = raw, now
	w.fences.Go(func() {
		defer w.publishing.Store(false)
		// Not cut off at the end, since that would cost the connection by which the
		// last keepalive is to go; it has a deadline of its own.
		if err := w.write(context.WithoutCancel(ctx), raw); err != nil {
			w.unwritten.Store(true)
			w.d.Log.Debug("publishing the view failed", zap.Error(err))
		}
	})
}

// view is what is to be published now.
func (w *nodeWatch) view(status Status, now cluster.Instant) View {
	epoch, _, _ := status.Role.Holds()
	v := View{
		Version: 1, Mode: status.Role.Mode.String(), Epoch: epoch, Refusals: status.Role.Refusals,
		Problems: status.Role.Problems, ServiceFault: status.Role.ServiceFault(), GuardFaults: status.Role.GuardFaults(),
		Nodes: make(map[cluster.NodeID]NodeSeen, len(w.seen.Nodes)), Blind: w.blind, Maintenance: inMaintenance(status.Snapshot),
		MaintenanceVersion: status.Snapshot.Maintenance.Version,
		Reach:              w.reach.own(w.reach.missed, now), Faults: w.reach.faults(),
	}
	if w.d.Faults != nil {
		v.Faults = append(w.d.Faults(), v.Faults...)
	}
	v.Faults = append(v.Faults, w.orders.faults()...)
	if w.faultyWorkloads != nil {
		v.Faults = append(v.Faults, w.faultyWorkloads()...)
	}
	w.refusing.Lock()
	defer w.refusing.Unlock()
	for n, held := range w.seen.Nodes {
		seen := NodeSeen{Liveness: held.Liveness.String(), Excuse: held.Excuse, Picture: held.Picture.String()}
		if r, ok := w.refusals[n]; ok {
			seen.Refusal = &r
		}
		if w.framed.Primary && held.Liveness > cluster.LiveLate {
			seen.Vetoes = vetoes(failover.Explain(w.judged, w.framed, n))
		}
		v.Nodes[n] = seen
	}
	return v
}

// vetoes puts the failover's checks into a view's words.
func vetoes(checks []failover.Check) []cluster.VetoSeen {
	var list []cluster.VetoSeen
	for _, c := range checks {
		seen := cluster.VetoSeen{Name: c.Name, Unused: c.Unused}
		if c.Refusal.Code != "" {
			seen.Refusal = &c.Refusal
		}
		list = append(list, seen)
	}
	return list
}

func (w *nodeWatch) write(ctx context.Context, raw []byte) error {
	ctx, cancel := context.WithTimeout(ctx, w.c.Timing.KeepaliveInterval)
	defer cancel()
	key := cluster.Key{Kind: cluster.KeyView, Node: w.c.Node}
	r := w.d.Store.Commit(ctx, cluster.Txn{Purpose: "view", Ops: []cluster.Op{cluster.Set(key, cluster.AnyVersion, json.RawMessage(raw))}})
	if r.Outcome == cluster.OutcomeConflict {
		r = w.d.Store.Commit(ctx, cluster.Txn{Purpose: "view", Ops: []cluster.Op{cluster.Create(key, json.RawMessage(raw))}})
	}
	if r.Outcome != cluster.OutcomeOK {
		return fmt.Errorf("write view (%s): %w", r.Outcome, r.Err)
	}
	return nil
}
