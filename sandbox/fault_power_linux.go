package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/sandbox/bmc"
)

// Bounds of what the faults of power lead to.
const (
	failedLimit  = 60 * time.Second // a device's whole deadline, and what comes before
	retriedLimit = 90 * time.Second // the longest backoff, and the fence itself
	coldLimit    = 10 * time.Second // one primary, once the ensemble has a quorum
	noProofWatch = 3 * time.Second  // less than the backoff, so that the next try meets a device that works
)

// bmcFaults are baseboard controllers that do not do as they should.
func bmcFaults() []Fault {
	fault := func(name, text string, strike func(*bmc.Faults), take, outcome, heal func(context.Context, *Sandbox, *Node) error) Fault {
		return Fault{Name: name, Text: text, Needs: 3, Extra: true, prepare: primaryOnFollower,
			inject: func(ctx context.Context, s *Sandbox, n *Node) error {
				strike(n.bmc)
				return take(ctx, s, n)
			}, outcome: outcome, heal: heal}
	}
	kill := signalAgent(unix.SIGKILL)
	already := fault("bmc-already-off", "power loss; the BMC reads off before it is asked", func(*bmc.Faults) {}, powerOff, fenced, powerAndLinks)
	already.verdict = neverSwitchedOff
	return []Fault{
		fault("bmc-unreachable", "power loss, the BMC unreachable with it", func(f *bmc.Faults) { f.Unreachable(true) }, powerOff, fenceFails, fencedOnceTheBMCWorks),
		fault("bmc-password", "power loss, the BMC refuses the password", func(f *bmc.Faults) { f.WrongPassword(true) }, powerOff, fenceFails, fencedOnceTheBMCWorks),
		fault("bmc-lying", "kill -9 of the agent; the BMC says ok and leaves it on", func(f *bmc.Faults) { f.Lying(true) }, kill, fenceFails, fencedOnceTheBMCWorks),
		fault("bmc-slow", "kill -9 of the agent; the BMC takes 20 s to switch", func(f *bmc.Faults) { f.Slow(20 * time.Second) }, kill, fencedAtLast, fencedOnceTheBMCWorks),
		fault("bmc-bounce", "kill -9 of the agent; 1 s after its off the machine is on again", func(f *bmc.Faults) { f.Bounce(time.Second) }, kill, fenced, fencedOnceTheBMCWorks),
		already,
	}
}

// fenceFails waits until the role has moved and the fence has failed, and
// watches that nothing counts as a proof.
func fenceFails(ctx context.Context, s *Sandbox, n *Node) error {
	if err := roleMoves(ctx, s, n); err != nil {
		return err
	}
	failed := func(e Entry) bool { return e.Stage == cluster.FenceFailed }
	if err := s.waitFence(ctx, n, failedLimit, "has no fence that failed", failed); err != nil {
		return err
	}
	if err := pause(ctx, noProofWatch); err != nil {
		return err
	}
	for _, e := range s.fencesSince(cluster.Instant(s.started.Load())) {
		if e.Node == n.Plan.Name && proven(e) {
			return fmt.Errorf("%s counts as dead (%s) though its BMC proves nothing", e.Node, e.Text)
		}
	}
	return nil
}

func fencedAtLast(ctx context.Context, s *Sandbox, n *Node) error {
	return s.waitFence(ctx, n, failedLimit+retriedLimit, "has not been fenced", verifiedOff)
}

// fencedOnceTheBMCWorks mends the controller, waits for the next try and gives
// the node its power and agent back: sooner, a slow or late order would hit it.
func fencedOnceTheBMCWorks(ctx context.Context, s *Sandbox, n *Node) error {
	n.bmc.Clear()
	if err := s.waitFence(ctx, n, retriedLimit, "has not been fenced since its BMC works", verifiedOff); err != nil {
		return err
	}
	if err := startAgent(ctx, s, n); err != nil {
		return err
	}
	return s.waitEnsemble(ctx)
}

// neverSwitchedOff: what has no power is not ordered off.
func neverSwitchedOff(s *Sandbox, n *Node, began cluster.Instant) error {
	for _, e := range s.history.Since(began) {
		if e.Kind == KindPower && e.Node == n.Plan.Name && e.By == "bmc" && !e.On && e.At >= began && e.Text == wasOn(true) {
			return fmt.Errorf("%s was powered off %v after it had lost its power", e.Node, e.At.Sub(began))
		}
	}
	return nil
}

// fencerFaults kill the fencer in the middle of a fence, once at each stage;
// where the record is further already when it is seen, there.
func fencerFaults() []Fault {
	var out []Fault
	for _, stage := range []cluster.FenceStage{cluster.FenceClaimed, cluster.FencePowerOff, cluster.FenceVerify, cluster.FenceFenced, cluster.FenceRecover} {
		name := "fencer-killed-" + strings.ReplaceAll(string(stage), "_", "-")
		out = append(out, Fault{Name: name, Needs: 3, Extra: true,
			Text:    fmt.Sprintf("power loss; the fencer's agent killed in stage %s", stage),
			prepare: secondaryNode, inject: slowFence, outcome: fencerKilled(name, stage), heal: allAgents})
	}
	return out
}

