package api

import (
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Explanation says what is known of a node, a workload or the role, what stands against
// a change, and what to do. Evidence is this server's own observation and what
// every coordinator publishes of its own.
type Explanation struct {
	What     string     `json:"what"`
	Verdict  string     `json:"verdict"`
	Why      string     `json:"why"` // why nothing more has happened, in a sentence or two; never empty
	Evidence []string   `json:"evidence"`
	Refusals []Objected `json:"refusals"`
	Missing  []string   `json:"missing"` // what would have to become true
	Words    []NodeWord `json:"words"`   // of the coordinators, as published
	// Checks and Proofs are of a node that something is wrong with: what may
	// stand against fencing it, and what would prove it dead.
	Checks []CheckAnswer `json:"checks"`
	Proofs []ProofState  `json:"proofs"`
}

// Objected is a refusal with who made it and what to do about it.
type Objected struct {
	cluster.Refusal
	By     cluster.NodeID `json:"by,omitempty"` // empty: this server, from the records
	Remedy string         `json:"remedy,omitempty"`
}

// explainRole are the names that stand for the primary role.
var explainRole = map[string]bool{"primary": true, "role": true}

func (s *Server) getExplain(r *request) (answer, error) {
	what := r.http.PathValue("what")
	return s.facts(r.ctx, func(st state) (any, error) {
		n, known := st.snap.Nodes[cluster.NodeID(what)]
		if !known && !explainRole[what] {
			return s.explainWorkload(r, st, strings.TrimPrefix(what, "workload:"))
		}
		x := &explainer{st: st, timing: s.cfg.Timing, e: newExplanation(what)}
		asked := st.coordinators()
		if known && n.Mode.Value != cluster.Coordinator {
			asked = append(asked, n.Name)
		}
		x.e.Words = s.readWords(r.ctx, st, asked)
		if known {
			x.tests = s.deviceTests(r.ctx, st, []cluster.NodeID{n.Name})
			x.reprovisioned(n.Name)
			strays := x.strays(s.faultsNow(r.ctx, x), "", n.Name)
			x.node(n)
			x.e.Why += x.flushing(n)
			if len(strays) > 0 {
				x.e.Why += " It runs what its workloads' records do not have there: see what is missing."
			}
		} else {
			x.e.What = "primary"
			x.role()
		}
		s.explainActivities(r.ctx, x, n.Name)
		return *x.e, nil
	})
}

func joinNodes(names []cluster.NodeID) string {
	words := make([]string, len(names))
	for i, n := range names {
		words[i] = string(n)
	}
	return strings.Join(words, ", ")
}

func (st state) coordinators() []cluster.NodeID {
	var names []cluster.NodeID
	for _, name := range st.names() {
		if st.snap.Nodes[name].Mode.Value == cluster.Coordinator {
			names = append(names, name)
		}
	}
	return names
}

func newExplanation(what string) *Explanation {
	return &Explanation{What: what, Evidence: []string{}, Refusals: []Objected{}, Missing: []string{},
		Checks: []CheckAnswer{}, Proofs: []ProofState{}}
}

// explainer gathers one explanation.
type explainer struct {
	st     state
	timing cluster.Timing
	tests  []DeviceTest // of the node's fence devices
	e      *Explanation
}

func (x *explainer) saw(format string, more ...any) {
	x.e.Evidence = append(x.e.Evidence, fmt.Sprintf(format, more...))
}

func (x *explainer) missing(format string, more ...any) {
	x.e.Missing = append(x.e.Missing, fmt.Sprintf(format, more...))
}

// object adds a refusal; by is who made it, empty for this server. The same
// code for the same node is told once, by the first who tells it; maintenance,
// which is the cluster's, once at all.
func (x *explainer) object(by cluster.NodeID, r cluster.Refusal) {
	for _, have := range x.e.Refusals {
		if have.Code == r.Code && (have.Node == r.Node || r.Code == cluster.RefuseMaintenance) {
			return
		}
	}
	x.e.Refusals = append(x.e.Refusals, Objected{r, by, remedies[r.Code]})
}

func (x *explainer) word(name cluster.NodeID) NodeWord { return wordOf(x.e.Words, name) }

func (x *explainer) role() {
	x.lease()
	x.saw("primary_node, the wish, is %q", x.st.wish())
	x.maintenance()
	x.transition()
	for i, child := range x.st.snap.RoleLock {
		x.saw("place %d in the role lock's queue: %s, for %s", i+1, lockOwner(child), x.st.now.Sub(child.SeenAt).Round(100*time.Millisecond))
	}
	x.oldHolder()
	x.owed()
	damaged := append(x.st.damaged(), x.st.barring()...)
	x.tellDamage(damaged)
	able := x.candidates()
	x.e.Why = strings.TrimSpace(x.whyRole(able) + " " + capital(told(damaged)))
}

// capital begins a sentence.
func capital(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:]
}

