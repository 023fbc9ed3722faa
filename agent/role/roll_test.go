package role

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

type ids = map[cluster.NodeID]string

// put writes a record that no node of the model writes itself.
func (w *world) put(k cluster.Key, value any) {
	w.store.zxid++
	w.store.recs[k] = &znode{value: value, mzxid: w.store.zxid}
	w.publish()
}

func (w *world) recall(n *modelNode) {
	w.put(cluster.Key{Kind: cluster.KeyNodeRecord, Node: n.id}, cluster.NodeRecord{Incarnation: n.inc})
}

// vouch is an operator's order to take his word that the start has no power.
func (w *world) vouch(n cluster.NodeID, inc cluster.Incarnation) {
	w.put(cluster.Key{Kind: cluster.KeyFenceOrder, Node: n}, cluster.FenceOrder{Node: n, Incarnation: inc, Action: cluster.OrderConfirm, Reason: "seen without power"})
}

// says reports whether the node refuses to be counted, and tells what to type.
func (n *modelNode) says(t *testing.T, about cluster.NodeID) {
	t.Helper()
	if !slices.ContainsFunc(n.state.Refusals, func(r cluster.Refusal) bool {
		return r.Code == cluster.RefuseNotCounted && r.Node == about && strings.Contains(r.Detail, "`pvc fence confirm "+string(about)+" --reason")
	}) {
		t.Errorf("%s does not say why it takes nothing, or what to do: %v", n.id, n.state.Refusals)
	}
}

// nobody fails the test as soon as anybody acts as primary.
func (w *world) nobody(t *testing.T, span time.Duration) {
	t.Helper()
	for end := w.now.Add(span); w.now < end; {
		w.lives(50 * time.Millisecond)
		if list := w.primaries(); len(list) > 0 {
			t.Fatalf("%s is primary\n%s", list[0].id, w.describe())
		}
	}
	w.verdict(t)
}

// None of those whom the last lease names comes back. A newcomer takes nothing,
// until an operator vouches for the death of the start that held it: no other.
func TestALeaseThatNamesNobodyWhoIsLeftEndsByAnOperatorsWord(t *testing.T) {
	w, p := failsafeWorld(t, 3, 3)
	inc := p.inc
	for _, n := range w.nodes {
		n.cut = true
	}
	d := w.join()
	w.acts(t, p, 10*time.Second)
	for _, n := range w.nodes {
		if n != d {
			n.powerLoss()
		}
	}
	w.recall(p)
	w.nobody(t, 100*time.Second)
	d.says(t, p.id)
	w.vouch(p.id, inc+"0")
	w.nobody(t, 10*time.Second)
	w.vouch("hv2", inc)
	w.nobody(t, 10*time.Second)
	w.vouch(p.id, inc)
	w.lives(5 * time.Second)
	if list := w.primaries(); len(list) != 1 || list[0] != d {
		t.Errorf("primaries %v after the operator's word, want %s\n%s", list, d.id, w.describe())
	}
	w.verdict(t)
}

// The operator's word makes nobody take a lease that has not expired.
func TestAnOperatorsWordDoesNotShortenALease(t *testing.T) {
	w, p := failsafeWorld(t, 4, 3)
	w.vouch(p.id, p.inc)
	w.acts(t, p, 20*time.Second)
}

// The lease is lost while its holder goes on by the others' word. A newcomer, who
// cannot know, takes nothing, however long; once the holder is vouched to be dead
// it does.
func TestALostLeaseIsNotTakenBesideAHolderWhoGoesOn(t *testing.T) {
	for name, lose := range map[string]func(w *world){
		"absent":     func(w *world) { delete(w.store.recs, leaseKey); w.store.zxid++; w.publish() },
		"before all": func(w *world) { delete(w.store.recs, leaseKey) },
	} {
		t.Run(name, func(t *testing.T) {
			w, p := failsafeWorld(t, 5, 3)
			w.recall(p)
			for _, n := range w.nodes {
				n.cut = true
			}
			if name == "before all" {
				lose(w)
			}
			d := w.join()
			w.lives(time.Second)
			lose(w)
			w.acts(t, p, 3*leaseAbsentWait)
			d.says(t, p.id)
			for _, n := range w.nodes {
				if n != d {
					n.powerLoss()
				}
			}
			w.nobody(t, 2*leaseAbsentWait)
			w.vouch(p.id, p.inc)
			w.lives(5 * time.Second)
			if list := w.primaries(); len(list) != 1 || list[0] != d {
				t.Errorf("primaries %v after the operator's word, want %s\n%s", list, d.id, w.describe())
			}
			w.verdict(t)
		})
	}
}

