package acceptance

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// TestOperatorsFences is what an operator types about fences, at a real cluster:
// what is refused changes nothing, what is done is proven.
func TestOperatorsFences(t *testing.T) {
	t.Parallel()
	c := newUnwatchedCluster(t, 3, 1)
	c.run("leases listed", c.leasesListed)
	c.run("what is refused", c.fencesRefused)
	c.run("devices tested", c.devicesTested)
	c.run("settings", c.failoverSettings)
	c.run("a living node fenced", c.fenceOrdered)
	c.run("a fence listed", c.fenceIsAnActivity)
	c.run("a lost node confirmed", c.fenceConfirmed)
	c.run("other devices", c.otherDevices)
	c.run("a coordinator leaves and returns", c.memberLeavesAndReturns)
	c.run("a node has seen a larger epoch", c.epochOutgrown)
	c.keepsInvariants(t)
}

// victim is a node whose loss concerns neither role nor quorum.
func (c *testCluster) victim() *sandbox.Node { return c.Nodes()[3] }

// fences is everything known of fences.
func (c *testCluster) fences(t *testing.T) api.FencesView {
	t.Helper()
	var v api.FencesView
	eventually(t, patience, "GET /fences", func() (err error) {
		v, err = c.ask.Fences(t.Context(), "", 0)
		return err
	})
	return v
}

func (c *testCluster) fencesRefused(t *testing.T) {
	holder, victim := c.primary(t), string(c.victim().Plan.Name)
	from := len(c.History().Entries())
	refused := func(words []string, args ...string) {
		t.Helper()
		out, errs, code := c.cli(t, args...)
		if code != 3 {
			t.Errorf("pvc %v: exit code %d, want 3 (refused): %s", args, code, out)
		}
		wants(t, fmt.Sprint("pvc ", args), errs, words...)
	}
	refused([]string{victim, "is alive", "last keepalive is", "old"}, "fence", "confirm", victim, "--reason", "cables pulled", "-y", "--wait")
	refused([]string{"only the primary fences", "pvc node secondary " + holder}, "fence", "now", holder, "-y")
	refused([]string{`No node named "hv9"`, holder}, "fence", "now", "hv9", "-y")
	refused([]string{`No node named "hv9"`}, "fence", "confirm", "hv9", "--reason", "x", "-y")
	refused([]string{"There is no fence of node", victim}, "fence", "cancel", victim)
	if _, errs, code := c.cli(t, "fence", "confirm", victim, "-y"); code != 2 || !strings.Contains(errs, "--reason") {
		t.Errorf("confirm without a reason: %d %s", code, errs)
	}
	if _, errs, code := c.cli(t, "cluster", "maintenance", "on", "--reason", "test"); code != 0 {
		t.Fatalf("maintenance on: %s", errs)
	}
	refused([]string{"maintenance", "nobody is fenced"}, "fence", "now", victim, "-y")
	if _, errs, code := c.cli(t, "cluster", "maintenance", "off"); code != 0 {
		t.Fatalf("maintenance off: %s", errs)
	}
	if v := c.fences(t); len(v.Fences)+len(v.Orders) > 0 {
		t.Errorf("something was ordered: %+v, %+v", v.Fences, v.Orders)
	}
	for _, e := range c.History().Entries()[from:] {
		if e.Kind == sandbox.KindFence || e.Kind == sandbox.KindPower {
			t.Errorf("something was done: %+v", e)
		}
	}
}

func (c *testCluster) devicesTested(t *testing.T) {
	victim := c.victim()
	name := string(victim.Plan.Name)
	if out, errs, code := c.cli(t, "fence", "test", name, "--wait"); code != 0 || !strings.Contains(out, "ready") {
		t.Errorf("a device that works: exit code %d: %s%s", code, out, errs)
	}
	victim.BMC().WrongPassword(true)
	defer victim.BMC().Clear()
	out, errs, code := c.cli(t, "fence", "test", name, "--wait")
	if code != 1 {
		t.Errorf("a device that refuses the password: exit code %d", code)
	}
	wants(t, "the test of a device that refuses the password", out+errs, "denied", name, "bmc")
	eventually(t, 30*time.Second, "every device has been tested since the start", func() error {
		if v := c.fences(t); len(v.Devices) < len(c.Nodes()) {
			return fmt.Errorf("only %+v", v.Devices)
		}
		return nil
	})
	var status api.Status
	eventually(t, 10*time.Second, "the fault is one of the cluster's health", func() error {
		if c.call(t, http.MethodGet, "/status", nil, &status); strings.Contains(strings.Join(status.HealthMsg, "\n"), "denied") {
			return nil
		}
		return fmt.Errorf("%s: %q", status.Health, status.HealthMsg)
	})
	victim.BMC().Clear()
	if out, _, code := c.cli(t, "fence", "test", name, "--wait"); code != 0 {
		t.Errorf("mended: %s", out)
	}
}

