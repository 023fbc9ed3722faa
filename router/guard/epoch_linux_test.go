package guard

import (
	"errors"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A pre-flight for an epoch that this host's guard would refuse says so, before
// anything has been taken down elsewhere (I2).
func TestAPreflightForALowerEpochSaysSo(t *testing.T) {
	b := newBed(t, true)
	b.begin(5, 300*time.Millisecond)
	b.eventually(2*time.Second, "the role is over", func() bool { return len(b.state().Deadlines) == 0 })
	ask := func(e cluster.Epoch) []string {
		res, err := b.client.Preflight(b.ctx(), cluster.PreflightRequest{Addresses: all, Epoch: e})
		if err != nil {
			t.Fatal(err)
		}
		return res.Problems
	}
	b.eventually(2*time.Second, "the end is verified", func() bool { ask(6); return b.state().MaxEpoch == 6 }) // a contention that came to nothing
	ask(7)                                                                                                     // and one more, after the agent has read MaxEpoch 6
	if problems := ask(6); len(problems) == 0 {
		d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 6, Deadline: clock.Now().Add(time.Second)}
		begin, end := b.client.Begin(b.ctx(), d), b.client.End(b.ctx(), cluster.OwnerPrimary, 6)
		t.Errorf("the pre-flight for epoch 6 finds no problem; Begin says %v, End says %v (stale: %v, on which the agent sweeps the guard)",
			begin, end, errors.Is(end, cluster.ErrStaleEpoch))
	}
}
