package role

import "pvc.internal/cluster"

// resuming writes this start of the daemon into the lease that its own node
// holds. The acknowledgement of that versioned write, not the read, makes it
// the holder; no address moves meanwhile (I9).
func (m *machine) resuming() {
	if m.s.stage != stageResume || m.s.step != 0 {
		return
	}
	if m.in.Now.Before(m.s.retryAt) {
		m.wakeAt(m.s.retryAt)
		return
	}
	snap := m.in.Snapshot
	if m.s.stopping || snap.Lease.Err != nil || !m.ours(snap.Lease.Value) {
		m.backToIdle(0)
		return
	}
	old := snap.Lease.Value
	m.s.takeEpoch = max(old.Epoch, m.s.epochSeen) + 1
	m.s.resumeTTL, m.s.unproven = old.TTL(), old.Unproven
	lease := m.naming(cluster.Lease{Version: 1, Holder: m.c.Node, Incarnation: m.c.Incarnation, Epoch: m.s.takeEpoch,
		Unproven:  old.Unproven,
		TTLMillis: max(old.TTLMillis, m.c.Timing.RoleTTL.Milliseconds())}) // adopt counts on no less than this (I1)
	m.s.naming = rollOf(lease)
	ops := []cluster.Op{cluster.Set(leaseKey, snap.Lease.Version, lease)}
	m.s.transition = cluster.Transition{}
	if t := snap.Transition.Value; snap.Transition.Present && t.Running() && (t.From == m.c.Node || t.To == m.c.Node) {
		t.Epoch = m.s.takeEpoch // restamped, so that the other side knows whom it deals with
		if t.To == m.c.Node {
			t.ToIncarn, t.Lock = m.c.Incarnation, ""
		}
		m.s.transition = t
		ops = append(ops, cluster.Set(transitionKey, snap.Transition.Version, t))
	}
	m.s.step = m.emit(Effect{Commit: &Commit{
		Timeout: m.c.Timing.KeepaliveInterval * 8 / 10,
		Txn:     cluster.Txn{Purpose: "role.resume", Ops: ops},
	}})
}

func (m *machine) resumed(r cluster.TxnResult) {
	switch r.Outcome {
	case cluster.OutcomeOK:
		m.adoptResumed(r.Versions[0], 0, r.SentAt, m.s.naming)
		if len(r.Versions) > 1 {
			m.s.trVersion, m.s.trKnown = r.Versions[1], true
		}
	case cluster.OutcomeUnknown, cluster.OutcomeConflict:
		if m.s.sentFor != m.s.takeEpoch { // of several tries at one epoch the first may be the one that happened (I3)
			m.s.takeSent, m.s.sentFor = r.SentAt, m.s.takeEpoch
		}
		m.s.step = m.emit(Effect{Refresh: true})
	default:
		m.s.retryAt = m.in.Now.Add(renewRetry)
	}
}

// settleResume goes on after the read that followed a lost reply or a conflict.
func (m *machine) settleResume() {
	l := m.in.Snapshot.Lease
	if l.Present && l.Err == nil && l.Value.HeldBy(m.c.Node, m.c.Incarnation) && l.Value.Epoch == m.s.takeEpoch {
		m.adoptResumed(l.Version, l.Value.N, m.s.takeSent, rollOf(l.Value))
		m.s.trVersion, m.s.trKnown = m.in.Snapshot.Transition.Version, true
		return
	}
	m.s.retryAt = m.in.Now
	m.resuming()
}

// adoptResumed goes on as the holder: guard, addresses and services are taken
// over as they are. A hand-over from here that was under way is judged anew
// once Primary; one to here goes on. It needs no leave: what an earlier start of
// this node has promised, it promised as somebody who did not hold the role.
func (m *machine) adoptResumed(version int32, n uint64, sent cluster.Instant, named Roll) {
	from := m.s.transition.From == m.c.Node
	m.adopt(m.s.takeEpoch, version, n, sent, named)
	m.s.hold.ttl, m.s.hold.resumed = m.s.resumeTTL, true
	if from {
		m.s.transition = cluster.Transition{}
	}
	m.note(true, "resumed", "this daemon's restart found its node as primary and goes on", nil)
	m.enter(Taking, stageRaise)
	m.begin()
}
