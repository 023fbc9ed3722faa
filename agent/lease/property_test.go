package lease

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// life drives one granter with random inputs, legal and not, and a disk that
// answers late, twice, and with errors.
type life struct {
	t       *testing.T
	rng     *rand.Rand
	g       Granter
	now     cluster.Instant
	ticket  uint64
	asked   map[uint64]bool
	writes  []Effect
	held    *Record // what the disk says
	granted int
}

func (l *life) step(in Input) {
	before, given := l.g, in
	next, effects := l.g.Step(in, l.now)
	if !reflect.DeepEqual(before, l.g) || !reflect.DeepEqual(given, in) {
		l.t.Fatalf("a step edited its input: %+v", in)
	}
	again, _ := before.Step(given, l.now)
	if !reflect.DeepEqual(again, next) {
		l.t.Fatalf("the same step twice gave two states: %+v and %+v", again, next)
	}
	l.g = next
	rank := 0
	for _, e := range effects {
		l.effect(e)
		if in.Kind == InputRequest { // the order is binding
			r := map[EffectKind]int{EffectServe: 1, EffectRevoke: 1, EffectArm: 2, EffectPersist: 3, EffectReply: 4}[e.Kind]
			if r < rank && e.Kind != EffectServe && e.Kind != EffectRevoke {
				l.t.Fatalf("effect %d after a later one in %+v", e.Kind, effects)
			}
			rank = r
		}
	}
	if n := l.g.View(l.now); n.Left < 0 || n.Left > cluster.MaxNodeLeaseWait {
		l.t.Fatalf("the view says %s is left", n.Left)
	}
}

func (l *life) effect(e Effect) {
	switch e.Kind {
	case EffectReply:
		if !l.asked[e.Ticket] {
			l.t.Fatalf("ticket %d has two answers", e.Ticket)
		}
		delete(l.asked, e.Ticket)
		if _, err := cluster.EncodeNodeLeaseAnswer(e.Answer); err != nil && e.Answer.N != 0 {
			l.t.Fatalf("the answer %+v cannot be sent: %v", e.Answer, err)
		}
		if e.Answer.Code == "" && e.Answer.Left > 0 {
			l.granted++
			if l.held == nil || !l.held.Held || l.held.Clean || l.held.Holder != l.g.holder {
				l.t.Fatalf("granted to %s while the disk says %+v", l.g.holder, l.held)
			}
		}
	case EffectPersist, EffectRemove:
		l.writes = append(l.writes, e)
		if _, err := EncodeRecord(e.Record); err != nil {
			l.t.Fatal(err)
		}
		if raw, _ := EncodeRecord(e.Record); true {
			if back, err := DecodeRecord(raw); err != nil || back != e.Record {
				l.t.Fatalf("%+v comes back as %+v: %v", e.Record, back, err)
			}
		}
	}
}

func (l *life) disk() {
	if len(l.writes) == 0 {
		return
	}
	e := l.writes[0]
	l.writes = l.writes[1:]
	in := Input{Kind: InputPersisted, Seq: e.Seq}
	if l.rng.IntN(5) == 0 {
		in.Failed = "no space"
		l.held = nil // not known
	} else {
		l.held = &e.Record
	}
	l.step(in)
}

func (l *life) input() Input {
	ids := []cluster.NodeLeaseID{{Holder: "a", Start: "1", Epoch: 5}, {Holder: "a", Start: "2", Epoch: 5}, {Holder: "b", Start: "1", Epoch: 6}, {Holder: "a", Start: "3", Epoch: 7}, {}}
	switch k := l.rng.IntN(40); {
	case k < 24:
		l.ticket++
		l.asked[l.ticket] = true
		id := ids[min(l.rng.IntN(5), l.rng.IntN(5))]
		in := Input{Kind: InputRequest, Ticket: l.ticket, Member: l.rng.IntN(20) > 0, From: id.Holder, Request: cluster.NodeLeaseRequest{
			Op: []cluster.NodeLeaseOp{cluster.LeaseGrant, cluster.LeaseExtend, cluster.LeaseAbolish, "dance"}[min(3, l.rng.IntN(10)/3)], ID: id, N: uint64(l.rng.IntN(3)) + l.ticket/2}}
		return in
	case k < 30:
		return Input{Kind: InputTimer}
	case k < 36:
		return Input{Kind: InputWorkGone, Seq: l.g.revoke + uint64(l.rng.IntN(20)/18)}
	case k < 37:
		return Input{Kind: InputPersisted, Seq: uint64(l.rng.IntN(5))}
	case k == 38 && l.rng.IntN(30) == 0:
		return Input{Kind: InputStop}
	case k == 39 && l.rng.IntN(30) == 0:
		return Input{Kind: InputLeave}
	}
	return Input{Kind: []InputKind{0, 99, InputStart}[l.rng.IntN(3)]}
}

