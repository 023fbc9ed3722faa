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
	f.reign.see(snap.Lease.Value.Epoch, f.Clock)
	return snap, nil
}

// write sends one Multi that writes the record as this fencer's, with whatever
// goes with it. It checks the lease's version, so that it commits under this
// very role or not at all (I2). It returns false when nothing is known to have
// been written: read again and decide anew.
func (w *work) write(ctx context.Context, record cluster.FenceRecord, snap *cluster.Snapshot, extra []cluster.Op) (bool, error) {
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
		w.wrote(record, ops, result)
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

// wrote notes what an acknowledged write has left in the store.
func (w *work) wrote(record cluster.FenceRecord, ops []cluster.Op, result cluster.TxnResult) {
	version := int32(0) // of a record just made
	if w.record.Present {
		version = w.record.Version + 1
	}
	w.record = cluster.Versioned[cluster.FenceRecord]{Value: record, Present: true, Version: version}
	for i, op := range ops {
		if op.Key.Kind == cluster.KeyDaemonState && len(result.Versions) == len(ops) {
			w.cleaned = &result.Versions[i]
		}
	}
	w.Log.Info("fence stage", zap.String("node", string(w.node)), zap.String("stage", string(record.Stage)),
		zap.String("fence", record.ID), zap.String("incarnation", string(record.Incarnation)), zap.String("order", record.Order),
		zap.Int("try", record.Tries), zap.String("result", record.Result), zap.String("proof", record.Proof))
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
	for name, value := range map[string]string{
		"result": r.Result, "proof": r.Proof, "order": r.Order, "policy": r.Policy, "reason": r.Reason,
	} {
		if value != "" {
			e.Fields[name] = value
		}
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
		w.view = snap.Nodes[w.node]
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
		written, err := w.write(ctx, next, snap, ops)
		if written || err != nil {
			return err
		}
	}
	return fmt.Errorf("fence node %s, %s to %s: %w", w.node, held.Stage, next.Stage, cluster.ErrConflict)
}

// settled reports whether the step was written already, by a try whose reply
// was lost, and fails when the record or the role is no longer this fencer's.
// The view may lag behind what this fencer has written itself: what it shows of
// the record then says nothing, and the write's own version decides.
func (w *work) settled(snap *cluster.Snapshot, next cluster.FenceRecord) (bool, error) {
	seen := w.view.Fence
	lags := w.record.Present && (!seen.Present || seen.Version < w.record.Version)
	switch {
	case snap.Lease.Value.Epoch != w.epoch:
		return false, fmt.Errorf("fence node %s: the role was gained anew meanwhile: %w", w.node, cluster.ErrStaleEpoch)
	case lags:
		return false, nil
	case !seen.Present || seen.Value.ID != next.ID || seen.Value.Epoch > w.epoch:
		return false, fmt.Errorf("fence node %s: the record is another's by now: %w", w.node, cluster.ErrConflict)
	case seen.Value.Stage == next.Stage && seen.Value.Tries == next.Tries && seen.Value.Epoch == next.Epoch:
		w.record = seen
		return true, nil
	case w.record.Present && seen.Version > w.record.Version:
		return false, fmt.Errorf("fence node %s: the record was changed meanwhile: %w", w.node, cluster.ErrConflict)
	}
	return false, nil
}

// unless writes the step with its operations, or, where something speaks
// against it at that moment, the event that this is.
func (w *work) unless(ctx context.Context, against func(*cluster.Snapshot) Event, e Event, ops func(*cluster.Snapshot) []cluster.Op) error {
	var instead Event
	err := w.step(ctx, e, func(snap *cluster.Snapshot) ([]cluster.Op, error) {
		if instead = against(snap); instead.Kind != 0 {
			return nil, errDiverted
		}
		if ops == nil {
			return nil, nil
		}
		return ops(snap), nil
	})
	if errors.Is(err, errDiverted) {
		return w.step(ctx, instead, nil)
	}
	return err
}

// prepare leads to power_off: by a soft stop where the node can be asked, and
// otherwise, or once it was asked, at once.
func (w *work) prepare(ctx context.Context) error {
	if _, configured := w.Config.Node(w.node); !configured {
		return w.unless(ctx, w.against, Event{Kind: EventNoDevice, Detail: w.noDevice()}, nil)
	}
	if w.Soft != nil && !w.asked && w.Soft.Answers(w.node) {
		if w.record.Value.Stage == cluster.FenceClaimed {
			return w.unless(ctx, w.against, Event{Kind: EventSoftFirst}, nil)
		}
		w.ask(ctx)
	}
	return w.arm(ctx)
}

func (w *work) noDevice() string {
	return fmt.Sprintf("no fence device is configured for node %s: configure one under fencing.nodes.%s, or cut its power and confirm it%s",
		w.node, w.node, w.otherProof())
}

// ask has the node stop by itself what it protects. Its answer is noted and
// proves nothing.
func (w *work) ask(ctx context.Context) {
	r := w.record.Value
	wait := softWait
	if w.StopAfter > 0 {
		wait = min(wait, w.StopAfter)
	}
	asking, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	began := time.Now()
	attempt := cluster.FenceAttempt{Device: string(w.node), Action: ActionSoft, StartedUnixMS: w.WallMS(), Result: ResultStopped}
	if err := w.Soft.Stop(asking, w.token, r); err != nil {
		attempt.Result, attempt.Error = ResultUnknown, clip(err.Error())
	}
	attempt.Micros = time.Since(began).Microseconds()
	w.asked, w.soft = true, []cluster.FenceAttempt{attempt}
}

// arm is the point of no return: the Multi to power_off checks the absence or
// version of the node's alive, its keepalive's version and the lease, so that a
// sign of life and a shot cannot both win (I5).
func (w *work) arm(ctx context.Context) error {
	return w.unless(ctx, w.against, Event{Kind: EventProceed, Attempts: w.soft}, w.armOps)
}

// against is what speaks against taking power now, as an event; zero: nothing.
func (w *work) against(snap *cluster.Snapshot) Event {
	r := w.record.Value
	if back, ok := returnedFrom(r, w.forgotten, w.view); ok {
		return Event{Kind: EventReturned, Proof: back.Proof, Detail: back.Detail}
	}
	if detail := unreadable(snap); detail != "" {
		return Event{Kind: EventWithdrawn, Detail: detail}
	}
	if snap.Maintenance.Present && snap.Maintenance.Value {
		return Event{Kind: EventWithdrawn, Detail: "the cluster went into maintenance before power was taken"}
	}
	if r.Order != "" { // the switch and the budget are automatic failover's
		return Event{}
	}
	if snap.Failover.Present && !snap.Failover.Value.Enabled {
		return Event{Kind: EventWithdrawn, Detail: "automatic failover was disabled before power was taken"}
	}
	if _, spent := w.spend(snap); spent != "" {
		return Event{Kind: EventWithdrawn, Detail: spent}
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

// spend is this fence's share of the failover budget, to be written in the very
// Multi that is the effect, or in words why there is none left. A fence spends
// once, by its first try or by a proof that needed none; one that an operator
// ordered spends nothing.
func (w *work) spend(snap *cluster.Snapshot) (ops []cluster.Op, spent string) {
	if r := w.record.Value; r.Tries > 0 || r.Order != "" {
		return nil, ""
	}
	settings := cluster.DefaultFailoverSettings()
	if snap.Failover.Present {
		settings = snap.Failover.Value
	}
	if settings.Count >= settings.MaxCount {
		return nil, fmt.Sprintf("of %d failovers %d are spent; reset the count", settings.MaxCount, settings.Count)
	}
	next := settings
	next.Count++
	return []cluster.Op{cluster.Spend{Seen: snap.Failover, Next: next}.Op()}, ""
}

func (w *work) armOps(snap *cluster.Snapshot) []cluster.Op {
	spend, _ := w.spend(snap)
	return append(w.lifeless(w.record.Value), spend...)
}

// lifeless are the checks that make a write conflict with every sign of life of
// the node, as the view has it: its session, its registration, its keepalive.
// What is aimed at a node that shows life is still for one start only.
func (w *work) lifeless(r cluster.FenceRecord) []cluster.Op {
	var ops []cluster.Op
	alive := cluster.Key{Kind: cluster.KeyAlive, Node: w.node}
	if w.view.Alive.Present {
		ops = append(ops, cluster.Check(alive, w.view.Alive.Version))
	} else {
		// A Multi has no check for absence: making and deleting the record
		// conflicts if there is one, and leaves nothing.
		ops = append(ops, cluster.Create(alive, cluster.Alive{Version: 1, Incarnation: r.Incarnation}), cluster.Delete(alive, 0))
	}
	if w.view.Record.Present {
		ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeyNodeRecord, Node: w.node}, w.view.Record.Version))
	}
	if w.view.Keepalive.Present && (r.Proof != "" || !aimed(r, w.forgotten)) {
		ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeyKeepalive, Node: w.node}, w.view.Keepalive.Version))
	}
	return ops
}

