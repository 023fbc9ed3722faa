package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// fakeClock is moved by the test.
type fakeClock struct {
	mu  sync.Mutex
	now cluster.Instant
}

func (c *fakeClock) Now() cluster.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fakeStore keeps one snapshot and applies transactions to it.
type fakeStore struct {
	mu        sync.Mutex
	clock     cluster.Clock
	snap      *cluster.Snapshot
	ch        chan *cluster.Snapshot
	leaves    map[cluster.NodeID]map[string]string
	history   []cluster.Event
	down      bool
	published func(*cluster.Snapshot)
	// outcomes are forced on the next commits, in order; unknownApplied says
	// whether a forced OutcomeUnknown happens all the same.
	outcomes       []cluster.Outcome
	unknownApplied bool
	beforeCommit   func(*cluster.Snapshot) // another writer, just ahead of the commit
	afterUnknown   func(*cluster.Snapshot) // another writer, after a commit whose outcome was forced
	commits        int
	initialized    []string
	initError      error
	readError      map[cluster.NodeID]error
	views          map[cluster.NodeID]string // published
	tests          map[cluster.NodeID]string // of fence devices, published
	nodeLeases     string                    // the record; empty: there is none
	viewError      error
	historyError   error
	faults         map[string]map[string]string
	secrets        map[string]cluster.Versioned[cluster.SealedSecret]
	activities     map[cluster.ActivityID]cluster.Versioned[cluster.ActivityRecord]
	activityError  error
	texts          []cluster.Key // asked of ReadText
	nodeReads      int           // calls of ReadNode
	hang           chan struct{} // they wait for its end
}

func newFakeStore(clock cluster.Clock) *fakeStore {
	return &fakeStore{clock: clock, ch: make(chan *cluster.Snapshot, 1),
		leaves: map[cluster.NodeID]map[string]string{}, readError: map[cluster.NodeID]error{},
		views: map[cluster.NodeID]string{}, tests: map[cluster.NodeID]string{}, faults: map[string]map[string]string{}}
}

// edit publishes a changed copy of the snapshot.
func (f *fakeStore) edit(change func(*cluster.Snapshot)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.editLocked(change)
}

func (f *fakeStore) editLocked(change func(*cluster.Snapshot)) {
	next := &cluster.Snapshot{}
	if f.snap != nil {
		*next = *f.snap
		next.Nodes = maps.Clone(f.snap.Nodes)
	}
	change(next)
	next.ObservedAt = f.clock.Now()
	if f.snap != nil && !next.ObservedAt.After(f.snap.ObservedAt) { // no two are of the same instant
		next.ObservedAt = f.snap.ObservedAt.Add(1)
	}
	f.snap = next
	select {
	case <-f.ch:
	default:
	}
	f.ch <- next
	if f.published != nil {
		f.published(next)
	}
}

func (f *fakeStore) Subscribe() (<-chan *cluster.Snapshot, func()) { return f.ch, func() {} }

func (f *fakeStore) Refresh(ctx context.Context) (*cluster.Snapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, cluster.ErrNotLive
	}
	f.editLocked(func(*cluster.Snapshot) {})
	return f.snap, ctx.Err()
}

func (f *fakeStore) Commit(_ context.Context, t cluster.Txn) cluster.TxnResult {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commits++
	if f.beforeCommit != nil {
		change := f.beforeCommit
		f.beforeCommit = nil
		f.editLocked(change)
	}
	if f.down {
		return cluster.TxnResult{Outcome: cluster.OutcomeNotSent, Err: cluster.ErrNotLive}
	}
	if len(f.outcomes) > 0 {
		forced := f.outcomes[0]
		f.outcomes = f.outcomes[1:]
		if forced == cluster.OutcomeUnknown && f.unknownApplied {
			f.apply(t)
		}
		if f.afterUnknown != nil {
			f.editLocked(f.afterUnknown)
		}
		return cluster.TxnResult{Outcome: forced, FailedOp: -1}
	}
	return f.apply(t)
}

