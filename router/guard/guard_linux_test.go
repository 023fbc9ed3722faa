package guard

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

func TestAddressesAppearAndAreGoneAtTheDeadlineOfASilentClient(t *testing.T) {
	for name, gate := range map[string]bool{"gated": true, "ungated": false} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, gate)
			deadline := b.begin(1, 2*time.Second, all...)
			if n := b.kernelHas(all...); n != 3 {
				t.Fatalf("the kernel has %d of 3 addresses after Present", n)
			}
			for _, a := range all {
				if !b.answers(a) {
					t.Errorf("%s does not answer after Present", a)
				}
			}
			b.goneBy(deadline, gate)
		})
	}
}

// grace is G at the default timing: the protocol's bound for an end, and all that
// a test may ask for on a machine that others load, since a process that is
// killed has to run once more to die. How fast an end is otherwise, the
// benchmark tells.
const grace = 300 * time.Millisecond

// goneBy waits until every address is gone, which must not be noticeably after
// the deadline, nor before it (but without a gate, where the lifetimes of a role
// that is not renewed run out first).
func (b *bed) goneBy(deadline cluster.Instant, notBefore bool) {
	b.t.Helper()
	for looked := clock.Now(); b.kernelHas(all...) > 0; looked = clock.Now() {
		// Of the look's begin: this process may be kept from running, too.
		if late := looked.Sub(deadline); late > grace {
			b.t.Fatalf("addresses still there %v after the deadline", late)
		}
	}
	if early := deadline.Sub(clock.Now()); early > 0 && notBefore {
		b.t.Fatalf("addresses gone %v before the deadline", early)
	}
	b.t.Logf("gone at most %v after the deadline", clock.Now().Sub(deadline))
}

// TestExtendKeepsAddressesAndAShorterDeadlineIsHeeded leaves each renewal, and
// each thing that takes a program to look at, time to be late on a busy machine.
func TestExtendKeepsAddressesAndAShorterDeadlineIsHeeded(t *testing.T) {
	b := newBed(t, true)
	const lasts = 1200 * time.Millisecond
	b.begin(1, lasts, all...)
	for range 6 {
		pause(lasts / 4)
		b.mustExtend(1, lasts)
	}
	b.mustExtend(1, 10*time.Second)
	if !b.answers(v4a) || !b.answers(v6a) {
		t.Fatal("addresses do not answer although the role was extended in time")
	}
	b.goneBy(b.mustExtend(1, 500*time.Millisecond), true)
	err := b.client.Extend(b.ctx(), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: clock.Now().Add(time.Second)})
	if !errors.Is(err, cluster.ErrDeadline) {
		t.Errorf("Extend of an ended role: %v, want ErrDeadline", err)
	}
}

func (b *bed) mustExtend(e cluster.Epoch, lasts time.Duration) cluster.Instant {
	b.t.Helper()
	now := clock.Now()
	d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: e, Deadline: now.Add(lasts), Sent: now}
	if err := b.client.Extend(b.ctx(), d); err != nil {
		b.t.Fatal(err)
	}
	return d.Deadline
}

func TestWithdrawIsVerifiedAndPresentAfterItNeedsABegin(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, 5*time.Second, all...)
	if err := b.client.Withdraw(b.ctx(), 1); err != nil {
		t.Fatal(err)
	}
	if n := b.kernelHas(all...); n != 0 {
		t.Fatalf("%d addresses after Withdraw", n)
	}
	if s := b.state(); len(s.GateOpen) != 0 || len(s.Deadlines) != 1 {
		t.Errorf("after Withdraw: gate open for %v, roles %v; want none open and the role live", s.GateOpen, s.Deadlines)
	}
	if err := b.client.Present(b.ctx(), 1, all); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("Present without a new Begin: %v, want ErrRefused", err)
	}
	b.begin(1, 5*time.Second, all...)
	if !b.answers(v4a) {
		t.Error("address does not answer after Begin and Present")
	}
}

