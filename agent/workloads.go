package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// The times of the primary's work on workloads.
const (
	// workloadEvery is from the end of one janitor's pass to the next, where nothing
	// asks for one at once.
	workloadEvery = 5 * time.Second
	// workloadStep is how often the loop looks at most: what comes meanwhile is one
	// look, and bursts of hints are one pass (J15).
	workloadStep = 50 * time.Millisecond
	// workloadPatience is how long a new primary waits for its first majority of node
	// leases before its first pass is tried, and may fail, without one.
	workloadPatience = 15 * time.Second
	// workloadRetry is how long a task that has failed is left alone.
	workloadRetry = time.Second
)

// errSwitching ends all work where the role is being handed over.
var errSwitching = fmt.Errorf("the primary role is being handed over: %w", cluster.ErrLeadershipLost)

// interrupted reports whether work was ended for something else, and has not failed.
func interrupted(err error) bool {
	var preempted *cluster.Preempted
	return errors.As(err, &preempted) || errors.Is(err, errNotPrimary) || errors.Is(err, cluster.ErrLeadershipLost)
}

// workloadTask is one kind of work of the primary on workloads. The loop runs one
// at a time: the janitor's pass, then the tasks in the order in which they were
// given. A run does a bounded piece (one recovery batch, one request, one move) and
// returns; as long as it is due it is run again, after a janitor's pass where one is
// due. What is done with one workload it begins as work in hand, and waits for that a
// moment (workInHand); the rest it does as activities, under the context, which ends with a
// *cluster.Preempted, errSwitching or errNotPrimary as its cause (see interrupted).
type workloadTask interface {
	name() string
	// due looks at the snapshot only, often, and never waits.
	due(snap *cluster.Snapshot, now cluster.Instant) bool
	// run does one piece. An error is logged, and the task left alone for a second.
	run(ctx context.Context) error
	// urgent reports that what is due now interrupts a janitor's pass, every task that
	// is not urgent itself, and those that are and come after it.
	urgent() bool
}

// copyAsker carries questions and orders about copies to their nodes (*copyRounds).
type copyAsker interface {
	Query(ctx context.Context, ask map[cluster.NodeID][]cluster.Workload) (reports map[string]map[cluster.NodeID]cluster.CopyReport, silent map[cluster.NodeID]string)
	Order(ctx context.Context, t cluster.Token, n cluster.NodeID, o cluster.CopyOrder) (cluster.CopyReport, error)
	Hints() <-chan cluster.CopyChange
}

// workloadWatch is the primary's loop over all that has to do with workloads. One
// goroutine owns it; one piece of work at a time runs in another, under the role's
// context, what is in hand beside it, and the loop waits for both before the role is
// over: no work outlives its role. A planned switch ends what runs as soon as it begins.
//
//	idle ─▶ observing ─▶ janitor's pass ─▶ tasks, in order ─▶ idle
//	          (first pass of a role: it asks and writes nothing)
//	any ─▶ role lost, or being handed over: work ended, waited for ─▶ idle
type workloadWatch struct {
	c      Config
	d      Deps
	status func() Status
	acts   admitting
	copies copyAsker
	hand   *workInHand
	notes  *notices
	pass   *janitorPass
	strays *strays
	tasks  []workloadTask // set before run
	// hears are told of each hint, by the loop, before tasks are asked whether they
	// are due; none blocks. Set before run.
	hears []func(cluster.CopyChange)
	// reigns are called when a role begins, before anything is asked or done. Set before run.
	reigns []func()
	// majority says why a majority of the node leases is not held; empty: it is. It
	// does not block. nil: nothing is known of that.
	majority func() string

	pokes  chan struct{}
	wanted atomic.Bool // somebody asks for a pass at once
	leads  atomic.Pointer[leadTerm]
	role   atomic.Pointer[context.Context]  // lead, for who is not the loop; nil while there is none
	seen   atomic.Pointer[cluster.Snapshot] // the newest that the loop has got
	since  instant                          // when the role began

	// run's own
	snap     *cluster.Snapshot
	lead     context.Context // while this node is primary; nil otherwise
	endLead  context.CancelCauseFunc
	epoch    cluster.Epoch
	observed bool // the role's first pass is over
	next     cluster.Instant
	passed   cluster.Instant            // when the last pass ended
	held     map[string]cluster.Instant // tasks that have failed, until when they are left alone
	current  *workloadRun
	work     sync.WaitGroup
	done     chan *workloadRun
}

// leadTerm is one unbroken time of this node as primary; epoch 0: as none.
type leadTerm struct{ epoch cluster.Epoch }

// workloadRun is the piece of work that runs.
type workloadRun struct {
	task   workloadTask
	cancel context.CancelCauseFunc
	err    error
}