// Whatever comes, in whatever order: no panic, no step edits its input, each
// question has one answer, and nothing is granted that is not on the disk.
func TestGranterWhateverComes(t *testing.T) {
	granted := 0
	for seed := range uint64(400) {
		l := &life{t: t, rng: rand.New(rand.NewPCG(seed, 3)), now: began, asked: map[uint64]bool{},
			g: NewGranter(NewGranterConfig("n", "life", cluster.ProfileLAN()))}
		l.step(Input{Kind: InputStart})
		for range 300 {
			l.now = l.now.Add(time.Duration(l.rng.Int64N(int64(time.Second))))
			in := l.input()
			if in.Kind == InputPersisted { // a word of the disk that is none
				in.Seq = 0
			}
			l.step(in)
			if l.rng.IntN(3) > 0 {
				l.disk()
			}
		}
		for len(l.writes) > 0 {
			l.disk()
		}
		if len(l.asked) != 0 {
			t.Fatalf("seed %d: questions %v have no answer", seed, l.asked)
		}
		granted += l.granted
	}
	if granted < 1000 {
		t.Errorf("only %d grants: this says little", granted)
	}
}

// The ledger says at each instant what the quorum language says, and the end
// that it foretells is the first instant at which the condition fails.
func TestLedgerAgreesWithTheQuorum(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	names := []cluster.NodeID{"a", "b", "c", "d", "e"}
	some := func() []cluster.NodeID {
		var list []cluster.NodeID
		for range rng.IntN(7) {
			list = append(list, names[rng.IntN(5)])
		}
		return list
	}
	var quorum func(depth int) cluster.Quorum
	quorum = func(depth int) cluster.Quorum {
		switch rng.IntN(6) {
		case 0:
			return cluster.Follower()
		case 1:
			return cluster.All(some()...)
		case 2, 3:
			return cluster.Majority(some()...)
		case 4:
			if depth < 3 {
				var list []cluster.Quorum
				for range rng.IntN(3) {
					list = append(list, quorum(depth+1))
				}
				return cluster.Each(list...)
			}
		}
		return cluster.Quorum{}
	}
	for range 3000 {
		l := NewLedger()
		for _, n := range names {
			l.Set(n, cluster.Instant(rng.IntN(8)))
		}
		q, set, self := quorum(0), some(), names[rng.IntN(5)]
		for now := cluster.Instant(0); now < 9; now++ {
			until, ok := l.Satisfied(q, self, set, now)
			if want := q.Satisfied(self, l.Held(now), set); ok != want {
				t.Fatalf("%s of %v at %d: %t, with %v held", q, set, now, ok, l.Held(now))
			}
			if ok && (q.Satisfied(self, l.Held(until), set) || !q.Satisfied(self, l.Held(until-1), set)) {
				t.Fatalf("%s of %v at %d lasts until %d, it says: %v are held before and %v then", q, set, now, until, l.Held(until-1), l.Held(until))
			}
			if blame := l.Missing(q, self, set, now); !ok && len(blame) == 0 && (q.Kind == cluster.QuorumFollower || len(q.Nodes) > 0) {
				t.Fatalf("%s does not hold, and nobody is missing", q)
			}
		}
	}
}

