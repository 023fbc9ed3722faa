package fencing

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// Order carries out what an operator has ordered of a node's fence: fence,
// confirm or cancel. The order ends in the very Multi that is its effect, so that
// it is never carried out twice and never lost (I8). A refusal without
// a record says why nothing was done: the order stands, to be answered by the
// caller. ErrConflict: the order was withdrawn or replaced meanwhile.
//
// Whether the node looks dead is the caller's to judge; keepalive is the Mzxid
// of the newest keepalive that his judgement rests on, and a confirmation is
// refused where there is another by then.
func (f *Fencer) Order(ctx context.Context, token cluster.Token, order cluster.Versioned[cluster.FenceOrder], keepalive int64) (cluster.FenceRecord, *cluster.Refusal, error) {
	var record cluster.FenceRecord
	var refusal *cluster.Refusal
	err := f.locked(ctx, order.Value.Node, func(ctx context.Context) error {
		w, refused, err := f.accept(ctx, order, keepalive)
		if err != nil || refused != nil {
			refusal = refused
			return err
		}
		w.token = token
		refusal, err = w.drive(ctx)
		record = w.record.Value
		return err
	})
	return record, refusal, err
}

// accept writes the order's first effect. One whose effect a record carries
// already is done: it was written by a try whose reply was lost, or the order
// stands there again, put back by a writer whose own reply was lost, and ends.
func (f *Fencer) accept(ctx context.Context, order cluster.Versioned[cluster.FenceOrder], keepalive int64) (*work, *cluster.Refusal, error) {
	o := order.Value
	for range commitTries {
		snap, err := f.lead(ctx, o.Node)
		if err != nil {
			return nil, nil, err
		}
		w := f.begin(snap, o.Node)
		seen := w.view.Order
		stands := seen.Present && seen.Value.ID == o.ID
		if readable(w.record) && w.record.Value.Order == o.ID {
			if stands {
				ended, err := w.endOrder(ctx, snap)
				if err != nil {
					return nil, nil, err
				}
				if !ended {
					continue
				}
			}
			adopted, err := f.adopt(ctx, o.Node)
			return adopted, nil, err
		}
		if !stands {
			return nil, nil, fmt.Errorf("carry out order %s about node %s: it was withdrawn or replaced: %w", o.ID, o.Node, cluster.ErrConflict)
		}
		record, ops, refusal := w.obey(snap, o, keepalive)
		if refusal != nil {
			return nil, refusal, nil
		}
		ops = append(ops, cluster.EndOrder(o.Node, seen))
		w.resumed, w.from, w.forgotten = underWay(w.record.Value.Stage), w.record.Value.Stage, false
		written, err := w.write(ctx, record, snap, ops)
		if err != nil {
			return nil, nil, err
		}
		if written {
			return w, nil, nil
		}
	}
	return nil, nil, fmt.Errorf("carry out order %s about node %s: %w", o.ID, o.Node, cluster.ErrConflict)
}

// endOrder ends an order whose effect the record carries, under this very role
// and on this very record. It returns false when nothing is known to have been
// written: read again and decide anew.
func (w *work) endOrder(ctx context.Context, snap *cluster.Snapshot) (bool, error) {
	sending, cancel := context.WithTimeout(ctx, commitWait)
	defer cancel()
	result := w.Store.Commit(sending, cluster.Txn{Purpose: "fence.order.done", Ops: []cluster.Op{
		cluster.Check(cluster.Key{Kind: cluster.KeyLease}, snap.Lease.Version),
		cluster.Check(cluster.Key{Kind: cluster.KeyFence, Node: w.node}, w.record.Version),
		cluster.EndOrder(w.node, w.view.Order),
	}})
	switch result.Outcome {
	case cluster.OutcomeOK:
		return true, nil
	case cluster.OutcomeRefused:
		return false, fmt.Errorf("end the order about node %s that was carried out: %w", w.node, errors.Join(cluster.ErrRefused, result.Err))
	}
	pause := commitPause
	if result.Outcome == cluster.OutcomeConflict { // mostly a renewal of one's own lease in between
		pause /= 10
	}
	sleep(ctx, pause)
	return false, nil
}

