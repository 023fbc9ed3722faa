package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/janitor"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// The times and bounds of a pass.
const (
	// passRounds is how often a pass begins anew, after its writes or a conflict,
	// before it is left to the next one.
	passRounds = 8
	// passGap is from the end of a pass to one that is asked for, times the passes in
	// a row that were: a copy that crashes again and again has one pass a second (J14).
	passGap    = 100 * time.Millisecond
	passGapMax = time.Second
	// observeLimit is how long a new primary's first pass waits for answers, and any
	// pass for those of a node that was silent in the last.
	observeLimit = 1500 * time.Millisecond
	// observeTries is how many first passes may fail before the tasks go on without.
	observeTries = 3
	// recordCatchUp is how long the snapshot may take to show what a write met.
	recordCatchUp = time.Second
)

// janitorPass is the janitor's pass as a task of the primary's loop: an activity of
// the quorum majority, each 5 s and at once on hints.
//
//	snapshot ─▶ plan ─▶ write what must be there before anybody is asked ─▶ anew
//	    ▲         └─▶ ask all copies ─▶ plan ─▶ write chains and count: one Multi ─▶ anew
//	    └── conflict, unknown ──┘         └─▶ apply each workload (all of its members)
//	                                             └─▶ states, answers: where changed
//
// What a pass keeps for the next is a convenience: the next primary begins with
// records alone.
type janitorPass struct {
	w *workloadWatch

	// of the pass that runs, or of the loop's goroutine while none does
	state    janitor.State
	id       string                    // of a pass whose write had no known reply; "": none
	mute     map[cluster.NodeID]bool   // who was silent in the last pass
	failures int                       // passes in a row since the role began that have failed
	streak   int                       // passes in a row that were asked for
	proofs   map[cluster.NodeID]string // dead-proofs that it knew, by their fences
	begun    cluster.Instant
	asked    bool // the running one was asked for

	failing sync.Mutex
	failed  map[string]string // why the last apply of a workload has failed; under failing

	found   atomic.Pointer[passFound]
	looked  atomic.Pointer[passLook] // of the newest pass that was not interrupted
	trouble atomic.Pointer[string]   // why the newest pass did not come to its end; nil: it did
	counts  passCounts
}

// passLook is when a pass began, and what it left alone since that was in hand.
type passLook struct {
	begun cluster.Instant
	busy  map[string]bool
}

// hasLooked reports whether a pass that began after the instant has looked at the
// workload and is over.
func (p *janitorPass) hasLooked(workload string, since cluster.Instant) bool {
	l := p.looked.Load()
	return l != nil && since.Before(l.begun) && !l.busy[workload]
}

// passFound is what the latest pass has found. It is never edited.
type passFound struct {
	at       cluster.Instant
	faults   map[string]string // that stand, by janitor.FaultKey
	refusals []cluster.Refusal
	last     map[cluster.NodeID]string // whose loss would be that of a last copy, and of what
}

func newJanitorPass(w *workloadWatch) *janitorPass { return &janitorPass{w: w} }

// reign forgets what belonged to an earlier role.
func (p *janitorPass) reign() {
	p.state, p.id, p.mute, p.failures, p.streak = janitor.State{}, "", nil, 0, 0
	p.failed = nil
	p.found.Store(nil)
	p.looked.Store(nil)
	p.trouble.Store(nil)
}

func (p *janitorPass) name() string { return "janitor" }

func (p *janitorPass) urgent() bool { return false }

// due reports whether a pass is to run now: where there is something to look after,
// and a majority is held.
func (p *janitorPass) due(snap *cluster.Snapshot, now cluster.Instant) bool {
	if !p.hasWork(snap) || p.w.unheld() != "" {
		return false
	}
	return !now.Before(p.at(snap))
}

// at is when the next pass may run: at once where one is asked for, but that they
// do not follow each other without a pause.
func (p *janitorPass) at(snap *cluster.Snapshot) cluster.Instant {
	if !p.w.wanted.Load() && !probed(snap) && !unseen(snap) && !p.bereft(snap) {
		return p.w.next
	}
	return cluster.Earliest(p.w.next, p.w.passed.Add(min(time.Duration(p.streak)*passGap, passGapMax)))
}

// hasWork reports whether there is a workload that passes look after, or one that
// somebody asks about.
func (p *janitorPass) hasWork(snap *cluster.Snapshot) bool {
	for _, v := range snap.Workloads {
		if v.Err != nil || v.Value.Kind == cluster.WorkloadReplicated || isProbe(v.Value.Request) {
			return true
		}
	}
	return p.standing() // what stands is taken back by a pass that finds nothing
}

