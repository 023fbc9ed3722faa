package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

const (
	// stopAgain is how long after an actions service's Stop has failed it is tried
	// again, at the end of what the service hangs on.
	stopAgain = time.Second
	// killLimit bounds the verification that what a Stop has left is dead.
	killLimit = 2 * time.Second
	// actionOutput is how much of what a program prints is kept, for the error.
	actionOutput = 4 << 10
)

// errNotDown says that a service's own Stop has not succeeded (yet).
var errNotDown = errors.New("what it has made on this host may be left")

// actions is a service that one program brings up and another takes down. What the
// first leaves running, if anything, is the service's, and so is what it has made
// otherwise (an address, a mount), of which only the second knows: it is here until
// that has succeeded.
//
//	          Command exits 0                all of its processes ended
//	starting ─────────────────▶ up ────────────────────────────────────▶ spent
//	   │ fails, is cut off       │ told to stop, or the role's end         │
//	   ▼                         ▼                                         │
//	 down: Stop exits 0, and nothing of it runs ◀──────────────────────────┘
//	   │ ▲
//	   └─┘ else it is held, and tried again: when it is told to, each second at an end
//
// One program of it runs at a time. Its fields but turn are service.mu's.
type actions struct {
	turn chan struct{} // held by whoever runs a program of it

	up     bool          // Command has succeeded, and nothing has ended it since
	spent  bool          // it had processes, and they have ended
	procs  *proc.Process // what runs of it, or ran; nil: nothing does
	begun  chan struct{} // closed when Command has ended; nil: it was adopted
	why    error         // why it is not up; valid once begun is closed
	cut    context.CancelCauseFunc
	ending bool          // its Stop runs, or has run: what is in its group is that
	gently bool          // that Stop runs beside what it is to stop, which is in the group still
	down   chan struct{} // closed when the take-down under way has ended; nil: none is
	failed error         // of the newest take-down
	tried  time.Time     // when that ended
	gone   bool          // it is down, verified
}

func newActions() *actions { return &actions{turn: make(chan struct{}, 1)} }

// env is a specification's environment.
func env(spec cluster.ServiceSpec) map[string]string {
	vars := make(map[string]string, len(spec.Env))
	for _, line := range spec.Env {
		name, value, _ := strings.Cut(line, "=")
		vars[name] = value
	}
	return vars
}

// bringUp begins Command, and lets go of the client: only the role's end, its own
// time and cutUp end it.
func (g *Guard) bringUp(r *role, s *service) {
	limit := cmp.Or(s.spec.StartTimeout, defaultStart)
	ctx, cancel := under(context.Background(), r.ctx, limit, fmt.Errorf("service %s: not started in time", s.spec.Name))
	ctx, cut := context.WithCancelCause(ctx)
	begun := make(chan struct{})
	s.mu.Lock()
	s.act.begun, s.act.cut = begun, cut
	s.mu.Unlock()
	r.busy.Add(1) // the caller has entered the role: its end waits for this as well
	g.work.Go(func() {
		defer r.busy.Done()
		defer cancel()
		defer cut(nil)
		s.act.turn <- struct{}{}
		procs, err := runAction(ctx, g.cfg.SlicePath, s.spec, s.spec.Command, s.spec.User, limit, nil)
		s.mu.Lock()
		s.act.procs, s.act.up, s.act.why = procs, err == nil, err
		if err != nil {
			s.failure = err.Error()
		}
		s.mu.Unlock()
		<-s.act.turn
		if r.ctx.Err() != nil { // the end's kill may have come before there was anything to kill
			s.killNow()
		}
		g.mu.Lock()
		g.record() // with what it runs now
		g.mu.Unlock()
		close(begun)
		g.watchActions(r, s)
	})
}

// runAction runs one program of a service to its end, within what runs of it
// already, and returns what it leaves running; nil: nothing. An exit status other
// than 0 is an error with what it has printed.
func runAction(ctx context.Context, slice string, spec cluster.ServiceSpec, argv []string, user string, limit time.Duration, within *proc.Process) (*proc.Process, error) {
	c := proc.Command{Argv: argv, Env: env(spec), User: user, Timeout: limit, OutputLimit: actionOutput, Slice: slice}
	if within != nil && !within.Gone() {
		c.Within = within
	}
	res, left, err := proc.Act(ctx, c)
	if err == nil && res.ExitCode != 0 {
		err = fmt.Errorf("exit status %d%s: %s", res.ExitCode, signalled(res.Signal), printed(res))
	}
	if left != nil && left.Gone() {
		_ = left.Stop(context.Background(), 0) // removes its empty group
		left = nil
	}
	return left, err
}

func signalled(name string) string {
	if name == "" {
		return ""
	}
	return " (killed by " + name + ")"
}

