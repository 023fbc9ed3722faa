package guard

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// role is what hangs on one owner's deadline. Its fields are Guard.mu's.
//
//	absent ──Begin──▶ live ──Extend──▶ live
//	                   │ deadline, End, suspend
//	                   ▼
//	                 ending ──verified gone──▶ absent
type role struct {
	owner    cluster.DeadlineOwner
	epoch    cluster.Epoch
	deadline cluster.Instant
	ended    bool

	// mayAdd is Present's right to name addresses and to open the gate for them:
	// given by Begin, taken by Withdraw and by a restart of the guard. What
	// Present has named is no longer new: what of it vanishes from the kernel the
	// tick brings back while the role lives, an adopted one's, too, for the
	// ledger has its deadline, never a longer one, and the list. No tick opens
	// the gate: without a living element the address answers nobody (I1).
	mayAdd bool
	wanted []cluster.FloatingAddress // what Present has named
	// suspendedAt is when the gate was found broken: the addresses are away
	// until a renewal sent later; Never when they are not.
	suspendedAt cluster.Instant
	later       int // Extends since then that do not tell when they were sent

	services map[string]*service
	ctx      context.Context // ends with the role: Run and checks hang on it
	cancel   context.CancelCauseFunc
	busy     sync.WaitGroup // starts and runs under way: the end waits for them
	end      *ending        // made with the role: its end allocates nothing
}

// suspend takes the addresses' right away until a renewal sent after now.
func (r *role) suspend(now cluster.Instant) {
	r.suspendedAt, r.later = now, 0
}

// resumes reports whether this renewal brings the addresses back: one sent
// after the gate was lost. Of a caller that does not tell, the second one that
// was received after it certainly is.
func (r *role) resumes(d cluster.RoleDeadline) bool {
	if r.suspendedAt == cluster.Never {
		return false
	}
	if d.Sent != cluster.Never {
		return d.Sent > r.suspendedAt
	}
	r.later++
	return r.later >= 2
}

// epochLine names the sequence an owner's epochs belong to: fence attempts
// carry the primary role's.
func epochLine(o cluster.DeadlineOwner) string {
	if o == cluster.OwnerPrimary || strings.HasPrefix(string(o), "fence:") {
		return string(cluster.OwnerPrimary)
	}
	return string(o)
}

// begin starts or adopts a role. It persists a larger epoch before anything
// else, so that no older one is ever served again, over reboots too (I2).
func (g *Guard) begin(ctx context.Context, d cluster.RoleDeadline) error {
	if d.Owner == "" {
		return fmt.Errorf("begin a role without an owner: %w", cluster.ErrRefused)
	}
	if err := g.awaitEnding(ctx, d.Owner); err != nil {
		return err
	}
	if d.Owner == cluster.OwnerPrimary { // a moment, and then it is refused or not
		_ = g.awaitLeft(ctx, g.cfg.Grace, func() string { return g.heldByLeftovers(d.Owner) })
	}
	if err := g.raiseEpoch(d); err != nil {
		return err
	}
	r, err := g.enterRole(d)
	if err != nil || r.owner != cluster.OwnerPrimary {
		return err
	}
	g.mu.Lock()
	held := len(r.wanted) > 0 && r.suspendedAt == cluster.Never
	g.mu.Unlock()
	if held { // adopted with its addresses: they move with the deadline
		return g.renewGate(r)
	}
	return nil
}

// enterRole makes the role, or moves the one that lives to the new epoch.
func (g *Guard) enterRole(d cluster.RoleDeadline) (*role, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.admissible(d, "begin"); err != nil { // the clock read again: fsync takes its time
		return nil, err
	}
	if d.Owner == cluster.OwnerPrimary {
		if err := g.refusesPrimary(); err != nil {
			return nil, err
		}
	}
	r := g.roles[d.Owner]
	if r != nil && !g.lives(r) {
		return nil, fmt.Errorf("begin role %s: the earlier holding's deadline has just passed, it is being ended: %w", d.Owner, cluster.ErrRefused)
	}
	if r == nil {
		if g.ending[d.Owner] != nil || g.closed {
			return nil, fmt.Errorf("begin role %s: an earlier holding is still being ended: %w", d.Owner, cluster.ErrRefused)
		}
		r = g.newRole(d)
		g.roles[d.Owner] = r
	}
	adopted := r.epoch
	r.epoch, r.deadline, r.mayAdd = d.Epoch, d.Deadline, true
	if d.Owner == cluster.OwnerNode {
		g.node.until = d.Deadline
	}
	g.relinquished = false
	g.record()
	g.rearm()
	g.feeder.poke()
	g.log.Info("role begun", zap.String("owner", string(d.Owner)), zap.Uint64("epoch", uint64(d.Epoch)),
		zap.Duration("for", d.Deadline.Sub(g.clock.Now())), zap.Uint64("adopted_from_epoch", uint64(adopted)))
	return r, nil
}

