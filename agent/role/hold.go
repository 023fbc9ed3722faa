package role

import (
	"fmt"
	"time"

	"pvc.internal/cluster"
)

type durationOrZero = time.Duration

var leaseKey = cluster.Key{Kind: cluster.KeyLease}

// mine is the lease as this node next writes it.
func (m *machine) mine() cluster.Lease {
	ttl := m.c.Timing.RoleTTL
	if !m.s.hold.raised { // a shorter ttl is used before it is written
		ttl = max(ttl, m.s.hold.ttl)
	}
	return m.naming(cluster.Lease{
		Version: 1, Holder: m.c.Node, Incarnation: m.c.Incarnation, Epoch: m.s.hold.epoch,
		TTLMillis: ttl.Milliseconds(), N: m.s.hold.n + 1, Unproven: m.owed(m.s.unproven),
	})
}

// free reports whether a lease write may be sent: one at a time, each on the
// version of the last, so that a late one can never overtake (I2).
func (m *machine) free() bool {
	h := m.s.hold
	if m.in.Now.Before(h.retryAt) {
		m.wakeAt(h.retryAt)
		return false
	}
	return h.write == 0 && h.settle == 0 && !h.unsettled
}

// writeLease sends a lease write with whatever belongs to it in one Multi.
func (m *machine) writeLease(p purpose, l cluster.Lease, ops ...cluster.Op) {
	all := make([]cluster.Op, 0, len(ops)+1)
	all = append(all, cluster.Set(leaseKey, m.s.hold.version, l))
	all = append(all, ops...)
	m.s.hold.purpose = p
	m.s.hold.handing = m.s.hold.handing || p == forHandOver
	m.s.hold.naming = m.s.hold.naming.and(rollOf(l))
	m.s.hold.trOp, m.s.hold.wishOp = opOn(all, cluster.KeyTransition), opOn(all, cluster.KeyPrimaryNode)
	m.s.hold.write = m.emit(Effect{Commit: &Commit{
		Txn:     cluster.Txn{Purpose: "role." + p.String(), Ops: all},
		Timeout: m.c.Timing.KeepaliveInterval * 8 / 10,
	}})
}

// opOn is the index of the operation that writes the record, or 0.
func opOn(ops []cluster.Op, k cluster.KeyKind) int {
	for i, op := range ops {
		if op.Key.Kind == k && op.Kind == cluster.OpSet {
			return i
		}
	}
	return 0
}

// adopt starts a hold at a write of ours that was acknowledged, and names the
// coordinators that stand in it.
func (m *machine) adopt(e cluster.Epoch, version int32, n uint64, sent cluster.Instant, named Roll) {
	m.s.hold = hold{
		epoch: e, version: version, n: n, sent: sent, named: named,
		deadline: sent.Add(m.c.Timing.RoleTTL - m.c.Timing.Grace), // I3: anchored at the send
		next:     sent.Add(m.c.Timing.RenewInterval),
	}
	m.s.epochSeen = max(m.s.epochSeen, e)
}

// relinked lets a lease write go out at once that has waited for a connection:
// after a store outage every 0.1 s counts (I9).
func (m *machine) relinked() {
	h := &m.s.hold
	if snap := m.in.Snapshot; m.in.Now.Before(h.retryAt) && snap.Live && snap.Since.After(h.retryAt.Add(-renewRetry)) {
		h.retryAt, h.next = cluster.Never, m.in.Now
	}
}

// checkHold drops the role when its deadline has passed or the lease is seen
// in other hands. It runs before any decision, so that a process that was
// stopped and goes on acts on nothing stale (I3).
func (m *machine) checkHold() {
	h := m.s.hold
	if !m.in.Now.Before(h.deadline) {
		m.drop("no renewal was acknowledged before the deadline", true)
		return
	}
	m.wakeAt(h.deadline)
	l := m.in.Snapshot.Lease
	handing := h.write != 0 && h.purpose == forHandOver || m.s.Mode == Aborting
	if l.Present && l.Err == nil && l.Version > h.version && !handing &&
		(!l.Value.HeldBy(m.c.Node, m.c.Incarnation) || l.Value.Epoch != h.epoch) && !m.rose(l.Value) {
		m.drop(fmt.Sprintf("the lease is held by %q at epoch %d", l.Value.Holder, l.Value.Epoch), false)
	}
}

