package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// The times and bounds of the look for strays.
const (
	// strayEvery is from one look to the next.
	strayEvery = 10 * time.Second
	// strayAsk is how long a look waits for nodes that nobody else has asked lately:
	// other work on workloads waits meanwhile.
	strayAsk = time.Second
	// strayAfter is for how long a node must have said so, again and again: the upkeep
	// and the passes stop what they find, and a copy that ends by that is no stray.
	strayAfter = 15 * time.Second
	// strayAgain is how long a fault that somebody has deleted is left alone; what is still
	// there then is told again.
	strayAgain = 5 * time.Minute
	// strayWrites bounds how many of them one Multi tells of.
	strayWrites = 16
)

// faultStray is the code of a stray in the history and the figures; strayID begins
// its id under /faults.
const (
	faultStray = "stray_copy"
	strayID    = "STRAY_"
)

// strayCopy is something of a workload on a node where its record has nothing.
type strayCopy struct {
	workload string
	node     cluster.NodeID
}

// id is its fault's. No workload's name has a dot in it, so that no two are the same.
func (c strayCopy) id() string { return strayID + c.workload + "." + string(c.node) }

// strayOf is the copy that the fault is about; false: it is none of a stray.
func strayOf(id string) (strayCopy, bool) {
	rest, is := strings.CutPrefix(id, strayID)
	name, n, dotted := strings.Cut(rest, ".")
	return strayCopy{name, cluster.NodeID(n)}, is && dotted && cluster.ValidWorkloadName(name) == nil && cluster.NodeID(n).Validate() == nil
}

// faultLister lists the ids of the cluster's faults.
type faultLister interface {
	FaultIDs(ctx context.Context) ([]string, error)
}

// strays tells of copies that go on running where their records have none: nobody
// could stop them, and two may be at the same data. It stops nothing itself. What it
// knows is what nodes say of all that they hold (Held), so that no driver is asked.
//
//	held where no record has it ─▶ seen ──for 15 s, by its node's own word──▶ fault under /faults,
//	                                │                                         history, health
//	                                └──its node says otherwise, or is ───────▶ gone, and the fault
//	                                   proven dead, or the record has it        with it
//
// A node that is silent says nothing: what stands then stands. The fault's id names
// node and workload, so that a next primary goes on with those that it finds. One
// that an operator has deleted is told of again if it is still there after a while
// (strayAgain), or by the next primary.
type strays struct {
	w      *workloadWatch
	faults faultLister // nil: nothing is told under /faults

	next   cluster.Instant
	listed bool                              // the faults of earlier primaries were looked at
	since  map[strayCopy]cluster.Instant     // when its node said so first
	told   map[strayCopy]bool                // has its fault
	gone   map[strayCopy]cluster.Instant     // since when the fault of what was told is not there
	shown  atomic.Pointer[map[string]string] // texts of those that stand, by id; never edited

	mu   sync.Mutex
	last map[strayCopy]string // why it could not be stopped, the last time
}

func newStrays(w *workloadWatch) *strays {
	s := &strays{w: w}
	s.faults, _ = w.d.Schemas.(faultLister)
	s.reign()
	return s
}

// reign forgets what belonged to an earlier role.
func (s *strays) reign() {
	s.next, s.listed = cluster.Never, false
	s.since, s.told, s.gone = map[strayCopy]cluster.Instant{}, map[strayCopy]bool{}, map[strayCopy]cluster.Instant{}
	s.shown.Store(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = map[strayCopy]string{}
}

// failed notes what became of an attempt to stop a copy. It may be called from anywhere.
func (s *strays) failed(workload string, n cluster.NodeID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, strayCopy{workload, n})
	if err != nil {
		s.last[strayCopy{workload, n}] = bounded500(err.Error())
	}
}

// texts are those that stand, in words, by their ids. It may be called from anywhere.
func (s *strays) texts() map[string]string {
	if shown := s.shown.Load(); shown != nil {
		return *shown
	}
	return nil
}

