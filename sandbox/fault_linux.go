package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// Fault is something that happens to a cluster at rest. Whom it hits is found
// at run time: who is primary, whose ZooKeeper server leads.
type Fault struct {
	Name string
	Text string // for people
	// Needs is how many coordinators there must be for the cluster to survive it,
	// NeedsNodes how many nodes.
	Needs, NeedsNodes int
	// prepare brings about the combination that the fault wants and returns
	// the node it will hit.
	prepare func(context.Context, *Sandbox) (*Node, error)
	inject  func(context.Context, *Sandbox, *Node) error
	// outcome waits, bounded, for what the fault leads to.
	outcome func(context.Context, *Sandbox, *Node) error
	// heal undoes the fault where the cluster has not done so itself.
	heal func(context.Context, *Sandbox, *Node) error
	// stays says whether, in this cluster, the fault must move nothing (I9); nil:
	// it may.
	stays func(*Sandbox) bool
	// spares says that nobody may be fenced, not even whom it hits (I6).
	spares bool
	// verdict judges, at rest again, what has happened since it began; nil:
	// nothing beyond the invariants.
	verdict func(s *Sandbox, n *Node, began cluster.Instant) error
	// workload is one without which it is skipped; empty: it needs none.
	workload string
	// Extra keeps it out of the demo's script: it runs when it is named.
	Extra bool
}

// Inject brings the fault about, whatever earlier ones have spent of the
// failover budget, and returns the node it hit.
func (f Fault) Inject(ctx context.Context, s *Sandbox) (*Node, error) {
	if err := s.resetBudget(ctx); err != nil {
		return nil, err
	}
	n, err := f.prepare(ctx, s)
	if err != nil {
		return nil, err
	}
	s.begin(f, n)
	return n, f.inject(ctx, s, n)
}

// begin records that the fault strikes now.
func (s *Sandbox) begin(f Fault, n *Node) cluster.Instant {
	began := now()
	s.started.Store(int64(began))
	s.struck, s.strikes = []cluster.NodeID{n.Plan.Name}, s.strikes+1
	s.history.Add(Entry{At: began, Kind: KindFault, Name: f.Name, Node: n.Plan.Name, Text: stepInject})
	return began
}

// Heal undoes it.
func (f Fault) Heal(ctx context.Context, s *Sandbox, n *Node) error { return f.heal(ctx, s, n) }

// Faults lists all of them; those that are not Extra in the order of the demo.
func Faults() []Fault {
	return slices.Concat(demoFaults(), workloadFaults(), nodeFaults(), storeFaults(), bmcFaults(), fencerFaults(), powerFaults())
}

// demoFaults are the demo's, and those like them.
func demoFaults() []Fault {
	return []Fault{
		{Name: "switch", Text: "planned switch", Needs: 2,
			prepare: primaryNode, inject: wishOther, outcome: roleMoves, heal: nothing},
		{Name: "sigterm", Text: "SIGTERM of the primary's agent", Needs: 2,
			prepare: primaryNode, inject: signalAgent(unix.SIGTERM), outcome: roleMoves, heal: startAgentAfterExit},
		{Name: "wish-none", Text: "primary_node := none", Needs: 2,
			prepare: primaryNode, inject: wishNone, outcome: roleMoves, heal: nothing},
		{Name: "kill9", Text: "kill -9 of the agent, not restarted", Needs: 3,
			prepare: primaryNode, inject: signalAgent(unix.SIGKILL), outcome: fenced, heal: startAgent},
		{Name: "kill9-restart", Text: "kill -9 of the agent, back after 200 ms", Needs: 1,
			prepare: primaryNode, inject: killAndRestart, outcome: watchFor(4 * time.Second), heal: startAgent,
			stays: always},
		{Name: "sigstop", Text: "SIGSTOP of the agent, then SIGCONT", Needs: 2,
			prepare: primaryNode, inject: signalAgent(unix.SIGSTOP), outcome: stoppedPastItsDeadline, heal: continueAgent},
		{Name: "sigstop-stay", Text: "SIGSTOP of the agent, not continued", Needs: 3, Extra: true,
			prepare: primaryNode, inject: signalAgent(unix.SIGSTOP), outcome: fenced, heal: startAgent},
		{Name: "link-down", Text: "link down", Needs: 3,
			prepare: primaryOnFollower, inject: linksDown, outcome: fenced, heal: powerAndLinks},
		{Name: "power-loss-follower", Text: "power loss, ZooKeeper follower", Needs: 3,
			prepare: primaryOnFollower, inject: powerOff, outcome: fenced, heal: powerAndLinks},
		{Name: "power-loss-leader", Text: "power loss, ZooKeeper leader", Needs: 3,
			prepare: primaryOnLeader, inject: powerOff, outcome: fenced, heal: powerAndLinks},
		{Name: "zk-leader-kill", Text: "ZooKeeper leader killed", Needs: 3,
			prepare: leaderNode, inject: killZooKeeper, outcome: watchFor(5 * time.Second), heal: startZooKeeper,
			stays: outlastsWriteGap},
	}
}

