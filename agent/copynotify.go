package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// The times of notifications.
const (
	// noteWay is what the way to a node and back is given beside what its copy may take
	// to be told (CopyReport.NotifyMS): then its own answer says what was wrong.
	noteWay = 300 * time.Millisecond
	// noteMute is how long a copy is told nothing after it did not let itself be told
	// in time: one that hangs delays its workload once, not each step of it. One that does
	// so again and again is told nothing for twice as long each time, up to noteMuteMost:
	// the first time it may have been slow only.
	noteMute     = 10 * time.Second
	noteMuteMost = 2 * time.Minute
)

// notices tells the other copies of a replicated workload, before and after, of what is
// done to one (OCF's notify), where their agents announce that they want to be told, as
// the copies' own reports say. Who does not is sent nothing, and where nobody does
// nothing is looked at. The copy itself is told by its own node, as a part of the order.
//
//	order of X ─▶ pre-… to the others, all at once ─▶ the order ─▶ done: post-… to the others
//	                 └─ at most NotifyMS + noteWay ─┘                       └─ the same ─┘
//
// A note is an order as any other, with a token and a number, so that one which is late
// does nothing. It is no condition of what it tells of: one that fails, or is not
// answered in time, is called off, told once, and what it was about goes on.
type notices struct {
	w       *workloadWatch
	running sync.WaitGroup

	mu    sync.Mutex
	mute  map[string]cluster.Instant // "WORKLOAD NODE" that is told nothing until then
	next  map[string]time.Duration   // for how long it is told nothing if it hangs again
	wrong map[string]bool            // of whom it was told that they do not let themselves be told
}

func newNotices(w *workloadWatch) *notices {
	return &notices{w: w, mute: map[string]cluster.Instant{}, next: map[string]time.Duration{}, wrong: map[string]bool{}}
}

// hearing is the copies of one workload while orders are given to them one after the
// other, as they were found last. One goroutine uses it.
type hearing struct {
	n      *notices
	t      cluster.Token
	w      cluster.Workload
	seen   int32
	copies map[cluster.NodeID]cluster.CopyReport
	// follow are those that are yet to be ordered to follow: by that they are told who
	// was promoted.
	follow map[cluster.NodeID]bool
}

// of begins with the copies as they were found. The record and its version are what the
// notes rest on, as the orders do.
func (n *notices) of(t cluster.Token, w cluster.Workload, seen int32, copies map[cluster.NodeID]cluster.CopyReport) *hearing {
	h := &hearing{n: n, t: t, w: w, seen: seen, copies: maps.Clone(copies), follow: map[cluster.NodeID]bool{}}
	if h.copies == nil {
		h.copies = map[cluster.NodeID]cluster.CopyReport{}
	}
	return h
}

// deed is one order of one copy, as the others are told of it.
type deed struct {
	node cluster.NodeID
	op   cluster.CopyOp
}

// does are the operations, in their order, that carry the order out, in OCF's words;
// none: the copy is so already.
func (h *hearing) does(d deed) []string {
	c := h.copies[d.node]
	lives := !c.Unknown && (c.State == cluster.CopyActive || c.State == cluster.CopyReplica || c.State == cluster.CopyPending)
	active := lives && c.State == cluster.CopyActive
	switch d.op {
	case cluster.CopyPromote:
		switch {
		case active:
			return nil
		case lives:
			return []string{"promote"}
		}
		return []string{"start", "promote"}
	case cluster.CopyStart, cluster.CopyFollow:
		switch {
		case active:
			return []string{"demote"}
		case !lives:
			return []string{"start"}
		}
	case cluster.CopyDemote:
		if active {
			return []string{"demote"}
		}
	case cluster.CopyStop, cluster.CopyDestroy:
		switch {
		case active:
			return []string{"demote", "stop"}
		case lives:
			return []string{"stop"}
		}
	}
	return nil
}

// operations are those that are told of, in the order in which they come.
var operations = []string{"demote", "stop", "start", "promote"}

// noted is what is to come, by operation, as the others were told of it: what was done
// is told in the same words.
type noted map[string][]cluster.NodeID

// before tells of what is about to be done, at once.
func (h *hearing) before(ctx context.Context, deeds ...deed) noted {
	if !h.heard() {
		return nil
	}
	t := noted{}
	for _, d := range deeds {
		for _, what := range h.does(d) {
			t[what] = append(t[what], d.node)
		}
	}
	h.all(ctx, "pre", t)
	return t
}

// heard reports whether anybody wants to be told anything.
func (h *hearing) heard() bool {
	for _, c := range h.copies {
		if c.NotifyMS > 0 {
			return true
		}
	}
	return false
}

// found takes in what an order has made of a copy.
func (h *hearing) found(n cluster.NodeID, report cluster.CopyReport, err error) {
	switch {
	case err != nil || report.Unknown: // it is told nothing more, and asked by who comes next
		delete(h.copies, n)
	default:
		h.copies[n] = report
		if report.NotifyMS > 0 && report.Error != "" {
			h.n.tell(h.w.Name, n, errors.New(report.Error))
		}
	}
}

// after tells of what was done: of before's operations those whose copies are now what
// they were to be.
func (h *hearing) after(ctx context.Context, t noted) {
	if !h.heard() { // a first copy hears nobody, and nobody heard of it
		return
	}
	done := noted{}
	for what, nodes := range t {
		for _, n := range nodes {
			if _, known := h.copies[n]; known {
				done[what] = append(done[what], n)
			}
		}
	}
	h.all(ctx, "post", done)
}

