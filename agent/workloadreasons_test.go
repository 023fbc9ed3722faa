package agent

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

// versions are all that the record has been, oldest first.
func (b *passBench) versions(path string) (list [][]byte) {
	for _, h := range b.server.History() {
		if h.Path == path {
			list = append(list, h.Data)
		}
	}
	return list
}

// Whoever looks at a workload that does not come up sees why, and that is written
// once, not with each pass.
func TestWhyCopiesWereNotBroughtToTheChainIsTold(t *testing.T) {
	withPasses(t, nil, func(t *testing.T, b *passBench) {
		b.within(10*time.Second, "a first pass", func() bool { return b.asked() >= 2 })
		b.set(func() {
			b.states = map[cluster.NodeID]cluster.CopyState{"hv1": cluster.CopyMissing}
			b.fails = errors.New("there is no such file as hv1's password, after 3 ms")
		})
		b.within(30*time.Second, "the reason", func() bool {
			w := b.record()
			return w.State == cluster.WorkloadStarting && strings.Contains(w.Reason, "no such file")
		})
		written := len(b.versions("/agent/workloads/cache"))
		b.set(func() { b.fails = errors.New("there is no such file as hv1's password, after 4 ms") })
		asked := b.asked()
		b.within(time.Minute, "five more passes", func() bool { return b.asked() >= asked+5 })
		if now := len(b.versions("/agent/workloads/cache")); now != written {
			t.Errorf("it was written %d times more", now-written)
		}
		b.set(func() { b.states, b.fails = nil, nil })
		b.within(30*time.Second, "it runs, and nothing stands against it", func() bool {
			w := b.record()
			return w.State == cluster.WorkloadRunning && w.Reason == ""
		})
	})
}

// Who adds a workload does not wait for the next pass.
func TestAWorkloadThatIsNewIsLookedAtAtOnce(t *testing.T) {
	withPasses(t, nil, func(t *testing.T, b *passBench) {
		b.within(10*time.Second, "a first pass", func() bool { return b.asked() >= 2 })
		for range 3 {
			asked := b.asked()
			b.within(30*time.Second, "a pass", func() bool { return b.asked() > asked }) // so that the next is five seconds away
			w := b.record()
			w.State = cluster.WorkloadNew
			b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyWorkload, Name: "cache"}, cluster.AnyVersion, w))
			b.within(3*time.Second, "it is no longer new", func() bool { return b.record().State != cluster.WorkloadNew })
		}
	})
}

// A view from before the order has no rebalance, and none has version 0, as the order
// itself: what is planned on it replaces no order (I8).
func TestAViewFromBeforeARebalanceReplacesNothing(t *testing.T) {
	withPasses(t, nil, func(t *testing.T, b *passBench) {
		b.within(10*time.Second, "a first pass", func() bool { return b.asked() >= 2 })
		synctest.Wait()
		before := b.latest()
		b.w.status = func() Status { return Status{Snapshot: before} }
		b.commit(cluster.Create(cluster.Key{Kind: cluster.KeyRebalance}, cluster.Rebalance{Version: 1, ID: "r1", State: cluster.RebalanceOrdered}))
		b.within(5*time.Second, "the loop sees it", func() bool { s := b.w.seen.Load(); return s != nil && s.Rebalance.Present })
		_ = (&rebalanceTask{m: newMoves(b.w)}).run(b.ctx)
		for _, raw := range b.versions("/agent/rebalance") {
			var r cluster.Rebalance
			if err := json.Unmarshal(raw, &r); err != nil || r.ID != "r1" {
				t.Errorf("the record was %s (%v)", raw, err)
			}
		}
	})
}
