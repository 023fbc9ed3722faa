package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// ActivityRecords reads the records of activities.
type ActivityRecords interface {
	// ReadActivities returns those of all nodes, by id. One that cannot be read has
	// Err set and nothing but its ID in its Value.
	ReadActivities(ctx context.Context) ([]cluster.Versioned[cluster.ActivityRecord], error)
	// ReadActivity returns one; an absent one is not present and no error.
	ReadActivity(ctx context.Context, id cluster.ActivityID) (cluster.Versioned[cluster.ActivityRecord], error)
}

// The times and bounds of the activities' records and of their history.
const (
	// activitySettle lets what belongs together ride in one Multi.
	activitySettle = 50 * time.Millisecond
	// activityParked is how long one waits, or is being ended after its body has
	// returned, before that is told and kept in the store.
	activityParked = time.Second
	// activityLook is how often the records of what runs here are looked at for
	// an operator's stop, and how soon what the store did not take is tried again.
	activityLook = 250 * time.Millisecond
	// activityRest is the same while nothing runs here.
	activityRest = 5 * time.Second
	// activityRenew is how often the names of its subtasks are written anew.
	activityRenew = 5 * time.Second
	// activityStop bounds the wait for an operator's stop, which goes on without it.
	activityStop = time.Minute
	// refusedAgain is for how long the same refusal of the same work is told once.
	refusedAgain = time.Minute

	activityEvents   = 256  // entries of the history that wait for the store
	activityRides    = 32   // entries, and records, in one Multi
	activityDetail   = 1000 // bytes of a detail
	activityNames    = 32   // subtasks that are named
	activityTries    = 4    // Multis at a look
	activityRefusals = 256  // kinds of refusals that are remembered
)

// activityKeeper keeps this node's activities in the store: a record each, from
// when it runs until it is over, the history of their transitions, and the answers
// to the operators' stops that stand in the records. One goroutine does it, level
// by level: at each look it writes, in one Multi, what differs between what the
// manager has and what the store is known to have, so that a lost reply, a
// restart or an hour without the store leave nothing behind that the next look
// does not mend.
type activityKeeper struct {
	c       Config
	d       Deps
	records ActivityRecords // nil: only the history is told
	manager interface {
		List() []cluster.Activity
		Stop(ctx context.Context, id cluster.ActivityID, by, reason string) ([]string, error)
	}
	role func() (leads bool, snap *cluster.Snapshot)

	in       *tellings
	flushes  chan chan struct{}
	refusals chan stopRefused
	orders   sync.WaitGroup

	// run's own
	held    map[cluster.ActivityID]heldTelling
	refused map[string]time.Time // when a refusal was told last
	repeats repeats
	ends    bool            // nothing is held back any more
	events  []cluster.Event // to be written, oldest first
	lost    int             // that did not fit
	kept    map[cluster.ActivityID]*keptActivity
	open    *openWrite
	alone   bool // what the store refused together is tried one by one
	sweep   activitySweep
}

// heldTelling is a transition that is told only if the state lasts.
type heldTelling struct {
	event cluster.ActivityEvent
	at    time.Time
}

// keptActivity is one activity's record as it is known.
type keptActivity struct {
	there    bool
	version  int32
	value    cluster.ActivityRecord
	doubt    bool      // it has to be read before it is written
	hopeless bool      // the store takes no record of it
	over     bool      // its end has been told
	gone     time.Time // when the manager had it no more
	looked   time.Time
	written  time.Time
	carrying string           // the stop that is being carried out
	refusal  *cluster.Refusal // why that is not carried out
}

// stop is the operator's stop that stands, nil for none.
func (k *keptActivity) stop() *cluster.ActivityStop {
	if !k.there {
		return nil
	}
	return k.value.Stop
}

// stopRefused is the manager's answer to a stop that it did not begin.
type stopRefused struct {
	id      cluster.ActivityID
	order   string
	refusal cluster.Refusal
}

func newActivityKeeper(c Config, d Deps, records ActivityRecords, m *activity.Manager, role func() (bool, *cluster.Snapshot)) *activityKeeper {
	return &activityKeeper{c: c, d: d, records: records, manager: m, role: role,
		in: newTellings(), flushes: make(chan chan struct{}), refusals: make(chan stopRefused),
		held: map[cluster.ActivityID]heldTelling{}, refused: map[string]time.Time{}, repeats: newRepeats(), kept: map[cluster.ActivityID]*keptActivity{}}
}

// run keeps the records until ctx ends.
func (k *activityKeeper) run(ctx context.Context) {
	defer k.orders.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var flushing []chan struct{}
	for {
		select {
		case <-ctx.Done():
			k.tellUnwritten()
			return
		case <-k.in.more:
			pause(ctx, activitySettle)
		case r := <-k.refusals:
			if kept := k.kept[r.id]; kept != nil && kept.carrying == r.order {
				kept.refusal = &r.refusal
			}
		case done := <-k.flushes:
			flushing, k.ends = append(flushing, done), true
		case <-timer.C:
		}
		k.look(ctx)
		if len(flushing) > 0 && k.clean() {
			for _, done := range flushing {
				close(done)
			}
			flushing = nil
		}
		timer.Reset(k.rest())
	}
}

