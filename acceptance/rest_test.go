package acceptance

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

type nodeSummary = api.NodeSummary

// everyRole: one coordinator is primary, the others secondary, hypervisors
// client.
func (c *testCluster) everyRole(t *testing.T) {
	holder := c.primary(t)
	for _, n := range c.Nodes() {
		want := cluster.RouterSecondary
		switch {
		case n.Mode() == cluster.Hypervisor:
			want = cluster.RouterClient
		case string(n.Plan.Name) == holder:
			want = cluster.RouterPrimary
		}
		got := c.foreign.get(t, "/nodes/"+string(n.Plan.Name)+"/routerstate").Value
		if got != string(want) {
			t.Errorf("%s is %q, want %q", n.Plan.Name, got, want)
		}
	}
}

// lonelyRefusesSecondary: where nobody else could take the role, giving it up is
// refused with the reason, and a foreign `none` is undone; nothing stops.
func (c *testCluster) lonelyRefusesSecondary(t *testing.T) {
	name, mark := c.primary(t), c.foreign.mark()
	status, body := c.call(t, http.MethodPost, "/node/"+name+"/coordinator-state", url.Values{"state": {"secondary"}}, nil)
	if status != http.StatusBadRequest {
		t.Errorf("secondary of a lone coordinator: status %d, want 400", status)
	}
	wants(t, "the refusal over REST", body, name, "only coordinator")
	_, stderr, code := c.cli(t, "node", "secondary", name)
	if code != 3 {
		t.Errorf("pvc node secondary: exit code %d, want 3 (refused)", code)
	}
	wants(t, "pvc node secondary", stderr, name, "only coordinator")
	_, stderr, code = c.cli(t, "node", "secondary", name, "--wait")
	if code != 3 {
		t.Errorf("pvc node secondary --wait: exit code %d, want 3 (refused): %s", code, stderr)
	}
	c.foreign.set(t, primaryNode, cluster.NoNode)
	eventually(t, 10*time.Second, "a foreign `none` is refused", func() error {
		if wish := c.foreign.get(t, primaryNode).Value; wish != name {
			return fmt.Errorf("primary_node is %q", wish)
		}
		return nil
	})
	if states := c.foreign.routerStates(mark); len(states) > 0 {
		t.Errorf("a lone primary that may not give up went through %v", states)
	}
	out, _, _ := c.cli(t, "history")
	wants(t, "pvc history", out, "wish_refused", "no other coordinator", name+" stays")
}

// restAnswers: the paths that other people's clients call.
func (c *testCluster) restAnswers(t *testing.T) {
	holder := c.primary(t)
	var status api.Status
	if code, body := c.call(t, http.MethodGet, "/status", nil, &status); code != 200 || status.PrimaryNode != holder || status.Maintenance != "false" {
		t.Errorf("GET /status: %d %s", code, body)
	}
	if want := len(c.Nodes()); status.Nodes["total"] != want {
		t.Errorf("GET /status counts %d nodes, want %d", status.Nodes["total"], want)
	}
	var nodes []api.Node
	if code, body := c.call(t, http.MethodGet, "/node", nil, &nodes); code != 200 || len(nodes) != len(c.Nodes()) {
		t.Errorf("GET /node: %d %s", code, body)
	}
	for _, n := range c.Nodes() {
		c.restNode(t, string(n.Plan.Name), string(n.Plan.Name) == holder)
	}
	if code, _ := c.call(t, http.MethodGet, "/node?coordinator_state=primary", nil, &nodes); code != 200 || len(nodes) != 1 || nodes[0].Name != holder {
		t.Errorf("GET /node?coordinator_state=primary: %d %v", code, nodes)
	}
	for path, want := range map[string]int{"/node/nobody": 404, "/node/nobody/coordinator-state": 404, "/node?limit=%5B": 400, "/node?limit=nobody": 404, "/nothing": 404} {
		if code, body := c.call(t, http.MethodGet, path, nil, nil); code != want || !strings.Contains(body, `"message"`) {
			t.Errorf("GET %s: %d %s, want %d with a message", path, code, body, want)
		}
	}
	var who api.PrimaryNode
	if code, body := c.call(t, http.MethodGet, "/status/primary_node", nil, &who); code != 200 || who.PrimaryNode != holder {
		t.Errorf("GET /status/primary_node: %d %s", code, body)
	}
	v := c.view(t)
	if v.PrimaryNode != holder || v.PrimaryWanted != holder || v.Stale || v.Version == "" {
		t.Errorf("GET /cluster: %+v", v)
	}
	c.refusedStates(t, holder)
	if out, err := exec.CommandContext(t.Context(), "curl", "-fsS", c.url+"/api/v1/node/"+holder+"/coordinator-state").Output(); err != nil {
		t.Errorf("curl: %v", err)
	} else if want := fmt.Sprintf(`{"name":%q,"coordinator_state":"primary"}`, holder); strings.TrimSpace(string(out)) != want {
		t.Errorf("curl prints %s, want %s", out, want)
	}
}

