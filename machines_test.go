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

// Machines of a real systemd: systemd-nspawn over overlays of one base system,
// each with a network namespace and control groups of its own, on one bridge.
// A real ensemble of ZooKeeper runs beside them, on the bridge, too. An init
// that is killed is a power cut.

// rootfs is where the machines' base system is kept between runs. One with other
// packages has another name.
const rootfs = "/var/cache/pvc-units/bookworm-redis"

// ocfAgents is Debian's resource-agents, here and in the machines: shell scripts.
const ocfAgents = "/usr/lib/ocf"

// ours begins the names of whatever a run makes; its process id follows.
const ours = "pvc-units-"

const (
	floating   = "10.91.0.10"
	zkServers  = "10.91.0.201:2181, 10.91.0.202:2181, 10.91.0.203:2181"
	uplink     = "upstream" // a machine's interface
	hubAddress = "10.91.0.254/24"
)

// hall is where the machines stand: the bridge's namespace, from which they are
// looked at.
type hall struct {
	netns    string
	machines []*machine
}

// machine is a booted system.
type machine struct {
	name   string // hv1, …
	fixed  string // its own address
	port   string // its link's end at the bridge
	root   string // its file system, as seen from here
	pki    string // folder of its certificate, once there is an authority
	netns  string
	leader int // process id of its init
}

// newHall boots n machines and starts three servers of ZooKeeper, and takes it
// all down with the test. Nothing is installed yet.
func newHall(t *testing.T, n int) *hall {
	t.Helper()
	if os.Getenv("PVC_UNITS_TEST") == "" {
		t.Skip("boots machines: set PVC_UNITS_TEST=1, or run make units-test")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes namespaces and mounts")
	}
	for _, program := range []string{"debootstrap", "systemd-nspawn", "nsenter", "java", "ip", "make"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: make deps installs it", program)
		}
	}
	for _, program := range []string{"bin/pvcnoded", "bin/pvcapid", "bin/pvc", "bin/nfpm"} {
		if _, err := os.Stat(program); err != nil {
			t.Skip("needs bin/: run make build bin/nfpm")
		}
	}
	if _, err := os.Stat(ocfAgents + "/resource.d/heartbeat/Stateful"); err != nil {
		t.Skip("needs Debian's resource-agents: make deps installs it")
	}
	clearLeftovers()
	baseSystem(t)
	h := &hall{netns: fmt.Sprintf("%s%d", ours, os.Getpid())}
	h.bridge(t)
	h.zooKeeper(t)
	for i := range n {
		m := &machine{name: fmt.Sprintf("hv%d", i+1), fixed: fmt.Sprintf("10.91.0.%d", 11+i), port: fmt.Sprintf("port%d", i+1)}
		m.netns, m.root = h.netns+"-"+m.name, filepath.Join(t.TempDir(), "root")
		m.mount(t)
		h.connect(t, m)
		m.boot(t)
		h.machines = append(h.machines, m)
	}
	for _, m := range h.machines { // they come up beside each other
		m.until(t, 60*time.Second, "systemd is running", "systemctl is-system-running --quiet")
	}
	return h
}

// clearLeftovers ends what runs that were killed have left behind.
func clearLeftovers() {
	dead := func(name string) bool {
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, ours), "-")
		_, err := os.Stat("/proc/" + pid)
		return strings.HasPrefix(name, ours) && errors.Is(err, fs.ErrNotExist)
	}
	namespaces, _ := filepath.Glob("/run/netns/" + ours + "*")
	for _, path := range namespaces {
		if name := filepath.Base(path); dead(name) {
			pids, _ := exec.Command("ip", "netns", "pids", name).Output()
			for _, pid := range strings.Fields(string(pids)) {
				quietly("kill", "-9", pid)
			}
			quietly("ip", "netns", "del", name)
		}
	}
	mounts, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && dead(fields[0]) {
			quietly("umount", "-l", fields[1])
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + ours + "*")
	for _, group := range groups {
		if dead(filepath.Base(group)) {
			removeGroups(group)
		}
	}
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
	out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,iproute2,procps,redis-server",
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
	must(t, "mount", "-t", "tmpfs", m.netns, memory)
	t.Cleanup(func() { quietly("umount", "-l", memory) })
	must(t, "mkdir", memory+"/upper", memory+"/work")
	if out, err := exec.Command("mount", "-t", "overlay", m.netns, "-o",
		"lowerdir="+rootfs+",upperdir="+memory+"/upper,workdir="+memory+"/work", m.root).CombinedOutput(); err != nil {
		t.Skipf("no overlay file system here: %v: %s", err, out)
	}
	t.Cleanup(func() { quietly("umount", "-l", m.root) })
}

