package api

import (
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// standing is the very order, if it stands already.
func (st state) standing(o cluster.MemberOrder) *cluster.MemberOrder {
	p := st.snap.MemberOrder
	if !p.Present || p.Err != nil || p.Value.Action != o.Action || p.Value.Node != o.Node {
		return nil
	}
	stands := p.Value
	return &stands
}

// decideMember says what becomes of an order about the node as it is seen, or
// why nothing is ordered. What is not checked here, or changes meanwhile, is
// checked by the primary in the write that is the effect.
func (st state) decideMember(o cluster.MemberOrder) (decision, *failure) {
	if p := st.snap.MemberOrder; p.Present && p.Err == nil && p.Value.ID != o.ID {
		v := p.Value
		what := fmt.Sprintf("The order to %s node %q, by %s since %s,", v.Action, v.Node, v.By, time.UnixMilli(v.UnixMS).Format(faultTime))
		if v.Action == o.Action && v.Node == o.Node && v.Mode == o.Mode && (v.Host == o.Host || o.Action == cluster.MemberRemove) {
			return already("%s stands already and has not been carried out yet.", what)
		}
		return no("%s has not been carried out yet, and the members change one at a time; nothing was ordered. Wait for it (`pvc node list`), or take it back with `pvc node %s %s --cancel`.", what, v.Action, v.Node)
	}
	decide := st.decideAdd
	if o.Action == cluster.MemberRemove {
		decide = st.decideRemove
	}
	d, fail := decide(o)
	if fail == nil && !d.already && st.holder() == "" {
		return no("Only the primary changes who belongs to the cluster, and nobody holds the role now; nothing was ordered. `pvc explain primary` says why; ask again once there is one.")
	}
	return d, fail
}

func (st state) decideAdd(o cluster.MemberOrder) (decision, *failure) {
	n, known := st.snap.Nodes[o.Node]
	members, set := st.snap.Members.Value, st.snap.Quorum.Value
	_, out := members.Out(o.Node, o.Host)
	mode := o.Mode
	if mode == "" && known {
		mode = n.Mode.Value
	}
	switch {
	case o.Host != "" && !out && n.Record.Value.ID != o.Host:
		return no("No host with the id %q was removed by the name %q; nothing was ordered. `pvc node list` shows those that were.", o.Host, o.Node)
	case out && mode == cluster.Hypervisor:
		return decision{text: fmt.Sprintf("Ordered: the name %q is free again%s Then start pvcnoded there.", o.Node, st.whoStaysOut(o))}, nil
	case out:
		return decision{text: fmt.Sprintf("Ordered: the name %q is free again%s Start pvcnoded there within five minutes (its certificate: `pvc pki issue`): once it runs as a coordinator it counts.", o.Node, st.whoStaysOut(o))}, nil
	case !known && len(members.Of(o.Node)) == 0:
		return no("No node named %q is registered; nothing was ordered. A new node is installed and started first (settings, `pvc pki issue` for its certificate), and then added. Nodes: %s.", o.Node, joinNodes(st.names()))
	case o.Mode == cluster.Coordinator && known && n.Mode.Value == cluster.Hypervisor:
		return no("Node %q runs as a hypervisor; nothing was ordered. Set node.mode to coordinator there, restart its daemon, and add it again.", o.Node)
	case mode == cluster.Hypervisor && !set.Has(o.Node):
		return already("Node %q belongs to the cluster and counts for no majority; nothing has to be ordered.", o.Node)
	case mode == cluster.Hypervisor && len(set.Nodes) == 1:
		return no("Node %q is the last coordinator that counts for majorities, and a quorum set is never empty; nothing was ordered. Add another coordinator first.", o.Node)
	case mode == cluster.Hypervisor:
		return decision{text: fmt.Sprintf("Ordered: node %q counts for majorities no more; it stays a node. This needs majorities of node leases of the quorum set with it and without it.", o.Node)}, nil
	case set.Has(o.Node) && set.IDs[o.Node] == n.Record.Value.ID:
		return already("Node %q belongs to the cluster and counts for majorities already.", o.Node)
	}
	return decision{text: fmt.Sprintf("Ordered: coordinator %q counts for majorities once majorities of node leases are held of the quorum set without it and with it.", o.Node)}, nil
}

// whoStaysOut says which removed hosts an addition of the name leaves out.
func (st state) whoStaysOut(o cluster.MemberOrder) string {
	var hosts []string
	for _, r := range st.snap.Members.Value.Of(o.Node) {
		if r.Host != "" && r.Host != o.Host {
			hosts = append(hosts, r.Host)
		}
	}
	if len(hosts) == 0 {
		return "."
	}
	return fmt.Sprintf(" for another host; what was removed by it (%s) stays out, unless it is named with `--host`.", strings.Join(hosts, ", "))
}

func (st state) decideRemove(o cluster.MemberOrder) (decision, *failure) {
	n, known := st.snap.Nodes[o.Node]
	set := st.snap.Quorum.Value
	f, is := presentFence(n)
	switch {
	case !known && !set.Has(o.Node):
		if r, out := st.snap.Members.Value.Out(o.Node, ""); out {
			return already("%s already; nothing has to be ordered.", r)
		}
		return no("No node named %q is present in the cluster; nothing was ordered. Nodes: %s.", o.Node, joinNodes(st.names()))
	case st.holder() == o.Node:
		return no("Node %q holds the primary role and is not removed; nothing was ordered. Move the role (`pvc node secondary %s --wait`), stop its daemon, and remove it then.", o.Node, o.Node)
	case n.Alive.Present:
		return no("Node %q is alive: its session stands, and its last keepalive is %s old; nothing was ordered. Stop its daemon first (`systemctl stop pvcnoded` there).", o.Node, st.silence(n).Round(100*time.Millisecond))
	case set.Has(o.Node) && len(set.Nodes) == 1:
		return no("Node %q is the last coordinator that counts for majorities, and a quorum set is never empty; nothing was ordered. Add another coordinator first.", o.Node)
	case n.Order.Present:
		return no("An order about the fence of node %q stands; nothing was ordered. Wait for it (`pvc fence list`).", o.Node)
	case is && !f.Ended():
		return no("Node %q is being fenced by %s (stage %s); nothing was ordered. Wait for its end: `pvc fence list`.", o.Node, f.By, f.Stage)
	}
	text := fmt.Sprintf("Ordered: node %q is removed with its records; when it comes back it stays out.", o.Node)
	if set.Has(o.Node) {
		text += " This needs majorities of node leases of the quorum set with it and without it."
	}
	return decision{text: text}, nil
}
