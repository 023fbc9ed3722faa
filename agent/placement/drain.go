package placement

import (
	"fmt"
	"maps"
	"slices"

	"pvc.internal/cluster"
)

// The causes of moves, as they stand in cluster.ChainMove.
const (
	CauseMove      = "move"
	CauseDrain     = "drain"
	CauseReady     = "ready"
	CauseRebalance = "rebalance"
	CauseRecovery  = "recovery"
	CauseRetry     = "retry" // its starts have failed where it was
)

// Move is a chain that is to become another.
type Move struct {
	Workload cluster.Workload
	To       []cluster.NodeID
	// Node is who has the most work with it: its batch.
	Node  cluster.NodeID
	Cause string
	// Home and Away are what the record says of the way back once it is moved.
	Home cluster.NodeID
	Away map[cluster.NodeID]cluster.NodeID
	// Why is why it cannot be moved now; To is empty then.
	Why string
}

// Drain is what is to be moved so that nothing is left on the node, in order. The
// copies that nobody wants to run stay in their records: they hold nothing there.
//
//	movable [n]                → [m], Home n
//	head of [n, r, …]          → [r, …, m or empty], Home n
//	replica in [h, n, …]       → [h, m or empty, …], Away n: m
func Drain(b *Book, n cluster.NodeID, list []cluster.Workload) []Move {
	var moves []Move
	for _, w := range Sorted(list) {
		at := slices.Index(w.Chain, n)
		if at < 0 || !w.Wanted || w.Next != nil {
			continue
		}
		m := Move{Workload: w, Cause: CauseDrain, Home: w.Home, Away: maps.Clone(w.Away)}
		switch w.Kind {
		case cluster.WorkloadMovable:
			to, why := b.Place(w, n)
			if m.Why = why; why == "" {
				m.To, m.Node = []cluster.NodeID{to}, to
			}
		default:
			m.drainReplicated(b, n, at)
		}
		switch {
		case m.Why != "":
		case at == 0 && w.Home == cluster.NoCopy:
			m.Home = n
		case at > 0:
			m.sendAway(n, m.To[at])
		case w.Kind == cluster.WorkloadReplicated && w.Home != n: // the head is another's
			m.sendAway(n, m.To[len(m.To)-1])
		}
		moves = append(moves, m)
	}
	return moves
}

// sendAway notes who is to get the replica's place back: n, or, where n itself only
// stands in for another, that one.
func (m *Move) sendAway(n, instead cluster.NodeID) {
	if m.Away == nil {
		m.Away = map[cluster.NodeID]cluster.NodeID{}
	}
	for first, standIn := range m.Away {
		if standIn != n {
			continue
		}
		if m.Away[first] = instead; first == instead { // back already
			delete(m.Away, first)
		}
		return
	}
	m.Away[n] = instead
}

// drainReplicated takes n out of the chain, another node in its stead where there is
// one, and the first copy that may be it to the head.
func (m *Move) drainReplicated(b *Book, n cluster.NodeID, at int) {
	w := m.Workload
	rest := slices.Clone(w.Chain)
	spare, why := b.Place(w, w.Members()...)
	if at > 0 {
		rest[at] = spare
		m.To, m.Node = rest, w.Head()
		return
	}
	rest = append(slices.Delete(rest, 0, 1), spare)
	head := slices.IndexFunc(rest, func(c cluster.NodeID) bool { return c != cluster.NoCopy && b.Against(w, c) == "" })
	if head < 0 {
		m.Why = fmt.Sprintf("its active copy is on %s, and no other node may have it: %s", n, why)
		return
	}
	h := rest[head]
	m.To = append([]cluster.NodeID{h}, slices.Delete(rest, head, head+1)...)
	m.Node = h
}

// Ready is what is to be moved back to nodes that are ready again, in order.
func Ready(b *Book, ready func(cluster.NodeID) bool, list []cluster.Workload) []Move {
	var moves []Move
	for _, w := range Sorted(list) {
		if w.Next != nil || !w.Wanted {
			continue
		}
		if m, ok := homeward(b, ready, w); ok {
			moves = append(moves, m)
		}
	}
	return moves
}

func homeward(b *Book, ready func(cluster.NodeID) bool, w cluster.Workload) (Move, bool) {
	m := Move{Workload: w, Cause: CauseReady, Home: w.Home, Away: maps.Clone(w.Away)}
	if h := w.Home; h != cluster.NoCopy && ready(h) {
		m.Home, m.Node = cluster.NoCopy, h
		switch at := slices.Index(w.Chain, h); {
		case at == 0: // it is there already
			m.To = slices.Clone(w.Chain)
			return m, true
		case at < 0:
			if m.Why = b.Against(w, h); m.Why != "" {
				m.Home = w.Home
				return m, true
			}
			b.Take(w, h)
		}
		m.To = first(w.Chain, h)
		return m, true
	}
	for _, n := range slices.Sorted(maps.Keys(w.Away)) {
		if !ready(n) {
			continue
		}
		delete(m.Away, n)
		m.Node, m.To = w.Head(), slices.Clone(w.Chain)
		if at := place(w, w.Away[n]); at > 0 && !slices.Contains(m.To, n) && b.Against(w, n) == "" {
			m.To[at] = n
			b.Take(w, n)
		}
		return m, true
	}
	return m, false
}

// place is the place of a replica that comes back: its stand-in's, else one that
// nobody fills, else none. Who was made the head meanwhile, or was chosen since, stays.
func place(w cluster.Workload, standIn cluster.NodeID) int {
	if at := slices.Index(w.Chain, standIn); at > 0 {
		return at
	}
	return slices.Index(w.Chain, cluster.NoCopy)
}

// first is the chain with n at its head and as many places as before: n leaves its
// own place, else an empty one goes, else the last.
func first(chain []cluster.NodeID, n cluster.NodeID) []cluster.NodeID {
	rest := slices.Clone(chain)
	at := slices.Index(rest, n)
	if at < 0 {
		at = slices.Index(rest, cluster.NoCopy)
	}
	if at < 0 {
		at = len(rest) - 1
	}
	if at >= 0 {
		rest = slices.Delete(rest, at, at+1)
	}
	return append([]cluster.NodeID{n}, rest...)
}

// Promoted is the chain with n, one of its members, at the head.
func Promoted(chain []cluster.NodeID, n cluster.NodeID) []cluster.NodeID { return first(chain, n) }

// Replaced is the chain with the node from instead of to. Where to stands in it
// already the two change places.
func Replaced(chain []cluster.NodeID, from, to cluster.NodeID) []cluster.NodeID {
	next := slices.Clone(chain)
	at, has := slices.Index(next, from), slices.Index(next, to)
	if at < 0 {
		return next
	}
	next[at] = to
	if has >= 0 {
		next[has] = from
	}
	return next
}
