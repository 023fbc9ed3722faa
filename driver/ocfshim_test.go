package driver

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// shimBed calls shims as an agent does.
type shimBed struct {
	t   *testing.T
	env map[string]string
}

func newShimBed(t *testing.T) *shimBed {
	file := filepath.Join(t.TempDir(), "web.json")
	return &shimBed{t, map[string]string{shimRecord: file, shimID: "id-1", shimNode: "hv1", shimMembers: "hv1 hv2", shimInstance: "web", shimAgent: "heartbeat:redis"}}
}

func (b *shimBed) call(line string) (status int, out, errs string) {
	var stdout, stderr bytes.Buffer
	status = OCFShim(strings.Fields(line), func(name string) string { return b.env[name] }, &stdout, &stderr)
	return status, strings.TrimSpace(stdout.String()), strings.TrimSpace(stderr.String())
}

// The commands as the agents of Debian call them.
func TestShimsOfPacemaker(t *testing.T) {
	b := newShimBed(t)
	if err := changeOCFRecord(b.env[shimRecord], "id-1", func(r *ocfRecord) error { r.Promoted = "hv2"; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line   string
		status int
		want   string // in its output
	}{
		{"crm_master -l reboot -G --quiet", crmNoSuch, ""},
		{"crm_master -Q -l reboot -v 100", crmOK, ""},
		{"/x/crm_master -N hv1 -l reboot -G --quiet", crmOK, "100"},
		{"crm_attribute -p -v 5", crmOK, ""},
		{"crm_attribute -p -G -q", crmOK, "5"},
		{"crm_attribute -N hv1 -n master-web -l reboot -G -q", crmOK, "5"},
		{"crm_attribute --promotion --query", crmOK, "scope=status  name=master-web value=5"},
		{"crm_attribute -p -v -INFINITY", crmOK, ""},
		{"crm_attribute -p -D", crmOK, ""},
		{"crm_attribute -p -D", crmOK, ""},
		{"crm_attribute -p -G -q", crmNoSuch, ""},
		{"crm_attribute --type crm_config --name web_REPL_INFO -s redis_replication -v hv1 -q", crmOK, ""},
		{"crm_attribute --type crm_config --name web_REPL_INFO -s redis_replication --query -q", crmOK, "hv1"},
		{"crm_attribute -N hv2 -l reboot --name x --quiet", crmNoSuch, ""},
		{"crm_attribute -N hv2 -l reboot --name x -v 1", crmNoSuch, ""},
		{"crm_attribute -l forever -n y -G -d none -q", crmOK, "none"},
		{"crm_attribute -l forever -n y -vseven", crmOK, ""},
		{"crm_attribute --lifetime=forever --name=y --query -q", crmOK, "seven"},
		{"attrd_updater -n state -v normal", crmOK, ""},
		{"attrd_updater -p -n state -Q", crmOK, `name="state" host="hv1" value="normal"`},
		{"attrd_updater -n state -D", crmOK, ""},
		{"attrd_updater -n state -Q", crmNoSuch, ""},
		{"crm_node -n", crmOK, "hv1"},
		{"crm_node --name", crmOK, "hv1"},
		{"crm_node -l", crmOK, "2 hv2 member"},
		{"crm_node -p", crmOK, "hv1 hv2"},
		{"crm_node -q", crmOK, "1"},
		{"crm_node", crmUsage, ""},
		{"crm_mon -1 --output-as=xml", crmOK, `<resource id="web" resource_agent="ocf:heartbeat:redis" role="Promoted" active="true" orphaned="false" blocked="false" managed="true" failed="false"`},
		{"crm_mon -1 --as-xml", crmOK, `<node name="hv1" id="1" online="true"`},
		{"crm_mon -1", crmOK, "Promoted hv2"},
		{"cibadmin -Q", crmOK, `<node_state id="1" uname="hv1" crmd="online">`},
		{"cibadmin --query --xpath //nvpair", crmNoSuch, ""},
		{"cibadmin -M -o nodes", crmUsage, ""},
		{"crm_resource -W -r web", crmOK, "resource web is running on: hv2 Promoted"},
		{"crm_resource -B -r web -N hv1 -Q", crmUsage, ""},
		{"crm_resource -r web", crmUnsupported, ""},
		{"crm_attribute", crmUsage, ""},
		{"crm_attribute -n", crmUsage, ""},
		{"crm_attribute --explode", crmUsage, ""},
		{"crm_attribute x", crmUsage, ""},
		{"crm_attribute - -- ---", crmUsage, ""},
		{"crm_attribute -l reboot -n big -v " + strings.Repeat("x", maxOCFAttribute+1), crmFailed, ""},
	} {
		status, out, errs := b.call(c.line)
		if status != c.status || !strings.Contains(out, c.want) || (status != crmOK) != (errs != "") {
			t.Errorf("%.80s: status %d, %q, %q; want %d and %q", c.line, status, out, errs, c.status, c.want)
		}
	}
	if !IsOCFShim("/a/b/crm_master") || IsOCFShim("/usr/sbin/pvcnoded") {
		t.Error("the names of shims are others")
	}
	b.env = nil
	if status, _, errs := b.call("crm_node -n"); status != crmUsage || !strings.Contains(errs, "no Pacemaker here") {
		t.Errorf("called by nobody: %d, %q", status, errs)
	}
}

// Agents and the driver change a record at the same time, and none of it is lost.
func TestOCFRecordsAreChangedByMany(t *testing.T) {
	b := newShimBed(t)
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			if status, _, errs := b.call(fmt.Sprintf("crm_attribute -l reboot -n a%d -v %d", i, i)); status != crmOK {
				t.Error(errs)
			}
		})
	}
	all.Wait()
	if n := len(readOCFRecord(b.env[shimRecord], "id-1").Attributes[attributeReboot]); n != 40 {
		t.Errorf("%d of 40 attributes", n)
	}
}

