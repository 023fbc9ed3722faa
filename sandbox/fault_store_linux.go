package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// isolatedWatch is how long a node is kept from the store alone: longer than a
// silent node is given, less than one that answers its peers.
const isolatedWatch = 10 * time.Second

// nodeFaults strike one node's network, its agent's time, or the machine.
func nodeFaults() []Fault {
	lostStore := func(name, text string, c cut) Fault {
		c.ports = storePorts
		return Fault{Name: name, Text: text, Needs: 3, Extra: true, spares: true,
			prepare: primaryOnFollower, inject: cutOff(name, c), outcome: movesThenWatch(isolatedWatch), heal: mendNetwork}
	}
	isolated := lostStore("zk-partition-stay", "cut off from ZooKeeper alone, not healed", cut{in: true, out: true})
	isolated.spares, isolated.outcome, isolated.verdict = false, fenced, notFencedBeforeItsTime
	return []Fault{
		lostStore("zk-partition", "cut off from ZooKeeper alone, both ways", cut{in: true, out: true}),
		isolated,
		lostStore("cut-to-store", "cut off one way: nothing reaches ZooKeeper", cut{out: true}),
		lostStore("cut-from-store", "cut off one way: nothing comes from ZooKeeper", cut{in: true}),
		{Name: "cut-to-node", Text: "cut off one way from one other node", Needs: 3, Extra: true, spares: true, stays: always,
			prepare: primaryOnFollower, inject: cutFromNode, outcome: watchFor(isolatedWatch), heal: mendNetwork},
		{Name: "mgmt-cut", Text: "management network unplugged from the primary", Needs: 1, Extra: true, spares: true, stays: always,
			prepare: primaryNode, inject: mgmtLink(false), outcome: watchFor(7 * time.Second), heal: mgmtLink(true)},
		{Name: "sigstop-short", Text: "SIGSTOP of the agent for 0.5 to 3.5 s", Needs: 2, Extra: true, spares: true,
			prepare: primaryNode, inject: signalAgent(unix.SIGSTOP), outcome: shortStop, heal: wakeAgent},
		{Name: "starve", Text: "every processor kept busy by others for 10 s", Needs: 1, Extra: true, spares: true,
			prepare: primaryNode, inject: starve, outcome: watchFor(10 * time.Second), heal: feed},
	}
}

// storeFaults take ZooKeeper from all nodes, the network staying whole.
func storeFaults() []Fault {
	outage := func(name, text string, d time.Duration, take, bring func(context.Context, *Sandbox, *Node) error) Fault {
		return Fault{Name: name, Text: text, Needs: 1, Extra: true, spares: true, stays: (*Sandbox).Failsafe,
			prepare: primaryNode, inject: take, outcome: watchFor(d), heal: bring}
	}
	return []Fault{
		outage("store-outage-20", "every ZooKeeper server killed, back after 20 s", 20*time.Second, killEnsemble, startEnsemble),
		outage("store-outage-120", "every ZooKeeper server killed, back after 120 s", 120*time.Second, killEnsemble, startEnsemble),
		outage("store-stall-20", "every ZooKeeper server stopped for 20 s", 20*time.Second, signalEnsemble(unix.SIGSTOP), wakeEnsemble),
		{Name: "store-outage-cut", Text: "every ZooKeeper server killed, and the primary then cut off from everything", Needs: 2, Extra: true, spares: true,
			prepare: primaryNode, inject: killEnsemble, outcome: cutFromEverything, heal: mendOutage},
	}
}

// Of the outage in which the primary is cut off from everything: how long it
// lives on the others' word before, and is watched then.
const (
	outageBefore = 5 * time.Second
	outageCut    = 10 * time.Second
)

