package agent

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/failsafe"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// handClock is set by hand.
type handClock struct{ now cluster.Instant }

func (c *handClock) Now() cluster.Instant { return c.now }

// oneStore answers each commit as it is told to, after meanwhile.
type oneStore struct {
	Store
	outcome   cluster.Outcome
	meanwhile func()
}

func (s *oneStore) Commit(context.Context, cluster.Txn) cluster.TxnResult {
	if s.meanwhile != nil {
		s.meanwhile()
	}
	return cluster.TxnResult{Outcome: s.outcome}
}

// nobody are peers that are never asked.
type nobody struct{ Peers }

func (nobody) Handle(string, func(context.Context, cluster.NodeID, []byte) ([]byte, error)) {}

// newGiver is an outage whose decider is stepped by the test: hv2, which has
// seen hv1 hold the role at epoch 5 and is past the quiet after its start.
func newGiver(t *testing.T) (*outage, *handClock) {
	t.Helper()
	clock := &handClock{cluster.Instant(time.Hour)}
	c := Config{Node: "hv2", NodeUUID: "id of hv2", Incarnation: "hv2.1", Timing: cluster.ProfileLAN(), LongestTTL: cluster.ProfileLAN().RoleTTL, Failsafe: true}
	d := Deps{Clock: clock, Log: zap.NewNop(), Peers: nobody{}}
	dec := newDecider(role.Config{Node: c.Node, Timing: c.Timing}, clock, d.Log, func() int64 { return 0 })
	dec.snap = &cluster.Snapshot{
		Lease: cluster.Versioned[cluster.Lease]{Present: true, Value: cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "hv1.1", Epoch: 5, TTLMillis: 2800}},
		Nodes: map[cluster.NodeID]cluster.NodeView{"hv1": {}, "hv2": {}, "hv3": {}, "hv9": {Mode: cluster.Versioned[cluster.Mode]{Value: cluster.Hypervisor, Present: true}}},
	}
	keep, err := NewKeepalive(KeepaliveConfig{Node: c.Node, Interval: c.Timing.KeepaliveInterval, Clock: clock,
		Publish: func(context.Context, []cluster.Op) cluster.TxnResult { return cluster.TxnResult{} }})
	if err != nil {
		t.Fatal(err)
	}
	o, err := newOutage(c, d, dec, keep, watchWrites(&oneStore{}, clock))
	if err != nil {
		t.Fatal(err)
	}
	dec.outage = o
	clock.now = clock.now.Add(time.Minute)
	return o, clock
}

func question(right failsafe.Right, from cluster.NodeID, epoch cluster.Epoch) failsafe.Question {
	return failsafe.Question{
		ID: failsafe.QuestionID{Incarnation: "hv1.1", Right: right, N: 1}, From: from, Epoch: epoch, TTL: 2800 * time.Millisecond,
		Members: failsafe.Members{Nodes: []cluster.NodeID{"hv1", "hv2", "hv3"}},
	}
}

// What this node says binds it from the same instant on.
func TestAPromiseBindsFromTheInstantItIsGiven(t *testing.T) {
	o, clock := newGiver(t)
	if p := o.promise(clock.now); !p.Until.IsZero() {
		t.Fatalf("bound until %d before anything was promised: %v", p.Until, p.Why)
	}
	if a := o.answer(question(failsafe.RightRole, "hv1", 5)); a.Promise != 2800*time.Millisecond {
		t.Fatalf("answered %+v, want a promise of 2.8 s", a)
	}
	p := o.promise(clock.now)
	if want := clock.now.Add(2900 * time.Millisecond); p.Until != want || p.Why.Code != cluster.RefusePromiseStanding {
		t.Errorf("bound until %d by %v; want %d, L + M from now", p.Until, p.Why, want)
	}
	clock.now = p.Until
	if p = o.promise(clock.now); !p.Until.IsZero() {
		t.Errorf("bound until %d at the promise's end", p.Until)
	}
}

