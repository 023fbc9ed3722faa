package acceptance

import (
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"pvc.internal/api"
)

// unreachableAtStart: a daemon without ZooKeeper waits, says so, and is READY
// only once it is registered; then it ends in order.
func (c *testCluster) unreachableAtStart(t *testing.T) {
	g := c.newGuest(t, "waiting", settings{"zookeeper.servers": []string{"[::1]:2181"}})
	g.start(t)
	eventually(t, 10*time.Second, "it says what it waits for", func() error { return g.hasTold("STATUS=waiting for ZooKeeper") })
	eventually(t, 10*time.Second, "its log names the server", g.p.said("[::1]:2181"))
	g.p.lives(t)
	if g.hasTold("READY=1") == nil {
		t.Fatal("READY without ZooKeeper")
	}
	c.relay(t, "[::1]:2181", 0)
	g.ready(t)
	g.stop(t)
	if state := c.foreign.get(t, "/nodes/waiting/daemonstate").Value; state != "stop" {
		t.Errorf("after SIGTERM its daemon state is %q, want stop", state)
	}
}

// names: of three server names one does not resolve and one answers nothing;
// then the one that serves changes its address.
func (c *testCluster) names(t *testing.T) {
	g := c.newGuest(t, "naming", settings{"zookeeper.servers": []string{"zk-unknown:2181", "zk-dead:2181", "zk-moving:2181"}})
	hosts := func(moving string) {
		text := fmt.Sprintf("127.0.0.1 localhost\n127.0.0.9 zk-dead\n%s zk-moving\n", moving)
		if err := os.WriteFile(g.path("hosts"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(g.path("resolv.conf"), []byte("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	hosts("127.0.0.2")
	first := c.relay(t, "127.0.0.2:2181", 0)
	g.start(t, "unshare", "-m", "--", "sh", "-ec", `mount --bind "$1" /etc/hosts; mount --bind "$2" /etc/resolv.conf; shift 2; exec "$@"`,
		"sh", g.path("hosts"), g.path("resolv.conf"))
	g.ready(t)
	eventually(t, 10*time.Second, "its log names the unknown server", g.p.said("zk-unknown"))
	c.relay(t, "127.0.0.3:2181", 1)
	hosts("127.0.0.3")
	mark := c.foreign.mark()
	first.end(5 * time.Second)
	eventually(t, 30*time.Second, "it goes on at the new address", func() error {
		g.p.lives(t)
		return c.foreign.keepalives(mark, g.name, 3)
	})
	g.stop(t)
}

// duplicateNames: the second daemon of a name refuses, wherever it runs; the
// first goes on.
func (c *testCluster) duplicateNames(t *testing.T) {
	name := string(c.Nodes()[4].Plan.Name)
	before, mark := c.foreign.get(t, "/agent/alive/"+name).Value, c.foreign.mark()
	g := c.newGuest(t, name, nil)
	g.start(t)
	g.refuses(t, name, "alive on "+name, "stop it")
	if g.hasTold("READY=1") == nil {
		t.Error("the second daemon was READY")
	}
	if after := c.foreign.get(t, "/agent/alive/"+name).Value; after != before {
		t.Errorf("the first daemon's registration was replaced:\n%s\n%s", before, after)
	}
	second := start(t, c.inside(t, name, program("pvcnoded"), "-c", c.Node("hv5").Dir+"/pvcnoded.yaml"), nil)
	if code := second.ended(t, 10*time.Second); code == 0 {
		t.Error("a second daemon on the same state folder ended with status 0")
	}
	wants(t, "a second daemon on the same state folder", second.output(), c.Node("hv5").Dir+"/state", "another pvcnoded")
	c.keepalivesInTime(t, mark)
}

// foreignTrees: a tree of a newer program, another cluster's, and an empty one
// where a cluster was are refused, and left as they are.
func (c *testCluster) foreignTrees(t *testing.T) {
	g := c.newGuest(t, "stranger", nil)
	g.start(t)
	g.ready(t)
	g.stop(t)

	schema := c.foreign.get(t, "/agent/schema").Value
	c.foreign.set(t, "/agent/schema", "99")
	g.start(t)
	g.refuses(t, "99", "update")
	c.foreign.set(t, "/agent/schema", "rubbish")
	g.start(t)
	eventually(t, 10*time.Second, "rubbish as schema is named", g.p.said("/agent/schema"))
	c.foreign.set(t, "/agent/schema", schema)
	g.ready(t)
	g.stop(t)

	good := g.conf
	g.conf = good.with(settings{"cluster.name": "another"})
	g.start(t)
	g.refuses(t, c.name, "another")

	g.conf = good.with(settings{"zookeeper.root": "/empty"})
	g.start(t)
	g.refuses(t, "empty", c.name, "restore", g.path("state"))
	if c.foreign.exists(t, "/empty/config") {
		t.Error("an empty tree was initialised by a daemon")
	}
}

// credentials: where the tree belongs to an identity, a daemon without it or
// with another password is refused with a word on zookeeper.auth; where the
// tree is open, one daemon with an identity harms nobody.
func (c *testCluster) credentials(t *testing.T) {
	secret := func(g *guest, text string) settings {
		path := g.path("secret-" + text)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return settings{"scheme": "digest", "user": "pvc", "password_file": path}
	}
	g := c.newGuest(t, "keyholder", settings{"zookeeper.root": "/closed"})
	right := g.conf.with(settings{"zookeeper.auth": secret(g, "right")})
	c.initialise(t, g, right)

	g.conf = right
	g.start(t)
	g.ready(t)
	g.stop(t)

	good := g.conf
	g.conf = good.with(settings{"zookeeper.auth": settings{"scheme": "digest"}})
	g.start(t)
	g.refuses(t, "zookeeper.auth")
	g.conf = good.with(settings{"zookeeper.auth": secret(g, "wrong")})
	g.start(t)
	g.refuses(t, "zookeeper.auth")

	mark := c.foreign.mark()
	lone := c.newGuest(t, "overcautious", nil)
	lone.conf = lone.conf.with(settings{"zookeeper.auth": secret(lone, "mine")})
	lone.start(t)
	lone.ready(t)
	var nodes []api.Node
	if code, body := c.call(t, http.MethodGet, "/node", nil, &nodes); code != 200 {
		t.Errorf("GET /node beside a node that others may not read: %d %s", code, body)
	}
	eventually(t, 10*time.Second, "pvc explain names the refused credentials and the cure", func() error {
		out, _, _ := c.cli(t, "explain", "overcautious")
		for _, words := range []string{"refused the credentials", "zookeeper.auth", "same on every node"} {
			if !strings.Contains(out, words) {
				return fmt.Errorf("no %q in %s", words, out)
			}
		}
		return nil
	})
	c.keepalivesInTime(t, mark)
	lone.stop(t)
	for _, password := range []string{"mine", "right"} { // so that the tree can be tidied
		c.foreign.must(t, map[string]any{"op": "auth", "value": "pvc:" + password}, nil)
	}
	c.foreign.remove(t, "/closed")
}

// initialise makes a tree by a pvcapid of the guest's own.
func (c *testCluster) initialise(t *testing.T, g *guest, conf settings) {
	t.Helper()
	file := g.path("pvcapid.yaml")
	api := conf.with(settings{"api": settings{"listen": []string{"127.0.0.1:7380"}}})
	delete(api, "state_dir")
	delete(api, "run_dir")
	api.write(t, file)
	daemon := start(t, c.inside(t, g.host, program("pvcapid"), "-c", file), nil)
	eventually(t, 20*time.Second, "pvc cluster init", func() error {
		daemon.lives(t)
		out, code := runs(t, c.inside(t, g.host, program("pvc"), "--api", "http://127.0.0.1:7380", "cluster", "init", "--yes", "--name", c.name))
		if code != 0 && !strings.Contains(out, "already") {
			return fmt.Errorf("%s\n%s", out, daemon.output())
		}
		return nil
	})
	daemon.end(10 * time.Second)
}

// missingInterface: a coordinator that could not serve says why, is never
// primary, and a switch to it ends with nothing moved.
func (c *testCluster) missingInterface(t *testing.T) {
	g := c.newGuest(t, "unplugged", settings{"node.mode": "coordinator", "node.priority": 9,
		"addresses": []settings{{"name": "up", "cidr": "192.0.2.200/24", "interface": "nosuch0"}}})
	g.conf.write(t, g.path("pvcnoded.yaml"))
	t.Cleanup(func() { // the guard's own control group, which stays for its next start
		for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
			_ = os.Remove(fmt.Sprintf("%s/pvc.slice/guard-%08x", hierarchy, crc32.ChecksumIEEE([]byte(g.path("run/guard.sock")))))
		}
	})
	guard := start(t, c.inside(t, g.host, program("pvcnoded"), "guard", "-c", g.path("pvcnoded.yaml")), nil)
	g.start(t)
	g.ready(t)
	holder, mark := c.primary(t), c.foreign.mark()
	eventually(t, 10*time.Second, "pvc explain names the interface", func() error {
		guard.lives(t)
		out, _, _ := c.cli(t, "explain", g.name)
		if !strings.Contains(out, "nosuch0") {
			return fmt.Errorf("%s%s", out, g.p.output())
		}
		return nil
	})
	mayContend(t)
	_, stderr, code := c.cli(t, "node", "primary", g.name, "--wait")
	if code != 3 {
		t.Errorf("a switch to a node that could not serve: exit code %d, want 3", code)
	}
	wants(t, "a switch to a node that could not serve", stderr, "nosuch0")
	eventually(t, 15*time.Second, "the wish names the holder again", func() error {
		if wish := c.foreign.get(t, primaryNode).Value; wish != holder {
			return fmt.Errorf("primary_node is %q", wish)
		}
		return nil
	})
	for _, state := range c.foreign.routerStates(mark)[g.name] {
		if state == "primary" {
			t.Error("it was primary")
		}
	}
	if now := c.primary(t); now != holder {
		t.Errorf("the role moved from %s to %s", holder, now)
	}
	g.stop(t)
	guard.end(10 * time.Second)
	c.keepalivesInTime(t, mark)
}

// plugins: whatever a monitoring plugin does becomes its message; the
// keepalive is on time and nothing of it stays behind.
func (c *testCluster) plugins(t *testing.T) {
	g := c.newGuest(t, "plugged", nil)
	token := fmt.Sprint(86400*365 + os.Getpid()) // names our sleepers among all processes
	plugin := func(name, script string) settings {
		return settings{"name": name, "command": []string{"/bin/sh", "-c", script}, "interval": "2s", "timeout": "1s"}
	}
	missing := plugin("missing", "")
	missing["command"] = []string{"/nonexistent/check_nothing"}
	g.conf["plugins"] = []settings{
		plugin("hangs", "exec sleep "+token),
		plugin("forks", "setsid sleep "+token+" & exec sleep "+token),
		plugin("floods", "head -c 10000000 /dev/zero | tr '\\0' x"),
		plugin("fails", "echo 'CRITICAL - disk full | used=99%;80;90'; exit 2"),
		missing,
	}
	mark := c.foreign.mark()
	g.start(t)
	g.ready(t)
	says := map[string]string{"hangs": "did not end within 1s", "forks": "did not end within 1s", "floods": "printed more than",
		"fails": "disk full", "missing": "/nonexistent/check_nothing"}
	eventually(t, 20*time.Second, "each plugin's message", func() error {
		var n api.Node
		c.call(t, http.MethodGet, "/node/"+g.name, nil, &n)
		found := map[string]string{}
		for _, d := range n.HealthDetails {
			found[d.Name] = d.Message
		}
		for name, want := range says {
			if !strings.Contains(found[name], want) {
				return fmt.Errorf("%s says %.200q, want %q", name, found[name], want)
			}
		}
		return nil
	})
	runsAgain := time.Now().Add(5 * time.Second) // two more rounds of each
	eventually(t, 15*time.Second, "no sleeper outlives its plugin by much", func() error {
		if count := processesWith(token); time.Now().Before(runsAgain) || count > 3 {
			return fmt.Errorf("%d of them", count)
		}
		return nil
	})
	g.stop(t)
	eventually(t, 10*time.Second, "nothing of the plugins is left", func() error {
		if count := processesWith(token); count > 0 {
			return fmt.Errorf("%d processes", count)
		}
		return nil
	})
	if gap := c.foreign.gaps(mark)[g.name]; gap == 0 || gap >= lateKeepalive {
		t.Errorf("the longest gap between two of its keepalives is %v", gap)
	}
}

// processesWith counts the processes whose arguments hold the word.
func processesWith(word string) int {
	count := 0
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		raw, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue
		}
		argv := strings.Split(string(raw), "\x00")
		if len(argv) > 1 && argv[0] == "sleep" && argv[1] == word {
			count++
		}
	}
	return count
}
