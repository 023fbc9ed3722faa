package acceptance

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"pvc.internal/agent/lease"
	"pvc.internal/api"
	"pvc.internal/cluster"
)

// leasesListed: the primary holds every node's lease, and says so; the next one
// holds them under a larger epoch.
func (c *testCluster) leasesListed(t *testing.T) {
	holder := c.primary(t)
	before := c.leasesOf(t, holder, 0)
	out, errs, code := c.cli(t, "lease", "list")
	if code != 0 {
		t.Errorf("%d %s", code, errs)
	}
	wants(t, "pvc lease list", out, holder+" holds a majority of the quorum set (hv1 hv2 hv3)", "UNTIL", "RTT MEDIAN")
	for _, n := range c.Nodes() {
		row := fmt.Sprintf(`(?m)^%s +(yes|no) +held +%s +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} .* ms +[\d.]+ ms`, n.Plan.Name, holder)
		if !regexp.MustCompile(row).MatchString(out) {
			t.Errorf("no row of %s with holder, until and round trips:\n%s", n.Plan.Name, out)
		}
	}
	to := c.other(holder)
	if _, errs, code := c.cli(t, "node", "primary", to, "--wait"); code != 0 {
		t.Fatal(errs)
	}
	c.becomesPrimary(t, to, 30*time.Second)
	c.leasesOf(t, to, before.Lease.Epoch)
}

// leasesOf waits until the list shows every node of the sandbox held by the
// primary, under an epoch larger than that.
func (c *testCluster) leasesOf(t *testing.T, holder string, epoch cluster.Epoch) api.LeasesView {
	t.Helper()
	var v api.LeasesView
	eventually(t, 30*time.Second, holder+" holds all leases", func() error {
		v = api.LeasesView{}
		if status, body := c.call(t, http.MethodGet, "/leases", nil, &v); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		if v.Doubt != "" || string(v.Holder) != holder || !v.Majority || v.Lease.Epoch <= epoch || len(v.Nodes) != len(c.Nodes()) {
			return fmt.Errorf("%+v", v)
		}
		for _, n := range v.Nodes {
			if n.State != "held" || string(n.Holder) != holder || n.UntilMS == 0 || n.RTT.Last <= 0 {
				return fmt.Errorf("%+v", n)
			}
		}
		return nil
	})
	return v
}

// leaseOf is the list's row of one node; nil: there is none.
func (c *testCluster) leaseOf(t *testing.T, node string) (v api.LeasesView, row *api.NodeLeaseView) {
	t.Helper()
	c.call(t, http.MethodGet, "/leases", nil, &v)
	if at := slices.IndexFunc(v.Nodes, func(n api.NodeLeaseView) bool { return string(n.Node) == node }); at >= 0 {
		return v, &v.Nodes[at]
	}
	return v, nil
}

