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
	return s.waitConverged(ctx, clusterTimeout)
}

func (s *Sandbox) waitConverged(ctx context.Context, limit time.Duration) error {
	if s.store == nil {
		return errors.New("this sandbox has no daemons that could converge")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	if err := s.store.wait(ctx, func(snap *cluster.Snapshot) error { return s.unconverged(snap) }); err != nil {
		return fmt.Errorf("not converged after %.1f s: %w", time.Since(began).Seconds(), err)
	}
	return nil
}

// rests waits for the cluster to come to rest after a fault and records whether
// it has.
func (s *Sandbox) rests(ctx context.Context, after string, limit time.Duration) error {
	err := s.waitConverged(ctx, limit)
	switch {
	case err == nil:
		s.history.Add(Entry{Kind: KindFault, Name: after, Text: stepRest})
	case ctx.Err() == nil: // nobody called it off
		s.history.Add(Entry{Kind: KindFault, Name: after, Text: stepUnrest, By: err.Error()})
	}
	return err
}

// Failsafe reports whether the present holder asks the others before it gives
// up for want of a store.
func (s *Sandbox) Failsafe() bool {
	snap := s.store.latest()
	return snap != nil && len(snap.Lease.Value.Coordinators) > 0
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
	if p := snap.PrimaryNode; p.Present && lease.Value.Holder != "" && p.Value != string(lease.Value.Holder) {
		add("primary_node is %q, the holder %s", p.Value, lease.Value.Holder)
	}
	if word := s.maintenance.Load(); word != nil && onOff(snap.Maintenance.Value) != *word {
		add("maintenance was set %s and is seen %s", *word, onOff(snap.Maintenance.Value))
	}
	if t := snap.Transition; t.Present && t.Value.Running() {
		add("a hand-over from %q to %s is in phase %s", t.Value.From, t.Value.To, t.Value.Phase)
	}
	for _, n := range s.nodes {
		missing = append(missing, nodeUnconverged(n, snap)...)
	}
	missing = append(missing, s.workloadsMissing(snap)...)
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
	if o := view.Order; o.Present && o.Err == nil {
		missing = append(missing, fmt.Sprintf("the order to %s %s is not answered", o.Value.Action, name))
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
			s.history.Add(Entry{Kind: KindIntent, Name: intentPrimary, Text: value})
			return nil
		}
		if res.Outcome != cluster.OutcomeConflict || ctx.Err() != nil {
			return fmt.Errorf("write primary_node: %s: %w", res.Outcome, res.Err)
		}
	}
}

// setMaintenance switches it, as the API would.
func (s *Sandbox) setMaintenance(ctx context.Context, on bool) error {
	record := cluster.MaintenanceRecord{Version: 1}
	if on {
		record = cluster.MaintenanceRecord{Version: 1, Owner: "sandbox", Reason: "a fault of the sandbox", SinceMS: time.Now().UnixMilli()}
	}
	for {
		snap, err := s.store.Refresh(ctx)
		if err != nil {
			return fmt.Errorf("read maintenance: %w", err)
		}
		res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.maintenance", Ops: []cluster.Op{
			cluster.Put(cluster.Key{Kind: cluster.KeyMaintenance}, snap.Maintenance, on),
			cluster.Put(cluster.Key{Kind: cluster.KeyMaintenanceRecord}, snap.MaintenanceRecord, record)}})
		if res.Outcome == cluster.OutcomeOK {
			word := onOff(on)
			s.maintenance.Store(&word)
			s.history.Add(Entry{Kind: KindIntent, Name: intentMaintenance, Text: word})
			return nil
		}
		if res.Outcome != cluster.OutcomeConflict || ctx.Err() != nil {
			return fmt.Errorf("write maintenance %s: %s: %w", onOff(on), res.Outcome, res.Err)
		}
	}
}

// orderFence orders a fence of the node's present start, as an operator would.
func (s *Sandbox) orderFence(ctx context.Context, n *Node, id string) error {
	snap, err := s.store.Refresh(ctx)
	if err != nil {
		return fmt.Errorf("read what is known of %s: %w", n.Plan.Name, err)
	}
	view := snap.Nodes[n.Plan.Name]
	key := cluster.Key{Kind: cluster.KeyFenceOrder, Node: n.Plan.Name}
	res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.order", Ops: []cluster.Op{cluster.Put(key, view.Order, cluster.FenceOrder{
		Version: 1, ID: id, Node: n.Plan.Name, Incarnation: view.Record.Value.Incarnation, Action: cluster.OrderFence,
		Reason: "a fault of the sandbox", By: "sandbox", UnixMS: time.Now().UnixMilli()})}})
	if res.Outcome != cluster.OutcomeOK {
		return fmt.Errorf("order a fence of %s: %s: %w", n.Plan.Name, res.Outcome, res.Err)
	}
	return nil
}

// storePatience is how long the sandbox's own link to the ensemble may be away:
// it is cut off like any client while a leader is elected.
const storePatience = 10 * time.Second

// resetBudget lets the next fault be fenced, whatever the earlier ones cost.
func (s *Sandbox) resetBudget(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	for {
		err := s.tryBudget(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Sandbox) tryBudget(ctx context.Context) error {
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
