package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// softFence plants a fence of the node's present start in stage soft, by the
// primary in its epoch, with one thing changed.
func (b *bubble) softFence(n cluster.NodeID, edit func(*cluster.FenceRecord)) cluster.FenceRecord {
	b.t.Helper()
	var record cluster.NodeRecord
	if err := json.Unmarshal([]byte(b.read("/agent/nodes/"+string(n))), &record); err != nil {
		b.t.Fatalf("record of %s: %v", n, err)
	}
	lease := readLease([]byte(b.read(leasePath)))
	f := cluster.FenceRecord{Version: 1, ID: "f1", Node: n, Incarnation: record.Incarnation, Epoch: lease.Epoch, By: lease.Holder, Stage: cluster.FenceSoft}
	asked := f
	if edit != nil {
		edit(&f)
	}
	raw, err := json.Marshal(f)
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Set("/agent/fences/"+string(n), raw)
	return asked
}

// asks has one node ask another, as its fencer does, and tells how long that took.
// Where no node leases are in use what the asker believes to hold is not looked at.
func (b *bubble) asks(by cluster.NodeID, r cluster.FenceRecord) (time.Duration, error) {
	lease := cluster.NodeLeaseID{Holder: by, Start: "s", Epoch: r.Epoch}
	return b.asksBy(by, cluster.MintToken(cluster.NewTokenWire(lease, "fence-1", "fence-1", false), func() error { return nil }), r)
}

func (b *bubble) asksBy(by cluster.NodeID, t cluster.Token, r cluster.FenceRecord) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Second)
	defer cancel()
	began := time.Now()
	err := b.nodes[by].agent.AskToStop(ctx, t, r)
	return time.Since(began), err
}

// The primary that fences this very start of a node has it stop; nobody else,
// and by no other fence.
func TestWhoseQuestionANodeObeys(t *testing.T) {
	t.Parallel()
	inBubble(t, bubbleOptions{names: []cluster.NodeID{"hv1", "hv2", "hv3"}, talk: true}, func(b *bubble) {
		b.restful()
		if !b.nodes["hv1"].agent.Answers("hv3") {
			b.t.Error("hv3, which lives, is not known to answer")
		}
		for name, c := range map[string]struct {
			by    cluster.NodeID
			plant func(*cluster.FenceRecord)
			ask   func(*cluster.FenceRecord)
		}{
			"no fence by that name":      {"hv1", func(f *cluster.FenceRecord) { f.ID = "f0" }, nil},
			"it has been canceled":       {"hv1", func(f *cluster.FenceRecord) { f.Stage = cluster.FenceCanceled }, nil},
			"it is only claimed":         {"hv1", func(f *cluster.FenceRecord) { f.Stage = cluster.FenceClaimed }, nil},
			"it is an earlier primary's": {"hv1", func(f *cluster.FenceRecord) { f.By = "hv2" }, nil},
			"and of its epoch":           {"hv1", func(f *cluster.FenceRecord) { f.Epoch-- }, func(f *cluster.FenceRecord) { f.Epoch-- }},
			"of an earlier start":        {"hv1", func(f *cluster.FenceRecord) { f.Incarnation = "hv3.0" }, nil},
			"asked of an earlier start":  {"hv1", nil, func(f *cluster.FenceRecord) { f.Incarnation = "hv3.0" }},
			"by who is not primary":      {"hv2", func(f *cluster.FenceRecord) { f.By = "hv2" }, nil},
			"in the primary's name":      {"hv2", nil, nil},
			"no record that can be read": {"hv1", func(f *cluster.FenceRecord) { f.Epoch = cluster.MaxEpoch + 1 }, nil},
		} {
			asked := b.softFence("hv3", c.plant)
			if c.ask != nil {
				c.ask(&asked)
			}
			if took, err := b.asks(c.by, asked); !errors.Is(err, cluster.ErrRefused) || took > 3*b.timing.KeepaliveInterval/10 {
				b.t.Errorf("%s: %v within %v", name, err, took)
			}
		}
		asked := b.softFence("hv3", nil)
		if took, err := b.asks("hv1", asked); err != nil || took > b.timing.KeepaliveInterval/10 {
			b.t.Errorf("the primary's own: %v within %v", err, took)
		}
		if _, err := b.asks("hv1", asked); err != nil {
			b.t.Errorf("put again: %v", err)
		}
		b.store.Delete("/agent/fences/hv3")
		if _, err := b.asks("hv1", asked); !errors.Is(err, cluster.ErrRefused) {
			b.t.Errorf("come late: %v", err)
		}
		if s := b.read("/nodes/hv3/daemonstate"); s != string(cluster.DaemonRun) {
			b.t.Errorf("hv3 is in state %s: nobody would start it again", s)
		}
	})
}

