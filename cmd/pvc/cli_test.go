package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/doctor"
)

// server is a pvcapid of canned answers that remembers what it was asked.
type server struct {
	mu      sync.Mutex
	asked   []string
	answers map[string]any // "GET /node" → body, or a status, or a func() any that makes either
	views   chan api.ClusterView
	*httptest.Server
}

// failing is an answer that is no success, with its text.
type failing struct {
	status int
	text   string
}

func newServer(t *testing.T, answers map[string]any) *server {
	s := &server{answers: answers, views: make(chan api.ClusterView, 16)}
	s.Server = httptest.NewServer(http.HandlerFunc(s.answer))
	t.Cleanup(s.Close)
	return s
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	path := strings.TrimPrefix(r.URL.Path, api.Prefix)
	s.mu.Lock()
	s.asked = append(s.asked, strings.TrimSpace(r.Method+" "+path+" "+r.Form.Encode()))
	body := s.answers[r.Method+" "+path]
	if next, made := body.(func() any); made {
		body = next()
	}
	s.mu.Unlock()
	if path == "/watch" {
		s.watch(w, r)
		return
	}
	switch b := body.(type) {
	case nil:
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(api.Message{Message: "There is nothing at " + path})
	case failing:
		w.WriteHeader(b.status)
		_ = json.NewEncoder(w).Encode(api.Message{Message: b.text})
	case int:
		w.WriteHeader(b)
		_ = json.NewEncoder(w).Encode(api.Message{Message: fmt.Sprintf("answered with %d", b)})
	default:
		_ = json.NewEncoder(w).Encode(b)
	}
}

// watch streams the views that the test sends.
func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case v := <-s.views:
			raw, _ := json.Marshal(v)
			fmt.Fprintf(w, "event: cluster\nid: %s\ndata: %s\n\n", v.Version, raw)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
	}
}

type outcome struct {
	code     int
	out, err string
}

// pvc runs the command line against the server.
func pvc(t *testing.T, s *server, stdin string, words ...string) outcome {
	t.Helper()
	t.Setenv("PVC_API", s.URL)
	t.Setenv("PVC_API_KEY", "")
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	code := run(ctx, append([]string{"pvc"}, words...), strings.NewReader(stdin), &out, &errs)
	return outcome{code, out.String(), errs.String()}
}

func (s *server) lastAsked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asked) == 0 {
		return ""
	}
	return s.asked[len(s.asked)-1]
}

var hv1 = api.Node{Name: "hv1", DaemonState: "run", CoordinatorState: "primary", DomainState: "ready", Health: 100,
	CPUCount: 4, Load: 0.5, Memory: api.NodeMemory{Total: 16384, Used: 512}, RunningDomains: []string{}}

var theCache = api.WorkloadView{Name: "cache", ID: "w1", Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, State: cluster.WorkloadRunning, Wanted: true, Autostart: true, Ephemeral: true,
	Chain: []cluster.NodeID{"hv1", cluster.NoCopy}, Nodes: []cluster.NodeID{}, Replicas: 1, Version: 3, Params: map[string]string{"port": "7001"}}

