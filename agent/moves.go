package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// The times of moves.
const (
	// copyPatience is how long a start or a stop of a copy is waited for; its driver
	// has limits of its own.
	copyPatience = 2 * time.Minute
	// moveEvery is from one look at the movable workloads to the next, where nothing
	// asks for one at once.
	moveEvery = 5 * time.Second
	// steadyAfter is how long a workload must run until its failed starts are forgotten.
	steadyAfter = 30 * time.Second
	// factsFor is how long the nodes' figures are used.
	factsFor = 5 * time.Second
	// factsWait is how long a recovery waits for them at most: a node without figures
	// is taken last, and that is better than none at all.
	factsWait = 500 * time.Millisecond
	// moveLease is how long a batch waits for the lease of a node that it is to use.
	moveLease = 3 * time.Second
	// shunFor is how long a node is left alone whose lease could not be had.
	shunFor = 10 * time.Second
	// yieldPause is between two looks whether a pass is wanted, and yieldEvery from one
	// making way to the next: passes that are wanted without end starve nothing.
	yieldPause = 200 * time.Millisecond
	yieldEvery = 10 * time.Second
	// writeSeen is how long a write whose reply was lost is looked for.
	writeSeen = 3 * time.Second
	// declinedSeen is how long it is waited for that a node that has refused a start is
	// seen to be one that is being stopped.
	declinedSeen = time.Second
)

// recoveryDomain is apart from the cluster's: a recovery begins at the proof, while
// the fence that has it still gives the node its power again, and a fence of another
// node neither waits for it nor ends it. Its effects are on nodes whose leases it
// holds, and one task of the loop runs at a time.
const recoveryDomain cluster.ActivityDomain = "recovery"

// nodeReader reads what nodes publish, and single texts.
type nodeReader interface {
	ReadNode(ctx context.Context, n cluster.NodeID) (map[string]string, error)
	Texts
}

// moves carries out where workloads go: recovery, upkeep of movable ones, operators'
// requests, drain and rebalance, each a task of the primary's loop. It keeps nothing
// that a next primary would need: that stands in the records.
type moves struct {
	w     *workloadWatch
	reads nodeReader // nil: nobody knows what nodes have left

	mu      sync.Mutex
	wrote   map[string]movesRecord // as this primary wrote them last; the snapshot may be behind
	after   map[string]cluster.Instant
	steady  map[string]cluster.Instant     // since when a workload is seen to run
	forgive map[string]bool                // of those that had run for long before they ended
	under   map[string]cluster.Incarnation // the start of its node's daemon under which a workload was seen to run last
	told    map[string][]string            // what the history was told of a workload's lasting trouble
	shunned map[cluster.NodeID]shun
	facts   map[cluster.NodeID]placement.Facts
	factsAt cluster.Instant
	pending map[string]pendingMove // unfinished moves of replicated workloads, as found
	yielded cluster.Instant        // when it made way last; Never: it has not
	hinted  atomic.Bool            // a copy has changed without an order
	picks   string                 // the cluster's selector
}

// movesRecord is a workload's record as it is known here.
type movesRecord struct {
	w       cluster.Workload
	version int32
	deleted bool
}

// pendingMove is an unfinished move that nobody is at.
type pendingMove struct {
	version int32
	since   cluster.Instant
}

type shun struct {
	until cluster.Instant
	why   string
}

func newMoves(w *workloadWatch) *moves {
	m := &moves{w: w, wrote: map[string]movesRecord{}, after: map[string]cluster.Instant{}, steady: map[string]cluster.Instant{},
		shunned: map[cluster.NodeID]shun{}, forgive: map[string]bool{}, under: map[string]cluster.Incarnation{}, told: map[string][]string{}, pending: map[string]pendingMove{}}
	m.reads, _ = w.d.Schemas.(nodeReader)
	return m
}

