package guard

import (
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"pvc.internal/cluster"
)

// What a late answer waited for stands in the log, and nothing for one in time.
func TestASlowExtensionNamesWhatItWaitedFor(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	g := &Guard{log: zap.New(core)}
	d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 3}
	g.tellSlow(d, 0, 0, slowExtend-1)
	if n := logs.Len(); n != 0 {
		t.Errorf("%d lines for an extension in time", n)
	}
	g.tellSlow(d, time.Millisecond, 2*time.Millisecond, 2*time.Second)
	lines := logs.All()
	if len(lines) != 1 {
		t.Fatalf("%d lines, want 1", len(lines))
	}
	said := lines[0].ContextMap()
	if said["for_the_lock"] != time.Millisecond || said["for_the_ledger"] != 2*time.Millisecond || said["for_the_gate"] != 2*time.Second {
		t.Errorf("it says %v", said)
	}
}
