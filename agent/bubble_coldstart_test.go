package agent_test

import (
	"fmt"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// Every order in which three nodes come back, all at once, ten seconds and a
// minute apart, the store with the second of them: one primary soon after that,
// nobody fenced, each service started once, however late the last one is.
func TestAColdStartInEveryOrder(t *testing.T) {
	orders := [][]cluster.NodeID{
		{"hv1", "hv2", "hv3"}, {"hv1", "hv3", "hv2"}, {"hv2", "hv1", "hv3"}, {"hv2", "hv3", "hv1"}, {"hv3", "hv1", "hv2"}, {"hv3", "hv2", "hv1"},
	}
	for _, apart := range []time.Duration{0, 10 * time.Second, 60 * time.Second} {
		for _, order := range orders {
			t.Run(fmt.Sprintf("%v, %v apart", order, apart), func(t *testing.T) {
				t.Parallel()
				o, asked := threeWithFencers()
				inFabric(t, o, func(b *bubble, f *fabric) {
					b.settled()
					for _, n := range b.opts.names {
						b.powerOff(n)
					}
					b.store.Outage()
					time.Sleep(30 * time.Second)
					_, before := b.seen.counts()
					b.start(order[0])
					time.Sleep(apart)
					b.start(order[1])
					b.store.Resume() // its ensemble has a majority
					quorum := time.Now()
					b.eventually(10*time.Second, "one primary", func() bool { return b.primary() != "" })
					holder := b.primary()
					if wait := time.Until(quorum.Add(apart)); wait > 0 {
						b.always(wait, "it stays", func() bool { return b.seen.holder() == holder })
					}
					b.start(order[2])
					b.always(2*b.timing.SuspectAfter(), "it stays", func() bool { return b.seen.holder() == holder })
					b.settles(10 * time.Second)
					if _, now := b.seen.counts(); now-before != len(twoServices) {
						b.t.Errorf("%d services were started, want %d", now-before, len(twoServices))
					}
					if fenced := asked.all(); fenced != "" {
						b.t.Errorf("fenced: %q", fenced)
					}
				})
			})
		}
	}
}

// A node that never comes back from a cold start is one that starts, for as
// long as starting may take; after that it is dead, and fenced once.
func TestANodeThatStaysAwayFromAColdStart(t *testing.T) {
	t.Parallel()
	o, asked := threeWithFencers()
	inFabric(t, o, func(b *bubble, f *fabric) {
		b.settled()
		for _, n := range b.opts.names {
			b.powerOff(n)
		}
		b.store.Outage()
		time.Sleep(30 * time.Second)
		b.store.Resume()
		b.start("hv1")
		b.start("hv2")
		b.eventually(10*time.Second, "one primary", func() bool { return b.primary() != "" })
		b.always(b.timing.BootTimeout-10*time.Second, "hv3 has its time to start", func() bool { return asked.all() == "" })
		b.eventually(30*time.Second, "hv3 is fenced", func() bool { return asked.all() == string(b.primary())+" fences hv3" })
	})
}
