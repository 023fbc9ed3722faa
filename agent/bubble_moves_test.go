package agent_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

// order writes an operator's order into the record, as the API does.
func (b *bubble) order(name, id string, op cluster.WorkloadOp, n cluster.NodeID, edit ...func(*cluster.WorkloadRequest)) {
	b.t.Helper()
	q := cluster.WorkloadRequest{ID: id, Op: op, Node: n, By: "test"}
	for _, e := range edit {
		e(&q)
	}
	b.edit(name, func(w *cluster.Workload) { w.Request = &q })
}

// answer waits for the order's answer.
func (b *bubble) answer(limit time.Duration, name, id string) cluster.WorkloadAnswer {
	b.t.Helper()
	b.eventually(limit, fmt.Sprintf("order %s of %s is answered", id, name), func() bool {
		a := b.workload(name).Answer
		return a != nil && a.ID == id
	})
	if w := b.workload(name); w.Request != nil && w.Request.ID == id {
		b.t.Errorf("order %s of %s is answered, and stands", id, name)
	}
	return *b.workload(name).Answer
}

func (b *bubble) domain(n cluster.NodeID, s cluster.DomainState) {
	synctest.Wait()
	b.store.Set("/nodes/"+string(n)+"/domainstate", []byte(s))
}

// A move is a confirmed stop and then a start, and is answered.
func TestAMovableWorkloadIsMoved(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
		if a := b.answer(10*time.Second, "vm1", "o1"); !a.Done {
			t.Errorf("the answer is %+v", a)
		}
		b.onlyOn(w, time.Second, "vm1", "hv3")
		b.order("vm1", "o2", cluster.WorkloadMove, "")
		if a := b.answer(10*time.Second, "vm1", "o2"); !a.Done {
			t.Errorf("where the selector says: %+v", a)
		}
		if h := b.workload("vm1").Head(); h == "hv3" {
			t.Error("it was moved to where it is")
		}
		b.order("vm1", "o3", cluster.WorkloadMove, "hv9")
		if a := b.answer(10*time.Second, "vm1", "o3"); a.Done || !strings.Contains(a.Text, "no such node") {
			t.Errorf("to a node that there is not: %+v", a)
		}
		b.order("vm1", "o4", cluster.WorkloadPromote, "hv1")
		if a := b.answer(10*time.Second, "vm1", "o4"); a.Done {
			t.Errorf("promoting a movable one: %+v", a)
		}
	})
}

// A stop that is refused, or that hangs, leaves the workload where it is, running,
// and nothing starts elsewhere.
func TestAMoveWhoseStopFailsIsLeft(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		w.set(func() { w.fail["stop hv2"] = fmt.Errorf("the storage hangs") })
		b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
		if a := b.answer(20*time.Second, "vm1", "o1"); a.Done || !strings.Contains(a.Text, "the storage hangs") {
			t.Errorf("the answer is %+v", a)
		}
		b.onlyOn(w, 10*time.Second, "vm1", "hv2")
		w.set(func() { delete(w.fail, "stop hv2"); w.slow = time.Hour })
		b.order("vm1", "o2", cluster.WorkloadMove, "hv3")
		if a := b.answer(5*time.Minute, "vm1", "o2"); a.Done {
			t.Errorf("the answer of a stop that hangs is %+v", a)
		}
		w.set(func() { w.slow = 0 })
		b.onlyOn(w, 2*time.Minute, "vm1", "hv2")
	})
}

// What does not start on the new node is started on the old one again.
func TestAMoveWhoseStartFailsGoesBack(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		w.set(func() { w.fail["start hv3"] = fmt.Errorf("no such image") })
		b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
		if a := b.answer(20*time.Second, "vm1", "o1"); a.Done || !strings.Contains(a.Text, "no such image") {
			t.Errorf("the answer is %+v", a)
		}
		b.onlyOn(w, 10*time.Second, "vm1", "hv2")
	})
}

