package role

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Candidates ranks the coordinators that could serve, best first: the one
// wished for, then larger priority, fewer missed keepalives, name. The old
// holder is left out unless nobody else is there.
func Candidates(snap *cluster.Snapshot, t cluster.Timing, now cluster.Instant, without cluster.NodeID) []cluster.NodeID {
	type ranked struct {
		id       cluster.NodeID
		wished   bool
		priority int
		missed   int64
	}
	var list []ranked
	for id, n := range snap.Nodes {
		if id == without || n.Mode.Value != cluster.Coordinator || !n.Alive.Present || n.Daemon.Value != cluster.DaemonRun || n.Settles() {
			continue
		}
		missed := max(int64(now.Sub(n.Keepalive.SeenAt)/t.KeepaliveInterval)-1, 0)
		list = append(list, ranked{id, snap.PrimaryNode.Value == string(id), n.Record.Value.Priority, missed})
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i], list[j]
		switch {
		case a.wished != b.wished:
			return a.wished
		case a.priority != b.priority:
			return a.priority > b.priority
		case a.missed != b.missed:
			return a.missed < b.missed
		}
		return a.id < b.id
	})
	ids := make([]cluster.NodeID, len(list))
	for i, r := range list {
		ids[i] = r.id
	}
	return ids
}

// idle looks, at every step, for a reason to act; where there is none the
// refusals say why.
func (m *machine) idle() {
	m.s.Refusals = nil
	if m.c.Mode != cluster.Coordinator {
		m.refuse(cluster.Refusal{Code: cluster.RefuseNotCoordinator, Detail: "a hypervisor never holds the primary role"})
		m.fixRouterState()
		return
	}
	if !m.settledIn() {
		return
	}
	if !m.s.started {
		m.s.started = true
		if l := m.in.Snapshot.Lease; l.Present && l.Err == nil && m.ours(l.Value) {
			m.enter(Resuming, stageResume)
			m.resuming()
			return
		}
	}
	m.sweepOwnLocks()
	m.fixRouterState()
	if m.s.stopping {
		m.refuse(cluster.Refusal{Code: cluster.RefuseNotRunning, Detail: "this daemon is shutting down"})
		return
	}
	if m.in.Now.Before(m.s.retryAt) {
		m.wakeAt(m.s.retryAt)
		return
	}
	if m.wishedFor() {
		m.seekHandOver()
		return
	}
	m.seekVacancy()
}

// settledIn reports whether this node is registered in this session and has a
// complete, live view: nobody acts in its own first observation round.
func (m *machine) settledIn() bool {
	snap := m.in.Snapshot
	switch {
	case !snap.Live:
		m.refuse(cluster.Refusal{Code: cluster.RefuseStoreNotLive, Detail: "not connected to ZooKeeper"})
	case !snap.Complete:
		m.refuse(cluster.Refusal{Code: cluster.RefuseFirstRound, Detail: "the first full round of observation is not finished"})
	case m.s.registered.IsZero() || snap.Session != m.s.session:
		m.refuse(cluster.Refusal{Code: cluster.RefuseNotRunning, Detail: "this node is not registered in the present session"})
	default:
		return true
	}
	return false
}

// barred collects what forbids this node to take the role. A planned switch,
// which an operator asks for, is not barred by maintenance or a recent
// hand-over, nor by the warm pre-flight: its own in A tells the operator why.
func (m *machine) barred(planned bool) bool {
	snap, t := m.in.Snapshot, m.c.Timing
	before := len(m.s.Refusals)
	if since := m.s.registered.Add(t.RoleTTL); m.in.Now.Before(since) {
		m.refuse(cluster.Refusal{Code: cluster.RefuseRecentStart, Detail: fmt.Sprintf("registered less than %v ago", t.RoleTTL)})
		m.wakeAt(since)
	}
	if !planned && (!m.s.fitKnown || !m.s.fit) {
		m.refuse(cluster.Refusal{Code: cluster.RefuseUnhealthy, Detail: "this host could not serve: " + strings.Join(m.s.Problems, "; ")})
	}
	if self := snap.Nodes[m.c.Node]; self.Daemon.Value != cluster.DaemonRun || self.Alive.Value.Incarnation != m.c.Incarnation {
		m.refuse(cluster.Refusal{Code: cluster.RefuseNotRunning, Detail: fmt.Sprintf("this node's daemon state is %q", self.Daemon.Value)})
	}
	if planned {
		return len(m.s.Refusals) > before
	}
	if m.maintenanceOn() {
		detail := "maintenance is on: nobody takes the role of his own accord"
		if err := snap.Maintenance.Err; err != nil {
			detail = fmt.Sprintf("the maintenance switch cannot be read, which counts as on (%v); set it with `pvc cluster maintenance on` or `off`", err)
		}
		m.refuse(cluster.Refusal{Code: cluster.RefuseMaintenance, Detail: detail})
	}
	if until := m.s.gaveUp.Add(t.RoleTTL); !m.s.gaveUp.IsZero() && m.in.Now.Before(until) && m.othersCould() {
		m.refuse(cluster.Refusal{Code: cluster.RefuseGaveUp, Detail: fmt.Sprintf("gave the role up less than %v ago", t.RoleTTL)})
		m.wakeAt(until)
	}
	bound := m.bound() // first said or not
	return m.uncounted() || bound || len(m.s.Refusals) > before
}

