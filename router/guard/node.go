package guard

import (
	"fmt"

	"pvc.internal/cluster"
)

// nodeRight is the node's own right to protected work, and to be fed. Its fields
// are Guard.mu's.
//
//	never begun ──Begin──▶ held ──Extend──▶ held
//	                        │ ▲ Begin
//	              deadline, │ │
//	              End       ▼ │
//	                       over: nothing protected is here, nor begun
type nodeRight struct {
	until cluster.Instant // the last deadline, passed or not; Never: never begun in this boot
	// missed: the right ended with something protected here and nobody has
	// decided on the feeding since: all may be gone by then.
	missed bool
	ended  cluster.Instant // when, of missed
}

// protected reports whether the role is what must not outlive the node's right:
// primary, or protected work. A fence attempt is none, it has its own deadline.
func (r *role) protected() bool {
	return r.owner == cluster.OwnerPrimary || r.owner == cluster.OwnerNode && len(r.services) > 0
}

// endNow marks the role ended, and with the node's right the primary role, and
// appends what stopEffects is to be called with. The caller holds mu. On the
// alarm's thread the list has room.
func (g *Guard) endNow(list []*ending, r *role, cause string) []*ending {
	if r.owner != cluster.OwnerNode {
		return append(list, g.markEnded(r, cause))
	}
	lapse := r.protected()
	list = append(list, g.markEnded(r, cause))
	r.end.lapse = true
	if p := g.roles[cluster.OwnerPrimary]; p != nil {
		list = append(list, g.markEnded(p, "this node's own right has ended"))
		p.end.lapse, lapse = true, true
	}
	for _, e := range g.ending { // one that ended by itself just now
		lapse = lapse || e.role.protected()
	}
	g.node.until = min(g.node.until, g.clock.Now())
	if lapse && !g.node.missed {
		g.node.missed, g.node.ended = true, g.node.until
	}
	return list
}

// refusesPrimary reports why no primary role may begin: the node's own right
// comes first, what an earlier guard left of such a role may be what this one would
// start, and a machine that is to reset takes nothing. The caller holds mu.
func (g *Guard) refusesPrimary() error {
	n := g.roles[cluster.OwnerNode]
	switch held := n != nil && g.lives(n); {
	case !held && (g.node.until != cluster.Never || g.feeder != nil):
		return fmt.Errorf("begin role primary: this node's own deadline is over or was never set; begin owner %q first, on an acknowledged keepalive: %w",
			cluster.OwnerNode, cluster.ErrRefused)
	case g.heldByLeftovers(cluster.OwnerPrimary) != "":
		return fmt.Errorf("begin role primary: %s: %w", g.heldByLeftovers(cluster.OwnerPrimary), cluster.ErrRefused)
	}
	return g.feedingRefuses()
}

// feedingRefuses reports why this machine must take nothing because of its
// watchdog. The caller holds mu.
func (g *Guard) feedingRefuses() error {
	switch {
	case g.feeder == nil:
		return nil
	case g.feed.Mode == cluster.FeedStarving:
		return fmt.Errorf("begin role primary: this machine is about to reset: %s: %w", g.feed.Why, cluster.ErrRefused)
	case g.feed.Mode == cluster.FeedHolding || g.node.missed:
		return fmt.Errorf("begin role primary: what has ended here is still being verified gone: %w", cluster.ErrRefused)
	}
	return nil
}

// relinquish takes the agent's last word.
func (g *Guard) relinquish() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for o := range g.roles {
		if o != cluster.OwnerNode || g.roles[o].protected() {
			return fmt.Errorf("relinquish: role %s is still held: end it first: %w", o, cluster.ErrRefused)
		}
	}
	if what := g.unverified(); what != "" {
		return fmt.Errorf("relinquish: %s is not verified gone: %w", what, cluster.ErrRefused)
	}
	g.relinquished = true
	g.record()
	return nil
}

// unverified names something that was to end and is not verified gone; empty:
// nothing. The caller holds mu.
func (g *Guard) unverified() string {
	what := g.leftovers
	for _, e := range g.ending {
		if text := e.role.name(); what == "" || text < what {
			what = text
		}
	}
	return what
}

func (r *role) name() string { return fmt.Sprintf("role %s (epoch %d)", r.owner, r.epoch) }

// feedInput is what the feeding of the watchdog is decided by. It is asked once
// for each decision: what was missed since the last one it tells once.
//
// What ends with the node's right is not overdue but here without a right: a
// machine that lost its right is judged by that, even where all was gone before
// anybody looked.
func (g *Guard) feedInput() cluster.FeedInput {
	g.mu.Lock()
	defer g.mu.Unlock()
	in := cluster.FeedInput{PromisesUntil: g.node.until, OrderlyRelinquished: g.relinquished && g.closed}
	for _, r := range g.roles {
		in.ProtectedWork = in.ProtectedWork || r.protected()
	}
	for _, e := range g.ending {
		in.ProtectedWork = in.ProtectedWork || e.role.protected()
		if text := e.role.name(); !e.lapse && (in.Overdue == "" || text < in.Overdue) {
			in.Overdue = text
		}
	}
	switch {
	case g.leftovers == "":
	case g.leftByLapse:
		in.ProtectedWork = true
	default:
		in.Overdue = g.leftovers
	}
	// Nothing of ours comes but by a role: what the books do not have and the
	// first look did not find is not there.
	in.EffectsVerifiedGone = !in.ProtectedWork && g.looked.Load()
	if g.node.missed {
		g.node.missed = false
		in.ProtectedWork, in.EffectsVerifiedGone, in.PromisesUntil = true, false, g.node.ended
	}
	return in
}

// feedUntil is until when a feeding is right: Forever with nothing protected
// here. Unlike feedInput it takes nothing away, so that it may be asked between
// a decision and its effect, and after that; what was missed by the last
// decision tells it, too.
func (g *Guard) feedUntil() cluster.Instant {
	g.mu.Lock()
	defer g.mu.Unlock()
	here := !g.looked.Load() || g.leftovers != "" && g.leftByLapse
	for _, r := range g.roles {
		here = here || r.protected()
	}
	for _, e := range g.ending {
		here = here || e.role.protected()
	}
	switch {
	case g.node.missed:
		return g.node.ended
	case here:
		return g.node.until
	}
	return cluster.Forever
}

// setFeed takes the state of the feeding over, and writes it down where more
// than the last feeding changed.
func (g *Guard) setFeed(s cluster.FeedState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.feed
	g.feed = s
	before.Fed = s.Fed
	if before != s {
		g.record()
	}
}
