package cluster

import (
	"fmt"
	"slices"
	"strings"
)

// QuorumKind is a word of the quorum language.
type QuorumKind uint8

// The words of the quorum language (protocol §8).
const (
	QuorumFollower QuorumKind = iota + 1 // this node's own lease
	QuorumAll
	QuorumMajority // held ∩ set > set / 2
	QuorumEach     // every one of a list holds
)

// Quorum is a condition on the set of nodes whose leases are held. The zero
// Quorum holds never.
type Quorum struct {
	Kind  QuorumKind
	Nodes []NodeID // of All and Majority; nil: the cluster's quorum set at check time
	List  []Quorum // of Each; empty holds never
}

// Follower needs this node's own lease only.
func Follower() Quorum { return Quorum{Kind: QuorumFollower} }

// All needs every one of the nodes; without any, of the quorum set.
func All(nodes ...NodeID) Quorum { return Quorum{Kind: QuorumAll, Nodes: nodes} }

// Majority needs more than half of the nodes; without any, of the quorum set.
func Majority(nodes ...NodeID) Quorum { return Quorum{Kind: QuorumMajority, Nodes: nodes} }

// Each needs all the given quorums.
func Each(list ...Quorum) Quorum { return Quorum{Kind: QuorumEach, List: list} }

// Satisfied reports whether the condition holds for self while the leases of
// held are held, set being the cluster's quorum set. An empty set satisfies
// nothing: who knows no members has no majority of them (I6).
func (q Quorum) Satisfied(self NodeID, held, set []NodeID) bool {
	switch q.Kind {
	case QuorumFollower:
		return slices.Contains(held, self)
	case QuorumAll:
		have, of := q.count(held, set)
		return of > 0 && have == of
	case QuorumMajority:
		have, of := q.count(held, set)
		return 2*have > of
	case QuorumEach:
		return len(q.List) > 0 && !slices.ContainsFunc(q.List, func(part Quorum) bool {
			return !part.Satisfied(self, held, set)
		})
	}
	return false
}

// count returns how many distinct nodes of the condition are held, of how many.
func (q Quorum) count(held, set []NodeID) (have, of int) {
	nodes := q.Nodes
	if nodes == nil {
		nodes = set
	}
	nodes = slices.Clone(nodes)
	slices.Sort(nodes)
	for _, n := range slices.Compact(nodes) {
		of++
		if slices.Contains(held, n) {
			have++
		}
	}
	return have, of
}

// String renders the condition in the quorum language.
func (q Quorum) String() string {
	switch q.Kind {
	case QuorumFollower:
		return "follower"
	case QuorumAll:
		return "all" + nodeList(q.Nodes)
	case QuorumMajority:
		return "majority" + nodeList(q.Nodes)
	case QuorumEach:
		parts := make([]string, len(q.List))
		for i, part := range q.List {
			parts[i] = part.String()
		}
		return "[" + strings.Join(parts, " ") + "]"
	}
	return "never"
}

func nodeList(nodes []NodeID) string {
	if nodes == nil {
		return ""
	}
	return fmt.Sprintf("(%s)", strings.Trim(fmt.Sprint(nodes), "[]"))
}
