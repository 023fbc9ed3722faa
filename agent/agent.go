package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/failover"
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
	// NodeLeases: this node serves leaders by node leases, and as primary asks all
	// nodes for theirs. Only with Deps.Peers and Deps.LeaseFile.
	NodeLeases bool
	// LongestNodeLease is the longest period of a node lease ever in use on this
	// host: what a lease file that cannot be read may have promised. 0: the
	// present one.
	LongestNodeLease time.Duration
	Version          string // program version, published as pvcversion
	NewID            func(cluster.Epoch) string
	WallMS           func() int64
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
	LeaseFile LeaseFile // nil: no node leases
	// Copies runs the copies of workloads here; nil: this node takes none. They are
	// used only where node leases are.
	Copies Copies
	// Activities reads the records that this node's activities leave in the store.
	Activities ActivityRecords
	// Schemas tells what this program can make of the store's tree; nil: it writes
	// the first schema, and migrates nothing.
	Schemas Schemas
	// Records lists what the store keeps of a node that is to be removed.
	Records NodeRecords
	// LeaseFollower and LeaseHolder are what hangs on node leases, as the node that
	// serves a leader and as the leader; nil: nothing does.
	LeaseFollower LeaseFollower
	LeaseHolder   LeaseHolder
	// Faults says what stands against this node's health beside what the agent
	// sees itself, each in words with its cure; it must not block. nil: nothing.
	Faults func() []string
	// NodeLog holds the newest log lines, which are brought to the store; nil, or
	// without Texts: none are.
	NodeLog *NodeLog
	Texts   Texts
	// Turned is called each time the keepalive loop turns: the service
	// manager's watchdog is fed from here.
	Turned func(now cluster.Instant)
	// Exit ends this process at once, with a status after which it is started again:
	// the last rung, where something of an activity cannot be ended. It may be called
	// more than once. nil: Run returns ErrAbandoned instead.
	Exit func()
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
	logs  *logShipper // nil: no log goes to the store

	domain *domainState // before keep, which calls it

	granting   *granting // nil: node leases are not in use
	holding    *holding  // nil with it
	activities *activities
	acting     *acting
	copies     *copyOrders    // nil: no workload has a copy here, and this node asks for none
	rounds     *copyRounds    // nil with it
	hinter     *copyHinter    // nil with it
	workloads  *workloadWatch // nil with it, and on a hypervisor

	addresses addressBook
	watchdog  atomic.Pointer[cluster.WatchdogWord] // as the guard said last
	settling  atomic.Bool                          // Settling was called
	settles   chan struct{}                        // one slot: it was called just now
	turns     turns
}

// New assembles an agent; it starts nothing.
func New(c Config, d Deps) (*Agent, error) {
	var own *writes
	direct := d // what is not to count as this node's own writes
	if d.Peers != nil {
		own = watchWrites(d.Store, d.Clock)
		d.Store = own
	}
	a := &Agent{c: c, d: d, settles: make(chan struct{}, 1)}
	a.logs = newLogShipper(c, direct, func() bool {
		snap := a.dec.status().Snapshot
		return snap != nil && snap.Live
	}, func() bool {
		snap := a.dec.status().Snapshot
		return snap == nil || !snap.Transition.Present || !snap.Transition.Value.Running()
	})
	a.dec = newDecider(role.Config{
		Node: c.Node, Mode: c.Mode, Incarnation: c.Incarnation, Priority: c.Priority, Timing: c.Timing,
		Addresses: c.Addresses, Services: c.Services, Yield: c.Yield, DeadProof: c.DeadProof, NewID: c.NewID,
		Failsafe: c.Failsafe && d.Peers != nil, ID: c.NodeUUID,
	}, d.Clock, d.Log, c.WallMS)
	a.exec = newExecutor(c, d, a.dec.post)
	a.dec.exec = a.exec
	a.domain = newDomainState(c, d, func() *cluster.Snapshot { return a.dec.status().Snapshot }, func() map[string]string { return a.keep.values() })
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
	a.newActivities()
	return a, nil
}

