package role

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// The tests here plant single faults in the model and look at what the random
// lives of model_test.go do not judge: the lease's own history, orphans, records
// that cannot be read, and what the operator is told.

func quietWorld(t *testing.T, seed uint64, nodes int, services bool) *world {
	w := newWorld(t, seed, nodes, services)
	w.loseReply, w.crashAt = map[string]string{}, map[string]string{}
	return w
}

// lives runs until the instant and judges the lease record after every event:
// its epoch never falls, and no two holders have the same one (I2).
func (w *world) lives(d time.Duration) {
	end := w.now.Add(d)
	for len(w.agenda) > 0 && w.agenda[0].at <= end && w.failed == "" {
		rec := w.store.recs[leaseKey]
		before := cluster.Lease{}
		if rec != nil {
			before = rec.value.(cluster.Lease)
		}
		w.runUntil(w.agenda[0].at)
		after := w.store.recs[leaseKey]
		if rec == nil || after == nil {
			continue
		}
		now := after.value.(cluster.Lease)
		switch {
		case now.Epoch < before.Epoch:
			w.fail("I2: the lease's epoch fell from %d (%s) to %d (%q)", before.Epoch, before.Holder, now.Epoch, now.Holder)
		case now.Epoch == before.Epoch && now.Holder != before.Holder && now.Holder != "":
			w.fail("I2: %s and %s hold at the same epoch %d", before.Holder, now.Holder, now.Epoch)
		}
	}
	w.now = max(w.now, end)
}

func (w *world) elected(t *testing.T) *modelNode {
	t.Helper()
	for range 100 {
		w.lives(100 * time.Millisecond)
		if p := w.primaries(); len(p) == 1 {
			return p[0]
		}
	}
	t.Fatalf("no primary\n%s", w.describe())
	return nil
}

func (w *world) verdict(t *testing.T) {
	t.Helper()
	if w.failed != "" {
		t.Errorf("%s\n%s\n%s", w.failed, strings.Join(w.log[max(0, len(w.log)-25):], "\n"), w.describe())
	}
}

