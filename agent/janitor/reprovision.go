package janitor

import (
	"fmt"
	"slices"

	"pvc.internal/cluster"
)

// settings are auto-reprovision's as observed.
type settings struct {
	value cluster.ReprovisionSettings
	seen  int32 // of the record; −1: there is none
	err   error
}

// settingsOf reads them. What cannot be read counts as armed, with nothing left to
// spend: an empty head stays offline.
func settingsOf(snap *cluster.Snapshot) settings {
	r := snap.Reprovision
	s := settings{value: cluster.DefaultReprovisionSettings(), seen: -1, err: r.Err}
	if r.Present {
		s.value = r.Value
	}
	if r.Present || r.Mzxid != 0 {
		s.seen = r.Version
	}
	return s
}

// armed reports whether an empty head keeps its workload offline.
func (s settings) armed() bool { return s.err != nil || s.value.Armed() }

// UnsafeHead reports whether the workload must not be brought online while
// reprovision is armed: it is ephemeral, its head's copy is missing, and another of
// its chain that is not gone has one in any state (S94). Copies outside the chain do
// not count (S95, P2). A head that is gone is none of its cases: a dead-proof is a
// failover. Whoever activates a head outside the janitor asks this first (P3).
func UnsafeHead(w cluster.Workload, reports map[cluster.NodeID]cluster.CopyReport, gone map[cluster.NodeID]bool) bool {
	head := w.Head()
	return w.Kind == cluster.WorkloadReplicated && w.Ephemeral && head != cluster.NoCopy && !gone[head] &&
		missing(reports[head]) && copyBehind(w, reports, gone)
}

// copyBehind reports whether one of the chain behind its head has a copy.
func copyBehind(w cluster.Workload, reports map[cluster.NodeID]cluster.CopyReport, gone map[cluster.NodeID]bool) bool {
	for i, n := range w.Chain {
		if i > 0 && n != cluster.NoCopy && !gone[n] && !missing(reports[n]) {
			return true
		}
	}
	return false
}

func missing(r cluster.CopyReport) bool { return r.State == cluster.CopyMissing || r.State == "" }

// emptyHead looks for the head that came back empty while others of the chain have
// a copy. An ephemeral workload's is unsafe while reprovision is armed. Else it is
// activated, since of one that is not ephemeral "missing" may only mean that it does
// not run (S125), and where the maximum is spent it was said so (S122); both are told.
func (p *planner) emptyHead(c *chain) {
	head := c.w.Head()
	if p.has(c, head) || !copyBehind(c.w, c.reports, p.k.Gone) {
		return
	}
	if c.w.Ephemeral && p.settings.armed() {
		c.unsafe = true
		return
	}
	why := "it is not ephemeral, so that its data is taken to be on that node's disk"
	if c.w.Ephemeral {
		why = "auto-reprovision is off, so that an empty copy is what its replicas follow now: their data is lost"
	}
	p.fault(FaultHeadEmptied, c.w.Name, head, fmt.Sprintf("workload %s had no copy on %s, the head of its chain, while others of its chain (%s) had one; it is activated there: %s",
		c.w.Name, head, words(p.withCopy(c, c.w.Chain)), why))
}

// reprovision promotes replicas of the heads that came back empty, on the first
// nodes for which the settings have something left. All chains and the new count are
// one transaction, on the version of the settings that was seen (P5, J11); it carries
// the pass's id, and a pass that finds its own id there has been counted.
func (p *planner) reprovision() {
	nodes := p.unsafeNodes()
	if len(nodes) == 0 {
		return
	}
	candidates := nodes[:min(len(nodes), max(0, p.settings.value.MaxNodes-p.settings.value.Count))]
	switch {
	case p.settings.err != nil:
		candidates = nil
		p.fault(FaultReprovision, "", cluster.NoCopy, fmt.Sprintf("the settings of auto-reprovision cannot be read (%v): workloads whose head came back empty stay offline; set them anew with `pvc settings autoreprovision enable --max-nodes 1`", p.settings.err))
	case p.settings.value.Pass == p.k.Pass && p.k.Pass != "":
		candidates = nil
	}
	waiting := map[cluster.NodeID][]string{}
	for _, c := range p.chains {
		if head := c.w.Head(); c.unsafe && !slices.Contains(candidates, head) {
			waiting[head] = append(waiting[head], c.w.Name)
			p.setState(c, cluster.WorkloadUnsafe, fmt.Sprintf("its copy on %s came back empty, and is not brought online: others of its chain (%s) have one", head, words(p.withCopy(c, c.w.Chain))))
		} else if c.unsafe {
			p.promote(c, candidates)
		}
	}
	p.tellUnsafe(waiting)
	if len(candidates) > 0 {
		p.spend(candidates)
	}
}

