package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/janitor"
	"pvc.internal/agent/placement"
	"pvc.internal/cluster"
)

// The times of a replicated workload's move.
const (
	// fillPatience is how long a new copy may take to catch up before the move is left;
	// what it has by then it keeps, and the next try goes on from there.
	fillPatience = 60 * time.Second
	// catchPatience is how long nobody serves at most while the next head takes in
	// what the last has written.
	catchPatience = 5 * time.Second
	// catchPause is between two looks at that.
	catchPause = 100 * time.Millisecond
)

// errUnsafe is why nothing is moved of a workload whose head came back empty (P3).
var errUnsafe = errors.New("unsafe_nodes")

// shift takes a replicated workload's copies from one chain to another. Its intent
// stands in the record first, so that the janitor recognises how far it has come:
// until the new head is active the old chain holds, and from then on the new one (J1).
//
//	query: the head is active, and not one that came back empty
//	   │
//	next written ─▶ new members follow, and catch up ─▶ old head demoted ─▶ the next one has
//	   │                 │ not in time                      │                all of it
//	   ▼                 ▼                                  ▼                    ▼
//	left: next gone, the chain as before        promoted again, left     promoted ─▶ chain written
//	                                                                      ─▶ others follow ─▶ who is out stops
type shifting struct {
	m       *moves
	t       cluster.Token
	r       movesRecord
	to      []cluster.NodeID
	reports map[cluster.NodeID]cluster.CopyReport
	secret  string
	heard   *hearing
}

// shift makes the move, under the leases of all that have a part in it.
func (m *moves) shift(ctx context.Context, a *activity.Activity, r movesRecord, mv placement.Move, id string) error {
	nodes := slices.Concat(r.w.Members(), cluster.Workload{Chain: mv.To}.Members())
	slices.Sort(nodes)
	nodes = slices.DeleteFunc(slices.Compact(nodes), m.isGone)
	s := &shifting{m: m, r: r, to: mv.To, secret: rand.Text()}
	var why error
	err := m.on(ctx, a, "move-"+r.w.Name, nodes, func(ctx context.Context, tok cluster.Token) error {
		s.t = tok
		why = s.make(ctx, nodes, mv, id)
		return nil // how it has ended is told by its record
	})
	return errors.Join(why, err)
}

// make looks, writes what is to be done, and does it.
func (s *shifting) make(ctx context.Context, nodes []cluster.NodeID, mv placement.Move, id string) error {
	if err := s.look(ctx, nodes); err != nil {
		return err
	}
	if err := s.intend(ctx, mv, id); err != nil {
		return err
	}
	s.heard = s.m.w.notes.of(s.t, s.r.w, s.r.version, s.reports)
	for _, n := range s.to[1:] {
		s.heard.follow[n] = s.to[0] != s.r.w.Head() // a new head is followed by all of its chain
	}
	if err := s.work(ctx); err != nil {
		return s.left(ctx, err)
	}
	return nil
}

// look asks everybody, and refuses what is not safe (P3).
func (s *shifting) look(ctx context.Context, nodes []cluster.NodeID) error {
	ask := map[cluster.NodeID][]cluster.Workload{}
	for _, n := range nodes {
		ask[n] = []cluster.Workload{s.r.w}
	}
	reports, silent := s.m.w.copies.Query(ctx, ask)
	s.reports = reports[s.r.w.Name]
	gone := map[cluster.NodeID]bool{}
	for _, n := range s.r.w.Members() {
		gone[n] = s.m.isGone(n)
	}
	if janitor.UnsafeHead(s.r.w, s.reports, gone) {
		return fmt.Errorf("%w: its copy on %s came back empty while another still has one; the janitor sees to that first", errUnsafe, s.r.w.Head())
	}
	for _, n := range nodes {
		if why := silent[n]; why != "" {
			return fmt.Errorf("node %s does not answer: %s", n, why)
		}
		if r, is := s.reports[n]; !is || r.Unknown {
			return fmt.Errorf("node %s cannot tell what its copy is: %s", n, r.Error)
		}
	}
	if head := s.reports[s.r.w.Head()]; head.State != cluster.CopyActive {
		return fmt.Errorf("its copy on %s is %s, not active; the janitor sees to that first", s.r.w.Head(), head.State)
	}
	return nil
}

