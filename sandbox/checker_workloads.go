package sandbox

import (
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// checkCopies is I4 for workloads, judged by their processes: a movable one never
// runs twice, neither on two nodes nor on one. What is judged is never moved live, for
// only OCF agents can: in the middle of that both nodes may have one.
func checkCopies(entries []Entry, limits Limits) []Violation {
	return ranTwice(entries, limits, KindCopy, "I4", "workload")
}

// checkRights is I4 from the side of the node: no copy runs on it after the end of
// its own right, Q·K after its last acknowledged keepalive. The keepalive is counted
// from when ZooKeeper's leader took it, which is never before it was sent, and nothing
// is said of a time in which the store was away, or this sandbox did not see it: then
// the right may have been carried on by the others' word. The entries are in the order
// of their writing.
func checkRights(entries []Entry, limits Limits) []Violation {
	if limits.Right <= 0 {
		return nil
	}
	var out []Violation
	kept := map[cluster.NodeID]cluster.Instant{} // the last keepalive
	runs := map[cluster.NodeID]map[string]bool{} // what runs there
	told := map[cluster.NodeID]bool{}            // since that keepalive
	blind := true                                // the store, or the sight of it, is away
	var sighted cluster.Instant                  // since when it is not
	allowed := limits.Right + limits.Stop + max(limits.Noise, limits.Events) + wallTick
	over := func(n cluster.NodeID, name string, at cluster.Instant) {
		since := kept[n]
		if since.IsZero() || told[n] || blind || sighted > since || at.Sub(since) <= allowed {
			return
		}
		told[n] = true
		out = append(out, Violation{"I4", at, fmt.Sprintf("workload %s ran on %s %v after its last keepalive, %v after the end of its right",
			name, n, at.Sub(since), at.Sub(since)-limits.Right)})
	}
	for _, e := range entries {
		switch e.Kind {
		case KindStore:
			if blind = !e.On; e.On {
				sighted = e.At
			}
		case KindKeepalive:
			for name := range runs[e.Node] {
				over(e.Node, name, e.At)
			}
			kept[e.Node], told[e.Node] = e.At, false
		case KindCopy:
			if runs[e.Node] == nil {
				runs[e.Node] = map[string]bool{}
			}
			if e.On {
				runs[e.Node][e.Name] = true
			} else {
				over(e.Node, e.Name, e.At)
				delete(runs[e.Node], e.Name)
			}
		}
	}
	if len(entries) > 0 {
		end := entries[len(entries)-1].At
		for n, names := range runs {
			for name := range names {
				over(n, name, end)
			}
		}
	}
	return out
}

// checkKeys is I8 for what a workload has acknowledged: where losing none was
// promised none is lost.
func checkKeys(entries []Entry) []Violation {
	var out []Violation
	for _, e := range entries {
		if e.Kind == KindKeys && e.On && e.Lost > 0 {
			out = append(out, Violation{"I8", e.At, fmt.Sprintf("%d of %d keys that %s had acknowledged are lost", e.Lost, e.N, e.Name)})
		}
	}
	return out
}

// stopOf is what ending a copy of the sandbox's own workloads may take: they end at
// once when they are told to, and the machine is busy.
const stopOf = 500 * time.Millisecond
