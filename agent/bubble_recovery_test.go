package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// movable adds a movable workload.
func (b *bubble) movable(name string, edit ...func(*cluster.Workload)) {
	b.t.Helper()
	w := cluster.Workload{Name: name, Kind: cluster.WorkloadMovable, Autostart: true}
	for _, e := range edit {
		e(&w)
	}
	b.addWorkload(w)
}

// edit changes a record as the API does, on the version that there is: nobody else
// does anything meanwhile.
func (b *bubble) edit(name string, change func(*cluster.Workload)) {
	synctest.Wait()
	b.editWorkload(name, change)
}

func on(n cluster.NodeID) func(*cluster.Workload) {
	return func(w *cluster.Workload) { w.Chain = []cluster.NodeID{n} }
}

// active are the hosts on which a workload's copy is active.
func (w *copyWorld) active(name string) (hosts []cluster.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, h := range w.hosts {
		if c := h.copies[name]; c != nil && c.state == cluster.CopyActive && !c.given {
			hosts = append(hosts, n)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// onlyOn waits until the workload runs there and nowhere else, as its record says.
func (b *bubble) onlyOn(w *copyWorld, limit time.Duration, name string, n cluster.NodeID) {
	b.t.Helper()
	b.eventually(limit, fmt.Sprintf("%s runs on %s alone", name, n), func() bool {
		r := b.workload(name)
		return slices.Equal(w.active(name), []cluster.NodeID{n}) && r.State == cluster.WorkloadRunning && r.Head() == n && r.Next == nil
	})
}

// nodeDies takes a host with all that runs there, and has its present start proven
// dead, as a fence that was carried out says it.
func (b *bubble) nodeDies(w *copyWorld, n cluster.NodeID, policy string) {
	b.t.Helper()
	b.powerOff(n)
	w.vanish(n)
	b.proven(n, policy)
}

// proven plants the record of a fence that has its proof.
func (b *bubble) proven(n cluster.NodeID, policy string) {
	b.t.Helper()
	b.provenBy(n, policy, "verified_off")
}

// provenBy is proven by such a proof.
func (b *bubble) provenBy(n cluster.NodeID, policy, proof string) {
	b.t.Helper()
	var record cluster.NodeRecord
	if err := json.Unmarshal([]byte(b.read("/agent/nodes/"+string(n))), &record); err != nil {
		b.t.Fatalf("record of %s: %v", n, err)
	}
	lease := readLease([]byte(b.read(leasePath)))
	raw, err := json.Marshal(cluster.FenceRecord{Version: 1, ID: "f-" + string(n), Node: n, Incarnation: record.Incarnation, Epoch: lease.Epoch, By: lease.Holder,
		Stage: cluster.FenceDone, Proof: proof, Policy: policy, Reason: "test"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Set("/agent/fences/"+string(n), raw)
}

// A movable workload is placed and started; one that ends is started again.
func TestAMovableWorkloadIsStartedAndKept(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1")
		b.eventually(30*time.Second, "it runs", func() bool { return len(w.active("vm1")) == 1 && b.workload("vm1").State == cluster.WorkloadRunning })
		n := b.workload("vm1").Head()
		w.set(func() { delete(w.host(n).copies, "vm1") })
		b.onlyOn(w, 20*time.Second, "vm1", n)
		if a := b.workload("vm1").Attempts; a != 1 {
			t.Errorf("after one end it counts %d attempts", a)
		}
	})
}

// Fifty workloads of a dead node run elsewhere soon after the proof, the most
// important first, spread over the nodes that are left.
func TestFiftyWorkloadsAreRecovered(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		for i := range 50 {
			b.movable(fmt.Sprintf("vm%02d", i), on("hv3"), func(w *cluster.Workload) { w.Priority = i })
		}
		b.eventually(60*time.Second, "all run", func() bool { return runningOn(b, w, "hv3", 50) })
		w.set(func() { w.slow = time.Second; w.orders = nil })
		b.nodeDies(w, "hv3", "migrate")
		began := time.Now()
		b.eventually(3*time.Second, "the first runs elsewhere", func() bool { return runningOn(b, w, "hv1", 1) || runningOn(b, w, "hv2", 1) })
		b.eventually(15*time.Second-time.Since(began), "all run elsewhere", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.host("hv1").copies)+len(w.host("hv2").copies) == 50
		})
		t.Logf("50 workloads of 1 s each within %v", time.Since(began))
		b.eventually(10*time.Second, "and their records say so", func() bool {
			for i := range 50 {
				if b.workload(fmt.Sprintf("vm%02d", i)).State != cluster.WorkloadRunning {
					return false
				}
			}
			return true
		})
		if a, z := len(w.host("hv1").copies), len(w.host("hv2").copies); a < 20 || z < 20 {
			t.Errorf("they are spread %d to %d", a, z)
		}
		// As many as two nodes take at once begin together, in any order.
		first := strings.Split(w.said(), ", ")[:2*placement.Parallel.PerNode]
		if of := func(name string) bool {
			return slices.ContainsFunc(first, func(o string) bool { return strings.Contains(o, name) })
		}; !of("vm49") || of("vm0") || of("vm1") {
			t.Errorf("the most important are not the first: %s", first)
		}
	})
}

