package agent_test

import (
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// A node that boots while the fence of its earlier start is between the order
// and the proof waits, with nothing of it in the store, so that the order cannot
// hit it at work; once that has ended it joins (I5, I7).
func TestANodeThatBootsIntoItsOwnFenceWaits(t *testing.T) {
	for _, stage := range []cluster.FenceStage{cluster.FencePowerOff, cluster.FenceVerify} {
		for _, end := range []cluster.FenceStage{cluster.FenceDone, cluster.FenceFailed, cluster.FenceCanceled} {
			t.Run(string(stage)+", then "+string(end), func(t *testing.T) {
				t.Parallel()
				o, _ := threeWithFencers()
				inFabric(t, o, func(b *bubble, f *fabric) {
					b.settled()
					b.powerOff("hv3")
					time.Sleep(b.timing.SessionTimeout + b.timing.KeepaliveInterval) // its session has ended
					b.leaveFence("hv3", stage)
					var asked atomic.Int64
					b.store.DropRequest("hv3", func(zktest.OpInfo) bool { asked.Add(1); return false }) // counts, and drops nothing
					b.start("hv3")
					const waits = 30
					b.always(waits*time.Second, "hv3 waits", func() bool { return b.read("/agent/alive/hv3") == "" })
					// Five tries a second, each with some reads: it does not ask for more with every answer.
					if n := asked.Load(); n > waits*5*40 {
						b.t.Errorf("hv3 has put %d questions to the store in %d s of waiting", n, waits)
					}
					b.leaveFence("hv3", end)
					b.eventually(3*b.timing.KeepaliveInterval, "hv3 has joined", func() bool {
						return b.read("/agent/alive/hv3") != "" && b.read("/nodes/hv3/daemonstate") == string(cluster.DaemonRun)
					})
					b.settles(10 * time.Second)
				})
			})
		}
	}
}
