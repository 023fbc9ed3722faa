package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
)

// hostClock is one host's own clocks: agent, guard and store client read the
// same boot clock, which counts absolute deadlines, and it may jump ahead of the
// monotonic one, as it does when the host has slept.
type hostClock struct {
	base cluster.Clock
	mu   sync.Mutex
	boot time.Duration // ahead of base
	wall time.Duration // ahead of the others' wall clocks
}

func (c *hostClock) Now() cluster.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.base.Now().Add(c.boot)
}

func (c *hostClock) wallMS() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.wall).UnixMilli()
}

func (c *hostClock) step(boot, wall time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boot, c.wall = c.boot+boot, c.wall+wall
}

// hostClocks are those of a cluster, by host.
type hostClocks struct {
	b    *bubble
	hand map[cluster.NodeID]*hostClock
}

// withOwnClocks runs the test with three whole agents that talk directly, each
// with its guard on clocks of its own, and fencers that do nothing.
func withOwnClocks(t *testing.T, fn func(b *bubble, c *hostClocks, asked *asked)) {
	t.Helper()
	o, a := threeWithFencers()
	names, tune := o.names, o.tune
	k := &hostClocks{hand: map[cluster.NodeID]*hostClock{}}
	o.tune = func(c *agent.Config, d *agent.Deps) {
		tune(c, d)
		k.give(c, d)
	}
	o.names = nil // once the bubble is known to give
	inFabric(t, o, func(b *bubble, _ *fabric) {
		k.b, b.opts.names = b, names
		for _, n := range names {
			b.start(n)
		}
		b.settled()
		fn(b, k, a)
	})
}

// give puts one start of a daemon on its host's clocks.
func (k *hostClocks) give(c *agent.Config, d *agent.Deps) {
	own := k.hand[c.Node]
	if own == nil {
		own = &hostClock{base: k.b.clock}
		k.hand[c.Node] = own
	}
	link := d.Guard.(*guardLink)
	link.mu.Lock()
	link.clock = own
	link.mu.Unlock()
	h, err := zkhandler.New(zkhandler.Config{
		Servers: k.b.store.Servers(), SessionTimeout: k.b.timing.SessionTimeout, RequestTimeout: k.b.timing.RequestTimeout(),
		WatchNodes: true, Dial: link.life.dialer(k.b.store.Dialer(string(c.Node))),
	}, own, d.Log.Named("own"), nil)
	if err != nil {
		k.b.t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = h.Run(ctx) }()
	k.b.t.Cleanup(func() { end(); <-done })
	d.Clock, d.Store, d.Locker, d.Tree = own, h, h, h
	c.WallMS = own.wallMS
}

// guardTick is how often a guard looks whether its host has slept.
const guardTick = 200 * time.Millisecond

// sleeps has a host find its boot clock that far ahead. Its guard ends at once
// what is overdue, and with its next look whatever hung on a lease.
func (k *hostClocks) sleeps(n cluster.NodeID, span time.Duration) {
	k.hand[n].step(span, 0)
	g := k.b.guard(n)
	g.mu.Lock()
	if g.live {
		g.arm()
	}
	if g.rightLive {
		g.armNode(g.right)
	}
	g.mu.Unlock()
	if span > 50*time.Millisecond {
		time.AfterFunc(guardTick, func() { g.endNow("the host was suspended") })
	}
}

// whole is what must hold however clocks jump: one primary in the end, nobody
// fenced, and nobody judged by a clock. (That never two acted the bubble looks
// at itself.)
func (k *hostClocks) whole(asked *asked) {
	k.b.t.Helper()
	k.b.settles(20 * time.Second)
	if j, fenced := k.b.judged(), asked.all(); len(j) > 0 || fenced != "" {
		k.b.t.Errorf("judged by a clock: %v; fenced: %q", j, fenced)
	}
}

