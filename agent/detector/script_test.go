package detector

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent/detector/golden"
	"pvc.internal/cluster"
)

// world is the interpreter of the scripts: a cluster that writes keepalives
// each K, seen by node "a".
type world struct {
	t      *testing.T
	now    cluster.Instant
	timing cluster.Timing
	state  State
	snap   *cluster.Snapshot
	silent map[cluster.NodeID]bool
	said   map[cluster.NodeID]Report
	hushed map[cluster.NodeID]bool // their reports come no more
	late   bool
	zxid   int64
	blind  string
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, now: cluster.Instant(100 * time.Second), timing: cluster.ProfileLAN(),
		silent: map[cluster.NodeID]bool{}, said: map[cluster.NodeID]Report{}, hushed: map[cluster.NodeID]bool{},
	}
	w.snap = &cluster.Snapshot{Complete: true, Live: true, Session: 1, Since: w.now, Nodes: map[cluster.NodeID]cluster.NodeView{}}
	return w
}

// edit replaces the node's view in a snapshot of its own: a published one is
// never edited.
func (w *world) edit(name cluster.NodeID, f func(*cluster.NodeView)) {
	next := *w.snap
	next.Nodes = make(map[cluster.NodeID]cluster.NodeView, len(w.snap.Nodes))
	for n, v := range w.snap.Nodes {
		next.Nodes[n] = v
	}
	view := next.Nodes[name]
	view.Name = name
	f(&view)
	next.Nodes[name] = view
	w.snap = &next
}

func put[T any](w *world, v *cluster.Versioned[T], value T) {
	w.zxid++
	*v = cluster.Versioned[T]{Value: value, Present: true, Version: v.Version + 1, Mzxid: w.zxid, SeenAt: w.now}
}

func (w *world) register(name cluster.NodeID, id string) {
	w.edit(name, func(v *cluster.NodeView) {
		inc := cluster.Incarnation(fmt.Sprintf("boot-%s.%d", name, w.zxid))
		put(w, &v.Record, cluster.NodeRecord{ID: id, Incarnation: inc})
		put(w, &v.Alive, cluster.Alive{Incarnation: inc})
		put(w, &v.Daemon, cluster.DaemonRun)
		put(w, &v.Mode, cluster.Coordinator)
		put(w, &v.Keepalive, 1)
	})
}

func (w *world) beat(name cluster.NodeID) {
	w.edit(name, func(v *cluster.NodeView) { put(w, &v.Keepalive, v.Keepalive.Value+1) })
}

func (w *world) beatAll() {
	names := make([]cluster.NodeID, 0)
	for name := range w.snap.Nodes {
		if !w.silent[name] && (w.snap.Live) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		w.beat(name)
	}
}

func (w *world) step() string {
	next, changes := Step(w.state, Observation{
		Now: w.now, Self: "a", Snapshot: w.snap, Timing: w.timing, SelfLate: w.late, Reports: w.reports(),
	})
	w.state = next
	var out strings.Builder
	at := time.Duration(w.now).Seconds() - 100
	if next.Blind != w.blind {
		text := "sees"
		if next.Blind != "" {
			text = "blind: " + next.Blind
		}
		fmt.Fprintf(&out, "%6.2fs %s\n", at, text)
		w.blind = next.Blind
	}
	for _, c := range changes {
		fmt.Fprintf(&out, "%6.2fs %s: %s -> %s after %s: %s\n", at, c.Node, c.From, c.To, c.Silence, c.Reason)
		if c.Warning != "" {
			fmt.Fprintf(&out, "        warning: %s\n", c.Warning)
		}
	}
	return out.String()
}

// reports are what the coordinators say now: each K anew, but those hushed.
func (w *world) reports() map[cluster.NodeID]Report {
	list := map[cluster.NodeID]Report{}
	for name, r := range w.said {
		if !w.hushed[name] {
			r.SeenAt = w.now
			w.said[name] = r
		}
		list[name] = r
	}
	return list
}

// report takes "REPORTER NODE=ANSWER…", the answer being answered, silent,
// heard or unknown, with "@AGE" behind it where the probe is that old.
func (w *world) report(words []string) {
	reach := map[cluster.NodeID]cluster.Reach{}
	for n, r := range w.said[cluster.NodeID(words[0])].Reach {
		reach[n] = r
	}
	for _, word := range words[1:] {
		node, answer, _ := strings.Cut(word, "=")
		answer, age, aged := strings.Cut(answer, "@")
		r := cluster.Reach{Answer: map[string]cluster.ProbeAnswer{"answered": cluster.ProbeAnswered, "silent": cluster.ProbeSilent}[answer], Heard: answer == "heard"}
		if aged {
			r.AgeMillis = w.duration(age).Milliseconds()
		}
		reach[cluster.NodeID(node)] = r
	}
	w.said[cluster.NodeID(words[0])] = Report{SeenAt: w.now, Reach: reach}
}

