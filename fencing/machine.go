package fencing

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// The proofs that end a fence (protocol §6): why the incarnation is dead.
const (
	ProofVerifiedOff = "verified_off" // every device of a level read off
	ProofWatchdog    = "watchdog"     // its armed watchdog's bound has passed
	ProofConfirmed   = "confirmed"    // an operator vouched for it
	ProofReturned    = "returned"     // the node is back with a new boot
)

// ErrStale is returned for an event that belongs to an older record or an
// earlier try than the record it was applied to; the record is unchanged.
var ErrStale = errors.New("belongs to an older fence")

// ErrIllegal is returned for an event that the record's stage does not admit;
// the record is unchanged.
var ErrIllegal = errors.New("not possible in this stage")

// EventKind is what happened to a fence.
type EventKind uint8

// The events.
const (
	EventProceed   EventKind = iota + 1 // the stage's work is done and this leads on
	EventReturned                       // a keepalive of a new incarnation, or a fresh one of the same
	EventFailed                         // the attempts ended without a proof
	EventProof                          // a dead-proof from elsewhere; Event.Proof names it
	EventRetry                          // the backoff has passed
	EventNoDevice                       // nothing is configured that could fence the node
	EventSoftFirst                      // try a soft shutdown before power is taken
	EventWithdrawn                      // fencing was switched off meanwhile: maintenance, disabled, or the budget is spent
	EventHeld                           // an operator ends the tries; Event.Order names the order
)

// String names the event.
func (k EventKind) String() string {
	names := [...]string{"invalid", "proceed", "returned", "failed", "proof", "retry", "no_device", "soft_first", "withdrawn", "held"}
	if int(k) >= len(names) {
		return names[0]
	}
	return names[k]
}

// Event is something that happened to one try of one record.
type Event struct {
	Kind     EventKind
	ID       string        // the record it belongs to
	Try      int           // Tries of the record when the work began
	Epoch    cluster.Epoch // of the fencer that did the work
	Proof    string        // EventProof: which; EventReturned: ProofReturned if the boot is new
	Detail   string        // for people; becomes the record's Result
	Attempts []cluster.FenceAttempt
	Order    string // the operator's order that it comes from; empty: none
	Policy   Policy // of a proof: what follows for the node's workloads
}

// maxAttempts bounds the record's list, so that a fence that is retried for days
// does not outgrow its znode: the newest are kept, and of each device the newest
// known one in any case, since by it the device is given power again.
const maxAttempts = 16

// Next applies an event to a record and returns the record to write. The input
// is not edited. It is the only place that changes a stage:
//
//	claimed ─▶ (soft ─▶) power_off ─▶ verify ─▶ fenced ─▶ recover ─▶ done
//	 │  ▲                    │          │          ▲
//	 │  └─────retry── failed ◀──────────┘          └── a proof from elsewhere, from any
//	 │                 │                               stage before it, manual too
//	 │                 └─▶ manual ◀── no device, or held by an operator; from claimed
//	 │                                and soft too
//	 └─▶ canceled ◀── returned or withdrawn, from soft, failed and manual too
//
// soft is entered only where the node still answers directly, so that it can be
// asked to stop by itself; whatever it answers is no proof.
//
// From power_off on a return no longer cancels: the write that entered it was
// checked against the node's alive and keepalive, so the two cannot both win
// (I5), and a node that starts meanwhile waits until the record has left
// power_off and verify. power_off and verify are repeated as a whole by a new
// primary, which trusts no result that it has not read itself; fenced holds a
// proof about an incarnation that can never come back, and is trusted.
func Next(r cluster.FenceRecord, e Event) (cluster.FenceRecord, error) {
	if e.ID != r.ID || e.Try != r.Tries || e.Epoch != r.Epoch {
		return r, fmt.Errorf("%s of fence %q, try %d, epoch %d, while %q is in try %d, epoch %d: %w",
			e.Kind, e.ID, e.Try, e.Epoch, r.ID, r.Tries, r.Epoch, ErrStale)
	}
	to, ok := edge(r.Stage, e)
	if !ok {
		return r, fmt.Errorf("%s of fence %q in stage %s: %w", e.Kind, r.ID, r.Stage, ErrIllegal)
	}
	next := r
	next.Stage = to
	next.Attempts = appendAttempts(r.Attempts, e.Attempts)
	if e.Detail != "" {
		next.Result = e.Detail
	}
	if to == cluster.FenceFenced {
		next.Proof = ProofVerifiedOff
	}
	if e.Kind == EventProof || (e.Kind == EventReturned && e.Proof != "") {
		next.Proof = e.Proof
	}
	if to == cluster.FenceFenced || e.Policy != "" {
		next.Policy = string(e.Policy)
	}
	if e.Order != "" {
		next.Order = e.Order
	}
	if next.Held = r.Held && to == cluster.FenceManual; e.Kind == EventHeld {
		next.Held = true
	}
	if to == cluster.FencePowerOff {
		next.Tries++ // the results of an earlier try no longer count
	}
	return next, nil
}

