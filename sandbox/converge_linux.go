package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// WaitConverged waits until every node that has power runs, one coordinator is
// primary and answers for every floating address, and nothing is under way.
// The error says what is missing.
func (s *Sandbox) WaitConverged(ctx context.Context) error {
	if s.store == nil {
		return errors.New("this sandbox has no daemons that could converge")
	}
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	began := time.Now()
	if err := s.store.wait(ctx, func(snap *cluster.Snapshot) error { return s.unconverged(snap) }); err != nil {
		return fmt.Errorf("not converged after %.1f s: %w", time.Since(began).Seconds(), err)
	}
	return nil
}

// unconverged says all that is missing to a cluster at rest; nil if nothing.
func (s *Sandbox) unconverged(snap *cluster.Snapshot) error {
	var missing []string
	add := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	lease := snap.Lease
	switch {
	case !snap.Live:
		add("the sandbox's own ZooKeeper session is not live")
	case !lease.Present || lease.Value.Released():
		add("nobody holds the primary role")
	case now().Sub(lease.SeenAt) > lease.Value.TTL():
		add("the lease of %s has expired", lease.Value.Holder)
	}
	if t := snap.Transition; t.Present && t.Value.Running() {
		add("a hand-over from %q to %s is in phase %s", t.Value.From, t.Value.To, t.Value.Phase)
	}
	for _, n := range s.nodes {
		missing = append(missing, nodeUnconverged(n, snap)...)
	}
	if holder := s.Node(lease.Value.Holder); len(missing) == 0 && holder != nil {
		for i, a := range FloatingAddresses() {
			if !s.prober.log.answersNow(i, holder.Plan.Index) {
				add("%s does not answer for %s", holder.Plan.Name, a.Name)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return errors.New(strings.Join(missing, "; "))
}

func nodeUnconverged(n *Node, snap *cluster.Snapshot) []string {
	name := n.Plan.Name
	if !n.Powered() {
		return []string{fmt.Sprintf("%s is powered off", name)}
	}
	view, ok := snap.Nodes[name]
	if !ok {
		return []string{fmt.Sprintf("%s has not registered", name)}
	}
	var missing []string
	if view.Daemon.Value != cluster.DaemonRun || !view.Alive.Present {
		missing = append(missing, fmt.Sprintf("%s is in state %q (alive record: %v)", name, view.Daemon.Value, view.Alive.Present))
	}
	want := cluster.RouterSecondary
	switch {
	case n.Plan.Mode == cluster.Hypervisor:
		want = cluster.RouterClient
	case snap.Lease.Value.Holder == name:
		want = cluster.RouterPrimary
	}
	if view.Router.Value != want {
		missing = append(missing, fmt.Sprintf("%s is %q, not %q", name, view.Router.Value, want))
	}
	if f := view.Fence; f.Present && !f.Value.Ended() {
		missing = append(missing, fmt.Sprintf("the fence of %s is in stage %s", name, f.Value.Stage))
	}
	return missing
}

// answersNow reports whether the node has just answered for the address.
func (l *roundLog) answersNow(addr, node int) bool {
	return now().Sub(cluster.Instant(l.latest[addr][node].Load())) <= runGap
}

// primary is the node that holds the role now.
func (s *Sandbox) primary() (*Node, error) {
	if n := s.Node(s.holder()); n != nil {
		return n, nil
	}
	return nil, errors.New("nobody holds the primary role")
}

// wish writes primary_node, as an operator's or a foreign tool's write would.
func (s *Sandbox) wish(ctx context.Context, value string) error {
	for {
		snap, err := s.store.Refresh(ctx)
		if err != nil {
			return fmt.Errorf("read primary_node: %w", err)
		}
		key := cluster.Key{Kind: cluster.KeyPrimaryNode}
		res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.wish", Ops: []cluster.Op{cluster.Put(key, snap.PrimaryNode, value)}})
		if res.Outcome == cluster.OutcomeOK {
			return nil
		}
		if res.Outcome != cluster.OutcomeConflict || ctx.Err() != nil {
			return fmt.Errorf("write primary_node: %s: %w", res.Outcome, res.Err)
		}
	}
}

// resetBudget lets the next fault be fenced, whatever the earlier ones cost.
func (s *Sandbox) resetBudget(ctx context.Context) error {
	snap, err := s.store.Refresh(ctx)
	if err != nil {
		return fmt.Errorf("read the failover settings: %w", err)
	}
	want := cluster.DefaultFailoverSettings()
	want.MaxCount = 100
	if snap.Failover.Present && snap.Failover.Value == want {
		return nil
	}
	key := cluster.Key{Kind: cluster.KeyFailover}
	res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.budget", Ops: []cluster.Op{cluster.Put(key, snap.Failover, want)}})
	if res.Outcome != cluster.OutcomeOK {
		return fmt.Errorf("write the failover settings: %s: %w", res.Outcome, res.Err)
	}
	return nil
}

// movePrimary brings the role to the node and waits until the cluster rests.
func (s *Sandbox) movePrimary(ctx context.Context, to *Node) error {
	if s.holder() == to.Plan.Name {
		return nil
	}
	if err := s.wish(ctx, string(to.Plan.Name)); err != nil {
		return err
	}
	if err := s.waitHolder(ctx, 15*time.Second, func(holder cluster.NodeID) bool { return holder == to.Plan.Name }); err != nil {
		return fmt.Errorf("bring the role to %s: %w", to.Plan.Name, err)
	}
	return s.WaitConverged(ctx)
}

// waitHolder waits until the lease's holder satisfies ok and is primary.
func (s *Sandbox) waitHolder(ctx context.Context, limit time.Duration, ok func(cluster.NodeID) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.store.wait(ctx, func(snap *cluster.Snapshot) error {
		holder := snap.Lease.Value.Holder
		if holder == "" || !ok(holder) {
			return fmt.Errorf("the lease is held by %q", holder)
		}
		if r := snap.Nodes[holder].Router.Value; r != cluster.RouterPrimary {
			return fmt.Errorf("%s holds the lease but is %q", holder, r)
		}
		return nil
	})
}
