package acceptance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// buildOld builds the tree's programs held back to the first schema once, as an
// earlier version, or takes those of the folder PVC_ACCEPTANCE_OLD, such as a real
// one's.
var buildOld = sync.OnceValues(func() (string, error) {
	if ready := os.Getenv("PVC_ACCEPTANCE_OLD"); ready != "" {
		return ready, nil
	}
	dir := filepath.Join(work, "old")
	build := exec.Command("go", "build", "-ldflags", "-s -w -X pvc.internal/zkhandler.newestSchema=1", "-o", dir+"/", "../cmd/pvcnoded", "../cmd/pvcapid")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the old programs: %w\n%s", err, out)
	}
	return dir, nil
})

func oldPrograms(t *testing.T) string {
	t.Helper()
	needs(t)
	dir, err := buildOld()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// schemaIs returns an error unless the tree has the schema, and the nodes, but for
// the one that is left out, say that they write it.
func (c *testCluster) schemaIs(t *testing.T, want string, but cluster.NodeID) error {
	t.Helper()
	keys := []cluster.Key{{Kind: cluster.KeySchema}}
	for _, n := range c.Nodes() {
		if n.Plan.Name != but {
			keys = append(keys, cluster.Key{Kind: cluster.KeyNodeField, Node: n.Plan.Name, Name: "activeschema"})
		}
	}
	for _, k := range keys {
		if got, err := c.Text(t.Context(), k); err != nil || got.Value != want {
			return fmt.Errorf("%s of %q is %q (%v), want %q", k.Name, k.Node, got.Value, err, want) //nolint:errorlint // which may be nil
		}
	}
	return nil
}

// schema is the tree's.
func (c *testCluster) schema(t *testing.T) (text string) {
	t.Helper()
	eventually(t, patience, "the schema is read", func() error {
		got, err := c.Text(t.Context(), cluster.Key{Kind: cluster.KeySchema})
		text = got.Value
		return err
	})
	return text
}

// factsOf are the facts that the node's present start has published.
func (c *testCluster) factsOf(t *testing.T, n cluster.NodeID) error {
	t.Helper()
	text, err := c.Text(t.Context(), cluster.Key{Kind: cluster.KeyFacts, Node: n})
	if err != nil {
		return err
	}
	f, ok, err := cluster.DecodeFacts(text.Value)
	switch {
	case err != nil:
		return err
	case !ok || f.Leaves["memtotal"] == "" || f.Leaves["latestschema"] != "2":
		return fmt.Errorf("the facts of %s are %q", n, text.Value)
	}
	return nil
}

// migratedOnce returns who raised the schema.
func (c *testCluster) migratedOnce(t *testing.T) cluster.NodeID {
	t.Helper()
	var events []cluster.Event
	eventually(t, patience, "the history is read", func() (err error) { // a node that loses its power takes a server along
		events, err = c.ask.History(t.Context(), 1000, cluster.EventMigrated)
		return err
	})
	if len(events) != 1 || events[0].Fields["from"] != "1" || events[0].Fields["to"] != "2" {
		t.Fatalf("the history of migrations is %+v", events)
	}
	return events[0].Node
}

// newestEverywhere waits until the tree is raised and every node, but for the one
// that is left out, tells its facts.
func (c *testCluster) newestEverywhere(t *testing.T, but cluster.NodeID) {
	t.Helper()
	eventually(t, time.Minute, "the tree has schema 2", func() error { return c.schemaIs(t, "2", but) })
	for _, n := range c.Nodes() {
		if n.Plan.Name == but {
			continue
		}
		eventually(t, time.Minute, string(n.Plan.Name)+" tells its facts", func() error { return c.factsOf(t, n.Plan.Name) })
	}
}

// Three nodes of an earlier version are upgraded one by one in maintenance: all
// write the old form until the last one can write the new, then the primary
// migrates, and neither moves the role or silences its addresses.
func TestAClusterIsUpgradedNodeByNode(t *testing.T) {
	t.Parallel()
	old := oldPrograms(t)
	c := upCluster(t, sandbox.Options{Coordinators: 3, BinDir: old, NewestSchema: cluster.FirstSchema})
	defer c.tellOnFailure(t)()
	noise, err := c.Noise(t.Context(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Maintain(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	before := c.Lease()
	silence, err := c.Silence(t.Context(), func() error {
		for i, n := range c.Nodes() {
			if got := c.schema(t); got != "1" {
				t.Errorf("with %d of 3 nodes upgraded the schema is %q", i, got)
			}
			if err := n.Upgrade(t.Context(), filepath.Join(work, "bin")); err != nil {
				return err
			}
			key := cluster.Key{Kind: cluster.KeyNodeField, Node: n.Plan.Name, Name: "latestschema"}
			eventually(t, time.Minute, string(n.Plan.Name)+" tells what its new program can write", func() error {
				if got, err := c.Text(t.Context(), key); err != nil || got.Value != "2" {
					return fmt.Errorf("it tells %q (%v)", got.Value, err) //nolint:errorlint // which may be nil
				}
				return nil
			})
		}
		c.newestEverywhere(t, "")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("longest silence of an address in the rolling upgrade: %v; at rest: %v", silence, noise)
	if after := c.Lease(); after.Holder != before.Holder || after.Epoch != before.Epoch+1 { // one for the start that resumed it
		t.Errorf("the role went from %s (epoch %d) to %s (%d)", before.Holder, before.Epoch, after.Holder, after.Epoch)
	}
	if silence > noise+cluster.ProfileLAN().Grace { // a role that moves is silent for longer; less is the machine's doing
		t.Errorf("an address was silent for %v (at rest %v)", silence, noise)
	}
	if err := c.Maintain(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	c.rests(t)
	if by := c.migratedOnce(t); by != before.Holder {
		t.Errorf("%s has migrated, the primary is %s", by, before.Holder)
	}
	c.oldProgramIsRefused(t, old)
	c.keepsInvariants(t)
}

// oldProgramIsRefused: what is started of the earlier version now ends, with the
// reason and the remedy; the cluster goes on.
func (c *testCluster) oldProgramIsRefused(t *testing.T, old string) {
	t.Helper()
	n := c.Node(cluster.NodeID(c.other(string(c.Lease().Holder))))
	log := filepath.Join(n.Dir, "log", "pvcnoded.log")
	info, err := os.Stat(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Upgrade(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the old program ends", func() error {
		programs, err := n.Programs(t.Context())
		if err == nil && programs["pvcnoded"].Running {
			return errors.New("it runs")
		}
		return err
	})
	wants(t, "the old program", logSince(log, info.Size()), "newer than this program", "update")
	if os.Getenv("PVC_ACCEPTANCE_OLD") == "" {
		wants(t, "the old program", logSince(log, info.Size()), "pvc cluster restore")
	}
	eventually(t, patience, "the schema is as before", func() error { return c.schemaIs(t, "2", "") })
	if err := n.UseBinaries(filepath.Join(work, "bin")); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), "pvcnoded"); err != nil {
		t.Fatal(err)
	}
	c.rests(t)
}

// crowd is how many nodes that stand still the cluster knows besides, so that the
// migration takes several batches.
const crowd = 240

// plantCrowd makes them, as they stand after an orderly end.
func (c *testCluster) plantCrowd(t *testing.T) {
	t.Helper()
	var ops []cluster.Op
	for i := range crowd {
		n := cluster.NodeID(fmt.Sprintf("still%03d", i))
		ops = append(ops, cluster.Create(cluster.Key{Kind: cluster.KeyNodeMode, Node: n}, cluster.Hypervisor),
			cluster.Create(cluster.Key{Kind: cluster.KeyDaemonState, Node: n}, cluster.DaemonStop),
			cluster.Create(cluster.Key{Kind: cluster.KeyNodeRecord, Node: n}, cluster.NodeRecord{ID: "still", Incarnation: "still.1", LatestSchema: 2}))
	}
	if err := c.Plant(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
}

// The primary is killed in the middle of the migration: the next one goes on.
func TestAMigratorKilledHalfwayIsSucceeded(t *testing.T) {
	t.Parallel()
	old := oldPrograms(t)
	c := upCluster(t, sandbox.Options{Coordinators: 3, NewestSchema: cluster.FirstSchema, NodeBinDirs: map[cluster.NodeID]string{"hv3": old}})
	defer c.tellOnFailure(t)()
	c.plantCrowd(t)
	if c.Lease().Holder == "hv3" {
		c.cli(t, "node", "secondary", "hv3", "--wait")
		c.rests(t)
	}
	if err := c.Node("hv3").Upgrade(t.Context(), filepath.Join(work, "bin")); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the migration begins", func() error {
		made, err := c.Text(t.Context(), cluster.Key{Kind: cluster.KeyFacts, Node: "hv1"})
		if err == nil && !made.Present {
			err = errors.New("no node has a record of facts yet")
		}
		return err
	})
	killed := c.Lease().Holder
	if err := c.Node(killed).Signal(t.Context(), "pvcnoded", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := c.schema(t); got != "1" {
		t.Skipf("the schema was %q before its migrator was killed: this machine is too slow to show anything", got)
	}
	eventually(t, time.Minute, "another primary", func() error {
		if l := c.Lease(); l.Holder == killed || l.Holder == "" {
			return fmt.Errorf("the lease is %+v", l)
		}
		return nil
	})
	c.newestEverywhere(t, killed)
	if by := c.migratedOnce(t); by == killed {
		t.Errorf("%s, which was killed, has migrated", by)
	}
	c.returns(t, string(killed)) // its fence has been seen from its beginning to its end
	c.rests(t)
	c.keepsInvariants(t)
}
