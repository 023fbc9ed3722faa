package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/lease"
	"pvc.internal/cluster"
)

// LeaseFile keeps what this node has promised leaders over restarts
// (lease.File). Only one goroutine calls it, and it may be slow.
type LeaseFile interface {
	// Read has no error: what cannot be read is a promise to somebody unknown.
	Read() lease.Found
	// Write returns once the record is on disk.
	Write(lease.Record) error
	// Remove returns once no file is there any more.
	Remove() error
}

// LeaseFollower is the part of this node that works for the leader whom it serves.
type LeaseFollower interface {
	// Serve tells from whom work is taken from now on. It does not block. What it
	// returns does, until nothing lives here any more that must not beside his work;
	// an error says that something may, or that another was told of meanwhile. Before
	// that nobody is told that he is served (A14).
	Serve(id cluster.NodeLeaseID) (settled func(context.Context) error)
	// Revoke has no more work taken for the id (zero: for anybody), ends what there
	// is and returns when nothing of it lives here any more; an error says that
	// something may. It may be called again for the same id.
	Revoke(ctx context.Context, id cluster.NodeLeaseID) error
}

// idleFollower works for nobody.
type idleFollower struct{}

func (idleFollower) Serve(cluster.NodeLeaseID) func(context.Context) error {
	return func(context.Context) error { return nil }
}
func (idleFollower) Revoke(context.Context, cluster.NodeLeaseID) error { return nil }

// granting is the shell around lease.Granter: this node's word to leaders. One
// goroutine steps it; the disk has a goroutine of its own, so that neither an
// answer that needs no write nor anything else of this node waits for it (I10).
//
//	question ─▶ run ─▶ Serve ─▶ timer ─▶ what must be dead is ─▶ disk ─▶ run ─▶ answer
//	                 └▶ Revoke, until the work is dead ─▶ run ─▶ disk, invitation
//
// From start to the end of run every question gets an answer; outside of that
// it is refused as one that may be put again.
type granting struct {
	c      Config
	d      Deps
	follow LeaseFollower
	// member says why a node that asks is no member; errNotKnownYet: nobody can
	// tell yet, and it may ask again.
	member func(cluster.NodeID) error
	toSelf func(cluster.NodeLeaseID) // invites this node's own leader

	in      chan granted
	disk    chan diskChange // one slot: the newest counts alone
	ended   chan struct{}   // run has returned
	resting chan struct{}   // nothing of the disk is under way any more
	owned   sync.WaitGroup  // revocations and invitations

	// heard is told of epochs larger than those before, as this node has seen them;
	// it does not block. nil: nobody.
	heard func(cluster.Epoch)

	mu sync.RWMutex // guards g for Check; only run writes it
	g  lease.Granter

	// run's own
	timer    *time.Timer
	tickets  uint64
	waiting  map[uint64]chan<- cluster.NodeLeaseAnswer
	revoking uint64         // the revocation that is under way; 0: none
	writing  uint64         // the change that the disk has not answered yet; 0: none
	failed   string         // why the newest change was not written
	settling *settling      // of the newest Serve, until a Revoke; nil: none
	unserved string         // why nobody can be served yet, as of the newest change; empty: the disk, if anything
	settled  []chan<- error // whoever waits for the disk after a stop or a leave
}

// granted is one thing that happened to the granter, or, without a kind, that a
// try to end work has failed: the granter asks for the next by itself.
type granted struct {
	lease.Input
	reply   chan<- cluster.NodeLeaseAnswer // of a question
	tried   uint64                         // the revocation that one try has ended for
	living  string                         // what must be dead before the disk is written, and is not
	settled chan<- error                   // of a stop or a leave: told when the disk is done with it; one slot
}

type diskChange struct {
	seq    uint64
	record *lease.Record // nil: the file goes
	after  *settling     // what comes before it; nil: nothing
}

