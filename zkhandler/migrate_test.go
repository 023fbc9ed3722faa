package zkhandler

import (
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// nodeSeen makes a node as a snapshot shows it.
func nodeSeen(state cluster.DaemonState, latest int, alive bool) cluster.NodeView {
	v := cluster.NodeView{
		Daemon: cluster.Versioned[cluster.DaemonState]{Present: true, Value: state, SeenAt: 1},
		Record: cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{Incarnation: "x.1", LatestSchema: latest}},
	}
	if alive {
		v.Alive = cluster.Versioned[cluster.Alive]{Present: true, Value: cluster.Alive{Incarnation: "x.1"}}
	}
	return v
}

func TestWhoHoldsTheSchemaBack(t *testing.T) {
	earlier := nodeSeen(cluster.DaemonRun, 2, true)
	earlier.Alive.Value.Incarnation = "x.0" // its record is another start's
	scribbled := nodeSeen(cluster.DaemonRun, 2, true)
	scribbled.Record = cluster.Versioned[cluster.NodeRecord]{Present: true, Err: cluster.ErrUnknown}
	unreadable := nodeSeen(cluster.DaemonStop, 1, false)
	unreadable.Daemon.Err = cluster.ErrUnknown
	justStopped := nodeSeen(cluster.DaemonStop, 1, false)
	justStopped.Daemon.SeenAt = cluster.Instant(time.Hour - time.Minute)
	for name, c := range map[string]struct {
		view  cluster.NodeView
		holds bool
	}{
		"all new":                     {nodeSeen(cluster.DaemonRun, 2, true), false},
		"newer still":                 {nodeSeen(cluster.DaemonRun, 3, true), false},
		"an old program":              {nodeSeen(cluster.DaemonRun, 1, true), true},
		"one that tells nothing":      {nodeSeen(cluster.DaemonRun, 0, true), true},
		"old, starting":               {nodeSeen(cluster.DaemonInit, 1, true), true},
		"old, shutting down":          {nodeSeen(cluster.DaemonShutdown, 0, true), true},
		"old, its session gone":       {nodeSeen(cluster.DaemonRun, 1, false), true},
		"old, given up for lost":      {nodeSeen(cluster.DaemonDead, 1, false), true},
		"new, given up for lost":      {nodeSeen(cluster.DaemonDead, 2, false), false},
		"old, stopped":                {nodeSeen(cluster.DaemonStop, 1, false), false},
		"old, stopped just now":       {justStopped, true},
		"old, stopped but registered": {nodeSeen(cluster.DaemonStop, 1, true), true},
		"old, proven off":             {nodeSeen(cluster.DaemonFenced, 1, false), false},
		"a record of another start":   {earlier, true},
		"an unreadable record":        {scribbled, true},
		"an unreadable state":         {unreadable, true},
		"never registered":            {cluster.NodeView{}, true},
		"half made": {cluster.NodeView{Daemon: cluster.Versioned[cluster.DaemonState]{
			Present: true, Value: cluster.DaemonInit}}, true},
	} {
		snap := &cluster.Snapshot{
			ObservedAt: cluster.Instant(time.Hour), Schema: cluster.Versioned[int]{Present: true, Value: 1},
			Nodes: map[cluster.NodeID]cluster.NodeView{"hv1": nodeSeen(cluster.DaemonRun, 2, true), "hv2": c.view},
		}
		plan := planSchema(2, snap)
		if plan.From != 1 || plan.To != 2 || plan.What == "" || (len(plan.Waits) > 0) != c.holds {
			t.Errorf("%s: %+v", name, plan)
		}
		if c.holds && !strings.HasPrefix(plan.Waits[0], "hv2 (") {
			t.Errorf("%s: %q does not name the node", name, plan.Waits[0])
		}
	}
}

// Where the schema is known and lower, and nowhere else, there is something to do.
func TestTheSchemaIsRaisedToWhatIsKnownOnly(t *testing.T) {
	for _, c := range []struct {
		newest int
		seen   cluster.Versioned[int]
		to     int
	}{
		{2, cluster.Versioned[int]{Present: true, Value: 1}, 2},
		{1, cluster.Versioned[int]{Present: true, Value: 1}, 0},
		{2, cluster.Versioned[int]{Present: true, Value: 2}, 0},
		{2, cluster.Versioned[int]{Present: true, Value: 99}, 0},
		{2, cluster.Versioned[int]{}, 0},
		{2, cluster.Versioned[int]{Present: true, Err: cluster.ErrUnknown}, 0},
	} {
		if plan := planSchema(c.newest, &cluster.Snapshot{Schema: c.seen}); plan.To != c.to {
			t.Errorf("known %d, seen %+v: %+v", c.newest, c.seen, plan)
		}
	}
}

// The steps lead from the first schema to the newest without a gap; a program
// that was built for another one holds itself back.
func TestTheStepsHaveNoGap(t *testing.T) {
	at := cluster.FirstSchema
	for _, m := range migrations {
		if m.from != at || m.to != at+1 || m.what == "" || m.next == nil {
			t.Errorf("%+v follows schema %d", m, at)
		}
		at = m.to
	}
	if programSchema() != at {
		t.Errorf("the program writes %d, its steps lead to %d", programSchema(), at)
	}
	was := newestSchema
	defer func() { newestSchema = was }()
	for built, want := range map[string]int{"1": 1, "2": 2, "3": 1, "0": 1, "": 1, "x": 1} {
		if newestSchema = built; programSchema() != want {
			t.Errorf("built for %q: %d, want %d", built, programSchema(), want)
		}
	}
	newestSchema = was
	for given, want := range map[int]int{0: 2, 1: 1, 2: 2, 7: 2, -1: 1} {
		if got := (Config{NewestSchema: given}).newestSchema(); got != want {
			t.Errorf("held back to %d: %d, want %d", given, got, want)
		}
	}
}
