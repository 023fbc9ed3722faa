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
	default:
		s.t.Fatalf("unknown setting %q", setting)
	}
}

func incarnation(n cluster.NodeID) cluster.Incarnation { return cluster.Incarnation("boot." + n) }

// frames runs `[down=a,b] [late=…] [suspect=…] [excused=…] [xN]`; down is dead.
func (s *script) frames(words []string) string {
	times := 1
	levels := map[cluster.NodeID]cluster.Liveness{}
	excused := map[cluster.NodeID]bool{}
	for _, word := range words {
		key, list, _ := strings.Cut(word, "=")
		if n, err := strconv.Atoi(strings.TrimPrefix(word, "x")); err == nil {
			times = n
			continue
		}
		for name := range strings.SplitSeq(list, ",") {
			switch key {
			case "down":
				levels[cluster.NodeID(name)] = cluster.LiveDead
			case "late":
				levels[cluster.NodeID(name)] = cluster.LiveLate
			case "suspect":
				levels[cluster.NodeID(name)] = cluster.LiveSuspect
			case "isolated":
				levels[cluster.NodeID(name)] = cluster.LiveIsolated
			case "excused":
				excused[cluster.NodeID(name)] = true
			}
		}
	}
	f := s.frame
	for _, name := range s.names {
		level := max(levels[name], cluster.LiveUp)
		f.Nodes = append(f.Nodes, Node{
			Name: name, ID: s.ids[name], Incarnation: incarnation(name), Liveness: level, Excused: excused[name], Fence: s.fences[name],
		})
	}
	var out strings.Builder
	for range times {
		s.count++
		var actions []cluster.Action
		var refusals []cluster.Refusal
		s.state, actions, refusals = Step(s.state, f)
		for _, a := range actions {
			fmt.Fprintf(&out, "%4d %s %s (%s)\n", s.count, a.Kind, a.Node, a.Incarnation)
		}
		for _, r := range refusals {
			fmt.Fprintf(&out, "%4d refuse %s: %s\n", s.count, r.Code, r.Detail)
		}
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
		"a": {Record: cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{ID: "2"}}},
		"c": {}, // known by name only: it has never registered
	}}
	got := NodesOf(snap, func(n cluster.NodeID) (cluster.Liveness, bool) { return cluster.LiveLate, n == "a" })
	want := []Node{
		{Name: "a", ID: "2", Liveness: cluster.LiveLate, Excused: true},
		{Name: "b", ID: "1", Incarnation: "i", Liveness: cluster.LiveLate, Fence: cluster.FenceRecord{ID: "f"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

// The frames that a verdict needs never delay it beyond the tick in which the
// detector finds the node dead, whatever the phase of tick and keepalive.
func TestFramesNeverDelayTheVerdict(t *testing.T) {
	for name, timing := range map[string]cluster.Timing{"lan": cluster.ProfileLAN(), "fast": cluster.ProfileFast(), "pvc": cluster.ProfilePVC()} {
		k := timing.KeepaliveInterval
		dead := time.Duration(timing.FenceIntervals) * k
		for phase := k / 50; phase <= k; phase += k / 50 {
			frames := 0
			for silence := phase; ; silence += k {
				if silence >= k+k/4 {
					frames++
				}
				if silence >= dead {
					break
				}
			}
			if needed := (Frame{Timing: timing}).needed(); frames < needed {
				t.Errorf("%s, phase %s: dead after %d frames, needed are %d", name, phase, frames, needed)
			}
		}
	}
}
