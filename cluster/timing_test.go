package cluster

import (
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

// gated is the usual surroundings: gate there, no failsafe, servers ticking at 200 ms.
var gated = TimingOptions{Gate: true, ServerTick: 200 * ms, SyncLimit: 4}

func TestProfilesAreValid(t *testing.T) {
	for _, c := range []struct {
		profile  string
		warnings int
	}{{"lan", 0}, {"", 0}, {"fast", 1}, {"pvc", 1}} {
		p, err := Profile(c.profile)
		if err != nil {
			t.Fatalf("profile %q: %v", c.profile, err)
		}
		warnings, err := p.Validate(gated)
		if err != nil {
			t.Errorf("profile %q is refused: %v", c.profile, err)
		}
		if len(warnings) != c.warnings {
			t.Errorf("profile %q gives %d warnings, want %d: %q", c.profile, len(warnings), c.warnings, warnings)
		}
	}
	if _, err := Profile("wan"); err == nil || !strings.Contains(err.Error(), "fast") {
		t.Errorf("unknown profile: %v, want a refusal naming the known ones", err)
	}
}

// Each case breaks exactly one relation of protocol §2 by the least amount and
// names the two numbers that the message must show.
func TestEachRelationIsRefused(t *testing.T) {
	cases := []struct {
		name    string
		change  func(*Timing, *TimingOptions)
		numbers [2]string
		word    string
	}{
		{"collector deadline", func(t *Timing, _ *TimingOptions) { t.CollectorDeadline = time.Second },
			[2]string{"1s", "1s"}, "lower collector_deadline"},
		{"renewal within the term", func(t *Timing, o *TimingOptions) { t.RenewInterval = 2500 * ms; o.Failsafe = true },
			[2]string{"2.5s", "2.5s"}, "shorten renew_interval"},
		{"leader kill", func(t *Timing, _ *TimingOptions) { t.RenewInterval = 1401 * ms },
			[2]string{"2.501s", "2.5s"}, "role.failsafe"},
		{"lifetimes without a gate", func(t *Timing, o *TimingOptions) { o.Gate = false; t.RenewInterval = 851 * ms },
			[2]string{"850ms", "851ms"}, "role.gate: true"},
		{"margin", func(t *Timing, _ *TimingOptions) { t.TakerMargin = 77 * ms },
			[2]string{"77ms", "78ms"}, "raise taker_margin"},
		{"suspicion after the role", func(t *Timing, _ *TimingOptions) { t.RoleTTL, t.TakerMargin = 4880*ms, 120*ms },
			[2]string{"5s", "5s"}, "raise fence_intervals"},
		{"stop before the fence", func(t *Timing, _ *TimingOptions) { t.SuicideIntervals = 5 },
			[2]string{"5s", "5s"}, "lower suicide_intervals"},
		{"stop after the write gap", func(t *Timing, _ *TimingOptions) { t.WriteGap = 2501 * ms },
			[2]string{"4s", "4.001s"}, "raise suicide_intervals"},
		{"transition delay", func(t *Timing, _ *TimingOptions) { t.TransitionDelay = 400 * ms },
			[2]string{"400ms", "400ms"}, "raise transition_delay"},
		{"failed fence", func(_ *Timing, o *TimingOptions) { o.FailedFenceWait = 9999 * ms },
			[2]string{"9.999s", "10s"}, "lower watchdog"},
		{"session against ticks", func(_ *Timing, o *TimingOptions) { o.GrantedSession = 399 * ms; o.SyncLimit = 1 },
			[2]string{"399ms", "400ms"}, "raise session_timeout"},
		{"node lease", func(t *Timing, _ *TimingOptions) { t.NodeLeaseRenew = 1600 * ms },
			[2]string{"4s", "4s"}, "lower node_lease_renew"},
		{"longest node lease", func(t *Timing, _ *TimingOptions) {
			t.NodeLeasePeriod, t.NodeLeaseGrace = 10*time.Minute+ms, 13*time.Second
		}, [2]string{"10m0.001s", "10m0s"}, "lower node_lease_period"},
		{"node lease against the clocks", func(t *Timing, _ *TimingOptions) { t.NodeLeaseGrace = 99 * ms },
			[2]string{"99ms", "100ms"}, "raise node_lease_grace"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			timing, o := ProfileLAN(), gated
			c.change(&timing, &o)
			_, err := timing.Validate(o)
			if err == nil {
				t.Fatal("accepted")
			}
			text := err.Error()
			if strings.Contains(text, "\n") {
				t.Errorf("breaks more than one relation: %v", err)
			}
			for _, want := range []string{c.numbers[0], c.numbers[1], c.word} {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in: %s", want, text)
				}
			}
		})
	}
}

