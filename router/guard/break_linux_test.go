package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// keepExtending extends the role until the test is over or stop is called.
func (b *bed) keepExtending(e cluster.Epoch, lasts time.Duration) (stop func()) {
	ended, quit := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			now := clock.Now()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_ = b.client.Extend(ctx, cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: e, Deadline: now.Add(lasts), Sent: now})
			cancel()
			select {
			case <-quit:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// TestOneAddressThatCannotBeHadLeavesTheOthersInPlace takes one of the
// addresses away for good, by its interface or by a stranger's address, and
// looks whether the others stay without a gap while the role is renewed.
func TestOneAddressThatCannotBeHadLeavesTheOthersInPlace(t *testing.T) {
	for name, gate := range map[string]bool{"gated": true, "ungated": false} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, gate)
			ip(t, "-n", b.host, "link", "add", "extra0", "type", "veth", "peer", "name", "extra1")
			ip(t, "-n", b.host, "link", "set", "extra0", "up")
			extra := cluster.FloatingAddress{Name: "extra", Prefix: netip.MustParsePrefix("10.78.0.10/24"), Interface: "extra0"}
			b.begin(1, 2500*time.Millisecond, append([]cluster.FloatingAddress{extra}, all...)...)
			defer b.keepExtending(1, 2500*time.Millisecond)()
			ip(t, "-n", b.host, "link", "del", "extra0")
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); pause(20 * time.Millisecond) {
				if n := b.kernelHas(all...); n != 3 {
					t.Fatalf("%d of 3 addresses while another one's interface is gone", n)
				}
			}
			if s := b.state(); !strings.Contains(strings.Join(s.Faults, " "), "extra0") {
				t.Errorf("no fault names the interface: %q", s.Faults)
			}
			ip(t, "-n", b.host, "link", "add", "extra0", "type", "veth", "peer", "name", "extra1")
			b.eventually(time.Second, "the address is back with its interface", func() bool {
				return strings.Contains(ip(t, "-n", b.host, "addr", "show", "dev", "extra0"), "10.78.0.10/24")
			})
			b.eventually(time.Second, "the fault is over", func() bool { return len(b.state().Faults) == 0 })
		})
	}
}

func TestAStrangersAddressLeavesTheOthersInPlace(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, 2500*time.Millisecond, all...)
	defer b.keepExtending(1, 2500*time.Millisecond)()
	ip(t, "-n", b.host, "addr", "add", v4b.Prefix.Addr().String()+"/32", "dev", "lo")
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); pause(20 * time.Millisecond) {
		if n := b.kernelHas(v4a, v6a); n != 2 {
			t.Fatalf("%d of 2 addresses beside a stranger's third", n)
		}
	}
}

func TestARefusedPresentLeavesNothingForTheTickToAdd(t *testing.T) {
	b := newBed(t, false)
	ip(t, "-n", b.host, "addr", "add", v4b.Prefix.String(), "dev", "up0")
	b.begin(1, 5*time.Second)
	if err := b.client.Present(b.ctx(), 1, all); err == nil {
		t.Fatal("Present beside a stranger's address did not fail")
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); pause(10 * time.Millisecond) {
		if n := b.kernelHas(v4a, v6a); n != 0 {
			t.Fatalf("%d addresses of a refused Present were added later", n)
		}
	}
}

// TestAnEndThatIsCutShortIsNotForgotten reads what a guard that is killed in the
// middle of End has written down: not a deadline that is still to come.
func TestAnEndThatIsCutShortIsNotForgotten(t *testing.T) {
	b := newBed(t, false)
	b.kill()
	inNamespace(t, b.host, func() {
		g := openForTest(t, b, clock)
		path := filepath.Join(t.TempDir(), "held")
		l, _, err := openLedger(path)
		if err != nil {
			t.Error(err)
			return
		}
		g.ledger = l
		d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: clock.Now().Add(time.Minute)}
		if err := g.begin(b.ctx(), d); err != nil {
			t.Error(err)
			return
		}
		g.addrs.mu.Lock() // the kernel is slow: the end hangs here
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if err := g.end(ctx, cluster.OwnerPrimary, 1); err == nil {
			t.Error("End returned before the addresses were verified gone")
		}
		cancel()
		_, held, err := openLedger(path)
		if err != nil || len(held.Roles) != 1 || held.Roles[0].Deadline > clock.Now() {
			t.Errorf("a successor would find %+v (%v), want the role with a deadline that is over", held.Roles, err)
		}
		g.addrs.mu.Unlock()
		g.work.Wait()
		g.close()
	})
}