// intend writes the unfinished move.
func (s *shifting) intend(ctx context.Context, mv placement.Move, id string) (err error) {
	next := s.r.w.Clone()
	next.Next = &cluster.ChainMove{ID: id, Chain: slices.Clone(mv.To), From: slices.Clone(next.Chain), Cause: mv.Cause, Epoch: s.t.Epoch()}
	if mv.Cause == placement.CauseDrain {
		next.Home, next.Away = mv.Home, mv.Away
	}
	pin(&next, id)
	s.m.as(&next, cluster.WorkloadMoving, fmt.Sprintf("%s: from %s to %s", mv.Cause, chainWords(next.Chain), chainWords(mv.To)))
	s.r, err = s.m.save(ctx, s.t, "workload.move", s.r, next)
	return err
}

// work does the steps.
func (s *shifting) work(ctx context.Context) error {
	if err := s.fill(ctx); err != nil {
		return err
	}
	if from := s.r.w.Head(); from != s.to[0] {
		if err := s.handOver(ctx, from, s.to[0]); err != nil {
			return err
		}
	}
	return s.finish(ctx)
}

// order gives one order of the shift, of which the other copies are told. What it
// expects is the copy as it was seen.
func (s *shifting) order(ctx context.Context, n cluster.NodeID, op cluster.CopyOp, source cluster.NodeID) error {
	said := s.heard.before(ctx, deed{n, op})
	report, err := s.m.order(ctx, s.t, n, op, s.r, func(o *cluster.CopyOrder) {
		switch op {
		case cluster.CopyFollow, cluster.CopyAdmit, cluster.CopyPromote:
			o.Secret = s.secret
		}
		if source != cluster.NoCopy {
			o.Source = &cluster.CopySource{Node: source}
		}
		if seen, is := s.reports[n]; is && (op == cluster.CopyPromote || op == cluster.CopyDemote || op == cluster.CopyAdmit) {
			o.Expect = &cluster.CopyExpect{State: seen.State, Start: seen.Start}
		}
	})
	if err == nil && !report.Unknown {
		s.reports[n] = report
	}
	s.heard.found(n, report, err)
	s.heard.after(ctx, said)
	return err
}

