package acceptance

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/doctor"
	"pvc.internal/sandbox"
	"pvc.internal/zkhandler"
)

// TestBackup: the data of every ZooKeeper server is lost, and the cluster goes on
// from a backup.
func TestBackup(t *testing.T) {
	t.Parallel()
	c := newUnwatchedCluster(t, 3, 0)
	defer c.tellOnFailure(t)()
	file := filepath.Join(c.Dir(), "backup.json")
	before := c.view(t)
	c.backsUp(t, file)
	c.losesItsData(t)
	c.waitsAtAnEmptyTree(t)

	out, errs, code := c.at(t, "hv1", "cluster", "restore", file)
	if code != 0 {
		t.Fatalf("status %d: %s%s", code, out, errs)
	}
	wants(t, "restore", out, "restored cluster", "3 nodes", "hv1, hv2, hv3")
	c.startsAgain(t)
	primary := c.primary(t)
	v := c.view(t)
	if v.Lease.Epoch <= before.Lease.Epoch+zkhandler.EpochGap {
		t.Errorf("the epoch is %d after %d: not above all earlier ones", v.Lease.Epoch, before.Lease.Epoch)
	}
	eventually(t, 30*time.Second, "every node runs", func() error {
		for _, n := range c.view(t).Nodes {
			if n.DaemonState != cluster.DaemonRun || !n.Alive {
				return fmt.Errorf("%s is %s", n.Name, n.DaemonState)
			}
		}
		return nil
	})
	if fences := c.fences(t).Fences; len(fences) > 0 {
		t.Errorf("fences: %+v", fences)
	}
	var events []cluster.Event
	eventually(t, patience, "the history is read", func() (err error) {
		events, err = c.ask.History(t.Context(), 50, "")
		return err
	})
	restored := false
	for _, e := range events {
		restored = restored || e.Kind == "restored"
		if strings.HasPrefix(e.Kind, "fence") {
			t.Errorf("the history tells of %s: %s", e.Kind, e.Text)
		}
	}
	if !restored {
		t.Error("the history does not tell of the restore")
	}
	c.refusesToRestore(t, file)
	if os.Getenv("PVC_SOAK") != "" {
		c.run("daemons that go on running", c.dataLostUnderneath)
	}
	c.keepsInvariants(t)
	t.Logf("%s is primary at epoch %d, after %s at %d", primary, v.Lease.Epoch, before.PrimaryNode, before.Lease.Epoch)
}

