package settings

import (
	"bytes"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"pvc.internal/cluster"
)

// A variable stands above the file, for a key that the file has and for one
// that it has not.
func TestEnvironmentStandsAboveTheFile(t *testing.T) {
	path := write(t, least+"timing: {profile: pvc, grace: 1s}\nrole: {}\nwatchdog:\n")
	n, i, err := InspectNode(path, []string{
		"PVCNODED_TIMING_PROFILE=lan", "PVCNODED_TIMING_GRACE=350ms", "PVCNODED_TIMING_SETTLE=2",
		"PVCNODED_ZOOKEEPER_SERVERS=10.0.0.1, [fd00::2]:2181,hv3", "PVCNODED_NODE_NAME=007", "PVCNODED_NODE_PRIORITY=9",
		"PVCNODED_ROLE_GATE=true", "PVCNODED_ROLE_FAILSAFE=false", "PVCNODED_NODE_LEASES=false", "PVCNODED_LOG_LEVEL=debug",
		"PVCNODED_ZOOKEEPER_AUTH_USER=pvc", "PVCNODED_ZOOKEEPER_AUTH_PASSWORD_FILE=/p", "PVCNODED_WATCHDOG_DEVICE=/dev/watchdog",
		"PVCAPID_LOG_LEVEL=rubbish of another program", "PATH=/bin", "PVC_API=x", "PVCNODED=y",
	})
	if err != nil {
		t.Fatal(err)
	}
	if n.Node.Name != "007" || n.Node.Priority != 9 || n.Profile != "lan" || n.Timing.Grace != 350*time.Millisecond ||
		n.Timing.Settle != 2*time.Second || n.Timing.RoleTTL != cluster.ProfileLAN().RoleTTL || n.Role.Failsafe || n.NodeLeases || n.Log.Level != "debug" {
		t.Errorf("%+v", n)
	}
	if got := strings.Join(n.ZooKeeper.Servers, " "); got != "10.0.0.1:2181 [fd00::2]:2181 hv3:2181" {
		t.Error(got)
	}
	origins := map[string]string{}
	for _, s := range i.Settings {
		origins[s.Key] = s.Origin
	}
	for key, want := range map[string]string{
		"timing.profile": "PVCNODED_TIMING_PROFILE", "timing.role_ttl": "profile lan", "timing.collector_deadline": "0.8 × keepalive_interval",
		"zookeeper.servers": "PVCNODED_ZOOKEEPER_SERVERS", "cluster.name": "line 3", "state_dir": "default", "node.priority": "PVCNODED_NODE_PRIORITY",
	} {
		if origins[key] != want {
			t.Errorf("%s is from %q, want %q", key, origins[key], want)
		}
	}
}

// Every key that stands for one value has a variable, and no two share one.
func TestEveryKeyHasAVariable(t *testing.T) {
	for prefix, file := range map[string]reflect.Type{nodePrefix: reflect.TypeFor[nodeFile](), apiPrefix: reflect.TypeFor[apiFile]()} {
		settable, structured := overrides(prefix, file)
		leaves := 0
		for _, key := range everyKey(file, "") {
			if !strings.Contains(key, "[]") {
				leaves++
			}
		}
		if len(settable) != leaves {
			t.Errorf("%s: %d variables for %d keys", prefix, len(settable), leaves)
		}
		for variable := range settable {
			for _, s := range structured {
				if strings.HasPrefix(variable, s+"_") {
					t.Errorf("%s could be part of %s", variable, s)
				}
			}
			if secretWord.MatchString(variable) && !strings.HasSuffix(variable, "_FILE") && !strings.HasPrefix(variable, "PVCNODED_FENCING_SECRETS_") {
				t.Errorf("%s would carry a secret", variable)
			}
		}
	}
}

