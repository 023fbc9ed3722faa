package fencing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Store is what the Fencer needs of ZooKeeper.
type Store interface {
	// Commit sends one Multi and classifies what became of it.
	Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult
	// Refresh syncs with the leader and returns a fresh view.
	Refresh(ctx context.Context) (*cluster.Snapshot, error)
	// Lock returns once its child heads the queue of the kind's lock;
	// cluster.ErrLockTimeout when ctx ends first.
	Lock(ctx context.Context, kind cluster.KeyKind, owner cluster.LockOwner) (cluster.LockChild, error)
	// Unlock deletes the child; one that is gone already is no error.
	Unlock(ctx context.Context, kind cluster.KeyKind, child cluster.LockChild) error
}

// Options are what a Fencer is made of. All but Log are needed.
type Options struct {
	Store  Store
	Runner Runner
	Config Config
	Owner  cluster.LockOwner // this node and the incarnation of its daemon
	NewID  func() string     // of fence records, unique over the cluster's life
	WallMS func() int64      // unix milliseconds, for people
	Log    *zap.Logger
}

// Fencer carries fence records through their stages. Its methods block for as
// long as a fence takes and end with their context, which is to be the primary
// role's: what is unfinished then stays in the record for the next primary.
// They may be called from several goroutines; the fence lock lets one through
// at a time.
type Fencer struct {
	Options
}

// New returns a Fencer, or why it cannot be one.
func New(o Options) (*Fencer, error) {
	if err := o.Config.Validate(); err != nil {
		return nil, fmt.Errorf("check the fencing settings: %w", err)
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	o.Config = o.Config.WithDefaults()
	return &Fencer{Options: o}, nil
}

// How long the Fencer waits for things that are not a device.
const (
	lockWait    = 5 * time.Second // for the fence lock; a lost contention after that
	unlockWait  = 2 * time.Second
	commitWait  = 2 * time.Second        // for one Multi's reply
	commitTries = 40                     // conflicts with one's own renewals, lost replies
	commitPause = 100 * time.Millisecond // between tries that were not answered
)

// Fence claims the action's fence and carries it as far as it goes: to done,
// failed, manual or canceled. A refusal says why nothing was claimed, or that
// the record is manual. A record of the same incarnation that is under way is
// carried on, whoever began it.
func (f *Fencer) Fence(ctx context.Context, a cluster.Action) (cluster.FenceRecord, *cluster.Refusal, error) {
	var record cluster.FenceRecord
	var refusal *cluster.Refusal
	err := f.locked(ctx, a.Node, func(ctx context.Context) error {
		w, refused, err := f.claim(ctx, a)
		if err != nil || refused != nil {
			refusal = refused
			return err
		}
		refusal, err = w.drive(ctx)
		record = w.record.Value
		return err
	})
	return record, refusal, err
}

// Resume carries on a record that is there: another primary's, or a failed one
// whose backoff has passed (see Due).
func (f *Fencer) Resume(ctx context.Context, node cluster.NodeID) (cluster.FenceRecord, *cluster.Refusal, error) {
	var record cluster.FenceRecord
	var refusal *cluster.Refusal
	err := f.locked(ctx, node, func(ctx context.Context) error {
		w, err := f.adopt(ctx, node)
		if err != nil {
			return err
		}
		if w.record.Value.Stage == cluster.FenceFailed {
			err = w.step(ctx, Event{Kind: EventRetry}, nil)
		}
		if err == nil {
			refusal, err = w.drive(ctx)
		}
		record = w.record.Value
		return err
	})
	return record, refusal, err
}

// DueNodes lists the nodes whose fence needs Resume now, in order (see Due).
func DueNodes(snap *cluster.Snapshot, now cluster.Instant) []cluster.NodeID {
	var due []cluster.NodeID
	for name, view := range snap.Nodes {
		if Due(view.Fence, now) {
			due = append(due, name)
		}
	}
	slices.Sort(due)
	return due
}

// Confirm records an operator's word that the node has no power, in place of a
// device's, and carries the fence on from there. It needs a reason and a record
// that has no proof yet; without one it returns cluster.ErrNotFound.
func (f *Fencer) Confirm(ctx context.Context, node cluster.NodeID, reason string) (cluster.FenceRecord, error) {
	var record cluster.FenceRecord
	if reason == "" {
		return record, fmt.Errorf("confirm the fence of node %s: a reason is needed: %w", node, cluster.ErrRefused)
	}
	err := f.locked(ctx, node, func(ctx context.Context) error {
		w, err := f.adopt(ctx, node)
		if err != nil {
			return err
		}
		if err = w.step(ctx, Event{Kind: EventProof, Proof: ProofConfirmed, Detail: "confirmed by an operator: " + reason}, nil); err == nil {
			_, err = w.drive(ctx)
		}
		record = w.record.Value
		return err
	})
	return record, err
}

// locked runs body as the only fencer of the cluster.
func (f *Fencer) locked(ctx context.Context, node cluster.NodeID, body func(context.Context) error) error {
	waiting, cancel := context.WithTimeout(ctx, lockWait)
	child, err := f.Store.Lock(waiting, cluster.KeyFenceLockChild, f.Owner)
	cancel()
	if err != nil {
		return fmt.Errorf("take the fence lock for node %s: %w", node, err)
	}
	err = body(ctx)
	// The role may have ended; the lock is given up all the same, or the next
	// fencer would wait for this session's end.
	releasing, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockWait)
	defer cancel()
	if unlockErr := f.Store.Unlock(releasing, cluster.KeyFenceLockChild, child); unlockErr != nil {
		err = errors.Join(err, fmt.Errorf("give up the fence lock of node %s: %w", node, unlockErr))
	}
	return err
}

