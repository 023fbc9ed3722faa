package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/doctor"
)

// nodeSettings writes settings of a node whose servers are the given ones.
func nodeSettings(t *testing.T, servers []string, more string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "pvcnoded.yaml")
	text := fmt.Sprintf("node: {name: hv1}\ncluster: {name: demo}\nzookeeper: {servers: [%s]}\nstate_dir: %s\nrun_dir: %s\n%s",
		strings.Join(servers, ", "), filepath.Join(dir, "state"), filepath.Join(dir, "run"), more)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// silent are servers that take every connection and answer nothing.
func silent(t *testing.T, n int) []string {
	t.Helper()
	var servers []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		servers = append(servers, l.Addr().String())
	}
	return servers
}

func (o outcome) report(t *testing.T) doctor.Report {
	t.Helper()
	var r doctor.Report
	if err := json.Unmarshal([]byte(o.out), &r); err != nil {
		t.Fatalf("%v: %s%s", err, o.out, o.err)
	}
	return r
}

func verdicts(r doctor.Report, check string) (all []doctor.Verdict, text string) {
	for _, f := range r.Findings {
		if f.Check == check && f.Subject != "gate" { // which is this machine's own
			all = append(all, f.Verdict)
			text += f.Subject + ": " + f.Text + " → " + f.Cure + "\n"
		}
	}
	return all, text
}

// Servers that hang cost no more than the limit, and what could not be looked
// at does not pass.
func TestDoctorIsBounded(t *testing.T) {
	s := newServer(t, nil)
	began := time.Now()
	got := pvc(t, s, "", "-o", "json", "doctor", "-c", nodeSettings(t, silent(t, 3), ""))
	if took := time.Since(began); took > doctorLimit+5*time.Second { // a busy machine's
		t.Errorf("it took %v", took)
	}
	if got.code != exitFailed || s.lastAsked() != "" {
		t.Errorf("exit %d, asked %q", got.code, s.lastAsked())
	}
	r := got.report(t)
	if all, text := verdicts(r, doctor.CheckStore); !slices.Equal(all, []doctor.Verdict{doctor.Problem, doctor.Problem, doctor.Problem, doctor.Problem}) {
		t.Errorf("%v %s", all, text)
	}
	for _, check := range []string{doctor.CheckCluster, doctor.CheckClocks, doctor.CheckLeftovers, doctor.CheckFencing} {
		if all, text := verdicts(r, check); !slices.Equal(all, []doctor.Verdict{doctor.Unchecked}) {
			t.Errorf("%s: %v %s", check, all, text)
		}
	}
}