// takeMoves gives the loop the work of moves.
func (w *workloadWatch) takeMoves(m *moves) {
	w.add(m.tasks()...)
	w.hears = append(w.hears, func(cluster.CopyChange) { m.hinted.Store(true) })
	w.reigns = append(w.reigns, m.reign)
}

// reign forgets what an earlier time as primary has left: others have written since,
// and a restored store counts its versions anew.
func (m *moves) reign() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.wrote)
	clear(m.after)
	clear(m.steady)
	clear(m.forgive)
	clear(m.under)
	clear(m.told)
	clear(m.shunned)
	clear(m.pending)
}

// tasks are its kinds of work in the order in which they are done.
func (m *moves) tasks() []workloadTask {
	return []workloadTask{&recoveryTask{m: m}, &requestTask{m: m}, &upkeepTask{m: m}, &drainTask{m: m}, &rebalanceTask{m: m},
		&awayTask{m: m, since: map[cluster.NodeID]cluster.Instant{}}}
}

// ---- records

// records are the workloads that can be read, by name: as the snapshot shows them,
// or as this primary has written them since.
func (m *moves) records(snap *cluster.Snapshot) []movesRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]movesRecord, 0, len(snap.Workloads))
	for _, name := range slices.Sorted(maps.Keys(snap.Workloads)) {
		v := snap.Workloads[name]
		if !v.Present || v.Err != nil {
			continue
		}
		r := movesRecord{w: v.Value, version: v.Version}
		if own, has := m.wrote[name]; has && own.w.ID == r.w.ID && (own.deleted || own.version > r.version) {
			r = own
		} else if has {
			delete(m.wrote, name)
		}
		if !r.deleted {
			r.w = r.w.Clone()
			list = append(list, r)
		}
	}
	return list
}

// any reports whether one of the workloads meets the condition, as records shows
// them. It is asked at each snapshot, and copies nothing: the condition only reads.
func (m *moves) any(snap *cluster.Snapshot, meets func(movesRecord) bool) bool {
	m.mu.Lock()
	var list []movesRecord
	for name, v := range snap.Workloads {
		r := movesRecord{w: v.Value, version: v.Version}
		if own, has := m.wrote[name]; has && own.w.ID == r.w.ID && (own.deleted || own.version > r.version) {
			r = own
		}
		if v.Present && v.Err == nil && !r.deleted {
			list = append(list, r)
		}
	}
	m.mu.Unlock()
	return slices.ContainsFunc(list, meets)
}

// record is one of them.
func (m *moves) record(snap *cluster.Snapshot, name string) (movesRecord, bool) {
	list := m.records(snap)
	at := slices.IndexFunc(list, func(r movesRecord) bool { return r.w.Name == name })
	if at < 0 {
		return movesRecord{}, false
	}
	return list[at], true
}

func values(list []movesRecord) []cluster.Workload {
	ws := make([]cluster.Workload, len(list))
	for i, r := range list {
		ws[i] = r.w
	}
	return ws
}

// snapshot is the newest that there is.
func (m *moves) snapshot() *cluster.Snapshot { return m.w.newest() }

func (m *moves) now() cluster.Instant { return m.w.d.Clock.Now() }

// as puts the workload into a state, with its reason for people.
func (m *moves) as(w *cluster.Workload, s cluster.WorkloadState, reason string) {
	if w.State != s {
		w.SinceMS = m.w.c.WallMS()
	}
	w.State, w.Reason = s, bounded500(reason)
}

func bounded500(text string) string { return boundedAt(500, text) }

func boundedAt(limit int, text string) string {
	if len(text) > limit {
		return strings.ToValidUTF8(text[:limit], "") + " …"
	}
	return text
}

// sameWords reports whether two reasons differ in their figures at most: what is left
// on a node changes all the time, and is not written for that.
func sameWords(a, b string) bool {
	words := func(text string) []string {
		return slices.DeleteFunc(strings.Fields(text), func(word string) bool { return strings.Trim(word, "0123456789") == "" })
	}
	return slices.Equal(words(a), words(b))
}

