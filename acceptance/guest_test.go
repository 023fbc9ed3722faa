package acceptance

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"pvc.internal/cluster"
)

// settings is a settings file as its author writes it.
type settings map[string]any

// with returns the settings with some keys, dotted, replaced.
func (s settings) with(changes settings) settings {
	raw, err := yaml.Marshal(map[string]any(s))
	if err != nil {
		panic(err)
	}
	out := settings{}
	if err := yaml.Unmarshal(raw, &out); err != nil {
		panic(err)
	}
	for key, value := range changes {
		at := map[string]any(out)
		parts := strings.Split(key, ".")
		for _, part := range parts[:len(parts)-1] {
			inner, ok := at[part].(settings)
			if !ok {
				inner = settings{}
				if m, isMap := at[part].(map[string]any); isMap {
					inner = m
				}
				at[part] = inner
			}
			at = inner
		}
		at[parts[len(parts)-1]] = value
	}
	return out
}

func (s settings) write(t *testing.T, path string) {
	t.Helper()
	raw, err := yaml.Marshal(map[string]any(s))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// guest is one more daemon in the cluster: a hypervisor unless its settings
// say otherwise, in the network namespace of a node of the sandbox.
type guest struct {
	c    *testCluster
	name string
	host string // the node whose network it uses
	dir  string
	conf settings
	p    *process

	mu   sync.Mutex
	told []string // what came over NOTIFY_SOCKET, a line each
}

// guestHost is the node that guests live on.
func (c *testCluster) guestHost() string { return string(c.Nodes()[3].Plan.Name) }

// newGuest prepares a daemon of that name. What it leaves in the tree is
// removed when the test ends, unless it is a real node's name.
func (c *testCluster) newGuest(t *testing.T, name string, changes settings) *guest {
	t.Helper()
	dir, err := os.MkdirTemp(work, "g-")
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{c: c, name: name, host: c.guestHost(), dir: dir}
	var servers []string
	for _, n := range c.Nodes() {
		if n.Mode() == cluster.Coordinator {
			servers = append(servers, n.Plan.Cluster.Addr().String()+":2181")
		}
	}
	g.conf = settings{
		"node":      settings{"name": name, "mode": "hypervisor"},
		"cluster":   settings{"name": c.name},
		"zookeeper": settings{"servers": servers},
		"timing":    settings{"profile": "lan"},
		"state_dir": filepath.Join(dir, "state"), "run_dir": filepath.Join(dir, "run"),
	}.with(changes)
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if c.Node(cluster.NodeID(name)) == nil {
		t.Cleanup(func() { g.forget(t) })
	}
	return g
}

// forget removes what the guest left in the tree.
func (g *guest) forget(t *testing.T) {
	for _, path := range []string{"/agent/nodes/", "/agent/fences/", "/agent/views/", "/nodes/", "/logs/"} {
		if g.c.foreign.exists(t, path+g.name) {
			if err := g.c.foreign.try(t, map[string]any{"op": "delete", "path": path + g.name, "recursive": true}, nil); err != nil {
				t.Errorf("remove what %s left: %v", g.name, err)
			}
		}
	}
}

func (g *guest) path(name string) string { return filepath.Join(g.dir, name) }

// start starts the daemon; wrap, if any, is what starts it.
func (g *guest) start(t *testing.T, wrap ...string) {
	t.Helper()
	g.conf.write(t, g.path("pvcnoded.yaml"))
	socket := g.path("notify")
	_ = os.Remove(socket)
	listen, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.told = nil
	g.mu.Unlock()
	go g.listen(listen)
	t.Cleanup(func() { _ = listen.Close() })
	argv := append(append([]string{}, wrap...), program("pvcnoded"), "-c", g.path("pvcnoded.yaml"))
	cmd := g.c.inside(t, g.host, argv...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	g.p = start(t, cmd, nil)
}

func (g *guest) listen(l *net.UnixConn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := l.Read(buffer)
		if err != nil {
			return
		}
		g.mu.Lock()
		g.told = append(g.told, strings.Split(string(buffer[:n]), "\n")...)
		g.mu.Unlock()
	}
}

// hasTold returns nil once a line that begins so has come over NOTIFY_SOCKET.
func (g *guest) hasTold(line string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, told := range g.told {
		if strings.HasPrefix(told, line) {
			return nil
		}
	}
	return fmt.Errorf("it told systemd %q and said:\n%s", g.told, g.p.output())
}

// ready waits until it has told systemd that it is; then it must be registered.
func (g *guest) ready(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, g.name+" is READY", func() error {
		g.p.lives(t)
		return g.hasTold("READY=1")
	})
	if root := g.conf.text("zookeeper.root"); root == "" && !g.c.foreign.exists(t, "/agent/alive/"+g.name) {
		t.Errorf("%s is READY and not registered", g.name)
	}
}

// text is a dotted key's text, "" where there is none.
func (s settings) text(key string) string {
	at := map[string]any(s)
	parts := strings.Split(key, ".")
	for _, part := range parts[:len(parts)-1] {
		inner, ok := at[part].(map[string]any)
		if !ok {
			inner, _ = at[part].(settings)
		}
		at = inner
	}
	text, _ := at[parts[len(parts)-1]].(string)
	return text
}

// stop ends it in order.
func (g *guest) stop(t *testing.T) {
	t.Helper()
	g.p.end(20 * time.Second)
	if code := g.p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%s ended with status %d after SIGTERM:\n%s", g.name, code, g.p.output())
	}
}

// refuses waits until it has given up by itself, and checks what it says.
func (g *guest) refuses(t *testing.T, words ...string) {
	t.Helper()
	if code := g.p.ended(t, 20*time.Second); code == 0 {
		t.Errorf("%s ended with status 0", g.name)
	}
	wants(t, "the refusal of "+g.name, g.p.output(), words...)
}

// relay forwards a port of the guests' network; ending it cuts its connections.
func (c *testCluster) relay(t *testing.T, listen string, to int) *process {
	t.Helper()
	target := c.Nodes()[to].Plan.Cluster.Addr().String() + ":2181"
	r := start(t, c.inside(t, c.guestHost(), python, "testdata/foreign.py", "relay", listen, target), nil)
	eventually(t, 10*time.Second, "the relay on "+listen, r.said("started"))
	return r
}

// runs is a command's output and exit status.
func runs(t *testing.T, cmd *exec.Cmd) (string, int) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
