package api

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pvc.internal/cluster"
)

// What is not in the watched snapshot is read when the metrics are asked for, by
// one reader at a time, and serves whoever asks until recordsKept later: anybody
// may ask, and nobody can have the store asked more often.
const (
	recordsKept     = 5 * time.Second
	recordsPatience = time.Second
)

// clusterFigures tells of the cluster as this server sees it, for Prometheus. It
// is gathered when it is asked for, from the snapshot that the server has anyway.
// While ZooKeeper is away the figures of the cluster are left out: what is not
// known now is not told as if it were.
type clusterFigures struct {
	s *Server

	mu    sync.Mutex // one reader at a time; guards what follows
	at    cluster.Instant
	table *cluster.NodeLeases // nil: none, or it could not be read
	acts  []cluster.ActivityRecord
	known bool // of acts
}

func clusterFigure(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pvc_api_"+name, help, labels, nil)
}

// The figures. Labels are the cluster's nodes and words that records may hold.
var (
	figNodes       = clusterFigure("nodes_count", "Nodes of the cluster.")
	figNodeAlive   = clusterFigure("node_alive_bool", "1 while the node's session lives.", "node")
	figNodeState   = clusterFigure("node_state_bool", "1 for the state that the node's record says; of: daemon, coordinator or domain.", "node", "of", "state")
	figNodeSilence = clusterFigure("node_keepalive_age_seconds", "How long ago this server saw the node's keepalive change.", "node")
	figHolder      = clusterFigure("role_holder_bool", "1 for the node that holds the primary role; none while nobody does.", "node")
	figRoleEpoch   = clusterFigure("role_epoch_number", "Epoch of the primary lease.")
	figExpired     = clusterFigure("role_expired_bool", "1 while the primary lease was not renewed in time.")
	figMaintenance = clusterFigure("maintenance_bool", "1 while the cluster is in maintenance.")
	figFenceStages = clusterFigure("fence_records_count", "Fence records by stage.", "stage")
	figFenceOrders = clusterFigure("fence_orders_count", "Operators' fence orders that are not carried out yet.")
	figLeaseHeld   = clusterFigure("node_lease_held_bool", "1 while the primary holds the node's lease; as the primary published it.", "node")
	figLeaseTrip   = clusterFigure("node_lease_round_trip_seconds", "Time from the primary's question for the node's lease to its answer.", "node", "quantile")
	figLeaseMajor  = clusterFigure("node_leases_majority_bool", "1 while the primary holds the leases of a majority of the quorum set.")
	figActivities  = clusterFigure("activities_count", "Activities in the cluster by state.", "state")
)

// Describe implements prometheus.Collector.
func (f *clusterFigures) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{figNodes, figNodeAlive, figNodeState, figNodeSilence, figHolder, figRoleEpoch, figExpired,
		figMaintenance, figFenceStages, figFenceOrders, figLeaseHeld, figLeaseTrip, figLeaseMajor, figActivities} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (f *clusterFigures) Collect(out chan<- prometheus.Metric) {
	st := f.s.view.current(f.s.now())
	if !st.readable() {
		return
	}
	tell := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	f.role(st, tell)
	f.nodes(st, tell)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read(st.now)
	f.leases(st, tell)
	f.activities(tell)
}

type teller func(d *prometheus.Desc, v float64, labels ...string)

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func (f *clusterFigures) role(st state, tell teller) {
	if holder := st.holder(); holder.Validate() == nil {
		tell(figHolder, 1, string(holder))
	}
	lease := st.lease()
	tell(figRoleEpoch, float64(lease.Epoch))
	tell(figExpired, one(lease.Expired))
	tell(figMaintenance, one(st.snap.Maintenance.Value))
}

func (f *clusterFigures) nodes(st state, tell teller) {
	stages, orders, count := map[string]int{}, 0, 0
	for _, name := range st.names() {
		if name.Validate() != nil { // a stranger's child: no label may hold just anything
			continue
		}
		count++
		n := st.snap.Nodes[name]
		node := string(name)
		tell(figNodeAlive, one(n.Alive.Present && n.Alive.Err == nil), node)
		tell(figNodeState, 1, node, "daemon", word(string(n.Daemon.Value), n.Daemon.Err))
		tell(figNodeState, 1, node, "coordinator", word(string(n.Router.Value), n.Router.Err))
		tell(figNodeState, 1, node, "domain", word(string(n.Domain.Value), n.Domain.Err))
		if n.Keepalive.Present {
			tell(figNodeSilence, st.now.Sub(n.Keepalive.SeenAt).Seconds(), node)
		}
		if n.Fence.Present {
			stages[word(string(n.Fence.Value.Stage), n.Fence.Err)]++
		}
		if n.Order.Present {
			orders++
		}
	}
	tell(figNodes, float64(count))
	for _, stage := range slices.Sorted(maps.Keys(stages)) {
		tell(figFenceStages, float64(stages[stage]), stage)
	}
	tell(figFenceOrders, float64(orders))
}

