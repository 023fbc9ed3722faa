package api

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

const fencePrefix = "/api/v1/fence/"

// fenced gives the node a fence record of its present start.
func (w *world) fenced(name cluster.NodeID, stage cluster.FenceStage, change ...func(*cluster.FenceRecord)) {
	w.node(name, func(n *cluster.NodeView) {
		f := cluster.FenceRecord{Version: 1, ID: "f1", Node: name, Incarnation: n.Record.Value.Incarnation, By: "hv1", Stage: stage, Tries: 2}
		for _, c := range change {
			c(&f)
		}
		n.Fence = present(f)
	})
}

func withProof(proof string) func(*cluster.FenceRecord) {
	return func(f *cluster.FenceRecord) { f.Proof = proof }
}

// orderedAlready lets an order stand that nobody has carried out yet.
func (w *world) orderedAlready(action string) {
	w.node("hv2", func(n *cluster.NodeView) {
		n.Order = cluster.Versioned[cluster.FenceOrder]{Present: true, Version: 3,
			Value: cluster.FenceOrder{Version: 1, ID: "o1", Node: "hv2", Incarnation: "b.1", Action: action, By: "ada", UnixMS: 1700000000000}}
	})
}

// An order is written whole, with its entry in the history, for the start of the
// node that is registered.
func TestFenceOrderIsWritten(t *testing.T) {
	w := newWorld(t)
	status, body := w.do("POST", fencePrefix+"hv2", "application/json", `{"action":"fence","reason":"its disk is stuck"}`)
	a := decode[FenceAnswer](t, body)
	if status != 202 || a.Already || a.Order == nil || a.Message != `Ordered: node hv1, the primary, fences node "hv2": it takes its power and proves that it is gone.` {
		t.Fatalf("%d %s", status, body)
	}
	o := w.store.snap.Nodes["hv2"].Order.Value
	if o != *a.Order || len(o.ID) != 16 || o.UnixMS == 0 {
		t.Errorf("written %+v, answered %+v", o, *a.Order)
	}
	o.ID, o.UnixMS = "", 0
	if o != (cluster.FenceOrder{Version: 1, Node: "hv2", Incarnation: "b.1", Action: "fence", Reason: "its disk is stuck", By: "anyone"}) {
		t.Errorf("written %+v", o)
	}
	e := w.store.history[0]
	if e.Kind != "fence_order" || e.Fields["order"] != a.Order.ID || e.Fields["node"] != "hv2" || e.Fields["action"] != "fence" || e.Fields["reason"] != "its disk is stuck" || e.Fields["by"] != "anyone" || e.Fields["from"] == "" {
		t.Errorf("history: %+v", e)
	}
	status, body = w.post(fencePrefix+"hv2", "action=fence")
	if again := decode[FenceAnswer](t, body); status != 200 || !again.Already || again.Order != nil || w.store.commits != 1 {
		t.Errorf("again: %d %s", status, body)
	}
}

func hv2IsGone(w *world) { w.gone("hv2") }

func inMaintenance(w *world) { w.edit(func(s *cluster.Snapshot) { s.Maintenance.Value = true }) }

func noPrimary(w *world) { w.edit(func(s *cluster.Snapshot) { s.Lease.Value.Holder = "" }) }

func hv2IsStopped(w *world) {
	w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
}

func atStage(stage cluster.FenceStage, change ...func(*cluster.FenceRecord)) func(*world) {
	return func(w *world) { w.gone("hv2"); w.fenced("hv2", stage, change...) }
}

func withOrder(action string) func(*world) { return func(w *world) { w.orderedAlready(action) } }

