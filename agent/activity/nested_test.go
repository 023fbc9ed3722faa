package activity

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
)

// S139, A11, A12: an activity that does not heed its stop and is just starting a
// nested one, and a child, while it is ended.
func TestNestedOnesThatComeWhileEndingAreAnsweredAndNeverRun(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		var nested, started error
		ran := false
		r := b.runs(ordinary(cluster.Majority()), func(_ context.Context, a *Activity) error {
			time.Sleep(300 * time.Millisecond)
			nested = a.Run(context.Background(), Spec{Name: "move", Quorum: cluster.Majority()}, func(context.Context, *Activity) error { ran = true; return nil })
			started = a.Start("rsync", func() (subtask.Child, error) { ran = true; return newChild(0), nil })
			return nil
		})
		began := time.Now()
		if _, err := b.Stop(t.Context(), r.a.ID(), "root", "enough"); err != nil || time.Since(began) != 300*time.Millisecond {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		if code(nested) != cluster.RefuseEnding || !errors.Is(started, subtask.ErrStopped) || ran {
			t.Fatalf("%v; %v; ran %v", nested, started, ran)
		}
	})
}

func TestANestedOneLosesItsOwnQuorumAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		var nested error
		r := b.runs(ordinary(cluster.Majority()), func(ctx context.Context, a *Activity) error {
			nested = a.Run(ctx, Spec{Name: "move", Quorum: cluster.All("e")}, func(ctx context.Context, _ *Activity) error { <-ctx.Done(); return context.Cause(ctx) })
			<-ctx.Done()
			return context.Cause(ctx)
		})
		list := b.List()
		if len(list) != 2 || !slices.ContainsFunc(list, func(a cluster.Activity) bool {
			return a.Parent == r.a.ID() && a.Domain == cluster.DomainCluster && a.Lease == leaseA
		}) {
			t.Fatalf("listed %+v", list)
		}
		b.leads(five[:4]...)
		if err := b.Settled(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !slices.Equal(lostNodes(nested), []cluster.NodeID{"e"}) || r.isOver() || !r.a.Token().Live() {
			t.Fatalf("nested: %v; above: %v", nested, r.err)
		}
	})
}

func TestAStopReachesWhatIsNestedWithItsCause(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		c := newChild(0)
		var inner *Activity
		var nested error
		r := b.runs(ordinary(cluster.Majority()), func(ctx context.Context, a *Activity) error {
			nested = a.Run(ctx, Spec{Name: "move", Quorum: cluster.All("e")}, func(ctx context.Context, n *Activity) error { inner = n; return withChild(c)(ctx, n) })
			return nested
		})
		token := inner.Token()
		time.AfterFunc(time.Millisecond, func() {
			if token.Live() {
				t.Error("a nested token outlives the one above")
			}
		})
		killed, err := b.Stop(t.Context(), r.a.ID(), "root", "enough")
		if err != nil || len(killed) != 1 || c.killed.IsZero() {
			t.Fatalf("%q, %v", killed, err)
		}
		if <-r.done; cluster.EndCode(nested) != "stopped" || cluster.EndCode(r.err) != "stopped" {
			t.Fatalf("nested: %v; above: %v", nested, r.err)
		}
	})
}

// S164: a nested one whose root ran under a lease that is not the current one.
func TestANestedOneOfAnOlderLeaseIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.leads(five...)
		old := &Activity{spec: Spec{Name: "old"}, m: b.Manager, id: "old-1", root: "old-1", state: cluster.ActivityRunning,
			lease: cluster.NodeLeaseID{Holder: "a", Start: "s0", Epoch: 7}, tasks: subtask.New(t.Context(), "old", subtask.Options{})}
		err := old.Run(t.Context(), Spec{Name: "move", Quorum: cluster.Majority(), Timeout: -1}, func(context.Context, *Activity) error { return nil })
		if code(err) != cluster.RefuseNoLease {
			t.Fatalf("%v", err)
		}
	})
}
