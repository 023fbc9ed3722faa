package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// The bounds of what faults of workloads lead to.
const (
	drainLimit   = 60 * time.Second
	recoverLimit = 60 * time.Second // after the proof
	redisLimit   = 40 * time.Second
	faultKeys    = 20000
	// bootTime is what a lost machine needs from its power to its daemons: one of the
	// sandbox's would be back within half a second, and what is not started elsewhere
	// by then rightly starts there again, so that nobody saw a recovery of all.
	bootTime = 30 * time.Second
)

// slowlyBack has the node need its time to boot when the fence gives it power again.
func slowlyBack(inject func(context.Context, *Sandbox, *Node) error) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		n.bmc.Boot(bootTime)
		return inject(ctx, s, n)
	}
}

// bootedNow ends that time, and mends what else the fault has done.
func bootedNow(ctx context.Context, s *Sandbox, n *Node) error {
	n.bmc.Boot(0)
	return powerAndLinks(ctx, s, n)
}

// workloadFaults are about what runs on the nodes. They are skipped where the
// sandbox runs no workloads.
func workloadFaults() []Fault {
	job, cache := "job", cacheName
	return []Fault{
		{Name: "workload-power-loss", Text: "power loss of a node with workloads", Needs: 3, workload: job,
			prepare: gathered, inject: slowlyBack(powerOff), outcome: recovered, heal: bootedNow},
		{Name: "redis-restart", Text: "Redis restarted empty after 0.2 s", Needs: 2, workload: cache, spares: true,
			prepare: filled(cache, ""), inject: killRedis(cache), outcome: keysKept(cache), heal: nothing},
		{Name: "drain", Text: "a node drained, then ready again", Needs: 2, workload: job, spares: true,
			prepare: gathered, inject: flush, outcome: drained, heal: readyAgain},
		{Name: "workload-link-down", Text: "a node with workloads cut off", Needs: 3, workload: job, Extra: true,
			prepare: gathered, inject: slowlyBack(linksDown), outcome: recovered, heal: bootedNow, verdict: endedByItself},
		{Name: "redis-restart-2s", Text: "Redis restarted empty after 2 s", Needs: 2, workload: cache, spares: true, Extra: true,
			prepare: filled("cache-2s", "2s"), inject: killRedis("cache-2s"), outcome: keysKept("cache-2s"), heal: nothing},
		{Name: "redis-restart-twice", Text: "Redis restarted empty, and the promoted one, too", Needs: 2, workload: cache, spares: true, Extra: true,
			prepare: filled(cache, ""), inject: killRedis(cache), outcome: exhausted(cache), heal: nothing},
		{Name: "redis-node-loss", Text: "power loss of the Redis' node", Needs: 3, workload: cache, Extra: true,
			prepare: filledApart(cache), inject: powerOff, outcome: redisMoves(cache), heal: powerAndLinks},
		{Name: "redis-behind", Text: "Redis restarted empty, its replica far behind", Needs: 2, workload: cache, spares: true, Extra: true,
			prepare: filled(cache, ""), inject: killRedisAhead(cache), outcome: keysKept(cache), heal: nothing},
		{Name: "redis-node-restart", Text: "the Redis' node restarted, back before it is missed", Needs: 2, workload: cache, spares: true, Extra: true,
			prepare: filledApart(cache), inject: offAndOn, outcome: keysKept(cache), heal: startAgent},
		{Name: "redis-janitor-kill", Text: "Redis restarted empty; kill -9 of the primary's agent in the middle of the repair", Needs: 2, workload: cache, spares: true, Extra: true,
			prepare: filled(cache, ""), inject: killInRepair(cache), outcome: keysKept(cache), heal: allAgents},
		{Name: "janitor-kill", Text: "kill -9 of the primary's agent in the middle of a move", Needs: 3, workload: job, Extra: true,
			prepare: primaryNode, inject: inMove(killAndRestart), outcome: workloadsRest, heal: startAgent},
		{Name: "janitor-switch", Text: "the role moves in the middle of a move", Needs: 2, workload: job, spares: true, Extra: true,
			prepare: primaryNode, inject: inMove(wishOther), outcome: workloadsRest, heal: nothing},
		{Name: "drain-switch", Text: "the role moves in the middle of a drain", Needs: 3, workload: job, spares: true, Extra: true,
			prepare: gathered, inject: flushAndSwitch, outcome: drained, heal: readyAgain},
	}
}

// tell adds a line to what is told of the running fault.
func (s *Sandbox) tell(name, format string, args ...any) {
	s.history.Add(Entry{Kind: KindNote, Name: name, Text: fmt.Sprintf(format, args...)})
}

// gathered brings the movable workloads to a node that is not primary and, where
// there is a third, does not lead the ensemble, and returns it: what hits it hits all
// of them, and nothing else. Where it leads, an election that takes longer than the
// others' right lasts ends everything everywhere, which is another fault's story.
func gathered(ctx context.Context, s *Sandbox) (*Node, error) {
	primary, err := s.primary()
	if err != nil {
		return nil, err
	}
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		return nil, err
	}
	var n *Node
	for _, other := range s.nodes {
		if other != primary && (n == nil || other != leader) {
			n = other
		}
	}
	if n == nil {
		return nil, fmt.Errorf("%s is primary, and there is no other node to gather the workloads on", primary.Plan.Name)
	}
	return n, s.gather(ctx, n)
}

