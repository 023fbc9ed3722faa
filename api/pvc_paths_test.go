package api

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

const hv2JSON = `{"name":"hv2","daemon_state":"run","coordinator_state":"secondary","domain_state":"ready","pvc_version":"0.1","cpu_count":4,"kernel":"6.1.0-18-amd64","os":"Debian12","arch":"x86_64","health":95,"health_plugins":["load"],"health_details":[{"name":"load","last_run":1700000000,"health_delta":5,"message":"load is 9","data":{"load":9}}],"load":0.25,"domains_count":1,"running_domains":["vm-hv2"],"vcpu":{"total":4,"allocated":2},"memory":{"total":8000,"allocated":1024,"provisioned":2048,"used":3000,"free":5000},"interfaces":{}}`

func TestReadsOnPVCPaths(t *testing.T) {
	for _, c := range []struct {
		path   string
		status int
		body   string
	}{
		{"/api/v1", 200, `{"message":"PVC API version 1.0"}`},
		{"/api/v1/", 200, `{"message":"PVC API version 1.0"}`},
		{"/api/v1/status/primary_node", 200, `{"primary_node":"hv1"}`},
		{"/api/v1/node/hv2", 200, hv2JSON},
		{"/api/v1/node?limit=hv2", 200, "[" + hv2JSON + "]"},
		{"/api/v1/node?limit=2$", 200, "[" + hv2JSON + "]"},
		{"/api/v1/node?coordinator_state=secondary&daemon_state=run", 200, "[" + hv2JSON + "]"},
		{"/api/v1/node?coordinator_state=secondary&daemon_state=stop", 404, `{"message":"Node not found."}`},
		{"/api/v1/node?limit=nobody", 404, `{"message":"Node not found."}`},
		{"/api/v1/node?coordinator_state=secondary&added_by_a_newer_client=1", 200, "[" + hv2JSON + "]"},
		{"/api/v1/node/nobody", 404, `{"message":"Node not found."}`},
		{"/api/v1/node/hv1/daemon-state", 200, `{"name":"hv1","daemon_state":"run"}`},
		{"/api/v1/node/hv1/coordinator-state", 200, `{"name":"hv1","coordinator_state":"primary"}`},
		{"/api/v1/node/hv3/coordinator-state", 200, `{"name":"hv3","coordinator_state":"client"}`},
		{"/api/v1/node/hv1/domain-state", 200, `{"name":"hv1","domain_state":"ready"}`},
		{"/api/v1/node/nobody/domain-state", 404, `{"message":"Node not found."}`},
		{"/api/v1/node/hv1/log?lines=2", 200, `{"name":"hv1","data":"hv1 line 18\nhv1 line 19"}`},
		{"/api/v1/node/nobody/log", 404, `{"message":"Node not found."}`},
		{"/api/v1/tasks", 200, `{"active":{},"reserved":{},"scheduled":{}}`},
		{"/api/v1/provisioner/status", 200, `{"active":{},"reserved":{},"scheduled":{}}`},
		{"/api/v1/nothing", 404, `{"message":"There is nothing at /api/v1/nothing; /openapi.json lists every path."}`},
	} {
		w := newWorld(t)
		status, body := w.get(c.path)
		w.expect(c.path, status, body, c.status, c.body)
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t)
	for _, n := range w.store.leaves {
		n["monitoring_data/load/health_delta"] = "0"
	}
	status, body := w.get("/api/v1/status")
	const health = `{"health":95,"messages":[]}`
	w.expect("status", status, body, 200, `{"maintenance":"false","primary_node":"hv1","upstream_ip":"none","pvc_version":"0.1","cluster_name":"demo","health":"Optimal","health_msg":[],"storage_health":"N/A","storage_health_msg":[],"cluster_health":{"health":100,"messages":[]},"node_health":{"hv1":`+health+`,"hv2":`+health+`,"hv3":`+health+`},"nodes":{"run,ready":3,"total":3},"vms":{"total":3},"osds":{"total":0},"networks":0,"pools":0,"volumes":0,"snapshots":0,"resources":{"memory":{"total":24000,"free":15000,"used":9000,"allocated":3072,"provisioned":6144,"utilization":37.5},"cpu":{"total":12,"load":0.75,"allocated":6,"utilization":6.25},"disk":{"total":0,"used":0,"free":0,"utilization":0}}}`)
}

