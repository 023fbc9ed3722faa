package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
)

// bubbleClock is the bubble's virtual time, plus what a test adds for a stall.
type bubbleClock struct{}

func (bubbleClock) Now() cluster.Instant { return cluster.Instant(time.Now().UnixNano()) }

// fakeCollector does as the test says.
type fakeCollector struct {
	name     string
	interval time.Duration
	calls    int
	do       func(ctx context.Context) (map[string]string, error)
}

func (f *fakeCollector) Name() string            { return f.name }
func (f *fakeCollector) Interval() time.Duration { return f.interval }
func (f *fakeCollector) Collect(ctx context.Context) (map[string]string, error) {
	f.calls++
	return f.do(ctx)
}

func steady(name string, values map[string]string) *fakeCollector {
	return &fakeCollector{name: name, do: func(context.Context) (map[string]string, error) { return values, nil }}
}

// nodeStore stands for the node's records: it answers with versions, and with
// a conflict for a record that is missing.
type nodeStore struct {
	mu        sync.Mutex
	version   int32
	at        []cluster.Instant // when each publish began
	writes    [][]cluster.Op    // those that were carried out
	values    map[string]string // by key; what stands there
	missing   map[string]bool
	busy      int
	conflicts int
	overlap   bool
	// answer, when set, decides; nil result: carried out
	answer func(ctx context.Context, ops []cluster.Op) *cluster.TxnResult
}

func (s *nodeStore) publish(ctx context.Context, ops []cluster.Op) cluster.TxnResult {
	s.mu.Lock()
	s.at = append(s.at, bubbleClock{}.Now())
	s.busy++
	s.overlap = s.overlap || s.busy > 1
	answer := s.answer
	s.mu.Unlock()
	defer s.leave()
	sent := bubbleClock{}.Now()
	if answer != nil {
		if r := answer(ctx, ops); r != nil {
			r.SentAt = sent
			return *r
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.carryOut(ops, sent)
}

func (s *nodeStore) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy--
}

func (s *nodeStore) carryOut(ops []cluster.Op, sent cluster.Instant) cluster.TxnResult {
	for i, op := range ops {
		stale := op.Key.Kind == cluster.KeyKeepalive && op.Version != cluster.AnyVersion && op.Version != s.version
		if s.missing[op.Key.Name] || stale {
			s.conflicts++
			return cluster.TxnResult{Outcome: cluster.OutcomeConflict, SentAt: sent, FailedOp: i, Err: cluster.ErrConflict}
		}
	}
	s.version++
	versions := make([]int32, len(ops))
	versions[0] = s.version
	for _, op := range ops {
		if s.values == nil {
			s.values = map[string]string{}
		}
		s.values[fmt.Sprint(op.Key.Kind, "/", op.Key.Name)] = fmt.Sprint(op.Value)
	}
	s.writes = append(s.writes, ops)
	return cluster.TxnResult{Outcome: cluster.OutcomeOK, SentAt: sent, Versions: versions, FailedOp: -1}
}

// setAnswer has the store answer otherwise from now on.
func (s *nodeStore) setAnswer(answer func(ctx context.Context, ops []cluster.Op) *cluster.TxnResult) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// value reads what stands in a record.
func (s *nodeStore) value(kind cluster.KeyKind, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[fmt.Sprint(kind, "/", name)]
}

// lateWrite carries out a write that was thought lost.
func (s *nodeStore) lateWrite(ops []cluster.Op) cluster.TxnResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.carryOut(ops, 1)
}

// pass lets virtual time pass and everything settle.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *nodeStore) state() string { return s.value(cluster.KeyDaemonState, "") }

func leavesOf(ops []cluster.Op) []string {
	var leaves []string
	for _, op := range ops {
		if op.Key.Kind == cluster.KeyNodeField || op.Key.Kind == cluster.KeyPluginField {
			leaves = append(leaves, op.Key.Name)
		}
	}
	return leaves
}

// bench is a keepalive under test.
type bench struct {
	*Keepalive
	*Collection
	store *nodeStore
	logs  *observer.ObservedLogs
	begun cluster.Instant
	end   func() error
}

