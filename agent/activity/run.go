package activity

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

// Spec is what is to run, and when it may.
type Spec struct {
	Name string // of the kind, a word: "failover", "drain"
	// Domain is the root's; empty means cluster.DomainCluster, or the parent's.
	Domain cluster.ActivityDomain
	Quorum cluster.Quorum
	// Timeout is how long it waits for its conditions; zero means DefaultTimeout,
	// less than zero not at all. For the domain nobody waits longer than DomainWait.
	Timeout time.Duration
	// Unsafe skips the quorum, and only that, and waits for nothing. It is never
	// the default; children inherit it.
	Unsafe  bool
	Urgency Urgency
	// Quiet: it runs all the time and mostly does nothing, so that it is told of only
	// where it lasts or fails. Children are not quiet by that.
	Quiet bool
	// Retry: it does again what has failed before, and the history knows why: it is
	// listed, and not told. So are its children.
	Retry bool
}

// Body is what an activity does. It heeds its context, whose cause says why it
// is ended, and runs whatever may block in child processes (Activity.Start).
type Body func(ctx context.Context, a *Activity) error

// Activity is one run of an activity, as its body has it.
type Activity struct {
	m       *Manager
	id      cluster.ActivityID
	spec    Spec
	parent  *Activity          // nil for a root, and for one of another node
	above   cluster.ActivityID // the parent's, of another node too
	root    cluster.ActivityID // whose the domain is
	child   bool               // lease is its token's, from the beginning
	patient bool               // it waits for the domain as long as for all else
	ctx     context.Context    // of who runs it

	over  chan struct{} // closed when nothing of it is left
	stuck chan struct{} // closed when something of it survives its stop

	// m.mu guards what follows.
	state    cluster.ActivityState
	since    time.Time
	waits    *cluster.Refusal
	quorum   cluster.Quorum
	lease    cluster.NodeLeaseID
	tasks    *subtask.Registry // nil until it runs
	kept     bool              // a failover that waits with precedence
	loss     bool              // it is ended for a loss
	cause    error             // why it is ended, errFinished by itself; nil before
	result   error             // the body's
	survived error             // a *subtask.StragglerError
	cleanUps []cleanUp
}

// maxName bounds an activity's name, in bytes.
const maxName = 96

// errFinished is the cause that its subtasks are ended with once a body returned.
var errFinished = errors.New("the activity has ended")

// cleanUp is what is left to do once an activity is dead.
type cleanUp struct {
	name string
	body Body
}

// Run runs an activity: it waits until its conditions hold, runs the body, and
// returns when nothing of it is left. The error is a *cluster.RefusedActivity if
// the body never ran; what EndCode names if it was ended; else the body's own, a
// panic included. A *subtask.StragglerError within says that something of it
// survives: its domain stays taken then, and Config.Abandon was called.
func (m *Manager) Run(ctx context.Context, s Spec, body Body) error {
	return m.run(&Activity{spec: s, ctx: ctx}, body)
}

// Run runs a nested activity, of the same domain unless it names another, under
// a quorum of its own. It ends with its parent at the latest.
func (a *Activity) Run(ctx context.Context, s Spec, body Body) error {
	if s.Domain == "" {
		s.Domain = a.spec.Domain
	}
	s.Unsafe, s.Retry = s.Unsafe || a.spec.Unsafe, s.Retry || a.spec.Retry
	return a.m.run(&Activity{spec: s, ctx: ctx, parent: a, above: a.id, root: a.root, child: true, lease: a.lease}, body)
}

