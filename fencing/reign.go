package fencing

import (
	"sync"

	"pvc.internal/cluster"
)

// reign is since when this fencer is known to lead, at the latest: whoever held
// the role before had to end by then (I3).
type reign struct {
	mu    sync.Mutex
	epoch cluster.Epoch
	since cluster.Instant
}

// see takes the epoch of a lease that this daemon is seen to hold now.
func (r *reign) see(e cluster.Epoch, clock cluster.Clock) {
	if clock == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e > r.epoch {
		r.epoch, r.since = e, clock.Now()
	}
}

// began is when the newest reign was first seen; Never before the first.
func (r *reign) began() cluster.Instant {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}
