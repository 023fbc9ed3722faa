package agent_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
	"pvc.internal/zkhandler/zktest"
)

// Whole agents in a bubble: real keepalive, decide, register and executor over
// the real zkhandler and an in-memory ZooKeeper, on virtual time. Only the
// guard is a stand-in (bubble_guard_test.go), which ends at its deadline as the
// real one does and reports when two nodes act at once.
//
// PVC_BUBBLE_LOG=1 prints the agents' logs.

type bubbleClock struct{ base time.Time }

func (c bubbleClock) Now() cluster.Instant {
	return cluster.Instant(time.Hour) + cluster.Instant(time.Since(c.base))
}

type silent struct{}

func (silent) Ready()                      {}
func (silent) Stopping()                   {}
func (silent) Status(string)               {}
func (silent) Sweep(context.Context) error { return nil }

// latency is between each node and the servers, each way: enough to put what
// happens into an order.
const latency = time.Millisecond

// lifeline is what ties a daemon to the world. Cut, nothing it does arrives
// anywhere any more, though its goroutines still wind down in the bubble.
type lifeline struct {
	cut   atomic.Bool
	mu    sync.Mutex
	conns []net.Conn
	quiet bool // power loss: the kernel does not even close the sockets
}

// sever is kill -9 from this very instant on. It takes no lock of the server's,
// so that a rule's match function may call it.
func (l *lifeline) sever() {
	l.cut.Store(true)
	go func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, c := range l.conns {
			if !l.quiet {
				_ = c.Close()
			}
		}
	}()
}

// bury closes what a power loss has left open.
func (l *lifeline) bury() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
}

func (l *lifeline) dialer(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if l.cut.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns = append(l.conns, c)
		return tiedConn{c, l}, nil
	}
}

type tiedConn struct {
	net.Conn
	l *lifeline
}

func (c tiedConn) Write(b []byte) (int, error) {
	if c.l.cut.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c tiedConn) Close() error {
	if c.l.cut.Load() && c.l.quiet {
		return c.SetReadDeadline(time.Unix(1, 0)) // the dead one's reader ends; the server hears nothing
	}
	return c.Conn.Close()
}

// bubbleOptions is what a test wants of its cluster.
type bubbleOptions struct {
	names    []cluster.NodeID
	services []cluster.ServiceSpec
	tune     func(*agent.Config, *agent.Deps)
	talk     bool // the nodes talk directly (bubble_peers_test.go)
	// hypervisors are those of the names that are none of the coordinators.
	hypervisors []cluster.NodeID
	// newest holds all programs back to this schema; 0: the newest that there is.
	newest int
}

// mode is what the node of that name is.
func (o bubbleOptions) mode(n cluster.NodeID) cluster.Mode {
	if slices.Contains(o.hypervisors, n) {
		return cluster.Hypervisor
	}
	return cluster.Coordinator
}

// bubble is a cluster in one synctest bubble.
type bubble struct {
	t      *testing.T
	opts   bubbleOptions
	store  *zktest.Server
	clock  bubbleClock
	seen   *witness
	timing cluster.Timing
	log    *zap.Logger
	guards map[cluster.NodeID]*bubbleGuard
	nodes  map[cluster.NodeID]*bubbleNode
	all    []*bubbleNode
	starts int
	boots  map[cluster.NodeID]int // a reboot changes the boot id
	newest map[cluster.NodeID]int // the schema that a node's next program is held back to; absent: opts.newest
	talk   *talkers               // nil: nodes do not talk directly
}

// bubbleNode is one start of a daemon.
type bubbleNode struct {
	agent *agent.Agent
	life  *lifeline
	stop  context.CancelFunc // SIGTERM
	done  chan struct{}
	err   error // of Run, once done
}

func (n *bubbleNode) ended() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}

// inBubble runs the test in a bubble beside other tests' bubbles.
func inBubble(t *testing.T, o bubbleOptions, fn func(b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(t, o)
		defer b.close()
		fn(b)
	})
}

