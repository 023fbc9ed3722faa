package lease

import (
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// request answers one question.
func (s *stepping) request(in Input) {
	g, r := &s.g, in.Request
	if code, why := g.unfit(in); code != "" {
		s.refuse(in.Ticket, r.N, code, 0, why)
		return
	}
	s.seen(r)
	switch {
	case r.Op == cluster.LeaseAbolish && g.serves(r.ID) && r.ID == g.last && r.N > g.n: // also when its successor was seen already
		s.abolish(in.Ticket, r)
	case r.ID.Epoch < g.epoch:
		s.refuse(in.Ticket, r.N, cluster.RefuseLeaseStale, 0, fmt.Sprintf("epoch %d was seen at node %s: %s is not the primary any more", g.epoch, g.epochOf, r.ID))
	case r.ID.Holder != g.epochOf:
		s.refuse(in.Ticket, r.N, cluster.RefuseLeaseStale, 0, fmt.Sprintf("epoch %d is node %s's, not %s's", g.epoch, g.epochOf, r.ID.Holder))
	case r.ID == g.last && (r.N < g.n || (r.N == g.n && !g.serves(r.ID))):
		g.counters.Replayed++
		s.refuse(in.Ticket, r.N, cluster.RefuseLeaseReplayed, 0, fmt.Sprintf("question %d was answered already", g.n))
	case r.Op == cluster.LeaseAbolish:
		s.abolish(in.Ticket, r)
	case g.state == StateExpiring && g.holder == r.ID:
		s.refuse(in.Ticket, r.N, cluster.RefuseLeaseLost, g.c.Retry, "the lease has ended, and its work is being ended")
	case g.state == StateExpiring:
		g.waiter = later(g.waiter, r.ID)
		s.refuse(in.Ticket, r.N, cluster.RefuseLeaseAcquired, g.c.Retry, fmt.Sprintf("the work of %s is being ended", who(g.holder)))
	case g.state == StateActive && g.holder != r.ID:
		g.waiter = later(g.waiter, r.ID)
		s.refuse(in.Ticket, r.N, cluster.RefuseLeaseAcquired, g.deadline.Sub(s.now), fmt.Sprintf("%s is served", who(g.holder)))
	case g.state == StateActive:
		s.extend(in.Ticket, r)
	case r.Op == cluster.LeaseExtend:
		g.last, g.n = r.ID, r.N
		s.refuse(in.Ticket, r.N, cluster.RefuseLeaseLost, 0, "nobody is served here")
	default:
		s.grant(in.Ticket, r)
	}
}

// unfit says why a question is not considered at all.
func (g Granter) unfit(in Input) (cluster.RefusalCode, string) {
	switch {
	case g.leaving:
		return cluster.RefuseLeaseMember, fmt.Sprintf("node %s leaves the cluster, or has left it", g.c.Node)
	case g.state == StateUnstarted || g.state == StateStopped:
		return cluster.RefuseLeaseStopping, fmt.Sprintf("the daemon of node %s is %s", g.c.Node, g.state)
	case in.Request.Valid() != nil:
		return cluster.RefuseLeaseMalformed, in.Request.Valid().Error()
	case in.From != in.Request.ID.Holder:
		return cluster.RefuseLeaseMalformed, fmt.Sprintf("node %.64q asks for %.64q", in.From, in.Request.ID.Holder)
	case !in.Member:
		return cluster.RefuseLeaseMember, fmt.Sprintf("node %s asks and is no member of the cluster, as %s knows it", in.From, g.c.Node)
	}
	return "", ""
}

// who names a holder for people; the zero one is of a file that was unreadable.
func who(id cluster.NodeLeaseID) string {
	if id.IsZero() {
		return "somebody whom an unreadable lease file does not name"
	}
	return id.String()
}

// serves reports whether the id's lease runs.
func (g Granter) serves(id cluster.NodeLeaseID) bool { return g.state == StateActive && g.holder == id }

// later returns who of two that wait is told: the newer epoch, or the newer.
func later(a, b cluster.NodeLeaseID) cluster.NodeLeaseID {
	if a.Epoch > b.Epoch {
		return a
	}
	return b
}

// seen keeps the largest epoch (I2). Whoever is served under an older one is not
// extended any more, so that its successor waits for one period at most.
func (s *stepping) seen(r cluster.NodeLeaseRequest) {
	g := &s.g
	if r.ID.Epoch < g.epoch || (r.ID.Epoch == g.epoch && g.epochOf != "") {
		return
	}
	g.epoch, g.epochOf = r.ID.Epoch, r.ID.Holder
	if g.state == StateActive && g.holder.Epoch < r.ID.Epoch {
		g.counters.Displaced++
	}
	if g.state != StateNone || r.Op != cluster.LeaseGrant { // a grant writes it itself
		s.save()
	}
}

// abolish ends the lease of who asks for that.
func (s *stepping) abolish(ticket uint64, r cluster.NodeLeaseRequest) {
	g := &s.g
	switch {
	case g.serves(r.ID) && r.ID != g.last: // restored: it may be a late copy, older than what the holder was told since
		g.counters.Replayed++
		s.refuse(ticket, r.N, cluster.RefuseLeaseReplayed, 0, "this node's daemon has started since the lease was given, and does not know which question was the last")
	case g.serves(r.ID):
		g.last, g.n = r.ID, r.N
		g.counters.Released++
		s.expire("its holder gave it back")
		s.answer(ticket, cluster.NodeLeaseAnswer{N: r.N})
	case g.state == StateActive:
		s.refuse(ticket, r.N, cluster.RefuseLeaseAcquired, 0, fmt.Sprintf("%s is served, whose lease this is not", who(g.holder)))
	default: // none of it is left, or soon
		g.last, g.n = r.ID, r.N
		s.answer(ticket, cluster.NodeLeaseAnswer{N: r.N})
	}
}

// grant begins to serve. The order is binding: the activity manager, the timer,
// the disk; the reply follows when that is done.
func (s *stepping) grant(ticket uint64, r cluster.NodeLeaseRequest) {
	g := &s.g
	g.state, g.holder, g.waiter = StateActive, r.ID, cluster.NodeLeaseID{}
	g.period, g.began = g.c.Period, cluster.Never
	g.pending = pendingGrant{first: true}
	s.acquire(r)
	s.do(Effect{Kind: EffectServe, Lease: r.ID, Until: g.deadline})
	s.arm()
	s.kept(ticket, r.N)
}

// extend goes on serving. A copy of the newest question gets the answer again
// and moves nothing.
func (s *stepping) extend(ticket uint64, r cluster.NodeLeaseRequest) {
	g := &s.g
	if r.ID == g.last && r.N == g.n {
		g.counters.Replayed++
		if g.pending.count > 0 {
			s.wait(ticket, r.N)
			return
		}
		s.yes(ticket, r.N)
		return
	}
	if g.pending.count == 0 {
		g.pending = pendingGrant{before: g.deadline}
	}
	s.acquire(r)
	s.arm()
	s.kept(ticket, r.N)
}

// acquire counts the period anew from now.
func (s *stepping) acquire(r cluster.NodeLeaseRequest) {
	g := &s.g
	g.last, g.n = r.ID, r.N
	g.deadline, g.acquired = s.now.Add(g.period), s.now
	if g.began.IsZero() {
		g.chain++
		g.began = s.now
	}
}

// kept answers when the file says who is served: at once where it does already.
func (s *stepping) kept(ticket, n uint64) {
	if s.g.saved() {
		s.g.counters.Extended++
		s.yes(ticket, n)
		return
	}
	s.save()
	s.wait(ticket, n)
}

// wait leaves the answer to the disk.
func (s *stepping) wait(ticket, n uint64) {
	p := &s.g.pending
	if p.count == len(p.asked) {
		s.refuse(ticket, n, cluster.RefuseLeaseBusy, s.g.c.Retry, "the disk has not answered earlier questions yet")
		return
	}
	p.asked[p.count] = struct{ ticket, n uint64 }{ticket, n}
	p.count++
}

// yes tells the holder what it has: never more than what is left now.
func (s *stepping) yes(ticket, n uint64) {
	g := s.g
	if g.state != StateActive || !s.now.Before(g.deadline) {
		s.refuse(ticket, n, cluster.RefuseLeaseLost, g.c.Retry, "the lease has ended meanwhile")
		return
	}
	a := cluster.NodeLeaseAnswer{N: n, Left: g.deadline.Sub(s.now)}
	if !g.began.IsZero() {
		a.Chain, a.Held = fmt.Sprintf("%s.%d", g.c.Start, g.chain), g.acquired.Sub(g.began)
	}
	s.answer(ticket, a)
}

func (s *stepping) refuse(ticket, n uint64, code cluster.RefusalCode, left time.Duration, why string) {
	s.g.counters.Refused++
	s.answer(ticket, cluster.NodeLeaseAnswer{N: n, Code: code, Left: max(0, left), Detail: why})
}

func (s *stepping) answer(ticket uint64, a cluster.NodeLeaseAnswer) {
	a.Epoch = s.g.epoch
	s.do(Effect{Kind: EffectReply, Ticket: ticket, Answer: a})
}