// secondaryNode is a node whose loss leaves the role and the ensemble's quorum
// alone: a hypervisor, or a coordinator that neither is primary nor leads.
func secondaryNode(ctx context.Context, s *Sandbox) (*Node, error) {
	p, err := s.primary()
	if err != nil {
		return nil, err
	}
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range slices.Backward(s.nodes) {
		if n != p && n != leader {
			return n, nil
		}
	}
	return nil, errors.New("every node is primary or leads the ensemble")
}

// slowFence takes the node's power; its BMC is slow to answer, so that the
// stages of its fence last.
func slowFence(_ context.Context, _ *Sandbox, n *Node) error {
	n.bmc.Latency(200 * time.Millisecond)
	return n.Off()
}

// stageOrder is how far a fence has come.
var stageOrder = []cluster.FenceStage{cluster.FenceClaimed, cluster.FenceSoft, cluster.FencePowerOff, cluster.FenceVerify,
	cluster.FenceFenced, cluster.FenceRecover, cluster.FenceDone}

func fencerKilled(fault string, at cluster.FenceStage) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		limited, cancel := context.WithTimeout(ctx, s.timing().SuspectAfter()+20*time.Second)
		defer cancel()
		var seen cluster.FenceRecord
		begun := cluster.Instant(s.started.Load())
		err := s.store.wait(limited, func(snap *cluster.Snapshot) error {
			f := snap.Nodes[n.Plan.Name].Fence
			if f.Present && f.SeenAt >= begun && slices.Index(stageOrder, f.Value.Stage) >= slices.Index(stageOrder, at) {
				seen = f.Value
				return nil
			}
			return fmt.Errorf("the fence of %s does not reach %s: it is in %q", n.Plan.Name, at, f.Value.Stage)
		})
		if err != nil {
			return err
		}
		fencer := s.Node(seen.By)
		if fencer == nil {
			return fmt.Errorf("the fence of %s is by %q, which is no node", n.Plan.Name, seen.By)
		}
		if err := fencer.Signal(ctx, progAgent, unix.SIGKILL); err != nil {
			return err
		}
		s.history.Add(Entry{Kind: KindNote, Name: fault, Text: fmt.Sprintf("the agent of %s was killed in stage %s", fencer.Plan.Name, seen.Stage)})
		// Back as soon as another is primary, as its unit would be: a node
		// without an agent is one to fence.
		if err := roleMoves(ctx, s, fencer); err != nil {
			return err
		}
		if err := fencer.ensureRunning(ctx, progAgent); err != nil {
			return err
		}
		return s.waitFence(ctx, n, failedLimit, "has not been fenced by the next primary", verifiedOff)
	}
}

// allAgents brings every node's agent back.
func allAgents(ctx context.Context, s *Sandbox, n *Node) error {
	n.bmc.Clear()
	for _, other := range s.nodes {
		if err := startAgent(ctx, s, other); err != nil {
			return err
		}
	}
	return s.waitEnsemble(ctx)
}

// powerFaults take the power of more than one node.
func powerFaults() []Fault {
	return []Fault{
		{Name: "two-nodes", Text: "power loss of two nodes at once", Needs: 3, NeedsNodes: 5, Extra: true,
			prepare: secondaryNode, inject: twoOff, outcome: allFenced, heal: allAgents},
		{Name: "majority-lost", Text: "power loss of all coordinators but the primary, for 15 s", Needs: 3, Extra: true, spares: true,
			prepare: primaryNode, inject: othersOff, outcome: watchFor(15 * time.Second), heal: ensemblePower},
		coldStart(nil, 0), coldStart(nil, 10*time.Second), coldStart(nil, 60*time.Second),
	}
}

// twoOff takes the power of the node and of the next that may be lost with it.
func twoOff(ctx context.Context, s *Sandbox, n *Node) error {
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		return err
	}
	for _, other := range slices.Backward(s.nodes) {
		if other == n || other == leader || other.Plan.Name == s.holder() {
			continue
		}
		s.struck = append(s.struck, other.Plan.Name)
		var first, second error
		var wg sync.WaitGroup
		wg.Go(func() { first = n.Off() })
		wg.Go(func() { second = other.Off() })
		wg.Wait()
		return errors.Join(first, second)
	}
	return errors.New("there is no second node that could be lost")
}

