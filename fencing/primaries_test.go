package fencing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

// Fencers of several primaries in turn over the real zkhandler and an in-memory
// ZooKeeper, on virtual time. Only the attempts' children are stood in for.

type virtualClock struct{ base time.Time }

func (c virtualClock) Now() cluster.Instant {
	return cluster.Instant(time.Hour) + cluster.Instant(time.Since(c.base))
}

var errRoleOver = errors.New("the role is over")

// realm is a cluster of the nodes a, b and c, of which b is to be fenced: its
// outlets left and right are its first level, of which right never obeys, and
// its controller bmc is the second.
type realm struct {
	t        *testing.T
	store    *zktest.Server
	clock    virtualClock
	oper     *zkhandler.Handler
	ctx      context.Context // of the test
	config   Config
	soft     Soft
	promised func(cluster.NodeID) cluster.Instant

	mu      sync.Mutex
	on      map[string]bool // outlets
	broken  map[string]bool // that answer nothing
	orders  []string
	ids     int
	epoch   cluster.Epoch
	attempt func(p *primary, a Attempt, effect func()) // runs each attempt; nil: effect at once
}

const (
	bID    = cluster.NodeID("b")
	bStart = cluster.Incarnation("boot-b.1")
)

// inRealm runs the test in a bubble with a dead node b, which was primary.
func inRealm(t *testing.T, run func(t *testing.T, r *realm)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRealm(t)
		defer r.store.Close()
		ctx, cancel := context.WithCancel(t.Context())
		r.ctx = ctx
		var handlers sync.WaitGroup
		defer handlers.Wait()
		defer cancel()
		r.oper = r.join(ctx, "operator", &handlers)
		r.plant()
		run(t, r)
	})
}

func newRealm(t *testing.T) *realm {
	left, right, bmc := testDevice(t, "left", "192.0.2.1"), testDevice(t, "right", "192.0.2.2"), testDevice(t, "bmc", "192.0.2.3")
	return &realm{
		t: t, store: zktest.New(zktest.Options{}), clock: virtualClock{time.Now()},
		config: Config{Nodes: map[string]NodeConfig{"b": {Levels: [][]Device{{left, right}, {bmc}}}}},
		on:     map[string]bool{"left": true, "right": true, "bmc": true}, broken: map[string]bool{"right": true},
	}
}

