package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// passBench is the primary's loop over workloads on hv1, over an in-memory
// ZooKeeper, with whatever copies the test has.
type passBench struct {
	*memberBench
	w    *workloadWatch
	m    *activity.Manager
	snap *cluster.Snapshot
	mu   sync.Mutex
	asks int
	// query is called with each question.
	query func(ctx context.Context)
	// states is what nodes have; active where it has none.
	states map[cluster.NodeID]cluster.CopyState
	orders []string // with the version of the record that they rest on
	fails  error    // of each order
	hints  chan cluster.CopyChange
}

// Query implements copyAsker.
func (b *passBench) Query(ctx context.Context, ask map[cluster.NodeID][]cluster.Workload) (map[string]map[cluster.NodeID]cluster.CopyReport, map[cluster.NodeID]string) {
	b.mu.Lock()
	b.asks++
	query := b.query
	b.mu.Unlock()
	if query != nil {
		query(ctx)
	}
	reports := map[string]map[cluster.NodeID]cluster.CopyReport{}
	for n, list := range ask {
		for _, w := range list {
			if reports[w.Name] == nil {
				reports[w.Name] = map[cluster.NodeID]cluster.CopyReport{}
			}
			state := cluster.CopyActive
			b.set(func() {
				if s, has := b.states[n]; has {
					state = s
				}
			})
			reports[w.Name][n] = cluster.CopyReport{Workload: w.Name, ID: w.ID, Node: n, State: state}
		}
	}
	return reports, nil
}

// Order implements copyAsker.
func (b *passBench) Order(_ context.Context, t cluster.Token, n cluster.NodeID, o cluster.CopyOrder) (cluster.CopyReport, error) {
	b.set(func() {
		b.orders = append(b.orders, fmt.Sprintf("%s %s expecting %v on version %d", o.Op, n, o.Expect, o.Seen))
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	return cluster.CopyReport{State: cluster.CopyPending}, errors.Join(b.fails, t.Check())
}

// Hints implements copyAsker.
func (b *passBench) Hints() <-chan cluster.CopyChange { return b.hints }

func (b *passBench) latest() *cluster.Snapshot {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.snap
}

// set changes something under the lock.
func (b *passBench) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

// withPasses runs a test in which hv1 is primary, and has a workload on itself.
func withPasses(t *testing.T, tune func(*passBench), run func(t *testing.T, b *passBench)) {
	t.Parallel()
	withMembers(t, func(t *testing.T, members *memberBench) {
		b := &passBench{memberBench: members, hints: make(chan cluster.CopyChange, 8)}
		ctx, cancel := context.WithCancel(members.ctx)
		var owned sync.WaitGroup
		defer owned.Wait()
		defer cancel()
		snapshots, end := b.store.Subscribe()
		defer end()
		b.snap = <-snapshots
		owned.Go(func() {
			for {
				select {
				case snap := <-snapshots:
					b.set(func() { b.snap = snap })
				case <-ctx.Done():
					return
				}
			}
		})
		b.m = activity.New(activity.Config{Self: "hv1", Clock: b.clock})
		both := []cluster.NodeID{"hv1", "hv2"}
		b.m.Update(activity.Holdings{Leader: true, Lease: cluster.NodeLeaseID{Holder: "hv1", Start: "s", Epoch: 5}, Held: both, Set: both})
		c := Config{Node: "hv1", Incarnation: "boot-hv1.1", Timing: cluster.ProfileLAN(), WallMS: func() int64 { return time.Now().UnixMilli() }}
		d := Deps{Clock: b.clock, Log: zap.NewNop(), Store: b.store}
		b.w = newWorkloadWatch(c, d, func() Status { return Status{Snapshot: b.latest()} }, b.m, b)
		b.addCache()
		if tune != nil {
			tune(b)
		}
		owned.Go(func() { b.w.run(ctx) })
		b.w.leads.Store(&leadTerm{5})
		poke(b.w.pokes)
		run(t, b)
	})
}

func (b *passBench) addCache() {
	w := cluster.Workload{Version: 1, Name: "cache", ID: "c1", Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Wanted: true,
		Nodes: []cluster.NodeID{"hv1"}, Chain: []cluster.NodeID{"hv1"}, State: cluster.WorkloadRunning}
	b.commit(cluster.Create(cluster.Key{Kind: cluster.KeyWorkload, Name: "cache"}, w))
}

// ask writes an operator's request for a pass.
func (b *passBench) ask(id string) {
	w := b.record()
	w.Request = &cluster.WorkloadRequest{ID: id, Op: cluster.WorkloadProbe}
	b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyWorkload, Name: "cache"}, cluster.AnyVersion, w))
}