func nodesCalled(names ...cluster.NodeID) bubbleOptions { return bubbleOptions{names: names} }

func newBubble(t *testing.T, o bubbleOptions) *bubble {
	b := emptyBubble(t, o)
	b.initialise()
	for _, n := range o.names {
		b.start(n)
	}
	return b
}

func emptyBubble(t *testing.T, o bubbleOptions) *bubble {
	b := &bubble{
		t: t, opts: o, store: zktest.New(zktest.Options{}), clock: bubbleClock{time.Now()}, timing: cluster.ProfileLAN(), log: zap.NewNop(),
		guards: map[cluster.NodeID]*bubbleGuard{}, nodes: map[cluster.NodeID]*bubbleNode{}, boots: map[cluster.NodeID]int{}, newest: map[cluster.NodeID]int{},
	}
	b.seen = newWitness(b.clock)
	if o.talk {
		b.talk = newTalkers(b)
	}
	if os.Getenv("PVC_BUBBLE_LOG") != "" {
		e := zap.NewDevelopmentEncoderConfig()
		e.EncodeTime = zapcore.TimeEncoderOfLayout("04:05.000")
		b.log = zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(e), zapcore.AddSync(os.Stderr), zapcore.DebugLevel))
	}
	return b
}

func (b *bubble) handler(name string, dial func(context.Context, string, string) (net.Conn, error)) *zkhandler.Handler {
	return b.handlerOf("", name, dial)
}

