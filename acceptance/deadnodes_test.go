package acceptance

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// TestDeadNodes is what nodes live through that are found dead, or are not: a
// few runs always, all of them with PVC_SOAK=1, which takes half an hour; some
// of them with, say, -run 'TestDeadNodes/fencer'.
func TestDeadNodes(t *testing.T) {
	soak, hypervisors := os.Getenv("PVC_SOAK") != "", 0
	if soak {
		hypervisors = 2 // two nodes at once are less than half of five
	}
	c := newUnwatchedCluster(t, 3, hypervisors)
	c.run("cold start", c.lives("cold-start-0"))
	c.run("cut off from ZooKeeper alone", c.lives("zk-partition"))
	c.run("BMC unreachable", c.unreachableBMC)
	c.run("store outage", c.storeOutage("store-outage-20"))
	if soak {
		c.everyFault()
	}
	c.keepsInvariants(t)
}

// lives runs a fault of the sandbox, which knows what must come of it.
func (c *testCluster) lives(fault string) func(t *testing.T) {
	return func(t *testing.T) {
		f, err := sandbox.FaultNamed(fault)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Measure(t.Context(), sandbox.Step{Fault: f})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(res.Line(1))
		if res.Error != "" {
			t.Error(res.Error)
		}
		if res.Skipped != "" {
			t.Skip(res.Skipped)
		}
	}
}

// storeOutage: when the store goes away for everybody, everything stays.
func (c *testCluster) storeOutage(fault string) func(t *testing.T) {
	return func(t *testing.T) {
		if !c.Failsafe() {
			t.Skip("role.failsafe is off in the settings of the sandbox's nodes: the role ends with its lease")
		}
		from := len(c.History().Entries())
		c.lives(fault)(t)
		// What carried the role is in the history, or its checker would know of no
		// promise, and call a sound outage a breach of I3.
		if !slices.ContainsFunc(c.History().Entries()[from:], func(e sandbox.Entry) bool { return e.Kind == sandbox.KindPromise }) {
			t.Error("no promise was taken from the logs of the coordinators")
		}
	}
}

// everyFault are the runs that take long.
func (c *testCluster) everyFault() {
	done := map[string]bool{"cold-start-0": true, "zk-partition": true, "bmc-unreachable": true, "store-outage-20": true}
	for _, f := range sandbox.Faults() {
		if !f.Extra || done[f.Name] {
			continue
		}
		c.run(f.Name, c.lives(f.Name))
	}
	for _, gap := range []int{10, 60} {
		for _, order := range []string{"132", "213", "231", "312", "321"} { // 123 is among the faults
			name := fmt.Sprintf("cold-start-%d-%s", gap, order)
			c.run(name, c.lives(name))
		}
	}
}

// unreachableBMC: a fence whose device does not answer fails, is tried again,
// and says so to whoever asks; once the device answers the node is fenced.
func (c *testCluster) unreachableBMC(t *testing.T) {
	f, err := sandbox.FaultNamed("bmc-unreachable")
	if err != nil {
		t.Fatal(err)
	}
	from := len(c.History().Entries())
	n, err := f.Inject(t.Context(), c.Sandbox)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Heal(t.Context(), c.Sandbox, n); err != nil {
			t.Error(err)
		}
	}()
	name := string(n.Plan.Name)
	stages := func() (all []cluster.FenceStage) {
		for _, e := range c.History().Entries()[from:] {
			if e.Kind == sandbox.KindFence && e.Node == n.Plan.Name {
				all = append(all, e.Stage)
			}
		}
		return all
	}
	tries := func(want int) func() error {
		return func() error {
			failed := 0
			for _, s := range stages() {
				if s == cluster.FenceFailed {
					failed++
				}
			}
			if failed < want {
				return fmt.Errorf("%d tries have failed: %v", failed, stages())
			}
			return nil
		}
	}
	eventually(t, 60*time.Second, "the fence of "+name+" fails", tries(1))
	eventually(t, 10*time.Second, "`pvc explain` says why", func() error {
		out, _, _ := c.cli(t, "explain", name)
		for _, word := range []string{"stage failed", "tried again", "verified_off missing", "pvc fence confirm " + name} {
			if !strings.Contains(out, word) {
				return fmt.Errorf("it does not say %q: %s", word, out)
			}
		}
		return nil
	})
	eventually(t, 60*time.Second, "the fence is tried again", tries(2))
	for _, s := range stages() {
		if s == cluster.FenceFenced || s == cluster.FenceDone {
			t.Errorf("a device that does not answer proved something: %v", stages())
		}
	}
}
