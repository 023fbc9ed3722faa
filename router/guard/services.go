package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// Defaults and bounds of services.
const (
	defaultStart = 10 * time.Second
	defaultStop  = 5 * time.Second
	checkTimeout = 2 * time.Second // of one run of a check
	firstPause   = 10 * time.Millisecond
	longestPause = 250 * time.Millisecond
)

// errClientGone is why a request's context ends when its connection does: what
// was being started then goes on, for the agent's next process to adopt.
var errClientGone = errors.New("the client has gone")

// service is a primary-only service under a role.
type service struct {
	spec cluster.ServiceSpec
	main *proc.Process // hook; nil for a unit, or once it was found gone
	unit *unitHandle   // unit

	mu       sync.Mutex
	checked  bool
	stopping bool
	failure  string
}

func validService(s cluster.ServiceSpec) error {
	switch {
	case s.Name == "":
		return fmt.Errorf("a service without a name: %w", cluster.ErrRefused)
	case s.Kind == cluster.ServiceHook && len(s.Command) == 0:
		return fmt.Errorf("service %s: a hook without a command: %w", s.Name, cluster.ErrRefused)
	case s.Kind == cluster.ServiceUnit && s.Unit == "":
		return fmt.Errorf("service %s: no unit is named: %w", s.Name, cluster.ErrRefused)
	case s.Kind != cluster.ServiceHook && s.Kind != cluster.ServiceUnit:
		return fmt.Errorf("service %s: kind %q is neither hook nor unit: %w", s.Name, s.Kind, cluster.ErrRefused)
	}
	return nil
}

// startService starts a service under a live role, or adopts one that runs
// already by the same specification, and returns when its check has passed. A
// service that does not come up in time is stopped again.
func (g *Guard) startService(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch, spec cluster.ServiceSpec) error {
	if err := validService(spec); err != nil {
		return err
	}
	r, release, err := g.enter(o, e)
	if err != nil {
		return err
	}
	defer release()
	s, err := g.runningService(ctx, r, spec)
	if err != nil {
		return err
	}
	ctx, cancel := under(ctx, r.ctx, cmp.Or(spec.StartTimeout, defaultStart), fmt.Errorf("service %s: not serving in time", spec.Name))
	defer cancel()
	if s == nil {
		if s, err = g.launch(ctx, r, spec); err != nil {
			return err
		}
	}
	err = s.awaitCheck(ctx, g.cfg.SlicePath)
	if err == nil || errors.Is(err, errClientGone) {
		return err
	}
	stopping, cancelStop := context.WithTimeout(context.Background(), cmp.Or(spec.StopTimeout, defaultStop)+g.cfg.Grace)
	defer cancelStop()
	if stopErr := g.stopOne(stopping, r, s); stopErr != nil {
		err = errors.Join(err, stopErr)
	}
	return err
}

// enter registers a start or run with a live role, so that the role's end waits
// for it, and returns what lets go of it again.
func (g *Guard) enter(o cluster.DeadlineOwner, e cluster.Epoch) (*role, func(), error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, err := g.liveRole(o, e)
	if err != nil {
		return nil, nil, err
	}
	r.busy.Add(1)
	return r, r.busy.Done, nil
}

// under returns a context that ends with the request, the role, or the time.
func under(ctx, role context.Context, limit time.Duration, late error) (context.Context, context.CancelFunc) {
	ctx, cancelTime := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w (%v): %w", late, limit, cluster.ErrDeadline))
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(role, func() { cancel(context.Cause(role)) })
	return ctx, func() { stop(); cancel(nil); cancelTime() }
}

// runningService returns the service if it runs by this specification. One that
// has ended, or runs by another, is removed first.
func (g *Guard) runningService(ctx context.Context, r *role, spec cluster.ServiceSpec) (*service, error) {
	g.mu.Lock()
	s := r.services[spec.Name]
	g.mu.Unlock()
	if s == nil || s.running() && reflect.DeepEqual(s.spec, spec) {
		return s, nil
	}
	return nil, g.stopOne(ctx, r, s)
}