// every command, the words it needs, and what it asks for.
var commands = []struct {
	words, names, flags string // flags are its own, with values
	asks                string
	answer              any
}{
	{"node list", "hv.", "--daemon-state run --coordinator-state primary --domain-state ready", "GET /node coordinator_state=primary&daemon_state=run&domain_state=ready&limit=hv.", []api.Node{hv1}},
	{"node info", "hv1", "", "GET /node/hv1", hv1},
	{"node primary", "hv2", "--dry-run --wait-timeout 5s", "POST /switch dry_run=true&to=hv2", api.SwitchAnswer{Message: "would", Possible: true, DryRun: true}},
	{"node secondary", "hv1", "--dry-run --wait", "POST /switch dry_run=true&from=hv1&to=none", api.SwitchAnswer{Message: "would", Possible: true, DryRun: true}},
	{"node flush", "hv1", "--wait-timeout 5s", "POST /node/hv1/domain-state state=flush", api.Message{Message: "flushed"}},
	{"node ready", "hv1", "--wait-timeout 5s", "POST /node/hv1/domain-state state=ready", api.Message{Message: "ready"}},
	{"node add", "hv4", "--coordinator --host 7f --reason repaired --wait-timeout 5s", "PUT /node/hv4 host=7f&mode=coordinator&reason=repaired", api.MemberAnswer{Message: "ordered"}},
	{"node remove", "hv4", "--reason sold -y --wait-timeout 5s", "DELETE /node/hv4 reason=sold", api.MemberAnswer{Message: "ordered"}},
	{"settings autofailover", "", "--enabled true --timeout 30 --max-count 2 --check", "POST /settings/autoFailover enabled=true&just_validate=1&maxCount=2&timeout=30", api.SettingsErrors{}},
	{"settings autoreprovision", "", "", "GET /settings/autoReprovision", api.AutoReprovision{Enabled: true, MaxNodes: 1}},
	{"settings autoreprovision enable", "", "--max-nodes 2", "POST /settings/autoReprovision enabled=true&maxNodes=2", api.ReprovisionAnswer{Message: "on"}},
	{"settings autoreprovision disable", "", "--check", "POST /settings/autoReprovision enabled=false&just_validate=1", api.SettingsErrors{}},
	{"settings autoreprovision reset", "", "--wait --wait-timeout 5s", "POST /settings/autoReprovision/resetCount wait=5s", api.ReprovisionAnswer{Message: "reset"}},
	{"rebalance", "", "--wait-timeout 5s", "POST /rebalance", api.RebalanceAnswer{Message: "ordered"}},
	{"rebalance start", "", "--wait-timeout 5s", "POST /rebalance", api.RebalanceAnswer{Message: "ordered"}},
	{"rebalance stop", "", "", "POST /rebalance/stop", api.RebalanceAnswer{Message: "ordered"}},
	{"rebalance status", "", "", "GET /rebalance", api.RebalanceView{State: "done", Text: "all is spread"}},
	{"workload list", "c.*", "--node hv1 --state running --kind movable --driver exec", "GET /workloads driver=exec&kind=movable&limit=c.%2A&node=hv1&state=running", []api.WorkloadView{theCache}},
	{"workload info", "cache", "", "GET /workloads/cache", theCache},
	{"workload add", "cache", "--driver redis --chain hv1,hv2 --ephemeral", "POST /workloads chain=hv1%2Chv2&driver=redis&ephemeral=true&name=cache", api.WorkloadOrder{Message: "added"}},
	{"workload add", "job", "--driver exec --param command=/bin/a,b=c --kind movable --nodes hv1 --replicas 0 --coordinators-only --autostart=false --protected --priority 5 --selector mem --memory 64 --vcpus 2 --stopped --unchecked --wait-timeout 5s",
		"POST /workloads autostart=false&coordinators_only=true&driver=exec&kind=movable&memory=64&name=job&nodes=hv1&params=%7B%22command%22%3A%22%2Fbin%2Fa%2Cb%3Dc%22%7D&priority=5&protected=true&replicas=0&selector=mem&stopped=true&unchecked=true&vcpus=2", api.WorkloadOrder{Message: "added"}},
	{"workload set", "cache", "--priority 7 --param port=7001 --param old=", "PUT /workloads/cache params=%7B%22old%22%3Anull%2C%22port%22%3A%227001%22%7D&priority=7", api.WorkloadOrder{Message: "changed"}},
	{"workload move", "web", "--node hv1 --wait-timeout 5s", "POST /workloads/web/move node=hv1", api.WorkloadOrder{Message: "ordered"}},
	{"workload promote", "cache", "--node hv2", "POST /workloads/cache/promote node=hv2", api.WorkloadOrder{Message: "ordered"}},
	{"workload start", "web", "", "POST /workloads/web/start", api.WorkloadOrder{Message: "ordered"}},
	{"workload stop", "web", "--wait-timeout 5s", "POST /workloads/web/stop", api.WorkloadOrder{Message: "ordered"}},
	{"workload probe", "web", "", "POST /workloads/web/probe", api.WorkloadOrder{Message: "ordered"}},
	{"workload remove", "cache", "--destroy -y", "DELETE /workloads/cache destroy=true", api.WorkloadOrder{Message: "ordered"}},
	{"lease list", "", "", "GET /leases", api.LeasesView{}},
	{"activity list", "", "--limit 3", "GET /activities limit=3", api.ActivitiesView{}},
	{"activity stop", "drain-a", "--reason hangs --wait-timeout 5s", "POST /activities/drain-a/stop reason=hangs", api.ActivityAnswer{Message: "ordered"}},
	{"fault list", "", "", "GET /faults", []api.Fault{{ID: "disk", Message: "a disk is full"}}},
	{"fault ack", "disk", "", "PUT /faults/disk", api.Message{Message: "acknowledged"}},
	{"fault delete", "disk", "", "DELETE /faults/disk", api.Message{Message: "deleted"}},
	{"node log", "hv1", "-n 3", "GET /node/hv1/log lines=3", api.NodeLog{Name: "hv1", Data: "a\nb"}},
	{"cluster status", "", "", "GET /status", api.Status{ClusterName: "demo", Health: "Optimal"}},
	{"cluster init", "", "--name demo --overwrite --yes", "POST /initialize name=demo&overwrite=true&yes-i-really-mean-it=true", api.Message{Message: "made"}},
	{"cluster maintenance on", "", "--owner ada --reason disk --expires 2h --wait --wait-timeout 5s", "POST /maintenance expires=2h0m0s&owner=ada&reason=disk&state=true&wait=5s", api.MaintenanceAnswer{Message: "on"}},
	{"cluster maintenance off", "", "--owner ada --reason done --wait-timeout 5s", "POST /maintenance owner=ada&reason=done&state=false", api.MaintenanceAnswer{Message: "off"}},
	{"cluster maintenance show", "", "", "GET /maintenance", api.MaintenanceView{On: true, Owner: "ada"}},
	{"timing", "", "", "GET /timing", api.TimingView{Profile: "lan", Worst: []api.WorstCase{{Name: "take_over", Seconds: 3}}}},
	{"history", "", "--limit 2 --kind fence", "GET /history kind=fence&limit=2", []cluster.Event{{Text: "it was fenced"}}},
	{"explain", "primary", "", "GET /explain/primary", api.Explanation{What: "primary", Verdict: "fine"}},
	{"doctor", "", "--remote", "GET /doctor", doctor.Report{Cluster: "demo", Findings: []doctor.Finding{{Check: doctor.CheckClocks, Verdict: doctor.OK, Text: "fine"}}}},
	{"settings autofailover reset", "", "", "POST /settings/autoFailover/resetCount", api.SettingsAnswer{Message: "reset"}},
	{"fence list", "", "--node hv3 --limit 3", "GET /fence/hv3 limit=3", api.FencesView{Fences: []cluster.FenceRecord{{Node: "hv3", Stage: cluster.FenceDone}}}},
	{"fence now", "hv3", "--reason hangs -y --wait-timeout 5s", "POST /fence/hv3 action=fence&reason=hangs", api.FenceAnswer{Message: "ordered"}},
	{"fence now", "hv3", "--unsafe --reason hangs -y", "POST /fence/hv3 action=fence&reason=hangs&unsafe=true", api.FenceAnswer{Message: "ordered"}},
	{"fence confirm", "hv3", "--reason unplugged --yes --wait-timeout 5s", "POST /fence/hv3 action=confirm&reason=unplugged", api.FenceAnswer{Message: "ordered"}},
	{"fence cancel", "hv3", "--reason mistake", "POST /fence/hv3 action=cancel&reason=mistake", api.FenceAnswer{Message: "ordered"}},
	{"fence secret list", "", "", "GET /secrets", []api.SecretView{{Name: "bmc", By: "ada"}}},
	{"fence secret remove", "bmc", "", "DELETE /secret/bmc", api.Message{Message: "removed"}},
	{"fence test", "hv3", "--reason new --wait-timeout 5s", "POST /fence/hv3 action=test&reason=new", api.FenceAnswer{Message: "ordered"}},
}

