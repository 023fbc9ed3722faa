package doctor

import (
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Settings are the facts about one settings file.
type Settings struct {
	File     string
	Refusals []string // why it is not taken; empty: it is
	Timing   []string // of the warnings, those about relations between intervals
	Warnings []string // all others
	Words    string   // what it says, in short
}

// File judges a settings file.
func File(s Settings) []Finding {
	l := &list{check: CheckSettings}
	for _, r := range s.Refusals {
		l.problem(s.File, "correct it; `pvcnoded config check -c FILE` reads it again", "%s", strings.TrimPrefix(r, s.File+": "))
	}
	for _, w := range s.Warnings {
		l.warn(s.File, "", "%s", w)
	}
	if !l.bad() {
		l.ok(s.File, "%s", s.Words)
	}
	l.check = CheckTiming
	for _, w := range s.Timing {
		l.warn("", "", "%s", w)
	}
	if len(s.Refusals)+len(s.Timing) == 0 {
		l.ok("", "every relation between the intervals holds")
	}
	return l.findings
}

// Differ are what pvcapid's settings say otherwise than pvcnoded's.
func Differ(file string, differences []string) []Finding {
	l := &list{check: CheckSettings}
	for _, d := range differences {
		l.warn(file, "let both files of a node say the same, and restart the daemon whose file was wrong", "%s", d)
	}
	return l.findings
}

// Certificate are the facts about this node's certificate.
type Certificate struct {
	Set     bool   // peer.tls is configured
	File    string // of the certificate
	Trouble string // why its files are not taken (missing, name, authority); empty: they are
	Hidden  string // why that could not be found out; empty: it was
	Name    string
	Expiry  string // what is to be said of its end, with the cure; empty: nothing yet
	Left    time.Duration
	KeyMode uint32 // permission bits of the key's file
	KeyFile string
}

// Certificates judges the certificate by which the other nodes know this one.
func Certificates(c Certificate) []Finding {
	l := &list{check: CheckCerts}
	switch {
	case !c.Set:
		l.warn("", "`pvc pki init` and `pvc pki issue NODE`, then peer.listen and peer.tls on every node", "nodes do not talk directly (peer): an outage of ZooKeeper ends the role, and a silent node is judged by its session alone")
		return l.findings
	case c.Hidden != "":
		l.unchecked(c.File, "run this as root", "%s", c.Hidden)
		return l.findings
	case c.Trouble != "":
		l.problem(c.File, "", "%s", c.Trouble)
	case c.Expiry != "" && c.Left <= 0:
		l.problem(c.File, "", "%s", c.Expiry)
	case c.Expiry != "":
		l.warn(c.File, "", "%s", c.Expiry)
	}
	if c.KeyMode&0o077 != 0 {
		l.problem(c.KeyFile, "chmod 600 it; if anybody else had access: `pvc pki issue NODE --force`, which makes a new key", "the key's file has mode %04o, so that others on this machine can be this node", c.KeyMode)
	}
	if !l.bad() {
		l.ok(c.File, "%s, %d days left", c.Name, int(c.Left/(24*time.Hour)))
	}
	return l.findings
}

// Unit is one unit of systemd as it is.
type Unit struct {
	Name   string
	Ours   bool   // one of our daemons; else one that the role starts
	Load   string // LoadState
	Active string // ActiveState
	File   string // UnitFileState
	Barred string // what its own user cannot read, and the remedy; "" if nothing
}

// Units judges our daemons' units and those that the role starts.
func Units(units []Unit) []Finding {
	l := &list{check: CheckUnits}
	for _, u := range units {
		switch {
		case u.Load != "loaded" && u.Ours:
			l.unchecked(u.Name, "`make install` and `systemctl daemon-reload`, unless it is run by other means", "systemd has no such unit (%s): whatever runs the daemon here could not be looked at", u.Load)
		case u.Load != "loaded":
			l.problem(u.Name, "install or unmask it", "the role is to start it, and systemd cannot load it (%s)", u.Load)
		case !u.Ours && strings.HasPrefix(u.File, "enabled"):
			l.problem(u.Name, "`systemctl disable "+u.Name+"`: the role starts and stops it", "is enabled, so that it starts at boot on a node that does not hold the role")
		case !u.Ours:
			l.ok(u.Name, "the role starts it; %s now", u.Active)
		case u.Barred != "":
			why, remedy, _ := strings.Cut(u.Barred, ": ")
			l.problem(u.Name, remedy, "%s", why)
		case u.Active != "active":
			l.problem(u.Name, "`systemctl status "+u.Name+"` and `journalctl -u "+u.Name+"`; then `systemctl start "+u.Name+"`", "is %s", u.Active)
		case !strings.HasPrefix(u.File, "enabled"):
			l.problem(u.Name, "`systemctl enable "+u.Name+"`", "runs and is %s: it does not start at the next boot", orUnknown(u.File))
		default:
			l.ok(u.Name, "active and enabled")
		}
	}
	return l.findings
}

// Address is one address of this host.
type Address struct {
	CIDR, Interface string
	Ours            bool // carries the guard's mark
	Floating        bool // stands under addresses in the settings
}

// Addresses judges what is on this host's interfaces. records is nil where they
// could not be read: then who may have the addresses is not known.
func Addresses(self cluster.NodeID, here []Address, records *Records) []Finding {
	l := &list{check: CheckLeftovers}
	switch {
	case records == nil:
		l.unchecked("addresses", "", "the cluster's records could not be read: whether this node may have the floating addresses is not known")
		return l.findings
	case records.Snapshot.Transition.Present && records.Snapshot.Transition.Value.Running():
		l.unchecked("addresses", "run this again", "the role is just moving")
		return l.findings
	}
	holds := records.holder() == self
	for _, a := range here {
		what := a.CIDR + " on " + a.Interface
		switch {
		case a.Floating && !a.Ours:
			l.problem(what, "take it out of the machine's own network settings: only the role may bring it", "a floating address that this program has not put there: it stays when the role ends")
		case a.Ours && !holds:
			l.problem(what, "`systemctl status pvc-guard`; then `pvcnoded guard sweep` while pvcnoded and pvc-guard are stopped here", "left over: it has the guard's mark, and node %q holds the role", string(records.holder()))
		}
	}
	if !l.bad() {
		l.ok("addresses", "no floating address is where it should not be")
	}
	return l.findings
}
