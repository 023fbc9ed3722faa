package api

import (
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// While versions differ an old node's explanation says what it holds back; the
// others', and everybody's once nothing is held back, do not.
func TestExplainTellsWhoHoldsTheSchemaBack(t *testing.T) {
	w := newWorld(t)
	knows := func(name cluster.NodeID, latest int) {
		w.node(name, func(n *cluster.NodeView) {
			n.Record.Present, n.Record.Value.LatestSchema = true, latest
		})
	}
	told := func(name string) bool {
		return strings.Contains(strings.Join(w.explain(name).Evidence, "\n"), "the tree keeps schema 1")
	}
	tree := func(schema int) {
		w.edit(func(s *cluster.Snapshot) { s.Schema = cluster.Versioned[int]{Present: true, Value: schema} })
	}
	tree(1)
	if told("hv1") || told("hv2") {
		t.Error("all nodes are of one version")
	}
	knows("hv1", 2)
	if told("hv1") || !told("hv2") {
		t.Errorf("hv1, updated: %v, hv2: %v", told("hv1"), told("hv2"))
	}
	knows("hv2", 2)
	if told("hv2") {
		t.Error("hv2 was updated")
	}
	tree(2)
	knows("hv3", 1)
	if told("hv1") || told("hv2") {
		t.Error("the tree was raised")
	}
}
