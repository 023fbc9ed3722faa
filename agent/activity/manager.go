package activity

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

// Granter is this node's side of its own lease, as a remote order is checked
// against it. It answers at once.
type Granter interface {
	// Current returns whom this node serves at this instant; zero for nobody.
	Current() cluster.NodeLeaseID
	// SawEpoch makes it durable that an epoch was seen and returns
	// cluster.ErrStaleEpoch where a larger one was.
	SawEpoch(ctx context.Context, e cluster.Epoch) error
}

// Config is a manager's.
type Config struct {
	Self cluster.NodeID
	// Ladder is how an activity is ended; each rung's default is 1 s.
	Ladder subtask.Ladder
	// Granter is needed for orders of other nodes only.
	Granter Granter
	// Clock reads the instants that Extend, ExtendRole and Hold are given; nil
	// where none of them is called.
	Clock cluster.Clock
	// Tell is given each transition, in order. It must neither block nor call
	// what changes something here.
	Tell func(cluster.ActivityEvent)
	// Abandon is the last rung: something of the activity survives its stop, and
	// this process is to give up its roles and exit. It is called once an activity.
	Abandon func(cluster.Activity, *subtask.StragglerError)
}

// Waits of the manager.
const (
	// DomainWait is how long an activity waits at most for a domain.
	DomainWait = 15 * time.Second
	// DefaultTimeout is how long one waits for all its conditions unless told.
	DefaultTimeout = 15 * time.Second
	// cleanUpWait is how long a clean-up waits; it is in nobody's way.
	cleanUpWait = 10 * time.Minute
	defaultRung = time.Second
)

// Counts are a manager's counters since its start.
type Counts struct {
	Started    uint64
	Panics     uint64
	Killed     uint64 // child processes that a stop had to kill
	Stragglers uint64 // activities of which something survived their stop
	Refused    map[cluster.RefusalCode]uint64
	Ended      map[string]uint64 // by cluster.EndCode; "" by itself and well
}

// Manager admits activities, keeps them only while their conditions hold, and
// ends them. All methods may be called from several goroutines.
type Manager struct {
	c      Config
	ctx    context.Context // clean-ups' own
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // of those who end an activity, and of clean-ups

	telling sync.Mutex // held while events are told, so that they keep their order

	mu       sync.Mutex
	holdings Holdings
	ends     map[cluster.NodeID]cluster.Instant // of held leases, as far as told
	role     cluster.Instant                    // of the leadership; Never: not told
	granting cluster.NodeLeaseID                // whom this node serves or is about to
	served   cluster.NodeLeaseID                // the same, once what served another is dead
	grant    uint64                             // counts changes of granting
	rights   map[cluster.DeadlineOwner]*Right   // the newest of each owner; nil: none yet
	all      map[cluster.ActivityID]*Activity
	requests requests
	closed   bool
	counts   Counts
	untold   []cluster.ActivityEvent
	changed  chan struct{} // closed and renewed at each change that somebody may wait for
}

// New makes a manager that holds nothing and serves nobody yet.
func New(c Config) *Manager {
	if c.Ladder.Grace <= 0 {
		c.Ladder.Grace = defaultRung
	}
	if c.Ladder.Kill <= 0 {
		c.Ladder.Kill = defaultRung
	}
	m := &Manager{c: c, all: map[cluster.ActivityID]*Activity{}, ends: map[cluster.NodeID]cluster.Instant{}, changed: make(chan struct{}),
		holdings: Holdings{Self: c.Self},
		counts:   Counts{Refused: map[cluster.RefusalCode]uint64{}, Ended: map[string]uint64{}}}
	m.ctx, m.cancel = context.WithCancelCause(context.Background())
	return m
}

// Update tells what this node holds as a leader; the latest call counts. Every
// activity whose conditions hold no more has its stop begun, and its tokens are
// dead, when Update returns. Whoever lets a loss be seen waits for Settled first.
func (m *Manager) Update(h Holdings) {
	h.Held, h.Set, h.Self = slices.Clone(h.Held), slices.Clone(h.Set), m.c.Self
	held := make(map[cluster.NodeID]bool, len(h.Held))
	for _, n := range h.Held {
		held[n] = true
	}
	m.mu.Lock()
	lost := slices.DeleteFunc(m.holdings.Held, func(n cluster.NodeID) bool { return held[n] })
	m.holdings = h
	for _, n := range lost {
		delete(m.ends, n)
	}
	if !h.Leader {
		m.role = cluster.Never
		clear(m.ends)
	}
	m.endWhatDoesNotHold(lost)
	m.mu.Unlock()
	m.tell()
}

