package placement

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"pvc.internal/cluster"
)

// world is a random cluster with its workloads.
func world(rng *rand.Rand) ([]Node, []cluster.Workload) {
	var nodes []Node
	for i := range 2 + rng.IntN(6) {
		n := Node{Name: cluster.NodeID(fmt.Sprintf("hv%d", i)), Facts: Facts{Known: rng.IntN(8) > 0, MemTotal: 64000, MemFree: rng.Int64N(64000), Load: rng.Float64() * 8, CPUs: 4 + rng.IntN(16)}}
		if rng.IntN(5) == 0 {
			n.Bar = "flush"
		}
		nodes = append(nodes, n)
	}
	some := func(n int) (list []cluster.NodeID) {
		for _, i := range rng.Perm(len(nodes))[:min(n, len(nodes))] {
			list = append(list, nodes[i].Name)
		}
		return list
	}
	var work []cluster.Workload
	for i := range rng.IntN(40) {
		w := cluster.Workload{Name: fmt.Sprintf("w%02d", i), Kind: cluster.WorkloadMovable, Wanted: rng.IntN(8) > 0, Priority: rng.IntN(4), MemoryMiB: rng.Int64N(20000) * rng.Int64N(2),
			VCPUs: rng.IntN(6), Selector: append([]string{""}, cluster.Selectors...)[rng.IntN(6)], State: cluster.WorkloadRunning, Chain: some(1)}
		if rng.IntN(2) == 0 {
			w.Kind, w.Chain = cluster.WorkloadReplicated, some(1+rng.IntN(3))
			if at := rng.IntN(len(w.Chain) + 2); at > 0 && at < len(w.Chain) {
				w.Chain[at] = cluster.NoCopy
			}
		}
		if rng.IntN(3) == 0 {
			w.Nodes = some(3)
		}
		if rng.IntN(4) == 0 {
			w.Home = some(1)[0]
		}
		work = append(work, w)
	}
	return nodes, work
}

func cloned(list []cluster.Workload) []cluster.Workload {
	out := make([]cluster.Workload, len(list))
	for i, w := range list {
		out[i] = w.Clone()
	}
	return out
}

// Whatever is asked: no node gets more than it has left or what it may not have,
// nothing is moved twice or lost, chains keep their length and name nobody twice, the
// same question has the same answer, and nothing that was given is edited.
func TestPlansKeepTheRules(t *testing.T) {
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		nodes, work := world(rng)
		before, nodesBefore := cloned(work), slices.Clone(nodes)
		ready := func(n cluster.NodeID) bool {
			return slices.ContainsFunc(nodes, func(o Node) bool { return o.Name == n && o.Bar == "" })
		}
		away := nodes[rng.IntN(len(nodes))].Name
		for name, plan := range map[string]func() []Move{
			"drain":     func() []Move { return Drain(NewBook(nodes, work, "mem"), away, work) },
			"ready":     func() []Move { return Ready(NewBook(nodes, work, "mem"), ready, work) },
			"rebalance": func() []Move { return Rebalance(NewBook(nodes, work, "mem"), work) },
		} {
			moves := plan()
			if again := plan(); !reflect.DeepEqual(moves, again) {
				t.Fatalf("seed %d: %s twice has two answers", seed, name)
			}
			if why := broken(nodes, work, moves, name == "drain", away); why != "" {
				t.Fatalf("seed %d: %s: %s", seed, name, why)
			}
		}
		if len(work) > 0 && !reflect.DeepEqual(work, before) || !reflect.DeepEqual(nodes, nodesBefore) {
			t.Fatalf("seed %d: what was given is edited", seed)
		}
	}
}