// What is ordered, what is answered without an order, and what is refused.
var fenceOrders = []struct {
	name, node, form string
	do               func(*world)
	status           int
	text             string
}{
	{"fence a live node", "hv2", "action=fence", nil, 202, "Ordered: node hv1, the primary, fences node"},
	{"fence a hypervisor", "hv3", "action=fence", nil, 202, "Ordered"},
	{"fence a failed one again", "hv2", "action=fence", atStage(cluster.FenceFailed), 202, "Ordered"},
	{"fence after a cancel", "hv2", "action=fence", atStage(cluster.FenceCanceled), 202, "Ordered"},
	{"fence of an earlier start's record", "hv2", "action=fence", atStage(cluster.FenceDone, withProof("verified_off"), func(f *cluster.FenceRecord) { f.Incarnation = "a.1" }), 202, "Ordered"},
	{"fence oneself", "hv1", "action=fence", nil, 400, "only the primary fences: it would have to fence itself. Nothing was ordered. Move the role first: `pvc node secondary hv1 --wait`."},
	{"fence an unknown node", "hv9", "action=fence", nil, 400, `No node named \"hv9\" is present in the cluster; nothing was ordered. Nodes: hv1, hv2, hv3.`},
	{"fence in maintenance", "hv2", "action=fence", inMaintenance, 400, "The cluster is in maintenance, so that nobody is fenced; nothing was ordered."},
	{"fence, maintenance unreadable", "hv2", "action=fence", func(w *world) {
		w.edit(func(s *cluster.Snapshot) { spoil(&s.Maintenance, "it") })
	}, 400, "cannot be read, which counts as on"},
	{"fence without a primary", "hv2", "action=fence", noPrimary, 400, "nobody holds the role now; nothing was ordered. `pvc explain primary`"},
	{"fence a stopped node", "hv2", "action=fence", hv2IsStopped, 400, "was stopped on purpose"},
	{"fence an unregistered node", "hv2", "action=fence", func(w *world) {
		w.node("hv2", func(n *cluster.NodeView) { n.Record = cluster.Versioned[cluster.NodeRecord]{} })
	}, 400, "no registration that can be read (/agent/nodes/hv2)"},
	{"fence one that is being fenced", "hv2", "action=fence", atStage(cluster.FenceVerify), 200, "is being fenced by hv1 already, in stage verify"},
	{"fence one that is fenced", "hv2", "action=fence", atStage(cluster.FenceDone, withProof("verified_off")), 200, `has been fenced already; the proof is \"verified_off\"`},

	{"confirm a lost node with a failed fence", "hv2", "action=confirm&reason=unplugged", atStage(cluster.FenceFailed), 202, "takes the operator's word"},
	{"confirm a lost node that waits for it", "hv2", "action=confirm&reason=unplugged", atStage(cluster.FenceManual), 202, "takes the operator's word"},
	{"confirm a silent node without a record", "hv2", "action=confirm&reason=unplugged", hv2IsGone, 202, "takes the operator's word"},
	{"confirm in maintenance", "hv2", "action=confirm&reason=unplugged", func(w *world) { hv2IsGone(w); inMaintenance(w) }, 202, "takes the operator's word"},
	{"confirm without a reason", "hv2", "action=confirm", hv2IsGone, 400, `{"message":{"reason":"A reason must be specified: who has seen`},
	{"confirm with blanks for a reason", "hv2", "action=confirm&reason=+%09", hv2IsGone, 400, `one line of plain text`},
	{"confirm with a space for a reason", "hv2", "action=confirm&reason=+", hv2IsGone, 400, `A reason must be specified`},
	{"confirm with two lines", "hv2", "action=confirm&reason=a%0ab", hv2IsGone, 400, `{"message":{"reason":"Must be one line of plain text."}}`},
	{"confirm with a novel", "hv2", "action=confirm&reason=" + strings.Repeat("x", 501), hv2IsGone, 400, "at most 500 bytes"},
	{"confirm a live node", "hv2", "action=confirm&reason=unplugged", func(w *world) { w.later(2500 * time.Millisecond) }, 400,
		`Node \"hv2\" is alive: its last keepalive is 2.5s old; its ZooKeeper session lives. Nothing was confirmed`},
	{"confirm a node that hangs", "hv2", "action=confirm&reason=unplugged", func(w *world) {
		hv2IsGone(w)
		w.node("hv2", func(n *cluster.NodeView) { n.Alive = present(cluster.Alive{Version: 1, Incarnation: "b.1"}) })
	}, 400, "is alive: its ZooKeeper session lives, and its last keepalive is 7s old."},
	{"confirm a live node whose fence failed", "hv2", "action=confirm&reason=unplugged", func(w *world) { w.fenced("hv2", cluster.FenceFailed) }, 400, "is alive: its last keepalive is 0s old"},
	{"confirm a node that answers probes", "hv2", "action=confirm&reason=unplugged", func(w *world) {
		hv2IsGone(w)
		w.publish("hv1", cluster.View{Mode: "primary", Reach: map[cluster.NodeID]cluster.Reach{"hv2": {Answer: cluster.ProbeAnswered}}})
	}, 400, "is alive: it answers the probes of hv1"},
	{"confirm the holder of a lease that stands", "hv1", "action=confirm&reason=unplugged", func(w *world) {
		w.gone("hv1")
		w.edit(func(s *cluster.Snapshot) { s.Lease.SeenAt = w.clock.Now() })
	}, 400, "it holds the primary role, whose lease has not run out"},
	{"confirm what was not watched for long enough", "hv2", "action=confirm&reason=unplugged", func(w *world) {
		hv2IsGone(w)
		w.edit(func(s *cluster.Snapshot) { s.Since = w.clock.Now().Add(-2 * time.Second) })
	}, 400, "has watched it be silent for 2s only, which is less than 5s"},
	{"confirm a stopped node", "hv2", "action=confirm&reason=unplugged", func(w *world) { hv2IsGone(w); hv2IsStopped(w) }, 400, "there is nothing to confirm"},
	{"confirm what is proven", "hv2", "action=confirm&reason=unplugged", atStage(cluster.FenceRecover, withProof("watchdog")), 200, `the proof is \"watchdog\"`},
	{"confirm without a primary", "hv2", "action=confirm&reason=unplugged", func(w *world) { hv2IsGone(w); noPrimary(w) }, 400, "nobody holds the role now"},

	{"cancel before power", "hv2", "action=cancel", atStage(cluster.FenceClaimed), 202, "in stage claimed, is to be canceled"},
	{"cancel between tries", "hv2", "action=cancel", atStage(cluster.FenceFailed), 202, "in stage failed, is to be canceled"},
	{"cancel after the order", "hv2", "action=cancel", atStage(cluster.FencePowerOff), 400, "cannot be called back; nothing was changed"},
	{"cancel while it is verified", "hv2", "action=cancel", atStage(cluster.FenceVerify), 400, "(stage verify), which cannot be called back"},
	{"cancel what is done", "hv2", "action=cancel", atStage(cluster.FenceDone, withProof("verified_off")), 400, "has been fenced (verified_off), which cannot be taken back"},
	{"cancel what is canceled", "hv2", "action=cancel", atStage(cluster.FenceCanceled), 200, "has ended already (stage canceled)"},
	{"cancel what waits", "hv2", "action=cancel", atStage(cluster.FenceManual), 200, "has ended already (stage manual)"},
	{"cancel nothing", "hv2", "action=cancel", nil, 400, "There is no fence of node"},
	{"cancel a newer program's", "hv2", "action=cancel", atStage("vaporised"), 400, "which this version does not know"},
	{"cancel an unreadable one", "hv2", "action=cancel", func(w *world) {
		w.node("hv2", func(n *cluster.NodeView) { spoil(&n.Fence, "it") })
	}, 400, "cannot be read (it is rubbish)"},
	{"cancel takes an order back", "hv2", "action=cancel", withOrder("fence"), 200, "The order to fence node"},

	{"test", "hv2", "action=test", nil, 202, "asks the fence devices of node"},
	{"test the primary", "hv1", "action=test", nil, 202, "asks the fence devices"},
	{"test in maintenance", "hv2", "action=test", inMaintenance, 202, "asks the fence devices"},
	{"test an unregistered node", "hv2", "action=test", func(w *world) {
		w.node("hv2", func(n *cluster.NodeView) { n.Record = cluster.Versioned[cluster.NodeRecord]{} })
	}, 202, "asks the fence devices"},
	{"beside another order", "hv2", "action=test", withOrder("fence"), 400, "has not been carried out yet, so that no other is taken; nothing was ordered. Wait for it (`pvc fence list`), or take it back with `pvc fence cancel hv2`"},
	{"over an unreadable order", "hv2", "action=test", func(w *world) {
		w.node("hv2", func(n *cluster.NodeView) { spoil(&n.Order, "it") })
	}, 202, "asks the fence devices"},

	{"no action", "hv2", "", nil, 400, `{"message":{"action":"Must be one of: fence, confirm, cancel, test."}}`},
	{"unknown action", "hv2", "action=shoot", nil, 400, `{"message":{"action":"Must be one of: fence, confirm, cancel, test."}}`},
	{"unknown argument", "hv2", "action=test&force=1", nil, 400, `{"message":{"force":"There is no such argument here; known: action, reason, unsafe."}}`},
}

