package activity

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

// List returns the activities that wait, run or are being ended, oldest first.
func (m *Manager) List() []cluster.Activity {
	m.mu.Lock()
	list := make([]cluster.Activity, 0, len(m.all))
	for _, a := range m.all {
		list = append(list, a.record())
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b cluster.Activity) int { return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.ID, b.ID)) })
	return list
}

// Counts returns the counters since the manager's start.
func (m *Manager) Counts() Counts {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.counts
	c.Refused, c.Ended = maps.Clone(c.Refused), maps.Clone(c.Ended)
	return c
}

// record is the activity as it is listed. mu is held.
func (a *Activity) record() cluster.Activity {
	r := cluster.Activity{ID: a.id, Name: a.spec.Name, Domain: a.spec.Domain, Quorum: a.quorum.String(), State: a.state,
		Since: a.since.UnixMilli(), Node: a.m.c.Self, Lease: a.lease, Parent: a.above, Unsafe: a.spec.Unsafe, Quiet: a.spec.Quiet, Retry: a.spec.Retry, Hard: a.state == cluster.ActivityRunning && a.uninterrupted(), Waits: a.waits}
	if a.tasks != nil {
		r.Running, r.Killed = a.tasks.Names(), a.tasks.Shot()
	}
	var left *subtask.StragglerError
	if errors.As(a.survived, &left) {
		for _, s := range left.Stragglers {
			r.Survives = append(r.Survives, s.Name)
		}
	}
	if err := a.reason(); err != nil {
		r.Cause, r.Detail = cluster.EndCode(err), err.Error()
	}
	return r
}

// enter brings an activity to a state and has that told. mu is held.
func (m *Manager) enter(a *Activity, s cluster.ActivityState) {
	a.state, a.since = s, time.Now()
	if m.c.Tell != nil {
		m.untold = append(m.untold, cluster.ActivityEvent{Activity: a.record(), UnixMS: a.since.UnixMilli()})
	}
}

// tell gives out what has not been told yet, in order. mu is not held, so that
// who is told may look at the list.
func (m *Manager) tell() {
	if m.c.Tell == nil {
		return
	}
	m.telling.Lock()
	defer m.telling.Unlock()
	m.mu.Lock()
	events := m.untold
	m.untold = nil
	m.mu.Unlock()
	for _, e := range events {
		m.c.Tell(e)
	}
}
