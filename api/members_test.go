package api

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

const nodePrefix = "/api/v1/node/"

// counted gives the world its quorum set, hv1 and hv2, and each node its host.
func counted(w *world) {
	w.edit(func(s *cluster.Snapshot) {
		s.Quorum = present(cluster.QuorumSet{Version: 1, Nodes: []cluster.NodeID{"hv1", "hv2"}, IDs: map[cluster.NodeID]string{"hv1": "id-hv1", "hv2": "id-hv2"}, Epoch: 4, N: 1})
		s.Members = cluster.Versioned[cluster.Members]{Mzxid: 1}
	})
	for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
		w.node(n, func(v *cluster.NodeView) { v.Record.Value.ID = "id-" + string(n) })
	}
}

// stoppedNode ends the node's daemon in order.
func stoppedNode(w *world, n cluster.NodeID) {
	w.node(n, func(v *cluster.NodeView) {
		v.Daemon, v.Alive = present(cluster.DaemonStop), cluster.Versioned[cluster.Alive]{}
	})
}

// goneFor takes a node's records away, as its removal does.
func goneFor(w *world, n cluster.NodeID, host string) {
	w.edit(func(s *cluster.Snapshot) {
		delete(s.Nodes, n)
		s.Members = present(cluster.Members{Version: 1, Removed: []cluster.RemovedNode{{Node: n, Host: host, By: "ada"}}})
	})
}

func TestMemberOrders(t *testing.T) {
	for _, c := range []struct {
		name, method, path string
		do                 func(*world)
		status             int
		text               string
	}{
		{"remove a stopped node", "DELETE", "hv2?reason=sold", func(w *world) { stoppedNode(w, "hv2") }, 202, `Ordered: node \"hv2\" is removed with its records; when it comes back it stays out. This needs majorities`},
		{"remove a stopped hypervisor", "DELETE", "hv3", func(w *world) { stoppedNode(w, "hv3") }, 202, "stays out."},
		{"remove a living node", "DELETE", "hv2", nil, 400, `Node \"hv2\" is alive: its session stands, and its last keepalive is 0s old; nothing was ordered. Stop its daemon first`},
		{"remove the primary", "DELETE", "hv1", nil, 400, "holds the primary role"},
		{"remove an unknown node", "DELETE", "hv9", nil, 400, `No node named \"hv9\" is present in the cluster; nothing was ordered. Nodes: hv1, hv2, hv3.`},
		{"remove a removed node", "DELETE", "hv3", func(w *world) { goneFor(w, "hv3", "x") }, 200, "already; nothing has to be ordered"},
		{"remove a path", "DELETE", "a%2Fb", nil, 400, `That is no node's name`},
		{"remove dots", "DELETE", "..%2Fhv1", nil, 404, `There is nothing at`},
		{"remove none", "DELETE", "none", nil, 400, "reserved"},
		{"remove the last that counts", "DELETE", "hv2", func(w *world) {
			stoppedNode(w, "hv2")
			w.edit(func(s *cluster.Snapshot) { s.Quorum.Value.Nodes = []cluster.NodeID{"hv2"} })
		}, 400, "never empty"},
		{"remove a node that is fenced now", "DELETE", "hv2", func(w *world) { stoppedNode(w, "hv2"); w.fenced("hv2", cluster.FenceVerify) }, 400, "is being fenced by hv1 (stage verify)"},
		{"remove a node with a fence order", "DELETE", "hv2", func(w *world) { stoppedNode(w, "hv2"); w.orderedAlready("test") }, 400, "order about the fence"},
		{"remove without a primary", "DELETE", "hv3", func(w *world) {
			stoppedNode(w, "hv3")
			w.edit(func(s *cluster.Snapshot) { s.Lease.Value.Holder = "" })
		}, 400, "nobody holds the role now"},
		{"remove with two lines", "DELETE", "hv2?reason=a%0ab", func(w *world) { stoppedNode(w, "hv2") }, 400, "one line of plain text"},
		{"remove while another order stands", "DELETE", "hv2", func(w *world) {
			stoppedNode(w, "hv2")
			w.edit(func(s *cluster.Snapshot) {
				s.MemberOrder = present(cluster.MemberOrder{ID: "o1", Action: "remove", Node: "hv3", By: "ada"})
			})
		}, 400, "the members change one at a time; nothing was ordered. Wait for it (`pvc node list`), or take it back with `pvc node remove hv3 --cancel`"},
		{"remove a second time", "DELETE", "hv2", func(w *world) {
			stoppedNode(w, "hv2")
			w.edit(func(s *cluster.Snapshot) {
				s.MemberOrder = present(cluster.MemberOrder{ID: "o1", Action: "remove", Node: "hv2", Host: "id-hv2", By: "ada"})
			})
		}, 200, `"already":true,"order":{"v":0,"id":"o1"`},

		{"add a coordinator", "PUT", "hv2", func(w *world) {
			w.edit(func(s *cluster.Snapshot) { s.Quorum.Value.Nodes = []cluster.NodeID{"hv1"} })
		}, 202, `coordinator \"hv2\" counts for majorities once`},
		{"add one that counts", "PUT", "hv2", nil, 200, "counts for majorities already"},
		{"add a hypervisor", "PUT", "hv3", nil, 200, "counts for no majority; nothing has to be ordered"},
		{"add a hypervisor as a coordinator", "PUT", "hv3?mode=coordinator", nil, 400, "Set node.mode to coordinator there"},
		{"have a coordinator count no more", "PUT", "hv2?mode=hypervisor", nil, 202, "counts for majorities no more"},
		{"have the last count no more", "PUT", "hv2?mode=hypervisor", func(w *world) {
			w.edit(func(s *cluster.Snapshot) { s.Quorum.Value.Nodes = []cluster.NodeID{"hv2"} })
		}, 400, "never empty"},
		{"add an unknown node", "PUT", "hv9", nil, 400, "A new node is installed and started first"},
		{"add a path", "PUT", "a%2Fb", nil, 400, "That is no node's name"},
		{"add what is no node name", "PUT", "a%20b", nil, 400, "is not a node name"},
		{"add as what", "PUT", "hv2?mode=king", nil, 400, `{"message":{"mode":"Must be one of: coordinator, hypervisor."}}`},
		{"add a removed name", "PUT", "hv9", func(w *world) { goneFor(w, "hv9", "x") }, 202, "for another host; what was removed by it (x) stays out, unless it is named with `--host`. Start pvcnoded there within five minutes"},
		{"add a removed host", "PUT", "hv9?host=x&mode=hypervisor", func(w *world) { goneFor(w, "hv9", "x") }, 202, `the name \"hv9\" is free again. Then start pvcnoded there.`},
		{"add a host that was never removed", "PUT", "hv2?host=x", nil, 400, `No host with the id \"x\" was removed by the name \"hv2\"`},
		{"add with an argument that is none", "PUT", "hv2?force=1", nil, 400, "no such argument"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			counted(w)
			if c.do != nil {
				c.do(w)
			}
			status, body := w.do(c.method, nodePrefix+c.path, "", "")
			if status != c.status || !strings.Contains(body, c.text) {
				t.Errorf("got %d %s\nwant %d %s", status, body, c.status, c.text)
			}
			if writes := status == 202; (w.store.commits == 1) != writes || len(w.store.history) != w.store.commits {
				t.Errorf("%d commits, history %+v", w.store.commits, w.store.history)
			}
		})
	}
}

