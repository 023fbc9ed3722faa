package agent_test

import (
	"testing"

	"pvc.internal/cluster"
)

// The records were put back, and the nodes have seen the primary's very epoch as
// another's: none serves it under that one, and it goes on under a larger one.
func TestAPrimaryWhoseEpochWasAnothersOutgrowsIt(t *testing.T) {
	t.Parallel()
	l, o := newLeasing(leaseTrio...)
	inBubbleOf(t, bubbleOptions{names: []cluster.NodeID{"hv1"}, talk: true, tune: o.tune}, l, func(b *bubble) {
		b.elect("hv1")
		e := b.leaseEpoch()
		for _, n := range leaseTrio[1:] {
			l.files[n] = seenBefore(e, "hv3")
			b.start(n)
		}
		b.eventually(4*b.timing.NodeLeasePeriod, "hv1 holds all leases", func() bool { return l.holding("hv1", leaseTrio...) })
		if now := b.leaseEpoch(); now <= e || l.now("hv1").Lease.Epoch != now {
			t.Errorf("the lease is of epoch %d, the node leases of %d; %d was hv3's", now, l.now("hv1").Lease.Epoch, e)
		}
		for _, w := range l.wrong {
			t.Error(w)
		}
	})
}
