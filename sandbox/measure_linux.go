package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// Result is what one fault did to the cluster.
type Result struct {
	Fault     string          `json:"fault"`
	Text      string          `json:"text"`
	Phase     float64         `json:"phase,omitempty"`   // of the renewal period at which it struck
	Skipped   string          `json:"skipped,omitempty"` // why it was not run
	Node      cluster.NodeID  `json:"node,omitempty"`    // whom it hit
	Before    cluster.NodeID  `json:"primary_before,omitempty"`
	After     cluster.NodeID  `json:"primary_after,omitempty"`
	Addresses []AddressResult `json:"addresses,omitempty"`
	// Milliseconds from the fault; −1: it did not happen. Suspect and dead are
	// the first coordinator's published judgement of the node that was hit.
	SuspectMS float64 `json:"suspect_ms"`
	DeadMS    float64 `json:"dead_ms"`
	// TakenMS is when another node was first seen to hold the role.
	TakenMS   float64 `json:"role_taken_ms"`
	ClaimedMS float64 `json:"fence_claimed_ms"`
	OffMS     float64 `json:"verified_off_ms"`
	// CleanMS is when the fence's record was done: roles and records of the node
	// had been cleaned before.
	CleanMS float64 `json:"records_clean_ms"`
	// Fences is how many fences were begun, of whomever.
	Fences int `json:"fences_begun"`
	// KeepaliveMS is the longest time between two keepalives of a node's start,
	// those of the node that was hit among them, at least; −1: no node wrote two.
	KeepaliveMS float64 `json:"keepalive_longest_ms"`
	// Notes are what else is worth telling of the run.
	Notes []string `json:"notes,omitempty"`
	// ResolutionMS is the longest silence of any address in the seconds at rest
	// before the fault: a shorter one is no news.
	ResolutionMS float64 `json:"resolution_ms"`
	// StallMS is the longest time for which the prober itself did not run: the
	// machine was busy elsewhere. What was shorter nobody may have seen.
	StallMS float64 `json:"prober_stall_ms"`
	// LateAnswers came after their round was final; they count for overlaps, but
	// for LostAnswers, which there was no more room for.
	LateAnswers uint64      `json:"late_answers,omitempty"`
	LostAnswers uint64      `json:"lost_answers,omitempty"`
	Error       string      `json:"error,omitempty"` // what did not come about
	Violations  []Violation `json:"violations,omitempty"`
}

// AddressResult is what the client saw of one floating address.
type AddressResult struct {
	Name      string  `json:"name"`
	SilenceMS float64 `json:"silence_ms"`
	// UnaskedMS is how much of the silence the prober itself did not run: the
	// client's lies between the two.
	UnaskedMS   float64 `json:"silence_unasked_ms"`
	StillSilent bool    `json:"still_silent,omitempty"`
	TwiceRounds int     `json:"answers_twice_rounds"` // rounds that two nodes answered: facts
	// TwiceMS is how long the longest run of them is proven to have lasted, ± one
	// period; 0: none. TwiceMostMS is how long it can have been, given when the
	// prober did not ask or got no answer at all.
	TwiceMS     float64 `json:"answers_twice_ms"`
	TwiceMostMS float64 `json:"answers_twice_most_ms"`
	HeldTwiceMS float64 `json:"held_twice_ms"` // two kernels held it
	TornRounds  int     `json:"torn_rounds,omitempty"`
}

// Measure runs one fault on a cluster at rest, heals it, waits for rest and
// reports. An error means that it could not be run at all; what went wrong in
// the cluster is in the Result.
func (s *Sandbox) Measure(ctx context.Context, step Step) (Result, error) {
	f := step.Fault
	res := Result{Fault: f.Name, Text: f.Text, Phase: step.Phase, SuspectMS: -1, DeadMS: -1, TakenMS: -1, ClaimedMS: -1, OffMS: -1, CleanMS: -1, KeepaliveMS: -1}
	switch {
	case len(s.coordinators()) < f.Needs:
		res.Skipped = fmt.Sprintf("needs %d coordinators", f.Needs)
		return res, nil
	case len(s.nodes) < f.NeedsNodes:
		res.Skipped = fmt.Sprintf("needs %d nodes", f.NeedsNodes)
		return res, nil
	case f.workload != "" && !s.store.latest().Workloads[f.workload].Present:
		res.Skipped = "needs the workload " + f.workload
		return res, nil
	}
	if err := s.WaitConverged(ctx); err != nil {
		return res, fmt.Errorf("before %s: %w", f.Name, err)
	}
	if err := s.resetBudget(ctx); err != nil {
		return res, fmt.Errorf("before %s: %w", f.Name, err)
	}
	node, err := f.prepare(ctx, s)
	if err != nil {
		return res, fmt.Errorf("prepare %s: %w", f.Name, err)
	}
	// Whoever has just given the role up does not contend for one ttl.
	if err := s.rest(ctx); err != nil {
		return res, err
	}
	if err := s.awaitPhase(ctx, step.Phase); err != nil {
		return res, fmt.Errorf("before %s: %w", f.Name, err)
	}
	s.strike(ctx, f, node, &res)
	return res, ctx.Err()
}

