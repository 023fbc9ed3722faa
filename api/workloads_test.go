package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

const workloadsPath = "/api/v1/workloads"

// leased has node leases in use.
func (w *world) leased() {
	w.edit(func(s *cluster.Snapshot) {
		s.Quorum = present(cluster.QuorumSet{Version: 1, Nodes: []cluster.NodeID{"hv1", "hv2"}, N: 1})
	})
}

// has puts a workload's record there.
func (w *world) has(wl cluster.Workload, change ...func(*cluster.Versioned[cluster.Workload])) {
	v := cluster.Versioned[cluster.Workload]{Present: true, Value: wl, Version: 3, Mzxid: 9}
	for _, f := range change {
		f(&v)
	}
	w.edit(func(s *cluster.Snapshot) {
		s.Workloads = maps.Clone(s.Workloads)
		if s.Workloads == nil {
			s.Workloads = map[string]cluster.Versioned[cluster.Workload]{}
		}
		s.Workloads[wl.Name] = v
	})
}

// becomes changes a record as the primary does.
func (w *world) becomes(name string, change func(*cluster.Workload)) {
	w.edit(func(s *cluster.Snapshot) { becomes(s, name, change) })
}

func becomes(s *cluster.Snapshot, name string, change func(*cluster.Workload)) {
	s.Workloads = maps.Clone(s.Workloads)
	v := s.Workloads[name]
	next := v.Value.Clone()
	change(&next)
	v.Value, v.Version = next, v.Version+1
	s.Workloads[name] = v
}

// record is the workload as it is written.
func (w *world) record(name string) cluster.Workload { return w.store.snap.Workloads[name].Value }

var aCache = cluster.Workload{Version: 1, Name: "cache", ID: "w1", Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Ephemeral: true, Wanted: true, Autostart: true,
	Replicas: 1, Chain: []cluster.NodeID{"hv1", "hv2"}, State: cluster.WorkloadRunning, Params: map[string]string{"port": "7001", "masterpassword": "hidden!"}}

var aWeb = cluster.Workload{Version: 1, Name: "web", ID: "w2", Kind: cluster.WorkloadMovable, Driver: cluster.DriverOCF, Agent: "heartbeat:Dummy", Wanted: true, Autostart: true,
	Chain: []cluster.NodeID{"hv2"}, State: cluster.WorkloadRunning}

// withWorkloads has a replicated workload, a movable one and one that cannot be read.
func withWorkloads(w *world) {
	w.leased()
	w.has(aCache)
	w.has(aWeb)
	w.has(cluster.Workload{Name: "junk"}, func(v *cluster.Versioned[cluster.Workload]) {
		v.Value, v.Err = cluster.Workload{}, errors.New("its driver is of a newer program")
	})
}