// Extend tells until when a node's lease is held. From then on it counts for no
// admission and no effect, whether Update has been called or not: a process that
// was stopped and goes on orders nothing by what it held before. It is cheap, one
// call a renewal. A node that it was never called for is held until Update says
// that it is not.
func (m *Manager) Extend(n cluster.NodeID, until cluster.Instant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends[n] = until
}

// ExtendRole tells until when this node leads, as Extend does of a lease.
func (m *Manager) ExtendRole(until cluster.Instant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.role = until
}

// now is what is held at this instant. mu is held.
func (m *Manager) now() Holdings {
	h := m.holdings
	if m.c.Clock == nil || len(m.ends) == 0 && m.role == cluster.Never {
		return h
	}
	now := m.c.Clock.Now()
	over := func(until cluster.Instant) bool { return until != cluster.Never && !now.Before(until) }
	h.Leader = h.Leader && !over(m.role)
	h.Held = slices.DeleteFunc(slices.Clone(h.Held), func(n cluster.NodeID) bool { return over(m.ends[n]) })
	return h
}

// endWhatDoesNotHold looks at every activity anew. mu is held.
func (m *Manager) endWhatDoesNotHold(lost []cluster.NodeID) {
	for _, a := range m.all {
		if a.state != cluster.ActivityRunning && a.state != cluster.ActivityEnding {
			continue
		}
		if cause := holds(a.asked(), situation{holdings: m.holdings, granted: m.granting}, lost); cause != nil {
			m.lose(a, cause)
		}
	}
	m.wake()
}

// lose ends an activity for a loss. One that is being ended already is waited
// for as well: a loss is seen by nobody before it is dead. mu is held.
func (m *Manager) lose(a *Activity, cause error) {
	a.loss = true
	m.end(a, cause)
}

// Settled waits until everything that was ended for a loss is dead. The error
// names what is still there when ctx ends.
func (m *Manager) Settled(ctx context.Context) error {
	return m.until(ctx, "a loss", func(a *Activity) bool { return a.loss })
}

// EndLeader ends all that a leader's quorum carries, whatever it holds, and
// waits until that is dead: the quorum set was changed by somebody else, say.
func (m *Manager) EndLeader(ctx context.Context, cause error) error {
	m.mu.Lock()
	for _, a := range m.all {
		if !isFollower(a.quorum) && (a.state == cluster.ActivityRunning || a.state == cluster.ActivityEnding) {
			m.lose(a, cause)
		}
	}
	m.mu.Unlock()
	m.tell()
	return m.Settled(ctx)
}

// until waits until no activity is left that meets the condition.
func (m *Manager) until(ctx context.Context, what string, left func(*Activity) bool) error {
	for {
		m.mu.Lock()
		var names []string
		for _, a := range m.all {
			if left(a) {
				names = append(names, fmt.Sprintf("%s (%s)", a.spec.Name, a.id))
			}
		}
		changed := m.changed
		m.mu.Unlock()
		if len(names) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			slices.Sort(names)
			return fmt.Errorf("wait for the end of what %s ends: still there: %s: %w", what, strings.Join(names, ", "), context.Cause(ctx))
		}
	}
}

// wake lets all who wait look again. mu is held.
func (m *Manager) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Close admits nothing any more, ends everything and waits until it is dead. The
// error names what is still there when ctx ends.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	for _, a := range m.all {
		m.end(a, cluster.ErrAgentEnds)
	}
	m.mu.Unlock()
	m.tell()
	m.cancel(cluster.ErrAgentEnds)
	if err := m.until(ctx, "the daemon's end", func(*Activity) bool { return true }); err != nil {
		return err
	}
	m.wg.Wait() // of them only their last steps are left, which wait for nothing
	return nil
}