// A refusal names its reason and changes nothing.
func TestFenceOrders(t *testing.T) {
	for _, c := range fenceOrders {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if c.do != nil {
				c.do(w)
			}
			status, body := w.post(fencePrefix+c.node, c.form)
			if status != c.status || !strings.Contains(body, c.text) {
				t.Errorf("got %d %s\nwant %d %s", status, body, c.status, c.text)
			}
			writes := status == 202 || strings.Contains(c.name, "takes an order back")
			if (w.store.commits == 1) != writes || len(w.store.history) != w.store.commits {
				t.Errorf("%d commits, history %+v", w.store.commits, w.store.history)
			}
			if o := w.store.snap.Nodes[cluster.NodeID(c.node)].Order; strings.Contains(c.name, "takes an order back") && o.Present {
				t.Errorf("it still stands: %+v", o)
			}
		})
	}
}

// A lost reply is settled: one order stands, whatever became of the write.
func TestFenceOrderAfterALostReply(t *testing.T) {
	for _, applied := range []bool{true, false} {
		w := newWorld(t)
		w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, applied
		status, body := w.post(fencePrefix+"hv2", "action=fence")
		a := decode[FenceAnswer](t, body)
		if status != 202 || a.Order == nil || a.Order.ID != w.store.snap.Nodes["hv2"].Order.Value.ID || len(w.store.history) != 1 {
			t.Errorf("applied %t: %d %s, %d events", applied, status, body, len(w.store.history))
		}
	}
	w := newWorld(t) // and what can no longer be ordered is not called refused
	w.store.outcomes = []cluster.Outcome{cluster.OutcomeUnknown}
	w.store.beforeCommit = func(s *cluster.Snapshot) { s.Maintenance.Value = true }
	if status, body := w.post(fencePrefix+"hv2", "action=fence"); status != 504 || !strings.Contains(body, "reply was lost") {
		t.Errorf("%d %s", status, body)
	}
}

