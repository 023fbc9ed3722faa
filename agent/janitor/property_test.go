package janitor

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pvc.internal/cluster"
)

// ordeal drives a world by random events, and looks after each effect whether what
// was acknowledged is still somewhere.
type ordeal struct {
	t     *rapid.T
	w     *world
	nodes []cluster.NodeID
	kept  map[string]*keeping
	trail []string
	armed bool // while a plan is carried out: that it was made armed
	plain bool // no faults within a pass
}

// keeping is what is known of one workload's writes.
type keeping struct {
	acked    []int // what must not be lost
	open     bool  // nothing is promised: it was stopped, or activated while nothing was armed
	restarts int
}

func (o *ordeal) note(format string, args ...any) {
	o.trail = append(o.trail, fmt.Sprintf(format, args...))
}

func (o *ordeal) fail(format string, args ...any) {
	o.t.Helper()
	for _, line := range o.trail {
		o.t.Log(line)
	}
	for _, name := range o.names() {
		record, _ := json.Marshal(o.record(name))
		o.t.Logf("%s: %s acked %v", name, record, o.kept[name].acked)
		for _, n := range o.nodes {
			o.t.Logf("  %s: %+v gone %t", n, *o.w.copyOf(name, n), o.w.gone[n])
		}
	}
	o.t.Fatalf(format, args...)
}

func (o *ordeal) chance(percent int) bool {
	return rapid.IntRange(0, 99).Draw(o.t, "chance") < percent
}

func (o *ordeal) node() cluster.NodeID { return rapid.SampledFrom(o.nodes).Draw(o.t, "node") }

func (o *ordeal) names() []string { return []string{"cache", "store"} }

func (o *ordeal) record(name string) cluster.Workload { return o.w.snap.Workloads[name].Value }

func newOrdeal(t *rapid.T) *ordeal {
	o := &ordeal{t: t, nodes: []cluster.NodeID{"a", "b", "c", "d"}, kept: map[string]*keeping{}}
	o.w = newWorld(o.nodes...)
	for _, name := range o.names() {
		o.w.put(cluster.Workload{Version: 1, Name: name, ID: name, Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Wanted: true, Autostart: true,
			Ephemeral: name == "cache", Replicas: rapid.IntRange(1, 2).Draw(t, "replicas"), State: cluster.WorkloadNew})
		o.kept[name] = &keeping{}
	}
	o.w.snap.Reprovision = cluster.Versioned[cluster.ReprovisionSettings]{Present: true, Value: cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: rapid.IntRange(1, 3).Draw(t, "max")}}
	o.w.plan = o.plan
	o.w.effect = o.check
	o.w.crash = o.within
	o.w.promoting = o.promoting
	return o
}

// plan is Plan under watch: it edits nothing, and what it writes is sound.
func (o *ordeal) plan(s State, k Known, snap *cluster.Snapshot) (State, []Action, []cluster.Refusal) {
	before := fmt.Sprintf("%+v", asJSON(s, k, snap))
	next, actions, refusals := Plan(s, k, snap, time.UnixMilli(0))
	if after := fmt.Sprintf("%+v", asJSON(s, k, snap)); before != after {
		o.fail("the plan edited what it was given\n%s\n%s", before, after)
	}
	again, same, _ := Plan(s, k, snap, time.UnixMilli(0))
	if !reflect.DeepEqual(actions, same) || !reflect.DeepEqual(next, again) {
		o.fail("two plans of the same differ")
	}
	o.armed = settingsOf(snap).armed()
	for _, a := range actions {
		if a.Kind == ActionWrite {
			o.sound(a, snap.Workloads[a.Workload].Value)
		}
	}
	for _, l := range render(actions, refusals) {
		o.note("    %s", l)
	}
	return next, actions, refusals
}