// A primary's host that has slept gives the role up, whatever is left of its
// lease; a jump that is within the clocks' noise costs nothing (I3, I9).
func TestThePrimarysBootClockJumps(t *testing.T) {
	for _, span := range []time.Duration{40 * time.Millisecond, 400 * time.Millisecond, 2 * time.Second, 10 * time.Second, time.Hour} {
		t.Run(span.String(), func(t *testing.T) {
			t.Parallel()
			withOwnClocks(t, func(b *bubble, k *hostClocks, asked *asked) {
				before := b.standing()
				k.sleeps("hv1", span)
				if span < 100*time.Millisecond {
					b.always(10*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
					if now := b.standing(); now != before {
						b.t.Errorf("%+v, before %+v", now, before)
					}
					return
				}
				b.eventually(guardTick+10*time.Millisecond, "hv1 has given up", func() bool { return b.seen.holder() != "hv1" })
				b.eventually(b.timing.RoleTTL+time.Second, "somebody acts", func() bool { return b.seen.holder() != "" })
				k.whole(asked)
				b.eventually(10*time.Second, "the history says why hv1 gave up", func() bool { return strings.Contains(b.story(), "host was suspended") })
			})
		})
	}
}

// Any other host's sleep moves nothing: it has seen nothing meanwhile, and knows it.
func TestASecondarysBootClockJumps(t *testing.T) {
	for _, span := range []time.Duration{400 * time.Millisecond, 3 * time.Second, 10 * time.Second, time.Hour} {
		t.Run(span.String(), func(t *testing.T) {
			t.Parallel()
			withOwnClocks(t, func(b *bubble, k *hostClocks, asked *asked) {
				before := b.standing()
				for range 5 {
					k.sleeps("hv2", span)
					b.always(1700*time.Millisecond, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				}
				k.whole(asked)
				if now := b.standing(); now != before {
					b.t.Errorf("%+v, before %+v", now, before)
				}
			})
		})
	}
}

// While nobody can write, a holder that has slept has lost the role for good,
// and one that promises and has slept costs nothing.
func TestABootClockJumpsWhileTheStoreIsAway(t *testing.T) {
	for who, stays := range map[cluster.NodeID]bool{"hv1": false, "hv2": true} {
		t.Run(string(who), func(t *testing.T) {
			t.Parallel()
			withOwnClocks(t, func(b *bubble, k *hostClocks, asked *asked) {
				b.store.Outage()
				b.always(8*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				k.sleeps(who, 5*time.Second)
				want := map[bool]cluster.NodeID{true: "hv1", false: ""}[stays]
				time.Sleep(guardTick + 10*time.Millisecond)
				b.always(15*time.Second, "what the sleep has left", func() bool { return b.seen.holder() == want })
				b.store.Resume()
				k.whole(asked)
			})
		})
	}
}

// A wall clock that steps by an hour, to and fro, moves nothing: neither at rest
// nor in an outage is anybody judged or fenced by it, and no role moves.
func TestWallClocksThatStep(t *testing.T) {
	for _, who := range [][]cluster.NodeID{{"hv1"}, {"hv2"}, {"hv3"}, {"hv1", "hv2", "hv3"}} {
		for _, by := range []time.Duration{time.Hour, -time.Hour} {
			t.Run(fmt.Sprintf("%v by %v", who, by), func(t *testing.T) {
				t.Parallel()
				withOwnClocks(t, func(b *bubble, k *hostClocks, asked *asked) {
					before := b.standing()
					steps := func(by time.Duration) {
						for _, n := range who {
							k.hand[n].step(0, by)
						}
					}
					hv1Acts := func() bool { return b.seen.holder() == "hv1" }
					steps(by)
					b.always(2*b.timing.SuspectAfter(), "hv1 acts", hv1Acts)
					if offset := keepaliveOffset(b, who[0]); offset != by {
						b.t.Fatalf("the keepalive of %s is %v off, want %v: this shows nothing", who[0], offset, by)
					}
					b.store.Outage()
					b.always(4*time.Second, "hv1 acts without the store", hv1Acts)
					steps(-by)
					b.always(8*time.Second, "hv1 acts without the store", hv1Acts)
					b.store.Resume()
					steps(by)
					b.always(2*b.timing.SuspectAfter(), "hv1 acts again", hv1Acts)
					k.whole(asked)
					if now := b.standing(); now != before {
						b.t.Errorf("%+v, before %+v", now, before)
					}
					b.wish("hv2")
					steps(-by)
					b.eventually(4*time.Second, "the role is at hv2", func() bool { return b.converged() == "hv2" })
				})
			})
		}
	}
}

// keepaliveOffset is how far the number in the node's newest keepalive is from
// the bubble's time, to the hour.
func keepaliveOffset(b *bubble, n cluster.NodeID) time.Duration {
	var seconds int64
	_, _ = fmt.Sscan(b.read("/nodes/"+string(n)+"/keepalive"), &seconds)
	return time.Until(time.Unix(seconds, 0)).Round(time.Minute)
}

// Nor does a step hasten or delay the fence of a node that is lost.
func TestAWallClockThatStepsDuringADeath(t *testing.T) {
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		for _, who := range []cluster.NodeID{"hv1", "hv3"} {
			t.Run(fmt.Sprintf("%s by %v", who, by), func(t *testing.T) {
				t.Parallel()
				withOwnClocks(t, func(b *bubble, k *hostClocks, asked *asked) {
					k.hand["hv3"].step(0, map[bool]time.Duration{true: by}[who == "hv3"])
					time.Sleep(2 * time.Second)
					lost := time.Now()
					b.powerOff("hv3")
					time.Sleep(time.Second)
					k.hand["hv1"].step(0, map[bool]time.Duration{true: by}[who == "hv1"])
					b.always(time.Until(lost.Add(b.timing.SuspectAfter()-b.timing.KeepaliveInterval)), "nobody is fenced yet", func() bool { return asked.all() == "" })
					b.eventually(b.timing.SessionTimeout+b.timing.KeepaliveInterval, "hv3 is fenced", func() bool { return asked.all() == "hv1 fences hv3" })
					if j := b.judged(); slices.ContainsFunc(j, func(s string) bool { return !strings.HasPrefix(s, "hv3:") }) {
						b.t.Errorf("judged by a clock: %v", j)
					}
				})
			})
		}
	}
}