// A file whose file system hangs holds nothing up.
func TestDoctorDoesNotWaitForAFile(t *testing.T) {
	file := nodeSettings(t, silent(t, 1), "")
	if err := unix.Mkfifo(filepath.Join(filepath.Dir(file), "pvcapid.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r := pvc(t, newServer(t, nil), "", "-o", "json", "doctor", "-c", file).report(t)
	if took := time.Since(began); took > doctorLimit+5*time.Second { // a busy machine's
		t.Errorf("it took %v", took)
	}
	if all, text := verdicts(r, doctor.CheckSettings); !slices.Equal(all, []doctor.Verdict{doctor.OK, doctor.Unchecked}) || !strings.Contains(text, "longer than") {
		t.Errorf("%v %s", all, text)
	}
}

// Settings that are refused are told with every refusal, and nothing that rests
// on them passes.
func TestDoctorTellsRefusedSettings(t *testing.T) {
	for name, c := range map[string]struct {
		more  string
		words []string
	}{
		"unknown key":  {"adresses: []\n", []string{"adresses", `"addresses"`}},
		"timing":       {"timing: {role_ttl: 1s}\n", []string{"700ms", "1.6s", "role_ttl"}},
		"fence device": {"fencing: {nodes: {hv2: {levels: [[{name: b, type: ipmi, address: a, user: u, password_file: /p, cipher_suite: 9}]]}}}\n", []string{"cipher_suite 9"}},
		"schedule":     {"fencing: {test_schedule: often}\n", []string{"fencing.test_schedule"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := pvc(t, newServer(t, nil), "", "-o", "json", "doctor", "-c", nodeSettings(t, []string{"127.0.0.1:1"}, c.more))
			r := got.report(t)
			_, text := verdicts(r, doctor.CheckSettings)
			for _, w := range c.words {
				if !strings.Contains(text, w) {
					t.Errorf("it does not say %q: %s", w, text)
				}
			}
			if got.code != exitFailed || r.Passed != 0 {
				t.Errorf("exit %d, %d passed", got.code, r.Passed)
			}
		})
	}
	missing := pvc(t, newServer(t, nil), "", "doctor", "-c", filepath.Join(t.TempDir(), "none.yaml"))
	if missing.code != exitFailed || !strings.Contains(missing.out, "none.yaml") {
		t.Errorf("exit %d: %s", missing.code, missing.out)
	}
}

// Relations that cost availability are warnings with both numbers, pvcapid's
// settings are compared, and --strict fails on either.
func TestDoctorWarns(t *testing.T) {
	file := nodeSettings(t, []string{"127.0.0.1:1"}, "timing: {write_gap: 2500ms}\n")
	other := filepath.Join(filepath.Dir(file), "pvcapid.yaml")
	if err := os.WriteFile(other, []byte("node: {name: hv1}\ncluster: {name: another}\nzookeeper: {servers: [\"127.0.0.1:1\"]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := pvc(t, newServer(t, nil), "", "-o", "json", "doctor", "-c", file).report(t)
	if all, text := verdicts(r, doctor.CheckTiming); !slices.Equal(all, []doctor.Verdict{doctor.Warning}) || !strings.Contains(text, "3.1s") || !strings.Contains(text, "2.5s") {
		t.Errorf("%v %s", all, text)
	}
	if _, text := verdicts(r, doctor.CheckSettings); !strings.Contains(text, "cluster.name is another, and demo in") {
		t.Error(text)
	}
	warned := newServer(t, map[string]any{"GET /doctor": doctor.NewReport("", "demo", []doctor.Finding{{Check: "x", Verdict: doctor.Warning, Text: "odd", Cure: "mend"}})})
	if got := pvc(t, warned, "", "doctor", "--remote"); got.code != exitOK || !strings.Contains(got.out, "→ mend") || !strings.Contains(got.out, "1 warning") {
		t.Errorf("%+v", got)
	}
	if got := pvc(t, warned, "", "doctor", "--remote", "--strict"); got.code != exitFailed {
		t.Errorf("%+v", got)
	}
}

// What is secret is looked at and never told.
func TestDoctorLooksAtSecrets(t *testing.T) {
	dir := t.TempDir()
	key, pass := filepath.Join(dir, "fence.key"), filepath.Join(dir, "bmc.pass")
	s := newServer(t, nil)
	if got := pvc(t, s, "", "fence", "key", "--out", key); got.code != exitOK {
		t.Fatal(got.err)
	}
	sealed := strings.TrimSpace(pvc(t, s, "hush-hush\n", "fence", "seal", "--key", key).out)
	if err := os.WriteFile(pass, []byte("hush-hush\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := nodeSettings(t, []string{"127.0.0.1:1"}, fmt.Sprintf(`fencing:
  secrets: {key_file: %s}
  nodes:
    hv1: {levels: [[{name: bmc, type: ipmi, address: a, user: u, password_sealed: %q}]]}
    hv2: {levels: [[{name: old, type: agent, agent: fence_ipmilan, password_file: %s}]]}
    hv3: {levels: [[{name: bmc, type: ipmi, address: a, user: u, password_file: %s}]]}
    hv4: {levels: [[{name: bmc, type: ipmi, address: a, user: u, password_secret: hv4}]]}
`, key, sealed, pass, filepath.Join(dir, "gone.pass")))
	look := func() doctor.Report {
		got := pvc(t, s, "", "-o", "json", "doctor", "-c", file)
		if strings.Contains(got.out, "hush") || strings.Contains(got.out, "AGE-SECRET") {
			t.Errorf("it tells a secret: %s", got.out)
		}
		return got.report(t)
	}
	r := look()
	if all, text := verdicts(r, doctor.CheckSecrets); !slices.Equal(all, []doctor.Verdict{doctor.OK}) {
		t.Errorf("%v %s", all, text)
	}
	_, text := verdicts(r, doctor.CheckFencing)
	for _, w := range []string{"hv2/old: fence_ipmilan gives the password to ipmitool", "`type: ipmi`", "mode 0644", "hv3/bmc: its password cannot be had here", "gone.pass",
		`hv4/bmc: whether its password can be had here is not known: ZooKeeper keeps it, as "hv4"`} {
		if !strings.Contains(text, w) {
			t.Errorf("it does not say %q: %s", w, text)
		}
	}
	if strings.Contains(text, "hv1/bmc") {
		t.Errorf("a sealed password that can be opened is complained of: %s", text)
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if all, text := verdicts(look(), doctor.CheckSecrets); !slices.Equal(all, []doctor.Verdict{doctor.Problem}) || !strings.Contains(text, "0644") {
		t.Errorf("%v %s", all, text)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if all, text := verdicts(look(), doctor.CheckSecrets); !slices.Equal(all, []doctor.Verdict{doctor.Problem}) || !strings.Contains(text, "missing") {
		t.Errorf("%v %s", all, text)
	}
}

// A sealed password that ZooKeeper keeps is looked for among its secrets.
func TestSealedIn(t *testing.T) {
	secrets := map[string]string{"hv4": `{"v":1,"sealed":"YWdl","by":"ada"}`, "odd": `{"v":9}`}
	if sealed, err := sealedIn(secrets, "hv4"); err != nil || sealed != "YWdl" {
		t.Errorf("%q, %v", sealed, err)
	}
	for name, words := range map[string]string{"hv5": "pvc fence secret set hv5", "odd": "version 9"} {
		if _, err := sealedIn(secrets, name); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// How old a test may be follows from the schedule where that is plain.
func TestOldestTest(t *testing.T) {
	for schedule, want := range map[string]time.Duration{"@hourly": 130 * time.Minute, "@every 90s": 13 * time.Minute, "@daily": 48*time.Hour + 10*time.Minute,
		"0 3 * * 1": 0, "@every often": 0} {
		if got := oldestTest(schedule); got != want {
			t.Errorf("%s: %v, want %v", schedule, got, want)
		}
	}
}
