package api

import (
	"fmt"
	"strings"

	"pvc.internal/cluster"
)

// damage is a record that is there and cannot be read.
type damage struct {
	id   string
	what string // the record, in words, with its place in the tree
	err  error
	now  string // what is true while it is so
	cure string
}

func (d damage) String() string {
	return fmt.Sprintf("%s cannot be read (%v): %s. %s", d.what, d.err, d.now, d.cure)
}

// told is all of them in one text; empty where there is none.
func told(list []damage) string {
	texts := make([]string, len(list))
	for i, d := range list {
		texts[i] = d.String()
	}
	return strings.Join(texts, " ")
}

// unread keeps those that have an error.
func unread(list []damage) []damage {
	kept := []damage{}
	for _, d := range list {
		if d.err != nil {
			kept = append(kept, d)
		}
	}
	return kept
}

// damaged are the cluster's own records that cannot be read.
func (st state) damaged() []damage {
	s := st.snap
	return unread([]damage{
		{"LEASE", "the lease (/agent/lease/primary)", s.Lease.Err,
			"its holder goes on and nobody else takes the role",
			"The holder writes it anew at its next renewal; without a holder it is made anew after about a minute. Never edit it by hand."},
		{"WISH", "the wish for a primary (/config/primary_node)", s.PrimaryNode.Err,
			"it counts as no wish and the role stays where it is",
			"`pvc node primary NODE` writes it anew."},
		{"TRANSITION", "the record of the hand-over (/agent/transition)", s.Transition.Err,
			"whether a hand-over runs, and how the last one ended, cannot be told; who holds the role is told by the lease alone and is not in doubt",
			"The next hand-over writes it anew: `pvc node primary NODE --wait` makes one; `pvc history` tells of the earlier ones."},
		{"MAINTENANCE", "the maintenance switch (/config/maintenance)", s.Maintenance.Err,
			"it counts as on, so that nobody takes the role or fences of their own accord",
			"Set it with `pvc cluster maintenance on` or `pvc cluster maintenance off`."},
		{"MAINTENANCE_RECORD", "the record of who set maintenance (/agent/maintenance)", s.MaintenanceRecord.Err,
			"the switch itself counts as it stands, but who set it and when it shall end are not known, so that it does not end by itself",
			"Set maintenance again: `pvc cluster maintenance on` or `off`."},
		{"FAILOVER", "the failover settings (/agent/failover)", s.Failover.Err,
			"nobody is fenced, since what they forbid is not known",
			"Write them anew: `pvc settings autofailover --enabled=true`; what else they held begins at its defaults."},
	})
}

// damagedOf are the node's records that cannot be read.
func (st state) damagedOf(n cluster.NodeView) []damage {
	dir := "/nodes/" + string(n.Name)
	anew := func(when string) string {
		if n.Alive.Present {
			return fmt.Sprintf("pvcnoded on %s writes it anew %s; if it does not, look at its log there, then restart it.", n.Name, when)
		}
		return fmt.Sprintf("pvcnoded on %s would write it anew, but it has no live session: start it there.", n.Name)
	}
	const soon = "within a few seconds"
	return unread([]damage{
		{"MODE", "its mode (" + dir + ")", n.Mode.Err, "it does not count as a coordinator, so that it cannot be made primary", anew(soon)},
		{"KEEPALIVE", "its keepalive (" + dir + "/keepalive)", n.Keepalive.Err,
			"its silence is counted from when the record last changed, and the damage was such a change", anew("with each keepalive")},
		{"DAEMON", "its daemon state (" + dir + "/daemonstate)", n.Daemon.Err, "it does not count as running, so that it cannot be made primary", anew(soon)},
		{"ROUTER", "its coordinator state (" + dir + "/routerstate)", n.Router.Err, "who is primary is told by the lease alone and is not in doubt", anew(soon)},
		{"DOMAIN", "its domain state (" + dir + "/domainstate)", n.Domain.Err, "whether it is ready for workloads is not known; the primary role does not depend on it", anew(soon)},
		{"RECORD", "its registration (/agent/nodes/" + string(n.Name) + ")", n.Record.Err, "nobody judges it, so that it would not be fenced if it were lost", anew(soon)},
		{"ALIVE", "its sign of life (/agent/alive/" + string(n.Name) + ")", n.Alive.Err, "its session lives, but of which start is not known; it cannot be made primary", anew(soon)},
		{"FENCE", "its fence record (/agent/fences/" + string(n.Name) + ")", n.Fence.Err, "no fence of it is carried on, and nothing of it starts elsewhere",
			"Is an older daemon running beside newer ones? Upgrade all. If it has no power and stays so, delete the record; a new fence then begins by itself."},
		{"FENCE_ORDER", "the operator's order about its fence (/agent/fence-orders/" + string(n.Name) + ")", n.Order.Err, "nobody carries it out",
			fmt.Sprintf("Order again with `pvc fence now`, `confirm` or `test` %s, which writes it anew.", n.Name)},
	})
}

// tellDamage names each of the records, what is true now and the cure.
func (x *explainer) tellDamage(list []damage) {
	for _, d := range list {
		x.saw("%s cannot be read: %v", d.what, d.err)
		x.missing("%s can be read again. %s", d.what, d.cure)
	}
}

// maintained reports whether maintenance is on for those who act: a switch
// that cannot be read counts as on.
func (st state) maintained() bool {
	m := st.snap.Maintenance
	return m.Value || m.Present && m.Err != nil
}
