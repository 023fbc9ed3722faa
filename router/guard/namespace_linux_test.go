package guard

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/router"
)

// helperEnv makes the test's own binary a guard process.
const helperEnv = "PVC_GUARD_TEST_CONFIG"

func TestMain(m *testing.M) {
	if raw := os.Getenv(helperEnv); raw != "" {
		var cfg Config
		if err := json.Unmarshal([]byte(raw), &cfg); err != nil {
			panic(err)
		}
		log, _ := zap.NewDevelopment()
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		err := Run(ctx, cfg, proc.BootClock{}, log)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, "guard:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var (
	v4a = cluster.FloatingAddress{Name: "a", Prefix: netip.MustParsePrefix("10.77.0.10/24"), Interface: "up0"}
	v4b = cluster.FloatingAddress{Name: "b", Prefix: netip.MustParsePrefix("10.77.0.11/24"), Interface: "up0"}
	v6a = cluster.FloatingAddress{Name: "six", Prefix: netip.MustParsePrefix("fd77::10/64"), Interface: "up0"}
	all = []cluster.FloatingAddress{v4a, v4b, v6a}

	clock       = proc.BootClock{}
	nameCounter atomic.Int32
)

// bed is a pair of network namespaces joined by a veth: "up0" on the host that
// runs the guard, "peer0" on the one that asks it.
type bed struct {
	t          testing.TB
	host, peer string
	cfg        Config
	guard      *exec.Cmd
	log        string // file
	client     entitled
}

func newBed(t testing.TB, useGate bool) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	n := nameCounter.Add(1)
	b := &bed{t: t, host: fmt.Sprintf("pvcg%d-%dh", os.Getpid(), n), peer: fmt.Sprintf("pvcg%d-%dp", os.Getpid(), n)}
	for _, ns := range []string{b.host, b.peer} {
		ip(t, "netns", "add", ns)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		ip(t, "-n", ns, "link", "set", "lo", "up")
	}
	ip(t, "-n", b.host, "link", "add", "up0", "type", "veth", "peer", "name", "peer0", "netns", b.peer)
	for ns, dev := range map[string]string{b.host: "up0", b.peer: "peer0"} {
		host := map[string]string{b.host: "1", b.peer: "2"}[ns]
		ip(t, "-n", ns, "link", "set", dev, "up")
		ip(t, "-n", ns, "addr", "add", "10.77.0."+host+"/24", "dev", dev)
		ip(t, "-n", ns, "addr", "add", "fd77::"+host+"/64", "dev", dev, "nodad")
	}
	dir := t.TempDir()
	b.cfg = Config{Socket: filepath.Join(dir, "guard.sock"), StateFile: filepath.Join(dir, "guard.json"),
		Addresses: all, UseGate: useGate, SlicePath: "pvc.slice/" + b.host}
	t.Cleanup(func() { endServices(t, "pvc.slice/"+b.host) })
	b.client = entitled{router.NewClient(b.cfg.Socket, zap.NewNop())}
	t.Cleanup(b.client.Close)
	b.start()
	return b
}

// endServices ends what a guard that was killed has left of its services.
func endServices(t testing.TB, slice string) {
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

func ip(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start runs the guard in its namespace and waits until it answers.
func (b *bed) start() {
	b.t.Helper()
	b.guard = newBedConfig(b)
	// A file, not a pipe: a hook that outlives its guard would keep a pipe open.
	log, err := os.CreateTemp(b.t.TempDir(), "guard-*.log")
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	b.guard.Stdout, b.guard.Stderr = log, log
	b.log = log.Name()
	if err := b.guard.Start(); err != nil {
		b.t.Fatal(err)
	}
	cmd, file := b.guard, b.log
	b.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGCONT)
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if b.t.Failed() {
			raw, _ := os.ReadFile(file)
			b.t.Logf("guard's log:\n%s", raw)
		}
	})
	b.eventually(5*time.Second, "the guard answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := b.client.State(ctx)
		return err == nil
	})
}

func selfExe() string {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return exe
}

// kill ends the guard as kill -9 does.
func (b *bed) kill() {
	b.t.Helper()
	_ = b.guard.Process.Kill()
	_ = b.guard.Wait()
}

func (b *bed) signal(s os.Signal) {
	b.t.Helper()
	if err := b.guard.Process.Signal(s); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

// begin begins the primary role and presents the addresses.
func (b *bed) begin(epoch cluster.Epoch, lasts time.Duration, addrs ...cluster.FloatingAddress) cluster.Instant {
	b.t.Helper()
	deadline := clock.Now().Add(lasts)
	if err := b.client.Begin(b.ctx(), cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: deadline}); err != nil {
		b.t.Fatal(err)
	}
	if len(addrs) > 0 {
		if err := b.client.Present(b.ctx(), epoch, addrs); err != nil {
			b.t.Fatal(err)
		}
	}
	return deadline
}

// eventually polls for a condition of the outside world. A limit of a second or
// more is patience, of which a busy machine needs more.
func (b *bed) eventually(limit time.Duration, what string, ok func() bool) {
	b.t.Helper()
	if limit >= time.Second {
		limit = max(limit, 20*time.Second)
	}
	for end := time.Now().Add(limit); !ok(); {
		if time.Now().After(end) {
			b.t.Fatalf("not within %v: %s", limit, what)
		}
		pause(time.Millisecond)
	}
}

// pause waits without being a synchronisation: a poll's interval.
func pause(d time.Duration) { <-time.After(d) }

// inNamespace runs f on a thread in the namespace.
func inNamespace(t testing.TB, name string, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := netns.GetFromName(name)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// kernelHas reports which of the addresses the guard's host has now.
func (b *bed) kernelHas(addrs ...cluster.FloatingAddress) (present int) {
	inNamespace(b.t, b.host, func() {
		ifis, _ := net.InterfaceByName("up0")
		list, _ := ifis.Addrs()
		for _, a := range addrs {
			for _, l := range list {
				if l.String() == a.Prefix.String() {
					present++
				}
			}
		}
	})
	return present
}

// answers reports whether the host answers the peer for the address: ARP or ND
// first, then one echo.
func (b *bed) answers(a cluster.FloatingAddress) bool {
	_ = exec.Command("ip", "-n", b.peer, "neigh", "flush", "dev", "peer0").Run()
	return exec.Command("nsenter", "--net=/run/netns/"+b.peer, "ping", "-n", "-c1", "-W1", a.Prefix.Addr().String()).Run() == nil
}

// newBedConfig is a further guard process with the bed's configuration.
func newBedConfig(b *bed) *exec.Cmd {
	raw, _ := json.Marshal(b.cfg)
	cmd := exec.Command("nsenter", "--net=/run/netns/"+b.host, selfExe())
	cmd.Env = append(os.Environ(), helperEnv+"="+string(raw))
	return cmd
}