// A lost lease: its holder, if it lives, drops the role, and after a minute one of
// those that it counted takes it, no operator needed.
func TestALostLeaseIsMadeAnewByThoseItCounted(t *testing.T) {
	for _, lives := range []bool{true, false} {
		w, p := failsafeWorld(t, 6, 3)
		w.recall(p)
		delete(w.store.recs, leaseKey)
		w.store.zxid++
		w.publish()
		if !lives {
			p.powerLoss()
		}
		w.lives(10 * time.Second)
		if p.guard.live {
			t.Errorf("%s acts without a lease", p.id)
		}
		w.nobody(t, leaseAbsentWait-11*time.Second)
		w.lives(5 * time.Second)
		if list := w.primaries(); len(list) != 1 {
			t.Errorf("the holder lives: %v; primaries %v, want one\n%s", lives, list, w.describe())
		}
		w.verdict(t)
	}
}

// A node that does not know whether a lost lease counted it goes by the word of
// the last holder, as far as the hand-over's record names one.
func TestWhoDoesNotKnowALostLeaseGoesByTheLastHolder(t *testing.T) {
	const wait = leaseAbsentWait + time.Minute
	secondary := func(at time.Duration) func(*cluster.Snapshot, cluster.Instant) {
		return func(snap *cluster.Snapshot, now cluster.Instant) {
			view := snap.Nodes["hv9"]
			view.Router = cluster.Versioned[cluster.RouterState]{Present: true, Value: cluster.RouterSecondary, SeenAt: now.Add(-at)}
			snap.Nodes["hv9"] = view
		}
	}
	cases := map[string]struct {
		edit func(*cluster.Snapshot, cluster.Instant)
		off  bool // the failsafe is
		take bool
		word bool // the take fails if the operator takes his word back
		says string
	}{
		"it is primary still":           {edit: func(*cluster.Snapshot, cluster.Instant) {}, says: "pvc fence confirm hv9"},
		"it is secondary for long":      {edit: secondary(wait), take: true},
		"it has just become secondary":  {edit: secondary(time.Second), says: "hv9, is secondary"},
		"the failsafe is off":           {edit: func(*cluster.Snapshot, cluster.Instant) {}, off: true, take: true},
		"nobody knows the last":         {edit: func(s *cluster.Snapshot, _ cluster.Instant) { s.Transition = cluster.Versioned[cluster.Transition]{} }, says: "pvc cluster init"},
		"the switch to it was not done": {edit: func(s *cluster.Snapshot, _ cluster.Instant) { s.Transition.Value.Phase = cluster.PhaseStop }, says: "pvc fence confirm hv8"},
		"the switch to it was aborted":  {edit: func(s *cluster.Snapshot, _ cluster.Instant) { s.Transition.Value.State = cluster.TransitionAborted }, says: "pvc fence confirm hv8"},
		"another start is vouched for":  {edit: func(s *cluster.Snapshot, _ cluster.Instant) { vouchIn(s, "hv9", "hv9.0", "cancel") }, says: "pvc fence confirm hv9"},
		"its death is vouched for":      {edit: func(s *cluster.Snapshot, _ cluster.Instant) { vouchIn(s, "hv9", "hv9.1", cluster.OrderConfirm) }, take: true, word: true},
		"another host has its name": {edit: func(s *cluster.Snapshot, now cluster.Instant) {
			secondary(wait)(s, now)
			s.Transition.Value.ToHost = "Z"
			vouchIn(s, "hv9", "hv9.1", cluster.OrderConfirm)
		}, says: "the host Z by the name hv9"},
		"its death was ordered, not seen": {edit: func(s *cluster.Snapshot, _ cluster.Instant) { vouchIn(s, "hv9", "hv9.1", cluster.OrderFence) }, says: "pvc fence confirm hv9"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			config, s, now := heldByMe(t, Contending, stageFresh)
			config.Failsafe = !c.off
			s.hold, s.step, s.nextID = hold{}, 9, 9
			s.absentAt = now.Add(-wait)
			snap := vacant(now)
			snap.Lease = cluster.Versioned[cluster.Lease]{}
			snap.Nodes["hv9"] = cluster.NodeView{Name: "hv9", Record: cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{Incarnation: "hv9.1"}},
				Router: cluster.Versioned[cluster.RouterState]{Present: true, Value: cluster.RouterPrimary, SeenAt: now.Add(-wait)}}
			snap.Transition = cluster.Versioned[cluster.Transition]{Present: true, Value: cluster.Transition{
				ID: "6", From: "hv8", To: "hv9", Cause: cluster.CauseSwitch, State: cluster.TransitionDone, Phase: cluster.PhaseDone}}
			c.edit(snap, now)
			s, out := Step(config, s, Input{Now: now, Snapshot: snap, Event: Event{Refresh: &RefreshDone{ID: 9, Snapshot: snap}}})
			_, took := did(out)["role.take"]
			if took != c.take {
				t.Errorf("takes: %v, want %v; refusals %v", took, c.take, s.Refusals)
			}
			if rests := restsOnWord(out, "hv9"); rests != c.word {
				t.Errorf("the take rests on the operator's word: %v, want %v", rests, c.word)
			}
			if c.says != "" && !slices.ContainsFunc(s.Refusals, func(r cluster.Refusal) bool {
				return r.Code == cluster.RefuseNotCounted && strings.Contains(r.Detail, c.says)
			}) {
				t.Errorf("refusals %v, want one that says %q", s.Refusals, c.says)
			}
		})
	}
}

