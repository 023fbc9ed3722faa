package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

const (
	// chaosRest is how long after a bout the cluster may take to come to rest: a
	// fence that failed is tried again after a minute at most.
	chaosRest = 2 * time.Minute
	// boutLimit bounds a bout with its mending.
	boutLimit = 3 * time.Minute
)

// RunChaos builds a cluster, runs chaos on it and takes it down. Lines go to
// out as things happen.
func RunChaos(ctx context.Context, o Options, r ChaosRequest, out io.Writer) (ChaosReport, error) {
	o = o.Defaults()
	if err := r.Validate(); err != nil {
		return ChaosReport{}, err
	}
	fmt.Fprintf(out, "seed %d; starting %d coordinators and %d hypervisors\n", r.Seed, o.Coordinators, o.Hypervisors)
	s, err := Up(ctx, o)
	if err != nil {
		return ChaosReport{}, err
	}
	defer s.Down()
	return s.Chaos(ctx, r, out)
}

// Chaos runs chaos on a cluster that is up, until its time is over or an
// invariant is broken. The report is as complete as it could be made, also
// beside an error.
func (s *Sandbox) Chaos(ctx context.Context, r ChaosRequest, out io.Writer) (ChaosReport, error) {
	began := time.Now()
	rep := ChaosReport{Seed: r.Seed, Profile: s.options.Profile, Violations: []Violation{}}
	err := s.runChaos(ctx, r, &lines{out: out, began: now()}, &rep)
	rep.count(s.history.Entries())
	rep.Seconds = time.Since(began).Seconds()
	if err != nil {
		rep.Error = err.Error()
	}
	return rep, err
}

func (s *Sandbox) runChaos(ctx context.Context, r ChaosRequest, out *lines, rep *ChaosReport) error {
	kinds, err := selectTroubles(r.Troubles)
	if err != nil {
		return err
	}
	runs, err := s.Ready(ctx)
	if err != nil {
		return err
	}
	if !s.options.Workloads {
		kinds = slices.DeleteFunc(kinds, func(k kindOfTrouble) bool { return k.workloads })
	}
	if len(kinds) == 0 {
		return errors.New("nothing is left to draw: what was named is about workloads, and none run here")
	}
	for _, line := range runs {
		out.say("%s", line)
	}
	limits, err := s.measuredLimits(ctx)
	if err != nil {
		return err
	}
	life, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.store.followExpiry(life, s.timing().Grace) })
	end := time.Now().Add(r.Lasting)
	for number := max(1, r.Bout); r.Bout == number || r.Bout == 0 && time.Now().Before(end); number++ {
		b := planBout(r.Seed, number, len(s.coordinators()), len(s.nodes), kinds)
		if r.Moves > 0 {
			b.Moves = b.Moves[:min(r.Moves, len(b.Moves))]
		}
		if err := s.bout(ctx, b, limits, out, rep); err != nil || len(rep.Violations) > 0 {
			return err
		}
	}
	return nil
}

// measuredLimits measures, at rest, what the checker has to allow.
func (s *Sandbox) measuredLimits(ctx context.Context) (Limits, error) {
	noise, err := s.Noise(ctx, noiseWindow)
	if err != nil {
		return Limits{}, err
	}
	events, err := s.EventNoise(ctx)
	if err != nil {
		return Limits{}, err
	}
	return limitsOf(s.timing(), noise, events), nil
}

