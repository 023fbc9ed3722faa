package agent_test

import (
	"fmt"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// crashAt kills the victim at the commit: before it is carried out, or after it
// and before the reply, for the one who sends it; for another at that instant.
func (b *bubble) crashAt(by cluster.NodeID, purpose string, victim cluster.NodeID, before bool) (crashed func() bool) {
	life := b.nodes[victim].life
	strike := func(o zktest.OpInfo) bool {
		if purposeOf(o) != purpose {
			return false
		}
		life.sever()
		return by == victim // another's write goes on undisturbed
	}
	plant := b.store.DropReply
	if before {
		plant = b.store.DropRequest
	}
	plant(string(by), strike)
	return life.cut.Load
}

// A daemon killed at any commit of a switch comes back, goes on from the
// record, and the wish is served or answered; never do two nodes act.
func TestACrashAtAnyCommitOfASwitchIsResumed(t *testing.T) {
	for _, phase := range phases {
		for _, victim := range []cluster.NodeID{"hv1", "hv2"} {
			for _, back := range []time.Duration{200 * time.Millisecond, 2 * time.Second, 8 * time.Second} {
				for _, when := range []string{"before", "after"} {
					if when == "before" && phase.by != victim {
						continue
					}
					t.Run(fmt.Sprintf("%s dies %s %s, back after %v", victim, when, phase.purpose, back), func(t *testing.T) {
						t.Parallel()
						inBubble(t, threeNodes(), func(b *bubble) {
							b.elect("hv1")
							crashed := b.crashAt(phase.by, phase.purpose, victim, when == "before")
							b.wish("hv2")
							b.eventually(12*time.Second, "the commit was reached", crashed)
							b.kill(victim)
							time.Sleep(back)
							b.start(victim)
							if err := b.answered("hv2", b.settles(30*time.Second)); err != nil {
								b.t.Error(err)
							}
						})
					})
				}
			}
		}
	}
}

// The same for a failover: the taker dies at a commit of its own.
func TestACrashAtAnyCommitOfAFailoverIsResumed(t *testing.T) {
	for _, purpose := range []string{"lock", "take", "done", "unlock"} {
		for _, back := range []time.Duration{200 * time.Millisecond, 2 * time.Second, 8 * time.Second} {
			for _, when := range []string{"before", "after"} {
				t.Run(fmt.Sprintf("%s %s, back after %v", when, purpose, back), func(t *testing.T) {
					t.Parallel()
					inBubble(t, threeNodes(), func(b *bubble) {
						b.elect("hv1")
						crashed := b.crashAt("hv2", purpose, "hv2", when == "before")
						b.powerOff("hv1")
						b.eventually(12*time.Second, "the commit was reached", crashed)
						b.kill("hv2")
						time.Sleep(back)
						b.start("hv2")
						b.settles(20 * time.Second)
						b.start("hv1")
						b.settles(20 * time.Second)
					})
				})
			}
		}
	}
}

// A restart of the primary's daemon, whatever it was doing, moves nothing (I9):
// the guard keeps the role until the next process has resumed.
func TestARestartOfThePrimarysDaemonMovesNothing(t *testing.T) {
	for i := range 5 {
		offset := time.Duration(i) * 100 * time.Millisecond
		t.Run(fmt.Sprintf("%v into the renewal period", offset), func(t *testing.T) {
			t.Parallel()
			inBubble(t, threeNodes(), func(b *bubble) {
				b.elect("hv1")
				time.Sleep(2 * time.Second)
				renewed := b.after("hv1", "renew", func() { time.Sleep(offset) })
				<-renewed
				gaps, starts := b.seen.counts()
				b.kill("hv1")
				time.Sleep(200 * time.Millisecond)
				b.start("hv1")
				b.always(5*time.Second, "hv1 acts as primary", func() bool { return b.seen.holder() == "hv1" })
				if p := b.settles(10 * time.Second); p != "hv1" {
					b.t.Errorf("%s is primary after the restart of hv1's daemon", p)
				}
				if g, s := b.seen.counts(); g != gaps || s != starts {
					b.t.Errorf("%d gaps and %d service starts by the restart, want none", g-gaps, s-starts)
				}
			})
		})
	}
}

// An upgrade replaces daemon and guard together, and the daemon may be the first
// to be there: it resumes the role once its guard listens.
func TestARestartedDaemonWaitsForItsGuard(t *testing.T) {
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		gaps, starts := b.seen.counts()
		b.kill("hv1")
		b.guard("hv1").hears(false)
		b.start("hv1")
		time.Sleep(700 * time.Millisecond)
		b.guard("hv1").hears(true)
		b.always(5*time.Second, "hv1 acts as primary", func() bool { return b.seen.holder() == "hv1" })
		if g, s := b.seen.counts(); g != gaps || s != starts {
			b.t.Errorf("%d gaps and %d service starts by the restart, want none", g-gaps, s-starts)
		}
	})
}
