package agent_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// The head's node is proven dead: its replica serves at once, not with the next pass
// that its turn brings; and it is not taken for a node that came back empty, which
// would spend auto-reprovision's count on a fence.
func TestAHeadWhoseNodeIsProvenDeadIsReplacedAtOnce(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.powerOff("hv2")
		w.vanish("hv2")
		b.eventually(time.Minute, "hv2 has no session", func() bool { return b.read("/agent/alive/hv2") == "" })
		probes := w.count(&w.probes)
		b.eventually(10*time.Second, "a pass has found it silent", func() bool { return w.count(&w.probes) >= probes+2 })
		time.Sleep(time.Second)
		b.proven("hv2", "migrate")
		began := time.Now()
		b.eventually(10*time.Second, "hv3 serves", func() bool { return w.state("hv3", "cache") == cluster.CopyActive })
		if took := time.Since(began); took > time.Second {
			t.Errorf("after the proof that took %v", took)
		}
		b.runs(w, "hv3", "")
		if s := b.reprovision(); s.Count != 0 {
			t.Errorf("the fence was counted: %+v", s)
		}
	})
}

// Auto-reprovision's maximum is spent, and a head came back empty whose activation
// fails: a rebalance fails with unsafe_nodes also then, moves nothing and keeps the
// count. Once the head is repaired the next one fills its place and resets the count,
// and a further head that comes back empty is repaired again (S122, S124, P3).
func TestARebalanceThatFindsAnEmptyHeadFails(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 1, Count: 1, Nodes: []cluster.NodeID{"hv1"}})
		w.set(func() { w.fail["promote hv2"] = errors.New("not now") })
		w.restartEmpty("hv2", "cache")
		b.eventually(20*time.Second, "hv2 is to be activated empty, which fails", func() bool { return b.workload("cache").State == cluster.WorkloadStarting })
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
		b.eventually(30*time.Second, "the rebalance has failed", func() bool { return b.rebalance().State == cluster.RebalanceFailed })
		if r := b.rebalance(); !strings.HasPrefix(r.Text, "unsafe_nodes: ") || !strings.Contains(r.Text, "hv2") || r.Done != 0 {
			t.Errorf("it says %+v", r)
		}
		if s := b.reprovision(); s.Count != 1 {
			t.Errorf("the count is %+v", s)
		}
		b.setReset("again")
		b.runs(w, "hv3", "")
		b.eventually(10*time.Second, "it is counted", func() bool { return b.reprovision().Count == 1 })
		w.set(func() { delete(w.fail, "promote hv2") })
		b.setRebalance(cluster.Rebalance{ID: "r2", State: cluster.RebalanceOrdered})
		b.eventually(time.Minute, "the next rebalance is done", func() bool { r := b.rebalance(); return r.ID == "r2" && r.State == cluster.RebalanceDone })
		if s := b.reprovision(); s.Count != 0 {
			t.Errorf("the count is %+v", s)
		}
		c := b.workload("cache")
		if len(c.Members()) != 2 || c.Head() != "hv3" {
			t.Fatalf("its chain is %v", c.Chain)
		}
		b.runs(w, "hv3", c.Chain[1])
		w.write("cache", 5)
		w.restartEmpty("hv3", "cache")
		b.eventually(5*time.Second, "the check works again", func() bool { return w.state(c.Chain[1], "cache") == cluster.CopyActive })
		if s := b.reprovision(); s.Count != 1 || !slices.Equal(s.Nodes, []cluster.NodeID{"hv3"}) {
			t.Errorf("the count is %+v", s)
		}
	})
}

// A primary dies over a rebalance, and no workload is left: the next one ends the
// record, which else would say "running" for ever (S118, M19).
func TestARebalanceWithNothingLeftIsEnded(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, _ *copyWorld) {
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceRunning, Epoch: 1, Total: 3, Done: 1})
		b.kill("hv1")
		b.eventually(time.Minute, "another primary has ended it", func() bool { return b.rebalance().Ended() })
		if told := b.told(cluster.EventRebalance); len(told) != 1 || told[0].Fields["rebalance"] != "r1" {
			t.Errorf("the history tells %+v", told)
		}
	})
}

// Each workload is brought to its chain in an activity of its own that needs the
// leases of exactly its members; one of them that is proven dead is no member, and
// one that is silent stops its own workloads only (S101).
func TestEachApplyNeedsItsOwnMembers(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		for name, chain := range map[string][]cluster.NodeID{"w1": {"hv3", "hv1"}, "w2": {"hv1", "hv3"}, "w3": {"hv2"}, "w4": {"hv2", "hv1", "hv3"}} {
			b.addWorkload(cluster.Workload{Name: name, Ephemeral: true, Chain: chain, Nodes: chain, Replicas: len(chain) - 1})
		}
		b.eventually(time.Minute, "all run", func() bool {
			for _, name := range []string{"w1", "w2", "w3", "w4"} {
				if b.workload(name).State != cluster.WorkloadRunning {
					return false
				}
			}
			return true
		})
		quorums := func() map[string]string {
			byName := map[string]string{}
			for _, e := range b.told(cluster.EventActivity) {
				if strings.HasPrefix(e.Fields["name"], "apply-") {
					_, members, _ := strings.Cut(e.Fields["quorum"], "all(") // "[majority all(hv1 hv3)]"
					byName[e.Fields["name"]], _, _ = strings.Cut(members, ")")
				}
			}
			return byName
		}
		for name, want := range map[string]string{"apply-w1": "hv3 hv1", "apply-w2": "hv1 hv3", "apply-w3": "hv2", "apply-w4": "hv2 hv1 hv3"} {
			b.eventually(20*time.Second, name+" needs "+want+", all of them", func() bool { return quorums()[name] == want })
		}
		b.nodeDies(w, "hv3", "migrate")
		w.restartEmpty("hv1", "w4") // a replica of two, so that there is something to apply
		b.eventually(time.Minute, "it follows again, without hv3", func() bool {
			return quorums()["apply-w4"] == "hv2 hv1" && w.state("hv1", "w4") == cluster.CopyReplica
		})
	})
}
