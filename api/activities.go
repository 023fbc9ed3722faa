package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"pvc.internal/cluster"
)

// ActivitiesView is what runs or waits under leases: in the whole cluster, or one.
type ActivitiesView struct {
	// Activities are as their nodes have written them, oldest first. One that has
	// just begun to wait is not among them yet.
	Activities []cluster.ActivityRecord `json:"activities"`
	History    []cluster.Event          `json:"history"` // of activities and orders, newest first
	// Doubt says what of this could not be read; empty: nothing.
	Doubt string `json:"doubt,omitempty"`
}

// ActivityAnswer is what became of an operator's order to end an activity.
type ActivityAnswer struct {
	Message string `json:"message"`
	Already bool   `json:"already"` // nothing had to be ordered
	// Order is what stands for the activity's node to carry out. Its answer is the
	// entry of the history that names it (field "order").
	Order *cluster.ActivityStop `json:"order,omitempty"`
}

var activityKinds = []string{cluster.EventActivity, cluster.EventActivityStop, cluster.EventActivityRefused}

var activitiesParams = []param{{name: "limit", kind: argInt, min: 1, max: eventsLooked, about: fmt.Sprintf("how many events of the history; %d otherwise", fenceEvents)}}

func activityRoutes() []route {
	return []route{
		{method: get, path: "/activities", summary: "What runs or waits under leases, and what happened to activities", handle: (*Server).getActivities, reply: ActivitiesView{}, params: activitiesParams},
		{method: get, path: "/activities/{activity}", summary: "The same of one activity", handle: (*Server).getActivity, reply: ActivitiesView{}, params: activitiesParams},
		{method: post, path: "/activities/{activity}/stop", summary: "Order an activity to be ended; its node does it within its ladder and says what had to be killed", need: RoleOperate,
			handle: (*Server).postActivityStop, reply: ActivityAnswer{}, also: ordered202(ActivityAnswer{}), params: []param{{name: "reason", kind: argText, about: "why, for the history"}}},
	}
}

// activity is the path's activity.
func (r *request) activity() cluster.ActivityID {
	return cluster.ActivityID(r.http.PathValue("activity"))
}

func (s *Server) getActivities(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		v := ActivitiesView{Activities: []cluster.ActivityRecord{}, History: []cluster.Event{}}
		if st.away > 0 {
			return v, nil
		}
		records, err := s.deps.Details.ReadActivities(r.ctx)
		if err != nil {
			return nil, err
		}
		for _, a := range records {
			if a.Err != nil {
				v.Doubt = joinDoubt(v.Doubt, fmt.Sprintf("the record of activity %s (/agent/activities/%s) cannot be read: %v", a.Value.ID, a.Value.ID, a.Err))
				continue
			}
			v.Activities = append(v.Activities, a.Value)
		}
		slices.SortStableFunc(v.Activities, func(a, b cluster.ActivityRecord) int { return cmp.Compare(a.Since, b.Since) })
		s.activityHistory(r, &v, "")
		return v, nil
	})
}

func (s *Server) getActivity(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		v := ActivitiesView{Activities: []cluster.ActivityRecord{}, History: []cluster.Event{}}
		if st.away > 0 {
			return v, nil
		}
		a, err := s.deps.Details.ReadActivity(r.ctx, r.activity())
		switch {
		case err != nil:
			return nil, err
		case a.Err != nil:
			v.Doubt = fmt.Sprintf("the record of activity %s cannot be read: %v", r.activity(), a.Err)
		case a.Present:
			v.Activities = append(v.Activities, a.Value)
		}
		s.activityHistory(r, &v, r.activity())
		if !a.Present && len(v.History) == 0 && v.Doubt == "" {
			return nil, refuse(http.StatusNotFound, noSuchActivity(r.activity()))
		}
		return v, nil
	})
}

func noSuchActivity(id cluster.ActivityID) string {
	return fmt.Sprintf("There is no activity %q, and the history does not know of one; `pvc activity list` shows what runs.", id)
}

