package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// errLeft is the cause of a move that was left: the workload is where it was.
var errLeft = errors.New("it is left where it was")

// relocate moves a movable workload: the intent is written before anything else, and
// whoever is primary goes on with it from the record alone. It is written under the
// leases that the move needs: where one cannot be had nothing was begun, and nothing is
// left that a next primary would have to end.
//
//	chain [a], next [b] ─▶ stop on a, confirmed (or a proven dead) ─▶ chain [b], next [b]
//	   │ stop refused, or hangs                                          │ start on b
//	   ▼                                                                 ├─▶ runs: next gone
//	chain [a]: left as it is                                             └─▶ failed: stop on b, confirmed
//	                                                                         ─▶ chain [a], started again there
func (m *moves) relocate(ctx context.Context, a *activity.Activity, r movesRecord, mv placement.Move, id string) error {
	next := r.w.Clone()
	next.Next = &cluster.ChainMove{ID: id, Chain: mv.To, From: slices.Clone(r.w.Chain), Cause: mv.Cause, Epoch: a.Token().Epoch()}
	if mv.Cause == placement.CauseDrain {
		next.Home, next.Away = mv.Home, mv.Away
	}
	pin(&next, id)
	seen, live := m.goesLive(ctx, r, mv)
	how := ""
	if live {
		next.Next.Live, how = cluster.LiveMigrating, "live "
	}
	m.as(&next, cluster.WorkloadMoving, fmt.Sprintf("%s: %sfrom %s to %s", mv.Cause, how, r.w.Head(), mv.To[0]))
	nodes, after := m.between(r.w.Head(), mv.To[0]), r
	var moved error
	err := m.on(ctx, a, "move-"+r.w.Name, nodes, func(ctx context.Context, t cluster.Token) error {
		saved, err := m.save(ctx, t, "workload.move", r, next)
		switch {
		case err != nil:
			moved = err
		case live:
			after, moved = m.goLive(ctx, t, saved, seen)
		default:
			after, moved = m.goOn(ctx, t, saved)
		}
		return nil // how it has ended is told by its record
	})
	var refused *cluster.RefusedActivity
	if errors.As(err, &refused) && ctx.Err() == nil {
		return m.unmoved(ctx, a.Token(), r, mv, fmt.Errorf("the node leases of %v cannot be had: %s: %w", nodes, refused.Detail, errLeft))
	}
	if live {
		return stillLive(after, errors.Join(moved, err))
	}
	return halted(ctx, after, err, moved)
}

// between are the nodes whose leases a move needs: where it goes, and where it comes
// from, unless nothing can run there any more.
func (m *moves) between(from, to cluster.NodeID) []cluster.NodeID {
	if from == to || m.isGone(from) {
		return []cluster.NodeID{to}
	}
	return []cluster.NodeID{to, from}
}

// unmoved leaves alone for a while what could not even be begun with, and says so where
// nobody else does: an order is answered, and a drain or a rebalance tells what it waits
// for.
func (m *moves) unmoved(ctx context.Context, t cluster.Token, r movesRecord, mv placement.Move, why error) error {
	m.later(r.w.Name, leftFor)
	next := r.w.Clone()
	m.as(&next, next.State, fmt.Sprintf("it was not moved to %s: %v", mv.To[0], why))
	if mv.Cause != placement.CauseRetry || sameWords(next.Reason, r.w.Reason) {
		return why
	}
	_, err := m.save(ctx, t, "workload.unmoved", r, next)
	return errors.Join(why, err)
}

// halted is how work on a move has ended: one whose lease was lost stands, and is gone
// on with.
func halted(ctx context.Context, after movesRecord, err, moved error) error {
	var lost *cluster.QuorumLost
	if ctx.Err() == nil && errors.As(err, &lost) && after.w.Next != nil {
		return fmt.Errorf("%w: %w", lost, errWaits)
	}
	return errors.Join(moved, err)
}

// pin names in an order that leaves the node to the selector the one that was picked:
// whoever carries it out again, since its answer was not written, finds it done.
func pin(next *cluster.Workload, id string) {
	if q := next.Request; q != nil && q.ID == id && q.Node == cluster.NoCopy {
		q.Node = next.Next.Chain[0]
	}
}