// A node whose numbers are rubbish reads 0 and a fault, and hides nobody.
func TestRubbishOfOneNode(t *testing.T) {
	w := newWorld(t)
	for leaf := range w.store.leaves["hv1"] {
		w.store.leaves["hv1"][leaf] = "0"
	}
	rubbish := map[string]string{"staticdata": "many", "cpuload": "NaN", "memtotal": "8e3", "monitoring_health": "?", "monitoring_plugins": "a b", "monitoring_data/a/data": "{",
		"memused": "99999999999999999999", "vcpualloc": "-"}
	maps.Copy(w.store.leaves["hv1"], rubbish)
	delete(w.store.leaves["hv1"], "memfree")
	w.store.readError["hv3"] = errors.New("read refused")
	status, body := w.get("/api/v1/node")
	nodes := decode[[]Node](t, body)
	if status != 200 || len(nodes) != 3 {
		t.Fatalf("%d %s", status, body)
	}
	hv1, hv3 := nodes[0], nodes[2]
	if hv1.CPUCount != 0 || hv1.Load != 0 || hv1.Memory.Total != 0 || hv1.Memory.Used != 0 || hv1.VCPU.Allocated != 0 || hv1.Health != "N/A" || len(hv1.Faults) != 7 || hv1.HealthDetails[0].Data != "{" {
		t.Errorf("hv1: %+v", hv1)
	}
	if hv3.DaemonState != "run" || len(hv3.Faults) != 1 || !strings.Contains(hv3.Faults[0], "read refused") {
		t.Errorf("hv3: %+v", hv3)
	}
	if status, body := w.get("/api/v1/status"); status != 200 || decode[Status](t, body).Health != "Degraded" {
		t.Errorf("status: %d %s", status, body)
	}
}

func TestPrimaryNodeIsAFact(t *testing.T) {
	w := newWorld(t)
	w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value = "hv2" }) // the wish alone moves nothing
	status, body := w.get("/api/v1/status/primary_node")
	w.expect("wish", status, body, 200, `{"primary_node":"hv1"}`)

	w.later(2900 * time.Millisecond) // ttl + margin: the last instant at which it is not expired as observed
	status, body = w.get("/api/v1/status/primary_node")
	w.expect("at the end", status, body, 200, `{"primary_node":"hv1"}`)
	w.clock.advance(time.Second) // the store is silent: that the lease expired has not been observed
	status, body = w.get("/api/v1/status/primary_node")
	w.expect("silent store", status, body, 200, `{"primary_node":"hv1"}`)
	w.later(time.Millisecond)
	status, body = w.get("/api/v1/status/primary_node")
	w.expect("expired", status, body, 204, "")

	w.edit(func(s *cluster.Snapshot) { s.Since = w.clock.Now() }) // connected again: observation begins anew
	status, body = w.get("/api/v1/status/primary_node")
	w.expect("reconnected", status, body, 200, `{"primary_node":"hv1"}`)
	w.edit(func(s *cluster.Snapshot) { s.Lease.Value.Holder = "" })
	status, body = w.get("/api/v1/status/primary_node")
	w.expect("released", status, body, 204, "")
	if status, body := w.get("/api/v1/status"); status != 200 || decode[Status](t, body).PrimaryNode != "none" {
		t.Errorf("status without a primary: %d %s", status, body)
	}
}