// bridge makes the namespace in which the machines' links meet.
func (h *hall) bridge(t *testing.T) {
	t.Helper()
	must(t, "ip", "netns", "add", h.netns)
	t.Cleanup(func() { quietly("ip", "netns", "del", h.netns) })
	must(t, "ip", "-n", h.netns, "link", "set", "lo", "up")
	must(t, "ip", "-n", h.netns, "link", "add", "hub", "type", "bridge")
	must(t, "ip", "-n", h.netns, "link", "set", "hub", "up")
	for _, address := range []string{hubAddress, "10.91.0.201/24", "10.91.0.202/24", "10.91.0.203/24"} {
		must(t, "ip", "-n", h.netns, "address", "add", address, "dev", "hub")
	}
}

// connect gives a machine its network: one link to the bridge.
func (h *hall) connect(t *testing.T, m *machine) {
	t.Helper()
	must(t, "ip", "netns", "add", m.netns)
	t.Cleanup(func() { quietly("ip", "netns", "del", m.netns) })
	must(t, "ip", "-n", m.netns, "link", "set", "lo", "up")
	must(t, "ip", "-n", m.netns, "link", "add", uplink, "type", "veth", "peer", "name", m.port, "netns", h.netns)
	must(t, "ip", "-n", m.netns, "address", "add", m.fixed+"/24", "dev", uplink)
	must(t, "ip", "-n", m.netns, "link", "set", uplink, "up")
	must(t, "ip", "-n", h.netns, "link", "set", m.port, "master", "hub", "up")
}

// zooKeeper starts three real servers on the bridge.
func (h *hall) zooKeeper(t *testing.T) {
	t.Helper()
	const jar = "/usr/share/java/zookeeper.jar"
	if _, err := os.Stat(jar); err != nil {
		t.Skip("needs ZooKeeper: make deps installs it")
	}
	var ensemble strings.Builder
	for i := 1; i <= 3; i++ {
		fmt.Fprintf(&ensemble, "server.%d=10.91.0.20%d:2888:3888\n", i, i)
	}
	for i := 1; i <= 3; i++ {
		dir := t.TempDir()
		if err := os.Mkdir(dir+"/data", 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, dir+"/data/myid", strconv.Itoa(i))
		put(t, dir+"/zoo.cfg", fmt.Sprintf("tickTime=500\ninitLimit=10\nsyncLimit=4\ndataDir=%s/data\nadmin.enableServer=false\n"+
			"4lw.commands.whitelist=*\nclientPort=2181\nclientPortAddress=10.91.0.20%d\nmaxClientCnxns=0\n%s", dir, i, ensemble.String()))
		// As on machines of their own: neither behind everything else that runs
		// here nor behind its writes.
		server := exec.Command("sh", "-c", `echo -15 >/proc/self/autogroup; exec ip netns exec "$0" nice -n -15 "$@"`, h.netns,
			"java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-Dzookeeper.forceSync=no", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
			"-cp", dir+":"+jar+":/usr/share/java/slf4j-simple.jar", "org.apache.zookeeper.server.quorum.QuorumPeerMain", dir+"/zoo.cfg")
		start(t, server, dir+"/zookeeper.log")
	}
}

// boot starts systemd. The machine gets control groups of its own, without which
// a second one beside it would be degraded.
func (m *machine) boot(t *testing.T) {
	t.Helper()
	// They wait for a terminal and for a network that is set up from outside; and a
	// node has no Redis of its own, as the guide says.
	for _, unit := range []string{"systemd-firstboot.service", "systemd-networkd-wait-online.service", "redis-server.service"} {
		must(t, "ln", "-sf", "/dev/null", filepath.Join(m.root, "etc/systemd/system", unit))
	}
	must(t, "rm", "-rf", filepath.Join(m.root, "var/lib/apt/lists")) // which apt would read through for seconds each time
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
	eventually(t, 60*time.Second, "the machine has an init", func() error {
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
		if t.Failed() && m.leader > 0 {
			out, _ := m.try("journalctl --no-pager -b -u pvc-guard -u pvcnoded -u pvcapid | tail -n 40")
			t.Logf("the journal of %s:\n%s", m.name, out)
		}
		m.cutPower()
	})
}

// cutPower ends everything in the machine at once.
func (m *machine) cutPower() {
	if m.leader > 0 {
		_ = syscall.Kill(m.leader, syscall.SIGKILL)
	}
	m.leader = 0
}

// try runs a shell line in the machine.
func (m *machine) try(line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
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

// state is a unit's ActiveState.
func (m *machine) state(unit string) string {
	out, _ := m.try("systemctl show -P ActiveState " + unit)
	return strings.TrimSpace(out)
}

// pid waits until the unit has a process, and returns its number: never 0, which
// would be everybody's to kill(1).
func (m *machine) pid(t *testing.T, unit string) string {
	t.Helper()
	var pid string
	eventually(t, 30*time.Second, unit+" has a process", func() error {
		out, err := m.try("systemctl show -P MainPID " + unit)
		if pid = strings.TrimSpace(out); err == nil && pid == "0" {
			err = errors.New("it has none")
		}
		return err
	})
	return pid
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
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
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

// put writes a file for everybody to read.
func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
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
