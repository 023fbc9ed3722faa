package proc

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"pvc.internal/cluster"
)

// drainDelay is how long Act reads on once the program itself has ended: what it
// has printed lies in the pipe by then, and what it has left may hold that open
// for ever.
const drainDelay = 50 * time.Millisecond

// Act runs a program to its end, as Run does, but what it has started goes on:
// it is the Process that comes back, whose main process has ended. Nothing of it
// may be left; Gone tells. That Process is the caller's to Stop, or an adopter's
// (AdoptGroup), and unlike a run's it outlives this process. Its output is read
// until the program ends, and who writes to it later finds a closed pipe.
//
// Where the program is killed, at its timeout or by the context, what it has
// started is killed with it and the Process is nil, unless something survives
// (Result.Left).
//
// With Command.Within the program joins what that holds, whose Stop then ends
// what it has started, too; what it is killed for ends nothing else of it.
func Act(ctx context.Context, c Command) (Result, *Process, error) {
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("killed after %v: %w", c.Timeout, cluster.ErrDeadline))
	defer cancel()
	began := time.Now()
	p, s, err := c.launchCaptured(servicePrefix)
	if err != nil {
		return Result{ExitCode: -1, Duration: time.Since(began)}, nil, err
	}
	r := Result{ExitCode: -1}
	select {
	case <-p.done:
	case <-ctx.Done():
		return s.cutOff(ctx, p, began)
	}
	r.ExitCode, r.Signal = p.exit.Code, p.exit.Signal
	s.finish(&r, time.Now().Add(drainDelay))
	r.Duration = time.Since(began)
	if c.Within != nil && p.group != nil {
		p.group.remove() // if nothing is left in it; else it goes with what it lies in
	}
	return r, p, nil
}

// cutOff ends an action that has not ended by itself, and all that it started.
func (s *streams) cutOff(ctx context.Context, p *Process, began time.Time) (Result, *Process, error) {
	r := Result{ExitCode: -1, Killed: true}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), waitDelay)
	defer cancel()
	err := errors.Join(fmt.Errorf("run %s: %w", p.name, context.Cause(ctx)), p.end(grace, 0))
	s.finish(&r, time.Now().Add(waitDelay))
	r.Duration = time.Since(began)
	if errors.Is(err, ErrStraggler) {
		r.Left = p
		return r, p, err
	}
	return r, nil, err
}

// group makes the control group of a child.
func (c Command) group(prefix, label string) (*group, error) {
	switch {
	case c.Within == nil:
		return newGroup(c.Slice, prefix, label)
	case c.Within.group == nil:
		return nil, errNoGroups
	}
	return makeGroup(c.Within.group.path, prefix, label)
}

// mark returns a fresh mark of a child that has no control group.
func (c Command) mark() string {
	if c.Within == nil || c.Within.mark == "" {
		return newMark()
	}
	return c.Within.mark + markWithin + newMark()
}

// AdoptGroup finds what a Process, whose main process has ended, has left in its
// control group (Group). The error is ErrGone where that is empty or is no more,
// and a path that names no group of this package is refused.
func AdoptGroup(path string) (*Process, error) {
	path = filepath.Clean(path)
	if !ofThisPackage(path) {
		return nil, fmt.Errorf("adopt control group %s: it is not one of ours", path)
	}
	p := &Process{name: filepath.Base(path), group: openGroup(path), done: make(chan struct{}), exit: Exit{Code: -1}}
	close(p.done)
	if !p.group.populated() {
		p.group.remove()
		return nil, fmt.Errorf("adopt control group %s: %w", path, ErrGone)
	}
	return p, nil
}