// An order is written whole, for the host that is registered, with its entry in
// the history; it is taken back by emptying its record.
func TestMemberOrderIsWritten(t *testing.T) {
	w := newWorld(t)
	counted(w)
	stoppedNode(w, "hv2")
	status, body := w.do("DELETE", nodePrefix+"hv2?reason=sold", "", "")
	a := decode[MemberAnswer](t, body)
	o := w.store.snap.MemberOrder.Value
	if status != 202 || a.Order == nil || *a.Order != o || len(o.ID) != 16 || o.UnixMS == 0 {
		t.Fatalf("%d %s, written %+v", status, body, o)
	}
	e := w.store.history[0]
	if e.Kind != cluster.EventMemberOrder || e.Fields["order"] != o.ID || e.Fields["node"] != "hv2" || e.Fields["host"] != "id-hv2" || e.Fields["reason"] != "sold" || e.Fields["from"] == "" {
		t.Errorf("%+v", e)
	}
	o.ID, o.UnixMS = "", 0
	if o != (cluster.MemberOrder{Version: 1, Action: "remove", Node: "hv2", Host: "id-hv2", Reason: "sold", By: "anyone"}) {
		t.Errorf("%+v", o)
	}
	if status, body := w.do("DELETE", "/api/v1/members/order?node=hv3", "", ""); status != 400 || !strings.Contains(body, `to remove node \"hv2\", by anyone, and not about node \"hv3\"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := w.do("DELETE", "/api/v1/members/order?node=hv2", "", ""); status != 200 || !strings.Contains(body, "is taken back") || w.store.snap.MemberOrder.Present {
		t.Errorf("%d %s", status, body)
	}
	if status, body := w.do("DELETE", "/api/v1/members/order?node=hv2", "", ""); status != 200 || !strings.Contains(body, `"already":true`) || len(w.store.history) != 2 {
		t.Errorf("%d %s", status, body)
	}
	if status, body := w.do("PUT", nodePrefix+"hv2?mode=hypervisor", "", ""); status != 202 || w.store.snap.MemberOrder.Version != 2 {
		t.Errorf("over the emptied record: %d %s", status, body)
	}
}

// Two remove two nodes at once: one order stands, and the other is told of it.
func TestTwoRemovalsAtOnce(t *testing.T) {
	w := newWorld(t)
	counted(w)
	stoppedNode(w, "hv2")
	w.store.beforeCommit = func(s *cluster.Snapshot) {
		s.MemberOrder = present(cluster.MemberOrder{Version: 1, ID: "o1", Action: "remove", Node: "hv3", By: "ada"})
	}
	if status, body := w.do("DELETE", nodePrefix+"hv2", "", ""); status != 400 || !strings.Contains(body, `The order to remove node \"hv3\", by ada`) || w.store.snap.MemberOrder.Value.ID != "o1" {
		t.Errorf("%d %s", status, body)
	}
}

