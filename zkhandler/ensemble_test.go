package zkhandler

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zkreal"
)

func fresh(t testing.TB, e *zkreal.Ensemble, session time.Duration) Config {
	t.Helper()
	return Config{Servers: e.Servers(), SessionTimeout: session, WatchNodes: true}
}

// persist repeats a step of a test's preparation for as long as a busy machine
// loses its connection or its reply.
func persist(t testing.TB, step func(ctx context.Context) error) {
	t.Helper()
	ctx := bound(t)
	err := step(ctx)
	for (errors.Is(err, cluster.ErrUnknown) || errors.Is(err, cluster.ErrNotLive)) && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
		err = step(ctx)
	}
	must(t, err)
}

// initialize makes the tree; a repeated attempt may find its own half.
func initialize(t testing.TB, h *Handler) {
	t.Helper()
	again := false
	persist(t, func(ctx context.Context) error {
		err := h.Initialize(ctx, "demo", again)
		again = true
		return err
	})
}

// ensureNode adds the node's records.
func ensureNode(t testing.TB, h *Handler, n cluster.NodeID, m cluster.Mode) {
	t.Helper()
	persist(t, func(ctx context.Context) error { return h.EnsureNode(ctx, n, m) })
}

func setPrimary(h *Handler, name string) cluster.TxnResult {
	return h.Commit(context.Background(), cluster.Txn{Purpose: "test", Ops: []cluster.Op{
		cluster.Set(cluster.Key{Kind: cluster.KeyPrimaryNode}, cluster.AnyVersion, name),
	}})
}

// An ordinary loss of the leader keeps the session, its ephemerals and the
// instants of what has not changed.
func TestSessionAndSeenAtSurviveTheLossOfTheLeader(t *testing.T) {
	e := zkreal.Start(t, 3)
	h, _ := start(t, fresh(t, e, 6*time.Second))
	awaitPhase(t, h, Live)
	initialize(t, h)
	ensureNode(t, h, "hv1", cluster.Coordinator)
	r := h.Commit(bound(t), cluster.Txn{Purpose: "register", Ops: []cluster.Op{
		{Kind: cluster.OpCreateEphemeral, Key: cluster.Key{Kind: cluster.KeyAlive, Node: "hv1"}, Value: cluster.Alive{Incarnation: "x.1"}},
	}})
	must(t, r.Err)
	seen, cancel := h.Subscribe()
	defer cancel()
	before := follow(t, seen, "alive", func(s *cluster.Snapshot) bool { return s.Live && s.Nodes["hv1"].Alive.Present })
	e.Kill(e.Leader())
	follow(t, seen, "not live", func(s *cluster.Snapshot) bool { return !s.Live })
	after := follow(t, seen, "live again", func(s *cluster.Snapshot) bool { return s.Live })
	if after.Session != before.Session || !after.Nodes["hv1"].Alive.Present || !after.Complete {
		t.Fatalf("session %#x became %#x, alive %v", before.Session, after.Session, after.Nodes["hv1"].Alive)
	}
	if after.Lease.SeenAt != before.Lease.SeenAt || after.Nodes["hv1"].Alive.SeenAt != before.Nodes["hv1"].Alive.SeenAt {
		t.Fatal("an unchanged record was observed anew")
	}
	if !after.Since.After(before.Since) {
		t.Fatal("Since does not tell of the reconnect")
	}
	must(t, setPrimary(h, "hv1").Err)
	follow(t, seen, "a watch on the new connection", func(s *cluster.Snapshot) bool { return s.PrimaryNode.Value == "hv1" })
}

