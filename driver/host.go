package driver

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// The bounds of a driver's calls, whatever the driver does.
const (
	checkLimit = 10 * time.Second
	// probeLimit is less than what a node is given to answer for all its copies.
	probeLimit = 4500 * time.Millisecond
	orderLimit = 15 * time.Minute
	// probeBesides is how long a probe waits for an order that is under way: its state
	// is not one to judge, and the asker has more to ask.
	probeBesides = 500 * time.Millisecond
	heldLimit    = 5 * time.Second
)

// changesKept is how many changes are kept for who reads them, the oldest dropped.
const changesKept = 64

// Events is where a host hears of its copies' ends (router.Client).
type Events interface {
	Subscribe() (<-chan cluster.GuardEvent, func())
}

// Host runs the copies of one node: it picks each workload's driver, bounds its
// calls, and has one of them at a time work on a workload. It satisfies
// agent.Copies. What it knows of copies it asks the guard and the drivers for, each
// time: a host that is made anew knows as much.
//
// Of a workload one order runs at a time, and no probe beside it:
//
//	free ──order, probe──▶ taken ──its driver has returned──▶ free
//	                         ▲ another order waits, until its context ends
//	                         └ a stop ends what runs, and waits for that to return
type Host struct {
	node    cluster.NodeID
	guard   Guard
	drivers map[cluster.DriverName]Driver
	log     *zap.Logger

	mu       sync.Mutex
	turns    map[string]*turn // by workload
	settling bool             // Settle was called
	changed  chan cluster.CopyChange
	close    func()
	ended    chan struct{}
}

// turn is who works on a workload now. Its fields but taken are Host.mu's.
type turn struct {
	taken  chan struct{} // holds one element while somebody works
	users  int           // who works, and who waits for it
	what   string        // of who works
	since  time.Time
	cancel context.CancelCauseFunc
	probe  *sharedProbe // the one under way; nil: none
}

// sharedProbe is a probe that several ask for at once.
type sharedProbe struct {
	done   chan struct{}
	report cluster.CopyReport
}

// NewHost makes a host with these drivers. The caller must Close it.
func NewHost(node cluster.NodeID, guard Guard, events Events, drivers map[cluster.DriverName]Driver, log *zap.Logger) *Host {
	in, stop := events.Subscribe()
	ctx, cancel := context.WithCancel(context.Background())
	h := &Host{node: node, guard: guard, drivers: drivers, log: log, turns: map[string]*turn{},
		changed: make(chan cluster.CopyChange, changesKept), ended: make(chan struct{})}
	h.close = func() { cancel(); stop() }
	go h.listen(ctx, in)
	return h
}

// Close ends the listening. What the guard holds it goes on holding.
func (h *Host) Close() {
	h.close()
	<-h.ended
}

// listen turns the guard's events about copies into hints, until ctx ends.
func (h *Host) listen(ctx context.Context, in <-chan cluster.GuardEvent) {
	defer close(h.ended)
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-in:
			if change, is := changeOf(e); is {
				change.Node = h.node
				h.tell(change)
			}
		}
	}
}

// changeOf is what an event of the guard says of copies.
func changeOf(e cluster.GuardEvent) (cluster.CopyChange, bool) {
	if e.Owner != cluster.OwnerNode {
		return cluster.CopyChange{}, false
	}
	switch e.Kind {
	case "service_exited", "service_restarted":
		name, is := WorkloadOf(e.Name)
		return cluster.CopyChange{Workload: name, Text: e.Text}, is
	case "ended":
		return cluster.CopyChange{Text: e.Text}, true
	}
	return cluster.CopyChange{}, false
}

func (h *Host) tell(change cluster.CopyChange) {
	for {
		select {
		case h.changed <- change:
			return
		default:
		}
		select {
		case <-h.changed:
			change.Workload = "" // this one stands for the one that is lost, too
		default:
		}
	}
}

// WorkloadOf is the workload that a service of the guard is a copy of (ServiceName).
// What comes after a dot tells several services of one copy apart.
func WorkloadOf(service string) (workload string, is bool) {
	name, is := strings.CutPrefix(service, ServiceName(""))
	name, _, _ = strings.Cut(name, ".")
	return name, is && cluster.ValidWorkloadName(name) == nil
}

// Changed delivers that a copy ended or started outside an order, oldest dropped.
func (h *Host) Changed() <-chan cluster.CopyChange { return h.changed }

// Held names the workloads of which something is here by the guard's word, in order:
// what runs, what has not been verified gone, and what is about to be started again.
func (h *Host) Held(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, heldLimit)
	defer cancel()
	state, err := h.guard.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the guard what copies are here: %w", err)
	}
	var names []string
	for _, s := range state.Services {
		if name, is := WorkloadOf(s.Name); is && s.Owner == cluster.OwnerNode && (s.Running || s.Left) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Busy reports whether a copy is being ordered or looked at just now.
func (h *Host) Busy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.turns) > 0
}

