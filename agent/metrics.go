package agent

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pvc.internal/agent/janitor"
	"pvc.internal/agent/lease"
	"pvc.internal/cluster"
)

// Figures tells how the agent fares, for Prometheus. Nothing is counted twice or
// kept running for them: all is gathered when somebody asks, and what does not
// answer within figuresWithin is left out (I10).
func (a *Agent) Figures() prometheus.Collector { return agentFigures{a} }

// figuresWithin bounds how long somebody who asks waits for a loop's own figures.
const figuresWithin = time.Second

type agentFigures struct{ a *Agent }

func figure(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("pvc_"+name, help, labels, nil)
}

// The figures. Each label's values are few: names of loops, of collectors as
// configured, and codes of this program's own.
var (
	figLoop       = figure("agent_loop_last_success_unix_seconds", "When each loop of the daemon has last succeeded.", "loop")
	figKeepalive  = figure("agent_keepalives_total", "Keepalives: sent, failed (not acknowledged), missed (due when none could be begun).", "result")
	figLateness   = figure("agent_keepalive_lateness_seconds", "How long after they were due keepalives were begun.")
	figCollection = figure("agent_collections_total", "Collections of figures that were late or failed.", "collector", "result")
	figMode       = figure("agent_role_mode_bool", "1 for the mode that the role's machine is in.", "mode")
	figEpoch      = figure("agent_role_epoch_number", "Epoch of the role while it is held; 0 otherwise.")
	figDeadline   = figure("agent_role_deadline_seconds", "How long the role may be acted for without another renewal; 0 while it is not held.")
	figFences     = figure("agent_fences_total", "Fences that this node has carried out or tried, by the stage they ended in; refused and failed ones end in none.", "end")
	figRefused    = figure("agent_fence_refusals_total", "Fences that were refused, by the reason's code.", "code")

	figStarted    = figure("activity_started_total", "Activities begun on this node.")
	figEnded      = figure("activity_ended_total", "Activities that have ended, by cause; well: by themselves, without an error.", "cause")
	figNotBegun   = figure("activity_refused_total", "Activities that were refused, by the reason's code.", "code")
	figPanics     = figure("activity_panics_total", "Bodies of activities that panicked.")
	figKilled     = figure("activity_children_killed_total", "Child processes that a stop had to kill.")
	figStragglers = figure("activity_stragglers_total", "Activities of which something survived their stop; each ends the daemon.")
	figState      = figure("activity_present_count", "Activities that wait, run or are being ended.", "state")

	figGranter = figure("lease_granter_events_total", "What this node has decided about its own lease.", "event")
	figServed  = figure("lease_granted_left_seconds", "How long this node's lease still runs; 0 while it serves nobody.")
	figFile    = figure("lease_file_operations_total", "Operations on the file of this node's lease; renewals need none.", "operation")
	figHolder  = figure("lease_holder_events_total", "What became of this node's questions for other nodes' leases.", "event")
	figHeld    = figure("lease_nodes_count", "Nodes whose leases this node asks for, and holds.", "what")
)

var (
	figCopyOrders  = figure("copy_orders_total", "Orders of copies that came from another node, by what was ordered and what became of it: done, failed, or refused (nothing was done).", "op", "end")
	figCopyChanges = figure("copy_changes_total", "Times that copies of this node ended or started without an order.")
)

// Describe implements prometheus.Collector.
func (f agentFigures) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{figLoop, figKeepalive, figLateness, figCollection, figMode, figEpoch, figDeadline, figFences, figRefused,
		figStarted, figEnded, figNotBegun, figPanics, figKilled, figStragglers, figState, figGranter, figServed, figFile, figHolder, figHeld} {
		out <- d
	}
	if f.a.holding != nil {
		f.a.holding.trips.Describe(out)
	}
	if f.a.copies != nil {
		out <- figCopyOrders
		out <- figCopyChanges
	}
	if f.a.workloads != nil {
		for _, d := range workloadFigures {
			out <- d
		}
	}
}

