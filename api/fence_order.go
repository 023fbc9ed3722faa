package api

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// decision is what becomes of an operator's order that is not refused.
type decision struct {
	text      string // what is answered
	already   bool   // nothing has to be written
	withdraws bool   // an order that nobody has carried out yet is taken back
}

// op writes the order, or takes back the one that stands.
func (d decision) op(n cluster.NodeView, o cluster.FenceOrder) cluster.Op {
	if d.withdraws {
		return cluster.EndOrder(o.Node, n.Order)
	}
	return cluster.Put(cluster.Key{Kind: cluster.KeyFenceOrder, Node: o.Node}, n.Order, o)
}

// no refuses an order; the text says what is true now and ends with the cure.
func no(format string, more ...any) (decision, *failure) {
	return decision{}, refuse(http.StatusBadRequest, fmt.Sprintf(format, more...))
}

func already(format string, more ...any) (decision, *failure) {
	return decision{text: fmt.Sprintf(format, more...), already: true}, nil
}

// decideOrder says what becomes of an order about the node as it is seen, or
// why nothing is ordered. What is not checked here, or changes meanwhile, is
// checked by the primary in the write that is the effect.
func (st state) decideOrder(n cluster.NodeView, o cluster.FenceOrder, words []NodeWord) (decision, *failure) {
	if p := n.Order; p.Present && p.Err == nil {
		return st.decideBesides(n.Order.Value, o)
	}
	if o.Action != cluster.OrderTest && o.Incarnation == "" {
		return no("Node %q has no registration that can be read (/agent/nodes/%s), so that which start of it is meant cannot be told; nothing was ordered. Start pvcnoded there, or wait until it is registered.", o.Node, o.Node)
	}
	d, fail := st.decideAction(n, o, words)
	if fail != nil || d.already {
		return d, fail
	}
	if st.holder() == "" && (o.Action != cluster.OrderConfirm || !st.stands(n.Name)) {
		return no("Only the primary carries orders out, and nobody holds the role now; nothing was ordered. `pvc explain primary` says why; ask again once there is one.")
	}
	return d, nil
}

// decideBesides says what becomes of an order while another one stands.
func (st state) decideBesides(stands, o cluster.FenceOrder) (decision, *failure) {
	what := fmt.Sprintf("The order to %s node %q, by %s since %s,", stands.Action, stands.Node, stands.By, time.UnixMilli(stands.UnixMS).Format(faultTime))
	switch {
	case o.Action == cluster.OrderCancel:
		return decision{text: what + " is taken back; it had not been carried out.", withdraws: true}, nil
	case o.Action == stands.Action && o.Incarnation == stands.Incarnation && o.Unsafe == stands.Unsafe:
		return already("%s stands already and has not been carried out yet.", what)
	}
	return no("%s has not been carried out yet, so that no other is taken; nothing was ordered. Wait for it (`pvc fence list`), or take it back with `pvc fence cancel %s`.", what, o.Node)
}

func (st state) decideAction(n cluster.NodeView, o cluster.FenceOrder, words []NodeWord) (decision, *failure) {
	switch o.Action {
	case cluster.OrderFence:
		return st.decideFence(n)
	case cluster.OrderConfirm:
		return st.decideConfirm(n, o, words)
	case cluster.OrderCancel:
		return decideCancel(n)
	}
	return decision{text: fmt.Sprintf("Ordered: node %s, the primary, asks the fence devices of node %q whether they could be used. `pvc fence list` shows what they answer.", st.holder(), n.Name)}, nil
}

// presentFence is the fence of the node's present start, if there is one.
func presentFence(n cluster.NodeView) (cluster.FenceRecord, bool) {
	f := n.Fence
	if !f.Present || f.Err != nil || f.Value.ID == "" || f.Value.Incarnation != n.Record.Value.Incarnation {
		return cluster.FenceRecord{}, false
	}
	return f.Value, true
}

