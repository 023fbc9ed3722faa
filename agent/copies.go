package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/role"
	"pvc.internal/cluster"
)

// The questions about copies from node to node.
const (
	// questionCopies asks what the node's copies are: a copiesQuestion, answered by a
	// copiesAnswer. It changes nothing, and anybody who may talk here may ask.
	questionCopies = "copies-query"
	// questionOrder orders something of one copy: an orderQuestion, answered by an
	// orderAnswer as soon as there is one, or by one that says that it is under way.
	questionOrder = "copies-order"
	// questionOutcome asks what has become of an order: an outcomeQuestion, answered
	// by an orderAnswer.
	questionOutcome = "copies-outcome"
	// questionChanged tells the primary of copies that changed outside an order: a
	// changedHint, answered by nothing.
	questionChanged = "copies-changed"
)

// The times and bounds of the node's side.
const (
	// orderWait is how long one question about an order waits for its end. It is a
	// small part of what the asker waits, since a question that gives no sign is put
	// once more (package peer).
	orderWait = time.Second
	// orderSilence is how long an order goes on that nobody asks about: its leader is
	// away, or has given it up.
	orderSilence = 10 * time.Second
	// orderLimit bounds an order, whatever its driver does.
	orderLimit = 15 * time.Minute
	// ordersKept bounds what is remembered of orders that have ended.
	ordersKept = 1024
	// probesAtOnce bounds the probes of one question.
	probesAtOnce = 16
	// textKept bounds each text of a report, in bytes, so that an answer fits.
	textKept = 300
)

// copiesQuestion asks for the copies of these workloads.
type copiesQuestion struct {
	V         int                `json:"v"`
	Workloads []cluster.Workload `json:"workloads"`
	// Coordinators are all of them as the asker knows them: a hypervisor, which
	// follows nobody's records but its own, asks them for time in an outage of the
	// store, and tells the primary what changes.
	Coordinators map[cluster.NodeID]coordinator `json:"coordinators,omitempty"`
	// WithinMS is how long the asker waits for the answer; 0: not said.
	WithinMS int64 `json:"within_ms,omitempty"`
}

// coordinator is one of them as a node of that kind publishes itself.
type coordinator struct {
	ID   string `json:"id,omitempty"`   // of its state folder
	Peer string `json:"peer,omitempty"` // host:port at which it answers others
}

// coordinatorsOf are those in the snapshot.
func coordinatorsOf(snap *cluster.Snapshot) map[cluster.NodeID]coordinator {
	all := map[cluster.NodeID]coordinator{}
	for _, n := range role.Coordinators(snap) {
		record := snap.Nodes[n].Record.Value
		all[n] = coordinator{record.ID, record.Peer}
	}
	return all
}

// copiesAnswer is what one node says of the copies that it was asked for, and of all
// that is held here.
type copiesAnswer struct {
	Reports []cluster.CopyReport `json:"reports"`
	Held    []string             `json:"held"`
	// HeldError says why Held is not known; "": it is.
	HeldError string `json:"held_error,omitempty"`
}

// orderQuestion is one order on its way.
type orderQuestion struct {
	V  int    `json:"v"`
	ID string `json:"id"` // of this order, random; a copy of it asks what has become of the first
	// Node and Incarnation are whom it is for: what was sent to a start of the daemon
	// that is over does nothing, since that alone knew what else it was ordered.
	Node        cluster.NodeID      `json:"node"`
	Incarnation cluster.Incarnation `json:"incarnation"`
	// N grows with each order that a leader gives under one lease: one that comes
	// after a later one of the same workload is late, and is refused.
	N     uint64            `json:"n"`
	Token cluster.TokenWire `json:"token"`
	Order cluster.CopyOrder `json:"order"`
}

// outcomeQuestion asks what has become of an order. End: nobody waits for it any
// more, and it is to end.
type outcomeQuestion struct {
	ID  string `json:"id"`
	End bool   `json:"end,omitempty"`
}

// orderAnswer is what has become of an order.
type orderAnswer struct {
	Done    bool               `json:"done"`              // else it is under way
	Unknown bool               `json:"unknown,omitempty"` // this start of the daemon knows of no such order
	Report  cluster.CopyReport `json:"report"`
	Error   string             `json:"error,omitempty"`
	Refused bool               `json:"refused,omitempty"` // nothing was done
}

