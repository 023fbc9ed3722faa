package zkhandler

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zkreal"
)

// bootClock is the real clock, without an import of a neighbour.
type bootClock struct{}

func (bootClock) Now() cluster.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return cluster.Instant(ts.Nano())
}

func testLog(t testing.TB) *zap.Logger {
	if testing.Verbose() {
		return zaptest.NewLogger(t)
	}
	return zap.NewNop()
}

// start runs a handler until the test ends or the returned function is called.
func start(t testing.TB, c Config) (*Handler, func()) {
	t.Helper()
	h, err := New(c, bootClock{}, testLog(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	stop := func() {
		cancel()
		if done == nil {
			return
		}
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
		done = nil
	}
	t.Cleanup(stop)
	return h, stop
}

// bound is a context for one step of a test.
func bound(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func awaitPhase(t testing.TB, h *Handler, p SessionPhase) SessionState {
	t.Helper()
	var s SessionState
	eventually(t, "phase "+p.String(), func() bool { s = h.State(); return s.Phase == p })
	return s
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// follow waits for a snapshot that satisfies ok.
func follow(t testing.TB, ch <-chan *cluster.Snapshot, what string, ok func(*cluster.Snapshot) bool) *cluster.Snapshot {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case s := <-ch:
			if ok(s) {
				return s
			}
		case <-deadline:
			t.Fatalf("no snapshot within 20 s: %s", what)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var leaseKey = cluster.Key{Kind: cluster.KeyLease}

func TestAgainstARealServer(t *testing.T) {
	e := zkreal.Start(t, 1)
	c := Config{Servers: e.Servers(), Root: "/pvc/a", SessionTimeout: 2 * time.Second, WatchNodes: true}
	a, _ := start(t, c)
	b, _ := start(t, c)
	awaitPhase(t, a, Live)
	if _, ok, err := a.CheckTree(bound(t)); ok || err != nil {
		t.Fatalf("empty tree: initialised %v, %v", ok, err)
	}
	must(t, a.Initialize(bound(t), "demo", false))
	if err := a.Initialize(bound(t), "demo", false); !errors.Is(err, cluster.ErrConflict) {
		t.Fatalf("second initialise: %v", err)
	}
	name, ok, err := a.CheckTree(bound(t))
	if name != "demo" || !ok || err != nil {
		t.Fatalf("CheckTree: %q %v %v", name, ok, err)
	}
	must(t, a.EnsureNode(bound(t), "hv1", cluster.Coordinator))
	must(t, a.EnsureNode(bound(t), "hv1", cluster.Coordinator))
	seen, cancel := b.Subscribe()
	defer cancel()
	s := follow(t, seen, "hv1 with its records", func(s *cluster.Snapshot) bool {
		return s.Live && s.Complete && s.Nodes["hv1"].Router.Present && s.Lease.Present
	})
	if got := s.Nodes["hv1"]; got.Router.Value != cluster.RouterSecondary || got.Mode.Value != cluster.Coordinator {
		t.Fatalf("node: %+v", got)
	}
	if s.Lease.Value.Holder != "" || s.PrimaryNode.Value != cluster.NoNode || s.ClusterName.Value != "demo" {
		t.Fatalf("snapshot: %+v", s)
	}
	owner := cluster.LockOwner{Node: "hv1", Incarnation: "x.1"}
	child, err := a.Lock(bound(t), cluster.KeyRoleLockChild, owner)
	must(t, err)
	lease := cluster.Lease{Holder: "hv1", Incarnation: "x.1", Epoch: 1, TTLMillis: 2800, N: 1}
	r := a.Commit(bound(t), cluster.Txn{Purpose: "role.take", Ops: []cluster.Op{
		cluster.Check(cluster.Key{Kind: cluster.KeyRoleLockChild, Name: child.Name}, 0),
		cluster.Set(leaseKey, s.Lease.Version, lease),
		cluster.Set(cluster.Key{Kind: cluster.KeyPrimaryNode}, s.PrimaryNode.Version, "hv1"),
		{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: cluster.Event{Kind: "transition", Text: "t"}},
	}})
	if r.Outcome != cluster.OutcomeOK || r.Created != "0000000000" || r.Versions[1] != s.Lease.Version+1 || r.SentAt.IsZero() {
		t.Fatalf("commit: %+v", r)
	}
	follow(t, seen, "the lease and the lock", func(s *cluster.Snapshot) bool {
		return s.Lease.Value.HeldBy("hv1", "x.1") && s.PrimaryNode.Value == "hv1" &&
			len(s.RoleLock) == 1 && s.RoleLock[0].Owner.Node == "hv1" && s.RoleLock[0].Session == a.State().Session
	})
	r = a.Commit(bound(t), cluster.Txn{Purpose: "role.take", Ops: []cluster.Op{
		cluster.Set(cluster.Key{Kind: cluster.KeyPrimaryNode}, cluster.AnyVersion, "hv9"),
		cluster.Set(leaseKey, s.Lease.Version, lease),
	}})
	if r.Outcome != cluster.OutcomeConflict || r.FailedOp != 1 {
		t.Fatalf("stale commit: %+v", r)
	}
	must(t, a.Unlock(bound(t), cluster.KeyRoleLockChild, child))
	must(t, a.Unlock(bound(t), cluster.KeyRoleLockChild, child))
	fresh, err := b.Refresh(bound(t))
	must(t, err)
	if len(fresh.RoleLock) != 0 || !fresh.Lease.Value.HeldBy("hv1", "x.1") {
		t.Fatalf("refresh: %+v", fresh)
	}
	events, err := b.ReadHistory(bound(t), 10)
	if err != nil || len(events) != 1 || events[0].Kind != "transition" {
		t.Fatalf("history: %v %v", events, err)
	}
	leaves, err := b.ReadNode(bound(t), "hv1")
	if err != nil || leaves["routerstate"] != "secondary" || leaves["memtotal"] != "0" || leaves[""] != "coordinator" {
		t.Fatalf("node: %v %v", leaves, err)
	}
}
