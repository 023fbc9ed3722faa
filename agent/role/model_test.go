package role

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"os"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// The model: a store with versions, sessions and a lock queue; nodes that run
// the machine behind networks that delay and lose; guards that end at their
// deadline. Time is virtual, every choice comes from one seed.

type task struct {
	at  cluster.Instant
	seq int
	run func()
}

type agenda []task

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	return a[i].at < a[j].at || a[i].at == a[j].at && a[i].seq < a[j].seq
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)   { *a = append(*a, x.(task)) }
func (a *agenda) Pop() any {
	old := *a
	x := old[len(old)-1]
	*a = old[:len(old)-1]
	return x
}

type znode struct {
	value   any
	version int32
	mzxid   int64
	session int64
}

type modelStore struct {
	zxid  int64
	recs  map[cluster.Key]*znode
	locks []cluster.LockChild
	seq   int64
	stall cluster.Instant // nothing commits before this
}

type modelNode struct {
	id        cluster.NodeID
	w         *world
	start     int // counts starts of the daemon; tasks of an older one are dropped
	up        bool
	inc       cluster.Incarnation
	state     State
	snap      *cluster.Snapshot
	seen      map[string]cluster.Instant
	paused    cluster.Instant
	cut       bool // no link to the store
	queue     []Event
	session   int64
	wakeSeq   int
	guard     modelGuard
	unhealthy bool
	spins     int // steps in a row that asked for nothing but another one at once
	outage    modelOutage
}

type modelGuard struct {
	epoch, maxEpoch cluster.Epoch
	deadline        cluster.Instant
	live, present   bool
	services        bool
}

type world struct {
	t           *testing.T
	rng         *rand.Rand
	now         cluster.Instant
	agenda      agenda
	seq         int
	store       modelStore
	nodes       []*modelNode
	timing      cluster.Timing
	lossy       bool
	fixed       bool // every latency is 1 ms: for golden scripts
	maintenance bool
	deadProof   bool
	loseReply   map[string]string // node → purpose whose next reply is lost
	crashAt     map[string]string // node → purpose at whose commit it is killed
	recorded    map[string]int    // notes for the history, by kind
	log         []string
	services    []cluster.ServiceSpec
	failsafe    modelFailsafe
	lastBegin   cluster.Epoch
	beganBy     cluster.NodeID
	failed      string
}

func (w *world) after(d time.Duration, run func()) {
	w.seq++
	heap.Push(&w.agenda, task{w.now.Add(d), w.seq, run})
}

func (w *world) logf(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%9.4f ", float64(w.now)/1e9)+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	if w.failed == "" {
		w.failed = fmt.Sprintf(format, args...)
		w.logf("BROKEN %s", w.failed)
	}
}

func (w *world) latency() time.Duration {
	if w.fixed {
		return time.Millisecond
	}
	if w.lossy && w.rng.IntN(40) == 0 {
		return time.Duration(w.rng.IntN(700)) * time.Millisecond
	}
	return 200*time.Microsecond + time.Duration(w.rng.IntN(3000))*time.Microsecond
}

func (w *world) runUntil(t cluster.Instant) {
	for len(w.agenda) > 0 && w.agenda[0].at <= t && w.failed == "" {
		next := heap.Pop(&w.agenda).(task)
		w.now = next.at
		next.run()
		w.check()
	}
	w.now = t
}

// check is I1: at no instant do two nodes answer or run services.
func (w *world) check() {
	var answering, serving []string
	for _, n := range w.nodes {
		if n.guard.live && w.now < n.guard.deadline {
			if n.guard.present {
				answering = append(answering, string(n.id))
			}
			if n.guard.services {
				serving = append(serving, string(n.id))
			}
		}
	}
	if len(answering) > 1 {
		w.fail("I1: %v answer at once", answering)
	}
	if len(serving) > 1 {
		w.fail("I1: %v run services at once", serving)
	}
}

// ---- the store

