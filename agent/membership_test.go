package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/membership"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

// memberBench is the members' part of one primary, hv1, over an in-memory
// ZooKeeper: hv1 and hv2 run, hv3 has stopped in order.
type memberBench struct {
	*memberWatch
	t      *testing.T
	ctx    context.Context
	wg     *sync.WaitGroup
	clock  benchClock
	server *zktest.Server
	store  *zkhandler.Handler // of the primary
	oper   *zkhandler.Handler // of everybody else
	unheld string             // why majorities are not held
	voided int                // how often the set was somebody else's
}

func withMembers(t *testing.T, run func(t *testing.T, b *memberBench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &memberBench{t: t, server: zktest.New(zktest.Options{}), clock: benchClock{time.Now()}, wg: &sync.WaitGroup{}}
		defer b.server.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer b.wg.Wait()
		defer cancel()
		b.ctx = ctx
		b.store, b.oper = b.handler("hv1"), b.handler("oper")
		b.plant()
		c := Config{Node: "hv1", Incarnation: "boot-hv1.1", WallMS: func() int64 { return time.Now().UnixMilli() }}
		d := Deps{Clock: b.clock, Log: zap.NewNop(), Store: b.store, Fencer: &servedOrders{}}
		see := func(n cluster.NodeID) cluster.Liveness {
			if raw, _ := b.server.Get("/agent/alive/" + string(n)); raw == nil {
				return cluster.LiveDead
			}
			return cluster.LiveUp
		}
		b.memberWatch = newMemberWatch(c, d, b.store, see, func() string { return "" })
		b.holds = func(_, _ []cluster.NodeID) error {
			if b.unheld != "" {
				return errors.New(b.unheld)
			}
			return nil
		}
		b.foreign = func(cluster.Versioned[cluster.QuorumSet]) { b.voided++ }
		defer b.wait()
		run(t, b)
	})
}

func (b *memberBench) handler(name string) *zkhandler.Handler {
	h, err := zkhandler.New(zkhandler.Config{Servers: b.server.Servers(), SessionTimeout: 6 * time.Second, WatchNodes: true, Dial: b.server.Dialer(name)}, b.clock, zap.NewNop(), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	b.wg.Go(func() { _ = h.Run(b.ctx) })
	for h.State().Phase != zkhandler.Live {
		time.Sleep(10 * time.Millisecond)
	}
	return h
}

func (b *memberBench) plant() {
	if err := b.oper.Initialize(b.ctx, "test", false); err != nil {
		b.t.Fatal(err)
	}
	b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyLease}, cluster.AnyVersion, cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "boot-hv1.1", Epoch: 5, TTLMillis: 2800}))
	for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
		if err := b.start(b.registrarOf(n, "id-"+string(n))); err != nil {
			b.t.Fatal(err)
		}
	}
	b.stop("hv3")
}

// noNotice is no service manager.
type noNotice struct{}

func (noNotice) Ready()        {}
func (noNotice) Stopping()     {}
func (noNotice) Status(string) {}

// registrarOf registers a node from another daemon's place.
func (b *memberBench) registrarOf(n cluster.NodeID, host string) *registrar {
	c := Config{Node: n, Mode: cluster.Coordinator, NodeUUID: host, Incarnation: cluster.Incarnation("boot-" + string(n) + "-" + host), Timing: cluster.ProfileLAN(), WallMS: func() int64 { return 1 }}
	return newRegistrar(c, Deps{Clock: b.clock, Log: zap.NewNop(), Store: b.oper, Tree: b.oper, Notify: noNotice{}, Remember: func(string) error { return nil }})
}

// start registers a node, or says why it does not come in.
func (b *memberBench) start(r *registrar) error {
	limited, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	return r.first(limited)
}

// stop ends a node's daemon in order.
func (b *memberBench) stop(n cluster.NodeID) {
	b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyDaemonState, Node: n}, cluster.AnyVersion, cluster.DaemonStop), cluster.Delete(cluster.Key{Kind: cluster.KeyAlive, Node: n}, cluster.AnyVersion))
}