// settling is the wait for what must be dead before whoever Serve told of has an
// answer, in a goroutine of its own.
type settling struct {
	give context.CancelFunc // gives the wait up
	over chan struct{}      // closed once err says how it went
	err  error
}

// wait returns once nothing stands against an answer any more.
func (s *settling) wait(ctx context.Context) error {
	if s == nil {
		return nil
	}
	select {
	case <-s.over:
		return s.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errNotKnownYet: the records have not been read since this daemon began.
var errNotKnownYet = errors.New("this node has not read yet who belongs to the cluster")

// usesLeases reports whether this node takes part in node leases.
func usesLeases(c Config, d Deps) bool { return c.NodeLeases && d.Peers != nil && d.LeaseFile != nil }

// newGranting makes it, and has it answer; nil where node leases are not in use.
func newGranting(c Config, d Deps, latest func() *cluster.Snapshot) *granting {
	if !usesLeases(c, d) {
		if d.Peers != nil {
			d.Peers.Handle(cluster.NodeLeaseQuestion, refuseLeases(c.Node))
		}
		return nil
	}
	config := lease.NewGranterConfig(c.Node, string(c.Incarnation), c.Timing)
	config.LongestPeriod = c.LongestNodeLease
	g := &granting{
		c: c, d: d, follow: d.LeaseFollower, member: asksAsMember(c, latest), g: lease.NewGranter(config),
		in: make(chan granted), disk: make(chan diskChange, 1), ended: make(chan struct{}), resting: make(chan struct{}),
		waiting: map[uint64]chan<- cluster.NodeLeaseAnswer{},
	}
	if g.follow == nil {
		g.follow = idleFollower{}
	}
	d.Peers.Handle(cluster.NodeLeaseQuestion, g.answer)
	return g
}

// refuseLeases answers in the place of a granter.
func refuseLeases(n cluster.NodeID) func(context.Context, cluster.NodeID, []byte) ([]byte, error) {
	return func(_ context.Context, _ cluster.NodeID, body []byte) ([]byte, error) {
		r, err := cluster.DecodeNodeLeaseRequest(body)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, cluster.ErrRefused)
		}
		return cluster.EncodeNodeLeaseAnswer(cluster.NodeLeaseAnswer{N: r.N, Code: cluster.RefuseLeaseStopping,
			Detail: fmt.Sprintf("node leases are switched off on node %s (node_leases in its pvcnoded.yaml)", n)})
	}
}

// asksAsMember says why a node may not ask for leases here: where the records of
// all are followed it must be a registered coordinator.
func asksAsMember(c Config, latest func() *cluster.Snapshot) func(cluster.NodeID) error {
	all := c.Mode == cluster.Coordinator
	welcome := Welcome(latest, all)
	return func(n cluster.NodeID) error {
		snap := latest()
		if snap == nil || snap.ObservedAt.IsZero() || all && !snap.Complete && len(snap.Nodes) == 0 {
			return errNotKnownYet
		}
		if err := welcome(n); err != nil {
			return err
		}
		view := snap.Nodes[n]
		switch {
		case !all:
			return nil
		case !view.Record.Present && !snap.Complete:
			return errNotKnownYet
		case !view.Record.Present || view.Record.Err != nil:
			return fmt.Errorf("%w: node %s has no record that can be read", cluster.ErrNotInCluster, n)
		case view.Mode.Value == cluster.Hypervisor:
			return fmt.Errorf("%w: node %s is a hypervisor, which is never primary", cluster.ErrNotInCluster, n)
		}
		return nil
	}
}

// ---- questions

// answer is a peer's question.
func (g *granting) answer(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
	r, err := cluster.DecodeNodeLeaseRequest(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, cluster.ErrRefused)
	}
	a, err := g.ask(ctx, from, r)
	if err != nil {
		return nil, err
	}
	return cluster.EncodeNodeLeaseAnswer(a)
}