// launch starts the program or unit and enters it under the role, unless that
// has ended meanwhile: then it is killed again.
func (g *Guard) launch(ctx context.Context, r *role, spec cluster.ServiceSpec) (*service, error) {
	s := &service{spec: spec}
	var err error
	if spec.Kind == cluster.ServiceUnit {
		s.unit, err = g.units.handle(ctx, spec.Unit)
	} else {
		s.main, err = proc.Start(proc.Command{Argv: spec.Command, Slice: g.cfg.SlicePath})
	}
	if err != nil {
		return nil, fmt.Errorf("start service %s: %w", spec.Name, err)
	}
	if s.main != nil { // the guard's own priority is not for its children
		_ = unix.Setpriority(unix.PRIO_PGRP, s.main.Pid(), 0)
	}
	g.mu.Lock()
	entered := g.lives(r) && r.services[spec.Name] == nil
	if entered {
		r.services[spec.Name] = s
		g.record()
		g.watch(r, s)
	}
	g.mu.Unlock()
	if entered && s.unit != nil { // recorded first: a restarted guard must know of it
		err = s.unit.start(ctx)
		if r.ctx.Err() != nil { // the start may have overtaken the end's kill
			s.killNow()
		}
		if err == nil {
			g.mu.Lock()
			g.record() // with its control group now
			g.mu.Unlock()
			return s, nil
		}
		stopping, cancel := context.WithTimeout(context.Background(), defaultStop)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("start service %s: %w", spec.Name, err), g.stopOne(stopping, r, s))
	}
	if !entered {
		s.killNow()
		return nil, errors.Join(fmt.Errorf("start service %s: the role ended meanwhile, or the service is being started already; what was started is killed: %w",
			spec.Name, cluster.ErrDeadline), s.verifyGone(time.Second))
	}
	return s, nil
}

// watch reports a hook that ends by itself. The caller holds mu.
func (g *Guard) watch(r *role, s *service) {
	if s.main == nil {
		return
	}
	g.work.Go(func() {
		exit, err := s.main.Wait(context.Background()) // ends with the process, which the role's end kills
		s.mu.Lock()
		expected := s.stopping
		if !expected {
			s.checked, s.failure = false, describeExit(exit, err)
		}
		text := s.failure
		s.mu.Unlock()
		g.mu.Lock()
		expected = expected || r.ended
		g.mu.Unlock()
		if expected {
			return
		}
		g.log.Warn("service exited", zap.String("service", s.spec.Name), zap.String("how", text))
		g.hub.push(cluster.GuardEvent{Kind: "service_exited", Owner: r.owner, Epoch: r.epoch, Name: s.spec.Name,
			Text: fmt.Sprintf("service %s ended by itself: %s", s.spec.Name, text)})
	})
}

func describeExit(e proc.Exit, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case e.Signal != "":
		return "killed by " + e.Signal
	case !e.Known:
		return "exit status unknown (its parent was an earlier guard)"
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// awaitCheck runs the check until it passes. Without one, running is enough.
func (s *service) awaitCheck(ctx context.Context, slice string) error {
	last := "its check has not been run"
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		if !s.running() {
			return fmt.Errorf("start service %s: it ended before it served: %s", s.spec.Name, s.endedHow(ctx))
		}
		passed, why := s.check(ctx, slice)
		if passed && ctx.Err() == nil {
			s.mu.Lock()
			s.checked, s.failure = true, ""
			s.mu.Unlock()
			return nil
		}
		if why != "" {
			last = why
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start service %s: its check never passed (last: %s): %w", s.spec.Name, last, context.Cause(ctx))
		case <-time.After(pause):
		}
	}
}

// check runs the check once.
func (s *service) check(ctx context.Context, slice string) (passed bool, why string) {
	if len(s.spec.Check) == 0 {
		return true, ""
	}
	res, err := proc.Run(ctx, proc.Command{Argv: s.spec.Check, Timeout: checkTimeout, OutputLimit: 4 << 10, Slice: slice})
	if err != nil {
		return false, err.Error()
	}
	if res.ExitCode == 0 {
		return true, ""
	}
	return false, fmt.Sprintf("exit status %d: %s", res.ExitCode, strings.TrimSpace(string(res.Stderr)+string(res.Stdout)))
}

// stopService stops a service of the role by its own rules, then kills, and
// returns when nothing of it is left.
func (g *Guard) stopService(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch, name string) error {
	g.mu.Lock()
	r, err := g.liveRole(o, e)
	if errors.Is(err, cluster.ErrDeadline) && r == nil { // over: its end kills everything
		ending := g.ending[o]
		g.mu.Unlock()
		return waitEnding(ctx, ending)
	}
	var s *service
	if err == nil {
		s = r.services[name]
	}
	g.mu.Unlock()
	if err != nil || s == nil {
		return err
	}
	return g.stopOne(ctx, r, s)
}

