package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// changeGap bounds how often a new snapshot is looked at for changes: with many
// nodes there is a keepalive each few milliseconds, and none of them is one.
const changeGap = 20 * time.Millisecond

// A look at the store that an expiry needs, and when to look again.
const (
	lookTimeout = 500 * time.Millisecond
	lookAgain   = 100 * time.Millisecond
)

// ClusterView is everything the page shows. Version names the view without its
// ages: two answers with the same version differ in nothing else.
type ClusterView struct {
	Version       string                   `json:"version"`
	Stale         bool                     `json:"stale"` // the store is away: true at that time, perhaps not now
	ClusterName   string                   `json:"cluster_name"`
	Initialised   bool                     `json:"initialised"`
	PrimaryNode   string                   `json:"primary_node"`   // who holds the role; empty while nobody does
	PrimaryWanted string                   `json:"primary_wanted"` // who shall hold it, or "none"
	Lease         LeaseView                `json:"lease"`
	Transition    *cluster.Transition      `json:"transition"` // running or last; null before the first
	Maintenance   MaintenanceView          `json:"maintenance"`
	RoleLock      []LockView               `json:"role_lock"`
	Nodes         []NodeSummary            `json:"nodes"`
	Fences        []cluster.FenceRecord    `json:"fences"`
	Orders        []cluster.FenceOrder     `json:"orders"` // of operators, not carried out yet
	Failover      cluster.FailoverSettings `json:"failover"`
	Workloads     []WorkloadSummary        `json:"workloads"`
	Reprovision   AutoReprovision          `json:"reprovision"`
	Rebalance     RebalanceView            `json:"rebalance"`
	Store         StoreView                `json:"store"`
}

// WorkloadSummary is one workload in few words.
type WorkloadSummary struct {
	Name   string                `json:"name"`
	Kind   cluster.WorkloadKind  `json:"kind"`
	Driver string                `json:"driver"`
	State  cluster.WorkloadState `json:"state"`
	Reason string                `json:"reason,omitempty"`
	Wanted bool                  `json:"wanted"`
	Chain  []cluster.NodeID      `json:"chain"` // the active copy's node first; empty: nobody fills that place
}

// LeaseView is the primary lease as observed by this server.
type LeaseView struct {
	Present     bool                `json:"present"`
	Holder      cluster.NodeID      `json:"holder"`
	Incarnation cluster.Incarnation `json:"incarnation"`
	Epoch       cluster.Epoch       `json:"epoch"`
	TTLMillis   int64               `json:"ttl_ms"`
	Expired     bool                `json:"expired"` // not renewed for ttl + margin
	Error       string              `json:"error,omitempty"`
}

// MaintenanceView says whether, by whom and why the cluster is in maintenance.
type MaintenanceView struct {
	On        bool   `json:"on"`
	Owner     string `json:"owner,omitempty"`
	Reason    string `json:"reason,omitempty"`
	SinceMS   int64  `json:"since_ms,omitempty"`   // unix milliseconds
	ExpiresMS int64  `json:"expires_ms,omitempty"` // unix milliseconds; 0 never
}

// LockView is one contender in the role lock's queue.
type LockView struct {
	Name    string         `json:"name"`
	Node    cluster.NodeID `json:"node,omitempty"` // empty where the child is foreign
	Foreign bool           `json:"foreign"`
}

// NodeSummary is one node as the coordination records show it.
type NodeSummary struct {
	Name             cluster.NodeID      `json:"name"`
	Mode             cluster.Mode        `json:"mode"`
	DaemonState      cluster.DaemonState `json:"daemon_state"`
	CoordinatorState cluster.RouterState `json:"coordinator_state"`
	DomainState      cluster.DomainState `json:"domain_state"`
	Alive            bool                `json:"alive"`              // its session lives
	Settling         bool                `json:"settling,omitempty"` // its daemon runs, and its copies of workloads are ending, as it is being stopped
	Incarnation      cluster.Incarnation `json:"incarnation,omitempty"`
	Priority         int                 `json:"priority"`
	Addresses        []string            `json:"addresses,omitempty"`
	Faults           []string            `json:"faults,omitempty"` // records that cannot be read
	KeepaliveAge     *float64            `json:"keepalive_age"`    // seconds since it was last seen to change; null before the first
}

// StoreView is this server's own link to ZooKeeper.
type StoreView struct {
	Live        bool    `json:"live"`
	Complete    bool    `json:"complete"` // everything has been read in this session
	Session     string  `json:"session,omitempty"`
	AwaySeconds float64 `json:"away_seconds,omitempty"`
}

// view keeps the latest snapshot and counts its changes.
type view struct {
	clock  cluster.Clock
	margin time.Duration // M: what observers add to the lease's ttl
	late   time.Duration // F·K: a keepalive older than this says nothing
	token  string

	mu      sync.Mutex
	snap    *cluster.Snapshot // nil before the first
	away    bool
	since   cluster.Instant // when away last changed
	sight   cluster.Instant // when the store was last seen to answer
	counter uint64          // of changes of the view
	version string          // names the counter among those of all servers
	shape   []byte
	// workloads are those that shape was made with: a snapshot shares their map with
	// the one before where none of them has changed.
	workloads map[string]cluster.Versioned[cluster.Workload]
	changed   chan struct{} // closed at the next change of version
}

