package agent_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// What has failed and runs nowhere is removed, though its driver still tells of what
// it was; what runs after all is not.
func TestWhatHasFailedIsRemoved(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		for _, name := range []string{"vm1", "vm2"} {
			b.movable(name, on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2"} })
			b.onlyOn(w, 30*time.Second, name, "hv2")
		}
		w.set(func() {
			w.fail["start hv2"] = fmt.Errorf("no such image")
			w.host("hv2").copies["vm1"].state = cluster.CopyDead
			w.host("hv2").copies["vm2"].state = cluster.CopyDead
		})
		for _, name := range []string{"vm1", "vm2"} {
			b.eventually(2*time.Minute, name+" has failed", func() bool { return b.workload(name).State == cluster.WorkloadFailed })
		}
		b.order("vm1", "o1", cluster.WorkloadRemove, "")
		b.eventually(20*time.Second, "its record is gone", func() bool { return b.read(workloadPath("vm1")) == "" })
		if s := w.state("hv2", "vm1"); s != cluster.CopyMissing {
			t.Errorf("it is %s on hv2", s)
		}
		w.set(func() { w.host("hv2").copies["vm2"].state = cluster.CopyActive })
		b.order("vm2", "o2", cluster.WorkloadRemove, "")
		if a := b.answer(20*time.Second, "vm2", "o2"); a.Done || !strings.Contains(a.Text, "pvc workload stop vm2") {
			t.Errorf("one that runs: %+v", a)
		}
	})
}

// Where a node cannot look at its copy the refusal says so, and names what helps; that
// then does, by the node's own word that nothing is left.
func TestWhatCannotBeLookedAtIsRemovedByDestroy(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2"} })
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		w.set(func() { w.ending["hv2"] = true }) // its looks tell nothing
		b.order("vm1", "o1", cluster.WorkloadRemove, "")
		if a := b.answer(20*time.Second, "vm1", "o1"); a.Done || !strings.Contains(a.Text, "cannot be looked at") || !strings.Contains(a.Text, "--destroy") || !strings.Contains(a.Text, "hv2 (this node") {
			t.Errorf("the answer is %+v", a)
		}
		destroy := func(q *cluster.WorkloadRequest) { q.Destroy = true }
		w.set(func() { w.fail["destroy hv2"] = fmt.Errorf("its agent is not installed") })
		b.order("vm1", "o2", cluster.WorkloadRemove, "", destroy)
		if a := b.answer(20*time.Second, "vm1", "o2"); a.Done || !strings.Contains(a.Text, "its record is kept") || !strings.Contains(a.Text, "not installed") {
			t.Errorf("what cannot be ended: %+v", a)
		}
		w.set(func() { delete(w.fail, "destroy hv2") })
		b.order("vm1", "o3", cluster.WorkloadRemove, "", destroy)
		b.eventually(20*time.Second, "its record is gone", func() bool { return b.read(workloadPath("vm1")) == "" })
		b.movable("vm2", on("hv3"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv3"} })
		b.onlyOn(w, 30*time.Second, "vm2", "hv3")
		b.kill("hv3")
		b.order("vm2", "o4", cluster.WorkloadRemove, "", destroy)
		if a := b.answer(30*time.Second, "vm2", "o4"); a.Done || !strings.Contains(a.Text, "does not answer") || !strings.Contains(a.Text, "pvc fence confirm") {
			t.Errorf("a node that does not answer: %+v", a)
		}
	})
}