// ask puts a question to this node's granter; from is proven, or this node
// itself. An error says that none was given in time.
func (g *granting) ask(ctx context.Context, from cluster.NodeID, r cluster.NodeLeaseRequest) (cluster.NodeLeaseAnswer, error) {
	err := g.member(from)
	if errors.Is(err, errNotKnownYet) {
		return cluster.NodeLeaseAnswer{N: r.N, Code: cluster.RefuseLeaseStopping, Left: g.c.Timing.NodeLeaseRenew / 4, Detail: err.Error()}, nil
	}
	reply := make(chan cluster.NodeLeaseAnswer, 1) // run never waits for who asks
	asked := granted{Input: lease.Input{Kind: lease.InputRequest, Request: r, From: from, Member: err == nil}, reply: reply}
	if !g.post(ctx, asked) {
		return cluster.NodeLeaseAnswer{N: r.N, Code: cluster.RefuseLeaseStopping, Detail: fmt.Sprintf("the daemon of node %s starts or ends", g.c.Node)}, ctx.Err()
	}
	select {
	case a := <-reply:
		return a, nil
	case <-ctx.Done():
		return cluster.NodeLeaseAnswer{}, fmt.Errorf("node %s has not written its lease down in time: %w", g.c.Node, context.Cause(ctx))
	case <-g.ended:
		return cluster.NodeLeaseAnswer{}, fmt.Errorf("node %s ends: %w", g.c.Node, cluster.ErrRefused)
	}
}

// post hands something over to run; false if ctx or run has ended.
func (g *granting) post(ctx context.Context, e granted) bool {
	select {
	case g.in <- e:
		return true
	case <-ctx.Done():
	case <-g.ended:
	}
	return false
}

// check is asked at the instant of an effect that was ordered under the id; an
// empty code is leave. It is safe for concurrent use.
func (g *granting) check(id cluster.NodeLeaseID) cluster.Refusal {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.g.Check(id, g.d.Clock.Now())
}

// view shows the granter to people.
func (g *granting) view() lease.GranterView {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.g.View(g.d.Clock.Now())
}

// ---- the goroutine

// run reads what earlier starts have promised, and steps the granter until ctx
// ends. It returns when its revocations have; a disk that hangs is left behind.
func (g *granting) run(ctx context.Context) {
	defer close(g.ended)
	defer g.awaitDisk()
	defer g.owned.Wait()
	g.timer = time.NewTimer(0)
	if !g.timer.Stop() {
		<-g.timer.C
	}
	defer g.timer.Stop()
	found := g.d.LeaseFile.Read()
	if found.Kind == lease.FoundUnreadable {
		g.d.Log.Error("the lease file cannot be read: for the longest period in use nobody is served", zap.String("reason", found.Detail))
	}
	go g.keep(ctx) // awaitDisk waits for it
	g.take(ctx, granted{Input: lease.Input{Kind: lease.InputStart, Found: found}})
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.timer.C:
			g.take(ctx, granted{Input: lease.Input{Kind: lease.InputTimer}})
		case e := <-g.in:
			g.take(ctx, e)
		}
	}
}

// take steps once and carries out what that asks for, in its order.
func (g *granting) take(ctx context.Context, e granted) {
	if e.reply != nil {
		g.tickets++
		e.Ticket = g.tickets
		g.waiting[e.Ticket] = e.reply
	}
	if e.tried != 0 && e.tried == g.revoking {
		g.revoking = 0
	}
	if e.Kind == 0 {
		return
	}
	if e.Kind == lease.InputPersisted && e.Seq == g.writing {
		g.writing, g.failed, g.unserved = 0, e.Failed, e.living
	}
	if e.Kind == lease.InputStop { // its record waits for nothing that lives
		g.forget()
	}
	now := g.d.Clock.Now()
	before := g.g.View(now)
	next, effects := g.g.Step(e.Input, now)
	g.mu.Lock()
	g.g = next
	g.mu.Unlock()
	for i := range effects {
		g.carryOut(ctx, &effects[i], now)
	}
	if e.settled != nil {
		g.settled = append(g.settled, e.settled)
	}
	g.tell(before, g.g.View(now))
	g.settle()
}

