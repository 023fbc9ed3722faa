package activity

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

func TestAnActivityWaitsForItsConditionsAndEndsByItself(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads("a", "b")
		began := time.Time{}
		r := b.runs(ordinary(cluster.Majority()), func(context.Context, *Activity) error { began = time.Now(); return nil })
		list := b.List()
		if len(list) != 1 || list[0].State != cluster.ActivityWaiting || list[0].Waits.Code != cluster.RefuseNoQuorum {
			t.Fatalf("listed %+v", list)
		}
		time.Sleep(3 * time.Second)
		now := time.Now()
		b.leads("a", "b", "c")
		<-r.done
		if r.err != nil || !began.Equal(now) {
			t.Fatalf("%v, began %v after its conditions held", r.err, began.Sub(now))
		}
		if got := b.states("rebalance"); len(got) != 4 || got[0] != "waiting" || got[1] != "running" || got[2] != "ending" || got[3] != "ended" {
			t.Fatalf("told %q", got)
		}
	})
}

func TestTheLastFailedConditionIsTheError(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		r := b.runs(Spec{Name: "drain", Quorum: cluster.Majority(), Timeout: 4 * time.Second})
		time.Sleep(time.Second)
		b.leads("a") // from not_leader to no_quorum
		began := time.Now()
		<-r.done
		if code(r.err) != cluster.RefuseNoQuorum || !strings.Contains(r.err.Error(), "b c d e are missing") || r.at.Sub(began) != 3*time.Second {
			t.Fatalf("%v after %v", r.err, r.at.Sub(began))
		}
		if !errors.Is(r.err, cluster.ErrRefused) || b.Counts().Refused[cluster.RefuseNoQuorum] != 1 {
			t.Fatalf("%v, counted %v", r.err, b.Counts().Refused)
		}
	})
}

// A10: one that finds its domain taken waits, but not longer than DomainWait.
func TestTheDomainIsWaitedForFifteenSeconds(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		first := b.runs(ordinary(cluster.Majority()))
		began := time.Now()
		second := b.runs(Spec{Name: "drain", Quorum: cluster.Majority(), Timeout: time.Minute})
		<-second.done
		if code(second.err) != cluster.RefuseDomainConflict || second.at.Sub(began) != DomainWait {
			t.Fatalf("%v after %v", second.err, second.at.Sub(began))
		}
		third := b.runs(Spec{Name: "drain", Quorum: cluster.Majority()})
		time.Sleep(5 * time.Second)
		if _, err := b.Stop(t.Context(), first.a.ID(), "root", "test"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if third.isOver() || third.a == nil {
			t.Fatalf("the third does not run: %v", third.err)
		}
	})
}

// S160, A7.
func TestUnsafeSkipsTheQuorumAndWaitsForNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		began := time.Now()
		unsafe := Spec{Name: "failover", Quorum: cluster.Majority(), Unsafe: true, Timeout: time.Minute}
		r := b.runs(unsafe)
		if !r.isOver() || code(r.err) != cluster.RefuseNotLeader {
			t.Fatalf("as no leader: %v", r.err)
		}
		b.leads()
		first := b.runs(unsafe)
		if first.isOver() || time.Since(began) != 0 {
			t.Fatalf("as the leader, without leases: %v", first.err)
		}
		if second := b.runs(unsafe); !second.isOver() || code(second.err) != cluster.RefuseDomainConflict {
			t.Fatalf("the domain was waited for: %v", second.err)
		}
		b.leads() // nothing that is held can be lost
		synctest.Wait()
		if first.isOver() {
			t.Fatalf("ended by an Update: %v", first.err)
		}
		b.Update(Holdings{})
		if <-first.done; cluster.EndCode(first.err) != "leadership_lost" {
			t.Fatalf("leadership lost: %v", first.err)
		}
	})
}

// A6: unsafe is inherited by what is nested, by a switch of the quorum, and by
// orders to other nodes.
func TestUnsafeIsInherited(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads()
		nested := false
		r := b.runs(Spec{Name: "recover", Quorum: cluster.Majority(), Unsafe: true}, func(ctx context.Context, a *Activity) error {
			if err := a.Switch(ctx, cluster.All("a", "b"), 0); err != nil {
				return err
			}
			wire, err := a.Token().Wire("r1")
			if err != nil || !wire.Unsafe {
				return errors.Join(err, errors.New("the order is not unsafe"))
			}
			return a.Run(ctx, Spec{Name: "start", Quorum: cluster.All()}, func(context.Context, *Activity) error { nested = true; return nil })
		})
		if <-r.done; r.err != nil || !nested {
			t.Fatalf("%v, nested %v", r.err, nested)
		}
	})
}

// A2: the set of the check counts, not that of the call.
func TestTheQuorumSetIsThatOfTheCheck(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads("a", "b")
		r := b.runs(ordinary(cluster.Majority()))
		b.Update(Holdings{Leader: true, Lease: leaseA, Held: []cluster.NodeID{"a", "b"}, Set: five[:3]})
		synctest.Wait()
		if r.a == nil {
			t.Fatal("two of three is a majority and it does not run")
		}
		b.leads("a", "b")
		if <-r.done; cluster.EndCode(r.err) != "quorum_lost" {
			t.Fatalf("two of five: %v", r.err)
		}
	})
}

func TestWhatMakesNoSenseIsRefusedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		began := time.Now()
		for _, s := range []Spec{{Name: "x"}, {Quorum: cluster.All()}, {Name: strings.Repeat("x", maxName+1), Quorum: cluster.All()},
			{Name: "x", Quorum: cluster.Each(cluster.Follower(), cluster.All())}} {
			if r := b.runs(s); !r.isOver() || code(r.err) != cluster.RefuseActivitySpec {
				t.Errorf("%+v: %v", s, r.err)
			}
		}
		if time.Since(began) != 0 {
			t.Error("it was waited for")
		}
	})
}

func TestAQuorumIsSwitchedOnceTheNewOneHolds(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads("a", "b", "c")
		r := b.runs(ordinary(cluster.Majority()))
		began := time.Now()
		if err := r.a.Switch(t.Context(), cluster.All("a", "e"), 2*time.Second); code(err) != cluster.RefuseNoQuorum || time.Since(began) != 2*time.Second {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		if err := r.a.Switch(t.Context(), cluster.Follower(), 0); code(err) != cluster.RefuseActivitySpec {
			t.Fatalf("to another kind: %v", err)
		}
		time.AfterFunc(time.Second, func() { b.leads("a", "e", "c") })
		if err := r.a.Switch(t.Context(), cluster.All("a", "e"), 2*time.Second); err != nil {
			t.Fatal(err)
		}
		b.leads("a", "e") // no majority, which does not matter any more
		synctest.Wait()
		if r.isOver() || !r.a.Token().Live() {
			t.Fatalf("ended: %v", r.err)
		}
		b.leads("a", "b", "c", "d")
		if <-r.done; len(lostNodes(r.err)) != 1 || lostNodes(r.err)[0] != "e" {
			t.Fatalf("%v", r.err)
		}
	})
}
