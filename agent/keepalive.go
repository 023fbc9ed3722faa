package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// KeepaliveConfig is what a Keepalive needs. Publish, Node, Interval and Clock
// are required.
type KeepaliveConfig struct {
	Node     cluster.NodeID
	Interval time.Duration // K
	// CollectLead is how long before each keepalive the collectors are started
	// (the collector deadline); below Interval. Default 0.8 K.
	CollectLead time.Duration
	// PublishTimeout bounds one publish with its repairs. Default 0.8 K.
	PublishTimeout time.Duration
	// RetryPause is how long after a publish that was not acknowledged the next
	// is tried, if no keepalive is due before. Default 0.1 K.
	RetryPause time.Duration
	// Refresh is within which time every value is written again though it has
	// not changed, a few with each keepalive: what somebody else writes over a
	// node's records does not stay. Default valueRefresh.
	Refresh    time.Duration
	Clock      cluster.Clock
	Wall       func() time.Time // default time.Now; for the record that people read, nothing else
	Log        *zap.Logger      // default none
	Collection *Collection      // default none
	// Publish writes the ops in one Multi. It may block until its context ends.
	// The result's Versions, where it has as many as there are ops, belong to
	// them one by one. It is never called twice at a time.
	Publish func(ctx context.Context, ops []cluster.Op) cluster.TxnResult
	// Repair makes the records that are missing among those the ops write:
	// before figures are first written, and after a publish met a conflict.
	// Default: nothing is made.
	Repair func(ctx context.Context, ops []cluster.Op) error
	// Acknowledged is told the send instant of each acknowledged keepalive,
	// from the publishing goroutine; it must not block.
	Acknowledged func(sentAt cluster.Instant)
	// Schema returns the newest schema of the store's tree that this program can
	// write and the one that it writes now; both are published, and from
	// cluster.FactsSchema on one record with all values. Default: nothing of it.
	Schema func() (newest, now int)
	// Incarnation is this start's, for that record.
	Incarnation cluster.Incarnation
	// Others reads those of this node's leaves that somebody else writes, for that
	// record alone. Default: there are none.
	Others *Collection
	// Turned is called each time the loop has turned, at least once per
	// keepalive; it must not block. A watchdog is fed from here.
	Turned func(now cluster.Instant)
}

// KeepaliveStatus is how the keepalive fares.
type KeepaliveStatus struct {
	State        cluster.DaemonState
	Acked        cluster.Instant // send instant of the last acknowledged keepalive; Never before the first
	Sent         uint64          // publishes begun
	Failed       uint64          // publishes that were not acknowledged
	Missed       uint64          // due instants at which none could be begun: stalls, or one still in flight
	Lateness     LatenessHistogram
	LastError    string   // of the latest publish, "" when it was acknowledged
	Refused      []string // leaves whose value the store refused
	Unpublished  int      // leaves whose value is not yet acknowledged
	Repaired     uint64
	InFlightFrom cluster.Instant // Never when no publish is under way
}

// valueRefresh is how long what somebody else has written over a value of this
// node's may stand there.
const valueRefresh = time.Minute

// maxValueBytes bounds the figures in one keepalive; the rest follows with the next.
const maxValueBytes = 128 << 10

// Keepalive writes this node's proof of life: one Multi at a fixed rate, on a
// grid that neither collectors nor a slow store can delay (I10).
//
//	start ──► tick ──► collect (tick − CollectLead) ──► tick ──► …
//	            └─► publish, ≤ PublishTimeout; a due tick waits for it
//
// After a stall the backlog is dropped: one tick at once, the next on the grid.
type Keepalive struct {
	cfg    KeepaliveConfig
	kicks  chan struct{}   // one slot: publish now
	finals chan finalOrder // the last keepalive
	ended  chan struct{}   // closed when Run has returned
	grid   beat            // where the keepalives lie in time, for whoever wakes with them

	mu     sync.Mutex
	riders []cluster.Op // go with the next keepalive, once
	state  cluster.DaemonState
	acked  map[string]string          // leaves as last acknowledged; a leaf whose write is unknown is absent
	wrote  map[string]cluster.Instant // send instant of each leaf's last acknowledged write; "" is the daemon state's
	refuse map[string]string          // values that the store refused, not sent again
	made   map[string]bool            // leaves whose records are known to be there
	// ackedState is the daemon state as last acknowledged, "" when unknown.
	ackedState cluster.DaemonState
	// version is the keepalive record's, AnyVersion when not known. While it is
	// known each write compares it: a write of ours whose reply was lost, and
	// with it an old daemon state, is then not carried out after a later one, or
	// if it was, the next write's conflict shows it.
	version int32
	status  KeepaliveStatus
	facts   factsRecord
}

