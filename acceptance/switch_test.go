package acceptance

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

const primaryNode = "/config/primary_node"

// switches is how many planned switches the foreign client watches.
const switches = 20

// The two ways through the states in a switch.
var (
	takeover   = []string{"takeover", "primary"}
	relinquish = []string{"relinquish", "secondary"}
)

// stateAfter are the states that may follow one, the next one on the way first:
// a switch may also be called off, and then nothing has changed.
var stateAfter = map[string][]string{
	"secondary": {"takeover"}, "takeover": {"primary", "secondary"}, "primary": {"relinquish"}, "relinquish": {"secondary", "primary"},
}

// foreignSeesSwitches: in each of many switches, asked for in turn by the
// foreign client's own write of a name, its `none`, and the API, both sides'
// states come in order, and two nodes are never primary. The client reads a state
// after it was told of a change, so that on a busy machine one that lasts for
// milliseconds passes unseen; most are seen.
func (c *testCluster) foreignSeesSwitches(t *testing.T) {
	start, whole := c.foreign.mark(), 0
	for i := range switches {
		from := c.primary(t)
		mark := c.foreign.mark()
		to, how := c.other(from), ""
		switch i % 3 {
		case 0:
			how = "a foreign write of " + to
			c.foreign.set(t, primaryNode, to)
		case 1:
			how, to = "a foreign write of none", ""
			c.foreign.set(t, primaryNode, cluster.NoNode)
		case 2:
			how = "the API"
			if status, body := c.call(t, http.MethodPost, "/node/"+to+"/coordinator-state", url.Values{"state": {"primary"}}, nil); status != http.StatusOK {
				t.Fatalf("switch %d: %d %s", i, status, body)
			}
		}
		var states map[string][]string
		eventually(t, 15*time.Second, fmt.Sprintf("switch %d (%s) is seen", i, how), func() error {
			states = c.foreign.routerStates(mark)
			for node, path := range states {
				if node != from && path[len(path)-1] == "primary" && (to == "" || node == to) && last(states[from]) == "secondary" {
					return nil
				}
			}
			return fmt.Errorf("from %s to %q: %v", from, to, states)
		})
		inOrder := 0
		for node, path := range states {
			if slices.Equal(path, takeover) || node == from && slices.Equal(path, relinquish) {
				inOrder++
			}
		}
		if inOrder == 2 && len(states) == 2 {
			whole++
		}
		eventually(t, 5*time.Second, "the wish names the new primary", func() error {
			if wish, holder := c.foreign.get(t, primaryNode).Value, c.primary(t); wish != holder {
				return fmt.Errorf("primary_node is %q, the primary %q", wish, holder)
			}
			return nil
		})
	}
	if whole == 0 {
		fails(t, "of %d switches the foreign client has seen none whole and in order", switches)
	}
	for node, path := range c.foreign.routerStates(start) {
		if bad := outOfOrder(path); bad != "" {
			t.Errorf("%s went %s: %v", node, bad, path)
		}
	}
	if two := c.foreign.twoPrimaries(); two != "" {
		t.Errorf("two nodes were primary at once: %s", two)
	}
	c.keepalivesInTime(t, start)
}

func last(path []string) string {
	if len(path) == 0 {
		return ""
	}
	return path[len(path)-1]
}

// outOfOrder names a step that cannot be, also where one state in between went
// unseen; empty: there is none.
func outOfOrder(path []string) string {
	for i := 1; i < len(path); i++ {
		from, to := path[i-1], path[i]
		ok := slices.Contains(stateAfter[from], to)
		for _, unseen := range stateAfter[from] {
			ok = ok || slices.Contains(stateAfter[unseen], to)
		}
		if !ok {
			return "from " + from + " to " + to
		}
	}
	return ""
}

// foreignLockExcludes: while a kazoo Lock on primary_node is held nobody of
// ours changes the holder or touches its child; then the switch goes on.
func (c *testCluster) foreignLockExcludes(t *testing.T) {
	from := c.primary(t)
	to := c.other(from)
	var child string
	c.foreign.must(t, map[string]any{"op": "lock", "path": primaryNode}, &child)
	child = primaryNode + "/" + strings.TrimPrefix(child, primaryNode+"/")
	before := c.foreign.mark()
	c.foreign.set(t, primaryNode, to)
	// Several of our lock time-outs long; the child is there and nothing moves.
	watchUntil := time.Now().Add(4 * time.Second)
	eventually(t, 10*time.Second, "the foreign lock has been held for a while", func() error {
		if !c.foreign.exists(t, child) {
			t.Fatalf("the foreign client's lock %s was deleted", child)
		}
		if states := c.foreign.routerStates(before); len(states) > 0 {
			t.Fatalf("a switch began under a foreign lock: %v", states)
		}
		if time.Now().Before(watchUntil) {
			return fmt.Errorf("until %v", watchUntil)
		}
		return nil
	})
	if v := c.view(t); !slices.ContainsFunc(v.Nodes, func(n nodeSummary) bool { return string(n.Name) == from && n.CoordinatorState == cluster.RouterPrimary }) {
		t.Errorf("%s is no longer primary under a foreign lock", from)
	}
	out, _, _ := c.cli(t, "explain", "primary")
	wants(t, "pvc explain primary", out, "foreign")
	if got := c.foreign.get(t, primaryNode).Value; got != to {
		t.Errorf("the wish was lost under a foreign lock: primary_node is %q, want %q", got, to)
	}
	c.foreign.must(t, map[string]any{"op": "unlock", "path": primaryNode}, nil)
	c.becomesPrimary(t, to, 15*time.Second)
}

// ourLockExcludes: a foreign lock asked for while a switch runs is granted
// only when that has ended.
func (c *testCluster) ourLockExcludes(t *testing.T) {
	from := c.primary(t)
	to := c.other(from)
	mark := c.foreign.mark()
	c.foreign.set(t, primaryNode, to)
	eventually(t, 10*time.Second, "the switch has begun", func() error {
		if states := c.foreign.routerStates(mark)[to]; len(states) == 0 {
			return fmt.Errorf("%s is still secondary", to)
		}
		return nil
	})
	granted := c.foreign.send(t, map[string]any{"op": "lock", "path": primaryNode})
	select {
	case line := <-granted:
		if line.Error != "" {
			t.Fatal(line.Error)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a foreign client never got the lock after a switch")
	}
	record := c.foreign.get(t, "/agent/transition").Value
	if !strings.Contains(record, `"state":"done"`) {
		t.Errorf("a foreign client got the lock in the middle of a switch: %s", record)
	}
	c.foreign.must(t, map[string]any{"op": "unlock", "path": primaryNode}, nil)
	c.becomesPrimary(t, to, 10*time.Second)
}

// foreignWishForNobody: a foreign wish for a node that does not exist ends
// with the holder's name back in its place; the primary serves on.
func (c *testCluster) foreignWishForNobody(t *testing.T) {
	holder := c.primary(t)
	mark := c.foreign.mark()
	c.foreign.set(t, primaryNode, "hv77")
	eventually(t, 15*time.Second, "the wish for an unknown node is refused", func() error {
		if wish := c.foreign.get(t, primaryNode).Value; wish != holder {
			return fmt.Errorf("primary_node is %q", wish)
		}
		return nil
	})
	if states := c.foreign.routerStates(mark); len(states) > 0 {
		t.Errorf("a wish for an unknown node moved something: %v", states)
	}
	out, _, _ := c.cli(t, "history")
	wants(t, "pvc history", out, "hv77")
}
