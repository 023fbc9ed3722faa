package doctor_test

import (
	"strings"
	"testing"

	"pvc.internal/cluster"
	"pvc.internal/doctor"
)

func holding(node cluster.NodeID) *doctor.Records {
	s := &cluster.Snapshot{Nodes: map[cluster.NodeID]cluster.NodeView{}}
	s.ClusterName = cluster.Versioned[string]{Present: true, Value: "demo"}
	s.Lease = cluster.Versioned[cluster.Lease]{Present: true, Value: cluster.Lease{Holder: node}}
	return &doctor.Records{Snapshot: s}
}

// says fails unless there is one finding, of the verdict, with the words in text
// or cure.
func says(t *testing.T, what string, found []doctor.Finding, v doctor.Verdict, words ...string) {
	t.Helper()
	if len(found) != 1 || found[0].Verdict != v {
		t.Errorf("%s: %+v, want one of %s", what, found, v)
		return
	}
	for _, w := range words {
		if !strings.Contains(found[0].Text+" "+found[0].Cure, w) {
			t.Errorf("%s does not say %q: %+v", what, w, found[0])
		}
	}
}

// What runs of the role beside the role is found, wherever the role is.
func TestServicesThatAreLeft(t *testing.T) {
	unit, hook := []doctor.Running{{Service: "dns", Unit: "dns.service"}}, []doctor.Running{{Service: "dhcp", PID: 42, Program: "/usr/sbin/dhcp"}}
	says(t, "a unit elsewhere", doctor.LeftRunning("hv1", unit, holding("hv2")), doctor.Problem, "dns.service is active", `"hv2" holds`, "systemctl stop dns.service")
	says(t, "a program elsewhere", doctor.LeftRunning("hv1", hook, holding("hv2")), doctor.Problem, "process 42", "/usr/sbin/dhcp")
	says(t, "a unit with nobody primary", doctor.LeftRunning("hv1", unit, holding("")), doctor.Problem)
	says(t, "at the holder", doctor.LeftRunning("hv2", unit, holding("hv2")), doctor.OK)
	says(t, "without records", doctor.LeftRunning("hv1", unit, nil), doctor.Unchecked)
	moving := holding("hv2")
	moving.Snapshot.Transition = cluster.Versioned[cluster.Transition]{Present: true, Value: cluster.Transition{ID: "t", State: cluster.TransitionRunning}}
	says(t, "on its way", doctor.LeftRunning("hv1", unit, moving), doctor.Unchecked)
	if found := doctor.LeftRunning("hv1", nil, holding("hv2")); len(found) != 0 {
		t.Errorf("nothing runs: %+v", found)
	}
}

func TestGatesThatAreLeft(t *testing.T) {
	for _, c := range []struct {
		gate doctor.Gate
		word string
	}{
		{doctor.Gate{Set: true, Guarded: true, There: true}, ""},
		{doctor.Gate{Set: true}, ""},
		{doctor.Gate{Guarded: true}, ""},
		{doctor.Gate{There: true, Guarded: true}, "role.gate is off"},
		{doctor.Gate{Set: true, There: true}, "no guard runs"},
	} {
		c.gate.Table = "pvc_gate"
		found := doctor.Gates(c.gate)
		if c.word == "" {
			if len(found) > 0 {
				t.Errorf("%+v: %+v", c.gate, found)
			}
			continue
		}
		says(t, c.word, found, doctor.Problem, c.word, "nft delete table inet pvc_gate")
	}
}

// A tree that is gone is not to be made anew where it is remembered, and a half
// one is nobody's.
func TestTreesThatAreGone(t *testing.T) {
	empty := holding("")
	empty.Snapshot.ClusterName.Present = false
	says(t, "a new cluster", doctor.Cluster(*empty), doctor.Problem, "pvc cluster init --name")
	empty.Remembers = "demo"
	says(t, "data that is gone", doctor.Cluster(*empty), doctor.Problem, "data is gone", `"demo"`, "pvc cluster restore FILE", "Not `pvc cluster init`")
	half := holding("hv1")
	half.Half = "the tree is only half restored"
	says(t, "a half tree", doctor.Cluster(*half), doctor.Problem, "half restored", "pvc cluster restore FILE")
}
