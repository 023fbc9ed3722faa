package sandbox

import "pvc.internal/cluster"

// heldTwice returns the longest stretch in [from, to] during which two nodes'
// kernels held the address, by the history's netlink events.
func heldTwice(entries []Entry, addr string, from, to cluster.Instant) Span {
	holders := map[cluster.NodeID]bool{}
	var began cluster.Instant
	var longest Span
	end := func(at cluster.Instant) {
		if began.IsZero() {
			return
		}
		span := Span{max(began, from), min(at, to)}
		if span.Length() > longest.Length() {
			longest = span
		}
		began = cluster.Never
	}
	for _, e := range entries {
		if e.Kind != KindHeld || e.Addr != addr || e.At > to {
			continue
		}
		if e.On {
			holders[e.Node] = true
		} else {
			delete(holders, e.Node)
		}
		if len(holders) > 1 && began.IsZero() {
			began = e.At
		} else if len(holders) <= 1 {
			end(e.At)
		}
	}
	end(to)
	return longest
}
