package fencing

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// errDiverted says that a step was not written because something else is to
// be done in its place.
var errDiverted = errors.New("diverted")

// lead returns a fresh view in which this very daemon is the primary.
func (f *Fencer) lead(ctx context.Context, node cluster.NodeID) (*cluster.Snapshot, error) {
	snap, err := f.Store.Refresh(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the cluster to fence node %s: %w", node, err)
	}
	if !snap.Lease.Present || !snap.Lease.Value.HeldBy(f.Owner.Node, f.Owner.Incarnation) {
		return nil, fmt.Errorf("fence node %s: this daemon is not the primary: %w", node, cluster.ErrRefused)
	}
	return snap, nil
}

// write sends one Multi that writes the record as this fencer's, with whatever
// goes with it. It checks the lease's version, so that it commits under this
// very role or not at all (I2). It returns false when nothing is known to have
// been written: read again and decide anew.
func (w *work) write(ctx context.Context, snap *cluster.Snapshot, record cluster.FenceRecord, extra []cluster.Op) (bool, error) {
	key := cluster.Key{Kind: cluster.KeyFence, Node: w.node}
	ops := []cluster.Op{
		cluster.Check(cluster.Key{Kind: cluster.KeyLease}, snap.Lease.Version),
		cluster.Put(key, w.record, record),
	}
	ops = append(ops, extra...)
	ops = append(ops, cluster.Op{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: w.event(record)})
	sending, cancel := context.WithTimeout(ctx, commitWait)
	defer cancel()
	result := w.Store.Commit(sending, cluster.Txn{Purpose: "fence." + string(record.Stage), Ops: ops})
	switch result.Outcome {
	case cluster.OutcomeOK:
		version := int32(0) // of a record just made
		if w.record.Present {
			version = w.record.Version + 1
		}
		w.record = cluster.Versioned[cluster.FenceRecord]{Value: record, Present: true, Version: version}
		w.Log.Info("fence stage", zap.String("node", string(w.node)), zap.String("stage", string(record.Stage)),
			zap.String("fence", record.ID), zap.String("incarnation", string(record.Incarnation)),
			zap.Int("try", record.Tries), zap.String("result", record.Result), zap.String("proof", record.Proof))
		return true, nil
	case cluster.OutcomeRefused:
		return false, fmt.Errorf("write the fence record of node %s in stage %s: %w", w.node, record.Stage, errors.Join(cluster.ErrRefused, result.Err))
	}
	// A conflict is mostly a renewal of one's own lease in between; a lost
	// reply is settled by reading and writing the same version again.
	pause := commitPause
	if result.Outcome == cluster.OutcomeConflict {
		pause /= 10
	}
	sleep(ctx, pause)
	return false, nil
}

func (w *work) event(r cluster.FenceRecord) cluster.Event {
	e := cluster.Event{
		Version: 1, UnixMS: w.WallMS(), Node: w.Owner.Node, Kind: "fence",
		Text: fmt.Sprintf("fence of node %s: %s", r.Node, r.Stage),
		Fields: map[string]string{
			"fence": r.ID, "node": string(r.Node), "incarnation": string(r.Incarnation), "stage": string(r.Stage),
			"try": strconv.Itoa(r.Tries), "epoch": strconv.FormatUint(uint64(r.Epoch), 10),
		},
	}
	if r.Result != "" {
		e.Fields["result"] = r.Result
	}
	if r.Proof != "" {
		e.Fields["proof"] = r.Proof
	}
	return e
}