// newActivities assembles what runs under leases: as the leader, and for one.
func (a *Agent) newActivities() {
	c, d := a.c, a.d
	latest := func() *cluster.Snapshot { return a.dec.status().Snapshot }
	a.acting = &acting{self: c.Node}
	var granter activity.Granter
	if usesLeases(c, d) {
		granter = a.acting
	}
	a.activities = newActivities(c, d, d.Activities, granter, func() (bool, *cluster.Snapshot) {
		status := a.dec.status()
		return status.Role.Leads(), status.Snapshot
	})
	a.acting.m, a.exec.rights = a.activities.Manager(), a.activities.Manager()
	if d.LeaseHolder == nil {
		d.LeaseHolder = a.acting
	}
	if d.LeaseFollower == nil {
		d.LeaseFollower = a.acting
	}
	a.granting = newGranting(c, d, latest)
	a.holding = newHolding(c, d, a.granting, latest, a.keep)
	a.acting.own = a.granting
	if a.granting != nil {
		a.watch.soft.remote = a.activities.Manager()
	}
	if usesCopies(c, d) {
		a.copies = newCopyOrders(c, d, a.activities.Manager())
		a.copies.serves, a.copies.learn = a.acting.Current, a.learn
		a.rounds = newCopyRounds(c, d, latest, a.copies)
		a.hinter = &copyHinter{c: c, d: d, latest: latest, rounds: a.rounds}
		if c.Mode == cluster.Coordinator {
			a.workloads = newWorkloadWatch(c, d, a.dec.status, a.activities.Manager(), a.rounds)
			a.workloads.takeMoves(newMoves(a.workloads))
			a.watch.lastCopy, a.watch.faultyWorkloads = a.workloads.lastCopy, a.workloads.faults
			a.workloads.majority = func() string {
				_, why := a.holding.holds(cluster.Majority())
				return why
			}
		}
	}
	a.dec.led = func(s role.State) {
		a.acting.lead(s)
		a.holding.follow(s)
		a.workloads.follow(s)
	}
	a.watch.acts = a.activities.Manager()
	a.watch.members.foreign = func(cluster.Versioned[cluster.QuorumSet]) { a.watch.fences.Go(a.endOfQuorumSet) }
	if a.holding != nil {
		a.granting.heard, a.holding.heard = a.dec.hear, a.dec.hear
		a.watch.members.holds, a.watch.without = a.holding.majorities, a.holding.without
		a.watch.quorum = func() failover.Opinion {
			_, held, why := a.QuorumHeld()
			if held {
				why = ""
			}
			return failover.Opinion{InUse: true, Against: why}
		}
	}
}

// endOfQuorumSet ends what rests on a quorum set that somebody else has replaced.
func (a *Agent) endOfQuorumSet() {
	ctx, cancel := context.WithTimeout(context.Background(), serveWithin)
	defer cancel()
	if err := a.activities.Manager().EndLeader(ctx, cluster.ErrSetReplaced); err != nil {
		a.d.Log.Error("what rested on the former quorum set has not ended", zap.Error(err))
	}
}

// Welcome says why a node may not talk to this one, nil where it may (Welcome).
func (a *Agent) Welcome(n cluster.NodeID) error {
	return Welcome(func() *cluster.Snapshot { return a.dec.status().Snapshot }, a.c.Mode == cluster.Coordinator)(n)
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
	schema, others, err := a.ownSchema()
	if err != nil {
		return nil, err
	}
	return NewKeepalive(KeepaliveConfig{
		Schema: schema, Incarnation: a.c.Incarnation, Others: others,
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
		Turned: a.d.Turned, Acknowledged: func(sent cluster.Instant) { a.dec.outage.acknowledged(sent); a.domain.look() },
	})
}

