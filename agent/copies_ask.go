package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// The times and bounds of the asking side.
const (
	// queryLimit is how long a node may take to say what its copies are.
	queryLimit = 5 * time.Second
	// batchBytes bounds the workloads of one question; what a node is asked beyond is
	// asked by further ones beside it. A question may hold 64 KiB (package peer).
	batchBytes = 40 << 10
	// orderBytes bounds one order.
	orderBytes = 63 << 10
	// batchCount bounds them by the answer's size.
	batchCount = 80
	// batchesAtOnce bounds the questions to one node at a time.
	batchesAtOnce = 4
	// outcomeLimit bounds one question about an order.
	outcomeLimit = 5 * time.Second
	// outcomeTries is how many of them in a row may stay without an answer before the
	// order's outcome counts as not known.
	outcomeTries = 3
	// copyHints is how many hints are kept for who reads them; then they are one.
	copyHints = 64
)

// copyRounds is how the primary asks nodes about copies and orders something of
// them, itself as any other, and hears of changes. Safe for concurrent use.
type copyRounds struct {
	c      Config
	d      Deps
	latest func() *cluster.Snapshot
	own    *copyOrders

	n     atomic.Uint64 // of the newest order
	hints chan cluster.CopyChange

	mu   sync.Mutex
	held map[cluster.NodeID]heldCopies
}

// heldCopies is what a node said last of all that is held there.
type heldCopies struct {
	names []string
	at    cluster.Instant
}

// newCopyRounds makes it, and has it hear the nodes' hints. own is this node's side.
func newCopyRounds(c Config, d Deps, latest func() *cluster.Snapshot, own *copyOrders) *copyRounds {
	r := &copyRounds{c: c, d: d, latest: latest, own: own, hints: make(chan cluster.CopyChange, copyHints), held: map[cluster.NodeID]heldCopies{}}
	d.Peers.Handle(questionChanged, r.hear)
	return r
}

// Query asks each node for its copies of these workloads, all nodes at once, for 5 s
// at most each. A node that did not answer is in silent with its reason, and has no
// reports; a report that is Unknown stands in for no answer for that workload only.
// What was not answered within a node's time is Unknown.
func (r *copyRounds) Query(ctx context.Context, ask map[cluster.NodeID][]cluster.Workload) (reports map[string]map[cluster.NodeID]cluster.CopyReport, silent map[cluster.NodeID]string) {
	reports, silent = map[string]map[cluster.NodeID]cluster.CopyReport{}, map[cluster.NodeID]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for n, list := range ask {
		wg.Go(func() {
			answer, err := r.queryNode(ctx, n, list)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent[n] = err.Error()
				return
			}
			for _, report := range answer {
				if reports[report.Workload] == nil {
					reports[report.Workload] = map[cluster.NodeID]cluster.CopyReport{}
				}
				reports[report.Workload][n] = report
			}
		})
	}
	wg.Wait()
	return reports, silent
}

// Held is what the node said last of all that is held there, also of workloads that
// no record names, and when; not known: it has not said since this start.
func (r *copyRounds) Held(n cluster.NodeID) (names []string, at cluster.Instant, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, known := r.held[n]
	return slices.Clone(h.names), h.at, known
}

// queryNode asks one node, in as many questions as it takes. The error means that
// none was answered.
func (r *copyRounds) queryNode(ctx context.Context, n cluster.NodeID, list []cluster.Workload) ([]cluster.CopyReport, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, queryLimit, fmt.Errorf("node %s did not answer within %s: %w", n, queryLimit, cluster.ErrDeadline))
	defer cancel()
	parts := batches(list)
	answers, errs := make([]copiesAnswer, len(parts)), make([]error, len(parts))
	slots := make(chan struct{}, batchesAtOnce)
	var wg sync.WaitGroup
	for i, part := range parts {
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				answers[i], errs[i] = r.ask(ctx, n, part)
			case <-ctx.Done():
				errs[i] = context.Cause(ctx)
			}
		})
	}
	wg.Wait()
	var reports []cluster.CopyReport
	answered := false
	for i, part := range parts {
		answered = answered || errs[i] == nil
		reports = append(reports, matched(n, part, answers[i], errs[i])...)
		if errs[i] == nil && answers[i].HeldError == "" {
			r.mu.Lock()
			r.held[n] = heldCopies{answers[i].Held, r.d.Clock.Now()}
			r.mu.Unlock()
		}
	}
	if !answered {
		return nil, errors.Join(errs...)
	}
	return reports, nil
}

