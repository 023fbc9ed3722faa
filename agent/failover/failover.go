// Package failover decides which dead nodes are to be fenced. It is pure: one
// frame a tick goes in, the next state, actions and refusals come out. Every
// coordinator runs it all the time, so that a new primary starts with warm
// counters; only the primary acts.
package failover

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// Frame is one tick's view. Nothing in it is edited or kept.
type Frame struct {
	Every    time.Duration // between frames, see Cadence; 0: the keepalive interval
	Self     cluster.NodeID
	Timing   cluster.Timing
	Settings cluster.FailoverSettings
	// SettingsSeen is the record that Settings were read from, for the action's
	// Spend; absent: there is none, and the defaults hold.
	SettingsSeen cluster.Versioned[cluster.FailoverSettings]

	Primary     bool           // this node holds the role now
	Holder      cluster.NodeID // of the lease, as observed; empty: released
	Predecessor cluster.NodeID // who held the role before this node, if known
	Maintenance bool
	Blind       string // why this observer's evidence is worth nothing now; empty: it is

	// Quorum says whether a majority of node leases is held (protocol §7).
	// Zero: node leases are not in use yet.
	Quorum Opinion

	Nodes []Node // every registered node, in any order; Self is passed over
	// Others are further registered nodes, of which there is nothing to be said:
	// they are up and have no fence. Look counts them here.
	Others int
}

// Opinion is what another part says about acting. The zero value: that part is
// not in use yet, and nothing stands against acting.
type Opinion struct {
	InUse   bool
	Against string // why not to act; empty: nothing against it
}

// Cadence is how often to step: a quarter of K, at most each 0.4 s, so that an
// action comes within 0.4 s of the later of "dead" and "I am primary", which
// leaves 0.1 s for the claim's Multi.
func Cadence(t cluster.Timing) time.Duration {
	return min(t.KeepaliveInterval/4, 400*time.Millisecond)
}

// Node is one node in a frame.
type Node struct {
	Name        cluster.NodeID
	ID          string // of its record: another one is another node
	Incarnation cluster.Incarnation
	Keepalive   int64 // Mzxid of the newest keepalive seen
	Liveness    cluster.Liveness
	Excused     bool    // its silence is no sign of death
	Leaving     bool    // it has said that it stops: no failure, whatever it looks like
	Mixed       string  // how the coordinators contradict each other on it; empty: they do not
	LastCopy    Opinion // of the janitor: Against names a workload whose last copy is there
	Protected   int     // protected workloads whose active copy is to be there
	// Fence is the record of its fence; nil when there is none. (A pointer: most
	// nodes have none, and there may be a thousand.)
	Fence *cluster.FenceRecord
}

var noFence cluster.FenceRecord // never edited

// fence is the record of its fence, the zero one where there is none.
func (n *Node) fence() *cluster.FenceRecord {
	if n.Fence == nil {
		return &noFence
	}
	return n.Fence
}

// Seen is the detector's word on one node.
type Seen struct {
	Liveness cluster.Liveness
	Excused  bool
	Mixed    string // the mixed picture in words; empty: there is none
}

// Look takes the nodes from a snapshot, and what the detector says of them. Of a
// thousand nodes nearly all are up: they are counted and no more, so that a look
// does not walk through all that is known of each.
func (f *Frame) Look(snap *cluster.Snapshot, seen func(cluster.NodeID) Seen) {
	f.Nodes, f.Others = nil, 0
	for name := range snap.Nodes {
		if name == f.Self {
			continue
		}
		s := seen(name)
		if s.Liveness == cluster.LiveUp && !snap.Nodes[name].Fence.Present {
			if snap.Nodes[name].Record.Present && snap.Nodes[name].Record.Err == nil {
				f.Others++
			}
			continue
		}
		if view := snap.Nodes[name]; view.Record.Present && view.Record.Err == nil {
			f.Nodes = append(f.Nodes, nodeOf(name, &view, s))
		}
	}
}

// nodeOf is one node of a snapshot.
func nodeOf(name cluster.NodeID, view *cluster.NodeView, s Seen) Node {
	n := Node{
		Name: name, ID: view.Record.Value.ID, Incarnation: view.Record.Value.Incarnation, Keepalive: view.Keepalive.Mzxid,
		Liveness: s.Liveness, Excused: s.Excused, Mixed: s.Mixed,
		Leaving: view.Daemon.Value == cluster.DaemonStop || view.Daemon.Value == cluster.DaemonShutdown,
	}
	if view.Fence.Present {
		n.Fence = new(cluster.FenceRecord)
		*n.Fence = view.Fence.Value
	}
	return n
}