// A flag means the same before the names, after them, and between; global ones
// may stand anywhere.
func TestFlagsAnywhere(t *testing.T) {
	for _, c := range commands {
		t.Run(c.words, func(t *testing.T) {
			words, names, flags := strings.Fields(c.words), strings.Fields(c.names), strings.Fields(c.flags)
			global := []string{"--output", "json"}
			for place, line := range map[string][]string{
				"flags first":        slices.Concat(words, global, flags, names),
				"flags last":         slices.Concat(words, names, flags, global),
				"global at the head": slices.Concat(global, words, flags, names),
				"names after --":     slices.Concat(words, flags, global, []string{"--"}, names),
				"joined":             slices.Concat(words, names, flags, []string{"-o=json"}),
			} {
				s := newServer(t, map[string]any{askedPath(c.asks): c.answer})
				got := pvc(t, s, "", line...)
				if got.code != exitOK || s.lastAsked() != c.asks {
					t.Errorf("%s: %q: exit %d, asked %q, want %q; %s", place, line, got.code, s.lastAsked(), c.asks, got.err)
				}
				if !json.Valid([]byte(got.out)) {
					t.Errorf("%s: not JSON: %s", place, got.out)
				}
			}
		})
	}
}

func askedPath(asked string) string {
	words := strings.Fields(asked)
	return words[0] + " " + words[1]
}