func TestWorkloadsAreListed(t *testing.T) {
	w := newWorld(t)
	if _, body := w.get(workloadsPath); body != "[]" {
		t.Errorf("nothing: %s", body)
	}
	withWorkloads(w)
	for query, want := range map[string]string{"": "cache junk web", "?limit=%5Ec": "cache", "?node=hv2": "cache web", "?node=hv1": "cache", "?kind=movable": "web", "?driver=redis&state=running": "cache", "?state=unreadable": "junk", "?node=hv9": ""} {
		_, body := w.get(workloadsPath + query)
		var names []string
		for _, v := range decode[[]WorkloadView](t, body) {
			names = append(names, v.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
	_, body := w.get(workloadsPath + "/cache")
	if v := decode[WorkloadView](t, body); v.Params["port"] != "7001" || strings.Contains(body, "hidden!") || v.Version != 3 || v.Chain[1] != "hv2" {
		t.Errorf("%s", body)
	}
	if w.record("cache").Params["masterpassword"] != "hidden!" {
		t.Error("showing it has changed the record")
	}
	if status, body := w.get(workloadsPath + "/none"); status != 404 || !strings.Contains(body, "pvc workload list") {
		t.Errorf("%d %s", status, body)
	}
	_, body = w.get("/api/v1/status")
	if vms := decode[Status](t, body).VMs; vms["total"] != 6 || vms["running"] != 2 || vms["unreadable"] != 1 { // three of which nobody knows anything
		t.Errorf("%v", vms)
	}
	if !strings.Contains(body, "WORKLOAD_junk") {
		t.Errorf("%s", body)
	}
	if v := decode[ClusterView](t, second(w.get("/api/v1/cluster"))); len(v.Workloads) != 3 || v.Workloads[2].Driver != "ocf:heartbeat:Dummy" {
		t.Errorf("%+v", v.Workloads)
	}
}

func second(_ int, body string) string { return body }

// The example of the first page works as it stands there, and so does each driver.
func TestWorkloadsAreAdded(t *testing.T) {
	for form, want := range map[string]func(cluster.Workload) bool{
		"name=cache&driver=redis&chain=hv1,hv2&ephemeral=true": func(w cluster.Workload) bool {
			return w.Kind == cluster.WorkloadReplicated && w.Ephemeral && w.Replicas == 1 && len(w.Chain) == 2 && w.Chain[0] == "hv1" && w.Wanted && w.Autostart
		},
		"name=a&driver=ocf:heartbeat:Dummy": func(w cluster.Workload) bool {
			return w.Kind == cluster.WorkloadMovable && w.Agent == "heartbeat:Dummy" && w.Chain == nil && w.Replicas == 0
		},
		"name=a&driver=ocf&agent=pacemaker:Stateful&chain=hv1,hv2,hv3": func(w cluster.Workload) bool { return w.Kind == cluster.WorkloadReplicated && w.Replicas == 2 },
		"name=a&driver=systemd:foo@.service&stopped=1&autostart=false": func(w cluster.Workload) bool {
			return w.Driver == cluster.DriverSystemd && w.Agent == "foo@.service" && !w.Wanted && !w.Autostart
		},
		`name=a&driver=exec&chain=hv3&params={"command":"/bin/true","n":3,"no":null}&priority=1000&selector=load&memory=64&vcpus=2&protected=1`: func(w cluster.Workload) bool {
			return w.Params["command"] == "/bin/true" && w.Params["n"] == "3" && len(w.Params) == 2 && w.Priority == 1000 && w.MemoryMiB == 64 && w.Selector == "load" && w.Protected && w.Chain[0] == "hv3"
		},
		"name=a&driver=redis":                             func(w cluster.Workload) bool { return w.Replicas == 1 && w.Chain == nil },
		"name=a&driver=redis&replicas=0":                  func(w cluster.Workload) bool { return w.Kind == cluster.WorkloadReplicated && w.Replicas == 0 },
		"name=a&driver=exec&coordinators_only=1":          func(w cluster.Workload) bool { return len(w.Nodes) == 2 && w.CoordinatorsOnly },
		"name=a&driver=exec&nodes=hv1+hv3&kind=movable":   func(w cluster.Workload) bool { return len(w.Nodes) == 2 && w.Nodes[1] == "hv3" },
		"name=a&driver=redis&nodes=hv1,hv2&chain=hv2,hv1": func(w cluster.Workload) bool { return w.Chain[0] == "hv2" },
	} {
		w := newWorld(t)
		w.leased()
		status, body := w.post(workloadsPath, form)
		a := decode[WorkloadOrder](t, body)
		made := w.record(a.Workload.Name)
		if status != 202 || a.Order != made.ID || made.Validate() != nil || made.State != cluster.WorkloadNew || !want(made) {
			t.Errorf("%s: %d %s\n%+v", form, status, body, made)
		}
		if e := w.store.history; len(e) != 1 || e[0].Kind != "workload_order" || e[0].Fields["workload"] != made.Name || e[0].Fields["order"] != made.ID {
			t.Errorf("%s: history %+v", form, e)
		}
	}
}

// What makes no sense is refused by name, and nothing is written, run or asked.
func TestBadWorkloads(t *testing.T) {
	for form, want := range map[string]string{
		"driver=redis":                                          `"name":"A name of`,
		"name=A&driver=redis":                                   `is not a workload's name`,
		"name=a":                                                `"driver":"A driver must be specified`,
		"name=a&driver=mysql":                                   `There is no driver \"mysql\"`,
		"name=a&driver=ocf":                                     "Name its agent",
		"name=a&driver=redis:x":                                 "takes no agent",
		"name=a&driver=ocf:x:y&agent=x:z":                       "names the agent",
		"name=a&driver=redis&kind=floating":                     "Must be one of: replicated, movable",
		"name=a&driver=exec&chain=hv1,hv2":                      "A movable workload has one copy",
		"name=a&driver=exec&replicas=1":                         "A movable workload has one copy",
		"name=a&driver=redis&chain=hv1,hv1":                     `Node \"hv1\" is named twice`,
		"name=a&driver=redis&chain=hv1,hv9":                     `No node named \"hv9\" is present in the cluster; nodes: hv1, hv2, hv3`,
		"name=a&driver=redis&chain=hv1,../x":                    `"chain"`,
		"name=a&driver=redis&chain=hv1,hv3&nodes=hv1,hv2":       "not among the nodes that may",
		"name=a&driver=redis&chain=hv1,hv2&replicas=3":          "The chain has 1 replicas",
		"name=a&driver=redis&replicas=1&nodes=hv1":              "2 copies need as many nodes",
		"name=a&driver=redis&chain=hv1,hv3&coordinators_only=1": `Node \"hv3\" is a hypervisor`,
		"name=a&driver=redis&priority=1001":                     "whole number from 0 to 1000",
		"name=a&driver=redis&selector=taste":                    "Must be one of: mem",
		"name=a&driver=redis&params=[]":                         "Must be a JSON object of texts",
		`name=a&driver=redis&params={"a":{"b":1}}`:              `The value of \"a\" must be a text`,
		`name=a&driver=redis&params={"":"x"}`:                   `its parameter \"\" is empty`,
		"name=a&driver=redis&replicas=8":                        "from 0 to 7",
		"name=a&driver=redis&colour=red":                        "There is no such argument here",
		"name=a&driver=redis&just_validate=1":                   "There is no such argument here",
		"name=a&driver=exec&nodes=hv1,hv3&coordinators_only=1":  `Node \"hv3\" is a hypervisor`,
		"name=a&driver=exec&nodes=hv9":                          `No node named \"hv9\" is present`,
		"name=a&driver=exec&nodes=hv1,hv1":                      `Node \"hv1\" is named twice`,
		"name=a&driver=redis&kind=movable&replicas=1":           "A movable workload has one copy",
		"name=a&driver=redis&ephemeral=perhaps":                 `"ephemeral"`,
		"name=a&driver=redis&replicas=-1":                       "from 0 to 7",
		"name=a&driver=redis&memory=1e9":                        `"memory"`,
	} {
		w := newWorld(t)
		w.leased()
		w.check = func(context.Context, cluster.Workload) error { t.Errorf("%s: its driver was asked", form); return nil }
		status, body := w.post(workloadsPath, form)
		if status != 400 || !strings.Contains(body, want) || w.store.commits != 0 {
			t.Errorf("%s: %d %s, %d writes", form, status, body, w.store.commits)
		}
	}
	w := newWorld(t)
	if status, body := w.post(workloadsPath, "name=a&driver=redis"); status != 400 || !strings.Contains(body, "workloads_without_leases") || w.store.commits != 0 {
		t.Errorf("without leases: %d %s", status, body)
	}
	withWorkloads(w)
	if status, body := w.post(workloadsPath, "name=cache&driver=exec"); status != 409 || !strings.Contains(body, "There is a workload") {
		t.Errorf("taken: %d %s", status, body)
	}
	w.check = func(_ context.Context, wl cluster.Workload) error {
		return fmt.Errorf("agent %s knows no parameter %q", wl.Agent, "colour")
	}
	status, body := w.post(workloadsPath, `name=a&driver=ocf:heartbeat:Dummy&params={"colour":"red"}`)
	if status != 400 || !strings.Contains(body, `agent heartbeat:Dummy knows no parameter \"colour\"`) || w.store.commits != 0 {
		t.Errorf("checked: %d %s", status, body)
	}
	if status, _ := w.post(workloadsPath, `name=a&driver=ocf:heartbeat:Dummy&unchecked=1`); status != 202 {
		t.Errorf("unchecked: %d", status)
	}
	w.edit(func(s *cluster.Snapshot) {
		s.Workloads = maps.Clone(s.Workloads)
		for i := range cluster.MaxWorkloads {
			s.Workloads[fmt.Sprint(i)] = cluster.Versioned[cluster.Workload]{}
		}
	})
	if status, body := w.post(workloadsPath, "name=more&driver=redis"); status != 400 || !strings.Contains(body, "no more are managed") {
		t.Errorf("too many: %d %s", status, body)
	}
}

// An agent that hangs when it is asked for its metadata costs a few seconds.
func TestAnAgentThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.RequestTimeout = 10 * time.Second })
		w.leased()
		w.check = func(ctx context.Context, _ cluster.Workload) error { <-ctx.Done(); return ctx.Err() }
		began := time.Now()
		status, body := w.post(workloadsPath, "name=a&driver=ocf:heartbeat:Dummy")
		if took := time.Since(began); status != 400 || !strings.Contains(body, "in time") || took != checkPatience || w.store.commits != 0 {
			t.Errorf("%d %s after %s", status, body, took)
		}
	})
}

