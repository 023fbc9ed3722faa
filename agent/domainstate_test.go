package agent_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// movedValues is a collector whose figures the test changes.
type movedValues struct {
	mu     sync.Mutex
	values map[string]string
}

func (*movedValues) Name() string { return "moved" }

func (v *movedValues) Collect(context.Context) (map[string]string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.values, nil
}

func (v *movedValues) set(running string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.values = map[string]string{"runningdomains": running}
}

// A node answers an operator's flush and ready by itself, and each once; it
// never reads "flushed" while it publishes workloads that run there.
func TestANodeAnswersFlushAndReady(t *testing.T) {
	t.Parallel()
	const path = "/nodes/hv2/domainstate"
	running := &movedValues{}
	running.set("")
	o := nodesCalled("hv1", "hv2")
	o.tune = func(c *agent.Config, d *agent.Deps) {
		if c.Node != "hv2" {
			return
		}
		collection, err := agent.NewCollection(d.Clock, d.Log, 800*time.Millisecond, running)
		if err != nil {
			t.Error(err)
		}
		d.Collector = collection
	}
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		b.sighted()
		is := func(s cluster.DomainState) func() bool { return func() bool { return b.read(path) == string(s) } }
		within := 3 * b.timing.KeepaliveInterval
		for range 2 {
			b.store.Set(path, []byte("unflush"))
			b.eventually(within, "it is ready", is(cluster.DomainReady))
			b.store.Set(path, []byte("flush"))
			b.eventually(within, "it is flushed", is(cluster.DomainFlushed))
		}
		b.always(5*b.timing.KeepaliveInterval, "it stays so", is(cluster.DomainFlushed))

		b.store.Set(path, []byte("unflush"))
		b.eventually(within, "it is ready again", is(cluster.DomainReady))
		running.set("vm2 vm1")
		b.eventually(within, "it publishes what runs", func() bool { return b.read("/nodes/hv2/runningdomains") == "vm2 vm1" })
		b.store.Set(path, []byte("flush"))
		b.always(20*b.timing.KeepaliveInterval, "it does not claim to be flushed", is(cluster.DomainFlush))
		running.set("")
		b.eventually(2*within, "it is flushed once nothing runs", is(cluster.DomainFlushed))
	})
}
