package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler"
)

// Whatever is asked, a script can tell a refusal, a server that is away and one
// that is silent apart.
func TestExitCodesOfEveryCommand(t *testing.T) {
	for _, c := range commands {
		line := slices.Concat(strings.Fields(c.words), strings.Fields(c.names), strings.Fields(c.flags))
		for status, want := range map[int]int{400: exitRefused, 401: exitRefused, 409: exitRefused, 503: exitUnreachable, 504: exitTimedOut, 500: exitFailed} {
			s := newServer(t, map[string]any{askedPath(c.asks): status})
			if got := pvc(t, s, "", line...); got.code != want || got.out != "" || !strings.HasPrefix(got.err, "pvc: ") {
				t.Errorf("%q answered with %d: %+v", line, status, got)
			}
			s.Close()
		}
		s := newServer(t, nil)
		hang := make(chan struct{})
		s.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang })
		before := slices.Concat([]string{"--timeout", "50ms"}, line)
		if at := slices.Index(before, "--wait"); at >= 0 { // which is patience of its own
			before = slices.Delete(before, at, at+1)
		}
		if got := pvc(t, s, "", before...); got.code != exitTimedOut {
			t.Errorf("%q without an answer: %+v", before, got)
		}
		close(hang)
		s.Close()
		if got := pvc(t, s, "", line...); got.code != exitUnreachable || !strings.Contains(got.err, "is pvcapid running there?") {
			t.Errorf("%q with nobody there: %+v", line, got)
		}
	}
}

// Every command answers in each format.
func TestFormatsOfEveryCommand(t *testing.T) {
	for _, c := range commands {
		s := newServer(t, map[string]any{askedPath(c.asks): c.answer})
		line := slices.Concat(strings.Fields(c.words), strings.Fields(c.names), strings.Fields(c.flags))
		for _, shape := range []string{"json", "yaml", "table"} {
			got := pvc(t, s, "", append(line, "-o", shape)...)
			var v any
			switch shape {
			case "json":
				if json.Unmarshal([]byte(got.out), &v) != nil {
					t.Errorf("%q: no JSON: %+v", line, got)
				}
			case "yaml":
				if yaml.Unmarshal([]byte(got.out), &v) != nil || v == nil {
					t.Errorf("%q: no YAML: %+v", line, got)
				}
			}
			if got.code != exitOK || got.out == "" && shape != "table" {
				t.Errorf("%q -o %s: %+v", line, shape, got)
			}
		}
		if got := pvc(t, s, "", append(line, "-o", "xml")...); got.code != exitUsage {
			t.Errorf("%q -o xml: %+v", line, got)
		}
		s.Close()
	}
}

// watched are the commands with --watch, and what is shown differently by their
// second answer.
var watched = []struct {
	words         string
	before, after any
	path, line    string
}{
	{"node list", []api.Node{hv1, {Name: "hv2"}}, []api.Node{hv1, {Name: "hv2", DaemonState: "dead"}}, "GET /node", "hv2 daemon_state: – → dead"},
	{"node info hv1", hv1, api.Node{Name: "hv1", DaemonState: "shutdown"}, "GET /node/hv1", "daemon_state: run → shutdown"},
	{"cluster status", api.Status{Health: "Optimal"}, api.Status{Health: "Degraded"}, "GET /status", "health: Optimal → Degraded"},
	{"cluster maintenance show", api.MaintenanceView{}, api.MaintenanceView{On: true, Owner: "ada"}, "GET /maintenance", "on: false → true"},
	{"lease list", api.LeasesView{Holder: "hv1", AgeSeconds: 1}, api.LeasesView{Holder: "hv2", AgeSeconds: 2}, "GET /leases", "holder: hv1 → hv2"},
	{"fence list", api.FencesView{}, api.FencesView{Fences: []cluster.FenceRecord{{ID: "f1", Node: "hv3", Stage: cluster.FenceClaimed}}}, "GET /fences", "fences f1 stage: – → claimed"},
	{"activity list", api.ActivitiesView{}, api.ActivitiesView{History: []cluster.Event{{Text: "it ended"}}}, "GET /activities", "it ended"},
	{"fault list", []api.Fault{{ID: "disk", Message: "full"}}, []api.Fault{}, "GET /faults", "disk: gone"},
	{"history", []cluster.Event{{Text: "a"}}, []cluster.Event{{Text: "b"}, {Text: "a"}}, "GET /history", "b"},
	{"workload list", []api.WorkloadView{theCache}, []api.WorkloadView{{Name: "cache", State: cluster.WorkloadFailed}}, "GET /workloads", "cache state: running → failed"},
	{"workload info cache", theCache, api.WorkloadView{Name: "cache", State: cluster.WorkloadFailed}, "GET /workloads/cache", "state: running → failed"},
	{"rebalance status", api.RebalanceView{State: "running"}, api.RebalanceView{State: "done"}, "GET /rebalance", "state: running → done"},
	{"explain primary", api.Explanation{Verdict: "fine", Evidence: []string{"heard 0.3 s ago"}}, api.Explanation{Verdict: "gone", Evidence: []string{"heard 1.9 s ago"}}, "GET /explain/primary", "verdict: fine → gone"},
}