// save writes the record on the version that was judged, under this very role, with
// the further operations. Where the reply is lost it is looked for: an error means
// that nothing may rest on the write.
func (m *moves) save(ctx context.Context, t cluster.Token, purpose string, r movesRecord, next cluster.Workload, also ...cluster.Op) (movesRecord, error) {
	if err := next.Validate(); err != nil {
		return r, fmt.Errorf("%s: %w", purpose, err)
	}
	key := cluster.Key{Kind: cluster.KeyWorkload, Name: r.w.Name}
	res := m.w.write(ctx, t, purpose, append([]cluster.Op{cluster.Set(key, r.version, next)}, also...))
	saved := movesRecord{w: next.Clone(), version: r.version + 1}
	switch {
	case res.Outcome == cluster.OutcomeOK:
	case res.Outcome == cluster.OutcomeUnknown && m.landed(ctx, r, next):
	case res.Outcome == cluster.OutcomeUnknown || res.Outcome == cluster.OutcomeNotSent: // whoever carries out an order tries again
		return r, fmt.Errorf("%s of workload %q may not be written (%s): %w: %w", purpose, r.w.Name, res.Outcome, cmpErr(res.Err, cluster.ErrUnknown), errWaits)
	default:
		return r, fmt.Errorf("%s of workload %q was not written (%s): %w", purpose, r.w.Name, res.Outcome, cmpErr(res.Err, cluster.ErrConflict))
	}
	m.mu.Lock()
	m.wrote[r.w.Name] = saved
	m.mu.Unlock()
	return movesRecord{w: next.Clone(), version: saved.version}, nil
}

func cmpErr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// landed reports whether a write whose reply was lost is there: the version right
// after the one that it was made on, with its very content.
func (m *moves) landed(ctx context.Context, r movesRecord, next cluster.Workload) bool {
	snap, _ := m.w.latest(ctx, writeSeen, func(s *cluster.Snapshot) bool {
		v, is := s.Workloads[r.w.Name]
		return !is || v.Version > r.version
	})
	v := snap.Workloads[r.w.Name]
	if !v.Present || v.Err != nil || v.Version != r.version+1 {
		return false
	}
	was, _ := json.Marshal(next)
	is, _ := json.Marshal(v.Value)
	return bytes.Equal(was, is)
}

// stands makes sure that the record is still the one that was judged, under this
// very role: a snapshot may be behind an earlier primary's last write.
func (m *moves) stands(ctx context.Context, t cluster.Token, r movesRecord) error {
	key := cluster.Key{Kind: cluster.KeyWorkload, Name: r.w.Name}
	if res := m.w.write(ctx, t, "workload.check", []cluster.Op{cluster.Check(key, r.version)}); res.Outcome != cluster.OutcomeOK {
		return fmt.Errorf("workload %q has changed meanwhile, or that cannot be told (%s): %w", r.w.Name, res.Outcome, cmpErr(res.Err, cluster.ErrConflict))
	}
	return nil
}

// answered is the record with its request answered.
func (m *moves) answered(w cluster.Workload, epoch cluster.Epoch, done bool, text string) cluster.Workload {
	w = w.Clone()
	w.Answer = &cluster.WorkloadAnswer{ID: w.Request.ID, Done: done, Text: bounded500(text), AtMS: m.w.c.WallMS(), Epoch: epoch}
	w.Request = nil
	return w
}

// event tells the history of a workload.
func (m *moves) event(w cluster.Workload, what, format string, args ...any) cluster.Op {
	return historyOp(cluster.Event{Version: 1, UnixMS: m.w.c.WallMS(), Node: m.w.c.Node, Kind: cluster.EventWorkload, Text: bounded500(fmt.Sprintf("workload %s: "+format, append([]any{w.Name}, args...)...)),
		Fields: map[string]string{"workload": w.Name, "what": what, "node": string(w.Head())}})
}

// ---- orders