// NodesSeen takes the frame's nodes from a snapshot, and what the detector says
// of them, in no order.
func NodesSeen(snap *cluster.Snapshot, seen func(cluster.NodeID) Seen) []Node {
	nodes := make([]Node, 0, len(snap.Nodes))
	for name, view := range snap.Nodes {
		if !view.Record.Present || view.Record.Err != nil {
			continue
		}
		nodes = append(nodes, nodeOf(name, &view, seen(name)))
	}
	return nodes
}

// NodesOf takes the frame's nodes from a snapshot, and what the detector says
// of them, in no order.
func NodesOf(snap *cluster.Snapshot, liveness func(cluster.NodeID) (l cluster.Liveness, excused bool)) []Node {
	return NodesSeen(snap, func(name cluster.NodeID) Seen {
		l, excused := liveness(name)
		return Seen{Liveness: l, Excused: excused}
	})
}

// Stage is how far a node is on its way to a verdict.
type Stage uint8

// The stages.
const (
	StageNew        Stage = iota + 1 // down in this frame and not in the one before
	StageHalfDown                    // down for some frames
	StageNearlyDown                  // down for one frame less than is needed
	StageFailover                    // down for as long as is needed: the verdict falls when it is dead
)

// String names the stage.
func (s Stage) String() string {
	names := [...]string{"up", "new", "half_down", "nearly_down", "failover"}
	if int(s) >= len(names) {
		return names[0]
	}
	return names[s]
}

// NodeState is what is held of one down node.
type NodeState struct {
	Stage    Stage
	Frames   int                 // in a row in which it was down
	Reported cluster.RefusalCode // told last; not told again until it changes or clears

	id string
}

// State is what is held between two frames. The zero value has seen nothing. A
// State that Step was given or has returned is never edited.
type State struct {
	Down map[cluster.NodeID]NodeState // nodes that were up in the last frame are absent

	set     []cluster.NodeID // the down nodes of the last frame, in order
	settled bool             // a full frame has been seen since the start
	calm    int              // frames in a row in which somebody was down, but less than half were silent
}

// Step takes in one frame:
//
//	(up) ──down──▶ new ──▶ half_down(n) ──▶ nearly_down ──▶ failover ──dead──▶ verdict
//	  ▲             │           │                │              │
//	  └─────────────┴───── up, or another id ────┴──────────────┘
//
// Frames count from late on, so that the verdict falls in the tick in which
// the node is found dead. It needs the same set of down nodes in the last two
// frames (see weighs), and that less than half were silent for as long as a
// verdict takes (see tooMany). Then it is an action, or a refusal with what stands against it. An
// action is repeated each frame until the node's fence record exists or it is
// up: the executor takes one at a time and an act that failed is tried again.
// A node that has just become primary acts in its next frame: its counters are
// warm, and what it does is checked again where it is written.
func Step(s State, f Frame) (State, []cluster.Action, []cluster.Refusal) {
	if f.Blind != "" {
		return s.blind(f)
	}
	next := State{settled: true}
	down := candidates(f)
	if len(down) == 0 {
		return next, nil, nil
	}
	next.Down = make(map[cluster.NodeID]NodeState, len(down))
	needed := f.needed()
	for _, n := range down {
		held := s.Down[n.Name]
		if held.id != n.ID {
			held = NodeState{id: n.ID}
		}
		held.Frames++
		held.Stage = stage(held.Frames, needed)
		next.Down[n.Name] = held
		if weighs(n, held, needed) {
			next.set = append(next.set, n.Name)
		}
	}
	j := newJudge(s, f, next.set)
	next.calm = j.calm
	var actions []cluster.Action
	var refusals []cluster.Refusal
	for _, n := range byUrgency(down, f.Predecessor) {
		held := next.Down[n.Name]
		refusal, verdict := j.verdict(n, held)
		if verdict && refusal.Code == "" {
			actions = append(actions, action(n, held, f))
			j.left--
		}
		if refusal.Code != "" && refusal.Code != held.Reported {
			refusals = append(refusals, refusal)
		}
		if verdict || refusal.Code != "" {
			held.Reported = refusal.Code
			next.Down[n.Name] = held
		}
	}
	return next, actions, refusals
}