func TestWorkloadsAreChanged(t *testing.T) {
	for _, c := range []struct {
		name, form string
		status     int
		text       string
		want       func(cluster.Workload) bool // nil: nothing is written
	}{
		{"cache", "priority=5&selector=vms", 200, "Changed of workload \\\"cache\\\": priority, selector", func(w cluster.Workload) bool { return w.Priority == 5 && w.Selector == "vms" }},
		{"cache", `params={"port":"7002","extra":"1"}`, 200, "from its next start on", func(w cluster.Workload) bool {
			return w.Params["port"] == "7002" && w.Params["masterpassword"] == "hidden!" && w.Params["extra"] == "1"
		}},
		{"cache", `params={"port":null}`, 200, "Changed", func(w cluster.Workload) bool { return len(w.Params) == 1 }},
		{"web", "memory=100&vcpus=1&autostart=0&protected=1&ephemeral=1", 200, "Changed", func(w cluster.Workload) bool { return w.MemoryMiB == 100 && !w.Autostart && w.Protected }},
		{"web", "nodes=hv2,hv3", 200, "Changed", func(w cluster.Workload) bool { return len(w.Nodes) == 2 }},
		{"lost", "nodes=hv1,hv2", 200, "Changed", func(w cluster.Workload) bool { return len(w.Nodes) == 2 }}, // of a node that was removed
		{"web", "priority=0", 200, `"already":true`, nil},
		{"web", "", 400, "Nothing is named", nil},
		{"web", "nodes=hv1,hv3", 400, `Node \"hv2\" is in its chain`, nil},
		{"web", "replicas=1", 400, "A movable workload has one copy", nil},
		{"cache", "replicas=2", 400, "the length of a chain never changes", nil},
		{"cache", "coordinators_only=1&nodes=hv1,hv2,hv3", 400, "is a hypervisor", nil},
		{"web", "kind=replicated", 400, "There is no such argument here", nil},
		{"junk", "priority=1", 400, "cannot be read", nil},
		{"none", "priority=1", 404, "There is no workload", nil},
	} {
		w := newWorld(t)
		withWorkloads(w)
		lost := aCache
		lost.Name, lost.Chain, lost.Nodes = "lost", []cluster.NodeID{"hv1", "hv8"}, []cluster.NodeID{"hv1", "hv8"}
		w.has(lost)
		status, body := w.do(put, workloadsPath+"/"+c.name, "application/x-www-form-urlencoded", c.form)
		if status != c.status || !strings.Contains(body, c.text) || (w.store.commits > 0) != (c.want != nil) || c.want != nil && !c.want(w.record(c.name)) {
			t.Errorf("%s %s: %d %s, %d writes, %+v", c.name, c.form, status, body, w.store.commits, w.record(c.name))
		}
	}
}