func (s *modelStore) commit(txn cluster.Txn) cluster.TxnResult {
	r := cluster.TxnResult{Outcome: cluster.OutcomeOK, FailedOp: -1}
	for i, op := range txn.Ops {
		n := s.recs[op.Key]
		if op.Key.Kind == cluster.KeyRoleLockChild {
			n = nil
			for _, c := range s.locks {
				if c.Name == op.Key.Name {
					n = &znode{}
				}
			}
		}
		if op.Kind == cluster.OpCreateSequential {
			continue
		}
		bad := n == nil && op.Kind != cluster.OpCreate || n != nil && op.Kind == cluster.OpCreate ||
			n != nil && op.Kind != cluster.OpCreate && op.Version != cluster.AnyVersion && n.version != op.Version
		if bad {
			return cluster.TxnResult{Outcome: cluster.OutcomeConflict, FailedOp: i, Err: cluster.ErrConflict}
		}
	}
	s.zxid++
	for _, op := range txn.Ops {
		version := int32(0)
		if op.Kind == cluster.OpSet || op.Kind == cluster.OpCreate {
			n := s.recs[op.Key]
			if n == nil {
				n = &znode{version: -1}
				s.recs[op.Key] = n
			}
			n.value, n.mzxid = op.Value, s.zxid
			n.version++
			version = n.version
		}
		r.Versions = append(r.Versions, version)
	}
	return r
}

// lease is the zero value where the record is lost.
func (s *modelStore) lease() cluster.Lease {
	if s.recs[leaseKey] == nil {
		return cluster.Lease{}
	}
	return s.recs[leaseKey].value.(cluster.Lease)
}

func seen[T any](n *modelNode, k cluster.Key) cluster.Versioned[T] {
	rec := n.w.store.recs[k]
	if rec == nil {
		return cluster.Versioned[T]{}
	}
	id := fmt.Sprintf("%v/%d", k, rec.mzxid)
	if _, ok := n.seen[id]; !ok {
		n.seen[id] = n.w.now
	}
	return cluster.Versioned[T]{Value: rec.value.(T), Version: rec.version, Present: true, SeenAt: n.seen[id], Mzxid: rec.mzxid}
}

func (n *modelNode) snapshot() *cluster.Snapshot {
	w := n.w
	snap := &cluster.Snapshot{
		Complete: true, Live: true, Session: n.session, ObservedAt: w.now, Zxid: w.store.zxid,
		PrimaryNode: seen[string](n, wishKey), Lease: seen[cluster.Lease](n, leaseKey),
		Maintenance: cluster.Versioned[bool]{Value: w.maintenance, Present: true},
		Transition:  seen[cluster.Transition](n, transitionKey), Nodes: map[cluster.NodeID]cluster.NodeView{},
	}
	for _, c := range w.store.locks {
		if _, ok := n.seen[c.Name]; !ok {
			n.seen[c.Name] = w.now
		}
		c.SeenAt = n.seen[c.Name]
		snap.RoleLock = append(snap.RoleLock, c)
	}
	sort.Slice(snap.RoleLock, func(i, j int) bool { return snap.RoleLock[i].Seq < snap.RoleLock[j].Seq })
	for _, o := range w.nodes {
		snap.Nodes[o.id] = cluster.NodeView{
			Name: o.id, Mode: cluster.Versioned[cluster.Mode]{Value: cluster.Coordinator, Present: true},
			Daemon:    cluster.Versioned[cluster.DaemonState]{Value: cluster.DaemonRun, Present: true},
			Keepalive: cluster.Versioned[int64]{SeenAt: w.now, Present: true},
			Router:    seen[cluster.RouterState](n, cluster.Key{Kind: cluster.KeyRouterState, Node: o.id}),
			Fence:     seen[cluster.FenceRecord](n, cluster.Key{Kind: cluster.KeyFence, Node: o.id}),
			Alive:     seen[cluster.Alive](n, cluster.Key{Kind: cluster.KeyAlive, Node: o.id}),
			Record:    seen[cluster.NodeRecord](n, cluster.Key{Kind: cluster.KeyNodeRecord, Node: o.id}),
			Order:     seen[cluster.FenceOrder](n, cluster.Key{Kind: cluster.KeyFenceOrder, Node: o.id}),
		}
	}
	return snap
}

