package janitor

import (
	"cmp"
	"fmt"
	"slices"

	"pvc.internal/cluster"
)

// firstSteps are what comes before anybody is asked (protocol §9): a workload
// without a list gets one, of all nodes that may run it; one without a chain an
// initial one; both are written, and the pass begins anew. A list that names what
// is no member stays untouched: what it means is not known.
func (p *planner) firstSteps(c *chain) {
	if n, where := p.stranger(&c.w); where != "" {
		why := "which is no member of this cluster"
		if p.members[n] {
			why = "twice"
		}
		p.block(c, FaultCorruptedNodeList, n, fmt.Sprintf("%s of workload %s names %s, %s: its copies are left as they are; give it another with `pvc workload set %s`, or add the node again",
			where, c.w.Name, nameOf(n), why, c.w.Name))
		return
	}
	if r := c.w.Request; r != nil && (r.Op == cluster.WorkloadRemove || r.Op == cluster.WorkloadStop) {
		c.untouched = true // whoever carries it out decides of its copies
		return
	}
	if len(c.w.Nodes) > 0 && len(c.w.Chain) > 0 {
		return
	}
	nodes := c.w.Nodes
	if len(nodes) == 0 {
		nodes = p.mayRun(&c.w)
	}
	chain := c.w.Chain
	if len(chain) == 0 && c.w.Wanted {
		chain = p.initial(&c.w, nodes)
	}
	if len(nodes) == 0 || (len(chain) == 0 && c.w.Wanted) {
		p.block(c, FaultNoNode, cluster.NoCopy, fmt.Sprintf("no node may have a copy of workload %s now: it waits for one that is active, not drained, and able to run driver %s%s",
			c.w.Name, c.w.Driver, listed(" of its list ", c.w.Nodes)))
		return
	}
	if len(c.w.Nodes) > 0 && len(chain) == len(c.w.Chain) {
		return // not wanted: its chain is made when it is
	}
	w := c.edit()
	w.Nodes, w.Chain, w.Pass, c.again = slices.Clone(nodes), slices.Clone(chain), p.k.Pass, true
	if len(c.w.Chain) == 0 && len(chain) > 0 {
		p.setState(c, cluster.WorkloadStarting, "")
	}
}

// stranger finds a node that the record must not name, and says in which list; ""
// where there is none. A chain that names a node twice is one too.
func (p *planner) stranger(w *cluster.Workload) (cluster.NodeID, string) {
	if n, bad := p.corrupted(w.Nodes, false); bad {
		return n, "the node list"
	}
	if n, bad := p.corrupted(w.Chain, true); bad {
		return n, "the chain"
	}
	if w.Next != nil {
		if n, bad := p.corrupted(w.Next.Chain, true); bad {
			return n, "the chain of the unfinished move"
		}
	}
	return cluster.NoCopy, ""
}

func (p *planner) corrupted(list []cluster.NodeID, places bool) (cluster.NodeID, bool) {
	for i, n := range list {
		if n == cluster.NoCopy && places {
			continue
		}
		if !p.members[n] || slices.Contains(list[:i], n) {
			return n, true
		}
	}
	return cluster.NoCopy, false
}

// mayRun are the members of which a list is made: also those that are drained or
// silent just now, since a list is for long; none that is proven dead or being failed
// over (J12).
func (p *planner) mayRun(w *cluster.Workload) []cluster.NodeID {
	var list []cluster.NodeID
	for n, member := range p.members {
		if member && !p.k.Gone[n] && !p.k.FailingOver[n] && (p.k.Runnable == nil || p.k.Runnable(n, *w)) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// takers are those of the nodes that may be given a copy now, in order.
func (p *planner) takers(w *cluster.Workload, nodes []cluster.NodeID) []cluster.NodeID {
	var list []cluster.NodeID
	for _, n := range nodes {
		_, silent := p.k.Silent[n]
		if n == cluster.NoCopy || silent || p.k.Gone[n] || p.k.FailingOver[n] || !slices.Contains(p.k.Active, n) || (p.k.Runnable != nil && !p.k.Runnable(n, *w)) {
			continue
		}
		list = append(list, n)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// load is how much a node has in all chains.
type load struct{ heads, copies int }

// loads counts heads and copies of all chains, as they are to be.
func (p *planner) loads() map[cluster.NodeID]load {
	if p.load == nil {
		p.load = make(map[cluster.NodeID]load, len(p.members))
		for _, view := range p.snap.Workloads {
			if view.Present && view.Value.Kind == cluster.WorkloadReplicated {
				p.count(view.Value.Chain)
			}
		}
	}
	return p.load
}

func (p *planner) count(chain []cluster.NodeID) {
	for i, n := range chain {
		l := p.load[n]
		l.copies++
		if i == 0 {
			l.heads++
		}
		p.load[n] = l
	}
}

// initial is a first chain: its head where fewest heads are, its replicas where
// fewest copies are, then by name. Places that nobody can take stay empty (J3);
// nil: not even the head's can be taken.
func (p *planner) initial(w *cluster.Workload, nodes []cluster.NodeID) []cluster.NodeID {
	takers := p.takers(w, nodes)
	if len(takers) == 0 {
		return nil
	}
	loads := p.loads()
	head := slices.MinFunc(takers, func(a, b cluster.NodeID) int {
		return cmp.Or(cmp.Compare(loads[a].heads, loads[b].heads), cmp.Compare(loads[a].copies, loads[b].copies), cmp.Compare(a, b))
	})
	chain := make([]cluster.NodeID, w.Replicas+1)
	chain[0] = head
	takers = slices.DeleteFunc(takers, func(n cluster.NodeID) bool { return n == head })
	slices.SortStableFunc(takers, func(a, b cluster.NodeID) int {
		return cmp.Or(cmp.Compare(loads[a].copies, loads[b].copies), cmp.Compare(a, b))
	})
	copy(chain[1:], takers)
	p.count(chain)
	return chain
}

func nameOf(n cluster.NodeID) string {
	if n == cluster.NoCopy {
		return "an empty name"
	}
	return string(n)
}