type finalOrder struct {
	ctx   context.Context
	reply chan cluster.TxnResult
}

// NewKeepalive checks the settings. The loop starts with Run.
func NewKeepalive(cfg KeepaliveConfig) (*Keepalive, error) {
	if cfg.Publish == nil || cfg.Clock == nil || cfg.Interval <= 0 {
		return nil, errors.New("make keepalive: publish, clock and a positive interval are required")
	}
	if err := cfg.Node.Validate(); err != nil {
		return nil, fmt.Errorf("make keepalive: %w", err)
	}
	part := func(d *time.Duration, of time.Duration) {
		if *d <= 0 {
			*d = of
		}
	}
	part(&cfg.CollectLead, cfg.Interval*4/5)
	part(&cfg.PublishTimeout, cfg.Interval*4/5)
	part(&cfg.RetryPause, cfg.Interval/10)
	part(&cfg.Refresh, valueRefresh)
	if cfg.CollectLead >= cfg.Interval {
		return nil, fmt.Errorf("make keepalive: collector deadline %v must be below the interval %v", cfg.CollectLead, cfg.Interval)
	}
	if cfg.Wall == nil {
		cfg.Wall = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Keepalive{
		cfg: cfg, kicks: make(chan struct{}, 1), finals: make(chan finalOrder), ended: make(chan struct{}),
		state: cluster.DaemonInit, acked: map[string]string{}, wrote: map[string]cluster.Instant{}, refuse: map[string]string{}, made: map[string]bool{}, version: cluster.AnyVersion,
	}, nil
}

// keepaliveLoop is Run's state; only Run's goroutine touches it.
type keepaliveLoop struct {
	fanAt, dueAt, retryAt cluster.Instant // retryAt Never: none
	pending               bool            // a keepalive is due and waits for the one in flight
	inFlight              chan cluster.TxnResult
}

// Run publishes at once and then each interval until ctx ends or Final has
// been served, and waits for what it has in flight. It is called once.
func (k *Keepalive) Run(ctx context.Context) error {
	defer close(k.ended)
	l := &keepaliveLoop{dueAt: k.cfg.Clock.Now()}
	l.fanAt = l.dueAt.Add(-k.cfg.CollectLead)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		k.turn(ctx, l)
		timer.Reset(max(0, cluster.Earliest(l.fanAt, l.dueAt, l.retryAt).Sub(k.cfg.Clock.Now())))
		select {
		case <-timer.C:
		case <-k.kicks:
			l.pending = true
		case r := <-l.inFlight:
			l.inFlight = nil
			k.settle(l, r)
		case order := <-k.finals:
			order.reply <- k.publishFinal(order.ctx, l)
			return nil
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), k.awaitInFlight(context.WithoutCancel(ctx), l))
		}
	}
}

// turn starts what is due.
func (k *Keepalive) turn(ctx context.Context, l *keepaliveLoop) {
	select {
	case r := <-l.inFlight: // ended while the loop was busy or stalled
		l.inFlight = nil
		k.settle(l, r)
	default:
	}
	now := k.cfg.Clock.Now()
	if !now.Before(l.fanAt) {
		if k.cfg.Collection != nil {
			k.cfg.Collection.Tick(ctx)
		}
		k.tickOthers(ctx)
		l.fanAt = cluster.Forever // set again with the next due instant
	}
	if !now.Before(l.dueAt) {
		k.due(l, now)
	}
	if !l.retryAt.IsZero() && !now.Before(l.retryAt) {
		l.pending, l.retryAt = true, cluster.Never
	}
	if l.pending && l.inFlight == nil {
		l.pending, l.retryAt = false, cluster.Never
		k.begin(ctx, l)
	}
	if k.cfg.Turned != nil {
		k.cfg.Turned(now)
	}
}