// Each fact that the agent knows stands against a promise.
func TestWhatStandsAgainstAPromise(t *testing.T) {
	cases := []struct {
		name string
		edit func(o *outage, q *failsafe.Question)
		want cluster.RefusalCode
	}{
		{"another holder was seen", func(o *outage, _ *failsafe.Question) { o.dec.snap.Lease.Value.Holder = "hv3" }, cluster.RefuseOtherHolder},
		{"a larger epoch was seen", func(o *outage, _ *failsafe.Question) { o.epoch = 6 }, cluster.RefuseOtherHolder},
		{"the lease cannot be read", func(o *outage, _ *failsafe.Question) { o.dec.snap.Lease.Err = errors.New("rubbish") }, cluster.RefuseOtherHolder},
		{"nothing was seen yet", func(o *outage, _ *failsafe.Question) { o.dec.snap = &cluster.Snapshot{} }, cluster.RefuseOtherMembers},
		{"another coordinator is known here", func(o *outage, _ *failsafe.Question) { o.dec.snap.Nodes["hv4"] = cluster.NodeView{} }, cluster.RefuseOtherMembers},
		{"another host of this name is meant", func(_ *outage, q *failsafe.Question) {
			q.Members.IDs = map[cluster.NodeID]string{"hv2": "id of another"}
		}, cluster.RefuseOtherMembers},
		{"nothing, but the asker knows one more", func(_ *outage, q *failsafe.Question) { q.Members.Nodes = append(q.Members.Nodes, "hv4") }, ""},
		{"a write was just acknowledged", func(o *outage, _ *failsafe.Question) {
			o.dec.snap.Live = true
			o.own.Store = &oneStore{outcome: cluster.OutcomeOK}
			o.own.Commit(t.Context(), cluster.Txn{})
		}, cluster.RefuseStoreWrites},
		{"whether the store takes writes is not known", func(o *outage, _ *failsafe.Question) { o.dec.snap.Live = true }, cluster.RefuseStoreUnknown},
		{"a fence of the asker stands", func(o *outage, q *failsafe.Question) {
			*q = question(failsafe.RightWork, "hv1", 0)
			o.dec.snap.Nodes["hv1"] = cluster.NodeView{Fence: cluster.Versioned[cluster.FenceRecord]{Present: true, Value: cluster.FenceRecord{Stage: cluster.FenceClaimed}}}
		}, cluster.RefuseFenceClaimed},
		{"a fence record of the asker cannot be read", func(o *outage, q *failsafe.Question) {
			*q = question(failsafe.RightWork, "hv1", 0)
			o.dec.snap.Nodes["hv1"] = cluster.NodeView{Fence: cluster.Versioned[cluster.FenceRecord]{Present: true, Err: errors.New("rubbish")}}
		}, cluster.RefuseFenceClaimed},
		{"a claim of this node's own is in flight", func(o *outage, q *failsafe.Question) {
			*q = question(failsafe.RightWork, "hv1", 0)
			o.claim = func() []cluster.NodeID { return []cluster.NodeID{"hv1"} }
		}, cluster.RefuseFenceClaimed},
		{"nothing", func(*outage, *failsafe.Question) {}, ""},
		{"nothing, for work", func(_ *outage, q *failsafe.Question) { *q = question(failsafe.RightWork, "hv1", 0) }, ""},
		{"nothing but an ended fence", func(o *outage, q *failsafe.Question) {
			*q = question(failsafe.RightWork, "hv1", 0)
			o.dec.snap.Nodes["hv1"] = cluster.NodeView{Fence: cluster.Versioned[cluster.FenceRecord]{Present: true, Value: cluster.FenceRecord{Stage: cluster.FenceDone}}}
		}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o, clock := newGiver(t)
			q := question(failsafe.RightRole, "hv1", 5)
			c.edit(o, &q)
			a := o.answer(q)
			if a.Code != c.want || (a.Promise > 0) != (c.want == "") {
				t.Errorf("answered %+v, want code %q", a, c.want)
			}
			if bound := !o.promise(clock.now).Until.IsZero(); bound != (c.want == "" && q.ID.Right == failsafe.RightRole) {
				t.Errorf("bound: %v", bound)
			}
		})
	}
}

