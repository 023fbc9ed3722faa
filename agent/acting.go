package agent

import (
	"context"
	"crypto/rand"
	"fmt"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// acting ties the activities of this node to its role and to its node leases: as
// the leader to those that it holds, as a follower to the one that it has granted.
type acting struct {
	m    *activity.Manager
	self cluster.NodeID
	own  *granting // nil: node leases are not in use

	term cluster.Epoch // see lead
}

// Update implements LeaseHolder.
func (a *acting) Update(h LeaseHoldings) {
	for i, n := range h.Held { // first, so that none counts for longer than it is held (I3)
		a.m.Extend(n, h.Ends[i])
	}
	a.m.Update(activity.Holdings{Leader: h.Leader, Lease: h.Lease, Held: h.Held, Set: h.Set, Known: h.Known})
}

// Settled implements LeaseHolder.
func (a *acting) Settled(ctx context.Context) error { return a.m.Settled(ctx) }

// Serve implements LeaseFollower. The work of whoever was served before is dead
// by then (Revoke); what is waited for is what counted on this node's lease being
// its own, as the leader that it was. A Revoke that follows comes after it.
func (a *acting) Serve(id cluster.NodeLeaseID) (settled func(context.Context) error) {
	return a.m.Follow(id)
}

// Revoke implements LeaseFollower.
func (a *acting) Revoke(ctx context.Context, id cluster.NodeLeaseID) error {
	return a.m.EndFollower(ctx, id)
}

// Current implements activity.Granter. It is what the granter's own rule gives
// leave to at this instant: the holder of a lease that runs and is written down,
// unless a newer epoch has been seen here, whatever is left then (I2).
func (a *acting) Current() cluster.NodeLeaseID {
	if a.own == nil {
		return cluster.NodeLeaseID{}
	}
	if v := a.own.view(); !v.Pending && a.own.check(v.Holder).Code == "" {
		return v.Holder
	}
	return cluster.NodeLeaseID{}
}

// SawEpoch implements activity.Granter. An epoch is on disk with the lease that
// was granted under it; one that was granted none here gives no orders, and one
// that has been followed, none any more.
func (a *acting) SawEpoch(_ context.Context, e cluster.Epoch) error {
	var seen cluster.Epoch
	if a.own != nil {
		seen = a.own.view().Epoch
	}
	switch current := a.Current().Epoch; {
	case e == current && e != 0:
		return nil
	case e < current:
		return fmt.Errorf("an order of epoch %d, where node %s serves epoch %d: %w", e, a.self, current, cluster.ErrStaleEpoch)
	case e < seen:
		return fmt.Errorf("an order of epoch %d, where node %s has seen epoch %d: %w", e, a.self, seen, cluster.ErrStaleEpoch)
	}
	return fmt.Errorf("an order of epoch %d, which node %s has granted no lease: %w", e, a.self, cluster.ErrRefused)
}

// lead is told the role's state by the decider after each of its steps. Where
// node leases are not in use the leader's own word is the whole quorum, and the
// role's epoch and deadline are all that keeps two leaders' work apart.
func (a *acting) lead(s role.State) {
	epoch, deadline, _ := s.Holds()
	if s.Leads() {
		a.m.ExtendRole(deadline)
	}
	switch {
	case a.own != nil: // Update tells
	case !s.Leads():
		if a.term != 0 {
			a.term = 0
			a.m.Update(activity.Holdings{})
		}
	case epoch != a.term:
		a.term = epoch
		only := []cluster.NodeID{a.self}
		a.m.Update(activity.Holdings{Leader: true, Lease: cluster.NodeLeaseID{Holder: a.self, Start: rand.Text(), Epoch: epoch}, Held: only, Set: only})
	}
}