// The same amounts, one millisecond to the good side, are accepted.
func TestRelationsHoldAtTheirEdge(t *testing.T) {
	for name, change := range map[string]func(*Timing, *TimingOptions){
		"collector deadline": func(t *Timing, _ *TimingOptions) { t.CollectorDeadline = 999 * ms },
		"leader kill":        func(t *Timing, _ *TimingOptions) { t.RenewInterval = 1400 * ms },
		"without a gate":     func(t *Timing, o *TimingOptions) { o.Gate = false; t.RenewInterval = 850 * ms },
		"margin":             func(t *Timing, _ *TimingOptions) { t.TakerMargin = 78 * ms },
		"suspicion":          func(t *Timing, _ *TimingOptions) { t.RoleTTL = 4889 * ms; t.TakerMargin = 100 * ms },
		"write gap":          func(t *Timing, _ *TimingOptions) { t.WriteGap = 2500 * ms },
		"transition delay":   func(t *Timing, _ *TimingOptions) { t.TransitionDelay = 401 * ms },
		"failed fence":       func(_ *Timing, o *TimingOptions) { o.FailedFenceWait = 10 * time.Second },
		"session":            func(_ *Timing, o *TimingOptions) { o.GrantedSession = 400 * ms; o.SyncLimit = 1 },
		"node lease":         func(t *Timing, _ *TimingOptions) { t.NodeLeaseRenew = 1599 * ms },
		"longest node lease": func(t *Timing, _ *TimingOptions) {
			t.NodeLeasePeriod, t.NodeLeaseGrace = 10*time.Minute, 12*time.Second
		},
		"node lease against the clocks": func(t *Timing, _ *TimingOptions) { t.NodeLeaseGrace = 100 * ms },
	} {
		timing, o := ProfileLAN(), gated
		change(&timing, &o)
		if _, err := timing.Validate(o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWarnings(t *testing.T) {
	cases := []struct {
		name   string
		change func(*Timing, *TimingOptions)
		want   string
	}{
		{"leader kill under failsafe", func(t *Timing, o *TimingOptions) {
			o.Failsafe = true
			t.RenewInterval, t.WriteGap = 1401*ms, 999*ms
		}, "moves the role"},
		{"write gap", func(t *Timing, _ *TimingOptions) { t.WriteGap = 1901 * ms }, "2.501s exceeds role_ttl − grace = 2.5s"},
		{"write gap without gate", func(t *Timing, o *TimingOptions) { o.Gate = false }, "2.4s exceeds role_ttl + taker_margin − 1.27 s = 1.63s"},
		{"sync limit", func(_ *Timing, o *TimingOptions) { o.ServerTick, o.SyncLimit = 2*time.Second, 5 }, "10s should be less than two thirds"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			timing, o := ProfileLAN(), gated
			c.change(&timing, &o)
			warnings, err := timing.Validate(o)
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			if len(warnings) != 1 || !strings.Contains(warnings[0], c.want) {
				t.Errorf("warnings %q, want one with %q", warnings, c.want)
			}
		})
	}
}

func TestFastNeedsTheGate(t *testing.T) {
	if _, err := ProfileFast().Validate(TimingOptions{}); err == nil || !strings.Contains(err.Error(), "nftables") {
		t.Errorf("fast without the gate: %v, want a refusal", err)
	}
}

func TestZeroIntervalsAreNamedTogether(t *testing.T) {
	timing := ProfileLAN()
	timing.Grace, timing.FenceIntervals, timing.Settle = 0, 0, -1
	_, err := timing.Validate(gated)
	if err == nil || !strings.Contains(err.Error(), "grace, fence_intervals, settle") {
		t.Errorf("%v, want all three named", err)
	}
}

func TestWorstTimes(t *testing.T) {
	lan := ProfileLAN().Worst(gated)
	for _, c := range []struct {
		name      string
		got, want time.Duration
	}{
		{"take over", lan.TakeOver, 3 * time.Second},
		{"take over, median", lan.TakeOverMedian, 2750 * ms},
		{"take over, leader lost", lan.TakeOverLeader, 3 * time.Second},
		{"holder stops", lan.HolderStops, 2500 * ms},
		{"detect", lan.Detect, 6 * time.Second},
		{"fence", lan.Fence, 26500 * ms},
		{"watchdog proof", lan.WatchdogProof, 10 * time.Second},
		{"fast, leader lost", ProfileFast().Worst(gated).TakeOverLeader, 2 * time.Second},
		{"pvc, leader lost", ProfilePVC().Worst(gated).TakeOverLeader, 15350 * ms},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
	if lan.HolderStops >= lan.TakeOver {
		t.Errorf("I3: holder stops after %v, a taker may act after %v", lan.HolderStops, lan.TakeOver)
	}
}