// Collect implements prometheus.Collector.
func (f agentFigures) Collect(out chan<- prometheus.Metric) {
	f.loops(out)
	f.role(out)
	f.fences(out)
	f.activities(out)
	f.leases(out)
	f.a.workloads.collect(out)
	f.a.copies.collect(out)
}

func gauge(out chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(out chan<- prometheus.Metric, d *prometheus.Desc, v uint64, labels ...string) {
	out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

// counters gives out what was counted by a code, which may be empty.
func counters[K ~string](out chan<- prometheus.Metric, d *prometheus.Desc, counted map[K]uint64, empty string) {
	for _, code := range slices.Sorted(maps.Keys(counted)) {
		name := string(code)
		if name == "" {
			name = empty
		}
		counter(out, d, counted[code], name)
	}
}

// loops tells of the loops that have to go on turning, and of what they count.
func (f agentFigures) loops(out chan<- prometheus.Metric) {
	a := f.a
	now, wall := a.d.Clock.Now(), time.UnixMilli(a.c.WallMS())
	last := func(loop string, at cluster.Instant) {
		if !at.IsZero() {
			gauge(out, figLoop, float64(wall.Add(-now.Sub(at)).UnixMilli())/1000, loop)
		}
	}
	k := a.keep.Status()
	last("keepalive", k.Acked)
	last("decide", a.dec.status().At)
	last("nodewatch", a.watch.stepped.at())
	last("guard", a.turns.guard.at())
	last("preflight", a.turns.preflight.at())
	if a.d.Collector != nil {
		for _, c := range a.d.Collector.Status() {
			last("collector "+c.Name, c.LastSuccess)
			counter(out, figCollection, c.Late, c.Name, "late")
			counter(out, figCollection, c.Failed, c.Name, "failed")
		}
	}
	counter(out, figKeepalive, k.Sent, "sent")
	counter(out, figKeepalive, k.Failed, "failed")
	counter(out, figKeepalive, k.Missed, "missed")
	buckets, total := map[float64]uint64{}, uint64(0)
	for i, n := range k.Lateness.Counts {
		total += n
		if bounds := LatenessBounds(); i < len(bounds) {
			buckets[bounds[i].Seconds()] = total
		}
	}
	out <- prometheus.MustNewConstHistogram(figLateness, total, k.Lateness.Sum.Seconds(), buckets)
}

func (f agentFigures) role(out chan<- prometheus.Metric) {
	status := f.a.dec.status()
	gauge(out, figMode, 1, status.Role.Mode.String())
	epoch, deadline, held := status.Role.Holds()
	if !held {
		epoch, deadline = 0, cluster.Never
	}
	gauge(out, figEpoch, float64(epoch))
	left := 0.0
	if deadline != cluster.Never {
		left = max(deadline.Sub(f.a.d.Clock.Now()).Seconds(), 0)
	}
	gauge(out, figDeadline, left)
}

func (f agentFigures) fences(out chan<- prometheus.Metric) {
	ends, codes := f.a.watch.counted.read()
	counters(out, figFences, ends, "unknown")
	counters(out, figRefused, codes, "unknown")
}

func (f agentFigures) activities(out chan<- prometheus.Metric) {
	m := f.a.activities.Manager()
	c := m.Counts()
	counter(out, figStarted, c.Started)
	counters(out, figEnded, c.Ended, "well")
	counters(out, figNotBegun, c.Refused, "unknown")
	counter(out, figPanics, c.Panics)
	counter(out, figKilled, c.Killed)
	counter(out, figStragglers, c.Stragglers)
	present := map[cluster.ActivityState]int{cluster.ActivityWaiting: 0, cluster.ActivityRunning: 0, cluster.ActivityEnding: 0}
	for _, x := range m.List() {
		present[x.State]++
	}
	for state, n := range present {
		gauge(out, figState, float64(n), string(state))
	}
}

func (f agentFigures) leases(out chan<- prometheus.Metric) {
	g, h := f.a.granting, f.a.holding
	if g == nil || h == nil {
		return
	}
	v := g.view()
	c := v.Counters
	for event, n := range map[string]uint64{"granted": c.Granted, "extended": c.Extended, "refused": c.Refused, "expired": c.Expired,
		"released": c.Released, "persisted": c.Persists, "not_persisted": c.Failed, "illegal": c.Illegal, "restored": c.Restored,
		"unknown": c.Unknown, "replayed": c.Replayed, "displaced": c.Displaced} {
		counter(out, figGranter, n, event)
	}
	gauge(out, figServed, max(v.Left, 0).Seconds())
	if file, ok := f.a.d.LeaseFile.(interface{ Counters() lease.FileCounters }); ok {
		c := file.Counters()
		counter(out, figFile, c.Writes, "write")
		counter(out, figFile, c.Syncs, "sync")
		counter(out, figFile, c.Failed, "failed")
	}
	h.trips.Collect(out)
	ctx, cancel := context.WithTimeout(context.Background(), figuresWithin)
	defer cancel()
	if s, ok := h.look(ctx); ok {
		s.tell(out)
	}
}

// ---- what the holder of leases counts

// holdingFigures is one look at the holder's workers.
type holdingFigures struct {
	asked, held int
	counters    lease.HolderCounters
}

// look asks the goroutine that owns the workers; false where it does not answer
// before ctx ends.
func (h *holding) look(ctx context.Context) (holdingFigures, bool) {
	reply := make(chan holdingFigures, 1)
	if !h.post(ctx, leaseNews{look: reply}) {
		return holdingFigures{}, false
	}
	select {
	case f := <-reply:
		return f, true
	case <-ctx.Done():
	case <-h.ended:
	}
	return holdingFigures{}, false
}

// figures is how the workers stand; h.past has those of terms that are over.
func (h *holding) figures() holdingFigures {
	f := holdingFigures{counters: h.past}
	if h.a == nil {
		return f
	}
	now := h.d.Clock.Now()
	for _, w := range h.a.list {
		v := w.h.View(now)
		addCounters(&f.counters, v.Counters)
		if w.wanted {
			f.asked++
		}
		if v.Held {
			f.held++
		}
	}
	return f
}

func addCounters(to *lease.HolderCounters, c lease.HolderCounters) {
	to.Asked += c.Asked
	to.Granted += c.Granted
	to.Extended += c.Extended
	to.Refused += c.Refused
	to.NoAnswer += c.NoAnswer
	to.Late += c.Late
	to.Future += c.Future
	to.Estimated += c.Estimated
	to.TooLate += c.TooLate
	to.Lost += c.Lost
}

func (s holdingFigures) tell(out chan<- prometheus.Metric) {
	c := s.counters
	for event, n := range map[string]uint64{"asked": c.Asked, "granted": c.Granted, "extended": c.Extended, "refused": c.Refused,
		"no_answer": c.NoAnswer, "late": c.Late, "future_discarded": c.Future, "estimated": c.Estimated, "too_late": c.TooLate, "lost": c.Lost} {
		counter(out, figHolder, n, event)
	}
	gauge(out, figHeld, float64(s.asked), "asked")
	gauge(out, figHeld, float64(s.held), "held")
}

// roundTrips is a histogram over all nodes; the table of leases has each node's.
// An observation is some atomic additions.
type roundTrips struct{ prometheus.Histogram }

func newRoundTrips() roundTrips {
	return roundTrips{prometheus.NewHistogram(prometheus.HistogramOpts{Name: "pvc_lease_round_trip_seconds",
		Help: "Answered questions for other nodes' leases, from send to answer.", Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15)})}
}

func (r roundTrips) add(d time.Duration) { r.Observe(max(d, 0).Seconds()) }

// ---- what has no other counter

// instant is when something has last happened; its zero value is never.
type instant struct{ v atomic.Int64 }

func (i *instant) set(at cluster.Instant) { i.v.Store(int64(at)) }
func (i *instant) at() cluster.Instant    { return cluster.Instant(i.v.Load()) }

// turns are the agent's own loops.
type turns struct{ guard, preflight instant }

// fenceCounts counts fences by how they ended.
type fenceCounts struct {
	mu    sync.Mutex
	ends  map[string]uint64
	codes map[cluster.RefusalCode]uint64
}

// add counts one fence; stage is its record's at the end.
func (c *fenceCounts) add(stage cluster.FenceStage, refusal *cluster.Refusal, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ends == nil {
		c.ends, c.codes = map[string]uint64{}, map[cluster.RefusalCode]uint64{}
	}
	switch {
	case err != nil:
		c.ends["failed"]++
	case refusal != nil:
		c.ends["refused"]++
		c.codes[refusal.Code]++
	default:
		c.ends[string(stage)]++
	}
}

func (c *fenceCounts) read() (map[string]uint64, map[cluster.RefusalCode]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.ends), maps.Clone(c.codes)
}

