package main

import (
	"bufio"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asProgram has this test's binary be pvcnoded: a signal is for a whole process.
const asProgram = "PVC_TEST_RUNS_PVCNODED"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(os.Args))
	}
	os.Exit(m.Run())
}

// program is a running pvcnoded without ZooKeeper, whose settings can be changed.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	config string
	lines  chan string // what it logs
	notify *net.UnixConn
}

func startProgram(t *testing.T, more string, args ...string) *program {
	t.Helper()
	p := &program{t: t, config: filepath.Join(t.TempDir(), "pvcnoded.yaml")}
	p.write(more)
	p.start(args...)
	return p
}

// startWith starts it with a file whose whole content is given.
func startWith(t *testing.T, content string) *program {
	t.Helper()
	p := &program{t: t, config: filepath.Join(t.TempDir(), "pvcnoded.yaml")}
	if err := os.WriteFile(p.config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	p.start()
	return p
}

func (p *program) start(args ...string) {
	t := p.t
	t.Helper()
	p.lines = make(chan string, 1000)
	socket := filepath.Join(filepath.Dir(p.config), "notify")
	var err error
	if p.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.notify.Close() })
	p.cmd = exec.Command(os.Args[0], append(args, "-c", p.config)...)
	p.cmd.Env = append(os.Environ(), asProgram+"=1", "NOTIFY_SOCKET="+socket)
	if slices.Contains(args, "guard") { // a network of its own: the guard acts on the kernel
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			select {
			case p.lines <- s.Text():
			default: // nobody waits for so many
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-read
		_ = p.cmd.Wait()
	})
}

func (p *program) write(more string) {
	p.t.Helper()
	dir := filepath.Dir(p.config)
	content := fmt.Sprintf("node: {name: hv1}\ncluster: {name: demo}\nzookeeper: {servers: [\"127.0.0.1:1\"]}\nstate_dir: %s/state\nrun_dir: %s/run\nmetrics: {listen: \"\"}\nrole: {gate: false}\n%s", dir, dir, more)
	if err := os.WriteFile(p.config, []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// logs waits for a line that holds all the words.
func (p *program) logs(words ...string) {
	p.t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case line := <-p.lines:
			if !lacks(line, words) {
				return
			}
		case <-deadline:
			p.t.Fatalf("%q is never logged", words)
		}
	}
}

func lacks(line string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(line, word) {
			return true
		}
	}
	return false
}

// told waits until the service manager is told a line that begins so.
func (p *program) told(begin string) string {
	p.t.Helper()
	buffer := make([]byte, 4096)
	_ = p.notify.SetReadDeadline(time.Now().Add(60 * time.Second))
	for {
		n, err := p.notify.Read(buffer)
		if err != nil {
			p.t.Fatalf("never told %q: %v", begin, err)
		}
		for line := range strings.Lines(string(buffer[:n])) {
			if strings.HasPrefix(line, begin) {
				return line
			}
		}
	}
}

// The daemon reads its settings again on SIGHUP, at any time; what it cannot
// adopt it names, and a file that is broken changes nothing.
func TestSIGHUPReloads(t *testing.T) {
	p := startProgram(t, "")
	p.told("STATUS=") // it waits for ZooKeeper: it has begun
	p.write("timing: {profile: pvc}\nlog: {level: debug}\n")
	p.signal(syscall.SIGHUP)
	p.logs("needs a restart", `"adopted":["log.level"]`, `"timing.profile"`)
	p.logs(`"level":"debug"`) // it goes on trying to reach ZooKeeper
	if line := p.told("STATUS=restart needed: "); !strings.Contains(line, "timing.profile") {
		t.Errorf("%q", line)
	}
	p.write("timing: {profile: pvc\n")
	p.signal(syscall.SIGHUP)
	p.logs("refused", "stays as it was")
	p.told("STATUS=settings refused")
	for range 5 {
		p.signal(syscall.SIGHUP)
	}
	p.write("")
	p.signal(syscall.SIGHUP)
	p.logs("settings reloaded", `"adopted":["log.level"]`)
	p.signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// The daemon starts with a file of PVC's own daemons, and says what it makes of it.
func TestStartsWithPVCsFile(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PVCNODED_STATE_DIR", filepath.Join(dir, "state"))
	t.Setenv("PVCNODED_METRICS_LISTEN", "")
	t.Setenv("PVCNODED_ROLE_GATE", "false") // nothing of this host is touched
	content := "pvc:\n  node: hv1\n  debug: True\n  cluster: {coordinators: [hv1, hv2]}\n  system:\n    intervals: {keepalive_interval: 5, suicide_intervals: 0}\n" +
		"    fencing: {ipmi: {host: hv1-lom, user: admin, pass: hush}}\n    configuration: {directories: {dynamic_directory: " + dir + "}}\n"
	p := startWith(t, content)
	p.logs("pvc.node: renamed to node.name")
	p.logs("ipmi.pass: not taken over", "/etc/pvc/ipmi.pass")
	p.told("STATUS=")
	p.signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

// What keeps the daemon from starting is told with what to do about it.
func TestStartTellsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := settingsFile(t, "")
	for name, c := range map[string]struct {
		env, config string
		code        int
		want        string
	}{
		"no settings":         {"", filepath.Join(dir, "none"), exitSettings, "name the one that you mean with -c"},
		"a variable":          {"PVCNODED_NODE_NAEM=x", good, exitSettings, "did you mean PVCNODED_NODE_NAME?"},
		"no state folder":     {"PVCNODED_STATE_DIR=" + file, good, exitFailed, "is a file and no folder"},
		"no password":         {"PVCNODED_ZOOKEEPER_AUTH_USER=pvc", good, exitSettings, "password_file"},
		"a password astray":   {"PVCNODED_ZOOKEEPER_AUTH_PASSWORD=hush", good, exitSettings, "no variable carries a secret"},
		"a folder for a file": {"", dir, exitSettings, "is a folder: name the file in it"},
	} {
		t.Run(name, func(t *testing.T) {
			if variable, value, ok := strings.Cut(c.env, "="); ok {
				t.Setenv(variable, value)
			}
			code, output := capture(t, "-c", c.config)
			if code != c.code || !strings.Contains(output, c.want) || strings.Contains(output, "hush") {
				t.Errorf("status %d, want %d; output, which should hold %q:\n%s", code, c.code, c.want, output)
			}
		})
	}
}

// A check prints what is in effect and where it comes from.
func TestConfigCheckShowsTheOrigins(t *testing.T) {
	t.Setenv("PVCNODED_LOG_LEVEL", "debug")
	code, output := capture(t, "config", "check", "-c", settingsFile(t, "timing: {profile: fast, settle: 1s}\n"))
	for _, want := range []string{"level: debug", "# PVCNODED_LOG_LEVEL", "settle: 1s", "# line 4", "# profile fast", "# default", "until a new primary answers", "# warning: "} {
		if code != 0 || !strings.Contains(output, want) {
			t.Errorf("status %d, %q is not in:\n%s", code, want, output)
		}
	}
}

// The guard has nothing that could be reloaded: a terminal that goes away, or a
// hand that slips, does not end it.
func TestTheGuardIgnoresSIGHUP(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the guard holds the kernel's effects")
	}
	p := startProgram(t, "", "guard")
	t.Cleanup(func() {
		socket := filepath.Join(filepath.Dir(p.config), "run", "guard.sock")
		endServices(t, fmt.Sprintf("pvc.slice/guard-%08x", crc32.ChecksumIEEE([]byte(socket))))
	})
	p.logs("guard")
	for range 3 {
		p.signal(syscall.SIGHUP)
	}
	p.signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
