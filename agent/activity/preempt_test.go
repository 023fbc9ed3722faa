package activity

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

// F11: a rebalance that ignores its stop is out of a failover's way in two
// seconds, and its clean-up comes afterwards.
func TestAFailoverTakesTheDomainWithinTwoSeconds(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		c := newChild(100 * time.Millisecond)
		var order []string
		slow := b.runs(ordinary(cluster.Majority()), func(ctx context.Context, a *Activity) error {
			a.CleanUp("tidy", func(context.Context, *Activity) error {
				order = append(order, "tidy")
				time.Sleep(time.Minute)
				return nil
			})
			return withChild(c)(ctx, a)
		})
		asked := time.Now()
		var began time.Time
		f := b.runs(failover(), func(context.Context, *Activity) error {
			began, order = time.Now(), append(order, "failover")
			time.Sleep(time.Second)
			if n := len(b.List()); n != 2 { // itself and the clean-up, which waits
				t.Errorf("%d are listed: %+v", n, b.List())
			}
			time.Sleep(30 * time.Second)
			return nil
		})
		if <-f.done; f.err != nil || began.Sub(asked) > 2*time.Second || began.Sub(asked) != 1100*time.Millisecond {
			t.Fatalf("%v, began after %v", f.err, began.Sub(asked))
		}
		var preempted *cluster.Preempted
		if <-slow.done; !errors.As(slow.err, &preempted) || preempted.By != f.a.ID() {
			t.Fatalf("%v", slow.err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if list := b.List(); len(list) != 1 || list[0].Name != "tidy" || list[0].State != cluster.ActivityRunning {
			t.Fatalf("the clean-up is not listed: %+v", list)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if !slices.Equal(order, []string{"failover", "tidy"}) || len(b.List()) != 0 {
			t.Fatalf("%q, left %+v", order, b.List())
		}
	})
}

// F19.
func TestAFailoverIsNeverInterruptedAndOneMoreIsKept(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		first := b.runs(failover(), func(ctx context.Context, a *Activity) error {
			// What is nested in it is as safe.
			return a.Run(ctx, Spec{Name: "fence", Quorum: cluster.Majority()}, func(ctx context.Context, _ *Activity) error {
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case <-time.After(10 * time.Second):
					return nil
				}
			})
		})
		second, third := b.runs(failover()), b.runs(failover())
		if !third.isOver() || code(third.err) != cluster.RefuseRetry || second.isOver() || first.isOver() {
			t.Fatalf("first %v, second %v, third %v", first.err, second.err, third.err)
		}
		late := b.runs(ordinary(cluster.Majority()))
		if _, err := b.Stop(t.Context(), first.a.ID(), "root", "enough"); code(err) != cluster.RefuseUninterrupted {
			t.Fatalf("stopped: %v", err)
		}
		<-first.done
		synctest.Wait()
		if first.err != nil || second.a == nil || late.a != nil {
			t.Fatalf("first %v; the deferred one runs %v, one that came later %v", first.err, second.a != nil, late.a != nil)
		}
		// The loss of its quorum ends it as any other.
		b.leads("a")
		if <-second.done; cluster.EndCode(second.err) != "quorum_lost" {
			t.Fatalf("%v", second.err)
		}
		<-late.done
	})
}

func TestAFailoverThatCouldNotBeginEndsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads("a", "b", "c")
		r := b.runs(ordinary(cluster.Majority()))
		f := b.runs(Spec{Name: "failover", Quorum: cluster.All("e"), Urgency: Failover})
		if <-f.done; code(f.err) != cluster.RefuseDomainConflict || r.isOver() {
			t.Fatalf("%v; the running one %v", f.err, r.err)
		}
	})
}

func TestAnUnsafeFailoverWaitsForTheKillOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		b.runs(ordinary(cluster.Majority()), withChild(newChild(0)))
		b.leads(five...)
		s := failover()
		s.Unsafe = true
		began := time.Now()
		var after time.Duration
		f := b.runs(s, func(context.Context, *Activity) error { after = time.Since(began); return nil })
		if <-f.done; f.err != nil || after != time.Second {
			t.Fatalf("%v after %v", f.err, after)
		}
		other := b.runs(failover())
		if g := b.runs(s); !g.isOver() || code(g.err) != cluster.RefuseDomainConflict || other.isOver() {
			t.Fatalf("behind a failover: %v", g.err)
		}
	})
}

func TestCleanUpsComeAfterAnEndOfOnesOwn(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		cleaned := false
		r := b.runs(ordinary(cluster.Majority()), func(_ context.Context, a *Activity) error {
			a.CleanUp("tidy", func(context.Context, *Activity) error { cleaned = true; return nil })
			return nil
		})
		<-r.done
		time.Sleep(time.Second)
		synctest.Wait()
		if !cleaned || b.Counts().Started != 2 {
			t.Fatalf("cleaned %v, %+v", cleaned, b.Counts())
		}
	})
}
