package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// handPatience is how long a task, or a pass, waits for a piece of its work, and how
// long a batch begins new ones: so long one hanging agent holds up everything else.
const handPatience = 3 * time.Second

// errCalledOff is the cause with which work ends that an operator's word has made
// pointless.
var errCalledOff = &cluster.Preempted{Name: "what was ordered since"}

// errBereft is the cause with which work ends whose workload's node was proven dead
// meanwhile: it waits for nobody there, and what the proof allows comes at once.
var errBereft = &cluster.Preempted{Name: "what the proof of its node's death allows"}

// workInHand is what is being done with workloads at this moment: one piece a
// workload at most, each an activity of its own, in a domain of its own, under the
// leases of the nodes that it is about. Tasks and passes begin it and wait for it a
// moment. What takes longer, because an agent is slow or hangs, goes on by itself
// while everything else goes on beside it; whoever plans leaves a workload alone that
// is in hand, so that two never order something of one. A fence neither waits for
// such a piece nor ends it: its right is the leases of its nodes, and each of its
// writes is on the version that it has judged.
//
//	begun ─▶ waited for ─▶ over
//	             └─▶ left to itself ─▶ over: the loop looks again
//	any ─▶ another order for that workload, what it is for called off, its head's node proven
//	       dead, a lease or the role lost ─▶ ended ─▶ over
//
// The primary's loop waits for all of it before its role is over. Safe for concurrent
// use.
type workInHand struct {
	w       *workloadWatch
	running sync.WaitGroup

	mu  sync.Mutex
	all map[string]*handWork
}

// handJob is one piece of work as it is ordered.
type handJob struct {
	workload string
	seen     int32          // the version of the record that it rests on
	node     cluster.NodeID // on which it counts; NoCopy: on none
	cause    string         // what it is done for
	wait     string         // moves.later: what is left alone where it was not begun
	request  string         // the operator's order that it carries out; "": none
	limit    time.Duration  // 0: none but those of what it does
	// off reports that nobody wants it any more; nil: it is wanted to its end. It looks
	// at the snapshot only.
	off  func(*cluster.Snapshot) bool
	spec activity.Spec
	body activity.Body
	// ended is told how it has ended, once nothing of it is left; nil: nobody.
	ended func(error)
}

// handWork is one piece under way.
type handWork struct {
	handJob
	begun  cluster.Instant
	proofs map[cluster.NodeID]string // dead-proofs that were known then, by their fences
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when nothing of it is left
	tell   chan<- struct{}
	passed bool // a pass has left the workload alone for it; under the hand's lock
}

func newWorkInHand(w *workloadWatch) *workInHand {
	return &workInHand{w: w, all: map[string]*handWork{}}
}

// workDomain is that of everything that is done with one workload.
func workDomain(workload string) cluster.ActivityDomain {
	return cluster.ActivityDomain("workload " + workload)
}

// begin begins a piece, unless the workload is in hand already or the role is over.
// tell gets a poke when it ends.
func (h *workInHand) begin(j handJob, tell chan<- struct{}) (*handWork, bool) {
	lead := h.w.term()
	h.mu.Lock()
	defer h.mu.Unlock()
	if lead == nil || h.all[j.workload] != nil {
		return nil, false
	}
	ctx, cancel := context.WithCancelCause(lead)
	work := &handWork{handJob: j, begun: h.w.d.Clock.Now(), proofs: provenBy(h.w.newest()), cancel: cancel, done: make(chan struct{}), tell: tell}
	work.spec.Domain = workDomain(j.workload)
	h.all[j.workload] = work
	h.running.Go(func() {
		defer cancel(nil)
		err := h.do(ctx, work)
		if work.ended != nil {
			work.ended(err)
		}
		h.over(work)
	})
	return work, true
}

func (h *workInHand) do(ctx context.Context, work *handWork) error {
	if work.limit > 0 {
		var end context.CancelFunc
		ctx, end = context.WithTimeoutCause(ctx, work.limit, &overdue{work.limit})
		defer end()
	}
	return h.w.acts.Run(ctx, work.spec, work.body)
}

// over takes a piece off the list. Where a pass has left the workload alone for it,
// the next one comes at once.
func (h *workInHand) over(work *handWork) {
	h.mu.Lock()
	delete(h.all, work.workload)
	passed := work.passed
	close(work.done)
	select {
	case work.tell <- struct{}{}: // in the same instant, for whoever waits looks at both
	default:
	}
	h.mu.Unlock()
	if passed {
		h.w.again()
	}
	poke(h.w.pokes)
}

