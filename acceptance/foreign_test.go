package acceptance

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// foreign is a ZooKeeper client of other people's making (kazoo), in a
// process of its own: testdata/foreign.py.
type foreign struct {
	p  *process
	in io.WriteCloser

	mu      sync.Mutex
	next    int
	replies map[int]chan foreignLine
	seen    []foreignLine // changes, in the order they were seen
	started bool
}

// foreignLine is what the client prints: a change or an answer.
type foreignLine struct {
	Path    string `json:"path"`
	Value   string `json:"value"`
	MtimeMS int64  `json:"mtime"` // by the ZooKeeper leader's clock
	Zxid    int64  `json:"zxid"`
	Version int    `json:"version"`

	Started bool            `json:"started"`
	Reply   *int            `json:"reply"`
	Result  json.RawMessage `json:"result"`
	Error   string          `json:"error"`
}

// znode is what a get returns.
type znode struct {
	Value     string `json:"value"`
	Hex       string `json:"hex"`
	Version   int    `json:"version"`
	MtimeMS   int64  `json:"mtime"`
	Ephemeral bool   `json:"ephemeral"`
}

// startForeign runs the client on the cluster's last node, and waits until it
// watches.
func startForeign(t *testing.T, c *testCluster) *foreign {
	t.Helper()
	var hosts []string
	for _, n := range c.Nodes() {
		if n.Mode() == cluster.Coordinator {
			hosts = append(hosts, n.Plan.Cluster.Addr().String()+":2181")
		}
	}
	last := c.Nodes()[len(c.Nodes())-1]
	cmd := c.inside(t, string(last.Plan.Name), python, "testdata/foreign.py", "watch", strings.Join(hosts, ","))
	f := &foreign{replies: map[int]chan foreignLine{}}
	var err error
	if f.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	f.p = start(t, cmd, f.take)
	eventually(t, 30*time.Second, "the foreign client watches", func() error {
		f.p.lives(t)
		f.mu.Lock()
		defer f.mu.Unlock()
		if !f.started {
			return errors.New(f.p.output())
		}
		return nil
	})
	return f
}

func (f *foreign) take(text string) {
	var line foreignLine
	if json.Unmarshal([]byte(text), &line) != nil {
		return // a warning of the library
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case line.Started:
		f.started = true
	case line.Reply != nil:
		if answer := f.replies[*line.Reply]; answer != nil {
			answer <- line
		}
		delete(f.replies, *line.Reply)
	default:
		f.seen = append(f.seen, line)
	}
}

// send gives an order; the answer comes over the channel.
func (f *foreign) send(t *testing.T, order map[string]any) <-chan foreignLine {
	t.Helper()
	f.mu.Lock()
	f.next++
	order["id"] = f.next
	answer := make(chan foreignLine, 1)
	f.replies[f.next] = answer
	f.mu.Unlock()
	raw, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.in.Write(append(raw, '\n')); err != nil {
		t.Fatalf("the foreign client takes no order: %v; it said:\n%s", err, f.p.output())
	}
	return answer
}

// try carries an order out and decodes the result into into unless nil.
func (f *foreign) try(t *testing.T, order map[string]any, into any) error {
	t.Helper()
	select {
	case line := <-f.send(t, order):
		if line.Error != "" {
			return errors.New(line.Error)
		}
		if into != nil {
			return json.Unmarshal(line.Result, into)
		}
		return nil
	case <-time.After(30 * time.Second):
		t.Fatalf("the foreign client does not answer %v", order)
		return nil
	}
}

func (f *foreign) must(t *testing.T, order map[string]any, into any) {
	t.Helper()
	if err := f.try(t, order, into); err != nil {
		t.Fatalf("%v: %v", order, err)
	}
}

func (f *foreign) set(t *testing.T, path, value string) {
	t.Helper()
	f.must(t, map[string]any{"op": "set", "path": path, "hex": hex.EncodeToString([]byte(value))}, nil)
}

