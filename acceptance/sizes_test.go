package acceptance

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

func TestOneCoordinator(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, 0)
	c.run("every role", c.everyRole)
	c.run("REST", c.restAnswers)
	c.run("commands", c.commands)
	c.run("nobody else could serve", c.lonelyRefusesSecondary)
	c.keepsInvariants(t)
}

func TestTwoCoordinators(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2, 0)
	c.run("every role", c.everyRole)
	c.run("commands", c.commands)
	c.keepsInvariants(t)
}

func TestFiveCoordinators(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 5, 0)
	c.run("every role", c.everyRole)
	c.run("commands", c.commands)
	c.keepsInvariants(t)
}

func TestThreeCoordinatorsAndTwoHypervisors(t *testing.T) {
	c := newCluster(t, 3, 2)
	c.run("every role", c.everyRole)
	c.run("REST", c.restAnswers)
	c.run("watch", c.watchTells)
	c.run("commands", c.commands)
	c.run("a foreign client sees twenty switches", c.foreignSeesSwitches)
	c.run("a foreign lock excludes us", c.foreignLockExcludes)
	c.run("our lock excludes a foreign client", c.ourLockExcludes)
	c.run("a foreign wish for an unknown node", c.foreignWishForNobody)
	c.run("ZooKeeper unreachable at start", c.unreachableAtStart)
	c.run("server names", c.names)
	c.run("duplicate names", c.duplicateNames)
	c.run("foreign trees", c.foreignTrees)
	c.run("credentials", c.credentials)
	c.run("missing interface", c.missingInterface)
	c.run("plugins", c.plugins)
	leafRubbishIsShown := c.leafRubbish(t)
	c.run("rubbish in node records", c.nodeRubbish)
	c.run("rubbish in the configuration", c.configRubbish)
	c.run("rubbish as a wish", c.wishRubbish)
	c.run("rubbish in the transition", c.transitionRubbish)
	c.run("rubbish in the lease", c.leaseRubbish)
	c.run("hooks", c.hooks)
	c.run("requests in each phase", c.requestsInEachPhase)
	c.run("rubbish in a leaf of another's", leafRubbishIsShown)
	c.keepsInvariants(t)
}

// keepsInvariants judges everything that has happened to the cluster.
func (c *testCluster) keepsInvariants(t *testing.T) {
	t.Helper()
	if c.foreign != nil {
		c.foreignSawOnePrimary(t)
	}
	noise, err := c.Noise(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	broken := sandbox.Check(c.History().Entries(), sandbox.Limits{Noise: max(5*time.Millisecond, noise), Grace: cluster.ProfileLAN().Grace,
		Right: cluster.ProfileLAN().StopAfter(), Stop: time.Second})
	for _, v := range broken {
		t.Errorf("%s is broken at %v: %s", v.Invariant, time.Duration(v.At), v.Text)
	}
	if len(broken) > 0 {
		t.Logf("who held the role, and who answered:\n%s", story(c.History().Entries()))
	}
}

// foreignSawOnePrimary judges what the foreign client has seen.
func (c *testCluster) foreignSawOnePrimary(t *testing.T) {
	t.Helper()
	if two := c.foreign.twoPrimaries(); two != "" {
		t.Errorf("two nodes were `primary` at once: %s", two)
	}
	for node, states := range c.foreign.routerStates(0) {
		n := c.Node(cluster.NodeID(node))
		if n == nil || n.Mode() != cluster.Hypervisor {
			continue
		}
		for _, state := range states {
			if state != string(cluster.RouterClient) && !strings.Contains(state, "{rubbish") { // what a test has planted
				t.Errorf("the hypervisor %s was %q", node, state)
			}
		}
	}
}

// story is the history without renewals: holders and answers in order.
func story(entries []sandbox.Entry) string {
	var b strings.Builder
	var last sandbox.Entry
	for _, e := range entries {
		switch e.Kind {
		case sandbox.KindLease:
			if e.Node == last.Node && e.Epoch == last.Epoch {
				last = e
				continue
			}
			fmt.Fprintf(&b, "%v  lease %q epoch %d; before, %q was seen to renew at %v\n", time.Duration(e.At), e.Node, e.Epoch, last.Node, time.Duration(last.At))
			last = e
		case sandbox.KindAnswer, sandbox.KindTwice:
			fmt.Fprintf(&b, "%v  %s %s %s until %v\n", time.Duration(e.At), e.Kind, e.Node, e.Addr, time.Duration(e.Until))
		}
	}
	return b.String()
}