// bout carries out one bout, mends everything, waits for rest and checks.
func (s *Sandbox) bout(ctx context.Context, b Bout, limits Limits, out *lines, rep *ChaosReport) error {
	limited, cancel := context.WithTimeout(ctx, boutLimit)
	defer cancel()
	out.say("bout %d: %d moves", b.Number, len(b.Moves))
	if err := s.resetBudget(limited); err != nil {
		return fmt.Errorf("before bout %d: %w", b.Number, err)
	}
	if err := s.wholeBeforeBout(limited, b, out); err != nil {
		return err
	}
	judged := s.fillBefore(limited, b)
	name := fmt.Sprintf("bout %d", b.Number)
	began := now()
	s.history.Add(Entry{At: began, Kind: KindFault, Name: name, Text: stepInject})
	var wg sync.WaitGroup
	for i, m := range b.Moves {
		wg.Go(func() { s.move(limited, fmt.Sprintf("%d-%d", b.Number, i+1), m, out) })
	}
	wg.Wait()
	s.history.Add(Entry{Kind: KindFault, Name: name, Text: stepHeal})
	if err := s.mendAll(limited); err != nil {
		return fmt.Errorf("after bout %d: %w", b.Number, err)
	}
	s.history.Add(Entry{Kind: KindFault, Name: name, Text: stepHealed})
	healed := now()
	err := s.rests(ctx, name, chaosRest)
	if err == nil {
		err = s.countAfter(ctx, judged, out)
	}
	rep.Bouts++
	rep.Moves += len(b.Moves)
	s.prober.settle(ctx)
	err = errors.Join(err, s.collectPromises())
	rep.Violations = append(rep.Violations, Check(s.history.Entries(), limits)...)
	if len(rep.Violations) > 0 {
		rep.FailingBout, rep.Failing = b.Number, failingPrefix(b, began, rep.Violations[0].At)
	}
	out.say("at rest %.1f s after the mending", now().Sub(healed).Seconds())
	return err
}

// move strikes, lets the trouble last, and mends it. What cannot be done to a
// node that is down already is no error: it is told.
func (s *Sandbox) move(ctx context.Context, id string, m Move, out *lines) {
	if pause(ctx, m.At) != nil {
		return
	}
	n := s.nodes[m.Node]
	t := s.trouble(m, id)
	out.say("%s", m)
	s.history.Add(Entry{Kind: KindNote, Name: "chaos", Node: n.Plan.Name, Text: m.Trouble})
	if err := t.strike(ctx, n); err != nil {
		out.say("         %s of %s came to nothing: %v", m.Trouble, n.Plan.Name, err)
	}
	if t.mend == nil || pause(ctx, m.Lasting) != nil {
		return
	}
	s.history.Add(Entry{Kind: KindNote, Name: "chaos", Node: n.Plan.Name, Text: m.Trouble + " mended"})
	if err := t.mend(ctx, n); err != nil {
		out.say("         %s of %s was not mended: %v", m.Trouble, n.Plan.Name, err)
	}
}

// trouble is what a move does.
type trouble struct {
	strike, mend func(context.Context, *Node) error // mend nil: it passes by itself
}

