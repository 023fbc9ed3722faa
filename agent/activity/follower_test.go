package activity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

// order is a token of leader b's as it arrives here.
func order(request string) cluster.TokenWire {
	w := cluster.NewTokenWire(leaseB, "move-1", "rebalance-1", false)
	w.Request = request
	return w
}

// remote runs an ordered activity in a goroutine.
func (b *bench) remote(w cluster.TokenWire, body Body) *running {
	r := &running{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = b.RunRemote(b.t.Context(), w, Spec{Name: "start"}, func(ctx context.Context, a *Activity) error { r.a = a; return body(ctx, a) })
	}()
	synctest.Wait()
	return r
}

func TestAnOrderRunsUnderTheLeaseThatIsServed(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.serves(leaseB)
		c := newChild(100 * time.Millisecond)
		r := b.remote(order("r1"), withChild(c))
		list := b.List()
		if len(list) != 1 || list[0].Lease != leaseB || list[0].Parent != "move-1" || list[0].Quorum != "follower" {
			t.Fatalf("%+v; %v", list, r.err)
		}
		token := r.a.Token()
		if !token.Live() || token.Epoch() != 8 || b.granter.seen != 8 {
			t.Fatalf("%v; epoch %d, seen %d", token.Check(), token.Epoch(), b.granter.seen)
		}
		// The granter has let go; the manager is not told yet.
		b.granter.current = cluster.NodeLeaseID{}
		if token.Live() {
			t.Fatal("the token outlives the lease")
		}
		b.granter.current = leaseB
		began := time.Now()
		if err := b.EndFollower(t.Context(), leaseB); err != nil || time.Since(began) != 1100*time.Millisecond || c.killed.IsZero() {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		if <-r.done; cluster.EndCode(r.err) != "lease_lost" {
			t.Fatalf("%v", r.err)
		}
	})
}

func TestOrdersThatMustNotBeCarriedOut(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.serves(leaseB)
		never := func(context.Context, *Activity) error { t.Error("it was carried out"); return nil }
		once := func(context.Context, *Activity) error { return nil }
		if r := b.remote(order("r1"), once); r.err != nil {
			t.Fatal(r.err)
		}
		if r := b.remote(order("r1"), never); code(r.err) != cluster.RefuseReplayed {
			t.Errorf("a copy: %v", r.err)
		}
		foreign := order("r2")
		foreign.Lease.Start = "s9"
		if r := b.remote(foreign, never); code(r.err) != cluster.RefuseNoLease {
			t.Errorf("another start's: %v", r.err)
		}
		older := order("r3")
		older.Lease.Epoch = 6
		if r := b.remote(older, never); !errors.Is(r.err, cluster.ErrStaleEpoch) {
			t.Errorf("an older epoch's: %v", r.err)
		}
		b.granter.broken = errors.New("disk full")
		if r := b.remote(order("r4"), never); !errors.Is(r.err, b.granter.broken) {
			t.Errorf("an epoch that could not be kept: %v", r.err)
		}
		b.granter.broken = nil
		for _, w := range []cluster.TokenWire{{}, order(""), {V: 9, Lease: leaseB, Activity: "x", Root: "x", Request: "r5"}} {
			if r := b.remote(w, never); code(r.err) != cluster.RefuseActivitySpec {
				t.Errorf("rubbish %+v: %v", w, r.err)
			}
		}
	})
}

