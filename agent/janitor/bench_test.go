package janitor

import (
	"fmt"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// many is 1 000 chains of three on 100 nodes, all as they are to be.
func many() (*world, Known) {
	var nodes []cluster.NodeID
	for i := range 100 {
		nodes = append(nodes, cluster.NodeID(fmt.Sprintf("hv%d", i+1)))
	}
	w := newWorld(nodes...)
	for i := range 1000 {
		name := fmt.Sprintf("cache-%d", i)
		w.put(cluster.Workload{Version: 1, Name: name, ID: name, Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Ephemeral: true, Wanted: true, Replicas: 2})
	}
	for len(w.pass()) > 0 {
	}
	return w, w.known(true)
}

// BenchmarkPlan is a pass in which nothing is to be done: with no write, no order,
// and no allocation for each chain.
func BenchmarkPlan(b *testing.B) {
	w, k := many()
	b.ReportAllocs()
	for b.Loop() {
		if _, actions, refusals := Plan(w.state, k, w.snap, time.UnixMilli(0)); len(actions)+len(refusals) > 0 {
			b.Fatal(len(actions), len(refusals))
		}
	}
}

// BenchmarkPlanNodeLost is the pass after a node that headed ten of the chains, and
// stood in twenty more, is proven dead.
func BenchmarkPlanNodeLost(b *testing.B) {
	w, _ := many()
	w.gone["hv7"] = true
	k := w.known(true)
	b.ReportAllocs()
	for b.Loop() {
		if _, actions, _ := Plan(w.state, k, w.snap, time.UnixMilli(0)); len(actions) < 10 {
			b.Fatal(len(actions))
		}
	}
}

// BenchmarkPlanFirst is the pass that gives all of them their list and chain.
func BenchmarkPlanFirst(b *testing.B) {
	w, _ := many()
	for name, v := range w.snap.Workloads {
		v.Value.Chain, v.Value.Nodes = nil, nil
		w.snap.Workloads[name] = v
	}
	k := w.known(false)
	b.ReportAllocs()
	for b.Loop() {
		if _, actions, _ := Plan(w.state, k, w.snap, time.UnixMilli(0)); len(actions) < 100 {
			b.Fatal(len(actions))
		}
	}
}
