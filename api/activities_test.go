package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

func (f *fakeStore) ReadActivities(context.Context) ([]cluster.Versioned[cluster.ActivityRecord], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []cluster.Versioned[cluster.ActivityRecord]
	for _, id := range slices.Sorted(maps.Keys(f.activities)) {
		if a := f.activities[id]; a.Present {
			list = append(list, a)
		}
	}
	return list, f.activityError
}

func (f *fakeStore) ReadActivity(_ context.Context, id cluster.ActivityID) (cluster.Versioned[cluster.ActivityRecord], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.texts = append(f.texts, cluster.Key{Kind: cluster.KeyActivity, Name: string(id)})
	return f.activities[id], f.activityError
}

// runs has an activity run on hv2.
func (w *world) runs(id cluster.ActivityID, change ...func(*cluster.ActivityRecord)) {
	r := cluster.ActivityRecord{Version: 1, Epoch: 4, Incarnation: "b.1",
		Activity: cluster.Activity{ID: id, Name: "drain", Node: "hv2", Quorum: "majority", State: cluster.ActivityRunning, Since: int64(len(w.store.activities))}}
	for _, f := range change {
		f(&r)
	}
	if w.store.activities == nil {
		w.store.activities = map[cluster.ActivityID]cluster.Versioned[cluster.ActivityRecord]{}
	}
	w.store.activities[id] = cluster.Versioned[cluster.ActivityRecord]{Present: true, Value: r, Version: 3, Mzxid: 1}
}

// happened adds an entry about an activity to the history.
func (w *world) happened(id, state string) {
	w.store.history = append(w.store.history, cluster.Event{UnixMS: int64(len(w.store.history)), Kind: cluster.EventActivity,
		Text: fmt.Sprintf("activity drain (%s) is %s", id, state), Fields: map[string]string{"activity": id, "state": state}})
}

const activitiesPath = "/api/v1/activities"

func TestActivitiesAreListed(t *testing.T) {
	w := newWorld(t)
	if _, body := w.get(activitiesPath); body != `{"activities":[],"history":[]}` {
		t.Errorf("nothing: %s", body)
	}
	w.runs("drain-b")
	w.runs("drain-a")
	w.happened("drain-b", "running")
	w.store.history = append(w.store.history, cluster.Event{Kind: "transition"})
	w.happened("drain-a", "running")
	w.store.activities["junk"] = cluster.Versioned[cluster.ActivityRecord]{Present: true, Err: errors.New("rubbish"), Value: cluster.ActivityRecord{Activity: cluster.Activity{ID: "junk"}}}
	_, body := w.get(activitiesPath)
	v := decode[ActivitiesView](t, body)
	if len(v.Activities) != 2 || v.Activities[0].ID != "drain-b" || v.Activities[1].Epoch != 4 || len(v.History) != 2 || v.History[0].Fields["activity"] != "drain-a" {
		t.Errorf("%s", body)
	}
	if !strings.Contains(v.Doubt, "the record of activity junk") || !strings.Contains(v.Doubt, "rubbish") {
		t.Errorf("doubt: %q", v.Doubt)
	}
	_, body = w.get(activitiesPath + "/drain-a?limit=1")
	if v = decode[ActivitiesView](t, body); len(v.Activities) != 1 || v.Activities[0].ID != "drain-a" || len(v.History) != 1 {
		t.Errorf("one: %s", body)
	}
	w.happened("drain-0", "ended")
	if status, body := w.get(activitiesPath + "/drain-0"); status != 200 || len(decode[ActivitiesView](t, body).History) != 1 {
		t.Errorf("one that is over: %d %s", status, body)
	}
	if status, body := w.get(activitiesPath + "/drain-9"); status != 404 || !strings.Contains(body, "pvc activity list") {
		t.Errorf("unknown: %d %s", status, body)
	}
	w.store.historyError = cluster.ErrUnknown // hides nothing else
	_, body = w.get(activitiesPath + "/drain-a")
	if v = decode[ActivitiesView](t, body); len(v.Activities) != 1 || !strings.Contains(v.Doubt, "the history cannot be read") {
		t.Errorf("without history: %s", body)
	}
	w.store.activityError = cluster.ErrNotLive
	if status, body := w.get(activitiesPath); status != 503 {
		t.Errorf("unreadable: %d %s", status, body)
	}
	w.away()
	if status, body := w.get(activitiesPath); status != 503 {
		t.Errorf("store away: %d %s", status, body)
	}
}

