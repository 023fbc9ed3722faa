package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

func TestWhatStandsAgainstAnOrder(t *testing.T) {
	good := func(action string) orderCase {
		return orderCase{
			order: cluster.Versioned[cluster.FenceOrder]{Present: true, Value: cluster.FenceOrder{
				ID: "o", Node: "hv3", Incarnation: "boot.1", Action: action, By: "ann", Reason: "it hangs",
			}},
			node: "hv3", self: "hv1", registered: true, incarnation: "boot.1", liveness: cluster.LiveDead, age: 7 * time.Second, total: 3, fences: true,
		}
	}
	fence, confirm, cancel, test := cluster.OrderFence, cluster.OrderConfirm, cluster.OrderCancel, cluster.OrderTest
	for _, c := range []struct {
		name   string
		action string
		edit   func(*orderCase)
		code   cluster.RefusalCode
		words  string // of the refusal, or of what is waited for
		waits  bool
	}{
		{"a dead node", fence, nil, "", "", false},
		{"a living node", fence, func(c *orderCase) { c.liveness = cluster.LiveUp }, "", "", false},
		{"while blind", fence, func(c *orderCase) { c.blind = "session young" }, "", "session young", true}, // who else is down is not known (I6)
		{"blind for long", fence, func(c *orderCase) { c.blind, c.waited = "session young", orderPatience }, cluster.RefuseObserverBlind, "session young", false},
		{"a node stopped in order", fence, func(c *orderCase) { c.stopped = true }, cluster.RefuseNotSuspectEnough, "stopped in order", false},
		{"oneself", fence, func(c *orderCase) { c.self = "hv3" }, cluster.RefuseOneself, "switch the role", false},
		{"a start of long ago", fence, func(c *orderCase) { c.incarnation = "boot.2" }, cluster.RefuseIncarnation, "boot.2", false},
		{"no start", fence, func(c *orderCase) { c.order.Value.Incarnation, c.incarnation = "", "" }, cluster.RefuseIncarnation, "", false},
		{"a node that never registered", fence, func(c *orderCase) { c.registered = false }, cluster.RefuseIncarnation, "", false},
		{"a record that is being read", fence, func(c *orderCase) { c.unread, c.registered, c.incarnation = true, false, "" }, "", "being read", true},
		{"a record never read", fence, func(c *orderCase) { c.unread, c.registered, c.waited = true, false, orderPatience }, cluster.RefuseIncarnation, "", false},
		{"in maintenance", fence, func(c *orderCase) { c.maintenance = true }, cluster.RefuseMaintenance, "end it first", false},
		{"half of four", fence, func(c *orderCase) { c.total, c.down = 4, 1 }, cluster.RefuseTooMany, "2 of 4", false},
		{"two of five", fence, func(c *orderCase) { c.total, c.down = 5, 1 }, "", "", false},
		{"one of two", fence, func(c *orderCase) { c.total = 2 }, cluster.RefuseTooMany, "1 of 2", false},
		{"no fencer", fence, func(c *orderCase) { c.fences = false }, cluster.RefuseDisabled, "fences nobody", false},
		{"lies elsewhere", fence, func(c *orderCase) { c.order.Value.Node = "hv2" }, cluster.RefuseOrder, "hv2", false},
		{"cannot be read", fence, func(c *orderCase) {
			c.order = cluster.Versioned[cluster.FenceOrder]{Present: true, Err: errors.New("rubbish")}
		}, cluster.RefuseOrder, "rubbish", false},
		{"what is that", "tickle", nil, cluster.RefuseOrder, "tickle", false},
		{"tried for long", fence, func(c *orderCase) { c.waited, c.trouble = orderPatience, "the lock is held" }, cluster.RefuseOverdue, "the lock is held", false},
		{"tried for a while", fence, func(c *orderCase) { c.waited, c.trouble = orderPatience-1, "the lock is held" }, "", "", false},

		{"a dead node", confirm, nil, "", "", false},
		{"a suspect node", confirm, func(c *orderCase) { c.liveness = cluster.LiveSuspect }, "", "", false},
		{"in maintenance", confirm, func(c *orderCase) { c.maintenance = true }, "", "", false},
		{"half and more", confirm, func(c *orderCase) { c.down = 2 }, "", "", false},
		{"a living node", confirm, func(c *orderCase) { c.liveness, c.age = cluster.LiveUp, 400*time.Millisecond }, cluster.RefuseNotSuspectEnough, "400ms old", false},
		{"a stopped node that the lease waits for", confirm, func(c *orderCase) { c.liveness, c.stopped, c.owed = cluster.LiveUp, true, true }, "", "", false},
		{"such a node that answers", confirm, func(c *orderCase) { c.liveness, c.stopped, c.owed = cluster.LiveIsolated, true, true }, cluster.RefuseNotSuspectEnough, "it has power", false},
		{"a late node", confirm, func(c *orderCase) { c.liveness = cluster.LiveLate }, cluster.RefuseNotSuspectEnough, "7s old", false},
		{"a node that answers", confirm, func(c *orderCase) { c.liveness = cluster.LiveIsolated }, cluster.RefuseNotSuspectEnough, "it has power", false},
		{"a node not judged yet", confirm, func(c *orderCase) { c.liveness = 0 }, cluster.RefuseNotSuspectEnough, "", false},
		{"while blind", confirm, func(c *orderCase) { c.blind = "session young" }, "", "session young", true},
		{"blind for long", confirm, func(c *orderCase) { c.blind, c.waited = "session young", orderPatience }, cluster.RefuseObserverBlind, "session young", false},
		{"oneself", confirm, func(c *orderCase) { c.self = "hv3" }, cluster.RefuseOneself, "", false},
		{"a start of long ago", confirm, func(c *orderCase) { c.incarnation = "boot.2" }, cluster.RefuseIncarnation, "", false},

		{"a living node", cancel, func(c *orderCase) { c.liveness = cluster.LiveUp }, "", "", false},
		{"in maintenance", cancel, func(c *orderCase) { c.maintenance = true }, "", "", false},
		{"anything", test, func(c *orderCase) { *c = orderCase{order: c.order, node: "hv3", self: "hv3", maintenance: true} }, "", "", false},
	} {
		x := good(c.action)
		if c.edit != nil {
			c.edit(&x)
		}
		refusal, wait := x.judge()
		if refusal.Code != c.code || (wait != "") != c.waits || !strings.Contains(refusal.Detail+wait, c.words) {
			t.Errorf("%s, %s: %+v, waits %q", c.action, c.name, refusal, wait)
		}
		if refusal.Code != "" && (refusal.Node != "hv3" || !strings.HasPrefix(refusal.Detail, "node hv3: ")) {
			t.Errorf("%s, %s: which node? %+v", c.action, c.name, refusal)
		}
	}
}

