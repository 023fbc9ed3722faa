package bench

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/agent/detector"
	"pvc.internal/agent/failover"
	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/zkhandler"
)

// observer is a coordinator as far as it looks at the simulated nodes: a view of
// all records, and a look at them in the rhythm of its daemon's.
type observer struct {
	name   cluster.NodeID
	store  *zkhandler.Handler
	timing cluster.Timing
	clock  proc.BootClock

	mu    sync.Mutex
	looks []float64 // time of the processor for each, ms
	lost  map[cluster.NodeID]bool
}

// observe starts the observers and waits until each sees every node.
func (c *crowd) observe(ctx context.Context, b *bench) ([]*observer, error) {
	began := time.Now()
	var all []*observer
	for i := range simulatedObservers {
		n := len(c.e.servers)
		h, err := zkhandler.New(zkhandler.Config{Servers: append(append([]string{}, c.e.servers[i%n:]...), c.e.servers[:i%n]...), Root: "/",
			SessionTimeout: c.e.timing.SessionTimeout, RequestTimeout: c.e.timing.RequestTimeout(), Dial: c.counted(newWire(c.e.inside).dial),
			WatchNodes: true}, proc.BootClock{}, c.e.log.Named("observer"), nil)
		if err != nil {
			return nil, err
		}
		c.e.wg.Go(func() { _ = h.Run(c.e.life) })
		all = append(all, &observer{name: cluster.NodeID(fmt.Sprintf("observer%d", i+1)), store: h, timing: c.e.timing, lost: map[cluster.NodeID]bool{}})
	}
	for _, o := range all {
		if err := o.awaitAll(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", o.name, err)
		}
	}
	b.say("   %d observers see all of them after %.0f s", len(all), time.Since(began).Seconds())
	return all, nil
}

// awaitAll waits until every node's records are seen.
func (o *observer) awaitAll(ctx context.Context) error {
	snapshots, end := o.store.Subscribe()
	defer end()
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	known := 0
	for {
		select {
		case snap := <-snapshots:
			known = 0
			for _, n := range snap.Nodes {
				if n.Record.Present && n.Keepalive.Present {
					known++
				}
			}
			if snap.Live && snap.Complete && known == simulatedNodes {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("sees %d of %d nodes: %w", known, simulatedNodes, context.Cause(ctx))
		}
	}
}

// look judges all nodes again and again until ctx ends, as a primary does.
func (o *observer) look(ctx context.Context) {
	runtime.LockOSThread() // so that the thread's time is its own
	defer runtime.UnlockOSThread()
	snapshots, end := o.store.Subscribe()
	defer end()
	every := failover.Cadence(o.timing)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var snap *cluster.Snapshot
	var seen detector.State
	var held failover.State
	for {
		select {
		case <-ctx.Done():
			return
		case snap = <-snapshots:
			continue
		case <-tick.C:
		}
		began := threadTime()
		now := o.clock.Now()
		seen, _ = detector.Step(seen, detector.Observation{Now: now, Self: o.name, Snapshot: snap, Timing: o.timing, OwnKeepalive: now})
		if snap == nil {
			continue
		}
		f := failover.Frame{
			Every: every, Self: o.name, Timing: o.timing, Settings: cluster.DefaultFailoverSettings(), Primary: true, Holder: o.name, Blind: seen.Blind,
		}
		f.Look(snap, func(n cluster.NodeID) failover.Seen {
			s := seen.Nodes[n]
			return failover.Seen{Liveness: s.Liveness, Excused: s.Excuse != ""}
		})
		held, _, _ = failover.Step(held, f)
		o.keep(threadTime()-began, seen)
	}
}

func (o *observer) keep(took time.Duration, seen detector.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.looks = append(o.looks, millis(took))
	for n, s := range seen.Nodes {
		if s.Liveness > cluster.LiveLate {
			o.lost[n] = true
		}
	}
}

// found is how long its looks took, in ms, and how many of the nodes, all of
// which live, it took for lost at any time.
func (o *observer) found() (looks []float64, lost float64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.looks, float64(len(o.lost))
}

// threadTime is the processor time of this thread; what others take meanwhile
// is not in it.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
