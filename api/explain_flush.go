package api

import (
	"fmt"
	"slices"

	"pvc.internal/cluster"
)

// explainedWaiting bounds how many workloads of a node that is being emptied an
// explanation quotes.
const explainedWaiting = 10

// flushing tells what is still on a node that is being emptied, and why; empty: nothing,
// or it is not being emptied.
func (x *explainer) flushing(n cluster.NodeView) string {
	switch n.Domain.Value {
	case cluster.DomainFlush, cluster.DomainFlushed, cluster.DomainFenceFlush:
	default:
		return ""
	}
	var left []string
	for name, v := range x.st.snap.Workloads {
		if v.Present && v.Err == nil && v.Value.Wanted && slices.Contains(v.Value.Chain, n.Name) {
			left = append(left, name)
		}
	}
	if len(left) == 0 {
		return ""
	}
	slices.Sort(left)
	for i, name := range left {
		if i == explainedWaiting {
			x.saw("and %d more", len(left)-i)
			break
		}
		why := x.st.snap.Workloads[name].Value.Reason
		if why == "" {
			why = "its move has not begun or is under way (`pvc activity list`)"
		}
		x.saw("workload %s is on it still: %s", name, why)
	}
	x.missing("a place for what is still on %s, or its flush called off: `pvc node ready %s`", n.Name, n.Name)
	if len(left) == 1 {
		return fmt.Sprintf(" It is being emptied, and workload %s is on it still.", left[0])
	}
	return fmt.Sprintf(" It is being emptied, and %d workloads are on it still.", len(left))
}
