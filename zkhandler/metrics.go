package zkhandler

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pvc.internal/cluster"
)

// metrics are the package's figures; all methods work without a registerer.
type metrics struct {
	commits    *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	phases     *prometheus.CounterVec
	live       prometheus.Gauge
	lastWrite  prometheus.Gauge
	silent     prometheus.Counter
	events     prometheus.Counter
	snapshots  prometheus.Counter
	lostWatch  prometheus.Counter
	brokenLock prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "pvc_zkhandler_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "pvc_zkhandler_" + name, Help: help})
	}
	m := &metrics{
		commits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pvc_zkhandler_commits_total", Help: "Transactions by purpose and outcome.",
		}, []string{"purpose", "outcome"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pvc_zkhandler_commit_duration_seconds", Help: "From handing a transaction over to its reply.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 13),
		}, []string{"outcome"}),
		phases: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pvc_zkhandler_session_phases_total", Help: "Session phases entered.",
		}, []string{"phase"}),
		live:       gauge("session_live_bool", "1 while the session is live."),
		lastWrite:  gauge("last_write_success_unix_seconds", "When a transaction was last acknowledged."),
		silent:     counter("requests_unanswered_total", "Requests not answered in time; each closed its connection."),
		events:     counter("watch_events_total", "Watch events received."),
		snapshots:  counter("snapshots_total", "Snapshots published."),
		lostWatch:  counter("watches_lost_total", "Changes found by the periodic re-read that no watch had told of."),
		brokenLock: counter("locks_cleared_total", "Lock children of lost requests or sessions of ours that were removed."),
	}
	if reg == nil {
		return m, nil
	}
	var faults []error
	for _, c := range []prometheus.Collector{m.commits, m.latency, m.phases, m.live, m.lastWrite, m.silent, m.events, m.snapshots, m.lostWatch, m.brokenLock} {
		faults = append(faults, reg.Register(c))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("register ZooKeeper metrics: %w", err)
	}
	return m, nil
}

func (m *metrics) committed(purpose string, r cluster.TxnResult) {
	m.commits.WithLabelValues(purpose, r.Outcome.String()).Inc()
	if !r.SentAt.IsZero() {
		m.latency.WithLabelValues(r.Outcome.String()).Observe(r.DoneAt.Sub(r.SentAt).Seconds())
	}
	if r.Outcome == cluster.OutcomeOK {
		m.lastWrite.Set(float64(time.Now().UnixMilli()) / 1000)
	}
}

func (m *metrics) phase(p SessionPhase) {
	m.phases.WithLabelValues(p.String()).Inc()
	live := 0.0
	if p == Live {
		live = 1
	}
	m.live.Set(live)
}

func (m *metrics) unanswered() { m.silent.Inc() }
func (m *metrics) event()      { m.events.Inc() }
func (m *metrics) published()  { m.snapshots.Inc() }
func (m *metrics) watchLost()  { m.lostWatch.Inc() }
func (m *metrics) lockCleared() {
	m.brokenLock.Inc()
}
