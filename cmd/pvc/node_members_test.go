package main

import (
	"encoding/json"
	"strings"
	"testing"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// What is destructive is asked about, and only the name is an answer.
func TestNodeRemoveAsks(t *testing.T) {
	for answer, code := range map[string]int{"": exitUsage, "y\n": exitUsage, "hv2\n": exitUsage, "hv3\n": exitOK} {
		s := newServer(t, map[string]any{"DELETE /node/hv3": api.MemberAnswer{Message: "ordered"}})
		got := pvc(t, s, answer, "node", "remove", "hv3")
		if got.code != code || (s.lastAsked() == "DELETE /node/hv3") != (code == exitOK) || !strings.Contains(got.err, "when it comes back it stays out. Write hv3 to go on") {
			t.Errorf("%q: %+v, asked %q", answer, got, s.asked)
		}
	}
	for line, want := range map[string]string{
		"node remove -y":                              "a node's name",
		"node remove ../hv3 -y":                       "is not a node name",
		"node add a/b":                                "is not a node name",
		"node add none":                               "reserved",
		"node add hv3 --coordinator --hypervisor":     "give one of both",
		"node add hv3 hv4":                            `"hv4"`,
		"node add hv3 --wait --wait-timeout 0s":       "above zero",
		"node remove hv3 --cancel --wait":             "without --wait",
		"node remove hv3 --force":                     `no flag "--force"`,
		"node add hv3 --host":                         "needs a value",
		"node remove hv3 --yes --coordinator":         `no flag "--coordinator"`,
		"node remove hv3 -y --wait --wait-timeout -s": "wait-timeout",
	} {
		s := newServer(t, nil)
		if got := pvc(t, s, "", strings.Fields(line)...); got.code != exitUsage || !strings.Contains(got.err, want) || s.lastAsked() != "" {
			t.Errorf("%q: %+v, asked %q", line, got, s.lastAsked())
		}
	}
	s := newServer(t, map[string]any{"DELETE /members/order": api.MemberAnswer{Message: "taken back"}})
	if got := pvc(t, s, "", "node", "remove", "hv3", "--cancel"); got.code != exitOK || got.out != "taken back\n" || s.lastAsked() != "DELETE /members/order node=hv3" {
		t.Errorf("%+v, asked %q", got, s.lastAsked())
	}
	for status, code := range map[int]int{400: exitRefused, 409: exitRefused, 503: exitUnreachable, 504: exitTimedOut} {
		s := newServer(t, map[string]any{"DELETE /node/hv3": status})
		if got := pvc(t, s, "", "node", "remove", "hv3", "-y"); got.code != code {
			t.Errorf("%d: %+v", status, got)
		}
	}
}

func TestNodeMembersWait(t *testing.T) {
	order := cluster.MemberOrder{ID: "o1", Action: "add", Node: "hv3"}
	told := func(kind, text string, fields ...string) api.MembersView {
		e := cluster.Event{Kind: kind, Text: text, Fields: map[string]string{"order": "o1"}}
		for i := 0; i+1 < len(fields); i += 2 {
			e.Fields[fields[i]] = fields[i+1]
		}
		return api.MembersView{Order: &order, History: []cluster.Event{e}}
	}
	waits := api.MembersView{Order: &order, History: []cluster.Event{
		{Kind: cluster.EventMemberRefused, Text: "of another time", Fields: map[string]string{"order": "o0"}},
		{Kind: cluster.EventMemberOrder, Text: "ordered", Fields: map[string]string{"order": "o1"}}}}
	admitted := told(cluster.EventMember, "the name hv3 is free again", "effect", "admitted")
	counted := told(cluster.EventMember, "node hv3 counts", "effect", "counted", "ends", "true")
	counted.History = append(counted.History, admitted.History...)
	for _, c := range []struct {
		name string
		then []any
		code int
		out  string
		err  string
	}{
		{"let in, and counts", []any{waits, admitted, counted}, exitOK, "the name hv3 is free again\n", ""},
		{"counts at once", []any{counted}, exitOK, "node hv3 counts\n", ""},
		{"refused", []any{waits, told(cluster.EventMemberRefused, "refused: add of node hv3: no majority")}, exitRefused, "waits for the primary", "no majority"},
		{"taken back", []any{told(cluster.EventMemberOrder, "order taken back", "withdrawal", "w")}, exitRefused, "", "order taken back"},
		{"the store is away for a moment", []any{503, counted}, exitOK, "(answered with 503)", ""},
		{"never", []any{waits}, exitTimedOut, "waits for the primary", "`pvc node add hv3 --cancel` takes it back"},
	} {
		t.Run(c.name, func(t *testing.T) {
			line := strings.Fields("node add hv3 --wait --wait-timeout 1300ms")
			answers := map[string]any{"GET /members": inTurn(c.then...), "PUT /node/hv3": api.MemberAnswer{Message: "ordered", Order: &order}}
			got := pvc(t, newServer(t, answers), "", line...)
			if got.code != c.code || !strings.HasPrefix(got.out, "ordered\n") || !strings.Contains(got.out, c.out) || !strings.Contains(got.err, c.err) {
				t.Errorf("exit %d, want %d\n%s%s", got.code, c.code, got.out, got.err)
			}
		})
	}
	answers := map[string]any{"GET /members": counted, "PUT /node/hv3": api.MemberAnswer{Message: "ordered", Order: &order}}
	if got := pvc(t, newServer(t, answers), "", "node", "add", "hv3", "--wait", "-o", "json"); got.code != exitOK || !json.Valid([]byte(got.out)) {
		t.Errorf("as JSON: %+v", got)
	}
}

// A list of nodes says who does not count, who stays out, and what is ordered.
func TestNodeListTellsOfMembers(t *testing.T) {
	s := newServer(t, map[string]any{"GET /node": []api.Node{hv1}, "GET /members": api.MembersView{
		Uncounted: []cluster.NodeID{"hv4", "hv5"}, Doubt: "no history", Order: &cluster.MemberOrder{Action: "remove", Node: "hv2", By: "ann"},
		Removed: []cluster.RemovedNode{{Node: "hv3", Host: "x", UnixMS: 1000}, {Node: "hv3", Host: "y", Free: true}}}})
	got := pvc(t, s, "", "node", "list")
	for _, line := range []string{
		"! coordinators that count for no majority: hv4, hv5. To have one count: `pvc node add NODE --coordinator`\n",
		"removed, and staying out until `pvc node add NODE`: hv3 (host x, " + clockTime(1000) + ")\n",
		"! ordered by ann and not carried out yet: remove of node hv2\n", "! no history\n",
	} {
		if got.code != exitOK || !strings.Contains(got.out, line) {
			t.Errorf("%q is not in\n%s%s", line, got.out, got.err)
		}
	}
}
