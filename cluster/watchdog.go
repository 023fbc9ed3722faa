package cluster

import (
	"errors"
	"fmt"
	"time"
)

// ErrWatchdogRuns: the device runs and cannot be stopped. It is kept open, so
// that it can be fed; the machine resets if it is not.
var ErrWatchdogRuns = errors.New("the watchdog cannot be stopped")

// FeedMode is where the feeding of this machine's watchdog stands.
type FeedMode string

// The modes; the empty one is of a machine whose watchdog is not armed.
const (
	FeedUnarmed  FeedMode = ""         // not armed, or not by us
	FeedFeeding  FeedMode = "feeding"  // armed and fed
	FeedHolding  FeedMode = "holding"  // not fed while what has ended is being verified gone
	FeedStarving FeedMode = "starving" // never fed again in this boot
	FeedDisarmed FeedMode = "disarmed" // after an orderly and verified end
)

// FeedState is all that the decision to feed remembers. It is to be persisted
// where a reboot voids it, and written before the effect of a step that changed
// Mode to starving is relied on: a guard that starts anew must not open the
// device then, for to open it is to feed it (MayArm).
type FeedState struct {
	Mode  FeedMode `json:"mode"`
	Since Instant  `json:"since"`          // of the mode
	Fed   Instant  `json:"fed"`            // the last feeding that was decided
	Why   string   `json:"why,omitempty"`  // of holding, starving and disarmed, for people
	Ended Instant  `json:"ended,omitzero"` // when the right passed; Never while holding: it is not about the right
	// Unstoppable: a Disarm has found that the device cannot be stopped.
	Unstoppable bool `json:"unstoppable,omitempty"`
}

// ArmedFeed is the state after an Arm that was granted, at now. After an Adopt
// the state that was persisted goes on, since nothing was fed.
func ArmedFeed(now Instant) FeedState {
	return FeedState{Mode: FeedFeeding, Since: now, Fed: now}
}

// Undisarmed is the state after a Disarm that found that the device cannot be
// stopped (ErrWatchdogRuns): it is fed on, so that an orderly end does not reset
// the machine as long as this process lives.
func (s FeedState) Undisarmed(now Instant) FeedState {
	return FeedState{Mode: FeedFeeding, Since: now, Fed: s.Fed, Unstoppable: true}
}

// MayArm reports why the device must not be opened now: to open it feeds it.
func (s FeedState) MayArm() error {
	switch s.Mode {
	case FeedStarving:
		return fmt.Errorf("arm the watchdog: it is not fed any more until this machine has reset: %s: %w", s.Why, ErrRefused)
	case FeedHolding:
		return fmt.Errorf("arm the watchdog: it is not fed until all is verified gone: %s: %w", s.Why, ErrRefused)
	}
	return nil
}

// FeedInput is what the guard knows at one instant. What is about the kernel is
// what was read there, never what was ordered.
type FeedInput struct {
	// KeepaliveAcked is the send instant of the newest keepalive that ZooKeeper
	// acknowledged in this incarnation; Never: none yet, or told as PromisesUntil.
	KeepaliveAcked Instant
	// PromisesUntil is how long the promises of all other coordinators cover
	// this node: send instant of the question + shortest promise − G; Never: none.
	// Of a guard, which knows neither: the node's deadline, the later of both.
	PromisesUntil Instant
	// ProtectedWork: a role or protected work is here, by the books.
	ProtectedWork bool
	// EffectsVerifiedGone: the kernel was asked and has nothing of ours, no
	// address, group, unit or copy of a workload.
	EffectsVerifiedGone bool
	// Overdue names something past a deadline of its own (a role's, a fence
	// attempt's, an activity's) that is not verified gone; empty: nothing.
	Overdue string
	// OrderlyRelinquished: the agent has ended by the book, what it held is
	// released and acknowledged.
	OrderlyRelinquished bool
}

// FeedAction is what to do with the device.
type FeedAction string

// The actions.
const (
	FeedNothing FeedAction = ""       // do not touch it now
	FeedFeed    FeedAction = "feed"   // feed it
	FeedStop    FeedAction = "stop"   // never feed it again, and say so loudly: the machine will reset
	FeedDisarm  FeedAction = "disarm" // stop it; if it cannot be stopped, say so with Undisarmed
)

// FeedOutput is one step's decision.
type FeedOutput struct {
	Action FeedAction
	// Wake is when to step again at the latest; Forever: with the next news.
	Wake Instant
}

// WatchdogInfo is what is known of a device. All but the last three can be read
// without opening it, which would start it.
type WatchdogInfo struct {
	Path     string `json:"path"`     // as configured, /dev/watchdog
	Identity string `json:"identity"` // by the driver; empty: not known before Arm
	// Hardware is false for softdog, and where the identity is not known: as a
	// dead-proof it counts only with trust_softdog.
	Hardware bool `json:"hardware"`
	// NoWayOut: once started it cannot be stopped by anybody.
	NoWayOut bool `json:"nowayout"`
	// WasReset: this boot began because the watchdog had reset the machine, as
	// far as the device remembers.
	WasReset   bool          `json:"was_reset"`
	Timeout    time.Duration `json:"timeout"`    // as read back; 0: not armed
	Pretimeout time.Duration `json:"pretimeout"` // how long before the reset the kernel warns; 0: never
	Firmware   uint32        `json:"firmware"`
}

// WatchdogState is this machine's watchdog as the guard has it. The zero value
// is of a guard without one.
type WatchdogState struct {
	WatchdogInfo
	Mode  FeedMode `json:"mode"`
	Since Instant  `json:"since,omitempty"` // of the mode
	Fed   Instant  `json:"fed,omitempty"`   // the last feeding that was decided
	Why   string   `json:"why,omitempty"`   // of holding, starving and disarmed, or why it is not armed
	// Stored: the service manager keeps a copy of the descriptor, so that the
	// guard's death is no feeding.
	Stored bool `json:"stored"`
}

// Word is what this node publishes of its watchdog; stopAfter is Q·K. Nil: there
// is none to count on. Who reads it counts (I4): protected work has ended, or
// the machine has reset, by StopMS + TimeoutMS after the send of the last
// acknowledged keepalive, or TimeoutMS after the end of the last promise, or
// after the reader has taken the primary role, whichever is last; where
// the descriptor is not stored once more TimeoutMS, for the death of the guard
// feeds once. A machine with nothing protected is fed on.
func (s WatchdogState) Word(stopAfter time.Duration) *WatchdogWord {
	if s.Mode != FeedFeeding || s.Timeout <= 0 {
		return nil
	}
	return &WatchdogWord{Armed: true, Hardware: s.Hardware, Stored: s.Stored,
		TimeoutMS: s.Timeout.Milliseconds(), StopMS: stopAfter.Milliseconds()}
}
