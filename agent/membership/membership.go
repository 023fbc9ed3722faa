// Package membership decides who belongs to the cluster and who counts for
// majorities of node leases. It is pure: what the primary sees goes in, what is
// to be written, waited for or refused comes out. Everything it decides is
// written in one Multi that checks the versions on which it was decided, and the
// lease.
//
//	no set ──Bootstrap──▶ set ──Count / Leave / Remove──▶ set'     majority(set) and majority(set')
//	set damaged ──Restore──▶ the set that was seen last            nothing changes, so that nobody is asked
//
//	a name:  unknown ──registers──▶ member ──Remove──▶ out ──Admit──▶ free ──registers──▶ member
//
// A host that was removed stays out by its name and id even where the name is
// free again (F7), unless the order to add names that very host.
package membership

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// Patience is how long an order waits for what it needs: the node's first
// registration, a majority, a clear view. Then it is refused (I7).
const Patience = 5 * time.Minute

// Settle is how long the registered coordinators must stay the same before the
// first quorum set is made of them: they start together.
const Settle = 3 * time.Second

// Input is all that is decided on. Nothing in it is edited or kept.
type Input struct {
	Self     cluster.NodeID
	Epoch    cluster.Epoch // of the lease, which Self holds
	Now      cluster.Instant
	WallMS   int64
	Snapshot *cluster.Snapshot
	See      func(cluster.NodeID) cluster.Liveness // the detector's word
	Blind    string                                // why that counts for nothing now; empty: it counts
	Fences   bool                                  // there is a fencer here: the lost are proven dead before they are removed
	Waited   time.Duration                         // since the order was seen first
}

// Effect is what is to be done.
type Effect uint8

// The effects. Each is one Multi under the epoch check.
const (
	None      Effect = iota // refused, or waited for
	Bootstrap               // make the first quorum set
	Restore                 // write a set that was damaged as it was seen last
	Admit                   // let a removed name, or host, in again
	Count                   // have a coordinator count
	Leave                   // have it count no more; it stays a node
	Remove                  // take a node out and delete its records
	Nothing                 // it is so already: the order ends
)

// String names the effect, as the history's field "effect" does.
func (e Effect) String() string {
	names := [...]string{"none", "bootstrap", "restored", "admitted", "counted", "counts_no_more", "removed", "already"}
	if int(e) >= len(names) {
		return names[0]
	}
	return names[e]
}

// Decision is what becomes of an order, or of the set, now.
type Decision struct {
	Effect  Effect
	Refusal cluster.Refusal // why not; empty code: it is not refused
	Wait    string          // why not yet; empty: nothing is waited for
	Ends    bool            // the order ends with this effect
	// Set is what the quorum set becomes; nil: it stays. Majorities of Old and of
	// Set.Nodes must be held, unless Old is empty.
	Set *cluster.QuorumSet
	Old []cluster.NodeID
	// Members is what the record of the removed becomes; nil: it stays.
	Members *cluster.Members
	Text    string // what is told of the effect
}

// Order decides on the operator's order that the snapshot shows.
func Order(in Input) Decision {
	seen := in.Snapshot.MemberOrder
	c := orderCase{Input: in, order: seen.Value, view: in.Snapshot.Nodes[seen.Value.Node]}
	_, c.known = in.Snapshot.Nodes[seen.Value.Node]
	switch {
	case seen.Err != nil:
		return c.no(cluster.RefuseOrder, "the order cannot be read (%v); give it again", seen.Err)
	case c.order.Node.Validate() != nil:
		return c.no(cluster.RefuseOrder, "%v", c.order.Node.Validate())
	case c.order.Mode != "" && !c.order.Mode.Valid():
		return c.no(cluster.RefuseOrder, "%q is not a mode; one is coordinator or hypervisor", c.order.Mode)
	}
	if d, unclear := c.unclear(); unclear {
		return d
	}
	switch c.order.Action {
	case cluster.MemberAdd:
		return c.add()
	case cluster.MemberRemove:
		return c.remove()
	}
	return c.no(cluster.RefuseOrder, "action %q is not one of add, remove", c.order.Action)
}

// Unheld is what becomes of a decision that needs majorities which are not held.
func Unheld(in Input, d Decision, why string) Decision {
	c := orderCase{Input: in, order: in.Snapshot.MemberOrder.Value}
	if in.Waited < Patience {
		return wait("majorities of %v and of %v are not held: %s", d.Old, d.Set.Nodes, why)
	}
	return c.no(cluster.RefuseNoQuorum, "the quorum set changes only while majorities of node leases are held of the old set %v and of the new %v: %s. Nothing was changed; bring the missing nodes back. One that is to leave counts no more by `pvc node add NODE --hypervisor` while it still runs",
		d.Old, d.Set.Nodes, why)
}

