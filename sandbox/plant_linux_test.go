package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// wholeSandbox is a cluster at rest with the daemons of this tree.
func wholeSandbox(t *testing.T) *Sandbox {
	t.Helper()
	rootOnly(t)
	if testing.Short() {
		t.Skip("builds a whole cluster: not with -short")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", bin+"/", "../cmd/pvcnoded", "../cmd/pvcapid")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the daemons: %v\n%s", err, out)
	}
	s, err := Up(t.Context(), Options{Name: fmt.Sprintf("p%d", os.Getpid()), Dir: filepath.Join(os.TempDir(), fmt.Sprintf("pvcsb-p%d", os.Getpid())),
		BinDir: bin, Helper: []string{exe}, APIListen: "none", KeepFiles: os.Getenv("PVC_SANDBOX_KEEP") != ""})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Down)
	return s
}

// planted is how long a planted fault lasted, at least and at most.
type planted struct{ least, most time.Duration }

// plant makes a fault that does f to the primary and another coordinator.
func plant(name string, heal func(context.Context, *Sandbox, *Node) error, f func(s *Sandbox, primary, other *Node) error) Fault {
	return Fault{Name: name, Text: name, Needs: 2, prepare: primaryNode,
		inject: func(_ context.Context, s *Sandbox, primary *Node) error {
			for _, other := range s.coordinators() {
				if other != primary {
					return f(s, primary, other)
				}
			}
			return nil
		},
		outcome: watchFor(100 * time.Millisecond), heal: heal}
}

// strikeOnce runs the fault as the demo would.
func strikeOnce(t *testing.T, s *Sandbox, f Fault) (Report, Result) {
	t.Helper()
	var lines strings.Builder
	rep, err := s.Run(t.Context(), InOrder([]Fault{f}), &lines)
	if err != nil || len(rep.Results) != 1 {
		t.Fatalf("%v\n%s", err, lines.String())
	}
	t.Log(lines.String())
	for _, v := range rep.Violations {
		if !strings.Contains(lines.String(), v.Text) {
			t.Errorf("the lines do not tell %q", v.Text)
		}
	}
	return rep, rep.Results[0]
}

func broken(rep Report, invariant, says string) bool {
	return slices.ContainsFunc(rep.Violations, func(v Violation) bool { return v.Invariant == invariant && strings.Contains(v.Text, says) })
}

// in runs a program in the node's network namespace.
func in(n *Node, argv ...string) error {
	ns, err := n.namespace()
	if err != nil {
		return err
	}
	defer ns.close()
	return ns.do(func() error {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", argv, err, out)
		}
		return nil
	})
}

// address adds or removes an address as `ip` would, in one call.
func address(n *Node, a cluster.FloatingAddress, change func(*netlink.Handle, netlink.Link, *netlink.Addr) error) error {
	ns, err := n.namespace()
	if err != nil {
		return err
	}
	defer ns.close()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.fd()))
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(a.Interface)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(a.Prefix.String())
	if err != nil {
		return err
	}
	if a.Prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return change(h, link, addr)
}

func addressOn(h *netlink.Handle, l netlink.Link, a *netlink.Addr) error { return h.AddrAdd(l, a) }

func addressOff(h *netlink.Handle, l netlink.Link, a *netlink.Addr) error { return h.AddrDel(l, a) }

// frozen stops the node's guard and agent, so that they do not undo what is planted.
func frozen(n *Node, f func() error) error {
	ctx := context.Background()
	for _, program := range []string{progAgent, progGuard} {
		if err := n.Signal(ctx, program, unix.SIGSTOP); err != nil {
			return err
		}
		defer func() { _ = n.Signal(ctx, program, unix.SIGCONT) }()
	}
	return f()
}

// awaitEntry waits until the history tells it, however busy the machine is.
func awaitEntry(s *Sandbox, began cluster.Instant, is func(Entry) bool) {
	until := time.Now().Add(30 * time.Second)
	for time.Now().Before(until) && !slices.ContainsFunc(s.history.Since(began), is) {
		time.Sleep(100 * time.Microsecond)
	}
}

// near reports whether the figure, in milliseconds, can be that of the planted
// thing, given how coarsely it was measured.
func near(ms float64, p planted, slack time.Duration) bool {
	return ms >= millis(p.least-slack) && ms <= millis(p.most+slack)
}

