package activity

import (
	"fmt"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// Holdings are what a leader holds, as its lease workers know it. The zero
// Holdings are a node's that leads nothing.
type Holdings struct {
	Leader bool                // this node is the leader, by the role's own rules
	Lease  cluster.NodeLeaseID // under which it asks for leases; zero while it does not lead
	Self   cluster.NodeID
	Held   []cluster.NodeID // the nodes whose leases are held now
	Set    []cluster.NodeID // the cluster's quorum set
	// Known are the nodes that there are, in order; never edited. nil: the records
	// are not read yet, and nobody is called unknown.
	Known []cluster.NodeID
}

// Urgency orders activities that need one domain.
type Urgency uint8

// The urgencies.
const (
	Ordinary Urgency = iota
	// Failover takes the domain from an ordinary activity, which is ended for it,
	// and is not interrupted itself: not by another one, nor by an operator. The
	// loss of its quorum ends it as any other.
	Failover
)

// asked is what the conditions are checked for.
type asked struct {
	quorum  cluster.Quorum
	domain  cluster.ActivityDomain
	root    cluster.ActivityID // whose the domain would be
	lease   cluster.NodeLeaseID
	child   bool // lease is its token's
	unsafe  bool
	urgency Urgency
}

// rival is what stands in a domain, or waits for it with precedence.
type rival struct {
	id      cluster.ActivityID
	name    string
	domain  cluster.ActivityDomain
	root    cluster.ActivityID
	waiting bool // it does not run yet
}

// situation is what the conditions are checked against.
type situation struct {
	holdings Holdings
	granted  cluster.NodeLeaseID // whom this node serves; zero for nobody
	rivals   []rival
}

// isFollower reports whether a quorum is of a node's own work for its leader.
func isFollower(q cluster.Quorum) bool { return q.Kind == cluster.QuorumFollower }

// malformed says why a quorum can never be asked for, nil if it can. Work for a
// leader and the leader's own have different conditions all along: a list of
// both means nothing (A15).
func malformed(q cluster.Quorum) *cluster.Refusal {
	switch {
	case isFollower(q):
		return nil
	case mixes(q):
		return refuse(cluster.RefuseActivitySpec, "its quorum %q mixes \"follower\" with a leader's quorums; ask for one or the other", q)
	}
	return meaningless(q)
}

// mixes reports whether a follower's quorum is anywhere within.
func mixes(q cluster.Quorum) bool { return isFollower(q) || slices.ContainsFunc(q.List, mixes) }

func meaningless(q cluster.Quorum) *cluster.Refusal {
	switch q.Kind {
	case cluster.QuorumAll, cluster.QuorumMajority:
		if q.Nodes != nil && len(q.Nodes) == 0 {
			return refuse(cluster.RefuseActivitySpec, "its quorum names an empty list of nodes, which never holds; name nodes, or none for the cluster's quorum set")
		}
		for _, n := range q.Nodes {
			if err := n.Validate(); err != nil {
				return refuse(cluster.RefuseActivitySpec, "its quorum %q: %v", q, err)
			}
		}
		return nil
	case cluster.QuorumEach:
		for _, part := range q.List {
			if r := meaningless(part); r != nil {
				return r
			}
		}
		if len(q.List) > 0 {
			return nil
		}
	}
	return refuse(cluster.RefuseActivitySpec, "its quorum %q never holds", q)
}

// check returns the first condition that fails, in the binding order, nil if the
// activity may begin. The quorum set is the one of this very check (A2). What no
// wait can make true comes before what one may.
func check(a asked, s situation) *cluster.Refusal {
	if r := checkNames(a, s.holdings); r != nil {
		return r
	}
	if r := checkDomain(a, s.rivals); r != nil {
		return r
	}
	return checkRight(a, s)
}

// checkNames: a node that is away may come back; one that there is not never
// holds a lease. A leader alone knows who there is.
func checkNames(a asked, h Holdings) *cluster.Refusal {
	if a.unsafe || h.Known == nil {
		return nil
	}
	strangers := slices.DeleteFunc(named(a.quorum, nil), func(n cluster.NodeID) bool {
		return n == h.Self || slices.Contains(h.Known, n) || slices.Contains(h.Set, n) || slices.Contains(h.Held, n)
	})
	if len(strangers) == 0 {
		return nil
	}
	return refuse(cluster.RefuseUnknownNode, "its quorum %q names %s, and there is no such node; the nodes are %s (`pvc node list`)",
		a.quorum, words(strangers), words(h.Known))
}

// checkDomain: other activities' domains are theirs; one's own root's is shared.
func checkDomain(a asked, rivals []rival) *cluster.Refusal {
	for _, r := range rivals {
		if r.domain != a.domain || r.root == a.root {
			continue
		}
		verb := "has"
		if r.waiting {
			verb = "is about to take"
		}
		return refuse(cluster.RefuseDomainConflict, "%s (%s) %s the domain %q; wait for it or stop it", r.name, r.id, verb, a.domain)
	}
	return nil
}

// checkSwitch is what one that has its domain already must meet.
func checkSwitch(a asked, s situation) *cluster.Refusal {
	if r := checkNames(a, s.holdings); r != nil {
		return r
	}
	return checkRight(a, s)
}

// checkRight is every condition but the domain.
func checkRight(a asked, s situation) *cluster.Refusal {
	if r := checkLease(a, s); r != nil {
		return r
	}
	h := s.holdings
	if !isFollower(a.quorum) && !h.Leader {
		return refuse(cluster.RefuseNotLeader, "%s is not the leader; ask the leader", h.Self)
	}
	if a.unsafe {
		return nil
	}
	if isFollower(a.quorum) {
		if ownLeaseMissing(h, s.granted) {
			return refuse(cluster.RefuseNoQuorum, "%s leads, but its lease of itself is not held at present", h.Self)
		}
		return nil
	}
	if a.quorum.Satisfied(h.Self, h.Held, h.Set) {
		return nil
	}
	if len(h.Set) == 0 {
		return refuse(cluster.RefuseNoQuorum, "the quorum set is empty or not known yet, so that %q cannot hold", a.quorum)
	}
	return refuse(cluster.RefuseNoQuorum, "the quorum %q does not hold: of %s the leases of %s are missing",
		a.quorum, words(named(a.quorum, h.Set)), words(missing(a.quorum, h.Held, h.Set)))
}

// checkLease: a root needs the leader's, or for a follower's work the leader that
// this node serves; a child's token must be of exactly the current one.
func checkLease(a asked, s situation) *cluster.Refusal {
	current := s.holdings.Lease
	if isFollower(a.quorum) {
		current = s.granted
		if current.IsZero() {
			return refuse(cluster.RefuseNoLease, "%s serves no leader at present", s.holdings.Self)
		}
	}
	if a.child && a.lease != current {
		return refuse(cluster.RefuseNoLease, "its token is of the lease of %s, the current one is of %s", a.lease, current)
	}
	if !a.child && !isFollower(a.quorum) && (!s.holdings.Leader || current.IsZero()) {
		return refuse(cluster.RefuseNotLeader, "%s is not the leader; ask the leader", s.holdings.Self)
	}
	return nil
}

// holds returns nil while a running activity may go on, else the cause of its
// end. lost are the nodes whose leases have gone with the latest change.
//
// This node's own lease counts for its leader as long as this node's granter
// serves nobody else (A14): an overloaded leader that is late with its own lease
// would end everything, and whoever else came to have this node's lease would
// have it only after Follower has ended what rests on this.
func holds(a asked, s situation, lost []cluster.NodeID) error {
	h := s.holdings
	if isFollower(a.quorum) {
		switch {
		case s.granted != a.lease:
			return cluster.ErrNodeLeaseLost
		case !a.unsafe && ownLeaseMissing(h, a.lease):
			return &cluster.QuorumLost{Quorum: a.quorum.String(), Nodes: []cluster.NodeID{h.Self}}
		}
		return nil
	}
	switch {
	case !h.Leader:
		return cluster.ErrLeadershipLost
	case h.Lease != a.lease:
		return cluster.ErrNodeLeaseLost
	case a.unsafe:
		return nil
	}
	held := h.Held
	if s.granted.IsZero() || s.granted == h.Lease {
		held = append(slices.Clone(held), h.Self)
	}
	if a.quorum.Satisfied(h.Self, held, h.Set) {
		return nil
	}
	of := named(a.quorum, h.Set)
	nodes := slices.DeleteFunc(slices.Clone(lost), func(n cluster.NodeID) bool { return !slices.Contains(of, n) })
	if len(nodes) == 0 {
		nodes = missing(a.quorum, held, h.Set)
	}
	return &cluster.QuorumLost{Quorum: a.quorum.String(), Nodes: nodes}
}

// ownLeaseMissing reports that the served leader is this node itself and does
// not hold its own lease. What another leader holds it alone knows.
func ownLeaseMissing(h Holdings, served cluster.NodeLeaseID) bool {
	return h.Leader && h.Lease == served && !slices.Contains(h.Held, h.Self)
}

// named lists the nodes that a quorum looks at, in order.
func named(q cluster.Quorum, set []cluster.NodeID) []cluster.NodeID {
	nodes := slices.Clone(q.Nodes)
	if q.Nodes == nil && q.Kind != cluster.QuorumEach {
		nodes = slices.Clone(set)
	}
	for _, part := range q.List {
		nodes = append(nodes, named(part, set)...)
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// missing lists those whose lease is not held.
func missing(q cluster.Quorum, held, set []cluster.NodeID) []cluster.NodeID {
	return slices.DeleteFunc(named(q, set), func(n cluster.NodeID) bool { return slices.Contains(held, n) })
}

// words renders nodes for a sentence, the first few.
func words(nodes []cluster.NodeID) string {
	const few = 8
	if len(nodes) == 0 {
		return "no node"
	}
	rest := ""
	if len(nodes) > few {
		nodes, rest = nodes[:few], fmt.Sprintf(" and %d more", len(nodes)-few)
	}
	return strings.Trim(fmt.Sprint(nodes), "[]") + rest
}

func refuse(code cluster.RefusalCode, text string, args ...any) *cluster.Refusal {
	return &cluster.Refusal{Code: code, Detail: fmt.Sprintf(text, args...)}
}