// proven reports whether this start of the node is proven dead.
func proven(f cluster.FenceRecord) bool {
	switch f.Stage {
	case cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone:
		return f.Proof != ""
	}
	return false
}

func (st state) decideFence(n cluster.NodeView) (decision, *failure) {
	f, is := presentFence(n)
	switch {
	case st.snap.Maintenance.Err != nil && st.maintained():
		return no("Whether the cluster is in maintenance cannot be read, which counts as on, so that nobody is fenced; nothing was ordered. Set it with `pvc cluster maintenance off`.")
	case st.maintained():
		return no("The cluster is in maintenance%s, so that nobody is fenced; nothing was ordered. `pvc cluster maintenance off` ends it.", byWhom(maintenanceView(st.snap)))
	case st.holder() == n.Name:
		return no("Node %q holds the primary role, and only the primary fences: it would have to fence itself. Nothing was ordered. Move the role first: `pvc node secondary %s --wait`.", n.Name, n.Name)
	case n.Daemon.Value == cluster.DaemonStop:
		return no("Node %q was stopped on purpose; such a node has no work and is never fenced. Nothing was ordered. Switch it off by its own device if it is to lose its power.", n.Name)
	case is && proven(f):
		return already("Node %q has been fenced already; the proof is %q.", n.Name, f.Proof)
	case is && underWay(f.Stage):
		return already("Node %q is being fenced by %s already, in stage %s.", n.Name, f.By, f.Stage)
	}
	return decision{text: fmt.Sprintf("Ordered: node %s, the primary, fences node %q: it takes its power and proves that it is gone.", st.holder(), n.Name)}, nil
}

// underWay reports whether a fencer works on a record in this stage by itself
// and without a pause.
func underWay(s cluster.FenceStage) bool {
	switch s {
	case cluster.FenceClaimed, cluster.FenceSoft, cluster.FencePowerOff, cluster.FenceVerify:
		return true
	}
	return false
}

// decideConfirm takes an operator's word for a dead-proof only of a node that
// nothing shows to be alive: a wrong word runs its work twice (I4).
func (st state) decideConfirm(n cluster.NodeView, o cluster.FenceOrder, words []NodeWord) (decision, *failure) {
	if r := n.Record; r.Present && r.Err == nil && o.Incarnation != r.Value.Incarnation { // which may well live: it is the one before that is meant
		return decision{text: fmt.Sprintf("Ordered: the start of node %q that held the primary role (%s) counts as dead by the operator's word, so that the role can be taken.", n.Name, o.Incarnation)}, nil
	}
	f, is := presentFence(n)
	if is && proven(f) {
		return already("Node %q is proven dead already; the proof is %q.", n.Name, f.Proof)
	}
	if n.Daemon.Value == cluster.DaemonStop && !st.stands(n.Name) && !st.owed(n) {
		return no("Node %q was stopped on purpose, so that there is nothing to confirm; nothing was changed.", n.Name)
	}
	if alive := st.signsOfLife(n, words); alive != "" {
		return no("Node %q is alive: %s. Nothing was confirmed: work of a node that lives would run twice. If it is to be lost: `pvc fence now %s`.", n.Name, alive, n.Name)
	}
	if !is && st.late > 0 && st.silence(n) <= st.late {
		return no("Node %q has no fence record, and this pvcapid has watched it be silent for %s only, which is less than %s (fence_intervals × keepalive_interval); nothing was confirmed. Ask again later.",
			n.Name, st.silence(n).Round(100*time.Millisecond), st.late)
	}
	if st.holder() == "" {
		return decision{text: fmt.Sprintf("Ordered: node %q counts as dead by the operator's word, so that the role can be taken; whoever takes it takes the word for the proof.", n.Name)}, nil
	}
	return decision{text: fmt.Sprintf("Ordered: node %s, the primary, takes the operator's word that node %q has no power for the proof.", st.holder(), n.Name)}, nil
}

