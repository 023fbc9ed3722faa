package agent_test

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

const maintenancePath = "/config/maintenance"

// In maintenance nobody takes the role of his own accord, however dead its
// holder; when it ends, everybody begins to observe anew.
func TestMaintenanceKeepsEverybodyFromTaking(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		b.store.Set(maintenancePath, []byte("true"))
		time.Sleep(time.Second)
		b.powerOff("hv1")
		b.always(30*time.Second, "nobody acts", func() bool { return b.seen.holder() == "" })
		for _, n := range []cluster.NodeID{"hv2", "hv3"} {
			found := false
			for _, r := range b.nodes[n].agent.Status().Role.Refusals {
				found = found || r.Code == cluster.RefuseMaintenance
			}
			if !found {
				b.t.Errorf("%s does not say that maintenance keeps it from taking the role", n)
			}
		}
		b.store.Set(maintenancePath, []byte("false"))
		b.always(b.timing.RoleTTL, "nobody acts before it has observed anew", func() bool { return b.seen.holder() == "" })
		b.eventually(time.Second, "the role is taken", func() bool { return b.seen.holder() != "" })
	})
}

// What an operator asks for runs in maintenance, too.
func TestAWishIsServedInMaintenance(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		b.store.Set(maintenancePath, []byte("true"))
		time.Sleep(time.Second)
		for _, to := range []cluster.NodeID{"hv3", "hv2", "hv1"} {
			b.wish(string(to))
			b.eventually(3*time.Second, "the role is at "+string(to), func() bool { return b.converged() == to })
		}
	})
}

// A daemon that is stopped in maintenance leaves role, addresses and services
// to its next start.
func TestAStopInMaintenanceLeavesTheRoleToTheNextStart(t *testing.T) {
	for _, pause := range []time.Duration{200 * time.Millisecond, 20 * time.Second, 50 * time.Second} {
		t.Run(pause.String(), func(t *testing.T) {
			t.Parallel()
			inBubble(t, threeNodes(), func(b *bubble) {
				b.elect("hv1")
				b.store.Set(maintenancePath, []byte("true"))
				time.Sleep(time.Second)
				gaps, starts := b.seen.counts()
				b.nodes["hv1"].stop()
				b.eventually(5*time.Second, "the daemon has ended", b.nodes["hv1"].ended)
				b.always(pause, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				b.start("hv1")
				b.always(10*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				b.store.Set(maintenancePath, []byte("false"))
				b.always(5*time.Second, "hv1 acts", func() bool { return b.seen.holder() == "hv1" })
				if p := b.settles(5 * time.Second); p != "hv1" {
					b.t.Errorf("%s is primary", p)
				}
				if g, s := b.seen.counts(); g != gaps || s != starts {
					b.t.Errorf("%d gaps and %d service starts, want none", g-gaps, s-starts)
				}
				if ttl := readLease([]byte(b.read(leasePath))).TTL(); ttl != b.timing.RoleTTL {
					b.t.Errorf("the lease's ttl is %v, want %v again", ttl, b.timing.RoleTTL)
				}
			})
		})
	}
}

// A role left in maintenance whose daemon never comes back ends by its long
// deadline, and only then.
func TestARoleLeftInMaintenanceEndsByItself(t *testing.T) {
	t.Parallel()
	inBubble(t, threeNodes(), func(b *bubble) {
		b.elect("hv1")
		b.store.Set(maintenancePath, []byte("true"))
		time.Sleep(time.Second)
		b.nodes["hv1"].stop()
		b.eventually(5*time.Second, "the daemon has ended", b.nodes["hv1"].ended)
		b.store.Set(maintenancePath, []byte("false"))
		b.always(55*time.Second, "hv1's guard keeps it", func() bool { return b.seen.holder() == "hv1" })
		b.eventually(12*time.Second, "another has taken it", func() bool { p := b.primary(); return p != "" && p != "hv1" })
	})
}