// FaultNamed returns the fault of that name; the error lists the names. Behind
// that of a cold start the order of the nodes may follow: cold-start-10-312.
func FaultNamed(name string) (Fault, error) {
	var names []string
	if f, ok := coldStartNamed(name); ok {
		return f, nil
	}
	for _, f := range Faults() {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return Fault{}, fmt.Errorf("no fault is named %q; there are %v", name, names)
}

func primaryNode(_ context.Context, s *Sandbox) (*Node, error) { return s.primary() }

func leaderNode(ctx context.Context, s *Sandbox) (*Node, error) { return s.ZooKeeperLeader(ctx) }

// primaryOnLeader brings the role to the node of the ZooKeeper leader.
func primaryOnLeader(ctx context.Context, s *Sandbox) (*Node, error) {
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		return nil, err
	}
	return leader, s.movePrimary(ctx, leader)
}

// primaryOnFollower brings the role to a node whose server follows.
func primaryOnFollower(ctx context.Context, s *Sandbox) (*Node, error) {
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		return nil, err
	}
	if p, err := s.primary(); err == nil && p != leader {
		return p, nil
	}
	for _, n := range s.coordinators() {
		if n != leader {
			return n, s.movePrimary(ctx, n)
		}
	}
	return nil, errors.New("every coordinator's ZooKeeper server leads: there is only one")
}

func wishOther(ctx context.Context, s *Sandbox, primary *Node) error {
	coordinators := s.coordinators()
	for i, n := range coordinators {
		if n == primary {
			return s.wish(ctx, string(coordinators[(i+1)%len(coordinators)].Plan.Name))
		}
	}
	return fmt.Errorf("%s is no coordinator", primary.Plan.Name)
}

func wishNone(ctx context.Context, s *Sandbox, _ *Node) error { return s.wish(ctx, cluster.NoNode) }

func signalAgent(sig unix.Signal) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, _ *Sandbox, n *Node) error { return n.Signal(ctx, progAgent, sig) }
}

func killAndRestart(ctx context.Context, _ *Sandbox, n *Node) error {
	if err := n.Signal(ctx, progAgent, unix.SIGKILL); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(200 * time.Millisecond):
	}
	return n.Start(ctx, progAgent)
}

func linksDown(_ context.Context, _ *Sandbox, n *Node) error {
	return errors.Join(n.setLink(false, linkUpstream), n.setLink(false, linkCluster))
}

func powerOff(_ context.Context, _ *Sandbox, n *Node) error { return n.Off() }

func killZooKeeper(ctx context.Context, _ *Sandbox, n *Node) error {
	return n.Signal(ctx, progZooKeeper, unix.SIGKILL)
}

func nothing(context.Context, *Sandbox, *Node) error { return nil }

// startAgent starts the agent again, and the node where it was fenced and is
// still off.
func startAgent(ctx context.Context, _ *Sandbox, n *Node) error {
	if err := n.On(); err != nil {
		return err
	}
	return n.ensureRunning(ctx, progAgent)
}