// standing reports whether faults stand.
func (p *janitorPass) standing() bool {
	f := p.found.Load()
	return f != nil && len(f.faults) > 0
}

// unseen reports whether there is a workload that no pass has looked at yet: who has
// added it waits for it.
func unseen(snap *cluster.Snapshot) bool {
	for _, v := range snap.Workloads {
		if v.Present && v.Err == nil && v.Value.Kind == cluster.WorkloadReplicated && v.Value.State == cluster.WorkloadNew && v.Value.Wanted {
			return true
		}
	}
	return false
}

// bereft reports whether the node of a chain's head was proven dead since the newest
// pass began: its replica serves at once then, and before the node is back, whose copy
// would be taken for one that came back empty, and counted.
func (p *janitorPass) bereft(snap *cluster.Snapshot) bool {
	for _, v := range snap.Workloads {
		if v.Value.Kind == cluster.WorkloadReplicated && v.Value.Wanted && bereft(snap, v, p.proofs) {
			return true
		}
	}
	return false
}

// bereft reports whether the node of the workload's head is proven dead by a fence
// that is not among those that were known.
func bereft(snap *cluster.Snapshot, v cluster.Versioned[cluster.Workload], known map[cluster.NodeID]string) bool {
	if !v.Present || v.Err != nil {
		return false
	}
	n := v.Value.Head()
	return n != cluster.NoCopy && placement.Proven(snap.Nodes[n]) && known[n] != snap.Nodes[n].Fence.Value.ID
}

// provenBy are the nodes that are proven dead, with the fence that has proven it.
func provenBy(snap *cluster.Snapshot) map[cluster.NodeID]string {
	proofs := map[cluster.NodeID]string{}
	for n, v := range snap.Nodes {
		if placement.Proven(v) {
			proofs[n] = v.Fence.Value.ID
		}
	}
	return proofs
}

// probed reports whether an operator waits for a pass.
func probed(snap *cluster.Snapshot) bool {
	for _, v := range snap.Workloads {
		if v.Err == nil && isProbe(v.Value.Request) {
			return true
		}
	}
	return false
}

func isProbe(r *cluster.WorkloadRequest) bool { return r != nil && r.Op == cluster.WorkloadProbe }

// run runs one pass. Whoever waits for it is answered: by the pass itself, or here,
// once, where it was ended or has failed (S109, S113).
func (p *janitorPass) run(ctx context.Context) error {
	w := p.w
	p.asked, p.begun = w.wanted.Swap(false), w.d.Clock.Now()
	r := &passRun{p: p, snap: w.newest(), observe: !w.observed, busy: map[string]bool{}}
	p.asked = p.asked || probed(r.snap) || unseen(r.snap) || p.bereft(r.snap)
	p.proofs = provenBy(r.snap)
	if !p.hasWork(r.snap) {
		return nil
	}
	spec := activity.Spec{Name: p.name(), Quorum: cluster.Majority(), Timeout: -1, Quiet: true}
	if r.observe { // the first leases are being asked for
		spec.Timeout = workloadEvery
	}
	err := w.acts.Run(ctx, spec, func(ctx context.Context, a *activity.Activity) error {
		r.act, r.epoch = a, a.Token().Epoch()
		return r.body(ctx)
	})
	if !interrupted(err) {
		p.looked.Store(&passLook{p.begun, r.busy})
	}
	p.counts.ended(err, p.w.d.Clock.Now(), w.d.Clock.Now().Sub(p.begun))
	var no *cluster.RefusedActivity
	if errors.As(err, &no) && no.Code == cluster.RefuseDomainConflict {
		w.again() // nobody was asked: as soon as the domain is free
	}
	if err != nil && !errors.As(err, &no) {
		r.tellWaiters(err)
	}
	return err
}

// over takes in how the last pass has ended, in the loop's goroutine.
func (p *janitorPass) over(err error) (observed bool) {
	switch {
	case !p.asked:
		p.streak = 0
	case err == nil:
		p.streak++
	}
	if p.failures++; err == nil {
		p.failures = 0
		p.trouble.Store(nil)
	} else {
		why := err.Error()
		p.trouble.Store(&why)
	}
	return err == nil || p.failures >= observeTries
}