// publish brings the store's change to every node that is connected.
func (w *world) publish() {
	for _, n := range w.nodes {
		start := n.start
		w.after(w.latency(), func() {
			if n.start == start && n.up && !n.cut {
				n.snap = n.snapshot()
				n.step(Event{})
			}
		})
	}
}

func (w *world) dropSession(session int64) {
	kept := w.store.locks[:0:0]
	for _, c := range w.store.locks {
		if c.Session != session {
			kept = append(kept, c)
		}
	}
	w.store.locks = kept
	for k, rec := range w.store.recs {
		if rec.session == session && session != 0 {
			delete(w.store.recs, k)
		}
	}
	w.store.zxid++
	w.publish()
}

func (w *world) committed(n *modelNode, txn cluster.Txn) {
	l := w.store.lease()
	holder := string(l.Holder)
	if holder == "" {
		holder = "nobody"
	}
	line := fmt.Sprintf("%s committed %s: lease %s epoch %d, primary_node %v", n.id, txn.Purpose, holder, l.Epoch, w.store.recs[wishKey].value)
	for _, o := range w.nodes {
		if rec := w.store.recs[cluster.Key{Kind: cluster.KeyRouterState, Node: o.id}]; rec != nil {
			line += fmt.Sprintf(", %s %v", o.id, rec.value)
		}
	}
	w.logf("%s", line)
}

// ---- a node

func (n *modelNode) boot() {
	w := n.w
	n.start++
	n.up, n.queue, n.wakeSeq = true, nil, n.wakeSeq+1
	n.inc = cluster.Incarnation(fmt.Sprintf("%s.%d", n.id, n.start))
	n.state, n.seen, n.snap = State{}, map[string]cluster.Instant{}, &cluster.Snapshot{}
	n.outage = modelOutage{started: w.now, asked: n.outage.asked}
	old := n.session
	n.session = int64(w.rng.IntN(1 << 40))
	w.store.zxid++
	key := cluster.Key{Kind: cluster.KeyAlive, Node: n.id}
	w.store.recs[key] = &znode{value: cluster.Alive{Incarnation: n.inc}, mzxid: w.store.zxid, session: n.session}
	rs := cluster.Key{Kind: cluster.KeyRouterState, Node: n.id}
	if w.store.recs[rs] == nil {
		w.store.recs[rs] = &znode{value: cluster.RouterSecondary, mzxid: w.store.zxid}
	}
	if old != 0 { // the session of a killed daemon lives on until it times out
		w.after(w.timing.SessionTimeout, func() { w.dropSession(old) })
	}
	n.step(Event{Registered: &Registered{At: w.now, Session: n.session}})
	n.step(Event{Preflight: &PreflightDone{}})
	n.step(Event{GuardState: &cluster.GuardState{MaxEpoch: n.guard.maxEpoch}})
	w.publish()
}

func (n *modelNode) kill() {
	n.up = false
	n.start++
	n.w.logf("kill %s", n.id)
}

func (n *modelNode) powerLoss() {
	n.kill()
	n.guard = modelGuard{maxEpoch: n.guard.maxEpoch}
	session := n.session
	n.session = 0
	n.w.after(n.w.timing.SessionTimeout, func() { n.w.dropSession(session) })
}

func (n *modelNode) config() Config {
	return Config{
		Node: n.id, Mode: cluster.Coordinator, Incarnation: n.inc, Timing: n.w.timing, Services: n.w.services, DeadProof: n.w.deadProof,
		Failsafe: n.w.failsafe.on && n.w.failsafe.breaks != countsNobody,
		NewID: func(e cluster.Epoch) string {
			return fmt.Sprintf("%s-%d-%d", n.id, e, n.w.rng.IntN(1<<30))
		},
	}
}

