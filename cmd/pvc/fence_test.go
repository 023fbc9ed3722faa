package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pvc.internal/api"
	"pvc.internal/cluster"
	"pvc.internal/fencing"
)

// inTurn answers with each of the bodies once, and then with the last.
func inTurn(bodies ...any) func() any {
	return func() any {
		body := bodies[0]
		if len(bodies) > 1 {
			bodies = bodies[1:]
		}
		return body
	}
}

func TestFenceList(t *testing.T) {
	at := clockTime
	s := newServer(t, map[string]any{"GET /fences": api.FencesView{
		Fences: []cluster.FenceRecord{{Node: "hv3", Stage: cluster.FenceFailed, StartedMS: 1000, By: "hv1", Tries: 2, Reason: "dead: silent"}},
		Orders: []cluster.FenceOrder{{Node: "hv2", Action: "test", By: "ada", UnixMS: 2000, Reason: "new board"}},
		Devices: []api.DeviceTest{
			{By: "hv1", DeviceReport: cluster.DeviceReport{Node: "hv3", Device: "bmc", Type: "ipmi", Fault: "unreachable", Power: "unknown", Detail: "no answer", UnixMS: 3000}},
			{By: "hv2", DeviceReport: cluster.DeviceReport{Node: "hv3", Device: "bmc", Type: "ipmi", Power: "on", Notes: []string{"chmod 600 it"}, UnixMS: 4000}}},
		History: []cluster.Event{{UnixMS: 5000, Kind: "fence", Text: "fence of node hv3: failed", Fields: map[string]string{"node": "hv3", "result": "bmc: unknown"}}},
	}})
	got := pvc(t, s, "", "fence", "list")
	for _, line := range []string{
		"NODE  STAGE   PROOF  SINCE                    BY   TRIES  REASON",
		"hv3   failed         " + at(1000) + "  hv1      2  dead: silent",
		"hv2   test     ada  " + at(2000) + "  new board",
		"hv3        bmc   ipmi  hv1        " + at(3000) + "  unknown  unreachable: no answer",
		"hv3        bmc   ipmi  hv2        " + at(4000) + "  on       ready; note: chmod 600 it",
		at(5000) + "  hv3   fence of node hv3: failed; result: bmc: unknown",
	} {
		if got.code != exitOK || !slices.Contains(strings.Split(got.out, "\n"), line) {
			t.Errorf("%q is not a line of\n%s%s", line, got.out, got.err)
		}
	}
	s = newServer(t, map[string]any{"GET /fences": api.FencesView{}})
	if got := pvc(t, s, "", "fence", "list"); got.out != "no fences\n" {
		t.Errorf("%+v", got)
	}
}

