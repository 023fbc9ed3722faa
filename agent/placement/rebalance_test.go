package placement

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pvc.internal/cluster"
)

// A rebalance plans anew each round, while some of its moves are made, some are under
// way and some have not begun, since a node lease is missing, say: nothing is moved a
// second time by it, neither back nor on to a third node.
func TestARebalanceMovesNothingTwice(t *testing.T) {
	for _, lists := range []bool{false, true} {
		for seed := range uint64(3000) {
			rng := rand.New(rand.NewPCG(seed, 4))
			nodes, work := world(rng)
			for i := range nodes {
				nodes[i].Bar, nodes[i].Facts = "", Facts{}
			}
			for i := range work {
				work[i].MemoryMiB, work[i].VCPUs, work[i].Chain = 0, 0, work[i].Members()
				if !lists {
					work[i].Nodes = nil
				}
			}
			work = slices.DeleteFunc(work, func(w cluster.Workload) bool { return len(w.Chain) == 0 })
			moved := map[string][]cluster.NodeID{}
			for round := 0; ; round++ {
				plan := Rebalance(NewBook(nodes, work, "mem"), work)
				underWay := slices.ContainsFunc(work, func(w cluster.Workload) bool { return w.Next != nil })
				if len(plan) == 0 && !underWay {
					break
				}
				if round == 200 {
					t.Fatalf("seed %d: it does not end: %v", seed, plan)
				}
				for i := range work {
					if w := &work[i]; w.Next != nil && rng.IntN(3) == 0 {
						w.Chain, w.Next = w.Next.Chain, nil
					}
				}
				for _, mv := range plan {
					w := &work[slices.IndexFunc(work, func(w cluster.Workload) bool { return w.Name == mv.Workload.Name })]
					if rng.IntN(3) > 0 {
						continue
					}
					if w.Head() != mv.To[0] {
						if moved[w.Name] = append(moved[w.Name], w.Head(), mv.To[0]); len(moved[w.Name]) > 2 {
							t.Fatalf("seed %d (lists %t), round %d: %s goes %v", seed, lists, round, w.Name, moved[w.Name])
						}
					}
					w.Next = &cluster.ChainMove{Chain: mv.To, From: w.Chain, Cause: mv.Cause}
				}
			}
		}
	}
}