func newView(clock cluster.Clock, t cluster.Timing, token string) *view {
	return &view{clock: clock, margin: t.TakerMargin,
		late:  t.KeepaliveInterval * time.Duration(t.FenceIntervals),
		token: token, version: token + "-0", away: true, since: clock.Now(), changed: make(chan struct{})}
}

// follow adopts snapshots until ctx ends. The lease's expiry is a change that
// no snapshot announces, so at its instant look is called for a fresh one:
// whether a lease was not renewed, or the store is silent, only a look tells.
func (v *view) follow(ctx context.Context, snaps <-chan *cluster.Snapshot, look func(context.Context) *cluster.Snapshot) {
	expiry := time.NewTimer(time.Hour)
	defer expiry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case snap := <-snaps:
			v.adopt(snap)
		case <-expiry.C:
			v.adopt(look(ctx))
		}
		expiry.Reset(v.untilExpiry())
		select {
		case <-ctx.Done():
			return
		case <-time.After(changeGap):
		}
	}
}

// adopt takes a snapshot, unless a later one is there already.
func (v *view) adopt(snap *cluster.Snapshot) {
	if snap == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.snap != nil && snap.ObservedAt.Before(v.snap.ObservedAt) {
		return
	}
	v.snap = snap
	if snap.Live {
		v.sight = snap.ObservedAt
	}
	if v.away == snap.Live {
		v.away, v.since = !snap.Live, v.clock.Now()
	}
	v.recountLocked()
}

func (v *view) recountLocked() {
	st := v.stateLocked(v.clock.Now())
	shape := st.shape()
	if bytes.Equal(shape, v.shape) && sameMap(v.workloads, st.snap.Workloads) {
		return
	}
	v.shape, v.workloads = shape, st.snap.Workloads
	v.counter++
	v.version = fmt.Sprintf("%s-%d", v.token, v.counter)
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *view) untilExpiry() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.clock.Now()
	st := v.stateLocked(now)
	if st.holder() == "" || v.away {
		return time.Hour
	}
	return max(lookAgain, st.leaseEnd().Sub(now)+time.Millisecond)
}

// current returns what is known at now.
func (v *view) current(now cluster.Instant) state {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stateLocked(now)
}

func (v *view) stateLocked(now cluster.Instant) state {
	st := state{snap: v.snap, now: now, asOf: v.sight, margin: v.margin, late: v.late,
		version: v.version, counter: v.counter, changed: v.changed}
	if v.away {
		st.away = max(now.Sub(v.since), time.Millisecond)
	}
	return st
}

// state is a snapshot with the instant it is judged at.
type state struct {
	snap    *cluster.Snapshot // nil before the first
	now     cluster.Instant
	asOf    cluster.Instant // last sight of the store: what is later has not been observed
	away    time.Duration   // 0 while the store is live
	margin  time.Duration
	late    time.Duration
	version string
	counter uint64
	changed <-chan struct{}
}

// readable reports whether reads can be answered as facts.
func (st state) readable() bool { return st.snap != nil && st.snap.Complete && st.away == 0 }

// leaseEnd is when the lease expires as observed: counted from the last change
// seen, or from when this server could see again, whichever is later.
func (st state) leaseEnd() cluster.Instant {
	seen := max(st.snap.Lease.SeenAt, st.snap.Since)
	return seen.Add(st.snap.Lease.Value.TTL() + st.margin)
}

// holder is who holds the primary role, as a fact; empty while nobody does.
func (st state) holder() cluster.NodeID {
	if st.snap == nil {
		return ""
	}
	l := st.snap.Lease
	if !l.Present || l.Err != nil || l.Value.Released() || st.asOf.After(st.leaseEnd()) {
		return ""
	}
	return l.Value.Holder
}

// wish is who shall be primary: a node's name or cluster.NoNode.
func (st state) wish() string {
	if st.snap == nil || !st.snap.PrimaryNode.Present || st.snap.PrimaryNode.Value == "" {
		return cluster.NoNode
	}
	return st.snap.PrimaryNode.Value
}

// names returns the nodes' names in order.
func (st state) names() []cluster.NodeID {
	if st.snap == nil {
		return nil
	}
	names := make([]cluster.NodeID, 0, len(st.snap.Nodes))
	for name := range st.snap.Nodes {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool { return names[i] < names[j] })
	return names
}

// silence is how long the node's keepalive has not been seen to change while
// this server was looking.
func (st state) silence(n cluster.NodeView) time.Duration {
	return max(0, st.asOf.Sub(max(n.Keepalive.SeenAt, st.snap.Since)))
}

// cluster renders the whole view.
func (st state) cluster() ClusterView {
	c := st.coordination()
	if st.snap == nil {
		return c
	}
	for _, name := range st.workloads() {
		v := workloadView(name, st.snap.Workloads[name])
		c.Workloads = append(c.Workloads, WorkloadSummary{v.Name, v.Kind, driverText(cluster.Workload{Driver: v.Driver, Agent: v.Agent}), v.State, cmp.Or(v.Error, v.Reason), v.Wanted, v.Chain})
	}
	return c
}

