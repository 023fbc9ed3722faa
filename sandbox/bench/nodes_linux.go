package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/sandbox"
	"pvc.internal/zkhandler"
)

// simulatedNodes is how many nodes write keepalives, each in a session of its
// own; simulatedObservers is how many look at all of them, as coordinators do.
const (
	simulatedNodes     = 1000
	simulatedObservers = 3
)

// joinAtOnce is how many nodes register at a time. All at once would ask more of
// the servers than they give within a request's deadline: connections are then
// left and made again, which costs more than what they were to carry.
const joinAtOnce = 8

// measureNodes has a thousand nodes write their keepalives to the three servers
// while three coordinators look at all of them.
func measureNodes(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{Coordinators: 3, NoDaemons: true})
	if err != nil {
		return err
	}
	l.key = "" // its tree is used up afterwards
	defer ordinaryRuntime()()
	e, err := l.ensemble(ctx, cluster.ProfileLAN())
	if err != nil {
		return err
	}
	defer e.close()
	crowd := &crowd{e: e}
	if err := crowd.gather(ctx, b); err != nil {
		return err
	}
	observers, err := crowd.observe(ctx, b)
	if err != nil {
		return err
	}
	if err := pause(ctx, 10*time.Second); err != nil { // what gathering left to do
		return err
	}
	if err := crowd.steady(ctx); err != nil { // measured all the same: what is missed says so
		b.say("   %v", err)
	}
	over := b.observed(60*time.Second, 20*time.Second)
	crowd.begin()
	reads := crowd.reads.Load()
	for _, o := range observers {
		e.wg.Go(func() { o.look(e.life) })
	}
	if err := pause(ctx, over); err != nil {
		return err
	}
	reads = crowd.reads.Load() - reads
	took, failed := crowd.end()
	if len(took) == 0 {
		return fmt.Errorf("no keepalive of %d nodes was acknowledged in %v", simulatedNodes, over)
	}
	slices.Sort(took)
	note := fmt.Sprintf("%d keepalives of %d nodes in %v", len(took), simulatedNodes, over)
	b.add(figure("keepalive of one of a thousand nodes, 99th percentile", "ms", []float64{took[len(took)*99/100]}, atMost(100)), note)
	b.add(figure("keepalive of one of a thousand nodes, median", "ms", []float64{took[len(took)/2]}, none), "")
	b.add(figure("keepalives not acknowledged", "", []float64{float64(failed)}, atMost(0)), "")
	b.add(figure("an observer's reads for each keepalive", "", []float64{float64(reads) / simulatedObservers / float64(len(took))}, atMost(1.2)),
		fmt.Sprintf("%d observers of all nodes", simulatedObservers))
	b.addLooks(observers)
	return nil
}

// addLooks files what the observers made of it.
func (b *bench) addLooks(observers []*observer) {
	var looks, worse []float64
	for _, o := range observers {
		took, wrong := o.found()
		looks, worse = append(looks, took...), append(worse, wrong)
	}
	b.add(figure("detector and failover, one look at a thousand nodes", "ms", looks, limit{}.medianAtMost(1)), "time of the processor, under that load")
	b.add(figure("nodes taken for lost, by observer", "", worse, atMost(0)), "")
}

// ordinaryRuntime undoes, until the function that it returns is called, what the
// sandbox's prober asks of Go's runtime: a bounded heap that is collected only at
// its bound, and processors to spare. A thousand sessions' buffers alone are some
// 2 GiB, nearly all of it never touched, so that the collector would run without
// an end; and nothing is probed here that could suffer.
func ordinaryRuntime() (restore func()) {
	percent := debug.SetGCPercent(100)
	bound := debug.SetMemoryLimit(math.MaxInt64)
	processors := runtime.GOMAXPROCS(runtime.NumCPU())
	return func() {
		runtime.GOMAXPROCS(processors)
		debug.SetMemoryLimit(bound)
		debug.SetGCPercent(percent)
	}
}

// crowd is the simulated nodes and who looks at them.
type crowd struct {
	e     *ensemble
	reads atomic.Int64 // requests to read of all observers

	mu        sync.Mutex
	members   []*zkhandler.Handler
	measuring bool
	took      []float64 // ms
	failed    int
}

