package role

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// handedAt steps a ready candidate over C, seen so long after its ready was sent.
func handedAt(t *testing.T, age time.Duration) (n *modelNode, s State, out Output, now cluster.Instant, snap *cluster.Snapshot) {
	t.Helper()
	n, _ = readyCandidate(t)
	now = n.state.readySent.Add(age)
	snap = n.sees(true, true)
	s, out = Step(n.config(), n.state, Input{Now: now, Snapshot: snap})
	return n, s, out, now, snap
}

func effectIDs(out Output) (raise, anchor ID) {
	for _, e := range out.Effects {
		if e.Raise != nil {
			raise = e.ID
		}
		if e.Commit != nil && e.Commit.Txn.Purpose == "role.anchor" {
			anchor = e.ID
		}
	}
	return raise, anchor
}

func ackAnchor(n *modelNode, s State, snap *cluster.Snapshot, id ID, sent, now cluster.Instant) (State, Output) {
	return Step(n.config(), s, Input{Now: now, Snapshot: snap, Event: Event{Commit: &CommitDone{ID: id, Result: cluster.TxnResult{
		Outcome: cluster.OutcomeOK, SentAt: sent, DoneAt: now, FailedOp: -1, Versions: []int32{snap.Lease.Version + 1}}}}})
}

// Without the gate the guard refuses a role of which less than
// 2.05 s − G − M is left (router.UngatedLifetime is 0). The candidate raises with
// what its ready leaves, although its renewal, sent at the same time, gives
// 2.5 s; the refusal ends a switch that has happened.
func TestAHandOverWithoutAGateSurvivesAReadyOf900ms(t *testing.T) {
	n, s, out, now, snap := handedAt(t, 900*time.Millisecond)
	raise, anchor := effectIDs(out)
	if raise == 0 {
		return // waits for the renewal: fine
	}
	timing := n.config().Timing
	left := did(out)["raise"].Deadline.Deadline.Sub(now)
	room := left + timing.Grace + timing.TakerMargin - 1050*time.Millisecond
	if room >= time.Second {
		return // an ungated guard has a lifetime for it
	}
	t.Logf("raised with %v left: an ungated guard's longest lifetime is 0 s", left)
	s, _ = ackAnchor(n, s, snap, anchor, now, now.Add(2*time.Millisecond))
	snap.Lease.Version++
	refused := fmt.Errorf("add addresses: too little is left of the role for the kernel's shortest lifetime: %w", cluster.ErrDeadline)
	s, _ = Step(n.config(), s, Input{Now: now.Add(3 * time.Millisecond), Snapshot: snap, Event: Event{Step: &StepDone{ID: raise, Err: refused}}})
	if s.Mode != Taking {
		t.Errorf("%s with %v left of an acknowledged renewal; want the raise tried again under that", s.Mode, s.hold.deadline.Sub(now))
	}
}

// The same with a gate where Begin and Present take longer than what the
// ready leaves (0.5 s at worst), though the renewal is acknowledged at once.
func TestASlowRaiseUnderAnOldReadyIsTriedAgain(t *testing.T) {
	n, s, out, now, snap := handedAt(t, 1950*time.Millisecond)
	raise, anchor := effectIDs(out)
	if raise == 0 {
		return
	}
	s, _ = ackAnchor(n, s, snap, anchor, now, now.Add(2*time.Millisecond))
	snap.Lease.Version++
	at := now.Add(600 * time.Millisecond)
	s, _ = Step(n.config(), s, Input{Now: at, Snapshot: snap, Event: Event{Step: &StepDone{ID: raise, Err: fmt.Errorf("present addresses: %w", cluster.ErrDeadline)}}})
	if s.Mode != Taking {
		t.Errorf("%s with %v left of an acknowledged renewal", s.Mode, s.hold.deadline.Sub(at))
	}
}

