package doctor

import (
	"fmt"
	"slices"

	"pvc.internal/cluster"
)

// Members judges whose node leases count for majorities. Without a record of the
// quorum set, as where node leases are not in use, nothing is said.
func Members(r Records) []Finding {
	l := &list{check: CheckCluster}
	q := r.Snapshot.Quorum
	switch {
	case q.Err != nil:
		l.problem("quorum set", "`pvc cluster status` shows the primary; it mends the record at its next change, or delete it by hand and it is made anew", "the record of who counts for majorities cannot be read: %v", q.Err)
		return l.findings
	case !q.Present:
		return nil
	}
	for _, n := range r.names() {
		l.counted(r, n, q.Value)
	}
	l.counting(r, q.Value)
	if r.Snapshot.Members.Err != nil {
		l.problem("members", "mend the record /agent/members by hand: until then no node can register", "the record of who was removed cannot be read: %v", r.Snapshot.Members.Err)
	}
	if !l.bad() {
		l.ok("quorum set", "the leases of %d coordinators count for majorities: %s", len(q.Value.Nodes), tellable(q.Value.Nodes))
	}
	return l.findings
}

// counted: a coordinator that lives and does not count is one fewer to form a
// majority with than whoever looks at the list of nodes believes.
func (l *list) counted(r Records, n cluster.NodeID, set cluster.QuorumSet) {
	v := r.Snapshot.Nodes[n]
	if v.Mode.Value != cluster.Coordinator || !v.Record.Present || v.Record.Err != nil || !r.lives(n) {
		return
	}
	add := fmt.Sprintf("`pvc node add %s --coordinator`; or nothing, if it was taken out on purpose (`pvc history`)", n)
	switch counted, id := set.IDs[n], v.Record.Value.ID; {
	case !slices.Contains(set.Nodes, n):
		l.warn(string(n), add, "is a coordinator that lives and counts for no majority: the quorum set is %s", tellable(set.Nodes))
	case counted != "" && id != "" && counted != id:
		l.warn(string(n), add, "counts by its name, but another host has it than the one that was counted: host %s, where %s is meant", id, counted)
	}
}

// counting looks at the set itself.
func (l *list) counting(r Records, set cluster.QuorumSet) {
	for _, n := range set.Nodes {
		if v, known := r.Snapshot.Nodes[n]; !known || !v.Record.Present && v.Record.Err == nil {
			l.problem(string(n), fmt.Sprintf("start pvcnoded there; if it is gone for good: `pvc node remove %s`", n), "counts for majorities and is not registered")
		}
	}
	if len(set.Nodes) == 2 {
		l.warn("quorum set", "have three coordinators, or switch node_leases off on all nodes", "two coordinators count: while one is away the other has no majority, and nobody is fenced by itself")
	}
}
