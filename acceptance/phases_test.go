package acceptance

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// reconfigure changes a node's settings and starts its agent anew; what it
// returns does it back.
func (c *testCluster) reconfigure(t *testing.T, name string, change settings) (undo func()) {
	t.Helper()
	file := filepath.Join(c.Node(cluster.NodeID(name)).Dir, "pvcnoded.yaml")
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	conf := settings{}
	if err := yaml.Unmarshal(old, &conf); err != nil {
		t.Fatal(err)
	}
	conf.with(change).write(t, file)
	c.restartAgent(t, name)
	return func() {
		t.Helper()
		if err := os.WriteFile(file, old, 0o600); err != nil {
			t.Fatal(err)
		}
		c.restartAgent(t, name)
	}
}

func (c *testCluster) restartAgent(t *testing.T, name string) {
	t.Helper()
	n := c.Node(cluster.NodeID(name))
	if err := n.Signal(t.Context(), "pvcnoded", unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the agent of "+name+" ends", func() error {
		programs, err := n.Programs(t.Context())
		if err == nil && programs["pvcnoded"].Running {
			return fmt.Errorf("it runs")
		}
		return err
	})
	if err := n.Start(t.Context(), "pvcnoded"); err != nil {
		t.Fatal(err)
	}
	c.rests(t)
	mayContend(t)
}

// mayContend waits until a node that has just registered may take the role: it
// takes none for L.
func mayContend(t *testing.T) {
	t.Helper()
	registered := time.Now()
	eventually(t, 10*time.Second, "it may take the role", func() error {
		if since := time.Since(registered); since < cluster.ProfileLAN().RoleTTL {
			return fmt.Errorf("registered %v ago", since)
		}
		return nil
	})
}

// stubborn is a hook that no SIGTERM ends; token names its process.
func stubborn(token string) settings {
	return settings{"name": "stubborn", "kind": "hook", "stop_timeout": "2s", "start_timeout": "10s",
		"command": []string{"/bin/sh", "-c", "trap '' TERM; while :; do sleep " + token + " & wait; done"}}
}

// hooks: a hook that no signal but SIGKILL ends delays a switch by its time-out
// and is gone then; one that never becomes ready leaves a primary with a
// fault that names it. No keepalive is late.
func (c *testCluster) hooks(t *testing.T) {
	token := fmt.Sprint(86400*366 + os.Getpid())
	slow := c.other(c.primary(t))
	undo := c.reconfigure(t, slow, settings{"services": []settings{stubborn(token),
		{"name": "neverready", "kind": "hook", "command": []string{"/bin/sleep", token}, "check": []string{"/bin/false"}, "start_timeout": "1s", "stop_timeout": "1s"}}})
	defer undo()
	mark := c.foreign.mark()
	out, stderr, _ := c.cli(t, "node", "primary", slow, "--wait", "--wait-timeout", "30s")
	c.becomesPrimary(t, slow, 30*time.Second)
	wants(t, "pvc node primary --wait", out, slow)
	eventually(t, 10*time.Second, "the service that never becomes ready is shown", func() error {
		explained, _, _ := c.cli(t, "explain", "primary")
		status, _, _ := c.cli(t, "cluster", "status")
		info, _, _ := c.cli(t, "node", "info", slow)
		if !strings.Contains(explained+status+info, "neverready") {
			return fmt.Errorf("%s%s%s%s%s", out, stderr, explained, status, info)
		}
		return nil
	})
	to := c.other(slow)
	began := time.Now()
	if out, stderr, code := c.cli(t, "node", "primary", to, "--wait", "--wait-timeout", "30s"); code != 0 {
		t.Errorf("a switch away from a stubborn hook: exit code %d: %s%s", code, out, stderr)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("a hook with a stop_timeout of 2 s held a switch up for %v", took)
	}
	if count := processesWith(token); count > 0 {
		t.Errorf("%d processes of the hooks outlived the role", count)
	}
	c.becomesPrimary(t, to, 10*time.Second)
	c.keepalivesInTime(t, mark)
}

