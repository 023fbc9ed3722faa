package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// fails runs an activity that fails at once, or after a while.
func (b *activityBench) fails(why string, lasts time.Duration) {
	b.t.Helper()
	err := b.manager.Run(b.ctx, drain(), func(context.Context, *activity.Activity) error {
		time.Sleep(lasts)
		return errors.New(why)
	})
	if err == nil || !strings.Contains(err.Error(), why) {
		b.t.Fatal(err)
	}
}

// said is what the history tells of activities, a word a transition, with how
// many tries it stands for.
func (b *activityBench) said() string {
	var words []string
	for _, e := range b.told(cluster.EventActivity) {
		word := e.Fields["state"]
		if why := e.Fields["detail"]; why != "" {
			word += ":" + why
		}
		if n := e.Fields["repeated"]; n != "" {
			word += "×" + n
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// An order that cannot be carried out is tried once a second for minutes: the
// history has the first failure, one a minute for all the others, and at once
// whatever is new.
func TestTheSameFailureIsToldOnceAMinute(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		for range 10 {
			b.fails("busy", 0)
			time.Sleep(time.Second)
		}
		want := "running ended:busy"
		b.stays("the first alone is told", 3*time.Second, func() bool { return b.said() == want })
		b.fails("gone", 0)
		want += " ended:busy×9 running ended:gone"
		b.until("another error is told at once, after what it follows", func() bool { return b.said() == want })
		for begun := time.Now(); time.Since(begun) < 50*time.Second; time.Sleep(time.Second) {
			b.fails("gone", 0)
		}
		b.stays("nothing more", time.Second, func() bool { return b.said() == want })
		b.until("the rest is told when the minute is over", func() bool {
			return strings.HasPrefix(b.said(), want+" ended:gone×")
		})
		want = b.said()
		if err := b.manager.Run(b.ctx, drain(), func(context.Context, *activity.Activity) error { return nil }); err != nil {
			t.Fatal(err)
		}
		b.until("that it goes well is told", func() bool { return b.said() == want+" running ended" })
		if left := b.records(); len(left) > 0 {
			t.Errorf("records of what is over: %q", left)
		}
	})
}

// What lasts is told while it lasts, and with its end, whatever failed before.
func TestWhatFailsAgainAfterAWhileIsTold(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		b.fails("busy", 0)
		b.until("the first is told", func() bool { return b.said() == "running ended:busy" })
		id := b.running(drain())
		b.until("the second has a record at once", func() bool { return b.state(id) == cluster.ActivityRunning })
		b.until("and is told while it runs", func() bool { return b.said() == "running ended:busy running" })
		b.order(id, "o1")
		b.until("its end is the answer to who has ordered it", func() bool { return len(b.answers("o1")) == 1 })
		b.fails("busy", 5*time.Second)
		b.fails("busy", 0)
		b.until("each that lasts is told", func() bool { return strings.HasSuffix(b.said(), "running ended:busy") })
		before := strings.Count(b.said(), "running")
		if before != 3 {
			t.Errorf("told %s", b.said())
		}
	})
}

// What has failed and was not told yet is told when the daemon ends.
func TestTheDaemonsEndTellsOfTheFailuresBeforeIt(t *testing.T) {
	withActivities(t, func(t *testing.T, b *activityBench) {
		for range 5 {
			b.fails("busy", 0)
		}
		b.until("the first is told", func() bool { return b.said() == "running ended:busy" })
		b.end()
		if got := b.said(); got != "running ended:busy ended:busy×4" {
			t.Errorf("told %s", got)
		}
		b.begin("boot-hv1.1")
	})
}