func TestVariablesThatAreRefused(t *testing.T) {
	for entry, want := range map[string]string{
		"PVCNODED_TIMING_PROFIL=lan":                   "PVCNODED_TIMING_PROFIL is unknown: did you mean PVCNODED_TIMING_PROFILE?",
		"PVCNODED_TIMING_PROFILE=wan":                  "PVCNODED_TIMING_PROFILE: timing.profile",
		"PVCNODED_NODE_PRIORITY=high":                  `PVCNODED_NODE_PRIORITY: "high" is not a whole number`,
		"PVCNODED_NODE_PRIORITY=":                      `"" is not a whole number`,
		"PVCNODED_ROLE_GATE=yes":                       `PVCNODED_ROLE_GATE: "yes" is neither true nor false`,
		"PVCNODED_TIMING_GRACE=soon":                   "PVCNODED_TIMING_GRACE: soon is not a duration",
		"PVCNODED_ADDRESSES=x":                         "PVCNODED_ADDRESSES: what it stands for is a list of structures",
		"PVCNODED_FENCING_NODES_HV1_AFTER=off":         "list of structures",
		"PVCNODED_ZOOKEEPER_AUTH_PASSWORD=hushhush":    "no variable carries a secret",
		"PVCNODED_ZOOKEEPER_SERVERS=":                  "PVCNODED_ZOOKEEPER_SERVERS: zookeeper.servers: is missing",
		"PVCNODED_ZOOKEEPER_SERVERS=a:1/pvc":           "PVCNODED_ZOOKEEPER_SERVERS: zookeeper.servers[0]",
		"PVCNODED_STATE_DIR=relative":                  "PVCNODED_STATE_DIR: state_dir",
		"PVCNODED_=x":                                  "PVCNODED_ is unknown",
		"PVCNODED_CLUSTER_NAME={a: b}":                 "PVCNODED_CLUSTER_NAME: cluster.name",
		"PVCNODED_timing_profile=lan":                  "unknown",
		"PVCNODED_ROLE=keep":                           "PVCNODED_ROLE is unknown",
		"PVCNODED_WATCHDOG_DEVICE=/dev/watchdog hush=": "",
	} {
		_, _, err := InspectNode(write(t, least), []string{entry})
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", entry, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", entry, err, want)
		case err != nil && strings.Contains(err.Error(), "hush"):
			t.Errorf("%s: the value is told: %v", entry, err)
		}
	}
	_, _, err := InspectNode(write(t, least+"timing: [a]\n"), []string{"PVCNODED_TIMING_PROFILE=lan"})
	if err == nil || !strings.Contains(err.Error(), "timing") {
		t.Errorf("a variable over what is no mapping: %v", err)
	}
	if _, _, err := InspectAPI(write(t, least), []string{"PVCAPID_API_KEYS_FILE=/k", "PVCAPID_API_LISTEN=0.0.0.0:1", "PVCNODED_RUBBISH=1"}); err != nil {
		t.Error(err)
	}
}

// An alias is one place for several keys: a variable changes the one it names.
func TestVariableOverAnAlias(t *testing.T) {
	n, _, err := InspectNode(write(t, "node: {name: hv1}\ncluster: {name: demo}\nzookeeper: {servers: [a], auth: &u {user: x, password_file: /p}, reader: *u}\n"),
		[]string{"PVCNODED_ZOOKEEPER_READER_USER=r"})
	if err != nil || n.ZooKeeper.Auth.User != "x" || n.ZooKeeper.Reader.User != "r" || n.ZooKeeper.Reader.PasswordFile != "/p" {
		t.Errorf("%+v, %v", n.ZooKeeper, err)
	}
}