// barring is the damage for which nodes cannot take the role.
func (st state) barring() []damage {
	var list []damage
	for _, name := range st.names() {
		for _, d := range st.damagedOf(st.snap.Nodes[name]) {
			if d.id == "MODE" || d.id == "DAEMON" || d.id == "ALIVE" {
				d.what = "of node " + string(name) + ", " + d.what
				list = append(list, d)
			}
		}
	}
	return list
}

func (x *explainer) maintenance() {
	if err := x.st.snap.Maintenance.Err; err != nil {
		x.object("", cluster.Refusal{Code: cluster.RefuseMaintenance, Detail: fmt.Sprintf(
			"The maintenance switch cannot be read, which counts as on (%v): nobody takes the role or fences of their own accord.", err)})
	}
	if m := maintenanceView(x.st.snap); m.On {
		x.object("", cluster.Refusal{Code: cluster.RefuseMaintenance, Detail: fmt.Sprintf(
			"The cluster is in maintenance%s: nobody takes the role or fences of their own accord.", byWhom(m))})
	}
}

func byWhom(m MaintenanceView) string {
	text := ""
	if m.Owner != "" {
		text += ", set by " + m.Owner
	}
	if m.SinceMS != 0 {
		text += " at " + time.UnixMilli(m.SinceMS).Format(faultTime)
	}
	if m.Reason != "" {
		text += " (" + m.Reason + ")"
	}
	return text
}

func (x *explainer) transition() {
	t := x.st.snap.Transition
	if !t.Present || t.Err != nil || t.Value.ID == "" {
		return
	}
	x.saw("the last hand-over, %s to %s because of %s, is %s in phase %s", orNobody(t.Value.From), t.Value.To, t.Value.Cause, t.Value.State, t.Value.Phase)
	if t.Value.Error != "" {
		x.saw("it says: %s", t.Value.Error)
	}
}

// oldHolder tells of the fence of the node whose lease ran out.
func (x *explainer) oldHolder() {
	l := x.st.snap.Lease
	if !l.Present || l.Err != nil || l.Value.Released() || x.st.holder() != "" {
		return
	}
	if f := x.st.snap.Nodes[l.Value.Holder].Fence; f.Present && f.Err == nil && f.Value.Incarnation == l.Value.Incarnation {
		x.saw("the fence of node %s, who held it, is in stage %s", l.Value.Holder, f.Value.Stage)
	}
}

func lockOwner(child cluster.LockChild) string {
	if child.Foreign {
		return "a foreign client"
	}
	return "node " + string(child.Owner.Node)
}

