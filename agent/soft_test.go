package agent

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// The role is ended once, however often it is asked for, and nothing is called
// stopped before the guard has verified it. A role of a later epoch is not the
// asker's to end, nor is one after a later epoch has been seen.
func TestWhatASoftStopEnds(t *testing.T) {
	o, clock := newGiver(t)
	guard := &recordingGuard{}
	o.c.WallMS = func() int64 { return 0 }
	o.dec.exec = newExecutor(o.c, Deps{Store: &oneStore{}, Clock: clock, Log: o.log}, func(role.Event) {})
	o.dec.exec.guard, o.dec.exec.sweeper = guard, noSweep{}
	o.peers = nil // nobody to ask
	o.see()
	s := &softStop{c: o.c, d: Deps{Log: o.log}, dec: o.dec}
	stop := func(epoch cluster.Epoch) (bool, error) {
		return s.stop(t.Context(), "hv1", softQuestion{Fence: "f1", Node: "hv2", Incarnation: "hv2.1", Epoch: epoch})
	}

	o.dec.state.Mode = role.Contending
	if stopped, err := stop(5); !stopped || err != nil {
		t.Errorf("nothing is here: %v, %v", stopped, err)
	}
	o.dec.state.Mode = role.Relinquish // any in which the role is held and nothing is asked for
	if stopped, err := stop(4); stopped || !errors.Is(err, cluster.ErrStaleEpoch) || o.dec.state.Mode != role.Relinquish {
		t.Errorf("epoch 5 has been seen: %v, %v, then %s", stopped, err, o.dec.state.Mode)
	}
	for range 2 {
		if stopped, err := stop(5); stopped || err != nil || o.dec.state.Mode != role.Dropping {
			t.Errorf("the role is here: %v, %v, then %s", stopped, err, o.dec.state.Mode)
		}
	}
	o.dec.exec.wait()
	if !slices.Equal(guard.calls, []string{"end primary"}) {
		t.Errorf("the guard was told %v", guard.calls)
	}
}

// The right to a stop is looked at in the very step that ends something.
func TestASoftStopAsksForLeaveInTheStepThatEnds(t *testing.T) {
	o, clock := newGiver(t)
	o.c.WallMS = func() int64 { return 0 }
	guard := &recordingGuard{}
	o.dec.exec = newExecutor(o.c, Deps{Store: &oneStore{}, Clock: clock, Log: o.log}, func(role.Event) {})
	o.dec.exec.guard, o.dec.exec.sweeper = guard, noSweep{}
	o.peers = nil // nobody to ask
	o.see()
	o.dec.state.Mode = role.Relinquish
	s := &softStop{c: o.c, d: Deps{Log: o.log}, dec: o.dec}
	over := errors.New("the lease has ended")
	leave := error(nil)
	decided := func() (bool, error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			call := <-o.dec.calls
			leave = over // it ends while the question waits for its turn
			call(t.Context())
		}()
		defer func() { <-done }()
		return s.decided(t.Context(), "hv1", softQuestion{Fence: "f1", Node: "hv2", Incarnation: "hv2.1", Epoch: 5}, func() error { return leave })
	}
	if stopped, err := decided(); stopped || !errors.Is(err, over) || o.dec.state.Mode != role.Relinquish {
		t.Errorf("%v, %v, then %s", stopped, err, o.dec.state.Mode)
	}
	o.dec.exec.wait()
	if len(guard.calls) > 0 {
		t.Errorf("the guard was told %v", guard.calls)
	}
}

// grantedTo serves one leader for good.
type grantedTo cluster.NodeLeaseID

func (g grantedTo) Current() cluster.NodeLeaseID                  { return cluster.NodeLeaseID(g) }
func (g grantedTo) SawEpoch(context.Context, cluster.Epoch) error { return nil }

// A stop that was admitted, and whose leader's lease ends before it is its turn,
// ends nothing.
func TestASoftStopWhoseLeaseEndsBeforeItsTurnEndsNothing(t *testing.T) {
	o, clock := newGiver(t)
	o.c.WallMS = func() int64 { return 0 }
	o.dec.exec = newExecutor(o.c, Deps{Store: &oneStore{}, Clock: clock, Log: o.log}, func(role.Event) {})
	o.dec.exec.guard, o.dec.exec.sweeper = &recordingGuard{}, noSweep{}
	o.peers = nil // nobody to ask
	o.see()
	o.dec.state.Mode = role.Relinquish
	id := cluster.NodeLeaseID{Holder: "hv1", Start: "s", Epoch: 5}
	m := activity.New(activity.Config{Self: "hv2", Granter: grantedTo(id), Clock: clock})
	if err := m.Follower(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	s := &softStop{c: o.c, d: Deps{Log: o.log, Clock: clock}, dec: o.dec, remote: m}
	w := cluster.NewTokenWire(id, "fence-1", "fence-1", false)
	w.Request = "r1"
	said := make(chan error, 1)
	go func() {
		_, err := s.obeyLeader(t.Context(), "hv1", softQuestion{Fence: "f1", Node: "hv2", Incarnation: "hv2.1", Epoch: 5, Token: &w})
		said <- err
	}()
	turn := <-o.dec.calls
	ended := make(chan error, 1)
	go func() { ended <- m.EndFollower(t.Context(), id) }()
	for len(m.List()) != 1 || m.List()[0].State != cluster.ActivityEnding {
		runtime.Gosched()
	}
	turn(t.Context())
	if err := <-said; !errors.Is(err, cluster.ErrRefused) || !errors.Is(err, cluster.ErrNodeLeaseLost) || o.dec.state.Mode != role.Relinquish {
		t.Errorf("%v, then %s", err, o.dec.state.Mode)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	o.dec.exec.wait()
}