// activityHistory adds the newest entries about the activity, or all where it is
// empty.
func (s *Server) activityHistory(r *request, v *ActivitiesView, only cluster.ActivityID) {
	limit := r.args.number("limit", fenceEvents)
	look := min(eventsLooked, eventsEach*limit)
	if only != "" {
		look = eventsLooked
	}
	events, err := s.deps.Details.ReadHistory(r.ctx, look)
	if err != nil { // the records are worth having without it
		v.Doubt = joinDoubt(v.Doubt, fmt.Sprintf("the history cannot be read: %v", err))
	}
	for _, e := range slices.Backward(events) {
		if len(v.History) < limit && slices.Contains(activityKinds, e.Kind) && (only == "" || e.Fields["activity"] == string(only)) {
			v.History = append(v.History, e)
		}
	}
}

// explainActivities adds what runs on the node, or under the leader's leases where
// it is empty.
func (s *Server) explainActivities(ctx context.Context, x *explainer, on cluster.NodeID) {
	if x.st.away > 0 {
		return
	}
	records, err := s.deps.Details.ReadActivities(ctx)
	if err != nil { // the rest is worth having without it
		x.saw("what runs under leases could not be read: %v", err)
	}
	follower := cluster.Follower().String()
	for _, a := range records {
		r := a.Value
		if a.Err != nil || on != "" && r.Node != on || on == "" && r.Quorum == follower {
			continue
		}
		text := fmt.Sprintf("activity %s (%s) is %s on node %s under %q", r.Name, r.ID, r.State, r.Node, r.Quorum)
		if r.Waits != nil {
			text += ": " + r.Waits.Detail
		}
		if len(r.Survives) > 0 {
			text += "; still there after its end: " + strings.Join(r.Survives, ", ")
		}
		x.saw("%s", text)
	}
}

// longestActivity bounds an activity's name in a request, in bytes.
const longestActivity = 128

func newActivityStop(r *request) (cluster.ActivityStop, *failure) {
	o := cluster.ActivityStop{ID: newOrderID(), By: r.caller.name, Reason: r.args.text("reason"), UnixMS: time.Now().UnixMilli()}
	switch id := string(r.activity()); {
	case slices.ContainsFunc([]rune(o.Reason), unicode.IsControl) || len(o.Reason) > longestReason:
		return o, badArgument("reason", fmt.Sprintf("Must be one line of plain text of at most %d bytes.", longestReason))
	case len(id) > longestActivity || slices.ContainsFunc([]rune(id), unicode.IsControl):
		return o, refuse(http.StatusBadRequest, "That is no activity's name; nothing was ordered. `pvc activity list` shows what runs.")
	}
	return o, nil
}

// postActivityStop writes an operator's order into the activity's record, on the
// version that was read. The node that runs the activity carries it out and
// answers it when it takes it away, also if the activity ends by itself meanwhile.
// A lost reply is settled before the order is written again.
func (s *Server) postActivityStop(r *request) (answer, error) {
	order, fail := newActivityStop(r)
	if fail != nil {
		return answer{}, fail
	}
	lost := false
	for range askAttempts {
		st, err := s.fresh(r.ctx, lost) // which syncs: what is read next is not older
		if err != nil {
			return answer{}, err
		}
		v, err := s.deps.Details.ReadActivity(r.ctx, r.activity())
		if err != nil && lost {
			return answer{}, lostReply()
		} else if err != nil {
			return answer{}, err
		}
		if a, settled, err := s.stopSettled(r, order, v, lost); settled || err != nil {
			return a, err
		}
		next := v.Value
		next.Stop = &order
		text := fmt.Sprintf("ordered: the end of activity %s (%s) on node %s", next.Name, next.ID, next.Node)
		fields := map[string]string{"activity": string(next.ID), "name": next.Name, "order": order.ID}
		if order.Reason != "" {
			fields["reason"] = order.Reason
		}
		result := s.commit(r.ctx, "api.activity_stop", s.event(r, cluster.EventActivityStop, text, fields),
			cluster.Set(cluster.Key{Kind: cluster.KeyActivity, Name: string(next.ID)}, v.Version, next))
		switch result.Outcome {
		case cluster.OutcomeOK:
			return stopOrdered(order, v.Value)
		case cluster.OutcomeConflict:
			awaitChange(r.ctx, st)
		case cluster.OutcomeUnknown:
			lost = true
			awaitChange(r.ctx, st)
		default:
			return answer{}, outcomeError(result)
		}
	}
	if lost {
		return answer{}, lostReply()
	}
	return answer{}, fmt.Errorf("write the order into the record of activity %s: %w in each of %d attempts; nothing was ordered, look at /activities and ask again", r.activity(), cluster.ErrConflict, askAttempts)
}