func (w *work) powerOff(ctx context.Context) error {
	node, _ := w.Config.Node(w.node)
	runner := w.runner()
	attempts, ok := runner.Off(ctx, w.token, node.Levels)
	w.rested.see(w.node, w.Clock)
	if runner.lost.Load() && ctx.Err() == nil {
		// The guard was lost, and an attempt may be out still. The record stays at
		// power_off, so that the node does not register meanwhile (I5); Resume
		// repeats the order. Without a guard the role ends, and the next primary does.
		sleep(ctx, commitPause)
		return fmt.Errorf("fence node %s: whether an attempt has ended is not known; it is made again: %w", w.node, cluster.ErrUnknown)
	}
	w.proven = proving(node.Levels, attempts)
	return w.after(ctx, attempts, ok)
}

// verify reads the power state once more, in processes of its own: what is
// written as a proof was read after every order had ended. What another fencer
// has found proves nothing here, so that all levels are asked then.
func (w *work) verify(ctx context.Context) error {
	node, _ := w.Config.Node(w.node)
	levels := node.Levels
	if w.proven != nil {
		levels = [][]Device{w.proven}
	}
	attempts, ok := w.runner().Status(ctx, w.token, levels)
	return w.after(ctx, attempts, ok)
}

// runner makes attempts that know whom they are about.
func (w *work) runner() Runner { return w.Runner.For(w.node, w.record.Value.Incarnation) }

