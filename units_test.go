package pvc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The systemd units in a real systemd: one machine of systemd-nspawn with a
// network namespace of its own and a real ZooKeeper beside it.

// rootfs is where the machine's base system is kept between runs.
const rootfs = "/var/cache/pvc-units/bookworm"

// machine is a booted system.
type machine struct {
	root   string // its file system, as seen from here
	netns  string
	leader int // process id of its init
}

func TestUnits(t *testing.T) {
	m := bootMachine(t)
	m.sh(t, "systemctl enable --now --no-block pvc-guard pvcnoded pvcapid")
	m.until(t, 20*time.Second, "the cluster is initialised", "pvc cluster init --yes --name units")
	m.until(t, 30*time.Second, "pvcnoded is READY", "systemctl is-active --quiet pvcnoded")
	m.until(t, 20*time.Second, "the address is there", addressIsThere)

	t.Run("kill -9 of the agent", func(t *testing.T) {
		agent, guard := m.pid(t, "pvcnoded"), m.pid(t, "pvc-guard")
		m.sh(t, "kill -9 "+agent)
		m.watchWhile(t, "the address is there", addressIsThere, func() {
			m.until(t, 20*time.Second, "another agent is READY", fmt.Sprintf(
				`systemctl is-active --quiet pvcnoded && [ "$(systemctl show -P MainPID pvcnoded)" != %s ]`, agent))
			time.Sleep(3 * time.Second) // longer than the lease the dead agent held
		})
		if now := m.pid(t, "pvc-guard"); now != guard {
			t.Errorf("the guard was restarted with the agent: process %s, before %s", now, guard)
		}
	})
	t.Run("kill -9 of the guard", func(t *testing.T) {
		agent, guard := m.pid(t, "pvcnoded"), m.pid(t, "pvc-guard")
		m.sh(t, "kill -9 "+guard)
		m.until(t, 10*time.Second, "another guard runs", fmt.Sprintf(
			`systemctl is-active --quiet pvc-guard && p=$(systemctl show -P MainPID pvc-guard) && [ "$p" != 0 ] && [ "$p" != %s ]`, guard))
		m.until(t, 20*time.Second, "the address is there", addressIsThere)
		if now := m.pid(t, "pvcnoded"); now != agent {
			t.Errorf("the agent was restarted with the guard: process %s, before %s", now, agent)
		}
	})
	t.Run("stop of the agent", func(t *testing.T) {
		guard := m.pid(t, "pvc-guard")
		m.sh(t, "systemctl stop pvcnoded")
		if out, err := m.try(addressIsThere); err == nil {
			t.Errorf("the address is still there after an orderly stop: %s", out)
		}
		if now := m.pid(t, "pvc-guard"); now != guard {
			t.Errorf("the guard did not survive: process %s, before %s", now, guard)
		}
		m.sh(t, "systemctl is-active pvc-guard")
	})
	t.Run("settings that are refused", func(t *testing.T) {
		m.sh(t, "echo 'nonsense: 1' >>/etc/pvc/pvcnoded.yaml")
		_, _ = m.try("systemctl start pvcnoded")
		if out, _ := m.try("systemctl show -P Result,ExecMainStatus,NRestarts pvcnoded; systemctl show -P ExecMainStatus pvcnoded"); !strings.Contains(out, "78") {
			t.Errorf("not ended for good with status 78: %s", out)
		}
	})
}

const addressIsThere = "ip -o address show dev upstream | grep -q 10.91.0.10/24"

// bootMachine starts the whole arrangement and takes it down with the test.
func bootMachine(t *testing.T) *machine {
	t.Helper()
	if os.Getenv("PVC_UNITS_TEST") == "" {
		t.Skip("boots a machine: set PVC_UNITS_TEST=1, or run make units-test")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces and mounts")
	}
	for _, program := range []string{"debootstrap", "systemd-nspawn", "nsenter", "java", "ip", "make"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: make deps installs it", program)
		}
	}
	if _, err := os.Stat("bin/pvcnoded"); err != nil {
		t.Skip("needs bin/: run make build")
	}
	baseSystem(t)
	m := &machine{root: filepath.Join(t.TempDir(), "root"), netns: fmt.Sprintf("pvc-units-%d", os.Getpid())}
	m.mount(t)
	m.network(t)
	m.zooKeeper(t)
	m.boot(t)
	m.install(t)
	return m
}

