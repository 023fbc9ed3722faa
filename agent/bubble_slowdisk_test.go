package agent_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// diskGuard writes epochs to a disk that is slow: as the guard does it, ahead of time
// for a pre-flight that names one, else within Begin. What was begun goes on by its
// old deadline meanwhile.
type diskGuard struct {
	agent.Guard
	takes   *atomic.Int64 // nanoseconds that a write takes
	written *atomic.Uint64
}

func (g diskGuard) write(ctx context.Context, e cluster.Epoch) error {
	if e <= cluster.Epoch(g.written.Load()) {
		return nil
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Duration(g.takes.Load())):
	}
	g.written.Store(uint64(e))
	return nil
}

func (g diskGuard) Preflight(ctx context.Context, r cluster.PreflightRequest) (cluster.PreflightResult, error) {
	if err := g.write(ctx, r.Epoch); err != nil {
		return cluster.PreflightResult{}, err
	}
	return g.Guard.Preflight(ctx, r)
}

func (g diskGuard) Begin(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if d.Owner == cluster.OwnerPrimary {
		if err := g.write(ctx, d.Epoch); err != nil {
			return err
		}
	}
	return g.Guard.Begin(ctx, t, d)
}

// A daemon that is replaced in maintenance goes on as primary where its guard's disk
// needs longer for an epoch than a lease lasts (I9).
func TestAnUpgradeKeepsTheRoleOnASlowDisk(t *testing.T) {
	t.Parallel()
	o, takes, written := threeNodes(), new(atomic.Int64), map[cluster.NodeID]*atomic.Uint64{}
	for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
		written[n] = new(atomic.Uint64)
	}
	o.tune = func(c *agent.Config, d *agent.Deps) {
		d.Guard = diskGuard{Guard: d.Guard, takes: takes, written: written[c.Node]}
	}
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		b.store.Set(maintenancePath, []byte("true"))
		time.Sleep(time.Second)
		takes.Store(int64(5 * time.Second))
		gaps, starts := b.seen.counts()
		for range 3 {
			b.nodes["hv1"].stop()
			b.eventually(5*time.Second, "the daemon has ended", b.nodes["hv1"].ended)
			b.start("hv1")
			b.always(30*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
		}
		takes.Store(0)
		b.store.Set(maintenancePath, []byte("false"))
		if p := b.settles(20 * time.Second); p != "hv1" {
			b.t.Errorf("%s is primary", p)
		}
		if g, s := b.seen.counts(); g != gaps || s != starts {
			b.t.Errorf("%d gaps and %d service starts, want none", g-gaps, s-starts)
		}
	})
}