// servedOrders stands in for the fencing package.
type servedOrders struct {
	mu      sync.Mutex
	did     []string
	answer  func(o cluster.Versioned[cluster.FenceOrder]) (cluster.FenceRecord, *cluster.Refusal, error)
	ripe    cluster.NodeID
	try     bool              // all that it is ripe for is an order's try
	faults  map[string]string // by device; empty: ready
	blocked chan struct{}     // closed once a call that waited for its context has ended
}

func (s *servedOrders) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.did = append(s.did, fmt.Sprintf(format, args...))
}

func (s *servedOrders) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.did, ", ")
}

func (s *servedOrders) Fence(context.Context, cluster.Token, cluster.Action) (cluster.FenceRecord, *cluster.Refusal, error) {
	return cluster.FenceRecord{}, nil, nil
}

func (s *servedOrders) Resume(context.Context, cluster.Token, cluster.NodeID) (cluster.FenceRecord, *cluster.Refusal, error) {
	return cluster.FenceRecord{}, nil, nil
}

func (s *servedOrders) Due(cluster.Versioned[cluster.FenceRecord], cluster.Instant) bool {
	return false
}

func (s *servedOrders) Order(ctx context.Context, _ cluster.Token, o cluster.Versioned[cluster.FenceOrder], keepalive int64) (cluster.FenceRecord, *cluster.Refusal, error) {
	s.note("%s %s", o.Value.Action, o.Value.Node)
	if s.blocked != nil {
		<-ctx.Done()
		close(s.blocked)
		return cluster.FenceRecord{}, nil, context.Cause(ctx)
	}
	return s.answer(o)
}

func (s *servedOrders) Ripe(v cluster.NodeView, _ cluster.Instant) (ripe, try bool) {
	ripe = v.Name == s.ripe
	return ripe, ripe && s.try
}

func (s *servedOrders) Settle(_ context.Context, _ cluster.Token, n cluster.NodeID, try bool) (cluster.FenceRecord, *cluster.Refusal, error) {
	if s.note("settle %s", n); try != s.try {
		s.note("try %v", try)
	}
	return cluster.FenceRecord{}, nil, nil
}