// Orders are written into the record for the primary; what makes no sense, or is so
// already, is not.
func TestWorkloadsAreOrdered(t *testing.T) {
	stopped := func(w *world) {
		w.becomes("web", func(w *cluster.Workload) { w.Wanted, w.State = false, cluster.WorkloadStopped })
	}
	for _, c := range []struct {
		name, method, path, form string
		before                   func(*world)
		status                   int
		text                     string
		op                       cluster.WorkloadOp // written; empty: nothing is
	}{
		{"move", post, "/web/move", "node=hv1", nil, 202, "Ordered: move workload web to node hv1", cluster.WorkloadMove},
		{"move anywhere", post, "/web/move", "", nil, 202, "Ordered: move workload web.", cluster.WorkloadMove},
		{"move to where it is", post, "/web/move", "node=hv2", nil, 200, `is on node \"hv2\" already`, ""},
		{"move to nobody", post, "/web/move", "node=hv9", nil, 400, `No node named \"hv9\"`, ""},
		{"move to a path", post, "/web/move", "node=../x", nil, 400, "no node's name", ""},
		{"move to a flushed node", post, "/web/move", "node=hv1", func(w *world) {
			w.node("hv1", func(n *cluster.NodeView) { n.Domain.Value = cluster.DomainFlushed })
		}, 400, `its domain state is \"flushed\"`, ""},
		{"move to where it may not be", post, "/web/move", "node=hv1", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
		}, 400, "only on hv2, hv3", ""},
		{"move what is stopped", post, "/web/move", "node=hv1", stopped, 400, "is not to run", ""},
		{"promote", post, "/cache/promote", "node=hv2", nil, 202, "Ordered: promote the copy of workload cache on node hv2", cluster.WorkloadPromote},
		{"promote the head", post, "/cache/promote", "node=hv1", nil, 200, "is the active one already", ""},
		{"promote the head that does not run", post, "/cache/promote", "node=hv1", func(w *world) {
			w.becomes("cache", func(w *cluster.Workload) { w.State = cluster.WorkloadUnsafe })
		}, 202, "Ordered", cluster.WorkloadPromote},
		{"promote nobody", post, "/cache/promote", "", nil, 400, "The node whose copy shall be active must be specified", ""},
		{"promote outside", post, "/cache/promote", "node=hv3", nil, 400, `is not in the chain of workload \"cache\" (hv1, hv2)`, ""},
		{"promote what is movable", post, "/web/promote", "node=hv1", nil, 400, "pvc workload move web --node hv1", ""},
		{"start what runs", post, "/web/start", "", nil, 200, "runs already", ""},
		{"start", post, "/web/start", "", stopped, 202, "Ordered: start workload web", cluster.WorkloadStart},
		{"stop", post, "/web/stop", "", nil, 202, "Ordered: stop workload web", cluster.WorkloadStop},
		{"stop what is stopped", post, "/web/stop", "", stopped, 200, "is stopped already", ""},
		{"probe", post, "/cache/probe", "", nil, 202, "Ordered: probe workload cache", cluster.WorkloadProbe},
		{"remove", del, "/cache", "", nil, 400, "removing it takes the last one", ""},
		{"destroy", del, "/cache?destroy=1", "", nil, 202, "Ordered: remove workload cache with its last copy", cluster.WorkloadRemove},
		{"remove what is stopped", del, "/web", "", stopped, 202, "Ordered: remove workload web", cluster.WorkloadRemove},
		{"remove what has failed", del, "/web", "", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) { w.State = cluster.WorkloadFailed })
		}, 202, "Ordered: remove workload web", cluster.WorkloadRemove},
		{"remove what has no chain", del, "/web", "", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) { w.Chain, w.State = nil, cluster.WorkloadNew })
		}, 202, "Ordered", cluster.WorkloadRemove},
		{"start what is being removed", post, "/web/start", "", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) {
				w.Request = &cluster.WorkloadRequest{ID: "r0", Op: cluster.WorkloadRemove, By: "ada"}
			})
		}, 400, "is being removed, by ada", ""},
		{"another order stands", post, "/web/move", "node=hv1", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) {
				w.Request = &cluster.WorkloadRequest{ID: "r0", Op: cluster.WorkloadStop, By: "ada"}
			})
		}, 202, "takes the place of the order to stop workload web, by ada", cluster.WorkloadMove},
		{"the same order stands", post, "/web/move", "node=hv1", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) {
				w.Request = &cluster.WorkloadRequest{ID: "r0", Op: cluster.WorkloadMove, Node: "hv1", By: "ada"}
			})
		}, 200, `"already":true,"order":"r0"`, ""},
		{"unreadable", post, "/junk/stop", "", nil, 400, "cannot be read", ""},
		{"unknown", post, "/none/stop", "", nil, 404, "There is no workload", ""},
	} {
		w := newWorld(t)
		withWorkloads(w)
		if c.before != nil {
			c.before(w)
		}
		status, body := w.do(c.method, workloadsPath+c.path, "application/x-www-form-urlencoded", c.form)
		name, _, _ := strings.Cut(strings.TrimPrefix(c.path, "/"), "/")
		name, _, _ = strings.Cut(name, "?")
		o := w.record(name).Request
		if status != c.status || !strings.Contains(body, c.text) || (w.store.commits > 0) != (c.op != "") {
			t.Errorf("%s: %d %s, %d writes", c.name, status, body, w.store.commits)
		}
		if c.op == "" {
			continue
		}
		if o == nil || o.Op != c.op || o.By == "" || o.ID == "" || w.record(name).Wanted != (c.op != cluster.WorkloadStop && (c.op != cluster.WorkloadRemove || c.name != "remove what is stopped")) {
			t.Errorf("%s: written %+v, %+v", c.name, o, w.record(name))
		}
		if e := w.store.history; len(e) != 1 || e[0].Fields["order"] != o.ID {
			t.Errorf("%s: history %+v", c.name, e)
		}
	}
}

// Whoever waits is told what became of the order: done, refused, overtaken and by
// whom, or that its time is over.
func TestOrdersAreWaitedFor(t *testing.T) {
	answer := func(done bool) func(*cluster.Workload) {
		return func(w *cluster.Workload) {
			if w.Request == nil {
				return
			}
			w.Answer, w.Request = &cluster.WorkloadAnswer{ID: w.Request.ID, Done: done, Text: "it is so"}, nil
		}
	}
	for _, c := range []struct {
		name, method, path, form string
		then                     func(*world)
		status                   int
		text                     string
	}{
		{"done", post, "/web/move", "node=hv1&wait=10", func(w *world) { w.becomes("web", answer(true)) }, 200, `"message":"it is so","already":false`},
		{"refused", post, "/web/move", "node=hv1&wait=10", func(w *world) { w.becomes("web", answer(false)) }, 409, `"outcome":"refused"`},
		{"overtaken", post, "/web/move", "node=hv1&wait=10", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) {
				w.Request = &cluster.WorkloadRequest{ID: "r9", Op: cluster.WorkloadStop, By: "ada"}
			})
		}, 409, "Another order has taken its place before it was carried out: stop workload web, by ada."},
		{"overtaken and answered", post, "/web/move", "node=hv1&wait=10", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) {
				w.Request, w.Answer = nil, &cluster.WorkloadAnswer{ID: "r9", Done: true}
			})
		}, 409, "Another order has come after it"},
		{"removed meanwhile", post, "/web/move", "node=hv1&wait=10", func(w *world) { w.removed("web") }, 409, "was removed meanwhile"},
		{"removed", del, "/web?destroy=1&wait=10", "", func(w *world) { w.removed("web") }, 200, "Removed workload"},
		{"removed and made anew", del, "/web?destroy=1&wait=10", "", func(w *world) { w.becomes("web", func(w *cluster.Workload) { w.ID = "w9" }) }, 200, "Removed workload"},
		{"in vain", post, "/web/move", "node=hv1&wait=3", func(*world) {}, 202, `"outcome":"waiting"`},
		{"no order", post, "/web/start", "wait=10", func(*world) {}, 200, "runs already"},
		{"added", post, "", "name=new&driver=exec&wait=10", func(w *world) {
			w.becomes("new", func(w *cluster.Workload) { w.State, w.Chain = cluster.WorkloadRunning, []cluster.NodeID{"hv3"} })
		}, 200, `Workload \"new\" runs on hv3`},
		{"added in vain", post, "", "name=new&driver=exec&wait=10", func(w *world) {
			w.becomes("new", func(w *cluster.Workload) { w.State, w.Reason = cluster.WorkloadFailed, "no such program" })
		}, 409, "is failed: no such program"},
		{"added to be stopped", post, "", "name=new&driver=exec&wait=10&stopped=1", func(*world) {}, 202, "Added"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			withWorkloads(w)
			then := make(chan struct{})
			go func() {
				defer close(then)
				time.Sleep(2 * time.Second)
				c.then(w)
			}()
			status, body := w.do(c.method, workloadsPath+c.path, "application/x-www-form-urlencoded", c.form)
			if status != c.status || !strings.Contains(body, c.text) {
				t.Errorf("%s: %d %s", c.name, status, body)
			}
			<-then
		})
	}
}

