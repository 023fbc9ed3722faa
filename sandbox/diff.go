package sandbox

import (
	"maps"
	"slices"

	"pvc.internal/cluster"
)

// differences turns two successive views into history entries; old may be nil.
func differences(old, snap *cluster.Snapshot) []Entry {
	if old == nil {
		old = &cluster.Snapshot{}
	}
	var out []Entry
	if l := snap.Lease; l.Present && l.Err == nil && l.Mzxid != old.Lease.Mzxid {
		out = append(out, dated(old.Lease, l, Entry{Kind: KindLease, Node: l.Value.Holder, Incarnation: l.Value.Incarnation,
			Epoch: l.Value.Epoch, N: l.Value.N, TTLMillis: l.Value.TTLMillis, Peers: l.Value.Coordinators, Unproven: unproven(l.Value)}))
	}
	if t := snap.Transition; t.Present && t.Err == nil && t.Value.ID != old.Transition.Value.ID {
		out = append(out, Entry{Kind: KindTransition, Name: t.Value.ID, By: string(t.Value.From), Node: t.Value.To, Text: string(t.Value.Cause)})
	}
	if p := snap.PrimaryNode; p.Present && p.Value != old.PrimaryNode.Value {
		out = append(out, dated(old.PrimaryNode, p, Entry{Kind: KindPrimary, Text: p.Value}))
	}
	if m := snap.Maintenance; m.Present && m.Err == nil && (!old.Maintenance.Present || m.Value != old.Maintenance.Value) {
		out = append(out, dated(old.Maintenance, m, Entry{Kind: KindMaintenance, On: m.Value}))
	}
	if snap.Live != old.Live {
		out = append(out, Entry{Kind: KindStore, On: snap.Live})
	}
	names := make([]cluster.NodeID, 0, len(snap.Nodes))
	for name := range snap.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	out = append(out, workloadDifferences(old.Workloads, snap.Workloads)...)
	for _, name := range names {
		out = append(out, nodeDifferences(name, old.Nodes[name], snap.Nodes[name])...)
	}
	return out
}

// workloadDifferences are where workloads are to be, and their states.
func workloadDifferences(was, is map[string]cluster.Versioned[cluster.Workload]) []Entry {
	var out []Entry
	for _, name := range slices.Sorted(maps.Keys(is)) {
		w, old := is[name], was[name]
		if !w.Present || w.Err != nil || old.Mzxid == w.Mzxid || old.Value.State == w.Value.State && slices.Equal(old.Value.Chain, w.Value.Chain) {
			continue
		}
		out = append(out, dated(old, w, Entry{Kind: KindWorkload, Name: name, Nodes: w.Value.Chain, By: string(w.Value.State), Text: w.Value.Reason}))
	}
	return out
}

func unproven(l cluster.Lease) []cluster.NodeID {
	var out []cluster.NodeID
	for _, u := range l.Unproven {
		out = append(out, u.Node)
	}
	return out
}

// dated adds to an entry when the record was written, and since when if writes
// in between were not seen.
func dated[T any](was, is cluster.Versioned[T], e Entry) Entry {
	e.At = is.SeenAt
	if e.Written = bootInstant(is.WrittenMS, is.SeenAt); e.Written.IsZero() {
		return e
	}
	next := was.Version + 1
	if !was.Present {
		next = 0 // the first version
	}
	if is.Version != next {
		e.After = max(1, bootInstant(was.WrittenMS, is.SeenAt))
	}
	return e
}

func nodeDifferences(name cluster.NodeID, was, is cluster.NodeView) []Entry {
	var out []Entry
	if a := is.Record; a.Present && a.Err == nil && a.Value.Incarnation != was.Record.Value.Incarnation {
		out = append(out, dated(was.Record, a, Entry{Kind: KindIncarnation, Node: name, Incarnation: a.Value.Incarnation}))
	}
	if k := is.Keepalive; k.Present && k.Err == nil && k.Mzxid != was.Keepalive.Mzxid {
		out = append(out, dated(was.Keepalive, k, Entry{Kind: KindKeepalive, Node: name, N: uint64(k.Version)}))
	}
	if is.Daemon.Present && is.Daemon.Value != was.Daemon.Value {
		out = append(out, Entry{Kind: KindDaemon, Node: name, Text: string(is.Daemon.Value)})
	}
	if is.Router.Present && is.Router.Value != was.Router.Value {
		out = append(out, Entry{Kind: KindRouter, Node: name, Text: string(is.Router.Value)})
	}
	if f := is.Fence; f.Present && f.Err == nil && f.Mzxid != was.Fence.Mzxid {
		e := dated(was.Fence, f, Entry{Kind: KindFence, Node: name, Incarnation: f.Value.Incarnation, Epoch: f.Value.Epoch,
			Stage: f.Value.Stage, Name: f.Value.ID, By: string(f.Value.By), Text: f.Value.Proof, Order: f.Value.Order})
		if !e.After.IsZero() && f.Value.ID != was.Fence.Value.ID {
			// Its first writes were not seen: it stands since its claim, which it dates.
			e.After = max(e.After, bootInstant(f.Value.StartedMS, f.SeenAt))
		}
		out = append(out, e)
	}
	return out
}
