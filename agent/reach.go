package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/detector"
	"pvc.internal/cluster"
)

// questionReach asks a coordinator what it reaches of some nodes: a
// reachQuestion, answered with a map of cluster.Reach by node.
const questionReach = "reach"

type reachQuestion struct {
	Nodes []cluster.NodeID `json:"nodes"` // that the asker misses
}

// slowly is how many keepalive intervals lie between two questions to a
// coordinator while nobody is missed: a broken certificate is found before it
// is needed, and the connection stays warm.
const slowly = 5

// reach gathers what this node and the other coordinators say of the nodes that
// somebody misses (protocol §5), and tells them the same. While everybody is up
// nobody is probed, and each coordinator is asked once in five intervals. The
// node watch steps it; its questions run beside that loop, which waits for them.
type reach struct {
	c     Config
	d     Deps
	owned *sync.WaitGroup

	// The node watch's own.
	missed  []cluster.NodeID // whom this node probes, in order
	targets map[cluster.NodeID]string

	judged atomic.Pointer[judgement] // by the latest step, for who asks

	mu     sync.Mutex
	others map[cluster.NodeID]*asked // the other coordinators
}

// asked is how it stands with one coordinator that is asked.
type asked struct {
	at      cluster.Instant // of the last question
	waiting bool
	report  detector.Report // the newest answer
	failed  int             // questions in a row without one
	why     string          // of the last
}

// judgement is the detector's state after a step.
type judgement struct {
	state detector.State
	at    cluster.Instant
}

// hears reports whether this node sees the keepalives of n change now.
func (j *judgement) hears(n cluster.NodeID, now cluster.Instant, k time.Duration) bool {
	return j != nil && j.state.Blind == "" && now.Sub(j.at) <= k && j.state.Nodes[n].Liveness == cluster.LiveUp
}

func newReach(c Config, d Deps, owned *sync.WaitGroup) *reach {
	r := &reach{c: c, d: d, owned: owned, others: map[cluster.NodeID]*asked{}}
	if d.Peers != nil {
		d.Peers.Handle(questionReach, r.answer)
	}
	return r
}

// asks reports whether this node takes part: a hypervisor's word on others
// counts for nothing, so it gathers none.
func (r *reach) asks() bool { return r.d.Peers != nil && r.c.Mode == cluster.Coordinator }

// follow has the nodes probed that are not up, and asks the other coordinators
// what they reach: each interval while somebody is missed, else slowly.
func (r *reach) follow(ctx context.Context, now cluster.Instant, state detector.State, snap *cluster.Snapshot) {
	r.judged.Store(&judgement{state, now})
	if !r.asks() {
		return
	}
	r.probe(state, snap)
	every := r.c.Timing.KeepaliveInterval
	if len(r.missed) == 0 {
		every *= slowly
	}
	for name, view := range snap.Nodes {
		if name != r.c.Node && r.due(name, &view, now, every-r.c.Timing.KeepaliveInterval/8) {
			r.ask(ctx, name)
		}
	}
}

// probe tells the prober whom this node misses.
func (r *reach) probe(state detector.State, snap *cluster.Snapshot) {
	r.missed = r.missed[:0]
	var targets map[cluster.NodeID]string
	for name, held := range state.Nodes {
		if !held.Liveness.Down() {
			continue
		}
		view := snap.Nodes[name]
		if gone(&view) {
			continue
		}
		if targets == nil {
			targets = map[cluster.NodeID]string{}
		}
		r.missed = append(r.missed, name)
		targets[name] = view.Record.Value.Peer
	}
	slices.Sort(r.missed)
	if !maps.Equal(targets, r.targets) {
		r.targets = targets
		r.d.Peers.Watch(targets)
	}
}

// gone reports whether nobody expects the node to answer.
func gone(view *cluster.NodeView) bool {
	return view.Daemon.Value == cluster.DaemonStop || view.Daemon.Value == cluster.DaemonFenced
}

// due reports whether the coordinator is to be asked now, and notes it.
func (r *reach) due(n cluster.NodeID, view *cluster.NodeView, now cluster.Instant, every time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.others[n]
	if view.Mode.Value != cluster.Coordinator || !view.Record.Present || view.Record.Err != nil || gone(view) {
		if a != nil && !a.waiting {
			delete(r.others, n)
		}
		return false
	}
	if a == nil {
		a = &asked{}
		r.others[n] = a
	}
	if a.waiting || !a.at.IsZero() && now.Sub(a.at) < every {
		return false
	}
	a.at, a.waiting = now, true
	return true
}

// ask puts the question to one coordinator, which due has marked.
func (r *reach) ask(ctx context.Context, n cluster.NodeID) {
	body, err := json.Marshal(reachQuestion{Nodes: r.missed})
	if err != nil { // cannot happen for names
		body = []byte("{}")
	}
	r.owned.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, r.c.Timing.KeepaliveInterval*3/10)
		defer cancel()
		raw, err := r.d.Peers.Ask(ctx, n, questionReach, body)
		var said map[cluster.NodeID]cluster.Reach
		if err == nil {
			if err = json.Unmarshal(raw, &said); err != nil {
				err = fmt.Errorf("read what %s reaches: %w", n, err)
			}
		}
		r.note(n, said, err)
	})
}