// A second order overtakes a first one that hangs; so does a stop, and a start after it.
func TestASecondOrderOvertakesTheFirst(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		w.set(func() { w.slow = time.Hour })
		b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
		b.eventually(10*time.Second, "the move has begun", func() bool { return b.workload("vm1").Next != nil })
		time.Sleep(time.Second)
		w.set(func() { w.slow = 0 })
		b.order("vm1", "o2", cluster.WorkloadStop, "")
		if a := b.answer(30*time.Second, "vm1", "o2"); !a.Done {
			t.Errorf("the answer to the stop is %+v", a)
		}
		if r := b.workload("vm1"); r.Wanted || r.State != cluster.WorkloadStopped || r.Next != nil || len(w.active("vm1")) != 0 {
			t.Errorf("it is %+v on %v", r, w.active("vm1"))
		}
		b.always(20*time.Second, "it stays stopped", func() bool { return len(w.active("vm1")) == 0 })
		b.order("vm1", "o3", cluster.WorkloadStart, "")
		if a := b.answer(30*time.Second, "vm1", "o3"); !a.Done {
			t.Errorf("the answer to the start is %+v", a)
		}
		b.eventually(10*time.Second, "it runs", func() bool { return len(w.active("vm1")) == 1 && b.workload("vm1").State == cluster.WorkloadRunning })
	})
}

// The primary dies in the middle of a move: the next one ends it, and answers.
func TestTheNextPrimaryEndsAMove(t *testing.T) {
	for _, after := range []time.Duration{100 * time.Millisecond, 600 * time.Millisecond, 1300 * time.Millisecond} {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.movable("vm1", on("hv2"))
				b.onlyOn(w, 30*time.Second, "vm1", "hv2")
				w.set(func() { w.slow = 500 * time.Millisecond })
				b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
				time.Sleep(after)
				b.kill("hv1")
				b.eventually(60*time.Second, "another primary", func() bool { p := b.primary(); return p != "" && p != "hv1" })
				b.answer(60*time.Second, "vm1", "o1")
				b.eventually(30*time.Second, "it runs once", func() bool { return len(w.active("vm1")) == 1 && b.workload("vm1").Next == nil })
			})
		})
	}
}

// The replica is promoted with all keys, also where the old head is elsewhere then.
func TestAReplicatedWorkloadIsPromotedAndMoved(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.order("cache", "o1", cluster.WorkloadPromote, "hv3")
		if a := b.answer(20*time.Second, "cache", "o1"); !a.Done {
			t.Errorf("the answer is %+v", a)
		}
		b.runs(w, "hv3", "hv2")
		w.write("cache", 10)
		b.order("cache", "o2", cluster.WorkloadMove, "hv1")
		if a := b.answer(20*time.Second, "cache", "o2"); !a.Done {
			t.Errorf("the answer is %+v", a)
		}
		b.runs(w, "hv1", "hv2")
		b.eventually(10*time.Second, "hv3 has none", func() bool { return w.state("hv3", "cache") == cluster.CopyMissing })
		if r := b.workload("cache"); !slices.Equal(r.Chain, []cluster.NodeID{"hv1", "hv2"}) || r.Next != nil {
			t.Errorf("its record is %+v", r)
		}
	})
}

// A promotion that fails has the old head serve again; nobody serves without the keys.
func TestAPromotionThatFailsGoesBack(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		w.set(func() { w.fail["promote hv3"] = fmt.Errorf("it refuses") })
		b.order("cache", "o1", cluster.WorkloadPromote, "hv3")
		if a := b.answer(20*time.Second, "cache", "o1"); a.Done || !strings.Contains(a.Text, "it refuses") {
			t.Errorf("the answer is %+v", a)
		}
		if s := w.state("hv2", "cache"); s != cluster.CopyActive {
			t.Errorf("as it is answered the old head is %s", s)
		}
		b.runs(w, "hv2", "hv3")
	})
}

