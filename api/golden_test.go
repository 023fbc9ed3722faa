package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenCase is one request on a path that other people's clients call. Its
// answer, to the byte, stands in testdata/golden/NAME.json.
type goldenCase struct {
	name   string
	before func(*world)
	method string
	path   string // below Prefix
	form   string // the body of a change; what begins with { is JSON
}

// golden is what a golden file holds.
type golden struct {
	Request string          `json:"request"`
	Body    string          `json:"body,omitempty"`
	Status  int             `json:"status"`
	Answer  json.RawMessage `json:"answer"` // null: no body
}

func noHolder(w *world) { w.edit(func(s *cluster.Snapshot) { s.Lease.Value.Holder = "" }) }

func maintained(w *world) {
	w.edit(func(s *cluster.Snapshot) {
		s.Maintenance = present(true)
		s.MaintenanceRecord = present(cluster.MaintenanceRecord{Version: 1, Owner: "ada", Reason: "disks", SinceMS: 1700000000000})
	})
}

func withFaults(w *world) {
	w.store.faults = map[string]map[string]string{
		"disk":  {"first_time": "2026-01-02 03:04:05", "last_time": "2026-01-02 03:05:05", "ack_time": "", "status": "new", "delta": "25", "message": "disk sda of hv1 is failing"},
		"power": {"first_time": "2026-01-01 03:04:05", "last_time": "2026-01-03 03:05:05", "ack_time": "2026-01-03 04:00:00", "status": "ack", "delta": "10", "message": "one supply of hv2 is down"},
	}
}

func withTasks(w *world) {
	w.store.activities = map[cluster.ActivityID]cluster.Versioned[cluster.ActivityRecord]{
		"failover-1": present(cluster.ActivityRecord{Version: 1, Activity: cluster.Activity{ID: "failover-1", Name: "failover", Domain: "cluster", Quorum: "majority",
			State: cluster.ActivityRunning, Since: 1700000000000, Node: "hv1", Running: []string{"fence hv3"}}}),
		"drain-2": present(cluster.ActivityRecord{Version: 1, Activity: cluster.Activity{ID: "drain-2", Name: "drain", Domain: "cluster", Quorum: "majority",
			State: cluster.ActivityWaiting, Since: 1700000001000, Node: "hv1", Waits: &cluster.Refusal{Code: cluster.RefuseDomainConflict, Detail: "activity failover-1 runs in its domain"}}}),
	}
	w.node("hv3", func(n *cluster.NodeView) {
		n.Fence = present(cluster.FenceRecord{Version: 1, ID: "f1", Node: "hv3", Incarnation: "b.1", By: "hv1", Stage: cluster.FencePowerOff, Reason: "silent for 6s", StartedMS: 1700000000500})
		n.Order = present(cluster.FenceOrder{Version: 1, ID: "o1", Node: "hv3", Action: cluster.OrderFence, By: "olga", UnixMS: 1700000000400})
	})
	w.edit(func(s *cluster.Snapshot) {
		s.Transition = present(cluster.Transition{Version: 1, ID: "t1", From: "hv1", To: "hv2", Cause: cluster.CauseSwitch, State: cluster.TransitionRunning,
			Phase: cluster.PhaseStop, WishVersion: 7, Started: 1700000002000})
		s.MemberOrder = present(cluster.MemberOrder{Version: 1, ID: "m1", Action: cluster.MemberAdd, Node: "hv4", By: "olga", UnixMS: 1700000003000})
	})
}

