// Package detector judges from one observer's own evidence which other nodes
// live. It is pure: Step takes a state and an observation and returns the next
// state and what changed.
//
// Evidence is the time since a keepalive was last seen to change (never the
// number in it), the presence of the node's ephemeral alive record, and what
// the coordinators, this observer among them, report of their direct probes.
// Time in which the observer itself was blind is not counted: who was not
// looking saw nothing (I6). An answer that is not known never counts as silence.
package detector

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// Observation is what one observer sees at one instant. Nothing in it is
// edited or kept.
type Observation struct {
	Now      cluster.Instant
	Self     cluster.NodeID
	Snapshot *cluster.Snapshot
	Timing   cluster.Timing

	// SelfLate says that the observer's own loop was late since the last step.
	SelfLate bool
	// OwnKeepalive is when this node's own last keepalive was acknowledged.
	// Never: the snapshot's own keepalive is taken.
	OwnKeepalive cluster.Instant
	// Reports is what coordinators say of the nodes, by the reporter's name,
	// this node's own under Self. A missing report, or a node missing in it,
	// is unknown. Nil where nobody probes.
	Reports map[cluster.NodeID]Report
}

// Report is one coordinator's own evidence, as it reached this observer.
type Report struct {
	SeenAt cluster.Instant // when it came, on this observer's clock: it ages from there
	Reach  map[cluster.NodeID]cluster.Reach
}

// FreshFor is how long after its probe an answer counts, three keepalive
// intervals: a probe each K, published each K, and one of either lost.
func FreshFor(t cluster.Timing) time.Duration { return 3 * t.KeepaliveInterval }

// NodeState is what is held of one node.
type NodeState struct {
	Liveness cluster.Liveness
	changed  bool // a change has been seen since this observer began
	// Silence is how long no keepalive change was seen while looking.
	Silence time.Duration
	// Excuse says why the node is not judged dead; empty when it may be.
	Excuse string
	// Picture is what the coordinators report of a suspect; nil for others.
	Picture *Picture

	keepalive int64 // Mzxid of the newest keepalive seen
	start     *start
	inState   time.Duration // with start as it is
}

// start is what changes but with a node's start or end. It is never edited, so
// that the states of many steps share it: a record of each node is copied a few
// times a second.
type start struct {
	id          string              // of the node's record: another one is another node
	daemon      cluster.DaemonState // a write of the same again begins nothing anew
	incarnation cluster.Incarnation
}

func startOf(view *cluster.NodeView) start {
	return start{view.Record.Value.ID, view.Daemon.Value, view.Record.Value.Incarnation}
}

// State is a detector between two steps. The zero value has seen nothing. A
// State that Step was given or has returned is never edited.
type State struct {
	Nodes map[cluster.NodeID]NodeState
	// Blind says why time is not counted at present; empty while it is.
	Blind string

	last        cluster.Instant
	firstLive   cluster.Instant
	session     int64
	newSession  bool
	maintenance bool
}

// Picture is what the coordinators report of one node, by name, in order.
type Picture struct {
	Heard   []cluster.NodeID // they see its keepalives change
	Reached []cluster.NodeID // it answers their probes
	Silent  []cluster.NodeID // it does not, and they look
	Unknown []cluster.NodeID // they look and have said nothing lately
}

// Mixed reports whether the coordinators contradict each other, or hear what
// this observer does not: something between them is broken, and not the node.
func (p *Picture) Mixed() bool {
	return p != nil && (len(p.Heard) > 0 || (len(p.Reached) > 0 && len(p.Silent) > 0))
}

// String says who reaches the node and who does not; empty without a report.
func (p *Picture) String() string {
	if p == nil {
		return ""
	}
	var parts []string
	for _, part := range []struct {
		what  string
		names []cluster.NodeID
	}{{"heard by", p.Heard}, {"reached by", p.Reached}, {"not reached by", p.Silent}, {"not known from", p.Unknown}} {
		if len(part.names) > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", part.what, strings.Trim(fmt.Sprint(part.names), "[]")))
		}
	}
	return strings.Join(parts, ", ")
}