func (b *passBench) record() cluster.Workload {
	var w cluster.Workload
	raw, _ := b.server.Get("/agent/workloads/cache")
	_ = json.Unmarshal(raw, &w)
	return w
}

// answers are those that the record has had for this request.
func (b *passBench) answers(id string) (texts []string) {
	last := ""
	for _, h := range b.server.History() {
		var w cluster.Workload
		if h.Path != "/agent/workloads/cache" || json.Unmarshal(h.Data, &w) != nil || w.Answer == nil || w.Answer.ID != id {
			continue
		}
		if text := fmt.Sprint(w.Answer.Done, " ", w.Answer.Text); text != last {
			texts, last = append(texts, text), text
		}
	}
	return texts
}

// within waits on virtual time until the condition holds.
func (b *passBench) within(limit time.Duration, what string, holds func() bool) {
	b.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	b.t.Fatalf("not within %v: %s; the record is %+v", limit, what, b.record())
}

func (b *passBench) asked() int { b.mu.Lock(); defer b.mu.Unlock(); return b.asks }

// hang has each question hang until its context ends.
func hang(ctx context.Context) { <-ctx.Done() }

// Whatever else is asked of the primary ends a pass at once, and whoever waits for
// that is told so once; the pass comes again by itself (S109).
func TestAnotherRequestInterruptsAPassOnce(t *testing.T) {
	withPasses(t, nil, func(t *testing.T, b *passBench) {
		b.within(10*time.Second, "a first pass", func() bool { return b.asked() >= 2 })
		time.Sleep(2 * time.Second)
		b.set(func() { b.query = hang })
		before := b.asked()
		b.ask("p1")
		b.within(time.Second, "a pass asks", func() bool { return b.asked() > before })
		b.commit(cluster.Create(cluster.Key{Kind: cluster.KeyReprovision}, cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 1, Count: 1, Reset: "r1"}))
		b.within(500*time.Millisecond, "the reset is carried out", func() bool { return b.latest().Reprovision.Value.Done == "r1" })
		b.within(time.Second, "whoever waits is told", func() bool { return len(b.answers("p1")) > 0 })
		b.set(func() { b.query = nil })
		b.ask("p2")
		b.within(12*time.Second, "the next pass answers", func() bool { return len(b.answers("p2")) > 0 })
		if p1 := b.answers("p1"); len(p1) != 1 || !strings.HasPrefix(p1[0], "false interrupted: ") {
			t.Errorf("it was told %q", p1)
		}
		if p2 := b.answers("p2"); len(p2) != 1 || !strings.HasPrefix(p2[0], "true ") {
			t.Errorf("the next one was told %q", p2)
		}
	})
}

// A request that comes during a pass does not end it, and is answered by a later
// one (S110).
func TestARequestForAPassWaitsForALaterOne(t *testing.T) {
	withPasses(t, nil, func(t *testing.T, b *passBench) {
		b.within(10*time.Second, "a first pass", func() bool { return b.asked() >= 2 })
		time.Sleep(2 * time.Second)
		ended := 0
		b.set(func() {
			b.query = func(ctx context.Context) {
				select {
				case <-time.After(3 * time.Second):
				case <-ctx.Done():
					b.set(func() { ended++ })
				}
			}
		})
		before := b.asked()
		b.w.again()
		b.within(time.Second, "a pass asks", func() bool { return b.asked() > before })
		b.ask("p1")
		time.Sleep(2 * time.Second)
		if a := b.answers("p1"); len(a) > 0 {
			t.Errorf("it was answered by the pass before: %q", a)
		}
		b.within(10*time.Second, "it is answered", func() bool { return len(b.answers("p1")) > 0 })
		b.mu.Lock()
		defer b.mu.Unlock()
		if ended > 0 {
			t.Error("the pass was ended")
		}
	})
}

