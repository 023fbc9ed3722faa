package fencing

import (
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// The words of the decision; the guard speaks them, too.
type (
	FeedMode   = cluster.FeedMode   // where the feeding stands
	FeedState  = cluster.FeedState  // what StepFeeding remembers
	FeedInput  = cluster.FeedInput  // what the guard knows
	FeedAction = cluster.FeedAction // what to do with the device
	FeedOutput = cluster.FeedOutput // one step's decision
)

// The modes and actions, as package cluster has them.
const (
	FeedUnarmed  = cluster.FeedUnarmed
	FeedFeeding  = cluster.FeedFeeding
	FeedHolding  = cluster.FeedHolding
	FeedStarving = cluster.FeedStarving
	FeedDisarmed = cluster.FeedDisarmed

	FeedNothing = cluster.FeedNothing
	FeedFeed    = cluster.FeedFeed
	FeedStop    = cluster.FeedStop
	FeedDisarm  = cluster.FeedDisarm
)

// FeedConfig is what the decision rests on.
type FeedConfig struct {
	StopAfter time.Duration // Q·K, cluster.Timing.StopAfter
	Grace     time.Duration // G: how long verifying may take before the machine is given up
	Granted   time.Duration // the watchdog's time-out as read back from the device
	// StopWorkOnly is `self_fence: stop-work`: a machine whose protected work has
	// ended, verified, lives on. Otherwise it is reset, by the watchdog or by a
	// reboot.
	StopWorkOnly bool
}

// Interval is how often the device is fed: a quarter of its time-out, so that
// three feedings may fail, but at least each second.
func (c FeedConfig) Interval() time.Duration {
	return min(max(c.Granted/4, 100*time.Millisecond), time.Second)
}

// StepFeeding decides whether the watchdog is fed, the machine's last line (I3):
//
//	                   the right has passed with something here,
//	          Armed    or something is overdue
//	Unarmed ────────▶ Feeding ───────────────────────────────────▶ Holding ──┐ not fed
//	   ▲               │ ▲ ▲                                        │   │ ◀──┘
//	   │               │ │ └── all verified gone, and stop-work ────┘   │
//	   │  relinquished │ │     or it was not about the node's right     │ G over, or all gone
//	   │  and verified │ │                                              │ and self_fence resets
//	   │  gone         ▼ │ Undisarmed                                   ▼
//	   └─ (Armed) ── Disarmed                                        Starving ── reset, boot
//
// The right lasts until Q·K after the send instant of the last acknowledged
// keepalive, or to the end of the promises. Rules:
//
//   - A feeding is decided only within the right, or with nothing here: the last
//     one lies before the right's end, so that the device bites by Q·K + W after
//     the last keepalive at the latest, as others reckon (I4). What feeds beside
//     the decision must not be: a reopened device (MayArm), and the death of the
//     only process that has it open (WatchdogDevice.Descriptor).
//   - A node with nothing here only waits and is fed.
//   - Holding is not left by late news: what had a right and lost it ends, and
//     only its verified end lets feeding go on.
//   - From starving nothing leads out, a disarm least of all.
//   - Disarm needs the orderly end and the kernel's word that nothing is here.
//
// G is counted from the step that saw the end: who was not scheduled could not
// verify, and meanwhile nothing was fed.
func StepFeeding(c FeedConfig, s FeedState, now cluster.Instant, in FeedInput) (FeedState, FeedOutput) {
	switch s.Mode {
	case FeedFeeding:
		return stepFeeding(c, s, now, in)
	case FeedHolding:
		return stepHolding(c, s, now, in)
	case FeedStarving:
		return s, FeedOutput{Action: FeedStop, Wake: cluster.Forever}
	}
	return s, FeedOutput{Wake: cluster.Forever}
}

func stepFeeding(c FeedConfig, s FeedState, now cluster.Instant, in FeedInput) (FeedState, FeedOutput) {
	right := c.right(in)
	switch here := somethingHere(in); {
	case in.Overdue != "":
		return hold(c, s, now, in, cluster.Never, in.Overdue+" was to end and is not verified gone")
	case here && right == cluster.Never:
		return hold(c, s, now, in, cluster.Never, "something runs here before any keepalive was acknowledged")
	case here && now >= right:
		return hold(c, s, now, in, right, "the right to protected work has ended: no keepalive was acknowledged in time, and no promise covers this node")
	case in.OrderlyRelinquished && !here && !s.Unstoppable:
		return FeedState{Mode: FeedDisarmed, Since: now, Fed: s.Fed, Why: "the node was given up in order and nothing is left here"},
			FeedOutput{Action: FeedDisarm, Wake: cluster.Forever}
	case here:
		return c.feed(s, now, right)
	}
	return c.feed(s, now, cluster.Forever)
}

// hold begins to hold, and judges at once: all may be gone already.
func hold(c FeedConfig, s FeedState, now cluster.Instant, in FeedInput, ended cluster.Instant, why string) (FeedState, FeedOutput) {
	s.Mode, s.Since, s.Ended, s.Why = FeedHolding, now, ended, why
	return stepHolding(c, s, now, in)
}

func stepHolding(c FeedConfig, s FeedState, now cluster.Instant, in FeedInput) (FeedState, FeedOutput) {
	limit := s.Since.Add(c.Grace)
	here, rightEnded := somethingHere(in), s.Ended != cluster.Never
	afresh := FeedState{Mode: FeedFeeding, Since: now, Fed: s.Fed, Unstoppable: s.Unstoppable}
	switch {
	case in.Overdue != "": // whatever else is gone
	case rightEnded && !here && !c.StopWorkOnly:
		return starve(s, now, s.Why+"; its end was verified, and self_fence has this machine reset")
	case rightEnded && !here:
		return stepFeeding(c, afresh, now, in)
	case !rightEnded && (!here || c.right(in) != cluster.Never): // the right is looked at: it may have ended meanwhile
		return stepFeeding(c, afresh, now, in)
	}
	if now >= limit {
		return starve(s, now, fmt.Sprintf("%s; not verified gone within %v", s.Why, c.Grace))
	}
	return s, FeedOutput{Wake: limit}
}

func starve(s FeedState, now cluster.Instant, why string) (FeedState, FeedOutput) {
	s.Mode, s.Since, s.Why = FeedStarving, now, why
	return s, FeedOutput{Action: FeedStop, Wake: cluster.Forever}
}

// feed feeds when that is due, and wakes for the next or for the right's end.
func (c FeedConfig) feed(s FeedState, now, right cluster.Instant) (FeedState, FeedOutput) {
	action := FeedNothing
	if now >= s.Fed.Add(c.Interval()) {
		s.Fed, action = now, FeedFeed
	}
	return s, FeedOutput{Action: action, Wake: min(s.Fed.Add(c.Interval()), right)}
}

// right is until when protected work may be here; Never if it never might.
func (c FeedConfig) right(in FeedInput) cluster.Instant {
	if in.KeepaliveAcked == cluster.Never {
		return in.PromisesUntil
	}
	return max(in.KeepaliveAcked.Add(c.StopAfter), in.PromisesUntil)
}

// somethingHere: by the books or in the kernel; only if both say no it is no.
func somethingHere(in FeedInput) bool { return in.ProtectedWork || !in.EffectsVerifiedGone }
