package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// drainTask moves everything away from nodes that are to be flushed, and back to
// those that are ready again. Its intent is the nodes' own domain state, its way back
// each record's Home and Away: so that whoever is primary next goes on, an operator
// who sets `ready` in the middle stops it, and how far it has come can be counted in
// the records (cluster.Drained). A node answers for itself that it is flushed, once
// nothing is held there; what cannot be moved is named with the reason, and waited for.
type drainTask struct {
	m    *moves
	next cluster.Instant
}

func (t *drainTask) name() string { return "drain" }

func (t *drainTask) urgent() bool { return false }

func (t *drainTask) wake(now cluster.Instant) cluster.Instant {
	if now.Before(t.next) {
		return t.next
	}
	return cluster.Forever
}

// due: where a flushed node still has something, or a ready one gets something back.
func (t *drainTask) due(snap *cluster.Snapshot, now cluster.Instant) bool {
	if now.Before(t.next) {
		return false
	}
	return t.m.any(snap, func(r movesRecord) bool { return t.has(snap, r) })
}

func (t *drainTask) has(snap *cluster.Snapshot, r movesRecord) bool {
	if !r.w.Wanted || r.w.Next != nil || t.m.waits(r.w.Name) || t.m.busy(r.w.Name) {
		return false
	}
	for _, n := range r.w.Members() {
		if draining(snap, n) {
			return true
		}
	}
	if stale(snap, r) {
		return true
	}
	// What a node that is away has cannot be stopped there: it is moved once that is back.
	if slices.ContainsFunc(r.w.Members(), func(n cluster.NodeID) bool { return isAway(snap.Nodes[n]) }) {
		return false
	}
	back := func(n cluster.NodeID) bool { return n != cluster.NoCopy && placement.Bar(snap, n) == "" }
	return back(r.w.Home) || slices.ContainsFunc(slices.Collect(maps.Keys(r.w.Away)), back)
}

// stuckWord is how a move's reason for waiting goes on after its cause.
const stuckWord = " waits: it cannot be moved: "

// stale reports a record that says that a drain waits for it, on nodes that are not
// to be left any more.
func stale(snap *cluster.Snapshot, r movesRecord) bool {
	return r.w.State == cluster.WorkloadRunning && strings.HasPrefix(r.w.Reason, placement.CauseDrain+stuckWord) &&
		!slices.ContainsFunc(r.w.Members(), func(n cluster.NodeID) bool { return draining(snap, n) })
}

// forget takes such words back.
func (t *drainTask) forget(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot) error {
	for _, r := range t.m.records(snap) {
		if !stale(snap, r) || r.w.Next != nil || t.m.busy(r.w.Name) {
			continue
		}
		next := r.w.Clone()
		next.Reason = ""
		if _, err := t.m.save(ctx, tok, "workload.unstuck", r, next); err != nil {
			return err
		}
		t.m.over(r.w.Name)
	}
	return nil
}

// draining reports whether the node is to have no workloads, and lives.
func draining(snap *cluster.Snapshot, n cluster.NodeID) bool {
	v := snap.Nodes[n]
	if v.Domain.Err != nil || placement.Proven(v) || !v.Alive.Present {
		return false
	}
	return v.Domain.Value == cluster.DomainFlush || v.Domain.Value == cluster.DomainFlushed || v.Domain.Value == cluster.DomainFenceFlush
}

// run plans anew and carries out one batch.
func (t *drainTask) run(ctx context.Context) error {
	m := t.m
	snap := m.snapshot()
	plan := t.plan(ctx, snap)
	t.next = m.now().Add(moveEvery / 5)
	if len(plan) == 0 && !slices.ContainsFunc(m.records(snap), func(r movesRecord) bool { return stale(snap, r) }) {
		return nil
	}
	names := make([]string, len(plan))
	for i, mv := range plan {
		names[i] = mv.Workload.Name
	}
	return m.run(ctx, "drain", "", func(ctx context.Context, a *activity.Activity) error {
		if err := t.forget(ctx, a.Token(), snap); err != nil || len(plan) == 0 {
			return err
		}
		off := func(now *cluster.Snapshot) bool { return domainsDiffer(snap, now) }
		ctx, end := m.stoppable(ctx, off)
		defer end()
		return m.carry(ctx, a, plan, off)
	}, names...)
}

// plan is what is to be moved now, away first.
func (t *drainTask) plan(ctx context.Context, snap *cluster.Snapshot) []placement.Move {
	m := t.m
	all := m.records(snap)
	var list []cluster.Workload
	for _, r := range all {
		if t.has(snap, r) {
			list = append(list, r.w)
		}
	}
	book := m.book(ctx, snap, all)
	var plan []placement.Move
	for _, n := range registeredNodes(snap) {
		if draining(snap, n) {
			plan = append(plan, placement.Drain(book, n, list)...)
		}
	}
	back := placement.Ready(book, func(n cluster.NodeID) bool { return placement.Bar(snap, n) == "" }, list)
	for _, mv := range back {
		if !slices.ContainsFunc(plan, func(p placement.Move) bool { return p.Workload.Name == mv.Workload.Name }) {
			plan = append(plan, mv)
		}
	}
	return plan
}

