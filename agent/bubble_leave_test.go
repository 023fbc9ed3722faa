package agent_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"pvc.internal/agent/lease"
	"pvc.internal/cluster"
)

// A node that is removed while it is cut off ends when it can be told, and no
// promise of its stays on its disk: should it come back, nothing of old is honoured.
func TestARemovedNodeTakesItsLeaseFileAlong(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		file := func() lease.Found { return leaseFileOf{l.files["hv3"], 0}.Read() }
		if f := file(); f.Kind != lease.FoundRecord || !f.Record.Held {
			t.Fatalf("hv3 has %+v on its disk, want that it serves hv1", f)
		}
		b.store.Partition("hv3")
		b.talk.net.Part("hv3", "hv1")
		b.talk.net.Part("hv3", "hv2")
		b.eventually(2*time.Minute, "hv3 is dead and nobody's any more", func() bool {
			return b.read("/agent/alive/hv3") == "" && b.viewOf("hv1").Nodes["hv3"].Liveness == cluster.LiveDead.String() && l.holding("hv1", "hv1", "hv2")
		})
		order, err := json.Marshal(cluster.MemberOrder{Version: 1, ID: "o1", Action: cluster.MemberRemove, Node: "hv3", Host: "hv3", By: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		b.store.Set("/agent/member-order", order)
		b.eventually(2*time.Minute, "the records of hv3 are gone", func() bool { return b.read("/agent/nodes/hv3") == "" })
		b.heal("hv3")
		b.talk.net.Heal()
		b.eventually(2*time.Minute, "the daemon of hv3 ends", b.nodes["hv3"].ended)
		if err := b.nodes["hv3"].err; !errors.Is(err, cluster.ErrRemoved) {
			t.Errorf("it ended with %v", err)
		}
		if f := file(); f.Kind != lease.FoundNothing {
			t.Errorf("%+v is on its disk", f)
		}
	})
}
