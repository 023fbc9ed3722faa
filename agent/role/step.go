package role

import (
	"fmt"

	"pvc.internal/cluster"
)

// Output is what a step asks of the shell.
type Output struct {
	Effects []Effect
	Wake    cluster.Instant // step again at this instant even if nothing happens; Never: no need
}

// machine is one step being computed.
type machine struct {
	c   Config
	s   State
	in  Input
	out Output
}

// Step computes the next state and the effects of one event. It is total:
// every event is accepted in every mode, and what does not fit is dropped.
func Step(c Config, s State, in Input) (State, Output) {
	m := &machine{c: c, s: s, in: in}
	if in.Snapshot == nil {
		m.in.Snapshot = &cluster.Snapshot{}
	}
	m.event()
	m.level()
	return m.s, m.out
}

// emit appends an effect and returns the id its result will carry.
func (m *machine) emit(e Effect) ID {
	m.s.nextID++
	e.ID = m.s.nextID
	m.out.Effects = append(m.out.Effects, e)
	return e.ID
}

// wakeAt asks for a step at t, or at once if t has passed.
func (m *machine) wakeAt(t cluster.Instant) {
	m.out.Wake = cluster.Earliest(m.out.Wake, t)
}

// noteOnce is a note whose record in the history is not repeated with the same
// words for a while: the history is bounded, and what keeps failing must not
// push all else out of it.
func (m *machine) noteOnce(kind, text string, fields map[string]string) {
	kept := make([]told, 0, len(m.s.told)+1)
	fresh := true
	for _, t := range m.s.told {
		if m.in.Now.Sub(t.at) < toldFor {
			kept = append(kept, t)
			fresh = fresh && (t.kind != kind || t.text != text)
		}
	}
	if fresh {
		kept = append(kept, told{kind, text, m.in.Now})
	}
	m.s.told = kept[max(0, len(kept)-16):]
	m.note(fresh, kind, text, fields)
}

func (m *machine) note(record bool, kind, text string, fields map[string]string) {
	m.emit(Effect{Note: &Note{Record: record, Kind: kind, Text: text, Fields: fields}})
}

// enter changes the mode.
func (m *machine) enter(mode Mode, st stage) {
	if m.s.Mode != mode {
		m.s.Mode, m.s.Since = mode, m.in.Now
	}
	m.s.stage, m.s.stageBegan, m.s.step = st, m.in.Now, 0
}

// event takes the one event of this step in.
func (m *machine) event() {
	e := m.in.Event
	switch {
	case e.Commit != nil:
		m.onCommit(*e.Commit)
	case e.Lock != nil:
		m.onLock(*e.Lock)
	case e.Refresh != nil:
		m.onRefresh(*e.Refresh)
	case e.Step != nil:
		m.onStep(*e.Step)
	case e.Preflight != nil:
		m.onPreflight(*e.Preflight)
	case e.Keepalive != nil:
		m.onKeepalive(*e.Keepalive)
	case e.Registered != nil:
		m.onRegistered(*e.Registered)
	case e.GuardEnded != nil:
		m.onGuardEnded(*e.GuardEnded)
	case e.GuardState != nil:
		m.onGuardState(*e.GuardState)
	case e.ServiceExited != nil:
		m.onServiceExited(*e.ServiceExited)
	case e.RoleExtended != nil:
		m.onExtended(*e.RoleExtended)
	case e.EpochSeen != 0:
		m.onEpochSeen(e.EpochSeen)
	case e.NodeEnded != "":
		if m.s.Mode.Holding() {
			m.drop(e.NodeEnded, true)
		}
	case e.Stop:
		m.s.stopping = true
	case e.Suspended:
		m.s.readySent = cluster.Never // nothing of before a sleep gives a right
		m.s.maintained = m.in.Now     // nor counts against another's lease: for how long it slept this clock may not know (I1)
		if m.s.Mode.Holding() {
			m.drop("this host was suspended", true)
		}
	}
}

