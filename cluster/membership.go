package cluster

import (
	"fmt"
	"slices"
	"time"
)

// QuorumSet is the record of the coordinators that count for majorities of node
// leases (protocol §7, §8). It is a record of its own, never derived from modes
// or registrations once it stands (A3), and changes only while majorities of the
// old set and of the new are held. Absent: the cluster has none yet, and its
// primary makes the first.
type QuorumSet struct {
	Version int      `json:"v"`
	Nodes   []NodeID `json:"nodes"` // in order, each once; never empty
	// IDs are the hosts (NodeRecord.ID) that the names mean, as far as they are
	// known: another host of one of these names is not the one that counts (F7).
	IDs   map[NodeID]string `json:"ids,omitempty"`
	Epoch Epoch             `json:"epoch"` // of the primary that wrote it
	N     uint64            `json:"n"`     // counts its changes
}

// Has reports whether the node is in the set.
func (q QuorumSet) Has(n NodeID) bool { return slices.Contains(q.Nodes, n) }

// With returns the set with the node, and the host that is meant by it, as the
// holder of this epoch writes it. The receiver's parts are not shared.
func (q QuorumSet) With(n NodeID, host string, e Epoch) QuorumSet {
	next := q.without(n, e)
	next.Nodes = append(next.Nodes, n)
	slices.Sort(next.Nodes)
	if host != "" {
		next.IDs[n] = host
	}
	return next
}

// Without returns the set without the node, as the holder of this epoch writes
// it. The receiver's parts are not shared.
func (q QuorumSet) Without(n NodeID, e Epoch) QuorumSet { return q.without(n, e) }

func (q QuorumSet) without(n NodeID, e Epoch) QuorumSet {
	next := QuorumSet{Version: q.Version, Epoch: e, N: q.N + 1, IDs: map[NodeID]string{}}
	for _, have := range q.Nodes {
		if have != n {
			next.Nodes = append(next.Nodes, have)
		}
	}
	for have, id := range q.IDs {
		if have != n {
			next.IDs[have] = id
		}
	}
	return next
}

// Validate reports why the set cannot stand: it is empty, or a name in it is no
// node's, or there twice.
func (q QuorumSet) Validate() error {
	if len(q.Nodes) == 0 {
		return fmt.Errorf("a quorum set is never empty: nobody could hold a majority of it again")
	}
	for i, n := range q.Nodes {
		if err := n.Validate(); err != nil {
			return fmt.Errorf("quorum set: %w", err)
		}
		if slices.Contains(q.Nodes[:i], n) {
			return fmt.Errorf("quorum set: %q is in it twice", n)
		}
	}
	return nil
}

// Members is the record of the nodes that were removed. It stands emptied until
// the first removal, and is never deleted: every registration checks its version,
// so that of a registration and a removal only one wins.
type Members struct {
	Version int           `json:"v"`
	Epoch   Epoch         `json:"epoch"` // of the primary that wrote it
	N       uint64        `json:"n"`     // counts its changes
	Removed []RemovedNode `json:"removed,omitempty"`
}