func (b *memberBench) commit(ops ...cluster.Op) {
	b.t.Helper()
	if r := b.oper.Commit(b.ctx, cluster.Txn{Purpose: "test", Ops: ops}); r.Outcome != cluster.OutcomeOK {
		b.t.Fatalf("%v: %s, %v", ops, r.Outcome, r.Err)
	}
}

// give writes an order as the API does.
func (b *memberBench) give(o cluster.MemberOrder) {
	b.t.Helper()
	o.Version, o.By = 1, "ann"
	if o.ID == "" {
		o.ID = "o-" + o.Action
	}
	if o.Action == cluster.MemberRemove && o.Host == "" {
		o.Host = "id-" + string(o.Node)
	}
	for range 100 {
		snap, err := b.oper.Refresh(b.ctx)
		if err != nil {
			b.t.Fatal(err)
		}
		if r := b.oper.Commit(b.ctx, cluster.Txn{Ops: []cluster.Op{cluster.Put(cluster.Key{Kind: cluster.KeyMemberOrder}, snap.MemberOrder, o)}}); r.Outcome == cluster.OutcomeOK {
			return
		}
		time.Sleep(10 * time.Millisecond) // the watch has not fired yet
	}
	b.t.Fatal("the order cannot be written")
}

// once is one look, as the node watch makes it.
func (b *memberBench) once(primary bool) *cluster.Snapshot {
	snap, err := b.store.Refresh(b.ctx)
	if err != nil {
		return &cluster.Snapshot{}
	}
	b.step(b.ctx, primary, snap, b.clock.Now())
	return snap
}

// until looks as the primary until it is so.
func (b *memberBench) until(what string, limit time.Duration, is func() bool) {
	b.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		b.once(true)
		if is() {
			return
		}
	}
	b.t.Fatalf("%s is never so: waits %q\n%s", what, b.waits(), b.story())
}

func (b *memberBench) looks(primary bool, span time.Duration) {
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		b.once(primary)
	}
}

func (b *memberBench) read(path string) string {
	raw, _ := b.server.Get(path)
	return string(raw)
}

// answered: no order stands.
func (b *memberBench) answered() bool { return b.read("/agent/member-order") == "" }

// story is the history of the members, oldest first.
func (b *memberBench) story() string {
	events, err := b.oper.ReadHistory(b.ctx, -1)
	if err != nil {
		b.t.Fatal(err)
	}
	var told []string
	for _, e := range events {
		switch e.Kind {
		case cluster.EventMemberRefused:
			told = append(told, "refused "+e.Fields["code"]+" "+e.Fields["order"])
		case cluster.EventMember:
			told = append(told, strings.TrimSpace(e.Fields["effect"]+" "+e.Fields["node"]))
		case cluster.EventMemberOut:
			told = append(told, "out "+e.Fields["node"]+" "+e.Fields["host"])
		}
	}
	return strings.Join(told, ", ")
}

func (b *memberBench) set() string {
	snap, err := b.oper.Refresh(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	return fmt.Sprint(snap.Quorum.Value.Nodes)
}

// founded lets the primary make the first set.
func (b *memberBench) founded() {
	b.t.Helper()
	b.until("the first set", time.Minute, func() bool { return b.read("/agent/quorum") != "" })
	b.until("it is seen", time.Minute, func() bool { return b.set() == "[hv1 hv2 hv3]" && !b.busy.Load() })
}

// paths are all that stands of a node.
func (b *memberBench) paths(n cluster.NodeID) []string {
	var there []string
	for _, dir := range []string{"/nodes", "/logs", "/agent/nodes", "/agent/alive", "/agent/views", "/agent/fences", "/agent/fence-orders", "/agent/fence-tests"} {
		if _, is := b.server.Get(dir + "/" + string(n)); is {
			there = append(there, dir)
		}
	}
	return there
}

func TestTheFirstPrimaryMakesTheQuorumSet(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		b.looks(false, 2*membership.Settle)
		if b.read("/agent/quorum") != "" {
			t.Fatal("made by who is not primary")
		}
		b.founded()
		if got := b.read("/agent/quorum"); !strings.HasPrefix(got, `{"v":1,"nodes":["hv1","hv2","hv3"],"ids":{"hv1":"id-hv1"`) || !strings.Contains(got, `"epoch":5,"n":1}`) {
			t.Error(got)
		}
		if b.story() != "bootstrap" || b.voided != 0 {
			t.Error(b.story(), b.voided)
		}
	})
}

