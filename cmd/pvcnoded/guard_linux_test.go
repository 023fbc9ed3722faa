package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/fencing"
	"pvc.internal/proc"
	"pvc.internal/router"
	"pvc.internal/router/guard"
)

var clock = proc.BootClock{}

const (
	watchdogTime = 3 * time.Second // W of these tests
	guardEnv     = "PVC_GUARD_PROCESS"
)

// guardOrder is what a guard in a process of its own is told.
type guardOrder struct {
	Dir    string
	Policy string // self_fence
}

// TestTheGuardProcess is the guard that the other tests start: with its real
// decision, and a watchdog on the other side of a socket.
func TestTheGuardProcess(t *testing.T) {
	raw := os.Getenv(guardEnv)
	if raw == "" {
		t.Skip("it is the process of other tests")
	}
	inherited := guard.InheritedWatchdog() // as early as may be
	var order guardOrder
	if err := json.Unmarshal([]byte(raw), &order); err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	timing := cluster.ProfileLAN()
	log, err := zap.NewDevelopment()
	if err != nil {
		t.Fatal(err)
	}
	err = guard.Run(ctx, guard.Config{
		Socket: filepath.Join(order.Dir, "guard.sock"), StateFile: filepath.Join(order.Dir, "guard.json"),
		SlicePath: "pvc.slice/" + filepath.Base(order.Dir), Grace: timing.Grace,
		SelfFence: guard.SelfFence{
			Device: &socketWatchdog{path: filepath.Join(order.Dir, "watchdog"), fd: -1}, Timeout: watchdogTime,
			Inherited: inherited, Store: guard.NewSystemdStore(), Decide: feedStep(timing, order.Policy),
			Reboot: rebootsIn(order),
		},
	}, clock, log)
	if err != nil {
		t.Fatal(err)
	}
}

// rebootsIn is a reboot that leaves a file behind in place of itself.
func rebootsIn(order guardOrder) func() error {
	if order.Policy != settings.SelfFenceReboot {
		return nil
	}
	return func() error {
		return errors.Join(os.WriteFile(filepath.Join(order.Dir, "rebooted"), nil, 0o600), errors.New("it is a test"))
	}
}

// socketWatchdog is a device whose driver is the test: its descriptor is a
// connection, so that it can be stored, and its last close is seen there.
type socketWatchdog struct {
	path    string
	fd      int
	granted time.Duration
}

func (d *socketWatchdog) Info() (cluster.WatchdogInfo, error) {
	return cluster.WatchdogInfo{Path: d.path, Identity: "test", Hardware: true, Timeout: d.granted}, nil
}

func (d *socketWatchdog) Arm(t time.Duration) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: d.path}); err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	d.fd = fd
	if err := d.ask("arm"); err != nil {
		_ = unix.Close(fd)
		d.fd = -1
		return 0, err
	}
	d.granted = t
	return t, nil
}

func (d *socketWatchdog) Adopt(fd int, t time.Duration) (time.Duration, error) {
	d.fd, d.granted = fd, t
	return t, d.ask("adopt")
}

func (d *socketWatchdog) Feed() error { return d.ask("feed") }

func (d *socketWatchdog) Disarm() error {
	if err := d.ask("disarm"); err != nil {
		return err
	}
	fd := d.fd
	d.fd = -1
	return unix.Close(fd)
}

func (d *socketWatchdog) Hasten(left time.Duration) error {
	return d.ask("hasten " + left.String())
}

func (d *socketWatchdog) Descriptor() int { return d.fd }

