package api

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// figures are what a node has published beside its states, as this server read
// it: they are not changed once they are here.
type figures struct {
	keepalive cluster.Versioned[int64] // the newest seen when they were asked for
	sent      cluster.Instant          // when that was
	leaves    map[string]string
	err       error // why the leaves could not be read
	view      *cluster.View
	doubt     string // why there is no view
	tests     cluster.FenceTests
}

// How long figures serve. A node writes its leaves in the transaction of its
// keepalive and at no other time, so that until the next keepalive is seen they
// are the newest; what others write beside them is seen figuresKept later.
const (
	figuresKept     = 5 * time.Second
	figuresSpare    = 3 * time.Second // those before the last keepalive, where somebody waits
	figuresFailed   = time.Second / 2 // the failure to read them
	figuresPatience = 2 * time.Second // of all readings for one answer
)

// patiently bounds the readings for one answer. Others wait for them, too: who
// asked first may go without ending them.
func patiently(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), figuresPatience)
}

// serve reports whether the figures need not be read anew for the node as it is
// seen now. Where somebody waits, those of a moment ago will do.
func (f *figures) serve(n cluster.NodeView, now cluster.Instant, waiting bool) bool {
	if f == nil {
		return false
	}
	age := now.Sub(f.sent)
	switch {
	case f.err != nil:
		return age < figuresFailed
	case f.keepalive.Present == n.Keepalive.Present && f.keepalive.Version == n.Keepalive.Version && f.keepalive.Mzxid == n.Keepalive.Mzxid:
		return age < figuresKept
	}
	return waiting && age < figuresSpare
}

// word is what the node publishes, and whether it still can be relied on.
func (f *figures) word(st state, n cluster.NodeID) NodeWord {
	w := NodeWord{Node: n, Doubt: f.doubt, View: f.view}
	if w.Doubt == "" {
		w.Doubt = st.outdated(n)
	}
	return w
}

// figureCache keeps the newest figures of each node, and reads those of a node
// once however many ask for them.
type figureCache struct {
	mu sync.Mutex
	of map[cluster.NodeID]*figureEntry
}

type figureEntry struct {
	last *figures
	busy chan struct{} // closed when the running read has ended; nil while none runs
}

// figuresOf returns the node's figures; while the store is away the last ones,
// however old. The context is one of patiently.
func (s *Server) figuresOf(ctx context.Context, st state, n cluster.NodeView, waiting bool) *figures {
	c := &s.figures
	for {
		c.mu.Lock()
		e := c.entryLocked(st, n.Name)
		if st.away > 0 || e.last.serve(n, s.now(), waiting) {
			defer c.mu.Unlock()
			return e.lastOr(cluster.ErrNotLive)
		}
		if e.busy == nil {
			e.busy = make(chan struct{})
			c.mu.Unlock()
			return s.readInto(ctx, e, n)
		}
		busy := e.busy
		c.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			c.mu.Lock()
			defer c.mu.Unlock()
			return e.lastOr(ctx.Err())
		}
	}
}

// entryLocked finds the node's entry. Entries of nodes that are gone go, too.
func (c *figureCache) entryLocked(st state, n cluster.NodeID) *figureEntry {
	e := c.of[n]
	if e != nil {
		return e
	}
	kept := map[cluster.NodeID]*figureEntry{n: {}}
	for name, e := range c.of {
		if _, known := st.snap.Nodes[name]; known {
			kept[name] = e
		}
	}
	c.of = kept
	return kept[n]
}

func (e *figureEntry) lastOr(err error) *figures {
	if e.last == nil {
		return &figures{err: err, doubt: "its view cannot be read: " + err.Error()}
	}
	return e.last
}

// readInto reads the node's figures for all who wait for them.
func (s *Server) readInto(ctx context.Context, e *figureEntry, n cluster.NodeView) *figures {
	f := &figures{err: cluster.ErrNotLive}
	defer func() {
		s.figures.mu.Lock()
		defer s.figures.mu.Unlock()
		e.last = f
		close(e.busy)
		e.busy = nil
	}()
	f = s.readFigures(ctx, n)
	return f
}

func (s *Server) readFigures(ctx context.Context, n cluster.NodeView) *figures {
	f := &figures{keepalive: n.Keepalive, sent: s.now()}
	f.leaves, f.err = s.deps.Details.ReadNode(ctx, n.Name)
	f.view, f.doubt = s.readView(ctx, n.Name)
	text, err := s.deps.Texts.ReadText(ctx, cluster.Key{Kind: cluster.KeyFenceTests, Node: n.Name})
	if err == nil && text.Present {
		_ = json.Unmarshal([]byte(text.Value), &f.tests) // rubbish reads as nothing
	}
	return f
}

// readView reads what the node publishes of what it sees, or says why it cannot.
func (s *Server) readView(ctx context.Context, n cluster.NodeID) (*cluster.View, string) {
	text, err := s.deps.Texts.ReadText(ctx, cluster.Key{Kind: cluster.KeyView, Node: n})
	switch {
	case err != nil:
		return nil, "its view cannot be read: " + err.Error()
	case !text.Present:
		return nil, "it has published no view yet"
	}
	view := &cluster.View{}
	if err := json.Unmarshal([]byte(text.Value), view); err != nil {
		return nil, fmt.Sprintf("its view is unreadable: %v", err)
	}
	return view, ""
}
