package role

import (
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// wishedFor reports whether primary_node names this node while another holds
// an unexpired lease: a planned switch to here is asked for.
func (m *machine) wishedFor() bool {
	snap := m.in.Snapshot
	l := snap.Lease
	return snap.PrimaryNode.Value == string(m.c.Node) && l.Present && l.Err == nil &&
		!l.Value.Released() && l.Value.Holder != m.c.Node &&
		m.in.Now.Before(l.SeenAt.Add(l.Value.TTL()+m.c.Timing.TakerMargin))
}

// seekHandOver begins the candidate's side of a planned switch: the lock first.
func (m *machine) seekHandOver() {
	if m.barred(true) {
		return
	}
	m.enter(Candidate, stageNone)
	m.s.readySent = cluster.Never
	m.sendLock()
	m.breakStaleLock()
}

// record writes the transition record, on the versions of the fresh read.
func (m *machine) record() {
	snap := m.in.Snapshot
	if !m.wishedFor() || m.s.stopping {
		m.backToIdle(0)
		m.wakeAt(m.in.Now)
		return
	}
	l := snap.Lease.Value
	m.s.transition = cluster.Transition{
		Version: 1, ID: m.c.NewID(l.Epoch), Epoch: l.Epoch, From: l.Holder, To: m.c.Node, ToIncarn: m.c.Incarnation,
		FromHost: hostOf(l), ToHost: m.ownHost(),
		Cause: cluster.CauseSwitch, State: cluster.TransitionRunning, Phase: cluster.PhaseAnnounce,
		Lock: m.s.lock.Name, WishVersion: snap.PrimaryNode.Version, Started: m.in.WallMS, NextEpoch: m.nextEpoch(),
	}
	m.s.stage, m.s.stageBegan = stageRecord, m.in.Now
	m.s.step = m.emit(Effect{Commit: &Commit{
		Timeout: m.c.Timing.KeepaliveInterval * 8 / 10,
		Txn: cluster.Txn{Purpose: "role.announce", Ops: []cluster.Op{
			cluster.Put(transitionKey, snap.Transition, m.s.transition),
			cluster.Check(m.lockKey(), 0),
			cluster.Check(wishKey, snap.PrimaryNode.Version),
			cluster.Check(leaseKey, snap.Lease.Version),
			m.routerStateOp(cluster.RouterTakeover),
		}},
	}})
}

// recorded goes on with the pre-flight, which includes the conflict probe; the
// holder goes on serving meanwhile.
func (m *machine) recorded(r cluster.TxnResult) {
	switch r.Outcome {
	case cluster.OutcomeOK:
		m.s.trVersion, m.s.trKnown = r.Versions[0], true
		m.s.stage, m.s.stageBegan = stagePreflight, m.in.Now
		m.s.probed = false
		m.s.probe = m.emit(Effect{Preflight: &Preflight{
			Conflicts: true, KnownMACs: m.holderMACs(), Timeout: preflightWait, Epoch: m.s.transition.NextEpoch,
		}})
	case cluster.OutcomeConflict, cluster.OutcomeUnknown: // most often the holder's renewal: look again
		m.s.stage = stageFresh
		m.s.step = m.emit(Effect{Refresh: true})
	default:
		m.backToIdle(renewRetry)
	}
}

func (m *machine) holderMACs() []string {
	return m.in.Snapshot.Nodes[m.in.Snapshot.Lease.Value.Holder].Record.Value.MACs
}

// candidate drives the candidate's side of A and waits for C.
func (m *machine) candidate() {
	m.breakStaleLock()
	if m.s.stage == stageNone || m.s.stage == stageLock || m.s.stage == stageFresh || m.s.stage == stageRecord {
		return
	}
	if m.handed() || m.lapsed() || m.over() {
		return
	}
	switch m.s.stage {
	case stagePreflight:
		if m.s.probe == 0 && m.s.probed {
			m.stamp()
		}
	case stageReady:
		due := m.s.readyAt.Add(m.c.Timing.KeepaliveInterval)
		if m.in.Now.Before(due) {
			m.wakeAt(due)
			return
		}
		m.stamp()
	}
}

// handed looks whether C has made this node the holder. Then D begins: at once
// where an own write that C rests on still anchors the role, else with a
// renewal of one's own, whose send it is anchored at.
func (m *machine) handed() bool {
	l := m.in.Snapshot.Lease
	if !l.Present || l.Err != nil || !l.Value.HeldBy(m.c.Node, m.c.Incarnation) || l.Value.Epoch <= m.s.transition.Epoch {
		return false
	}
	anchor := m.s.readySent
	m.s.hold = hold{epoch: l.Value.Epoch, version: l.Version, n: l.Value.N, deadline: m.in.Now.Add(l.Value.TTL()), named: rollOf(l.Value)}
	m.s.epochSeen = max(m.s.epochSeen, l.Value.Epoch)
	if seen := m.in.Snapshot.Transition; seen.Present && seen.Value.ID == m.s.transition.ID && seen.Version > m.s.trVersion {
		m.s.transition, m.s.trVersion = seen.Value, seen.Version
	}
	m.enter(Taking, stageAnchor)
	if until := m.readyUntil(anchor, l.Value.TTL()); m.in.Now.Before(until.Add(-m.c.Timing.RenewInterval)) && !m.bound() {
		m.s.hold.deadline, m.s.hold.sent = until, anchor
		m.writeLease(forAnchor, m.mine()) // the addresses do not wait for it
		m.raise()
		return true
	}
	m.anchor()
	return true
}

// readyUntil is how long the last acknowledged `ready` lets this node act once
// it has been handed the role. C's Multi sets the record on the version that
// holds this `ready`, so C was committed after it was sent; whoever waits for the
// lease to expire begins to count when he sees C, later still (I1, I3).
func (m *machine) readyUntil(sent cluster.Instant, ttl time.Duration) cluster.Instant {
	if sent.IsZero() {
		return cluster.Never
	}
	return sent.Add(min(ttl, m.c.Timing.RoleTTL) - m.c.Timing.Grace)
}

// anchor sends the first own renewal where nothing else anchors the role. Until
// it is acknowledged nothing of the role is done; the provisional deadline only
// bounds the trying.
func (m *machine) anchor() {
	if m.free() {
		m.writeLease(forAnchor, m.mine())
	}
}

// lapsed turns a planned switch into a failover when the holder stops renewing;
// the lock is held already.
func (m *machine) lapsed() bool {
	l := m.in.Snapshot.Lease
	if !l.Present || l.Err != nil || l.Value.Holder == m.c.Node {
		return false
	}
	at := l.SeenAt.Add(l.Value.TTL() + m.c.Timing.TakerMargin)
	if !l.Value.Released() && m.in.Now.Before(at) {
		m.wakeAt(at)
		return false
	}
	if m.s.step != 0 {
		return false // a stamp is in flight; its answer comes first
	}
	m.enter(Contending, stageFresh)
	m.s.step = m.emit(Effect{Refresh: true})
	return true
}

// over looks whether the hand-over has ended without this node: aborted by the
// holder, or the lock is gone.
func (m *machine) over() bool {
	seen := m.in.Snapshot.Transition
	if seen.Present && seen.Version >= m.s.trVersion && (seen.Value.ID != m.s.transition.ID || !seen.Value.Running()) {
		m.note(false, "switch_ended", "the switch to this node was ended: "+seen.Value.Error, nil)
		m.backToIdle(renewRetry)
		return true
	}
	if l := m.in.Snapshot.Lease; l.Present && l.Err == nil && !l.Value.Released() && l.Value.Holder != m.s.transition.From {
		m.note(false, "switch_ended", fmt.Sprintf("the switch to this node was ended: the role is %s's by now", l.Value.Holder), nil)
		m.backToIdle(renewRetry)
		return true
	}
	if why := m.hopeless(); why != "" {
		m.abortAnnounce(why)
		return m.s.stage == stageAbortA
	}
	return false
}

// hopeless says why waiting for the hand-over makes no sense any more, or "".
func (m *machine) hopeless() string {
	t, l := m.in.Snapshot.Transition.Value, m.in.Snapshot.Lease
	stale := l.Present && l.Err == nil && l.Value.Epoch > t.Epoch && l.Value.Holder == t.From
	if !stale { // a holder that resumes restamps the record; lease and record are seen one after the other
		m.s.staleAt = cluster.Never
	} else if m.s.staleAt.IsZero() {
		m.s.staleAt = m.in.Now
	}
	limit := m.s.Since.Add(2*lockWait + m.c.Timing.TransitionDelay + m.stopTimeout())
	switch {
	case m.s.abortWhy != "":
		return m.s.abortWhy
	case m.s.stopping:
		return string(m.c.Node) + " is shutting down"
	case stale && m.in.Now.Sub(m.s.staleAt) > 2*m.c.Timing.KeepaliveInterval:
		return fmt.Sprintf("%s holds the role anew, at epoch %d", t.From, l.Value.Epoch)
	case !m.in.Now.Before(limit):
		return fmt.Sprintf("%s did not hand over within %v", t.From, limit.Sub(m.s.Since))
	}
	m.wakeAt(limit)
	return ""
}

// stamp tells the holder that this node is ready, with a number that changes;
// it checks the lock child, so a node that lost the lock cannot be ready.
func (m *machine) stamp() {
	if m.s.step != 0 {
		return
	}
	t := m.s.transition
	if seen := m.in.Snapshot.Transition; seen.Present && seen.Value.ID == t.ID && seen.Version >= m.s.trVersion {
		t, m.s.trVersion = seen.Value, seen.Version
	}
	if t.Phase >= cluster.PhaseAddresses {
		return // handed over by now: the lease is about to be seen, and a `ready` after C would anchor nothing
	}
	t.Ready = max(t.Ready, m.s.transition.Ready) + 1
	m.s.transition = t
	m.s.readyAt = m.in.Now
	m.s.stage = stageStamp
	m.s.step = m.emit(Effect{Commit: &Commit{
		Timeout: m.c.Timing.KeepaliveInterval * 8 / 10,
		Txn: cluster.Txn{Purpose: "role.ready", Ops: []cluster.Op{
			cluster.Set(transitionKey, m.s.trVersion, t),
			cluster.Check(m.lockKey(), 0),
		}},
	}})
}

func (m *machine) stamped(r cluster.TxnResult) {
	m.s.stage = stageReady
	switch {
	case r.Outcome == cluster.OutcomeOK:
		m.s.trVersion, m.s.readySent = r.Versions[0], r.SentAt
	case r.Outcome == cluster.OutcomeConflict && r.FailedOp == 1:
		m.note(true, "lock_lost", "the role lock was lost while waiting for the hand-over", nil)
		m.s.locked = false
		m.backToIdle(renewRetry)
	default: // the holder wrote meanwhile, or the reply was lost: stamp again on what is seen next
		m.s.readyAt = m.in.Now.Add(renewRetry - m.c.Timing.KeepaliveInterval)
	}
}

// abortAnnounce ends A from the candidate's side: nothing has changed yet, the
// reason goes into the record, and the wish names the holder again. The holder
// that has acknowledged sees it in the record.
func (m *machine) abortAnnounce(why string) {
	m.s.abortWhy = why
	if m.s.step != 0 {
		return // its answer comes first, by the commit's own deadline
	}
	if m.in.Now.Before(m.s.retryAt) {
		m.wakeAt(m.s.retryAt)
		return
	}
	snap := m.in.Snapshot
	t := m.s.transition
	if seen := snap.Transition; seen.Present && seen.Value.ID == t.ID && seen.Version >= m.s.trVersion {
		t, m.s.trVersion = seen.Value, seen.Version
	}
	if t.Phase >= cluster.PhaseAddresses {
		return // handed over by now: the lease is about to be seen, and this node its holder
	}
	t.State, t.Error = cluster.TransitionAborted, why
	ops := []cluster.Op{
		cluster.Set(transitionKey, m.s.trVersion, t),
		cluster.Check(m.lockKey(), 0),
		m.routerStateOp(cluster.RouterSecondary),
	}
	if snap.PrimaryNode.Version == t.WishVersion {
		ops = append(ops, cluster.Set(wishKey, t.WishVersion, string(t.From)))
	}
	m.s.stage = stageAbortA
	m.s.step = m.emit(Effect{Commit: &Commit{Timeout: m.c.Timing.KeepaliveInterval * 8 / 10, Txn: cluster.Txn{Purpose: "role.abort_announce", Ops: ops}}})
}

// announceAborted goes on after the abort's Multi. One that did not happen may
// have lost against C: what is seen next decides.
func (m *machine) announceAborted(r cluster.TxnResult) {
	if r.Outcome == cluster.OutcomeOK {
		t := m.s.transition
		m.note(true, "switch_aborted", fmt.Sprintf("the switch from %s to %s was aborted: %s", t.From, t.To, strings.TrimSpace(m.s.abortWhy)), map[string]string{"id": t.ID})
		m.backToIdle(0)
		return
	}
	m.s.stage, m.s.readyAt = stageReady, m.in.Now
	m.s.retryAt = m.in.Now.Add(renewRetry)
}
