package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/janitor"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// rebalanceRounds is how many rounds in a row may move nothing before a rebalance
// has failed.
const rebalanceRounds = 5

// rebalanceTask carries out the rebalance that an operator has ordered. It plans
// anew each round from what the records say, so that the next primary goes on with
// it by the record alone, and ends it together with auto-reprovision's count:
//
//	ordered ─▶ running ─▶ done      (nothing left to move; the count is zero again)
//	               ├─▶ stopped      (an operator; what was moved stays)
//	               └─▶ failed       (an unsafe head, or nothing could be moved any more)
//
// A node whose lease cannot be had just now is planned with as if it could: what goes
// there waits, and nothing goes elsewhere in its stead, and back or on as soon as the
// lease is there. Where nothing but that is left, and lasts, it goes on without it.
type rebalanceTask struct {
	m       *moves
	next    cluster.Instant
	id      string // of the rebalance that the rest is about
	idle    int    // rounds in a row that have moved nothing
	stuck   cluster.Instant
	without map[cluster.NodeID]string // nodes that it goes on without, and why
}

func (t *rebalanceTask) name() string { return "rebalance" }

func (t *rebalanceTask) urgent() bool { return false }

func (t *rebalanceTask) wake(now cluster.Instant) cluster.Instant {
	if now.Before(t.next) {
		return t.next
	}
	return cluster.Forever
}

func (t *rebalanceTask) due(snap *cluster.Snapshot, now cluster.Instant) bool {
	v := snap.Rebalance
	return v.Present && v.Err == nil && v.Value.ID != "" && !v.Value.Ended() && (v.Value.Stop || !now.Before(t.next))
}

func (t *rebalanceTask) run(ctx context.Context) error {
	m := t.m
	return m.run(ctx, "rebalance", "", func(ctx context.Context, a *activity.Activity) error {
		// A view from before the order has no record, and version 0 of none: what rests
		// on it would meet the order's own first version, and replace it (I8).
		snap := m.snapshot()
		if !t.due(snap, cluster.Forever) {
			return nil
		}
		return t.round(ctx, a, snap)
	})
}

// round is one batch of moves, or the end.
func (t *rebalanceTask) round(ctx context.Context, a *activity.Activity, snap *cluster.Snapshot) error {
	m, b := t.m, snap.Rebalance.Value
	if t.id != b.ID {
		t.id, t.idle, t.without = b.ID, 0, map[cluster.NodeID]string{}
	}
	t.next = m.now().Add(moveEvery / 5)
	if b.Stop {
		return t.end(ctx, a.Token(), snap, cluster.RebalanceStopped, "an operator has stopped it; what was moved stays")
	}
	list := m.records(snap)
	if why := t.unsafe(ctx, snap, list); why != "" {
		return t.end(ctx, a.Token(), snap, cluster.RebalanceFailed, why)
	}
	plan := placement.Rebalance(t.book(ctx, snap, list), values(list))
	switch {
	case len(plan) == 0 && t.settled(list):
		text := unfilledWords(placement.Unfill(t.book(ctx, snap, list), values(list)))
		if out := t.leftOut(); out != "" {
			text = strings.TrimSuffix(out+"; "+text, "; ")
		}
		return t.end(ctx, a.Token(), snap, cluster.RebalanceDone, text)
	case t.idle >= rebalanceRounds && t.goOnWithout(plan):
		return nil
	case t.idle >= rebalanceRounds:
		return t.end(ctx, a.Token(), snap, cluster.RebalanceFailed, t.reasons(plan, list))
	}
	if err := t.progress(ctx, a.Token(), snap, len(plan)); err != nil {
		return err
	}
	off := func(now *cluster.Snapshot) bool { return now.Rebalance.Value.Stop && now.Rebalance.Value.ID == b.ID }
	ctx, stop := m.stoppable(ctx, off)
	defer stop()
	err := m.carry(ctx, a, plan, off)
	if now := m.records(m.snapshot()); t.advanced(plan, now) {
		t.idle = 0
	} else if ctx.Err() == nil {
		t.next = m.now().Add(moveEvery)
		if m.w.hand.empty() { // else something goes on, and has a deadline of its own
			if t.idle++; t.idle == 1 {
				t.stuck = m.now()
			}
		}
	}
	return err
}

