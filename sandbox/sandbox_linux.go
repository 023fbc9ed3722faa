package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/sandbox/bmc"
)

// Sandbox is a cluster that is up.
type Sandbox struct {
	options Options
	log     *zap.Logger
	cgroup  string // the sandbox's own control group; empty where there is none
	forker  *forker
	net     *network
	nodes   []*Node
	history *History
	events  *eventThread
	prober  *prober
	hooks   *hookWatch
	relay   *relay
	store   *storeWatch

	cancel context.CancelFunc
	wg     sync.WaitGroup // BMCs
	downed sync.Once
	// started is when the running fault began, a cluster.Instant.
	started atomic.Int64
	// maintenance is what the sandbox itself has set last, "on" or "off"; nil: nothing.
	maintenance atomic.Pointer[string]

	promises []*promiseLog // of the coordinators; the script's goroutine alone

	struck  []cluster.NodeID // whom the running fault hits; the script's goroutine alone
	strikes int              // faults so far
	keys    keys             // of the running fault; the script's goroutine alone
	burners []*exec.Cmd      // what keeps the machine busy; the script's goroutine alone
}

// Up builds the cluster and returns once its ensemble serves, its tree is
// initialised and every node is powered on; WaitConverged waits for the rest.
// On an error nothing is left behind. The caller ends it with Down.
func Up(ctx context.Context, o Options) (*Sandbox, error) {
	o = o.Defaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := Sweep(o.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the sandbox's folder: %w", err)
	}
	s := &Sandbox{options: o, log: o.Log, forker: newForker()}
	if root := cgroupRoot(); root != "" {
		s.cgroup = filepath.Join(root, "pvc-sandbox-"+o.Name)
		removeCgroup(s.cgroup)
	}
	life, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	if err := s.build(ctx, life); err != nil {
		s.Down()
		return nil, err
	}
	return s, nil
}

// build does Up's work; life ends with Down.
func (s *Sandbox) build(ctx, life context.Context) error {
	var err error
	if s.history, err = OpenHistory(filepath.Join(s.options.Dir, "history.jsonl")); err != nil {
		return err
	}
	if s.net, err = buildNetwork(); err != nil {
		return err
	}
	plans := planNodes(s.options.Coordinators, s.options.Hypervisors)
	for _, p := range plans {
		n := &Node{Plan: p, Dir: filepath.Join(s.options.Dir, string(p.Name)), sandbox: s, bmc: &bmc.Faults{}}
		if s.options.Watchdogs {
			n.watchdog = newWatchdog(func(boot uint64, due cluster.Instant) { n.reset(life, boot, due) })
		}
		s.nodes = append(s.nodes, n)
	}
	s.saveState()
	if err := s.writeRedisPassword(); err != nil {
		return fmt.Errorf("write the password of the Redis workloads: %w", err)
	}
	for _, n := range s.nodes {
		if err := s.writeFiles(n); err != nil {
			return err
		}
	}
	if s.events, err = startEvents(); err != nil {
		return err
	}
	if s.hooks, err = startHookWatch(s.hookSocket(), s.events, s.history); err != nil {
		return err
	}
	for _, n := range s.nodes {
		if err := s.serveBMC(life, n); err != nil {
			return err
		}
	}
	if s.prober, err = startProber(s.net.client, plans, FloatingAddresses(), s.history); err != nil {
		return err
	}
	if err := s.powerOnAll(); err != nil {
		return err
	}
	if err := s.waitEnsemble(ctx); err != nil {
		return err
	}
	if s.options.NoDaemons {
		return nil
	}
	if s.store, err = s.openStore(ctx, life); err != nil {
		return err
	}
	s.relay, err = startRelay(s, s.options.APIListen)
	return err
}