// A holder that hands the role over itself, or releases it, has stopped before
// it writes that: what it was promised has no object any more.
func TestAPromiseEndsWithTheHoldersOwnGivingUp(t *testing.T) {
	switched := cluster.Transition{Cause: cluster.CauseSwitch, Epoch: 5, From: "hv1", To: "hv2", ToIncarn: "hv2.1", Phase: cluster.PhaseAddresses, State: cluster.TransitionRunning}
	taken := switched
	taken.Cause, taken.Epoch = cluster.CauseExpired, 6
	early := switched
	early.Phase = cluster.PhaseStop
	mine := cluster.Lease{Holder: "hv2", Incarnation: "hv2.1", Epoch: 6}
	cases := []struct {
		name  string
		lease cluster.Lease
		tr    cluster.Transition
		freed bool
	}{
		{"handed over", mine, switched, true},
		{"released", cluster.Lease{Epoch: 5}, cluster.Transition{}, true},
		{"released by an earlier holder", cluster.Lease{Epoch: 4}, cluster.Transition{}, false},
		{"taken", mine, taken, false},
		{"the record is not seen yet", mine, early, false},
		{"the lease is not seen yet", cluster.Lease{Holder: "hv1", Incarnation: "hv1.1", Epoch: 5}, switched, false},
		{"resumed since", cluster.Lease{Holder: "hv2", Incarnation: "hv2.2", Epoch: 7}, switched, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o, clock := newGiver(t)
			o.answer(question(failsafe.RightRole, "hv1", 5))
			o.dec.snap.Lease.Value = c.lease
			o.dec.snap.Transition = cluster.Versioned[cluster.Transition]{Present: true, Value: c.tr}
			if p := o.promise(clock.now); p.Until.IsZero() != c.freed {
				t.Errorf("bound until %d by %v, want freed: %v", p.Until, p.Why, c.freed)
			}
		})
	}
}

// While the store's answer is out a write counts as under way; what the servers
// have answered, be it no, shows that the store takes writes.
func TestOwnWritesTellHowTheStoreFares(t *testing.T) {
	clock := &handClock{1000}
	for outcome, answered := range map[cluster.Outcome]bool{
		cluster.OutcomeOK: true, cluster.OutcomeConflict: true, cluster.OutcomeRefused: true, cluster.OutcomeNotSent: false, cluster.OutcomeUnknown: false,
	} {
		store := &oneStore{outcome: outcome}
		w := watchWrites(store, clock)
		sent := clock.now
		store.meanwhile = func() {
			if _, pending := w.now(); pending != sent {
				t.Errorf("%s: oldest write under way sent at %d, want %d", outcome, pending, sent)
			}
			clock.now += 500
		}
		w.Commit(t.Context(), cluster.Txn{})
		acked, pending := w.now()
		if !pending.IsZero() || (acked == clock.now) != answered {
			t.Errorf("%s: answered at %d (now %d), under way since %d", outcome, acked, clock.now, pending)
		}
	}
}