// --watch prints the present, then a line for each change and for nothing else;
// with -o json an object a line; and a loss of the connection once.
func TestWatchOfEveryCommand(t *testing.T) {
	named := map[string]bool{}
	for _, w := range watched {
		named[strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(w.words, " hv1"), " primary"), " cache")] = true
		t.Run(w.words, func(t *testing.T) {
			for _, shape := range []string{"table", "json"} {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				next := inTurn(w.before, w.before, 503, 503, w.after, nil)
				s := newServer(t, map[string]any{w.path: func() any {
					view := next()
					if view == nil {
						cancel()
						return 503
					}
					return view
				}})
				t.Setenv("PVC_API", s.URL)
				var out, errs bytes.Buffer
				code := run(ctx, append([]string{"pvc", "-o", shape}, append(strings.Fields(w.words), "--watch")...), strings.NewReader(""), &out, &errs)
				if code != exitInterrupted {
					t.Errorf("exit %d, %s", code, errs.String())
				}
				lines := strings.Split(strings.TrimSpace(out.String()), "\n")
				if shape == "json" {
					if len(lines) != 2 || !json.Valid([]byte(lines[0])) || !json.Valid([]byte(lines[1])) || strings.Count(errs.String(), "connection lost") != 1 {
						t.Errorf("not an object a line: %s%s", out.String(), errs.String())
					}
					continue
				}
				if strings.Count(out.String(), "connection lost") != 1 || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, "  "+w.line) }) {
					t.Errorf("want %q in\n%s", w.line, out.String())
				}
			}
		})
	}
	var walk func(string, []*cli.Command)
	walk = func(at string, list []*cli.Command) {
		for _, c := range list {
			path := strings.TrimSpace(at + " " + c.Name)
			if slices.ContainsFunc(c.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), "watch") }) && !named[path] {
				t.Errorf("`pvc %s --watch` is in no test", path)
			}
			walk(path, c.Subcommands)
		}
	}
	walk("", newApp(nil, nil, nil).Commands)
}

// On a terminal the page is drawn again where it differs, and only then.
func TestWatchRedraws(t *testing.T) {
	var out bytes.Buffer
	w := &lookout{t: &terminal{out: &out, err: &out}, shape: formatTable, redraw: true, head: func() time.Time { return time.Unix(0, 0) }}
	for _, text := range []string{"one", "one", "two"} {
		if err := w.see(text, func(on *terminal) { on.say("<%s>", text) }); err != nil {
			t.Fatal(err)
		}
	}
	if got := out.String(); strings.Count(got, "\x1b[2J") != 2 || strings.Count(got, "<one>") != 1 || !strings.HasSuffix(got, "<two>\n") {
		t.Errorf("%q", got)
	}
	out.Reset()
	if err := w.away(api.ErrUnreachable); err != nil || !strings.Contains(out.String(), "connection lost") {
		t.Errorf("%v %q", err, out.String())
	}
	out.Reset()
	if err := w.see("two", func(on *terminal) { on.say("<two>") }); err != nil || !strings.Contains(out.String(), "<two>") {
		t.Errorf("it stays as lost: %v %q", err, out.String())
	}
}

func TestNoColor(t *testing.T) {
	on := &terminal{out: &bytes.Buffer{}, screen: true}
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if on.painter().state("dead") == "dead" {
		t.Error("no colour on a screen")
	}
	t.Setenv("NO_COLOR", "1")
	if on.painter().state("dead") != "dead" {
		t.Error("NO_COLOR is not obeyed")
	}
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "dumb")
	if on.painter().state("dead") != "dead" || (&terminal{out: &bytes.Buffer{}}).painter().state("dead") != "dead" {
		t.Error("colour where there is no screen for it")
	}
}

// What is typed nearly right is told what was meant.
func TestNearestWords(t *testing.T) {
	for line, want := range map[string]string{
		"nod list": "did you mean node?", "node lst": "did you mean list?", "clutser status": "did you mean cluster?", "node primary hv1 --wiat": "did you mean --wait?",
		"node primary hv1 --dryrun": "did you mean --dry-run?", "fnece list": "did you mean fence?",
	} {
		s := newServer(t, nil)
		if got := pvc(t, s, "", strings.Fields(line)...); got.code != exitUsage || !strings.Contains(got.err, want) {
			t.Errorf("%q: %+v", line, got)
		}
	}
	s := newServer(t, nil)
	if got := pvc(t, s, "", "reboot"); got.code != exitUsage || strings.Contains(got.err, "did you mean") {
		t.Errorf("nothing is near: %+v", got)
	}
}