// stands reports whether nobody holds the role and the lease may stand against
// those who could take it: that of this node, or one that cannot be read. Then
// the operator's word is needed before there is a primary.
func (st state) stands(n cluster.NodeID) bool {
	l := st.snap.Lease
	return st.holder() == "" && (!l.Present || l.Err != nil || l.Value.Holder == n)
}

// owed reports whether the lease waits for the dead-proof of this start of the
// node, which may have left the role to its guard when it was stopped.
func (st state) owed(n cluster.NodeView) bool {
	l := st.snap.Lease
	return l.Present && l.Err == nil && slices.Contains(l.Value.Unproven, cluster.Unproven{Node: n.Name, Incarnation: n.Record.Value.Incarnation})
}

// meant is the start of the node that the order is about: the registered one,
// or, where a later one confirms the death of the start that the lease names,
// that one.
func (st state) meant(n cluster.NodeView, action string) cluster.Incarnation {
	if l := st.snap.Lease; action == cluster.OrderConfirm && st.stands(n.Name) && l.Value.Holder == n.Name {
		return l.Value.Incarnation
	}
	return n.Record.Value.Incarnation
}

// signsOfLife says what shows that the node lives; empty where nothing does.
func (st state) signsOfLife(n cluster.NodeView, words []NodeWord) string {
	var signs []string
	age := st.now.Sub(n.Keepalive.SeenAt)
	if n.Keepalive.Present && st.late > 0 && age <= st.late {
		signs = append(signs, fmt.Sprintf("its last keepalive is %s old", age.Round(100*time.Millisecond)))
	}
	if n.Alive.Present {
		text := "its ZooKeeper session lives"
		if n.Keepalive.Present && len(signs) == 0 {
			text += fmt.Sprintf(", and its last keepalive is %s old", age.Round(100*time.Millisecond))
		}
		signs = append(signs, text)
	}
	if st.holder() == n.Name {
		signs = append(signs, "it holds the primary role, whose lease has not run out")
	}
	if by := reachedBy(n.Name, words); len(by) > 0 {
		signs = append(signs, "it answers the probes of "+joinNodes(by))
	}
	return strings.Join(signs, "; ")
}

// reachedBy are the coordinators that live and whose probes the node answers.
func reachedBy(n cluster.NodeID, words []NodeWord) []cluster.NodeID {
	var by []cluster.NodeID
	for _, w := range words {
		if w.current() && w.Node != n && w.View.Reach[n].Answer == cluster.ProbeAnswered {
			by = append(by, w.Node)
		}
	}
	return by
}

func decideCancel(n cluster.NodeView) (decision, *failure) {
	if n.Fence.Present && n.Fence.Err != nil {
		return no("The fence record of node %q cannot be read (%v); nothing was canceled. `pvc explain %s` says what to do.", n.Name, n.Fence.Err, n.Name)
	}
	f, is := presentFence(n)
	switch {
	case !is:
		return no("There is no fence of node %q to cancel; nothing was changed.", n.Name)
	case f.Stage == cluster.FenceCanceled, f.Stage == cluster.FenceManual:
		return already("The fence of node %q has ended already (stage %s): nothing more is tried by itself.", n.Name, f.Stage)
	case proven(f):
		return no("Node %q has been fenced (%s), which cannot be taken back; nothing was changed. Start it when it is repaired.", n.Name, f.Proof)
	case f.Stage == cluster.FencePowerOff, f.Stage == cluster.FenceVerify:
		return no("The power of node %q has been ordered off (stage %s), which cannot be called back; nothing was changed. See how it ends: `pvc fence list`.", n.Name, f.Stage)
	case !f.Stage.Known():
		return no("The fence of node %q is in stage %q, which this version does not know; nothing was changed. Upgrade pvcapid.", n.Name, f.Stage)
	}
	return decision{text: fmt.Sprintf("Ordered: the fence of node %q, in stage %s, is to be canceled. Then nothing more is tried until the node returns, or you confirm that it has no power, or order it to be fenced again.", n.Name, f.Stage)}, nil
}
