package api

import (
	"encoding/json"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// asks has the primary publish that it asks for node leases.
func (w *world) asks(id cluster.NodeLeaseID) {
	raw, _ := json.Marshal(cluster.NodeLeases{Version: 1, Lease: id})
	w.store.nodeLeases = string(raw)
}

// In a cluster that is just coming up a workload is taken as soon as its primary asks
// for node leases, though no quorum set is made yet; before that the answer is one to
// try again after; where nobody will ever ask it is a refusal. Nothing else is written.
func TestWorkloadsBeforeTheFirstQuorumSet(t *testing.T) {
	peer := func(w *world) {
		w.node("hv1", func(n *cluster.NodeView) { n.Record.Value.Peer = "192.0.2.1:7771" })
	}
	nobody := func(w *world) { w.edit(func(s *cluster.Snapshot) { s.Lease.Value.Holder = "" }) }
	asking := func(holder cluster.NodeID, epoch cluster.Epoch) func(*world) {
		return func(w *world) { w.asks(cluster.NodeLeaseID{Holder: holder, Epoch: epoch}) }
	}
	for name, c := range map[string]struct {
		before []func(*world)
		status int
		want   string
	}{
		"a primary that talks to nobody":        {nil, 400, "workloads_without_leases"},
		"a primary that has not begun":          {[]func(*world){peer}, 503, "hv1, the primary, has not begun with them"},
		"no primary":                            {[]func(*world){peer, nobody}, 503, "nobody holds the primary role yet"},
		"a record of the primary before":        {[]func(*world){peer, asking("hv2", 3)}, 503, "try again"},
		"a record of an earlier epoch":          {[]func(*world){peer, asking("hv1", 3)}, 503, "try again"},
		"a record that nobody stands behind":    {[]func(*world){peer, nobody, asking("", 0)}, 503, "try again"},
		"rubbish":                               {[]func(*world){peer, func(w *world) { w.store.nodeLeases = "{" }}, 503, "try again"},
		"a primary that asks for node leases":   {[]func(*world){peer, asking("hv1", 4)}, 202, "The first quorum set of node leases is just being made"},
		"a quorum set":                          {[]func(*world){(*world).leased}, 202, `Added workload \"a\" (replicated, redis)."`},
		"a quorum set, and no primary just now": {[]func(*world){(*world).leased, nobody}, 202, "Nobody holds the primary role now"},
	} {
		for path, form := range map[string]string{workloadsPath: "name=a&driver=redis", "/api/v1/rebalance": ""} {
			w := newWorld(t)
			for _, f := range c.before {
				f(w)
			}
			status, body := w.post(path, form)
			want := c.want
			if form == "" && status < 300 {
				want = "Ordered: a rebalance"
			}
			if status/100 != c.status/100 || c.status > 299 && status != c.status || !strings.Contains(body, want) {
				t.Errorf("%s, %s: %d %s, want %d %q", name, path, status, body, c.status, want)
			}
			if wrote := w.store.commits; (wrote == 1) != (c.status < 300) {
				t.Errorf("%s, %s: %d writes", name, path, wrote)
			}
		}
	}
}
