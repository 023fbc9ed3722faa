package failover

import (
	"reflect"
	"strings"
	"testing"
	"time"

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
			n.Fence = &cluster.FenceRecord{ID: "f", Incarnation: n.Incarnation, Stage: cluster.FencePowerOff, Tries: 1}
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
		if n.fence().ID != "" {
			t.Fatalf("action on %s, whose fence is under way", a.Node)
		}
		if next.Down[a.Node].Frames < f.needed() {
			t.Fatalf("acted after %d frames", next.Down[a.Node].Frames)
		}
	}
}

// tide is a cluster of which now few, now half and more are silent or late, with
// frames in which the observer is blind between them.
type tide struct {
	base   Frame
	silent map[cluster.NodeID]int // frames for which it stays so
}

// draw is the next frame.
func (d *tide) draw(t *rapid.T) Frame {
	f := d.base
	f.Nodes = append([]Node(nil), d.base.Nodes...)
	if rapid.IntRange(0, 14).Draw(t, "flood") == 0 {
		for _, n := range someNodes[1:rapid.IntRange(2, len(someNodes)).Draw(t, "of")] {
			d.silent[n] = rapid.IntRange(1, 9).Draw(t, "for")
		}
	}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		switch {
		case n.Name == f.Self:
		case d.silent[n.Name] > 0:
			d.silent[n.Name]--
			n.Liveness = cluster.LiveDead
		case rapid.IntRange(0, 11).Draw(t, "late") == 0:
			n.Liveness = max(n.Liveness, cluster.LiveLate)
		}
		n.Leaving = n.Liveness.Down() && rapid.IntRange(0, 19).Draw(t, "leaving") == 0
		if rapid.IntRange(0, 29).Draw(t, "fence") == 0 {
			n.Fence = &cluster.FenceRecord{ID: "f", Incarnation: n.Incarnation, Stage: cluster.FenceVerify, Tries: 1}
		}
	}
	return f
}

// halfSilent reports whether half or more are silent or under a fence.
func halfSilent(f Frame) bool {
	silent := 0
	for _, n := range f.Nodes {
		underWay := n.Fence != nil && !n.Fence.Ended()
		if n.Name != f.Self && (underWay || n.Liveness > cluster.LiveLate && !n.Leaving) {
			silent++
		}
	}
	return 2*silent >= len(f.Nodes)
}

// Nobody is acted on before less than half were silent for as long as a verdict
// takes, frames in which nobody looked not counted; and those change nothing else:
// an observer that was never blind acts in the same frames.
func TestAfterAFloodEachHasTheWholeTime(t *testing.T) {
	acted, put := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		d := &tide{base: drawBase(t), silent: map[cluster.NodeID]int{}}
		d.base.Settings.Count, d.base.Settings.MaxCount = 0, 100
		d.base.Settings.Timeout = int64(rapid.IntRange(1, 8).Draw(t, "timeout"))
		var state, sighted State
		needed, since := d.base.needed(), 0 // frames since half were silent
		for range rapid.IntRange(1, 80).Draw(t, "frames") {
			f := d.draw(t)
			if rapid.IntRange(0, 5).Draw(t, "blind") == 0 {
				blind := f
				blind.Blind = "stalled"
				next, actions, _ := Step(state, blind)
				if len(actions) > 0 {
					t.Fatalf("blind, and acts: %v", actions)
				}
				state = next
			}
			if since++; halfSilent(f) {
				since = 0
			}
			next, actions, refusals := Step(state, f)
			other, same, _ := Step(sighted, f)
			if !reflect.DeepEqual(actions, same) {
				t.Fatalf("%v, without the blind frames %v", actions, same)
			}
			state, sighted = next, other
			acted += len(actions)
			if len(actions) > 0 && (since < needed || !state.Calm(f)) {
				t.Fatalf("acts %d frames after half were silent, of %d; calm: %v", since, needed, state.Calm(f))
			}
			for _, r := range refusals {
				if strings.Contains(r.Detail, "a moment ago") {
					put++
				}
			}
		}
	})
	if acted == 0 || put == 0 {
		t.Errorf("%d actions, %d put off: the property tests nothing", acted, put)
	}
}

// And no longer: whoever is dead still is acted on with the last frame of that
// time, however many of the others are late now and then.
func TestAfterAFloodTheDeadIsActedOnInTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := settledFrame()
		f.Settings.Timeout = int64(rapid.IntRange(1, 8).Draw(t, "timeout"))
		flood := f
		flood.Nodes = append([]Node(nil), f.Nodes...)
		for i := range flood.Nodes[1:] {
			flood.Nodes[i+1].Liveness = cluster.LiveDead
		}
		var state State
		for range rapid.IntRange(0, 12).Draw(t, "alone") {
			state, _, _ = Step(state, f)
		}
		for range rapid.IntRange(1, 12).Draw(t, "flood") {
			var actions []cluster.Action
			if state, actions, _ = Step(state, flood); len(actions) > 0 {
				t.Fatalf("of four dead of five: %v", actions)
			}
		}
		for frame := 1; ; frame++ {
			now := f
			now.Nodes = append([]Node(nil), f.Nodes...)
			if frame < f.needed()-1 { // in the last two frames the set of down nodes must stand still
				for i := range rapid.IntRange(0, 3).Draw(t, "late") {
					now.Nodes[2+i].Liveness = cluster.LiveLate
				}
			}
			var actions []cluster.Action
			if state, actions, _ = Step(state, now); len(actions) > 0 {
				if frame < f.needed() {
					t.Fatalf("acts in frame %d of %d", frame, f.needed())
				}
				return
			}
			if frame >= f.needed() {
				t.Fatalf("does not act in %d frames of %d", frame, f.needed())
			}
		}
	})
}

