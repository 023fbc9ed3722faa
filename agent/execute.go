package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

var errRoleEnded = errors.New("the role has ended")

// executor carries the machine's effects out, each in a goroutine of its own
// under a deadline, and posts the results. Effects of a role run under the
// role's context, which End cancels with a cause before it does anything else;
// what they order of the guard they order by the right that hangs on it.
type executor struct {
	c       Config
	store   Store
	locker  Locker
	guard   Guard
	sweeper Sweeper
	clock   cluster.Clock
	log     *zap.Logger
	post    func(role.Event)
	wg      sync.WaitGroup

	roleCtx    context.Context // of the decide goroutine alone
	endRoleCtx context.CancelCauseFunc

	rights rights                         // what makes tokens
	right  atomic.Pointer[activity.Right] // of the newest role; nil: none yet

	notes *notes // what goes into the history

	extendTo chan cluster.RoleDeadline
	telling  turn          // one deadline at a time is on its way to the guard
	told     told          // the newest of them; telling guards it
	begun    atomic.Uint64 // epoch that the guard has begun
	up       atomic.Uint64 // epoch whose addresses the guard has presented
	dropped  atomic.Uint64 // epoch whose extensions are pointless by now

	// nodeDeadline returns the node's own deadline for a role that is to begin
	// here; it may wait for a keepalive, until the context ends.
	nodeDeadline func(context.Context) (cluster.RoleDeadline, error)
	nodeTo       chan cluster.RoleDeadline
	tellingNode  turn            // one of the node's deadlines at a time is on its way to the guard
	nodeTold     cluster.Instant // the newest of them; tellingNode guards it
	nodeRight    *activity.Right // of the node's own work, nil before its first; tellingNode guards it

	mu      sync.Mutex
	waiting map[uint64]chan cluster.TxnResult // keepalives by id
	nextKA  uint64
}

// rights begins the right to an owner's effects (activity.Manager).
type rights interface {
	Hold(ctx context.Context, d cluster.RoleDeadline) *activity.Right
}

func newExecutor(c Config, d Deps, post func(role.Event)) *executor {
	return &executor{
		notes: newNotes(c, d.Store.Commit, d.Log),
		c:     c, store: d.Store, locker: d.Locker, guard: d.Guard, sweeper: d.Sweeper, clock: d.Clock, log: d.Log,
		telling: make(turn, 1), tellingNode: make(turn, 1),
		post: post, extendTo: make(chan cluster.RoleDeadline, 1), nodeTo: make(chan cluster.RoleDeadline, 1), waiting: map[uint64]chan cluster.TxnResult{},
	}
}

// wait returns when every effect has ended.
func (x *executor) wait() { x.wg.Wait() }

// do starts one effect. Only the decide goroutine calls it.
func (x *executor) do(ctx context.Context, e role.Effect) {
	switch {
	case e.Commit != nil:
		x.spawn(ctx, e.Commit.Timeout, func(ctx context.Context) {
			r := x.store.Commit(ctx, e.Commit.Txn)
			x.log.Debug("commit", zap.String("purpose", e.Commit.Txn.Purpose), zap.Stringer("outcome", r.Outcome), zap.Duration("took", r.DoneAt.Sub(r.SentAt)))
			x.post(role.Event{Commit: &role.CommitDone{ID: e.ID, Result: r}})
		})
	case e.Lock != nil:
		x.spawn(ctx, e.Lock.Timeout, func(ctx context.Context) {
			child, err := x.locker.Lock(ctx, cluster.KeyRoleLockChild, e.Lock.Owner)
			x.post(role.Event{Lock: &role.LockDone{ID: e.ID, Child: child, Err: err}})
		})
	case e.Unlock != nil:
		x.unlock(ctx, *e.Unlock)
	case e.BreakLock != nil:
		x.unlock(ctx, *e.BreakLock)
	case e.Refresh:
		x.spawn(ctx, x.c.Timing.KeepaliveInterval*8/10, func(ctx context.Context) {
			snap, err := x.store.Refresh(ctx)
			x.post(role.Event{Refresh: &role.RefreshDone{ID: e.ID, Snapshot: snap, Err: err}})
		})
	case e.Keepalive != nil:
		x.answerKeepalive(*e.Keepalive)
	case e.Note != nil:
		x.note(*e.Note)
	default:
		x.doGuard(ctx, e)
	}
}

