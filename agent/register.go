package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// registrar keeps this node registered: one Multi with its record and its
// ephemeral alive, again in every new session.
type registrar struct {
	c       Config
	d       Deps
	at      cluster.Instant // send instant of the acknowledged registration
	acked   cluster.Instant // when its reply came
	session int64
	blocker cluster.Versioned[cluster.Alive] // an alive of another host, and since when it is watched
	blocked cluster.Instant
	usurped bool // the first registration replaced such an alive
	// removed is told, where this node was removed while it was cut off: it is to
	// end (protocol: who was removed stays out). nil: it goes on trying.
	removed func(error)
	left    bool // that was told already
	// word is what the guard says of this machine's watchdog now; nil: nothing.
	word func() *cluster.WatchdogWord
	// settles reports whether this node's copies are ending (Agent.Settling); nil:
	// they are not. poked gets a poke when that begins.
	settles func() bool
	poked   <-chan struct{}
}

func newRegistrar(c Config, d Deps) *registrar { return &registrar{c: c, d: d} }

// first waits for ZooKeeper and a tree, then registers. It returns an error
// only for what waiting cannot cure, or when ctx ends.
func (r *registrar) first(ctx context.Context) error {
	snapshots, unsubscribe := r.d.Store.Subscribe()
	defer unsubscribe()
	pause := time.NewTicker(200 * time.Millisecond)
	defer pause.Stop()
	var snap *cluster.Snapshot
	ready, tried, said := false, false, ""
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case snap = <-snapshots:
			if tried { // each try reads, and so makes the next snapshot itself
				continue
			}
		case <-pause.C:
		}
		if snap == nil || !snap.Live {
			r.say(&said, "waiting for ZooKeeper")
			continue
		}
		if !ready {
			if err := r.prepare(ctx); err != nil {
				if fatal(err) {
					r.leave(ctx, err)
					return err
				}
				r.say(&said, err.Error())
				continue
			}
			ready = true
		}
		if snap.Members.Err != nil { // the next snapshot tells when it is mended: nothing is read anew for that
			if err := r.out(snap); err != nil {
				r.say(&said, err.Error())
				continue
			}
		}
		err := r.register(ctx)
		if err == nil {
			return nil
		}
		if fatal(err) {
			r.leave(ctx, err)
			return err
		}
		tried = true
		r.say(&said, err.Error())
	}
}

// say reports a reason for waiting once.
func (r *registrar) say(said *string, text string) {
	if *said == text {
		return
	}
	*said = text
	r.d.Log.Info("registration waits", zap.String("reason", text))
	r.d.Notify.Status(text)
}

// fatal reports whether waiting cannot cure the error.
func fatal(err error) bool {
	return errors.Is(err, cluster.ErrDuplicateNode) || errors.Is(err, cluster.ErrSchemaNewer) ||
		errors.Is(err, cluster.ErrForeignTree) || errors.Is(err, cluster.ErrEmptyTree) || errors.Is(err, cluster.ErrAuth) ||
		errors.Is(err, cluster.ErrRemoved)
}

// prepare checks whose tree this is and makes the node's records.
func (r *registrar) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	name, initialised, err := r.d.Tree.CheckTree(ctx)
	if err != nil {
		return err
	}
	if !initialised {
		if err := r.d.Remember(""); err != nil {
			return err
		}
		return errors.New("the ZooKeeper tree is not initialised; run: pvc cluster init --name NAME")
	}
	if r.c.ClusterName != "" && name != r.c.ClusterName {
		return fmt.Errorf("%w: the tree is of cluster %q, the configuration says %q", cluster.ErrForeignTree, name, r.c.ClusterName)
	}
	if err := r.d.Remember(name); err != nil {
		return err
	}
	return r.ensure(ctx)
}