// rest is how long until the next look.
func (k *activityKeeper) rest() time.Duration {
	if k.clean() {
		return activityRest
	}
	return activityLook
}

// clean reports whether the store has all that is to be told, and nothing runs
// here that an operator could stop.
func (k *activityKeeper) clean() bool {
	return k.in.empty() && len(k.events) == 0 && k.lost == 0 && len(k.held) == 0 && len(k.kept) == 0
}

// flush returns when the store has all; the error says that it has not when ctx
// ends. Without run it waits for ctx.
func (k *activityKeeper) flush(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case k.flushes <- done:
	case <-ctx.Done():
		return fmt.Errorf("tell of the activities: %w", context.Cause(ctx))
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("tell of the activities: the store has not taken all of it: %w", context.Cause(ctx))
	}
}

// look brings the store up to date once.
func (k *activityKeeper) look(ctx context.Context) {
	for range activityTries {
		list := k.collect()
		if !k.read(ctx) {
			break
		}
		k.obey(ctx)
		t := k.next(list)
		if len(t.ops) == 0 || !k.write(ctx, t) {
			break
		}
	}
	k.forget(k.list())
	k.sweepDue(ctx)
}

func (k *activityKeeper) list() map[cluster.ActivityID]cluster.Activity {
	list := map[cluster.ActivityID]cluster.Activity{}
	for _, a := range k.manager.List() {
		list[a.ID] = a
	}
	return list
}

// forget drops what is over and has no record any more.
func (k *activityKeeper) forget(list map[cluster.ActivityID]cluster.Activity) {
	maps.DeleteFunc(k.kept, func(id cluster.ActivityID, kept *keptActivity) bool {
		_, listed := list[id]
		return !listed && (kept.hopeless || !kept.there && !kept.doubt)
	})
}

// collect takes what was told. What passes by itself at once, waiting for
// conditions that hold and the end after a body's return, is told only if it
// lasts, and then once. It returns the activities as they are after that: what
// has been told to be over is not among them, so that its end, the end of its
// record and the answer to an operator's stop are one write.
func (k *activityKeeper) collect() map[cluster.ActivityID]cluster.Activity {
	told, lost := k.in.take()
	list := k.list()
	k.lost += lost
	for _, t := range told {
		a := t.event.Activity
		if a.Retry && len(a.Killed)+len(a.Survives) == 0 {
			if kept := k.kept[a.ID]; kept != nil {
				kept.over = a.State == cluster.ActivityEnded || a.State == cluster.ActivityRefused
			}
			continue
		}
		byItself := a.State == cluster.ActivityEnding && (a.Cause == "" || a.Cause == "failed") && len(a.Survives) == 0
		if a.State == cluster.ActivityWaiting || byItself {
			k.held[a.ID] = heldTelling{t.event, time.Now()}
			continue
		}
		if a.Quiet && !k.shows(a.ID) && a.State == cluster.ActivityRunning {
			k.held[a.ID] = heldTelling{t.event, time.Now()}
			continue
		}
		delete(k.held, a.ID)
		if a.Quiet && !k.shows(a.ID) && a.State == cluster.ActivityEnded && a.Cause == "" && len(a.Killed)+len(a.Survives) == 0 {
			continue
		}
		if a.Quiet && a.State == cluster.ActivityRefused && a.Waits != nil && a.Waits.Code == cluster.RefuseDomainConflict {
			continue // it comes again as soon as the domain is free
		}
		if kept := k.kept[a.ID]; kept != nil {
			kept.over = a.State == cluster.ActivityEnded || a.State == cluster.ActivityRefused
		}
		if a.State == cluster.ActivityRefused && !k.firstRefusal(a) {
			continue
		}
		repeated, due := k.repeats.takes(t.event)
		if k.note(due...); !repeated {
			k.note(entry(t.event))
		}
	}
	k.note(k.repeats.look(list)...)
	if k.ends {
		k.note(k.repeats.end()...)
	}
	for _, id := range slices.Sorted(maps.Keys(k.held)) {
		h := k.held[id]
		a, listed := list[id]
		switch {
		case listed && time.Since(h.at) < activityParked:
			continue
		case listed && a.State == h.event.Activity.State:
			k.note(entry(cluster.ActivityEvent{Activity: a, UnixMS: h.event.UnixMS})) // with what it waits for
		case !listed && time.Since(h.at) < activityParked:
			continue // its end is about to be told
		}
		delete(k.held, id)
	}
	return list
}

// shows reports whether the store has, or may have, a record of the activity.
func (k *activityKeeper) shows(id cluster.ActivityID) bool {
	kept := k.kept[id]
	return kept != nil && (kept.there || kept.doubt)
}

