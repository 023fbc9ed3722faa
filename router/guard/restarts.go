package guard

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// startAgain starts a hook that has ended by itself once more, so long after its
// end, while its role lives and nobody stops it. What the earlier process has left
// is ended first: it would be nobody's else.
//
//	runs ──ends by itself──▶ waits (Restart) ──▶ its group verified empty ──▶ runs
//	                             └── quit, or the role's end ──▶ over
func (g *Guard) startAgain(r *role, s *service) {
	if s.spec.Restart == 0 || !s.await(true) {
		return
	}
	defer s.await(false)
	timer := time.NewTimer(s.spec.Restart)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-s.over:
			return
		case <-timer.C:
		}
		err := g.nextStart(r, s)
		if err == nil {
			return
		}
		s.mu.Lock()
		s.failure = err.Error()
		s.mu.Unlock()
		g.log.Warn("service not started again", zap.String("service", s.spec.Name), zap.Error(err))
		timer.Reset(max(s.spec.Restart, time.Second))
	}
}

// await notes whether the hook is about to be started again; false: it is not to be.
func (s *service) await(pending bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = pending && !s.stopping
	return s.pending
}

// nextStart ends what is left of the hook and starts it, unless its role has ended
// or it was stopped meanwhile. What cannot be killed (it hangs in the kernel) is an
// error after killLimit, and tried again with the next start: a stop waits for it no
// longer than that, and says then that it is not verified gone.
func (g *Guard) nextStart(r *role, s *service) error {
	s.again <- struct{}{} // whoever stops it has it for as long as that lasts
	defer func() { <-s.again }()
	s.mu.Lock()
	stopping := s.stopping
	s.mu.Unlock()
	if stopping { // it is said to be gone, maybe: not for a moment is it run again (I4)
		return nil
	}
	if err := g.awaitFree(r.ctx, s.spec); err != nil { // of one that ended while no guard watched it
		return err
	}
	if before := s.process(); before != nil {
		if err := stopWithin(before); err != nil {
			return fmt.Errorf("what it has left is not gone: %w", err)
		}
	}
	g.mu.Lock()
	if !g.lives(r) {
		g.mu.Unlock()
		return nil
	}
	r.busy.Add(1) // the end waits until this is in the books, or dead
	g.mu.Unlock()
	defer r.busy.Done()
	next, err := startHook(s.spec, g.cfg.SlicePath)
	if err != nil {
		return err
	}
	g.mu.Lock()
	s.mu.Lock()
	entered := g.lives(r) && !s.stopping
	if entered {
		s.main, s.failure, s.pending = next, "", false
		s.starts++
	}
	starts := s.starts
	s.mu.Unlock()
	if entered {
		g.record()
		g.watch(r, s)
	}
	g.mu.Unlock()
	if !entered {
		return stopWithin(next)
	}
	g.log.Info("service restarted", zap.String("service", s.spec.Name), zap.Int("starts", starts))
	g.hub.push(cluster.GuardEvent{Kind: "service_restarted", Owner: r.owner, Epoch: r.epoch, Name: s.spec.Name,
		Text: fmt.Sprintf("service %s was started again, for the %dth time", s.spec.Name, starts)})
	g.work.Go(func() { g.checkAgain(r, s) })
	return nil
}

// checkAgain looks whether a hook that was started again serves.
func (g *Guard) checkAgain(r *role, s *service) {
	ctx, cancel := under(context.Background(), r.ctx, cmp.Or(s.spec.StartTimeout, defaultStart), fmt.Errorf("service %s: not serving in time", s.spec.Name))
	defer cancel()
	if err := s.awaitCheck(ctx, g.cfg.SlicePath); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.stopping && s.failure == "" {
			s.failure = err.Error()
		}
	}
}
