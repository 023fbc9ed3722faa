package acceptance

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// TestWorkloads: what an operator sees of workloads, all of it ordered by the
// command line: a Redis pair that survives its active copy's empty restart, and
// movable ones that survive drains, the loss of their node, and the end of whoever
// moves them.
func TestWorkloads(t *testing.T) {
	t.Parallel()
	c := newUnwatchedCluster(t, 3, 0)
	c.run("orders that cannot be", c.badWorkloads)
	c.run("added", c.addsWorkloads)
	if t.Failed() {
		return // all that follows rests on them
	}
	c.run("Redis restarted empty", c.emptyRestart)
	c.run("drained and ready", c.drains)
	c.run("moved live", c.movesLive)
	c.run("the role moves in the middle of a drain", c.lives("drain-switch"))
	c.run("the primary is killed in the middle of a move", c.lives("janitor-kill"))
	c.run("the agent is killed", c.agentKilled)
	c.run("a node is cut off", c.lives("workload-link-down"))
	c.run("removed", c.removesWorkloads)
	c.keepsInvariants(t)
}

// movables is how many movable workloads there are, job beside.
const movables = 9

// orders runs an order that must be carried out.
func (c *testCluster) orders(t *testing.T, args ...string) string {
	t.Helper()
	out, stderr, code := c.cli(t, args...)
	if code != 0 {
		fails(t, "pvc %s: exit code %d: %s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

// says is what a command that only looks prints, once it prints all of these words
// and none of those that it must not: what has just become true may reach the server
// that is asked a moment later, and one on a busy machine may have to look again.
func (c *testCluster) says(t *testing.T, words []string, not []string, args ...string) {
	t.Helper()
	eventually(t, patience, "pvc "+strings.Join(args, " "), func() error {
		out, stderr, code := c.cli(t, args...)
		if code != 0 {
			return fmt.Errorf("exit code %d: %s%s", code, out, stderr)
		}
		for _, w := range words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("it does not say %q:\n%s", w, out)
			}
		}
		for _, w := range not {
			if strings.Contains(out, w) {
				return fmt.Errorf("it says %q:\n%s", w, out)
			}
		}
		return nil
	})
}

// refused gives an order that must be refused with that word, once the server that is
// asked has seen what is there; it is never carried out.
func (c *testCluster) refused(t *testing.T, word string, args ...string) {
	t.Helper()
	what := "pvc " + strings.Join(args, " ")
	eventually(t, patience, what+" is refused", func() error {
		out, stderr, code := c.cli(t, args...)
		if code == 0 {
			fails(t, "%s was carried out: %s%s", what, out, stderr)
		}
		if !strings.Contains(out+stderr, word) {
			return fmt.Errorf("exit code %d without %q: %s%s", code, word, out, stderr)
		}
		return nil
	})
}

// badWorkloads: what cannot be is refused with words that name it, and nothing is
// added.
func (c *testCluster) badWorkloads(t *testing.T) {
	c.refused(t, "nobody", "workload", "move", "nobody", "--node", "hv1") // by then orders are taken: the first quorum set stands
	redis := func(chain string) []string {
		return []string{"--driver", "redis", "--chain", chain, "--ephemeral"}
	}
	for _, bad := range []struct {
		args  []string
		words string
	}{
		{[]string{"--driver", "magic"}, "magic"},
		{[]string{"--driver", "ocf:heartbeat:Nobody"}, "Nobody"},
		{[]string{"--driver", "ocf:heartbeat:Dummy", "--param", "colour=red"}, "colour"},
		{[]string{"--driver", "exec"}, "command"},
		{redis("hv1,hv77"), "hv77"},
		{redis("hv1,hv1"), "twice"},
		{append(redis("hv1,hv2"), "--param", "port=seven"), "seven"},
	} {
		c.refused(t, bad.words, append([]string{"workload", "add", "bad"}, bad.args...)...)
	}
	c.says(t, nil, []string{"bad"}, "workload", "list")
}

// addsWorkloads: nodes take workloads once they are ready; then all that is added
// runs.
func (c *testCluster) addsWorkloads(t *testing.T) {
	for _, n := range c.Nodes() {
		c.orders(t, "node", "ready", string(n.Plan.Name), "--wait")
	}
	secret := c.RedisWorkload("cache").Params["password_file"]
	c.orders(t, "workload", "add", "cache", "--driver", "redis", "--chain", "hv2,hv3", "--ephemeral", "--param", "password_file="+secret, "--wait")
	for i := range movables + 1 {
		name := fmt.Sprint("m", i)
		if i == movables {
			name = "job"
		}
		c.orders(t, "workload", "add", name, "--driver", "exec", "--param", "command="+c.CopyWorkload(name).Params["command"])
	}
	eventually(t, time.Minute, "all workloads run", func() error {
		for _, w := range c.workloads(t) {
			if w.State != cluster.WorkloadRunning {
				return fmt.Errorf("%s is %s on %v: %s", w.Name, w.State, w.Chain, w.Reason)
			}
		}
		return nil
	})
	c.says(t, []string{"cache", "job", "m0", "redis", "exec", "running"}, nil, "workload", "list")
}

// workloads are all of them, as the API has them.
func (c *testCluster) workloads(t *testing.T) []api.WorkloadView {
	t.Helper()
	var list []api.WorkloadView
	eventually(t, patience, "GET /workloads", func() error {
		list = nil
		if code, body := c.call(t, http.MethodGet, "/workloads", nil, &list); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	return list
}

// emptyRestart: the process of the active copy is killed and comes back empty at
// once. It is not brought online; the replica is promoted, no key is lost, and what
// remains is told until a rebalance.
func (c *testCluster) emptyRestart(t *testing.T) {
	c.lives("redis-restart")(t)
	c.rests(t)
	for _, e := range c.History().Entries() {
		if e.Kind == sandbox.KindKeys && (e.N == 0 || e.Lost != 0) {
			t.Errorf("%d of %d keys are lost", e.Lost, e.N)
		}
	}
	c.spent(t, 1, "a head that came back empty uses the count up")
	c.says(t, []string{"rebalance"}, nil, "explain", "cache")
	c.says(t, []string{"reprovision"}, nil, "history")
	c.orders(t, "rebalance", "--wait")
	c.says(t, nil, []string{"rebalance"}, "workload", "info", "cache")
	c.spent(t, 0, "a finished rebalance gives the count back")
	c.refused(t, "destroy", "workload", "remove", "cache", "--yes", "--wait")
}

// spent waits until auto-reprovision's count is that.
func (c *testCluster) spent(t *testing.T, want int, what string) {
	t.Helper()
	eventually(t, patience, what, func() error {
		var spent api.AutoReprovision
		if code, body := c.call(t, http.MethodGet, "/settings/autoReprovision", nil, &spent); code != http.StatusOK || spent.Count != want {
			return fmt.Errorf("%d %s, want a count of %d", code, body, want)
		}
		return nil
	})
}

// backInTime is how soon a killed agent's successor must be heard of for what it ran
// to go on: well within the role's time and its node's own right.
const backInTime = 2 * time.Second

// agentKilled: what a node runs goes on when its agent is killed, as the primary's
// address does, if the next one is there in time. Where a busy machine was slower the
// end of all that is right, and it is tried again.
func (c *testCluster) agentKilled(t *testing.T) {
	f, err := sandbox.FaultNamed("kill9-restart")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		from := len(c.History().Entries())
		res, err := c.Measure(t.Context(), sandbox.Step{Fault: f})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(res.Line(1))
		if res.Error == "" {
			return
		}
		if gap := unheard(c.History().Entries()[from:], res.Node); gap < backInTime {
			fails(t, "%s, though %s was not heard of for %v only", res.Error, res.Node, gap)
		}
		c.rests(t)
	}
	t.Log("nothing is shown: on this machine no agent is back in time")
}

// unheard is the longest time between two keepalives of the node.
func unheard(entries []sandbox.Entry, node cluster.NodeID) (longest time.Duration) {
	var last cluster.Instant
	for _, e := range entries {
		if e.Kind != sandbox.KindKeepalive || e.Node != node {
			continue
		}
		if !last.IsZero() {
			longest = max(longest, e.At.Sub(last))
		}
		last = e.At
	}
	return longest
}

// drains: a flush with --wait returns when the node is empty, and a ready when what
// was there is back.
func (c *testCluster) drains(t *testing.T) {
	node := c.other(c.primary(t))
	there := func() (names []string) {
		for _, w := range c.workloads(t) {
			for _, n := range w.Chain {
				if string(n) == node {
					names = append(names, w.Name)
				}
			}
		}
		return names
	}
	c.orders(t, "workload", "move", "job", "--node", node, "--wait")
	before := there()
	if !slices.Contains(before, "job") {
		fails(t, "job was moved to %s, where %v are", node, before)
	}
	out := c.orders(t, "node", "flush", node, "--wait")
	wants(t, "pvc node flush --wait", out, node)
	eventually(t, patience, "a flushed node is in no chain", func() error {
		if left := there(); len(left) > 0 {
			return fmt.Errorf("%s is flushed, and %v are in its chains: %s", node, left, out)
		}
		return nil
	})
	c.orders(t, "node", "ready", node, "--wait")
	eventually(t, time.Minute, "what was drained is back", func() error {
		after := there()
		for _, name := range before {
			if !slices.Contains(after, name) {
				return fmt.Errorf("%v are on %s, before the flush %v were", after, node, before)
			}
		}
		return nil
	})
}

// movesLive: what its agent can give and take goes over while it runs.
func (c *testCluster) movesLive(t *testing.T) {
	if _, err := os.Stat("/usr/lib/ocf/resource.d/heartbeat/Dummy"); err != nil {
		t.Skip("needs Debian's package resource-agents")
	}
	c.refused(t, "migrate_to", "workload", "add", "still", "--driver", "ocf:heartbeat:Stateful", "--kind", "movable", "--live")
	c.refused(t, "ocf driver", "workload", "add", "still", "--driver", "exec", "--param", "command=/bin/true", "--live")
	c.orders(t, "workload", "add", "vm", "--driver", "ocf:heartbeat:Dummy", "--live", "--wait")
	wants(t, "pvc workload move --wait", c.orders(t, "workload", "move", "vm", "--wait"), "moved live")
	c.says(t, []string{"vm: moved live from"}, nil, "history")
	c.orders(t, "workload", "set", "vm", "--live=false")
	if out := c.orders(t, "workload", "move", "vm", "--wait"); strings.Contains(out, "live") {
		t.Errorf("without --live: %s", out)
	}
	c.orders(t, "workload", "remove", "vm", "--destroy", "--yes", "--wait")
}

// removesWorkloads: what is removed leaves nothing behind.
func (c *testCluster) removesWorkloads(t *testing.T) {
	c.orders(t, "workload", "remove", "cache", "--destroy", "--yes", "--wait")
	c.orders(t, "workload", "remove", "job", "--destroy", "--yes", "--wait")
	c.says(t, nil, []string{"cache", "job"}, "workload", "list")
}
