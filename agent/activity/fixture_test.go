package activity

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

var (
	leaseA = cluster.NodeLeaseID{Holder: "a", Start: "s1", Epoch: 7}
	leaseB = cluster.NodeLeaseID{Holder: "b", Start: "s2", Epoch: 8}
	five   = []cluster.NodeID{"a", "b", "c", "d", "e"}
)

// bench is one node's manager in a bubble, with all that it told.
type bench struct {
	*Manager
	t         *testing.T
	mu        sync.Mutex // guards told
	told      []cluster.ActivityEvent
	abandoned []cluster.Activity
	granter   *granter
	clock     *clock
}

// clock goes as it is told.
type clock struct{ now cluster.Instant }

func (c *clock) Now() cluster.Instant { return c.now }

// granter serves whom it is told, and remembers epochs.
type granter struct {
	current cluster.NodeLeaseID
	seen    cluster.Epoch
	broken  error
}

func (g *granter) Current() cluster.NodeLeaseID { return g.current }
func (g *granter) SawEpoch(_ context.Context, e cluster.Epoch) error {
	if e < g.seen {
		return cluster.ErrStaleEpoch
	}
	if g.broken == nil {
		g.seen = e
	}
	return g.broken
}

// inBubble runs a test on virtual time; everything is dead at its end.
func inBubble(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, granter: &granter{}, clock: &clock{now: 100}}
		b.Manager = New(Config{Self: "a", Granter: b.granter, Clock: b.clock,
			Tell:    func(e cluster.ActivityEvent) { b.mu.Lock(); b.told = append(b.told, e); b.mu.Unlock() },
			Abandon: func(a cluster.Activity, _ *subtask.StragglerError) { b.abandoned = append(b.abandoned, a) }})
		test(t, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Error(err)
		}
		if left := b.List(); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

// leads has the node lead with these leases held.
func (b *bench) leads(held ...cluster.NodeID) {
	b.Update(Holdings{Leader: true, Lease: leaseA, Held: held, Set: five})
}

// serves has the node serve a leader.
func (b *bench) serves(id cluster.NodeLeaseID) {
	b.t.Helper()
	b.granter.current = id
	if err := b.Follower(b.t.Context(), id); err != nil {
		b.t.Fatal(err)
	}
}

// running is an activity whose Run goes on in a goroutine.
type running struct {
	a    *Activity // once its body has begun
	done chan struct{}
	err  error
	at   time.Time // when Run returned
}

// runs starts an activity whose body heeds its context, or does what it is told.
func (b *bench) runs(s Spec, bodies ...Body) *running {
	b.t.Helper()
	r := &running{done: make(chan struct{})}
	body := Body(func(ctx context.Context, _ *Activity) error { <-ctx.Done(); return context.Cause(ctx) })
	if len(bodies) > 0 {
		body = bodies[0]
	}
	go func() {
		defer close(r.done)
		r.err = b.Run(b.t.Context(), s, func(ctx context.Context, a *Activity) error { r.a = a; return body(ctx, a) })
		r.at = time.Now()
	}()
	synctest.Wait()
	return r
}

// isOver reports whether Run has returned.
func (r *running) isOver() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func ordinary(q cluster.Quorum) Spec { return Spec{Name: "rebalance", Quorum: q} }
func failover() Spec {
	return Spec{Name: "failover", Quorum: cluster.Majority(), Urgency: Failover}
}

// code is the refusal's, "" for none.
func code(err error) cluster.RefusalCode {
	var r *cluster.RefusedActivity
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

func lostNodes(err error) []cluster.NodeID {
	var q *cluster.QuorumLost
	if errors.As(err, &q) {
		return q.Nodes
	}
	return nil
}

// child is a process that ignores its stop; it dies a moment after it is killed,
// never when that is negative.
type child struct {
	dies   time.Duration
	once   sync.Once
	killed time.Time
	done   chan struct{}
}

func newChild(dies time.Duration) *child { return &child{dies: dies, done: make(chan struct{})} }

func (c *child) Done() <-chan struct{} { return c.done }
func (c *child) Kill() {
	c.once.Do(func() {
		c.killed = time.Now()
		if c.dies >= 0 {
			time.AfterFunc(c.dies, func() { close(c.done) })
		}
	})
}
func (c *child) Stop(ctx context.Context, _ time.Duration) error {
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
	}
	c.Kill()
	select {
	case <-c.done:
		return nil
	case <-time.After(time.Second):
		return errors.New("survives")
	}
}

// withChild is a body that sits in a child process which ignores its stop.
func withChild(c *child) Body {
	return func(_ context.Context, a *Activity) error {
		err := a.Start("rsync", func() (subtask.Child, error) { return c, nil })
		<-c.done // as one that waits for its program does, whatever its context
		return err
	}
}

// states lists what was told of the activities of a name, in order.
func (b *bench) states(name string) []cluster.ActivityState {
	b.mu.Lock()
	defer b.mu.Unlock()
	var states []cluster.ActivityState
	for _, e := range b.told {
		if e.Activity.Name == name {
			states = append(states, e.Activity.State)
		}
	}
	return slices.Clip(states)
}
