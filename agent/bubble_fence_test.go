package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

const failoverPath = "/agent/failover"

// asked is what the fencers of a cluster were asked for; they do nothing.
type asked struct {
	mu   sync.Mutex
	list []string // "hv1 resumes hv3", "hv1 fences hv3"
}

func (a *asked) add(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if line := fmt.Sprintf(format, args...); !slices.Contains(a.list, line) {
		a.list = append(a.list, line)
	}
}

func (a *asked) all() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.list, ", ")
}

type askedFencer struct {
	*asked
	by cluster.NodeID
}

func (f askedFencer) Fence(_ context.Context, _ cluster.Token, a cluster.Action) (cluster.FenceRecord, *cluster.Refusal, error) {
	f.add("%s fences %s", f.by, a.Node)
	return cluster.FenceRecord{}, nil, nil
}

func (f askedFencer) Resume(_ context.Context, _ cluster.Token, n cluster.NodeID) (cluster.FenceRecord, *cluster.Refusal, error) {
	f.add("%s resumes %s", f.by, n)
	return cluster.FenceRecord{}, nil, nil
}

func (f askedFencer) Due(r cluster.Versioned[cluster.FenceRecord], _ cluster.Instant) bool {
	return r.Present && r.Err == nil && r.Value.ID != "" && !r.Value.Ended()
}

// withFencers is a cluster of these nodes and what its fencers are asked for.
func withFencers(names ...cluster.NodeID) (bubbleOptions, *asked) {
	o, a := nodesCalled(names...), &asked{}
	o.tune = func(c *agent.Config, d *agent.Deps) { d.Fencer = askedFencer{a, c.Node} }
	return o, a
}

// leaveFence plants a fence of the node's present start, as an earlier primary
// left it behind.
func (b *bubble) leaveFence(n cluster.NodeID, stage cluster.FenceStage) {
	b.t.Helper()
	var record cluster.NodeRecord
	if err := json.Unmarshal([]byte(b.read("/agent/nodes/"+string(n))), &record); err != nil {
		b.t.Fatalf("record of %s: %v", n, err)
	}
	raw, err := json.Marshal(cluster.FenceRecord{
		Version: 1, ID: "f1", Node: n, Incarnation: record.Incarnation, By: "hv9", Stage: stage, Tries: 1, Reason: "it was silent",
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Set("/agent/fences/"+string(n), raw)
}

// A fence that an earlier primary left where no order was out is judged anew:
// it goes on against a dead node, and against nobody else (I6).
func TestAFenceLeftBehindIsJudgedAnew(t *testing.T) {
	three, four := []cluster.NodeID{"hv1", "hv2", "hv3"}, []cluster.NodeID{"hv1", "hv2", "hv3", "hv4"}
	cases := []struct {
		name  string
		nodes []cluster.NodeID
		dead  []cluster.NodeID
		stage cluster.FenceStage
		want  string
	}{
		{"failed, the node is dead", three, []cluster.NodeID{"hv3"}, cluster.FenceFailed, "hv1 resumes hv3"},
		{"claimed, the node is dead", three, []cluster.NodeID{"hv3"}, cluster.FenceClaimed, "hv1 resumes hv3"},
		{"soft, the node is dead", three, []cluster.NodeID{"hv3"}, cluster.FenceSoft, "hv1 resumes hv3"},
		{"failed, the node lives", three, nil, cluster.FenceFailed, ""},
		{"claimed, the node lives", three, nil, cluster.FenceClaimed, ""},
		{"soft, the node lives", three, nil, cluster.FenceSoft, ""},
		{"claimed, most nodes are dead", three, []cluster.NodeID{"hv2", "hv3"}, cluster.FenceClaimed, ""},
		{"failed, half of the nodes are dead", four, []cluster.NodeID{"hv3", "hv4"}, cluster.FenceFailed, ""},
		{"the order is out, the node lives", three, nil, cluster.FencePowerOff, "hv1 resumes hv3"},
		{"the proof is missing, the node lives", three, nil, cluster.FenceVerify, "hv1 resumes hv3"},
		{"the order is out, half are dead", four, []cluster.NodeID{"hv3", "hv4"}, cluster.FencePowerOff, "hv1 resumes hv3"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o, asked := withFencers(c.nodes...)
			inBubble(t, o, func(b *bubble) {
				b.elect("hv1")
				time.Sleep(b.timing.SessionTimeout)
				b.sighted()
				b.leaveFence("hv3", c.stage)
				for _, n := range c.dead {
					b.powerOff(n)
				}
				span := 2*b.timing.SuspectAfter() + b.timing.SessionTimeout
				if c.want != "" {
					b.eventually(span, "the fencers are asked: "+c.want, func() bool { return asked.all() != "" })
				}
				b.always(span, fmt.Sprintf("the fencers are asked for %q alone", c.want), func() bool { return asked.all() == c.want })
			})
		})
	}
}

// Who is blind carries no fence on, however dead the node was before; once it
// sees again it does (I6).
func TestABlindObserverCarriesNoFenceOn(t *testing.T) {
	t.Parallel()
	o, asked := withFencers("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		time.Sleep(b.timing.SessionTimeout)
		b.sighted()
		b.store.Set(failoverPath, []byte(`{"v":1,"enabled":false,"max_count":1}`)) // no new fence
		b.powerOff("hv3")
		b.eventually(2*b.timing.SuspectAfter()+b.timing.SessionTimeout, "hv3 is dead", func() bool { return b.viewOf("hv1").Nodes["hv3"].Liveness == cluster.LiveDead.String() })
		b.store.Expire("hv1")
		expired := time.Now()
		b.eventually(2*b.timing.KeepaliveInterval, "hv1 is blind", func() bool { return b.viewOf("hv1").Blind != "" })
		b.leaveFence("hv3", cluster.FenceFailed)
		left := b.timing.SessionTimeout - time.Since(expired) - b.timing.KeepaliveInterval/2
		b.always(left, "hv1, in its new session, leaves hv3 alone", func() bool { return asked.all() == "" })
		b.eventually(2*b.timing.SuspectAfter(), "the fence goes on", func() bool { return asked.all() == "hv1 resumes hv3" })
	})
}

// Nobody is fenced by settings that cannot be read: what they forbid is not
// known. The primary says so, and acts as soon as they can be read.
func TestUnreadableFailoverSettingsKeepEverybodyFromFencing(t *testing.T) {
	t.Parallel()
	o, asked := withFencers("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		b.elect("hv1")
		time.Sleep(b.timing.SessionTimeout)
		b.sighted()
		b.powerOff("hv3")
		time.Sleep(b.timing.SuspectAfter() - b.timing.KeepaliveInterval)
		b.store.Set(failoverPath, []byte("{"))
		b.always(3*b.timing.SuspectAfter(), "nobody is fenced", func() bool { return asked.all() == "" })
		if said := b.read("/agent/views/hv1"); !strings.Contains(said, "the failover settings cannot be read") {
			b.t.Errorf("hv1 does not say why it fences nobody: %s", said)
		}
		b.leaveFence("hv3", cluster.FenceClaimed)
		b.always(b.timing.SuspectAfter(), "no fence is carried on", func() bool { return asked.all() == "" })
		b.store.Delete("/agent/fences/hv3")
		b.store.Set(failoverPath, []byte(`{"v":1,"enabled":true,"max_count":1}`))
		b.eventually(b.timing.SuspectAfter(), "hv3 is fenced", func() bool { return asked.all() == "hv1 fences hv3" })
	})
}
