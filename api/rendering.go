package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// rendering is the answers about all nodes, made from one snapshot and encoded
// once for all who ask. It is not changed once it is here.
type rendering struct {
	counter uint64          // of the view that it shows
	made    cluster.Instant // when it was begun
	nodes   []Node          // in order of their names
	each    [][]byte
	list    *encoded
	status  func() (*encoded, error) // made when it is first asked for
}

// How long a rendering serves: a change of the view ends it at once, since who
// has changed something reads it back. When it is renderFresh old the next one
// is made, with the newest figures, and nobody waits for that: only when it is
// renderLimit old, which is longer than two readings take.
const (
	renderFresh = 100 * time.Millisecond
	renderLimit = 2*figuresPatience + time.Second
)

// renderings keeps the last one and has the next one made.
type renderings struct {
	mu   sync.Mutex
	last *rendering
	// next is being made with the newest figures, which nobody waits for; hurried
	// with those that are here, since somebody does.
	next, hurried *making
	upstream      cluster.Versioned[string]
	asked         cluster.Instant // for upstream
	closed        bool            // nothing new is begun
	work          sync.WaitGroup
}

// making is a rendering that is being made.
type making struct {
	done chan struct{}
	err  error // written before done is closed
}

// close waits until nothing is being made any more, and nothing will be.
func (c *renderings) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.work.Wait()
}

// rendered returns a rendering of the state, or of a later one.
func (s *Server) rendered(ctx context.Context, st state) (*rendering, error) {
	c := &s.renderings
	for {
		c.mu.Lock()
		last := c.last
		age := renderLimit
		if last != nil {
			age = s.now().Sub(last.made)
		}
		fits := last != nil && last.counter >= st.counter && age < renderLimit
		slot := &c.next
		if !fits {
			slot = &c.hurried
		}
		if (!fits || age >= renderFresh) && *slot == nil && !c.closed {
			*slot = &making{done: make(chan struct{})}
			c.work.Add(1)
			go s.makeRendering(slot, *slot, !fits) // close waits for it
		}
		m := *slot
		c.mu.Unlock()
		if fits {
			return last, nil
		}
		if m == nil {
			return nil, errStopping
		}
		select {
		case <-m.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("read the nodes' records: %w", ctx.Err())
		}
		if m.err != nil {
			return nil, m.err
		}
	}
}

var errStopping = fmt.Errorf("this pvcapid is being stopped: %w", cluster.ErrNotLive)

// makeRendering makes a rendering and keeps it, unless a later one is here.
func (s *Server) makeRendering(slot **making, m *making, hurried bool) {
	c := &s.renderings
	defer c.work.Done()
	ctx, cancel := patiently(context.Background())
	defer cancel()
	r, err := s.render(ctx, s.view.current(s.now()), hurried)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && (c.last == nil || r.counter > c.last.counter || r.counter == c.last.counter && !r.made.Before(c.last.made)) {
		c.last = r
	}
	m.err = err
	*slot = nil
	close(m.done)
}

func (s *Server) render(ctx context.Context, st state, hurried bool) (*rendering, error) {
	names := st.names()
	shown := make([]*figures, len(names))
	var readers sync.WaitGroup
	places := make(chan struct{}, nodeReaders)
	for i, name := range names {
		places <- struct{}{}
		readers.Go(func() {
			defer func() { <-places }()
			shown[i] = s.figuresOf(ctx, st, st.snap.Nodes[name], hurried)
		})
	}
	readers.Wait()
	out := &rendering{counter: st.counter, made: st.now, nodes: make([]Node, len(names)), each: make([][]byte, len(names))}
	for i, name := range names {
		out.nodes[i] = renderNode(st.snap.Nodes[name], shown[i].leaves, shown[i].err)
		raw, err := json.Marshal(out.nodes[i])
		if err != nil {
			return nil, fmt.Errorf("encode node %s: %w", name, err)
		}
		out.each[i] = raw
	}
	out.list = listOf(out.each)
	upstream := s.upstream(ctx, st)
	out.status = sync.OnceValues(func() (*encoded, error) {
		words, tests := make([]NodeWord, len(names)), []DeviceTest{}
		for i, name := range names {
			words[i] = shown[i].word(st, name)
			for _, d := range shown[i].tests.Devices {
				tests = append(tests, DeviceTest{shown[i].tests.By, d})
			}
		}
		status := statusFrom(st, out.nodes, words, tests)
		status.PVCVersion = s.cfg.Version
		if upstream != "" {
			status.UpstreamIP = upstream
		}
		return encode(status)
	})
	return out, nil
}

// listOf is the JSON list of what is encoded already.
func listOf(each [][]byte) *encoded {
	raw := append([]byte{'['}, bytes.Join(each, []byte{','})...)
	return encodedFrom(append(raw, ']', '\n'))
}

// upstream is the cluster's upstream address as last read; empty: none is known.
func (s *Server) upstream(ctx context.Context, st state) string {
	c := &s.renderings
	c.mu.Lock()
	known, asked := c.upstream, c.asked
	c.mu.Unlock()
	if st.away > 0 || asked != 0 && s.now().Sub(asked) < figuresKept {
		return known.Value
	}
	read, err := s.deps.Texts.ReadText(ctx, cluster.Key{Kind: cluster.KeyUpstreamIP})
	if err != nil {
		read = known
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.upstream, c.asked = read, s.now()
	return read.Value
}
