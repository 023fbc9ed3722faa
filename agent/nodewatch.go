package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/detector"
	"pvc.internal/agent/failover"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

var errNotPrimary = errors.New("this node is no longer primary")

// nodeWatch judges the other nodes a few times a tick, on every coordinator, so
// that a new primary starts with warm counters; only the primary acts. It is
// one goroutine; a fence runs in another, one at a time, under the role's
// context, and run waits for it.
type nodeWatch struct {
	c    Config
	d    Deps
	dec  *decider
	keep *Keepalive

	seen       detector.State
	judged     failover.State
	refusing   sync.Mutex
	refusals   map[cluster.NodeID]cluster.Refusal // why a down node is not fenced; refusing guards it
	holder     cluster.NodeID                     // of the lease, and who had it before
	before     cluster.NodeID
	lead       context.Context // while this node is primary; nil otherwise
	endLead    context.CancelCauseFunc
	fencing    atomic.Bool
	expiring   atomic.Bool
	fences     sync.WaitGroup
	said       saidWords // as published last, and when
	saidAt     cluster.Instant
	published  []byte
	publishing atomic.Bool
	unwritten  atomic.Bool // the last view did not reach the store
}

func newNodeWatch(c Config, d Deps, dec *decider, keep *Keepalive) *nodeWatch {
	return &nodeWatch{c: c, d: d, dec: dec, keep: keep, refusals: map[cluster.NodeID]cluster.Refusal{}}
}

// run steps detector and failover at a fixed rate until ctx ends. A hypervisor
// judges and publishes, too; it never acts, since it is never primary.
func (w *nodeWatch) run(ctx context.Context) {
	interval := w.every()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	defer w.fences.Wait()
	defer w.loseLead()
	last := w.d.Clock.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := w.d.Clock.Now()
		w.step(ctx, now, now.Sub(last) > 2*interval)
		last = now
	}
}

// every is the time between two looks: a quarter of K, so that a fence is
// claimed well within 0.5 s of the verdict (protocol §5).
func (w *nodeWatch) every() time.Duration { return w.c.Timing.KeepaliveInterval / 4 }

// step judges once, and acts where this node is primary.
func (w *nodeWatch) step(ctx context.Context, now cluster.Instant, late bool) {
	status := w.dec.status()
	state, changes := detector.Step(w.seen, detector.Observation{
		Now: now, Self: w.c.Node, Snapshot: status.Snapshot, Timing: w.c.Timing,
		SelfLate: late, OwnKeepalive: w.keep.Acked(),
	})
	w.seen = state
	for _, t := range changes {
		w.d.Log.Info("node judged", zap.String("peer", string(t.Node)), zap.Stringer("from", t.From), zap.Stringer("to", t.To),
			zap.Duration("silence", t.Silence), zap.String("reason", t.Reason))
	}
	w.followHolder(status)
	primary := status.Role.Leads()
	if primary && w.lead == nil {
		w.lead, w.endLead = context.WithCancelCause(ctx)
	}
	if !primary {
		w.loseLead()
	}
	w.frame(status, primary)
	if primary {
		w.resumeFences(status, now)
		w.expireMaintenance(ctx, status)
	}
	if words := w.words(status); len(changes) > 0 || words != w.said || now.Sub(w.saidAt) >= w.c.Timing.KeepaliveInterval {
		w.said, w.saidAt = words, now
		w.publish(ctx, status)
	}
}

// words are what of a view changes at once: for the rest once a keepalive
// interval is soon enough.
func (w *nodeWatch) words(status Status) saidWords {
	m := status.Snapshot.Maintenance
	epoch, _, _ := status.Role.Holds()
	return saidWords{status.Role.Mode, epoch, m.Version, m.Value, w.seen.Blind}
}

type saidWords struct {
	mode        role.Mode
	epoch       cluster.Epoch
	maintenance int32
	on          bool
	blind       string
}

func (w *nodeWatch) loseLead() {
	if w.endLead != nil {
		w.endLead(errNotPrimary)
	}
	w.lead, w.endLead = nil, nil
}

// followHolder remembers who held the role before the present holder.
func (w *nodeWatch) followHolder(status Status) {
	l := status.Snapshot.Lease
	if l.Present && l.Err == nil && l.Value.Holder != "" && l.Value.Holder != w.holder {
		w.before, w.holder = w.holder, l.Value.Holder
	}
}

