package janitor

import (
	"errors"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent/detector/golden"
	"pvc.internal/cluster"
)

// script interprets the golden scripts. What is said stays from line to line.
//
//	nodes a b c                  members that may have copies
//	gone|failing|drained|removed|well a   what a node is now; silent a [why]
//	workload w [chain=a,b] [next=c,b] [nodes=a,b] [replicas=1] [history=h] [state=…] [ephemeral|persistent] [unwanted] [movable] [request=stop]
//	copies w a=active b=replica:a@100/h#start …   (∅ is written "-"; all others are not asked)
//	settings [enabled|disabled] [max=1] [count=0] [pass=p] [nodes=a] [unreadable]
//	ask      plans before anybody is asked
//	plan     plans with the copies, and prints it
//	pass     lets the simulated world carry a whole pass out, again until it plans nothing
type script struct {
	t *testing.T
	w *world
	// copies as said; nil: those of the simulated world
	said map[string]map[cluster.NodeID]cluster.CopyReport
}

func newScript(t *testing.T) *script {
	return &script{t: t, w: newWorld(), said: map[string]map[cluster.NodeID]cluster.CopyReport{}}
}

func (s *script) run(line string) string {
	words := strings.Fields(line)
	node := func() cluster.NodeID { return cluster.NodeID(words[1]) }
	switch words[0] {
	case "nodes":
		s.w = newWorld(list(strings.Join(words[1:], ","))...)
		s.said = map[string]map[cluster.NodeID]cluster.CopyReport{}
	case "gone":
		s.w.gone[node()] = true
	case "failing":
		s.w.failing[node()] = true
	case "silent":
		s.w.silent[node()] = strings.Join(words[2:], " ")
	case "drained":
		s.w.active = without(s.w.active, node())
	case "removed":
		s.w.active = without(s.w.active, node())
		delete(s.w.snap.Nodes, node())
	case "well":
		delete(s.w.gone, node())
		delete(s.w.failing, node())
		delete(s.w.silent, node())
		s.w.active = append(without(s.w.active, node()), node())
	case "workload":
		s.w.put(s.workload(words[1:]))
	case "unreadable":
		s.w.snap.Workloads[words[1]] = cluster.Versioned[cluster.Workload]{Present: true, Err: errors.New("unexpected end of JSON input")}
	case "copies":
		s.copies(words[1], words[2:])
	case "settings":
		s.settings(words[1:])
	case "anew":
		s.w.state = State{}
	case "ask":
		return s.plan(false)
	case "plan":
		return s.plan(true)
	case "pass":
		return printed(s.w.pass())
	default:
		s.t.Fatalf("unknown command %q", line)
	}
	return ""
}

func without(nodes []cluster.NodeID, n cluster.NodeID) []cluster.NodeID {
	var rest []cluster.NodeID
	for _, o := range nodes {
		if o != n {
			rest = append(rest, o)
		}
	}
	return rest
}

func (s *script) plan(queried bool) string {
	k := s.w.known(queried)
	if queried {
		k.Reports = map[string]map[cluster.NodeID]cluster.CopyReport{}
		for name, by := range s.said {
			k.Reports[name] = maps.Clone(by)
			for n := range s.w.silent {
				delete(k.Reports[name], n)
			}
		}
	}
	state, actions, refusals := Plan(s.w.state, k, s.w.snap, time.UnixMilli(0))
	s.w.state = state
	return printed(render(actions, refusals))
}

func printed(lines []string) string {
	var out strings.Builder
	for _, l := range lines {
		out.WriteString("     " + l + "\n")
	}
	return out.String()
}

func list(text string) []cluster.NodeID {
	var nodes []cluster.NodeID
	for name := range strings.SplitSeq(text, ",") {
		switch name {
		case "":
		case "-":
			nodes = append(nodes, cluster.NoCopy)
		default:
			nodes = append(nodes, cluster.NodeID(name))
		}
	}
	return nodes
}

func (s *script) workload(words []string) cluster.Workload {
	w := cluster.Workload{Version: 1, Name: words[0], ID: "id-" + words[0], Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Wanted: true, State: cluster.WorkloadRunning, Ephemeral: true}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "chain":
			w.Chain = list(value)
			if w.Nodes == nil {
				w.Nodes = list(strings.ReplaceAll(value, "-", ""))
			}
		case "nodes":
			w.Nodes = list(value)
		case "next":
			w.Next = &cluster.ChainMove{ID: "m", Chain: list(value), Cause: "move"}
		case "replicas":
			w.Replicas, _ = strconv.Atoi(value)
		case "history":
			w.History = value
		case "state":
			w.State = cluster.WorkloadState(value)
		case "request":
			w.Request = &cluster.WorkloadRequest{ID: "r", Op: cluster.WorkloadOp(value)}
		case "persistent":
			w.Ephemeral = false
		case "unwanted":
			w.Wanted = false
		case "movable":
			w.Kind = cluster.WorkloadMovable
		default:
			s.t.Fatalf("unknown word %q", word)
		}
	}
	return w
}

// copies reads "a=replica:b@100/h1#s1".
func (s *script) copies(name string, words []string) {
	s.said[name] = map[cluster.NodeID]cluster.CopyReport{}
	for _, word := range words {
		n, what, _ := strings.Cut(word, "=")
		what, start, _ := strings.Cut(what, "#")
		what, history, _ := strings.Cut(what, "/")
		what, offset, counted := strings.Cut(what, "@")
		state, follows, _ := strings.Cut(what, ":")
		r := cluster.CopyReport{Workload: name, ID: "id-" + name, Node: cluster.NodeID(n), State: cluster.CopyState(state), Follows: cluster.NodeID(follows), Start: start, History: history, HasOffset: counted}
		r.Offset, _ = strconv.ParseInt(offset, 10, 64)
		if state == "unknown" {
			r.State, r.Unknown, r.Error = cluster.CopyMissing, true, "the agent has hung"
		}
		s.said[name][cluster.NodeID(n)] = r
	}
}

func (s *script) settings(words []string) {
	v := cluster.DefaultReprovisionSettings()
	var err error
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		number, _ := strconv.Atoi(value)
		switch key {
		case "enabled":
			v.Enabled = true
		case "disabled":
			v.Enabled = false
		case "max":
			v.MaxNodes = number
		case "count":
			v.Count = number
		case "pass":
			v.Pass = value
		case "nodes":
			v.Nodes = list(value)
		case "unreadable":
			err = errors.New("unexpected end of JSON input")
		}
	}
	s.w.snap.Reprovision = cluster.Versioned[cluster.ReprovisionSettings]{Present: true, Version: 7, Mzxid: 1, Value: v, Err: err}
}

func TestScripts(t *testing.T) {
	golden.Run(t, func(t *testing.T) func(string) string { return newScript(t).run })
}