func (s *strays) name() string { return "strays" }

func (s *strays) urgent() bool { return false }

func (s *strays) due(snap *cluster.Snapshot, now cluster.Instant) bool {
	return (len(snap.Workloads) > 0 || len(s.told) > 0 || !s.listed) && !now.Before(s.next)
}

// wake is when the next look is due.
func (s *strays) wake(now cluster.Instant) cluster.Instant {
	if now.Before(s.next) {
		return s.next
	}
	return cluster.Forever
}

// run is one look, and what is to be told of it.
func (s *strays) run(ctx context.Context) error {
	snap := s.w.newest()
	s.next = s.w.d.Clock.Now().Add(strayEvery)
	s.ask(ctx, snap)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := s.adopt(ctx); err != nil {
		return err
	}
	if err := s.deleted(ctx); err != nil {
		return err
	}
	begun, over := s.look(snap)
	s.show(snap)
	if len(begun)+len(over) == 0 {
		return nil
	}
	spec := activity.Spec{Name: s.name(), Quorum: cluster.Majority(), Timeout: workloadRetry, Quiet: true}
	return s.w.acts.Run(ctx, spec, func(ctx context.Context, a *activity.Activity) error {
		return s.tell(ctx, a.Token(), snap, begun, over)
	})
}

// holder is who knows what nodes said last of all that they hold.
func (s *strays) holder() holdingCopies {
	h, _ := s.w.copies.(holdingCopies)
	return h
}

// ask has the nodes that said nothing lately say what they hold.
func (s *strays) ask(ctx context.Context, snap *cluster.Snapshot) {
	h := s.holder()
	if h == nil || len(snap.Workloads) == 0 && len(s.told) == 0 {
		return
	}
	now, questions := s.w.d.Clock.Now(), map[cluster.NodeID][]cluster.Workload{}
	for _, n := range registeredNodes(snap) {
		_, at, known := h.Held(n)
		if alive := snap.Nodes[n].Alive; alive.Present && alive.Err == nil && !placement.Proven(snap.Nodes[n]) && (!known || now.Sub(at) >= strayEvery/2) {
			questions[n] = []cluster.Workload{} // what is held there is told with every answer
		}
	}
	if len(questions) > 0 {
		ctx, cancel := context.WithTimeout(ctx, strayAsk)
		defer cancel()
		s.w.copies.Query(ctx, questions)
	}
}

// adopt takes over, once a role, what earlier primaries have told of.
func (s *strays) adopt(ctx context.Context) error {
	if s.listed || s.faults == nil {
		s.listed = true
		return nil
	}
	ids, err := s.faults.FaultIDs(ctx)
	if err != nil {
		return fmt.Errorf("look for what was told of stray copies: %w", err)
	}
	s.told = map[strayCopy]bool{}
	for _, id := range ids {
		if c, is := strayOf(id); is {
			s.told[c] = true
		}
	}
	s.listed = true
	return nil
}

// deleted has what was told be told again, once its fault has been away for a while:
// whoever has deleted it may have taken it for over.
func (s *strays) deleted(ctx context.Context) error {
	if s.faults == nil || len(s.told) == 0 {
		clear(s.gone)
		return nil
	}
	ids, err := s.faults.FaultIDs(ctx)
	if err != nil {
		return fmt.Errorf("look whether the faults of stray copies stand: %w", err)
	}
	now := s.w.d.Clock.Now()
	maps.DeleteFunc(s.gone, func(c strayCopy, _ cluster.Instant) bool { return !s.told[c] || slices.Contains(ids, c.id()) })
	for c := range s.told {
		since, is := s.gone[c]
		switch {
		case slices.Contains(ids, c.id()):
		case !is:
			s.gone[c] = now
		case now.Sub(since) >= strayAgain:
			delete(s.told, c)
			delete(s.gone, c)
		}
	}
	return nil
}

