package main

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

func TestActivityList(t *testing.T) {
	at := clockTime
	s := newServer(t, map[string]any{"GET /activities": api.ActivitiesView{
		Activities: []cluster.ActivityRecord{
			{Activity: cluster.Activity{ID: "drain-a", Node: "hv1", State: "running", Quorum: "majority", Since: 1000, Running: []string{"copy"}}, Epoch: 4,
				Stop: &cluster.ActivityStop{By: "ada"}},
			{Activity: cluster.Activity{ID: "move-b", Node: "hv2", State: "waiting", Quorum: "follower", Since: 2000, Unsafe: true, Parent: "drain-a",
				Waits: &cluster.Refusal{Code: cluster.RefuseDomainConflict, Detail: "drain-a has it"}}}},
		History: []cluster.Event{{UnixMS: 3000, Node: "hv1", Text: "activity drain (drain-a) is running"}},
		Doubt:   "the record of activity x cannot be read: rubbish",
	}})
	got := pvc(t, s, "", "activity", "list")
	for _, line := range []string{
		"ID       NODE  STATE    QUORUM    SINCE                    EPOCH  WHAT",
		"drain-a  hv1   running  majority  " + at(1000) + "  4      runs copy; its end is ordered by ada",
		"move-b   hv2   waiting  follower  " + at(2000) + "         without its quorum, as ordered; drain-a has it; part of drain-a",
		at(3000) + "  hv1   activity drain (drain-a) is running",
		"! the record of activity x cannot be read: rubbish",
	} {
		if got.code != exitOK || !slices.Contains(strings.Split(got.out, "\n"), line) {
			t.Errorf("%q is not a line of\n%s%s", line, got.out, got.err)
		}
	}
	s = newServer(t, map[string]any{"GET /activities": api.ActivitiesView{}})
	if got := pvc(t, s, "", "activity", "list"); got.out != "no activities\n" {
		t.Errorf("%+v", got)
	}
}

func TestActivityStopIsTypedRightly(t *testing.T) {
	for line, want := range map[string]string{
		"activity stop":                                 "a listed activity's id",
		"activity stop drain-a drain-b":                 `"drain-b"`,
		"activity stop drain-a --wait --wait-timeout 0": "wait-timeout",
		"activity stop drain-a --force":                 `no flag "--force"`,
	} {
		s := newServer(t, nil)
		if got := pvc(t, s, "", strings.Fields(line)...); got.code != exitUsage || !strings.Contains(got.err, want) || s.lastAsked() != "" {
			t.Errorf("%q: %+v, asked %q", line, got, s.lastAsked())
		}
	}
	for status, code := range map[int]int{400: exitRefused, 404: exitRefused, 409: exitRefused, 503: exitUnreachable, 504: exitTimedOut} {
		s := newServer(t, map[string]any{"POST /activities/drain-a/stop": status})
		if got := pvc(t, s, "", "activity", "stop", "drain-a"); got.code != code {
			t.Errorf("%d: %+v", status, got)
		}
	}
}

// The watch prints what is new, once, and the loss of the connection once.
func TestActivityListWatch(t *testing.T) {
	event := func(ms int64, text string) cluster.Event {
		return cluster.Event{UnixMS: ms, Node: "hv1", Kind: cluster.EventActivity, Text: text}
	}
	one, two := event(1000, "first"), event(2000, "second")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	next := inTurn(api.ActivitiesView{History: []cluster.Event{one}}, 503, 503, api.ActivitiesView{History: []cluster.Event{two, one}}, nil)
	s := newServer(t, map[string]any{"GET /activities": func() any {
		view := next()
		if view == nil {
			cancel()
			return 503
		}
		return view
	}})
	t.Setenv("PVC_API", s.URL)
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"pvc", "activity", "list", "--watch"}, strings.NewReader(""), &out, &errs); code != exitInterrupted {
		t.Errorf("exit %d, %s", code, errs.String())
	}
	if got := out.String(); strings.Count(got, "first") != 1 || strings.Count(got, "second") != 1 || strings.Count(got, "connection lost") != 1 {
		t.Errorf("%s", got)
	}
}

// The wait ends with the order's own answer and says what had to be killed.
func TestActivityStopWaits(t *testing.T) {
	answer := func(kind string, fields ...string) api.ActivitiesView {
		e := cluster.Event{Kind: kind, Node: "hv2", Text: "as it went", Fields: map[string]string{"order": "o1", "activity": "drain-a"}}
		for i := 0; i+1 < len(fields); i += 2 {
			e.Fields[fields[i]] = fields[i+1]
		}
		given := cluster.Event{Kind: cluster.EventActivityStop, Fields: map[string]string{"order": "o1"}}
		other := cluster.Event{Kind: cluster.EventActivity, Fields: map[string]string{"order": "o0", "state": "ended", "cause": "stopped"}}
		return api.ActivitiesView{History: []cluster.Event{other, e, given}}
	}
	still := api.ActivitiesView{Activities: []cluster.ActivityRecord{{}}, History: []cluster.Event{{Kind: cluster.EventActivityStop, Fields: map[string]string{"order": "o1"}}}}
	ended := func(fields ...string) api.ActivitiesView {
		return answer(cluster.EventActivity, append([]string{"state", "ended"}, fields...)...)
	}
	for _, c := range []struct {
		name string
		end  api.ActivitiesView
		code int
		text string
	}{
		{"killed", ended("cause", "stopped", "killed", "copy, rsync"), exitOK, "is over; killed: copy, rsync"},
		{"by its own", ended("cause", "stopped"), exitOK, "is over; nothing had to be killed"},
		{"ended by itself", ended(), exitOK, "ended before the order reached it: as it went"},
		{"lost its node", ended("cause", cluster.CauseInterrupted), exitOK, "ended before the order reached it"},
		{"had not begun", answer(cluster.EventActivity, "state", "refused"), exitOK, "had not begun"},
		{"refused", answer(cluster.EventActivityRefused, "code", "not_interruptible"), exitRefused, "as it went"},
		{"survives", answer(cluster.EventActivity, "state", "ending", "survives", "body"), exitFailed, "body is still there"},
		{"no answer", still, exitTimedOut, "the order stands"},
	} {
		given := api.ActivityAnswer{Message: "ordered", Order: &cluster.ActivityStop{ID: "o1"}}
		s := newServer(t, map[string]any{"POST /activities/drain-a/stop": given, "GET /activities/drain-a": inTurn(still, c.end)})
		got := pvc(t, s, "", "activity", "stop", "drain-a", "--wait", "--wait-timeout", "1s")
		if got.code != c.code || !strings.Contains(got.out+got.err, c.text) || !strings.HasPrefix(got.out, "ordered\n") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	s := newServer(t, map[string]any{"POST /activities/drain-a/stop": api.ActivityAnswer{Message: "already", Already: true, Order: &cluster.ActivityStop{ID: "o1"}}, "GET /activities/drain-a": ended("cause", "stopped")})
	if got := pvc(t, s, "", "activity", "stop", "drain-a", "-w", "-o", "json"); got.code != exitOK || !json.Valid([]byte(got.out)) || !strings.Contains(got.out, `"order": "o1"`) {
		t.Errorf("%+v", got)
	}
}
