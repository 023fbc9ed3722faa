package api

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// figuresOf are the lines of /metrics that tell of the cluster.
func (w *world) figuresOf() []string {
	w.t.Helper()
	status, body := w.get("/metrics")
	if status != 200 {
		w.t.Fatalf("%d %s", status, body)
	}
	var lines []string
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "pvc_api_") && !strings.HasPrefix(line, "pvc_api_request") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func (w *world) tells(lines ...string) {
	w.t.Helper()
	all := w.figuresOf()
	for _, line := range lines {
		if !slices.Contains(all, line) {
			w.t.Errorf("no line %s in\n%s", line, strings.Join(all, "\n"))
		}
	}
}

func TestMetricsTellOfTheCluster(t *testing.T) {
	w := newWorld(t)
	w.leasesOf("hv1", 4, 2*time.Second)
	w.store.edit(func(s *cluster.Snapshot) {
		n := s.Nodes["hv2"]
		n.Fence = present(cluster.FenceRecord{Version: 1, ID: "f1", Stage: cluster.FenceVerify})
		n.Order = present(cluster.FenceOrder{})
		n.Alive = cluster.Versioned[cluster.Alive]{}
		n.Daemon = present(cluster.DaemonState("made\xffup by somebody"))
		s.Nodes["hv2"] = n
		s.Nodes["../x\xff"] = cluster.NodeView{Name: "../x\xff"}
	})
	w.clock.advance(time.Second)
	w.tells(
		`pvc_api_nodes_count 3`, `pvc_api_role_holder_bool{node="hv1"} 1`, `pvc_api_role_epoch_number 4`, `pvc_api_role_expired_bool 0`, `pvc_api_maintenance_bool 0`,
		`pvc_api_node_alive_bool{node="hv1"} 1`, `pvc_api_node_alive_bool{node="hv2"} 0`, `pvc_api_node_keepalive_age_seconds{node="hv1"} 1`,
		`pvc_api_node_state_bool{node="hv1",of="coordinator",state="primary"} 1`, `pvc_api_node_state_bool{node="hv2",of="daemon",state="other"} 1`,
		`pvc_api_fence_records_count{stage="verify"} 1`, `pvc_api_fence_orders_count 1`,
		`pvc_api_node_lease_held_bool{node="hv1"} 1`, `pvc_api_node_lease_held_bool{node="hv2"} 0`, `pvc_api_node_leases_majority_bool 1`,
		`pvc_api_node_lease_round_trip_seconds{node="hv1",quantile="0.5"} 0.00025`, `pvc_api_node_lease_round_trip_seconds{node="hv1",quantile="0.99"} 0.0015`,
		`pvc_api_activities_count{state="running"} 0`,
	)
}

// What is not known now is not told as if it were: monitoring has an alarm for
// series that are missing, and pvc_api_store_away_seconds for the cause.
func TestMetricsTellNothingThatIsNotKnown(t *testing.T) {
	w := newWorld(t)
	w.leasesOf("hv1", 4, time.Hour)
	if told := strings.Join(w.figuresOf(), "\n"); strings.Contains(told, "pvc_api_node_lease") || !strings.Contains(told, "pvc_api_nodes_count") {
		t.Errorf("leases of an hour ago:\n%s", told)
	}
	w.store.edit(func(s *cluster.Snapshot) { s.Live = false })
	for _, line := range w.figuresOf() {
		if !strings.HasPrefix(line, "pvc_api_store_away_seconds") && !strings.HasPrefix(line, "pvc_api_auth") {
			t.Errorf("told while ZooKeeper is away: %s", line)
		}
	}
}

// countingDetails counts how often the records of activities are read.
type countingDetails struct {
	Details
	asked int
	fails bool
}

func (d *countingDetails) ReadActivities(ctx context.Context) ([]cluster.Versioned[cluster.ActivityRecord], error) {
	d.asked++
	if d.fails {
		return nil, errors.New("no answer")
	}
	return []cluster.Versioned[cluster.ActivityRecord]{{Present: true, Value: cluster.ActivityRecord{Activity: cluster.Activity{State: cluster.ActivityRunning}}}, {Err: errors.New("rubbish")}}, nil
}

// Whoever may ask for metrics cannot have the store asked as often.
func TestMetricsAskTheStoreNowAndThen(t *testing.T) {
	w := newWorld(t)
	d := &countingDetails{Details: w.server.deps.Details}
	w.server.deps.Details = d
	for range 20 {
		w.tells(`pvc_api_activities_count{state="running"} 1`)
	}
	if d.asked != 1 {
		t.Errorf("asked %d times", d.asked)
	}
	w.clock.advance(recordsKept)
	w.store.edit(func(*cluster.Snapshot) {})
	d.fails = true
	if told := strings.Join(w.figuresOf(), "\n"); strings.Contains(told, "pvc_api_activities") || d.asked != 2 {
		t.Errorf("asked %d times, told\n%s", d.asked, told)
	}
}
