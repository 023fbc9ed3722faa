package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/driver"
	"pvc.internal/proc"
	"pvc.internal/router"
	"pvc.internal/zkhandler"
)

// The adapters fit the agent's interfaces.
var (
	_ agent.Store     = (*zkhandler.Handler)(nil)
	_ agent.Locker    = (*zkhandler.Handler)(nil)
	_ agent.Tree      = (*zkhandler.Handler)(nil)
	_ agent.Historian = (*zkhandler.Handler)(nil)
	_ agent.Schemas   = (*zkhandler.Handler)(nil)
	_ agent.Guard     = (*router.Client)(nil)
	_ agent.Copies    = (*driver.Host)(nil)
)

// runAgent assembles the agent from its adapters and runs it until ctx ends.
func runAgent(ctx context.Context, s settings.Node, log *zap.Logger, reload *settings.Reloader, nodeLog *agent.NodeLog) error {
	proc.SweepRuns("") // what a daemon that was killed has left: nothing of it runs beside this one
	folder, err := agent.OpenStateFolder(s.StateDir, s.Node.Name)
	if err != nil {
		return err
	}
	defer folder.Close()
	clock := proc.BootClock{}
	zkConfig, err := zooKeeperConfig(s)
	if err != nil {
		return err
	}
	metrics := newMetrics(s.Metrics.Listen, log.Named("metrics"))
	handler, err := zkhandler.New(zkConfig, clock, log.Named("zk"), metrics.registry)
	if err != nil {
		return fmt.Errorf("set up ZooKeeper: %w", err)
	}
	guard := router.NewClient(filepath.Join(s.RunDir, "guard.sock"), log.Named("guard"))
	defer guard.Close()
	config, err := agentConfig(s, folder)
	if err != nil {
		return err
	}
	copies, endCopies, err := newCopies(s, config, guard, log.Named("copies"))
	if err != nil {
		return err
	}
	defer endCopies()
	var serving parting
	ctx, settled := settleFirst(ctx, guardStops, serving.leave, settler(copies, guard.LetGo, serving.tell, log.Named("copies")), log.Named("copies"))
	defer settled()
	collection, err := collectors(s, clock, log, copies)
	if err != nil {
		return err
	}
	peers, err := newTalk(s, config, clock, log.Named("peer"))
	if err != nil {
		return err
	}
	fencer, err := newFencer(s, config, handler, guard, clock, peers, log)
	if err != nil {
		return err
	}
	notify := agent.NewSystemdNotifier(clock, log, 5*s.Timing.KeepaliveInterval)
	deps := agent.Deps{
		Clock: clock, Log: log, Store: handler, Locker: handler, Tree: handler, Historian: handler, Guard: guard,
		Sweeper: sweeper{}, Collector: collection, Fencer: fencer, Notify: notify, Turned: notify.Turned,
		Exit:     func() { os.Exit(exitAbandoned) },
		Remember: folder.Remember, LeaseFile: folder.Leases(), Activities: handler, Records: handler, Schemas: handler,
	}
	if copies != nil { // an interface that holds a nil pointer is not nil
		deps.Copies = copies
	}
	peers.join(&deps)
	metrics.join(&deps)
	reload.Notify(notify.Reloading, notify.Reloaded)
	withFaults(&deps, reload.Faults)
	deps.NodeLog, deps.Texts = nodeLog, handler
	a, err := agent.New(config, deps)
	if err != nil {
		return err
	}
	peers.agent = a
	serving.Store(a)
	metrics.registry.MustRegister(a.Figures())
	defer metrics.start(ctx)()
	defer peers.start(ctx)()
	defer reload.Serve(ctx)()
	notifyCtx, endNotify := context.WithCancel(context.WithoutCancel(ctx))
	notified := make(chan struct{})
	go func() { defer close(notified); notify.Run(notifyCtx) }()
	defer func() { endNotify(); <-notified }()
	return runWithSession(ctx, handler, a)
}

// runWithSession keeps the ZooKeeper session up until the agent has written
// its last word, then closes it, so that the alive record goes at once.
func runWithSession(ctx context.Context, handler *zkhandler.Handler, a *agent.Agent) error {
	sessionCtx, closeSession := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	agentCtx, endAgent := context.WithCancelCause(ctx)
	defer endAgent(nil)
	go func() {
		err := handler.Run(sessionCtx)
		if err != nil {
			endAgent(fmt.Errorf("the ZooKeeper session ended: %w", err))
		}
		done <- err
	}()
	err := a.Run(agentCtx)
	closeSession()
	if errors.Is(err, agent.ErrAbandoned) { // nothing is waited for that may be what hangs
		return err
	}
	select {
	case zkErr := <-done:
		if err == nil && zkErr != nil && ctx.Err() == nil {
			err = zkErr
		}
	case <-time.After(5 * time.Second):
	}
	if err != nil && ctx.Err() != nil {
		return nil // asked to stop before it had begun
	}
	return err
}

// agentConfig gathers what the agent is told at start.
func agentConfig(s settings.Node, folder *agent.StateFolder) (agent.Config, error) {
	longest, err := folder.UseTTL(s.Timing.RoleTTL)
	if err != nil {
		return agent.Config{}, err
	}
	longestLease, err := folder.UseLeasePeriod(s.Timing.NodeLeasePeriod)
	if err != nil {
		return agent.Config{}, err
	}
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return agent.Config{}, fmt.Errorf("read the boot id: %w", err)
	}
	boot := strings.TrimSpace(string(raw))
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	fence := ""
	if n, ok := s.Fencing.Nodes[string(s.Node.Name)]; ok && len(n.Levels) > 0 {
		fence = "configured"
	}
	return agent.Config{
		Node: s.Node.Name, Mode: s.Node.Mode, Priority: s.Node.Priority, ClusterName: s.Cluster.Name,
		Incarnation: cluster.Incarnation(boot + "." + uuid.NewString()), BootID: boot, Host: host, NodeUUID: folder.ID(),
		Peer: s.Peer.Advertise, MACs: hardwareAddresses(s.Addresses), Fencing: fence, Timing: s.Timing, Addresses: s.Addresses, Services: s.Services,
		Yield: s.Role.OnStartFailure == settings.StartFailureYield, DeadProof: s.Role.RequireDeadProof, Version: version,
		FenceTests: s.Fencing.TestSchedule, Failsafe: s.Role.Failsafe, LongestTTL: longest,
		NodeLeases: s.NodeLeases, LongestNodeLease: longestLease,
		NewID:  func(cluster.Epoch) string { return uuid.Must(uuid.NewV7()).String() },
		WallMS: func() int64 { return time.Now().UnixMilli() },
	}, nil
}

// hardwareAddresses are those of the interfaces that carry floating addresses.
func hardwareAddresses(addrs []cluster.FloatingAddress) []string {
	var macs []string
	seen := map[string]bool{}
	for _, a := range addrs {
		if seen[a.Interface] {
			continue
		}
		seen[a.Interface] = true
		if i, err := net.InterfaceByName(a.Interface); err == nil {
			macs = append(macs, i.HardwareAddr.String())
		}
	}
	return macs
}

// sweeper runs `pvcnoded guard sweep` with this program's own settings file.
type sweeper struct{}

// Sweep implements agent.Sweeper.
func (sweeper) Sweep(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	out, err := exec.CommandContext(ctx, self, "guard", "sweep", "-c", usedConfig).CombinedOutput()
	if err != nil {
		return fmt.Errorf("guard sweep: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