// coordination is the view without the workloads, of which there may be many.
func (st state) coordination() ClusterView {
	c := ClusterView{Workloads: []WorkloadSummary{}, Rebalance: RebalanceView{State: RebalanceNone}, Version: st.version, Stale: !st.readable(), PrimaryWanted: st.wish(),
		PrimaryNode: string(st.holder()), RoleLock: []LockView{}, Nodes: []NodeSummary{}, Fences: []cluster.FenceRecord{}, Orders: []cluster.FenceOrder{}}
	c.Store.AwaySeconds = st.away.Seconds()
	if st.snap == nil {
		return c
	}
	s := st.snap
	c.ClusterName, c.Initialised = s.ClusterName.Value, s.ClusterName.Present
	c.Store.Live, c.Store.Complete = st.away == 0, s.Complete
	if s.Session != 0 {
		c.Store.Session = fmt.Sprintf("0x%x", uint64(s.Session))
	}
	c.Lease = st.lease()
	if s.Transition.Present && s.Transition.Value.ID != "" {
		t := s.Transition.Value
		c.Transition = &t
	}
	c.Maintenance = maintenanceView(s)
	for _, child := range s.RoleLock {
		c.RoleLock = append(c.RoleLock, LockView{child.Name, child.Owner.Node, child.Foreign})
	}
	c.Failover = cluster.DefaultFailoverSettings()
	if s.Failover.Present {
		c.Failover = s.Failover.Value
	}
	c.Reprovision, c.Rebalance = autoReprovision(st.reprovision()), rebalanceView(s.Rebalance)
	for _, name := range st.names() {
		n := s.Nodes[name]
		c.Nodes = append(c.Nodes, st.summary(n))
		if n.Fence.Present && n.Fence.Err == nil {
			c.Fences = append(c.Fences, n.Fence.Value)
		}
		if n.Order.Present && n.Order.Err == nil {
			c.Orders = append(c.Orders, n.Order.Value)
		}
	}
	return c
}

func (st state) lease() LeaseView {
	l := st.snap.Lease
	v := LeaseView{Present: l.Present, Holder: l.Value.Holder, Incarnation: l.Value.Incarnation,
		Epoch: l.Value.Epoch, TTLMillis: l.Value.TTLMillis}
	if l.Err != nil {
		v.Error = l.Err.Error()
	}
	v.Expired = l.Present && l.Err == nil && !l.Value.Released() && st.holder() == ""
	return v
}

func maintenanceView(s *cluster.Snapshot) MaintenanceView {
	v := MaintenanceView{On: s.Maintenance.Value}
	if v.On && s.MaintenanceRecord.Present {
		r := s.MaintenanceRecord.Value
		v.Owner, v.Reason, v.SinceMS, v.ExpiresMS = r.Owner, r.Reason, r.SinceMS, r.ExpiresMS
	}
	return v
}

func (st state) summary(n cluster.NodeView) NodeSummary {
	v := NodeSummary{Name: n.Name, Mode: n.Mode.Value, DaemonState: n.Daemon.Value,
		CoordinatorState: n.Router.Value, DomainState: n.Domain.Value,
		Alive: n.Alive.Present, Settling: settles(n), Incarnation: n.Record.Value.Incarnation,
		Priority: n.Record.Value.Priority, Addresses: n.Record.Value.Addresses}
	if n.Keepalive.Present {
		age := st.now.Sub(n.Keepalive.SeenAt).Seconds()
		v.KeepaliveAge = &age
	}
	for _, r := range []struct {
		what string
		err  error
	}{{"daemonmode", n.Mode.Err}, {"keepalive", n.Keepalive.Err}, {"daemonstate", n.Daemon.Err},
		{"routerstate", n.Router.Err}, {"domainstate", n.Domain.Err}, {"record", n.Record.Err},
		{"alive", n.Alive.Err}, {"fence", n.Fence.Err}, {"fence order", n.Order.Err}} {
		if r.err != nil {
			v.Faults = append(v.Faults, r.what+": "+r.err.Error())
		}
	}
	return v
}

// shape is the view without what changes by itself: ages, the version, and the
// stamp of a waiting candidate.
func (st state) shape() []byte {
	c := st.coordination()
	if st.snap != nil { // of a reset that is ordered, or done, the settings tell nothing
		c.Workloads = append(c.Workloads, WorkloadSummary{Name: st.snap.Reprovision.Value.Reset, Reason: st.snap.Reprovision.Value.Done})
	}
	c.Version, c.Store.AwaySeconds = "", 0
	for i := range c.Nodes {
		c.Nodes[i].KeepaliveAge = nil
	}
	if c.Transition != nil {
		c.Transition.Ready = 0
	}
	raw, err := json.Marshal(c)
	if err != nil { // cannot happen with these types; a text that never repeats keeps watchers awake
		return fmt.Appendf(nil, "%v %d", err, st.now)
	}
	return raw
}

// sameMap reports whether both are one and the same map. The first is held, so
// that no later one lies where it lay.
func sameMap[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}