// resume goes on with the unfinished move of a movable workload, under the leases of
// the nodes that it is about.
func (m *moves) resume(ctx context.Context, a *activity.Activity, r movesRecord) error {
	if r.w.Next.Live != "" {
		_, err := m.clear(ctx, a, r)
		return err
	}
	nodes := m.between(r.w.Head(), r.w.Next.Chain[0])
	after := r
	var moved error
	err := m.on(ctx, a, "move-"+r.w.Name, nodes, func(ctx context.Context, t cluster.Token) error {
		after, moved = m.goOn(ctx, t, r)
		return nil // how it has ended is told by its record
	})
	var refused *cluster.RefusedActivity
	switch halfway := after.w.Next != nil && after.w.Head() == after.w.Next.Chain[0]; {
	case ctx.Err() != nil:
	case errors.As(err, &refused) && halfway:
		return m.waitsForLease(ctx, a.Token(), r, refused.Detail)
	case errors.As(err, &refused): // it never ran
		_, err = m.leave(ctx, a.Token(), r, fmt.Sprintf("the node leases of %v cannot be had: %s", nodes, refused.Detail))
		return err
	}
	return halted(ctx, after, err, moved)
}

// waitsForLease says in the record, once, that a move which has changed the chain
// already is gone on with as soon as its new node's lease is there again: it cannot be
// left any more, for the workload is not where it was.
func (m *moves) waitsForLease(ctx context.Context, t cluster.Token, r movesRecord, why string) error {
	err := fmt.Errorf("its start on %s waits for that node's lease: %s: %w", r.w.Head(), why, errWaits)
	next := r.w.Clone()
	m.as(&next, cluster.WorkloadMoving, strings.TrimSuffix(err.Error(), ": "+errWaits.Error()))
	if sameWords(next.Reason, r.w.Reason) {
		return err
	}
	_, werr := m.save(ctx, t, "workload.waits", r, next)
	return errors.Join(err, werr)
}

// isGone reports whether nothing can run on the node any more.
func (m *moves) isGone(n cluster.NodeID) bool {
	snap := m.snapshot()
	return n == cluster.NoCopy || placement.Proven(snap.Nodes[n]) || removed(snap, n)
}

// goneChecks are the checks by which that stands at a write, of the very snapshot that
// says so: where the node came back between two looks a write without any would start
// a second copy (I4).
func (m *moves) goneChecks(n cluster.NodeID) (checks []cluster.Op, gone bool) {
	snap := m.snapshot()
	switch {
	case n == cluster.NoCopy:
		return nil, true
	case placement.Proven(snap.Nodes[n]):
		return proof(snap, n), true
	case removed(snap, n):
		return stillRemoved(snap, n), true
	}
	return nil, false
}

// goOn does what is left of the move.
func (m *moves) goOn(ctx context.Context, t cluster.Token, r movesRecord) (movesRecord, error) {
	to, given := r.w.Next.Chain, false
	if from := r.w.Head(); from != to[0] {
		if why := placement.Bar(m.snapshot(), to[0]); why != "" {
			return m.leave(ctx, t, r, fmt.Sprintf("%s cannot take it: %s", to[0], why))
		}
		checks, gone := m.goneChecks(from)
		if !gone {
			if err := m.vacate(ctx, t, from, r); err != nil {
				if ctx.Err() != nil {
					return r, err
				}
				return m.leave(ctx, t, r, fmt.Sprintf("it was not stopped on %s: %v", from, err))
			}
		}
		next := r.w.Clone()
		next.Chain, next.Pass = slices.Clone(to), r.w.Next.ID
		saved, err := m.save(ctx, t, "workload.moved", r, next, checks...)
		if err != nil {
			return r, err
		}
		r, given = saved, true
	}
	if !r.w.Wanted {
		return m.arrived(ctx, t, r, cluster.WorkloadStopped)
	}
	l, err := m.launch(ctx, t, r)
	if given {
		_, is := m.declined(ctx, to[0], l)
		l.known = l.known || is
	}
	switch {
	case err != nil:
		return r, err
	case l.active:
		return m.arrived(ctx, t, r, cluster.WorkloadRunning)
	case !l.known:
		return r, errors.New(l.why)
	}
	return m.back(ctx, t, r, l.why)
}

// vacate stops the copy where it is, the record being the one that was judged.
func (m *moves) vacate(ctx context.Context, t cluster.Token, n cluster.NodeID, r movesRecord) error {
	if err := m.stands(ctx, t, r); err != nil {
		return err
	}
	return m.stop(ctx, t, n, cluster.CopyStop, r)
}