// handlerOf is the handler of a node's daemon: a hypervisor's follows its own
// records only.
func (b *bubble) handlerOf(n cluster.NodeID, name string, dial func(context.Context, string, string) (net.Conn, error)) *zkhandler.Handler {
	config := zkhandler.Config{
		Servers: b.store.Servers(), SessionTimeout: b.timing.SessionTimeout, RequestTimeout: b.timing.KeepaliveInterval * 8 / 10,
		WatchNodes: true, Dial: dial, NewestSchema: b.opts.newest,
	}
	if held, ok := b.newest[n]; ok {
		config.NewestSchema = held
	}
	if b.opts.mode(n) == cluster.Hypervisor {
		config.WatchNodes, config.WatchNode = false, n
	}
	h, err := zkhandler.New(config, b.clock, b.log.Named(name), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return h
}

func (b *bubble) initialise() {
	h := b.handler("operator", b.store.Dialer("operator"))
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = h.Run(ctx) }()
	for {
		try, end := context.WithTimeout(ctx, time.Second)
		err := h.Initialize(try, "bubble", false)
		end()
		if err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-done
}

// guard returns the node's guard, which outlives its daemons.
func (b *bubble) guard(n cluster.NodeID) *bubbleGuard {
	if b.guards[n] == nil {
		b.guards[n] = newBubbleGuard(n, b.clock, b.seen)
	}
	return b.guards[n]
}

// start boots the node's daemon; an earlier one of the name must have ended or
// been killed.
func (b *bubble) start(n cluster.NodeID) *bubbleNode {
	node := b.startAs(n, n, b.guard(n))
	b.nodes[n] = node
	return node
}

// startAs boots a daemon of that node name on a host.
func (b *bubble) startAs(n, host cluster.NodeID, guard *bubbleGuard) *bubbleNode {
	b.starts++
	client, life := string(host), &lifeline{}
	b.store.Delay(client, latency)
	h := b.handlerOf(n, client, life.dialer(b.store.Dialer(client)))
	incarnation := cluster.Incarnation(fmt.Sprintf("%s.%d", host, b.starts))
	collection, err := agent.NewCollection(b.clock, b.log, b.timing.CollectorDeadline)
	if err != nil {
		b.t.Fatal(err)
	}
	ids := 0
	c := agent.Config{
		Node: n, Mode: b.opts.mode(n), ClusterName: "bubble", Incarnation: incarnation, BootID: fmt.Sprintf("boot %d of %s", b.boots[host], client), Host: client, NodeUUID: client,
		Timing: b.timing, WallMS: func() int64 { return time.Now().UnixMilli() }, Services: b.opts.services,
		NewID: func(e cluster.Epoch) string { ids++; return fmt.Sprintf("%s-%d-%d", incarnation, e, ids) },
	}
	d := agent.Deps{
		Clock: b.clock, Log: b.log.Named(string(incarnation)), Store: h, Locker: h, Tree: h, Guard: guard.connect(life), Sweeper: silent{}, Notify: silent{},
		Collector: collection, Remember: func(string) error { return nil }, Activities: h, Records: h, Schemas: h,
	}
	talker := b.talk.join(host, life, &c, &d)
	if b.opts.tune != nil {
		b.opts.tune(&c, &d)
	}
	a, err := agent.New(c, d)
	if err != nil {
		b.t.Fatal(err)
	}
	run, stop := context.WithCancel(b.t.Context())
	node := &bubbleNode{agent: a, life: life, stop: stop, done: make(chan struct{})}
	b.all = append(b.all, node)
	talker.begin(a, node.done)
	go func() {
		defer close(node.done)
		session, end := context.WithCancel(context.WithoutCancel(run))
		finished := make(chan struct{})
		go func() { defer close(finished); _ = h.Run(session) }()
		node.err = a.Run(run)
		end()
		<-finished
	}()
	return node
}

// kill is kill -9 of the daemon: its guard and its session live on.
func (b *bubble) kill(n cluster.NodeID) {
	b.talk.kill(n)
	b.nodes[n].life.sever()
	b.nodes[n].stop()
}

// powerOff takes the whole host: its guard with all it holds, and nothing is
// told to anybody.
func (b *bubble) powerOff(n cluster.NodeID) {
	b.talk.powerOff(n)
	b.nodes[n].life.quiet = true
	b.kill(n)
	b.guards[n].vanish()
	delete(b.guards, n)
	b.boots[n]++
}

// heal ends the network faults of a node.
func (b *bubble) heal(n cluster.NodeID) {
	b.store.Heal(string(n))
	b.store.Delay(string(n), latency)
}

// close shuts every agent down in order and reports what broke.
func (b *bubble) close() {
	b.store.Resume()
	for n := range b.guards {
		b.heal(n)
	}
	for _, n := range b.all {
		n.stop()
	}
	for _, n := range b.all {
		<-n.done
	}
	b.talk.close()
	for _, n := range b.all {
		n.life.bury()
	}
	b.store.Close()
	for _, broken := range b.seen.verdict() {
		b.t.Error(broken)
	}
	for _, broken := range leaseFaults(b.store.History()) {
		b.t.Error(broken)
	}
	if b.t.Failed() {
		b.t.Logf("lease and wish:\n%s", b.story())
	}
}

// eventually waits on virtual time until the condition holds.
func (b *bubble) eventually(limit time.Duration, what string, holds func() bool) {
	b.t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if holds() {
			return
		}
	}
	b.t.Fatalf("not within %v: %s\n%s", limit, what, b.describe())
}

// always checks the condition for as long as told.
func (b *bubble) always(span time.Duration, what string, holds func() bool) {
	b.t.Helper()
	for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !holds() {
			b.t.Fatalf("no longer: %s\n%s", what, b.describe())
		}
	}
}

