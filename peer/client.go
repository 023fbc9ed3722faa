package peer

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// Bounds of a client.
const (
	asksPerNode   = 16               // questions under way to one node
	probesPerNode = 4                // besides: a probe never waits behind a question
	idlePerNode   = 4                // warm connections
	idleFor       = 30 * time.Second // less than any server's idle limit
	askAtMost     = 10 * time.Second // where ctx has no earlier deadline
	firstPatience = 3                // a warm connection is trusted alone for this part of the time left
)

// Client asks the cluster's other nodes. It is safe for concurrent use and has
// no goroutine while nobody asks.
type Client struct {
	id   *Identity
	dial Dial

	mu    sync.Mutex
	nodes map[cluster.NodeID]*route
}

// route is what is held of one node.
type route struct {
	addr         string
	idle         []*link // newest last
	asks, probes chan struct{}
}

// NewClient makes a client. dial may be nil for the real network.
func NewClient(id *Identity, dial Dial) *Client {
	if dial == nil {
		dial = (&net.Dialer{Timeout: askAtMost}).DialContext
	}
	return &Client{id: id, dial: dial, nodes: map[cluster.NodeID]*route{}}
}

// Ask puts a question to a node and returns its answer. The node at addr
// (host:port) must show a certificate of that very name. The error is an
// *Error. ctx bounds everything; without a deadline 10 s do. A warm connection
// that gives no sign for a third of the time is doubted, and the question is
// put once more on a fresh one beside it: the first answer counts.
//
// Who anchors a promise takes the instant before the call as the send instant.
func (c *Client) Ask(ctx context.Context, n cluster.NodeID, addr, kind string, body []byte) ([]byte, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, askAtMost)
	defer cancel()
	answer, err := c.ask(ctx, n, addr, kind, body)
	if err == nil {
		return answer, nil
	}
	e := *classify(ctx, err, time.Since(began))
	e.Node, e.Addr, e.Kind = n, addr, kind
	return nil, &e
}

func (c *Client) ask(ctx context.Context, n cluster.NodeID, addr, kind string, body []byte) ([]byte, error) {
	if err := checkKind(kind); err != nil {
		return nil, &Error{Class: ErrLocal, Reason: err.Error()}
	}
	if len(body) > MaxBody {
		return nil, &Error{Class: ErrLocal, Reason: fmt.Sprintf("the question has %d bytes, more than %d", len(body), MaxBody)}
	}
	if ctx.Err() != nil {
		return nil, &Error{Class: ErrLocal, Reason: "no time was left to ask"}
	}
	r := c.route(n, addr)
	slots := r.asks
	if kind == KindProbe {
		slots = r.probes
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return nil, &Error{Class: ErrLocal, Reason: fmt.Sprintf("%d questions to this node are under way already", cap(slots))}
	}
	q := &question{client: c, node: n, addr: addr, kind: kind, body: body, results: make(chan result, 2)}
	return q.put(ctx, c.takeWarm(r))
}

// route returns what is held of the node, anew where its address has changed.
func (c *Client) route(n cluster.NodeID, addr string) *route {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.nodes[n]
	if r == nil || r.addr != addr {
		r.drop()
		r = &route{addr: addr, asks: make(chan struct{}, asksPerNode), probes: make(chan struct{}, probesPerNode)}
		c.nodes[n] = r
	}
	return r
}

// drop closes the idle connections.
func (r *route) drop() {
	if r == nil {
		return
	}
	for _, l := range r.idle {
		l.close()
	}
	r.idle = nil
}

// takeWarm returns the connection used last, nil if none is fit: one that a
// certificate's renewal or end has made doubtful is closed.
func (c *Client) takeWarm(r *route) *link {
	m, now := c.id.current.Load(), c.id.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(r.idle) > 0 {
		l := r.idle[len(r.idle)-1]
		r.idle = r.idle[:len(r.idle)-1]
		if l.usedBy == m.generation && now.Before(l.ends) && now.Before(m.ends) && time.Since(l.resting) < idleFor {
			return l
		}
		l.close()
	}
	return nil
}

// keepWarm puts a connection back, or closes it where it is not wanted.
func (c *Client) keepWarm(n cluster.NodeID, addr string, l *link) {
	l.resting = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.nodes[n]
	if r == nil || r.addr != addr || len(r.idle) >= idlePerNode {
		l.close()
		return
	}
	r.idle = append(r.idle, l)
}

// Forget closes the idle connections to a node that is asked no more.
func (c *Client) Forget(n cluster.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[n].drop()
	delete(c.nodes, n)
}

// Close closes all idle connections. Questions under way end on their own.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.nodes {
		r.drop()
	}
	clear(c.nodes)
}

// question is one Ask with its one or two attempts.
type question struct {
	client     *Client
	node       cluster.NodeID
	addr, kind string
	body       []byte
	results    chan result
}

// result is what came of an attempt.
type result struct {
	warm   bool
	answer []byte
	err    error
}

// put asks on the warm connection, if there is one, and on a fresh one as soon
// as the warm one has failed or been silent for long. It returns after both
// attempts have ended: the loser is cancelled.
func (q *question) put(ctx context.Context, warm *link) ([]byte, error) {
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithCancel(ctx)
	var attempts sync.WaitGroup
	defer attempts.Wait()
	defer cancel()
	doubt := time.NewTimer(0)
	defer doubt.Stop()
	pending := 0
	if warm != nil {
		doubt.Reset(time.Until(deadline) / firstPatience)
		pending++
		attempts.Go(func() { q.try(ctx, warm) })
	}
	fresh := false
	again := func() {
		if !fresh {
			fresh = true
			pending++
			attempts.Go(func() { q.try(ctx, nil) })
		}
	}
	var verdict error
	for {
		select {
		case <-doubt.C:
			again()
		case r := <-q.results:
			pending--
			if answered(r.err) {
				return r.answer, r.err
			}
			if !r.warm || verdict == nil {
				verdict = r.err // what a fresh connection met tells more
			}
			if ctx.Err() == nil {
				again()
			}
			if pending == 0 {
				return nil, verdict
			}
		}
	}
}

// try makes one attempt, on a fresh connection if l is nil.
func (q *question) try(ctx context.Context, l *link) {
	warm := l != nil
	var err error
	if !warm {
		if l, err = connect(ctx, q.client.dial, q.client.id, q.node, q.addr); err != nil {
			q.results <- result{warm, nil, err}
			return
		}
	}
	r, err := l.exchange(ctx, q.kind, q.body)
	if err != nil {
		l.close()
		q.results <- result{warm, nil, err}
		return
	}
	if r.reuse && ctx.Err() == nil {
		q.client.keepWarm(q.node, q.addr, l)
	} else {
		l.close()
	}
	answer, err := r.outcome()
	q.results <- result{warm, answer, err}
}
