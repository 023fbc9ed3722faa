package agent

import (
	"errors"
	"slices"
	"testing"

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