// obey is the record that the order makes of the present one, with what is to
// be checked or written beside it, or why it is refused.
func (w *work) obey(snap *cluster.Snapshot, o cluster.FenceOrder, keepalive int64) (cluster.FenceRecord, []cluster.Op, *cluster.Refusal) {
	no := func(code cluster.RefusalCode, format string, args ...any) (cluster.FenceRecord, []cluster.Op, *cluster.Refusal) {
		return cluster.FenceRecord{}, nil, &cluster.Refusal{Code: code, Node: o.Node, Detail: fmt.Sprintf("node %s: ", o.Node) + fmt.Sprintf(format, args...)}
	}
	if o.Node == w.Owner.Node {
		return no(cluster.RefuseOneself, "it is the primary and does not fence itself; switch the role first")
	}
	if now := recordOf(w.view); o.Incarnation == "" || now != o.Incarnation {
		return no(cluster.RefuseIncarnation, "the order is about start %q of it, and its present one is %q; look again and order anew", o.Incarnation, now)
	}
	if now := aliveOf(w.view); now != "" && now != o.Incarnation && o.Action != cluster.OrderCancel {
		return no(cluster.RefuseIncarnation, "it has started anew as %s; order anew", now)
	}
	held := w.record.Value
	held.Epoch, held.By = w.epoch, w.Owner.Node
	if !readable(w.record) || held.Incarnation != o.Incarnation {
		held = cluster.FenceRecord{}
	}
	switch o.Action {
	case cluster.OrderFence:
		return w.obeyFence(snap, o, held, no)
	case cluster.OrderConfirm:
		return w.obeyConfirm(o, keepalive, held, no)
	case cluster.OrderCancel:
		return w.obeyCancel(o, held, no)
	}
	return no(cluster.RefuseOrder, "action %q is not one of fence, confirm, cancel, test", o.Action)
}

type refuser func(code cluster.RefusalCode, format string, args ...any) (cluster.FenceRecord, []cluster.Op, *cluster.Refusal)

// obeyFence begins a fence, also in place of a failed one: what is ordered is
// aimed at a living node until its own first try, and that one's tries are over.
func (w *work) obeyFence(snap *cluster.Snapshot, o cluster.FenceOrder, held cluster.FenceRecord, no refuser) (cluster.FenceRecord, []cluster.Op, *cluster.Refusal) {
	if m := snap.Maintenance; m.Present && (m.Value || m.Err != nil) {
		return no(cluster.RefuseMaintenance, "the cluster is in maintenance, in which nobody is fenced; end it first")
	}
	switch held.Stage {
	case "", cluster.FenceCanceled, cluster.FenceManual, cluster.FenceFailed:
		record := w.fresh(o.Incarnation, w.view.Keepalive.Mzxid, fmt.Sprintf("ordered by %s: %s", o.By, o.Reason))
		record.Order = o.ID
		return record, nil, nil
	case cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone:
		return no(cluster.RefuseProven, "this start of it is proven dead already (%s); nothing of it is left to fence", held.Proof)
	}
	return no(cluster.RefuseUnderWay, "a fence of it is under way, in stage %s", held.Stage)
}

// obeyConfirm takes the operator's word for a proof. The write conflicts with
// every sign of life of the node.
func (w *work) obeyConfirm(o cluster.FenceOrder, keepalive int64, held cluster.FenceRecord, no refuser) (cluster.FenceRecord, []cluster.Op, *cluster.Refusal) {
	detail, refusal := ConfirmProof(o)
	if refusal != nil {
		return cluster.FenceRecord{}, nil, refusal
	}
	if w.view.Keepalive.Mzxid != keepalive {
		return no(cluster.RefuseNotSuspectEnough, "it has written a keepalive since it was judged; a node that writes is not without power")
	}
	if held.Proof != "" && !beforeProof(held.Stage) && held.Stage != cluster.FenceCanceled {
		return no(cluster.RefuseProven, "this start of it is proven dead already (%s)", held.Proof)
	}
	if held.ID == "" || held.Stage == cluster.FenceCanceled {
		held = w.fresh(o.Incarnation, w.view.Keepalive.Mzxid, fmt.Sprintf("confirmed by %s", o.By))
	}
	record, _, refusal := advance(held, Event{Kind: EventProof, Proof: ProofConfirmed, Detail: detail, Order: o.ID, Policy: w.Config.SuccessfulFence}, nil, no)
	return record, w.lifeless(record), refusal
}