func edge(from cluster.FenceStage, e Event) (cluster.FenceStage, bool) {
	switch e.Kind {
	case EventProceed:
		to, ok := onward[from]
		return to, ok
	case EventSoftFirst:
		return cluster.FenceSoft, from == cluster.FenceClaimed
	case EventReturned, EventWithdrawn:
		return cluster.FenceCanceled, Cancelable(from)
	case EventFailed:
		return cluster.FenceFailed, from == cluster.FencePowerOff || from == cluster.FenceVerify
	case EventRetry:
		return cluster.FenceClaimed, from == cluster.FenceFailed
	case EventNoDevice:
		return cluster.FenceManual, from == cluster.FenceClaimed || from == cluster.FenceFailed
	case EventHeld:
		return cluster.FenceManual, from == cluster.FenceClaimed || from == cluster.FenceSoft || from == cluster.FenceFailed
	case EventProof:
		return cluster.FenceFenced, e.Proof != "" && beforeProof(from)
	}
	return "", false
}

// onward is where a stage leads when its work has succeeded.
var onward = map[cluster.FenceStage]cluster.FenceStage{
	cluster.FenceClaimed:  cluster.FencePowerOff,
	cluster.FenceSoft:     cluster.FencePowerOff,
	cluster.FencePowerOff: cluster.FenceVerify,
	cluster.FenceVerify:   cluster.FenceFenced,
	cluster.FenceFenced:   cluster.FenceRecover,
	cluster.FenceRecover:  cluster.FenceDone,
}

// Cancelable reports whether the node's return still ends a fence in this
// stage: before power_off, and between tries.
func Cancelable(s cluster.FenceStage) bool {
	switch s {
	case cluster.FenceClaimed, cluster.FenceSoft, cluster.FenceFailed, cluster.FenceManual:
		return true
	}
	return false
}

func beforeProof(s cluster.FenceStage) bool {
	switch s {
	case cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone, cluster.FenceCanceled:
		return false
	}
	return true
}

func appendAttempts(old, more []cluster.FenceAttempt) []cluster.FenceAttempt {
	all := make([]cluster.FenceAttempt, 0, len(old)+len(more))
	all = append(append(all, old...), more...)
	kept := make([]cluster.FenceAttempt, 0, maxAttempts)
	seen := make(map[string]bool)
	for i, a := range slices.Backward(all) {
		known := a.Result != ResultUnknown && a.Action != ActionSoft // no device's: a device may have the node's name
		if len(all)-i <= maxAttempts || known && !seen[a.Device] {
			kept = append(kept, a)
		}
		seen[a.Device] = seen[a.Device] || known
	}
	if len(kept) == 0 {
		return nil
	}
	slices.Reverse(kept)
	return kept
}

// The backoff between tries: 5 s, doubled by each try, at most one minute. It
// never ends by itself: a controller that comes back after an hour still gets
// its order (I7).
const (
	backoffFirst = 5 * time.Second
	backoffMost  = time.Minute
)

// Backoff is how long a failed record waits before its next try.
func Backoff(tries int) time.Duration {
	d := backoffFirst
	for i := 1; i < tries && d < backoffMost; i++ {
		d *= 2
	}
	return min(d, backoffMost)
}

// Due reports whether the record needs a fencer now: one that another primary
// left behind in the middle, or a failed one whose backoff has passed since
// this observer first saw it so. A claim of one's own that is under way is due
// as well; the Fencer runs one fence at a time and knows.
func Due(r cluster.Versioned[cluster.FenceRecord], now cluster.Instant) bool {
	if !r.Present || r.Err != nil || r.Value.ID == "" || !r.Value.Stage.Known() || r.Value.Ended() {
		return false
	}
	if r.Value.Stage == cluster.FenceFailed {
		return now.Sub(r.SeenAt) >= Backoff(r.Value.Tries)
	}
	return true
}
