package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// witness sees every change of every guard and keeps what broke.
type witness struct {
	clock   cluster.Clock
	mu      sync.Mutex
	holding map[cluster.NodeID]cluster.Epoch
	epochs  map[cluster.Epoch]cluster.NodeID
	epoch   cluster.Epoch
	broken  []string
	begun   []string // node/epoch in order
	gaps    int      // times that the last one acting stopped
	starts  []string // node/service in order
	stops   []string // the same, of those stopped in order, not killed
}

func newWitness(c cluster.Clock) *witness {
	return &witness{clock: c, holding: map[cluster.NodeID]cluster.Epoch{}, epochs: map[cluster.Epoch]cluster.NodeID{}}
}

// acts takes in whether a node acts as primary: an address or a service is there.
func (w *witness) acts(n cluster.NodeID, e cluster.Epoch, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !on {
		if _, was := w.holding[n]; was && len(w.holding) == 1 {
			w.gaps++
		}
		delete(w.holding, n)
		return
	}
	if was, ok := w.holding[n]; ok && was == e {
		return
	}
	w.holding[n] = e
	if len(w.holding) > 1 {
		w.breaks("I1: %v act at once", w.holding)
	}
	if e < w.epoch {
		w.breaks("I2: %s acts at epoch %d after %d", n, e, w.epoch)
	}
	if other, ok := w.epochs[e]; ok && other != n {
		w.breaks("I2: %s and %s both acted at epoch %d", other, n, e)
	}
	w.epoch, w.epochs[e] = max(w.epoch, e), n
	w.begun = append(w.begun, fmt.Sprintf("%s/%d", n, e))
}

func (w *witness) breaks(format string, args ...any) {
	w.broken = append(w.broken, fmt.Sprintf("%s: ", time.Now().Format("04:05.000"))+fmt.Sprintf(format, args...))
}

func (w *witness) verdict() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.broken)
}

func (w *witness) holder() cluster.NodeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := range w.holding {
		return n
	}
	return ""
}

func (w *witness) serviceStarted(n cluster.NodeID, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts = append(w.starts, string(n)+"/"+name)
}

func (w *witness) serviceStopped(n cluster.NodeID, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stops = append(w.stops, string(n)+"/"+name)
}

// counts returns how often nobody acted any more and how many services were started.
func (w *witness) counts() (gaps, starts int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gaps, len(w.starts)
}

// bubbleGuard is a host's guard. It outlives the daemons that use it.
type bubbleGuard struct {
	node      cluster.NodeID
	clock     cluster.Clock
	seen      *witness
	startTime time.Duration // of a service
	stopTime  time.Duration

	mu        sync.Mutex
	gone      bool // with its host
	deaf      bool // it does not listen yet: whoever calls fails at once
	role      cluster.RoleDeadline
	live      bool
	addresses bool
	services  map[string]bool
	max       cluster.Epoch
	timer     *time.Timer
	right     cluster.RoleDeadline // this node's own right, on which the role hangs as well
	rightLive bool
	rightEnds *time.Timer
	unfit     []string         // whatever is asked
	conflicts []string         // found by the conflict probe only
	broken    map[string]error // services that do not start
	link      *guardLink
}

func newBubbleGuard(n cluster.NodeID, clock cluster.Clock, seen *witness) *bubbleGuard {
	return &bubbleGuard{node: n, clock: clock, seen: seen, services: map[string]bool{}, startTime: 20 * time.Millisecond, stopTime: 20 * time.Millisecond}
}

// guardLink is one daemon's connection to its guard; it dies with the daemon.
type guardLink struct {
	*bubbleGuard
	life   *lifeline
	events chan cluster.GuardEvent
}

func (g *bubbleGuard) connect(life *lifeline) *guardLink {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.link = &guardLink{bubbleGuard: g, life: life, events: make(chan cluster.GuardEvent, 8)}
	return g.link
}

// tell reports where the guard's role stands; g.mu is held.
func (g *bubbleGuard) tell() {
	if !g.gone {
		g.seen.acts(g.node, g.role.Epoch, g.addresses || len(g.services) > 0)
	}
}

// clear ends everything; g.mu is held.
func (g *bubbleGuard) clear() {
	g.live, g.addresses = false, false
	clear(g.services)
	if g.timer != nil {
		g.timer.Stop()
	}
	g.tell()
}

// vanish is the host's end.
func (g *bubbleGuard) vanish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clear()
	g.gone, g.rightLive = true, false
	if g.rightEnds != nil {
		g.rightEnds.Stop()
	}
}

// armNode ends the node's own right at its deadline, and with it the role; g.mu
// is held.
func (g *bubbleGuard) armNode(d cluster.RoleDeadline) {
	g.right, g.rightLive = d, true
	if g.rightEnds != nil {
		g.rightEnds.Stop()
	}
	g.rightEnds = time.AfterFunc(d.Deadline.Sub(g.clock.Now()), func() {
		g.mu.Lock()
		due := g.rightLive && g.right == d
		if due {
			g.rightLive = false
		}
		g.mu.Unlock()
		if due {
			g.endNow("this node's own right has ended")
		}
	})
}