func TestCoordinatorState(t *testing.T) {
	stop := func(s cluster.DaemonState) func(*world) {
		return func(w *world) { w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(s) }) }
	}
	for _, c := range []struct {
		name, node, form string
		before           func(*world)
		status           int
		body             string
		wish             string
	}{
		{name: "primary", node: "hv2", form: "state=primary", status: 200, body: `{"message":"Setting node \"hv2\" in primary coordinator state."}`, wish: "hv2"},
		{name: "primary already", node: "hv1", form: "state=primary", status: 200, body: `{"message":"Node \"hv1\" is already in primary coordinator state."}`, wish: "hv1"},
		{name: "primary asked already", node: "hv2", form: "state=primary", before: func(w *world) { w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value = "hv2" }) },
			status: 200, body: `{"message":"Node \"hv2\" is already being set in primary coordinator state."}`, wish: "hv2"},
		{name: "primary taken back", node: "hv1", form: "state=primary", before: func(w *world) { w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value = "hv2" }) },
			status: 200, body: `{"message":"Setting node \"hv1\" in primary coordinator state."}`, wish: "hv1"},
		{name: "unknown", node: "nobody", form: "state=primary", status: 400, body: `{"message":"No node named \"nobody\" is present in the cluster."}`, wish: "hv1"},
		{name: "unknown secondary", node: "nobody", form: "state=secondary", status: 400, body: `{"message":"No node named \"nobody\" is present in the cluster."}`, wish: "hv1"},
		{name: "hypervisor", node: "hv3", form: "state=primary", status: 400, body: `{"message":"Cannot change coordinator state on non-coordinator node \"hv3\"."}`, wish: "hv1"},
		{name: "hypervisor secondary", node: "hv3", form: "state=secondary", status: 400, body: `{"message":"Cannot change coordinator state on non-coordinator node \"hv3\"."}`, wish: "hv1"},
		{name: "stopped", node: "hv2", form: "state=primary", before: stop(cluster.DaemonStop), status: 400, body: `{"message":"Node \"hv2\" is not active: its daemon state is \"stop\"."}`, wish: "hv1"},
		{name: "starting", node: "hv2", form: "state=secondary", before: stop(cluster.DaemonInit), status: 400, body: `{"message":"Node \"hv2\" is not active: its daemon state is \"init\"."}`, wish: "hv1"},
		{name: "session gone", node: "hv2", form: "state=primary", before: func(w *world) {
			w.node("hv2", func(n *cluster.NodeView) { n.Alive = cluster.Versioned[cluster.Alive]{} })
		}, status: 400, body: `{"message":"Node \"hv2\" is not active: its daemon has no live session."}`, wish: "hv1"},
		{name: "silent", node: "hv2", form: "state=primary", before: func(w *world) { w.clock.advance(5100 * time.Millisecond) },
			status: 400, body: `{"message":"Node \"hv2\" is not active: no keepalive for 5.1s."}`, wish: "hv1"},
		{name: "being fenced", node: "hv2", form: "state=primary", before: func(w *world) {
			w.node("hv2", func(n *cluster.NodeView) {
				n.Fence = present(cluster.FenceRecord{Version: 1, Node: "hv2", Incarnation: "b.1", Stage: cluster.FencePowerOff})
			})
		}, status: 400, body: `{"message":"Node \"hv2\" is being fenced."}`, wish: "hv1"},
		{name: "secondary", node: "hv1", form: "state=secondary", status: 200, body: `{"message":"Setting node \"hv1\" in secondary coordinator state."}`, wish: "none"},
		{name: "secondary already", node: "hv2", form: "state=secondary", status: 200, body: `{"message":"Node \"hv2\" is already in secondary coordinator state."}`, wish: "hv1"},
		{name: "secondary asked already", node: "hv1", form: "state=secondary", before: func(w *world) { w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value = "none" }) },
			status: 200, body: `{"message":"Node \"hv1\" is already being set in secondary coordinator state."}`, wish: "none"},
		{name: "secondary of the next", node: "hv2", form: "state=secondary", before: func(w *world) { w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value = "hv2" }) },
			status: 400, body: `{"message":"Node \"hv2\" is about to become primary; name the node that shall be primary instead."}`, wish: "hv2"},
		{name: "no candidate", node: "hv1", form: "state=secondary", before: stop(cluster.DaemonStop), status: 400,
			body: `{"message":"Node \"hv1\" keeps the primary role: no other coordinator could take it. Node \"hv2\" is not active: its daemon state is \"stop\"."}`, wish: "hv1"},
		{name: "only coordinator", node: "hv1", form: "state=secondary", before: func(w *world) { w.edit(func(s *cluster.Snapshot) { delete(s.Nodes, "hv2") }) },
			status: 400, body: `{"message":"Node \"hv1\" keeps the primary role: it is the only coordinator."}`, wish: "hv1"},
		{name: "no state", node: "hv1", form: "", status: 400, body: `{"message":{"state":"A valid state must be specified"}}`, wish: "hv1"},
		{name: "bad state", node: "hv1", form: "state=master", status: 400, body: `{"message":{"state":"A valid state must be specified"}}`, wish: "hv1"},
		{name: "no cluster", node: "hv1", form: "state=primary", before: func(w *world) { w.edit(func(s *cluster.Snapshot) { s.ClusterName.Present = false }) },
			status: 400, body: "{\"message\":\"There is no cluster yet: make one with `pvc cluster init --name NAME`.\"}", wish: "hv1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if c.before != nil {
				c.before(w)
			}
			status, body := w.post("/api/v1/node/"+c.node+"/coordinator-state", c.form)
			w.expect(c.name, status, body, c.status, c.body)
			if got := w.store.snap.PrimaryNode.Value; got != c.wish {
				t.Errorf("primary_node is %q, want %q", got, c.wish)
			}
		})
	}
}