func (f *fakeStore) apply(t cluster.Txn) cluster.TxnResult {
	r := cluster.TxnResult{Outcome: cluster.OutcomeOK}
	next := *f.snap
	var events []cluster.Event
	for i, op := range t.Ops {
		var version int32
		var err error
		switch op.Key.Kind {
		case cluster.KeyPrimaryNode:
			version, err = write(&next.PrimaryNode, op)
		case cluster.KeyMaintenance:
			version, err = write(&next.Maintenance, op)
		case cluster.KeyMaintenanceRecord:
			version, err = write(&next.MaintenanceRecord, op)
		case cluster.KeyFailover:
			version, err = write(&next.Failover, op)
		case cluster.KeyFault, cluster.KeyFaultRoot:
			err = f.changeFault(op)
		case cluster.KeyFenceOrder:
			n := next.Nodes[op.Key.Node]
			version, err = write(&n.Order, op)
			next.Nodes = maps.Clone(next.Nodes)
			next.Nodes[op.Key.Node] = n
		case cluster.KeyDomainState:
			n := next.Nodes[op.Key.Node]
			version, err = write(&n.Domain, op)
			next.Nodes = maps.Clone(next.Nodes)
			next.Nodes[op.Key.Node] = n
		case cluster.KeyMemberOrder:
			version, err = write(&next.MemberOrder, op)
		case cluster.KeyWorkload:
			kept := next.Workloads[op.Key.Name]
			version, err = write(&kept, op)
			next.Workloads = maps.Clone(next.Workloads)
			if next.Workloads == nil {
				next.Workloads = map[string]cluster.Versioned[cluster.Workload]{}
			}
			if next.Workloads[op.Key.Name] = kept; !kept.Present {
				delete(next.Workloads, op.Key.Name)
			}
		case cluster.KeyReprovision:
			version, err = write(&next.Reprovision, op)
		case cluster.KeyRebalance:
			version, err = write(&next.Rebalance, op)
		case cluster.KeySecret:
			kept := f.secrets[op.Key.Name]
			version, err = write(&kept, op)
			f.secrets = maps.Clone(f.secrets)
			if f.secrets == nil {
				f.secrets = map[string]cluster.Versioned[cluster.SealedSecret]{}
			}
			if f.secrets[op.Key.Name] = kept; !kept.Present {
				delete(f.secrets, op.Key.Name)
			}
		case cluster.KeyActivity:
			kept := f.activities[cluster.ActivityID(op.Key.Name)]
			version, err = write(&kept, op)
			f.activities = maps.Clone(f.activities)
			f.activities[cluster.ActivityID(op.Key.Name)] = kept
		case cluster.KeyHistory:
			if op.Kind != cluster.OpCreateSequential {
				err = errors.New("history is appended to")
			}
			events = append(events, op.Value.(cluster.Event))
		default:
			err = fmt.Errorf("unexpected key %s", op.Key)
		}
		if err != nil {
			return cluster.TxnResult{Outcome: cluster.OutcomeConflict, FailedOp: i, Err: err}
		}
		r.Versions = append(r.Versions, version)
	}
	f.history = append(f.history, events...)
	f.editLocked(func(s *cluster.Snapshot) { *s = next })
	return r
}

func write[T any](record *cluster.Versioned[T], op cluster.Op) (int32, error) {
	switch {
	case op.Kind == cluster.OpCreate && !record.Present && record.Mzxid == 0:
		*record = cluster.Versioned[T]{Present: true, Value: op.Value.(T)}
	case op.Kind == cluster.OpSet && op.Value == nil && record.Present && op.Version == record.Version:
		*record = cluster.Versioned[T]{Version: record.Version + 1, Mzxid: record.Mzxid + 1}
	case op.Kind == cluster.OpSet && (record.Present || record.Mzxid != 0) && op.Version == record.Version:
		record.Version++
		record.Present, record.Value = true, op.Value.(T)
	case op.Kind == cluster.OpDelete && record.Present && op.Version == record.Version:
		*record = cluster.Versioned[T]{}
	default:
		return 0, fmt.Errorf("op %d at version %d meets version %d", op.Kind, op.Version, record.Version)
	}
	return record.Version, nil
}

func (f *fakeStore) ReadNode(ctx context.Context, n cluster.NodeID) (map[string]string, error) {
	f.mu.Lock()
	f.nodeReads++
	hang := f.hang
	f.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", cluster.ErrDeadline, ctx.Err())
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.leaves[n]), f.readError[n]
}

func (f *fakeStore) ReadSecrets(context.Context) (map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	texts := map[string]string{}
	for name, kept := range f.secrets {
		text, err := json.Marshal(kept.Value)
		if err != nil {
			return nil, err
		}
		texts[name] = string(text)
	}
	return texts, nil
}