// doGuard starts an effect that the guard carries out.
func (x *executor) doGuard(ctx context.Context, e role.Effect) {
	switch {
	case e.Raise != nil:
		if x.endRoleCtx != nil {
			x.endRoleCtx(errRoleEnded) // of an earlier epoch; nothing of it is under way
		}
		x.roleCtx, x.endRoleCtx = context.WithCancelCause(ctx)
		d, bare := e.Raise.Deadline, e.Raise.Bare
		x.right.Store(x.rights.Hold(x.roleCtx, d))
		t := x.token()
		x.step(e.ID, x.roleCtx, x.c.Timing.RoleTTL, func(ctx context.Context) error {
			if bare {
				return x.beginRole(ctx, t, d)
			}
			return x.raise(ctx, t, d)
		})
	case e.Extend != nil:
		x.right.Load().Extend(e.Extend.Deadline) // an end that comes sooner counts at once
		offer(x.extendTo, *e.Extend)
	case e.Linger != nil:
		d := *e.Linger
		x.right.Load().Extend(d.Deadline)
		x.step(e.ID, ctx, x.c.Timing.Grace, func(ctx context.Context) error { return x.linger(ctx, d) })
	case e.Withdraw != nil:
		epoch := e.Withdraw.Epoch
		x.step(e.ID, x.role(ctx), x.c.Timing.Grace, func(ctx context.Context) error {
			return whileRole(ctx, func() error { return x.guard.Withdraw(ctx, epoch) })
		})
	case e.Start != nil:
		epoch, t := e.Start.Epoch, x.token()
		x.step(e.ID, x.role(ctx), e.Start.Timeout, func(ctx context.Context) error { return x.startServices(ctx, t, epoch) })
	case e.Stop != nil:
		epoch, t := e.Stop.Epoch, x.token()
		x.step(e.ID, x.role(ctx), e.Stop.Timeout, func(ctx context.Context) error { return x.stopServices(ctx, t, epoch) })
	case e.End != nil:
		if x.endRoleCtx != nil {
			x.endRoleCtx(errRoleEnded)
		}
		d := *e.End
		x.dropped.Store(uint64(d.Epoch))
		x.step(e.ID, ctx, x.endLimit(d)+x.sweepLimit(), func(ctx context.Context) error { return x.endRole(ctx, d) })
	case e.Preflight != nil:
		x.preflight(ctx, e)
	}
}

func (x *executor) role(ctx context.Context) context.Context {
	if x.roleCtx != nil {
		return x.roleCtx
	}
	return ctx
}

// token is that of the newest role; without one it is of nothing.
func (x *executor) token() cluster.Token { return x.right.Load().Token() }

// spawn runs fn in an owned goroutine under a deadline.
func (x *executor) spawn(ctx context.Context, timeout time.Duration, fn func(context.Context)) {
	x.wg.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		fn(ctx)
	})
}

// step runs a guard effect and posts how it went.
func (x *executor) step(id role.ID, ctx context.Context, timeout time.Duration, fn func(context.Context) error) {
	x.spawn(ctx, timeout, func(ctx context.Context) {
		began := x.clock.Now()
		err := fn(ctx)
		if err != nil && errors.Is(context.Cause(ctx), errRoleEnded) {
			err = errRoleEnded
		}
		x.post(role.Event{Step: &role.StepDone{ID: id, Took: x.clock.Now().Sub(began), Err: err}})
	})
}

// whileRole asks the guard unless the role has ended: an effect whose goroutine
// comes late must not reach the guard after the role's End (I3).
func whileRole(ctx context.Context, ask func() error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ask()
}

// beginRole begins the role, which hangs on the node's own right as well.
func (x *executor) beginRole(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := whileRole(ctx, func() error { return x.beginNode(ctx) }); err != nil {
		return fmt.Errorf("begin this node's own deadline: %w", err)
	}
	if err := whileRole(ctx, func() error { return x.guard.Begin(ctx, t, d) }); err != nil {
		return fmt.Errorf("begin the role at epoch %d: %w", d.Epoch, err)
	}
	x.begun.Store(uint64(d.Epoch))
	return nil
}