func (w *work) after(ctx context.Context, attempts []cluster.FenceAttempt, proven bool) error {
	if err := ctx.Err(); err != nil {
		// The role is over; its children were ended and have proven nothing.
		return fmt.Errorf("fence node %s, in stage %s: %w", w.node, w.record.Value.Stage, context.Cause(ctx))
	}
	e := Event{Kind: EventProceed, Attempts: attempts, Detail: "every device of a level reads off"}
	if w.record.Value.Stage == cluster.FenceVerify {
		e.Policy = w.Config.SuccessfulFence
	}
	if !proven {
		e.Kind, e.Policy, e.Detail = EventFailed, "", failureOf(attempts)+w.otherProof()
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
	return w.step(ctx, Event{Kind: EventProceed}, func(*cluster.Snapshot) ([]cluster.Op, error) {
		if back, ok := HasReturned(w.record.Value, w.view); ok && back.NewStart {
			return nil, nil
		}
		return cleanOps(w.node, w.view), nil
	})
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

// zeroTries is how often the figures are tried: a view that lags makes a try
// conflict.
const zeroTries = 3

// zeroCounters is for people's totals only: what fails is logged. It belongs to
// the stage after the clean-up, so that whoever carries the record on does it
// again, and it checks the daemon state that the clean-up has written: a node
// that has registered since publishes its own figures.
func (w *work) zeroCounters(ctx context.Context) {
	daemon := cluster.Key{Kind: cluster.KeyDaemonState, Node: w.node}
	var result cluster.TxnResult
	for range zeroTries {
		version := w.cleaned
		if version == nil {
			snap, err := w.lead(ctx, w.node)
			if err != nil {
				return // the step that follows says why
			}
			seen := snap.Nodes[w.node].Daemon
			if !seen.Present || seen.Err != nil || seen.Value != cluster.DaemonFenced {
				return
			}
			version = &seen.Version
		}
		ops := []cluster.Op{cluster.Check(daemon, *version)}
		for _, field := range zeroedFields {
			ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyNodeField, Node: w.node, Name: field.name}, cluster.AnyVersion, field.value))
		}
		sending, cancel := context.WithTimeout(ctx, commitWait)
		result = w.Store.Commit(sending, cluster.Txn{Purpose: "fence.counters", Ops: ops})
		cancel()
		if result.Outcome == cluster.OutcomeOK {
			return
		}
		w.cleaned = nil
		sleep(ctx, commitPause/10)
	}
	w.Log.Warn("figures of a fenced node not zeroed", zap.String("node", string(w.node)),
		zap.Stringer("outcome", result.Outcome), zap.Error(result.Err))
}

