package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// message is one netlink message.
func message(typ, flags uint16, payload []byte) []byte {
	m := native.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(payload)))
	m = native.AppendUint16(m, typ)
	m = native.AppendUint16(m, flags)
	return append(append(m, make([]byte, 8)...), payload...)
}

// TestADumpThatFailsIsNoEmptyOne: the kernel tells a failure in three ways, and
// each would else read as "no (further) address is there".
func TestADumpThatFailsIsNoEmptyOne(t *testing.T) {
	const typ = unix.RTM_NEWADDR
	number := func(n int32) []byte { return native.AppendUint32(nil, uint32(n)) }
	for name, c := range map[string]struct {
		datagram []byte
		done     bool
		want     error
		found    int
	}{
		"a part":                     {datagram: append(message(typ, 0, number(1)), message(typ, 0, number(2))...), found: 2},
		"the end":                    {datagram: message(unix.NLMSG_DONE, 0, number(0)), done: true},
		"an end without a number":    {datagram: message(unix.NLMSG_DONE, 0, nil), done: true},
		"a part and the end":         {datagram: append(message(typ, 0, number(1)), message(unix.NLMSG_DONE, 0, number(0))...), done: true, found: 1},
		"refused":                    {datagram: message(unix.NLMSG_ERROR, 0, number(-int32(unix.EPERM))), done: true, want: unix.EPERM},
		"failed in its middle":       {datagram: append(message(typ, 0, number(1)), message(unix.NLMSG_DONE, 0, number(-int32(unix.ENOMEM)))...), done: true, want: unix.ENOMEM, found: 1},
		"met a change":               {datagram: message(typ, unix.NLM_F_DUMP_INTR, number(1)), done: true, want: unix.EINTR},
		"met a change, told at last": {datagram: message(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, number(0)), done: true, want: unix.EINTR},
	} {
		found := 0
		done, err := readAnswers(c.datagram, typ, func([]byte) { found++ })
		if done != c.done || found != c.found || !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: done %v, %d found, %v; want %v, %d, %v", name, done, found, err, c.done, c.found, c.want)
		}
	}
}

// inProcess runs f with a guard of this process in a namespace; its own thread
// stays there. The gate is there and shut.
func inProcess(t *testing.T, c cluster.Clock, f func(g *Guard, b *bed)) {
	b := newBed(t, true)
	b.kill()
	inNamespace(t, b.host, func() {
		g := openForTest(t, b, c)
		defer g.close()
		g.restoreGate()
		f(g, b)
	})
}

// holding begins the primary role there, with all addresses, for so long.
func holding(t *testing.T, g *Guard, epoch cluster.Epoch, lasts time.Duration) bool {
	d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: g.clock.Now().Add(lasts)}
	err := g.begin(context.Background(), d)
	if err == nil {
		err = g.present(epoch, all)
	}
	if err != nil {
		t.Error(err)
	}
	return err == nil
}

