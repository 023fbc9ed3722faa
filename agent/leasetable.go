package agent

import (
	"context"
	"encoding/json"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/lease"
	"pvc.internal/cluster"
)

// leaseTable is the record of node leases as this primary writes it: with its
// keepalive, where a state has changed, else now and then for the figures.
type leaseTable struct {
	changed bool
	at      cluster.Instant // of the last write
	there   chan struct{}   // closed once the record is known to be there: a missing one would cost a keepalive
	large   bool            // the newest did not fit with a keepalive
}

// tableEvery is between two writes of the figures alone.
const tableEvery = 10 * time.Second

// largestRider bounds what goes with a keepalive.
const largestRider = 16 << 10

// leaseShown is what of a worker changes the record at once.
type leaseShown struct {
	state string
	code  cluster.RefusalCode
}

func (w *leaseWorker) show(now cluster.Instant) leaseShown {
	v := w.h.View(now)
	switch {
	case !w.wanted:
		return leaseShown{}
	case v.Held:
		return leaseShown{state: cluster.LeaseSeenHeld}
	case v.Last.Code == "":
		return leaseShown{state: cluster.LeaseSeenAsking}
	}
	return leaseShown{cluster.LeaseSeenRefused, v.Last.Code}
}

// make has the record be there, in a goroutine of h.
func (t *leaseTable) make(ctx context.Context, h *holding) {
	there := make(chan struct{})
	t.there = there
	table := h.tableAt(h.d.Clock.Now(), 0)
	h.owned.Go(func() {
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, h.c.Timing.RequestTimeout())
			r := h.d.Store.Commit(try, cluster.Txn{Purpose: "leases", Ops: []cluster.Op{cluster.Create(cluster.Key{Kind: cluster.KeyNodeLeases}, table)}})
			cancel()
			if r.Outcome == cluster.OutcomeOK || r.Outcome == cluster.OutcomeConflict {
				close(there)
				return
			}
			if t := h.term.Load(); !t.leads || t.epoch != table.Lease.Epoch {
				return
			}
			pause(ctx, h.c.Timing.KeepaliveInterval)
		}
	})
}

// publish has the record written where that is due. A large one is written once
// a keepalive at most: a new leader's thousand first answers are no thousand writes.
func (h *holding) publish(ctx context.Context, now cluster.Instant) {
	t := &h.table
	if h.a == nil || !t.changed && (now.Sub(t.at) < tableEvery || h.flying > 0) { // the answers bring the figures
		return
	}
	if t.large && now.Sub(t.at) < h.c.Timing.KeepaliveInterval {
		return // a later turn
	}
	select {
	case <-t.there:
	default:
		return // a later turn
	}
	t.changed, t.at = false, now
	table := h.tableAt(now, h.keep.grid.next(now, h.c.Timing.KeepaliveInterval))
	raw, err := json.Marshal(table)
	if err != nil { // cannot happen for names and numbers
		h.d.Log.Error("the record of node leases cannot be encoded", zap.Error(err))
		return
	}
	write := cluster.Set(cluster.Key{Kind: cluster.KeyNodeLeases}, cluster.AnyVersion, table)
	if t.large = len(raw) > largestRider; !t.large {
		h.keep.Ride(write)
		return
	}
	h.owned.Go(func() {
		try, cancel := context.WithTimeout(ctx, h.c.Timing.RequestTimeout())
		defer cancel()
		h.d.Store.Commit(try, cluster.Txn{Purpose: "leases", Ops: []cluster.Op{write}})
	})
}

// tableAt is the record as it is to read when it is written, so long from now.
func (h *holding) tableAt(now cluster.Instant, ahead time.Duration) cluster.NodeLeases {
	wall := h.c.WallMS()
	t := cluster.NodeLeases{
		Version: 1, Lease: h.a.id, Set: h.set, Majority: h.majority, PeriodMS: h.c.Timing.NodeLeasePeriod.Milliseconds(),
		UnixMS: wall + ahead.Milliseconds(), Nodes: make(map[cluster.NodeID]cluster.NodeLeaseSeen, len(h.a.list)),
	}
	for _, w := range h.a.list {
		if w.wanted {
			t.Nodes[w.node] = w.published(now, ahead, wall)
		}
	}
	return t
}

func (w *leaseWorker) published(now cluster.Instant, ahead time.Duration, wallMS int64) cluster.NodeLeaseSeen {
	v := w.h.View(now)
	seen := cluster.NodeLeaseSeen{State: w.show(now).state, RTT: cluster.RoundTripSeen{
		Median: roundTrip(&w.rtt, 0.5), P99: roundTrip(&w.rtt, 0.99), Last: w.last.Microseconds(),
	}}
	since := v.Last.At
	if v.Held {
		seen.LeftMS, since = max(0, v.Left-ahead).Milliseconds(), v.Since
	} else if v.Last.Code != "" {
		seen.Code, seen.Detail = v.Last.Code, v.Last.Detail
	}
	if !since.IsZero() {
		seen.SinceMS = wallMS - now.Sub(since).Milliseconds()
	}
	return seen
}

func roundTrip(r *lease.RoundTrips, q float64) int64 { return r.Quantile(q).Microseconds() }