func (w *world) removed(name string) {
	w.edit(func(s *cluster.Snapshot) {
		s.Workloads = maps.Clone(s.Workloads)
		delete(s.Workloads, name)
	})
}

// An order that rests on an old view conflicts and is decided anew; a lost reply is
// settled, whether the write has happened or not, and also where the primary has
// carried it out meanwhile. None is written twice.
func TestOrdersAndOtherWriters(t *testing.T) {
	w := newWorld(t)
	withWorkloads(w)
	w.store.beforeCommit = func(s *cluster.Snapshot) {
		becomes(s, "web", func(w *cluster.Workload) { w.Chain, w.Pass = []cluster.NodeID{"hv1"}, "p2" })
	}
	status, body := w.post(workloadsPath+"/web/move", "node=hv1")
	if status != 200 || !strings.Contains(body, `is on node \"hv1\" already`) || w.record("web").Request != nil || w.record("web").Pass != "p2" {
		t.Errorf("decided on an old view: %d %s, %+v", status, body, w.record("web"))
	}
	for _, applied := range []bool{true, false} {
		w := newWorld(t)
		withWorkloads(w)
		w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, applied
		if status, body := w.post(workloadsPath+"/web/stop", ""); status != 202 || w.record("web").Request == nil || w.record("web").Wanted || len(w.store.history) != 1 {
			t.Errorf("lost, applied %t: %d %s, %d events", applied, status, body, len(w.store.history))
		}
	}
	w = newWorld(t)
	withWorkloads(w)
	w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
	w.store.afterUnknown = func(s *cluster.Snapshot) { // carried out before it is looked at
		s.Workloads = maps.Clone(s.Workloads)
		delete(s.Workloads, "cache")
	}
	if status, body := w.do(del, workloadsPath+"/cache?destroy=1&wait=5", "", ""); status != 200 || !strings.Contains(body, "Removed workload") {
		t.Errorf("removed before it was looked at: %d %s", status, body)
	}
	w = newWorld(t)
	withWorkloads(w)
	w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
	w.store.historyError = cluster.ErrDeadline
	if status, body := w.post(workloadsPath+"/web/stop", ""); status != 504 || !strings.Contains(body, "reply was lost") {
		t.Errorf("nobody can tell: %d %s", status, body)
	}
	w = newWorld(t)
	w.leased()
	w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
	if status, body := w.post(workloadsPath, "name=a&driver=redis"); status != 202 || len(w.store.history) != 1 {
		t.Errorf("added, and the reply lost: %d %s", status, body)
	}
	w.store.beforeCommit = func(s *cluster.Snapshot) {
		s.Workloads = maps.Clone(s.Workloads)
		s.Workloads["b"] = cluster.Versioned[cluster.Workload]{Present: true, Value: cluster.Workload{Name: "b", ID: "theirs"}}
	}
	if status, _ := w.post(workloadsPath, "name=b&driver=redis"); status != 409 || w.record("b").ID != "theirs" {
		t.Errorf("two add one name: %d %+v", status, w.record("b"))
	}
}

// An operator who waits is woken by a change of a workload and by nothing less.
func TestWorkloadsMakeVersions(t *testing.T) {
	w := newWorld(t)
	withWorkloads(w)
	version := func() string { return w.server.view.current(w.clock.Now()).version }
	first := version()
	w.beat("hv2")
	if version() != first {
		t.Error("a keepalive is a change")
	}
	w.becomes("web", func(w *cluster.Workload) { w.Answer = &cluster.WorkloadAnswer{ID: "x"} })
	if version() == first {
		t.Error("an answer is no change")
	}
}

