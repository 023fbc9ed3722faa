package placement

import (
	"testing"

	"pvc.internal/cluster"
)

// A copy that is half gone is stopped where nothing of it is wanted, as one that runs
// is: what is left of it is not nothing. Where only its data is left, or the reason of
// its end, nothing is to be stopped.
func TestWhatIsLeftOfADeadCopyIsStopped(t *testing.T) {
	dead := func(left bool) cluster.CopyReport { return cluster.CopyReport{State: cluster.CopyDead, Left: left} }
	w := cluster.Workload{Name: "job", Kind: cluster.WorkloadMovable, State: cluster.WorkloadStopped, Chain: []cluster.NodeID{"hv1"}}
	wanted := w
	wanted.Wanted, wanted.State = true, cluster.WorkloadRunning
	for name, c := range map[string]struct {
		w       cluster.Workload
		reports map[cluster.NodeID]cluster.CopyReport
		want    Step
	}{
		"a stray that is half gone":        {wanted, map[cluster.NodeID]cluster.CopyReport{"hv1": {State: cluster.CopyActive}, "hv2": dead(true)}, Step{Do: DoEnd, Node: "hv2"}},
		"a stray of which nothing is left": {wanted, map[cluster.NodeID]cluster.CopyReport{"hv1": {State: cluster.CopyActive}, "hv2": dead(false)}, Step{}},
		"not wanted, and half gone":        {w, map[cluster.NodeID]cluster.CopyReport{"hv1": dead(true)}, Step{Do: DoStop, Node: "hv1"}},
		"not wanted, and its data is left": {w, map[cluster.NodeID]cluster.CopyReport{"hv1": dead(false)}, Step{}},
	} {
		got := Upkeep(Case{Workload: c.w, Reports: c.reports})
		if got.Do != c.want.Do || got.Node != c.want.Node {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