// copyOrders is a node's side: it answers for its copies, and carries out what the
// leader that it serves orders of them. An order runs as follower's work in a
// domain of its workload's own, so that orders of one activity run side by side and
// a later leader's begins when a former one's is dead:
//
//	asked ─▶ admitted (lease, epoch, this start, not late) ─▶ running ─▶ done
//	   └──── refused, nothing was done                          │
//	         nobody asks for 10 s, End, lease lost: ended ◀─────┘
//
// Nothing here is needed for safety over a restart: an order for an earlier start of
// this daemon is refused, and what one had begun is found by the next probe.
type copyOrders struct {
	c      Config
	d      Deps
	copies Copies
	remote serving
	serves func() cluster.NodeLeaseID           // whom this node serves
	learn  func(map[cluster.NodeID]coordinator) // takes in what the leader says of the coordinators

	counts copyCounts

	mu     sync.Mutex
	orders map[string]*copyOrder
	old    []string // ids of those that have ended, oldest first
	newest map[string]orderMark
	wg     sync.WaitGroup
	life   context.Context // of what runs; ended by close
	end    context.CancelFunc
}

// copyOrder is one order that was admitted here.
type copyOrder struct {
	q      orderQuestion
	from   cluster.NodeID
	done   chan struct{} // closed when answer stands
	answer orderAnswer
	cancel context.CancelCauseFunc
	heard  time.Time // when somebody asked for it last; copyOrders.mu
}

// orderMark is the newest order of one workload that was carried out here: of which
// lease, the how-many-eth of it, and what record of which creation it rested on.
type orderMark struct {
	lease cluster.NodeLeaseID
	n     uint64
	id    string
	seen  int32
}

// outdates reports whether the order rests on an older record than the one that was
// carried out. A leader from after a restore, whose epoch says so, counts the versions
// anew: none of before can give an order any more.
func (m orderMark) outdates(q orderQuestion) bool {
	restored := q.Token.Lease.Epoch > m.lease.Epoch+cluster.RestoreGap/2
	return m.id == q.Order.Workload.ID && q.Order.Seen < m.seen && !restored
}

// usesCopies reports whether copies of workloads run here, or are asked for from
// here: under node leases only, for nobody else's orders are obeyed.
func usesCopies(c Config, d Deps) bool { return usesLeases(c, d) && d.Copies != nil }

// newCopyOrders makes it, and has it answer. remote runs what the leader orders.
func newCopyOrders(c Config, d Deps, remote serving) *copyOrders {
	o := &copyOrders{c: c, d: d, copies: d.Copies, remote: remote, orders: map[string]*copyOrder{}, newest: map[string]orderMark{}}
	o.life, o.end = context.WithCancel(context.Background())
	d.Peers.Handle(questionCopies, o.answerQuery)
	d.Peers.Handle(questionOrder, o.answerOrder)
	d.Peers.Handle(questionOutcome, o.answerOutcome)
	return o
}

// close ends what runs, and waits for it until ctx ends.
func (o *copyOrders) close(ctx context.Context) error {
	o.end()
	ended := make(chan struct{})
	go func() { o.wg.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("orders of copies have not ended: %w", context.Cause(ctx))
	}
}

// ---- queries

func (o *copyOrders) answerQuery(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
	var q copiesQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("read the question about copies: %w: %w", err, cluster.ErrRefused)
	}
	if len(q.Coordinators) > 0 && o.serves().Holder == from {
		o.learn(q.Coordinators)
	}
	if q.WithinMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(q.WithinMS)*time.Millisecond, errAnswerDue)
		defer cancel()
	}
	return json.Marshal(o.query(ctx, q.Workloads))
}

// errAnswerDue is why a look at a copy that takes longer counts as unknown.
var errAnswerDue = fmt.Errorf("the answer about all copies of this node was due: %w", cluster.ErrDeadline)

// answerMargin is kept of the time that an asker waits, for the way of the answer.
const answerMargin = 400 * time.Millisecond

// answerDue is a context that ends so long before ctx does that what is known by then
// still arrives: a copy whose look hangs must not keep those of all others from being
// told of.
func answerDue(ctx context.Context) (context.Context, context.CancelFunc) {
	end, bounded := ctx.Deadline()
	if !bounded {
		return context.WithCancel(ctx)
	}
	rest := time.Until(end)
	return context.WithTimeoutCause(ctx, rest-max(answerMargin, rest/10), errAnswerDue)
}