// allFenced waits until every node that was hit has been verified off.
func allFenced(ctx context.Context, s *Sandbox, _ *Node) error {
	for _, name := range s.struck {
		if err := s.waitFence(ctx, s.Node(name), failedLimit, "has not been fenced", verifiedOff); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sandbox) offAtOnce(nodes []*Node) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.Off() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func othersOff(_ context.Context, s *Sandbox, n *Node) error {
	s.storeAway(true)
	return s.offAtOnce(s.others(n))
}

// ensemblePower gives every node its power back.
func ensemblePower(ctx context.Context, s *Sandbox, _ *Node) error {
	if err := s.powerOnAll(); err != nil {
		return err
	}
	return s.storeBack(ctx, func(*Node) error { return nil })
}

// coldStart is the loss of all power, the nodes coming back one after the other
// in the order given by their indices; none: as they are numbered.
func coldStart(order []int, gap time.Duration) Fault {
	name, text := fmt.Sprintf("cold-start-%d", int(gap.Seconds())), "all power lost, all nodes back at once"
	if gap > 0 {
		text = fmt.Sprintf("all power lost, a coordinator back each %v", gap)
	}
	if len(order) > 0 {
		digits := ""
		for _, i := range order {
			digits += fmt.Sprint(i + 1)
		}
		name, text = name+"-"+digits, text+", in the order "+digits
	}
	return Fault{Name: name, Text: text, Needs: 1, Extra: true, spares: true, prepare: primaryNode,
		inject: func(_ context.Context, s *Sandbox, _ *Node) error {
			s.storeAway(true)
			return s.offAtOnce(s.nodes)
		},
		outcome: func(ctx context.Context, s *Sandbox, _ *Node) error { return s.comeBack(ctx, name, order, gap) },
		heal:    ensemblePower, verdict: startedOnce}
}

// coldStartNamed understands a cold start's name with the order of the nodes
// behind it.
func coldStartNamed(name string) (Fault, bool) {
	var gap int
	var digits string
	if n, _ := fmt.Sscanf(name, "cold-start-%d-%s", &gap, &digits); n != 2 || len(digits) > 5 || gap < 0 || gap > 600 {
		return Fault{}, false
	}
	var order []int
	for _, d := range digits {
		i := int(d - '1')
		if i < 0 || i > 4 || slices.Contains(order, i) {
			return Fault{}, false
		}
		order = append(order, i)
	}
	f := coldStart(order, time.Duration(gap)*time.Second)
	return f, f.Name == name
}

// comeBack powers the coordinators on in that order, those that it does not name
// last, and waits for one primary once the ensemble has a quorum. The
// hypervisors come with the last of them: the order is the coordinators' matter.
func (s *Sandbox) comeBack(ctx context.Context, fault string, order []int, gap time.Duration) error {
	var nodes []*Node
	for _, i := range order {
		if i < len(s.coordinators()) {
			nodes = append(nodes, s.coordinators()[i])
		}
	}
	for _, n := range s.coordinators() {
		if !slices.Contains(nodes, n) {
			nodes = append(nodes, n)
		}
	}
	if gap == 0 {
		if err := s.powerOnAll(); err != nil {
			return err
		}
		return s.onePrimary(ctx, fault)
	}
	var judged error
	var wg sync.WaitGroup
	defer wg.Wait()
	led := false
	for i, n := range nodes {
		if i > 0 {
			if err := pause(ctx, gap); err != nil {
				return err
			}
		}
		if err := n.On(); err != nil {
			return err
		}
		on := len(slices.DeleteFunc(s.coordinators(), func(c *Node) bool { return !c.Powered() }))
		if !led && 2*on > len(s.coordinators()) {
			led = true
			wg.Go(func() { judged = s.onePrimary(ctx, fault) })
		}
	}
	if err := s.powerOnAll(); err != nil {
		return err
	}
	wg.Wait()
	return judged
}

// onePrimary waits for the quorum and then, at most coldLimit, for a primary.
func (s *Sandbox) onePrimary(ctx context.Context, fault string) error {
	led, err := s.quorum(ctx, ensembleTimeout)
	if err != nil {
		return err
	}
	s.storeAway(false)
	if err := s.waitHolder(ctx, coldLimit, func(cluster.NodeID) bool { return s.store.latest().Lease.SeenAt >= led.Add(-time.Second) }); err != nil {
		return fmt.Errorf("no primary %v after the ensemble had its quorum: %w", coldLimit, err)
	}
	s.history.Add(Entry{Kind: KindNote, Name: fault, Text: fmt.Sprintf("%s is primary %.1f s after the ensemble had its quorum", s.holder(), now().Sub(led).Seconds())})
	return nil
}

// startedOnce: a cold start starts each service once.
func startedOnce(s *Sandbox, _ *Node, began cluster.Instant) error {
	starts := map[string]int{}
	for _, e := range s.history.Since(began) {
		if e.Kind == KindHook && e.On && e.At >= began {
			if starts[e.Name]++; starts[e.Name] > 1 {
				return fmt.Errorf("service %s was started %d times, last on %s", e.Name, starts[e.Name], e.Node)
			}
		}
	}
	return nil
}