func (x *explainer) lease() {
	l := x.st.snap.Lease
	switch holder := x.st.holder(); {
	case !l.Present:
		x.e.Verdict = "Nobody holds the role: the lease record is absent, which is a fault."
		x.object("", cluster.Refusal{Code: cluster.RefuseLeaseAbsent, Detail: "Nobody takes a role whose lease record is absent before a long wait: a holder may still live."})
	case l.Err != nil:
		x.e.Verdict = "The lease record cannot be read: " + l.Err.Error()
		x.object("", cluster.Refusal{Code: cluster.RefuseLeaseUnreadable, Detail: l.Err.Error()})
	case holder != "":
		x.e.Verdict = fmt.Sprintf("Node %s holds the role, epoch %d.", holder, l.Value.Epoch)
		x.saw("the lease was last seen to be renewed %s ago; it lasts %s", x.st.now.Sub(l.SeenAt).Round(time.Millisecond), l.Value.TTL())
	case l.Value.Released():
		x.e.Verdict = fmt.Sprintf("Nobody holds the role: it was released after epoch %d.", l.Value.Epoch)
	default:
		x.e.Verdict = fmt.Sprintf("Nobody holds the role: the lease of node %s, epoch %d, expired.", l.Value.Holder, l.Value.Epoch)
		x.saw("the lease has not been seen to be renewed for %s; it lasts %s", x.st.now.Sub(l.SeenAt).Round(time.Millisecond), l.Value.TTL())
	}
}

// candidates takes each coordinator's word on itself and returns those against
// which nothing is known.
func (x *explainer) candidates() []cluster.NodeID {
	var able []cluster.NodeID
	for _, name := range x.st.coordinators() {
		before := len(x.e.Refusals)
		x.takeWord(x.word(name))
		if no := x.st.unable(name); no != nil {
			x.object("", no.value())
		}
		if len(x.e.Refusals) == before {
			able = append(able, name)
			x.saw("node %s could hold the role", name)
		}
	}
	if len(able) == 0 && !x.anyAble() {
		x.missing("a coordinator that runs: start pvcnoded on one of them")
	}
	return able
}

// anyAble reports whether the records hold nothing against some coordinator.
func (x *explainer) anyAble() bool {
	for _, name := range x.st.coordinators() {
		if x.st.unable(name) == nil {
			return true
		}
	}
	return false
}

// takeWord takes in what a coordinator publishes of itself.
func (x *explainer) takeWord(w NodeWord) {
	if w.View == nil {
		x.saw("node %s: %s", w.Node, w.Doubt)
		return
	}
	v, unsure := w.View, ""
	if w.Doubt != "" {
		unsure = " when it last wrote, and " + w.Doubt
	}
	x.saw("node %s: its role machine is %q%s", w.Node, v.Mode, unsure)
	if v.Blind != "" {
		x.saw("node %s does not count what it sees of others: %s", w.Node, v.Blind)
	}
	if v.Maintenance != x.st.maintained() && w.current() {
		x.saw("node %s has not seen the maintenance switch yet: it goes by %q", w.Node, onOff(v.Maintenance))
	}
	for _, p := range v.Problems {
		x.saw("node %s's pre-flight: %s", w.Node, p)
	}
	for _, fault := range v.GuardFaults {
		if w.current() {
			x.saw("node %s: its guard complains: %s", w.Node, fault)
		}
	}
	for _, fault := range v.Faults {
		if w.current() {
			x.saw("node %s: %s", w.Node, fault)
		}
	}
	if v.ServiceFault != "" && w.current() {
		x.saw("node %s lacks a primary-only service and starts it again and again: %s", w.Node, v.ServiceFault)
	}
	if !w.current() {
		return // its refusals are of the past
	}
	for _, r := range v.Refusals {
		if r.Node == "" {
			r.Node = w.Node
		}
		x.object(w.Node, r)
	}
}

