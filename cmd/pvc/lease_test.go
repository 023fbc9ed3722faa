package main

import (
	"slices"
	"strings"
	"testing"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

func TestLeaseList(t *testing.T) {
	at := clockTime
	view := api.LeasesView{
		InUse: true, Holder: "hv1", AgeSeconds: 2.25, Period: 5, Set: []cluster.NodeID{"hv1", "hv2", "hv3"}, Majority: true,
		Nodes: []api.NodeLeaseView{
			{Node: "hv1", State: "held", Holder: "hv1", Counts: true, LeftSeconds: 3, UntilMS: 9000, SinceMS: 1000, RTT: api.RoundTripView{Median: 0.25, P99: 1.5, Last: 0.3}},
			{Node: "hv2", State: "refused", Counts: true, SinceMS: 2000, Code: cluster.RefuseLeaseAcquired, Detail: "hv3 is served"},
		},
	}
	got := pvc(t, newServer(t, map[string]any{"GET /leases": view}), "", "lease", "list")
	for _, line := range []string{
		"hv1 holds a majority of the quorum set (hv1 hv2 hv3), as of 2.2 s ago; without another renewal a lease lasts 5 s at its node",
		"NODE  COUNTS  LEASE    HOLDER  UNTIL                    LEFT THEN  SINCE                    RTT MEDIAN  P99      LAST     REASON",
		"hv1   yes     held     hv1     " + at(9000) + "  3.0 s      " + at(1000) + "  0.25 ms     1.50 ms  0.30 ms",
		"hv2   yes     refused                                              " + at(2000) + "                                already_acquired: hv3 is served",
	} {
		if got.code != exitOK || !slices.ContainsFunc(strings.Split(got.out, "\n"), func(l string) bool { return strings.TrimRight(l, " ") == line }) {
			t.Errorf("%q is not a line of\n%s%s", line, got.out, got.err)
		}
	}
	view.Majority, view.Doubt = false, "nobody is primary"
	got = pvc(t, newServer(t, map[string]any{"GET /leases": view}), "", "lease", "list")
	if !strings.HasPrefix(got.out, "! nobody is primary\nhv1 holds no majority") {
		t.Errorf("%+v", got)
	}
	got = pvc(t, newServer(t, map[string]any{"GET /leases": api.LeasesView{Doubt: "no peer"}}), "", "lease", "list")
	if got.out != "node leases are not in use: no peer\n" {
		t.Errorf("%+v", got)
	}
	got = pvc(t, newServer(t, map[string]any{"GET /leases": view}), "", "lease", "list", "-o", "yaml")
	if got.code != exitOK || !strings.Contains(got.out, "quorum_set:\n  - hv1\n") || !strings.Contains(got.out, "median: 0.25") {
		t.Errorf("%+v", got)
	}
}