// A server that accepts and answers nothing costs one request time-out, not
// the session.
func TestSilentServerIsLeftWithinTheSameSession(t *testing.T) {
	e := zkreal.Start(t, 3)
	follower := (e.Leader() + 1) % 3
	c := fresh(t, e, 6*time.Second)
	c.Servers = slices.Concat(c.Servers[follower:], c.Servers[:follower])
	h, _ := start(t, c)
	s := awaitPhase(t, h, Live)
	if s.Server != c.Servers[0] {
		t.Fatalf("connected to %s, not to the own server %s", s.Server, c.Servers[0])
	}
	initialize(t, h)
	e.Pause(follower)
	r := setPrimary(h, "hv1")
	if r.Outcome != cluster.OutcomeUnknown || !errors.Is(r.Err, cluster.ErrUnknown) || r.SentAt.IsZero() {
		t.Fatalf("unanswered commit: %+v", r)
	}
	eventually(t, "live at another server", func() bool {
		now := h.State()
		return now.Phase == Live && now.Server != c.Servers[0]
	})
	if now := h.State(); now.Session != s.Session {
		t.Fatalf("session %#x became %#x", s.Session, now.Session)
	}
	must(t, setPrimary(h, "hv2").Err)
	e.Resume(follower)
}

// Lost is reported by our own clock; a new session follows when the servers
// have expired the old one, and everything is read again.
func TestLostSessionIsFollowedByANewOne(t *testing.T) {
	e := zkreal.Start(t, 1)
	c := fresh(t, e, time.Second)
	h, _ := start(t, c)
	old := awaitPhase(t, h, Live).Session
	initialize(t, h)
	must(t, setPrimary(h, "hv1").Err)
	seen, cancel := h.Subscribe()
	defer cancel()
	e.Pause(0)
	lost := awaitPhase(t, h, Lost)
	if since := lost.Since.Sub(lost.LastWrite); since < lost.Granted {
		t.Fatalf("lost %s after the last acknowledged write, granted %s", since, lost.Granted)
	}
	if r := setPrimary(h, "hv2"); r.Outcome != cluster.OutcomeNotSent || !r.SentAt.IsZero() {
		t.Fatalf("commit while lost: %+v", r)
	}
	e.Kill(0)
	e.Start(0)
	eventually(t, "live", func() bool { return h.State().Phase == Live })
	s := follow(t, seen, "complete", func(s *cluster.Snapshot) bool { return s.Live && s.Complete })
	if s.PrimaryNode.Value != "hv1" {
		t.Fatalf("primary_node is %q", s.PrimaryNode.Value)
	}
	// The ensemble kept the session or not; expire it for certain.
	expire(t, e, h)
	eventually(t, "another session", func() bool { now := h.State(); return now.Phase == Live && now.Session != old })
	follow(t, seen, "complete again", func(s *cluster.Snapshot) bool { return s.Live && s.Complete && s.Session == h.State().Session })
	must(t, setPrimary(h, "hv3").Err)
	follow(t, seen, "watches of the new session", func(s *cluster.Snapshot) bool { return s.PrimaryNode.Value == "hv3" })
}

// expire ends the handler's session as a server would: a close from within.
func expire(t *testing.T, e *zkreal.Ensemble, h *Handler) {
	t.Helper()
	s, err := h.liveSession()
	must(t, err)
	s.dialer.mu.Lock()
	c := s.dialer.current
	s.dialer.mu.Unlock()
	// op −11 (close session) with an xid of nobody's
	_, err = c.Conn.Write([]byte{0, 0, 0, 8, 0x7f, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xf5})
	must(t, err)
}