// restsOnWord reports whether the take checks that the order about the node still
// stands as it was read.
func restsOnWord(out Output, n cluster.NodeID) bool {
	for _, e := range out.Effects {
		if e.Commit != nil && e.Commit.Txn.Purpose == "role.take" {
			return slices.Contains(e.Commit.Txn.Ops, cluster.Check(cluster.Key{Kind: cluster.KeyFenceOrder, Node: n}, 0))
		}
	}
	return false
}

func vouchIn(snap *cluster.Snapshot, n cluster.NodeID, inc cluster.Incarnation, action string) {
	view := snap.Nodes[n]
	view.Order = cluster.Versioned[cluster.FenceOrder]{Present: true, Value: cluster.FenceOrder{Node: n, Incarnation: inc, Action: action, Reason: "seen"}}
	snap.Nodes[n] = view
}

// The lease tells two hosts of one name apart: only the one that it means is
// counted, and resumes what it held. A lease without ids, of an older version,
// goes by names.
func TestALeaseMeansHosts(t *testing.T) {
	cases := map[string]struct {
		holder cluster.NodeID
		named  []cluster.NodeID
		ids    ids
		take   bool
	}{
		"counted":                      {"hv9", []cluster.NodeID{"hv1", "hv9"}, ids{"hv1": "A", "hv9": "Z"}, true},
		"another host of this name":    {"hv9", []cluster.NodeID{"hv1", "hv9"}, ids{"hv1": "B", "hv9": "Z"}, false},
		"this host was not known":      {"hv9", []cluster.NodeID{"hv1", "hv9"}, ids{"hv9": "Z"}, false},
		"by an older version":          {"hv9", []cluster.NodeID{"hv1", "hv9"}, nil, true},
		"without the failsafe":         {"hv9", nil, ids{"hv9": "Z"}, true},
		"held by this name's other":    {"hv1", []cluster.NodeID{"hv1", "hv9"}, ids{"hv1": "B", "hv9": "Z"}, false},
		"the same, without failsafe":   {"hv1", nil, ids{"hv1": "B"}, true}, // its lease has run out
		"another is counted, not this": {"hv9", []cluster.NodeID{"hv2", "hv9"}, ids{"hv2": "B", "hv9": "Z"}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			config, s, now := heldByMe(t, Contending, stageFresh)
			config.Failsafe, config.ID = true, "A"
			s.hold, s.step, s.nextID = hold{}, 9, 9
			snap := vacant(now)
			snap.Lease.Value.Holder, snap.Lease.Value.Coordinators, snap.Lease.Value.IDs = c.holder, c.named, c.ids
			s, out := Step(config, s, Input{Now: now, Snapshot: snap, Event: Event{Refresh: &RefreshDone{ID: 9, Snapshot: snap}}})
			if _, took := did(out)["role.take"]; took != c.take {
				t.Errorf("takes: %v, want %v; refusals %v", took, c.take, s.Refusals)
			}
		})
	}
}