// strike is the measured part of Measure.
func (s *Sandbox) strike(ctx context.Context, f Fault, node *Node, res *Result) {
	note := func(err error, what string) {
		if err != nil && res.Error == "" {
			res.Error = what + err.Error()
		}
	}
	res.Node, res.Before = node.Plan.Name, s.holder()
	endViews, late, lost := s.recordViews(ctx), s.prober.log.late.Load(), s.prober.log.unkept()
	began := now()
	res.ResolutionMS = millis(s.noise(began.Add(-restWindow), began))
	began = s.begin(f, node)
	err := f.inject(ctx, s, node)
	note(err, "inject: ")
	if err == nil {
		note(f.outcome(ctx, s, node), "")
	}
	s.history.Add(Entry{Kind: KindFault, Name: f.Name, Text: stepHeal})
	note(f.heal(ctx, s, node), "heal: ")
	s.history.Add(Entry{Kind: KindFault, Name: f.Name, Text: stepHealed})
	note(s.rests(ctx, f.Name, clusterTimeout), "")
	endViews()
	note(s.collectPromises(), "")
	res.After = s.holder()
	note(s.stayed(f, res, began), "")
	note(s.harmed(f, began), "")
	if f.verdict != nil && res.Error == "" {
		note(f.verdict(s, node, began), "")
	}
	ended := now()
	// The last rounds' answers, and a few later ones, must be in.
	if s.prober.settled(ctx, ended.Add(50*probePeriod)) != nil && ctx.Err() != nil {
		return
	}
	s.history.Add(Entry{Kind: KindFault, Name: f.Name, Text: stepEnd})
	s.fill(res, began, ended)
	res.LateAnswers, res.LostAnswers = s.prober.log.late.Load()-late, s.prober.log.unkept()-lost
}

// restWindow is the time before a fault in which the resolution is measured.
const restWindow = 2 * time.Second

// recordViews has the coordinators' judgements recorded until it is told to end.
func (s *Sandbox) recordViews(ctx context.Context) (end func()) {
	var observers []cluster.NodeID
	for _, n := range s.coordinators() {
		observers = append(observers, n.Plan.Name)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.store.followViews(ctx, observers) })
	wg.Go(func() { s.store.followExpiry(ctx, s.timing().Grace) })
	return func() { cancel(); wg.Wait() }
}

// stayed is an error if a fault that must move nothing (I9) moved the role, its
// addresses or its service.
func (s *Sandbox) stayed(f Fault, res *Result, began cluster.Instant) error {
	if f.stays == nil || !f.stays(s) {
		return nil
	}
	for _, e := range s.history.Since(began) {
		since := millis(e.At.Sub(began))
		switch {
		case e.At < began:
		case e.Kind == KindLease && e.Node != res.Before:
			return fmt.Errorf("the role left %s for %q after %.0f ms, though nothing was to move", res.Before, e.Node, since)
		case e.Kind == KindHeld && e.Node == res.Before && !e.On:
			return fmt.Errorf("%s lost %s after %.0f ms, though nothing was to move", e.Node, e.Addr, since)
		case e.Kind == KindHook && e.Node == res.Before && !e.On:
			return fmt.Errorf("service %s of %s ended after %.0f ms, though nothing was to move", e.Name, e.Node, since)
		case e.Kind == KindCopy && !e.On:
			return fmt.Errorf("workload %s ended on %s after %.0f ms, though nothing was to move", e.Name, e.Node, since)
		}
	}
	return nil
}

// harmed is an error if a node was fenced that was not hit, or any where the
// fault is none to fence for.
func (s *Sandbox) harmed(f Fault, began cluster.Instant) error {
	for _, e := range s.fencesSince(began) {
		switch {
		case e.Stage == cluster.FenceDone || e.Stage == cluster.FenceCanceled:
		case f.spares:
			return fmt.Errorf("a fence of %s was begun by %s %.0f ms after a fault that nobody is to be fenced for", e.Node, e.By, millis(e.At.Sub(began)))
		case !slices.Contains(s.struck, e.Node):
			return fmt.Errorf("a fence of %s was begun %.0f ms after a fault that hit %v", e.Node, millis(e.At.Sub(began)), s.struck)
		}
	}
	return nil
}

