package failover

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"pvc.internal/cluster"
)

var someNodes = []cluster.NodeID{"a", "b", "c", "d", "e", "f"}

// drawBase is a cluster in which some nodes are dead for the whole run; the
// frames differ from it here and there, or no verdict would ever fall.
func drawBase(t *rapid.T) Frame {
	f := Frame{
		Self: someNodes[0], Timing: cluster.ProfileLAN(), Primary: true,
		Settings: cluster.FailoverSettings{
			Enabled: true, MaxCount: rapid.IntRange(1, 4).Draw(t, "max"), Count: rapid.IntRange(0, 2).Draw(t, "count"),
		},
	}
	size := rapid.IntRange(1, len(someNodes)).Draw(t, "size")
	for _, name := range someNodes[:size] {
		n := Node{Name: name, ID: "id", Incarnation: cluster.Incarnation("i." + name), Liveness: cluster.LiveUp}
		if name != f.Self && rapid.IntRange(0, 2).Draw(t, "dead") == 0 {
			n.Liveness = cluster.LiveDead
		}
		f.Nodes = append(f.Nodes, n)
	}
	return f
}

func drawFrame(t *rapid.T, base Frame) Frame {
	f := base
	f.Nodes = append([]Node(nil), base.Nodes...)
	rarely := func(label string) bool { return rapid.IntRange(0, 19).Draw(t, label) == 0 }
	if rarely("blind") {
		f.Blind = "stalled"
	}
	f.Primary = !rarely("secondary")
	f.Maintenance = rarely("maintenance")
	f.Settings.Enabled = !rarely("disabled")
	if rarely("held") {
		f.Holder = rapid.SampledFrom(someNodes).Draw(t, "holder")
	}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if rarely("odd") {
			n.Liveness = cluster.Liveness(rapid.IntRange(int(cluster.LiveUp), int(cluster.LiveDead)).Draw(t, "level"))
		}
		n.Excused = rarely("excused")
		if rarely("fence") {
			n.Fence = cluster.FenceRecord{ID: "f", Incarnation: n.Incarnation, Stage: cluster.FencePowerOff, Tries: 1}
		}
	}
	return f
}

func clone(s State) State {
	down := make(map[cluster.NodeID]NodeState, len(s.Down))
	for n, v := range s.Down {
		down[n] = v
	}
	if s.Down == nil {
		down = nil
	}
	s.Down, s.set = down, append([]cluster.NodeID(nil), s.set...)
	return s
}

// Whatever comes, an action is never on oneself, on the living, on the holder
// or on half or more of the nodes, never without the role, in maintenance or
// blind, and never beyond the budget; and no input is edited.
func TestWhateverComesTheMajorityLives(t *testing.T) {
	acted := 0
	rapid.Check(t, func(t *rapid.T) {
		var state State
		base := drawBase(t)
		for range rapid.IntRange(1, 40).Draw(t, "frames") {
			f := drawFrame(t, base)
			before, frame := clone(state), f
			frame.Nodes = append([]Node(nil), f.Nodes...)
			next, actions, refusals := Step(state, f)
			if !reflect.DeepEqual(before, clone(state)) || !reflect.DeepEqual(frame, f) {
				t.Fatal("the step edited its input")
			}
			checkActions(t, f, next, actions)
			for _, r := range refusals {
				if r.Code == "" || r.Detail == "" || r.Code == state.Down[r.Node].Reported {
					t.Fatalf("refusal %+v after %+v", r, state.Down[r.Node])
				}
			}
			acted += len(actions)
			state = next
		}
	})
	if acted == 0 {
		t.Error("no frame led to an action: the property tests nothing")
	}
}

func checkActions(t *rapid.T, f Frame, next State, actions []cluster.Action) {
	nodes, down := map[cluster.NodeID]Node{}, 0
	for _, n := range f.Nodes {
		nodes[n.Name] = n
		if n.Name != f.Self && n.Liveness.Down() && !n.Excused {
			down++
		}
	}
	if len(actions) == 0 {
		return
	}
	if !f.Primary || f.Maintenance || f.Blind != "" || !f.Settings.Enabled {
		t.Fatalf("acted with primary=%v maintenance=%v blind=%q enabled=%v", f.Primary, f.Maintenance, f.Blind, f.Settings.Enabled)
	}
	if 2*down >= len(f.Nodes) {
		t.Fatalf("acted with %d of %d nodes down", down, len(f.Nodes))
	}
	if len(actions) > f.Settings.MaxCount-f.Settings.Count {
		t.Fatalf("%d actions, budget %d of %d", len(actions), f.Settings.Count, f.Settings.MaxCount)
	}
	for _, a := range actions {
		n := nodes[a.Node]
		if a.Node == f.Self || a.Node == f.Holder || n.Liveness != cluster.LiveDead || n.Excused || a.Incarnation != n.Incarnation {
			t.Fatalf("action %+v on %+v", a, n)
		}
		if n.Fence.ID != "" {
			t.Fatalf("action on %s, whose fence is under way", a.Node)
		}
		if next.Down[a.Node].Frames < f.needed() {
			t.Fatalf("acted after %d frames", next.Down[a.Node].Frames)
		}
	}
}
