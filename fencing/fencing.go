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

// Soft asks a node to stop by itself before its power is taken. It proves
// nothing: power is taken afterwards, whatever was answered.
type Soft interface {
	// Answers reports whether the node answers questions past ZooKeeper now.
	// It does not block.
	Answers(n cluster.NodeID) bool
	// Stop asks exactly the start of the node that the record names to end what
	// it protects, by the right of the fence's activity, and returns when it says
	// that it has, when it does not answer or refuses, or when ctx ends.
	Stop(ctx context.Context, t cluster.Token, r cluster.FenceRecord) error
}

// Options are what a Fencer is made of. All but those named optional are needed.
type Options struct {
	Store  Store
	Runner Runner
	Config Config
	Owner  cluster.LockOwner // this node and the incarnation of its daemon
	NewID  func() string     // of fence records, unique over the cluster's life
	WallMS func() int64      // unix milliseconds, for people
	Log    *zap.Logger       // optional

	// Clock is that of the snapshots' instants. Optional: without it no
	// watchdog's bound is ever counted as a proof.
	Clock cluster.Clock
	// StopAfter is Q·K, cluster.Timing.StopAfter; for the watchdog's bound.
	StopAfter time.Duration
	// Promised is the end of the last promise to the node that it may go on
	// with its work, Never for none (failsafe.Promised). Optional where nothing
	// is promised.
	Promised func(cluster.NodeID) cluster.Instant
	// Soft is optional: without it, and where the node does not answer, power is
	// taken at once.
	Soft Soft
	// TestRun starts the children of device tests; optional, see Tester.Run.
	TestRun func(ctx context.Context, r cluster.RunRequest) (cluster.RunResult, error)
}

// Fencer carries fence records through their stages. Its methods block for as
// long as a fence takes and end with their context, which is to be the primary
// role's: what is unfinished then stays in the record for the next primary.
// They may be called from several goroutines; the fence lock lets one through
// at a time.
type Fencer struct {
	Options
	reign  reign
	rested rested
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
	lockWait    = 5 * time.Second        // for the fence lock; a lost contention after that
	unlockWait  = time.Second            // less than an activity is given to end, which it is part of
	commitWait  = 2 * time.Second        // for one Multi's reply
	commitTries = 40                     // conflicts with one's own renewals, lost replies
	commitPause = 100 * time.Millisecond // between tries that were not answered
	softWait    = 2 * time.Second        // for the node itself to stop what it protects, or Q·K if that is less
)

