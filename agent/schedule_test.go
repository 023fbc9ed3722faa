package agent

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
)

// scheduled runs one job on an expression for some virtual time.
func scheduled(t *testing.T, expression string, lasts time.Duration, job func(ctx context.Context)) (*observer.ObservedLogs, error) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	s := NewSchedule(zap.New(core))
	if err := s.Add("job", expression, job); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	return logs, s.Run(ctx)
}

func TestAScheduleTicksInUTC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		local := time.Local
		time.Local = time.FixedZone("far", 5*3600+1800)
		defer func() { time.Local = local }()
		var at []string
		_, err := scheduled(t, "30 2 * * *", 72*time.Hour, func(context.Context) { at = append(at, time.Now().UTC().Format("02 15:04:05")) })
		if want := "01 02:30:00,02 02:30:00,03 02:30:00"; err != nil || strings.Join(at, ",") != want {
			t.Fatalf("ran at %v, %v", at, err)
		}
	})
}

func TestAJobThatStillRunsIsNotStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := 0
		var running atomic.Int32
		logs, err := scheduled(t, "* * * * *", 10*time.Minute+30*time.Second, func(context.Context) {
			starts++
			if running.Add(1) > 1 {
				t.Error("two at a time")
			}
			time.Sleep(150 * time.Second)
			running.Add(-1)
		})
		pass(5 * time.Minute)
		// At 1, 4, 7 and 10 minutes; the last is still running when Run is told to end.
		if starts != 4 || !errors.Is(err, cluster.ErrDeadline) {
			t.Fatalf("%d starts, %v", starts, err)
		}
		if logs.FilterLevelExact(zapcore.WarnLevel).Len() == 0 {
			t.Fatal("a skipped start is not told")
		}
	})
}

func TestAJobsPanicIsCaught(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := 0
		logs, err := scheduled(t, "@every 1m", 10*time.Minute+time.Second, func(context.Context) { starts++; panic("nil map") })
		if err != nil || starts != 10 || logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 10 {
			t.Fatalf("%d starts, %v, %d logged", starts, err, logs.Len())
		}
	})
}

func TestAScheduleEndsItsJobsAndNamesThoseThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, err := scheduled(t, "@every 1m", 90*time.Second, func(ctx context.Context) { <-ctx.Done() })
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		_, err = scheduled(t, "@every 1m", 90*time.Second, func(context.Context) { <-release })
		if !errors.Is(err, cluster.ErrDeadline) || !strings.Contains(err.Error(), "job") {
			t.Fatalf("got %v", err)
		}
		close(release)
	})
}

func TestExpressionsThatCannotBeUsedAreRefused(t *testing.T) {
	for _, bad := range []string{"", "TZ=0", "TZ=UTC * * * * *", "CRON_TZ=Europe/Berlin 0 2 * * *", "cron_tz=x", "0 0 31 2 *", "* * * *", "61 * * * *", "@never", "@every", "@every x", "x"} {
		if err := CheckSchedule(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	for _, good := range []string{"0 * * * *", "@hourly", "@every 90s", "*/5 1-3 * * mon"} {
		if err := CheckSchedule(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
}

func FuzzExpressions(f *testing.F) {
	for _, seed := range []string{"TZ=0", "0 * * * *", "@every 1m", "*/0 * * * *"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, expression string) { _ = CheckSchedule(expression) }) // must not panic
}