// join runs a handler of this client until ctx ends.
func (r *realm) join(ctx context.Context, client string, wait *sync.WaitGroup) *zkhandler.Handler {
	h, err := zkhandler.New(zkhandler.Config{
		Servers: r.store.Servers(), SessionTimeout: 6 * time.Second, WatchNodes: true, Dial: r.store.Dialer(client),
	}, r.clock, zap.NewNop(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	wait.Go(func() { _ = h.Run(ctx) })
	for h.State().Phase != zkhandler.Live {
		time.Sleep(10 * time.Millisecond)
	}
	return h
}

func (r *realm) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func nodeKey(kind cluster.KeyKind) cluster.Key { return cluster.Key{Kind: kind, Node: bID} }

// plant makes the tree, and b as it was when its power went.
func (r *realm) plant() {
	r.must(r.oper.Initialize(r.ctx, "test", false))
	for _, n := range []cluster.NodeID{"a", bID, "c"} {
		r.must(r.oper.EnsureNode(r.ctx, n, cluster.Coordinator))
	}
	r.commit(
		cluster.Create(nodeKey(cluster.KeyNodeRecord), cluster.NodeRecord{ID: "b", Incarnation: bStart}),
		cluster.Set(nodeKey(cluster.KeyDaemonState), cluster.AnyVersion, cluster.DaemonRun),
		cluster.Set(nodeKey(cluster.KeyRouterState), cluster.AnyVersion, cluster.RouterPrimary),
		cluster.Set(cluster.Key{Kind: cluster.KeyNodeField, Node: bID, Name: "memused"}, cluster.AnyVersion, "42"),
		cluster.Set(nodeKey(cluster.KeyKeepalive), cluster.AnyVersion, int64(1)),
	)
}

func (r *realm) commit(ops ...cluster.Op) {
	r.t.Helper()
	if res := r.oper.Commit(r.ctx, cluster.Txn{Purpose: "test", Ops: ops}); res.Outcome != cluster.OutcomeOK {
		r.t.Fatalf("plant %v: %s, %v", ops, res.Outcome, res.Err)
	}
}

func (r *realm) snap() *cluster.Snapshot {
	r.t.Helper()
	time.Sleep(20 * time.Millisecond) // the watches are served
	snap, err := r.oper.Refresh(r.ctx)
	r.must(err)
	return snap
}

func (r *realm) record() cluster.FenceRecord { return r.snap().Nodes[bID].Fence.Value }

// keepalive is one of b's.
func (r *realm) keepalive() {
	r.commit(cluster.Set(nodeKey(cluster.KeyKeepalive), cluster.AnyVersion, r.clock.Now().Sub(0).Nanoseconds()))
}

// register starts b anew, as its daemon does.
func (r *realm) register(i cluster.Incarnation) {
	snap := r.snap()
	r.commit(
		cluster.Set(nodeKey(cluster.KeyNodeRecord), snap.Nodes[bID].Record.Version, cluster.NodeRecord{ID: "b", Incarnation: i}),
		cluster.Op{Kind: cluster.OpCreateEphemeral, Key: nodeKey(cluster.KeyAlive), Value: cluster.Alive{Incarnation: i}},
		cluster.Set(nodeKey(cluster.KeyKeepalive), cluster.AnyVersion, int64(2)),
		cluster.Set(nodeKey(cluster.KeyDaemonState), cluster.AnyVersion, cluster.DaemonInit),
	)
}

func (r *realm) order(o cluster.FenceOrder) cluster.Versioned[cluster.FenceOrder] {
	o.Version, o.Node = 1, bID
	r.commit(cluster.Put(nodeKey(cluster.KeyFenceOrder), r.snap().Nodes[bID].Order, o))
	return r.snap().Nodes[bID].Order
}

// stands reports whether an order about b stands.
func (r *realm) stands() bool {
	raw, _ := r.store.Get("/agent/fence-orders/b")
	return len(raw) > 0
}

// primary is one holder of the role and its fencer.
type primary struct {
	*realm
	name    cluster.NodeID
	client  string
	fencer  *Fencer
	handler *zkhandler.Handler
	ctx     context.Context // the role's
	end     context.CancelCauseFunc

	mu      sync.Mutex
	dead    bool
	commits int
	doomed  int  // dies at this commit; 0: never
	after   bool // once that commit has taken effect
}

// lead makes the node primary at a new epoch, with a daemon of its own.
func (r *realm) lead(n cluster.NodeID) *primary {
	r.epoch++
	incarnation := cluster.Incarnation(fmt.Sprintf("boot-%s.%d", n, r.epoch))
	p := &primary{realm: r, name: n, client: fmt.Sprintf("%s%d", n, r.epoch)}
	p.ctx, p.end = context.WithCancelCause(r.ctx)
	running, stop := context.WithCancel(r.ctx)
	var wait sync.WaitGroup
	p.handler = r.join(running, p.client, &wait)
	r.t.Cleanup(func() { stop(); wait.Wait() })
	lease := r.snap().Lease
	r.commit(cluster.Set(cluster.Key{Kind: cluster.KeyLease}, lease.Version,
		cluster.Lease{Version: 1, Holder: n, Incarnation: incarnation, Epoch: r.epoch, TTLMillis: 2800}))
	fencer, err := New(Options{
		Store: p, Config: r.config, Owner: cluster.LockOwner{Version: 1, Node: n, Incarnation: incarnation},
		Runner: Runner{Run: p.run, Argv: []string{"attempt"}, WallMS: func() int64 { return 1 }},
		NewID:  func() string { r.mu.Lock(); defer r.mu.Unlock(); r.ids++; return fmt.Sprintf("fence-%d", r.ids) },
		WallMS: func() int64 { return 1 }, Clock: r.clock, StopAfter: cluster.ProfileLAN().StopAfter(), Promised: r.promised, Soft: r.soft,
	})
	r.must(err)
	p.fencer = fencer
	return p
}

// kill is a power loss: the role's children die with it, and nobody is told.
func (p *primary) kill() {
	p.mu.Lock()
	p.dead = true
	p.mu.Unlock()
	p.store.Partition(p.client)
	p.end(errRoleOver)
}

func (p *primary) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// Commit dies at the doomed one.
func (p *primary) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	lost := cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1}
	p.mu.Lock()
	p.commits++
	now, after, dead := p.commits == p.doomed, p.after, p.dead
	p.mu.Unlock()
	switch {
	case dead:
		return lost
	case now && !after:
		p.kill()
		return lost
	}
	result := p.handler.Commit(ctx, t)
	if now {
		p.kill()
		return lost
	}
	return result
}