// ask waits for the answer in the kernel, as an ioctl does.
func (d *socketWatchdog) ask(what string) error {
	if _, err := unix.Write(d.fd, []byte(what+"\n")); err != nil {
		return err
	}
	answer := make([]byte, 256)
	for {
		n, err := unix.Read(d.fd, answer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if text := strings.TrimSpace(string(answer[:n])); text != "done" {
			return errors.New(text)
		}
		return nil
	}
}

// host is a machine: its watchdog, its service manager, and its guard.
type host struct {
	t      *testing.T
	dir    string
	policy string
	fake   *fencing.FakeWatchdog
	bites  chan cluster.Instant
	client *router.Client
	stores bool // the service manager stores descriptors
	guard  *exec.Cmd

	mu     sync.Mutex
	calls  map[string]int
	hang   chan struct{} // if set, the driver answers nothing until it is closed
	stored int           // descriptor; −1: none
}

func newHost(t *testing.T, policy string, stores bool) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes a network namespace")
	}
	dir, err := os.MkdirTemp("", "pvcwd") // short: sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir, policy: policy, stores: stores, bites: make(chan cluster.Instant, 1), calls: map[string]int{}, stored: -1}
	t.Cleanup(func() {
		_ = os.RemoveAll(dir)
		endServices(t, "pvc.slice/"+filepath.Base(dir))
	})
	h.fake = &fencing.FakeWatchdog{Clock: clock, Bite: func(due cluster.Instant) { h.bites <- due }}
	t.Cleanup(h.fake.Discard)
	h.drive()
	h.manage()
	h.client = router.NewClient(filepath.Join(dir, "guard.sock"), zap.NewNop())
	t.Cleanup(h.client.Close)
	h.start()
	return h
}

// endServices ends what a guard that was killed has left of its services.
func endServices(t *testing.T, slice string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, group := range proc.Services(slice) {
		if err := proc.EndGroup(ctx, group); err != nil {
			t.Error(err)
		}
	}
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		_ = os.Remove(filepath.Join(hierarchy, slice))
	}
}

// drive is the device's driver.
func (h *host) drive() {
	ln, err := net.Listen("unix", filepath.Join(h.dir, "watchdog"))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { ln.Close() })
	go func() { // ends with the listener
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go h.serve(conn) // ends with the last copy of the descriptor
		}
	}()
}

func (h *host) serve(conn net.Conn) {
	defer conn.Close()
	defer h.fake.Abandon()
	for scan := bufio.NewScanner(conn); scan.Scan(); {
		what, argument, _ := strings.Cut(scan.Text(), " ")
		h.mu.Lock()
		h.calls[what]++
		hang := h.hang
		h.mu.Unlock()
		if hang != nil {
			<-hang
		}
		var err error
		switch what {
		case "arm":
			_, err = h.fake.Arm(watchdogTime)
		case "feed":
			err = h.fake.Feed()
		case "hasten":
			var left time.Duration
			if left, err = time.ParseDuration(argument); err == nil {
				err = h.fake.Hasten(left)
			}
		case "disarm":
			err = h.fake.Disarm()
		}
		answer := "done"
		if err != nil {
			answer = err.Error()
		}
		fmt.Fprintln(conn, answer)
	}
}

// manage is the service manager's side of the store.
func (h *host) manage() {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(h.dir, "notify"), Net: "unixgram"})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close(); h.keep(-1) })
	go func() { // ends with the socket
		text, rights := make([]byte, 4096), make([]byte, 4096)
		for {
			n, m, _, _, err := conn.ReadMsgUnix(text, rights)
			if err != nil {
				return
			}
			var fds []int
			if messages, err := unix.ParseSocketControlMessage(rights[:m]); err == nil && len(messages) > 0 {
				fds, _ = unix.ParseUnixRights(&messages[0])
			}
			word := string(text[:n])
			for _, fd := range fds {
				if strings.Contains(word, "FDSTORE=1") && strings.Contains(word, "FDNAME=pvc-watchdog") {
					h.keep(fd)
				} else {
					_ = unix.Close(fd) // of a barrier: all before it is done
				}
			}
			if strings.Contains(word, "FDSTOREREMOVE=1") {
				h.keep(-1)
			}
		}
	}()
}

// keep stores a descriptor in place of what was stored.
func (h *host) keep(fd int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stored >= 0 {
		_ = unix.Close(h.stored)
	}
	h.stored = fd
}

