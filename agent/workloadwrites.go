package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// workloadWrite bounds one write of the primary's about workloads, its repetitions
// included.
const workloadWrite = 4 * time.Second

// write sends one Multi with the operations under the very role under which the
// token's activity was admitted (I2); the lease is checked in it, and it is sent
// again only where this node's own renewal of that came between. The token is asked
// right before each send. FailedOp counts the given operations. What became of an
// unknown one is the caller's to find out: by reading the record, never by assuming.
func (w *workloadWatch) write(ctx context.Context, t cluster.Token, purpose string, ops []cluster.Op) cluster.TxnResult {
	return writeUnderRole(ctx, w.c, w.d, w.newest(), t.Epoch(), t.Check, purpose, ops)
}

// writeUnderRole is write for whatever allows it at that instant.
func writeUnderRole(ctx context.Context, c Config, d Deps, snap *cluster.Snapshot, epoch cluster.Epoch, allowed func() error, purpose string, ops []cluster.Op) cluster.TxnResult {
	ctx, cancel := context.WithTimeout(ctx, workloadWrite)
	defer cancel()
	notSent := func(err error) cluster.TxnResult {
		return cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1, Err: fmt.Errorf("%s: %w", purpose, err)}
	}
	for tries := 0; ; tries++ {
		if tries > 0 { // the snapshot is behind
			fresh, err := d.Store.Refresh(ctx)
			if err != nil {
				return notSent(err)
			}
			snap = fresh
		}
		l := snap.Lease
		if held := l.Present && l.Err == nil && l.Value.HeldBy(c.Node, c.Incarnation) && l.Value.Epoch == epoch; !held && tries > 0 {
			return notSent(fmt.Errorf("judged at epoch %d: %w", epoch, errNotPrimary))
		} else if !held {
			continue
		}
		if err := allowed(); err != nil {
			return notSent(err)
		}
		all := append([]cluster.Op{cluster.Check(cluster.Key{Kind: cluster.KeyLease}, l.Version)}, ops...)
		res := d.Store.Commit(ctx, cluster.Txn{Purpose: purpose, Ops: all})
		if len(res.Versions) > 0 {
			res.Versions = res.Versions[1:]
		}
		if res.FailedOp >= 0 {
			res.FailedOp--
		}
		if res.Outcome != cluster.OutcomeConflict || res.FailedOp >= 0 || ctx.Err() != nil {
			return res
		}
		if tries > 0 {
			pause(ctx, orderConflict)
		}
	}
}

// latest is the newest snapshot that meets the condition, waited for at most that
// long; else the newest. The snapshot follows the store by watches, so that what
// was just written may not be in it yet.
func (w *workloadWatch) latest(ctx context.Context, limit time.Duration, met func(*cluster.Snapshot) bool) (*cluster.Snapshot, bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		snap := w.newest()
		if snap.Live && snap.Complete && met(snap) {
			return snap, true
		}
		if ctx.Err() != nil {
			return snap, false
		}
		pause(ctx, 5*time.Millisecond)
	}
}

// historyOp tells the history of an event, in whatever Multi it belongs to.
func historyOp(e cluster.Event) cluster.Op {
	return cluster.Op{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: e}
}

// failingOver reports whether the node's present start is being fenced, and not
// proven dead yet.
func failingOver(snap *cluster.Snapshot, n cluster.NodeID) bool {
	view := snap.Nodes[n]
	f := view.Fence
	return f.Present && f.Err == nil && f.Value.ID != "" && !f.Value.Ended() && f.Value.Incarnation == view.Record.Value.Incarnation && !placement.Proven(view)
}

// registeredNodes are the members, in order.
func registeredNodes(snap *cluster.Snapshot) []cluster.NodeID {
	var nodes []cluster.NodeID
	for n, view := range snap.Nodes {
		if view.Record.Present && view.Record.Err == nil {
			nodes = append(nodes, n)
		}
	}
	slices.Sort(nodes)
	return nodes
}
