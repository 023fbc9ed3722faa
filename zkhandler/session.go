package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"
	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// SessionPhase is what may be assumed about the session.
//
//	Connecting ──► Live ◄──► Suspended ──► Lost ──► (Connecting of the next session)
//	                ▲                        │
//	                └── the servers kept it ─┘
type SessionPhase uint8

// The phases of a session.
const (
	Connecting SessionPhase = iota // none yet
	Live                           // connected; a sync through the leader was answered
	Suspended                      // disconnected; the session probably still exists
	Lost                           // expired, or disconnected for so long that it must be taken for expired
)

// String names the phase.
func (p SessionPhase) String() string {
	switch p {
	case Connecting:
		return "connecting"
	case Live:
		return "live"
	case Suspended:
		return "suspended"
	case Lost:
		return "lost"
	}
	return "invalid"
}

// SessionState is the link to ZooKeeper as judged on this host's clock.
type SessionState struct {
	Phase     SessionPhase
	Since     cluster.Instant // when the phase began
	Session   int64           // id; 0 before the first handshake
	Server    string          // connected, or last connected to
	Granted   time.Duration   // session time-out as the server granted it; 0 before
	LastWrite cluster.Instant // send instant of the last acknowledged write in this session
	Err       error           // what stands in the way, when known (cluster.ErrAuth); nil else
}

const (
	maxInFlight  = 14 // the library's queue has 16 slots; two are left for its own requests
	closeTimeout = 500 * time.Millisecond
	lostForGood  = 30 * time.Second // a lost session may be taken back by the servers for so long
)

// session is one zk.Conn, which is one ZooKeeper session, and dies with it.
type session struct {
	h      *Handler
	dialer *dialer
	conn   *zk.Conn
	closed <-chan struct{} // the library's loop has ended

	dead   atomic.Bool // expired: nothing may be sent any more
	ctx    context.Context
	end    context.CancelFunc
	wake   chan struct{} // an event has changed linked
	slots  chan struct{} // in-flight requests
	calls  sync.WaitGroup
	authed bool // the library re-sends the credentials by itself from then on

	mu      sync.Mutex
	closing bool // calls takes no more
	linked  bool // the library says: has session
	gen     uint64
	state   SessionState
}

func (h *Handler) newSession() (*session, error) {
	ctx, end := context.WithCancel(context.Background())
	s := &session{
		h: h, ctx: ctx, end: end,
		wake:  make(chan struct{}, 1),
		slots: make(chan struct{}, maxInFlight),
		state: SessionState{Phase: Connecting, Since: h.clock.Now()},
	}
	ring := newHostRing(h.servers, s.dead.Load)
	s.dialer = &dialer{config: h.config, ring: ring, ctx: ctx, barrier: h.schema.barrierPath, tell: func(server string, err error) {
		h.log.Warn("a ZooKeeper server cannot be reached; the others are tried, and it again", zap.String("server", server), zap.Error(err))
	}}
	conn, events, err := zk.Connect(h.servers, h.config.SessionTimeout,
		zk.WithDialer(s.dialer.dial),
		zk.WithHostProvider(ring),
		zk.WithEventCallback(s.onEvent),
		zk.WithLogger(h.libraryLog),
		zk.WithLogInfo(false),
		zk.WithMaxBufferSize(listBuffer),
		zk.WithMaxConnBufferSize(sendBuffer),
	)
	if err != nil {
		end()
		return nil, fmt.Errorf("start a ZooKeeper session: %w", err)
	}
	closed := make(chan struct{})
	go func() { // ends with the library's loop, which close waits for
		for range events {
		}
		close(closed)
	}()
	s.conn, s.closed = conn, closed
	return s, nil
}

// onEvent is called by the library's goroutines. It must not block and must
// not call the library. Events of other sessions cannot arrive here.
func (s *session) onEvent(e zk.Event) {
	if e.Type != zk.EventSession {
		if e.Type != zk.EventNotWatching {
			s.h.watches.fired(s, e.Path, e.Type)
		}
		return
	}
	switch e.State {
	case zk.StateHasSession:
		s.setLinked(true)
	case zk.StateDisconnected:
		s.setLinked(false)
	case zk.StateExpired:
		// At once and here, not in a goroutine: what is queued in this
		// session must find the dialer refusing.
		s.dead.Store(true)
		s.end()
		s.setLinked(false)
	}
}

func (s *session) setLinked(linked bool) {
	s.mu.Lock()
	s.linked = linked
	if linked {
		if c := s.dialer.now(); c != nil {
			s.gen = c.generation
			s.state.Server = c.server
			s.state.Session = c.session.Load()
			s.state.Granted = time.Duration(c.granted.Load())
		}
	} else if s.state.Phase == Live {
		s.enter(Suspended)
	}
	s.mu.Unlock()
	notify(s.wake)
}

// notify puts a value into a one-place channel unless there is one.
func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// enter sets the phase; s.mu is held.
func (s *session) enter(p SessionPhase) {
	if s.state.Phase == p {
		return
	}
	s.state.Phase = p
	s.state.Since = s.h.clock.Now()
	s.h.metrics.phase(p)
	s.h.log.Info("ZooKeeper session changed",
		zap.Stringer("phase", p), zap.String("session", fmt.Sprintf("%#x", uint64(s.state.Session))),
		zap.String("server", s.state.Server), zap.Duration("granted", s.state.Granted))
	notify(s.h.mirror.linkChanged)
}

func (s *session) snapshotState() SessionState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// supervise walks the session through its phases until it is expired (nil) or
// ctx ends.
func (s *session) supervise(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if s.dead.Load() {
			s.mu.Lock()
			s.enter(Lost)
			s.mu.Unlock()
			return nil
		}
		timer.Reset(s.step(ctx))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		case <-timer.C:
		}
	}
}