func (c *testCluster) restNode(t *testing.T, name string, primary bool) {
	t.Helper()
	var n api.Node
	code, body := c.call(t, http.MethodGet, "/node/"+name, nil, &n)
	if code != 200 || n.Name != name || n.DaemonState != "run" || n.Memory.Total == 0 || n.CPUCount == 0 {
		t.Errorf("GET /node/%s: %d %s", name, code, body)
	}
	if n.PVCVersion == "" {
		t.Errorf("GET /node/%s: pvc_version is empty", name)
	}
	var state api.NodeCoordinatorState
	code, body = c.call(t, http.MethodGet, "/node/"+name+"/coordinator-state", nil, &state)
	if code != 200 || state.Name != name || (state.CoordinatorState == "primary") != primary {
		t.Errorf("GET /node/%s/coordinator-state: %d %s", name, code, body)
	}
}

// refusedStates: what may not be asked for, each with its reason.
func (c *testCluster) refusedStates(t *testing.T, holder string) {
	post := func(node string, form url.Values) (int, string) {
		return c.call(t, http.MethodPost, "/node/"+node+"/coordinator-state", form, nil)
	}
	primary := url.Values{"state": {"primary"}}
	if code, body := post("nobody", primary); code != 400 || !strings.Contains(body, "nobody") {
		t.Errorf("an unknown node as primary: %d %s", code, body)
	}
	if code, body := post(holder, url.Values{"state": {"king"}}); code != 400 || !strings.Contains(body, `{"message":{"state":`) {
		t.Errorf("an unknown state: %d %s", code, body)
	}
	if code, body := post(holder, primary); code != 200 || !strings.Contains(body, "already") {
		t.Errorf("the primary as primary: %d %s", code, body)
	}
	for _, n := range c.Nodes() {
		if n.Mode() != cluster.Hypervisor {
			continue
		}
		if code, body := post(string(n.Plan.Name), primary); code != 400 || !strings.Contains(body, "non-coordinator") {
			t.Errorf("a hypervisor as primary: %d %s", code, body)
		}
	}
	if code, _ := c.call(t, http.MethodDelete, "/status", nil, nil); code != 405 {
		t.Errorf("DELETE /status: %d, want 405", code)
	}
}

