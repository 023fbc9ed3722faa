package fencing

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pvc.internal/cluster"
)

var updateFeeding = flag.Bool("update-feeding", false, "rewrite the golden scripts' outcome; commit only what you understand")

func lanFeeding() FeedConfig {
	t := cluster.ProfileLAN()
	return FeedConfig{StopAfter: t.StopAfter(), Grace: t.Grace, Granted: t.Watchdog}
}

// TestFeedingScripts runs testdata/watchdog/feeding/*.txt: above the line "----"
// what the guard knows from an instant on, below it each change and action.
func TestFeedingScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/watchdog/feeding/*.txt")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d scripts: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			commands, want, _ := strings.Cut(string(raw), "----\n")
			got := feedingScript(t, commands)
			if *updateFeeding {
				if err := os.WriteFile(file, []byte(commands+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("%s: what happened differs; got\n%s\nwant\n%s", file, got, want)
			}
		})
	}
}

// feedingRun steps at each line's instant and whenever a step asked to be woken.
type feedingRun struct {
	config FeedConfig
	state  FeedState
	in     FeedInput
	out    strings.Builder
	stuck  bool // the device has nowayout
}

const scriptStart = cluster.Instant(100 * time.Second) // of the scripts' zero

func feedingScript(t *testing.T, commands string) string {
	r := &feedingRun{config: lanFeeding(), state: cluster.ArmedFeed(scriptStart), in: FeedInput{EffectsVerifiedGone: true}}
	now, wake := scriptStart, cluster.Forever
	for line := range strings.Lines(commands) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		at, err := time.ParseDuration(words[0])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		asleep := strings.Contains(line, " asleep") // the guard was not scheduled until then
		for until := scriptStart.Add(at); wake < until && !asleep; {
			if wake <= now {
				t.Fatalf("asked to be woken at %v, now is %v", wake, now)
			}
			now = wake
			wake = r.step(now)
		}
		now = scriptStart.Add(at)
		for _, word := range words[1:] {
			if !r.news(now, word) {
				t.Fatalf("what is %q?", word)
			}
		}
		wake = r.step(now)
	}
	return r.out.String()
}

func (r *feedingRun) news(now cluster.Instant, word string) bool {
	key, value, _ := strings.Cut(word, "=")
	ago, _ := time.ParseDuration(value)
	switch key {
	case "run", "asleep": // only time
	case "acked": // a keepalive that was sent so long ago
		r.in.KeepaliveAcked = now.Add(-ago)
	case "promised": // for so long
		r.in.PromisesUntil = now.Add(ago)
	case "work":
		r.in.ProtectedWork, r.in.EffectsVerifiedGone = true, false
	case "gone":
		r.in.ProtectedWork, r.in.EffectsVerifiedGone = false, true
	case "unseen": // the books are empty, the kernel is not
		r.in.ProtectedWork, r.in.EffectsVerifiedGone = false, false
	case "overdue":
		r.in.Overdue = strings.ReplaceAll(value, "_", " ")
	case "relinquished":
		r.in.OrderlyRelinquished = true
	case "stop-work":
		r.config.StopWorkOnly = true
	case "nowayout":
		r.stuck = true
	default:
		return false
	}
	return true
}

func (r *feedingRun) step(now cluster.Instant) cluster.Instant {
	before := r.state
	next, out := StepFeeding(r.config, r.state, now, r.in)
	r.state = next
	at := now.Sub(scriptStart).Seconds()
	if next.Mode != before.Mode {
		fmt.Fprintf(&r.out, "%7.3f %s -> %s: %s\n", at, before.Mode, next.Mode, next.Why)
	}
	if out.Action != FeedNothing {
		fmt.Fprintf(&r.out, "%7.3f %s\n", at, out.Action)
	}
	if out.Action == FeedDisarm && r.stuck {
		r.state = r.state.Undisarmed(now)
		fmt.Fprintf(&r.out, "%7.3f cannot be disarmed\n", at)
		return now.Add(r.config.Interval())
	}
	return out.Wake
}

// What is drawn: a life of random news, with the device beside it.
func TestFeedingKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := lanFeeding()
		c.StopWorkOnly = rapid.Bool().Draw(t, "stop-work")
		now := scriptStart
		s := cluster.ArmedFeed(now)
		var in FeedInput
		starved := false
		fed := now
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 1500).Draw(t, "ms")) * time.Millisecond)
			in = drawFeedInput(t, in, now)
			var out FeedOutput
			s, out = StepFeeding(c, s, now, in)
			right := max(in.KeepaliveAcked.Add(c.StopAfter), in.PromisesUntil)
			if in.KeepaliveAcked == cluster.Never {
				right = in.PromisesUntil
			}
			here := in.ProtectedWork || !in.EffectsVerifiedGone
			switch {
			case starved && out.Action != FeedStop:
				t.Fatalf("%s after feeding had stopped", out.Action)
			case out.Action == FeedFeed && in.Overdue != "":
				t.Fatalf("fed while %s is not verified gone", in.Overdue)
			case out.Action == FeedFeed && here && now >= right:
				t.Fatalf("fed %v after the right had ended with something here", now.Sub(right))
			case out.Action == FeedDisarm && (!in.OrderlyRelinquished || here || in.Overdue != ""):
				t.Fatalf("disarmed with %+v", in)
			case out.Wake <= now:
				t.Fatalf("wants to be woken at %v, now is %v", out.Wake, now)
			case s.Mode == FeedFeeding && (out.Wake > s.Fed.Add(c.Granted) || now.Sub(s.Fed) > c.Interval()):
				t.Fatalf("forgets to feed: last %v, wakes %v", s.Fed, out.Wake)
			case (s.Mode == FeedStarving || s.Mode == FeedHolding) && s.MayArm() == nil:
				t.Fatalf("could be armed while %s", s.Mode)
			}
			if out.Action == FeedFeed {
				fed = now
			}
			if s.Fed != fed {
				t.Fatalf("remembers a feeding at %v, it was at %v", s.Fed, fed)
			}
			starved = starved || out.Action == FeedStop
			if out.Action == FeedDisarm {
				return
			}
		}
	})
}

func drawFeedInput(t *rapid.T, in FeedInput, now cluster.Instant) FeedInput {
	switch rapid.IntRange(0, 9).Draw(t, "news") {
	case 0, 1, 2:
		in.KeepaliveAcked = max(in.KeepaliveAcked, now.Add(-time.Duration(rapid.IntRange(0, 5000).Draw(t, "sent"))*time.Millisecond))
	case 3:
		in.PromisesUntil = now.Add(time.Duration(rapid.IntRange(0, 2500).Draw(t, "promised")) * time.Millisecond)
	case 4, 5:
		in.ProtectedWork = !in.ProtectedWork
	case 6, 7:
		in.EffectsVerifiedGone = !in.EffectsVerifiedGone
	case 8:
		in.Overdue = map[bool]string{true: "", false: "the primary role"}[in.Overdue != ""]
	case 9:
		in.OrderlyRelinquished = true
	}
	return in
}

func TestArmingIsRefusedAfterStarving(t *testing.T) {
	s := FeedState{Mode: FeedStarving, Why: "hook dns is not verified gone"}
	err := s.MayArm()
	if !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), s.Why) {
		t.Errorf("a starving machine's watchdog may be armed: %v", err)
	}
	for _, mode := range []FeedMode{FeedUnarmed, FeedFeeding, FeedDisarmed} {
		if err := (FeedState{Mode: mode}).MayArm(); err != nil {
			t.Errorf("%q: %v", mode, err)
		}
	}
}
