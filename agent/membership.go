package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/membership"
	"pvc.internal/cluster"
)

// NodeRecords lists what the store keeps of one node.
type NodeRecords interface {
	// NodeRecords lists the records of a node, children before their parents; of
	// an unknown node none.
	NodeRecords(ctx context.Context, n cluster.NodeID) ([]cluster.NodeLeaf, error)
}

// errNoLeases is what stands against every change of the quorum set while
// nobody can tell whether a majority is held.
var errNoLeases = errors.New("node leases are not running")

// memberWatch keeps the quorum set and carries out the operators' orders about
// who belongs to the cluster, where this node is primary. One goroutine steps it
// and alone uses it; what writes runs in another, one at a time, under the role's
// context, on the versions that the step has judged.
type memberWatch struct {
	c       Config
	d       Deps
	records NodeRecords
	see     func(cluster.NodeID) cluster.Liveness // the detector's word, as of this step
	blind   func() string                         // why that counts for nothing now; empty: it counts
	// holds says why majorities of node leases of both sets are not held; nil: it
	// is not known, and no set is changed. It must not block.
	holds func(old, next []cluster.NodeID) error
	// foreign is told when the set was changed by somebody else than this primary,
	// once for each change: what rests on the set as it was is void. nil: nobody.
	foreign func(now cluster.Versioned[cluster.QuorumSet])

	lead    context.Context // while this node is primary; nil otherwise
	endLead context.CancelCauseFunc
	work    sync.WaitGroup
	busy    atomic.Bool

	first membership.FirstState
	last  cluster.QuorumSet                    // the newest that could be read
	seen  cluster.Versioned[cluster.QuorumSet] // at the last step under this epoch
	epoch cluster.Epoch                        // of that step; 0: not primary then
	order waitingOrder                         // the order that stands
	said  atomic.Pointer[string]               // what is waited for
}

func newMemberWatch(c Config, d Deps, records NodeRecords, see func(cluster.NodeID) cluster.Liveness, blind func() string) *memberWatch {
	return &memberWatch{c: c, d: d, records: records, see: see, blind: blind}
}

// waits says what the order that stands, or the first quorum set, waits for;
// empty: nothing does. It may be called from anywhere.
func (w *memberWatch) waits() string {
	if s := w.said.Load(); s != nil {
		return *s
	}
	return ""
}

// step looks once; it never waits.
func (w *memberWatch) step(ctx context.Context, primary bool, snap *cluster.Snapshot, now cluster.Instant) {
	if !snap.Live || !snap.Complete {
		primary = primary && w.lead != nil // a role goes on through a short outage
	} else if q := snap.Quorum; q.Present && q.Err == nil {
		w.last = q.Value
	}
	if !primary {
		w.lose()
		return
	}
	if w.lead == nil {
		w.lead, w.endLead = context.WithCancelCause(ctx)
	}
	if !snap.Live || !snap.Complete || !w.holdsRole(snap) {
		return
	}
	w.follow(snap)
	if w.busy.Load() {
		return
	}
	in := w.input(snap, now)
	switch {
	case snap.Quorum.Present && snap.Quorum.Err == nil:
		w.first = membership.FirstState{}
	default:
		if d := membership.Mend(in, w.last); d.Effect != membership.None {
			w.begin(in, d)
			return
		}
		var d membership.Decision
		if w.first, d = membership.First(w.first, in); d.Effect != membership.None {
			w.begin(in, d)
			return
		}
		w.say(d.Wait)
	}
	w.obey(in)
}

func (w *memberWatch) holdsRole(snap *cluster.Snapshot) bool {
	l := snap.Lease
	return l.Present && l.Err == nil && l.Value.HeldBy(w.c.Node, w.c.Incarnation)
}

func (w *memberWatch) input(snap *cluster.Snapshot, now cluster.Instant) membership.Input {
	return membership.Input{
		Self: w.c.Node, Epoch: snap.Lease.Value.Epoch, Now: now, WallMS: w.c.WallMS(), Snapshot: snap,
		See: w.see, Blind: w.blind(), Fences: w.d.Fencer != nil,
	}
}

