package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// coordination is what the sandbox needs of ZooKeeper; zkhandler.Handler is one.
type coordination interface {
	Run(ctx context.Context) error
	Subscribe() (<-chan *cluster.Snapshot, func())
	Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult
	Refresh(ctx context.Context) (*cluster.Snapshot, error)
	Initialize(ctx context.Context, clusterName string, overwrite bool) error
	CheckTree(ctx context.Context) (clusterName string, initialised bool, err error)
	ReadText(ctx context.Context, k cluster.Key) (cluster.Versioned[string], error)
}

// storeWatch looks into the cluster's tree from the client's namespace,
// records what changes and keeps the latest view.
type storeWatch struct {
	coordination
	history *History
	wg      sync.WaitGroup
	cancel  context.CancelFunc

	mu      sync.Mutex
	snap    *cluster.Snapshot
	changed chan struct{} // closed and replaced with each new view
}

// openStore connects, initialises an empty tree, and begins to record.
func (s *Sandbox) openStore(ctx, life context.Context) (*storeWatch, error) {
	h, err := s.newHandler(s.dialClient)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	life, cancel := context.WithCancel(life)
	w := &storeWatch{coordination: h, history: s.history, cancel: cancel, changed: make(chan struct{})}
	snaps, unsubscribe := h.Subscribe()
	w.wg.Go(func() { _ = h.Run(life) })
	w.wg.Go(func() {
		defer unsubscribe()
		w.follow(life, snaps)
	})
	if err := w.initialise(ctx, s.options.Name); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// dialClient connects from the client's namespace.
func (s *Sandbox) dialClient(ctx context.Context, network, addr string) (net.Conn, error) {
	return s.net.client.dial(ctx, network, addr)
}

func (w *storeWatch) initialise(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, ensembleTimeout)
	defer cancel()
	for {
		_, done, err := w.CheckTree(ctx)
		if err == nil && done {
			return nil
		}
		if err == nil {
			if err = w.Initialize(ctx, name, false); err == nil {
				return nil
			}
		}
		if !errors.Is(err, cluster.ErrNotLive) && !errors.Is(err, cluster.ErrUnknown) && ctx.Err() == nil &&
			!errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("initialise the cluster's tree: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("initialise the cluster's tree: %w (last: %w)", context.Cause(ctx), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (w *storeWatch) follow(ctx context.Context, snaps <-chan *cluster.Snapshot) {
	for {
		select {
		case <-ctx.Done():
			return
		case snap, ok := <-snaps:
			if !ok {
				return
			}
			w.take(snap)
		}
	}
}

func (w *storeWatch) take(snap *cluster.Snapshot) {
	// Recorded before anybody who waits for it goes on: what it did about the
	// view then stands after it in the history.
	for _, e := range differences(w.latest(), snap) {
		w.history.Add(e) // stamped now, but for records: when they were read
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.snap = snap
	close(w.changed)
	w.changed = make(chan struct{})
}

// viewPeriod is how often the coordinators' views are read while a fault is
// measured: the resolution of the time to suspect.
const viewPeriod = 25 * time.Millisecond

// followViews records how the observers judge the nodes until ctx ends: each
// change of what they have published, but not what they say at first.
func (w *storeWatch) followViews(ctx context.Context, observers []cluster.NodeID) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, observer := range observers {
		wg.Go(func() {
			tick := time.NewTicker(viewPeriod)
			defer tick.Stop()
			var was map[cluster.NodeID]cluster.NodeSeen
			for {
				is, err := w.view(ctx, observer)
				if err == nil && was != nil {
					w.recordView(observer, was, is)
				}
				if err == nil {
					was = is
				}
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		})
	}
}

func (w *storeWatch) recordView(observer cluster.NodeID, was, is map[cluster.NodeID]cluster.NodeSeen) {
	for node, seen := range is {
		if node != observer && seen.Liveness != was[node].Liveness {
			w.history.Add(Entry{Kind: KindView, Node: node, By: string(observer), Text: seen.Liveness})
		}
	}
}

// view reads what one node has published of the others.
func (w *storeWatch) view(ctx context.Context, observer cluster.NodeID) (map[cluster.NodeID]cluster.NodeSeen, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	text, err := w.ReadText(ctx, cluster.Key{Kind: cluster.KeyView, Node: observer})
	if err != nil {
		return nil, err
	}
	var v cluster.View
	if !text.Present {
		return map[cluster.NodeID]cluster.NodeSeen{}, nil
	}
	if err := json.Unmarshal([]byte(text.Value), &v); err != nil {
		return nil, fmt.Errorf("read the view of %s: %w", observer, err)
	}
	return v.Nodes, nil
}

// followExpiry records, until ctx ends, that the holder's time is over: only a
// write proves that no renewal has gone unseen. A sync and a read do not, since
// a server that was the leader and has been stopped answers both out of what it
// knew, before it learns that it has been replaced.
func (w *storeWatch) followExpiry(ctx context.Context, grace time.Duration) {
	lease := cluster.Key{Kind: cluster.KeyLease}
	for pause(ctx, expiryPeriod) == nil {
		snap := w.latest()
		if snap == nil || !overdue(snap.Lease, now(), grace) {
			continue
		}
		began := now()
		if w.commit(ctx, cluster.Txn{Purpose: "expiry", Ops: []cluster.Op{cluster.Check(lease, snap.Lease.Version)}}).Outcome == cluster.OutcomeOK {
			l := snap.Lease.Value
			w.history.Add(Entry{At: began, Kind: KindExpired, Node: l.Holder, Epoch: l.Epoch, N: l.N})
		}
	}
}

func (w *storeWatch) commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return w.Commit(ctx, t)
}

const expiryPeriod = 100 * time.Millisecond

// overdue reports whether the lease's holder should have fallen silent.
func overdue(l cluster.Versioned[cluster.Lease], at cluster.Instant, grace time.Duration) bool {
	return l.Present && l.Err == nil && !l.Value.Released() && at.Sub(l.SeenAt) > l.Value.TTL()-grace
}

// latest is the newest view, nil before the first.
func (w *storeWatch) latest() *cluster.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snap
}

// wait returns the first view that satisfies ok, or what was missing in the
// last one when ctx ended.
func (w *storeWatch) wait(ctx context.Context, ok func(*cluster.Snapshot) error) error {
	for {
		w.mu.Lock()
		snap, changed := w.snap, w.changed
		w.mu.Unlock()
		missing := errors.New("nothing has been seen of the store yet")
		if snap != nil {
			if missing = ok(snap); missing == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return missing
		case <-changed:
		case <-time.After(250 * time.Millisecond): // ok may look at more than the view
		}
	}
}

func (w *storeWatch) close() {
	w.cancel()
	w.wg.Wait()
}
