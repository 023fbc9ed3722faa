package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// workloadTrouble is what happens to workloads.
func (s *Sandbox) workloadTrouble(m Move) (trouble, bool) {
	switch m.Trouble {
	case "redis-kill":
		return trouble{strike: func(_ context.Context, _ *Node) error {
			n, err := s.head(cacheName)
			if err != nil {
				return err
			}
			return s.signalRedis(n, s.redisPort(cacheName), unix.SIGKILL)
		}}, true
	case "move":
		return trouble{strike: func(ctx context.Context, n *Node) error {
			names := s.movable()
			if len(names) == 0 {
				return errNoWorkloads
			}
			name := names[int(m.At/time.Millisecond)%len(names)]
			return s.patient(ctx, func(ctx context.Context) error { return s.orderMove(ctx, name, n.Plan.Name) })
		}}, true
	case "drain":
		set := func(answer, wish cluster.DomainState) func(context.Context, *Node) error {
			return func(ctx context.Context, n *Node) error {
				return s.patient(ctx, func(ctx context.Context) error { return s.setDomain(ctx, n, answer, wish) })
			}
		}
		return trouble{set(cluster.DomainFlushed, cluster.DomainFlush), set(cluster.DomainReady, cluster.DomainUnflush)}, true
	}
	return trouble{}, false
}

// mendWorkloads has every node take workloads again, and those run whose starts
// have failed too often, as an operator would.
func (s *Sandbox) mendWorkloads(ctx context.Context) error {
	if !s.options.Workloads {
		return nil
	}
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, s.setDomain(ctx, n, cluster.DomainReady, cluster.DomainUnflush))
	}
	errs = append(errs, s.armReprovision(ctx))
	snap := s.store.latest()
	for _, name := range slices.Sorted(maps.Keys(snap.Workloads)) {
		w := snap.Workloads[name]
		if w.Err != nil || !w.Value.Wanted || w.Value.State != cluster.WorkloadFailed || w.Value.Request != nil {
			continue
		}
		errs = append(errs, s.changeWorkload(ctx, name, func(w *cluster.Workload) {
			w.Request = &cluster.WorkloadRequest{ID: fmt.Sprintf("sandbox-%d", now()), Op: cluster.WorkloadStart, By: "sandbox", AtMS: time.Now().UnixMilli()}
		}))
	}
	return errors.Join(errs...)
}

// wholeBeforeBout has all chains filled, as an operator does: in a bout that begins
// with one copy of a Redis nothing can be lost that was promised. That a cluster at
// rest cannot fill them is what chaos is to find.
func (s *Sandbox) wholeBeforeBout(ctx context.Context, b Bout, out *lines) error {
	if !s.options.Workloads {
		return nil
	}
	began := now()
	if err := s.MakeWhole(ctx); err != nil {
		return fmt.Errorf("before bout %d: the workloads do not have all their copies again: %w", b.Number, err)
	}
	if took := now().Sub(began); took > 2*time.Second {
		out.say("all copies are there again after %.1f s", took.Seconds())
	}
	return nil
}

// harmless are the troubles that end no Redis.
var harmless = []string{"switch", "maintenance", "move", "agent-kill", "agent-term", "bmc-unreachable", "bmc-lying", "bmc-password", "bmc-slow", "mgmt-cut"}

// fillBefore gives the Redis keys before a bout whose moves end one copy of it at
// most: then none may be lost. Of any other bout nothing is counted, since both
// copies may end in it.
func (s *Sandbox) fillBefore(ctx context.Context, b Bout) keys {
	w := s.store.latest().Workloads[cacheName]
	if !s.options.Workloads || !w.Present || w.Err != nil {
		return keys{}
	}
	if s.armReprovision(ctx) != nil {
		return keys{}
	}
	ends := 0
	for _, m := range b.Moves {
		switch {
		case m.Trouble == "redis-kill":
			ends++
		case m.Trouble == "drain" || m.Trouble == "store-stall":
			return keys{} // a drain takes a replica away, a stall ends all copies
		case !slices.Contains(harmless, m.Trouble) && slices.Contains(w.Value.Chain, s.nodes[m.Node].Plan.Name):
			return keys{}
		case m.Trouble == "zk-kill" || m.Trouble == "zk-stop" || m.Trouble == "zk-cut" || m.Trouble == "link-down" || m.Trouble == "power-loss":
			ends++ // with another one the store may be away, and with it every copy
		}
	}
	if ends > 1 {
		return keys{}
	}
	s.strikes++
	k, err := s.fillKeys(ctx, cacheName)
	if err != nil {
		return keys{}
	}
	return k
}

// countAfter counts them once the cluster rests.
func (s *Sandbox) countAfter(ctx context.Context, k keys, out *lines) error {
	if k.acked == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	if err := s.writable(ctx, k.workload); err != nil {
		return err
	}
	lost, err := s.lostKeys(ctx, k, true)
	out.say("%d of %d acknowledged keys lost", lost, k.acked)
	return err
}