// follow tells of a set that somebody else has written.
func (w *memberWatch) follow(snap *cluster.Snapshot) {
	epoch := snap.Lease.Value.Epoch
	if w.epoch == epoch && membership.Foreign(epoch, w.seen, snap.Quorum) {
		if w.foreign != nil { // before the log, which may hang
			w.foreign(snap.Quorum)
		}
		w.d.Log.Warn("the quorum set was changed by somebody else; what rests on it ends", zap.Any("before", w.seen.Value.Nodes),
			zap.Any("now", snap.Quorum.Value.Nodes), zap.Error(snap.Quorum.Err))
	}
	w.epoch, w.seen = epoch, snap.Quorum
}

// lose ends what runs with the role.
func (w *memberWatch) lose() {
	if w.endLead != nil {
		w.endLead(errNotPrimary)
	}
	w.lead, w.endLead, w.epoch = nil, nil, 0
	w.order, w.first = waitingOrder{}, membership.FirstState{}
	w.say("")
}

// wait ends what runs and returns once it has ended.
func (w *memberWatch) wait() {
	w.lose()
	w.work.Wait()
}

// say keeps what is waited for and tells it once.
func (w *memberWatch) say(what string) {
	if before := w.said.Swap(&what); what != "" && (before == nil || *before != what) {
		w.d.Log.Info("a change of the members waits", zap.String("reason", what))
	}
}

// obey begins with the order that stands.
func (w *memberWatch) obey(in membership.Input) {
	o := in.Snapshot.MemberOrder
	if !o.Present {
		w.order = waitingOrder{}
		if in.Snapshot.Quorum.Present {
			w.say("")
		}
		return
	}
	if w.order.mzxid != o.Mzxid {
		w.order = waitingOrder{mzxid: o.Mzxid, since: in.Now}
	}
	if in.Now.Before(w.order.next) {
		return
	}
	in.Waited = in.Now.Sub(w.order.since)
	d := membership.Order(in)
	if d.Wait != "" {
		w.say(d.Wait)
		return
	}
	w.order.next = in.Now.Add(orderRetry)
	w.begin(in, d)
}

// begin carries a decision out, or writes why not, beside the loop.
func (w *memberWatch) begin(in membership.Input, d membership.Decision) {
	if !w.busy.CompareAndSwap(false, true) {
		return
	}
	lead := w.lead
	w.work.Go(func() {
		defer w.busy.Store(false)
		if d.Effect == membership.None {
			w.refuse(lead, in, d.Refusal)
			return
		}
		w.carryOut(lead, in, d)
	})
}

// carryOut writes the effect. What could not be written is judged anew at a
// later step; so is what became of a write whose reply was lost: each effect of
// an order rests on the order's own version, so that no second one joins it (I8).
func (w *memberWatch) carryOut(ctx context.Context, in membership.Input, d membership.Decision) {
	writing, cancel := context.WithTimeout(ctx, orderWrite)
	defer cancel()
	ops, err := w.ops(writing, in, d)
	if err != nil {
		w.say(err.Error())
		return
	}
	var unheld error
	outcome, err := w.write(writing, in.Epoch, "membership."+d.Effect.String(), ops, func() bool {
		unheld = w.majorities(d)
		return unheld == nil
	})
	if unheld != nil {
		if w.holds == nil {
			in.Waited = membership.Patience
		}
		verdict := membership.Unheld(in, d, unheld.Error())
		if w.say(verdict.Wait); verdict.Wait == "" {
			w.refuse(ctx, in, verdict.Refusal)
		}
		return
	}
	fields := []zap.Field{zap.Stringer("effect", d.Effect), zap.String("text", d.Text), zap.Stringer("outcome", outcome), zap.Error(err)}
	if outcome != cluster.OutcomeOK {
		w.d.Log.Info("the members were not changed yet", fields...)
		return
	}
	w.say("")
	w.d.Log.Info("the members have changed", fields...)
}

