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

	"pvc.internal/agent/failsafe"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// The kinds of question to other coordinators in an outage of the store.
const (
	questionRole = "failsafe"  // will nobody take the role? (protocol §4)
	questionWork = "selffence" // will nobody fence this node? (protocol §6)
)

// nodeEpoch is the epoch of every deadline of this node's own right: nobody
// competes for it but later starts on this host, which go on with it.
const nodeEpoch = cluster.NodeEpoch

// outage is the shell around agent/failsafe: what this node has promised the
// other coordinators, and what it asks them for, while nobody can write to
// ZooKeeper. Its state belongs to the decider's goroutine, which also decides on
// taking the role, so that a promise and a take never pass each other (I1):
//
//   - a promise is kept here before its answer leaves (answer);
//   - it is looked at before each step of the role's machine, which asks for a
//     take's Multi and for phase D in such a step only (promise);
//   - from the step that asks for a take no promise is given until the take's
//     end is known (known).
//
// The questions themselves run in goroutines of the executor, each under a
// deadline; their answers come back as calls to the decider.
type outage struct {
	c     Config
	peers Peers // nil: nobody is asked, and nothing is ever promised
	clock cluster.Clock
	log   *zap.Logger
	dec   *decider
	keep  *Keepalive
	own   *writes                    // nil without peers
	claim func() []cluster.NodeID    // whom a claim of this node's own may give a fence record
	tell  func(role.Note)            // to log and history
	spawn func(func())               // an owned goroutine
	move  func(cluster.RoleDeadline) // the node's own deadline, to the guard; it does not block

	giver failsafe.GiverConfig
	given failsafe.GiverState
	epoch cluster.Epoch // largest that was seen in a lease

	role, work asking
	held       role.Right      // at the last look
	told       cluster.Instant // the node's own deadline as told last; Never: this node is not busy
	going      bool            // by the others' word; told to people

	// copies: copies of workloads may run here at any time, so that the node's own
	// right is in use from the first keepalive on. Something of them is here as far
	// as is known: then its end is told to people.
	copies bool
	here   atomic.Bool
	taught atomic.Pointer[map[cluster.NodeID]coordinator] // of a hypervisor; nil: not yet

	busy  atomic.Bool   // the node's own right is in use
	until atomic.Int64  // a cluster.Instant: the end of that right
	fresh chan struct{} // has one element after a keepalive was acknowledged
}

// asking is one asker.
type asking struct {
	c failsafe.AskerConfig
	s failsafe.AskerState
}

func newOutage(c Config, d Deps, dec *decider, keep *Keepalive, own *writes) (*outage, error) {
	if d.Peers != nil && c.LongestTTL < c.Timing.RoleTTL {
		return nil, errors.New("nodes that talk directly need the longest role_ttl that the state folder has seen (StateFolder.UseTTL)")
	}
	o := &outage{
		c: c, peers: d.Peers, clock: d.Clock, log: d.Log, dec: dec, keep: keep, own: own, fresh: make(chan struct{}, 1),
		claim: func() []cluster.NodeID { return nil }, copies: usesCopies(c, d),
		giver: failsafe.GiverConfig{Node: c.Node, ID: c.NodeUUID, Timing: c.Timing, Started: d.Clock.Now(), LongestTTL: c.LongestTTL},
	}
	for right, a := range map[failsafe.Right]*asking{failsafe.RightRole: &o.role, failsafe.RightWork: &o.work} {
		a.c = failsafe.AskerConfig{Node: c.Node, Incarnation: c.Incarnation, Right: right, Timing: c.Timing}
	}
	if d.Peers != nil {
		d.Peers.Handle(questionRole, o.handler(failsafe.RightRole))
		d.Peers.Handle(questionWork, o.handler(failsafe.RightWork))
	}
	return o, nil
}

// ---- who is asked