func (s *servedOrders) TestDevices(_ context.Context, nodes ...cluster.NodeID) []cluster.DeviceReport {
	var reports []cluster.DeviceReport
	for _, n := range nodes {
		s.note("test %s", n)
		if n == "hv2" { // nothing is configured for it
			continue
		}
		s.mu.Lock()
		fault := s.faults[string(n)+"-bmc"]
		s.mu.Unlock()
		report := cluster.DeviceReport{Node: n, Device: string(n) + "-bmc", Type: "ipmi", Fault: fault, Power: "on"}
		if fault != "" {
			report.Detail = fault + ". Check the address"
		}
		reports = append(reports, report)
	}
	return reports
}

// orderBench is the orders' part of one primary, hv1, over an in-memory ZooKeeper.
type orderBench struct {
	*fenceOrders
	t        *testing.T
	ctx      context.Context
	server   *zktest.Server
	store    *zkhandler.Handler
	served   *servedOrders
	liveness map[cluster.NodeID]cluster.Liveness
	promised bool // that no fence is claimed
	logged   *observer.ObservedLogs
}

type benchClock struct{ base time.Time }

func (c benchClock) Now() cluster.Instant {
	return cluster.Instant(time.Hour) + cluster.Instant(time.Since(c.base))
}

func withOrders(t *testing.T, run func(t *testing.T, b *orderBench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &orderBench{t: t, server: zktest.New(zktest.Options{}), served: &servedOrders{faults: map[string]string{}}, liveness: map[cluster.NodeID]cluster.Liveness{}}
		defer b.server.Close()
		ctx, cancel := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		defer wait.Wait()
		defer cancel()
		b.ctx = ctx
		clock := benchClock{time.Now()}
		var err error
		b.store, err = zkhandler.New(zkhandler.Config{Servers: b.server.Servers(), SessionTimeout: 6 * time.Second, WatchNodes: true, Dial: b.server.Dialer("hv1")}, clock, zap.NewNop(), nil)
		if err != nil {
			t.Fatal(err)
		}
		wait.Go(func() { _ = b.store.Run(ctx) })
		for b.store.State().Phase != zkhandler.Live {
			time.Sleep(10 * time.Millisecond)
		}
		b.plant()
		c := Config{Node: "hv1", Incarnation: "boot-hv1.1", WallMS: func() int64 { return 1 }}
		core, logged := observer.New(zapcore.InfoLevel)
		b.logged = logged
		d := Deps{Clock: clock, Log: zap.New(core), Store: b.store, Fencer: b.served}
		b.fenceOrders = newFenceOrders(c, d, func(n cluster.NodeID) cluster.Liveness { return b.liveness[n] }, func() string { return "" }, b.oneFence)
		defer b.wait()
		b.served.answer = b.carriedOut
		run(t, b)
	})
}

// oneFence is the node watch's place for one fence.
func (b *orderBench) oneFence(n cluster.NodeID, first, power bool, work fenceWork) (cluster.Refusal, bool) {
	if first && b.promised {
		return cluster.Refusal{Code: cluster.RefusePromiseStanding, Node: n, Detail: "a promise stands"}, false
	}
	return cluster.Refusal{}, b.begin(func(ctx context.Context) { _, _, _ = work(ctx, cluster.Token{}) })
}

func (b *orderBench) plant() {
	if err := b.store.Initialize(b.ctx, "test", false); err != nil {
		b.t.Fatal(err)
	}
	for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
		if err := b.store.EnsureNode(b.ctx, n, cluster.Coordinator); err != nil {
			b.t.Fatal(err)
		}
		b.commit(cluster.Create(cluster.Key{Kind: cluster.KeyNodeRecord, Node: n}, cluster.NodeRecord{ID: string(n), Incarnation: cluster.Incarnation("boot-" + n + ".1")}))
	}
	b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyLease}, cluster.AnyVersion, cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "boot-hv1.1", Epoch: 5, TTLMillis: 2800}))
	b.seen("the nodes' records", func(s *cluster.Snapshot) bool {
		return s.Nodes["hv1"].Record.Present && s.Nodes["hv2"].Record.Present && s.Nodes["hv3"].Record.Present
	})
}