// orderOf edits the node's order as another writer does.
func orderOf(s *cluster.Snapshot, name cluster.NodeID, edit func(*cluster.NodeView)) {
	n := s.Nodes[name]
	edit(&n)
	s.Nodes = maps.Clone(s.Nodes)
	s.Nodes[name] = n
}

// The primary has answered the order before its writer, who got no reply, looks
// again: it is not written a second time, whatever became of the fence.
func TestFenceOrderThatWasAnsweredIsNotWrittenAgain(t *testing.T) {
	for name, answered := range map[string]func(*cluster.NodeView){
		"emptied":                      func(n *cluster.NodeView) { n.Order = cluster.Versioned[cluster.FenceOrder]{Version: 8, Mzxid: 9} },
		"deleted, by an older primary": func(n *cluster.NodeView) { n.Order = cluster.Versioned[cluster.FenceOrder]{} },
	} {
		w := newWorld(t)
		w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
		w.store.afterUnknown = func(s *cluster.Snapshot) { orderOf(s, "hv2", answered) }
		status, body := w.post(fencePrefix+"hv2", "action=fence")
		a := decode[FenceAnswer](t, body)
		if status != 202 || a.Order == nil || w.store.commits != 1 || w.store.snap.Nodes["hv2"].Order.Present || len(w.store.history) != 1 {
			t.Errorf("%s: %d %s after %d commits", name, status, body, w.store.commits)
		}
	}
	w := newWorld(t) // the same of an order that is taken back
	w.orderedAlready("fence")
	w.store.outcomes, w.store.unknownApplied = []cluster.Outcome{cluster.OutcomeUnknown}, true
	if status, body := w.post(fencePrefix+"hv2", "action=cancel"); status != 200 || !strings.Contains(body, "is taken back") || w.store.commits != 1 {
		t.Errorf("%d %s after %d commits", status, body, w.store.commits)
	}
}

// Another's order came and went where the reply was lost: what was lost cannot
// happen any more, and it is decided anew.
func TestFenceOrderThatLostToAnother(t *testing.T) {
	w := newWorld(t)
	w.store.outcomes = []cluster.Outcome{cluster.OutcomeUnknown}
	w.store.afterUnknown = func(s *cluster.Snapshot) {
		orderOf(s, "hv2", func(n *cluster.NodeView) { n.Order = cluster.Versioned[cluster.FenceOrder]{Version: 1, Mzxid: 9} })
	}
	status, body := w.post(fencePrefix+"hv2", "action=fence")
	o := w.store.snap.Nodes["hv2"].Order
	if a := decode[FenceAnswer](t, body); status != 202 || a.Order == nil || o.Value.ID != a.Order.ID || o.Version != 2 {
		t.Errorf("%d %s, stands %+v", status, body, o)
	}
	w = newWorld(t)
	w.store.outcomes = []cluster.Outcome{cluster.OutcomeUnknown}
	w.store.afterUnknown = func(s *cluster.Snapshot) {
		orderOf(s, "hv2", func(n *cluster.NodeView) {
			n.Order = present(cluster.FenceOrder{Version: 1, ID: "o1", Node: "hv2", Incarnation: "b.1", Action: "test", By: "ada"})
		})
	}
	if status, body := w.post(fencePrefix+"hv2", "action=fence"); status != 400 || !strings.Contains(body, "The order to test node") {
		t.Errorf("%d %s", status, body)
	}
	w = newWorld(t) // what became of it is not known while the history cannot be read
	w.store.outcomes, w.store.historyError = []cluster.Outcome{cluster.OutcomeUnknown}, cluster.ErrUnknown
	if status, body := w.post(fencePrefix+"hv2", "action=fence"); status != 504 || w.store.commits != 1 {
		t.Errorf("%d %s", status, body)
	}
}