// Two stalls of a secondary make its guard's epoch larger than the lease's
// next one; the next switch to it fails after C, with all that follows.
func TestStallsOfASecondaryDoNotSpoilTheNextSwitchToIt(t *testing.T) {
	w := quietWorld(t, 1, 3, false)
	p := w.elected(t)
	n := w.nodes[(indexOf(w, p)+1)%3]
	w.lives(10 * time.Second)
	for range 2 {
		// The process goes on after 3 s; its timer is served before the mirror has
		// read anything: it contends on what it saw last.
		stale := *n.snap
		at := stale.Lease.SeenAt.Add(3 * time.Second)
		_, out := Step(n.config(), n.state, Input{Now: at, Snapshot: &stale})
		asked := cluster.Epoch(0)
		for _, e := range out.Effects {
			if e.Preflight != nil {
				asked = e.Preflight.Epoch
			}
		}
		if asked == 0 {
			t.Fatal("no pre-flight after the stall")
		}
		// guard.prepareEpoch; then the renewal is seen, and nothing comes of it.
		n.guard.maxEpoch = max(n.guard.maxEpoch, asked)
		// agent.watchGuard, each 5 K
		n.step(Event{GuardState: &cluster.GuardState{MaxEpoch: n.guard.maxEpoch}})
		w.lives(10 * time.Second)
	}
	t.Logf("the lease is at epoch %d, %s's guard at %d", w.store.lease().Epoch, n.id, n.guard.maxEpoch)
	dropped := w.recorded["role_dropped"]
	w.wish(string(n.id))
	w.lives(6 * time.Second)
	if w.recorded["role_dropped"] != dropped {
		t.Errorf("the switch to %s failed after C:\n%s", n.id, strings.Join(w.log[max(0, len(w.log)-30):], "\n"))
	}
}

// remake deletes the transition record and makes it again with the same content
// (a restore, a tool that copies trees).
func (w *world) remake() {
	rec := w.store.recs[transitionKey]
	w.store.zxid++
	w.store.recs[transitionKey] = &znode{value: rec.value, mzxid: w.store.zxid}
	w.logf("transition made anew")
	w.publish()
}

// The record is made anew while the candidate is ready; C happens all the
// same, and then the new holder writes on a version that never was.
func TestARecordMadeAnewInAHandOverDoesNotCostTheRole(t *testing.T) {
	n, h := readyCandidate(t)
	w := n.w
	dropped := w.recorded["role_dropped"]
	w.remake()
	before := len(w.log)
	w.lives(15 * time.Second)
	conflicts := 0
	for _, line := range w.log[before:] {
		if strings.Contains(line, "conflict role.") {
			conflicts++
		}
	}
	if w.recorded["role_dropped"] != dropped || conflicts > 100 {
		t.Errorf("%d roles dropped, %d conflicts; holder was %s, candidate %s\n%s", w.recorded["role_dropped"]-dropped, conflicts, h.id, n.id,
			strings.Join(w.log[before:min(len(w.log), before+30)], "\n"))
	}
	w.verdict(t)
}

// Made anew, and then the switch is superseded: the candidate takes every
// later version for stale and never ends (I7).
func TestACandidateWhoseRecordWasMadeAnewEnds(t *testing.T) {
	n, h := readyCandidate(t)
	w := n.w
	w.remake()
	w.wish(string(h.id))
	w.lives(2 * time.Minute)
	if n.state.Mode == Candidate {
		t.Errorf("I7: %s is a candidate (stage %d, lock held: %v) two minutes after the switch was overtaken\n%s", n.id, n.state.stage, n.state.locked, w.describe())
	}
	w.wish(string(n.id))
	w.lives(20 * time.Second)
	if p := w.primaries(); len(p) != 1 || p[0] != n {
		t.Errorf("I8: a later wish for %s is not served\n%s", n.id, w.describe())
	}
}

// The record is deleted while the holder waits for C or B: that is an abort
// (nothing has been handed over), not the loss of the role by expiry.
func TestADeletedRecordAbortsTheHandOver(t *testing.T) {
	n, h := readyCandidate(t)
	w := n.w
	w.store.zxid++
	delete(w.store.recs, transitionKey)
	w.logf("transition deleted")
	w.publish()
	dropped, before := w.recorded["role_dropped"], len(w.log)
	w.lives(15 * time.Second)
	conflicts := 0
	for _, line := range w.log[before:] {
		if strings.Contains(line, string(h.id)+" conflict role.") {
			conflicts++
		}
	}
	if w.recorded["role_dropped"] != dropped {
		t.Errorf("%s lost the role by its deadline after %d conflicting Multis; want an abort\n%s", h.id, conflicts, strings.Join(w.log[max(0, len(w.log)-20):], "\n"))
	}
}

