package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Device is one fence device of this node's settings.
type Device struct {
	Node cluster.NodeID // whose power it switches
	Name string
	Type string
	// Agent is the program of type agent, and Leak how it gives the password
	// away to others on the machine that runs it; empty: no way is known.
	Agent, Leak string
	Trouble     string   // why its password cannot be had here; empty: it can, or none is needed
	Hidden      string   // why that could not be found out; empty: it was
	Exposed     []string // password files that others on this machine can read
}

func (d Device) subject() string { return string(d.Node) + "/" + d.Name }

// told reports whether a test's note has been told from the settings already.
func (d Device) told(note string) bool {
	return d.Leak != "" && strings.Contains(note, d.Leak) || slices.Contains(d.Exposed, note)
}

// Fences are the facts about fencing from one node's settings.
type Fences struct {
	Devices   []Device
	Self      cluster.NodeID
	DeadProof bool // role.require_dead_proof
	// TestEvery is how old the newest test of a device may be; 0: not known.
	TestEvery time.Duration
	NowMS     int64 // this host's wall clock
}

func (f Fences) has(n cluster.NodeID) bool {
	return slices.ContainsFunc(f.Devices, func(d Device) bool { return strings.EqualFold(string(d.Node), string(n)) })
}

// Fencing judges the devices of the settings. records is nil where they could
// not be read: then which nodes there are and how tests went is not known.
func Fencing(f Fences, records *Records) []Finding {
	l := &list{check: CheckFencing}
	for _, d := range f.Devices {
		l.device(d)
	}
	if records == nil {
		l.unchecked("", "", "the cluster's records could not be read: whether every node has a device, and how the devices' tests went, is not known")
		return l.findings
	}
	names := records.names()
	l.coverage(f, names)
	for _, n := range names {
		l.tests(f, n, records.Tests[n])
	}
	return l.findings
}

// device judges a device by the settings alone.
func (l *list) device(d Device) {
	if d.Leak != "" {
		cure := "use a device that keeps it, and give the leaking one an account that may do nothing else"
		if strings.Contains(d.Leak, "ipmi") {
			cure = "write `type: ipmi` with address, user and password_file in its place, on every coordinator; then change the password"
		}
		l.problem(d.subject(), cure, "%s %s", d.Agent, d.Leak)
	}
	if d.Trouble != "" {
		l.problem(d.subject(), "", "its password cannot be had here: %s", d.Trouble)
	}
	if d.Hidden != "" {
		l.unchecked(d.subject(), "look at ZooKeeper first where it keeps the password; else run this as root", "whether its password can be had here is not known: %s", d.Hidden)
	}
	for _, e := range d.Exposed {
		l.problem(d.subject(), "", "%s", e)
	}
}

// coverage says who has no device, and who has one and is not there.
func (l *list) coverage(f Fences, names []cluster.NodeID) {
	var bare []cluster.NodeID
	for _, n := range names {
		if !f.has(n) {
			bare = append(bare, n)
		}
	}
	cure := "configure one under fencing.nodes on every coordinator and restart their daemons"
	switch {
	case len(names) < 2:
		l.ok("", "a cluster of one node fences nobody")
	case len(f.Devices) == 0 && f.DeadProof:
		l.problem("", cure, "role.require_dead_proof is on and there is no fence device: after the loss of the primary nobody takes over without `pvc fence confirm`")
	case len(f.Devices) == 0:
		l.warn("", cure, "there is no fence device: a lost primary is replaced, but work that must not run twice is not started elsewhere")
	case len(bare) > 0:
		l.problem(tellable(bare), cure, "no fence device under fencing.nodes here: nothing can prove %s dead", tellable(bare))
	}
	told := map[cluster.NodeID]bool{}
	for _, d := range f.Devices {
		known := slices.ContainsFunc(names, func(n cluster.NodeID) bool { return strings.EqualFold(string(n), string(d.Node)) })
		if !known && !told[d.Node] {
			told[d.Node] = true
			l.warn(string(d.Node), "correct the name under fencing.nodes; `pvc node list` has those that are registered", "stands under fencing.nodes, and no node of this name is registered")
		}
	}
}

// tests judges the newest published test of each of the node's devices.
func (l *list) tests(f Fences, n cluster.NodeID, t cluster.FenceTests) {
	again := fmt.Sprintf("`pvc fence test %s --wait`", n)
	for _, d := range f.Devices {
		if !strings.EqualFold(string(d.Node), string(n)) {
			continue
		}
		i := slices.IndexFunc(t.Devices, func(r cluster.DeviceReport) bool { return r.Device == d.Name })
		if i < 0 {
			l.unchecked(d.subject(), again, "no test of it has been published yet")
			continue
		}
		report := t.Devices[i]
		report.Notes = slices.DeleteFunc(slices.Clone(report.Notes), d.told)
		l.report(f, d.subject(), t.By, report, again)
	}
}

