package api

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// NodeWord is what one node publishes of what it sees and decides.
type NodeWord struct {
	Node cluster.NodeID `json:"node"`
	// Doubt says why the word is missing or may be out of date; empty while it
	// is the word of a node that lives.
	Doubt string        `json:"doubt,omitempty"`
	View  *cluster.View `json:"view,omitempty"` // nil where there is none
}

// current reports whether the word can be relied on.
func (w NodeWord) current() bool { return w.View != nil && w.Doubt == "" }

// judges is how the word's node judges another one.
func (w NodeWord) judges(n cluster.NodeID) (cluster.NodeSeen, bool) {
	if w.View == nil {
		return cluster.NodeSeen{}, false
	}
	seen, known := w.View.Nodes[n]
	return seen, known
}

// readWords reads the published views of the nodes, a few at a time; the
// answer has one word a node, in the order given. A view that is missing or
// unreadable is told in its place and hides no other.
func (s *Server) readWords(ctx context.Context, st state, names []cluster.NodeID) []NodeWord {
	words := make([]NodeWord, len(names))
	var readers sync.WaitGroup
	places := make(chan struct{}, nodeReaders)
	for i, name := range names {
		places <- struct{}{}
		readers.Go(func() {
			defer func() { <-places }()
			words[i] = s.readWord(ctx, st, name)
		})
	}
	readers.Wait()
	return words
}

func (s *Server) readWord(ctx context.Context, st state, name cluster.NodeID) NodeWord {
	w := NodeWord{Node: name}
	if st.away > 0 {
		w.Doubt = "its view cannot be read while ZooKeeper is away"
		return w
	}
	if w.View, w.Doubt = s.readView(ctx, name); w.Doubt == "" {
		w.Doubt = st.outdated(name)
	}
	return w
}

// outdated says why what the node last published need not hold any more.
func (st state) outdated(name cluster.NodeID) string {
	n := st.snap.Nodes[name]
	switch {
	case n.Daemon.Value == cluster.DaemonStop:
		return "its daemon has been stopped since"
	case !n.Alive.Present:
		return "its session has gone since"
	case st.late > 0 && st.silence(n) > st.late:
		return fmt.Sprintf("it has been silent for %s since", st.silence(n).Round(100*time.Millisecond))
	}
	return ""
}

// wordOf picks the node's word.
func wordOf(words []NodeWord, name cluster.NodeID) NodeWord {
	for _, w := range words {
		if w.Node == name {
			return w
		}
	}
	return NodeWord{Node: name, Doubt: "it is no coordinator, or is not registered"}
}