// goldenCases are PVC's table (api.md), successes and failures of each row.
func goldenCases() []goldenCase {
	stopped := func(w *world) {
		w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
	}
	domain := func(s cluster.DomainState) func(*world) {
		return func(w *world) {
			w.idle("hv2")
			w.node("hv2", func(n *cluster.NodeView) { n.Domain.Value = s })
		}
	}
	wish := func(name string) func(*world) {
		return func(w *world) { w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value = name }) }
	}
	noCluster := func(w *world) { w.edit(func(s *cluster.Snapshot) { s.ClusterName.Present = false }) }
	wellNodes := func(w *world) {
		for _, leaves := range w.store.leaves {
			leaves["monitoring_data/load/health_delta"] = "0"
		}
	}
	rubbish := func(w *world) {
		maps.Copy(w.store.leaves["hv2"], map[string]string{"staticdata": "many", "cpuload": "NaN", "memtotal": "8e3", "monitoring_health": "?", "domainscount": ""})
	}
	all := []goldenCase{
		{"version", nil, get, "/", ""},
		{"initialize", nil, post, "/initialize", "overwrite=true&yes-i-really-mean-it=yes"},
		{"initialize-unconfirmed", nil, post, "/initialize", "overwrite=true"},
		{"initialize-there-is-one", func(w *world) { w.store.initError = cluster.ErrConflict }, post, "/initialize", "yes-i-really-mean-it=yes"},
		{"status", wellNodes, get, "/status", ""},
		{"status-degraded", stopped, get, "/status", ""},
		{"status-maintenance", maintained, get, "/status", ""},
		{"status-no-primary", noHolder, get, "/status", ""},
		{"status-rubbish", rubbish, get, "/status", ""},
		{"status-away", (*world).away, get, "/status", ""},
		{"maintenance-on", nil, post, "/status", "state=true"},
		{"maintenance-on-already", maintained, post, "/status", "state=true"},
		{"maintenance-off", maintained, post, "/status", "state=false"},
		{"maintenance-off-already", nil, post, "/status", "state=false"},
		{"maintenance-json", nil, post, "/status", `{"state": true}`},
		{"maintenance-no-state", nil, post, "/status", ""},
		{"maintenance-bad-state", nil, post, "/status", "state=maybe"},
		{"maintenance-away", (*world).away, post, "/status", "state=true"},
		{"primary-node", nil, get, "/status/primary_node", ""},
		{"primary-node-none", noHolder, get, "/status/primary_node", ""},
		{"primary-node-away", (*world).away, get, "/status/primary_node", ""},
		{"nodes", nil, get, "/node", ""},
		{"nodes-limit", nil, get, "/node?limit=%5Ehv%5B12%5D%24", ""},
		{"nodes-daemon-state", stopped, get, "/node?daemon_state=stop", ""},
		{"nodes-coordinator-state", nil, get, "/node?coordinator_state=primary", ""},
		{"nodes-domain-state", domain(cluster.DomainFlushed), get, "/node?domain_state=flushed&daemon_state=run", ""},
		{"nodes-none", nil, get, "/node?coordinator_state=primary&daemon_state=dead", ""},
		{"nodes-bad-expression", nil, get, "/node?limit=%28", ""},
		{"nodes-bad-state", nil, get, "/node?daemon_state=asleep", ""},
		{"nodes-away", (*world).away, get, "/node", ""},
		{"node", nil, get, "/node/hv2", ""},
		{"node-rubbish", rubbish, get, "/node/hv2", ""},
		{"node-unreadable", func(w *world) { w.store.readError["hv2"] = errors.New("read refused") }, get, "/node/hv2", ""},
		{"node-unknown", nil, get, "/node/nobody", ""},
		{"node-a-path", nil, get, "/node/a%2Fb", ""},
		{"daemon-state", nil, get, "/node/hv1/daemon-state", ""},
		{"daemon-state-unknown", nil, get, "/node/nobody/daemon-state", ""},
		{"coordinator-state", nil, get, "/node/hv1/coordinator-state", ""},
		{"coordinator-state-hypervisor", nil, get, "/node/hv3/coordinator-state", ""},
		{"coordinator-state-unknown", nil, get, "/node/nobody/coordinator-state", ""},
		{"domain-state", nil, get, "/node/hv1/domain-state", ""},
		{"domain-state-unknown", nil, get, "/node/nobody/domain-state", ""},
		{"primary", nil, post, "/node/hv2/coordinator-state", "state=primary"},
		{"primary-query", nil, post, "/node/hv2/coordinator-state?state=primary", ""},
		{"primary-json", nil, post, "/node/hv2/coordinator-state", `{"state": "primary"}`},
		{"primary-already", nil, post, "/node/hv1/coordinator-state", "state=primary"},
		{"primary-already-asked", wish("hv2"), post, "/node/hv2/coordinator-state", "state=primary"},
		{"primary-unknown", nil, post, "/node/nobody/coordinator-state", "state=primary"},
		{"primary-hypervisor", nil, post, "/node/hv3/coordinator-state", "state=primary"},
		{"primary-stopped", stopped, post, "/node/hv2/coordinator-state", "state=primary"},
		{"primary-bad-state", nil, post, "/node/hv2/coordinator-state", "state=master"},
		{"primary-no-state", nil, post, "/node/hv2/coordinator-state", ""},
		{"primary-twice", nil, post, "/node/hv2/coordinator-state", "state=primary&state=secondary"},
		{"primary-no-cluster", noCluster, post, "/node/hv2/coordinator-state", "state=primary"},
		{"primary-away", (*world).away, post, "/node/hv2/coordinator-state", "state=primary"},
		{"secondary", nil, post, "/node/hv1/coordinator-state", "state=secondary"},
		{"secondary-already", nil, post, "/node/hv2/coordinator-state", "state=secondary"},
		{"secondary-no-candidate", stopped, post, "/node/hv1/coordinator-state", "state=secondary"},
		{"flush", domain(cluster.DomainReady), post, "/node/hv2/domain-state", "state=flush"},
		{"flush-already", domain(cluster.DomainFlushed), post, "/node/hv2/domain-state", "state=flush&wait=true"},
		{"flush-workloads", nil, post, "/node/hv2/domain-state", "state=flush"},
		{"flush-unknown", nil, post, "/node/nobody/domain-state", "state=flush"},
		{"flush-bad-state", nil, post, "/node/hv2/domain-state", "state=away"},
		{"ready", domain(cluster.DomainFlushed), post, "/node/hv2/domain-state", "state=ready"},
		{"ready-already", domain(cluster.DomainReady), post, "/node/hv2/domain-state", `{"state": "ready", "wait": "True"}`},
		{"log", nil, get, "/node/hv1/log?lines=2", ""},
		{"log-ten", nil, get, "/node/hv1/log", ""},
		{"log-bad-lines", nil, get, "/node/hv1/log?lines=-1", ""},
		{"log-unknown", nil, get, "/node/nobody/log", ""},
		{"tasks-none", nil, get, "/tasks", ""},
		{"tasks", withTasks, get, "/tasks", ""},
		{"task", withTasks, get, "/tasks/t1", ""},
		{"task-of-a-switch", withTasks, get, "/tasks/switch-7", ""},
		{"task-that-is-over", func(w *world) {
			w.store.history = []cluster.Event{
				{Version: 1, UnixMS: 1700000000000, Node: "hv1", Kind: "fence_order", Text: "ordered: fence of node hv3", Fields: map[string]string{"order": "o7"}},
				{Version: 1, UnixMS: 1700000001000, Node: "hv1", Kind: cluster.EventOrderRefused, Text: "not fenced: maintenance", Fields: map[string]string{"order": "o7"}}}
		}, get, "/tasks/o7", ""},
		{"task-unknown", nil, get, "/tasks/nothing", ""},
		{"tasks-older-name", withTasks, get, "/provisioner/status", ""},
		{"faults-none", nil, get, "/faults", ""},
		{"faults", withFaults, get, "/faults", ""},
		{"faults-sorted", withFaults, get, "/faults?sort_key=first_reported", ""},
		{"faults-sorted-by-delta", withFaults, get, "/faults?sort_key=health_delta", ""},
		{"faults-bad-sort", withFaults, get, "/faults?sort_key=colour", ""},
		{"fault", withFaults, get, "/faults/disk", ""},
		{"fault-unknown", withFaults, get, "/faults/flood", ""},
		{"fault-acknowledge", withFaults, put, "/faults/disk", ""},
		{"fault-acknowledge-all", withFaults, put, "/faults", ""},
		{"fault-acknowledge-unknown", withFaults, put, "/faults/flood", ""},
		{"fault-delete", withFaults, del, "/faults/disk", ""},
		{"fault-delete-all", withFaults, del, "/faults", ""},
		{"fault-delete-unknown", withFaults, del, "/faults/flood", ""},
		{"no-such-path", nil, get, "/vm", ""},
		{"wrong-method", nil, del, "/status", ""},
	}
	for i := range all {
		if all[i].before == nil {
			all[i].before = func(*world) {}
		}
	}
	return all
}

