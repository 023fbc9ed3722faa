package activity

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

// S157, with what a loss may cost: a second and the kill.
func TestALostQuorumEndsWhatRestsOnItBeforeTheLossIsSeen(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		c := newChild(100 * time.Millisecond)
		r := b.runs(ordinary(cluster.Majority()), withChild(c))
		token := r.a.Token()
		b.leads("a", "b", "c")
		synctest.Wait()
		if r.isOver() || !token.Live() {
			t.Fatalf("two of five are lost: %v, %v", r.err, token.Check())
		}
		began := time.Now()
		b.leads("a", "b")
		if err := token.Check(); !errors.Is(err, cluster.ErrNoToken) {
			t.Fatalf("an effect is still allowed when Update has returned: %v", err)
		}
		if err := b.Settled(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took != 1100*time.Millisecond || c.killed.Sub(began) != time.Second {
			t.Fatalf("settled after %v, killed after %v", took, c.killed.Sub(began))
		}
		if <-r.done; !slices.Equal(lostNodes(r.err), []cluster.NodeID{"c"}) || !strings.Contains(r.err.Error(), "quorum_lost(c)") {
			t.Fatalf("%v", r.err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		last := b.told[len(b.told)-1].Activity
		if last.State != cluster.ActivityEnded || last.Cause != "quorum_lost" || !slices.Equal(last.Killed, []string{"rsync"}) {
			t.Fatalf("told %+v", last)
		}
	})
}

// S158.
func TestOneNodeThatIsNamedEndsItThoughAMajorityHolds(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		r := b.runs(ordinary(cluster.Each(cluster.Majority(), cluster.All("e"))))
		b.leads(five[:4]...)
		if <-r.done; !slices.Equal(lostNodes(r.err), []cluster.NodeID{"e"}) {
			t.Fatalf("%v", r.err)
		}
	})
}

// S161, A14.
func TestTheLeadersOwnLeaseEndsFollowerWorkOnly(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.serves(leaseA)
		b.leads("a", "b", "c")
		lead := b.runs(ordinary(cluster.Majority()))
		follow := b.runs(Spec{Name: "start", Domain: "vm7", Quorum: cluster.Follower()})
		b.leads("b", "c")
		if err := b.Settled(t.Context()); err != nil {
			t.Fatal(err)
		}
		if <-follow.done; !slices.Equal(lostNodes(follow.err), []cluster.NodeID{"a"}) {
			t.Fatalf("follower's work: %v", follow.err)
		}
		if err := b.EndFollower(t.Context(), leaseA); err != nil || lead.isOver() {
			t.Fatalf("%v; the leader's: %v", err, lead.err)
		}
		// Somebody else comes to lead this node: what counted on it is dead first.
		if err := b.Follower(t.Context(), leaseB); err != nil || len(b.List()) != 0 {
			t.Fatalf("%v; left %+v", err, b.List())
		}
		if <-lead.done; cluster.EndCode(lead.err) != "quorum_lost" {
			t.Fatalf("the leader's: %v", lead.err)
		}
	})
}

// S163.
func TestAForeignQuorumSetEndsAllTheLeadersActivities(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.serves(leaseA)
		b.leads(five...)
		one, two := b.runs(ordinary(cluster.Majority())), b.runs(Spec{Name: "backup", Domain: "backup", Quorum: cluster.All("b"), Unsafe: true})
		follow := b.runs(Spec{Name: "start", Domain: "vm7", Quorum: cluster.Follower()})
		if err := b.EndLeader(t.Context(), cluster.ErrSetReplaced); err != nil {
			t.Fatal(err)
		}
		<-one.done
		if <-two.done; cluster.EndCode(one.err) != "set_replaced" || cluster.EndCode(two.err) != "set_replaced" || follow.isOver() {
			t.Fatalf("%v, %v, %v", one.err, two.err, follow.err)
		}
	})
}

func TestAnOperatorsStopSaysWhatItKilled(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		r := b.runs(ordinary(cluster.Majority()), withChild(newChild(0)))
		began := time.Now()
		killed, err := b.Stop(t.Context(), r.a.ID(), "root", "enough")
		if err != nil || !slices.Equal(killed, []string{"rsync"}) || time.Since(began) != time.Second {
			t.Fatalf("%q, %v after %v", killed, err, time.Since(began))
		}
		var stop *cluster.StopOrdered
		if <-r.done; !errors.As(r.err, &stop) || stop.By != "root" {
			t.Fatalf("%v", r.err)
		}
		if _, err := b.Stop(t.Context(), r.a.ID(), "root", "again"); !errors.Is(err, cluster.ErrNotFound) {
			t.Fatalf("a second stop: %v", err)
		}
	})
}

