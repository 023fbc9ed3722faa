package agent_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// heldCollector tells of a host's copies as the daemon's does.
type heldCollector struct {
	held func(context.Context) ([]string, error)
}

func (heldCollector) Name() string { return agent.CopiesCollector }

func (h heldCollector) Collect(ctx context.Context) (map[string]string, error) {
	names, err := h.held(ctx)
	return map[string]string{"runningdomains": strings.Join(names, " "), "domainscount": strconv.Itoa(len(names))}, err
}

// A node's counts and lists at PVC's paths are right one keepalive after a copy came or
// went, whenever in a keepalive that was: active copies and replicas, by orders of
// another node, of the primary's own, and by themselves.
func TestCountsFollowWithinAKeepalive(t *testing.T) {
	tune := func(c *agent.Config, d *agent.Deps) {
		all, err := agent.NewCollection(d.Clock, d.Log, c.Timing.CollectorDeadline, heldCollector{d.Copies.Held})
		if err != nil {
			t.Error(err)
			return
		}
		d.Collector = all
	}
	inCopyWorld(t, tune, func(b *bubble, w *copyWorld) {
		says := func(n cluster.NodeID) string {
			return b.read("/nodes/"+string(n)+"/domainscount") + ": " + b.read("/nodes/"+string(n)+"/runningdomains")
		}
		within := b.timing.KeepaliveInterval + 50*time.Millisecond // the write's own time
		b.cache(w)
		for _, n := range []cluster.NodeID{"hv2", "hv3"} {
			b.eventually(within, fmt.Sprintf("%s counts its copy of the cache", n), func() bool { return says(n) == "1: cache" })
		}
		had := map[cluster.NodeID]string{"hv1": "", "hv3": "cache "}
		for i, n := range []cluster.NodeID{"hv1", "hv3", "hv1", "hv3", "hv1", "hv3", "hv1", "hv3"} {
			time.Sleep(time.Duration(i) * b.timing.KeepaliveInterval / 7)
			name := fmt.Sprintf("vm%d", i)
			b.movable(name, on(n))
			b.eventually(30*time.Second, name+" runs", func() bool { return w.state(n, name) == cluster.CopyActive })
			had[n] += name + " "
			want := fmt.Sprintf("%d: %s", len(strings.Fields(had[n])), strings.TrimSpace(had[n]))
			b.eventually(within, name+" is counted", func() bool { return says(n) == want })
		}
		w.set(func() { w.host("hv2").copies["alien"] = &worldCopy{state: cluster.CopyActive, start: 1} })
		select {
		case w.host("hv2").changed <- cluster.CopyChange{Workload: "alien", Text: "started"}:
		default:
			t.Error("the hint was not taken")
		}
		b.eventually(within, "what started by itself is counted", func() bool { return says("hv2") == "2: alien cache" })
	})
}
