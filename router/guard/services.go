package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"reflect"
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
	// shortestRestart is the least that lies between a hook's end and its next start.
	shortestRestart = 100 * time.Millisecond
)

// errClientGone is why a request's context ends when its connection does: what
// was being started then goes on, for the agent's next process to adopt.
var errClientGone = errors.New("the client has gone")

// service is a primary-only service under a role.
type service struct {
	spec cluster.ServiceSpec
	main *proc.Process // hook; nil for a unit, or once it was found gone; mu's
	unit *unitHandle   // unit
	act  *actions      // actions

	mu       sync.Mutex
	checked  bool
	stopping bool
	failure  string
	starts   int           // of a hook
	pending  bool          // a hook that has ended is to be started again
	over     chan struct{} // closed when nobody starts it again
	overOnce sync.Once
	again    chan struct{} // held while a hook is started again
}

func newService(spec cluster.ServiceSpec) *service {
	return &service{spec: spec, over: make(chan struct{}), again: make(chan struct{}, 1)}
}

// process is a hook's present process; nil: it has none.
func (s *service) process() *proc.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.main
}

// quit says that the service ends on purpose, and is not to be started again.
func (s *service) quit() {
	s.mu.Lock()
	s.stopping, s.checked = true, false
	s.mu.Unlock()
	s.overOnce.Do(func() { close(s.over) })
}

func validService(s cluster.ServiceSpec) error {
	switch {
	case s.Name == "":
		return fmt.Errorf("a service without a name: %w", cluster.ErrRefused)
	case s.Kind == cluster.ServiceHook && len(s.Command) == 0:
		return fmt.Errorf("service %s: a hook without a command: %w", s.Name, cluster.ErrRefused)
	case s.Kind == cluster.ServiceUnit && s.Unit == "":
		return fmt.Errorf("service %s: no unit is named: %w", s.Name, cluster.ErrRefused)
	case s.Kind == cluster.ServiceActions && (len(s.Command) == 0 || len(s.Stop) == 0):
		return fmt.Errorf("service %s: actions need a command and a stop: %w", s.Name, cluster.ErrRefused)
	case s.Kind != cluster.ServiceHook && s.Kind != cluster.ServiceUnit && s.Kind != cluster.ServiceActions:
		return fmt.Errorf("service %s: kind %q is none of hook, unit and actions: %w", s.Name, s.Kind, cluster.ErrRefused)
	case s.Restart != 0 && (s.Kind != cluster.ServiceHook || s.Restart < shortestRestart):
		return fmt.Errorf("service %s: a hook may be started again, not sooner than after %s: %w", s.Name, shortestRestart, cluster.ErrRefused)
	}
	for _, line := range s.Env {
		if name, _, ok := strings.Cut(line, "="); !ok || name == "" || strings.ContainsRune(line, 0) {
			return fmt.Errorf("service %s: %.40q in its environment is no NAME=value: %w", s.Name, line, cluster.ErrRefused)
		}
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
		if err := g.awaitFree(ctx, spec); err != nil {
			return fmt.Errorf("start service %s: %w", spec.Name, err)
		}
		if s, err = g.launch(ctx, r, spec); err != nil {
			return err
		}
	}
	if err = s.awaitUp(ctx); err == nil {
		err = s.awaitCheck(ctx, g.cfg.SlicePath)
	}
	if err == nil || errors.Is(err, errClientGone) {
		return err
	}
	stopping, cancelStop := context.WithTimeout(context.Background(), cmp.Or(spec.StopTimeout, defaultStop)+killLimit+g.cfg.Grace)
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
	if s == nil || s.serves() && reflect.DeepEqual(s.spec, spec) {
		return s, nil
	}
	return nil, g.stopOne(ctx, r, s)
}

// launch starts the program or unit and enters it under the role, unless that
// has ended meanwhile: then it is killed again.
func (g *Guard) launch(ctx context.Context, r *role, spec cluster.ServiceSpec) (*service, error) {
	s := newService(spec)
	var err error
	switch spec.Kind {
	case cluster.ServiceUnit:
		s.unit, err = g.units.handle(ctx, spec.Unit)
	case cluster.ServiceActions:
		s.act = newActions()
	default:
		s.starts = 1
		s.main, err = startHook(spec, g.cfg.SlicePath)
	}
	if err != nil {
		return nil, fmt.Errorf("start service %s: %w", spec.Name, err)
	}
	if err := g.enlist(r, s); err != nil {
		s.quit()
		s.killNow()
		return nil, errors.Join(err, s.verifyGone(g, time.Second))
	}
	switch { // recorded first: a restarted guard must know of it
	case s.act != nil:
		g.bringUp(r, s)
	case s.unit != nil:
		return s, g.launchUnit(ctx, r, s)
	}
	return s, nil
}