// What could be a secret is not printed; where it stands is.
func TestSecretsAreNotPrinted(t *testing.T) {
	_, i, err := InspectNode(write(t, least+`
fencing:
  secrets: {key_file: /etc/pvc/fence.key}
  nodes:
    b:
      levels:
        - - {name: a, type: agent, agent: fence_x, options: {ip: 1.2.3.4, passwd: hush1, session_token: hush2}, password_file: /etc/pvc/a.pass}
        - - {name: s, type: ipmi, address: x, user: u, password_sealed: hush3}
        - - {name: e, type: exec, argv: [/x, --password=hush4, --api-token, hush5, plain]}
plugins: [{name: p, command: [/check, --password, hush6, -H, host]}]
services: [{name: s, kind: hook, command: [/run, "--secret=hush7"], check: [/c, "a,b", "multi\nline"]}]
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := i.Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/etc/pvc/fence.key", "/etc/pvc/a.pass", "1.2.3.4", "plain", "-H, host", "PVC", "3.00 s"} {
		if want != "PVC" && !strings.Contains(b.String(), want) {
			t.Errorf("%s is missing", want)
		}
	}
	if strings.Contains(b.String(), "hush") {
		t.Errorf("a secret shows up:\n%s", b.String())
	}
	var plain map[string]any
	if err := yaml.Unmarshal(b.Bytes(), &plain); err != nil {
		t.Errorf("it is no YAML: %v\n%s", err, b.String())
	}
}

// Two readings differ in what was changed, hidden or not.
func TestDiffer(t *testing.T) {
	read := func(more string) Inspection {
		_, i, err := InspectNode(write(t, least+more), nil)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	const device = "fencing: {secrets: {key_file: /k}, nodes: {b: {levels: [[{name: s, type: ipmi, address: x, password_sealed: %s}]]}}}\n"
	a := read(strings.Replace(device, "%s", "one", 1))
	b := read(strings.Replace(device, "%s", "two", 1) + "log: {level: warn}\n")
	if got := strings.Join(Differ(a, b), " "); got != "fencing.nodes.b.levels[0][0].password_sealed log.level" {
		t.Error(got)
	}
	if got := Differ(a, a); len(got) != 0 {
		t.Error(got)
	}
	if got := strings.Join(Differ(read(""), read("addresses: [{name: a, cidr: 10.0.0.1/24, interface: e}]\n")), " "); got != "addresses addresses[0].cidr addresses[0].interface addresses[0].name" {
		t.Error(got)
	}
}

// What cannot be read is told with what to do about it.
func TestFilesThatCannotBeRead(t *testing.T) {
	folder := t.TempDir()
	large := folder + "/large"
	if err := os.WriteFile(large, bytes.Repeat([]byte("# no end\n"), longestFile/8), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		folder + "/none": "the package brings one",
		folder:           "is a folder",
		large:            "is longer than",
		write(t, "node: {name: a}\n---\nnode: {name: b}\n"): "line 2: a second document begins here",
		write(t, "- a\n- b\n"):                              "must consist of keys",
		write(t, "just words\n"):                            "must consist of keys",
		write(t, "a: &a [*a]\n"):                            "anchor 'a' value contains itself",
		write(t, ""):                                        "cluster.name: is missing",
		write(t, "\xff\xfe\x00"):                            "yaml",
	} {
		_, err := LoadNode(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%v\ndoes not say %q of %s", err, want, path)
		}
	}
	if os.Geteuid() != 0 {
		secret := write(t, least)
		if err := os.Chmod(secret, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadNode(secret); err == nil || !strings.Contains(err.Error(), "run it as root") {
			t.Error(err)
		}
	}
}

// Whatever stands in a file or a variable, it is taken or refused in bounded time.
func FuzzSettings(f *testing.F) {
	for _, path := range []string{"../../etc/pvcnoded.yaml", "../../etc/pvcapid.yaml", "testdata/pvc_old.yaml", "testdata/pvc_flat.yaml"} {
		content, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content, "PVCNODED_TIMING_PROFILE=lan")
	}
	f.Add([]byte("pvc: {cluster: {coordinators: {a: b}, networks: [x]}, system: *x}"), "PVCNODED_ZOOKEEPER_SERVERS=,,,")
	f.Add([]byte("pvc: &x {cluster: *x}\n"), "PVCNODED_NODE_NAME=")
	f.Add([]byte("role: 5\ntiming: ~\n"), "PVCNODED_ROLE_GATE=true")
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte, entry string) {
		path := folder + "/fuzz.yaml"
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, i, err := InspectNode(path, []string{entry}); err == nil {
			var b bytes.Buffer
			_ = i.Write(&b)
			var plain map[string]any
			if err := yaml.Unmarshal(b.Bytes(), &plain); err != nil {
				t.Errorf("what is printed is no YAML: %v\n%s", err, b.String())
			}
		}
		_, _, _ = InspectAPI(path, []string{entry})
	})
}

// Whoever may not read the file is told who he is, and whose it is.
func TestAFileOfSomebodyElse(t *testing.T) {
	path := write(t, least)
	got := unreadable(path, &os.PathError{Op: "open", Path: path, Err: os.ErrPermission})
	for _, want := range []string{"runs as user", "it has mode 0600", "belongs to user", "mode 0640"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
}

// Files with bytes changed, cut out and moved are taken or refused, each in a
// moment, and what is printed of one that is taken is YAML.
func TestDamagedFiles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var whole [][]byte
	for _, path := range []string{uncommented(t, "../../etc/pvcnoded.yaml"), "../../etc/pvcapid.yaml", "testdata/pvc_old.yaml", "testdata/pvc_flat.yaml"} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		whole = append(whole, content)
	}
	taken := 0
	for range 200 {
		content := bytes.Clone(whole[r.IntN(len(whole))])
		for range 1 + r.IntN(5) {
			i := r.IntN(len(content))
			switch r.IntN(3) {
			case 0:
				content[i] = byte(r.IntN(256))
			case 1:
				content[i] = ": \n[]{},&*-#'\"!|>%"[r.IntN(18)]
			default:
				content = append(content[:i], content[min(len(content), i+r.IntN(30)):]...)
			}
			content = append(content, '\n')
		}
		path := write(t, string(content))
		if _, i, err := InspectNode(path, nil); err == nil {
			taken++
			var b bytes.Buffer
			_ = i.Write(&b)
			var plain map[string]any
			if err := yaml.Unmarshal(b.Bytes(), &plain); err != nil {
				t.Errorf("what is printed is no YAML: %v\n%s", err, b.String())
			}
		}
		_, _, _ = InspectAPI(path, nil)
	}
	if taken == 0 {
		t.Error("none was taken: the damage is too great to show anything")
	}
}
