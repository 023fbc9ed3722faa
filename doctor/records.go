package doctor

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Records are the cluster's records as one reading has found them.
type Records struct {
	Snapshot *cluster.Snapshot
	Views    map[cluster.NodeID]cluster.View       // as published; missing: none that can be read
	Tests    map[cluster.NodeID]cluster.FenceTests // the newest of each node's devices
	Doubts   []string                              // what of views and tests could not be read
	// Half says that the tree is a half restored one; empty: it is not.
	Half string
	// Remembers is the cluster that the node which looks belongs to, by its own
	// state folder; empty: none, or nobody's folder was looked at.
	Remembers string
}

// names are the nodes in order.
func (r Records) names() []cluster.NodeID {
	names := make([]cluster.NodeID, 0, len(r.Snapshot.Nodes))
	for n := range r.Snapshot.Nodes {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// lives reports whether the node runs and has a session.
func (r Records) lives(n cluster.NodeID) bool {
	v := r.Snapshot.Nodes[n]
	return v.Daemon.Value == cluster.DaemonRun && v.Alive.Present
}

// holder is who holds the role by the record; it says nothing of its age.
func (r Records) holder() cluster.NodeID {
	if l := r.Snapshot.Lease; l.Present && l.Err == nil {
		return l.Value.Holder
	}
	return ""
}

// Cluster judges the cluster as its records show it.
func Cluster(r Records) []Finding {
	l := &list{check: CheckCluster}
	switch there := r.Snapshot.ClusterName.Present; {
	case r.Half != "":
		l.problem("tree", "wait for the restore's end, or run `pvc cluster restore FILE` again if nobody is at it; daemons wait until then", "%s", r.Half)
		return l.findings
	case !there && r.Remembers != "":
		l.problem("tree", "is zookeeper.servers, or zookeeper.root, another one's? Else `pvc cluster restore FILE` from the newest backup, on one node; the daemons go on by themselves then. Not `pvc cluster init`: it forgets everything",
			"ZooKeeper's data is gone: there is no cluster at zookeeper.root, and this node remembers cluster %q", r.Remembers)
		return l.findings
	case !there:
		l.problem("tree", "`pvc cluster init --name NAME`, once, on one node; zookeeper.root if the cluster lives elsewhere", "there is no cluster in ZooKeeper at zookeeper.root")
		return l.findings
	}
	l.role(r)
	l.switches(r.Snapshot)
	l.unreadable(r)
	for _, n := range r.names() {
		l.node(r, n)
	}
	for _, d := range r.Doubts {
		l.unchecked("", "", "%s", d)
	}
	return l.findings
}

func (l *list) role(r Records) {
	switch h := r.holder(); {
	case h == "":
		l.problem("primary", "`pvc explain primary` says why nobody takes the role", "nobody holds the primary role")
	case !r.lives(h):
		l.problem("primary", "`pvc explain primary`; if it stays, `pvc explain "+string(h)+"`", "node %s holds the role by the lease and does not live", h)
	default:
		l.ok("primary", "node %s holds the role", h)
	}
}

// switches are what an operator has turned, and may have forgotten.
func (l *list) switches(s *cluster.Snapshot) {
	if s.Maintenance.Value {
		m := s.MaintenanceRecord.Value
		l.warn("maintenance", "`pvc cluster maintenance off --wait` once the work is done", "the cluster is in maintenance%s%s: nobody is fenced and nobody takes over by itself", words(" by ", m.Owner), words(", for ", m.Reason))
	}
	f := cluster.DefaultFailoverSettings()
	if s.Failover.Present && s.Failover.Err == nil {
		f = s.Failover.Value
	}
	switch {
	case !f.Enabled:
		l.warn("autofailover", "`pvc settings autofailover --enabled=true` if that is not meant", "automatic failover is turned off: nobody is fenced by itself")
	case f.Count >= f.MaxCount:
		l.problem("autofailover", "find out why with `pvc history`, then `pvc settings autofailover reset`", "its budget is spent (%d of %d): nobody more is fenced by itself", f.Count, f.MaxCount)
	}
}

// unreadable names the records that are there and cannot be read: what they
// say is not known, so that nothing that rests on them has passed.
func (l *list) unreadable(r Records) {
	s := r.Snapshot
	tell := func(subject, record string, err error) {
		if err != nil {
			l.problem(subject, "`pvc cluster status` says what counts meanwhile, and what writes it anew; never edit it by hand", "%s cannot be read: %v", record, err)
		}
	}
	tell("records", "the cluster's name", s.ClusterName.Err)
	tell("records", "the lease", s.Lease.Err)
	tell("records", "the wish for a primary", s.PrimaryNode.Err)
	tell("records", "the record of the hand-over", s.Transition.Err)
	tell("records", "the maintenance switch", s.Maintenance.Err)
	tell("records", "the record of who set maintenance", s.MaintenanceRecord.Err)
	tell("records", "the failover settings", s.Failover.Err)
	for _, n := range r.names() {
		v := s.Nodes[n]
		for _, r := range []struct {
			record string
			err    error
		}{{"mode", v.Mode.Err}, {"keepalive", v.Keepalive.Err}, {"daemon state", v.Daemon.Err}, {"router state", v.Router.Err}, {"domain state", v.Domain.Err},
			{"registration", v.Record.Err}, {"sign of life", v.Alive.Err}, {"fence record", v.Fence.Err}, {"fence order", v.Order.Err}} {
			tell(string(n), "its "+r.record, r.err)
		}
	}
}

func words(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}

func (l *list) node(r Records, n cluster.NodeID) {
	before := len(l.findings)
	v := r.Snapshot.Nodes[n]
	explain := fmt.Sprintf("`pvc explain %s`", n)
	switch state := v.Daemon.Value; {
	case state == cluster.DaemonRun && !v.Alive.Present:
		l.problem(string(n), explain, "says %q and has no live session", state)
	case state == cluster.DaemonRun:
	case state == cluster.DaemonDead, state == cluster.DaemonFenced:
		l.problem(string(n), explain+"; then repair it and start it", "is %s", state)
	default:
		l.warn(string(n), "`systemctl status pvcnoded` there", "is in state %q", state)
	}
	l.fence(v)
	if view, told := r.Views[n]; told && r.lives(n) {
		l.view(r, n, view)
	}
	if len(l.findings) == before {
		l.ok(string(n), "runs, as %s", v.Router.Value)
	}
}

// fence judges a node's fence record.
func (l *list) fence(v cluster.NodeView) {
	f := v.Fence.Value
	if !v.Fence.Present || v.Fence.Err != nil || f.ID == "" {
		return
	}
	explain := fmt.Sprintf("`pvc explain %s` says which proof is missing", v.Name)
	switch f.Stage {
	case cluster.FenceDone, cluster.FenceCanceled:
	case cluster.FenceFailed:
		l.problem(string(v.Name), explain, "its fence has failed %d times and is tried again", f.Tries)
	case cluster.FenceManual:
		l.problem(string(v.Name), explain, "its fence waits for an operator: no device is configured")
	default:
		l.warn(string(v.Name), "wait; `pvc fence list` shows how it goes on", "its fence is under way, stage %s", f.Stage)
	}
}

// view tells what a live node says against itself.
func (l *list) view(r Records, n cluster.NodeID, v cluster.View) {
	if v.ServiceFault != "" {
		l.problem(string(n), "`journalctl -u pvc-guard -u pvcnoded` there says what the service printed", "a primary-only service fails: %s", v.ServiceFault)
	}
	for _, g := range v.GuardFaults {
		l.problem(string(n), "`journalctl -u pvc-guard` there", "its guard complains: %s", g)
	}
	for _, p := range v.Problems {
		l.problem(string(n), "repair it; the node looks again each second", "could not take the role: %s", p)
	}
	for _, f := range v.Faults {
		if !r.tested(f) {
			l.warn(string(n), "", "%s", f)
		}
	}
}

// tested reports whether a node's fault is a device's, which is told by its
// test: the primary publishes what it has found itself as a fault of its own.
func (r Records) tested(fault string) bool {
	for _, t := range r.Tests {
		for _, d := range t.Devices {
			if d.Fault != "" && d.Detail != "" && strings.Contains(fault, strings.TrimSpace(d.Detail)) {
				return true
			}
		}
	}
	return false
}

// The bounds for clocks that differ. A keepalive carries whole seconds.
const (
	clockRound = time.Second
	clocksFar  = 2 * time.Second
	clocksWild = time.Minute
)

// Clocks compares the live nodes' wall clocks with each other: each keepalive
// carries its node's, and ZooKeeper stamps every write with its leader's.
func Clocks(r Records) []Finding {
	l := &list{check: CheckClocks}
	type clock struct {
		node   cluster.NodeID
		offset time.Duration // beyond the leader's clock
	}
	var clocks []clock
	for _, n := range r.names() {
		k := r.Snapshot.Nodes[n].Keepalive
		if !r.lives(n) || !k.Present || k.Err != nil || k.WrittenMS == 0 {
			continue
		}
		clocks = append(clocks, clock{n, time.Duration(k.Value*1000-k.WrittenMS)*time.Millisecond + clockRound/2})
	}
	if len(clocks) < 2 {
		l.unchecked("", "", "%d node lives: there is nothing to compare its clock with", len(clocks))
		return l.findings
	}
	slices.SortFunc(clocks, func(a, b clock) int { return int(a.offset - b.offset) })
	middle := clocks[len(clocks)/2].offset
	for _, c := range clocks {
		off := c.offset - middle
		cure := fmt.Sprintf("`timedatectl; chronyc tracking` on node %s, and set its clock. Nothing of ours needs a restart", c.node)
		text := "its clock is %s: certificates, the end of a maintenance and printed times go by it"
		switch {
		case off.Abs() >= clocksWild:
			l.problem(string(c.node), cure, text, ahead(off))
		case off.Abs() > clocksFar:
			l.warn(string(c.node), cure, text, ahead(off))
		}
	}
	if !l.bad() {
		l.ok("", "the clocks of %d nodes are within %v of each other", len(clocks), clocksFar)
	}
	return l.findings
}

func ahead(off time.Duration) string {
	if off < 0 {
		return off.Abs().Round(time.Second).String() + " behind the others'"
	}
	return off.Round(time.Second).String() + " ahead of the others'"
}

// Locks are what stands in the role lock's queue and should not.
func Locks(r Records) []Finding {
	l := &list{check: CheckLeftovers}
	for _, c := range r.Snapshot.RoleLock {
		switch owner := r.Snapshot.Nodes[c.Owner.Node]; {
		case c.Foreign:
			l.warn("role lock", "find the program that holds it: a client of PVC's own, or a session left open by hand", "%s stands in the queue and is not of this program: whoever wants the role may have to wait for it", c.Name)
		case !owner.Alive.Present || owner.Alive.Value.Incarnation != c.Owner.Incarnation:
			l.warn("role lock", "wait: it ends with its session; whoever takes the role breaks it by itself", "an entry of an earlier start of node %s stands in the queue", c.Owner.Node)
		}
	}
	if !l.bad() {
		l.ok("role lock", "nothing foreign and nothing old stands in its queue")
	}
	return l.findings
}

// OtherNodes says what a look at one node leaves out; self is empty where none
// was looked at.
func OtherNodes(self cluster.NodeID, r Records) []Finding {
	l := &list{check: CheckSettings}
	others := slices.DeleteFunc(r.names(), func(n cluster.NodeID) bool { return n == self })
	if len(others) > 0 {
		l.unchecked(tellable(others), "run `pvc doctor` there as well", "their own settings, keys, certificates, units and addresses can be looked at only there")
	}
	if self != "" && len(others) == len(r.Snapshot.Nodes) {
		l.problem(string(self), "`systemctl status pvcnoded` here; zookeeper.root and node.name if it runs", "no node of this name is registered in the cluster")
	}
	return l.findings
}

// tellable is a list of nodes for people.
func tellable(names []cluster.NodeID) string {
	texts := make([]string, len(names))
	for i, n := range names {
		texts[i] = string(n)
	}
	return strings.Join(texts, ", ")
}