// raise begins the role and presents its addresses.
func (x *executor) raise(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := x.beginRole(ctx, t, d); err != nil {
		return err
	}
	err := whileRole(ctx, func() error { return x.guard.Present(ctx, t, d.Epoch, x.c.Addresses) })
	if err == nil {
		x.up.Store(uint64(d.Epoch))
	}
	return err
}

func (x *executor) startServices(ctx context.Context, t cluster.Token, e cluster.Epoch) error {
	for _, s := range x.c.Services {
		err := whileRole(ctx, func() error { return x.guard.StartService(ctx, t, cluster.OwnerPrimary, e, s) })
		if err != nil {
			return fmt.Errorf("start service %s: %w", s.Name, err)
		}
	}
	return nil
}

func (x *executor) stopServices(ctx context.Context, t cluster.Token, e cluster.Epoch) error {
	for _, s := range slices.Backward(x.c.Services) {
		err := whileRole(ctx, func() error { return x.guard.StopService(ctx, t, cluster.OwnerPrimary, e, s.Name) })
		if err != nil {
			return fmt.Errorf("stop service %s: %w", s.Name, err)
		}
	}
	return nil
}

// endLimit is how long the guard may take to end the role. It kills at once,
// so that two graces are plenty. At the deadline it should have done so by
// itself: then half a grace, so that a sweep ends what a stuck guard holds
// before the lease has run out and anybody else may start it (I1, I3).
func (x *executor) endLimit(d cluster.RoleDeadline) time.Duration {
	grace := x.c.Timing.Grace
	if d.Deadline.IsZero() {
		return 2 * grace
	}
	return min(2*grace, max(grace/2, d.Deadline.Sub(x.clock.Now())+grace/2))
}

// sweepLimit is how long the sweep may take, including the stop of units.
func (x *executor) sweepLimit() time.Duration {
	limit := 2*x.c.Timing.Grace + 2*time.Second
	for _, s := range x.c.Services {
		limit += s.StopTimeout
	}
	return limit
}

// endRole ends all effects of the role: by the guard, or, where it is dead or
// does not answer in time, by sweeping up what it holds, which kills it first.
func (x *executor) endRole(ctx context.Context, d cluster.RoleDeadline) error {
	ask, cancelAsk := context.WithTimeout(ctx, x.endLimit(d))
	err := x.guard.End(ask, d.Owner, d.Epoch)
	cancelAsk()
	if err == nil || errors.Is(err, cluster.ErrStaleEpoch) && x.holdsNothing(ctx) {
		return nil
	}
	x.log.Error("the guard did not end the role; sweeping up", zap.Error(err))
	sweep, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.sweepLimit())
	defer cancel()
	if sweepErr := x.sweeper.Sweep(sweep); sweepErr != nil {
		return errors.Join(err, fmt.Errorf("sweep: %w", sweepErr))
	}
	return nil
}

// holdsNothing reports that the guard says it holds no role at all. One that was
// never begun here, since the guard knew a larger epoch, needs no sweep, which
// would end fence attempts, too.
func (x *executor) holdsNothing(ctx context.Context) bool {
	ask, cancel := context.WithTimeout(ctx, x.c.Timing.Grace)
	defer cancel()
	s, err := x.guard.State(ask)
	if err != nil || len(s.Addresses) > 0 || len(s.GateOpen) > 0 {
		return false
	}
	if slices.ContainsFunc(s.Services, func(v cluster.ServiceState) bool { return v.Owner != cluster.OwnerNode }) {
		return false
	}
	return !slices.ContainsFunc(s.Deadlines, func(d cluster.RoleDeadline) bool { return d.Owner == cluster.OwnerPrimary })
}

func (x *executor) preflight(ctx context.Context, e role.Effect) {
	p := *e.Preflight
	x.spawn(ctx, p.Timeout+x.c.Timing.KeepaliveInterval, func(ctx context.Context) {
		res, err := x.guard.Preflight(ctx, cluster.PreflightRequest{
			Addresses: x.c.Addresses, Services: x.c.Services,
			Conflicts: p.Conflicts, KnownMACs: p.KnownMACs, Timeout: p.Timeout, Epoch: p.Epoch,
		})
		if err != nil {
			res.Problems = []string{fmt.Sprintf("pre-flight could not be run: %v", err)}
		}
		x.post(role.Event{Preflight: &role.PreflightDone{ID: e.ID, Problems: res.Problems, MaxEpoch: res.MaxEpoch}})
	})
}