// majorities says why the decision's change of the set may not be written now.
func (w *memberWatch) majorities(d membership.Decision) error {
	switch {
	case d.Set == nil || len(d.Old) == 0:
		return nil
	case w.holds == nil:
		return errNoLeases
	}
	return w.holds(d.Old, d.Set.Nodes)
}

// ops are the decision's operations, all on the versions that were judged.
func (w *memberWatch) ops(ctx context.Context, in membership.Input, d membership.Decision) ([]cluster.Op, error) {
	s := in.Snapshot
	var ops []cluster.Op
	if o := s.MemberOrder; o.Present && d.Effect != membership.Bootstrap && d.Effect != membership.Restore {
		if d.Ends {
			ops = append(ops, cluster.EndMemberOrder(o))
		} else {
			ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeyMemberOrder}, o.Version))
		}
	}
	quorum := cluster.Key{Kind: cluster.KeyQuorumSet}
	switch {
	case d.Set != nil:
		ops = append(ops, cluster.Put(quorum, s.Quorum, *d.Set))
	case s.Quorum.Present:
		ops = append(ops, cluster.Check(quorum, s.Quorum.Version))
	}
	if d.Members != nil {
		ops = append(ops, cluster.Put(cluster.Key{Kind: cluster.KeyMembers}, s.Members, *d.Members))
	}
	if d.Effect == membership.Remove {
		n := s.MemberOrder.Value.Node
		leaves, err := w.records.NodeRecords(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("remove node %s: %w", n, err)
		}
		deletes, err := removal(n, s.Nodes[n], leaves)
		if err != nil {
			return nil, fmt.Errorf("remove node %s: %w", n, err)
		}
		ops = append(ops, deletes...)
	}
	return append(ops, cluster.Op{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: w.event(in, d)}), nil
}

// removal deletes the node's records as they were judged. It conflicts with each
// sign of life and with every fence: a registration makes alive and the node's
// record, and writes the keepalive; a claim makes or writes the fence record.
func removal(n cluster.NodeID, view cluster.NodeView, leaves []cluster.NodeLeaf) ([]cluster.Op, error) {
	judged := map[cluster.KeyKind]judgedVersion{
		cluster.KeyAlive: versionOf(view.Alive), cluster.KeyKeepalive: versionOf(view.Keepalive), cluster.KeyDaemonState: versionOf(view.Daemon),
		cluster.KeyRouterState: versionOf(view.Router), cluster.KeyNodeMode: versionOf(view.Mode), cluster.KeyNodeRecord: versionOf(view.Record),
		cluster.KeyFence: versionOf(view.Fence),
	}
	var ops []cluster.Op
	// A Multi has no check for absence: making and deleting a record conflicts if
	// there is one, and leaves nothing.
	for _, absent := range []struct {
		kind  cluster.KeyKind
		there bool
		value any
	}{
		{cluster.KeyAlive, view.Alive.Present, cluster.Alive{}},
		{cluster.KeyNodeRecord, view.Record.Present, cluster.NodeRecord{}},
		{cluster.KeyFence, view.Fence.Present, cluster.FenceRecord{}},
		{cluster.KeyFenceOrder, view.Order.Present || view.Order.Mzxid != 0, nil},
	} {
		key := cluster.Key{Kind: absent.kind, Node: n}
		switch {
		case !absent.there:
			ops = append(ops, cluster.Create(key, absent.value), cluster.Delete(key, 0))
		case absent.kind == cluster.KeyFenceOrder: // stays, so that its versions only grow
			ops = append(ops, cluster.Check(key, view.Order.Version))
		}
	}
	found := map[cluster.KeyKind]bool{}
	for _, leaf := range leaves {
		version := leaf.Version
		if v, is := judged[leaf.Key.Kind]; is {
			if !v.there {
				return nil, fmt.Errorf("record %s has appeared: %w", leaf.Key, cluster.ErrConflict)
			}
			version, found[leaf.Key.Kind] = v.version, true
		}
		ops = append(ops, cluster.Delete(leaf.Key, version))
	}
	for kind, v := range judged {
		if v.there && !found[kind] {
			return nil, fmt.Errorf("record %s is gone: %w", cluster.Key{Kind: kind, Node: n}, cluster.ErrConflict)
		}
	}
	return ops, nil
}