// printed is what a program has said, errors first.
func printed(r proc.Result) string {
	text := strings.TrimSpace(string(r.Stderr))
	if more := strings.TrimSpace(string(r.Stdout)); more != "" {
		text = strings.TrimSpace(text + "\n" + more)
	}
	return cmp.Or(text, "it has printed nothing")
}

// awaitUp waits until a service of actions is up; any other is at once. Where ctx
// ends first, and not since the client has gone, the start is cut off.
func (s *service) awaitUp(ctx context.Context) error {
	if s.act == nil {
		return nil
	}
	s.mu.Lock()
	begun, cut := s.act.begun, s.act.cut
	s.mu.Unlock()
	if begun == nil {
		return nil
	}
	select {
	case <-begun:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.act.why != nil {
			return fmt.Errorf("start service %s: %w", s.spec.Name, s.act.why)
		}
		return nil
	case <-ctx.Done():
		err := context.Cause(ctx)
		if !errors.Is(err, errClientGone) {
			cut(err)
		}
		return fmt.Errorf("start service %s: %w", s.spec.Name, err)
	}
}

// takeDown begins to take the service down, unless that is under way, it is down,
// or the newest try has failed less than pause ago. now: what runs of it is killed
// first. It returns what is closed when the try has ended; nil: none is under way.
func (s *service) takeDown(g *Guard, now bool, pause time.Duration) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.act
	if a.down != nil || a.gone || time.Since(a.tried) < pause {
		return a.down
	}
	if a.cut != nil {
		a.cut(errors.New("it is to end"))
	}
	done := make(chan struct{})
	a.down = done
	g.work.Go(func() {
		a.turn <- struct{}{}
		s.mu.Lock()
		procs := a.procs
		s.mu.Unlock()
		err := g.runDown(s, procs, now)
		<-a.turn
		s.mu.Lock()
		defer s.mu.Unlock()
		a.down, a.failed, a.tried, a.gone, a.ending = nil, err, time.Now(), err == nil, false
		if err != nil {
			s.failure = err.Error()
		} else {
			a.procs = nil
		}
		close(done)
	})
	return done
}

// runDown takes the service down; it holds its turn.
func (g *Guard) runDown(s *service, procs *proc.Process, now bool) error {
	if now && procs != nil {
		if err := stopWithin(procs); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.act.ending, s.act.gently, s.act.up = true, !now, false // what is in its group from now on may be its Stop
	s.mu.Unlock()
	return endActions(context.Background(), g.cfg.SlicePath, s.spec, procs)
}

// endActions runs the service's Stop, then kills whatever is left of it. Both are
// done whatever becomes of the other; no error: nothing of the service is left.
func endActions(ctx context.Context, slice string, spec cluster.ServiceSpec, procs *proc.Process) error {
	left, err := runAction(ctx, slice, spec, spec.Stop, "", cmp.Or(spec.StopTimeout, defaultStop), procs)
	if err != nil {
		err = fmt.Errorf("its stop has failed, %w: %w", errNotDown, err)
	}
	for _, p := range []*proc.Process{left, procs} {
		if p != nil {
			err = errors.Join(err, stopWithin(p))
		}
	}
	return err
}

// stopWithin kills all of it, within killLimit, and verifies that.
func stopWithin(p *proc.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), killLimit)
	defer cancel()
	return p.Stop(ctx, 0)
}

// stopActions stops the service by its own rules and waits until it is down.
func (s *service) stopActions(ctx context.Context, g *Guard) error {
	done := s.takeDown(g, false, 0)
	if done == nil { // it is down
		return nil
	}
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("its stop still runs: %w", context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.act.failed
}

// verifyDown kills what runs, has the service's Stop run, again and again where it
// fails, and waits for it so long. No error: the service is down.
func (s *service) verifyDown(g *Guard, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	if done := s.takeDown(g, true, stopAgain); done != nil {
		select {
		case <-done:
		case <-timer.C:
			return fmt.Errorf("end service %s: its stop is not over yet", s.spec.Name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.act.gone:
		return nil
	case s.act.failed != nil:
		return fmt.Errorf("end service %s: %w", s.spec.Name, s.act.failed)
	}
	return fmt.Errorf("end service %s: its stop is not over yet", s.spec.Name)
}

// watchActions tells when all processes of the service have ended by themselves.
func (g *Guard) watchActions(r *role, s *service) {
	s.mu.Lock()
	procs := s.act.procs
	s.mu.Unlock()
	if procs == nil || procs.Group() == "" {
		return
	}
	emptied := func() {
		g.mu.Lock()
		ended := r.ended
		g.mu.Unlock()
		s.mu.Lock()
		over := !ended && s.act.up && !s.act.spent && procs.Gone() && s.act.down == nil && !s.stopping
		if over {
			s.act.spent, s.checked = true, false
			s.failure = "all of its processes have ended"
		}
		s.mu.Unlock()
		if over {
			g.tellExited(r, s, s.failure)
		}
	}
	g.groups.watch(procs.Group(), emptied)
	emptied() // it may have been over before
}