const failoverPath = "/settings/autoFailover"

// failoverSettings: checked by name, changed for every node at once, reset.
func (c *testCluster) failoverSettings(t *testing.T) {
	var before, after api.AutoFailover
	if c.call(t, http.MethodGet, failoverPath, nil, &before); before.Timeout == 0 {
		t.Fatalf("GET %s: %+v", failoverPath, before)
	}
	for form, want := range map[string]string{
		"timeout=0&just_validate=1":           `"timeout":"The value of \"timeout\" must be a positive integer in a range from 1 to 3600"`,
		"maxCount=x":                          `"maxCount":"The value of \"maxCount\"`,
		"enabled=maybe&just_validate=1":       `"enabled":"The value of \"enabled\" must be true or false"`,
		"enabled=true&colour=1":               `"colour"`,
		"enabled=false&maxCount=7&timeout=-1": `"timeout"`,
	} {
		values, _ := url.ParseQuery(form)
		if status, body := c.call(t, http.MethodPost, failoverPath, values, nil); status != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", form, status, body)
		}
	}
	valid := url.Values{"enabled": {"false"}, "timeout": {"60"}, "just_validate": {"1"}}
	if status, body := c.call(t, http.MethodPost, failoverPath, valid, nil); status != 200 || strings.TrimSpace(body) != `{"errors":null}` {
		t.Errorf("valid: %d %s", status, body)
	}
	if c.call(t, http.MethodGet, failoverPath, nil, &after); after != before {
		t.Errorf("checks changed %+v to %+v", before, after)
	}
	if out, errs, code := c.cli(t, "settings", "autofailover", "--timeout", "30", "--max-count", "3"); code != 0 {
		t.Fatalf("%s%s", out, errs)
	}
	defer c.cli(t, "settings", "autofailover", "--timeout", fmt.Sprint(before.Timeout), "--max-count", fmt.Sprint(before.MaxCount))
	for _, n := range c.Nodes()[:3] { // whoever looks elsewhere sees it a moment later
		eventually(t, time.Second, string(n.Plan.Name)+" answers with the new settings", func() error {
			if got := c.settingsAt(t, n); got.Timeout != 30 || got.MaxCount != 3 {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
	}
	if _, errs, code := c.cli(t, "settings", "autofailover", "reset"); code != 0 {
		t.Errorf("reset: %s", errs)
	}
}

// settingsAt asks one node's own pvcapid.
func (c *testCluster) settingsAt(t *testing.T, n *sandbox.Node) (f api.AutoFailover) {
	t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return n.DialAPI(ctx) }}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("http://127.0.0.1:7370/api/v1" + failoverPath)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&f); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s answers %s: %v", n.Plan.Name, answer.Status, err)
	}
	return f
}

