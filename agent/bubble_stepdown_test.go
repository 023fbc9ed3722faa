package agent_test

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A daemon that steps down hands the role over at once and contends for it no more;
// it goes on, with its keepalives and its copies, until it is stopped.
func TestWhoStepsDownHandsOverAndGoesOn(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv1"))
		b.onlyOn(w, 30*time.Second, "vm1", "hv1")
		b.elect("hv1")
		b.nodes["hv1"].agent.StepDown()
		b.eventually(5*time.Second, "another serves", func() bool { p := b.converged(); return p == "hv2" || p == "hv3" })
		b.elect("hv2")
		b.wish("hv1")
		b.always(30*time.Second, "hv1 lives, serves no more, and keeps its copy", func() bool {
			return b.primary() != "hv1" && b.read("/agent/alive/hv1") != "" && b.read("/nodes/hv1/daemonstate") == string(cluster.DaemonRun) && len(w.active("vm1")) == 1
		})
		b.nodes["hv1"].stop()
		b.eventually(30*time.Second, "it ends in order", func() bool {
			return b.nodes["hv1"].ended() && b.read("/nodes/hv1/daemonstate") == string(cluster.DaemonStop)
		})
		if err := b.nodes["hv1"].err; err != nil {
			t.Error(err)
		}
	})
}