// A candidate that shuts down and sees C's record before C's lease must not
// abort on top of C: the role would be nobody's until the lease runs out.
func TestNoAbortIsWrittenOnTheHandedOverRecord(t *testing.T) {
	n, _ := readyCandidate(t)
	now := n.state.readyAt.Add(50 * time.Millisecond)
	_, out := Step(n.config(), n.state, Input{Now: now, Snapshot: n.sees(true, false), Event: Event{Stop: true}})
	for _, e := range out.Effects {
		if e.Commit != nil && e.Commit.Txn.Purpose == "role.abort_announce" {
			t.Errorf("an abort is sent on version %d, which C has written: it commits, and %s ends while it holds the lease", e.Commit.Txn.Ops[0].Version, n.id)
		}
	}
}

// A candidate that goes on after a stall and contends meets C in the fresh
// read: the role is its own.
func TestALapsedCandidateThatReadsCGoesOn(t *testing.T) {
	n, _ := readyCandidate(t)
	stale := *n.snap
	now := stale.Lease.SeenAt.Add(n.config().Timing.RoleTTL + n.config().Timing.TakerMargin + time.Millisecond)
	s, out := Step(n.config(), n.state, Input{Now: now, Snapshot: &stale})
	if s.Mode != Contending {
		t.Skipf("mode %s", s.Mode)
	}
	var id ID
	for _, e := range out.Effects {
		if e.Refresh {
			id = e.ID
		}
	}
	fresh := n.sees(true, true)
	fresh.Lease.SeenAt = now
	fresh.Zxid += 10
	s, _ = Step(n.config(), s, Input{Now: now.Add(time.Millisecond), Snapshot: &stale, Event: Event{Refresh: &RefreshDone{ID: id, Snapshot: fresh}}})
	s, _ = Step(n.config(), s, Input{Now: now.Add(2 * time.Millisecond), Snapshot: fresh})
	if s.Mode != Taking {
		t.Errorf("mode %s although the lease is this start's own: nobody answers until it has run out", s.Mode)
	}
}

// A jump of BOOTTIME counts as "lease lost" (§2): a ready of before it
// anchors nothing.
func TestAReadyOfBeforeASuspendAnchorsNothing(t *testing.T) {
	n, _ := readyCandidate(t)
	now := n.state.readySent.Add(700 * time.Millisecond)
	s, _ := Step(n.config(), n.state, Input{Now: now, Snapshot: n.snap, Event: Event{Suspended: true}})
	_, out := Step(n.config(), s, Input{Now: now.Add(time.Millisecond), Snapshot: n.sees(true, true)})
	if asked := did(out); asked["raise"] != nil {
		t.Errorf("raised by a ready that was sent before this host slept")
	}
}

// The announcement of a switch is seen before the wish that it rests on: the
// holder reads one record after the other. That is no other wish, and the switch
// that an operator waits for must not end as superseded. One that never comes,
// because the record was made anew, holds the answer up for no longer than K.
func TestAnAnnouncementThatOvertakesItsWishIsNotSuperseded(t *testing.T) {
	c, s, now := heldByMe(t, Primary, stageNone)
	snap := func(at cluster.Instant, wish string, version int32) *cluster.Snapshot {
		snap := liveSnapshot(c, s, at)
		snap.PrimaryNode = cluster.Versioned[string]{Value: wish, Present: true, Version: version, SeenAt: now, Mzxid: 9}
		snap.Transition = cluster.Versioned[cluster.Transition]{Present: true, Version: 5, SeenAt: now, Value: cluster.Transition{
			ID: "tr", Epoch: 7, From: "hv1", To: "hv2", ToIncarn: "hv2.1", State: cluster.TransitionRunning, WishVersion: 4}}
		return snap
	}
	late, _ := Step(c, s, Input{Now: now, Snapshot: snap(now, "hv1", 3)})
	if late.Mode != Primary {
		t.Fatalf("mode %s (%s) on an announcement whose wish has not been seen yet", late.Mode, late.why)
	}
	if came, _ := Step(c, late, Input{Now: now.Add(time.Millisecond), Snapshot: snap(now, "hv2", 4)}); came.Mode != Relinquish {
		t.Errorf("mode %s once the wish has been seen, too: the switch is not answered", came.Mode)
	}
	at := now.Add(c.Timing.KeepaliveInterval)
	if never, _ := Step(c, late, Input{Now: at, Snapshot: snap(at, "hv1", 3)}); never.Mode != Aborting {
		t.Errorf("mode %s on an announcement whose wish has not come for K", never.Mode)
	}
	if other, _ := Step(c, s, Input{Now: now, Snapshot: snap(now, "hv1", 5)}); other.Mode != Aborting {
		t.Errorf("mode %s on an announcement that a newer wish has superseded", other.Mode)
	}
}
