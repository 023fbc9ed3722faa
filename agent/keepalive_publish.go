package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// keepaliveDraft is one publish: what it writes and what was true when it was made.
type keepaliveDraft struct {
	ops    []cluster.Op
	leaves map[string]string
	state  cluster.DaemonState // "" when it is not written
}

// publish writes one keepalive, healing on the way what stands against it: a
// version that is not known after all, records that are missing, a figure that
// the store refuses. The proof of life itself does not depend on the figures.
func (k *Keepalive) publish(ctx context.Context) cluster.TxnResult {
	r := k.attempt(ctx, false)
	if r.Outcome == cluster.OutcomeConflict && k.forgetVersion() {
		r = k.attempt(ctx, false)
	}
	if r.Outcome == cluster.OutcomeConflict && k.repair(ctx, k.compose(false).ops) {
		r = k.attempt(ctx, false)
	}
	if (r.Outcome == cluster.OutcomeConflict || r.Outcome == cluster.OutcomeRefused) && ctx.Err() == nil {
		r = k.attempt(ctx, true)
	}
	k.note(r)
	if r.Outcome == cluster.OutcomeOK && k.makeNew(ctx) {
		k.note(k.attempt(ctx, false))
	}
	return r
}

// madeAtOnce is how many new records Repair is asked for at a time.
const madeAtOnce = 10

// makeNew has the records of figures made that are new to this process, after
// the proof of life is out: a Multi that meets a missing record would fail
// whole, and a lease renewal that rides in it. It reports whether any was made.
func (k *Keepalive) makeNew(ctx context.Context) bool {
	if k.cfg.Repair == nil {
		return false
	}
	values := k.values()
	k.mu.Lock()
	maps.DeleteFunc(values, func(leaf, _ string) bool { return k.made[leaf] })
	k.mu.Unlock()
	some := false
	for leaves := range slices.Chunk(slices.Sorted(maps.Keys(values)), madeAtOnce) {
		var ops []cluster.Op
		for _, leaf := range leaves {
			ops = append(ops, cluster.Set(leafKey(k.cfg.Node, leaf), cluster.AnyVersion, values[leaf]))
		}
		if ctx.Err() != nil || !k.repair(ctx, ops) {
			break
		}
		some = true
		k.mu.Lock()
		for _, leaf := range leaves {
			k.made[leaf] = true
		}
		k.mu.Unlock()
	}
	return some
}

// attempt composes and publishes once; a bare one carries no figures.
func (k *Keepalive) attempt(ctx context.Context, bare bool) cluster.TxnResult {
	d := k.compose(bare)
	r := k.cfg.Publish(ctx, d.ops)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch r.Outcome {
	case cluster.OutcomeOK:
		maps.Copy(k.acked, d.leaves)
		for leaf := range d.leaves {
			k.wrote[leaf] = r.SentAt
		}
		if d.state != "" {
			k.ackedState, k.wrote[stateLeaf] = d.state, r.SentAt
		}
		k.version = cluster.AnyVersion
		if len(r.Versions) == len(d.ops) {
			k.version = r.Versions[0]
		}
	case cluster.OutcomeRefused:
		k.noteRefused(d, r.FailedOp)
	case cluster.OutcomeConflict, cluster.OutcomeNotSent: // nothing happened
	default:
		// It may have happened, or may still: write all of it again. The next
		// write moves the version on, and with it either the lost one fails, or
		// it shows by a later conflict (forgetVersion).
		k.version = cluster.AnyVersion
		maps.DeleteFunc(k.acked, func(leaf, _ string) bool { _, sent := d.leaves[leaf]; return sent })
		if d.state != "" {
			k.ackedState = ""
		}
	}
	return r
}

// stateLeaf stands for the daemon state among the leaves; no collector's leaf is empty.
const stateLeaf = ""

