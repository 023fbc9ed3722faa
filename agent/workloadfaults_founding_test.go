package agent_test

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

// Workloads that were added while a cluster was just coming up, before it had its first
// quorum set, run soon after, each copy once. The API takes such a record as soon as the
// primary has published that it asks for node leases: copies rest on those of their own
// nodes, and until the set is written every registered coordinator counts.
func TestWorkloadsWaitForTheFirstQuorumSet(t *testing.T) {
	t.Parallel()
	w := newCopyWorld()
	o := nodesCalled("hv1", "hv2", "hv3")
	o.talk, o.tune = true, w.tune
	inBubble(t, o, func(b *bubble) {
		for _, n := range o.names {
			b.store.Set("/nodes/"+string(n)+"/domainstate", []byte(cluster.DomainReady))
		}
		b.eventually(30*time.Second, "the primary asks for node leases", func() bool { return b.read("/agent/leases") != "" })
		if b.read("/agent/quorum") != "" {
			t.Fatal("the quorum set stands already, so that this shows nothing")
		}
		b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: []cluster.NodeID{"hv2", "hv3"}, Nodes: []cluster.NodeID{"hv1", "hv2", "hv3"}, Replicas: 1})
		b.movable("vm1", on("hv3"))
		b.runs(w, "hv2", "hv3")
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		for _, wrong := range w.faults() {
			t.Error(wrong)
		}
	})
}