func (w *world) run(line string) string {
	words := strings.Fields(line)
	times := 1
	if last := words[len(words)-1]; strings.HasPrefix(last, "x") {
		if n, err := strconv.Atoi(last[1:]); err == nil {
			times, words = n, words[:len(words)-1]
		}
	}
	var out strings.Builder
	for range times {
		out.WriteString(w.command(words))
	}
	return out.String()
}

func (w *world) command(words []string) string {
	args := words[1:]
	switch words[0] {
	case "nodes":
		for _, name := range args {
			w.register(cluster.NodeID(name), "id-"+name)
		}
	case "profile":
		w.timing = map[string]cluster.Timing{"lan": cluster.ProfileLAN()}[args[0]]
	case "tick": // K passes, every node that lives writes, then a look
		w.now = w.now.Add(w.timing.KeepaliveInterval)
		w.beatAll()
		return w.step()
	case "pass": // time passes and everybody writes, but nobody looks
		d := w.duration(args[0])
		w.now = w.now.Add(d)
		w.beatAll()
	case "look":
		return w.step()
	case "kill", "revive":
		for _, name := range args {
			w.silent[cluster.NodeID(name)] = words[0] == "kill"
		}
	case "expire":
		for _, name := range args {
			w.edit(cluster.NodeID(name), func(v *cluster.NodeView) { v.Alive = cluster.Versioned[cluster.Alive]{} })
		}
	case "state":
		w.edit(cluster.NodeID(args[0]), func(v *cluster.NodeView) { put(w, &v.Daemon, cluster.DaemonState(args[1])) })
	case "reregister":
		w.register(cluster.NodeID(args[0]), args[1])
	case "forget":
		next := *w.snap
		next.Nodes = map[cluster.NodeID]cluster.NodeView{}
		for n, v := range w.snap.Nodes {
			if string(n) != args[0] {
				next.Nodes[n] = v
			}
		}
		w.snap = &next
	case "report":
		w.report(args)
	case "hush", "unhush":
		for _, name := range args {
			w.hushed[cluster.NodeID(name)] = words[0] == "hush"
		}
	case "mode":
		w.edit(cluster.NodeID(args[0]), func(v *cluster.NodeView) { put(w, &v.Mode, cluster.Mode(args[1])) })
	case "disconnect", "reconnect", "session":
		next := *w.snap
		next.Live = words[0] != "disconnect"
		if next.Live {
			next.Since = w.now
		}
		if words[0] == "session" {
			next.Session++
		}
		w.snap = &next
	case "maintenance":
		next := *w.snap
		put(w, &next.Maintenance, args[0] == "on")
		w.snap = &next
	case "late":
		w.late = args[0] == "on"
	case "show":
		return w.show()
	default:
		w.t.Fatalf("unknown command %q", words[0])
	}
	return ""
}

func (w *world) show() string {
	names := make([]string, 0)
	for name, n := range w.state.Nodes {
		names = append(names, fmt.Sprintf("        %s %s silent %s", name, n.Liveness, n.Silence))
	}
	slices.Sort(names)
	return strings.Join(names, "\n") + "\n"
}

func (w *world) duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func TestScripts(t *testing.T) {
	golden.Run(t, func(t *testing.T) func(string) string { return newWorld(t).run })
}

func TestStepEditsNothingItWasGiven(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{"nodes a b c d", "tick x8", "kill b c", "tick x3", "expire b", "tick x3"} {
		w.run(line)
	}
	before := w.state
	copied := before
	copied.Nodes = map[cluster.NodeID]NodeState{}
	for n, s := range before.Nodes {
		copied.Nodes[n] = s
	}
	snapshot := *w.snap
	snapshot.Nodes = map[cluster.NodeID]cluster.NodeView{}
	for n, v := range w.snap.Nodes {
		snapshot.Nodes[n] = v
	}
	w.now = w.now.Add(w.timing.KeepaliveInterval)
	next, _ := Step(before, Observation{Now: w.now, Self: "a", Snapshot: w.snap, Timing: w.timing})
	if reflect.DeepEqual(next, before) {
		t.Fatal("the step did nothing")
	}
	if !reflect.DeepEqual(before, copied) {
		t.Error("the step edited the state it was given")
	}
	if !reflect.DeepEqual(*w.snap, snapshot) {
		t.Error("the step edited the snapshot")
	}
}