// An order may be seen before what it is judged by, such as the other nodes'
// records: it is not refused for that.
func TestAnOrderSeenBeforeTheNodesIsNotRefused(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.give("hv3", cluster.OrderFence)
		snap, err := b.store.Refresh(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		early := *snap
		early.Nodes = maps.Clone(snap.Nodes)
		delete(early.Nodes, "hv2")
		b.look(b.ctx, true, &early, b.d.Clock.Now()) // one of two would be down
		synctest.Wait()
		b.looksUntil("the order has been answered", func() bool { return !b.stands("hv3") })
		if b.served.all() != "fence hv3" || b.stands("hv3") || len(b.told(cluster.EventOrderRefused)) != 0 {
			t.Errorf("did %q, the order stands: %v, refusals %v", b.served.all(), b.stands("hv3"), b.told(cluster.EventOrderRefused))
		}
	})
}

func (b *orderBench) commit(ops ...cluster.Op) {
	b.t.Helper()
	if r := b.store.Commit(b.ctx, cluster.Txn{Purpose: "test", Ops: ops}); r.Outcome != cluster.OutcomeOK {
		b.t.Fatalf("%v: %s, %v", ops, r.Outcome, r.Err)
	}
}

func orderKey(n cluster.NodeID) cluster.Key { return cluster.Key{Kind: cluster.KeyFenceOrder, Node: n} }

func (b *orderBench) give(n cluster.NodeID, action string) {
	b.commit(cluster.Create(orderKey(n), cluster.FenceOrder{
		Version: 1, ID: "o-" + action, Node: n, Incarnation: cluster.Incarnation("boot-" + n + ".1"), Action: action, By: "ann", Reason: "it hangs",
	}))
	b.seen("the order", func(s *cluster.Snapshot) bool { return s.Nodes[n].Order.Present })
}

// seen waits until the mirror shows what was written: records beside the role's
// arrive when their watch has fired.
func (b *orderBench) seen(what string, there func(*cluster.Snapshot) bool) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		snap, err := b.store.Refresh(b.ctx)
		if err != nil {
			b.t.Fatal(err)
		}
		if there(snap) {
			return
		}
	}
	b.t.Fatalf("%s is never seen", what)
}

// carriedOut does what the fencer does with an order: it goes with its effect.
func (b *orderBench) carriedOut(o cluster.Versioned[cluster.FenceOrder]) (cluster.FenceRecord, *cluster.Refusal, error) {
	b.commit(cluster.EndOrder(o.Value.Node, o))
	return cluster.FenceRecord{ID: "f", Stage: cluster.FenceDone}, nil, nil
}

// looks steps for a while as the node watch does.
func (b *orderBench) looks(primary bool, span time.Duration) {
	b.t.Helper()
	for end := time.Now().Add(span); time.Now().Before(end); {
		b.looksOnce(primary)
	}
	synctest.Wait()
}

func (b *orderBench) looksOnce(primary bool) {
	b.t.Helper()
	snap, err := b.store.Refresh(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	b.look(b.ctx, primary, snap, b.d.Clock.Now())
	time.Sleep(250 * time.Millisecond)
}

// looksUntil steps as the primary does until what is waited for is so. A look
// may meet a mirror in which what was written is not seen yet: how many looks it
// takes is nobody's promise.
func (b *orderBench) looksUntil(what string, is func() bool) {
	b.t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); {
		if time.Now().After(end) {
			b.t.Fatalf("never so: %s; did %q", what, b.served.all())
		}
		b.looksOnce(true)
	}
	synctest.Wait()
}

func (b *orderBench) stands(n cluster.NodeID) bool {
	raw, _ := b.server.Get("/agent/fence-orders/" + string(n))
	return len(raw) > 0
}

// told are the history's entries of a kind.
func (b *orderBench) told(kind string) []cluster.Event {
	events, err := b.store.ReadHistory(b.ctx, -1)
	if err != nil {
		b.t.Fatal(err)
	}
	return slices.DeleteFunc(events, func(e cluster.Event) bool { return e.Kind != kind })
}

func TestThePrimaryCarriesOrdersOut(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.give("hv3", cluster.OrderFence)
		b.looks(false, 5*time.Second)
		if b.served.all() != "" || !b.stands("hv3") {
			t.Fatalf("somebody who is not primary did: %s", b.served.all())
		}
		b.looksUntil("the order has been answered", func() bool { return !b.stands("hv3") })
		b.looks(true, 2*orderRetry) // it is not carried out again
		if b.served.all() != "fence hv3" || b.stands("hv3") || len(b.told(cluster.EventOrderRefused)) != 0 {
			t.Errorf("did %q, the order stands: %v", b.served.all(), b.stands("hv3"))
		}
	})
}