// Transition is one node's change of judgement.
type Transition struct {
	Node    cluster.NodeID
	From    cluster.Liveness
	To      cluster.Liveness // as From where only the picture became mixed, or no longer is
	Silence time.Duration
	Reason  string
	// Warning tells an operator of a mixed picture; empty where there is none.
	Warning string
}

// Step judges every other node of the snapshot anew:
//
//	up ──1.25 K──▶ late ──F·K──▶ suspect ──alive gone, or nobody who looks reaches it──▶ dead
//	 ▲              │               │ └──somebody reaches it──▶ isolated ──F·K + Q·K + W──▶ dead
//	 └──────────────┴───────────────┴── a keepalive changes, from everywhere
//
// A node whose keepalives another coordinator hears stays isolated for as long
// as that is reported.
// The quarter beyond K keeps a node whose keepalives arrive with some jitter
// from being late at every other look. Transitions are ordered by node.
func Step(s State, o Observation) (State, []Transition) {
	next := State{
		Nodes:       make(map[cluster.NodeID]NodeState, len(s.Nodes)),
		last:        o.Now,
		firstLive:   s.firstLive,
		session:     s.session,
		newSession:  s.newSession,
		maintenance: s.maintenance,
	}
	elapsed := time.Duration(0)
	if !s.last.IsZero() && o.Now.After(s.last) {
		elapsed = o.Now.Sub(s.last)
	}
	if o.Snapshot == nil {
		next.Blind = "nothing has been read from ZooKeeper yet"
		next.Nodes = s.Nodes
		return next, nil
	}
	next.followSession(o)
	next.Blind = next.blindness(o, elapsed, s.last.IsZero())
	if next.Blind == "" && next.firstLive.IsZero() {
		next.firstLive = o.Now
	}
	fresh := next.followMaintenance(o.Snapshot)
	if next.Blind != "" {
		elapsed = 0
	}
	retract := next.overcounted(s, o)
	pass := pass{o: &o, before: &s, next: &next, report: len(o.Reports) > 0}
	for name, view := range o.Snapshot.Nodes { // in any order: no node's judgement rests on another's of this step
		if !view.Record.Present || view.Record.Err != nil {
			continue // not registered
		}
		before, known := s.Nodes[name]
		pass.look(name, &view, before, known)
		if name == o.Self {
			continue
		}
		after := next.observe(before, known, o.Now, &view, elapsed)
		after.Silence = max(after.Silence-retract, 0)
		if fresh {
			after.Silence = 0
		}
		if after.Silence >= o.Timing.SuspectAfter() {
			pass.silent = append(pass.silent, name) // judged once it is known who looks
			next.Nodes[name] = after
			continue
		}
		pass.judge(name, after, before, known, &view)
	}
	pass.judgeSilent()
	slices.SortFunc(pass.changes, func(a, b Transition) int { return compare(a.Node, b.Node) })
	return next, pass.changes
}

// pass is what one step collects on its way through the nodes.
type pass struct {
	o            *Observation
	before, next *State
	report       bool // somebody probes
	lookers      []looker
	silent       []cluster.NodeID
	changes      []Transition
}

// judgeSilent judges those on whom the coordinators' word is heard.
func (p *pass) judgeSilent() {
	slices.SortFunc(p.lookers, func(a, b looker) int { return compare(a.name, b.name) })
	for _, name := range p.silent {
		view := p.o.Snapshot.Nodes[name]
		before, known := p.before.Nodes[name]
		p.judge(name, p.next.Nodes[name], before, known, &view)
	}
}