func (b *bed) state() cluster.GuardState {
	b.t.Helper()
	s, err := b.client.State(b.ctx())
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func TestAStoppedGuardAnswersNothingPastTheDeadlineAndTakesNothingBack(t *testing.T) {
	b := newBed(t, true)
	deadline := b.begin(1, time.Second, all...)
	pause(300 * time.Millisecond) // let a tick or two step the lifetimes
	b.signal(unix.SIGSTOP)
	late, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	extended := make(chan error, 1)
	b.eventually(2*time.Second, "the deadline passes", func() bool { return clock.Now() > deadline })
	if b.kernelHas(all...) == 0 {
		t.Fatal("nothing lingers, so that the gate is not tested")
	}
	for _, a := range []cluster.FloatingAddress{v4a, v6a} {
		if b.answers(a) {
			t.Errorf("%s answers past the deadline of a stopped guard", a)
		}
	}
	go func() {
		extended <- b.client.Extend(late, cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: clock.Now().Add(10 * time.Second)})
	}()
	pause(20 * time.Millisecond) // the request waits in the socket
	b.signal(unix.SIGCONT)
	woken := time.Now()
	b.eventually(time.Second, "the lingering addresses go", func() bool { return b.kernelHas(all...) == 0 })
	t.Logf("gone %v after SIGCONT", time.Since(woken))
	if err := <-extended; !errors.Is(err, cluster.ErrDeadline) {
		t.Errorf("Extend that a stopped guard read past the deadline: %v, want ErrDeadline", err)
	}
	for range 100 {
		if b.kernelHas(all...) != 0 {
			t.Fatal("an address was re-created")
		}
		pause(5 * time.Millisecond)
	}
}

func TestAKilledGuardsSuccessorKeepsTheOldDeadlineAndNoLonger(t *testing.T) {
	b := newBed(t, true)
	b.begin(7, time.Minute, all...)
	deadline := b.mustExtend(7, 1500*time.Millisecond) // not fsynced anywhere, and yet known
	b.kill()
	b.start()
	s := b.state()
	if len(s.Deadlines) != 1 || s.Deadlines[0].Deadline != deadline || s.Deadlines[0].Epoch != 7 {
		t.Fatalf("successor holds %v, want the predecessor's deadline %v", s.Deadlines, deadline)
	}
	if len(s.GateOpen) != 3 || !b.answers(v4a) {
		t.Errorf("addresses do not answer under the successor; open: %v", s.GateOpen)
	}
	b.goneBy(deadline, true)
}

func TestAKilledGuardsSuccessorEndsWhatIsPastItsDeadline(t *testing.T) {
	b := newBed(t, true)
	deadline := b.begin(3, 700*time.Millisecond, all...)
	pid := b.startHook("sleeper", "sleep 1000")
	b.kill()
	b.eventually(2*time.Second, "the deadline passes", func() bool { return clock.Now() > deadline })
	if !alive(pid) {
		t.Fatal("the hook did not survive the guard")
	}
	b.start()
	if alive(pid) || b.kernelHas(all...) > 0 {
		t.Errorf("after the restart: hook alive %v, %d addresses", alive(pid), b.kernelHas(all...))
	}
	if s := b.state(); s.MaxEpoch != 3 || len(s.Deadlines) != 0 || len(s.Services) != 0 {
		t.Errorf("after the restart: %+v", s)
	}
}

func TestASuccessorAdoptsServices(t *testing.T) {
	b := newBed(t, true)
	b.begin(3, 10*time.Second)
	pid := b.startHook("sleeper", "sleep 1000")
	b.kill()
	b.start()
	if s := b.state(); len(s.Services) != 1 || !s.Services[0].Running || s.Services[0].PID != pid {
		t.Fatalf("successor's services: %+v, want pid %d running", s.Services, pid)
	}
	if err := b.client.StopService(b.ctx(), cluster.OwnerPrimary, 3, "sleeper"); err != nil {
		t.Fatal(err)
	}
	if alive(pid) {
		t.Error("the adopted service survives StopService")
	}
}