func TestLockQueuesBehindForeignersAndGivesUpInTime(t *testing.T) {
	e := zkreal.Start(t, 1)
	a, _ := start(t, fresh(t, e, 4*time.Second))
	b, stopB := start(t, fresh(t, e, 4*time.Second))
	awaitPhase(t, a, Live)
	awaitPhase(t, b, Live)
	initialize(t, a)
	foreign, _, err := zk.Connect(e.Servers(), 4*time.Second, zk.WithLogInfo(false))
	must(t, err)
	defer foreign.Close()
	child, err := foreign.Create("/config/primary_node/0123456789abcdef0123456789abcdef__lock__", []byte("kazoo"), zk.FlagEphemeralSequential, zk.WorldACL(zk.PermAll))
	must(t, err)
	owner := func(n cluster.NodeID) cluster.LockOwner { return cluster.LockOwner{Node: n, Incarnation: "x.1"} }
	short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := a.Lock(short, cluster.KeyRoleLockChild, owner("hv1")); !errors.Is(err, cluster.ErrLockTimeout) {
		t.Fatalf("behind a foreign child: %v", err)
	}
	s, err := a.Refresh(bound(t))
	must(t, err)
	if len(s.RoleLock) != 1 || !s.RoleLock[0].Foreign {
		t.Fatalf("queue after giving up: %+v", s.RoleLock)
	}
	if err := a.Unlock(bound(t), cluster.KeyRoleLockChild, s.RoleLock[0]); !errors.Is(err, cluster.ErrRefused) {
		t.Fatalf("removing a foreign child: %v", err)
	}
	type result struct {
		child cluster.LockChild
		err   error
	}
	got := make(chan result, 1)
	go func() {
		child, err := a.Lock(bound(t), cluster.KeyRoleLockChild, owner("hv1"))
		got <- result{child, err}
	}()
	eventually(t, "a waits in the queue", func() bool {
		s, err := b.Refresh(bound(t))
		return err == nil && len(s.RoleLock) == 2
	})
	must(t, foreign.Delete(child, -1))
	first := <-got
	must(t, first.err)
	if first.child.Session != a.State().Session || first.child.Foreign {
		t.Fatalf("child: %+v", first.child)
	}
	go func() {
		child, err := b.Lock(bound(t), cluster.KeyRoleLockChild, owner("hv2"))
		got <- result{child, err}
	}()
	eventually(t, "b waits in the queue", func() bool {
		s, err := a.Refresh(bound(t))
		return err == nil && len(s.RoleLock) == 2
	})
	must(t, a.Unlock(bound(t), cluster.KeyRoleLockChild, first.child))
	second := <-got
	must(t, second.err)
	stopB() // a clean end takes the ephemeral with it at once
	eventually(t, "an empty queue", func() bool {
		s, err := a.Refresh(bound(t))
		return err == nil && len(s.RoleLock) == 0
	})
}

func TestNothingIsWorldWritableWithAnIdentity(t *testing.T) {
	e := zkreal.Start(t, 1)
	c := fresh(t, e, 4*time.Second)
	c.Auth = &Digest{User: "pvc", Password: "s"}
	c.Reader = &Digest{User: "eyes", Password: "r"}
	h, _ := start(t, c)
	awaitPhase(t, h, Live)
	initialize(t, h)
	ensureNode(t, h, "hv1", cluster.Coordinator)
	raw, _, err := zk.Connect(e.Servers(), 4*time.Second, zk.WithLogInfo(false))
	must(t, err)
	defer raw.Close()
	var walk func(string)
	walk = func(p string) {
		acl, _, err := raw.GetACL(p)
		if err != nil && !errors.Is(err, zk.ErrNoAuth) {
			t.Errorf("%s: %v", p, err)
		}
		for _, a := range acl {
			if a.Scheme == "world" {
				t.Errorf("%s is open to the world: %v", p, a)
			}
		}
		names, _, _ := raw.Children(p)
		for _, n := range names {
			walk(p + "/" + n)
		}
	}
	stranger := c
	stranger.Auth, stranger.Reader = nil, nil
	other, _ := start(t, stranger)
	awaitPhase(t, other, Live)
	if r := setPrimary(other, "evil"); r.Outcome != cluster.OutcomeRefused || !errors.Is(r.Err, cluster.ErrAuth) {
		t.Fatalf("a stranger's write: %+v", r)
	}
	must(t, raw.AddAuth("digest", []byte("eyes:r")))
	for _, top := range treeRoots {
		walk(top)
	}
	if data, _, err := raw.Get("/config"); string(data) != "demo" || err != nil {
		t.Fatalf("the reader reads %q, %v", data, err)
	}
	if _, err := raw.Set("/config", []byte("x"), -1); !errors.Is(err, zk.ErrNoAuth) {
		t.Fatalf("the reader writes: %v", err)
	}
}