// orderCase is an order with what it is judged by.
type orderCase struct {
	Input
	order cluster.MemberOrder
	view  cluster.NodeView
	known bool
}

func (c orderCase) no(code cluster.RefusalCode, format string, args ...any) Decision {
	return Decision{Refusal: cluster.Refusal{Code: code, Node: c.order.Node, Detail: fmt.Sprintf("node %s: ", c.order.Node) + fmt.Sprintf(format, args...)}}
}

func wait(format string, args ...any) Decision { return Decision{Wait: fmt.Sprintf(format, args...)} }

// orNo waits, and refuses once the order has waited for long.
func (c orderCase) orNo(code cluster.RefusalCode, format string, args ...any) Decision {
	if c.Waited < Patience {
		return wait(format, args...)
	}
	return c.no(code, "for %s: "+format, append([]any{Patience}, args...)...)
}

// unclear reports that a record which every decision rests on is not known.
func (c orderCase) unclear() (Decision, bool) {
	s := c.Snapshot
	switch {
	case s.Members.Err != nil:
		return c.orNo(cluster.RefuseUnreadable, "who was removed cannot be read (%v)", s.Members.Err), true
	case s.Quorum.Err != nil:
		return c.orNo(cluster.RefuseUnreadable, "the quorum set cannot be read (%v); if it stays so, delete the record by hand, and the primary makes it anew of the registered coordinators", s.Quorum.Err), true
	case s.Members.SeenAt.IsZero() || s.Quorum.SeenAt.IsZero():
		return wait("the records of the members are being read"), true
	case c.known && (c.view.Record.SeenAt.IsZero() || c.view.Mode.SeenAt.IsZero() || c.view.Fence.SeenAt.IsZero()) && c.Waited < Patience:
		return wait("the node's records are being read"), true
	}
	return Decision{}, false
}

func (c orderCase) registered() bool { return c.view.Record.Present && c.view.Record.Err == nil }

func (c orderCase) host() string { return c.view.Record.Value.ID }

// add lets a removed name in first; a coordinator counts once it has registered
// and runs.
func (c orderCase) add() Decision {
	o, members := c.order, c.Snapshot.Members.Value
	if _, out := members.Out(o.Node, o.Host); out {
		next := members.Admitting(o.Node, o.Host, c.Epoch)
		text := fmt.Sprintf("the name %s is free again", o.Node)
		if o.Host != "" {
			text = fmt.Sprintf("host %s may be node %s again", o.Host, o.Node)
		}
		return Decision{Effect: Admit, Members: &next, Ends: o.Mode == cluster.Hypervisor && !c.Snapshot.Quorum.Value.Has(o.Node), Text: text}
	}
	switch {
	case c.known && c.view.Mode.Err != nil:
		return c.orNo(cluster.RefuseUnreadable, "its mode cannot be read (%v); the node mends it when it starts", c.view.Mode.Err)
	case o.Mode == cluster.Hypervisor:
		return c.leave()
	case !c.registered() && len(members.Of(o.Node)) == 0 && !c.known && o.Host == "": // a host that is named was let in, and is not on the list any more
		return c.no(cluster.RefuseUnknownNode, "no node of this name is registered; start pvcnoded there first")
	case !c.registered():
		return c.orNo(cluster.RefuseNotRegistered, "it may register and has not yet; start pvcnoded there, and add it again if it then does not count")
	case o.Host != "" && o.Host != c.host():
		return c.no(cluster.RefuseOtherHost, "host %s has registered by this name, and %s is meant", c.host(), o.Host)
	case o.Mode == "" && c.view.Mode.Value == cluster.Hypervisor:
		return c.leave()
	case c.view.Mode.Value != cluster.Coordinator:
		return c.no(cluster.RefuseNotCoordinator, "it runs as a %s; set node.mode to coordinator there, restart its daemon, and add it again", c.view.Mode.Value)
	}
	return c.count()
}

func (c orderCase) count() Decision {
	o, set := c.order, c.Snapshot.Quorum
	switch {
	case !set.Present:
		return c.orNo(cluster.RefuseNoQuorum, "the cluster has no quorum set yet; the primary makes it of the registered coordinators")
	case set.Value.Has(o.Node) && set.Value.IDs[o.Node] == c.host():
		return Decision{Effect: Nothing, Ends: true, Text: fmt.Sprintf("node %s counts already", o.Node)}
	case set.Value.Has(o.Node) && set.Value.IDs[o.Node] != "":
		return c.no(cluster.RefuseOtherHost, "by this name host %s counts, and host %s has registered, which is another node. Stop it, remove the name, and add it with --host %s", set.Value.IDs[o.Node], c.host(), c.host())
	case c.Blind != "":
		return c.orNo(cluster.RefuseObserverBlind, "the primary cannot judge it: %s", c.Blind)
	case !c.view.Alive.Present || o.Node != c.Self && c.See(o.Node) != cluster.LiveUp:
		return c.orNo(cluster.RefuseNotRunning, "it does not run; one that counts and is away only makes majorities rarer")
	}
	next := set.Value.With(o.Node, c.host(), c.Epoch)
	return Decision{Effect: Count, Set: &next, Old: set.Value.Nodes, Ends: true, Text: fmt.Sprintf("node %s counts: the quorum set is %v", o.Node, next.Nodes)}
}

