package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// requestsAtOnce bounds how many operators' requests are carried out side by side.
const requestsAtOnce = 8

// errOvertaken is the cause with which work on a request ends that another has
// replaced.
var errOvertaken = errors.New("another order has replaced this one")

// requestTask carries out what operators order of workloads: each is a request in
// its workload's record, and is answered there, exactly once. One that is overtaken
// by another is ended, and the other goes on from what it finds.
type requestTask struct {
	m       *moves
	placing sync.Mutex // over a batch's book, which its requests share
}

// place picks a node by the book that is shared.
func (t *requestTask) place(book *placement.Book, w cluster.Workload, except ...cluster.NodeID) (cluster.NodeID, string) {
	t.placing.Lock()
	defer t.placing.Unlock()
	return book.Place(w, except...)
}

// against says why the node cannot take the workload, by the same book.
func (t *requestTask) against(book *placement.Book, w cluster.Workload, n cluster.NodeID) string {
	t.placing.Lock()
	defer t.placing.Unlock()
	return book.Against(w, n)
}

func (t *requestTask) name() string { return "requests" }

// urgent: an operator does not wait for the end of a pass.
func (t *requestTask) urgent() bool { return true }

func (t *requestTask) due(snap *cluster.Snapshot, _ cluster.Instant) bool {
	return t.m.any(snap, t.stands)
}

// stands reports whether there is a request here to be carried out now.
func (t *requestTask) stands(r movesRecord) bool {
	q := r.w.Request
	return q != nil && q.Op != cluster.WorkloadProbe && !t.m.waits("request "+q.ID) && !t.m.busy(r.w.Name)
}

// run begins the oldest orders and waits for them for a moment: one that hangs goes
// on by itself, and holds nobody else's up. What was being done with their workloads
// was ended before (workInHand.review).
func (t *requestTask) run(ctx context.Context) error {
	m := t.m
	return m.run(ctx, "requests", "", func(ctx context.Context, a *activity.Activity) error {
		snap := m.snapshot()
		all := m.records(snap)
		list := slices.DeleteFunc(slices.Clone(all), func(r movesRecord) bool { return !t.stands(r) })
		slices.SortStableFunc(list, func(x, y movesRecord) int { return cmp.Compare(x.w.Request.AtMS, y.w.Request.AtMS) })
		list = list[:min(len(list), requestsAtOnce)]
		book := m.book(ctx, snap, all)
		jobs := make([]handJob, len(list))
		for i, r := range list {
			jobs[i] = t.piece(book, r)
		}
		m.w.hand.carry(ctx, jobs, handPatience, func(left []handJob) []int {
			places := make([]int, len(left))
			for i := range left {
				places[i] = i
			}
			return places
		})
		return context.Cause(ctx)
	})
}

// piece is one request as work in hand.
func (t *requestTask) piece(book *placement.Book, r movesRecord) handJob {
	q := *r.w.Request
	return handJob{workload: r.w.Name, seen: r.version, request: q.ID,
		spec: activity.Spec{Name: string(q.Op) + "-" + r.w.Name, Quorum: cluster.All(t.m.w.c.Node), Quiet: true},
		body: func(ctx context.Context, a *activity.Activity) error {
			t.carryOut(ctx, a, book, r)
			return nil
		},
		ended: func(err error) {
			if err != nil {
				t.m.later("request "+q.ID, workloadRetry)
			}
		}}
}