// unsafeNodes are the heads' nodes that are unsafe, by name.
func (p *planner) unsafeNodes() []cluster.NodeID {
	var nodes []cluster.NodeID
	for _, c := range p.chains {
		if c.unsafe && !slices.Contains(nodes, c.w.Head()) {
			nodes = append(nodes, c.w.Head())
		}
	}
	slices.Sort(nodes)
	return nodes
}

// promote moves an unsafe chain on: while its head is a candidate, and has nothing
// of this workload, the next one is it (S119).
func (p *planner) promote(c *chain, candidates []cluster.NodeID) {
	empty := func(n cluster.NodeID) bool {
		return p.k.Gone[n] || (slices.Contains(candidates, n) && !p.has(c, n))
	}
	c.promoted = true
	chain := p.movedOn(c, empty)
	p.rewrite(c, chain, cluster.WorkloadStarting, fmt.Sprintf("its copy on %s came back empty: that on %s is promoted", c.w.Head(), chain[0]), false)
}

// spend counts the candidates.
func (p *planner) spend(candidates []cluster.NodeID) {
	next := p.settings.value
	next.Nodes = slices.Clone(next.Nodes)
	for _, n := range candidates {
		if !slices.Contains(next.Nodes, n) {
			next.Nodes = append(next.Nodes, n)
		}
	}
	next.Count += len(candidates)
	next.Pass = p.k.Pass
	p.spent = &next
}

// unspend writes the settings as they are, so that their version is checked with
// the first part of what does not fit into one transaction; the last part counts.
func (p *planner) unspend() {
	same := p.settings.value
	same.Nodes = slices.Clone(same.Nodes)
	p.spent = &same
}

// tellUnsafe reports the nodes that nothing is left for, once each.
func (p *planner) tellUnsafe(waiting map[cluster.NodeID][]string) {
	for n, names := range waiting {
		p.fault(FaultUnsafe, "", n, fmt.Sprintf("node %s came back with empty copies of %s, of which others of their chains have one: they are not brought online while auto-reprovision is armed; order `pvc workload promote <workload> --node <node>` before its maximum is spent on other nodes, since they are activated empty then",
			n, counted(names, "workload")))
	}
}

// tellReprovision reports what auto-reprovision has spent: a fact of the settings'
// record, so that the next primary says the same.
func (p *planner) tellReprovision() {
	if p.settings.err != nil {
		return
	}
	v := p.settings.value
	if p.spent != nil {
		v = *p.spent
	}
	for _, n := range v.Nodes {
		p.fault(FaultReprovisioned, "", n, fmt.Sprintf("node %s came back empty and was reprovisioned: replicas of its copies serve in their place, and %s is empty: rebalance when healthy", n, n))
	}
	if v.Enabled && v.Count >= v.MaxNodes {
		p.fault(FaultReprovisionOff, "", cluster.NoCopy, fmt.Sprintf("auto-reprovision has reached its maximum of %s%s and is off: a further head that comes back empty is activated empty, and its replicas' data is lost; rebalance when healthy, or reset the count with `pvc settings autoreprovision reset`",
			plural(v.MaxNodes, "node"), listed(" ", v.Nodes)))
	}
}

// counted names the first few of many.
func counted(names []string, what string) string {
	const shown = 5
	text := plural(len(names), what) + " ("
	for i, name := range names[:min(shown, len(names))] {
		if i > 0 {
			text += ", "
		}
		text += name
	}
	if len(names) > shown {
		text += ", …"
	}
	return text + ")"
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