func (s *Sandbox) powerOnAll() error {
	errs := make([]error, len(s.nodes))
	var wg sync.WaitGroup
	for i, n := range s.nodes {
		wg.Go(func() { errs[i] = n.On() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// serveBMC runs the node's baseboard controller in the hub, outside the node.
func (s *Sandbox) serveBMC(life context.Context, n *Node) error {
	if err := s.net.addHubAddress(bmcPrefix(n.Plan)); err != nil {
		return fmt.Errorf("give the BMC of %s its address: %w", n.Plan.Name, err)
	}
	var server *bmc.Server
	err := s.net.hub.do(func() error {
		var err error
		server, err = bmc.Listen(bmc.Config{
			Listen: n.Plan.BMC.String(), User: BMCUser, Password: bmcPassword, Power: bmcPower{n}, Faults: n.bmc})
		return err
	})
	if err != nil {
		return fmt.Errorf("start the BMC of %s: %w", n.Plan.Name, err)
	}
	s.wg.Go(func() {
		if err := server.Serve(life); err != nil && life.Err() == nil {
			s.log.Error("a BMC ended", zap.String("node", string(n.Plan.Name)), zap.Error(err))
		}
	})
	return nil
}

// bmcPower is a node's power as its BMC switches it.
type bmcPower struct{ node *Node }

func (b bmcPower) On() error { return b.node.On() }

func (b bmcPower) Off() error {
	n := b.node
	n.sandbox.history.Add(Entry{Kind: KindPower, Node: n.Plan.Name, On: false, By: "bmc", Text: wasOn(n.Powered())})
	return n.Off()
}

func (b bmcPower) Status() (bool, error) { return b.node.Status() }

func wasOn(on bool) string {
	if on {
		return "was on"
	}
	return "was off already"
}

// Down ends everything and removes the sandbox's folder. It may be called
// more than once.
func (s *Sandbox) Down() {
	s.downed.Do(func() {
		s.cancel()
		if s.relay != nil {
			s.relay.close()
		}
		if s.store != nil {
			s.store.close()
		}
		if s.prober != nil {
			s.prober.close()
		}
		s.wg.Wait() // from here on no controller gives a node power again
		for _, n := range s.nodes {
			if n.watchdog != nil {
				n.watchdog.close() // nor does a watchdog
			}
		}
		var wg sync.WaitGroup
		for _, n := range s.nodes {
			wg.Go(func() { _ = n.Off() })
		}
		wg.Wait()
		if s.hooks != nil {
			s.hooks.close()
		}
		s.events.close()
		if s.net != nil {
			s.net.close()
		}
		s.forker.close()
		removeCgroup(s.cgroup)
		if s.history != nil {
			s.history.Close()
		}
		_ = removeRunFolders(s.options.Dir)
		if !s.options.KeepFiles {
			_ = os.RemoveAll(s.options.Dir)
		}
	})
}

// Node returns the node of that name, nil if there is none.
func (s *Sandbox) Node(name cluster.NodeID) *Node {
	for _, n := range s.nodes {
		if n.Plan.Name == name {
			return n
		}
	}
	return nil
}

// Nodes returns all nodes, coordinators first.
func (s *Sandbox) Nodes() []*Node { return s.nodes }

// collectPromises brings what the coordinators have promised into the history.
func (s *Sandbox) collectPromises() error {
	if s.promises == nil {
		for _, n := range s.coordinators() {
			s.promises = append(s.promises, &promiseLog{node: n.Plan.Name, path: filepath.Join(n.Dir, "log", progAgent+".log")})
		}
	}
	offset := wallOffset()
	var errs []error
	for _, l := range s.promises {
		entries, err := l.fresh(func(t time.Time) cluster.Instant { return cluster.Instant(t.UnixNano() - int64(offset)) })
		errs = append(errs, err)
		for _, e := range entries {
			s.history.Add(e)
		}
	}
	return errors.Join(errs...)
}

// History returns the sandbox's history.
func (s *Sandbox) History() *History { return s.history }

// Dir is the sandbox's folder.
func (s *Sandbox) Dir() string { return s.options.Dir }
