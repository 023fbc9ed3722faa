package role

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// Roll is who could take the role should its lease merely expire: names, in
// order and each once, and, as far as they are known, the ids of the hosts that
// are meant (NodeRecord.ID). Neither part is ever edited.
type Roll struct {
	Nodes []cluster.NodeID
	IDs   map[cluster.NodeID]string
}

// SeveralHosts stands in a Roll's IDs for a name by which more than one host may
// be meant. No host has this id.
const SeveralHosts = "several hosts"

// Coordinators are the nodes that may take the role as far as the snapshot
// shows, in order, whatever state they are in: one that is away may come back
// and reach a store that the others do not. A node whose mode cannot be read counts.
func Coordinators(snap *cluster.Snapshot) []cluster.NodeID {
	var ids []cluster.NodeID
	for id, n := range snap.Nodes {
		if n.Mode.Value != cluster.Hypervisor {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Counted are the coordinators as the snapshot shows them.
func Counted(snap *cluster.Snapshot) Roll {
	r := Roll{Nodes: Coordinators(snap)}
	for _, n := range r.Nodes {
		if id := idOf(snap, n); id != "" {
			if r.IDs == nil {
				r.IDs = make(map[cluster.NodeID]string, len(r.Nodes))
			}
			r.IDs[n] = id
		}
	}
	return r
}

func idOf(snap *cluster.Snapshot, n cluster.NodeID) string { return snap.Nodes[n].Record.Value.ID }

func rollOf(l cluster.Lease) Roll { return Roll{l.Coordinators, l.IDs} }

// and returns all that either names.
func (r Roll) and(other Roll) Roll {
	if slices.Equal(r.Nodes, other.Nodes) && maps.Equal(r.IDs, other.IDs) && ascending(r.Nodes) {
		return Roll{Nodes: slices.Clip(r.Nodes), IDs: r.IDs} // nearly always: it is asked at each step
	}
	nodes := slices.Concat(r.Nodes, other.Nodes)
	slices.Sort(nodes)
	all := Roll{Nodes: slices.Compact(nodes), IDs: r.IDs}
	if len(r.IDs) == 0 || maps.Equal(r.IDs, other.IDs) {
		all.IDs = other.IDs
		return all
	}
	all.IDs = maps.Clone(r.IDs)
	for n, id := range other.IDs {
		if have, ok := all.IDs[n]; ok && have != id {
			id = SeveralHosts
		}
		all.IDs[n] = id
	}
	return all
}

// ascending reports whether the nodes stand in order, each once.
func ascending(nodes []cluster.NodeID) bool {
	for i := 1; i < len(nodes); i++ {
		if nodes[i-1] >= nodes[i] {
			return false
		}
	}
	return true
}

// naming has a lease of this node's name its holder's host, and, where the
// failsafe is on, those whose promises the holder would ask for. No other takes
// it when it merely expires, so that none is added while the lease is not renewed
// (protocol §4). Of itself a node knows better than a record that a namesake may
// have written over.
func (m *machine) naming(l cluster.Lease) cluster.Lease {
	var r Roll
	if m.c.Failsafe {
		// Itself and the holder even where the list of nodes reads empty: a lease
		// that names nobody is taken by anybody once it expires (I1).
		r = Counted(m.in.Snapshot).and(Roll{Nodes: []cluster.NodeID{l.Holder, m.c.Node}})
	}
	id := m.c.ID
	if l.Holder != m.c.Node {
		id = idOf(m.in.Snapshot, l.Holder)
	}
	l.Coordinators, l.IDs = r.Nodes, r.IDs
	for n, own := range map[cluster.NodeID]string{l.Holder: id, m.c.Node: m.c.ID} {
		_, listed := l.IDs[n]
		if own == "" || l.IDs[n] == own || !listed && n != l.Holder && !slices.Contains(r.Nodes, n) {
			continue
		}
		if l.IDs == nil {
			l.IDs = map[cluster.NodeID]string{}
		}
		l.IDs[n] = own // made above for this lease
	}
	return l
}

// named reports whether this very host is one of those whom the lease's holder
// asks before it goes on without the store. One that asks nobody never goes on.
func (m *machine) named(l cluster.Lease) bool {
	return len(l.Coordinators) == 0 || slices.Contains(l.Coordinators, m.c.Node) && l.Means(m.c.Node, m.c.ID)
}

// ours reports whether this host is the one that the lease means by the holder's
// name. A namesake on another host may live on, so that its role is not resumed
// here but runs out like anybody's (I1).
func (m *machine) ours(l cluster.Lease) bool {
	return l.Holder == m.c.Node && l.Means(m.c.Node, m.c.ID)
}

// followRoll remembers whether whoever last wrote the lease counted this node,
// for a time in which the lease is lost. It says nothing of the time before this
// node was registered.
func (m *machine) followRoll() {
	if l := m.in.Snapshot.Lease; l.Present && l.Err == nil && !m.s.registered.IsZero() {
		m.s.counted = l.Value.Released() || m.named(l.Value)
	}
}

// uncounted reports whether the lease's holder may be going on by the word of
// coordinators among which this node is not: it was added while the lease was
// not renewed. A lease that was given up, or whose holder is proven or vouched to
// be dead, has nobody who goes on.
func (m *machine) uncounted() bool {
	l := m.in.Snapshot.Lease
	if !l.Present || l.Err != nil {
		return m.unread()
	}
	if l.Value.Released() || m.named(l.Value) || m.dead(l.Value.Holder, l.Value.Incarnation) {
		return false
	}
	who := "this coordinator"
	if slices.Contains(l.Value.Coordinators, m.c.Node) {
		who = fmt.Sprintf("this host, but of another one (id %s) by the name %s,", l.Value.IDs[m.c.Node], m.c.Node)
	}
	m.refuse(cluster.Refusal{Code: cluster.RefuseNotCounted, Node: l.Value.Holder, Detail: fmt.Sprintf(
		"%s did not know of %s when it last renewed the lease, and may be going on by the word of %v; the role is taken once it has renewed, one of those has taken it, or %s is proven dead. If %s has no power and does not come back: `pvc fence confirm %s --reason WHY`",
		l.Value.Holder, who, l.Value.Coordinators, l.Value.Holder, l.Value.Holder, l.Value.Holder)})
	return true
}

// countedOrNobodyAsked reports whether a lost lease stands against nobody here:
// it counted this node, or neither this node nor the last holder, whose host is
// given where it does, ever asks others to go on.
func (m *machine) countedOrNobodyAsked(host string) bool {
	return m.s.counted || !m.c.Failsafe && host == ""
}

// hostOf is the lease's holder's host where that holder may go on by the word of
// others; empty: it does not.
func hostOf(l cluster.Lease) string {
	if len(l.Coordinators) == 0 {
		return ""
	}
	return l.IDs[l.Holder]
}

// ownHost is what hostOf is of a lease of this node's.
func (m *machine) ownHost() string {
	if !m.c.Failsafe {
		return ""
	}
	return m.c.ID
}

// onWord has a take fail if the operator's word that it rests on was taken back
// meanwhile (I1).
func (m *machine) onWord() []cluster.Op {
	l := m.in.Snapshot.Lease
	n, inc := l.Value.Holder, l.Value.Incarnation
	switch {
	case l.Present && l.Err == nil && (l.Value.Released() || m.named(l.Value)):
		return nil
	case l.Present && l.Err == nil:
	default:
		var host string
		if n, host = lastHolder(m.in.Snapshot.Transition); m.countedOrNobodyAsked(host) {
			return nil
		}
		inc = m.in.Snapshot.Nodes[n].Record.Value.Incarnation
	}
	if m.provenDead(n, inc) || !m.dead(n, inc) {
		return nil
	}
	return []cluster.Op{cluster.Check(cluster.Key{Kind: cluster.KeyFenceOrder, Node: n}, m.in.Snapshot.Nodes[n].Order.Version)}
}

// unread is uncounted for a lease that is absent or unreadable. Who was counted
// when it was last read is still asked by the holder, if there is one, and knows
// what it has promised. Who does not know that waits for the end of the last
// holder that the hand-over's record names.
func (m *machine) unread() bool {
	last, host := lastHolder(m.in.Snapshot.Transition)
	if m.countedOrNobodyAsked(host) {
		return false
	}
	why := "this daemon has not read a lease that counts it since it started, so that a holder may be going on by the word of others"
	if last == "" {
		m.refuse(cluster.Refusal{Code: cluster.RefuseNotCounted, Detail: why + "; and who that is nobody can tell, since the record of the last hand-over is not there either. Restore the tree, or make it anew: `pvc cluster init --overwrite`"})
		return true
	}
	view := m.in.Snapshot.Nodes[last]
	if id := view.Record.Value.ID; host != "" && id != host { // its word says nothing of the host that held the role (I1)
		m.refuse(cluster.Refusal{Code: cluster.RefuseNotCounted, Node: last, Detail: fmt.Sprintf(
			"%s, most likely the host %s by the name %s, which the host %q has now; the role is taken when that host is back, or one that it counted makes the lease anew. If neither can be: `pvc cluster init --overwrite`", why, host, last, id)})
		return true
	}
	if m.dead(last, view.Record.Value.Incarnation) {
		return false
	}
	detail := fmt.Sprintf("%s, most likely %s; the role is taken when %s does so, or says for %v that it is secondary, or is proven dead. If it has no power and does not come back: `pvc fence confirm %s --reason WHY`",
		why, last, last, leaseAbsentWait, last)
	if r := view.Router; r.Present && r.Err == nil && r.Value == cluster.RouterSecondary {
		at := r.SeenAt.Add(leaseAbsentWait + m.c.Timing.TakerMargin) // an earlier start's guard may act for as long
		if !m.in.Now.Before(at) {
			return false
		}
		m.wakeAt(at)
		detail = fmt.Sprintf("%s; the last, %s, is secondary, and the role is taken in %v", why, last, at.Sub(m.in.Now).Round(time.Second))
	}
	m.refuse(cluster.Refusal{Code: cluster.RefuseNotCounted, Node: last, Detail: detail})
	return true
}

// lastHolder is who held the role after the last hand-over, by name and host, so
// far as its record tells; empty: it does not.
func lastHolder(t cluster.Versioned[cluster.Transition]) (name cluster.NodeID, host string) {
	switch {
	case !t.Present || t.Err != nil:
		return "", ""
	case t.Value.State == cluster.TransitionAborted, t.Value.Phase < cluster.PhaseAddresses:
		return t.Value.From, t.Value.FromHost
	}
	return t.Value.To, t.Value.ToHost
}

// dead reports whether this start of the node is proven dead, or an operator
// has given his word for it that the next primary takes for the proof.
func (m *machine) dead(n cluster.NodeID, inc cluster.Incarnation) bool {
	o := m.in.Snapshot.Nodes[n].Order
	vouched := n != "" && inc != "" && o.Present && o.Err == nil && o.Value.Action == cluster.OrderConfirm && o.Value.Incarnation == inc && o.Value.Reason != ""
	return vouched || m.provenDead(n, inc)
}
