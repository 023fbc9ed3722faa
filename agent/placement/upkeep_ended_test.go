package placement

import (
	"testing"

	"pvc.internal/cluster"
)

// What its node's own stop has ended starts there again, whatever its starts had done
// before; what has run for long has none that count.
func TestAnEndWithItsNodeIsNoFailedStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		state         cluster.WorkloadState
		found         cluster.CopyState
		attempts      int
		ended, steady bool
		want          Do
	}{
		"ended by itself, twice":               {cluster.WorkloadRunning, cluster.CopyMissing, OneNode, false, false, DoLeave},
		"ended with its node after that":       {cluster.WorkloadRunning, cluster.CopyMissing, OneNode, true, false, DoStart},
		"ended by itself, once too often":      {cluster.WorkloadRunning, cluster.CopyMissing, MaxAttempts, false, false, DoFail},
		"ended with its node at the last try":  {cluster.WorkloadRunning, cluster.CopyMissing, MaxAttempts, true, false, DoStart},
		"never came up since its node's stop":  {cluster.WorkloadStarting, cluster.CopyMissing, OneNode, true, false, DoLeave},
		"runs, not for long":                   {cluster.WorkloadRunning, cluster.CopyActive, OneNode, false, false, DoNothing},
		"runs, long enough":                    {cluster.WorkloadRunning, cluster.CopyActive, OneNode, false, true, DoSteady},
		"runs long enough without any trouble": {cluster.WorkloadRunning, cluster.CopyActive, 0, false, true, DoNothing},
	} {
		got := Upkeep(Case{
			Workload: cluster.Workload{Name: "w", Wanted: true, State: c.state, Chain: []cluster.NodeID{"a"}, Attempts: c.attempts},
			Reports:  map[cluster.NodeID]cluster.CopyReport{"a": {State: c.found}},
			Ready:    map[cluster.NodeID]bool{"a": true},
			Ended:    c.ended, Steady: c.steady,
		})
		if got.Do != c.want {
			t.Errorf("%s: %q (%s), want %q", name, got.Do, got.Why, c.want)
		}
	}
}