func TestAnActivitysEndIsOrdered(t *testing.T) {
	stands := func(r *cluster.ActivityRecord) {
		r.Stop = &cluster.ActivityStop{ID: "o1", By: "ada", UnixMS: 1}
	}
	for _, c := range []struct {
		name, form string
		do         func(*world)
		status     int
		text       string
		written    bool
	}{
		{"one that runs", "reason=it+hangs", func(w *world) { w.runs("drain-a") }, 202, "Ordered: node hv2 ends activity drain (drain-a)", true},
		{"without a reason", "", func(w *world) { w.runs("drain-a") }, 202, "Ordered", true},
		{"one that is being ended", "", func(w *world) {
			w.runs("drain-a", func(r *cluster.ActivityRecord) { r.State, r.Detail = cluster.ActivityEnding, "quorum_lost(hv1)" })
		}, 202, "has begun already (quorum_lost(hv1))", true},
		{"ordered already", "", func(w *world) { w.runs("drain-a", stands) }, 200, `"already":true,"order":{"id":"o1"`, false},
		{"over", "", func(w *world) { w.happened("drain-a", "running"); w.happened("drain-a", "ended") }, 404, "is over already; nothing was ordered. Last: activity drain (drain-a) is ended", false},
		{"unknown", "", func(*world) {}, 404, "no activity", false},
		{"unreadable", "", func(w *world) {
			w.runs("drain-a")
			w.store.activities["drain-a"] = cluster.Versioned[cluster.ActivityRecord]{Present: true, Err: errors.New("rubbish")}
		}, 400, "cannot be read (rubbish); nothing was ordered", false},
		{"a hard failover", "reason=it+hangs", func(w *world) { w.runs("drain-a", func(r *cluster.ActivityRecord) { r.Hard = true }) }, 409,
			"not_interruptible): half of one is worse than either end. It goes on; nothing was ordered", false},
		{"two lines", "reason=a%0Ab", func(w *world) { w.runs("drain-a") }, 400, "one line of plain text", false},
		{"too much", "reason=" + strings.Repeat("x", longestReason+1), func(w *world) { w.runs("drain-a") }, 400, "at most 500 bytes", false},
		{"over just before it is written", "", func(w *world) {
			w.runs("drain-a")
			w.store.beforeCommit = func(*cluster.Snapshot) { w.store.activities = nil; w.happened("drain-a", "ended") }
			w.store.outcomes = []cluster.Outcome{cluster.OutcomeConflict}
		}, 404, "is over already", false},
		{"changed just before it is written", "", func(w *world) {
			w.runs("drain-a")
			w.store.beforeCommit = func(*cluster.Snapshot) {
				a := w.store.activities["drain-a"]
				a.Version++
				w.store.activities["drain-a"] = a
			}
		}, 202, "Ordered", true},
		{"two at once", "", func(w *world) {
			w.runs("drain-a")
			w.store.beforeCommit = func(*cluster.Snapshot) { w.runs("drain-a", stands) }
			w.store.outcomes = []cluster.Outcome{cluster.OutcomeConflict}
		}, 200, `"already":true`, false},
		{"always changed", "", func(w *world) {
			w.runs("drain-a")
			w.store.outcomes = slices.Repeat([]cluster.Outcome{cluster.OutcomeConflict}, askAttempts)
		}, 409, "nothing was ordered", false},
		{"reply lost, not done", "", func(w *world) { w.runs("drain-a"); w.store.outcomes = []cluster.Outcome{cluster.OutcomeUnknown} }, 202, "Ordered", true},
		{"reply lost, done", "", func(w *world) {
			w.runs("drain-a")
			w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
		}, 202, "Ordered", true},
		{"reply lost, done and answered", "", func(w *world) {
			w.runs("drain-a")
			w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
			w.store.afterUnknown = func(*cluster.Snapshot) { w.store.activities = nil; w.happened("drain-a", "ended") }
		}, 202, "Ordered, and answered already", true},
		{"reply lost, and it is over", "", func(w *world) {
			w.runs("drain-a")
			w.store.outcomes = []cluster.Outcome{cluster.OutcomeUnknown}
			w.store.afterUnknown = func(*cluster.Snapshot) { w.store.activities = nil; w.happened("drain-a", "ended") }
		}, 404, "is over already", false},
		{"reply always lost", "", func(w *world) {
			w.runs("drain-a")
			w.store.outcomes = slices.Repeat([]cluster.Outcome{cluster.OutcomeUnknown}, askAttempts)
		}, 504, "may have happened", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.do(w)
			status, body := w.post(activitiesPath+"/drain-a/stop", c.form)
			if status != c.status || !strings.Contains(body, c.text) {
				t.Errorf("%d %s, want %d with %q", status, body, c.status, c.text)
			}
			orders := slices.DeleteFunc(slices.Clone(w.store.history), func(e cluster.Event) bool { return e.Kind != cluster.EventActivityStop })
			if c.written != (len(orders) == 1) || len(orders) > 1 {
				t.Fatalf("history: %+v", orders)
			}
			if !c.written {
				return
			}
			o := decode[ActivityAnswer](t, body).Order
			if o == nil || orders[0].Fields["order"] != o.ID || orders[0].Fields["activity"] != "drain-a" {
				t.Fatalf("%s, %+v", body, orders)
			}
			if a := w.store.activities["drain-a"]; a.Present && (a.Value.Stop == nil || *a.Value.Stop != *o || a.Value.Name != "drain") {
				t.Errorf("%+v", a)
			}
		})
	}
}

// What runs stands in the explanations of its node and of the role.
func TestExplanationsTellWhatRuns(t *testing.T) {
	w := newWorld(t)
	w.runs("drain-a", func(r *cluster.ActivityRecord) {
		r.Waits = &cluster.Refusal{Code: cluster.RefuseDomainConflict, Detail: "another has it"}
	})
	w.runs("work-b", func(r *cluster.ActivityRecord) { r.Node, r.Quorum, r.Survives = "hv3", "follower", []string{"copy"} })
	for what, want := range map[string][2]string{
		"hv2": {"(drain-a) is running on node hv2 under \"majority\": another has it", "work-b"}, "primary": {"(drain-a)", "work-b"},
		"hv3": {"(work-b) is running on node hv3 under \"follower\"; still there after its end: copy", "drain-a"},
	} {
		evidence := strings.Join(w.explain(what).Evidence, "\n")
		if !strings.Contains(evidence, want[0]) || strings.Contains(evidence, want[1]) {
			t.Errorf("%s: %s", what, evidence)
		}
	}
}

// Who may only read ends nothing.
func TestAnActivitysEndNeedsTheRight(t *testing.T) {
	w := newWorld(t)
	for _, rt := range w.server.routes {
		if rt.path == "/activities/{activity}/stop" && rt.need != RoleOperate {
			t.Errorf("needs %v", rt.need)
		}
	}
}