func TestWorkloadsAreExplained(t *testing.T) {
	w := newWorld(t)
	withWorkloads(w)
	for _, c := range []struct {
		name   string
		before func(*world)
		path   string
		want   []string
	}{
		{"running", func(*world) {}, "cache", []string{`Workload \"cache\" is running; its active copy is to be on node hv1`, "nothing is missing", "auto-reprovision is on, 0 of 1 nodes are spent"}},
		{"by its whole name", func(*world) {}, "workload:web", []string{"driver ocf:heartbeat:Dummy, chain hv2; it is to run"}},
		{"unreadable", func(*world) {}, "junk", []string{"cannot be read: its driver is of a newer program", "left alone"}},
		{"empty node", func(w *world) {
			w.edit(func(s *cluster.Snapshot) {
				s.Reprovision = present(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 1, Count: 1, Nodes: []cluster.NodeID{"hv1"}})
			})
			w.becomes("cache", func(w *cluster.Workload) { w.Chain = []cluster.NodeID{"hv2", cluster.NoCopy} })
		}, "cache", []string{"hv1 is empty: rebalance when healthy", "1 of the 2 places of its chain to be filled", "1 of 1 nodes are spent: it does nothing more until"}},
		{"unsafe", func(w *world) {
			w.becomes("cache", func(w *cluster.Workload) { w.State, w.Reason = cluster.WorkloadUnsafe, "hv1 came back empty" })
		}, "cache", []string{"so that it is not. Hv1 came back empty.", "pvc workload promote cache --node NODE"}},
		{"asked", func(w *world) {
			w.becomes("web", func(w *cluster.Workload) {
				w.Answer = &cluster.WorkloadAnswer{ID: "p", Done: true, Text: "asked", Copies: []cluster.CopyReport{{Node: "hv2", State: cluster.CopyActive, Offset: 7, HasOffset: true}, {Node: "hv1", Unknown: true, Error: "silent"}}}
			})
		}, "web", []string{"node hv2 said of its copy: active, offset 7", "node hv1 said of its copy: not known: silent"}},
		{"silent", func(w *world) {
			w.node("hv2", func(n *cluster.NodeView) {
				n.Alive, n.Daemon = cluster.Versioned[cluster.Alive]{}, present(cluster.DaemonDead)
			})
		}, "web", []string{"not proven dead: its copy may still run", "the word of node hv2, or a proof"}},
		{"no node and no workload", func(*world) {}, "nobody", []string{"is neither a node nor a workload nor"}},
	} {
		c.before(w)
		_, body := w.get("/api/v1/explain/" + c.path)
		for _, want := range c.want {
			if !strings.Contains(body, want) {
				t.Errorf("%s: %q is missing in %s", c.name, want, body)
			}
		}
	}
}

const reprovisionPath = "/api/v1/settings/autoReprovision"

// S128, and S127: the texts, and what a change keeps.
func TestAutoReprovisionSettings(t *testing.T) {
	w := newWorld(t)
	status, body := w.get(reprovisionPath)
	w.expect("defaults", status, body, 200, `{"enabled":true,"max_nodes":1,"count":0}`)
	for form, want := range map[string]string{
		"":                                      `{"errors":{"enabled":"The value of \"enabled\" must be true or false"}}`,
		"enabled=maybe":                         `{"errors":{"enabled":"The value of \"enabled\" must be true or false"}}`,
		"enabled=true":                          `{"errors":{"maxNodes":"The value of \"maxNodes\" must be a positive integer"}}`,
		"enabled=true&maxNodes=0":               `{"errors":{"maxNodes":"The value of \"maxNodes\" must be a positive integer"}}`,
		"enabled=true&maxNodes=x":               `{"errors":{"maxNodes":"The value of \"maxNodes\" must be a positive integer"}}`,
		"enabled=true&maxNodes=-1":              `{"errors":{"maxNodes":"The value of \"maxNodes\" must be a positive integer"}}`,
		"enabled=true&maxNodes=101":             `{"errors":{"maxNodes":"The value of \"maxNodes\" must be a positive integer in a range from 1 to 100"}}`,
		"enabled=true&maxNodes=0&just_validate": `{"errors":{"maxNodes":"The value of \"maxNodes\" must be a positive integer"}}`,
		"just_validate=1":                       `{"errors":{"enabled":"The value of \"enabled\" must be true or false"}}`,
		"enabled=true&just_validate=1":          `{"errors":{"maxNodes":"The value of \"maxNodes\" must be a positive integer"}}`,
	} {
		status, body := w.post(reprovisionPath, form)
		w.expect(form, status, body, 400, want)
	}
	for _, form := range []string{"enabled=true&maxNodes=3&just_validate=1", "enabled=false&just_validate=1"} {
		status, body := w.post(reprovisionPath, form)
		w.expect(form, status, body, 200, `{"errors":null}`)
	}
	if w.store.commits != 0 {
		t.Errorf("a check or a refusal wrote %d times", w.store.commits)
	}
	settings := func() cluster.ReprovisionSettings { return w.store.snap.Reprovision.Value }
	w.edit(func(s *cluster.Snapshot) {
		s.Reprovision = present(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 2, Count: 2, Pass: "p7", Nodes: []cluster.NodeID{"hv1", "hv2"}})
	})
	if status, body := w.post(reprovisionPath, "enabled=true&maxNodes=3"); status != 200 || !strings.Contains(body, "2 of 3 nodes are spent") || settings().Count != 2 || settings().MaxNodes != 3 || settings().Pass != "p7" || len(settings().Nodes) != 2 {
		t.Errorf("enable keeps the count: %d %s %+v", status, body, settings())
	}
	if status, body := w.post(reprovisionPath, "enabled=true&maxNodes=3"); status != 200 || !decode[ReprovisionAnswer](t, body).Already {
		t.Errorf("again: %d %s", status, body)
	}
	w.store.beforeCommit = func(s *cluster.Snapshot) { // a pass spends one at that moment
		s.Reprovision.Version++
		s.Reprovision.Value.Count = 3
	}
	if _, body := w.post(reprovisionPath, "enabled=true&maxNodes=3"); settings().Count != 2 && settings().Count != 3 {
		t.Errorf("%s %+v", body, settings())
	}
	w.store.beforeCommit = nil
	if status, body := w.post(reprovisionPath, "enabled=false"); status != 200 || settings().Enabled || settings().MaxNodes != 1 || settings().Count != 0 || settings().Pass != "p7" || len(settings().Nodes) != 0 {
		t.Errorf("disable: %d %s %+v", status, body, settings())
	}
	status, body = w.get(reprovisionPath)
	w.expect("disabled", status, body, 200, `{"enabled":false,"max_nodes":1,"count":0}`)
	w.edit(func(s *cluster.Snapshot) {
		s.Reprovision = cluster.Versioned[cluster.ReprovisionSettings]{Present: true, Version: 4, Err: errors.New("rubbish")}
	})
	if status, _ := w.get(reprovisionPath); status != 500 {
		t.Errorf("unreadable: %d", status)
	}
	if status, _ := w.post(reprovisionPath, "enabled=true&maxNodes=1"); status != 200 || !settings().Enabled {
		t.Errorf("written anew: %d %+v", status, settings())
	}
}