// driver picks the workload's driver.
func (h *Host) driver(w cluster.Workload) (Driver, error) {
	d, known := h.drivers[w.Driver]
	switch {
	case cluster.ValidWorkloadName(w.Name) != nil:
		return nil, fmt.Errorf("workload %q: this is no workload's name: %w", w.Name, cluster.ErrRefused)
	case !known:
		return nil, fmt.Errorf("workload %q: this node's program has no driver %q: bring all nodes to one version: %w", w.Name, w.Driver, cluster.ErrRefused)
	}
	return d, nil
}

// Check reports what is wrong with the workload for its driver here.
func (h *Host) Check(ctx context.Context, w cluster.Workload) error {
	d, err := h.driver(w)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	_, err = bounded(ctx, "the check of workload "+w.Name, func() (struct{}, error) { return struct{}{}, d.Check(ctx, w) })
	return err
}

// bounded runs f, which heeds ctx, and returns when ctx has ended though f has not.
// What panics is an error with its stack in it.
func bounded[T any](ctx context.Context, what string, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() { // ends when the driver does: it bounds its programs itself
		var r result
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("%s has failed in this program: %v\n%s", what, p, debug.Stack())
			}
			done <- r
		}()
		r.value, r.err = f()
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.value, r.err
	case <-time.After(overtime):
		var none T
		return none, fmt.Errorf("%s %w: %w", what, errEndless, context.Cause(ctx))
	}
}

// errEndless says that a driver has not returned.
var errEndless = errors.New("does not end")

// overtime is what a driver is given to return once its context has ended: its error
// says more than that.
const overtime = 2 * time.Second

// Probe tells what the copy is now. Several who ask at once get one answer. While an
// order is under way it is not known: Unknown says so, and what runs for how long.
func (h *Host) Probe(ctx context.Context, w cluster.Workload) cluster.CopyReport {
	report := cluster.CopyReport{Workload: w.Name, ID: w.ID, Node: h.node}
	unknown := func(err error) cluster.CopyReport {
		report.Unknown, report.Error = true, err.Error()
		return report
	}
	d, err := h.driver(w)
	if err != nil {
		return unknown(err)
	}
	p, ours := h.join(w)
	if ours {
		h.runProbe(context.WithoutCancel(ctx), d, w, p)
	}
	select {
	case <-p.done:
		return p.report
	case <-ctx.Done():
		return unknown(fmt.Errorf("the copy was not looked at in time: %w", context.Cause(ctx)))
	}
}

// join returns the probe of the workload that is under way, or a new one, which is
// the caller's to run.
func (h *Host) join(w cluster.Workload) (p *sharedProbe, ours bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.turn(w.Name)
	if t.probe != nil && t.probe.report.ID == w.ID {
		return t.probe, false
	}
	p = &sharedProbe{done: make(chan struct{}), report: cluster.CopyReport{Workload: w.Name, ID: w.ID, Node: h.node}}
	t.probe = p
	return p, true
}

// turn is the workload's, made if need be. The caller holds mu.
func (h *Host) turn(workload string) *turn {
	t := h.turns[workload]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		h.turns[workload] = t
	}
	return t
}

// runProbe has the driver look, in a goroutine that ends with it.
func (h *Host) runProbe(ctx context.Context, d Driver, w cluster.Workload, p *sharedProbe) {
	go func() {
		report, err := h.probe(ctx, d, w)
		if ends := h.settles(cluster.CopyStart); ends != nil { // what it has seen may be on its way down
			report, err = cluster.CopyReport{}, ends
		}
		if err != nil {
			report.Unknown, report.Error = true, err.Error()
		}
		report.Workload, report.ID, report.Node = w.Name, w.ID, h.node
		h.mu.Lock()
		p.report = report
		if t := h.turns[w.Name]; t != nil && t.probe == p {
			t.probe = nil
			h.forget(w.Name, t)
		}
		h.mu.Unlock()
		close(p.done)
	}()
}

func (h *Host) probe(ctx context.Context, d Driver, w cluster.Workload) (cluster.CopyReport, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, probeLimit, fmt.Errorf("a look may take %s: %w", probeLimit, cluster.ErrDeadline))
	defer cancel()
	wait, cancelWait := context.WithTimeout(ctx, probeBesides)
	defer cancelWait()
	ctx, free, err := h.take(wait, ctx, w.Name, lookTurn)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	return carry(ctx, free, "the look at workload "+w.Name, func() (cluster.CopyReport, error) { return d.Probe(ctx, w) })
}

// lookTurn is the work of a turn that is a probe; any other is an order's.
const lookTurn = "look"