// Run keeps the node alive until ctx ends, and then shuts down in order: state
// `shutdown`, the role given up, `stop` as the last write. It returns nil after
// an orderly end.
func (a *Agent) Run(ctx context.Context) error {
	// The work goes on through the shutdown: its contexts do not end with ctx.
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	work, stopWork := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWork(errors.New("agent has ended"))

	a.d.Notify.Status("waiting for ZooKeeper")
	schedule, err := a.schedule()
	if err != nil {
		return err
	}
	reg := newRegistrar(a.c, a.d)
	reg.word, reg.removed = a.watchdog.Load, end
	reg.settles, reg.poked = a.settling.Load, a.settles
	var wg sync.WaitGroup
	start := func(run func(context.Context)) {
		wg.Go(func() { run(work) })
	}
	if a.granting != nil { // first of all: it answers for what earlier starts have promised
		start(a.granting.run)
	}
	given := a.watchStuck(ctx, work, end, stopWork)
	a.awaitGuard(ctx)
	if err := reg.first(ctx); err != nil {
		if why := abandoned(ctx, given); why != nil {
			return why
		}
		a.endOwnLease(work, err)
		stopWork(errors.New("agent has ended"))
		wg.Wait()
		return fmt.Errorf("register: %w", err)
	}
	keepCtx, stopKeep := context.WithCancel(work)
	defer stopKeep()
	keepDone := make(chan struct{})
	for _, run := range a.loops(reg, schedule) {
		start(run)
	}
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
	go func() { // the shutdown script waits for it
		defer close(keepDone)
		if err := a.keep.Run(keepCtx); err != nil {
			a.d.Log.Warn("the keepalive loop has ended", zap.Error(err))
		}
	}()

	a.registered(reg)
	<-ctx.Done()
	if why := abandoned(ctx, given); why != nil {
		return why
	}
	a.shutdown(work, context.Cause(ctx), endWatch, stopKeep, keepDone)
	stopWork(errors.New("agent shuts down"))
	if a.activities.Manager().Counts().Stragglers > 0 { // `stop` is written; what hangs must not keep this process
		a.goWithin(abandonWithin)
	}
	<-given
	wg.Wait()
	a.exec.wait()
	if why := context.Cause(ctx); errors.Is(why, cluster.ErrRemoved) || errors.Is(why, cluster.ErrSchemaNewer) {
		return why
	}
	return nil
}

// learn takes in what the leader that this node serves says of the coordinators: all
// that a hypervisor, which does not follow their records, knows of them. Who asks by
// an older list is refused by whoever knows of one more.
func (a *Agent) learn(all map[cluster.NodeID]coordinator) {
	if a.c.Mode == cluster.Hypervisor {
		a.dec.outage.taught.Store(&all)
		a.addresses.teach(all)
	}
}

// registered begins the life of a node that the cluster knows.
func (a *Agent) registered(reg *registrar) {
	a.dec.post(role.Event{Registered: &role.Registered{At: reg.at, Session: reg.session, Usurped: reg.usurped}})
	if err := a.keep.SetState(cluster.DaemonRun); err != nil {
		a.d.Log.Error("setting the daemon state failed", zap.Error(err))
	}
	a.d.Notify.Ready()
	a.d.Log.Info("registered", zap.String("node", string(a.c.Node)), zap.String("incarnation", string(a.c.Incarnation)))
}

// loops are what runs beside the keepalive and the node watch until all has ended.
func (a *Agent) loops(reg *registrar, schedule *Schedule) []func(context.Context) {
	loops := []func(context.Context){
		a.activities.run, a.dec.run, a.domain.run, a.exec.runExtender, a.exec.runNodeDeadline, a.exec.notes.run, a.forwardGuardEvents,
		a.warmPreflight, a.watchGuard, newMigrating(a.c, a.d, a.dec.status, a.keep).run,
		func(ctx context.Context) {
			reg.run(ctx, func() *cluster.Snapshot { return a.dec.status().Snapshot }, a.dec.post, a.keep)
		},
		func(ctx context.Context) {
			if err := schedule.Run(ctx); err != nil {
				a.d.Log.Warn("a scheduled job has not ended", zap.Error(err))
			}
		},
	}
	if a.holding != nil {
		loops = append(loops, a.holding.run)
	}
	if a.copies != nil {
		loops = append(loops, a.hinter.run)
	}
	if a.workloads != nil {
		loops = append(loops, a.workloads.run)
	}
	if a.logs != nil {
		loops = append(loops, a.logs.run)
	}
	return loops
}

