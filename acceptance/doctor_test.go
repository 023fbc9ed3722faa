package acceptance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"pvc.internal/doctor"
	"pvc.internal/sandbox"
)

// doctorLimit bounds `pvc doctor`, whatever is away.
const doctorLimit = 5 * time.Second

// TestDoctor: a sound cluster passes; what is planted is named with its cure.
func TestDoctor(t *testing.T) {
	c := newUnwatchedCluster(t, 3, 0)
	c.run("sound", c.doctorPasses)
	c.run("from afar", c.doctorFromAfar)
	c.run("planted", c.doctorNames)
	c.run("servers away", c.doctorIsBounded)
}

// doctor runs `pvc doctor` on the node with the settings file.
func (c *testCluster) doctor(t *testing.T, node, file string) (doctor.Report, int) {
	t.Helper()
	cmd := c.inside(t, node, program("pvc"), "-o", "json", "doctor", "-c", file)
	began := time.Now()
	raw, err := cmd.Output()
	if took := time.Since(began); took > doctorLimit+5*time.Second { // a busy machine's
		t.Errorf("it took %v", took)
	}
	var r doctor.Report
	if err := json.Unmarshal(raw, &r); err != nil || cmd.ProcessState == nil {
		t.Fatalf("%v: %s", err, raw)
	}
	if err != nil && cmd.ProcessState.ExitCode() < 0 {
		t.Fatal(err)
	}
	return r, cmd.ProcessState.ExitCode()
}

func (c *testCluster) settingsOf(node string) string {
	return filepath.Join(c.Dir(), node, "pvcnoded.yaml")
}

// finding is the first of the check about the subject.
func finding(r doctor.Report, v doctor.Verdict, check, subject string) (doctor.Finding, bool) {
	i := slices.IndexFunc(r.Findings, func(f doctor.Finding) bool {
		return f.Verdict == v && f.Check == check && strings.HasPrefix(f.Subject, subject)
	})
	if i < 0 {
		return doctor.Finding{}, false
	}
	return r.Findings[i], true
}

// finds fails unless there is such a finding with the words.
func finds(t *testing.T, r doctor.Report, v doctor.Verdict, check, subject string, words ...string) {
	t.Helper()
	f, found := finding(r, v, check, subject)
	if !found {
		t.Errorf("no %s of %s about %q in\n%s", v, check, subject, told(r))
		return
	}
	wants(t, check+" of "+subject, f.Text+" → "+f.Cure, words...)
}

func told(r doctor.Report) string {
	text, _ := yaml.Marshal(r.Findings)
	return string(text)
}

func (c *testCluster) doctorPasses(t *testing.T) {
	var r doctor.Report
	eventually(t, time.Minute, "a sound cluster passes", func() error { // the primary tests the fence devices after some seconds
		var code int
		if r, code = c.doctor(t, "hv1", c.settingsOf("hv1")); code != 0 || r.Problems != 0 {
			return fmt.Errorf("status %d:\n%s", code, told(r))
		}
		for _, f := range r.Findings {
			if !expected(f) {
				return fmt.Errorf("%s %s %s: %s", f.Verdict, f.Check, f.Subject, f.Text)
			}
		}
		return nil
	})
	for _, check := range []string{doctor.CheckSettings, doctor.CheckTiming, doctor.CheckStore, doctor.CheckCluster, doctor.CheckClocks,
		doctor.CheckFencing, doctor.CheckSecrets, doctor.CheckCerts, doctor.CheckWatchdog, doctor.CheckLeftovers} {
		if _, passed := finding(r, doctor.OK, check, ""); !passed {
			t.Errorf("%s has not passed:\n%s", check, told(r))
		}
	}
}

// expected reports whether the finding is one of a sound sandbox: its tree is
// open, its machine's disk may be slow, and what only each node itself can show,
// or systemd, is not looked at.
func expected(f doctor.Finding) bool {
	switch f.Verdict {
	case doctor.Warning:
		return f.Check == doctor.CheckAccess || f.Check == doctor.CheckStore && strings.Contains(f.Text, "fsync")
	case doctor.Unchecked:
		return f.Check == doctor.CheckUnits || f.Check == doctor.CheckSettings
	}
	return f.Verdict == doctor.OK
}

// doctorFromAfar: a pvcapid judges what the records show.
func (c *testCluster) doctorFromAfar(t *testing.T) {
	out, errs, code := c.cli(t, "-o", "json", "doctor", "--remote")
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	if code != 0 {
		t.Errorf("status %d:\n%s", code, told(r))
	}
	finds(t, r, doctor.OK, doctor.CheckClocks, "", "3 nodes")
	finds(t, r, doctor.OK, doctor.CheckFencing, "hv2/bmc", "ready")
	finds(t, r, doctor.Unchecked, doctor.CheckSettings, "hv1, hv2, hv3", "pvc doctor")
}

