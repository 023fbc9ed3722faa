package api

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// spoil makes a record unreadable, as a snapshot shows it.
func spoil[T any](r *cluster.Versioned[T], what string) {
	*r = cluster.Versioned[T]{Present: true, Version: r.Version + 1, SeenAt: r.SeenAt, Err: errors.New(what + " is rubbish")}
}

// A node whose records cannot be read is not called fine: each of them is named
// with what is true now and the cure.
func TestExplainNamesUnreadableRecordsOfANode(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*cluster.NodeView)
		want  []string
	}{
		{"mode", func(n *cluster.NodeView) { spoil(&n.Mode, "it") }, []string{"/nodes/hv2)", "does not count as a coordinator", "writes it anew"}},
		{"keepalive", func(n *cluster.NodeView) { spoil(&n.Keepalive, "it") }, []string{"/nodes/hv2/keepalive", "its silence is counted from", "with each keepalive"}},
		{"daemon state", func(n *cluster.NodeView) { spoil(&n.Daemon, "it") }, []string{"/nodes/hv2/daemonstate", "does not count as running", "writes it anew"}},
		{"coordinator state", func(n *cluster.NodeView) { spoil(&n.Router, "it") }, []string{"/nodes/hv2/routerstate", "by the lease alone", "writes it anew"}},
		{"domain state", func(n *cluster.NodeView) { spoil(&n.Domain, "it") }, []string{"/nodes/hv2/domainstate", "ready for workloads is not known", "writes it anew"}},
		{"registration", func(n *cluster.NodeView) { spoil(&n.Record, "it") }, []string{"/agent/nodes/hv2", "would not be fenced if it were lost", "writes it anew"}},
		{"alive", func(n *cluster.NodeView) { spoil(&n.Alive, "it") }, []string{"/agent/alive/hv2", "of which start is not known", "writes it anew"}},
		{"fence", func(n *cluster.NodeView) { spoil(&n.Fence, "it") }, []string{"/agent/fences/hv2", "no fence of it is carried on", "Upgrade all"}},
		{"two at once, and no session", func(n *cluster.NodeView) {
			n.Alive = cluster.Versioned[cluster.Alive]{}
			spoil(&n.Record, "this")
			spoil(&n.Domain, "that")
		}, []string{"/agent/nodes/hv2", "this is rubbish", "/nodes/hv2/domainstate", "that is rubbish", "start it there"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.sees(cluster.NodeSeen{Liveness: "up"})
			w.node("hv2", c.spoil)
			e := w.explain("hv2")
			for _, want := range append(c.want, "is rubbish") {
				if !strings.Contains(e.Why, want) {
					t.Errorf("why: %s\nlacks %q", e.Why, want)
				}
			}
			if !slices.ContainsFunc(e.Missing, func(m string) bool { return strings.Contains(m, c.want[0]) }) {
				t.Errorf("the cure is not among what is missing: %q", e.Missing)
			}
			if strings.Contains(e.Why, "Nothing is wrong") {
				t.Errorf("called fine: %s", e.Why)
			}
			_, body := w.get("/api/v1/status")
			if s := decode[Status](t, body); s.Health != "Degraded" || !strings.Contains(strings.Join(s.HealthMsg, "\n"), "is rubbish") {
				t.Errorf("status: %s %q", s.Health, s.HealthMsg)
			}
		})
	}
}