// broken says which rule the moves break.
func broken(nodes []Node, work []cluster.Workload, moves []Move, drain bool, away cluster.NodeID) string {
	given, moved := map[cluster.NodeID]int64{}, map[string]bool{}
	for _, m := range moves {
		w := m.Workload
		if moved[w.Name] {
			return w.Name + " is moved twice"
		}
		moved[w.Name] = true
		if m.Why != "" {
			if len(m.To) > 0 {
				return w.Name + " cannot be moved, and is"
			}
			continue
		}
		if len(m.To) != len(w.Chain) || m.To[0] == cluster.NoCopy || m.Node == cluster.NoCopy {
			return fmt.Sprintf("%s: %v becomes %v", w.Name, w.Chain, m.To)
		}
		if drain && slices.Contains(m.To, away) {
			return fmt.Sprintf("%s stays on %s", w.Name, away)
		}
		for i, n := range m.To {
			if n == cluster.NoCopy {
				continue
			}
			if slices.Contains(m.To[:i], n) {
				return fmt.Sprintf("%s: %v", w.Name, m.To)
			}
			if slices.Contains(w.Chain, n) {
				continue
			}
			node := nodes[slices.IndexFunc(nodes, func(o Node) bool { return o.Name == n })]
			if node.Bar != "" || len(w.Nodes) > 0 && !slices.Contains(w.Nodes, n) {
				return fmt.Sprintf("%s goes to %s, which may not have it", w.Name, n)
			}
			if node.Facts.Known {
				given[n] += w.MemoryMiB
			}
		}
	}
	for _, n := range nodes {
		prov := int64(0)
		for _, w := range work {
			if slices.Contains(w.Chain, n.Name) {
				prov += w.MemoryMiB
			}
		}
		if given[n.Name] > 0 && (given[n.Name] > n.Facts.MemFree || prov+given[n.Name] > n.Facts.MemTotal) {
			return fmt.Sprintf("%s gets %d MiB, with %d free and %d provisioned", n.Name, given[n.Name], n.Facts.MemFree, prov)
		}
	}
	if drain { // nobody is lost: what is wanted there is moved, or says why not
		for _, w := range work {
			if w.Wanted && slices.Contains(w.Chain, away) && !moved[w.Name] {
				return w.Name + " is forgotten"
			}
		}
	}
	return ""
}

// applied carries moves out in the records.
func applied(work []cluster.Workload, moves []Move) []cluster.Workload {
	work = cloned(work)
	for _, m := range moves {
		at := slices.IndexFunc(work, func(w cluster.Workload) bool { return w.Name == m.Workload.Name })
		work[at].Chain = slices.Clone(m.To)
	}
	return work
}

// uneven is the sum of the squares of how many heads the nodes have, of a kind.
func uneven(work []cluster.Workload, kind cluster.WorkloadKind) (sum int) {
	heads := map[cluster.NodeID]int{}
	for _, w := range work {
		if w.Kind == kind && w.Head() != cluster.NoCopy {
			heads[w.Head()]++
		}
	}
	for _, n := range heads {
		sum += n * n
	}
	return sum
}

// A rebalance that is carried out leaves nothing to do: where no node is short of
// anything and no place is empty its very plan, applied to its own result, plans
// nothing; else after some rounds, of which none undoes what another has gained.
func TestARebalanceCarriedOutPlansNothing(t *testing.T) {
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		nodes, work := world(rng)
		plenty := seed%2 == 0
		if plenty {
			for i := range nodes {
				nodes[i].Facts = Facts{}
			}
			for i := range work {
				work[i].MemoryMiB, work[i].VCPUs = 0, 0
				work[i].Chain = work[i].Members()
			}
			work = slices.DeleteFunc(work, func(w cluster.Workload) bool { return len(w.Chain) == 0 })
		}
		for round := 0; ; round++ {
			moves := Rebalance(NewBook(nodes, work, "mem"), work)
			if len(moves) == 0 {
				break
			}
			if round == 10 || plenty && round > 0 {
				t.Fatalf("seed %d: still %d moves after %d rounds", seed, len(moves), round)
			}
			next := applied(work, moves)
			if why := wasted(work, next, moves); why != "" {
				t.Fatalf("seed %d, round %d: %s", seed, round, why)
			}
			work = next
		}
	}
}

