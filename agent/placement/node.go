package placement

import (
	"fmt"
	"slices"
	"strconv"

	"pvc.internal/cluster"
)

// Facts are the figures that a node publishes of itself, as far as placing looks
// at them. Memory is in MiB.
type Facts struct {
	Known                      bool // they could be read
	MemTotal, MemFree, MemProv int64
	CPUs, VCPUs, Count         int
	Load                       float64 // of the last minute
}

// ReadFacts takes the figures out of a node's leaves. What is missing or no number
// counts as zero; without a memory size nothing is known.
func ReadFacts(leaves map[string]string) Facts {
	whole := func(leaf string) int64 {
		n, err := strconv.ParseInt(leaves[leaf], 10, 64)
		if err != nil || n < 0 {
			return 0
		}
		return n
	}
	load, err := strconv.ParseFloat(leaves["cpuload"], 64)
	if err != nil || !(load >= 0) {
		load = 0
	}
	f := Facts{
		MemTotal: whole("memtotal"), MemFree: whole("memfree"), MemProv: whole("memprov"),
		VCPUs: int(whole("vcpualloc")), Count: int(whole("domainscount")), Load: load,
	}
	f.Known = f.MemTotal > 0
	return f
}

// Node is one node as placing looks at it.
type Node struct {
	Name  cluster.NodeID
	Bar   string // why nothing is placed there now; empty: it may be
	Facts Facts
}

// Proven reports whether the start of the node that has registered last is proven
// dead (I4), so that nothing of its runs any more. A proof of an earlier start
// proves nothing of the present one.
func Proven(v cluster.NodeView) bool {
	f, r := v.Fence, v.Record
	if !f.Present || f.Err != nil || !r.Present || r.Err != nil || f.Value.Proof == "" || f.Value.Incarnation == "" {
		return false
	}
	switch f.Value.Stage {
	case cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone:
		return f.Value.Incarnation == r.Value.Incarnation
	}
	return false
}

// Recoverable reports whether a proven node's movable workloads restart elsewhere.
func Recoverable(v cluster.NodeView) bool { return Proven(v) && v.Fence.Value.Policy == "migrate" }

// Bar says why nothing is placed on the node now; empty: it may be.
func Bar(snap *cluster.Snapshot, n cluster.NodeID) string {
	v, known := snap.Nodes[n]
	switch {
	case !known || !v.Mode.Present && !v.Record.Present:
		return "no such node"
	case Proven(v):
		return "proven dead"
	case v.Fence.Present && v.Fence.Err != nil:
		return "its fence record cannot be read"
	case v.Fence.Present && !v.Fence.Value.Ended() && v.Fence.Value.ID != "" && v.Fence.Value.Stage != cluster.FenceFailed &&
		v.Fence.Value.Incarnation == v.Record.Value.Incarnation:
		return "it is being fenced"
	case !v.Alive.Present || v.Alive.Err != nil:
		return "not alive"
	case v.Daemon.Value != cluster.DaemonRun:
		return fmt.Sprintf("its daemon is in state %q", v.Daemon.Value)
	case v.Settles():
		return "it is being stopped, and its copies are ending"
	case v.Domain.Err != nil || v.Domain.Present && v.Domain.Value != cluster.DomainReady:
		return fmt.Sprintf("its domain state is %q, not ready", v.Domain.Value)
	}
	return ""
}

// Nodes are the snapshot's nodes in order of their names, with what stands against
// placing on each. more may bar further; nil: it does not.
func Nodes(snap *cluster.Snapshot, facts map[cluster.NodeID]Facts, more func(cluster.NodeID) string) []Node {
	list := make([]Node, 0, len(snap.Nodes))
	for name := range snap.Nodes {
		n := Node{Name: name, Bar: Bar(snap, name), Facts: facts[name]}
		if n.Bar == "" && more != nil {
			n.Bar = more(name)
		}
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b Node) int { return compare(a.Name, b.Name) })
	return list
}

func compare[T ~string | ~int | ~int64 | ~float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
