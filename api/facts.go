package api

import (
	"context"
	"time"

	"pvc.internal/cluster"
)

// storePatience is how long a read waits for a store that is just changing its
// server; longer is an outage and is told.
const storePatience = 1500 * time.Millisecond

// facts answers a read from the latest snapshot. While the store is away it is
// a 503 with the last answer known.
func (s *Server) facts(ctx context.Context, render func(state) (any, error)) (answer, error) {
	st := s.awaitReadable(ctx)
	if st.snap == nil || !st.snap.Complete && st.away == 0 {
		return answer{}, s.awayFailure("the records have not been read yet", nil)
	}
	body, err := render(st)
	if st.readable() {
		if err != nil {
			return answer{}, err
		}
		return ok(body)
	}
	if err != nil {
		body = nil
	}
	return answer{}, s.awayFailure("not connected", body)
}

// awaitReadable returns the state as soon as it can be read, or as it is after
// a short patience.
func (s *Server) awaitReadable(ctx context.Context) state {
	if st := s.view.current(s.now()); st.readable() {
		return st
	}
	patience := time.NewTimer(storePatience)
	defer patience.Stop()
	for {
		st := s.view.current(s.now())
		// A store that was away before this request came is not waited for.
		if st.readable() || st.away > storePatience {
			return st
		}
		select {
		case <-st.changed:
		case <-patience.C:
			return st
		case <-ctx.Done():
			return st
		case <-s.stopping:
			return st
		}
	}
}

// echoPatience is how long a change waits until this server's own reads show
// it; the change is kept in any case.
const echoPatience = 500 * time.Millisecond

// awaitEcho returns as soon as the latest snapshot shows what was just written,
// so that who asks next reads his own write.
func (s *Server) awaitEcho(ctx context.Context, shows func(*cluster.Snapshot) bool) {
	patience := time.NewTimer(echoPatience)
	defer patience.Stop()
	for {
		st := s.view.current(s.now())
		if st.snap != nil && shows(st.snap) {
			return
		}
		select {
		case <-st.changed:
		case <-patience.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
