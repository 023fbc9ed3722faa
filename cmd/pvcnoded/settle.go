package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"go.uber.org/zap"

	"pvc.internal/agent"
	"pvc.internal/driver"
)

const (
	// settleLimit is how long copies are given to end before this daemon stops with
	// its guard. With the hand-over after it it stays below the unit's TimeoutStopSec=.
	settleLimit = time.Minute
	jobsLimit   = 2 * time.Second
	// tellLimit is how long the ending of copies waits for the others' being told.
	tellLimit = time.Second
	guardUnit = "pvc-guard.service"
)

// settleFirst returns a context that outlives ctx for as long as the copies here
// take to end, where the guard is being stopped, too: by `systemctl stop
// pvc.target`, say, or by the shutdown of the machine. Until then the daemon goes on
// with its keepalives, and so does the right under which the copies run; the guard
// alone would have what is left of that. The primary role does not wait for them:
// leave hands it over at once, for what it serves may be stopped with the machine.
// A restart of this daemon alone, an upgrade and a crash leave the copies be. The
// caller calls the function when it has ended.
func settleFirst(ctx context.Context, stopping func(context.Context) (bool, error), leave func(), settle func(context.Context) error, log *zap.Logger) (context.Context, func()) {
	longer, end := context.WithCancelCause(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
		case <-longer.Done():
			return
		}
		defer end(context.Cause(ctx))
		is, err := stopping(longer)
		if err != nil {
			log.Warn("not known whether the guard is being stopped, too: copies are left to it", zap.Error(err))
		}
		if !is {
			return
		}
		leave()
		bounded, cancel := context.WithTimeout(longer, settleLimit)
		defer cancel()
		began := time.Now()
		log.Info("the guard is being stopped, too: copies end first", zap.Duration("at_most", settleLimit))
		if err := settle(bounded); err != nil {
			log.Warn("not all copies have ended by themselves: the guard kills them at the end of this node's right", zap.Error(err))
			return
		}
		log.Info("no copy is left", zap.Duration("after", time.Since(began)))
	}()
	return longer, func() { end(nil); <-done }
}

// parting is this daemon's agent, once there is one, as whoever ends its copies needs it.
type parting struct{ atomic.Pointer[agent.Agent] }

// leave has it hand the primary role over; it does not wait for that.
func (p *parting) leave() {
	if a := p.Load(); a != nil {
		a.StepDown()
	}
}

// tell has it say that the copies here are ending (Agent.Settling).
func (p *parting) tell(ctx context.Context) error {
	if a := p.Load(); a != nil {
		return a.Settling(ctx)
	}
	return nil
}

// settler is what ends the copies of this node; without a host there are none. The
// others are told before (Agent.Settling), so that nothing is given to this node that
// it would refuse; a store that is away keeps no copy from its end for long.
func settler(copies *driver.Host, letGo func(context.Context, string) error, tell func(context.Context) error, log *zap.Logger) func(context.Context) error {
	return func(ctx context.Context) error {
		if copies == nil {
			return nil
		}
		told, cancel := context.WithTimeout(ctx, tellLimit)
		defer cancel()
		if err := tell(told); err != nil {
			log.Warn("the others may not know yet that this node takes no workloads any more", zap.Error(err))
		}
		return copies.Settle(ctx, letGo)
	}
}

// guardStops reports whether systemd is about to stop the guard. A daemon that
// systemd has not started has no such guard.
func guardStops(ctx context.Context) (bool, error) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, jobsLimit)
	defer cancel()
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return false, fmt.Errorf("reach systemd over D-Bus: %w", err)
	}
	defer conn.Close()
	jobs, err := conn.ListJobsContext(ctx)
	if err != nil {
		return false, fmt.Errorf("ask systemd for its jobs: %w", err)
	}
	for _, j := range jobs {
		if j.Unit == guardUnit && (j.JobType == "stop" || j.JobType == "restart") {
			return true, nil
		}
	}
	return false, nil
}