// level makes the decisions that rest on the state of the world, not on what
// just happened; it is the same after every event, so nothing hangs on an edge.
func (m *machine) level() {
	m.followRecords()
	m.followRoll()
	if on := m.maintenanceOn(); on || m.s.maintenance {
		m.s.maintenance, m.s.maintained = on, m.in.Now // observation begins anew when the end of maintenance is seen
	}
	if l := m.in.Snapshot.Lease; l.Present && l.Err == nil && !l.Value.Released() {
		m.s.lastHolder = l.Value.Holder
		m.s.epochSeen = max(m.s.epochSeen, l.Value.Epoch) // also for a record that is lost or damaged later (I2)
	}
	if l := m.in.Snapshot.Lease; l.Present && l.Mzxid > m.s.takes.on {
		m.s.takes.lost = false // the lease has moved on: a take that rests on what it was fails, or it is what was seen
	}
	if m.s.Mode.Holding() {
		m.relinked()
		m.checkHold()
	}
	switch m.s.Mode {
	case Idle:
		m.idle()
	case Contending:
		m.contending()
	case Candidate:
		m.candidate()
	case Taking:
		m.taking()
	case Primary:
		m.primary()
	case Relinquish:
		m.relinquish()
	case Aborting:
		m.aborting()
	case Dropping:
		m.dropping()
	case Resuming:
		m.resuming()
	}
	if m.s.Mode.Holding() {
		m.renew()
	}
}

func (m *machine) onRegistered(r Registered) {
	if m.s.registered.IsZero() {
		m.s.registered = r.At
		m.s.started = r.Usurped // then a lease of this name runs out like anybody's (I1)
	}
	m.s.session = r.Session
}

func (m *machine) onPreflight(p PreflightDone) {
	m.s.epochSeen = max(m.s.epochSeen, sane(p.MaxEpoch))
	if p.ID == 0 { // the warm one of each tick, without the conflict probe
		m.s.fitKnown, m.s.fit = true, len(p.Problems) == 0
		m.s.Problems = p.Problems
		return
	}
	if p.ID == m.s.probe {
		m.s.probe = 0
		m.s.probed = len(p.Problems) == 0
		if !m.s.probed {
			m.s.Problems = p.Problems
			m.probeFailed(p.Problems)
		}
	}
}

// onGuardEnded takes in that the guard ended the role of its own accord: our
// own deadline passed, or it could not keep an address safe.
func (m *machine) onGuardEnded(e cluster.GuardEvent) {
	if e.Owner != cluster.OwnerPrimary || e.Epoch != m.s.hold.epoch || !m.s.Mode.Holding() || !m.s.hold.raised {
		return
	}
	m.drop("the guard ended the role: "+e.Text, true)
}

// maintenanceOn reports whether maintenance is on. A switch that cannot be read
// counts as on: nobody acts of his own accord on a doubt.
func (m *machine) maintenanceOn() bool {
	v := m.in.Snapshot.Maintenance
	return v.Value || v.Present && v.Err != nil
}

// followRecords notices that a record was deleted and made anew (a restore, a
// foreign tool): its versions begin again and are not stale (I8).
func (m *machine) followRecords() {
	wish, tr := m.in.Snapshot.PrimaryNode, m.in.Snapshot.Transition
	if m.s.wishTop.anew(wish.Present, wish.Mzxid, wish.Version) {
		m.s.wishVer = 0
	}
	if m.s.trTop.anew(tr.Present, tr.Mzxid, tr.Version) {
		m.recordAnew(tr)
	}
	m.s.wishTop.follow(wish.Present, wish.Mzxid, wish.Version)
	m.s.trTop.follow(tr.Present, tr.Mzxid, tr.Version)
}

// recordAnew forgets the version of a transition record that somebody has
// deleted and made anew. A candidate goes on with it if it is the same
// hand-over's; nothing that was written on the old one anchors a right.
func (m *machine) recordAnew(tr cluster.Versioned[cluster.Transition]) {
	m.s.readySent = cluster.Never
	if m.s.Mode != Candidate {
		m.s.trVersion, m.s.trKnown = 0, false
		return
	}
	switch m.s.stage {
	case stageNone, stageLock, stageFresh, stageRecord: // it rests on nothing yet
		return
	}
	if tr.Present {
		m.s.trVersion = tr.Version // of another hand-over, or one that has ended: over() sees it
	}
}

