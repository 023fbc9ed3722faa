package api

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// workloadEvents is how many entries of the history an explanation of a workload
// quotes.
const workloadEvents = 5

// explainWorkload says of a workload where it is, why it is not elsewhere or not
// at all, and what remains to be done. "workload:NAME" means a workload where a
// node has the same name.
func (s *Server) explainWorkload(r *request, st state, name string) (any, error) {
	v, known := st.snap.Workloads[name]
	if !known {
		return nil, refuse(http.StatusNotFound, fmt.Sprintf("%q is neither a node nor a workload nor \"primary\"; nodes: %s; `pvc workload list` shows the workloads.", cut(name), joinNodes(st.names())))
	}
	x := &explainer{st: st, timing: s.cfg.Timing, e: newExplanation(name)}
	x.e.Words = []NodeWord{}
	if v.Err != nil {
		x.e.Verdict = fmt.Sprintf("The record of workload %q cannot be read: %v.", name, v.Err)
		x.e.Why = "A workload whose record cannot be read is left alone: nobody could say where its copies may run."
		x.missing("its record /agent/workloads/%s: a newer program may have written it (update all nodes), else restore it from a backup", name)
		return *x.e, nil //nolint:nilerr // it is what is explained
	}
	faults := s.faultsNow(r.ctx, x)
	x.workload(v.Value, x.strays(faults, name, cluster.NoNode))
	s.workloadPast(r, x, name, faults)
	s.explainActivities(r.ctx, x, st.holder())
	return *x.e, nil
}

// workload explains one; strays are the nodes that run a copy outside its record.
func (x *explainer) workload(w cluster.Workload, strays []cluster.NodeID) {
	since := ""
	if w.SinceMS != 0 {
		since = ", since " + time.UnixMilli(w.SinceMS).Format(faultTime)
	}
	x.e.Verdict = fmt.Sprintf("Workload %q is %s%s.", w.Name, w.State, since)
	if head := w.Head(); head != cluster.NoCopy {
		x.e.Verdict = fmt.Sprintf("Workload %q is %s%s; its active copy is to be on node %s.", w.Name, w.State, since, head)
	}
	x.workloadRecord(w)
	for _, n := range w.Members() {
		x.member(n)
	}
	x.maintenance()
	if no := x.st.withoutLeases(); no != nil {
		x.object("", cluster.Refusal{Code: cluster.RefuseWithoutLeases, Detail: no.text})
	}
	if x.st.holder() == "" {
		x.object("", cluster.Refusal{Code: cluster.RefuseNotPrimary, Detail: "Nobody holds the primary role, so that nobody does anything for workloads; `pvc explain primary` says why."})
	}
	x.remains(w)
	x.e.Why = x.whyWorkload(w)
	if len(strays) > 0 {
		x.e.Why += fmt.Sprintf(" Beside that a copy of it runs on %s, outside its record, and could not be stopped: two may be at its data.", joinNodes(strays))
	}
}

// workloadRecord tells what the record says.
func (x *explainer) workloadRecord(w cluster.Workload) {
	wanted := "it is to run"
	if !w.Wanted {
		wanted = "it is not to run"
	}
	x.saw("%s, driver %s, chain %s; %s", w.Kind, driverText(w), chainText(w.Chain), wanted)
	if w.Reason != "" {
		x.saw("the primary says: %s", w.Reason)
	}
	if len(w.Nodes) > 0 {
		x.saw("copies may be on %s", joinNodes(w.Nodes))
	}
	if w.Attempts > 0 {
		x.saw("%d starts have failed since the last that did not", w.Attempts)
	}
	if m := w.Next; m != nil {
		x.saw("it is being moved to the chain %s%s, because of %s (%s)", chainText(m.Chain), liveText(m.Live), m.Cause, m.ID)
	}
	if w.Home != "" {
		x.saw("a drain has moved it away; it goes back to %s once that is ready", w.Home)
	}
	if o := w.Request; o != nil {
		x.saw("the order to %s, by %s at %s, has not been carried out yet", orderText(*o, w.Name), o.By, time.UnixMilli(o.AtMS).Format(faultTime))
	}
	if a := w.Answer; a != nil {
		x.saw("the last order was answered at %s: %s", time.UnixMilli(a.AtMS).Format(faultTime), a.Text)
		for _, c := range a.Copies {
			x.saw("at that time node %s said of its copy: %s", c.Node, copyText(c))
		}
	}
	if w.Ephemeral {
		p := x.st.reprovision()
		spent := ""
		if p.Enabled && !p.Armed() {
			spent = ": it does nothing more until a rebalance has finished, or `pvc settings autoreprovision reset`, and the next head that comes back empty is activated as it is"
		}
		x.saw("it is ephemeral: a copy that is restarted comes back empty; auto-reprovision is %s, %d of %d nodes are spent%s", onOff(p.Enabled), p.Count, p.MaxNodes, spent)
	}
}

// liveText says of a move whether, and how far, it is a live one.
func liveText(l cluster.LiveMove) string {
	switch l {
	case "":
		return ""
	case cluster.LiveMigrating:
		return " live, so that both nodes may have a copy until it is over"
	}
	return " live no more: what is left of it is stopped on both nodes, before it starts at one of them"
}

// copyText is a report for people.
func copyText(c cluster.CopyReport) string {
	if c.Unknown {
		return "not known: " + orUnknown(c.Error)
	}
	text := string(c.State)
	if c.HasOffset {
		text += fmt.Sprintf(", offset %d", c.Offset)
	}
	if c.Follows != "" {
		text += ", follows " + string(c.Follows)
	}
	if c.Error != "" {
		text += ": " + c.Error
	}
	return text
}