func runKeepalive(t *testing.T, store *nodeStore, collectors []Collector, more func(*KeepaliveConfig)) *bench {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	log := zap.New(core)
	c, err := NewCollection(bubbleClock{}, log, 800*time.Millisecond, collectors...)
	if err != nil {
		t.Fatal(err)
	}
	cfg := KeepaliveConfig{Node: "hv1", Interval: time.Second, Clock: bubbleClock{}, Log: log, Collection: c, Publish: store.publish}
	if more != nil {
		more(&cfg)
	}
	k, err := NewKeepalive(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	b := &bench{Keepalive: k, Collection: c, store: store, logs: logs, begun: bubbleClock{}.Now()}
	go func() { ran <- k.Run(ctx) }()
	b.end = sync.OnceValue(func() error {
		cancel()
		err := <-ran
		bound, cancelBound := context.WithTimeout(context.Background(), time.Minute)
		defer cancelBound()
		return errors.Join(c.Close(bound), err)
	})
	t.Cleanup(func() { _ = b.end() })
	return b
}

func TestKeepalivesGoOutOnTheGridForHoursThoughCollectorsHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		hung := &fakeCollector{name: "hung", do: func(context.Context) (map[string]string, error) {
			<-release // heeds nothing
			return map[string]string{"memtotal": "1"}, nil
		}}
		slow := &fakeCollector{name: "slow", do: func(ctx context.Context) (map[string]string, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		b := runKeepalive(t, &nodeStore{}, []Collector{hung, slow, steady("good", map[string]string{"cpuload": "0.50"})},
			func(c *KeepaliveConfig) { c.Refresh = 24 * time.Hour })
		pass(2*time.Hour + 500*time.Millisecond)
		if n := len(b.store.at); n != 7201 {
			t.Fatalf("%d keepalives in two hours", n)
		}
		for i, at := range b.store.at {
			if off := at.Sub(b.begun) - time.Duration(i)*time.Second; off != 0 {
				t.Fatalf("keepalive %d is %v off the grid", i, off)
			}
		}
		if hung.calls != 1 {
			t.Fatalf("a hung collector was started %d times", hung.calls)
		}
		if slow.calls < 7000 {
			t.Fatalf("a slow collector was started %d times", slow.calls)
		}
		if got := leavesOf(slices.Concat(b.store.writes...)); !slices.Equal(got, []string{"cpuload"}) {
			t.Fatalf("wrote %q: only what changed, once", got)
		}
		close(release)
	})
}

func TestOnlyChangedFiguresAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		c := &fakeCollector{name: "c", do: func(context.Context) (map[string]string, error) {
			n++
			return map[string]string{"memtotal": "64000", "cpuload": fmt.Sprint(n / 10), "monitoring_data/load/message": "OK"}, nil
		}}
		b := runKeepalive(t, &nodeStore{}, []Collector{c}, nil)
		pass(30 * time.Second)
		synctest.Wait()
		count := map[string]int{}
		for _, ops := range b.store.writes {
			if ops[0].Key != (cluster.Key{Kind: cluster.KeyKeepalive, Node: "hv1"}) || ops[0].Value != any(ops[0].Value.(int64)) {
				t.Fatalf("first op %+v", ops[0])
			}
			for _, leaf := range leavesOf(ops) {
				count[leaf]++
			}
		}
		if count["memtotal"] != 1 || count["load/message"] != 1 || count["cpuload"] != 4 {
			t.Fatalf("written %v", count)
		}
	})
}

func TestAStallDropsTheBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stalled := false
		b := runKeepalive(t, &nodeStore{}, nil, func(c *KeepaliveConfig) {
			c.Turned = func(cluster.Instant) {
				if !stalled {
					stalled = true
					time.Sleep(5*time.Second + 300*time.Millisecond) // the loop itself does not get on
				}
			}
		})
		pass(12*time.Second - time.Millisecond)
		var at []time.Duration
		for _, a := range b.store.at {
			at = append(at, a.Sub(b.begun).Round(time.Millisecond))
		}
		want := []time.Duration{0, 5300, 6000, 7000, 8000, 9000, 10000, 11000}
		for i := range want {
			want[i] *= time.Millisecond
		}
		if !slices.Equal(at, want) {
			t.Fatalf("published at %v, want %v", at, want)
		}
		if s := b.Keepalive.Status(); s.Missed != 4 || s.Lateness.Worst != 4300*time.Millisecond {
			t.Fatalf("status %+v", s)
		}
	})
}