// A reset is an order that the primary carries out.
func TestReprovisionReset(t *testing.T) {
	spent := cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 1, Count: 1, Nodes: []cluster.NodeID{"hv1"}}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		path := reprovisionPath + "/resetCount"
		if status, body := w.post(path, ""); status != 200 || !strings.Contains(body, "is 0 already") || w.store.commits != 0 {
			t.Errorf("nothing to do: %d %s", status, body)
		}
		if status, body := w.post(path, "just_validate=1"); status != 200 || body != `{"errors":null}` {
			t.Errorf("%d %s", status, body)
		}
		w.edit(func(s *cluster.Snapshot) { s.Reprovision = present(spent) })
		status, body := w.post(path, "")
		first := decode[ReprovisionAnswer](t, body)
		if status != 202 || first.Order == "" || w.store.snap.Reprovision.Value.Reset != first.Order || w.store.snap.Reprovision.Value.Count != 1 {
			t.Errorf("ordered: %d %s", status, body)
		}
		if status, body := w.post(path, ""); status != 202 || decode[ReprovisionAnswer](t, body).Order != first.Order || w.store.commits != 1 {
			t.Errorf("a second one is the same: %d %s", status, body)
		}
		go func() {
			time.Sleep(2 * time.Second)
			w.edit(func(s *cluster.Snapshot) {
				p := s.Reprovision.Value
				s.Reprovision.Version++
				s.Reprovision.Value = cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 1, Done: p.Reset}
			})
		}()
		if status, body := w.post(path, "wait=10"); status != 200 || decode[ReprovisionAnswer](t, body).Settings.Count != 0 {
			t.Errorf("waited: %d %s", status, body)
		}
		w.edit(func(s *cluster.Snapshot) { s.Reprovision = present(spent) })
		if status, body := w.post(path, "wait=1"); status != 202 || decode[ReprovisionAnswer](t, body).Settings.Count != 1 {
			t.Errorf("waited in vain: %d %s", status, body)
		}
	})
}

func TestRebalanceIsOrdered(t *testing.T) {
	const path = "/api/v1/rebalance"
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if status, body := w.post(path, ""); status != 400 || !strings.Contains(body, "workloads_without_leases") {
			t.Errorf("without leases: %d %s", status, body)
		}
		w.leased()
		if _, body := w.get(path); decode[RebalanceView](t, body).State != RebalanceNone {
			t.Errorf("none: %s", body)
		}
		if status, body := w.post(path+"/stop", ""); status != 200 || !strings.Contains(body, "nothing has to be stopped") {
			t.Errorf("stop of nothing: %d %s", status, body)
		}
		is := func(change func(*cluster.Rebalance)) {
			w.edit(func(s *cluster.Snapshot) { s.Rebalance.Version++; change(&s.Rebalance.Value) })
		}
		status, body := w.post(path, "")
		id := decode[RebalanceAnswer](t, body).Rebalance.ID
		if status != 202 || w.store.snap.Rebalance.Value.ID != id || w.store.history[0].Kind != "rebalance_order" {
			t.Errorf("ordered: %d %s", status, body)
		}
		is(func(r *cluster.Rebalance) { r.State, r.Done, r.Total = cluster.RebalanceRunning, 1, 4 })
		if status, body := w.post(path, ""); status != 200 || !strings.Contains(body, "1 of 4 moves are done") || w.store.snap.Rebalance.Value.ID != id {
			t.Errorf("already: %d %s", status, body)
		}
		go func() {
			time.Sleep(2 * time.Second)
			is(func(r *cluster.Rebalance) { r.State, r.Text = cluster.RebalanceFailed, "unsafe_nodes: hv1" })
		}()
		if status, body := w.post(path, "wait=10"); status != 409 || !strings.Contains(body, "Unsafe_nodes: hv1") {
			t.Errorf("failed: %d %s", status, body)
		}
		w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
		if status, body := w.post(path, "wait=1"); status != 202 || w.store.snap.Rebalance.Value.ID == id {
			t.Errorf("anew, with the reply lost: %d %s", status, body)
		}
		go func() {
			time.Sleep(time.Second)
			is(func(r *cluster.Rebalance) { r.State = cluster.RebalanceStopped })
		}()
		if status, body := w.post(path+"/stop", "wait=10"); status != 200 || !strings.Contains(body, "was stopped") || !w.store.snap.Rebalance.Value.Stop {
			t.Errorf("stopped: %d %s", status, body)
		}
	})
}

// What is ordered of workloads is a task.
func TestWorkloadTasks(t *testing.T) {
	w := newWorld(t)
	withWorkloads(w)
	w.becomes("web", func(w *cluster.Workload) {
		w.Request = &cluster.WorkloadRequest{ID: "r1", Op: cluster.WorkloadStop, By: "ada"}
	})
	w.becomes("cache", func(w *cluster.Workload) {
		w.Next = &cluster.ChainMove{ID: "m1", Chain: []cluster.NodeID{"hv2", "hv1"}, Cause: "drain"}
	})
	w.edit(func(s *cluster.Snapshot) {
		s.Rebalance = present(cluster.Rebalance{ID: "b1", State: cluster.RebalanceRunning, Done: 1, Total: 2})
	})
	w.node("hv1", func(n *cluster.NodeView) { n.Domain.Value = cluster.DomainFlush })
	for id, want := range map[string]string{"r1": `"PENDING"`, "drain-hv1": `"args":["cache"]`, "m1": "is being moved to hv2, hv1, because of drain", "b1": "1 of 2 moves are done"} {
		if status, body := w.get("/api/v1/tasks/" + id); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", id, status, body)
		}
	}
}

// A drain of what is managed is ordered; what runs beside it is not moved.
func TestFlushOfWorkloads(t *testing.T) {
	w := newWorld(t)
	withWorkloads(w)
	w.store.leaves["hv2"]["runningdomains"] = "web cache"
	w.beat("hv2")
	if status, body := w.post(domainPath, "state=flush"); status != 200 || w.store.snap.Nodes["hv2"].Domain.Value != cluster.DomainFlush {
		t.Errorf("all managed: %d %s", status, body)
	}
	if status, body := w.post(domainPath, "state=flush&wait=0.01"); status != 504 || !strings.Contains(body, "Left: cache, web;") {
		t.Errorf("in vain: %d %s", status, body)
	}
	w = newWorld(t)
	withWorkloads(w)
	w.store.leaves["hv2"]["runningdomains"] = "web stranger"
	w.beat("hv2")
	if status, body := w.post(domainPath, "state=flush"); status != 501 || !strings.Contains(body, "1 workloads run there (stranger)") {
		t.Errorf("a stranger: %d %s", status, body)
	}
}