// start runs a guard, with what the service manager has stored.
func (h *host) start() {
	h.t.Helper()
	order, _ := json.Marshal(guardOrder{Dir: h.dir, Policy: h.policy})
	// The shell's pid is the guard's: nothing between forks.
	c := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec unshare -n "$0" -test.run='^TestTheGuardProcess$'`, os.Args[0])
	c.Env = append(os.Environ(), guardEnv+"="+string(order))
	if h.stores {
		c.Env = append(c.Env, "NOTIFY_SOCKET="+filepath.Join(h.dir, "notify"))
	}
	h.mu.Lock()
	if h.stored >= 0 {
		fd, err := unix.Dup(h.stored)
		if err != nil {
			h.t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "stored")
		defer file.Close()
		c.ExtraFiles = []*os.File{file}
		c.Env = append(c.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=pvc-watchdog")
	}
	h.mu.Unlock()
	log, err := os.CreateTemp(h.dir, "log")
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.guard = c
	h.t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if h.t.Failed() {
			raw, _ := os.ReadFile(log.Name())
			h.t.Logf("the guard's log:\n%s", raw)
		}
	})
	h.eventually(10*time.Second, "the guard answers", func() bool { _, err := h.client.State(h.ctx()); return err == nil })
}

func (h *host) kill() {
	_ = h.guard.Process.Kill()
	_ = h.guard.Wait()
}

func (h *host) stop() {
	h.t.Helper()
	_ = h.guard.Process.Signal(unix.SIGTERM)
	if err := h.guard.Wait(); err != nil {
		h.t.Errorf("the guard's end: %v", err)
	}
}

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) eventually(limit time.Duration, what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(limit); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func (h *host) state() cluster.GuardState {
	h.t.Helper()
	s, err := h.client.State(h.ctx())
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *host) fed() {
	h.t.Helper()
	h.eventually(3*time.Second, "it is armed and fed", func() bool { return h.state().Watchdog.Mode == cluster.FeedFeeding })
}

// begin begins the node's right and the role, and returns a service's pid.
func (h *host) begin(epoch cluster.Epoch, node time.Duration) (deadline cluster.Instant, pid int) {
	h.t.Helper()
	deadline = clock.Now().Add(node)
	spec := cluster.ServiceSpec{Name: "service", Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}}
	err := h.client.Begin(h.ctx(), may(0), cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: deadline})
	if err == nil {
		err = h.client.Begin(h.ctx(), may(epoch), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: clock.Now().Add(time.Minute)})
	}
	if err == nil {
		err = h.client.StartService(h.ctx(), may(epoch), cluster.OwnerPrimary, epoch, spec)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return deadline, h.state().Services[0].PID
}

func (h *host) called(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls[what]
}

// bitten waits for the reset, which must have been due by the instant.
func (h *host) bitten(by cluster.Instant) {
	h.t.Helper()
	select {
	case due := <-h.bites:
		if due > by {
			h.t.Errorf("reset %v after the bound", due.Sub(by))
		}
		h.t.Logf("reset %v before the bound", by.Sub(due))
	case <-time.After(by.Sub(clock.Now()) + 2*time.Second):
		h.t.Error("not reset")
	}
}

// lives demands that nothing resets the machine for longer than its time-out.
func (h *host) lives() {
	h.t.Helper()
	select {
	case due := <-h.bites:
		h.t.Errorf("reset %v ago", clock.Now().Sub(due))
	case <-time.After(watchdogTime + 500*time.Millisecond):
	}
}

func processLives(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(raw), ") Z")
}

// TestAMachineWhoseRightEndedWithWorkHereIsReset: by the bound that others count
// (I4), also where its guard is killed meanwhile and another one follows.
func TestAMachineWhoseRightEndedWithWorkHereIsReset(t *testing.T) {
	for name, c := range map[string]struct{ stores, killed bool }{
		"left alone":                       {stores: true},
		"its guard killed":                 {stores: true, killed: true},
		"its guard killed, nothing stored": {killed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, settings.SelfFenceWatchdog, c.stores)
			h.fed()
			deadline, pid := h.begin(1, 1200*time.Millisecond)
			bound := deadline.Add(watchdogTime)
			h.eventually(3*time.Second, "it starves", func() bool { return h.state().Watchdog.Mode == cluster.FeedStarving })
			if late := clock.Now().Sub(deadline); late > time.Second { // a busy machine may keep this process from looking
				t.Errorf("starving %v after the right has ended", late)
			}
			h.eventually(3*time.Second, "the service ends", func() bool { return !processLives(pid) })
			if c.killed {
				h.kill()
				if !c.stores { // the kernel's own feeding, by and by
					bound = clock.Now().Add(watchdogTime + 200*time.Millisecond)
				}
				h.start()
				if s := h.state(); s.Watchdog.Mode != cluster.FeedStarving || s.Watchdog.Word(time.Second) != nil {
					t.Errorf("the next guard has it as %+v", s.Watchdog)
				}
			}
			h.bitten(bound)
			if h.called("arm") != 1 {
				t.Errorf("armed %d times", h.called("arm"))
			}
		})
	}
}

// TestAMachineThatOnlyStopsItsWorkLivesOn and takes work again.
func TestAMachineThatOnlyStopsItsWorkLivesOn(t *testing.T) {
	t.Parallel()
	h := newHost(t, settings.SelfFenceStopWork, true)
	h.fed()
	early := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: clock.Now().Add(time.Minute)}
	if err := h.client.Begin(h.ctx(), may(early.Epoch), early); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("a role before the node's right: %v, want ErrRefused", err)
	}
	deadline, pid := h.begin(1, 600*time.Millisecond)
	h.eventually(2*time.Second, "the service ends", func() bool { return !processLives(pid) })
	if early := deadline.Sub(clock.Now()); early > 0 {
		t.Errorf("ended %v too early", early)
	}
	h.lives()
	if _, pid := h.begin(2, time.Minute); !processLives(pid) {
		t.Error("no work any more")
	}
	h.lives()
	if s := h.state(); s.Watchdog.Mode != cluster.FeedFeeding || len(s.Faults) != 0 {
		t.Errorf("told as %+v, faults %q", s.Watchdog, s.Faults)
	}
}

// TestAMachineThatIsToRebootDoes: its work has ended, and it had some.
func TestAMachineThatIsToRebootDoes(t *testing.T) {
	t.Parallel()
	h := newHost(t, settings.SelfFenceReboot, true)
	rebooted := func() bool { _, err := os.Stat(filepath.Join(h.dir, "rebooted")); return err == nil }
	h.fed()
	if err := h.client.Begin(h.ctx(), may(0), cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: clock.Now().Add(300 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	h.lives() // a node with nothing protected only waits
	if rebooted() {
		t.Error("rebooted although nothing was here")
	}
	deadline, pid := h.begin(1, 600*time.Millisecond)
	h.eventually(2*time.Second, "it reboots", rebooted)
	if early := deadline.Sub(clock.Now()); early > 0 || processLives(pid) {
		t.Errorf("rebooted %v early, the service lives: %v", early, processLives(pid))
	}
	h.bitten(deadline.Add(watchdogTime)) // of a machine that does not reboot
}

// TestAGuardThatFollowsFeedsOn: adopted without a feeding by the way, or opened
// again where nothing was stored.
func TestAGuardThatFollowsFeedsOn(t *testing.T) {
	for name, stores := range map[string]bool{"stored": true, "not stored": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, settings.SelfFenceWatchdog, stores)
			h.fed()
			_, pid := h.begin(1, time.Minute)
			if s := h.state(); s.Watchdog.Stored != stores || s.Watchdog.Timeout != watchdogTime {
				t.Errorf("told as %+v", s.Watchdog)
			}
			for range 2 {
				h.kill()
				h.start()
			}
			h.fed()
			h.lives()
			arms := map[bool]int{true: 1, false: 3}[stores]
			if h.called("arm") != arms || !processLives(pid) || h.state().Watchdog.Stored != stores {
				t.Errorf("armed %d times, want %d; service lives: %v; %+v", h.called("arm"), arms, processLives(pid), h.state().Watchdog)
			}
		})
	}
}

// TestDisarmedOnlyByTheAgentsWordAndTheGuardsEnd: one of both is not enough.
func TestDisarmedOnlyByTheAgentsWordAndTheGuardsEnd(t *testing.T) {
	t.Parallel()
	h := newHost(t, settings.SelfFenceWatchdog, true)
	h.fed()
	h.begin(1, time.Minute)
	if err := h.client.Relinquish(h.ctx()); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("the word beside a role: %v, want ErrRefused", err)
	}
	h.stop() // as at an upgrade
	if h.called("disarm") != 0 || !h.fake.Running() {
		t.Error("disarmed without the agent's word")
	}
	h.start()
	h.fed()
	if h.called("arm") != 1 {
		t.Errorf("armed %d times, want it adopted", h.called("arm"))
	}
	if err := h.client.Relinquish(h.ctx()); err != nil {
		t.Fatal(err)
	}
	h.lives() // the word alone stops nothing
	if !h.fake.Running() || h.called("disarm") != 0 {
		t.Error("disarmed while the guard lives")
	}
	h.begin(2, time.Minute) // an agent is back: its predecessor's word is void
	if err := h.client.End(h.ctx(), cluster.OwnerPrimary, 2); err != nil {
		t.Fatal(err)
	}
	h.stop()
	if !h.fake.Running() {
		t.Error("disarmed by a word of before")
	}
	h.start()
	h.fed()
	if err := h.client.Relinquish(h.ctx()); err != nil {
		t.Fatal(err)
	}
	h.kill() // the word outlives the process
	h.start()
	h.fed()
	h.stop()
	h.mu.Lock()
	stored := h.stored
	h.mu.Unlock()
	if h.fake.Running() || stored >= 0 {
		t.Errorf("after an orderly end: running %v, stored %d", h.fake.Running(), stored)
	}
	h.start()
	h.fed()
	h.lives()
}

// TestAGuardWhoseLedgerIsLost takes nothing over, and feeds nothing before all is
// verified gone: what had been given up must stay that (I4).
func TestAGuardWhoseLedgerIsLost(t *testing.T) {
	for _, policy := range []string{settings.SelfFenceWatchdog, settings.SelfFenceStopWork} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, policy, true)
			h.fed()
			_, pid := h.begin(1, time.Minute)
			h.kill()
			if err := os.Remove(filepath.Join(h.dir, "guard.sock.held")); err != nil {
				t.Fatal(err)
			}
			bound := clock.Now().Add(watchdogTime)
			h.start()
			h.eventually(2*time.Second, "the service ends", func() bool { return !processLives(pid) })
			err := h.client.Begin(h.ctx(), may(2), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 2, Deadline: clock.Now().Add(time.Minute)})
			if !errors.Is(err, cluster.ErrRefused) {
				t.Errorf("a role by a right that nobody knows: %v, want ErrRefused", err)
			}
			if policy == settings.SelfFenceWatchdog {
				h.bitten(bound)
				return
			}
			h.fed()
			h.lives()
			if _, pid := h.begin(2, time.Minute); !processLives(pid) || h.called("arm") != 1 {
				t.Errorf("work lives: %v, armed %d times", processLives(pid), h.called("arm"))
			}
		})
	}
}

// TestAFeedingThatComesLateIsTakenBack: it was decided within the right, and
// reaches the device after that, as of a guard that was stopped in its middle.
// Others count from the right's end all the same (I4).
func TestAFeedingThatComesLateIsTakenBack(t *testing.T) {
	t.Parallel()
	h := newHost(t, settings.SelfFenceWatchdog, true)
	h.fed()
	deadline, _ := h.begin(1, 1500*time.Millisecond)
	hang := make(chan struct{})
	h.mu.Lock()
	h.hang = hang
	before := h.calls["feed"]
	h.mu.Unlock()
	h.eventually(time.Second, "a feeding is under way", func() bool { return h.called("feed") > before })
	if clock.Now() >= deadline {
		t.Skip("this host is too slow: the feeding came after the right's end")
	}
	h.eventually(3*time.Second, "the right is over", func() bool { return clock.Now() > deadline.Add(300*time.Millisecond) })
	h.mu.Lock()
	h.hang = nil
	h.mu.Unlock()
	close(hang)
	h.bitten(deadline.Add(watchdogTime))
	if h.called("hasten") != 1 {
		t.Errorf("taken back %d times", h.called("hasten"))
	}
}

// TestADeviceThatHangsHoldsUpNobody: the guard answers, the role ends when it
// has to, and the machine is reset.
func TestADeviceThatHangsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	h := newHost(t, settings.SelfFenceStopWork, true)
	h.fed()
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	h.mu.Lock()
	h.hang = hang
	h.mu.Unlock()
	bound := clock.Now().Add(watchdogTime + 600*time.Millisecond) // a feeding may be under way
	deadline, pid := h.begin(1, 1500*time.Millisecond)
	h.eventually(3*time.Second, "the service ends", func() bool { return !processLives(pid) })
	if late := clock.Now().Sub(deadline); late > time.Second { // a busy machine may keep this process from looking
		t.Errorf("ended %v late", late)
	}
	h.bitten(bound)
	h.eventually(3*time.Second, "it is told", func() bool {
		return strings.Contains(strings.Join(h.state().Faults, " "), "does not answer")
	})
	began := time.Now()
	h.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the guard's end took %v", took)
	}
}

// may is the right to what is asked of the guard at that epoch.
func may(e cluster.Epoch) cluster.Token {
	return cluster.MintToken(cluster.NewTokenWire(cluster.NodeLeaseID{Epoch: e}, "", "", false), func() error { return nil })
}
