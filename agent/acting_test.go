package agent

import (
	"context"
	"testing"

	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// A lease that is served and revoked in one step of the granter (a restart after
// the end of one) leaves nobody served.
func TestALeaseServedAndRevokedAtOnceServesNobody(t *testing.T) {
	id := cluster.NodeLeaseID{Holder: "hv2", Start: "s1", Epoch: 3}
	stale := 0
	for range 300 {
		a := &acting{m: activity.New(activity.Config{Self: "hv1"}), self: "hv1"}
		a.Serve(id)
		if err := a.Revoke(context.Background(), id); err != nil {
			t.Fatal(err)
		}
		a.following.Wait()
		err := a.m.Run(context.Background(), activity.Spec{Name: "x", Quorum: cluster.Follower(), Timeout: -1}, func(context.Context, *activity.Activity) error { return nil })
		if err == nil {
			stale++
		}
	}
	if stale > 0 {
		t.Errorf("%d of 300: work begins for a leader whose lease was revoked", stale)
	}
}
