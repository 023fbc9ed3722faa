package failover

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

// script interprets the golden scripts: settings persist from line to line,
// `frame` runs one or more frames. Time-outs are given in the frames of
// half_down that they need (t), as the scenarios count.
type script struct {
	t      *testing.T
	state  State
	frame  Frame
	names  []cluster.NodeID
	ids    map[cluster.NodeID]string
	fences map[cluster.NodeID]cluster.FenceRecord
	count  int
}

func newScript(t *testing.T) *script {
	return &script{
		t: t, ids: map[cluster.NodeID]string{}, fences: map[cluster.NodeID]cluster.FenceRecord{},
		frame: Frame{Timing: cluster.ProfileLAN(), Settings: cluster.FailoverSettings{Enabled: true, MaxCount: 100}, Primary: true},
	}
}

func (s *script) run(line string) string {
	words := strings.Fields(line)
	switch words[0] {
	case "cluster": // the first is oneself
		s.names = nil
		for _, name := range words[1:] {
			s.names = append(s.names, cluster.NodeID(name))
			if s.ids[cluster.NodeID(name)] == "" {
				s.ids[cluster.NodeID(name)] = "id-" + name
			}
		}
		s.frame.Self = s.names[0]
	case "set":
		for _, setting := range words[1:] {
			s.set(setting)
		}
	case "newid":
		s.ids[cluster.NodeID(words[1])] += "-new"
	case "fence": // fence NODE STAGE [tries]
		record := cluster.FenceRecord{ID: "f", Stage: cluster.FenceStage(words[2]), Incarnation: incarnation(cluster.NodeID(words[1]))}
		if len(words) > 3 {
			record.Tries, _ = strconv.Atoi(words[3])
		}
		s.fences[cluster.NodeID(words[1])] = record
	case "frame":
		return s.frames(words[1:])
	case "explain":
		return s.explain(cluster.NodeID(words[1]), words[2:])
	case "needed":
		return s.needed()
	case "show":
		return s.show()
	default:
		s.t.Fatalf("unknown command %q", line)
	}
	return ""
}

func (s *script) set(setting string) {
	key, value, _ := strings.Cut(setting, "=")
	number, _ := strconv.Atoi(value)
	switch key {
	case "t": // frames of half_down: the verdict is due in frame t + 3
		s.frame.Settings.Timeout = int64(number + 4)
	case "max":
		s.frame.Settings.MaxCount = number
	case "count":
		s.frame.Settings.Count = number
	case "enabled":
		s.frame.Settings.Enabled = value == "true"
	case "primary":
		s.frame.Primary = value == "true"
	case "holder":
		s.frame.Holder = cluster.NodeID(value)
	case "predecessor":
		s.frame.Predecessor = cluster.NodeID(value)
	case "maintenance":
		s.frame.Maintenance = value == "true"
	case "blind":
		s.frame.Blind = value
	case "seconds":
		s.frame.Settings.Timeout = int64(number)
	case "every":
		s.frame.Every, _ = time.ParseDuration(value)
	case "profile":
		s.frame.Timing = map[string]cluster.Timing{"lan": cluster.ProfileLAN(), "fast": cluster.ProfileFast(), "pvc": cluster.ProfilePVC()}[value]
	case "version": // of the settings' record
		s.frame.SettingsSeen = cluster.Versioned[cluster.FailoverSettings]{Present: true, Version: int32(number)}
	case "quorum":
		s.frame.Quorum = opinion(value)
	default:
		s.t.Fatalf("unknown setting %q", setting)
	}
}

// opinion reads "unused", "held", or what stands against it.
func opinion(value string) Opinion {
	switch value {
	case "unused":
		return Opinion{}
	case "held":
		return Opinion{InUse: true}
	}
	return Opinion{InUse: true, Against: strings.ReplaceAll(value, "_", " ")}
}

// needed shows how long is waited between two frames and for how many.
func (s *script) needed() string {
	f := s.frame
	f.Every = Cadence(f.Timing)
	return fmt.Sprintf("     a frame each %s, %d in a row\n", f.Every, f.needed())
}