func (p *primary) Refresh(ctx context.Context) (*cluster.Snapshot, error) {
	if p.isDead() {
		return nil, errRoleOver
	}
	return p.handler.Refresh(ctx)
}

func (p *primary) Lock(ctx context.Context, kind cluster.KeyKind, o cluster.LockOwner) (cluster.LockChild, error) {
	if p.isDead() {
		return cluster.LockChild{}, errRoleOver
	}
	return p.handler.Lock(ctx, kind, o)
}

func (p *primary) Unlock(ctx context.Context, kind cluster.KeyKind, child cluster.LockChild) error {
	if p.isDead() {
		return errRoleOver // its session's end frees the lock
	}
	return p.handler.Unlock(ctx, kind, child)
}

// run is an attempt's child, as the guard runs it.
func (p *primary) run(ctx context.Context, _ cluster.Token, q cluster.RunRequest) (cluster.RunResult, error) {
	var a Attempt
	if err := json.Unmarshal(q.Stdin, &a); err != nil {
		return cluster.RunResult{}, err
	}
	result := ResultUnknown
	effect := func() { result = p.act(a) }
	if p.attempt != nil {
		p.attempt(p, a, effect)
	} else {
		effect()
	}
	if p.isDead() || ctx.Err() != nil {
		return cluster.RunResult{ExitCode: -1, Error: "killed with its role"}, nil //nolint:nilerr // as a guard says it
	}
	out, err := json.Marshal(AttemptResult{Version: 1, Result: result})
	return cluster.RunResult{Stdout: out}, err
}

// act is what the device does.
func (r *realm) act(a Attempt) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := a.Device.Name
	r.orders = append(r.orders, a.Action+" "+name)
	if r.broken[name] {
		return ResultUnknown
	}
	switch a.Action {
	case ActionOff:
		r.on[name] = false
	case ActionOn:
		r.on[name] = true
	}
	if r.on[name] {
		return ResultOn
	}
	return ResultOff
}

func (r *realm) count(order string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	count := 0
	for _, o := range r.orders {
		if o == order {
			count++
		}
	}
	return count
}

// watch fences b and looks after its record as the nodes' watch of a primary
// does, until the record has ended, the primary has, or the limit is over.
func (p *primary) watch(limit time.Duration, fence bool) cluster.FenceRecord {
	var record cluster.FenceRecord
	for end := p.clock.Now().Add(limit); p.clock.Now().Before(end) && !p.isDead(); time.Sleep(250 * time.Millisecond) {
		snap, err := p.Refresh(p.ctx)
		if err != nil {
			continue
		}
		view, now := snap.Nodes[bID], p.clock.Now()
		ripe, try := p.fencer.Ripe(view, now)
		switch record = view.Fence.Value; {
		case ripe:
			record, _, err = p.fencer.Settle(p.ctx, live(7), bID, try)
		case !view.Fence.Present && fence:
			record, _, err = p.fencer.Fence(p.ctx, live(7), cluster.Action{Kind: cluster.ActionFence, Node: bID, Incarnation: bStart, Keepalive: view.Keepalive.Mzxid, Reason: "dead"})
		case p.fencer.Due(view.Fence, now):
			record, _, err = p.fencer.Resume(p.ctx, live(7), bID)
		}
		if err == nil && (record.Stage == cluster.FenceDone || record.Stage == cluster.FenceCanceled) {
			return record
		}
	}
	return record
}

// told is the history of b's fence, each stage once in a row.
func (r *realm) told() []string {
	events, err := r.oper.ReadHistory(r.ctx, -1)
	r.must(err)
	var stages []string
	for _, e := range events {
		if e.Kind == "fence" {
			stages = append(stages, e.Fields["stage"])
		}
	}
	return slices.Compact(stages)
}

