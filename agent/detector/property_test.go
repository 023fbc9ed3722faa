package detector

import (
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pvc.internal/cluster"
)

// Whatever is seen: nobody is dead who was not silent for F·K while somebody
// looked, or has an excuse, or whose session lives; a blind observer takes no
// judgement back for the worse and counts nothing; and no input is edited.
func TestNobodyIsDeadWithoutEvidence(t *testing.T) {
	dead := 0
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.run("nodes a b c")
		looked := map[cluster.NodeID]time.Duration{} // since its last keepalive, while not blind
		doomed := rapid.IntRange(9, 30).Draw(rt, "b loses power")
		for step := range rapid.IntRange(40, 160).Draw(rt, "steps") {
			if step == doomed {
				w.silent["b"] = true
				w.run("expire b")
			}
			before, last := w.state, w.now
			beats := map[cluster.NodeID]int64{"b": w.snap.Nodes["b"].Keepalive.Mzxid, "c": w.snap.Nodes["c"].Keepalive.Mzxid}
			w.now = w.now.Add(time.Duration(rapid.SampledFrom([]int{100, 250, 500, 1000, 1000, 1400}).Draw(rt, "ms")) * time.Millisecond)
			drawEvents(rt, w)
			snapshot := *w.snap
			w.step()
			if !reflect.DeepEqual(snapshot, *w.snap) {
				rt.Fatal("the snapshot was edited")
			}
			for name, after := range w.state.Nodes {
				view := w.snap.Nodes[name]
				if view.Keepalive.Mzxid != beats[name] {
					looked[name] = 0
				} else if w.state.Blind == "" {
					looked[name] += w.now.Sub(last)
				}
				checkJudgement(rt, w, before.Nodes[name], after, view, looked[name])
				if after.Liveness == cluster.LiveDead {
					dead++
				}
			}
		}
	})
	if dead == 0 {
		t.Error("no node was ever dead: the property tests nothing")
	}
}

func drawEvents(rt *rapid.T, w *world) {
	rarely := func(label string) bool { return rapid.IntRange(0, 39).Draw(rt, label) == 23 } // small ones are drawn more often
	if !rarely("own keepalive missing") {
		w.beat("a")
	}
	for _, name := range []cluster.NodeID{"b", "c"} {
		if rarely("dies") {
			w.silent[name] = true
			if rapid.Bool().Draw(rt, "with its session") {
				w.run("expire " + string(name))
			}
		}
		if rarely("lives") {
			w.silent[name] = false
		}
		if rarely("session ends") {
			w.run("expire " + string(name))
		}
		if rarely("state") {
			w.run("state " + string(name) + " " + rapid.SampledFrom([]string{"run", "init", "shutdown", "stop"}).Draw(rt, "state"))
		}
		if !w.silent[name] && w.snap.Live {
			w.beat(name)
		}
	}
	w.late = rarely("late")
	for _, command := range []string{"disconnect", "session"} {
		if rarely(command) {
			w.run(command)
		}
	}
	if !w.snap.Live && rapid.Bool().Draw(rt, "back") {
		w.run("reconnect")
	}
}

func checkJudgement(rt *rapid.T, w *world, before, after NodeState, view cluster.NodeView, looked time.Duration) {
	needed := time.Duration(w.timing.FenceIntervals) * w.timing.KeepaliveInterval
	if after.Silence > looked {
		rt.Fatalf("%s counts as silent for %s, and was watched in silence for %s", view.Name, after.Silence, looked)
	}
	if w.state.Blind != "" {
		if before.Liveness != 0 && after.Liveness > before.Liveness {
			rt.Fatalf("%s became %s while the observer was blind (%s)", view.Name, after.Liveness, w.state.Blind)
		}
		return
	}
	if after.Liveness == cluster.LiveDead && (after.Silence < needed || after.Excuse != "" || view.Alive.Present || view.Daemon.Value == cluster.DaemonStop) {
		rt.Fatalf("%s is dead after %s, alive there: %v, state %s, excuse %q", view.Name, after.Silence, view.Alive.Present, view.Daemon.Value, after.Excuse)
	}
}