// words are all that a state's label may be: who can write to the store must not
// make series without end.
var words = func() map[string]bool {
	known := map[string]bool{}
	for _, w := range []cluster.DaemonState{cluster.DaemonInit, cluster.DaemonRun, cluster.DaemonShutdown, cluster.DaemonStop, cluster.DaemonDead, cluster.DaemonFenced} {
		known[string(w)] = true
	}
	for _, w := range []cluster.RouterState{cluster.RouterSecondary, cluster.RouterTakeover, cluster.RouterPrimary, cluster.RouterRelinquish, cluster.RouterClient} {
		known[string(w)] = true
	}
	for _, w := range []cluster.DomainState{cluster.DomainReady, cluster.DomainFlush, cluster.DomainFlushed, cluster.DomainUnflush, cluster.DomainFenceFlush} {
		known[string(w)] = true
	}
	for _, w := range []cluster.FenceStage{cluster.FenceClaimed, cluster.FenceSoft, cluster.FencePowerOff, cluster.FenceVerify, cluster.FenceFenced,
		cluster.FenceRecover, cluster.FenceDone, cluster.FenceFailed, cluster.FenceManual, cluster.FenceCanceled} {
		known[string(w)] = true
	}
	for _, w := range []cluster.ActivityState{cluster.ActivityWaiting, cluster.ActivityRunning, cluster.ActivityEnding, cluster.ActivityEnded, cluster.ActivityRefused} {
		known[string(w)] = true
	}
	return known
}()

// word makes a label of what a record says.
func word(value string, err error) string {
	switch {
	case err != nil:
		return "unreadable"
	case value == "":
		return "none"
	case words[value]:
		return value
	}
	return "other"
}

// read brings what the snapshot does not have up to date. The caller holds mu.
func (f *clusterFigures) read(now cluster.Instant) {
	if !f.at.IsZero() && now.Sub(f.at) < recordsKept {
		return
	}
	f.at, f.table, f.acts, f.known = now, nil, nil, false
	ctx, cancel := context.WithTimeout(context.Background(), recordsPatience)
	defer cancel()
	if text, err := f.s.deps.Texts.ReadText(ctx, cluster.Key{Kind: cluster.KeyNodeLeases}); err == nil && text.Present {
		var table cluster.NodeLeases
		if json.Unmarshal([]byte(text.Value), &table) == nil {
			f.table = &table
		}
	}
	records, err := f.s.deps.Details.ReadActivities(ctx)
	if err != nil {
		return
	}
	f.known = true
	for _, r := range records {
		if r.Err == nil {
			f.acts = append(f.acts, r.Value)
		}
	}
}

// leases tells the primary's table, where nothing speaks against it.
func (f *clusterFigures) leases(st state, tell teller) {
	if f.table == nil {
		return
	}
	v := st.leases(*f.table, time.Now())
	if !v.InUse || v.Doubt != "" {
		return
	}
	tell(figLeaseMajor, one(v.Majority))
	for _, n := range v.Nodes {
		if n.Node.Validate() != nil {
			continue
		}
		tell(figLeaseHeld, one(n.State == cluster.LeaseSeenHeld), string(n.Node))
		if n.RTT.Last > 0 {
			tell(figLeaseTrip, n.RTT.Median/1000, string(n.Node), "0.5")
			tell(figLeaseTrip, n.RTT.P99/1000, string(n.Node), "0.99")
		}
	}
}

func (f *clusterFigures) activities(tell teller) {
	if !f.known {
		return
	}
	states := map[string]int{string(cluster.ActivityWaiting): 0, string(cluster.ActivityRunning): 0, string(cluster.ActivityEnding): 0}
	for _, a := range f.acts {
		states[word(string(a.State), nil)]++
	}
	for _, s := range slices.Sorted(maps.Keys(states)) {
		tell(figActivities, float64(states[s]), s)
	}
}
