package agent_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// judged lists who was published as worse than `up`, but for `late`, and by whom.
func (b *bubble) judged() []string {
	var worst []string
	for _, h := range b.store.History() {
		by, ok := strings.CutPrefix(h.Path, "/agent/views/")
		var v agent.View
		if !ok || json.Unmarshal(h.Data, &v) != nil {
			continue
		}
		for n, seen := range v.Nodes {
			if seen.Liveness != "up" && seen.Liveness != "late" && seen.Liveness != "unknown" {
				worst = append(worst, fmt.Sprintf("%s: %s by %s", n, seen.Liveness, by))
			}
		}
	}
	slices.Sort(worst)
	return slices.Compact(worst)
}

// Eight nodes contend again and again: each time one of them wins, soon, at a
// larger epoch.
func TestOneOfEightContendersWinsEachRound(t *testing.T) {
	t.Parallel()
	var names []cluster.NodeID
	for i := range 8 {
		names = append(names, cluster.NodeID(fmt.Sprintf("hv%d", i+1)))
	}
	inBubble(t, nodesCalled(names...), func(b *bubble) {
		b.eventually(6*time.Second, "one primary", func() bool { return b.primary() != "" })
		var acted []int
		for round := range 200 {
			old, epoch := b.primary(), readLease([]byte(b.read(leasePath))).Epoch
			limit := time.Second // from the release
			if round%4 == 3 {
				b.store.Partition(string(old)) // expiry: counted from the last renewal
				limit += b.timing.RoleTTL + b.timing.TakerMargin
			} else {
				b.guard(old).endNow("round " + strconv.Itoa(round))
			}
			b.eventually(limit, "the role is taken, round "+strconv.Itoa(round), func() bool { p := b.seen.holder(); return p != "" && p != old })
			b.heal(old)
			b.eventually(8*time.Second, "all have settled", func() bool { return b.converged() != "" })
			if now := readLease([]byte(b.read(leasePath))).Epoch; now <= epoch {
				b.t.Errorf("round %d: epoch %d after %d", round, now, epoch)
			}
			acted = append(acted, len(b.seen.begun))
		}
		for round, n := range acted {
			if round > 0 && n != acted[round-1]+1 {
				b.t.Errorf("round %d: %d nodes began to act", round, n-acted[round-1])
			}
		}
	})
}

var storeFaults = []struct {
	name  string
	begin func(b *bubble)
}{
	{"stall", func(b *bubble) { b.store.Stall() }},
	{"outage", func(b *bubble) { b.store.Outage() }},
}

