package agent_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// stuckGuard is a guard that can hang: it answers nothing any more and ends
// nothing at its deadline. The kernel's gate still shuts the addresses then;
// programs go on.
type stuckGuard struct {
	agent.Guard
	real  *bubbleGuard
	stuck *atomic.Bool
}

func (g stuckGuard) wait(ctx context.Context) error {
	if !g.stuck.Load() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (g stuckGuard) Begin(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := g.wait(ctx); err != nil {
		return err
	}
	return g.Guard.Begin(ctx, t, d)
}

func (g stuckGuard) Extend(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := g.wait(ctx); err != nil {
		return err
	}
	return g.Guard.Extend(ctx, t, d)
}

func (g stuckGuard) End(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch) error {
	if err := g.wait(ctx); err != nil {
		return err
	}
	return g.Guard.End(ctx, o, e)
}

func (g stuckGuard) Preflight(ctx context.Context, r cluster.PreflightRequest) (cluster.PreflightResult, error) {
	if err := g.wait(ctx); err != nil {
		return cluster.PreflightResult{}, err
	}
	return g.Guard.Preflight(ctx, r)
}

func (g stuckGuard) StopService(ctx context.Context, t cluster.Token, o cluster.DeadlineOwner, e cluster.Epoch, name string) error {
	if err := g.wait(ctx); err != nil {
		return err
	}
	return g.Guard.StopService(ctx, t, o, e, name)
}

// hang stops the guard where it stands.
func (g stuckGuard) hang() {
	g.stuck.Store(true)
	g.real.mu.Lock()
	defer g.real.mu.Unlock()
	if g.real.timer != nil {
		g.real.timer.Stop()
	}
	left := g.real.role.Deadline.Sub(g.real.clock.Now())
	time.AfterFunc(left, func() {
		g.real.mu.Lock()
		defer g.real.mu.Unlock()
		g.real.addresses = false // the gate's elements run out in the kernel
		g.real.tell()
	})
}

// Sweep is the agent's own end of what a stuck guard has left.
func (g stuckGuard) Sweep(context.Context) error {
	g.real.mu.Lock()
	defer g.real.mu.Unlock()
	g.real.clear()
	return nil
}

// A guard that hangs (SIGSTOP) while the agent lives: the agent ends the role's
// programs itself before anybody else may start them (I1, I3).
func TestAHungGuardsServicesEndBeforeTheyStartElsewhere(t *testing.T) {
	t.Parallel()
	guards := map[cluster.NodeID]stuckGuard{}
	o := threeNodes()
	o.services = []cluster.ServiceSpec{{Name: "dns", StartTimeout: 10 * time.Second, StopTimeout: 5 * time.Second}}
	o.tune = func(c *agent.Config, d *agent.Deps) {
		g := stuckGuard{Guard: d.Guard, real: d.Guard.(*guardLink).bubbleGuard, stuck: &atomic.Bool{}}
		guards[c.Node] = g
		d.Guard, d.Sweeper = g, g
	}
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		guards["hv1"].hang()
		b.eventually(30*time.Second, "another node acts", func() bool { h := b.seen.holder(); return h != "" && h != "hv1" })
		time.Sleep(10 * time.Second)
		guards["hv1"].stuck.Store(false)
	})
}

// A state folder copied to another host (a cloned machine) carries the node's
// UUID: the second daemon must refuse, not take turns with the first.
func TestACopiedStateFolderIsNoPredecessor(t *testing.T) {
	t.Parallel()
	o := threeNodes()
	o.tune = func(c *agent.Config, d *agent.Deps) { c.NodeUUID = "uuid of " + string(c.Node) }
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		clone := b.startAs("hv2", "clone", newBubbleGuard("hv2", b.clock, b.seen))
		time.Sleep(20 * time.Second)
		registrations := 0
		for _, h := range b.store.History() {
			if strings.HasPrefix(h.Path, "/agent/alive/hv2") && h.Op == "create" {
				registrations++
			}
		}
		if !clone.ended() || registrations > 1 {
			b.t.Errorf("the clone has ended: %v; hv2 was registered %d times: they take turns", clone.ended(), registrations)
		}
	})
}

// A note that explains why the role was dropped reaches the history although
// the store was away for longer than a session.
func TestTheReasonOfADropOutlivesALongPartition(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		b.store.Partition("hv1")
		time.Sleep(15 * time.Second)
		b.heal("hv1")
		b.entered(30*time.Second, "the history says why hv1 dropped the role", func(e cluster.Event) bool {
			return e.Node == "hv1" && e.Kind == "role_dropped"
		})
	})
}

