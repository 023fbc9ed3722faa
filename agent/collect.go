package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Collector gathers figures of this node ("subthread"). Collect's keys are
// leaves below /nodes/<n> ("memtotal", "monitoring_data/load/message"); values
// that come along with an error are used all the same. Collect is never called
// again before it has returned.
//
// A collector may also have Interval() time.Duration, to be started less often
// than each tick, and Deadline() time.Duration, to have another deadline than
// the collection's. Interval is asked at each tick, and must not block.
type Collector interface {
	Name() string
	Collect(ctx context.Context) (map[string]string, error)
}

// CollectorStatus is how a collector fares.
type CollectorStatus struct {
	Name        string
	Running     bool
	StaleSince  cluster.Instant // when its values were last fresh (or it was first started); Never while they are
	Late        uint64          // collections that overran their deadline
	Failed      uint64          // collections that ended with an error or a panic
	LastSuccess cluster.Instant
	LastError   string // of the latest collection, "" when it succeeded
}

// Collection fans its collectors out: each in at most one goroutine of its own,
// under its own deadline. One that hangs costs its own figures only (I10).
// All methods may be called from several goroutines.
type Collection struct {
	clock    cluster.Clock
	log      *zap.Logger
	deadline time.Duration
	wait     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	runners []*collectorRun
}

// collectorRun is one collector's state; the collection's mutex guards it.
type collectorRun struct {
	collector Collector
	interval  func() time.Duration // nil: each tick
	deadline  time.Duration

	running   bool
	again     bool // it is to be started once more as soon as it has returned
	warned    bool // of lateness, since it last ended
	startedAt cluster.Instant
	cancel    context.CancelFunc
	values    map[string]string
	status    CollectorStatus
}

// NewCollection makes a collection whose collectors have the given deadline
// unless they name their own. Two collectors of one name are an error.
func NewCollection(clock cluster.Clock, log *zap.Logger, deadline time.Duration, collectors ...Collector) (*Collection, error) {
	c := &Collection{clock: clock, log: log, deadline: deadline}
	seen := map[string]bool{}
	for _, one := range collectors {
		if seen[one.Name()] {
			return nil, fmt.Errorf("two collectors are named %q", one.Name())
		}
		seen[one.Name()] = true
		r := &collectorRun{collector: one, deadline: deadline, values: map[string]string{}}
		r.status.Name = one.Name()
		if own, ok := one.(interface{ Deadline() time.Duration }); ok && own.Deadline() > 0 {
			r.deadline = own.Deadline()
		}
		if own, ok := one.(interface{ Interval() time.Duration }); ok {
			r.interval = own.Interval
		}
		c.runners = append(c.runners, r)
	}
	return c, nil
}

// Tick starts every collector that is due and has returned from its last
// collection, and reports those that have not. It never blocks.
func (c *Collection) Tick(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	now := c.clock.Now()
	c.checkLate(now)
	for _, r := range c.runners {
		if !r.running && (r.startedAt.IsZero() || r.interval == nil ||
			now.Sub(r.startedAt) >= r.interval()-c.deadline/8) { // a tick's jitter does not cost a whole one
			c.start(ctx, r, now)
		}
	}
}

// Renew has the collector of that name gather at once, since what it tells of has just
// changed: what it says next was true after this call. One that runs is started once
// more when it has returned. It never blocks; an unknown name is nothing.
func (c *Collection) Renew(ctx context.Context, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.runners {
		switch {
		case r.status.Name != name || c.closed:
		case r.running:
			r.again = true
		default:
			c.start(ctx, r, c.clock.Now())
		}
	}
}

// start begins a collection. c.mu is held.
func (c *Collection) start(ctx context.Context, r *collectorRun, now cluster.Instant) {
	var own context.Context
	own, r.cancel = context.WithTimeout(ctx, r.deadline)
	r.running, r.again, r.startedAt = true, false, now
	c.wait.Go(func() { c.run(ctx, own, r) })
}

// run is the only goroutine of its collector.
func (c *Collection) run(parent, ctx context.Context, r *collectorRun) {
	var values map[string]string
	err := errors.New("the collector ended its goroutine")
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			c.log.Error("collector panicked", zap.String("collector", r.status.Name),
				zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
		}
		c.returned(parent, r, values, err)
	}()
	values, err = r.collector.Collect(ctx)
}

// returned takes in what a collection yielded.
func (c *Collection) returned(parent context.Context, r *collectorRun, values map[string]string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		if r.again && !c.closed && parent.Err() == nil {
			c.start(parent, r, c.clock.Now())
		}
	}()
	now := c.clock.Now()
	c.checkLate(now)
	r.cancel()
	r.running = false
	maps.Copy(r.values, values)
	name := zap.String("collector", r.status.Name)
	if r.warned {
		r.warned = false
		c.log.Info("late collector returned", name, zap.Duration("after", now.Sub(r.startedAt)))
	}
	if err == nil {
		if r.status.LastError != "" {
			c.log.Info("collector recovered", name)
		}
		r.status.LastError, r.status.LastSuccess, r.status.StaleSince = "", now, cluster.Never
		return
	}
	r.status.Failed++
	if r.status.LastError == "" {
		c.log.Warn("collector failed: its last figures stay", name, zap.Error(err))
	}
	r.status.LastError = err.Error()
	r.markStale()
}

// checkLate marks collectors that have overrun their deadline; each collection
// is counted and reported once.
func (c *Collection) checkLate(now cluster.Instant) {
	for _, r := range c.runners {
		if !r.running || r.warned || now.Before(r.startedAt.Add(r.deadline)) {
			continue
		}
		r.warned = true
		r.status.Late++
		r.markStale()
		c.log.Warn("collector is late: its last figures stay, it is not started again before it returns",
			zap.String("collector", r.status.Name), zap.Duration("deadline", r.deadline))
	}
}

func (r *collectorRun) markStale() {
	if r.status.StaleSince.IsZero() {
		r.status.StaleSince = cluster.Earliest(r.status.LastSuccess, r.startedAt)
	}
}

// Values returns the latest figures of all collectors, stale ones included.
func (c *Collection) Values() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]string{}
	for _, r := range c.runners {
		maps.Copy(all, r.values)
	}
	return all
}

// Status tells how each collector fares, in the order they were given.
func (c *Collection) Status() []CollectorStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checkLate(c.clock.Now())
	all := make([]CollectorStatus, 0, len(c.runners))
	for _, r := range c.runners {
		s := r.status
		s.Running = r.running
		all = append(all, s)
	}
	return all
}

// Close starts nothing any more, cancels what runs and waits until it has
// returned or ctx ends; the error then names the collectors that hang.
func (c *Collection) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	for _, r := range c.runners {
		if r.running {
			r.cancel()
		}
	}
	c.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the last collector
		c.wait.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	var hanging []string
	for _, s := range c.Status() {
		if s.Running {
			hanging = append(hanging, s.Name)
		}
	}
	if len(hanging) == 0 {
		return nil
	}
	slices.Sort(hanging)
	return fmt.Errorf("stop collectors: %s still hang: %w", strings.Join(hanging, ", "), cluster.ErrDeadline)
}