func (n *modelNode) step(e Event) {
	w := n.w
	if !n.up {
		return
	}
	if w.now < n.paused {
		n.queue = append(n.queue, e)
		return
	}
	before := n.state.Mode
	state, out := Step(n.config(), n.state, Input{Now: w.now, Snapshot: n.snap, Promise: n.promise(), Event: e})
	n.state = state
	if state.Ended() {
		n.kill() // an orderly end: the session is closed, nothing is left
		session := n.session
		n.session = 0
		w.after(w.latency(), func() { w.dropSession(session) })
		return
	}
	if before != state.Mode {
		w.logf("%s %s -> %s (epoch %d)", n.id, before, state.Mode, state.hold.epoch)
	}
	for _, effect := range out.Effects {
		n.do(effect)
	}
	n.spins++
	if len(out.Effects) > 0 || before != state.Mode || out.Wake == cluster.Never || out.Wake > w.now || e != (Event{}) {
		n.spins = 0
	}
	if n.spins > 20 {
		w.fail("%s (%s, stage %d) asks for step after step at once and does nothing", n.id, state.Mode, state.stage)
	}
	n.wakeSeq++
	mine, start := n.wakeSeq, n.start
	delay := w.timing.KeepaliveInterval / 2
	if wake := cluster.Earliest(out.Wake, n.askOthers()); wake != cluster.Never {
		delay = min(delay, max(wake.Sub(w.now), 0)+time.Microsecond)
	}
	w.after(delay, func() {
		if n.wakeSeq == mine && n.start == start {
			n.step(Event{})
		}
	})
}

func (n *modelNode) resume() {
	queue := n.queue
	n.queue = nil
	n.w.logf("resume %s", n.id)
	for _, e := range queue {
		n.step(e)
	}
	n.step(Event{})
}

// reply delivers a result to the same start of the daemon.
func (n *modelNode) reply(d time.Duration, e func() Event) {
	start := n.start
	n.w.after(d, func() {
		if n.start == start && n.up {
			n.step(e())
		}
	})
}

func (n *modelNode) do(e Effect) {
	w := n.w
	switch {
	case e.Commit != nil:
		n.commit(e)
	case e.Lock != nil:
		n.lock(e)
	case e.Unlock != nil, e.BreakLock != nil:
		child := e.Unlock
		if child == nil {
			child = e.BreakLock
		}
		w.after(w.latency(), func() {
			kept := w.store.locks[:0:0]
			for _, c := range w.store.locks {
				if c.Name != child.Name {
					kept = append(kept, c)
				}
			}
			w.store.locks = kept
			w.store.zxid++
			w.publish()
		})
	case e.Refresh:
		id := e.ID
		n.reply(w.latency(), func() Event {
			if n.cut || w.now < w.store.stall {
				return Event{Refresh: &RefreshDone{ID: id, Err: cluster.ErrNotLive}}
			}
			n.snap = n.snapshot()
			return Event{Refresh: &RefreshDone{ID: id, Snapshot: n.snap}}
		})
	case e.Preflight != nil:
		id := e.ID
		n.reply(e.Preflight.Timeout, func() Event {
			done := &PreflightDone{ID: id}
			if n.unhealthy {
				done.Problems = []string{"interface missing"}
			}
			return Event{Preflight: done}
		})
	case e.Note != nil:
		if e.Note.Record {
			w.recorded[e.Note.Kind]++
		}
		w.logf("%s note %s: %s", n.id, e.Note.Kind, e.Note.Text)
	default:
		n.doGuard(e)
	}
}

