package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
		settled := a.Serve(id)
		var waits sync.WaitGroup
		waits.Go(func() { _ = settled(context.Background()) })
		if err := a.Revoke(context.Background(), id); err != nil {
			t.Fatal(err)
		}
		waits.Wait()
		err := a.m.Run(context.Background(), activity.Spec{Name: "x", Quorum: cluster.Follower(), Timeout: -1}, func(context.Context, *activity.Activity) error { return nil })
		if err == nil {
			stale++
		}
	}
	if stale > 0 {
		t.Errorf("%d of 300: work begins for a leader whose lease was revoked", stale)
	}
}

// What a former leader still does, and what counted on its node's lease being its
// own, is dead before the new leader is told that he has that lease.
func TestALeadersOwnWorkIsDeadBeforeItsNodeServesAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := activity.New(activity.Config{Self: "n"})
		r := &granterRig{t: t, base: time.Now(), follower: &acting{m: m, self: "n"}}
		r.begin()
		defer func() { r.end() }()
		only := []cluster.NodeID{"n"}
		m.Update(activity.Holdings{Leader: true, Lease: cluster.NodeLeaseID{Holder: "n", Start: "s", Epoch: 1}, Held: only, Set: only})
		began, dead := make(chan struct{}), make(chan struct{})
		go func() {
			_ = m.Run(context.Background(), activity.Spec{Name: "drain", Quorum: cluster.All("n")}, func(ctx context.Context, _ *activity.Activity) error {
				close(began)
				<-ctx.Done()
				time.Sleep(600 * time.Millisecond) // a step that it ends first
				close(dead)
				return nil
			})
		}()
		<-began
		m.Update(activity.Holdings{Leader: true, Lease: cluster.NodeLeaseID{Holder: "n", Start: "s", Epoch: 1}, Set: only}) // its own lease has run out
		r.want("a", cluster.LeaseGrant, 2, "")
		select {
		case <-dead:
		default:
			t.Error("a has the lease of n while a drain lives that counted on it being n's own")
		}
		if r.writes != 1 {
			t.Errorf("%d writes", r.writes)
		}
		<-dead
	})
}

// What a node has seen of a newer leader counts for orders at once, whatever is
// left of the older one's lease (I2): nothing of it begins, and what runs may
// order nothing more. The new leader's begins once it is served.
func TestOrdersOfALeaderThatHasBeenFollowedAreRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &acting{self: "n"}
		a.m = activity.New(activity.Config{Self: "n", Granter: a})
		r := &granterRig{t: t, base: time.Now(), follower: a}
		r.begin()
		defer func() { r.end() }()
		a.own = r.g
		order := func(holder cluster.NodeID, epoch cluster.Epoch, request string, body activity.Body) error {
			w := cluster.NewTokenWire(cluster.NodeLeaseID{Holder: holder, Start: "s", Epoch: epoch}, "drain-1", "drain-1", false)
			w.Request = request
			return a.m.RunRemote(context.Background(), w, activity.Spec{Name: "move", Timeout: -1}, body)
		}
		nothing := func(context.Context, *activity.Activity) error { return nil }

		r.want("a", cluster.LeaseGrant, 2, "")
		if err := order("a", 2, "first", nothing); err != nil {
			t.Fatalf("the leader that is served is not obeyed: %v", err)
		}
		token, ended := make(chan cluster.Token, 1), make(chan error, 1)
		go func() {
			ended <- order("a", 2, "second", func(ctx context.Context, x *activity.Activity) error {
				token <- x.Token()
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		running := <-token
		if err := running.Check(); err != nil {
			t.Fatalf("before anybody follows: %v", err)
		}
		r.want("b", cluster.LeaseGrant, 3, cluster.RefuseLeaseAcquired)
		if err := running.Check(); !errors.Is(err, cluster.ErrNoToken) {
			t.Errorf("epoch 3 has been seen, and what runs under epoch 2 may order more: %v", err)
		}
		ran := false
		err := order("a", 2, "third", func(context.Context, *activity.Activity) error { ran = true; return nil })
		if !errors.Is(err, cluster.ErrStaleEpoch) || ran {
			t.Errorf("epoch 3 has been seen, and an order of epoch 2 ran: %t, %v", ran, err)
		}
		if err := <-ended; !errors.Is(err, cluster.ErrNodeLeaseLost) { // its lease is not extended any more
			t.Errorf("what ran under epoch 2 ended with %v", err)
		}
		synctest.Wait()
		r.want("b", cluster.LeaseGrant, 3, "")
		if err := order("b", 3, "fourth", nothing); err != nil {
			t.Errorf("the new leader is not obeyed: %v", err)
		}
	})
}
