package api

import (
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// node explains a node: what it is, how everybody sees it, and why it has not
// been fenced.
func (x *explainer) node(n cluster.NodeView) {
	x.records(n)
	x.e.Verdict = x.nodeVerdict(n)
	ailing := x.ailing(n)
	damaged := append(x.st.damagedOf(n), x.st.damaged()...)
	x.tellDamage(damaged)
	x.maintenance()
	if n.Mode.Value == cluster.Coordinator {
		x.takeWord(x.word(n.Name))
		if no := x.st.unable(n.Name); no != nil {
			x.object("", no.value())
		}
	}
	switch {
	case ailing:
		if fenceText(n) == "" {
			x.vetoes(n.Name)
		}
		x.lost(n)
		x.e.Why = strings.TrimSpace(x.whyNotFenced(n) + " " + capital(told(damaged)))
	case len(damaged) > 0:
		x.e.Why = "Nobody acts on it, but not all is well: " + told(damaged)
	case settles(n):
		x.e.Why = capital(settlingText) + ". Nothing starts elsewhere by that: flush a node before it is stopped."
	default:
		x.e.Why = "Nothing is wrong with it as far as anybody sees, so nobody acts on it."
	}
	if n.Daemon.Value == cluster.DaemonStop || !n.Alive.Present {
		x.missing("pvcnoded on %s: start it there, or look at its log", n.Name)
	}
}

// records tells what the records say of the node, and the coordinators of it.
func (x *explainer) records(n cluster.NodeView) {
	x.saw("%s in state %q, coordinator state %q, domain state %q", n.Mode.Value, n.Daemon.Value, n.Router.Value, n.Domain.Value)
	if n.Keepalive.Present {
		x.saw("its keepalive was last seen to change %s ago; a node is suspected after %s", x.st.silence(n).Round(100*time.Millisecond), x.st.late)
	} else {
		x.saw("it has never written a keepalive")
	}
	if n.Alive.Present {
		x.saw("its session lives (%s)", n.Alive.Value.Host)
	} else {
		x.saw("its session is gone")
	}
	if f := n.Fence; f.Present && f.Err == nil {
		of := ""
		if f.Value.Incarnation != n.Record.Value.Incarnation {
			of = "of an earlier start, "
		}
		x.saw("fence %s, %sby %s, stage %s: %s", f.Value.ID, of, f.Value.By, f.Value.Stage, f.Value.Reason)
	}
	if o := n.Order; o.Present && o.Err == nil {
		x.saw("an order to %s it, by %s at %s, has not been carried out yet", o.Value.Action, o.Value.By, time.UnixMilli(o.Value.UnixMS).Format(faultTime))
	}
	x.schema(n)
	for _, w := range x.e.Words {
		x.judged(w, n)
	}
	x.picture(n)
}

// judged tells how a coordinator sees the node.
func (x *explainer) judged(w NodeWord, n cluster.NodeView) {
	if w.Node == n.Name || x.st.snap.Nodes[w.Node].Mode.Value != cluster.Coordinator {
		return
	}
	seen, known := w.judges(n.Name)
	if !known {
		why := w.Doubt
		if why == "" {
			why = "its view does not name this node"
		}
		x.saw("how node %s sees it is not known: %s", w.Node, why)
		return
	}
	text := fmt.Sprintf("node %s sees it as %s", w.Node, seen.Liveness)
	if seen.Excuse != "" {
		text += "; its silence does not count: " + seen.Excuse
	}
	if w.View.Blind != "" {
		text += "; it does not count what it sees: " + w.View.Blind
	}
	if w.Doubt != "" {
		text += " (or did: " + w.Doubt + ")"
	}
	x.saw("%s", text)
	if seen.Refusal != nil && w.current() && fenceText(n) == "" && x.stands(w, *seen.Refusal) {
		x.saw("node %s does not fence it: [%s] %s", w.Node, seen.Refusal.Code, seen.Refusal.Detail)
	}
}

// stands reports whether what the refusal rests on is still so: a view keeps a
// node's last refusal until there is another, or the node is up.
func (x *explainer) stands(w NodeWord, r cluster.Refusal) bool {
	switch r.Code {
	case cluster.RefuseObserverBlind:
		return w.View.Blind != ""
	case cluster.RefuseMaintenance:
		return w.View.Maintenance
	case cluster.RefuseDisabled:
		return !x.st.failover().Enabled
	}
	return true
}

// ailing reports whether anything is wrong with the node, in the records or in
// the eyes of a coordinator that lives.
func (x *explainer) ailing(n cluster.NodeView) bool {
	if n.Daemon.Value != cluster.DaemonRun || !n.Alive.Present || x.silent(n) || n.Fence.Present && n.Fence.Err == nil && !n.Fence.Value.Ended() {
		return true
	}
	for _, w := range x.e.Words {
		if seen, known := w.judges(n.Name); known && w.current() && seen.Liveness != cluster.LiveUp.String() {
			return true
		}
	}
	return false
}

func (x *explainer) silent(n cluster.NodeView) bool {
	return x.st.late > 0 && x.st.silence(n) > x.st.late
}

// vetoes are what the primary holds against fencing the node, and the standing
// reasons for which none is fenced now.
func (x *explainer) vetoes(n cluster.NodeID) {
	if w := x.word(x.st.holder()); w.current() {
		if seen, known := w.judges(n); known && seen.Refusal != nil && x.stands(w, *seen.Refusal) {
			x.object(w.Node, *seen.Refusal)
		}
	}
	f := x.st.failover()
	switch {
	case x.st.snap.Failover.Err != nil: // told as damage; what they held is not known
	case !f.Enabled:
		x.object("", cluster.Refusal{Code: cluster.RefuseDisabled, Node: n, Detail: "Automatic failover is disabled: no node is fenced of the cluster's own accord."})
	case f.Count >= f.MaxCount:
		x.object("", cluster.Refusal{Code: cluster.RefuseBudget, Node: n, Detail: fmt.Sprintf("Of %d automatic failovers %d are spent: no node is fenced until the count is reset.", f.MaxCount, f.Count)})
	}
}

// whyNotFenced says why the node has not been fenced, or how far that is. It
// has an answer whatever the records and views say.
func (x *explainer) whyNotFenced(n cluster.NodeView) string {
	if text := fenceText(n); text != "" {
		return text
	}
	holder := x.st.holder()
	w := x.word(holder)
	switch {
	case n.Daemon.Value == cluster.DaemonStop:
		return "It was stopped on purpose; such a node is never fenced."
	case holder == n.Name:
		return "It still holds the primary role, and only its successor fences it. The role moves when its lease runs out: see `pvc explain primary`."
	case holder == "":
		return "Only the primary fences, and there is none now: see `pvc explain primary` for why."
	case w.View == nil:
		return fmt.Sprintf("Only the primary fences, and what node %s decides is not known: %s. `journalctl -u pvcnoded` there says it.", holder, w.Doubt)
	case w.Doubt != "":
		return fmt.Sprintf("Only the primary fences, and node %s, which holds the role, may be lost itself: %s. Its successor goes on with it.", holder, w.Doubt)
	case w.View.Blind != "":
		return fmt.Sprintf("Node %s, the primary, does not count what it sees now, so it fences nobody: %s.", holder, w.View.Blind)
	}
	seen, known := w.judges(n.Name)
	if !known {
		return fmt.Sprintf("Node %s, the primary, does not judge it: it has no record of registration (/agent/nodes/%s) that can be read.", holder, n.Name)
	}
	if seen.Refusal != nil && !x.stands(w, *seen.Refusal) {
		seen.Refusal = nil
	}
	return x.whyPrimaryWaits(holder, seen)
}

// whyPrimaryWaits says what the primary, whose word is current, waits for.
func (x *explainer) whyPrimaryWaits(holder cluster.NodeID, seen cluster.NodeSeen) string {
	f, t := x.st.failover(), x.timing
	suspected := t.SuspectAfter()
	switch {
	case seen.Liveness == cluster.LiveIsolated.String() && (seen.Refusal == nil || seen.Refusal.Code == cluster.RefuseNotSuspectEnough):
		return fmt.Sprintf("Node %s, the primary, sees it as isolated: it answers direct probes, so it gets the time to stop its work itself; it is fenced after %s of silence.", holder, t.IsolatedFenceAfter())
	case seen.Refusal != nil:
		return fmt.Sprintf("Node %s, the primary, refuses to fence it: [%s] %s. %s", holder, seen.Refusal.Code, seen.Refusal.Detail, remedies[seen.Refusal.Code])
	case seen.Excuse != "":
		return fmt.Sprintf("Node %s, the primary, sees it as %s and does not count that as death: %s.", holder, seen.Liveness, seen.Excuse)
	case seen.Liveness == cluster.LiveUp.String():
		return fmt.Sprintf("Node %s, the primary, sees it as up: its keepalive changes as it should, so there is nothing to fence.", holder)
	case x.st.maintained():
		return fmt.Sprintf("Node %s, the primary, sees it as %s, and the cluster is in maintenance, so that nobody is fenced. %s", holder, seen.Liveness, remedies[cluster.RefuseMaintenance])
	case !f.Enabled:
		return fmt.Sprintf("Node %s, the primary, sees it as %s, and automatic failover is disabled. %s", holder, seen.Liveness, remedies[cluster.RefuseDisabled])
	case seen.Liveness == cluster.LiveLate.String():
		return fmt.Sprintf("Node %s, the primary, sees it as late; it counts as suspect after %s of silence, and as dead once its session is gone too.", holder, suspected)
	case seen.Liveness == cluster.LiveSuspect.String():
		return fmt.Sprintf("Node %s, the primary, sees it as suspect: silent, but its ZooKeeper session lives. It is fenced once that has ended, at most %s after it was last heard by ZooKeeper.", holder, t.SessionTimeout)
	}
	return fmt.Sprintf("Node %s, the primary, sees it as %s and holds nothing against fencing it: a fence record appears within a second, or once the timeout of %g s is over. If it does not, `pvc history` and pvcnoded's log on %s say what the fencer refused.",
		holder, seen.Liveness, x.st.autoFailover(f).Timeout, holder)
}

// fenceText says how far a fence of the node's present incarnation is; "" if
// there is none.
func fenceText(n cluster.NodeView) string {
	f := n.Fence
	switch {
	case !f.Present:
		return ""
	case f.Err != nil:
		return fmt.Sprintf("Its fence record cannot be read (%v), so nobody goes on with it. Is an older daemon running beside newer ones? Upgrade all.", f.Err)
	case f.Value.Incarnation != n.Record.Value.Incarnation:
		return "" // of an earlier start (I5)
	}
	v := f.Value
	result := ""
	if v.Result != "" {
		result = ": " + v.Result
	}
	switch v.Stage {
	case cluster.FenceCanceled:
		return ""
	case cluster.FenceManual:
		if v.Held {
			return fmt.Sprintf("Its fence was ended by an operator%s. Nothing more is tried until it returns, or you vouch that it has no power (`pvc fence confirm %s --reason WHY`), or order it to be fenced (`pvc fence now %s`).", result, n.Name, n.Name)
		}
		return fmt.Sprintf("Its fence by %s waits for you%s. See that the node has no power and vouch for it (`pvc fence confirm %s --reason WHY`), repair its fence device, or start it again: its return ends the fence.", v.By, result, n.Name)
	case cluster.FenceFailed:
		return fmt.Sprintf("Its fence by %s failed %d times%s. It is tried again with growing pauses; meanwhile nothing of it starts elsewhere. Is its fence device reachable from %s?", v.By, v.Tries, result, v.By)
	case cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone:
		return fmt.Sprintf("It has been fenced by %s; the proof is %q. Unless its device is to power it on again (after: reboot), start it when it is repaired.", v.By, v.Proof)
	}
	return fmt.Sprintf("It is being fenced by %s, in stage %s, try %d%s.", v.By, v.Stage, v.Tries, result)
}

// nodeVerdict is this server's own judgement in a few words.
func (x *explainer) nodeVerdict(n cluster.NodeView) string {
	f, silent := n.Fence, x.silent(n)
	sameStart := f.Present && f.Err == nil && f.Value.Incarnation == n.Record.Value.Incarnation
	switch {
	case n.Daemon.Value == cluster.DaemonStop:
		return "Stopped on purpose; it is not fenced."
	case n.Daemon.Err != nil && n.Alive.Present && !silent:
		return "Its session lives, but its daemon state cannot be read."
	case sameStart && f.Value.Proof != "" && !n.Alive.Present:
		return fmt.Sprintf("Fenced, and proven to be dead (%s).", f.Value.Proof)
	case sameStart && !f.Value.Ended():
		return fmt.Sprintf("Being fenced: stage %s.", f.Value.Stage)
	case !n.Alive.Present && silent && len(reachedBy(n.Name, x.e.Words)) > 0:
		return "Cut off from ZooKeeper: neither session nor keepalive, and yet it answers probes."
	case !n.Alive.Present && silent:
		return "Lost: neither session nor keepalive."
	case silent:
		return "Suspect: its session lives and its keepalive does not."
	case !n.Alive.Present:
		return "Its session is gone; its keepalive is not old enough to suspect it."
	case x.st.silence(n) > 2*x.timing.KeepaliveInterval:
		return "Late: its session lives, and it has missed keepalives."
	case x.st.holder() == n.Name:
		return "Up, and holds the primary role."
	}
	return "Up."
}
