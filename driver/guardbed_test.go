package driver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/router"
	"pvc.internal/router/guard"
)

// guardEnv makes the test's own binary a guard process.
const guardEnv = "PVC_DRIVER_TEST_GUARD"

func TestMain(m *testing.M) {
	if IsOCFShim(os.Args[0]) {
		os.Exit(OCFShim(os.Args, os.Getenv, os.Stdout, os.Stderr))
	}
	if raw := os.Getenv(guardEnv); raw != "" {
		os.Exit(runGuard(raw))
	}
	clearLeftovers()
	os.Exit(m.Run())
}

// clearLeftovers ends what runs that were killed have left behind.
func clearLeftovers() {
	dead := func(path, prefix string) bool {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), prefix), "-")
		_, err := os.Stat("/proc/" + pid)
		return errors.Is(err, fs.ErrNotExist)
	}
	namespaces, _ := filepath.Glob("/run/netns/pvcdrv*")
	for _, path := range namespaces {
		if dead(path, "pvcdrv") {
			_ = exec.Command("ip", "netns", "del", filepath.Base(path)).Run()
		}
	}
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		slices, _ := filepath.Glob(hierarchy + "/pvc.slice/drv*")
		for _, path := range slices {
			if dead(path, "drv") {
				_ = os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
				_ = os.Remove(path) // of those that are empty; the next run removes the others
			}
		}
	}
}

func runGuard(raw string) int {
	var cfg guard.Config
	if err := json.Unmarshal([]byte(raw), &cfg); err != nil {
		panic(err)
	}
	log, _ := zap.NewDevelopment()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	if err := guard.Run(ctx, cfg, proc.BootClock{}, log); err != nil {
		fmt.Fprintln(os.Stderr, "guard:", err)
		return 1
	}
	return 0
}

// bedPatience is how long a test waits for what real processes do on a busy machine.
const bedPatience = 30 * time.Second

var (
	bootClock  = proc.BootClock{}
	bedCounter atomic.Int32
)

// guardBed is a real guard that holds the node's own right.
type guardBed struct {
	t      *testing.T
	cfg    guard.Config
	client *router.Client
	netns  string // it runs there, if named
	cmd    *exec.Cmd
}

// newGuardBed starts one, in the network namespace if one is named.
func newGuardBed(t *testing.T, netns string) *guardBed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs a guard")
	}
	dir, err := os.MkdirTemp("", "pvcdrv") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &guardBed{t: t, netns: netns, cfg: guard.Config{Socket: filepath.Join(dir, "g.sock"), StateFile: filepath.Join(dir, "g.json"),
		SlicePath: fmt.Sprintf("pvc.slice/drv%d-%d", os.Getpid(), bedCounter.Add(1))}}
	t.Cleanup(b.endServices)
	b.client = router.NewClient(b.cfg.Socket, zap.NewNop())
	t.Cleanup(b.client.Close)
	b.start()
	b.entitle(10 * time.Minute)
	return b
}

// endServices ends what a guard that was killed has left.
func (b *guardBed) endServices() {
	ctx, cancel := context.WithTimeout(context.Background(), bedPatience)
	defer cancel()
	for _, group := range proc.Services(b.cfg.SlicePath) {
		if err := proc.EndGroup(ctx, group); err != nil {
			b.t.Error(err)
		}
	}
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		_ = os.Remove(filepath.Join(hierarchy, b.cfg.SlicePath))
	}
}

// start runs the guard and waits until it answers.
func (b *guardBed) start() {
	b.t.Helper()
	raw, err := json.Marshal(b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	argv := []string{exe}
	if b.netns != "" { // where no name server is, whoever asks one is told so at once
		resolv := filepath.Join(b.t.TempDir(), "resolv.conf")
		if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
			b.t.Fatal(err)
		}
		argv = []string{"nsenter", "--net=/run/netns/" + b.netns, "unshare", "--mount", "/bin/sh", "-c", `mount --bind "$1" /etc/resolv.conf; exec "$0"`, exe, resolv}
	}
	b.cmd = exec.Command(argv[0], argv[1:]...)
	b.cmd.Env = append(os.Environ(), guardEnv+"="+string(raw))
	b.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	log, err := os.CreateTemp(b.t.TempDir(), "guard-*.log") // no pipe: what outlives the guard would keep it open
	if err != nil {
		b.t.Fatal(err)
	}
	defer log.Close()
	b.cmd.Stdout, b.cmd.Stderr = log, log
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	cmd, file := b.cmd, log.Name()
	b.t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if b.t.Failed() {
			raw, _ := os.ReadFile(file)
			b.t.Logf("guard's log:\n%s", raw)
		}
	})
	await(b.t, "the guard answers", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := b.client.State(ctx)
		return err == nil
	})
}

// restart kills the guard, as kill -9 does, and starts its successor.
func (b *guardBed) restart() {
	b.t.Helper()
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
	b.start()
}

// entitle gives the node its own right for so long from now.
func (b *guardBed) entitle(lasts time.Duration) cluster.Instant {
	b.t.Helper()
	now := bootClock.Now()
	d := cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: now.Add(lasts), Sent: now}
	if err := b.client.Begin(deadlined(b.t), orders(cluster.NodeEpoch), d); err != nil {
		b.t.Fatal(err)
	}
	return d.Deadline
}

// expire lets the node's own right end now, and waits until it has.
func (b *guardBed) expire() {
	b.t.Helper()
	await(b.t, "the node's own right is over", func() bool {
		s, err := b.client.State(deadlined(b.t))
		if err != nil {
			return false
		}
		// A deadline that has passed by the time it is read is refused: once more then.
		if now := bootClock.Now(); len(s.Deadlines) > 0 && s.Deadlines[0].Deadline.Sub(now) > time.Second {
			d := cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: now.Add(100 * time.Millisecond), Sent: now}
			_ = b.client.Extend(deadlined(b.t), orders(cluster.NodeEpoch), d)
		}
		return len(s.Deadlines) == 0 && len(s.Services) == 0
	})
}

// orders is a token that lives.
func orders(e cluster.Epoch) cluster.Token {
	return cluster.MintToken(cluster.NewTokenWire(cluster.NodeLeaseID{Epoch: e}, "a", "a", false), func() error { return nil })
}

// deadlined is a context of the test that ends in time.
func deadlined(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), bedPatience)
	t.Cleanup(cancel)
	return ctx
}

// await polls for a condition of the outside world.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(bedPatience); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", bedPatience, what)
		}
	}
}