func (c *testCluster) fenceOrdered(t *testing.T) {
	victim := string(c.victim().Plan.Name)
	from := len(c.History().Entries())
	out, errs, code := c.cli(t, "fence", "now", victim, "--reason", "its disk is stuck", "-y", "--wait")
	if code != 0 {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	wants(t, "pvc fence now", out, "node "+victim+" is proven dead: verified_off")
	listed, _, _ := c.cli(t, "fence", "list")
	wants(t, "pvc fence list", listed, victim, "verified_off", "its disk is stuck")
	if !c.lostPower(from, victim) {
		t.Errorf("%s was never without power", victim)
	}
	c.returns(t, victim)
}

// lostPower reports whether the node was switched off by its BMC since then.
func (c *testCluster) lostPower(from int, node string) bool {
	for _, e := range c.History().Entries()[from:] {
		if e.Kind == sandbox.KindPower && string(e.Node) == node && !e.On && e.By == "bmc" {
			return true
		}
	}
	return false
}

// returns waits until the node runs again, powering it on where nobody did.
func (c *testCluster) returns(t *testing.T, node string) {
	t.Helper()
	n := c.Node(cluster.NodeID(node))
	eventually(t, time.Minute, node+" runs again", func() error {
		if !n.Powered() {
			return n.On()
		}
		for _, s := range c.view(t).Nodes {
			if string(s.Name) == node && s.Alive && s.DaemonState == cluster.DaemonRun {
				return nil
			}
		}
		return fmt.Errorf("it does not run")
	})
	if _, errs, code := c.cli(t, "settings", "autofailover", "reset"); code != 0 {
		t.Errorf("reset the count: %s", errs)
	}
}

// staged waits for a stage of the node's fence.
func (c *testCluster) staged(t *testing.T, node string, stage cluster.FenceStage, limit time.Duration) cluster.FenceRecord {
	t.Helper()
	var found cluster.FenceRecord
	eventually(t, limit, "the fence of "+node+" stands in "+string(stage), func() error {
		for _, f := range c.fences(t).Fences {
			if string(f.Node) == node && f.Stage == stage {
				found = f
				return nil
			}
		}
		return fmt.Errorf("%+v", c.fences(t).Fences)
	})
	return found
}

// fenceConfirmed: a lost node with a dead BMC waits for whoever has looked.
func (c *testCluster) fenceConfirmed(t *testing.T) {
	victim := c.victim()
	name := string(victim.Plan.Name)
	victim.BMC().Unreachable(true)
	defer victim.BMC().Clear()
	c.switchFailover(t, false)
	if err := victim.Off(); err != nil {
		t.Fatal(err)
	}
	c.explained(t, name, "[disabled]", "set of down nodes stable: clear", "quorum of node leases: clear", "last copy of a workload: not in use yet")
	c.switchFailover(t, true)
	c.staged(t, name, cluster.FenceFailed, time.Minute)
	c.explained(t, name, "verified_off missing", "watchdog missing", "confirmed missing", "returned missing", "pvc fence confirm "+name)
	eventually(t, 30*time.Second, "the fence is canceled", func() error { // not while a try is under way
		if _, errs, code := c.cli(t, "fence", "cancel", name); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, errs)
		}
		return nil
	})
	if f := c.staged(t, name, cluster.FenceManual, time.Minute); !f.Held {
		t.Errorf("canceled and not held: %+v", f)
	}
	out, errs, code := c.cli(t, "fence", "confirm", name, "--reason", "both cables pulled", "-y", "--wait")
	if code != 0 {
		t.Fatalf("confirm: exit code %d: %s%s", code, out, errs)
	}
	wants(t, "pvc fence confirm", out, "node "+name+" is proven dead: confirmed")
	told, _, _ := c.cli(t, "history", "-o", "json")
	wants(t, "the history", told, "both cables pulled")
	victim.BMC().Clear()
	c.returns(t, name)
}

func (c *testCluster) switchFailover(t *testing.T, on bool) {
	t.Helper()
	if _, errs, code := c.cli(t, "settings", "autofailover", fmt.Sprintf("--enabled=%v", on)); code != 0 {
		t.Fatal(errs)
	}
}

// explained waits until `pvc explain` has all the words.
func (c *testCluster) explained(t *testing.T, node string, words ...string) {
	t.Helper()
	eventually(t, 30*time.Second, "pvc explain "+node, func() error {
		out, _, _ := c.cli(t, "explain", node)
		for _, w := range words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("it does not say %q:\n%s", w, out)
			}
		}
		return nil
	})
}

// hangingScript describes itself and hangs in everything else, with a child of
// its own that leaves its session.
const hangingScript = `#!/bin/sh
in=$(cat)
case "$in$*" in *metadata*) cat <<'XML'
<?xml version="1.0" ?>
<resource-agent name="fence_hang" shortdesc="hangs"><parameters></parameters>
<actions><action name="on" automatic="0"/><action name="off"/><action name="status"/><action name="monitor"/><action name="metadata"/></actions></resource-agent>
XML
exit 0;; esac
setsid sleep 1000 &
exec sleep 1000
`

