package main

import (
	"encoding/json"
	"strings"
	"testing"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// as is the cache's view, changed.
func as(change func(*api.WorkloadView)) api.WorkloadView {
	v := theCache
	v.Chain = append([]cluster.NodeID{}, v.Chain...)
	change(&v)
	return v
}

// patience is long where an end is expected, for a machine that is busy.
func patience(code int) string {
	if code == exitTimedOut {
		return "2s"
	}
	return "15s"
}

// What is under way is said once.
func TestWhereAWorkloadGoesIsSaidOnce(t *testing.T) {
	v := as(func(v *api.WorkloadView) {
		v.State, v.Reason = cluster.WorkloadMoving, "drain: from hv1 to hv3"
		v.Next = &cluster.ChainMove{ID: "m", Chain: []cluster.NodeID{"hv3"}, From: []cluster.NodeID{"hv1"}, Cause: "drain"}
	})
	if got := workloadWord(v); got != "drain: from hv1 to hv3" {
		t.Errorf("it says %q", got)
	}
	if v.Reason = "its start on hv3 waits"; workloadWord(v) != "its start on hv3 waits; drain: to hv3" {
		t.Errorf("with another reason it says %q", workloadWord(v))
	}
}

// The wait shows each step and ends with what became of the order.
func TestWorkloadOrdersAreFollowed(t *testing.T) {
	given := as(func(v *api.WorkloadView) {
		v.Version, v.Request = 4, &cluster.WorkloadRequest{ID: "o1", Op: cluster.WorkloadPromote, Node: "hv2", By: "ada"}
	})
	moving := as(func(v *api.WorkloadView) {
		v.Version, v.Request, v.State = 5, given.Request, cluster.WorkloadMoving
		v.Next = &cluster.ChainMove{ID: "m", Chain: []cluster.NodeID{"hv2", "hv1"}, Cause: "move"}
	})
	answered := func(done bool) api.WorkloadView {
		return as(func(v *api.WorkloadView) {
			v.Version, v.Answer = 6, &cluster.WorkloadAnswer{ID: "o1", Done: done, Text: "hv2 has it", Copies: []cluster.CopyReport{{Node: "hv2", State: cluster.CopyActive, HasOffset: true, Offset: 42}}}
		})
	}
	for _, c := range []struct {
		name string
		end  any
		code int
		text string
	}{
		{"done", answered(true), exitOK, "hv2 has it\nNODE"},
		{"refused", answered(false), exitRefused, "hv2 has it"},
		{"overtaken", as(func(v *api.WorkloadView) {
			v.Version, v.Request = 6, &cluster.WorkloadRequest{ID: "o2", Op: cluster.WorkloadStop, By: "bob"}
		}), exitRefused, "before it was carried out (stop, by bob)"},
		{"overtaken and answered", as(func(v *api.WorkloadView) { v.Version = 6 }), exitRefused, "another order has come after it"},
		{"removed", 404, exitRefused, "was removed meanwhile"},
		{"made anew", as(func(v *api.WorkloadView) { v.ID = "w2" }), exitRefused, "was removed meanwhile"},
		{"unreadable", api.WorkloadView{Name: "cache", Error: "rubbish"}, exitRefused, "cannot be read: rubbish"},
		{"for ever", moving, exitTimedOut, "the order stands"},
	} {
		s := newServer(t, map[string]any{"POST /workloads/cache/promote": api.WorkloadOrder{Message: "ordered", Order: "o1", Workload: &given},
			"GET /workloads/cache": inTurn(theCache, 503, given, moving, c.end)}) // an old view, and none, first
		got := pvc(t, s, "", "workload", "promote", "cache", "--node", "hv2", "--wait", "--wait-timeout", patience(c.code))
		if got.code != c.code || !strings.Contains(got.out+got.err, c.text) || !strings.HasPrefix(got.out, "ordered\n") {
			t.Errorf("%s: %+v", c.name, got)
		}
		if !strings.Contains(got.out, "moving on hv1, others on –") || !strings.Contains(got.out, "move to hv2 hv1") {
			t.Errorf("%s: no progress: %s", c.name, got.out)
		}
	}
	s := newServer(t, map[string]any{"POST /workloads/cache/promote": api.WorkloadOrder{Message: "ordered", Order: "o1", Workload: &given}, "GET /workloads/cache": answered(true)})
	if got := pvc(t, s, "", "workload", "promote", "cache", "--node", "hv2", "-w", "-o", "json"); got.code != exitOK || !json.Valid([]byte(got.out)) || !strings.Contains(got.out, `"done": true`) {
		t.Errorf("%+v", got)
	}
	if got := pvc(t, s, "", "workload", "promote", "cache"); got.code != exitUsage || !strings.Contains(got.err, "needs --node") {
		t.Errorf("%+v", got)
	}
}

func TestWorkloadThatIsRemovedOrAdded(t *testing.T) {
	given := as(func(v *api.WorkloadView) {
		v.Version, v.Request = 4, &cluster.WorkloadRequest{ID: "o1", Op: cluster.WorkloadRemove}
	})
	s := newServer(t, map[string]any{"DELETE /workloads/cache": api.WorkloadOrder{Message: "ordered", Order: "o1", Workload: &given}, "GET /workloads/cache": inTurn(given, 404)})
	if got := pvc(t, s, "", "workload", "remove", "cache", "--destroy", "-y", "--wait"); got.code != exitOK || !strings.Contains(got.out, "workload cache is removed") {
		t.Errorf("%+v", got)
	}
	made := as(func(v *api.WorkloadView) { v.Version, v.State, v.Chain = 0, cluster.WorkloadNew, nil })
	for state, want := range map[cluster.WorkloadState]struct {
		code int
		text string
	}{
		cluster.WorkloadRunning: {exitOK, "workload cache runs"}, cluster.WorkloadFailed: {exitRefused, "was added and is failed: no program"},
		cluster.WorkloadStarting: {exitTimedOut, "does not run within"},
	} {
		s := newServer(t, map[string]any{"POST /workloads": api.WorkloadOrder{Message: "added", Order: "w1", Workload: &made},
			"GET /workloads/cache": inTurn(404, made, as(func(v *api.WorkloadView) { v.State, v.Reason = state, "no program" }))})
		got := pvc(t, s, "", "workload", "add", "cache", "--driver", "redis", "--wait", "--wait-timeout", patience(want.code))
		if got.code != want.code || !strings.Contains(got.out+got.err, want.text) {
			t.Errorf("%s: %+v", state, got)
		}
	}
	for line, want := range map[string]string{
		"workload add cache": "--driver is needed",
		"workload add cache --driver exec --param command":         "write it NAME=VALUE",
		"workload add cache --driver exec --param a=1 --param a=2": "is given twice",
		"workload set cache":                           "needs what shall change",
		"workload list a b":                            "takes one expression",
		"settings autoreprovision enable":              "needs --max-nodes",
		"workload stop cache --wait --wait-timeout 0s": "above zero",
	} {
		s := newServer(t, nil)
		if got := pvc(t, s, "", strings.Fields(line)...); got.code != exitUsage || !strings.Contains(got.err, want) || s.lastAsked() != "" {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

// The settings name the nodes that were reprovisioned, and what remains, in words and
// as JSON.
func TestReprovisionIsShown(t *testing.T) {
	spent := api.AutoReprovision{Enabled: true, MaxNodes: 1, Count: 1, Nodes: []cluster.NodeID{"hv1"}, Remains: []string{"hv1 is empty: rebalance when healthy"}}
	s := newServer(t, map[string]any{"GET /settings/autoReprovision": spent})
	got := pvc(t, s, "", "settings", "autoreprovision")
	for _, want := range []string{"1 of 1 nodes", "reprovisioned", "hv1", "remains", "hv1 is empty: rebalance when healthy"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("%q is missing in\n%s", want, got.out)
		}
	}
	var shown api.AutoReprovision
	got = pvc(t, s, "", "settings", "autoreprovision", "-o", "json")
	if err := json.Unmarshal([]byte(got.out), &shown); err != nil || len(shown.Nodes) != 1 || len(shown.Remains) != 1 {
		t.Errorf("%+v: %v", got, err)
	}
}

// With --wait a workload is added to a cluster that is just coming up, however often it
// takes; without, and where something else stands against it, the first answer counts.
func TestAWorkloadIsAddedToAClusterThatComesUp(t *testing.T) {
	made := as(func(v *api.WorkloadView) { v.Version = 0 })
	early := failing{503, "Workloads are managed only where node leases are in use, and they are not in use yet (workloads_without_leases)"}
	added := api.WorkloadOrder{Message: "added", Order: "w1", Workload: &made}
	for _, c := range []struct {
		name    string
		answers []any
		words   []string
		code    int
		asked   int
	}{
		{"waits", []any{early, early, early, added}, []string{"--wait", "--wait-timeout", "15s"}, exitOK, 4},
		{"does not wait", []any{early, added}, nil, exitUnreachable, 1},
		{"another refusal comes", []any{early, failing{400, "There is no driver"}}, []string{"--wait"}, exitRefused, 2},
		{"no store", []any{failing{503, "ZooKeeper cannot be used now"}, added}, []string{"--wait"}, exitUnreachable, 1},
		{"never", []any{early}, []string{"--wait", "--wait-timeout", "1s"}, exitUnreachable, 0},
	} {
		s := newServer(t, map[string]any{"POST /workloads": inTurn(c.answers...), "GET /workloads/cache": made})
		got := pvc(t, s, "", append([]string{"workload", "add", "cache", "--driver", "redis"}, c.words...)...)
		s.mu.Lock()
		asked := strings.Count(strings.Join(s.asked, "\n"), "POST /workloads")
		s.mu.Unlock()
		if got.code != c.code || c.asked > 0 && asked != c.asked || c.asked == 0 && asked < 2 {
			t.Errorf("%s: %+v after %d attempts", c.name, got, asked)
		}
	}
}

func TestWorkloadTables(t *testing.T) {
	v := as(func(v *api.WorkloadView) {
		v.Request = &cluster.WorkloadRequest{Op: cluster.WorkloadMove, Node: "hv3", By: "ada"}
		v.Answer = &cluster.WorkloadAnswer{Text: "asked", Copies: []cluster.CopyReport{{Node: "hv2", Unknown: true, Error: "it is silent"}}}
		v.Priority, v.MemoryMiB = 7, 64
	})
	s := newServer(t, map[string]any{"GET /workloads": []api.WorkloadView{v}, "GET /workloads/cache": v})
	if got := pvc(t, s, "", "workload", "list"); !strings.Contains(got.out, "cache  running  hv1     –") || !strings.Contains(got.out, "ordered by ada: move hv3") {
		t.Errorf("%s", got.out)
	}
	for _, want := range []string{"priority 7, ephemeral, 1 replica, 64 MiB memory", "param port", "hv2   unknown", "it is silent"} {
		if got := pvc(t, s, "", "workload", "info", "cache"); !strings.Contains(got.out, want) {
			t.Errorf("%q is missing in\n%s", want, got.out)
		}
	}
	s = newServer(t, map[string]any{"GET /workloads": []api.WorkloadView{}})
	if got := pvc(t, s, "", "workload", "list"); !strings.Contains(got.out, "no workloads") {
		t.Errorf("%+v", got)
	}
}

// A flush shows what is moved, and what is left when the time is over.
func TestDrainIsFollowed(t *testing.T) {
	state := func(d cluster.DomainState) api.NodeDomainState {
		return api.NodeDomainState{Name: "hv1", DomainState: string(d)}
	}
	there := []api.WorkloadView{theCache, as(func(v *api.WorkloadView) { v.Name, v.Chain = "other", []cluster.NodeID{"hv3"} })}
	away := []api.WorkloadView{as(func(v *api.WorkloadView) { v.Chain, v.Home = []cluster.NodeID{"hv2"}, "hv1" })}
	for _, c := range []struct {
		name, word string
		states     []any
		workloads  []any
		code       int
		text       string
	}{
		{"done", "flush", []any{state(cluster.DomainReady), state(cluster.DomainFlush), 503, state(cluster.DomainFlushed)}, []any{there, there, away}, exitOK, "node hv1 is flushed"},
		{"overtaken", "flush", []any{state(cluster.DomainFlush), state(cluster.DomainUnflush)}, []any{there}, exitRefused, "somebody has ordered otherwise"},
		{"in vain", "flush", []any{state(cluster.DomainFlush)}, []any{there}, exitTimedOut, "Left: cache;"},
		{"back", "ready", []any{state(cluster.DomainUnflush), state(cluster.DomainReady)}, []any{away, away, there}, exitOK, "node hv1 is ready"},
		{"ready, and not back", "ready", []any{state(cluster.DomainReady)}, []any{away}, exitTimedOut, "Left: cache;"},
		{"back in vain", "ready", []any{state(cluster.DomainUnflush)}, []any{away}, exitTimedOut, "Left: cache;"},
	} {
		s := newServer(t, map[string]any{"POST /node/hv1/domain-state": api.Message{Message: "ordered"}, "GET /node/hv1/domain-state": inTurn(c.states...), "GET /workloads": inTurn(c.workloads...)})
		got := pvc(t, s, "", "node", c.word, "hv1", "--wait", "--wait-timeout", patience(c.code))
		if got.code != c.code || !strings.Contains(got.out+got.err, c.text) || !strings.Contains(got.out, "cache: running on hv") || strings.Contains(got.out, "other:") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

func TestRebalanceIsFollowed(t *testing.T) {
	at := func(state string, done int, text string) api.RebalanceView {
		return api.RebalanceView{ID: "b1", State: state, Done: done, Total: 2, Text: text, AtMS: 5}
	}
	for _, c := range []struct {
		name string
		end  api.RebalanceView
		code int
		text string
	}{
		{"done", at("done", 2, ""), exitOK, "the rebalance is done"},
		{"failed", at("failed", 1, "unsafe_nodes: hv1"), exitRefused, "has failed: unsafe_nodes: hv1"},
		{"stopped", at("stopped", 1, ""), exitRefused, "was stopped"},
		{"overtaken", api.RebalanceView{ID: "b2", State: "ordered", By: "bob", AtMS: 9}, exitRefused, "another rebalance was ordered since, by bob"},
		{"for ever", at("running", 1, ""), exitTimedOut, "pvc rebalance status"},
	} {
		s := newServer(t, map[string]any{"POST /rebalance": api.RebalanceAnswer{Message: "ordered", Rebalance: at("ordered", 0, "")},
			"GET /rebalance": inTurn(api.RebalanceView{State: "none"}, at("running", 1, ""), c.end)})
		got := pvc(t, s, "", "rebalance", "--wait", "--wait-timeout", patience(c.code))
		if got.code != c.code || !strings.Contains(got.out+got.err, c.text) || !strings.Contains(got.out, "running, 1 of 2 moves") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	s := newServer(t, map[string]any{"POST /settings/autoReprovision/resetCount": api.ReprovisionAnswer{Message: "ordered", Settings: api.AutoReprovision{Count: 1}}})
	if got := pvc(t, s, "", "settings", "autoreprovision", "reset", "--wait", "--wait-timeout", "1s"); got.code != exitTimedOut {
		t.Errorf("%+v", got)
	}
}