// A node that was stopped goes with all its records in one write; coming back it
// stays out and says so, until it is let in again; another host of the name is
// another node (F7).
func TestANodeIsRemovedAndComesBack(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		b.founded()
		for _, leaf := range []string{"/nodes/hv3/monitoring_data/load", "/nodes/hv3/monitoring_data/load/message", "/agent/views/hv3", "/agent/fence-tests/hv3"} {
			b.server.Set(leaf, []byte("{}"))
		}
		b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv3", Reason: "sold"})
		b.until("the removal", time.Minute, b.answered)
		if there := b.paths("hv3"); len(there) != 0 || b.set() != "[hv1 hv2]" {
			t.Fatalf("left of it: %v, set %s", there, b.set())
		}
		err := b.start(b.registrarOf("hv3", "id-hv3"))
		if !errors.Is(err, cluster.ErrRemoved) || !strings.Contains(err.Error(), "by ann (sold), and stays out") || !strings.Contains(err.Error(), "`pvc node add hv3 --host id-hv3`") {
			t.Errorf("the host comes back: %v", err)
		}
		if err := b.start(b.registrarOf("hv3", "id-new")); !errors.Is(err, cluster.ErrRemoved) || len(b.paths("hv3")) != 0 {
			t.Errorf("another host takes the name: %v, %v", err, b.paths("hv3"))
		}
		if got := b.story(); got != "bootstrap, removed hv3, out hv3 id-hv3, out hv3 id-new" {
			t.Error(got)
		}
		welcome := Welcome(func() *cluster.Snapshot { s, _ := b.oper.Refresh(b.ctx); return s }, true)
		if err := welcome("hv3"); !errors.Is(err, cluster.ErrNotInCluster) || !strings.Contains(err.Error(), "was removed") {
			t.Errorf("asks: %v", err)
		}
		if err := errors.Join(welcome("hv2"), welcome("hv1")); err != nil {
			t.Error(err)
		}
		if err := welcome("hv9"); !errors.Is(err, cluster.ErrNotInCluster) {
			t.Errorf("a stranger asks: %v", err)
		}

		b.give(cluster.MemberOrder{Action: cluster.MemberAdd, Node: "hv3"})
		b.until("the name is free", time.Minute, func() bool { return strings.HasSuffix(b.story(), "admitted hv3") })
		if err := b.start(b.registrarOf("hv3", "id-hv3")); !errors.Is(err, cluster.ErrRemoved) {
			t.Errorf("the old host comes back by the name of the new: %v", err)
		}
		if b.answered() || b.set() != "[hv1 hv2]" {
			t.Errorf("counts before it is there: %s", b.set())
		}
		if err := b.start(b.registrarOf("hv3", "id-new")); err != nil {
			t.Fatalf("the new host: %v", err)
		}
		b.until("it counts", time.Minute, b.answered)
		if got := b.read("/agent/quorum"); !strings.Contains(got, `"hv3":"id-new"`) || b.set() != "[hv1 hv2 hv3]" || b.voided != 0 || welcome("hv3") != nil {
			t.Errorf("%s, %d, %v", got, b.voided, welcome("hv3"))
		}
	})
}

