package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// Config is what an agent is told at start.
type Config struct {
	Node        cluster.NodeID
	Mode        cluster.Mode
	Priority    int
	ClusterName string
	Incarnation cluster.Incarnation
	BootID      string
	Host        string // for the message that refuses a duplicate: host name and addresses
	NodeUUID    string // of the state folder
	API         string
	Peer        string // host:port at which this node answers others; empty: it does not
	MACs        []string
	Fencing     string
	Timing      cluster.Timing
	Addresses   []cluster.FloatingAddress
	Services    []cluster.ServiceSpec
	Yield       bool   // on_start_failure: yield
	DeadProof   bool   // require_dead_proof
	FenceTests  string // fencing.test_schedule, a cron expression; empty: FenceTestSchedule
	// Failsafe is role.failsafe: in an outage of the store this node goes on as
	// primary by the word of all other coordinators. Only with Deps.Peers.
	Failsafe bool
	// LongestTTL is the largest role_ttl that this host's state folder has seen
	// in use, this one among them (StateFolder.UseTTL): an earlier start may have
	// promised for as long. Required with Deps.Peers.
	LongestTTL time.Duration
	Version    string // program version, published as pvcversion
	NewID      func(cluster.Epoch) string
	WallMS     func() int64
}

// Deps are the parts an agent works with.
type Deps struct {
	Clock     cluster.Clock
	Log       *zap.Logger
	Store     Store
	Locker    Locker
	Tree      Tree
	Guard     Guard
	Sweeper   Sweeper
	Historian Historian // nil: nobody trims
	Collector *Collection
	Fencer    Fencer // nil: nothing is fenced
	Peers     Peers  // nil: nodes do not talk directly, and there is no failsafe
	Notify    Notifier
	// Faults says what stands against this node's health beside what the agent
	// sees itself, each in words with its cure; it must not block. nil: nothing.
	Faults func() []string
	// Turned is called each time the keepalive loop turns: the service
	// manager's watchdog is fed from here.
	Turned func(now cluster.Instant)
	// Remember is called once the tree is known to be this cluster's.
	Remember func(clusterName string) error
}

// Agent is one node's daemon.
type Agent struct {
	c     Config
	d     Deps
	exec  *executor
	dec   *decider
	keep  *Keepalive
	watch *nodeWatch

	addresses addressBook
	watchdog  atomic.Pointer[cluster.WatchdogWord] // as the guard said last
}

// New assembles an agent; it starts nothing.
func New(c Config, d Deps) (*Agent, error) {
	var own *writes
	if d.Peers != nil {
		own = watchWrites(d.Store, d.Clock)
		d.Store = own
	}
	a := &Agent{c: c, d: d}
	a.dec = newDecider(role.Config{
		Node: c.Node, Mode: c.Mode, Incarnation: c.Incarnation, Priority: c.Priority, Timing: c.Timing,
		Addresses: c.Addresses, Services: c.Services, Yield: c.Yield, DeadProof: c.DeadProof, NewID: c.NewID,
		Failsafe: c.Failsafe && d.Peers != nil, ID: c.NodeUUID,
	}, d.Clock, d.Log, c.WallMS)
	a.exec = newExecutor(c, d, a.dec.post)
	a.dec.exec = a.exec
	keep, err := a.newKeepalive()
	if err != nil {
		return nil, err
	}
	a.keep = keep
	if a.dec.outage, err = newOutage(c, d, a.dec, keep, own); err != nil {
		return nil, err
	}
	a.watch = newNodeWatch(c, d, a.dec, keep)
	a.watch.mayFence = a.dec.mayFence
	a.dec.outage.claim = a.watch.claiming
	a.dec.outage.tell, a.dec.outage.spawn = a.exec.note, a.exec.wg.Go
	a.dec.outage.move = func(d cluster.RoleDeadline) { offer(a.exec.nodeTo, d) }
	a.exec.nodeDeadline = a.dec.outage.nodeDeadline
	return a, nil
}

const (
	// historyKeep bounds /agent/history: ZooKeeper's tree is to stay small.
	historyKeep = 1000
	// historyFlood is from how many entries on any coordinator trims, whoever is
	// primary and whether anybody is.
	historyFlood = 5 * historyKeep
)

// schedule holds the housekeeping that has no hurry.
func (a *Agent) schedule() (*Schedule, error) {
	s := NewSchedule(a.d.Log)
	if err := a.watch.orders.schedule(s, a.c.FenceTests); err != nil {
		return nil, err
	}
	if a.d.Historian == nil {
		return s, nil
	}
	return s, s.Add("trim history", "@every 10m", a.trimHistory)
}

