package placement

import (
	"maps"
	"slices"

	"pvc.internal/cluster"
)

// Rebalance is what is to be moved so that no place of a chain is empty that some
// node could fill, and heads and movable workloads are spread evenly over the nodes
// that may have them: the difference between the most and the fewest of two nodes
// that could give and take is one at most. A plan carried out plans nothing more.
func Rebalance(b *Book, list []cluster.Workload) []Move {
	list = Sorted(list)
	chains := make([][]cluster.NodeID, len(list))
	fixed := func(i int) bool { return list[i].Next != nil || !list[i].Wanted || list[i].Head() == cluster.NoCopy }
	for i, w := range list {
		chains[i] = slices.Clone(w.Chain)
		if w.Kind != cluster.WorkloadReplicated || fixed(i) {
			continue
		}
		for at := 1; at < len(chains[i]); at++ {
			if chains[i][at] != cluster.NoCopy {
				continue
			}
			if n, why := b.Place(w, chains[i]...); why == "" {
				chains[i][at] = n
			}
		}
	}
	for _, kind := range []cluster.WorkloadKind{cluster.WorkloadReplicated, cluster.WorkloadMovable} {
		even(b, kind, list, chains, fixed)
	}
	var moves []Move
	for i, w := range list {
		if !slices.Equal(chains[i], w.Chain) {
			moves = append(moves, Move{Workload: w, To: chains[i], Node: chains[i][0], Cause: CauseRebalance, Home: w.Home, Away: maps.Clone(w.Away)})
		}
	}
	return moves
}

// Unfilled is a workload of which not all runs that should, and why.
type Unfilled struct {
	Workload cluster.Workload
	Places   int    // of its chain that nobody fills
	Why      string // why no node can take one
}

// Unfill are the workloads that a rebalance leaves with a place that nobody fills, in
// the order in which they are cared for.
func Unfill(b *Book, list []cluster.Workload) []Unfilled {
	var left []Unfilled
	for _, w := range Sorted(list) {
		u := Unfilled{Workload: w, Places: len(w.Chain) - len(w.Members())}
		if !w.Wanted || u.Places == 0 {
			continue
		}
		switch _, why := b.Place(w, w.Members()...); {
		case why != "":
			u.Why = why
		case w.Head() == cluster.NoCopy:
			u.Why = "nothing of it runs, and what brings it up is at it: " + w.Reason
		default: // a node was freed since
			u.Why = "order the rebalance anew: a node can take it now"
		}
		left = append(left, u)
	}
	return left
}

// evening is the spreading of one kind's heads.
type evening struct {
	b      *Book
	list   []cluster.Workload
	mine   []int              // places in the list, of those that may be moved
	chains [][]cluster.NodeID // as planned
	filled [][]cluster.NodeID // before any head is moved
	places map[cluster.NodeID]int
	heads  []int   // by the node's place: the book's nodes in their order, then others that have some
	takers [][]int // by the workload's: places of the nodes that could ever have its head; shared, never edited
}

// even moves heads from who has most to who has fewest until no move makes it more
// even, and takes back those that turn out to gain nothing. Each step makes the sum of
// the counts' squares smaller, or keeps it with fewer moves, so that it ends.
func even(b *Book, kind cluster.WorkloadKind, list []cluster.Workload, chains [][]cluster.NodeID, fixed func(int) bool) {
	e := &evening{b: b, list: list, chains: chains, filled: slices.Clone(chains), places: map[cluster.NodeID]int{}}
	for _, a := range b.nodes {
		*e.count(a.Name) = 0
	}
	for i, w := range list {
		if w.Kind != kind || len(chains[i]) == 0 {
			continue
		}
		if w.Next != nil { // what is under way counts where it goes: else others would go there in its stead, and back
			*e.count(w.Next.Chain[0])++
			continue
		}
		*e.count(chains[i][0])++
		if !fixed(i) {
			e.mine = append(e.mine, i)
		}
	}
	e.eligible()
	for e.spread() || e.takeBack() || e.uncircle() {
	}
}

// eligible notes which nodes could have each one's head, as far as no step changes that:
// of many workloads with lists of their own all nodes would else be asked for each of
// them again and again.
func (e *evening) eligible() {
	e.takers = make([][]int, len(e.list))
	var open []int
	for at, a := range e.b.nodes {
		if a.Bar == "" {
			open = append(open, at)
		}
	}
	for _, i := range e.mine {
		w := e.list[i]
		w.MemoryMiB = 0 // what is left changes with each step
		if w.Kind == cluster.WorkloadMovable && len(w.Nodes) == 0 && w.VCPUs == 0 {
			e.takers[i] = open
			continue
		}
		for _, at := range open {
			if could(e.b.nodes[at], w, e.chains[i]) {
				e.takers[i] = append(e.takers[i], at)
			}
		}
	}
}