// anew reports whether a later write has a smaller version.
func (t top) anew(present bool, mzxid int64, version int32) bool {
	return t.mzxid != 0 && (!present || mzxid > t.mzxid && version < t.version)
}

func (t *top) follow(present bool, mzxid int64, version int32) {
	if !present {
		*t = top{}
	} else if mzxid > t.mzxid {
		*t = top{mzxid, version}
	}
}

// onServiceExited remembers that a primary-only service ended by itself; it is
// started again as soon as this node is plainly primary.
func (m *machine) onServiceExited(e cluster.GuardEvent) {
	if !m.s.Mode.Holding() || e.Owner != cluster.OwnerPrimary || e.Epoch != m.s.hold.epoch {
		return
	}
	m.s.svcExited = fmt.Sprintf("%s ended: %s", e.Name, e.Text)
}

// onGuardState takes in what the guard holds: epochs that this host has served
// bind the next one (I2), and a service whose end was not told is noticed.
func (m *machine) onGuardState(g cluster.GuardState) {
	m.s.guardFaults = g.Faults
	if g.MaxEpoch <= cluster.MaxEpoch {
		m.s.epochSeen = max(m.s.epochSeen, g.MaxEpoch)
	}
	if m.s.Mode != Primary || m.s.stage != stageNone || m.in.Now.Sub(m.s.Since) < m.c.Timing.KeepaliveInterval {
		return
	}
	running := map[string]bool{}
	for _, s := range g.Services {
		running[s.Name] = s.Running
	}
	for _, s := range m.c.Services {
		if !running[s.Name] && m.s.svcFailed == "" {
			m.s.svcExited = s.Name + " does not run"
		}
	}
}

// onLock takes in the lock's outcome.
func (m *machine) onLock(l LockDone) {
	if l.ID != m.s.step || m.s.stage != stageLock {
		if l.Err == nil { // nobody waits for it any more
			m.emit(Effect{Unlock: &l.Child})
		}
		return
	}
	m.s.step = 0
	if l.Err != nil {
		m.refuse(cluster.Refusal{Code: cluster.RefuseObserverBlind, Detail: fmt.Sprintf("the role lock was not obtained: %v", l.Err)})
		m.backToIdle(renewRetry)
		return
	}
	m.s.lock, m.s.locked = l.Child, true
	m.s.stage, m.s.stageBegan = stageFresh, m.in.Now
	m.s.step = m.emit(Effect{Refresh: true})
}

// onRefresh takes a synced read in: it settles a lease write, or is the fresh
// look that a decision under the lock rests on.
func (m *machine) onRefresh(r RefreshDone) {
	if r.Snapshot != nil && r.Snapshot.Zxid >= m.in.Snapshot.Zxid {
		m.in.Snapshot = r.Snapshot
	}
	switch {
	case r.ID != 0 && r.ID == m.s.hold.settle:
		m.s.hold.settle = 0
		m.settled(r)
	case r.ID != 0 && r.ID == m.s.step:
		m.s.step = 0
		m.fresh(r)
	}
}

// fresh goes on with the procedure that waited for a synced read.
func (m *machine) fresh(r RefreshDone) {
	if r.Err != nil {
		m.refuse(cluster.Refusal{Code: cluster.RefuseStoreNotLive, Detail: fmt.Sprintf("no synced read: %v", r.Err)})
		switch m.s.Mode {
		case Contending, Candidate:
			m.backToIdle(renewRetry)
		case Resuming:
			m.s.retryAt = m.in.Now.Add(renewRetry)
		}
		return
	}
	switch {
	case m.s.Mode == Contending && m.s.stage == stageFresh:
		if m.s.transition.ID == "" || !m.handed() { // the last holder may have handed over before it fell silent
			m.take()
		}
	case m.s.Mode == Contending && m.s.stage == stageTake:
		m.settleTake()
	case m.s.Mode == Candidate && m.s.stage == stageFresh:
		m.record()
	case m.s.Mode == Resuming:
		m.settleResume()
	}
}