// Every command of the program is in the table above, so that none escapes it.
func TestEveryCommandIsTested(t *testing.T) {
	tested := map[string]bool{"node watch": true, "cluster watch": true, "version": true, "completion": true, "config check": true, "cluster backup": true, "cluster restore": true,
		"connection add": true, "connection list": true, "connection show": true, "connection use": true, "connection remove": true, "fence key": true, "fence seal": true, "fence secret set": true}
	for _, c := range commands {
		tested[c.words] = true
	}
	var walk func(at string, list []*cli.Command)
	walk = func(at string, list []*cli.Command) {
		for _, c := range list {
			path := strings.TrimSpace(at + " " + c.Name)
			switch {
			case len(c.Subcommands) > 0:
				walk(path, c.Subcommands)
			case strings.HasPrefix(path, "sandbox"), strings.HasPrefix(path, "pki"): // ask no server; tests of their own
			case !tested[path] && c.Name != "help":
				t.Errorf("`pvc %s` is in no test", path)
			}
		}
	}
	walk("", newApp(nil, nil, nil).Commands)
}

// A word with a dash that nobody knows is refused by name, wherever it stands,
// and nothing is asked of the server.
func TestUnknownWords(t *testing.T) {
	for _, c := range commands {
		s := newServer(t, nil)
		line := slices.Concat(strings.Fields(c.words), strings.Fields(c.names), []string{"--forse"})
		if got := pvc(t, s, "", line...); got.code != exitUsage || !strings.Contains(got.err, `"--forse"`) || s.lastAsked() != "" {
			t.Errorf("%q: exit %d, %s", line, got.code, got.err)
		}
		line = slices.Concat(strings.Fields(c.words), strings.Fields(c.names), []string{"surplus"})
		if got := pvc(t, s, "", line...); got.code != exitUsage || !strings.Contains(got.err, `"surplus"`) {
			t.Errorf("%q: exit %d, %s", line, got.code, got.err)
		}
		if c.names == "" || strings.HasSuffix(c.words, " list") {
			continue
		}
		if got := pvc(t, s, "", strings.Fields(c.words)...); got.code != exitUsage || !strings.Contains(got.err, "needs a ") {
			t.Errorf("%q without a name: exit %d, %s", c.words, got.code, got.err)
		}
	}
	for line, want := range map[string]string{
		"nod list":                        `no command "nod" in ` + "`pvc`",
		"node lst":                        `no command "lst" in ` + "`pvc node`",
		"node primary hv1 --wait-timeout": `"--wait-timeout" needs a value`,
		"cluster maintenance on --reason --owner x":               `"--reason" needs a value`,
		"node list --output xml":                                  `"xml" is unknown`,
		"node list --timeout never":                               `timeout`,
		"node list --timeout=0s":                                  `above zero`,
		"node list --api localhost":                               `is not the URL of a pvcapid`,
		"node primary hv1 --wait=maybe":                           `wait`,
		"node primary -x hv1":                                     `"-x"`,
		"fault ack":                                               "needs a fault's id, or --all",
		"fault delete disk --all":                                 `"disk"`,
		"settings autofailover --check":                           "--check needs one of",
		"settings autofailover --check --timeout 5 --reset-count": "goes without --reset-count",
		"cluster maintenance on --wait --wait-timeout 3m":         "at most 2m",
	} {
		s := newServer(t, map[string]any{"GET /node": []api.Node{hv1}})
		got := pvc(t, s, "", strings.Fields(line)...)
		if got.code != exitUsage || !strings.Contains(got.err, want) {
			t.Errorf("%q: exit %d, %s", line, got.code, got.err)
		}
	}
}

