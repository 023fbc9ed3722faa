package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
)

// fate says what is known about a request.
type fate uint8

const (
	fateDone     fate = iota // answered, and not with an error
	fateConflict             // answered: a version or existence check failed
	fateRefused              // answered: never, so do not retry
	fateNotSent              // it has not happened and will not
	fateUnknown              // it may have happened, or may still
)

// failure is a request's error with its fate.
type failure struct {
	fate fate
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failf(f fate, format string, args ...any) *failure {
	return &failure{fate: f, err: fmt.Errorf(format, args...)}
}

func fateOf(err error) fate {
	if err == nil {
		return fateDone
	}
	var f *failure
	if errors.As(err, &f) {
		return f.fate
	}
	return fateUnknown
}

// translate turns the library's error into ours. What is not certain to have
// been refused or kept back is unknown, raw network errors and errors of
// decoding included.
func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, zk.ErrNoServer), errors.Is(err, errSessionDead):
		return failf(fateNotSent, "%w: no server could be reached", cluster.ErrNotLive)
	case errors.Is(err, zk.ErrSessionMoved):
		return failf(fateNotSent, "%w: the session had moved to another server", cluster.ErrNotLive)
	case errors.Is(err, zk.ErrNoNode):
		return failf(fateConflict, "%w: no such znode", cluster.ErrNotFound)
	case errors.Is(err, zk.ErrBadVersion):
		return failf(fateConflict, "%w", cluster.ErrConflict)
	case errors.Is(err, zk.ErrNodeExists):
		return failf(fateConflict, "%w: the znode exists already", cluster.ErrConflict)
	case errors.Is(err, zk.ErrNotEmpty):
		return failf(fateConflict, "%w: the znode has children", cluster.ErrConflict)
	case errors.Is(err, zk.ErrNoAuth), errors.Is(err, zk.ErrAuthFailed), errors.Is(err, zk.ErrInvalidACL):
		return failf(fateRefused, "%w (%w): zookeeper.auth must be the identity that owns the record, the same on every node", cluster.ErrAuth, err)
	case errors.Is(err, zk.ErrNoChildrenForEphemerals), errors.Is(err, zk.ErrInvalidPath), errors.Is(err, zk.ErrBadArguments):
		return failf(fateRefused, "%w by ZooKeeper: %w", cluster.ErrRefused, err)
	}
	return translateCode(err)
}

// translateCode handles the codes for which the library has no sentinel.
func translateCode(err error) error {
	code, ok := strings.CutPrefix(err.Error(), "unknown error: ")
	if !ok {
		return failf(fateUnknown, "%w (%w)", cluster.ErrUnknown, err)
	}
	switch code {
	case fmt.Sprint(codeDropped):
		return failf(fateNotSent, "%w: the connection was lost before the request left", cluster.ErrNotLive)
	case fmt.Sprint(codeOversize):
		return failf(fateRefused, "%w: the record is larger than %d bytes, or the list than %d", cluster.ErrTooLarge, receiveBuffer, listBuffer)
	case "-6":
		return failf(fateRefused, "%w: this ZooKeeper does not know the operation", cluster.ErrRefused)
	}
	return failf(fateUnknown, "%w (ZooKeeper error code %s)", cluster.ErrUnknown, code)
}

// sentRequest is where and when a request was handed over.
type sentRequest struct {
	session *session
	at      cluster.Instant // read before it was; Never if it was not
}

// request runs one library call in the live session, bounded by ctx and the
// request time-out. It never queues without a connection. One that is not
// answered in time closes the socket.
func request[T any](ctx context.Context, h *Handler, fn func(*zk.Conn) (T, error)) (T, sentRequest, error) {
	var none T
	s, err := h.liveSession()
	if err != nil {
		return none, sentRequest{}, err
	}
	if err := s.usable(); err != nil {
		return none, sentRequest{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, h.config.RequestTimeout)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return none, sentRequest{}, failf(fateNotSent, "%w: waited in vain for one of the %d requests under way", cluster.ErrDeadline, maxInFlight)
	}
	gen, err := s.begin()
	if err == nil && ctx.Err() != nil {
		s.calls.Done()
		err = failf(fateNotSent, "%w: %w", cluster.ErrDeadline, ctx.Err())
	}
	if err != nil {
		<-s.slots
		return none, sentRequest{}, err
	}
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	returned := make(chan struct{})
	sent := sentRequest{s, h.clock.Now()}
	go func() {
		defer s.calls.Done()
		defer func() { <-s.slots }()
		defer close(returned)
		value, err := fn(s.conn)
		answers <- answer{value, err}
	}()
	select {
	case a := <-answers:
		return a.value, sent, translate(a.err)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			s.abandon(gen, sent.at, returned)
		}
		return none, sent, failf(fateUnknown, "%w: no answer within %s", cluster.ErrUnknown, h.clock.Now().Sub(sent.at).Round(time.Millisecond))
	}
}

// patience is the least time that a server is given to answer, however little
// the caller had left: a deadline that struck just after the request was sent
// says nothing about the connection.
const patience = 100 * time.Millisecond

// abandon closes the connection under a request that was not answered in time.
func (s *session) abandon(gen uint64, sent cluster.Instant, returned <-chan struct{}) {
	left := patience - s.h.clock.Now().Sub(sent)
	if left <= 0 {
		s.leave(gen)
		s.h.metrics.unanswered()
		return
	}
	s.calls.Go(func() {
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case <-returned:
		case <-s.ctx.Done():
		case <-timer.C:
			s.leave(gen)
			s.h.metrics.unanswered()
		}
	})
}

// liveSession returns the present session, if there is one.
func (h *Handler) liveSession() (*session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.session == nil {
		return nil, failf(fateNotSent, "%w: not started", cluster.ErrNotLive)
	}
	return h.session, nil
}

type datum struct {
	data []byte
	stat zk.Stat
}

func (h *Handler) get(ctx context.Context, path string) (datum, error) {
	d, _, err := request(ctx, h, func(c *zk.Conn) (datum, error) {
		data, stat, err := c.Get(path)
		if err != nil {
			return datum{}, err
		}
		return datum{data, *stat}, nil
	})
	return d, wrapPath(err, "read", path)
}

func (h *Handler) children(ctx context.Context, path string) ([]string, error) {
	names, _, err := request(ctx, h, func(c *zk.Conn) ([]string, error) {
		names, _, err := c.Children(path)
		return names, err
	})
	return names, wrapPath(err, "list", path)
}

// sync brings this session's server up to date with the leader.
func (h *Handler) sync(ctx context.Context) error {
	_, _, err := request(ctx, h, func(c *zk.Conn) (string, error) { return c.Sync(h.schema.syncPath()) })
	if err != nil {
		return fmt.Errorf("sync with the ZooKeeper leader: %w", err)
	}
	return nil
}

func wrapPath(err error, verb, path string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", verb, path, err)
}