// A wish overtaken by a failover is told in the history although the taker's
// daemon is killed right after the take (I8).
func TestAnOvertakenWishIsToldThoughTheTakerIsKilled(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		b.nodes["hv3"].stop()
		<-b.nodes["hv3"].done
		b.powerOff("hv1")
		b.wish("hv3")
		killed := b.after("hv2", "take", func() { b.kill("hv2") })
		b.eventually(10*time.Second, "hv2 has taken the role and was killed", func() bool {
			select {
			case <-killed:
				return true
			default:
				return false
			}
		})
		b.start("hv2")
		b.eventually(10*time.Second, "hv2 is primary", func() bool { return b.primary() == "hv2" })
		b.entered(10*time.Second, "I8: the history says who overtook the wish for hv3", func(e cluster.Event) bool { return e.Kind == "wish_overtaken" })
	})
}

// A switch by a missing routerstate leaf (deleted by a foreign tool) neither
// takes the role away nor floods the store.
func TestAMissingRouterStateDoesNotCostTheRole(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		b.store.Delete(routerState("hv1"))
		gaps, _ := b.seen.counts()
		before := len(b.store.History())
		b.wish("hv2")
		time.Sleep(20 * time.Second)
		if b.seen.holder() == "" {
			b.t.Errorf("nobody acts\n%s", b.describe())
		}
		if g, _ := b.seen.counts(); g > gaps+1 {
			b.t.Errorf("%d gaps", g-gaps)
		}
		if n := len(b.store.History()) - before; n > 2000 {
			b.t.Errorf("%d writes in 20 s", n)
		}
	})
}

// slowGuard delays single calls as a starved or stopped goroutine would: the
// call goes on afterwards, whatever its context says by then, unless its
// deadline keeps it from being sent.
type slowGuard struct {
	agent.Guard
	mu   sync.Mutex
	rng  *rand.Rand
	rate int // one call of so many; 0: none
}

func (g *slowGuard) dawdle(ctx context.Context) error {
	g.mu.Lock()
	var d time.Duration
	if g.rate > 0 && g.rng.IntN(g.rate) == 0 {
		d = time.Duration(g.rng.IntN(5000)) * time.Millisecond
	}
	coin := g.rng.IntN(2) == 0
	g.mu.Unlock()
	time.Sleep(d)
	if err := ctx.Err(); err != nil && (coin || errors.Is(err, context.DeadlineExceeded)) {
		return err
	}
	return nil
}

func (g *slowGuard) Begin(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := g.dawdle(ctx); err != nil {
		return err
	}
	return g.Guard.Begin(ctx, t, d)
}

func (g *slowGuard) Extend(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := g.dawdle(ctx); err != nil {
		return err
	}
	return g.Guard.Extend(ctx, t, d)
}

func (g *slowGuard) Present(ctx context.Context, t cluster.Token, e cluster.Epoch, a []cluster.FloatingAddress) error {
	if err := g.dawdle(ctx); err != nil {
		return err
	}
	return g.Guard.Present(ctx, t, e, a)
}

func (g *slowGuard) Withdraw(ctx context.Context, e cluster.Epoch) error {
	if err := g.dawdle(ctx); err != nil {
		return err
	}
	return g.Guard.Withdraw(ctx, e)
}

func (g *slowGuard) StartService(ctx context.Context, t cluster.Token, o cluster.DeadlineOwner, e cluster.Epoch, s cluster.ServiceSpec) error {
	if err := g.dawdle(ctx); err != nil {
		return err
	}
	return g.Guard.StartService(ctx, t, o, e, s)
}

func (g *slowGuard) End(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch) error {
	if err := g.dawdle(ctx); err != nil {
		return err
	}
	return g.Guard.End(ctx, o, e)
}