// What is destructive is asked about, with what is known of the node, and only
// its name is an answer.
func TestFenceAsks(t *testing.T) {
	age := 0.25
	known := api.ClusterView{Nodes: []api.NodeSummary{{Name: "hv3", DaemonState: "run", Alive: true, KeepaliveAge: &age}}}
	for _, command := range [][]string{{"fence", "now", "hv3"}, {"fence", "confirm", "hv3", "--reason", "unplugged"}} {
		for answer, code := range map[string]int{"": exitUsage, "y\n": exitUsage, "hv2\n": exitUsage, "hv3\n": exitOK} {
			s := newServer(t, map[string]any{"GET /cluster": known, "POST /fence/hv3": api.FenceAnswer{Message: "ordered"}})
			got := pvc(t, s, answer, command...)
			if got.code != code || strings.HasPrefix(s.lastAsked(), "POST") != (code == exitOK) {
				t.Errorf("%v, %q: %+v, asked %q", command, answer, got, s.asked)
			}
			if !strings.Contains(got.err, "Node hv3 is in state run, its session is alive, and it was last heard 0.2 s ago.") || !strings.Contains(got.err, "Write hv3 to go on") {
				t.Errorf("%s", got.err)
			}
		}
	}
	s := newServer(t, map[string]any{"GET /cluster": known})
	if got := pvc(t, s, "hv9\n", "fence", "now", "hv9"); got.code != exitRefused || !strings.Contains(got.err, `no node named "hv9"`) {
		t.Errorf("unknown: %+v", got)
	}
	for line, want := range map[string]string{
		"fence confirm hv3":                         "needs --reason WHY",
		"fence confirm hv3 --reason=":               "needs --reason WHY",
		"fence now hv3 -y --wait --wait-timeout 0s": "above zero",
		"fence now hv3 hv2":                         `"hv2"`,
		"fence now hv3 -y --unsafe":                 "needs --reason WHY",
		"fence shoot hv3":                           `no command "shoot"`,
		"fence cancel hv3 --wait":                   `"--wait"`,
		"fence list --limit never":                  "limit",
		"settings autofailover --timeout 5 reset":   "goes without --timeout",
		"settings autofailover reset --enabled=no":  "goes without --enabled",
		"settings autofailover restet":              `no command "restet"`,
	} {
		s := newServer(t, nil)
		if got := pvc(t, s, "", strings.Fields(line)...); got.code != exitUsage || !strings.Contains(got.err, want) || s.lastAsked() != "" {
			t.Errorf("%q: %+v, asked %q", line, got, s.lastAsked())
		}
	}
	for status, code := range map[int]int{400: exitRefused, 403: exitRefused, 409: exitRefused, 503: exitUnreachable, 504: exitTimedOut} {
		s := newServer(t, map[string]any{"POST /fence/hv3": status})
		if got := pvc(t, s, "", "fence", "now", "hv3", "-y"); got.code != code {
			t.Errorf("%d: %+v", status, got)
		}
	}
}

