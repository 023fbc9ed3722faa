package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/lease"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// granterRig is one node's granter in a bubble, with a disk and a follower that
// do what the test wants.
type granterRig struct {
	t    *testing.T
	g    *granting
	base time.Time
	end  func()
	n    uint64

	mu       sync.Mutex
	found    lease.Found
	writes   int
	broken   error         // what each write fails with
	stuck    chan struct{} // writes wait for it
	living   chan struct{} // what counts on the node's lease being its own is dead once it is closed; nil: nothing does
	revokes  int
	unending error // what each revocation fails with
	invited  []cluster.NodeID
	handlers map[string]func(context.Context, cluster.NodeID, []byte) ([]byte, error)
	follower LeaseFollower // nil: the rig
}

func (r *granterRig) Now() cluster.Instant {
	return cluster.Instant(time.Hour) + cluster.Instant(time.Since(r.base))
}

func (r *granterRig) Read() lease.Found { r.mu.Lock(); defer r.mu.Unlock(); return r.found }

func (r *granterRig) change(to lease.Found) error {
	r.mu.Lock()
	stuck := r.stuck
	r.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes++
	if r.broken == nil {
		r.found = to
	}
	return r.broken
}

func (r *granterRig) Write(to lease.Record) error {
	return r.change(lease.Found{Kind: lease.FoundRecord, Record: to})
}
func (r *granterRig) Remove() error { return r.change(lease.Found{}) }

func (r *granterRig) Serve(cluster.NodeLeaseID) func(context.Context) error {
	return func(ctx context.Context) error {
		r.mu.Lock()
		living := r.living
		r.mu.Unlock()
		if living == nil {
			return nil
		}
		select {
		case <-living:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("a drain of its own: %w", context.Cause(ctx))
		}
	}
}
func (r *granterRig) Revoke(context.Context, cluster.NodeLeaseID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revokes++
	return r.unending
}

func (r *granterRig) Ask(_ context.Context, n cluster.NodeID, kind string, _ []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if kind == cluster.NodeLeaseFree {
		r.invited = append(r.invited, n)
	}
	return nil, nil
}
func (r *granterRig) Handle(kind string, fn func(context.Context, cluster.NodeID, []byte) ([]byte, error)) {
	r.handlers[kind] = fn
}
func (r *granterRig) Probes() map[cluster.NodeID]cluster.ProbeAnswer { return nil }
func (r *granterRig) Watch(map[cluster.NodeID]string)                {}

// set changes what the rig's disk and follower do.
func (r *granterRig) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// begin starts the node's daemon anew.
func (r *granterRig) begin() {
	r.handlers = map[string]func(context.Context, cluster.NodeID, []byte) ([]byte, error){}
	c := Config{Node: "n", Mode: cluster.Coordinator, Incarnation: cluster.Incarnation(fmt.Sprint("start ", r.base)), Timing: cluster.ProfileLAN(), NodeLeases: true}
	d := Deps{Clock: r, Log: zap.NewNop(), Peers: r, LeaseFile: r, LeaseFollower: cmp.Or(r.follower, LeaseFollower(r))}
	snap := &cluster.Snapshot{Complete: true, Live: true, ObservedAt: 1, Nodes: map[cluster.NodeID]cluster.NodeView{}}
	for _, n := range []cluster.NodeID{"a", "b", "n"} {
		snap.Nodes[n] = cluster.NodeView{Name: n, Record: cluster.Versioned[cluster.NodeRecord]{Present: true}}
	}
	snap.Nodes["hyper"] = cluster.NodeView{Name: "hyper", Mode: cluster.Versioned[cluster.Mode]{Present: true, Value: cluster.Hypervisor}, Record: cluster.Versioned[cluster.NodeRecord]{Present: true}}
	r.g = newGranting(c, d, func() *cluster.Snapshot { return snap })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.g.run(ctx) }()
	r.end = func() { cancel(); <-done }
}