func (g *Guard) newRole(d cluster.RoleDeadline) *role {
	r := &role{owner: d.Owner, epoch: d.Epoch, deadline: d.Deadline, services: map[string]*service{}}
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	e := &ending{role: r, tried: make(chan struct{}), done: make(chan struct{})}
	e.finish = func() { g.finish(e) }
	r.end = e
	return r
}

// awaitEnding waits a moment for an earlier holding of the owner to be gone.
func (g *Guard) awaitEnding(ctx context.Context, o cluster.DeadlineOwner) error {
	g.mu.Lock()
	e := g.ending[o]
	g.mu.Unlock()
	if e == nil {
		return nil
	}
	select {
	case <-e.done:
		return nil
	case <-time.After(g.cfg.Grace):
	case <-ctx.Done():
	}
	return fmt.Errorf("begin role %s: what an earlier holding left is not verified gone yet (%s): %w", o, e.cause, cluster.ErrRefused)
}

// raiseEpoch persists d's epoch if it is the largest yet. For the node's own
// deadline, which nobody else could hold, no disk is waited for, nor who waits for it.
func (g *Guard) raiseEpoch(d cluster.RoleDeadline) error {
	if d.Owner != cluster.OwnerNode {
		g.persisting.Lock()
		defer g.persisting.Unlock()
	}
	g.mu.Lock()
	err := g.admissible(d, "begin")
	g.mu.Unlock()
	if err != nil || d.Owner == cluster.OwnerNode {
		return err
	}
	return g.persistEpoch(epochLine(d.Owner), d.Epoch)
}

// persistEpoch raises the line to the epoch if it is the largest yet, once that is
// on disk. The caller holds persisting.
func (g *Guard) persistEpoch(line string, e cluster.Epoch) error {
	g.mu.Lock()
	higher := e > g.max[line]
	g.mu.Unlock()
	if !higher {
		return nil
	}
	if err := g.writeAhead(line, e); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.max[line] = max(g.max[line], e)
	return nil
}

// writeAhead has the disk know the epoch, and serves as before: what is on disk may
// be larger than what was served, never smaller (I2). The caller holds persisting.
func (g *Guard) writeAhead(line string, e cluster.Epoch) error {
	if e <= g.written[line] {
		return nil
	}
	raised := map[string]cluster.Epoch{line: e}
	for l, have := range g.written {
		raised[l] = max(raised[l], have)
	}
	g.mu.Lock()
	for l, have := range g.max { // of an adopted role, too
		raised[l] = max(raised[l], have)
	}
	g.mu.Unlock()
	if err := writeEpochs(g.cfg.StateFile, raised); err != nil {
		return fmt.Errorf("epoch %d of role %s is not served before it is on disk; make that folder writable: %w", e, line, err)
	}
	g.written = raised
	return nil
}

// prepareEpoch makes the epoch of a role that is about to be begun durable
// beforehand, or says that it could not be begun (I2). While a role lives here it is
// only written down, since a larger epoch would make that one stale: an agent that
// resumes the role then has Begin wait for no disk. A guard that is started in
// between takes the role for a stale one and ends it, which is safe.
func (g *Guard) prepareEpoch(e cluster.Epoch) error {
	g.persisting.Lock()
	defer g.persisting.Unlock()
	g.mu.Lock()
	held, ending := g.roles[cluster.OwnerPrimary] != nil, g.ending[cluster.OwnerPrimary] != nil
	seen := g.max[epochLine(cluster.OwnerPrimary)]
	g.mu.Unlock()
	switch {
	case ending || e > cluster.MaxEpoch:
		return nil
	case held:
		return g.writeAhead(epochLine(cluster.OwnerPrimary), e)
	case e < seen:
		return fmt.Errorf("epoch %d is too small: %d has been seen on this host: %w", e, seen, cluster.ErrStaleEpoch)
	}
	return g.persistEpoch(epochLine(cluster.OwnerPrimary), e)
}

