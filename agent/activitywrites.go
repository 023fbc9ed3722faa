package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// activityTxn is one Multi of the keeper: records first, then the history.
type activityTxn struct {
	ops    []cluster.Op
	ids    []cluster.ActivityID // of the records' operations, in their order
	want   map[cluster.ActivityID]keptActivity
	events int // how many of the waiting entries ride along, from the oldest
	lost   int // how many the last entry says are missing
}

// openWrite is a Multi whose reply was lost, until a record shows that it happened.
type openWrite struct {
	events int
	want   map[cluster.ActivityID]keptActivity
}

// happened reports whether the record is as that Multi would have left it.
func (o *openWrite) happened(id cluster.ActivityID, v cluster.Versioned[cluster.ActivityRecord]) bool {
	was, within := o.want[id]
	switch {
	case !within || v.Err != nil:
		return false
	case !was.there:
		return !v.Present
	}
	return v.Present && v.Version >= was.version && same(v.Value, was.value)
}

// next is what the store is to be told now. An operator's stop is answered in the
// very Multi that takes it away, whatever has ended the activity.
func (k *activityKeeper) next(list map[cluster.ActivityID]cluster.Activity) activityTxn {
	most := activityRides
	if k.alone {
		most = 1
	}
	t := activityTxn{want: map[cluster.ActivityID]keptActivity{}, events: min(len(k.events), most)}
	riding := make([]cluster.Event, t.events)
	for i, e := range k.events[:t.events] {
		e.Fields = maps.Clone(e.Fields)
		riding[i] = e
	}
	for id := range list {
		if k.kept[id] == nil {
			k.kept[id] = &keptActivity{}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(k.kept)) {
		kept := k.kept[id]
		a, listed := list[id]
		want, wanted := k.wanted(a, listed, kept)
		if kept.doubt || kept.hopeless || len(t.ids) >= most {
			continue
		}
		key := cluster.Key{Kind: cluster.KeyActivity, Name: string(id)}
		want.Stop = kept.value.Stop
		answer, answered := k.answer(id, kept, want, wanted)
		if wanted && answered {
			want.Stop = nil
		}
		switch {
		case wanted && !kept.there:
			want.Stop = nil
			t.record(id, cluster.Create(key, want), keptActivity{there: true, value: want})
		case wanted && (answered || !same(want, kept.value)):
			t.record(id, cluster.Set(key, kept.version, want), keptActivity{there: true, version: kept.version + 1, value: want})
		case !listed && kept.there && kept.isOver() && !k.later(id, t.events):
			t.record(id, cluster.Delete(key, kept.version), keptActivity{})
		default:
			continue
		}
		if answered && !attach(riding, id, answer) {
			riding = append(riding, answer)
		}
	}
	if k.lost > 0 && t.events == len(k.events) {
		t.lost = k.lost
		riding = append(riding, k.lostEvent())
	}
	for _, e := range riding {
		t.ops = append(t.ops, cluster.Op{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: e})
	}
	return t
}

// record puts a record's operation before those of the history.
func (t *activityTxn) record(id cluster.ActivityID, op cluster.Op, then keptActivity) {
	t.ops, t.ids, t.want[id] = append(t.ops, op), append(t.ids, id), then
}

// later reports whether the history's entries that do not ride along yet tell of
// the activity: its record goes with its last.
func (k *activityKeeper) later(id cluster.ActivityID, from int) bool {
	return slices.ContainsFunc(k.events[from:], func(e cluster.Event) bool { return e.Fields["activity"] == string(id) })
}

// answer is the answer to the stop that stands, if there is one by now.
func (k *activityKeeper) answer(id cluster.ActivityID, kept *keptActivity, now cluster.ActivityRecord, listed bool) (cluster.Event, bool) {
	o := kept.stop()
	if o == nil {
		return cluster.Event{}, false
	}
	if !listed {
		over := kept.value.Activity
		over.State, over.Running = cluster.ActivityEnded, nil
		return k.answered(over, *o), true
	}
	switch {
	case kept.refusal != nil && kept.carrying == o.ID:
		return cluster.Event{Version: 1, UnixMS: k.c.WallMS(), Node: k.c.Node, Kind: cluster.EventActivityRefused,
			Text: fmt.Sprintf("refused: the end of activity %s (%s): %s", now.Name, id, kept.refusal.Detail),
			Fields: map[string]string{"order": o.ID, "activity": string(id), "name": now.Name, "by": o.By,
				"code": string(kept.refusal.Code), "detail": kept.refusal.Detail}}, true
	case len(now.Survives) > 0:
		return k.answered(now.Activity, *o), true
	}
	return cluster.Event{}, false
}

// answered tells how an activity stands, for the history.
func (k *activityKeeper) answered(a cluster.Activity, o cluster.ActivityStop) cluster.Event {
	e := cluster.ActivityEvent{Activity: bounded(a), UnixMS: k.c.WallMS()}.Event()
	e.Fields["order"] = o.ID
	return e
}

// attach has an activity's own last entry be the answer to an order; false: there
// is none, or the answer is a refusal.
func attach(riding []cluster.Event, id cluster.ActivityID, answer cluster.Event) bool {
	for i := len(riding) - 1; i >= 0; i-- {
		f := riding[i].Fields
		last := f["state"] == string(cluster.ActivityEnded) || f["state"] == string(cluster.ActivityRefused) || f["survives"] != ""
		if answer.Kind == cluster.EventActivity && riding[i].Kind == answer.Kind && f["activity"] == string(id) && last {
			f["order"] = answer.Fields["order"]
			return true
		}
	}
	return false
}

// isOver reports whether the record of an activity that the manager has no more
// may go: its end is told with it, or is missing for long.
func (k *keptActivity) isOver() bool {
	if k.gone.IsZero() {
		k.gone = time.Now()
	}
	return k.over || time.Since(k.gone) >= activityParked
}

func (k *activityKeeper) lostEvent() cluster.Event {
	return cluster.Event{
		Version: 1, UnixMS: k.c.WallMS(), Node: k.c.Node, Kind: "history_lost", Fields: map[string]string{"count": strconv.Itoa(k.lost)},
		Text: fmt.Sprintf("%d transitions of activities on %s are missing here: there were too many, or the store was away for too long; its log has them", k.lost, k.c.Node),
	}
}

// write sends one Multi and takes its outcome over; false: the rest waits for a
// later look.
func (k *activityKeeper) write(ctx context.Context, t activityTxn) bool {
	writing, cancel := context.WithTimeout(ctx, k.c.Timing.KeepaliveInterval)
	defer cancel()
	r := k.d.Store.Commit(writing, cluster.Txn{Purpose: "activities", Ops: t.ops})
	switch r.Outcome {
	case cluster.OutcomeOK:
		k.wrote(t)
		return true
	case cluster.OutcomeConflict:
		for i, id := range t.ids {
			k.kept[id].doubt = i == r.FailedOp || r.FailedOp < 0
		}
		return r.FailedOp < len(t.ids)
	case cluster.OutcomeUnknown:
		events := t.events
		if k.open != nil { // which of the two happened, if one did, cannot be told: rather twice than not at all
			events = min(events, k.open.events)
		}
		k.open = &openWrite{events, t.want}
		for _, id := range t.ids {
			k.kept[id].doubt = true
		}
		k.sweep.lookAgain()
		return false
	case cluster.OutcomeRefused:
		return k.refusedWrite(t, r.Err)
	}
	return false
}

func (k *activityKeeper) wrote(t activityTxn) {
	k.events, k.lost = slices.Delete(k.events, 0, t.events), k.lost-t.lost
	k.open, k.alone = nil, false
	for id, now := range t.want {
		kept := k.kept[id]
		kept.there, kept.version, kept.value, kept.written = now.there, now.version, now.value, time.Now()
		if kept.value.Stop == nil {
			kept.carrying, kept.refusal = "", nil
		}
	}
}

// refusedWrite gives up what the store does not take: of many, each by itself.
func (k *activityKeeper) refusedWrite(t activityTxn, err error) bool {
	if len(t.ops) > 1 && !k.alone {
		k.alone = true
		return true
	}
	k.d.Log.Warn("the store refused what is told of activities", zap.Int("entries", t.events), zap.Any("records", t.ids), zap.Error(err))
	k.events, k.lost = slices.Delete(k.events, 0, t.events), k.lost-t.lost
	k.open, k.alone = nil, false
	for _, id := range t.ids {
		k.kept[id].hopeless = true
	}
	return true
}