// whyRole says why the role is not elsewhere.
func (x *explainer) whyRole(able []cluster.NodeID) string {
	l := x.st.snap.Lease
	switch holder := x.st.holder(); {
	case holder != "":
		return x.whyHeld(holder)
	case l.Err != nil:
		return "Nobody takes a role whose lease record cannot be read."
	case !l.Present:
		return "The lease record is gone. It is made anew a little over a minute after that was first seen, in case a holder still lives."
	case x.st.snap.Maintenance.Err != nil:
		return "Nobody takes it of their own accord, since the maintenance switch cannot be read, which counts as on."
	case x.st.snap.Maintenance.Value:
		return fmt.Sprintf("Nobody takes it of their own accord, since the cluster is in maintenance%s. `pvc cluster maintenance off` lets it happen.", byWhom(maintenanceView(x.st.snap)))
	case len(able) > 0:
		text := fmt.Sprintf("It is about to be taken: nothing stands against %s.", joinNodes(able))
		if lock := x.st.snap.RoleLock; len(lock) > 0 {
			text += fmt.Sprintf(" The role lock is with %s for %s; one of ours that heads the queue for long is broken, a foreign client's is waited for.", lockOwner(lock[0]), x.st.now.Sub(lock[0].SeenAt).Round(100*time.Millisecond))
		}
		return text + fmt.Sprintf(" If this stays for more than %s, pvcnoded's log there says why.", x.timing.RoleTTL+x.timing.TakerMargin)
	}
	return "No coordinator can take it: " + x.firstRefusals(x.st.coordinators())
}

// firstRefusals is what stands against each of the nodes, the first reason of
// each.
func (x *explainer) firstRefusals(names []cluster.NodeID) string {
	var reasons []string
	for _, name := range names {
		for _, r := range x.e.Refusals {
			if r.Node == name || r.By == name {
				reasons = append(reasons, fmt.Sprintf("%s [%s] %s", name, r.Code, r.Detail))
				break
			}
		}
	}
	if len(reasons) == 0 {
		return "none is registered."
	}
	return strings.Join(reasons, "; ")
}

// whyHeld says why the holder has not lost or given up the role.
func (x *explainer) whyHeld(holder cluster.NodeID) string {
	wish, t := cluster.NodeID(x.st.wish()), x.st.snap.Transition.Value
	switch {
	case t.Running():
		return fmt.Sprintf("A hand-over from %s to %s runs, in phase %s. Each of its steps has a deadline; it ends or is aborted by itself.", orNobody(t.From), t.To, t.Phase)
	case x.st.snap.Nodes[holder].Router.Value != cluster.RouterPrimary:
		return fmt.Sprintf("Node %s holds the lease and does not serve yet: it is in coordinator state %q. What it says: %s", holder, x.st.snap.Nodes[holder].Router.Value, x.ownWord(holder))
	case string(wish) == cluster.NoNode:
		return fmt.Sprintf("Node %s was asked to give the role up. What it says: %s", holder, x.ownWord(holder))
	case wish != holder:
		if no := x.st.unable(wish); no != nil {
			return fmt.Sprintf("Node %s shall become primary and cannot: %s", wish, no.text)
		}
		return fmt.Sprintf("Node %s shall become primary; the wish is given up unless it has begun within 8 s. What it says: %s", wish, x.ownWord(wish))
	case t.State == cluster.TransitionAborted && t.From == holder:
		return fmt.Sprintf("It stays with %s: the last switch, to %s, was aborted: %s. Put that right and ask again: `pvc node primary %s --wait`.", holder, t.To, t.Error, t.To)
	}
	return fmt.Sprintf("Node %s renews its lease, so that nobody else may take it, and nothing asks it to give it up.", holder)
}

// ownWord is what the node itself refuses, or that it refuses nothing.
func (x *explainer) ownWord(name cluster.NodeID) string {
	w := x.word(name)
	switch {
	case w.View == nil:
		return w.Doubt + "."
	case len(w.View.Refusals) > 0:
		r := w.View.Refusals[0]
		return fmt.Sprintf("[%s] %s.", r.Code, strings.TrimSuffix(r.Detail, "."))
	case len(w.View.Problems) > 0:
		return "its pre-flight finds: " + strings.Join(w.View.Problems, "; ") + "."
	}
	return fmt.Sprintf("nothing against it; its role machine is %q.", w.View.Mode)
}

func orNobody(n cluster.NodeID) string {
	if n == "" {
		return "nobody"
	}
	return string(n)
}
