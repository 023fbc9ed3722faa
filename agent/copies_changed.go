package agent

import (
	"context"
	"encoding/json"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// The bounds of the hints that a node sends.
const (
	hintLimit  = 2 * time.Second // one question
	hintSettle = 20 * time.Millisecond
	hintsTold  = 32 // in one question; more are one, of all workloads
)

// copyHinter tells the primary of copies that changed here without an order, so
// that it looks at once instead of at its next pass. Hints are lost without harm:
// one is tried twice, then the next pass finds what it was about.
type copyHinter struct {
	c      Config
	d      Deps
	latest func() *cluster.Snapshot
	rounds *copyRounds
}

// run tells until ctx ends.
func (h *copyHinter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case change := <-h.d.Copies.Changed():
			h.tell(ctx, h.gather(ctx, change))
		}
	}
}

// gather takes in what happens at the same moment: copies mostly end together.
func (h *copyHinter) gather(ctx context.Context, first cluster.CopyChange) []cluster.CopyChange {
	list := []cluster.CopyChange{first}
	timer := time.NewTimer(hintSettle)
	defer timer.Stop()
	for {
		select {
		case more := <-h.d.Copies.Changed():
			if list = append(list, more); len(list) > hintsTold {
				return []cluster.CopyChange{{Text: "many copies changed at once"}}
			}
		case <-timer.C:
			return list
		case <-ctx.Done():
			return list
		}
	}
}

// tell brings the hints to whoever is primary, twice at most.
func (h *copyHinter) tell(ctx context.Context, list []cluster.CopyChange) {
	h.rounds.own.changed()
	h.rounds.own.counts.changed(len(list))
	for _, change := range list {
		h.d.Log.Info("a copy changed without an order", zap.String("workload", change.Workload), zap.String("text", change.Text))
	}
	body, err := json.Marshal(changedHint{list})
	if err != nil { // cannot happen for texts
		return
	}
	for range 2 {
		primary := cluster.NodeID("")
		if snap := h.latest(); snap != nil && snap.Lease.Present && snap.Lease.Err == nil {
			primary = snap.Lease.Value.Holder
		}
		if primary == h.c.Node {
			for _, change := range list {
				change.Node = h.c.Node
				h.rounds.hint(change)
			}
			return
		}
		if primary != "" {
			ask, cancel := context.WithTimeout(ctx, hintLimit)
			_, err := h.d.Peers.Ask(ask, primary, questionChanged, body)
			cancel()
			if err == nil {
				return
			}
			h.d.Log.Debug("the primary was not told of a copy that changed", zap.String("peer", string(primary)), zap.Error(err))
		}
		if pause(ctx, h.c.Timing.KeepaliveInterval); ctx.Err() != nil {
			return
		}
	}
}