// work is one record in this fencer's hands.
type work struct {
	*Fencer
	node    cluster.NodeID
	record  cluster.Versioned[cluster.FenceRecord]
	epoch   cluster.Epoch
	resumed bool               // an attempt of an earlier fencer may have been under way
	from    cluster.FenceStage // at which an earlier fencer's record was adopted
}

// claim creates the record, or adopts one of the same incarnation.
func (f *Fencer) claim(ctx context.Context, a cluster.Action) (*work, *cluster.Refusal, error) {
	for range commitTries {
		snap, err := f.lead(ctx, a.Node)
		if err != nil {
			return nil, nil, err
		}
		view := snap.Nodes[a.Node]
		seen := view.Fence
		w := &work{Fencer: f, node: a.Node, record: seen, epoch: snap.Lease.Value.Epoch}
		if seen.Present && seen.Value.Incarnation == a.Incarnation && seen.Value.ID != "" &&
			seen.Value.Stage.Known() && !seen.Value.Ended() {
			adopted, err := f.adopt(ctx, a.Node)
			return adopted, nil, err
		}
		record := cluster.FenceRecord{
			Version: 1, ID: f.NewID(), Node: a.Node, Incarnation: a.Incarnation, Epoch: w.epoch, By: f.Owner.Node,
			Stage: cluster.FenceClaimed, Reason: a.Reason, StartedMS: f.WallMS(), Keepalive: a.Keepalive,
		}
		if detail := unreadable(snap); detail != "" {
			return nil, &cluster.Refusal{Code: cluster.RefuseDisabled, Node: a.Node, Detail: detail}, nil
		}
		if detail, _, back := HasReturned(record, view); back {
			return nil, &cluster.Refusal{Code: cluster.RefuseNotSuspectEnough, Node: a.Node, Detail: detail}, nil
		}
		written, err := w.write(ctx, snap, record, nil)
		if err != nil {
			return nil, nil, err
		}
		if written {
			return w, nil, nil
		}
	}
	return nil, nil, fmt.Errorf("claim the fence of node %s: %w", a.Node, cluster.ErrConflict)
}

// adopt makes a record this fencer's: its epoch is written into it, so that the
// results of whoever held it before are dropped (I2).
func (f *Fencer) adopt(ctx context.Context, node cluster.NodeID) (*work, error) {
	for range commitTries {
		snap, err := f.lead(ctx, node)
		if err != nil {
			return nil, err
		}
		seen := snap.Nodes[node].Fence
		if !seen.Present || seen.Err != nil || seen.Value.ID == "" || !seen.Value.Stage.Known() {
			return nil, fmt.Errorf("carry on the fence of node %s: there is no readable record: %w", node, cluster.ErrNotFound)
		}
		w := &work{Fencer: f, node: node, record: seen, epoch: snap.Lease.Value.Epoch, resumed: underWay(seen.Value.Stage), from: seen.Value.Stage}
		record := seen.Value
		if record.Epoch == w.epoch && record.By == f.Owner.Node {
			return w, nil
		}
		record.Epoch, record.By = w.epoch, f.Owner.Node
		written, err := w.write(ctx, snap, record, nil)
		if err != nil {
			return nil, err
		}
		if written {
			return w, nil
		}
	}
	return nil, fmt.Errorf("carry on the fence of node %s: %w", node, cluster.ErrConflict)
}

// underWay reports whether an earlier fencer's order may still be in a
// device's hands in this stage.
func underWay(s cluster.FenceStage) bool {
	switch s {
	case cluster.FencePowerOff, cluster.FenceVerify, cluster.FenceFenced, cluster.FenceRecover:
		return true
	}
	return false
}

// drive carries the record on until it rests.
func (w *work) drive(ctx context.Context) (*cluster.Refusal, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("fence node %s, in stage %s: %w", w.node, w.record.Value.Stage, context.Cause(ctx))
		}
		var err error
		switch w.record.Value.Stage {
		case cluster.FenceClaimed, cluster.FenceSoft:
			err = w.arm(ctx)
		case cluster.FencePowerOff:
			err = w.powerOff(ctx)
		case cluster.FenceVerify:
			err = w.verify(ctx)
		case cluster.FenceFenced:
			err = w.clean(ctx)
		case cluster.FenceRecover:
			if w.rests() {
				return nil, nil // powered on again once it is Due
			}
			err = w.recover(ctx)
		case cluster.FenceManual:
			return &cluster.Refusal{Code: cluster.RefuseNoDevice, Node: w.node, Detail: w.record.Value.Result}, nil
		default: // over, or waiting for its next try
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