// cutFromEverything waits, unplugs all that the node has, and judges that its
// work ends by Q K from then: nobody can take the role meanwhile, but nobody
// could tell it so either (protocol §6).
func cutFromEverything(ctx context.Context, s *Sandbox, n *Node) error {
	if err := pause(ctx, outageBefore); err != nil {
		return err
	}
	if s.holder() != n.Plan.Name {
		return fmt.Errorf("%s is no longer primary %v after the store went away", n.Plan.Name, outageBefore)
	}
	cut := now()
	if err := errors.Join(n.setLink(false, linkUpstream), n.setLink(false, linkCluster), n.setLink(false, linkMgmt)); err != nil {
		return err
	}
	if err := pause(ctx, outageCut); err != nil {
		return err
	}
	ended := map[string]cluster.Instant{} // by service or address
	for _, e := range s.history.Since(cut) {
		if e.Node == n.Plan.Name && e.At >= cut && (e.Kind == KindHook || e.Kind == KindHeld) && !e.On {
			ended[e.Name+e.Addr] = e.At
		}
	}
	want := []string{}
	if !s.options.NoHooks {
		want = append(want, hookService)
	}
	for _, a := range FloatingAddresses() {
		want = append(want, a.Name)
	}
	var last time.Duration
	for _, name := range want {
		at, ok := ended[name]
		if took := at.Sub(cut); !ok || took > s.timing().StopAfter() {
			return fmt.Errorf("%s of %s, which was cut off from everything, did not end within %v (ended: %v, after %v)", name, n.Plan.Name, s.timing().StopAfter(), ok, took)
		}
		last = max(last, at.Sub(cut))
	}
	s.history.Add(Entry{Kind: KindNote, Name: "store-outage-cut", Text: fmt.Sprintf("%s, cut off from everything, had ended its work after %.2f s", n.Plan.Name, last.Seconds())})
	return nil
}

// mendOutage mends the network before the servers come back: who is cut off
// while they serve is to be fenced.
func mendOutage(ctx context.Context, s *Sandbox, n *Node) error {
	if err := errors.Join(n.setLink(true, linkUpstream), n.setLink(true, linkCluster), n.setLink(true, linkMgmt)); err != nil {
		return err
	}
	return startEnsemble(ctx, s, n)
}

func cutOff(name string, c cut) func(context.Context, *Sandbox, *Node) error {
	return func(_ context.Context, _ *Sandbox, n *Node) error { return n.setCut(name, &c) }
}

// cutFromNode drops what the node sends to another one whose server follows,
// so that the store is not concerned.
func cutFromNode(ctx context.Context, s *Sandbox, n *Node) error {
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		return err
	}
	for _, other := range s.coordinators() {
		if other != n && other != leader {
			return n.setCut("to "+string(other.Plan.Name), &cut{out: true, peer: other.Plan.Cluster.Addr()})
		}
	}
	return errors.New("there is no third coordinator")
}

// mendNetwork ends the node's cuts, and powers it on where it was fenced.
func mendNetwork(ctx context.Context, s *Sandbox, n *Node) error {
	if err := n.mendCuts(); err != nil {
		return err
	}
	if err := startAgent(ctx, s, n); err != nil {
		return err
	}
	return s.waitEnsemble(ctx)
}

func mgmtLink(up bool) func(context.Context, *Sandbox, *Node) error {
	return func(_ context.Context, _ *Sandbox, n *Node) error { return n.setLink(up, linkMgmt) }
}

// movesThenWatch waits until somebody else is primary and lets the cluster be
// until so long after the fault.
func movesThenWatch(d time.Duration) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		if err := roleMoves(ctx, s, n); err != nil {
			return err
		}
		return pause(ctx, d-now().Sub(cluster.Instant(s.started.Load())))
	}
}

// notFencedBeforeItsTime judges a node that answered its peers all the while.
func notFencedBeforeItsTime(s *Sandbox, n *Node, began cluster.Instant) error {
	least := s.timing().IsolatedFenceAfter() - 2*s.timing().KeepaliveInterval
	for _, e := range s.history.Since(began) {
		if e.Kind == KindPower && e.Node == n.Plan.Name && e.By == "bmc" && !e.On && e.At.Sub(began) < least {
			return fmt.Errorf("%s, which answered its peers, was powered off after %v, less than %v", e.Node, e.At.Sub(began), least)
		}
	}
	return nil
}

