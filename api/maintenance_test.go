package api

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

// echo publishes the maintenance switch as each of the nodes sees it.
func (w *world) echo(on bool, nodes ...cluster.NodeID) {
	w.t.Helper()
	w.store.mu.Lock()
	version := w.store.snap.Maintenance.Version
	w.store.mu.Unlock()
	for _, n := range nodes {
		w.publish(n, cluster.View{Version: 1, Mode: "idle", Maintenance: on, MaintenanceVersion: version})
	}
}

// The answer comes with the last live node's echo and not before; who has no
// session is not waited for.
func TestMaintenanceWaitsForEveryLiveNode(t *testing.T) {
	for path, form := range map[string]string{"/api/v1/maintenance": "state=on&wait=20s", "/api/v1/status": "state=true&wait=20"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.echo(false, "hv1", "hv2", "hv3")
			w.node("hv3", func(n *cluster.NodeView) { n.Alive = cluster.Versioned[cluster.Alive]{} })
			go func() {
				time.Sleep(time.Second)
				w.echo(true, "hv1")
				time.Sleep(2 * time.Second)
				w.echo(true, "hv2")
			}()
			started := time.Now()
			status, body := w.post(path, form)
			if took := time.Since(started).Round(time.Second); status != 200 || took != 3*time.Second {
				t.Errorf("%s: %d after %s: %s", path, status, took, body)
			}
			if path != "/api/v1/status" && !strings.Contains(body, `"confirmed":["hv1","hv2"]`) {
				t.Errorf("%s", body)
			}
			if !w.store.snap.Maintenance.Value {
				t.Error("the switch was not written")
			}
		})
	}
}

func TestMaintenanceNamesWhoDidNotConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.echo(false, "hv2")
		go func() {
			time.Sleep(time.Second)
			w.echo(true, "hv1")
		}()
		started := time.Now()
		status, body := w.post("/api/v1/maintenance", "state=on&wait=5s")
		if took := time.Since(started).Round(time.Second); status != 504 || took != 5*time.Second {
			t.Errorf("%d after %s", status, took)
		}
		a := decode[MaintenanceAnswer](t, body)
		const want = "Maintenance is set on and stays so, but not every live node confirmed it within 5s: hv2 (it has not yet seen this switch; what it last confirmed was maintenance off), hv3 (it has published no view yet). " +
			"A node that has not may still take the primary role or fence of its own accord. See `pvc explain hv2` and pvcnoded's log there; then ask again with --wait."
		if a.Message != want || len(a.Unconfirmed) != 2 || a.Unconfirmed[0].Node != "hv2" {
			t.Errorf("%s", body)
		}
		if !w.store.snap.Maintenance.Value {
			t.Error("the switch was taken back")
		}
		w.echo(true, "hv2", "hv3") // asked again, it is answered at once
		status, body = w.post("/api/v1/maintenance", "state=on&wait=5s")
		if a := decode[MaintenanceAnswer](t, body); status != 200 || !a.Already || len(a.Confirmed) != 3 {
			t.Errorf("%d %s", status, body)
		}
	})
}

// An "on" that was confirmed for an earlier turn of the switch confirms nothing.
func TestMaintenanceTakesNoOldEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.echo(true, "hv1", "hv2", "hv3")
		if status, body := w.post("/api/v1/maintenance", "state=on&wait=2s"); status != 504 {
			t.Errorf("%d %s", status, body)
		}
	})
}

// A node that is lost while it is waited for is waited for no longer.
func TestMaintenanceForgetsTheLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		go func() {
			time.Sleep(time.Second)
			w.echo(true, "hv1", "hv3")
			time.Sleep(time.Second)
			w.node("hv2", func(n *cluster.NodeView) { n.Alive = cluster.Versioned[cluster.Alive]{} })
		}()
		started := time.Now()
		status, body := w.post("/api/v1/maintenance", "state=on&wait=20s")
		if took := time.Since(started).Round(time.Second); status != 200 || took != 2*time.Second {
			t.Errorf("%d after %s: %s", status, took, body)
		}
	})
}

func TestMaintenanceWaitIsOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		go func() {
			time.Sleep(time.Second)
			w.edit(func(s *cluster.Snapshot) { s.Maintenance.Value = false; s.Maintenance.Version += 2 })
		}()
		status, body := w.post("/api/v1/maintenance", "state=on&wait=20s")
		if status != 409 || !strings.Contains(body, "somebody has set it off again") {
			t.Errorf("%d %s", status, body)
		}
	})
}

func TestMaintenanceWaitWithoutStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.viewError = cluster.ErrNotLive
		go func() {
			time.Sleep(50 * time.Millisecond)
			w.edit(func(s *cluster.Snapshot) { s.Live = false })
		}()
		w.echo(true, "hv1", "hv2", "hv3")
		status, body := w.post("/api/v1/maintenance", "state=on&wait=2s")
		if status != 504 || !strings.Contains(body, "hv1 (its view cannot be read: not connected to ZooKeeper)") {
			t.Errorf("%d %s", status, body)
		}
	})
}

// Without wait nobody is asked.
func TestMaintenanceWithoutWait(t *testing.T) {
	w := newWorld(t)
	if status, body := w.post("/api/v1/maintenance", "state=on"); status != 200 || strings.Contains(body, "confirmed") {
		t.Errorf("%d %s", status, body)
	}
}