// could reports whether the node could have the workload's head: a movable one's where
// nothing stands against it, another's only where a copy is, and stays.
func could(a *account, w cluster.Workload, chain []cluster.NodeID) bool {
	if w.Kind == cluster.WorkloadMovable {
		return a.against(w, nil) == ""
	}
	return a.Bar == "" && slices.Contains(chain, a.Name) && slices.Contains(w.Chain, a.Name)
}

// count is how many heads the node has.
func (e *evening) count(n cluster.NodeID) *int {
	at, is := e.places[n]
	if !is {
		at = len(e.heads)
		e.places[n], e.heads = at, append(e.heads, 0)
	}
	return &e.heads[at]
}

// spread moves heads while that makes it more even, the largest differences first: so
// a node gives only what it has too much of, and one that a part of the plan was
// carried out for already gives nothing of that on when it is planned anew.
func (e *evening) spread() (moved bool) {
	for {
		gap := 1
		for _, i := range e.mine {
			_, gap = e.taker(i, gap)
		}
		if gap == 1 {
			return moved
		}
		for _, i := range e.mine {
			if to, g := e.taker(i, gap-1); g >= gap {
				e.move(i, to)
				moved = true
			}
		}
	}
}

// taker is who has the fewest heads of those that could have the workload's, and how
// many fewer than who has it, where that is more than above; else nobody, and above.
func (e *evening) taker(i, above int) (to cluster.NodeID, gap int) {
	has := *e.count(e.chains[i][0])
	gap = above
	for _, at := range e.takers[i] {
		if g := has - e.heads[at]; g > gap && e.takes(e.b.nodes[at], i) {
			to, gap = e.b.nodes[at].Name, g
		}
	}
	return to, gap
}

// move plans the workload's head on another node; what it has on its own is there.
func (e *evening) move(i int, to cluster.NodeID) {
	w, from := e.list[i], e.chains[i][0]
	*e.count(from)--
	*e.count(to)++
	switch {
	case to == w.Chain[0]:
		e.chains[i] = e.filled[i]
	case w.Kind == cluster.WorkloadMovable:
		e.chains[i] = []cluster.NodeID{to}
		e.b.Take(w, to)
	default:
		e.chains[i] = first(e.filled[i], to)
	}
	if w.Kind == cluster.WorkloadMovable && from != w.Chain[0] {
		e.b.giveBack(w, from)
	}
}

func (e *evening) moved(i int) bool { return e.chains[i][0] != e.list[i].Chain[0] }

// takeBack leaves heads where they are whose move makes nothing more even any more,
// now that others are moved, too.
func (e *evening) takeBack() (taken bool) {
	for _, i := range e.mine {
		if own := e.list[i].Chain[0]; e.moved(i) && *e.count(own) < *e.count(e.chains[i][0]) {
			e.move(i, own)
			taken = true
		}
	}
	return taken
}

// uncircle leaves those where they are that only change places with each other.
func (e *evening) uncircle() bool {
	from := map[cluster.NodeID][]int{} // who is moved from each node
	for _, i := range e.mine {
		if e.moved(i) {
			own := e.list[i].Chain[0]
			from[own] = append(from[own], i)
		}
	}
	for _, i := range e.mine {
		if !e.moved(i) {
			continue
		}
		if way := e.way(from, e.chains[i][0], e.list[i].Chain[0]); way != nil {
			for _, j := range append(way, i) {
				e.move(j, e.list[j].Chain[0])
			}
			return true
		}
	}
	return false
}

// way is a sequence of planned moves that leads from one node to another; nil: none.
func (e *evening) way(moved map[cluster.NodeID][]int, from, to cluster.NodeID) []int {
	came, reached := map[cluster.NodeID]int{}, []cluster.NodeID{from}
	for len(reached) > 0 {
		at := reached[0]
		reached = reached[1:]
		for _, i := range moved[at] {
			next := e.chains[i][0]
			if _, been := came[next]; been || next == from {
				continue
			}
			came[next] = i
			reached = append(reached, next)
		}
	}
	var way []int
	for at := to; at != from; {
		i, is := came[at]
		if !is {
			return nil
		}
		way, at = append(way, i), e.list[i].Chain[0]
	}
	return way
}

// takes reports whether the node, one of those that could, can have the head now.
func (e *evening) takes(a *account, i int) bool {
	w := e.list[i]
	return a.Name != e.chains[i][0] && (w.Kind != cluster.WorkloadMovable || w.MemoryMiB == 0 || a.against(w, nil) == "")
}
