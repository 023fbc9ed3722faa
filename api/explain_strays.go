package api

import (
	"context"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// strayID begins the id of the fault of a copy that runs where its workload's record
// has none: STRAY_<workload>.<node>. The primary tells of it, and takes it back.
const strayID = "STRAY_"

// strayOf is the workload and the node that a fault of a stray is about.
func strayOf(f FaultRecord) (workload string, n cluster.NodeID, is bool) {
	rest, is := strings.CutPrefix(f.ID, strayID)
	workload, node, dotted := strings.Cut(rest, ".")
	return workload, cluster.NodeID(node), is && dotted
}

// faultsNow are the faults, for explanations: none where ZooKeeper does not answer.
func (s *Server) faultsNow(ctx context.Context, x *explainer) []FaultRecord {
	if x.st.away > 0 {
		return nil
	}
	faults, err := s.deps.Faults.ReadFaults(ctx)
	if err != nil { // the rest is worth having without them
		x.saw("the faults could not be read: %v", err)
	}
	return faults
}

// strays tells of copies outside their records, of which the workload or the node has
// one, and what has to be done.
func (x *explainer) strays(faults []FaultRecord, workload string, n cluster.NodeID) (on []cluster.NodeID) {
	for _, f := range faults {
		name, at, is := strayOf(f)
		if !is || name != workload && at != n {
			continue
		}
		x.saw("fault %s, since %s: %s", f.ID, f.Fields["first_time"], f.Fields["message"])
		x.missing("the end of what runs of workload %s on node %s, outside its record: end it there, or have the node's power taken (`pvc fence now %s`)", name, at, at)
		on = append(on, at)
	}
	slices.Sort(on)
	return slices.Compact(on)
}

// reprovisioned tells of a node whose copies came back empty what remains.
func (x *explainer) reprovisioned(n cluster.NodeID) {
	p := x.st.reprovision()
	if !slices.Contains(p.Nodes, n) {
		return
	}
	x.saw("its copies came back empty, and replicas on other nodes were promoted in their place (auto-reprovision: %d of %d nodes are spent)", p.Count, p.MaxNodes)
	x.missing("%s", emptyText(n))
}