// carryOut carries one request out, and answers it. What could not be done because
// the role, or this work, has ended is not answered: it stands, and is gone on with.
func (t *requestTask) carryOut(ctx context.Context, a *activity.Activity, book *placement.Book, r movesRecord) {
	m, q := t.m, *r.w.Request
	done, text, err := t.obey(ctx, a, book, r)
	log := m.w.d.Log.With(zap.String("workload", r.w.Name), zap.String("op", string(q.Op)), zap.String("order", q.ID))
	switch {
	case ctx.Err() != nil:
		m.later("request "+q.ID, workloadRetry)
		log.Info("work on a request was ended", zap.NamedError("cause", context.Cause(ctx)))
		return
	case err != nil && text == "":
		text = err.Error()
	case text == "": // it is answered, or goes on
		return
	}
	if errors.Is(err, cluster.ErrConflict) || errors.Is(err, errWaits) {
		m.later("request "+q.ID, workloadRetry)
		log.Info("a request is tried again", zap.String("reason", text))
		return
	}
	if err := t.answer(ctx, a.Token(), r, q, done, text); err != nil {
		m.later("request "+q.ID, workloadRetry)
		log.Info("a request's answer was not written; it is tried again", zap.Error(err))
		return
	}
	log.Info("a request is answered", zap.Bool("done", done), zap.String("text", text))
}

// errWaits is of what cannot be judged yet, and soon can.
var errWaits = errors.New("it waits")

// answer writes the answer into the record as it is now, if the request still stands.
func (t *requestTask) answer(ctx context.Context, tok cluster.Token, r movesRecord, q cluster.WorkloadRequest, done bool, text string) error {
	m := t.m
	now, is := m.record(m.snapshot(), r.w.Name)
	if !is || now.w.Request == nil || now.w.Request.ID != q.ID {
		return nil
	}
	next := m.answered(now.w, tok.Epoch(), done, bounded500(text))
	_, err := m.save(ctx, tok, "workload.answer", now, next)
	return err
}

// obey does what is asked. text is the answer; none: it is in the record already, or
// the request stands for a further try, as the error says.
func (t *requestTask) obey(ctx context.Context, a *activity.Activity, book *placement.Book, r movesRecord) (done bool, text string, err error) {
	q, w := *r.w.Request, r.w
	if w.Next != nil && w.Next.ID == q.ID { // its own, begun by an earlier primary or before it was ended
		if w.Kind == cluster.WorkloadMovable {
			err = t.m.resume(ctx, a, r)
			return false, "", err
		}
	}
	if w.Next != nil && w.Kind == cluster.WorkloadReplicated && !t.m.abandoned(r) {
		return false, "", fmt.Errorf("the janitor first looks how far its unfinished move has come: %w", errWaits)
	}
	if w.Next != nil && w.Next.Live != "" { // nothing else may be done before
		if r, err = t.m.clear(ctx, a, r); err != nil {
			return false, "", fmt.Errorf("its live move is cleared on both nodes first: %w", err)
		}
		w = r.w
	}
	if w.Next != nil { // given up: what runs where is looked at by who comes next
		if r, err = t.m.drop(ctx, a.Token(), r); err != nil {
			return false, "", err
		}
	}
	switch q.Op {
	case cluster.WorkloadMove, cluster.WorkloadPromote:
		return t.move(ctx, a, book, r, q)
	case cluster.WorkloadStart:
		return t.start(ctx, a, book, r)
	case cluster.WorkloadStop:
		return t.stop(ctx, a, r)
	case cluster.WorkloadRemove:
		return t.remove(ctx, a, r, q)
	}
	return false, fmt.Sprintf("the order %q is not known to this program; nothing was done", q.Op), nil
}

// drop gives an unfinished move up.
func (m *moves) drop(ctx context.Context, t cluster.Token, r movesRecord) (movesRecord, error) {
	next := r.w.Clone()
	next.Next = nil
	if next.Wanted {
		m.as(&next, cluster.WorkloadStarting, "its move was given up for another order")
	}
	return m.save(ctx, t, "workload.drop", r, next)
}

