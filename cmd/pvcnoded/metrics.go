package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	process "github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"pvc.internal/agent"
)

// Bounds of the metrics' server. Nobody who asks can cost this daemon more.
const (
	metricsAsked   = 5 * time.Second // to ask
	metricsAnswer  = 10 * time.Second
	metricsIdle    = time.Minute
	metricsAtOnce  = 4
	metricsHeader  = 8 << 10
	metricsRetried = time.Minute // after a port was not free
)

// metricsServer tells this daemon's figures to whoever asks. It gathers them then,
// and does nothing otherwise.
//
//	port not free ──metricsRetried──▶ serving, until the daemon ends
//
// A port that is not free is a health fault and never the daemon's end.
type metricsServer struct {
	listen   string
	registry *prometheus.Registry
	log      *zap.Logger

	mu    sync.Mutex
	fault string
}

// newMetrics makes the registry and its server; an empty listen address: nobody is
// answered.
func newMetrics(listen string, log *zap.Logger) *metricsServer {
	m := &metricsServer{listen: listen, registry: prometheus.NewRegistry(), log: log}
	m.registry.MustRegister(process.NewGoCollector(), process.NewProcessCollector(process.ProcessCollectorOpts{}))
	return m
}

// join gives the agent the server's own faults beside those that it has.
func (m *metricsServer) join(d *agent.Deps) {
	others := d.Faults
	d.Faults = func() []string {
		if others == nil {
			return m.faults()
		}
		return append(m.faults(), others()...)
	}
}

// faults is what stands against this node's health; it does not wait.
func (m *metricsServer) faults() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault == "" {
		return nil
	}
	return []string{m.fault}
}

func (m *metricsServer) blame(fault string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

// start answers until the function that it returns is called.
func (m *metricsServer) start(ctx context.Context) (end func()) {
	if m.listen == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.run(ctx)
	}()
	return func() { cancel(); <-done }
}

func (m *metricsServer) run(ctx context.Context) {
	said := false
	for {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", m.listen)
		if err == nil {
			m.blame("")
			m.log.Info("metrics are told", zap.String("listen", ln.Addr().String()))
			err = m.serve(ctx, ln)
		}
		if ctx.Err() != nil {
			return
		}
		m.blame(fmt.Sprintf("the metrics of pvcnoded cannot be read at %s: %v; free that port, or name another in metrics.listen", m.listen, err))
		if !said {
			said = true
			m.log.Warn("metrics cannot be told; it is tried again now and then", zap.String("listen", m.listen), zap.Error(err))
		}
		retry := time.NewTimer(metricsRetried)
		select {
		case <-ctx.Done():
			retry.Stop()
			return
		case <-retry.C:
		}
	}
}

// serve answers at the listener until ctx ends.
func (m *metricsServer) serve(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: metricsAtOnce, Timeout: metricsAsked, ErrorHandling: promhttp.ContinueOnError,
		DisableCompression: true})) // a megabyte for each who asks, to save some on the loopback
	server := &http.Server{Handler: mux, ReadHeaderTimeout: metricsAsked, ReadTimeout: metricsAsked, WriteTimeout: metricsAnswer,
		IdleTimeout: metricsIdle, MaxHeaderBytes: metricsHeader, ErrorLog: zap.NewStdLog(m.log)}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