// A refusal is told with the order's end, once, and nothing is done.
func TestARefusedOrderIsAnswered(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.give("hv1", cluster.OrderFence)   // the agent's own judgement
		b.give("hv3", cluster.OrderConfirm) // which is up
		b.give("hv2", cluster.OrderCancel)  // the fencer's
		b.liveness["hv3"] = cluster.LiveUp
		b.served.answer = func(o cluster.Versioned[cluster.FenceOrder]) (cluster.FenceRecord, *cluster.Refusal, error) {
			return cluster.FenceRecord{}, &cluster.Refusal{Code: cluster.RefuseNoFence, Node: o.Value.Node, Detail: "no fence"}, nil
		}
		b.looksUntil("all three have been answered", func() bool { return !b.stands("hv1") && !b.stands("hv2") && !b.stands("hv3") })
		b.looks(true, 2*orderRetry) // none is answered again
		got := map[string]string{}
		for _, e := range b.told(cluster.EventOrderRefused) {
			got[e.Fields["node"]] += e.Fields["order"] + " " + e.Fields["code"] + " by " + e.Fields["by"]
			if e.Text == "" || e.Fields["detail"] == "" {
				t.Errorf("%+v", e)
			}
		}
		want := map[string]string{"hv1": "o-fence oneself by ann", "hv2": "o-cancel no_fence by ann", "hv3": "o-confirm not_dead by ann"}
		if fmt.Sprint(got) != fmt.Sprint(want) || b.stands("hv1") || b.stands("hv2") || b.stands("hv3") {
			t.Errorf("told %v, want %v", got, want)
		}
		if b.served.all() != "cancel hv2" {
			t.Errorf("did %q", b.served.all())
		}
	})
}

// Rubbish where an order should be is answered, too, and not looked at for ever.
func TestAnOrderThatCannotBeReadIsAnswered(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.server.Set("/agent/fence-orders/hv3", []byte("{"))
		b.looksUntil("it has been answered", func() bool { return !b.stands("hv3") })
		b.looks(true, 2*orderRetry)
		if told := b.told(cluster.EventOrderRefused); len(told) != 1 || b.stands("hv3") || told[0].Fields["code"] != string(cluster.RefuseOrder) {
			t.Errorf("%+v, stands %v", told, b.stands("hv3"))
		}
	})
}

// What cannot be done now is tried again, and refused at last with the reason.
func TestAnOrderIsTriedForAWhile(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.give("hv3", cluster.OrderFence)
		b.served.answer = func(cluster.Versioned[cluster.FenceOrder]) (cluster.FenceRecord, *cluster.Refusal, error) {
			return cluster.FenceRecord{}, nil, cluster.ErrLockTimeout
		}
		b.looks(true, orderPatience-10*time.Second)
		if tries := strings.Count(b.served.all(), "fence hv3"); tries < 10 || !b.stands("hv3") {
			t.Errorf("%d tries, stands %v", tries, b.stands("hv3"))
		}
		b.looksUntil("it is refused", func() bool { return !b.stands("hv3") })
		if told := b.told(cluster.EventOrderRefused); len(told) != 1 || told[0].Fields["code"] != string(cluster.RefuseOverdue) || !strings.Contains(told[0].Text, "lock not obtained") ||
			!strings.Contains(told[0].Text, " tries in a row)") {
			t.Errorf("%+v", told)
		}
		if n := b.logged.FilterMessage("fence order not carried out yet").Len(); n != 1 {
			t.Errorf("logged %d times, want once: the error was the same each time", n)
		}
	})
}

// A promise that no fence is claimed is kept against an operator's order, too;
// to cancel breaks none.
func TestAnOrderWaitsForAPromise(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.promised = true
		b.give("hv3", cluster.OrderFence)
		b.give("hv2", cluster.OrderCancel)
		b.looksUntil("the other order has been answered", func() bool { return !b.stands("hv2") })
		b.looks(true, 5*time.Second)
		if b.served.all() != "cancel hv2" || !b.stands("hv3") {
			t.Errorf("did %q, the order stands: %v", b.served.all(), b.stands("hv3"))
		}
		b.promised = false
		b.looksUntil("the order has been answered", func() bool { return !b.stands("hv3") })
		if b.served.all() != "cancel hv2, fence hv3" || b.stands("hv3") {
			t.Errorf("did %q, the order stands: %v", b.served.all(), b.stands("hv3"))
		}
	})
}