// checkWhole is what must hold once b is fenced, however it came about.
func (r *realm) checkWhole(what string, record cluster.FenceRecord) {
	r.t.Helper()
	snap := r.snap()
	view := snap.Nodes[bID]
	if record.Stage != cluster.FenceDone || record.Proof != ProofVerifiedOff || view.Fence.Value.Stage != cluster.FenceDone {
		r.t.Errorf("%s: ended in %s, proof %q (%s), in the store %s", what, record.Stage, record.Proof, record.Result, view.Fence.Value.Stage)
	}
	if snap.Failover.Value.Count != 1 {
		r.t.Errorf("%s: %d of the budget spent", what, snap.Failover.Value.Count)
	}
	if view.Router.Value != cluster.RouterSecondary || view.Daemon.Value != cluster.DaemonFenced || view.Alive.Present {
		r.t.Errorf("%s: router state %s, daemon state %s, alive %v", what, view.Router.Value, view.Daemon.Value, view.Alive.Present)
	}
	if used, _ := r.store.Get("/nodes/b/memused"); string(used) != "0" {
		r.t.Errorf("%s: memused is %s", what, used)
	}
	r.mu.Lock()
	if !r.on["left"] || !r.on["bmc"] {
		r.t.Errorf("%s: a supply stays dark: %v after %v", what, r.on, r.orders)
	}
	r.mu.Unlock()
	if got := r.told(); !slices.Equal(got, wholeFence) {
		r.t.Errorf("%s: history tells of %v", what, got)
	}
	time.Sleep(10 * time.Second) // a dead one's session has ended
	if left := r.store.Children("/config/fence_lock"); len(left) != 0 {
		r.t.Errorf("%s: the fence lock is still held: %v", what, left)
	}
}

func TestAWholeFenceOverTheStore(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		p := r.lead("a")
		record := p.watch(time.Minute, true)
		r.checkWhole("undisturbed", record)
		if record.Tries != 1 || record.Policy != string(PolicyMigrate) {
			t.Errorf("%+v", record)
		}
		if p.commits != wholeCommits || len(r.orders) != wholeAttempts {
			t.Errorf("%d commits, %d attempts: the tests below kill at each of %d and %d", p.commits, len(r.orders), wholeCommits, wholeAttempts)
		}
		if r.count("on right") != 0 {
			t.Error("a device that cut nothing was ordered on")
		}
	})
}

// The commits and attempts of an undisturbed fence: six stages and the figures;
// off at three devices, the status of one, on at two.
const (
	wholeCommits  = 7
	wholeAttempts = 6
)

// The fencer is killed at each write, before and after it takes effect, and at
// each attempt; the next primary carries on from what is in the store and ends
// the same, with the budget spent once and nothing left dark.
func TestKilledAtEachWriteAndAttempt(t *testing.T) {
	for _, after := range []bool{false, true} {
		for at := 1; at <= wholeCommits; at++ {
			what := fmt.Sprintf("killed at commit %d, applied %v", at, after)
			inRealm(t, func(t *testing.T, r *realm) {
				p := r.lead("a")
				p.doomed, p.after = at, after
				p.watch(time.Minute, true)
				if !p.isDead() {
					t.Fatalf("%s: it lives", what)
				}
				r.checkWhole(what, r.lead("c").watch(3*time.Minute, true))
			})
		}
		for at := 1; at <= wholeAttempts; at++ {
			what := fmt.Sprintf("killed at attempt %d, carried out %v", at, after)
			inRealm(t, func(t *testing.T, r *realm) {
				p := r.lead("a")
				r.attempt = dieAtAttempt(at, after)
				p.watch(time.Minute, true)
				if !p.isDead() {
					t.Fatalf("%s: it lives", what)
				}
				r.checkWhole(what, r.lead("c").watch(3*time.Minute, true))
			})
		}
	}
}

func dieAtAttempt(at int, after bool) func(*primary, Attempt, func()) {
	var mu sync.Mutex
	made := 0
	return func(p *primary, _ Attempt, effect func()) {
		mu.Lock()
		made++
		mine := made == at
		mu.Unlock()
		if p.isDead() {
			return
		}
		if mine && !after {
			p.kill()
			return
		}
		effect()
		if mine {
			p.kill()
		}
	}
}

