package agent_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// One agent hangs, wherever that is met: everything else that the primary does for
// workloads goes on within seconds, and the one that hangs keeps its deadline.
func TestOneHangingAgentHoldsUpNobodyElse(t *testing.T) {
	for name, hang := range map[string]func(b *bubble, w *copyWorld){
		"a recovery's start": func(b *bubble, w *copyWorld) {
			b.movable("victim", on("hv3"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
			b.onlyOn(w, 30*time.Second, "victim", "hv3")
			w.set(func() { w.hangs = "start hv2 victim" })
			b.nodeDies(w, "hv3", "migrate")
			b.eventually(10*time.Second, "victim is to start", func() bool { return b.workload("victim").State == cluster.WorkloadRecovering })
		},
		"an operator's stop": func(b *bubble, w *copyWorld) {
			b.movable("victim", on("hv2"))
			b.onlyOn(w, 30*time.Second, "victim", "hv2")
			w.set(func() { w.hangs = "stop hv2 victim" })
			b.order("victim", "o1", cluster.WorkloadStop, "")
			b.eventually(10*time.Second, "the stop has begun", func() bool { return !b.workload("victim").Wanted })
		},
		"a drain": func(b *bubble, w *copyWorld) {
			b.movable("victim", on("hv3"))
			b.onlyOn(w, 30*time.Second, "victim", "hv3")
			w.set(func() { w.hangs = "stop hv3 victim" })
			b.domain("hv3", cluster.DomainFlush)
			b.eventually(10*time.Second, "the move has begun", func() bool { return b.workload("victim").Next != nil })
		},
		"an upkeep's start": func(b *bubble, w *copyWorld) {
			w.set(func() { w.hangs = "start hv2 victim" })
			b.movable("victim", on("hv2"))
			b.eventually(10*time.Second, "victim is to start", func() bool { return b.workload("victim").State == cluster.WorkloadStarting })
		},
		"a movable one's monitor": func(b *bubble, w *copyWorld) {
			b.movable("victim", on("hv2"))
			b.onlyOn(w, 30*time.Second, "victim", "hv2")
			w.set(func() { w.mute = "hv2 victim" })
		},
		"a replicated one's monitor": func(b *bubble, w *copyWorld) {
			b.addWorkload(cluster.Workload{Name: "victim", Chain: []cluster.NodeID{"hv2", "hv1"}, Nodes: []cluster.NodeID{"hv1", "hv2"}, Replicas: 1})
			b.eventually(30*time.Second, "victim runs", func() bool { return b.workload("victim").State == cluster.WorkloadRunning })
			w.set(func() { w.mute = "hv2 victim" })
		},
		"a pass": func(b *bubble, w *copyWorld) {
			w.set(func() { w.hangs = "promote hv2 victim" })
			b.addWorkload(cluster.Workload{Name: "victim", Chain: []cluster.NodeID{"hv2", "hv1"}, Nodes: []cluster.NodeID{"hv1", "hv2"}, Replicas: 1})
			b.eventually(10*time.Second, "victim is being brought up", func() bool { return b.workload("victim").State == cluster.WorkloadStarting })
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.movable("vm1", on("hv2"))
				b.addWorkload(cluster.Workload{Name: "mem", Ephemeral: true, Chain: []cluster.NodeID{"hv1", "hv2"}, Nodes: []cluster.NodeID{"hv1", "hv2"}, Replicas: 1})
				b.onlyOn(w, 30*time.Second, "vm1", "hv2")
				b.eventually(30*time.Second, "mem has its replica", func() bool {
					return w.state("hv2", "mem") == cluster.CopyReplica && b.workload("mem").State == cluster.WorkloadRunning
				})
				hang(b, w)
				for i := range 3 {
					b.order("vm1", fmt.Sprintf("m%d", i), cluster.WorkloadMove, []cluster.NodeID{"hv1", "hv2"}[i%2])
					if a := b.answer(20*time.Second, "vm1", fmt.Sprintf("m%d", i)); !a.Done {
						t.Errorf("another one's move: %+v", a)
					}
				}
				w.restartEmpty("hv1", "mem")
				b.eventually(20*time.Second, "another one's empty head is repaired", func() bool { return w.state("hv2", "mem") == cluster.CopyActive })
				b.addWorkload(cluster.Workload{Name: "fresh", Chain: []cluster.NodeID{"hv1", "hv2"}, Nodes: []cluster.NodeID{"hv1", "hv2"}, Replicas: 1})
				b.eventually(20*time.Second, "another one is brought up", func() bool { return w.state("hv1", "fresh") == cluster.CopyActive })
				b.movable("vm2", on("hv1"))
				b.eventually(20*time.Second, "another one is started", func() bool { return slices.Equal(w.active("vm2"), []cluster.NodeID{"hv1"}) })
				if name != "a recovery's start" {
					b.movable("vm3", on("hv3"))
					if name == "a drain" {
						b.eventually(20*time.Second, "another one leaves the drained node", func() bool {
							at := b.workload("vm3").Head()
							return at != "hv3" && slices.Equal(w.active("vm3"), []cluster.NodeID{at})
						})
						return
					}
					b.onlyOn(w, 20*time.Second, "vm3", "hv3")
					b.nodeDies(w, "hv3", "migrate")
					b.eventually(15*time.Second, "another one is recovered", func() bool { return len(w.active("vm3")) == 1 })
				}
			})
		})
	}
}

// What hangs is ended by another order for the same workload, and by the role's end:
// the next primary goes on with it.
func TestWhatHangsIsEndedByAnotherOrderAndWithTheRole(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("victim", on("hv2"))
		b.onlyOn(w, 30*time.Second, "victim", "hv2")
		w.set(func() { w.hangs = "stop hv2" })
		b.order("victim", "o1", cluster.WorkloadMove, "hv3")
		b.eventually(10*time.Second, "the move has begun", func() bool { return b.workload("victim").Next != nil })
		time.Sleep(10 * time.Second)
		if r := b.workload("victim"); r.Request == nil || r.Next == nil {
			t.Errorf("it has ended already: %+v", r)
		}
		w.set(func() { w.hangs = "" })
		b.order("victim", "o2", cluster.WorkloadMove, "hv1")
		if a := b.answer(20*time.Second, "victim", "o2"); !a.Done {
			t.Errorf("the second order: %+v", a)
		}
		b.onlyOn(w, 5*time.Second, "victim", "hv1")
		w.set(func() { w.hangs = "stop hv1" })
		b.order("victim", "o3", cluster.WorkloadMove, "hv3")
		b.eventually(10*time.Second, "the third move has begun", func() bool { return b.workload("victim").Next != nil })
		time.Sleep(10 * time.Second)
		w.set(func() { w.hangs = "" })
		b.kill("hv1")
		b.nodeDies(w, "hv1", "migrate")
		b.eventually(2*time.Minute, "the next primary has it run", func() bool {
			return len(w.active("victim")) == 1 && b.workload("victim").State == cluster.WorkloadRunning
		})
	})
}