// handler answers the questions for a right. It waits for the decider, at most
// as long as the asker waits.
func (o *outage) handler(right failsafe.Right) func(context.Context, cluster.NodeID, []byte) ([]byte, error) {
	return func(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
		var q failsafe.Question
		if err := json.Unmarshal(body, &q); err != nil {
			return nil, fmt.Errorf("read the question: %w: %w", err, cluster.ErrRefused)
		}
		if q.From != from || q.ID.Right != right {
			return nil, fmt.Errorf("%s asks as %q for the right %q: %w", from, q.From, q.ID.Right, cluster.ErrRefused)
		}
		var answer failsafe.Answer
		if !o.dec.call(ctx, func(context.Context) { answer = o.answer(q) }) {
			return nil, errors.New("this daemon does not decide on anything yet, or any more")
		}
		return json.Marshal(answer)
	}
}

// answer promises or refuses. The promise stands when it returns, before
// anybody is told (I1).
func (o *outage) answer(q failsafe.Question) failsafe.Answer {
	in := o.known(o.clock.Now())
	in.Question = &q
	next, out := failsafe.StepGiver(o.giver, o.given, in)
	o.given = next
	if out.TryWrite {
		o.keep.Publish()
	}
	o.log.Debug("asked in an outage", zap.String("peer", string(q.From)), zap.String("right", string(q.ID.Right)),
		zap.Duration("promised", out.Answer.Promise), zap.String("code", string(out.Answer.Code)), zap.String("detail", out.Answer.Detail))
	return *out.Answer
}

// known is what stands for or against a promise now. The epoch is the largest
// that a lease was seen with. What is written down here beyond it says nothing:
// a pre-flight makes the next one durable beforehand.
func (o *outage) known(now cluster.Instant) failsafe.GiverInput {
	snap, state := o.dec.snap, o.dec.state
	in := failsafe.GiverInput{
		Now: now, Connected: snap.Live, TakeUnresolved: state.TakeUnresolved(),
		GivenUp: givenUp(snap), Members: failsafe.Members{Nodes: role.Coordinators(snap)}, Fences: o.claim(),
	}
	in.Acked, in.Pending = o.own.now()
	o.see()
	in.Epoch = o.epoch
	if l := snap.Lease; l.Present && l.Err == nil {
		in.Holder = l.Value.Holder
	}
	if state.Mode.Holding() { // also before it is seen
		in.Holder = o.c.Node
	}
	for n, view := range snap.Nodes {
		if view.Fence.Present && (view.Fence.Err != nil || !view.Fence.Value.Ended()) {
			in.Fences = append(in.Fences, n)
		}
	}
	return in
}

// see keeps the largest epoch of a lease.
func (o *outage) see() {
	if l := o.dec.snap.Lease; l.Present && l.Err == nil {
		o.epoch = max(o.epoch, l.Value.Epoch)
	}
	if epoch, _, holds := o.dec.state.Holds(); holds {
		o.epoch = max(o.epoch, epoch)
	}
}

// givenUp is an epoch whose holder was seen to have released the role or handed
// it over itself, which it writes only after all its effects have ended; 0: none.
func givenUp(snap *cluster.Snapshot) cluster.Epoch {
	l, t := snap.Lease, snap.Transition
	switch {
	case !l.Present || l.Err != nil:
	case l.Value.Released():
		return l.Value.Epoch
	case t.Present && t.Err == nil && t.Value.Cause == cluster.CauseSwitch && t.Value.Phase >= cluster.PhaseAddresses &&
		l.Value.Epoch > t.Value.Epoch && l.Value.HeldBy(t.Value.To, t.Value.ToIncarn): // C: a take or resume since would have restamped the record
		return t.Value.Epoch
	}
	return 0
}

// promise is what binds this node in the next step of the role's machine.
func (o *outage) promise(now cluster.Instant) role.Promise {
	if o.peers == nil {
		return role.Promise{}
	}
	o.see()
	o.given, _ = failsafe.StepGiver(o.giver, o.given, failsafe.GiverInput{Now: now, GivenUp: givenUp(o.dec.snap)}) // without a question: what has ended is forgotten
	why := failsafe.MayTake(o.giver, o.given, now)
	if why.Code == "" {
		return role.Promise{}
	}
	return role.Promise{Until: failsafe.Binding(o.giver, o.given), Why: why}
}