// Two primaries die in turn, the first at each of its writes, the second at
// each of its own; the first node, started anew, brings it to its end.
func TestTwoPrimariesInTurn(t *testing.T) {
	for first := 1; first <= wholeCommits; first++ {
		for second := 1; second <= wholeCommits; second++ {
			inRealm(t, func(t *testing.T, r *realm) {
				what := fmt.Sprintf("killed at commit %d and then %d", first, second)
				a := r.lead("a")
				a.doomed, a.after = first, second%2 == 0
				a.watch(time.Minute, true)
				c := r.lead("c")
				c.doomed, c.after = second, first%2 == 0
				record := c.watch(3*time.Minute, true)
				if c.isDead() {
					record = r.lead("a").watch(3*time.Minute, true)
				}
				r.checkWhole(what, record)
			})
		}
	}
}

// An order of a fencer that has lost its role is still in a device's hands, and
// cuts the power late: whoever resumes gives power only once it has run out.
func TestPowerIsGivenOnlyAfterTheEarlierOrdersDeadline(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		r.config.Nodes["b"].Levels[1][0].Timeout = 20 * time.Second // longer than the dead one's lock stands
		a := r.lead("a")
		late := make(chan struct{})
		r.attempt = func(p *primary, x Attempt, effect func()) {
			if p == a && x.Action == ActionOff && x.Device.Name == "bmc" {
				go func() { // the device has it, and takes its time
					defer close(late)
					time.Sleep(x.Device.Timeout)
					effect()
				}()
				p.kill()
				return
			}
			effect()
		}
		a.watch(time.Minute, true)
		record := r.lead("c").watch(3*time.Minute, true)
		<-late
		r.checkWhole("after a late order", record)
	})
}

// b starts again while its fence has no fencer: it is canceled, by whoever is
// primary, and the new start is never shot at. A new boot is the dead-proof of
// the old one; a new start of the daemon alone is not.
func TestANodeThatReturnsEndsItsFence(t *testing.T) {
	for _, stage := range []cluster.FenceStage{cluster.FenceClaimed, cluster.FenceSoft, cluster.FenceFailed, cluster.FenceManual} {
		for start, proof := range map[cluster.Incarnation]string{"boot-b.2": "", "boot-b2.1": ProofReturned} {
			inRealm(t, func(t *testing.T, r *realm) {
				r.commit(cluster.Create(nodeKey(cluster.KeyFence), cluster.FenceRecord{
					ID: "left", Node: bID, Incarnation: bStart, Epoch: 1, By: "a", Stage: stage, Tries: 1, Keepalive: r.snap().Nodes[bID].Keepalive.Mzxid,
				}))
				r.register(start)
				record := r.lead("c").watch(time.Minute, false)
				if record.Stage != cluster.FenceCanceled || record.Proof != proof || len(r.orders) != 0 {
					t.Errorf("%s, back as %s: %s with proof %q, orders %v", stage, start, record.Stage, record.Proof, r.orders)
				}
			})
		}
	}
}

// word has b publish this of its watchdog, at its registration.
func (r *realm) word(w cluster.WatchdogWord) {
	record := r.snap().Nodes[bID].Record
	r.commit(cluster.Set(nodeKey(cluster.KeyNodeRecord), record.Version, cluster.NodeRecord{ID: "b", Incarnation: bStart, Watchdog: &w}))
}

var goodWord = cluster.WatchdogWord{Armed: true, Hardware: true, Stored: true, TimeoutMS: 5000, StopMS: 4000}