// A store that takes no writes for as long as a leader's loss lasts moves
// nothing, whenever in the renewal period it begins (I9).
func TestAShortStoreFaultMovesNothing(t *testing.T) {
	for _, fault := range storeFaults {
		for _, span := range []time.Duration{500 * time.Millisecond, time.Second, 1800 * time.Millisecond} {
			for i := range 5 {
				offset := time.Duration(i) * 100 * time.Millisecond
				t.Run(fmt.Sprintf("%s of %v, %v after a renewal", fault.name, span, offset), func(t *testing.T) {
					t.Parallel()
					inBubble(t, threeNodes(), func(b *bubble) {
						b.elect("hv1")
						time.Sleep(7 * time.Second) // detectors are no longer blind
						<-b.after("hv1", "renew", func() { time.Sleep(offset) })
						epoch := readLease([]byte(b.read(leasePath))).Epoch
						fault.begin(b)
						time.AfterFunc(span, b.store.Resume)
						b.always(span+5*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
						if now := readLease([]byte(b.read(leasePath))); now.Epoch != epoch || now.Holder != "hv1" {
							b.t.Errorf("the lease is %+v, at first epoch %d of hv1", now, epoch)
						}
						if j := b.judged(); len(j) > 0 {
							b.t.Errorf("judged by who saw nothing: %v", j)
						}
					})
				})
			}
		}
	}
}

// A long one ends the role by its deadline; afterwards there is one primary
// again, and nobody was judged while nobody could see.
func TestALongStoreFaultEndsTheRoleInTime(t *testing.T) {
	for _, fault := range storeFaults {
		for _, span := range []time.Duration{4 * time.Second, 20 * time.Second} {
			t.Run(fmt.Sprintf("%s of %v", fault.name, span), func(t *testing.T) {
				t.Parallel()
				inBubble(t, threeNodes(), func(b *bubble) {
					b.elect("hv1")
					time.Sleep(7 * time.Second)
					fault.begin(b)
					b.eventually(b.timing.RoleTTL-b.timing.Grace+10*time.Millisecond, "hv1 has stopped by its deadline", func() bool { return b.seen.holder() == "" })
					b.always(span-b.timing.RoleTTL, "nobody acts", func() bool { return b.seen.holder() == "" })
					b.store.Resume()
					b.settles(15 * time.Second)
					if j := b.judged(); len(j) > 0 {
						b.t.Errorf("judged by who saw nothing: %v", j)
					}
				})
			})
		}
	}
}

// slowStop are services whose end takes a minute.
func slowStop() bubbleOptions {
	o := threeNodes()
	o.services = []cluster.ServiceSpec{{Name: "slow", Kind: cluster.ServiceHook, Command: []string{"slow"}, StartTimeout: time.Second, StopTimeout: 70 * time.Second}}
	return o
}

// A shutdown that takes long is announced, keeps the keepalive going, is held
// against nobody, and its last word is stop.
func TestASlowShutdownKeepsTheKeepalive(t *testing.T) {
	t.Parallel()
	inBubble(t, slowStop(), func(b *bubble) {
		b.elect("hv1")
		time.Sleep(8 * time.Second)
		b.guard("hv1").stopTime = time.Minute
		from := time.Now()
		b.nodes["hv1"].stop()
		b.eventually(time.Second, "the shutdown is announced", func() bool { return b.read("/nodes/hv1/daemonstate") == "shutdown" })
		b.eventually(75*time.Second, "the daemon has ended", b.nodes["hv1"].ended)
		if took := time.Since(from); took < time.Minute {
			b.t.Errorf("the shutdown took %v and did not wait for its service", took)
		}
		last, lastWrite := from.Add(-b.timing.KeepaliveInterval), ""
		for _, h := range b.store.History() {
			if h.Client != "hv1" || h.Op != "set" && h.Op != "create" {
				continue
			}
			if h.Path == "/nodes/hv1/keepalive" && h.At.After(from) {
				if gap := h.At.Sub(last); gap > 3*b.timing.KeepaliveInterval/2 {
					b.t.Errorf("no keepalive for %v at %s", gap, h.At.Format("04:05.000"))
				}
				last = h.At
			}
			if h.Path != "/nodes/hv1/keepalive" {
				lastWrite = h.Path + " = " + string(h.Data)
			}
		}
		if want := "/nodes/hv1/daemonstate = stop"; lastWrite != want {
			b.t.Errorf("the last write is %s, want %s", lastWrite, want)
		}
		if j := b.judged(); len(j) > 0 {
			b.t.Errorf("suspected although it shut down in order: %v", j)
		}
		b.eventually(5*time.Second, "another is primary", func() bool { p := b.primary(); return p != "" && p != "hv1" })
	})
}

// Where nobody else could serve, the services are stopped in order all the
// same, under a role that lives on until the last is gone; then it is released.
func TestALoneShutdownStopsItsServicesInOrder(t *testing.T) {
	t.Parallel()
	o := bubbleOptions{names: []cluster.NodeID{"hv1"}, services: slices.Clone(twoServices)}
	for i := range o.services {
		o.services[i].StopTimeout = 20 * time.Second
	}
	inBubble(t, o, func(b *bubble) {
		b.eventually(6*time.Second, "one primary", func() bool { return b.primary() == "hv1" })
		b.guard("hv1").stopTime = 10 * time.Second
		b.nodes["hv1"].stop()
		b.always(19*time.Second, "the role lives while a service stops", func() bool { return b.seen.holder() == "hv1" })
		b.eventually(10*time.Second, "the daemon has ended", b.nodes["hv1"].ended)
		if want := []string{"hv1/web", "hv1/dns"}; !slices.Equal(b.seen.stops, want) {
			b.t.Errorf("stopped in order: %v, want %v", b.seen.stops, want)
		}
		if l := readLease([]byte(b.read(leasePath))); !l.Released() || b.read("/nodes/hv1/daemonstate") != "stop" {
			b.t.Errorf("the lease is %+v, the daemon state %s; want released and stop", l, b.read("/nodes/hv1/daemonstate"))
		}
	})
}
