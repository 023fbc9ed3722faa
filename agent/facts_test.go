package agent

import (
	"context"
	"strings"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// factsTold is a keepalive whose collector tells these values, and what another
// writes of the node.
func factsTold(t testing.TB, own, others map[string]string, schema int) *Keepalive {
	t.Helper()
	collection := func(name string, values map[string]string) *Collection {
		c, err := NewCollection(bubbleClock{}, zap.NewNop(), time.Second, &fakeCollector{name: name, do: func(context.Context) (map[string]string, error) { return values, nil }})
		if err != nil {
			t.Fatal(err)
		}
		c.Tick(t.Context())
		c.wait.Wait()
		return c
	}
	k, err := NewKeepalive(KeepaliveConfig{
		Node: "hv1", Interval: time.Second, Clock: bubbleClock{}, Incarnation: "x.1",
		Collection: collection("own", own), Others: collection("others", others),
		Schema:  func() (int, int) { return 2, schema },
		Publish: func(context.Context, []cluster.Op) cluster.TxnResult { return cluster.TxnResult{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The record has all values, the node's own above what others wrote, none that
// nodes are coordinated by; it is encoded where something has changed only, and a
// node that says too much has none.
func TestFactsHoldWhatANodePublishes(t *testing.T) {
	own := map[string]string{"memtotal": "1", "monitoring_data/disk/message": "full", "daemonstate": "dead"}
	others := map[string]string{"memtotal": "9", "vcpualloc": "4", "keepalive": "5", "": "coordinator", "routerstate": "primary"}
	k := factsTold(t, own, others, 2)
	first := k.values()[factsLeaf]
	f, ok, err := cluster.DecodeFacts(first)
	if err != nil || !ok || f.Incarnation != "x.1" || f.Version != 1 {
		t.Fatalf("%q: %v", first, err)
	}
	want := map[string]string{"memtotal": "1", "monitoring_data/disk/message": "full", "vcpualloc": "4", "latestschema": "2", "activeschema": "2"}
	if len(f.Leaves) != len(want) {
		t.Errorf("the facts are %v, want %v", f.Leaves, want)
	}
	for leaf, v := range want {
		if f.Leaves[leaf] != v {
			t.Errorf("%s is %q in the facts, want %q", leaf, f.Leaves[leaf], v)
		}
	}
	if again := k.values()[factsLeaf]; unsafe.StringData(again) != unsafe.StringData(first) {
		t.Error("what has not changed was encoded again")
	}
	if key := leafKey("hv1", factsLeaf); key.Kind != cluster.KeyFacts || collectable(factsLeaf) {
		t.Errorf("the record's key is %v", key)
	}
	if text, there := factsTold(t, map[string]string{"big": strings.Repeat("x", maxFacts)}, others, 2).values()[factsLeaf]; !there || text != "" {
		t.Errorf("a node that says too much has %d bytes of facts, want an emptied record", len(text))
	}
	if _, there := factsTold(t, own, nil, 2).values()[factsLeaf]; there {
		t.Error("facts before it is known what others have written")
	}
	values := factsTold(t, own, others, 1).values()
	if _, there := values[factsLeaf]; there || values["activeschema"] != "1" || values["latestschema"] != "2" {
		t.Errorf("under the first schema: %v", values)
	}
}

// BenchmarkFacts is what the record costs a keepalive in which nothing, and in
// which one figure, has changed.
func BenchmarkFacts(b *testing.B) {
	own := map[string]string{}
	for _, leaf := range strings.Fields("memtotal memused memfree cpuload staticdata pvcversion monitoring_health monitoring_plugins") {
		own[leaf] = "some value"
	}
	others := map[string]string{}
	for _, leaf := range strings.Fields("memalloc memprov vcpualloc domainscount networkscount runningdomains a b c d e f g h") {
		others[leaf] = "0"
	}
	k := factsTold(b, own, others, 2)
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			k.values()
		}
	})
	b.Run("changed", func(b *testing.B) {
		for b.Loop() {
			k.facts.of = nil
			k.values()
		}
	})
	plain := factsTold(b, own, others, 1)
	b.Run("schema 1", func(b *testing.B) {
		for b.Loop() {
			plain.values()
		}
	})
}