// mayFence reports, with an empty code, that no promise of this node keeps it
// from fencing n. Whoever claims a fence notes it (claim) before asking, so that
// none is promised from then on. It is safe for concurrent use.
func (d *decider) mayFence(n cluster.NodeID) cluster.Refusal {
	o := d.outage
	if o.peers == nil {
		return cluster.Refusal{}
	}
	refusal := cluster.Refusal{Code: cluster.RefuseNotRunning, Node: n, Detail: "this daemon does not decide on anything any more"}
	d.call(context.Background(), func(context.Context) { refusal = failsafe.MayFence(o.giver, o.given, n, o.clock.Now()) })
	return refusal
}

// Promised is the end of this node's last promise to another that no fence of it
// is claimed: the watchdog's bound counts from the later of it and the last
// keepalive seen (protocol §6). Never: none, or nodes do not talk directly.
func (a *Agent) Promised(n cluster.NodeID) cluster.Instant {
	o := a.dec.outage
	if o.peers == nil {
		return cluster.Never
	}
	until := cluster.Forever // not known: nothing is counted
	a.dec.call(context.Background(), func(context.Context) { until = failsafe.Promised(o.giver, o.given, n) })
	return until
}

// ---- who asks

// follow steps both askers by what is true now, with at most one answer, and
// returns when to do so again. It runs after each step of the role's machine.
func (o *outage) follow(ctx context.Context, a *failsafe.Answer) cluster.Instant {
	return cluster.Earliest(o.followRole(ctx, a), o.followWork(ctx, a))
}

// of returns the answer if it is for this asker.
func (a *asking) of(answer *failsafe.Answer) *failsafe.Answer {
	if answer == nil || answer.ID.Right != a.c.Right {
		return nil
	}
	return answer
}

func (o *outage) roleInput(now cluster.Instant, r role.Right) failsafe.AskerInput {
	return failsafe.AskerInput{
		Now: now, InUse: true, Sent: r.Sent, Epoch: r.Epoch, TTL: o.c.Timing.RoleTTL, Unresolved: r.Handing,
		Members: failsafe.Members{Nodes: r.Coordinators, IDs: r.IDs},
	}
}

// followRole keeps the primary role beyond its lease.
func (o *outage) followRole(ctx context.Context, answer *failsafe.Answer) cluster.Instant {
	if o.peers == nil || !o.c.Failsafe {
		return cluster.Never
	}
	now := o.clock.Now() // before any question is sent
	right, holds := o.dec.state.Right(o.dec.snap)
	if !holds {
		o.ended(now)
		o.role.s, _ = failsafe.StepAsker(o.role.c, o.role.s, failsafe.AskerInput{Now: now})
		return cluster.Never
	}
	in := o.roleInput(now, right)
	in.Answer = o.role.of(answer)
	next, out := failsafe.StepAsker(o.role.c, o.role.s, in)
	if o.going && right.Sent.After(o.held.Sent) {
		o.going = false
		o.log.Info("the store takes this node's renewals again")
	}
	o.role.s, o.held = next, right
	wake := out.Wake
	if out.End != "" { // the machine drops the role in its next step
		o.tellEnd(out.End)
	}
	if !out.Extend.IsZero() {
		o.goesOn(now, out)
		wake = cluster.Earliest(wake, o.dec.decide(ctx, role.Event{RoleExtended: &role.RoleExtended{Epoch: right.Epoch, Until: out.Extend, Sent: out.ExtendSent}}))
	}
	o.ask(ctx, questionRole, out)
	return wake
}