// requestsInEachPhase: whatever is asked for while a switch runs is answered
// at once, and the newest wish is served in the end.
func (c *testCluster) requestsInEachPhase(t *testing.T) {
	names := []string{}
	for _, n := range c.Nodes()[:3] {
		names = append(names, string(n.Plan.Name))
	}
	slow, one, two := names[2], names[0], names[1]
	token := fmt.Sprint(86400*367 + os.Getpid())
	ready := filepath.Join(c.Dir(), "ready")
	service := stubborn(token)
	service["check"] = []string{"/bin/sh", "-c", "test -e " + ready}
	undo := c.reconfigure(t, slow, settings{"services": []settings{service}})
	defer undo()
	open := func() {
		if err := os.WriteFile(ready, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shut := func() { _ = os.Remove(ready) }
	for _, s := range []struct {
		phase    cluster.Phase
		from, to string
		last     string // the newest wish, asked for in that phase
	}{
		{cluster.PhaseAnnounce, one, two, slow},
		{cluster.PhaseAnnounce, one, two, cluster.NoNode},
		{cluster.PhaseStop, slow, one, two},
		{cluster.PhaseStop, slow, one, cluster.NoNode},
		// The record stands at E until its services have started; D is over in milliseconds.
		{cluster.PhaseStart, one, slow, two},
		{cluster.PhaseStart, one, slow, cluster.NoNode},
	} {
		t.Run(fmt.Sprintf("%s in phase %s", s.last, s.phase), func(t *testing.T) {
			open()
			c.bring(t, s.from)
			if s.phase == cluster.PhaseStart {
				shut()
			}
			c.requestsIn(t, s.phase, s.to, s.last)
			open()
			c.newestWishIsServed(t, s.last)
		})
	}
	c.bring(t, one)
}

// bring makes the node primary and waits for rest.
func (c *testCluster) bring(t *testing.T, name string) {
	t.Helper()
	eventually(t, 30*time.Second, "asking for "+name, func() error {
		code, body := c.call(t, http.MethodPost, "/node/"+name+"/coordinator-state", url.Values{"state": {"primary"}}, nil)
		if code != 200 {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	c.becomesPrimary(t, name, 30*time.Second)
	c.rests(t)
}

// requestsIn starts a switch, waits for its phase and asks for everything at
// once, the wish last.
func (c *testCluster) requestsIn(t *testing.T, phase cluster.Phase, to, last string) {
	t.Helper()
	c.foreign.set(t, primaryNode, to)
	eventually(t, 20*time.Second, "phase "+string(phase), func() error {
		v := c.view(t)
		if v.Transition == nil || !v.Transition.Running() || string(v.Transition.To) != to || v.Transition.Phase != phase {
			return fmt.Errorf("the hand-over: %s", brief(v.Transition))
		}
		return nil
	})
	began := time.Now()
	ask := func(want int, path string, form url.Values) {
		if code, body := c.call(t, http.MethodPost, path, form, nil); code != want {
			t.Errorf("POST %s %v in phase %s: %d %s, want %d", path, form, phase, code, body, want)
		}
	}
	ask(400, "/node/hv77/coordinator-state", url.Values{"state": {"primary"}})
	ask(400, "/switch", url.Values{"to": {"hv77"}})
	ask(200, "/status", url.Values{"state": {"true"}})
	ask(200, "/status", url.Values{"state": {"false"}})
	ask(200, "/node/"+to+"/coordinator-state", url.Values{"state": {"primary"}})
	if last == cluster.NoNode {
		c.foreign.set(t, primaryNode, cluster.NoNode)
	} else {
		ask(200, "/node/"+last+"/coordinator-state", url.Values{"state": {"primary"}})
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the requests of phase %s took %v", phase, took)
	}
}

// newestWishIsServed: the role ends where it was wished last, or with a holder
// whose name stands in primary_node.
func (c *testCluster) newestWishIsServed(t *testing.T, last string) {
	t.Helper()
	if last != cluster.NoNode {
		c.becomesPrimary(t, last, 40*time.Second)
	}
	eventually(t, 40*time.Second, "rest", func() error {
		v := c.view(t)
		if v.PrimaryNode == "" || v.PrimaryWanted != v.PrimaryNode || v.Transition.Running() {
			return fmt.Errorf("the holder is %q, wanted %q, the hand-over %s", v.PrimaryNode, v.PrimaryWanted, brief(v.Transition))
		}
		return nil
	})
	c.rests(t)
}