func TestStaleEpochsAreRefusedOverARestart(t *testing.T) {
	b := newBed(t, true)
	b.begin(5, 5*time.Second, v4a)
	stale := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 4, Deadline: clock.Now().Add(time.Second)}
	check := func(when string) {
		for what, err := range map[string]error{
			"Begin": b.client.Begin(b.ctx(), stale), "Extend": b.client.Extend(b.ctx(), stale),
			"Present": b.client.Present(b.ctx(), 4, all), "Withdraw": b.client.Withdraw(b.ctx(), 4),
			"End": b.client.End(b.ctx(), cluster.OwnerPrimary, 4),
		} {
			if !errors.Is(err, cluster.ErrStaleEpoch) {
				t.Errorf("%s: %s at a stale epoch: %v", when, what, err)
			}
		}
	}
	check("while held")
	if err := b.client.End(b.ctx(), cluster.OwnerPrimary, 5); err != nil {
		t.Fatal(err)
	}
	b.kill()
	_ = os.Remove(b.cfg.ledgerPath()) // as after a reboot
	b.start()
	check("after a restart")
}

func TestForeignAddressesAreNeverTouched(t *testing.T) {
	b := newBed(t, true)
	foreign := v4b
	foreign.Prefix = v4b.Prefix
	ip(t, "-n", b.host, "addr", "add", foreign.Prefix.String(), "dev", "up0")
	b.begin(1, 5*time.Second)
	if err := b.client.Present(b.ctx(), 1, all); !errors.Is(err, cluster.ErrConflict) {
		t.Errorf("Present of an address that somebody else has put there: %v, want ErrConflict", err)
	}
	if n := b.kernelHas(v4a, v6a); n != 0 {
		t.Errorf("%d of the others were added all the same", n)
	}
	if err := b.client.Present(b.ctx(), 1, []cluster.FloatingAddress{v4a}); err != nil {
		t.Fatal(err)
	}
	// Ours is a sibling of foreign ones in the same subnet: they must survive it.
	if err := b.client.End(b.ctx(), cluster.OwnerPrimary, 1); err != nil {
		t.Fatal(err)
	}
	if out := ip(t, "-n", b.host, "addr", "show", "dev", "up0"); !strings.Contains(out, "10.77.0.11/24") || !strings.Contains(out, "10.77.0.1/24") {
		t.Errorf("a foreign address is gone:\n%s", out)
	}
}

// TestForeignAddressesBehindOursInItsSubnetSurviveIt: the kernel would take them
// away with the first of the subnet, which is ours.
func TestForeignAddressesBehindOursInItsSubnetSurviveIt(t *testing.T) {
	b := newBed(t, true)
	inNamespace(t, b.host, func() {
		for _, name := range []string{"all", "up0"} { // either would be enough
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/promote_secondaries", []byte("0"), 0o600); err != nil {
				t.Error(err)
			}
		}
	})
	first := cluster.FloatingAddress{Name: "first", Prefix: netip.MustParsePrefix("10.79.0.10/24"), Interface: "up0"}
	b.begin(1, time.Minute, first)
	ip(t, "-n", b.host, "addr", "add", "10.79.0.11/24", "dev", "up0")
	if err := b.client.End(b.ctx(), cluster.OwnerPrimary, 1); err != nil {
		t.Fatal(err)
	}
	out := ip(t, "-n", b.host, "addr", "show", "dev", "up0")
	if strings.Contains(out, "10.79.0.10/") || !strings.Contains(out, "10.79.0.11/24") {
		t.Errorf("want ours gone and the foreign address there:\n%s", out)
	}
}

