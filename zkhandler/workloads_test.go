package zkhandler_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

func workloadKey(name string) cluster.Key {
	return cluster.Key{Kind: cluster.KeyWorkload, Name: name}
}

func aWorkload(name string) cluster.Workload {
	return cluster.Workload{Name: name, ID: "id-" + name, Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Wanted: true,
		Chain: []cluster.NodeID{"hv1", cluster.NoCopy}, State: cluster.WorkloadNew}
}

// A workload's record is seen as it comes, changes and goes, also in a tree whose
// directory of workloads a hand has taken away; rubbish in one hides no other, and
// nobody writes what could not be read.
func workloadsComeAndGo(t *testing.T, e *env) {
	c := e.bare(t)
	h := e.live(t, "a", func(c *zkhandler.Config) { c.Resync = time.Hour })
	must(t, c.Delete(e.root+"/agent/workloads", -1))
	until := func(what string, ok func(*cluster.Snapshot) bool) *cluster.Snapshot {
		t.Helper()
		var last *cluster.Snapshot
		eventually(t, 30*time.Second, what, func() bool {
			if last = latest(h); last == nil {
				return false
			}
			return ok(last)
		})
		return last
	}
	commit := func(want cluster.Outcome, ops ...cluster.Op) {
		t.Helper()
		wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "workload", Ops: ops}), want)
	}
	must(t, h.EnsureNode(soon(t), "hv1", cluster.Coordinator)) // the directory comes back with it
	commit(cluster.OutcomeOK, cluster.Create(workloadKey("cache"), aWorkload("cache")), cluster.Create(workloadKey("web"), aWorkload("web")),
		cluster.Create(cluster.Key{Kind: cluster.KeyReprovision}, cluster.DefaultReprovisionSettings()),
		cluster.Create(cluster.Key{Kind: cluster.KeyRebalance}, cluster.Rebalance{ID: "b", State: cluster.RebalanceOrdered}))
	seen := until("both are seen", func(s *cluster.Snapshot) bool {
		return s.Workloads["cache"].Present && s.Workloads["web"].Present && s.Reprovision.Present && s.Rebalance.Present
	})
	if w := seen.Workloads["cache"]; w.Err != nil || w.Value.Version != 1 || w.Value.ID != "id-cache" || len(w.Value.Chain) != 2 || w.Value.Chain[1] != cluster.NoCopy {
		t.Errorf("%+v", w)
	}
	if r := seen.Reprovision; !r.Value.Armed() || r.Value.Version != 1 || seen.Rebalance.Value.ID != "b" {
		t.Errorf("%+v, %+v", r, seen.Rebalance)
	}
	commit(cluster.OutcomeConflict, cluster.Create(workloadKey("cache"), aWorkload("cache")))
	changed := aWorkload("cache")
	changed.State = cluster.WorkloadRunning
	commit(cluster.OutcomeOK, cluster.Set(workloadKey("cache"), 0, changed))
	commit(cluster.OutcomeConflict, cluster.Set(workloadKey("cache"), 0, changed)) // somebody was quicker
	after := until("the change is seen", func(s *cluster.Snapshot) bool { return s.Workloads["cache"].Value.State == cluster.WorkloadRunning })
	if seen.Workloads["cache"].Value.State != cluster.WorkloadNew || after.Workloads["web"].SeenAt != seen.Workloads["web"].SeenAt {
		t.Error("a snapshot that was handed out has changed, or what has not changed was seen anew")
	}

	twice := aWorkload("cache")
	twice.Chain = []cluster.NodeID{"hv1", "hv1"}
	commit(cluster.OutcomeRefused, cluster.Set(workloadKey("cache"), 1, twice))
	commit(cluster.OutcomeRefused, cluster.Set(cluster.Key{Kind: cluster.KeyReprovision}, 0, cluster.ReprovisionSettings{MaxNodes: 101}))
	for _, p := range []string{"web", "cache"} {
		_, err := c.Set(e.root+"/agent/workloads/"+p, []byte(`{"v":1,"name":"web","id":"x","kind":"movable","driver":"`+p+`"}`), -1)
		must(t, err)
	}
	_, err := c.Set(e.root+"/agent/reprovision", []byte(`{"v":1,"max_nodes":0}`), -1)
	must(t, err)
	bad := until("rubbish is seen", func(s *cluster.Snapshot) bool {
		return s.Workloads["web"].Err != nil && s.Workloads["cache"].Err != nil && s.Reprovision.Err != nil
	})
	if !strings.Contains(bad.Workloads["web"].Err.Error(), "driver") || bad.Workloads["web"].Value.Name != "" || bad.Workloads["cache"].Version != 2 {
		t.Errorf("%+v, %+v", bad.Workloads["web"], bad.Workloads["cache"])
	}
	_, err = c.Set(e.root+"/agent/workloads/cache", []byte(`{"v":1,"name":"web","id":"x","kind":"movable","driver":"exec"}`), -1)
	must(t, err)
	until("a record of another name", func(s *cluster.Snapshot) bool {
		err := s.Workloads["cache"].Err
		return err != nil && strings.Contains(err.Error(), `is about "web"`)
	})
	commit(cluster.OutcomeOK, cluster.Delete(workloadKey("web"), 1))
	until("it is gone", func(s *cluster.Snapshot) bool { _, there := s.Workloads["web"]; return !there && len(s.Workloads) == 1 })
	again := aWorkload("web")
	again.ID = "another"
	commit(cluster.OutcomeOK, cluster.Create(workloadKey("web"), again))
	until("it is back", func(s *cluster.Snapshot) bool { return s.Workloads["web"].Value.ID == "another" })
}