// ---- workloads

// The figures of the primary's work on workloads. Every label's values are few:
// ways to end, states and codes of this program's own.
var (
	figPasses      = figure("janitor_passes_total", "Passes of the janitor that this node has run as primary, by how they ended: done, interrupted, refused, failed.", "end")
	figPassLast    = figure("janitor_last_success_unix_seconds", "When a pass of the janitor has last come to its end here; 0: none yet.")
	figPassTook    = figure("janitor_pass_seconds", "How long the newest pass of the janitor has taken here.")
	figApplies     = figure("janitor_applies_total", "Applies of one workload's copies to its chain, by how they ended: done, interrupted, failed.", "end")
	figWorkloads   = figure("workloads_count", "Workloads by their state, as the records have it; given out by the primary alone.", "state")
	figUnsafe      = figure("workload_unsafe_nodes_count", "Nodes that came back with empty copies and whose workloads are not brought online; given out by the primary alone.")
	figReprovision = figure("reprovision_nodes_count", "Nodes that were reprovisioned since the last reset; given out by the primary alone.")
	figWFaults     = figure("workload_faults_count", "Faults of workloads that stand, by their code; given out by the primary alone.", "code")
)

// workloadFigures are all of them.
var workloadFigures = []*prometheus.Desc{figPasses, figPassLast, figPassTook, figApplies, figWorkloads, figUnsafe, figReprovision, figWFaults}