// order has a node carry out one order on the record.
func (m *moves) order(ctx context.Context, t cluster.Token, n cluster.NodeID, op cluster.CopyOp, r movesRecord, edit ...func(*cluster.CopyOrder)) (cluster.CopyReport, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, copyPatience, fmt.Errorf("it has not ended within %s: %w", copyPatience, cluster.ErrDeadline))
	defer cancel()
	o := cluster.CopyOrder{Op: op, Workload: r.w, Seen: r.version}
	for _, e := range edit {
		e(&o)
	}
	return m.w.copies.Order(ctx, t, n, o)
}

// probe asks one node for its copy; an unknown report has the reason.
func (m *moves) probe(ctx context.Context, n cluster.NodeID, w cluster.Workload) cluster.CopyReport {
	reports, silent := m.w.copies.Query(ctx, map[cluster.NodeID][]cluster.Workload{n: {w}})
	if why, is := silent[n]; is {
		return cluster.CopyReport{Node: n, Unknown: true, Error: why}
	}
	r, is := reports[w.Name][n]
	if !is {
		return cluster.CopyReport{Node: n, Unknown: true, Error: "it has said nothing of it"}
	}
	return r
}

// stop has nothing left running on the node. nil is the node's own word for it.
func (m *moves) stop(ctx context.Context, t cluster.Token, n cluster.NodeID, op cluster.CopyOp, r movesRecord) error {
	report, err := m.order(ctx, t, n, op, r)
	if err == nil && !report.Unknown && (report.State == cluster.CopyMissing || report.State == cluster.CopyDead && !report.Left) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// What became of it is looked at before anything else. Only that there is none
	// counts: what is dead by its driver's probe may still have something running.
	found := m.probe(ctx, n, r.w)
	if !found.Unknown && found.State == cluster.CopyMissing && !errors.Is(err, cluster.ErrDeadline) {
		if err == nil {
			return nil
		}
		// The node has perhaps never got it, and a start from before may still be under
		// way to it: only a stop that it has taken keeps that from starting anything.
		if report, again := m.order(ctx, t, n, op, r); again == nil && !report.Unknown && report.State == cluster.CopyMissing {
			return nil
		}
	}
	if err == nil {
		err = fmt.Errorf("node %s reports it %s after the stop: %s", n, cmp.Or(found.State, "unknown"), found.Error)
	}
	return err
}

// errBarred is of a node that was chosen, and may be given nothing any more.
var errBarred = errors.New("it cannot take it any more")

// mayTake is the last look before what is given to a node is written: it was chosen
// when the batch was planned, and its turn comes some seconds later.
func (m *moves) mayTake(n cluster.NodeID) error {
	if why := placement.Bar(m.snapshot(), n); why != "" {
		return fmt.Errorf("node %s: %w: %s", n, errBarred, why)
	}
	return nil
}

// launched is what became of a start.
type launched struct {
	active  bool
	known   bool   // else whether it runs is not known, and nothing may be done but look again
	refused bool   // by the node: nothing was done
	why     string // it does not run
}

// launch has the copy started on the chain's node. An order whose reply was lost is
// looked for before anything else. The error is the context's.
func (m *moves) launch(ctx context.Context, t cluster.Token, r movesRecord) (launched, error) {
	n := r.w.Head()
	report, err := m.order(ctx, t, n, cluster.CopyStart, r)
	if err != nil || report.Unknown || report.State != cluster.CopyActive {
		if ctx.Err() != nil {
			return launched{}, context.Cause(ctx)
		}
		report = m.probe(ctx, n, r.w)
	}
	if ctx.Err() != nil {
		return launched{}, context.Cause(ctx)
	}
	l := launched{active: !report.Unknown && report.State == cluster.CopyActive, known: !report.Unknown, refused: errors.Is(err, cluster.ErrRefused)}
	switch {
	case report.Unknown:
		l.why = fmt.Sprintf("whether it runs on %s is not known: %s", n, report.Error)
	case err != nil:
		l.why = fmt.Sprintf("its start on %s has failed: %v", n, err)
	case !l.active:
		l.why = fmt.Sprintf("its start on %s has failed: it is %s there: %s", n, report.State, report.Error)
	}
	return l, nil
}