func TestOnlyTheHostThatIsMeantResumes(t *testing.T) {
	for id, resumes := range map[string]bool{"A": true, "B": false, "": true} {
		config, s, now := heldByMe(t, Idle, stageNone)
		config.ID = "A"
		s.hold, s.started = hold{epoch: 7, version: 7}, false
		snap := liveSnapshot(config, s, now)
		snap.Lease.Value.Incarnation = "hv1.0"
		if id != "" {
			snap.Lease.Value.IDs = ids{"hv1": id}
		}
		s, out := Step(config, s, Input{Now: now, Snapshot: snap})
		if _, asked := did(out)["role.resume"]; asked != resumes || (s.Mode == Resuming) != resumes {
			t.Errorf("a lease of the host %q: resumes %v in mode %s, want %v", id, asked, s.Mode, resumes)
		}
	}
}

// What a holder writes names itself, whatever a namesake has put into its record,
// and all coordinators where the failsafe is on; a release names nobody.
func TestALeaseNamesTheHostsItsHolderKnows(t *testing.T) {
	config, s, now := heldByMe(t, Primary, stageNone)
	config.ID = "A"
	snap := liveSnapshot(config, s, now)
	for n, id := range map[cluster.NodeID]string{"hv1": "B", "hv2": "C", "hv3": ""} {
		view := snap.Nodes[n]
		view.Mode.Value, view.Record = cluster.Coordinator, cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{ID: id}}
		snap.Nodes[n] = view
	}
	for on, want := range map[bool]ids{true: {"hv1": "A", "hv2": "C"}, false: {"hv1": "A"}} {
		config.Failsafe = on
		m := machine{c: config, s: s, in: Input{Now: now, Snapshot: snap}}
		l := m.mine()
		if !maps.Equal(l.IDs, want) || (len(l.Coordinators) == 3) != on {
			t.Errorf("failsafe %v: the lease names %v, %v; want %v", on, l.Coordinators, l.IDs, want)
		}
		over := m.naming(cluster.Lease{Holder: "hv2"})
		want = maps.Clone(want)
		if want["hv2"] = "C"; !on {
			delete(want, "hv1")
		}
		if !maps.Equal(over.IDs, want) {
			t.Errorf("failsafe %v: a lease that is handed over names %v, want %v", on, over.IDs, want)
		}
	}
}

// Where writes of which any may stand name two hosts by one name, no one's word
// is enough.
func TestTwoHostsOfOneNameInTheLeasesUnderWay(t *testing.T) {
	one := Roll{[]cluster.NodeID{"hv1", "hv2"}, ids{"hv1": "A", "hv2": "B"}}
	other := Roll{[]cluster.NodeID{"hv1", "hv2", "hv3"}, ids{"hv1": "A", "hv2": "C", "hv3": "D"}}
	all := one.and(other)
	if want := (ids{"hv1": "A", "hv2": SeveralHosts, "hv3": "D"}); !maps.Equal(all.IDs, want) || len(all.Nodes) != 3 {
		t.Errorf("together %v, want %v", all, want)
	}
	if one.IDs["hv2"] != "B" || other.IDs["hv2"] != "C" {
		t.Errorf("what was merged was edited: %v, %v", one, other)
	}
	config, s, now := heldByMe(t, Primary, stageNone)
	s.hold.named, s.hold.naming = one, other
	if r, ok := s.Right(liveSnapshot(config, s, now)); !ok || r.IDs["hv2"] != SeveralHosts {
		t.Errorf("the right rests on %v", r.IDs)
	}
}

