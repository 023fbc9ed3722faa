package failsafe

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// The model: one store, three or four coordinators with clocks that drift apart
// by up to 1 %, cuts between any two of them and between each and the store,
// stalls, outages, lost and late writes and replies, stopped and restarted
// daemons. It runs the machines of this package under a role that knows no more
// than the lease's arithmetic, and looks each 5 ms whether two act.
const (
	modelStep = 5 * time.Millisecond
	modelRun  = 25 * time.Second
)

// mutant leaves out one rule, to show that the model would find it.
type mutant string

const (
	faithful       mutant = ""
	noPromiseCheck mutant = "takes the role despite its promise"
	notEverybody   mutant = "asks only one of the others"
)

type modelLease struct {
	holder  int // -1: nobody
	epoch   cluster.Epoch
	version int
}

type message struct {
	at    time.Duration // real time of arrival
	from  int
	to    int // -1: the store
	kind  string
	write write
	ask   Question
	tell  Answer
	lease modelLease
}

type write struct {
	id    int
	kind  string // keepalive, renew, take, hand
	sent  cluster.Instant
	on    int // version
	lease modelLease
}

type modelNode struct {
	i        int
	rate     float64
	offset   int64
	store    bool
	stopped  time.Duration // until; SIGSTOP: the guard goes on
	down     time.Duration // the daemon is gone until then
	deadline cluster.Instant
	ending   time.Duration // how long it takes to end what it did

	// what a restart loses
	started                    cluster.Instant
	asker                      AskerState
	giver                      GiverState
	holds                      bool
	epoch                      cluster.Epoch
	sent                       cluster.Instant // of the last acknowledged renewal
	version                    int
	seen                       modelLease
	seenAt                     cluster.Instant
	acked                      cluster.Instant
	pending                    []write
	nextBeat, nextRenew, retry cluster.Instant
	take                       *write // unresolved take
	handing                    *write // unresolved hand-over
	handed                     bool   // was named holder and has not anchored yet
}

type world struct {
	rng     *rand.Rand
	mutant  mutant
	calm    func(w *world) // instead of random trouble; nil: random
	timing  cluster.Timing
	now     time.Duration
	up      bool
	lease   modelLease
	nodes   []*modelNode
	cut     map[[2]int]bool
	post    []message
	ids     int
	log     []string
	acting  int
	extends int
	takes   int
	hands   int
	kept    int // looks at which somebody acted by promises alone
	broken  string
}

func newModel(seed uint64, m mutant) *world {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := &world{rng: rng, mutant: m, timing: cluster.ProfileLAN(), up: true, cut: map[[2]int]bool{}, lease: modelLease{holder: 0, epoch: 1, version: 1}}
	for i := range 3 + rng.IntN(2) {
		n := &modelNode{i: i, rate: 0.995 + 0.01*rng.Float64(), offset: int64(time.Hour) + rng.Int64N(int64(time.Hour)), store: true,
			ending: time.Duration(rng.Int64N(int64(200 * time.Millisecond)))}
		n.started = n.clock(w).Add(-time.Minute)
		n.seen, n.seenAt = w.lease, n.clock(w)
		w.nodes = append(w.nodes, n)
	}
	first := w.nodes[0]
	first.holds, first.epoch, first.version, first.sent = true, 1, 1, first.clock(w)
	first.deadline = first.sent.Add(w.timing.RoleTerm())
	return w
}

func (n *modelNode) clock(w *world) cluster.Instant {
	return cluster.Instant(n.offset + int64(float64(w.now)*n.rate))
}

func (n *modelNode) name() cluster.NodeID { return cluster.NodeID(rune('a' + n.i)) }

func (n *modelNode) incarnation() cluster.Incarnation {
	return cluster.Incarnation(fmt.Sprintf("%s.%d", n.name(), n.started))
}

// acts reports whether anything of the role is still there.
func (n *modelNode) acts(w *world) bool { return n.clock(w).Before(n.deadline.Add(n.ending)) }

func (w *world) members() Members {
	m := Members{Version: 1}
	for _, n := range w.nodes {
		m.Nodes = append(m.Nodes, n.name())
	}
	return m
}