// unlock deletes a lock child, trying for as long as a session may last, since
// an orphan would block the next hand-over.
func (x *executor) unlock(ctx context.Context, child cluster.LockChild) {
	x.spawn(ctx, x.c.Timing.SessionTimeout, func(ctx context.Context) {
		for {
			err := x.locker.Unlock(ctx, cluster.KeyRoleLockChild, child)
			if err == nil {
				return
			}
			select {
			case <-ctx.Done():
				x.log.Warn("a lock child could not be deleted; it goes with its session", zap.String("child", child.Name), zap.Error(err))
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

// offer hands the newest deadline over; an older one that has not been sent yet
// is pointless.
func offer(to chan cluster.RoleDeadline, d cluster.RoleDeadline) {
	for {
		select {
		case to <- d:
			return
		default:
		}
		select {
		case <-to:
		default:
		}
	}
}

// runNodeDeadline sends the node's own deadlines to the guard, the latest only.
// One that does not get there is no loss: the next keepalive brings another, and
// until then the guard has an earlier one.
func (x *executor) runNodeDeadline(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-x.nodeTo:
			call, cancel := context.WithTimeout(ctx, x.c.Timing.Grace)
			err := x.tellNode(call, d)
			cancel()
			if err != nil && ctx.Err() == nil {
				x.log.Warn("the guard did not take this node's own deadline", zap.Error(err))
			}
		}
	}
}

// tellNode moves the node's own deadline, which never moves back while this
// process lives; where the guard has none it begins.
func (x *executor) tellNode(ctx context.Context, d cluster.RoleDeadline) error {
	if err := x.tellingNode.take(ctx); err != nil {
		return fmt.Errorf("an earlier deadline of this node is still on its way to the guard: %w", err)
	}
	defer x.tellingNode.give()
	if d.Deadline.Before(x.nodeTold) {
		return nil
	}
	t := x.nodeToken(d)
	err := x.guard.Extend(ctx, t, d)
	if errors.Is(err, cluster.ErrDeadline) || errors.Is(err, cluster.ErrRefused) {
		err = x.guard.Begin(ctx, t, d)
	}
	if err == nil {
		x.nodeTold = d.Deadline
	}
	return err
}

// nodeToken is the right to this node's own deadline, moved there. It ends with
// that alone: this process's end takes nothing back. tellingNode is held.
func (x *executor) nodeToken(d cluster.RoleDeadline) cluster.Token {
	if x.nodeRight == nil {
		x.nodeRight = x.rights.Hold(context.Background(), d)
	}
	x.nodeRight.Extend(d.Deadline)
	return x.nodeRight.Token()
}

// beginNode begins the node's own deadline, or goes on with the one that is held.
func (x *executor) beginNode(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, x.c.Timing.Grace)
	d, err := x.nodeDeadline(wait)
	cancel()
	if err != nil {
		return err
	}
	if err := x.tellingNode.take(ctx); err != nil {
		return fmt.Errorf("an earlier deadline of this node is still on its way to the guard: %w", err)
	}
	defer x.tellingNode.give()
	d.Deadline = max(d.Deadline, x.nodeTold)
	if err := x.guard.Begin(ctx, x.nodeToken(d), d); err != nil {
		return err
	}
	x.nodeTold = d.Deadline
	return nil
}

// linger has the guard keep the role after this daemon's end: the node's own
// right first, since the role ends with it.
func (x *executor) linger(ctx context.Context, d cluster.RoleDeadline) error {
	node := cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: nodeEpoch, Deadline: d.Deadline, Sent: d.Sent}
	if err := x.tellNode(ctx, node); err != nil {
		return fmt.Errorf("this node's own deadline: %w", err)
	}
	return x.tell(ctx, d)
}

// runExtender sends deadlines to the guard in order, the latest only. A guard
// that has not answered for grace can no longer be trusted to end the role:
// then the role is ended here and now.
func (x *executor) runExtender(ctx context.Context) {
	var failing cluster.Instant
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-x.extendTo:
			failing = x.extend(ctx, d, failing)
		}
	}
}