// frame feeds the failover logic and carries out what it decides.
func (w *nodeWatch) frame(status Status, primary bool) {
	snap := status.Snapshot
	settings, blind := cluster.DefaultFailoverSettings(), w.seen.Blind
	switch {
	case snap.Failover.Present && snap.Failover.Err != nil: // what it forbids is not known
		blind = fmt.Sprintf("the failover settings cannot be read (%v); write them anew with `pvc settings autofailover`", snap.Failover.Err)
	case snap.Failover.Present:
		settings = snap.Failover.Value
	}
	next, actions, refusals := failover.Step(w.judged, failover.Frame{
		Every: w.every(), Self: w.c.Node, Timing: w.c.Timing, Settings: settings, Primary: primary,
		Holder: snap.Lease.Value.Holder, Predecessor: w.before, Maintenance: inMaintenance(snap), Blind: blind,
		Nodes: failover.NodesOf(snap, func(n cluster.NodeID) (cluster.Liveness, bool) {
			held := w.seen.Nodes[n]
			return held.Liveness, held.Excuse != ""
		}),
	})
	w.judged = next
	w.clearRefusals(next)
	for _, r := range refusals {
		if err := snap.Maintenance.Err; r.Code == cluster.RefuseMaintenance && err != nil {
			r.Detail = fmt.Sprintf("%s: the switch cannot be read, which counts as on (%v); set it with `pvc cluster maintenance on` or `off`", r.Detail, err)
		}
		w.refused(r)
	}
	if len(actions) > 0 {
		w.fence(string(actions[0].Node), func(ctx context.Context) (cluster.FenceRecord, *cluster.Refusal, error) {
			return w.d.Fencer.Fence(ctx, actions[0])
		})
	}
}

// inMaintenance reports whether maintenance is on. A switch that cannot be read
// counts as on: nobody is fenced on a doubt.
func inMaintenance(snap *cluster.Snapshot) bool {
	m := snap.Maintenance
	return m.Value || m.Present && m.Err != nil
}

// refused keeps and tells why a node is not fenced.
func (w *nodeWatch) refused(r cluster.Refusal) {
	w.refusing.Lock()
	w.refusals[r.Node] = r
	w.refusing.Unlock()
	w.d.Log.Info("not fenced", zap.String("peer", string(r.Node)), zap.String("code", string(r.Code)), zap.String("detail", r.Detail))
}

// clearRefusals forgets what no longer stands against anything: the node is up
// again, or nothing was refused in this frame.
func (w *nodeWatch) clearRefusals(s failover.State) {
	w.refusing.Lock()
	defer w.refusing.Unlock()
	for n := range w.refusals {
		if held, down := s.Down[n]; !down || held.Reported == "" {
			delete(w.refusals, n)
		}
	}
}

// resumeFences carries on what an earlier primary left unfinished.
func (w *nodeWatch) resumeFences(status Status, now cluster.Instant) {
	if inMaintenance(status.Snapshot) || w.d.Fencer == nil {
		return
	}
	for _, n := range slices.Sorted(maps.Keys(status.Snapshot.Nodes)) {
		record := status.Snapshot.Nodes[n].Fence
		if n != w.c.Node && w.d.Fencer.Due(record, now) && w.mayResume(n, record.Value.Stage) {
			w.fence(string(n), func(ctx context.Context) (cluster.FenceRecord, *cluster.Refusal, error) {
				return w.d.Fencer.Resume(ctx, n)
			})
			return
		}
	}
}

// mayResume reports whether the record may be carried on now. Where no order
// has been sent yet, or the last has failed, it is judged like a new verdict:
// not by who is blind, not of a node that is not dead, not of half or more (I6).
func (w *nodeWatch) mayResume(n cluster.NodeID, stage cluster.FenceStage) bool {
	switch stage {
	case cluster.FenceClaimed, cluster.FenceSoft, cluster.FenceFailed:
	default:
		return true // an order is out: its proof is to be had
	}
	held := w.seen.Nodes[n]
	if w.seen.Blind != "" || held.Liveness != cluster.LiveDead || held.Excuse != "" {
		return false
	}
	down := 0
	for _, other := range w.seen.Nodes {
		if other.Liveness.Down() {
			down++
		}
	}
	return 2*down < len(w.seen.Nodes)+1 // and this node itself
}

