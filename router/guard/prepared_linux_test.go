package guard

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// The removal at the deadline is prepared whenever the role has addresses, so
// that the alarm's thread alone can carry it out (I3).
func TestTheEndStaysPreparedAfterARefusedPresent(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		if !holding(t, g, 1, time.Minute) {
			return
		}
		bad := append(slices.Clone(all), cluster.FloatingAddress{Name: "x", Prefix: netip.MustParsePrefix("10.99.0.1/24"), Interface: "none0"})
		if err := g.present(1, bad); err == nil {
			t.Error("presented on an interface that is not there")
		}
		g.addrs.mu.Lock()
		defer g.addrs.mu.Unlock()
		if len(g.addrs.remove) == 0 {
			t.Error("the addresses stay, and nothing is prepared for their removal at the deadline")
		}
	})
}

// Those of a role that a restarted guard has adopted, too.
func TestTheEndOfAnAdoptedRoleIsPrepared(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		if !holding(t, g, 1, time.Minute) {
			return
		}
		g.addrs.mu.Lock()
		g.addrs.remove = nil // as a successor begins
		g.addrs.mu.Unlock()
		g.reconcile()
		g.addrs.mu.Lock()
		defer g.addrs.mu.Unlock()
		if len(g.addrs.remove) == 0 {
			t.Error("after a tick nothing is prepared for the removal of adopted addresses")
		}
	})
}
