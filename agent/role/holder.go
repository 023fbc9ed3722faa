package role

import (
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// primary looks, at every step, whether the role is to go elsewhere.
func (m *machine) primary() {
	m.sweepOwnLocks()
	m.s.Refusals = nil
	m.answerExit()
	if m.s.step == 0 && m.s.svcFailed != "" && m.s.stage == stageNone {
		if m.in.Now.Before(m.s.svcRetry) {
			m.wakeAt(m.s.svcRetry)
		} else {
			m.s.stage = stageStart
			m.s.step = m.emit(Effect{Start: &Services{Epoch: m.s.hold.epoch, Timeout: m.startTimeout()}})
			return
		}
	}
	if m.s.stage != stageNone && m.s.stage != stageStart || !m.free() {
		return // a service that hangs in its start keeps nobody waiting
	}
	if m.s.stopping {
		m.giveUp()
		return
	}
	if m.announced() || m.wish() || m.outgrown() {
		return
	}
	if seen := m.in.Snapshot.Nodes[m.c.Node].Router; seen.Present && seen.Value != cluster.RouterPrimary && m.in.Now.Sub(m.s.Since) > m.c.Timing.KeepaliveInterval && m.in.Now.Sub(seen.SeenAt) > m.c.Timing.KeepaliveInterval {
		m.writeLease(forRouterState, m.mine(), m.routerStateOp(cluster.RouterPrimary))
	}
}

// answerExit plans the start of a service that ended by itself.
func (m *machine) answerExit() {
	if m.s.svcExited == "" || m.s.stage != stageNone {
		return
	}
	m.s.svcFailed, m.s.svcRetry, m.s.svcExited = m.s.svcExited, m.in.Now.Add(time.Second), ""
	m.noteOnce("service_exited", "a primary-only service ended by itself and is started again: "+m.s.svcFailed, nil)
}

// announced answers a hand-over that a candidate has announced to this holder.
func (m *machine) announced() bool {
	snap := m.in.Snapshot
	t := snap.Transition.Value
	if !snap.Transition.Present || !t.Running() || t.From != m.c.Node || t.Epoch != m.s.hold.epoch || snap.Transition.Version < m.s.trVersion {
		return false
	}
	if m.wishUnseen(t) {
		return true
	}
	m.s.transition, m.s.trVersion, m.s.trKnown = t, snap.Transition.Version, true
	if snap.PrimaryNode.Value != string(t.To) {
		m.abort("superseded: primary_node names " + snap.PrimaryNode.Value)
		return true
	}
	t.Acknowledged = true
	m.s.transition = t
	m.enter(Relinquish, stageAck)
	m.writeLease(forAck, m.mine(), cluster.Set(transitionKey, m.s.trVersion, t), m.routerStateOp(cluster.RouterRelinquish))
	return true
}

// wishUnseen reports whether the wish on which the hand-over was announced has not
// arrived here yet: records are read one by one, and the announcement may
// overtake it. That is no other wish, and ends no switch. It is waited for no
// longer than K, since a record that was made anew counts its versions anew.
func (m *machine) wishUnseen(t cluster.Transition) bool {
	snap := m.in.Snapshot
	until := snap.Transition.SeenAt.Add(m.c.Timing.KeepaliveInterval)
	if snap.PrimaryNode.Value == string(t.To) || snap.PrimaryNode.Version >= t.WishVersion || !m.in.Now.Before(until) {
		return false
	}
	m.wakeAt(until)
	return true
}

func (m *machine) ackWritten(cluster.TxnResult) {
	m.s.stage, m.s.stageBegan = stageWaitReady, m.in.Now
	m.s.timer = m.in.Now.Add(lockWait)
	m.s.readyAt, m.s.readySeen = m.in.Now, m.s.transition.Ready
	m.s.dirty = false
}

// wish answers a primary_node that does not name the holder: `none` becomes
// the best candidate, a node that never answers becomes the holder again.
func (m *machine) wish() bool {
	seen := m.in.Snapshot.PrimaryNode
	if !seen.Present || seen.Version < m.s.wishVer || seen.Value == string(m.c.Node) {
		m.s.wishMzxid = 0
		return false
	}
	if seen.Err != nil { // it asks for nothing, and certainly not for nobody
		return m.refuseWish(seen, fmt.Sprintf("it cannot be read: %v", seen.Err))
	}
	if seen.Value == cluster.NoNode || seen.Value == "" {
		m.wishNobody(seen)
		return true
	}
	if m.s.wishMzxid != seen.Mzxid {
		m.s.wishMzxid, m.s.wishSeen = seen.Mzxid, m.in.Now
	}
	node, known := m.in.Snapshot.Nodes[cluster.NodeID(seen.Value)]
	switch {
	case !known:
		return m.refuseWish(seen, fmt.Sprintf("there is no node %q", seen.Value))
	case node.Mode.Value != cluster.Coordinator:
		return m.refuseWish(seen, fmt.Sprintf("%s is a %s; only a coordinator can be primary", seen.Value, node.Mode.Value))
	case !m.in.Now.Before(m.s.wishSeen.Add(lockWait)):
		return m.refuseWish(seen, fmt.Sprintf("%s has not taken the role lock within %v (daemon state %q)", seen.Value, lockWait, node.Daemon.Value))
	}
	m.wakeAt(m.s.wishSeen.Add(lockWait))
	return false
}

func (m *machine) wishNobody(seen cluster.Versioned[string]) {
	ids := Candidates(m.in.Snapshot, m.c.Timing, m.in.Now, m.c.Node)
	if len(ids) == 0 {
		m.refuseWish(seen, "there is no other coordinator that could serve")
		return
	}
	m.writeLease(forWish, m.mine(), cluster.Set(wishKey, seen.Version, string(ids[0])))
}

// refuseWish makes primary_node name the holder again and says why.
func (m *machine) refuseWish(seen cluster.Versioned[string], why string) bool {
	m.noteOnce("wish_refused", fmt.Sprintf("primary_node = %s is refused: %s; %s stays primary", seen.Value, why, m.c.Node), nil)
	m.refuse(cluster.Refusal{Code: cluster.RefuseNoCandidate, Detail: why})
	m.writeLease(forWish, m.mine(), cluster.Set(wishKey, seen.Version, string(m.c.Node)))
	return true
}

// giveUp is the holder's way out on shutdown: the best other candidate is
// wished for and the same two-sided switch runs; without one the role is ended
// and released.
func (m *machine) giveUp() {
	if m.s.left || m.announced() {
		return
	}
	if m.maintenanceOn() {
		l := m.mine()
		l.TTLMillis = lingerTTL.Milliseconds()
		m.writeLease(forLinger, l)
		return
	}
	ids := Candidates(m.in.Snapshot, m.c.Timing, m.in.Now, m.c.Node)
	seen := m.in.Snapshot.PrimaryNode
	if len(ids) == 0 {
		m.lastStop()
		return
	}
	if m.s.stopBy.IsZero() {
		m.s.stopBy = m.in.Now.Add(lockWait)
	}
	if !m.in.Now.Before(m.s.stopBy) {
		m.drop("this daemon stops and no candidate answered within "+lockWait.String(), true)
		return
	}
	m.wakeAt(m.s.stopBy)
	if seen.Version >= m.s.wishVer && seen.Value != string(ids[0]) {
		m.writeLease(forWish, m.mine(), cluster.Set(wishKey, seen.Version, string(ids[0])))
	}
}

// lastStop ends the role where nobody could take it over: the services stop in
// order while the role still lives, and only then it is dropped and released.
func (m *machine) lastStop() {
	if len(m.c.Services) == 0 {
		m.dropForStop()
		return
	}
	m.s.stage, m.s.stageBegan = stageLastStop, m.in.Now
	m.s.step = m.emit(Effect{Stop: &Services{Epoch: m.s.hold.epoch, Timeout: m.stopTimeout()}})
}

func (m *machine) dropForStop() {
	m.drop("this daemon stops and no other coordinator could serve", true)
}

// linger goes on once the long ttl is acknowledged: only then may the guard's
// deadline move, counted from that write's send (protocol §4, maintenance).
func (m *machine) linger(r cluster.TxnResult) {
	m.s.hold.deadline, m.s.hold.sent, m.s.hold.promised = r.SentAt.Add(lingerFor), r.SentAt, cluster.Never
	d := m.deadline()
	m.s.stage = stageLinger
	m.s.step = m.emit(Effect{Linger: &d})
}

func (m *machine) lingering(d StepDone) {
	m.s.stage = stageNone
	if d.Err != nil {
		m.drop("this daemon stops in maintenance and the guard did not take the long deadline: "+d.Err.Error(), true)
		return
	}
	m.s.left = true
	m.note(true, "role_left", fmt.Sprintf("%s stops in maintenance; role and addresses stay for %v", m.c.Node, lingerFor), nil)
}

// relinquish drives the holder's side of A, B and C.
func (m *machine) relinquish() {
	switch m.s.stage {
	case stageWaitReady:
		m.waitReady()
	case stageMarkB:
		m.markStop()
	case stageWithdraw:
		if m.s.step == 0 {
			m.withdraw()
		}
	case stageHandOver:
		m.handOver()
	}
}

// watchCandidate keeps the record's version and the freshness of `ready`; it
// says why the hand-over cannot go on, or "".
func (m *machine) watchCandidate() string {
	snap := m.in.Snapshot
	seen := snap.Transition
	if seen.Present && seen.Version > m.s.trVersion {
		if seen.Value.ID != m.s.transition.ID {
			return "another hand-over has replaced the record"
		}
		if seen.Value.Ready != m.s.readySeen {
			m.s.readySeen, m.s.readyAt = seen.Value.Ready, seen.SeenAt
		}
		m.s.trVersion = seen.Version
		m.s.transition.Ready = seen.Value.Ready
		if seen.Value.State == cluster.TransitionAborted {
			m.s.transition = seen.Value
			return "aborted by the candidate: " + seen.Value.Error
		}
	}
	if snap.PrimaryNode.Present && snap.PrimaryNode.Version > m.s.transition.WishVersion {
		return "superseded: primary_node was written again and names " + snap.PrimaryNode.Value
	}
	if n := snap.Nodes[m.s.transition.To]; !n.Alive.Present || n.Alive.Value.Incarnation != m.s.transition.ToIncarn {
		return fmt.Sprintf("%s has gone", m.s.transition.To)
	}
	return ""
}

// readyFresh reports whether the candidate has said that it is ready at most
// two keepalive intervals ago.
func (m *machine) readyFresh() bool {
	return m.s.transition.Ready > 0 && m.in.Now.Sub(m.s.readyAt) <= 2*m.c.Timing.KeepaliveInterval
}

// waitReady is A: nothing has changed yet, the addresses still answer.
func (m *machine) waitReady() {
	if why := m.watchCandidate(); why != "" {
		m.abort(why)
		return
	}
	if !m.in.Now.Before(m.s.timer) {
		m.abort(fmt.Sprintf("%s did not become ready within %v", m.s.transition.To, lockWait))
		return
	}
	m.wakeAt(m.s.timer)
	begin := m.s.stageBegan.Add(m.c.Timing.TransitionDelay)
	if m.in.Now.Before(begin) {
		m.wakeAt(begin)
		return
	}
	if !m.readyFresh() {
		return
	}
	m.stepDone(cluster.PhaseAnnounce, "announce", m.in.Now.Sub(m.s.stageBegan), "")
	m.s.stage, m.s.stageBegan = stageMarkB, m.in.Now
	m.markStop()
}

// markStop records B, with a renewal, so that the phases that follow have a
// fresh deadline before them.
func (m *machine) markStop() {
	if !m.free() {
		return
	}
	if why := m.watchCandidate(); why != "" {
		m.abort(why)
		return
	}
	t := m.s.transition
	t.Phase = cluster.PhaseStop
	m.s.transition = t
	m.writeLease(forStop, m.mine(), cluster.Set(transitionKey, m.s.trVersion, t))
}

func (m *machine) stopMarked(cluster.TxnResult) {
	m.s.stage, m.s.stageBegan = stageStop, m.in.Now
	m.s.dirty = true
	if len(m.c.Services) == 0 {
		m.withdraw()
		return
	}
	m.s.step = m.emit(Effect{Stop: &Services{Epoch: m.s.hold.epoch, Timeout: m.stopTimeout()}})
}

func (m *machine) servicesStopped(d StepDone) {
	if d.Err != nil { // the guard could not verify them gone: only the full end is safe now
		m.transitionError("services on " + string(m.c.Node) + ": " + d.Err.Error())
		m.drop("a primary-only service could not be stopped: "+d.Err.Error(), true)
		return
	}
	m.stepDone(cluster.PhaseStop, "services", d.Took, "")
	m.withdraw()
}

// withdraw is the first half of C. From here the addresses are silent.
func (m *machine) withdraw() {
	if why := m.watchCandidate(); why != "" {
		m.abort(why)
		return
	}
	if !m.readyFresh() {
		m.abort(fmt.Sprintf("%s has not said that it is ready for %v", m.s.transition.To, m.in.Now.Sub(m.s.readyAt).Round(time.Millisecond)))
		return
	}
	if m.s.stage != stageWithdraw {
		m.s.stage, m.s.stageBegan, m.s.step = stageWithdraw, m.in.Now, 0
	}
	if !m.free() {
		return // a renewal under way would only be waited for in silence
	}
	d := m.deadline()
	m.s.step = m.emit(Effect{Withdraw: &d})
}

func (m *machine) withdrawn(d StepDone) {
	if d.Err != nil {
		m.transitionError("addresses on " + string(m.c.Node) + ": " + d.Err.Error())
		m.drop("the floating addresses could not be verified gone: "+d.Err.Error(), true)
		return
	}
	m.stepDone(cluster.PhaseHandOver, "withdraw", d.Took, "")
	m.s.stage = stageHandOver
	m.handOver()
}

// handOver is the second half of C: the one Multi that makes the candidate the
// holder. It rests on the lease, the wish, the record and the candidate's lock.
func (m *machine) handOver() {
	if !m.free() {
		return
	}
	if why := m.watchCandidate(); why != "" {
		m.abort(why)
		return
	}
	t := m.s.transition
	t.Phase = cluster.PhaseAddresses
	lease := m.naming(cluster.Lease{
		Version: 1, Holder: t.To, Incarnation: t.ToIncarn, Epoch: max(m.s.hold.epoch+1, sane(t.NextEpoch), m.s.outgrown+1),
		TTLMillis: m.c.Timing.RoleTTL.Milliseconds(), N: 0,
	})
	m.writeLease(forHandOver, lease,
		cluster.Set(transitionKey, m.s.trVersion, t),
		cluster.Check(cluster.Key{Kind: cluster.KeyRoleLockChild, Name: t.Lock}, 0),
		cluster.Check(wishKey, t.WishVersion),
		m.routerStateOp(cluster.RouterSecondary),
	)
}

// handedOver ends the holder's part: it never takes anything back by itself.
func (m *machine) handedOver(cluster.TxnResult) {
	m.note(false, "handed_over", fmt.Sprintf("the primary role was handed to %s", m.s.transition.To), map[string]string{"id": m.s.transition.ID})
	m.s.endWhy, m.s.endRelease = "handed over", false
	m.enter(Dropping, stageEnd)
	m.s.dirty = false
	m.sendEnd()
}

// abort ends a hand-over before C: one Multi, and only after its
// acknowledgement do services and addresses come back. It also settles a C
// whose reply was lost, since both rest on the same lease version.
func (m *machine) abort(why string) {
	m.s.why = why
	m.enter(Aborting, stageAbort)
	m.aborting()
}

func (m *machine) aborting() {
	if m.s.stage != stageAbort || !m.free() {
		return
	}
	snap := m.in.Snapshot
	ops := []cluster.Op{}
	if seen := snap.Transition; seen.Present && seen.Value.ID == m.s.transition.ID {
		t := seen.Value
		if seen.Version < m.s.trVersion {
			t = m.s.transition
		} else {
			m.s.trVersion = seen.Version
		}
		if t.State == cluster.TransitionRunning {
			t.Steps = m.s.transition.Steps
			m.s.transition = t // which stays running here until this is acknowledged: a lost write is sent again (I7)
			t.State, t.Error = cluster.TransitionAborted, m.s.why
			if snap.PrimaryNode.Version > t.WishVersion {
				t.SupersededBy = snap.PrimaryNode.Value
			}
			ops = append(ops, cluster.Set(transitionKey, m.s.trVersion, t))
		}
	}
	if snap.PrimaryNode.Version == m.s.transition.WishVersion && snap.PrimaryNode.Value == string(m.s.transition.To) {
		ops = append(ops, cluster.Set(wishKey, snap.PrimaryNode.Version, string(m.c.Node)))
	}
	m.writeLease(forAbort, m.mine(), ops...)
}

func (m *machine) abortWritten(cluster.TxnResult) {
	t := m.s.transition
	m.note(true, "switch_aborted", fmt.Sprintf("the switch from %s to %s was aborted: %s", t.From, t.To, m.s.why), map[string]string{"id": t.ID})
	m.s.transition.State = cluster.TransitionAborted
	m.s.trKnown = false
	if m.s.dirty {
		m.s.returning = true
		m.enter(Taking, stageRaise)
		m.raise()
		return
	}
	m.enter(Taking, stageDone) // nothing was taken down: only the routerstate is to be put right
	m.finish()
}
