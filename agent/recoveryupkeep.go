package agent

import (
	"context"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// upkeepTask keeps movable workloads as their records want them: placement.Upkeep
// says what each needs from what its nodes say. A look asks the nodes and changes
// nothing; only where something is to be done does it run as an activity.
type upkeepTask struct {
	m     *moves
	next  cluster.Instant
	tried map[string]int32 // versions of new workloads that were looked at
}

func (t *upkeepTask) name() string { return "movable" }

func (t *upkeepTask) urgent() bool { return false }

// due: each 5 s, and at once where a record is new, or a copy has changed.
func (t *upkeepTask) due(snap *cluster.Snapshot, now cluster.Instant) bool {
	any := false
	for name, v := range snap.Workloads {
		if v.Err != nil || !v.Present || v.Value.Kind != cluster.WorkloadMovable && v.Value.Next == nil {
			continue
		}
		any = true
		if v.Value.Kind != cluster.WorkloadMovable {
			continue
		}
		if seen, is := t.tried[name]; v.Value.State == cluster.WorkloadNew && (!is || seen != v.Version) {
			return true
		}
		if t.m.bereftLive(snap, v.Value) {
			return true
		}
	}
	return any && (t.m.hinted.Load() || !now.Before(t.next))
}

// wake is when something of all moves may be due that no event tells of.
func (t *upkeepTask) wake(now cluster.Instant) cluster.Instant {
	at := t.m.wake(now)
	if now.Before(t.next) {
		at = cluster.Earliest(at, t.next)
	}
	return at
}

// found is one workload with what it needs.
type found struct {
	r    movesRecord
	step placement.Step
}

func (t *upkeepTask) run(ctx context.Context) error {
	m := t.m
	m.hinted.Store(false)
	snap := m.snapshot()
	all := m.records(snap)
	var halfway []movesRecord
	for _, r := range all {
		if r.w.Kind == cluster.WorkloadReplicated && r.w.Next != nil && r.w.Request == nil && !m.busy(r.w.Name) && m.abandoned(r) {
			halfway = append(halfway, r)
		}
	}
	list := slices.DeleteFunc(all, func(r movesRecord) bool { return r.w.Kind != cluster.WorkloadMovable || m.busy(r.w.Name) })
	t.tried = map[string]int32{}
	for _, r := range list {
		t.tried[r.w.Name] = r.version
	}
	var reports map[string]map[cluster.NodeID]cluster.CopyReport
	if len(list) > 0 {
		if err := m.yielding(ctx, func(ctx context.Context) error {
			reports = m.look(ctx, snap, list)
			return context.Cause(ctx)
		}); err != nil {
			return err
		}
	}
	t.next = m.now().Add(moveEvery)
	var work []found
	for _, r := range list {
		c := caseOf(snap, r, reports[r.w.Name])
		c.Steady, c.Ended = m.steadies(r, c), m.ended(r)
		step := placement.Upkeep(c)
		if t.holds(r, step) {
			work = append(work, found{r, step})
		}
	}
	if len(work)+len(halfway) == 0 {
		return nil
	}
	var names []string
	for _, f := range work {
		names = append(names, f.r.w.Name)
	}
	for _, r := range halfway {
		names = append(names, r.w.Name)
	}
	return m.run(ctx, "workloads", "", func(ctx context.Context, a *activity.Activity) error {
		m.sweep(ctx, a.Token(), halfway)
		return t.carryOut(ctx, a, snap, work)
	}, names...)
}

// holds reports whether there is something to be done now.
func (t *upkeepTask) holds(r movesRecord, s placement.Step) bool {
	switch s.Do {
	case placement.DoNothing:
		return false
	case placement.DoWait:
		lost := placement.Proven(t.m.snapshot().Nodes[s.Node])
		return !sameWords(s.Why, r.w.Reason) && (lost || r.w.State != cluster.WorkloadRunning && r.w.State != cluster.WorkloadFailed)
	case placement.DoPlace:
		return s.Node == cluster.NoCopy || !placement.Recoverable(t.m.snapshot().Nodes[s.Node]) // else the recovery's
	case placement.DoStart, placement.DoLeave:
		return !t.m.waits(r.w.Name)
	case placement.DoMove:
		return r.w.Next.Live == "" || !t.m.waits(r.w.Name)
	}
	return true
}

// steadies notes since when a workload runs, and reports whether that is long enough
// for its failed starts to be forgotten.
func (m *moves) steadies(r movesRecord, c placement.Case) bool {
	if seen := c.Reports[r.w.Head()]; !seen.Unknown && seen.State == cluster.CopyActive {
		m.runs(r.w.Name, r.w.Head())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name, report := r.w.Name, c.Reports[r.w.Head()]
	since, is := m.steady[name]
	switch {
	case report.Unknown:
	case report.State != cluster.CopyActive:
		m.forgive[name] = m.forgive[name] || is && m.now().Sub(since) >= steadyAfter
		delete(m.steady, name)
	case !is:
		m.steady[name] = m.now()
	default:
		return m.now().Sub(since) >= steadyAfter
	}
	return false
}

// runs notes under which start of its node's daemon a workload is seen to run.
func (m *moves) runs(name string, n cluster.NodeID) {
	start := m.snapshot().Nodes[n].Record.Value.Incarnation
	m.mu.Lock()
	defer m.mu.Unlock()
	m.under[name] = start
}

// ended reports whether what ran has ended with an earlier start of its node's daemon:
// by a stop of that node, or its loss, and so by no fault of its own. What this primary
// has never seen running counts as that: it cannot tell when it ended, and its own node
// may be the one that was stopped in order, and has lost the role by that. A workload
// that ends soon after each start is seen running, and counts from then on.
func (m *moves) ended(r movesRecord) bool {
	start := m.snapshot().Nodes[r.w.Head()].Record.Value.Incarnation
	m.mu.Lock()
	defer m.mu.Unlock()
	under, known := m.under[r.w.Name]
	return !known || under != start
}

// forgiven reports, once, whether the workload had run for long before it ended.
func (m *moves) forgiven(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer delete(m.forgive, name)
	return m.forgive[name]
}

// toldReasons bounds how many reasons of one workload's trouble are remembered.
const toldReasons = 8

// once reports whether the history is to be told of this trouble: not twice of the
// same, figures aside, until it is over.
func (m *moves) once(name, text string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.told[name]
	if slices.ContainsFunc(before, func(old string) bool { return sameWords(old, text) }) {
		return false
	}
	if len(before) >= toldReasons {
		before = before[1:]
	}
	m.told[name] = append(slices.Clone(before), text)
	return true
}

// retries reports whether the history knows already why the workload is being dealt
// with again and again.
func (m *moves) retries(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.told[name]) > 0
}

// over forgets what the history was told of a trouble that is past.
func (m *moves) over(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.told, name)
}