// The last copy goes only with its destruction; what is silent keeps the record.
func TestRemoval(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.order("cache", "o1", cluster.WorkloadRemove, "")
		if a := b.answer(20*time.Second, "cache", "o1"); a.Done || !strings.Contains(a.Text, "--destroy") {
			t.Errorf("without it: %+v", a)
		}
		destroy := func(q *cluster.WorkloadRequest) { q.Destroy = true }
		b.kill("hv3")
		b.order("cache", "o2", cluster.WorkloadRemove, "", destroy)
		if a := b.answer(30*time.Second, "cache", "o2"); a.Done || !strings.Contains(a.Text, "hv3") {
			t.Errorf("with a silent node: %+v", a)
		}
		b.runs(w, "hv2", "")
		b.start("hv3")
		b.runs(w, "hv2", "hv3")
		time.Sleep(5 * time.Second) // its lease is had again
		b.order("cache", "o3", cluster.WorkloadRemove, "", destroy)
		b.eventually(30*time.Second, "the record is gone", func() bool { return b.read(workloadPath("cache")) == "" })
		for n := range w.hosts {
			if s := w.state(n, "cache"); s != cluster.CopyMissing {
				t.Errorf("on %s it is %s", n, s)
			}
		}
	})
}

// everything is a cluster with something of each kind on hv3.
func (b *bubble) everything(w *copyWorld, movable int) {
	b.t.Helper()
	for i := range movable {
		b.movable(fmt.Sprintf("vm%d", i), on("hv3"))
	}
	b.cache(w)
	b.addWorkload(cluster.Workload{Name: "queue", Ephemeral: true, Chain: []cluster.NodeID{"hv3", "hv2"}, Nodes: []cluster.NodeID{"hv2", "hv3"}, Replicas: 1})
	b.eventually(60*time.Second, "all run on hv3", func() bool {
		return runningOn(b, w, "hv3", movable+1) && w.state("hv2", "queue") == cluster.CopyReplica && b.workload("queue").State == cluster.WorkloadRunning
	})
	w.write("queue", 7)
	w.set(func() { w.slow = 200 * time.Millisecond })
}

// A drained node has nothing left; the next primary goes on with it; `ready` brings
// everything back.
func TestADrainMovesEverythingAwayAndBack(t *testing.T) {
	for name, trouble := range map[string]func(*bubble){
		"quiet":          func(*bubble) {},
		"primary moved":  func(b *bubble) { time.Sleep(700 * time.Millisecond); b.wish("hv2") },
		"primary killed": func(b *bubble) { time.Sleep(700 * time.Millisecond); b.kill("hv1") },
	} {
		t.Run(name, func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.everything(w, 8)
				b.addWorkload(cluster.Workload{Name: "index", Ephemeral: true, Chain: []cluster.NodeID{"hv2", "hv3"}, Nodes: []cluster.NodeID{"hv1", "hv2", "hv3"}, Replicas: 1})
				b.eventually(time.Minute, "index has its replica", func() bool {
					return w.state("hv3", "index") == cluster.CopyReplica && b.workload("index").State == cluster.WorkloadRunning
				})
				b.domain("hv3", cluster.DomainFlush)
				trouble(b)
				b.eventually(3*time.Minute, "hv3 has nothing", func() bool { return len(w.held("hv3")) == 0 })
				for i := range 8 {
					b.eventually(time.Minute, "each runs once elsewhere", func() bool {
						r := b.workload(fmt.Sprintf("vm%d", i))
						return len(w.active(r.Name)) == 1 && r.Head() != "hv3" && r.Home == "hv3" && r.State == cluster.WorkloadRunning
					})
				}
				if r := b.workload("queue"); r.Head() != "hv2" || r.Home != "hv3" {
					t.Errorf("queue: %+v", r)
				}
				if away, of := cluster.Drained(b.allWorkloads(), "hv3"); away != 11 || of != 11 {
					t.Errorf("the drain is counted as %d of %d", away, of)
				}
				if name == "primary killed" {
					b.start("hv1")
				}
				b.domain("hv3", cluster.DomainReady)
				b.eventually(3*time.Minute, "all are back", func() bool {
					for i := range 8 {
						if r := b.workload(fmt.Sprintf("vm%d", i)); r.Head() != "hv3" || r.Home != "" || r.State != cluster.WorkloadRunning {
							return false
						}
					}
					if r := b.workload("index"); !slices.Equal(r.Chain, []cluster.NodeID{"hv2", "hv3"}) || len(r.Away) > 0 || w.state("hv3", "index") != cluster.CopyReplica {
						return false
					}
					q, c := b.workload("queue"), b.workload("cache")
					return q.Head() == "hv3" && q.Home == "" && len(q.Members()) == 2 && len(c.Members()) == 2 && len(c.Away) == 0 && w.state("hv3", "queue") == cluster.CopyActive
				})
			})
		})
	}
}