// stopSettled answers where nothing is left to be written: the order stands, it
// was answered, another one stands, or there is nothing to end.
func (s *Server) stopSettled(r *request, o cluster.ActivityStop, v cluster.Versioned[cluster.ActivityRecord], lost bool) (answer, bool, error) {
	stands := v.Value.Stop
	if v.Present && stands != nil && stands.ID == o.ID {
		a, err := stopOrdered(o, v.Value)
		return a, true, err
	}
	var events []cluster.Event
	if lost || !v.Present {
		var err error
		if events, err = s.deps.Details.ReadHistory(r.ctx, eventsLooked); err != nil && lost {
			return answer{}, true, lostReply()
		}
	}
	if lost && slices.ContainsFunc(events, func(e cluster.Event) bool { return e.Kind == cluster.EventActivityStop && e.Fields["order"] == o.ID }) {
		text := fmt.Sprintf("Ordered, and answered already; `pvc history --kind %s` says how.", cluster.EventActivity)
		return answer{status: http.StatusAccepted, body: ActivityAnswer{Message: text, Order: &o}, change: text}, true, nil
	}
	switch {
	case !v.Present:
		return answer{}, true, refuse(http.StatusNotFound, whyOver(r.activity(), events))
	case v.Err != nil:
		return answer{}, true, refuse(http.StatusBadRequest, fmt.Sprintf("The record of activity %q cannot be read (%v); nothing was ordered. The primary removes it by itself.", r.activity(), v.Err))
	case stands != nil:
		text := fmt.Sprintf("The order to end activity %q, by %s since %s, stands already; its node carries it out.", r.activity(), stands.By, time.UnixMilli(stands.UnixMS).Format(faultTime))
		return answer{status: http.StatusOK, body: ActivityAnswer{Message: text, Already: true, Order: stands}}, true, nil
	case v.Value.Hard && v.Value.State == cluster.ActivityRunning:
		return answer{}, true, refuse(http.StatusConflict, fmt.Sprintf("Activity %q (%s) is a hard failover and is not ended by hand (%s): half of one is worse than either end. It goes on; nothing was ordered.", r.activity(), v.Value.Name, cluster.RefuseUninterrupted))
	}
	return answer{}, false, nil
}

// whyOver says what the history knows of an activity that has no record.
func whyOver(id cluster.ActivityID, events []cluster.Event) string {
	for _, e := range slices.Backward(events) {
		if e.Kind == cluster.EventActivity && e.Fields["activity"] == string(id) {
			return fmt.Sprintf("Activity %q is over already; nothing was ordered. Last: %s, at %s.", id, e.Text, time.UnixMilli(e.UnixMS).Format(faultTime))
		}
	}
	return noSuchActivity(id) + " Nothing was ordered."
}

func stopOrdered(o cluster.ActivityStop, a cluster.ActivityRecord) (answer, error) {
	text := fmt.Sprintf("Ordered: node %s ends activity %s (%s). The history says what had to be killed.", a.Node, a.Name, a.ID)
	if a.State == cluster.ActivityEnding {
		text = fmt.Sprintf("Ordered; the end of activity %s (%s) on node %s has begun already (%s).", a.Name, a.ID, a.Node, a.Detail)
	}
	return answer{status: http.StatusAccepted, body: ActivityAnswer{Message: text, Order: &o}, change: text}, nil
}

// Activities returns what runs or waits under leases, with at most limit events of
// the history; 0 is the server's own limit. An id leaves out all others; one that
// nobody knows is an error that wraps cluster.ErrRefused.
func (c *Client) Activities(ctx context.Context, id string, limit int) (ActivitiesView, error) {
	values := url.Values{}
	if limit > 0 {
		values.Set("limit", fmt.Sprint(limit))
	}
	path := "/activities"
	if id != "" {
		path += "/" + url.PathEscape(id)
	}
	return fetch[ActivitiesView](ctx, c, get, path, values)
}

// StopActivity orders an activity to be ended. It returns when the order is
// written, not when it is carried out.
func (c *Client) StopActivity(ctx context.Context, id, reason string) (ActivityAnswer, error) {
	return fetch[ActivityAnswer](ctx, c, post, "/activities/"+url.PathEscape(id)+"/stop", url.Values{"reason": {reason}})
}