// look asks the nodes for their copies: those that the records name, and whoever
// holds something that no record has there.
func (m *moves) look(ctx context.Context, snap *cluster.Snapshot, list []movesRecord) map[string]map[cluster.NodeID]cluster.CopyReport {
	ask := map[cluster.NodeID][]cluster.Workload{}
	for _, n := range registeredNodes(snap) {
		if placement.Proven(snap.Nodes[n]) || !snap.Nodes[n].Alive.Present {
			continue
		}
		held := m.heldAt(n)
		for _, r := range list {
			here := slices.Contains(placement.Places(r.w), n) || r.w.Next != nil && slices.Contains(r.w.Next.From, n)
			if here || slices.Contains(held, r.w.Name) {
				ask[n] = append(ask[n], r.w)
			}
		}
		if ask[n] == nil {
			ask[n] = []cluster.Workload{} // what is held there is told with every answer
		}
	}
	reports, _ := m.w.copies.Query(ctx, ask)
	return reports
}

// holding copies are what nodes said last of all that they hold.
type holdingCopies interface {
	Held(n cluster.NodeID) (names []string, at cluster.Instant, known bool)
}

func (m *moves) heldAt(n cluster.NodeID) []string {
	h, is := m.w.copies.(holdingCopies)
	if !is {
		return nil
	}
	names, _, _ := h.Held(n)
	return names
}

// caseOf is a movable workload as the pure part looks at it.
func caseOf(snap *cluster.Snapshot, r movesRecord, reports map[cluster.NodeID]cluster.CopyReport) placement.Case {
	c := placement.Case{Workload: r.w, Reports: reports, Proven: map[cluster.NodeID]bool{}, Recover: map[cluster.NodeID]bool{},
		Removed: map[cluster.NodeID]bool{}, Ready: map[cluster.NodeID]bool{}}
	for n, v := range snap.Nodes {
		c.Proven[n], c.Recover[n] = placement.Proven(v), placement.Recoverable(v)
		c.Ready[n] = placement.Bar(snap, n) == ""
	}
	for _, n := range r.w.Chain {
		c.Removed[n] = removed(snap, n)
	}
	return c
}

// removed reports whether the node was taken out of the cluster: it had stopped, or
// was proven dead, and nothing of that name is registered.
func removed(snap *cluster.Snapshot, n cluster.NodeID) bool {
	if _, is := snap.Nodes[n]; is || n == cluster.NoCopy || snap.Members.Err != nil {
		return false
	}
	return slices.ContainsFunc(snap.Members.Value.Removed, func(r cluster.RemovedNode) bool { return r.Node == n })
}