// After "--" a word that begins with a dash is a name.
func TestDashEndsFlags(t *testing.T) {
	s := newServer(t, map[string]any{"GET /node/--wait": hv1})
	if got := pvc(t, s, "", "node", "info", "--", "--wait"); got.code != exitOK || s.lastAsked() != "GET /node/--wait" {
		t.Errorf("%+v, asked %s", got, s.lastAsked())
	}
}

func TestExitCodes(t *testing.T) {
	for status, want := range map[int]int{501: exitRefused, 400: exitRefused, 401: exitRefused, 403: exitRefused, 409: exitRefused, 503: exitUnreachable, 504: exitTimedOut, 500: exitFailed} {
		s := newServer(t, map[string]any{"POST /switch": status})
		got := pvc(t, s, "", "node", "primary", "hv2")
		if got.code != want || !strings.Contains(got.err, fmt.Sprintf("answered with %d", status)) || got.out != "" {
			t.Errorf("%d: %+v", status, got)
		}
	}
	s := newServer(t, nil)
	s.Close()
	if got := pvc(t, s, "", "node", "list"); got.code != exitUnreachable {
		t.Errorf("nobody there: %+v", got)
	}
	s = newServer(t, nil)
	s.Config.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	if got := pvc(t, s, "", "node", "list", "--timeout", "50ms"); got.code != exitTimedOut {
		t.Errorf("silent: %+v", got)
	}
	s = newServer(t, map[string]any{"POST /switch": api.SwitchAnswer{DryRun: true, Message: "it cannot"}})
	if got := pvc(t, s, "", "node", "primary", "hv2", "--dry-run"); got.code != exitRefused || got.out != "it cannot\n" {
		t.Errorf("impossible dry run: %+v", got)
	}
}

// A flag of the same name as a global one is the command's own after its word.
func TestFaultsAllAndTwoTimeouts(t *testing.T) {
	s := newServer(t, map[string]any{"PUT /faults": api.Message{Message: "all"}, "POST /settings/autoFailover": api.SettingsAnswer{Message: "set"}})
	if got := pvc(t, s, "", "fault", "ack", "--all"); got.out != "all\n" || s.lastAsked() != "PUT /faults" {
		t.Errorf("%+v, asked %s", got, s.lastAsked())
	}
	if got := pvc(t, s, "", "--timeout", "5s", "settings", "autofailover", "--timeout", "30"); got.out != "set\n" || s.lastAsked() != "POST /settings/autoFailover timeout=30" {
		t.Errorf("%+v, asked %s", got, s.lastAsked())
	}
}

// The settings are shown, changed, and the count reset last.
func TestAutoFailoverSettings(t *testing.T) {
	s := newServer(t, map[string]any{
		"GET /settings/autoFailover":             api.AutoFailover{Enabled: true, Timeout: 3.5, MaxCount: 2, Count: 1},
		"POST /settings/autoFailover":            api.SettingsAnswer{Message: "changed"},
		"POST /settings/autoFailover/resetCount": api.SettingsAnswer{Message: "reset"},
	})
	got := pvc(t, s, "", "settings", "autofailover")
	if want := "enabled  true\ntimeout  3.5 s\nspent    1 of 2\n"; got.out != want {
		t.Errorf("shown as %q, %s", got.out, got.err)
	}
	s.asked = nil
	got = pvc(t, s, "", "settings", "autofailover", "--max-count", "3", "--reset-count")
	if want := []string{"POST /settings/autoFailover maxCount=3", "POST /settings/autoFailover/resetCount"}; !slices.Equal(s.asked, want) || got.out != "reset\n" {
		t.Errorf("asked %q, said %q %s", s.asked, got.out, got.err)
	}
	s.answers["POST /settings/autoFailover/resetCount"] = 503
	if got := pvc(t, s, "", "settings", "autofailover", "--max-count", "3", "--reset-count"); got.code != exitUnreachable || !strings.Contains(got.err, "the settings were changed; resetting the count failed: answered with 503") {
		t.Errorf("%+v", got)
	}
	s.answers["POST /settings/autoFailover"] = 400
	s.asked = nil
	if got := pvc(t, s, "", "settings", "autofailover", "--max-count", "0", "--reset-count"); got.code != exitRefused || len(s.asked) != 1 {
		t.Errorf("%+v, asked %q", got, s.asked)
	}
}