// A node whose devices are all dead is recovered from once its watchdog must
// have bitten, not a moment before, and only where that is the setting.
func TestFailedFencesAndTheWatchdogsBound(t *testing.T) {
	bound := 10 * time.Second // Q·K + W + 1 s
	trusting := func(c *Config) { c.TrustSoftdog = true }
	soft, unstored := goodWord, goodWord
	soft.Hardware, unstored.Stored = false, false
	for name, c := range map[string]struct {
		policy  Policy
		word    *cluster.WatchdogWord
		tune    func(*Config)
		promise time.Duration // that was given once the fence had failed
		proven  time.Duration // after the last keepalive; 0: never
	}{
		"migrate":                    {PolicyMigrate, &goodWord, nil, 0, bound},
		"none":                       {PolicyNone, &goodWord, nil, 0, 0},
		"migrate, no watchdog":       {PolicyMigrate, nil, nil, 0, 0},
		"migrate, softdog":           {PolicyMigrate, &soft, nil, 0, 0},
		"migrate, trusted softdog":   {PolicyMigrate, &soft, trusting, 0, bound},
		"migrate, not stored":        {PolicyMigrate, &unstored, nil, 0, bound + 5*time.Second},
		"migrate, a promise stands":  {PolicyMigrate, &goodWord, nil, 8 * time.Second, bound + 8*time.Second},
		"migrate, no device is set":  {PolicyMigrate, &goodWord, func(c *Config) { c.Nodes = nil }, 0, bound},
		"none, no device is set":     {PolicyNone, &goodWord, func(c *Config) { c.Nodes = nil }, 0, 0},
		"migrate, no word, no fence": {PolicyMigrate, nil, func(c *Config) { c.Nodes = nil }, 0, 0},
	} {
		inRealm(t, func(t *testing.T, r *realm) {
			r.broken["left"], r.broken["bmc"] = true, true
			r.config.FailedFence, r.config.Watchdog = c.policy, true
			if c.tune != nil {
				c.tune(&r.config)
			}
			if c.word != nil {
				r.word(*c.word)
			}
			r.keepalive()
			p := r.lead("a")
			last := p.seenKeepalive()
			until := cluster.Never
			if c.promise > 0 {
				until = last.Add(c.promise)
			}
			r.promised = func(cluster.NodeID) cluster.Instant { return until }
			p.fencer.Promised = r.promised
			record := p.watch(time.Minute, true)
			if c.proven == 0 {
				if record.Stage == cluster.FenceDone || r.record().Proof != "" || r.snap().Nodes[bID].Router.Value != cluster.RouterPrimary {
					t.Errorf("%s: ended in %s by %q: %s", name, record.Stage, record.Proof, record.Result)
				}
				return
			}
			took := p.clock.Now().Sub(last)
			if record.Stage != cluster.FenceDone || record.Proof != ProofWatchdog || record.Policy != string(PolicyMigrate) {
				t.Fatalf("%s: ended in %s by %q, policy %q: %s", name, record.Stage, record.Proof, record.Policy, record.Result)
			}
			if took < c.proven || took > c.proven+6*time.Second {
				t.Errorf("%s: recovered from %s after the last keepalive, the bound is %s", name, took, c.proven)
			}
			if r.snap().Failover.Value.Count != 1 {
				t.Errorf("%s: %d of the budget spent", name, r.snap().Failover.Value.Count)
			}
			if r.snap().Nodes[bID].Router.Value != cluster.RouterSecondary {
				t.Errorf("%s: router state %s", name, r.snap().Nodes[bID].Router.Value)
			}
		})
	}
}

// seenKeepalive is when this primary first saw b's newest keepalive.
func (p *primary) seenKeepalive() cluster.Instant {
	time.Sleep(20 * time.Millisecond)
	snap, err := p.Refresh(p.ctx)
	p.must(err)
	return snap.Nodes[bID].Keepalive.SeenAt
}

// A keepalive in the last moment before the proof is written moves the bound:
// the Multi conflicts, whoever saw what.
func TestAKeepaliveAndAWatchdogsProofCannotBothWin(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		r.broken["left"], r.broken["bmc"] = true, true
		r.config.FailedFence, r.config.Watchdog = PolicyMigrate, true
		r.word(goodWord)
		p := r.lead("a")
		p.watch(9*time.Second, true)
		if got := r.record().Stage; got != cluster.FenceFailed {
			t.Fatalf("stands in %s", got)
		}
		time.Sleep(5 * time.Second)
		beaten := false
		p.fencer.Store = beforeCommit{p, func(purpose string) {
			if purpose == "fence.fenced" && !beaten {
				beaten = true
				r.keepalive()
			}
		}}
		record, _, err := p.fencer.Settle(p.ctx, live(7), bID, true)
		if !beaten || err != nil || record.Proof != "" || r.record().Stage != cluster.FenceFailed {
			t.Errorf("after a keepalive (%v) it stands in %s, proof %q: %v", beaten, record.Stage, record.Proof, err)
		}
	})
}