// newWorkloadWatch makes it; it starts nothing. It is made only where node leases
// are in use. tasks are the kinds of work beside the janitor's pass, in order.
func newWorkloadWatch(c Config, d Deps, status func() Status, acts admitting, copies copyAsker) *workloadWatch {
	w := &workloadWatch{c: c, d: d, status: status, acts: acts, copies: copies, pokes: make(chan struct{}, 1), done: make(chan *workloadRun, 1),
		held: map[string]cluster.Instant{}}
	w.hand, w.notes, w.pass = newWorkInHand(w), newNotices(w), newJanitorPass(w)
	w.strays = newStrays(w)
	w.tasks = []workloadTask{&reprovisionReset{w}, w.strays}
	w.leads.Store(&leadTerm{})
	return w
}

// add gives the loop its further tasks, in the order in which they are run; before
// run only.
func (w *workloadWatch) add(tasks ...workloadTask) { w.tasks = append(w.tasks, tasks...) }

// unheld says why a majority of the node leases is not held now; empty: it is.
func (w *workloadWatch) unheld() string {
	if w.majority == nil {
		return ""
	}
	return w.majority()
}

// term is the context of the role while this node has it; nil else.
func (w *workloadWatch) term() context.Context {
	if lead := w.role.Load(); lead != nil {
		return *lead
	}
	return nil
}

// follow is told the role's state by the decider after each of its steps. It does
// not block.
func (w *workloadWatch) follow(s role.State) {
	if w == nil {
		return
	}
	epoch, _, _ := s.Holds()
	if !s.Leads() {
		epoch = 0
	}
	if w.leads.Load().epoch == epoch {
		return
	}
	w.leads.Store(&leadTerm{epoch})
	poke(w.pokes)
}

// again asks for a janitor's pass at once; several such wishes are one pass. It
// does not block.
func (w *workloadWatch) again() {
	w.wanted.Store(true)
	poke(w.pokes)
}

// run works while this node is primary, until ctx ends.
func (w *workloadWatch) run(ctx context.Context) {
	snapshots, unsubscribe := w.d.Store.Subscribe()
	defer unsubscribe()
	defer w.notes.running.Wait() // which only work in hand begins
	defer w.hand.running.Wait()  // which only work begins
	defer w.work.Wait()
	defer w.lose(errNotPrimary)
	timer := time.NewTimer(workloadEvery)
	defer timer.Stop()
	var looked cluster.Instant
	for {
		select {
		case <-ctx.Done():
			return
		case snap := <-snapshots:
			if snap == nil {
				continue
			}
			w.snap = snap
			w.seen.Store(snap)
			if w.lead == nil && w.leads.Load().epoch == 0 { // follow wakes this loop where that changes
				continue
			}
			if since := w.d.Clock.Now().Sub(looked); since < workloadStep {
				timer.Reset(workloadStep - since)
				continue
			}
		case r := <-w.done:
			w.ended(r)
		case hint := <-w.copies.Hints():
			w.hinted(hint)
		case <-w.pokes:
		case <-timer.C:
		}
		timer.Reset(w.step(ctx))
		looked = w.d.Clock.Now()
	}
}

// newest is the newest snapshot that anybody here has got.
func (w *workloadWatch) newest() *cluster.Snapshot {
	snap := w.status().Snapshot
	if seen := w.seen.Load(); seen != nil && seen.ObservedAt > snap.ObservedAt {
		return seen
	}
	return snap
}

// hinted notes that a copy may have changed outside an order.
func (w *workloadWatch) hinted(h cluster.CopyChange) {
	w.d.Log.Debug("a copy has changed outside an order", zap.String("peer", string(h.Node)), zap.String("workload", h.Workload), zap.String("text", h.Text))
	for _, hear := range w.hears {
		hear(h)
	}
	if w.snap != nil && w.snap.Workloads[h.Workload].Value.Kind == cluster.WorkloadMovable {
		return // no pass looks after it
	}
	w.wanted.Store(true)
}

// step begins what is due, ends what must not go on, and returns when to look again.
func (w *workloadWatch) step(ctx context.Context) time.Duration {
	w.followRole(ctx)
	if w.lead == nil || w.snap == nil || !w.snap.Live || !w.snap.Complete {
		return workloadEvery
	}
	now := w.d.Clock.Now()
	w.hand.review(w.newest())
	if w.current != nil {
		w.interrupt(now)
		return workloadEvery
	}
	if t := w.pick(now); t != nil {
		w.begin(t)
		return workloadEvery
	}
	return w.wake(now)
}

// wake is how long until something may be due that no event tells of.
func (w *workloadWatch) wake(now cluster.Instant) time.Duration {
	at := w.next
	if w.observed && w.pass.hasWork(w.snap) {
		at = w.pass.at(w.snap)
	} else if w.observed {
		at = now.Add(workloadEvery)
	}
	for _, until := range w.held {
		at = cluster.Earliest(at, until)
	}
	for _, t := range w.tasks {
		if t, is := t.(interface {
			wake(now cluster.Instant) cluster.Instant
		}); is {
			at = cluster.Earliest(at, t.wake(now))
		}
	}
	for !now.Before(at) { // it is due by its time, and waits for something else
		at = now.Add(workloadRetry / 4)
	}
	return max(at.Sub(now), workloadStep)
}

