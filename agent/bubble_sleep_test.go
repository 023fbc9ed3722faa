package agent_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// Wherever in a switch one of its sides sleeps, there is one primary, and the
// wish is served or answered. What a clock that has jumped says of another's
// lease proves nothing: for how long the host slept it may not know (I1).
func TestABootClockJumpsInASwitch(t *testing.T) {
	for _, who := range []cluster.NodeID{"hv1", "hv2"} {
		for i := range 14 {
			at := time.Duration(i) * 50 * time.Millisecond
			for _, span := range []time.Duration{time.Second, time.Minute} {
				t.Run(fmt.Sprintf("%s by %v, %v after the wish", who, span, at), func(t *testing.T) {
					t.Parallel()
					withOwnClocks(t, func(b *bubble, k *hostClocks, asked *asked) {
						b.wish("hv2")
						time.Sleep(at)
						k.sleeps(who, span)
						k.whole(asked)
						b.eventually(10*time.Second, "the wish is served or answered", func() bool {
							dropped := strings.Contains(b.story(), `"node":"hv2","kind":"role_dropped"`) // it had it, and slept
							return dropped || b.answeredNow("hv2", b.primary()) == nil
						})
					})
				})
			}
		}
	}
}

// One that has promised, has slept and has the store back before the holder:
// its promise binds as one of before a restart does.
func TestAPromiseOutlivesTheSleepOfWhoGaveIt(t *testing.T) {
	for _, late := range []time.Duration{0, 300 * time.Millisecond, time.Second, 2 * time.Second} {
		for _, span := range []time.Duration{time.Second, 4 * time.Second, time.Minute} {
			t.Run(fmt.Sprintf("%v, %v before the store is back", span, late), func(t *testing.T) {
				t.Parallel()
				withOwnClocks(t, func(b *bubble, k *hostClocks, asked *asked) {
					for _, n := range b.opts.names {
						b.store.Partition(string(n))
					}
					b.always(12*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
					k.sleeps("hv2", span)
					time.Sleep(late)
					b.heal("hv2")
					time.Sleep(5 * time.Second)
					b.heal("hv1")
					b.heal("hv3")
					b.settles(20 * time.Second)
					if fenced := asked.all(); fenced != "" {
						b.t.Errorf("fenced: %q", fenced)
					}
				})
			})
		}
	}
}
