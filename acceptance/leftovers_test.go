package acceptance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// byHand is a sandbox that a user starts on the command line.
type byHand struct {
	name, dir string
	p         *process
	spaces    map[string]bool // the network namespaces of its processes, as seen while it was up
}

// demoByHand starts `pvc sandbox demo` with one coordinator and a fault again
// and again.
func demoByHand(t *testing.T, name string, more ...string) *byHand {
	t.Helper()
	needs(t)
	b := newByHand(t, name)
	faults := strings.TrimSuffix(strings.Repeat("kill9-restart,", 50), ",")
	args := append([]string{"sandbox", "demo", "--name", b.name, "--dir", b.dir, "--coordinators", "1", "--listen", "127.0.0.1:0", "--faults", faults}, more...)
	b.p = start(t, exec.Command(program("pvc"), args...), nil)
	return b
}

func newByHand(t *testing.T, name string) *byHand {
	t.Helper()
	b := &byHand{name: fmt.Sprintf("%s-%d", name, os.Getpid()), dir: filepath.Join(work, "c-"+name), spaces: map[string]bool{}}
	t.Cleanup(func() {
		if out, code := b.sandbox(t, "down"); code != 0 {
			t.Errorf("pvc sandbox down: exit code %d: %s", code, out)
		}
	})
	return b
}

// sandbox runs `pvc sandbox VERB` on it.
func (b *byHand) sandbox(t *testing.T, verb string, more ...string) (string, int) {
	t.Helper()
	return runs(t, exec.Command(program("pvc"), append([]string{"sandbox", verb, "--name", b.name, "--dir", b.dir}, more...)...))
}

// up waits until the output says so and notes its namespaces.
func (b *byHand) up(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, "the demo is up", func() error {
		b.p.lives(t)
		return b.p.said("up: ")()
	})
	b.look(t)
}

func (b *byHand) look(t *testing.T) {
	t.Helper()
	for _, pid := range b.processes() {
		if space, err := os.Readlink("/proc/" + pid + "/ns/net"); err == nil && space != ownSpace(t) {
			b.spaces[space] = true
		}
	}
	if len(b.spaces) == 0 {
		t.Fatal("no process of the sandbox stands in a network namespace of its own")
	}
}

func ownSpace(t *testing.T) string {
	space, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return space
}

// processes are those that work in its folder or name it.
func (b *byHand) processes() []string {
	var pids []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if e.Name()[0] < '0' || e.Name()[0] > '9' {
			continue
		}
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		args, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.HasPrefix(cwd, b.dir+"/") || strings.Contains(string(args), b.dir+"/") || strings.Contains(string(args), b.dir+"\x00") {
			pids = append(pids, e.Name())
		}
	}
	return pids
}

// left says what is left of it, nil if nothing.
func (b *byHand) left() error {
	var left []string
	for _, pid := range b.processes() {
		args, _ := os.ReadFile("/proc/" + pid + "/cmdline")
		left = append(left, "process "+pid+" "+strings.ReplaceAll(string(args), "\x00", " "))
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if space, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err == nil && b.spaces[space] {
			left = append(left, "namespace "+space+" of process "+e.Name())
		}
	}
	for _, path := range []string{b.dir, b.dir + ".log", "/sys/fs/cgroup/pvc-sandbox-" + b.name, "/sys/fs/cgroup/unified/pvc-sandbox-" + b.name} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			left = append(left, path)
		}
	}
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if i.Name == "upstream" || i.Name == "cluster" || i.Name == "mgmt" || strings.HasSuffix(i.Name, "-hv1") || strings.HasPrefix(i.Name, "k-") {
			left = append(left, "interface "+i.Name)
		}
	}
	if len(left) > 0 {
		return errors.New(strings.Join(left, "\n"))
	}
	return nil
}

// nothingLeft polls: the kernel takes a moment to tear namespaces down.
func (b *byHand) nothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, 10*time.Second, "nothing is left of the sandbox", b.left)
}

// interrupt is Ctrl-C: a SIGINT for the whole foreground process group.
func (b *byHand) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-b.p.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := b.p.ended(t, 30*time.Second); code == 0 {
		t.Errorf("an interrupted demo ends with status 0:\n%s", b.p.output())
	}
}

