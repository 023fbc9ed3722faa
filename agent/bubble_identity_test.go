package agent_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// A second daemon of a living one's name, on another host, refuses and names
// the first's host; the first goes on.
func TestASecondDaemonOfALivingNameRefuses(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		gaps, starts := b.seen.counts()
		second := b.startAs("hv1", "rack9", newBubbleGuard("rack9", b.clock, b.seen))
		b.eventually(5*time.Second, "the second has ended", second.ended)
		if !errors.Is(second.err, cluster.ErrDuplicateNode) || !strings.Contains(fmt.Sprint(second.err), "alive on hv1") {
			b.t.Errorf("the second ended with %v, want %v naming the first's host", second.err, cluster.ErrDuplicateNode)
		}
		b.always(3*time.Second, "the first is primary", func() bool { return b.converged() == "hv1" })
		if g, s := b.seen.counts(); g != gaps || s != starts {
			b.t.Error("the first was disturbed")
		}
	})
}

// Once the first is dead, the second has the name after 2 K, long before the
// first's session ends. What the first's guard may still hold it waits for.
func TestASecondDaemonTakesOverADeadOnesName(t *testing.T) {
	ends := map[string]func(b *bubble){
		"power loss":       func(b *bubble) { b.powerOff("hv1") },
		"killed":           func(b *bubble) { b.kill("hv1") },
		"cut off and well": func(b *bubble) { b.store.Partition("hv1") },
	}
	for name, end := range ends {
		for _, hold := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, primary %v", name, hold), func(t *testing.T) {
				t.Parallel()
				inBubble(t, threeNodes(), func(b *bubble) {
					b.elect(map[bool]cluster.NodeID{true: "hv1", false: "hv2"}[hold])
					time.Sleep(2 * time.Second)
					<-b.after("hv1", map[bool]string{true: "renew", false: "keepalive"}[hold], func() { end(b) })
					second := b.startAs("hv1", "rack9", newBubbleGuard("rack9", b.clock, b.seen))
					registered := func() bool { return strings.Contains(b.read("/agent/alive/hv1"), "rack9") }
					b.always(2*b.timing.KeepaliveInterval, "the name is not taken", func() bool { return !registered() })
					b.eventually(time.Second, "the name is taken", registered)
					b.eventually(5*time.Second, "somebody is primary", func() bool { return b.seen.holder() != "" })
					time.Sleep(3 * time.Second)
					if second.ended() {
						b.t.Errorf("the second has ended: %v", second.err)
					}
				})
			})
		}
	}
}

// A daemon registers once in each session, not again on a view that is older
// than its registration.
func TestADaemonRegistersOnceInEachSession(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		registrations := func(n cluster.NodeID) (count int) {
			for _, h := range b.store.History() {
				if h.Path == "/agent/alive/"+string(n) && h.Op == "create" {
					count++
				}
			}
			return count
		}
		b.eventually(5*time.Second, "all have registered", func() bool { return registrations("hv1")*registrations("hv2")*registrations("hv3") > 0 })
		b.store.Expire("hv2")
		b.eventually(10*time.Second, "hv2 has registered again", func() bool { return registrations("hv2") > 1 })
		time.Sleep(3 * time.Second) // for more of them
		for n, want := range map[cluster.NodeID]int{"hv1": 1, "hv2": 2, "hv3": 1} {
			if got := registrations(n); got != want {
				b.t.Errorf("%s has registered %d times in %d sessions", n, got, want)
			}
		}
	})
}

// skewed is a store whose node writes keepalives by a clock of its own.
type skewed struct {
	agent.Store
	by time.Duration
}

func (s skewed) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	ops := make([]cluster.Op, len(t.Ops))
	for i, op := range t.Ops {
		if seconds, ok := op.Value.(int64); ok && op.Key.Kind == cluster.KeyKeepalive {
			op.Value = seconds + int64(s.by/time.Second)
		}
		ops[i] = op
	}
	t.Ops = ops
	return s.Store.Commit(ctx, t)
}

// Wall clocks a year apart, and keepalives that go backwards with them, change
// nothing: only what is observed to change on one's own clock counts.
func TestClocksAYearApartChangeNothing(t *testing.T) {
	t.Parallel()
	o := threeNodes()
	const year = 365 * 24 * time.Hour
	o.tune = func(c *agent.Config, d *agent.Deps) {
		by := map[cluster.NodeID]time.Duration{"hv1": -year, "hv3": year}[c.Node]
		c.WallMS = func() int64 { return time.Now().Add(by).UnixMilli() }
		d.Store = skewed{d.Store, by}
	}
	inBubble(t, o, func(b *bubble) {
		for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
			b.elect(n)
			time.Sleep(8 * time.Second)
		}
		const old = cluster.NodeID("hv3")
		b.powerOff(old)
		b.eventually(4*time.Second, "a failover", func() bool { p := b.primary(); return p != "" && p != old })
		now := b.seen.holder()
		b.always(8*time.Second, "the role stays at "+string(now), func() bool { return b.seen.holder() == now })
		for _, j := range b.judged() {
			if !strings.HasPrefix(j, string(old)+":") {
				b.t.Errorf("judged by its clock: %s", j)
			}
		}
	})
}