func (b *bubble) describe() string {
	var out strings.Builder
	fmt.Fprintf(&out, "at %s\n", time.Now().Format("04:05.000"))
	for _, n := range slices.Sorted(maps.Keys(b.nodes)) {
		s := b.nodes[n].agent.Status()
		fmt.Fprintf(&out, "%s: %s, refusals %v, cut %v\n", n, s.Role.Mode, s.Role.Refusals, b.nodes[n].life.cut.Load())
	}
	for line := range strings.Lines(b.store.Dump()) {
		if strings.HasPrefix(line, "/agent/") || strings.HasPrefix(line, "/config/") || strings.Contains(line, "state") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// story is what was written to lease, record, wish and history.
func (b *bubble) story() string {
	var out strings.Builder
	for _, h := range b.store.History() {
		switch {
		case h.Path == leasePath && out.Len() > 0 && isRenewal(h.Data):
		case h.Path == leasePath, h.Path == transitionPath, h.Path == wishPath, strings.HasPrefix(h.Path, "/agent/history/"),
			strings.HasPrefix(h.Path, wishPath+"/"), strings.HasPrefix(h.Path, "/agent/alive/"), h.Op == "expireSession":
			fmt.Fprintf(&out, "%s %s %s %s v%d %s\n", h.At.Format("04:05.000"), h.Client, h.Op, h.Path, h.Version, h.Data)
		}
	}
	return out.String()
}

func (b *bubble) read(path string) string {
	raw, _ := b.store.Get(path)
	return string(raw)
}

const (
	leasePath      = "/agent/lease/primary"
	transitionPath = "/agent/transition"
	wishPath       = "/config/primary_node"
)

func (b *bubble) wish(v string) { b.store.Set(wishPath, []byte(v)) }

func routerState(n cluster.NodeID) string { return "/nodes/" + string(n) + "/routerstate" }

// primary is the node that acts as primary, if records and witness agree.
func (b *bubble) primary() cluster.NodeID {
	h := b.seen.holder()
	if h == "" || b.read(routerState(h)) != "primary" || b.read(wishPath) != string(h) {
		return ""
	}
	return h
}

// converged returns the primary once nothing is under way any more: everybody
// who lives says what is true, no hand-over runs, no lock child is left.
func (b *bubble) converged() cluster.NodeID {
	p := b.primary()
	if p == "" || strings.Contains(b.read(transitionPath), `"state":"running"`) {
		return ""
	}
	for n, node := range b.nodes {
		idle := cluster.RouterSecondary
		if b.opts.mode(n) == cluster.Hypervisor {
			idle = cluster.RouterClient
		}
		if n != p && !node.life.cut.Load() && !node.ended() && b.read(routerState(n)) != string(idle) {
			return ""
		}
	}
	for _, c := range b.store.Children(wishPath) {
		if strings.Contains(c, "__lock__") {
			return ""
		}
	}
	return p
}

// settles waits until the cluster has converged and stays so for 2 K, and
// returns the primary.
func (b *bubble) settles(limit time.Duration) cluster.NodeID {
	b.t.Helper()
	since, p := time.Now(), b.converged()
	b.eventually(limit, "the cluster has converged for good", func() bool {
		if now := b.converged(); now != p || now == "" {
			p, since = now, time.Now()
		}
		return p != "" && time.Since(since) >= 2*b.timing.KeepaliveInterval
	})
	return p
}

// elect waits for the first primary and moves it to the node.
func (b *bubble) elect(n cluster.NodeID) {
	b.t.Helper()
	b.eventually(6*time.Second, "one primary", func() bool { return b.primary() != "" })
	if b.primary() != n {
		b.wish(string(n))
	}
	b.eventually(4*time.Second, "the role is at "+string(n), func() bool { return b.converged() == n })
}

// sighted waits until every coordinator that runs says of all that are
// registered that they are up, so that nobody is blind any more.
func (b *bubble) sighted() {
	b.t.Helper()
	b.eventually(3*b.timing.SessionTimeout, "every coordinator sees every other one", func() bool {
		registered := b.store.Children("/agent/alive")
		for n, node := range b.nodes {
			if b.opts.mode(n) == cluster.Hypervisor || node.life.cut.Load() || node.ended() {
				continue
			}
			v := b.viewOf(n)
			if v.Version == 0 || v.Blind != "" {
				return false
			}
			for _, other := range registered {
				if o := b.nodes[cluster.NodeID(other)]; other != string(n) && o != nil && !o.life.cut.Load() && !o.ended() && v.Nodes[cluster.NodeID(other)].Liveness != cluster.LiveUp.String() {
					return false
				}
			}
		}
		return true
	})
}

// entered waits until the history has an entry of which this holds.
func (b *bubble) entered(limit time.Duration, what string, is func(cluster.Event) bool) {
	b.t.Helper()
	b.eventually(limit, what, func() bool {
		for _, h := range b.store.History() {
			var e cluster.Event
			if strings.HasPrefix(h.Path, "/agent/history/") && json.Unmarshal(h.Data, &e) == nil && is(e) {
				return true
			}
		}
		return false
	})
}

// answered says how a wish for this node was answered: it is primary, it was
// and lost the role to somebody, or its wish was refused or the switch aborted,
// with a reason in the history. The history may be written later than what it
// tells of: it is waited for.
func (b *bubble) answered(n cluster.NodeID, p cluster.NodeID) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := b.answeredNow(n, p); err == nil || time.Now().After(end) {
			return err
		}
	}
}