func (s *Sandbox) trouble(m Move, id string) trouble {
	if t, ok := s.deviceTrouble(m); ok {
		return t
	}
	if t, ok := s.networkTrouble(m, id); ok {
		return t
	}
	if t, ok := s.workloadTrouble(m); ok {
		return t
	}
	signal := func(program string, sig unix.Signal) func(context.Context, *Node) error {
		return func(ctx context.Context, n *Node) error { return n.Signal(ctx, program, sig) }
	}
	running := func(program string) func(context.Context, *Node) error {
		return func(ctx context.Context, n *Node) error {
			if !n.Powered() {
				return nil // its programs start with it
			}
			return n.ensureRunning(ctx, program)
		}
	}
	switch m.Trouble {
	case "switch":
		wish := string(s.nodes[m.Other].Plan.Name)
		if m.Other == 2 && m.Node == 0 { // one in six, of three
			wish = cluster.NoNode
		}
		return trouble{strike: func(ctx context.Context, _ *Node) error {
			return s.patient(ctx, func(ctx context.Context) error { return s.wish(ctx, wish) })
		}}
	case "maintenance":
		set := func(on bool) func(context.Context, *Node) error {
			return func(ctx context.Context, _ *Node) error {
				return s.patient(ctx, func(ctx context.Context) error { return s.setMaintenance(ctx, on) })
			}
		}
		return trouble{set(true), set(false)}
	case "fence-order":
		return trouble{strike: func(ctx context.Context, n *Node) error {
			return s.patient(ctx, func(ctx context.Context) error { return s.orderFence(ctx, n, "chaos-"+id) })
		}}
	case "agent-kill":
		return trouble{signal(progAgent, unix.SIGKILL), running(progAgent)}
	case "agent-stop":
		return trouble{signal(progAgent, unix.SIGSTOP), signal(progAgent, unix.SIGCONT)}
	case "agent-term":
		return trouble{signal(progAgent, unix.SIGTERM), s.afterExit}
	case "guard-kill":
		return trouble{strike: signal(progGuard, unix.SIGKILL)} // started again by itself
	case "zk-kill":
		return trouble{signal(progZooKeeper, unix.SIGKILL), running(progZooKeeper)}
	case "zk-stop":
		return trouble{signal(progZooKeeper, unix.SIGSTOP), signal(progZooKeeper, unix.SIGCONT)}
	case "store-stall":
		all := func(sig unix.Signal, away bool) func(context.Context, *Node) error {
			return func(ctx context.Context, _ *Node) error {
				defer s.storeAway(away)
				return s.eachServer(func(n *Node) error { return n.Signal(ctx, progZooKeeper, sig) })
			}
		}
		return trouble{all(unix.SIGSTOP, true), all(unix.SIGCONT, false)}
	}
	return trouble{strike: func(context.Context, *Node) error { return fmt.Errorf("no trouble is named %q", m.Trouble) }}
}

// networkTrouble is what happens to a node's power and network.
func (s *Sandbox) networkTrouble(m Move, id string) (trouble, bool) {
	cutting := func(c cut) trouble {
		return trouble{
			func(_ context.Context, n *Node) error { return n.setCut(id, &c) },
			func(_ context.Context, n *Node) error { return n.setCut(id, nil) },
		}
	}
	links := func(names ...string) trouble {
		set := func(up bool) func(context.Context, *Node) error {
			return func(_ context.Context, n *Node) error {
				var errs []error
				for _, name := range names {
					errs = append(errs, n.setLink(up, name))
				}
				return errors.Join(errs...)
			}
		}
		return trouble{set(false), set(true)}
	}
	switch m.Trouble {
	case "link-down":
		return links(linkUpstream, linkCluster), true
	case "mgmt-cut":
		return links(linkMgmt), true
	case "zk-cut":
		return cutting(cut{in: true, out: true, ports: storePorts}), true
	case "zk-cut-out":
		return cutting(cut{out: true, ports: storePorts}), true
	case "zk-cut-in":
		return cutting(cut{in: true, ports: storePorts}), true
	case "node-cut":
		return cutting(cut{out: true, peer: s.nodes[m.Other].Plan.Cluster.Addr()}), true
	case "power-loss":
		return trouble{func(_ context.Context, n *Node) error { return n.Off() }, func(_ context.Context, n *Node) error { return n.On() }}, true
	}
	return trouble{}, false
}

// deviceTrouble is what is wrong with a node's BMC.
func (s *Sandbox) deviceTrouble(m Move) (trouble, bool) {
	setting := func(set func(n *Node, on bool)) trouble {
		return trouble{
			func(_ context.Context, n *Node) error { set(n, true); return nil },
			func(_ context.Context, n *Node) error { set(n, false); return nil },
		}
	}
	switch m.Trouble {
	case "bmc-unreachable":
		return setting(func(n *Node, on bool) { n.bmc.Unreachable(on) }), true
	case "bmc-lying":
		return setting(func(n *Node, on bool) { n.bmc.Lying(on) }), true
	case "bmc-password":
		return setting(func(n *Node, on bool) { n.bmc.WrongPassword(on) }), true
	case "bmc-slow":
		return setting(func(n *Node, on bool) {
			d := time.Duration(0)
			if on {
				d = 3 * time.Second
			}
			n.bmc.Slow(d)
		}), true
	}
	return trouble{}, false
}

