package placement

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pvc.internal/agent/detector/golden"
	"pvc.internal/cluster"
)

// script interprets the golden scripts: nodes and workloads persist from line to
// line, each plan begins with a fresh book.
type script struct {
	t        *testing.T
	nodes    []Node
	work     []cluster.Workload
	selector string
}

func TestScripts(t *testing.T) {
	golden.Run(t, func(t *testing.T) func(string) string {
		s := &script{t: t}
		return s.run
	})
}

func (s *script) run(line string) string {
	words := strings.Fields(line)
	switch words[0] {
	case "cluster":
		s.nodes, s.work, s.selector = nil, nil, ""
	case "selector":
		s.selector = words[1]
	case "node":
		s.node(words[1], words[2:])
	case "work":
		s.workload(words[1], words[2:])
	case "place":
		return s.place(words[1:])
	case "drain":
		return show(Drain(s.book(), cluster.NodeID(words[1]), s.work))
	case "ready":
		return show(Ready(s.book(), func(n cluster.NodeID) bool { return slices.Contains(words[1:], string(n)) }, s.work))
	case "rebalance":
		return show(Rebalance(s.book(), s.work))
	case "upkeep":
		return s.upkeep(words[1], words[2:])
	case "backoff":
		return s.backoff()
	default:
		s.t.Fatalf("unknown command %q", line)
	}
	return ""
}

func (s *script) book() *Book { return NewBook(s.nodes, s.work, s.selector) }

func (s *script) node(name string, words []string) {
	n := Node{Name: cluster.NodeID(name), Facts: Facts{Known: true, MemTotal: 64000, MemFree: 60000, CPUs: 16}}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		number, _ := strconv.Atoi(value)
		switch key {
		case "free":
			n.Facts.MemFree = int64(number)
		case "total":
			n.Facts.MemTotal = int64(number)
		case "prov":
			n.Facts.MemProv = int64(number)
		case "load":
			n.Facts.Load, _ = strconv.ParseFloat(value, 64)
		case "vcpus":
			n.Facts.VCPUs = number
		case "count":
			n.Facts.Count = number
		case "cpus":
			n.Facts.CPUs = number
		case "unknown":
			n.Facts = Facts{}
		case "bar":
			n.Bar = strings.ReplaceAll(value, "_", " ")
		default:
			s.t.Fatalf("unknown figure %q", word)
		}
	}
	s.nodes = append(slices.DeleteFunc(s.nodes, func(o Node) bool { return o.Name == n.Name }), n)
}

func ids(list string) (nodes []cluster.NodeID) {
	for _, n := range strings.Split(list, ",") {
		if n == "-" {
			n = ""
		}
		nodes = append(nodes, cluster.NodeID(n))
	}
	return nodes
}

func (s *script) workload(name string, words []string) {
	w := cluster.Workload{Name: name, Kind: cluster.WorkloadMovable, Wanted: true, Autostart: true, State: cluster.WorkloadRunning}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		number, _ := strconv.Atoi(value)
		switch key {
		case "mem":
			w.MemoryMiB = int64(number)
		case "cpu":
			w.VCPUs = number
		case "prio":
			w.Priority = number
		case "sel":
			w.Selector = value
		case "nodes":
			w.Nodes = ids(value)
		case "chain":
			w.Chain = ids(value)
		case "replicated":
			w.Kind = cluster.WorkloadReplicated
		case "state":
			w.State = cluster.WorkloadState(value)
		case "home":
			w.Home = cluster.NodeID(value)
		case "away":
			w.Away = map[cluster.NodeID]cluster.NodeID{}
			for _, pair := range strings.Split(value, ",") {
				n, instead, _ := strings.Cut(pair, ":")
				w.Away[cluster.NodeID(n)] = cluster.NodeID(instead)
			}
		case "unwanted":
			w.Wanted = false
		case "manual":
			w.Autostart = false
		case "attempts":
			w.Attempts = number
		case "next":
			w.Next = &cluster.ChainMove{ID: "m", Chain: ids(value), From: slices.Clone(w.Chain)}
		default:
			s.t.Fatalf("unknown word %q", word)
		}
	}
	s.work = append(slices.DeleteFunc(s.work, func(o cluster.Workload) bool { return o.Name == name }), w)
}

func (s *script) named(name string) cluster.Workload {
	at := slices.IndexFunc(s.work, func(w cluster.Workload) bool { return w.Name == name })
	if at < 0 {
		s.t.Fatalf("no workload %q", name)
	}
	return s.work[at]
}

// place places the named ones, or all, in their order with one book.
func (s *script) place(names []string) string {
	var list []cluster.Workload
	for _, w := range s.work {
		if slices.Contains(names, w.Name) || names[0] == "all" {
			list = append(list, w)
		}
	}
	book, out := s.book(), ""
	for _, w := range Sorted(list) {
		n, why := book.Place(w)
		out += fmt.Sprintf("     %s -> %s%s\n", w.Name, n, why)
	}
	return out
}

func show(moves []Move) string {
	out := ""
	for _, m := range moves {
		if m.Why != "" {
			out += fmt.Sprintf("     %s stays: %s\n", m.Workload.Name, m.Why)
			continue
		}
		way := ""
		if m.Home != "" {
			way += " home " + string(m.Home)
		}
		if len(m.Away) > 0 {
			var words []string
			for _, n := range slices.Sorted(maps.Keys(m.Away)) {
				words = append(words, fmt.Sprintf("%s: %s", n, m.Away[n]))
			}
			way += fmt.Sprintf(" away %v", words)
		}
		out += fmt.Sprintf("     %s %s -> %s (%s)%s\n", m.Workload.Name, chain(m.Workload.Chain), chain(m.To), m.Cause, way)
	}
	if out == "" {
		return "     nothing\n"
	}
	return out
}

func chain(c []cluster.NodeID) string {
	words := make([]string, len(c))
	for i, n := range c {
		if words[i] = string(n); n == "" {
			words[i] = "-"
		}
	}
	return "[" + strings.Join(words, " ") + "]"
}

// upkeep takes what nodes have said, hv1=active, and proven, none, removed, away=…
func (s *script) upkeep(name string, words []string) string {
	c := Case{Workload: s.named(name), Reports: map[cluster.NodeID]cluster.CopyReport{}, Proven: map[cluster.NodeID]bool{}, Recover: map[cluster.NodeID]bool{},
		Removed: map[cluster.NodeID]bool{}, Ready: map[cluster.NodeID]bool{"hv1": true, "hv2": true, "hv3": true}}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		n := cluster.NodeID(key)
		switch value {
		case "proven":
			c.Proven[n], c.Recover[n], c.Ready[n] = true, true, false
		case "none":
			c.Proven[n], c.Ready[n] = true, false
		case "removed":
			c.Removed[n] = true
		case "flushed":
			c.Ready[n] = false
		case "unknown":
			c.Reports[n] = cluster.CopyReport{Unknown: true, Error: "it hangs"}
		default:
			c.Reports[n] = cluster.CopyReport{State: cluster.CopyState(value)}
		}
	}
	step := Upkeep(c)
	if step.Do == DoNothing {
		return "     nothing\n"
	}
	return strings.TrimRight(fmt.Sprintf("     %s %s %s", step.Do, step.Node, step.Why), " ") + "\n"
}

func (s *script) backoff() string {
	out := "    "
	for i := range MaxAttempts + 3 {
		out += " " + Backoff(i).String()
	}
	return out + "\n"
}
