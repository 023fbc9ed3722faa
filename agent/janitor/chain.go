package janitor

import (
	"fmt"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// fixUp brings the chain to the copies that are active (M is its head):
//
//	none                      unchanged; M is activated
//	exactly M                 unchanged
//	exactly A, not M          A heads the unfinished move's chain, whose replicas are
//	                          replicas: that chain · A is in the chain: A and those after
//	                          it · A is outside: A alone; padded to the length
//	several, without M        left alone: bad_copies
//	several, M among them     unchanged; the others are demoted
//
// The length never changes, but with a move that was to change it (J3).
func (p *planner) fixUp(c *chain) {
	actives := p.actives(c)
	head := c.w.Head()
	switch {
	case len(actives) == 0, slices.Contains(actives, head):
		return
	case len(actives) > 1:
		if !c.w.Wanted {
			return // all are to be stopped
		}
		p.block(c, FaultBadCopies, cluster.NoCopy, fmt.Sprintf(
			"workload %s is active on %s, none of which is the head of its chain (%s): it is left alone, since which copy is the right one cannot be told; keep one with `pvc workload promote %s --node <node>`",
			c.w.Name, words(actives), chainText(c.w.Chain), c.w.Name))
		return
	}
	a := actives[0]
	c.edit().History = c.reports[a].History
	if p.finished(c, a) {
		p.rewrite(c, slices.Clone(c.w.Next.Chain), cluster.WorkloadRunning, "", false)
		return
	}
	// The move that A heads is gone on with; any other rests on a chain that is no more.
	keep := c.w.Next != nil && len(c.w.Next.Chain) > 0 && c.w.Next.Chain[0] == a
	var after []cluster.NodeID
	if at := slices.Index(c.w.Chain, a); at >= 0 {
		after = c.w.Chain[at+1:]
	}
	p.rewrite(c, padded(len(c.w.Chain), append([]cluster.NodeID{a}, after...)), cluster.WorkloadRunning, "", keep)
}

// actives are the nodes whose copy is active, in the chain or outside, in order.
func (p *planner) actives(c *chain) []cluster.NodeID {
	var list []cluster.NodeID
	for _, n := range c.having {
		if c.reports[n].State == cluster.CopyActive {
			list = append(list, n)
		}
	}
	return list
}

// finished reports whether the unfinished move is in fact done: its head is the one
// that is active, and its replicas are replicas; the old head, if it is one of them,
// may be demoted only (J1).
func (p *planner) finished(c *chain, a cluster.NodeID) bool {
	next := c.w.Next
	if next == nil || len(next.Chain) == 0 || next.Chain[0] != a {
		return false
	}
	for _, n := range next.Chain[1:] {
		switch state := p.state(c, n); {
		case n == cluster.NoCopy, state == cluster.CopyReplica:
		case n == c.w.Head() && state != cluster.CopyMissing:
		default:
			return false
		}
	}
	return true
}

// padded is the chain with places left empty to the length.
func padded(length int, chain []cluster.NodeID) []cluster.NodeID {
	full := make([]cluster.NodeID, max(length, 1))
	copy(full, chain)
	return full
}

// movedOn is the chain without the heads that are dropped, with its length, and
// with the most advanced copy first. Where none of the rest has a copy its order
// stays.
func (p *planner) movedOn(c *chain, drop func(cluster.NodeID) bool) []cluster.NodeID {
	rest := c.w.Chain
	for len(rest) > 0 && (rest[0] == cluster.NoCopy || drop(rest[0])) {
		rest = rest[1:]
	}
	if best := p.mostAdvanced(c, rest); best != cluster.NoCopy && best != rest[0] {
		others := slices.DeleteFunc(slices.Clone(rest), func(n cluster.NodeID) bool { return n == best })
		rest = append([]cluster.NodeID{best}, others...)
	}
	return padded(len(c.w.Chain), rest)
}

// mostAdvanced is which of the nodes has the copy that is to become the head;
// NoCopy: none has one. One of the history that was last seen active goes before
// any other. Offsets tell it where they compare, which is within one history only
// (P4); else a replica of the old head goes before any other replica, that before a
// copy that waits, that before one that does not run, and then the list's order counts.
func (p *planner) mostAdvanced(c *chain, nodes []cluster.NodeID) cluster.NodeID {
	best, bestRank := cluster.NoCopy, 0
	for _, n := range nodes {
		if n == cluster.NoCopy || !p.has(c, n) {
			continue
		}
		if rank := rank(&c.w, c.reports[n]); best == cluster.NoCopy || rank < bestRank {
			best, bestRank = n, rank
		}
	}
	for _, n := range nodes {
		if best == cluster.NoCopy || n == cluster.NoCopy || !p.has(c, n) {
			continue
		}
		a, b := c.reports[n], c.reports[best]
		if a.HasOffset && b.HasOffset && a.History == b.History && a.Offset > b.Offset {
			best = n
		}
	}
	return best
}

// rank orders copies that offsets do not; the smallest is the best.
func rank(w *cluster.Workload, r cluster.CopyReport) int {
	rank := 4
	switch {
	case r.State == cluster.CopyActive:
		rank = 0
	case r.State == cluster.CopyReplica && r.Follows == w.Head():
		rank = 1
	case r.State == cluster.CopyReplica:
		rank = 2
	case r.State == cluster.CopyPending:
		rank = 3
	}
	if w.History != "" && r.History != w.History {
		rank += 10
	}
	return rank
}

// words joins node names for people.
func words(nodes []cluster.NodeID) string {
	text := make([]string, len(nodes))
	for i, n := range nodes {
		text[i] = nameOf(n)
	}
	return strings.Join(text, ", ")
}

// listed is words after what introduces them; "" where there are none.
func listed(intro string, nodes []cluster.NodeID) string {
	if len(nodes) == 0 {
		return ""
	}
	return intro + "(" + words(nodes) + ")"
}

// chainText renders a chain for people.
func chainText(chain []cluster.NodeID) string {
	text := make([]string, len(chain))
	for i, n := range chain {
		if text[i] = string(n); n == cluster.NoCopy {
			text[i] = "(empty)"
		}
	}
	return strings.Join(text, ", ")
}
