package agent

import (
	"maps"
	"slices"
	"sync"

	"pvc.internal/cluster"
)

// knownCopyOps are the orders that are counted by their name.
var knownCopyOps = []cluster.CopyOp{cluster.CopyStart, cluster.CopyFollow, cluster.CopyPromote, cluster.CopyAdmit, cluster.CopyDemote,
	cluster.CopyStop, cluster.CopyDestroy, cluster.CopyNotify}

// copyCounts counts what becomes of a node's copies.
type copyCounts struct {
	mu      sync.Mutex
	orders  map[[2]string]uint64 // by op and end
	changes uint64
}

// ordered counts one order. What another node calls it is no label of ours.
func (c *copyCounts) ordered(op cluster.CopyOp, a orderAnswer) {
	end := "done"
	switch {
	case a.Refused:
		end = "refused"
	case a.Error != "":
		end = "failed"
	}
	if !slices.Contains(knownCopyOps, op) {
		op = "unknown"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orders == nil {
		c.orders = map[[2]string]uint64{}
	}
	c.orders[[2]string{string(op), end}]++
}

// changed counts changes without an order.
func (c *copyCounts) changed(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes += uint64(n)
}

// now are the counts.
func (c *copyCounts) now() (orders map[[2]string]uint64, changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.orders), c.changes
}
