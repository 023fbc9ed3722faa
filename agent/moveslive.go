package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// The times of live moves.
const (
	// livePatience is how long a copy may take to go over. It serves meanwhile; its
	// agent has a limit of its own.
	livePatience = 5 * time.Minute
	// clearRetry is from one try to clear both nodes to the next.
	clearRetry = 2 * time.Second
)

// errNotKnown is why a live move is over that somebody else has begun, or this primary
// before it was interrupted.
var errNotKnown = errors.New("what it was at is not known")

// A live move of a movable workload, as its record says. From the first write to the
// last both nodes may have a copy, and then alone: every node admits the second one by
// a record that says "migrating", of just this move, and everybody who would do
// something else with the workload (an order, a recovery, a new primary) sees it and
// clears both nodes first.
//
//	chain [a], next [b]                                    (nothing of it is on b)
//	   │ both nodes can, a's copy runs, b has none, b can take it
//	   ▼
//	chain [a], next [b] migrating ──▶ migrate_to on a ──▶ migrate_from on b, runs ──▶ stop on a, confirmed
//	   │ anything else: refused, failed,                                                    │
//	   │ lost reply, hung, a node or the primary gone,                                      ▼
//	   │ another order of an operator                                        chain [b], running: "moved live"
//	   ▼
//	chain [a], next [b] recovering ──▶ stop on b, confirmed, or b proven dead ──┐ not so: tried again,
//	   ▲        nothing is believed    stop on a, confirmed, or a proven dead ──┤ until it is, or proven
//	   │                               stop on b, once more                   ──┤
//	   └────────────────────────────────────────────────────────────────────────┘
//	   │ both
//	   ▼ the write checks the proofs (I4)
//	chain [b], next [b]: started on b as by any move      (b cannot take it, or another order stands:
//	   │ does not start: stopped on b, confirmed           chain [a], no next; started on a, or what
//	   ▼                                                   was ordered, or recovered, where a is dead)
//	chain [a]: started again on a
//
// "recovering" is a write of its own, before the first stop: the stops rest on a newer
// record than every order of the migration, so that none of these, however late, has an
// effect after them. A migrate_to that still runs on a may bring the copy to b until a has
// confirmed its stop: so b's counts that comes after it. The one before it is there for a b
// that does not answer, since until that is known a's copy, if it still serves, is left to.
// Between migrate_to and migrate_from b's guard does not hold what is there, so that its
// watchdog is no proof for it (unsure).
// Nobody ever goes on with a migration: who finds one clears it.

// liveWord says of a move that it is a live one.
func liveWord(move cluster.ChainMove) string {
	if move.Live != "" {
		return "live "
	}
	return ""
}

// onceLive says of a move that is over that it was a live one.
func onceLive(move cluster.ChainMove) string {
	if move.Live != "" {
		return ", moved live"
	}
	return ""
}

// goesLive asks both nodes whether the move can be made while the workload runs, and
// returns the running copy. What an operator has not allowed is not asked for.
func (m *moves) goesLive(ctx context.Context, r movesRecord, mv placement.Move) (seen cluster.CopyReport, can bool) {
	from, to := r.w.Head(), mv.To[0]
	if !r.w.Live || !r.w.Wanted || r.w.State != cluster.WorkloadRunning || mv.Cause == placement.CauseRetry || from == to || m.isGone(from) || m.isGone(to) {
		return seen, false
	}
	ctx, cancel := context.WithTimeout(ctx, observeLimit)
	defer cancel()
	reports, _ := m.w.copies.Query(ctx, map[cluster.NodeID][]cluster.Workload{from: {r.w}, to: {r.w}})
	seen, there := reports[r.w.Name][from], reports[r.w.Name][to]
	can = seen.Live && !seen.Unknown && seen.State == cluster.CopyActive && there.Live && !there.Unknown && there.State == cluster.CopyMissing
	if !can {
		m.w.d.Log.Info("a workload is not moved live, but stopped and started", zap.String("workload", r.w.Name),
			zap.String("from", string(from)), zap.String("state", string(seen.State)), zap.Bool("can_give", seen.Live),
			zap.String("to", string(to)), zap.String("state_there", string(there.State)), zap.Bool("can_take", there.Live))
	}
	return seen, can
}