// ask sends the request of the case to a world of its own.
func (c goldenCase) ask(t *testing.T) golden {
	w := newWorld(t)
	c.before(w)
	media := "application/x-www-form-urlencoded"
	if strings.HasPrefix(c.form, "{") {
		media = "application/json"
	}
	status, body := w.do(c.method, Prefix+c.path, media, c.form)
	g := golden{Request: c.method + " " + Prefix + c.path, Body: c.form, Status: status, Answer: json.RawMessage(body)}
	if body == "" {
		g.Answer = json.RawMessage("null")
	}
	return g
}

// The answers that other people's clients rely on do not change by accident.
func TestGolden(t *testing.T) {
	dir := filepath.Join("testdata", "golden")
	var names []string
	for _, c := range goldenCases() {
		names = append(names, c.name+".json")
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(c.ask(t)); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		file := filepath.Join(dir, c.name+".json")
		if *update {
			if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(want, text.Bytes()) {
			t.Errorf("%s differs (-update writes it anew):\n got %s\nwant %s", file, text.Bytes(), want)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(names, f.Name()) {
			t.Errorf("%s belongs to no case", f.Name())
		}
	}
}

// Every route of PVC's has a golden success, and every change a golden refusal.
func TestGoldenCoversPVCsPaths(t *testing.T) {
	answered := map[string][]int{}
	mux := http.NewServeMux()
	w := newWorld(t)
	for _, rt := range w.server.routes {
		if rt.lenient && rt.reply != nil {
			mux.HandleFunc(rt.method+" "+rt.fullPath(), func(http.ResponseWriter, *http.Request) {})
		}
	}
	for _, c := range goldenCases() {
		r, err := http.NewRequest(c.method, Prefix+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, pattern := mux.Handler(r)
		answered[pattern] = append(answered[pattern], c.ask(t).Status)
	}
	for _, rt := range w.server.routes {
		pattern := rt.method + " " + rt.fullPath()
		if !rt.lenient || rt.reply == nil {
			continue
		}
		if !slices.Contains(answered[pattern], 200) {
			t.Errorf("%s has no golden success", pattern)
		}
		if len(rt.names()) > 0 && !slices.ContainsFunc(answered[pattern], func(s int) bool { return s == 400 || s == 404 }) {
			t.Errorf("%s has no golden refusal", pattern)
		}
	}
}
