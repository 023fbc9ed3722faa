package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// awayAfter is how long a node is away until its workloads' records say so: a daemon
// that restarts, or a node that is fenced and recovered from, needs no word of it.
const awayAfter = 10 * time.Second

// awayTask has the records of what runs on a node that is away say that nobody knows
// it: `running` is what was seen last, and nothing starts elsewhere without a proof
// (I4). It writes once when the node has gone, and once when it is back.
type awayTask struct {
	m     *moves
	since map[cluster.NodeID]cluster.Instant // nodes that are away, since when that is seen
}

func (t *awayTask) name() string { return "away" }

func (t *awayTask) urgent() bool { return false }

// due follows the nodes, too: the loop asks at each of its looks.
func (t *awayTask) due(snap *cluster.Snapshot, now cluster.Instant) bool {
	for n, v := range snap.Nodes {
		switch _, known := t.since[n]; {
		case !isAway(v):
			delete(t.since, n)
		case !known:
			t.since[n] = now
		}
	}
	return t.m.any(snap, func(r movesRecord) bool { _, differs := t.word(snap, r, now); return differs })
}

func (t *awayTask) wake(now cluster.Instant) cluster.Instant {
	at := cluster.Forever
	for _, since := range t.since {
		if until := since.Add(awayAfter); now.Before(until) {
			at = cluster.Earliest(at, until)
		}
	}
	return at
}

// isAway reports a member that is not registered and not proven dead.
func isAway(v cluster.NodeView) bool {
	return v.Record.Present && v.Alive.Err == nil && !v.Alive.Present && !placement.Proven(v)
}

// awayWord is how such a reason begins.
const awayWord = "not known: "

// word is what the record is to say; differs: it says something else.
func (t *awayTask) word(snap *cluster.Snapshot, r movesRecord, now cluster.Instant) (text string, differs bool) {
	if r.w.State != cluster.WorkloadRunning || t.m.busy(r.w.Name) {
		return "", false
	}
	n := r.w.Head()
	since, away := t.since[n]
	if !away {
		return "", strings.HasPrefix(r.w.Reason, awayWord)
	}
	if now.Before(since.Add(awayAfter)) {
		return "", false
	}
	text = fmt.Sprintf("%sits node %s is away (daemon state %q); it was running when the node was seen last. It starts elsewhere only once the node is proven dead: let it come back, or `pvc fence now %s`", awayWord, n, snap.Nodes[n].Daemon.Value, n)
	return text, text != r.w.Reason
}

func (t *awayTask) run(ctx context.Context) error {
	m := t.m
	return m.run(ctx, "away", "", func(ctx context.Context, a *activity.Activity) error {
		snap := m.snapshot()
		for _, r := range m.records(snap) {
			text, differs := t.word(snap, r, m.now())
			if !differs {
				continue
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			next := r.w.Clone()
			m.as(&next, next.State, text)
			if _, err := m.save(ctx, a.Token(), "workload.away", r, next); err != nil {
				return fmt.Errorf("say that the node of a workload is away, or back: %w", err)
			}
			m.w.d.Log.Info("a workload's record says whether its node is away", zap.String("workload", r.w.Name), zap.String("peer", string(r.w.Head())), zap.Bool("away", text != ""))
		}
		return nil
	})
}