// Nothing is changed while majorities are not held, and the operator is told why.
func TestTheSetNeedsMajorities(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		b.founded()
		b.unheld = "2 of 3 are silent"
		b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv3"})
		b.until("it waits", time.Minute, func() bool { return strings.Contains(b.waits(), "2 of 3 are silent") })
		if b.set() != "[hv1 hv2 hv3]" || len(b.paths("hv3")) == 0 {
			t.Fatal(b.set())
		}
		b.unheld = ""
		b.until("it is done", time.Minute, func() bool { return b.set() == "[hv1 hv2]" })

		holds := b.holds
		b.holds = nil
		b.give(cluster.MemberOrder{Action: cluster.MemberAdd, Node: "hv2", Mode: cluster.Hypervisor, ID: "o-2"})
		b.until("it is refused", time.Minute, b.answered)
		if b.set() != "[hv1 hv2]" || !strings.HasSuffix(b.story(), "refused no_quorum o-2") {
			t.Error(b.set(), b.story())
		}
		b.holds, b.unheld = holds, "silence"
		b.give(cluster.MemberOrder{Action: cluster.MemberAdd, Node: "hv2", Mode: cluster.Hypervisor, ID: "o-3"})
		b.until("it is refused at last", membership.Patience+time.Minute, b.answered)
		if b.set() != "[hv1 hv2]" || !strings.HasSuffix(b.story(), "refused no_quorum o-3") {
			t.Error(b.set(), b.story())
		}
		b.unheld = ""
		b.give(cluster.MemberOrder{Action: cluster.MemberAdd, Node: "hv2", Mode: cluster.Hypervisor, ID: "o-4"})
		b.until("it counts no more", time.Minute, func() bool { return b.set() == "[hv1]" })
		b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv2", ID: "o-5"})
		b.until("the living is not removed", time.Minute, b.answered)
		if !strings.HasSuffix(b.story(), "counts_no_more hv2, refused alive_still_present o-5") {
			t.Error(b.story())
		}
	})
}

// Whatever becomes of the reply, each order has each of its effects once.
func TestLostRepliesAboutMembers(t *testing.T) {
	type plant = func(s *zktest.Server, m func(zktest.OpInfo) bool) *zktest.Rule
	for name, lose := range map[string]plant{
		"the reply":   func(s *zktest.Server, m func(zktest.OpInfo) bool) *zktest.Rule { return s.DropReply("hv1", m) },
		"the request": func(s *zktest.Server, m func(zktest.OpInfo) bool) *zktest.Rule { return s.DropRequest("hv1", m) },
		"it commits late": func(s *zktest.Server, m func(zktest.OpInfo) bool) *zktest.Rule {
			return s.LateCommit("hv1", m, 300*time.Millisecond)
		},
		"two replies": func(s *zktest.Server, m func(zktest.OpInfo) bool) *zktest.Rule { return s.DropReply("hv1", m).Times(2) },
	} {
		t.Run(name, func(t *testing.T) {
			withMembers(t, func(t *testing.T, b *memberBench) {
				writes := func(o zktest.OpInfo) bool { return o.TouchesBelow("/agent/history") }
				var rules []*zktest.Rule
				losing := func() { rules = append(rules, lose(b.server, writes)) }
				losing()
				b.founded()
				losing()
				b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv3"})
				b.until("the removal", time.Minute, b.answered)
				losing()
				b.give(cluster.MemberOrder{Action: cluster.MemberAdd, Node: "hv3", Host: "id-hv3"})
				b.until("let in", time.Minute, func() bool { return strings.Contains(b.story(), "admitted") })
				if err := b.start(b.registrarOf("hv3", "id-hv3")); err != nil {
					t.Fatal(err)
				}
				losing()
				b.until("counted", time.Minute, b.answered)
				losing()
				b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv2", ID: "o-2"})
				b.until("refused", time.Minute, b.answered)
				b.looks(true, 5*time.Second)
				want := "bootstrap, removed hv3, admitted hv3, counted hv3, refused alive_still_present o-2"
				if got := b.story(); got != want || b.set() != "[hv1 hv2 hv3]" || b.voided != 0 {
					t.Errorf("%s, %s, void %d", got, b.set(), b.voided)
				}
				hits := 0
				for _, r := range rules {
					hits += r.Hits()
				}
				if hits < len(rules) {
					t.Errorf("%d losses of %d", hits, len(rules))
				}
			})
		})
	}
}