func asJSON(s State, k Known, snap *cluster.Snapshot) string {
	k.Runnable = nil
	text, err := json.Marshal([]any{s, k, snap})
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// sound is what holds of each write: the length never changes but with a move's, and
// no node stands in a chain twice.
func (o *ordeal) sound(a Action, before cluster.Workload) {
	if err := a.Write.Validate(); err != nil {
		o.fail("the plan writes what is not valid: %v", err)
	}
	if len(before.Chain) > 0 && len(a.Write.Chain) != len(before.Chain) {
		o.fail("the chain's length changed: %v to %v", before.Chain, a.Write.Chain)
	}
	if a.Reprovision != nil {
		restarts := 0
		for _, k := range o.kept {
			restarts += k.restarts
		}
		if a.Reprovision.Count > restarts || a.Reprovision.Count > a.Reprovision.MaxNodes {
			o.fail("reprovision counts %d after %d restarts", a.Reprovision.Count, restarts)
		}
	}
}

// holders are the nodes whose copy has all that was acknowledged. Copies outside the
// chain do not count (S95), but one that serves.
func (o *ordeal) holders(name string) []cluster.NodeID {
	var list []cluster.NodeID
	for _, n := range o.nodes {
		c := o.w.copyOf(name, n)
		counts := slices.Contains(o.record(name).Chain, n) || (c.role == "active" && c.runs)
		if counts && c.there && o.full(name, n) {
			list = append(list, n)
		}
	}
	return list
}

func (o *ordeal) full(name string, n cluster.NodeID) bool {
	log, acked := o.w.copyOf(name, n).log, o.kept[name].acked
	return len(log) >= len(acked) && slices.Equal(log[:len(acked)], acked)
}

// check is called after each order: no order may have lost what was acknowledged.
func (o *ordeal) check(what string) {
	for _, name := range o.names() {
		k := o.kept[name]
		if k.open || len(k.acked) == 0 {
			continue
		}
		if len(o.holders(name)) == 0 {
			o.fail("%s: what was acknowledged of %s is lost", what, name)
		}
	}
}

// promoting is called before a promote: it must be of a copy that has everything,
// while one that can be reached has; and nobody else may be active.
func (o *ordeal) promoting(name string, n cluster.NodeID) {
	for _, other := range o.nodes {
		if c := o.w.copyOf(name, other); other != n && c.role == "active" && c.runs {
			o.fail("%s is promoted on %s while it is active on %s", name, n, other)
		}
	}
	k := o.kept[name]
	if o.record(name).Ephemeral && !o.armed && !o.w.copyOf(name, n).there {
		o.note("    %s is activated empty on %s, unarmed", name, n)
		k.open = true
	}
	if k.open {
		return
	}
	if !o.full(name, n) && o.w.copyOf(name, n).there && !slices.ContainsFunc(o.holders(name), func(h cluster.NodeID) bool { return o.w.copyOf(name, h).runs }) {
		k.open = true // a copy that does not run cannot tell how far it is
		return
	}
	if !o.full(name, n) {
		o.fail("%s is promoted on %s, which has not all that was acknowledged; %v have", name, n, o.holders(name))
	}
}

// within is called between the steps of an apply: things happen there, and it may be
// cut off.
func (o *ordeal) within() bool {
	if o.plain {
		return false
	}
	if o.chance(10) {
		o.restart(rapid.SampledFrom(o.names()).Draw(o.t, "name"), o.node())
	}
	if o.chance(10) {
		o.note("    cut off")
		return true
	}
	return false
}

// lost is called after data went with a process or a node: what is left is to be kept
// from now on.
func (o *ordeal) lost(name string) {
	k := o.kept[name]
	if k.open || len(o.holders(name)) > 0 {
		return
	}
	// The most advanced of the chain that is of the present history.
	record := o.record(name)
	best := []int(nil)
	for _, n := range record.Chain {
		if c := o.w.copies[name][n]; n != cluster.NoCopy && c != nil && c.there && record.History != "" && c.history == record.History && len(c.log) > len(best) {
			best = c.log
		}
	}
	if best == nil {
		k.open = true // whichever is taken: it is not known which is the best
	}
	k.acked = slices.Clone(best)
	o.note("    the last full copy of %s is gone; left %v, open %t", name, k.acked, k.open)
}

// settle takes up what is active as what is acknowledged, where nothing was promised.
func (o *ordeal) settle() {
	for _, name := range o.names() {
		k := o.kept[name]
		if c := o.w.copies[name][o.record(name).Head()]; k.open && c != nil && c.role == "active" && c.runs && o.record(name).History == c.history {
			k.open, k.acked = false, slices.Clone(c.log)
		}
	}
}

func (o *ordeal) restart(name string, n cluster.NodeID) {
	if c := o.w.copyOf(name, n); !c.runs || o.w.gone[n] {
		return
	}
	o.note("%s restarts on %s", name, n)
	o.kept[name].restarts++
	o.w.restart(name, n)
	o.lost(name)
}

// fence powers a node off, with a proof.
func (o *ordeal) fence(n cluster.NodeID) {
	o.note("%s is fenced", n)
	o.w.gone[n] = true
	delete(o.w.failing, n)
	delete(o.w.silent, n)
	for _, name := range o.names() {
		c := o.w.copyOf(name, n)
		o.kept[name].restarts++
		c.runs, c.role, c.follows = false, "", ""
		if o.record(name).Ephemeral {
			c.log, c.there, c.history = nil, false, ""
		}
		o.lost(name)
		if !slices.ContainsFunc(o.holders(name), func(h cluster.NodeID) bool { return !o.w.gone[h] }) {
			o.kept[name].open = true // it is on disks without power: a replica that lags may be taken
			o.note("    all full copies of %s are on disks without power", name)
		}
	}
}

// write writes to the active copy; replicas that follow it get it, or lag.
func (o *ordeal) write(name string, x int) {
	for _, n := range o.nodes {
		head := o.w.copyOf(name, n)
		if head.role != "active" || !head.runs || o.w.gone[n] {
			continue
		}
		head.log = append(slices.Clone(head.log), x)
		followers, got := 0, 0
		for _, m := range o.nodes {
			c := o.w.copyOf(name, m)
			if c.role == "replica" && c.runs && c.follows == n && c.secret == head.secret && c.history == head.history {
				if followers++; o.chance(70) {
					c.log = slices.Clone(head.log)
					got++
				}
			}
		}
		k := o.kept[name]
		inChain := n == o.record(name).Head()
		if inChain && !k.open && (got > 0 || followers == 0) && o.record(name).History == head.history {
			k.acked = slices.Clone(head.log)
		}
		o.note("write %d to %s on %s, %d of %d have it", x, name, n, got, followers)
	}
}

// move begins a move, or goes on with one, and may be cut off after each step.
func (o *ordeal) move(name string) {
	r := o.record(name)
	if !r.Wanted || len(r.Chain) == 0 || r.Head() == cluster.NoCopy || (r.Ephemeral && !settingsOf(o.w.snap).armed()) {
		return
	}
	if r.Next == nil {
		next := rapid.Permutation(o.nodes).Draw(o.t, "chain")[:len(r.Chain)]
		r = r.Clone()
		r.Next, r.State = &cluster.ChainMove{ID: "m", Chain: next, Cause: "move"}, cluster.WorkloadMoving
		o.w.put(r)
	}
	for _, n := range slices.Concat(r.Members(), r.Next.Chain) {
		if !o.w.reaches(n) || o.w.failing[n] {
			return
		}
	}
	o.note("move %s from %v to %v", name, r.Chain, r.Next.Chain)
	o.armed = true
	head, to := r.Head(), r.Next.Chain[0]
	if o.w.copyOf(name, head).role != "active" {
		return
	}
	expect := func(n cluster.NodeID) *cluster.CopyExpect {
		return &cluster.CopyExpect{State: o.w.report(name, n).State, Start: o.w.report(name, n).Start}
	}
	o.w.secrets++
	secret := fmt.Sprintf("s%d", o.w.secrets)
	do := func(s Step) bool {
		if o.within() || !o.w.order(name, s, secret) {
			return false
		}
		o.check(fmt.Sprintf("%s on %s", s.Op, s.Node))
		return true
	}
	steps := []Step{{Node: head, Op: cluster.CopyAdmit, Expect: expect(head)}}
	for _, n := range slices.Concat(r.Members(), r.Next.Chain) {
		if n != head {
			steps = append(steps, Step{Node: n, Op: cluster.CopyFollow, Source: head})
		}
	}
	for _, s := range steps {
		if !do(s) {
			return
		}
	}
	if to != head {
		// All that is acknowledged must be there before the swap: it is demoted, and
		// what is on the way arrives.
		if !do(Step{Node: head, Op: cluster.CopyDemote, Expect: expect(head)}) {
			return
		}
		if c := o.w.copyOf(name, to); c.history == o.w.copyOf(name, head).history && o.w.copyOf(name, head).there {
			c.log = slices.Clone(o.w.copyOf(name, head).log)
		} else {
			return
		}
		if !do(Step{Node: to, Op: cluster.CopyPromote, Expect: expect(to)}) {
			return
		}
	}
	for _, n := range r.Next.Chain[1:] {
		if !do(Step{Node: n, Op: cluster.CopyFollow, Source: to}) {
			return
		}
	}
	r = r.Clone()
	r.Chain, r.Next, r.State, r.History = r.Next.Chain, nil, cluster.WorkloadRunning, o.w.copyOf(name, to).history
	o.w.put(r)
}

// torn is a primary that dies over a write whose reply is lost: it happened, or not.
func (o *ordeal) torn() {
	o.note("a primary dies in its pass")
	o.w.passes++
	_, actions, _ := o.plan(o.w.state, o.w.known(true), o.w.snap)
	if o.chance(50) {
		o.w.write(actions)
		o.note("    its write happened")
		if o.chance(50) { // and its successor looks with the same id
			o.w.passes--
		}
	}
	o.w.state = State{}
}

func (o *ordeal) event(x int) {
	name := rapid.SampledFrom(o.names()).Draw(o.t, "name")
	switch rapid.IntRange(0, 13).Draw(o.t, "event") {
	case 0, 1, 2:
		o.write(name, x)
	case 3, 4:
		o.restart(name, o.node())
	case 5:
		if n := o.node(); !o.w.gone[n] && len(o.w.gone) < 2 {
			o.fence(n)
		}
	case 6:
		delete(o.w.gone, o.node())
	case 7:
		n := o.node()
		if _, silent := o.w.silent[n]; silent {
			delete(o.w.silent, n)
		} else if !o.w.gone[n] {
			o.w.silent[n] = "no answer"
		}
	case 8:
		if n := o.node(); !o.w.gone[n] {
			o.w.failing[n] = !o.w.failing[n]
		}
	case 9:
		o.move(name)
	case 10:
		o.torn()
	case 11:
		if v := o.w.snap.Reprovision; o.chance(30) {
			v.Value.Count, v.Value.Nodes, v.Version = 0, nil, v.Version+1
			o.w.snap.Reprovision = v
			o.note("reset")
		}
	default:
		o.pass()
	}
	o.settle()
}

func (o *ordeal) pass() []string {
	o.note("pass")
	done := o.w.pass()
	return done
}

// What was acknowledged is kept by every order that any plan leads to, whatever is
// restarted, fenced, silent, cut off, moved half-way or written twice; and when all is
// well again the copies come to their chains, and then nothing more is planned.
func TestNothingIsLostAndAllComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := newOrdeal(t)
		o.plain = true
		for range 3 {
			o.pass()
		}
		o.settle()
		o.plain = false
		for x := range rapid.IntRange(5, 60).Draw(t, "events") {
			o.event(x)
		}
		o.rest()
	})
}