// fenceIsAnActivity: while a fence runs it is listed with its quorum, an
// operator cannot stop it, and its end is in the history.
func (c *testCluster) fenceIsAnActivity(t *testing.T) {
	victim := c.victim()
	name := string(victim.Plan.Name)
	holder := c.primary(t)
	c.leasesOf(t, holder, 0)
	victim.BMC().Slow(7 * time.Second)
	defer victim.BMC().Clear()
	if _, errs, code := c.cli(t, "fence", "now", name, "--reason", "it is slow", "-y"); code != 0 {
		t.Fatal(errs)
	}
	var id string
	eventually(t, 30*time.Second, "the fence is listed as an activity", func() error {
		out, _, _ := c.cli(t, "activity", "list")
		row := regexp.MustCompile(`(?m)^(fence-` + name + `-\S+) +` + holder + ` +running +majority `).FindStringSubmatch(out)
		if row == nil {
			return fmt.Errorf("%s", out)
		}
		id = row[1]
		return nil
	})
	refused := func(id string, words ...string) {
		t.Helper()
		out, errs, code := c.cli(t, "activity", "stop", id, "--reason", "too slow", "--wait")
		if code != 3 {
			t.Errorf("pvc activity stop %s: exit code %d, want 3 (refused): %s", id, code, out)
		}
		wants(t, "pvc activity stop "+id, out+errs, words...)
	}
	refused(id, id, "failover")
	refused("fence-nobody-abcdefghij", "no activity", "Nothing was ordered")
	victim.BMC().Clear() // power that is given again comes at once
	c.staged(t, name, cluster.FenceDone, time.Minute)
	eventually(t, 30*time.Second, "its end is in the history", func() error {
		out, _, _ := c.cli(t, "activity", "list")
		if list, history, _ := strings.Cut(out, "TIME"); strings.Contains(list, id) || !strings.Contains(history, "("+id+") is ended\n") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	c.returns(t, name)
}

// memberLeavesAndReturns: a coordinator is not removed while it lives, then is
// with its records, stays out with the reason when it is started, comes in under
// another name as another node, and is let in again under its own.
func (c *testCluster) memberLeavesAndReturns(t *testing.T) {
	name, other := c.other(c.primary(t)), "hv9"
	n := c.Node(cluster.NodeID(name))
	if out, errs, code := c.cli(t, "node", "remove", name, "-y", "--reason", "scrapped", "--wait"); code != 3 || !strings.Contains(errs, "is alive") {
		t.Fatalf("a living node is removed: %d %s%s", code, out, errs)
	}
	c.stopsAgent(t, name)
	c.removed(t, name)
	if err := n.Start(t.Context(), "pvcnoded"); err != nil {
		t.Fatal(err)
	}
	said := c.endsRemoved(t, name)
	host := regexp.MustCompile("pvc node add " + name + " --host ([0-9a-zA-Z-]+)").FindStringSubmatch(said)
	if host == nil {
		t.Fatalf("it does not say how it is let in again: %s", said)
	}
	undo := c.renames(t, name, other)
	if err := n.Start(t.Context(), "pvcnoded"); err != nil {
		t.Fatal(err)
	}
	c.counts(t, other, false)
	told, _, _ := c.cli(t, "doctor", "--remote")
	wants(t, "pvc doctor", told, other, "counts for no majority", "pvc node add "+other+" --coordinator")
	if out, errs, code := c.cli(t, "node", "add", other, "--coordinator", "--wait"); code != 0 {
		t.Fatalf("%s%s", out, errs)
	}
	c.counts(t, other, true)
	c.stopsAgent(t, name)
	c.removed(t, other)
	undo()
	if out, errs, code := c.cli(t, "node", "add", name, "--host", host[1]); code != 0 {
		t.Fatalf("%s%s", out, errs)
	}
	if err := n.Start(t.Context(), "pvcnoded"); err != nil {
		t.Fatal(err)
	}
	c.counts(t, name, true)
}

// epochOutgrown: a node has seen a larger epoch than the primary's, as after an
// older backup was restored. The primary goes on at a larger one in its place:
// it holds that node's lease again, and nobody answers for its addresses meanwhile.
func (c *testCluster) epochOutgrown(t *testing.T) {
	holder := c.primary(t)
	name := c.other(holder)
	n := c.Node(cluster.NodeID(name))
	before := c.leasesOf(t, holder, 0).Lease.Epoch
	c.stopsAgent(t, name)
	raw, err := lease.EncodeRecord(lease.Record{Epoch: before + 500, EpochOf: cluster.NodeID(name)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.Dir, "state", "lease.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), "pvcnoded"); err != nil {
		t.Fatal(err)
	}
	after := c.leasesOf(t, holder, before+500).Lease.Epoch
	told, _, _ := c.cli(t, "history", "--kind", "epoch_raised")
	told = strings.Join(strings.Fields(told), " ")
	wants(t, "pvc history", told, fmt.Sprintf("epoch %d", before+500), fmt.Sprintf("goes on at epoch %d", after))
	c.becomesPrimary(t, holder, 30*time.Second) // it has been all the time
}

// stopsAgent ends the agent in order, as `systemctl stop` does.
func (c *testCluster) stopsAgent(t *testing.T, name string) {
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
}

// removed removes a node that was stopped, and looks for what is left of it.
func (c *testCluster) removed(t *testing.T, name string) {
	t.Helper()
	eventually(t, time.Minute, name+" is removed", func() error { // it may be seen to live for a moment yet
		out, errs, code := c.cli(t, "node", "remove", name, "-y", "--reason", "scrapped", "--wait")
		if code == 0 {
			return nil
		}
		if status, _ := c.call(t, http.MethodGet, "/node/"+name, nil, nil); status == http.StatusNotFound {
			return nil // it was carried out all the same
		}
		return fmt.Errorf("exit code %d: %s%s", code, out, errs)
	})
	c.isGone(t, name)
}

func (c *testCluster) isGone(t *testing.T, name string) {
	t.Helper()
	eventually(t, 30*time.Second, "nothing is left of "+name, func() error {
		v, row := c.leaseOf(t, name)
		if row != nil || !v.Majority || slices.Contains(v.Set, cluster.NodeID(name)) {
			return fmt.Errorf("the leases are %+v", v)
		}
		if status, body := c.call(t, http.MethodGet, "/node/"+name, nil, nil); status != http.StatusNotFound {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
}

// endsRemoved waits until a removed node's daemon has ended by itself, and
// returns what it says.
func (c *testCluster) endsRemoved(t *testing.T, name string) string {
	t.Helper()
	n := c.Node(cluster.NodeID(name))
	eventually(t, 30*time.Second, "the removed "+name+" ends with status 78", func() error {
		programs, err := n.Programs(t.Context())
		if p := programs["pvcnoded"]; err == nil && (p.Running || p.Exit != "exit status 78") {
			return fmt.Errorf("%+v", p)
		}
		return err
	})
	c.isGone(t, name)
	history, _, _ := c.cli(t, "history")
	wants(t, "pvc history", history, "node "+name, "was removed", "stays out")
	raw, err := os.ReadFile(filepath.Join(n.Dir, "log", "pvcnoded.log"))
	if err != nil {
		t.Fatal(err)
	}
	said := string(raw[max(0, len(raw)-4096):])
	wants(t, "its log", said, "this node was removed from the cluster and stays out", "scrapped")
	return said
}

// renames gives a node's daemon another name, with a certificate and an empty state
// folder; what it returns gives it its own again.
func (c *testCluster) renames(t *testing.T, name, to string) (undo func()) {
	t.Helper()
	n := c.Node(cluster.NodeID(name))
	files := filepath.Join(t.TempDir(), "pki")
	if _, errs, code := pvc(t, "pki", "issue", to, "--dir", filepath.Join(c.Dir(), "pki"), "--out", files); code != 0 {
		t.Fatal(errs)
	}
	path := filepath.Join(n.Dir, "pvcnoded.yaml")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	conf := settings{}
	if err := yaml.Unmarshal(old, &conf); err != nil {
		t.Fatal(err)
	}
	conf.with(settings{"node.name": to, "state_dir": filepath.Join(t.TempDir(), "state"), "peer.tls.ca": filepath.Join(files, "ca.pem"), "peer.tls.cert": filepath.Join(files, "node.pem"),
		"peer.tls.key": filepath.Join(files, "node.key")}).write(t, path)
	return func() {
		t.Helper()
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// counts waits until the primary holds the node's lease, which counts or not.
func (c *testCluster) counts(t *testing.T, name string, counts bool) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("the lease of %s is held, counted: %v", name, counts), func() error {
		v, row := c.leaseOf(t, name)
		if row == nil || row.State != "held" || row.Counts != counts || slices.Contains(v.Set, cluster.NodeID(name)) != counts {
			return fmt.Errorf("%+v", v)
		}
		return nil
	})
}
