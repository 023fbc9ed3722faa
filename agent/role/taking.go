package role

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// raise begins phase D: the guard takes the role's deadline, the addresses and
// the gate. Only an acknowledged lease write leads here.
func (m *machine) raise() {
	m.s.stage, m.s.stageBegan = stageRaise, m.in.Now
	m.s.raisedTo = m.s.hold.deadline
	m.s.step = m.emit(Effect{Raise: &Raise{Deadline: m.deadline()}})
}

// raiseAgain answers a raise for which the guard had too little time left: the
// renewal that was sent beside it, or has come in meanwhile, gives it more. Who
// has not raised anything for a whole ttl leaves the role to others (I7).
func (m *machine) raiseAgain() bool {
	h := m.s.hold
	switch {
	case m.in.Now.Sub(m.s.Since) >= m.c.Timing.RoleTTL:
		return false
	case h.deadline.After(m.s.raisedTo):
		m.raise()
	case h.write != 0 && h.purpose == forAnchor:
		m.s.stage = stageAnchor
	default:
		return false
	}
	return true
}

// begin goes on to phase D, at once or when nothing of this node's own word
// stands against it any more (I1) and, where require_dead_proof is set, every
// lost holder is proven dead.
func (m *machine) begin() {
	switch {
	case !m.s.hold.resumed && m.bound():
		m.s.stage, m.s.step = stagePromise, 0
	case len(m.owed(m.s.unproven)) > 0:
		m.holdBare()
	default:
		m.raise()
	}
}

// holdBare waits for a dead-proof. The guard begins the role without any of its
// effects, since the attempts of the fence that is to prove it hang on it (I5).
func (m *machine) holdBare() {
	if m.s.stage != stageProof {
		m.s.stage, m.s.step = stageProof, 0
	}
	if m.s.step == 0 && !m.s.hold.raised && !m.in.Now.Before(m.s.retryAt) {
		m.s.step = m.emit(Effect{Raise: &Raise{Deadline: m.deadline(), Bare: true}})
	}
}

// heldBare takes in whether the guard has begun it; what failed is tried again.
func (m *machine) heldBare(d StepDone) {
	if d.Err != nil {
		m.noteOnce("bare_role_failed", fmt.Sprintf("the guard does not hold the role, so that nobody is fenced: %v", d.Err), nil)
		m.s.retryAt = m.in.Now.Add(renewRetry)
		m.wakeAt(m.s.retryAt)
		return
	}
	m.s.hold.raised = true
	m.extend() // renewals may have come in meanwhile
}

// owed are those of the list whose end is not settled yet. Settled it is by a
// dead-proof, by a later boot of the host, or by that very start's own word
// that it is secondary, which it gives only after its guard has verified the end.
func (m *machine) owed(list []cluster.Unproven) []cluster.Unproven {
	if !m.c.DeadProof {
		return nil
	}
	var owed []cluster.Unproven
	for _, u := range list {
		n := m.in.Snapshot.Nodes[u.Node]
		alive := n.Alive.Value
		back := n.Alive.Present && n.Alive.Err == nil && alive.Incarnation != u.Incarnation && bootOf(alive.Incarnation) != bootOf(u.Incarnation)
		gaveUp := n.Alive.Present && alive.Incarnation == u.Incarnation && n.Router.Value == cluster.RouterSecondary
		if !m.provenDead(u.Node, u.Incarnation) && !back && !gaveUp {
			owed = append(owed, u)
		}
	}
	return owed
}

// bootOf is an incarnation's boot id, what stands before the last dot.
func bootOf(i cluster.Incarnation) string {
	return string(i[:max(0, strings.LastIndexByte(string(i), '.'))])
}

// raised goes on when the addresses are in the kernel, or gives the role to
// somebody who can.
func (m *machine) raised(d StepDone) {
	if errors.Is(d.Err, cluster.ErrDeadline) && m.raiseAgain() {
		return
	}
	if d.Err != nil {
		m.transitionError(fmt.Sprintf("addresses on %s: %v", m.c.Node, d.Err))
		m.s.penalty = true
		m.drop(fmt.Sprintf("the floating addresses could not be added: %v", d.Err), true)
		return
	}
	m.s.hold.raised = true
	m.extend() // renewals may have come in while the guard was at work
	m.stepDone(cluster.PhaseAddresses, "addresses", d.Took, "")
	m.startServices()
}

func (m *machine) startServices() {
	m.s.stage, m.s.stageBegan = stageStart, m.in.Now
	if len(m.c.Services) == 0 {
		m.settle()
		return
	}
	m.s.step = m.emit(Effect{Start: &Services{Epoch: m.s.hold.epoch, Timeout: m.startTimeout()}})
	m.s.trDue = m.s.transition.Running() && !m.s.returning
}

// markStart records E beside the start of the services: whoever watches a slow
// one sees what the hand-over waits for.
func (m *machine) markStart() {
	if !m.s.trDue || !m.free() || m.renewalFirst() {
		return
	}
	if !m.refreshTransition() {
		m.s.trDue = false // another hand-over's record by now
		return
	}
	m.s.transition.Phase = cluster.PhaseStart
	m.writeLease(forStart, m.mine(), cluster.Set(transitionKey, m.s.trVersion, m.s.transition))
}

func (m *machine) startTimeout() time.Duration {
	total := time.Second
	for _, s := range m.c.Services {
		total += s.StartTimeout
	}
	return total
}

func (m *machine) stopTimeout() time.Duration {
	total := 2 * time.Second
	for _, s := range m.c.Services {
		total += s.StopTimeout
	}
	return total
}

