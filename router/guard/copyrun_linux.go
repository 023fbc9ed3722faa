package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/router"
)

// lookFor runs a program that changes nothing. It hangs on no deadline: whoever asks
// may ask when this node's right is over.
func (g *Guard) lookFor(ctx context.Context, req cluster.RunRequest) cluster.RunResult {
	return lookAt(ctx, req, g.cfg.SlicePath, cmp.Or(req.Timeout, proc.DefaultTimeout))
}

func lookAt(ctx context.Context, req cluster.RunRequest, slice string, limit time.Duration) cluster.RunResult {
	res, err := proc.Run(ctx, proc.Command{Argv: req.Argv, Stdin: req.Stdin, Env: req.Env, Timeout: limit, Slice: slice, Ordinary: true})
	return ran(res, err)
}

func ran(res proc.Result, err error) cluster.RunResult {
	out := cluster.RunResult{ExitCode: res.ExitCode, Stdout: res.Stdout, Stderr: res.Stderr}
	switch {
	case err != nil:
		out.ExitCode, out.Error = -1, err.Error()
	case res.Signal != "":
		out.Error = "killed by " + res.Signal
	}
	return out
}

// runInCopy runs a program under the node's own deadline, within a service of
// actions if that is held: what it starts is a part of that then.
func (g *Guard) runInCopy(ctx context.Context, q router.CopyRunParams) (cluster.RunResult, error) {
	none := cluster.RunResult{ExitCode: -1}
	r, release, err := g.enter(cluster.OwnerNode, cluster.NodeEpoch)
	if err != nil {
		return none, err
	}
	defer release()
	limit := cmp.Or(q.Run.Timeout, proc.DefaultTimeout)
	ctx, cancel := under(ctx, r.ctx, limit, errors.New("killed at its time-out"))
	defer cancel()
	g.mu.Lock()
	s := r.services[q.Name]
	left := g.leftover(func(h heldRole, v heldService) bool { return h.Owner == cluster.OwnerNode && v.Spec.Name == q.Name })
	g.mu.Unlock()
	if left != "" {
		return none, fmt.Errorf("service %s: %s, nothing was run: %w", q.Name, left, cluster.ErrRefused)
	}
	if s == nil || s.act == nil {
		return lookAt(ctx, q.Run, g.cfg.SlicePath, limit), nil
	}
	return g.runWithin(ctx, r, s, q.Run, limit)
}

// runWithin runs a program as one of the service's own, which run one at a time. A
// take-down cuts it off.
func (g *Guard) runWithin(ctx context.Context, r *role, s *service, req cluster.RunRequest, limit time.Duration) (cluster.RunResult, error) {
	none := cluster.RunResult{ExitCode: -1}
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	select {
	case s.act.turn <- struct{}{}:
	case <-ctx.Done():
		return none, fmt.Errorf("service %s: another program of it still runs: %w", s.spec.Name, context.Cause(ctx))
	}
	defer func() { <-s.act.turn }()
	s.mu.Lock()
	procs, ends := s.act.procs, s.act.gone || s.act.ending || s.act.down != nil
	if !ends {
		s.act.cut = cut
	}
	s.mu.Unlock()
	if ends {
		return none, fmt.Errorf("service %s is being stopped, nothing was run: %w", s.spec.Name, cluster.ErrRefused)
	}
	c := proc.Command{Argv: req.Argv, Stdin: req.Stdin, Env: req.Env, Timeout: limit, Slice: g.cfg.SlicePath}
	if procs != nil && !procs.Gone() {
		c.Within = procs
	}
	res, left, err := proc.Act(ctx, c)
	if left != nil && left.Gone() {
		_ = left.Stop(context.Background(), 0) // removes its empty group
		left = nil
	}
	if left != nil && c.Within == nil { // the first that runs of it
		g.becomes(r, s, left)
	}
	return ran(res, err), nil
}

// becomes enters what an action has left running as what runs of the service, of
// which nothing did. The caller holds the service's turn.
func (g *Guard) becomes(r *role, s *service, procs *proc.Process) {
	s.mu.Lock()
	s.act.procs, s.act.spent = procs, false
	s.mu.Unlock()
	if r.ctx.Err() != nil { // the end's kill may have come before there was anything to kill
		s.killNow()
	}
	g.mu.Lock()
	g.record() // with what it runs now
	g.mu.Unlock()
	g.watchActions(r, s)
}