// patient gives an operator's write two seconds; more would hold the move up.
func (s *Sandbox) patient(ctx context.Context, write func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return write(ctx)
}

// afterExit starts the agent again once it has ended in order, or the node is
// another one by then.
func (s *Sandbox) afterExit(ctx context.Context, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	was := n.lastRunning.Load()
	for was != nil && n.lastRunning.Load() == was {
		have, err := n.Programs(ctx)
		if err == nil && !have[progAgent].Running {
			return n.ensureRunning(ctx, progAgent)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("the agent of %s has not ended since its SIGTERM: %w", n.Plan.Name, err)
		}
	}
	return nil
}

// mendAll undoes whatever chaos can do, also what its moves could not.
func (s *Sandbox) mendAll(ctx context.Context) error {
	errs := make([]error, len(s.nodes))
	var wg sync.WaitGroup
	for i, n := range s.nodes {
		wg.Go(func() { errs[i] = s.mend(ctx, n) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := s.allServe(ctx); err != nil {
		return err
	}
	s.storeAway(false)
	for {
		err := s.patient(ctx, func(ctx context.Context) error {
			return errors.Join(s.setMaintenance(ctx, false), s.mendWorkloads(ctx))
		})
		if err == nil || pause(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

// fencerPatience is how long a node that a fence has taken the power of waits
// for its fencer to give it back, before somebody presses the button.
const fencerPatience = 40 * time.Second

// allServe waits until every node has power and every server of the ensemble
// serves. A fence that was under way may still take a node's power: its fencer
// gives it back, unless the fence has ended without.
func (s *Sandbox) allServe(ctx context.Context) error {
	began := now()
	var care nurse
	for {
		var waiting []*Node
		for _, n := range s.nodes {
			switch {
			case !n.Powered() && (s.leftOff(n) || now().Sub(began) > fencerPatience):
				if err := n.On(); err != nil {
					return err
				}
				fallthrough
			case !n.Powered(), n.Plan.Mode == cluster.Coordinator && s.zkMode(ctx, n) == "":
				waiting = append(waiting, n)
			}
		}
		if len(waiting) == 0 {
			return nil
		}
		care.look(ctx, waiting)
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			var names []cluster.NodeID
			for _, n := range waiting {
				names = append(names, n.Plan.Name)
			}
			return fmt.Errorf("the servers of %v do not serve: %w", names, err)
		}
	}
}

// leftOff reports whether nobody is about to give the node its power back.
func (s *Sandbox) leftOff(n *Node) bool {
	f := s.store.latest().Nodes[n.Plan.Name].Fence
	return !f.Present || f.Value.Ended() || f.Value.Stage == cluster.FenceFailed
}

func (s *Sandbox) mend(ctx context.Context, n *Node) error {
	n.bmc.Clear()
	if err := errors.Join(n.mendCuts(), n.On()); err != nil {
		return err
	}
	if err := errors.Join(n.setLink(true, linkUpstream), n.setLink(true, linkCluster), n.setLink(true, linkMgmt)); err != nil {
		return err
	}
	want := []string{progAgent}
	if n.Plan.Mode == cluster.Coordinator {
		want = append(want, progZooKeeper)
	}
	for _, program := range want {
		_ = n.Signal(ctx, program, unix.SIGCONT) // one that does not run is started below
		if err := n.ensureRunning(ctx, program); err != nil {
			return err
		}
	}
	return nil
}

// lines writes what many moves say, each line with the time since the beginning.
type lines struct {
	mu    sync.Mutex
	out   io.Writer
	began cluster.Instant
}

func (l *lines) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "%6.1f s  %s\n", now().Sub(l.began).Seconds(), fmt.Sprintf(format, args...))
}