// at runs `pvc` on a node, with the node's settings.
func (c *testCluster) at(t *testing.T, node string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := c.inside(t, node, append(append([]string{program("pvc")}, args...), "--config", c.settingsOf(node))...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, _ := cmd.Output()
	if cmd.ProcessState == nil {
		t.Fatalf("pvc %v did not run", args)
	}
	return string(out), errs.String(), cmd.ProcessState.ExitCode()
}

// backsUp: the file is readable by its owner only, and is never written over by
// mistake.
func (c *testCluster) backsUp(t *testing.T, file string) {
	t.Helper()
	if out, errs, code := c.at(t, "hv2", "cluster", "backup", file); code != 0 {
		t.Fatalf("status %d: %s%s", code, out, errs)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, errs, code := c.at(t, "hv2", "cluster", "backup", file); code != 3 || !strings.Contains(errs, "--force") {
		t.Errorf("over a file: status %d: %s", code, errs)
	}
	out, errs, code := c.at(t, "hv2", "-o", "json", "cluster", "backup", "--force", file)
	var made struct {
		Cluster string
		Records int
		Epoch   cluster.Epoch
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil || code != 0 || made.Records < 100 || made.Epoch == 0 {
		t.Errorf("status %d, %+v, %v: %s", code, made, err, errs)
	}
}

// losesItsData cuts every node's power, deletes what each ZooKeeper server has
// written, and gives the power back.
func (c *testCluster) losesItsData(t *testing.T) {
	t.Helper()
	each(t, c.Nodes(), func(n *sandbox.Node) error { return n.Off() })
	for _, n := range c.Nodes() {
		if err := os.RemoveAll(filepath.Join(c.Dir(), string(n.Plan.Name), "zk", "version-2")); err != nil {
			t.Fatal(err)
		}
	}
	each(t, c.Nodes(), func(n *sandbox.Node) error { return n.On() })
}

// each does f to all nodes at once.
func each(t *testing.T, nodes []*sandbox.Node, f func(*sandbox.Node) error) {
	t.Helper()
	errs := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() { errs <- f(n) }()
	}
	for range nodes {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// waitsAtAnEmptyTree: every daemon says why it does not begin anew, and what is
// to be done.
func (c *testCluster) waitsAtAnEmptyTree(t *testing.T) {
	t.Helper()
	for _, n := range c.Nodes() {
		eventually(t, time.Minute, string(n.Plan.Name)+" refuses the empty tree", func() error {
			raw, err := os.ReadFile(filepath.Join(c.Dir(), string(n.Plan.Name), "log", "pvcnoded.log"))
			if text := string(raw); err != nil || !strings.Contains(text, "tree is empty but this node remembers a cluster") || !strings.Contains(text, "restore the tree from a backup") {
				return fmt.Errorf("it has not said so: %v", err) //nolint:errorlint // which may be nil
			}
			return nil
		})
	}
	r, code := c.doctor(t, "hv1", c.settingsOf("hv1"))
	if code != 1 {
		t.Errorf("pvc doctor ends with %d", code)
	}
	finds(t, r, doctor.Problem, doctor.CheckCluster, "tree", "data is gone", "pvc cluster restore FILE")
}

// startsAgain does what systemd does on a node: a daemon that has ended is
// started again.
func (c *testCluster) startsAgain(t *testing.T) {
	t.Helper()
	for _, n := range c.Nodes() {
		eventually(t, 30*time.Second, "the daemon of "+string(n.Plan.Name)+" runs", func() error {
			have, err := n.Programs(t.Context())
			if err != nil || have["pvcnoded"].Running {
				return err
			}
			return n.Start(t.Context(), "pvcnoded")
		})
	}
}

// refusesToRestore: a living cluster is not restored over, by no order.
func (c *testCluster) refusesToRestore(t *testing.T, file string) {
	t.Helper()
	before := c.view(t)
	for _, args := range [][]string{{"cluster", "restore", file}, {"cluster", "restore", "--overwrite", "-y", file}} {
		_, errs, code := c.at(t, "hv1", args...)
		if code != 3 {
			t.Errorf("%v: status %d: %s", args, code, errs)
		}
		wants(t, fmt.Sprint(args), errs, "nothing was changed")
	}
	var after api.ClusterView
	if after = c.view(t); after.Lease.Epoch != before.Lease.Epoch || after.PrimaryNode != before.PrimaryNode {
		t.Errorf("the role moved: %+v", after.Lease)
	}
	if out, err := exec.Command(program("pvc"), "cluster", "restore", file, "--config", filepath.Join(c.Dir(), "none.yaml")).CombinedOutput(); err == nil || !strings.Contains(string(out), "run it on a node") {
		t.Errorf("without settings: %v: %s", err, out)
	}
}

// dataLostUnderneath: the servers lose their data while the daemons run. These
// take up to half a minute to see that their sessions are of another ZooKeeper.
func (c *testCluster) dataLostUnderneath(t *testing.T) {
	before := c.view(t)
	file := filepath.Join(c.Dir(), "second.json")
	c.backsUp(t, file)
	for _, n := range c.Nodes() {
		if err := n.Signal(t.Context(), "zookeeper", unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "its server has ended", func() error {
			have, err := n.Programs(t.Context())
			if err == nil && have["zookeeper"].Running {
				err = errors.New("it runs")
			}
			return err
		})
		if err := os.RemoveAll(filepath.Join(c.Dir(), string(n.Plan.Name), "zk", "version-2")); err != nil {
			t.Fatal(err)
		}
	}
	each(t, c.Nodes(), func(n *sandbox.Node) error { return n.Start(t.Context(), "zookeeper") })
	eventually(t, time.Minute, "the restore", func() error {
		if out, errs, code := c.at(t, "hv1", "cluster", "restore", file); code != 0 {
			return fmt.Errorf("status %d: %s%s", code, out, errs)
		}
		return nil
	})
	restored := time.Now()
	eventually(t, 2*time.Minute, "a primary again", func() error {
		v, err := c.ask.Cluster(t.Context())
		switch {
		case err != nil:
			return err
		case v.Stale || v.Lease.Epoch <= before.Lease.Epoch+zkhandler.EpochGap || v.PrimaryNode == "" || v.PrimaryNode == cluster.NoNode:
			return fmt.Errorf("epoch %d, primary %q, stale %v", v.Lease.Epoch, v.PrimaryNode, v.Stale)
		}
		for _, n := range v.Nodes {
			if n.DaemonState != cluster.DaemonRun || !n.Alive {
				return fmt.Errorf("%s is %s", n.Name, n.DaemonState)
			}
		}
		return nil
	})
	t.Logf("all daemons, never restarted, are back %v after the restore", time.Since(restored).Round(time.Second))
	if fences := c.fences(t).Fences; len(fences) > 0 {
		t.Errorf("fences: %+v", fences)
	}
}