// A pass that crashes: whoever waits for it is told, once, and the next passes do
// what there is to do (S113).
func TestAPassThatCrashesIsToldAndComesAgain(t *testing.T) {
	withPasses(t, nil, func(t *testing.T, b *passBench) {
		b.within(10*time.Second, "a first pass", func() bool { return b.asked() >= 2 })
		time.Sleep(2 * time.Second)
		b.set(func() { b.query = func(context.Context) { panic("in the middle of a pass") } })
		b.ask("p1")
		b.within(2*time.Second, "whoever waits is told", func() bool { return len(b.answers("p1")) > 0 })
		b.set(func() { b.query = nil })
		b.ask("p2")
		b.within(12*time.Second, "the next pass answers", func() bool { return len(b.answers("p2")) > 0 })
		if p1 := b.answers("p1"); len(p1) != 1 || !strings.HasPrefix(p1[0], "false janitor_failed: ") {
			t.Errorf("it was told %q", p1)
		}
	})
}

// The role ends while a pass hangs: it is gone at once, and an earlier primary's
// write is refused by the record of the role (I2).
func TestNoPassOutlivesTheRole(t *testing.T) {
	withPasses(t, func(b *passBench) { b.query = hang }, func(t *testing.T, b *passBench) {
		b.within(10*time.Second, "a pass asks", func() bool { return b.asked() > 0 && len(b.m.List()) > 0 })
		b.w.leads.Store(&leadTerm{})
		poke(b.w.pokes)
		b.within(200*time.Millisecond, "nothing of it is left", func() bool { return len(b.m.List()) == 0 })
		lease := b.latest().Lease.Value
		lease.Epoch = 6
		b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyLease}, cluster.AnyVersion, lease))
		res := writeUnderRole(b.ctx, b.w.c, b.w.d, b.latest(), 5, func() error { return nil }, "test", []cluster.Op{
			cluster.Set(cluster.Key{Kind: cluster.KeyWorkload, Name: "cache"}, cluster.AnyVersion, b.record())})
		if res.Outcome != cluster.OutcomeNotSent || !errors.Is(res.Err, errNotPrimary) {
			t.Errorf("a write of the earlier epoch: %s, %v", res.Outcome, res.Err)
		}
	})
}

// A planned switch away from this node ends a pass when it begins.
func TestASwitchEndsAPassAtOnce(t *testing.T) {
	withPasses(t, func(b *passBench) { b.query = hang }, func(t *testing.T, b *passBench) {
		b.within(10*time.Second, "a pass asks", func() bool { return b.asked() > 0 && len(b.m.List()) > 0 })
		b.commit(cluster.Create(cluster.Key{Kind: cluster.KeyTransition}, cluster.Transition{Version: 1, ID: "t1", Epoch: 5, From: "hv1", To: "hv2", State: cluster.TransitionRunning, Phase: "A"}))
		b.within(200*time.Millisecond, "nothing of it is left", func() bool { return len(b.m.List()) == 0 })
	})
}