// A renewal that is acknowledged while the addresses come is passed on at once.
func TestARenewalDuringTheRaiseMovesTheDeadline(t *testing.T) {
	for _, st := range []stage{stageRaise, stageAnchor} {
		config, s, now := heldByMe(t, Taking, st)
		s.hold.raised, s.hold.write, s.hold.purpose, s.step, s.nextID = false, 5, forRenewal, 6, 9
		sent := now.Add(500 * time.Millisecond)
		next, out := Step(config, s, Input{Now: sent, Snapshot: liveSnapshot(config, s, now),
			Event: Event{Commit: &CommitDone{ID: 5, Result: cluster.TxnResult{Outcome: cluster.OutcomeOK, SentAt: sent, Versions: []int32{8}, FailedOp: -1}}}})
		told := slices.ContainsFunc(out.Effects, func(e Effect) bool { return e.Extend != nil && e.Extend.Deadline == sent.Add(2500*time.Millisecond) })
		if told != (st == stageRaise) || next.hold.raised {
			t.Errorf("stage %d: told %v, raised %v; effects %+v", st, told, next.hold.raised, out.Effects)
		}
	}
}

// Two that are the same are nearly all there are: a step costs no memory for them.
func TestTwoRollsTogether(t *testing.T) {
	nodes := func(list ...cluster.NodeID) []cluster.NodeID { return list }
	ids := func(pairs ...string) map[cluster.NodeID]string {
		m := map[cluster.NodeID]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[cluster.NodeID(pairs[i])] = pairs[i+1]
		}
		return m
	}
	for name, c := range map[string]struct{ a, b, want Roll }{
		"the same":           {Roll{nodes("a", "b"), ids("a", "1")}, Roll{nodes("a", "b"), ids("a", "1")}, Roll{nodes("a", "b"), ids("a", "1")}},
		"none":               {Roll{}, Roll{}, Roll{}},
		"the same, unsorted": {Roll{nodes("b", "a", "b"), nil}, Roll{nodes("b", "a", "b"), nil}, Roll{nodes("a", "b"), nil}},
		"one more":           {Roll{nodes("a", "b"), nil}, Roll{nodes("c", "b"), nil}, Roll{nodes("a", "b", "c"), nil}},
		"another host":       {Roll{nodes("a"), ids("a", "1")}, Roll{nodes("a"), ids("a", "2")}, Roll{nodes("a"), ids("a", SeveralHosts)}},
		"one without a host": {Roll{nodes("a"), ids("a", "1")}, Roll{nodes("a"), nil}, Roll{nodes("a"), ids("a", "1")}},
	} {
		got := c.a.and(c.b)
		if !slices.Equal(got.Nodes, c.want.Nodes) || !maps.Equal(got.IDs, c.want.IDs) {
			t.Errorf("%s: %+v, not %+v", name, got, c.want)
		}
	}
	same := Roll{nodes("a", "b", "c"), ids("a", "1", "b", "2", "c", "3")}
	other := Roll{slices.Clone(same.Nodes), maps.Clone(same.IDs)}
	roomy := append(make([]cluster.NodeID, 0, 8), same.Nodes...)
	if _ = append((Roll{roomy, same.IDs}).and(other).Nodes, "z"); roomy[:4][3] != "" {
		t.Error("what is added to the whole is written into a part")
	}
	if n := testing.AllocsPerRun(100, func() { _ = same.and(other) }); n != 0 {
		t.Errorf("%.0f allocations for two that are the same", n)
	}
}