func (m *Manager) run(a *Activity, body Body) error {
	if err := m.enlist(a); err != nil {
		return err
	}
	if err := m.admit(a); err != nil {
		return err
	}
	// Also ends a nested one whose parent's stop has begun.
	defer context.AfterFunc(a.tasks.Context(), func() {
		m.mu.Lock()
		m.end(a, context.Cause(a.tasks.Context()))
		m.mu.Unlock()
		m.tell()
	})()
	if err := a.tasks.Go("body", func(ctx context.Context) error {
		m.returned(a, call(ctx, a, body))
		return nil
	}); err != nil {
		m.returned(a, err) // it is being ended already
	}
	select {
	case <-a.over:
	case <-a.stuck:
	}
	m.tell() // its end is in the history before its caller knows
	m.mu.Lock()
	defer m.mu.Unlock()
	return a.outcome()
}

// call runs a body and makes an error of whatever it does instead of returning.
func call(ctx context.Context, a *Activity, body Body) (err error) {
	err = errors.New("it ended its goroutine instead of returning")
	defer func() {
		if p := recover(); p != nil {
			err = &subtask.PanicError{Value: p, Stack: string(debug.Stack())}
			a.m.mu.Lock()
			a.m.counts.Panics++
			a.m.mu.Unlock()
		}
	}()
	return body(ctx, a)
}

// returned notes a body's result. A stop that came before it is its cause, one
// that comes after it finds it ended by itself (R3). One that failed after its
// context had ended has heeded that, whoever is first to say so here.
func (m *Manager) returned(a *Activity, err error) {
	cause := errFinished
	if ctx := a.tasks.Context(); err != nil && ctx.Err() != nil {
		cause = context.Cause(ctx)
	}
	m.mu.Lock()
	a.result = err
	m.end(a, cause)
	m.mu.Unlock()
	m.tell()
}

// outcome is what Run returns. mu is held.
func (a *Activity) outcome() error {
	switch own := a.result; {
	case errors.Is(a.cause, errFinished):
		return errors.Join(own, a.survived)
	case own == nil || errors.Is(own, a.cause) || errors.Is(own, context.Canceled) || errors.Is(own, subtask.ErrStopped):
		return errors.Join(fmt.Errorf("activity %s (%s) was ended: %w", a.spec.Name, a.id, a.cause), a.survived)
	default:
		return errors.Join(fmt.Errorf("activity %s (%s) was ended: %w; it says: %w", a.spec.Name, a.id, a.cause, own), a.survived)
	}
}

// enlist enters an activity that is to wait, or says why it never could run.
func (m *Manager) enlist(a *Activity) error {
	a.m, a.quorum, a.over, a.stuck = m, a.spec.Quorum, make(chan struct{}), make(chan struct{})
	a.id = cluster.ActivityID(a.spec.Name + "-" + strings.ToLower(rand.Text()[:10]))
	if a.root == "" {
		a.root = a.id
	}
	if a.spec.Domain == "" {
		a.spec.Domain = cluster.DomainCluster
	}
	m.mu.Lock()
	m.all[a.id] = a
	m.enter(a, cluster.ActivityWaiting)
	refusal := malformed(a.quorum)
	if len(a.spec.Name) == 0 || len(a.spec.Name) > maxName {
		refusal = refuse(cluster.RefuseActivitySpec, "its name has %d bytes, not 1–%d", len(a.spec.Name), maxName)
	}
	m.mu.Unlock()
	m.tell()
	if refusal != nil {
		return m.refuse(a, refusal)
	}
	return nil
}

// asked is what the conditions are checked for. mu is held.
func (a *Activity) asked() asked {
	return asked{quorum: a.quorum, domain: a.spec.Domain, root: a.root, lease: a.lease, child: a.child, unsafe: a.spec.Unsafe, urgency: a.spec.Urgency}
}

// ID names this run.
func (a *Activity) ID() cluster.ActivityID { return a.id }

// Go runs fn in a goroutine that the activity's end waits for. What it returns is
// lost; one that panics ends the activity.
func (a *Activity) Go(name string, fn func(context.Context) error) error {
	return a.tasks.Go(name, func(ctx context.Context) error {
		err := call(ctx, a, func(ctx context.Context, _ *Activity) error { return fn(ctx) })
		var p *subtask.PanicError
		if errors.As(err, &p) {
			a.m.mu.Lock()
			a.m.end(a, fmt.Errorf("%s: %w", name, err))
			a.m.mu.Unlock()
			a.m.tell()
		}
		return err
	})
}