func (s *Sandbox) gather(ctx context.Context, n *Node) error {
	for _, name := range s.movable() {
		if s.store.latest().Workloads[name].Value.Head() == n.Plan.Name {
			continue
		}
		if err := s.orderMove(ctx, name, n.Plan.Name); err != nil {
			return err
		}
	}
	// The orders may not be seen here yet: what counts is where the workloads are.
	limited, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	err := s.store.wait(limited, func(snap *cluster.Snapshot) error {
		for _, name := range s.movable() {
			if w := snap.Workloads[name].Value; w.Head() != n.Plan.Name {
				return fmt.Errorf("workload %s was to be moved to %s and is on %s: %+v", name, n.Plan.Name, w.Head(), w.Answer)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.WaitConverged(ctx)
}

// movable are the names of the movable workloads that are to run.
func (s *Sandbox) movable() []string {
	var names []string
	for name, w := range s.store.latest().Workloads {
		if w.Present && w.Err == nil && w.Value.Wanted && w.Value.Kind == cluster.WorkloadMovable {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// recovered waits until the node's fence has ended and its workloads run elsewhere,
// and tells how long after the proof; of those that do, where not all of them did.
func recovered(ctx context.Context, s *Sandbox, n *Node) error {
	if err := s.waitFence(ctx, n, 25*time.Second+s.timing().SuspectAfter(), "has not been fenced", proven); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, recoverLimit)
	defer cancel()
	err := s.store.wait(limited, func(snap *cluster.Snapshot) error {
		if left := s.heads(snap, n); len(left) > 0 {
			return fmt.Errorf("workload %s is to be on %s still, which was proven dead (%d of them)", left[0], n.Plan.Name, len(left))
		}
		if missing := s.workloadsMissing(snap); len(missing) > 0 {
			return errors.New(strings.Join(missing, "; "))
		}
		return nil
	})
	all := "all"
	if err != nil {
		all = "not all, but"
	}
	return errors.Join(err, s.tellRecovery(n, all))
}

// tellRecovery tells when what was on the node ran elsewhere. That nothing did is an
// error.
func (s *Sandbox) tellRecovery(n *Node, all string) error {
	begun := cluster.Instant(s.started.Load())
	proof := cluster.Never
	for _, e := range s.fencesSince(begun) {
		if e.Node == n.Plan.Name && proven(e) && proof.IsZero() {
			if proof = e.At; !e.Written.IsZero() {
				proof = e.Written
			}
		}
	}
	first, last, count := cluster.Forever, cluster.Never, 0
	for _, e := range s.history.Since(proof) {
		if e.At < proof || e.Kind != KindWorkload || e.By != string(cluster.WorkloadRunning) || len(e.Nodes) == 0 || e.Nodes[0] == n.Plan.Name {
			continue
		}
		first, last, count = min(first, e.At), max(last, e.At), count+1
	}
	if count == 0 {
		return fmt.Errorf("nothing of %s was seen to run elsewhere", n.Plan.Name)
	}
	s.tell(faultOf(s), "proven dead %.2f s after the loss; its first workload ran elsewhere %.2f s after the proof, %s %d after %.2f s",
		proof.Sub(begun).Seconds(), first.Sub(proof).Seconds(), all, count, last.Sub(proof).Seconds())
	return nil
}

// endedByItself is an error unless the node, before anybody took its power, has
// ended what ran there itself, at the end of its own right.
func endedByItself(s *Sandbox, n *Node, began cluster.Instant) error {
	for _, e := range s.history.Since(began) {
		switch {
		case e.At < began || e.Node != n.Plan.Name || e.On:
		case e.Kind == KindCopy:
			s.tell(faultOf(s), "%s ended %s itself %.2f s after it was cut off", n.Plan.Name, e.Name, e.At.Sub(began).Seconds())
			return nil
		case e.Kind == KindPower:
			return fmt.Errorf("%s lost its power %v after it was cut off and had ended nothing by then", n.Plan.Name, e.At.Sub(began))
		}
	}
	return fmt.Errorf("%s has ended nothing of its workloads", n.Plan.Name)
}

// waitWorkloads waits until all workloads run where they are to be.
func (s *Sandbox) waitWorkloads(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.store.wait(ctx, func(snap *cluster.Snapshot) error {
		if missing := s.workloadsMissing(snap); len(missing) > 0 {
			return errors.New(strings.Join(missing, "; "))
		}
		return nil
	})
}

func workloadsRest(ctx context.Context, s *Sandbox, _ *Node) error {
	return s.waitWorkloads(ctx, recoverLimit)
}

func flush(ctx context.Context, s *Sandbox, n *Node) error {
	return s.setDomain(ctx, n, cluster.DomainFlushed, cluster.DomainFlush)
}

// drained waits until the node has nothing of any workload, and tells of it.
func drained(ctx context.Context, s *Sandbox, n *Node) error {
	began := cluster.Instant(s.started.Load())
	if err := s.waitDomain(ctx, n, cluster.DomainFlushed, drainLimit); err != nil {
		return err
	}
	if err := s.waitWorkloads(ctx, drainLimit); err != nil {
		return err
	}
	if left := s.heads(s.store.latest(), n); len(left) > 0 {
		return fmt.Errorf("%s is flushed, and %v are to be there", n.Plan.Name, left)
	}
	for _, name := range s.movable() {
		if slices.Contains(s.hooks.copies(name), n.Plan.Name) {
			return fmt.Errorf("%s is flushed, and %s runs there", n.Plan.Name, name)
		}
	}
	s.tell(faultOf(s), "%s was empty after %.2f s", n.Plan.Name, now().Sub(began).Seconds())
	return nil
}

// readyAgain brings the workloads back to where they were.
func readyAgain(ctx context.Context, s *Sandbox, n *Node) error {
	began := now()
	if err := s.setDomain(ctx, n, cluster.DomainReady, cluster.DomainUnflush); err != nil {
		return err
	}
	if err := s.waitDomain(ctx, n, cluster.DomainReady, drainLimit); err != nil {
		return err
	}
	back, err := s.waitBack(ctx, n)
	if err != nil {
		return err
	}
	s.tell(faultOf(s), "ready %.2f s after that was ordered; %d workloads are back", now().Sub(began).Seconds(), back)
	return nil
}

// waitBack waits until nothing that a drain has taken from the node is away from it
// any more, and returns how many workloads have a copy there.
func (s *Sandbox) waitBack(ctx context.Context, n *Node) (back int, err error) {
	limited, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	err = s.store.wait(limited, func(snap *cluster.Snapshot) error {
		missing := s.workloadsMissing(snap)
		back = 0
		for name, w := range snap.Workloads {
			if w.Value.Home == n.Plan.Name || w.Value.HasAway(n.Plan.Name) {
				missing = append(missing, fmt.Sprintf("workload %s is away from %s", name, n.Plan.Name))
			}
			if slices.Contains(w.Value.Chain, n.Plan.Name) {
				back++
			}
		}
		if len(missing) > 0 {
			return errors.New(strings.Join(missing, "; "))
		}
		return nil
	})
	return back, err
}

// moving waits until a move is under way, or all of them are over: a watcher that a
// busy machine held up may have seen none, and what strikes then strikes late.
func (s *Sandbox) moving(ctx context.Context, over func(*cluster.Snapshot) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	late := false
	err := s.store.wait(ctx, func(snap *cluster.Snapshot) error {
		for _, w := range snap.Workloads {
			if w.Present && w.Err == nil && (w.Value.Next != nil || w.Value.State == cluster.WorkloadMoving) {
				return nil
			}
		}
		if late = over(snap); late {
			return nil
		}
		return errors.New("no workload is on its way")
	})
	if late && err == nil {
		s.tell(faultOf(s), "all moves were over before one was seen")
	}
	return err
}

// inMove orders every movable workload to another node, and strikes once the first
// is on its way.
func inMove(strike func(context.Context, *Sandbox, *Node) error) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		ordered := map[string]cluster.NodeID{}
		for i, name := range s.movable() {
			to := s.nodes[i%len(s.nodes)]
			if s.store.latest().Workloads[name].Value.Head() == to.Plan.Name {
				to = s.nodes[(i+1)%len(s.nodes)]
			}
			if err := s.orderMove(ctx, name, to.Plan.Name); err != nil {
				return err
			}
			ordered[name] = to.Plan.Name
		}
		over := func(snap *cluster.Snapshot) bool {
			for name, to := range ordered {
				if w := snap.Workloads[name].Value; w.Head() != to || w.State != cluster.WorkloadRunning {
					return false
				}
			}
			return true
		}
		if err := s.moving(ctx, over); err != nil {
			return err
		}
		return strike(ctx, s, n)
	}
}

func flushAndSwitch(ctx context.Context, s *Sandbox, n *Node) error {
	primary, err := s.primary()
	if err != nil {
		return err
	}
	if err := flush(ctx, s, n); err != nil {
		return err
	}
	over := func(snap *cluster.Snapshot) bool {
		return snap.Nodes[n.Plan.Name].Domain.Value == cluster.DomainFlushed
	}
	if err := s.moving(ctx, over); err != nil {
		return err
	}
	for _, other := range s.coordinators() {
		if other != primary && other != n {
			return s.wish(ctx, string(other.Plan.Name))
		}
	}
	return errors.New("there is no third coordinator for the role")
}

// faultOf is the name of the fault that runs.
func faultOf(s *Sandbox) string {
	entries := s.history.Entries()
	for _, e := range slices.Backward(entries) {
		if e.Kind == KindFault && e.Text == stepInject {
			return e.Name
		}
	}
	return ""
}
