package activity

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

func TestANodeThatThereIsNotIsToldApartFromOneThatIsAway(t *testing.T) {
	other := []rival{{id: "drain-1", name: "drain", domain: "cluster", root: "drain-1"}}
	for name, c := range map[string]struct {
		quorum cluster.Quorum
		known  []cluster.NodeID
		unsafe bool
		rivals []rival
		want   cluster.RefusalCode
		says   string
	}{
		"away":                         {quorum: cluster.All("a", "e"), known: five, want: cluster.RefuseNoQuorum, says: "leases of e"},
		"no such node":                 {quorum: cluster.All("a", "zz"), known: five, want: cluster.RefuseUnknownNode, says: `names zz, and there is no such node; the nodes are a b c d e`},
		"several":                      {quorum: cluster.All("zz", "a", "yy"), known: five, want: cluster.RefuseUnknownNode, says: "names yy zz,"},
		"a majority holds without it":  {quorum: cluster.Majority("a", "b", "zz"), known: five, want: cluster.RefuseUnknownNode},
		"deep in a list":               {quorum: cluster.Each(cluster.Majority(), cluster.Each(cluster.All("zz"))), known: five, want: cluster.RefuseUnknownNode},
		"before the domain is free":    {quorum: cluster.All("zz"), known: five, rivals: other, want: cluster.RefuseUnknownNode},
		"in the set, not registered":   {quorum: cluster.All("e"), known: five[:4], want: cluster.RefuseNoQuorum},
		"held, and gone a moment ago":  {quorum: cluster.All("a", "b"), known: []cluster.NodeID{"a"}},
		"the cluster's set":            {quorum: cluster.Majority(), known: five},
		"unsafe looks at no quorum":    {quorum: cluster.All("zz"), known: five, unsafe: true},
		"nobody is known yet":          {quorum: cluster.All("zz"), want: cluster.RefuseNoQuorum, says: "leases of zz"},
		"nothing but this node's own":  {quorum: cluster.All("a"), known: []cluster.NodeID{}},
		"a node outside the set is ok": {quorum: cluster.All("a", "hyper"), known: append([]cluster.NodeID{"hyper"}, five...), want: cluster.RefuseNoQuorum},
	} {
		h := Holdings{Leader: true, Lease: leaseA, Self: "a", Held: five[:4], Set: five, Known: c.known}
		r := check(asked{quorum: c.quorum, domain: "cluster", root: "me", unsafe: c.unsafe}, situation{holdings: h, rivals: c.rivals})
		switch {
		case r == nil && c.want != "", r != nil && r.Code != c.want, r != nil && !strings.Contains(r.Detail, c.says):
			t.Errorf("%s: %+v, want %q with %q", name, r, c.want, c.says)
		}
	}
}

// Before the first records are read nobody is called unknown; once they are, no
// time is lost with one who is.
func TestAnUnknownNodeIsRefusedAtOnceAndCounted(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		early := b.runs(Spec{Name: "drain", Quorum: cluster.All("a", "zz"), Timeout: time.Minute})
		time.Sleep(3 * time.Second)
		if early.isOver() {
			t.Fatalf("refused before anybody is known: %v", early.err)
		}
		knows := func(held ...cluster.NodeID) {
			b.Update(Holdings{Leader: true, Lease: leaseA, Held: held, Set: five, Known: five})
		}
		now := time.Now()
		knows(five...)
		<-early.done
		late := b.runs(Spec{Name: "drain", Quorum: cluster.All("zz"), Timeout: time.Minute})
		<-late.done
		if code(early.err) != cluster.RefuseUnknownNode || code(late.err) != cluster.RefuseUnknownNode || time.Since(now) != 0 {
			t.Fatalf("%v; %v; after %v", early.err, late.err, time.Since(now))
		}
		if n := b.Counts().Refused[cluster.RefuseUnknownNode]; n != 2 {
			t.Errorf("counted %d", n)
		}
		knows(five[:4]...)
		away := b.runs(Spec{Name: "drain", Quorum: cluster.All("e"), Timeout: time.Minute})
		time.Sleep(30 * time.Second)
		knows(five...)
		if synctest.Wait(); away.a == nil {
			t.Fatalf("one that was away has come back: %v", away.err)
		}
		if err := away.a.Switch(t.Context(), cluster.All("e", "zz"), time.Minute); code(err) != cluster.RefuseUnknownNode || away.isOver() {
			t.Fatalf("switched to a quorum of nobody: %v", err)
		}
		knows("a", "b", "c") // e falls away
		if <-away.done; cluster.EndCode(away.err) != "quorum_lost" {
			t.Fatal(away.err)
		}
	})
	inBubble(t, func(t *testing.T, b *bench) { // who does not lead is told that, whoever there is
		r := b.runs(Spec{Name: "drain", Quorum: cluster.All("zz"), Timeout: -1}, func(context.Context, *Activity) error { return nil })
		if <-r.done; code(r.err) != cluster.RefuseNotLeader {
			t.Fatal(r.err)
		}
	})
}