// TestARoleIsNotCleanWhileTheKernelsAddressesCannotBeRead breaks the guard's
// netlink socket. Neither End nor Withdraw may then say that all is gone, the
// fault is told after G, and the end goes on until it is true.
func TestARoleIsNotCleanWhileTheKernelsAddressesCannotBeRead(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		if !holding(t, g, 1, time.Minute) {
			return
		}
		g.addrs.mu.Lock()
		whole := g.addrs.sock.fd
		g.addrs.sock.fd = -1
		g.addrs.mu.Unlock()
		if err := g.withdraw(1); !errors.Is(err, unix.EBADF) {
			t.Errorf("Withdraw: %v, want the failure to read", err)
		}
		if _, err := g.state(context.Background()); err == nil {
			t.Error("the state is told although the kernel's addresses cannot be read")
		}
		if res := g.preflight(context.Background(), cluster.PreflightRequest{Addresses: all}); len(res.Problems) == 0 {
			t.Error("pre-flight finds nothing against serving")
		}
		g.reconcile()
		ctx, cancel := context.WithTimeout(context.Background(), 2*g.cfg.Grace)
		defer cancel()
		if err := g.end(ctx, cluster.OwnerPrimary, 1); err == nil {
			t.Error("End: nothing is verified, and yet no error")
		}
		g.mu.Lock()
		late, dirty := g.faults["end of primary"], g.faults["addresses"]
		g.mu.Unlock()
		if !strings.Contains(late, "read the kernel's addresses") || dirty == "" {
			t.Errorf("faults after G: %q and %q, want both", late, dirty)
		}
		d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 2, Deadline: g.clock.Now().Add(time.Minute)}
		if err := g.begin(context.Background(), d); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("Begin beside what is not verified gone: %v, want ErrRefused", err)
		}
		g.addrs.mu.Lock()
		g.addrs.sock.fd = whole
		g.addrs.mu.Unlock()
		g.work.Wait()
		g.reconcile()
		g.mu.Lock()
		faults := len(g.faults)
		g.mu.Unlock()
		if n := b.kernelHas(all...); n != 0 || faults != 0 {
			t.Errorf("once it can be read again: %d addresses, %d faults", n, faults)
		}
	})
}

// TestAStuckPartOfAnEndHoldsUpNothingElse holds the lock of one resource, as a
// kernel does that is slow at it: the others end all the same, and the end is
// not verified before the last of it.
func TestAStuckPartOfAnEndHoldsUpNothingElse(t *testing.T) {
	for _, stuck := range []string{"addresses", "gate", "alarm"} {
		t.Run(stuck, func(t *testing.T) {
			inProcess(t, clock, func(g *Guard, b *bed) {
				if !holding(t, g, 1, time.Minute) {
					return
				}
				spec := cluster.ServiceSpec{Name: "sleeper", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}}
				if err := g.startService(context.Background(), cluster.OwnerPrimary, 1, spec); err != nil {
					t.Error(err)
					return
				}
				g.mu.Lock()
				pid := g.roles[cluster.OwnerPrimary].services["sleeper"].main.Pid()
				g.mu.Unlock()
				lock := map[string]func() func(){
					"addresses": func() func() { g.addrs.mu.Lock(); return g.addrs.mu.Unlock },
					"gate":      func() func() { g.gate.mu.Lock(); return g.gate.mu.Unlock },
					"alarm":     func() func() { return stuckAlarm(g) },
				}[stuck]
				unlock := lock()
				ctx, cancel := context.WithTimeout(context.Background(), grace)
				defer cancel()
				if err := g.end(ctx, cluster.OwnerPrimary, 1); err == nil {
					t.Errorf("End returned although the %s could not be ended", stuck)
				}
				if alive(pid) {
					t.Error("the service lives on")
				}
				if n := b.kernelHas(all...); stuck == "gate" && n != 0 {
					t.Errorf("%d addresses stay", n)
				}
				if n := b.opened(); stuck == "addresses" && n != 0 {
					t.Errorf("the gate is open for %d addresses", n)
				}
				unlock()
				g.work.Wait()
				if n := b.opened() + b.kernelHas(all...); n != 0 {
					t.Errorf("%d left once nothing was stuck", n)
				}
			})
		})
	}
}

// stuckAlarm begins the primary role's end as an alarm's thread does that then
// hangs in the kernel; what it returns ends that.
func stuckAlarm(g *Guard) func() {
	g.addrs.mu.Lock() // it hangs at the first of it
	g.gate.mu.Lock()
	g.mu.Lock()
	e := g.markEnded(g.roles[cluster.OwnerPrimary], "test")
	g.mu.Unlock()
	go e.finish()
	return func() { g.gate.mu.Unlock(); g.addrs.mu.Unlock() }
}

