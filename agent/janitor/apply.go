package janitor

import (
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// The stages of an apply. Nobody is promoted while another is active, and nobody
// follows before there is somebody to follow.
const (
	stageQuiet  = iota // those who must not be active serve nobody any more
	stageHead          // the head is promoted, or lets followers in anew
	stageFollow        // the others of the chain follow it
)

// online says of a workload that is to run how it is.
func (p *planner) online(c *chain) {
	if p.state(c, c.now().Head()) != cluster.CopyActive {
		p.setState(c, cluster.WorkloadStarting, p.k.Failed[c.w.Name])
		if c.now().History != "" { // it begins another one now
			c.edit().History = ""
		}
		return
	}
	lacks := p.lacks(c)
	p.setState(c, cluster.WorkloadRunning, lacks)
	if w := c.now(); w.State == cluster.WorkloadRunning && w.Next == nil && w.Reason != lacks && ofCopies(w.Reason) {
		c.edit().Reason = lacks
	}
	if r := c.reports[c.now().Head()]; r.History != "" && r.History != c.now().History {
		c.edit().History = r.History
	}
}

// What a workload that runs lacks, in its record. Any other reason there is a move's,
// and left alone.
const (
	lacksPlace = cluster.LacksPlace + ": rebalance when healthy"
	lacksCopy  = cluster.LacksCopy + ": "
)

// lacks says what leaves less to fall back on than the chain says; empty: nothing.
// Why a copy could not be brought to follow is known from the last try of this
// primary: until there is one, what the record says of it stands.
func (p *planner) lacks(c *chain) string {
	switch {
	case slices.Contains(c.now().Chain, cluster.NoCopy):
		return lacksPlace
	case p.followed(c):
		return ""
	case p.k.Failed[c.w.Name] != "":
		return lacksCopy + p.k.Failed[c.w.Name]
	case strings.HasPrefix(c.now().Reason, lacksCopy):
		return c.now().Reason
	}
	return ""
}

func ofCopies(reason string) bool {
	return reason == "" || reason == lacksPlace || strings.HasPrefix(reason, lacksCopy)
}

// stopped says of a workload that an operator has stopped that nothing of it runs.
func (p *planner) stopped(c *chain) {
	if len(p.stops(c)) == 0 {
		p.setState(c, cluster.WorkloadStopped, "an operator has stopped it")
	}
}

// apply brings the copies of one workload to its chain, where they differ from it.
func (p *planner) apply(c *chain) (Action, bool) {
	if c.untouched || c.blocked || c.unsafe {
		return Action{}, false
	}
	var steps []Step
	if c.w.Wanted {
		steps = p.steps(c)
	} else {
		steps = p.stops(c)
	}
	if len(steps) == 0 {
		return Action{}, false
	}
	a := Action{Kind: ActionApply, Workload: c.w.Name, Seen: c.version, Steps: steps}
	for _, n := range c.w.Chain {
		if n != cluster.NoCopy && !p.k.Gone[n] {
			a.Members = append(a.Members, n)
		}
	}
	for _, s := range steps {
		if !slices.Contains(a.Members, s.Node) {
			a.Members = append(a.Members, s.Node)
		}
	}
	return a, true
}

// steps are the orders after which the copies are as the chain says. A new secret
// is needed wherever somebody is to follow, since none is kept: then all follow anew
// with it, which is nothing to those who do already.
func (p *planner) steps(c *chain) []Step {
	head := c.w.Head()
	if head == cluster.NoCopy || p.k.Gone[head] {
		return nil
	}
	if p.state(c, head) == cluster.CopyActive && p.followed(c) {
		return append(p.quiet(c), p.superfluous(c)...)
	}
	steps := p.quiet(c)
	first := Step{Stage: stageHead, Node: head, Op: cluster.CopyPromote, NewSecret: true, Expect: p.expect(c, head)}
	if p.state(c, head) == cluster.CopyActive {
		first.Op = cluster.CopyAdmit
	}
	steps = append(steps, first)
	for _, n := range c.w.Chain[1:] {
		if n != cluster.NoCopy && !p.k.Gone[n] {
			steps = append(steps, Step{Stage: stageFollow, Node: n, Op: cluster.CopyFollow, Source: head, NewSecret: true})
		}
	}
	return steps
}

// expect is what the order is given on: a head that was restarted since it was asked
// may be empty now, and must neither be promoted nor let anybody copy from it.
func (p *planner) expect(c *chain, n cluster.NodeID) *cluster.CopyExpect {
	r, ok := p.report(c, n)
	if !ok {
		return nil
	}
	return &cluster.CopyExpect{State: r.State, Start: r.Start}
}

// followed reports whether each member that is not gone follows the head. A replica
// that cannot tell whom it follows is taken at its word.
func (p *planner) followed(c *chain) bool {
	for _, n := range c.w.Chain[1:] {
		if n == cluster.NoCopy || p.k.Gone[n] {
			continue
		}
		if r := c.reports[n]; r.State != cluster.CopyReplica || (r.Follows != cluster.NoCopy && r.Follows != c.w.Head()) {
			return false
		}
	}
	return true
}

// quiet demotes whoever is active beside the head.
func (p *planner) quiet(c *chain) []Step {
	var steps []Step
	for _, n := range p.actives(c) {
		if n != c.w.Head() {
			steps = append(steps, Step{Stage: stageQuiet, Node: n, Op: cluster.CopyDemote})
		}
	}
	return steps
}

// superfluous stops copies outside the chain, once all of the chain have theirs: what
// stops a pass half-way must never leave fewer copies than there were (J6). Those of
// an unfinished move are that move's.
func (p *planner) superfluous(c *chain) []Step {
	for _, n := range c.w.Chain {
		if n != cluster.NoCopy && p.k.Gone[n] {
			return nil
		}
	}
	var steps []Step
	// One that is active is demoted now, and stopped by the next pass.
	for _, n := range p.outside(c, func(r cluster.CopyReport) bool { return runs(r) && r.State != cluster.CopyActive }) {
		if c.w.Next == nil || !slices.Contains(c.w.Next.Chain, n) {
			steps = append(steps, Step{Stage: stageFollow, Node: n, Op: cluster.CopyStop})
		}
	}
	return steps
}

// stops ends what runs of a workload that is not wanted, who serves before the rest,
// so that the rest has what it had.
func (p *planner) stops(c *chain) []Step {
	var steps []Step
	for _, n := range slices.Concat(p.inChain(c), p.outside(c, runs)) {
		r, ok := p.report(c, n)
		if !ok || !runs(r) {
			continue
		}
		stage := stageHead
		if r.State == cluster.CopyActive {
			stage = stageQuiet
		}
		steps = append(steps, Step{Stage: stage, Node: n, Op: cluster.CopyStop})
	}
	slices.SortStableFunc(steps, func(a, b Step) int { return a.Stage - b.Stage })
	return steps
}

func (p *planner) inChain(c *chain) []cluster.NodeID {
	return slices.DeleteFunc(slices.Clone(c.w.Chain), func(n cluster.NodeID) bool { return n == cluster.NoCopy })
}

// runs reports whether there is something to stop: also what came back empty.
func runs(r cluster.CopyReport) bool {
	return r.Start != "" || r.State == cluster.CopyActive || r.State == cluster.CopyReplica || r.State == cluster.CopyPending
}
