package agent

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"pvc.internal/cluster"
)

// repeats keeps the history short of what is tried again and again and fails in
// one way, as an order that cannot be carried out does once a second for minutes:
// the first failure is told, and then each refusedAgain the newest, with how many
// it stands for. The log has each. The activity keeper alone uses it.
type repeats struct {
	failing map[string]*failing
	begun   map[cluster.ActivityID]heldTelling // told once it is known that it is no repetition
}

// failing is how one kind of activity has failed last.
type failing struct {
	detail string
	told   time.Time
	newest cluster.ActivityEvent // of those that are not told
	untold int
}

func newRepeats() repeats {
	return repeats{failing: map[string]*failing{}, begun: map[cluster.ActivityID]heldTelling{}}
}

// takes reports whether a transition need not be told now; due are those that are
// to be told before it, or instead.
func (r *repeats) takes(e cluster.ActivityEvent) (taken bool, due []cluster.Event) {
	a := e.Activity
	key := a.Name + "/" + string(a.Domain)
	f := r.failing[key]
	switch {
	case a.State == cluster.ActivityRunning && f != nil:
		r.begun[a.ID] = heldTelling{e, time.Now()}
		return true, nil
	case a.State != cluster.ActivityEnded:
		return false, r.begins(a.ID)
	case a.Cause != "failed" || len(a.Killed) > 0 || len(a.Survives) > 0: // in another way
		delete(r.failing, key)
		return false, append(f.rest(), r.begins(a.ID)...)
	}
	if _, quiet := r.begun[a.ID]; quiet && f != nil && f.detail == a.Detail {
		delete(r.begun, a.ID)
		f.newest, f.untold = e, f.untold+1
		return true, nil
	}
	due = append(f.rest(), r.begins(a.ID)...)
	if len(r.failing) >= activityRefusals {
		clear(r.failing)
	}
	r.failing[key] = &failing{detail: a.Detail, told: time.Now()}
	return false, due
}

// begins is the beginning that was held back.
func (r *repeats) begins(id cluster.ActivityID) []cluster.Event {
	h, held := r.begun[id]
	if !held {
		return nil
	}
	delete(r.begun, id)
	return []cluster.Event{entry(h.event)}
}

// rest is the newest failure that was not told, for all of them.
func (f *failing) rest() []cluster.Event {
	if f == nil || f.untold == 0 {
		return nil
	}
	e := entry(f.newest)
	if f.untold > 1 {
		e.Fields["repeated"] = strconv.Itoa(f.untold)
		e.Text += fmt.Sprintf(" (%d tries have failed so since that was told last)", f.untold)
	}
	f.untold = 0
	return []cluster.Event{e}
}

// look is what is to be told by now: what has begun and lasts, and what has
// failed again for long. What has ceased to fail is forgotten.
func (r *repeats) look(list map[cluster.ActivityID]cluster.Activity) (due []cluster.Event) {
	for _, id := range slices.Sorted(maps.Keys(r.begun)) {
		_, listed := list[id]
		switch late := time.Since(r.begun[id].at) >= activityParked; {
		case listed && late:
			due = append(due, r.begins(id)...)
		case late: // its end was lost on the way
			delete(r.begun, id)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.failing)) {
		f := r.failing[key]
		if time.Since(f.told) < refusedAgain {
			continue
		}
		rest := f.rest()
		if len(rest) == 0 {
			delete(r.failing, key)
			continue
		}
		due, f.told = append(due, rest...), time.Now()
	}
	return due
}

// end is what is left to be told when nothing is waited for any more.
func (r *repeats) end() (due []cluster.Event) {
	for _, key := range slices.Sorted(maps.Keys(r.failing)) {
		due = append(due, r.failing[key].rest()...)
	}
	return due
}

// entry renders a transition for the history, within bounds.
func entry(e cluster.ActivityEvent) cluster.Event {
	return cluster.ActivityEvent{Activity: bounded(e.Activity), UnixMS: e.UnixMS}.Event()
}
