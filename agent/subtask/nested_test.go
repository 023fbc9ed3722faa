package subtask

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// S139, A12: a task heeds no cancellation and is just starting a child, which
// registers, while the one above waits for it.
func TestAChildThatRegistersWithAParentThatWaitsIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "rebalance", Options{})
		late, mid := newChild(0), newChild(0)
		spawning := make(chan struct{})
		var answers []error
		_ = r.Go("mover", func(ctx context.Context) error {
			s := r.Sub(ctx, "hv1", Options{})
			close(spawning)
			time.Sleep(300 * time.Millisecond) // it does not look at its context
			answers = append(answers, s.Adopt("rsync", late), s.Go("watch", heeds),
				s.Start("dd", func() (Child, error) { return mid, nil }))
			return s.Wait(context.WithoutCancel(ctx))
		})
		<-spawning
		began := time.Now()
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 300*time.Millisecond || r.Len() != 0 {
			t.Fatalf("the abort returned after %v with %d left", took, r.Len())
		}
		for i, err := range answers {
			if !errors.Is(err, ErrStopped) {
				t.Errorf("registration %d was answered %v", i, err)
			}
		}
		if len(answers) != 3 || late.killed.IsZero() || !mid.killed.IsZero() {
			t.Fatalf("%d answers; late killed %v; one that was refused before its start %v", len(answers), late.killed, mid.killed)
		}
	})
}

func TestAStopWaitsForAChildThatCameWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "drain", Options{})
		slow := newChild(700 * time.Millisecond) // dies slowly
		_ = r.Go("a", func(ctx context.Context) error { <-ctx.Done(); return r.Adopt("late", slow) })
		began := time.Now()
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 700*time.Millisecond {
			t.Fatalf("over after %v while the child still ran", took)
		}
		if shot := r.Shot(); !slices.Equal(shot, []string{"late"}) {
			t.Fatalf("killed %q", shot)
		}
	})
}

func TestAChildWhoseStartOutlastsTheKillIsKilledWhenItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "fence", Options{})
		c := newChild(0)
		starting := make(chan struct{})
		var answer error
		go func() {
			answer = r.Start("fence_ipmilan", func() (Child, error) { close(starting); time.Sleep(1500 * time.Millisecond); return c, nil })
		}()
		<-starting
		began := time.Now()
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if took := time.Since(began); took != 1500*time.Millisecond || c.killed.IsZero() || !errors.Is(answer, ErrStopped) {
			t.Fatalf("over after %v, killed %v, the starter was told %v", took, c.killed, answer)
		}
		if shot := r.Shot(); !slices.Equal(shot, []string{"fence_ipmilan"}) {
			t.Fatalf("killed %q", shot)
		}
	})
}

// escaping is a child of which a fork escapes the first kill.
type escaping struct {
	*fakeChild
	kills atomic.Int32
}

func (c *escaping) Kill() {
	if c.kills.Add(1) == 2 {
		c.fakeChild.Kill()
	}
}

func (c *escaping) Stop(ctx context.Context, _ time.Duration) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.Kill()
	<-c.done
	return nil
}

func TestWhatEscapesAKillIsKilledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "fence", Options{})
		if err := r.Adopt("forks", &escaping{fakeChild: newChild(0)}); err != nil {
			t.Fatal(err)
		}
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAStartThatFailsOrPanicsLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "fence", Options{})
		missing := errors.New("no such program")
		if err := r.Start("x", func() (Child, error) { return nil, missing }); !errors.Is(err, missing) || r.Len() != 0 {
			t.Fatalf("%v, %d left", err, r.Len())
		}
		_ = r.Go("y", func(context.Context) error { return r.Start("z", func() (Child, error) { panic("nil map") }) })
		if err := r.Wait(t.Context()); err != nil || !strings.Contains(r.Err().Error(), "nil map") {
			t.Fatalf("%v, %v", err, r.Err())
		}
	})
}

// S140.
func TestTheFirstFailureEndsItsSiblings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "copy", Options{Together: true})
		first := errors.New("disk full")
		c := newChild(0)
		var sibling error
		_ = r.Go("b", func(ctx context.Context) error {
			<-ctx.Done()
			sibling = context.Cause(ctx)
			return errors.New("interrupted")
		})
		_ = r.Adopt("rsync", c)
		_ = r.Go("a", func(context.Context) error { time.Sleep(time.Second); return first })
		began := time.Now()
		err := r.Join(t.Context(), ladder)
		if !errors.Is(err, first) || !errors.Is(sibling, first) || strings.Contains(err.Error(), "interrupted") {
			t.Fatalf("joined with %v, the sibling ended by %v", err, sibling)
		}
		if r.Len() != 0 || c.killed.IsZero() || time.Since(began) != 2*time.Second {
			t.Fatalf("%d left, child killed %v, after %v", r.Len(), c.killed, time.Since(began))
		}
	})
}

func TestWithoutTogetherSiblingsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "copy", Options{})
		first, went := errors.New("disk full"), false
		_ = r.Go("a", func(context.Context) error { return first })
		_ = r.Go("b", func(ctx context.Context) error { time.Sleep(time.Second); went = ctx.Err() == nil; return nil })
		if err := r.Join(t.Context(), ladder); !errors.Is(err, first) || !went {
			t.Fatalf("%v, the sibling went on %v", err, went)
		}
	})
}

func TestAStopReachesWhatIsNestedAndNamesItByItsPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "rebalance", Options{})
		inner := r.Sub(r.Context(), "hv1", Options{}).Sub(r.Context(), "vm7", Options{})
		c := newChild(0)
		_, _ = inner.Adopt("rsync", c), inner.Go("watch", heeds)
		if names := r.Names(); !slices.Equal(names, []string{"hv1/vm7/rsync", "hv1/vm7/watch"}) {
			t.Fatalf("the outermost holds %q", names)
		}
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil || inner.Len() != 0 || c.killed.IsZero() {
			t.Fatalf("%v, %d left, killed %v", err, inner.Len(), c.killed)
		}
		if cause := context.Cause(inner.Context()); !errors.Is(cause, errQuorum) {
			t.Fatalf("the inner one ended by %v", cause)
		}
		if err := inner.Go("late", heeds); !errors.Is(err, ErrStopped) {
			t.Fatalf("registered below one that is over: %v", err)
		}
	})
}

// The context that is nested in, its own stop or that of what is above it: each
// ends what is nested, and a child of it is asked first, and killed a grace later.
func TestWhatIsNestedIsAskedBeforeItIsKilledWhateverItsContext(t *testing.T) {
	for name, above := range map[string]func(*Registry) context.Context{
		"the registry's":   (*Registry).Context,
		"one that goes on": func(*Registry) context.Context { return context.Background() },
	} {
		synctest.Test(t, func(t *testing.T) {
			r := New(t.Context(), "rebalance", Options{})
			s := r.Sub(above(r), "hv1", Options{})
			c := newChild(0)
			if err := s.Adopt("rsync", c); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if cause := context.Cause(s.Context()); !errors.Is(cause, errQuorum) {
				t.Errorf("%s: what is nested ended by %v", name, cause)
			}
			if asked := c.killed.Sub(began); asked != ladder.Grace {
				t.Errorf("%s: its child was killed %v after it was asked, not %v", name, asked, ladder.Grace)
			}
		})
	}
}

// What a nested stop had to kill is told by all above it, too: an operator asks
// the outermost.
func TestWhatANestedStopKillsIsToldAbove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "rebalance", Options{})
		s := r.Sub(r.Context(), "hv1", Options{})
		if err := errors.Join(s.Adopt("rsync", newChild(0)), s.Stop(t.Context(), errQuorum, ladder)); err != nil {
			t.Fatal(err)
		}
		if own, above := s.Shot(), r.Shot(); !slices.Equal(own, []string{"hv1/rsync"}) || !slices.Equal(above, own) {
			t.Errorf("killed by its own word %q, by that above %q", own, above)
		}
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
	})
}

func TestANestedStopLeavesTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "rebalance", Options{})
		s := r.Sub(r.Context(), "hv1", Options{})
		_, _ = r.Go("other", heeds), s.Go("watch", heeds)
		if err := s.Stop(t.Context(), errQuorum, ladder); err != nil || r.Len() != 1 || r.Context().Err() != nil {
			t.Fatalf("%v, %d left, %v", err, r.Len(), r.Context().Err())
		}
		_ = r.Stop(t.Context(), errQuorum, ladder)
	})
}

func TestWhoSurvivesIsToldOfOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []*StragglerError
		r := New(t.Context(), "recover", Options{Abandon: func(e *StragglerError) { told = append(told, e) }})
		release := make(chan struct{})
		_ = r.Sub(r.Context(), "hv1", Options{}).Go("storage", func(context.Context) error { blocksForEver(release); return nil })
		began := time.Now()
		_, _ = r.Stop(t.Context(), errQuorum, ladder), r.Stop(t.Context(), errQuorum, ladder)
		if len(told) != 1 || told[0].Stragglers[0].Name != "hv1/storage" || !strings.Contains(told[0].Stragglers[0].Stack, "blocksForEver") {
			t.Fatalf("told %+v", told)
		}
		if took := time.Since(began); took != 6*time.Second {
			t.Errorf("two ladders took %v", took)
		}
		close(release)
	})
}

// R2: a stop that found nothing to do leaves nothing behind that could act later.
func TestAnEarlyEndLeavesNoTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "drain", Options{})
		_ = r.Go("a", func(context.Context) error { return nil })
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
		next := New(t.Context(), "drain", Options{})
		c := newChild(0)
		_ = next.Adopt("rsync", c)
		time.Sleep(time.Hour)
		if next.Context().Err() != nil || !c.killed.IsZero() {
			t.Fatalf("the next one was hit: %v, %v", context.Cause(next.Context()), c.killed)
		}
		_ = next.Stop(t.Context(), errQuorum, ladder)
	})
}