// TestRandomLivesOfWholeAgents has three whole agents live through random
// faults and demands I1, I2 and I7 of them.
func TestRandomLivesOfWholeAgents(t *testing.T) {
	lives := 12
	if testing.Short() {
		lives = 3
	}
	if s := os.Getenv("PVC_BREAK_LIVES"); s != "" {
		_, _ = fmt.Sscan(s, &lives)
	}
	from := 0
	if s := os.Getenv("PVC_BREAK_SEED"); s != "" {
		_, _ = fmt.Sscan(s, &from)
	}
	for seed := range lives {
		seed += from
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(seed), 7))
			slow := map[cluster.NodeID]*slowGuard{}
			o := threeNodes()
			if seed%2 == 0 {
				o.services = []cluster.ServiceSpec{{Name: "dns", StartTimeout: 2 * time.Second, StopTimeout: time.Second}}
			}
			o.tune = func(c *agent.Config, d *agent.Deps) {
				g := &slowGuard{Guard: d.Guard, rng: rand.New(rand.NewPCG(uint64(seed), 9))}
				if seed%3 != 0 {
					g.rate = 40
				}
				slow[c.Node] = g
				d.Guard = g
			}
			inBubble(t, o, func(b *bubble) {
				for range 15 {
					time.Sleep(time.Duration(rng.IntN(4000)) * time.Millisecond)
					b.mishap(rng)
				}
				time.Sleep(3 * time.Second)
				b.store.Resume()
				b.store.Set(maintenancePath, []byte("false"))
				for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
					b.heal(n)
					if slow[n] != nil {
						slow[n].mu.Lock()
						slow[n].rate = 0
						slow[n].mu.Unlock()
					}
					if b.nodes[n].life.cut.Load() || b.nodes[n].ended() {
						<-b.nodes[n].done
						b.start(n)
						slow[n].rate = 0
					}
				}
				b.settles(90 * time.Second)
			})
		})
	}
}

// mishap plants one random fault.
func (b *bubble) mishap(rng *rand.Rand) {
	n := []cluster.NodeID{"hv1", "hv2", "hv3"}[rng.IntN(3)]
	lasts := time.Duration(rng.IntN(7000)) * time.Millisecond
	down := b.nodes[n].life.cut.Load() || b.nodes[n].ended()
	say := func(what string) { b.log.Info("MISHAP " + what + " " + string(n) + " " + lasts.String()) }
	if down && rng.IntN(2) == 0 {
		<-b.nodes[n].done
		say("start")
		b.start(n)
		return
	}
	switch rng.IntN(14) {
	case 0:
		if !down {
			say("kill")
			b.kill(n)
		}
	case 1:
		if !down {
			say("power off")
			b.powerOff(n)
		}
	case 2:
		say("partition")
		b.store.Partition(string(n))
		time.AfterFunc(lasts, func() { b.heal(n) })
	case 3:
		say("expire")
		b.store.Expire(string(n))
	case 4:
		say("drop")
		b.store.Drop(string(n))
	case 5:
		say("stall")
		b.store.Stall()
		time.Sleep(lasts / 2)
		b.store.Resume()
	case 6:
		say("outage")
		b.store.Outage()
		time.Sleep(lasts / 2)
		b.store.Resume()
	case 7, 8, 9:
		say("wish")
		b.wish(string(n))
	case 10:
		say("wish none")
		b.wish(cluster.NoNode)
	case 11:
		count := rng.IntN(20)
		kind := rng.IntN(3)
		say(fmt.Sprint("lose kind ", kind, " one of ", count+1))
		match := func(o zktest.OpInfo) bool { count--; return count < 0 && purposeOf(o) != "" }
		switch kind {
		case 0:
			b.store.DropReply(string(n), match).Times(2)
		case 1:
			b.store.DropRequest(string(n), match).Times(2)
		case 2:
			b.store.LateCommit(string(n), match, lasts/2).Times(2)
		}
	case 12:
		if !down {
			say("SIGTERM")
			b.nodes[n].stop()
			time.Sleep(lasts / 4)
		}
	case 13:
		if g := b.guards[n]; g != nil {
			say("guard ends")
			g.endNow("told by the test")
		}
	}
}

// The fencer's last check before it takes power is the version of alive and of
// the keepalive. A new alive record has version 0 like the old one, so the
// registration itself must move the keepalive (I5).
func TestARegistrationMovesTheKeepalive(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		b.powerOff("hv2")
		time.Sleep(500 * time.Millisecond)
		from := len(b.store.History())
		b.start("hv2")
		registered := map[int64]bool{}
		b.eventually(10*time.Second, "hv2 has registered again", func() bool {
			for _, h := range b.store.History()[from:] {
				if h.Path == "/agent/alive/hv2" && h.Op == "create" {
					registered[h.Zxid] = true
				}
			}
			return len(registered) > 0
		})
		for _, h := range b.store.History()[from:] {
			if h.Path == "/nodes/hv2/keepalive" && registered[h.Zxid] {
				return
			}
		}
		b.t.Error("I5: the registration leaves alive at version 0 and the keepalive where it was: a power-off decided on the old start still commits")
	})
}

// A daemon registers once in its session.
func TestAStartRegistersOnce(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		for _, n := range b.opts.names {
			count := 0
			for _, h := range b.store.History() {
				if h.Path == "/agent/alive/"+string(n) && h.Op == "create" {
					count++
				}
			}
			if count > 1 {
				b.t.Errorf("%s has registered %d times at its start: a view older than its own registration", n, count)
			}
		}
	})
}