// judge keeps the judgement of a node, and what has changed in it.
func (p *pass) judge(name cluster.NodeID, after, before NodeState, known bool, view *cluster.NodeView) {
	p.next.judge(&after, p.o, view, p.lookers)
	if p.next.Blind != "" && after.Liveness > before.Liveness && before.Liveness != 0 {
		after.Liveness = before.Liveness // a blind observer takes nothing back for the worse
	}
	p.next.Nodes[name] = after
	if known && (before.Liveness != after.Liveness || before.Picture.Mixed() != after.Picture.Mixed()) {
		p.changes = append(p.changes, transition(before, after, view))
	}
}

// overcounted is how much of what was counted so far lies after the last
// moment of which it is known that the store took writes: a keepalive's
// acknowledgement and one interval. Outages are noticed late, and nobody's
// silence in one proves anything.
func (s *State) overcounted(before State, o Observation) time.Duration {
	if s.Blind == "" || before.Blind != "" || before.last.IsZero() {
		return 0
	}
	own := o.ownKeepalive()
	if own.IsZero() {
		return 0
	}
	return max(before.last.Sub(own)-o.Timing.KeepaliveInterval, 0)
}

// ownKeepalive is when this node's own last keepalive was acknowledged.
func (o *Observation) ownKeepalive() cluster.Instant {
	if !o.OwnKeepalive.IsZero() {
		return o.OwnKeepalive
	}
	return o.Snapshot.Nodes[o.Self].Keepalive.SeenAt
}

func (s *State) followSession(o Observation) {
	if o.Snapshot.Session != s.session {
		s.session, s.newSession = o.Snapshot.Session, true
	}
	if s.newSession && o.Snapshot.Live && o.Now.Sub(o.Snapshot.Since) >= o.Timing.SessionTimeout {
		s.newSession = false
	}
}

// followMaintenance reports whether maintenance has just ended, which begins
// every observation anew (protocol §10).
func (s *State) followMaintenance(snap *cluster.Snapshot) bool {
	on := snap.Maintenance.Present && (snap.Maintenance.Value || snap.Maintenance.Err != nil) // a doubt counts as on
	ended := s.maintenance && !on
	s.maintenance = on
	return ended
}

// blindness says why the time since the last step must not be counted. After a
// reconnect the others get one interval to write, after a new session as long
// as sessions last: they may have lost theirs by the same fault.
func (s *State) blindness(o Observation, elapsed time.Duration, first bool) string {
	k := o.Timing.KeepaliveInterval
	own := o.ownKeepalive()
	switch {
	case !o.Snapshot.Live:
		return "not connected to ZooKeeper"
	case !o.Snapshot.Complete:
		return "not everything has been read in this session"
	case o.SelfLate:
		return "this daemon was late itself"
	case first:
		return "first look"
	case elapsed > k+k/2:
		return fmt.Sprintf("this daemon did not look for %s", elapsed.Round(time.Millisecond))
	case s.newSession:
		return fmt.Sprintf("the ZooKeeper session is younger than %s", o.Timing.SessionTimeout)
	case o.Now.Sub(o.Snapshot.Since) < k:
		return fmt.Sprintf("reconnected to ZooKeeper less than %s ago", k)
	case own.IsZero() || o.Now.Sub(own) > 2*k:
		return "no keepalive of this node was acknowledged for two intervals"
	}
	return ""
}

// observe takes the evidence in; elapsed is zero while blind, so that the
// counters stand where they stood.
func (s *State) observe(n NodeState, known bool, at cluster.Instant, view *cluster.NodeView, elapsed time.Duration) NodeState {
	now := startOf(view)
	if !known || n.start.id != now.id {
		return NodeState{Liveness: n.Liveness, keepalive: view.Keepalive.Mzxid, start: &start{now.id, now.daemon, now.incarnation}}
	}
	n.Silence += elapsed
	n.inState += elapsed
	if view.Keepalive.Mzxid != n.keepalive {
		n.keepalive, n.changed = view.Keepalive.Mzxid, true
		n.Silence = min(max(at.Sub(view.Keepalive.SeenAt), 0), elapsed)
	}
	if now != *n.start {
		n.start, n.inState = &start{now.id, now.daemon, now.incarnation}, 0
	}
	if view.Daemon.Value == cluster.DaemonStop {
		n.Silence = 0 // it said so: from its next start it counts from zero
	}
	return n
}

