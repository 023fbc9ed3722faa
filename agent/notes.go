package agent

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

const (
	// notesKept is how many history entries wait for a store that is away.
	notesKept = 256
	// notesRetry is the pause before an entry is tried again.
	notesRetry = 200 * time.Millisecond
)

// notes writes the history's entries in their order, one at a time, for as
// long as it takes: what happened while the store was away is what people ask
// about afterwards (I8). When too many wait the oldest go, and their number is
// written in their place.
type notes struct {
	commit func(context.Context, cluster.Txn) cluster.TxnResult
	node   cluster.NodeID
	wallMS func() int64
	every  time.Duration // how long one try may take
	log    *zap.Logger

	mu      sync.Mutex
	waiting []cluster.Event
	lost    int           // dropped and not told of yet
	busy    bool          // one is being written
	more    chan struct{} // has one element when something may wait
	idle    chan struct{} // closed when nothing waits any more; nil while nobody asks
}

func newNotes(c Config, commit func(context.Context, cluster.Txn) cluster.TxnResult, log *zap.Logger) *notes {
	return &notes{
		commit: commit, node: c.Node, wallMS: c.WallMS, every: c.Timing.KeepaliveInterval, log: log,
		more: make(chan struct{}, 1),
	}
}

// add queues an entry; it never waits.
func (n *notes) add(e cluster.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting = append(n.waiting, e)
	if len(n.waiting) > notesKept {
		n.waiting = n.waiting[1:]
		n.lost++
	}
	select {
	case n.more <- struct{}{}:
	default:
	}
}

// run writes what is queued until ctx ends.
func (n *notes) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			n.tellUnwritten()
			return
		case <-n.more:
		}
		for e, ok := n.next(); ok; e, ok = n.next() {
			n.write(ctx, e)
		}
	}
}

// next takes the oldest entry out, a word on lost ones first.
func (n *notes) next() (cluster.Event, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.busy = n.lost > 0 || len(n.waiting) > 0
	switch {
	case n.lost > 0:
		e := cluster.Event{
			Version: 1, UnixMS: n.wallMS(), Node: n.node, Kind: "history_lost", Fields: map[string]string{"count": strconv.Itoa(n.lost)},
			Text: fmt.Sprintf("%d entries of %s are missing here: the store was away for too long; its log has them", n.lost, n.node),
		}
		n.lost = 0
		return e, true
	case len(n.waiting) > 0:
		e := n.waiting[0]
		n.waiting = n.waiting[1:]
		return e, true
	}
	if n.idle != nil {
		close(n.idle)
		n.idle = nil
	}
	return cluster.Event{}, false
}

// write tries until the store has answered or ctx ends. After a lost reply the
// same bytes are written again: a reason that is missing would break I8, one
// that stands there twice is read as one.
func (n *notes) write(ctx context.Context, e cluster.Event) {
	for {
		try, cancel := context.WithTimeout(ctx, n.every)
		r := n.commit(try, cluster.Txn{Purpose: "history", Ops: []cluster.Op{
			{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: e},
		}})
		cancel()
		switch r.Outcome {
		case cluster.OutcomeOK:
			return
		case cluster.OutcomeNotSent, cluster.OutcomeUnknown:
		default:
			n.log.Warn("the store refused a history entry", zap.String("kind", e.Kind), zap.String("text", e.Text), zap.Error(r.Err))
			return
		}
		select {
		case <-ctx.Done():
			n.log.Warn("a history entry was not written before this daemon ended", zap.String("kind", e.Kind), zap.String("text", e.Text))
			return
		case <-time.After(notesRetry):
		}
	}
}

// flush returns when nothing waits any more, or when ctx ends.
func (n *notes) flush(ctx context.Context) {
	n.mu.Lock()
	if !n.busy && len(n.waiting) == 0 {
		n.mu.Unlock()
		return
	}
	if n.idle == nil {
		n.idle = make(chan struct{})
	}
	idle := n.idle
	n.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// tellUnwritten logs what the history will never have.
func (n *notes) tellUnwritten() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.waiting {
		n.log.Warn("a history entry was not written before this daemon ended", zap.String("kind", e.Kind), zap.String("text", e.Text))
	}
}
