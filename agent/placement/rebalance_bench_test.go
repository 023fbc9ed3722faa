package placement

import (
	"fmt"
	"testing"

	"pvc.internal/cluster"
)

// crowd is a thousand movable workloads on so many of a hundred nodes, every second
// pinned to some of the nodes, its own among them.
func crowd(on, pins int) ([]Node, []cluster.Workload) {
	var nodes []Node
	for i := range 100 {
		nodes = append(nodes, Node{Name: cluster.NodeID(fmt.Sprintf("hv%03d", i)), Facts: Facts{Known: true, MemTotal: 1 << 20, MemFree: 1 << 20, CPUs: 64}})
	}
	var work []cluster.Workload
	for i := range 1000 {
		own := nodes[i%on].Name
		w := cluster.Workload{Name: fmt.Sprintf("w%04d", i), Kind: cluster.WorkloadMovable, Wanted: true, State: cluster.WorkloadRunning, Chain: []cluster.NodeID{own}}
		if i%2 == 0 {
			w.Nodes = []cluster.NodeID{own}
			for at := range pins - 1 {
				if n := nodes[(i/2+at*7)%100].Name; n != own {
					w.Nodes = append(w.Nodes, n)
				}
			}
		}
		work = append(work, w)
	}
	return nodes, work
}

func BenchmarkRebalance(b *testing.B) {
	for _, on := range []int{1, 10, 50} {
		for _, pins := range []int{1, 2, 10} {
			b.Run(fmt.Sprintf("on=%d/pins=%d", on, pins), func(b *testing.B) {
				nodes, work := crowd(on, pins)
				for b.Loop() {
					Rebalance(NewBook(nodes, work, "mem"), work)
				}
			})
		}
	}
}
