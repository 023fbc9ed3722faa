package settings

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pvc.internal/cluster"
	"pvc.internal/peer"
)

// least is the shortest file that is accepted.
const least = `
node: {name: hv1}
cluster: {name: demo}
zookeeper: {servers: ["127.0.0.1:2181"]}
`

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pvcnoded.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustLoad(t *testing.T, content string) Node {
	t.Helper()
	n, err := LoadNode(write(t, content))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDefaults(t *testing.T) {
	n := mustLoad(t, least)
	want := Node{
		Node:      Identity{Name: "hv1", Mode: cluster.Coordinator},
		Cluster:   Cluster{Name: "demo"},
		ZooKeeper: ZooKeeper{Servers: []string{"127.0.0.1:2181"}, Root: "/", Auth: Auth{Scheme: "digest"}},
		Role:      Role{OnStartFailure: "keep", Gate: true},
		SelfFence: "stop-work",
		Plugins:   []Plugin{},
		Fencing:   Fencing{SuccessfulFence: "migrate", FailedFence: "none", TestSchedule: "@hourly", Nodes: map[string]FenceNode{}},
		Workloads: Workloads{OCFRoot: "/usr/lib/ocf", RedisDir: "/var/lib/pvc/workloads/redis"},
		Metrics:   Metrics{Listen: "127.0.0.1:7372"}, StateDir: "/var/lib/pvc", RunDir: "/run/pvc", Log: Log{Level: "info", Format: "auto"},
		Profile:   "lan",
		Timing:    cluster.ProfileLAN(),
		Addresses: []cluster.FloatingAddress{},
		Services:  []cluster.ServiceSpec{},
	}
	if d := cmp.Diff(want, n, comparePrefixes); d != "" {
		t.Error(d)
	}
}

func TestShippedFilesLoadAndMeanTheDefaults(t *testing.T) {
	n, err := LoadNode("../../etc/pvcnoded.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d := mustLoad(t, least)
	n.Node.Name, n.Timing, n.Warnings = d.Node.Name, d.Timing, d.Warnings
	if diff := cmp.Diff(d, n); diff != "" {
		t.Errorf("etc/pvcnoded.yaml differs from the defaults:\n%s", diff)
	}
	a, err := LoadAPI("../../etc/pvcapid.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(a.API.Listen) != 1 || a.API.Listen[0] != "127.0.0.1:7370" || a.Timing != cluster.ProfileLAN() {
		t.Errorf("etc/pvcapid.yaml: %+v", a)
	}
}

// example is a setting behind a "#" and an even number of blanks; prose has an
// odd one.
var example = regexp.MustCompile(`(?m)^( *)#((?:  )*\S)`)

// What is commented out is what people uncomment: all of it together must load.
func TestShippedFileUncommented(t *testing.T) {
	content, err := os.ReadFile("../../etc/pvcnoded.yaml")
	if err != nil {
		t.Fatal(err)
	}
	n := mustLoad(t, example.ReplaceAllString(string(content), "$1$2"))
	if len(n.Addresses) != 2 || len(n.Services) != 2 || len(n.Plugins) != 1 || len(n.Fencing.Nodes["hv2"].Levels[1]) != 2 {
		t.Errorf("uncommented: %+v", n)
	}
	if n.Timing != cluster.ProfileLAN() {
		t.Errorf("the intervals shown are not those of lan: %+v", n.Timing)
	}
	if pdu := n.Fencing.Nodes["hv3"].Levels[2][0]; pdu.Agent != "fence_apc" || pdu.Options["plug"] != "7" || pdu.Options["ip"] == "" {
		t.Errorf("a shared device in a ladder: %+v", pdu)
	}
	if !n.Role.Failsafe || n.Peer.Advertise != n.Peer.Listen || n.Watchdog.Device != "/dev/watchdog" {
		t.Errorf("uncommented: %+v, %+v, %+v", n.Role, n.Peer, n.Watchdog)
	}
	if !n.ZooKeeper.TLS.Set() || !n.ZooKeeper.Reader.Set() || len(n.ZooKeeper.Servers) != 3 {
		t.Errorf("uncommented: %+v", n.ZooKeeper)
	}
}

// uncommented is a shipped file with everything that is commented out in it.
func uncommented(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, example.ReplaceAllString(string(content), "$1$2"))
}

// Who reads the shipped files has seen every key there is.
func TestShippedFilesShowEveryKey(t *testing.T) {
	for path, file := range map[string]reflect.Type{
		"../../etc/pvcnoded.yaml": reflect.TypeFor[nodeFile](), "../../etc/pvcapid.yaml": reflect.TypeFor[apiFile](),
	} {
		doc, err := readDocument(uncommented(t, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		var shown []string
		for key := range doc.lines {
			shown = append(shown, element.ReplaceAllString(key, "[]"))
		}
		for _, key := range everyKey(file, "") {
			if !slices.Contains(shown, key) {
				t.Errorf("%s does not show %s", path, key)
			}
		}
	}
}

var element = regexp.MustCompile(`\[\d+\]|(?:nodes)\.[a-z0-9]+|options\.[a-z0-9]+`)

// everyKey lists the keys of a type with those of its lists' elements.
func everyKey(t reflect.Type, at string) (keys []string) {
	switch {
	case t.Kind() == reflect.Pointer:
		return everyKey(t.Elem(), at)
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.String:
		return everyKey(t.Elem(), at+"[]")
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Struct:
		return everyKey(t.Elem(), strings.TrimSuffix(at, "nodes")+"[]")
	case t.Kind() != reflect.Struct:
		return []string{at}
	}
	for key, kind := range fieldsOf(t) {
		if at == "fencing.devices[]" && key != "name" {
			continue // shown in the ladders
		}
		keys = append(keys, everyKey(kind, join(at, key))...)
	}
	return keys
}

// examples are the keys that have no default, so that the shipped files show one.
var examples = regexp.MustCompile(`^(node\.name|cluster\.name|zookeeper\.(servers|auth\..*|reader\..*|tls\..*)|peer\..*|role\.failsafe|node_leases|watchdog\.device|(addresses|services|plugins)(\[.*)?|fencing\.(nodes|devices).*|fencing\.secrets\.key_file)$`)

// What the shipped files show as defaults are the defaults.
func TestShippedFilesShowTheDefaults(t *testing.T) {
	inspectors := map[string]func(string) (Inspection, error){
		"../../etc/pvcnoded.yaml": func(path string) (Inspection, error) { _, i, err := InspectNode(path, nil); return i, err },
		"../../etc/pvcapid.yaml":  func(path string) (Inspection, error) { _, i, err := InspectAPI(path, nil); return i, err },
	}
	for path, read := range inspectors {
		defaults, err := read(write(t, least))
		if err != nil {
			t.Fatal(err)
		}
		shown, err := read(uncommented(t, path))
		if err != nil {
			t.Fatal(err)
		}
		compared := 0
		for _, key := range Differ(defaults, shown) {
			if !examples.MatchString(key) {
				t.Errorf("%s shows another %s than the default", path, key)
			}
		}
		for _, s := range shown.Settings {
			if strings.HasPrefix(s.Origin, "line ") && !examples.MatchString(s.Key) {
				compared++
			}
		}
		if compared < 25 {
			t.Errorf("%s: only %d defaults are shown", path, compared)
		}
	}
}

// The lines that the shipped file recommends for production hold together.
func TestProductionTiming(t *testing.T) {
	n := mustLoad(t, least+"timing: {write_gap: 3s, suicide_intervals: 5, fence_intervals: 6}\n")
	if len(n.Warnings) != 1 || !strings.Contains(n.Warnings[0], "write_gap") {
		t.Errorf("warnings %q, want the one about losing the leader's machine", n.Warnings)
	}
}

func TestEverythingIsRead(t *testing.T) {
	n := mustLoad(t, `
node: {name: hv1.dc, mode: hypervisor, priority: 7}
cluster: {name: demo}
zookeeper:
  servers: ["[::1]:2181", zk2.example.org]
  root: /pvc
  auth: {user: pvc, password_file: /p}
  reader: {user: r, password_file: /r}
  tls: {ca: /ca, cert: /c, key: /k, server_name: zk}
timing: {profile: pvc, role_ttl: 20, grace: 1500ms, keepalive_interval: 4.5, suicide_intervals: 5}
peer: {listen: "[::]:7371", advertise: "hv1.dc:7371", tls: {ca: /pa, cert: /pc, key: /pk}}
role: {require_dead_proof: true, on_start_failure: yield, failsafe: true, gate: false}
self_fence: watchdog
watchdog: {device: /dev/watchdog1, pretimeout: 5, trust_softdog: true}
addresses:
  - {name: v4, cidr: 10.0.0.10/24, interface: upstream}
  - {name: v6, cidr: fd00::10/64, interface: upstream}
services:
  - {name: dns, kind: hook, command: [/bin/dns, -x], check: [/bin/check], start_timeout: 3, stop_timeout: 500ms}
  - {name: nginx, kind: unit, unit: nginx.service}
plugins:
  - {name: load, command: [/check_load, -w, "9"], interval: 10s}
fencing:
  successful_fence: none
  nodes:
    HV2.dc: {after: "off", levels: [[{name: a, type: ipmi, address: 192.168.0.2, password_file: /p, timeout: 5}], [{name: b, type: ipmi, address: x, password_file: /p}]]}
state_dir: /s
run_dir: /r
log: {level: debug}
`)
	if got := n.ZooKeeper.Servers; !cmp.Equal(got, []string{"[::1]:2181", "zk2.example.org:2181"}) {
		t.Errorf("servers %q", got)
	}
	if n.Timing.RoleTTL != 20*time.Second || n.Timing.Grace != 1500*time.Millisecond || n.Timing.Settle != 2*time.Second {
		t.Errorf("timing %+v", n.Timing)
	}
	if n.Timing.CollectorDeadline != 3600*time.Millisecond {
		t.Errorf("collector_deadline %v does not follow keepalive_interval 4.5 s", n.Timing.CollectorDeadline)
	}
	if got := n.Addresses[1].String(); got != "v6=fd00::10/64@upstream" {
		t.Error(got)
	}
	if p := n.Peer; p.Listen != "[::]:7371" || p.Advertise != "hv1.dc:7371" || p.Files() != (peer.Files{CA: "/pa", Cert: "/pc", Key: "/pk"}) || !n.Role.Failsafe {
		t.Errorf("peer %+v, failsafe %v", p, n.Role.Failsafe)
	}
	if w := n.Watchdog; w != (Watchdog{Device: "/dev/watchdog1", Pretimeout: 5 * time.Second, TrustSoft: true}) || n.SelfFence != SelfFenceWatchdog {
		t.Errorf("watchdog %+v, self_fence %s", w, n.SelfFence)
	}
	if s := n.Services; s[0].StopTimeout != 500*time.Millisecond || s[0].StartTimeout != 3*time.Second ||
		s[1].StartTimeout != 10*time.Second || s[1].StopTimeout != 5*time.Second || s[1].Unit != "nginx.service" {
		t.Errorf("services %+v", s)
	}
	hv2 := n.Fencing.Nodes["HV2.dc"]
	if hv2.After != "off" || len(hv2.Levels) != 2 || hv2.Levels[0][0].Timeout != 5*time.Second {
		t.Errorf("fencing.nodes: %+v", n.Fencing.Nodes)
	}
}

// Each file is refused with a message that holds all the given words, and
// always the file's name.
func TestRefusals(t *testing.T) {
	cases := map[string]struct {
		file string
		want []string
	}{
		"unknown key":         {least + "nodes: {}\n", []string{`:5: nodes is unknown`, `did you mean "node"`}},
		"unknown inner key":   {strings.Replace(least, "name: hv1", "naem: hv1", 1), []string{":2: node.naem is unknown", `did you mean "name"`}},
		"misplaced key":       {least + "failsafe: true\n", []string{"failsafe is unknown", `"role.failsafe"`}},
		"unknown in a list":   {least + "addresses:\n  - {name: a, cdir: 10.0.0.1/24, interface: e}\n", []string{"addresses[0].cdir is unknown", `"cidr"`}},
		"unknown in a device": {least + "fencing: {nodes: {b: {levels: [[{name: x, typo: 1}]]}}}\n", []string{"fencing.nodes.b.levels[0][0].typo", `"type"`}},
		"wrong case":          {least + "Log: {level: info}\n", []string{"Log is unknown", `"log"`}},
		"text for number":     {strings.Replace(least, "name: hv1", "name: hv1, priority: high", 1), []string{"node.priority: high is not a whole number"}},
		"fraction for whole":  {strings.Replace(least, "name: hv1", "name: hv1, priority: 1.5", 1), []string{"node.priority: 1.5 is not a whole number"}},
		"text for keys":       {least + "role: keep\n", []string{"role: keep must be keys"}},
		"number for text":     {strings.Replace(least, "name: demo", "name: 5", 1), []string{"cluster.name: 5 must be text", "quotes"}},
		"text for list":       {least + "services: dns\n", []string{"services: dns must be a list"}},
		"text for bool":       {least + "role: {gate: sometimes}\n", []string{"role.gate: sometimes is neither"}},
		"bad duration":        {least + "timing: {grace: 5 minutes}\n", []string{"timing.grace: 5 minutes is not a duration", "500ms"}},
		"number in a command": {least + "plugins: [{name: a, command: [/x, -w, 9]}]\n", []string{"plugins[0].command[2]"}},
		"broken yaml":         {"node: [\n", []string{"line 1"}},
		"key twice":           {least + "node: {name: b}\n", []string{"already defined"}},
		"no cluster":          {strings.Replace(least, "name: demo", `name: ""`, 1), []string{"cluster.name: is missing"}},
		"reserved node":       {strings.Replace(least, "hv1", "none", 1), []string{"node.name", "reserved"}},
		"mode":                {strings.Replace(least, "name: hv1", "name: hv1, mode: coordinatr", 1), []string{"node.mode", `did you mean "coordinator"`}},
		"no servers":          {strings.Replace(least, `"127.0.0.1:2181"`, "", 1), []string{"zookeeper.servers: is missing"}},
		"chroot":              {strings.Replace(least, ":2181", ":2181/pvc", 1), []string{"zookeeper.servers[0]", "zookeeper.root: /pvc"}},
		"bare IPv6":           {strings.Replace(least, "127.0.0.1:2181", "::1", 1), []string{"[::1]:2181"}},
		"several in one":      {strings.Replace(least, "127.0.0.1:2181", "a:1,b:2", 1), []string{"entry of its own"}},
		"port":                {strings.Replace(least, "2181", "70000", 1), []string{"1 to 65535"}},
		"server twice":        {strings.Replace(least, `"127.0.0.1:2181"`, `"a:2181", a`, 1), []string{"zookeeper.servers[1]", "twice"}},
		"root":                {strings.Replace(least, "servers:", "root: pvc/, servers:", 1), []string{"zookeeper.root"}},
		"auth half":           {strings.Replace(least, "servers:", "auth: {user: a}, servers:", 1), []string{"zookeeper.auth.password_file"}},
		"profile":             {least + "timing: {profile: wan}\n", []string{"timing.profile", "lan, fast or pvc"}},
		"relation":            {least + "timing: {taker_margin: 50ms}\n", []string{"timing: taker_margin 50ms", "78ms"}},
		"fast without gate":   {least + "timing: {profile: fast}\nrole: {gate: false}\n", []string{"nftables"}},
		"address not CIDR":    {least + "addresses: [{name: a, cidr: 10.0.0.10, interface: e}]\n", []string{"addresses[0].cidr", "10.0.0.10/24"}},
		"network address":     {least + "addresses: [{name: a, cidr: 10.0.0.0/24, interface: e}]\n", []string{"network itself"}},
		"broadcast":           {least + "addresses: [{name: a, cidr: 10.0.0.255/24, interface: e}]\n", []string{"broadcast"}},
		"no interface":        {least + "addresses: [{name: a, cidr: 10.0.0.1/24}]\n", []string{"addresses[0].interface: is missing"}},
		"address twice": {least + "addresses: [{name: a, cidr: 10.0.0.1/24, interface: e}, {name: b, cidr: 10.0.0.1/16, interface: e}]\n",
			[]string{"addresses[1].cidr", "a's already"}},
		"name twice": {least + "addresses: [{name: a, cidr: 10.0.0.1/24, interface: e}, {name: a, cidr: 10.0.0.2/24, interface: e}]\n",
			[]string{"addresses[1].name", "twice"}},
		"kind":             {least + "services: [{name: a, kind: hooks, command: [/x]}]\n", []string{"services[0].kind", `"hook"`}},
		"relative command": {least + "services: [{name: a, kind: hook, command: [x]}]\n", []string{"services[0].command", "full path"}},
		"hook with unit":   {least + "services: [{name: a, kind: hook, command: [/x], unit: a.service}]\n", []string{"services[0].unit"}},
		"unit suffix":      {least + "services: [{name: a, kind: unit, unit: nginx}]\n", []string{"nginx.service"}},
		"own unit":         {least + "services: [{name: a, kind: unit, unit: pvc-guard.service}]\n", []string{"part of this program"}},
		"plugin timeout":   {least + "plugins: [{name: a, command: [/x], interval: 2, timeout: 3}]\n", []string{"plugins[0].timeout", "2s"}},
		"device type":      {least + "fencing: {nodes: {b: {levels: [[{name: a, type: impi, address: x}]]}}}\n", []string{`did you mean "ipmi"`}},
		"no level":         {least + "fencing: {nodes: {b: {after: reboot}}}\n", []string{"fencing.nodes.b.levels: is missing"}},
		"empty level":      {least + "fencing: {nodes: {b: {levels: [[]]}}}\n", []string{"levels[0]: is empty"}},
		"no password file": {least + "fencing: {nodes: {b: {levels: [[{name: a, type: ipmi, address: x}]]}}}\n", []string{"levels[0][0].password_file: is missing"}},
		"case clash":       {least + "fencing: {nodes: {b: {levels: [[{name: a}]]}, B: {levels: [[{name: a}]]}}}\n", []string{"upper and lower case"}},
		"state folder":     {least + "state_dir: var\n", []string{"state_dir", "full path"}},
		"level":            {least + "log: {level: verbose}\n", []string{"log.level", "debug, info, warn, error"}},
		"several wrong":    {least + "state_dir: var\nlog: {level: verbose}\n", []string{"state_dir", "log.level"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := write(t, c.file)
			_, err := LoadNode(path)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range append(c.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in:\n%v", want, err)
				}
			}
		})
	}
}

func TestListener(t *testing.T) {
	for api, want := range map[string]string{
		"{}":                                      "",
		`{listen: ["[::1]:7370"]}`:                "",
		`{listen: ["0.0.0.0:7370"]}`:              "api.listen[0]: 0.0.0.0:7370 can be reached from other hosts",
		`{listen: ["0.0.0.0:7370"], auth: none}`:  "",
		`{listen: ["10.0.0.1:80"], keys_file: k}`: "",
		`{listen: ["localhost"]}`:                 "not address:port",
		`{auth: nonee}`:                           `did you mean "none"`,
		`{tls: {cert: a}}`:                        "belong together",
		`{tls: {client_ca: a}}`:                   "need TLS",
		`{lisen: []}`:                             `did you mean "listen"`,
	} {
		_, err := LoadAPI(write(t, least+"api: "+api+"\n"))
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", api, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", api, err, want)
		}
	}
}

func TestLoggerDoesNotSample(t *testing.T) {
	if _, _, err := NewLogger(Log{Level: "loud"}); err == nil {
		t.Error("level loud accepted")
	}
	read, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	stderr := os.Stderr
	os.Stderr = out
	log, _, err := NewLogger(Log{Level: "info"})
	os.Stderr = stderr
	if err != nil {
		t.Fatal(err)
	}
	for range 150 {
		log.Info("same")
	}
	log.Debug("hidden")
	out.Close()
	content := make([]byte, 64<<10)
	n, _ := read.Read(content)
	if got := strings.Count(string(content[:n]), `"msg":"same"`); got != 150 {
		t.Errorf("%d of 150 equal lines came through", got)
	}
}

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
