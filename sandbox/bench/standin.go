package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// witness sees what every stand-in guard holds.
type witness struct {
	mu      sync.Mutex
	holding map[cluster.NodeID]cluster.Epoch
	epoch   cluster.Epoch
	broken  []string // invariants, in words
	winners []winner
	changed chan struct{} // closed and replaced with each change
}

// winner is a node that began to serve.
type winner struct {
	node  cluster.NodeID
	epoch cluster.Epoch
	at    cluster.Instant
}

func newWitness() *witness {
	return &witness{holding: map[cluster.NodeID]cluster.Epoch{}, changed: make(chan struct{})}
}

func (w *witness) holds(n cluster.NodeID, e cluster.Epoch, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { close(w.changed); w.changed = make(chan struct{}) }()
	if !on {
		delete(w.holding, n)
		return
	}
	if w.holding[n] == e {
		return
	}
	w.holding[n] = e
	if len(w.holding) > 1 {
		w.broken = append(w.broken, fmt.Sprintf("%v serve at once", w.holding))
	}
	if e < w.epoch {
		w.broken = append(w.broken, fmt.Sprintf("%s serves at epoch %d after %d", n, e, w.epoch))
	}
	w.epoch = max(w.epoch, e)
	w.winners = append(w.winners, winner{n, e, now()})
}

// since returns those who began after the first n.
func (w *witness) since(n int) []winner {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]winner(nil), w.winners[n:]...)
}

func (w *witness) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.winners)
}

func (w *witness) verdict() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.broken...)
}

// wait returns the first that began after the first n.
func (w *witness) wait(ctx context.Context, n int) (winner, error) {
	for {
		w.mu.Lock()
		changed := w.changed
		if len(w.winners) > n {
			defer w.mu.Unlock()
			return w.winners[n], nil
		}
		w.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return winner{}, ctx.Err()
		}
	}
}

// standIn is a guard without effects: it keeps deadlines and epochs as the
// real one does and tells the witness.
type standIn struct {
	node   cluster.NodeID
	clock  cluster.Clock
	seen   *witness
	events chan cluster.GuardEvent

	mu    sync.Mutex
	role  cluster.RoleDeadline
	live  bool
	max   cluster.Epoch
	timer *time.Timer
}

func newStandIn(n cluster.NodeID, clock cluster.Clock, w *witness) *standIn {
	return &standIn{node: n, clock: clock, seen: w, events: make(chan cluster.GuardEvent, 16)}
}

// State implements agent.Guard.
func (g *standIn) State(context.Context) (cluster.GuardState, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := cluster.GuardState{MaxEpoch: g.max, Gate: true}
	if g.live {
		st.Deadlines = append(st.Deadlines, g.role)
	}
	return st, nil
}

// Begin implements agent.Guard.
func (g *standIn) Begin(_ context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if d.Owner != cluster.OwnerPrimary {
		return nil
	}
	if err := t.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case d.Epoch < g.max:
		return cluster.ErrStaleEpoch
	case g.clock.Now() >= d.Deadline:
		return cluster.ErrDeadline
	}
	g.role, g.live, g.max = d, true, d.Epoch
	g.arm()
	return nil
}

// arm sets the timer to the deadline. The caller holds mu.
func (g *standIn) arm() {
	if g.timer != nil {
		g.timer.Stop()
	}
	g.timer = time.AfterFunc(g.role.Deadline.Sub(g.clock.Now()), func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.clock.Now() >= g.role.Deadline {
			g.drop("its deadline has passed")
		}
	})
}

// drop ends the role. The caller holds mu.
func (g *standIn) drop(why string) {
	if !g.live {
		return
	}
	g.live = false
	g.seen.holds(g.node, g.role.Epoch, false)
	select {
	case g.events <- cluster.GuardEvent{Kind: "ended", Owner: cluster.OwnerPrimary, Epoch: g.role.Epoch, Text: why}:
	default:
	}
}

// vanish is the power cut of the guard's host.
func (g *standIn) vanish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop("the host lost its power")
}

// Extend implements agent.Guard.
func (g *standIn) Extend(_ context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if d.Owner != cluster.OwnerPrimary {
		return nil
	}
	if err := t.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case d.Epoch < g.max:
		return cluster.ErrStaleEpoch
	case !g.live || d.Epoch != g.role.Epoch:
		return cluster.ErrDeadline
	}
	g.role = d
	g.arm()
	return nil
}

// Present implements agent.Guard.
func (g *standIn) Present(_ context.Context, t cluster.Token, e cluster.Epoch, _ []cluster.FloatingAddress) error {
	if err := t.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.live || g.role.Epoch != e || g.clock.Now() >= g.role.Deadline {
		return cluster.ErrDeadline
	}
	g.seen.holds(g.node, e, true)
	return nil
}

// Withdraw implements agent.Guard.
func (g *standIn) Withdraw(_ context.Context, e cluster.Epoch) error {
	g.seen.holds(g.node, e, false)
	return nil
}

// StartService implements agent.Guard.
func (g *standIn) StartService(context.Context, cluster.Token, cluster.DeadlineOwner, cluster.Epoch, cluster.ServiceSpec) error {
	return nil
}

// StopService implements agent.Guard.
func (g *standIn) StopService(context.Context, cluster.Token, cluster.DeadlineOwner, cluster.Epoch, string) error {
	return nil
}

// End implements agent.Guard.
func (g *standIn) End(_ context.Context, o cluster.DeadlineOwner, e cluster.Epoch) error {
	if o != cluster.OwnerPrimary {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.role.Epoch <= e {
		g.live = false
		g.seen.holds(g.node, e, false)
	}
	return nil
}

// Preflight implements agent.Guard.
func (g *standIn) Preflight(context.Context, cluster.PreflightRequest) (cluster.PreflightResult, error) {
	return cluster.PreflightResult{}, nil
}

// Events implements agent.Guard.
func (g *standIn) Events() <-chan cluster.GuardEvent { return g.events }

// quiet is whoever else an agent talks to.
type quiet struct{}

// Ready implements agent.Notifier.
func (quiet) Ready() {}

// Stopping implements agent.Notifier.
func (quiet) Stopping() {}

// Status implements agent.Notifier.
func (quiet) Status(string) {}

// Sweep implements agent.Sweeper.
func (quiet) Sweep(context.Context) error { return nil }