// watchTells: long poll and server-sent events bring each change.
func (c *testCluster) watchTells(t *testing.T) {
	version := c.view(t).Version
	var v api.ClusterView
	if code, _ := c.call(t, http.MethodGet, "/watch?wait=300ms&since="+url.QueryEscape(version), nil, &v); code != 200 || v.Version != version {
		t.Errorf("a long poll without a change: %d, version %s, want %s", code, v.Version, version)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/api/v1/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if kind := res.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") {
		t.Fatalf("GET /watch answers with %q", kind)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	next := func() api.ClusterView {
		var got api.ClusterView
		for event := ""; lines.Scan(); {
			if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				event = name
			}
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && event == "cluster" {
				if err := json.Unmarshal([]byte(data), &got); err != nil {
					t.Fatal(err)
				}
				return got
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return got
	}
	if got := next(); got.PrimaryNode == "" || got.Maintenance.On {
		t.Errorf("the first event is %+v", got)
	}
	for _, on := range []string{"true", "false"} {
		if code, body := c.call(t, http.MethodPost, "/status", url.Values{"state": {on}}, nil); code != 200 {
			t.Fatalf("maintenance %s: %d %s", on, code, body)
		}
		for next().Maintenance.On != (on == "true") {
		}
	}
}

// commands: what the README's reader types.
func (c *testCluster) commands(t *testing.T) {
	holder := c.primary(t)
	out, _, code := c.cli(t, "node", "list")
	if code != 0 {
		t.Errorf("pvc node list: exit code %d", code)
	}
	for _, n := range c.Nodes() {
		wants(t, "pvc node list", out, string(n.Plan.Name))
	}
	wants(t, "pvc node list", out, "primary")
	out, _, _ = c.cli(t, "cluster", "status")
	wants(t, "pvc cluster status", out, holder, "Optimal")
	c.maintenance(t)
	if _, stderr, code := c.cli(t, "node", "primary", "nobody", "--wait"); code != 3 || !strings.Contains(stderr, "nobody") {
		t.Errorf("pvc node primary nobody: exit code %d, %s", code, stderr)
	}
	if _, stderr, code := pvc(t, "--api", "http://127.0.0.1:9", "node", "list"); code != 4 || !strings.Contains(stderr, "127.0.0.1:9") {
		t.Errorf("pvc without a server: exit code %d, %s", code, stderr)
	}
	to := c.other(holder)
	if to == "" {
		return
	}
	watch := start(t, exec.Command(program("pvc"), "--api", c.url, "node", "watch"), nil)
	eventually(t, 10*time.Second, "pvc node watch shows the present", watch.said("primary: – → "+holder))
	out, stderr, code := c.cli(t, "node", "primary", to, "--wait")
	if code != 0 {
		t.Errorf("pvc node primary %s --wait: exit code %d: %s", to, code, stderr)
	}
	wants(t, "pvc node primary --wait", out, holder+" → "+to, "A announce", "B stop", "C hand over", "D addresses", "E start", "done in")
	// It shows what is there when it looks: a state that lasts for milliseconds may
	// pass in between, and the two nodes' ends come one after the other.
	for node, end := range map[string]string{to: " → primary", holder: " → secondary"} {
		eventually(t, 5*time.Second, "pvc node watch shows the switch", func() error {
			for line := range strings.Lines(watch.output()) {
				if _, change, ok := strings.Cut(strings.TrimSpace(line), node+" coordinator: "); ok && strings.HasSuffix(change, end) {
					return nil
				}
			}
			return fmt.Errorf("no %q of %s in:\n%s", end, node, watch.output())
		})
	}
	if got := c.primary(t); got != to {
		t.Errorf("after --wait has returned %s is primary, want %s", got, to)
	}
}

func (c *testCluster) maintenance(t *testing.T) {
	t.Helper()
	if out, stderr, code := c.cli(t, "cluster", "maintenance", "on", "--reason", "disks"); code != 0 {
		t.Errorf("pvc cluster maintenance on: exit code %d: %s%s", code, out, stderr)
	}
	if got := c.foreign.get(t, "/config/maintenance").Value; got != "true" {
		t.Errorf("/config/maintenance holds %q, want true", got)
	}
	out, _, _ := c.cli(t, "cluster", "status")
	wants(t, "pvc cluster status in maintenance", out, "Maintenance")
	eventually(t, 5*time.Second, "the reason of the maintenance is shown", func() error { // its record is seen beside the switch, not with it
		if v := c.view(t); v.Maintenance.Reason != "disks" {
			return fmt.Errorf("it is %q", v.Maintenance.Reason)
		}
		return nil
	})
	if _, stderr, code := c.cli(t, "cluster", "maintenance", "off"); code != 0 {
		t.Errorf("pvc cluster maintenance off: exit code %d: %s", code, stderr)
	}
	if got := c.foreign.get(t, "/config/maintenance").Value; got != "false" {
		t.Errorf("/config/maintenance holds %q, want false", got)
	}
}
