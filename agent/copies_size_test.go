package agent

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// A workload that an operator may just add makes an order that fits, whatever the
// primary writes into its record in the course of time.
func TestTheLargestWorkloadCanBeOrdered(t *testing.T) {
	long := func(i int) cluster.NodeID {
		return cluster.NodeID(fmt.Sprintf("n%d%s", i, strings.Repeat("x", 60)))
	}
	var chain []cluster.NodeID
	away := map[cluster.NodeID]cluster.NodeID{}
	for i := range cluster.MaxChain {
		chain = append(chain, long(i))
		away[long(i)] = long(i + 10)
	}
	w := cluster.Workload{Version: 1, Name: strings.Repeat("w", 63), ID: strings.Repeat("i", 26), Kind: cluster.WorkloadReplicated, Driver: cluster.DriverSystemd,
		Agent: "a@.service", Ephemeral: true, Wanted: true, Autostart: true, Priority: 1000, Selector: "memprov", MemoryMiB: 1 << 30, VCPUs: 1 << 16, Protected: true,
		Replicas: cluster.MaxChain - 1, CoordinatorsOnly: true, Chain: chain, Pass: strings.Repeat("p", 32), History: strings.Repeat("h", 64), Home: long(1), Away: away,
		Next:  &cluster.ChainMove{ID: strings.Repeat("m", 32), Chain: chain, From: chain, Cause: "rebalance", Epoch: cluster.MaxEpoch},
		State: cluster.WorkloadRecovering, Reason: strings.Repeat("\"", 505), Attempts: 5, SinceMS: 1 << 50, Params: map[string]string{}}
	for i := 0; w.Fits() == nil; i++ {
		w.Params[fmt.Sprintf("p%02d", i)] = strings.Repeat("v", 2048)
		if i > cluster.MaxWorkloadParams {
			t.Fatal("the bound is never met")
		}
	}
	if err := w.Validate(); err != nil {
		t.Fatal(err)
	}
	word := strings.Repeat("t", 64)
	q := orderQuestion{V: 1, ID: word, Node: long(1), Incarnation: cluster.Incarnation(word), N: 1 << 60,
		Token: cluster.TokenWire{V: 1, Lease: cluster.NodeLeaseID{Holder: long(1), Start: word, Epoch: cluster.MaxEpoch}, Activity: cluster.ActivityID(word), Root: cluster.ActivityID(word), Request: word},
		Order: cluster.CopyOrder{Op: cluster.CopyMigrateFrom, Workload: w, Seen: 1 << 30, Source: &cluster.CopySource{Node: long(1), Host: word}, Secret: word, Note: word,
			Expect: &cluster.CopyExpect{State: cluster.CopyReplica, Start: word}}}
	raw, err := json.Marshal(q)
	if err != nil || len(raw) > orderBytes {
		t.Errorf("it takes %d bytes, and %d fit: %v", len(raw), orderBytes, err)
	}
}