func TestOCFRecordsThatCount(t *testing.T) {
	b := newShimBed(t)
	file := b.env[shimRecord]
	b.call("crm_attribute -l reboot -n r -v 1")
	b.call("crm_attribute -l forever -n f -v 2")
	if len(readOCFRecord(file, "another").Attributes) != 0 {
		t.Error("a record of an earlier workload of the name counts")
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	earlier := strings.Replace(string(raw), bootID(), "earlier", 1)
	for name, c := range map[string]struct {
		content         string
		reboot, forever bool
	}{
		"of this boot": {string(raw), true, true}, "of an earlier boot": {earlier, false, true}, "empty": {"", false, false}, "half": {string(raw[:len(raw)/2]), false, false},
		"rubbish": {"\x00\xff", false, false}, "another version": {strings.Replace(string(raw), `"v":1`, `"v":9`, 1), false, false}, "huge": {string(raw) + strings.Repeat(" ", maxOCFRecord), false, false},
	} {
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		r := readOCFRecord(file, "id-1")
		_, reboot := r.attribute(attributeReboot, "r")
		_, forever := r.attribute(attributeForever, "f")
		if reboot != c.reboot || forever != c.forever {
			t.Errorf("%s: until the boot %v, for ever %v", name, reboot, forever)
		}
		if status, _, errs := b.call("crm_attribute -l reboot -n again -v 1"); status != crmOK {
			t.Errorf("%s: cannot be written any more: %s", name, errs)
		}
	}
	for text, want := range map[string]int64{"7": 7, "INFINITY": infinity, "-INFINITY": -infinity, "99999999": infinity} {
		r := ocfRecord{Attributes: map[string]map[string]string{attributeReboot: {"master-web": text}}}
		if n, ok := r.score("web:0"); !ok || n != want {
			t.Errorf("score %s is %d, %v", text, n, ok)
		}
	}
}

func TestOCFTimes(t *testing.T) {
	for text, want := range map[string]time.Duration{"20s": 20 * time.Second, "20": 20 * time.Second, " 2min ": 2 * time.Minute, "1500ms": 1500 * time.Millisecond, "1h": time.Hour, "": -1, "s": -1, "-1s": -1, "1.5s": -1, "1 week": -1, "99999999999999": -1} {
		if d, err := parseOCFDuration(text); (err != nil) != (want < 0) || err == nil && d != want {
			t.Errorf("%q is %v, %v", text, d, err)
		}
	}
	if ocfDuration("soon") != defaultOCFTimeout || ocfDuration("0") != defaultOCFTimeout || ocfDuration("9h") != longestOCFTimeout || ocfDuration("1ms") != leastOCFTimeout {
		t.Error("the metadata's times are not bounded")
	}
}

// All agents of this machine have metadata that can be read.
func TestMetadataOfDebiansAgents(t *testing.T) {
	t.Parallel()
	paths, _ := filepath.Glob("/usr/lib/ocf/resource.d/heartbeat/[A-F]*")
	if len(paths) == 0 {
		t.Skip("needs Debian's resource-agents: make deps")
	}
	agents := newOCFAgents("/usr/lib/ocf")
	for _, path := range paths {
		a, err := agents.find(deadlined(t), "heartbeat:"+filepath.Base(path))
		if err != nil {
			t.Error(err)
			continue
		}
		if again, err := agents.find(deadlined(t), "ocf:heartbeat:"+filepath.Base(path)); err != nil || again.meta != a.meta {
			t.Errorf("%s was asked twice", a)
		}
	}
	a, err := agents.find(deadlined(t), "heartbeat:Filesystem")
	if err != nil {
		t.Fatal(err)
	}
	if !a.meta.parameters["device"].required || a.meta.parameters["options"].required || a.timeout(cluster.Workload{}, "stop") != time.Minute || a.meta.announces("promote") {
		t.Errorf("Filesystem: %+v", a.meta)
	}
}

// FuzzOCFMetadata: whatever an agent prints, it is refused or bounded.
func FuzzOCFMetadata(f *testing.F) {
	f.Add([]byte(`<resource-agent name="x"><parameters><parameter name="a" required="1"><content type="integer" default="1"/></parameter></parameters><actions><action name="start" timeout="5"/><action name="stop"/><action name="monitor" timeout="1h"/></actions></resource-agent>`))
	f.Add([]byte("noise <?xml version=\"1.0\" encoding=\"iso-8859-1\"?><resource-agent name=\"\xe4\">"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseMetadata(raw)
		if err != nil {
			return
		}
		for name, a := range m.actions {
			if a.timeout < leastOCFTimeout || a.timeout > longestOCFTimeout {
				t.Errorf("action %q may take %v", name, a.timeout)
			}
		}
	})
}