// Where this node remembers a cluster an empty tree is refused, and nothing is
// written into it.
func TestAnEmptyTreeIsRefusedByWhoRemembersACluster(t *testing.T) {
	t.Parallel()
	o := nodesCalled()
	o.tune = func(_ *agent.Config, d *agent.Deps) {
		d.Remember = func(name string) error {
			if name == "" {
				return fmt.Errorf("%w: this node remembers cluster %q", cluster.ErrEmptyTree, "bubble")
			}
			return nil
		}
	}
	synctest.Test(t, func(t *testing.T) {
		b := emptyBubble(t, o)
		defer b.close()
		node := b.start("hv1")
		b.eventually(5*time.Second, "the daemon has ended", node.ended)
		if !errors.Is(node.err, cluster.ErrEmptyTree) {
			t.Errorf("ended with %v, want %v", node.err, cluster.ErrEmptyTree)
		}
		if dump := b.store.Dump(); dump != "" {
			t.Errorf("written into the empty tree:\n%s", dump)
		}
	})
}

// A tree of a newer program is left alone, with an error that says so.
func TestANewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	inBubble(t, nodesCalled(), func(b *bubble) {
		b.store.Set("/agent/schema", []byte("99"))
		node := b.start("hv1")
		b.eventually(5*time.Second, "the daemon has ended", node.ended)
		if !errors.Is(node.err, cluster.ErrSchemaNewer) {
			b.t.Errorf("ended with %v, want %v", node.err, cluster.ErrSchemaNewer)
		}
		if _, there := b.store.Get("/nodes/hv1"); there {
			b.t.Error("the node's records were made all the same")
		}
		b.store.Set("/agent/schema", []byte("1"))
		b.start("hv1")
		b.eventually(8*time.Second, "after the repair: primary", func() bool { return b.converged() == "hv1" })
	})
}

// Rubbish in a znode is answered by an error or a refusal; the role stays, or
// is laid down, but never in two hands; once repaired, all converges.
func TestRubbishInAZnodeIsSurvived(t *testing.T) {
	cases := []struct {
		path   string
		by     func(b *bubble) // repair; nil: the cluster itself
		rubble string
	}{
		{leasePath, nil, "\x00\xff{"}, // its holder writes it anew
		{transitionPath, nil, "[]"},
		{wishPath, nil, "!!"},
		{"/nodes/hv1/keepalive", nil, "yesterday"},
		{"/nodes/hv2/keepalive", nil, "yesterday"},
		{"/nodes/hv1/daemonstate", nil, "asleep"},
		{"/nodes/hv2/daemonstate", nil, "asleep"},
		{"/nodes/hv1/routerstate", nil, "upside down"},
		{"/nodes/hv2/routerstate", nil, "upside down"},
		{"/agent/nodes/hv2", func(b *bubble) { b.kill("hv2"); b.start("hv2") }, "null"},
		{"/agent/alive/hv2", nil, "{"},
		{"/config/maintenance", func(b *bubble) { b.store.Set("/config/maintenance", []byte("false")) }, "perhaps"},
		{"/agent/views/hv2", nil, "}"},
	}
	for _, c := range cases {
		t.Run(c.path, func(t *testing.T) {
			t.Parallel()
			inBubble(t, threeNodes(), func(b *bubble) {
				b.elect("hv2")
				b.elect("hv1") // by a switch, whose record is an epoch older than the lease
				time.Sleep(2 * time.Second)
				b.store.Set(c.path, []byte(c.rubble))
				b.always(3*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				if c.by != nil {
					c.by(b)
				}
				b.settles(15 * time.Second)
				b.wish("hv2")
				b.eventually(8*time.Second, "the role can still go to hv2", func() bool { return b.converged() == "hv2" })
			})
		})
	}
}

// Somebody's writing on the lock of a running switch ends the switch, not the
// lock's use.
func TestRubbishInTheLockEndsTheSwitchOnly(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		struck := b.after("hv2", "announce", func() {
			for _, c := range b.store.Children(wishPath) {
				if strings.Contains(c, "__lock__") {
					b.store.Set(wishPath+"/"+c, []byte("scribble"))
				}
			}
		})
		b.wish("hv2")
		<-struck
		b.settles(20 * time.Second)
		b.wish("hv3")
		b.eventually(10*time.Second, "the role goes to hv3", func() bool { return b.converged() == "hv3" })
	})
}
