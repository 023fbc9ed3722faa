package activity

import (
	"context"
	"time"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

// admit waits until an activity's conditions hold and has it running then. The
// error is a *cluster.RefusedActivity with the condition that failed last.
func (m *Manager) admit(a *Activity) error {
	timeout := a.spec.Timeout
	switch {
	case a.spec.Unsafe || timeout < 0:
		timeout = 0
	case timeout == 0:
		timeout = DefaultTimeout
	}
	limit, domain := time.NewTimer(timeout), time.NewTimer(DomainWait)
	defer limit.Stop()
	defer domain.Stop()
	above := context.Background()
	if a.parent != nil {
		above = a.parent.tasks.Context()
	}
	over, tooLong := timeout == 0, false
	for {
		refusal, changed := m.try(a)
		m.tell()
		switch {
		case refusal == nil:
			return nil
		case final(refusal), over && (!m.takesOver(a) || tooLong), tooLong && refusal.Code == cluster.RefuseDomainConflict:
			return m.refuse(a, refusal)
		}
		select {
		case <-changed:
		case <-limit.C:
			over = true
		case <-domain.C:
			tooLong = !a.patient
		case <-a.ctx.Done():
			return m.refuse(a, refuse(cluster.RefuseEnding, "its caller has ended (%v); last: %s", context.Cause(a.ctx), refusal.Detail))
		case <-above.Done():
			return m.refuse(a, refuse(cluster.RefuseEnding, "the activity above it is being ended (%v)", context.Cause(above)))
		}
	}
}

// final reports whether waiting cannot help.
func final(r *cluster.Refusal) bool {
	return r.Code == cluster.RefuseRetry || r.Code == cluster.RefuseEnding || r.Code == cluster.RefuseUnknownNode
}

// takesOver reports whether the domain is being cleared for this one. That takes
// a ladder at most and is not waiting for a condition, so that even who waits for
// nothing waits for it.
func (m *Manager) takesOver(a *Activity) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !a.kept || !a.spec.Unsafe {
		return false
	}
	for _, o := range m.all {
		if o.inWayOf(a) && (o.state != cluster.ActivityEnding || o.survived != nil) {
			return false
		}
	}
	return true
}

// inWayOf reports whether the activity has the domain that another root wants.
func (a *Activity) inWayOf(b *Activity) bool {
	return a.spec.Domain == b.spec.Domain && a.root != b.root && (a.state == cluster.ActivityRunning || a.state == cluster.ActivityEnding)
}

// try has an activity running if its conditions hold at this instant, and clears
// the domain for a failover whose other conditions hold.
func (m *Manager) try(a *Activity) (*cluster.Refusal, chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	refusal := m.look(a)
	if refusal == nil {
		m.begin(a)
		return nil, nil
	}
	a.waits = refusal
	return refusal, m.changed
}

// look returns the first condition that fails. mu is held.
func (m *Manager) look(a *Activity) *cluster.Refusal {
	switch {
	case a.cause != nil:
		return refuse(cluster.RefuseEnding, "it was ended while it waited: %v", a.cause)
	case m.closed:
		return refuse(cluster.RefuseEnding, "the daemon ends")
	case a.parent != nil && a.parent.state != cluster.ActivityRunning:
		return refuse(cluster.RefuseEnding, "the activity above it is being ended (%v)", a.parent.cause)
	}
	s := situation{holdings: m.now(), granted: m.served}
	for _, o := range m.all {
		if runs := o.state != cluster.ActivityWaiting; o != a && (runs || o.kept) {
			s.rivals = append(s.rivals, rival{o.id, o.spec.Name, o.spec.Domain, o.root, !runs})
		}
	}
	ask := a.asked()
	refusal := check(ask, s)
	a.kept = false
	if refusal == nil || refusal.Code != cluster.RefuseDomainConflict || a.spec.Urgency != Failover {
		return refusal
	}
	// One that could not begin in an empty domain does not clear it.
	if other := m.deferred(a); other != nil {
		return refuse(cluster.RefuseRetry, "%s (%s) waits for the domain %q already; retry when that is over", other.spec.Name, other.id, a.spec.Domain)
	}
	if checkRight(ask, s) == nil {
		a.kept = true
		m.clear(a)
	}
	return refusal
}

// deferred returns the other failover that waits for the domain with precedence.
func (m *Manager) deferred(a *Activity) *Activity {
	for _, o := range m.all {
		if o.kept && o != a && o.spec.Domain == a.spec.Domain && o.root != a.root {
			return o
		}
	}
	return nil
}

// clear begins the stop of ordinary activities in a failover's way. One that has
// a failover's urgency itself, or belongs to such a one, is left alone (F19).
func (m *Manager) clear(a *Activity) {
	for _, o := range m.all {
		if o.inWayOf(a) && o.state == cluster.ActivityRunning && !o.uninterrupted() {
			m.end(o, &cluster.Preempted{Name: a.spec.Name, By: a.id})
		}
	}
}

// uninterrupted reports whether it, or one above it, is a hard failover.
func (a *Activity) uninterrupted() bool {
	for x := a; x != nil; x = x.parent {
		if x.spec.Urgency == Failover {
			return true
		}
	}
	return false
}

// begin has it running. mu is held.
func (m *Manager) begin(a *Activity) {
	a.kept, a.waits = false, nil
	if !a.child {
		a.lease = m.holdings.Lease
		if isFollower(a.quorum) {
			a.lease = m.served
		}
	}
	o := subtask.Options{Abandon: func(e *subtask.StragglerError) { m.abandon(a, e) }}
	if a.parent != nil {
		a.tasks = a.parent.tasks.Sub(a.ctx, string(a.id), o)
	} else {
		a.tasks = subtask.New(a.ctx, string(a.id), o)
	}
	m.counts.Started++
	m.enter(a, cluster.ActivityRunning)
}

// refuse takes an activity that never ran off the list.
func (m *Manager) refuse(a *Activity, r *cluster.Refusal) error {
	m.mu.Lock()
	a.waits = r
	m.enter(a, cluster.ActivityRefused)
	m.counts.Refused[r.Code]++
	delete(m.all, a.id)
	close(a.over)
	m.wake()
	m.mu.Unlock()
	m.tell()
	return &cluster.RefusedActivity{Name: a.spec.Name, Refusal: *r}
}