// An order is written over the emptied record of the one before, and taken back
// by emptying it.
func TestFenceOrdersAreEmptied(t *testing.T) {
	w := newWorld(t)
	w.node("hv2", func(n *cluster.NodeView) { n.Order = cluster.Versioned[cluster.FenceOrder]{Version: 3, Mzxid: 9} })
	if status, body := w.post(fencePrefix+"hv2", "action=fence"); status != 202 || w.store.snap.Nodes["hv2"].Order.Version != 4 {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := w.post(fencePrefix+"hv2", "action=cancel"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if o := w.store.snap.Nodes["hv2"].Order; o.Present || o.Version != 5 || o.Mzxid == 0 {
		t.Errorf("%+v", o)
	}
}

// Who loses the race sees the other's order, and nothing is written over it.
func TestFenceOrderMeetsAnother(t *testing.T) {
	w := newWorld(t)
	w.store.beforeCommit = func(s *cluster.Snapshot) {
		n := s.Nodes["hv2"]
		n.Order = present(cluster.FenceOrder{Version: 1, ID: "o1", Node: "hv2", Incarnation: "b.1", Action: "test", By: "ada"})
		s.Nodes["hv2"] = n
	}
	status, body := w.post(fencePrefix+"hv2", "action=fence")
	if status != 400 || !strings.Contains(body, "The order to test node") || w.store.snap.Nodes["hv2"].Order.Value.By != "ada" {
		t.Errorf("%d %s", status, body)
	}
	w = newWorld(t)
	w.store.outcomes = slices.Repeat([]cluster.Outcome{cluster.OutcomeConflict}, askAttempts)
	if status, body := w.post(fencePrefix+"hv2", "action=fence"); status != 409 || !strings.Contains(body, "nothing was ordered") {
		t.Errorf("%d %s", status, body)
	}
}

func TestFencesAreListed(t *testing.T) {
	w := newWorld(t)
	_, body := w.get("/api/v1/fences")
	if body != `{"fences":[],"orders":[],"history":[],"devices":[]}` {
		t.Errorf("nothing: %s", body)
	}
	w.fenced("hv3", cluster.FenceFailed)
	w.orderedAlready("test")
	for i, e := range []struct{ kind, node string }{{"fence", "hv2"}, {"transition", "hv2"}, {"fence_order", "hv3"}, {cluster.EventOrderRefused, "hv3"}, {"fence", "hv3"}} {
		w.store.history = append(w.store.history, cluster.Event{UnixMS: int64(i), Kind: e.kind, Fields: map[string]string{"node": e.node}})
	}
	bad := cluster.DeviceReport{Node: "hv3", Device: "bmc", Type: "ipmi", Fault: "unreachable", Power: "unknown", Detail: "no answer", UnixMS: 5}
	good := cluster.DeviceReport{Node: "hv3", Device: "pdu", Type: "ipmi", Power: "on", UnixMS: 6}
	w.tested("hv3", "hv1", bad, good)
	w.tested("hv2", "hv2", good)
	w.store.tests["hv1"] = "{"

	_, body = w.get("/api/v1/fences")
	v := decode[FencesView](t, body)
	if len(v.Fences) != 1 || v.Fences[0].Node != "hv3" || len(v.Orders) != 1 || v.Orders[0].ID != "o1" {
		t.Errorf("all: %s", body)
	}
	if len(v.History) != 4 || v.History[0].UnixMS != 4 || v.History[3].UnixMS != 0 {
		t.Errorf("history: %s", body)
	}
	if want := []DeviceTest{{"hv2", good}, {"hv1", bad}, {"hv1", good}}; !sameTests(v.Devices, want) {
		t.Errorf("devices: %+v", v.Devices)
	}
	_, body = w.get(fencePrefix + "hv3?limit=2")
	v = decode[FencesView](t, body)
	if len(v.Fences) != 1 || len(v.Orders) != 0 || len(v.History) != 2 || v.History[0].UnixMS != 4 || v.History[1].Kind != cluster.EventOrderRefused || !sameTests(v.Devices, []DeviceTest{{"hv1", bad}, {"hv1", good}}) {
		t.Errorf("hv3: %s", body)
	}
	w.store.historyError = cluster.ErrUnknown // hides nothing else
	_, body = w.get(fencePrefix + "hv3")
	if v = decode[FencesView](t, body); len(v.Fences) != 1 || len(v.History) != 0 || len(v.Devices) != 2 || !strings.Contains(v.Doubt, "the history cannot be read") {
		t.Errorf("without history: %s", body)
	}
	status, body := w.get(fencePrefix + "hv9")
	w.expect("unknown", status, body, 404, `{"message":"Node not found."}`)
	status, body = w.get("/api/v1/fences?limit=0")
	w.expect("limit", status, body, 400, `{"message":{"limit":"Must be a whole number from 1 to 500."}}`)
	if _, body = w.get("/api/v1/cluster"); len(decode[ClusterView](t, body).Orders) != 1 {
		t.Errorf("the page does not show the order: %s", body)
	}
}

// tested publishes the tests of a node's fence devices.
func (w *world) tested(node, by cluster.NodeID, reports ...cluster.DeviceReport) {
	w.t.Helper()
	raw, err := json.Marshal(cluster.FenceTests{Version: 1, By: by, Devices: reports})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.store.tests[node] = string(raw)
}

func sameTests(a, b []DeviceTest) bool {
	left, _ := json.Marshal(a)
	right, _ := json.Marshal(b)
	return string(left) == string(right)
}

// A fence device that could not be used is a fault of the cluster's health, and
// so is what a node publishes against its own.
func TestStatusNamesBrokenFenceDevices(t *testing.T) {
	w := newWorld(t)
	w.tested("hv2", "hv1", cluster.DeviceReport{Node: "hv2", Device: "bmc", Type: "ipmi", Fault: "unreachable", Detail: "device bmc of node hv2 (ipmi): unreachable: no answer. Check the address"}, cluster.DeviceReport{Node: "hv2", Device: "pdu"})
	w.publish("hv3", cluster.View{Mode: "idle", Faults: []string{"its certificate runs out in 7 days"}})
	_, body := w.get("/api/v1/status")
	s := decode[Status](t, body)
	want := []string{
		"node hv3: its certificate runs out in 7 days",
		"fence device bmc of node hv2, as node hv1 last tested it: unreachable: no answer. Check the address. `pvc fence test hv2 --wait` tests it anew",
	}
	for _, line := range want {
		if !slices.Contains(s.HealthMsg, line) {
			t.Errorf("%q is not in %q", line, s.HealthMsg)
		}
	}
	w.publish("hv1", cluster.View{Mode: "primary", Faults: []string{"device bmc of node hv2 (ipmi): unreachable: no answer. Check the address"}})
	_, body = w.get("/api/v1/status") // told by the primary itself: once is enough
	if n := strings.Count(strings.Join(decode[Status](t, body).HealthMsg, "\n"), "no answer"); n != 1 {
		t.Errorf("told %d times: %s", n, body)
	}
	if s.Health != "Degraded" || slices.ContainsFunc(s.HealthMsg, func(m string) bool { return strings.Contains(m, "pdu") }) {
		t.Errorf("%s", body)
	}
}

// An order wakes whoever watches the cluster.
func TestAnOrderIsAChange(t *testing.T) {
	w := newWorld(t)
	before := w.server.view.current(w.clock.Now()).version
	w.orderedAlready("fence")
	if w.server.view.current(w.clock.Now()).version == before {
		t.Error("nobody is woken")
	}
}

func TestFencesWithoutStoreAndRights(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.KeysFile = keysFile(t) })
	for key, want := range map[string]int{"": 401, "key of rita": 403, "key of olga": 202} {
		if status, body := w.do("POST", fencePrefix+"hv2", "application/x-www-form-urlencoded", "action=test", "X-Api-Key", key); status != want {
			t.Errorf("%q: %d %s", key, status, body)
		}
	}
	if by := w.store.snap.Nodes["hv2"].Order.Value.By; by != "olga" {
		t.Errorf("ordered by %q", by)
	}
	if status, body := w.do("GET", fencePrefix+"hv2", "", "", "X-Api-Key", "key of rita"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	w = newWorld(t)
	w.away()
	for _, path := range []string{"/api/v1/fences", fencePrefix + "hv2"} {
		status, body := w.get(path)
		if a := decode[Away](t, body); status != 503 || a.Last == nil {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, body := w.post(fencePrefix+"hv2", "action=fence"); status != 503 || !strings.Contains(body, "away for 12s") {
		t.Errorf("%d %s", status, body)
	}
}

// What an operator has tried without a majority is told as that, to whoever reads
// the history; nothing but a fence can be ordered so, and an order that waits for
// a majority is not made another by it.
func TestAnUnsafeFenceIsAudited(t *testing.T) {
	w := newWorld(t)
	if status, body := w.post(fencePrefix+"hv2", "action=confirm&reason=seen&unsafe=true"); status != 400 || !strings.Contains(body, "Only a fence") {
		t.Errorf("%d %s", status, body)
	}
	if status, body := w.post(fencePrefix+"hv2", "action=fence&unsafe=true"); status != 400 || !strings.Contains(body, "A reason must be specified") {
		t.Errorf("%d %s", status, body)
	}
	status, body := w.post(fencePrefix+"hv2", "action=fence&unsafe=true&reason=two+are+away")
	if a := decode[FenceAnswer](t, body); status != 202 || a.Order == nil || !a.Order.Unsafe {
		t.Fatalf("%d %s", status, body)
	}
	_, body = w.get(fencePrefix + "hv2")
	v := decode[FencesView](t, body)
	if len(v.History) != 1 || v.History[0].Fields["unsafe"] != "true" || !strings.Contains(v.History[0].Text, "with or without a majority") || v.History[0].Fields["reason"] != "two are away" {
		t.Errorf("%+v", v.History)
	}
	if status, body := w.post(fencePrefix+"hv2", "action=fence"); status != 409 && status != 400 || !strings.Contains(body, "pvc fence cancel hv2") {
		t.Errorf("an ordinary one besides: %d %s", status, body)
	}
}

func TestClientOrdersFences(t *testing.T) {
	w := newWorld(t, onAnyPort)
	address, stop := w.serve()
	client, _ := NewClient(ClientConfig{URL: address})
	a, err := client.OrderFence(t.Context(), "hv2", cluster.OrderTest, "")
	if err != nil || a.Order == nil {
		t.Errorf("%+v %v", a, err)
	}
	v, err := client.Fences(t.Context(), "hv2", 0)
	if err != nil || len(v.Orders) != 1 || v.Orders[0].ID != a.Order.ID || len(v.History) != 1 {
		t.Errorf("%+v %v", v, err)
	}
	if v, err := client.Fences(t.Context(), "", 1); err != nil || len(v.Orders) != 1 {
		t.Errorf("%+v %v", v, err)
	}
	_, err = client.OrderFence(t.Context(), "hv3", cluster.OrderConfirm, "")
	expectClass(t, err, cluster.ErrRefused, "reason: A reason must be specified")
	_, err = client.FenceUnsafe(t.Context(), "hv3", " ")
	expectClass(t, err, cluster.ErrRefused, "reason: A reason must be specified")
	_ = stop()
}

// What stands against fencing a lost node, and what would prove it dead.
func TestExplainNamesTheMissingProof(t *testing.T) {
	proof := func(e Explanation, name string) ProofState {
		at := slices.IndexFunc(e.Proofs, func(p ProofState) bool { return p.Proof == name })
		if at < 0 {
			t.Fatalf("%s is not in %+v", name, e.Proofs)
		}
		return e.Proofs[at]
	}
	for _, c := range []struct {
		name  string
		do    func(*world)
		proof string
		given bool
		want  string
	}{
		{"no fence", func(*world) {}, "verified_off", false, "no fence of this start has begun"},
		{"claimed", func(w *world) { w.fenced("hv2", cluster.FenceClaimed) }, "verified_off", false, "power is not ordered off yet"},
		{"ordered off", func(w *world) { w.fenced("hv2", cluster.FencePowerOff) }, "verified_off", false, "ordered off, try 2"},
		{"failed", func(w *world) {
			w.fenced("hv2", cluster.FenceFailed, func(f *cluster.FenceRecord) { f.Result = "bmc: no answer" })
		}, "verified_off", false, "try 2 ended without it; it is tried again by itself"},
		{"waits", func(w *world) { w.fenced("hv2", cluster.FenceManual) }, "verified_off", false, "waits for you"},
		{"device is broken", func(w *world) {
			w.tested("hv2", "hv1", cluster.DeviceReport{Node: "hv2", Device: "bmc", Fault: "denied", Detail: "wrong password"}, cluster.DeviceReport{Node: "hv2", Device: "pdu"})
			w.tested("hv3", "hv1", cluster.DeviceReport{Node: "hv3", Device: "x", Fault: "denied"})
		}, "verified_off", false, "; device bmc, as node hv1 last tested it: denied: wrong password"},
		{"to be confirmed", func(*world) {}, "confirmed", false, "`pvc fence confirm hv2 --reason WHY`"},
		{"answers probes", func(w *world) {
			w.sees(cluster.NodeSeen{Liveness: "isolated"}, func(v *cluster.View) {
				v.Reach = map[cluster.NodeID]cluster.Reach{"hv2": {Answer: cluster.ProbeAnswered}}
			})
		}, "confirmed", false, "it cannot be confirmed now: it answers the probes of hv1"},
		{"ended by an operator", func(w *world) {
			w.fenced("hv2", cluster.FenceManual, func(f *cluster.FenceRecord) { f.Held, f.Result = true, "cancelled by ada: mistake" })
		}, "verified_off", false, "its fence waits for you"},
		{"not back", func(*world) {}, "returned", false, "its next start after a boot proves"},
		{"no watchdog", func(*world) {}, "watchdog", false, "no armed watchdog"},
		{"a watchdog", func(w *world) {
			w.node("hv2", func(n *cluster.NodeView) {
				n.Record.Value.Watchdog = &cluster.WatchdogWord{Armed: true, Hardware: true, Stored: true, TimeoutMS: 5000, StopMS: 4000}
			})
		}, "watchdog", false, "resets it within 10s of its last keepalive"},
		{"a watchdog that is fed once more, of the kernel", func(w *world) {
			w.node("hv2", func(n *cluster.NodeView) {
				n.Record.Value.Watchdog = &cluster.WatchdogWord{Armed: true, TimeoutMS: 5000, StopMS: 4000}
			})
		}, "watchdog", false, "within 15s of its last keepalive, of the last promise to it, or of when the primary took the role; that is counted once its devices have failed, where fencing.failed_fence is migrate. It is a timer"},
		{"verified", func(w *world) { w.fenced("hv2", cluster.FenceDone, withProof("verified_off")) }, "verified_off", true, "its devices read off"},
		{"verified, the others", func(w *world) { w.fenced("hv2", cluster.FenceDone, withProof("verified_off")) }, "confirmed", false, "not needed"},
		{"confirmed", func(w *world) { w.fenced("hv2", cluster.FenceRecover, withProof("confirmed")) }, "confirmed", true, "an operator has vouched"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.gone("hv2")
			c.do(w)
			e := w.explain("hv2")
			if p := proof(e, c.proof); p.Given != c.given || !strings.Contains(p.Detail, c.want) {
				t.Errorf("%+v, want %t %q", p, c.given, c.want)
			}
			settled := slices.ContainsFunc(e.Proofs, func(p ProofState) bool { return p.Given })
			if asks := slices.ContainsFunc(e.Missing, func(m string) bool { return strings.HasPrefix(m, "a proof that it is dead") }); asks == settled {
				t.Errorf("missing: %q", e.Missing)
			}
		})
	}
	w := newWorld(t)
	w.gone("hv2")
	w.sees(cluster.NodeSeen{Liveness: "isolated"}, func(v *cluster.View) {
		v.Reach = map[cluster.NodeID]cluster.Reach{"hv2": {Answer: cluster.ProbeAnswered}}
	})
	if e := w.explain("hv2"); e.Verdict != "Cut off from ZooKeeper: neither session nor keepalive, and yet it answers probes." {
		t.Errorf("%s", e.Verdict)
	}
	w = newWorld(t)
	if e := w.explain("hv2"); len(e.Proofs)+len(e.Checks) != 0 {
		t.Errorf("a healthy node is asked for proofs: %+v", e)
	}
	w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonInit) })
	if e := w.explain("hv2"); len(e.Proofs) != 0 {
		t.Errorf("a starting node is asked for proofs: %+v", e)
	}
}

