package settings

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pvc.internal/cluster"
)

var update = flag.Bool("update", false, "write the golden files anew")

func hostNamed(t *testing.T, host string) {
	t.Helper()
	before := hostname
	hostname = func() (string, error) { return host, nil }
	t.Cleanup(func() { hostname = before })
}

// golden compares what was taken over from a file, and the warnings, with what
// shall be, and returns what `config check` prints.
func golden(t *testing.T, i Inspection, name string) string {
	t.Helper()
	var b, taken strings.Builder
	if err := i.Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, s := range i.Settings {
		if s.Origin != "default" && !strings.HasPrefix(s.Origin, "profile ") {
			fmt.Fprintf(&taken, "%s: %s # %s\n", s.Key, s.Value, s.Origin)
		}
	}
	got := taken.String() + strings.Join(i.Warnings, "\n") + "\n"
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
	return b.String()
}

// A file of PVC's own daemons is read, and what is printed of it is a file of
// ours that means the same. None of the passwords in it shows up anywhere.
func TestPVCsFilesAreTranslated(t *testing.T) {
	hostNamed(t, "hv2.example.org")
	for _, form := range []string{"old", "flat"} {
		t.Run("pvcnoded "+form, func(t *testing.T) {
			n, i, err := InspectNode("testdata/pvc_"+form+".yaml", nil)
			if err != nil {
				t.Fatal(err)
			}
			printed := golden(t, i, "pvc_"+form+"_node.golden")
			if strings.Contains(printed+strings.Join(n.Warnings, "\n"), "hush") {
				t.Errorf("a password shows up:\n%s", printed)
			}
			again := mustLoad(t, printed)
			n.Warnings, again.Warnings = nil, nil
			if d := cmp.Diff(n, again, comparePrefixes); d != "" {
				t.Errorf("what was printed means something else:\n%s", d)
			}
		})
	}
	t.Run("pvcapid flat", func(t *testing.T) {
		a, i, err := InspectAPI("testdata/pvc_flat.yaml", nil)
		if err != nil {
			t.Fatal(err)
		}
		if printed := golden(t, i, "pvc_flat_api.golden"); strings.Contains(printed+strings.Join(a.Warnings, "\n"), "hush") {
			t.Errorf("a password shows up:\n%s", printed)
		}
	})
}

// Each key of PVC's files is named in a warning: none is lost in silence.
func TestEveryKeyOfPVCsIsNamed(t *testing.T) {
	hostNamed(t, "hv2")
	for _, path := range []string{"testdata/pvc_old.yaml", "testdata/pvc_flat.yaml"} {
		n, _, err := InspectNode(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		warnings := strings.Join(n.Warnings, "\n")
		doc, err := readDocument(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for key := range doc.lines {
			if strings.Contains(key, "[") || hasBelow(doc.lines, key) || nodeKeys()[key].to == key {
				continue
			}
			parent, leaf := key[:max(0, strings.LastIndex(key, "."))], key[strings.LastIndex(key, ".")+1:]
			alone := regexp.MustCompile(regexp.QuoteMeta(key) + `\b`)
			grouped := regexp.MustCompile(regexp.QuoteMeta(parent) + `\.\{[^}]*\b` + leaf + `\b[^}]*\}`)
			if !alone.MatchString(warnings) && !grouped.MatchString(warnings) {
				t.Errorf("%s: no warning names %s", path, key)
			}
		}
	}
}

func hasBelow(lines map[string]int, key string) bool {
	for other := range lines {
		if strings.HasPrefix(other, key+".") {
			return true
		}
	}
	return false
}

// What PVC's file says and what cannot be safe here.
func TestPVCsOddities(t *testing.T) {
	hostNamed(t, "hv9")
	const head = "pvc:\n  node: hv1\n  cluster: {coordinators: [hv2.example.org, hv1.example.org]}\n"
	for name, c := range map[string]struct {
		file    string
		warning string // one that is there
		refused string
		check   func(Node) bool
	}{
		"own server first": {head, "", "", func(n Node) bool {
			return n.ZooKeeper.Servers[0] == "hv1.example.org:2181" && n.Node.Mode == "coordinator"
		}},
		"a hypervisor":                  {strings.Replace(head, "node: hv1", "node: hv7", 1), "", "", func(n Node) bool { return n.Node.Mode == "hypervisor" && n.Node.Name == "hv7" }},
		"migrate on failure":            {head + "  system: {fencing: {actions: {failed_fence: migrate}}}\n", "migrate is taken as none", "", func(n Node) bool { return n.Fencing.FailedFence == "none" }},
		"suicide in use":                {head + "  system: {intervals: {fence_intervals: 8, suicide_intervals: 4}}\n", "", "", func(n Node) bool { return n.Timing.SuicideIntervals == 4 && n.Timing.FenceIntervals == 8 }},
		"intervals where pvcd had them": {head + "  system: {fencing: {intervals: {keepalive_interval: 5, fence_intervals: 7}}}\n", "", "", func(n Node) bool { return n.Timing.FenceIntervals == 7 }},
		"a relation that breaks":        {head + "  system: {intervals: {fence_intervals: 3}}\n", "are not taken over, those of the profile pvc are used: fence_intervals", "", func(n Node) bool { return n.Timing == cluster.ProfilePVC() }},
		"a number that is none":         {head + "  system: {intervals: {keepalive_interval: 5.5}}\n", "\"5.5\" is not taken over", "", func(n Node) bool { return n.Timing == cluster.ProfilePVC() }},
		"no networking":                 {head + "  functions: {enable_networking: no}\n  cluster2: {}\n", "pvc.cluster2: dropped: it is no key", "", func(n Node) bool { return len(n.Addresses) == 0 }},
		"address without device":        {strings.Replace(head, "]}", "], networks: {upstream: {floating_ip: 10.0.0.9/24}}}", 1), "needs an address and a device", "", nil},
		"a bad address":                 {strings.Replace(head, "]}", "], networks: {upstream: {floating_ip: 10.0.0.9}}}", 1) + "  system: {configuration: {networking: {upstream: {device: e0}}}}\n", "", "pvc.cluster.networks.upstream.floating_ip", nil},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := LoadNode(write(t, c.file))
			switch {
			case c.refused != "":
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("%v does not name %s", err, c.refused)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			if !strings.Contains(strings.Join(n.Warnings, "\n"), c.warning) {
				t.Errorf("%q is not in %q", c.warning, n.Warnings)
			}
			if c.check != nil && !c.check(n) {
				t.Errorf("%+v", n)
			}
		})
	}
}
