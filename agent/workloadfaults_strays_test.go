package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// strayFaults are the ids under /faults that are of strays.
func (b *bubble) strayFaults() []string {
	return slices.DeleteFunc(slices.Clone(b.store.Children("/faults")), func(id string) bool { return !strings.HasPrefix(id, "STRAY_") })
}

// strayEvents are the history's entries of strays.
func (b *bubble) strayEvents() []cluster.Event {
	return slices.DeleteFunc(b.told("workload_fault"), func(e cluster.Event) bool { return e.Fields["code"] != "stray_copy" })
}

// A copy beside its record that does not end stands under /faults and against the
// primary's health, with its node, its workload and what to do; it is told once, also
// when the primary changes, and goes when its node says that it is over.
func TestAStrayThatCannotBeStoppedIsAFault(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		w.set(func() {
			w.fail["stop hv2"] = fmt.Errorf("the storage hangs")
			w.host("hv2").copies["vm1"] = &worldCopy{state: cluster.CopyActive, start: 1}
		})
		b.eventually(60*time.Second, "it is a fault", func() bool { return slices.Equal(b.strayFaults(), []string{"STRAY_vm1.hv2"}) })
		message := b.read("/faults/STRAY_vm1.hv2/message")
		for _, word := range []string{"workload vm1 ", "node hv2", "chain: hv3", "the storage hangs", "pvc fence now hv2"} {
			if !strings.Contains(message, word) {
				t.Errorf("the fault does not say %q: %s", word, message)
			}
		}
		if status := b.read("/faults/STRAY_vm1.hv2/status"); status != "new" {
			t.Errorf("its status is %q", status)
		}
		b.eventually(30*time.Second, "it stands against the primary's health", func() bool {
			return strings.Contains(b.read("/agent/views/hv1"), "workload vm1 has a copy on node hv2")
		})
		b.elect("hv2")
		b.always(40*time.Second, "the next primary goes on with it", func() bool { return len(b.strayFaults()) == 1 && len(b.strayEvents()) == 1 })
		w.set(func() { delete(w.fail, "stop hv2") })
		b.onlyOn(w, 60*time.Second, "vm1", "hv3")
		b.eventually(60*time.Second, "it is over", func() bool { return len(b.strayFaults()) == 0 && len(b.strayEvents()) == 2 })
	})
}

// A fault that an operator deletes while the copy still runs is told again after a
// while, once, and not at once.
func TestAStraysFaultThatIsDeletedIsToldAgain(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		w.set(func() { w.host("hv2").copies["gone"] = &worldCopy{state: cluster.CopyActive, start: 1} })
		there := func() bool { return slices.Equal(b.strayFaults(), []string{"STRAY_gone.hv2"}) }
		b.eventually(60*time.Second, "it is a fault", there)
		for _, leaf := range b.store.Children("/faults/STRAY_gone.hv2") {
			b.store.Delete("/faults/STRAY_gone.hv2/" + leaf)
		}
		b.store.Delete("/faults/STRAY_gone.hv2")
		for range 9 {
			time.Sleep(30 * time.Second)
			if left := b.strayFaults(); len(left) > 0 || len(b.strayEvents()) > 1 {
				t.Fatalf("it is told again at once: %v", left)
			}
		}
		b.eventually(2*time.Minute, "it is told again", there)
		time.Sleep(time.Minute)
		if told := b.strayEvents(); !there() || len(told) != 2 {
			t.Errorf("it is told %d times, and stands: %t", len(told), there())
		}
	})
}

// What is stopped in time is no fault, nor is what its record knows; what no record
// knows, or has on that node, is one whatever its kind. An operator's hand on the fault
// stays.
func TestWhatIsAStray(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.movable("vm1", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		w.set(func() {
			w.fail["stop hv2"] = fmt.Errorf("not yet")
			w.host("hv2").copies["vm1"] = &worldCopy{state: cluster.CopyActive, start: 1}
		})
		b.always(12*time.Second, "nothing is told yet", func() bool { return len(b.strayFaults()) == 0 })
		w.set(func() { delete(w.fail, "stop hv2") })
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.always(60*time.Second, "nothing is told", func() bool { return len(b.strayFaults()) == 0 })
		w.set(func() {
			w.host("hv2").copies["gone"] = &worldCopy{state: cluster.CopyActive, start: 1}
			w.host("hv1").copies["cache"] = &worldCopy{state: cluster.CopyReplica, start: 1}
			w.fail["stop hv1"] = fmt.Errorf("it does not end")
		})
		want := []string{"STRAY_cache.hv1", "STRAY_gone.hv2"}
		b.eventually(60*time.Second, "both are told", func() bool { return slices.Equal(slices.Sorted(slices.Values(b.strayFaults())), want) })
		if text := b.read("/faults/STRAY_gone.hv2/message"); !strings.Contains(text, "no record") {
			t.Errorf("of what no record knows: %s", text)
		}
		b.store.Set("/faults/STRAY_cache.hv1/status", []byte("ack"))
		b.always(30*time.Second, "it stays acknowledged", func() bool { return b.read("/faults/STRAY_cache.hv1/status") == "ack" })
		b.kill("hv2") // a node that is silent says nothing
		b.always(20*time.Second, "it stands", func() bool { return slices.Contains(b.strayFaults(), "STRAY_gone.hv2") })
	})
}
