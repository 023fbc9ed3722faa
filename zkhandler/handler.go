package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// Handler is a client of one cluster's tree. It does nothing until Run.
type Handler struct {
	config      Config
	servers     []string
	schema      schema
	knownSchema int // the newest schema that this program can write
	acl         []zk.ACL
	aclSize     int
	clock       cluster.Clock
	log         *zap.Logger
	libraryLog  *libraryLog
	metrics     *metrics
	watches     *watches
	mirror      *mirror
	orphans     orphans
	inspector   *inspector

	mu      sync.Mutex
	session *session // nil before Run and after
	ended   SessionState

	subscribers sync.Mutex
	latest      *cluster.Snapshot
	channels    map[chan *cluster.Snapshot]bool
}

// New checks the settings and makes a Handler. clock is the host's; reg may be
// nil, else it must have no pvc_zkhandler_ metrics yet.
func New(c Config, clock cluster.Clock, log *zap.Logger, reg prometheus.Registerer) (*Handler, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("ZooKeeper settings: %w", err)
	}
	c = c.withDefaults()
	servers, err := parseServers(c.Servers)
	if err != nil {
		return nil, err
	}
	tree, err := newSchema(c.Root)
	if err != nil {
		return nil, err
	}
	h := &Handler{
		config: c, servers: servers, schema: tree, knownSchema: c.newestSchema(), acl: c.creationACL(), clock: clock, log: log,
		libraryLog: newLibraryLog(log), watches: newWatches(), channels: map[chan *cluster.Snapshot]bool{},
		ended:   SessionState{Phase: Connecting, Since: clock.Now()},
		orphans: orphans{wake: make(chan struct{}, 1)},
	}
	for _, a := range h.acl {
		h.aclSize += 16 + len(a.Scheme) + len(a.ID)
	}
	if h.metrics, err = newMetrics(reg); err != nil {
		return nil, err
	}
	h.mirror = newMirror(h)
	h.inspector = newInspector(h)
	if c.open() {
		log.Warn("no zookeeper.auth and no client certificate: whoever reaches ZooKeeper may change this cluster's records")
	}
	return h, nil
}

// Run keeps a session and the view until ctx ends, then closes the session, so
// that its ephemerals are gone at once, and waits for all it started. It
// returns nil then; any other end is an error. It may be called once.
func (h *Handler) Run(ctx context.Context) error {
	var owned sync.WaitGroup
	defer owned.Wait()
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	owned.Go(func() { h.mirror.run(inner) })
	owned.Go(func() { h.sweepOrphans(inner) })
	if h.config.CheckServers {
		owned.Go(func() { h.inspector.run(inner) })
	}
	for {
		began := time.Now()
		s, err := h.newSession()
		if err != nil {
			return err
		}
		h.watches.reset(s)
		h.setSession(s)
		err = s.supervise(ctx)
		h.retire(s)
		if err != nil {
			s.close()
			h.setSession(nil)
			if errors.Is(err, ctx.Err()) {
				return nil
			}
			return err
		}
		owned.Go(s.close)
		if time.Since(began) < time.Second { // a server that expires each session at once
			if !sleep(ctx, time.Second) {
				h.setSession(nil)
				return nil
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (h *Handler) setSession(s *session) {
	h.mu.Lock()
	h.session = s
	h.mu.Unlock()
	notify(h.mirror.linkChanged)
}

// retire remembers how the session ended, for State between two sessions.
func (h *Handler) retire(s *session) {
	state := s.snapshotState()
	if state.Phase != Lost {
		state.Phase, state.Since = Lost, h.clock.Now()
	}
	h.mu.Lock()
	h.ended = state
	h.mu.Unlock()
}

// State returns the link's state as of now.
func (h *Handler) State() SessionState {
	h.mu.Lock()
	s, ended := h.session, h.ended
	h.mu.Unlock()
	if s == nil {
		return ended
	}
	return s.snapshotState()
}

// Subscribe returns a channel that always holds the latest snapshot only, and
// a function that ends the subscription and closes the channel. If there is a
// snapshot already it is in the channel at once.
func (h *Handler) Subscribe() (<-chan *cluster.Snapshot, func()) {
	ch := make(chan *cluster.Snapshot, 1)
	h.subscribers.Lock()
	defer h.subscribers.Unlock()
	h.channels[ch] = true
	if h.latest != nil {
		ch <- h.latest
	}
	return ch, func() {
		h.subscribers.Lock()
		defer h.subscribers.Unlock()
		if h.channels[ch] {
			delete(h.channels, ch)
			close(ch)
		}
	}
}

// hand gives a snapshot to all subscribers, replacing one not yet taken.
func (h *Handler) hand(s *cluster.Snapshot) {
	h.subscribers.Lock()
	defer h.subscribers.Unlock()
	h.latest = s
	for ch := range h.channels {
		select {
		case <-ch:
		default:
		}
		ch <- s
	}
	h.metrics.published()
}

// libraryLog passes the client library's messages on, at most one a second of
// each kind: it writes a line for every failed dial.
type libraryLog struct {
	log *zap.Logger

	mu   sync.Mutex
	last map[string]time.Time
}

func newLibraryLog(log *zap.Logger) *libraryLog {
	return &libraryLog{log: log, last: map[string]time.Time{}}
}

// Printf is the library's Logger.
func (l *libraryLog) Printf(format string, args ...any) {
	l.mu.Lock()
	now := time.Now()
	mute := now.Sub(l.last[format]) < time.Second
	if !mute {
		l.last[format] = now
	}
	l.mu.Unlock()
	if !mute {
		l.log.Debug("ZooKeeper client library", zap.String("message", fmt.Sprintf(format, args...)))
	}
}