// query probes the copies, several at once.
func (o *copyOrders) query(ctx context.Context, list []cluster.Workload) copiesAnswer {
	a := copiesAnswer{Reports: make([]cluster.CopyReport, len(list))}
	slots := make(chan struct{}, probesAtOnce)
	var wg sync.WaitGroup
	for i, w := range list {
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
				a.Reports[i] = shortened(o.copies.Probe(ctx, w))
			case <-ctx.Done():
				a.Reports[i] = cluster.CopyReport{Unknown: true, Error: "no time was left to look at this copy"}
			}
			a.Reports[i].Workload, a.Reports[i].ID, a.Reports[i].Node = w.Name, w.ID, o.c.Node
		})
	}
	held, err := o.copies.Held(ctx)
	wg.Wait()
	if a.Held = held; err != nil {
		a.HeldError = short(err.Error())
	}
	return a
}

func short(text string) string {
	if len(text) > textKept {
		return text[:textKept] + "…"
	}
	return text
}

func shortened(r cluster.CopyReport) cluster.CopyReport {
	r.Error = short(r.Error)
	return r
}

// ---- orders

// answerOrder admits an order, once, and waits a moment for its end.
func (o *copyOrders) answerOrder(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
	var q orderQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("read the order of a copy: %w: %w", err, cluster.ErrRefused)
	}
	order, err := o.admit(from, q)
	if err != nil {
		o.d.Log.Warn("an order of a copy is refused", zap.String("peer", string(from)), zap.String("workload", q.Order.Workload.Name),
			zap.String("op", string(q.Order.Op)), zap.Error(err))
		return nil, err
	}
	return o.outcome(ctx, order)
}

// admit enters an order and begins it. A copy of one that was admitted is that one.
func (o *copyOrders) admit(from cluster.NodeID, q orderQuestion) (*copyOrder, error) {
	w := q.Order.Workload
	refuse := func(format string, args ...any) (*copyOrder, error) {
		return nil, fmt.Errorf("order %s of workload %q: "+format+": nothing was done: %w", append(append([]any{q.Order.Op, w.Name}, args...), cluster.ErrRefused)...)
	}
	switch {
	case q.Node != o.c.Node || q.Incarnation != o.c.Incarnation:
		return refuse("it is for start %q of node %q, and this is start %q of %s", q.Incarnation, q.Node, o.c.Incarnation, o.c.Node)
	case q.Token.Lease.Holder != from:
		return refuse("node %s gives it by the lease of %s", from, q.Token.Lease)
	case q.ID == "" || q.N == 0 || cluster.ValidWorkloadName(w.Name) != nil || w.ID == "":
		return refuse("it names itself or its workload in no way that can be understood")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if known := o.orders[q.ID]; known != nil {
		if known.from != from {
			return refuse("node %s has given an order of this name", known.from)
		}
		return known, nil
	}
	if mark := o.newest[w.Name]; mark.lease == q.Token.Lease && q.N <= mark.n {
		return refuse("a later order of the same leader has come before it")
	} else if mark.outdates(q) {
		return refuse("it rests on version %d of the workload's record, and what was ordered here since rests on version %d", q.Order.Seen, mark.seen)
	}
	if o.life.Err() != nil {
		return refuse("this daemon shuts down")
	}
	order := &copyOrder{q: q, from: from, done: make(chan struct{}), heard: time.Now()}
	var ctx context.Context
	ctx, order.cancel = context.WithCancelCause(o.life)
	o.orders[q.ID] = order
	o.wg.Go(func() { o.run(ctx, order) })
	return order, nil
}

// orderName is an order's activity, in a domain of the workload's own.
func orderSpec(q cluster.CopyOrder) activity.Spec {
	return activity.Spec{Name: "copy-" + string(q.Op), Domain: cluster.ActivityDomain("copy " + q.Workload.Name), Timeout: 5 * time.Second, Quiet: true}
}

// run carries an order out as work for the leader that this node serves.
func (o *copyOrders) run(ctx context.Context, order *copyOrder) {
	ctx, cancel := context.WithTimeoutCause(ctx, orderLimit, fmt.Errorf("an order may take %s: %w", orderLimit, cluster.ErrDeadline))
	defer cancel()
	defer o.watchSilence(order)()
	q := order.q
	token := q.Token
	token.Request = q.ID // a copy of it that this start has forgotten does nothing, either
	begun := false
	var report cluster.CopyReport
	err := o.remote.RunRemote(ctx, token, orderSpec(q.Order), func(ctx context.Context, a *activity.Activity) (err error) {
		if err := o.mark(q); err != nil {
			return err
		}
		begun = true
		ordered := q.Order
		ordered.Still = func() error { return o.still(q) }
		report, err = o.copies.Order(ctx, a.Token(), ordered)
		return err
	})
	answer := orderAnswer{Done: true, Report: shortened(report)}
	answer.Report.Workload, answer.Report.ID, answer.Report.Node = q.Order.Workload.Name, q.Order.Workload.ID, o.c.Node
	if err != nil {
		answer.Error, answer.Refused = short(err.Error()), !begun || errors.Is(err, cluster.ErrRefused)
		if report.State == "" {
			answer.Report.Unknown = true
		}
	}
	o.changed()
	o.counts.ordered(q.Order.Op, answer)
	o.d.Log.Info("order of a copy", zap.String("workload", q.Order.Workload.Name), zap.String("op", string(q.Order.Op)),
		zap.String("peer", string(order.from)), zap.String("state", string(report.State)), zap.Error(err))
	o.mu.Lock()
	defer o.mu.Unlock()
	order.answer = answer
	close(order.done)
	if o.old = append(o.old, q.ID); len(o.old) > ordersKept {
		delete(o.orders, o.old[0])
		o.old = o.old[1:]
	}
}

// CopiesCollector is the name of the collector that tells what copies are here.
const CopiesCollector = "copies"

// changed has what this node publishes of its copies be gathered anew: else a copy that
// came or went right after the figures of a keepalive were gathered would be missing, or
// shown, for one keepalive more. It never blocks.
func (o *copyOrders) changed() {
	if o.d.Collector != nil {
		o.d.Collector.Renew(o.life, CopiesCollector)
	}
}

// mark notes that the order is the newest of its workload, in the activity that
// carries it out: what was refused before bars nothing.
func (o *copyOrders) mark(q orderQuestion) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := q.Order.Workload
	mark := o.newest[w.Name]
	if mark.lease == q.Token.Lease && q.N <= mark.n || mark.outdates(q) {
		return fmt.Errorf("a later order of workload %q has come before it: nothing was done: %w", w.Name, cluster.ErrRefused)
	}
	o.newest[w.Name] = orderMark{lease: q.Token.Lease, n: q.N, id: w.ID, seen: q.Order.Seen}
	return nil
}