// TestWhatIsPlantedOnARunningClusterIsReported plants what must never happen
// in the nodes of a running cluster and runs the demo's own path over it.
func TestWhatIsPlantedOnARunningClusterIsReported(t *testing.T) {
	s := wholeSandbox(t)
	for _, c := range []struct {
		address   int
		d         time.Duration
		announced bool
	}{{0, 5 * time.Millisecond, false}, {1, 20 * time.Millisecond, false}, {2, 200 * time.Millisecond, false}, {0, 200 * time.Millisecond, true}} {
		t.Run(fmt.Sprintf("second holder of %s that answers for %v, announced %v", FloatingAddresses()[c.address].Name, c.d, c.announced),
			func(t *testing.T) { secondHolder(t, s, c.address, c.d, true, c.announced) })
	}
	t.Run("second holder behind its gate", func(t *testing.T) { secondHolder(t, s, 0, 50*time.Millisecond, false, false) })
	for _, d := range []time.Duration{10 * time.Millisecond, 30 * time.Millisecond} {
		t.Run(fmt.Sprintf("silent for %v", d), func(t *testing.T) { silentGap(t, s, d) })
	}
	t.Run("second service", func(t *testing.T) { secondService(t, s) })
	t.Run("address that outlives its deadline", func(t *testing.T) { outlivesDeadline(t, s) })
	t.Run("epoch that goes back", func(t *testing.T) { epochBack(t, s) })
}

// secondHolder puts a floating address on a secondary; unannounced, so that no
// client would notice. With its gate open it answers.
func secondHolder(t *testing.T, s *Sandbox, index int, d time.Duration, answers, announced bool) {
	a := FloatingAddresses()[index]
	var p planted
	// The second holder's own ARP requests turn the client to it; the holder
	// calls it back, which it would do by itself only half a minute later.
	callBack := func(_ context.Context, _ *Sandbox, primary *Node) error { return announce(primary, a) }
	rep, res := strikeOnce(t, s, plant("second holder", callBack, func(s *Sandbox, _, other *Node) error {
		return frozen(other, func() error {
			if answers {
				if err := in(other, "nft", "flush", "ruleset"); err != nil {
					return err
				}
			}
			began := now()
			if err := address(other, a, addressOn); err != nil {
				return err
			}
			// One of IPv6 is there only once a thread of the kernel has run.
			awaitEntry(s, began, func(e Entry) bool { return e.Kind == KindHeld && e.Node == other.Plan.Name && e.Addr == a.Name && e.On })
			has := now()
			if announced {
				if err := announce(other, a); err != nil {
					return err
				}
			}
			time.Sleep(d)
			p.least = now().Sub(has)
			err := address(other, a, addressOff)
			p.most = now().Sub(began)
			return err
		})
	}))
	got := res.Addresses[index]
	slack := time.Duration(rep.EventNoiseMS*1e6) + time.Millisecond
	if !near(got.HeldTwiceMS, p, slack) {
		t.Errorf("held twice for %v ms, planted %v to %v", got.HeldTwiceMS, p.least, p.most)
	}
	if !answers {
		if got.TwiceRounds != 0 || broken(rep, "I1", a.Name) || rep.Err() != nil {
			t.Errorf("%d rounds answered twice from behind a shut gate: %v", got.TwiceRounds, rep.Err())
		}
		return
	}
	slack = 3 * probePeriod // what was proven is no longer than what was planted, and what was possible no shorter
	if got.TwiceMostMS < millis(p.least-slack) || got.TwiceMS > millis(p.most+slack) || got.TwiceRounds == 0 {
		t.Errorf("answered twice for %v to %v ms in %d rounds, planted %v to %v", got.TwiceMS, got.TwiceMostMS, got.TwiceRounds, p.least, p.most)
	}
	if !broken(rep, "I1", a.Name) || rep.Err() == nil {
		t.Errorf("reported as %v, want I1", rep.Err())
	}
	if strings.Contains(res.Line(rep.EventNoiseMS), "nothing twice") {
		t.Errorf("the line hides it: %s", res.Line(rep.EventNoiseMS))
	}
}

// announce tells everybody on the link that the address is the node's.
func announce(n *Node, a cluster.FloatingAddress) error {
	ns, err := n.namespace()
	if err != nil {
		return err
	}
	defer ns.close()
	return ns.do(func() error {
		link, err := net.InterfaceByName(a.Interface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, frame := range router.AnnounceFrames(link.HardwareAddr, a.Prefix.Addr(), false) {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
				return err
			}
		}
		return nil
	})
}

// silentGap drops everything for the floating addresses on the primary.
func silentGap(t *testing.T, s *Sandbox, d time.Duration) {
	var p planted
	_, res := strikeOnce(t, s, plant("silence", nothing, func(_ *Sandbox, primary, _ *Node) error {
		began := now()
		if err := in(primary, "nft", "add table inet plant; add chain inet plant in { type filter hook input priority -300; policy drop; }"); err != nil {
			return err
		}
		has := now()
		time.Sleep(d)
		p.least = now().Sub(has)
		err := in(primary, "nft", "delete table inet plant")
		p.most = now().Sub(began)
		return err
	}))
	for _, a := range res.Addresses {
		proven, whole := a.SilenceMS-a.UnaskedMS, a.SilenceMS
		if whole < millis(p.least-2*probePeriod) || proven > millis(p.most+3*probePeriod) {
			t.Errorf("%s: silence %v to %v ms, planted %v to %v", a.Name, proven, whole, p.least, p.most)
		}
	}
	if res.Addresses[0].StillSilent {
		t.Error("still silent though it answers again")
	}
}