// nodeRight is until when the node's own right lasts; Never: there is none.
func (g *bubbleGuard) nodeRight() cluster.Instant {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.rightLive {
		return cluster.Never
	}
	return g.right.Deadline
}

// endNow has the guard end the role of its own accord.
func (g *bubbleGuard) endNow(why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.live {
		return
	}
	epoch := g.role.Epoch
	g.clear()
	if g.link != nil {
		select {
		case g.link.events <- cluster.GuardEvent{Kind: "ended", Owner: cluster.OwnerPrimary, Epoch: epoch, Text: why}:
		default:
		}
	}
}

func (g *bubbleGuard) setUnfit(always, byProbe []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unfit, g.conflicts = always, byProbe
}

// arm ends the role at its deadline; g.mu is held.
func (g *bubbleGuard) arm() {
	if g.timer != nil {
		g.timer.Stop()
	}
	epoch := g.role.Epoch
	g.timer = time.AfterFunc(g.role.Deadline.Sub(g.clock.Now()), func() {
		g.mu.Lock()
		due := g.live && g.role.Epoch == epoch && !g.clock.Now().Before(g.role.Deadline)
		g.mu.Unlock()
		if due {
			g.endNow("the deadline has passed")
		}
	})
}

// order admits a call that gives something, as the client of a guard does: by a
// token of that very epoch which lives now.
func (l *guardLink) order(ctx context.Context, t cluster.Token, e cluster.Epoch) error {
	if err := l.begin(ctx); err != nil {
		return err
	}
	if t.Epoch() != e {
		l.mu.Unlock()
		return fmt.Errorf("epoch %d by a token of epoch %d: %w", e, t.Epoch(), cluster.ErrNoToken)
	}
	if err := t.Check(); err != nil {
		l.mu.Unlock()
		return err
	}
	return nil
}

// begin admits a call of a daemon that lives; a dead one's never returns
// before its context ends.
func (l *guardLink) begin(ctx context.Context) error {
	if l.life.cut.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	l.mu.Lock()
	if l.deaf {
		l.mu.Unlock()
		return errors.New("nobody listens at the guard's socket")
	}
	return nil
}

// hears has the guard listen, or not.
func (g *bubbleGuard) hears(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.deaf = !on
}

func (l *guardLink) State(ctx context.Context) (cluster.GuardState, error) {
	if err := l.begin(ctx); err != nil {
		return cluster.GuardState{}, err
	}
	defer l.mu.Unlock()
	state := cluster.GuardState{MaxEpoch: l.max}
	if l.role.Epoch != 0 {
		state.Deadlines = append(state.Deadlines, l.role)
	}
	for name := range l.services {
		state.Services = append(state.Services, cluster.ServiceState{Name: name, Running: true})
	}
	return state, nil
}

// breakService has a service fail in its start with err; nil repairs it.
func (g *bubbleGuard) breakService(name string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.broken = map[string]error{name: err}
}

func (l *guardLink) Begin(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := l.order(ctx, t, d.Epoch); err != nil {
		return err
	}
	defer l.mu.Unlock()
	switch {
	case d.Owner == cluster.OwnerNode && l.clock.Now().Before(d.Deadline):
		l.armNode(d)
		return nil
	case d.Owner == cluster.OwnerPrimary && !l.rightLive:
		return cluster.ErrRefused
	case d.Owner == cluster.OwnerPrimary && d.Epoch < l.max:
		return cluster.ErrStaleEpoch
	case !l.clock.Now().Before(d.Deadline):
		return cluster.ErrDeadline
	}
	l.role, l.live, l.max = d, true, d.Epoch
	l.arm()
	l.tell()
	return nil
}