// carryOut does what is needed: what is only written first, then the rest by priority.
func (t *upkeepTask) carryOut(ctx context.Context, a *activity.Activity, snap *cluster.Snapshot, work []found) error {
	m := t.m
	byName := map[string]found{}
	var ws []cluster.Workload
	for _, f := range work {
		if done, err := t.note(ctx, a.Token(), f); done {
			if err != nil {
				m.w.d.Log.Debug("a workload's state was not written", zap.String("workload", f.r.w.Name), zap.Error(err))
			}
			continue
		}
		byName[f.r.w.Name], ws = f, append(ws, f.r.w)
	}
	if ctx.Err() != nil || len(ws) == 0 {
		return context.Cause(ctx)
	}
	book := m.book(ctx, snap, m.records(snap))
	var jobs []moveJob
	for _, w := range placement.Sorted(ws) {
		f := byName[w.Name]
		if j, is := t.job(ctx, a.Token(), snap, book, f); is {
			jobs = append(jobs, j)
		}
	}
	return m.batch(ctx, "workloads", jobs)
}

// note writes what needs no node; done reports that this was all.
func (t *upkeepTask) note(ctx context.Context, tok cluster.Token, f found) (done bool, err error) {
	m, next := t.m, f.r.w.Clone()
	var also []cluster.Op
	purpose := "workload.state"
	switch f.step.Do {
	case placement.DoRunning:
		m.as(&next, cluster.WorkloadRunning, "")
	case placement.DoSteady:
		next.Attempts = 0
	case placement.DoStopped:
		m.as(&next, cluster.WorkloadStopped, "")
	case placement.DoFail:
		m.as(&next, cluster.WorkloadFailed, f.step.Why)
		also = append(also, m.event(next, "failed", "%s", next.Reason))
	case placement.DoWait:
		m.as(&next, next.State, f.step.Why)
		if placement.Proven(m.snapshot().Nodes[f.step.Node]) { // then it surely does not run
			m.as(&next, cluster.WorkloadStopped, f.step.Why)
			also = append(also, m.event(next, "stopped", "%s", next.Reason))
		}
	default:
		return false, nil
	}
	_, err = m.save(ctx, tok, purpose, f.r, next, also...)
	return true, err
}

// job is what is to be done on a node; false: nothing can be now.
func (t *upkeepTask) job(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot, book *placement.Book, f found) (moveJob, bool) {
	m, r, n := t.m, f.r, f.step.Node
	work := func(n cluster.NodeID, run func(context.Context, *activity.Activity) error) (moveJob, bool) {
		return moveJob{node: n, r: r, run: run}, true
	}
	on := func(n cluster.NodeID, run func(context.Context, cluster.Token) error) (moveJob, bool) {
		return work(n, func(ctx context.Context, a *activity.Activity) error { return run(ctx, a.Token()) })
	}
	switch f.step.Do {
	case placement.DoStart:
		return on(n, func(ctx context.Context, tok cluster.Token) error { return t.again(ctx, tok, r) })
	case placement.DoStop:
		return on(n, func(ctx context.Context, tok cluster.Token) error { return t.halt(ctx, tok, r) })
	case placement.DoEnd:
		return on(n, func(ctx context.Context, tok cluster.Token) error { return t.stray(ctx, tok, r, n) })
	case placement.DoPlace:
		to, why := book.Place(r.w)
		if why == "" {
			return on(to, func(ctx context.Context, tok cluster.Token) error { return t.place(ctx, tok, snap, r, to) })
		}
		if err := t.nowhere(ctx, tok, snap, r, why); err != nil {
			m.w.d.Log.Debug("a workload's state was not written", zap.String("workload", r.w.Name), zap.Error(err))
		}
	case placement.DoLeave:
		to, why := book.Place(r.w, n)
		if why != "" {
			return on(n, func(ctx context.Context, tok cluster.Token) error { return t.again(ctx, tok, r) })
		}
		return work(to, func(ctx context.Context, a *activity.Activity) error {
			r := t.counted(r)
			err := m.relocate(ctx, a, r, placement.Move{To: []cluster.NodeID{to}, Cause: placement.CauseRetry, Home: r.w.Home, Away: r.w.Away}, moveID())
			return err
		})
	case placement.DoMove:
		return work(m.workNode(r, n), func(ctx context.Context, a *activity.Activity) error { return m.resume(ctx, a, r) })
	}
	return moveJob{}, false
}

// counted is the record with one attempt more where its copy had come up, and has
// ended: what ends soon after each start is given up, too, and does not go from node
// to node for ever. What had run for long begins to count anew, and what has ended
// with its node's last stop does not count.
func (t *upkeepTask) counted(r movesRecord) movesRecord {
	if r.w.State != cluster.WorkloadRunning {
		return r
	}
	if t.m.forgiven(r.w.Name) {
		r.w.Attempts = 0
	}
	if t.m.ended(r) {
		return r
	}
	r.w.Attempts++
	t.m.later(r.w.Name, placement.Backoff(r.w.Attempts))
	return r
}