func TestABlockedPublishDelaysNeitherCollectorsNorTheGrid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nodeStore{}
		store.answer = func(ctx context.Context, _ []cluster.Op) *cluster.TxnResult {
			<-ctx.Done()
			return &cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1, Err: cluster.ErrUnknown}
		}
		c := steady("c", map[string]string{"memtotal": "1"})
		b := runKeepalive(t, store, []Collector{c}, nil)
		pass(10*time.Second - time.Millisecond)
		if c.calls != 11 {
			t.Errorf("collected %d times in 10 s", c.calls)
		}
		for i := range 10 {
			due := b.begun.Add(time.Duration(i) * time.Second)
			if !slices.ContainsFunc(store.at, func(a cluster.Instant) bool { return a == due || a.Sub(due) > 0 && a.Sub(due) < 800*time.Millisecond }) {
				t.Errorf("nothing published for the keepalive due at %d s: %v", i, store.at)
			}
		}
		if !b.Acked().IsZero() || store.overlap {
			t.Fatalf("acked %v, overlap %v", b.Acked(), store.overlap)
		}
		store.setAnswer(nil)
		pass(2 * time.Second)
		if b.Acked().IsZero() || store.state() != "init" || store.value(cluster.KeyNodeField, "memtotal") != "1" {
			t.Fatalf("after the outage: acked %v, %v", b.Acked(), store.values)
		}
		if n := b.logs.FilterMessage("keepalive not acknowledged").Len(); n != 1 {
			t.Errorf("an outage was reported %d times", n)
		}
	})
}

func TestAPublishThatOutlastsItsIntervalIsNeverDoubled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nodeStore{answer: func(context.Context, []cluster.Op) *cluster.TxnResult {
			time.Sleep(2500 * time.Millisecond) // heeds no context
			return nil
		}}
		b := runKeepalive(t, store, nil, nil)
		pass(time.Minute)
		if store.overlap {
			t.Fatal("two publishes at a time")
		}
		if s := b.Keepalive.Status(); s.Missed < 20 || b.Acked().IsZero() {
			t.Fatalf("status %+v", s)
		}
		_ = b.end()
		pass(3 * time.Second)
	})
}

func TestAnAcknowledgementIsAnchoredAtItsSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nodeStore{answer: func(context.Context, []cluster.Op) *cluster.TxnResult {
			time.Sleep(300 * time.Millisecond)
			return nil
		}}
		var told []cluster.Instant
		b := runKeepalive(t, store, nil, func(c *KeepaliveConfig) {
			c.Acknowledged = func(at cluster.Instant) { told = append(told, at) }
		})
		pass(1500 * time.Millisecond)
		synctest.Wait()
		if want := b.begun.Add(time.Second); b.Acked() != want || !slices.Equal(told, []cluster.Instant{b.begun, want}) {
			t.Fatalf("acked %v, told %v", b.Acked().Sub(b.begun), told)
		}
	})
}

func TestTheStateNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := runKeepalive(t, &nodeStore{}, nil, nil)
		pass(100 * time.Millisecond)
		for _, s := range []cluster.DaemonState{cluster.DaemonRun, cluster.DaemonShutdown} {
			if err := b.SetState(s); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if b.store.state() != string(s) {
				t.Fatalf("state %q is not written at once: %q", s, b.store.state())
			}
		}
		for _, s := range []cluster.DaemonState{cluster.DaemonInit, cluster.DaemonRun, cluster.DaemonDead, "", "rubbish"} {
			if err := b.SetState(s); err == nil {
				t.Errorf("went from shutdown to %q", s)
			}
		}
		pass(10 * time.Second)
		if b.store.state() != "shutdown" {
			t.Fatalf("state is %q", b.store.state())
		}
		r := b.Final(t.Context())
		if r.Outcome != cluster.OutcomeOK || b.store.state() != "stop" {
			t.Fatalf("final: %+v, state %q", r, b.store.state())
		}
		n := len(b.store.at)
		pass(10 * time.Second)
		if len(b.store.at) != n {
			t.Fatal("keepalives after the final one")
		}
		if r := b.Final(t.Context()); r.Outcome != cluster.OutcomeNotSent {
			t.Fatalf("a second final: %+v", r)
		}
	})
}

