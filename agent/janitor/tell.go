package janitor

import (
	"maps"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// fault raises one; whether it is new is found out at the end.
func (p *planner) fault(code, workload string, n cluster.NodeID, text string) {
	p.faults = append(p.faults, Action{Kind: ActionFault, Fault: code, Workload: workload, Node: n, Text: text})
}

// block leaves the copies of a workload as they are, for a fault.
func (p *planner) block(c *chain, code string, n cluster.NodeID, text string) {
	c.blocked = true
	p.fault(code, c.w.Name, n, text)
	p.refusals = append(p.refusals, cluster.Refusal{Code: refusalOf[code], Node: n, Detail: text})
	state := cluster.WorkloadFaulty
	if code == FaultNoNode {
		state = cluster.WorkloadStopped
	}
	p.setState(c, state, text)
}

var refusalOf = map[string]cluster.RefusalCode{
	FaultCorruptedNodeList: cluster.RefuseCorruptedNodeList,
	FaultBadCopies:         cluster.RefuseBadCopies,
	FaultLastCopyLost:      cluster.RefuseLastCopyLost,
	FaultNoNode:            cluster.RefuseNoNodeForCopy,
}

// tell compares the faults with those that stand: what is new is told, and goes into
// the history; what is over is taken back. Of a workload that nothing was found out
// about, what stands stands.
func (p *planner) tell(s State) (State, []Action) {
	p.tellReprovision()
	slices.SortFunc(p.faults, func(a, b Action) int {
		return strings.Compare(FaultKey(a.Fault, a.Workload, a.Node), FaultKey(b.Fault, b.Workload, b.Node))
	})
	wanted := make(map[string]bool, len(p.faults))
	var told map[string]string // made when something changes
	change := func() map[string]string {
		if told == nil {
			if told = maps.Clone(s.Told); told == nil {
				told = map[string]string{}
			}
		}
		return told
	}
	var actions []Action
	for _, f := range p.faults {
		key := FaultKey(f.Fault, f.Workload, f.Node)
		wanted[key] = true
		if text, stands := s.Told[key]; !stands || text != f.Text {
			f.History = !stands
			actions = append(actions, f)
			change()[key] = f.Text
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.Told)) {
		if wanted[key] || p.stands(key) {
			continue
		}
		parts := strings.SplitN(key, "/", 3)
		delete(change(), key)
		if len(parts) == 3 {
			actions = append(actions, Action{Kind: ActionFault, Fault: parts[0], Workload: parts[1], Node: cluster.NodeID(parts[2])})
		}
	}
	if told != nil {
		s.Told = told
	}
	return s, actions
}

// stands reports whether a fault that was not found again is not over for that.
func (p *planner) stands(key string) bool {
	parts := strings.SplitN(key, "/", 3)
	if len(parts) != 3 {
		return false
	}
	code, workload, node := parts[0], parts[1], cluster.NodeID(parts[2])
	if code == FaultReprovisioned || code == FaultReprovisionOff {
		return p.settings.err != nil // told from the settings alone, in every planning
	}
	if code == FaultReprovision {
		return p.settings.err != nil
	}
	asked := code != FaultCorruptedNodeList && code != FaultUnreadable && code != FaultNoNode
	if asked && !p.k.Queried {
		return true
	}
	for _, c := range p.chains {
		if c.w.Name == workload {
			// What is told of a head is over only when one serves again.
			settling := (code == FaultHeadEmptied || code == FaultLastCopyLost) && c.w.Wanted && !c.blocked && p.state(c, c.w.Head()) != cluster.CopyActive
			return c.untouched || settling
		}
		if workload == "" && c.untouched && c.w.Head() == node {
			return true
		}
	}
	return false
}