// baseSystem makes the base system once; it takes half a minute.
func baseSystem(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(rootfs + "/etc/machine-id"); err == nil {
		return
	}
	listed, err := exec.Command("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: bookworm").Output()
	mirror, _, _ := strings.Cut(string(listed), "\n")
	if err != nil || mirror == "" {
		t.Skipf("apt names no mirror of Debian bookworm (%v): run apt-get update", err)
	}
	unfinished := fmt.Sprintf("%s.%d", rootfs, os.Getpid())
	t.Cleanup(func() { os.RemoveAll(unfinished) })
	if err := os.MkdirAll(filepath.Dir(rootfs), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,iproute2,procps",
		"bookworm", unfinished, mirror).CombinedOutput()
	if err != nil {
		t.Skipf("debootstrap cannot make a base system here: %v\n%s", err, tail(out))
	}
	// An empty file would make systemd-nspawn refuse the machine.
	if err := os.WriteFile(unfinished+"/etc/machine-id", []byte("uninitialized\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(unfinished, rootfs); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
}

// mount lays a file system in memory over the base system, which stays as it is.
func (m *machine) mount(t *testing.T) {
	t.Helper()
	memory := filepath.Join(t.TempDir(), "memory")
	for _, dir := range []string{memory, m.root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "mount", "-t", "tmpfs", "tmpfs", memory)
	t.Cleanup(func() { quietly("umount", "-l", memory) })
	must(t, "mkdir", memory+"/upper", memory+"/work")
	if out, err := exec.Command("mount", "-t", "overlay", "overlay", "-o",
		"lowerdir="+rootfs+",upperdir="+memory+"/upper,workdir="+memory+"/work", m.root).CombinedOutput(); err != nil {
		t.Skipf("no overlay file system here: %v: %s", err, out)
	}
	t.Cleanup(func() { quietly("umount", "-l", m.root) })
}

func (m *machine) network(t *testing.T) {
	t.Helper()
	must(t, "ip", "netns", "add", m.netns)
	t.Cleanup(func() { quietly("ip", "netns", "del", m.netns) })
	must(t, "ip", "-n", m.netns, "link", "set", "lo", "up")
	must(t, "ip", "-n", m.netns, "link", "add", "upstream", "type", "veth", "peer", "name", "far")
	must(t, "ip", "-n", m.netns, "link", "set", "upstream", "up")
	must(t, "ip", "-n", m.netns, "link", "set", "far", "up")
}

// zooKeeper runs one real server in the machine's network.
func (m *machine) zooKeeper(t *testing.T) {
	t.Helper()
	const jar = "/usr/share/java/zookeeper.jar"
	if _, err := os.Stat(jar); err != nil {
		t.Skip("needs ZooKeeper: make deps installs it")
	}
	dir := t.TempDir()
	conf := "tickTime=200\ninitLimit=20\nsyncLimit=4\nmaxSessionTimeout=10000\ndataDir=" + dir + "/data\n" +
		"clientPort=2181\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\nmaxClientCnxns=0\n"
	if err := os.WriteFile(dir+"/zoo.cfg", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("ip", "netns", "exec", m.netns, "java", "-Xmx128m", "-cp", dir+":"+jar+":/usr/share/java/slf4j-simple.jar",
		"org.apache.zookeeper.server.quorum.QuorumPeerMain", dir+"/zoo.cfg")
	start(t, server, dir+"/zookeeper.log")
}

// install installs as a package would, and a settings file for one node.
func (m *machine) install(t *testing.T) {
	t.Helper()
	must(t, "make", "-s", "install", "DESTDIR="+m.root)
	write := func(path, content string) {
		if err := os.WriteFile(filepath.Join(m.root, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shared := "node: {name: hv1}\ncluster: {name: units}\nzookeeper: {servers: [\"127.0.0.1:2181\"]}\n"
	write("etc/pvc/pvcnoded.yaml", shared+"addresses: [{name: a, cidr: 10.91.0.10/24, interface: upstream}]\n")
	write("etc/pvc/pvcapid.yaml", shared)
	m.sh(t, "systemctl daemon-reload")
}

// boot starts systemd and waits until it has come up. The machine gets control
// groups of its own, without which a second one beside it would be degraded.
func (m *machine) boot(t *testing.T) {
	t.Helper()
	// They wait for a terminal and for a network that is set up from outside.
	for _, unit := range []string{"systemd-firstboot.service", "systemd-networkd-wait-online.service"} {
		must(t, "ln", "-sf", "/dev/null", filepath.Join(m.root, "etc/systemd/system", unit))
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	var join strings.Builder
	for _, procs := range groups {
		group := filepath.Join(filepath.Dir(procs), m.netns)
		if err := os.Mkdir(group, 0o755); err != nil {
			continue
		}
		t.Cleanup(func() { removeGroups(group) })
		fmt.Fprintf(&join, "echo $$ >%s/cgroup.procs 2>/dev/null; ", group)
	}
	machine := exec.Command("sh", "-c", join.String()+
		`exec systemd-nspawn -q -D "$0" --boot --register=no --keep-unit --machine="$1" --console=pipe \
		--network-namespace-path="/run/netns/$1" --capability=CAP_NET_ADMIN,CAP_NET_RAW,CAP_SYS_NICE,CAP_IPC_LOCK`, m.root, m.netns)
	start(t, machine, filepath.Join(t.TempDir(), "console.log"))
	eventually(t, 20*time.Second, "the machine has an init", func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", machine.Process.Pid, machine.Process.Pid))
		if err != nil {
			return err
		}
		for _, child := range strings.Fields(string(children)) { // helpers come and go before it
			name, err := os.ReadFile("/proc/" + child + "/comm")
			if err == nil && strings.TrimSpace(string(name)) == "systemd" {
				m.leader, err = strconv.Atoi(child)
				return err
			}
		}
		return fmt.Errorf("its children are %q", children)
	})
	t.Cleanup(func() { // the end of its init is the end of all in it
		if t.Failed() {
			out, _ := m.try("journalctl --no-pager -b -u pvc-guard -u pvcnoded -u pvcapid | tail -n 60")
			t.Logf("the machine's journal:\n%s", out)
		}
		_ = syscall.Kill(m.leader, syscall.SIGKILL)
	})
	m.until(t, 30*time.Second, "systemd is running", "systemctl is-system-running --quiet")
}

// try runs a shell line in the machine.
func (m *machine) try(line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(m.leader), "-a", "-r", "-w", "sh", "-c", line).CombinedOutput()
	return string(out), err
}

func (m *machine) sh(t *testing.T, line string) string {
	t.Helper()
	out, err := m.try(line)
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func (m *machine) until(t *testing.T, limit time.Duration, what, line string) {
	t.Helper()
	eventually(t, limit, what, func() error {
		out, err := m.try(line)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// watchWhile fails the test if line fails at any time while body runs.
func (m *machine) watchWhile(t *testing.T, what, line string, body func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		failures := 0
		defer func() { done <- failures }()
		for {
			if _, err := m.try(line); err != nil {
				failures++
			}
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	body()
	close(stop)
	if failures := <-done; failures > 0 {
		t.Errorf("%d times it was not true that %s", failures, what)
	}
}

func (m *machine) pid(t *testing.T, unit string) string {
	t.Helper()
	return strings.TrimSpace(m.sh(t, "systemctl show -P MainPID "+unit))
}

// start runs a program until the test ends, its output in a file that is shown
// if the test fails.
func start(t *testing.T, c *exec.Cmd, log string) {
	t.Helper()
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = file, file
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		_ = c.Wait()
		file.Close()
		if out, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(log), tail(out))
		}
	})
}

// eventually asks until there is no error any more.
func eventually(t *testing.T, limit time.Duration, what string, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", limit, what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func must(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

func quietly(argv ...string) { _ = exec.Command(argv[0], argv[1:]...).Run() }

// removeGroups removes a control group and those below it, from the leaves.
func removeGroups(group string) {
	// Whoever is left of a machine whose init was never found.
	_ = os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0)
	deadline := time.Now().Add(3 * time.Second)
	for time.Now().Before(deadline) {
		var dirs []string
		_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i])
		}
		if _, err := os.Stat(group); errors.Is(err, fs.ErrNotExist) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// tail returns the last lines of a program's output.
func tail(out []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(escapes.ReplaceAll(out, nil)), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-25):], []byte("\n"))
}