func (l *guardLink) Extend(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error {
	if err := l.order(ctx, t, d.Epoch); err != nil {
		return err
	}
	defer l.mu.Unlock()
	switch {
	case d.Owner == cluster.OwnerNode && l.rightLive:
		l.armNode(d)
		return nil
	case d.Owner == cluster.OwnerNode:
		return cluster.ErrDeadline
	case d.Epoch < l.max:
		return cluster.ErrStaleEpoch
	case !l.live || d.Epoch != l.role.Epoch:
		return cluster.ErrDeadline
	}
	l.role = d
	l.arm()
	return nil
}

// allowed reports whether an effect of this epoch may come about; g.mu is held.
func (l *guardLink) allowed(e cluster.Epoch) error {
	switch {
	case e < l.max:
		return cluster.ErrStaleEpoch
	case !l.live || l.role.Epoch != e:
		return cluster.ErrDeadline
	}
	return nil
}

func (l *guardLink) Present(ctx context.Context, t cluster.Token, e cluster.Epoch, _ []cluster.FloatingAddress) error {
	if err := l.order(ctx, t, e); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if err := l.allowed(e); err != nil {
		return err
	}
	l.addresses = true
	l.tell()
	return nil
}

func (l *guardLink) Withdraw(ctx context.Context, e cluster.Epoch) error {
	if err := l.begin(ctx); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if e < l.max {
		return cluster.ErrStaleEpoch
	}
	l.addresses = false
	l.tell()
	return nil
}

func (l *guardLink) StartService(ctx context.Context, t cluster.Token, _ cluster.DeadlineOwner, e cluster.Epoch, s cluster.ServiceSpec) error {
	if err := l.order(ctx, t, e); err != nil {
		return err
	}
	err := l.allowed(e)
	if err == nil {
		err = l.broken[s.Name]
	}
	if err == nil && !l.services[s.Name] {
		l.services[s.Name] = true
		l.seen.serviceStarted(l.node, s.Name)
		l.tell()
		l.mu.Unlock()
		return pause(ctx, l.startTime)
	}
	l.mu.Unlock()
	return err
}

func (l *guardLink) StopService(ctx context.Context, t cluster.Token, _ cluster.DeadlineOwner, e cluster.Epoch, name string) error {
	if err := l.order(ctx, t, e); err != nil {
		return err
	}
	took := l.stopTime
	l.mu.Unlock()
	if err := pause(ctx, took); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.role.Epoch <= e && l.services[name] {
		delete(l.services, name)
		l.seen.serviceStopped(l.node, name)
		l.tell()
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *guardLink) End(ctx context.Context, _ cluster.DeadlineOwner, e cluster.Epoch) error {
	if err := l.begin(ctx); err != nil {
		return err
	}
	defer l.mu.Unlock()
	if l.role.Epoch <= e {
		l.clear()
	}
	return nil
}

func (l *guardLink) Preflight(ctx context.Context, r cluster.PreflightRequest) (cluster.PreflightResult, error) {
	if err := l.begin(ctx); err != nil {
		return cluster.PreflightResult{}, err
	}
	res := cluster.PreflightResult{Problems: slices.Clone(l.unfit)}
	if r.Conflicts {
		res.Problems = append(res.Problems, l.conflicts...)
	}
	l.mu.Unlock()
	if r.Conflicts {
		return res, pause(ctx, r.Timeout)
	}
	return res, nil
}

func (l *guardLink) Events() <-chan cluster.GuardEvent { return l.events }

func readLease(raw []byte) cluster.Lease {
	var l cluster.Lease
	_ = json.Unmarshal(raw, &l)
	return l
}

func isRenewal(raw []byte) bool { return readLease(raw).N > 2 }

// leaseFaults reads from the store's history what must never have been
// written: an epoch that falls, two holders at one epoch, a holder replaced by
// anybody but itself before its lease had expired.
func leaseFaults(history []zktest.HistoryEntry) []string {
	var faults []string
	var last cluster.Lease
	var lastAt time.Time
	lastBy := "" // a node's daemon may have moved to another host
	proof := map[cluster.NodeID]cluster.Incarnation{}
	for _, h := range history {
		if node, ok := fenceOf(h.Path); ok {
			var f cluster.FenceRecord
			if json.Unmarshal(h.Data, &f) == nil && f.Proof != "" {
				proof[node] = f.Incarnation
			}
		}
		if h.Path != leasePath || h.Client == "" || h.Op != "set" && h.Op != "create" {
			continue // what a test itself plants is not judged
		}
		now := readLease(h.Data)
		says := func(format string, args ...any) {
			faults = append(faults, fmt.Sprintf("%s lease v%d by %s: ", h.At.Format("04:05.000"), h.Version, h.Client)+fmt.Sprintf(format, args...))
		}
		switch moved := now.Holder != last.Holder || now.Incarnation != last.Incarnation; {
		case now.Epoch < last.Epoch:
			says("I2: epoch %d after %d", now.Epoch, last.Epoch)
		case moved && now.Holder != "" && now.Epoch == last.Epoch:
			says("I2: %s and %s both hold at epoch %d", last.Holder, now.Holder, now.Epoch)
		case moved && !last.Released() && h.Client != string(last.Holder) && h.Client != lastBy && proof[last.Holder] != last.Incarnation && h.At.Sub(lastAt) < last.TTL():
			says("%s took the role from %s %v after its last renewal, ttl %v", now.Holder, last.Holder, h.At.Sub(lastAt), last.TTL())
		}
		last, lastAt, lastBy = now, h.At, h.Client
	}
	return faults
}

func fenceOf(path string) (cluster.NodeID, bool) {
	const dir = "/agent/fences/"
	if len(path) > len(dir) && path[:len(dir)] == dir {
		return cluster.NodeID(path[len(dir):]), true
	}
	return "", false
}