// move: to a node, or to where the selector says; of a replicated one its head.
func (t *requestTask) move(ctx context.Context, a *activity.Activity, book *placement.Book, r movesRecord, q cluster.WorkloadRequest) (bool, string, error) {
	m, w := t.m, r.w
	if q.Op == cluster.WorkloadPromote && w.Kind == cluster.WorkloadReplicated {
		if done, text, err := m.choose(ctx, a.Token(), r, q.Node); done || text != "" || err != nil {
			return done, text, err
		}
	}
	if q.Op == cluster.WorkloadPromote && (w.Kind == cluster.WorkloadMovable || !slices.Contains(w.Members(), q.Node)) {
		return false, fmt.Sprintf("%q has no copy on %q that could be promoted; its chain is %s: `pvc workload move` takes it there", w.Name, q.Node, chainWords(w.Chain)), nil
	}
	to, member := q.Node, slices.Contains(w.Members(), q.Node) && q.Node != cluster.NoCopy
	switch {
	case len(w.Chain) == 0 || w.Head() == cluster.NoCopy:
		return false, "it is nowhere yet, so that nothing can be moved; `pvc workload start` it", nil
	case to == w.Head():
		return true, fmt.Sprintf("it is on %s already", to), nil
	case to == cluster.NoCopy:
		var why string
		if to, why = t.place(book, w, w.Members()...); why != "" {
			return false, why + "; it is left where it is", nil
		}
	case member: // what it needs is there
		if why := placement.Bar(m.snapshot(), to); why != "" {
			return false, fmt.Sprintf("node %s cannot take it: %s; it is left where it is", to, why), nil
		}
	default:
		if why := t.against(book, w, to); why != "" {
			return false, fmt.Sprintf("node %s cannot take it: %s; it is left where it is", to, why), nil
		}
	}
	mv := placement.Move{Workload: w, Node: to, Cause: placement.CauseMove}
	if w.Kind == cluster.WorkloadMovable {
		mv.To = []cluster.NodeID{to}
		err := m.relocate(ctx, a, r, mv, q.ID)
		return false, "", err
	}
	if mv.To = placement.Replaced(w.Chain, w.Head(), to); member {
		mv.To = placement.Promoted(w.Chain, to)
	}
	err := m.shift(ctx, a, r, mv, q.ID)
	if err != nil {
		return false, fmt.Sprintf("%v; its chain is %s", err, chainWords(w.Chain)), err
	}
	return true, fmt.Sprintf("its active copy is on %s", to), nil
}

// start: also of what has failed. A replicated one is brought online by the next pass.
func (t *requestTask) start(ctx context.Context, a *activity.Activity, book *placement.Book, r movesRecord) (bool, string, error) {
	m, next := t.m, r.w.Clone()
	next.Wanted, next.Attempts, next.Pass = true, 0, moveID()
	m.later(next.Name, 0)
	if next.State != cluster.WorkloadRunning {
		m.as(&next, cluster.WorkloadStarting, "")
	}
	if next.Kind == cluster.WorkloadReplicated {
		saved, err := m.save(ctx, a.Token(), "workload.wanted", r, next)
		if err != nil {
			return false, "", err
		}
		m.w.again()
		return true, fmt.Sprintf("it is wanted; its copies on %v are brought up by the pass that begins now", saved.w.Members()), nil
	}
	head := next.Head()
	checks, gone := m.goneChecks(head)
	if gone || placement.Bar(m.snapshot(), head) != "" && m.isStopped(ctx, a, r) {
		to, why := t.place(book, next, head)
		if why != "" {
			next.Chain = []cluster.NodeID{cluster.NoCopy}
			m.as(&next, cluster.WorkloadStopped, "it starts by itself once a node can take it: "+why)
			next = m.answered(next, a.Token().Epoch(), false, next.Reason)
			_, err := m.save(ctx, a.Token(), "workload.wanted", r, next, checks...)
			return false, "", err
		}
		next.Chain = []cluster.NodeID{to}
	}
	saved, err := m.save(ctx, a.Token(), "workload.wanted", r, next, checks...)
	if err != nil {
		return false, "", err
	}
	err = m.on(ctx, a, "start-copy-"+saved.w.Name, []cluster.NodeID{saved.w.Head()}, func(ctx context.Context, tok cluster.Token) error {
		saved, err = m.start(ctx, tok, saved)
		return err
	})
	if err != nil {
		return false, fmt.Sprintf("it is wanted, and does not run yet: %v", err), err
	}
	return true, fmt.Sprintf("it runs on %s", saved.w.Head()), nil
}