func (w *world) say(format string, args ...any) {
	if len(w.log) < 4000 {
		w.log = append(w.log, fmt.Sprintf("%7.3f ", w.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

func (w *world) chance(perSecond float64) bool {
	return w.rng.Float64() < perSecond*modelStep.Seconds()
}

// delay is mostly short, now and then up to 1.5 s.
func (w *world) delay() time.Duration {
	if w.calm == nil && w.rng.IntN(30) == 0 {
		return time.Duration(w.rng.Int64N(int64(1500 * time.Millisecond)))
	}
	return time.Duration(w.rng.Int64N(int64(15 * time.Millisecond)))
}

func (w *world) send(m message) {
	m.at = w.now + w.delay()
	w.post = append(w.post, m)
}

func (w *world) run() {
	for w.now = 0; w.now < modelRun && w.broken == ""; w.now += modelStep {
		w.trouble()
		w.deliver()
		for _, n := range w.nodes {
			if w.now >= n.down && w.now >= n.stopped {
				w.live(n)
			}
		}
		w.judge()
	}
}

// trouble begins and ends outages, cuts, stops and restarts.
func (w *world) trouble() {
	if w.calm != nil {
		w.calm(w)
		return
	}
	if w.up && w.chance(0.12) || !w.up && w.chance(0.25) {
		w.up = !w.up
		w.say("store up: %v", w.up)
	}
	for _, n := range w.nodes {
		if n.store && w.chance(0.05) || !n.store && w.chance(0.3) {
			n.store = !n.store
			w.say("%s link to the store: %v", n.name(), n.store)
		}
		for _, o := range w.nodes {
			k := [2]int{n.i, o.i}
			if !w.cut[k] && w.chance(0.01) || w.cut[k] && w.chance(0.5) {
				w.cut[k] = !w.cut[k]
			}
		}
		if w.chance(0.03) {
			n.stopped = w.now + time.Duration(w.rng.Int64N(int64(5*time.Second)))
			w.say("%s stopped until %s", n.name(), n.stopped)
		}
		if w.chance(0.04) {
			w.restart(n)
		}
	}
}

// restart kills the daemon; the guard keeps the deadline that it has.
func (w *world) restart(n *modelNode) {
	n.down = w.now + time.Duration(w.rng.Int64N(int64(time.Second)))
	at := cluster.Instant(n.offset + int64(float64(n.down)*n.rate))
	w.say("%s killed until %s", n.name(), n.down)
	*n = modelNode{i: n.i, rate: n.rate, offset: n.offset, store: n.store, stopped: n.stopped, down: n.down, deadline: n.deadline,
		ending: n.ending, started: at, seen: modelLease{holder: -1, version: -1}}
}

func (w *world) deliver() {
	arrived := w.post
	w.post = nil
	for _, m := range arrived {
		switch {
		case m.at > w.now:
			w.post = append(w.post, m)
		case m.to < 0:
			w.atStore(m)
		case w.nodes[m.to].down > w.now || (m.from >= 0 && w.cut[[2]int{m.from, m.to}]) || (m.from < 0 && !w.nodes[m.to].store):
		case w.nodes[m.to].stopped > w.now:
			w.post = append(w.post, m) // read when it goes on
		default:
			w.atNode(w.nodes[m.to], m)
		}
	}
}

// atStore commits a write if it can; a late one of a node that is cut off since
// may still arrive.
func (w *world) atStore(m message) {
	if !w.up {
		return
	}
	ok := true
	if m.write.kind != "keepalive" {
		ok = m.write.on == w.lease.version
		if ok {
			m.write.lease.version = w.lease.version + 1
			w.lease = m.write.lease
			w.say("store: %s by %s, lease %+v", m.write.kind, w.nodes[m.from].name(), w.lease)
			for _, n := range w.nodes {
				w.send(message{from: -1, to: n.i, kind: "watch", lease: w.lease})
			}
		}
	}
	kind := "ok"
	if !ok {
		kind = "conflict"
	}
	w.send(message{from: -1, to: m.from, kind: kind, write: m.write, lease: w.lease})
}

func (w *world) atNode(n *modelNode, m message) {
	switch m.kind {
	case "watch":
		w.observe(n, m.lease)
	case "ok", "conflict":
		w.reply(n, m)
	case "ask":
		s, out := StepGiver(w.giverConfig(n), n.giver, w.giverInput(n, &m.ask))
		n.giver = s
		if out.TryWrite {
			w.write(n, write{kind: "keepalive"})
		}
		w.send(message{from: n.i, to: m.from, kind: "tell", tell: *out.Answer})
	case "tell":
		if m.tell.Code != "" {
			w.say("%s refuses %s: %s", w.nodes[m.from].name(), n.name(), m.tell.Detail)
		}
		w.ask(n, &m.tell)
	}
}

func (w *world) observe(n *modelNode, l modelLease) {
	if l.version <= n.seen.version {
		return
	}
	n.seen, n.seenAt = l, n.clock(w)
	n.handed = l.holder == n.i && !n.holds && n.take == nil && l.epoch > n.epoch
	if n.holds && l.epoch > n.epoch {
		w.drop(n, "another holder is seen")
	}
}

func (w *world) drop(n *modelNode, why string) {
	w.say("%s drops: %s", n.name(), why)
	n.holds, n.handing = false, nil
	n.deadline = min(n.deadline, n.clock(w))
}

func (w *world) reply(n *modelNode, m message) {
	found := slices.IndexFunc(n.pending, func(p write) bool { return p.id == m.write.id })
	if found < 0 {
		return // of an earlier start, or given up
	}
	n.pending = slices.Delete(n.pending, found, found+1)
	n.acked = n.clock(w)
	w.observe(n, m.lease)
	switch m.write.kind {
	case "renew":
		switch {
		case m.kind == "ok" && n.holds && n.epoch == m.write.lease.epoch:
			n.version = m.lease.version
			w.anchor(n, m.write.sent)
		case m.kind == "conflict" && n.holds && m.lease.holder == n.i && m.lease.epoch == n.epoch:
			n.version = m.lease.version // a late write of one's own
		case m.kind == "conflict" && n.holds && n.epoch == m.write.lease.epoch:
			w.drop(n, "conflict")
		case m.kind == "ok" && n.handed:
			w.become(n, m)
		}
	case "take":
		n.take = nil
		if m.kind == "ok" {
			w.takes++
			w.become(n, m)
		}
	case "hand":
		if m.kind == "conflict" && m.lease.epoch == n.epoch && n.holds {
			n.version, n.handing = m.lease.version, nil // not handed over, and stopped all the same
		} else {
			w.drop(n, "handed over")
		}
	}
}

// become makes the node the holder, if it may act on it.
func (w *world) become(n *modelNode, m message) {
	n.handed = false
	n.holds, n.epoch, n.version, n.asker = true, m.lease.epoch, m.lease.version, AskerState{}
	if r := w.mayTake(n); r.Code != "" {
		w.drop(n, r.Detail)
		return
	}
	w.say("%s holds epoch %d", n.name(), n.epoch)
	w.anchor(n, m.write.sent)
}

func (w *world) mayTake(n *modelNode) cluster.Refusal {
	s, _ := StepGiver(w.giverConfig(n), n.giver, w.giverInput(n, nil))
	n.giver = s
	if w.mutant == noPromiseCheck {
		return cluster.Refusal{}
	}
	return MayTake(w.giverConfig(n), n.giver, n.clock(w))
}

func (w *world) anchor(n *modelNode, sent cluster.Instant) {
	now := n.clock(w)
	n.sent = max(n.sent, sent)
	if until := sent.Add(w.timing.RoleTerm()); until.After(now) && n.handing == nil {
		n.deadline = max(n.deadline, until)
	}
}

func (w *world) giverConfig(n *modelNode) GiverConfig {
	c := GiverConfig{Node: n.name(), Timing: w.timing, Started: n.started}
	return c
}

func (w *world) giverInput(n *modelNode, q *Question) GiverInput {
	in := GiverInput{Now: n.clock(w), Connected: n.store, Acked: n.acked, Epoch: n.seen.epoch, Members: w.members(), Question: q,
		TakeUnresolved: n.take != nil || n.handed}
	if n.seen.holder >= 0 {
		in.Holder = w.nodes[n.seen.holder].name()
	}
	if n.seen.holder == n.i {
		in.GivenUp = n.seen.epoch - 1 // only a hand-over names another
	}
	for _, p := range n.pending {
		in.Pending = cluster.Earliest(in.Pending, p.sent)
	}
	return in
}

// write sends a write if there is a session; what is sent may arrive although
// the link is cut later, and its reply may be lost.
func (w *world) write(n *modelNode, x write) {
	w.ids++
	x.id, x.sent = w.ids, n.clock(w)
	n.pending = append(n.pending, x)
	if x.kind == "take" {
		n.take = &x
	}
	if x.kind == "hand" {
		n.handing = &x
	}
	if n.store && (w.calm != nil || w.rng.IntN(40) > 0) {
		w.send(message{from: n.i, to: -1, kind: "write", write: x})
	}
}

// live is one round of the daemon's loop.
func (w *world) live(n *modelNode) {
	now := n.clock(w)
	n.pending = slices.DeleteFunc(n.pending, func(p write) bool { // what has not come in 3 s never will
		gone := now.Sub(p.sent) > 3500*time.Millisecond
		if gone && n.take != nil && p.id == n.take.id && (!w.up || !n.store) {
			return false // settled by a read only
		}
		if gone && n.take != nil && p.id == n.take.id {
			n.take = nil
		}
		return gone
	})
	if w.up && n.store && w.rng.IntN(20) == 0 {
		w.observe(n, w.lease) // a level-triggered read
	}
	if now >= n.nextBeat {
		n.nextBeat = now.Add(w.timing.KeepaliveInterval)
		w.write(n, write{kind: "keepalive"})
	}
	switch {
	case n.holds:
		w.hold(n, now)
	case n.handed:
		if now >= n.retry {
			n.retry = now.Add(300 * time.Millisecond)
			w.write(n, write{kind: "renew", on: n.seen.version, lease: modelLease{holder: n.i, epoch: n.seen.epoch}})
		}
	default:
		w.contend(n, now)
	}
}

func (w *world) hold(n *modelNode, now cluster.Instant) {
	if !now.Before(n.deadline) && n.handing == nil {
		w.drop(n, "its deadline has passed")
		return
	}
	if n.handing != nil && now.Sub(n.handing.sent) > 4*time.Second {
		w.drop(n, "the hand-over is not settled")
		return
	}
	if n.handing == nil && now >= n.nextRenew {
		n.nextRenew = now.Add(w.timing.RenewInterval)
		w.write(n, write{kind: "renew", on: n.version, lease: modelLease{holder: n.i, epoch: n.epoch}})
	}
	if n.handing == nil && w.calm == nil && w.chance(0.05) {
		w.hands++
		n.deadline = now.Add(-n.ending) // all is stopped before it is written
		to := (n.i + 1 + w.rng.IntN(len(w.nodes)-1)) % len(w.nodes)
		w.write(n, write{kind: "hand", on: n.version, lease: modelLease{holder: to, epoch: n.epoch + 1}})
	}
	w.ask(n, nil)
}

func (w *world) ask(n *modelNode, a *Answer) {
	if !n.holds {
		return
	}
	s, out := StepAsker(AskerConfig{Node: n.name(), Incarnation: n.incarnation(), Right: RightRole, Timing: w.timing}, n.asker, AskerInput{
		Now: n.clock(w), InUse: true, Sent: n.sent, Epoch: n.epoch, TTL: w.timing.RoleTTL, Unresolved: n.handing != nil,
		Members: w.members(), Answer: a,
	})
	if w.mutant == notEverybody && a != nil && a.Promise > 0 && !s.asked.IsZero() {
		out.Extend = s.asked.Add(a.Promise - w.timing.Grace)
	}
	n.asker = s
	if !out.Extend.IsZero() && n.handing == nil {
		w.extends++
		w.say("%s goes on by promises", n.name())
		n.deadline = max(n.deadline, out.Extend)
	}
	if out.Ask != nil {
		for _, to := range out.To {
			w.send(message{from: n.i, to: int(to[0] - 'a'), kind: "ask", ask: *out.Ask})
		}
	}
}

// contend takes an expired lease after a fresh read.
func (w *world) contend(n *modelNode, now cluster.Instant) {
	if n.take != nil || !w.up || !n.store || n.seen.version != w.lease.version || n.seen.version < 0 ||
		now.Sub(n.seenAt) < w.timing.RoleTTL+w.timing.TakerMargin || w.mayTake(n).Code != "" {
		return
	}
	w.write(n, write{kind: "take", on: n.seen.version, lease: modelLease{holder: n.i, epoch: n.seen.epoch + 1}})
	w.say("%s takes", n.name())
}

// judge is I1.
func (w *world) judge() {
	var who []cluster.NodeID
	for _, n := range w.nodes {
		if n.acts(w) {
			who = append(who, n.name())
			if n.clock(w) > n.sent.Add(w.timing.RoleTerm()+n.ending) {
				w.kept++
			}
		}
	}
	if len(who) > 0 {
		w.acting++
	}
	if len(who) > 1 {
		w.broken = fmt.Sprintf("%v act at once at %s", who, w.now)
	}
}

// Two nodes never act at once, whatever happens.
func TestTwoNeverActAtOnce(t *testing.T) {
	rounds := uint64(600)
	if testing.Short() {
		rounds = 200
	}
	var extends, takes, hands, kept, acting int
	for seed := range rounds {
		w := newModel(seed, faithful)
		w.run()
		if w.broken != "" {
			t.Fatalf("seed %d: %s\n%s", seed, w.broken, tail(w.log))
		}
		extends, takes, hands, kept, acting = extends+w.extends, takes+w.takes, hands+w.hands, kept+w.kept, acting+w.acting
	}
	t.Logf("%d lives: the role was extended %d times, taken %d times, handed over %d times; it was held for %d %% of the time, %d %% of that by promises",
		rounds, extends, takes, hands, 100*acting/int(rounds*uint64(modelRun/modelStep)), 100*kept/acting)
	if extends < int(rounds)/2 || takes < int(rounds)/2 || hands < int(rounds)/4 || kept == 0 {
		t.Errorf("extended %d, taken %d, handed over %d times: the model tests too little", extends, takes, hands)
	}
}

// An outage of the store alone stops nobody, however long (I6), and the role
// stays where it is.
func TestAnOutageOfTheStoreAloneMovesNothing(t *testing.T) {
	for seed := range uint64(60) {
		w := newModel(seed, faithful)
		w.calm = func(w *world) { w.up = w.now < 3*time.Second || w.now > 21*time.Second }
		w.run()
		if looks := int(modelRun / modelStep); w.broken != "" || w.acting < looks || w.takes > 0 || w.extends < 8 {
			t.Fatalf("seed %d: held at %d of %d looks, taken %d times, extended %d times; %s\n%s", seed, w.acting, looks, w.takes, w.extends, w.broken, tail(w.log))
		}
	}
}

// A holder that alone is cut off from the store stops, and another takes the
// role although all coordinators reach each other.
func TestWhoAloneIsCutOffStepsDown(t *testing.T) {
	for seed := range uint64(60) {
		w := newModel(seed, faithful)
		w.calm = func(w *world) { w.nodes[0].store = w.now < 3*time.Second }
		w.run()
		silent := int(modelRun/modelStep) - w.acting
		if w.broken != "" || w.takes != 1 || time.Duration(silent)*modelStep > 4*time.Second || w.nodes[0].acts(w) {
			t.Fatalf("seed %d: taken %d times, silent for %s; %s\n%s", seed, w.takes, time.Duration(silent)*modelStep, w.broken, tail(w.log))
		}
	}
}

// Each of these rules is needed: without it the model finds two that act at
// once. (That a fresh giver takes nothing and that an unresolved take forbids a
// promise it does not miss: here a fresh observer waits as long in any case, and
// whoever may take has outwaited the holder. They stand for a taker that does not.)
func TestEachRuleIsNeeded(t *testing.T) {
	for _, m := range []mutant{noPromiseCheck, notEverybody} {
		found := false
		for seed := uint64(0); seed < 1500 && !found; seed++ {
			w := newModel(seed, m)
			w.run()
			if found = w.broken != ""; found {
				t.Logf("%s: seed %d: %s", m, seed, w.broken)
			}
		}
		if !found {
			t.Errorf("a giver or asker that %s is not found", m)
		}
	}
}

func tail(log []string) string {
	out := ""
	for _, line := range log[max(0, len(log)-40):] {
		out += line + "\n"
	}
	return out
}
