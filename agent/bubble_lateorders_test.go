package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// lateOrders loses orders on their way, and delivers them later.
type lateOrders struct {
	mu    sync.Mutex
	lose  map[string]bool // "OP NODE": the next such order
	later map[string]func() error
}

func (l *lateOrders) lost(op cluster.CopyOp, n cluster.NodeID, deliver func() error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	what := string(op) + " " + string(n)
	if !l.lose[what] {
		return false
	}
	delete(l.lose, what)
	l.later[what] = deliver
	return true
}

type latePeers struct {
	agent.Peers
	l *lateOrders
}

func (p latePeers) Ask(ctx context.Context, n cluster.NodeID, kind string, body []byte) ([]byte, error) {
	var q copyOrder
	if kind == "copies-order" && json.Unmarshal(body, &q) == nil && p.l.lost(q.Order.Op, n, func() error {
		_, err := p.Peers.Ask(context.WithoutCancel(ctx), n, kind, body)
		return err
	}) {
		return nil, errors.New("the network has it still")
	}
	return p.Peers.Ask(ctx, n, kind, body)
}

// A start, and the stop after it, are lost on their way, and the node says that it has
// nothing: the workload goes back only once that node has taken a stop, so that the
// start, which comes then, starts nothing beside it.
func TestAStartThatComesAfterTheWayBackStartsNothing(t *testing.T) {
	l := &lateOrders{lose: map[string]bool{"start hv3": true, "stop hv3": true}, later: map[string]func() error{}}
	inCopyWorld(t, func(_ *agent.Config, d *agent.Deps) { d.Peers = latePeers{d.Peers, l} }, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		b.order("vm1", "o1", cluster.WorkloadMove, "hv3")
		if a := b.answer(time.Minute, "vm1", "o1"); a.Done {
			t.Errorf("the answer is %+v", a)
		}
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		l.mu.Lock()
		late := l.later["start hv3"]
		l.mu.Unlock()
		if late == nil {
			t.Fatal("no start was lost")
		}
		if err := late(); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("the start that comes now: %v, want it refused", err)
		}
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
	})
}