func (b *bubble) answeredNow(n cluster.NodeID, p cluster.NodeID) error {
	if p == n {
		return nil
	}
	for _, h := range b.store.History() {
		var e cluster.Event
		if !strings.HasPrefix(h.Path, "/agent/history/") || json.Unmarshal(h.Data, &e) != nil {
			continue
		}
		if e.Kind == "transition" && e.Fields["from"] == string(n) && e.Fields["cause"] != string(cluster.CauseSwitch) ||
			(e.Kind == "switch_aborted" || e.Kind == "wish_refused" || e.Kind == "wish_overtaken") && strings.Contains(e.Text, string(n)) {
			return nil
		}
	}
	return fmt.Errorf("%s was wished for, %s is primary, and the history does not say why", n, cmp.Or(p, "nobody"))
}

func TestThreeAgentsElectOnePrimaryAndHandItOver(t *testing.T) {
	inBubble(t, nodesCalled("hv1", "hv2", "hv3"), func(b *bubble) {
		b.eventually(6*time.Second, "one primary", func() bool { return b.primary() != "" })
		for round := range 10 {
			to := cluster.NodeID(fmt.Sprintf("hv%d", round%3+1))
			b.wish(string(to))
			b.eventually(3*time.Second, "the role is at "+string(to), func() bool { return b.primary() == to })
		}
	})
}

func TestAPartitionedPrimaryStopsBeforeAnotherStarts(t *testing.T) {
	inBubble(t, nodesCalled("hv1", "hv2", "hv3"), func(b *bubble) {
		b.eventually(6*time.Second, "one primary", func() bool { return b.primary() != "" })
		for range 5 {
			old := b.primary()
			b.store.Partition(string(old))
			b.eventually(4*time.Second, "another primary", func() bool { p := b.seen.holder(); return p != "" && p != old })
			b.heal(old)
			b.eventually(10*time.Second, "the old one is secondary", func() bool {
				return b.primary() != "" && b.read(routerState(old)) == "secondary"
			})
		}
	})
}

func TestAShutdownHandsTheRoleOverAndEndsInStop(t *testing.T) {
	inBubble(t, nodesCalled("hv1", "hv2"), func(b *bubble) {
		b.eventually(6*time.Second, "one primary", func() bool { return b.primary() != "" })
		old := b.primary()
		b.nodes[old].stop()
		<-b.nodes[old].done
		if got := b.read("/nodes/" + string(old) + "/daemonstate"); got != "stop" {
			t.Errorf("daemonstate of %s is %q after its shutdown, want stop", old, got)
		}
		b.eventually(time.Second, "the other is primary", func() bool { p := b.primary(); return p != "" && p != old })
	})
}
