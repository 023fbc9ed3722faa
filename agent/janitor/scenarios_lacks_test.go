package janitor

import (
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A workload that runs while its replica cannot be brought to follow says so, and why,
// in its record: it would be lost with its head. That is written once, left as it is by
// a primary that has not tried yet, and taken back once the replica follows; a move's
// own words stay.
func TestAWorkloadWhoseReplicaDoesNotComeUpSaysSo(t *testing.T) {
	const why = `order follow of workload "cache" on node b: is port 6379 taken?`
	w := newWorld("a", "b")
	record := cluster.Workload{Version: 1, Name: "cache", ID: "id-cache", Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Wanted: true, Ephemeral: true,
		Chain: []cluster.NodeID{"a", "b"}, Nodes: []cluster.NodeID{"a", "b"}, State: cluster.WorkloadRunning}
	w.put(record)
	k := w.known(true)
	plan := func(replica cluster.CopyState, failed string) (reason string, wrote bool) {
		t.Helper()
		k.Failed = map[string]string{"cache": failed}
		k.Reports = map[string]map[cluster.NodeID]cluster.CopyReport{"cache": {
			"a": {Workload: "cache", ID: "id-cache", Node: "a", State: cluster.CopyActive}, "b": {Workload: "cache", ID: "id-cache", Node: "b", State: replica, Follows: "a"}}}
		before := w.snap.Workloads["cache"].Version
		_, actions, _ := Plan(State{}, k, w.snap, time.UnixMilli(0))
		if !w.write(actions) {
			t.Fatal("it was planned on another version")
		}
		now := w.snap.Workloads["cache"]
		if now.Value.State != cluster.WorkloadRunning {
			t.Errorf("its state is %s", now.Value.State)
		}
		return now.Value.Reason, now.Version != before
	}
	for i, step := range []struct {
		replica cluster.CopyState
		failed  string
		says    string
		writes  bool
	}{
		{cluster.CopyReplica, "", "", false},
		{cluster.CopyMissing, "", "", false}, // nothing was tried yet
		{cluster.CopyMissing, why, why, true},
		{cluster.CopyMissing, why, why, false},
		{cluster.CopyMissing, "", why, false}, // another primary
		{cluster.CopyReplica, "", "", true},
		{cluster.CopyReplica, "", "", false},
	} {
		reason, wrote := plan(step.replica, step.failed)
		if wrote != step.writes || !strings.HasSuffix(reason, step.says) || (step.says == "") != (reason == "") {
			t.Errorf("step %d: it says %q, and was written: %t", i, reason, wrote)
		}
	}
	record.Reason = "drain waits: it cannot be moved"
	w.put(record)
	if reason, wrote := plan(cluster.CopyMissing, why); reason != record.Reason || wrote {
		t.Errorf("a drain's words have become %q", reason)
	}
}
