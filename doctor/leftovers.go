package doctor

import (
	"strconv"

	"pvc.internal/cluster"
)

// Running is something of a primary-only service that runs on this host.
type Running struct {
	Service string
	Unit    string // the unit that is active; empty: a program
	PID     int    // of the program
	Program string
}

// LeftRunning judges what of the role's services runs on this host. records is
// nil where they could not be read: then who may run them is not known.
func LeftRunning(self cluster.NodeID, here []Running, records *Records) []Finding {
	l := &list{check: CheckLeftovers}
	switch {
	case len(here) == 0:
		return nil
	case records == nil:
		l.unchecked("services", "", "the cluster's records could not be read: whether this node may run the role's services is not known")
		return l.findings
	case records.holder() == self:
		l.ok("services", "%d of the role's services run here, where the role is", len(here))
		return l.findings
	case records.Snapshot.Transition.Present && records.Snapshot.Transition.Value.Running():
		l.unchecked("services", "run this again", "the role is just moving")
		return l.findings
	}
	for _, r := range here {
		if r.Unit != "" {
			l.problem("service "+r.Service, "`systemctl stop "+r.Unit+"` here; if it is enabled, `systemctl disable "+r.Unit+"`, since the role starts it",
				"unit %s is active, and node %q holds the role: it runs twice", r.Unit, string(records.holder()))
			continue
		}
		l.problem("service "+r.Service, "find out who started it (`systemctl status "+strconv.Itoa(r.PID)+"`) and end it there; only the role may run it",
			"process %d runs %s, and node %q holds the role: it runs twice", r.PID, r.Program, string(records.holder()))
	}
	return l.findings
}

// Gate are the facts about the packet gate of this host.
type Gate struct {
	Set     bool   // role.gate is on in the settings
	Guarded bool   // a guard runs here
	Table   string // the name of its nftables tables
	There   bool   // the kernel has them
}

// Gates judges the packet gate: a table that nobody keeps drops what it stands for.
func Gates(g Gate) []Finding {
	l := &list{check: CheckLeftovers}
	cure := "`nft delete table inet " + g.Table + "; nft delete table arp " + g.Table + "`, or start pvc-guard, which keeps it"
	switch {
	case g.There && !g.Set:
		l.problem("gate", cure, "role.gate is off, and the nftables table %s is left: packets for the floating addresses are dropped here", g.Table)
	case g.There && !g.Guarded:
		l.problem("gate", cure, "no guard runs, and the nftables table %s is left: packets for the floating addresses are dropped here", g.Table)
	}
	return l.findings
}
