package agent_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"pvc.internal/agent"
	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// rung is a node whose last rung is watched: what the guard is asked, and when the
// process would be gone.
type rung struct {
	agent.Guard
	held func() bool // the role's effects

	hangs    chan struct{} // non-nil: the guard answers nothing until it is closed
	refuses  bool          // an earlier program's guard
	mu       sync.Mutex
	asked    time.Time
	within   time.Duration
	exits    []time.Time
	effects  bool // at the first exit
	released chan struct{}
}

// of takes the place of the node's guard, within the bubble.
func (r *rung) of(d *agent.Deps) {
	r.Guard, r.released = d.Guard, make(chan struct{})
	d.Guard, d.Exit = r, r.exit
}

// EndCaller implements agent.Executioner.
func (r *rung) EndCaller(ctx context.Context, within time.Duration) error {
	r.mu.Lock()
	r.asked, r.within = time.Now(), within
	r.mu.Unlock()
	if r.refuses {
		return cluster.ErrRefused
	}
	if r.hangs != nil {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return nil
}

func (r *rung) End(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch) error {
	if r.hangs != nil {
		select {
		case <-r.hangs:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return r.Guard.End(ctx, o, e)
}

func (r *rung) exit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.exits) == 0 {
		r.effects = r.held()
		close(r.released)
	}
	r.exits = append(r.exits, time.Now())
}

// gate is a log that blocks while it is shut, as one whose reader hangs.
type gate struct {
	mu   sync.Mutex
	shut chan struct{} // nil: open
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut != nil {
		<-shut
	}
	return len(p), nil
}

// stuck runs the primary's activity of which a goroutine heeds nothing, has an
// operator stop it, and returns when the ladder's last rung is reached.
func (b *bubble) stuck(n cluster.NodeID, free chan struct{}) {
	m := b.nodes[n].agent.Activities()
	begun := make(chan cluster.ActivityID, 1)
	go func() {
		_ = m.Run(context.Background(), activity.Spec{Name: "storage", Quorum: cluster.All(n)}, func(_ context.Context, a *activity.Activity) error {
			begun <- a.ID()
			<-free
			return nil
		})
	}()
	_, err := m.Stop(context.Background(), <-begun, "ann", "it hangs")
	if err == nil {
		b.t.Error("what heeds nothing was stopped")
	}
}

// What cannot be ended ends the daemon: the role's effects first, and the process
// within a second whatever hangs in it or beside it. The next start goes on.
func TestWhatCannotBeEndedEndsTheDaemon(t *testing.T) {
	for name, c := range map[string]struct {
		guardHangs, guardRefuses, logHangs bool
		lasts                              time.Duration
	}{
		"all else is well":     {lasts: 500 * time.Millisecond},
		"an earlier guard":     {guardRefuses: true, lasts: 500 * time.Millisecond},
		"the guard hangs, too": {guardHangs: true, lasts: time.Second},
		"the log hangs, too":   {logHangs: true, lasts: 500 * time.Millisecond},
		"all hangs":            {guardHangs: true, logHangs: true, lasts: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			log, r := &gate{}, &rung{refuses: c.guardRefuses}
			inBubble(t, bubbleOptions{names: []cluster.NodeID{"hv1", "hv2", "hv3"}, tune: func(config *agent.Config, d *agent.Deps) {
				if config.Node != "hv1" || r.Guard != nil {
					return
				}
				r.of(d)
				d.Log = zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(log), zapcore.InfoLevel))
			}}, func(b *bubble) {
				r.held = func() bool { g := b.guards["hv1"]; g.mu.Lock(); defer g.mu.Unlock(); return g.addresses }
				b.elect("hv1")
				hang, free := make(chan struct{}), make(chan struct{})
				if c.guardHangs {
					r.hangs = hang
				}
				if c.logHangs {
					log.mu.Lock()
					log.shut = hang
					log.mu.Unlock()
				}
				b.stuck("hv1", free)
				began := time.Now()
				<-r.released
				r.mu.Lock()
				lasted := r.exits[0].Sub(began)
				if lasted > c.lasts {
					t.Errorf("gone %v after nothing helped any more, want %v at most", lasted, c.lasts)
				}
				if r.asked.Before(began.Add(-time.Second)) || r.within != time.Second {
					t.Errorf("the guard was asked at %v to kill it within %v", r.asked, r.within)
				}
				if r.effects && !c.guardHangs {
					t.Error("the role's effects outlived the process")
				}
				r.mu.Unlock()
				b.kill("hv1") // as the exit does
				close(hang)
				close(free)
				<-b.nodes["hv1"].done
				if err := b.nodes["hv1"].err; !errors.Is(err, agent.ErrAbandoned) {
					t.Errorf("it ended with %v", err)
				}
				b.start("hv1")
				b.settles(time.Minute) // the cluster goes on
			})
		})
	}
}

// A daemon that ends in order writes its last word though something survives; its
// process goes then, and not before.
func TestWhatCannotBeEndedDoesNotSpoilAnOrderlyEnd(t *testing.T) {
	r := &rung{}
	inBubble(t, bubbleOptions{names: []cluster.NodeID{"hv1", "hv2", "hv3"}, tune: func(config *agent.Config, d *agent.Deps) {
		if config.Node == "hv1" {
			r.of(d)
		}
	}}, func(b *bubble) {
		r.held = func() bool { return false }
		b.elect("hv1")
		m := b.nodes["hv1"].agent.Activities()
		begun, free := make(chan struct{}), make(chan struct{})
		go func() {
			_ = m.Run(context.Background(), activity.Spec{Name: "storage", Quorum: cluster.All("hv1")}, func(context.Context, *activity.Activity) error {
				close(begun)
				<-free
				return nil
			})
		}()
		<-begun
		b.nodes["hv1"].stop()
		<-r.released
		if state := b.read("/nodes/hv1/daemonstate"); state != string(cluster.DaemonStop) {
			t.Errorf("the last word is %q", state)
		}
		close(free)
		<-b.nodes["hv1"].done
		if err := b.nodes["hv1"].err; err != nil {
			t.Errorf("it ended with %v", err)
		}
	})
}
