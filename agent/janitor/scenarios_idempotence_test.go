package janitor

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pvc.internal/cluster"
)

// anyWorld is a cluster in any state whatever, also one that no history leads to: a
// pass finds what operators, restores and half-done moves have left.
type anyWorld struct {
	t     *rapid.T
	nodes []cluster.NodeID
	k     Known
	snap  *cluster.Snapshot
	state State
	trail []string
	acts  int
}

func drawWorld(t *rapid.T) *anyWorld {
	a := &anyWorld{t: t, nodes: []cluster.NodeID{"a", "b", "c", "d"}}
	w := newWorld(a.nodes...)
	a.snap = w.snap
	yes := func(percent int) bool { return rapid.IntRange(0, 99).Draw(t, "yes") < percent }
	a.k = Known{Queried: true, Gone: map[cluster.NodeID]bool{}, FailingOver: map[cluster.NodeID]bool{}, Silent: map[cluster.NodeID]string{},
		Reports: map[string]map[cluster.NodeID]cluster.CopyReport{}}
	for _, n := range a.nodes {
		switch rapid.IntRange(0, 15).Draw(t, "node is") {
		case 0, 1:
			a.k.Gone[n] = true
		case 2:
			a.k.FailingOver[n] = true
		case 3:
			a.k.Silent[n] = "no answer"
		case 4: // drained
		default:
			a.k.Active = append(a.k.Active, n)
		}
	}
	if yes(80) {
		most := rapid.IntRange(1, 3).Draw(t, "max")
		a.snap.Reprovision = cluster.Versioned[cluster.ReprovisionSettings]{Present: true, Version: 3, Value: cluster.ReprovisionSettings{Version: 1, Enabled: yes(85), MaxNodes: most,
			Count: rapid.IntRange(0, most).Draw(t, "count")}}
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "workloads") {
		a.put(a.drawWorkload(fmt.Sprintf("w%d", i), yes))
	}
	return a
}

func (a *anyWorld) drawWorkload(name string, yes func(int) bool) cluster.Workload {
	chain := func() []cluster.NodeID {
		c := slices.Clone(rapid.Permutation(a.nodes).Draw(a.t, "chain")[:rapid.IntRange(1, 3).Draw(a.t, "length")])
		for i := range c {
			if yes(15) {
				c[i] = cluster.NoCopy
			}
		}
		return c
	}
	r := cluster.Workload{Version: 1, Name: name, ID: "id-" + name, Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Wanted: yes(85), Ephemeral: yes(60),
		State: rapid.SampledFrom([]cluster.WorkloadState{cluster.WorkloadNew, cluster.WorkloadRunning, cluster.WorkloadStarting, cluster.WorkloadMoving, cluster.WorkloadUnsafe,
			cluster.WorkloadFaulty, cluster.WorkloadStopped, cluster.WorkloadRecovering}).Draw(a.t, "state"), Replicas: rapid.IntRange(0, 2).Draw(a.t, "replicas")}
	if yes(90) {
		r.Chain = chain()
		r.Nodes = slices.DeleteFunc(slices.Clone(r.Chain), func(n cluster.NodeID) bool { return n == cluster.NoCopy })
	}
	if yes(30) {
		r.Nodes = slices.Clone(a.nodes)
	}
	if yes(25) && len(r.Chain) > 0 {
		next := chain()
		if next[0] != cluster.NoCopy {
			r.Next = &cluster.ChainMove{ID: "m", Chain: next, Cause: "move"}
		}
	}
	a.k.Reports[name] = map[cluster.NodeID]cluster.CopyReport{}
	for _, n := range a.nodes {
		if _, silent := a.k.Silent[n]; silent || yes(5) {
			continue
		}
		state := rapid.SampledFrom([]cluster.CopyState{cluster.CopyMissing, cluster.CopyMissing, cluster.CopyReplica, cluster.CopyReplica, cluster.CopyPending, cluster.CopyActive, cluster.CopyDead}).Draw(a.t, "copy")
		report := cluster.CopyReport{Workload: name, ID: r.ID, Node: n, State: state, HasOffset: yes(70), Offset: int64(rapid.IntRange(0, 3).Draw(a.t, "offset")),
			History: rapid.SampledFrom([]string{"h1", "h2"}).Draw(a.t, "history")}
		switch {
		case state == cluster.CopyMissing && !yes(40):
		case state != cluster.CopyDead:
			report.Start = "s1"
		}
		if state == cluster.CopyReplica {
			report.Follows = rapid.SampledFrom(append([]cluster.NodeID{""}, a.nodes...)).Draw(a.t, "follows")
		}
		a.k.Reports[name][n] = report
	}
	return r
}