// compose makes the ops: the keepalive, the state if it is not acknowledged,
// the figures that changed, as many as fit, and a few that are to be written
// again.
func (k *Keepalive) compose(bare bool) keepaliveDraft {
	values := k.values()
	k.mu.Lock()
	defer k.mu.Unlock()
	d := keepaliveDraft{leaves: map[string]string{}}
	d.ops = append(d.ops, cluster.Set(cluster.Key{Kind: cluster.KeyKeepalive, Node: k.cfg.Node}, k.version, k.cfg.Wall().Unix()))
	again := k.toRefresh(values)
	if k.ackedState != k.state || slices.Contains(again, stateLeaf) {
		d.state = k.state
		d.ops = append(d.ops, cluster.Set(cluster.Key{Kind: cluster.KeyDaemonState, Node: k.cfg.Node}, cluster.AnyVersion, k.state))
	}
	if bare {
		return d
	}
	changed := maps.Clone(values)
	maps.DeleteFunc(changed, func(leaf, v string) bool { had, ok := k.acked[leaf]; return ok && had == v })
	size := 0
	for _, leaf := range append(slices.Sorted(maps.Keys(changed)), again...) {
		v := values[leaf]
		if leaf == stateLeaf || k.cfg.Repair != nil && !k.made[leaf] {
			continue // written above, or makeNew's
		}
		if no, ok := k.refuse[leaf]; ok && no == v {
			continue
		}
		delete(k.refuse, leaf)
		if size += len(leaf) + len(v) + 64; size > maxValueBytes && len(d.leaves) > 0 {
			break // the rest follows with the next keepalive
		}
		d.leaves[leaf] = v
		d.ops = append(d.ops, cluster.Set(leafKey(k.cfg.Node, leaf), cluster.AnyVersion, v))
	}
	if k.state != cluster.DaemonStop { // after which nothing is said
		d.ops = append(d.ops, k.riders...)
		k.riders = nil
	}
	return d
}

// toRefresh picks the values that stand acknowledged and are to be written
// again with this keepalive: those whose last write is older than half of
// Refresh, oldest first, and no more than it takes to write all of them in the
// other half. So they spread over the keepalives by themselves. k.mu is held.
func (k *Keepalive) toRefresh(values map[string]string) []string {
	now := k.cfg.Clock.Now()
	var due []string
	for leaf, at := range k.wrote {
		v, there := values[leaf]
		had, acked := k.acked[leaf]
		if leaf == stateLeaf {
			v, there, had, acked = string(k.state), true, string(k.ackedState), k.ackedState != ""
		}
		if there && acked && had == v && now.Sub(at) >= k.cfg.Refresh/2 {
			due = append(due, leaf)
		}
	}
	slices.SortFunc(due, func(a, b string) int {
		return cmp.Or(cmp.Compare(k.wrote[a], k.wrote[b]), cmp.Compare(a, b))
	})
	keepalives := max(1, int(k.cfg.Refresh/2/k.cfg.Interval)-1) // one may fail
	share := (len(k.wrote) + keepalives - 1) / keepalives
	return due[:min(share, len(due))]
}

// noteRefused remembers the values that the store does not take: the one that
// it names, or all of the draft's. They are tried again when they change.
func (k *Keepalive) noteRefused(d keepaliveDraft, failed int) {
	for leaf, v := range d.leaves {
		if failed < 0 || failed >= len(d.ops) || d.ops[failed].Key == leafKey(k.cfg.Node, leaf) {
			k.refuse[leaf] = v
		}
	}
}

// forgetVersion reports whether the last attempt compared a version. Somebody
// else, or a write of ours that was thought lost, has then written the record:
// no reason to miss a keepalive, but what stands there now is not known.
func (k *Keepalive) forgetVersion() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.version == cluster.AnyVersion {
		return false
	}
	k.version, k.ackedState = cluster.AnyVersion, ""
	clear(k.acked)
	return true
}