// bound reports whether a promise of this node's own stands (protocol §4, store
// outage): until its end the role is neither taken nor anything done on a take.
func (m *machine) bound() bool {
	p := m.in.Promise
	if !m.in.Now.Before(p.Until) {
		return false
	}
	m.refuse(p.Why)
	m.wakeAt(p.Until)
	return true
}

func (m *machine) othersCould() bool {
	return len(Candidates(m.in.Snapshot, m.c.Timing, m.in.Now, m.c.Node)) > 0
}

// vacantAt is the earliest instant at which the role may be taken as far as
// this observer knows.
func (m *machine) vacantAt() cluster.Instant {
	l, t := m.in.Snapshot.Lease, m.c.Timing
	if (!l.Present || l.Err != nil) && m.s.absentAt.IsZero() {
		m.s.absentAt = m.in.Now
	}
	switch {
	case !l.Present:
		m.refuse(cluster.Refusal{Code: cluster.RefuseLeaseAbsent, Detail: "the lease record is missing from the tree; it is made anew " + leaseAbsentWait.String() + " after that was first seen"})
		return m.s.absentAt.Add(leaseAbsentWait + t.TakerMargin)
	case l.Err != nil:
		m.refuse(cluster.Refusal{Code: cluster.RefuseLeaseUnreadable, Detail: fmt.Sprintf("the lease record cannot be read (%v); its holder writes it anew, or else it is made anew %v after that was first seen", l.Err, leaseAbsentWait)})
		return m.s.absentAt.Add(leaseAbsentWait + t.TakerMargin)
	}
	m.s.absentAt = cluster.Never
	if m.provenDead(l.Value.Holder, l.Value.Incarnation) {
		return m.in.Snapshot.Nodes[l.Value.Holder].Fence.SeenAt
	}
	if l.Value.Released() {
		return l.SeenAt
	}
	return max(l.SeenAt, m.s.maintained).Add(l.Value.TTL() + t.TakerMargin)
}

// provenDead reports whether a dead-proof for exactly this start of the node
// stands in its fence record (I4, I5).
func (m *machine) provenDead(n cluster.NodeID, inc cluster.Incarnation) bool {
	f := m.in.Snapshot.Nodes[n].Fence
	return n != "" && f.Present && f.Err == nil && f.Value.Incarnation == inc && f.Value.Proof != ""
}

// seekVacancy contends when the lease is released or expired as observed. The
// conflict probe runs during the last M of the wait.
func (m *machine) seekVacancy() {
	at := m.vacantAt()
	if m.barred(false) {
		return
	}
	at = at.Add(time.Duration(m.rank()) * rankDelay)
	begin := at.Add(-m.c.Timing.TakerMargin)
	if m.in.Now.Before(begin) {
		m.wakeAt(begin)
		return
	}
	m.s.probed = false
	m.enter(Contending, stageNone)
	m.s.probe = m.emit(Effect{Preflight: &Preflight{
		Conflicts: true, KnownMACs: m.rivalMACs(), Timeout: m.c.Timing.TakerMargin, Epoch: m.nextEpoch(),
	}})
	m.contending()
}

// rivalMACs are those of the coordinators that may take the role at the same
// time: one that has just done so is no stranger, and the lock and the lease's
// version decide between us. The old holder must be silent by now.
func (m *machine) rivalMACs() []string {
	var macs []string
	for id, n := range m.in.Snapshot.Nodes {
		if id != m.in.Snapshot.Lease.Value.Holder {
			macs = append(macs, n.Record.Value.MACs...)
		}
	}
	sort.Strings(macs)
	return macs
}

