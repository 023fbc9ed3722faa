package activity

import (
	"context"
	"fmt"

	"pvc.internal/cluster"
)

// Right is what a role of this node, or its own protected work, acts by: the one
// activity that is not admitted here, since the lock, the lease and the guard
// decide about it, and that is not listed, since a switch is to write nothing
// more. Its tokens are those of its owner and epoch:
//
//	Hold ──► alive ──► over: its context has ended, its deadline has passed,
//	           │ ▲           or the same owner's next right has begun
//	           └─┘ Extend
//
// All methods may be called from several goroutines; those of nil are of nothing.
type Right struct {
	m   *Manager
	ctx context.Context
	of  cluster.RoleDeadline // its owner and epoch

	until cluster.Instant // m.mu guards it
}

// Hold begins the right to the effects of the deadline's owner, at its epoch and
// until its instant, and ends the one that this owner had before. It lasts no
// longer than ctx. It neither waits nor tells anybody: a role's addresses are
// silent meanwhile.
func (m *Manager) Hold(ctx context.Context, d cluster.RoleDeadline) *Right {
	r := &Right{m: m, ctx: ctx, of: d, until: d.Deadline}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rights == nil {
		m.rights = map[cluster.DeadlineOwner]*Right{}
	}
	m.rights[d.Owner] = r
	return r
}

// Extend moves the deadline, either way.
func (r *Right) Extend(until cluster.Instant) {
	if r == nil {
		return
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.until = until
}

// Token is the right as an order to the guard carries it. It is no order to
// another node: it names no start of a leader, so that it has no wire form.
func (r *Right) Token() cluster.Token {
	if r == nil {
		return cluster.Token{}
	}
	id := cluster.ActivityID(fmt.Sprintf("%s-%d", r.of.Owner, r.of.Epoch))
	lease := cluster.NodeLeaseID{Holder: r.m.c.Self, Epoch: r.of.Epoch}
	return cluster.MintToken(cluster.NewTokenWire(lease, id, id, false), r.live)
}

// live returns nil at an instant at which the owner may have effects.
func (r *Right) live() error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	if r.m.c.Clock == nil {
		return fmt.Errorf("nobody tells the time of its deadline: %w", cluster.ErrDeadline)
	}
	r.m.mu.Lock()
	newest, until := r.m.rights[r.of.Owner], r.until
	r.m.mu.Unlock()
	if newest != r {
		return fmt.Errorf("epoch %d of %s has been followed by epoch %d: %w", r.of.Epoch, r.of.Owner, newest.of.Epoch, cluster.ErrStaleEpoch)
	}
	if now := r.m.c.Clock.Now(); !now.Before(until) {
		return fmt.Errorf("its deadline has passed %s ago: %w", now.Sub(until), cluster.ErrDeadline)
	}
	return nil
}