// register sends the registration's Multi, on the versions of a fresh read.
func (r *registrar) register(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	fresh, err := r.d.Store.Refresh(call)
	if err != nil {
		return fmt.Errorf("read the tree: %w", err)
	}
	if fresh.Session == 0 {
		return errors.New("waiting for a ZooKeeper session")
	}
	self := fresh.Nodes[r.c.Node]
	if r.registered(fresh) {
		return nil
	}
	if err := r.out(fresh); err != nil {
		return err
	}
	if s := fresh.Schema; r.d.Schemas != nil && s.Value > r.d.Schemas.NewestSchema() {
		return cluster.SchemaTooNew(s.Value, r.d.Schemas.NewestSchema())
	}
	if err := r.ownFence(self.Fence); err != nil {
		return err
	}
	ops, err := r.replaceAlive(self, fresh.Session)
	if err != nil {
		return err
	}
	ops = append(ops, r.records(fresh, self)...)
	res := r.d.Store.Commit(call, cluster.Txn{Purpose: "register", Ops: ops})
	if res.Outcome != cluster.OutcomeOK {
		return fmt.Errorf("register %s (%s): %w", r.c.Node, res.Outcome, res.Err)
	}
	if r.at.IsZero() {
		// What another host may still hold is not resumed here, neither by a
		// namesake nor by the owner of a copied state folder (I1).
		r.usurped = self.Alive.Present && self.Alive.Value.Incarnation != r.c.Incarnation && !r.predecessor(self)
	}
	r.at, r.acked, r.session = res.SentAt, res.DoneAt, fresh.Session
	return nil
}

// registered reports whether the view shows this start's alive record, made in
// the view's session.
func (r *registrar) registered(snap *cluster.Snapshot) bool {
	alive := snap.Nodes[r.c.Node].Alive
	return snap.Session == r.session && alive.Present && alive.Value.Incarnation == r.c.Incarnation
}

// record is what this node tells of itself.
func (r *registrar) record() cluster.NodeRecord {
	addresses := make([]string, len(r.c.Addresses))
	for i, a := range r.c.Addresses {
		addresses[i] = a.Prefix.String() + "@" + a.Interface
	}
	return cluster.NodeRecord{
		Version: 1, ID: r.c.NodeUUID, Incarnation: r.c.Incarnation, Priority: r.c.Priority,
		LatestSchema: newestSchema(r.d.Schemas), Watchdog: r.said(), Settling: r.settles != nil && r.settles(), API: r.c.API, Peer: r.c.Peer, Addresses: addresses, MACs: r.c.MACs, Fencing: r.c.Fencing,
	}
}

// said is what is to be published of the watchdog.
func (r *registrar) said() *cluster.WatchdogWord {
	if r.word == nil {
		return nil
	}
	return r.word()
}

// renew writes this node's record anew where its word on the watchdog is not
// what the guard says now: others count on it once they cannot ask (I4).
func (r *registrar) renew(ctx context.Context, snap *cluster.Snapshot, record cluster.Versioned[cluster.NodeRecord]) {
	was, is := record.Value.Watchdog, r.said()
	same := was == nil && is == nil || was != nil && is != nil && *was == *is
	if same || record.Err != nil || record.Value.Incarnation != r.c.Incarnation || !r.registered(snap) {
		return
	}
	call, cancel := context.WithTimeout(ctx, r.c.Timing.RequestTimeout())
	defer cancel()
	key := cluster.Key{Kind: cluster.KeyNodeRecord, Node: r.c.Node}
	res := r.d.Store.Commit(call, cluster.Txn{Purpose: "watchdog", Ops: []cluster.Op{cluster.Set(key, record.Version, r.record())}})
	if res.Outcome != cluster.OutcomeOK {
		r.d.Log.Debug("the word on the watchdog was not published; tried again", zap.Stringer("outcome", res.Outcome), zap.Error(res.Err))
		return
	}
	r.d.Log.Info("published what can be counted on of this machine's watchdog", zap.Any("watchdog", is))
}

// settle has this node's record say that its copies are ending, where it does not yet.
// It goes with a keepalive, at once; one whose reply is lost is sent again while the
// record does not show it. It rests on the version that was seen: what a rival of this
// name has written is not written over.
func (r *registrar) settle(snap *cluster.Snapshot, record cluster.Versioned[cluster.NodeRecord], keep *Keepalive) {
	if r.settles == nil || !r.settles() || record.Value.Settling || record.Err != nil || record.Value.Incarnation != r.c.Incarnation || !r.registered(snap) {
		return
	}
	keep.Ride(cluster.Set(cluster.Key{Kind: cluster.KeyNodeRecord, Node: r.c.Node}, record.Version, r.record()))
	keep.Publish()
}