func incarnation(n cluster.NodeID) cluster.Incarnation { return cluster.Incarnation("boot." + n) }

// read takes `[down=a,b] [late=…] [suspect=…] [isolated=…] [mixed=…] [excused=…]
// [leaving=…] [last=…] [xN]`; down is dead, last has the last copy of a workload.
func (s *script) read(words []string) (f Frame, times int) {
	f, times = s.frame, 1
	levels := map[cluster.NodeID]cluster.Liveness{}
	marks := map[string]map[cluster.NodeID]bool{}
	for _, word := range words {
		key, list, _ := strings.Cut(word, "=")
		if n, err := strconv.Atoi(strings.TrimPrefix(word, "x")); err == nil {
			times = n
			continue
		}
		marks[key] = map[cluster.NodeID]bool{}
		for name := range strings.SplitSeq(list, ",") {
			marks[key][cluster.NodeID(name)] = true
			level := map[string]cluster.Liveness{
				"down": cluster.LiveDead, "late": cluster.LiveLate, "suspect": cluster.LiveSuspect, "isolated": cluster.LiveIsolated, "mixed": cluster.LiveIsolated,
			}[key]
			levels[cluster.NodeID(name)] = max(level, levels[cluster.NodeID(name)])
		}
	}
	for _, name := range s.names {
		n := Node{
			Name: name, ID: s.ids[name], Incarnation: incarnation(name), Liveness: max(levels[name], cluster.LiveUp),
			Excused: marks["excused"][name] || marks["leaving"][name], Leaving: marks["leaving"][name],
		}
		if r, ok := s.fences[name]; ok {
			n.Fence = &r
		}
		if marks["mixed"][name] {
			n.Mixed = "reached by c, not reached by a"
		}
		if marks["last"][name] {
			n.LastCopy = Opinion{InUse: true, Against: "index-1 has no other"}
		}
		f.Nodes = append(f.Nodes, n)
	}
	return f, times
}

func (s *script) frames(words []string) string {
	f, times := s.read(words)
	var out strings.Builder
	for range times {
		s.count++
		var actions []cluster.Action
		var refusals []cluster.Refusal
		s.state, actions, refusals = Step(s.state, f)
		for _, a := range actions {
			fmt.Fprintf(&out, "%4d %s %s (%s)", s.count, a.Kind, a.Node, a.Incarnation)
			if a.Spend.Seen.Present {
				fmt.Fprintf(&out, " count %d on version %d", a.Spend.Next.Count, a.Spend.Seen.Version)
			}
			out.WriteString("\n")
		}
		for _, r := range refusals {
			fmt.Fprintf(&out, "%4d refuse %s: %s\n", s.count, r.Code, r.Detail)
		}
	}
	return out.String()
}

// explain shows every veto's answer on one node of the frame that would follow.
func (s *script) explain(node cluster.NodeID, words []string) string {
	f, _ := s.read(words)
	var out strings.Builder
	for _, c := range Explain(s.state, f, node) {
		answer := "nothing against it"
		switch {
		case c.Refusal.Code != "":
			answer = string(c.Refusal.Code)
		case c.Unused:
			answer = "not in use yet"
		}
		fmt.Fprintf(&out, "     %s: %s\n", c.Name, answer)
	}
	return out.String()
}