// step applies an event and writes the record. extra adds operations made from
// the view that they are checked against; its errDiverted leaves all unwritten.
func (w *work) step(ctx context.Context, e Event, extra func(*cluster.Snapshot) ([]cluster.Op, error)) error {
	held := w.record.Value
	e.ID, e.Try, e.Epoch = held.ID, held.Tries, held.Epoch
	next, err := Next(held, e)
	if err != nil {
		return fmt.Errorf("fence node %s: %w", w.node, err)
	}
	for range commitTries {
		snap, err := w.lead(ctx, w.node)
		if err != nil {
			return err
		}
		done, err := w.settled(snap, next)
		if done || err != nil {
			return err
		}
		var ops []cluster.Op
		if extra != nil {
			if ops, err = extra(snap); err != nil {
				return err
			}
		}
		written, err := w.write(ctx, snap, next, ops)
		if written || err != nil {
			return err
		}
	}
	return fmt.Errorf("fence node %s, %s to %s: %w", w.node, held.Stage, next.Stage, cluster.ErrConflict)
}

// settled reports whether the step was written already, by a try whose reply
// was lost, and fails when the record or the role is no longer this fencer's.
func (w *work) settled(snap *cluster.Snapshot, next cluster.FenceRecord) (bool, error) {
	seen := snap.Nodes[w.node].Fence
	switch {
	case snap.Lease.Value.Epoch != w.epoch:
		return false, fmt.Errorf("fence node %s: the role was gained anew meanwhile: %w", w.node, cluster.ErrStaleEpoch)
	case !seen.Present || seen.Value.ID != next.ID || seen.Value.Epoch > w.epoch:
		return false, fmt.Errorf("fence node %s: the record is another's by now: %w", w.node, cluster.ErrConflict)
	case seen.Value.Stage == next.Stage && seen.Value.Tries == next.Tries && seen.Value.Epoch == next.Epoch:
		w.record = seen
		return true, nil
	}
	return false, nil
}

// arm is the point of no return: the Multi to power_off checks the absence or
// version of the node's alive, its keepalive's version and the lease, so that a
// sign of life and a shot cannot both win (I5).
func (w *work) arm(ctx context.Context) error {
	if _, configured := w.Config.Node(w.node); !configured {
		return w.step(ctx, Event{Kind: EventNoDevice, Detail: fmt.Sprintf(
			"no fence device is configured for node %s: configure one under fencing.nodes.%s, or cut its power and confirm it", w.node, w.node)}, nil)
	}
	var instead Event
	err := w.step(ctx, Event{Kind: EventProceed}, func(snap *cluster.Snapshot) ([]cluster.Op, error) {
		if instead = w.against(snap); instead.Kind != 0 {
			return nil, errDiverted
		}
		return w.armOps(snap), nil
	})
	if errors.Is(err, errDiverted) {
		return w.step(ctx, instead, nil)
	}
	return err
}

// against is what speaks against taking power now, as an event; zero: nothing.
func (w *work) against(snap *cluster.Snapshot) Event {
	if detail, proof, back := HasReturned(w.record.Value, snap.Nodes[w.node]); back {
		return Event{Kind: EventReturned, Proof: proof, Detail: detail}
	}
	if detail := unreadable(snap); detail != "" {
		return Event{Kind: EventWithdrawn, Detail: detail}
	}
	if snap.Maintenance.Present && snap.Maintenance.Value {
		return Event{Kind: EventWithdrawn, Detail: "the cluster went into maintenance before power was taken"}
	}
	if snap.Failover.Present && snap.Failover.Err == nil && !snap.Failover.Value.Enabled {
		return Event{Kind: EventWithdrawn, Detail: "automatic failover was disabled before power was taken"}
	}
	return Event{}
}

// unreadable says which of the records that may forbid a fence cannot be read;
// "" when all can. What an operator has switched off must not come on again by
// damage: the zero values and the defaults allow fences, and count none (I6).
func unreadable(snap *cluster.Snapshot) string {
	switch {
	case snap.Maintenance.Present && snap.Maintenance.Err != nil:
		return fmt.Sprintf("whether the cluster is in maintenance cannot be read (%v): set it anew", snap.Maintenance.Err)
	case snap.Failover.Present && snap.Failover.Err != nil:
		return fmt.Sprintf("the settings of automatic failover cannot be read (%v): set them anew", snap.Failover.Err)
	}
	return ""
}