// BenchmarkWriteToSnapshot measures from just before a commit at one client to
// the publication of its effect at another.
func BenchmarkWriteToSnapshot(b *testing.B) {
	e := zkreal.Start(b, 3)
	w, _ := start(b, fresh(b, e, 6*time.Second))
	r, _ := start(b, fresh(b, e, 6*time.Second))
	awaitPhase(b, w, Live)
	awaitPhase(b, r, Live)
	initialize(b, w)
	for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
		ensureNode(b, w, n, cluster.Coordinator)
	}
	seen, cancel := r.Subscribe()
	defer cancel()
	s := follow(b, seen, "complete", func(s *cluster.Snapshot) bool { return s.Live && s.Lease.Present && len(s.Nodes) == 3 })
	version := s.Lease.Version
	var whole, commit []time.Duration
	for n := uint64(1); b.Loop(); n++ {
		began := time.Now()
		result := w.Commit(context.Background(), cluster.Txn{Purpose: "renew", Ops: []cluster.Op{
			cluster.Set(leaseKey, version, cluster.Lease{Holder: "hv1", Incarnation: "x", Epoch: 1, TTLMillis: 2800, N: n}),
		}})
		must(b, result.Err)
		version = result.Versions[0]
		commit = append(commit, time.Since(began))
		follow(b, seen, "the renewal", func(s *cluster.Snapshot) bool { return s.Lease.Value.N == n })
		whole = append(whole, time.Since(began))
	}
	slices.Sort(whole)
	slices.Sort(commit)
	b.ReportMetric(float64(commit[len(commit)/2].Microseconds()), "commit-p50-µs")
	b.ReportMetric(float64(whole[len(whole)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(whole[len(whole)*99/100].Microseconds()), "p99-µs")
}

// A deadline that strikes just after the request was sent says nothing about
// the connection, and a cancelled caller neither.
func TestImpatientCallersDoNotCostTheConnection(t *testing.T) {
	e := zkreal.Start(t, 1)
	h, _ := start(t, fresh(t, e, 4*time.Second))
	since := awaitPhase(t, h, Live).Since
	initialize(t, h)
	for range 50 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Microsecond)
		h.CheckTree(ctx)
		cancel()
		ctx, cancel = context.WithCancel(context.Background())
		go cancel()
		h.CheckTree(ctx)
	}
	must(t, setPrimary(h, "hv1").Err)
	if now := h.State(); now.Since != since {
		t.Fatalf("the connection was lost: %+v", now)
	}
}

// A record that exceeds what we can read is an error of that record; the
// connection and all others are unharmed.
func TestOversizedForeignRecordHarmsNobodyElse(t *testing.T) {
	e := zkreal.Start(t, 1)
	h, _ := start(t, fresh(t, e, 4*time.Second))
	since := awaitPhase(t, h, Live).Since
	initialize(t, h)
	raw, _, err := zk.Connect(e.Servers(), 4*time.Second, zk.WithLogInfo(false))
	must(t, err)
	defer raw.Close()
	_, err = raw.Set("/config/maintenance", make([]byte, 900<<10), -1)
	must(t, err)
	must(t, setPrimary(h, "hv1").Err)
	seen, cancel := h.Subscribe()
	defer cancel()
	s := follow(t, seen, "the fault", func(s *cluster.Snapshot) bool {
		return s.Maintenance.Err != nil && s.PrimaryNode.Value == "hv1"
	})
	if !s.Maintenance.Present || !errors.Is(s.Maintenance.Err, cluster.ErrTooLarge) {
		t.Fatalf("maintenance: %+v", s.Maintenance)
	}
	_, err = raw.Set("/config/maintenance", []byte("true"), -1)
	must(t, err)
	follow(t, seen, "the record again", func(s *cluster.Snapshot) bool { return s.Maintenance.Value && s.Maintenance.Err == nil })
	if now := h.State(); now.Since != since {
		t.Fatalf("the connection was lost: %+v", now)
	}
}