// ask puts a question as a peer does, within a second.
func (r *granterRig) ask(from cluster.NodeID, op cluster.NodeLeaseOp, epoch cluster.Epoch) (cluster.NodeLeaseAnswer, error) {
	r.t.Helper()
	r.n++
	body, err := cluster.EncodeNodeLeaseRequest(cluster.NodeLeaseRequest{Op: op, ID: cluster.NodeLeaseID{Holder: from, Start: "s", Epoch: epoch}, N: r.n})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	raw, err := r.handlers[cluster.NodeLeaseQuestion](ctx, from, body)
	if err != nil {
		return cluster.NodeLeaseAnswer{}, err
	}
	a, err := cluster.DecodeNodeLeaseAnswer(raw)
	if err != nil {
		r.t.Fatal(err)
	}
	return a, nil
}

// want asks and expects that answer; an empty code is yes.
func (r *granterRig) want(from cluster.NodeID, op cluster.NodeLeaseOp, epoch cluster.Epoch, code cluster.RefusalCode) cluster.NodeLeaseAnswer {
	r.t.Helper()
	a, err := r.ask(from, op, epoch)
	if err != nil || a.Code != code {
		r.t.Fatalf("%s of %s: %q (%s), %v; want %q", op, from, a.Code, a.Detail, err, code)
	}
	return a
}

func granterTest(t *testing.T, fn func(r *granterRig)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &granterRig{t: t, base: time.Now()}
		r.begin()
		defer func() { r.end() }()
		fn(r)
	})
}

// Who asks must be who its certificate says, and a coordinator of this cluster;
// renewals write nothing.
func TestANodeServesOnlyMembers(t *testing.T) {
	granterTest(t, func(r *granterRig) {
		r.want("stranger", cluster.LeaseGrant, 1, cluster.RefuseLeaseMember)
		r.want("hyper", cluster.LeaseGrant, 1, cluster.RefuseLeaseMember)
		r.want("a", cluster.LeaseGrant, 1, "")
		for range 20 {
			time.Sleep(time.Second)
			r.want("a", cluster.LeaseExtend, 1, "")
		}
		if r.writes != 1 {
			t.Errorf("%d writes for one grant and its renewals", r.writes)
		}
		if a := r.want("b", cluster.LeaseGrant, 2, cluster.RefuseLeaseAcquired); a.Left <= 0 || a.Left > 5*time.Second {
			t.Errorf("the other is told to wait %s", a.Left)
		}
		r.want("a", cluster.LeaseExtend, 1, cluster.RefuseLeaseStale)
		r.mu.Lock()
		defer r.mu.Unlock()
		if _, err := r.handlers[cluster.NodeLeaseQuestion](context.Background(), "a", []byte("{")); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("rubbish: %v", err)
		}
	})
}

// A promise that cannot be written down is none, and a disk that hangs holds up
// nothing but that.
func TestALeaseThatCannotBeWrittenDownIsRefused(t *testing.T) {
	granterTest(t, func(r *granterRig) {
		r.set(func() { r.broken = errors.New("no space left") })
		r.want("a", cluster.LeaseGrant, 1, cluster.RefuseLeaseNotKept)
		r.set(func() { r.broken = nil })
		time.Sleep(3 * time.Second)
		r.want("a", cluster.LeaseGrant, 1, "")

		stuck := make(chan struct{})
		r.set(func() { r.stuck = stuck })
		r.want("a", cluster.LeaseAbolish, 1, "") // answered at once; its write hangs
		synctest.Wait()
		if _, err := r.ask("b", cluster.LeaseGrant, 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("granted without the disk: %v", err)
		}
		r.want("a", cluster.LeaseExtend, 1, cluster.RefuseLeaseStale)
		r.set(func() { r.stuck = nil })
		close(stuck)
		time.Sleep(time.Second)
		r.want("b", cluster.LeaseExtend, 2, "")
	})
}