// recover gives the node power again where that is wanted, by every device that
// has cut a supply of it, also one whose level proved nothing; it does not wait
// for the node. A power-on that fails is told and ends the fence all the same:
// the node is proven dead.
func (w *work) recover(ctx context.Context) error {
	w.zeroCounters(ctx)
	e := Event{Kind: EventProceed, Detail: w.record.Value.Result}
	if w.record.Value.Proof == ProofVerifiedOff {
		e.Detail = "left without power"
	}
	if dark := w.toPowerOn(); len(dark) > 0 && ctx.Err() == nil {
		e.Attempts = w.runner().On(ctx, w.token, dark)
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

// toPowerOn are the devices to order on: none where a person has vouched for
// the node, who may have a hand in it.
func (w *work) toPowerOn() []Device {
	node, _ := w.Config.Node(w.node)
	r := w.record.Value
	if node.After != AfterReboot || (r.Proof != ProofVerifiedOff && r.Proof != ProofWatchdog) {
		return nil
	}
	return Dark(node.Levels, r.Attempts)
}

// rests reports whether power must not be given yet: an order of the fencer from
// whom the record was adopted may still be on its way, and would cut it again.
func (w *work) rests() bool {
	return w.resumed && w.from != cluster.FenceRecover && len(w.toPowerOn()) > 0
}

// Due reports whether the record needs a fencer now (see the function Due). One
// left behind after its proof, before power was given again, waits until every
// order of the earlier fencer has run out: none may cut the power that is given
// then. The wait holds neither the fence lock nor a fence of another node.
func (f *Fencer) Due(r cluster.Versioned[cluster.FenceRecord], now cluster.Instant) bool {
	if r.Value.Stage == cluster.FenceRecover {
		if now.Sub(r.SeenAt) < f.attemptsEnd(r.Value.Node) {
			return false
		}
	}
	return Due(r, now)
}

// attemptsEnd is how long after a record was seen no attempt that it tells of
// runs any more, whoever made it.
func (f *Fencer) attemptsEnd(n cluster.NodeID) time.Duration {
	node, _ := f.Config.Node(n)
	var devices []Device
	for _, level := range node.Levels {
		devices = append(devices, level...)
	}
	if len(devices) == 0 { // the fencer's settings have some that these do not
		return DefaultTimeout + childSlack
	}
	return longestTimeout(devices) + childSlack
}

func longestTimeout(devices []Device) time.Duration {
	longest := time.Duration(0)
	for _, d := range devices {
		longest = max(longest, d.withDefaults().Timeout)
	}
	return longest
}