func TestLogIsBoundedAndHistoryTrimmed(t *testing.T) {
	e := zkreal.Start(t, 1)
	h, _ := start(t, fresh(t, e, 4*time.Second))
	awaitPhase(t, h, Live)
	initialize(t, h)
	ensureNode(t, h, "hv1", cluster.Hypervisor)
	line := string(make([]byte, 0))
	for range 1000 {
		line += "x"
	}
	for range 70 {
		must(t, h.AppendLog(bound(t), "hv1", line))
	}
	must(t, h.AppendLog(bound(t), "hv1", "last", "of all"))
	log, err := h.ReadText(bound(t), cluster.Key{Kind: cluster.KeyLog, Node: "hv1"})
	must(t, err)
	if len(log.Value) > maxLog || log.Value[len(log.Value)-12:] != "\nlast\nof all" || log.Value[:1000] != line {
		t.Fatalf("log of %d bytes ends in %q", len(log.Value), log.Value[len(log.Value)-20:])
	}
	for i := range 5 {
		must(t, h.Commit(bound(t), cluster.Txn{Purpose: "history", Ops: []cluster.Op{
			{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: cluster.Event{UnixMS: int64(i)}},
		}}).Err)
	}
	n, err := h.TrimHistory(bound(t), 2)
	events, _ := h.ReadHistory(bound(t), 10)
	if n != 3 || err != nil || len(events) != 2 || events[1].UnixMS != 4 {
		t.Fatalf("trimmed %d, %v, left %v", n, err, events)
	}
}

// Secrets are listed by name, changed on the version that was seen, and gone
// once they are removed.
func TestSecretsOfTheTree(t *testing.T) {
	e := zkreal.Start(t, 1)
	h, _ := start(t, fresh(t, e, 4*time.Second))
	awaitPhase(t, h, Live)
	initialize(t, h)
	if texts, err := h.ReadSecrets(bound(t)); err != nil || len(texts) != 0 {
		t.Fatalf("%v, %v", texts, err)
	}
	k := cluster.Key{Kind: cluster.KeySecret, Name: "bmc"}
	must(t, h.Commit(bound(t), cluster.Txn{Purpose: "secret", Ops: []cluster.Op{cluster.Create(k, cluster.SealedSecret{Sealed: "YWdl", By: "ada"})}}).Err)
	must(t, h.Commit(bound(t), cluster.Txn{Purpose: "secret", Ops: []cluster.Op{cluster.Set(k, 0, cluster.SealedSecret{Sealed: "YWdlIQ", By: "eve"})}}).Err)
	if r := h.Commit(bound(t), cluster.Txn{Purpose: "secret", Ops: []cluster.Op{cluster.Set(k, 0, cluster.SealedSecret{Sealed: "late"})}}); r.Outcome != cluster.OutcomeConflict {
		t.Fatalf("an older version: %+v", r)
	}
	texts, err := h.ReadSecrets(bound(t))
	must(t, err)
	record, err := cluster.DecodeSecret(texts["bmc"])
	if err != nil || len(texts) != 1 || record != (cluster.SealedSecret{Version: 1, Sealed: "YWdlIQ", By: "eve"}) {
		t.Fatalf("%v, %v, %+v", texts, err, record)
	}
	must(t, h.Commit(bound(t), cluster.Txn{Purpose: "secret", Ops: []cluster.Op{cluster.Delete(k, 1)}}).Err)
	if texts, err := h.ReadSecrets(bound(t)); err != nil || len(texts) != 0 {
		t.Fatalf("after the removal: %v, %v", texts, err)
	}
}

// Overwriting keeps the epochs growing (I2), and leaves no trace of the rest.
func TestOverwriteKeepsEpochsGrowing(t *testing.T) {
	e := zkreal.Start(t, 1)
	h, _ := start(t, fresh(t, e, 4*time.Second))
	awaitPhase(t, h, Live)
	initialize(t, h)
	ensureNode(t, h, "hv1", cluster.Coordinator)
	must(t, h.Commit(bound(t), cluster.Txn{Purpose: "take", Ops: []cluster.Op{
		cluster.Set(leaseKey, 0, cluster.Lease{Holder: "hv1", Incarnation: "x", Epoch: 41, TTLMillis: 1})}}).Err)
	must(t, h.Initialize(bound(t), "other", true))
	s, err := h.Refresh(bound(t))
	must(t, err)
	if s.Lease.Value.Epoch != 42 || !s.Lease.Value.Released() || s.ClusterName.Value != "other" {
		t.Fatalf("after overwriting: %+v", s.Lease)
	}
	if _, err := h.ReadNode(bound(t), "hv1"); !errors.Is(err, cluster.ErrNotFound) {
		t.Fatalf("the old node: %v", err)
	}
	must(t, h.Commit(bound(t), cluster.Txn{Purpose: "schema", Ops: []cluster.Op{
		cluster.Set(cluster.Key{Kind: cluster.KeySchema}, cluster.AnyVersion, h.NewestSchema()+1)}}).Err)
	if _, _, err := h.CheckTree(bound(t)); !errors.Is(err, cluster.ErrSchemaNewer) {
		t.Fatalf("a newer schema: %v", err)
	}
}