// A question that is not whose it says, or is for another right, is refused and
// binds nobody; so is what cannot be read.
func TestAQuestionOfSomebodyElseBindsNobody(t *testing.T) {
	o, clock := newGiver(t)
	for name, c := range map[string]struct {
		from  cluster.NodeID
		right failsafe.Right
		q     failsafe.Question
		raw   string
	}{
		"another's name": {"hv3", failsafe.RightRole, question(failsafe.RightRole, "hv1", 5), ""},
		"another right":  {"hv1", failsafe.RightWork, question(failsafe.RightRole, "hv1", 5), ""},
		"rubbish":        {"hv1", failsafe.RightRole, failsafe.Question{}, "{"},
	} {
		body, _ := json.Marshal(c.q)
		if c.raw != "" {
			body = []byte(c.raw)
		}
		_, err := o.handler(c.right)(t.Context(), c.from, body)
		if !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
	if p := o.promise(clock.now); !p.Until.IsZero() {
		t.Errorf("bound until %d", p.Until)
	}
}

// Whoever was asked is who answers, whatever the answer says; none is a refusal.
func TestAnAnswerIsTheAskedNodes(t *testing.T) {
	q := question(failsafe.RightRole, "hv1", 5)
	if a := heard(q, "hv2", []byte(`{"from":"hv3","promise_ns":5}`), nil); a.From != "hv2" || a.Promise != 5 {
		t.Errorf("heard %+v", a)
	}
	for _, a := range []failsafe.Answer{heard(q, "hv2", []byte("{"), nil), heard(q, "hv2", nil, errors.New("no route"))} {
		if a.From != "hv2" || a.ID != q.ID || a.Code != cluster.RefuseNoAnswer || a.Promise != 0 {
			t.Errorf("heard %+v, want no answer", a)
		}
	}
}

// recordingGuard keeps what the executor tells of the node's own deadline.
type recordingGuard struct {
	Guard
	live  bool // the node's own deadline is held
	calls []string
	until []cluster.Instant
}

func (g *recordingGuard) note(call string, d cluster.RoleDeadline) {
	g.calls, g.until = append(g.calls, call+" "+string(d.Owner)), append(g.until, d.Deadline)
}

func (g *recordingGuard) Begin(_ context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := t.Check(); err != nil {
		return err
	}
	g.note("begin", d)
	g.live = g.live || d.Owner == cluster.OwnerNode
	return nil
}

func (g *recordingGuard) Extend(_ context.Context, _ cluster.Token, d cluster.RoleDeadline) error {
	g.note("extend", d)
	if d.Owner == cluster.OwnerNode && !g.live {
		return cluster.ErrDeadline
	}
	return nil
}

func (g *recordingGuard) End(_ context.Context, o cluster.DeadlineOwner, _ cluster.Epoch) error {
	g.calls = append(g.calls, "end "+string(o))
	return nil
}

func (g *recordingGuard) Present(context.Context, cluster.Token, cluster.Epoch, []cluster.FloatingAddress) error {
	return nil
}

// raises has the executor hold the role's right and raise it.
func raises(t *testing.T, x *executor, d cluster.RoleDeadline) error {
	x.right.Store(x.rights.Hold(t.Context(), d))
	return x.raise(t.Context(), x.token(), d)
}

// inTime makes tokens at the beginning of time.
func inTime() rights { return activity.New(activity.Config{Self: "hv1", Clock: &handClock{}}) }

// The node's own deadline begins before the role, is begun where it is not held,
// and never moves back.
func TestTheNodesOwnDeadlineAtTheGuard(t *testing.T) {
	g := &recordingGuard{}
	x := newExecutor(Config{Timing: cluster.ProfileLAN()}, Deps{Guard: g, Store: &oneStore{}, Clock: &handClock{}, Log: zap.NewNop()}, func(role.Event) {})
	x.rights = inTime()
	node := func(until cluster.Instant) cluster.RoleDeadline {
		return cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: nodeEpoch, Deadline: until}
	}
	x.nodeDeadline = func(context.Context) (cluster.RoleDeadline, error) { return node(100), nil }
	if err := raises(t, x, cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 5, Deadline: 90}); err != nil {
		t.Fatal(err)
	}
	for _, until := range []cluster.Instant{200, 150, 300} {
		if err := x.tellNode(t.Context(), node(until)); err != nil {
			t.Fatal(err)
		}
	}
	g.live = false
	if err := x.linger(t.Context(), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 5, Deadline: 900}); err != nil {
		t.Fatal(err)
	}
	want := []string{"begin node", "begin primary", "extend node", "extend node", "extend node", "begin node", "extend primary"}
	if !slices.Equal(g.calls, want) {
		t.Errorf("the guard was told %v, want %v", g.calls, want)
	}
	if got, want := g.until[2:6], []cluster.Instant{200, 300, 900, 900}; !slices.Equal(got, want) {
		t.Errorf("the node's deadline moved %v, want %v", got, want)
	}
}