// With the role everything ends that runs under it.
func TestAnOrderEndsWithTheRole(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.served.blocked = make(chan struct{})
		b.give("hv3", cluster.OrderFence)
		b.looksUntil("it is being carried out", func() bool { return b.served.all() != "" })
		b.looks(false, time.Second)
		select {
		case <-b.served.blocked:
		default:
			t.Error("an order is carried out beyond the role")
		}
		if !b.stands("hv3") {
			t.Error("the order is lost for the next primary")
		}
	})
}

// A ripe fence goes on by itself, in maintenance not.
func TestRipeFencesGoOn(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.served.ripe = "hv3"
		b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyMaintenance}, cluster.AnyVersion, true))
		b.seen("the maintenance", inMaintenance)
		b.looks(true, 2*time.Second)
		if b.served.all() != "" {
			t.Errorf("in maintenance: %s", b.served.all())
		}
		b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyMaintenance}, cluster.AnyVersion, false))
		b.looksUntil("it goes on", func() bool { return strings.HasPrefix(b.served.all(), "settle hv3") })
	})
}

// Who has become primary while a fence of it stood ends that by its own return:
// nobody else would (I7). An order's next try is not for it to make.
func TestThePrimaryEndsAFenceOfItsOwn(t *testing.T) {
	for _, try := range []bool{false, true} {
		withOrders(t, func(t *testing.T, b *orderBench) {
			b.served.ripe, b.served.try = "hv1", try
			if !try {
				b.looksUntil("the fence ends", func() bool { return strings.Contains(b.served.all(), "settle hv1") })
				return
			}
			b.looks(true, 2*time.Second)
			if got := b.served.all(); strings.Contains(got, "settle") {
				t.Errorf("an order's try: did %q", got)
			}
		})
	}
}

// Each try of an order is weighed like the order: by who is blind, by what the
// node has said of itself, and by who else is down (I6). What else is ripe is not.
func TestEachTryOfAnOrderIsWeighed(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.served.ripe, b.served.try = "hv3", true
		blind := ""
		b.blind = func() string { return blind }
		daemon := func(n cluster.NodeID, s cluster.DaemonState) {
			b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyDaemonState, Node: n}, cluster.AnyVersion, s))
			b.seen("the state", func(snap *cluster.Snapshot) bool { return snap.Nodes[n].Daemon.Value == s })
		}
		never := func(why string) {
			t.Helper()
			b.looks(true, 3*time.Second)
			if did := b.served.all(); strings.Contains(did, "settle") {
				t.Fatalf("%s: %s", why, did)
			}
		}
		b.liveness["hv2"], b.liveness["hv3"] = cluster.LiveDead, cluster.LiveDead
		never("two of three are down")
		daemon("hv3", cluster.DaemonStop)
		b.liveness["hv2"] = cluster.LiveUp
		never("it has stopped in order")
		daemon("hv3", cluster.DaemonRun)
		blind = "session young"
		never("the primary is blind")
		settled := func() bool { return strings.Contains(b.served.all(), "settle hv3") }
		b.liveness["hv2"], b.served.try = cluster.LiveDead, false
		b.looksUntil("what is ripe beside a try goes on", settled)
		if did := b.served.all(); !strings.Contains(did, "settle hv3") || strings.Contains(did, "try") {
			t.Errorf("no try: %q", did)
		}
		b.served.did = nil
		blind, b.liveness["hv2"], b.served.try = "", cluster.LiveUp, true
		b.looksUntil("the try goes on", settled)
		if did := b.served.all(); !strings.Contains(did, "settle hv3") || strings.Contains(did, "try") {
			t.Errorf("one of three is down: %q", did)
		}
	})
}

// meddled has something happen right before each commit of a purpose.
type meddled struct {
	*zkhandler.Handler
	before func(purpose string)
}

func (m meddled) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	m.before(t.Purpose)
	return m.Handler.Commit(ctx, t)
}