// rest heals everything and waits for the copies to come to their chains.
func (o *ordeal) rest() {
	o.note("all is well again")
	o.plain = true
	clear(o.w.gone)
	clear(o.w.silent)
	clear(o.w.failing)
	for range 6 {
		o.pass()
	}
	for _, name := range o.names() { // what an interrupted move has left is given up
		if r := o.record(name); r.Next != nil {
			r = r.Clone()
			r.Next, r.State = nil, cluster.WorkloadRunning
			o.w.put(r)
		}
	}
	for range 6 {
		o.pass()
	}
	if left := o.pass(); len(left) > 0 {
		o.fail("it does not come to rest: %v", left)
	}
	for _, name := range o.names() {
		r := o.record(name)
		if r.State == cluster.WorkloadFaulty {
			continue
		}
		for i, n := range r.Chain {
			switch c := o.w.copies[name][n]; {
			case n == cluster.NoCopy:
			case i == 0 && (c.role != "active" || !c.runs):
				o.fail("the head of %s is not active", name)
			case i > 0 && (c.role != "replica" || c.follows != r.Head() || !c.runs):
				o.fail("%s of %s does not follow", n, name)
			}
		}
		for _, n := range o.nodes {
			if c := o.w.copyOf(name, n); !slices.Contains(r.Chain, n) && c.runs {
				o.fail("%s still runs on %s, outside its chain", name, n)
			}
		}
	}
}