// A role that is dropped while C is under way, and whose effects are gone
// before C's reply, must not release the lease that C has given away.
func TestADroppedHandOverDoesNotReleaseTheCandidatesLease(t *testing.T) {
	for seed := range uint64(40) {
		w := quietWorld(t, seed, 3, false)
		p := w.elected(t)
		to := w.nodes[0]
		if to == p {
			to = w.nodes[1]
		}
		w.wish(string(to.id))
		for range 40000 {
			w.lives(100 * time.Microsecond)
			if p.state.Mode == Relinquish && p.state.stage == stageHandOver && p.state.hold.purpose == forHandOver {
				break
			}
		}
		if p.state.stage != stageHandOver {
			t.Fatalf("seed %d: no hand-over\n%s", seed, w.describe())
		}
		p.step(Event{Suspended: true})
		w.lives(100 * time.Millisecond)
		w.verdict(t)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// A primary-only service that ends while its node is still taking the role, or
// while another start is under way, is started again.
func TestAServiceThatExitsEarlyIsStartedAgain(t *testing.T) {
	c, s, now := heldByMe(t, Taking, stageSettle)
	c.Services = []cluster.ServiceSpec{{Name: "dns", StartTimeout: time.Second}}
	s.timer = now.Add(time.Second)
	in := Input{Now: now, Snapshot: liveSnapshot(c, s, now)}
	in.Event = Event{ServiceExited: &cluster.GuardEvent{Kind: "service_exited", Owner: cluster.OwnerPrimary, Epoch: s.hold.epoch, Name: "dns"}}
	s, _ = Step(c, s, in)
	started := false
	for i := range 100 {
		at := now.Add(time.Duration(i) * 100 * time.Millisecond)
		var out Output
		ev := Event{}
		s, out = Step(c, s, Input{Now: at, Snapshot: liveSnapshot(c, s, at), Event: ev})
		for len(out.Effects) > 0 {
			e := out.Effects[0]
			out.Effects = out.Effects[1:]
			if e.Start != nil {
				started = true
			}
			if e.Commit != nil {
				versions := make([]int32, len(e.Commit.Txn.Ops))
				versions[0] = e.Commit.Txn.Ops[0].Version + 1
				var more Output
				s, more = Step(c, s, Input{Now: at, Snapshot: liveSnapshot(c, s, at), Event: Event{Commit: &CommitDone{ID: e.ID, Result: cluster.TxnResult{Outcome: cluster.OutcomeOK, SentAt: at, Versions: versions, FailedOp: -1}}}})
				out.Effects = append(out.Effects, more.Effects...)
			}
		}
	}
	if s.Mode != Primary {
		t.Fatalf("mode %s, want primary", s.Mode)
	}
	if !started {
		t.Error("dns ended while the role was being taken and is never started again: primary without its service")
	}
}

func heldByMe(t *testing.T, m Mode, st stage) (Config, State, cluster.Instant) {
	t.Helper()
	now := cluster.Instant(time.Hour)
	c := Config{Node: "hv1", Mode: cluster.Coordinator, Incarnation: "hv1.1", Timing: lan(), NewID: func(e cluster.Epoch) string { return fmt.Sprint(e) }}
	s := State{Mode: m, stage: st, started: true, registered: now.Add(-time.Minute), session: 1, fit: true, fitKnown: true, Since: now, stageBegan: now}
	s.hold = hold{epoch: 7, version: 7, sent: now, deadline: now.Add(2500 * time.Millisecond), next: now.Add(500 * time.Millisecond), raised: true}
	return c, s, now
}

func liveSnapshot(c Config, s State, now cluster.Instant) *cluster.Snapshot {
	return &cluster.Snapshot{
		Complete: true, Live: true, Session: 1, ObservedAt: now, Zxid: 1,
		PrimaryNode: cluster.Versioned[string]{Value: string(c.Node), Present: true, SeenAt: now},
		Lease: cluster.Versioned[cluster.Lease]{Present: true, SeenAt: now, Version: s.hold.version,
			Value: cluster.Lease{Holder: c.Node, Incarnation: c.Incarnation, Epoch: s.hold.epoch, TTLMillis: 2800}},
		Nodes: map[cluster.NodeID]cluster.NodeView{c.Node: {
			Name: c.Node, Mode: cluster.Versioned[cluster.Mode]{Value: cluster.Coordinator, Present: true},
			Daemon: cluster.Versioned[cluster.DaemonState]{Value: cluster.DaemonRun, Present: true},
			Alive:  cluster.Versioned[cluster.Alive]{Value: cluster.Alive{Incarnation: c.Incarnation}, Present: true},
			Router: cluster.Versioned[cluster.RouterState]{Value: s.RouterState(c.Mode), Present: true, SeenAt: now},
		}},
	}
}

// A lock child of this node whose deletion failed for good (ZooKeeper without a
// quorum for longer than the executor tries; the session lives on) must not
// keep the only node from the role for ever (I7).
func TestAnOwnOrphanOfTheLockIsSweptThoughItsDeletionFailedOnce(t *testing.T) {
	w := quietWorld(t, 1, 1, false)
	p := w.elected(t)
	w.lives(2 * time.Second)
	orphan := cluster.LockChild{Name: p.state.broken, Seq: w.store.seq, Session: p.session, Owner: cluster.LockOwner{Version: 1, Node: p.id, Incarnation: p.inc}}
	if orphan.Name == "" {
		t.Fatal("the machine has not unlocked")
	}
	w.store.locks = append(w.store.locks, orphan) // the deletion never happened
	w.store.zxid++
	w.publish()
	p.cut = true
	w.lives(4 * time.Second) // the role runs out
	p.cut = false
	w.publish()
	w.lives(60 * time.Second)
	if len(w.primaries()) != 1 {
		t.Errorf("I7: the only node waits behind its own orphan for ever\n%s", w.describe())
	}
	w.verdict(t)
}

// require_dead_proof: an old holder that was only cut off and is back, alive
// and without the role, must not keep the addresses away for ever (I7).
func TestDeadProofOfAHolderThatIsBackAlive(t *testing.T) {
	w := quietWorld(t, 3, 3, false)
	w.deadProof = true
	p := w.elected(t)
	p.cut = true
	w.lives(6 * time.Second)
	p.cut = false
	w.publish()
	w.lives(60 * time.Second)
	if len(w.primaries()) != 1 {
		t.Errorf("I7: nobody answers although all nodes live\n%s", w.describe())
	}
	w.verdict(t)
}

// A lease record that cannot be read keeps everybody away, and the operator is told.
func TestAnUnreadableLeaseIsNamed(t *testing.T) {
	c, s, now := heldByMe(t, Idle, stageNone)
	s.hold = hold{}
	snap := liveSnapshot(c, s, now)
	snap.Lease = cluster.Versioned[cluster.Lease]{Present: true, SeenAt: now, Version: 3, Err: fmt.Errorf("decode /agent/lease/primary: rubbish")}
	s, out := Step(c, s, Input{Now: now.Add(10 * time.Second), Snapshot: snap})
	for _, e := range out.Effects {
		if e.Lock != nil || e.Preflight != nil {
			t.Fatalf("contends for an unreadable lease: %+v", e)
		}
	}
	for _, r := range s.Refusals {
		if r.Code == cluster.RefuseLeaseUnreadable {
			return
		}
	}
	t.Errorf("refusals %v do not say that the lease record is unreadable", s.Refusals)
}

// countEffects feeds the machine for d of virtual time, answering each commit
// at once with the result that answer chooses, and counts effects.
func countEffects(c Config, s State, now cluster.Instant, d time.Duration, snap func(cluster.Instant) *cluster.Snapshot, answer func(Effect) *Event, count func(Effect)) State {
	end := now.Add(d)
	for steps := 0; now < end && steps < 200000; steps++ {
		queue := []Event{{}}
		wake := cluster.Never
		for len(queue) > 0 && now < end {
			ev := queue[0]
			queue = queue[1:]
			var out Output
			s, out = Step(c, s, Input{Now: now, Snapshot: snap(now), Event: ev})
			wake = out.Wake
			for _, e := range out.Effects {
				count(e)
				if back := answer(e); back != nil {
					queue = append(queue, *back)
				}
			}
			now = now.Add(time.Millisecond)
		}
		next := now.Add(500 * time.Millisecond)
		if wake != cluster.Never && wake < next {
			next = max(wake, now)
		}
		now = next
	}
	return s
}

// A write of the routerstate that the store refuses is not repeated at the
// speed of the network.
func TestARefusedRouterStateIsNotSentInAHotLoop(t *testing.T) {
	c, s, now := heldByMe(t, Idle, stageNone)
	s.hold = hold{}
	commits := 0
	countEffects(c, s, now, 10*time.Second, func(at cluster.Instant) *cluster.Snapshot {
		snap := liveSnapshot(c, s, at)
		snap.Lease.Value = cluster.Lease{Holder: "hv2", Incarnation: "hv2.1", Epoch: 7, TTLMillis: 2800}
		snap.PrimaryNode.Value = "hv2"
		n := snap.Nodes[c.Node]
		n.Router = cluster.Versioned[cluster.RouterState]{Value: cluster.RouterPrimary, Present: true}
		snap.Nodes[c.Node] = n
		return snap
	}, func(e Effect) *Event {
		if e.Commit == nil {
			return nil
		}
		return &Event{Commit: &CommitDone{ID: e.ID, Result: cluster.TxnResult{Outcome: cluster.OutcomeRefused, FailedOp: 0, Err: cluster.ErrAuth}}}
	}, func(e Effect) {
		if e.Commit != nil {
			commits++
		}
	})
	if commits > 120 {
		t.Errorf("%d commits of the routerstate in 10 s; the store refuses each", commits)
	}
}

// A host that cannot present the addresses tries again and again; the history
// must not grow with each try.
func TestAFailingTakeDoesNotFloodTheHistory(t *testing.T) {
	w := quietWorld(t, 1, 1, false)
	w.nodes[0].guard.maxEpoch = 1 << 40 // Begin is refused for good
	w.lives(time.Minute)
	if records := w.recorded["role_dropped"]; records > 3 || records == 0 {
		t.Errorf("%d history records role_dropped in one minute of a host that cannot present its addresses", records)
	}
}

func TestAStrangerOnTheAddressDoesNotFloodTheHistory(t *testing.T) {
	w := quietWorld(t, 1, 1, false)
	w.nodes[0].unhealthy = true
	w.lives(2 * time.Minute)
	if records := w.recorded["preflight_failed"]; records > 3 || records == 0 {
		t.Errorf("%d history records preflight_failed in 2 minutes; a refusal is reported once until cleared", records)
	}
}

// A lease record that was lost with the transition is made anew with an epoch
// above everything that this host's guard has served.
func TestANewLeaseExceedsTheGuardsEpoch(t *testing.T) {
	w := quietWorld(t, 1, 2, false)
	for _, n := range w.nodes {
		n.guard.maxEpoch = 300
	}
	delete(w.store.recs, leaseKey)
	w.publish()
	w.runUntil(w.now.Add(3 * time.Minute))
	if len(w.primaries()) != 1 {
		t.Errorf("I7: nobody is primary 3 minutes after the lease record was lost\n%s", w.describe())
	}
}

// C meets a conflict because the candidate has stamped `ready` meanwhile: it is
// sent again, not aborted (protocol §4, C).
func TestAStampDuringCDoesNotAbortTheSwitch(t *testing.T) {
	aborted := 0
	for seed := range uint64(300) {
		w := quietWorld(t, seed, 2, false)
		p := w.elected(t)
		to := w.nodes[0]
		if to == p {
			to = w.nodes[1]
		}
		w.wish(string(to.id))
		for range 60000 {
			w.lives(50 * time.Microsecond)
			if p.state.stage == stageHandOver && p.state.hold.purpose == forHandOver {
				break
			}
		}
		// the candidate's stamp overtakes C
		key := transitionKey
		rec := w.store.recs[key]
		tr := rec.value.(cluster.Transition)
		tr.Ready++
		w.store.zxid++
		rec.value, rec.mzxid = tr, w.store.zxid
		rec.version++
		w.publish()
		w.lives(3 * time.Second)
		for _, line := range w.log {
			if strings.Contains(line, "note switch_aborted") {
				aborted++
				break
			}
		}
		if seed > 5 {
			break
		}
	}
	if aborted > 0 {
		t.Errorf("%d switches were aborted only because `ready` moved", aborted)
	}
}

// primary_node and the transition record are deleted and made anew (a restore
// from a backup, a foreign tool): their versions begin at 0 and are not stale.
func TestRecordsMadeAnewAreNotTakenForStale(t *testing.T) {
	w := quietWorld(t, 5, 3, false)
	p := w.elected(t)
	for range 2 { // some versions
		to := w.nodes[(indexOf(w, p)+1)%3]
		w.wish(string(to.id))
		w.lives(4 * time.Second)
		p = w.elected(t)
	}
	for _, k := range []cluster.Key{wishKey, transitionKey} {
		w.store.zxid++
		if k == wishKey {
			w.store.recs[k] = &znode{value: string(p.id), mzxid: w.store.zxid}
		} else {
			delete(w.store.recs, k)
		}
	}
	w.publish()
	w.lives(2 * time.Second)
	to := w.nodes[(indexOf(w, p)+1)%3]
	w.wish(string(to.id))
	w.lives(20 * time.Second)
	if got := w.primaries(); len(got) != 1 || got[0] != to {
		t.Errorf("I8: the wish for %s is neither served nor answered\n%s", to.id, w.describe())
	}
}

func indexOf(w *world, n *modelNode) int {
	for i, o := range w.nodes {
		if o == n {
			return i
		}
	}
	return -1
}

// TestMoreRandomFaults adds to the random lives: locks that vanish, guards that
// end or forget the role, services that exit, views that fall back to an earlier
// one, rubbish in the records, wishes for nobody known; and judges the lease's
// own history (I2) at every event.
func TestMoreRandomFaults(t *testing.T) {
	rounds := 600
	if testing.Short() {
		rounds = 100
	}
	if s := os.Getenv("PVC_BREAK_ROUNDS"); s != "" {
		_, _ = fmt.Sscan(s, &rounds)
	}
	bad := map[string]int{}
	for seed := range uint64(rounds) {
		w := quietWorld(t, seed+1<<32, 1+int(seed%4), seed%2 == 0)
		w.lossy = true
		for range 14 {
			w.lives(time.Duration(w.rng.IntN(4000)) * time.Millisecond)
			if w.rng.IntN(2) == 0 {
				w.misfortune()
			} else {
				w.mischief()
			}
		}
		w.lives(3 * time.Second)
		w.settleDown()
		if w.failed != "" {
			if len(w.failed) > 45 {
				bad[w.failed[:45]]++
			} else {
				bad[w.failed]++
			}
			if os.Getenv("PVC_BREAK_ALL") == "" {
				w.report(seed)
			}
		}
	}
	if len(bad) > 0 {
		t.Errorf("%v", bad)
	}
}

func (w *world) mischief() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	switch w.rng.IntN(7) {
	case 0:
		if len(w.store.locks) > 0 {
			w.logf("lock %s vanishes", w.store.locks[0].Name)
			w.store.locks = append(w.store.locks[:0:0], w.store.locks[1:]...)
			w.store.zxid++
			w.publish()
		}
	case 1:
		if n.guard.live {
			w.logf("guard of %s crashes", n.id)
			epoch := n.guard.epoch
			n.guard.live, n.guard.present, n.guard.services = false, false, false
			n.step(Event{GuardEnded: &cluster.GuardEvent{Kind: "ended", Owner: cluster.OwnerPrimary, Epoch: epoch, Text: "crashed"}})
		}
	case 2:
		if n.guard.services {
			w.logf("service of %s exits", n.id)
			n.guard.services = false
			n.step(Event{ServiceExited: &cluster.GuardEvent{Kind: "service_exited", Owner: cluster.OwnerPrimary, Epoch: n.guard.epoch, Name: "hook"}})
		}
	case 3:
		old, start := n.snap, n.start
		w.after(time.Duration(w.rng.IntN(3000))*time.Millisecond, func() {
			if n.start == start && n.up {
				w.logf("%s sees an old view", n.id)
				n.snap = old
				n.step(Event{})
				w.publish()
			}
		})
	case 4:
		w.logf("rubbish transition")
		rec := w.store.recs[transitionKey]
		if rec != nil {
			w.store.zxid++
			rec.value, rec.mzxid = cluster.Transition{ID: "x", State: cluster.TransitionRunning, Epoch: cluster.Epoch(w.rng.IntN(4)), From: n.id, To: "hv9"}, w.store.zxid
			rec.version++
			w.publish()
		}
	case 5:
		w.wish("hv77")
	case 6:
		w.logf("foreign routerstate")
		rec := w.store.recs[cluster.Key{Kind: cluster.KeyRouterState, Node: n.id}]
		w.store.zxid++
		rec.value, rec.mzxid = []cluster.RouterState{cluster.RouterSecondary, cluster.RouterPrimary, cluster.RouterTakeover}[w.rng.IntN(3)], w.store.zxid
		rec.version++
		w.publish()
	}
}

// awaitingProof brings a cluster with require_dead_proof to where the old
// holder has gone silent without a proof and another node holds the lease.
func awaitingProof(t *testing.T, w *world) (old, taker *modelNode) {
	t.Helper()
	w.deadProof = true
	old = w.elected(t)
	old.cut = true
	old.paused = w.now.Add(time.Hour)
	for range 100 {
		w.lives(100 * time.Millisecond)
		for _, n := range w.nodes {
			if n.state.Mode == Taking && n.state.stage == stageProof {
				return old, n
			}
		}
	}
	t.Fatalf("nobody waits for the proof\n%s", w.describe())
	return nil, nil
}

func (w *world) beganWithoutProof(old *modelNode) string {
	for _, n := range w.nodes {
		if n != old && n.guard.live && n.guard.present {
			return fmt.Sprintf("%s has the addresses at epoch %d although %s is not proven dead", n.id, n.guard.epoch, old.id)
		}
	}
	return ""
}

// A taker that waits for a dead-proof and whose daemon is restarted goes on
// waiting (require_dead_proof, I1).
func TestARestartDoesNotForgetTheDeadProof(t *testing.T) {
	w := quietWorld(t, 3, 3, false)
	old, taker := awaitingProof(t, w)
	taker.kill()
	w.lives(300 * time.Millisecond)
	taker.boot()
	w.lives(5 * time.Second)
	if broken := w.beganWithoutProof(old); broken != "" {
		t.Errorf("I1: %s\n%s", broken, strings.Join(w.log[max(0, len(w.log)-12):], "\n"))
	}
}

// A taker that waits for a dead-proof and gives the role up leaves the
// obligation to the next one.
func TestAReleaseDoesNotForgetTheDeadProof(t *testing.T) {
	w := quietWorld(t, 3, 3, false)
	old, taker := awaitingProof(t, w)
	taker.step(Event{Suspended: true})
	w.lives(10 * time.Second)
	if broken := w.beganWithoutProof(old); broken != "" {
		t.Errorf("I1: %s\n%s", broken, strings.Join(w.log[max(0, len(w.log)-12):], "\n"))
	}
}

// A taker that waits for a dead-proof and is lost itself: the third node owes
// the proofs of both.
func TestAChainOfTakersOwesEveryDeadProof(t *testing.T) {
	w := quietWorld(t, 3, 3, false)
	old, taker := awaitingProof(t, w)
	taker.powerLoss()
	w.store.zxid++
	w.store.recs[cluster.Key{Kind: cluster.KeyFence, Node: taker.id}] = &znode{value: cluster.FenceRecord{
		ID: "f", Node: taker.id, Incarnation: taker.inc, Stage: cluster.FenceDone, Proof: "verified_off"}, mzxid: w.store.zxid}
	w.publish()
	w.lives(10 * time.Second)
	if broken := w.beganWithoutProof(old); broken != "" {
		t.Errorf("I1: %s\n%s", broken, strings.Join(w.log[max(0, len(w.log)-12):], "\n"))
	}
}

// Rubbish with the largest epoch there is does not start the count anew.
func TestTheLargestEpochDoesNotWrapAround(t *testing.T) {
	for _, k := range []cluster.Key{transitionKey, leaseKey} {
		w := quietWorld(t, 2, 2, false)
		w.store.zxid++
		if k == transitionKey {
			w.store.recs[k] = &znode{value: cluster.Transition{ID: "x", State: cluster.TransitionDone, Epoch: math.MaxUint64}, mzxid: w.store.zxid}
		} else {
			w.store.recs[k] = &znode{value: cluster.Lease{Version: 1, Epoch: math.MaxUint64}, mzxid: w.store.zxid}
		}
		w.publish()
		w.runUntil(w.now.Add(10 * time.Second))
		if e := w.store.lease().Epoch; e == 0 {
			t.Errorf("%v: the role was taken at epoch %d after %d: every guard that has served one refuses it for ever", k, e, uint64(math.MaxUint64))
		}
	}
}

// A candidate that aborts A while the holder's C has already happened goes on
// with the role instead of letting it run out.
func TestACandidateWhoseAbortCameTooLateGoesOn(t *testing.T) {
	c, s, now := heldByMe(t, Candidate, stageAbortA)
	c.Node, c.Incarnation = "hv2", "hv2.1"
	s.hold, s.step, s.nextID = hold{}, 9, 9
	s.transition = cluster.Transition{ID: "tr", Epoch: 7, From: "hv1", To: "hv2", ToIncarn: "hv2.1", State: cluster.TransitionRunning}
	s.trVersion, s.locked = 4, true
	handed := liveSnapshot(c, s, now)
	handed.PrimaryNode.Value = "hv2"
	handed.Lease.Value = cluster.Lease{Holder: "hv1", Incarnation: "hv1.1", Epoch: 7, TTLMillis: 2800}
	handed.Transition = cluster.Versioned[cluster.Transition]{Present: true, Value: s.transition, Version: 4, SeenAt: now}
	s, _ = Step(c, s, Input{Now: now, Snapshot: handed, Event: Event{Commit: &CommitDone{ID: 9, Result: cluster.TxnResult{Outcome: cluster.OutcomeConflict, FailedOp: 0, Err: cluster.ErrConflict}}}})
	now = now.Add(2 * time.Millisecond)
	after := liveSnapshot(c, s, now)
	after.Lease.Value = cluster.Lease{Holder: "hv2", Incarnation: "hv2.1", Epoch: 8, TTLMillis: 2800}
	after.Lease.Version = 9
	s, _ = Step(c, s, Input{Now: now, Snapshot: after})
	if s.Mode != Taking {
		t.Errorf("mode %s after C made this node the holder; nobody answers until the lease has run out", s.Mode)
	}
}

// While a primary-only service hangs in its start, an operator's switch away
// from this node is answered.
func TestAHangingServiceStartDoesNotDeafenTheHolder(t *testing.T) {
	c, s, now := heldByMe(t, Primary, stageStart)
	c.Services = []cluster.ServiceSpec{{Name: "dns", StartTimeout: 10 * time.Second}}
	s.step, s.nextID, s.svcFailed = 5, 5, "dns did not start"
	snap := liveSnapshot(c, s, now)
	snap.PrimaryNode = cluster.Versioned[string]{Value: "hv2", Present: true, Version: 3, SeenAt: now, Mzxid: 9}
	snap.Transition = cluster.Versioned[cluster.Transition]{Present: true, Version: 5, SeenAt: now, Value: cluster.Transition{
		ID: "tr", Epoch: 7, From: "hv1", To: "hv2", ToIncarn: "hv2.1", State: cluster.TransitionRunning, WishVersion: 3}}
	s, _ = Step(c, s, Input{Now: now, Snapshot: snap})
	if s.Mode != Relinquish {
		t.Errorf("mode %s: the announced switch waits for the hanging service (up to its start_timeout)", s.Mode)
	}
}

// The operator of a service that keeps failing is told once, not each 5 s in
// the cluster's history, which is bounded and forgets all else.
func TestAServiceThatKeepsFailingIsRecordedOnce(t *testing.T) {
	c, s, now := heldByMe(t, Primary, stageNone)
	c.Services = []cluster.ServiceSpec{{Name: "dns", StartTimeout: time.Second}}
	s.svcFailed, s.svcRetry = "x", now
	s.hold.deadline, s.hold.next = now.Add(time.Hour), now.Add(time.Hour)
	records := 0
	countEffects(c, s, now, 10*time.Minute, func(at cluster.Instant) *cluster.Snapshot { return liveSnapshot(c, s, at) }, func(e Effect) *Event {
		if e.Start != nil {
			return &Event{Step: &StepDone{ID: e.ID, Err: fmt.Errorf("dns: exit status 1")}}
		}
		return nil
	}, func(e Effect) {
		if e.Note != nil && e.Note.Record {
			records++
		}
	})
	if records > 10 {
		t.Errorf("%d history records of one failing service in 10 minutes", records)
	}
}

// SIGTERM whose wish for a successor meets a conflict asks again instead of
// waiting 8 s and dropping the role.
func TestAGivingUpWhoseWishMetAConflictAsksAgain(t *testing.T) {
	w := quietWorld(t, 4, 2, false)
	p := w.elected(t)
	w.lives(time.Second)
	rec := w.store.recs[wishKey]
	w.store.zxid++ // a foreign tool writes the same value once more, unseen by the holder
	rec.mzxid = w.store.zxid
	rec.version++
	began := w.now
	p.step(Event{Stop: true})
	for w.now.Sub(began) < 20*time.Second {
		w.lives(50 * time.Millisecond)
		if got := w.primaries(); len(got) == 1 && got[0] != p {
			break
		}
	}
	if took := w.now.Sub(began); took > 4*time.Second {
		t.Errorf("giving up took %v because the wish for a successor met one conflict", took)
	}
}

// A restart into a profile with a longer ttl: what the record says binds until
// the longer one is written and acknowledged (protocol §4, I1).
func TestAResumeIntoALongerTTLNeverOverlaps(t *testing.T) {
	for seed := range uint64(20) {
		w := quietWorld(t, seed, 3, true)
		p := w.elected(t)
		w.lives(time.Second)
		p.kill()
		w.timing = cluster.Timing{ // the profile pvc
			KeepaliveInterval: 5 * time.Second, CollectorDeadline: 4 * time.Second, RenewInterval: 5 * time.Second,
			RoleTTL: 15 * time.Second, Grace: time.Second, TakerMargin: 250 * time.Millisecond,
			SessionTimeout: 10 * time.Second, LockTimeout: 400 * time.Millisecond, TransitionDelay: 500 * time.Millisecond, Settle: 2 * time.Second,
		}
		w.lives(300 * time.Millisecond)
		p.boot()
		for range 40 { // cut off as soon as the resume is acknowledged
			w.lives(5 * time.Millisecond)
			if p.state.Mode.Holding() && p.guard.live && p.guard.epoch == p.state.hold.epoch {
				p.cut = true
				break
			}
		}
		w.lives(20 * time.Second)
		w.verdict(t)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