// A primary that was stopped for longer than its lease, right before it writes a
// refusal, refuses nothing that is its successor's; nor under a later epoch of
// its own. A renewal in between costs nothing.
func TestARefusalIsWrittenUnderTheRoleThatJudged(t *testing.T) {
	for name, c := range map[string]struct {
		lease cluster.Lease
		told  int
	}{
		"another holds the role": {cluster.Lease{Version: 1, Holder: "hv2", Incarnation: "boot-hv2.1", Epoch: 6, TTLMillis: 2800}, 0},
		"it has a later epoch":   {cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "boot-hv1.1", Epoch: 7, TTLMillis: 2800}, 0},
		"its next start has it":  {cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "boot-hv1.2", Epoch: 6, TTLMillis: 2800}, 0},
		"it has renewed":         {cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "boot-hv1.1", Epoch: 5, TTLMillis: 2800, N: 9}, 1},
	} {
		withOrders(t, func(t *testing.T, b *orderBench) {
			var met atomic.Bool
			b.d.Store = meddled{b.store, func(purpose string) {
				if purpose == "fence.order.refused" && met.CompareAndSwap(false, true) {
					b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyLease}, cluster.AnyVersion, c.lease))
				}
			}}
			b.give("hv1", cluster.OrderFence)
			b.looksUntil("one refusal, and what it has begun", met.Load) // the next look is long before orderRetry
			if n := len(b.told(cluster.EventOrderRefused)); n != c.told || b.stands("hv1") != (c.told == 0) {
				t.Errorf("%s: %d refusals, the order stands: %v", name, n, b.stands("hv1"))
			}
		})
	}
}

// The order was taken back, and given anew, in the moment before its refusal is
// written: that meets none of the two.
func TestARefusalMeetsNoLaterOrder(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		var met atomic.Bool
		b.d.Store = meddled{b.store, func(purpose string) {
			if purpose == "fence.order.refused" && met.CompareAndSwap(false, true) {
				b.commit(cluster.EndOrder("hv1", cluster.Versioned[cluster.FenceOrder]{Version: 0}))
				b.commit(cluster.Set(orderKey("hv1"), 1, cluster.FenceOrder{ID: "o2", Node: "hv1", Incarnation: "boot-hv1.1", Action: cluster.OrderTest}))
			}
		}}
		b.give("hv1", cluster.OrderFence)
		b.looksUntil("one refusal, and what it has begun", met.Load)
		if n := len(b.told(cluster.EventOrderRefused)); n != 0 || !b.stands("hv1") {
			t.Errorf("%d refusals, the later order stands: %v", n, b.stands("hv1"))
		}
		b.seen("the later order", func(s *cluster.Snapshot) bool { return s.Nodes["hv1"].Order.Value.ID == "o2" })
		b.looksUntil("the later order has been answered", func() bool { return !b.stands("hv1") })
		if b.stands("hv1") || b.served.all() != "test hv1" {
			t.Errorf("then: did %q, stands %v", b.served.all(), b.stands("hv1"))
		}
	})
}

func (b *orderBench) tests(n cluster.NodeID) cluster.FenceTests {
	var published cluster.FenceTests
	raw, ok := b.server.Get("/agent/fence-tests/" + string(n))
	if ok && json.Unmarshal(raw, &published) != nil {
		b.t.Errorf("unreadable: %s", raw)
	}
	return published
}

// The devices are tested once the role is there, at the scheduled times, and by
// order; a fault is told when it comes and when it goes.
func TestDevicesAreTestedByThePrimary(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.served.faults["hv3-bmc"] = "unreachable"
		b.looks(true, firstTest-time.Second)
		if b.served.all() != "" {
			t.Errorf("tested too soon: %s", b.served.all())
		}
		const all = "test hv1, test hv2, test hv3"
		b.looksUntil("all were tested and published", func() bool { return b.served.all() == all && len(b.tests("hv3").Devices) > 0 && len(b.faults()) > 0 })
		got := b.tests("hv3")
		if len(got.Devices) != 1 || got.Devices[0].Fault != "unreachable" || got.By != "hv1" || got.Epoch != 5 || got.UnixMS != 1 {
			t.Errorf("published %+v", got)
		}
		if len(b.tests("hv1").Devices) != 1 || len(b.tests("hv2").Devices) != 0 {
			t.Errorf("published %+v, %+v", b.tests("hv1"), b.tests("hv2"))
		}
		if f := b.faults(); len(f) != 1 || !strings.Contains(f[0], "Check the address") || len(b.devices()) != 2 {
			t.Errorf("faults %v of %v", f, b.devices())
		}
		b.fenceOrders.tests.wanted.Store(true) // as the schedule does
		b.looksUntil("they are tested again", func() bool { return strings.Count(b.served.all(), "test hv3") == 2 })
		b.served.mu.Lock()
		b.served.faults = map[string]string{}
		b.served.mu.Unlock()
		b.fenceOrders.tests.wanted.Store(true)
		b.looksUntil("the fault has gone", func() bool {
			return strings.Count(b.served.all(), "test hv3") == 3 && len(b.faults()) == 0 && len(b.told("fence_device")) > 1
		})
		if told := b.told("fence_device"); len(told) != 2 || told[0].Fields["fault"] != "unreachable" || told[1].Fields["fault"] != "" || len(b.faults()) != 0 {
			t.Errorf("told %+v", told)
		}
		if n := strings.Count(b.served.all(), "test hv3"); n != 3 || b.tests("hv3").Devices[0].Fault != "" {
			t.Errorf("tested %d times, published %+v", n, b.tests("hv3"))
		}
	})
}