// isStopped reports whether the head itself says that nothing of it runs there, and
// has taken the order that nothing does: no late start comes after that.
func (m *moves) isStopped(ctx context.Context, a *activity.Activity, r movesRecord) bool {
	n := r.w.Head()
	if p := m.probe(ctx, n, r.w); p.Unknown || p.State != cluster.CopyMissing {
		return false
	}
	return m.on(ctx, a, "stop-copy-"+r.w.Name, []cluster.NodeID{n}, func(ctx context.Context, t cluster.Token) error { return m.vacate(ctx, t, n, r) }) == nil
}

// on runs work that needs the leases of nodes.
func (m *moves) on(ctx context.Context, a *activity.Activity, name string, nodes []cluster.NodeID, work func(context.Context, cluster.Token) error) error {
	if len(nodes) == 0 {
		return work(ctx, a.Token())
	}
	return a.Run(ctx, activity.Spec{Name: name, Quorum: cluster.All(nodes...), Timeout: moveLease, Quiet: true}, func(ctx context.Context, child *activity.Activity) error {
		return work(ctx, child.Token())
	})
}

// present are the nodes that may have something of the workload: by its record, and
// by what nodes have said. Those that are proven dead have nothing.
func (m *moves) present(r movesRecord) []cluster.NodeID {
	nodes := placement.Places(r.w)
	if r.w.Next != nil {
		nodes = append(nodes, r.w.Next.From...)
	}
	for _, n := range registeredNodes(m.snapshot()) {
		if slices.Contains(m.heldAt(n), r.w.Name) {
			nodes = append(nodes, n)
		}
	}
	slices.Sort(nodes)
	return slices.DeleteFunc(slices.Compact(nodes), m.isGone)
}

// stop: its copies are stopped, the head first, so that nothing is written that the
// others do not get.
func (t *requestTask) stop(ctx context.Context, a *activity.Activity, r movesRecord) (bool, string, error) {
	m, next := t.m, r.w.Clone()
	next.Wanted = false
	if next.State != cluster.WorkloadStopped {
		m.as(&next, next.State, "it is being stopped")
	}
	saved, err := m.save(ctx, a.Token(), "workload.unwanted", r, next)
	if err != nil {
		return false, "", err
	}
	if why := m.endCopies(ctx, a, saved, cluster.CopyStop); why != "" {
		return false, fmt.Sprintf("it is not wanted any more, and not all of it is stopped: %s", why), nil
	}
	next = saved.w.Clone()
	m.as(&next, cluster.WorkloadStopped, "")
	next = m.answered(next, a.Token().Epoch(), true, "it is stopped")
	_, err = m.save(ctx, a.Token(), "workload.stopped", saved, next, m.event(next, "stopped", "stopped as ordered"))
	return false, "", err
}

// endCopies stops, or destroys, every copy; what it returns says which were not.
func (m *moves) endCopies(ctx context.Context, a *activity.Activity, r movesRecord, op cluster.CopyOp) string {
	nodes := m.present(r)
	if at := slices.Index(nodes, r.w.Head()); at > 0 {
		nodes = slices.Insert(slices.Delete(nodes, at, at+1), 0, r.w.Head())
	}
	var why []string
	copies := m.hearers(ctx, r, nodes)
	for _, n := range nodes {
		err := m.on(ctx, a, string(op)+"-copy-"+r.w.Name, []cluster.NodeID{n}, func(ctx context.Context, tok cluster.Token) error {
			heard := m.w.notes.of(tok, r.w, r.version, copies)
			err := m.stopHeard(ctx, heard, n, op, r)
			copies = heard.copies
			return err
		})
		if err != nil {
			why = append(why, fmt.Sprintf("%s: %v", n, err))
		}
	}
	return strings.Join(why, "; ")
}