func runningOn(b *bubble, w *copyWorld, n cluster.NodeID, count int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	active := 0
	for _, c := range w.host(n).copies {
		if c.state == cluster.CopyActive {
			active++
		}
	}
	return active >= count
}

// Without a proof nothing starts elsewhere, however long its node is silent; nor with
// the proof of an earlier start; nor where the policy says so.
func TestNothingStartsElsewhereWithoutAProof(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.powerOff("hv3") // its copies may go on: nobody knows
		raw, _ := json.Marshal(cluster.FenceRecord{Version: 1, ID: "old", Node: "hv3", Incarnation: "hv3.0", Stage: cluster.FenceDone, Proof: "verified_off", Policy: "migrate"})
		b.store.Set("/agent/fences/hv3", raw)
		b.always(40*time.Second, "vm1 is on hv3 alone", func() bool { return slices.Equal(w.active("vm1"), []cluster.NodeID{"hv3"}) })
		w.vanish("hv3")
		b.proven("hv3", "none")
		b.always(20*time.Second, "the policy keeps it where it is", func() bool { return len(w.active("vm1")) == 0 })
		if r := b.workload("vm1"); r.State != cluster.WorkloadStopped || !strings.Contains(r.Reason, "policy") || r.Head() != "hv3" {
			t.Errorf("its record says %+v", r)
		}
		b.proven("hv3", "migrate")
		b.eventually(10*time.Second, "it runs elsewhere", func() bool { return len(w.active("vm1")) == 1 })
	})
}

// The reply to a start is lost: what runs is looked at before anything else, and
// nothing runs twice.
func TestALostReplyToAStartStartsNothingTwice(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		w.set(func() { w.slow = 500 * time.Millisecond })
		b.nodeDies(w, "hv3", "migrate")
		b.eventually(10*time.Second, "it is ordered to start", func() bool { return b.workload("vm1").State == cluster.WorkloadRecovering })
		b.talk.net.Cut("hv2", "hv1") // what hv2 says is lost
		time.Sleep(2 * time.Second)
		b.talk.net.Heal()
		b.onlyOn(w, 60*time.Second, "vm1", "hv2")
	})
}

// The target dies, too: by its own proof the workload goes on to a third node.
func TestATargetThatDiesIsRecoveredByItsOwnProof(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		w.set(func() { w.slow = 2 * time.Second })
		b.edit("vm1", func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
		b.nodeDies(w, "hv3", "migrate")
		b.eventually(10*time.Second, "it is to start on hv2", func() bool { return b.workload("vm1").Head() == "hv2" })
		b.edit("vm1", func(w *cluster.Workload) { w.Nodes = nil })
		b.nodeDies(w, "hv2", "migrate")
		b.onlyOn(w, 30*time.Second, "vm1", "hv1")
	})
}

// Nothing can take it: it is stopped, wanted, with the reason of each node, and
// started once there is a place. The primary changes in between.
func TestWhatHasNoPlaceIsNotLost(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv3"} })
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.nodeDies(w, "hv3", "migrate")
		b.eventually(10*time.Second, "it is stopped and says why", func() bool {
			r := b.workload("vm1")
			return r.State == cluster.WorkloadStopped && r.Wanted && strings.Contains(r.Reason, "hv1") && strings.Contains(r.Reason, "hv2")
		})
		b.elect("hv2")
		b.edit("vm1", func(w *cluster.Workload) { w.Nodes = nil })
		b.eventually(30*time.Second, "it runs again", func() bool { return len(w.active("vm1")) == 1 && b.workload("vm1").State == cluster.WorkloadRunning })
	})
}