func (x *executor) extend(ctx context.Context, d cluster.RoleDeadline, failing cluster.Instant) cluster.Instant {
	if x.begun.Load() != uint64(d.Epoch) {
		return cluster.Never // the guard does not know the role yet; once it is raised it is told again
	}
	raising := x.up.Load() != uint64(d.Epoch)
	call, cancel := context.WithTimeout(ctx, x.c.Timing.Grace)
	err := x.tell(call, d)
	cancel()
	switch {
	case err == nil || uint64(d.Epoch) <= x.dropped.Load(), raising: // the raise's own end tells how it went
		return cluster.Never
	case errors.Is(err, cluster.ErrDeadline), errors.Is(err, cluster.ErrStaleEpoch):
		x.post(role.Event{GuardEnded: &cluster.GuardEvent{Kind: "ended", Owner: d.Owner, Epoch: d.Epoch, Text: err.Error()}})
		return cluster.Never
	}
	now := x.clock.Now()
	if failing.IsZero() {
		failing = now
	}
	x.log.Warn("the guard did not take the new deadline", zap.Error(err))
	if now.Sub(failing) >= x.c.Timing.Grace {
		x.post(role.Event{GuardEnded: &cluster.GuardEvent{Kind: "ended", Owner: d.Owner, Epoch: d.Epoch, Text: "the guard does not answer: " + err.Error()}})
		return cluster.Never
	}
	select { // again, unless a newer deadline is waiting already
	case x.extendTo <- d:
	default:
	}
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
	return failing
}

// turn is held by one at a time; whoever waits for it waits no longer than his
// own deadline.
type turn chan struct{}

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turn) give() { <-t }

// told is what the guard was told last: the youngest send instant that a
// deadline rested on, and the deadline.
type told struct{ sent, deadline cluster.Instant }

// covers reports whether the guard needs no more to hear of the deadline. The
// long one that a shutdown in maintenance leaves rests on a write that may be
// older than a question which was answered meanwhile.
func (t told) covers(d cluster.RoleDeadline) bool {
	return d.Sent < t.sent && d.Deadline <= t.deadline || d.Sent == t.sent && d.Deadline < t.deadline
}

// tell hands a deadline to the guard unless a younger one has been handed over:
// one that is tried again must not shorten what a shutdown in maintenance leaves (I9).
func (x *executor) tell(ctx context.Context, d cluster.RoleDeadline) error {
	if err := x.telling.take(ctx); err != nil {
		return fmt.Errorf("an earlier deadline is still on its way to the guard: %w", err)
	}
	defer x.telling.give()
	if x.told.covers(d) {
		return nil
	}
	x.told = told{max(x.told.sent, d.Sent), d.Deadline}
	return x.guard.Extend(ctx, x.token(), d)
}

// note logs, and has the history written where it is to be kept.
func (x *executor) note(n role.Note) {
	x.log.Info(n.Kind, zap.String("text", n.Text), zap.Any("fields", n.Fields))
	if !n.Record {
		return
	}
	x.notes.add(cluster.Event{Version: 1, UnixMS: x.c.WallMS(), Node: x.c.Node, Kind: n.Kind, Text: n.Text, Fields: n.Fields})
}

// publish is the keepalive loop's way to the store: through the decide
// goroutine, so that a renewal can ride along. It returns by ctx's end.
func (x *executor) publish(ctx context.Context, ops []cluster.Op) cluster.TxnResult {
	reply := make(chan cluster.TxnResult, 1)
	x.mu.Lock()
	x.nextKA++
	id := x.nextKA
	x.waiting[id] = reply
	x.mu.Unlock()
	defer func() {
		x.mu.Lock()
		delete(x.waiting, id)
		x.mu.Unlock()
	}()
	x.post(role.Event{Keepalive: &role.KeepaliveDue{ID: id, Ops: ops}})
	select {
	case r := <-reply:
		return r
	case <-ctx.Done():
		return cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1, Err: fmt.Errorf("%w: no answer within the keepalive's deadline", cluster.ErrUnknown)}
	}
}

func (x *executor) answerKeepalive(k role.KeepaliveResult) {
	x.mu.Lock()
	reply := x.waiting[k.ID]
	x.mu.Unlock()
	if reply != nil {
		reply <- k.Result
	}
}
