package acceptance

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// rubbish is what no record holds.
const rubbish = "\xff\x00{rubbish"

// spoil writes rubbish over the records and returns what restores them.
func (c *testCluster) spoil(t *testing.T, paths ...string) (restore func()) {
	t.Helper()
	old := map[string]znode{}
	for _, path := range paths {
		old[path] = c.foreign.get(t, path)
	}
	for _, path := range paths {
		c.foreign.set(t, path, rubbish)
	}
	return func() {
		t.Helper()
		for _, path := range paths {
			order := map[string]any{"op": "set", "path": path, "hex": old[path].Hex}
			if err := c.foreign.try(t, order, nil); err != nil && !old[path].Ephemeral {
				t.Errorf("restore %s: %v", path, err)
			}
		}
	}
}

// servesOn: the API answers, nobody is fenced, the holder stays.
func (c *testCluster) servesOn(t *testing.T, holder string) {
	t.Helper()
	for _, path := range []string{"/status", "/node", "/cluster", "/history", "/fences", "/node/" + holder} {
		if code, body := c.call(t, http.MethodGet, path, nil, nil); code != 200 {
			t.Errorf("GET %s beside rubbish: %d %s", path, code, body)
		}
	}
	if v := c.view(t); v.PrimaryNode != holder {
		t.Errorf("the role moved from %s to %q", holder, v.PrimaryNode)
	}
	fences, err := c.ask.Fences(t.Context(), "", 0)
	if err != nil {
		t.Error(err)
	}
	for _, f := range fences.Fences {
		t.Errorf("%s was fenced: %s", f.Node, f.Reason)
	}
}

// leafRubbish: what another tool writes into a leaf that the node itself never
// writes is in the node's facts, and so shown by name, after a minute. What it
// returns waits for that.
func (c *testCluster) leafRubbish(t *testing.T) (shown func(*testing.T)) {
	node := string(c.Nodes()[3].Plan.Name)
	leaf := "/nodes/" + node + "/monitoring_health"
	was := c.foreign.get(t, leaf).Value
	c.foreign.set(t, leaf, rubbish)
	return func(t *testing.T) {
		eventually(t, 2*time.Minute, "rubbish in "+leaf+" is shown", func() error {
			if _, told := c.call(t, http.MethodGet, "/node/"+node, nil, nil); !strings.Contains(told, "monitoring_health") {
				return fmt.Errorf("GET /node/%s: %s", node, told)
			}
			return nil
		})
		c.foreign.set(t, leaf, was)
	}
}

// nodeRubbish: rubbish in every record of a secondary, of a hypervisor and of
// the primary itself harms nobody. What a daemon knows it writes again; where
// it does not, the record is shown by name, and restoring it is enough.
func (c *testCluster) nodeRubbish(t *testing.T) {
	holder := c.primary(t)
	mark := c.foreign.mark()
	nodes := []string{holder, c.other(holder), string(c.Nodes()[4].Plan.Name)}
	leaves := []string{"", "/daemonmode", "/domainstate", "/monitoring_health", "/keepalive", "/daemonstate", "/routerstate", "/memtotal", "/cpuload", "/staticdata"}
	var paths []string
	for _, node := range nodes {
		for _, leaf := range leaves {
			paths = append(paths, "/nodes/"+node+leaf)
		}
		paths = append(paths, "/agent/nodes/"+node, "/agent/alive/"+node)
	}
	restore := c.spoil(t, paths...)
	defer func() { restore() }()
	c.servesOn(t, holder)
	c.keepalivesInTime(t, mark)
	c.servesOn(t, holder)
	for _, node := range nodes {
		explained, _, _ := c.cli(t, "explain", node)
		_, shown := c.call(t, http.MethodGet, "/node/"+node, nil, nil)
		names := map[string]string{"": "mode"}
		for _, leaf := range leaves {
			if leaf == "/daemonmode" || leaf == "/monitoring_health" {
				continue // nothing of ours rests on the former; the latter is shown a minute later (leafRubbish)
			}
			if strings.Contains(c.foreign.get(t, "/nodes/"+node+leaf).Value, "{rubbish") {
				wants(t, "what is shown of "+node+" beside rubbish in "+leaf, explained+shown, cmp.Or(names[leaf], leaf[min(1, len(leaf)):]))
			}
		}
		for _, record := range []string{"nodes", "alive"} {
			if strings.Contains(c.foreign.get(t, "/agent/"+record+"/"+node).Value, "{rubbish") {
				wants(t, "what is shown of "+node+" beside rubbish in /agent/"+record, explained+shown, "cannot be read: "+map[string]string{"nodes": "record", "alive": "alive"}[record])
			}
		}
	}
}