// A write of state run whose reply was lost may be carried out after state
// shutdown was acknowledged; the next keepalive must put that right.
func TestALostWriteCannotBringAnOldStateBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nodeStore{}
		b := runKeepalive(t, store, nil, nil)
		pass(100 * time.Millisecond)
		var lost []cluster.Op
		store.setAnswer(func(_ context.Context, ops []cluster.Op) *cluster.TxnResult {
			if lost == nil {
				lost = ops
			}
			return &cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1}
		})
		_ = b.SetState(cluster.DaemonRun)
		synctest.Wait()
		store.setAnswer(nil)
		_ = b.SetState(cluster.DaemonShutdown)
		synctest.Wait()
		if r := store.lateWrite(lost); r.Outcome != cluster.OutcomeConflict {
			t.Fatalf("the lost write was carried out after a later one: %+v", r)
		}
		// The same, for a lost write that compared no version.
		lost[0].Version = cluster.AnyVersion
		if r := store.lateWrite(lost); r.Outcome != cluster.OutcomeOK || store.state() != "run" {
			t.Fatal("the test itself is wrong")
		}
		pass(time.Second)
		if store.state() != "shutdown" {
			t.Fatalf("state is %q", store.state())
		}
	})
}

func TestAFailedKeepaliveIsTriedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nodeStore{}
		b := runKeepalive(t, store, nil, nil)
		pass(100 * time.Millisecond)
		store.setAnswer(func(context.Context, []cluster.Op) *cluster.TxnResult {
			return &cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1, Err: cluster.ErrNotLive}
		})
		pass(3150 * time.Millisecond)
		store.setAnswer(nil)
		pass(100 * time.Millisecond)
		if want := b.begun.Add(3300 * time.Millisecond); b.Acked() != want {
			t.Fatalf("acked at %v, want %v", b.Acked().Sub(b.begun), want.Sub(b.begun))
		}
		pass(time.Second)
		if want := b.begun.Add(4 * time.Second); b.Acked() != want {
			t.Fatalf("the grid moved: acked at %v", b.Acked().Sub(b.begun))
		}
	})
}

// A figure went from 1 to 2 and back; the reply to 2 was lost, though 2 stands.
func TestAFigureWhoseWriteIsUnknownIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var figure atomic.Int32
		figure.Store(1)
		c := &fakeCollector{name: "c", do: func(context.Context) (map[string]string, error) {
			return map[string]string{"domainscount": fmt.Sprint(figure.Load())}, nil
		}}
		store := &nodeStore{}
		runKeepalive(t, store, []Collector{c}, func(c *KeepaliveConfig) { c.RetryPause = time.Second })
		pass(1100 * time.Millisecond)
		store.setAnswer(func(_ context.Context, ops []cluster.Op) *cluster.TxnResult {
			store.lateWrite(ops)
			return &cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1}
		})
		figure.Store(2)
		pass(time.Second)
		if got := store.value(cluster.KeyNodeField, "domainscount"); got != "2" {
			t.Fatalf("the test itself is wrong: %q stands", got)
		}
		store.setAnswer(nil)
		figure.Store(1)
		pass(time.Second)
		if got := store.value(cluster.KeyNodeField, "domainscount"); got != "1" {
			t.Fatalf("%q stands", got)
		}
	})
}

func TestTheFinalKeepaliveIsTriedUntilItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nodeStore{}
		b := runKeepalive(t, store, nil, nil)
		synctest.Wait()
		store.setAnswer(func(context.Context, []cluster.Op) *cluster.TxnResult {
			return &cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1, Err: cluster.ErrNotLive}
		})
		time.AfterFunc(3*time.Second, func() { store.setAnswer(nil) })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if r := b.Final(ctx); r.Outcome != cluster.OutcomeOK || store.state() != "stop" {
			t.Fatalf("%+v, %q", r, store.state())
		}
	})
}

func TestWithoutAStoreTheFinalKeepaliveGivesUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nodeStore{answer: func(ctx context.Context, _ []cluster.Op) *cluster.TxnResult {
			<-ctx.Done()
			return &cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1}
		}}
		b := runKeepalive(t, store, nil, nil)
		pass(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		if r := b.Final(ctx); r.Outcome == cluster.OutcomeOK || time.Since(began) > 3*time.Second {
			t.Fatalf("%+v after %v", r, time.Since(began))
		}
	})
}