// allWorkloads are the records, as a snapshot has them.
func (b *bubble) allWorkloads() map[string]cluster.Versioned[cluster.Workload] {
	all := map[string]cluster.Versioned[cluster.Workload]{}
	for _, name := range b.store.Children("/agent/workloads") {
		all[name] = cluster.Versioned[cluster.Workload]{Value: b.workload(name), Present: true}
	}
	return all
}

// held are the workloads of which something is on the host.
func (w *copyWorld) held(n cluster.NodeID) (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, c := range w.host(n).copies {
		if c.state != cluster.CopyMissing {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// What cannot be moved is named with the reason, and stays; the rest is moved; and
// `ready` in the middle calls the drain off.
func TestADrainNamesWhatItCannotMove(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv3"} })
		b.movable("vm2", on("hv3"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.onlyOn(w, 30*time.Second, "vm2", "hv3")
		b.domain("hv3", cluster.DomainFlush)
		b.eventually(30*time.Second, "vm2 is elsewhere and vm1 says why not", func() bool {
			r := b.workload("vm1")
			return b.workload("vm2").Head() != "hv3" && r.Head() == "hv3" && strings.Contains(r.Reason, "cannot be moved") && strings.Contains(r.Reason, "hv1") && len(w.active("vm1")) == 1
		})
		writes := len(b.store.History())
		time.Sleep(time.Minute)
		told := 0
		for _, h := range b.store.History()[writes:] {
			if h.Path == workloadPath("vm1") {
				told++
			}
		}
		if told > 0 || len(b.told(cluster.EventDrain)) != 1 {
			t.Errorf("it is written %d times more, and told %d times", told, len(b.told(cluster.EventDrain)))
		}
		b.domain("hv3", cluster.DomainReady)
		b.onlyOn(w, 30*time.Second, "vm2", "hv3")
		b.eventually(time.Minute, "vm1 waits for nothing any more", func() bool { return b.workload("vm1").Reason == "" })
	})
}

const rebalancePath = "/agent/rebalance"

func (b *bubble) rebalance() (r cluster.Rebalance) {
	_ = json.Unmarshal([]byte(b.read(rebalancePath)), &r)
	return r
}

func (b *bubble) setRebalance(r cluster.Rebalance) {
	synctest.Wait()
	r.Version = 1
	raw, err := json.Marshal(r)
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Set(rebalancePath, raw)
}

// A rebalance fills empty places and spreads what runs; its end resets the count.
func TestARebalanceFillsAndSpreads(t *testing.T) {
	for name, trouble := range map[string]func(*bubble){
		"quiet":          func(*bubble) {},
		"primary killed": func(b *bubble) { time.Sleep(500 * time.Millisecond); b.kill("hv1") },
	} {
		t.Run(name, func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 3, Count: 2, Nodes: []cluster.NodeID{"hv3"}})
				for i := range 6 {
					b.movable(fmt.Sprintf("vm%d", i), on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
				}
				b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: []cluster.NodeID{"hv2", ""}, Nodes: []cluster.NodeID{"hv2", "hv3"}, Replicas: 1})
				b.runs(w, "hv2", "")
				w.write("cache", 100)
				b.eventually(60*time.Second, "all run", func() bool { return runningOn(b, w, "hv2", 7) })
				w.set(func() { w.slow = 200 * time.Millisecond })
				b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
				trouble(b)
				b.eventually(3*time.Minute, "it is done", func() bool { return b.rebalance().State == cluster.RebalanceDone })
				if r := b.rebalance(); r.Total != 4 || r.Done != r.Total {
					t.Errorf("it says %+v", r)
				}
				if s := b.reprovision(); s.Count != 0 || len(s.Nodes) != 0 {
					t.Errorf("the count is %+v", s)
				}
				if c := b.workload("cache"); !slices.Equal(c.Chain, []cluster.NodeID{"hv2", "hv3"}) || w.state("hv3", "cache") != cluster.CopyReplica {
					t.Errorf("cache is %v", c.Chain)
				}
				if n := len(w.held("hv3")); n != 4 {
					t.Errorf("hv3 has %v", w.held("hv3"))
				}
			})
		})
	}
}

