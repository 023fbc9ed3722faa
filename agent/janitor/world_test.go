package janitor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// world is a cluster of simulated copies, and the records: what a shell asks, and
// carries plans out on.
type world struct {
	snap    *cluster.Snapshot
	copies  map[string]map[cluster.NodeID]*simCopy
	active  []cluster.NodeID
	gone    map[cluster.NodeID]bool
	failing map[cluster.NodeID]bool
	silent  map[cluster.NodeID]string
	state   State
	passes  int
	starts  int
	secrets int
	// effect is called after each thing that was done to a copy; hurt by what is done
	// to it. A false from crash ends an apply there.
	effect    func(what string)
	crash     func() bool
	promoting func(name string, n cluster.NodeID)
	plan      func(State, Known, *cluster.Snapshot) (State, []Action, []cluster.Refusal)
}

// simCopy is one node's copy: a gate before it, a log of writes in it. The log's
// writes are numbered over all of a workload's, so that equal logs are equal data.
type simCopy struct {
	role    string // "": serves and follows nobody; "active", "replica"
	there   bool   // it has been given data, or the right to have some, since it started
	runs    bool
	start   string
	log     []int
	history string
	follows cluster.NodeID
	secret  string // of its activation, or what it follows with
	offsets bool
}

func newWorld(nodes ...cluster.NodeID) *world {
	w := &world{
		snap:   &cluster.Snapshot{Complete: true, Live: true, Workloads: map[string]cluster.Versioned[cluster.Workload]{}, Nodes: map[cluster.NodeID]cluster.NodeView{}},
		copies: map[string]map[cluster.NodeID]*simCopy{}, gone: map[cluster.NodeID]bool{}, failing: map[cluster.NodeID]bool{},
		silent: map[cluster.NodeID]string{}, effect: func(string) {}, crash: func() bool { return false },
		promoting: func(string, cluster.NodeID) {},
		plan: func(s State, k Known, snap *cluster.Snapshot) (State, []Action, []cluster.Refusal) {
			return Plan(s, k, snap, time.UnixMilli(0))
		},
	}
	for _, n := range nodes {
		w.snap.Nodes[n] = cluster.NodeView{Name: n, Record: cluster.Versioned[cluster.NodeRecord]{Present: true}}
		w.active = append(w.active, n)
	}
	return w
}

func (w *world) put(r cluster.Workload) {
	w.snap.Workloads[r.Name] = cluster.Versioned[cluster.Workload]{Present: true, Value: r, Version: w.snap.Workloads[r.Name].Version + 1}
	if w.copies[r.Name] == nil {
		w.copies[r.Name] = map[cluster.NodeID]*simCopy{}
	}
}

func (w *world) copyOf(name string, n cluster.NodeID) *simCopy {
	c := w.copies[name][n]
	if c == nil {
		c = &simCopy{offsets: true}
		w.copies[name][n] = c
	}
	return c
}

func (w *world) reaches(n cluster.NodeID) bool {
	_, silent := w.silent[n]
	return n != cluster.NoCopy && !silent && !w.gone[n]
}

// report is what the node's driver says.
func (w *world) report(name string, n cluster.NodeID) cluster.CopyReport {
	c := w.copyOf(name, n)
	r := cluster.CopyReport{Workload: name, ID: w.snap.Workloads[name].Value.ID, Node: n, State: cluster.CopyMissing, Start: c.start}
	if !c.runs {
		r.Start = ""
	}
	switch {
	case !c.there:
		return r
	case !c.runs:
		r.State = cluster.CopyDead
		return r
	case c.role == "active":
		r.State = cluster.CopyActive
	case c.role == "replica":
		r.State, r.Follows = cluster.CopyReplica, c.follows
	default:
		r.State = cluster.CopyPending
	}
	r.Offset, r.HasOffset, r.History = int64(len(c.log)), c.offsets, c.history
	return r
}