// renew sends what is due: a read that settles an unknown write, or the next
// renewal. A hand-over in its last phase postpones a renewal that is not urgent.
func (m *machine) renew() {
	h := &m.s.hold
	if h.write != 0 || h.settle != 0 || m.s.left || m.s.stage == stageLinger {
		return
	}
	due := h.next
	if !h.unsettled && m.s.Mode == Relinquish && (m.s.stage == stageWithdraw || m.s.stage == stageHandOver) {
		due = h.deadline.Add(-time.Second)
	}
	due = m.alignRenewal(due)
	if m.in.Now.Before(due) {
		m.wakeAt(due)
		return
	}
	if h.unsettled {
		h.settle = m.emit(Effect{Refresh: true})
		return
	}
	m.writeLease(forRenewal, m.mine())
}

// alignRenewal lets a renewal wait for a keepalive that is due at nearly the
// same time, so that it rides in its Multi: one quorum write instead of two.
func (m *machine) alignRenewal(due cluster.Instant) cluster.Instant {
	keepalive := m.s.keepaliveAt.Add(m.c.Timing.KeepaliveInterval)
	slack := m.c.Timing.RenewInterval / 16
	if m.s.keepaliveAt.IsZero() || m.s.hold.unsettled || keepalive.Before(due.Add(-slack/4)) || keepalive.After(due.Add(slack)) {
		return due
	}
	return keepalive.Add(slack / 4) // later than it should come: then alone
}

// leaseWritten takes the result of the lease write in flight in.
func (m *machine) leaseWritten(r cluster.TxnResult) {
	h := &m.s.hold
	p, n := h.purpose, h.n
	h.write = 0
	m.answerRide(r)
	if p == forHandOver && r.Outcome != cluster.OutcomeUnknown {
		h.handing = false
	}
	if !m.s.Mode.Holding() && m.s.Mode != Dropping {
		return // of a hold that is over; only its rider was still waiting
	}
	if p == forEpoch && r.Outcome != cluster.OutcomeOK && r.Outcome != cluster.OutcomeUnknown {
		h.rising = 0
	}
	if r.Outcome == cluster.OutcomeOK {
		h.version, h.n = r.Versions[0], n+1
		h.named, h.naming, h.handing = h.naming, Roll{}, false // a chain of versions: what was lost before cannot follow
		if h.trOp > 0 {
			m.s.trVersion, m.s.trKnown = r.Versions[h.trOp], true
		}
		if h.wishOp > 0 {
			m.s.wishVer = r.Versions[h.wishOp]
		}
		m.acknowledged(p, r)
		return
	}
	switch r.Outcome {
	case cluster.OutcomeConflict:
		h.unsettled, h.next = true, m.in.Now // read at once
	case cluster.OutcomeUnknown:
		h.unsettled, h.next = true, m.in.Now
	default: // not sent, or refused: nothing happened
		h.retryAt = m.in.Now.Add(renewRetry)
		h.next = h.retryAt
	}
	if r.Outcome == cluster.OutcomeConflict && h.trOp > 0 && r.FailedOp == h.trOp {
		m.s.trKnown = false // what is seen of the record counts, not what was last written
	}
	m.leaseFailed(p, r)
}

// acknowledged goes on after a lease write that happened.
func (m *machine) acknowledged(p purpose, r cluster.TxnResult) {
	h := &m.s.hold
	switch {
	case p == forHandOver && m.s.Mode == Dropping:
		m.s.endRelease = false // the lease is the candidate's now (I2)
		if m.s.stage == stageRelease {
			m.released()
		}
		return
	case p == forHandOver:
		m.handedOver(r)
		return
	case p == forRelease:
		m.released()
		return
	case m.s.Mode == Dropping:
		return // a late renewal; the release goes on from its version
	}
	d := r.SentAt.Add(m.c.Timing.RoleTTL - m.c.Timing.Grace)
	if d.After(h.deadline) || p == forAnchor && h.promised.IsZero() { // what was seen before the anchor was never a right (I3)
		h.deadline = d
	}
	h.sent = max(h.sent, r.SentAt)
	h.next = r.SentAt.Add(m.c.Timing.RenewInterval)
	if p != forLinger { // whose long deadline follows; a shorter one must not overtake it
		m.extend()
	}
	switch p {
	case forAnchor:
		if m.s.stage == stageAnchor {
			m.begin()
		}
	case forAck:
		m.ackWritten(r)
	case forStop:
		m.stopMarked(r)
	case forStart:
		m.s.trDue = false
	case forAbort:
		m.abortWritten(r)
	case forDone:
		m.doneWritten(r)
	case forLinger:
		m.linger(r)
	case forEpoch:
		m.risen(h.version, h.n, h.sent, h.deadline, h.named)
		return
	}
	m.s.hold.rising = 0 // its write cannot follow this one
}