func (f *fakeStore) ReadHistory(_ context.Context, newest int) ([]cluster.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.historyError != nil {
		return nil, f.historyError
	}
	return f.history[max(0, len(f.history)-newest):], nil
}

func (f *fakeStore) Initialize(_ context.Context, name string, overwrite bool) error {
	f.initialized = append(f.initialized, fmt.Sprintf("%s %t", name, overwrite))
	if f.initError == nil {
		f.edit(func(s *cluster.Snapshot) { s.ClusterName = present(name) })
	}
	return f.initError
}

func (f *fakeStore) ReadText(_ context.Context, k cluster.Key) (cluster.Versioned[string], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.texts = append(f.texts, k)
	switch k.Kind {
	case cluster.KeyView:
		text, there := f.views[k.Node]
		return cluster.Versioned[string]{Present: there, Value: text}, f.viewError
	case cluster.KeyNodeLeases:
		return cluster.Versioned[string]{Present: f.nodeLeases != "", Value: f.nodeLeases}, nil
	case cluster.KeyFenceTests:
		text, there := f.tests[k.Node]
		return cluster.Versioned[string]{Present: there, Value: text}, nil
	case cluster.KeySecret:
		kept := f.secrets[k.Name]
		text, err := json.Marshal(kept.Value)
		return cluster.Versioned[string]{Present: kept.Present, Version: kept.Version, Value: string(text)}, err
	case cluster.KeyLog:
	default:
		return cluster.Versioned[string]{}, nil
	}
	var lines []string
	for i := range 20 {
		lines = append(lines, fmt.Sprintf("%s line %d", k.Node, i))
	}
	return present(strings.Join(lines, "\n") + "\n"), nil
}

func (f *fakeStore) changeFault(op cluster.Op) error {
	id, leaf, _ := strings.Cut(op.Key.Name, "/")
	fault, there := f.faults[id]
	_, leafThere := fault[leaf]
	switch {
	case !there || leaf != "" && !leafThere:
		return fmt.Errorf("no fault %s", op.Key.Name)
	case op.Kind == cluster.OpDelete && leaf == "" && len(fault) > 0:
		return fmt.Errorf("fault %s still has %d leaves", id, len(fault))
	case op.Kind == cluster.OpDelete && leaf == "":
		delete(f.faults, id)
	case op.Kind == cluster.OpDelete:
		delete(fault, leaf)
	default:
		fault[leaf] = op.Value.(string)
	}
	return nil
}

func (f *fakeStore) ReadFaults(context.Context) ([]FaultRecord, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, cluster.ErrNotLive
	}
	var records []FaultRecord
	for _, id := range slices.Sorted(maps.Keys(f.faults)) {
		records = append(records, FaultRecord{id, maps.Clone(f.faults[id])})
	}
	return records, nil
}

// publish writes a node's view.
func (w *world) publish(n cluster.NodeID, v cluster.View) {
	w.t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.views[n] = string(raw)
}

// beat has a node write a keepalive, and lets the time pass in which answers
// about all nodes are shared.
func (w *world) beat(n cluster.NodeID) {
	w.clock.advance(renderFresh)
	w.edit(func(s *cluster.Snapshot) {
		now := w.clock.Now()
		s.Lease.SeenAt = now
		if v, known := s.Nodes[n]; known {
			v.Keepalive.Version++
			v.Keepalive.SeenAt = now
			s.Nodes[n] = v
		}
	})
}

func present[T any](v T) cluster.Versioned[T] { return cluster.Versioned[T]{Present: true, Value: v} }

func seen[T any](v T, at cluster.Instant) cluster.Versioned[T] {
	return cluster.Versioned[T]{Present: true, Value: v, SeenAt: at}
}

// world is a server over a fake store with hv1 primary, hv2 secondary, hv3 a
// hypervisor.
type world struct {
	t      *testing.T
	clock  *fakeClock
	store  *fakeStore
	server *Server
	check  func(context.Context, cluster.Workload) error // a workload's driver
}