// all tells everybody who lives, each of the others' part, one operation after the other.
func (h *hearing) all(ctx context.Context, when string, t noted) {
	for _, what := range operations {
		if len(t[what]) == 0 || ctx.Err() != nil {
			continue
		}
		notes := map[cluster.NodeID]string{}
		for n, c := range h.copies {
			others := slices.DeleteFunc(slices.Clone(t[what]), func(o cluster.NodeID) bool { return o == n })
			if c.NotifyMS <= 0 || len(others) == 0 || when == "post" && what == "promote" && h.follow[n] || !h.n.answers(h.w.Name, n) {
				continue
			}
			slices.Sort(others)
			words := []string{when + "-" + what}
			for _, o := range others {
				words = append(words, string(o))
			}
			notes[n] = strings.Join(words, " ")
		}
		h.send(ctx, notes)
	}
}

// send gives each its note, all at once, and waits as long as the most patient may take.
func (h *hearing) send(ctx context.Context, notes map[cluster.NodeID]string) {
	if len(notes) == 0 {
		return
	}
	longest := time.Duration(0)
	var left sync.WaitGroup
	for n, note := range notes {
		limit := time.Duration(h.copies[n].NotifyMS)*time.Millisecond + noteWay
		longest = max(longest, limit)
		left.Add(1)
		h.n.running.Go(func() {
			defer left.Done()
			h.n.give(ctx, h.t, n, cluster.CopyOrder{Op: cluster.CopyNotify, Workload: h.w, Seen: h.seen, Note: note}, limit)
		})
	}
	over := make(chan struct{})
	h.n.running.Go(func() { left.Wait(); close(over) })
	timer := time.NewTimer(longest)
	defer timer.Stop()
	select {
	case <-over:
	case <-timer.C: // it is being called off, which its node may not answer either
	case <-ctx.Done():
	}
}

// give gives one note.
func (n *notices) give(ctx context.Context, t cluster.Token, to cluster.NodeID, o cluster.CopyOrder, limit time.Duration) {
	within, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not told within %s: %w", limit, cluster.ErrDeadline))
	defer cancel()
	_, err := n.w.copies.Order(within, t, to, o)
	if ctx.Err() != nil { // what it belongs to was ended
		return
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", o.Note, err)
	}
	n.tell(o.Workload.Name, to, err)
	n.hung(o.Workload.Name+" "+string(to), within.Err() != nil)
}

// hung has who did not let itself be told in time be told nothing for a while.
func (n *notices) hung(key string, is bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !is {
		delete(n.next, key)
		return
	}
	span := max(n.next[key], noteMute)
	n.mute[key] = n.w.d.Clock.Now().Add(span)
	n.next[key] = min(2*span, noteMuteMost)
}

// tell notes how a copy took what it was told, and says so when that changes for the
// worse: once, until it takes something again.
func (n *notices) tell(workload string, to cluster.NodeID, err error) {
	key := workload + " " + string(to)
	n.mu.Lock()
	was := n.wrong[key]
	n.wrong[key] = err != nil
	if err == nil {
		delete(n.wrong, key)
	}
	n.mu.Unlock()
	if err != nil && !was {
		n.w.d.Log.Warn("a copy's agent does not let itself be told of what happens; that goes on without it",
			zap.String("workload", workload), zap.String("peer", string(to)), zap.Error(err))
	}
}

// answers reports whether there is anybody to be told: who is proven dead, is being
// fenced, has no session, or hung a moment ago would only be waited for.
func (n *notices) answers(workload string, to cluster.NodeID) bool {
	snap := n.w.newest()
	view := snap.Nodes[to]
	n.mu.Lock()
	defer n.mu.Unlock()
	key := workload + " " + string(to)
	until, mute := n.mute[key]
	if mute && !n.w.d.Clock.Now().Before(until) {
		delete(n.mute, key)
		mute = false
	}
	return !mute && view.Alive.Present && view.Alive.Err == nil && !placement.Proven(view) && !failingOver(snap, to)
}

// stopHeard is stop of a copy of several, of which the others are told.
func (m *moves) stopHeard(ctx context.Context, h *hearing, n cluster.NodeID, op cluster.CopyOp, r movesRecord) error {
	said := h.before(ctx, deed{n, op})
	err := m.stop(ctx, h.t, n, op, r)
	h.found(n, cluster.CopyReport{State: cluster.CopyMissing}, err)
	h.after(ctx, said)
	return err
}

// hearers are the copies of a workload of which all are about to be stopped, if its
// agent may want them to be told; nil: none is.
func (m *moves) hearers(ctx context.Context, r movesRecord, nodes []cluster.NodeID) map[cluster.NodeID]cluster.CopyReport {
	if r.w.Kind != cluster.WorkloadReplicated || r.w.Driver != cluster.DriverOCF || len(nodes) < 2 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, observeLimit)
	defer cancel()
	ask := map[cluster.NodeID][]cluster.Workload{}
	for _, n := range nodes {
		ask[n] = []cluster.Workload{r.w}
	}
	reports, _ := m.w.copies.Query(ctx, ask)
	return reports[r.w.Name]
}