// records are the operations that tell who this node is.
func (r *registrar) records(fresh *cluster.Snapshot, self cluster.NodeView) []cluster.Op {
	n := r.c.Node
	ops := []cluster.Op{
		{Kind: cluster.OpCreateEphemeral, Key: cluster.Key{Kind: cluster.KeyAlive, Node: n}, Value: cluster.Alive{
			Version: 1, Incarnation: r.c.Incarnation, BootID: r.c.BootID, Host: r.c.Host,
		}},
		cluster.Put(cluster.Key{Kind: cluster.KeyNodeRecord, Node: n}, self.Record, r.record()),
		// A fence decided on an earlier start checks alive and the keepalive before
		// it takes power. The new alive has the old one's version, so the keepalive
		// moves with it, and that fence can commit no more (I5).
		cluster.Set(cluster.Key{Kind: cluster.KeyKeepalive, Node: n}, cluster.AnyVersion, r.c.WallMS()/1000),
	}
	if fresh.Members.Mzxid != 0 { // of a registration and a removal only one wins
		ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeyMembers}, fresh.Members.Version))
	}
	if fresh.Schema.Present { // nor does a program come in behind a migration that it does not know
		ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeySchema}, fresh.Schema.Version))
	}
	if self.Fence.Present {
		ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeyFence, Node: n}, self.Fence.Version))
	}
	if r.at.IsZero() { // the first of this start: a later session goes on in its state
		ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyDaemonState, Node: n}, cluster.AnyVersion, cluster.DaemonInit))
		if r.c.Mode == cluster.Coordinator && fresh.Lease.Value.Holder != n {
			ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyRouterState, Node: n}, cluster.AnyVersion, cluster.RouterSecondary))
		}
	}
	return ops
}

// ownFence makes a node wait while a fence of an earlier start of it stands
// between the order and the proof (I5).
func (r *registrar) ownFence(f cluster.Versioned[cluster.FenceRecord]) error {
	if !f.Present || f.Value.Incarnation == r.c.Incarnation {
		return nil
	}
	if s := f.Value.Stage; s == cluster.FencePowerOff || s == cluster.FenceVerify {
		return fmt.Errorf("a fence of an earlier start of %s by %s stands at %s; waiting for its end", r.c.Node, f.Value.By, s)
	}
	return nil
}

// replaceAlive deletes an older alive of this name by version. A predecessor's
// goes at once; any other goes only after its keepalive has not changed for
// 2 K as observed, and refuses us if it does.
func (r *registrar) replaceAlive(self cluster.NodeView, session int64) ([]cluster.Op, error) {
	old := self.Alive
	if !old.Present {
		return nil, nil
	}
	remove := []cluster.Op{cluster.Delete(cluster.Key{Kind: cluster.KeyAlive, Node: r.c.Node}, old.Version)}
	scribbled := old.Err != nil && r.session != 0 && r.session == session // our own ephemeral, overwritten
	if scribbled || r.predecessor(self) || old.Value.Incarnation == r.c.Incarnation {
		return remove, nil
	}
	if r.blocker.Mzxid != old.Mzxid {
		r.blocker, r.blocked = old, r.d.Clock.Now()
	}
	if self.Keepalive.SeenAt.After(r.blocked) {
		return nil, fmt.Errorf("%w: %q is alive on %s (incarnation %s); stop it, or give this node another name", cluster.ErrDuplicateNode, r.c.Node, old.Value.Host, old.Value.Incarnation)
	}
	if r.d.Clock.Now().Sub(r.blocked) < 2*r.c.Timing.KeepaliveInterval {
		return nil, fmt.Errorf("an alive record of %q on %s is there; watching its keepalive for %v", r.c.Node, old.Value.Host, 2*r.c.Timing.KeepaliveInterval)
	}
	return remove, nil
}

// predecessor reports whether the alive record is of an earlier daemon on this
// state folder, whose lock is ours now, so that it lives no more. The folder's
// id alone does not tell, since a folder can be copied to another host, nor the
// boot id, which containers of one host share. Once this start is registered,
// another's record is a rival's.
func (r *registrar) predecessor(self cluster.NodeView) bool {
	record, old := self.Record.Value, self.Alive.Value
	return r.at.IsZero() && r.c.NodeUUID != "" && record.ID == r.c.NodeUUID &&
		record.Incarnation == old.Incarnation && old.BootID == r.c.BootID
}