func (s *script) show() string {
	lines := make([]string, 0)
	for name, n := range s.state.Down {
		lines = append(lines, fmt.Sprintf("     %s %s(%d)\n", name, n.Stage, n.Frames))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func TestScripts(t *testing.T) {
	golden.Run(t, func(t *testing.T) func(string) string { return newScript(t).run })
}

func TestNodesOf(t *testing.T) {
	snap := &cluster.Snapshot{Nodes: map[cluster.NodeID]cluster.NodeView{
		"b": {Record: cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{ID: "1", Incarnation: "i"}},
			Fence: cluster.Versioned[cluster.FenceRecord]{Present: true, Value: cluster.FenceRecord{ID: "f"}}},
		"a": {Record: cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{ID: "2"}},
			Daemon: cluster.Versioned[cluster.DaemonState]{Present: true, Value: cluster.DaemonStop}},
		"c": {}, // known by name only: it has never registered
	}}
	got := NodesOf(snap, func(n cluster.NodeID) (cluster.Liveness, bool) { return cluster.LiveLate, n == "a" })
	slices.SortFunc(got, func(a, b Node) int { return compare(a.Name, b.Name) })
	want := []Node{
		{Name: "a", ID: "2", Liveness: cluster.LiveLate, Excused: true, Leaving: true},
		{Name: "b", ID: "1", Incarnation: "i", Liveness: cluster.LiveLate, Fence: &cluster.FenceRecord{ID: "f"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

// The frames that a verdict needs never delay it beyond the tick in which the
// detector finds the node dead, whatever the phase of tick and keepalive.
func TestFramesNeverDelayTheVerdict(t *testing.T) {
	for name, timing := range map[string]cluster.Timing{"lan": cluster.ProfileLAN(), "fast": cluster.ProfileFast(), "pvc": cluster.ProfilePVC()} {
		for _, every := range []time.Duration{timing.KeepaliveInterval, Cadence(timing)} {
			neverDelays(t, name, timing, every)
		}
	}
}

func neverDelays(t *testing.T, name string, timing cluster.Timing, every time.Duration) {
	k := timing.KeepaliveInterval
	for phase := every / 50; phase <= every; phase += every / 50 {
		frames := 0
		for silence := phase; ; silence += every {
			if silence >= k+k/4 {
				frames++
			}
			if silence >= timing.SuspectAfter() {
				break
			}
		}
		if needed := (Frame{Timing: timing, Every: every}).needed(); frames < needed {
			t.Errorf("%s, each %s, phase %s: dead after %d frames, needed are %d", name, every, phase, frames, needed)
		}
	}
}

// An action comes within two frames of the later of "dead" and "I am primary",
// one of them the one in which it is so: 0.4 s, and 0.1 s is left for the claim.
func TestAnActionComesWithinHalfASecond(t *testing.T) {
	for name, timing := range map[string]cluster.Timing{"lan": cluster.ProfileLAN(), "fast": cluster.ProfileFast(), "pvc": cluster.ProfilePVC()} {
		if every := Cadence(timing); every > 400*time.Millisecond || every <= 0 {
			t.Errorf("%s: a frame each %s", name, every)
		}
	}
	f := settledFrame()
	f.Primary, f.Holder = false, "b"
	var s State
	for range 40 {
		s, _, _ = Step(s, f)
	}
	f.Primary, f.Holder, f.Predecessor = true, "a", "b"
	if _, actions, refusals := Step(s, f); len(actions) != 1 || actions[0].Node != "b" {
		t.Errorf("the frame in which the role is gained: actions %v, refusals %v; want b fenced by its successor", actions, refusals)
	}
	s = State{}
	f.Nodes[1].Liveness = cluster.LiveLate
	for range 40 {
		s, _, _ = Step(s, f)
	}
	f.Nodes[1].Liveness = cluster.LiveDead
	if _, actions, refusals := Step(s, f); len(actions) != 1 {
		t.Errorf("the frame in which the node is dead: actions %v, refusals %v", actions, refusals)
	}
}

// Beside the old primary, the nodes with the most protected workloads come first.
func TestTheMostProtectedComeFirst(t *testing.T) {
	nodes := []Node{{Name: "hv2"}, {Name: "hv3", Protected: 1}, {Name: "hv4", Protected: 2}, {Name: "hv5"}}
	var order []string
	for _, n := range byUrgency(nodes, "hv5") {
		order = append(order, string(n.Name))
	}
	if got := strings.Join(order, " "); got != "hv5 hv4 hv3 hv2" {
		t.Errorf("the order is %s", got)
	}
}
