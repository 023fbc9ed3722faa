package fencing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// fakeStore keeps records with versions in memory and commits a Multi as a
// whole or not at all. before runs ahead of each commit, without the lock;
// replies, one a commit, says what becomes of it.
type fakeStore struct {
	mu      sync.Mutex
	entries map[cluster.Key]entry
	zxid    int64
	history []cluster.Event
	locked  bool

	before  func(purpose string)
	replies []reply
	commits []string
}

type entry struct {
	value   any
	version int32
	mzxid   int64
}

type reply uint8

const (
	answered    reply = iota
	lostApplied       // it happened, the reply is lost
	lostDropped       // it did not happen, the reply is lost
	notSent
)

var (
	owner    = cluster.LockOwner{Version: 1, Node: "a", Incarnation: "boot-a.1"}
	bRecord  = cluster.Key{Kind: cluster.KeyNodeRecord, Node: "b"}
	bAlive   = cluster.Key{Kind: cluster.KeyAlive, Node: "b"}
	bBeat    = cluster.Key{Kind: cluster.KeyKeepalive, Node: "b"}
	bRouter  = cluster.Key{Kind: cluster.KeyRouterState, Node: "b"}
	bDaemon  = cluster.Key{Kind: cluster.KeyDaemonState, Node: "b"}
	bFence   = cluster.Key{Kind: cluster.KeyFence, Node: "b"}
	leaseKey = cluster.Key{Kind: cluster.KeyLease}
)

// newStore holds node a as primary in epoch 7 and a dead node b that was
// primary before it.
func newStore() *fakeStore {
	s := &fakeStore{entries: map[cluster.Key]entry{}}
	s.put(leaseKey, cluster.Lease{Holder: "a", Incarnation: "boot-a.1", Epoch: 7})
	s.put(bRecord, cluster.NodeRecord{ID: "b", Incarnation: "boot-b.1"})
	s.put(bRouter, cluster.RouterPrimary)
	s.put(bDaemon, cluster.DaemonRun)
	s.put(bBeat, int64(1))
	for _, field := range zeroedFields {
		s.put(cluster.Key{Kind: cluster.KeyNodeField, Node: "b", Name: field.name}, "42")
	}
	s.put(cluster.Key{Kind: cluster.KeyNodeField, Node: "b", Name: "runningdomains"}, "vm1 vm2")
	return s
}

func (s *fakeStore) put(k cluster.Key, value any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(k, value)
}

func (s *fakeStore) set(k cluster.Key, value any) {
	s.zxid++
	old, present := s.entries[k]
	version := int32(0)
	if present {
		version = old.version + 1
	}
	s.entries[k] = entry{value: value, version: version, mzxid: s.zxid}
}

func (s *fakeStore) get(k cluster.Key) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[k].value
}

func (s *fakeStore) record() cluster.FenceRecord {
	r, _ := s.get(bFence).(cluster.FenceRecord)
	return r
}

func (s *fakeStore) count() int {
	f, _ := s.get(cluster.Key{Kind: cluster.KeyFailover}).(cluster.FailoverSettings)
	return f.Count
}

func (s *fakeStore) stages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var stages []string
	for _, e := range s.history {
		stages = append(stages, e.Fields["stage"])
	}
	return stages
}

func (s *fakeStore) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	if s.before != nil {
		s.before(t.Purpose)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1, Err: ctx.Err()}
	}
	s.commits = append(s.commits, t.Purpose)
	mode := answered
	if len(s.replies) > 0 {
		mode, s.replies = s.replies[0], s.replies[1:]
	}
	switch mode {
	case notSent:
		return cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1}
	case lostDropped:
		return cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1}
	case lostApplied:
		s.apply(t)
		return cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1}
	}
	return s.apply(t)
}

func (s *fakeStore) apply(t cluster.Txn) cluster.TxnResult {
	scratch := &fakeStore{entries: make(map[cluster.Key]entry, len(s.entries)), zxid: s.zxid}
	for k, v := range s.entries {
		scratch.entries[k] = v
	}
	var events []cluster.Event
	for i, op := range t.Ops {
		e, present := scratch.entries[op.Key]
		fits := present && (op.Version == cluster.AnyVersion || op.Version == e.version)
		switch op.Kind {
		case cluster.OpCreateSequential:
			events, fits = append(events, op.Value.(cluster.Event)), true
		case cluster.OpCreate:
			if fits = !present; fits {
				scratch.set(op.Key, op.Value)
			}
		case cluster.OpSet:
			if fits {
				scratch.set(op.Key, op.Value)
			}
		case cluster.OpDelete:
			delete(scratch.entries, op.Key)
		}
		if !fits {
			return cluster.TxnResult{Outcome: cluster.OutcomeConflict, FailedOp: i}
		}
	}
	s.entries, s.zxid, s.history = scratch.entries, scratch.zxid, append(s.history, events...)
	return cluster.TxnResult{Outcome: cluster.OutcomeOK, FailedOp: -1}
}

