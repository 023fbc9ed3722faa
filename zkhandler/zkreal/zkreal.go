// Package zkreal starts real ZooKeeper ensembles on loopback for tests: the
// servers of Debian's zookeeper package, in temporary folders, with short
// ticks. They die with the test binary, however that ends.
package zkreal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const zookeeperJar = "/usr/share/java/zookeeper.jar"

// Options change what Start's ensembles are made with. The zero value means
// tick 200 ms, syncLimit 4, initLimit 20.
type Options struct {
	TickTime  time.Duration
	SyncLimit int
	InitLimit int
	// Extra lines go into each server's zoo.cfg.
	Extra []string
	// JVM arguments go before the main class, such as -D settings.
	JVM []string
	// TLS, when set, adds a secure port to each server.
	TLS *TLS
}

// TLS names PKCS12 stores for the servers' secure ports.
type TLS struct {
	KeyStore, TrustStore, Password string
}

// Ensemble is a running ensemble. Its servers are numbered from 0. Methods
// may be called from several goroutines.
type Ensemble struct {
	t       testing.TB
	options Options
	servers []*server
}

type server struct {
	mu      sync.Mutex
	dir     string
	client  int
	secure  int
	process *exec.Cmd
	exited  chan struct{}
}

// Start runs n servers (1 standalone, else an ensemble) and returns when they
// serve. The test is skipped where ZooKeeper or Java are not installed. Clean-up
// is registered with t.
func Start(t testing.TB, n int) *Ensemble {
	t.Helper()
	return StartWith(t, n, Options{})
}

// StartWith is Start with options.
func StartWith(t testing.TB, n int, o Options) *Ensemble {
	t.Helper()
	if _, err := os.Stat(zookeeperJar); err != nil {
		t.Skipf("needs Debian's package zookeeper: %v", err)
	}
	if _, err := exec.LookPath("java"); err != nil {
		t.Skipf("needs Java: %v", err)
	}
	if o.TickTime == 0 {
		o.TickTime = 200 * time.Millisecond
	}
	if o.SyncLimit == 0 {
		o.SyncLimit = 4
	}
	if o.InitLimit == 0 {
		o.InitLimit = 20
	}
	e := &Ensemble{t: t, options: o}
	base := t.TempDir()
	ports := freePorts(t, 4*n)
	for i := range n {
		e.servers = append(e.servers, &server{
			dir: filepath.Join(base, fmt.Sprint("server", i+1)), client: ports[4*i], secure: ports[4*i+1],
		})
	}
	for i := range n {
		e.configure(i, ports)
	}
	t.Cleanup(func() {
		for i := range e.servers {
			e.Kill(i)
		}
	})
	for i := range n {
		e.launch(i)
	}
	for i := range n {
		e.await(i)
	}
	return e
}

// freePorts reserves distinct ports by listening on all of them at once.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("find a free port: %v", err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func (e *Ensemble) configure(i int, ports []int) {
	e.t.Helper()
	s, o := e.servers[i], e.options
	lines := []string{
		fmt.Sprintf("tickTime=%d", o.TickTime.Milliseconds()),
		fmt.Sprintf("initLimit=%d", o.InitLimit),
		fmt.Sprintf("syncLimit=%d", o.SyncLimit),
		"dataDir=" + s.dir,
		fmt.Sprintf("clientPort=%d", s.client),
		"clientPortAddress=127.0.0.1",
		"maxClientCnxns=0",
		"maxSessionTimeout=60000",
		"admin.enableServer=false",
		"4lw.commands.whitelist=*",
	}
	if len(e.servers) > 1 {
		for j := range e.servers {
			lines = append(lines, fmt.Sprintf("server.%d=127.0.0.1:%d:%d", j+1, ports[4*j+2], ports[4*j+3]))
		}
	}
	if o.TLS != nil {
		lines = append(lines,
			fmt.Sprintf("secureClientPort=%d", s.secure),
			"secureClientPortAddress=127.0.0.1",
			"serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
			"ssl.keyStore.location="+o.TLS.KeyStore, "ssl.keyStore.password="+o.TLS.Password,
			"ssl.trustStore.location="+o.TLS.TrustStore, "ssl.trustStore.password="+o.TLS.Password,
			"authProvider.x509=org.apache.zookeeper.server.auth.X509AuthenticationProvider",
		)
	}
	lines = append(lines, o.Extra...)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		e.t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
			e.t.Fatal(err)
		}
	}
	write("zoo.cfg", strings.Join(lines, "\n")+"\n")
	write("myid", fmt.Sprintln(i+1))
}

func (e *Ensemble) classPath() string {
	path := []string{zookeeperJar, "/usr/share/java/slf4j-simple.jar"}
	jars, _ := filepath.Glob("/usr/share/java/netty-*.jar") // missing from the Debian manifest, needed for TLS
	for _, jar := range jars {
		if !strings.Contains(jar, "-4.") {
			path = append(path, jar)
		}
	}
	return strings.Join(path, ":")
}