// A thousand workloads cost a keepalive nothing, and one that changes is read
// alone.
func TestManyWorkloadsCostTheOthersNothing(t *testing.T) {
	inFake(t, zktest.Options{MaxSessionTimeout: time.Minute}, func(t *testing.T, e *env) {
		const workloads = 1000
		h, reads := e.crowded(t, 3, time.Minute)
		for i := range workloads {
			e.fake.Set(workloadPath(i), workloadText(i, "new"))
		}
		eventually(t, 30*time.Second, "all workloads are seen", func() bool { return len(latest(h).Workloads) == workloads })
		synctest.Wait()
		before, was := reads.Load(), latest(h)
		for round := range 20 {
			e.fake.Set(nodePath(round%3)+"/keepalive", fmt.Appendf(nil, "%d", round+2))
			time.Sleep(10 * time.Millisecond)
		}
		eventually(t, 10*time.Second, "the last keepalive", func() bool { return latest(h).Nodes["n0001"].Keepalive.Value == 21 })
		if n := reads.Load() - before; n != 20 {
			t.Errorf("20 keepalives cost %d reads", n)
		}
		was.Workloads["planted"] = cluster.Versioned[cluster.Workload]{}
		if _, shared := latest(h).Workloads["planted"]; !shared {
			t.Error("the workloads were copied although none has changed")
		}
		delete(was.Workloads, "planted")
		before = reads.Load()
		e.fake.Set(workloadPath(7), workloadText(7, "running"))
		eventually(t, 10*time.Second, "the change", func() bool { return latest(h).Workloads["w0007"].Value.State == cluster.WorkloadRunning })
		if n := reads.Load() - before; n != 1 {
			t.Errorf("one change cost %d reads", n)
		}
		if was.Workloads["w0007"].Value.State != cluster.WorkloadNew {
			t.Error("a snapshot that was handed out has changed")
		}
		before = reads.Load()
		time.Sleep(3 * time.Minute)
		if n := reads.Load() - before; n < workloads || n > 3*430 {
			t.Errorf("three re-reads asked for %d records, want each of %d, and 400 at a time", n, workloads)
		}
	})
}

func workloadPath(i int) string { return fmt.Sprintf("/case/agent/workloads/w%04d", i) }

func workloadText(i int, state string) []byte {
	return fmt.Appendf(nil, `{"v":1,"name":"w%04d","id":"x","kind":"movable","driver":"exec","state":%q}`, i, state)
}
