package agent_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

var fiveNames = []cluster.NodeID{"hv1", "hv2", "hv3", "hv4", "hv5"}

// talkingWithServices are nodes that talk directly, with services, and what their
// fencers are asked for.
func talkingWithServices(names ...cluster.NodeID) (bubbleOptions, *asked) {
	o, a := talkingFencers(names...)
	o.services = twoServices
	return o, a
}

// parted cuts the links between the nodes of one side and all others, and that
// side off from the store.
func (b *bubble) parted(side ...cluster.NodeID) {
	for _, n := range side {
		b.store.Partition(string(n))
		for _, other := range fiveNames {
			if !slices.Contains(side, other) {
				b.talk.net.Part(string(n), string(other))
			}
		}
	}
}

func (b *bubble) joined() {
	b.talk.net.Heal()
	for _, n := range fiveNames {
		b.heal(n)
	}
}

// A switch reboots: every node loses every other and the store at once, for
// shorter or longer than anything here takes. Everybody stops, nobody is fenced
// then or afterwards, and one is primary again (I6).
func TestASwitchThatReboots(t *testing.T) {
	for _, span := range []time.Duration{2 * time.Second, 6 * time.Second, 20 * time.Second, 3 * time.Minute} {
		t.Run(span.String(), func(t *testing.T) {
			t.Parallel()
			o, asked := talkingWithServices(fiveNames...)
			inBubble(t, o, func(b *bubble) {
				b.restful()
				for _, n := range fiveNames {
					b.parted(n)
				}
				if span > b.timing.StopAfter() {
					b.eventually(b.timing.StopAfter(), "hv1 has stopped", func() bool { return b.seen.holder() == "" })
				}
				time.Sleep(span)
				b.joined()
				b.settles(20 * time.Second)
				b.always(3*b.timing.SuspectAfter(), "nobody is fenced", func() bool { return asked.all() == "" })
			})
		})
	}
}

// The smaller side of a split has the store and the role: it sees most nodes
// dead and shoots nobody. The larger side, without a store, can do nothing.
func TestASplitWithTheStoreOnTheSmallerSide(t *testing.T) {
	for _, store := range [][]cluster.NodeID{{"hv1"}, {"hv1", "hv2"}, {"hv2", "hv3"}} {
		t.Run(fmt.Sprint(store), func(t *testing.T) {
			t.Parallel()
			o, asked := talkingWithServices(fiveNames...)
			inBubble(t, o, func(b *bubble) {
				b.restful()
				b.parted(slices.DeleteFunc(slices.Clone(fiveNames), func(n cluster.NodeID) bool { return slices.Contains(store, n) })...)
				b.always(time.Minute, "nobody is fenced by the smaller side", func() bool { return asked.all() == "" })
				if holder := b.seen.holder(); !slices.Contains(store, holder) {
					b.t.Errorf("%q acts, without the store", holder)
				}
				if said := b.read("/agent/views/" + string(b.seen.holder())); !strings.Contains(said, string(cluster.RefuseTooMany)) {
					b.t.Errorf("%s does not say that half of the nodes and more are down: %s", b.seen.holder(), said)
				}
				b.joined()
				b.settles(20 * time.Second)
				if fenced := asked.all(); fenced != "" {
					b.t.Errorf("fenced once the split had healed: %q", fenced)
				}
			})
		})
	}
}

// The larger side has the store: two of five are lost to it, and are fenced one
// by one; the primary on the smaller side has stopped long before.
func TestASplitWithTheStoreOnTheLargerSide(t *testing.T) {
	t.Parallel()
	o, asked := talkingWithServices(fiveNames...)
	inBubble(t, o, func(b *bubble) {
		b.restful()
		b.store.Set(failoverPath, []byte(`{"v":1,"enabled":true,"max_count":5}`))
		b.parted("hv1", "hv2")
		b.eventually(b.timing.StopAfter(), "hv1 has stopped", func() bool { return b.seen.holder() != "hv1" })
		fenced := func(n string) func() bool {
			return func() bool { return strings.HasSuffix(asked.all(), " fences "+n) }
		}
		b.eventually(b.timing.SuspectAfter()+b.timing.SessionTimeout, "the old primary is fenced first", fenced("hv1"))
		b.leaveFence("hv1", cluster.FenceDone)
		b.eventually(b.timing.KeepaliveInterval, "then the other", fenced("hv2"))
		b.leaveFence("hv2", cluster.FenceDone)
		b.always(time.Minute, "nobody else is", fenced("hv2"))
		if strings.Contains(asked.all(), "hv1 fences") || strings.Contains(asked.all(), "hv2 fences") {
			b.t.Errorf("fenced by who has no store: %s", asked.all())
		}
	})
}

// One way of a link is cut, from the primary to a node or back, the store whole:
// nobody is judged, and nothing moves, for as long as both write.
func TestALinkCutOneWayMovesNothing(t *testing.T) {
	for _, way := range [][2]string{{"hv1", "hv3"}, {"hv3", "hv1"}, {"hv2", "hv3"}, {"hv3", "hv2"}} {
		t.Run(way[0]+" to "+way[1], func(t *testing.T) {
			t.Parallel()
			o, asked := talkingWithServices("hv1", "hv2", "hv3")
			inBubble(t, o, func(b *bubble) {
				b.restful()
				before := b.standing()
				b.talk.net.Cut(way[0], way[1])
				b.always(time.Minute, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				if j, fenced, now := b.judged(), asked.all(), b.standing(); len(j) > 0 || fenced != "" || now != before {
					b.t.Errorf("judged %v, fenced %q, %+v, before %+v", j, fenced, now, before)
				}
			})
		})
	}
}

var storeWays = map[string]zktest.Direction{"requests": zktest.ToServer, "replies": zktest.ToClient}

// A node that hears the store and is not heard by it, or the other way round,
// has lost it: it stops by itself, and is not shot while it answers its peers.
func TestAStoreLinkCutOneWay(t *testing.T) {
	for name, way := range storeWays {
		for _, n := range []cluster.NodeID{"hv1", "hv3"} {
			t.Run(fmt.Sprintf("%s of %s are lost", name, n), func(t *testing.T) {
				t.Parallel()
				o, asked := talkingWithServices("hv1", "hv2", "hv3")
				inBubble(t, o, func(b *bubble) {
					b.restful()
					b.store.OneWay(string(n), way)
					b.eventually(b.timing.StopAfter()+b.timing.RoleTTL, "the role is where the store is", func() bool { p := b.primary(); return p != "" && p != n })
					b.always(b.timing.IsolatedFenceAfter()-2*b.timing.StopAfter(), "nobody is fenced", func() bool { return asked.all() == "" })
					b.heal(n)
					b.settles(20 * time.Second)
					if fenced := asked.all(); fenced != "" {
						b.t.Errorf("fenced: %q", fenced)
					}
				})
			})
		}
	}
}