// Nobody else is served while work of the old leader lives; then who was refused
// is told.
func TestNobodyIsServedWhileWorkLives(t *testing.T) {
	granterTest(t, func(r *granterRig) {
		r.want("a", cluster.LeaseGrant, 1, "")
		r.set(func() { r.unending = errors.New("a child does not end") })
		r.want("b", cluster.LeaseGrant, 2, cluster.RefuseLeaseAcquired)
		for range 30 {
			time.Sleep(time.Second)
			r.want("b", cluster.LeaseGrant, 2, cluster.RefuseLeaseAcquired)
		}
		r.mu.Lock()
		if r.revokes < 10 || r.revokes > 40 {
			t.Errorf("the end was asked for %d times in 30 s", r.revokes)
		}
		r.unending = nil
		r.mu.Unlock()
		time.Sleep(2 * time.Second)
		r.mu.Lock()
		if len(r.invited) == 0 || r.invited[0] != "b" {
			t.Errorf("invited: %v", r.invited)
		}
		r.mu.Unlock()
		r.want("b", cluster.LeaseGrant, 2, "")
	})
}

// Nobody is told that he is served, and nothing is written of it, before all is
// dead that must not live beside his work (A14); other answers do not wait for it.
func TestALeaderIsToldOnceNothingStandsAgainstHim(t *testing.T) {
	granterTest(t, func(r *granterRig) {
		living := make(chan struct{})
		r.set(func() { r.living = living })
		if a, err := r.ask("a", cluster.LeaseGrant, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("told while something lives: %+v, %v", a, err)
		}
		r.want("b", cluster.LeaseGrant, 1, cluster.RefuseLeaseStale)
		if r.writes != 0 {
			t.Errorf("%d writes of a promise that does not stand", r.writes)
		}
		close(living)
		synctest.Wait()
		r.want("a", cluster.LeaseExtend, 1, "")
		if r.writes != 1 {
			t.Errorf("%d writes for one grant", r.writes)
		}

		r.set(func() { r.living = make(chan struct{}) }) // for good
		r.want("a", cluster.LeaseAbolish, 1, "")
		synctest.Wait()
		if _, err := r.ask("b", cluster.LeaseGrant, 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("told while something lives: %v", err)
		}
		time.Sleep(5 * time.Second) // the lease that was to be given is over
		r.want("b", cluster.LeaseExtend, 2, cluster.RefuseLeaseLost)
		if err := r.stopNow(r.g.stop); err != nil {
			t.Errorf("a stop waits for what lives: %v", err)
		}
	})
}

// Work that cannot be ended is no leader's to have beside him: he is refused, with
// words that name it.
func TestALeaderIsRefusedBesideWhatCannotBeEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &granterRig{t: t, base: time.Now(), follower: unserving{}}
		r.begin()
		defer func() { r.end() }()
		if a := r.want("a", cluster.LeaseGrant, 1, cluster.RefuseLeaseNotKept); !strings.Contains(a.Detail, "does not serve a") || !strings.Contains(a.Detail, "a drain hangs") {
			t.Errorf("%q", a.Detail)
		}
		synctest.Wait()
		if r.Read().Record.Held {
			t.Error("a promise that does not stand is written down")
		}
	})
}

// unserving has work that does not end.
type unserving struct{ idleFollower }

func (unserving) Serve(cluster.NodeLeaseID) func(context.Context) error {
	return func(context.Context) error { return errors.New("a drain hangs") }
}

// stopNow stops the granter in order, within a second.
func (r *granterRig) stopNow(end func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := end(ctx)
	return err
}