// book counts what the nodes have left.
func (t *rebalanceTask) book(ctx context.Context, snap *cluster.Snapshot, list []movesRecord) *placement.Book {
	return t.m.bookBut(ctx, snap, list, func(n cluster.NodeID) string { return t.without[n] })
}

// goOnWithout leaves out those nodes of the plan whose leases could not be had in all
// the time in which nothing was moved; false: there is none.
func (t *rebalanceTask) goOnWithout(plan []placement.Move) (is bool) {
	shunned := t.m.shunnedSince(t.stuck)
	for _, mv := range plan {
		if why, was := shunned[mv.Node]; was && t.without[mv.Node] == "" {
			t.without[mv.Node], t.idle, is = why, 0, true
			t.m.w.d.Log.Warn("the rebalance goes on without a node", zap.String("peer", string(mv.Node)), zap.String("reason", why))
		}
	}
	return is
}

// leftOut says which nodes the rebalance has gone on without.
func (t *rebalanceTask) leftOut() string {
	var words []string
	for _, n := range slices.Sorted(maps.Keys(t.without)) {
		words = append(words, fmt.Sprintf("nothing was moved to %s: %s", n, boundedAt(unfilledWhy, t.without[n])))
	}
	return strings.Join(words, "; ")
}

// The bounds of what the end of a rebalance says.
const (
	unfilledNamed = 12  // workloads with a place that nobody fills
	unfilledWhy   = 140 // bytes of each one's reason
	rebalanceText = 500 + unfilledNamed*(unfilledWhy+100)
)

// unfilledWords name what a finished rebalance could not fill; "": nothing.
func unfilledWords(left []placement.Unfilled) string {
	if len(left) == 0 {
		return ""
	}
	text := fmt.Sprintf("places that nobody fills are left in %d workloads", len(left))
	for i, u := range left {
		if i == unfilledNamed {
			text += fmt.Sprintf("; and in %d more (`pvc workload list`)", len(left)-i)
			break
		}
		text += fmt.Sprintf("; %s (%s): %s", u.Workload.Name, chainWords(u.Workload.Chain), boundedAt(unfilledWhy, u.Why))
	}
	return text
}

// settled reports whether no move is under way.
func (t *rebalanceTask) settled(list []movesRecord) bool {
	for _, r := range list {
		if r.w.Next != nil {
			return false
		}
	}
	return true
}

// advanced reports whether one of the planned moves has been made.
func (t *rebalanceTask) advanced(plan []placement.Move, now []movesRecord) bool {
	for _, mv := range plan {
		for _, r := range now {
			if r.w.Name == mv.Workload.Name && fmt.Sprint(r.w.Chain) == fmt.Sprint(mv.To) {
				return true
			}
		}
	}
	return false
}

// reasons says what keeps it from its end: moves that cannot be made, or those of
// something else that do not end.
func (t *rebalanceTask) reasons(plan []placement.Move, list []movesRecord) string {
	text, about := fmt.Sprintf("%d moves could not be made", len(plan)), map[string]bool{}
	for _, mv := range plan {
		about[mv.Workload.Name] = true
	}
	if len(plan) == 0 {
		for _, r := range list {
			about[r.w.Name] = r.w.Next != nil
		}
		text = "moves that are under way do not come to an end"
	}
	for _, r := range list {
		if about[r.w.Name] && r.w.Reason != "" {
			return bounded500(fmt.Sprintf("%s; of %s: %s", text, r.w.Name, r.w.Reason))
		}
	}
	return text
}