// startHook starts a hook's program.
func startHook(spec cluster.ServiceSpec, slice string) (*proc.Process, error) {
	p, err := proc.Start(proc.Command{Argv: spec.Command, Env: env(spec), User: spec.User, Slice: slice})
	if err == nil { // the guard's own priority is not for its children
		_ = unix.Setpriority(unix.PRIO_PGRP, p.Pid(), 0)
	}
	return p, err
}

// enlist enters what was started, or is to be, under the role, and writes it down.
// The error says why it must not be: it has done nothing then.
func (g *Guard) enlist(r *role, s *service) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.lives(r) || r.services[s.spec.Name] != nil {
		if s.act != nil {
			s.act.gone = true // nothing of it has run
		}
		return fmt.Errorf("start service %s: the role ended meanwhile, or the service is being started already; what was started is killed: %w",
			s.spec.Name, cluster.ErrDeadline)
	}
	r.services[s.spec.Name] = s
	if err := g.write(); err != nil {
		delete(r.services, s.spec.Name)
		g.record()
		if s.act != nil {
			s.act.gone = true
		}
		return fmt.Errorf("start service %s: a guard that is started after this one would not find it: %w: %w", s.spec.Name, err, cluster.ErrRefused)
	}
	g.watch(r, s)
	return nil
}

// launchUnit starts the unit of a service that is entered.
func (g *Guard) launchUnit(ctx context.Context, r *role, s *service) error {
	g.watchUnit(r, s)
	err := s.unit.start(ctx)
	if r.ctx.Err() != nil { // the start may have overtaken the end's kill
		s.killNow()
	}
	if err == nil {
		g.mu.Lock()
		g.record() // with its control group now
		g.mu.Unlock()
		return nil
	}
	stopping, cancel := context.WithTimeout(context.Background(), defaultStop)
	defer cancel()
	return errors.Join(fmt.Errorf("start service %s: %w", s.spec.Name, err), g.stopOne(stopping, r, s))
}

// watch reports a hook that ends by itself, and has it started again where its
// specification says so. The caller holds mu.
func (g *Guard) watch(r *role, s *service) {
	main := s.process()
	if main == nil {
		return
	}
	g.work.Go(func() {
		exit, err := main.Wait(context.Background()) // ends with the process, which the role's end kills
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
		g.tellExited(r, s, text)
		g.startAgain(r, s)
	})
}

// tellExited tells that a service has ended by itself.
func (g *Guard) tellExited(r *role, s *service, text string) {
	g.log.Warn("service exited", zap.String("service", s.spec.Name), zap.String("how", text))
	g.hub.push(cluster.GuardEvent{Kind: "service_exited", Owner: r.owner, Epoch: r.epoch, Name: s.spec.Name,
		Text: fmt.Sprintf("service %s ended by itself: %s", s.spec.Name, text)})
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
	res, err := proc.Run(ctx, proc.Command{Argv: s.spec.Check, Env: env(s.spec), Timeout: checkTimeout, OutputLimit: 4 << 10, Slice: slice})
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
		return errors.Join(waitEnding(ctx, ending), g.awaitLeftover(ctx, o, name))
	}
	var s *service
	if err == nil {
		s = r.services[name]
	}
	g.mu.Unlock()
	if err != nil {
		return err
	}
	if s == nil {
		return g.awaitLeftover(ctx, o, name)
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

// stopOne stops the service and forgets it. Nil is no service. Where its caller leaves
// the stop goes on by the service's own rules, to its end: who is asked to end in order
// is not killed because an agent was restarted, and what has ended is not kept.
func (g *Guard) stopOne(ctx context.Context, r *role, s *service) error {
	if s == nil {
		return nil
	}
	s.quit()
	done := make(chan error, 1)
	g.work.Go(func() { done <- g.carryStop(r, s) })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("stop service %s: it is being stopped, and not verified gone yet: %w", s.spec.Name, context.Cause(ctx))
	}
}