// After a clean stop the rest counts, after a crash the whole period, and of a
// node that has left nothing; a stop whose disk hangs is over all the same.
func TestARestartHonoursWhatWasPromised(t *testing.T) {
	granterTest(t, func(r *granterRig) {
		left := func() time.Duration { return r.want("b", cluster.LeaseGrant, 2, cluster.RefuseLeaseAcquired).Left }
		r.want("a", cluster.LeaseGrant, 1, "")
		time.Sleep(time.Second)
		r.end() // a crash, as far as the file can tell
		time.Sleep(2 * time.Second)
		r.begin()
		if l := left(); l != 5*time.Second {
			t.Errorf("%s are left after a crash, want the period", l)
		}
		time.Sleep(time.Second)
		if err := r.stopNow(r.g.stop); err != nil {
			t.Error(err)
		}
		r.want("a", cluster.LeaseExtend, 1, cluster.RefuseLeaseStopping)
		r.end()
		time.Sleep(time.Minute)
		r.begin()
		if l := left(); l != 4*time.Second {
			t.Errorf("%s are left after a clean stop with 4 s left", l)
		}
		r.set(func() { r.stuck = make(chan struct{}) })
		time.Sleep(time.Second)
		if err := r.stopNow(r.g.stop); !errors.Is(err, cluster.ErrDeadline) {
			t.Errorf("a stop without a disk: %v", err)
		}
		began := time.Now()
		r.end()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the end took %s", took)
		}
		r.mu.Lock()
		close(r.stuck)
		r.stuck = nil
		r.mu.Unlock()
		synctest.Wait()
		r.set(func() { r.found = lease.Found{Kind: lease.FoundUnreadable, Detail: "rubbish"} })
		r.begin()
		if l := left(); l != 5*time.Second {
			t.Errorf("%s are left after an unreadable file, want the period", l)
		}
		if err := r.stopNow(r.g.leave); err != nil {
			t.Error(err)
		}
		if r.found != (lease.Found{}) {
			t.Errorf("a node that has left keeps %+v", r.found)
		}
		r.want("b", cluster.LeaseGrant, 2, cluster.RefuseLeaseMember)
	})
}

// A hand-over that is aborted at once is an end in order all the same, a role that
// was lost is none; the same role told again is no new term.
func TestATermKnowsHowTheOneBeforeEnded(t *testing.T) {
	h := &holding{pokes: make(chan struct{}, 1)}
	h.term.Store(&leaderTerm{})
	for i, c := range []struct {
		mode    role.Mode
		n       uint64
		orderly bool
	}{
		{role.Idle, 0, false}, {role.Primary, 1, false}, {role.Primary, 1, false}, {role.Relinquish, 2, true}, {role.Aborting, 2, true},
		{role.Primary, 3, true}, {role.Dropping, 4, false}, {role.Idle, 4, false}, {role.Primary, 5, false},
	} {
		h.follow(role.State{Mode: c.mode})
		if got := h.term.Load(); got.n != c.n || got.orderly != c.orderly || got.leads != (c.mode == role.Primary) {
			t.Errorf("step %d, %s: %+v, want term %d, orderly %v", i, c.mode, *got, c.n, c.orderly)
		}
	}
}

// The keepalive's write of the table is taken back with the role, and a line of
// the grid is never missed nor waited for twice.
func TestARiderAlightsAndTheGridGoesOn(t *testing.T) {
	k := &Keepalive{}
	key := cluster.Key{Kind: cluster.KeyNodeLeases}
	k.Ride(cluster.Set(key, cluster.AnyVersion, cluster.NodeLeases{}))
	k.Ride(cluster.Set(cluster.Key{Kind: cluster.KeyView, Node: "n"}, cluster.AnyVersion, nil))
	if k.Alight(key); len(k.riders) != 1 || k.riders[0].Key.Kind != cluster.KeyView {
		t.Errorf("%+v", k.riders)
	}
	var b beat
	if got := b.after(1234, 100); got != 1234 {
		t.Errorf("without a grid: %d", got)
	}
	b.mark(1000)
	for at, want := range map[cluster.Instant]cluster.Instant{1000: 1000, 1001: 1100, 1099: 1100, 1100: 1100, 1875: 1900, 999: 1000, 950: 1000, 900: 900, 899: 900} {
		if got := b.after(at, 100); got != want {
			t.Errorf("after %d: %d, want %d", at, got, want)
		}
	}
}