// The long deadline of a shutdown in maintenance rests on a write that was sent
// before a question which was answered meanwhile: it reaches the guard all the
// same, and nothing older shortens it (I9).
func TestALongDeadlineReachesTheGuardAfterAPromise(t *testing.T) {
	g := &recordingGuard{live: true}
	x := newExecutor(Config{Timing: cluster.ProfileLAN()}, Deps{Guard: g, Store: &oneStore{}, Clock: &handClock{}, Log: zap.NewNop()}, func(role.Event) {})
	x.rights = inTime()
	role := func(sent, until cluster.Instant) cluster.RoleDeadline {
		return cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 5, Sent: sent, Deadline: until}
	}
	for _, d := range []cluster.RoleDeadline{role(100, 350), role(120, 370), role(110, 6110), role(120, 370), role(100, 350), role(105, 355)} {
		if err := x.tell(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if want := []cluster.Instant{350, 370, 6110}; !slices.Equal(g.until, want) {
		t.Errorf("the guard was told %v, want %v", g.until, want)
	}
	if err := x.tell(t.Context(), role(130, 380)); err != nil || g.until[len(g.until)-1] != 380 {
		t.Errorf("%v, told %v; want a younger deadline to shorten it", err, g.until)
	}
}

// slowGuard takes its time with the addresses.
type slowGuard struct {
	recordingGuard
	presenting, proceed chan struct{}
	extended            []cluster.Instant
	fails               error
}

func (g *slowGuard) Present(context.Context, cluster.Token, cluster.Epoch, []cluster.FloatingAddress) error {
	close(g.presenting)
	<-g.proceed
	return nil
}

func (g *slowGuard) Extend(_ context.Context, _ cluster.Token, d cluster.RoleDeadline) error {
	g.extended = append(g.extended, d.Deadline)
	return g.fails
}

// A renewal that is acknowledged while the addresses come moves the deadline at
// once; before the role has begun the guard has no use for it. That it is not
// taken ends nothing: the raise itself tells.
func TestARenewalReachesTheGuardDuringTheRaise(t *testing.T) {
	g := &slowGuard{presenting: make(chan struct{}), proceed: make(chan struct{})}
	ended := 0
	x := newExecutor(Config{Timing: cluster.ProfileLAN()}, Deps{Guard: g, Store: &oneStore{}, Clock: &handClock{}, Log: zap.NewNop()}, func(e role.Event) {
		if e.GuardEnded != nil {
			ended++
		}
	})
	x.rights = inTime()
	x.nodeDeadline = func(context.Context) (cluster.RoleDeadline, error) {
		return cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: nodeEpoch, Deadline: 100}, nil
	}
	role := func(until cluster.Instant) cluster.RoleDeadline {
		return cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 5, Sent: until - 50, Deadline: until}
	}
	x.extend(t.Context(), role(80), cluster.Never)
	done := make(chan error, 1)
	go func() { done <- raises(t, x, role(90)) }()
	<-g.presenting
	x.extend(t.Context(), role(110), cluster.Never)
	g.fails = cluster.ErrDeadline
	x.extend(t.Context(), role(120), cluster.Never)
	if want := []cluster.Instant{110, 120}; !slices.Equal(g.extended, want) || ended > 0 {
		t.Errorf("during the raise the guard was told %v, want %v; %d ends posted", g.extended, want, ended)
	}
	close(g.proceed)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if x.extend(t.Context(), role(130), cluster.Never); ended != 1 {
		t.Errorf("a deadline that is not taken of a role that is up posts %d ends, want 1", ended)
	}
}

// A role that is taken right after a reconnect does not end with the old right
// of its node, which it never rested on; once the right has begun it does.
func TestTheNodesRightBeginsWithAFreshKeepalive(t *testing.T) {
	o, clock := newGiver(t)
	var moved []cluster.Instant
	var told []string
	o.move = func(d cluster.RoleDeadline) { moved = append(moved, d.Deadline) }
	o.tell = func(n role.Note) { told = append(told, n.Kind) }
	o.peers = nil // nobody to ask
	acked := func(at cluster.Instant) { o.keep.status.Acked = at }
	acked(clock.now.Add(-2 * o.c.Timing.StopAfter()))
	o.dec.state.Mode = role.Contending
	o.followWork(t.Context(), nil)
	o.dec.state.Mode = role.Relinquish // any in which the role is held and nothing is asked for
	o.followWork(t.Context(), nil)
	if len(told) > 0 || len(moved) > 0 || !o.busy.Load() {
		t.Fatalf("told %v, moved to %v, busy %v before a keepalive was acknowledged", told, moved, o.busy.Load())
	}
	acked(clock.now)
	o.followWork(t.Context(), nil)
	if want := []cluster.Instant{clock.now.Add(o.c.Timing.StopAfter())}; !slices.Equal(moved, want) || len(told) > 0 {
		t.Fatalf("moved to %v, want %v; told %v", moved, want, told)
	}
	clock.now = clock.now.Add(o.c.Timing.StopAfter())
	o.c.WallMS = func() int64 { return 0 }
	o.dec.exec = newExecutor(o.c, Deps{Store: &oneStore{}, Clock: clock, Log: zap.NewNop()}, func(role.Event) {})
	o.dec.exec.guard, o.dec.exec.sweeper = &recordingGuard{}, noSweep{}
	o.followWork(t.Context(), nil)
	o.dec.exec.wait()
	if !slices.Equal(told, []string{"self_fence"}) {
		t.Errorf("told %v at the right's end, want self_fence", told)
	}
}