// Arguments may stand in the query, a form or a JSON body.
func TestWhereArgumentsStand(t *testing.T) {
	for name, send := range map[string]func(*world) (int, string){
		"query": func(w *world) (int, string) {
			return w.do("POST", "/api/v1/node/hv2/coordinator-state?state=primary", "", "")
		},
		"form": func(w *world) (int, string) { return w.post("/api/v1/node/hv2/coordinator-state", "state=primary") },
		"json": func(w *world) (int, string) {
			return w.do("POST", "/api/v1/node/hv2/coordinator-state", "application/json", `{"state":"primary"}`)
		},
		"json over": func(w *world) (int, string) {
			return w.do("POST", "/api/v1/node/hv2/coordinator-state?state=secondary", "application/json; charset=utf-8", `{"state":"primary"}`)
		},
		"multipart": func(w *world) (int, string) {
			return w.do("POST", "/api/v1/node/hv2/coordinator-state", "multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"state\"\r\n\r\nprimary\r\n--x--\r\n")
		},
	} {
		w := newWorld(t)
		status, body := send(w)
		w.expect(name, status, body, 200, `{"message":"Setting node \"hv2\" in primary coordinator state."}`)
	}
}

// The wish is written by compare-and-set on what it was decided on.
func TestWishMeetsAnotherWriter(t *testing.T) {
	w := newWorld(t)
	w.store.beforeCommit = func(s *cluster.Snapshot) { s.PrimaryNode.Version++; s.PrimaryNode.Value = "none" }
	status, body := w.post("/api/v1/node/hv2/coordinator-state", "state=primary")
	w.expect("conflict", status, body, 200, `{"message":"Setting node \"hv2\" in primary coordinator state."}`)
	if w.store.commits != 2 || w.store.snap.PrimaryNode.Version != 9 {
		t.Errorf("%d commits, version %d", w.store.commits, w.store.snap.PrimaryNode.Version)
	}

	w = newWorld(t) // the target stops in between: decided anew, and refused
	w.store.beforeCommit = func(s *cluster.Snapshot) {
		s.PrimaryNode.Version++
		n := s.Nodes["hv2"]
		n.Daemon = present(cluster.DaemonStop)
		s.Nodes["hv2"] = n
	}
	status, body = w.post("/api/v1/node/hv2/coordinator-state", "state=primary")
	w.expect("refused anew", status, body, 400, `{"message":"Node \"hv2\" is not active: its daemon state is \"stop\"."}`)

	w = newWorld(t)
	w.store.outcomes = []cluster.Outcome{cluster.OutcomeConflict, cluster.OutcomeConflict, cluster.OutcomeConflict, cluster.OutcomeConflict, cluster.OutcomeConflict}
	if status, body := w.post("/api/v1/node/hv2/coordinator-state", "state=primary"); status != 409 {
		t.Errorf("endless conflict: %d %s", status, body)
	}
}

// A lost reply is settled, whether the write had happened or not (I8).
func TestLostReply(t *testing.T) {
	for _, applied := range []bool{true, false} {
		w := newWorld(t)
		w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, applied
		status, body := w.post("/api/v1/node/hv2/coordinator-state", "state=primary")
		w.expect("lost reply", status, body, 200, `{"message":"Setting node \"hv2\" in primary coordinator state."}`)
		if p := w.store.snap.PrimaryNode; p.Value != "hv2" || p.Version != 8 {
			t.Errorf("applied %t: %+v", applied, p)
		}
	}
}