// passRun is one pass. One goroutine runs it; those that apply use what they are
// given only.
type passRun struct {
	p       *janitorPass
	act     *activity.Activity
	epoch   cluster.Epoch
	snap    *cluster.Snapshot // as seen, with this pass's own writes in it
	observe bool              // ask only

	state    janitor.State
	reports  map[string]map[cluster.NodeID]cluster.CopyReport
	silent   map[cluster.NodeID]string
	refusals []cluster.Refusal
	busy     map[string]bool // what was left alone in any round, being in hand
	applied  map[string]bool // once a pass: what does not help then is left to the next (J14)
}

// body is the pass: rounds until one has nothing to begin anew for.
func (r *passRun) body(ctx context.Context) error {
	r.state, r.applied = r.p.state, map[string]bool{}
	for range passRounds {
		r.state.Told = alsoTold(r.state.Told, r.snap)
		again, err := r.round(ctx)
		if err != nil || !again {
			return err
		}
		if err := r.act.Token().Check(); err != nil {
			return err
		}
	}
	return fmt.Errorf("the janitor's pass began anew %d times and left the rest to the next one", passRounds)
}

// round is one look from the beginning. Again: it is to begin anew, since what is
// planned beyond its writes rests on chains that are written now, something else was
// written meanwhile, or copies are others than were found.
func (r *passRun) round(ctx context.Context) (again bool, err error) {
	known := r.known()
	if !r.observe {
		state, actions, _ := janitor.Plan(r.state, known, r.snap, r.wall())
		if plan := sorted(actions); len(plan.writes) > 0 {
			_, err := r.commit(ctx, plan, state, known.Pass)
			return true, err
		}
	}
	if err := r.query(ctx); err != nil {
		return false, err
	}
	known.Queried, known.Reports, known.Silent = true, r.reports, r.silent
	state, actions, refusals := janitor.Plan(r.state, known, r.snap, r.wall())
	r.refusals = refusals
	if r.observe {
		r.publish()
		return false, nil
	}
	plan := sorted(actions)
	plan.applies = slices.DeleteFunc(plan.applies, func(a janitor.Action) bool { return r.applied[a.Workload] })
	done, err := r.commit(ctx, plan, state, known.Pass)
	if err != nil || !done || plan.again {
		return true, err
	}
	r.publish()
	if len(plan.applies) > 0 {
		r.apply(ctx, plan.applies)
		return true, context.Cause(ctx)
	}
	r.answer(ctx)
	return false, nil
}

func (r *passRun) wall() time.Time { return time.UnixMilli(r.p.w.c.WallMS()) }

// known is what a plan rests on before anybody is asked.
func (r *passRun) known() janitor.Known {
	id := r.p.id
	if id == "" {
		id = rand.Text()
	}
	busy := r.p.w.hand.pass()
	maps.Copy(r.busy, busy)
	k := janitor.Known{Pass: id, Epoch: r.epoch, Failed: r.p.failedApplies(), Busy: busy, Gone: map[cluster.NodeID]bool{}, FailingOver: map[cluster.NodeID]bool{}}
	for _, n := range registeredNodes(r.snap) {
		switch {
		case placement.Proven(r.snap.Nodes[n]):
			k.Gone[n] = true
		case failingOver(r.snap, n):
			k.FailingOver[n] = true
		case givenCopies(r.snap, n):
			k.Active = append(k.Active, n)
		}
	}
	return k
}

// givenCopies reports whether the member may be given copies: it is not drained, nor
// about to be, and its copies are not ending. Whether it answers is asked.
func givenCopies(snap *cluster.Snapshot, n cluster.NodeID) bool {
	if snap.Nodes[n].Settles() {
		return false
	}
	switch snap.Nodes[n].Domain.Value {
	case cluster.DomainFlush, cluster.DomainFlushed, cluster.DomainFenceFlush:
		return false
	}
	return true
}

// passPlan is a plan by the kinds of its actions.
type passPlan struct {
	writes, applies, faults []janitor.Action
	again                   bool
}

func sorted(actions []janitor.Action) (p passPlan) {
	for _, a := range actions {
		switch a.Kind {
		case janitor.ActionWrite:
			p.writes = append(p.writes, a)
		case janitor.ActionApply:
			p.applies = append(p.applies, a)
		case janitor.ActionFault:
			p.faults = append(p.faults, a)
		case janitor.ActionAgain:
			p.again = true
		}
	}
	return p
}