// arrived ends a move that has come to its end.
func (m *moves) arrived(ctx context.Context, t cluster.Token, r movesRecord, s cluster.WorkloadState) (movesRecord, error) {
	next := r.w.Clone()
	move := *next.Next
	next.Next = nil
	m.homecoming(&next, move.Cause)
	m.as(&next, s, "")
	if m.over(next.Name); s == cluster.WorkloadRunning {
		m.runs(next.Name, next.Head())
	}
	m.answerMove(&next, move.ID, t.Epoch(), true, fmt.Sprintf("it is on %s%s", next.Head(), onceLive(move)))
	return m.save(ctx, t, "workload.arrived", r, next, m.event(next, "moved", "moved %sfrom %s to %s (%s)", liveWord(move), headOf(move.From), next.Head(), move.Cause))
}

func headOf(chain []cluster.NodeID) cluster.NodeID { return cluster.Workload{Chain: chain}.Head() }

// homecoming says what a move leaves of the way back.
func (m *moves) homecoming(next *cluster.Workload, cause string) {
	switch cause {
	case placement.CauseMove:
		next.Home = cluster.NoCopy
	case placement.CauseReady:
		if next.Home == next.Head() {
			next.Home = cluster.NoCopy
		}
	}
	maps.DeleteFunc(next.Away, func(n, _ cluster.NodeID) bool { return slices.Contains(next.Chain, n) })
}

// answerMove answers the request that the move is of.
func (m *moves) answerMove(next *cluster.Workload, id string, epoch cluster.Epoch, done bool, text string) {
	if next.Request != nil && next.Request.ID == id {
		*next = m.answered(*next, epoch, done, bounded500(text))
	}
}

// leave ends a move before it has changed anything: the workload is where it was,
// and runs there, or is started there again by the upkeep.
func (m *moves) leave(ctx context.Context, t cluster.Token, r movesRecord, why string) (movesRecord, error) {
	next := r.w.Clone()
	move := *next.Next
	next.Next = nil
	state := cluster.WorkloadRunning
	if !next.Wanted {
		state = cluster.WorkloadStopped
	}
	m.as(&next, state, fmt.Sprintf("its move to %s was left: %s", move.Chain[0], why))
	m.answerMove(&next, move.ID, t.Epoch(), false, fmt.Sprintf("%s; it is on %s as before", why, next.Head()))
	m.later(next.Name, leftFor)
	saved, err := m.save(ctx, t, "workload.left", r, next)
	return saved, errors.Join(fmt.Errorf("%s: %w", why, errLeft), err)
}

// leftFor is how long a workload is left alone whose move was left.
const leftFor = 15 * time.Second

// back returns a workload that did not start on the new node to the old one, once
// nothing is left of it on the new.
func (m *moves) back(ctx context.Context, t cluster.Token, r movesRecord, why string) (movesRecord, error) {
	if err := m.stop(ctx, t, r.w.Head(), cluster.CopyStop, r); err != nil {
		return r, fmt.Errorf("%s; and whether it is stopped there is not known: %w", why, err)
	}
	next := r.w.Clone()
	move := *next.Next
	next.Next, next.Pass = nil, moveID()
	home := headOf(move.From)
	if move.Cause == placement.CauseRetry || m.isGone(home) || placement.Bar(m.snapshot(), home) == "no such node" {
		m.as(&next, cluster.WorkloadStarting, next.Reason)
		also := m.failed(&next, why)
		m.answerMove(&next, move.ID, t.Epoch(), false, why)
		saved, err := m.save(ctx, t, "workload.attempt", r, next, also...)
		return saved, errors.Join(errors.New(why), err)
	}
	next.Chain = slices.Clone(move.From)
	m.as(&next, cluster.WorkloadStarting, fmt.Sprintf("%s; it is started on %s again", why, home))
	m.later(next.Name, leftFor)
	var told []cluster.Op
	if move.Cause == placement.CauseMove || m.once(next.Name, next.Reason) { // an operator's is told each time
		told = append(told, m.event(next, "move_failed", "%s", next.Reason))
	}
	saved, err := m.save(ctx, t, "workload.back", r, next, told...)
	if err != nil {
		return r, err
	}
	l, err := m.launch(ctx, t, saved)
	if err != nil {
		return saved, err
	}
	next = saved.w.Clone()
	text := fmt.Sprintf("%s; it runs on %s again", why, home)
	if l.active {
		m.as(&next, cluster.WorkloadRunning, "its move was left: "+why)
	} else {
		text = fmt.Sprintf("%s; and %s, where it is tried again", why, l.why)
		m.as(&next, cluster.WorkloadStarting, text)
	}
	m.answerMove(&next, move.ID, t.Epoch(), false, text)
	saved, err = m.save(ctx, t, "workload.back", saved, next)
	return saved, errors.Join(fmt.Errorf("%s: %w", why, errLeft), err)
}