// A password among a workload's parameters is written into no log.
func TestParamsAreNotAudited(t *testing.T) {
	shown := redacted(args{"params": `{"passwd":"hush","ip":"10.0.0.1"}`, "name": "x"})
	if shown["params"] != "ip, passwd" || shown["name"] != "x" {
		t.Errorf("%v", shown)
	}
	if shown := redacted(args{"params": `{"passwd":"hu`}); shown["params"] != hiddenValue {
		t.Errorf("%v", shown)
	}
}

func TestWorkloadClient(t *testing.T) {
	w := newWorld(t, onAnyPort)
	address, stop := w.serve()
	defer func() { _ = stop() }()
	withWorkloads(w)
	client, _ := NewClient(ClientConfig{URL: address})
	ctx := t.Context()
	if list, err := client.Workloads(ctx, url.Values{"kind": {"movable"}}); err != nil || len(list) != 1 {
		t.Errorf("%v %v", list, err)
	}
	if v, err := client.Workload(ctx, "cache"); err != nil || v.ID != "w1" {
		t.Errorf("%v %v", v, err)
	}
	if a, err := client.AddWorkload(ctx, url.Values{"name": {"new"}, "driver": {"redis"}}, 0); err != nil || a.Order == "" {
		t.Errorf("%v %v", a, err)
	}
	if a, err := client.SetWorkload(ctx, "cache", url.Values{"priority": {"3"}}); err != nil || a.Workload.Priority != 3 {
		t.Errorf("%v %v", a, err)
	}
	if a, err := client.OrderWorkload(ctx, "web", cluster.WorkloadMove, "hv1", 0); err != nil || a.Workload.Request.Node != "hv1" {
		t.Errorf("%v %v", a, err)
	}
	_, err := client.RemoveWorkload(ctx, "cache", false, time.Second)
	expectClass(t, err, cluster.ErrRefused, "--destroy")
	if a, err := client.RemoveWorkload(ctx, "cache", true, 0); err != nil || a.Order == "" {
		t.Errorf("%v %v", a, err)
	}
	if a, err := client.SetAutoReprovision(ctx, true, "2", false); err != nil || a.Settings.MaxNodes != 2 {
		t.Errorf("%v %v", a, err)
	}
	if _, err := client.SetAutoReprovision(ctx, false, "", true); err != nil {
		t.Error(err)
	}
	if a, err := client.AutoReprovision(ctx); err != nil || !a.Enabled {
		t.Errorf("%v %v", a, err)
	}
	if a, err := client.ResetReprovision(ctx, 0); err != nil || !a.Already {
		t.Errorf("%v %v", a, err)
	}
	if a, err := client.OrderRebalance(ctx); err != nil || a.Rebalance.State != "ordered" {
		t.Errorf("%v %v", a, err)
	}
	if a, err := client.StopRebalance(ctx); err != nil || !a.Rebalance.Stop {
		t.Errorf("%v %v", a, err)
	}
	if a, err := client.Rebalance(ctx); err != nil || !a.Stop {
		t.Errorf("%v %v", a, err)
	}
}

// FuzzNewWorkload: whatever is typed is refused by name, or makes a workload that
// can be written and read again.
func FuzzNewWorkload(f *testing.F) {
	for _, text := range hostileTexts {
		f.Add("a", "redis", text, text, text, "1")
		f.Add(text, text, "hv1,hv2", "", `{"a":"b"}`, text)
	}
	f.Add("a", "ocf:heartbeat:Dummy", "hv1,hv2", "hv1,hv2", `{"a":1,"b":null,"c":true}`, "1")
	f.Fuzz(func(t *testing.T, name, driver, chain, nodes, params, replicas string) {
		given := args{"name": name, "driver": driver, "chain": chain, "nodes": nodes, "params": params, "replicas": replicas, "priority": replicas}
		w, fail := newWorkload(given)
		if fail == nil && w.Validate() != nil {
			t.Errorf("%v makes %+v: %v", given, w, w.Validate())
		}
		if fail != nil && (fail.status != 400 || fail.Error() == "") {
			t.Errorf("%v: %+v", given, fail)
		}
		old := aCache.Clone()
		if fail := setWorkload(&old, given); fail == nil {
			_ = changedSettings(aCache, old)
		}
		if aCache.Params["port"] != "7001" || len(aCache.Params) != 2 {
			t.Fatal("the record that was read has been changed")
		}
	})
}

// A server whose view is older than the order that it has written waits, and takes
// nothing of that view for an answer.
func TestOldViewsAnswerNothing(t *testing.T) {
	next := aWeb.Clone()
	next.Request = &cluster.WorkloadRequest{ID: "o1", Op: cluster.WorkloadMove}
	a := &awaited{workloadWrite: workloadWrite{next: next, order: "o1", version: 4}}
	for version, want := range map[int32]string{3: OutcomeWaiting, 5: OutcomeSuperseded} {
		if got, _ := a.answered(cluster.Versioned[cluster.Workload]{Present: true, Value: aWeb, Version: version}); got != want {
			t.Errorf("version %d: %s, want %s", version, got, want)
		}
	}
	added := &awaited{workloadWrite: workloadWrite{next: aWeb, order: "w2"}}
	if got, _ := added.added(cluster.Versioned[cluster.Workload]{}); got != OutcomeWaiting {
		t.Errorf("not seen yet: %s", got)
	}
	added.seen = true
	if got, _ := added.added(cluster.Versioned[cluster.Workload]{}); got != OutcomeSuperseded {
		t.Errorf("seen, and gone: %s", got)
	}
}
