package api

import (
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// Of a node that is being emptied everything that is still on it is named with why,
// and how to call the flush off.
func TestAFlushThatWaitsIsExplained(t *testing.T) {
	w := newWorld(t)
	w.leased()
	w.has(aCache)
	stuck := aWeb.Clone()
	stuck.Reason = "drain waits: it cannot be moved: no node can take it"
	w.has(stuck)
	if e := w.explain("hv2"); strings.Contains(e.Why, "emptied") {
		t.Errorf("a ready node: %s", e.Why)
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Domain.Value = cluster.DomainFlush })
	e := w.explain("hv2")
	all := strings.Join(append(append([]string{e.Why}, e.Evidence...), e.Missing...), "\n")
	for _, want := range []string{"2 workloads are on it still", "workload web is on it still: drain waits: it cannot be moved: no node can take it",
		"workload cache is on it still: its move has not begun", "pvc node ready hv2"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in\n%s", want, all)
		}
	}
}

// A workload that runs with fewer copies than its chain has places costs health, with
// the reason, until it has them again.
func TestAWorkloadThatLacksACopyCostsHealth(t *testing.T) {
	w := newWorld(t)
	w.leased()
	healthy := func() (int, string) {
		_, body := w.get("/api/v1/status")
		s := decode[Status](t, body)
		return s.ClusterHealth.Health, body
	}
	w.has(aCache)
	before, _ := healthy()
	lacking := aCache.Clone()
	lacking.State, lacking.Reason = cluster.WorkloadRunning, cluster.LacksCopy+": node hv2: port 6379 is taken"
	w.has(lacking)
	if now, body := healthy(); now != before-deltaWorkload || !strings.Contains(body, "WORKLOAD_cache") || !strings.Contains(body, "port 6379 is taken") {
		t.Errorf("health %d, was %d: %s", now, before, body)
	}
	w.has(aCache)
	if now, body := healthy(); now != before || strings.Contains(body, "WORKLOAD_cache") {
		t.Errorf("health %d, was %d: %s", now, before, body)
	}
}