func TestMissingRecordsAreMadeWithinTheSameKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nodeStore{}
		repair := CreateMissing(func(_ context.Context, txn cluster.Txn) cluster.TxnResult {
			store.mu.Lock()
			defer store.mu.Unlock()
			for _, op := range txn.Ops {
				if op.Kind != cluster.OpCreate || !store.missing[op.Key.Name] {
					return cluster.TxnResult{Outcome: cluster.OutcomeConflict}
				}
				delete(store.missing, op.Key.Name)
			}
			return cluster.TxnResult{Outcome: cluster.OutcomeOK}
		})
		c := steady("c", map[string]string{"memtotal": "1", "monitoring_data/load/message": "OK", "monitoring_data/load/runtime": "0.1"})
		b := runKeepalive(t, store, []Collector{c}, func(c *KeepaliveConfig) { c.Repair = repair })
		pass(500 * time.Millisecond)
		store.mu.Lock() // somebody removes them
		store.missing = map[string]bool{"load/message": true, "load/runtime": true}
		store.mu.Unlock()
		b.Resend()
		pass(600 * time.Millisecond)
		if b.Acked() != b.begun.Add(time.Second) || store.value(cluster.KeyPluginField, "load/message") != "OK" {
			t.Fatalf("acked %v, %v", b.Acked().Sub(b.begun), store.values)
		}
		if s := b.Keepalive.Status(); s.Repaired == 0 || s.Unpublished != 0 || s.LastError != "" {
			t.Fatalf("status %+v", s)
		}
	})
}

// The Multi of a keepalive may carry a lease renewal: new figures must not make
// it fail.
func TestNewFiguresAreMadeBeforeTheyAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		values, missing := map[string]string{}, map[string]bool{"p/gone": true}
		for i := range 45 {
			leaf := fmt.Sprintf("p%02d/message", i)
			values["monitoring_data/"+leaf], missing[leaf] = "OK", true
		}
		store := &nodeStore{missing: missing}
		var made []string
		repair := CreateMissing(func(_ context.Context, txn cluster.Txn) cluster.TxnResult {
			time.Sleep(15 * time.Millisecond) // more than one keepalive's time for all of them
			store.mu.Lock()
			defer store.mu.Unlock()
			made = append(made, txn.Ops[0].Key.Name)
			delete(store.missing, txn.Ops[0].Key.Name)
			return cluster.TxnResult{Outcome: cluster.OutcomeOK}
		})
		b := runKeepalive(t, store, []Collector{steady("c", values)}, func(c *KeepaliveConfig) { c.Repair = repair })
		pass(5*time.Second + 500*time.Millisecond)
		if s := b.Keepalive.Status(); s.Unpublished != 0 || s.Failed != 0 || s.Missed != 0 || store.conflicts != 0 {
			t.Fatalf("status %+v, %d conflicts", s, store.conflicts)
		}
		if !slices.Equal(made[:3], []string{"monitoring_data", "p00", "p00/message"}) {
			t.Fatalf("made %q: what lies above comes first", made[:3])
		}
	})
}

func TestFiguresThatCannotBeWrittenDoNotCostTheProofOfLife(t *testing.T) {
	for name, outcome := range map[string]cluster.Outcome{"conflict": cluster.OutcomeConflict, "refused": cluster.OutcomeRefused} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &nodeStore{}
				store.answer = func(_ context.Context, ops []cluster.Op) *cluster.TxnResult {
					for i, op := range ops {
						if op.Key.Name == "load/message" {
							return &cluster.TxnResult{Outcome: outcome, FailedOp: i, Err: cluster.ErrTooLarge}
						}
					}
					return nil
				}
				c := steady("c", map[string]string{"memtotal": "1", "monitoring_data/load/message": strings.Repeat("x", 1000)})
				b := runKeepalive(t, store, []Collector{c}, func(c *KeepaliveConfig) {
					c.Repair = func(context.Context, []cluster.Op) error { return nil } // says so, to no avail
				})
				pass(10*time.Second + 100*time.Millisecond)
				if b.Acked() != b.begun.Add(10*time.Second) {
					t.Fatalf("acked at %v", b.Acked().Sub(b.begun))
				}
				s := b.Keepalive.Status()
				if s.Unpublished == 0 {
					t.Fatalf("status %+v", s)
				}
				if outcome == cluster.OutcomeRefused && (!slices.Equal(s.Refused, []string{"monitoring_data/load/message"}) ||
					store.value(cluster.KeyNodeField, "memtotal") != "1") {
					t.Fatalf("refused %q, written %v", s.Refused, store.values)
				}
			})
		})
	}
}

