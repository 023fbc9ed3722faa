package agent_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// hangingFencer never returns, whatever its context says, until it is let go:
// worse than any fence agent, which is a child process that can be killed.
type hangingFencer struct {
	askedFencer
	let chan struct{}
}

func (f hangingFencer) hang(format string, args ...any) (cluster.FenceRecord, *cluster.Refusal, error) {
	f.add(format, args...)
	<-f.let
	return cluster.FenceRecord{}, nil, context.Canceled
}

func (f hangingFencer) Fence(_ context.Context, _ cluster.Token, a cluster.Action) (cluster.FenceRecord, *cluster.Refusal, error) {
	return f.hang("%s fences %s", f.by, a.Node)
}

func (f hangingFencer) Resume(_ context.Context, _ cluster.Token, n cluster.NodeID) (cluster.FenceRecord, *cluster.Refusal, error) {
	return f.hang("%s resumes %s", f.by, n)
}

func (f hangingFencer) Order(_ context.Context, _ cluster.Token, o cluster.Versioned[cluster.FenceOrder], _ int64) (cluster.FenceRecord, *cluster.Refusal, error) {
	return f.hang("%s obeys %s of %s", f.by, o.Value.Action, o.Value.Node)
}

func (hangingFencer) Ripe(cluster.NodeView, cluster.Instant) (ripe, try bool) { return false, false }

func (f hangingFencer) Settle(_ context.Context, _ cluster.Token, n cluster.NodeID, _ bool) (cluster.FenceRecord, *cluster.Refusal, error) {
	return f.hang("%s settles %s", f.by, n)
}

func (f hangingFencer) TestDevices(_ context.Context, nodes ...cluster.NodeID) []cluster.DeviceReport {
	_, _, _ = f.hang("%s tests devices", f.by)
	return nil
}

// withHangingFencers are three nodes whose fencers hang until the returned
// function lets them go.
func withHangingFencers() (bubbleOptions, *asked, func()) {
	o, a := threeNodes(), &asked{}
	var let chan struct{} // one of the bubble's own, or its time stood still
	o.tune = func(c *agent.Config, d *agent.Deps) {
		if let == nil {
			let = make(chan struct{})
		}
		d.Fencer = hangingFencer{askedFencer{a, c.Node}, let}
	}
	return o, a, func() { close(let) }
}

// longestGap is the longest time since then in which the path was not written.
func (b *bubble) longestGap(path string, since time.Time) (worst time.Duration) {
	last := since
	for _, h := range b.store.History() {
		if h.Path == path && h.At.After(since) {
			worst, last = max(worst, h.At.Sub(last)), h.At
		}
	}
	return max(worst, time.Since(last))
}

// A fence, a test of devices and an operator's order that hang, all of them,
// delay neither a keepalive nor a renewal nor a switch (I10).
func TestAFenceThatHangsDelaysNothing(t *testing.T) {
	t.Parallel()
	o, asked, let := withHangingFencers()
	inFabric(t, o, func(b *bubble, f *fabric) {
		defer let() // a daemon ends only when it has nothing under way
		b.settled()
		b.eventually(15*time.Second, "the devices' test hangs", func() bool { return strings.Contains(asked.all(), "hv1 tests devices") })
		b.powerOff("hv3")
		b.eventually(2*b.timing.SuspectAfter(), "the fence hangs", func() bool { return strings.Contains(asked.all(), "hv1 fences hv3") })
		b.orderAbout("hv3", cluster.OrderCancel)
		from := time.Now()
		time.Sleep(2 * time.Minute)
		for _, n := range []string{"hv1", "hv2"} {
			if gap := b.longestGap("/nodes/"+n+"/keepalive", from); gap > 3*b.timing.KeepaliveInterval/2 {
				b.t.Errorf("%s wrote no keepalive for %v beside a fence that hangs", n, gap)
			}
		}
		if gap := b.longestGap(leasePath, from); gap > 3*b.timing.RenewInterval/2 {
			b.t.Errorf("the role was not renewed for %v beside a fence that hangs", gap)
		}
		b.wish("hv2")
		b.eventually(4*time.Second, "the role moves beside a fence that hangs", func() bool { return b.primary() == "hv2" })
		b.eventually(4*time.Second, "and the next primary begins", func() bool { return strings.Contains(asked.all(), "hv2 fences hv3") })
		if all := strings.Split(asked.all(), ", "); slices.ContainsFunc(all, func(s string) bool { return strings.HasSuffix(s, "fences hv1") || strings.HasSuffix(s, "fences hv2") }) {
			b.t.Errorf("who lives was fenced: %v", all)
		}
	})
}
