package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// recoveryTask restarts the movable workloads of a node that is proven dead. It
// begins with the snapshot that shows the proof. Each workload's new place is one
// transaction, in which the proof, the registration that it is of and this role are
// checked once more (I4, I2); then its start is ordered there:
//
//	chain [a], a proven ─▶ chain [b], recovering ─▶ running
//	        │                    │  (start failed: upkeep tries again, later elsewhere)
//	        └─▶ no place: chain [∅], stopped, wanted: upkeep starts it once there is one
//
// Whoever is primary next finds either, and goes on: the first here, the second in
// the upkeep, which looks what runs before it orders anything.
type recoveryTask struct{ m *moves }

func (t *recoveryTask) name() string { return "recovery" }

func (t *recoveryTask) urgent() bool { return true }

func (t *recoveryTask) due(snap *cluster.Snapshot, _ cluster.Instant) bool {
	proven := false
	for _, v := range snap.Nodes {
		proven = proven || placement.Recoverable(v)
	}
	if !proven {
		return false
	}
	return t.m.any(snap, func(r movesRecord) bool { return t.needs(snap, r) && t.free(r) })
}

// needs reports whether the workload is to be restarted elsewhere.
func (t *recoveryTask) needs(snap *cluster.Snapshot, r movesRecord) bool {
	head := r.w.Head()
	if r.w.Next != nil && r.w.Next.Live != "" { // the other node may have it: that is cleared first (clear)
		return false
	}
	return r.w.Kind == cluster.WorkloadMovable && r.w.Wanted && head != cluster.NoCopy && placement.Recoverable(snap.Nodes[head])
}

// free reports whether nothing is being done with the workload already. What else has
// failed with it before, and is left alone for a while, keeps no recovery waiting.
func (t *recoveryTask) free(r movesRecord) bool {
	return !t.m.waits(t.pause(r)) && !t.m.busy(r.w.Name)
}

// pause names the workload's recovery where it is left alone.
func (t *recoveryTask) pause(r movesRecord) string { return "recovery " + r.w.Name }

func (t *recoveryTask) run(ctx context.Context) error {
	m := t.m
	return m.run(ctx, "recovery", recoveryDomain, func(ctx context.Context, a *activity.Activity) error {
		snap := m.snapshot()
		list := m.records(snap)
		book := m.book(ctx, snap, list)
		byName := map[string]movesRecord{}
		var lost []cluster.Workload
		for _, r := range list {
			if t.needs(snap, r) && t.free(r) {
				byName[r.w.Name], lost = r, append(lost, r.w)
			}
		}
		crowded := m.crowded()
		var jobs []moveJob
		var beside sync.WaitGroup
		defer beside.Wait()
		for _, w := range placement.Sorted(lost) {
			r := byName[w.Name]
			to, why := book.Place(w, crowded...)
			if why != "" {
				to, why = book.Place(w)
			}
			if why != "" {
				// Written beside, since what has a place comes first.
				beside.Add(1)
				if err := a.Go("stop "+w.Name, func(ctx context.Context) error {
					defer beside.Done()
					return t.tried(r, t.homeless(ctx, a.Token(), snap, r, why))
				}); err != nil {
					beside.Done()
					return err
				}
				continue
			}
			jobs = append(jobs, moveJob{node: to, r: r, wait: t.pause(r), run: func(ctx context.Context, a *activity.Activity) error {
				return t.tried(r, t.restart(ctx, a.Token(), snap, r, to))
			}})
		}
		return m.batch(ctx, "recovery", jobs)
	})
}

// tried leaves a workload alone for a moment whose recovery has failed, so that one
// that cannot be written keeps nobody busy.
func (t *recoveryTask) tried(r movesRecord, err error) error {
	if err != nil && !t.m.waits(t.pause(r)) {
		pause := workloadRetry
		if errors.Is(err, cluster.ErrConflict) || errors.Is(err, errBarred) { // most often the fence's own next stage, which proves as much
			pause = 2 * workloadStep
		}
		t.m.later(t.pause(r), pause)
	}
	return err
}

// proof are the checks by which the dead-proof stands at the very write.
func proof(snap *cluster.Snapshot, n cluster.NodeID) []cluster.Op {
	v := snap.Nodes[n]
	return []cluster.Op{cluster.Check(cluster.Key{Kind: cluster.KeyFence, Node: n}, v.Fence.Version), cluster.Check(cluster.Key{Kind: cluster.KeyNodeRecord, Node: n}, v.Record.Version)}
}

// restart writes the workload's new place and starts it there.
func (t *recoveryTask) restart(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot, r movesRecord, to cluster.NodeID) error {
	m, from := t.m, r.w.Head()
	if err := m.mayTake(to); err != nil {
		return err
	}
	next := r.w.Clone()
	next.Chain, next.Next, next.Pass = []cluster.NodeID{to}, nil, moveID()
	m.as(&next, cluster.WorkloadRecovering, fmt.Sprintf("its node %s is proven dead (%s); it starts on %s", from, snap.Nodes[from].Fence.Value.Proof, to))
	saved, err := m.save(ctx, tok, "workload.recover", r, next, append(proof(snap, from), m.event(next, "recovered", "%s", next.Reason))...)
	if err != nil {
		return err
	}
	m.w.d.Log.Info("a workload restarts elsewhere", zap.String("workload", r.w.Name), zap.String("from", string(from)), zap.String("to", string(to)))
	err = m.startFirst(ctx, tok, saved)
	return err
}

// homeless writes that nothing could take the workload: it is stopped, and wanted.
func (t *recoveryTask) homeless(ctx context.Context, tok cluster.Token, snap *cluster.Snapshot, r movesRecord, why string) error {
	m, from := t.m, r.w.Head()
	next := r.w.Clone()
	next.Chain, next.Next, next.Pass = []cluster.NodeID{cluster.NoCopy}, nil, moveID()
	again := "it starts by itself once a node can"
	if !next.Autostart {
		again = fmt.Sprintf("its autostart is off: `pvc workload start %s` once a node can", next.Name)
	}
	m.as(&next, cluster.WorkloadStopped, fmt.Sprintf("its node %s is proven dead; %s; %s", from, again, why))
	_, err := m.save(ctx, tok, "workload.homeless", r, next, append(proof(snap, from), m.event(next, "stopped", "%s", next.Reason))...)
	if err != nil {
		m.w.d.Log.Warn("a workload of a dead node is not dealt with yet", zap.String("workload", r.w.Name), zap.Error(err))
	}
	return err
}
