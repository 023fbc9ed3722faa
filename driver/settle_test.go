package driver

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

// put enters a service into the guard in memory.
func (g *shelf) put(name string, owner cluster.DeadlineOwner) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.services = append(g.services, cluster.ServiceState{Name: name, Owner: owner, Running: true})
}

// letGo takes that long, and then nothing is left of the service.
func (g *shelf) letGo(takes time.Duration) func(context.Context, string) error {
	return func(ctx context.Context, name string) error {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.remove(name)
		return nil
	}
}

// All copies end beside each other, what the role runs is left alone, and nothing is
// begun any more: neither a new order nor one that was under way.
func TestASettledHostStartsNothing(t *testing.T) {
	inHost(t, func(t *testing.T, h *Host, d *slowDriver, g *shelf) {
		g.put(ServiceName("a"), cluster.OwnerNode)
		g.put(ServiceName("b"), cluster.OwnerNode)
		g.put("web", cluster.OwnerPrimary)
		d.takes = time.Minute
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := h.Order(t.Context(), live(), order(cluster.CopyStart)); !errors.Is(err, errSettling) {
				t.Errorf("an order that was under way: %v", err)
			}
		})
		synctest.Wait()
		began := time.Now()
		var settled time.Duration
		wg.Go(func() {
			if err := h.Settle(t.Context(), g.letGo(20*time.Second)); err != nil {
				t.Error(err)
			}
			settled = time.Since(began)
		})
		synctest.Wait()
		d.mu.Lock()
		d.takes = 0
		d.mu.Unlock()
		if _, err := h.Order(t.Context(), live(), order(cluster.CopyPromote)); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "being stopped") {
			t.Errorf("a promotion meanwhile: %v", err)
		}
		if r := h.Probe(t.Context(), cache); !r.Unknown || !strings.Contains(r.Error, "being stopped") {
			t.Errorf("a look meanwhile: %+v", r)
		}
		if _, err := h.Order(t.Context(), live(), order(cluster.CopyStop)); err != nil {
			t.Errorf("a stop meanwhile: %v", err)
		}
		wg.Wait()
		if state, _ := g.State(t.Context()); len(state.Services) != 1 || settled >= 40*time.Second || d.done() != "stop" {
			t.Errorf("after %v there is %+v; done: %s", settled, state.Services, d.done())
		}
	})
}

// What does not end is named when the time is over; a guard that does not answer is
// no copy that has ended.
func TestWhatDoesNotSettleIsNamed(t *testing.T) {
	inHost(t, func(t *testing.T, h *Host, _ *slowDriver, g *shelf) {
		g.put(ServiceName("slow"), cluster.OwnerNode)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := h.Settle(ctx, g.letGo(time.Hour)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), ServiceName("slow")) {
			t.Errorf("of one that takes an hour: %v", err)
		}
	})
	inHost(t, func(t *testing.T, h *Host, _ *slowDriver, g *shelf) {
		g.fail = errors.New("the guard does not answer")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := h.Settle(ctx, g.letGo(0)); !errors.Is(err, g.fail) {
			t.Errorf("without a guard: %v", err)
		}
	})
}