func TestMaintenanceNamesWhoConfirmed(t *testing.T) {
	s := newServer(t, map[string]any{"POST /maintenance": api.MaintenanceAnswer{Message: "on", Confirmed: []cluster.NodeID{"hv1", "hv2"}}})
	got := pvc(t, s, "", "cluster", "maintenance", "on", "--wait")
	if got.out != "on\nconfirmed by every live node: hv1, hv2\n" || !strings.Contains(s.lastAsked(), "wait=10s") {
		t.Errorf("%+v, asked %s", got, s.lastAsked())
	}
	s.answers["POST /maintenance"] = 504
	if got := pvc(t, s, "", "cluster", "maintenance", "on", "--wait"); got.code != exitTimedOut {
		t.Errorf("%+v", got)
	}
}

func TestExplanation(t *testing.T) {
	e := api.Explanation{What: "hv2", Verdict: "Lost.", Why: "the primary refuses", Evidence: []string{"its session is gone"}, Missing: []string{"pvcnoded"},
		Checks:   []api.CheckAnswer{{Name: "budget", Answer: api.CheckAgainst, Code: cluster.RefuseBudget, Detail: "spent"}, {Name: "quorum of node leases", Answer: api.CheckUnused}},
		Proofs:   []api.ProofState{{Proof: "watchdog", Detail: "none is armed"}, {Proof: "confirmed", Given: true, Detail: "by ada"}, {Proof: "returned", Detail: api.ProofNotNeeded}},
		Refusals: []api.Objected{{Refusal: cluster.Refusal{Code: cluster.RefuseBudget, Detail: "spent"}, By: "hv1", Remedy: "reset it"}}}
	s := newServer(t, map[string]any{"GET /explain/hv2": e})
	want := "hv2: Lost.\n  why      the primary refuses\n  seen     its session is gone\n  refused  [budget_spent] by hv1: spent\n           → reset it\n" +
		"  check    budget: against: [budget_spent] spent\n  check    quorum of node leases: not in use yet\n" +
		"  proof    watchdog missing: none is armed\n  proof    confirmed given: by ada\n  proof    returned: not needed\n  missing  pvcnoded\n"
	if got := pvc(t, s, "", "explain", "hv2"); got.out != want {
		t.Errorf("%s", got.out)
	}
}