// TestALateFaultIsNotToldAfterTheEnd has the timer of a late ending go off when
// the ending is over, as after a stop of the process: a fault that nothing
// clears would keep everybody from feeding the watchdog.
func TestALateFaultIsNotToldAfterTheEnd(t *testing.T) {
	b := newBed(t, false)
	b.kill()
	inNamespace(t, b.host, func() {
		g := openForTest(t, b, clock)
		defer g.close()
		for epoch := range cluster.Epoch(50) {
			d := cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: epoch + 1, Deadline: clock.Now().Add(time.Minute)}
			if err := g.begin(b.ctx(), d); err != nil {
				t.Error(err)
				return
			}
			g.mu.Lock()
			e := g.markEnded(g.roles[cluster.OwnerNode], "test")
			g.mu.Unlock()
			g.stopEffects(e)
			told := make(chan struct{})
			go func() { defer close(told); g.tellLate(e, "end of node") }()
			<-e.done
			<-told
			g.mu.Lock()
			text := g.faults["end of node"]
			g.mu.Unlock()
			if text != "" {
				t.Errorf("a fault stays after the end: %s", text)
				return
			}
		}
	})
}

// TestALostAcknowledgementIsNoSuccess makes the kernel's answers not fit.
func TestALostAcknowledgementIsNoSuccess(t *testing.T) {
	b := newBed(t, false)
	b.kill()
	inNamespace(t, b.host, func() {
		a, err := openAddresses()
		if err != nil {
			t.Error(err)
			return
		}
		defer a.close()
		var many []cluster.FloatingAddress
		for i := range 200 {
			many = append(many, cluster.FloatingAddress{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 1, byte(i)}), 24), Interface: "up0"})
		}
		if err := a.add(many, 30); err != nil {
			t.Error(err)
			return
		}
		if err := a.add(many[:1], 30); err == nil {
			t.Error("adding what is there already is no error")
		}
		if err := unix.SetsockoptInt(a.sock.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Error(err)
			return
		}
		// All of them are refused (they are there); most answers do not fit.
		if err := a.add(many, 30); err == nil {
			t.Error("a batch whose refusals were lost counts as done")
		}
		found, err := a.list()
		if err == nil && len(found) < 200 {
			t.Errorf("a list of %d addresses of more than 200 counts as whole", len(found))
		}
	})
}

func TestSweepKillsTheHolderOfTheLockAndNobodyElse(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, time.Minute, all...)
	bystander := exec.Command("sleep", "100")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bystander.Process.Kill(); _ = bystander.Wait() }()
	// What the file says is an earlier holder's whose pid was given again.
	if err := os.WriteFile(b.cfg.StateFile+".lock", fmt.Append(nil, bystander.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	b.signal(unix.SIGSTOP)
	waited := make(chan struct{})
	go func() { _ = b.guard.Wait(); close(waited) }()
	var err error
	inNamespace(t, b.host, func() { err = Sweep(b.cfg) })
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-waited:
	case <-time.After(20 * time.Second):
		t.Fatal("the stopped guard still lives after Sweep")
	}
	if !alive(bystander.Process.Pid) {
		t.Error("Sweep killed a bystander")
	}
	if n := b.kernelHas(all...); n != 0 {
		t.Errorf("%d addresses after Sweep", n)
	}
}