// gather registers the nodes and starts their keepalives, spread over K.
func (c *crowd) gather(ctx context.Context, b *bench) error {
	store, err := c.e.handler(newWire(c.e.inside), 0)
	if err != nil {
		return err
	}
	err = await(ctx, 15*time.Second, func() error {
		one, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return store.Initialize(one, c.e.name, false)
	})
	if err != nil {
		return err
	}
	began := time.Now()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	places := make(chan struct{}, joinAtOnce)
	var wg sync.WaitGroup
	for i := range simulatedNodes {
		places <- struct{}{}
		if err := c.steady(ctx); err != nil {
			giveUp(fmt.Errorf("after %d of %d nodes and %.0f s: %w", i, simulatedNodes, time.Since(began).Seconds(), err))
			break
		}
		wg.Go(func() {
			defer func() { <-places }()
			if err := c.join(ctx, i); err != nil {
				giveUp(fmt.Errorf("after %d of %d nodes and %.0f s: %w", i, simulatedNodes, time.Since(began).Seconds(), err))
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.say("   %d nodes have registered after %.0f s", simulatedNodes, time.Since(began).Seconds())
	return nil
}

// steady waits, for half a minute at most, until nearly all who have joined are
// connected: where the servers cannot keep up, more nodes only make it worse.
func (c *crowd) steady(ctx context.Context) error {
	return await(ctx, 30*time.Second, func() error {
		c.mu.Lock()
		members := c.members
		c.mu.Unlock()
		away := 0
		for _, h := range members {
			if h.State().Phase != zkhandler.Live {
				away++
			}
		}
		if away > 2*joinAtOnce {
			return fmt.Errorf("this machine cannot carry so many: %d of the %d nodes that have joined are not connected", away, len(members))
		}
		return nil
	})
}

// join registers one node as its daemon would and has it write keepalives until
// the ensemble is closed.
func (c *crowd) join(ctx context.Context, i int) error {
	name := cluster.NodeID(fmt.Sprintf("n%04d", i))
	n := len(c.e.servers)
	h, err := zkhandler.New(zkhandler.Config{Servers: append(slices.Clone(c.e.servers[i%n:]), c.e.servers[:i%n]...), Root: "/",
		SessionTimeout: c.e.timing.SessionTimeout, RequestTimeout: c.e.timing.RequestTimeout(), Dial: newWire(c.e.inside).dial, WatchNode: name},
		proc.BootClock{}, c.e.log.Named("zk"), nil)
	if err != nil {
		return err
	}
	c.e.wg.Go(func() { _ = h.Run(c.e.life) })
	c.mu.Lock()
	c.members = append(c.members, h)
	c.mu.Unlock()
	err = await(ctx, 60*time.Second, func() error {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return register(one, h, name)
	})
	if err != nil {
		return fmt.Errorf("register %s: %w", name, err)
	}
	k, err := agent.NewKeepalive(agent.KeepaliveConfig{Node: name, Interval: c.e.timing.KeepaliveInterval, Clock: proc.BootClock{},
		Publish: func(ctx context.Context, ops []cluster.Op) cluster.TxnResult {
			res := h.Commit(ctx, cluster.Txn{Purpose: "keepalive", Ops: ops})
			c.note(res)
			return res
		}})
	if err != nil {
		return err
	}
	if err := k.SetState(cluster.DaemonRun); err != nil {
		return err
	}
	spread := c.e.timing.KeepaliveInterval * time.Duration(i) / simulatedNodes
	c.e.wg.Go(func() {
		if pause(c.e.life, spread) == nil {
			_ = k.Run(c.e.life)
		}
	})
	return nil
}

// register makes a node's records and says that it is alive. A try whose reply
// was lost is found done.
func register(ctx context.Context, h *zkhandler.Handler, name cluster.NodeID) error {
	if err := h.EnsureNode(ctx, name, cluster.Hypervisor); err != nil {
		return err
	}
	incarnation := cluster.Incarnation("bench." + string(name))
	record := cluster.Key{Kind: cluster.KeyNodeRecord, Node: name}
	if is, err := h.ReadText(ctx, record); err != nil || is.Present {
		return err
	}
	return h.Commit(ctx, cluster.Txn{Purpose: "register", Ops: []cluster.Op{
		{Kind: cluster.OpCreateEphemeral, Key: cluster.Key{Kind: cluster.KeyAlive, Node: name}, Value: cluster.Alive{
			Version: 1, Incarnation: incarnation, BootID: "bench", Host: string(name)}},
		cluster.Create(record, cluster.NodeRecord{Version: 1, ID: string(incarnation), Incarnation: incarnation}),
	}}).Err
}

func (c *crowd) note(res cluster.TxnResult) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.measuring:
	case res.Outcome == cluster.OutcomeOK:
		c.took = append(c.took, millis(res.DoneAt.Sub(res.SentAt)))
	default:
		c.failed++
	}
}

func (c *crowd) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.measuring, c.took, c.failed = true, nil, 0
}

func (c *crowd) end() (took []float64, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.measuring = false
	return c.took, c.failed
}

type dialing = func(ctx context.Context, network, addr string) (net.Conn, error)

// counted counts the requests to read that go over the connections.
func (c *crowd) counted(dial dialing) dialing {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return countedConn{conn, &c.reads}, nil
	}
}

type countedConn struct {
	net.Conn
	reads *atomic.Int64
}

// The requests of ZooKeeper's protocol that read a record.
const (
	opExists       = 3
	opGetData      = 4
	opGetChildren  = 8
	opGetChildren2 = 12
)

// Write implements net.Conn. The client writes one request at a time: length,
// id, kind, and the rest; the first of a connection has neither id nor kind.
func (c countedConn) Write(b []byte) (int, error) {
	if len(b) >= 12 && int(binary.BigEndian.Uint32(b)) == len(b)-4 {
		switch binary.BigEndian.Uint32(b[8:]) {
		case opExists, opGetData, opGetChildren, opGetChildren2:
			c.reads.Add(1)
		}
	}
	return c.Conn.Write(b)
}