// shutdown is the ordered script; the keepalive runs through all of it and its
// last write is `stop` (protocol §3).
func (a *Agent) shutdown(ctx context.Context, why error, endWatch func(context.Context), stopKeep func(), keepDone <-chan struct{}) {
	a.d.Log.Info("shutting down")
	a.d.Notify.Stopping()
	if err := a.keep.SetState(cluster.DaemonShutdown); err != nil {
		a.d.Log.Error("setting the daemon state failed", zap.Error(err))
	}
	if a.holding != nil {
		a.holding.stopping.Store(true)
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
	a.endActivities(ctx)
	a.endLeases(ctx)
	a.endOwnLease(ctx, why)
	flush, cancelFlush := context.WithTimeout(ctx, 2*a.c.Timing.KeepaliveInterval)
	endWatch(flush) // `stop` is the last write
	a.exec.notes.flush(flush)
	a.logs.flush(flush)
	cancelFlush()
	final, cancel := context.WithTimeout(ctx, 2*a.c.Timing.KeepaliveInterval)
	defer cancel()
	if r := a.keep.Final(final); r.Outcome != cluster.OutcomeOK {
		a.d.Log.Warn("the final keepalive was not acknowledged", zap.Stringer("outcome", r.Outcome), zap.Error(r.Err))
	} else {
		a.leaveCopies(final, why)
		if inOrder && a.dec.status().Role.Mode == role.Idle {
			a.relinquish(final)
		}
	}
	stopKeep()
	<-keepDone
	a.keep.closeOthers(final)
	if err := a.d.Collector.Close(final); err != nil {
		a.d.Log.Warn("a collector has not ended", zap.Error(err))
	}
}

// endActivities waits until nothing of any activity lives here any more.
func (a *Agent) endActivities(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*a.c.Timing.KeepaliveInterval)
	defer cancel()
	if err := a.activities.Close(ctx); err != nil {
		a.d.Log.Error("an activity has not ended, or was not told of", zap.Error(err))
	}
	if a.copies != nil {
		if err := a.copies.close(ctx); err != nil {
			a.d.Log.Error("what was ordered here of copies has not ended", zap.Error(err))
		}
	}
}

// leaveCopies gives the copies that stay here the time that this daemon's last word
// gives: they go on without it for as long as the node's own right lasts, Q·K from
// now, within which the next daemon takes that over (I9). The guard ends them then.
// A node that was removed ends them at once: it is nobody's any more.
func (a *Agent) leaveCopies(ctx context.Context, why error) {
	if a.copies == nil {
		return
	}
	if errors.Is(why, cluster.ErrRemoved) {
		if err := a.d.Guard.End(ctx, cluster.OwnerNode, cluster.NodeEpoch); err != nil {
			a.d.Log.Error("the copies of workloads on this node, which was removed, are not verified gone; the guard goes on ending them", zap.Error(err))
		}
		return
	}
	d, err := a.dec.outage.nodeDeadline(ctx)
	if err == nil {
		err = a.exec.tellNode(ctx, d)
	}
	if err != nil {
		a.d.Log.Warn("the guard was not told of this daemon's last keepalive; it ends the copies here a little earlier", zap.Error(err))
	}
}

// endLeases waits until the leases that this node has held as the leader that it
// was are given back: the others need not wait for their end then.
func (a *Agent) endLeases(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*a.c.Timing.KeepaliveInterval)
	defer cancel()
	a.holding.finish(ctx)
}