func (l *list) report(f Fences, subject string, by cluster.NodeID, r cluster.DeviceReport, again string) {
	age := max(0, time.Duration(f.NowMS-r.UnixMS)*time.Millisecond).Round(time.Second)
	switch {
	case r.Fault != "":
		l.problem(subject, again+" once it is repaired", "its last test, by node %s %v ago: %s: %s", by, age, r.Fault, strings.Join(strings.Fields(r.Detail), " "))
	case f.TestEvery > 0 && age > f.TestEvery:
		l.warn(subject, again, "its last test, by node %s, is %v old: fencing.test_schedule should have made a newer one", by, age)
	default:
		l.ok(subject, "ready; power %s, tested by node %s %v ago", r.Power, by, age)
	}
	for _, note := range r.Notes {
		l.warn(subject, "", "its last test notes: %s", note)
	}
}

// Tests judges the published tests alone, where the settings are not at hand.
func Tests(r Records, nowMS int64) []Finding {
	l := &list{check: CheckFencing}
	for _, n := range r.names() {
		t := r.Tests[n]
		if len(t.Devices) == 0 && len(r.Snapshot.Nodes) > 1 {
			l.unchecked(string(n), fmt.Sprintf("`pvc fence test %s --wait`; run `pvc doctor` on a coordinator to compare with the settings", n), "no test of a fence device is published: it has none, or none has been tested yet")
		}
		for _, d := range t.Devices {
			l.report(Fences{NowMS: nowMS}, string(n)+"/"+d.Device, t.By, d, fmt.Sprintf("`pvc fence test %s --wait`", n))
		}
	}
	return l.findings
}

// Key is the file that opens sealed passwords.
type Key struct {
	File    string // empty: fencing.secrets.key_file is not set
	Needed  bool   // a password is sealed
	Trouble string // why it cannot be used; empty: it can
	Hidden  string // why that could not be found out; empty: it was
}

// Secrets judges the key file of this node.
func Secrets(k Key) []Finding {
	l := &list{check: CheckSecrets}
	switch {
	case k.File == "" && !k.Needed:
		l.ok("", "no password is sealed, and no key is needed")
	case k.Hidden != "":
		l.unchecked(k.File, "run this as root", "%s", k.Hidden)
	case k.Trouble != "":
		l.problem(k.File, "`install -m 600 -o root` it from another coordinator; a sealed password is opened at each fence", "%s", k.Trouble)
	default:
		l.ok(k.File, "holds a key that only its owner can read")
	}
	return l.findings
}

// Watchdog are the facts about this machine's watchdog.
type Watchdog struct {
	Path    string // of the settings; empty: none
	Trouble string // why it cannot be looked at; empty: it is there
	Info    cluster.WatchdogInfo
	// SelfFence and FailedFence are the settings that rest on it: self_fence:
	// watchdog and fencing.failed_fence: migrate.
	SelfFence, FailedFence bool
	TrustSoft              bool // trust_softdog
	Self                   cluster.NodeID
}

func (w Watchdog) why() string {
	switch {
	case w.SelfFence && w.FailedFence:
		return "self_fence: watchdog and failed_fence: migrate rest on it"
	case w.SelfFence:
		return "self_fence: watchdog rests on it"
	case w.FailedFence:
		return "failed_fence: migrate rests on it"
	}
	return "watchdog.device names it"
}

// Watchdogs judges this machine's device, and what the live nodes have
// published of theirs; records is nil where they could not be read.
func Watchdogs(w Watchdog, records *Records) []Finding {
	l := &list{check: CheckWatchdog}
	switch {
	case w.Path == "" && !w.SelfFence && !w.FailedFence:
		l.ok("", "none is configured, and nothing rests on one")
		return l.findings
	case w.Path == "":
		l.problem("", "set watchdog.device on every node", "none is configured, and %s", w.why())
		return l.findings
	case w.Trouble != "":
		l.problem(w.Path, "load the machine's driver (`wdctl`, `dmesg | grep -i watchdog`), and see that nothing else has it open", "%s; %s", w.Trouble, w.why())
	case w.FailedFence && w.Info.Identity != "" && !w.Info.Hardware && !w.TrustSoft:
		l.problem(w.Path, "load the hardware's driver in place of softdog", "is %q, a timer of the kernel that may be what hangs: its bound proves nothing, and failed_fence: migrate rests on it", w.Info.Identity)
	default:
		l.ok(w.Path, "is there: %s", orUnknown(w.Info.Identity))
	}
	if records == nil {
		l.unchecked("", "", "the cluster's records could not be read: whether the nodes have armed theirs is not known")
		return l.findings
	}
	for _, n := range records.names() {
		if records.lives(n) && (w.FailedFence || n == w.Self) {
			l.armed(w, n, records.Snapshot.Nodes[n].Record.Value.Watchdog)
		}
	}
	return l.findings
}

// armed judges what a live node has published of its watchdog.
func (l *list) armed(w Watchdog, n cluster.NodeID, word *cluster.WatchdogWord) {
	cure := "`journalctl -u pvc-guard` there says why; set watchdog.device there and restart its guard and daemon"
	switch {
	case word == nil || !word.Armed:
		l.problem(string(n), cure, "this start has published no armed watchdog; %s", w.why())
	case w.FailedFence && !word.Hardware && !w.TrustSoft:
		l.problem(string(n), "load the hardware's driver there in place of softdog", "its watchdog is a timer of its own kernel, which proves nothing; failed_fence: migrate rests on it")
	default:
		l.ok(string(n), "its watchdog is armed, time-out %v", time.Duration(word.TimeoutMS)*time.Millisecond)
	}
}