type noSweep struct{ Sweeper }

func (noSweep) Sweep(context.Context) error { return nil }

// Where no keepalive is acknowledged the role does not begin.
func TestNoRoleBeginsWithoutTheNodesRight(t *testing.T) {
	g := &recordingGuard{}
	x := newExecutor(Config{Timing: cluster.ProfileLAN()}, Deps{Guard: g, Store: &oneStore{}, Clock: &handClock{}, Log: zap.NewNop()}, func(role.Event) {})
	x.rights = inTime()
	x.nodeDeadline = func(context.Context) (cluster.RoleDeadline, error) {
		return cluster.RoleDeadline{}, cluster.ErrDeadline
	}
	if err := raises(t, x, cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 5, Deadline: 90}); !errors.Is(err, cluster.ErrDeadline) || len(g.calls) > 0 {
		t.Errorf("%v, told %v; want nothing told", err, g.calls)
	}
}

// The longest role_ttl ever used here outlives restarts with a shorter one.
func TestTheStateFolderKeepsTheLongestTTL(t *testing.T) {
	dir := t.TempDir()
	use := func(ttl, want time.Duration) {
		t.Helper()
		f, err := OpenStateFolder(dir, "hv1")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := f.UseTTL(ttl)
		if err != nil || got != want {
			t.Errorf("UseTTL(%v) = %v, %v; want %v", ttl, got, err, want)
		}
	}
	use(2800*time.Millisecond, 2800*time.Millisecond)
	use(15*time.Second, 15*time.Second)
	use(2800*time.Millisecond, 15*time.Second)
	raw, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err != nil || !strings.Contains(string(raw), `"longest_ttl_ms":15000`) {
		t.Errorf("node.json: %s, %v", raw, err)
	}
}

// An agent that talks directly does not start without that memory.
func TestPeersNeedTheLongestTTL(t *testing.T) {
	_, err := newOutage(Config{Timing: cluster.ProfileLAN(), LongestTTL: time.Second}, Deps{Peers: nobody{}, Clock: &handClock{}}, nil, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "UseTTL") {
		t.Errorf("error %v, want one that names UseTTL", err)
	}
}

// Whoever wants to fence a node that was promised that none is claimed gets no
// leave until that has ended, from a decider that has ended never.
func TestAPromisedNodeIsNotFenced(t *testing.T) {
	o, clock := newGiver(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case call := <-o.dec.calls:
				call(context.Background())
			case <-o.dec.done:
				return
			}
		}
	}()
	o.answer(question(failsafe.RightWork, "hv1", 0))
	for n, want := range map[cluster.NodeID]cluster.RefusalCode{"hv1": cluster.RefusePromiseStanding, "hv3": ""} {
		if r := o.dec.mayFence(n); r.Code != want {
			t.Errorf("%s: %v, want code %q", n, r, want)
		}
	}
	a := Agent{dec: o.dec}
	if until := a.Promised("hv1"); until != clock.now.Add(2900*time.Millisecond) {
		t.Errorf("promised until %d, want L + M from %d", until, clock.now)
	}
	clock.now = clock.now.Add(2900 * time.Millisecond)
	if r := o.dec.mayFence("hv1"); r.Code != "" {
		t.Errorf("hv1, after the promise: %v", r)
	}
	close(o.dec.done)
	<-ended
	if r := o.dec.mayFence("hv1"); r.Code != cluster.RefuseNotRunning {
		t.Errorf("after the decider's end: %v", r)
	}
	if until := a.Promised("hv1"); until != cluster.Forever {
		t.Errorf("after the decider's end promised until %d, want no end known", until)
	}
}