// repair has the ops' records made where they are missing.
func (k *Keepalive) repair(ctx context.Context, ops []cluster.Op) bool {
	if k.cfg.Repair == nil || ctx.Err() != nil {
		return false
	}
	if err := k.cfg.Repair(ctx, ops); err != nil {
		k.cfg.Log.Warn("node records could not be made: figures are left out of this keepalive", zap.Error(err))
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status.Repaired++
	return true
}

// note keeps a publish's result for the status and tells of each change once.
func (k *Keepalive) note(r cluster.TxnResult) {
	k.mu.Lock()
	was := k.status.LastError
	if r.Outcome == cluster.OutcomeOK {
		k.status.LastError = ""
		// A reply may overtake an earlier one's bookkeeping; the proof of life only grows.
		k.status.Acked = max(k.status.Acked, r.SentAt)
	} else {
		k.status.Failed++
		k.status.LastError = fmt.Sprintf("%v: %v", r.Outcome, r.Err)
	}
	now := k.status.LastError
	k.mu.Unlock()
	if r.Outcome == cluster.OutcomeOK && k.cfg.Acknowledged != nil {
		k.cfg.Acknowledged(r.SentAt)
	}
	switch {
	case was == "" && now != "":
		k.cfg.Log.Warn("keepalive not acknowledged", zap.Stringer("outcome", r.Outcome), zap.Error(r.Err))
	case was != "" && now == "":
		k.cfg.Log.Info("keepalive acknowledged again", zap.String("was", was))
	}
}

// CreateMissing is a Repair that creates each record, and what lies between it
// and the node, by itself, so that one that is there already does not keep the
// others from being made. The node's own record must be there. commit is
// Store.Commit.
func CreateMissing(commit func(context.Context, cluster.Txn) cluster.TxnResult) func(context.Context, []cluster.Op) error {
	return func(ctx context.Context, ops []cluster.Op) error {
		done := map[cluster.Key]bool{}
		for _, op := range ops {
			for _, create := range append(parentsOf(op.Key), cluster.Create(op.Key, op.Value)) {
				if done[create.Key] {
					continue
				}
				r := commit(ctx, cluster.Txn{Purpose: "keepalive.repair", Ops: []cluster.Op{create}})
				if r.Outcome != cluster.OutcomeOK && r.Outcome != cluster.OutcomeConflict {
					return fmt.Errorf("create missing record %v: %v: %w", create.Key, r.Outcome, r.Err)
				}
				done[create.Key] = true
			}
		}
		return nil
	}
}

// parentsOf creates what lies between the node and a plugin's leaf; the record
// of a plugin holds its name.
func parentsOf(k cluster.Key) []cluster.Op {
	plugin, _, nested := strings.Cut(k.Name, "/")
	if k.Kind != cluster.KeyPluginField || !nested {
		return nil
	}
	return []cluster.Op{
		cluster.Create(cluster.Key{Kind: cluster.KeyNodeField, Node: k.Node, Name: "monitoring_data"}, ""),
		cluster.Create(cluster.Key{Kind: cluster.KeyPluginField, Node: k.Node, Name: plugin}, plugin),
	}
}

// latenessBounds are the upper bounds of the histogram's buckets; the last
// bucket has none.
var latenessBounds = [...]time.Duration{
	time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second,
}

// LatenessHistogram counts how long after their due instant keepalives were begun.
type LatenessHistogram struct {
	Counts [len(latenessBounds) + 1]uint64 // of each bucket by itself, in the order of LatenessBounds
	Sum    time.Duration
	Worst  time.Duration
}

// LatenessBounds returns the buckets' upper bounds; one more bucket has none.
func LatenessBounds() []time.Duration { return latenessBounds[:] }

func (h *LatenessHistogram) add(late time.Duration) {
	i := 0
	for i < len(latenessBounds) && late > latenessBounds[i] {
		i++
	}
	h.Counts[i]++
	h.Sum += late
	h.Worst = max(h.Worst, late)
}