// A node that starts in the very moment of its removal: one of the two wins, and
// whichever it is, it wins whole.
func TestANodeStartsInTheMiddleOfItsRemoval(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) { // it registers right before the removal's write
		b.founded()
		reg := b.registrarOf("hv3", "id-hv3")
		var once sync.Once
		b.d.Store = meddled{b.store, func(purpose string) {
			if purpose == "membership.removed" {
				once.Do(func() {
					if err := b.start(reg); err != nil {
						t.Error(err)
					}
				})
			}
		}}
		b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv3"})
		b.until("it is answered", time.Minute, b.answered)
		if got := b.story(); got != "bootstrap, refused alive_still_present o-remove" || b.set() != "[hv1 hv2 hv3]" || b.read("/agent/alive/hv3") == "" {
			t.Errorf("%s, %s", got, b.set())
		}
	})
	for _, at := range []string{"register", "ensure"} {
		withMembers(t, func(t *testing.T, b *memberBench) { // it is removed right before it writes
			b.founded()
			b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv3"})
			reg := b.registrarOf("hv3", "id-hv3")
			var once sync.Once
			remove := func() { once.Do(func() { b.until("the removal", time.Minute, b.answered) }) }
			reg.d.Store = meddled{b.oper, func(purpose string) {
				if purpose == at {
					remove()
				}
			}}
			if at == "ensure" {
				reg.d.Tree = removedTree{b.oper, remove}
			}
			if err := b.start(reg); !errors.Is(err, cluster.ErrRemoved) || len(b.paths("hv3")) != 0 || b.set() != "[hv1 hv2]" {
				t.Errorf("at %s: %v; there is %v", at, err, b.paths("hv3"))
			}
		})
	}
}

// removedTree has something happen between the look at the tree and the making
// of the node's records.
type removedTree struct {
	*zkhandler.Handler
	before func()
}

func (r removedTree) EnsureNode(ctx context.Context, n cluster.NodeID, m cluster.Mode) error {
	r.before()
	return r.Handler.EnsureNode(ctx, n, m)
}

// A daemon that was cut off while it was removed registers no more, and is told
// to end.
func TestARunningNodeThatWasRemovedEnds(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		b.founded()
		reg := b.registrarOf("hv3", "id-hv3")
		if err := b.start(reg); err != nil {
			t.Fatal(err)
		}
		b.stop("hv3") // its session is lost
		b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv3"})
		b.until("the removal", time.Minute, b.answered)
		reg.session = 0
		if err := reg.register(b.ctx); !errors.Is(err, cluster.ErrRemoved) || len(b.paths("hv3")) != 0 {
			t.Errorf("%v, %v", err, b.paths("hv3"))
		}
	})
}

// What else happens to the node right before its removal is written stops that.
func TestARemovalMeetsAFence(t *testing.T) {
	for name, meddle := range map[string]func(b *memberBench){
		"a fence is claimed": func(b *memberBench) {
			b.commit(cluster.Create(cluster.Key{Kind: cluster.KeyFence, Node: "hv3"}, cluster.FenceRecord{ID: "f", Node: "hv3", Stage: cluster.FenceClaimed, By: "hv1"}))
		},
		"a fence is ordered": func(b *memberBench) {
			b.commit(cluster.Create(orderKey("hv3"), cluster.FenceOrder{ID: "f", Node: "hv3", Action: cluster.OrderFence}))
		},
		"its keepalive moves": func(b *memberBench) {
			b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyKeepalive, Node: "hv3"}, cluster.AnyVersion, int64(7)), cluster.Set(cluster.Key{Kind: cluster.KeyDaemonState, Node: "hv3"}, cluster.AnyVersion, cluster.DaemonRun))
		},
		"the role is another's": func(b *memberBench) {
			b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyLease}, cluster.AnyVersion, cluster.Lease{Version: 1, Holder: "hv2", Incarnation: "b", Epoch: 6, TTLMillis: 2800}))
		},
		"somebody else writes the set": func(b *memberBench) {
			b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyQuorumSet}, cluster.AnyVersion, cluster.QuorumSet{Nodes: []cluster.NodeID{"hv3"}, Epoch: 5, N: 9}))
		},
		"the order is taken back": func(b *memberBench) {
			b.commit(cluster.EndMemberOrder(cluster.Versioned[cluster.MemberOrder]{Version: 0}))
		},
	} {
		withMembers(t, func(t *testing.T, b *memberBench) {
			b.founded()
			met := false
			b.d.Store = meddled{b.store, func(purpose string) {
				if purpose == "membership.removed" && !met {
					met = true
					meddle(b)
				}
			}}
			b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv3"})
			b.until("the write", time.Minute, func() bool { return met })
			b.looks(true, 10*time.Second)
			if len(b.paths("hv3")) < 3 || strings.Contains(b.story(), "removed") {
				t.Errorf("%s: %v, %s", name, b.paths("hv3"), b.story())
			}
		})
	}
}

