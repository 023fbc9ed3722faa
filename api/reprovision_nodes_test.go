package api

import (
	"slices"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// Which nodes were reprovisioned, and what remains, stands in the settings' answers and
// in the explanations of the node and of its workload.
func TestReprovisionedNodesAreNamed(t *testing.T) {
	const remains = "hv2 is empty: rebalance when healthy"
	w := newWorld(t)
	withWorkloads(w)
	w.edit(func(s *cluster.Snapshot) {
		s.Reprovision = present(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 2, Count: 1, Pass: "p7", Nodes: []cluster.NodeID{"hv2"}})
	})
	check := func(what string, a AutoReprovision, wanted int) {
		t.Helper()
		if !slices.Equal(a.Nodes, []cluster.NodeID{"hv2"}) || len(a.Remains) != wanted || !strings.Contains(a.Remains[0], remains) {
			t.Errorf("%s: %+v", what, a)
		}
	}
	_, body := w.get(reprovisionPath)
	check("shown", decode[AutoReprovision](t, body), 1)
	check("in the cluster's view", decode[ClusterView](t, second(w.get("/api/v1/cluster"))).Reprovision, 1)
	_, body = w.post(reprovisionPath, "enabled=true&maxNodes=1")
	check("changed to a maximum that is reached", decode[ReprovisionAnswer](t, body).Settings, 2)
	_, body = w.post(reprovisionPath+"/resetCount", "")
	check("while a reset is ordered", decode[ReprovisionAnswer](t, body).Settings, 2)
	for _, what := range []string{"cache", "hv2"} {
		e := decode[Explanation](t, second(w.get("/api/v1/explain/"+what)))
		if !slices.ContainsFunc(e.Missing, func(m string) bool { return strings.Contains(m, remains) }) {
			t.Errorf("%s: missing is %q", what, e.Missing)
		}
	}
	for _, what := range []string{"web", "hv1"} { // what cannot be empty, and a node that is not
		if _, body := w.get("/api/v1/explain/" + what); strings.Contains(body, "is empty") {
			t.Errorf("%s: %s", what, body)
		}
	}
	_, body = w.post(reprovisionPath, "enabled=false")
	if a := decode[ReprovisionAnswer](t, body).Settings; a.Nodes != nil || a.Remains != nil {
		t.Errorf("disabled: %+v", a)
	}
}

// What makes no sense of the settings changes nothing, whatever its type, and where:
// form, query or JSON.
func TestBadReprovisionSettings(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		method, kind, body string
		status             int
		want               string
	}{
		{"POST", "application/x-www-form-urlencoded", "enabled=true&maxNodes=1000000000", 400, "in a range from 1 to 100"},
		{"POST", "application/x-www-form-urlencoded", "enabled=true&maxNodes=99999999999999999999", 400, "must be a positive integer"},
		{"POST", "application/x-www-form-urlencoded", "enabled=true&maxNodes=-1", 400, "must be a positive integer"},
		{"POST", "application/x-www-form-urlencoded", "enabled=true&maxNodes=1.5", 400, "must be a positive integer"},
		{"POST", "application/x-www-form-urlencoded", "enabled=true&maxNodes=", 400, "must be a positive integer"},
		{"POST", "application/x-www-form-urlencoded", "enabled=true&maxNodes=1&max_nodes=2", 400, "There is no such argument here"},
		{"POST", "application/x-www-form-urlencoded", "enabled=2&maxNodes=1", 400, "must be true or false"},
		{"POST", "application/x-www-form-urlencoded", "enabled=true&maxNodes=1&just_validate=maybe", 400, "just_validate"},
		{"POST", "application/x-www-form-urlencoded", "count=0&enabled=true&maxNodes=1", 400, "There is no such argument here"},
		{"POST", "application/json", `{"enabled":true,"maxNodes":[1]}`, 400, ""},
		{"POST", "application/json", `{"enabled":true,"maxNodes":{"a":1}}`, 400, ""},
		{"POST", "application/json", `[]`, 400, ""},
		{"POST", "application/json", `{"enabled":true,"maxNodes":`, 400, ""},
		{"PUT", "application/x-www-form-urlencoded", "enabled=true&maxNodes=1", 405, ""},
		{"DELETE", "", "", 405, ""},
	} {
		status, body := w.do(c.method, reprovisionPath, c.kind, c.body)
		if status != c.status && (c.kind != "application/json" || status != 415) || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.body, status, body)
		}
	}
	for _, c := range []string{"?count=1", "/resetCount?force=1", "/resetCount?wait=never"} {
		if status, body := w.do("POST", reprovisionPath+c, "", ""); status != 400 {
			t.Errorf("%s: %d %s", c, status, body)
		}
	}
	if w.store.commits != 0 || w.store.snap.Reprovision.Present {
		t.Errorf("%d writes, %+v", w.store.commits, w.store.snap.Reprovision)
	}
}