// stillLive has an error waited for where the live move stands all the same: whoever
// comes next clears it.
func stillLive(after movesRecord, err error) error {
	if err != nil && after.w.Next != nil && after.w.Next.Live != "" {
		err = errors.Join(err, errWaits)
	}
	return err
}

// goLive does the steps, and clears both nodes where one of them fails.
func (m *moves) goLive(ctx context.Context, t cluster.Token, r movesRecord, seen cluster.CopyReport) (movesRecord, error) {
	if err := m.liveSteps(ctx, t, r, seen); err != nil {
		if ctx.Err() != nil { // who comes next clears it
			return r, errors.Join(err, context.Cause(ctx))
		}
		return m.recoverLive(ctx, t, r, err)
	}
	for again := 0; ; again++ {
		there := r
		there.w = r.w.Clone()
		there.w.Chain, there.w.Pass = slices.Clone(r.w.Next.Chain), r.w.Next.ID
		after, err := m.arrived(ctx, t, there, cluster.WorkloadRunning)
		now, same := r, false
		if errors.Is(err, cluster.ErrConflict) && again < arrivalTries {
			now, same = m.sameMove(ctx, r)
		}
		if !same {
			return after, err
		}
		r = now
	}
}

// arrivalTries is how often the end of a live move is written anew on what an operator
// has set, or asked, meanwhile.
const arrivalTries = 3

// sameMove is the record after somebody else's write, if that has left this very move as
// it was: only the primary changes it, and what it has come to is so all the same.
func (m *moves) sameMove(ctx context.Context, r movesRecord) (movesRecord, bool) {
	snap, _ := m.w.latest(ctx, writeSeen, func(s *cluster.Snapshot) bool { v := s.Workloads[r.w.Name]; return !v.Present || v.Version > r.version })
	v := snap.Workloads[r.w.Name]
	w := v.Value
	same := v.Present && v.Err == nil && v.Version > r.version && w.ID == r.w.ID && w.Wanted && slices.Equal(w.Chain, r.w.Chain) && w.Next != nil &&
		w.Next.ID == r.w.Next.ID && w.Next.Live == cluster.LiveMigrating && slices.Equal(w.Next.Chain, r.w.Next.Chain)
	return movesRecord{w: w.Clone(), version: v.Version}, same
}

// liveSteps takes the copy over. No error: it runs on the new node, and the old one has
// confirmed that nothing of it is left there.
func (m *moves) liveSteps(ctx context.Context, t cluster.Token, r movesRecord, seen cluster.CopyReport) error {
	from, to := r.w.Head(), r.w.Next.Chain[0]
	if why := placement.Bar(m.snapshot(), to); why != "" {
		return fmt.Errorf("%s cannot take it: %s", to, why)
	}
	if err := m.stands(ctx, t, r); err != nil {
		return err
	}
	giving, cancel := context.WithTimeoutCause(ctx, livePatience, fmt.Errorf("it has not ended within %s: %w", livePatience, cluster.ErrDeadline))
	defer cancel()
	report, err := m.w.copies.Order(giving, t, from, cluster.CopyOrder{Op: cluster.CopyMigrateTo, Workload: r.w, Seen: r.version,
		Source: &cluster.CopySource{Node: to}, Expect: &cluster.CopyExpect{State: seen.State, Start: seen.Start}})
	switch {
	case err != nil:
		return err
	case report.Unknown:
		return fmt.Errorf("what its copy on %s is after migrate_to is not known: %s", from, report.Error)
	}
	report, err = m.order(ctx, t, to, cluster.CopyMigrateFrom, r, func(o *cluster.CopyOrder) { o.Source = &cluster.CopySource{Node: from} })
	switch {
	case err != nil:
		return err
	case report.Unknown || report.State != cluster.CopyActive:
		return fmt.Errorf("after migrate_from its copy on %s is %s: %s", to, orNotKnown(report), report.Error)
	}
	if err := m.stop(ctx, t, from, cluster.CopyStop, r); err != nil {
		return fmt.Errorf("it was not stopped on %s: %w", from, err)
	}
	return nil
}