func versioned[T any](s *fakeStore, k cluster.Key) cluster.Versioned[T] {
	e, present := s.entries[k]
	if !present {
		return cluster.Versioned[T]{}
	}
	return cluster.Versioned[T]{Value: e.value.(T), Present: true, Version: e.version, Mzxid: e.mzxid}
}

func (s *fakeStore) Refresh(ctx context.Context) (*cluster.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &cluster.Snapshot{
		Live: true, Complete: true,
		Lease:       versioned[cluster.Lease](s, leaseKey),
		Failover:    versioned[cluster.FailoverSettings](s, cluster.Key{Kind: cluster.KeyFailover}),
		Maintenance: versioned[bool](s, cluster.Key{Kind: cluster.KeyMaintenance}),
		Nodes: map[cluster.NodeID]cluster.NodeView{"b": {
			Name: "b", Record: versioned[cluster.NodeRecord](s, bRecord), Alive: versioned[cluster.Alive](s, bAlive),
			Keepalive: versioned[int64](s, bBeat), Router: versioned[cluster.RouterState](s, bRouter),
			Daemon: versioned[cluster.DaemonState](s, bDaemon), Fence: versioned[cluster.FenceRecord](s, bFence),
		}},
	}, nil
}

func (s *fakeStore) Lock(_ context.Context, kind cluster.KeyKind, o cluster.LockOwner) (cluster.LockChild, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked || kind != cluster.KeyFenceLockChild {
		return cluster.LockChild{}, cluster.ErrLockTimeout
	}
	s.locked = true
	return cluster.LockChild{Owner: o}, nil
}

func (s *fakeStore) Unlock(ctx context.Context, _ cluster.KeyKind, _ cluster.LockChild) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locked = false
	return ctx.Err()
}

// bench is a Fencer over a fake store and a machine whose controller is called
// in process; broken makes every attempt end unknown, lying acknowledges only.
type bench struct {
	*Fencer
	store  *fakeStore
	node   *machine
	orders []string
	broken bool
	lying  bool
	lost   bool                // so is the guard: whether its children have ended is not known
	during func(action string) // runs inside each attempt
	ids    int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{store: newStore(), node: &machine{on: true}}
	device := testDevice(t, "bmc", "192.0.2.1:623")
	device.Timeout = DefaultTimeout
	fencer, err := New(Options{
		Store: b.store, Owner: owner,
		Config: Config{Nodes: map[string]NodeConfig{"b": {Levels: [][]Device{{device}}}}},
		Runner: Runner{Run: b.run, Argv: []string{"attempt"}, WallMS: func() int64 { return 1 }},
		NewID:  func() string { b.ids++; return fmt.Sprintf("fence-%d", b.ids) },
		WallMS: func() int64 { return 1 },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Fencer = fencer
	return b
}

func (b *bench) run(ctx context.Context, _ cluster.Token, r cluster.RunRequest) (cluster.RunResult, error) {
	var a Attempt
	if err := json.Unmarshal(r.Stdin, &a); err != nil {
		return cluster.RunResult{}, err
	}
	b.orders = append(b.orders, a.Action)
	if b.during != nil {
		b.during(a.Action)
	}
	if b.lost {
		return cluster.RunResult{}, errors.New("the guard's socket was closed")
	}
	if ctx.Err() != nil {
		return cluster.RunResult{ExitCode: -1, Error: "killed"}, nil //nolint:nilerr // as a guard says it
	}
	result := ResultUnknown
	if !b.broken {
		switch {
		case a.Action == ActionOff && !b.lying:
			_ = b.node.Off()
		case a.Action == ActionOn:
			_ = b.node.On()
		}
		result = ResultOff
		if on, _ := b.node.Status(); on {
			result = ResultOn
		}
		if a.Action == ActionOff && result == ResultOn {
			result = ResultFailed
		}
	}
	out, err := json.Marshal(AttemptResult{Version: 1, Result: result})
	return cluster.RunResult{Stdout: out}, err
}

// action is the decision that the dead node earns now.
func (b *bench) action() cluster.Action {
	snap, _ := b.store.Refresh(context.Background())
	return cluster.Action{
		Kind: cluster.ActionFence, Node: "b", Incarnation: "boot-b.1", Reason: "dead", Keepalive: snap.Nodes["b"].Keepalive.Mzxid,
	}
}

func (b *bench) snapshotNow() (*cluster.Snapshot, cluster.Instant) {
	snap, _ := b.store.Refresh(context.Background())
	return snap, cluster.Instant(time.Hour)
}

// resumeWhole resumes a record, and once more where it rests before power is
// given again, as the nodes' watch does once the record is due.
func (b *bench) resumeWhole(t *testing.T) (cluster.FenceRecord, error) {
	t.Helper()
	r, _, err := b.Resume(t.Context(), live(7), "b")
	if err == nil && r.Stage == cluster.FenceRecover {
		r, _, err = b.Resume(t.Context(), live(7), "b")
	}
	return r, err
}
