package guard

import (
	"context"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A hook whose next start is due while it is being stopped is not started any more
// once that stop is over: it is said to be gone, and may run elsewhere by then.
func TestWhatIsStoppedIsNotStartedAgainForAMoment(t *testing.T) {
	inProcess(t, clock, func(g *Guard, _ *bed) {
		ctx := context.Background()
		if err := g.begin(ctx, cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: clock.Now().Add(time.Minute)}); err != nil {
			t.Error(err)
			return
		}
		spec := cluster.ServiceSpec{Name: "copy-own", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}, Restart: 100 * time.Millisecond}
		if err := g.startService(ctx, cluster.OwnerNode, cluster.NodeEpoch, spec); err != nil {
			t.Error(err)
			return
		}
		g.mu.Lock()
		r := g.roles[cluster.OwnerNode]
		s := r.services["copy-own"]
		g.mu.Unlock()
		pid := s.process().Pid()
		s.again <- struct{}{} // as stopOne has it
		next := make(chan error, 1)
		go func() { next <- g.nextStart(r, s) }()
		s.quit()
		<-s.again
		if err := <-next; err != nil || !alive(pid) || s.process().Pid() != pid {
			t.Errorf("a start after the stop: %v; it was begun by ending what there was: %v", err, !alive(pid))
		}
	})
}