func (n *modelNode) commit(e Effect) {
	w, id, txn := n.w, e.ID, e.Commit.Txn
	sent := w.now
	if n.cut {
		n.reply(w.latency(), func() Event {
			return Event{Commit: &CommitDone{ID: id, Result: cluster.TxnResult{Outcome: cluster.OutcomeNotSent, FailedOp: -1, Err: cluster.ErrNotLive}}}
		})
		return
	}
	travel := w.latency()
	if w.now.Add(travel) < w.store.stall {
		travel = w.store.stall.Sub(w.now) + w.latency()
	}
	lostRequest := w.lossy && w.rng.IntN(60) == 0
	lostReply := w.lossy && w.rng.IntN(30) == 0
	if w.lossy && w.rng.IntN(100) == 0 {
		travel += time.Duration(w.rng.IntN(4000)) * time.Millisecond // commits late, after everybody has given it up
	}
	timeout := e.Commit.Timeout
	if w.loseReply[string(n.id)] == txn.Purpose {
		delete(w.loseReply, string(n.id))
		lostReply = true
	}
	unknown := func() Event {
		return Event{Commit: &CommitDone{ID: id, Result: cluster.TxnResult{Outcome: cluster.OutcomeUnknown, SentAt: sent, FailedOp: -1, Err: cluster.ErrUnknown}}}
	}
	answered := false
	if !lostRequest {
		start := n.start
		w.after(travel, func() {
			r := w.store.commit(txn)
			r.SentAt = sent
			if r.Outcome == cluster.OutcomeOK {
				w.committed(n, txn)
				w.publish()
			} else {
				w.logf("%s conflict %s op %d", n.id, txn.Purpose, r.FailedOp)
			}
			if w.crashAt[string(n.id)] == txn.Purpose && n.start == start {
				delete(w.crashAt, string(n.id))
				n.kill()
			}
			back := w.latency()
			if lostReply || w.now.Add(back).Sub(sent) > timeout || n.start != start || n.cut {
				return
			}
			answered = true
			n.reply(back, func() Event { return Event{Commit: &CommitDone{ID: id, Result: r}} })
		})
	}
	start := n.start
	w.after(timeout, func() {
		if !answered && n.start == start {
			answered = true
			n.step(unknown())
		}
	})
}

func (n *modelNode) lock(e Effect) {
	w, id, start := n.w, e.ID, n.start
	if n.cut {
		n.reply(e.Lock.Timeout, func() Event { return Event{Lock: &LockDone{ID: id, Err: cluster.ErrLockTimeout}} })
		return
	}
	w.store.seq++
	child := cluster.LockChild{Name: fmt.Sprintf("%032x__lock__%010d", w.rng.Uint64(), w.store.seq), Seq: w.store.seq, Session: n.session, Owner: e.Lock.Owner}
	w.after(w.latency(), func() {
		w.store.locks = append(w.store.locks, child)
		w.store.zxid++
		w.publish()
	})
	deadline := w.now.Add(e.Lock.Timeout)
	var poll func()
	poll = func() {
		if n.start != start {
			return
		}
		head := int64(1 << 60)
		for _, c := range w.store.locks {
			head = min(head, c.Seq)
		}
		switch {
		case head == child.Seq:
			n.step(Event{Lock: &LockDone{ID: id, Child: child}})
		case w.now >= deadline:
			n.do(Effect{Unlock: &child})
			n.step(Event{Lock: &LockDone{ID: id, Err: cluster.ErrLockTimeout}})
		default:
			w.after(2*time.Millisecond, poll)
		}
	}
	w.after(3*time.Millisecond, poll)
}

func (n *modelNode) doGuard(e Effect) {
	w, g, id := n.w, &n.guard, e.ID
	step := func(d time.Duration, run func() error) {
		n.reply(d, func() Event { return Event{Step: &StepDone{ID: id, Err: run()}} })
	}
	quick := 300 * time.Microsecond
	switch {
	case e.Raise != nil:
		d, bare := e.Raise.Deadline, e.Raise.Bare
		step(quick, func() error {
			err := n.begin(d)
			if err == nil && bare {
				g.present = false
			}
			return err
		})
	case e.Extend != nil:
		d := *e.Extend
		start := n.start
		w.after(quick, func() {
			if n.start == start && g.live && g.epoch == d.Epoch && w.now < g.deadline {
				g.deadline = d.Deadline
				n.watchDeadline()
			}
		})
	case e.Linger != nil:
		d := *e.Linger
		step(quick, func() error {
			if !g.live || g.epoch != d.Epoch || w.now >= g.deadline {
				return cluster.ErrDeadline
			}
			g.deadline = d.Deadline
			n.watchDeadline()
			return nil
		})
	case e.Withdraw != nil:
		step(quick, func() error { g.present = false; return nil })
	case e.Start != nil:
		epoch := e.Start.Epoch
		step(20*time.Millisecond, func() error {
			if !g.live || g.epoch != epoch || w.now >= g.deadline {
				return cluster.ErrDeadline
			}
			g.services = true
			return nil
		})
	case e.Stop != nil:
		step(20*time.Millisecond, func() error { g.services = false; return nil })
	case e.End != nil:
		epoch := e.End.Epoch
		step(quick, func() error {
			if g.epoch <= epoch {
				g.live, g.present, g.services = false, false, false
			}
			return nil
		})
	}
}