func orNotKnown(r cluster.CopyReport) string {
	if r.Unknown {
		return "not known"
	}
	return string(r.State)
}

// clear ends a live move that somebody has left: a former primary, or this one as it
// was interrupted. Without an error nothing but the record's chain may have a copy.
func (m *moves) clear(ctx context.Context, a *activity.Activity, r movesRecord) (movesRecord, error) {
	var nodes []cluster.NodeID
	for _, n := range []cluster.NodeID{r.w.Next.Chain[0], r.w.Head()} {
		if !m.isGone(n) {
			nodes = append(nodes, n)
		}
	}
	after := r
	var why error
	err := m.on(ctx, a, "clear-"+r.w.Name, nodes, func(ctx context.Context, t cluster.Token) error {
		after, why = m.recoverLive(ctx, t, r, errNotKnown)
		return nil
	})
	var refused *cluster.RefusedActivity
	if errors.As(err, &refused) && ctx.Err() == nil { // it never ran, for want of a node that is silent, most often
		silent := nodes[0]
		if at := slices.IndexFunc(nodes, m.isSilent); at >= 0 {
			silent = nodes[at]
		}
		after, err = m.uncleared(ctx, a.Token(), r, silent, err)
	}
	if err = errors.Join(why, err); err != nil && after.w.Next != nil && after.w.Next.Live != "" {
		m.later(r.w.Name, clearRetry)
		err = errors.Join(err, errWaits) // what was ordered stands until then
	}
	if err != nil && after.w.Next == nil && errors.Is(err, errCleared) {
		err = nil
	}
	return after, err
}

// errCleared is of a live move that has come to nothing: nothing of it is left beside
// what the record's chain says.
var errCleared = errors.New("it was stopped on both nodes")

// recoverLive has nothing of the workload left on either node, as each confirms or as
// it is proven dead, and then starts it at one of them.
func (m *moves) recoverLive(ctx context.Context, t cluster.Token, r movesRecord, why error) (movesRecord, error) {
	from, to := r.w.Head(), r.w.Next.Chain[0]
	if r.w.Next.Live != cluster.LiveRecovering {
		next := r.w.Clone()
		next.Next.Live = cluster.LiveRecovering
		m.as(&next, cluster.WorkloadMoving, fmt.Sprintf("its live move from %s to %s is given up, and it is stopped on both: %v", from, to, why))
		saved, err := m.save(ctx, t, "workload.live_over", r, next)
		if err != nil {
			return r, errors.Join(why, err)
		}
		r = saved
	}
	var proofs []cluster.Op
	for i, n := range []cluster.NodeID{to, from, to} {
		checks, gone := m.goneChecks(n)
		if gone = gone && (n == from || !unsure(m.snapshot(), n)); !gone {
			if err := m.stop(ctx, t, n, cluster.CopyStop, r); err != nil {
				if unsure(m.snapshot(), n) {
					err = fmt.Errorf("it is proven dead by its watchdog alone, which is no proof for what its guard had not taken over: once it is back that is stopped there, and if it never comes see that it has no power and remove it (`pvc node remove %s`): %w", n, err)
				}
				return m.uncleared(ctx, t, r, n, err)
			}
		}
		if i > 0 {
			proofs = append(proofs, checks...)
		}
	}
	return m.cleared(ctx, t, r, proofs)
}

// watchdogProof proves the end of what a node's guard holds (fencing.ProofWatchdog): a
// machine whose guard holds nothing is fed on.
const watchdogProof = "watchdog"

// unsure reports a node that is proven dead by its watchdog alone. It may still run what a
// migrate_to has brought and no migrate_from has taken over: its guard does not hold that.
func unsure(snap *cluster.Snapshot, n cluster.NodeID) bool {
	v := snap.Nodes[n]
	return placement.Proven(v) && v.Fence.Value.Proof == watchdogProof
}