type judgedVersion struct {
	there   bool
	version int32
}

func versionOf[T any](v cluster.Versioned[T]) judgedVersion {
	return judgedVersion{v.Present, v.Version}
}

// write sends one Multi with the operations under the very role that they were
// judged in (I2), if allowed at that moment; it tries again only where its own
// renewal of the lease came between.
func (w *memberWatch) write(ctx context.Context, epoch cluster.Epoch, purpose string, ops []cluster.Op, allowed func() bool) (cluster.Outcome, error) {
	const atLease = 0
	for {
		snap, err := w.d.Store.Refresh(ctx)
		if err != nil {
			return cluster.OutcomeNotSent, err
		}
		if lease := snap.Lease; !w.holdsRole(snap) || lease.Value.Epoch != epoch {
			return cluster.OutcomeNotSent, fmt.Errorf("change the members, judged at epoch %d: %w", epoch, errNotPrimary)
		}
		if !allowed() {
			return cluster.OutcomeNotSent, nil
		}
		all := append([]cluster.Op{cluster.Check(cluster.Key{Kind: cluster.KeyLease}, snap.Lease.Version)}, ops...)
		res := w.d.Store.Commit(ctx, cluster.Txn{Purpose: purpose, Ops: all})
		if res.Outcome != cluster.OutcomeConflict || res.FailedOp != atLease || ctx.Err() != nil {
			return res.Outcome, res.Err
		}
		pause(ctx, orderConflict)
	}
}

// refuse ends the order and writes why, together, so that whoever gave it is told
// exactly once (I8).
func (w *memberWatch) refuse(ctx context.Context, in membership.Input, r cluster.Refusal) {
	o := in.Snapshot.MemberOrder
	writing, cancel := context.WithTimeout(ctx, orderWrite)
	defer cancel()
	event := cluster.Event{
		Version: 1, UnixMS: w.c.WallMS(), Node: w.c.Node, Kind: cluster.EventMemberRefused,
		Text: fmt.Sprintf("refused: %s of node %s: %s", orderWord(o.Value.Action), o.Value.Node, r.Detail),
		Fields: map[string]string{
			"order": o.Value.ID, "node": string(o.Value.Node), "action": o.Value.Action, "by": o.Value.By, "code": string(r.Code), "detail": r.Detail,
		},
	}
	outcome, err := w.write(writing, in.Epoch, "membership.refused", []cluster.Op{
		cluster.EndMemberOrder(o),
		{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: event},
	}, func() bool { return true })
	w.d.Log.Info("membership order refused", zap.String("peer", string(o.Value.Node)), zap.String("order", o.Value.ID), zap.String("action", o.Value.Action),
		zap.String("code", string(r.Code)), zap.String("detail", r.Detail), zap.Stringer("outcome", outcome), zap.Error(err))
}

func orderWord(action string) string {
	if action == "" {
		return "an order"
	}
	return action
}

func (w *memberWatch) event(in membership.Input, d membership.Decision) cluster.Event {
	e := cluster.Event{
		Version: 1, UnixMS: w.c.WallMS(), Node: w.c.Node, Kind: cluster.EventMember, Text: d.Text,
		Fields: map[string]string{"effect": d.Effect.String(), "epoch": fmt.Sprint(in.Epoch)},
	}
	if d.Set != nil {
		e.Fields["quorum_set"] = fmt.Sprint(d.Set.Nodes)
	}
	if o := in.Snapshot.MemberOrder.Value; o.ID != "" && d.Effect != membership.Bootstrap && d.Effect != membership.Restore {
		e.Fields["order"], e.Fields["node"], e.Fields["action"], e.Fields["by"] = o.ID, string(o.Node), o.Action, o.By
		if o.Host != "" {
			e.Fields["host"] = o.Host
		}
		if o.Reason != "" {
			e.Fields["reason"] = o.Reason
		}
		if d.Ends {
			e.Fields["ends"] = "true"
		}
	}
	return e
}

