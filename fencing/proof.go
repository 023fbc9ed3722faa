package fencing

import (
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// The dead-proofs (protocol §6), each a pure function: what is known goes in,
// the proof or what is missing for it comes out. There are four, and nothing
// else lets a node's work start elsewhere (I4):
//
//	verified off   levelOff (topology.go): every device of a level reads off
//	watchdog       WatchdogProof: its armed watchdog must have bitten by now
//	confirmed      ConfirmProof: a person vouches for it
//	returned       HasReturned: it has booted since

// Return is a sign of life of a node whose fence is under way.
type Return struct {
	Detail   string // for people
	NewStart bool   // another incarnation: the one that was to be fenced is over
	// Proof is ProofReturned if the host has booted since, so that nothing of
	// the old incarnation can be left; empty otherwise: of a daemon that was
	// only started anew the protected work may still run.
	Proof string
}

// HasReturned reports whether the node shows life that the fence must not hit:
// a later incarnation, a keepalive other than the one that the claim rests on,
// or an alive record written after that.
func HasReturned(r cluster.FenceRecord, n cluster.NodeView) (Return, bool) {
	for _, inc := range []cluster.Incarnation{recordOf(n), aliveOf(n)} {
		if inc == "" || inc == r.Incarnation {
			continue
		}
		ret := Return{NewStart: true, Detail: fmt.Sprintf("node %s is back as incarnation %s", r.Node, inc)}
		if rebooted(r.Incarnation, inc) {
			ret.Proof = ProofReturned
		}
		return ret, true
	}
	if n.Keepalive.Present && n.Keepalive.Mzxid != r.Keepalive {
		return Return{Detail: fmt.Sprintf("node %s wrote a keepalive after it was judged dead", r.Node)}, true
	}
	if n.Alive.Present && n.Alive.Mzxid > r.Keepalive {
		return Return{Detail: fmt.Sprintf("node %s opened a session after it was judged dead", r.Node)}, true
	}
	return Return{}, false
}

// returnedFrom is HasReturned for one fence, which an aimed one ignores within
// the same start of the node.
func returnedFrom(r cluster.FenceRecord, forgotten bool, n cluster.NodeView) (Return, bool) {
	ret, back := HasReturned(r, n)
	if back && aimed(r, forgotten) && !ret.NewStart {
		return Return{}, false
	}
	return ret, back
}

// aimed reports whether the fence is to hit its start of the node whether or not
// that shows life: what an operator has ordered, until its first try begins or
// it is forgotten. A fence that nobody remembers must not hit a living node days
// later, when its device answers again.
func aimed(r cluster.FenceRecord, forgotten bool) bool {
	return !forgotten && r.Order != "" && r.Tries == 0 && (r.Stage == cluster.FenceClaimed || r.Stage == cluster.FenceSoft)
}

// orderAim is how long an order is aimed at a node that shows life: so long after
// its record was first seen as it stands.
const orderAim = 5 * time.Minute

// forgotten reports whether a record has stood for longer than an order is aimed
// at a living node.
func forgotten(r cluster.Versioned[cluster.FenceRecord], now cluster.Instant) bool {
	return r.Present && !r.SeenAt.IsZero() && now.Sub(r.SeenAt) > orderAim
}

// rebooted reports whether the second incarnation belongs to another boot of
// the host than the first: an incarnation is "<boot id>.<random>".
func rebooted(before, after cluster.Incarnation) bool {
	a, b := bootOf(before), bootOf(after)
	return a != "" && b != "" && a != b
}

func bootOf(i cluster.Incarnation) string {
	if at := strings.LastIndexByte(string(i), '.'); at >= 0 {
		return string(i)[:at]
	}
	return string(i)
}

func recordOf(n cluster.NodeView) cluster.Incarnation {
	if !n.Record.Present || n.Record.Err != nil {
		return ""
	}
	return n.Record.Value.Incarnation
}

func aliveOf(n cluster.NodeView) cluster.Incarnation {
	if !n.Alive.Present || n.Alive.Err != nil {
		return ""
	}
	return n.Alive.Value.Incarnation
}

// watchdogSlack is what the bound has beyond the arithmetic: devices count in
// whole seconds, and two clocks are compared.
const watchdogSlack = time.Second

// WatchdogEvidence is what a watchdog's bound is reckoned from. All instants
// are on the clock of whoever asks.
type WatchdogEvidence struct {
	Incarnation cluster.Incarnation // whose death is to be proven
	Node        cluster.NodeView
	// Promised is the end of the last promise that this coordinator gave the
	// node, that it may go on with its work (agent/failsafe, Promised); Never: none.
	Promised cluster.Instant
	// Leads is since when the asker has the role, or later; Never: it has not.
	Leads cluster.Instant
	// StopAfter is Q·K as set here. The node's own, if longer, counts.
	StopAfter time.Duration
	// TrustSoftdog: a watchdog that is a timer of the node's own kernel counts.
	TrustSoftdog bool
}

// WatchdogProof is from when on the node's armed watchdog must have reset it,
// or, in words, what is missing for ever counting on that. The node feeds it at
// the latest Q·K after the send of its last acknowledged keepalive, or until a
// promise ends; that send lies before the keepalive was first seen here. Then
// the device bites within W, and within 2 W where the end of the process that
// feeds it makes the kernel feed once more:
//
//	max(max(seen, promised) + Q·K, leads) + W (+ W) + 1 s
//
// The asker's own reign is in it for a node that held the role and was shut down
// in maintenance: its guard has the right, and feeds, for the minute that the
// lease was lengthened by before, with no keepalive in between. Nobody takes the
// role before that lease has run out, which is after the guard's last feeding
// (I3); no word of the node's own is needed for that, which might be lost.
//
// A keepalive that is seen later moves the instant, so that it is asked again
// before the proof is written, in a Multi that checks that there was none.
func WatchdogProof(e WatchdogEvidence) (from cluster.Instant, missing string) {
	record := e.Node.Record
	switch {
	case !record.Present || record.Err != nil:
		return cluster.Forever, "the node's record cannot be read, so that nothing is known of a watchdog"
	case record.Value.Incarnation != e.Incarnation:
		return cluster.Forever, "the node's record is of another start, and says nothing of the watchdog in this one"
	case record.Value.Watchdog == nil || !record.Value.Watchdog.Armed:
		return cluster.Forever, "this start of the node has published no armed watchdog"
	}
	word := *record.Value.Watchdog
	timeout := time.Duration(word.TimeoutMS) * time.Millisecond
	switch {
	case timeout <= 0 || timeout > time.Hour:
		return cluster.Forever, fmt.Sprintf("the time-out of its watchdog, %d ms, is none", word.TimeoutMS)
	case !word.Hardware && !e.TrustSoftdog:
		return cluster.Forever, "its watchdog is a timer of its own kernel, which counts only with watchdog.trust_softdog"
	case !e.Node.Keepalive.Present || e.Node.Keepalive.SeenAt.IsZero():
		return cluster.Forever, "no keepalive of it has been seen from which the bound could be counted"
	}
	if !word.Stored {
		timeout *= 2
	}
	stop := max(e.StopAfter, time.Duration(word.StopMS)*time.Millisecond)
	fed := max(max(e.Node.Keepalive.SeenAt, e.Promised).Add(stop), e.Leads)
	return fed.Add(timeout + watchdogSlack), ""
}

// ConfirmProof is the text of an operator's proof, or the refusal of one that
// does not say who vouches for it and why.
func ConfirmProof(o cluster.FenceOrder) (detail string, refusal *cluster.Refusal) {
	if strings.TrimSpace(o.Reason) == "" || strings.TrimSpace(o.By) == "" {
		return "", &cluster.Refusal{Code: cluster.RefuseNoReason, Node: o.Node, Detail: fmt.Sprintf(
			"node %s: to confirm that it has no power is a person's word, with a name and a reason", o.Node)}
	}
	return fmt.Sprintf("confirmed by %s: %s", o.By, o.Reason), nil
}