// admissible refuses stale epochs and passed deadlines. The caller holds mu.
func (g *Guard) admissible(d cluster.RoleDeadline, what string) error {
	if seen := g.max[epochLine(d.Owner)]; d.Epoch < seen {
		return fmt.Errorf("%s role %s at epoch %d: epoch %d has been served on this host: %w", what, d.Owner, d.Epoch, seen, cluster.ErrStaleEpoch)
	}
	switch now := g.clock.Now(); {
	case d.Deadline <= now:
		return fmt.Errorf("%s role %s: its deadline passed %v ago: %w", what, d.Owner, now.Sub(d.Deadline), cluster.ErrDeadline)
	case d.Deadline > now.Add(longestLease): // of the wall clock, say: a role without end (I3)
		return fmt.Errorf("%s role %s: its deadline is more than %v away, it is no instant of this host's CLOCK_BOOTTIME: %w", what, d.Owner, longestLease, cluster.ErrRefused)
	}
	return nil
}

// extend moves a live role's deadline and renews the gate.
func (g *Guard) extend(d cluster.RoleDeadline) error {
	began := time.Now() // of the wall: only told
	locked, recorded := began, began
	defer func() { g.tellSlow(d, locked.Sub(began), recorded.Sub(locked), time.Since(recorded)) }()
	g.mu.Lock()
	locked = time.Now()
	recorded = locked
	r, err := g.liveRole(d.Owner, d.Epoch)
	if err == nil {
		err = g.admissible(d, "extend")
	}
	if err != nil {
		g.mu.Unlock()
		return err
	}
	r.deadline = d.Deadline
	if d.Owner == cluster.OwnerNode {
		g.node.until = d.Deadline
	}
	g.record()
	recorded = time.Now()
	g.rearm()
	back := d.Owner == cluster.OwnerPrimary && r.resumes(d)
	gated := d.Owner == cluster.OwnerPrimary && r.suspendedAt == cluster.Never && len(r.wanted) > 0
	g.mu.Unlock()
	switch {
	case back:
		return g.bringBack(r)
	case gated:
		return g.renewGate(r)
	}
	return nil
}

// slowExtend is far above what an extension takes, and below what its caller waits.
const slowExtend = 100 * time.Millisecond

// tellSlow says what an extension waited for that took long. Where the caller got no
// answer in time and this says nothing, the processor or the caller was late.
func (g *Guard) tellSlow(d cluster.RoleDeadline, lock, ledger, gate time.Duration) {
	if lock+ledger+gate < slowExtend {
		return
	}
	g.log.Warn("a deadline was slow to move", zap.String("owner", string(d.Owner)), zap.Uint64("epoch", uint64(d.Epoch)),
		zap.Duration("for_the_lock", lock), zap.Duration("for_the_ledger", ledger), zap.Duration("for_the_gate", gate))
}

// liveRole returns the owner's role if it lives at exactly this epoch. A role
// whose deadline has passed is dead even before the alarm went off (I3). The
// caller holds mu.
func (g *Guard) liveRole(o cluster.DeadlineOwner, e cluster.Epoch) (*role, error) {
	if seen := g.max[epochLine(o)]; e < seen {
		return nil, fmt.Errorf("role %s at epoch %d: epoch %d has been served on this host: %w", o, e, seen, cluster.ErrStaleEpoch)
	}
	r := g.roles[o]
	if r == nil || !g.lives(r) {
		return nil, fmt.Errorf("role %s at epoch %d is not held here (any more); nothing of it is in effect: %w", o, e, cluster.ErrDeadline)
	}
	if r.epoch != e {
		return nil, fmt.Errorf("role %s is held at epoch %d, not %d: begin it first: %w", o, r.epoch, e, cluster.ErrRefused)
	}
	return r, nil
}

// lives reports whether the role is live right now. The caller holds mu.
func (g *Guard) lives(r *role) bool { return !r.ended && g.clock.Now() < r.deadline }

// left returns the time to the role's deadline; zero or less: it is over.
func (g *Guard) left(r *role) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.ended {
		return 0
	}
	return r.deadline.Sub(g.clock.Now())
}

// rearm sets the alarm to the earliest deadline. The caller holds mu.
func (g *Guard) rearm() {
	next := cluster.Never
	for _, r := range g.roles {
		next = cluster.Earliest(next, r.deadline)
	}
	if err := g.alarm.set(next); err != nil {
		g.log.Error("deadline's timer failed, deadlines are kept by the tick alone", zap.Error(err))
	}
}