func TestAnAddressOfOursOnASecondaryGoesAndOnePrimaryLostComesBack(t *testing.T) {
	b := newBed(t, true)
	ip(t, "-n", b.host, "addr", "add", "10.77.0.10/24", "dev", "up0", "label", "up0:pvc")
	b.eventually(time.Second, "an address with our mark goes from a secondary", func() bool { return b.kernelHas(v4a) == 0 })
	b.begin(1, 5*time.Second, all...)
	ip(t, "-n", b.host, "addr", "del", "10.77.0.10/24", "dev", "up0")
	b.eventually(time.Second, "a vanished address comes back", func() bool { return b.kernelHas(v4a) == 1 })
	b.event("address_lost")
	if !b.answers(v4a) {
		t.Error("the address that came back does not answer")
	}
}

// event waits for an event of the kind.
func (b *bed) event(kind string) cluster.GuardEvent {
	b.t.Helper()
	for {
		select {
		case e := <-b.client.Events():
			if e.Kind == kind {
				return e
			}
		case <-time.After(20 * time.Second):
			b.t.Fatalf("no event %q", kind)
		}
	}
}

func TestAFirewallFlushTakesTheAddressesAwayUntilALaterRenewal(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, 5*time.Second, all...)
	before := clock.Now()
	nft := exec.Command("nsenter", "--net=/run/netns/"+b.host, "nft", "flush", "ruleset")
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.eventually(time.Second, "the addresses go after a flush", func() bool { return b.kernelHas(all...) == 0 })
	b.event("gate_lost")
	if s := b.state(); !s.Gate || len(s.Faults) == 0 || len(s.GateOpen) != 0 {
		t.Errorf("after a flush: gate %v, open %v, faults %q; want it made anew, shut, and a fault", s.Gate, s.GateOpen, s.Faults)
	}
	old := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: before.Add(5 * time.Second), Sent: before}
	if err := b.client.Extend(b.ctx(), old); err != nil {
		t.Fatal(err)
	}
	if b.kernelHas(all...) != 0 {
		t.Error("the addresses came back by a renewal that was sent before the flush")
	}
	b.mustExtend(1, 5*time.Second)
	if !b.answers(v4a) || !b.answers(v6a) {
		t.Error("the addresses do not answer after a renewal that was sent after the flush")
	}
	if s := b.state(); len(s.Faults) != 0 || len(s.GateOpen) != 3 {
		t.Errorf("after the renewal: faults %q, open %v", s.Faults, s.GateOpen)
	}
}

func TestTheHolderAsAClientReachesAnAddressThatIsElsewhere(t *testing.T) {
	b := newBed(t, true)
	ip(t, "-n", b.peer, "addr", "add", v4a.Prefix.String(), "dev", "peer0")
	ip(t, "-n", b.peer, "addr", "add", v6a.Prefix.String(), "dev", "peer0", "nodad")
	for _, a := range []cluster.FloatingAddress{v4a, v6a} {
		if err := exec.Command("nsenter", "--net=/run/netns/"+b.host, "ping", "-n", "-c1", "-W1", a.Prefix.Addr().String()).Run(); err != nil {
			t.Errorf("a secondary cannot reach %s at its holder: %v", a, err)
		}
	}
}

func TestPreflightFindsWhatStandsAgainstServing(t *testing.T) {
	b := newBed(t, true)
	ip(t, "-n", b.peer, "addr", "add", v4a.Prefix.String(), "dev", "peer0")
	ip(t, "-n", b.peer, "addr", "add", v6a.Prefix.String(), "dev", "peer0", "nodad")
	missing := cluster.FloatingAddress{Name: "gone", Prefix: v4b.Prefix, Interface: "nope0"}
	q := cluster.PreflightRequest{Addresses: append([]cluster.FloatingAddress{missing}, v4a, v6a), Conflicts: true, Timeout: 150 * time.Millisecond,
		Services: []cluster.ServiceSpec{{Name: "x", Kind: cluster.ServiceHook, Command: []string{"/nonexistent"}}}}
	res, err := b.client.Preflight(b.ctx(), q)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(res.Problems, "\n")
	for _, want := range []string{"nope0", "address a=", "address six=", "/nonexistent"} {
		if !strings.Contains(text, want) {
			t.Errorf("no problem names %q in:\n%s", want, text)
		}
	}
	mac, _ := exec.Command("nsenter", "--net=/run/netns/"+b.peer, "cat", "/sys/class/net/peer0/address").Output()
	out := ip(t, "-n", b.peer, "-o", "link", "show", "peer0")
	if _, after, found := strings.Cut(out, "link/ether "); found {
		mac = []byte(strings.Fields(after)[0])
	}
	res, err = b.client.Preflight(b.ctx(), cluster.PreflightRequest{Addresses: []cluster.FloatingAddress{v4a, v6a}, Conflicts: true, KnownMACs: []string{string(mac)}, Timeout: 100 * time.Millisecond})
	if err != nil || len(res.Problems) != 0 {
		t.Errorf("the holder's own answer counts as a conflict: %v %v", res.Problems, err)
	}
}

