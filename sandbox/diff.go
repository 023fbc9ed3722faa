package sandbox

import (
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
		out = append(out, Entry{Kind: KindLease, Node: l.Value.Holder, Incarnation: l.Value.Incarnation,
			Epoch: l.Value.Epoch, N: l.Value.N, TTLMillis: l.Value.TTLMillis})
	}
	if t := snap.Transition; t.Present && t.Err == nil && t.Value.ID != old.Transition.Value.ID {
		out = append(out, Entry{Kind: KindTransition, Name: t.Value.ID, By: string(t.Value.From), Node: t.Value.To, Text: string(t.Value.Cause)})
	}
	if p := snap.PrimaryNode; p.Present && p.Value != old.PrimaryNode.Value {
		out = append(out, Entry{Kind: KindPrimary, Text: p.Value})
	}
	names := make([]cluster.NodeID, 0, len(snap.Nodes))
	for name := range snap.Nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out = append(out, nodeDifferences(name, old.Nodes[name], snap.Nodes[name])...)
	}
	return out
}

func nodeDifferences(name cluster.NodeID, was, is cluster.NodeView) []Entry {
	var out []Entry
	if a := is.Record; a.Present && a.Err == nil && a.Value.Incarnation != was.Record.Value.Incarnation {
		out = append(out, Entry{Kind: KindIncarnation, Node: name, Incarnation: a.Value.Incarnation})
	}
	if is.Daemon.Present && is.Daemon.Value != was.Daemon.Value {
		out = append(out, Entry{Kind: KindDaemon, Node: name, Text: string(is.Daemon.Value)})
	}
	if is.Router.Present && is.Router.Value != was.Router.Value {
		out = append(out, Entry{Kind: KindRouter, Node: name, Text: string(is.Router.Value)})
	}
	if f := is.Fence; f.Present && f.Err == nil && f.Mzxid != was.Fence.Mzxid {
		out = append(out, Entry{Kind: KindFence, Node: name, Incarnation: f.Value.Incarnation, Epoch: f.Value.Epoch,
			Stage: f.Value.Stage, Name: f.Value.ID, By: string(f.Value.By), Text: f.Value.Proof})
	}
	return out
}