// record writes down what is held, for the next guard. The caller holds mu.
func (g *Guard) record() {
	if err := g.write(); err != nil {
		g.log.Error("guard's ledger not written", zap.Error(err))
	}
}

// write is record for who has to know whether it was done. The caller holds mu.
func (g *Guard) write() error {
	if g.ledger == nil {
		return nil
	}
	held := make([]heldRole, 0, len(g.roles)+len(g.ending))
	for _, r := range g.roles {
		held = append(held, r.held())
	}
	for _, e := range g.ending { // until verified gone
		held = append(held, e.role.held())
	}
	held = append(held, g.expired...) // likewise
	s := ledgerState{Roles: held, NodeUntil: g.node.until, Feeding: g.feed, Relinquished: g.relinquished}
	return g.ledger.save(s)
}

func (r *role) held() heldRole {
	h := heldRole{RoleDeadline: cluster.RoleDeadline{Owner: r.owner, Epoch: r.epoch, Deadline: r.deadline}, Addresses: r.wanted}
	if r.ended {
		h.Deadline = 1 // passed, whatever it was
	}
	for _, s := range r.services {
		h.Services = append(h.Services, s.held())
	}
	return h
}

// adopt takes a live role over from the ledger. The caller holds mu.
func (g *Guard) adopt(h heldRole) {
	r := g.newRole(h.RoleDeadline)
	r.wanted = h.Addresses
	g.roles[h.Owner] = r
	line := epochLine(h.Owner)
	g.max[line] = max(g.max[line], h.Epoch)
	for _, s := range h.Services {
		g.adoptService(r, s)
	}
	g.log.Info("role adopted from an earlier guard", zap.String("owner", string(h.Owner)),
		zap.Uint64("epoch", uint64(h.Epoch)), zap.Duration("left", h.Deadline.Sub(g.clock.Now())))
}

// expire ends each role whose deadline has passed. It runs on the alarm's
// thread and at each tick. Up to the end of gate and addresses it allocates
// nothing, so that a host short of memory is late for no deadline; the kill of a
// hook reads /proc besides its write, and the verification allocates as it likes.
func (g *Guard) expire() {
	g.mu.Lock()
	now := g.clock.Now()
	var few [8]*ending // more than that many at once may allocate
	ended := few[:0]
	for _, r := range g.roles {
		if r.deadline <= now {
			ended = g.endNow(ended, r, "its deadline passed")
		}
	}
	g.rearm()
	g.mu.Unlock()
	g.stopEffects(ended...)
}

// ending is a role whose effects are being removed. It is made with the role,
// and is the error by which what hangs on the role's context ends.
type ending struct {
	role   *role
	cause  string
	begun  cluster.Instant
	tried  chan struct{} // closed once stopEffects has done its part
	done   chan struct{} // closed once verified gone, or left behind (leaveBehind)
	lapse  bool          // it ends because the node's right has
	detail string        // what is still there; Guard.mu's
	finish func()        // finish of this one

	telling sync.Mutex // held while its fault is told or cleared
	over    bool       // nothing is told any more; telling's
}

// Error says which role has ended and why.
func (e *ending) Error() string {
	return fmt.Sprintf("role %s has ended, %s: %v", e.role.owner, e.cause, cluster.ErrDeadline)
}

// Unwrap returns cluster.ErrDeadline.
func (e *ending) Unwrap() error { return cluster.ErrDeadline }

// markEnded makes the role dead for everybody. Its effects are stopEffects',
// which the caller calls once it has let go of mu.
func (g *Guard) markEnded(r *role, cause string) *ending {
	r.ended = true
	delete(g.roles, r.owner)
	e := r.end
	e.cause, e.begun = cause, g.clock.Now()
	g.ending[r.owner] = e
	g.work.Add(1) // finish
	g.feeder.poke()
	return e
}

// stopEffects removes everything that hangs on the roles, by what has been
// prepared and without waiting for anybody: gate and addresses as far as nobody
// else holds them, then the services. On the alarm's own thread that is the
// quickest: on a busy host any other gets to run milliseconds later. Should the
// kernel be slow at one of these, finish, which has a goroutine of its own, does
// the others; so the kills, which others may hold up (a control group is being
// made, say), come after every role's gate and addresses.
func (g *Guard) stopEffects(ended ...*ending) {
	for _, e := range ended {
		e.role.cancel(e)
		go e.finish() // entered into work by markEnded
	}
	for _, e := range ended {
		if e.role.owner == cluster.OwnerPrimary {
			g.cutAddresses()
		}
	}
	for _, e := range ended {
		e.kill()
		close(e.tried)
	}
}