// carryStop is the stop of a service that has quit. The role's end kills what it waits
// for.
func (g *Guard) carryStop(r *role, s *service) error {
	grace := cmp.Or(s.spec.StopTimeout, defaultStop)
	ctx, cancel := context.WithTimeout(context.Background(), grace+killLimit+time.Second)
	defer cancel()
	select {
	case s.again <- struct{}{}: // what was being started again is in the books by now, or dead
		defer func() { <-s.again }()
	case <-ctx.Done():
		return fmt.Errorf("stop service %s: it is just being started again: %w", s.spec.Name, context.Cause(ctx))
	}
	var err error
	switch main := s.process(); {
	case s.act != nil:
		err = s.stopActions(ctx, g)
	case s.unit != nil:
		err = s.unit.stop(ctx, grace)
	case main != nil:
		err = main.Stop(ctx, grace)
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

// killNow kills everything of the service without waiting. A hook is not started
// again after it: the role's context has ended, or quit was called.
func (s *service) killNow() {
	if s.unit != nil {
		s.unit.killNow()
		return
	}
	s.mu.Lock()
	p := s.main
	if s.act != nil {
		// Its Stop may be what runs now. One that was ordered runs beside the copy, which
		// must not outlive its right however long that takes: both go, and it runs again.
		if p = s.act.procs; s.act.ending && !s.act.gently {
			p = nil
		}
	}
	s.mu.Unlock()
	if p != nil {
		p.Kill()
	}
}

// verifyGone kills until nothing is left, for the time given.
func (s *service) verifyGone(g *Guard, limit time.Duration) error {
	if s.act != nil {
		return s.verifyDown(g, limit)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var err error
	if main := s.process(); s.unit != nil {
		err = s.unit.stop(ctx, 0)
	} else if main != nil {
		err = main.Stop(ctx, 0)
	}
	if err != nil {
		return fmt.Errorf("end service %s: %w", s.spec.Name, err)
	}
	return nil
}

// serves reports whether the service runs, or is just being brought up.
func (s *service) serves() bool {
	if s.act == nil {
		return s.running()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || s.act.spent {
		return false
	}
	select {
	case <-s.act.begun:
		return s.act.up
	default: // also of one that was adopted: it has no start of its own
		return s.act.up || s.act.begun != nil
	}
}

func (s *service) running() bool {
	if s.unit != nil {
		return s.unit.active()
	}
	if s.act != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.act.up && !s.act.spent && !s.stopping
	}
	main := s.process()
	if main == nil {
		return false
	}
	select {
	case <-main.Done():
		return false
	default:
		return true
	}
}

// left reports whether something of a service that does not run is here, or may be.
func (s *service) left() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.unit != nil:
		return !s.unit.empty()
	case s.act != nil:
		return !s.act.gone
	}
	return s.pending || s.main != nil && !s.main.Gone()
}

// endedHow describes the end of a service that does not run.
func (s *service) endedHow(ctx context.Context) string {
	if main := s.process(); main != nil {
		return describeExit(main.Wait(ctx)) // at once: it has ended
	}
	if s.unit != nil {
		return "unit " + s.spec.Unit + " is not active: see `systemctl status " + s.spec.Unit + "`"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

func (s *service) state() cluster.ServiceState {
	st := cluster.ServiceState{Name: s.spec.Name, Running: s.running(), Kind: s.spec.Kind, Note: s.spec.Note}
	st.Left = !st.Running && s.left()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main != nil && st.Running {
		st.PID = s.main.Pid()
	}
	st.Checked, st.Error, st.Starts = s.checked && st.Running, s.failure, s.starts
	return st
}

func (s *service) held() heldService {
	h := heldService{Spec: s.spec}
	if s.unit != nil {
		h.Group = s.unit.groupDir()
		return h
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.Starts = s.starts
	switch {
	case s.act != nil:
		if h.Up = s.act.up && !s.act.spent; s.act.procs != nil {
			h.Group = s.act.procs.Group()
		}
	case s.main != nil:
		h.PID, h.Start, h.Group = s.main.Pid(), s.main.StartTime(), s.main.Group()
	}
	return h
}

// adoptService takes a service over from the ledger. The caller holds mu.
func (g *Guard) adoptService(r *role, h heldService) {
	s := newService(h.Spec)
	s.starts = h.Starts
	r.services[h.Spec.Name] = s
	switch h.Spec.Kind {
	case cluster.ServiceUnit:
		s.unit = g.units.adopt(h.Spec.Unit, h.Group)
		g.watchUnit(r, s)
		return
	case cluster.ServiceActions:
		g.adoptActions(r, s, h)
		return
	}
	main, err := proc.Adopt(h.PID, h.Start)
	if err != nil {
		s.failure = "it ended while no guard watched it"
		g.work.Go(func() { g.startAgain(r, s) })
		return
	}
	s.main = main
	g.watch(r, s)
}

// adoptActions takes over what an earlier guard has brought up. Where that was still
// at it, or was already taking it down, what there is of it is only to be taken down.
func (g *Guard) adoptActions(r *role, s *service, h heldService) {
	s.act = newActions()
	s.act.up = h.Up
	if h.Group != "" {
		if p, err := proc.AdoptGroup(h.Group); err == nil {
			s.act.procs = p
		} else if h.Up {
			s.act.spent, s.failure = true, "all of its processes ended while no guard watched it"
		}
	}
	if !h.Up {
		s.failure = "a guard ended while it brought this up or took it down"
	}
	g.work.Go(func() { g.watchActions(r, s) })
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
	for _, argv := range [][]string{s.Command, s.Check, s.Stop} {
		if len(argv) > 0 {
			if _, err := exec.LookPath(argv[0]); err != nil {
				return fmt.Sprintf("service %s: program cannot be run: %v", s.Name, err)
			}
		}
	}
	return ""
}
