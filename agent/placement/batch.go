package placement

import (
	"time"

	"pvc.internal/cluster"
)

// Limits bound how many moves run at once.
type Limits struct{ PerNode, Total int }

// Parallel is what a node's storage and processors take without the first start
// having to wait for the tenth.
var Parallel = Limits{PerNode: 6, Total: 24}

// Next picks what is to begin now, as places in the queue: in its order, as far as
// the bounds let it. busy is how many run on each node; it is not edited.
func (l Limits) Next(queue []cluster.NodeID, busy map[cluster.NodeID]int) []int {
	total, mine := 0, map[cluster.NodeID]int{}
	for _, n := range busy {
		total += n
	}
	var begin []int
	for i, n := range queue {
		if total >= l.Total {
			break
		}
		if busy[n]+mine[n] >= l.PerNode {
			continue
		}
		mine[n]++
		total++
		begin = append(begin, i)
	}
	return begin
}

// MaxAttempts is how many starts of a workload may fail in a row before it is left
// alone as failed; OneNode how many of them on one node before another is tried.
const (
	MaxAttempts = 5
	OneNode     = 2
)

// Backoff is how long to wait after so many starts have failed in a row.
func Backoff(attempts int) time.Duration {
	if attempts <= 0 {
		return 0
	}
	return min(time.Second<<min(attempts-1, 10), 30*time.Second)
}

// Elsewhere reports whether after so many failed starts another node is tried.
func Elsewhere(attempts int) bool { return attempts > 0 && attempts%OneNode == 0 }