// followRole begins and ends with the role. While it is being handed over there is
// no work, as if it were lost already.
func (w *workloadWatch) followRole(ctx context.Context) {
	epoch := w.leads.Load().epoch
	if w.lead != nil && epoch != w.epoch {
		w.lose(errNotPrimary)
	}
	if w.lead != nil && w.switching() {
		w.lose(errSwitching)
	}
	if w.lead != nil || epoch == 0 || w.current != nil || !w.hand.empty() || w.switching() {
		return
	}
	lead, end := context.WithCancelCause(ctx)
	w.lead, w.endLead = lead, end
	w.epoch, w.observed, w.next = epoch, false, w.d.Clock.Now()
	w.since.set(w.next)
	clear(w.held)
	w.pass.reign()
	w.strays.reign()
	for _, begin := range w.reigns {
		begin()
	}
	w.role.Store(&lead)
}

// switching reports whether a planned switch away from this node runs.
func (w *workloadWatch) switching() bool {
	if w.snap == nil || !w.snap.Transition.Present {
		return false
	}
	t := w.snap.Transition.Value
	return t.Running() && t.From == w.c.Node && t.To != w.c.Node
}

// lose ends what runs with the role.
func (w *workloadWatch) lose(why error) {
	if w.endLead != nil {
		w.endLead(why)
	}
	w.lead, w.endLead, w.epoch = nil, nil, 0
	w.role.Store(nil)
}

// interrupt ends what runs for something more urgent that is due: what is urgent for
// what is not, and for what is but comes after it. Work in hand goes on by itself.
func (w *workloadWatch) interrupt(now cluster.Instant) {
	for _, t := range w.tasks {
		if t == w.current.task && t.urgent() {
			return
		}
		if t.urgent() && !now.Before(w.held[t.name()]) && t.due(w.snap, now) {
			w.current.cancel(&cluster.Preempted{Name: t.name()})
			return
		}
	}
}

// pick is what is to run next; nil: nothing is due. Until the role's first pass is
// over nothing else is: what the records say may be older than what nodes have (J20).
func (w *workloadWatch) pick(now cluster.Instant) workloadTask {
	if !w.observed {
		if now.Before(w.next) || now.Before(w.held[w.pass.name()]) || w.unheld() != "" && now.Sub(w.since.at()) < workloadPatience {
			return nil
		}
		return w.pass
	}
	ready := func(t workloadTask) bool { return !now.Before(w.held[t.name()]) && t.due(w.snap, now) }
	for _, t := range w.tasks {
		if t.urgent() && ready(t) {
			return t
		}
	}
	if ready(w.pass) {
		return w.pass
	}
	for _, t := range w.tasks {
		if ready(t) {
			return t
		}
	}
	return nil
}

// begin runs one piece beside the loop. One that panics has failed, and the loop
// goes on (S113).
func (w *workloadWatch) begin(t workloadTask) {
	ctx, cancel := context.WithCancelCause(w.lead)
	r := &workloadRun{task: t, cancel: cancel}
	w.current = r
	w.work.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("%s has crashed: %v\n%s", t.name(), p, debug.Stack())
			}
			cancel(nil)
			w.done <- r // one slot, one run
		}()
		r.err = t.run(ctx)
	})
}

// ended takes in that the piece of work is over.
func (w *workloadWatch) ended(r *workloadRun) {
	w.current = nil
	now := w.d.Clock.Now()
	if r.task == workloadTask(w.pass) {
		w.passEnded(r.err, now)
	}
	delete(w.held, r.task.name())
	var no *cluster.RefusedActivity
	switch {
	case r.err == nil:
	case interrupted(r.err):
		w.d.Log.Debug("work on workloads was ended", zap.String("task", r.task.name()), zap.Error(r.err))
	case errors.As(r.err, &no) && no.Code == cluster.RefuseDomainConflict: // for as long as a fence takes
		w.held[r.task.name()] = now.Add(workloadRetry / 4)
	default:
		w.held[r.task.name()] = now.Add(workloadRetry)
		w.d.Log.Info("work on workloads has failed; it is tried again", zap.String("task", r.task.name()), zap.Error(r.err))
	}
}

// passEnded says when the next pass is due. The one that only observed is soon
// followed by one that acts; one that was interrupted is gone on with at once, after
// what has interrupted it.
func (w *workloadWatch) passEnded(err error, now cluster.Instant) {
	w.passed = now
	done := w.pass.over(err)
	switch {
	case w.lead == nil:
	case !w.observed:
		w.observed, w.next = done, now.Add(w.c.Timing.KeepaliveInterval)
	case interrupted(err):
		w.next = now
	default:
		w.next = now.Add(workloadEvery)
	}
}