// The primary's own checks are told where it publishes them; what no part can
// answer yet is told in any case.
func TestExplainTellsTheChecks(t *testing.T) {
	w := newWorld(t)
	w.gone("hv2")
	w.sees(dead(""))
	want := []CheckAnswer{{Name: "quorum of node leases", Answer: "not in use yet"}, {Name: "last copy of a workload", Answer: "not in use yet"}}
	if e := w.explain("hv2"); !slices.Equal(e.Checks, want) {
		t.Errorf("%+v", e.Checks)
	}
	seen := dead(cluster.RefuseMixedPicture)
	seen.Picture = "reached by hv3, not reached by hv1"
	seen.Vetoes = []cluster.VetoSeen{
		{Name: "dead", Refusal: &cluster.Refusal{Code: cluster.RefuseMixedPicture, Node: "hv2", Detail: "node hv2: silent, but …"}},
		{Name: "settled"},
		{Name: "quorum of node leases", Unused: true},
		{Name: "budget", Refusal: &cluster.Refusal{Code: cluster.RefuseBudget, Node: "hv2", Detail: "spent"}},
	}
	w.sees(seen)
	e := w.explain("hv2")
	want = []CheckAnswer{
		{Name: "dead", Answer: "against", Code: cluster.RefuseMixedPicture, Detail: "node hv2: silent, but …"},
		{Name: "settled", Answer: "clear"},
		{Name: "quorum of node leases", Answer: "not in use yet"},
		{Name: "budget", Answer: "against", Code: cluster.RefuseBudget, Detail: "spent"},
	}
	if !slices.Equal(e.Checks, want) {
		t.Errorf("%+v", e.Checks)
	}
	for _, code := range []cluster.RefusalCode{cluster.RefuseMixedPicture, cluster.RefuseBudget} {
		if at := slices.IndexFunc(e.Refusals, func(r Objected) bool { return r.Code == code }); at < 0 || e.Refusals[at].Remedy == "" || e.Refusals[at].By != "hv1" {
			t.Errorf("%s with its remedy is not in %+v", code, e.Refusals)
		}
	}
	if !slices.Contains(e.Evidence, "it is reached by hv3, not reached by hv1, as node hv1 knows from the coordinators") {
		t.Errorf("%q", e.Evidence)
	}
	w.sees(dead(""), func(v *cluster.View) {
		v.Reach = map[cluster.NodeID]cluster.Reach{"hv2": {Answer: cluster.ProbeSilent, Heard: true}}
	})
	e = w.explain("hv2")
	for _, line := range []string{"it does not answer the probes of node hv1", "node hv1 sees its keepalives change"} {
		if !slices.Contains(e.Evidence, line) {
			t.Errorf("%q is not in %q", line, e.Evidence)
		}
	}
}

// A role that waits for proofs says whose.
func TestExplainNamesTheOwedProofs(t *testing.T) {
	w := newWorld(t)
	w.edit(func(s *cluster.Snapshot) {
		s.Lease.Value.Unproven = []cluster.Unproven{{Node: "hv3", Incarnation: "b.7"}}
	})
	const want = "a proof that node hv3, which held the role, is dead (start b.7): `pvc explain hv3` lists what would be one"
	if e := w.explain("primary"); !slices.Contains(e.Missing, want) {
		t.Errorf("%q", e.Missing)
	}
	w.edit(func(s *cluster.Snapshot) { s.Lease.Err = errors.New("rubbish") })
	if e := w.explain("primary"); slices.Contains(e.Missing, want) {
		t.Errorf("%q", e.Missing)
	}
}
