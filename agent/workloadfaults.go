package agent

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pvc.internal/agent/failover"
	"pvc.internal/agent/janitor"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// The kinds of the history's entries about workloads that the primary writes of its
// own accord.
const (
	eventWorkloadChain   = "workload_chain"
	eventWorkloadFault   = "workload_fault"
	eventReprovisionNull = "reprovision_reset"
)

// lastCopyFresh is for how long what the latest pass has found counts against a
// fence: without passes nobody knows where copies are, and a fence must not wait for
// ever for who would know (I7).
const lastCopyFresh = time.Minute

// alsoTold adds to the faults that were told those of which the records show that
// they were: by an earlier primary, or by a Multi whose reply was lost. What tells of
// them was written with them.
func alsoTold(told map[string]string, snap *cluster.Snapshot) map[string]string {
	all := maps.Clone(told)
	for key, text := range toldBefore(snap) {
		if _, stands := told[key]; !stands {
			if all == nil {
				all = map[string]string{}
			}
			all[key] = text
		}
	}
	return all
}

// toldBefore are the faults that the records show to have been told.
func toldBefore(snap *cluster.Snapshot) map[string]string {
	told := map[string]string{}
	for _, v := range snap.Workloads {
		if w := v.Value; v.Err == nil && w.State == cluster.WorkloadUnsafe && w.Head() != cluster.NoCopy {
			told[janitor.FaultKey(janitor.FaultUnsafe, "", w.Head())] = w.Reason
		}
	}
	s := snap.Reprovision.Value
	for _, n := range s.Nodes {
		told[janitor.FaultKey(janitor.FaultReprovisioned, "", n)] = "reprovisioned"
	}
	if snap.Reprovision.Present && s.Enabled && s.Count >= s.MaxNodes {
		told[janitor.FaultKey(janitor.FaultReprovisionOff, "", cluster.NoCopy)] = "off"
	}
	return told
}

// faults are the faults of workloads that stand, in words: health faults of the
// primary. It may be called from anywhere.
func (w *workloadWatch) faults() []string {
	if w == nil || w.term() == nil {
		return nil
	}
	f := w.pass.found.Load()
	if f == nil {
		f = &passFound{}
	}
	list := w.stuck()
	strays := w.strays.texts()
	for _, id := range slices.Sorted(maps.Keys(strays)) {
		list = append(list, strays[id])
	}
	for _, key := range slices.Sorted(maps.Keys(f.faults)) {
		if text := f.faults[key]; !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	return list
}

// passOverdue is after how long without a pass that came to its end that is a fault.
const passOverdue = 30 * time.Second

// stuck says, once it lasts, why passes do not come to their end.
func (w *workloadWatch) stuck() []string {
	now, last := w.d.Clock.Now(), w.since.at()
	if f := w.pass.found.Load(); f != nil && f.at.After(last) {
		last = f.at
	}
	if now.Sub(last) < passOverdue || !w.pass.hasWork(w.newest()) {
		return nil
	}
	why := w.unheld()
	if trouble := w.pass.trouble.Load(); why == "" && trouble != nil {
		why = *trouble
	}
	if why == "" {
		why = "other work on workloads takes long"
	}
	return []string{fmt.Sprintf("the janitor has not come to the end of a pass for more than %s, so that copies of workloads are not looked after: %s", passOverdue, why)}
}

// askedOf are the nodes that may have a copy of a workload, in order.
func askedOf(w cluster.Workload) []cluster.NodeID {
	nodes := slices.Clone(w.Chain)
	if w.Kind == cluster.WorkloadReplicated {
		nodes = append(nodes, w.Nodes...)
	}
	if w.Next != nil {
		nodes = append(append(nodes, w.Next.Chain...), w.Next.From...)
	}
	slices.Sort(nodes)
	return slices.DeleteFunc(slices.Compact(nodes), func(n cluster.NodeID) bool { return n == cluster.NoCopy })
}

// lastCopies says of nodes what would be lost with them: copies of ephemeral
// workloads of which no other node that has answered has one. A copy that is on a
// disk is not lost with the power. A node of the chain that was silent may have the
// one that nobody else has.
func lastCopies(snap *cluster.Snapshot, reports map[string]map[cluster.NodeID]cluster.CopyReport, silent map[cluster.NodeID]string) map[cluster.NodeID]string {
	last := map[cluster.NodeID]string{}
	for _, name := range slices.Sorted(maps.Keys(snap.Workloads)) {
		v := snap.Workloads[name]
		w := v.Value
		if v.Err != nil || w.Kind != cluster.WorkloadReplicated || !w.Ephemeral || !w.Wanted || w.State == cluster.WorkloadNew {
			continue
		}
		var holders, maybe []cluster.NodeID
		for _, n := range askedOf(w) {
			r, said := reports[name][n]
			switch {
			case placement.Proven(snap.Nodes[n]):
			case said && !r.Unknown && r.State != cluster.CopyMissing && r.State != "":
				holders = append(holders, n)
			case (!said || r.Unknown) && slices.Contains(w.Chain, n):
				maybe = append(maybe, n)
			}
		}
		switch {
		case len(holders) == 1:
			last[holders[0]] = fmt.Sprintf("workload %s has its only copy there that is known", name)
		case len(holders) == 0:
			for _, n := range maybe {
				last[n] = fmt.Sprintf("workload %s may have its only copy there: no other node has one, and this one has not answered (%s)", name, silent[n])
			}
		}
	}
	return last
}

// lastCopy is the janitor's word on a fence of the node. Until the first pass of a
// role is over it speaks against a node of a chain; it says nothing where nothing
// was found out lately. It may be called from anywhere.
func (w *workloadWatch) lastCopy(snap *cluster.Snapshot, n cluster.NodeID, now cluster.Instant) failover.Opinion {
	if w == nil || w.term() == nil {
		return failover.Opinion{}
	}
	f := w.pass.found.Load()
	if f == nil {
		return w.firstCopies(snap, n, now)
	}
	if now.Sub(f.at) > lastCopyFresh {
		return failover.Opinion{}
	}
	return failover.Opinion{InUse: true, Against: f.last[n]}
}

// firstCopies is lastCopy before the first pass of the role is over.
func (w *workloadWatch) firstCopies(snap *cluster.Snapshot, n cluster.NodeID, now cluster.Instant) failover.Opinion {
	if now.Sub(w.since.at()) > lastCopyFresh {
		return failover.Opinion{}
	}
	for _, v := range snap.Workloads {
		if wl := v.Value; v.Err == nil && wl.Kind == cluster.WorkloadReplicated && wl.Ephemeral && wl.Wanted && slices.Contains(wl.Chain, n) {
			return failover.Opinion{InUse: true, Against: fmt.Sprintf("this node has just become primary and does not know yet who else has a copy of workload %s", wl.Name)}
		}
	}
	return failover.Opinion{}
}

// protectedOn counts, by node, the protected workloads whose head is there: those
// nodes are fenced before others.
func protectedOn(snap *cluster.Snapshot) map[cluster.NodeID]int {
	var count map[cluster.NodeID]int
	for _, v := range snap.Workloads {
		if v.Err == nil && v.Value.Protected && v.Value.Head() != cluster.NoCopy {
			if count == nil {
				count = map[cluster.NodeID]int{}
			}
			count[v.Value.Head()]++
		}
	}
	return count
}