// rank is this node's place among the candidates without the old holder.
func (m *machine) rank() int {
	ids := Candidates(m.in.Snapshot, m.c.Timing, m.in.Now, m.in.Snapshot.Lease.Value.Holder)
	for i, id := range ids {
		if id == m.c.Node {
			return i
		}
	}
	return len(ids)
}

// contending waits for the probe and the instant, then takes the lock.
func (m *machine) contending() {
	m.breakStaleLock()
	if m.s.stage != stageNone || m.s.probe != 0 {
		return
	}
	if !m.s.probed { // the probe failed; probeFailed has told why
		return
	}
	at := m.vacantAt().Add(time.Duration(m.rank()) * rankDelay)
	if m.s.stopping {
		m.backToIdle(0)
		return
	}
	if m.in.Now.Before(at) {
		if at.Sub(m.in.Now) > m.c.Timing.TakerMargin { // renewed meanwhile
			m.backToIdle(0)
			m.wakeAt(m.in.Now)
			return
		}
		m.wakeAt(at)
		return
	}
	m.sendLock()
}

func (m *machine) sendLock() {
	m.s.stage, m.s.stageBegan = stageLock, m.in.Now
	m.s.step = m.emit(Effect{Lock: &Lock{
		Owner:   cluster.LockOwner{Version: 1, Node: m.c.Node, Incarnation: m.c.Incarnation},
		Timeout: m.c.Timing.LockTimeout,
	}})
}

// probeFailed takes in that a stranger holds an address or that this host
// cannot serve.
func (m *machine) probeFailed(problems []string) {
	m.refuse(cluster.Refusal{Code: cluster.RefuseUnhealthy, Detail: strings.Join(problems, "; ")})
	switch m.s.Mode {
	case Contending:
		m.noteOnce("preflight_failed", "the role is not taken: "+strings.Join(problems, "; "), nil)
		m.backToIdle(time.Second)
	case Candidate:
		m.abortAnnounce("pre-flight failed on " + string(m.c.Node) + ": " + strings.Join(problems, "; "))
	}
}

// take decides on the fresh view, with the lock held, and sends the take's
// Multi. It rests on the versions just read and on the lock child, so that a
// lock broken or lost meanwhile makes it fail (failsafe).
func (m *machine) take() {
	m.s.Refusals = nil
	if m.in.Now.Before(m.vacantAt()) || m.barred(false) || m.s.stopping {
		m.backToIdle(0)
		return
	}
	m.sendTake()
}

func (m *machine) sendTake() {
	snap := m.in.Snapshot
	old := snap.Lease.Value
	epoch := m.nextEpoch()
	if old.Epoch > cluster.MaxEpoch {
		m.refuse(cluster.Refusal{Code: cluster.RefuseLeaseUnreadable, Detail: fmt.Sprintf("the lease's epoch %d is no epoch", old.Epoch)})
		m.backToIdle(time.Second)
		return
	}
	cause := m.cause()
	m.s.unproven = m.owed(m.inherits(cause))
	m.s.takeEpoch = epoch
	lease := m.naming(cluster.Lease{Version: 1, Holder: m.c.Node, Incarnation: m.c.Incarnation, Epoch: epoch, TTLMillis: m.c.Timing.RoleTTL.Milliseconds(), Unproven: m.s.unproven})
	m.s.naming = rollOf(lease)
	m.s.takes = takes{sent: true, lost: m.s.takes.lost && m.s.takes.on == snap.Lease.Mzxid, on: snap.Lease.Mzxid}
	m.s.transition = cluster.Transition{
		Version: 1, ID: m.c.NewID(epoch), Epoch: epoch, From: old.Holder, To: m.c.Node, ToIncarn: m.c.Incarnation,
		FromHost: hostOf(old), ToHost: m.ownHost(),
		Cause: cause, State: cluster.TransitionRunning, Phase: cluster.PhaseAddresses, Lock: m.s.lock.Name, Started: m.in.WallMS,
	}
	m.s.stage, m.s.stageBegan = stageTake, m.in.Now
	m.s.step = m.emit(Effect{Commit: &Commit{
		Timeout: m.c.Timing.KeepaliveInterval * 8 / 10,
		Txn: cluster.Txn{Purpose: "role.take", Ops: append([]cluster.Op{
			cluster.Put(leaseKey, snap.Lease, lease),
			cluster.Put(transitionKey, snap.Transition, m.s.transition),
			cluster.Check(m.lockKey(), 0),
			cluster.Put(wishKey, snap.PrimaryNode, string(m.c.Node)),
			m.routerStateOp(cluster.RouterTakeover),
		}, slices.Concat(m.overtaken(), m.onWord())...)},
	}})
}

