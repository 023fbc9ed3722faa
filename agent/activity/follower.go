package activity

import (
	"context"
	"errors"
	"fmt"

	"pvc.internal/cluster"
)

// requests are the commands of other nodes that were carried out here, the
// latest of them.
type requests struct {
	seen  map[string]bool
	order []string
}

// maxRequests bounds how many are remembered. A copy of an older one is refused
// by its lease, or does again what has no other effect than the first time.
const maxRequests = 4096

// take notes a request; it reports false for one that is known.
func (q *requests) take(id string) bool {
	if q.seen[id] {
		return false
	}
	if q.seen == nil {
		q.seen = map[string]bool{}
	}
	if q.seen[id], q.order = true, append(q.order, id); len(q.order) > maxRequests {
		delete(q.seen, q.order[0])
		q.order = q.order[1:]
	}
	return true
}

// errSuperseded says that a later call told of another leader.
var errSuperseded = errors.New("another leader was told of meanwhile")

// Follower tells whom this node is about to serve, before it answers him; zero
// for nobody. It returns once nothing runs any more that was another's: work for
// another leader and, if this node is a leader whose own lease goes to somebody
// else now, what counted on that. With an error the node must not be granted;
// nobody's work begins then.
func (m *Manager) Follower(ctx context.Context, id cluster.NodeLeaseID) error {
	return m.Follow(id)(ctx)
}

// Follow is the half of Follower that does not wait: what is called after it, an
// EndFollower above all, comes after it. The function that it returns is the other.
func (m *Manager) Follow(id cluster.NodeLeaseID) (settled func(context.Context) error) {
	m.mu.Lock()
	if m.served == id && m.granting == id {
		m.mu.Unlock()
		return func(context.Context) error { return nil }
	}
	m.grant++
	turn := m.grant
	m.granting, m.served = id, cluster.NodeLeaseID{}
	m.endWhatDoesNotHold(nil)
	m.mu.Unlock()
	m.tell()
	return func(ctx context.Context) error {
		if err := m.Settled(ctx); err != nil {
			return fmt.Errorf("serve %s: %w", id, err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.grant != turn {
			return fmt.Errorf("serve %s: %w", id, errSuperseded)
		}
		m.served = id
		m.wake()
		return nil
	}
}

// EndFollower ends the work for one leader, or for whomever where id is zero, and
// returns once it is gone: nobody else is served before. It may be called again
// meanwhile. The error names what is still there when ctx ends.
func (m *Manager) EndFollower(ctx context.Context, id cluster.NodeLeaseID) error {
	m.mu.Lock()
	if m.granting == id || id.IsZero() {
		m.grant++
		m.granting, m.served = cluster.NodeLeaseID{}, cluster.NodeLeaseID{}
	}
	for _, a := range m.all {
		if worksFor(a, id) {
			m.lose(a, cluster.ErrNodeLeaseLost)
		}
	}
	m.wake()
	m.mu.Unlock()
	m.tell()
	return m.until(ctx, "the lease of "+id.String(), func(a *Activity) bool { return worksFor(a, id) })
}

// worksFor reports whether it is that leader's work here; anybody's where id is
// zero. mu is held.
func worksFor(a *Activity, id cluster.NodeLeaseID) bool {
	return isFollower(a.quorum) && (a.lease == id || id.IsZero()) && (a.state == cluster.ActivityRunning || a.state == cluster.ActivityEnding)
}

// RunRemote runs what another node's activity ordered here, as work for the
// leader that this node serves: under the token's lease, in its root's domain,
// and unsafe if that is. The token's epoch is durable as seen before anything
// happens. A second copy of a
// command is refused, whatever became of the first.
func (m *Manager) RunRemote(ctx context.Context, w cluster.TokenWire, s Spec, body Body) error {
	if err := w.Valid(); err != nil {
		return m.refuseOrder(s, refuse(cluster.RefuseActivitySpec, "%v", err))
	}
	if m.c.Granter == nil {
		return m.refuseOrder(s, refuse(cluster.RefuseNoLease, "%s grants no lease, so that it takes no orders", m.c.Self))
	}
	if err := m.c.Granter.SawEpoch(ctx, w.Lease.Epoch); err != nil {
		return fmt.Errorf("activity %s, ordered by %s: %w", s.Name, w.Lease, err)
	}
	if current := m.c.Granter.Current(); current != w.Lease {
		return m.refuseOrder(s, refuse(cluster.RefuseNoLease, "its token is of the lease of %s, %s serves %s", w.Lease, m.c.Self, current))
	}
	m.mu.Lock()
	fresh := m.requests.take(w.Request)
	m.mu.Unlock()
	if !fresh {
		return m.refuseOrder(s, refuse(cluster.RefuseReplayed, "the request %s was received already; whoever tries again asks anew", w.Request))
	}
	s.Quorum, s.Unsafe, s.Urgency = cluster.Follower(), s.Unsafe || w.Unsafe, Ordinary
	return m.run(&Activity{spec: s, ctx: ctx, above: w.Activity, root: w.Root, child: true, lease: w.Lease}, body)
}

// refuseOrder counts and returns the refusal of an order that never became an
// activity.
func (m *Manager) refuseOrder(s Spec, r *cluster.Refusal) error {
	m.mu.Lock()
	m.counts.Refused[r.Code]++
	m.mu.Unlock()
	return &cluster.RefusedActivity{Name: s.Name, Refusal: *r}
}