// unsafe says which heads came back empty while others of their chains still have a
// copy (P3, S124); empty: none, as far as nodes answer. Where one does not answer its
// workload is not moved, either (shift).
func (t *rebalanceTask) unsafe(ctx context.Context, snap *cluster.Snapshot, list []movesRecord) string {
	var ephemeral []movesRecord
	for _, r := range list {
		if r.w.Kind == cluster.WorkloadReplicated && r.w.Ephemeral && r.w.Wanted {
			ephemeral = append(ephemeral, r)
		}
	}
	if len(ephemeral) == 0 {
		return ""
	}
	gone := map[cluster.NodeID]bool{}
	for n, v := range snap.Nodes {
		gone[n] = placement.Proven(v)
	}
	reports := t.m.look(ctx, snap, ephemeral)
	for _, r := range ephemeral {
		if r.w.State == cluster.WorkloadUnsafe || janitor.UnsafeHead(r.w, reports[r.w.Name], gone) {
			return fmt.Sprintf("unsafe_nodes: the copy of %s on %s came back empty while another still has one; once the janitor has repaired that, order the rebalance anew", r.w.Name, r.w.Head())
		}
	}
	return ""
}

// progress writes how far it has come, where that has changed.
func (t *rebalanceTask) progress(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot, left int) error {
	next := snap.Rebalance.Value
	next.State, next.Epoch = cluster.RebalanceRunning, tok.Epoch()
	next.Total = max(next.Total, next.Done+left)
	next.Done = next.Total - left
	if next == snap.Rebalance.Value {
		return nil
	}
	return t.write(ctx, tok, snap, "rebalance.progress", next)
}

func (t *rebalanceTask) write(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot, purpose string, next cluster.Rebalance, also ...cluster.Op) error {
	ops := append([]cluster.Op{cluster.Set(cluster.Key{Kind: cluster.KeyRebalance}, snap.Rebalance.Version, next)}, also...)
	res := t.m.w.write(ctx, tok, purpose, ops)
	if res.Outcome != cluster.OutcomeOK {
		return fmt.Errorf("%s was not written (%s): %w", purpose, res.Outcome, cmpErr(res.Err, cluster.ErrConflict))
	}
	if _, seen := t.m.w.latest(ctx, writeSeen, func(s *cluster.Snapshot) bool { return s.Rebalance.Version > snap.Rebalance.Version }); !seen {
		return errors.New("the store's view is behind what was just written")
	}
	return nil
}

// end writes the end; that of a finished one goes with auto-reprovision's count, in
// one transaction: whichever is seen, both are.
func (t *rebalanceTask) end(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot, state, text string) error {
	m, next := t.m, snap.Rebalance.Value
	next.State, next.Text, next.Epoch = state, boundedAt(rebalanceText, text), tok.Epoch()
	var also []cluster.Op
	told := fmt.Sprintf("rebalance %s: %d of %d moves", state, next.Done, next.Total)
	if state == cluster.RebalanceDone {
		next.Done = next.Total
		told = fmt.Sprintf("rebalance %s: %d moves", state, next.Total)
		reset, counted := resetCount(snap.Reprovision)
		if also = reset; counted {
			told += "; auto-reprovision's count is reset"
		}
	}
	if text != "" {
		told += ": " + text
	}
	also = append(also, historyOp(cluster.Event{Version: 1, UnixMS: m.w.c.WallMS(), Node: m.w.c.Node, Kind: cluster.EventRebalance, Text: boundedAt(rebalanceText, told),
		Fields: map[string]string{"rebalance": next.ID, "state": state}}))
	return t.write(ctx, tok, snap, "rebalance.end", next, also...)
}

// resetCount are the operations by which the count is zero after them, and nothing else
// of the settings was changed since they were seen; counted: it was not zero. Where
// there is no record one that was written meanwhile fails the whole: made and taken
// away again, for the store knows no other check that there is none.
func resetCount(v cluster.Versioned[cluster.ReprovisionSettings]) (ops []cluster.Op, counted bool) {
	key := cluster.Key{Kind: cluster.KeyReprovision}
	switch {
	case !v.Present && v.Mzxid == 0:
		return []cluster.Op{cluster.Create(key, cluster.DefaultReprovisionSettings()), cluster.Delete(key, 0)}, false
	case !v.Present || v.Err != nil || v.Value.Count == 0 && len(v.Value.Nodes) == 0:
		return []cluster.Op{cluster.Check(key, v.Version)}, false
	}
	settings := v.Value
	settings.Count, settings.Nodes = 0, nil
	return []cluster.Op{cluster.Set(key, v.Version, settings)}, true
}
