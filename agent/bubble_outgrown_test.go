package agent_test

import (
	"encoding/json"
	"strings"
	"testing"

	"pvc.internal/agent/lease"
	"pvc.internal/cluster"
)

// seenBefore gives a host the lease file of a node that has seen an epoch in an
// earlier life of the records.
func seenBefore(e cluster.Epoch, of cluster.NodeID) *leaseFile {
	return &leaseFile{found: lease.Found{Kind: lease.FoundRecord, Record: lease.Record{Epoch: e, EpochOf: of}}}
}

// The records were put back from an older backup, and the primary has a fresh
// state folder: the other nodes have seen larger epochs and serve nobody under
// its own. It learns that from their answers, goes on under a larger epoch
// without a gap, and has a majority; so has whoever comes after it.
func TestAPrimaryOfOlderRecordsOutgrowsWhatNodesHaveSeen(t *testing.T) {
	t.Parallel()
	l, o := newLeasing(leaseTrio...)
	l.files["hv2"], l.files["hv3"] = seenBefore(9, "hv3"), seenBefore(12, "hv2")
	inBubbleOf(t, bubbleOptions{names: []cluster.NodeID{"hv1"}, talk: true, tune: o.tune}, l, func(b *bubble) {
		b.elect("hv1")
		if e := b.leaseEpoch(); e > 2 {
			t.Fatalf("hv1 is primary at epoch %d, so that this shows nothing", e)
		}
		gaps, _ := b.seen.counts()
		for _, n := range leaseTrio[1:] {
			b.start(n)
		}
		b.eventually(4*b.timing.NodeLeasePeriod, "hv1 holds all leases", func() bool { return l.holding("hv1", leaseTrio...) })
		if e := b.leaseEpoch(); e != 13 || l.now("hv1").Lease.Epoch != 13 {
			t.Errorf("the lease is of epoch %d, the node leases of %d; 12 was seen", e, l.now("hv1").Lease.Epoch)
		}
		b.entered(b.timing.KeepaliveInterval, "the history says so", func(e cluster.Event) bool {
			return e.Kind == "epoch_raised" && strings.Contains(e.Text, "epoch 12")
		})
		if now, _ := b.seen.counts(); now != gaps || b.converged() != "hv1" {
			t.Errorf("the addresses were silent: %d gaps, %d before; primary %q", now, gaps, b.converged())
		}
		b.elect("hv2")
		l.majority("hv2", 4*b.timing.NodeLeasePeriod)
		if e := b.leaseEpoch(); e <= 13 {
			t.Errorf("the next primary has epoch %d", e)
		}
		for _, w := range l.wrong {
			t.Error(w)
		}
	})
}

// A node whose own file has seen a larger epoch than the records takes the role
// beyond that at once.
func TestATakeGoesBeyondWhatThisNodeHasSeen(t *testing.T) {
	t.Parallel()
	l, o := newLeasing("hv1")
	l.files["hv1"] = seenBefore(9, "hv2")
	inBubbleOf(t, o, l, func(b *bubble) {
		b.elect("hv1")
		if e := b.leaseEpoch(); e != 10 {
			t.Errorf("hv1 took the role at epoch %d, having seen 9", e)
		}
		b.entered(b.timing.KeepaliveInterval, "it was taken", func(e cluster.Event) bool { return e.Kind == "transition" })
		for _, h := range b.store.History() {
			if strings.Contains(string(h.Data), `"epoch_raised"`) {
				t.Errorf("it was taken at a smaller epoch first: %s", h.Data)
			}
		}
	})
}

func (b *bubble) leaseEpoch() cluster.Epoch {
	b.t.Helper()
	var l cluster.Lease
	if err := json.Unmarshal([]byte(b.read("/agent/lease/primary")), &l); err != nil {
		b.t.Fatal(err)
	}
	return l.Epoch
}