// goesOn tells people once per outage that the role is kept by the others' word.
func (o *outage) goesOn(now cluster.Instant, out failsafe.AskerOutput) {
	o.log.Debug("the role is extended by promises", zap.Duration("for", out.Extend.Sub(now)))
	if o.going {
		return
	}
	o.going = true
	o.tell(role.Note{Record: true, Kind: "failsafe", Text: fmt.Sprintf(
		"no renewal was acknowledged for %s; every other coordinator has promised not to take the role, and %s goes on as primary by their word",
		now.Sub(o.held.Sent).Round(time.Millisecond), o.c.Node), Fields: map[string]string{"epoch": fmt.Sprint(o.held.Epoch)}})
}

// ended tells why the role that was held at the last look was not extended, if
// its time ran out.
func (o *outage) ended(now cluster.Instant) {
	if o.held.Epoch == 0 {
		return
	}
	if _, out := failsafe.StepAsker(o.role.c, o.role.s, o.roleInput(now, o.held)); out.End != "" {
		o.tellEnd(out.End)
	}
	o.held, o.going = role.Right{}, false
}

func (o *outage) tellEnd(why string) {
	o.tell(role.Note{Record: true, Kind: "failsafe_refused", Text: why, Fields: map[string]string{"epoch": fmt.Sprint(o.held.Epoch)}})
}

// followWork keeps the node's own right, which its guard enforces: Q·K after the
// send of the last acknowledged keepalive, or to the end of the promises. While
// nothing is here that hangs on it nobody is told or asked anything.
func (o *outage) followWork(ctx context.Context, answer *failsafe.Answer) cluster.Instant {
	now := o.clock.Now() // before any question is sent
	in := failsafe.AskerInput{Now: now, InUse: o.copies || o.dec.state.Busy(), Answer: o.work.of(answer)}
	o.busy.Store(in.InUse)
	if in.InUse {
		in.Sent, in.Members = o.begun(now), o.workMembers()
	}
	next, out := failsafe.StepAsker(o.work.c, o.work.s, in)
	o.work.s = next
	switch {
	case !in.InUse:
		o.told = cluster.Never
		o.until.Store(int64(cluster.Never))
		return cluster.Never
	case out.End != "": // the guard, whose deadline this is, ends it at the same instant
		if o.here.Load() || o.dec.state.Busy() {
			o.tell(role.Note{Record: true, Kind: "self_fence", Text: out.End})
		}
		return o.dec.decide(ctx, role.Event{NodeEnded: out.End})
	}
	if next.Until.After(o.told) && !next.Over {
		o.told = next.Until
		o.until.Store(int64(next.Until))
		o.move(cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: nodeEpoch, Deadline: next.Until, Sent: max(in.Sent, out.ExtendSent)})
	}
	o.ask(ctx, questionWork, out)
	return out.Wake
}

// begun is the send instant of the keepalive that carries the node's own right.
// Where nothing has hung on that right yet it does not begin with its end: a
// role that was taken right after a reconnect waits for a fresh keepalive, which
// nodeDeadline has sent before anything of the role is begun. Never: none yet.
func (o *outage) begun(now cluster.Instant) cluster.Instant {
	sent := o.keep.Acked()
	if o.told.IsZero() && !now.Before(sent.Add(o.c.Timing.StopAfter())) {
		return cluster.Never
	}
	return sent
}

// workMembers are those who could fence this node: whoever may be primary.
func (o *outage) workMembers() failsafe.Members {
	if o.peers == nil {
		return failsafe.Members{}
	}
	if r, ok := o.dec.state.Right(o.dec.snap); ok && len(r.Coordinators) > 0 {
		return failsafe.Members{Nodes: r.Coordinators, IDs: r.IDs}
	}
	if o.c.Mode == cluster.Hypervisor {
		return o.taughtMembers()
	}
	all := role.Counted(o.dec.snap)
	return failsafe.Members{Nodes: all.Nodes, IDs: all.IDs}
}