// query asks every node that may have a copy for all of them, at once. A node that
// has no session, or is being fenced, is not waited for, and one that was silent in
// the last pass not for long.
func (r *passRun) query(ctx context.Context) error {
	ask := r.questions()
	quick, patient := map[cluster.NodeID][]cluster.Workload{}, map[cluster.NodeID][]cluster.Workload{}
	r.reports, r.silent = map[string]map[cluster.NodeID]cluster.CopyReport{}, map[cluster.NodeID]string{}
	for n, list := range ask {
		switch alive := r.snap.Nodes[n].Alive; {
		case failingOver(r.snap, n):
			r.silent[n] = "it is being fenced"
		case !alive.Present || alive.Err != nil:
			r.silent[n] = "it is not alive"
		case r.observe || r.p.mute[n]:
			quick[n] = list
		default:
			patient[n] = list
		}
	}
	type answer struct {
		reports map[string]map[cluster.NodeID]cluster.CopyReport
		silent  map[cluster.NodeID]string
	}
	answers, groups := make(chan answer, 2), 0
	for limit, group := range map[time.Duration]map[cluster.NodeID][]cluster.Workload{observeLimit: quick, 2 * workloadEvery: patient} {
		if len(group) == 0 {
			continue
		}
		groups++
		if err := r.act.Go("query", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			var a answer
			a.reports, a.silent = r.p.w.copies.Query(ctx, group)
			answers <- a
			return nil
		}); err != nil {
			return err
		}
	}
	for range groups {
		select {
		case a := <-answers:
			for name, by := range a.reports {
				for n, report := range by {
					r.enter(name, n, report)
				}
			}
			for n, why := range a.silent {
				r.silent[n] = why
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	r.p.mute = map[cluster.NodeID]bool{}
	for n := range r.silent {
		r.p.mute[n] = true
	}
	return nil
}

// enter notes a report.
func (r *passRun) enter(name string, n cluster.NodeID, report cluster.CopyReport) {
	if r.reports[name] == nil {
		r.reports[name] = map[cluster.NodeID]cluster.CopyReport{}
	}
	r.reports[name][n] = report
}

// questions are whom to ask for which workloads: all nodes that may have a copy of a
// replicated one; of a movable one, where somebody asks, where it is to run.
func (r *passRun) questions() map[cluster.NodeID][]cluster.Workload {
	ask := map[cluster.NodeID][]cluster.Workload{}
	for _, v := range r.snap.Workloads {
		w := v.Value
		if v.Err != nil || w.Kind == cluster.WorkloadMovable && !isProbe(w.Request) {
			continue
		}
		for _, n := range askedOf(w) {
			if view, there := r.snap.Nodes[n]; there && view.Record.Present && !placement.Proven(view) {
				ask[n] = append(ask[n], w)
			}
		}
	}
	return ask
}

// publish makes known what was found, for whoever asks about faults or fences.
func (r *passRun) publish() {
	r.p.found.Store(&passFound{at: r.p.w.d.Clock.Now(), faults: r.state.Told, refusals: r.refusals,
		last: lastCopies(r.snap, r.reports, r.silent)})
}

// tellWaiters answers those who wait for a pass that did not come to its end, once:
// the request goes with the answer, and the next pass has the workload again.
func (r *passRun) tellWaiters(why error) {
	w := r.p.w
	text := fmt.Sprintf("janitor_failed: the pass has failed, the workload is as it was, and the next pass comes in %s at the latest: %v", workloadEvery, why)
	if interrupted(why) {
		text = fmt.Sprintf("interrupted: the pass was ended for something more urgent, the workload is as it was; ask again: %v", why)
	}
	var ops []cluster.Op
	for name, v := range r.snap.Workloads {
		if v.Err != nil || !isProbe(v.Value.Request) {
			continue
		}
		ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyWorkload, Name: name}, v.Version, answered(v.Value, r.epoch, w.c.WallMS(), false, text)))
	}
	lead := w.term()
	if len(ops) == 0 || lead == nil || r.epoch == 0 {
		return
	}
	res := writeUnderRole(lead, w.c, w.d, w.status().Snapshot, r.epoch, func() error { return context.Cause(lead) }, "workloads.answer", ops)
	if res.Outcome != cluster.OutcomeOK {
		w.d.Log.Debug("whoever waits for a pass was not told of its end", zap.Stringer("outcome", res.Outcome), zap.Error(res.Err))
	}
}

// answered is the record with its request answered.
func answered(w cluster.Workload, epoch cluster.Epoch, ms int64, done bool, text string) cluster.Workload {
	w = w.Clone()
	w.Answer = &cluster.WorkloadAnswer{ID: w.Request.ID, Done: done, Text: text, AtMS: ms, Epoch: epoch}
	w.Request = nil
	return w
}