// trimHistory removes the history's oldest entries: the primary what is above
// the bound, another coordinator what an absent primary lets grow far above it.
func (a *Agent) trimHistory(ctx context.Context) {
	if a.c.Mode != cluster.Coordinator {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if !a.dec.status().Role.Leads() {
		if n, err := a.d.Historian.HistoryLength(ctx); err != nil || n <= historyFlood {
			return
		}
	}
	removed, err := a.d.Historian.TrimHistory(ctx, historyKeep)
	if err != nil {
		a.d.Log.Warn("trimming the history failed", zap.Int("removed", removed), zap.Error(err))
		return
	}
	a.d.Log.Info("history trimmed", zap.Int("removed", removed))
}

// newKeepalive wires the loop to the store through the decide goroutine.
func (a *Agent) newKeepalive() (*Keepalive, error) {
	return NewKeepalive(KeepaliveConfig{
		Node: a.c.Node, Interval: a.c.Timing.KeepaliveInterval,
		CollectLead: a.c.Timing.KeepaliveInterval / 2, // where a renewal lies: one wake-up for both
		Clock:       a.d.Clock, Log: a.d.Log, Collection: a.d.Collector, Publish: a.exec.publish,
		Wall: func() time.Time { return time.UnixMilli(a.c.WallMS()) },
		Repair: func(ctx context.Context, ops []cluster.Op) error {
			if err := a.d.Tree.EnsureNode(ctx, a.c.Node, a.c.Mode); err != nil {
				return err
			}
			return CreateMissing(a.d.Store.Commit)(ctx, ops)
		},
		Turned: a.d.Turned, Acknowledged: func(sent cluster.Instant) { a.dec.outage.acknowledged(sent) },
	})
}

// Run keeps the node alive until ctx ends, and then shuts down in order: state
// `shutdown`, the role given up, `stop` as the last write. It returns nil after
// an orderly end.
func (a *Agent) Run(ctx context.Context) error {
	// The work goes on through the shutdown: its contexts do not end with ctx.
	work, stopWork := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWork(errors.New("agent has ended"))

	a.d.Notify.Status("waiting for ZooKeeper")
	schedule, err := a.schedule()
	if err != nil {
		return err
	}
	reg := newRegistrar(a.c, a.d)
	reg.word = a.watchdog.Load
	if err := reg.first(ctx); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	var wg sync.WaitGroup
	start := func(run func(context.Context)) {
		wg.Go(func() { run(work) })
	}
	keepCtx, stopKeep := context.WithCancel(work)
	keepDone := make(chan struct{})
	start(a.dec.run)
	start(a.exec.runExtender)
	start(a.exec.runNodeDeadline)
	start(a.exec.notes.run)
	start(a.forwardGuardEvents)
	start(func(ctx context.Context) {
		reg.run(ctx, func() *cluster.Snapshot { return a.dec.status().Snapshot }, a.dec.post, a.keep)
	})
	start(a.warmPreflight)
	start(a.watchGuard)
	watchCtx, stopWatch := context.WithCancel(work)
	watchDone := make(chan struct{})
	wg.Go(func() {
		defer close(watchDone)
		a.watch.run(watchCtx)
	})
	endWatch := func(ctx context.Context) {
		stopWatch()
		select {
		case <-watchDone:
		case <-ctx.Done():
		}
	}
	defer stopWatch()
	start(func(ctx context.Context) {
		if err := schedule.Run(ctx); err != nil {
			a.d.Log.Warn("a scheduled job has not ended", zap.Error(err))
		}
	})
	go func() { // the shutdown script waits for it
		defer close(keepDone)
		if err := a.keep.Run(keepCtx); err != nil {
			a.d.Log.Warn("the keepalive loop has ended", zap.Error(err))
		}
	}()

	a.dec.post(role.Event{Registered: &role.Registered{At: reg.at, Session: reg.session, Usurped: reg.usurped}})
	if err := a.keep.SetState(cluster.DaemonRun); err != nil {
		a.d.Log.Error("setting the daemon state failed", zap.Error(err))
	}
	a.d.Notify.Ready()
	a.d.Log.Info("registered", zap.String("node", string(a.c.Node)), zap.String("incarnation", string(a.c.Incarnation)))

	<-ctx.Done()
	a.shutdown(work, endWatch, stopKeep, keepDone)
	stopWork(errors.New("agent shuts down"))
	wg.Wait()
	a.exec.wait()
	return nil
}

// shutdown is the ordered script; the keepalive runs through all of it and its
// last write is `stop` (protocol §3).
func (a *Agent) shutdown(ctx context.Context, endWatch func(context.Context), stopKeep func(), keepDone <-chan struct{}) {
	a.d.Log.Info("shutting down")
	a.d.Notify.Stopping()
	if err := a.keep.SetState(cluster.DaemonShutdown); err != nil {
		a.d.Log.Error("setting the daemon state failed", zap.Error(err))
	}
	a.dec.post(role.Event{Stop: true})
	limit := a.stopLimit()
	inOrder := a.dec.waitEnded(ctx, limit)
	if !inOrder {
		a.d.Log.Error("the role was not given up in time; ending its effects", zap.Duration("limit", limit))
		end, cancel := context.WithTimeout(ctx, 5*time.Second)
		epoch, deadline, _ := a.dec.status().Role.Holds()
		if err := a.exec.endRole(end, cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: deadline}); err != nil {
			a.d.Log.Error("ending the role's effects failed; the guard ends them at its deadline", zap.Error(err))
		}
		cancel()
	}
	flush, cancelFlush := context.WithTimeout(ctx, 2*a.c.Timing.KeepaliveInterval)
	endWatch(flush) // `stop` is the last write
	a.exec.notes.flush(flush)
	cancelFlush()
	final, cancel := context.WithTimeout(ctx, 2*a.c.Timing.KeepaliveInterval)
	defer cancel()
	if r := a.keep.Final(final); r.Outcome != cluster.OutcomeOK {
		a.d.Log.Warn("the final keepalive was not acknowledged", zap.Stringer("outcome", r.Outcome), zap.Error(r.Err))
	} else if inOrder && a.dec.status().Role.Mode == role.Idle {
		a.relinquish(final)
	}
	stopKeep()
	<-keepDone
	if err := a.d.Collector.Close(final); err != nil {
		a.d.Log.Warn("a collector has not ended", zap.Error(err))
	}
}