// endOwnLease writes down what is left of the lease by which this node serves a
// leader; where it ends since it was removed (cluster.ErrRemoved) nothing is.
func (a *Agent) endOwnLease(ctx context.Context, why error) {
	ctx, cancel := context.WithTimeout(ctx, a.c.Timing.KeepaliveInterval)
	defer cancel()
	end := a.granting.stop
	if errors.Is(why, cluster.ErrRemoved) {
		end = a.granting.leave
	}
	if err := end(ctx); err != nil {
		a.d.Log.Warn("this node's lease did not end in order; its whole period counts at the next start", zap.Error(err))
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

// StepDown gives the primary role up, in order as at the end of Run, and has this
// daemon contend for it no more; all else goes on. It does not wait for that.
func (a *Agent) StepDown() { a.dec.post(role.Event{Stop: true}) }

// Settling has this node say that its copies of workloads are ending, so that it is
// given none any more, and returns once that stands in the store. It is said until
// this daemon ends, also where ctx ends before and the error says so: then something
// that is recovered just now may still be ordered to start here. To be called before
// the copies are ended; Run goes on.
func (a *Agent) Settling(ctx context.Context) error {
	snapshots, unsubscribe := a.d.Store.Subscribe()
	defer unsubscribe()
	a.settling.Store(true)
	poke(a.settles)
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("tell the others that the copies here are ending: %w", context.Cause(ctx))
		case snap, open := <-snapshots:
			if !open {
				snapshots = nil
			} else if snap != nil && snap.Nodes[a.c.Node].Settles() && snap.Nodes[a.c.Node].Record.Value.Incarnation == a.c.Incarnation {
				return nil
			}
		}
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
		} else {
			a.turns.preflight.set(a.d.Clock.Now())
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

// guardPatience is how long a start waits for its guard to listen. Both may have
// been replaced together, and a role that is resumed before its guard answers is
// given up (I9).
const guardPatience = 2 * time.Second

// awaitGuard waits until the guard answers. One that does not come is left to
// pre-flight and to the role, which say so.
func (a *Agent) awaitGuard(ctx context.Context) {
	await, cancel := context.WithTimeout(ctx, guardPatience)
	defer cancel()
	for {
		state, err := a.d.Guard.State(await)
		if err == nil {
			a.prepareResume(ctx, state)
			return
		}
		if await.Err() != nil {
			return
		}
		pause(await, guardPatience/40)
	}
}

// resumePatience bounds how long a start waits for a disk that is slow.
const resumePatience = 10 * time.Second

// prepareResume has a guard that holds the role of an earlier start write the next
// epoch down, before the lease names it. From then on there is less than a role_ttl
// for it, and a disk that takes longer would cost the role (I9); until then nobody
// waits for this node but for half of the time that the guard holds the role by
// itself. It is no matter if it fails: Begin does the same.
func (a *Agent) prepareResume(ctx context.Context, state cluster.GuardState) {
	for _, d := range state.Deadlines {
		if d.Owner != cluster.OwnerPrimary {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, min(resumePatience, d.Deadline.Sub(a.d.Clock.Now())/2))
		res, err := a.d.Guard.Preflight(ask, cluster.PreflightRequest{Epoch: max(d.Epoch, state.MaxEpoch) + 1})
		cancel()
		if err != nil || len(res.Problems) > 0 {
			a.d.Log.Warn("the epoch at which this node would go on as primary is not on disk yet", zap.Strings("problems", res.Problems), zap.Error(err))
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
			a.turns.guard.set(a.d.Clock.Now())
			a.dec.post(role.Event{GuardState: &state})
			a.watchdog.Store(state.Watchdog.Word(a.c.Timing.StopAfter()))
			a.dec.outage.here.Store(slices.ContainsFunc(state.Services, func(s cluster.ServiceState) bool { return s.Owner == cluster.OwnerNode && (s.Running || s.Left) }))
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
