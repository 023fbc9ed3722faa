package role

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// The failsafe in the model: nodes that promise not to take the role, a holder
// that is extended while all of them do. It follows the protocol's words, not
// package agent/failsafe, which has a model of its own.

// mutant leaves one rule out, to show that the model finds it.
type mutant string

const (
	faithful      mutant = ""
	forgetsItself mutant = "takes the role despite its promise"
	countsNobody  mutant = "does not name the coordinators in the lease"
)

// modelFailsafe is the world's part of it.
type modelFailsafe struct {
	on       bool
	breaks   mutant
	gullible bool // who could write promises all the same: I1 must not rest on that
	parted   map[[2]cluster.NodeID]bool
	extended int
}

// modelOutage is a node's part: its word, and its own question.
type modelOutage struct {
	started cluster.Instant
	epoch   cluster.Epoch // to whom its word stands, until when
	until   cluster.Instant

	asked int             // numbers the questions
	sent  cluster.Instant // of the one in flight; Never: none
	by    cluster.Instant // the next one
	of    Right
	yes   map[cluster.NodeID]bool
}

func (w *world) part(a, b *modelNode, on bool) {
	if w.failsafe.parted == nil {
		w.failsafe.parted = map[[2]cluster.NodeID]bool{}
	}
	w.failsafe.parted[[2]cluster.NodeID{a.id, b.id}], w.failsafe.parted[[2]cluster.NodeID{b.id, a.id}] = on, on
}

// join adds a coordinator to the cluster.
func (w *world) join() *modelNode {
	n := &modelNode{id: cluster.NodeID(fmt.Sprintf("hv%d", len(w.nodes)+1)), w: w}
	w.nodes = append(w.nodes, n)
	n.boot()
	return n
}

// promise is what binds the node; after a start what an earlier one may have said.
func (n *modelNode) promise() Promise {
	o, timing := &n.outage, n.w.timing
	if !n.w.failsafe.on || n.w.failsafe.breaks == forgetsItself {
		return Promise{}
	}
	if l, t := n.snap.Lease.Value, n.snap.Transition.Value; l.Epoch == o.epoch && l.Released() ||
		t.Epoch == o.epoch && l.Epoch > t.Epoch && t.Cause == cluster.CauseSwitch && t.Phase >= cluster.PhaseAddresses && l.HeldBy(t.To, t.ToIncarn) {
		o.until = cluster.Never // its holder has given the role up itself
	}
	return Promise{Until: max(o.until, o.started.Add(timing.RoleTTL+timing.TakerMargin)),
		Why: cluster.Refusal{Code: cluster.RefusePromiseStanding, Detail: "it has promised not to take the role"}}
}

// askOthers asks all coordinators when half of the term is left, and returns
// when to look again.
func (n *modelNode) askOthers() cluster.Instant {
	w, o := n.w, &n.outage
	r, holds := n.state.Right(n.snap)
	if w.failsafe.breaks == countsNobody {
		r.Coordinators = Coordinators(n.snap)
	}
	if !w.failsafe.on || !holds || r.Handing || len(r.Coordinators) == 0 {
		o.sent = cluster.Never
		return cluster.Never
	}
	_, deadline, _ := n.state.Holds()
	due := max(deadline.Add(-w.timing.RoleTerm()/2), o.by)
	if w.now < due || w.now >= deadline {
		return due
	}
	o.asked++
	o.sent, o.by, o.of, o.yes = w.now, w.now.Add(w.timing.RoleTerm()/10), r, map[cluster.NodeID]bool{n.id: true}
	n.settle()
	for _, to := range w.nodes {
		if to != n && slices.Contains(r.Coordinators, to.id) {
			id, start := o.asked, n.start
			n.send(to, func() { to.asks(n, r, id, start) })
		}
	}
	return o.by
}

// send carries a question or an answer to another node, which reads it when it runs.
func (n *modelNode) send(to *modelNode, read func()) {
	w := n.w
	var arrive func()
	arrive = func() {
		switch {
		case !to.up || w.failsafe.parted[[2]cluster.NodeID{n.id, to.id}]:
		case w.now < to.paused:
			w.after(to.paused.Sub(w.now)+time.Microsecond, arrive)
		default:
			read()
		}
	}
	if !w.lossy || w.rng.IntN(20) > 0 {
		w.after(w.latency(), arrive)
	}
}