// What is planned on a record that is another one by then is not done: neither
// written over what was changed (J11), nor ordered.
func TestAPlanOnAnOlderRecordIsNotCarriedOut(t *testing.T) {
	for name, c := range map[string]struct {
		states map[cluster.NodeID]cluster.CopyState
		orders string
	}{
		// hv1 is to be promoted; meanwhile its chain becomes [hv2, hv1].
		"order": {map[cluster.NodeID]cluster.CopyState{"hv1": cluster.CopyPending, "hv2": cluster.CopyPending}, "promote hv2 expecting &{pending }"},
		// hv2 alone is active, so that the chain follows it; meanwhile somebody edits.
		"write": {map[cluster.NodeID]cluster.CopyState{"hv1": cluster.CopyPending, "hv2": cluster.CopyActive}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			withPasses(t, nil, func(t *testing.T, b *passBench) {
				b.within(10*time.Second, "a first pass", func() bool { return b.asked() >= 2 })
				time.Sleep(2 * time.Second)
				w := b.record()
				w.Chain, w.Nodes = []cluster.NodeID{"hv1", "hv2"}, []cluster.NodeID{"hv1", "hv2"}
				w.State = cluster.WorkloadStarting // so that its apply is all that is planned
				if name == "order" {
					b.set(func() { b.states = c.states })
				}
				b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyWorkload, Name: "cache"}, cluster.AnyVersion, w))
				b.within(time.Second, "the record is seen", func() bool { return len(b.latest().Workloads["cache"].Value.Chain) == 2 })
				time.Sleep(2 * workloadEvery) // passes have said of it what there is to say
				changed := false
				b.set(func() {
					b.states, b.orders = c.states, nil
					b.query = func(context.Context) {
						if changed {
							return
						}
						now := b.record()
						if changed, now.Priority = true, 7; name == "order" {
							now.Chain = []cluster.NodeID{"hv2", "hv1"}
						}
						b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyWorkload, Name: "cache"}, cluster.AnyVersion, now))
					}
				})
				b.w.again()
				b.within(10*time.Second, "orders on the newer record", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.orders) > 0 })
				time.Sleep(time.Second)
				if now := b.record(); now.Priority != 7 || now.Head() != "hv2" {
					t.Errorf("the record is %+v", now)
				}
				b.mu.Lock()
				defer b.mu.Unlock()
				if !strings.Contains(b.orders[0], c.orders) {
					t.Errorf("the orders are %v", b.orders)
				}
			})
		})
	}
}

// countingClock counts how often it is asked.
type countingClock struct {
	cluster.Clock
	asked atomic.Int64
}

func (c *countingClock) Now() cluster.Instant {
	c.asked.Add(1)
	return c.Clock.Now()
}

// Whoever does not lead only keeps the newest snapshot: each keepalive of each node
// comes by here.
func TestWhoDoesNotLeadTakesNoLookAtWorkloadsForASnapshot(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		ctx, cancel := context.WithCancel(b.ctx)
		defer cancel()
		clock := &countingClock{Clock: b.clock}
		c := Config{Node: "hv1", Incarnation: "boot-hv1.1", Timing: cluster.ProfileLAN(), WallMS: func() int64 { return time.Now().UnixMilli() }}
		w := newWorkloadWatch(c, Deps{Clock: clock, Log: zap.NewNop(), Store: b.store}, func() Status { return Status{Snapshot: &cluster.Snapshot{}} },
			activity.New(activity.Config{Self: "hv1", Clock: b.clock}), &passBench{memberBench: b})
		var owned sync.WaitGroup
		defer owned.Wait()
		defer cancel()
		owned.Go(func() { w.run(ctx) })
		looks := func() int64 {
			seen, before := w.seen.Load(), clock.asked.Load()
			for i := range 20 {
				b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyMaintenance}, cluster.AnyVersion, i%2 == 0))
				time.Sleep(2 * workloadStep)
			}
			if w.seen.Load() == seen {
				t.Error("no snapshot was taken")
			}
			return clock.asked.Load() - before
		}
		if n := looks(); n > 2 { // its own timer's
			t.Errorf("%d times it asked what time it is, for 20 snapshots", n)
		}
		w.leads.Store(&leadTerm{5})
		poke(w.pokes)
		if n := looks(); n < 20 {
			t.Errorf("as leader it looked %d times at 20 snapshots", n)
		}
	})
}
