package agent_test

import (
	"errors"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// Work hangs on the very node that is proven dead: the proof ends it, and what it
// allows comes at once, long before the lease of the node is over.
func TestWhatHangsOnADeadNodeKeepsNobodyWaiting(t *testing.T) {
	for name, hang := range map[string]func(b *bubble, w *copyWorld){
		"an operator's move": func(b *bubble, w *copyWorld) {
			w.set(func() { w.hangs = "stop hv3 victim" })
			b.order("victim", "o1", cluster.WorkloadMove, "hv2")
			b.eventually(10*time.Second, "the move has begun", func() bool { return b.workload("victim").Next != nil })
		},
		"a drain": func(b *bubble, w *copyWorld) {
			w.set(func() { w.hangs = "stop hv3 victim" })
			b.domain("hv3", cluster.DomainFlush)
			b.eventually(10*time.Second, "the move has begun", func() bool { return b.workload("victim").Next != nil })
		},
		"an upkeep's start": func(b *bubble, w *copyWorld) {
			w.set(func() { w.hangs = "start hv3 victim" })
			w.vanish("hv3")
			b.eventually(20*time.Second, "it is to start again", func() bool { return b.workload("victim").State == cluster.WorkloadStarting })
		},
	} {
		t.Run(name, func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.movable("victim", on("hv3"))
				b.onlyOn(w, 30*time.Second, "victim", "hv3")
				hang(b, w)
				time.Sleep(4 * time.Second)
				b.nodeDies(w, "hv3", "migrate")
				b.eventually(3*time.Second, "it runs elsewhere", func() bool { return len(w.active("victim")) == 1 })
			})
		})
	}
	t.Run("a pass", func(t *testing.T) {
		inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
			b.addWorkload(cluster.Workload{Name: "mem", Chain: []cluster.NodeID{"hv3", "hv2", "hv1"}, Nodes: []cluster.NodeID{"hv1", "hv2", "hv3"}, Replicas: 2})
			b.eventually(30*time.Second, "mem has its replicas", func() bool {
				return w.state("hv1", "mem") == cluster.CopyReplica && w.state("hv2", "mem") == cluster.CopyReplica && b.workload("mem").State == cluster.WorkloadRunning
			})
			begun := w.count(&w.begun)
			w.set(func() { w.hangs = "follow hv1 mem" })
			w.restartEmpty("hv1", "mem")
			b.eventually(10*time.Second, "its orders have begun", func() bool { return w.count(&w.begun) >= begun+2 })
			time.Sleep(4 * time.Second)
			b.nodeDies(w, "hv3", "migrate")
			b.eventually(3*time.Second, "its replica serves", func() bool { return w.state("hv2", "mem") == cluster.CopyActive })
		})
	})
}

// A workload is left alone for a while since something has failed with it: its
// recovery does not wait for that.
func TestAnEarlierFailureKeepsNoRecoveryWaiting(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("victim", on("hv3"))
		b.onlyOn(w, 30*time.Second, "victim", "hv3")
		w.set(func() { w.fail["stop hv3"] = errors.New("the storage hangs") })
		b.order("victim", "o1", cluster.WorkloadMove, "hv2")
		if a := b.answer(20*time.Second, "victim", "o1"); a.Done {
			t.Errorf("the answer is %+v", a)
		}
		b.nodeDies(w, "hv3", "migrate")
		b.eventually(3*time.Second, "it runs elsewhere", func() bool { return len(w.active("victim")) == 1 })
	})
}

// A copy changes again and again, so that a pass is wanted all the time, while a look
// at another takes as long as it may: movable workloads are looked after nevertheless.
func TestPassesThatAreWantedWithoutEndStarveNobody(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("victim", on("hv2"))
		b.onlyOn(w, 30*time.Second, "victim", "hv2")
		b.addWorkload(cluster.Workload{Name: "mem", Chain: []cluster.NodeID{"hv2", "hv1"}, Nodes: []cluster.NodeID{"hv1", "hv2"}, Replicas: 1})
		b.eventually(30*time.Second, "mem runs", func() bool { return b.workload("mem").State == cluster.WorkloadRunning })
		w.set(func() { w.mute = "hv2 victim" })
		over, ended := make(chan struct{}), make(chan struct{})
		defer func() { close(over); <-ended }()
		w.mu.Lock()
		hints := w.host("hv1").changed
		w.mu.Unlock()
		go func() {
			defer close(ended)
			for {
				select {
				case <-over:
					return
				case <-time.After(600 * time.Millisecond):
				}
				select {
				case hints <- cluster.CopyChange{Workload: "mem", Text: "restarted"}:
				default:
				}
			}
		}()
		b.movable("vm2", on("hv1"))
		b.eventually(30*time.Second, "vm2 runs", func() bool { return len(w.active("vm2")) == 1 })
	})
}

// What runs on a node that is away is not moved home from it: that could only fail,
// and would be written again and again.
func TestNothingIsMovedHomeFromANodeThatIsAway(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		b.domain("hv2", cluster.DomainFlush)
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.kill("hv3")
		b.eventually(time.Minute, "vm1 says that its node is away", func() bool { return b.workload("vm1").Reason != "" })
		writes := len(b.store.History())
		b.domain("hv2", cluster.DomainReady)
		time.Sleep(time.Minute)
		for _, h := range b.store.History()[writes:] {
			if h.Path == workloadPath("vm1") {
				t.Errorf("it is written: %s", h.Data)
			}
		}
		b.start("hv3")
		b.onlyOn(w, time.Minute, "vm1", "hv2")
	})
}