// settle lets go of who waits for the last change of the file.
func (g *granting) settle() {
	if len(g.settled) == 0 || g.writing != 0 || g.g.View(0).State == lease.StateExpiring {
		return
	}
	var err error
	if g.failed != "" {
		err = errors.New(g.failed)
	}
	for _, done := range g.settled {
		done <- err
	}
	g.settled = nil
}

// tell tells of what has changed but the time.
func (g *granting) tell(was, is lease.GranterView) {
	if is.Epoch > was.Epoch && g.heard != nil {
		g.heard(is.Epoch)
	}
	if was.State != is.State || was.Holder != is.Holder {
		g.d.Log.Info("node lease", zap.Stringer("from", was.State), zap.Stringer("to", is.State), zap.Stringer("holder", is.Holder))
	}
}

func (g *granting) carryOut(ctx context.Context, e *lease.Effect, now cluster.Instant) {
	switch e.Kind {
	case lease.EffectServe:
		g.serve(ctx, e.Lease)
	case lease.EffectRevoke:
		g.forget()
		g.revoke(ctx, e.Lease, e.Seq)
	case lease.EffectArm:
		g.arm(e.Until, now)
	case lease.EffectPersist:
		c := diskChange{seq: e.Seq, record: &e.Record}
		if g.g.View(now).Pending { // somebody is told once it is written
			c.after = g.settling
		}
		g.change(c)
	case lease.EffectRemove:
		g.change(diskChange{seq: e.Seq})
	case lease.EffectReply:
		answer := e.Answer
		if answer.Code == cluster.RefuseLeaseNotKept && g.unserved != "" {
			answer.Detail = g.unserved
		}
		g.waiting[e.Ticket] <- answer
		delete(g.waiting, e.Ticket)
	case lease.EffectInvite:
		g.invite(ctx, e.To)
	case lease.EffectIllegal:
		g.d.Log.Error("the node lease's machine was given what must not happen", zap.String("detail", e.Detail))
	}
}

func (g *granting) arm(until, now cluster.Instant) {
	g.timer.Stop() // since Go 1.23 nothing stale is in the channel after it
	if !until.IsZero() {
		g.timer.Reset(max(0, until.Sub(now)))
	}
}

// serveWithin bounds the end of what must not live beside a new leader's work.
const serveWithin = 10 * time.Second

// serve tells of a leader, and begins to wait for what must be dead before he is
// told. What had been told of before counts no more.
func (g *granting) serve(ctx context.Context, id cluster.NodeLeaseID) {
	g.forget()
	settled := g.follow.Serve(id)
	ctx, give := context.WithTimeout(ctx, serveWithin)
	s := &settling{give: give, over: make(chan struct{})}
	g.settling = s
	g.owned.Go(func() {
		defer close(s.over)
		defer give()
		if err := settled(ctx); err != nil {
			s.err = fmt.Errorf("node %s does not serve %s yet: what must not live beside his work may: %w", g.c.Node, id, err)
		}
	})
}

// forget gives up waiting for what would let somebody be served.
func (g *granting) forget() {
	if g.settling != nil {
		g.settling.give()
	}
	g.settling = nil
}

// revokeTry bounds one try to end the work of a lease; the granter asks again
// until it is gone.
const revokeTry = 10 * time.Second

// revoke has the work of a lease ended, once at a time.
func (g *granting) revoke(ctx context.Context, id cluster.NodeLeaseID, seq uint64) {
	if g.revoking == seq {
		return
	}
	g.revoking = seq
	g.owned.Go(func() {
		try, cancel := context.WithTimeout(ctx, revokeTry)
		err := g.follow.Revoke(try, id)
		cancel()
		over := granted{tried: seq}
		if err == nil {
			over.Input = lease.Input{Kind: lease.InputWorkGone, Seq: seq}
		} else if ctx.Err() == nil {
			g.d.Log.Error("work for a leader outlives its lease; nobody else is served before it is dead", zap.Stringer("holder", id), zap.Error(err))
		}
		g.post(ctx, over)
	})
}