// The same for the records of the cluster: in both explanations and the health.
func TestExplainNamesUnreadableRecordsOfTheCluster(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*cluster.Snapshot)
		id    string
		want  []string
	}{
		{"lease", func(s *cluster.Snapshot) { spoil(&s.Lease, "it") }, "RECORD_LEASE", []string{"/agent/lease/primary", "nobody else takes the role", "Never edit it"}},
		{"wish", func(s *cluster.Snapshot) { spoil(&s.PrimaryNode, "it") }, "RECORD_WISH", []string{"/config/primary_node", "the role stays where it is", "`pvc node primary NODE`"}},
		{"transition", func(s *cluster.Snapshot) { spoil(&s.Transition, "it") }, "RECORD_TRANSITION", []string{"/agent/transition", "told by the lease alone", "next hand-over writes it anew"}},
		{"maintenance", func(s *cluster.Snapshot) { spoil(&s.Maintenance, "it") }, "RECORD_MAINTENANCE", []string{"/config/maintenance", "it counts as on", "`pvc cluster maintenance off`"}},
		{"maintenance record", func(s *cluster.Snapshot) { spoil(&s.MaintenanceRecord, "it") }, "RECORD_MAINTENANCE_RECORD", []string{"/agent/maintenance", "does not end by itself", "Set maintenance again"}},
		{"failover settings", func(s *cluster.Snapshot) { spoil(&s.Failover, "it") }, "RECORD_FAILOVER", []string{"/agent/failover", "nobody is fenced", "`pvc settings autofailover --enabled=true`"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.sees(cluster.NodeSeen{Liveness: "up"})
			w.edit(c.spoil)
			for _, what := range []string{"primary", "hv2"} {
				e := w.explain(what)
				for _, want := range append(c.want, "it is rubbish") {
					if !strings.Contains(e.Why, want) {
						t.Errorf("%s: why: %s\nlacks %q", what, e.Why, want)
					}
				}
			}
			_, body := w.get("/api/v1/status")
			s := decode[Status](t, body)
			if s.Health != "Degraded" || !slices.ContainsFunc(s.ClusterHealth.Messages, func(m HealthMessage) bool { return m.ID == c.id }) {
				t.Errorf("status: %+v", s.ClusterHealth)
			}
		})
	}
}

// A coordinator that cannot take the role because of damage is named where the
// role is explained.
func TestExplainRoleNamesDamagedCoordinators(t *testing.T) {
	w := newWorld(t)
	w.node("hv2", func(n *cluster.NodeView) { spoil(&n.Mode, "it") })
	if e := w.explain("primary"); !strings.Contains(e.Why, "Of node hv2, its mode (/nodes/hv2) cannot be read") {
		t.Errorf("why: %s", e.Why)
	}
}

// A primary-only service that fails on the holder degrades the cluster: the
// message names service, node and what to do. A word of the past does not.
func TestAFailedServiceDegradesTheCluster(t *testing.T) {
	w := newWorld(t)
	for _, n := range w.store.leaves {
		n["monitoring_data/load/health_delta"] = "0"
	}
	health := func() Status {
		w.rendered()
		_, body := w.get("/api/v1/status")
		return decode[Status](t, body)
	}
	w.publish("hv1", cluster.View{Mode: "primary", ServiceFault: "start service dns: exit status 1"})
	s := health()
	if s.Health != "Degraded" || len(s.HealthMsg) != 1 || s.ClusterHealth.Health != 100-deltaService || s.ClusterHealth.Messages[0].ID != "SERVICE_hv1" {
		t.Fatalf("%s %q", s.Health, s.HealthMsg)
	}
	for _, want := range []string{"node hv1", "start service dns: exit status 1", "journalctl", "`pvc node secondary hv1 --wait`"} {
		if !strings.Contains(s.HealthMsg[0], want) {
			t.Errorf("%q lacks %q", s.HealthMsg[0], want)
		}
	}
	w.publish("hv1", cluster.View{Mode: "primary", GuardFaults: []string{"02:00:00:00:00:09 claims 192.0.2.1"}})
	w.beat("hv1")
	if s := health(); s.Health != "Degraded" || !strings.Contains(strings.Join(s.HealthMsg, ""), "02:00:00:00:00:09 claims") {
		t.Errorf("%s %q", s.Health, s.HealthMsg)
	}
	w.publish("hv2", cluster.View{Mode: "primary", ServiceFault: "of an earlier time"})
	w.publish("hv1", cluster.View{Mode: "primary"})
	w.beat("hv1")
	w.beat("hv2")
	w.node("hv2", func(n *cluster.NodeView) { n.Alive = cluster.Versioned[cluster.Alive]{} })
	if s := health(); strings.Contains(strings.Join(s.HealthMsg, ""), "of an earlier time") {
		t.Errorf("%s %q", s.Health, s.HealthMsg)
	}
}