// replyLoser carries the first matching request to the server and cuts the
// connection before its reply.
type replyLoser struct {
	match []byte
	once  sync.Once
}

func (l *replyLoser) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &losingConn{Conn: c, loser: l}, nil
}

type losingConn struct {
	net.Conn
	loser *replyLoser
	cut   atomic.Bool
}

func (c *losingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if bytes.Contains(p, c.loser.match) {
		c.loser.once.Do(func() {
			c.cut.Store(true)
			c.SetReadDeadline(time.Unix(1, 0))
		})
	}
	return n, err
}

// Read lets nothing through after the cut, not even what has arrived.
func (c *losingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.cut.Load() {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// A child whose creation was not acknowledged is found again by its GUID: the
// lock is held once, with one child, in the same session.
func TestLockFindsItsChildAfterALostReply(t *testing.T) {
	e := zkreal.Start(t, 1)
	c := fresh(t, e, 4*time.Second)
	loser := &replyLoser{match: []byte(lockInfix)}
	c.Dial = loser.dial
	h, _ := start(t, c)
	awaitPhase(t, h, Live)
	initialize(t, h)
	child, err := h.Lock(bound(t), cluster.KeyFenceLockChild, cluster.LockOwner{Node: "hv1", Incarnation: "x"})
	must(t, err)
	names, err := h.children(bound(t), "/config/fence_lock")
	must(t, err)
	if !slices.Equal(names, []string{child.Name}) {
		t.Fatalf("holding %s, the queue is %v", child.Name, names)
	}
}

// A committed transaction whose reply was lost is unknown, and the version
// tells that it happened.
func TestLostReplyOfACommitIsUnknown(t *testing.T) {
	e := zkreal.Start(t, 1)
	c := fresh(t, e, 4*time.Second)
	loser := &replyLoser{match: []byte("hv-lost")}
	c.Dial = loser.dial
	h, _ := start(t, c)
	awaitPhase(t, h, Live)
	initialize(t, h)
	if r := setPrimary(h, "hv-lost"); r.Outcome != cluster.OutcomeUnknown || r.SentAt.IsZero() {
		t.Fatalf("%+v", r)
	}
	eventually(t, "live", func() bool { return h.State().Phase == Live })
	s, err := h.Refresh(bound(t))
	must(t, err)
	if s.PrimaryNode.Value != "hv-lost" || s.PrimaryNode.Version != 1 {
		t.Fatalf("after all: %+v", s.PrimaryNode)
	}
}

// Sessions come and go without leaving goroutines, and a handler stays small.
func TestSessionsLeaveNothingBehind(t *testing.T) {
	e := zkreal.Start(t, 1)
	h, stop := start(t, fresh(t, e, time.Second))
	awaitPhase(t, h, Live)
	initialize(t, h)
	steady := 0
	for i := range 6 {
		old := h.State().Session
		expire(t, e, h)
		eventually(t, "the next session", func() bool { s := h.State(); return s.Phase == Live && s.Session != old })
		if i == 1 {
			steady = runtime.NumGoroutine()
		}
	}
	eventually(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= steady+2 })
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 12<<20 {
		t.Errorf("%d KiB of heap in use", m.HeapAlloc>>10)
	}
	stop()
	eventually(t, "all goroutines gone", func() bool { return runtime.NumGoroutine() < steady })
}