func waitEnding(ctx context.Context, e *ending) error {
	if e == nil {
		return nil
	}
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for role %s to be gone: %w", e.role.owner, context.Cause(ctx))
	}
}

// stopOne stops the service and forgets it. Nil is no service.
func (g *Guard) stopOne(ctx context.Context, r *role, s *service) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	s.stopping, s.checked = true, false
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.spec.StopTimeout, defaultStop)+time.Second)
	defer cancel()
	var err error
	if s.unit != nil {
		err = s.unit.stop(ctx, cmp.Or(s.spec.StopTimeout, defaultStop))
	} else if s.main != nil {
		err = s.main.Stop(ctx, cmp.Or(s.spec.StopTimeout, defaultStop))
	}
	if err != nil {
		return fmt.Errorf("stop service %s: it is not verified gone: %w", s.spec.Name, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !r.ended && r.services[s.spec.Name] == s {
		delete(r.services, s.spec.Name)
		g.record()
	}
	return nil
}

// killNow kills everything of the service without waiting.
func (s *service) killNow() {
	if s.unit != nil {
		s.unit.killNow()
	} else if s.main != nil {
		s.main.Kill()
	}
}

// verifyGone kills until nothing is left, for the time given.
func (s *service) verifyGone(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var err error
	if s.unit != nil {
		err = s.unit.stop(ctx, 0)
	} else if s.main != nil {
		err = s.main.Stop(ctx, 0)
	}
	if err != nil {
		return fmt.Errorf("end service %s: %w", s.spec.Name, err)
	}
	return nil
}

func (s *service) running() bool {
	if s.unit != nil {
		return s.unit.active()
	}
	if s.main == nil {
		return false
	}
	select {
	case <-s.main.Done():
		return false
	default:
		return true
	}
}

// endedHow describes the end of a service that does not run.
func (s *service) endedHow(ctx context.Context) string {
	if s.main != nil {
		return describeExit(s.main.Wait(ctx)) // at once: it has ended
	}
	if s.unit != nil {
		return "unit " + s.spec.Unit + " is not active: see `systemctl status " + s.spec.Unit + "`"
	}
	return s.failure
}

func (s *service) state() cluster.ServiceState {
	st := cluster.ServiceState{Name: s.spec.Name, Running: s.running()}
	if s.main != nil && st.Running {
		st.PID = s.main.Pid()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Checked, st.Error = s.checked && st.Running, s.failure
	return st
}

func (s *service) held() heldService {
	h := heldService{Spec: s.spec}
	if s.main != nil {
		h.PID, h.Start, h.Group = s.main.Pid(), s.main.StartTime(), s.main.Group()
	} else if s.unit != nil {
		h.Group = s.unit.groupDir()
	}
	return h
}

// adoptService takes a service over from the ledger. The caller holds mu.
func (g *Guard) adoptService(r *role, h heldService) {
	s := &service{spec: h.Spec}
	r.services[h.Spec.Name] = s
	if h.Spec.Kind == cluster.ServiceUnit {
		s.unit = g.units.adopt(h.Spec.Unit, h.Group)
		return
	}
	main, err := proc.Adopt(h.PID, h.Start)
	if err != nil {
		s.failure = "it ended while no guard watched it"
		return
	}
	s.main = main
	g.watch(r, s)
}

const (
	// unverifiedLeftovers names them in what is told.
	unverifiedLeftovers = "what an earlier guard left"
	// leftoverPause is between attempts to end them.
	leftoverPause = time.Second
)

// endLeftovers ends what an earlier guard has left of roles whose deadline has
// passed, and every service that no live role knows. What is not verified gone
// is tried again until it is.
func (g *Guard) endLeftovers(ctx context.Context, expired []heldRole) {
	groups := proc.Services(g.cfg.SlicePath) // now: what is started later is none of them
	g.mu.Lock()
	for _, r := range g.roles {
		for _, s := range r.services {
			groups = slices.DeleteFunc(groups, func(group string) bool { return group == s.held().Group })
		}
	}
	g.mu.Unlock()
	if !g.leftoversGone(ctx, expired, groups) {
		g.work.Go(func() {
			for !g.leftoversGone(ctx, expired, groups) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(leftoverPause):
				}
			}
		})
	}
	for _, h := range expired {
		g.log.Warn("ended what an earlier guard had left past its deadline", zap.String("owner", string(h.Owner)), zap.Uint64("epoch", uint64(h.Epoch)))
		g.hub.push(cluster.GuardEvent{Kind: "ended", Owner: h.Owner, Epoch: h.Epoch, Text: "ended by the guard that followed the one which held it"})
	}
}