// TestAFullRunFolderIsNotTheEndOfTheGuard starts a guard whose ledger finds no room.
func TestAFullRunFolderIsNotTheEndOfTheGuard(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, time.Minute, all...)
	pid := b.startHook("sleeper", "sleep 1000")
	b.kill()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Skip("needs to mount a tmpfs:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	slice := b.cfg.withDefaults().SlicePath
	b.cfg.Socket, b.cfg.SlicePath = filepath.Join(dir, "guard.sock"), slice
	c := *b
	c.client = newClientOf(t, b.cfg.Socket)
	c.start()
	if alive(pid) || c.kernelHas(all...) != 0 {
		t.Errorf("of what no deadline is known: hook alive %v, %d addresses", alive(pid), c.kernelHas(all...))
	}
	c.beginNode(2 * time.Second) // the right that the earlier guard knew of is not known
	c.begin(2, 2*time.Second, all...)
	if s := c.state(); len(s.Faults) != 1 || !strings.Contains(s.Faults[0], "ledger") {
		t.Errorf("faults %q, want one about the ledger", s.Faults)
	}
}

// TestARottenStateFileEndsWhatIsLeft starts a guard that must not serve.
func TestARottenStateFileEndsWhatIsLeft(t *testing.T) {
	for name, text := range map[string]string{"rubbish": "{\"v\":1,\"max_ep", "empty": "", "newer": `{"v":2,"max_epochs":{}}`, "null": "null"} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, true)
			b.begin(1, time.Minute, all...)
			pid := b.startHook("sleeper", "sleep 1000")
			b.kill()
			if err := os.WriteFile(b.cfg.StateFile, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			rotten := newBedConfig(b)
			serves := time.AfterFunc(5*time.Second, func() { _ = rotten.Process.Kill() })
			defer serves.Stop()
			out, err := rotten.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "guard's epochs") {
				t.Errorf("a guard with a rotten state file: %v: %s", err, out)
			}
			if alive(pid) || b.kernelHas(all...) != 0 {
				t.Errorf("left by a guard that nobody follows: hook alive %v, %d addresses", alive(pid), b.kernelHas(all...))
			}
		})
	}
}

// TestALedgerOfAnotherBootIsNothing: its instants look valid after a reboot.
func TestALedgerOfAnotherBootIsNothing(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, time.Minute, all...)
	pid := b.startHook("sleeper", "sleep 1000")
	b.kill()
	l, held, err := openLedger(b.cfg.ledgerPath())
	if err != nil || len(held.Roles) == 0 {
		t.Fatal(err, held)
	}
	l.bootID = "another"
	if err := l.save(held); err != nil {
		t.Fatal(err)
	}
	l.close()
	b.start()
	if s := b.state(); len(s.Deadlines)+len(s.Addresses)+len(s.Services)+len(s.GateOpen) != 0 || alive(pid) {
		t.Errorf("adopted from another boot: %+v, hook alive %v", s, alive(pid))
	}
}

// TestARottenLedgerEndsAll truncates, garbles and voids it.
func TestARottenLedgerEndsAll(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"truncated": func(p string) error { return os.Truncate(p, 10) },
		"gone":      os.Remove,
		"garbled": func(p string) error {
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			for i := range raw {
				raw[i] ^= byte(i)
			}
			return os.WriteFile(p, raw, 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, true)
			b.begin(1, time.Minute, all...)
			pid := b.startHook("sleeper", "sleep 1000")
			b.kill()
			if err := spoil(b.cfg.ledgerPath()); err != nil {
				t.Fatal(err)
			}
			b.start()
			if s := b.state(); len(s.Deadlines)+len(s.Addresses)+len(s.Services)+len(s.GateOpen) != 0 || alive(pid) {
				t.Errorf("adopted from a rotten ledger: %+v, hook alive %v", s, alive(pid))
			}
		})
	}
}