// awaitPhase waits for the next renewal and that part of the period after it.
func (s *Sandbox) awaitPhase(ctx context.Context, phase float64) error {
	if phase == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	before := s.store.latest().Lease.Mzxid
	err := s.store.wait(ctx, func(snap *cluster.Snapshot) error {
		if snap.Lease.Mzxid == before {
			return errors.New("the lease is not renewed")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return pause(ctx, time.Duration(phase*float64(s.timing().RenewInterval)))
}

// Rest waits until the cluster is at rest and what happened before no longer
// shows: sooner, a node that has just come back may not judge the others yet.
func (s *Sandbox) Rest(ctx context.Context) error {
	if err := s.WaitConverged(ctx); err != nil {
		return err
	}
	return s.rest(ctx)
}

// rest waits until the last fault no longer shows: those who gave the role up
// may take it again (one ttl), and every node's session is old enough for it
// to judge others by (session timeout and a keepalive).
func (s *Sandbox) rest(ctx context.Context) error {
	if err := s.replicated(ctx); err != nil {
		return err
	}
	t := s.timing()
	var until cluster.Instant
	if tr := s.store.latest().Transition; tr.Present {
		until = tr.SeenAt.Add(t.RoleTTL + t.RenewInterval)
	}
	for _, e := range s.history.Entries() {
		if e.Kind == KindIncarnation {
			until = max(until, e.At.Add(t.SessionTimeout+2*t.KeepaliveInterval))
		}
	}
	if left := until.Sub(now()); left > 0 {
		return pause(ctx, left)
	}
	return ctx.Err()
}

// fill computes the result's figures from what was recorded in [began, ended].
func (s *Sandbox) fill(res *Result, began, ended cluster.Instant) {
	entries := s.history.Entries()
	for i, a := range FloatingAddresses() {
		rep := s.prober.log.window(i, began, ended)
		ar := AddressResult{Name: a.Name, SilenceMS: millis(rep.Silence.Length()), UnaskedMS: millis(rep.Unasked), StillSilent: rep.Open,
			TwiceRounds: rep.Rounds, HeldTwiceMS: millis(heldTwice(entries, a.Name, began, ended).Length()), TornRounds: rep.Torn}
		res.StallMS = millis(rep.Stall)
		proven, most := rep.Overlap()
		ar.TwiceMS, ar.TwiceMostMS = millis(proven), millis(most)
		res.Addresses = append(res.Addresses, ar)
	}
	res.fillTimes(entries, began)
	res.fillKeepalives(entries, began, ended)
	for _, e := range entries {
		if e.Kind == KindNote && e.Name == res.Fault && e.At >= began {
			res.Notes = append(res.Notes, e.Text)
		}
	}
}

// fillTimes finds when the node that was hit was first suspected, held dead,
// claimed for a fence, and verified to be off.
func (r *Result) fillTimes(entries []Entry, began cluster.Instant) {
	for _, e := range entries {
		if e.At < began || e.Node != r.Node && e.Kind != KindLease {
			continue
		}
		first := func(ms *float64) {
			if *ms < 0 {
				*ms = millis(e.At.Sub(began))
			}
		}
		switch {
		case e.Kind == KindView && e.By != string(r.Node):
			switch e.Text {
			case cluster.LiveDead.String():
				first(&r.DeadMS)
				first(&r.SuspectMS)
			case cluster.LiveSuspect.String(), cluster.LiveIsolated.String():
				first(&r.SuspectMS)
			}
		case e.Kind == KindLease && e.Node != "" && e.Node != r.Before:
			first(&r.TakenMS)
		case e.Kind == KindFence:
			first(&r.ClaimedMS)
			if verifiedOff(e) {
				first(&r.OffMS)
			}
			if e.Stage == cluster.FenceDone {
				first(&r.CleanMS)
			}
		}
	}
}

// fillKeepalives finds the longest time that a node went without a keepalive,
// and counts the fences that were begun.
func (r *Result) fillKeepalives(entries []Entry, began, ended cluster.Instant) {
	r.KeepaliveMS = -1
	last, fences := map[cluster.NodeID]Entry{}, map[string]bool{}
	for _, e := range entries {
		switch {
		case e.At > ended:
		case e.Kind == KindIncarnation:
			delete(last, e.Node) // another start: its silence is no lateness
		case e.Kind == KindFence && e.At >= began && e.Stage == cluster.FenceClaimed:
			fences[e.Name] = true
		case e.Kind == KindKeepalive && !e.Written.IsZero():
			if was, seen := last[e.Node]; seen && e.N > was.N && e.Written >= began {
				// Of some that were not seen one is at least the mean apart.
				r.KeepaliveMS = max(r.KeepaliveMS, millis(e.Written.Sub(was.Written)/time.Duration(e.N-was.N)))
			}
			last[e.Node] = e
		}
	}
	r.Fences = len(fences)
}

// Noise measures the resolution on a cluster at rest: the longest silence over
// the given time, of any address. A time in which the prober itself did not
// run is none; it is told beside each result.
func (s *Sandbox) Noise(ctx context.Context, over time.Duration) (time.Duration, error) {
	began := now()
	if err := pause(ctx, over); err != nil {
		return 0, err
	}
	return s.noise(began, now().Add(-settleRounds*probePeriod)), nil
}

// noise is the longest proven silence of any address in [from, to], at least
// two periods.
func (s *Sandbox) noise(from, to cluster.Instant) time.Duration {
	if _, end := s.prober.log.final(); end > 0 {
		to = min(to, s.prober.log.copy(end-1).at)
	}
	worst := 2 * probePeriod
	for i := range FloatingAddresses() {
		worst = max(worst, s.prober.log.window(i, from, to).Proven())
	}
	return worst
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