// What cannot be settled is not called "nothing changed".
func TestReplyLostForGood(t *testing.T) {
	w := newWorld(t)
	w.store.outcomes = slices.Repeat([]cluster.Outcome{cluster.OutcomeUnknown}, 2*askAttempts)
	for path, form := range map[string]string{"/api/v1/node/hv2/coordinator-state": "state=primary", "/api/v1/status": "state=true"} {
		if status, body := w.post(path, form); status != 504 || !strings.Contains(body, "it may have happened, or may still") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestMaintenanceByStatus(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		form   string
		status int
		body   string
	}{
		{"state=false", 200, `{"message":"Cluster is already in normal mode"}`},
		{"state=true", 200, `{"message":"Successfully set cluster in maintenance mode"}`},
		{"state=true", 200, `{"message":"Cluster is already in maintenance mode"}`},
		{"state=false", 200, `{"message":"Successfully set cluster in normal mode"}`},
		{"state=maybe", 400, `{"message":{"state":"A valid state must be specified"}}`},
		{"", 400, `{"message":{"state":"A valid state must be specified"}}`},
	} {
		status, body := w.post("/api/v1/status", c.form)
		w.expect(c.form, status, body, c.status, c.body)
	}
	if len(w.store.history) != 2 {
		t.Errorf("history: %+v", w.store.history)
	}
}

func TestInitialize(t *testing.T) {
	w := newWorld(t)
	const sure = "yes-i-really-mean-it=true"
	for _, c := range []struct {
		form   string
		err    error
		status int
		body   string
	}{
		{"", nil, 400, `{"message":{"yes-i-really-mean-it":"Initialization is destructive; please confirm with the argument 'yes-i-really-mean-it'."}}`},
		{sure, nil, 200, `{"message":"Successfully initialized cluster"}`},
		{sure + "&overwrite=true&name=other", nil, 200, `{"message":"Successfully initialized cluster"}`},
		{sure, cluster.ErrConflict, 400, `{"message":"Cluster contains data and overwrite not set: changed by somebody else meanwhile"}`},
		{sure + "&overwrite=perhaps", nil, 400, `{"message":{"overwrite":"Must be true or false."}}`},
		{sure + "&name=a/b", nil, 400, `{"message":{"name":"\"a/b\" cannot name a cluster: use 1–63 letters, digits, '-', '_' or '.', and not \"none\"."}}`},
		{sure, cluster.ErrUnknown, 504, `{"message":"outcome unknown: the reply was lost"}`},
	} {
		w.store.initError = c.err
		status, body := w.post("/api/v1/initialize", c.form)
		w.expect(c.form, status, body, c.status, c.body)
	}
	if got := strings.Join(w.store.initialized, ", "); got != "demo false, other true, demo false, demo false" {
		t.Errorf("initialized: %s", got)
	}
}

// Every read and every change answers 503 with the time, at once.
func TestStoreAway(t *testing.T) {
	w := newWorld(t)
	w.away()
	for _, path := range []string{"/status", "/status/primary_node", "/node", "/node/hv1", "/node/hv1/daemon-state", "/cluster", "/transition", "/fences", "/explain/primary", "/explain/hv1", "/maintenance"} {
		status, body := w.get(Prefix + path)
		a := decode[Away](t, body)
		if status != 503 || a.AwaySeconds != 12 || !a.Stale || a.Last == nil || !strings.Contains(a.Message, "away for 12s") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for _, change := range []string{"/status state=true", "/node/hv2/coordinator-state state=primary", "/switch to=hv2", "/maintenance state=true"} {
		path, form, _ := strings.Cut(change, " ")
		if status, body := w.post(Prefix+path, form); status != 503 || !strings.Contains(body, "away for 12s") {
			t.Errorf("%s: %d %s", change, status, body)
		}
	}
	if status, _ := w.get("/readyz"); status != 503 {
		t.Errorf("readyz: %d", status)
	}
	if status, _ := w.get("/healthz"); status != 200 {
		t.Errorf("healthz: %d", status)
	}
	// The holder is not called expired by who cannot see.
	_, body := w.get(Prefix + "/status/primary_node")
	if !strings.Contains(body, `"last":{"primary_node":"hv1"}`) {
		t.Errorf("last known primary: %s", body)
	}
}

func TestWrongMethodAndBodies(t *testing.T) {
	w := newWorld(t)
	status, body := w.do(http.MethodDelete, "/api/v1/node/hv1/coordinator-state", "", "")
	if status != 405 || !strings.Contains(body, "DELETE is not possible here") {
		t.Errorf("%d %s", status, body)
	}
	for name, c := range map[string]struct {
		contentType, body string
		status            int
	}{
		"broken":    {"application/json", `{"state":`, 400},
		"no object": {"application/json", `["state"]`, 400},
		"two":       {"application/json", `{"state":"primary"}{}`, 400},
		"nested":    {"application/json", `{"state":{"is":"primary"}}`, 400},
		"empty":     {"application/json", ``, 400},
		"large":     {"application/json", `{"state":"` + strings.Repeat("x", maxBodyBytes) + `"}`, 413},
		"bad form":  {"application/x-www-form-urlencoded", `state=%zz`, 400},
		"big form":  {"application/x-www-form-urlencoded", "state=" + strings.Repeat("x", maxBodyBytes), 413},
	} {
		status, body := w.do("POST", "/api/v1/status", c.contentType, c.body)
		if status != c.status || !strings.HasPrefix(body, `{"message":`) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if w.store.commits != 0 {
		t.Errorf("%d commits", w.store.commits)
	}
	if status, body := w.get("/api/v1/node?limit=("); status != 400 || !strings.HasPrefix(body, `{"message":{"limit":"Not a regular expression`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := w.get("/api/v1/node?daemon_state=asleep"); status != 400 || !strings.Contains(body, `"daemon_state":"Must be one of: init, run`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := w.get("/api/v1/node/hv1/log?lines=0"); status != 400 || body != `{"message":{"lines":"Must be a whole number from 1 to 10000."}}` {
		t.Errorf("%d %s", status, body)
	}
}