// fill brings up the copies that are new, and waits until they have caught up.
func (s *shifting) fill(ctx context.Context) error {
	head := s.r.w.Head()
	var fresh []cluster.NodeID
	for _, n := range s.to {
		if n != cluster.NoCopy && n != head && (!slices.Contains(s.r.w.Chain, n) || s.reports[n].State != cluster.CopyReplica) {
			fresh = append(fresh, n)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := s.order(ctx, head, cluster.CopyAdmit, cluster.NoCopy); err != nil {
		return fmt.Errorf("its head on %s lets nobody in: %w", head, err)
	}
	followers := slices.Clone(fresh)
	for _, n := range s.r.w.Members() { // with the new secret the others come in again, too
		if n != head && !slices.Contains(followers, n) && !s.m.isGone(n) {
			followers = append(followers, n)
		}
	}
	for _, n := range followers {
		if err := s.order(ctx, n, cluster.CopyFollow, head); err != nil && slices.Contains(fresh, n) {
			return fmt.Errorf("the copy on %s does not follow: %w", n, err)
		}
	}
	for _, n := range fresh {
		if err := s.caughtUp(ctx, n, head, fillPatience); err != nil {
			return err
		}
	}
	return nil
}

// caughtUp waits until the copy is a replica that has all that the other had when
// this began.
func (s *shifting) caughtUp(ctx context.Context, n, of cluster.NodeID, limit time.Duration) error {
	goal := s.m.probe(ctx, of, s.r.w)
	if goal.Unknown {
		return fmt.Errorf("how far the copy on %s has come is not known: %s", of, goal.Error)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		r := s.m.probe(ctx, n, s.r.w)
		switch {
		case r.Unknown || r.State != cluster.CopyReplica:
		case !goal.HasOffset || !r.HasOffset, r.Offset >= goal.Offset && r.History == goal.History:
			s.reports[n] = r
			return nil
		}
		if pause(ctx, catchPause); ctx.Err() != nil {
			return fmt.Errorf("the copy on %s has not caught up with %s within %s: it is %s, at %d of %d", n, of, limit, r.State, r.Offset, goal.Offset)
		}
	}
}

// handOver makes another copy the active one. From the demotion on nobody serves:
// what stands against it is found before, and what fails after puts the old head
// back, unless it is not known whether the new one serves.
func (s *shifting) handOver(ctx context.Context, from, to cluster.NodeID) error {
	if r := s.reports[to]; r.State != cluster.CopyReplica {
		return fmt.Errorf("the copy on %s is %s, not a replica that has caught up", to, r.State)
	}
	if err := s.caughtUp(ctx, to, from, catchPatience); err != nil {
		return err
	}
	if err := s.order(ctx, from, cluster.CopyDemote, cluster.NoCopy); err != nil {
		return s.restore(ctx, from, fmt.Errorf("the copy on %s was not demoted: %w", from, err))
	}
	if err := s.caughtUp(ctx, to, from, catchPatience); err != nil {
		return s.restore(ctx, from, err)
	}
	err := s.order(ctx, to, cluster.CopyPromote, cluster.NoCopy)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	found := s.m.probe(ctx, to, s.r.w) // its reply may have been lost
	switch {
	case found.Unknown:
		return fmt.Errorf("whether the copy on %s serves is not known: %w: %w", to, err, errUndecided)
	case found.State == cluster.CopyActive:
		s.reports[to] = found
		return nil
	}
	return s.restore(ctx, from, fmt.Errorf("the copy on %s was not promoted: %w", to, err))
}

// errUndecided leaves the move standing: the janitor recognises its end by the copies.
var errUndecided = errors.New("the janitor goes on with it once that is known")

// restore has the old head serve again.
func (s *shifting) restore(ctx context.Context, head cluster.NodeID, why error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, n := range s.r.w.Members() {
		s.heard.follow[n] = true
	}
	if err := s.order(ctx, head, cluster.CopyPromote, cluster.NoCopy); err != nil {
		s.m.w.again()
		return fmt.Errorf("%w; and the copy on %s was not promoted again, which the janitor now does: %w", why, head, err)
	}
	for _, n := range s.r.w.Members() {
		if n != head && !s.m.isGone(n) {
			if err := s.order(ctx, n, cluster.CopyFollow, head); err != nil {
				s.m.w.d.Log.Info("a copy does not follow; the janitor sees to it", zap.String("workload", s.r.w.Name), zap.String("peer", string(n)), zap.Error(err))
			}
		}
	}
	return why
}

// left ends the move as one that came to nothing.
func (s *shifting) left(ctx context.Context, why error) error {
	if ctx.Err() != nil || errors.Is(why, errUndecided) {
		return why
	}
	next := s.r.w.Clone()
	if next.Next == nil {
		return why
	}
	next.Next = nil
	s.m.as(&next, cluster.WorkloadRunning, "its move was left: "+why.Error())
	s.m.later(next.Name, leftFor)
	saved, err := s.m.save(ctx, s.t, "workload.left", s.r, next)
	s.r = saved
	return errors.Join(why, err)
}

// finish writes the new chain before anything of the old one goes (J6), has the
// others follow, and stops who is out of it.
func (s *shifting) finish(ctx context.Context) error {
	before := s.r.w.Chain
	next := s.r.w.Clone()
	move := *next.Next
	next.Chain, next.Next, next.Pass = slices.Clone(s.to), nil, move.ID
	next.History = s.reports[s.to[0]].History // of whoever serves now (P4)
	s.m.homecoming(&next, move.Cause)
	s.m.over(next.Name)
	s.m.as(&next, cluster.WorkloadRunning, "")
	saved, err := s.m.save(ctx, s.t, "workload.moved", s.r, next, s.m.event(next, "moved", "its chain is %s, was %s (%s)", chainWords(next.Chain), chainWords(before), move.Cause))
	if err != nil { // the new head serves: what the move is to become must stay known
		return fmt.Errorf("%w: %w", err, errUndecided)
	}
	s.r = saved
	s.heard.w, s.heard.seen = saved.w, saved.version
	head, followed := s.to[0], true
	if head != before[0] {
		for _, n := range s.to[1:] {
			if n == cluster.NoCopy {
				continue
			}
			if err := s.order(ctx, n, cluster.CopyFollow, head); err != nil {
				followed = false
				s.m.w.d.Log.Info("a copy does not follow its new head; the janitor sees to it", zap.String("workload", next.Name), zap.String("peer", string(n)), zap.Error(err))
			}
		}
	}
	if !followed { // the copy of who is out is the second one still; the janitor stops it once all follow (J6)
		return context.Cause(ctx)
	}
	var why error
	for _, n := range before {
		if n != cluster.NoCopy && !slices.Contains(s.to, n) && !s.m.isGone(n) {
			why = errors.Join(why, s.m.stopHeard(ctx, s.heard, n, cluster.CopyStop, s.r))
		}
	}
	return why
}

// choose makes an operator's word the head of a workload whose head does not serve: it
// came back empty, several others are active, or its node is gone. The copies are left
// to the janitor, which brings the new head up and demotes any other. No text and no
// error: the head serves, and this is an ordinary promotion.
func (m *moves) choose(ctx context.Context, t cluster.Token, r movesRecord, n cluster.NodeID) (done bool, text string, err error) {
	ask := map[cluster.NodeID][]cluster.Workload{}
	for _, o := range append(m.present(r), n) {
		ask[o] = []cluster.Workload{r.w}
	}
	all, silent := m.w.copies.Query(ctx, ask)
	reports := all[r.w.Name]
	if head := reports[r.w.Head()]; !head.Unknown && head.State == cluster.CopyActive && r.w.Head() != cluster.NoCopy {
		return false, "", nil
	}
	var with []string
	for o := range ask {
		report, is := reports[o]
		switch {
		case silent[o] != "" || !is || report.Unknown:
			return false, fmt.Sprintf("nothing was changed: node %s does not say what it has, and may serve; let it answer, or have it proven dead (`pvc fence now`), and order anew", o), nil
		case report.State != cluster.CopyMissing:
			with = append(with, string(o))
		}
	}
	slices.Sort(with)
	switch why := placement.Bar(m.snapshot(), n); {
	case why != "":
		return false, fmt.Sprintf("nothing was changed: node %s cannot take it: %s", n, why), nil
	case reports[n].State == cluster.CopyMissing && len(with) > 0:
		return false, fmt.Sprintf("nothing was changed: %s has no copy, and would empty those of %s; promote one of these", n, strings.Join(with, ", ")), nil
	case len(r.w.Chain) == 0 || !slices.Contains(r.w.Chain, n) && len(r.w.Nodes) > 0 && !slices.Contains(r.w.Nodes, n):
		return false, fmt.Sprintf("nothing was changed: %s may have no copy of it; its chain is %s, its nodes are %s", n, chainWords(r.w.Chain), chainWords(r.w.Nodes)), nil
	}
	next := r.w.Clone()
	next.Chain, next.Pass, next.History = placement.Promoted(next.Chain, n), moveID(), reports[n].History
	m.as(&next, cluster.WorkloadStarting, "")
	text = fmt.Sprintf("its head is %s, as ordered; the pass that begins now brings it up", n)
	next = m.answered(next, t.Epoch(), true, text)
	_, err = m.save(ctx, t, "workload.choose", r, next, m.event(next, "promoted", "its head is %s as ordered, was %s, which did not serve; its chain is %s", n, r.w.Head(), chainWords(next.Chain)))
	m.w.again()
	return err == nil, text, err
}

// abandoned reports whether nobody is at an unfinished move any more, and a janitor's
// pass has looked since: what could be recognised of it is.
func (m *moves) abandoned(r movesRecord) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, is := m.pending[r.w.Name]
	if !is || p.version != r.version {
		m.pending[r.w.Name] = pendingMove{r.version, m.now()}
		return false
	}
	return m.w.pass.hasLooked(r.w.Name, p.since)
}

// sweep gives up the unfinished moves of replicated workloads that nobody is at: what
// ordered them, a drain or a rebalance, plans anew.
func (m *moves) sweep(ctx context.Context, t cluster.Token, list []movesRecord) {
	for _, r := range list {
		if ctx.Err() != nil {
			return
		}
		next := r.w.Clone()
		next.Next = nil
		m.as(&next, cluster.WorkloadRunning, "its move was ended halfway")
		if _, err := m.save(ctx, t, "workload.drop", r, next); err != nil {
			m.w.d.Log.Debug("an unfinished move was not given up", zap.String("workload", r.w.Name), zap.Error(err))
		}
	}
}
