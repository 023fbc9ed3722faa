package lease

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// The simulator: two nodes whose leases are asked for, and leaders that come,
// go, crash, are superseded without knowing it, and come back. Each host's clock
// has a rate of its own, up to 5 % wrong. Questions and answers are lost,
// delayed and copied; daemons crash and stop, disks fill and files rot; each 10 s
// one such thing begins. What hangs on a lease is a leader's belief (until its
// deadline on its own clock) and the work that it has started on the node (until
// it is dead, which a crash of the daemon alone does not bring about). Of two
// leaders they never overlap, and no belief outlives the node's promise.
const (
	simNodes  = 2
	simHosts  = 3
	faultEach = 10 * time.Second
)

// at is real time, which nobody in the simulation knows.
type at = time.Duration

type simClock struct {
	rate   float64
	offset int64
}

func (c simClock) read(t at) cluster.Instant {
	return cluster.Instant(c.offset + int64(float64(t)*c.rate))
}

// real is when the clock reads i, rounded up.
func (c simClock) real(i cluster.Instant) at {
	if i == cluster.Forever {
		return 1 << 62
	}
	return at(float64(int64(i)-c.offset)/c.rate) + 1
}

type simEventKind uint8

const (
	simWake    simEventKind = iota // a leader's holder
	simAsk                         // a question arrives
	simTell                        // an answer arrives
	simTimeout                     // a question has no answer
	simCommand                     // a leader's order to do work arrives
	simTimer                       // a granter's
	simWritten                     // a disk's answer
	simKilled                      // the work is dead
	simCrash                       // the daemon ends
	simNotice                      // an invitation arrives
	simFault
	simRestart // of a node's daemon
	simResign  // a leader learns that it is none
	simDead    // what hung on a leader's leases is dead
)

type simEvent struct {
	at     at
	kind   simEventKind
	node   int
	leader int
	life   int // of the node's daemon
	n      uint64
	ask    cluster.NodeLeaseRequest
	tell   cluster.NodeLeaseAnswer
	to     cluster.NodeLeaseID
	record Record
	remove bool
}

type simNode struct {
	simClock
	g       Granter
	life    int
	up      bool
	timer   cluster.Instant
	timerAt at // of the event under way; 0: none
	paused  at // stopped until then
	disk    Found
	full    at // the disk takes nothing before
	free    at // when it has done what it was told
	work    cluster.NodeLeaseID
	tickets map[uint64]int // question → leader
	ticket  uint64
	clean   bool // it stops when the last write is done
}

type simLeader struct {
	simClock
	host   int
	id     cluster.NodeLeaseID
	gone   bool
	wanted bool
	dead   bool
	hold   [simNodes]Holder
	until  [simNodes]at // real end of the belief; 0: none
	wakeAt [simNodes]at // of the event under way; 0: none
}

type simWorld struct {
	rng     *rand.Rand
	timing  cluster.Timing
	now     at
	order   uint64
	heap    []simKey
	slots   []simEvent
	idle    []int32
	nodes   [simNodes]*simNode
	leaders []*simLeader
	hosts   [simHosts]simClock
	epoch   cluster.Epoch
	starts  int
	cut     [simHosts][simNodes]at // until
	lossy   at
	slow    at
	broken  string
	log     []string
	// what was seen, so that a world in which nothing happens is found
	grants, overtakes, works, events int
	believed                         at
}

func newSimWorld(seed uint64) *simWorld {
	rng := rand.New(rand.NewPCG(seed, 11))
	w := &simWorld{rng: rng, timing: []cluster.Timing{cluster.ProfileLAN(), cluster.ProfileLAN(), cluster.ProfileFast(), cluster.ProfilePVC()}[rng.IntN(4)]}
	clock := func() simClock {
		rate := 0.95 + 0.1*rng.Float64()
		if rng.IntN(3) == 0 {
			rate = []float64{0.95, 1.05}[rng.IntN(2)]
		}
		return simClock{rate: rate, offset: int64(time.Hour) + rng.Int64N(int64(time.Hour))}
	}
	for i := range w.hosts {
		w.hosts[i] = clock()
	}
	for i := range w.nodes {
		w.nodes[i] = &simNode{simClock: clock(), tickets: map[uint64]int{}}
		w.restart(i)
	}
	w.lead(0)
	w.push(simEvent{at: faultEach, kind: simFault})
	return w
}

func (w *simWorld) note(format string, args ...any) {
	if len(w.log) > 400 {
		w.log = append(w.log[:0], w.log[200:]...)
	}
	w.log = append(w.log, fmt.Sprintf("%12.6f ", w.now.Seconds())+fmt.Sprintf(format, args...))
}

