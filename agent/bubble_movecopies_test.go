package agent_test

import (
	"errors"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A copy does not follow the new head: that of who is out of the chain is the second
// one still, and is stopped only once all of the chain have theirs (J6).
func TestAMoveStopsNobodyWhileACopyDoesNotFollow(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		w.set(func() { w.fail["follow hv3"] = errors.New("its disk is full") })
		b.order("cache", "o1", cluster.WorkloadMove, "hv1")
		if a := b.answer(20*time.Second, "cache", "o1"); !a.Done {
			t.Errorf("the answer is %+v", a)
		}
		time.Sleep(12 * time.Second) // two passes
		if r := b.workload("cache"); r.Head() != "hv1" || w.state("hv1", "cache") != cluster.CopyActive {
			t.Fatalf("its head is %s there, its record %+v", w.state("hv1", "cache"), r)
		}
		if s := w.state("hv2", "cache"); s == cluster.CopyMissing {
			t.Error("the old head was stopped while the copy on hv3 followed nobody")
		}
		w.set(func() { delete(w.fail, "follow hv3") })
		b.runs(w, "hv1", "hv3")
		b.eventually(20*time.Second, "hv2 has none", func() bool { return w.state("hv2", "cache") == cluster.CopyMissing })
	})
}