// obeyCancel ends the tries for as long as no power has been ordered off. The
// record then waits for the node's return, a confirmation or a new order.
func (w *work) obeyCancel(o cluster.FenceOrder, held cluster.FenceRecord, no refuser) (cluster.FenceRecord, []cluster.Op, *cluster.Refusal) {
	switch held.Stage {
	case cluster.FenceClaimed, cluster.FenceSoft, cluster.FenceFailed:
		return advance(held, Event{Kind: EventHeld, Order: o.ID, Detail: fmt.Sprintf("cancelled by %s: %s", o.By, o.Reason)}, nil, no)
	case cluster.FencePowerOff, cluster.FenceVerify:
		return no(cluster.RefuseUnderWay, "its power has been ordered off (stage %s); what is out cannot be called back", held.Stage)
	}
	return no(cluster.RefuseNoFence, "no fence of its present start is under way")
}

// advance applies an event to the record that is held.
func advance(held cluster.FenceRecord, e Event, ops []cluster.Op, no refuser) (cluster.FenceRecord, []cluster.Op, *cluster.Refusal) {
	e.ID, e.Try, e.Epoch = held.ID, held.Tries, held.Epoch
	record, err := Next(held, e)
	if err != nil {
		return no(cluster.RefuseUnderWay, "%v", err)
	}
	return record, ops, nil
}

// Ripe reports whether the node's fence can go on without a verdict on the node:
// it has returned, its watchdog's bound has passed where that is to count, or an
// operator's order was left unfinished, and a try of that is all that it is ripe
// for. Settle then does what is to be done.
func (f *Fencer) Ripe(view cluster.NodeView, now cluster.Instant) (ripe, try bool) {
	r := view.Fence
	if !readable(r) {
		return false, false
	}
	if _, back := returnedFrom(r.Value, forgotten(r, now), view); back && Cancelable(r.Value.Stage) {
		return true, false
	}
	if f.left(view, now) {
		return true, false
	}
	if from, _ := f.watchdogFrom(view); !now.Before(from) {
		return true, false
	}
	try = r.Value.Order != "" && Cancelable(r.Value.Stage) && f.Due(r, now)
	return try, try
}

// left reports whether an order was left out in a fence that nobody carries on:
// whoever sent it has lost the role before this reign, or was this fencer, which
// has rested since; its attempts have ended, at the latest by their own deadline.
// Mostly the record is resumed long before. It is not where that is this very
// start, which takes no power of its own, nor where too few node leases are held:
// the node may have booted since and wait for the end of this fence before it
// registers, so that it would never be one of those that are missing (I7).
func (f *Fencer) left(view cluster.NodeView, now cluster.Instant) bool {
	r := view.Fence
	return (r.Value.Stage == cluster.FencePowerOff || r.Value.Stage == cluster.FenceVerify) &&
		now.Sub(max(r.SeenAt, f.reign.began(), f.rested.of(view.Name))) >= f.attemptsEnd(r.Value.Node)
}

// watchdogFrom is from when on the watchdog's bound is the node's dead-proof:
// only where a failed fence is to be recovered from, once its devices have
// failed or there are none. While an attempt is out it is not: the proof would
// let the node register again, and the attempt hit its new start (I5).
func (f *Fencer) watchdogFrom(view cluster.NodeView) (cluster.Instant, string) {
	r := view.Fence.Value
	switch {
	case f.Config.FailedFence != PolicyMigrate:
		return cluster.Forever, "fencing.failed_fence is none, so that a watchdog's bound is not counted"
	case f.Clock == nil:
		return cluster.Forever, "no clock is there to count a watchdog's bound by"
	case r.Held || (r.Stage != cluster.FenceFailed && r.Stage != cluster.FenceManual):
		return cluster.Forever, "its fence has not failed"
	}
	return f.watchdogProof(r.Incarnation, view)
}

func (f *Fencer) watchdogProof(i cluster.Incarnation, view cluster.NodeView) (cluster.Instant, string) {
	promised := cluster.Never
	if f.Promised != nil {
		promised = f.Promised(view.Name)
	}
	return WatchdogProof(WatchdogEvidence{
		Incarnation: i, Node: view, Promised: promised, Leads: f.reign.began(), StopAfter: f.StopAfter, TrustSoftdog: f.Config.TrustSoftdog,
	})
}