// take waits for the workload's turn, as long as wait lasts, and returns a context
// of it under ctx, and what gives it back.
func (h *Host) take(wait, ctx context.Context, workload, what string) (context.Context, func(), error) {
	h.mu.Lock()
	t := h.turn(workload)
	t.users++
	h.mu.Unlock()
	leave := func() {
		t.users--
		h.forget(workload, t)
	}
	select {
	case t.taken <- struct{}{}:
	case <-wait.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		defer leave()
		return nil, nil, fmt.Errorf("%s of workload %q has run for %s here and comes first: %w",
			t.what, workload, time.Since(t.since).Round(time.Millisecond), context.Cause(wait))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	h.mu.Lock()
	t.what, t.since, t.cancel = what, time.Now(), cancel
	h.mu.Unlock()
	return ctx, func() {
		cancel(nil)
		h.mu.Lock()
		defer h.mu.Unlock()
		t.cancel = nil
		<-t.taken
		leave()
	}, nil
}

// forget drops a turn that nobody has or waits for. The caller holds mu.
func (h *Host) forget(workload string, t *turn) {
	if t.users == 0 && t.probe == nil && h.turns[workload] == t {
		delete(h.turns, workload)
	}
}

// carry runs f under its turn, which is given back when f has returned, however
// long after ctx that is.
func carry[T any](ctx context.Context, free func(), what string, f func() (T, error)) (T, error) {
	return bounded(ctx, what, func() (T, error) {
		defer free()
		return f()
	})
}

// overtakes reports whether the order ends what is under way instead of waiting.
func overtakes(op cluster.CopyOp) bool { return op == cluster.CopyStop || op == cluster.CopyDestroy }

// errOvertaken ends what a stop comes before.
var errOvertaken = errors.New("it is to be stopped")

// Order carries one order out. A stop ends an order that runs; any other waits for
// it, until its context ends. One that expects another copy than there is does
// nothing and is refused.
func (h *Host) Order(ctx context.Context, t cluster.Token, o cluster.CopyOrder) (cluster.CopyReport, error) {
	w := o.Workload
	none := cluster.CopyReport{Workload: w.Name, ID: w.ID, Node: h.node, Unknown: true}
	d, err := h.driver(w)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, orderLimit, fmt.Errorf("an order may take %s: %w", orderLimit, cluster.ErrDeadline))
	defer cancel()
	if overtakes(o.Op) {
		h.overtake(w.Name)
	}
	ctx, free, err := h.take(ctx, ctx, w.Name, string(o.Op))
	if err != nil {
		return none, fmt.Errorf("%w: nothing was done: %w", err, cluster.ErrRefused)
	}
	if err := h.settles(o.Op); err != nil {
		free()
		return none, fmt.Errorf("%s of workload %q: %w: nothing was done: %w", o.Op, w.Name, err, cluster.ErrRefused)
	}
	report, err := carry(ctx, free, fmt.Sprintf("%s of workload %s", o.Op, w.Name), func() (cluster.CopyReport, error) { return h.obey(ctx, t, d, o) })
	if errors.Is(err, errEndless) {
		report = none
	}
	report.Workload, report.ID, report.Node = w.Name, w.ID, h.node
	if errors.Is(context.Cause(ctx), errOvertaken) && err != nil {
		err = fmt.Errorf("%s of workload %q was ended, %w: %w", o.Op, w.Name, errOvertaken, err)
	}
	return report, err
}

// overtake ends what runs for the workload.
func (h *Host) overtake(workload string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.turns[workload]; t != nil && t.cancel != nil && t.what != string(cluster.CopyStop) && t.what != string(cluster.CopyDestroy) {
		t.cancel(errOvertaken)
	}
}

// obey makes sure that the order's token lives and its copy is the expected one, and
// has the driver carry it out.
func (h *Host) obey(ctx context.Context, t cluster.Token, d Driver, o cluster.CopyOrder) (cluster.CopyReport, error) {
	none := cluster.CopyReport{Unknown: true}
	if o.Expect != nil {
		looking, cancel := context.WithTimeout(ctx, probeLimit)
		found, err := d.Probe(looking, o.Workload)
		cancel()
		if err != nil {
			return none, fmt.Errorf("%s of workload %q: what its copy is now cannot be told: %w: nothing was done: %w", o.Op, o.Workload.Name, err, cluster.ErrRefused)
		}
		if against := o.Expect.Against(found); against != "" {
			return found, fmt.Errorf("%s of workload %q: %s: nothing was done: %w", o.Op, o.Workload.Name, against, cluster.ErrRefused)
		}
	}
	if err := t.Check(); err != nil {
		return none, fmt.Errorf("%s of workload %q: nothing was done: %w: %w", o.Op, o.Workload.Name, err, cluster.ErrRefused)
	}
	if o.Still != nil {
		if err := o.Still(); err != nil {
			return none, fmt.Errorf("%s of workload %q: %w: nothing was done: %w", o.Op, o.Workload.Name, err, cluster.ErrRefused)
		}
	}
	return d.Order(ctx, t, o)
}