// wasted says which of the moves gains nothing: without it, or without it and others
// of a circle, it would be as even.
func wasted(before, after []cluster.Workload, moves []Move) string {
	for _, m := range moves {
		if m.To[0] == m.Workload.Head() {
			if slices.Equal(m.To, m.Workload.Chain) || slices.Contains(m.To, cluster.NoCopy) && len(m.Workload.Members()) == len(cluster.Workload{Chain: m.To}.Members()) {
				return m.Workload.Name + " is moved to where it is"
			}
			continue
		}
		without := slices.DeleteFunc(slices.Clone(moves), func(o Move) bool { return o.Workload.Name == m.Workload.Name })
		if kind := m.Workload.Kind; uneven(applied(before, without), kind) <= uneven(after, kind) {
			return fmt.Sprintf("%s goes from %v to %v, which gains nothing", m.Workload.Name, m.Workload.Chain, m.To)
		}
		for _, o := range moves {
			if o.Workload.Kind == m.Workload.Kind && o.To[0] == m.Workload.Head() && m.To[0] == o.Workload.Head() {
				return fmt.Sprintf("%s and %s change places", m.Workload.Name, o.Workload.Name)
			}
		}
	}
	return ""
}

// After a node has come and gone any number of times, each rebalance moves as many
// heads as it takes, and a second one none: pairs on two nodes, of which one restarts.
func TestFlapsAndRebalancesMoveNoMoreThanNeeded(t *testing.T) {
	nodes := []Node{{Name: "hv1"}, {Name: "hv2"}}
	for pairs := range 8 {
		var work []cluster.Workload
		for i := range pairs {
			work = append(work, cluster.Workload{Name: fmt.Sprintf("w%d", i), Kind: cluster.WorkloadReplicated, Wanted: true, State: cluster.WorkloadRunning, Chain: []cluster.NodeID{"hv1", "hv2"}})
		}
		for flap := range 6 {
			gone := nodes[flap%2].Name
			for i, w := range work {
				if w.Head() == gone {
					work[i].Chain = []cluster.NodeID{w.Chain[1], gone}
				}
			}
			moves := Rebalance(NewBook(nodes, work, "mem"), work)
			if len(moves) != pairs/2 {
				t.Fatalf("%d pairs, flap %d: %d moves", pairs, flap, len(moves))
			}
			work = applied(work, moves)
			if again := Rebalance(NewBook(nodes, work, "mem"), work); len(again) > 0 {
				t.Fatalf("%d pairs, flap %d: again %d moves", pairs, flap, len(again))
			}
		}
	}
}

// What begins keeps the bounds, in the order of the queue.
func TestBatches(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 3))
		limits := Limits{1 + rng.IntN(4), 1 + rng.IntN(12)}
		var queue []cluster.NodeID
		for range rng.IntN(30) {
			queue = append(queue, cluster.NodeID(fmt.Sprintf("hv%d", rng.IntN(4))))
		}
		busy := map[cluster.NodeID]int{"hv0": rng.IntN(3), "hv1": rng.IntN(3)}
		total := busy["hv0"] + busy["hv1"]
		begin := limits.Next(queue, busy)
		each := map[cluster.NodeID]int{}
		for n, c := range busy {
			each[n] = c
		}
		for i, at := range begin {
			if i > 0 && begin[i-1] >= at {
				t.Fatalf("seed %d: %v is not in order", seed, begin)
			}
			each[queue[at]]++
			if each[queue[at]] > limits.PerNode {
				t.Fatalf("seed %d: %v on one node", seed, each)
			}
		}
		if len(begin) > 0 && total+len(begin) > limits.Total {
			t.Fatalf("seed %d: %d at once", seed, total+len(begin))
		}
		if total == 0 && len(queue) > 0 && (len(begin) == 0 || begin[0] != 0) {
			t.Fatalf("seed %d: the first does not begin at once", seed)
		}
	}
}