// taughtMembers are the coordinators as a hypervisor was told of them.
func (o *outage) taughtMembers() (m failsafe.Members) {
	all := o.taught.Load()
	if all == nil {
		return m
	}
	for _, n := range slices.Sorted(maps.Keys(*all)) {
		m.Nodes = append(m.Nodes, n)
		if id := (*all)[n].ID; id != "" {
			if m.IDs == nil {
				m.IDs = map[cluster.NodeID]string{}
			}
			m.IDs[n] = id
		}
	}
	return m
}

// ask sends a question to all at once, each in a goroutine of its own and for at
// most 0.3 K. Its send instant was read before.
func (o *outage) ask(ctx context.Context, kind string, out failsafe.AskerOutput) {
	if out.Ask == nil {
		return
	}
	q := *out.Ask
	body, err := json.Marshal(q)
	if err != nil { // cannot happen for names and numbers
		o.log.Error("a question cannot be encoded", zap.Error(err))
		return
	}
	for _, n := range out.To {
		o.spawn(func() {
			ask, cancel := context.WithTimeout(ctx, o.c.Timing.KeepaliveInterval*3/10)
			raw, err := o.peers.Ask(ask, n, kind, body)
			cancel()
			answer := heard(q, n, raw, err)
			o.dec.call(ctx, func(ctx context.Context) { o.follow(ctx, &answer) })
		})
	}
}

// heard reads an answer; none is a refusal with its reason. Who it is from is
// who was asked.
func heard(q failsafe.Question, from cluster.NodeID, raw []byte, err error) failsafe.Answer {
	var a failsafe.Answer
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	if err != nil {
		a = failsafe.Answer{ID: q.ID, Code: cluster.RefuseNoAnswer, Detail: err.Error()}
	}
	a.From = from
	return a
}

// acknowledged takes in that a keepalive was acknowledged. It does not block.
func (o *outage) acknowledged(cluster.Instant) {
	poke(o.fresh)
	if o.busy.Load() {
		poke(o.dec.pokes)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// nodeDeadline is the node's own deadline, for a role that is about to begin
// here. Where no keepalive was acknowledged for Q·K it has one sent and waits
// for it, at most until ctx ends. It is safe for concurrent use.
func (o *outage) nodeDeadline(ctx context.Context) (cluster.RoleDeadline, error) {
	for {
		sent := o.keep.Acked()
		until := max(sent.Add(o.c.Timing.StopAfter()), cluster.Instant(o.until.Load()))
		if !sent.IsZero() && until.After(o.clock.Now()) {
			return cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: nodeEpoch, Deadline: until, Sent: sent}, nil
		}
		o.keep.Publish()
		select {
		case <-o.fresh:
		case <-ctx.Done():
			return cluster.RoleDeadline{}, fmt.Errorf("no keepalive of this node was acknowledged for %s: %w", o.c.Timing.StopAfter(), cluster.ErrDeadline)
		}
	}
}

// writes is a Store that notes how this node's own writes fare: whether the
// store takes them is what another coordinator asks for.
type writes struct {
	Store
	clock cluster.Clock

	mu      sync.Mutex
	next    uint64
	pending map[uint64]cluster.Instant // send instants of those without an answer
	acked   cluster.Instant            // when the last answer came
}

func watchWrites(s Store, clock cluster.Clock) *writes {
	return &writes{Store: s, clock: clock, pending: map[uint64]cluster.Instant{}}
}

// Commit implements Store.
func (w *writes) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	w.mu.Lock()
	w.next++
	id := w.next
	w.pending[id] = w.clock.Now()
	w.mu.Unlock()
	r := w.Store.Commit(ctx, t)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pending, id)
	switch r.Outcome {
	case cluster.OutcomeOK, cluster.OutcomeConflict, cluster.OutcomeRefused: // the servers have spoken
		w.acked = w.clock.Now()
	}
	return r
}

// now returns when a write was last answered, and when the oldest one without
// an answer was sent; Never: none.
func (w *writes) now() (acked, pending cluster.Instant) {
	if w == nil {
		return cluster.Never, cluster.Never
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, sent := range w.pending {
		pending = cluster.Earliest(pending, sent)
	}
	return w.acked, pending
}