// cutAddresses shuts the gate, then takes the addresses away. Finish verifies both.
func (g *Guard) cutAddresses() {
	if g.gate != nil && g.gate.mu.TryLock() {
		_ = g.gate.shut()
		g.gate.mu.Unlock()
	}
	if g.addrs.mu.TryLock() {
		_ = g.addrs.removeNow()
		g.addrs.mu.Unlock()
	}
}

// kill kills the role's services without waiting.
func (e *ending) kill() {
	for _, s := range e.role.services {
		s.killNow()
	}
}

// firstTry is how long finish leaves everything to stopEffects: a lock that it
// took first would take the alarm's thread its priority away.
const firstTry = 10 * time.Millisecond

// finish verifies that nothing of the role is left, trying again until that is
// so. What takes longer than G is a fault, on which nobody feeds the watchdog
// any more; it clears when the last of it is gone.
func (g *Guard) finish(e *ending) {
	defer g.work.Done()
	subject := "end of " + string(e.role.owner)
	late := time.AfterFunc(g.cfg.Grace, func() { g.tellLate(e, subject) })
	defer late.Stop()
	select {
	case <-e.tried:
	case <-time.After(firstTry):
		e.kill() // before anything that can be stuck
	}
	behind := false
	for pause := time.Millisecond; ; pause = min(2*pause, g.cfg.Tick) {
		err := g.verifyGone(e)
		if err == nil {
			break
		}
		if behind = g.leaveBehind(e); behind {
			break
		}
		g.mu.Lock()
		e.detail = err.Error()
		closed := g.closed
		g.mu.Unlock()
		if closed && g.clock.Now().Sub(e.begun) > 10*g.cfg.Grace {
			return // the process is to end; the ledger still names what is left
		}
		time.Sleep(pause)
	}
	e.telling.Lock()
	e.over = true
	g.fault(subject, "")
	e.telling.Unlock()
	if behind {
		g.tellLeftFault()
		g.log.Warn("the node's right has ended and may begin again, although a stop has not succeeded: nothing runs, and nothing takes its place", zap.String("cause", e.cause))
	} else {
		g.tellEnded(e)
	}
	close(e.done)
}

// tellEnded forgets and tells an ending of which everything is verified gone.
func (g *Guard) tellEnded(e *ending) {
	g.mu.Lock()
	delete(g.ending, e.role.owner)
	g.record()
	g.feeder.poke()
	g.mu.Unlock()
	took := g.clock.Now().Sub(e.begun)
	g.log.Info("role ended", zap.String("owner", string(e.role.owner)), zap.Uint64("epoch", uint64(e.role.epoch)),
		zap.String("cause", e.cause), zap.Duration("gone_after", took))
	g.hub.push(cluster.GuardEvent{Kind: "ended", Owner: e.role.owner, Epoch: e.role.epoch,
		Text: fmt.Sprintf("role %s ended: %s; everything of it was gone %v later", e.role.owner, e.cause, took)})
}

// tellLate records that an ending takes too long. One that is over by now is
// not told: nothing would clear the fault again. (Both are due at once where
// this process was stopped in between.)
func (g *Guard) tellLate(e *ending, subject string) {
	e.telling.Lock()
	defer e.telling.Unlock()
	if e.over {
		return
	}
	g.mu.Lock()
	detail := e.detail
	g.mu.Unlock()
	g.fault(subject, fmt.Sprintf("role %s (epoch %d) has ended (%s) but not everything of it is verified gone after %v: %s",
		e.role.owner, e.role.epoch, e.cause, g.cfg.Grace, detail))
}

