package lease

import (
	"slices"

	"pvc.internal/cluster"
)

// Ledger is which nodes' leases the leader holds and until when: what quorums
// are judged by. Its owner enters what holders say before anybody is told of it,
// and withdraws first. It is not safe for concurrent use. A nil Ledger holds
// nothing.
type Ledger struct {
	until map[cluster.NodeID]cluster.Instant
}

// NewLedger returns an empty one.
func NewLedger() *Ledger { return &Ledger{until: map[cluster.NodeID]cluster.Instant{}} }

// Set enters that the node's lease is held before that instant; Never withdraws it.
func (l *Ledger) Set(n cluster.NodeID, until cluster.Instant) {
	if until.IsZero() {
		delete(l.until, n)
		return
	}
	l.until[n] = until
}

// Clear withdraws all: the leader leads no more.
func (l *Ledger) Clear() { clear(l.until) }

// Until is the instant before which the node's lease is held; Never: it is not.
func (l *Ledger) Until(n cluster.NodeID) cluster.Instant {
	if l == nil {
		return cluster.Never
	}
	return l.until[n]
}

// Held lists the nodes held at an instant, in order.
func (l *Ledger) Held(now cluster.Instant) []cluster.NodeID {
	if l == nil {
		return nil
	}
	var held []cluster.NodeID
	for n, until := range l.until {
		if now.Before(until) {
			held = append(held, n)
		}
	}
	slices.Sort(held)
	return held
}

// NextExpiry is the first end that is still to come; Never: nothing is held.
func (l *Ledger) NextExpiry(now cluster.Instant) cluster.Instant {
	if l == nil {
		return cluster.Never
	}
	next := cluster.Never
	for _, until := range l.until {
		if now.Before(until) {
			next = cluster.Earliest(next, until)
		}
	}
	return next
}

// Satisfied reports whether the condition holds at an instant for the leader
// self, with the quorum set as it is now (A2), and from when on it will not hold
// any more if nothing is extended; Never where it does not hold.
func (l *Ledger) Satisfied(q cluster.Quorum, self cluster.NodeID, set []cluster.NodeID, now cluster.Instant) (cluster.Instant, bool) {
	until := l.holdsUntil(q, self, set)
	if !now.Before(until) {
		return cluster.Never, false
	}
	return until, true
}

// holdsUntil is the instant before which the condition holds, Never if it never
// did. Whatever it is, cluster.Quorum.Satisfied says the same at each instant.
func (l *Ledger) holdsUntil(q cluster.Quorum, self cluster.NodeID, set []cluster.NodeID) cluster.Instant {
	switch q.Kind {
	case cluster.QuorumFollower:
		return l.Until(self)
	case cluster.QuorumAll:
		ends := l.ends(q, set)
		if len(ends) == 0 {
			return cluster.Never
		}
		return ends[0]
	case cluster.QuorumMajority:
		ends := l.ends(q, set)
		if len(ends) == 0 {
			return cluster.Never
		}
		return ends[len(ends)-(len(ends)/2+1)] // so many must last
	case cluster.QuorumEach:
		if len(q.List) == 0 {
			return cluster.Never
		}
		until := cluster.Forever
		for _, part := range q.List {
			until = min(until, l.holdsUntil(part, self, set))
		}
		return until
	}
	return cluster.Never
}

// ends are the ends of each node of the condition once, in order of time; Never
// where a node is not held.
func (l *Ledger) ends(q cluster.Quorum, set []cluster.NodeID) []cluster.Instant {
	nodes := q.Nodes
	if nodes == nil {
		nodes = set
	}
	nodes = slices.Clone(nodes)
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	ends := make([]cluster.Instant, len(nodes))
	for i, n := range nodes {
		ends[i] = l.Until(n)
	}
	slices.Sort(ends)
	return ends
}

// Missing lists the nodes of the condition that are not held at an instant, in
// order: who is to blame where it does not hold.
func (l *Ledger) Missing(q cluster.Quorum, self cluster.NodeID, set []cluster.NodeID, now cluster.Instant) []cluster.NodeID {
	var missing []cluster.NodeID
	add := func(nodes ...cluster.NodeID) {
		for _, n := range nodes {
			if !now.Before(l.Until(n)) {
				missing = append(missing, n)
			}
		}
	}
	switch {
	case q.Kind == cluster.QuorumFollower:
		add(self)
	case q.Kind == cluster.QuorumEach:
		for _, part := range q.List {
			add(l.Missing(part, self, set, now)...)
		}
	case q.Nodes != nil:
		add(q.Nodes...)
	default:
		add(set...)
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}