// A failed fence spends once, however often it is tried; where nothing is left
// nobody is shot at.
func TestTheBudgetIsCheckedWhereItIsSpent(t *testing.T) {
	failover := cluster.Key{Kind: cluster.KeyFailover}
	for name, c := range map[string]struct {
		settings cluster.FailoverSettings
		fenced   bool
	}{
		"one left":       {cluster.FailoverSettings{Enabled: true, MaxCount: 2, Count: 1}, true},
		"none left":      {cluster.FailoverSettings{Enabled: true, MaxCount: 2, Count: 2}, false},
		"more than none": {cluster.FailoverSettings{Enabled: true, MaxCount: 1, Count: 5}, false},
	} {
		inRealm(t, func(t *testing.T, r *realm) {
			r.commit(cluster.Create(failover, c.settings))
			record := r.lead("a").watch(20*time.Second, true)
			got := r.snap().Failover.Value.Count
			if c.fenced != (record.Stage == cluster.FenceDone) || c.fenced != (got == c.settings.Count+1) || !c.fenced && got != c.settings.Count {
				t.Errorf("%s: ended in %s, count %d: %s", name, record.Stage, got, record.Result)
			}
			if !c.fenced && (record.Stage != cluster.FenceCanceled || len(r.orders) != 0 || !strings.Contains(record.Result, "reset the count")) {
				t.Errorf("%s: %s, orders %v: %s", name, record.Stage, r.orders, record.Result)
			}
		})
	}
	inRealm(t, func(t *testing.T, r *realm) { // somebody spends the last one between look and write
		r.commit(cluster.Create(failover, cluster.FailoverSettings{Enabled: true, MaxCount: 1}))
		p := r.lead("a")
		spent := false
		p.fencer.Store = beforeCommit{p, func(purpose string) {
			if purpose == "fence.power_off" && !spent {
				spent = true
				r.commit(cluster.Set(failover, cluster.AnyVersion, cluster.FailoverSettings{Enabled: true, MaxCount: 1, Count: 1}))
			}
		}}
		if record := p.watch(20*time.Second, true); record.Stage != cluster.FenceCanceled || len(r.orders) != 0 || r.snap().Failover.Value.Count != 1 {
			t.Errorf("ended in %s, orders %v, count %d", record.Stage, r.orders, r.snap().Failover.Value.Count)
		}
	})
}

// beforeCommit runs something ahead of each commit.
type beforeCommit struct {
	Store
	before func(purpose string)
}

func (s beforeCommit) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	s.before(t.Purpose)
	return s.Store.Commit(ctx, t)
}

// A supply that an earlier try has cut is given power again, although a later
// try is proven by another level alone.
func TestASupplyCutByAnEarlierTryIsNotLeftDark(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		r.broken["bmc"] = true
		p := r.lead("a")
		p.watch(3*time.Second, true)
		if got := r.record(); got.Stage != cluster.FenceFailed || r.on["left"] {
			t.Fatalf("stands in %s, left has power: %v", got.Stage, r.on["left"])
		}
		r.mu.Lock()
		r.broken = map[string]bool{"left": true, "right": true} // now only the controller answers
		r.mu.Unlock()
		got := p.watch(time.Minute, true)
		if got.Stage != cluster.FenceDone || r.count("on left") != 1 || !strings.Contains(got.Result, "not powered on again: left") {
			t.Errorf("ended in %s (%s); orders %v", got.Stage, got.Result, r.orders)
		}
	})
	inRealm(t, func(t *testing.T, r *realm) {
		r.broken["bmc"] = true
		p := r.lead("a")
		p.watch(3*time.Second, true)
		r.mu.Lock()
		r.broken = map[string]bool{"right": true}
		r.mu.Unlock()
		record := p.watch(time.Minute, true)
		if record.Stage != cluster.FenceDone || !maps.Equal(r.on, map[string]bool{"left": true, "right": true, "bmc": true}) {
			t.Errorf("ended in %s, power %v after %v", record.Stage, r.on, r.orders)
		}
	})
}