// TestAHookThatLeavesItsControlGroupIsKilledAllTheSame moves the main process.
func TestAHookThatLeavesItsControlGroupIsKilledAllTheSame(t *testing.T) {
	b := newBed(t, false)
	const root = "/sys/fs/cgroup/unified/cgroup.procs"
	if _, err := os.Stat(root); err != nil {
		t.Skip("needs the unified hierarchy there:", err)
	}
	deadline := b.begin(1, 1500*time.Millisecond)
	ready := filepath.Join(t.TempDir(), "ready")
	pid := b.startHook("mover", "echo $$ >"+root+" && touch "+ready+"; trap '' TERM; while :; do sleep 1; done", "test", "-e", ready)
	for looked := clock.Now(); alive(pid); looked = clock.Now() {
		if late := looked.Sub(deadline); late > grace {
			_ = unix.Kill(-pid, unix.SIGKILL)
			t.Fatalf("a hook that has left its control group runs %v after the deadline", late)
		}
	}
	b.eventually(time.Second, "the role is verified gone", func() bool { return len(b.state().Faults) == 0 })
}

// TestHostileClients: half a line, 100 MB, rubbish, a thousand connections.
func TestHostileClients(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, 2500*time.Millisecond, all...)
	defer b.keepExtending(1, 2500*time.Millisecond)()
	dial := func() net.Conn {
		c, err := net.Dial("unix", b.cfg.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for range 1000 {
		_, _ = dial().Write([]byte(`{"id":1,"method":"st`))
	}
	big := dial()
	go func() {
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = 'x'
		}
		for range 100 {
			if _, err := big.Write(block); err != nil {
				return
			}
		}
	}()
	for _, rubbish := range []string{"\n", "null\n", "[]\n", `{"method":"begin"}` + "\n", `{"id":1,"method":"begin","params":[]}` + "\n",
		`{"id":1,"method":"end","params":{"owner":"primary","epoch":-1}}` + "\n", `{"id":1,"method":"extend","params":{}}` + "\n", "\x00\xff\n"} {
		_, _ = dial().Write([]byte(rubbish))
	}
	flood := dial() // asks and never reads
	line, _ := json.Marshal(map[string]any{"id": 1, "method": "state", "params": struct{}{}})
	_ = flood.SetWriteDeadline(time.Now().Add(2 * time.Second))
	for range 5000 {
		if _, err := flood.Write(append(line, '\n')); err != nil {
			break
		}
	}
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); pause(20 * time.Millisecond) {
		if n := b.kernelHas(all...); n != 3 {
			t.Fatalf("%d of 3 addresses beside hostile clients", n)
		}
	}
	if s := b.state(); len(s.GateOpen) != 3 {
		t.Errorf("open: %v", s.GateOpen)
	}
}

func newClientOf(t *testing.T, socket string) entitled {
	c := entitled{router.NewClient(socket, zap.NewNop())}
	t.Cleanup(c.Close)
	return c
}

// slowClock passes so much time at each read, as on a host that is starved.
type slowClock struct {
	each  time.Duration
	reads atomic.Int64
}

func (c *slowClock) Now() cluster.Instant {
	return clock.Now().Add(time.Duration(c.reads.Add(1)) * c.each)
}

// TestASlowHostKeepsItsRole: the lease leaves more than two seconds, and a
// renewal that takes some milliseconds is no reason to give it up.
func TestASlowHostKeepsItsRole(t *testing.T) {
	b := newBed(t, true)
	b.kill()
	inNamespace(t, b.host, func() {
		slow := &slowClock{each: 10 * time.Millisecond}
		g := openForTest(t, b, slow)
		defer g.close()
		g.restoreGate()
		d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: slow.Now().Add(5 * time.Second)}
		if err := g.begin(b.ctx(), d); err != nil {
			t.Error(err)
			return
		}
		if err := g.present(1, all); err != nil {
			t.Errorf("present: %v", err)
			return
		}
		for range 5 {
			d.Deadline = slow.Now().Add(5 * time.Second)
			if err := g.extend(d); err != nil {
				t.Errorf("extend: %v", err)
			}
			g.gate.mu.Lock()
			living, _ := g.gate.living()
			g.gate.mu.Unlock()
			if len(living) != 3 {
				t.Errorf("open: %v", living)
			}
			for a, left := range living {
				if over := left - d.Deadline.Sub(slow.Now()); over > 2*slow.each+5*time.Millisecond {
					t.Errorf("%s stays open %v past the deadline", a, over)
				}
			}
		}
		if err := g.end(b.ctx(), cluster.OwnerPrimary, 1); err != nil {
			t.Error(err)
		}
	})
}