func TestOneThatWaitsIsStoppedToo(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		r := b.runs(ordinary(cluster.Majority()))
		if _, err := b.Stop(t.Context(), b.List()[0].ID, "root", "enough"); err != nil {
			t.Fatal(err)
		}
		b.leads(five...)
		if <-r.done; code(r.err) != cluster.RefuseEnding || r.a != nil {
			t.Fatalf("%v", r.err)
		}
	})
}

// R3: the body ends by itself at the very instant of a stop, and while what it
// left is still being ended.
func TestAStopThatMeetsAnEndWaitsForIt(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		for _, wait := range []time.Duration{0, time.Second, time.Second + 300*time.Millisecond} {
			leaves, started := newChild(500*time.Millisecond), false
			r := b.runs(ordinary(cluster.Majority()), func(_ context.Context, a *Activity) error {
				time.Sleep(time.Second)
				return a.Start("leftover", func() (subtask.Child, error) { started = true; return leaves, nil })
			})
			time.Sleep(wait)
			if _, err := b.Stop(t.Context(), r.a.ID(), "root", "enough"); err != nil && !errors.Is(err, cluster.ErrNotFound) {
				t.Fatal(err)
			}
			select {
			case <-leaves.done:
			default:
				if started {
					t.Fatalf("stopped after %v while a child lives", wait)
				}
			}
			<-r.done
			if wait > time.Second && r.err != nil {
				t.Fatalf("it had ended by itself: %v", r.err)
			}
		}
	})
}

// R2: whatever was armed for one activity never hits the next.
func TestNoTimerHitsTheNextActivity(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		for range 3 {
			r := b.runs(ordinary(cluster.Majority()))
			if _, err := b.Stop(t.Context(), r.a.ID(), "root", "enough"); err != nil {
				t.Fatal(err)
			}
		}
		c := newChild(0)
		next := b.runs(ordinary(cluster.Majority()), withChild(c))
		time.Sleep(time.Hour)
		if next.isOver() || !c.killed.IsZero() || !next.a.Token().Live() {
			t.Fatalf("the next one was hit: %v", next.err)
		}
	})
}

// The last rung: what survives keeps its domain, is told of, and the agent is
// given up.
func TestWhatSurvivesIsAbandonedAndKeepsItsDomain(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		release := make(chan struct{})
		r := b.runs(ordinary(cluster.Majority()), func(context.Context, *Activity) error { <-release; return nil })
		began := time.Now()
		_, err := b.Stop(t.Context(), r.a.ID(), "root", "enough")
		var left *subtask.StragglerError
		if !errors.As(err, &left) || left.Stragglers[0].Name != "body" || time.Since(began) != 2*time.Second {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		if <-r.done; !errors.As(r.err, &left) || cluster.EndCode(r.err) != "stopped" {
			t.Fatalf("Run: %v", r.err)
		}
		if len(b.abandoned) != 1 || b.abandoned[0].ID != r.a.ID() {
			t.Fatalf("abandoned %+v", b.abandoned)
		}
		list := b.List()
		if len(list) != 1 || list[0].State != cluster.ActivityEnding || !slices.Equal(list[0].Survives, []string{"body"}) {
			t.Fatalf("listed %+v", list)
		}
		next := b.runs(Spec{Name: "drain", Quorum: cluster.Majority(), Timeout: time.Second})
		if <-next.done; code(next.err) != cluster.RefuseDomainConflict {
			t.Fatalf("the domain was free: %v", next.err)
		}
		close(release)
	})
}

func TestAPanicIsAnErrorAndCounted(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		one := b.runs(ordinary(cluster.Majority()), func(context.Context, *Activity) error { panic("nil map") })
		two := b.runs(ordinary(cluster.Majority()), func(ctx context.Context, a *Activity) error {
			_ = a.Go("mover", func(context.Context) error { panic("bad index") })
			<-ctx.Done()
			return context.Cause(ctx)
		})
		<-one.done
		<-two.done
		if !strings.Contains(one.err.Error(), "panic: nil map") || !strings.Contains(two.err.Error(), "mover: panic: bad index") || b.Counts().Panics != 2 {
			t.Fatalf("%v; %v; %d counted", one.err, two.err, b.Counts().Panics)
		}
		if three := b.runs(ordinary(cluster.Majority()), func(context.Context, *Activity) error { return nil }); three.err != nil {
			t.Fatalf("the domain is not free: %v", three.err)
		}
	})
}

