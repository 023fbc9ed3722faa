package driver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

const checkedAgent = `#!/bin/sh
[ "$1" = meta-data ] || { touch "$0.ran"; exit 1; }
cat <<X
<?xml version="1.0"?>
<resource-agent name="Plain" version="1"><version>1.0</version><shortdesc lang="en">x</shortdesc>
<parameters><parameter name="need" required="1" unique="0"><content type="string"/></parameter></parameters>
<actions><action name="start" timeout="5s"/><action name="stop" timeout="5s"/><action name="monitor" timeout="5s" interval="10s"/><action name="meta-data" timeout="5s"/><action name="validate-all" timeout="5s"/></actions>
</resource-agent>
X
`

func livelyOf(w cluster.Workload) cluster.Workload {
	w.Live = true
	return w
}

// A workload is checked by words alone: nothing of it is run.
func TestCheckerRunsNothing(t *testing.T) {
	root := t.TempDir()
	agent := filepath.Join(root, "resource.d", "own", "Plain")
	if err := os.MkdirAll(filepath.Dir(agent), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(agent, []byte(checkedAgent), 0o755); err != nil {
		t.Fatal(err)
	}
	c := NewChecker("hv1", root)
	workload := func(driver cluster.DriverName, agent string, kind cluster.WorkloadKind, params ...string) cluster.Workload {
		w := cluster.Workload{Name: "w", ID: "x", Driver: driver, Agent: agent, Kind: kind, Params: map[string]string{}}
		for i := 0; i+1 < len(params); i += 2 {
			w.Params[params[i]] = params[i+1]
		}
		return w
	}
	const movable, replicated = cluster.WorkloadMovable, cluster.WorkloadReplicated
	for _, w := range []cluster.Workload{
		workload("ocf", "own:Plain", movable, "need", "1"), workload("redis", "", replicated), workload("exec", "", movable, "command", "true --now"), workload("exec", "", movable, "command", "/home/nowhere/here --now"),
	} {
		if err := c.Check(t.Context(), w); err != nil {
			t.Errorf("%s: %v", w.Driver, err)
		}
	}
	for want, w := range map[string]cluster.Workload{
		"need":          workload("ocf", "own:Plain", movable),
		"colour":        workload("ocf", "own:Plain", movable, "need", "1", "colour", "red"),
		"promote":       workload("ocf", "own:Plain", replicated, "need", "1"),
		"migrate_to":    livelyOf(workload("ocf", "own:Plain", movable, "need", "1")),
		"own:Other":     workload("ocf", "own:Other", movable),
		"port":          workload("redis", "", replicated, "port", "0"),
		"does not know": workload("redis", "", replicated, "colour", "red"),
		"command":       workload("exec", "", movable),
		"no driver":     workload("mysql", "", movable),
	} {
		if err := c.Check(t.Context(), w); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := c.Check(t.Context(), workload("ocf", "own:Other", movable)); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("an agent that is not there: %v", err)
	}
	if _, err := os.Stat(agent + ".ran"); err == nil {
		t.Error("more than the metadata was asked for")
	}
}

// A program that is not on this host, or that nobody may execute, has an exec workload
// refused where this node may be given it, and only where that is certain.
func TestCheckerLooksForPrograms(t *testing.T) {
	dir, err := os.MkdirTemp("/var/lib", "pvcdrv") // not one of those that pvcapid cannot see
	if err != nil {
		t.Skip("needs to write to /var/lib:", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for name, mode := range map[string]os.FileMode{"root-only": 0o700, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
	c := NewChecker("hv1", "")
	for _, w := range []struct {
		command, says string
		nodes, chain  []cluster.NodeID
	}{
		{command: dir + "/root-only --x"},
		{command: "true"},
		{command: dir + "/text", says: "may be executed by nobody"},
		{command: dir + "/nothing", says: "there is no " + dir + "/nothing"},
		{command: dir, says: "is a folder"},
		{command: dir + "/text/below", says: "there is no"},
		{command: "pvc-no-such-program", says: "in no folder of PATH"},
		{command: "/root/nothing"},
		{command: dir + "/nothing", says: "on node hv1", nodes: []cluster.NodeID{"hv2", "hv1"}},
		{command: dir + "/nothing", says: "on node hv1", chain: []cluster.NodeID{"hv1"}, nodes: []cluster.NodeID{"hv1", "hv2"}},
		{command: dir + "/nothing", nodes: []cluster.NodeID{"hv2"}},
		{command: dir + "/nothing", chain: []cluster.NodeID{"hv2"}},
		{command: dir + "/nothing", chain: []cluster.NodeID{"hv2"}, nodes: []cluster.NodeID{"hv1"}, says: "on node hv1"},
	} {
		for _, check := range []bool{false, true} {
			p := program(map[string]string{"command": w.command})
			if check {
				p.Params = map[string]string{"command": "true", "check": w.command}
			}
			p.Nodes, p.Chain = w.nodes, w.chain
			err := c.Check(t.Context(), p)
			if w.says == "" && err != nil || w.says != "" && (!errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), w.says)) {
				t.Errorf("%+v: %v", w, err)
			}
		}
	}
}