// asks has the node answer: a refusal says nothing.
func (n *modelNode) asks(from *modelNode, r Right, id, start int) {
	w, l := n.w, n.snap.Lease
	writes := !n.cut && w.now >= w.store.stall
	switch {
	case writes && !w.failsafe.gullible, n.state.TakeUnresolved(), n.state.Mode.Holding(),
		slices.ContainsFunc(Coordinators(n.snap), func(c cluster.NodeID) bool { return !slices.Contains(r.Coordinators, c) }), l.Value.Holder != from.id, l.Value.Epoch != r.Epoch:
		return
	}
	n.outage.epoch, n.outage.until = r.Epoch, max(n.outage.until, w.now.Add(w.timing.RoleTTL+w.timing.TakerMargin))
	n.send(from, func() {
		if from.start != start || from.outage.asked != id || from.outage.sent.IsZero() {
			return
		}
		from.outage.yes[n.id] = true
		from.settle()
	})
}

// settle extends the role once everybody has promised.
func (n *modelNode) settle() {
	w, o := n.w, &n.outage
	now, holds := n.state.Right(n.snap)
	if w.failsafe.breaks == countsNobody {
		now.Coordinators = Coordinators(n.snap)
	}
	for _, id := range o.of.Coordinators {
		if !o.yes[id] {
			return
		}
	}
	sent := o.sent
	o.sent = cluster.Never
	if !holds || now.Handing || now.Epoch != o.of.Epoch || !slices.Equal(now.Coordinators, o.of.Coordinators) {
		return
	}
	until := sent.Add(w.timing.RoleTerm())
	w.failsafe.extended++
	w.logf("%s goes on until %.4f, by the others' word", n.id, float64(until)/1e9)
	n.reply(0, func() Event {
		return Event{RoleExtended: &RoleExtended{Epoch: now.Epoch, Until: until, Sent: sent}}
	})
}

// storeTrouble plants a fault that is about store and links.
func (w *world) storeTrouble() {
	lasts := time.Duration(w.rng.IntN(10_000)) * time.Millisecond
	heal := func(n *modelNode) {
		n.cut = true
		w.after(lasts+time.Duration(w.rng.IntN(4000))*time.Millisecond, func() { n.cut = false; w.publish() })
	}
	switch w.rng.IntN(6) {
	case 0, 1:
		w.logf("store stalls for %v", lasts)
		w.store.stall = w.now.Add(lasts)
	case 2, 3:
		spared := w.rng.IntN(2 * len(w.nodes)) // often nobody
		w.logf("all but %d lose the store for %v", spared, lasts)
		for i, n := range w.nodes {
			if i != spared {
				heal(n)
			}
		}
	case 4:
		a, b := w.nodes[w.rng.IntN(len(w.nodes))], w.nodes[w.rng.IntN(len(w.nodes))]
		w.logf("part %s and %s for %v", a.id, b.id, lasts)
		w.part(a, b, true)
		w.after(lasts, func() { w.part(a, b, false) })
	case 5:
		if len(w.nodes) < 5 {
			w.logf("join hv%d", len(w.nodes)+1)
			w.join()
		}
	}
}

// failsafeLife is one random life with the failsafe on.
func failsafeLife(t *testing.T, seed uint64, breaks mutant) *world {
	w := newWorld(t, seed+1<<33, 2+int(seed%3), seed%3 == 0)
	w.lossy = true
	w.failsafe.on, w.failsafe.breaks, w.failsafe.gullible = true, breaks, seed%2 == 0
	for range 12 {
		w.runUntil(w.now.Add(time.Duration(w.rng.IntN(5000)) * time.Millisecond))
		if w.rng.IntN(2) == 0 {
			w.misfortune()
		} else {
			w.storeTrouble()
		}
	}
	w.runUntil(w.now.Add(3 * time.Second))
	return w
}

