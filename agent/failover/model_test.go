package failover

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent/detector"
	"pvc.internal/cluster"
)

// The model: five nodes that write keepalives to one store, three of them
// coordinators that probe all, two of these observers that judge and, worst of
// all, both believe themselves primary. The store has outages, links are cut,
// processes are stopped and starved. Detector and failover run as they do in
// the daemon.
const (
	modelStep = 50 * time.Millisecond
	modelRun  = 22 * time.Second
	modelSize = 5
	observers = 2
	probers   = 3
)

// kind is what may go wrong in a round.
type kind int

const (
	storeOnly kind = iota // the store, the observers, short stops: to act on any but an observer is a false fence
	anything              // node links and long stops as well: what writes or answers is never acted on
	oneDies               // a node loses power while all else is well again: it is acted on
)

type modelNode struct {
	name    cluster.NodeID
	off     bool
	stopped cluster.Instant // until
	ran     cluster.Instant // since
	store   bool            // link to the store
	next    cluster.Instant // keepalive
	commit  cluster.Instant
	zxid    int64
	contact time.Duration // without one, while the store was up
	alive   bool
}

type observer struct {
	me       int
	look     cluster.Instant
	probe    cluster.Instant
	seen     detector.State
	held     State
	snap     cluster.Snapshot
	acked    cluster.Instant
	linked   bool
	lostAt   cluster.Instant
	reach    map[cluster.NodeID]probeSeen
	reports  map[cluster.NodeID]detector.Report
	lastLook cluster.Instant
}

type probeSeen struct {
	answer cluster.ProbeAnswer
	at     cluster.Instant
}

type model struct {
	rng    *rand.Rand
	kind   kind
	timing cluster.Timing
	now    cluster.Instant
	up     bool
	turned cluster.Instant // when up changed last
	zxid   int64
	nodes  [modelSize]modelNode
	cut    [modelSize][modelSize]bool
	whole  [modelSize][modelSize]cluster.Instant // since when the link is
	seers  [probers]*observer
	acts   []string
	false_ string
	log    []string
	death  cluster.Instant
}

func newModel(seed uint64, k kind) *model {
	m := &model{rng: rand.New(rand.NewPCG(seed, 3)), kind: k, timing: cluster.ProfileLAN(), now: cluster.Instant(100 * time.Second), up: true}
	for i := range m.nodes {
		m.nodes[i] = modelNode{name: cluster.NodeID(rune('a' + i)), store: true, ran: 1, alive: true,
			next: m.now.Add(time.Duration(m.rng.Int64N(int64(time.Second))))}
		for j := range m.nodes {
			m.whole[i][j] = 1
		}
	}
	for i := range m.seers {
		o := &observer{me: i, linked: true, reach: map[cluster.NodeID]probeSeen{}, reports: map[cluster.NodeID]detector.Report{},
			look: m.now.Add(time.Duration(m.rng.Int64N(int64(250 * time.Millisecond)))), probe: m.now}
		o.snap = cluster.Snapshot{Complete: true, Live: true, Session: 1, Since: m.now.Add(-time.Minute), Nodes: map[cluster.NodeID]cluster.NodeView{}}
		m.seers[i] = o
		m.read(o, true)
	}
	return m
}

// read brings the observer's picture up to date with the store.
func (m *model) read(o *observer, all bool) {
	for i := range m.nodes {
		n := &m.nodes[i]
		v := o.snap.Nodes[n.name]
		if !all && v.Keepalive.Mzxid == n.zxid && v.Alive.Present == n.alive {
			continue
		}
		v.Name = n.name
		v.Record = cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{ID: string(n.name), Incarnation: "1"}}
		v.Daemon = cluster.Versioned[cluster.DaemonState]{Present: true, Value: cluster.DaemonRun}
		v.Mode.Value = cluster.Hypervisor
		if i < probers {
			v.Mode.Value = cluster.Coordinator
		}
		v.Alive.Present = n.alive
		if v.Keepalive.Mzxid != n.zxid || all {
			v.Keepalive = cluster.Versioned[int64]{Present: true, Mzxid: n.zxid, SeenAt: m.now}
		}
		o.snap.Nodes[n.name] = v
	}
}

func (m *model) chance(perSecond float64) bool {
	return m.rng.Float64() < perSecond*modelStep.Seconds()
}
func (m *model) upTo(d time.Duration) time.Duration { return time.Duration(m.rng.Int64N(int64(d))) }

func (m *model) say(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf("%6.2f ", time.Duration(m.now).Seconds()-100)+fmt.Sprintf(format, args...))
}