// member tells of a node of the chain what decides whether its copy counts.
func (x *explainer) member(n cluster.NodeID) {
	v, known := x.st.snap.Nodes[n]
	if !known {
		x.saw("node %s of its chain is not registered", n)
		x.missing("node %s, which is in its chain and not registered: a removed node's place is filled by `pvc rebalance`", n)
		return
	}
	f, is := presentFence(v)
	switch {
	case is && proven(f):
		x.saw("node %s is proven dead (%s): nothing of it runs there", n, f.Proof)
	case !v.Alive.Present || v.Daemon.Value != cluster.DaemonRun:
		x.saw("node %s is in state %q and not proven dead: its copy may still run until its own deadline", n, v.Daemon.Value)
		x.missing("the word of node %s, or a proof that it is dead: `pvc explain %s`", n, n)
	case v.Settles():
		x.saw("node %s is in state %q, but %s; what its copy is just now is not known", n, v.Daemon.Value, settlingText)
	default:
		x.saw("node %s is in state %q, domain state %q", n, v.Daemon.Value, v.Domain.Value)
	}
}

// remains names what is left to be done for the workload's copies.
func (x *explainer) remains(w cluster.Workload) {
	for _, n := range x.st.reprovision().Nodes {
		if w.Ephemeral && (len(w.Nodes) == 0 || slices.Contains(w.Nodes, n)) {
			x.missing("%s", emptyText(n))
		}
	}
	empty := 0
	for _, n := range w.Chain {
		if n == cluster.NoCopy {
			empty++
		}
	}
	if empty > 0 {
		x.missing("%d of the %d places of its chain to be filled: `pvc rebalance --wait`, once a node that may have a copy is ready", empty, len(w.Chain))
	}
}

// whyWorkload says why nothing more has happened.
func (x *explainer) whyWorkload(w cluster.Workload) string {
	because := func(text string) string {
		if w.Reason == "" {
			return text
		}
		return text + " " + capital(w.Reason) + "."
	}
	switch {
	case x.st.withoutLeases() != nil:
		return "Nothing is done for it: node leases are not in use. In a cluster that has just come up they are within seconds; if this lasts they are switched off (`pvc lease list`)."
	case x.st.holder() == "":
		return "Nothing is done for it while nobody holds the primary role. What runs goes on as long as its node may."
	case w.Request != nil:
		return fmt.Sprintf("The primary, %s, has an order to carry out: %s.", x.st.holder(), orderText(*w.Request, w.Name))
	case w.Next != nil:
		return because("It is being moved. Each step has a deadline; whoever is primary goes on with it.")
	}
	switch w.State {
	case cluster.WorkloadRunning:
		if len(x.e.Missing) > 0 {
			return "Its active copy was seen to run. What is missing does not stop it, and leaves less to fall back on."
		}
		return "Its active copy was seen to run, and nothing is missing."
	case cluster.WorkloadNew:
		return because("Its chain is not made yet: the primary makes it with its next pass, from the nodes that are ready.")
	case cluster.WorkloadStarting, cluster.WorkloadMoving, cluster.WorkloadRecovering:
		return because("It is on its way; if this lasts for more than a minute `pvc activity list` and pvcnoded's log on the primary say why.")
	case cluster.WorkloadStopped:
		if !w.Wanted {
			return fmt.Sprintf("An operator has stopped it; `pvc workload start %s` starts it.", w.Name)
		}
		return because("No node could take it; it starts by itself once one can (autostart " + onOff(w.Autostart) + ").")
	case cluster.WorkloadFailed:
		return because(fmt.Sprintf("Its starts have failed too often. Put right what the reason names, then `pvc workload start %s`.", w.Name))
	case cluster.WorkloadUnsafe:
		return because("Its active copy came back empty while another of its chain still has the data. Brought online it would empty the others, so that it is not.") + x.whyUnsafe(w)
	case cluster.WorkloadFaulty:
		return because("It is left alone, since what was found makes no sense.")
	}
	return because(fmt.Sprintf("Its state %q is of a newer program.", w.State))
}

func (x *explainer) whyUnsafe(w cluster.Workload) string {
	if p := x.st.reprovision(); !p.Armed() {
		return fmt.Sprintf(" Auto-reprovision does nothing more (%s, %d of %d nodes are spent): `pvc workload promote %s --node NODE` makes the copy on another node of its chain the active one.", onOff(p.Enabled), p.Count, p.MaxNodes, w.Name)
	}
	return " Auto-reprovision promotes another copy with the next pass."
}

// workloadPast adds what the history and the faults tell of the workload.
func (s *Server) workloadPast(r *request, x *explainer, name string, faults []FaultRecord) {
	if x.st.away > 0 {
		return
	}
	events, err := s.deps.Details.ReadHistory(r.ctx, eventsLooked)
	if err != nil { // the rest is worth having without it
		x.saw("the history could not be read: %v", err)
	}
	told := 0
	for _, e := range slices.Backward(events) {
		if told < workloadEvents && e.Fields["workload"] == name {
			x.saw("%s: %s", time.UnixMilli(e.UnixMS).Format(faultTime), e.Text)
			told++
		}
	}
	for _, f := range faults {
		if _, _, stray := strayOf(f); stray {
			continue // told of already
		}
		if text := f.Fields["message"]; strings.Contains(text, "workload "+name+" ") || strings.Contains(text, fmt.Sprintf("workload %q", name)) {
			x.saw("fault %s: %s", f.ID, text)
		}
	}
}