func TestFenceWaits(t *testing.T) {
	order := cluster.FenceOrder{ID: "o1", Node: "hv3", Incarnation: "b.1", Action: "fence"}
	confirm, test := order, order
	confirm.Action, test.Action = "confirm", "test"
	record := func(stage cluster.FenceStage, proof, result string) api.FencesView {
		return api.FencesView{Fences: []cluster.FenceRecord{{ID: "f2", Node: "hv3", Incarnation: "b.1", By: "hv1", Stage: stage, Tries: 1, Proof: proof, Result: result, Order: "o1"}}}
	}
	another := record(cluster.FenceFailed, "", "bmc: no answer")
	another.Fences[0].Order = ""
	waits := api.FencesView{Orders: []cluster.FenceOrder{order}}
	refused := api.FencesView{History: []cluster.Event{
		{Kind: cluster.EventOrderRefused, Text: "of another time", Fields: map[string]string{"order": "o0"}},
		{Kind: cluster.EventOrderRefused, Text: "node hv3 is back", Fields: map[string]string{"order": "o1"}}}}
	tested := func(at int64, fault string) api.FencesView {
		return api.FencesView{Devices: []api.DeviceTest{{By: "hv1", DeviceReport: cluster.DeviceReport{Node: "hv3", Device: "bmc", Type: "ipmi", Fault: fault, Detail: "no answer", UnixMS: at}}}}
	}
	for _, c := range []struct {
		name   string
		order  cluster.FenceOrder
		words  string
		before api.FencesView
		then   []any
		code   int
		out    string // in it
		err    string
	}{
		{"fenced", order, "fence now hv3 -y", api.FencesView{}, []any{waits, record(cluster.FencePowerOff, "", ""), record(cluster.FenceRecover, "verified_off", "")}, exitOK, "node hv3 is proven dead: verified_off\n", ""},
		{"refused", order, "fence now hv3 -y", api.FencesView{}, []any{refused}, exitRefused, "", "node hv3 is back"},
		{"failed", order, "fence now hv3 -y", api.FencesView{}, []any{record(cluster.FenceFailed, "", "bmc: no answer")}, exitFailed, "stage failed, try 1, by hv1: bmc: no answer", "tried again by itself; `pvc explain hv3`"},
		{"nothing to do it with", order, "fence now hv3 -y", api.FencesView{}, []any{record(cluster.FenceManual, "", "no device")}, exitFailed, "", "`pvc fence confirm hv3 --reason WHY`"},
		{"canceled", order, "fence now hv3 -y", api.FencesView{}, []any{record(cluster.FenceCanceled, "", "it is back")}, exitRefused, "", "was canceled: it is back"},
		{"an earlier record is no answer", order, "fence now hv3 -y", record(cluster.FenceFailed, "", "bmc: no answer"), []any{record(cluster.FenceFailed, "", "bmc: no answer"), record(cluster.FenceDone, "verified_off", "")}, exitOK, "the primary has taken it on", ""},
		{"the store is away for a moment", order, "fence now hv3 -y", api.FencesView{}, []any{503, record(cluster.FenceDone, "verified_off", "")}, exitOK, "(answered with 503)", ""},
		{"never taken", order, "fence now hv3 -y --wait-timeout 200ms", api.FencesView{}, []any{waits}, exitTimedOut, "waits for the primary", "`pvc fence cancel hv3` takes it back"},
		{"slow", order, "fence now hv3 -y --wait-timeout 200ms", api.FencesView{}, []any{record(cluster.FenceVerify, "", "")}, exitTimedOut, "stage verify", "it goes on by itself"},
		{"confirmed", confirm, "fence confirm hv3 -y --reason unplugged", record(cluster.FenceManual, "", "no device"), []any{record(cluster.FenceFenced, "confirmed", "")}, exitOK, "proven dead: confirmed", ""},
		{"confirmed while a try runs", confirm, "fence confirm hv3 -y --reason unplugged", api.FencesView{}, []any{another, record(cluster.FenceFenced, "confirmed", "")}, exitOK, "proven dead: confirmed", ""},
		{"tested", test, "fence test hv3", tested(5, "unreachable"), []any{tested(5, "unreachable"), tested(6, "")}, exitOK, "ready", ""},
		{"tested and broken", test, "fence test hv3", api.FencesView{}, []any{tested(6, "unreachable")}, exitFailed, "unreachable: no answer", "1 of 1 tests of fence devices of node hv3 failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			answers := map[string]any{"GET /fence/hv3": inTurn(append([]any{c.before}, c.then...)...), "POST /fence/hv3": api.FenceAnswer{Message: "ordered", Order: &c.order}}
			got := pvc(t, newServer(t, answers), "", append(strings.Fields(c.words), "--wait")...)
			if got.code != c.code || !strings.HasPrefix(got.out, "ordered\n") || !strings.Contains(got.out, c.out) || !strings.Contains(got.err, c.err) {
				t.Errorf("exit %d, want %d\n%s%s", got.code, c.code, got.out, got.err)
			}
			answers["GET /fence/hv3"] = inTurn(append([]any{c.before}, c.then...)...)
			got = pvc(t, newServer(t, answers), "", append(strings.Fields(c.words), "--wait", "-o", "json")...)
			if got.code != c.code || !json.Valid([]byte(got.out)) {
				t.Errorf("as JSON: exit %d\n%s%s", got.code, got.out, got.err)
			}
		})
	}
	s := newServer(t, map[string]any{"GET /fence/hv3": api.FencesView{}, "POST /fence/hv3": api.FenceAnswer{Message: "fenced already", Already: true}})
	if got := pvc(t, s, "", "fence", "now", "hv3", "-y", "--wait"); got.code != exitOK || got.out != "fenced already\n" {
		t.Errorf("already: %+v", got)
	}
}

// local runs a command that asks no server.
func local(t *testing.T, stdin string, words ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), append([]string{"pvc"}, words...), strings.NewReader(stdin), &out, &errs)
	return outcome{code, out.String(), errs.String()}
}

