package janitor

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// maxWrite bounds what one transaction carries, in bytes as estimated: the store
// takes 1 MiB. What does not fit follows in the next pass.
const maxWrite = 700 << 10

// Plan decides what a pass does. The actions come in the order write, again,
// apply, fault; a plan that is applied to its own result plans nothing. Nothing
// that it is given is edited; the records in its actions are the caller's.
//
//	first steps    a list and a chain where there is none; a corrupted list stays untouched
//	silent nodes   untouched, with what stands of it
//	fix-up         the chain follows the one copy that is active (chain.go)
//	lost head      the head's node is proven dead: its replicas move up (lost.go)
//	unsafe         the head came back empty: not online, reprovisioned (reprovision.go)
//	apply          what differs from the chain, in stages (apply.go)
func Plan(s State, k Known, snap *cluster.Snapshot, now time.Time) (State, []Action, []cluster.Refusal) {
	if snap == nil || !snap.Complete {
		return s, nil, []cluster.Refusal{{Code: cluster.RefuseStoreNotLive, Detail: "the records are not all known: no workload is planned"}}
	}
	p := &planner{k: k, snap: snap, now: now, members: memberSet(k, snap), settings: settingsOf(snap)}
	for _, name := range slices.Sorted(maps.Keys(snap.Workloads)) {
		p.begin(name, snap.Workloads[name])
	}
	if k.Queried {
		for _, c := range p.chains {
			p.judge(c)
		}
		p.reprovision()
	}
	return p.finish(s)
}

// planner is one planning.
type planner struct {
	k        Known
	snap     *cluster.Snapshot
	now      time.Time
	members  map[cluster.NodeID]bool
	settings settings
	chains   []*chain
	having   []cluster.NodeID        // what the chains' are cut from
	load     map[cluster.NodeID]load // made when it is first needed

	spent    *cluster.ReprovisionSettings // to be written
	faults   []Action
	refusals []cluster.Refusal
}

// chain is one replicated workload in the planning.
type chain struct {
	w       cluster.Workload // as observed, never edited
	version int32
	reports map[cluster.NodeID]cluster.CopyReport
	// having are the members that have a copy, or of which something runs, in order.
	having []cluster.NodeID
	// changed is the record to be written, nil if none; again, that it changes where
	// copies belong.
	changed *cluster.Workload
	again   bool
	// untouched: nothing is decided of it in this planning, and its faults stand.
	untouched bool
	// blocked: what is wrong with it is known, and nothing is done to its copies.
	blocked bool
	// unsafe: its head came back empty; promoted: that is mended by this plan.
	unsafe, promoted bool
}

// now is the record as it is to be.
func (c *chain) now() *cluster.Workload {
	if c.changed != nil {
		return c.changed
	}
	return &c.w
}

// edit is the record that is to be written.
func (c *chain) edit() *cluster.Workload {
	if c.changed == nil {
		w := c.w.Clone()
		c.changed = &w
	}
	return c.changed
}

// memberSet are the nodes that a list may name: a node that is drained, silent or
// proven dead is a member still, and makes no list corrupted (J8, J12); one that
// was removed, or has never registered, does (J21).
func memberSet(k Known, snap *cluster.Snapshot) map[cluster.NodeID]bool {
	set := make(map[cluster.NodeID]bool, len(snap.Nodes))
	for n := range snap.Nodes {
		if snap.Nodes[n].Record.Present || snap.Nodes[n].Record.Err != nil {
			set[n] = true
		}
	}
	for _, r := range snap.Members.Value.Removed {
		if !r.Free {
			delete(set, r.Node)
		}
	}
	for _, n := range k.Active {
		set[n] = true
	}
	for n, gone := range k.Gone {
		set[n] = set[n] || gone
	}
	for n, failing := range k.FailingOver {
		set[n] = set[n] || failing
	}
	return set
}

// begin takes a workload in and does the first steps with it.
func (p *planner) begin(name string, seen cluster.Versioned[cluster.Workload]) {
	if seen.Err != nil {
		p.fault(FaultUnreadable, name, "", fmt.Sprintf(
			"the record of workload %s cannot be read (%v): its copies are left as they are; restore it from a backup, or remove it with `pvc workload remove %s`", name, seen.Err, name))
		return
	}
	if !seen.Present || seen.Value.Kind != cluster.WorkloadReplicated {
		return
	}
	c := &chain{w: seen.Value, version: seen.Version, reports: p.k.Reports[name]}
	p.chains = append(p.chains, c)
	if p.k.Busy[name] { // what comes of it is found by the pass after its end
		c.untouched = true
		return
	}
	p.firstSteps(c)
}

// judge decides what is to become of a chain by what its nodes have said.
func (p *planner) judge(c *chain) {
	if c.untouched || c.blocked || c.again {
		return
	}
	if who, why := p.silentOf(c); who != cluster.NoCopy {
		p.leave(c, cluster.RefuseCopiesSilent, who, fmt.Sprintf("workload %s is left as it is: node %s of its chain has not answered (%s)", c.w.Name, who, why))
		return
	}
	p.look(c)
	if p.fixUp(c); c.again || c.blocked {
		return
	}
	if !c.w.Wanted {
		p.stopped(c)
		return
	}
	if p.lostHead(c); c.again || c.blocked {
		return
	}
	p.emptyHead(c)
	if !c.unsafe {
		p.online(c)
	}
}

// silentOf names a node of the chain, or of the unfinished move, of which it is not
// known what it has. A node of a failover counts as one whatever it answers: it is
// neither copied from nor added before its proof (J12).
func (p *planner) silentOf(c *chain) (cluster.NodeID, string) {
	for _, n := range c.w.Chain {
		if why := p.silent(c, n); why != "" {
			return n, why
		}
	}
	if c.w.Next != nil {
		for _, n := range c.w.Next.Chain {
			if why := p.silent(c, n); why != "" {
				return n, why
			}
		}
	}
	return cluster.NoCopy, ""
}