// A frame in which the others are only counted is worth the same as one that
// names them all.
func TestTheOthersNeedOnlyBeCounted(t *testing.T) {
	acted := 0
	rapid.Check(t, func(t *rapid.T) {
		base := drawBase(t)
		var named, counted State
		for range rapid.IntRange(1, 30).Draw(t, "frames") {
			f := drawFrame(t, base)
			snap, levels := &cluster.Snapshot{Nodes: map[cluster.NodeID]cluster.NodeView{}}, map[cluster.NodeID]Seen{}
			for _, n := range f.Nodes {
				v := cluster.NodeView{Name: n.Name}
				v.Record = cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{ID: n.ID, Incarnation: n.Incarnation}}
				if n.Fence != nil {
					v.Fence = cluster.Versioned[cluster.FenceRecord]{Present: true, Value: *n.Fence}
				}
				snap.Nodes[n.Name], levels[n.Name] = v, Seen{Liveness: n.Liveness, Excused: n.Excused}
			}
			snap.Nodes["g"] = cluster.NodeView{Name: "g"} // not registered
			levels["g"] = Seen{Liveness: cluster.LiveUp}
			all, few := f, f
			all.Nodes = NodesSeen(snap, func(n cluster.NodeID) Seen { return levels[n] })
			few.Look(snap, func(n cluster.NodeID) Seen { return levels[n] })
			for _, n := range []cluster.NodeID{"b", "c"} {
				if !reflect.DeepEqual(Explain(named, all, n), Explain(counted, few, n)) {
					t.Fatalf("%+v, counted %+v", Explain(named, all, n), Explain(counted, few, n))
				}
			}
			next, actions, refusals := Step(named, all)
			next2, actions2, refusals2 := Step(counted, few)
			if !reflect.DeepEqual(next, next2) || !reflect.DeepEqual(actions, actions2) || !reflect.DeepEqual(refusals, refusals2) {
				t.Fatalf("%+v %v %v, counted %+v %v %v", next, actions, refusals, next2, actions2, refusals2)
			}
			named, counted, acted = next, next2, acted+len(actions)
		}
	})
	if acted == 0 {
		t.Error("no frame led to an action: the property tests nothing")
	}
}

// Who looks half as often while all are up, and counts the first look after that
// twice, acts in the same frame as who always looks, or one beside it.
func TestLooksThatAreLeftOutMoveNoVerdict(t *testing.T) {
	acted := 0
	rapid.Check(t, func(t *rapid.T) {
		base := settledFrame()
		base.Every, base.Settings.Timeout = 250*time.Millisecond, int64(rapid.IntRange(2, 6).Draw(t, "timeout"))
		spell := func(most int) int { return rapid.IntRange(0, most).Draw(t, "frames") }
		var frames []Frame
		add := func(n int, l cluster.Liveness, nodes int) {
			for range n {
				f := base
				f.Nodes = append([]Node(nil), base.Nodes...)
				for i := range f.Nodes[1:] {
					f.Nodes[i+1].Liveness = cluster.LiveUp
					if i < nodes {
						f.Nodes[i+1].Liveness = l
					}
				}
				frames = append(frames, f)
			}
		}
		add(1+spell(9), cluster.LiveUp, 0)
		for range rapid.IntRange(0, 2).Draw(t, "floods") {
			many := rapid.IntRange(1, 4).Draw(t, "nodes")
			add(2+spell(6), cluster.LiveLate, many)
			add(spell(6), cluster.LiveSuspect, many)
			add(spell(5), cluster.LiveUp, 0)
		}
		add(2+spell(9), cluster.LiveLate, 1)
		add(base.needed()+2, cluster.LiveDead, 1)
		always, seldom := -1, -1
		var state State
		for i := range frames {
			var actions []cluster.Action
			if state, actions, _ = Step(state, frames[i]); len(actions) > 0 && always < 0 {
				always = i
			}
		}
		state = State{}
		for i, skipped := 0, false; i < len(frames); i++ {
			if skipped {
				state, _, _ = Step(state, frames[i])
			}
			var actions []cluster.Action
			if state, actions, _ = Step(state, frames[i]); len(actions) > 0 && seldom < 0 {
				seldom = i
			}
			if skipped = len(state.Down) == 0; skipped {
				i++
			}
		}
		if always < 0 || seldom < always-1 || seldom > always+1 {
			t.Fatalf("acts in frame %d, with looks left out in %d", always, seldom)
		}
		acted++
	})
	if acted == 0 {
		t.Error("the property tests nothing")
	}
}
