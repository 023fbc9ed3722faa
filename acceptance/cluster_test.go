package acceptance

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// keepaliveInterval is K of the profile "lan", which the clusters run with.
const keepaliveInterval = time.Second

// lateKeepalive is the gap between two keepalives of a node from which on one
// has been missed.
const lateKeepalive = 2*keepaliveInterval - 50*time.Millisecond

// testCluster is a cluster under test.
type testCluster struct {
	*sandbox.Sandbox
	t       *testing.T
	foreign *foreign
	ask     *api.Client
	url     string // of the API, without /api/v1
	name    string // of the cluster, as its settings have it
}

// newCluster starts a cluster, waits until it rests, and lets the foreign client look
// at it from inside its last node. It ends with the test.
func newCluster(t *testing.T, coordinators, hypervisors int) *testCluster {
	t.Helper()
	c := newUnwatchedCluster(t, coordinators, hypervisors)
	defer c.tellOnFailure(t)()
	c.foreign = startForeign(t, c)
	return c
}

// newUnwatchedCluster starts a cluster that the foreign client does not look at,
// since every one of its nodes may lose its power.
func newUnwatchedCluster(t *testing.T, coordinators, hypervisors int) *testCluster {
	t.Helper()
	return upCluster(t, sandbox.Options{Coordinators: coordinators, Hypervisors: hypervisors})
}

// clusters counts what this run has started, for names of their own.
var clusters atomic.Int64

// upCluster starts a cluster of the options.
func upCluster(t *testing.T, o sandbox.Options) *testCluster {
	t.Helper()
	needs(t)
	n := clusters.Add(1)
	o.Name, o.Dir = fmt.Sprintf("a%d-%d", n, os.Getpid()), filepath.Join(work, fmt.Sprint("c-", n))
	o.BinDir, o.Helper, o.APIListen = cmp.Or(o.BinDir, filepath.Join(work, "bin")), []string{program("pvc")}, "127.0.0.1:0"
	s, err := sandbox.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Down)
	c := &testCluster{Sandbox: s, t: t, url: s.URL(), name: o.Name}
	defer c.tellOnFailure(t)()
	if c.ask, err = api.NewClient(api.ClientConfig{URL: c.url}); err != nil {
		t.Fatal(err)
	}
	c.rests(t)
	return c
}

// run is a subtest that ends with the cluster at rest; where it fails it
// prints what the daemons have logged meanwhile.
func (c *testCluster) run(name string, body func(t *testing.T)) {
	c.t.Run(name, func(t *testing.T) {
		defer c.tellOnFailure(t)()
		body(t)
		c.rests(t)
	})
}

func (c *testCluster) rests(t *testing.T) {
	t.Helper()
	if err := c.WaitConverged(t.Context()); err != nil {
		fails(t, "the cluster does not come to rest: %v", err)
	}
}

// tellOnFailure notes where the logs stand; what it returns prints, after a
// failure, what was added since.
func (c *testCluster) tellOnFailure(t *testing.T) func() {
	from := map[string]int64{}
	for _, path := range c.logs() {
		if info, err := os.Stat(path); err == nil {
			from[path] = info.Size()
		}
	}
	return func() {
		if !t.Failed() {
			return
		}
		t.Logf("failed, why:\n%s", reasons.of(t.Name()))
		for _, path := range c.logs() {
			if text := logSince(path, from[path]); text != "" {
				t.Logf("%s:\n%s", strings.TrimPrefix(path, c.Dir()), text)
			}
		}
		t.Logf("that was why:\n%s", reasons.of(t.Name()))
	}
}

func (c *testCluster) logs() []string {
	paths, _ := filepath.Glob(filepath.Join(c.Dir(), "*", "log", "pvcnoded.log"))
	for _, more := range []string{"guard.log", "pvcapid.log", "zookeeper.log"} {
		found, _ := filepath.Glob(filepath.Join(c.Dir(), "*", "log", more))
		paths = append(paths, found...)
	}
	return paths
}

// tailOf is how much of a log's end is printed after a failure, in bytes: all of them
// together must leave room for the reason where output is cut.
var tailOf = map[string]int{"pvcnoded.log": 1800, "guard.log": 500, "pvcapid.log": 300, "zookeeper.log": 600}

// worthTelling leaves out what is logged for debugging alone, since a keepalive each
// second would leave nothing else, what the guard's children print, and of a
// ZooKeeper server all but its elections and slow disks.
func worthTelling(log string, line []byte) bool {
	if log != "zookeeper.log" {
		return bytes.HasPrefix(line, []byte("{")) && !bytes.Contains(line, []byte(`"level":"debug"`))
	}
	return bytes.Contains(line, []byte("ELECTION TOOK")) || bytes.Contains(line, []byte("PeerState set")) || bytes.Contains(line, []byte("fsync-ing"))
}