// RemovedNode is a host that was removed from the cluster.
type RemovedNode struct {
	Node   NodeID `json:"node"`
	Host   string `json:"host,omitempty"` // NodeRecord.ID; empty: it never said
	UnixMS int64  `json:"unix_ms"`        // when, for people
	By     string `json:"by,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Free: the name was added again since, and other hosts may have it; this
	// one stays out.
	Free bool `json:"free,omitempty"`
}

// String renders it for people.
func (r RemovedNode) String() string {
	text := "node " + string(r.Node)
	if r.Host != "" {
		text += " (host " + r.Host + ")"
	}
	text += " was removed from the cluster"
	if r.UnixMS > 0 {
		text += " at " + time.UnixMilli(r.UnixMS).UTC().Format("2006-01-02 15:04:05 UTC")
	}
	if r.By != "" {
		text += " by " + r.By
	}
	if r.Reason != "" {
		text += " (" + r.Reason + ")"
	}
	return text
}

// MostRemoved is how many removed hosts are remembered; beyond it the oldest is
// forgotten, first of those whose name was added again.
const MostRemoved = 256

// Out reports whether the host by that name is to stay out, and the entry that
// says so. A name that was removed and not added again is out whatever host has
// it; a removed host stays out by that name. An empty host is not known.
func (m Members) Out(n NodeID, host string) (RemovedNode, bool) {
	for _, r := range m.Removed {
		if r.Node == n && (!r.Free || host != "" && r.Host == host) {
			return r, true
		}
	}
	return RemovedNode{}, false
}

// Of are the removed hosts of that name, oldest first.
func (m Members) Of(n NodeID) []RemovedNode {
	var of []RemovedNode
	for _, r := range m.Removed {
		if r.Node == n {
			of = append(of, r)
		}
	}
	return of
}

// Removing returns the record with the host among the removed, as the holder of
// this epoch writes it.
func (m Members) Removing(r RemovedNode, e Epoch) Members {
	next := m.next(e, func(have RemovedNode) bool { return have.Node == r.Node && have.Host == r.Host })
	next.Removed = append(next.Removed, r)
	for len(next.Removed) > MostRemoved {
		at := max(slices.IndexFunc(next.Removed, func(r RemovedNode) bool { return r.Free }), 0)
		next.Removed = slices.Delete(next.Removed, at, at+1)
	}
	return next
}

// Admitting returns the record with the name free for hosts that were not
// removed, and for this one; empty: for none that was.
func (m Members) Admitting(n NodeID, host string, e Epoch) Members {
	next := m.next(e, func(have RemovedNode) bool { return have.Node == n && (have.Host == "" || have.Host == host) })
	for i := range next.Removed {
		if next.Removed[i].Node == n {
			next.Removed[i].Free = true
		}
	}
	return next
}

func (m Members) next(e Epoch, drop func(RemovedNode) bool) Members {
	return Members{Version: m.Version, Epoch: e, N: m.N + 1, Removed: slices.DeleteFunc(slices.Clone(m.Removed), drop)}
}

// What an operator may order of a node's membership.
const (
	MemberAdd    = "add"    // let the node in and, a coordinator, count for majorities
	MemberRemove = "remove" // take it out for good and delete its records
)

// MemberOrder is an operator's wish about who belongs to the cluster. One stands
// at a time (M17); the primary carries it out, and ends it (EndMemberOrder) in
// the Multi that is its last effect or in one with an event of the kind
// EventMemberRefused that says why not.
type MemberOrder struct {
	Version int    `json:"v"`
	ID      string `json:"id"`
	Action  string `json:"action"` // MemberAdd or MemberRemove
	Node    NodeID `json:"node"`
	Mode    Mode   `json:"mode,omitempty"` // of an addition; empty: as the node registers
	// Host is the host that is meant (NodeRecord.ID): of a removal the one that
	// was registered when it was ordered; of an addition a removed one that is to
	// be let in again, empty for none of those (F7).
	Host   string `json:"host,omitempty"`
	Reason string `json:"reason,omitempty"`
	By     string `json:"by"`      // the caller, as the audit record names it
	UnixMS int64  `json:"unix_ms"` // when it was ordered, for people
}

// EndMemberOrder ends an order that has been answered or taken back, as it was
// seen: its record is emptied, as a fence order's is (EndOrder).
func EndMemberOrder(seen Versioned[MemberOrder]) Op {
	return Set(Key{Kind: KeyMemberOrder}, seen.Version, nil)
}

// The kinds of the history's entries that tell of memberships; their fields
// "order" and "node" name what they are about.
const (
	EventMember        = "member"         // an effect; its field "effect" says which
	EventMemberOrder   = "member_order"   // an order was given, or taken back
	EventMemberRefused = "member_refused" // an order was not carried out
	EventMemberOut     = "member_out"     // a removed node came back and stays out
)

// NodeLeaf is one record that the store keeps of a node.
type NodeLeaf struct {
	Key     Key
	Version int32
}

// The refusals of membership orders, beside those of fence orders.
const (
	RefuseUnknownNode     RefusalCode = "unknown_node"
	RefuseHoldsSomething  RefusalCode = "holds_something"  // the role, the lock, or a part in a hand-over
	RefuseLastCoordinator RefusalCode = "last_coordinator" // nobody would be left in the quorum set
	RefuseOtherHost       RefusalCode = "other_host"       // another host has the name than the one that is meant
	RefuseNotRegistered   RefusalCode = "not_registered"
	RefuseUnreadable      RefusalCode = "record_unreadable"
)