// onStep takes the result of a guard effect in.
func (m *machine) onStep(d StepDone) {
	if d.ID == 0 || d.ID != m.s.step {
		return
	}
	m.s.step = 0
	switch m.s.stage {
	case stageRaise:
		m.raised(d)
	case stageProof:
		m.heldBare(d)
	case stageStart:
		m.servicesStarted(d)
	case stageStop:
		m.servicesStopped(d)
	case stageLastStop:
		m.dropForStop() // what would not stop is killed by the drop
	case stageWithdraw:
		m.withdrawn(d)
	case stageEnd:
		m.ended(d)
	case stageLinger:
		m.lingering(d)
	}
}

// onCommit takes the result of a Multi in.
func (m *machine) onCommit(d CommitDone) {
	switch d.ID {
	case 0:
	case m.s.warm:
		m.s.warm = 0
		m.emit(Effect{Keepalive: &KeepaliveResult{ID: m.s.warmID, Result: d.Result}})
	case m.s.hold.write:
		m.leaseWritten(d.Result)
	case m.s.fixing:
		m.s.fixing = 0
	case m.s.step:
		m.s.step = 0
		m.procedureWritten(d.Result)
	}
}

// procedureWritten goes on with the procedure that waited for its own Multi.
func (m *machine) procedureWritten(r cluster.TxnResult) {
	switch m.s.stage {
	case stageTake:
		m.taken(r)
	case stageRecord:
		m.recorded(r)
	case stageStamp:
		m.stamped(r)
	case stageAbortA:
		m.announceAborted(r)
	case stageResume:
		m.resumed(r)
	}
}

// onKeepalive sends the keepalive: with a renewal in the same Multi where no
// lease write is under way, so that the renewals fall in step with it, else
// alone, so that it never waits for one (I10).
func (m *machine) onKeepalive(k KeepaliveDue) {
	h := &m.s.hold
	m.s.keepaliveAt = m.in.Now
	if m.s.Mode.Holding() && !m.s.left && m.s.stage != stageLinger && m.free() && m.in.Now.Before(h.deadline) && m.s.Mode != Relinquish {
		h.riding, h.ride = k.ID, k.Ops
		m.writeLease(forRenewal, m.mine(), k.Ops...)
		return
	}
	m.keepaliveAlone(k.ID, k.Ops)
}

func (m *machine) keepaliveAlone(id uint64, ops []cluster.Op) {
	m.s.warmID = id
	m.s.warm = m.emit(Effect{Commit: &Commit{Txn: cluster.Txn{Purpose: "keepalive", Ops: ops}, Timeout: m.c.Timing.KeepaliveInterval * 8 / 10}})
}

// backToIdle ends a procedure that has not gained the role and gives the lock back.
func (m *machine) backToIdle(pause durationOrZero) {
	m.unlock()
	m.s.probe, m.s.probed, m.s.trKnown = 0, false, false
	m.s.transition, m.s.abortWhy = cluster.Transition{}, ""
	if pause > 0 {
		m.s.retryAt = m.in.Now.Add(pause)
	}
	m.enter(Idle, stageNone)
	m.wakeAt(cluster.Earliest(m.in.Now.Add(pause)))
}

func (m *machine) unlock() {
	if m.s.locked {
		child := m.s.lock
		m.s.broken, m.s.brokenAt = child.Name, m.in.Now // not to be swept up again while the deletion is under way
		m.emit(Effect{Unlock: &child})
	}
	m.s.locked, m.s.lock = false, cluster.LockChild{}
}

// refuse keeps why nothing is done; a code appears once.
func (m *machine) refuse(r cluster.Refusal) {
	for _, have := range m.s.Refusals {
		if have.Code == r.Code {
			return
		}
	}
	refusals := make([]cluster.Refusal, len(m.s.Refusals), len(m.s.Refusals)+1)
	copy(refusals, m.s.Refusals)
	refusals = append(refusals, r)
	m.s.Refusals = refusals
}