// leave has a node count no more.
func (c orderCase) leave() Decision {
	o, set := c.order, c.Snapshot.Quorum
	if !set.Present && c.known && c.view.Mode.Value == cluster.Coordinator {
		return c.orNo(cluster.RefuseNoQuorum, "the cluster has no quorum set yet; the primary makes it of the registered coordinators")
	}
	if !set.Value.Has(o.Node) {
		return Decision{Effect: Nothing, Ends: true, Text: fmt.Sprintf("node %s counts for no majority", o.Node)}
	}
	next := set.Value.Without(o.Node, c.Epoch)
	if len(next.Nodes) == 0 {
		return c.no(cluster.RefuseLastCoordinator, "it is the last that counts, and a quorum set is never empty; add another coordinator first")
	}
	return Decision{Effect: Leave, Set: &next, Old: set.Value.Nodes, Ends: true, Text: fmt.Sprintf("node %s counts no more: the quorum set is %v", o.Node, next.Nodes)}
}

// FirstState is how far the making of the first set is.
type FirstState struct {
	found map[cluster.NodeID]string
	since cluster.Instant
}

// First makes the first quorum set, of the registered coordinators, once they
// have been the same for Settle. What is not known of one of them is waited for.
func First(s FirstState, in Input) (FirstState, Decision) {
	set := in.Snapshot.Quorum
	if set.Present || set.Err != nil || set.SeenAt.IsZero() {
		return FirstState{}, Decision{}
	}
	found := map[cluster.NodeID]string{}
	for n, view := range in.Snapshot.Nodes {
		switch {
		case view.Mode.SeenAt.IsZero() || view.Record.SeenAt.IsZero() || view.Record.Err != nil || view.Mode.Err != nil:
			return FirstState{}, wait("the records of node %s are not known", n)
		case view.Record.Present && view.Mode.Value == cluster.Coordinator:
			found[n] = view.Record.Value.ID
		}
	}
	if _, self := found[in.Self]; !self {
		return FirstState{}, wait("this node is not registered")
	}
	if !maps.Equal(found, s.found) {
		return FirstState{found: found, since: in.Now}, wait("the coordinators %v have just registered", slices.Sorted(maps.Keys(found)))
	}
	if in.Now.Sub(s.since) < Settle {
		return s, wait("the coordinators %v have just registered", slices.Sorted(maps.Keys(found)))
	}
	first := cluster.QuorumSet{Version: 1, Epoch: in.Epoch, N: 1, IDs: map[cluster.NodeID]string{}}
	for _, n := range slices.Sorted(maps.Keys(found)) {
		first.Nodes = append(first.Nodes, n)
		if found[n] != "" {
			first.IDs[n] = found[n]
		}
	}
	return s, Decision{Effect: Bootstrap, Set: &first, Text: fmt.Sprintf("the first quorum set is %v", first.Nodes)}
}

// Mend writes the quorum set as it was seen last over one that was damaged or is
// gone, so that it is never made anew of what happens to be registered (A3). One
// whose nodes are not all registered any more is of another tree.
func Mend(in Input, last cluster.QuorumSet) Decision {
	set := in.Snapshot.Quorum
	if set.SeenAt.IsZero() || set.Present && set.Err == nil || len(last.Nodes) == 0 {
		return Decision{}
	}
	for _, n := range last.Nodes {
		if !in.Snapshot.Nodes[n].Record.Present {
			return Decision{}
		}
	}
	next := last
	next.Epoch, next.N = in.Epoch, last.N+1
	return Decision{Effect: Restore, Set: &next, Text: fmt.Sprintf("the quorum set was damaged and is again %v", next.Nodes)}
}

// Foreign reports whether the set was changed by somebody else than the primary
// of this epoch: what rests on the set as it was is void then (S163).
func Foreign(epoch cluster.Epoch, before, now cluster.Versioned[cluster.QuorumSet]) bool {
	if !before.Present || before.Err != nil || before.Mzxid == now.Mzxid && before.Version == now.Version {
		return false
	}
	return !now.Present || now.Err != nil || now.Value.Epoch != epoch || now.Value.N <= before.Value.N
}