func (n *modelNode) begin(d cluster.RoleDeadline) error {
	w, g := n.w, &n.guard
	if d.Epoch < g.maxEpoch {
		n.step(Event{GuardState: &cluster.GuardState{MaxEpoch: g.maxEpoch}}) // the shell asks at once
		return cluster.ErrStaleEpoch
	}
	if w.now >= d.Deadline {
		return cluster.ErrDeadline
	}
	if d.Epoch < w.lastBegin || d.Epoch == w.lastBegin && w.beganBy != n.id {
		w.fail("I2: %s begins at epoch %d after %s at %d", n.id, d.Epoch, w.beganBy, w.lastBegin)
	}
	w.lastBegin, w.beganBy = d.Epoch, n.id
	g.epoch, g.maxEpoch, g.deadline, g.live, g.present = d.Epoch, d.Epoch, d.Deadline, true, true
	w.logf("%s guard begins epoch %d until %.4f", n.id, d.Epoch, float64(d.Deadline)/1e9)
	n.watchDeadline()
	return nil
}

func (n *modelNode) watchDeadline() {
	w, g := n.w, &n.guard
	at, epoch := g.deadline, g.epoch
	w.after(max(at.Sub(w.now), 0), func() {
		if g.live && g.epoch == epoch && g.deadline == at {
			g.live, g.present, g.services = false, false, false
			w.logf("%s guard ended epoch %d at its deadline", n.id, epoch)
			n.step(Event{GuardEnded: &cluster.GuardEvent{Kind: "ended", Owner: cluster.OwnerPrimary, Epoch: epoch, Text: "deadline"}})
		}
	})
}

// ---- scenarios

func newWorld(t *testing.T, seed uint64, nodes int, services bool) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: cluster.Instant(time.Second), timing: lan(), recorded: map[string]int{}}
	w.store.recs = map[cluster.Key]*znode{
		leaseKey: {value: cluster.Lease{Version: 1}},
		wishKey:  {value: cluster.NoNode},
	}
	if services {
		w.services = []cluster.ServiceSpec{{Name: "hook", StartTimeout: time.Second, StopTimeout: time.Second}}
	}
	for i := range nodes {
		n := &modelNode{id: cluster.NodeID(fmt.Sprintf("hv%d", i+1)), w: w}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		n.boot()
	}
	return w
}

func lan() cluster.Timing {
	return cluster.Timing{
		KeepaliveInterval: time.Second, CollectorDeadline: 800 * time.Millisecond, RenewInterval: 500 * time.Millisecond,
		RoleTTL: 2800 * time.Millisecond, Grace: 300 * time.Millisecond, TakerMargin: 100 * time.Millisecond,
		SessionTimeout: 6 * time.Second, LockTimeout: 400 * time.Millisecond, TransitionDelay: 500 * time.Millisecond,
	}
}

func (w *world) primaries() []*modelNode {
	var list []*modelNode
	for _, n := range w.nodes {
		if n.guard.live && n.guard.present && n.state.Mode == Primary {
			list = append(list, n)
		}
	}
	return list
}

func (w *world) wish(v string) {
	rec := w.store.recs[wishKey]
	w.store.zxid++
	rec.value, rec.mzxid = v, w.store.zxid
	rec.version++
	w.logf("wish %s", v)
	w.publish()
}