// startAgentAfterExit waits for the agent's ordered way out, then starts it.
func startAgentAfterExit(ctx context.Context, s *Sandbox, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		have, err := n.Programs(ctx)
		if err != nil {
			return err
		}
		if !have[progAgent].Running {
			return startAgent(ctx, s, n)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent of %s has not ended since its SIGTERM: %w", n.Plan.Name, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stoppedPastItsDeadline waits until somebody else is primary, and on: by then
// whatever the stopped agent was still allowed to do is over.
func stoppedPastItsDeadline(ctx context.Context, s *Sandbox, n *Node) error {
	if err := roleMoves(ctx, s, n); err != nil {
		return err
	}
	return pause(ctx, time.Second)
}

// wakeWatch is how long a continued agent is watched: it has slept over all its
// timers, tickers and replies, and catches up now.
const wakeWatch = 2 * time.Second

// continueAgent wakes the agent; that nothing of its old role comes back with
// it is part of the cure.
func continueAgent(ctx context.Context, s *Sandbox, n *Node) error {
	if !n.Powered() {
		return n.On()
	}
	woken := now()
	// Where the node was fenced and is back, its agent was never stopped:
	// SIGCONT harms nobody.
	if err := n.Signal(ctx, progAgent, unix.SIGCONT); err != nil {
		return startAgent(ctx, s, n)
	}
	if err := pause(ctx, wakeWatch); err != nil {
		return err
	}
	s.prober.settle(ctx)
	for _, e := range s.history.Since(woken) {
		since := max(e.At, e.Until).Sub(woken)
		switch {
		case e.Node != n.Plan.Name:
		case e.Kind == KindAnswer:
			return fmt.Errorf("%s answered for %s until %v after it was woken", e.Node, e.Addr, since)
		case (e.Kind == KindHeld || e.Kind == KindHook) && e.On:
			return fmt.Errorf("%s came back with %s%s %v after it was woken", e.Node, e.Addr, e.Name, since)
		}
	}
	return nil
}

func always(*Sandbox) bool { return true }

// outlastsWriteGap is I9's condition for a gap in the store's writes.
func outlastsWriteGap(s *Sandbox) bool {
	t := s.timing()
	return t.RenewInterval+t.WriteGap+100*time.Millisecond <= t.RoleTTL-t.Grace
}

func startZooKeeper(ctx context.Context, s *Sandbox, n *Node) error {
	if err := n.ensureRunning(ctx, progZooKeeper); err != nil {
		return err
	}
	return s.waitEnsemble(ctx)
}

func powerAndLinks(ctx context.Context, s *Sandbox, n *Node) error {
	if err := n.On(); err != nil {
		return err
	}
	if err := errors.Join(n.setLink(true, linkUpstream), n.setLink(true, linkCluster)); err != nil {
		return err
	}
	return s.waitEnsemble(ctx)
}

// roleMoves waits until somebody else is primary.
func roleMoves(ctx context.Context, s *Sandbox, from *Node) error {
	return s.waitHolder(ctx, 15*time.Second+2*s.timing().RoleTTL, func(h cluster.NodeID) bool { return h != from.Plan.Name })
}

// fenced waits until somebody else is primary and the node's fence has ended.
func fenced(ctx context.Context, s *Sandbox, n *Node) error {
	if err := roleMoves(ctx, s, n); err != nil {
		return err
	}
	return s.waitFence(ctx, n, 25*time.Second+s.timing().SuspectAfter(), "has not been fenced", verifiedOff)
}

// waitFence waits, at most for the limit, until a fence of the node since the
// fault struck has come to what ok accepts.
func (s *Sandbox) waitFence(ctx context.Context, n *Node, limit time.Duration, missing string, ok func(Entry) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begun := cluster.Instant(s.started.Load())
	return s.store.wait(ctx, func(*cluster.Snapshot) error {
		if slices.ContainsFunc(s.fencesSince(begun), func(e Entry) bool { return e.Node == n.Plan.Name && ok(e) }) {
			return nil
		}
		return fmt.Errorf("%s %s", n.Plan.Name, missing)
	})
}

// fencesSince are the fence records seen since the instant.
func (s *Sandbox) fencesSince(from cluster.Instant) []Entry {
	return slices.DeleteFunc(s.history.Since(from), func(e Entry) bool { return e.Kind != KindFence || e.At < from })
}

func verifiedOff(e Entry) bool {
	switch e.Stage {
	case cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone:
		return true
	}
	return e.Text == "verified_off"
}

// watchFor lets the cluster be for that long: nothing should happen.
func watchFor(d time.Duration) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, _ *Sandbox, _ *Node) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
}