func (p *planner) silent(c *chain, n cluster.NodeID) string {
	if n == cluster.NoCopy || p.k.Gone[n] {
		return ""
	}
	if p.k.FailingOver[n] {
		return "its failover is under way"
	}
	r, answered := c.reports[n]
	switch why, silent := p.k.Silent[n]; {
	case silent && why == "":
		return "no answer"
	case silent:
		return why
	case !answered:
		return "it was not asked, or did not say"
	case r.Unknown:
		return "it cannot tell: " + r.Error
	case r.ID != "" && r.ID != c.w.ID:
		return "its answer is about an earlier workload of this name"
	}
	return ""
}

// state is what the node has; of a node that is gone, or is nobody: nothing.
func (p *planner) state(c *chain, n cluster.NodeID) cluster.CopyState {
	if r, ok := p.report(c, n); ok {
		return r.State
	}
	return cluster.CopyMissing
}

// report is what a member that counts has said.
func (p *planner) report(c *chain, n cluster.NodeID) (cluster.CopyReport, bool) {
	r, ok := c.reports[n]
	if !ok || n == cluster.NoCopy || p.k.Gone[n] || r.State == "" || p.silent(c, n) != "" || !p.members[n] {
		return cluster.CopyReport{}, false
	}
	return r, true
}

func (p *planner) has(c *chain, n cluster.NodeID) bool {
	return p.state(c, n) != cluster.CopyMissing
}

// look notes who has something: of many that were asked it is a few.
func (p *planner) look(c *chain) {
	from := len(p.having)
	for n, r := range c.reports {
		if r.State == cluster.CopyMissing && r.Start == "" {
			continue
		}
		if _, ok := p.report(c, n); ok {
			p.having = append(p.having, n)
		}
	}
	c.having = p.having[from:len(p.having):len(p.having)]
	slices.Sort(c.having)
}

// outside are the members beyond the chain whose report is one of those, in order.
func (p *planner) outside(c *chain, those func(cluster.CopyReport) bool) []cluster.NodeID {
	var list []cluster.NodeID
	for _, n := range c.having {
		if !slices.Contains(c.now().Chain, n) && those(c.reports[n]) {
			list = append(list, n)
		}
	}
	return list
}

// leave leaves a workload as it is, with the faults that stand of it.
func (p *planner) leave(c *chain, code cluster.RefusalCode, n cluster.NodeID, detail string) {
	c.untouched = true
	p.refusals = append(p.refusals, cluster.Refusal{Code: code, Node: n, Detail: detail})
}

// rewrite gives the workload another chain. Its unfinished move stands only where
// keep says that it can still be gone on with.
func (p *planner) rewrite(c *chain, to []cluster.NodeID, state cluster.WorkloadState, reason string, keep bool) {
	w := c.edit()
	w.Chain, w.Pass = to, p.k.Pass
	if !keep {
		w.Next = nil
	}
	c.again = true
	p.setState(c, state, reason)
}

// setState writes what is said of the workload, where it says something else. A
// move says what it does by itself.
func (p *planner) setState(c *chain, state cluster.WorkloadState, reason string) {
	w := c.now()
	if w.State == state && (w.Reason == reason || state == cluster.WorkloadRunning || state == cluster.WorkloadStarting && reason == "") {
		return
	}
	if w.Next != nil && w.State == cluster.WorkloadMoving && (state == cluster.WorkloadRunning || state == cluster.WorkloadStarting) {
		return
	}
	w = c.edit()
	if w.State != state {
		w.SinceMS = p.now.UnixMilli()
	}
	w.State, w.Reason = state, reason
}

// finish puts the plan together.
func (p *planner) finish(s State) (State, []Action, []cluster.Refusal) {
	writes, again := p.writes()
	actions := writes
	if again {
		actions = append(actions, Action{Kind: ActionAgain})
	} else if p.k.Queried {
		for _, c := range p.chains {
			if a, ok := p.apply(c); ok {
				actions = append(actions, a)
			}
		}
	}
	s, faults := p.tell(s)
	return s, append(actions, faults...), p.refusals
}

// writes are the records to be written, as many as one transaction takes. Those of
// a reprovision go first, and its count with the last of them: were the count first
// and the rest never followed, reprovision would be off and the rest activated
// empty.
func (p *planner) writes() (writes []Action, again bool) {
	room := maxWrite
	take := func(c *chain) bool {
		if room -= weight(c.changed); room < 0 && len(writes) > 0 {
			return false
		}
		writes = append(writes, Action{Kind: ActionWrite, Workload: c.w.Name, Seen: c.version, Write: c.changed})
		c.version++
		return true
	}
	for _, first := range []bool{true, false} {
		for _, c := range p.chains {
			if c.changed == nil || c.promoted != first {
				continue
			}
			again = again || c.again
			if take(c) {
				continue
			}
			if first && p.spent != nil {
				p.unspend()
			}
			c.changed, room = nil, 0
		}
	}
	if p.spent != nil {
		for i := range writes {
			writes[i].Reprovision, writes[i].ReprovisionSeen = p.spent, p.settings.seen
		}
	}
	return writes, again
}

// weight estimates how long a record is, in bytes.
func weight(w *cluster.Workload) int {
	n := 800 + len(w.Reason)
	for _, node := range w.Nodes {
		n += len(node) + 3
	}
	for k, v := range w.Params {
		n += len(k) + len(v) + 6
	}
	if w.Answer != nil {
		n += len(w.Answer.Text)
	}
	return n
}