// A start that fails is tried again, then elsewhere, and then given up with the
// reason; the others are not touched by that.
func TestAStartThatFailsIsTriedElsewhereAndGivenUp(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		w.set(func() { w.fail["start hv2"] = fmt.Errorf("no such image") })
		b.movable("vm1", on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
		b.movable("vm2", on("hv3"))
		b.onlyOn(w, 60*time.Second, "vm1", "hv3")
		b.onlyOn(w, time.Second, "vm2", "hv3")
		w.set(func() { w.fail["start hv1"] = fmt.Errorf("no such image") })
		b.movable("vm3", on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv1", "hv2"} })
		b.eventually(90*time.Second, "vm3 is failed with the reason", func() bool {
			r := b.workload("vm3")
			return r.State == cluster.WorkloadFailed && strings.Contains(r.Reason, "no such image") && r.Wanted && r.Attempts == 5
		})
		b.always(30*time.Second, "it is left alone", func() bool { return b.workload("vm3").Attempts == 5 })
	})
}

// A second copy that runs outside the record is stopped, and told of.
func TestACopyOutsideItsRecordIsStopped(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		w.set(func() { w.host("hv2").copies["vm1"] = &worldCopy{state: cluster.CopyActive, start: 1} })
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.eventually(5*time.Second, "it is told", func() bool {
			return slices.ContainsFunc(b.told(cluster.EventWorkload), func(e cluster.Event) bool { return e.Fields["what"] == "bad_copies" && strings.Contains(e.Text, "hv2") })
		})
	})
}

// A recovery does not wait for a stop that hangs; nor does the repair of an empty head.
func TestNothingUrgentWaitsForAStopThatHangs(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.movable("vm1", on("hv2"))
		b.movable("vm2", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		b.onlyOn(w, 30*time.Second, "vm2", "hv3")
		w.set(func() { w.hangs = "stop hv2" })
		b.order("vm1", "o1", cluster.WorkloadMove, "hv1")
		b.eventually(10*time.Second, "the move has begun", func() bool { return b.workload("vm1").Next != nil })
		time.Sleep(time.Second)
		w.restartEmpty("hv2", "cache")
		b.eventually(2*time.Second, "hv3 serves the cache", func() bool { return w.state("hv3", "cache") == cluster.CopyActive })
		time.Sleep(3 * time.Second)
		w.set(func() { w.acked["cache"] = 0 }) // its last copy goes with hv3
		b.nodeDies(w, "hv3", "migrate")
		b.eventually(3*time.Second, "vm2 runs elsewhere", func() bool { return len(w.active("vm2")) == 1 })
		w.set(func() { w.hangs = "" })
		b.order("vm1", "o2", cluster.WorkloadMove, "hv1")
		if a := b.answer(30*time.Second, "vm1", "o2"); !a.Done {
			t.Errorf("the move in the end: %+v", a)
		}
	})
}

// The proof is taken back between the look at it and the write, which arrives late:
// nothing is recovered by it.
func TestTheProofStandsAtTheWrite(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.powerOff("hv3")
		b.store.Stall() // writes wait, and are done in their order
		b.proven("hv3", "migrate")
		time.Sleep(120 * time.Millisecond)
		synctest.Wait()
		raw, err := json.Marshal(cluster.FenceRecord{Version: 1, ID: "f2", Node: "hv3", Incarnation: "hv3.another", Stage: cluster.FenceClaimed})
		if err != nil {
			t.Fatal(err)
		}
		b.store.Set("/agent/fences/hv3", raw)
		b.store.Resume()
		b.always(20*time.Second, "vm1 stays with hv3", func() bool { return b.workload("vm1").Head() == "hv3" && len(w.active("vm1")) == 1 })
	})
}

// The fence of the node still runs after its proof, to give the power again: the
// recovery does not wait for that.
func TestARecoveryDoesNotWaitForTheFence(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = b.nodes["hv1"].agent.Activities().Run(b.t.Context(), activity.Spec{Name: "fence-hv3", Quorum: cluster.All("hv1"), Urgency: activity.Failover},
				func(ctx context.Context, _ *activity.Activity) error {
					select {
					case <-ctx.Done():
					case <-time.After(20 * time.Second):
					}
					return nil
				})
		}()
		time.Sleep(time.Second)
		b.nodeDies(w, "hv3", "migrate")
		b.eventually(3*time.Second, "vm1 runs elsewhere", func() bool { return len(w.active("vm1")) == 1 })
		<-done
	})
}