func TestACollectorCannotWriteCoordination(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := runKeepalive(t, &nodeStore{}, []Collector{steady("c", map[string]string{
			"daemonstate": "dead", "routerstate": "primary", "": "x", "a/../b": "x", "/x": "x", "keepalive": "1", "memtotal": "5"})}, nil)
		pass(5 * time.Second)
		if got := leavesOf(slices.Concat(b.store.writes...)); !slices.Equal(got, []string{"memtotal"}) {
			t.Fatalf("wrote %q", got)
		}
	})
}

func TestManyFiguresAreSpreadOverKeepalives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		values := map[string]string{}
		for i := range 100 {
			values[fmt.Sprintf("monitoring_data/p%02d/data", i)] = strings.Repeat("x", 4000)
		}
		b := runKeepalive(t, &nodeStore{}, []Collector{steady("c", values)}, nil)
		pass(10 * time.Second)
		if s := b.Keepalive.Status(); s.Unpublished != 0 {
			t.Fatalf("%d are left", s.Unpublished)
		}
		for _, ops := range b.store.writes {
			if n := len(leavesOf(ops)); n > 40 {
				t.Fatalf("%d figures of 4000 bytes in one Multi", n)
			}
		}
	})
}

func TestResendWritesEverythingAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := runKeepalive(t, &nodeStore{}, []Collector{steady("c", map[string]string{"memtotal": "5"})}, nil)
		pass(3500 * time.Millisecond)
		b.store.mu.Lock()
		b.store.values = nil // somebody wrote over it
		b.store.mu.Unlock()
		b.Resend()
		synctest.Wait()
		if b.store.state() != "init" || b.store.value(cluster.KeyNodeField, "memtotal") != "5" {
			t.Fatalf("stands %v", b.store.values)
		}
	})
}

// What does not change is written again all the same: each value within Refresh,
// a few with each keepalive, and no keepalive more for it.
func TestUnchangedFiguresAreWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		values := map[string]string{}
		for i := range 100 {
			values[fmt.Sprintf("monitoring_data/p%d/message", i)] = "OK"
		}
		b := runKeepalive(t, &nodeStore{}, []Collector{steady("many", values)}, nil)
		if err := b.SetState(cluster.DaemonRun); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Minute)
		last := map[string]cluster.Instant{}
		for i, ops := range b.store.writes {
			at, most := b.store.at[i], 102
			if at.Sub(b.begun) > 2*time.Second { // by then all have been written once
				most = 6
			}
			if len(ops) > most {
				t.Errorf("%d operations in one keepalive, %v after the start", len(ops), at.Sub(b.begun))
			}
			for _, op := range ops {
				leaf := fmt.Sprint(op.Key.Kind, op.Key.Name)
				if was, ok := last[leaf]; ok && at.Sub(was) > time.Minute {
					t.Errorf("%s was written again after %v", leaf, at.Sub(was))
				}
				last[leaf] = at
			}
		}
		if n := len(b.store.writes); n > 302 || len(last) != 102 {
			t.Errorf("%d keepalives in five minutes, %d records", n, len(last))
		}
		for leaf, at := range last {
			if bubbleClock.Now(bubbleClock{}).Sub(at) > time.Minute {
				t.Errorf("%s is not written any more", leaf)
			}
		}
	})
}

func TestKeepaliveRefusesWrongSettings(t *testing.T) {
	good := KeepaliveConfig{Node: "hv1", Interval: time.Second, Clock: bubbleClock{}, Publish: (&nodeStore{}).publish}
	if _, err := NewKeepalive(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*KeepaliveConfig){
		"no publish":  func(c *KeepaliveConfig) { c.Publish = nil },
		"no interval": func(c *KeepaliveConfig) { c.Interval = 0 },
		"no clock":    func(c *KeepaliveConfig) { c.Clock = nil },
		"no node":     func(c *KeepaliveConfig) { c.Node = "none" },
		"lead":        func(c *KeepaliveConfig) { c.CollectLead = time.Second },
	} {
		bad := good
		spoil(&bad)
		if _, err := NewKeepalive(bad); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