// uncleared says on which node something may be left: nothing is started until that is
// known.
func (m *moves) uncleared(ctx context.Context, t cluster.Token, r movesRecord, n cluster.NodeID, why error) (movesRecord, error) {
	if ctx.Err() != nil {
		return r, errors.Join(why, context.Cause(ctx))
	}
	err := fmt.Errorf("whether something of it is left on %s is not known: %w", n, why)
	next := r.w.Clone()
	m.as(&next, cluster.WorkloadMoving, fmt.Sprintf("its live move from %s to %s was given up, and it starts once it is stopped on both, or they are proven dead: %v", r.w.Head(), r.w.Next.Chain[0], err))
	if sameWords(next.Reason, r.w.Reason) {
		return r, err
	}
	saved, werr := m.save(ctx, t, "workload.live_left", r, next)
	return saved, errors.Join(err, werr)
}

// cleared writes that nothing of the workload is on either node, and where it starts:
// on the new one, as any move does, or where it was, if that cannot be or an operator
// has ordered something else.
func (m *moves) cleared(ctx context.Context, t cluster.Token, r movesRecord, proofs []cluster.Op) (movesRecord, error) {
	next := r.w.Clone()
	move := *next.Next
	from, to, snap := next.Head(), move.Chain[0], m.snapshot()
	other := next.Request != nil && next.Request.ID != move.ID
	next.Next.Live, next.Pass = "", moveID()
	bar := placement.Bar(snap, to)
	reason := fmt.Sprintf("its live move from %s to %s has failed, and it was stopped on both; it starts on ", from, to)
	switch {
	case other, !next.Wanted, bar != "":
		next.Next = nil
		state := cluster.WorkloadStarting
		if !next.Wanted {
			state = cluster.WorkloadStopped
		}
		m.as(&next, state, reason+string(from)+" again")
		m.answerMove(&next, move.ID, t.Epoch(), false, fmt.Sprintf("%s again: %s cannot take it: %s", reason+string(from), to, bar))
		m.later(next.Name, 0)
	default:
		next.Chain = slices.Clone(move.Chain)
		m.as(&next, cluster.WorkloadMoving, reason+string(to))
	}
	saved, err := m.save(ctx, t, "workload.cleared", r, next, append(proofs, m.event(next, "move_failed", "%s", next.Reason))...)
	if err != nil {
		return r, err
	}
	if saved.w.Next != nil {
		return m.goOn(ctx, t, saved)
	}
	if other || !saved.w.Wanted || m.isGone(from) { // who ordered it, or the recovery, goes on
		return saved, errCleared
	}
	saved, err = m.start(ctx, t, saved)
	return saved, errors.Join(errCleared, err)
}

// bereftLive reports a live move of which a node was proven dead: what waited for that
// goes on at once.
func (m *moves) bereftLive(snap *cluster.Snapshot, w cluster.Workload) bool {
	if w.Next == nil || w.Next.Live == "" || w.Request != nil || m.busy(w.Name) || m.waits(w.Name) {
		return false
	}
	to := w.Next.Chain[0]
	return placement.Proven(snap.Nodes[w.Head()]) || placement.Proven(snap.Nodes[to]) && !unsure(snap, to)
}

// workNode is the node on which an unfinished move counts: the one that it goes to; of a
// live one the first of both that is not gone, and not silent either, so that somebody
// says of the other what is waited for.
func (m *moves) workNode(r movesRecord, to cluster.NodeID) cluster.NodeID {
	if r.w.Next.Live == "" {
		return to
	}
	left := slices.DeleteFunc([]cluster.NodeID{to, r.w.Head()}, m.isGone)
	for _, n := range left {
		if !m.isSilent(n) {
			return n
		}
	}
	return append(left, m.w.c.Node)[0]
}

// isSilent reports a node that is not registered now: no lease of it can be had.
func (m *moves) isSilent(n cluster.NodeID) bool {
	alive := m.snapshot().Nodes[n].Alive
	return !alive.Present || alive.Err != nil
}