func TestDevicesAreTestedByOrder(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.give("hv3", cluster.OrderTest)
		b.give("hv2", cluster.OrderTest)
		b.looksUntil("both have been answered", func() bool { return !b.stands("hv2") && !b.stands("hv3") && len(b.tests("hv3").Devices) > 0 })
		if b.stands("hv3") || len(b.tests("hv3").Devices) != 1 {
			t.Errorf("stands %v, published %+v", b.stands("hv3"), b.tests("hv3"))
		}
		if told := b.told(cluster.EventOrderRefused); len(told) != 1 || told[0].Fields["code"] != string(cluster.RefuseNoDevice) || b.stands("hv2") {
			t.Errorf("a node without devices: %+v", told)
		}
	})
}

// A controller in the middle of a fence is left alone, and who has lost the
// role publishes nothing.
func TestWhatIsNotTestedOrPublished(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		b.commit(cluster.Create(cluster.Key{Kind: cluster.KeyFence, Node: "hv3"}, cluster.FenceRecord{ID: "f", Node: "hv3", Stage: cluster.FencePowerOff, Incarnation: "boot-hv3.1"}))
		b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyLease}, cluster.AnyVersion, cluster.Lease{Version: 1, Holder: "hv2", Incarnation: "boot-hv2.1", Epoch: 6, TTLMillis: 2800}))
		b.looks(true, firstTest+5*time.Second) // it does not know yet that the role is lost
		if b.served.all() != "test hv1, test hv2" || len(b.tests("hv1").Devices) != 0 {
			t.Errorf("did %q, published %+v", b.served.all(), b.tests("hv1"))
		}
	})
}

func TestTheScheduleOfTests(t *testing.T) {
	withOrders(t, func(t *testing.T, b *orderBench) {
		s := NewSchedule(zap.NewNop())
		if err := b.schedule(s, "now and then"); err == nil || !strings.Contains(err.Error(), "test fence devices") {
			t.Errorf("an expression that is none: %v", err)
		}
		if err := b.schedule(s, ""); err != nil {
			t.Errorf("the default: %v", err)
		}
		none := newFenceOrders(b.c, Deps{Log: zap.NewNop()}, nil, nil, nil)
		if err := none.schedule(s, "now and then"); err != nil {
			t.Errorf("with nothing to test: %v", err)
		}
	})
}

func TestTheOldPrimarysFenceComesFirst(t *testing.T) {
	nodes := map[cluster.NodeID]cluster.NodeView{"hv1": {}, "hv2": {}, "hv3": {}}
	for first, want := range map[cluster.NodeID]string{"hv3": "[hv3 hv1 hv2]", "hv1": "[hv1 hv2 hv3]", "": "[hv1 hv2 hv3]", "gone": "[hv1 hv2 hv3]"} {
		if got := fmt.Sprint(byUrgency(nodes, first, nil)); got != want {
			t.Errorf("%q first: %s, want %s", first, got, want)
		}
	}
}

// Of the others those with the most protected workloads come first.
func TestFencesOfProtectedWorkloadsComeFirst(t *testing.T) {
	nodes := map[cluster.NodeID]cluster.NodeView{"hv1": {}, "hv2": {}, "hv3": {}, "hv4": {}}
	snap := &cluster.Snapshot{Workloads: map[string]cluster.Versioned[cluster.Workload]{}}
	for name, head := range map[string]cluster.NodeID{"a": "hv3", "b": "hv4", "c": "hv4", "free": "hv2"} {
		snap.Workloads[name] = cluster.Versioned[cluster.Workload]{Present: true, Value: cluster.Workload{Name: name, Chain: []cluster.NodeID{head, "hv1"}, Protected: name != "free"}}
	}
	if got := fmt.Sprint(byUrgency(nodes, "hv2", protectedOn(snap))); got != "[hv2 hv4 hv3 hv1]" {
		t.Errorf("the order is %s", got)
	}
}