// startHook starts a shell that writes its grandchild's pid, and returns its own pid.
func (b *bed) startHook(name, script string, check ...string) int {
	b.t.Helper()
	spec := cluster.ServiceSpec{Name: name, Kind: cluster.ServiceHook, Command: []string{"/bin/sh", "-c", script}, Check: check, StopTimeout: time.Second}
	if err := b.client.StartService(b.ctx(), cluster.OwnerPrimary, b.state().MaxEpoch, spec); err != nil {
		b.t.Fatal(err)
	}
	for _, s := range b.state().Services {
		if s.Name == name {
			return s.PID
		}
	}
	b.t.Fatalf("service %s is not in the state", name)
	return 0
}

// alive reports whether the process runs; a zombie does not.
func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(raw), ") Z")
}

func TestAHookAndItsEscapedGrandchildAreGoneAtTheDeadline(t *testing.T) {
	b := newBed(t, true)
	file := filepath.Join(t.TempDir(), "pid")
	deadline := b.begin(1, 1500*time.Millisecond)
	pid := b.startHook("escaper", "setsid sh -c 'echo $$ >"+file+"; exec sleep 1000' & exec sleep 1000", "test", "-s", file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	grandchild, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	if !alive(pid) || !alive(grandchild) {
		t.Fatal("hook or grandchild does not run after its check has passed")
	}
	for looked := clock.Now(); alive(pid) || alive(grandchild); looked = clock.Now() {
		if late := looked.Sub(deadline); late > grace {
			t.Fatalf("hook %v, grandchild %v, %v after the deadline", alive(pid), alive(grandchild), late)
		}
	}
	t.Logf("gone at most %v after the deadline", clock.Now().Sub(deadline))
	if early := deadline.Sub(clock.Now()); early > 0 {
		t.Errorf("killed %v before the deadline", early)
	}
	if e := b.event("ended"); e.Owner != cluster.OwnerPrimary || e.Epoch != 1 {
		t.Errorf("event %+v", e)
	}
}

func TestServicesCheckExitAndStop(t *testing.T) {
	b := newBed(t, false)
	b.begin(2, 20*time.Second)
	spec := cluster.ServiceSpec{Name: "never", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}, Check: []string{"false"}, StartTimeout: 200 * time.Millisecond}
	if err := b.client.StartService(b.ctx(), cluster.OwnerPrimary, 2, spec); !errors.Is(err, cluster.ErrDeadline) {
		t.Errorf("a check that never passes: %v, want ErrDeadline", err)
	}
	if s := b.state(); len(s.Services) != 0 {
		t.Errorf("the service that did not come up is still there: %+v", s.Services)
	}
	spec = cluster.ServiceSpec{Name: "dies", Kind: cluster.ServiceHook, Command: []string{"sh", "-c", "exit 3"}, Check: []string{"false"}}
	if err := b.client.StartService(b.ctx(), cluster.OwnerPrimary, 2, spec); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a hook that exits at once: %v", err)
	}
	pid := b.startHook("good", "sleep 1000", "true")
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for e := b.event("service_exited"); e.Name != "good"; e = b.event("service_exited") {
	}
	again := b.startHook("good", "sleep 1000", "true")
	if again == pid {
		t.Error("the dead service was not started again")
	}
	if err := b.client.StopService(b.ctx(), cluster.OwnerPrimary, 2, "good"); err != nil {
		t.Fatal(err)
	}
	if alive(again) || len(b.state().Services) != 0 {
		t.Error("the service survives StopService")
	}
}