// declined reports whether the node has refused the start of what it was given just
// now, as it is being stopped. Then nothing of it runs there (I4): it had none before,
// this order was the first for it, nothing was done by the node's own word, and
// nothing is any more. check makes that stand at a write.
func (m *moves) declined(ctx context.Context, n cluster.NodeID, l launched) (check cluster.Op, is bool) {
	if l.known || !l.refused {
		return cluster.Op{}, false
	}
	snap, is := m.w.latest(ctx, declinedSeen, func(s *cluster.Snapshot) bool { return s.Nodes[n].Settles() })
	return cluster.Check(cluster.Key{Kind: cluster.KeyNodeRecord, Node: n}, snap.Nodes[n].Record.Version), is
}

// startFirst is start of what the record has given to the node just now. Where that
// is being stopped, and has refused it, another node is looked for at once.
func (m *moves) startFirst(ctx context.Context, t cluster.Token, r movesRecord) error {
	l, err := m.launch(ctx, t, r)
	if err != nil {
		return err
	}
	n := r.w.Head()
	check, is := m.declined(ctx, n, l)
	if !is {
		_, err = m.started(ctx, t, r, l)
		return err
	}
	next := r.w.Clone()
	next.Chain, next.Pass = []cluster.NodeID{cluster.NoCopy}, moveID()
	m.as(&next, cluster.WorkloadStarting, fmt.Sprintf("node %s has refused it, since it is being stopped; another is looked for", n))
	_, err = m.save(ctx, t, "workload.declined", r, next, check)
	if err == nil {
		m.hinted.Store(true)
		poke(m.w.pokes)
		err = fmt.Errorf("start workload %q: %s", r.w.Name, l.why)
	}
	return err
}

// start has the copy started on the chain's node and writes what became of it. The
// error says why it does not run, as far as that is known; then the record has it, too.
func (m *moves) start(ctx context.Context, t cluster.Token, r movesRecord) (movesRecord, error) {
	l, err := m.launch(ctx, t, r)
	if err != nil {
		return r, err
	}
	return m.started(ctx, t, r, l)
}

// started writes what became of a start.
func (m *moves) started(ctx context.Context, t cluster.Token, r movesRecord, l launched) (movesRecord, error) {
	next := r.w.Clone()
	switch {
	case l.active:
		m.runs(r.w.Name, r.w.Head())
		m.as(&next, cluster.WorkloadRunning, "")
		return m.save(ctx, t, "workload.running", r, next)
	case !l.known:
		return r, fmt.Errorf("start workload %q: %s", r.w.Name, l.why)
	}
	also := m.failed(&next, l.why)
	saved, werr := m.save(ctx, t, "workload.attempt", r, next, also...)
	return saved, errors.Join(errors.New(l.why), werr)
}

// failed counts a start that has failed, and gives up at the limit.
func (m *moves) failed(next *cluster.Workload, why string) []cluster.Op {
	next.Attempts++
	m.later(next.Name, placement.Backoff(next.Attempts))
	m.as(next, next.State, why)
	if next.Attempts < placement.MaxAttempts {
		return nil
	}
	m.as(next, cluster.WorkloadFailed, fmt.Sprintf("%d starts in a row have failed; see to it, and `pvc workload start %s`. The last: %s", next.Attempts, next.Name, why))
	return []cluster.Op{m.event(*next, "failed", "%s", next.Reason)}
}

// later leaves the workload alone for a while.
func (m *moves) later(name string, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.after[name] = m.now().Add(d)
}

// wake is when something may be due again that was left alone.
func (m *moves) wake(now cluster.Instant) cluster.Instant {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := cluster.Forever
	for name, until := range m.after {
		if now.Before(until) {
			at = cluster.Earliest(at, until)
		} else {
			delete(m.after, name)
		}
	}
	return at
}