func TestNodeListFormats(t *testing.T) {
	broken := hv1
	broken.Name, broken.CoordinatorState, broken.Faults = "hv2", "secondary", []string{"memtotal: rubbish"}
	s := newServer(t, map[string]any{"GET /node": []api.Node{hv1, broken}})
	got := pvc(t, s, "", "node", "list")
	want := "" +
		"NAME  DAEMON  COORDINATOR  DOMAIN  HEALTH  CPUS  LOAD  MEM USED  MEM TOTAL  VMS  VERSION\n" +
		"hv1   run     primary      ready      100     4  0.50  512 MiB   16.0 GiB     0\n" +
		"hv2   run     secondary    ready      100     4  0.50  512 MiB   16.0 GiB     0\n" +
		"! hv2: memtotal: rubbish\n"
	if got.code != 0 || got.out != want {
		t.Errorf("table:\n%s", got.out)
	}
	ends := hv1
	ends.Settling = true
	if got := pvc(t, newServer(t, map[string]any{"GET /node": []api.Node{ends}}), "", "node", "list"); !strings.Contains(got.out, "stopping") || strings.Contains(got.out, " run ") {
		t.Errorf("whose copies are ending:\n%s", got.out)
	}
	var fromJSON, fromYAML []map[string]any
	got = pvc(t, s, "", "node", "list", "-o", "json")
	if err := json.Unmarshal([]byte(got.out), &fromJSON); err != nil || fromJSON[0]["coordinator_state"] != "primary" {
		t.Errorf("%v\n%s", err, got.out)
	}
	got = pvc(t, s, "", "node", "list", "-o", "yaml")
	if err := yaml.Unmarshal([]byte(got.out), &fromYAML); err != nil || fromYAML[0]["coordinator_state"] != "primary" || !strings.HasPrefix(got.out, "- name: hv1\n  daemon_state: run\n") {
		t.Errorf("%v\n%s", err, got.out)
	}
	s = newServer(t, map[string]any{"GET /node": 404})
	if got := pvc(t, s, "", "node", "list"); got.code != 0 || !strings.HasSuffix(got.out, "no nodes\n") {
		t.Errorf("no nodes: %+v", got)
	}
}

func TestOverwriteAsks(t *testing.T) {
	s := newServer(t, map[string]any{"POST /initialize": api.Message{Message: "made"}})
	for answer, code := range map[string]int{"": exitUsage, "yes\n": exitUsage, "YES\n": exitOK} {
		s.asked = nil
		got := pvc(t, s, answer, "cluster", "init", "--overwrite", "--name", "x")
		if got.code != code || (s.lastAsked() != "") != (code == exitOK) {
			t.Errorf("%q: %+v, asked %q", answer, got, s.lastAsked())
		}
	}
}

func view(version string, t *cluster.Transition, primary string) api.ClusterView {
	v := api.ClusterView{Version: version, PrimaryNode: primary, PrimaryWanted: "hv2", Transition: t}
	v.Store.Live = true
	for _, n := range []cluster.NodeID{"hv1", "hv2"} {
		state := cluster.RouterSecondary
		if string(n) == primary {
			state = cluster.RouterPrimary
		}
		v.Nodes = append(v.Nodes, api.NodeSummary{Name: n, DaemonState: "run", CoordinatorState: state, Alive: true})
	}
	return v
}

func transition(state cluster.TransitionState, phase cluster.Phase, steps ...cluster.TransitionStep) *cluster.Transition {
	return &cluster.Transition{ID: "t1", From: "hv1", To: "hv2", Cause: cluster.CauseSwitch, State: state, Phase: phase, WishVersion: 8, Started: 1000, Steps: steps}
}

var asked = api.SwitchAnswer{Message: "asked", From: "hv1", To: "hv2", Possible: true, WishVersion: 8}

func TestWaitShowsPhases(t *testing.T) {
	s := newServer(t, map[string]any{"POST /switch": asked})
	announce := cluster.TransitionStep{Node: "hv2", Phase: "A", Name: "preflight", StartedUnixMS: 1010, Micros: 2500}
	stop := cluster.TransitionStep{Node: "hv1", Phase: "B", Name: "stop dns", StartedUnixMS: 1512, Micros: 12300}
	s.views <- view("x-1", nil, "hv1")
	s.views <- view("x-2", transition(cluster.TransitionRunning, "A"), "hv1")
	s.views <- view("x-3", transition(cluster.TransitionRunning, "B", announce), "hv1")
	s.views <- view("x-4", transition(cluster.TransitionDone, "F", announce, stop), "hv2")
	got := pvc(t, s, "", "node", "primary", "hv2", "--wait")
	lines := strings.Split(got.out, "\n")
	want := []string{
		"asked",
		"  hv1 → hv2, transition t1",
		"              A announce   …",
		"    +0.010 s  A announce   hv2      preflight                          2.5 ms",
		"              B stop       …",
		"    +0.512 s  B stop       hv1      stop dns                          12.3 ms",
	}
	if got.code != exitOK || !slices.Equal(lines[:min(len(want), len(lines))], want) || !strings.HasPrefix(lines[len(lines)-2], "done in ") {
		t.Errorf("exit %d %s\n%s", got.code, got.err, got.out)
	}
}

