package zkhandler_test

import (
	"fmt"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
)

// What a node says of itself is read from its one record, where that counts, and
// from the leaves where it does not: of another start, unreadable, emptied, no
// longer written, or under an earlier schema.
func factsAreRead(t *testing.T, e *env) {
	h, c := e.live(t, "a", nil), e.bare(t)
	must(t, h.EnsureNode(soon(t), "hv1", cluster.Hypervisor))
	wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "node", Ops: []cluster.Op{
		cluster.Create(cluster.Key{Kind: cluster.KeyNodeRecord, Node: "hv1"}, cluster.NodeRecord{ID: "x", Incarnation: "x.2"}),
		cluster.Set(cluster.Key{Kind: cluster.KeyNodeField, Node: "hv1", Name: "memtotal"}, cluster.AnyVersion, "1")}}), cluster.OutcomeOK)
	seen := func(what string, ok func(map[string]string) bool) {
		t.Helper()
		var leaves map[string]string
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			var err error
			leaves, err = h.ReadNode(soon(t), "hv1")
			must(t, err)
			if ok(leaves) {
				return
			}
		}
		t.Fatalf("%s: %v", what, leaves)
	}
	memory := func(want string) func(map[string]string) bool {
		return func(l map[string]string) bool {
			return l["memtotal"] == want && l[""] == "hypervisor" && l["daemonstate"] == "init" && l["domainstate"] == "flushed" && l["keepalive"] != ""
		}
	}
	seen("no facts yet", memory("1"))
	key := cluster.Key{Kind: cluster.KeyFacts, Node: "hv1"}
	tell := func(text string) {
		t.Helper()
		wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "facts", Ops: []cluster.Op{cluster.Set(key, cluster.AnyVersion, text)}}), cluster.OutcomeOK)
	}
	facts := func(start cluster.Incarnation) string {
		text, err := cluster.Facts{Incarnation: start, Leaves: map[string]string{"memtotal": "2", "daemonstate": "dead"}}.Encode()
		must(t, err)
		return text
	}
	tell(facts("x.1"))
	seen("another start's", memory("1"))
	tell(facts("x.2"))
	seen("its own", memory("2"))
	for _, no := range []string{"", "{", `{"v":1}`} {
		tell(no)
		seen(fmt.Sprintf("%q", no), memory("1"))
	}
	tell(facts("x.2"))
	seen("its own again", memory("2"))
	daemon := cluster.Key{Kind: cluster.KeyDaemonState, Node: "hv1"}
	wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "fenced", Ops: []cluster.Op{cluster.Set(daemon, cluster.AnyVersion, cluster.DaemonFenced)}}), cluster.OutcomeOK)
	seen("it was fenced, and its figures were zeroed", func(l map[string]string) bool {
		return l["memtotal"] == "1" && l["daemonstate"] == "fenced"
	})
	wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "again", Ops: []cluster.Op{cluster.Set(daemon, cluster.AnyVersion, cluster.DaemonInit)}}), cluster.OutcomeOK)
	_, err := c.Set(e.root+"/agent/schema", []byte("1"), -1)
	must(t, err)
	seen("the first schema has none", memory("1"))
	_, err = c.Set(e.root+"/agent/schema", []byte("2"), -1)
	must(t, err)
	seen("the second has", memory("2"))
	must(t, c.Delete(e.root+"/agent/facts/hv1", -1))
	seen("it was deleted", memory("1"))
	must(t, h.EnsureNode(soon(t), "hv1", cluster.Hypervisor))
	if _, _, err := c.Get(e.root + "/agent/facts/hv1"); err != nil {
		t.Errorf("the record was not made again: %v", err)
	}
	leaves, err := h.NodeRecords(soon(t), "hv1")
	must(t, err)
	found := false
	for _, l := range leaves {
		found = found || l.Key == key
	}
	if !found {
		t.Error("what is kept of a node does not name its facts: a removal would leave them")
	}
}

// A tree of the first schema has nothing of the second, whichever program makes a
// node's records in it, until it is migrated; each batch can be made again.
func migrationGoesOn(t *testing.T, e *env) {
	old := e.live(t, "old", func(c *zkhandler.Config) { c.NewestSchema = cluster.FirstSchema })
	h := e.joined(t, "new", nil)
	for i := range 60 {
		must(t, old.EnsureNode(soon(t), cluster.NodeID(fmt.Sprintf("hv%02d", i)), cluster.Hypervisor))
	}
	must(t, h.EnsureNode(soon(t), "hv00", cluster.Hypervisor))
	c := e.bare(t)
	if there, _, err := c.Exists(e.root + "/agent/facts"); there || err != nil {
		t.Fatalf("facts in a tree of the first schema: %v %v", there, err)
	}
	refused := cluster.SchemaPlan{From: 1, To: 2, Waits: []string{"hv00"}}
	snap, err := h.Refresh(soon(t))
	must(t, err)
	if _, err := h.MigrationBatch(soon(t), snap, refused); err == nil {
		t.Error("a batch was made against who waits")
	}
	batches := 0
	for last := false; !last; batches++ {
		snap := everyNode(t, h, 60)
		plan := cluster.SchemaPlan{From: 1, To: 2}
		batch, err := h.MigrationBatch(soon(t), snap, plan)
		must(t, err)
		again, err := h.MigrationBatch(soon(t), snap, plan)
		must(t, err)
		if len(again.Ops) != len(batch.Ops) {
			t.Errorf("batch %d has %d operations, and then %d", batches, len(batch.Ops), len(again.Ops))
		}
		wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "migrate", Ops: batch.Ops}), cluster.OutcomeOK)
		wantOutcome(t, h.Commit(soon(t), cluster.Txn{Purpose: "migrate", Ops: again.Ops}), cluster.OutcomeConflict)
		last = batch.Last
		text, err := h.ReadText(soon(t), cluster.Key{Kind: cluster.KeySchema})
		must(t, err)
		if (text.Value == "2") != last {
			t.Errorf("after batch %d, last %v, the schema is %s", batches, last, text.Value)
		}
	}
	if batches != 5 { // the folder, 25 + 25 + 10 nodes, the schema
		t.Errorf("%d batches, want 5", batches)
	}
	_, _, err = old.CheckTree(soon(t))
	wantErr(t, err, cluster.ErrSchemaNewer)
}

// everyNode is a view that has that many nodes.
func everyNode(t *testing.T, h *zkhandler.Handler, many int) *cluster.Snapshot {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		snap, err := h.Refresh(soon(t))
		must(t, err)
		read := 0
		for _, n := range snap.Nodes {
			if n.Mode.Present && !n.Record.SeenAt.IsZero() {
				read++
			}
		}
		if read == many {
			return snap
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d nodes are seen", read, many)
		}
	}
}
