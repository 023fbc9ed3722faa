package agent_test

import (
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A move has changed the chain, and the lease of the new node is lost before anything
// runs there: it is gone on with once that is there again, and nothing says meanwhile
// that the workload runs, or that it is where it was.
func TestAMoveThatLosesItsNewNodesLeaseHalfwayGoesOn(t *testing.T) {
	for name, begin := range map[string]func(b *bubble){
		"an order": func(b *bubble) { b.order("vm1", "o1", cluster.WorkloadMove, "hv3") },
		"a drain":  func(b *bubble) { b.domain("hv2", cluster.DomainFlush) },
	} {
		t.Run(name, func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.movable("vm1", on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
				b.onlyOn(w, 30*time.Second, "vm1", "hv2")
				w.set(func() { w.hangs = "start hv3" })
				begin(b)
				b.eventually(20*time.Second, "its chain is hv3", func() bool { return b.workload("vm1").Head() == "hv3" })
				b.apart()
				w.set(func() { w.hangs = "" })
				b.always(30*time.Second, "nothing is said that is not so", func() bool {
					r := b.workload("vm1")
					return r.Answer == nil && r.Next != nil && r.State == cluster.WorkloadMoving
				})
				b.talk.net.Heal()
				b.onlyOn(w, 30*time.Second, "vm1", "hv3")
				if name == "an order" {
					if a := b.answer(10*time.Second, "vm1", "o1"); !a.Done {
						t.Errorf("the answer is %+v", a)
					}
				}
			})
		})
	}
}

// A node's lease is missing before a move has begun: nothing is written of it but why it
// was not made, and a primary that is lost then leaves nothing to be ended. As soon as
// the lease is there it is made.
func TestAMoveThatLacksALeaseIsNotBegun(t *testing.T) {
	for name, edit := range map[string]func(*cluster.Workload){"plain": func(*cluster.Workload) {}, "live": live} {
		t.Run(name, func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.movable("vm1", on("hv2"), edit, func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
				b.onlyOn(w, 30*time.Second, "vm1", "hv2")
				b.apart()
				writes := len(b.store.History())
				b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
				if a := b.answer(time.Minute, "vm1", "o1"); a.Done || !strings.Contains(a.Text, "node leases") || !strings.Contains(a.Text, "left where it was") {
					t.Errorf("the answer is %+v", a)
				}
				for _, h := range b.store.History()[writes:] {
					if h.Path == workloadPath("vm1") && strings.Contains(string(h.Data), `"next":`) {
						t.Errorf("an intent was written: %s", h.Data)
					}
				}
				if r := b.workload("vm1"); r.Head() != "hv2" || r.State != cluster.WorkloadRunning {
					t.Errorf("its record is %+v", r)
				}
				b.talk.net.Heal()
				b.eventually(time.Minute, "the lease is there", func() bool { _, held, _ := b.nodes["hv1"].agent.QuorumHeld("hv3"); return held })
				b.order("vm1", "o2", cluster.WorkloadMove, "hv3")
				if a := b.answer(time.Minute, "vm1", "o2"); !a.Done {
					t.Errorf("the answer is %+v", a)
				}
				b.onlyOn(w, 10*time.Second, "vm1", "hv3")
			})
		})
	}
}