// due notes a keepalive's due instant and moves on along the grid, dropping
// what a stall has piled up.
func (k *Keepalive) due(l *keepaliveLoop, now cluster.Instant) {
	late := now.Sub(l.dueAt)
	dropped := late / k.cfg.Interval
	k.mu.Lock()
	k.status.Lateness.add(late)
	k.status.Missed += uint64(dropped)
	if l.inFlight != nil {
		k.status.Missed++
	}
	k.mu.Unlock()
	if dropped > 0 {
		k.cfg.Log.Warn("keepalive loop stalled: backlog dropped", zap.Duration("late", late), zap.Int64("dropped", int64(dropped)))
	}
	l.pending = true
	k.grid.mark(l.dueAt)
	l.dueAt = l.dueAt.Add(k.cfg.Interval * (dropped + 1))
	l.fanAt = l.dueAt.Add(-k.cfg.CollectLead)
}

// begin starts a publish in its own goroutine; its result arrives at inFlight.
func (k *Keepalive) begin(ctx context.Context, l *keepaliveLoop) {
	k.mu.Lock()
	k.status.Sent++
	k.status.InFlightFrom = k.cfg.Clock.Now()
	k.mu.Unlock()
	result := make(chan cluster.TxnResult, 1)
	l.inFlight = result
	go func() { // Run waits for it
		ctx, cancel := context.WithTimeout(ctx, k.cfg.PublishTimeout)
		defer cancel()
		result <- k.publish(ctx)
	}()
}

// settle plans a retry after a publish that was not acknowledged.
func (k *Keepalive) settle(l *keepaliveLoop, r cluster.TxnResult) {
	k.mu.Lock()
	k.status.InFlightFrom = cluster.Never
	k.mu.Unlock()
	if r.Outcome == cluster.OutcomeOK {
		return
	}
	if at := k.cfg.Clock.Now().Add(k.cfg.RetryPause); at.Before(l.dueAt) {
		l.retryAt = at
	}
}

// awaitInFlight waits for the publish under way, whose own context ends within
// PublishTimeout; one that does not heed it is named.
func (k *Keepalive) awaitInFlight(ctx context.Context, l *keepaliveLoop) error {
	if l.inFlight == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.PublishTimeout+time.Second)
	defer cancel()
	select {
	case <-l.inFlight:
		l.inFlight = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the keepalive under way does not end: %w", cluster.ErrDeadline)
	}
}

// publishFinal waits for what is in flight and writes state stop until it is
// acknowledged, refused for good, or ctx ends.
func (k *Keepalive) publishFinal(ctx context.Context, l *keepaliveLoop) cluster.TxnResult {
	if err := k.awaitInFlight(ctx, l); err != nil {
		return cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1, Err: fmt.Errorf("write final keepalive: %w", err)}
	}
	_ = k.SetState(cluster.DaemonStop) // the last of the states: cannot go back
	for {
		own, cancel := context.WithTimeout(ctx, k.cfg.PublishTimeout)
		r := k.publish(own)
		cancel()
		if r.Outcome == cluster.OutcomeOK || r.Outcome == cluster.OutcomeRefused || ctx.Err() != nil {
			return r
		}
		select {
		case <-time.After(k.cfg.RetryPause):
		case <-ctx.Done():
			return r
		}
	}
}

// Ride sends a write of this node's own with the next keepalive, in its Multi.
// It is tried once, and of two writes of one record the later one goes. Nothing
// may ride whose failure would matter: the proof of life does not wait for it.
func (k *Keepalive) Ride(op cluster.Op) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.riders = slices.DeleteFunc(k.riders, func(o cluster.Op) bool { return o.Key == op.Key })
	k.riders = append(k.riders, op)
}

// Alight takes back a write of this record that has not gone yet.
func (k *Keepalive) Alight(key cluster.Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.riders = slices.DeleteFunc(k.riders, func(o cluster.Op) bool { return o.Key == key })
}