// A password goes in by the standard input, comes out sealed, and is opened by
// the key alone; it is never shown.
func TestFenceKeyAndSeal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fence.key")
	got := local(t, "", "-o", "json", "fence", "key", "--out", file)
	var made madeKey
	if err := json.Unmarshal([]byte(got.out), &made); err != nil || got.code != exitOK || made.File != file || !strings.HasPrefix(made.Recipient, "age1") {
		t.Fatalf("%v %+v", err, got)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	before, _ := os.ReadFile(file)
	if got := local(t, "", "fence", "key", "--out", file); got.code != exitRefused || !strings.Contains(got.err, "is there already") {
		t.Errorf("again: %+v", got)
	}
	if after, _ := os.ReadFile(file); !bytes.Equal(before, after) || strings.Contains(got.out+got.err, "AGE-SECRET") {
		t.Error("the key was replaced or shown")
	}
	const password = "not-for-anybody"
	for _, c := range []struct {
		stdin string
		words []string
	}{
		{password, []string{"fence", "seal", "--key", file}},
		{password + "\n", []string{"fence", "--key", file, "seal"}},
		{password + "\r\n", []string{"fence", "seal", "--to=" + made.Recipient}},
	} {
		got := local(t, c.stdin, c.words...)
		if c.words[1] == "--key" { // a flag of the innermost command stands after its word
			if got.code != exitUsage {
				t.Errorf("%+v", got)
			}
			continue
		}
		opened, err := fencing.Open(file, strings.TrimSpace(got.out))
		if err != nil || opened.Reveal() != password || strings.Contains(got.out+got.err, password) || strings.Count(got.out, "\n") != 1 {
			t.Errorf("%v %+v", err, got)
		}
	}
	got = local(t, password, "fence", "seal", "--key", file, "-o", "json")
	var sealed sealedText
	if err := json.Unmarshal([]byte(got.out), &sealed); err != nil || sealed.PasswordSealed == "" {
		t.Errorf("%v %+v", err, got)
	}
	if got := local(t, strings.Repeat("x", 21), "fence", "seal", "--key", file); got.code != exitOK || !strings.Contains(got.err, "type ipmi does not take") {
		t.Errorf("long for ipmi: %+v", got)
	}
}

func TestFenceKeyAndSealRefuse(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "fence.key")
	if got := local(t, "", "fence", "key", "--out", file); got.code != exitOK {
		t.Fatal(got)
	}
	open := filepath.Join(dir, "open.key")
	text, _ := os.ReadFile(file)
	if err := os.WriteFile(open, text, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		stdin string
		words []string
		code  int
		want  string
	}{
		{"", []string{"fence", "key", "--out", filepath.Join(dir, "no", "such")}, exitFailed, "make the key file"},
		{"", []string{"fence", "key", "surplus"}, exitUsage, `"surplus"`},
		{"", []string{"fence", "key", "--out", filepath.Join(dir, "x"), "-o", "xml"}, exitUsage, "xml"},
		{"", []string{"fence", "seal", "--key", file}, exitUsage, "no password"},
		{"\n", []string{"fence", "seal", "--key", file}, exitUsage, "no password"},
		{"two\nlines\n", []string{"fence", "seal", "--key", file}, exitUsage, "one line"},
		{"zero\x00", []string{"fence", "seal", "--key", file}, exitUsage, "zero bytes"},
		{strings.Repeat("x", 256), []string{"fence", "seal", "--key", file}, exitUsage, "more than 255"},
		{"hidden", []string{"fence", "seal", "--key", filepath.Join(dir, "missing")}, exitFailed, "is missing"},
		{"hidden", []string{"fence", "seal", "--key", open}, exitFailed, "open.key"},
		{"hidden", []string{"fence", "seal", "--to", "age1rubbish"}, exitFailed, "no age1"},
		{"hidden", []string{"fence", "seal", "--to", "age1x", "--key", file}, exitUsage, "not both"},
		{"hidden", []string{"fence", "seal", "--key", file, "hidden"}, exitUsage, "takes no words"},
	} {
		got := local(t, c.stdin, c.words...)
		if got.code != c.code || !strings.Contains(got.err, c.want) || got.out != "" || strings.Contains(got.err, "hidden") {
			t.Errorf("%v: %+v, want %d %q", c.words, got, c.code, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
		t.Error("a key was made although the answer could not be shown")
	}
}