// A lost reply is settled: one order stands, or was answered, whatever became of
// the write; what cannot be settled is said.
func TestMemberOrderAfterALostReply(t *testing.T) {
	for name, c := range map[string]struct {
		applied bool
		after   func(*cluster.Snapshot)
		stands  bool
		status  int
		events  int
	}{
		"it was written": {true, nil, true, 202, 1},
		"it was not":     {false, nil, true, 202, 1},
		"it was answered since": {true, func(s *cluster.Snapshot) {
			s.MemberOrder = cluster.Versioned[cluster.MemberOrder]{Version: 1, Mzxid: 9}
		}, false, 202, 1},
		"another came and went": {false, func(s *cluster.Snapshot) {
			s.MemberOrder = cluster.Versioned[cluster.MemberOrder]{Version: 1, Mzxid: 9}
		}, true, 202, 1},
		"another stands": {false, func(s *cluster.Snapshot) {
			s.MemberOrder = present(cluster.MemberOrder{ID: "o1", Action: "add", Node: "hv3"})
			s.MemberOrder.Mzxid = 9
		}, true, 400, 0},
		"the node came back to life": {false, func(s *cluster.Snapshot) { orderOf(s, "hv2", func(n *cluster.NodeView) { n.Alive.Present = true }) }, false, 504, 0},
	} {
		w := newWorld(t)
		counted(w)
		stoppedNode(w, "hv2")
		w.store.outcomes, w.store.unknownApplied, w.store.afterUnknown = []cluster.Outcome{cluster.OutcomeUnknown}, c.applied, c.after
		status, body := w.do("DELETE", nodePrefix+"hv2", "", "")
		if status != c.status || w.store.snap.MemberOrder.Present != c.stands || len(w.store.history) != c.events {
			t.Errorf("%s: %d %s, stands %+v, %d events", name, status, body, w.store.snap.MemberOrder, len(w.store.history))
		}
	}
}

func TestMembersAreListed(t *testing.T) {
	w := newWorld(t)
	if _, body := w.get("/api/v1/members"); body != `{"quorum":null,"uncounted":[],"removed":[],"order":null,"history":[]}` {
		t.Error(body)
	}
	counted(w)
	w.edit(func(s *cluster.Snapshot) {
		s.Members = present(cluster.Members{Version: 1, Removed: []cluster.RemovedNode{{Node: "hv9", Host: "x"}}})
		s.MemberOrder = present(cluster.MemberOrder{ID: "o1", Action: "remove", Node: "hv3"})
	})
	w.node("hv2", func(v *cluster.NodeView) { v.Record.Value.ID = "id-new" }) // another host of the name
	w.store.history = []cluster.Event{{Kind: cluster.EventMember, Text: "first"}, {Kind: "fence"}, {Kind: cluster.EventMemberOut, Text: "second"}}
	_, body := w.get("/api/v1/members")
	v := decode[MembersView](t, body)
	if v.Quorum == nil || len(v.Quorum.Nodes) != 2 || !slices.Equal(v.Uncounted, []cluster.NodeID{"hv2"}) || len(v.Removed) != 1 || v.Order == nil || len(v.History) != 2 || v.History[0].Text != "second" || v.Doubt != "" {
		t.Errorf("%s", body)
	}
	w.edit(func(s *cluster.Snapshot) {
		s.Quorum = cluster.Versioned[cluster.QuorumSet]{Present: true, Err: cluster.ErrUnknown}
	})
	if _, body := w.get("/api/v1/members"); !strings.Contains(body, `"quorum":null`) || !strings.Contains(body, "/agent/quorum) cannot be read") {
		t.Error(body)
	}
	w.away()
	if status, body := w.get("/api/v1/members"); status != 503 || !strings.Contains(body, "hv9") {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := w.do("DELETE", nodePrefix+"hv3", "", ""); status != 503 {
		t.Errorf("%d", status)
	}
}

func TestClientOrdersMembers(t *testing.T) {
	w := newWorld(t)
	counted(w)
	stoppedNode(w, "hv2")
	server := httptest.NewServer(w.server.Handler())
	defer server.Close()
	c, err := NewClient(ClientConfig{URL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.RemoveNode(t.Context(), "hv2", "sold & gone")
	if err != nil || a.Order == nil || a.Order.Reason != "sold & gone" {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := c.CancelMemberOrder(t.Context(), "hv2"); err != nil || !strings.Contains(a.Message, "taken back") {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := c.AddNode(t.Context(), "hv2", "hypervisor", "", "why not"); err != nil || a.Order == nil || a.Order.Mode != "hypervisor" || a.Order.Reason != "why not" {
		t.Errorf("%+v, %v", a, err)
	}
	if v, err := c.Members(t.Context(), 1); err != nil || v.Order == nil || len(v.History) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := c.RemoveNode(t.Context(), "../hv2", ""); err == nil || !strings.Contains(err.Error(), "There is nothing at /api/v1/node/../hv2") {
		t.Errorf("%v", err)
	}
}
