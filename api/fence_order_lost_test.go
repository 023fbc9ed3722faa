package api

import (
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// While a lease stands against all who could take the role, the operator's word
// on its holder is taken without a primary: nothing else ends that.
func TestTheLastHoldersDeathIsConfirmedWithoutAPrimary(t *testing.T) {
	expired := func(w *world) {
		w.gone("hv1")
		w.edit(func(s *cluster.Snapshot) { s.Lease.SeenAt = w.clock.Now().Add(-time.Minute) })
	}
	const confirm = "action=confirm&reason=unplugged"
	cases := []struct {
		name, node, form string
		do               func(*world)
		status           int
		text             string
		start            cluster.Incarnation // that the order is about
	}{
		{"the holder is gone", "hv1", confirm, expired, 202, "so that the role can be taken", "b.1"},
		{"the holder is to be fenced", "hv1", "action=fence", expired, 400, "nobody holds the role now", ""},
		{"its later start lives", "hv1", confirm, func(w *world) {
			w.edit(func(s *cluster.Snapshot) {
				s.Lease.SeenAt, s.Lease.Value.Incarnation = w.clock.Now().Add(-time.Minute), "b.0"
			})
		}, 202, "the start of node \\\"hv1\\\" that held the primary role (b.0) counts as dead", "b.0"},
		{"the lease is lost", "hv1", confirm, func(w *world) {
			w.gone("hv1")
			w.edit(func(s *cluster.Snapshot) { s.Lease = cluster.Versioned[cluster.Lease]{} })
		}, 202, "so that the role can be taken", "b.1"},
		{"the holder was stopped, and its guard kept the role", "hv1", confirm, func(w *world) {
			expired(w)
			w.node("hv1", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
		}, 202, "so that the role can be taken", "b.1"},
		{"another was stopped", "hv2", confirm, func(w *world) {
			w.gone("hv2")
			w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
		}, 400, "nothing to confirm", ""},
		{"another was stopped, and the lease waits for its proof", "hv2", confirm, func(w *world) {
			w.gone("hv2")
			w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
			w.edit(func(s *cluster.Snapshot) {
				s.Lease.Value.Unproven = []cluster.Unproven{{Node: "hv2", Incarnation: "b.1"}}
			})
		}, 202, "has no power for the proof", "b.1"},
		{"its record is gone, and it lives", "hv1", confirm, func(w *world) {
			w.node("hv1", func(n *cluster.NodeView) { n.Record = cluster.Versioned[cluster.NodeRecord]{} })
			w.edit(func(s *cluster.Snapshot) { s.Lease.SeenAt = w.clock.Now().Add(-time.Minute) })
		}, 400, "is alive", ""},
		{"the lease is lost, and it lives", "hv1", confirm, func(w *world) {
			w.edit(func(s *cluster.Snapshot) { s.Lease = cluster.Versioned[cluster.Lease]{} })
		}, 400, "is alive", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.do(w)
			status, body := w.post(fencePrefix+c.node, c.form)
			if status != c.status || !strings.Contains(body, c.text) {
				t.Errorf("%d %s, want %d with %q", status, body, c.status, c.text)
			}
			if c.start != "" {
				if o := decode[FenceAnswer](t, body).Order; o == nil || o.Incarnation != c.start {
					t.Errorf("ordered %+v, want one for %s", o, c.start)
				}
			}
		})
	}
}