// has reports whether something is being done with the workload.
func (h *workInHand) has(workload string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[workload] != nil
}

// empty reports whether nothing is being done.
func (h *workInHand) empty() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all) == 0
}

// pass are the workloads that a pass is to leave alone.
func (h *workInHand) pass() map[string]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.all) == 0 {
		return nil
	}
	names := make(map[string]bool, len(h.all))
	for name, work := range h.all {
		names[name], work.passed = true, true
	}
	return names
}

// waited counts what is done for the cause and not left to itself yet.
func (h *workInHand) waited(cause string) (count int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, work := range h.all {
		if work.cause == cause && !h.slow(work) {
			count++
		}
	}
	return count
}

// slow reports whether a piece is left to itself by now.
func (h *workInHand) slow(work *handWork) bool {
	return h.w.d.Clock.Now().Sub(work.begun) >= handPatience
}

// busy counts what is under way on each node, and of all how many are left to
// themselves.
func (h *workInHand) busy() (each map[cluster.NodeID]int, slow int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	each = map[cluster.NodeID]int{}
	for _, work := range h.all {
		if work.node == cluster.NoCopy {
			continue
		}
		each[work.node]++
		if h.slow(work) {
			slow++
		}
	}
	return each, slow
}

// review ends what must not go on by the newest records. The loop calls it at each
// of its looks.
func (h *workInHand) review(snap *cluster.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, work := range h.all {
		v := snap.Workloads[name]
		q := v.Value.Request
		switch {
		case v.Present && v.Err == nil && v.Version > work.seen && q != nil && q.Op != cluster.WorkloadProbe && q.ID != work.request:
			if work.request == "" {
				work.cancel(errCalledOff)
			} else {
				work.cancel(errOvertaken)
			}
		case bereft(snap, v, work.proofs):
			work.cancel(errBereft)
		case work.off != nil && work.off(snap):
			work.cancel(errCalledOff)
		}
	}
}

// carry begins the jobs, those that next names as soon as it names them (as places in
// the list that it is given), and waits for each for handPatience. It returns what was
// not begun: ctx has ended, nothing more can be begun, or (within > 0) that long has
// passed. What was begun goes on.
func (h *workInHand) carry(ctx context.Context, jobs []handJob, within time.Duration, next func([]handJob) []int) []handJob {
	tell := make(chan struct{}, 1)
	var mine []*handWork
	left := slices.Clone(jobs)
	until := cluster.Forever
	if within > 0 {
		until = h.w.d.Clock.Now().Add(within)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil && h.w.d.Clock.Now().Before(until) {
		begin := next(left)
		for i := len(begin) - 1; i >= 0; i-- { // the last first, so that places stay
			left, mine = h.take(left, begin[i], mine, tell)
		}
		wake, waits := h.waits(mine)
		if !waits { // all are over or left to themselves: did that free a place?
			select {
			case <-tell:
				continue
			default:
				return left
			}
		}
		timer.Reset(max(0, cluster.Earliest(wake, until).Sub(h.w.d.Clock.Now())))
		select {
		case <-tell:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return left
}

// take begins one of the list.
func (h *workInHand) take(left []handJob, at int, mine []*handWork, tell chan<- struct{}) ([]handJob, []*handWork) {
	if work, begun := h.begin(left[at], tell); begun {
		mine = append(mine, work)
		left = slices.Delete(left, at, at+1)
	}
	return left, mine
}

// waits reports whether one of them is still waited for, and until when the first is.
func (h *workInHand) waits(mine []*handWork) (until cluster.Instant, waits bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	until = cluster.Forever
	now := h.w.d.Clock.Now()
	for _, work := range mine {
		select {
		case <-work.done:
			continue
		default:
		}
		if end := work.begun.Add(handPatience); now.Before(end) {
			until, waits = cluster.Earliest(until, end), true
		}
	}
	return until, waits
}

// overdue is the cause of what was not done in time.
type overdue struct{ limit time.Duration }

func (o *overdue) Error() string { return "not done within " + o.limit.String() }
func (o *overdue) Unwrap() error { return cluster.ErrDeadline }

// unleased reports whether the piece never ran since a node's lease could not be had in
// its time. What was called off while it waited, or whose domain something has that
// survived its end, says nothing of that node.
func unleased(err error) bool {
	var no *cluster.RefusedActivity
	return errors.As(err, &no) && no.Code == cluster.RefuseNoQuorum
}

// unbegun reports whether the piece never ran, for want of a lease or of its domain.
func unbegun(err error) bool {
	var no *cluster.RefusedActivity
	return errors.As(err, &no)
}