// again starts the copy on the node where its record has it. The write before it
// makes sure that the record is still that one.
func (t *upkeepTask) again(ctx context.Context, tok cluster.Token, r movesRecord) error {
	m, next := t.m, r.w.Clone()
	if next.State == cluster.WorkloadRunning {
		next.Attempts = t.counted(r).w.Attempts
		m.as(&next, cluster.WorkloadStarting, fmt.Sprintf("its copy on %s has ended; it is started again", r.w.Head()))
	} else {
		m.as(&next, cluster.WorkloadStarting, r.w.Reason)
	}
	m.later(next.Name, placement.Backoff(next.Attempts))
	next.Pass = moveID()
	saved, err := m.save(ctx, tok, "workload.start", r, next)
	if err != nil {
		return err
	}
	_, err = m.start(ctx, tok, saved)
	return err
}

// place writes where the workload is to run, and starts it there.
func (t *upkeepTask) place(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot, r movesRecord, to cluster.NodeID) error {
	m, next, from := t.m, r.w.Clone(), r.w.Head()
	if err := m.mayTake(to); err != nil {
		return err
	}
	next.Chain, next.Next, next.Pass = []cluster.NodeID{to}, nil, moveID()
	m.as(&next, cluster.WorkloadStarting, "")
	saved, err := m.save(ctx, tok, "workload.place", r, next, stillRemoved(snap, from)...)
	if err != nil {
		return err
	}
	err = m.startFirst(ctx, tok, saved)
	return err
}

// stillRemoved are the checks that the node that the workload was on is still no member.
func stillRemoved(snap *cluster.Snapshot, from cluster.NodeID) []cluster.Op {
	if from == cluster.NoCopy {
		return nil
	}
	return []cluster.Op{cluster.Check(cluster.Key{Kind: cluster.KeyMembers}, snap.Members.Version)}
}

// nowhere writes why the workload is not started, where that has changed.
func (t *upkeepTask) nowhere(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot, r movesRecord, why string) error {
	m, next, from := t.m, r.w.Clone(), r.w.Head()
	m.as(&next, cluster.WorkloadStopped, "it starts by itself once a node can take it: "+why)
	if next.State == r.w.State && sameWords(next.Reason, r.w.Reason) {
		return nil
	}
	var also []cluster.Op
	if r.w.State != cluster.WorkloadStopped {
		also = append(also, m.event(next, "stopped", "%s", next.Reason))
	}
	next.Chain = []cluster.NodeID{cluster.NoCopy}
	_, err := m.save(ctx, tok, "workload.nowhere", r, next, append(also, stillRemoved(snap, from)...)...)
	return err
}

// halt stops what nobody wants to run.
func (t *upkeepTask) halt(ctx context.Context, tok cluster.Token, r movesRecord) error {
	m := t.m
	if err := m.stands(ctx, tok, r); err != nil {
		return err
	}
	if err := m.stop(ctx, tok, r.w.Head(), cluster.CopyStop, r); err != nil {
		return err
	}
	next := r.w.Clone()
	m.as(&next, cluster.WorkloadStopped, "")
	_, err := m.save(ctx, tok, "workload.stopped", r, next)
	return err
}

// stray stops a copy that runs where its record has none, loudly: two may have run.
func (t *upkeepTask) stray(ctx context.Context, tok cluster.Token, r movesRecord, n cluster.NodeID) error {
	m := t.m
	if err := m.stands(ctx, tok, r); err != nil {
		return err
	}
	err := m.stop(ctx, tok, n, cluster.CopyStop, r)
	m.w.strays.failed(r.w.Name, n, err)
	text := fmt.Sprintf("a copy of it ran on %s, where its record has none (chain %s); it was stopped there", n, chainWords(r.w.Chain))
	if err != nil {
		text = fmt.Sprintf("a copy of it runs on %s, where its record has none (chain %s), and it could not be stopped: %v", n, chainWords(r.w.Chain), err)
	}
	if !m.once(r.w.Name, text) {
		return err
	}
	m.w.d.Log.Error("bad_copies: a workload ran twice", zap.String("workload", r.w.Name), zap.String("peer", string(n)), zap.Error(err))
	res := m.w.write(ctx, tok, "workload.bad_copies", []cluster.Op{m.event(r.w, "bad_copies", "%s", text)})
	if res.Outcome != cluster.OutcomeOK {
		m.w.d.Log.Debug("the history was not told of a stray copy", zap.Stringer("outcome", res.Outcome))
	}
	return err
}