// With the failsafe, too, whatever happens: never two at once, no epoch falls,
// and after all faults one primary (I1, I2, I7).
func TestRandomFaultsWithTheFailsafeNeverGiveTwoHolders(t *testing.T) {
	rounds := 1000
	if testing.Short() {
		rounds = 150
	}
	if n, err := strconv.Atoi(os.Getenv("PVC_MODEL_ROUNDS")); err == nil {
		rounds = n
	}
	extended, takes := 0, 0
	for seed := range uint64(rounds) {
		w := failsafeLife(t, seed, faithful)
		for _, line := range w.log {
			if strings.Contains(line, "committed role.take") {
				takes++
			}
		}
		w.settleDown()
		if w.failed != "" {
			w.report(seed)
		}
		extended += w.failsafe.extended
	}
	t.Logf("%d lives: extended %d times, taken %d times", rounds, extended, takes)
	if extended < rounds || takes < rounds {
		t.Errorf("extended %d and taken %d times in %d lives: the model tests too little", extended, takes, rounds)
	}
}

// Each rule is needed: without it the model finds two that act at once.
func TestEachRuleOfTheFailsafeIsNeeded(t *testing.T) {
	for _, m := range []mutant{forgetsItself, countsNobody} {
		found := false
		for seed := uint64(0); seed < 3000 && !found; seed++ {
			w := failsafeLife(t, seed, m)
			if found = w.failed != ""; found {
				t.Logf("who %s: seed %d: %s", m, seed, w.failed)
			}
		}
		if !found {
			t.Errorf("who %s is not found", m)
		}
	}
}

func failsafeWorld(t *testing.T, seed uint64, nodes int) (*world, *modelNode) {
	t.Helper()
	w := quietWorld(t, seed, nodes, seed%2 == 0)
	w.failsafe.on = true
	p := w.elected(t)
	w.lives(5*time.Second + time.Duration(w.rng.IntN(1000))*time.Millisecond)
	return w, p
}

// acts fails the test as soon as the node does not act as primary.
func (w *world) acts(t *testing.T, n *modelNode, span time.Duration) {
	t.Helper()
	for end := w.now.Add(span); w.now < end; {
		w.lives(10 * time.Millisecond)
		if !n.guard.live || !n.guard.present {
			t.Fatalf("%s does not act any more\n%s", n.id, w.describe())
		}
	}
	w.verdict(t)
}

// A store that takes no writes for 10 s moves nothing while all links between
// the coordinators are whole.
func TestAStoreStallMovesNothingWithTheFailsafe(t *testing.T) {
	for seed := range uint64(60) {
		w, p := failsafeWorld(t, seed, 2+int(seed%4))
		epoch := p.guard.epoch
		w.store.stall = w.now.Add(10 * time.Second)
		w.acts(t, p, 15*time.Second)
		if p.guard.epoch != epoch || w.failsafe.extended < 5 || p.state.Mode != Primary {
			t.Fatalf("seed %d: epoch %d, at first %d, extended %d times, mode %s", seed, p.guard.epoch, epoch, w.failsafe.extended, p.state.Mode)
		}
	}
}

// Whoever alone is cut off from the store loses the role as without the failsafe,
// though all coordinators reach it.
func TestAHolderThatAloneIsCutOffLosesTheRole(t *testing.T) {
	for seed := range uint64(60) {
		w, p := failsafeWorld(t, seed, 2+int(seed%4))
		p.cut = true
		w.lives(w.timing.RoleTerm() + 10*time.Millisecond)
		if p.guard.live {
			t.Fatalf("seed %d: %s acts %v after it was cut off\n%s", seed, p.id, w.timing.RoleTerm(), w.describe())
		}
		w.lives(1500 * time.Millisecond)
		if list := w.primaries(); len(list) != 1 || list[0] == p || w.failsafe.extended > 0 {
			t.Fatalf("seed %d: primaries %v, extended %d times\n%s", seed, list, w.failsafe.extended, w.describe())
		}
		w.verdict(t)
	}
}