// secondService runs the primary-only service once more, on a secondary, for
// longer than the machine is late with its events: what is shorter cannot be told.
func secondService(t *testing.T, s *Sandbox) {
	for _, d := range []time.Duration{15 * time.Millisecond, 150 * time.Millisecond, 1500 * time.Millisecond} {
		rep, p := runSecondService(t, s, d)
		if noise := time.Duration(rep.EventNoiseMS * 1e6); noise+noise/2 < p.least {
			secondServiceReported(t, rep, p, max(5*time.Millisecond, noise))
			return
		}
		t.Logf("events are late by %.1f ms: once more, for longer", rep.EventNoiseMS)
	}
	t.Fatal("the machine is too busy for any overlap to be told from its noise")
}

func runSecondService(t *testing.T, s *Sandbox, d time.Duration) (Report, planted) {
	var p planted
	rep, _ := strikeOnce(t, s, plant("second service", nothing, func(s *Sandbox, _, other *Node) error {
		cmd := exec.Command(s.options.Helper[0], "sandbox-hook", string(other.Plan.Name), s.hookSocket())
		began := now()
		if err := cmd.Start(); err != nil {
			return err
		}
		defer cmd.Wait()
		told := func(on bool) {
			awaitEntry(s, began, func(e Entry) bool { return e.Kind == KindHook && e.On == on })
		}
		told(true)
		has := now()
		time.Sleep(d)
		p.least = now().Sub(has)
		err := cmd.Process.Kill()
		told(false) // it runs until its end is seen, however busy the machine is
		p.most = now().Sub(began)
		return err
	}))
	return rep, p
}

func secondServiceReported(t *testing.T, rep Report, p planted, slack time.Duration) {
	t.Helper()
	if !broken(rep, "I1", "service beacon ran twice for ") || rep.Err() == nil {
		t.Fatalf("reported as %v, want I1; planted %v to %v, events late by %.1f ms", rep.Err(), p.least, p.most, rep.EventNoiseMS)
	}
	var d time.Duration
	for _, v := range rep.Violations {
		if _, after, ok := strings.Cut(v.Text, "ran twice for "); ok {
			d, _ = time.ParseDuration(strings.TrimSuffix(strings.Fields(after)[0], ";"))
		}
	}
	if !near(millis(d), p, slack) {
		t.Errorf("ran twice for %v, planted %v to %v", d, p.least, p.most)
	}
}

// outlivesDeadline stops the primary's agent and guard, opens its gate and
// makes its addresses last for ever: nothing is left that could end them.
func outlivesDeadline(t *testing.T, s *Sandbox) {
	f := plant("outlives its deadline", nil, func(_ *Sandbox, primary, _ *Node) error {
		ctx := context.Background()
		for _, program := range []string{progAgent, progGuard} {
			if err := primary.Signal(ctx, program, unix.SIGSTOP); err != nil {
				return err
			}
		}
		if err := in(primary, "nft", "flush", "ruleset"); err != nil {
			return err
		}
		for _, a := range FloatingAddresses() {
			if err := in(primary, "ip", "addr", "change", a.Prefix.String(), "dev", a.Interface, "valid_lft", "forever", "preferred_lft", "forever"); err != nil {
				return err
			}
		}
		return nil
	})
	f.outcome = watchFor(5 * time.Second)
	f.heal = func(ctx context.Context, s *Sandbox, n *Node) error {
		if err := n.Signal(ctx, progGuard, unix.SIGCONT); err != nil {
			return err
		}
		return n.Signal(ctx, progAgent, unix.SIGCONT)
	}
	rep, _ := strikeOnce(t, s, f)
	for _, a := range FloatingAddresses() {
		if !broken(rep, "I3", a.Name) {
			t.Errorf("%s: reported as %+v, want I3", a.Name, rep.Violations)
		}
	}
	if rep.Err() == nil {
		t.Error("no error")
	}
}

// epochBack writes an older epoch into the lease, as a broken writer would.
func epochBack(t *testing.T, s *Sandbox) {
	f := plant("epoch back", nothing, func(s *Sandbox, _, _ *Node) error {
		for range 50 {
			snap, err := s.store.Refresh(context.Background())
			if err != nil {
				return err
			}
			lease := snap.Lease.Value
			lease.Epoch--
			res := s.store.Commit(context.Background(), cluster.Txn{Purpose: "plant", Ops: []cluster.Op{
				cluster.Set(cluster.Key{Kind: cluster.KeyLease}, snap.Lease.Version, lease)}})
			if res.Outcome == cluster.OutcomeOK {
				return nil
			}
		}
		return fmt.Errorf("could not write the lease")
	})
	rep, _ := strikeOnce(t, s, f)
	if !broken(rep, "I2", "epoch fell") || rep.Err() == nil {
		t.Errorf("reported as %+v (%v), want I2", rep.Violations, rep.Err())
	}
}