func TestDemoInterruptedAtItsStartLeavesNothing(t *testing.T) {
	t.Parallel()
	b := demoByHand(t, "early")
	eventually(t, 20*time.Second, "its first node starts", func() error {
		b.p.lives(t)
		if len(b.processes()) < 3 {
			return fmt.Errorf("%d processes", len(b.processes()))
		}
		return nil
	})
	b.interrupt(t)
	if err := b.left(); err != nil {
		t.Errorf("left behind:\n%v", err)
	}
}

// TestKilledDemoIsSweptByTheNext: kill -9 of the demo takes every process with
// it; the next run of the name removes its files and works. Ctrl-C in its middle
// leaves nothing.
func TestKilledDemoIsSweptByTheNext(t *testing.T) {
	t.Parallel()
	b := demoByHand(t, "kill")
	b.up(t)
	_ = b.p.cmd.Process.Kill()
	<-b.p.done
	eventually(t, 10*time.Second, "every process dies with the demo", func() error {
		if pids := b.processes(); len(pids) > 0 {
			return fmt.Errorf("%v", pids)
		}
		return nil
	})
	again := demoByHand(t, "kill")
	again.up(t)
	again.interrupt(t)
	for _, demo := range []*byHand{b, again} {
		if err := demo.left(); err != nil {
			t.Errorf("left behind by an interrupted demo:\n%v", err)
		}
	}
}

// TestKeptDemoStaysAndCanBeUsed: --keep leaves the cluster up and prints what
// to type; those commands work; when its process is killed, down tidies up.
func TestKeptDemoStaysAndCanBeUsed(t *testing.T) {
	t.Parallel()
	needs(t)
	b := newByHand(t, "keep")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := listener.Addr().String()
	_ = listener.Close()
	out, code := b.sandbox(t, "demo", "--coordinators", "1", "--listen", listen, "--faults", "kill9-restart", "--keep")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	wants(t, "demo --keep", out, "export PVC_API=http://"+listen, "pvc node list", "pvc sandbox down --name "+b.name, b.dir)
	b.look(t)
	list, _, code := pvc(t, "--api", "http://"+listen, "node", "list")
	if code != 0 || !strings.Contains(list, "primary") {
		t.Errorf("pvc node list on the kept cluster: exit code %d: %s", code, list)
	}
	if status, code := b.sandbox(t, "status"); code != 0 || !strings.Contains(status, "hv1") {
		t.Errorf("pvc sandbox status: exit code %d: %s", code, status)
	}
	if refused, code := b.sandbox(t, "up", "--coordinators", "1"); code == 0 || !strings.Contains(refused, "up already") {
		t.Errorf("a second `up` of the name: exit code %d: %s", code, refused)
	}
	if err := syscall.Kill(b.supervisor(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "every process dies with its supervisor", func() error {
		if pids := b.processes(); len(pids) > 0 {
			return fmt.Errorf("%v", pids)
		}
		return nil
	})
	eventually(t, 10*time.Second, "pvc sandbox down after a kill", func() error { // refused while it is dying
		if out, code := b.sandbox(t, "down"); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})
	b.nothingLeft(t)
}

// supervisor is the process that holds it.
func (b *byHand) supervisor(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(b.dir, "sandbox.json"))
	if err != nil {
		t.Fatal(err)
	}
	var state struct {
		Supervisor struct {
			PID int `json:"pid"`
		} `json:"supervisor"`
	}
	if err := json.Unmarshal(raw, &state); err != nil || state.Supervisor.PID == 0 {
		t.Fatalf("no supervisor in %s: %v", raw, err)
	}
	return state.Supervisor.PID
}

// TestInterruptedKeptDemoLeavesNothing: what --keep would leave is not left by
// a Ctrl-C in the middle.
func TestInterruptedKeptDemoLeavesNothing(t *testing.T) {
	t.Parallel()
	b := demoByHand(t, "kint", "--keep")
	b.up(t)
	b.interrupt(t)
	b.nothingLeft(t)
}
