package failover

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

// settledFrame is one of five nodes of which b is dead, seen by the primary a.
func settledFrame() Frame {
	f := Frame{Every: time.Second, Self: "a", Primary: true, Holder: "a", Settings: cluster.DefaultFailoverSettings(),
		Timing: cluster.Timing{KeepaliveInterval: time.Second, FenceIntervals: 5}}
	for _, n := range []cluster.NodeID{"a", "b", "c", "d", "e"} {
		f.Nodes = append(f.Nodes, Node{Name: n, ID: string(n), Incarnation: cluster.Incarnation(n + ".1"), Liveness: cluster.LiveUp})
	}
	f.Nodes[1].Liveness = cluster.LiveDead
	return f
}

// settle feeds the frame until its verdicts are due and returns the last ones.
func settle(f Frame) (actions []cluster.Action, refusals []cluster.Refusal) {
	var s State
	for range 8 {
		var more []cluster.Refusal
		s, actions, more = Step(s, f)
		refusals = append(refusals, more...)
	}
	return actions, refusals
}

// TestRubbishInAFenceRecordDoesNotProtectADeadNode: a stage that nobody can
// carry on, or a record of an incarnation that is no more.
func TestRubbishInAFenceRecordDoesNotProtectADeadNode(t *testing.T) {
	for name, r := range map[string]cluster.FenceRecord{
		"unknown stage":   {ID: "x", Incarnation: "b.1", Stage: "levitating"},
		"no stage":        {ID: "x", Incarnation: "b.1"},
		"no id":           {Incarnation: "b.1", Stage: cluster.FenceDone},
		"old incarnation": {ID: "x", Incarnation: "b.0", Stage: cluster.FenceDone},
	} {
		f := settledFrame()
		f.Nodes[1].Fence = &r
		if actions, refusals := settle(f); len(actions) != 1 || actions[0].Node != "b" {
			t.Errorf("%s: actions %v, refusals %v; want b fenced", name, actions, refusals)
		}
	}
}

// TestRubbishInTheSettingsFencesNobodyMore: no figure makes room beyond one below half.
func TestRubbishInTheSettingsFencesNobodyMore(t *testing.T) {
	for name, s := range map[string]cluster.FailoverSettings{
		"nothing":        {},
		"negative most":  {Enabled: true, MaxCount: -1},
		"spent":          {Enabled: true, MaxCount: 1, Count: 1},
		"more than most": {Enabled: true, MaxCount: 1, Count: 100},
	} {
		f := settledFrame()
		f.Settings = s
		if actions, _ := settle(f); len(actions) != 0 {
			t.Errorf("%s: %v", name, actions)
		}
	}
	f := settledFrame()
	f.Settings = cluster.FailoverSettings{Enabled: true, MaxCount: 100, Count: -100}
	for i := range f.Nodes[1:4] {
		f.Nodes[i+1].Liveness = cluster.LiveDead
	}
	if actions, _ := settle(f); len(actions) != 0 {
		t.Errorf("three of five dead: %v", actions)
	}
}

// TestANodeUnderAFenceInAnUnknownStageCountsAsDown for half or more.
func TestANodeUnderAFenceInAnUnknownStageCountsAsDown(t *testing.T) {
	f := settledFrame()
	for i := range []int{2, 3} {
		f.Nodes[i+2].Fence = &cluster.FenceRecord{ID: "x", Stage: "levitating"}
	}
	if actions, _ := settle(f); len(actions) != 0 {
		t.Errorf("with two of five in doubt and one dead: %v", actions)
	}
}
