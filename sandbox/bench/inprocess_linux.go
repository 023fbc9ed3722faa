package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/zkhandler"
)

// wire is a program's way to ZooKeeper, which can be cut.
type wire struct {
	from *namespace
	mu   sync.Mutex
	cut  bool
	open map[net.Conn]bool
}

func newWire(from *namespace) *wire { return &wire{from: from, open: map[net.Conn]bool{}} }

func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := w.from.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		_ = conn.Close()
		return nil, errors.New("the wire is cut")
	}
	w.open[conn] = true
	return wired{conn, w}, nil
}

// wired forgets itself when it is closed.
type wired struct {
	net.Conn
	wire *wire
}

// Close implements net.Conn.
func (c wired) Close() error {
	c.wire.mu.Lock()
	delete(c.wire.open, c.Conn)
	c.wire.mu.Unlock()
	return c.Conn.Close()
}

// sever closes every connection and refuses new ones; the session lives on at
// the server until its time-out.
func (w *wire) sever() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for c := range w.open {
		_ = c.Close()
	}
}

func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = false
}

// ensemble is the sandbox's real ZooKeeper as a program of this process
// reaches it.
type ensemble struct {
	inside  *namespace
	servers []string
	name    string // of the cluster
	timing  cluster.Timing
	wg      sync.WaitGroup
	stop    context.CancelFunc
	life    context.Context
	log     *zap.Logger // of all its programs, in the sandbox's folder
}

func (l *lab) ensemble(ctx context.Context, timing cluster.Timing) (*ensemble, error) {
	e := &ensemble{timing: timing, name: l.Status(ctx).Name}
	pid, err := l.initPID(ctx, l.Nodes()[0].Plan.Name)
	if err != nil {
		return nil, err
	}
	if e.inside, err = namespaceOf(pid); err != nil {
		return nil, err
	}
	c := zap.NewProductionConfig()
	c.OutputPaths, c.Sampling = []string{filepath.Join(l.Dir(), "bench.log")}, nil
	c.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	if e.log, err = c.Build(); err != nil {
		return nil, err
	}
	for _, n := range l.Nodes() {
		if n.Plan.Mode == cluster.Coordinator {
			e.servers = append(e.servers, fmt.Sprintf("%s:2181", n.Plan.Cluster.Addr()))
		}
	}
	e.life, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	return e, nil
}

// close ends everything that was started on it.
func (e *ensemble) close() {
	e.stop()
	e.wg.Wait()
	e.inside.close()
}

// handler opens one session's worth of zkhandler; it runs until close.
func (e *ensemble) handler(w *wire, first int) (*zkhandler.Handler, error) {
	n := len(e.servers)
	servers := append(append([]string{}, e.servers[first%n:]...), e.servers[:first%n]...)
	h, err := zkhandler.New(zkhandler.Config{Servers: servers, Root: "/", SessionTimeout: e.timing.SessionTimeout,
		RequestTimeout: e.timing.RequestTimeout(), Dial: w.dial, WatchNodes: true}, proc.BootClock{}, e.log.Named("zk"), nil)
	if err != nil {
		return nil, err
	}
	e.wg.Go(func() { _ = h.Run(e.life) })
	return h, nil
}

// member is one agent of this process with a stand-in guard.
type member struct {
	name  cluster.NodeID
	wire  *wire
	guard *standIn
	left  time.Time // when it was cut off last
}

// join starts an agent; it runs until close.
func (e *ensemble) join(name cluster.NodeID, mode cluster.Mode, seen *witness, first int, collectors ...agent.Collector) (*member, error) {
	m := &member{name: name, wire: newWire(e.inside), guard: newStandIn(name, proc.BootClock{}, seen)}
	h, err := e.handler(m.wire, first)
	if err != nil {
		return nil, err
	}
	log := e.log.Named(string(name))
	collection, err := agent.NewCollection(proc.BootClock{}, log, e.timing.CollectorDeadline, collectors...)
	if err != nil {
		return nil, err
	}
	incarnation := cluster.Incarnation(fmt.Sprintf("bench.%s.%d", name, time.Now().UnixNano()))
	ids := 0
	a, err := agent.New(agent.Config{
		Node: name, Mode: mode, ClusterName: e.name, Incarnation: incarnation, BootID: "bench", Host: string(name), NodeUUID: string(incarnation),
		Timing: e.timing, WallMS: func() int64 { return time.Now().UnixMilli() },
		NewID: func(ep cluster.Epoch) string { ids++; return fmt.Sprintf("%s-%d-%d", name, ep, ids) },
	}, agent.Deps{
		Clock: proc.BootClock{}, Log: log, Store: h, Locker: h, Tree: h, Guard: m.guard, Sweeper: quiet{}, Notify: quiet{},
		Collector: collection, Remember: func(string) error { return nil }, Activities: h, Records: h,
	})
	if err != nil {
		return nil, err
	}
	e.wg.Go(func() { _ = a.Run(e.life) })
	return m, nil
}