func (s *State) judge(n *NodeState, o *Observation, view *cluster.NodeView, lookers []looker) {
	t := o.Timing
	n.Excuse, n.Picture = s.excuse(n, o, view), nil
	switch {
	case n.Silence < t.KeepaliveInterval+t.KeepaliveInterval/4:
		n.Liveness = cluster.LiveUp
		return
	case n.Silence < t.SuspectAfter():
		n.Liveness = cluster.LiveLate
		return
	}
	n.Picture = picture(view.Name, lookers, FreshFor(t))
	n.Liveness = cluster.LiveSuspect
	switch p := n.Picture; {
	case n.Excuse != "":
	case len(p.Heard) > 0:
		n.Liveness = cluster.LiveIsolated // it writes: not it is cut off but this observer
	case len(p.Reached) > 0 && n.Silence < t.IsolatedFenceAfter():
		// It must stop its protected work by Q·K by itself; its watchdog bites by W after that.
		n.Liveness = cluster.LiveIsolated
	case len(p.Reached) > 0, !view.Alive.Present, p.unreached():
		n.Liveness = cluster.LiveDead
	}
}

// excuse says why silence is no sign of death (protocol §5).
func (s *State) excuse(n *NodeState, o *Observation, view *cluster.NodeView) string {
	boot := o.Timing.BootTimeout
	switch view.Daemon.Value {
	case cluster.DaemonStop:
		return "it was stopped"
	case cluster.DaemonShutdown:
		if n.inState < boot {
			return fmt.Sprintf("it is shutting down, for %s of at most %s", n.inState.Round(time.Second), boot)
		}
	case cluster.DaemonInit:
		if n.inState < boot {
			return fmt.Sprintf("it is starting, for %s of at most %s", n.inState.Round(time.Second), boot)
		}
	}
	if since := o.Now.Sub(s.firstLive); !n.changed && (s.firstLive.IsZero() || since < boot) {
		return fmt.Sprintf("not heard since this daemon first saw a working store, %s ago at most", boot)
	}
	return ""
}

func transition(before, after NodeState, view *cluster.NodeView) Transition {
	t := Transition{Node: view.Name, From: before.Liveness, To: after.Liveness, Silence: after.Silence, Reason: reason(before, after, view)}
	if after.Picture.Mixed() {
		t.Warning = fmt.Sprintf("node %s is %s: the network between the coordinators may be broken, and it is not fenced for that", view.Name, after.Picture)
	}
	return t
}

func reason(before, after NodeState, view *cluster.NodeView) string {
	reached := after.Picture != nil && len(after.Picture.Reached) > 0
	switch {
	case before.start.id != after.start.id:
		return "registered anew"
	case after.Liveness < before.Liveness && after.keepalive == before.keepalive && before.Liveness <= cluster.LiveSuspect:
		return "what was counted of its silence is taken back"
	case after.Liveness == cluster.LiveUp:
		return "heard again"
	case after.Liveness == cluster.LiveDead && reached:
		return "silent for longer than it may run on, though it answers probes"
	case after.Liveness == cluster.LiveDead && !view.Alive.Present:
		return "silent and its session is gone"
	case after.Liveness == cluster.LiveDead:
		return "silent and nobody reaches it"
	case after.Liveness == cluster.LiveIsolated && !reached:
		return "silent here, and others hear it"
	case after.Liveness == cluster.LiveIsolated:
		return "silent but it answers probes"
	case after.Excuse != "":
		return "silent; " + after.Excuse
	case after.Liveness == cluster.LiveSuspect:
		return "silent, its session lives"
	}
	return "silent"
}