// mend writes those records of this node anew that somebody has made
// unreadable and that nothing else writes again: who cannot be read is neither
// judged nor a candidate. The domain state is then what a new node's is, since
// what it was is lost. Each is written on the version that was seen, so that a
// repair by hand is never written over.
func (r *registrar) mend(ctx context.Context, snap *cluster.Snapshot, self cluster.NodeView) {
	n := r.c.Node
	var ops []cluster.Op
	if self.Record.Err != nil && r.registered(snap) { // a rival of this name keeps its own
		ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyNodeRecord, Node: n}, self.Record.Version, r.record()))
	}
	if self.Mode.Err != nil {
		ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyNodeMode, Node: n}, self.Mode.Version, r.c.Mode))
	}
	if self.Domain.Err != nil {
		ops = append(ops, cluster.Set(cluster.Key{Kind: cluster.KeyDomainState, Node: n}, self.Domain.Version, cluster.DomainFlushed))
	}
	if len(ops) == 0 {
		return
	}
	call, cancel := context.WithTimeout(ctx, r.c.Timing.RequestTimeout())
	defer cancel()
	res := r.d.Store.Commit(call, cluster.Txn{Purpose: "mend", Ops: ops})
	fields := []zap.Field{zap.Errors("found", []error{self.Record.Err, self.Mode.Err, self.Domain.Err}), zap.Stringer("outcome", res.Outcome), zap.Error(res.Err)}
	if res.Outcome != cluster.OutcomeOK {
		r.d.Log.Debug("records of this node cannot be read and could not be written anew; tried again", fields...)
		return
	}
	r.d.Log.Warn("records of this node could not be read and were written anew", fields...)
}

// backOff is the pause after a try that met a rival: 2 K, doubling to a minute,
// so that two daemons of one name do not take turns.
func (r *registrar) backOff(last time.Duration) time.Duration {
	return min(max(2*last, 2*r.c.Timing.KeepaliveInterval), time.Minute)
}

// run registers anew in every session that is not the registered one.
// keep is told to write all of this node's records again after a new session,
// and when somebody else has written its daemon state.
func (r *registrar) run(ctx context.Context, latest func() *cluster.Snapshot, post func(role.Event), keep *Keepalive) {
	every := r.c.Timing.KeepaliveInterval / 2
	look := time.NewTimer(every)
	defer look.Stop()
	var until cluster.Instant // no try before
	var pause time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		case <-r.poked:
		}
		look.Reset(keep.grid.next(r.d.Clock.Now(), every))
		snap := latest()
		if snap == nil || !snap.Live || !snap.Complete || snap.Session == 0 || !snap.ObservedAt.After(r.acked) {
			continue
		}
		self := snap.Nodes[r.c.Node]
		if d := self.Daemon.Value; d == cluster.DaemonDead || d == cluster.DaemonFenced || self.Daemon.Err != nil {
			r.d.Log.Warn("this node's daemon state was written by somebody else", zap.String("state", string(d)))
			keep.Resend()
		}
		r.mend(ctx, snap, self)
		r.renew(ctx, snap, self.Record)
		r.settle(snap, self.Record, keep)
		if r.registered(snap) || r.d.Clock.Now().Before(until) {
			continue
		}
		before := r.at
		err := r.register(ctx)
		switch {
		case errors.Is(err, cluster.ErrDuplicateNode):
			pause = r.backOff(pause)
			until = r.d.Clock.Now().Add(pause)
			r.d.Log.Error("another daemon uses this node's name", zap.Duration("next_try_in", pause), zap.Error(err))
		case errors.Is(err, cluster.ErrSchemaNewer):
			pause = r.backOff(pause)
			until = r.d.Clock.Now().Add(pause)
			r.d.Log.Error("this program is too old for the tree as it is now", zap.Error(err))
			if r.removed != nil {
				r.removed(err)
			}
		case errors.Is(err, cluster.ErrRemoved):
			pause = r.backOff(pause)
			until = r.d.Clock.Now().Add(pause)
			r.leave(ctx, err)
			if r.removed != nil {
				r.removed(err)
			}
		case err != nil:
			r.d.Log.Warn("registering again failed", zap.Error(err))
		case r.at != before:
			pause, until = 0, cluster.Never
			r.d.Log.Info("registered again in a new session", zap.Int64("session", r.session))
			keep.Resend()
			post(role.Event{Registered: &role.Registered{At: r.at, Session: r.session}})
		}
	}
}
