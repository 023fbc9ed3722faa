package agent_test

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

// What is called off while it waits for a node's lease says nothing of that node: as
// soon as the lease is there again the node is given what is to go there.
func TestWhatIsCalledOffIsNotHeldAgainstItsTarget(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv2"), func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv2", "hv3"} })
		b.onlyOn(w, 30*time.Second, "vm1", "hv2")
		p := b.nodes["hv1"].agent
		lease := func(want bool) func() bool {
			return func() bool { _, held, _ := p.QuorumHeld("hv3"); return held == want }
		}
		b.talk.net.Cut("hv1", "hv3")
		b.talk.net.Cut("hv3", "hv1")
		b.eventually(time.Minute, "the lease of hv3 is lost", lease(false))
		waits := func() bool {
			for _, a := range p.Activities().List() {
				if a.Name == "drain-vm1" && a.State == cluster.ActivityWaiting {
					return true
				}
			}
			return false
		}
		b.domain("hv2", cluster.DomainFlush)
		b.eventually(20*time.Second, "the move waits for it", waits)
		b.domain("hv2", cluster.DomainReady)
		b.eventually(2*time.Second, "it is called off", func() bool { return !waits() })
		b.talk.net.Heal()
		b.eventually(10*time.Second, "the lease is there again", lease(true))
		b.movable("vm2", func(w *cluster.Workload) { w.Nodes = []cluster.NodeID{"hv3"} })
		b.onlyOn(w, 3*time.Second, "vm2", "hv3")
	})
}
