package membership

import (
	"fmt"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// remove takes a node out: one that has stopped, or is proven dead, and holds
// nothing. What is found here is checked again by the Multi, by the versions of
// the node's keepalive, registration and fence: a node that starts meanwhile, or
// is fenced, and its removal cannot both win.
func (c orderCase) remove() Decision {
	o, members, set := c.order, c.Snapshot.Members.Value, c.Snapshot.Quorum
	counts := set.Value.Has(o.Node)
	if !c.known && !counts {
		if r, out := members.Out(o.Node, o.Host); out {
			return Decision{Effect: Nothing, Ends: true, Text: r.String() + " already"}
		}
		return c.no(cluster.RefuseUnknownNode, "no node of this name is present in the cluster")
	}
	if c.registered() && o.Host != c.host() {
		return c.no(cluster.RefuseOtherHost, "host %q has registered by this name since, and %q is meant; look again and order anew", c.host(), o.Host)
	}
	for _, against := range []func() (Decision, bool){c.holding, c.living, c.fenced, c.unproven} {
		if d, stands := against(); stands {
			return d
		}
	}
	d := Decision{Effect: Remove, Ends: true, Text: fmt.Sprintf("node %s is removed", o.Node)}
	if !set.Present && c.view.Mode.Value != cluster.Hypervisor {
		return c.orNo(cluster.RefuseNoQuorum, "the cluster has no quorum set yet; the primary makes it of the registered coordinators")
	}
	if counts {
		next := set.Value.Without(o.Node, c.Epoch)
		if len(next.Nodes) == 0 {
			return c.no(cluster.RefuseLastCoordinator, "it is the last coordinator that counts, and a quorum set is never empty; add another first")
		}
		d.Set, d.Old = &next, set.Value.Nodes
		d.Text += fmt.Sprintf(", and the quorum set is %v", next.Nodes)
	}
	next := members
	for _, host := range slices.Compact([]string{set.Value.IDs[o.Node], c.host()}) {
		if host == "" && (c.host() != "" || set.Value.IDs[o.Node] != "") {
			continue
		}
		next = next.Removing(cluster.RemovedNode{Node: o.Node, Host: host, UnixMS: c.WallMS, By: o.By, Reason: o.Reason}, c.Epoch)
	}
	next.N = members.N + 1
	d.Members = &next
	return d
}

// holding: the role, the lock, a part in a hand-over, or a proof that is owed.
func (c orderCase) holding() (Decision, bool) {
	n, s := c.order.Node, c.Snapshot
	lease, t := s.Lease, s.Transition
	switch {
	case n == c.Self:
		return c.no(cluster.RefuseOneself, "it is the primary, and nobody removes that; switch the role first, then stop it"), true
	case !lease.Present || lease.Err != nil || lease.Value.Holder == n:
		return c.no(cluster.RefuseHoldsSomething, "it may hold the primary role"), true
	case slices.ContainsFunc(lease.Value.Unproven, func(u cluster.Unproven) bool { return u.Node == n }):
		return c.no(cluster.RefuseDeadProof, "it held the primary role and is not proven dead; see that it has no power and `pvc fence confirm %s --reason WHY`", n), true
	case s.PrimaryNode.Value == string(n):
		return c.no(cluster.RefuseHoldsSomething, "it is who shall be primary (primary_node); `pvc node primary` another first"), true
	case t.Present && t.Err == nil && t.Value.Running() && (t.Value.From == n || t.Value.To == n):
		return c.orNo(cluster.RefuseHoldsSomething, "a hand-over of the role from %s to %s is under way", t.Value.From, t.Value.To), true
	case slices.ContainsFunc(s.RoleLock, func(l cluster.LockChild) bool { return !l.Foreign && l.Owner.Node == n }):
		return c.orNo(cluster.RefuseHoldsSomething, "its session still waits for, or holds, the lock of the role"), true
	}
	return Decision{}, false
}

// living: it is registered now, or heard.
func (c orderCase) living() (Decision, bool) {
	if !c.view.Alive.Present {
		return Decision{}, false
	}
	return c.no(cluster.RefuseAliveStill, "it is alive: its session stands, and its last keepalive is %s old. Stop its daemon first (`systemctl stop pvcnoded` there), or fence it",
		c.Now.Sub(c.view.Keepalive.SeenAt).Round(100*time.Millisecond)), true
}

// fenced: a fence of it that is not over, or an order to make one.
func (c orderCase) fenced() (Decision, bool) {
	n, f := c.order.Node, c.view.Fence
	switch {
	case c.view.Order.Present:
		return c.orNo(cluster.RefuseUnderWay, "an order about its fence stands (`pvc fence list`)"), true
	case f.Present && f.Err != nil:
		return c.no(cluster.RefuseUnreadable, "its fence record cannot be read (%v), so that nobody knows whether an order to its power is out; `pvc explain %s` says what to do", f.Err, n), true
	case !f.Present || f.Value.ID == "":
		return Decision{}, false
	case f.Value.Stage == cluster.FenceManual && c.ofThisStart():
		return c.no(cluster.RefuseUnderWay, "its fence waits for an operator's word; see that it has no power and `pvc fence confirm %s --reason WHY`", n), true
	case !f.Value.Ended():
		return c.no(cluster.RefuseUnderWay, "its fence by %s is in stage %s; wait for its end (`pvc fence list`)", f.Value.By, f.Value.Stage), true
	}
	return Decision{}, false
}

func (c orderCase) ofThisStart() bool {
	return c.view.Fence.Value.Incarnation == c.view.Record.Value.Incarnation
}

// comesLive names a workload whose live move to the node is not over: what has arrived
// there and was not taken over outlives its daemon and its guard (I4).
func (c orderCase) comesLive() string {
	for name, v := range c.Snapshot.Workloads {
		if next := v.Value.Next; v.Present && next != nil && next.Live != "" && slices.Contains(next.Chain, c.order.Node) {
			return name
		}
	}
	return ""
}

// unproven: it was not stopped, and nothing proves it dead (I4).
func (c orderCase) unproven() (Decision, bool) {
	n, f := c.order.Node, c.view.Fence.Value
	proven := f.Stage == cluster.FenceDone && f.Proof != "" && c.ofThisStart()
	silent := c.Now.Sub(c.view.Keepalive.SeenAt)
	switch {
	case proven:
		return Decision{}, false
	case c.comesLive() != "":
		return c.no(cluster.RefuseHoldsSomething, "workload %q was on its way to it, and may have arrived unseen by its guard. Start its daemon, and it is stopped there; or see that the node has no power and `pvc fence confirm %s --reason WHY`", c.comesLive(), n), true
	case c.view.Daemon.Value == cluster.DaemonStop:
		return Decision{}, false
	case !c.registered():
		// It has never said who it is, or that cannot be read: nobody judges it, so
		// that long silence has to do.
		if c.view.Keepalive.Present && silent < Patience {
			return c.orNo(cluster.RefuseNotSuspectEnough, "it has no registration that can be read, and its last keepalive was seen to change %s ago; it is removed after %s of silence", silent.Round(time.Second), Patience), true
		}
		return Decision{}, false
	case c.Blind != "":
		return c.orNo(cluster.RefuseObserverBlind, "the primary cannot judge it: %s", c.Blind), true
	case c.See(n) != cluster.LiveDead:
		return c.no(cluster.RefuseNotSuspectEnough, "it was not stopped in order, and is %s: its last keepalive is %s old. Stop its daemon, or wait until it is found dead", c.See(n), silent.Round(100*time.Millisecond)), true
	case c.Fences:
		return c.no(cluster.RefuseNotSuspectEnough, "it was not stopped in order, and nothing proves it dead. Fence it (`pvc fence now %s`), or see that it has no power and `pvc fence confirm %s --reason WHY`", n, n), true
	}
	return Decision{}, false
}