// remove: each node that may have something of it says first that it answers at all,
// then that nothing is left; then the record goes.
func (t *requestTask) remove(ctx context.Context, a *activity.Activity, r movesRecord, q cluster.WorkloadRequest) (bool, string, error) {
	m := t.m
	ask := map[cluster.NodeID][]cluster.Workload{}
	for _, n := range m.present(r) {
		ask[n] = []cluster.Workload{r.w}
	}
	reports, silent := m.w.copies.Query(ctx, ask)
	if why := unremovable(r.w, q.Destroy, ask, reports[r.w.Name], silent); why != "" {
		return false, "nothing was removed: " + why, nil
	}
	next := r.w.Clone()
	next.Wanted = false
	m.as(&next, next.State, "it is being removed")
	saved, err := m.save(ctx, a.Token(), "workload.unwanted", r, next)
	if err != nil {
		return false, "", err
	}
	op := cluster.CopyStop
	if q.Destroy {
		op = cluster.CopyDestroy
	}
	if why := m.endCopies(ctx, a, saved, op); why != "" {
		return false, "its record is kept, and it is not wanted any more; not all of it is gone: " + why, nil
	}
	return false, "", m.erase(ctx, a.Token(), saved)
}

// unremovable says what stands against a removal, by what the nodes asked have
// answered; "": nothing. A node that does not answer at all may run a copy. What one
// that answers cannot look at --destroy ends nevertheless: the record goes only once
// that node has confirmed that nothing is left. Of a movable workload only what runs
// counts, since a stop leaves its data where it is: what has failed, and runs nowhere,
// is removed as what is stopped.
func unremovable(w cluster.Workload, destroy bool, asked map[cluster.NodeID][]cluster.Workload, reports map[cluster.NodeID]cluster.CopyReport, silent map[cluster.NodeID]string) string {
	var mute, blind, copies []string
	for _, n := range slices.Sorted(maps.Keys(asked)) {
		report, is := reports[n]
		switch {
		case silent[n] != "" || !is:
			mute = append(mute, fmt.Sprintf("%s (%s)", n, cmp.Or(silent[n], "it has said nothing of it")))
		case report.Unknown:
			blind = append(blind, fmt.Sprintf("%s (%s)", n, report.Error))
		case report.State == cluster.CopyMissing, w.Kind == cluster.WorkloadMovable && report.State == cluster.CopyDead && !report.Left:
		default:
			copies = append(copies, fmt.Sprintf("%s (%s)", n, report.State))
		}
	}
	switch {
	case len(mute) > 0:
		return fmt.Sprintf("%s may have a copy and does not answer; let it answer, or have it proven dead (`pvc fence now NODE`, or `pvc fence confirm NODE` once you know that it is off), and order anew", strings.Join(mute, ", "))
	case destroy:
	case len(blind) > 0:
		return fmt.Sprintf("what is on %s cannot be looked at; see to that, or `pvc workload remove %s --destroy`, which ends and removes whatever is there, and the record only once that node says that nothing is left", strings.Join(blind, ", "), w.Name)
	case len(copies) > 0 && w.Kind == cluster.WorkloadMovable:
		return fmt.Sprintf("something of it runs, or may, on %s; `pvc workload stop %s` first, or remove it with --destroy", strings.Join(copies, ", "), w.Name)
	case len(copies) > 0:
		return fmt.Sprintf("it still has copies on %s, and the last of them would go with it; `pvc workload remove %s --destroy` does that", strings.Join(copies, ", "), w.Name)
	}
	return ""
}

// erase deletes the record. Where the reply is lost it is found gone, or still there
// and tried again.
func (m *moves) erase(ctx context.Context, t cluster.Token, r movesRecord) error {
	key := cluster.Key{Kind: cluster.KeyWorkload, Name: r.w.Name}
	res := m.w.write(ctx, t, "workload.remove", []cluster.Op{cluster.Delete(key, r.version), m.event(r.w, "removed", "removed as ordered")})
	if res.Outcome != cluster.OutcomeOK {
		return fmt.Errorf("the record of workload %q was not removed (%s): %w: %w", r.w.Name, res.Outcome, cmpErr(res.Err, cluster.ErrConflict), errWaits)
	}
	m.mu.Lock()
	m.wrote[r.w.Name] = movesRecord{w: r.w, version: r.version, deleted: true}
	m.mu.Unlock()
	return nil
}