// relinquish tells the guard that nothing is here any more and that the others
// know: only then may the machine's watchdog be stopped.
func (a *Agent) relinquish(ctx context.Context) {
	g, ok := a.d.Guard.(Relinquisher)
	if !ok {
		return
	}
	if err := g.Relinquish(ctx); err != nil {
		a.d.Log.Warn("the guard did not take the orderly end; an armed watchdog stays armed", zap.Error(err))
	}
}

// stopLimit bounds the giving up of the role: services, hand-over, release.
func (a *Agent) stopLimit() time.Duration {
	limit := 15*time.Second + a.c.Timing.TransitionDelay + 2*a.c.Timing.RoleTTL
	for _, s := range a.c.Services {
		limit += s.StopTimeout + s.StartTimeout
	}
	return limit
}

// Status is the latest picture of what the agent does and why.
func (a *Agent) Status() Status { return a.dec.status() }

func (a *Agent) forwardGuardEvents(ctx context.Context) {
	events := a.d.Guard.Events()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			a.d.Log.Info("guard event", zap.String("kind", e.Kind), zap.String("text", e.Text), zap.Uint64("epoch", uint64(e.Epoch)))
			switch e.Kind {
			case "ended":
				a.dec.post(role.Event{GuardEnded: &e})
			case "service_exited":
				a.dec.post(role.Event{ServiceExited: &e})
			}
		}
	}
}

// warmPreflight asks each tick whether this host could serve, so that a
// failover never has to find out. Of the primary, which serves, it is asked
// only every few ticks: its guard tells by itself what goes wrong there.
func (a *Agent) warmPreflight(ctx context.Context) {
	if a.c.Mode != cluster.Coordinator {
		return
	}
	timer := time.NewTimer(a.c.Timing.KeepaliveInterval)
	defer timer.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, a.c.Timing.CollectorDeadline)
		res, err := a.d.Guard.Preflight(ask, cluster.PreflightRequest{Addresses: a.c.Addresses, Services: a.c.Services})
		cancel()
		if err != nil {
			res.Problems = []string{fmt.Sprintf("the guard did not answer: %v", err)}
		}
		a.dec.post(role.Event{Preflight: &role.PreflightDone{Problems: res.Problems, MaxEpoch: res.MaxEpoch}})
		every := a.c.Timing.KeepaliveInterval
		if a.dec.status().Role.Mode == role.Primary {
			every *= 5
		}
		timer.Reset(a.keep.grid.next(a.d.Clock.Now(), every))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
	}
}

// watchGuard asks the guard at the start and every 5 K what it holds: events
// are lost while no connection to it stands, and with an earlier daemon (I2).
func (a *Agent) watchGuard(ctx context.Context) {
	ticker := time.NewTicker(5 * a.c.Timing.KeepaliveInterval)
	defer ticker.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, a.c.Timing.CollectorDeadline)
		state, err := a.d.Guard.State(ask)
		cancel()
		if err == nil {
			a.dec.post(role.Event{GuardState: &state})
			a.watchdog.Store(state.Watchdog.Word(a.c.Timing.StopAfter()))
		} else if ctx.Err() == nil {
			a.d.Log.Debug("the guard did not tell what it holds", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