func (w *simWorld) fail(format string, args ...any) {
	w.note(format, args...)
	if w.broken == "" {
		w.broken = fmt.Sprintf(format, args...)
	}
}

// push and pop keep a binary heap by time; what happens lies beside it, so that
// little moves.
func (w *simWorld) push(e simEvent) {
	w.order++
	key := simKey{at: e.at, order: w.order}
	if n := len(w.idle); n > 0 {
		key.slot, w.idle = w.idle[n-1], w.idle[:n-1]
		w.slots[key.slot] = e
	} else {
		key.slot, w.slots = int32(len(w.slots)), append(w.slots, e)
	}
	w.heap = append(w.heap, key)
	h := w.heap
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !key.before(h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = key
}

type simKey struct {
	at    at
	order uint64
	slot  int32
}

func (k simKey) before(o simKey) bool { return k.at < o.at || (k.at == o.at && k.order < o.order) }

func (w *simWorld) pop() simEvent {
	h := w.heap
	top, last := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	w.heap = h
	w.idle = append(w.idle, top.slot)
	for i := 0; len(h) > 0; {
		c := 2*i + 1
		if c+1 < len(h) && h[c+1].before(h[c]) {
			c++
		}
		if c >= len(h) || !h[c].before(last) {
			h[i] = last
			break
		}
		h[i] = h[c]
		i = c
	}
	return w.slots[top.slot]
}

func (w *simWorld) up(d at) at { return at(w.rng.Int64N(int64(d)) + 1) }

// run plays the world for that long.
func (w *simWorld) run(long at) {
	for w.broken == "" {
		e := w.pop()
		if e.at > long {
			return
		}
		w.now = e.at
		w.events++
		w.handle(e)
	}
}

func (w *simWorld) handle(e simEvent) {
	switch e.kind {
	case simWake:
		l := w.leaders[e.leader]
		if l.wakeAt[e.node] != e.at {
			return
		}
		l.wakeAt[e.node] = 0
		w.hold(e.leader, e.node, HolderInput{Kind: HolderTimer})
	case simTell:
		w.hold(e.leader, e.node, HolderInput{Kind: HolderAnswer, Answer: e.tell})
	case simTimeout:
		w.hold(e.leader, e.node, HolderInput{Kind: HolderNoAnswer, N: e.n, Why: "timed out"})
	case simNotice:
		for i, l := range w.leaders {
			if l.id == e.to {
				w.hold(i, e.node, HolderInput{Kind: HolderInvited})
			}
		}
	case simResign:
		l := w.leaders[e.leader]
		l.wanted = false
		w.note("%s resigns", l.id)
		for n := range w.nodes {
			w.hold(e.leader, n, HolderInput{Kind: HolderTimer})
		}
		w.push(simEvent{at: w.now + w.up(300*time.Millisecond), kind: simDead, leader: e.leader})
	case simDead:
		w.leaders[e.leader].dead = true
		for n := range w.nodes {
			w.hold(e.leader, n, HolderInput{Kind: HolderTimer})
		}
	case simFault:
		w.fault()
		w.push(simEvent{at: w.now + faultEach, kind: simFault})
	case simRestart:
		w.restart(e.node)
	default:
		w.atNode(e)
	}
}

// atNode is what happens at a node whose daemon may be away, or stopped.
func (w *simWorld) atNode(e simEvent) {
	n := w.nodes[e.node]
	local := e.kind == simCrash || e.kind == simTimer || e.kind == simWritten || e.kind == simKilled
	switch {
	case local && e.life != n.life, !local && !n.up:
		return
	case w.now < n.paused:
		e.at = n.paused
		w.push(e)
		return
	}
	switch e.kind {
	case simTimer:
		if n.timerAt == e.at {
			n.timerAt = 0
		}
		if n.timer.IsZero() {
			return
		}
		if n.read(w.now).Before(n.timer) {
			w.arm(e.node)
			return
		}
		n.timer = cluster.Never
		w.grant(e.node, Input{Kind: InputTimer})
	case simAsk:
		n.ticket++
		n.tickets[n.ticket] = e.leader
		w.grant(e.node, Input{Kind: InputRequest, Request: e.ask, From: e.ask.ID.Holder, Member: true, Ticket: n.ticket})
	case simCommand:
		if r := n.g.Check(e.to, n.read(w.now)); r.Code == "" {
			w.begin(e.node, e.to)
		}
	case simWritten:
		w.written(e)
	case simCrash:
		w.down(e.node, w.up(3*time.Second))
	case simKilled:
		if n.g.state == StateExpiring && n.g.revoke == e.n { // else it is the late word of an end long past
			n.work = cluster.NodeLeaseID{}
		}
		w.grant(e.node, Input{Kind: InputWorkGone, Seq: e.n})
	}
}

// written puts a record on the disk, if it is taken, and tells the granter.
func (w *simWorld) written(e simEvent) {
	n := w.nodes[e.node]
	if e.n < n.g.disk.seq && w.rng.IntN(2) == 0 { // left out for a newer one
		return
	}
	in := Input{Kind: InputPersisted, Seq: e.n}
	if w.now < n.full {
		in.Failed = "no space left on device"
	}
	if in.Failed == "" || w.rng.IntN(2) == 0 { // a failed write may be there all the same
		n.disk = Found{Kind: FoundRecord, Record: e.record}
		if e.remove {
			n.disk = Found{}
		}
	}
	w.grant(e.node, in)
	if n.clean && n.g.state == StateStopped && !n.g.disk.flying { // it goes on answering for a moment
		w.push(simEvent{at: w.now + w.up(2*time.Second), kind: simCrash, node: e.node, life: n.life})
	}
	if in.Failed != "" && w.rng.IntN(4) == 0 {
		w.push(simEvent{at: w.now + w.up(time.Second), kind: simCrash, node: e.node, life: n.life})
	}
}

// down ends a node's daemon; what it started lives on until the next ends it.
func (w *simWorld) down(i int, away at) {
	n := w.nodes[i]
	n.up, n.clean = false, false
	n.life++
	w.push(simEvent{at: w.now + away, kind: simRestart, node: i})
}

func (w *simWorld) restart(i int) {
	n := w.nodes[i]
	if n.up {
		return
	}
	n.life++
	n.up, n.timer, n.timerAt = true, cluster.Never, 0
	n.g = NewGranter(NewGranterConfig(w.name(i), fmt.Sprint("life", n.life), w.timing))
	w.note("node %d starts with %+v", i, n.disk)
	if n.disk.Record.Clean && w.rng.IntN(3) == 0 {
		w.push(simEvent{at: w.now + w.up(10*time.Second), kind: simCrash, node: i, life: n.life})
	}
	w.grant(i, Input{Kind: InputStart, Found: n.disk})
}

func (w *simWorld) name(i int) cluster.NodeID { return cluster.NodeID("node" + strconv.Itoa(i)) }

// grant steps a node's granter and does what it asks for.
func (w *simWorld) grant(i int, in Input) {
	n := w.nodes[i]
	now := n.read(w.now)
	before := n.g.state
	next, effects := n.g.Step(in, now)
	n.g = next
	if before != next.state {
		w.note("node %d: %s → %s (%s)", i, before, next.state, next.holder)
		if next.state == StateActive && before == StateNone {
			w.grants++
		}
	}
	for _, e := range effects {
		w.effect(i, e)
	}
}

func (w *simWorld) effect(i int, e Effect) {
	n := w.nodes[i]
	switch e.Kind {
	case EffectArm:
		n.timer = e.Until
		w.arm(i)
	case EffectRevoke:
		w.push(simEvent{at: w.now + w.up([]at{100 * time.Millisecond, 800 * time.Millisecond, 9 * time.Second}[min(2, w.rng.IntN(20)/9)]), kind: simKilled, node: i, life: n.life, n: e.Seq})
	case EffectPersist, EffectRemove:
		took := w.up(5 * time.Millisecond)
		if w.rng.IntN(20) == 0 {
			took = w.up(3 * time.Second)
		}
		n.free = max(n.free, w.now) + took // in order
		if w.rng.IntN(30) == 0 {           // of all moments in this one
			w.push(simEvent{at: w.now + w.up(took), kind: simCrash, node: i, life: n.life})
		}
		w.push(simEvent{at: n.free, kind: simWritten, node: i, life: n.life, n: e.Seq, record: e.Record, remove: e.Kind == EffectRemove})
	case EffectReply:
		leader, ok := n.tickets[e.Ticket]
		if !ok {
			w.fail("node %d answers a question twice, or one that was never asked (%d)", i, e.Ticket)
		}
		delete(n.tickets, e.Ticket)
		if !w.post(w.leaders[leader].host, i, simEvent{kind: simTell, node: i, leader: leader, tell: e.Answer}) {
			w.timeout(leader, i, e.Answer.N)
		}
	case EffectInvite:
		w.post(w.rng.IntN(simHosts), i, simEvent{kind: simNotice, node: i, to: e.To})
	case EffectIllegal:
		w.fail("node %d: illegal: %s", i, e.Detail)
	}
}

// arm keeps at most one event under way for a node's timer.
func (w *simWorld) arm(i int) {
	n := w.nodes[i]
	if n.timer.IsZero() {
		return
	}
	due := max(w.now, n.real(n.timer))
	if n.timerAt != 0 && n.timerAt <= due {
		return
	}
	n.timerAt = due
	w.push(simEvent{at: due, kind: simTimer, node: i, life: n.life})
}

// post sends a message between a host and a node, or loses, delays, copies it.
// It reports whether the message arrives soon.
func (w *simWorld) post(host, node int, e simEvent) bool {
	if w.now < w.cut[host][node] || (w.now < w.lossy && w.rng.IntN(3) == 0) || w.rng.IntN(200) == 0 {
		return false
	}
	copies, soon := 1, true
	if w.rng.IntN(50) == 0 || (w.now < w.lossy && w.rng.IntN(4) == 0) {
		copies = 2
	}
	for range copies {
		delay := 100*time.Microsecond + w.up(500*time.Microsecond)
		if w.now < w.slow {
			delay = w.up([]at{20 * time.Millisecond, 700 * time.Millisecond, 6 * time.Second}[w.rng.IntN(3)])
		} else if w.rng.IntN(100) == 0 {
			delay = w.up(4 * time.Second)
		}
		soon = soon && delay < time.Millisecond
		e.at = w.now + delay
		w.push(e)
	}
	return soon
}

// hold steps a leader's holder of a node and does what it asks for.
func (w *simWorld) hold(leader, node int, in HolderInput) {
	l := w.leaders[leader]
	if l.gone {
		return
	}
	held := 0
	for _, until := range l.until {
		if until > w.now {
			held++
		}
	}
	in.Wanted, in.Dead, in.Majority = l.wanted, l.dead, 2*held > simNodes
	var out HolderOutput
	l.hold[node], out = l.hold[node].Step(in, l.read(w.now))
	if out.Lost != nil {
		w.note("%s loses node %d: %s", l.id, node, out.Lost.Code)
		l.until[node] = 0
	}
	if out.Held {
		w.believe(l, node, out.Until)
	}
	if out.Ask != nil {
		if !w.post(l.host, node, simEvent{kind: simAsk, node: node, leader: leader, ask: *out.Ask}) {
			w.timeout(leader, node, out.Ask.N)
		}
	}
	if out.Held && w.rng.IntN(4) == 0 {
		w.post(l.host, node, simEvent{kind: simCommand, node: node, to: l.id})
	}
	if !out.Wake.IsZero() {
		due := max(w.now, l.real(out.Wake))
		if l.wakeAt[node] == 0 || due < l.wakeAt[node] {
			l.wakeAt[node] = due
			w.push(simEvent{at: due, kind: simWake, node: node, leader: leader})
		}
	}
}

// timeout tells a holder that its question has no answer, which the holder
// assumes by itself a moment later.
func (w *simWorld) timeout(leader, node int, n uint64) {
	w.push(simEvent{at: w.now + w.timing.RequestTimeout(), kind: simTimeout, node: node, leader: leader, n: n})
}

// believe notes a leader's belief and compares it with everybody else's, and
// with what the node has promised.
func (w *simWorld) believe(l *simLeader, node int, until cluster.Instant) {
	n := w.nodes[node]
	end := l.real(until)
	w.believed += max(0, end-max(w.now, l.until[node]))
	if l.until[node] <= w.now {
		w.note("%s holds node %d until %.6f", l.id, node, end.Seconds())
	}
	l.until[node] = end
	w.alone(l.id, node)
	if !n.up || n.g.state == StateUnstarted {
		return
	}
	promised := n.g.state == StateActive && (n.g.holder == l.id || n.g.holder.IsZero()) || n.g.state == StateStopped
	if !promised {
		w.fail("%s believes that it holds node %d until %.6f, which is %s for %s", l.id, node, end.Seconds(), n.g.state, n.g.holder)
	}
	if promise := n.real(n.g.deadline); end > promise {
		w.fail("%s believes that it holds node %d until %.6f, which promised until %.6f", l.id, node, end.Seconds(), promise.Seconds())
	}
}

// begin starts work on a node for a leader.
func (w *simWorld) begin(node int, id cluster.NodeLeaseID) {
	n := w.nodes[node]
	if n.work != id {
		w.works++
		w.note("%s starts work on node %d", id, node)
	}
	w.alone(id, node)
	n.work = id
}

// alone fails unless nobody but id believes in the node's lease, or has work there.
func (w *simWorld) alone(id cluster.NodeLeaseID, node int) {
	if work := w.nodes[node].work; !work.IsZero() && work != id {
		w.fail("%s uses node %d where work of %s lives", id, node, work)
	}
	for _, other := range w.leaders {
		if !other.gone && other.id != id && other.until[node] > w.now {
			w.fail("%s uses node %d, which %s believes it holds until %.6f", id, node, other.id, other.until[node].Seconds())
		}
	}
}

// lead makes a new leader on a host, with an epoch of its own.
func (w *simWorld) lead(host int) {
	w.epoch++
	w.begins(host, w.epoch)
}

func (w *simWorld) begins(host int, epoch cluster.Epoch) {
	w.starts++
	l := &simLeader{simClock: w.hosts[host], host: host, wanted: true,
		id: cluster.NodeLeaseID{Holder: cluster.NodeID("host" + strconv.Itoa(host)), Start: fmt.Sprint("start", w.starts), Epoch: epoch}}
	w.note("%s leads", l.id)
	if len(w.leaders) > 12 { // the oldest has been away for long
		w.leaders[len(w.leaders)-12].gone = true
	}
	w.leaders = append(w.leaders, l)
	for i := range w.nodes {
		l.hold[i] = NewHolder(NewHolderConfig(l.id, w.name(i), w.timing))
		w.hold(len(w.leaders)-1, i, HolderInput{Kind: HolderTimer})
	}
}

// fault lets one thing go wrong.
func (w *simWorld) fault() {
	i, host := w.rng.IntN(simNodes), w.rng.IntN(simHosts)
	n, newest := w.nodes[i], len(w.leaders)-1
	l := w.leaders[newest]
	switch k := w.rng.IntN(12); {
	case k == 0 && n.up: // kill -9
		w.note("node %d crashes", i)
		w.down(i, w.up(8*time.Second))
	case k == 1 && n.up:
		w.note("node %d stops", i)
		n.clean = true
		w.grant(i, Input{Kind: InputStop})
		if !n.g.disk.flying {
			w.down(i, w.up(time.Second))
		}
	case k == 2 && n.up:
		w.note("node %d crashes and its file rots", i)
		n.disk = Found{Kind: FoundUnreadable, Detail: "rotten"}
		w.down(i, w.up(3*time.Second))
	case k == 3:
		n.full = w.now + w.up(8*time.Second)
	case k == 4:
		w.cut[host][i] = w.now + w.up(12*time.Second)
	case k == 5:
		w.slow = w.now + w.up(12*time.Second)
	case k == 6:
		w.lossy = w.now + w.up(12*time.Second)
	case k == 7: // the leader's daemon crashes and resumes its role
		w.note("%s crashes", l.id)
		l.gone = true
		w.begins(l.host, l.id.Epoch)
	case k == 8: // handed over in order
		w.push(simEvent{at: w.now + 1, kind: simResign, leader: newest})
		w.overtakes++
		w.lead(host)
	case k == 9, k == 10: // superseded, and told so late
		w.push(simEvent{at: w.now + w.up(15*time.Second), kind: simResign, leader: newest})
		w.overtakes++
		w.lead(host)
	case k == 11:
		n.paused = w.now + w.up(8*time.Second)
	}
}

// simHours is how long is played: PVC_LEASE_HOURS hours, 200 if it is unset.
func simHours(t *testing.T) int {
	hours := 200
	if text := os.Getenv("PVC_LEASE_HOURS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("PVC_LEASE_HOURS=%q is no number of hours", text)
		}
		hours = n
	}
	if testing.Short() {
		hours = min(hours, 20)
	}
	return hours
}

func TestTwoLeadersNeverOverlap(t *testing.T) {
	var grants, overtakes, works, events int
	var believed at
	hours := simHours(t)
	for seed := range uint64(hours) {
		w := newSimWorld(seed)
		w.run(time.Hour)
		if w.broken != "" {
			t.Fatalf("hour %d: %s\n%s", seed, w.broken, strings.Join(w.log[max(0, len(w.log)-60):], "\n"))
		}
		grants, overtakes, works, events = grants+w.grants, overtakes+w.overtakes, works+w.works, events+w.events
		believed += w.believed
	}
	part := believed.Hours() / float64(hours*simNodes)
	t.Logf("%d h: %d events, %d grants, %d changes of the leader, %d times work began, a lease held %.0f %% of the time", hours, events, grants, overtakes, works, 100*part)
	if grants < 50*hours || overtakes < 20*hours || works < 20*hours || part < 0.5 {
		t.Errorf("too little happened for this to mean anything")
	}
}