// TestAnEndShutsTheGateBeforeItTakesTheAddresses listens to the kernel: when the
// first address goes, the gate's change has been told already. The other way
// round, a frame could go out under an address that somebody else may have.
func TestAnEndShutsTheGateBeforeItTakesTheAddresses(t *testing.T) {
	inProcess(t, clock, func(g *Guard, _ *bed) {
		for epoch := range cluster.Epoch(5) {
			if !holding(t, g, epoch+1, time.Minute) {
				return
			}
			gate, errGate := listenTo(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
			addrs, errAddrs := listenTo(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR)
			if err := errors.Join(errGate, errAddrs); err != nil {
				t.Error(err)
				return
			}
			shutFirst := make(chan bool)
			go func() {
				runtime.LockOSThread()
				fds := []unix.PollFd{{Fd: int32(addrs), Events: unix.POLLIN}}
				_, _ = unix.Poll(fds, 2000)
				told := []unix.PollFd{{Fd: int32(gate), Events: unix.POLLIN}}
				n, _ := unix.Poll(told, 0)
				shutFirst <- n > 0
			}()
			if err := g.end(context.Background(), cluster.OwnerPrimary, epoch+1); err != nil {
				t.Error(err)
			}
			if !<-shutFirst {
				t.Error("an address went while the gate was open")
			}
			_ = unix.Close(gate)
			_ = unix.Close(addrs)
		}
	})
}

// listenTo returns a netlink socket that hears a group's news from now on.
func listenTo(protocol, group int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err == nil {
		err = errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
			unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
	}
	return fd, err
}

// TestAStopOfTheProcessIsNoFault stops the guard with a role that outlives the
// stop, and one that does not: neither a suspended host nor an end that took
// longer than G is told, since nothing was late but this process.
func TestAStopOfTheProcessIsNoFault(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, time.Minute, all...)
	for range 3 {
		b.signal(unix.SIGSTOP)
		pause(2 * grace)
		b.signal(unix.SIGCONT)
		if s := b.state(); len(s.Deadlines) != 1 || len(s.Addresses) != 3 || len(s.GateOpen) != 3 || len(s.Faults) != 0 {
			t.Fatalf("after a stop: %+v, want all held and no fault", s)
		}
	}
	deadline := b.mustExtend(1, 200*time.Millisecond)
	b.signal(unix.SIGSTOP)
	b.eventually(3*time.Second, "more than G past the deadline", func() bool { return clock.Now() > deadline.Add(2*grace) })
	b.signal(unix.SIGCONT)
	for {
		select {
		case e := <-b.client.Events():
			if e.Kind == "ended" && !strings.Contains(e.Text, "deadline passed") {
				t.Errorf("ended by another cause: %s", e.Text)
			}
			if e.Kind != "ended" {
				t.Errorf("event %+v", e)
				continue
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the role was not ended")
		}
		break
	}
	if s := b.state(); len(s.Faults) != 0 || len(s.Deadlines) != 0 {
		t.Errorf("after the end: %+v", s)
	}
}

// TestNoTickComesBeforeTheRestore restarts a guard whose ticks are close: one
// that ran before the ledger was read would take the addresses for left over.
func TestNoTickComesBeforeTheRestore(t *testing.T) {
	b := newBed(t, true)
	b.kill()
	b.cfg.Tick = 20 * time.Microsecond
	b.start()
	b.begin(1, time.Minute, all...)
	var lost []string
	quit := make(chan struct{})
	news := make(chan netlink.AddrUpdate)
	inNamespace(t, b.host, func() {
		if err := netlink.AddrSubscribe(news, quit); err != nil {
			t.Error(err)
		}
	})
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for n := range news {
			if !n.NewAddr {
				lost = append(lost, n.LinkAddress.String())
			}
		}
	}()
	for range 5 {
		b.kill()
		b.start()
	}
	ip(t, "-n", b.host, "link", "set", "up0", "down") // IPv6 goes: news that closes the subscription's wait
	close(quit)
	ip(t, "-n", b.host, "link", "set", "up0", "up")
	<-heard
	for _, l := range lost {
		if strings.HasPrefix(l, "10.77.") { // IPv4 stays with a link that is down
			t.Errorf("%s went away at a restart", l)
		}
	}
}

