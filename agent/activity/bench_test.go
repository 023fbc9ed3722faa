package activity

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// leading is a manager that holds the leases of n nodes, of five that count, with
// one activity under way. The caller ends it by stop.
func leading(b *testing.B, n int) (m *Manager, a *Activity, h Holdings) {
	m = New(Config{Self: "a", Clock: &clock{now: 1}})
	h = Holdings{Leader: true, Lease: leaseA, Held: append([]cluster.NodeID{}, five...), Set: five}
	for i := len(five); i < n; i++ {
		h.Held = append(h.Held, cluster.NodeID(fmt.Sprintf("hv%d", i)))
	}
	m.Update(h)
	m.ExtendRole(cluster.Forever)
	for _, node := range h.Held {
		m.Extend(node, cluster.Forever)
	}
	began := make(chan *Activity)
	go func() {
		_ = m.Run(b.Context(), ordinary(cluster.Majority()), func(ctx context.Context, a *Activity) error {
			began <- a
			<-ctx.Done()
			return nil
		})
	}()
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			b.Error(err)
		}
	})
	return m, <-began, h
}

func BenchmarkTokenCheck(b *testing.B) {
	for _, n := range []int{5, 1000} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			_, a, _ := leading(b, n)
			token := a.Token()
			for b.Loop() {
				if !token.Live() {
					b.Fatal(token.Check())
				}
			}
		})
	}
}

func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{5, 1000} {
		b.Run(fmt.Sprintf("nodes=%d", n), func(b *testing.B) {
			m, _, h := leading(b, n)
			for b.Loop() {
				m.Update(h)
			}
		})
	}
}

func BenchmarkRun(b *testing.B) {
	m := New(Config{Self: "a"})
	m.Update(Holdings{Leader: true, Lease: leaseA, Held: five, Set: five})
	for b.Loop() {
		if err := m.Run(b.Context(), ordinary(cluster.Majority()), func(context.Context, *Activity) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// A role's order costs one look at its token on the path of a switch.
func BenchmarkARolesToken(b *testing.B) {
	m := New(Config{Self: "a", Clock: &handClock{}})
	r := m.Hold(b.Context(), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 7, Deadline: 200})
	for b.Loop() {
		if err := r.Token().Check(); err != nil {
			b.Fatal(err)
		}
	}
}