// S157: five nodes, a majority: two leases may go, the third names itself.
func TestMajorityOfFive(t *testing.T) {
	set := []cluster.NodeID{"a", "b", "c", "d", "e"}
	l := NewLedger()
	for i, n := range set {
		l.Set(n, began.Add(time.Duration(i+1)*time.Second))
	}
	if until, ok := l.Satisfied(cluster.Majority(), "a", set, began); !ok || until != began.Add(3*time.Second) {
		t.Errorf("it holds (%t) until %s after the beginning", ok, until.Sub(began))
	}
	l.Set("e", cluster.Never)
	l.Set("d", cluster.Never)
	if until, ok := l.Satisfied(cluster.Majority(), "a", set, began); !ok || until != began.Add(time.Second) {
		t.Errorf("without two it holds (%t) until %s after the beginning", ok, until.Sub(began))
	}
	if next := l.NextExpiry(began.Add(time.Second)); next != began.Add(2*time.Second) {
		t.Errorf("the next end is %s after the beginning", next.Sub(began))
	}
	l.Set("c", cluster.Never)
	if _, ok := l.Satisfied(cluster.Majority(), "a", set, began); ok {
		t.Error("two of five are a majority")
	}
	if got := l.Missing(cluster.Majority(), "a", set, began); !reflect.DeepEqual(got, []cluster.NodeID{"c", "d", "e"}) {
		t.Errorf("missing are %v", got)
	}
	l.Clear()
	var none *Ledger
	for _, ledger := range []*Ledger{l, none} {
		if _, ok := ledger.Satisfied(cluster.All(), "a", nil, began); ok || ledger.Held(began) != nil || !ledger.NextExpiry(began).IsZero() {
			t.Error("an empty ledger, and an empty set, satisfy something")
		}
	}
}

func TestRoundTrips(t *testing.T) {
	var r RoundTrips
	if r.Quantile(0.5) != 0 {
		t.Error("nothing was measured, and yet")
	}
	for i := range 20000 {
		d := 300 * time.Microsecond
		if i%50 == 0 {
			d = 40 * time.Millisecond
		}
		r.Add(d)
	}
	r.Add(-time.Second)
	r.Add(time.Hour)
	near := func(got, want time.Duration) bool { return got >= want && got <= want*5/4 }
	if m := r.Quantile(0.5); !near(m, 300*time.Microsecond) {
		t.Errorf("the median of 300 µs is %s", m)
	}
	if m := r.Quantile(0.99); !near(m, 40*time.Millisecond) {
		t.Errorf("the 99th percentile of 40 ms is %s", m)
	}
	if n, _ := r.Count(); n != 20002 {
		t.Errorf("%d were added", n)
	}
	last := time.Duration(0)
	for i := range r.counts {
		if b := roundTripBound(i); b <= last || roundTripBucket(b-time.Microsecond) != i {
			t.Errorf("bucket %d ends at %s after %s, which lies in %d", i, b, last, roundTripBucket(b-time.Microsecond))
		} else {
			last = b
		}
	}
}

// Every profile's grace covers clocks that are both wrong by 5 %, one each way:
// 2·d·period ≤ grace (see the package's comment).
func TestGraceCoversTheClocks(t *testing.T) {
	const d = 1 - 0.95/1.05
	for _, name := range []string{cluster.TimingLAN, cluster.TimingFast, cluster.TimingPVC} {
		timing, err := cluster.Profile(name)
		if err != nil {
			t.Fatal(err)
		}
		if need := time.Duration(2 * d * float64(timing.NodeLeasePeriod)); timing.NodeLeaseGrace < need {
			t.Errorf("%s: a grace of %s is less than %s", name, timing.NodeLeaseGrace, need)
		}
	}
}

