package agent_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// apart has the primary hv1 lose the lease of hv3.
func (b *bubble) apart() {
	b.t.Helper()
	b.talk.net.Cut("hv1", "hv3")
	b.talk.net.Cut("hv3", "hv1")
	b.eventually(time.Minute, "the lease of hv3 is lost", func() bool { _, held, _ := b.nodes["hv1"].agent.QuorumHeld("hv3"); return !held })
}

// heads are the nodes that the workload's record has had at its head, in order.
func (b *bubble) heads(name string) (list []cluster.NodeID) {
	for _, h := range b.store.History() {
		var w cluster.Workload
		if h.Path == workloadPath(name) && json.Unmarshal(h.Data, &w) == nil && (len(list) == 0 || list[len(list)-1] != w.Head()) {
			list = append(list, w.Head())
		}
	}
	return list
}

// While a rebalance runs the lease of one node is missing for a time: what is to go
// there waits for it, and nothing is moved elsewhere instead, and back or on after it.
func TestARebalanceMovesNothingTwiceWhileALeaseIsMissing(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		names := []string{"job"}
		b.movable("job", on("hv1"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv1", "hv2"} })
		for i := range 6 {
			names = append(names, fmt.Sprintf("x%d", i))
			b.movable(names[len(names)-1], on("hv1"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv1", "hv3"} })
		}
		for i := range 4 {
			names = append(names, fmt.Sprintf("y%d", i))
			b.movable(names[len(names)-1], on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2"} })
		}
		for _, name := range names {
			b.eventually(time.Minute, name+" runs", func() bool { return len(w.active(name)) == 1 && b.workload(name).State == cluster.WorkloadRunning })
		}
		b.apart()
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
		b.eventually(20*time.Second, "it runs", func() bool { return b.rebalance().State == cluster.RebalanceRunning })
		time.Sleep(8 * time.Second)
		b.talk.net.Heal()
		b.eventually(2*time.Minute, "it is done", func() bool { return b.rebalance().State == cluster.RebalanceDone })
		for _, name := range names {
			if h := b.heads(name); len(h) > 2 {
				t.Errorf("%s was moved %v", name, h)
			}
		}
		if a, c := len(w.held("hv1")), len(w.held("hv3")); a != 4 || c != 3 {
			t.Errorf("hv1 has %v, hv3 %v", w.held("hv1"), w.held("hv3"))
		}
	})
}

// A lease that stays missing keeps no rebalance from its end, which names the node.
func TestARebalanceGoesOnWithoutANodeWhoseLeaseStaysMissing(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		for i := range 6 {
			b.movable(fmt.Sprintf("x%d", i), on("hv1"))
		}
		b.eventually(time.Minute, "all run", func() bool { return runningOn(b, w, "hv1", 6) })
		b.apart()
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
		b.eventually(3*time.Minute, "it is done", func() bool { return b.rebalance().State == cluster.RebalanceDone })
		if text := b.rebalance().Text; !strings.Contains(text, "nothing was moved to hv3") || !strings.Contains(text, "lease") {
			t.Errorf("it says %q", text)
		}
		b.eventually(10*time.Second, "it is spread over the others", func() bool {
			return slices.Equal([]int{len(w.held("hv1")), len(w.held("hv2")), len(w.held("hv3"))}, []int{3, 3, 0})
		})
		for i := range 6 {
			if h := b.heads(fmt.Sprintf("x%d", i)); len(h) > 2 {
				t.Errorf("x%d was moved %v", i, h)
			}
		}
	})
}