// logSince returns the end of what was appended to the file.
func logSince(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return ""
	}
	raw, _ := io.ReadAll(f)
	log := filepath.Base(path)
	var kept []byte
	for line := range bytes.Lines(raw) {
		if worthTelling(log, line) {
			kept = append(kept, line...)
		}
	}
	return string(kept[max(0, len(kept)-tailOf[log]):])
}

// patience is how long a busy machine is waited for, where what happens takes no
// time of its own.
const patience = 30 * time.Second

// eventually polls until check returns nil; its last error fails the test.
func eventually(t *testing.T, limit time.Duration, what string, check func() error) {
	t.Helper()
	limit = max(limit, patience)
	deadline := time.Now().Add(limit)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			fails(t, "within %v never came about: %s: %v", limit, what, err)
		}
		select {
		case <-poll.C:
		case <-t.Context().Done():
			fails(t, "ended while waiting for %s: %v", what, err)
		}
	}
}

// call is one HTTP request; the answer's JSON is decoded into into unless nil.
func (c *testCluster) call(t *testing.T, method, path string, form url.Values, into any) (status int, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.url+"/api/v1"+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if len(form) > 0 {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
	return res.StatusCode, string(raw)
}

// view is the cluster as the API shows it.
func (c *testCluster) view(t *testing.T) api.ClusterView {
	t.Helper()
	var v api.ClusterView
	eventually(t, patience, "GET /cluster", func() (err error) {
		v, err = c.ask.Cluster(t.Context())
		return err
	})
	return v
}

// primary is who holds the role and acts as primary.
func (c *testCluster) primary(t *testing.T) string {
	t.Helper()
	var holder string
	eventually(t, 15*time.Second, "one primary", func() error {
		v := c.view(t)
		for _, n := range v.Nodes {
			if string(n.Name) == v.PrimaryNode && n.CoordinatorState == cluster.RouterPrimary {
				holder = v.PrimaryNode
				return nil
			}
		}
		return fmt.Errorf("the holder is %q", v.PrimaryNode)
	})
	return holder
}

// becomesPrimary waits until the node holds the role and the cluster rests.
func (c *testCluster) becomesPrimary(t *testing.T, name string, limit time.Duration) {
	t.Helper()
	eventually(t, limit, name+" becomes primary", func() error {
		v := c.view(t)
		for _, n := range v.Nodes {
			if string(n.Name) == name && v.PrimaryNode == name && n.CoordinatorState == cluster.RouterPrimary && (v.Transition == nil || !v.Transition.Running()) {
				return nil
			}
		}
		return fmt.Errorf("the holder is %q, wanted %q, the hand-over %s", v.PrimaryNode, v.PrimaryWanted, brief(v.Transition))
	})
}

func brief(t *cluster.Transition) string {
	if t == nil {
		return "none"
	}
	return fmt.Sprintf("%s→%s %s phase %s %s", t.From, t.To, t.State, t.Phase, t.Error)
}

// other is a coordinator that is not primary.
func (c *testCluster) other(primary string) string {
	for _, n := range c.Nodes() {
		if n.Mode() == cluster.Coordinator && string(n.Plan.Name) != primary {
			return string(n.Plan.Name)
		}
	}
	return ""
}

// pid is the node's PID 1 as this machine numbers it.
func (c *testCluster) pid(t *testing.T, node string) int {
	t.Helper()
	for _, n := range c.Status(t.Context()).Nodes {
		if string(n.Name) == node && n.PID != 0 {
			return n.PID
		}
	}
	t.Fatalf("%s does not run", node)
	return 0
}

// inside is the command run in the node's network namespace.
func (c *testCluster) inside(t *testing.T, node string, argv ...string) *exec.Cmd {
	t.Helper()
	return exec.Command("nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", c.pid(t, node)), "--"}, argv...)...)
}

// cli runs `pvc` against the cluster.
func (c *testCluster) cli(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return pvc(t, append([]string{"--api", c.url}, args...)...)
}

// pvc runs the command line, at most a minute.
func pvc(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return pvcTold(t, "", args...)
}

// pvcTold is pvc with something on its standard input.
func pvcTold(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("pvc"), args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatalf("pvc %v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func program(name string) string { return filepath.Join(work, "bin", name) }

// wants fails unless text holds every word.
func wants(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			reasons.note(t, fmt.Sprintf("%s does not say %q", what, w))
			t.Errorf("%s does not say %q:\n%s", what, w, text)
		}
	}
}