// S142: what a body left running dies with it, whether it returned or was ended.
func TestWhatABodyLeavesDiesWithIt(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		job := newChild(0)
		r := b.runs(ordinary(cluster.Majority()), func(_ context.Context, a *Activity) error {
			return errors.Join(a.Start("job", func() (subtask.Child, error) { return job, nil }),
				a.Go("watch", func(ctx context.Context) error { <-ctx.Done(); return nil }))
		})
		if <-r.done; r.err != nil || job.killed.IsZero() {
			t.Fatalf("%v, killed %v", r.err, job.killed)
		}
	})
}

func TestItsCallersEndEndsIt(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		why, own := errors.New("the role has ended"), errors.New("the disk is half copied")
		for range 50 { // whoever is first to notice, the manager or the body
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(why) })
			err := b.Run(ctx, ordinary(cluster.Majority()), func(ctx context.Context, _ *Activity) error { <-ctx.Done(); return own })
			if !errors.Is(err, why) || !errors.Is(err, own) {
				t.Fatalf("%v", err)
			}
		}
	})
}

// A process that was stopped and goes on: its leases are over though nobody has
// said so yet.
func TestATokenDiesWithItsLeasesByTheClock(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		b.ExtendRole(2000)
		for i, n := range five {
			b.Extend(n, cluster.Instant(1000+i))
		}
		r := b.runs(ordinary(cluster.Majority()))
		token := r.a.Token()
		b.clock.now = 1002 // a, b and c are over; a is this node's own
		if !token.Live() {
			t.Fatalf("d, e and this node are a majority: %v", token.Check())
		}
		if late := b.runs(Spec{Name: "x", Domain: "x", Quorum: cluster.Majority(), Timeout: -1}); code(late.err) != cluster.RefuseNoQuorum {
			t.Fatalf("begun with two of five: %v", late.err)
		}
		b.clock.now = 1003
		if err := token.Check(); !slices.Equal(lostNodes(err), []cluster.NodeID{"b", "c", "d"}) {
			t.Fatalf("%v", err)
		}
		for _, n := range five {
			b.Extend(n, 5000)
		}
		if !token.Live() {
			t.Fatalf("renewed: %v", token.Check())
		}
		b.clock.now = 2000
		if err := token.Check(); !errors.Is(err, cluster.ErrLeadershipLost) {
			t.Fatalf("%v", err)
		}
		b.ExtendRole(3000)
		b.leads(five[:4]...)
		b.Extend("e", 5000) // a late answer
		b.Update(Holdings{})
		b.leads(five...) // the instants of a leadership that is over count for none
		if <-r.done; cluster.EndCode(r.err) != "leadership_lost" {
			t.Fatalf("%v", r.err)
		}
		b.clock.now = 9000
		if again := b.runs(ordinary(cluster.All())); again.a == nil {
			t.Fatalf("%v", again.err)
		}
	})
}

// From the instant at which an end is decided no effect is allowed, neither its
// own nor one of what is nested in it, however late they come to hear of it.
func TestTokensDieAtTheDecision(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		for range 50 {
			var nested cluster.Token
			r := b.runs(ordinary(cluster.Majority()), func(ctx context.Context, a *Activity) error {
				return a.Run(ctx, Spec{Name: "move", Quorum: cluster.Majority()}, func(ctx context.Context, n *Activity) error {
					nested = n.Token()
					<-ctx.Done()
					return nil
				})
			})
			own := r.a.Token()
			b.Manager.mu.Lock()
			b.end(r.a, cluster.ErrSetReplaced)
			b.Manager.mu.Unlock()
			if own.Live() || nested.Live() {
				t.Fatalf("own %v, nested %v", own.Check(), nested.Check())
			}
			<-r.done
		}
	})
}

// An abort path contacts nobody: from the instant of the loss no order leaves,
// although the body tries to make things good.
func TestAnAbortContactsNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		orders := 0
		order := func(tok cluster.Token) error {
			if err := tok.Check(); err != nil {
				return err
			}
			orders++
			return nil
		}
		var afterwards error
		r := b.runs(ordinary(cluster.Majority()), func(ctx context.Context, a *Activity) error {
			if err := order(a.Token()); err != nil {
				return err
			}
			<-ctx.Done()
			_, wired := a.Token().Wire("undo")
			afterwards = errors.Join(order(a.Token()), wired, a.Run(context.WithoutCancel(ctx), Spec{Name: "undo", Quorum: cluster.Majority("a")}, func(context.Context, *Activity) error { orders++; return nil }))
			return context.Cause(ctx)
		})
		began := time.Now()
		b.leads("a", "b")
		if err := b.Settled(t.Context()); err != nil || time.Since(began) != 0 {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		<-r.done
		if orders != 1 || !errors.Is(afterwards, cluster.ErrNoToken) || code(afterwards) != cluster.RefuseEnding {
			t.Fatalf("%d orders; %v", orders, afterwards)
		}
	})
}