// step does what the present link calls for and returns when to look again.
func (s *session) step(ctx context.Context) time.Duration {
	s.mu.Lock()
	linked, phase, gen := s.linked, s.state.Phase, s.gen
	s.mu.Unlock()
	switch {
	case linked && phase != Live:
		s.attach(ctx, gen)
	case !linked && phase == Suspended:
		return s.suspended()
	case !linked && phase == Lost:
		return s.abandoned()
	}
	return time.Hour
}

// suspended moves to Lost when the session's time-out has passed since the
// last acknowledged write was sent: from then on its ephemerals may be gone.
// No server tells this to a client that none of them can reach.
func (s *session) suspended() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	anchor := s.state.LastWrite
	if anchor.IsZero() {
		anchor = s.state.Since
	}
	left := anchor.Add(s.state.Granted).Sub(s.h.clock.Now())
	if left <= 0 {
		s.enter(Lost)
		return time.Millisecond // to look at what follows
	}
	return left
}

// abandoned gives the session up when no server has taken it back for long:
// servers restored from an old copy refuse whoever has seen more than they
// have, and would do so for ever (I7).
func (s *session) abandoned() time.Duration {
	s.mu.Lock()
	left := s.state.Since.Add(max(lostForGood, 5*s.state.Granted)).Sub(s.h.clock.Now())
	s.mu.Unlock()
	if left <= 0 {
		s.dead.Store(true)
		s.end()
		notify(s.wake)
		return time.Hour
	}
	return left
}

// attach makes a fresh connection live: credentials, once in a session, then a
// sync through the leader. Until that is answered no request is accepted, and
// a server that cannot answer it (cut off from its leader) is left.
func (s *session) attach(ctx context.Context, gen uint64) {
	ctx, cancel := context.WithTimeout(ctx, s.dialer.handshakeTimeout())
	defer cancel()
	err := s.await(ctx, func() error {
		if auth := s.h.config.Auth; auth != nil && !s.authed {
			if err := s.conn.AddAuth("digest", []byte(auth.User+":"+auth.Password)); err != nil {
				return err
			}
			s.authed = true
		}
		_, err := s.conn.Sync(s.h.schema.barrierPath(gen))
		return err
	})
	if err != nil {
		s.useless(gen, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.linked && s.gen == gen {
		s.state.Err = nil
		s.enter(Live)
		notify(s.h.mirror.relinked)
		notify(s.h.orphans.wake)
		notify(s.h.inspector.wake)
		s.h.watches.releaseAll()
	}
}

// useless leaves a server with which attach has failed.
func (s *session) useless(gen uint64, err error) {
	s.mu.Lock()
	server := s.state.Server
	if errors.Is(err, zk.ErrAuthFailed) {
		s.state.Err = fmt.Errorf("%w: check zookeeper.auth and the servers' authentication providers", cluster.ErrAuth)
	}
	s.mu.Unlock()
	s.h.log.Warn("ZooKeeper connection is of no use, trying the next server",
		zap.String("server", server), zap.Error(err))
	s.leave(gen)
}

// leave closes the connection of this generation because it did not answer.
func (s *session) leave(gen uint64) {
	if s.linkedAt(gen) {
		s.dialer.ring.silent()
	}
	s.dialer.kill(gen)
}

// linkedAt reports whether the connection of this generation still stands.
func (s *session) linkedAt(gen uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linked && s.gen == gen
}

// usable returns nil if the session takes requests now, else why not.
func (s *session) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusal()
}

// refusal is usable with s.mu held.
func (s *session) refusal() error {
	if s.state.Phase == Live && !s.closing && !s.dead.Load() {
		return nil
	}
	reason := s.state.Err
	if reason == nil {
		reason = fmt.Errorf("%s for %s", s.state.Phase, s.h.clock.Now().Sub(s.state.Since).Round(time.Millisecond))
	}
	return failf(fateNotSent, "%w: %w", cluster.ErrNotLive, reason)
}

// begin admits a request and returns the connection's generation; the caller
// owes a calls.Done.
func (s *session) begin() (gen uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refusal(); err != nil {
		return 0, err
	}
	s.calls.Add(1)
	return s.gen, nil
}

// wrote notes an acknowledged write: the only evidence of life, since a
// follower cut off from its leader still answers pings and reads.
func (s *session) wrote(sent cluster.Instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sent.After(s.state.LastWrite) {
		s.state.LastWrite = sent
	}
}

// await runs fn in a goroutine of the session and returns its error, or ctx's.
func (s *session) await(ctx context.Context, fn func() error) error {
	result := make(chan error, 1)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return errSessionDead
	}
	s.calls.Go(func() { result <- fn() })
	s.mu.Unlock()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close ends the session and waits, bounded, for all that belongs to it. While
// connected it says good-bye, so that the ephemerals are gone at once.
func (s *session) close() {
	s.mu.Lock()
	linked := s.linked
	s.closing = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.conn.Close()
		s.calls.Wait()
		<-s.closed
		close(done)
	}()
	if linked && !s.dead.Load() {
		timer := time.NewTimer(closeTimeout)
		select {
		case <-done:
		case <-timer.C:
		}
		timer.Stop()
	}
	s.dead.Store(true)
	s.end()
	s.dialer.kill(0)
	timer := time.NewTimer(5 * time.Second)
	defer timer.Stop()
	select {
	case <-done:
		s.dialer.closeCurrent()
	case <-timer.C:
		s.h.log.Warn("the ZooKeeper client library did not end within 5 s; its goroutines are left behind")
	}
}