// collect gives out how the work on workloads fares.
func (w *workloadWatch) collect(out chan<- prometheus.Metric) {
	if w == nil {
		return
	}
	c := &w.pass.counts
	c.mu.Lock()
	for end, n := range c.ends {
		counter(out, figPasses, n, end)
	}
	for end, n := range c.applies {
		counter(out, figApplies, n, end)
	}
	took := c.took
	c.mu.Unlock()
	gauge(out, figPassTook, took.Seconds())
	last := 0.0
	if at := c.last.at(); !at.IsZero() {
		last = float64(time.UnixMilli(w.c.WallMS()).Add(-w.d.Clock.Now().Sub(at)).UnixMilli()) / 1000
	}
	gauge(out, figPassLast, last)
	if w.term() != nil {
		w.collectStates(out)
	}
}

// collectStates gives out what the records and the latest pass say.
func (w *workloadWatch) collectStates(out chan<- prometheus.Metric) {
	snap := w.newest()
	states := map[cluster.WorkloadState]int{}
	for _, v := range snap.Workloads {
		if s := v.Value.State; v.Err == nil && slices.Contains(knownWorkloadStates, s) {
			states[s]++
		} else {
			states["unreadable"]++
		}
	}
	for state, n := range states {
		gauge(out, figWorkloads, float64(n), string(state))
	}
	gauge(out, figReprovision, float64(snap.Reprovision.Value.Count))
	codes := map[string]int{}
	if f := w.pass.found.Load(); f != nil {
		for key := range f.faults {
			code, _, _ := strings.Cut(key, "/")
			codes[code]++
		}
	}
	if n := len(w.strays.texts()); n > 0 {
		codes[faultStray] = n
	}
	for code, n := range codes {
		gauge(out, figWFaults, float64(n), code)
	}
	gauge(out, figUnsafe, float64(codes[janitor.FaultUnsafe]))
}

// collect gives out what was counted of this node's copies; nothing where it has none.
func (o *copyOrders) collect(out chan<- prometheus.Metric) {
	if o == nil {
		return
	}
	orders, changes := o.counts.now()
	for what, n := range orders {
		counter(out, figCopyOrders, n, what[0], what[1])
	}
	counter(out, figCopyChanges, changes)
}
