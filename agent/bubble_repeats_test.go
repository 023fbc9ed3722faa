package agent_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// busyFencer never obtains the fence lock.
type busyFencer struct {
	obeyingFencer
	tries *atomic.Int64
}

func (f busyFencer) Order(context.Context, cluster.Token, cluster.Versioned[cluster.FenceOrder], int64) (cluster.FenceRecord, *cluster.Refusal, error) {
	f.tries.Add(1)
	return cluster.FenceRecord{}, nil, cluster.ErrLockTimeout
}

// An operator's order that cannot be carried out is tried once a second for five
// minutes: the history tells of that in a few entries, and of its end.
func TestAnOrderThatKeepsFailingFillsNoHistory(t *testing.T) {
	t.Parallel()
	o, words, known := nodesCalled(leaseTrio...), &asked{}, new(*bubble)
	var tries atomic.Int64
	o.tune = func(c *agent.Config, d *agent.Deps) {
		d.Fencer = busyFencer{obeyingFencer{askedFencer{words, c.Node}, known}, &tries}
	}
	inBubble(t, o, func(b *bubble) {
		*known = b
		b.restful()
		b.orderAbout("hv3", cluster.OrderFence)
		time.Sleep(6 * time.Minute)
		told, refused := 0, false
		for _, h := range b.store.History() {
			var e cluster.Event
			if !strings.HasPrefix(h.Path, "/agent/history/") || json.Unmarshal(h.Data, &e) != nil {
				continue
			}
			if e.Kind == cluster.EventActivity {
				told++
			}
			refused = refused || e.Kind == cluster.EventOrderRefused && e.Fields["code"] == string(cluster.RefuseOverdue) && strings.Contains(e.Text, " tries in a row)")
		}
		if !refused {
			t.Error("the order is not refused at last, with how often it was tried")
		}
		if n := tries.Load(); n < 200 || told < 2 || told > 9 {
			t.Errorf("%d tries are told of in %d entries of the history", n, told)
		}
	})
}