// Start runs a child process that is the activity's before it begins, and is
// killed with it (subtask.Registry.Start).
func (a *Activity) Start(name string, start func() (subtask.Child, error)) error {
	return a.tasks.Start(name, start)
}

// Group makes a registry within the activity's, for subtasks that succeed or
// end together.
func (a *Activity) Group(ctx context.Context, name string, o subtask.Options) *subtask.Registry {
	return a.tasks.Sub(ctx, name, o)
}

// CleanUp has something done once the activity is dead, however it ended: what
// safety does not need and nobody should wait for. It runs as an activity of its
// own, of the same domain and quorum, which comes after whatever is more urgent.
func (a *Activity) CleanUp(name string, body Body) {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	a.cleanUps = append(a.cleanUps, cleanUp{name, body})
}

// Token is the right to the activity's effects: alive while the activity, and
// all above it, run and are not being ended.
func (a *Activity) Token() cluster.Token {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	return cluster.MintToken(cluster.NewTokenWire(a.lease, a.id, a.root, a.spec.Unsafe), a.live)
}

// live returns nil at an instant at which the activity may have effects.
func (a *Activity) live() error {
	if g := a.m.c.Granter; g != nil && isFollower(a.spec.Quorum) {
		if current := g.Current(); current != a.leaseNow() {
			return fmt.Errorf("%w: this node serves %s", cluster.ErrNodeLeaseLost, current)
		}
	}
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	at := situation{holdings: a.m.now(), granted: a.m.granting}
	for x := a; x != nil; x = x.parent {
		if x.state != cluster.ActivityRunning {
			return fmt.Errorf("it is %s: %w", x.state, x.cause)
		}
		if ctx := x.tasks.Context(); ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := holds(x.asked(), at, nil); err != nil {
			return err
		}
	}
	return nil
}

func (a *Activity) leaseNow() cluster.NodeLeaseID {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	return a.lease
}

// Switch puts the activity under another quorum of the same kind, once that
// holds. Until then, and if it does not within the timeout, the old one counts.
// An unsafe activity stays so.
func (a *Activity) Switch(ctx context.Context, q cluster.Quorum, timeout time.Duration) error {
	if r := malformed(q); r != nil {
		return &cluster.RefusedActivity{Name: a.spec.Name, Refusal: *r}
	}
	if isFollower(q) != isFollower(a.spec.Quorum) {
		return &cluster.RefusedActivity{Name: a.spec.Name, Refusal: *refuse(cluster.RefuseActivitySpec,
			"its quorum cannot change from %q to %q: work for a leader stays that", a.spec.Quorum, q)}
	}
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	for last := a.spec.Unsafe || timeout <= 0; ; {
		refusal, changed := a.trySwitch(q)
		if refusal == nil {
			a.m.tell()
			return nil
		}
		if last || final(refusal) {
			return &cluster.RefusedActivity{Name: a.spec.Name, Refusal: *refusal}
		}
		select {
		case <-changed:
		case <-limit.C:
			last = true
		case <-ctx.Done():
			last = true
		}
	}
}

func (a *Activity) trySwitch(q cluster.Quorum) (*cluster.Refusal, chan struct{}) {
	m := a.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.state != cluster.ActivityRunning {
		return refuse(cluster.RefuseEnding, "it is %s: %v", a.state, a.cause), nil
	}
	want := a.asked()
	want.quorum, want.child = q, true
	refusal := checkSwitch(want, situation{holdings: m.now(), granted: m.served})
	if refusal == nil {
		a.quorum = q
		m.enter(a, cluster.ActivityRunning)
	}
	return refusal, m.changed
}