// note takes in one answer, or why there is none.
func (r *reach) note(n cluster.NodeID, said map[cluster.NodeID]cluster.Reach, err error) {
	now := r.d.Clock.Now()
	r.mu.Lock()
	a := r.others[n]
	a.waiting = false
	before := a.failed
	if err == nil {
		a.report, a.failed, a.why = detector.Report{SeenAt: now, Reach: said}, 0, ""
	} else {
		a.failed++
		a.why = err.Error()
	}
	failed := a.failed
	r.mu.Unlock()
	switch {
	case failed == faultFrom && before < failed:
		r.d.Log.Warn("a coordinator does not answer directly", zap.String("peer", string(n)), zap.Error(err))
	case err == nil && before >= faultFrom:
		r.d.Log.Info("a coordinator answers directly again", zap.String("peer", string(n)))
	}
}

// faultFrom is how many questions in a row must stay without an answer before
// that is a fault: one may be lost.
const faultFrom = 2

// faults names the coordinators that are at work, as far as ZooKeeper shows, and
// do not answer this node directly.
func (r *reach) faults() []string {
	judged := r.judged.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for n, a := range r.others {
		if a.failed >= faultFrom && judged != nil && judged.state.Nodes[n].Liveness == cluster.LiveUp {
			list = append(list, fmt.Sprintf("coordinator %s is up and does not answer directly, so that it has no say where a node is judged and there is no failsafe: %s", n, a.why))
		}
	}
	slices.Sort(list)
	return list
}

// reports are all that is said of the nodes that this one misses, by the
// reporter; nil while it misses nobody.
func (r *reach) reports(now cluster.Instant) map[cluster.NodeID]detector.Report {
	if len(r.missed) == 0 || !r.asks() {
		return nil
	}
	list := map[cluster.NodeID]detector.Report{r.c.Node: {SeenAt: now, Reach: r.own(r.missed, now)}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, a := range r.others {
		if !a.report.SeenAt.IsZero() {
			list[n] = a.report
		}
	}
	return list
}

// answer tells another coordinator what this node reaches.
func (r *reach) answer(_ context.Context, _ cluster.NodeID, body []byte) ([]byte, error) {
	var q reachQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("read the question: %w: %w", err, cluster.ErrRefused)
	}
	said := r.own(q.Nodes, r.d.Clock.Now())
	if said == nil {
		said = map[cluster.NodeID]cluster.Reach{}
	}
	return json.Marshal(said)
}

// own is what this node itself says of these nodes; of whom it knows nothing it
// says nothing. nil where it says nothing at all.
func (r *reach) own(nodes []cluster.NodeID, now cluster.Instant) map[cluster.NodeID]cluster.Reach {
	if len(nodes) == 0 || r.d.Peers == nil {
		return nil
	}
	k := r.c.Timing.KeepaliveInterval
	judged, probes := r.judged.Load(), r.d.Peers.Probes()
	list := make(map[cluster.NodeID]cluster.Reach, len(nodes))
	for _, n := range nodes {
		said := cluster.Reach{Answer: probes[n], Heard: judged.hears(n, now, k)}
		if said.Answer != cluster.ProbeUnknown {
			said.AgeMillis = k.Milliseconds() // a probe each K: at most about so old
		}
		if said != (cluster.Reach{}) {
			list[n] = said
		}
	}
	return list
}

// addressBook remembers where the nodes say that they answer: it is in an outage
// of the store that they have to be found.
type addressBook struct {
	mu    sync.Mutex
	known map[cluster.NodeID]string
}

// find returns the address in the node's record, or the last one seen where
// there is none to read now; empty: not known.
func (b *addressBook) find(snap *cluster.Snapshot, n cluster.NodeID) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if record := snap.Nodes[n].Record; record.Present && record.Err == nil {
		if b.known == nil {
			b.known = map[cluster.NodeID]string{}
		}
		b.known[n] = record.Value.Peer
	}
	return b.known[n]
}

// teach takes in where coordinators answer, by another's word.
func (b *addressBook) teach(all map[cluster.NodeID]coordinator) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = map[cluster.NodeID]string{}
	}
	for n, c := range all {
		b.known[n] = c.Peer
	}
}

// PeerAddress is where the node has published that it answers others, host:port,
// also while nothing can be read; empty: not known.
func (a *Agent) PeerAddress(n cluster.NodeID) string {
	return a.addresses.find(a.dec.status().Snapshot, n)
}

// StoreLink tells how this node stands to ZooKeeper: whether its session is
// connected, since when that is so, and when its newest acknowledged keepalive
// was sent; Never: not known, none.
func (a *Agent) StoreLink() (live bool, since, acked cluster.Instant) {
	snap := a.dec.status().Snapshot
	if since = snap.Since; !snap.Live {
		since = snap.ObservedAt
	}
	return snap.Live, since, a.keep.Acked()
}