func (a *anyWorld) put(r cluster.Workload) {
	a.snap.Workloads[r.Name] = cluster.Versioned[cluster.Workload]{Present: true, Value: r, Version: 1}
}

func (a *anyWorld) fail(format string, args ...any) {
	a.t.Helper()
	for _, line := range a.trail {
		a.t.Log(line)
	}
	a.t.Fatalf(format, args...)
}

// plan plans with what is known, and writes what the plan writes; the rest is returned.
func (a *anyWorld) plan() (wrote bool, applies, faults []Action) {
	a.acts++
	a.k.Pass = fmt.Sprintf("pass-%d", a.acts)
	state, actions, refusals := Plan(a.state, a.k, a.snap, time.UnixMilli(0))
	a.state = state
	a.trail = append(a.trail, strings.Join(append([]string{"plan:"}, render(actions, refusals)...), "\n    "))
	w := &world{snap: a.snap}
	if !w.write(actions) {
		a.fail("a plan on what is there writes on another version")
	}
	a.snap = w.snap
	for _, x := range actions {
		switch x.Kind {
		case ActionWrite, ActionAgain:
			wrote = true
		case ActionApply:
			applies = append(applies, x)
		case ActionFault:
			faults = append(faults, x)
		}
	}
	return wrote, applies, faults
}

// written plans until nothing is written any more, with copies that stay as they were
// found.
func (a *anyWorld) written() (applies []Action) {
	for range 8 {
		wrote, applies, _ := a.plan()
		if !wrote {
			return applies
		}
	}
	a.fail("it writes again and again, and nothing has changed but what it wrote")
	return nil
}

// carry has all nodes do as they are told.
func (a *anyWorld) carry(applies []Action) {
	for _, x := range applies {
		ephemeral := a.snap.Workloads[x.Workload].Value.Ephemeral
		for _, s := range x.Steps {
			r, ok := a.k.Reports[x.Workload][s.Node]
			if !ok || a.k.Gone[s.Node] || a.k.FailingOver[s.Node] {
				a.fail("%s is ordered %s, and was not heard of", s.Node, s.Op)
			}
			if s.Expect != nil && s.Expect.Against(r) != "" {
				a.fail("%s is ordered %s on what it has not said", s.Node, s.Op)
			}
			if r.Start == "" {
				r.Start = "s2"
			}
			switch s.Op {
			case cluster.CopyPromote:
				a.acts++
				r.State, r.Follows, r.History = cluster.CopyActive, "", fmt.Sprintf("p%d", a.acts)
			case cluster.CopyFollow:
				source := a.k.Reports[x.Workload][s.Source]
				if source.State != cluster.CopyActive {
					a.fail("%s is to follow %s, which is %s", s.Node, s.Source, source.State)
				}
				r.State, r.Follows, r.History, r.Offset = cluster.CopyReplica, s.Source, source.History, source.Offset
			case cluster.CopyDemote:
				r.State = cluster.CopyPending
			case cluster.CopyStop:
				r.State, r.Start, r.Follows = cluster.CopyDead, "", ""
				if ephemeral {
					r.State = cluster.CopyMissing
				}
			}
			a.k.Reports[x.Workload][s.Node] = r
		}
	}
}

// Whatever is found: what a plan writes is not written again by the next, which plans
// the same orders from the same copies, tells nothing twice, and takes nothing back;
// and once the orders are carried out nothing is planned any more.
func TestAPlanAppliedToItsOwnResultPlansNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawWorld(t)
		applies := a.written()
		wrote, same, faults := a.plan()
		if wrote || len(faults) > 0 || strings.Join(render(applies, nil), "\n") != strings.Join(render(same, nil), "\n") {
			a.fail("planned again on the same it is another plan")
		}
		for range 6 {
			a.carry(applies)
			if applies = a.written(); len(applies) == 0 {
				break
			}
		}
		if wrote, applies, faults := a.plan(); wrote || len(applies)+len(faults) > 0 {
			a.fail("all orders are carried out, and it does not come to rest")
		}
	})
}
