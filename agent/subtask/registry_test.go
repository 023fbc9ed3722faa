package subtask

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var errQuorum = errors.New("quorum lost (hv2)")

// fakeChild ends some time after it was killed; never when that is negative.
type fakeChild struct {
	dies   time.Duration
	once   sync.Once
	killed time.Time
	done   chan struct{}
}

func newChild(dies time.Duration) *fakeChild {
	return &fakeChild{dies: dies, done: make(chan struct{})}
}

func (c *fakeChild) Done() <-chan struct{} { return c.done }
func (c *fakeChild) Kill() {
	c.once.Do(func() {
		c.killed = time.Now()
		if c.dies >= 0 {
			time.AfterFunc(c.dies, func() { close(c.done) })
		}
	})
}

func heeds(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }

func (c *fakeChild) Stop(ctx context.Context, grace time.Duration) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	case <-time.After(grace):
	}
	c.Kill()
	select {
	case <-c.done:
		return nil
	case <-time.After(200 * time.Millisecond):
		return errors.New("survives")
	}
}

var ladder = Ladder{Grace: time.Second, Kill: 2 * time.Second}

func TestStopCancelsWithItsCauseAndWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "drain", Options{})
		for _, name := range []string{"a", "b"} {
			if err := r.Go(name, func(ctx context.Context) error {
				<-ctx.Done()
				time.Sleep(300 * time.Millisecond)
				return context.Cause(ctx)
			}); err != nil {
				t.Fatal(err)
			}
		}
		c := newChild(0)
		if err := r.Adopt("child", c); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(500*time.Millisecond, func() { close(c.done) })
		began := time.Now()
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 500*time.Millisecond || r.Len() != 0 {
			t.Fatalf("over after %v with %d left", took, r.Len())
		}
		if !c.killed.IsZero() {
			t.Fatal("a child that ended within the grace was killed")
		}
		if err := r.Err(); !errors.Is(err, errQuorum) || !errors.Is(context.Cause(r.Context()), errQuorum) {
			t.Fatalf("cause %v", err)
		}
	})
}

func TestChildrenAreKilledAfterTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "fence", Options{})
		c := newChild(100 * time.Millisecond)
		_ = r.Adopt("fence_ipmilan", c)
		// The goroutine only waits for its child, as one that runs a program does.
		_ = r.Go("off", func(context.Context) error { <-c.Done(); return nil })
		began := time.Now()
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
		if c.killed.Sub(began) != time.Second || time.Since(began) != 1100*time.Millisecond {
			t.Fatalf("killed after %v, over after %v", c.killed.Sub(began), time.Since(began))
		}
	})
}

func TestStragglersAreNamedWithTheirStacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "recover", Options{})
		release := make(chan struct{})
		stuck := newChild(-1)
		_ = r.Adopt("rsync", stuck)
		_ = r.Go("heeds", heeds)
		_ = r.Go("storage", func(context.Context) error { blocksForEver(release); return nil })
		began := time.Now()
		err := r.Stop(t.Context(), errQuorum, ladder)
		var s *StragglerError
		if !errors.As(err, &s) || len(s.Stragglers) != 2 || !errors.Is(err, errQuorum) {
			t.Fatalf("got %v", err)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("told after %v", took)
		}
		if s.Stragglers[0].Name != "rsync" || !s.Stragglers[0].Child {
			t.Errorf("first %+v", s.Stragglers[0])
		}
		if s.Stragglers[1].Name != "storage" || !strings.Contains(s.Stragglers[1].Stack, "blocksForEver") {
			t.Errorf("second %+v", s.Stragglers[1])
		}
		if want := "stop recover (quorum lost (hv2)): still there: child process rsync, goroutine storage"; err.Error() != want {
			t.Errorf("says %q", err)
		}
		close(release)
		close(stuck.done)
		if err := r.Stop(t.Context(), errors.New("again"), ladder); err != nil || !errors.Is(context.Cause(r.Context()), errQuorum) {
			t.Fatalf("second stop: %v, cause %v", err, context.Cause(r.Context()))
		}
	})
}

//go:noinline
func blocksForEver(release <-chan struct{}) { <-release }

func TestNothingIsRegisteredOnceAStopHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "drain", Options{})
		late := newChild(0)
		_ = r.Go("a", func(ctx context.Context) error {
			<-ctx.Done()
			// Registering while the stop waits for us is answered, not a deadlock.
			return errors.Join(r.Adopt("late", late), r.Go("b", heeds))
		})
		if err := r.Stop(t.Context(), errQuorum, ladder); err != nil {
			t.Fatal(err)
		}
		if late.killed.IsZero() {
			t.Fatal("a child that came late was left running")
		}
		if !errors.Is(r.Err(), ErrStopped) {
			t.Fatalf("got %v", r.Err())
		}
	})
}

func TestARegistryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "janitor", Options{Max: 2})
		_, _ = r.Go("a", heeds), r.Go("b", heeds)
		c := newChild(0)
		if err := r.Adopt("c", c); !errors.Is(err, ErrFull) || c.killed.IsZero() {
			t.Fatalf("a third: %v, killed %v", err, c.killed)
		}
		_ = r.Stop(t.Context(), errQuorum, ladder)
	})
}

func TestAPanicEndsItsSubtaskOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "janitor", Options{})
		_ = r.Go("bad", func(context.Context) error { panic("nil map") })
		_ = r.Go("good", func(context.Context) error { time.Sleep(time.Second); return nil })
		if err := r.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.Err(); err == nil || !strings.Contains(err.Error(), "bad: panic: nil map") {
			t.Fatalf("got %v", err)
		}
		_ = r.Stop(t.Context(), nil, ladder)
	})
}

func TestAnEndedContextPassesTheRungsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(t.Context(), "drain", Options{})
		c := newChild(-1)
		_ = r.Adopt("rsync", c)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		if err := r.Stop(ctx, errQuorum, ladder); err == nil || c.killed.IsZero() || time.Since(began) != 0 {
			t.Fatalf("%v after %v, killed %v", err, time.Since(began), c.killed)
		}
		close(c.done)
	})
}
