package sandbox

import (
	"testing"

	"pvc.internal/cluster"
)

func TestTheDemoTellsOfNodeLeases(t *testing.T) {
	held := func(us int64) cluster.NodeLeaseSeen {
		return cluster.NodeLeaseSeen{State: cluster.LeaseSeenHeld, RTT: cluster.RoundTripSeen{Last: us}}
	}
	l := cluster.NodeLeases{Lease: cluster.NodeLeaseID{Holder: "hv1", Start: "s", Epoch: 2}, Majority: true,
		Nodes: map[cluster.NodeID]cluster.NodeLeaseSeen{"hv1": held(80), "hv2": held(1420), "hv3": {State: cluster.LeaseSeenRefused}}}
	line, all := leasesLine(l, 3)
	if want := "node leases: hv1 holds those of 2 of 3 nodes, a majority, at epoch 2; worst round trip 1.4 ms"; line != want || all {
		t.Errorf("%q, all %v; want %q", line, all, want)
	}
	l.Nodes["hv3"] = held(9)
	if line, all := leasesLine(l, 3); !all {
		t.Errorf("all are held, and it says %q", line)
	}
	if _, all := leasesLine(l, 4); all {
		t.Error("a node that is not in the record counts as held")
	}
}