// fence runs one fence beside the loop; while one runs, others wait for a
// later frame, which repeats them.
func (w *nodeWatch) fence(node string, run func(context.Context) (cluster.FenceRecord, *cluster.Refusal, error)) {
	if w.d.Fencer == nil || w.lead == nil || !w.fencing.CompareAndSwap(false, true) {
		return
	}
	lead := w.lead
	w.fences.Go(func() {
		defer w.fencing.Store(false)
		record, refusal, err := run(lead)
		switch {
		case err != nil:
			w.d.Log.Warn("fence did not end", zap.String("peer", node), zap.String("stage", string(record.Stage)), zap.Error(err))
		case refusal != nil:
			w.refused(*refusal)
		default:
			w.d.Log.Info("fence ended", zap.String("peer", node), zap.String("stage", string(record.Stage)), zap.String("proof", record.Proof))
		}
	})
}

// expireMaintenance ends a maintenance whose time is over. The wall clock is
// the operator's, who named the time; a wrong one only lengthens or shortens it.
func (w *nodeWatch) expireMaintenance(ctx context.Context, status Status) {
	snap := status.Snapshot
	record := snap.MaintenanceRecord
	if !snap.Maintenance.Value || !record.Present || record.Value.ExpiresMS == 0 || w.c.WallMS() < record.Value.ExpiresMS ||
		!w.expiring.CompareAndSwap(false, true) {
		return
	}
	w.fences.Go(func() {
		defer w.expiring.Store(false)
		ctx, cancel := context.WithTimeout(ctx, w.c.Timing.KeepaliveInterval)
		defer cancel()
		r := w.d.Store.Commit(ctx, cluster.Txn{Purpose: "maintenance.expire", Ops: []cluster.Op{
			cluster.Set(cluster.Key{Kind: cluster.KeyMaintenance}, snap.Maintenance.Version, false),
			cluster.Check(cluster.Key{Kind: cluster.KeyMaintenanceRecord}, record.Version),
		}})
		w.d.Log.Info("maintenance has reached its end", zap.String("owner", record.Value.Owner), zap.Stringer("outcome", r.Outcome))
	})
}

// View is what a node publishes of what it sees and decides.
type View = cluster.View

// NodeSeen is how a node judges one other node.
type NodeSeen = cluster.NodeSeen

// publish writes the view when it has changed, one write at a time.
func (w *nodeWatch) publish(ctx context.Context, status Status) {
	epoch, _, _ := status.Role.Holds()
	v := View{Version: 1, Mode: status.Role.Mode.String(), Epoch: epoch, Refusals: status.Role.Refusals,
		Problems: status.Role.Problems, ServiceFault: status.Role.ServiceFault(), GuardFaults: status.Role.GuardFaults(), Nodes: map[cluster.NodeID]NodeSeen{}, Blind: w.seen.Blind, Maintenance: inMaintenance(status.Snapshot),
		MaintenanceVersion: status.Snapshot.Maintenance.Version}
	w.refusing.Lock()
	defer w.refusing.Unlock()
	for n, held := range w.seen.Nodes {
		seen := NodeSeen{Liveness: held.Liveness.String(), Excuse: held.Excuse}
		if r, ok := w.refusals[n]; ok {
			seen.Refusal = &r
		}
		v.Nodes[n] = seen
	}
	if w.unwritten.Swap(false) {
		w.published = nil
	}
	raw, err := json.Marshal(v)
	if err != nil || string(raw) == string(w.published) || !status.Snapshot.Live || !w.publishing.CompareAndSwap(false, true) {
		return
	}
	w.published = raw
	w.fences.Go(func() {
		defer w.publishing.Store(false)
		if err := w.write(ctx, raw); err != nil {
			w.unwritten.Store(true)
			w.d.Log.Debug("publishing the view failed", zap.Error(err))
		}
	})
}

func (w *nodeWatch) write(ctx context.Context, raw []byte) error {
	ctx, cancel := context.WithTimeout(ctx, w.c.Timing.KeepaliveInterval)
	defer cancel()
	key := cluster.Key{Kind: cluster.KeyView, Node: w.c.Node}
	r := w.d.Store.Commit(ctx, cluster.Txn{Purpose: "view", Ops: []cluster.Op{cluster.Set(key, cluster.AnyVersion, json.RawMessage(raw))}})
	if r.Outcome == cluster.OutcomeConflict {
		r = w.d.Store.Commit(ctx, cluster.Txn{Purpose: "view", Ops: []cluster.Op{cluster.Create(key, json.RawMessage(raw))}})
	}
	if r.Outcome != cluster.OutcomeOK {
		return fmt.Errorf("write view (%s): %w", r.Outcome, r.Err)
	}
	return nil
}