func TestWaitEnds(t *testing.T) {
	aborted := transition(cluster.TransitionAborted, "A")
	aborted.Error = "interface upstream is missing"
	s := newServer(t, map[string]any{"POST /switch": asked})
	s.views <- view("x-1", aborted, "hv1")
	if got := pvc(t, s, "", "node", "primary", "--wait", "hv2"); got.code != exitRefused || !strings.Contains(got.err, "aborted: interface upstream is missing") {
		t.Errorf("aborted: %+v", got)
	}

	s = newServer(t, map[string]any{"POST /switch": asked})
	overtaken := view("x-1", nil, "hv1")
	overtaken.PrimaryWanted = "hv3"
	s.views <- overtaken
	if got := pvc(t, s, "", "node", "primary", "--wait", "hv2"); got.code != exitRefused || !strings.Contains(got.err, `superseded: primary_node was set to "hv3"`) {
		t.Errorf("overtaken: %+v", got)
	}

	s = newServer(t, map[string]any{"POST /switch": asked})
	s.views <- view("x-1", transition(cluster.TransitionRunning, "B"), "hv1")
	if got := pvc(t, s, "", "node", "primary", "--wait", "hv2", "--wait-timeout", "200ms"); got.code != exitTimedOut || !strings.Contains(got.err, "has not ended within 200ms (running)") {
		t.Errorf("endless: %+v", got)
	}

	s = newServer(t, map[string]any{"POST /switch": asked})
	s.views <- view("x-1", transition(cluster.TransitionDone, "F"), "hv2")
	got := pvc(t, s, "", "node", "primary", "--wait", "hv2", "-o", "json")
	var a api.SwitchAnswer
	if err := json.Unmarshal([]byte(got.out), &a); err != nil || a.Outcome != api.OutcomeDone || a.Transition.ID != "t1" {
		t.Errorf("json: %v %+v", err, got)
	}
}

// Into a pipe a watch prints a line a change; as JSON an object a line.
func TestWatchIntoAPipe(t *testing.T) {
	for format, want := range map[string][]string{
		"table": {"store: – → live", "hv2 coordinator: – → secondary", "primary: hv1 → hv2", "transition: – → hv1→hv2 done phase F", "hv2 coordinator: secondary → primary"},
		"json":  {`{"version":"x-1"`, `{"version":"x-2"`},
	} {
		s := newServer(t, nil)
		s.views <- view("x-1", nil, "hv1")
		s.views <- view("x-2", transition(cluster.TransitionDone, "F"), "hv2")
		t.Setenv("PVC_API", s.URL)
		ctx, cancel := context.WithCancel(t.Context())
		out := &until{stop: cancel, last: want[len(want)-1]}
		code := run(ctx, []string{"pvc", "node", "watch", "-o", format}, nil, out, &bytes.Buffer{})
		if code != exitInterrupted {
			t.Errorf("%s: exit %d", format, code)
		}
		rest := out.text.String()
		for _, line := range want {
			_, after, found := strings.Cut(rest, line)
			if !found {
				t.Fatalf("%s: %q is not (in order) in\n%s", format, line, out.text.String())
			}
			rest = after
		}
		cancel()
	}
}

// until stops the program once the last line has come.
type until struct {
	text bytes.Buffer
	last string
	stop func()
}

func (u *until) Write(p []byte) (int, error) {
	n, err := u.text.Write(p)
	if strings.Contains(u.text.String(), u.last) {
		u.stop()
	}
	return n, err
}

func TestKeyIsSent(t *testing.T) {
	var key string
	s := newServer(t, nil)
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key = r.Header.Get("X-Api-Key")
		_, _ = w.Write([]byte("[]"))
	})
	t.Setenv("PVC_API", s.URL)
	t.Setenv("PVC_API_KEY", "sesame")
	if code := run(t.Context(), []string{"pvc", "node", "list"}, nil, &bytes.Buffer{}, &bytes.Buffer{}); code != 0 || key != "sesame" {
		t.Errorf("exit %d, key %q", code, key)
	}
}