// opened counts the elements of the gate that live, as the kernel has them.
func (b *bed) opened() (count int) {
	inNamespace(b.t, b.host, func() {
		g, err := openGate(b.cfg.withDefaults().Table)
		if err != nil {
			b.t.Error(err)
			return
		}
		defer g.close()
		g.mu.Lock()
		defer g.mu.Unlock()
		living, err := g.living()
		if err != nil {
			b.t.Error(err)
		}
		count = len(living)
	})
	return count
}

// drive begins, presents and extends a role as fast as it goes until quit, and
// tells the latest deadline that was ever asked for.
func (b *bed) drive(epoch cluster.Epoch, lasts time.Duration, quit <-chan struct{}) (last func() cluster.Instant) {
	var latest atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			select {
			case <-quit:
				return
			default:
			}
			now := clock.Now()
			d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: now.Add(lasts), Sent: now}
			latest.Store(int64(d.Deadline))
			ctx, cancel := context.WithTimeout(context.Background(), lasts)
			switch n % 12 {
			case 0:
				if b.client.Begin(ctx, d) == nil {
					_ = b.client.Present(ctx, epoch, all)
				}
			case 11:
				_ = b.client.Withdraw(ctx, epoch)
			default:
				_ = b.client.Extend(ctx, d)
			}
			cancel()
		}
	}()
	return func() cluster.Instant { <-ended; return cluster.Instant(latest.Load()) }
}

// TestAGuardStoppedAnywhereOpensNothingPastTheDeadline stops the process at
// random instants of its work, for longer than the role lasts (I3).
func TestAGuardStoppedAnywhereOpensNothingPastTheDeadline(t *testing.T) {
	b := newBed(t, true)
	const lasts = 250 * time.Millisecond
	for i := range stopsAndKills {
		quit := make(chan struct{})
		last := b.drive(cluster.Epoch(i+1), lasts, quit)
		pause(30*time.Millisecond + time.Duration(rand.Int64N(int64(40*time.Millisecond))))
		b.signal(unix.SIGSTOP)
		close(quit)
		deadline := last()
		b.eventually(3*time.Second, "the deadline passes", func() bool { return clock.Now() > deadline.Add(2*time.Millisecond) })
		if n := b.opened(); n != 0 {
			t.Errorf("stop %d: %d addresses pass the gate of a stopped guard past the deadline", i, n)
		}
		b.signal(unix.SIGCONT)
		b.eventually(time.Second, "the lingering addresses go", func() bool { return b.kernelHas(all...) == 0 })
		b.eventually(time.Second, "the role is over", func() bool { return len(b.state().Deadlines) == 0 })
		if n := b.opened() + b.kernelHas(all...); n != 0 {
			t.Errorf("stop %d: something came back", i)
		}
	}
}

// stopsAndKills is how often the tests at random instants try; many more find
// what these few do not, and take as long.
const stopsAndKills = 6

// TestAGuardKilledAnywhereLeavesNothingPastTheDeadline kills the process at
// random instants of its work; its successor keeps the deadline and no longer.
func TestAGuardKilledAnywhereLeavesNothingPastTheDeadline(t *testing.T) {
	b := newBed(t, true)
	const lasts = 1200 * time.Millisecond
	for i := range stopsAndKills {
		quit := make(chan struct{})
		epoch := cluster.Epoch(i + 1)
		if err := b.client.Begin(b.ctx(), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: clock.Now().Add(lasts)}); err != nil {
			t.Fatal(err)
		}
		pid := b.startHook("sleeper", "sleep 1000")
		last := b.drive(epoch, lasts, quit)
		pause(30*time.Millisecond + time.Duration(rand.Int64N(int64(40*time.Millisecond))))
		close(quit)
		b.kill()
		deadline := last()
		b.start()
		for looked := clock.Now(); b.opened()+b.kernelHas(all...) > 0 || alive(pid); looked = clock.Now() {
			if late := looked.Sub(deadline); late > grace {
				t.Fatalf("kill %d: %d open, %d addresses, hook alive %v, %v after the deadline", i, b.opened(), b.kernelHas(all...), alive(pid), late)
			}
		}
		b.eventually(time.Second, "the role is over", func() bool { s := b.state(); return len(s.Deadlines)+len(s.Services)+len(s.Faults) == 0 })
	}
}