// verifyGone removes what is left of a role and reports what could not be. What
// stays does not keep it from the rest.
func (g *Guard) verifyGone(e *ending) error {
	var errs []error
	if e.role.owner == cluster.OwnerPrimary {
		g.announcer.stop()
		errs = append(errs, g.dropAddresses())
	}
	for _, s := range e.role.services { // all at once, before any is waited for
		if s.act != nil {
			s.takeDown(g, true, stopAgain)
		}
	}
	for _, s := range e.role.services {
		errs = append(errs, s.verifyGone(g, g.cfg.Tick))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if !e.role.idle(g.cfg.Tick) {
		return fmt.Errorf("a program of role %s that was being started or run has not ended", e.role.owner)
	}
	return nil
}

// idle waits until nothing of an ended role is being started or run, so long at most.
func (r *role) idle(limit time.Duration) bool {
	waited := make(chan struct{})
	go func() { r.busy.Wait(); close(waited) }()
	select {
	case <-waited:
		return true
	case <-time.After(limit):
		return false
	}
}

// end ends an owner now and waits until it is verified gone. A smaller epoch
// than the role's is refused; an owner that is not held is no error.
func (g *Guard) end(ctx context.Context, o cluster.DeadlineOwner, epoch cluster.Epoch) error {
	g.mu.Lock()
	if seen := g.max[epochLine(o)]; epoch < seen {
		g.mu.Unlock()
		return fmt.Errorf("end role %s at epoch %d: epoch %d has been served on this host: %w", o, epoch, seen, cluster.ErrStaleEpoch)
	}
	var fresh []*ending
	if r := g.hangsOn(o); r != nil && g.ending[o] == nil {
		fresh = g.endNow(nil, r, "it was told to")
		g.record() // a guard that is killed now must not come back with a deadline yet to come (I3)
		g.rearm()
	}
	waits := g.endingsOf(o)
	g.mu.Unlock()
	g.stopEffects(fresh...)
	if err := g.endLeft(ctx, o); err != nil {
		return err
	}
	if len(waits) == 0 {
		return g.endUnheld(o)
	}
	for _, e := range waits {
		select {
		case <-e.done:
		case <-ctx.Done():
			g.mu.Lock()
			defer g.mu.Unlock()
			return fmt.Errorf("end role %s: not verified gone yet (%s): %w", o, e.detail, context.Cause(ctx))
		}
	}
	return g.endLeft(ctx, o) // what was left behind
}

// hangsOn returns the owner's role; where the node's right is not held, the
// primary role for it, which hangs on it as well. The caller holds mu.
func (g *Guard) hangsOn(o cluster.DeadlineOwner) *role {
	r := g.roles[o]
	if r == nil && o == cluster.OwnerNode {
		r = g.roles[cluster.OwnerPrimary]
	}
	return r
}

// endingsOf lists what of the owner's is being ended. The caller holds mu.
func (g *Guard) endingsOf(o cluster.DeadlineOwner) (list []*ending) {
	for _, e := range g.ending {
		if e.role.owner == o || o == cluster.OwnerNode && e.role.owner == cluster.OwnerPrimary {
			list = append(list, e)
		}
	}
	return list
}

// endUnheld verifies that a role nobody holds has left nothing behind.
func (g *Guard) endUnheld(o cluster.DeadlineOwner) error {
	if o != cluster.OwnerPrimary {
		return nil
	}
	return g.dropAddresses()
}

// stopInOrder is how long copies may take to stop by their own rules at the guard's
// own end, where the node's right lasts for as long.
const stopInOrder = 15 * time.Second

// stopCopies stops by its own rules what hangs on the node's right, all at once, as
// far as that goes within its deadline; the rest is killed after it.
func (g *Guard) stopCopies() {
	g.mu.Lock()
	r := g.roles[cluster.OwnerNode]
	var copies []*service
	if r != nil && g.lives(r) {
		for _, s := range r.services {
			copies = append(copies, s)
		}
	}
	g.mu.Unlock()
	if len(copies) == 0 {
		return
	}
	ctx, cancel := under(context.Background(), r.ctx, stopInOrder, errors.New("the guard ends"))
	defer cancel()
	var all sync.WaitGroup
	for _, s := range copies {
		all.Go(func() {
			if err := g.stopOne(ctx, r, s); err != nil {
				g.log.Warn("a copy was not stopped in order, it is killed", zap.String("service", s.spec.Name), zap.Error(err))
			}
		})
	}
	all.Wait()
}

// endEverything ends all roles, at the guard's own end.
func (g *Guard) endEverything() error {
	g.stopCopies()
	g.mu.Lock()
	g.closed = true
	var all []*ending
	for _, r := range g.roles {
		all = append(all, g.markEnded(r, "the guard was told to stop"))
	}
	g.record()
	g.mu.Unlock()
	g.stopEffects(all...)
	for _, e := range all {
		select {
		case <-e.done:
		case <-time.After(10 * g.cfg.Grace):
			return fmt.Errorf("stop the guard: role %s is not verified gone: %w", e.role.owner, cluster.ErrDeadline)
		}
	}
	return nil
}
