package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"pvc.internal/cluster"
)

// Prefix is where all paths but the probes and the metrics live.
const Prefix = "/api/v1"

// The limits of a server; each phase of a request has one, so that no client
// holds a place for ever.
const (
	headerTimeout  = 5 * time.Second
	readTimeout    = 15 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = 60 * time.Second
	shutdownGrace  = 5 * time.Second
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 64 << 10
	maxConnections = 2048 // of each address
	maxWatchers    = 1024
	longestWait    = 120 * time.Second // of any wait= and of a long poll
)

// Server answers requests about one cluster.
type Server struct {
	cfg        Config
	deps       Deps
	log        *zap.Logger
	auditLog   *zap.Logger
	access     atomic.Pointer[access] // replaced as a whole by Reload
	reloading  sync.Mutex             // one Reload at a time
	view       *view
	figures    figureCache
	renderings renderings
	broadcast  broadcast
	routes     []route
	handler    http.Handler
	document   func() (*encoded, error) // made when it is first asked for
	metrics    *metrics
	failedAuth failureCount
	strangers  auditBudget
	watchers   chan struct{} // one token a watcher
	sendWithin time.Duration // of one event; a client that does not read is dropped
	ready      chan struct{} // closed once every address listens
	addrs      []net.Addr    // written before ready is closed
	stopping   chan struct{} // closed when the shutdown begins: watchers end
}

// New makes a server. It reads the keys and certificates and refuses a
// configuration that would let strangers in, but opens no socket yet. What it
// logs is named "api", and the record of changes "audit". A nil reg is one of
// its own.
func New(c Config, d Deps, log *zap.Logger, reg *Registry) (*Server, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	log, auditLog := log.Named("api"), auditLogger(log)
	first, err := newAccess(c, log)
	if err != nil {
		return nil, err
	}
	if reg == nil {
		reg = NewRegistry()
	}
	s := &Server{
		cfg: c, deps: d, log: log, auditLog: auditLog,
		view:     newView(d.Clock, c.Timing, instanceToken()),
		watchers: make(chan struct{}, maxWatchers), sendWithin: sendTimeout,
		ready:    make(chan struct{}),
		stopping: make(chan struct{}),
	}
	s.access.Store(first)
	s.routes = routeTable()
	s.metrics = newMetrics(reg, s.view)
	reg.MustRegister(&clusterFigures{s: s})
	s.handler = s.buildHandler(reg)
	s.document = sync.OnceValues(s.makeDocument)
	return s, nil
}

// instanceToken tells this server's versions from those of every other.
func instanceToken() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// Handler returns the whole of the server's paths, for tests and embedding.
// It answers 503 until Follow or Run has seen a snapshot.
func (s *Server) Handler() http.Handler { return s.handler }

// Ready is closed once every address listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addrs returns the addresses listened on; only after Ready is closed.
func (s *Server) Addrs() []net.Addr { return s.addrs }

// Follow keeps the latest snapshot until ctx ends.
func (s *Server) Follow(ctx context.Context) {
	snaps, stop := s.deps.Store.Subscribe()
	defer stop()
	s.view.follow(ctx, snaps, s.look)
}

// look asks the store for a fresh snapshot; nil if it does not answer.
func (s *Server) look(ctx context.Context) *cluster.Snapshot {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	snap, err := s.deps.Store.Refresh(ctx)
	if err != nil {
		return nil
	}
	return snap
}

// Run listens and serves until ctx ends, then lets running requests finish for
// at most 5 s. It returns an error if an address cannot be listened on or a
// listener fails.
func (s *Server) Run(ctx context.Context) error {
	listeners, err := s.listenAll(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	server := s.httpServer()
	var owned sync.WaitGroup
	owned.Go(func() { s.Follow(ctx) })
	for _, l := range listeners {
		owned.Go(func() {
			if err := s.serve(server, l); !errors.Is(err, http.ErrServerClosed) {
				cancel(fmt.Errorf("serve on %s: %w", l.Addr(), err))
			}
		})
	}
	close(s.ready)
	<-ctx.Done()
	close(s.stopping)
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer done()
	if err := server.Shutdown(stop); err != nil {
		s.log.Warn("requests did not end in time; closing their connections", zap.Duration("after", shutdownGrace))
		_ = server.Close()
	}
	owned.Wait()
	s.renderings.close()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (s *Server) httpServer() *http.Server {
	return &http.Server{
		Handler: s.handler, TLSConfig: s.handshakeConfig(),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout,
		WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:       zap.NewStdLog(s.log.Named("http")),
	}
}

func (s *Server) serve(server *http.Server, l net.Listener) error {
	if s.access.Load().tls != nil { // net/http makes a TLSConfig of its own
		return server.ServeTLS(l, "", "")
	}
	return server.Serve(l)
}

func (s *Server) listenAll(ctx context.Context) ([]net.Listener, error) {
	var all []net.Listener
	for _, address := range s.cfg.Listen {
		l, err := (&net.ListenConfig{Control: listenControl}).Listen(ctx, "tcp", address)
		if err != nil {
			for _, open := range all {
				_ = open.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w (is another pvcapid running, or is that no address?)", address, err)
		}
		s.log.Info("listening", zap.String("address", l.Addr().String()), zap.Bool("tls", s.access.Load().tls != nil))
		s.addrs = append(s.addrs, l.Addr())
		all = append(all, netutil.LimitListener(l, maxConnections))
	}
	return all, nil
}

// now reads the server's clock.
func (s *Server) now() cluster.Instant { return s.deps.Clock.Now() }