// A rebalance that is stopped, or finds an empty head, keeps the count (S124, P3).
func TestARebalanceThatDoesNotEndKeepsTheCount(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 3, Count: 2})
		for i := range 6 {
			b.movable(fmt.Sprintf("vm%d", i), on("hv2"))
		}
		b.eventually(60*time.Second, "all run", func() bool { return runningOn(b, w, "hv2", 6) })
		w.set(func() { w.slow = time.Second })
		b.setRebalance(cluster.Rebalance{ID: "r1", State: cluster.RebalanceOrdered})
		b.eventually(20*time.Second, "it runs", func() bool { return b.rebalance().State == cluster.RebalanceRunning })
		r := b.rebalance()
		r.Stop = true
		b.setRebalance(r)
		b.eventually(20*time.Second, "it is stopped", func() bool { return b.rebalance().State == cluster.RebalanceStopped })
		if s := b.reprovision(); s.Count != 2 {
			t.Errorf("the count is %+v", s)
		}
		b.eventually(time.Minute, "nothing is under way", func() bool {
			for i := range 6 {
				if r := b.workload(fmt.Sprintf("vm%d", i)); r.Next != nil || len(w.active(r.Name)) != 1 {
					return false
				}
			}
			return true
		})
	})
}

// Where the head does not serve, an operator's word makes another one: of several
// that are active, of one that came back empty while reprovision is spent. An empty
// copy is never made the head while another has one.
func TestAnOperatorChoosesTheHead(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.setReprovision(cluster.ReprovisionSettings{Version: 1, MaxNodes: 1}) // off
		b.cache(w)
		w.set(func() {
			w.host("hv2").copies["cache"] = &worldCopy{state: cluster.CopyMissing, start: 2}
			w.fail["promote hv2"] = fmt.Errorf("it does not come up")
		})
		time.Sleep(6 * time.Second)
		b.order("cache", "o1", cluster.WorkloadPromote, "hv1")
		if a := b.answer(20*time.Second, "cache", "o1"); a.Done || !strings.Contains(a.Text, "hv3") {
			t.Errorf("an empty copy: %+v", a)
		}
		b.order("cache", "o2", cluster.WorkloadPromote, "hv3")
		if a := b.answer(20*time.Second, "cache", "o2"); !a.Done {
			t.Errorf("the one that has all: %+v", a)
		}
		w.set(func() { delete(w.fail, "promote hv2") })
		b.runs(w, "hv3", "")
		if w.keys("hv3", "cache") != 1000 {
			t.Errorf("it serves %d keys", w.keys("hv3", "cache"))
		}
	})
}

// keys is how many keys a copy has.
func (w *copyWorld) keys(n cluster.NodeID, name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.host(n).copies[name]; c != nil {
		return c.keys
	}
	return 0
}