// doctorNames: a key that others can read, an agent that leaks, a server that is
// stopped, and an address of the role's on a node that does not hold it.
func (c *testCluster) doctorNames(t *testing.T) {
	holder := c.primary(t)
	leader, err := c.ZooKeeperLeader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := string(leader.Plan.Name) // no follower's loss stops the others
	if at == holder {
		at = c.other(holder)
	}
	file := c.plantedSettings(t, at)
	lost := c.Nodes()[slices.IndexFunc(c.Nodes(), func(n *sandbox.Node) bool {
		return string(n.Plan.Name) != at && string(n.Plan.Name) != holder
	})]
	if err := lost.Signal(t.Context(), "zookeeper", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lost.Start(t.Context(), "zookeeper"); err != nil {
			t.Error(err)
		}
	}()
	// On the loopback interface, where it is not answered for to others.
	floating := "fd00:5076:6301::c8/64"
	if out, err := c.inside(t, at, "ip", "address", "add", floating, "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer func() {
		if out, err := c.inside(t, at, "ip", "address", "del", floating, "dev", "lo").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}()
	r, code := c.doctor(t, at, file)
	if code != 1 {
		t.Errorf("status %d, want 1", code)
	}
	finds(t, r, doctor.Problem, doctor.CheckStore, lost.Plan.Cluster.Addr().String()+":2181", "does not answer", "systemctl status zookeeper")
	finds(t, r, doctor.Warning, doctor.CheckStore, "quorum", "2 of 3", "one more")
	finds(t, r, doctor.Problem, doctor.CheckSecrets, filepath.Join(filepath.Dir(file), "fence.key"), "0644", "chmod 600")
	finds(t, r, doctor.Problem, doctor.CheckFencing, "hv2/leaky", "fence_ipmilan", "command line", "type: ipmi")
	finds(t, r, doctor.Problem, doctor.CheckLeftovers, floating, "network settings")
	out, err := c.inside(t, at, program("pvc"), "doctor", "-c", file).CombinedOutput()
	if err == nil {
		t.Error("it ends with status 0")
	}
	wants(t, "the table", string(out), "problem", "zookeeper", "→", "node "+at+" of cluster")
}

// plantedSettings writes settings beside the node's own, with faults; the
// running daemons do not read them.
func (c *testCluster) plantedSettings(t *testing.T, at string) string {
	t.Helper()
	dir := filepath.Join(c.Dir(), at)
	key := filepath.Join(dir, "fence.key")
	if _, errs, code := pvc(t, "fence", "key", "--out", key); code != 0 {
		t.Fatal(errs)
	}
	seal := c.inside(t, at, program("pvc"), "fence", "seal", "--key", key)
	seal.Stdin = strings.NewReader("sandbox\n")
	sealed, err := seal.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(c.settingsOf(at))
	if err != nil {
		t.Fatal(err)
	}
	good := settings{}
	if err := yaml.Unmarshal(raw, &good); err != nil {
		t.Fatal(err)
	}
	ladder := func(device settings) settings { return settings{"levels": [][]settings{{device}}} }
	ipmi := func(name string) settings {
		return settings{"name": name, "type": "ipmi", "address": "203.0.113.1", "user": "admin", "password_sealed": strings.TrimSpace(string(sealed))}
	}
	file := filepath.Join(dir, "planted.yaml")
	good.with(settings{"fencing": settings{
		"secrets": settings{"key_file": key},
		"nodes": settings{
			"hv1": ladder(ipmi("bmc")), "hv3": ladder(ipmi("bmc")),
			"hv2": ladder(settings{"name": "leaky", "type": "agent", "agent": "fence_ipmilan", "password_file": filepath.Join(dir, "bmc.pass"),
				"options": settings{"ip": "203.0.113.1", "username": "admin"}}),
		}}}).write(t, file)
	return file
}

// doctorIsBounded: where nothing answers it says so in time, and what rests on
// it is not passed.
func (c *testCluster) doctorIsBounded(t *testing.T) {
	raw, err := os.ReadFile(c.settingsOf("hv1"))
	if err != nil {
		t.Fatal(err)
	}
	good := settings{}
	if err := yaml.Unmarshal(raw, &good); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.Dir(), "hv1", "away.yaml")
	good.with(settings{"zookeeper": settings{"servers": []string{"198.51.100.97:2181", "198.51.100.98:2181", "198.51.100.99:2181"}}}).write(t, file)
	r, code := c.doctor(t, "hv1", file)
	if code != 1 {
		t.Errorf("status %d, want 1", code)
	}
	finds(t, r, doctor.Problem, doctor.CheckStore, "198.51.100.98:2181", "does not answer")
	finds(t, r, doctor.Problem, doctor.CheckStore, "quorum", "0 of 3")
	for _, check := range []string{doctor.CheckCluster, doctor.CheckClocks, doctor.CheckFencing, doctor.CheckLeftovers} {
		finds(t, r, doctor.Unchecked, check, "")
		if f, passed := finding(r, doctor.OK, check, ""); passed {
			t.Errorf("%s has passed unseen: %s", check, f.Text)
		}
	}
}
