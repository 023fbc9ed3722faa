package role

import (
	"maps"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// readyCandidate runs a switch until the candidate waits for the hand-over with
// an acknowledged `ready`, and returns it with the holder.
func readyCandidate(t *testing.T) (candidate, holder *modelNode) {
	t.Helper()
	w := quietWorld(t, 1, 3, false)
	holder = w.elected(t)
	candidate = w.nodes[0]
	if candidate == holder {
		candidate = w.nodes[1]
	}
	w.wish(string(candidate.id))
	for range 40000 {
		w.lives(100 * time.Microsecond)
		if candidate.state.stage == stageReady && !candidate.state.readySent.IsZero() {
			return candidate, holder
		}
	}
	t.Fatalf("%s never became ready\n%s", candidate.id, w.describe())
	return nil, nil
}

// sees returns the candidate's snapshot with the hand-over's parts in it.
func (n *modelNode) sees(record, lease bool) *cluster.Snapshot {
	snap := *n.snap
	snap.Nodes = maps.Clone(n.snap.Nodes)
	if record {
		snap.Transition.Value.Phase = cluster.PhaseAddresses
		snap.Transition.Version++
		snap.Transition.Mzxid += 1000
	}
	if lease {
		l := &snap.Lease
		l.Value.Holder, l.Value.Incarnation, l.Value.Epoch, l.Value.N = n.id, n.inc, l.Value.Epoch+1, 0
		l.Version++
		l.Mzxid += 1000
	}
	return &snap
}

// did lists what a step asks for: the purposes of its Multis, and "raise".
func did(out Output) map[string]*Raise {
	list := map[string]*Raise{}
	for _, e := range out.Effects {
		if e.Commit != nil {
			list[e.Commit.Txn.Purpose] = nil
		}
		if e.Raise != nil {
			list["raise"] = e.Raise
		}
	}
	return list
}

// The addresses of a planned switch come with C itself: the `ready` that C rests
// on anchors the role (I1, I3), and the first renewal runs beside them.
func TestAHandedRoleIsAnchoredAtItsReady(t *testing.T) {
	n, _ := readyCandidate(t)
	sent := n.state.readySent
	if sent != n.state.readyAt {
		t.Fatalf("the ready of %d anchors at %d; want its send, never its reply", n.state.readyAt, sent)
	}
	now := sent.Add(600 * time.Millisecond)
	_, out := Step(n.config(), n.state, Input{Now: now, Snapshot: n.sees(true, true)})
	asked := did(out)
	r := asked["raise"]
	if _, renewing := asked["role.anchor"]; r == nil || !renewing {
		t.Fatalf("handed the role %v after its ready, the candidate asks for %v; want raise and role.anchor at once", now.Sub(sent), asked)
	}
	timing := n.config().Timing
	if want := sent.Add(timing.RoleTTL - timing.Grace); r.Deadline.Deadline != want || r.Deadline.Sent != sent {
		t.Errorf("raised until %d, sent %d; want %d, %d: ttl less grace from the ready's send", r.Deadline.Deadline, r.Deadline.Sent, want, sent)
	}
}

// A record's shorter ttl, and a shorter one of this node's own, both bound it.
func TestTheShorterTTLBoundsAHandedRole(t *testing.T) {
	n, _ := readyCandidate(t)
	snap := n.sees(true, true)
	snap.Lease.Value.TTLMillis = 2000
	sent := n.state.readySent
	_, out := Step(n.config(), n.state, Input{Now: sent.Add(500 * time.Millisecond), Snapshot: snap})
	if r := did(out)["raise"]; r == nil || r.Deadline.Deadline != sent.Add(2*time.Second-n.config().Timing.Grace) {
		t.Errorf("raise %+v; want until ttl 2 s less grace after the ready's send", r)
	}
}

// A `ready` of long ago leaves too little time: then an own renewal comes first.
func TestAnOldReadyAnchorsNothing(t *testing.T) {
	n, _ := readyCandidate(t)
	timing := n.config().Timing
	now := n.state.readySent.Add(timing.RoleTTL - timing.Grace - timing.RenewInterval)
	_, out := Step(n.config(), n.state, Input{Now: now, Snapshot: n.sees(true, true)})
	asked := did(out)
	if _, renewing := asked["role.anchor"]; asked["raise"] != nil || !renewing {
		t.Errorf("the candidate asks for %v; want role.anchor alone", asked)
	}
}

// Without an acknowledgement nobody knows that C rests on the `ready`.
func TestAnUnacknowledgedReadyAnchorsNothing(t *testing.T) {
	n, _ := readyCandidate(t)
	s := n.state
	s.readySent = cluster.Never
	_, out := Step(n.config(), s, Input{Now: n.state.readySent.Add(500 * time.Millisecond), Snapshot: n.sees(true, true)})
	if asked := did(out); asked["raise"] != nil {
		t.Errorf("the candidate asks for %v; want role.anchor alone", asked)
	}
}

// Record and lease of C are seen one after the other. A `ready` written on C's
// own version would be younger than C, and anchor a right that nobody gave (I3).
func TestNoReadyIsWrittenOnTheHandedOverRecord(t *testing.T) {
	n, _ := readyCandidate(t)
	now := n.state.readyAt.Add(n.config().Timing.KeepaliveInterval + time.Millisecond)
	s, out := Step(n.config(), n.state, Input{Now: now, Snapshot: n.sees(true, false)})
	if asked := did(out); len(asked) != 0 {
		t.Errorf("the candidate that sees C's record and not yet its lease asks for %v; want nothing", asked)
	}
	if s.readySent != n.state.readySent {
		t.Errorf("its anchor moved from %d to %d", n.state.readySent, s.readySent)
	}
}

// A new hand-over begins without the anchor of the one before.
func TestAReadyBelongsToOneHandOver(t *testing.T) {
	n, holder := readyCandidate(t)
	w := n.w
	w.wish(string(holder.id))
	for range 40000 {
		w.lives(100 * time.Microsecond)
		if n.state.Mode == Idle {
			break
		}
	}
	w.wish(string(n.id))
	for range 40000 {
		w.lives(100 * time.Microsecond)
		if n.state.Mode == Candidate {
			break
		}
	}
	if n.state.Mode != Candidate || !n.state.readySent.IsZero() {
		t.Errorf("%s is %s with a ready sent at %d before it has sent one\n%s", n.id, n.state.Mode, n.state.readySent, w.describe())
	}
}

// A guard that never has time enough is not asked for ever, however well the
// renewals go: within a ttl the role is given up (I7).
func TestARaiseThatNeverSucceedsEnds(t *testing.T) {
	n, s, out, now, snap := handedAt(t, 600*time.Millisecond)
	raise, anchor := effectIDs(out)
	began := now
	for s.Mode == Taking && now.Sub(began) < time.Minute {
		sent := now
		now = now.Add(100 * time.Millisecond)
		s, _ = ackAnchor(n, s, snap, anchor, sent, now)
		snap.Lease.Version++
		s, _ = Step(n.config(), s, Input{Now: now, Snapshot: snap, Event: Event{Step: &StepDone{ID: raise, Err: cluster.ErrDeadline}}})
		raise = s.step
		anchor = s.hold.write
		if anchor == 0 { // the next renewal when it is due
			now = max(now, s.hold.next)
			s, _ = Step(n.config(), s, Input{Now: now, Snapshot: snap})
			anchor = s.hold.write
		}
	}
	if ttl := n.config().Timing.RoleTTL; s.Mode == Taking || now.Sub(began) > ttl+time.Second {
		t.Errorf("%s %v after the hand-over; want the role given up within %v", s.Mode, now.Sub(began), ttl)
	}
}