// waits reports whether the workload is left alone now.
func (m *moves) waits(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now().Before(m.after[name])
}

// ---- nodes

// book counts what the nodes have left now.
func (m *moves) book(ctx context.Context, snap *cluster.Snapshot, list []movesRecord) *placement.Book {
	return m.bookBut(ctx, snap, list, m.bar)
}

// bookBut is book with another word on what stands against a node beside what the
// snapshot shows; it is asked with mu held.
func (m *moves) bookBut(ctx context.Context, snap *cluster.Snapshot, list []movesRecord, bar func(cluster.NodeID) string) *placement.Book {
	m.readFacts(ctx, snap)
	m.mu.Lock()
	defer m.mu.Unlock()
	return placement.NewBook(placement.Nodes(snap, m.facts, bar), values(list), m.picks)
}

// isShunned reports whether the node is left alone now.
func (m *moves) isShunned(n cluster.NodeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bar(n) != ""
}

// bar says what stands against a node beside what the snapshot shows. mu is held.
func (m *moves) bar(n cluster.NodeID) string {
	if s, is := m.shunned[n]; is && m.now().Before(s.until) {
		return s.why
	}
	return ""
}

// shunnedSince are the nodes that were left alone after that instant, and why.
func (m *moves) shunnedSince(at cluster.Instant) map[cluster.NodeID]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	nodes := map[cluster.NodeID]string{}
	for n, s := range m.shunned {
		if s.until.After(at) {
			nodes[n] = s.why
		}
	}
	return nodes
}

// shun leaves a node alone for a while.
func (m *moves) shun(n cluster.NodeID, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shunned[n] = shun{m.now().Add(shunFor), why}
}

// readFacts reads the nodes' figures where they are old, all at once.
func (m *moves) readFacts(ctx context.Context, snap *cluster.Snapshot) {
	m.mu.Lock()
	fresh := m.reads == nil || m.facts != nil && m.now().Sub(m.factsAt) < factsFor
	m.mu.Unlock()
	if fresh {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, factsWait)
	defer cancel()
	facts := map[cluster.NodeID]placement.Facts{}
	var selector cluster.Versioned[string]
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range slices.Sorted(maps.Keys(snap.Nodes)) {
		if placement.Bar(snap, n) != "" {
			continue
		}
		wg.Go(func() {
			leaves, err := m.reads.ReadNode(ctx, n)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			facts[n] = placement.ReadFacts(leaves)
		})
	}
	wg.Go(func() { selector, _ = m.reads.ReadText(ctx, cluster.Key{Kind: cluster.KeySelector}) })
	wg.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.facts, m.factsAt = facts, m.now()
	if slices.Contains(cluster.Selectors, selector.Value) {
		m.picks = selector.Value
	}
}

// ---- activities and batches

// run runs a body as an activity of this node's own lease: what plans, and begins the
// work. All but a recovery makes way for a janitor's pass. names are the workloads
// that it is about, as far as that is known: where all of it is tried again, nothing
// is told.
func (m *moves) run(ctx context.Context, name string, domain cluster.ActivityDomain, body activity.Body, names ...string) error {
	again := !slices.ContainsFunc(names, func(name string) bool { return !m.retries(name) })
	spec := activity.Spec{Name: name, Domain: domain, Quorum: cluster.All(m.w.c.Node), Quiet: true, Retry: len(names) > 0 && again}
	if domain == recoveryDomain {
		return m.w.acts.Run(ctx, spec, body)
	}
	return m.yielding(ctx, func(ctx context.Context) error { return m.w.acts.Run(ctx, spec, body) })
}

// yielding ends the context of what it does once a janitor's pass is asked for: an
// empty head is not to wait for a batch, or for an answer that does not come.
func (m *moves) yielding(ctx context.Context, do func(context.Context) error) error {
	ctx, end := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end(nil)
	watching.Go(func() { m.makeWay(ctx, end) })
	return do(ctx)
}