// ask puts one question.
func (r *copyRounds) ask(ctx context.Context, n cluster.NodeID, list []cluster.Workload) (a copiesAnswer, err error) {
	due, cancel := answerDue(ctx)
	defer cancel()
	if n == r.c.Node {
		return r.own.query(due, list), nil
	}
	q := copiesQuestion{V: 1, Workloads: list, Coordinators: coordinatorsOf(r.latest())}
	if end, bounded := due.Deadline(); bounded {
		q.WithinMS = max(1, time.Until(end).Milliseconds())
	}
	body, err := json.Marshal(q)
	if err != nil {
		return a, fmt.Errorf("ask node %s for its copies: %w", n, err)
	}
	raw, err := r.d.Peers.Ask(ctx, n, questionCopies, body)
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	if err != nil {
		return a, fmt.Errorf("ask node %s for its copies: %w", n, err)
	}
	return a, nil
}

// batches cuts the workloads into questions.
func batches(list []cluster.Workload) (parts [][]cluster.Workload) {
	size := batchBytes
	for _, w := range list {
		w.Request, w.Answer = nil, nil // which no driver reads
		raw, _ := json.Marshal(w)
		if last := len(parts) - 1; last < 0 || size+len(raw) > batchBytes || len(parts[last]) >= batchCount {
			parts, size = append(parts, nil), 0
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], w)
		size += len(raw) + 1
	}
	if parts == nil {
		parts = [][]cluster.Workload{nil} // what is held is told all the same
	}
	return parts
}

// matched is one report for each workload that was asked for: what a node says of
// another creation of the name, or says twice, or does not say, is not known.
func matched(n cluster.NodeID, asked []cluster.Workload, a copiesAnswer, err error) []cluster.CopyReport {
	reports := make([]cluster.CopyReport, 0, len(asked))
	for _, w := range asked {
		r := cluster.CopyReport{Unknown: true, Error: "the node said nothing of it"}
		if err != nil {
			r.Error = short(err.Error())
		}
		said := slices.IndexFunc(a.Reports, func(r cluster.CopyReport) bool { return r.Workload == w.Name && r.ID == w.ID })
		if err == nil && said >= 0 {
			r = a.Reports[said]
		}
		r.Workload, r.ID, r.Node = w.Name, w.ID, n
		reports = append(reports, r)
	}
	return reports
}

// ---- orders

// Order has a node carry out one order, by the right of the activity behind the
// token, and returns what the copy is afterwards; this node does so itself. A source
// without a host gets the one that its node's record names. It returns when the
// order has ended there, or when that cannot be known: then the error is no
// cluster.ErrRefused, and what was ordered may or may not be done. When ctx ends the
// node is told to end it.
func (r *copyRounds) Order(ctx context.Context, t cluster.Token, n cluster.NodeID, o cluster.CopyOrder) (cluster.CopyReport, error) {
	none := cluster.CopyReport{Workload: o.Workload.Name, ID: o.Workload.ID, Node: n, Unknown: true}
	if o.Source != nil && o.Source.Host == "" {
		host, err := r.host(o.Source.Node)
		if err != nil {
			return none, fmt.Errorf("order %s of workload %q on node %s: %w: %w", o.Op, o.Workload.Name, n, err, cluster.ErrRefused)
		}
		source := *o.Source
		source.Host, o.Source = host, &source
	}
	if n == r.c.Node {
		report, err := r.own.copies.Order(ctx, t, o)
		r.own.changed()
		report.Workload, report.ID, report.Node = o.Workload.Name, o.Workload.ID, n
		if err != nil {
			err = fmt.Errorf("order %s of workload %q on node %s: %w", o.Op, o.Workload.Name, n, err)
		}
		return report, err
	}
	answer, err := r.carry(ctx, t, n, o)
	switch {
	case err != nil:
		return none, fmt.Errorf("order %s of workload %q on node %s: %w", o.Op, o.Workload.Name, n, err)
	case answer.Refused:
		return answer.Report, fmt.Errorf("order %s of workload %q on node %s: %s: %w", o.Op, o.Workload.Name, n, answer.Error, cluster.ErrRefused)
	case answer.Error != "":
		return answer.Report, fmt.Errorf("order %s of workload %q on node %s: %s", o.Op, o.Workload.Name, n, answer.Error)
	}
	return answer.Report, nil
}

// host is where others reach the node's copies: the address at which it answers its
// peers, without the port.
func (r *copyRounds) host(n cluster.NodeID) (string, error) {
	record := r.latest().Nodes[n].Record
	host, _, err := net.SplitHostPort(record.Value.Peer)
	if !record.Present || record.Err != nil || err != nil || host == "" {
		return "", fmt.Errorf("node %s is to be followed, and its record names no address (peer.advertise of its pvcnoded.yaml)", n)
	}
	return host, nil
}

