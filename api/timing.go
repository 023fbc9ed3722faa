package api

import (
	"time"

	"pvc.internal/cluster"
)

// TimingView is every interval and the worst cases that follow, in seconds.
type TimingView struct {
	Profile  string          `json:"profile"` // lan, fast, pvc, or "custom" when a key differs
	Settings []TimingSetting `json:"settings"`
	Worst    []WorstCase     `json:"worst"`
}

// TimingSetting is one setting of the file's timing section.
type TimingSetting struct {
	Name   string  `json:"name"`
	Letter string  `json:"letter,omitempty"` // as the protocol calls it
	Value  float64 `json:"value"`            // seconds, or a count
	Unit   string  `json:"unit"`             // s or keepalives
}

// WorstCase is the longest something takes when one node loses power and all
// else works.
type WorstCase struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	About   string  `json:"about"`
}

func (s *Server) getTiming(*request) (answer, error) { return ok(timingView(s.cfg.Timing)) }

func timingView(t cluster.Timing) TimingView {
	return TimingView{Profile: profileName(t), Settings: timingSettings(t), Worst: worstCases(t)}
}

func profileName(t cluster.Timing) string {
	for _, name := range []string{cluster.TimingLAN, cluster.TimingFast, cluster.TimingPVC} {
		if p, err := cluster.Profile(name); err == nil && p == t {
			return name
		}
	}
	return "custom"
}

func timingSettings(t cluster.Timing) []TimingSetting {
	in := func(name, letter string, d time.Duration) TimingSetting {
		return TimingSetting{name, letter, d.Seconds(), "s"}
	}
	return []TimingSetting{
		in("keepalive_interval", "K", t.KeepaliveInterval),
		in("collector_deadline", "", t.CollectorDeadline),
		in("renew_interval", "R", t.RenewInterval),
		in("role_ttl", "L", t.RoleTTL),
		in("grace", "G", t.Grace),
		in("taker_margin", "M", t.TakerMargin),
		in("write_gap", "g", t.WriteGap),
		in("session_timeout", "S", t.SessionTimeout),
		in("lock_timeout", "", t.LockTimeout),
		in("transition_delay", "", t.TransitionDelay),
		in("settle", "", t.Settle),
		{"fence_intervals", "F", float64(t.FenceIntervals), "keepalives"},
		{"suicide_intervals", "Q", float64(t.SuicideIntervals), "keepalives"},
		in("watchdog", "W", t.Watchdog),
		in("boot_timeout", "", t.BootTimeout),
		in("node_lease_period", "", t.NodeLeasePeriod),
		in("node_lease_renew", "", t.NodeLeaseRenew),
		in("node_lease_grace", "", t.NodeLeaseGrace),
	}
}

func worstCases(t cluster.Timing) []WorstCase {
	w := t.Worst(cluster.TimingOptions{Gate: true})
	in := func(name string, d time.Duration, about string) WorstCase { return WorstCase{name, d.Seconds(), about} }
	return []WorstCase{
		in("detect", w.Detect, "until the node is dead to the observers"),
		in("holder_stops", w.HolderStops, "a cut-off primary has ended all effects, after its last acknowledged renewal"),
		in("take_over", w.TakeOver, "until a new primary answers for the addresses"),
		in("take_over_median", w.TakeOverMedian, "the same, in the middle of many"),
		in("take_over_leader", w.TakeOverLeader, "the same, where the lost node carried the ZooKeeper leader"),
		in("self_stop", w.SelfStop, "a cut-off node has stopped its protected work"),
		in("fence_claimed", w.FenceClaimed, "until a fence is claimed"),
		in("fence", w.Fence, "until the node is verified off by its device"),
		in("watchdog_proof", w.WatchdogProof, "until its armed watchdog is proof enough"),
		in("recover", max(w.Fence, w.WatchdogProof), "until its death is proven, by its device or its watchdog, so that its work may start elsewhere"),
	}
}