// Final ends the loop with a last keepalive of state stop and returns what
// became of it; it is tried again until ctx ends. Where Run has ended already
// the outcome is NotSent.
func (k *Keepalive) Final(ctx context.Context) cluster.TxnResult {
	order := finalOrder{ctx: ctx, reply: make(chan cluster.TxnResult, 1)}
	select {
	case k.finals <- order:
		return <-order.reply
	case <-k.ended:
		return cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1, Err: errors.New("write final keepalive: the loop has ended")}
	case <-ctx.Done():
		return cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1, Err: fmt.Errorf("write final keepalive: %w", context.Cause(ctx))}
	}
}

// stateRank orders the daemon states of a life: it only ever goes forward, so
// that a keepalive in a shutdown cannot bring back state run.
var stateRank = map[cluster.DaemonState]int{
	cluster.DaemonInit: 1, cluster.DaemonRun: 2, cluster.DaemonShutdown: 3, cluster.DaemonStop: 4,
}

// SetState has the daemon's state written with the next keepalive, which goes
// out at once. States go from init over run and shutdown to stop, never back:
// the error says so, and nothing changes.
func (k *Keepalive) SetState(s cluster.DaemonState) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if stateRank[s] == 0 || stateRank[s] < stateRank[k.state] {
		return fmt.Errorf("set daemon state %q: it is %q and never goes back", s, k.state)
	}
	if s != k.state {
		k.state = s
		k.kick()
	}
	return nil
}

// State returns the daemon's state as last set.
func (k *Keepalive) State() cluster.DaemonState {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Publish has a keepalive go out at once; the grid stays.
func (k *Keepalive) Publish() { k.kick() }

func (k *Keepalive) kick() {
	select {
	case k.kicks <- struct{}{}:
	default: // one is asked for already
	}
}

// Resend forgets what was acknowledged, so that the daemon's state and all
// figures are written anew: after a new session, or when somebody else has
// written this node's records.
func (k *Keepalive) Resend() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.acked)
	clear(k.refuse)
	k.ackedState, k.version = "", cluster.AnyVersion
	k.kick()
}

// Acked returns the send instant of the last acknowledged keepalive: the proof
// of life from which deadlines count (I3). Never before the first.
func (k *Keepalive) Acked() cluster.Instant {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status.Acked
}

// Status tells how the keepalive fares.
func (k *Keepalive) Status() KeepaliveStatus {
	values := k.values()
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.status
	s.State = k.state
	s.Refused = slices.Sorted(maps.Keys(k.refuse))
	for leaf, v := range values {
		if had, ok := k.acked[leaf]; !ok || had != v {
			s.Unpublished++
		}
	}
	return s
}

// values are the collectors' figures, without leaves that are not theirs, and
// what is told of schemas.
func (k *Keepalive) values() map[string]string {
	var values map[string]string
	if k.cfg.Collection != nil {
		values = k.cfg.Collection.Values()
		maps.DeleteFunc(values, func(leaf, _ string) bool { return !collectable(leaf) })
	}
	return k.withSchema(values)
}

// coordination are the leaves of a node that no collector may write.
var coordination = map[string]bool{
	"": true, "keepalive": true, "daemonmode": true, "daemonstate": true, "routerstate": true, "domainstate": true,
}

// collectable reports whether a collector may write this leaf.
func collectable(leaf string) bool {
	return !coordination[leaf] && !slices.ContainsFunc(strings.Split(leaf, "/"), func(part string) bool {
		return part == "" || part == "." || part == ".."
	})
}

// leafKey is the record behind a collector's leaf.
func leafKey(n cluster.NodeID, leaf string) cluster.Key {
	if leaf == factsLeaf {
		return cluster.Key{Kind: cluster.KeyFacts, Node: n}
	}
	if plugin, ok := strings.CutPrefix(leaf, "monitoring_data/"); ok {
		return cluster.Key{Kind: cluster.KeyPluginField, Node: n, Name: plugin}
	}
	return cluster.Key{Kind: cluster.KeyNodeField, Node: n, Name: leaf}
}