// leaseFailed returns a procedure to the point from which it sends again.
func (m *machine) leaseFailed(p purpose, r cluster.TxnResult) {
	if m.s.Mode == Dropping && p != forRelease {
		return // a role that is being dropped never comes back by a late answer
	}
	switch p {
	case forHandOver:
		if r.Outcome == cluster.OutcomeConflict && (r.FailedOp == 0 || r.FailedOp == m.s.hold.trOp) {
			return // a renewal of mine or a `ready` overtook it: read, and sent again
		}
		m.abort(fmt.Sprintf("the hand-over was not acknowledged (%s): %v", r.Outcome, r.Err))
	case forAck:
		m.enter(Primary, stageNone) // nothing has changed; judged anew from a fresh read
	case forLinger:
		m.drop("this daemon stops in maintenance and the long ttl was not acknowledged", true)
	case forRelease:
		m.s.timer = cluster.Earliest(m.s.timer, m.in.Now.Add(m.c.Timing.RoleTTL))
	}
}

// settled takes in the read that followed an unknown or conflicting write.
func (m *machine) settled(r RefreshDone) {
	h := &m.s.hold
	if r.Err != nil {
		h.next = m.in.Now.Add(renewRetry)
		return
	}
	l := r.Snapshot.Lease
	switch {
	case l.Present && l.Err == nil && l.Value.HeldBy(m.c.Node, m.c.Incarnation) && l.Value.Epoch == h.epoch:
		// Mine: either my late write, or one that never happened. The next
		// versioned write settles which.
		h.version, h.n, h.unsettled, h.next = l.Version, l.Value.N, false, m.in.Now
		h.named = rollOf(l.Value)
	case m.s.Mode.Holding() && l.Present && l.Err == nil && m.rose(l.Value):
		m.risen(l.Version, l.Value.N, h.sent, h.deadline, rollOf(l.Value))
	case l.Present && l.Err != nil && m.s.Mode.Holding():
		// Rubbish over my lease: nobody takes an unreadable one for longer than
		// I may hold mine, so I write it anew on its version.
		m.noteOnce("lease_repaired", fmt.Sprintf("the lease record was overwritten with something unreadable (%v); %s writes it anew", l.Err, m.c.Node), nil)
		h.version, h.unsettled, h.next = l.Version, false, m.in.Now
	case m.s.Mode == Aborting && l.Present && l.Value.Holder == m.s.transition.To && l.Value.Epoch > h.epoch:
		h.unsettled = false
		m.handedOver(cluster.TxnResult{})
	case m.s.Mode == Dropping:
		h.unsettled = false
		m.released() // somebody else's by now
	default:
		h.unsettled = false
		m.drop(fmt.Sprintf("the lease is held by %q at epoch %d", l.Value.Holder, l.Value.Epoch), false)
	}
}

// answerRide tells the keepalive that rode in a lease write what became of it;
// one that certainly did not happen is sent again alone.
func (m *machine) answerRide(r cluster.TxnResult) {
	h := &m.s.hold
	id, ops := h.riding, h.ride
	h.riding, h.ride = 0, nil
	if id == 0 {
		return
	}
	if r.Outcome == cluster.OutcomeConflict && r.FailedOp <= 0 {
		m.keepaliveAlone(id, ops)
		return
	}
	if len(r.Versions) > 0 {
		r.Versions = r.Versions[1:]
	}
	if r.FailedOp > 0 {
		r.FailedOp--
	}
	m.emit(Effect{Keepalive: &KeepaliveResult{ID: id, Result: r}})
}

// extend tells the guard the new deadline, once it holds the role or is about to:
// addresses that take long to come must not cost a role that is being renewed.
func (m *machine) extend() {
	if !m.s.hold.raised && m.s.stage != stageRaise {
		return
	}
	d := m.deadline()
	m.emit(Effect{Extend: &d})
}

func (m *machine) deadline() cluster.RoleDeadline {
	h := m.s.hold
	return cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: h.epoch, Deadline: h.deadline, Sent: max(h.sent, h.promised)}
}