// cause is why the role is being taken.
func (m *machine) cause() cluster.Cause {
	l := m.in.Snapshot.Lease
	switch {
	case l.Present && l.Value.Released():
		return cluster.CauseReleased
	case m.provenDead(l.Value.Holder, l.Value.Incarnation) && m.in.Now.Before(l.SeenAt.Add(l.Value.TTL()+m.c.Timing.TakerMargin)):
		return cluster.CauseDead
	}
	return cluster.CauseExpired
}

// inherits are the lost holders whose proofs come with the lease: those it
// names, and the present holder unless it has released. Where the record is
// lost, the last transition's winner counts as the holder.
func (m *machine) inherits(cause cluster.Cause) []cluster.Unproven {
	l, t := m.in.Snapshot.Lease, m.in.Snapshot.Transition
	list := append([]cluster.Unproven(nil), l.Value.Unproven...)
	switch {
	case cause == cluster.CauseReleased:
	case l.Present:
		list = append(list, cluster.Unproven{Node: l.Value.Holder, Incarnation: l.Value.Incarnation})
	case t.Present && t.Err == nil && t.Value.To != "":
		list = append(list, cluster.Unproven{Node: t.Value.To, Incarnation: t.Value.ToIncarn})
	}
	return list
}

// nextEpoch is larger than every epoch known here: the lease's, the
// transition's, all that were seen, and those this host's guard has served (I2).
func (m *machine) nextEpoch() cluster.Epoch {
	snap := m.in.Snapshot
	return max(sane(snap.Lease.Value.Epoch), sane(snap.Transition.Value.Epoch), m.s.epochSeen) + 1
}

// sane passes an epoch over and takes rubbish for none.
func sane(e cluster.Epoch) cluster.Epoch {
	if e > cluster.MaxEpoch {
		return 0
	}
	return e
}

// overtaken is the record that a wish for another node was overtaken by this
// take. It is written in the take's own Multi, so that no crash loses it (I8).
func (m *machine) overtaken() []cluster.Op {
	w := m.in.Snapshot.PrimaryNode.Value
	if m.in.Snapshot.PrimaryNode.Err != nil || w == string(m.c.Node) || w == string(m.s.lastHolder) || w == cluster.NoNode || w == "" {
		return nil
	}
	return []cluster.Op{{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: cluster.Event{
		Version: 1, UnixMS: m.in.WallMS, Node: m.c.Node, Kind: "wish_overtaken", Fields: map[string]string{"wished": w},
		Text: fmt.Sprintf("primary_node = %s was overtaken: %s has taken the role (%s)", w, m.c.Node, m.s.transition.Cause),
	}}}
}

var (
	transitionKey = cluster.Key{Kind: cluster.KeyTransition}
	wishKey       = cluster.Key{Kind: cluster.KeyPrimaryNode}
)

func (m *machine) lockKey() cluster.Key {
	return cluster.Key{Kind: cluster.KeyRoleLockChild, Name: m.s.lock.Name}
}

// taken goes on after the take's Multi.
func (m *machine) taken(r cluster.TxnResult) {
	m.s.takes.sent = false
	switch r.Outcome {
	case cluster.OutcomeOK:
		m.s.takes.lost = false
		m.adopt(m.s.takeEpoch, r.Versions[0], 0, r.SentAt, m.s.naming)
		m.s.trVersion, m.s.trKnown = r.Versions[1], true
		m.s.wishVer = r.Versions[3]
		m.enter(Taking, stageRaise)
		m.note(false, "role_taken", "the primary role is this node's", map[string]string{"epoch": fmt.Sprint(m.s.hold.epoch), "cause": string(m.s.transition.Cause)})
		m.begin()
	case cluster.OutcomeUnknown:
		m.s.takeSent, m.s.takes.lost = r.SentAt, true
		m.s.step = m.emit(Effect{Refresh: true})
	default:
		m.backToIdle(0)
		m.wakeAt(m.in.Now)
	}
}

