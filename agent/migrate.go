package agent

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

const (
	// lockPatience is how long a batch waits for its turn at the role's lock.
	lockPatience = 400 * time.Millisecond
	// batchWithin is how long a batch may hold the role's lock, the giving back
	// aside: whoever wants the role does not notice.
	batchWithin = 300 * time.Millisecond
	// batchPause is the pause between two batches, in which others have the lock.
	batchPause = 100 * time.Millisecond
	// unlockWithin is how long the lock's giving back may take; should it take
	// longer the child goes with the session, or is broken by who needs the role.
	unlockWithin = time.Second
)

// migrating raises the schema of the store's tree while this node is primary.
//
//	newest ──the tree's is lower──► waiting ──every live node's program knows it──► batch ◄─► pause
//	  ▲                                                                               │
//	  └──────────────────the last batch: the schema itself, and a word in the history─┘
//
// It keeps no state: where it stands is in the tree, so that whoever is primary
// goes on. Each batch is one Multi under the role's lock; it checks the lease as
// it was just read, the lock's child and the schema's record, so that two who
// both think that they are primary, one who was stopped for a minute, and a write
// that was thought lost do no harm (I2). A batch that is late is given up without
// closing the connection, which carries the role's renewals.
type migrating struct {
	c      Config
	d      Deps
	status func() Status
	keep   *Keepalive
	said   string
}

func newMigrating(c Config, d Deps, status func() Status, keep *Keepalive) *migrating {
	return &migrating{c: c, d: d, status: status, keep: keep}
}

// run looks twice K apart, with others' wake-ups, until ctx ends.
func (m *migrating) run(ctx context.Context) {
	if m.d.Schemas == nil || m.c.Mode != cluster.Coordinator {
		return
	}
	timer := time.NewTimer(m.c.Timing.KeepaliveInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if m.look(ctx) {
			timer.Reset(batchPause)
			continue
		}
		timer.Reset(m.keep.grid.next(m.d.Clock.Now(), 2*m.c.Timing.KeepaliveInterval))
	}
}

// look writes the next batch, where one is due; more: another is.
func (m *migrating) look(ctx context.Context) (more bool) {
	status := m.status()
	if status.Role.Mode != role.Primary || !m.undisturbed(status.Snapshot) {
		return false
	}
	plan := m.d.Schemas.PlanSchema(status.Snapshot)
	if plan.To == 0 || len(plan.Waits) > 0 {
		m.sayWaits(plan)
		return false
	}
	more, err := m.batch(ctx)
	if err != nil && ctx.Err() == nil {
		m.d.Log.Info("a step of the schema's migration was not made; tried again", zap.Int("from", plan.From), zap.Int("to", plan.To), zap.Error(err))
	}
	return more
}

// undisturbed reports whether the role is this start's and nobody is after it.
func (m *migrating) undisturbed(snap *cluster.Snapshot) bool {
	lease, wish := snap.Lease, snap.PrimaryNode
	return snap.Live && snap.Complete && lease.Present && lease.Err == nil && lease.Value.HeldBy(m.c.Node, m.c.Incarnation) &&
		wish.Err == nil && wish.Value == string(m.c.Node) && (!snap.Transition.Present || !snap.Transition.Value.Running())
}

// sayWaits tells of who stands against the next schema, once for each change.
func (m *migrating) sayWaits(plan cluster.SchemaPlan) {
	text := strings.Join(plan.Waits, "; ")
	if text == m.said {
		return
	}
	m.said = text
	if text != "" {
		m.d.Log.Info("the tree keeps its schema until every node's program knows the next", zap.Int("schema", plan.From), zap.Int("next", plan.To), zap.Strings("waits", plan.Waits))
	}
}

// batch makes one step under the role's lock.
func (m *migrating) batch(ctx context.Context) (more bool, err error) {
	waiting, cancel := cancelledAfter(ctx, lockPatience)
	child, err := m.d.Locker.Lock(waiting, cluster.KeyRoleLockChild, cluster.LockOwner{Version: 1, Node: m.c.Node, Incarnation: m.c.Incarnation})
	cancel()
	if err != nil {
		return false, err
	}
	defer func() {
		giving, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockWithin)
		defer cancel()
		if failed := m.d.Locker.Unlock(giving, cluster.KeyRoleLockChild, child); failed != nil {
			m.d.Log.Warn("the role's lock was not given back after a step of the migration; it goes with the session", zap.String("child", child.Name), zap.Error(failed))
		}
	}()
	working, cancel := cancelledAfter(ctx, batchWithin)
	defer cancel()
	return m.write(working, child)
}

// cancelledAfter ends the context after the time without a deadline in it, which
// the store would keep by closing the connection.
func cancelledAfter(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(d, cancel)
	return ctx, func() { timer.Stop(); cancel() }
}

// write sends the next batch, judged anew on a fresh read; again where only a
// renewal of this node's own came between.
func (m *migrating) write(ctx context.Context, child cluster.LockChild) (more bool, err error) {
	const atLease = 0
	for {
		snap, err := m.d.Store.Refresh(ctx)
		if err != nil {
			return false, err
		}
		if !m.undisturbed(snap) {
			return false, errNotPrimary
		}
		plan := m.d.Schemas.PlanSchema(snap)
		if plan.To == 0 || len(plan.Waits) > 0 {
			return false, nil
		}
		batch, err := m.d.Schemas.MigrationBatch(ctx, snap, plan)
		if err != nil {
			return false, err
		}
		ops := append([]cluster.Op{
			cluster.Check(cluster.Key{Kind: cluster.KeyLease}, snap.Lease.Version),
			cluster.Check(cluster.Key{Kind: cluster.KeyRoleLockChild, Name: child.Name}, 0),
		}, batch.Ops...)
		if batch.Last {
			ops = append(ops, cluster.Op{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: m.event(plan)})
		}
		r := m.d.Store.Commit(ctx, cluster.Txn{Purpose: "migrate", Ops: ops})
		switch {
		case r.Outcome == cluster.OutcomeOK:
			m.d.Log.Info("a step of the schema's migration was made", zap.Int("from", plan.From), zap.Int("to", plan.To), zap.Int("operations", len(ops)), zap.Bool("last", batch.Last))
			return true, nil
		case r.Outcome != cluster.OutcomeConflict || r.FailedOp != atLease || ctx.Err() != nil:
			return false, fmt.Errorf("%s: %w", r.Outcome, r.Err) // what became of it the next look shows
		}
		pause(ctx, orderConflict)
	}
}

func (m *migrating) event(plan cluster.SchemaPlan) cluster.Event {
	return cluster.Event{
		Version: 1, UnixMS: m.c.WallMS(), Node: m.c.Node, Kind: cluster.EventMigrated,
		Text:   fmt.Sprintf("%s has raised the tree's schema from %d to %d: %s; programs that know less are refused from now on", m.c.Node, plan.From, plan.To, plan.What),
		Fields: map[string]string{"from": strconv.Itoa(plan.From), "to": strconv.Itoa(plan.To)},
	}
}