// otherDevices gives the coordinators a device that hangs for one node, and for
// another the controller's password out of ZooKeeper.
func (c *testCluster) otherDevices(t *testing.T) {
	victim, other := c.victim(), c.Nodes()[0]
	agent, key := filepath.Join(t.TempDir(), "fence_hang"), filepath.Join(t.TempDir(), "fence.key")
	if err := os.WriteFile(agent, []byte(hangingScript), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, errs, code := c.cli(t, "fence", "key", "--out", key); code != 0 {
		t.Fatalf("%s%s", out, errs)
	}
	for _, n := range c.Nodes()[:3] {
		defer c.reconfigure(t, string(n.Plan.Name), settings{
			"fencing.nodes." + string(victim.Plan.Name) + ".levels": [][]settings{{{"name": "hang", "type": "agent", "agent": agent, "timeout": "8s"}}},
			"fencing.nodes." + string(other.Plan.Name) + ".levels": [][]settings{{{"name": "bmc", "type": "ipmi", "address": other.Plan.BMC.String(),
				"user": sandbox.BMCUser, "password_secret": "bmc"}}},
			"fencing.secrets.key_file": key,
		})()
	}
	t.Run("a password that ZooKeeper keeps", func(t *testing.T) { c.secretKept(t, other, key) })
	t.Run("a fence agent that hangs", func(t *testing.T) { c.hangingAgent(t, victim, agent) })
}

// secretKept: a password that ZooKeeper keeps, sealed, opens a real controller
// from the moment on that it is stored, and no longer once it is removed.
func (c *testCluster) secretKept(t *testing.T, n *sandbox.Node, key string) {
	test := func(want int, words ...string) {
		t.Helper()
		out, errs, code := c.cli(t, "fence", "test", string(n.Plan.Name), "--wait")
		if code != want {
			t.Errorf("exit code %d, want %d", code, want)
		}
		wants(t, "the test of a device with password_secret", out+errs, words...)
	}
	test(1, "pvc fence secret set bmc")
	password, err := os.ReadFile(filepath.Join(n.Dir, "bmc.pass"))
	if err != nil {
		t.Fatal(err)
	}
	if out, errs, code := pvcTold(t, string(password), "--api", c.url, "fence", "secret", "set", "bmc", "--key", key); code != 0 {
		t.Fatalf("%s%s", out, errs)
	}
	test(0, "ready")
	if out, _, code := c.cli(t, "fence", "secret", "list"); code != 0 || !strings.Contains(out, "bmc") || strings.Contains(out, strings.TrimSpace(string(password))) {
		t.Errorf("list: %s", out)
	}
	if out, errs, code := c.cli(t, "fence", "secret", "remove", "bmc"); code != 0 {
		t.Errorf("%s%s", out, errs)
	}
	test(1, "there is none of that name")
}

// hangingAgent: a fence agent that hangs delays nobody's keepalive and no
// renewal (I10), and leaves nothing behind.
func (c *testCluster) hangingAgent(t *testing.T, victim *sandbox.Node, agent string) {
	name := string(victim.Plan.Name)
	from := len(c.History().Entries())
	if err := victim.Off(); err != nil {
		t.Fatal(err)
	}
	failed := c.staged(t, name, cluster.FenceFailed, time.Minute)
	if failed.Proof != "" || !strings.Contains(failed.Result, "hang") {
		t.Errorf("%+v", failed)
	}
	c.staged(t, name, cluster.FencePowerOff, time.Minute) // a second try
	c.staged(t, name, cluster.FenceFailed, time.Minute)
	limits := sandbox.Limits{Noise: 5 * time.Millisecond, Grace: cluster.ProfileLAN().Grace, Missed: 2*keepaliveInterval + keepaliveInterval/2}
	for _, v := range sandbox.Check(c.History().Entries()[from:], limits) {
		if v.Invariant == "I10" {
			t.Errorf("%s: %s", v.Invariant, v.Text)
		}
	}
	if gap := c.longestGap(from, sandbox.KindLease, c.primary(t)); gap > 2*cluster.ProfileLAN().RenewInterval+time.Second {
		t.Errorf("the role was not renewed for %v beside a fence agent that hangs", gap)
	}
	c.returns(t, name)
	eventually(t, 20*time.Second, "nothing of the fence agent is left", func() error {
		if left := running(agent); left != "" {
			return fmt.Errorf("%s", left)
		}
		return nil
	})
}

// longestGap is the longest time between two writes of that kind by the node.
func (c *testCluster) longestGap(from int, kind sandbox.Kind, node string) (worst time.Duration) {
	var last cluster.Instant
	for _, e := range c.History().Entries()[from:] {
		if e.Kind != kind || string(e.Node) != node || e.Written.IsZero() {
			continue
		}
		if !last.IsZero() {
			worst = max(worst, e.Written.Sub(last))
		}
		last = e.Written
	}
	return worst
}

// running lists the processes of this machine whose command line has the text.
func running(text string) string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil && strings.Contains(string(raw), text) {
			found = append(found, strings.ReplaceAll(string(raw), "\x00", " "))
		}
	}
	return strings.Join(found, "; ")
}