func TestARunDiesWithItsOwnersDeadline(t *testing.T) {
	b := newBed(t, false)
	owner := cluster.DeadlineOwner("fence:x")
	begin := cluster.RoleDeadline{Owner: owner, Epoch: 9, Deadline: clock.Now().Add(1500 * time.Millisecond)}
	if err := b.client.Begin(b.ctx(), begin); err != nil {
		t.Fatal(err)
	}
	res, err := b.client.Run(b.ctx(), cluster.RunRequest{Owner: owner, Epoch: 9, Argv: []string{"cat"}, Stdin: []byte("secret"), Timeout: time.Second})
	if err != nil || res.ExitCode != 0 || string(res.Stdout) != "secret" {
		t.Errorf("Run: %+v %v", res, err)
	}
	res, err = b.client.Run(b.ctx(), cluster.RunRequest{Owner: owner, Epoch: 9, Argv: []string{"sleep", "100"}, Timeout: time.Minute})
	if err != nil || res.ExitCode != -1 || res.Error == "" {
		t.Errorf("Run past the deadline: %+v %v", res, err)
	}
	if late := clock.Now().Sub(begin.Deadline); late > 2*time.Second || late < 0 { // how late depends on the machine
		t.Errorf("Run returned %v after its owner's deadline", late)
	}
}

func TestSweepEndsWhatAStoppedGuardHolds(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, time.Minute, all...)
	pid := b.startHook("sleeper", "sleep 1000")
	b.signal(unix.SIGSTOP)
	var err error
	waited := make(chan struct{})
	go func() { _ = b.guard.Wait(); close(waited) }()
	inNamespace(t, b.host, func() { err = Sweep(b.cfg) })
	if err != nil {
		t.Fatal(err)
	}
	<-waited
	if b.kernelHas(all...) != 0 || alive(pid) {
		t.Errorf("after Sweep: %d addresses, hook alive %v", b.kernelHas(all...), alive(pid))
	}
	b.start()
	if s := b.state(); len(s.Deadlines)+len(s.Addresses)+len(s.GateOpen) != 0 {
		t.Errorf("a guard started after Sweep holds %+v", s)
	}
}

func TestTwoGuardsDoNotServeOneStateFile(t *testing.T) {
	b := newBed(t, false)
	second := newBedConfig(b)
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another guard") {
		t.Errorf("a second guard: %v: %s", err, out)
	}
	info, err := os.Stat(b.cfg.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v, want mode 0600", info.Mode(), err)
	}
}

// TestALongStopDoesNotHoldUpExtend stops a service that ignores SIGTERM.
func TestALongStopDoesNotHoldUpExtend(t *testing.T) {
	b := newBed(t, false)
	b.begin(1, 10*time.Second)
	ready := filepath.Join(t.TempDir(), "ready")
	b.startHook("deaf", "trap '' TERM; touch "+ready+"; while :; do sleep 1; done", "test", "-e", ready)
	stopped := make(chan error, 1)
	asked := time.Now()
	go func() { stopped <- b.client.StopService(b.ctx(), cluster.OwnerPrimary, 1, "deaf") }()
	for range 20 {
		began := time.Now()
		b.mustExtend(1, 10*time.Second)
		if took := time.Since(began); took > 700*time.Millisecond {
			t.Errorf("Extend took %v beside a StopService", took)
		}
		pause(10 * time.Millisecond)
	}
	err := <-stopped
	if took := time.Since(asked); took < time.Second {
		t.Fatalf("StopService returned (%v) after %v, before its stop timeout of 1 s", err, took)
	}
	if err != nil {
		t.Error(err)
	}
	if len(b.state().Services) != 0 {
		t.Error("the deaf service survives")
	}
}