func (f *foreign) get(t *testing.T, path string) znode {
	t.Helper()
	var z znode
	f.must(t, map[string]any{"op": "get", "path": path}, &z)
	return z
}

func (f *foreign) create(t *testing.T, path, value string) {
	t.Helper()
	f.must(t, map[string]any{"op": "create", "path": path, "hex": hex.EncodeToString([]byte(value))}, nil)
}

func (f *foreign) remove(t *testing.T, path string) {
	t.Helper()
	f.must(t, map[string]any{"op": "delete", "path": path, "recursive": true}, nil)
}

func (f *foreign) exists(t *testing.T, path string) bool {
	t.Helper()
	var there bool
	f.must(t, map[string]any{"op": "exists", "path": path}, &there)
	return there
}

// mark is a point in what the client has seen.
func (f *foreign) mark() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.seen)
}

// since are the changes after the mark.
func (f *foreign) since(mark int) []foreignLine {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]foreignLine{}, f.seen[mark:]...)
}

// nodeOf splits /nodes/NODE/LEAF.
func nodeOf(path, leaf string) (node string, ok bool) {
	node, ok = strings.CutSuffix(strings.TrimPrefix(path, "/nodes/"), "/"+leaf)
	return node, ok && !strings.Contains(node, "/")
}

// routerStates are the states that each node went into since the mark. A state
// that is written once more is none: an announced switch that was called off, say,
// has the holder write that it is primary.
func (f *foreign) routerStates(mark int) map[string][]string {
	states, was := map[string][]string{}, map[string]string{}
	for i, line := range f.since(0) {
		node, ok := nodeOf(line.Path, "routerstate")
		if !ok || line.Value == was[node] {
			continue
		}
		was[node] = line.Value
		if i >= mark {
			states[node] = append(states[node], line.Value)
		}
	}
	return states
}

// twoPrimaries replays everything seen and says where two nodes were
// `primary` at once, "" if nowhere.
func (f *foreign) twoPrimaries() string {
	now := map[string]string{}
	for _, line := range f.since(0) {
		node, ok := nodeOf(line.Path, "routerstate")
		if !ok {
			continue
		}
		now[node] = line.Value
		var primaries []string
		for n, state := range now {
			if state == "primary" {
				primaries = append(primaries, n)
			}
		}
		if len(primaries) > 1 {
			return fmt.Sprintf("%v at zxid %#x", primaries, line.Zxid)
		}
	}
	return ""
}

// gaps are the longest times between two keepalives of each node since the
// mark, by the ZooKeeper leader's clock.
func (f *foreign) gaps(mark int) map[string]time.Duration {
	last, worst := map[string]int64{}, map[string]time.Duration{}
	for _, line := range f.since(mark) {
		node, ok := nodeOf(line.Path, "keepalive")
		if !ok || line.MtimeMS == 0 {
			continue
		}
		if before := last[node]; before != 0 {
			worst[node] = max(worst[node], time.Duration(line.MtimeMS-before)*time.Millisecond)
		}
		last[node] = line.MtimeMS
	}
	return worst
}

// keepalivesInTime fails if a node has missed one since the mark. It waits
// until each has written three.
func (c *testCluster) keepalivesInTime(t *testing.T, mark int) {
	t.Helper()
	for _, n := range c.Nodes() {
		name := string(n.Plan.Name)
		eventually(t, 10*time.Second, "three keepalives of "+name, func() error { return c.foreign.keepalives(mark, name, 3) })
		if gap := c.foreign.gaps(mark)[name]; gap >= lateKeepalive {
			t.Errorf("%s missed a keepalive: %v between two, want %v", name, gap, keepaliveInterval)
		}
	}
}

// keepalives is nil once so many of the node have been seen since the mark.
func (f *foreign) keepalives(mark int, name string, want int) error {
	count := 0
	for _, line := range f.since(mark) {
		if node, ok := nodeOf(line.Path, "keepalive"); ok && node == name {
			count++
		}
	}
	if count < want {
		return fmt.Errorf("%d keepalives", count)
	}
	return nil
}