// firstRefusal reports whether a refusal is told: of what tries again and again
// the log has each.
func (k *activityKeeper) firstRefusal(a cluster.Activity) bool {
	if a.Waits == nil {
		return true
	}
	key := a.Name + "/" + string(a.Domain) + "/" + string(a.Waits.Code)
	if at, told := k.refused[key]; told && time.Since(at) < refusedAgain {
		return false
	}
	if len(k.refused) >= activityRefusals {
		clear(k.refused)
	}
	k.refused[key] = time.Now()
	return true
}

// note queues entries of the history.
func (k *activityKeeper) note(events ...cluster.Event) {
	room := min(len(events), max(0, activityEvents-len(k.events)))
	k.events = append(k.events, events[:room]...)
	k.lost += len(events) - room
}

// bounded cuts what an activity says of itself to what the store is to hold.
func bounded(a cluster.Activity) cluster.Activity {
	a.Detail = cut(a.Detail)
	if a.Waits != nil {
		w := *a.Waits
		w.Detail = cut(w.Detail)
		a.Waits = &w
	}
	for _, names := range []*[]string{&a.Running, &a.Killed, &a.Survives} {
		if more := len(*names) - activityNames; more > 0 {
			*names = append(slices.Clone((*names)[:activityNames]), fmt.Sprintf("and %d more", more))
		}
	}
	return a
}

func cut(text string) string {
	if len(text) > activityDetail {
		return text[:activityDetail] + "…"
	}
	return text
}

// wanted is the record that the store is to have of an activity, if any.
func (k *activityKeeper) wanted(a cluster.Activity, listed bool, kept *keptActivity) (cluster.ActivityRecord, bool) {
	if k.records == nil {
		return cluster.ActivityRecord{}, false
	}
	waits := (a.State == cluster.ActivityWaiting || a.Quiet) && !kept.there && time.Since(time.UnixMilli(a.Since)) < activityParked
	if !listed || waits {
		return cluster.ActivityRecord{}, false
	}
	if kept.there && time.Since(kept.written) < activityRenew {
		a.Running = kept.value.Running
	}
	return cluster.ActivityRecord{Version: 1, Activity: bounded(a), Epoch: a.Lease.Epoch, Incarnation: k.c.Incarnation}, true
}

// same reports whether two records say the same, stops aside.
func same(a, b cluster.ActivityRecord) bool {
	a.Stop, b.Stop = nil, nil
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// read looks at the records whose state is not known, and now and then at the
// others for what operators want; false: the store does not answer.
func (k *activityKeeper) read(ctx context.Context) bool {
	for _, id := range slices.Sorted(maps.Keys(k.kept)) {
		kept := k.kept[id]
		if !kept.doubt && (!kept.there || time.Since(kept.looked) < activityLook) {
			continue
		}
		reading, cancel := context.WithTimeout(ctx, k.c.Timing.KeepaliveInterval)
		v, err := k.records.ReadActivity(reading, id)
		cancel()
		if err != nil {
			return false
		}
		k.saw(id, kept, v)
	}
	return true
}

// saw takes a reading over. A server that lags behind what is known tells
// nothing new.
func (k *activityKeeper) saw(id cluster.ActivityID, kept *keptActivity, v cluster.Versioned[cluster.ActivityRecord]) {
	kept.looked = time.Now()
	if !kept.doubt && v.Present && v.Version < kept.version {
		return
	}
	if k.open != nil && k.open.happened(id, v) {
		k.events = slices.Delete(k.events, 0, k.open.events)
		k.open = nil
	}
	kept.doubt, kept.there, kept.version, kept.value = false, v.Present, v.Version, v.Value
}

// obey begins with the stops that were not taken on yet.
func (k *activityKeeper) obey(ctx context.Context) {
	for id, kept := range k.kept {
		o := kept.stop()
		if o == nil || kept.carrying == o.ID || kept.doubt {
			continue
		}
		kept.carrying, kept.refusal = o.ID, nil
		order := *o
		k.d.Log.Info("an operator's stop of an activity is carried out", zap.String("activity", string(id)), zap.String("order", o.ID),
			zap.String("by", o.By), zap.String("reason", o.Reason))
		k.orders.Go(func() { k.carryOut(ctx, id, order) })
	}
}

// carryOut has the activity ended. What is answered is seen in the list: it is
// over, or something of it survives; only a refusal is not.
func (k *activityKeeper) carryOut(ctx context.Context, id cluster.ActivityID, o cluster.ActivityStop) {
	ending, cancel := context.WithTimeout(ctx, activityStop)
	defer cancel()
	if o.Reason == "" {
		o.Reason = "no reason was given"
	}
	_, err := k.manager.Stop(ending, id, o.By, o.Reason)
	var no *cluster.RefusedActivity
	if !errors.As(err, &no) {
		return
	}
	select {
	case k.refusals <- stopRefused{id, o.ID, no.Refusal}:
	case <-ctx.Done():
	}
}

// tellUnwritten logs what the history will never have.
func (k *activityKeeper) tellUnwritten() {
	told, _ := k.in.take()
	for _, t := range told {
		k.note(entry(t.event))
	}
	for _, e := range k.events {
		k.d.Log.Warn("a history entry was not written before this daemon ended", zap.String("kind", e.Kind), zap.String("text", e.Text))
	}
}
