package agent_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// A quorum that names somebody who is not in the cluster is refused at once, with
// the nodes that there are; one that names a node that is down waits for it. The
// manager knows them all, hypervisors too, and learns of those that come.
func TestAQuorumOfStrangersIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	o := leased(bubbleOptions{talk: true, tune: func(*agent.Config, *agent.Deps) {}})
	inBubble(t, o, func(b *bubble) {
		for _, n := range leaseTrio {
			b.start(n)
		}
		b.elect("hv1")
		tries := func(quorum cluster.Quorum) (code cluster.RefusalCode, took time.Duration) {
			began := time.Now()
			err := b.nodes["hv1"].agent.Activities().Run(b.t.Context(), activity.Spec{Name: "drain", Quorum: quorum, Timeout: 10 * time.Second},
				func(context.Context, *activity.Activity) error { return nil })
			var no *cluster.RefusedActivity
			if errors.As(err, &no) {
				code = no.Code
			} else if err != nil {
				b.t.Error(err)
			}
			return code, time.Since(began)
		}
		b.eventually(10*time.Second, "hv1 has all", func() bool {
			code, _ := tries(cluster.All("hv1", "hv2", "hv3"))
			return code == ""
		})
		if code, took := tries(cluster.Each(cluster.Majority(), cluster.All("hv4"))); code != cluster.RefuseUnknownNode || took != 0 {
			b.t.Errorf("hv4, which there is not: %q after %v", code, took)
		}
		b.powerOff("hv3")
		b.eventually(3*b.timing.NodeLeasePeriod, "the lease of hv3 is over", func() bool {
			_, held, _ := b.nodes["hv1"].agent.QuorumHeld("hv3")
			return !held
		})
		if code, took := tries(cluster.All("hv3")); code != cluster.RefuseNoQuorum || took < 10*time.Second {
			b.t.Errorf("hv3, which is off: %q after %v", code, took)
		}
		b.start("hv4")
		b.eventually(5*b.timing.KeepaliveInterval, "hv4 is known", func() bool {
			code, _ := tries(cluster.All("hv4"))
			return code == ""
		})
		b.powerOff("hv4")
		b.eventually(3*b.timing.NodeLeasePeriod, "the lease of hv4 is over", func() bool {
			_, held, _ := b.nodes["hv1"].agent.QuorumHeld("hv4")
			return !held
		})
		if code, _ := tries(cluster.All("hv4")); code != cluster.RefuseNoQuorum {
			b.t.Errorf("hv4, which was there a moment ago: %q", code)
		}
	})
}

// What `pvc lease list` shows of the quorum set changes with it, not with the
// next writing of the figures.
func TestTheListFollowsTheQuorumSet(t *testing.T) {
	inLeasing(t, leaseTrio, func(b *bubble, l *leasing) {
		b.eventually(10*time.Second, "the set of all is shown", func() bool { return len(l.record().Set) == 3 })
		before := l.record().UnixMS
		b.eventually(tableTime, "the figures have just been written", func() bool { return l.record().UnixMS != before })
		b.store.Set("/agent/quorum", []byte(`{"v":1,"nodes":["hv1","hv2"],"epoch":1,"n":9}`))
		b.eventually(5*b.timing.KeepaliveInterval, "the new set is shown", func() bool { return len(l.record().Set) == 2 })
	})
}
