package agent

import (
	"context"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// Status is one picture of the agent for API, CLI and page.
type Status struct {
	Role     role.State
	Snapshot *cluster.Snapshot
	At       cluster.Instant
}

// decider is the one goroutine that owns the role's state. It computes and
// never waits for I/O: whatever takes time is the executor's.
type decider struct {
	c      role.Config
	clock  cluster.Clock
	log    *zap.Logger
	wallMS func() int64
	exec   *executor
	outage *outage
	led    func(role.State) // told after each step; it does not block. nil: nobody
	events chan role.Event
	calls  chan func(context.Context) // run in the decider's goroutine
	pokes  chan struct{}              // one slot: step now
	done   chan struct{}
	state  role.State
	snap   *cluster.Snapshot
	latest atomic.Pointer[Status]
	heard  atomic.Uint64 // the largest epoch that a node says it has seen; see hear
	passed uint64        // of it, what the machine knows
	ended  chan struct{} // closed once the role has ended after Stop
}

func newDecider(c role.Config, clock cluster.Clock, log *zap.Logger, wallMS func() int64) *decider {
	d := &decider{
		c: c, clock: clock, log: log, wallMS: wallMS,
		events: make(chan role.Event, 64), calls: make(chan func(context.Context)), pokes: make(chan struct{}, 1),
		done: make(chan struct{}), ended: make(chan struct{}),
		snap: &cluster.Snapshot{},
	}
	d.latest.Store(&Status{Snapshot: d.snap})
	return d
}

// post hands an event over; after the decider has ended it is dropped.
func (d *decider) post(e role.Event) {
	select {
	case d.events <- e:
	case <-d.done:
	}
}

// hear notes an epoch that a node says it has seen. It does not block.
func (d *decider) hear(e cluster.Epoch) {
	for {
		known := d.heard.Load()
		if uint64(e) <= known {
			return
		}
		if d.heard.CompareAndSwap(known, uint64(e)) {
			poke(d.pokes)
			return
		}
	}
}

// call has fn run in the decider's goroutine, which must not wait for anything
// in it, and returns after that; false if it was not run, because ctx or the
// decider has ended.
func (d *decider) call(ctx context.Context, fn func(context.Context)) bool {
	ran := make(chan struct{})
	select {
	case d.calls <- func(ctx context.Context) { defer close(ran); fn(ctx) }:
		<-ran
		return true
	case <-d.done:
	case <-ctx.Done():
	}
	return false
}

func (d *decider) status() Status { return *d.latest.Load() }

// waitEnded waits until nothing of the role is left here, at most limit.
func (d *decider) waitEnded(ctx context.Context, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-d.ended:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// run feeds the machine until ctx ends.
func (d *decider) run(ctx context.Context) {
	defer close(d.done)
	snapshots, unsubscribe := d.exec.store.Subscribe()
	defer unsubscribe()
	safety := d.c.Timing.KeepaliveInterval // level-triggered even if a wake-up were missed
	timer := time.NewTimer(0)
	defer timer.Stop()
	awake := newSuspendWatch(d.clock)
	for {
		var event role.Event
		select {
		case <-ctx.Done():
			return
		case snap := <-snapshots:
			if snap != nil {
				d.snap = snap
			}
		case event = <-d.events:
			if r := event.Refresh; r != nil && r.Snapshot != nil && r.Snapshot.ObservedAt >= d.snap.ObservedAt {
				d.snap = r.Snapshot
			}
		case call := <-d.calls:
			call(ctx)
		case <-d.pokes:
		case <-timer.C:
		}
		if awake.slept() {
			d.log.Warn("this host was suspended")
			d.outage.slept()
			d.step(ctx, role.Event{Suspended: true})
		}
		if heard := d.heard.Load(); heard != d.passed {
			d.passed = heard
			d.step(ctx, role.Event{EpochSeen: cluster.Epoch(heard)})
		}
		wake := d.step(ctx, event)
		next := safety
		if !wake.IsZero() {
			next = min(next, max(wake.Sub(d.clock.Now()), 0))
		}
		timer.Reset(next)
	}
}

// suspendWatch compares the BOOTTIME clock with the process's monotonic one,
// which stops while the host sleeps.
type suspendWatch struct {
	clock cluster.Clock
	boot  cluster.Instant
	mono  time.Time
}

func newSuspendWatch(clock cluster.Clock) *suspendWatch {
	return &suspendWatch{clock: clock, boot: clock.Now(), mono: time.Now()}
}

// slept reports whether the host has slept since the last call. Where it is
// interrupted between the two clocks each time it looks, the next call judges.
func (s *suspendWatch) slept() bool {
	var boot cluster.Instant
	var mono time.Time
	for tries := 0; ; tries++ {
		before := time.Now()
		boot, mono = s.clock.Now(), time.Now()
		if mono.Sub(before) <= 10*time.Millisecond {
			break
		}
		if tries == 2 {
			return false
		}
	}
	jump := boot.Sub(s.boot) - mono.Sub(s.mono)
	s.boot, s.mono = boot, mono
	return jump > 100*time.Millisecond
}

// step runs the machine once, and then what asks for longer while nobody can
// write. It returns when to do so again.
func (d *decider) step(ctx context.Context, event role.Event) cluster.Instant {
	wake := d.decide(ctx, event)
	return cluster.Earliest(wake, d.outage.follow(ctx, nil))
}

// decide runs the machine once and hands the effects to the executor. What this
// node has promised is looked at in the same instant: between it and a take that
// the machine asks for no promise is given (I1).
func (d *decider) decide(ctx context.Context, event role.Event) cluster.Instant {
	before := d.state.Mode
	now := d.clock.Now()
	state, out := role.Step(d.c, d.state, role.Input{
		Now: now, WallMS: d.wallMS(), Snapshot: d.snap, Promise: d.outage.promise(now), Event: event,
	})
	d.state = state
	if state.Mode != before {
		d.log.Info("role mode", zap.Stringer("from", before), zap.Stringer("to", state.Mode))
	}
	d.latest.Store(&Status{Role: state, Snapshot: d.snap, At: now})
	if d.led != nil {
		d.led(state)
	}
	for _, e := range out.Effects {
		d.exec.do(ctx, e)
	}
	if state.Ended() {
		select {
		case <-d.ended:
		default:
			close(d.ended)
		}
	}
	return out.Wake
}

// slept makes promises of before a sleep bind as those of before a restart do:
// for how long the host slept this clock may not know (I1).
func (o *outage) slept() { o.giver.Started = o.clock.Now() }
