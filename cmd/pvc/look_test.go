package main

import (
	"encoding/json"
	"slices"
	"testing"

	"pvc.internal/cluster"
)

// The copies in an answer are those of one workload: what is the same on each look is
// no change, and what changes is told of the node where it did.
func TestCopiesAreKnownByTheirNodes(t *testing.T) {
	look := func(replica cluster.CopyState) any {
		raw, err := json.Marshal([]cluster.CopyReport{
			{Workload: "cache", ID: "c1", Node: "hv1", State: cluster.CopyActive}, {Workload: "cache", ID: "c1", Node: "hv2", State: replica, Follows: "hv1"}})
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	if lines := changes("copies", look(cluster.CopyReplica), look(cluster.CopyReplica)); len(lines) > 0 {
		t.Errorf("nothing has changed, and it says %q", lines)
	}
	if lines := changes("copies", look(cluster.CopyReplica), look(cluster.CopyPending)); !slices.Equal(lines, []string{"copies hv2 state: replica → pending"}) {
		t.Errorf("it says %q", lines)
	}
}
