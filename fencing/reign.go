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

// Reign tells that this daemon holds the primary role at this epoch by now, so
// that what is counted from there counts from the taking and not from the first
// fence. It does not block.
func (f *Fencer) Reign(e cluster.Epoch) { f.reign.see(e, f.Clock) }

// began is when the newest reign was first seen; Never before the first.
func (r *reign) began() cluster.Instant {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}

// rested is since when this fencer has ordered no power off of a node.
type rested struct {
	mu    sync.Mutex
	since map[cluster.NodeID]cluster.Instant
}

// see takes that a try about the node ends now.
func (r *rested) see(n cluster.NodeID, clock cluster.Clock) {
	if clock == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since == nil {
		r.since = map[cluster.NodeID]cluster.Instant{}
	}
	r.since[n] = clock.Now()
}

// of is since when; Never where it has never.
func (r *rested) of(n cluster.NodeID) cluster.Instant {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since[n]
}
