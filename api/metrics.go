package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Registry is where metrics are registered and /metrics reads them.
type Registry = prometheus.Registry

// NewRegistry makes an empty registry.
func NewRegistry() *Registry { return prometheus.NewRegistry() }

// metrics are the server's own; their labels come from the route table, never
// from a client.
type metrics struct {
	requests     *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	authFailures prometheus.Counter
}

func newMetrics(reg *Registry, v *view) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pvc_api_requests_total", Help: "Requests answered."}, []string{"method", "path", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pvc_api_request_seconds", Help: "Time to answer.", Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60}}, []string{"method", "path"}),
		authFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pvc_api_auth_failures_total", Help: "Requests with a wrong key."}),
	}
	away := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pvc_api_store_away_seconds", Help: "How long ZooKeeper has been away; 0 while it answers."},
		func() float64 { return v.current(v.clock.Now()).away.Seconds() })
	reg.MustRegister(m.requests, m.seconds, m.authFailures, away)
	return m
}

func (m *metrics) served(rt route, status int, took time.Duration) {
	m.requests.WithLabelValues(rt.method, rt.path, strconv.Itoa(status)).Inc()
	if rt.stream == nil {
		m.seconds.WithLabelValues(rt.method, rt.path).Observe(took.Seconds())
	}
}

// metricsRoute is the one route whose answer is no JSON.
func (s *Server) metricsRoute(reg *Registry) route {
	h := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	return route{method: get, path: "/metrics", bare: true, open: true, lenient: true, summary: "Metrics", media: "text/plain",
		stream: func(_ *Server, w http.ResponseWriter, r *request) error { h.ServeHTTP(w, r.http); return nil }}
}
