package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

// activities is the shell around this node's activity manager: what operators
// see of it. Nothing here decides what may run, and nothing here keeps the
// manager, or the keepalive, waiting (I10):
//
//	manager ─▶ Tell ─┬▶ log's queue ─▶ run ─▶ log
//	                 └▶ keeper's queue ─▶ keeper ─▶ one Multi: records and history
//	record's stop ─▶ keeper ─▶ manager.Stop
//	manager ─▶ Abandon ─▶ Abandoned, whose reader gives up the roles and exits
type activities struct {
	d         Deps
	manager   *activity.Manager
	toLog     *tellings
	keeper    *activityKeeper
	abandoned chan error
}

// newActivities assembles the manager and its shell; it starts nothing. role
// tells whether this node is primary, and the latest snapshot (nil: none yet); it
// must not block. granter may be nil: then no orders of other nodes are taken.
func newActivities(c Config, d Deps, records ActivityRecords, granter activity.Granter, role func() (bool, *cluster.Snapshot)) *activities {
	a := &activities{d: d, toLog: newTellings(), abandoned: make(chan error, 1)}
	a.manager = activity.New(activity.Config{Self: c.Node, Granter: granter, Clock: d.Clock, Tell: a.tell, Abandon: a.abandon})
	a.keeper = newActivityKeeper(c, d, records, a.manager, role)
	return a
}

// Manager is what admits and ends this node's activities.
func (a *activities) Manager() *activity.Manager { return a.manager }

// Abandoned has an error when something of an activity survives its stop: this
// daemon is then to give up its roles at once and to exit, so that the guard is
// the executioner of what is left. The error names what survives; the log has
// the stacks.
func (a *activities) Abandoned() <-chan error { return a.abandoned }

// tell is the manager's Tell; it never waits.
func (a *activities) tell(e cluster.ActivityEvent) {
	a.toLog.add(telling{event: e})
	a.keeper.in.add(telling{event: e})
}

// abandon is the manager's Abandon. Whoever waits for it comes before the log,
// which may be what hangs.
func (a *activities) abandon(x cluster.Activity, e *subtask.StragglerError) {
	select {
	case a.abandoned <- fmt.Errorf("activity %s (%s) cannot be ended, so that this daemon gives up its roles and ends; its log has the stacks: %w", x.Name, x.ID, e):
	default: // it ends already
	}
	a.toLog.add(telling{event: cluster.ActivityEvent{Activity: x}, left: e})
}

// run tells and writes until ctx ends. It returns when the manager's operators'
// stops that it began have returned, too.
func (a *activities) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { a.keeper.run(ctx) })
	for {
		select {
		case <-a.toLog.more:
			a.log()
		case <-ctx.Done():
			a.log()
			return
		}
	}
}

// Close ends every activity, admits none any more, and returns when all are dead
// or ctx ends, and they are told of or two keepalive intervals more have passed.
// The error names what is still there, or untold. run must still run.
func (a *activities) Close(ctx context.Context) error {
	err := a.manager.Close(ctx)
	telling, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*a.keeper.c.Timing.KeepaliveInterval)
	defer cancel()
	return errors.Join(err, a.keeper.flush(telling))
}

// log writes what waits for the log.
func (a *activities) log() {
	told, lost := a.toLog.take()
	for _, t := range told {
		a.logOne(t)
	}
	if lost > 0 {
		a.d.Log.Warn("transitions of activities are missing here: there were too many at once", zap.Int("count", lost))
	}
}

func (a *activities) logOne(t telling) {
	x := t.event.Activity
	fields := []zap.Field{zap.String("activity", string(x.ID)), zap.String("name", x.Name), zap.String("domain", string(x.Domain)),
		zap.String("quorum", x.Quorum), zap.String("state", string(x.State)), zap.Stringer("lease", x.Lease)}
	if t.left != nil {
		for _, s := range t.left.Stragglers {
			a.d.Log.Error("something survives the end of its activity", append(fields, zap.String("subtask", s.Name), zap.Bool("process", s.Child), zap.String("stack", s.Stack))...)
		}
		return
	}
	for key, value := range map[string]string{"parent": string(x.Parent), "cause": x.Cause, "detail": x.Detail} {
		if value != "" {
			fields = append(fields, zap.String(key, value))
		}
	}
	if x.Waits != nil {
		fields = append(fields, zap.String("refusal", string(x.Waits.Code)), zap.String("reason", x.Waits.Detail))
	}
	if len(x.Killed) > 0 {
		fields = append(fields, zap.Strings("killed", x.Killed))
	}
	switch {
	case x.Unsafe && x.State == cluster.ActivityRunning:
		a.d.Log.Warn("activity runs without its quorum, as ordered", fields...)
	case len(x.Survives) > 0:
		a.d.Log.Error("activity", append(fields, zap.Strings("survives", x.Survives))...)
	case x.State == cluster.ActivityWaiting, x.Quiet && (x.Cause == "" || x.State == cluster.ActivityEnding):
		a.d.Log.Debug("activity", fields...)
	default:
		a.d.Log.Info("activity", fields...)
	}
}

// telling is a transition on its way, or what survives an activity.
type telling struct {
	event cluster.ActivityEvent
	left  *subtask.StragglerError
}

// tellings is a bounded queue that nobody waits for: what comes while it is full
// is counted, and what is in it stays.
type tellings struct {
	more chan struct{} // has one element when something waits

	mu      sync.Mutex
	waiting []telling
	lost    int
}

// tellingsKept is how many transitions wait at most.
const tellingsKept = 512

func newTellings() *tellings { return &tellings{more: make(chan struct{}, 1)} }

// add queues; only what survives an activity is queued beyond the bound, since
// that is told once in a daemon's life.
func (q *tellings) add(t telling) {
	q.mu.Lock()
	if len(q.waiting) < tellingsKept || t.left != nil {
		q.waiting = append(q.waiting, t)
	} else {
		q.lost++
	}
	q.mu.Unlock()
	q.wake()
}

func (q *tellings) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take empties the queue and tells how many did not fit since.
func (q *tellings) take() (told []telling, lost int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	told, lost = q.waiting, q.lost
	q.waiting, q.lost = nil, 0
	return told, lost
}

// empty reports whether nothing waits.
func (q *tellings) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting) == 0 && q.lost == 0
}