// carry sends the order and asks until it has ended.
func (r *copyRounds) carry(ctx context.Context, t cluster.Token, n cluster.NodeID, o cluster.CopyOrder) (orderAnswer, error) {
	alive := r.latest().Nodes[n].Alive
	if !alive.Present || alive.Err != nil {
		return orderAnswer{}, fmt.Errorf("it is not registered now: nothing was ordered: %w", cluster.ErrRefused)
	}
	o.Workload.Request, o.Workload.Answer = nil, nil
	q := orderQuestion{V: 1, ID: rand.Text(), Node: n, Incarnation: alive.Value.Incarnation, N: r.n.Add(1), Order: o}
	var err error
	if q.Token, err = t.Wire(q.ID); err != nil {
		return orderAnswer{}, fmt.Errorf("nothing was ordered: %w", err)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return orderAnswer{}, fmt.Errorf("nothing was ordered: %w", err)
	}
	if len(body) > orderBytes {
		return orderAnswer{}, fmt.Errorf("its parameters make an order of %d bytes, and %d fit: shorten them: nothing was ordered: %w", len(body), orderBytes, cluster.ErrRefused)
	}
	if err := t.Check(); err != nil {
		return orderAnswer{}, fmt.Errorf("nothing was ordered: %w", err)
	}
	answer, err := r.outcome(ctx, n, questionOrder, body)
	if errors.Is(err, cluster.ErrRefused) {
		return orderAnswer{}, err
	}
	return r.follow(ctx, n, q.ID, answer, err)
}

// follow asks for an order's outcome until there is one.
func (r *copyRounds) follow(ctx context.Context, n cluster.NodeID, id string, answer orderAnswer, err error) (orderAnswer, error) {
	body, _ := json.Marshal(outcomeQuestion{ID: id}) // cannot fail: a text
	for failed := 0; ; {
		switch {
		case err == nil && answer.Done:
			return answer, nil
		case err == nil && answer.Unknown:
			return answer, errors.New("its daemon was started anew, or never got the order: what was ordered may or may not be done")
		case err == nil:
			failed = 0
		default:
			failed++
		}
		if ctx.Err() != nil {
			r.callOff(ctx, n, id)
			return answer, fmt.Errorf("it was not waited for to the end, what was ordered may or may not be done: %w", context.Cause(ctx))
		}
		if failed >= outcomeTries {
			return answer, fmt.Errorf("it does not answer any more, what was ordered may or may not be done: %w", err)
		}
		if err != nil {
			pause(ctx, r.c.Timing.KeepaliveInterval/4)
		}
		answer, err = r.outcome(ctx, n, questionOutcome, body)
	}
}

// callOff tells the node that nobody waits for the order any more.
func (r *copyRounds) callOff(ctx context.Context, n cluster.NodeID, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.c.Timing.KeepaliveInterval*3/10)
	defer cancel()
	body, _ := json.Marshal(outcomeQuestion{ID: id, End: true}) // cannot fail: a text
	if _, err := r.d.Peers.Ask(ctx, n, questionOutcome, body); err != nil {
		r.d.Log.Debug("an order could not be called off; its node ends it by itself", zap.String("peer", string(n)), zap.Error(err))
	}
}

// outcome puts one question about an order.
func (r *copyRounds) outcome(ctx context.Context, n cluster.NodeID, kind string, body []byte) (a orderAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	raw, err := r.d.Peers.Ask(ctx, n, kind, body)
	if err == nil {
		err = json.Unmarshal(raw, &a)
	}
	return a, err
}

// ---- hints

// Hints delivers that copies may have changed without an order; where they come
// faster than they are read they are one, of all the node's.
func (r *copyRounds) Hints() <-chan cluster.CopyChange { return r.hints }

// changedHint is what a node tells of its copies.
type changedHint struct {
	Changes []cluster.CopyChange `json:"changes"`
}

// hear takes another node's hints.
func (r *copyRounds) hear(_ context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
	var h changedHint
	if err := json.Unmarshal(body, &h); err != nil {
		return nil, fmt.Errorf("read the hint about copies: %w: %w", err, cluster.ErrRefused)
	}
	for _, change := range h.Changes {
		change.Node = from
		r.hint(change)
	}
	return []byte("{}"), nil
}

// hint queues one hint. It does not block: where the queue is full its oldest goes,
// and this one stands for all of its node's.
func (r *copyRounds) hint(change cluster.CopyChange) {
	change.Text = short(change.Text)
	for {
		select {
		case r.hints <- change:
			return
		default:
		}
		select {
		case <-r.hints:
			change.Workload = ""
		default:
		}
	}
}