// still reports a later order of the workload that was taken since this one was: one
// that was held up between its mark and its turn must not follow it.
func (o *copyOrders) still(q orderQuestion) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if mark := o.newest[q.Order.Workload.Name]; mark.lease != q.Token.Lease || mark.n != q.N {
		return errors.New("a later order was taken before its turn came")
	}
	return nil
}

// watchSilence ends the order once nobody has asked for it for a while, until the
// function that it returns is called.
func (o *copyOrders) watchSilence(order *copyOrder) (stop func()) {
	ended := make(chan struct{})
	o.wg.Go(func() {
		timer := time.NewTimer(orderSilence)
		defer timer.Stop()
		for {
			select {
			case <-ended:
				return
			case <-timer.C:
			}
			o.mu.Lock()
			left := orderSilence - time.Since(order.heard)
			o.mu.Unlock()
			if left <= 0 {
				order.cancel(fmt.Errorf("node %s, which ordered it, has not asked for it for %s", order.from, orderSilence))
				return
			}
			timer.Reset(left)
		}
	})
	return func() { close(ended) }
}

// answerOutcome tells what has become of an order.
func (o *copyOrders) answerOutcome(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error) {
	var q outcomeQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, fmt.Errorf("read the question about an order: %w: %w", err, cluster.ErrRefused)
	}
	o.mu.Lock()
	order := o.orders[q.ID]
	o.mu.Unlock()
	if order == nil || order.from != from {
		return json.Marshal(orderAnswer{Unknown: true})
	}
	if q.End {
		order.cancel(errors.New("its leader has ended what it belongs to"))
	}
	return o.outcome(ctx, order)
}

// outcome waits a moment for the order's end.
func (o *copyOrders) outcome(ctx context.Context, order *copyOrder) ([]byte, error) {
	o.mu.Lock()
	order.heard = time.Now()
	o.mu.Unlock()
	timer := time.NewTimer(orderWait)
	defer timer.Stop()
	select {
	case <-order.done:
		return json.Marshal(order.answer)
	case <-timer.C:
	case <-ctx.Done():
	}
	return json.Marshal(orderAnswer{})
}
