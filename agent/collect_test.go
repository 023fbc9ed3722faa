package agent

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
)

func collect(t *testing.T, collectors ...Collector) (*Collection, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	c, err := NewCollection(bubbleClock{}, zap.New(core), 800*time.Millisecond, collectors...)
	if err != nil {
		t.Fatal(err)
	}
	return c, logs
}

// ticks ticks each second and looks after each.
func ticks(t *testing.T, c *Collection, n int) {
	for range n {
		c.Tick(t.Context())
		pass(time.Second)
	}
}

func TestALateCollectorIsReportedOnceAndItsFiguresStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		c := &fakeCollector{name: "storage"}
		c.do = func(context.Context) (map[string]string, error) {
			if c.calls == 2 {
				<-release
			}
			return map[string]string{"memtotal": "1"}, nil
		}
		all, logs := collect(t, c)
		begun := bubbleClock{}.Now()
		ticks(t, all, 10)
		s := all.Status()[0]
		if c.calls != 2 || !s.Running || s.Late != 1 || s.StaleSince != begun || s.LastSuccess != begun {
			t.Fatalf("%d calls, %+v", c.calls, s)
		}
		if n := logs.FilterLevelExact(zapcore.WarnLevel).Len(); n != 1 {
			t.Fatalf("%d warnings", n)
		}
		if !maps.Equal(all.Values(), map[string]string{"memtotal": "1"}) {
			t.Fatalf("values %v", all.Values())
		}
		close(release)
		synctest.Wait()
		ticks(t, all, 1)
		if s := all.Status()[0]; c.calls != 3 || s.Running || !s.StaleSince.IsZero() || s.Late != 1 {
			t.Fatalf("after it returned: %d calls, %+v", c.calls, s)
		}
		if err := all.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAPanicIsCaughtAndTheOthersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := &fakeCollector{name: "bad", do: func(context.Context) (map[string]string, error) { panic("nil map") }}
		good := steady("good", map[string]string{"cpuload": "1.00"})
		all, logs := collect(t, bad, good)
		ticks(t, all, 5)
		s := all.Status()[0]
		if s.Failed != 5 || !strings.Contains(s.LastError, "panic: nil map") || s.Running {
			t.Fatalf("%+v", s)
		}
		if good.calls != 5 || all.Values()["cpuload"] != "1.00" {
			t.Fatalf("the other one: %d calls, %v", good.calls, all.Values())
		}
		if logs.FilterField(zap.String("collector", "bad")).FilterLevelExact(zapcore.ErrorLevel).Len() == 0 {
			t.Fatal("the panic is nowhere in the log")
		}
	})
}

func TestAFailureIsReportedOnceUntilItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail error
		c := &fakeCollector{name: "c", do: func(context.Context) (map[string]string, error) {
			return map[string]string{"memtotal": "7"}, fail
		}}
		all, logs := collect(t, c)
		fail = errors.New("no libvirt")
		ticks(t, all, 5)
		if s := all.Status()[0]; s.Failed != 5 || s.LastError != "no libvirt" || s.StaleSince.IsZero() {
			t.Fatalf("%+v", s)
		}
		if all.Values()["memtotal"] != "7" {
			t.Fatal("figures that came with the error are lost")
		}
		fail = nil
		ticks(t, all, 5)
		if s := all.Status()[0]; s.LastError != "" || !s.StaleSince.IsZero() {
			t.Fatalf("%+v", s)
		}
		if w, i := logs.FilterLevelExact(zapcore.WarnLevel).Len(), logs.FilterLevelExact(zapcore.InfoLevel).Len(); w != 1 || i != 1 {
			t.Fatalf("%d warnings, %d recoveries", w, i)
		}
	})
}

func TestACollectorKeepsItsOwnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := steady("c", nil)
		c.interval = 10 * time.Second
		all, _ := collect(t, c)
		ticks(t, all, 100)
		if c.calls != 10 {
			t.Fatalf("%d collections in 100 s at an interval of 10 s", c.calls)
		}
	})
}

// varying is a collector whose interval changes.
type varying struct {
	*fakeCollector
	every time.Duration
}

func (v *varying) Interval() time.Duration { return v.every }

func TestACollectorMayChangeItsInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &varying{steady("c", nil), 5 * time.Second}
		all, _ := collect(t, c)
		ticks(t, all, 20)
		if c.calls != 4 {
			t.Errorf("%d collections in 20 s at an interval of 5 s", c.calls)
		}
		c.every = 0
		ticks(t, all, 20)
		if c.calls != 24 {
			t.Errorf("%d more in 20 s with one each second", c.calls-4)
		}
	})
}

func TestCloseNamesWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		heeds := &fakeCollector{name: "heeds", do: func(ctx context.Context) (map[string]string, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		hangs := &fakeCollector{name: "hangs", do: func(context.Context) (map[string]string, error) { <-release; return nil, nil }}
		all, _ := collect(t, heeds, hangs)
		all.Tick(t.Context())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := all.Close(ctx)
		if !errors.Is(err, cluster.ErrDeadline) || !strings.Contains(err.Error(), "hangs still hang") || strings.Contains(err.Error(), "heeds") {
			t.Fatalf("got %v", err)
		}
		all.Tick(t.Context())
		if heeds.calls != 1 {
			t.Fatal("started after Close")
		}
		close(release)
	})
}

func TestTwoCollectorsOfOneNameAreRefused(t *testing.T) {
	if _, err := NewCollection(bubbleClock{}, zap.NewNop(), time.Second, steady("a", nil), steady("a", nil)); err == nil {
		t.Fatal("accepted")
	}
}

// What is renewed is gathered anew at once; where it is being gathered just then, once
// more, however often it was asked for, since that may have begun before the change.
func TestARenewedCollectorSaysWhatIsTrueNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		truth, gate := "1", make(chan struct{})
		c := &fakeCollector{name: CopiesCollector}
		c.do = func(context.Context) (map[string]string, error) {
			said := truth // then it takes its time
			if c.calls == 1 {
				<-gate
			}
			return map[string]string{"domainscount": said}, nil
		}
		other := &fakeCollector{name: "storage", do: func(context.Context) (map[string]string, error) { return nil, nil }}
		all, _ := collect(t, c, other)
		all.Tick(t.Context())
		synctest.Wait()
		truth = "2"
		all.Renew(t.Context(), CopiesCollector)
		all.Renew(t.Context(), CopiesCollector)
		all.Renew(t.Context(), "nobody")
		close(gate)
		synctest.Wait()
		if got := all.Values()["domainscount"]; got != "2" || c.calls != 2 || other.calls != 1 {
			t.Errorf("it says %s after %d collections, %d of the other", got, c.calls, other.calls)
		}
		truth = "3"
		all.Renew(t.Context(), CopiesCollector)
		synctest.Wait()
		if got := all.Values()["domainscount"]; got != "3" {
			t.Errorf("then %s", got)
		}
		if err := all.Close(t.Context()); err != nil {
			t.Error(err)
		}
		all.Renew(t.Context(), CopiesCollector)
		synctest.Wait()
		if c.calls != 3 {
			t.Errorf("%d collections after its end", c.calls)
		}
	})
}