// What is destructive is asked about, and nothing happens without the answer.
func TestQuestions(t *testing.T) {
	for line, answer := range map[string]string{
		"cluster init --overwrite": "YES", "node remove hv4": "hv4", "fence now hv1": "hv1", "fence confirm hv1 --reason seen": "hv1", "workload remove cache --destroy": "cache",
	} {
		s := newServer(t, map[string]any{"POST /initialize": api.Message{}, "DELETE /node/hv4": api.MemberAnswer{}, "DELETE /workloads/cache": api.WorkloadOrder{}, "POST /fence/hv1": api.FenceAnswer{},
			"GET /cluster": api.ClusterView{Nodes: []api.NodeSummary{{Name: "hv1"}}}})
		changed := func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return slices.ContainsFunc(s.asked, func(a string) bool { return !strings.HasPrefix(a, "GET") })
		}
		for _, wrong := range []string{"", "y\n", "yes\n", strings.ToLower(answer) + "x\n"} {
			if got := pvc(t, s, wrong, strings.Fields(line)...); got.code != exitUsage || changed() || !strings.Contains(got.err, "nothing was changed") {
				t.Errorf("%q answered with %q: %+v", line, wrong, got)
			}
		}
		if got := pvc(t, s, answer+"\n", strings.Fields(line)...); got.code != exitOK || !changed() {
			t.Errorf("%q answered with %q: %+v", line, answer, got)
		}
	}
}

func TestMaintenanceThatStandsIsTold(t *testing.T) {
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.Local).UnixMilli()
	now := api.MaintenanceView{On: true, Owner: "bob", Reason: "disk", SinceMS: until - 3_600_000, ExpiresMS: until}
	s := newServer(t, map[string]any{"POST /maintenance": api.MaintenanceAnswer{Message: "already", Already: true, Maintenance: now},
		"GET /maintenance": now, "GET /status": api.Status{Maintenance: "true"}})
	if got := pvc(t, s, "", "cluster", "maintenance", "on", "--reason", "mine"); !strings.Contains(got.out, "it stays as it was: by bob, disk, since 2030-01-02 02:04:05.000, until 2030-01-02 03:04:05.000") {
		t.Errorf("%+v", got)
	}
	if got := pvc(t, s, "", "cluster", "status"); !strings.Contains(got.out, "true by bob, disk") {
		t.Errorf("%+v", got)
	}
	if got := pvc(t, s, "", "cluster", "maintenance", "show"); !strings.Contains(got.out, "expires      2030-01-02 03:04:05.000, in ") {
		t.Errorf("%+v", got)
	}
	if got := pvc(t, s, "", "cluster", "maintenance", "on", "--expires", "0s"); got.code != exitUsage {
		t.Errorf("%+v", got)
	}
}

// A backup's file is whole or not there, private, and never written over unasked.
func TestBackupFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "b.json")
	if err := writeNewFile(file, []byte("one"), false); err != nil {
		t.Fatal(err)
	}
	if err := writeNewFile(file, []byte("two"), false); exitCode(err) != exitRefused {
		t.Errorf("over a file: %v", err)
	}
	if raw, _ := os.ReadFile(file); string(raw) != "one" {
		t.Errorf("it holds %q", raw)
	}
	if err := writeNewFile(file, []byte("two"), true); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	for line, want := range map[string]struct {
		code int
		text string
	}{
		"cluster backup":                             {exitUsage, "needs the FILE"},
		"cluster backup " + file:                     {exitRefused, "--force"},
		"cluster backup " + dir + "/new -c /none":    {exitFailed, "run it on a node"},
		"cluster restore":                            {exitUsage, "needs the backup's FILE"},
		"cluster restore " + dir + "/none":           {exitFailed, "no such file"},
		"cluster restore " + file:                    {exitFailed, "no backup"},
		"cluster restore " + file + " --overwritten": {exitUsage, "did you mean --overwrite?"},
	} {
		s := newServer(t, nil)
		if got := pvc(t, s, "", strings.Fields(line)...); got.code != want.code || !strings.Contains(got.err, want.text) || s.lastAsked() != "" {
			t.Errorf("%q: %+v", line, got)
		}
	}
	good := zkhandler.Backup{Cluster: "demo", Schema: 1, Records: []zkhandler.BackupRecord{{Path: "/agent/schema", Text: "1"}, {Path: "/config", Text: "demo"}}}
	raw, err := good.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeNewFile(file, raw, true); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, nil)
	if got := pvc(t, s, "no\n", "cluster", "restore", file, "--overwrite"); got.code != exitUsage || !strings.Contains(got.err, "Write demo to go on") || !strings.Contains(got.err, "nothing was changed") {
		t.Errorf("%+v", got)
	}
}