// shortStop waits 0.5 s, 1 s … 3.5 s, another time with each fault: around the
// lease's end, and always less than a node is given.
func shortStop(ctx context.Context, s *Sandbox, _ *Node) error {
	return pause(ctx, time.Duration(1+s.strikes%7)*500*time.Millisecond)
}

func wakeAgent(ctx context.Context, s *Sandbox, n *Node) error {
	if err := n.Signal(ctx, progAgent, unix.SIGCONT); err != nil {
		return startAgent(ctx, s, n)
	}
	return pause(ctx, wakeWatch) // what it does on waking belongs to the fault
}

// busyPerProcessor is how many endless loops share each processor with the cluster.
const busyPerProcessor = 4

// starve keeps every processor busy: by stress-ng where it is installed, whose
// workers go through all kinds of arithmetic, by loops of a shell elsewhere.
func starve(_ context.Context, s *Sandbox, _ *Node) error {
	s.history.Add(Entry{Kind: KindLoad, On: true})
	workers := busyPerProcessor * runtime.NumCPU()
	commands := slices.Repeat([][]string{{"/bin/sh", "-c", "while :; do :; done"}}, workers)
	if path, err := exec.LookPath("stress-ng"); err == nil {
		commands = [][]string{{path, "--quiet", "--cpu", fmt.Sprint(workers)}}
	}
	for _, argv := range commands {
		cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it outlives this call and is ended by feed, or with this process
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setsid: true}
		if err := s.forker.start(cmd); err != nil {
			return fmt.Errorf("keep the machine busy: %w", err)
		}
		s.burners = append(s.burners, cmd)
	}
	return nil
}

func feed(_ context.Context, s *Sandbox, _ *Node) error {
	for _, cmd := range s.burners {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // its workers, too
		_ = cmd.Wait()
	}
	s.burners = nil
	s.history.Add(Entry{Kind: KindLoad})
	return nil
}

// eachServer does f to every coordinator that has power.
func (s *Sandbox) eachServer(f func(*Node) error) error {
	var errs []error
	for _, n := range s.coordinators() {
		if n.Powered() {
			errs = append(errs, f(n))
		}
	}
	return errors.Join(errs...)
}

func signalEnsemble(sig unix.Signal) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, _ *Node) error {
		err := s.eachServer(func(n *Node) error { return n.Signal(ctx, progZooKeeper, sig) })
		s.storeAway(true)
		return err
	}
}

func killEnsemble(ctx context.Context, s *Sandbox, n *Node) error {
	return signalEnsemble(unix.SIGKILL)(ctx, s, n)
}

func startEnsemble(ctx context.Context, s *Sandbox, _ *Node) error {
	return s.storeBack(ctx, func(n *Node) error { return n.ensureRunning(ctx, progZooKeeper) })
}

func wakeEnsemble(ctx context.Context, s *Sandbox, _ *Node) error {
	return s.storeBack(ctx, func(n *Node) error { return n.Signal(ctx, progZooKeeper, unix.SIGCONT) })
}

// storeBack brings every server back and records when the first leads: from
// then on there may be writes.
func (s *Sandbox) storeBack(ctx context.Context, bring func(*Node) error) error {
	if err := s.eachServer(bring); err != nil {
		return err
	}
	if _, err := s.quorum(ctx, ensembleTimeout); err != nil {
		return err
	}
	s.storeAway(false)
	return s.waitEnsemble(ctx)
}

// quorum waits until a server leads and returns when that was seen.
func (s *Sandbox) quorum(ctx context.Context, limit time.Duration) (cluster.Instant, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		_, err := s.ZooKeeperLeader(ctx)
		if err == nil {
			return now(), nil
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return 0, fmt.Errorf("the ensemble has no quorum after %v: %w", limit, err)
		}
	}
}

// others are the coordinators but that one.
func (s *Sandbox) others(n *Node) []*Node {
	return slices.DeleteFunc(s.coordinators(), func(o *Node) bool { return o == n })
}
