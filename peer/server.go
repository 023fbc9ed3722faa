package peer

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Handler answers one kind of question. from is proven by the certificate. ctx
// ends when the asker waits no more, at the latest after ServerConfig.Answer.
// An error that wraps cluster.ErrRefused is a plain no; any other is logged,
// too. It must take a question that comes twice.
type Handler func(ctx context.Context, from cluster.NodeID, body []byte) (answer []byte, err error)

// ServerConfig bounds a server. Zero values are the defaults.
type ServerConfig struct {
	Listen   string        // host:port; for Run only
	Read     time.Duration // to read one question, default 2 s
	Answer   time.Duration // for a handler to answer, default 5 s
	Idle     time.Duration // until an unused connection is closed, default 90 s
	Shutdown time.Duration // for handlers to end, default 2 s; for Run only
	Requests int           // handlers at once besides probes, default 64
	// Allow, if set, says why a node of this cluster may not talk here all the
	// same (removed, for example). It must not block.
	Allow func(cluster.NodeID) error
}

func (c ServerConfig) withDefaults() ServerConfig {
	c.Read = cmp.Or(c.Read, 2*time.Second)
	c.Answer = cmp.Or(c.Answer, 5*time.Second)
	c.Idle = cmp.Or(c.Idle, 90*time.Second)
	c.Shutdown = cmp.Or(c.Shutdown, 2*time.Second)
	c.Requests = cmp.Or(c.Requests, 64)
	if c.Allow == nil {
		c.Allow = func(cluster.NodeID) error { return nil }
	}
	return c
}

// Server answers the questions of the cluster's other nodes.
type Server struct {
	config ServerConfig
	id     *Identity
	status func() Status
	log    *zap.Logger

	slots chan struct{}
	http  *http.Server
	stop  context.CancelFunc // of all handlers

	mu       sync.Mutex
	closing  bool
	handlers map[string]Handler
	running  map[string]int // handlers by kind
	drained  chan struct{}  // closed when running is empty and Shutdown waits
}

// NewServer makes a server that does not listen yet. status is asked at each
// probe and must not block.
func NewServer(c ServerConfig, id *Identity, status func() Status, log *zap.Logger) *Server {
	c = c.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{config: c, id: id, status: status, log: log, slots: make(chan struct{}, c.Requests), stop: cancel,
		handlers: map[string]Handler{}, running: map[string]int{}}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: c.Read, ReadTimeout: c.Read, WriteTimeout: c.Read + c.Answer + time.Second, IdleTimeout: c.Idle,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       zap.NewStdLog(log.Named("http")),
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	return s
}

type connKey struct{}

// Handle has fn answer the questions of a kind (small letters, digits, '-'). It
// panics on a kind that is taken or misspelt, as it is a mistake in the program.
func (s *Server) Handle(kind string, fn Handler) {
	if err := checkKind(kind); err != nil {
		panic("peer: " + err.Error())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.handlers[kind]; taken || kind == KindProbe {
		panic("peer: two handlers for " + kind)
	}
	s.handlers[kind] = fn
}

// Run listens where the settings say and answers until ctx ends, then shuts
// down.
func (s *Server) Run(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.Listen)
	if err != nil {
		return fmt.Errorf("listen for peers on %s (peer.listen): %w", s.config.Listen, err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.Shutdown)
	defer cancel()
	return errors.Join(s.Shutdown(bounded), <-done)
}

// Serve answers on the listener, which it closes, until Shutdown. It returns
// nil after that, else why the listener failed.
func (s *Server) Serve(l net.Listener) error {
	d := newDoorman(l, s.id, s.config.Allow, s.log)
	err := s.http.Serve(d)
	_ = d.Close() // also where the server was shut down before it began
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("answer peers: %w", err)
}

// Shutdown takes no more questions, lets those under way end until ctx does,
// then ends them. It fails where a handler goes on all the same, and names it.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	graceful := s.http.Shutdown(ctx)
	s.stop()
	if graceful != nil {
		_ = s.http.Close()
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lingerTimeout)
	defer cancel()
	return s.drain(last)
}

// drain waits until no handler runs.
func (s *Server) drain(ctx context.Context) error {
	s.mu.Lock()
	if len(s.running) == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.drained == nil {
		s.drained = make(chan struct{})
	}
	drained := s.drained
	s.mu.Unlock()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stuck := slices.Sorted(maps.Keys(s.running))
	if len(stuck) == 0 {
		return nil
	}
	return fmt.Errorf("stop answering peers: still at work: %s: %w", strings.Join(stuck, ", "), cluster.ErrDeadline)
}

