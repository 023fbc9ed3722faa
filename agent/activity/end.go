package activity

import (
	"context"
	"errors"
	"fmt"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

// end begins an activity's stop, once; the first cause stays. Its tokens are dead
// from here on. One that waits is refused. mu is held.
func (m *Manager) end(a *Activity, cause error) {
	switch {
	case a.cause != nil || a.state == cluster.ActivityEnded || a.state == cluster.ActivityRefused:
		return
	case a.state == cluster.ActivityWaiting:
		a.cause = cause
		m.wake()
		return
	}
	a.cause = cause
	m.enter(a, cluster.ActivityEnding)
	m.wake()
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		m.stop(a, cause)
	}()
}

// stop takes an activity down the ladder and off the list, once nothing of it is
// left. Nothing here asks or tells another node: what an abort would wait for
// may be dead.
func (m *Manager) stop(a *Activity, cause error) {
	err := a.tasks.Stop(context.Background(), cause, m.c.Ladder)
	var left *subtask.StragglerError
	if errors.As(err, &left) {
		m.mu.Lock()
		a.survived = left
		m.counts.Stragglers++
		m.enter(a, cluster.ActivityEnding)
		close(a.stuck)
		m.wake()
		m.mu.Unlock()
		m.tell()
		// The domain stays taken until it is dead: Abandon has been called, so
		// that this process ends if that does not.
		_ = a.tasks.Wait(context.Background())
	}
	m.mu.Lock()
	m.enter(a, cluster.ActivityEnded)
	m.counts.Ended[cluster.EndCode(a.reason())]++
	m.counts.Killed += uint64(len(a.tasks.Shot()))
	delete(m.all, a.id)
	close(a.over)
	m.followUp(a)
	m.wake()
	m.mu.Unlock()
	m.tell()
}

// reason is why it ended, nil for well. mu is held.
func (a *Activity) reason() error {
	if errors.Is(a.cause, errFinished) {
		return a.result
	}
	return a.cause
}

// abandon passes the last rung on, with the record of the activity.
func (m *Manager) abandon(a *Activity, e *subtask.StragglerError) {
	if m.c.Abandon == nil {
		return
	}
	m.mu.Lock()
	record := a.record()
	m.mu.Unlock()
	m.c.Abandon(record, e)
}

// followUp starts the clean-ups of an activity that is over. mu is held.
func (m *Manager) followUp(a *Activity) {
	if m.closed {
		return
	}
	for _, c := range a.cleanUps {
		next := &Activity{ctx: m.ctx, patient: true, spec: Spec{
			Name: c.name, Domain: a.spec.Domain, Quorum: a.quorum, Unsafe: false, Timeout: cleanUpWait}}
		m.wg.Add(1)
		go func() {
			defer m.wg.Done()
			_ = m.run(next, c.body) // its end is told as every activity's
		}()
	}
}

// Stop ends an activity for an operator, within its ladder, and returns the child
// processes that had to be killed. An activity that ends by itself meanwhile is
// waited for. The error is cluster.ErrNotFound for one that is over, a
// *cluster.RefusedActivity for a hard failover, a *subtask.StragglerError where
// something survives; otherwise the context's cause.
func (m *Manager) Stop(ctx context.Context, id cluster.ActivityID, by, reason string) ([]string, error) {
	m.mu.Lock()
	a := m.all[id]
	if a == nil {
		m.mu.Unlock()
		return nil, fmt.Errorf("stop activity %s: %w: it is over, or never ran on %s; the list shows what runs", id, cluster.ErrNotFound, m.c.Self)
	}
	if a.state == cluster.ActivityRunning && a.uninterrupted() {
		m.mu.Unlock()
		return nil, &cluster.RefusedActivity{Name: a.spec.Name, Refusal: *refuse(cluster.RefuseUninterrupted,
			"a hard failover is never interrupted: half of it is worse than either end; it goes on")}
	}
	m.end(a, &cluster.StopOrdered{By: by, Reason: reason})
	m.mu.Unlock()
	m.tell()
	select {
	case <-a.over:
	case <-a.stuck:
	case <-ctx.Done():
		return nil, fmt.Errorf("stop activity %s: its stop has begun and goes on: %w", id, context.Cause(ctx))
	}
	m.tell()
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.tasks == nil {
		return nil, nil
	}
	return a.tasks.Shot(), a.survived
}
