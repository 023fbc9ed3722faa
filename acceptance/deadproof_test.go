package acceptance

import (
	"os"
	"testing"

	"pvc.internal/sandbox"
)

// TestTheTakerWaitsForADeadProof: where the role's services must not run twice
// its taker fences the lost holder first and serves after the proof, whichever
// proof that is.
func TestTheTakerWaitsForADeadProof(t *testing.T) {
	if os.Getenv("PVC_SOAK") == "" {
		t.Skip("takes a minute: with PVC_SOAK=1")
	}
	c := newWatchdogCluster(t, sandbox.Options{RequireDeadProof: true})
	c.run("verified off", c.lives("power-loss-follower"))
	c.run("ended by its watchdog", c.endedByWatchdog(true, hang))
	c.keepsInvariants(t)
}
