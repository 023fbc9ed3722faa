package agent_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// withHypervisor is three coordinators and a hypervisor, hy1, that talk, and what
// its fencers are asked for.
func withHypervisor() (bubbleOptions, *asked) {
	o, a := talkingFencers("hv1", "hv2", "hv3", "hy1")
	o.hypervisors = []cluster.NodeID{"hy1"}
	return o, a
}

// A hypervisor follows its own records only, and is a full member all the same:
// the coordinators see it, and fence it when it is lost.
func TestAHypervisorNeedsNobodyElsesRecords(t *testing.T) {
	t.Parallel()
	o, fences := withHypervisor()
	inBubble(t, o, func(b *bubble) {
		b.restful()
		if seen := b.nodes["hy1"].agent.Status().Snapshot; len(seen.Nodes) != 1 || !seen.Complete {
			b.t.Errorf("the hypervisor follows %d nodes", len(seen.Nodes))
		}
		b.eventually(5*time.Second, "the hypervisor is up for every coordinator, and says that it judges nobody", func() bool {
			for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
				if b.viewOf(n).Nodes["hy1"].Liveness != cluster.LiveUp.String() {
					return false
				}
			}
			own := b.viewOf("hy1")
			return own.Version == 1 && len(own.Nodes) == 0 && own.Blind == ""
		})
		b.powerOff("hy1")
		b.eventually(10*time.Second, "the hypervisor's fence is asked for", func() bool { return fences.all() == "hv1 fences hy1" })
		b.start("hy1")
		b.eventually(20*time.Second, "the hypervisor is back", func() bool {
			return b.read("/nodes/hy1/daemonstate") == "run" && b.viewOf("hv1").Nodes["hy1"].Liveness == cluster.LiveUp.String()
		})
	})
}

// It registers anew in a new session, as every node does.
func TestAHypervisorRegistersInEachSession(t *testing.T) {
	t.Parallel()
	o, _ := withHypervisor()
	inBubble(t, o, func(b *bubble) {
		b.restful()
		session := func() string {
			var last string
			for _, h := range b.store.History() {
				if h.Path == "/agent/alive/hy1" && h.Op == "create" {
					last = h.At.String()
				}
			}
			return last
		}
		before := session()
		b.store.Expire("hy1")
		b.eventually(5*time.Second, "it has registered again", func() bool { return session() != before && b.read("/agent/alive/hy1") != "" })
	})
}

// A second daemon of a hypervisor's name is refused while the first lives, and
// has the name 2 K after it has died: the first's keepalive, which nobody there
// watches, is read at each try.
func TestAHypervisorsNameIsTakenOnce(t *testing.T) {
	t.Parallel()
	o, _ := withHypervisor()
	inBubble(t, o, func(b *bubble) {
		b.restful()
		second := b.startAs("hy1", "rack9", newBubbleGuard("rack9", b.clock, b.seen))
		b.eventually(5*time.Second, "the second has ended", second.ended)
		if !errors.Is(second.err, cluster.ErrDuplicateNode) || !strings.Contains(second.err.Error(), "alive on hy1") {
			b.t.Errorf("the second ended with %v, want %v naming the first's host", second.err, cluster.ErrDuplicateNode)
		}
		<-b.after("hy1", "keepalive", func() { b.powerOff("hy1") })
		b.startAs("hy1", "rack10", newBubbleGuard("rack10", b.clock, b.seen))
		registered := func() bool { return strings.Contains(b.read("/agent/alive/hy1"), "rack10") }
		b.always(2*b.timing.KeepaliveInterval, "the name is not taken", func() bool { return !registered() })
		b.eventually(time.Second, "the name is taken", registered)
	})
}