func (m *model) run() {
	end := m.now.Add(modelRun)
	for ; m.now.Before(end) && m.false_ == ""; m.now = m.now.Add(modelStep) {
		m.trouble()
		for i := range m.nodes {
			m.live(&m.nodes[i], i)
		}
		for i := range m.seers {
			if m.runs(i) {
				m.watch(m.seers[i])
			}
		}
	}
}

func (m *model) runs(i int) bool {
	return !m.nodes[i].off && m.now >= m.nodes[i].stopped
}

func (m *model) trouble() {
	at := time.Duration(m.now) - 100*time.Second
	if m.kind == oneDies && at > 7*time.Second {
		m.up = true
		for i := range m.nodes {
			m.nodes[i].store = true
		}
		if at > 10*time.Second && m.death.IsZero() {
			m.death = m.now
			m.nodes[2+m.rng.IntN(3)].off = true
		}
		return
	}
	if m.up && m.chance(0.15) || !m.up && m.chance(0.4) {
		m.up, m.turned = !m.up, m.now
		m.say("store up: %v", m.up)
	}
	for i := range m.nodes {
		n := &m.nodes[i]
		if m.chance(0.04) {
			long := 2500 * time.Millisecond
			if m.kind == anything || i < observers {
				long = 9 * time.Second
			}
			if m.kind == oneDies {
				long = time.Second
			}
			n.stopped = m.now.Add(m.upTo(long))
			m.say("%s stopped until %.2f", n.name, time.Duration(n.stopped).Seconds()-100)
		}
		if m.kind == anything || i < observers {
			if n.store && m.chance(0.04) || !n.store && m.chance(0.3) {
				n.store = !n.store
				m.say("%s link to the store: %v", n.name, n.store)
			}
		}
		for j := range i {
			if m.kind != anything {
				break
			}
			if !m.cut[i][j] && m.chance(0.02) || m.cut[i][j] && m.chance(0.3) {
				m.cut[i][j], m.cut[j][i] = !m.cut[i][j], !m.cut[i][j]
				m.whole[i][j], m.whole[j][i] = m.now, m.now
			}
		}
	}
}

// live is a node's own loop: a keepalive each K, late now and then.
func (m *model) live(n *modelNode, i int) {
	if m.up {
		if m.runs(i) && n.store {
			n.contact, n.alive = 0, true
		} else if n.contact += modelStep; n.contact > m.timing.SessionTimeout {
			n.alive = false
		}
	}
	if !m.runs(i) {
		n.ran = m.now
		return
	}
	if m.now < n.next {
		return
	}
	n.next = m.now.Add(m.timing.KeepaliveInterval)
	if m.rng.IntN(20) == 0 {
		n.next = n.next.Add(m.upTo(time.Second)) // starved
	}
	if m.up && n.store {
		m.zxid++
		n.zxid, n.commit = m.zxid, m.now
		if i < probers {
			m.seers[i].acked = m.now
		}
	}
}

// watch is an observer's loop.
func (m *model) watch(o *observer) {
	me := &m.nodes[o.me]
	linked := m.up && me.store
	switch {
	case linked && !o.linked:
		o.snap.Live, o.snap.Since = true, m.now
		if !me.alive || m.now.Sub(o.lostAt) > m.timing.SessionTimeout {
			o.snap.Session++
		}
	case !linked && o.linked:
		o.lostAt = m.now
	case !linked && o.snap.Live && m.now.Sub(o.lostAt) > 1300*time.Millisecond:
		o.snap.Live = false // noticed late
	}
	o.linked = linked
	if linked {
		m.read(o, false)
	}
	if m.now >= o.probe {
		o.probe = m.now.Add(m.timing.KeepaliveInterval)
		m.sendProbes(o)
	}
	if o.me < observers && m.now >= o.look {
		o.look = m.now.Add(Cadence(m.timing))
		m.lookAround(o)
	}
}

// sendProbes asks every node and tells the other coordinators.
func (m *model) sendProbes(o *observer) {
	said := map[cluster.NodeID]cluster.Reach{}
	for i := range m.nodes {
		if i == o.me {
			continue
		}
		name := m.nodes[i].name
		p := probeSeen{cluster.ProbeSilent, m.now}
		if m.runs(i) && !m.cut[o.me][i] {
			p.answer = cluster.ProbeAnswered
		}
		o.reach[name] = p
		said[name] = cluster.Reach{Answer: p.answer, Heard: o.seen.Nodes[name].Liveness == cluster.LiveUp && o.seen.Blind == ""}
	}
	for i, other := range m.seers {
		if i != o.me && !m.cut[o.me][i] {
			other.reports[m.nodes[o.me].name] = detector.Report{SeenAt: m.now, Reach: said}
		}
	}
}