// onExtended moves the deadline to where the promises of all other coordinators
// carry the role (I1): while they stand nobody takes it, and whoever could take
// it without having been asked is not named in the lease. A right that has ended
// does not come back, and none is extended that a write of this node may have
// given away already.
func (m *machine) onExtended(e RoleExtended) {
	h := &m.s.hold
	switch {
	case !m.s.Mode.Holding() || e.Epoch != h.epoch || m.s.left || m.s.stage == stageLinger:
	case h.handing || h.sent.IsZero() || !m.in.Now.Before(h.deadline) || !e.Until.After(h.deadline):
	default:
		h.deadline, h.promised = e.Until, e.Sent
		m.extend()
	}
}

// drop ends every effect of the role here, whatever the store says, and
// releases the lease afterwards if it may still be ours.
func (m *machine) drop(why string, release bool) {
	m.noteOnce("role_dropped", why, map[string]string{"epoch": fmt.Sprint(m.s.hold.epoch), "mode": m.s.Mode.String()})
	m.s.endWhy, m.s.endRelease = why, release
	m.enter(Dropping, stageEnd)
	m.s.returning, m.s.dirty = false, false
	m.sendEnd()
}

func (m *machine) sendEnd() {
	d := m.deadline()
	m.s.step = m.emit(Effect{End: &d})
}

// ended goes on once the guard has verified that nothing is left, or tries again.
func (m *machine) ended(d StepDone) {
	if d.Err != nil {
		m.note(false, "end_failed", fmt.Sprintf("ending the role's effects failed, trying again: %v", d.Err), nil)
		m.s.retryAt = m.in.Now.Add(renewRetry)
		return
	}
	m.s.hold.raised = false
	m.s.stage, m.s.stageBegan = stageRelease, m.in.Now
	m.s.timer = m.in.Now.Add(m.c.Timing.RoleTTL)
	if !m.s.endRelease {
		m.released()
	}
}

// dropping drives the end: retry until verified gone, then release.
func (m *machine) dropping() {
	switch m.s.stage {
	case stageEnd:
		if m.s.step == 0 {
			if m.in.Now.Before(m.s.retryAt) {
				m.wakeAt(m.s.retryAt)
				return
			}
			m.sendEnd()
		}
	case stageRelease:
		m.release()
	}
}

// release gives the lease up by name, so that the next holder need not wait
// for it to expire. It is a courtesy: after one ttl it is left to run out.
func (m *machine) release() {
	h := &m.s.hold
	if !m.in.Now.Before(m.s.timer) {
		m.released()
		return
	}
	m.wakeAt(m.s.timer)
	if h.write != 0 || h.settle != 0 {
		return
	}
	if m.in.Now.Before(h.next) && (h.unsettled || h.purpose == forRelease) {
		m.wakeAt(h.next)
		return
	}
	if h.unsettled {
		h.settle = m.emit(Effect{Refresh: true})
		return
	}
	l := m.mine()
	l.Holder, l.Incarnation, l.Coordinators, l.IDs = "", "", nil, nil
	m.writeLease(forRelease, l, m.routerStateOp(cluster.RouterSecondary))
}

// released is the end of a drop: nothing of the role is here any more.
func (m *machine) released() {
	h := m.s.hold
	m.s.hold = hold{epoch: h.epoch, write: h.write, riding: h.riding, ride: h.ride}
	m.s.gaveUp, m.s.svcExited, m.s.unproven = m.in.Now, "", nil
	m.backToIdle(0)
	if m.s.penalty { // this host could not serve: the others first, and no hot loop
		m.s.penalty = false
		m.s.retryAt = m.in.Now.Add(m.c.Timing.RoleTTL)
	}
}

func (m *machine) routerStateOp(r cluster.RouterState) cluster.Op {
	return cluster.Set(cluster.Key{Kind: cluster.KeyRouterState, Node: m.c.Node}, cluster.AnyVersion, r)
}

// String names the purpose for metrics and fault points.
func (p purpose) String() string {
	switch p {
	case forRenewal:
		return "renew"
	case forAnchor:
		return "anchor"
	case forAck:
		return "acknowledge"
	case forStop:
		return "stop"
	case forStart:
		return "start"
	case forHandOver:
		return "hand_over"
	case forAbort:
		return "abort"
	case forDone:
		return "done"
	case forWish:
		return "wish"
	case forRelease:
		return "release"
	case forRouterState:
		return "routerstate"
	case forLinger:
		return "linger"
	case forEpoch:
		return "epoch"
	}
	return "invalid"
}