// A node that was asked, and whose fence comes to nothing, serves again.
func TestANodeThatWasAskedServesAgain(t *testing.T) {
	t.Parallel()
	inBubble(t, bubbleOptions{names: []cluster.NodeID{"hv1", "hv2", "hv3"}, talk: true}, func(b *bubble) {
		b.restful()
		if _, err := b.asks("hv1", b.softFence("hv3", nil)); err != nil {
			b.t.Error(err)
		}
		b.store.Delete("/agent/fences/hv3")
		b.elect("hv3")
	})
}

// Who has lost ZooKeeper cannot make sure of anything: it refuses, and costs the
// fence no more than one question, soon not even that.
func TestANodeWithoutZooKeeperRefuses(t *testing.T) {
	t.Parallel()
	inBubble(t, bubbleOptions{names: []cluster.NodeID{"hv1", "hv2", "hv3"}, talk: true}, func(b *bubble) {
		b.restful()
		asked := b.softFence("hv3", nil)
		b.store.Partition("hv3")
		if took, err := b.asks("hv1", asked); err == nil || took > 3*b.timing.KeepaliveInterval/10 {
			b.t.Errorf("cut off just now: %v within %v", err, took)
		}
		b.eventually(2*b.timing.SuspectAfter(), "hv3 is isolated", func() bool { return b.viewOf("hv1").Nodes["hv3"].Liveness == "isolated" })
		if !b.nodes["hv1"].agent.Answers("hv3") {
			b.t.Error("hv3, which answers probes, is not known to answer")
		}
		if took, err := b.asks("hv1", asked); !errors.Is(err, cluster.ErrRefused) || took > 20*time.Millisecond {
			b.t.Errorf("cut off for long: %v within %v", err, took)
		}
	})
}

// A node without power is not asked, and one that dies while it is asked is not
// waited for.
func TestASilentNodeIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	inBubble(t, bubbleOptions{names: []cluster.NodeID{"hv1", "hv2", "hv3"}, talk: true}, func(b *bubble) {
		b.restful()
		asked := b.softFence("hv3", nil)
		b.powerOff("hv3")
		if took, err := b.asks("hv1", asked); err == nil || took > 3*b.timing.KeepaliveInterval/10 {
			b.t.Errorf("dead just now: %v within %v", err, took)
		}
		b.eventually(2*b.timing.SuspectAfter(), "hv3 is dead", func() bool { return b.viewOf("hv1").Nodes["hv3"].Liveness == "dead" })
		if b.nodes["hv1"].agent.Answers("hv3") {
			b.t.Error("hv3, which is dead, is to be asked")
		}
	})
	inBubble(t, nodesCalled("hv1", "hv2", "hv3"), func(b *bubble) { // nodes do not talk
		b.restful()
		_, err := b.asks("hv1", b.softFence("hv3", nil))
		if b.nodes["hv1"].agent.Answers("hv3") || !errors.Is(err, cluster.ErrRefused) {
			b.t.Errorf("without a network between nodes: %v", err)
		}
	})
}