func domainsDiffer(a, b *cluster.Snapshot) bool {
	for n, v := range a.Nodes {
		// What a node answers by itself changes nothing of what is wanted.
		was, is := draining(a, n), draining(b, n)
		if v.Domain.Version != b.Nodes[n].Domain.Version && was != is {
			return true
		}
	}
	return false
}

// stoppable is a context that ends once the condition holds of a snapshot, and the
// function that ends the watching.
func (m *moves) stoppable(ctx context.Context, stop func(*cluster.Snapshot) bool) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	snapshots, unsubscribe := m.w.d.Store.Subscribe()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-ctx.Done():
				return
			case snap := <-snapshots:
				if snap != nil && snap.Live && snap.Complete && stop(snap) {
					cancel(&cluster.Preempted{Name: "what was ordered since"})
				}
			}
		}
	}()
	return ctx, func() { cancel(nil); <-watched; unsubscribe() }
}

// carry carries moves out in their order, a batch at a time; what cannot be moved is
// said in its record. One that fails stops no other. off calls them off.
func (m *moves) carry(ctx context.Context, a *activity.Activity, plan []placement.Move, off func(*cluster.Snapshot) bool) error {
	snap := m.snapshot()
	var jobs []moveJob
	for _, mv := range plan {
		r, is := m.record(snap, mv.Workload.Name)
		if !is || r.w.Next != nil || m.busy(r.w.Name) || !slices.Equal(r.w.Chain, mv.Workload.Chain) {
			continue
		}
		switch {
		case mv.Why != "":
			if err := m.stuck(ctx, a.Token(), r, mv); err != nil {
				return err
			}
		case slices.Equal(mv.To, r.w.Chain):
			if err := m.settle(ctx, a.Token(), r, mv); err != nil {
				return err
			}
		default:
			calledOff := off
			if r.w.Live { // to end a live move halfway would interrupt what it is to spare
				calledOff = nil
			}
			jobs = append(jobs, moveJob{node: mv.Node, r: r, off: calledOff, run: func(ctx context.Context, a *activity.Activity) error { return m.one(ctx, a, r, mv) }})
		}
	}
	if len(jobs) == 0 {
		return nil
	}
	return m.batch(ctx, plan[0].Cause, jobs)
}

// one makes one move.
func (m *moves) one(ctx context.Context, a *activity.Activity, r movesRecord, mv placement.Move) (err error) {
	if r.w.Kind == cluster.WorkloadMovable {
		err = m.relocate(ctx, a, r, mv, moveID())
	} else {
		err = m.shift(ctx, a, r, mv, moveID())
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	if now, is := m.record(m.snapshot(), r.w.Name); is && now.w.Next == nil && now.w.Request == nil {
		mv.Why = err.Error()
		err = errors.Join(err, m.stuck(ctx, a.Token(), now, mv))
	}
	m.later(r.w.Name, leftFor)
	return err
}

// stuck says in the record, and once a reason in the history, why a workload cannot be
// moved.
func (m *moves) stuck(ctx context.Context, tok cluster.Token, r movesRecord, mv placement.Move) error {
	next := r.w.Clone()
	text := mv.Cause + stuckWord + mv.Why
	m.later(next.Name, leftFor/3)
	if strings.HasPrefix(next.Reason, awayWord) { // which says why, too
		return nil
	}
	if sameWords(next.Reason, bounded500(text)) || next.State != cluster.WorkloadRunning && next.Kind == cluster.WorkloadReplicated {
		return nil // one that does not run says why, and the janitor keeps that
	}
	m.as(&next, next.State, text)
	var ops []cluster.Op
	if m.once(next.Name, text) {
		ops = append(ops, historyOp(cluster.Event{Version: 1, UnixMS: m.w.c.WallMS(), Node: m.w.c.Node, Kind: cluster.EventDrain,
			Text: bounded500(fmt.Sprintf("workload %s: %s", next.Name, text)), Fields: map[string]string{"workload": next.Name, "cause": mv.Cause}}))
	}
	_, err := m.save(ctx, tok, "workload.stuck", r, next, ops...)
	return err
}

// settle writes that a way back has come to its end without a move.
func (m *moves) settle(ctx context.Context, tok cluster.Token, r movesRecord, mv placement.Move) error {
	next := r.w.Clone()
	next.Home, next.Away = mv.Home, mv.Away
	_, err := m.save(ctx, tok, "workload.home", r, next)
	return err
}
