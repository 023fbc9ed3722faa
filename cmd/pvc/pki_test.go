package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pvc.internal/peer"
	"pvc.internal/peer/pki"
)

// pkiRun runs the command line without any server.
func pkiRun(t *testing.T, words ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), append([]string{"pvc", "pki"}, words...), strings.NewReader(""), &out, &errs)
	return outcome{code, out.String(), errs.String()}
}

func TestPKIFromNothingToARunningNode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	out := filepath.Join(t.TempDir(), "hv1")
	for _, step := range [][]string{
		{"init", "--cluster", "demo", "--dir", dir},
		{"issue", "hv1", "--dir", dir, "--out", out, "--days", "90"},
		{"issue", "--dir", dir, "hv2"},
		{"renew", "hv1", "--dir", dir, "--out", out},
		{"status", "--dir", dir},
		{"status", "--dir", out},
	} {
		if got := pkiRun(t, step...); got.code != exitOK {
			t.Fatalf("%v: %+v", step, got)
		}
	}
	if _, err := peer.LoadIdentity(pki.NodeFiles(out), "demo", "hv1", nil); err != nil {
		t.Error(err)
	}
	got := pkiRun(t, "status", "--dir", dir, "-o", "json")
	var s pki.Status
	if err := json.Unmarshal([]byte(got.out), &s); err != nil || s.Cluster != "demo" || len(s.Entries) != 3 {
		t.Errorf("%v: %s", err, got.out)
	}
	if e := s.Entries[2]; e.Name != "hv2" || e.SANs[0] != "spiffe://demo/node/hv2" || e.Key != "matches" || e.DaysLeft != 396 {
		t.Errorf("%+v", e)
	}
	var m pki.Made
	got = pkiRun(t, "issue", "hv3", "--dir", dir, "-o", "json")
	if err := json.Unmarshal([]byte(got.out), &m); err != nil || m.Name != "spiffe://demo/node/hv3" || len(m.Files) != 3 {
		t.Errorf("%v: %s", err, got.out)
	}
}

func TestPKIExitCodes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if got := pkiRun(t, "init", "--cluster", "demo", "--dir", dir); got.code != exitOK {
		t.Fatal(got)
	}
	if got := pkiRun(t, "issue", "hv1", "--dir", dir); got.code != exitOK {
		t.Fatal(got)
	}
	for _, c := range []struct {
		words []string
		code  int
		says  string
	}{
		{[]string{"init", "--dir", dir}, exitUsage, "--cluster"},
		{[]string{"init", "--cluster", "demo", "--dir", dir}, exitRefused, "--force"},
		{[]string{"issue", "hv1", "--dir", dir}, exitRefused, "pvc pki renew hv1"},
		{[]string{"issue", "--dir", dir}, exitUsage, "a node's name"},
		{[]string{"issue", "none", "--dir", dir}, exitUsage, "reserved"},
		{[]string{"issue", "hv2", "--dir", dir, "-o", "xml"}, exitUsage, "--output"},
		{[]string{"issue", "hv2", "--dir", dir, "--days", "9999"}, exitFailed, "9999 days"},
		{[]string{"renew", "hv2", "--dir", dir}, exitFailed, "pvc pki issue hv2"},
		{[]string{"status", "--dir", t.TempDir()}, exitFailed, "there is no ca.pem"},
	} {
		if got := pkiRun(t, c.words...); got.code != c.code || !strings.Contains(got.err, c.says) {
			t.Errorf("%v: %+v, wanted exit %d and %q", c.words, got, c.code, c.says)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "hv2")); err == nil {
		t.Error("a refused command has written something")
	}
	if err := os.Chmod(filepath.Join(dir, "hv1", "node.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := pkiRun(t, "status", "--dir", dir)
	if got.code != exitFailed || !strings.Contains(got.out, "chmod 600") || !strings.Contains(got.err, "1 problem") {
		t.Errorf("%+v", got)
	}
}