// otherProof says, after a fence has failed, which other proof is counted on.
func (w *work) otherProof() string {
	if w.Config.FailedFence != PolicyMigrate || w.Clock == nil {
		return "; it waits for its devices, its return or an operator's confirmation (fencing.failed_fence is none)"
	}
	from, missing := w.watchdogProof(w.record.Value.Incarnation, w.view)
	if missing != "" {
		return "; its watchdog proves nothing: " + missing
	}
	return fmt.Sprintf("; its watchdog's bound is the proof in %s", max(0, from.Sub(w.Clock.Now())).Round(100*time.Millisecond))
}

// Settle carries on a record that is Ripe: it writes the node's return, or the
// proof by its watchdog and what follows, or goes on with an operator's order.
// A record that is not Ripe any more is left as it is. Each try of an order is
// the caller's to weigh against who else is down (I6): without try no power is
// ordered off.
func (f *Fencer) Settle(ctx context.Context, token cluster.Token, node cluster.NodeID, try bool) (cluster.FenceRecord, *cluster.Refusal, error) {
	var record cluster.FenceRecord
	var refusal *cluster.Refusal
	err := f.locked(ctx, node, func(ctx context.Context) error {
		w, err := f.adopt(ctx, node)
		if err != nil {
			return err
		}
		w.token = token
		refusal, err = w.settle(ctx, try)
		record = w.record.Value
		return err
	})
	return record, refusal, err
}

func (w *work) settle(ctx context.Context, try bool) (*cluster.Refusal, error) {
	r := w.record.Value
	if back, ok := returnedFrom(r, w.forgotten, w.view); ok && Cancelable(r.Stage) {
		if r.Stage == cluster.FenceFailed {
			back.Detail += "; before that " + r.Result
		}
		return nil, w.step(ctx, Event{Kind: EventReturned, Proof: back.Proof, Detail: back.Detail}, nil)
	}
	if w.Clock != nil && w.left(w.view, w.Clock.Now()) { // a later look finds that it has returned
		why := "its fence was left with an order out and could not be carried on"
		if w.node == w.Owner.Node {
			why = "it has become primary itself"
		}
		return nil, w.step(ctx, Event{Kind: EventFailed, Detail: fmt.Sprintf("node %s: %s; its power was not verified off", w.node, why)}, nil)
	}
	if from, missing := w.watchdogFrom(w.view); missing == "" && !w.Clock.Now().Before(from) {
		if err := w.provenByWatchdog(ctx); err != nil {
			return nil, err
		}
		return w.drive(ctx)
	}
	if try && r.Order != "" && !r.Held && Cancelable(r.Stage) && r.Stage != cluster.FenceManual {
		return w.again(ctx)
	}
	return nil, nil
}

// provenByWatchdog writes the proof, unless the node has shown life or fencing
// is switched off by then; where the bound has moved, by a promise or a late
// keepalive, nothing is written.
func (w *work) provenByWatchdog(ctx context.Context) error {
	held := w.record.Value
	proof := held
	proof.Proof = ProofWatchdog // so that a keepalive conflicts, whoever ordered the fence
	var instead Event
	var moved bool
	err := w.step(ctx, Event{
		Kind: EventProof, Proof: ProofWatchdog, Policy: w.Config.FailedFence,
		Detail: "its armed watchdog must have reset it: no keepalive was seen since, no promise stands, and the bound has passed",
	}, func(snap *cluster.Snapshot) ([]cluster.Op, error) {
		view := w.view
		view.Fence.Value = held
		from, _ := w.watchdogFrom(view)
		if moved = w.Clock.Now().Before(from); moved {
			return nil, errDiverted
		}
		if instead = w.against(snap); instead.Kind != 0 {
			return nil, errDiverted
		}
		spend, _ := w.spend(snap)
		return append(w.lifeless(proof), spend...), nil
	})
	switch {
	case !errors.Is(err, errDiverted):
		return err
	case moved:
		return nil
	}
	return w.step(ctx, instead, nil)
}