// look compares what nodes hold with the records: what is to be told of now, and what
// is over.
func (s *strays) look(snap *cluster.Snapshot) (begun, over []strayCopy) {
	h := s.holder()
	if h == nil {
		return nil, nil
	}
	seen, spoken := map[strayCopy]cluster.Instant{}, map[cluster.NodeID]bool{}
	for _, n := range registeredNodes(snap) {
		held, at, known := h.Held(n)
		if gone := placement.Proven(snap.Nodes[n]); gone || !known {
			spoken[n] = gone
			continue
		}
		spoken[n] = true
		for _, name := range held {
			if cluster.ValidWorkloadName(name) == nil && astray(snap, name, n) {
				seen[strayCopy{name, n}] = at
			}
		}
	}
	for c, at := range seen {
		if _, is := s.since[c]; !is {
			s.since[c] = at
		}
		if at.Sub(s.since[c]) >= strayAfter && !s.told[c] {
			begun = append(begun, c)
		}
	}
	maps.DeleteFunc(s.since, func(c strayCopy, _ cluster.Instant) bool { _, is := seen[c]; return !is })
	for c := range s.told {
		_, is := seen[c]
		if said, registered := spoken[c.node]; !is && (said || !registered) {
			over = append(over, c)
		}
	}
	inOrder := func(a, b strayCopy) int { return strings.Compare(a.id(), b.id()) }
	slices.SortFunc(begun, inOrder)
	slices.SortFunc(over, inOrder)
	return begun[:min(len(begun), strayWrites)], over[:min(len(over), strayWrites)]
}

// astray reports whether the records have nothing of the workload on the node, and
// nobody is about to change that. What cannot be read is not judged.
func astray(snap *cluster.Snapshot, name string, n cluster.NodeID) bool {
	v, there := snap.Workloads[name]
	w := v.Value
	switch {
	case !there:
		return true
	case v.Err != nil, w.State == cluster.WorkloadNew && len(w.Chain) == 0, slices.Contains(placement.Places(w), n), w.Next != nil && slices.Contains(w.Next.From, n):
		return false
	case w.Kind == cluster.WorkloadMovable || len(w.Nodes) > 0 && !slices.Contains(w.Nodes, n):
		return true
	case w.Next != nil || w.Request != nil || w.State != cluster.WorkloadRunning && w.State != cluster.WorkloadStopped:
		return false
	}
	// One beside the chain is kept while one of the chain is lost (J6).
	return !slices.ContainsFunc(w.Members(), func(m cluster.NodeID) bool { return placement.Proven(snap.Nodes[m]) })
}

// text says of one what it is and what to do.
func (s *strays) text(snap *cluster.Snapshot, c strayCopy) string {
	s.mu.Lock()
	why := s.last[c]
	s.mu.Unlock()
	v, there := snap.Workloads[c.workload]
	if failed := s.w.pass.failedApplies()[c.workload]; why == "" && v.Value.Kind == cluster.WorkloadReplicated {
		why = failed
	}
	if why != "" {
		why = " (the last attempt: " + why + ")"
	}
	byHand := fmt.Sprintf("see on %s why it does not end (journalctl -u pvcnoded -u pvc-guard) and end it there, or have its power taken (`pvc fence now %s`); this goes by itself once the node says that it is over", c.node, c.node)
	if !there {
		return fmt.Sprintf("workload %s has a copy on node %s, and no record: nobody looks after it, nor stops it%s: %s", c.workload, c.node, why, byHand)
	}
	return fmt.Sprintf("workload %s has a copy on node %s, where its record has none (chain: %s), and it could not be stopped for %s%s: two may be at its data: %s",
		c.workload, c.node, chainWords(v.Value.Chain), strayAfter, why, byHand)
}

