package agent_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// The janitor's decisions and its shell together, where it hurts: at each write of a
// repair, between the write and what is applied, and with two who think that they lead.

// theRepair is how many Multis a repair is: chain and count, what is to be applied,
// and what was seen then.
const theRepair = 3

// nth matches the nth Multi, from 0, that touches the cache's record or the count.
func nth(n int, done func()) func(zktest.OpInfo) bool {
	var seen atomic.Int32
	return func(o zktest.OpInfo) bool {
		if o.Op != "multi" || !o.Touches(workloadPath("cache")) && !o.Touches(reprovisionPath) {
			return false
		}
		if int(seen.Add(1)) != n+1 {
			return false
		}
		if done != nil {
			done()
		}
		return true
	}
}

// repaired waits until hv3 serves in the place of hv2, counted once.
func (b *bubble) repaired(w *copyWorld) {
	b.t.Helper()
	b.eventually(60*time.Second, "hv3 serves", func() bool { return w.state("hv3", "cache") == cluster.CopyActive })
	b.runs(w, "hv3", "")
	if s := b.reprovision(); s.Count != 1 {
		b.t.Errorf("the count is %+v", s)
	}
}

// Whatever becomes of any write of a repair, and of its reply, the replica is
// promoted, once, and counted once.
func TestAnyWriteOfARepairMayFail(t *testing.T) {
	for name, lose := range map[string]func(*bubble, func(zktest.OpInfo) bool){
		"reply lost":   func(b *bubble, m func(zktest.OpInfo) bool) { b.store.DropReply("hv1", m) },
		"request lost": func(b *bubble, m func(zktest.OpInfo) bool) { b.store.DropRequest("hv1", m) },
		"late":         func(b *bubble, m func(zktest.OpInfo) bool) { b.store.LateCommit("hv1", m, 700*time.Millisecond) },
	} {
		for n := range theRepair {
			t.Run(fmt.Sprintf("%s of write %d", name, n), func(t *testing.T) {
				inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
					b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 3})
					b.cache(w)
					var reached atomic.Bool
					lose(b, nth(n, func() { reached.Store(true) }))
					w.restartEmpty("hv2", "cache")
					b.repaired(w)
					b.eventually(10*time.Second, "that write was reached", reached.Load)
				})
			})
		}
	}
}

// The primary dies at any write of a repair, before it or between it and what was to
// be applied: the next one ends the repair. Its maximum is one, so that a count that
// was written before its chains would have emptied the rest.
func TestAPrimaryDiesAtAnyWriteOfARepair(t *testing.T) {
	for n := range theRepair {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("write %d, before %t", n, before), func(t *testing.T) {
				inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
					b.cache(w)
					life := b.nodes["hv1"].life
					plant := b.store.DropReply
					if before {
						plant = b.store.DropRequest
					}
					plant("hv1", nth(n, life.sever))
					w.restartEmpty("hv2", "cache")
					b.eventually(10*time.Second, "the write was reached", life.cut.Load)
					b.kill("hv1")
					b.eventually(40*time.Second, "another primary", func() bool { p := b.primary(); return p != "" && p != "hv1" })
					b.repaired(w)
				})
			})
		}
	}
}

// The primary loses the store, and nothing else, right after a write of its repair,
// while its orders are under way: another one takes the role, and both talk to the
// same nodes. Nobody serves beside another, or with less than was acknowledged.
func TestTwoWhoThinkThatTheyLead(t *testing.T) {
	for n := range theRepair {
		for _, slow := range []time.Duration{0, 300 * time.Millisecond, 4 * time.Second} {
			t.Run(fmt.Sprintf("after write %d, orders take %s", n, slow), func(t *testing.T) {
				inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
					b.cache(w)
					w.set(func() { w.slow = slow })
					cut := make(chan struct{})
					match := nth(n, func() {
						go func() {
							time.Sleep(5 * time.Millisecond)
							b.store.Partition("hv1")
							close(cut)
						}()
					})
					b.store.DropRequest("hv1", func(o zktest.OpInfo) bool { match(o); return false }).Times(-1)
					w.restartEmpty("hv2", "cache")
					select {
					case <-cut:
					case <-time.After(60 * time.Second):
						t.Fatal("the write was not reached")
					}
					b.eventually(60*time.Second, "another primary", func() bool { p := b.primary(); return p != "" && p != "hv1" })
					w.set(func() { w.slow = 0 })
					b.repaired(w)
					b.heal("hv1")
					time.Sleep(10 * time.Second)
					b.repaired(w)
				})
			})
		}
	}
}

// The replica that is to be promoted comes back empty itself between the pass's look
// and its order: it is not promoted, the one that still has the keys is.
func TestAReplicaThatIsEmptiedBeforeItsPromotion(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 3})
		nodes := []cluster.NodeID{"hv2", "hv3", "hv1"}
		b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: nodes, Nodes: nodes, Replicas: 2})
		b.runs(w, "hv2", "hv3")
		b.eventually(30*time.Second, "hv1 follows, too", func() bool { return w.state("hv1", "cache") == cluster.CopyReplica })
		w.write("cache", 1000)
		begun := w.count(&w.begun)
		w.set(func() { w.slow = 500 * time.Millisecond })
		w.restartEmpty("hv2", "cache")
		b.eventually(10*time.Second, "the promotion has begun", func() bool { return w.count(&w.begun) > begun })
		w.restartEmpty("hv3", "cache")
		w.set(func() { w.slow = 0 })
		b.eventually(30*time.Second, "hv1 serves", func() bool { return w.state("hv1", "cache") == cluster.CopyActive })
		b.runs(w, "hv1", "")
		if s := b.reprovision(); s.Count != 2 {
			t.Errorf("the count is %+v", s)
		}
	})
}
