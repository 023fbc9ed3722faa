package agent_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// settling has a node's copies end as at a stop of the whole target.
func (b *bubble) settling(w *copyWorld, n cluster.NodeID) {
	b.t.Helper()
	if err := b.nodes[n].agent.Settling(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	w.set(func() { w.ending[n] = true })
}

// What is recovered while another node's copies are ending is given to a third one at
// once; what that node has stays its own, by the record.
func TestNothingIsGivenToANodeWhoseCopiesAreEnding(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.movable("vm2", on("hv2"))
		b.movable("vm3", on("hv1"))
		b.movable("vm4", on("hv1")) // so that hv2 would be chosen
		for name, n := range map[string]cluster.NodeID{"vm1": "hv3", "vm2": "hv2", "vm3": "hv1", "vm4": "hv1"} {
			b.onlyOn(w, 30*time.Second, name, n)
		}
		b.settling(w, "hv2")
		b.nodeDies(w, "hv3", "migrate")
		began := time.Now()
		b.onlyOn(w, 3*time.Second, "vm1", "hv1")
		t.Logf("elsewhere after %v", time.Since(began))
		b.order("vm3", "o1", cluster.WorkloadMove, "")
		if a := b.answer(10*time.Second, "vm3", "o1"); a.Done || !strings.Contains(a.Text, "copies are ending") {
			t.Errorf("where the selector says: %+v", a)
		}
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
		b.eventually(60*time.Second, "the rebalance ends", func() bool { return b.rebalance().Ended() })
		b.always(20*time.Second, "nothing is moved off it, nor to it", func() bool {
			return b.workload("vm2").Head() == "hv2" && b.workload("vm3").Head() == "hv1" && b.workload("vm4").Head() == "hv1" && b.read("/nodes/hv2/daemonstate") == string(cluster.DaemonRun)
		})
		if said := w.said(); strings.Contains(said, "vm1 on hv2") || strings.Contains(said, "vm3 on hv2") {
			t.Errorf("orders: %s", said)
		}
	})
}

// The node begins to end its copies between its being chosen and the order: by its own
// refusal nothing runs there, and another is looked for. So with a move.
func TestANodeThatHasRefusedAsItIsStoppedIsLeftForAnother(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.movable("vm2", on("hv1"))
		b.movable("vm3", on("hv1"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.onlyOn(w, 30*time.Second, "vm2", "hv1")
		b.onlyOn(w, 30*time.Second, "vm3", "hv1")
		w.set(func() { w.slow = 300 * time.Millisecond }) // it is taken, and refused then
		b.order("vm2", "o1", cluster.WorkloadMove, "hv2")
		b.nodeDies(w, "hv3", "migrate")
		b.eventually(3*time.Second, "vm1 is given to hv2", func() bool { return b.workload("vm1").Head() == "hv2" })
		b.settling(w, "hv2")
		b.onlyOn(w, 5*time.Second, "vm1", "hv1")
		if a := b.answer(20*time.Second, "vm2", "o1"); a.Done || !strings.Contains(a.Text, "being stopped") && !strings.Contains(a.Text, "copies are ending") {
			t.Errorf("the answer to the move is %+v", a)
		}
		b.onlyOn(w, 20*time.Second, "vm2", "hv1")
		if a := b.workload("vm1").Attempts; a != 0 {
			t.Errorf("a refusal counts as %d attempts", a)
		}
	})
}

// What ends with an orderly stop of its node has not failed: it runs there again, and
// no attempt is counted, however soon after its start that was.
func TestWhatEndsWithItsNodesStopHasNotFailed(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.eventually(10*time.Second, "hv1 is primary", func() bool { return b.primary() == "hv1" })
		b.movable("vm1", on("hv2"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		for range 4 {
			b.settling(w, "hv2")
			w.vanish("hv2")
			b.nodes["hv2"].stop()
			b.eventually(30*time.Second, "it has ended", func() bool { return b.nodes["hv2"].ended() })
			w.set(func() { delete(w.ending, "hv2") })
			b.start("hv2")
			b.onlyOn(w, 30*time.Second, "vm1", "hv2")
			if a := b.workload("vm1").Attempts; a != 0 {
				t.Fatalf("%d attempts are counted", a)
			}
		}
	})
}