// settleTake goes on after the read that followed a lost reply. A read can
// show that the take happened; it cannot show that it will not, so otherwise
// the role is left to its lease.
func (m *machine) settleTake() {
	l := m.in.Snapshot.Lease
	if l.Present && l.Err == nil && l.Value.HeldBy(m.c.Node, m.c.Incarnation) && l.Value.Epoch == m.s.takeEpoch {
		m.adopt(m.s.takeEpoch, l.Version, l.Value.N, m.s.takeSent, rollOf(l.Value))
		m.s.trVersion, m.s.trKnown = m.in.Snapshot.Transition.Version, true
		m.enter(Taking, stageRaise)
		m.begin()
		return
	}
	m.backToIdle(renewRetry)
}

// sweepOwnLocks deletes lock children of this node that nobody waits for: an
// earlier start's, or an orphan whose creation committed after it was given up.
func (m *machine) sweepOwnLocks() {
	if m.s.locked || m.s.registered.IsZero() {
		return
	}
	for _, c := range m.in.Snapshot.RoleLock {
		orphan := m.in.Now.Sub(c.SeenAt) > 2*m.c.Timing.LockTimeout
		if c.Foreign || c.Owner.Node != m.c.Node || m.breaking(c.Name) || c.Owner.Incarnation == m.c.Incarnation && !orphan {
			continue
		}
		child := c
		m.s.broken, m.s.brokenAt = c.Name, m.in.Now
		m.emit(Effect{BreakLock: &child})
		m.note(false, "lock_broken", "deleted a lock child of this node that nobody waits for", map[string]string{"child": c.Name})
		return
	}
}

// breakStaleLock deletes a child of ours that heads the queue for too long,
// while this node needs the lock. The Multi that checks the lock child makes
// that safe; a foreign client's child is waited for.
func (m *machine) breakStaleLock() {
	snap := m.in.Snapshot
	if len(snap.RoleLock) == 0 {
		return
	}
	head := snap.RoleLock[0]
	if head.Foreign || m.s.locked && head.Name == m.s.lock.Name || m.breaking(head.Name) {
		return
	}
	age := m.in.Now.Sub(head.SeenAt)
	due := head.SeenAt.Add(lockBreak)
	if at := m.vacantAt(); !m.in.Now.Before(at) {
		since := head.SeenAt
		if m.mayTakeOver(head.Owner.Node) {
			since = max(since, at)
		}
		due = cluster.Earliest(due, since.Add(m.c.Timing.RoleTTL+m.c.Timing.TakerMargin))
	}
	if m.in.Now.Before(due) {
		m.wakeAt(due)
		return
	}
	m.s.broken, m.s.brokenAt = head.Name, m.in.Now
	m.emit(Effect{BreakLock: &head})
	m.note(true, "lock_broken", fmt.Sprintf("broke the role lock of %s, held unchanged for %v", head.Owner.Node, age.Round(time.Millisecond)), map[string]string{"child": head.Name})
}

// mayTakeOver reports whether the owner of the lock is likely to use it: it is
// not the holder whose lease has expired, and it is heard. A candidate that has
// held the lock for its switch is about to take over itself when the holder goes.
func (m *machine) mayTakeOver(n cluster.NodeID) bool {
	snap := m.in.Snapshot
	return n != snap.Lease.Value.Holder && m.in.Now.Sub(snap.Nodes[n].Keepalive.SeenAt) <= 2*m.c.Timing.KeepaliveInterval
}

// breaking reports whether the child's deletion may still be under way.
func (m *machine) breaking(name string) bool {
	return name == m.s.broken && m.in.Now.Sub(m.s.brokenAt) < 2*m.c.Timing.SessionTimeout
}

// fixRouterState corrects this node's routerstate record when it does not say
// what is true, for instance after a crash.
func (m *machine) fixRouterState() {
	want := m.s.RouterState(m.c.Mode)
	seen := m.in.Snapshot.Nodes[m.c.Node].Router
	if !m.in.Snapshot.Live || m.s.fixing != 0 || m.s.registered.IsZero() || !seen.Present || seen.Err == nil && seen.Value == want {
		return
	}
	if m.in.Now.Before(m.s.fixAfter) {
		m.wakeAt(m.s.fixAfter)
		return
	}
	m.s.fixAfter = m.in.Now.Add(m.c.Timing.KeepaliveInterval)
	m.s.fixing = m.emit(Effect{Commit: &Commit{
		Timeout: m.c.Timing.KeepaliveInterval * 8 / 10,
		Txn: cluster.Txn{Purpose: "role.routerstate", Ops: []cluster.Op{
			cluster.Set(cluster.Key{Kind: cluster.KeyRouterState, Node: m.c.Node}, seen.Version, want),
		}},
	}})
}