// One's own renewal in between costs nothing.
func TestARemovalMeetsARenewal(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		b.founded()
		met := 0
		b.d.Store = meddled{b.store, func(string) {
			if met++; met <= 3 {
				b.commit(cluster.Set(cluster.Key{Kind: cluster.KeyLease}, cluster.AnyVersion, cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "boot-hv1.1", Epoch: 5, TTLMillis: 2800, N: uint64(met)}))
			}
		}}
		b.give(cluster.MemberOrder{Action: cluster.MemberRemove, Node: "hv3"})
		b.until("the removal", time.Minute, b.answered)
		if got := b.story(); got != "bootstrap, removed hv3" || met < 4 {
			t.Error(got, met)
		}
	})
}

// A set that somebody else has written voids what rests on it, once (S163); one
// that is damaged is written as it was, not made anew of who is registered (A3).
func TestSomebodyElseWritesTheQuorumSet(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		b.founded()
		b.server.Set("/agent/quorum", []byte(`{"v":1,"nodes":["hv1","hv2"],"epoch":4,"n":9}`))
		b.until("it is told", time.Minute, func() bool { return b.voided == 1 })
		b.looks(true, 5*time.Second)
		if b.voided != 1 || b.set() != "[hv1 hv2]" {
			t.Fatalf("told %d times, %s", b.voided, b.set())
		}
		b.server.Set("/agent/quorum", []byte(`{"v":1,"nodes":[]}`))
		b.until("it is told, too", time.Minute, func() bool { return b.voided == 2 })
		b.until("it is mended", time.Minute, func() bool { return b.seen.Present && b.seen.Err == nil })
		time.Sleep(time.Second) // two entries of the same moment that say the same are one
		b.server.Delete("/agent/quorum")
		b.until("it is told again", time.Minute, func() bool { return b.voided == 3 })
		b.until("it is there again", time.Minute, func() bool { return b.seen.Present && b.set() == "[hv1 hv2]" })
		b.looks(true, 5*time.Second)
		if got := b.story(); got != "bootstrap, restored, restored" || b.voided != 3 || !strings.Contains(b.read("/agent/quorum"), `"n":11`) {
			t.Error(got, b.voided, b.read("/agent/quorum"))
		}
	})
}

// Rubbish where an order should be is answered; with the role everything ends.
func TestMemberOrdersThatCannotBeRead(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		b.founded()
		b.server.Set("/agent/member-order", []byte("{"))
		b.looks(false, 5*time.Second)
		if b.answered() {
			t.Fatal("answered by who is not primary")
		}
		b.until("it is answered", time.Minute, b.answered)
		if !strings.Contains(b.story(), "refused order_not_understood") {
			t.Error(b.story())
		}
	})
}

// While nobody can tell who was removed, no node comes in that was not in; who
// was goes on, in a new session, too.
func TestWhoWasRemovedCannotBeRead(t *testing.T) {
	withMembers(t, func(t *testing.T, b *memberBench) {
		running := b.registrarOf("hv2", "id-hv2")
		if err := b.start(running); err != nil {
			t.Fatal(err)
		}
		b.server.Set("/agent/members", []byte("{"))
		time.Sleep(time.Second)
		for _, n := range []cluster.NodeID{"hv3", "hv4"} { // one whose records are there, and a new one
			limited, cancel := context.WithTimeout(b.ctx, 5*time.Second)
			if err := b.registrarOf(n, "id-"+string(n)).first(limited); !errors.Is(err, context.DeadlineExceeded) || b.read("/agent/alive/"+string(n)) != "" {
				t.Errorf("%s came in: %v", n, err)
			}
			cancel()
		}
		b.commit(cluster.Delete(cluster.Key{Kind: cluster.KeyAlive, Node: "hv2"}, cluster.AnyVersion)) // its session has ended
		if err := running.register(b.ctx); err != nil || b.read("/agent/alive/hv2") == "" {
			t.Errorf("a member: %v", err)
		}
		b.server.Set("/agent/members", []byte(""))
		for _, n := range []cluster.NodeID{"hv3", "hv4"} {
			if err := b.start(b.registrarOf(n, "id-"+string(n))); err != nil {
				t.Error(n, err)
			}
		}
	})
}
