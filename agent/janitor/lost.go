package janitor

import (
	"fmt"
	"slices"

	"pvc.internal/cluster"
)

// lostHead promotes the replicas of a head whose node is proven dead, or whose
// place is empty: [a,b,c] becomes [b,c,∅], the most advanced first. It never makes
// an empty copy the head while another of the chain has one. Where nobody of the
// chain has one:
//
//   - not ephemeral: it stays offline, since the dead node's disk may have it
//     (S85); the node's return, or an operator's promote, ends that;
//   - ephemeral: what was in the dead node's memory is gone for good. It is told, and
//     the workload starts anew: from a copy outside the chain if there is one, else
//     empty, on the next of the chain, else on one of its list (S86).
func (p *planner) lostHead(c *chain) {
	head := c.w.Head()
	if head != cluster.NoCopy && !p.k.Gone[head] {
		return
	}
	gone := func(n cluster.NodeID) bool { return p.k.Gone[n] }
	chain := p.movedOn(c, gone)
	if p.has(c, chain[0]) {
		p.rewrite(c, chain, cluster.WorkloadRecovering, fmt.Sprintf("%s: its copy on %s is promoted", lostText(head), chain[0]), false)
		return
	}
	outside := p.outside(c, func(r cluster.CopyReport) bool { return !missing(r) })
	if !c.w.Ephemeral {
		text := fmt.Sprintf("%s, and no other node of the chain of workload %s (%s) has a copy: it stays offline and is not made anew; bring the node back, or take another copy with `pvc workload promote %s --node <node>`",
			lostText(head), c.w.Name, chainText(c.w.Chain), c.w.Name)
		p.block(c, FaultLastCopyLost, head, text+listed("; copies outside the chain: ", outside))
		return
	}
	if best := p.mostAdvanced(c, outside); best != cluster.NoCopy {
		chain = padded(len(c.w.Chain), append([]cluster.NodeID{best}, chain...))
		p.rewrite(c, chain, cluster.WorkloadRecovering, fmt.Sprintf("%s: a copy outside its chain, on %s, is promoted", lostText(head), best), false)
		return
	}
	if chain[0] == cluster.NoCopy {
		if chain = p.anew(c); chain == nil {
			p.block(c, FaultNoNode, head, fmt.Sprintf("%s, and no node may have a copy of workload %s now: it waits for one of its list %s", lostText(head), c.w.Name, listed("", c.w.Nodes)))
			return
		}
	}
	p.fault(FaultLastCopyLost, c.w.Name, head, fmt.Sprintf("%s, and with it the last copy of workload %s, which is ephemeral: its data is lost; it starts anew, empty, on %s",
		lostText(head), c.w.Name, chain[0]))
	p.rewrite(c, chain, cluster.WorkloadRecovering, lostText(head)+" with the last copy: it starts anew, empty", false)
}

// anew is a chain of the same length whose head is one of the workload's list.
func (p *planner) anew(c *chain) []cluster.NodeID {
	first := p.initial(&c.w, c.w.Nodes)
	if first == nil {
		return nil
	}
	return padded(len(c.w.Chain), first[:1])
}

// withCopy are those of the nodes that have a copy.
func (p *planner) withCopy(c *chain, nodes []cluster.NodeID) []cluster.NodeID {
	return slices.DeleteFunc(slices.Clone(nodes), func(n cluster.NodeID) bool { return !p.has(c, n) })
}

func lostText(head cluster.NodeID) string {
	if head == cluster.NoCopy {
		return "the head's place of the chain is empty"
	}
	return "node " + string(head) + " is proven dead"
}