// known is what a pass finds out.
func (w *world) known(queried bool) Known {
	k := Known{Pass: fmt.Sprintf("pass-%d", w.passes), Queried: queried, Gone: maps.Clone(w.gone), FailingOver: maps.Clone(w.failing), Silent: maps.Clone(w.silent)}
	for _, n := range w.active {
		if !w.gone[n] && !w.failing[n] {
			k.Active = append(k.Active, n)
		}
	}
	if !queried {
		return k
	}
	k.Reports = map[string]map[cluster.NodeID]cluster.CopyReport{}
	for name, view := range w.snap.Workloads {
		k.Reports[name] = map[cluster.NodeID]cluster.CopyReport{}
		r := view.Value
		asked := slices.Concat(r.Chain, r.Nodes, slices.Collect(maps.Keys(w.copies[name])))
		if r.Next != nil {
			asked = append(asked, r.Next.Chain...)
		}
		for _, n := range asked {
			if w.reaches(n) {
				k.Reports[name][n] = w.report(name, n)
			}
		}
	}
	return k
}

// write commits a plan's records, as one transaction: all versions must be what was seen.
func (w *world) write(actions []Action) bool {
	for _, a := range actions {
		if a.Kind != ActionWrite {
			continue
		}
		if w.snap.Workloads[a.Workload].Version != a.Seen || (a.Reprovision != nil && w.reprovisionVersion() != a.ReprovisionSeen) {
			return false
		}
	}
	next := *w.snap
	next.Workloads = maps.Clone(w.snap.Workloads)
	for _, a := range actions {
		if a.Kind != ActionWrite {
			continue
		}
		next.Workloads[a.Workload] = cluster.Versioned[cluster.Workload]{Present: true, Value: *a.Write, Version: a.Seen + 1}
		if a.Reprovision != nil {
			next.Reprovision = cluster.Versioned[cluster.ReprovisionSettings]{Present: true, Value: *a.Reprovision, Version: a.ReprovisionSeen + 1, Mzxid: 1}
		}
	}
	w.snap = &next
	return true
}

func (w *world) reprovisionVersion() int32 {
	if w.snap.Reprovision.Present {
		return w.snap.Reprovision.Version
	}
	return -1
}

// apply carries the steps of one apply out, unless a member has no lease, or the
// record is another one. It reports false where it was cut off.
func (w *world) apply(a Action) bool {
	if w.snap.Workloads[a.Workload].Version != a.Seen {
		return false
	}
	for _, n := range a.Members {
		if !w.reaches(n) {
			return false
		}
	}
	w.secrets++
	secret := fmt.Sprintf("s%d", w.secrets)
	for _, s := range a.Steps {
		if w.crash() || !w.order(a.Workload, s, secret) {
			return false
		}
		w.effect(fmt.Sprintf("%s %s on %s", a.Workload, s.Op, s.Node))
	}
	return true
}

// order is one node's driver carrying out an order.
func (w *world) order(name string, s Step, secret string) bool {
	if !w.reaches(s.Node) {
		return false
	}
	if s.Expect != nil && s.Expect.Against(w.report(name, s.Node)) != "" {
		return false
	}
	c := w.copyOf(name, s.Node)
	if !c.runs && s.Op != cluster.CopyStop && s.Op != cluster.CopyDemote {
		w.restart(name, s.Node)
	}
	switch s.Op {
	case cluster.CopyPromote:
		w.promoting(name, s.Node)
		if c.role != "active" {
			w.starts++
			c.history = fmt.Sprintf("h%d", w.starts)
		}
		c.role, c.there, c.follows, c.secret = "active", true, "", secret
	case cluster.CopyAdmit:
		if c.role != "active" {
			return false
		}
		c.secret = secret
	case cluster.CopyFollow:
		source := w.copyOf(name, s.Source)
		c.follows, c.secret = s.Source, secret
		if !w.reaches(s.Source) || source.role != "active" || source.secret != secret || !source.runs {
			c.role = "" // the gate of the other side is shut: what it has it keeps
			return false
		}
		c.role, c.there, c.log, c.history = "replica", true, slices.Clone(source.log), source.history
	case cluster.CopyDemote:
		c.role = ""
	case cluster.CopyStop:
		c.role, c.runs, c.follows = "", false, ""
		if w.snap.Workloads[name].Value.Ephemeral {
			c.log, c.there, c.history = nil, false, ""
		}
	}
	return true
}