// removedError says that this host was removed by this name, and what lets it in
// again.
func removedError(r cluster.RemovedNode, host string) error {
	cure := fmt.Sprintf("`pvc node add %s --host %s`", r.Node, host)
	return fmt.Errorf("%w: %s, and stays out. If host %s is to be node %s again: %s, and start pvcnoded; otherwise stop it for good (`systemctl disable --now pvcnoded`)",
		cluster.ErrRemoved, r, host, r.Node, cure)
}

// out says why this host may not register by its name, nil where it may.
func (r *registrar) out(fresh *cluster.Snapshot) error {
	m := fresh.Members
	if m.Err != nil && r.at.IsZero() { // who was a member goes on as one: it is not removed while it lives
		return fmt.Errorf("whether this node was removed cannot be read (%w); mend the record /agent/members by hand, or delete it: then removed nodes may come back", m.Err)
	}
	if removed, out := m.Value.Out(r.c.Node, r.c.NodeUUID); out {
		return removedError(removed, r.c.NodeUUID)
	}
	return nil
}

// ensure makes the node's records, and says for this host why not where the name
// was removed.
func (r *registrar) ensure(ctx context.Context) error {
	err := r.d.Tree.EnsureNode(ctx, r.c.Node, r.c.Mode)
	if !errors.Is(err, cluster.ErrRemoved) {
		return err
	}
	if fresh, cannot := r.d.Store.Refresh(ctx); cannot == nil {
		if out := r.out(fresh); out != nil {
			return out
		}
	}
	return err
}

// leave tells, of a node that was removed and has come back, that it stays out,
// in the log and once for each start in the cluster's history. Of other errors it
// tells nothing.
func (r *registrar) leave(ctx context.Context, why error) {
	if !errors.Is(why, cluster.ErrRemoved) || r.left {
		return
	}
	r.left = true
	if r.at.IsZero() && r.d.LeaseFile != nil { // nobody serves leases here yet: no promise of old is honoured should it come back (L19)
		if err := r.d.LeaseFile.Remove(); err != nil {
			r.d.Log.Warn("the file of the node's lease was not removed; remove it before the node is let in again", zap.Error(err))
		}
	}
	call, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r.d.Log.Error("this node was removed from the cluster and stays out", zap.String("node", string(r.c.Node)), zap.String("host", r.c.NodeUUID), zap.Error(why))
	r.d.Notify.Status(why.Error())
	event := cluster.Event{
		Version: 1, UnixMS: r.c.WallMS(), Node: r.c.Node, Kind: cluster.EventMemberOut,
		Text:   fmt.Sprintf("node %s (host %s), which was removed, was started on %s and stays out", r.c.Node, r.c.NodeUUID, r.c.Host),
		Fields: map[string]string{"node": string(r.c.Node), "host": r.c.NodeUUID},
	}
	res := r.d.Store.Commit(call, cluster.Txn{Purpose: "membership.out", Ops: []cluster.Op{
		{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: event},
	}})
	if res.Outcome != cluster.OutcomeOK {
		r.d.Log.Debug("that was not written into the history", zap.Stringer("outcome", res.Outcome), zap.Error(res.Err))
	}
}

// Welcome returns what says why a node may not talk to this one, nil where it
// may: a node that was removed, and, where this node follows the records of
// everyone, one that is not in the cluster (S152). The error wraps
// cluster.ErrNotInCluster. While nothing is known yet everybody is heard: what is
// asked for is checked again by whoever answers.
func Welcome(latest func() *cluster.Snapshot, everyone bool) func(cluster.NodeID) error {
	return func(n cluster.NodeID) error {
		snap := latest()
		if snap == nil {
			return nil
		}
		if r, out := snap.Members.Value.Out(n, ""); out {
			return fmt.Errorf("%w: %s", cluster.ErrNotInCluster, r)
		}
		if _, known := snap.Nodes[n]; everyone && snap.Complete && !known {
			return fmt.Errorf("%w: no node named %q is registered", cluster.ErrNotInCluster, n)
		}
		return nil
	}
}