// A coordinator that joins while the lease is not renewed, and that alone has the
// store, does not take the role from a holder who asks only those it knows.
func TestNoCoordinatorIsAddedWhileTheLeaseIsNotRenewed(t *testing.T) {
	w, p := failsafeWorld(t, 1, 3)
	for _, n := range w.nodes {
		n.cut = true
	}
	d := w.join()
	w.acts(t, p, 60*time.Second)
	if !slices.ContainsFunc(d.state.Refusals, func(r cluster.Refusal) bool { return r.Code == cluster.RefuseNotCounted && r.Node == p.id }) {
		t.Errorf("%s does not say why it takes nothing: %v", d.id, d.state.Refusals)
	}
	for _, n := range w.nodes {
		n.cut = false
	}
	w.publish()
	w.acts(t, p, 3*time.Second)
	if named := w.store.lease().Coordinators; !slices.Contains(named, d.id) {
		t.Errorf("the lease names %v; want %s among them once it is renewed", named, d.id)
	}
	p.powerLoss()
	for range 8 {
		w.lives(500 * time.Millisecond)
	}
	if list := w.primaries(); len(list) != 1 {
		t.Errorf("primaries %v after the loss of %s\n%s", list, p.id, w.describe())
	}
}

// What the lease may name, though its reply was lost, is asked, too.
func TestWhoAnyLostRenewalMayNameIsAsked(t *testing.T) {
	w, p := failsafeWorld(t, 2, 3)
	want := []cluster.NodeID{"hv1", "hv2", "hv3", "hv4"}
	p.state.hold.naming = Roll{Nodes: want}
	gone := *p.snap
	gone.Nodes = map[cluster.NodeID]cluster.NodeView{p.id: p.snap.Nodes[p.id]}
	if r, ok := p.state.Right(&gone); !ok || !slices.Equal(r.Coordinators, want) {
		t.Errorf("asked are %v; want all that some write may name: %v", r.Coordinators, want)
	}
	w.lives(2 * time.Second)
	if r, _ := p.state.Right(p.snap); !slices.Equal(r.Coordinators, want[:3]) {
		t.Errorf("asked are %v after the next renewals; want %v", r.Coordinators, want[:3])
	}
}

// The extension of a right that has ended, or is another's, is dropped.
func TestOnlyALiveRightIsExtended(t *testing.T) {
	far := 3 * time.Second
	cases := []struct {
		name string
		edit func(s *State, now *cluster.Instant, e *RoleExtended)
		want bool
	}{
		{"as it should be", func(*State, *cluster.Instant, *RoleExtended) {}, true},
		{"of another epoch", func(_ *State, _ *cluster.Instant, e *RoleExtended) { e.Epoch-- }, false},
		{"to an earlier end", func(s *State, _ *cluster.Instant, e *RoleExtended) { e.Until = s.hold.deadline }, false},
		{"after its end", func(s *State, now *cluster.Instant, _ *RoleExtended) { *now = s.hold.deadline }, false},
		{"of a role that is dropped", func(s *State, _ *cluster.Instant, _ *RoleExtended) { s.Mode, s.stage = Dropping, stageEnd }, false},
		{"with a hand-over that may have happened", func(s *State, _ *cluster.Instant, _ *RoleExtended) { s.hold.handing = true }, false},
		{"of what was only seen", func(s *State, _ *cluster.Instant, _ *RoleExtended) { s.hold.sent = cluster.Never }, false},
		{"of what is left to the guard", func(s *State, _ *cluster.Instant, _ *RoleExtended) { s.left = true }, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			config, s, now := heldByMe(t, Primary, stageNone)
			e := RoleExtended{Epoch: s.hold.epoch, Until: now.Add(far), Sent: now.Add(500 * time.Millisecond)}
			s.hold.next = now.Add(time.Hour)
			at := now.Add(600 * time.Millisecond)
			c.edit(&s, &at, &e)
			before := s.hold.deadline
			next, out := Step(config, s, Input{Now: at, Snapshot: liveSnapshot(config, s, now), Event: Event{RoleExtended: &e}})
			var told *cluster.RoleDeadline
			for _, effect := range out.Effects {
				if effect.Extend != nil {
					told = effect.Extend
				}
			}
			switch {
			case c.want && (told == nil || told.Deadline != e.Until || told.Sent != e.Sent || next.hold.deadline != e.Until || next.hold.sent != s.hold.sent):
				t.Errorf("the guard is told %+v, the deadline is %d; want %d, sent %d", told, next.hold.deadline, e.Until, e.Sent)
			case !c.want && (told != nil || next.hold.deadline != before):
				t.Errorf("the guard is told %+v, the deadline is %d; want %d and nothing told", told, next.hold.deadline, before)
			}
		})
	}
}

