package agent_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

// A finished rebalance says which workloads still lack a copy and why, where it is
// asked for and in the history, as many as one reads.
func TestARebalanceNamesWhatItCouldNotFill(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.addWorkload(cluster.Workload{Name: "lonely", Chain: []cluster.NodeID{"hv2", ""}, Nodes: []cluster.NodeID{"hv2"}, Replicas: 1})
		for i := range 15 {
			b.addWorkload(cluster.Workload{Name: fmt.Sprintf("w%02d", i), Chain: []cluster.NodeID{"hv3", ""}, Nodes: []cluster.NodeID{"hv3"}, Replicas: 1})
		}
		b.addWorkload(cluster.Workload{Name: "whole", Chain: []cluster.NodeID{"hv1"}, Nodes: []cluster.NodeID{"hv1"}})
		b.eventually(60*time.Second, "all run", func() bool {
			return runningOn(b, w, "hv3", 15) && runningOn(b, w, "hv2", 1) && runningOn(b, w, "hv1", 1)
		})
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
		b.eventually(time.Minute, "it is done", func() bool { return b.rebalance().State == cluster.RebalanceDone })
		told := b.told(cluster.EventRebalance)
		if len(told) != 1 {
			t.Fatalf("it is told %d times", len(told))
		}
		for where, text := range map[string]string{"record": b.rebalance().Text, "history": told[0].Text} {
			for _, want := range []string{"16 workloads", "lonely (hv2, (empty))", "hv1: not in its list of nodes", "w10 (", "4 more"} {
				if !strings.Contains(text, want) {
					t.Errorf("the %s does not say %q: %s", where, want, text)
				}
			}
			if strings.Contains(text, "whole") || len(text) > 4000 {
				t.Errorf("the %s says too much (%d bytes): %s", where, len(text), text)
			}
		}
		b.setRebalance(cluster.Rebalance{ID: "r2", State: cluster.RebalanceOrdered})
		b.editWorkload("lonely", func(w *cluster.Workload) { w.Wanted = false })
		b.eventually(time.Minute, "the next one is done", func() bool { r := b.rebalance(); return r.ID == "r2" && r.State == cluster.RebalanceDone })
		if text := b.rebalance().Text; strings.Contains(text, "lonely") {
			t.Errorf("what is not wanted is named: %s", text)
		}
	})
}

// The settings of auto-reprovision are written for the first time, with a count, while
// the end of a rebalance is on its way: the end does not go past them.
func TestTheEndOfARebalanceMeetsSettingsThatAreNew(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		b.store.Stall() // writes wait, and are done in their order
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
		time.Sleep(120 * time.Millisecond)
		synctest.Wait()
		b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 3, Count: 2})
		b.store.Resume()
		b.eventually(time.Minute, "it is done", func() bool { return b.rebalance().State == cluster.RebalanceDone })
		if s := b.reprovision(); s.Count != 0 || s.MaxNodes != 3 {
			t.Errorf("it is done, and the settings are %+v", s)
		}
	})
}

// A rebalance that finds a head that came back empty has failed, and keeps the count;
// the pass after it repairs the head, and the next rebalance resets the count (S124,
// S122).
func TestARebalanceFailsOnAnEmptyHeadAndTheNextResetsTheCount(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 3, Count: 1, Nodes: []cluster.NodeID{"hv1"}})
		b.cache(w)
		// A pass has just been: the next one is seconds away, the rebalance is not.
		asked := w.count(&w.probes)
		b.eventually(20*time.Second, "a pass asks", func() bool { return w.count(&w.probes) > asked })
		time.Sleep(500 * time.Millisecond)
		w.set(func() { w.host("hv2").copies["cache"] = &worldCopy{state: cluster.CopyMissing, start: 2} })
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
		b.eventually(20*time.Second, "it has ended", func() bool { return b.rebalance().Ended() })
		if r := b.rebalance(); r.State != cluster.RebalanceFailed || !strings.Contains(r.Text, "unsafe_nodes") || !strings.Contains(r.Text, "cache") {
			t.Errorf("it says %+v", r)
		}
		if s := b.reprovision(); s.Count < 1 {
			t.Errorf("a failed one has reset the count: %+v", s)
		}
		b.runs(w, "hv3", "")
		if s := b.reprovision(); s.Count != 2 {
			t.Errorf("the count after the repair is %+v", s)
		}
		if w.keys("hv3", "cache") != 1000 {
			t.Errorf("it serves %d keys", w.keys("hv3", "cache"))
		}
		b.setRebalance(cluster.Rebalance{ID: "r2", State: cluster.RebalanceOrdered})
		b.eventually(2*time.Minute, "the next one is done", func() bool { r := b.rebalance(); return r.ID == "r2" && r.State == cluster.RebalanceDone })
		if s := b.reprovision(); s.Count != 0 || len(s.Nodes) != 0 {
			t.Errorf("the count is %+v", s)
		}
	})
}
