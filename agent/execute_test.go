package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// dawdler is a guard's client whose orders stand at its door until they are let
// in: it asks the token then, as the real one does right before it sends.
type dawdler struct {
	recordingGuard
	atDoor chan string
	letIn  chan struct{}
}

func (g *dawdler) order(name string, t cluster.Token) error {
	g.atDoor <- name
	<-g.letIn
	return t.Check()
}

func (g *dawdler) Present(_ context.Context, t cluster.Token, _ cluster.Epoch, _ []cluster.FloatingAddress) error {
	return g.order("present", t)
}

func (g *dawdler) StartService(_ context.Context, t cluster.Token, _ cluster.DeadlineOwner, _ cluster.Epoch, s cluster.ServiceSpec) error {
	return g.order("start "+s.Name, t)
}

func (g *dawdler) StopService(_ context.Context, t cluster.Token, _ cluster.DeadlineOwner, _ cluster.Epoch, name string) error {
	return g.order("stop "+name, t)
}

// What a role orders is looked at when it is sent: an order whose goroutine comes
// late finds the role's end, its deadline, or the next epoch (I2, I3).
func TestALateOrderOfARoleIsNotSent(t *testing.T) {
	const epoch = 5
	at := func(until cluster.Instant) cluster.RoleDeadline {
		return cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: until}
	}
	raise := role.Effect{ID: 1, Raise: &role.Raise{Deadline: at(100)}}
	start := role.Effect{ID: 2, Start: &role.Services{Epoch: epoch, Timeout: time.Minute}}
	stop := role.Effect{ID: 2, Stop: &role.Services{Epoch: epoch, Timeout: time.Minute}}
	end := at(100)
	sooner := at(40)
	for name, c := range map[string]struct {
		then      []role.Effect // after the raise, whose order waits at the door where there is none
		door      string
		meanwhile func(x *executor, clock *handClock)
		want      error // nil: it is sent
	}{
		"addresses":                 {nil, "present", func(*executor, *handClock) {}, nil},
		"addresses, after the end":  {nil, "present", func(x *executor, _ *handClock) { x.do(t.Context(), role.Effect{End: &end}) }, errRoleEnded},
		"addresses, too late":       {nil, "present", func(_ *executor, clock *handClock) { clock.now = 100 }, cluster.ErrDeadline},
		"addresses, time cut short": {nil, "present", func(x *executor, clock *handClock) { clock.now = 50; x.do(t.Context(), role.Effect{Extend: &sooner}) }, cluster.ErrDeadline},
		"a start":                   {[]role.Effect{start}, "start dns", func(*executor, *handClock) {}, nil},
		"a start, after the end":    {[]role.Effect{start}, "start dns", func(x *executor, _ *handClock) { x.do(t.Context(), role.Effect{End: &end}) }, errRoleEnded},
		"a start, too late":         {[]role.Effect{start}, "start dns", func(_ *executor, clock *handClock) { clock.now = 100 }, cluster.ErrDeadline},
		"a stop, after the end":     {[]role.Effect{stop}, "stop dns", func(x *executor, _ *handClock) { x.do(t.Context(), role.Effect{End: &end}) }, errRoleEnded},
		"a start, in the next epoch": {[]role.Effect{start}, "start dns", func(x *executor, _ *handClock) {
			x.rights.Hold(t.Context(), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch + 1, Deadline: 900})
		}, cluster.ErrStaleEpoch},
	} {
		t.Run(name, func(t *testing.T) {
			clock, steps := &handClock{}, make(chan role.StepDone, 8)
			g := &dawdler{atDoor: make(chan string), letIn: make(chan struct{})}
			x := newExecutor(Config{Timing: cluster.ProfileLAN(), Services: []cluster.ServiceSpec{{Name: "dns"}}}, Deps{Guard: g, Store: &oneStore{}, Clock: clock, Log: zap.NewNop()},
				func(e role.Event) {
					if e.Step != nil && e.Step.ID != 0 {
						steps <- *e.Step
					}
				})
			x.rights = activity.New(activity.Config{Self: "hv1", Clock: clock})
			x.sweeper = noSweep{}
			x.nodeDeadline = func(context.Context) (cluster.RoleDeadline, error) {
				return cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: nodeEpoch, Deadline: 1000}, nil
			}
			x.do(t.Context(), raise)
			if len(c.then) > 0 {
				<-g.atDoor
				g.letIn <- struct{}{}
				if s := <-steps; s.Err != nil {
					t.Fatal(s.Err)
				}
			}
			for _, e := range c.then {
				x.do(t.Context(), e)
			}
			if name := <-g.atDoor; name != c.door {
				t.Fatalf("%s is at the door, want %s", name, c.door)
			}
			c.meanwhile(x, clock)
			g.letIn <- struct{}{}
			switch s := <-steps; {
			case c.want == nil && s.Err != nil, c.want != nil && !errors.Is(s.Err, c.want):
				t.Errorf("%v, want %v", s.Err, c.want)
			}
			x.wait()
		})
	}
}

// A daemon that begins nothing has no right to anything of the role's.
func TestWithoutARaiseNothingIsOrdered(t *testing.T) {
	x := newExecutor(Config{Timing: cluster.ProfileLAN()}, Deps{Guard: &recordingGuard{}, Store: &oneStore{}, Clock: &handClock{}, Log: zap.NewNop()}, func(role.Event) {})
	if err := x.token().Check(); !errors.Is(err, cluster.ErrNoToken) {
		t.Errorf("%v", err)
	}
}
