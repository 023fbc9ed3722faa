package collector

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Copies publishes which workloads have something here, as PVC's own daemons publish
// a node's virtual machines: active copies and replicas alike, one that is just being
// started again, and what has ended and left something.
type Copies struct {
	held func(ctx context.Context) ([]string, error)
	busy func() bool
	none atomic.Bool // nothing was here when it was last asked
}

// NewCopies makes the collector; held names the workloads, and busy reports whether
// one is being worked on, so that there may be another soon.
func NewCopies(held func(ctx context.Context) ([]string, error), busy func() bool) *Copies {
	return &Copies{held: held, busy: busy}
}

// restingInterval is how often a node is asked that has no copy: each question wakes
// its guard, too.
const restingInterval = 5 * time.Second

// Interval is how often is asked: each keepalive where something is here, may come, or
// is not known. Where nothing is, nothing comes but by an order, at whose end it is
// asked at once (agent.Collection.Renew).
func (c *Copies) Interval() time.Duration {
	if c.none.Load() && !c.busy() {
		return restingInterval
	}
	return 0
}

// Name implements agent.Collector.
func (*Copies) Name() string { return "copies" }

// Collect implements agent.Collector. Where it is not known what is here what was
// published stays.
func (c *Copies) Collect(ctx context.Context) (map[string]string, error) {
	names, err := c.held(ctx)
	c.none.Store(err == nil && len(names) == 0)
	if err != nil {
		return nil, err
	}
	names = slices.Sorted(slices.Values(names))
	return map[string]string{"runningdomains": strings.Join(names, " "), "domainscount": strconv.Itoa(len(names))}, nil
}