// An order is unsafe where its activity is, and is never more urgent than work
// that nobody is to interrupt: that is the leader's to decide, not the order's.
func TestAnOrderIsAsUnsafeAsItsActivityAndNotUrgent(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.serves(leaseB)
		for _, unsafe := range []bool{false, true} {
			w := order(fmt.Sprint("r", unsafe))
			w.Unsafe = unsafe
			err := b.RunRemote(t.Context(), w, Spec{Name: "start", Urgency: Failover}, func(_ context.Context, a *Activity) error {
				list := b.List()
				if len(list) != 1 || list[0].Unsafe != unsafe || list[0].Hard {
					t.Errorf("an order that is unsafe (%t) runs as %+v", unsafe, list)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
}

func TestAnotherLeaderIsServedOnceTheFirstOnesWorkIsDead(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.serves(leaseA)
		c := newChild(300 * time.Millisecond)
		old := b.runs(Spec{Name: "start", Quorum: cluster.Follower()}, withChild(c))
		began := time.Now()
		time.AfterFunc(500*time.Millisecond, func() {
			if r := b.runs(Spec{Name: "early", Quorum: cluster.Follower(), Domain: "x", Timeout: -1}); code(r.err) != cluster.RefuseNoLease {
				t.Errorf("begun in between: %v", r.err)
			}
		})
		if err := b.Follower(t.Context(), leaseB); err != nil || time.Since(began) != 1300*time.Millisecond {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		if <-old.done; cluster.EndCode(old.err) != "lease_lost" {
			t.Fatalf("%v", old.err)
		}
		if r := b.runs(Spec{Name: "start", Quorum: cluster.Follower()}); r.a == nil {
			t.Fatalf("the new leader's work does not run: %v", r.err)
		}
	})
}

func TestServingSomebodyFailsWhileTheOldWorkLives(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.serves(leaseA)
		c := newChild(time.Minute)
		b.runs(Spec{Name: "start", Quorum: cluster.Follower()}, withChild(c))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := b.Follower(ctx, leaseB); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("served: %v", err)
		}
		if r := b.runs(Spec{Name: "x", Domain: "x", Quorum: cluster.Follower(), Timeout: -1}); code(r.err) != cluster.RefuseNoLease {
			t.Fatalf("begun: %v", r.err)
		}
		if len(b.abandoned) != 1 {
			t.Fatalf("abandoned %+v", b.abandoned)
		}
		time.Sleep(2 * time.Minute)
	})
}

func TestAllFollowersWorkEndsWhereNobodyIsNamed(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.serves(leaseA)
		r := b.runs(Spec{Name: "start", Quorum: cluster.Follower()})
		// Told again while it waits, as a granter does.
		if err := b.EndFollower(t.Context(), leaseB); err != nil || !r.a.Token().Live() {
			t.Fatalf("another's end: %v, %v", err, r.a.Token().Check())
		}
		if err := errors.Join(b.EndFollower(t.Context(), cluster.NodeLeaseID{}), b.EndFollower(t.Context(), cluster.NodeLeaseID{})); err != nil {
			t.Fatal(err)
		}
		if <-r.done; cluster.EndCode(r.err) != "lease_lost" {
			t.Fatalf("%v", r.err)
		}
		if late := b.runs(Spec{Name: "x", Quorum: cluster.Follower(), Timeout: -1}); code(late.err) != cluster.RefuseNoLease {
			t.Fatalf("begun afterwards: %v", late.err)
		}
	})
}

func TestATokenTravels(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		r := b.runs(ordinary(cluster.Majority()))
		sent, err := r.a.Token().Wire("r1")
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := json.Marshal(sent)
		var got cluster.TokenWire
		if err := json.Unmarshal(raw, &got); err != nil || got != sent || got.Lease != leaseA || got.Root != r.a.ID() {
			t.Fatalf("%s: %v", raw, err)
		}
		if (cluster.Token{}).Live() || !errors.Is((cluster.Token{}).Check(), cluster.ErrNoToken) {
			t.Fatal("a token of nothing lives")
		}
	})
}

func TestHistoryNamesTheCause(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		r := b.runs(ordinary(cluster.Majority()), withChild(newChild(0)))
		b.leads("a")
		<-r.done
		b.mu.Lock()
		defer b.mu.Unlock()
		i := slices.IndexFunc(b.told, func(e cluster.ActivityEvent) bool { return e.Activity.State == cluster.ActivityEnded })
		e := b.told[i].Event()
		if e.Kind != cluster.EventActivity || e.Node != "a" || e.Fields["cause"] != "quorum_lost" || e.Fields["killed"] != "rsync" {
			t.Fatalf("%+v", e)
		}
	})
}