func (w *work) armOps(snap *cluster.Snapshot) []cluster.Op {
	view := snap.Nodes[w.node]
	var ops []cluster.Op
	alive := cluster.Key{Kind: cluster.KeyAlive, Node: w.node}
	if view.Alive.Present {
		ops = append(ops, cluster.Check(alive, view.Alive.Version))
	} else {
		// A Multi has no check for absence: making and deleting the record
		// conflicts if there is one, and leaves nothing.
		ops = append(ops, cluster.Create(alive, cluster.Alive{Version: 1, Incarnation: w.record.Value.Incarnation}), cluster.Delete(alive, 0))
	}
	if view.Keepalive.Present {
		ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeyKeepalive, Node: w.node}, view.Keepalive.Version))
	}
	if w.record.Value.Tries == 0 && snap.Failover.Err == nil { // the first try spends the budget, in this same Multi
		settings := cluster.DefaultFailoverSettings()
		if snap.Failover.Present {
			settings = snap.Failover.Value
		}
		settings.Count++
		ops = append(ops, cluster.Put(cluster.Key{Kind: cluster.KeyFailover}, snap.Failover, settings))
	}
	return ops
}

func (w *work) powerOff(ctx context.Context) error {
	node, _ := w.Config.Node(w.node)
	attempts, proven := w.Runner.Off(ctx, w.epoch, node.Levels)
	return w.after(ctx, attempts, proven)
}

// verify reads the power state once more, in processes of its own: what is
// written as a proof was read after every order had ended.
func (w *work) verify(ctx context.Context) error {
	node, _ := w.Config.Node(w.node)
	levels := node.Levels
	if proving := ProvingLevel(levels, w.record.Value.Attempts); proving != nil {
		levels = [][]Device{proving}
	}
	attempts, proven := w.Runner.Status(ctx, w.epoch, levels)
	return w.after(ctx, attempts, proven)
}

func (w *work) after(ctx context.Context, attempts []cluster.FenceAttempt, proven bool) error {
	if err := ctx.Err(); err != nil {
		// The role is over; its children were ended and have proven nothing.
		return fmt.Errorf("fence node %s, in stage %s: %w", w.node, w.record.Value.Stage, context.Cause(ctx))
	}
	e := Event{Kind: EventProceed, Attempts: attempts, Detail: "every device of a level reads off"}
	if !proven {
		e.Kind, e.Detail = EventFailed, failureOf(attempts)
		w.Log.Warn("fence not verified", zap.String("node", string(w.node)), zap.String("result", e.Detail),
			zap.Duration("next_try_in", Backoff(w.record.Value.Tries)))
	}
	return w.step(ctx, e, nil)
}

func failureOf(attempts []cluster.FenceAttempt) string {
	text := "power is not verified off; workloads and roles of the node are left as they are"
	for _, a := range attempts {
		if a.Result != ResultOff {
			text += fmt.Sprintf("; %s of %s: %s", a.Action, a.Device, a.Result)
			if a.Error != "" {
				text += " (" + a.Error + ")"
			}
		}
	}
	const most = 2000
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

// clean writes what the proof allows, in one Multi with the step to recover:
// the node's router state and daemon state. It touches nothing of a node that
// registered again after the proof.
func (w *work) clean(ctx context.Context) error {
	back := false
	err := w.step(ctx, Event{Kind: EventProceed}, func(snap *cluster.Snapshot) ([]cluster.Op, error) {
		view := snap.Nodes[w.node]
		if _, proof, returned := HasReturned(w.record.Value, view); returned && proof != "" {
			back = true
			return nil, nil
		}
		return cleanOps(w.node, view), nil
	})
	if err != nil || back {
		return err
	}
	w.zeroCounters(ctx)
	return nil
}

func cleanOps(node cluster.NodeID, view cluster.NodeView) []cluster.Op {
	var ops []cluster.Op
	if view.Record.Present { // a registration meanwhile is a conflict
		ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeyNodeRecord, Node: node}, view.Record.Version))
	}
	if view.Router.Present && view.Router.Value != cluster.RouterClient && view.Router.Value != cluster.RouterSecondary {
		ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyRouterState, Node: node}, view.Router.Version, cluster.RouterSecondary))
	}
	return append(ops, cluster.Put(cluster.Key{Kind: cluster.KeyDaemonState, Node: node}, view.Daemon, cluster.DaemonFenced))
}

