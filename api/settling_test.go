package api

import (
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// A node whose copies are ending says so wherever a node is shown, and is not made
// primary; of one that has stopped since nothing of that is told.
func TestANodeWhoseCopiesAreEndingSaysSo(t *testing.T) {
	w := newWorld(t)
	w.node("hv2", func(n *cluster.NodeView) { n.Record.Present, n.Record.Value.Settling = true, true })
	_, body := w.get("/api/v1/node/hv2")
	if n := decode[Node](t, body); !n.Settling || n.DaemonState != "run" {
		t.Errorf("the node is %+v", n)
	}
	for _, n := range decode[[]Node](t, second(w.get("/api/v1/node"))) {
		if n.Settling != (n.Name == "hv2") {
			t.Errorf("in the list: %+v", n)
		}
	}
	for _, n := range decode[ClusterView](t, second(w.get("/api/v1/cluster"))).Nodes {
		if n.Settling != (n.Name == "hv2") {
			t.Errorf("of the cluster: %+v", n)
		}
	}
	if e := w.explain("hv2"); !strings.HasPrefix(e.Why, "It is being stopped") || !strings.Contains(e.Why, "Nothing starts elsewhere") {
		t.Errorf("it is explained by %q", e.Why)
	}
	if status, body := w.post("/api/v1/node/hv2/coordinator-state", "state=primary"); status != 400 || !strings.Contains(body, "copies of workloads are ending") {
		t.Errorf("it is made primary: %d %s", status, body)
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
	if n := decode[Node](t, second(w.get("/api/v1/node/hv2"))); n.Settling {
		t.Error("it has stopped, and still says so")
	}
}
