package lease

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

// What one renewal costs the node, and the leader.
func BenchmarkRenewal(b *testing.B) {
	id := cluster.NodeLeaseID{Holder: "a", Start: "s", Epoch: 5}
	request := func(n uint64) Input {
		return Input{Kind: InputRequest, Member: true, From: "a", Ticket: n, Request: cluster.NodeLeaseRequest{Op: cluster.LeaseGrant, ID: id, N: n}}
	}
	b.Run("granter", func(b *testing.B) {
		g, now := NewGranter(NewGranterConfig("n", "life", cluster.ProfileLAN())), began
		g, _ = g.Step(Input{Kind: InputStart}, now)
		g, _ = g.Step(request(1), now)
		g, _ = g.Step(Input{Kind: InputPersisted, Seq: 1}, now)
		b.ReportAllocs()
		for n := uint64(2); b.Loop(); n++ {
			now = now.Add(time.Second)
			g, _ = g.Step(request(n), now)
		}
	})
	b.Run("holder", func(b *testing.B) {
		h, now := NewHolder(NewHolderConfig(id, "n", cluster.ProfileLAN())), began
		b.ReportAllocs()
		for held := time.Duration(0); b.Loop(); held += time.Second {
			var out HolderOutput
			if h, out = h.Step(HolderInput{Wanted: true}, now); out.Ask == nil {
				b.Fatal("nothing is asked")
			}
			h, out = h.Step(HolderInput{Wanted: true, Kind: HolderAnswer, Answer: cluster.NodeLeaseAnswer{N: out.Ask.N, Left: 5 * time.Second, Chain: "c", Held: held}}, now)
			now = out.Wake
		}
	})
}