func (m *model) lookAround(o *observer) {
	every := Cadence(m.timing)
	late := !o.lastLook.IsZero() && m.now.Sub(o.lastLook) > 2*every
	o.lastLook = m.now
	self := m.nodes[o.me].name
	own := map[cluster.NodeID]cluster.Reach{}
	for name, p := range o.reach {
		own[name] = cluster.Reach{Answer: p.answer, AgeMillis: m.now.Sub(p.at).Milliseconds()}
	}
	o.reports[self] = detector.Report{SeenAt: m.now, Reach: own}
	o.seen, _ = detector.Step(o.seen, detector.Observation{
		Now: m.now, Self: self, Snapshot: &o.snap, Timing: m.timing, SelfLate: late, OwnKeepalive: o.acked, Reports: o.reports,
	})
	frame := Frame{
		Every: every, Self: self, Timing: m.timing, Settings: cluster.FailoverSettings{Enabled: true, MaxCount: 100}, Primary: true, Holder: self,
		Blind: o.seen.Blind,
	}
	frame.Look(&o.snap, func(n cluster.NodeID) Seen {
		held := o.seen.Nodes[n]
		return Seen{Liveness: held.Liveness, Excused: held.Excuse != ""}
	})
	next, actions, _ := Step(o.held, frame)
	o.held = next
	for _, a := range actions {
		m.judge(o, a)
	}
}

// judge says whether an action is a false fence.
func (m *model) judge(o *observer, a cluster.Action) {
	i := int(a.Node[0] - 'a')
	n := &m.nodes[i]
	m.acts = append(m.acts, string(a.Node))
	text := fmt.Sprintf("%s acts on %s, silent for %s, last written %s ago", m.nodes[o.me].name, a.Node, o.seen.Nodes[a.Node].Silence, m.now.Sub(n.commit))
	m.say("%s", text)
	if n.off {
		return
	}
	linked := m.up && m.nodes[o.me].store // else it cannot see, and its claim is not written either
	wrote := linked && m.now.Sub(n.commit) < m.timing.SuspectAfter()-m.timing.KeepaliveInterval
	answers := linked && m.answers(o, i) && m.now.Sub(n.commit) < m.timing.IsolatedFenceAfter()
	sound := m.kind != anything && i >= observers                          // no link of it was cut, no stop of it was long
	blind := !m.up && m.now.Sub(m.turned) > 5*m.timing.KeepaliveInterval/2 // must have noticed
	if sound || wrote || answers || blind {
		m.false_ = fmt.Sprintf("%s (sound %v, wrote %v, answers %v, should be blind %v)", text, sound, wrote, answers, blind)
	}
}

// answers reports whether the node has for 3 s answered a coordinator that
// could tell the observer so.
func (m *model) answers(o *observer, i int) bool {
	since := m.now.Add(-3 * time.Second)
	whole := func(a, b int) bool { return a == b || (!m.cut[a][b] && m.whole[a][b] < since) }
	if !m.runs(i) || m.nodes[i].ran > since {
		return false
	}
	for p := range probers {
		if p != i && m.runs(p) && m.nodes[p].ran < since && whole(p, i) && whole(p, o.me) {
			return true
		}
	}
	return false
}

// Outages of the store, stopped and starved processes and cut links lead to no
// false fence: who lives and writes or answers is never acted on.
func TestNoFalseFences(t *testing.T) {
	rounds := uint64(5000)
	if testing.Short() {
		rounds = 500
	}
	acted, died := 0, 0
	for seed := range rounds {
		k := [...]kind{storeOnly, storeOnly, storeOnly, anything, anything, oneDies}[seed%6]
		m := newModel(seed, k)
		m.run()
		if m.false_ != "" {
			t.Fatalf("seed %d, kind %d: %s\n%s", seed, k, m.false_, strings.Join(m.log[max(0, len(m.log)-40):], "\n"))
		}
		if k == oneDies {
			died++
			if len(m.acts) == 0 {
				t.Fatalf("seed %d: the dead node was not acted on\n%s", seed, strings.Join(m.log, "\n"))
			}
		}
		if len(m.acts) > 0 {
			acted++
		}
	}
	t.Logf("%d rounds: somebody was acted on in %d, %d of them real deaths", rounds, acted, died)
	if acted <= died {
		t.Error("nothing but power losses led to an action: the model tests too little")
	}
}
