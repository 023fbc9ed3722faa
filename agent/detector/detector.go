// Package detector judges from one observer's own evidence which other nodes
// live. It is pure: Step takes a state and an observation and returns the next
// state and what changed.
//
// Evidence is the time since a keepalive was last seen to change (never the
// number in it), the presence of the node's ephemeral alive record, and, where
// somebody asks, the answer to direct probes. Time in which the observer itself
// was blind is not counted: who was not looking saw nothing (I6).
package detector

import (
	"fmt"
	"slices"
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
	// Probes holds the answers to direct probes; a missing one is unknown.
	Probes map[cluster.NodeID]cluster.ProbeAnswer
}

// NodeState is what is held of one node.
type NodeState struct {
	Liveness cluster.Liveness
	// Silence is how long no keepalive change was seen while looking.
	Silence time.Duration
	// Excuse says why the node is not judged dead; empty when it may be.
	Excuse string

	ID          string // of the node's record: another one is another node
	keepalive   int64  // Mzxid of the newest keepalive seen
	changed     bool   // a change has been seen since this observer began
	daemon      int64  // Mzxid of the daemon state
	inState     time.Duration
	incarnation cluster.Incarnation
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

// Transition is one node's change of judgement.
type Transition struct {
	Node    cluster.NodeID
	From    cluster.Liveness
	To      cluster.Liveness
	Silence time.Duration
	Reason  string
}

// Step judges every other node of the snapshot anew:
//
//	up ──1.25 K──▶ late ──F·K──▶ suspect ──alive gone, or no probe answers──▶ dead
//	 ▲              │               │ └──a probe answers──▶ isolated ──F·K + Q·K + W──▶ dead
//	 └──────────────┴───────────────┴── a keepalive changes, from everywhere
//
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
	var changes []Transition
	for _, name := range others(o) {
		before, known := s.Nodes[name]
		after := next.observe(before, known, o, o.Snapshot.Nodes[name], elapsed)
		if fresh {
			after.Silence = 0
		}
		after.Liveness, after.Excuse = next.judge(after, o, o.Snapshot.Nodes[name])
		if next.Blind != "" && after.Liveness > before.Liveness && before.Liveness != 0 {
			after.Liveness = before.Liveness // a blind observer takes nothing back for the worse
		}
		next.Nodes[name] = after
		if known && before.Liveness != after.Liveness {
			changes = append(changes, transition(name, before, after, o))
		}
	}
	return next, changes
}

// others lists the nodes that can be judged: registered, and not oneself.
func others(o Observation) []cluster.NodeID {
	names := make([]cluster.NodeID, 0, len(o.Snapshot.Nodes))
	for name, node := range o.Snapshot.Nodes {
		if name != o.Self && node.Record.Present && node.Record.Err == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
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
	own := o.OwnKeepalive
	if own.IsZero() {
		own = o.Snapshot.Nodes[o.Self].Keepalive.SeenAt
	}
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
func (s *State) observe(n NodeState, known bool, o Observation, view cluster.NodeView, elapsed time.Duration) NodeState {
	id := view.Record.Value.ID
	if !known || n.ID != id {
		return NodeState{
			ID: id, Liveness: n.Liveness, keepalive: view.Keepalive.Mzxid,
			daemon: view.Daemon.Mzxid, incarnation: view.Record.Value.Incarnation,
		}
	}
	n.Silence += elapsed
	n.inState += elapsed
	if view.Keepalive.Mzxid != n.keepalive {
		n.keepalive, n.changed = view.Keepalive.Mzxid, true
		n.Silence = min(max(o.Now.Sub(view.Keepalive.SeenAt), 0), elapsed)
	}
	if view.Daemon.Mzxid != n.daemon || view.Record.Value.Incarnation != n.incarnation {
		n.daemon, n.incarnation, n.inState = view.Daemon.Mzxid, view.Record.Value.Incarnation, 0
	}
	if view.Daemon.Value == cluster.DaemonStop {
		n.Silence = 0 // it said so: from its next start it counts from zero
	}
	return n
}

func (s *State) judge(n NodeState, o Observation, view cluster.NodeView) (cluster.Liveness, string) {
	t := o.Timing
	k := t.KeepaliveInterval
	suspected := time.Duration(t.FenceIntervals) * k
	excuse := s.excuse(n, o, view)
	switch {
	case n.Silence < k+k/4:
		return cluster.LiveUp, excuse
	case n.Silence < suspected:
		return cluster.LiveLate, excuse
	case excuse != "":
		return cluster.LiveSuspect, excuse
	}
	probe := o.Probes[view.Name]
	switch {
	case probe == cluster.ProbeAnswered:
		// It must have stopped its protected work by Q·K itself, and its
		// watchdog bites by W after that.
		if n.Silence >= suspected+time.Duration(t.SuicideIntervals)*k+t.Watchdog {
			return cluster.LiveDead, ""
		}
		return cluster.LiveIsolated, ""
	case !view.Alive.Present || probe == cluster.ProbeSilent:
		return cluster.LiveDead, ""
	}
	return cluster.LiveSuspect, ""
}

// excuse says why silence is no sign of death (protocol §5).
func (s *State) excuse(n NodeState, o Observation, view cluster.NodeView) string {
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

func transition(name cluster.NodeID, before, after NodeState, o Observation) Transition {
	t := Transition{Node: name, From: before.Liveness, To: after.Liveness, Silence: after.Silence}
	view := o.Snapshot.Nodes[name]
	switch {
	case before.ID != after.ID:
		t.Reason = "registered anew"
	case after.Liveness == cluster.LiveUp:
		t.Reason = "heard again"
	case after.Liveness == cluster.LiveDead && !view.Alive.Present:
		t.Reason = "silent and its session is gone"
	case after.Liveness == cluster.LiveDead && o.Probes[name] == cluster.ProbeAnswered:
		t.Reason = "silent for longer than it may run on, though it answers probes"
	case after.Liveness == cluster.LiveDead:
		t.Reason = "silent and nobody reaches it"
	case after.Liveness == cluster.LiveIsolated:
		t.Reason = "silent but it answers probes"
	case after.Excuse != "":
		t.Reason = "silent; " + after.Excuse
	case after.Liveness == cluster.LiveSuspect:
		t.Reason = "silent, its session lives"
	default:
		t.Reason = "silent"
	}
	return t
}