// show makes known what stands.
func (s *strays) show(snap *cluster.Snapshot) {
	shown := map[string]string{}
	for c, since := range s.since {
		if _, at, known := s.holder().Held(c.node); known && at.Sub(since) >= strayAfter {
			shown[c.id()] = s.text(snap, c)
		}
	}
	s.shown.Store(&shown)
}

// tell writes what has begun and what is over: history and faults, together. What met
// an operator's hand is looked at again the next time.
func (s *strays) tell(ctx context.Context, t cluster.Token, snap *cluster.Snapshot, begun, over []strayCopy) error {
	var there []string
	if s.faults != nil {
		var err error
		if there, err = s.faults.FaultIDs(ctx); err != nil {
			return fmt.Errorf("tell of stray copies: %w", err)
		}
	}
	var ops []cluster.Op
	for _, c := range begun {
		text := s.text(snap, c)
		s.w.d.Log.Error("a copy of a workload runs where its record has none", zap.String("code", faultStray), zap.String("workload", c.workload), zap.String("peer", string(c.node)), zap.String("text", text))
		ops = append(ops, s.event(t, c, text))
		if s.faults != nil && !slices.Contains(there, c.id()) {
			ops = append(ops, faultOps(c.id(), time.UnixMilli(s.w.c.WallMS()), strayDelta, text)...)
		}
	}
	for _, c := range over {
		s.w.d.Log.Info("a stray copy is over", zap.String("workload", c.workload), zap.String("peer", string(c.node)))
		ops = append(ops, s.event(t, c, fmt.Sprintf("workload %s: what ran on %s outside its record is over", c.workload, c.node)))
		if slices.Contains(there, c.id()) {
			ops = append(ops, faultGone(c.id())...)
		}
	}
	res := s.w.write(ctx, t, "workload.strays", ops)
	if res.Outcome != cluster.OutcomeOK {
		s.listed = false // what became of it is seen by the ids that are there
		return fmt.Errorf("tell of stray copies (%s): %w", res.Outcome, cmpErr(res.Err, cluster.ErrConflict))
	}
	for _, c := range begun {
		s.told[c] = true
	}
	for _, c := range over {
		delete(s.told, c)
	}
	return nil
}

func (s *strays) event(t cluster.Token, c strayCopy, text string) cluster.Op {
	return historyOp(cluster.Event{Version: 1, UnixMS: s.w.c.WallMS(), Node: s.w.c.Node, Kind: eventWorkloadFault, Text: text,
		Fields: map[string]string{"code": faultStray, "workload": c.workload, "node": string(c.node), "epoch": strconv.FormatUint(uint64(t.Epoch()), 10)}})
}

// strayDelta is what a stray that nobody has acknowledged costs of health.
const strayDelta = 50

// faultLeaves are what a fault is made of.
var faultLeaves = []string{"first_time", "last_time", "ack_time", "status", "delta", "message"}

// faultOps make a fault of the cluster.
func faultOps(id string, at time.Time, delta int, message string) []cluster.Op {
	now := at.Format(time.DateTime)
	values := map[string]string{"first_time": now, "last_time": now, "ack_time": "", "status": "new", "delta": strconv.Itoa(delta), "message": message}
	ops := []cluster.Op{cluster.Create(cluster.Key{Kind: cluster.KeyFaultRoot, Name: id}, "")}
	for _, leaf := range faultLeaves {
		ops = append(ops, cluster.Create(cluster.Key{Kind: cluster.KeyFault, Name: id + "/" + leaf}, values[leaf]))
	}
	return ops
}

// faultGone takes a fault away.
func faultGone(id string) []cluster.Op {
	var ops []cluster.Op
	for _, leaf := range faultLeaves {
		ops = append(ops, cluster.Delete(cluster.Key{Kind: cluster.KeyFault, Name: id + "/" + leaf}, cluster.AnyVersion))
	}
	return append(ops, cluster.Delete(cluster.Key{Kind: cluster.KeyFaultRoot, Name: id}, cluster.AnyVersion))
}