// A renewal that is acknowledged after the promises, but was sent before, takes
// nothing from what they gave; the next ones do move it on.
func TestARenewalDoesNotShortenWhatPromisesGave(t *testing.T) {
	config, s, now := heldByMe(t, Primary, stageNone)
	s.hold.write, s.hold.purpose, s.nextID = 5, forRenewal, 9
	until := now.Add(3500 * time.Millisecond)
	s, _ = Step(config, s, Input{Now: now.Add(time.Second), Snapshot: liveSnapshot(config, s, now), Event: Event{RoleExtended: &RoleExtended{Epoch: 7, Until: until, Sent: now.Add(time.Second)}}})
	sent := now.Add(900 * time.Millisecond)
	s, _ = Step(config, s, Input{Now: now.Add(1100 * time.Millisecond), Snapshot: liveSnapshot(config, s, now),
		Event: Event{Commit: &CommitDone{ID: 5, Result: cluster.TxnResult{Outcome: cluster.OutcomeOK, SentAt: sent, Versions: []int32{8}, FailedOp: -1}}}})
	if s.hold.deadline != until || s.hold.sent != sent {
		t.Errorf("deadline %d, sent %d; want %d, %d", s.hold.deadline, s.hold.sent, until, sent)
	}
}

// vacant is a cluster whose holder hv9 has been silent for a minute, as hv1 sees it.
func vacant(now cluster.Instant) *cluster.Snapshot {
	c, s := Config{Node: "hv9", Incarnation: "hv9.1"}, State{hold: hold{epoch: 6, version: 6}}
	snap := liveSnapshot(c, s, now.Add(-time.Minute))
	snap.Lease.Mzxid, snap.ObservedAt = 60, now
	snap.Nodes = map[cluster.NodeID]cluster.NodeView{"hv1": {
		Name: "hv1", Mode: cluster.Versioned[cluster.Mode]{Value: cluster.Coordinator, Present: true},
		Daemon: cluster.Versioned[cluster.DaemonState]{Value: cluster.DaemonRun, Present: true},
		Alive:  cluster.Versioned[cluster.Alive]{Value: cluster.Alive{Incarnation: "hv1.1"}, Present: true},
	}}
	return snap
}

// takeSent is a state from which a take has just been asked for, and that take.
func takeSent(t *testing.T) (Config, State, cluster.Instant, ID) {
	t.Helper()
	config, s, now := heldByMe(t, Contending, stageFresh)
	s.hold, s.step, s.nextID = hold{}, 9, 9
	s, out := Step(config, s, Input{Now: now, Snapshot: vacant(now), Event: Event{Refresh: &RefreshDone{ID: 9, Snapshot: vacant(now)}}})
	for _, e := range out.Effects {
		if e.Commit != nil && e.Commit.Txn.Purpose == "role.take" {
			return config, s, now, e.ID
		}
	}
	t.Fatalf("no take is asked for: mode %s, refusals %v", s.Mode, s.Refusals)
	return config, s, now, 0
}