// restart starts the copy's process anew: empty, if it is ephemeral.
func (w *world) restart(name string, n cluster.NodeID) {
	c := w.copyOf(name, n)
	w.starts++
	c.runs, c.start, c.role, c.follows, c.secret = true, fmt.Sprintf("p%d", w.starts), "", "", ""
	if w.snap.Workloads[name].Value.Ephemeral {
		c.log, c.there, c.history = nil, false, ""
	}
}

// pass runs one pass as the shell does: rounds until nothing is to be begun anew.
// It returns what was done.
func (w *world) pass() (done []string) {
	for range 10 {
		w.passes++
		state, actions, refusals := w.plan(w.state, w.known(false), w.snap)
		queried := false
		if !slices.ContainsFunc(actions, func(a Action) bool { return a.Kind == ActionWrite }) {
			queried = true
			state, actions, refusals = w.plan(w.state, w.known(true), w.snap)
		}
		done = append(done, render(actions, refusals)...)
		if !w.write(actions) {
			continue
		}
		w.state = state
		w.effect("write")
		if !queried || slices.ContainsFunc(actions, func(a Action) bool { return a.Kind == ActionAgain }) {
			continue
		}
		for _, a := range actions {
			if a.Kind == ActionApply {
				w.apply(a)
			}
		}
		return done
	}
	return append(done, "the pass does not come to an end")
}

// render shows a plan, a line for each action and refusal.
func render(actions []Action, refusals []cluster.Refusal) []string {
	var lines []string
	for _, a := range actions {
		switch a.Kind {
		case ActionWrite:
			lines = append(lines, renderWrite(a))
		case ActionAgain:
			lines = append(lines, "again")
		case ActionApply:
			lines = append(lines, fmt.Sprintf("apply %s by %s", a.Workload, names(a.Members)))
			for _, s := range a.Steps {
				lines = append(lines, "  "+renderStep(s))
			}
		case ActionFault:
			line := fmt.Sprintf("fault %s %s: %s", a.Fault, strings.TrimSpace(a.Workload+" "+string(a.Node)), a.Text)
			if a.Text == "" {
				line = fmt.Sprintf("over %s %s", a.Fault, strings.TrimSpace(a.Workload+" "+string(a.Node)))
			} else if a.History {
				line += " [history]"
			}
			lines = append(lines, line)
		}
	}
	for _, r := range refusals {
		lines = append(lines, fmt.Sprintf("refuse %s", r.Code))
	}
	return lines
}

func renderWrite(a Action) string {
	w := a.Write
	line := fmt.Sprintf("write %s on %d: chain %s %s", a.Workload, a.Seen, chainWords(w.Chain), w.State)
	if w.Reason != "" && w.State != cluster.WorkloadFaulty && w.State != cluster.WorkloadStopped {
		line += " (" + w.Reason + ")"
	}
	if w.Next != nil {
		line += " next " + chainWords(w.Next.Chain)
	}
	if len(w.Nodes) > 0 {
		line += " nodes " + names(w.Nodes)
	}
	if w.History != "" {
		line += " history " + w.History
	}
	if a.Reprovision != nil {
		line += fmt.Sprintf(", reprovisioned %d of %d on %d: %s", a.Reprovision.Count, a.Reprovision.MaxNodes, a.ReprovisionSeen, names(a.Reprovision.Nodes))
	}
	return line
}

func renderStep(s Step) string {
	line := fmt.Sprintf("%d %s %s", s.Stage, s.Op, s.Node)
	if s.Source != "" {
		line += " after " + string(s.Source)
	}
	if s.Expect != nil {
		line += " if still " + strings.TrimSpace(string(s.Expect.State)+" "+s.Expect.Start)
	}
	if s.NewSecret {
		line += ", new secret"
	}
	return line
}

func chainWords(chain []cluster.NodeID) string {
	text := make([]string, len(chain))
	for i, n := range chain {
		if text[i] = string(n); n == cluster.NoCopy {
			text[i] = "∅"
		}
	}
	return "[" + strings.Join(text, ",") + "]"
}

func names(nodes []cluster.NodeID) string {
	text := make([]string, len(nodes))
	for i, n := range nodes {
		text[i] = string(n)
	}
	return strings.Join(text, ",")
}
