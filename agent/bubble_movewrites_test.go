package agent_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pvc.internal/agent/lease"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// strikeAt loses the primary's nth write of the workload's record, or the reply to it,
// and has it killed at that instant, or go on.
func (b *bubble) strikeAt(name string, n int, lose, kill bool) (hit func() bool) {
	life, seen := b.nodes["hv1"].life, 0
	plant := b.store.DropReply
	if lose {
		plant = b.store.DropRequest
	}
	rule := plant("hv1", func(o zktest.OpInfo) bool {
		writes := slices.ContainsFunc(append(slices.Clone(o.Ops), o), func(op zktest.OpInfo) bool {
			return op.Path == workloadPath(name) && op.Op == "set"
		})
		if writes {
			seen++
		}
		if !writes || seen != n {
			return false
		}
		if kill {
			life.sever()
		}
		return true
	})
	return func() bool { return rule.Hits() > 0 }
}

// At each write of a move it, or its reply, is lost, and the primary is killed there or
// goes on: the move is made once, its order answered, and nothing runs twice or is
// missing in the end.
func TestEachWriteOfAMoveMayBeLost(t *testing.T) {
	for what, c := range map[string]struct {
		writes  int
		name    string
		replica bool
		begin   func(b *bubble)
		order   string
	}{
		"movable, ordered":    {writes: 3, name: "vm1", begin: func(b *bubble) { b.order("vm1", "o1", cluster.WorkloadMove, "") }, order: "o1"},
		"movable, drained":    {writes: 3, name: "vm1", begin: func(b *bubble) { b.domain("hv2", cluster.DomainFlush) }},
		"replicated, ordered": {writes: 3, name: "cache", replica: true, begin: func(b *bubble) { b.order("cache", "o1", cluster.WorkloadMove, "") }, order: "o1"},
		"replicated, drained": {writes: 2, name: "cache", replica: true, begin: func(b *bubble) { b.domain("hv2", cluster.DomainFlush) }},
		"promoted":            {writes: 3, name: "cache", replica: true, begin: func(b *bubble) { b.order("cache", "o1", cluster.WorkloadPromote, "hv3") }, order: "o1"},
	} {
		for n := 1; n <= c.writes; n++ {
			for how := range 4 {
				lose, kill := how&1 != 0, how&2 != 0
				t.Run(fmt.Sprintf("%s, write %d, lost %t, killed %t", what, n, lose, kill), func(t *testing.T) {
					inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
						if c.replica {
							b.cache(w)
						} else {
							b.movable("vm1", on("hv2"))
							b.onlyOn(w, 30*time.Second, "vm1", "hv2")
						}
						hit := b.strikeAt(c.name, n, lose, kill)
						c.begin(b)
						b.eventually(30*time.Second, "the write was reached", hit)
						if kill {
							b.kill("hv1")
							time.Sleep(time.Second)
							b.start("hv1")
						}
						if c.order != "" {
							b.answer(time.Minute, c.name, c.order)
						}
						b.eventually(time.Minute, "it runs, whole", func() bool {
							r := b.workload(c.name)
							active := len(w.active(c.name)) == 1 && w.active(c.name)[0] == r.Head()
							replicas := 0
							for _, n := range r.Chain[1:] {
								if w.state(n, c.name) == cluster.CopyReplica {
									replicas++
								}
							}
							return r.State == cluster.WorkloadRunning && r.Next == nil && r.Head() != "hv2" && active && (!c.replica || replicas == 1 && len(w.holders(c.name)) == 2)
						})
						if h := b.heads(c.name); len(h) > 2 {
							t.Errorf("its heads were %v", h)
						}
					})
				})
			}
		}
	}
}

// holders are the hosts that have something of the workload.
func (w *copyWorld) holders(name string) (hosts []cluster.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, h := range w.hosts {
		if h.copies[name] != nil {
			hosts = append(hosts, n)
		}
	}
	return hosts
}

// A store is restored beside daemons that run on, and counts versions anew: neither the
// primary of before, nor the nodes that obeyed it, hold on to what was then.
func TestAnEarlierReignIsForgotten(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.elect("hv1")
		b.movable("vm1", on("hv2"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		for i, n := range []cluster.NodeID{"hv3", "hv2"} {
			b.order("vm1", fmt.Sprintf("m%d", i), cluster.WorkloadMove, n)
			b.answer(20*time.Second, "vm1", fmt.Sprintf("m%d", i))
		}
		b.kill("hv3") // and is back with an epoch as after a restore
		f := w.files["hv3"]
		f.mu.Lock()
		f.found = lease.Found{Kind: lease.FoundRecord, Record: lease.Record{Epoch: cluster.RestoreGap, EpochOf: "hv2"}}
		f.mu.Unlock()
		b.start("hv3")
		b.settles(30 * time.Second)
		b.elect("hv3")
		kept := []byte(b.read(workloadPath("vm1")))
		b.store.Delete(workloadPath("vm1"))
		b.store.Set(workloadPath("vm1"), kept)
		b.elect("hv1")
		if e := b.leaseEpoch(); e <= cluster.RestoreGap {
			t.Fatalf("the epoch is %d, so that this shows nothing", e)
		}
		b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
		if a := b.answer(30*time.Second, "vm1", "o1"); !a.Done {
			t.Errorf("the answer is %+v", a)
		}
		b.onlyOn(w, 10*time.Second, "vm1", "hv3")
	})
}