// configRubbish: nor does rubbish in what is configured or recorded.
func (c *testCluster) configRubbish(t *testing.T) {
	holder := c.primary(t)
	mark := c.foreign.mark()
	made := map[string]string{
		"/agent/fences/" + c.other(holder): rubbish, "/agent/history/rubbish": rubbish, "/faults/rubbish": rubbish,
		"/agent/views/rubbish": rubbish, "/agent/nodes/rubbish": rubbish, "/agent/alive/rubbish": rubbish, "/nodes/rubbish": rubbish,
		primaryNode + "/rubbish": rubbish, "/config/fence_lock/rubbish": rubbish,
	}
	for path, text := range made {
		if c.foreign.exists(t, path) {
			continue
		}
		c.foreign.create(t, path, text)
		defer c.foreign.remove(t, path)
	}
	paths := []string{"/config", "/config/upstream_ip", "/config/migration_target_selector", "/config/maintenance",
		"/agent/transition", "/agent/schema", "/logs/" + holder + "/messages"}
	for _, path := range []string{"/agent/failover", "/agent/maintenance"} {
		if c.foreign.exists(t, path) {
			paths = append(paths, path)
		}
	}
	restore := c.spoil(t, paths...)
	defer restore()
	c.keepalivesInTime(t, mark)
	c.servesOn(t, holder)
	if out, stderr, code := c.cli(t, "node", "list"); code != 0 || !strings.Contains(out, holder) {
		t.Errorf("pvc node list beside rubbish: exit code %d: %s%s", code, out, stderr)
	}
}

// wishRubbish: rubbish as a wish is no wish; the holder answers it.
func (c *testCluster) wishRubbish(t *testing.T) {
	holder := c.primary(t)
	mark := c.foreign.mark()
	c.foreign.set(t, primaryNode, rubbish)
	eventually(t, 15*time.Second, "the wish names the holder again", func() error {
		if wish := c.foreign.get(t, primaryNode).Value; wish != holder {
			return fmt.Errorf("primary_node is %q", wish)
		}
		return nil
	})
	if states := c.foreign.routerStates(mark); len(states) > 0 {
		t.Errorf("rubbish as a wish moved something: %v", states)
	}
}

// transitionRubbish: a switch goes through over an unreadable record.
func (c *testCluster) transitionRubbish(t *testing.T) {
	c.spoil(t, "/agent/transition") // the switch writes it anew
	to := c.other(c.primary(t))
	if out, stderr, code := c.cli(t, "node", "primary", to, "--wait"); code != 0 {
		t.Errorf("a switch over an unreadable transition: exit code %d: %s%s", code, out, stderr)
	}
	c.becomesPrimary(t, to, 15*time.Second)
}

// leaseRubbish: an unreadable lease is nobody's: the holder stops, nobody
// takes it, and it is shown with the cure; with the record back, and an epoch
// as large, one takes the role again.
func (c *testCluster) leaseRubbish(t *testing.T) {
	const lease = "/agent/lease/primary"
	mark := c.foreign.mark()
	restore := c.spoil(t, lease)
	var out string
	eventually(t, 10*time.Second, "pvc explain primary names the lease record", func() error {
		var code int
		out, _, code = c.cli(t, "explain", "primary")
		if code != 0 || !strings.Contains(out, "lease record cannot be read") {
			if !strings.Contains(c.foreign.get(t, lease).Value, "{rubbish") {
				return nil // whoever wrote it again needs no cure
			}
			return fmt.Errorf("%d: %s", code, out)
		}
		return nil
	})
	c.keepalivesInTime(t, mark)
	t.Logf("with rubbish as lease:\n%s", out)
	if strings.Contains(c.foreign.get(t, lease).Value, "{rubbish") {
		restore()
	}
	c.primary(t)
}