// Fence claims the action's fence and carries it as far as it goes: to done,
// failed, manual or canceled. A refusal says why nothing was claimed, or that
// the record is manual. A record of the same incarnation that is under way is
// carried on, whoever began it. No power is taken or given once the token of
// the activity behind it is dead; the record stays for the next one.
func (f *Fencer) Fence(ctx context.Context, token cluster.Token, a cluster.Action) (cluster.FenceRecord, *cluster.Refusal, error) {
	var record cluster.FenceRecord
	var refusal *cluster.Refusal
	err := f.locked(ctx, a.Node, func(ctx context.Context) error {
		w, refused, err := f.claim(ctx, a)
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

// Resume carries on a record that is there: another primary's, or a failed one
// whose backoff has passed (see Due).
func (f *Fencer) Resume(ctx context.Context, token cluster.Token, node cluster.NodeID) (cluster.FenceRecord, *cluster.Refusal, error) {
	var record cluster.FenceRecord
	var refusal *cluster.Refusal
	err := f.locked(ctx, node, func(ctx context.Context) error {
		w, err := f.adopt(ctx, node)
		if err != nil {
			return err
		}
		w.token = token
		refusal, err = w.again(ctx)
		record = w.record.Value
		return err
	})
	return record, refusal, err
}

// again drives the record on, a failed one by its next try.
func (w *work) again(ctx context.Context) (*cluster.Refusal, error) {
	if w.record.Value.Stage == cluster.FenceFailed {
		if err := w.step(ctx, Event{Kind: EventRetry}, nil); err != nil {
			return nil, err
		}
	}
	return w.drive(ctx)
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
	view    cluster.NodeView // of the node, as of the last look
	epoch   cluster.Epoch
	token   cluster.Token      // the right to take and give power
	resumed bool               // an attempt of an earlier fencer may have been under way
	from    cluster.FenceStage // at which an earlier fencer's record was adopted
	// forgotten: the record as it was found had stood for longer than an order is
	// aimed at a living node.
	forgotten bool
	asked     bool                   // the node was asked to stop by itself
	soft      []cluster.FenceAttempt // how that went
	proven    []Device               // the level that read off when power was taken, in this very run
	cleaned   *int32                 // version of the daemon state as this run has written it
}

// begin is work on the node's record as the view has it.
func (f *Fencer) begin(snap *cluster.Snapshot, node cluster.NodeID) *work {
	view := snap.Nodes[node]
	w := &work{Fencer: f, node: node, record: view.Fence, view: view, epoch: snap.Lease.Value.Epoch}
	w.forgotten = f.Clock != nil && forgotten(view.Fence, f.Clock.Now())
	return w
}

// fresh is a new record of this fencer's about one start of the node. What is
// known of devices from an earlier fence of the same start stays known: one of
// them may still be dark.
func (w *work) fresh(i cluster.Incarnation, keepalive int64, reason string) cluster.FenceRecord {
	record := cluster.FenceRecord{
		Version: 1, ID: w.NewID(), Node: w.node, Incarnation: i, Epoch: w.epoch, By: w.Owner.Node,
		Stage: cluster.FenceClaimed, Reason: reason, StartedMS: w.WallMS(), Keepalive: keepalive,
	}
	if earlier := w.record; readable(earlier) && earlier.Value.Incarnation == i {
		record.Attempts = earlier.Value.Attempts
	}
	return record
}

// readable reports whether there is a record that this program can carry on.
func readable(r cluster.Versioned[cluster.FenceRecord]) bool {
	return r.Present && r.Err == nil && r.Value.ID != "" && r.Value.Stage.Known()
}

// claim creates the record, or adopts one of the same incarnation.
func (f *Fencer) claim(ctx context.Context, a cluster.Action) (*work, *cluster.Refusal, error) {
	for range commitTries {
		snap, err := f.lead(ctx, a.Node)
		if err != nil {
			return nil, nil, err
		}
		w := f.begin(snap, a.Node)
		if readable(w.record) && w.record.Value.Incarnation == a.Incarnation && !w.record.Value.Ended() {
			adopted, err := f.adopt(ctx, a.Node)
			return adopted, nil, err
		}
		if held := w.record.Value; readable(w.record) && held.Incarnation == a.Incarnation && held.Held {
			return nil, &cluster.Refusal{Code: cluster.RefuseDisabled, Node: a.Node, Detail: fmt.Sprintf(
				"node %s: its fence was %s; order it anew, or confirm that it has no power", a.Node, held.Result)}, nil
		}
		record := w.fresh(a.Incarnation, a.Keepalive, a.Reason)
		if detail := unreadable(snap); detail != "" {
			return nil, &cluster.Refusal{Code: cluster.RefuseDisabled, Node: a.Node, Detail: detail}, nil
		}
		if back, ok := HasReturned(record, w.view); ok {
			return nil, &cluster.Refusal{Code: cluster.RefuseNotSuspectEnough, Node: a.Node, Detail: back.Detail}, nil
		}
		written, err := w.write(ctx, record, snap, nil)
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
	old := false // an adoption whose reply was lost makes no record young again
	for range commitTries {
		snap, err := f.lead(ctx, node)
		if err != nil {
			return nil, err
		}
		w := f.begin(snap, node)
		if !readable(w.record) {
			return nil, fmt.Errorf("carry on the fence of node %s: there is no readable record: %w", node, cluster.ErrNotFound)
		}
		record := w.record.Value
		w.resumed, w.from = underWay(record.Stage), record.Stage
		old = old || w.forgotten
		w.forgotten = old
		if record.Epoch == w.epoch && record.By == f.Owner.Node {
			return w, nil
		}
		record.Epoch, record.By = w.epoch, f.Owner.Node
		written, err := w.write(ctx, record, snap, nil)
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
		if err := w.token.Check(); err != nil {
			return nil, fmt.Errorf("fence node %s, in stage %s: %w", w.node, w.record.Value.Stage, err)
		}
		var err error
		switch r := w.record.Value; r.Stage {
		case cluster.FenceClaimed, cluster.FenceSoft:
			err = w.prepare(ctx)
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
			if r.Held {
				return nil, nil
			}
			return &cluster.Refusal{Code: cluster.RefuseNoDevice, Node: w.node, Detail: r.Result}, nil
		default: // over, or waiting for its next try
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