// An order is checked against the clock, not against the state alone: the timer
// of a process that was stopped comes late, and orders may come first.
func TestAnOrderIsCheckedAgainstTheClock(t *testing.T) {
	t.Parallel()
	c := NewGranterConfig("n", "start", cluster.ProfileLAN())
	id := cluster.NodeLeaseID{Holder: "a", Start: "s", Epoch: 3}
	began := cluster.Instant(time.Hour)
	g, _ := NewGranter(c).Step(Input{Kind: InputStart}, began)
	g, _ = g.Step(Input{Kind: InputRequest, Ticket: 1, From: "a", Member: true, Request: cluster.NodeLeaseRequest{Op: cluster.LeaseGrant, ID: id, N: 1}}, began)
	g, _ = g.Step(Input{Kind: InputPersisted, Seq: 1}, began)
	for after, want := range map[time.Duration]cluster.RefusalCode{0: "", c.Period - 1: "", c.Period: cluster.RefuseLeaseLost, time.Minute: cluster.RefuseLeaseLost} {
		if r := g.Check(id, began.Add(after)); r.Code != want {
			t.Errorf("%s after the grant: %q (%s), want %q", after, r.Code, r.Detail, want)
		}
	}
}

// A file that cannot be read may have promised the longest period that was ever
// in use here, not this start's.
func TestAnUnreadableFileMayHavePromisedTheLongestPeriod(t *testing.T) {
	t.Parallel()
	c := NewGranterConfig("n", "start", cluster.ProfileLAN())
	for longest, want := range map[time.Duration]time.Duration{0: c.Period, c.Period / 2: c.Period, 3 * c.Period: 3 * c.Period} {
		c.LongestPeriod = longest
		g, _ := NewGranter(c).Step(Input{Kind: InputStart, Found: Found{Kind: FoundUnreadable, Detail: "rubbish"}}, 1)
		if v := g.View(1); v.State != StateActive || !v.Holder.IsZero() || v.Left != want {
			t.Errorf("with %s as the longest: %s, %s, %s left; want %s", longest, v.State, v.Holder, v.Left, want)
		}
	}
}

// The end of an earlier lease's work that is told twice, or late, lets nobody in
// while the work of the present one is being ended.
func TestALateEndOfEarlierWorkLetsNobodyIn(t *testing.T) {
	t.Parallel()
	a, b := cluster.NodeLeaseID{Holder: "a", Start: "s", Epoch: 3}, cluster.NodeLeaseID{Holder: "b", Start: "s", Epoch: 4}
	g, now := NewGranter(NewGranterConfig("n", "start", cluster.ProfileLAN())), cluster.Instant(time.Hour)
	revoked, seq := []uint64(nil), uint64(0)
	step := func(in Input) (code cluster.RefusalCode) {
		var out []Effect
		g, out = g.Step(in, now)
		for _, e := range out {
			switch e.Kind {
			case EffectRevoke:
				revoked = append(revoked, e.Seq)
			case EffectPersist:
				seq = e.Seq
			case EffectReply:
				code = e.Answer.Code
			}
		}
		return code
	}
	ask := func(id cluster.NodeLeaseID, n uint64) cluster.RefusalCode {
		return step(Input{Kind: InputRequest, Ticket: n, From: id.Holder, Member: true, Request: cluster.NodeLeaseRequest{Op: cluster.LeaseGrant, ID: id, N: n}})
	}
	step(Input{Kind: InputStart})
	for i := range uint64(2) {
		ask(a, i+1)
		step(Input{Kind: InputPersisted, Seq: seq})
		now = now.Add(time.Minute)
		step(Input{Kind: InputTimer})
		if i == 0 {
			step(Input{Kind: InputWorkGone, Seq: revoked[0]})
			step(Input{Kind: InputPersisted, Seq: seq})
		}
	}
	step(Input{Kind: InputWorkGone, Seq: revoked[0]})
	if code, state := ask(b, 9), g.View(now).State; state != StateExpiring || code != cluster.RefuseLeaseAcquired {
		t.Errorf("the first lease's end was told once more while the second's work lives: %s, b is told %q", state, code)
	}
	step(Input{Kind: InputWorkGone, Seq: revoked[len(revoked)-1]})
	ask(b, 10)
	step(Input{Kind: InputPersisted, Seq: seq})
	if v := g.View(now); v.State != StateActive || v.Holder != b {
		t.Errorf("nothing lives any more, and b is not served: %s, %s", v.State, v.Holder)
	}
}