// leftoversGone ends them once more and reports whether nothing is left.
func (g *Guard) leftoversGone(ctx context.Context, expired []heldRole, groups []string) bool {
	err := endHeld(ctx, expired, g.units, g.cfg.SlicePath, groups)
	g.mu.Lock()
	if err == nil {
		g.leftovers, g.expired = "", nil
		g.record()
	} else {
		g.leftovers = unverifiedLeftovers
	}
	g.feeder.poke()
	g.mu.Unlock()
	text := ""
	if err != nil {
		text = fmt.Sprintf("what an earlier guard left is not verified gone: %v", err)
	}
	g.fault("leftovers", text)
	return err == nil
}

// leftoverLimit bounds the verification of each thing left.
const leftoverLimit = 2 * time.Second

// endHeld kills the services of these roles, these service groups below the
// slice, and what a dead guard was running.
func endHeld(ctx context.Context, roles []heldRole, u *units, slice string, groups []string) error {
	var errs []error
	bounded := func(f func(ctx context.Context) error) {
		ctx, cancel := context.WithTimeout(ctx, leftoverLimit)
		defer cancel()
		errs = append(errs, f(ctx))
	}
	for _, r := range roles {
		for _, h := range r.Services {
			if h.Spec.Kind == cluster.ServiceUnit {
				bounded(func(ctx context.Context) error { return u.adopt(h.Spec.Unit, h.Group).stop(ctx, 0) })
				continue
			}
			if p, err := proc.Adopt(h.PID, h.Start); err == nil {
				bounded(func(ctx context.Context) error { return p.Stop(ctx, 0) })
			}
		}
	}
	for _, group := range groups {
		bounded(func(ctx context.Context) error { return proc.EndGroup(ctx, group) })
	}
	// Any run sweeps the runs of guards that are dead.
	bounded(func(ctx context.Context) error {
		_, err := proc.Run(ctx, proc.Command{Argv: []string{"true"}, Slice: slice, Timeout: leftoverLimit})
		if errors.Is(err, proc.ErrNotStarted) {
			return nil
		}
		return err
	})
	return errors.Join(errs...)
}

// runProgram runs one program under an owner's deadline.
func (g *Guard) runProgram(ctx context.Context, req cluster.RunRequest) (cluster.RunResult, error) {
	none := cluster.RunResult{ExitCode: -1}
	r, release, err := g.enter(req.Owner, req.Epoch)
	if err != nil {
		return none, err
	}
	defer release()
	limit := cmp.Or(req.Timeout, proc.DefaultTimeout)
	ctx, cancel := under(ctx, r.ctx, limit, errors.New("killed at its time-out"))
	defer cancel()
	res, err := proc.Run(ctx, proc.Command{Argv: req.Argv, Stdin: req.Stdin, Env: req.Env, Timeout: limit, Slice: g.cfg.SlicePath})
	out := cluster.RunResult{ExitCode: res.ExitCode, Stdout: res.Stdout, Stderr: res.Stderr}
	if err != nil {
		out.ExitCode, out.Error = -1, err.Error()
	}
	return out, nil
}

// preflightService reports why a service could not be started, "" if it could.
func (g *Guard) preflightService(ctx context.Context, s cluster.ServiceSpec) string {
	if err := validService(s); err != nil {
		return err.Error()
	}
	if s.Kind == cluster.ServiceUnit {
		if err := g.units.loadable(ctx, s.Unit); err != nil {
			return fmt.Sprintf("service %s: %v", s.Name, err)
		}
		return ""
	}
	for _, argv := range [][]string{s.Command, s.Check} {
		if len(argv) > 0 {
			if _, err := exec.LookPath(argv[0]); err != nil {
				return fmt.Sprintf("service %s: program cannot be run: %v", s.Name, err)
			}
		}
	}
	return ""
}