// misfortune plants one random fault.
func (w *world) misfortune() {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	lasts := time.Duration(w.rng.IntN(6000)) * time.Millisecond
	switch w.rng.IntN(12) {
	case 11:
		e := w.store.lease().Epoch + cluster.Epoch(w.rng.IntN(5))
		w.logf("%s hears of epoch %d", n.id, e)
		if n.up {
			n.step(Event{EpochSeen: e})
		}
	case 9:
		w.maintenance = !w.maintenance
		w.logf("maintenance %v", w.maintenance)
		w.publish()
	case 10:
		w.logf("suspend %s", n.id)
		n.step(Event{Suspended: true})
	case 8:
		if n.up {
			w.logf("stop %s", n.id)
			n.step(Event{Stop: true})
			w.after(15*time.Second, func() {
				if !n.up {
					n.paused = 0
					n.boot()
				}
			})
		}
	case 0:
		w.logf("pause %s for %v", n.id, lasts)
		n.paused = w.now.Add(lasts)
		start := n.start
		w.after(lasts+time.Microsecond, func() {
			if n.start == start && w.now > n.paused {
				n.resume()
			}
		})
	case 1:
		if n.up {
			n.kill()
			w.after(lasts/4, func() {
				if !n.up {
					n.paused = 0
					n.boot()
				}
			})
		}
	case 2:
		if n.up {
			w.logf("power loss %s", n.id)
			n.powerLoss()
			w.after(lasts*2, func() {
				if !n.up {
					n.paused = 0
					n.boot()
				}
			})
		}
	case 3:
		w.logf("cut %s for %v", n.id, lasts)
		n.cut = true
		w.after(lasts, func() { n.cut = false; w.publish() })
	case 4:
		w.logf("store stalls for %v", lasts/2)
		w.store.stall = w.now.Add(lasts / 2)
	case 5, 6:
		w.wish(string(n.id))
	case 7:
		w.wish(cluster.NoNode)
	}
}

func (w *world) describe() string {
	var b strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%s up=%v mode=%s stage=%d guard=%+v refusals=%v\n", n.id, n.up, n.state.Mode, n.state.stage, n.guard, n.state.Refusals)
	}
	fmt.Fprintf(&b, "lease %+v wish %v locks %d transition %+v\n", w.store.lease(), w.store.recs[wishKey].value, len(w.store.locks), w.store.recs[transitionKey])
	return b.String()
}

func (w *world) report(seed uint64) {
	from := max(0, len(w.log)-150)
	w.t.Fatalf("seed %d: %s\n%s\n%s", seed, w.failed, strings.Join(w.log[from:], "\n"), w.describe())
}

// settleDown heals everything and demands that the cluster converges by itself (I7).
func (w *world) settleDown() {
	w.lossy, w.maintenance, w.failsafe.parted = false, false, nil
	for _, n := range w.nodes {
		n.cut, n.unhealthy = false, false
		if !n.up {
			n.paused = 0
			n.boot()
		}
	}
	w.publish()
	end := w.now.Add(45 * time.Second)
	for w.now < end && w.failed == "" {
		w.runUntil(w.now.Add(500 * time.Millisecond))
		p := w.primaries()
		if len(p) == 1 && w.store.recs[wishKey].value == string(p[0].id) && len(w.store.locks) == 0 {
			return
		}
	}
	w.fail("I7: no single primary 45 s after all faults healed")
}

// TestRandomFaultsNeverGiveTwoHolders runs many small lives of a cluster under
// random pauses, kills, power losses, cuts, store stalls, lost and late commits
// and wishes, and checks I1 and I2 at every event and I7 at the end.
func TestRandomFaultsNeverGiveTwoHolders(t *testing.T) {
	rounds := 1500
	if n, err := strconv.Atoi(os.Getenv("PVC_MODEL_ROUNDS")); err == nil {
		rounds = n
	} else if testing.Short() {
		rounds = 200
	}
	for seed := range uint64(rounds) {
		w := newWorld(t, seed, 1+int(seed%4)+int(seed%2), seed%3 == 0)
		w.lossy = true
		for range 12 {
			w.runUntil(w.now.Add(time.Duration(w.rng.IntN(5000)) * time.Millisecond))
			w.misfortune()
		}
		w.runUntil(w.now.Add(3 * time.Second))
		w.settleDown()
		if w.failed != "" {
			w.report(seed)
		}
	}
}