// serve answers one request of a connection whose other end is known.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	conn := r.Context().Value(connKey{}).(*secured)
	if err := s.stillWelcome(conn); err != nil {
		w.Header().Set("Connection", "close")
		refuse(w, http.StatusUnauthorized, err.Error())
		return
	}
	kind, ok := strings.CutPrefix(r.URL.Path, prefix)
	switch {
	case !ok || checkKind(kind) != nil:
		refuse(w, http.StatusNotFound, fmt.Sprintf("there is nothing at %.80q; questions go to %sKIND", r.URL.Path, prefix))
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "questions are POSTed")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("a question holds at most %d bytes", MaxBody))
	case err != nil:
		w.Header().Set("Connection", "close")
		refuse(w, http.StatusRequestTimeout, "the question did not arrive in time")
	default:
		status, answer := s.answer(r, conn.from, kind, body)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(answer)
	}
}

// stillWelcome looks again at what may have changed since the handshake: the
// certificate's end, the authorities, the membership.
func (s *Server) stillWelcome(c *secured) error {
	m, now := s.id.current.Load(), s.id.now()
	if m.generation != c.usedBy || now.After(c.chain[0].NotAfter) {
		if _, err := m.verify(c.chain, x509.ExtKeyUsageClientAuth, now); err != nil {
			return err
		}
	}
	return s.config.Allow(c.from)
}

// answer runs the handler in its bounds.
func (s *Server) answer(r *http.Request, from cluster.NodeID, kind string, body []byte) (int, []byte) {
	ctx, cancel := context.WithTimeout(r.Context(), s.patience(r))
	defer cancel()
	if kind == KindProbe {
		// No slot: a node that is busy is alive.
		return s.result(from, kind, func() ([]byte, error) { return encodeStatus(s.status()) })
	}
	s.mu.Lock()
	fn, known := s.handlers[kind]
	s.mu.Unlock()
	if !known {
		return complain(http.StatusNotFound, fmt.Sprintf("this node knows no question %q; it may run another version", kind))
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return complain(http.StatusServiceUnavailable, fmt.Sprintf("this node answers %d questions already", cap(s.slots)))
	}
	if !s.begin(kind) {
		return complain(http.StatusServiceUnavailable, "this node is shutting down")
	}
	defer s.finish(kind)
	return s.result(from, kind, func() ([]byte, error) { return fn(ctx, from, body) })
}

// patience is how long the asker still waits, or the server's own limit.
func (s *Server) patience(r *http.Request) time.Duration {
	ms, err := strconv.ParseInt(r.Header.Get(leftHeader), 10, 32)
	if err != nil || ms <= 0 {
		return s.config.Answer
	}
	return min(s.config.Answer, time.Duration(ms)*time.Millisecond)
}

func (s *Server) begin(kind string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.running[kind]++
	}
	return !s.closing
}

func (s *Server) finish(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[kind]--; s.running[kind] == 0 {
		delete(s.running, kind)
	}
	if len(s.running) == 0 && s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
}

// result calls fn and turns what comes of it into a status and a body.
func (s *Server) result(from cluster.NodeID, kind string, fn func() ([]byte, error)) (status int, answer []byte) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("A peer's question broke its handler", zap.String("kind", kind), zap.String("from", string(from)),
				zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			status, answer = complain(http.StatusInternalServerError, "the handler failed; this node's log says why")
		}
	}()
	answer, err := fn()
	switch {
	case errors.Is(err, cluster.ErrRefused):
		return complain(http.StatusConflict, err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return complain(http.StatusGatewayTimeout, err.Error())
	case err != nil:
		s.log.Warn("A peer's question failed", zap.String("kind", kind), zap.String("from", string(from)), zap.Error(err))
		return complain(http.StatusInternalServerError, err.Error())
	case len(answer) > MaxBody:
		s.log.Error("An answer to a peer is too large", zap.String("kind", kind), zap.Int("bytes", len(answer)))
		return complain(http.StatusInternalServerError, fmt.Sprintf("the answer has %d bytes, more than %d", len(answer), MaxBody))
	}
	return http.StatusOK, answer
}

func complain(status int, text string) (int, []byte) {
	if len(text) > 2000 {
		text = text[:2000] + "…"
	}
	raw, err := json.Marshal(complaint{text})
	if err != nil { // cannot happen for a string
		raw = []byte(`{}`)
	}
	return status, raw
}

func refuse(w http.ResponseWriter, status int, text string) {
	status, raw := complain(status, text)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(raw)
}