// So with the primary's own node, whose successor has never seen what ran there.
func TestWhatEndsWithThePrimarysStopHasNotFailed(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv1"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv1")
		for range 3 {
			b.wish("hv1")
			b.eventually(30*time.Second, "hv1 is primary", func() bool { return b.primary() == "hv1" })
			b.settling(w, "hv1")
			w.vanish("hv1")
			b.nodes["hv1"].stop()
			b.eventually(30*time.Second, "it has ended", func() bool { return b.nodes["hv1"].ended() })
			w.set(func() { delete(w.ending, "hv1") })
			b.start("hv1")
			b.onlyOn(w, 30*time.Second, "vm1", "hv1")
			if a := b.workload("vm1").Attempts; a != 0 {
				t.Fatalf("%d attempts are counted", a)
			}
		}
	})
}

// What has ended twice soon after its starts, and then with its node's stop, runs there
// again: it is neither moved nor given up for what its own starts had not done. Once it
// has run for a while the earlier ends are past.
func TestWhatHadTroubleStaysWithItsNodeAtAStop(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.eventually(10*time.Second, "hv1 is primary", func() bool { return b.primary() == "hv1" })
		b.movable("vm1", on("hv2"))
		ends := func(times int) {
			for i := range times {
				b.onlyOn(w, 30*time.Second, "vm1", "hv2")
				w.set(func() { delete(w.host("hv2").copies, "vm1") })
				b.eventually(20*time.Second, "the end is counted", func() bool { return b.workload("vm1").Attempts == i+1 })
			}
			b.eventually(20*time.Second, "it runs", func() bool { return len(w.active("vm1")) == 1 && b.workload("vm1").State == cluster.WorkloadRunning })
		}
		stops := func() {
			n := b.workload("vm1").Head()
			b.settling(w, n)
			w.vanish(n)
			b.nodes[n].stop()
			b.eventually(30*time.Second, "it has ended", func() bool { return b.nodes[n].ended() })
			w.set(func() { delete(w.ending, n) })
			b.start(n)
			b.onlyOn(w, 30*time.Second, "vm1", n)
		}
		ends(2)
		stops()
		if a := b.workload("vm1").Attempts; a != 2 {
			t.Errorf("%d attempts are counted after the stop", a)
		}
		b.eventually(time.Minute, "its trouble is past", func() bool { return b.workload("vm1").Attempts == 0 })
	})
}

// What a new primary has never seen running counts nothing when it is found ended; from
// its start on each end counts, and it is given up as ever.
func TestWhatEndsSoonAfterEachStartIsGivenUpByANewPrimaryToo(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.kill("hv1")
		b.eventually(60*time.Second, "another primary", func() bool { p := b.primary(); return p != "" && p != "hv1" })
		b.eventually(5*time.Minute, "it is given up", func() bool {
			for _, n := range w.active("vm1") {
				w.set(func() { delete(w.host(n).copies, "vm1") })
			}
			return b.workload("vm1").State == cluster.WorkloadFailed
		})
		if a := b.workload("vm1").Attempts; a != 5 {
			t.Errorf("%d attempts are counted", a)
		}
	})
}

// It is told with the ordinary keepalive: no write of its own, also again after one
// whose reply was lost, and not by the next start. Where the store is away the call
// says so and ends.
func TestWhatEndsIsToldWithAKeepalive(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		before := len(b.store.History())
		b.settling(w, "hv2")
		since := b.store.History()[before:]
		for _, h := range since {
			with := func(o zktest.HistoryEntry) bool { return o.Path == "/nodes/hv2/keepalive" && o.Zxid == h.Zxid }
			if h.Path == "/agent/nodes/hv2" && !slices.ContainsFunc(since, with) {
				t.Errorf("the %s of %s is a transaction of its own", h.Op, h.Path)
			}
		}
		b.nodes["hv2"].stop()
		b.eventually(30*time.Second, "it has ended", func() bool { return b.nodes["hv2"].ended() })
		w.set(func() { delete(w.ending, "hv2") })
		b.start("hv2")
		b.eventually(30*time.Second, "the next start takes workloads", func() bool {
			return b.read("/nodes/hv2/daemonstate") == string(cluster.DaemonRun) && !strings.Contains(b.read("/agent/nodes/hv2"), "settling")
		})
		b.store.Stall()
		ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
		defer cancel()
		if err := b.nodes["hv3"].agent.Settling(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a store that does not answer: %v", err)
		}
		b.store.Resume()
		b.eventually(10*time.Second, "it is told in the end", func() bool { return strings.Contains(b.read("/agent/nodes/hv3"), `"settling":true`) })
	})
}