func newWorld(t *testing.T, configure ...func(*Config)) *world {
	t.Helper()
	clock := &fakeClock{now: cluster.Instant(1000 * time.Second)}
	c := Config{ClusterName: "demo", Node: "hv1", Version: "0.1", Timing: cluster.ProfileLAN(), RequestTimeout: 2 * time.Second}
	for _, f := range configure {
		f(&c)
	}
	w := &world{t: t, clock: clock, store: newFakeStore(clock), check: func(context.Context, cluster.Workload) error { return nil }}
	server, err := New(c, Deps{w.store, w.store, w.store, w.store, w.store, w.store, clock, func(ctx context.Context, k cluster.Workload) error { return w.check(ctx, k) }}, zap.NewNop(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.server = server
	w.store.published = server.view.adopt
	w.store.edit(func(s *cluster.Snapshot) { w.fill(s) })
	return w
}

func (w *world) fill(s *cluster.Snapshot) {
	now := w.clock.Now()
	s.Complete, s.Live, s.Session, s.Since = true, true, 0x1234, now.Add(-time.Hour)
	s.ClusterName = present("demo")
	s.PrimaryNode = cluster.Versioned[string]{Present: true, Value: "hv1", Version: 7}
	s.Lease = seen(cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "b.1", Epoch: 4, TTLMillis: 2800}, now)
	s.Maintenance = present(false)
	s.Nodes = map[cluster.NodeID]cluster.NodeView{}
	for name, mode := range map[cluster.NodeID]cluster.Mode{"hv1": cluster.Coordinator, "hv2": cluster.Coordinator, "hv3": cluster.Hypervisor} {
		n := cluster.NodeView{Name: name, Mode: present(mode), Keepalive: seen(int64(1), now), Daemon: present(cluster.DaemonRun),
			Router: present(cluster.RouterSecondary), Domain: present(cluster.DomainReady),
			Record: present(cluster.NodeRecord{Version: 1, Incarnation: "b.1"}), Alive: present(cluster.Alive{Version: 1, Incarnation: "b.1"})}
		switch name {
		case "hv1":
			n.Router = present(cluster.RouterPrimary)
		case "hv3":
			n.Router = present(cluster.RouterClient)
		}
		s.Nodes[name] = n
		w.store.leaves[name] = map[string]string{
			"staticdata": "4 6.1.0-18-amd64 Debian12 x86_64", "memtotal": "8000", "memused": "3000", "memfree": "5000",
			"memalloc": "1024", "memprov": "2048", "vcpualloc": "2", "domainscount": "1", "cpuload": "0.25",
			"runningdomains": "vm-" + string(name), "pvcversion": "0.1", "monitoring_health": "95", "monitoring_plugins": "load",
			"monitoring_data/load/last_run": "1700000000", "monitoring_data/load/health_delta": "5",
			"monitoring_data/load/message": "load is 9", "monitoring_data/load/data": `{"load":9}`,
		}
	}
}

// node changes one node of the snapshot and lets the server see it.
func (w *world) node(name cluster.NodeID, change func(*cluster.NodeView)) {
	w.edit(func(s *cluster.Snapshot) {
		n := s.Nodes[name]
		change(&n)
		n.Name = name
		s.Nodes[name] = n
	})
}

func (w *world) edit(change func(*cluster.Snapshot)) {
	w.store.edit(change)
}

// later lets time pass in which the store answers and nothing changes.
func (w *world) later(d time.Duration) {
	w.clock.advance(d)
	w.edit(func(*cluster.Snapshot) {})
}

// away makes the store unreachable.
func (w *world) away() {
	w.store.down = true
	w.edit(func(s *cluster.Snapshot) { s.Live = false })
	w.clock.advance(12 * time.Second)
}

// do sends one request from loopback and returns status and body.
func (w *world) do(method, path, contentType, body string, headers ...string) (int, string) {
	w.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, path, reader)
	r.Host = "127.0.0.1:7370"
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer := httptest.NewRecorder()
	w.server.Handler().ServeHTTP(answer, r)
	return answer.Code, strings.TrimSpace(answer.Body.String())
}

func (w *world) get(path string) (int, string) {
	w.t.Helper()
	return w.do(http.MethodGet, path, "", "")
}

func (w *world) post(path, form string) (int, string) {
	w.t.Helper()
	return w.do(http.MethodPost, path, "application/x-www-form-urlencoded", form)
}

// expect compares status and exact body.
func (w *world) expect(what string, status int, body string, wantStatus int, wantBody string) {
	w.t.Helper()
	if status != wantStatus || body != wantBody {
		w.t.Errorf("%s:\n got %d %s\nwant %d %s", what, status, body, wantStatus, wantBody)
	}
}

func decode[T any](t *testing.T, body string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v
}
