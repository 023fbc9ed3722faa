package api

import (
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// CheckAnswer is one thing that may stand against fencing a node, with its
// answer: clear, against, or not in use yet.
type CheckAnswer struct {
	Name   string              `json:"name"`
	Answer string              `json:"answer"`
	Code   cluster.RefusalCode `json:"code,omitempty"`
	Detail string              `json:"detail,omitempty"`
}

// The answers of a check.
const (
	CheckClear   = "clear"
	CheckAgainst = "against"
	CheckUnused  = "not in use yet"
)

// ProofState is one way in which a lost node is proven dead, and how far it is.
type ProofState struct {
	Proof  string `json:"proof"` // as in a fence record: verified_off, watchdog, confirmed or returned
	Given  bool   `json:"given"`
	Detail string `json:"detail"` // what it rests on, or what it lacks
}

// ProofNotNeeded is the detail of a proof beside one that is given.
const ProofNotNeeded = "not needed"

// The proofs, as fence records name them.
const (
	proofVerifiedOff = "verified_off"
	proofWatchdog    = "watchdog"
	proofConfirmed   = "confirmed"
	proofReturned    = "returned"
)

// lost tells of a node that may be dead what stands against fencing it and what
// would prove it dead. One that was stopped needs no proof.
func (x *explainer) lost(n cluster.NodeView) {
	if n.Daemon.Value == cluster.DaemonStop || n.Alive.Present && !x.silent(n) && fenceText(n) == "" && !x.suspected(n.Name) {
		return
	}
	if fenceText(n) == "" {
		x.checks(n)
	}
	x.proofs(n)
}

// suspected reports whether a coordinator that lives takes the node for more
// than late.
func (x *explainer) suspected(n cluster.NodeID) bool {
	for _, w := range x.e.Words {
		if seen, known := w.judges(n); known && w.current() {
			switch seen.Liveness {
			case cluster.LiveSuspect.String(), cluster.LiveIsolated.String(), cluster.LiveDead.String():
				return true
			}
		}
	}
	return false
}

// unusedChecks are answered by parts that are not in use without node leases,
// whoever is asked.
var unusedChecks = []string{"quorum of node leases", "last copy of a workload"}

// checks tells what may stand against fencing the node, as the primary would
// answer next. Where it publishes nothing, only what nobody can answer is told.
func (x *explainer) checks(n cluster.NodeView) {
	w := x.word(x.st.holder())
	seen, known := w.judges(n.Name)
	if !known || !w.current() || len(seen.Vetoes) == 0 {
		for _, name := range unusedChecks {
			if !x.st.snap.Quorum.Present { // where node leases are in use the primary would know
				x.e.Checks = append(x.e.Checks, CheckAnswer{Name: name, Answer: CheckUnused})
			}
		}
		return
	}
	for _, c := range seen.Vetoes {
		a := CheckAnswer{Name: c.Name, Answer: CheckClear}
		switch {
		case c.Unused:
			a.Answer = CheckUnused
		case c.Refusal != nil && c.Refusal.Code != "" && x.stands(w, *c.Refusal):
			a.Answer, a.Code, a.Detail = CheckAgainst, c.Refusal.Code, c.Refusal.Detail
			x.object(w.Node, *c.Refusal)
		}
		x.e.Checks = append(x.e.Checks, a)
	}
}

// picture tells who reaches the node by direct probes, as the primary has put
// it together, or else as each coordinator says it.
func (x *explainer) picture(n cluster.NodeView) {
	w := x.word(x.st.holder())
	if seen, known := w.judges(n.Name); known && w.current() && seen.Picture != "" {
		x.saw("it is %s, as node %s knows from the coordinators", seen.Picture, w.Node)
		return
	}
	for _, w := range x.e.Words {
		r, said := cluster.Reach{}, false
		if w.current() && w.Node != n.Name {
			r, said = w.View.Reach[n.Name]
		}
		switch {
		case !said:
		case r.Answer == cluster.ProbeAnswered:
			x.saw("it answers the probes of node %s", w.Node)
		case r.Answer == cluster.ProbeSilent:
			x.saw("it does not answer the probes of node %s", w.Node)
		}
		if said && r.Heard {
			x.saw("node %s sees its keepalives change", w.Node)
		}
	}
}

// proofs tells, for each way of proving the node dead, whether it is given and
// what it lacks.
func (x *explainer) proofs(n cluster.NodeView) {
	f, is := presentFence(n)
	given := ""
	if is && proven(f) {
		given = f.Proof
	}
	for _, p := range []struct{ name, given, lacks string }{
		{proofVerifiedOff, "its devices read off", x.lacksPowerOff(n, f, is)},
		{proofWatchdog, "its armed watchdog must have reset it", lacksWatchdog(n)},
		{proofConfirmed, "an operator has vouched for it; `pvc history --kind fence_order` says who", x.lacksConfirmation(n)},
		{proofReturned, "it has booted since", "it has not come back; its next start after a boot proves that this one is over"},
	} {
		state := ProofState{Proof: p.name, Given: p.name == given, Detail: p.lacks}
		switch {
		case state.Given:
			state.Detail = p.given
		case given != "":
			state.Detail = ProofNotNeeded
		}
		x.e.Proofs = append(x.e.Proofs, state)
	}
	if given == "" {
		x.missing("a proof that it is dead; any one of those listed is enough")
	}
}

// lacksPowerOff says why no device has proven that the node has no power.
func (x *explainer) lacksPowerOff(n cluster.NodeView, f cluster.FenceRecord, is bool) string {
	text := fmt.Sprintf("no fence of this start has begun; once nothing stands against it, or by `pvc fence now %s`, its power is taken", n.Name)
	switch { // what the record says of its end is told with the reason
	case !is:
	case f.Stage == cluster.FenceClaimed, f.Stage == cluster.FenceSoft:
		text = "its fence has begun, and power is not ordered off yet"
	case f.Stage == cluster.FencePowerOff, f.Stage == cluster.FenceVerify:
		text = fmt.Sprintf("its power is ordered off, try %d, and its devices are read until they say so", f.Tries)
	case f.Stage == cluster.FenceFailed:
		text = fmt.Sprintf("try %d ended without it; it is tried again by itself", f.Tries)
	case f.Stage == cluster.FenceManual:
		text = "its fence waits for you"
	case f.Stage == cluster.FenceCanceled:
		text = "its fence was canceled"
	}
	return text + x.deviceFaults()
}

// lacksWatchdog says why the node's watchdog proves nothing yet.
func lacksWatchdog(n cluster.NodeView) string {
	if !n.Record.Present || n.Record.Err != nil || n.Record.Value.Watchdog == nil || !n.Record.Value.Watchdog.Armed {
		return "this start has published no armed watchdog, so that none has reset it for certain"
	}
	w := *n.Record.Value.Watchdog
	bound := w.StopMS + w.TimeoutMS + 1000
	if !w.Stored {
		bound += w.TimeoutMS
	}
	kind := ""
	if !w.Hardware {
		kind = " It is a timer of the node's own kernel, which counts only with watchdog.trust_softdog."
	}
	return fmt.Sprintf("its armed watchdog resets it within %s of its last keepalive, of the last promise to it, or of when the primary took the role; that is counted once its devices have failed, where fencing.failed_fence is migrate.%s",
		time.Duration(bound)*time.Millisecond, kind)
}

// deviceFaults is what was found wrong with the node's fence devices when they
// were last tested; empty where all is well or nothing is published.
func (x *explainer) deviceFaults() string {
	var faults []string
	for _, d := range x.tests {
		if d.Fault != "" {
			faults = append(faults, fmt.Sprintf("device %s, as node %s last tested it: %s", d.Device, d.By, d.Finding()))
		}
	}
	if len(faults) == 0 {
		return ""
	}
	return "; " + strings.Join(faults, "; ")
}

func (x *explainer) lacksConfirmation(n cluster.NodeView) string {
	if alive := x.st.signsOfLife(n, x.e.Words); alive != "" {
		return "it cannot be confirmed now: " + alive
	}
	return fmt.Sprintf("nobody has; when you have seen that it has no power: `pvc fence confirm %s --reason WHY`", n.Name)
}

// owed tells whose proofs the lease waits for (require_dead_proof).
func (x *explainer) owed() {
	if x.st.snap.Lease.Err != nil {
		return
	}
	for _, u := range x.st.snap.Lease.Value.Unproven {
		x.missing("a proof that node %s, which held the role, is dead (start %s): `pvc explain %s` lists what would be one", u.Node, u.Incarnation, u.Node)
	}
}