// A take is unresolved from the step that asks for it until its end is known; one
// whose reply was lost until the lease has moved on.
func TestATakeIsUnresolvedUntilItsEndIsKnown(t *testing.T) {
	config, s, now, id := takeSent(t)
	if !s.TakeUnresolved() {
		t.Fatal("a take that has just been asked for counts as resolved")
	}
	done := func(o cluster.Outcome) State {
		next, _ := Step(config, s, Input{Now: now, Snapshot: vacant(now), Event: Event{Commit: &CommitDone{ID: id, Result: cluster.TxnResult{
			Outcome: o, SentAt: now, FailedOp: -1, Versions: []int32{7, 1, 0, 1, 1}}}}})
		return next
	}
	for _, o := range []cluster.Outcome{cluster.OutcomeOK, cluster.OutcomeConflict, cluster.OutcomeNotSent, cluster.OutcomeRefused} {
		if next := done(o); next.TakeUnresolved() {
			t.Errorf("after %s the take counts as unresolved", o)
		}
	}
	lost := done(cluster.OutcomeUnknown)
	for range 3 { // whatever happens, while the lease is what it was
		lost, _ = Step(config, lost, Input{Now: now.Add(time.Second), Snapshot: vacant(now), Event: Event{Refresh: &RefreshDone{ID: lost.step, Snapshot: vacant(now)}}})
	}
	if !lost.TakeUnresolved() {
		t.Error("a take whose reply was lost counts as resolved though nothing was written since")
	}
	moved := vacant(now)
	moved.Lease.Mzxid, moved.Lease.Version = 61, 7
	if next, _ := Step(config, lost, Input{Now: now.Add(time.Second), Snapshot: moved}); next.TakeUnresolved() {
		t.Error("the lease was written since, and the lost take counts as unresolved")
	}
}

// A promise is looked at before the take and again before phase D; Resume needs
// no leave.
func TestAPromiseBindsTheTakeAndPhaseD(t *testing.T) {
	config, s, now, id := takeSent(t)
	stands := Promise{Until: now.Add(2 * time.Second), Why: cluster.Refusal{Code: cluster.RefusePromiseStanding, Detail: "it was promised"}}
	before := s
	before.Mode, before.stage, before.step = Contending, stageFresh, 9
	next, out := Step(config, before, Input{Now: now, Snapshot: vacant(now), Promise: stands, Event: Event{Refresh: &RefreshDone{ID: 9, Snapshot: vacant(now)}}})
	if _, taking := did(out)["role.take"]; taking || next.Mode != Idle || len(next.Refusals) == 0 || next.Refusals[0].Code != cluster.RefusePromiseStanding {
		t.Errorf("asked for %v in mode %s, refusals %v; want nothing, and why", did(out), next.Mode, next.Refusals)
	}
	acked := Event{Commit: &CommitDone{ID: id, Result: cluster.TxnResult{Outcome: cluster.OutcomeOK, SentAt: now, FailedOp: -1, Versions: []int32{7, 1, 0, 1, 1}}}}
	held, out := Step(config, s, Input{Now: now, Snapshot: vacant(now), Promise: stands, Event: acked})
	if did(out)["raise"] != nil || held.stage != stagePromise || out.Wake.IsZero() || out.Wake.After(stands.Until) || held.Leads() {
		t.Errorf("asked for %v at stage %d, wake %d; want no raise before %d", did(out), held.stage, out.Wake, stands.Until)
	}
	if _, out = Step(config, held, Input{Now: stands.Until, Snapshot: vacant(now), Promise: stands}); did(out)["raise"] == nil {
		t.Errorf("asked for %v once the promise is over; want raise", did(out))
	}
	resuming := s
	resuming.Mode, resuming.stage = Resuming, stageResume
	if _, out = Step(config, resuming, Input{Now: now, Snapshot: vacant(now), Promise: stands, Event: acked}); did(out)["raise"] == nil {
		t.Errorf("a resume asks for %v; want raise whatever was promised", did(out))
	}
}

// The end of the node's own right drops a role that is held, and nothing else.
func TestTheEndOfTheNodesRightDropsTheRole(t *testing.T) {
	config, s, now := heldByMe(t, Primary, stageNone)
	next, out := Step(config, s, Input{Now: now, Snapshot: liveSnapshot(config, s, now), Event: Event{NodeEnded: "cut off"}})
	ended := slices.ContainsFunc(out.Effects, func(e Effect) bool { return e.End != nil && e.End.Epoch == s.hold.epoch })
	if !ended || next.Mode != Dropping {
		t.Errorf("mode %s, effects %+v; want the role to be ended", next.Mode, out.Effects)
	}
	idle := State{Mode: Idle, started: true}
	if next, out = Step(config, idle, Input{Now: now, Snapshot: liveSnapshot(config, s, now), Event: Event{NodeEnded: "cut off"}}); next.Mode != Idle || len(out.Effects) > 0 {
		t.Errorf("mode %s, effects %+v of a node without the role", next.Mode, out.Effects)
	}
}