// launch starts the server's JVM without waiting for it to serve.
func (e *Ensemble) launch(i int) {
	e.t.Helper()
	s := e.servers[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
		"-XX:-UsePerfData", // else a file in the temporary folder outlives each kill
		"-Dzookeeper.jmx.log4j.disable=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"}, e.options.JVM...)
	args = append(args, "-cp", e.classPath(), "org.apache.zookeeper.server.quorum.QuorumPeerMain", filepath.Join(s.dir, "zoo.cfg"))
	cmd := exec.Command("java", args...) //nolint:noctx // Kill ends it, and the kernel with this process
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := startProcess(cmd); err != nil {
		e.t.Fatalf("start ZooKeeper server %d: %v", i, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(exited)
	}()
	s.process, s.exited = cmd, exited
}

var (
	starterOnce sync.Once
	starts      chan func()
)

// startProcess starts a command from a thread that lives as long as the
// process: the parent-death signal is sent when the starting *thread* ends.
func startProcess(cmd *exec.Cmd) error {
	starterOnce.Do(func() {
		starts = make(chan func())
		go func() {
			runtime.LockOSThread()
			for start := range starts {
				start()
			}
		}()
	})
	started := make(chan error)
	starts <- func() { started <- cmd.Start() }
	return <-started
}

// Servers returns the client addresses, "127.0.0.1:port".
func (e *Ensemble) Servers() []string {
	var list []string
	for _, s := range e.servers {
		list = append(list, fmt.Sprintf("127.0.0.1:%d", s.client))
	}
	return list
}

// SecureServers returns the addresses of the TLS ports.
func (e *Ensemble) SecureServers() []string {
	var list []string
	for _, s := range e.servers {
		list = append(list, fmt.Sprintf("127.0.0.1:%d", s.secure))
	}
	return list
}

// Kill ends server i with SIGKILL and waits for its end.
func (e *Ensemble) Kill(i int) {
	s := e.servers[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return
	}
	_ = s.process.Process.Kill() // it may have ended by itself
	<-s.exited
	s.process = nil
}

// Start starts server i again, with its data, and waits until it serves.
func (e *Ensemble) Start(i int) {
	e.t.Helper()
	e.launch(i)
	e.await(i)
}

// StartNoWait starts server i again without waiting: a server that has no
// quorum does not serve.
func (e *Ensemble) StartNoWait(i int) {
	e.t.Helper()
	e.launch(i)
}

// Pause stops server i (SIGSTOP): it accepts connections and answers nothing.
func (e *Ensemble) Pause(i int) { e.signal(i, syscall.SIGSTOP) }

// Resume ends a Pause.
func (e *Ensemble) Resume(i int) { e.signal(i, syscall.SIGCONT) }

func (e *Ensemble) signal(i int, sig syscall.Signal) {
	e.t.Helper()
	s := e.servers[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		e.t.Fatalf("server %d is not running", i)
	}
	if err := s.process.Process.Signal(sig); err != nil {
		e.t.Fatalf("signal server %d: %v", i, err)
	}
}

// Leader returns the number of the leader (or of the standalone server), −1
// if none serves as one now.
func (e *Ensemble) Leader() int {
	for i := range e.servers {
		if mode, err := e.mode(i); err == nil && (mode == "leader" || mode == "standalone") {
			return i
		}
	}
	return -1
}

// PID returns the process id of server i, 0 when it does not run.
func (e *Ensemble) PID(i int) int {
	s := e.servers[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0
	}
	return s.process.Process.Pid
}

func (e *Ensemble) await(i int) {
	e.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := e.mode(i)
		if err == nil {
			return
		}
		select {
		case <-e.servers[i].exited:
			e.t.Fatalf("ZooKeeper server %d ended: %s", i, e.Log(i))
		case <-time.After(30 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("ZooKeeper server %d does not serve within 30 s (%v): %s", i, err, e.Log(i))
		}
	}
}

// Log returns the end of server i's log.
func (e *Ensemble) Log(i int) string {
	text, err := os.ReadFile(filepath.Join(e.servers[i].dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

var errNotServing = errors.New("not serving")

func (e *Ensemble) mode(i int) (string, error) {
	answer, err := e.FourLetter(i, "srvr")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(answer) {
		if mode, ok := strings.CutPrefix(strings.TrimSpace(line), "Mode: "); ok {
			return mode, nil
		}
	}
	return "", errNotServing
}

// FourLetter sends a four-letter command (srvr, conf, mntr, wchp, …) to
// server i and returns the answer.
func (e *Ensemble) FourLetter(i int, command string) (string, error) {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(context.Background(), "tcp", e.Servers()[i])
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, command); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(bufio.NewReader(conn))
	return string(answer), err
}