// servicesStarted goes on with E, or in Primary with a retry of a failed start.
func (m *machine) servicesStarted(d StepDone) {
	m.s.svcFailed = ""
	if d.Err != nil {
		m.s.svcFailed = d.Err.Error()
		m.s.svcRetry = m.in.Now.Add(serviceRetry)
		m.noteOnce("service_failed", "a primary-only service did not start: "+m.s.svcFailed, nil)
		if m.c.Yield && m.othersCould() {
			m.drop("a service did not start and on_start_failure is yield: "+m.s.svcFailed, true)
			return
		}
	}
	if m.s.Mode != Taking {
		m.s.stage = stageNone
		return
	}
	m.stepDone(cluster.PhaseStart, "services", d.Took, m.s.svcFailed)
	m.settle()
}

func (m *machine) settle() {
	m.s.stage, m.s.timer = stageSettle, m.in.Now.Add(m.c.Timing.Settle)
}

// taking drives D, E and F.
func (m *machine) taking() {
	switch m.s.stage {
	case stageSettle:
		if m.in.Now.Before(m.s.timer) {
			m.wakeAt(m.s.timer)
			return
		}
		m.s.stage = stageDone
		m.finish()
	case stageDone:
		m.finish()
	case stageAnchor:
		m.anchor()
	case stageStart:
		m.markStart()
	case stageProof:
		m.awaitProof()
	case stagePromise:
		m.awaitPromise()
	}
}

// awaitPromise holds the role without its effects while a promise of this
// node's own stands; it is over within L + M. A shutdown ends the wait.
func (m *machine) awaitPromise() {
	if m.s.stopping {
		m.drop("this daemon stops while a promise of its own keeps it from acting", true)
		return
	}
	m.s.Refusals = nil
	m.begin()
}

// awaitProof holds the role without its effects until nobody is unproven. A
// shutdown ends the wait; the obligation stays in the lease.
func (m *machine) awaitProof() {
	if m.s.stopping {
		m.drop("this daemon stops while it waits for a dead-proof", true)
		return
	}
	m.s.Refusals = nil
	for _, u := range m.owed(m.s.unproven) {
		m.refuse(cluster.Refusal{Code: cluster.RefuseDeadProof, Node: u.Node,
			Detail: fmt.Sprintf("require_dead_proof is set: the addresses wait until %s (incarnation %s) is proven dead", u.Node, u.Incarnation)})
	}
	if m.s.step != 0 {
		return // the guard is at it: one step at a time
	}
	m.begin()
}

// finish writes F: the record is done and watchers see `primary`.
func (m *machine) finish() {
	if !m.free() || m.renewalFirst() {
		return
	}
	ops := []cluster.Op{m.routerStateOp(cluster.RouterPrimary)}
	if m.s.transition.Running() && m.refreshTransition() {
		t := m.s.transition // which stays running here until this is acknowledged: a lost write is sent again (I7)
		t.State, t.Phase = cluster.TransitionDone, cluster.PhaseDone
		ops = append(ops, cluster.Set(transitionKey, m.s.trVersion, t))
	}
	m.writeLease(forDone, m.mine(), ops...)
}

// renewalFirst reports that a renewal is due: what only tells of the role waits
// for it, so that a record that keeps conflicting never costs the role itself (I7).
func (m *machine) renewalFirst() bool {
	return !m.s.hold.next.IsZero() && !m.in.Now.Before(m.s.hold.next)
}

// refreshTransition brings the record's version up to date with what was
// observed; false when the record is another hand-over's by now.
func (m *machine) refreshTransition() bool {
	seen := m.in.Snapshot.Transition
	if m.s.trKnown && seen.Version <= m.s.trVersion {
		return true
	}
	if !seen.Present || seen.Value.ID != m.s.transition.ID {
		return false
	}
	merged := seen.Value // the holder's steps, and then mine
	for _, step := range m.s.transition.Steps {
		if step.Node == m.c.Node && step.Phase >= cluster.PhaseAddresses {
			merged = merged.WithStep(step)
		}
	}
	merged.Error = m.s.transition.Error
	m.s.transition, m.s.trVersion, m.s.trKnown = merged, seen.Version, true
	return true
}

func (m *machine) doneWritten(cluster.TxnResult) {
	if t := m.s.transition; t.ID != "" && t.State != cluster.TransitionAborted {
		m.note(true, "transition", fmt.Sprintf("%s is primary (%s)", t.To, t.Cause), map[string]string{
			"id": t.ID, "from": string(t.From), "to": string(t.To), "cause": string(t.Cause), "epoch": fmt.Sprint(m.s.hold.epoch),
		})
	}
	m.unlock()
	m.s.returning, m.s.dirty, m.s.trKnown = false, false, false
	m.s.transition = cluster.Transition{}
	m.enter(Primary, stageNone)
	m.wakeAt(m.in.Now)
}

// stepDone appends a finished step to the record in memory; it reaches the
// store with the next write of the record.
func (m *machine) stepDone(p cluster.Phase, name string, took time.Duration, failure string) {
	if m.s.transition.ID == "" {
		return
	}
	m.s.transition = m.s.transition.WithStep(cluster.TransitionStep{
		Node: m.c.Node, Phase: p, Name: name, StartedUnixMS: m.in.WallMS - took.Milliseconds(), Micros: took.Microseconds(), Error: failure,
	})
}

func (m *machine) transitionError(text string) {
	m.s.transition.Error = text
}
