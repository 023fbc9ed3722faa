package api

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// leasesOf stands the record of node leases of that epoch and age.
func (w *world) leasesOf(holder cluster.NodeID, epoch cluster.Epoch, age time.Duration) {
	w.t.Helper()
	raw, err := json.Marshal(cluster.NodeLeases{
		Version: 1, Lease: cluster.NodeLeaseID{Holder: holder, Start: "s", Epoch: epoch}, Set: []cluster.NodeID{"hv1", "hv2"}, Majority: true, PeriodMS: 5000,
		UnixMS: time.Now().Add(-age).UnixMilli(), Nodes: map[cluster.NodeID]cluster.NodeLeaseSeen{
			"hv1": {State: cluster.LeaseSeenHeld, LeftMS: 3000, SinceMS: 1000, RTT: cluster.RoundTripSeen{Median: 250, P99: 1500, Last: 300}},
			"hv2": {State: cluster.LeaseSeenRefused, SinceMS: 2000, Code: cluster.RefuseLeaseAcquired, Detail: "hv3 is served"},
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store.nodeLeases = string(raw)
}

// Each registered node is listed with who holds its lease, until when, and why
// nobody does.
func TestLeasesAreListed(t *testing.T) {
	w := newWorld(t)
	w.leasesOf("hv1", 4, 2*time.Second)
	status, body := w.get("/api/v1/leases")
	v := decode[LeasesView](t, body)
	if status != 200 || !v.InUse || v.Doubt != "" || v.Holder != "hv1" || v.AgeSeconds < 2 || v.AgeSeconds > 60 || v.Period != 5 || !v.Majority || len(v.Nodes) != 3 {
		t.Fatalf("%d %s", status, body)
	}
	held, refused, unknown := v.Nodes[0], v.Nodes[1], v.Nodes[2]
	if held.Node != "hv1" || held.State != "held" || held.Holder != "hv1" || held.LeftSeconds != 3 || held.UntilMS == 0 || held.SinceMS != 1000 || !held.Counts ||
		held.RTT != (RoundTripView{Median: 0.25, P99: 1.5, Last: 0.3}) {
		t.Errorf("held: %+v", held)
	}
	if refused.State != "refused" || refused.Holder != "" || refused.UntilMS != 0 || refused.Code != cluster.RefuseLeaseAcquired || refused.Detail != "hv3 is served" {
		t.Errorf("refused: %+v", refused)
	}
	if unknown.State != "unknown" || unknown.Counts {
		t.Errorf("a node that the primary does not know yet: %+v", unknown)
	}
}

// What need not be true any more is not told as if it were.
func TestLeasesAreDoubted(t *testing.T) {
	for _, c := range []struct {
		name  string
		set   func(*world)
		inUse bool
		doubt string
	}{
		{"never published", func(*world) {}, false, "peer in pvcnoded.yaml"},
		{"unreadable", func(w *world) { w.store.nodeLeases = "{" }, false, "cannot be read"},
		{"another is primary", func(w *world) { w.leasesOf("hv2", 3, time.Second) }, true, "hv1 is primary now and has published nothing yet"},
		{"switched off since", func(w *world) { w.leasesOf("hv2", 3, time.Hour) }, false, "node_leases in its pvcnoded.yaml"},
		{"silent", func(w *world) { w.leasesOf("hv1", 4, time.Hour) }, true, "published 1h0m0s ago"},
		{"no primary", func(w *world) { w.leasesOf("hv1", 4, time.Second); noPrimary(w) }, true, "nobody holds the primary role"},
	} {
		w := newWorld(t)
		c.set(w)
		status, body := w.get("/api/v1/leases")
		if v := decode[LeasesView](t, body); status != 200 || v.InUse != c.inUse || !strings.Contains(v.Doubt, c.doubt) || v.Nodes == nil || v.Set == nil {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
	}
}