// TestAnInterfaceThatGoesDownAndUpIsRepaired: the kernel drops IPv6 addresses
// with the link, and duplicate address detection must not hold them back.
func TestAnInterfaceThatGoesDownAndUpIsRepaired(t *testing.T) {
	b := newBed(t, true)
	inNamespace(t, b.host, func() {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/up0/accept_dad", []byte("2"), 0o600)
	})
	b.begin(1, 2*time.Second, all...)
	defer b.keepExtending(1, 2*time.Second)()
	ip(t, "-n", b.host, "link", "set", "up0", "down")
	pause(500 * time.Millisecond)
	ip(t, "-n", b.host, "link", "set", "up0", "up")
	b.eventually(2*time.Second, "all addresses are back", func() bool { return b.kernelHas(all...) == 3 })
	b.eventually(3*time.Second, "they answer", func() bool { return b.answers(v4a) && b.answers(v6a) })
	if out := ip(t, "-n", b.host, "-6", "addr", "show", "dev", "up0", "tentative"); strings.Contains(out, "fd77::10/") {
		t.Errorf("tentative:\n%s", out)
	}
	b.eventually(2*time.Second, "no fault stays", func() bool { return len(b.state().Faults) == 0 })
}

// TestARenamedInterfaceTakesNoAddressWithIt: what is ours on a name that is not
// configured goes at the end of the role at the latest.
func TestARenamedInterfaceTakesNoAddressWithIt(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, 2*time.Second, all...)
	stop := b.keepExtending(1, 2*time.Second)
	ip(t, "-n", b.host, "link", "set", "up0", "down")
	ip(t, "-n", b.host, "link", "set", "up0", "name", "other0")
	ip(t, "-n", b.host, "link", "set", "other0", "up")
	pause(time.Second)
	stop()
	if err := b.client.End(b.ctx(), cluster.OwnerPrimary, 1); err != nil {
		t.Fatal(err)
	}
	if out := ip(t, "-n", b.host, "addr", "show", "dev", "other0"); strings.Contains(out, "10.77.0.10/") || strings.Contains(out, "fd77::10/") {
		t.Errorf("left on the renamed interface:\n%s", out)
	}
}

// TestSweepWorksOnAReadOnlyStateFolder: as a file system is after an error.
func TestSweepWorksOnAReadOnlyStateFolder(t *testing.T) {
	b := newBed(t, true)
	b.kill()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("needs to mount a tmpfs:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	b.cfg.StateFile = filepath.Join(dir, "guard.json")
	b.start()
	b.begin(1, time.Minute, all...)
	pid := b.startHook("sleeper", "sleep 1000")
	b.signal(unix.SIGSTOP)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		b.kill() // the lock's descriptor, open for writing, forbids it: as after a crash
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	inNamespace(t, b.host, func() { err = Sweep(b.cfg) })
	if err != nil || alive(pid) || b.kernelHas(all...) != 0 {
		t.Errorf("Sweep: %v, hook alive %v, %d addresses", err, alive(pid), b.kernelHas(all...))
	}
}

// TestADeadlineOfAnotherClockIsRefused: the wall clock's would never pass.
func TestADeadlineOfAnotherClockIsRefused(t *testing.T) {
	b := newBed(t, true)
	for _, deadline := range []cluster.Instant{cluster.Instant(time.Now().UnixNano()), cluster.Forever} {
		d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: deadline}
		if err := b.client.Begin(b.ctx(), d); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("Begin until %d: %v, want ErrRefused", deadline, err)
		}
		b.begin(1, 5*time.Second)
		if err := b.client.Extend(b.ctx(), d); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("Extend until %d: %v, want ErrRefused", deadline, err)
		}
		if err := b.client.End(b.ctx(), cluster.OwnerPrimary, 1); err != nil {
			t.Fatal(err)
		}
	}
}