// weighs reports whether the node belongs to the set of down nodes that must not
// change: a late one does once it has been late for half the time it takes, or
// any jitter among a thousand nodes would put every verdict off for ever.
func weighs(n Node, held NodeState, needed int) bool {
	return n.Liveness > cluster.LiveLate || 2*held.Frames >= needed
}

// blind holds every counter: who was not looking saw nothing, neither a node
// down nor a node up. What was due before is refused, once.
func (s State) blind(f Frame) (State, []cluster.Action, []cluster.Refusal) {
	next := s
	next.Down = maps.Clone(s.Down)
	var refusals []cluster.Refusal
	for _, name := range slices.Sorted(maps.Keys(s.Down)) {
		held := next.Down[name]
		if held.Stage != StageFailover || held.Reported == cluster.RefuseObserverBlind {
			continue
		}
		held.Reported = cluster.RefuseObserverBlind
		next.Down[name] = held
		refusals = append(refusals, cluster.Refusal{
			Code: cluster.RefuseObserverBlind, Node: name,
			Detail: fmt.Sprintf("node %s is left alone while this observer cannot judge: %s", name, f.Blind),
		})
	}
	return next, nil, refusals
}

// candidates are the nodes that are down and have no excuse, by name.
func candidates(f Frame) []Node {
	var down []Node
	for i := range f.Nodes {
		if n := &f.Nodes[i]; n.Name != f.Self && n.Liveness.Down() && !n.Excused {
			down = append(down, *n)
		}
	}
	slices.SortFunc(down, func(a, b Node) int { return compare(a.Name, b.Name) })
	return down
}

// byUrgency puts the old primary first: its role is the one that is taken over. Then
// come the nodes with the most protected workloads.
func byUrgency(nodes []Node, first cluster.NodeID) []Node {
	slices.SortStableFunc(nodes, func(a, b Node) int {
		switch {
		case a.Name == b.Name:
			return 0
		case a.Name == first:
			return -1
		case b.Name == first:
			return 1
		case a.Protected != b.Protected:
			return b.Protected - a.Protected
		}
		return compare(a.Name, b.Name)
	})
	return nodes
}

func compare(a, b cluster.NodeID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Calm reports whether less than half of the nodes were silent for as long as a
// verdict takes, as of the frame f, which s was stepped with last. Who carries on
// a fence without an order out asks for it like who begins one.
func (s State) Calm(f Frame) bool { return s.calm >= f.needed() }

// needed is how many frames in a row a node must be down: as many as surely
// fit between late (1.25 K of silence) and the timeout, so that counting
// frames never delays a verdict by itself.
func (f Frame) needed() int {
	k := f.Timing.KeepaliveInterval
	every := f.Every
	if every <= 0 {
		every = k
	}
	return max(2, int((f.timeout()-k-k/4)/every)+1)
}

func (f Frame) timeout() time.Duration {
	if f.Settings.Timeout > 0 {
		return time.Duration(f.Settings.Timeout) * time.Second
	}
	return time.Duration(f.Timing.FenceIntervals) * f.Timing.KeepaliveInterval
}

func stage(frames, needed int) Stage {
	switch {
	case frames >= needed:
		return StageFailover
	case frames == needed-1:
		return StageNearlyDown
	case frames == 1:
		return StageNew
	}
	return StageHalfDown
}

// uncounted are the fences that were claimed and whose count has not been
// written yet: it is written when power is taken.
func uncounted(f Frame) int {
	count := 0
	for i := range f.Nodes {
		r := f.Nodes[i].fence()
		early := r.Stage == cluster.FenceClaimed || r.Stage == cluster.FenceSoft
		if early && r.Tries == 0 {
			count++
		}
	}
	return count
}

func action(n Node, held NodeState, f Frame) cluster.Action {
	return cluster.Action{
		Kind: cluster.ActionFence, Node: n.Name, Incarnation: n.Incarnation, Keepalive: n.Keepalive,
		Reason: fmt.Sprintf("dead: silent for %d frames of %s with no sign of life", held.Frames, f.interval()),
		Spend:  &cluster.Spend{Seen: f.SettingsSeen, Next: f.spent()},
	}
}

// spent are the settings with one more failover counted. Of several actions in
// one frame each is decided on the same version: the first to be written wins,
// the others are decided anew.
func (f Frame) spent() cluster.FailoverSettings {
	next := f.Settings
	next.Count++
	return next
}

func (f Frame) interval() time.Duration {
	if f.Every > 0 {
		return f.Every
	}
	return f.Timing.KeepaliveInterval
}
