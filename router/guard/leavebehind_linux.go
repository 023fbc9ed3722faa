package guard

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// leaveBehind ends the ending of a node's right of which nothing runs any more, and
// only Stops have not succeeded yet: what they are to take down goes to the leftovers,
// as it would with a guard that is started anew, so that the right may begin again.
// It reports whether it did.
//
// Nothing runs twice by that (I4): each copy's processes are verified dead, nothing of
// the role is being started, and a start of the very same copy waits for its Stop, or is
// refused. Whoever asks whether the right has ended goes on waiting for the leftovers,
// the machine is not fed for longer than before, and what is left is held, and said.
func (g *Guard) leaveBehind(e *ending) bool {
	if e.role.owner != cluster.OwnerNode || g.clock.Now().Sub(e.begun) < g.cfg.Grace || !e.role.idle(g.cfg.Tick) {
		return false
	}
	var left []*service
	for _, s := range e.role.services {
		switch dead, down := s.onlyItsStop(g); {
		case !dead:
			return false
		case !down:
			left = append(left, s)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// What was left otherwise is overdue, and is to stay so.
	if len(left) == 0 || g.closed || g.leftovers != "" && !g.leftByLapse {
		return false
	}
	h := e.role.held()
	h.Services = nil
	for _, s := range left {
		h.Services = append(h.Services, s.held())
		g.rest.why[s.spec.Name] = fmt.Sprintf("end service %s: its stop has not succeeded yet", s.spec.Name)
		g.work.Go(func() { g.endBehind(s) })
	}
	g.expired = append(g.expired[:len(g.expired):len(g.expired)], h)
	g.leftovers, g.leftByLapse = unverifiedLeftovers, true
	delete(g.ending, e.role.owner)
	g.record()
	g.feeder.poke()
	return true
}

// onlyItsStop reports whether nothing runs of a service, but for its Stop, and whether
// that has succeeded. Of what has none it is the same.
func (s *service) onlyItsStop(g *Guard) (dead, down bool) {
	if s.act == nil {
		gone := s.verifyGone(g, g.cfg.Tick) == nil
		return gone, gone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.act.gone || s.act.procs == nil || s.act.procs.Gone(), s.act.gone
}

// endBehind goes on with the Stop of a service that was left behind, until it succeeds
// or this guard ends, whose successor goes on then.
func (g *Guard) endBehind(s *service) {
	told := ""
	for {
		err := s.verifyGone(g, g.cfg.Tick)
		if err == nil || err.Error() != told {
			g.tellLeft(s.spec.Name, err, func() { g.forgetLeft(cluster.OwnerNode, s.spec.Name) })
		}
		if err == nil {
			g.log.Info("what was left behind is taken down", zap.String("service", s.spec.Name))
			return
		}
		told = err.Error()
		g.mu.Lock()
		closed := g.closed
		g.mu.Unlock()
		if closed {
			return
		}
		time.Sleep(g.cfg.Tick)
	}
}