// makeWay ends the work once a pass is wanted, but not again and again; what is in
// hand goes on.
func (m *moves) makeWay(ctx context.Context, end context.CancelCauseFunc) {
	for ctx.Err() == nil {
		if pause(ctx, yieldPause); ctx.Err() == nil && m.w.wanted.Load() && m.yields() {
			end(&cluster.Preempted{Name: "janitor"})
			return
		}
	}
}

// yields reports whether it is to make way now.
func (m *moves) yields() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.yielded != cluster.Never && m.now().Sub(m.yielded) < yieldEvery {
		return false
	}
	m.yielded = m.now()
	return true
}

// busy reports whether something is being done with the workload: nobody else plans
// anything of it then.
func (m *moves) busy(name string) bool { return m.w.hand.has(name) }

// moveJob is one piece of a batch: what is to be done with a workload, most of it on
// one node. run is given an activity that holds that node's lease.
type moveJob struct {
	node cluster.NodeID
	r    movesRecord
	off  func(*cluster.Snapshot) bool // see handJob
	wait string                       // what is left alone where it could not begin; "": the workload
	run  func(ctx context.Context, a *activity.Activity) error
}

// batch begins the jobs in their order, so many at once on a node and in all, and
// waits for them for a moment: a start that takes long, an agent that hangs, go on by
// themselves. One that fails stops no other. What was not begun is left to a later
// batch.
func (m *moves) batch(ctx context.Context, name string, jobs []moveJob) error {
	list := make([]handJob, len(jobs))
	for i, j := range jobs {
		list[i] = m.piece(name, j)
	}
	for _, j := range m.w.hand.carry(ctx, list, handPatience, m.fits) {
		m.later(j.wait, workloadRetry)
	}
	return context.Cause(ctx)
}

// piece is a job as work in hand.
func (m *moves) piece(name string, j moveJob) handJob {
	log := m.w.d.Log.With(zap.String("workload", j.r.w.Name), zap.String("peer", string(j.node)))
	wait := cmp.Or(j.wait, j.r.w.Name)
	return handJob{workload: j.r.w.Name, seen: j.r.version, node: j.node, wait: wait, off: j.off,
		spec: activity.Spec{Name: name + "-" + j.r.w.Name, Quorum: cluster.All(j.node), Timeout: moveLease, Quiet: true, Retry: m.retries(j.r.w.Name)},
		body: func(ctx context.Context, a *activity.Activity) error {
			// What has failed is told by the record and its own entry of the history.
			if err := j.run(ctx, a); err != nil {
				log.Info("a workload was not moved", zap.Error(err))
			}
			return nil
		},
		ended: func(err error) {
			if !unbegun(err) {
				return
			}
			m.later(wait, workloadRetry)
			if unleased(err) {
				m.shun(j.node, "its node lease cannot be had: "+bounded500(err.Error()))
				log.Warn("workloads are not moved to a node", zap.Error(err))
			}
		}}
}

// fits says which jobs may begin now, by their places: work that is left to itself
// counts on its node, so that a node whose agents hang is given no more and more, and
// not in all, so that the others are not held up by it.
func (m *moves) fits(list []handJob) []int {
	each, slow := m.w.hand.busy()
	limits := placement.Parallel
	limits.Total += slow
	var queue []cluster.NodeID
	var places []int
	for i, j := range list {
		if m.isShunned(j.node) {
			continue
		}
		queue, places = append(queue, j.node), append(places, i)
	}
	begin := limits.Next(queue, each)
	for k, at := range begin {
		begin[k] = places[at]
	}
	return begin
}

// crowded are the nodes on which as much is under way as may be: what has another
// place goes there.
func (m *moves) crowded() (nodes []cluster.NodeID) {
	each, _ := m.w.hand.busy()
	for n, count := range each {
		if count >= placement.Parallel.PerNode {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// moveID names a move.
func moveID() string { return rand.Text() }