// TestAReadOnlyStateFolderKeepsWhatIsHeldAndServesNothingNew (I2): an epoch that
// cannot be written down is not served; those that are may go on.
func TestAReadOnlyStateFolderKeepsWhatIsHeldAndServesNothingNew(t *testing.T) {
	b := newBed(t, true)
	b.kill()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("needs to mount a tmpfs:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	b.cfg.StateFile = filepath.Join(dir, "guard.json")
	b.start()
	b.begin(7, time.Minute, all...)
	b.kill()                                                         // its lock is open for writing, which keeps the folder writable
	b.eventually(time.Second, "nothing is open there", func() bool { // a child that it was just making has its files for a moment
		return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") == nil
	})
	b.start()
	if out, err := newBedConfig(b).CombinedOutput(); err == nil || !strings.Contains(string(out), "another guard") {
		t.Errorf("a second guard: %v: %s", err, out)
	}
	b.begin(7, time.Minute, all...) // as at the agent's own restart
	b.mustExtend(7, time.Minute)
	if s := b.state(); s.MaxEpoch != 7 || len(s.Addresses) != 3 || len(s.GateOpen) != 3 {
		t.Errorf("what was held: %+v", s)
	}
	next := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 8, Deadline: clock.Now().Add(time.Minute)}
	refused := func(when string) {
		t.Helper()
		if err := b.client.Begin(b.ctx(), next); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("%s: Begin at an epoch that cannot be written down: %v, want it refused, with the folder and the cause", when, err)
		}
		if s := b.state(); s.MaxEpoch != 7 {
			t.Errorf("%s: largest epoch %d, want 7, the largest written down", when, s.MaxEpoch)
		}
	}
	refused("beside the older role")
	if s := b.state(); len(s.Deadlines) != 1 || s.Deadlines[0].Epoch != 7 || len(s.GateOpen) != 3 {
		t.Errorf("the older role after the refusal: %+v", s)
	}
	if err := b.client.End(b.ctx(), cluster.OwnerPrimary, 7); err != nil {
		t.Fatal(err)
	}
	refused("with nothing held")
	res, err := b.client.Preflight(b.ctx(), cluster.PreflightRequest{Addresses: all, Epoch: 8})
	if err != nil || !strings.Contains(strings.Join(res.Problems, " "), "could not be written down") {
		t.Errorf("pre-flight: %q %v, want the epoch named", res.Problems, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "guard.json")); err != nil {
		t.Error(err)
	}
}

// TestAnEndIsOrderedBeforeAnybodyElseRuns: what the alarm's thread has done when
// it goes back to sleep. On a busy host another thread would be milliseconds
// late, which are milliseconds of a service that runs on.
func TestAnEndIsOrderedBeforeAnybodyElseRuns(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		if !holding(t, g, 1, time.Minute) {
			return
		}
		spec := cluster.ServiceSpec{Name: "sleeper", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}}
		if err := g.startService(context.Background(), cluster.OwnerPrimary, 1, spec); err != nil {
			t.Error(err)
			return
		}
		g.mu.Lock()
		r := g.roles[cluster.OwnerPrimary]
		verify := r.end.finish
		r.end.finish = func() {} // nobody else
		r.deadline = 1
		g.mu.Unlock()
		g.expire()
		if pid := r.services["sleeper"].main.Pid(); !doomed(pid) {
			t.Error("the service is not killed")
		}
		if n := b.opened(); n != 0 {
			t.Errorf("the gate is open for %d", n)
		}
		if n := b.kernelHas(all...); n != 0 {
			t.Errorf("%d addresses stay", n)
		}
		verify()
	})
}

// doomed reports whether the process is gone or a zombie. A kill that has been
// delivered is pending no more and the process is in the kernel's hands, running
// for a moment yet; nobody but the kill can end this one, so it is waited for.
func doomed(pid int) bool {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || strings.Contains(string(raw), "State:\tZ") || strings.Contains(string(raw), "State:\tX") {
			return true
		}
	}
	return false
}