// zeroedFields are the figures that would go on counting a node without power
// in the cluster's totals. What it has (memtotal) and what ran on it
// (runningdomains, which recovery needs) stay.
var zeroedFields = []struct{ name, value string }{
	{"memused", "0"}, {"memalloc", "0"}, {"memprov", "0"}, {"vcpualloc", "0"}, {"domainscount", "0"}, {"cpuload", "0.00"},
}

// zeroCounters is for people's totals only: what fails is logged, and a lost
// race is with a node that publishes its own figures again.
func (w *work) zeroCounters(ctx context.Context) {
	ops := make([]cluster.Op, 0, len(zeroedFields))
	for _, field := range zeroedFields {
		key := cluster.Key{Kind: cluster.KeyNodeField, Node: w.node, Name: field.name}
		ops = append(ops, cluster.Set(key, cluster.AnyVersion, field.value))
	}
	sending, cancel := context.WithTimeout(ctx, commitWait)
	defer cancel()
	if result := w.Store.Commit(sending, cluster.Txn{Purpose: "fence.counters", Ops: ops}); result.Outcome != cluster.OutcomeOK {
		w.Log.Warn("figures of a fenced node not zeroed", zap.String("node", string(w.node)),
			zap.Stringer("outcome", result.Outcome), zap.Error(result.Err))
	}
}

// recover powers the node on again where that is wanted and a device has taken
// its power; it does not wait for the node. A power-on that fails is told and
// ends the fence all the same: the node is proven dead.
func (w *work) recover(ctx context.Context) error {
	node, _ := w.Config.Node(w.node)
	e := Event{Kind: EventProceed, Detail: "left without power"}
	if w.record.Value.Proof == ProofVerifiedOff && node.After == AfterReboot {
		devices := ProvingLevel(node.Levels, w.record.Value.Attempts)
		if devices == nil && len(node.Levels) > 0 {
			devices = node.Levels[0] // the settings have changed since
		}
		e.Attempts = w.Runner.On(ctx, w.epoch, devices)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("fence node %s, in stage %s: %w", w.node, w.record.Value.Stage, context.Cause(ctx))
		}
		e.Detail = "powered on again"
		for _, a := range e.Attempts {
			if a.Result != ResultOn {
				e.Detail = fmt.Sprintf("not powered on again: %s: %s", a.Device, a.Error)
			}
		}
	}
	return w.step(ctx, e, nil)
}

// rests reports whether power must not be given yet: an order of the fencer from
// whom the record was adopted may still be on its way, and would cut it again.
func (w *work) rests() bool {
	node, _ := w.Config.Node(w.node)
	return w.resumed && w.from != cluster.FenceRecover && node.After == AfterReboot && w.record.Value.Proof == ProofVerifiedOff
}

// Due reports whether the record needs a fencer now (see the function Due). One
// left behind after its proof, before power was given again, waits until every
// order of the earlier fencer has run out: none may cut the power that is given
// then. The wait holds neither the fence lock nor a fence of another node.
func (f *Fencer) Due(r cluster.Versioned[cluster.FenceRecord], now cluster.Instant) bool {
	if r.Value.Stage == cluster.FenceRecover {
		node, _ := f.Config.Node(r.Value.Node)
		var devices []Device
		for _, level := range node.Levels {
			devices = append(devices, level...)
		}
		if now.Sub(r.SeenAt) < longestTimeout(devices)+childSlack {
			return false
		}
	}
	return Due(r, now)
}

func longestTimeout(devices []Device) time.Duration {
	longest := time.Duration(0)
	for _, d := range devices {
		longest = max(longest, d.withDefaults().Timeout)
	}
	return longest
}