// invite tells a leader that was refused to ask again; nothing rests on it.
func (g *granting) invite(ctx context.Context, to cluster.NodeLeaseID) {
	if to.Holder == g.c.Node {
		g.owned.Go(func() { g.toSelf(to) })
		return
	}
	body, err := cluster.EncodeNodeLeaseNotice(cluster.NodeLeaseNotice{To: to})
	if err != nil { // cannot happen for an id that asked
		return
	}
	g.owned.Go(func() {
		ask, cancel := context.WithTimeout(ctx, g.c.Timing.KeepaliveInterval*3/10)
		defer cancel()
		if _, err := g.d.Peers.Ask(ask, to.Holder, cluster.NodeLeaseFree, body); err != nil {
			g.d.Log.Debug("a leader was not told that this node's lease is free", zap.Stringer("holder", to), zap.Error(err))
		}
	})
}

// ---- the disk

// change hands a change of the file over. One that the disk has not begun is
// replaced: only the newest one's answer counts.
func (g *granting) change(w diskChange) {
	g.writing = w.seq
	select {
	case <-g.disk:
	default:
	}
	g.disk <- w // run alone sends, so that there is room
}

// keep carries the changes out, in order.
func (g *granting) keep(ctx context.Context) {
	defer close(g.resting)
	for {
		var w diskChange
		select {
		case w = <-g.disk:
		case <-ctx.Done():
			return
		}
		g.post(ctx, g.carryDown(ctx, w))
	}
}

// carryDown makes one change once what must come before it has, and tells how
// that went. A promise that rests on what still lives is not even written.
func (g *granting) carryDown(ctx context.Context, w diskChange) granted {
	done := granted{Input: lease.Input{Kind: lease.InputPersisted, Seq: w.seq}}
	if err := w.after.wait(ctx); err != nil {
		done.Failed, done.living = err.Error(), err.Error()
		g.d.Log.Error("a leader is not served", zap.Error(err))
		return done
	}
	var err error
	if w.record != nil {
		err = g.d.LeaseFile.Write(*w.record)
	} else {
		err = g.d.LeaseFile.Remove()
	}
	if err != nil {
		done.Failed = err.Error()
		g.d.Log.Error("this node's lease could not be written down", zap.Error(err))
	}
	return done
}

// awaitDisk waits for a change under way; a disk that hangs must not keep the
// daemon from ending.
func (g *granting) awaitDisk() {
	limit := time.NewTimer(g.c.Timing.KeepaliveInterval)
	defer limit.Stop()
	select {
	case <-g.resting:
	case <-limit.C:
		g.d.Log.Error("the disk with the state folder does not answer; the whole period of this node's lease counts at the next start")
	}
}

// stop has nothing granted from here on, and returns when what is left is on
// disk: the next start honours that and no more. It fails when ctx ends first;
// then the whole period counts.
func (g *granting) stop(ctx context.Context) error { return g.last(ctx, lease.InputStop) }

// leave ends all work for whomever this node serves and removes the file: this
// node is a member no more (L19). It fails when ctx ends first.
func (g *granting) leave(ctx context.Context) error { return g.last(ctx, lease.InputLeave) }

func (g *granting) last(ctx context.Context, kind lease.InputKind) error {
	if g == nil {
		return nil
	}
	settled := make(chan error, 1)
	if g.post(ctx, granted{Input: lease.Input{Kind: kind}, settled: settled}) {
		select {
		case err := <-settled:
			return err
		case <-ctx.Done():
		case <-g.ended:
		}
	}
	return fmt.Errorf("write down this node's lease before the end: %w", cluster.ErrDeadline)
}
