package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigCheck(t *testing.T) {
	good := nodeSettings(t, []string{"a:1"}, "timing: {role_ttl: 3s}\n")
	bad := nodeSettings(t, []string{"a:1"}, "tming: {}\nroel: {}\n")
	device := nodeSettings(t, []string{"a:1"}, "fencing: {nodes: {hv2: {levels: [[{name: a, type: ipmi, address: x, user: u, password_file: /p, cipher_suite: 9}]]}}}\n")
	api := filepath.Join(t.TempDir(), "pvcapid.yaml")
	if err := os.WriteFile(api, []byte("node: {name: hv1}\ncluster: {name: demo}\nzookeeper: {servers: [a]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"-c", good}, exitOK, []string{"role_ttl: 3s", "# line 6", "# profile lan", "until a new primary answers", "# default"}},
		{[]string{"-c", api}, exitOK, []string{"listen: ['127.0.0.1:7370']", "settings of pvcapid"}},
		{[]string{"-c", "../../cmd/settings/testdata/pvc_old.yaml"}, exitOK, []string{"pvc.node: renamed to node.name", "dropped", "cidr: 198.51.100.10/24"}},
		{[]string{"-c", bad}, exitFailed, []string{`did you mean "timing"`, `did you mean "role"`}},
		{[]string{"-c", device}, exitFailed, []string{"cipher_suite 9"}},
		{[]string{"-c", "/nonexistent"}, exitFailed, []string{"no such file"}},
		{[]string{"-c", good, "--daemon", "pvcd"}, exitUsage, []string{"pvcnoded or pvcapid"}},
		{[]string{"-c", good, "extra"}, exitUsage, []string{"extra"}},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{"pvc", "config", "check"}, c.args...), strings.NewReader(""), &out, &errs)
		for _, want := range c.want {
			if code != c.code || !strings.Contains(out.String()+errs.String(), want) {
				t.Errorf("%q: exit %d, want %d and %q:\n%s%s", c.args, code, c.code, want, &out, &errs)
			}
		}
	}
	t.Setenv("PVCNODED_TIMING_PROFILE", "pvc")
	var out, errs bytes.Buffer
	var answer checkedSettings
	if code := run(t.Context(), []string{"pvc", "-o", "json", "config", "check", "-c", api, "--daemon", "pvcnoded"}, strings.NewReader(""), &out, &errs); code != exitOK || json.Unmarshal(out.Bytes(), &answer) != nil {
		t.Fatalf("exit %d: %s%s", code, &out, &errs)
	}
	found := false
	for _, s := range answer.Settings {
		found = found || s == checkedSetting{"timing.profile", "pvc", "PVCNODED_TIMING_PROFILE"}
	}
	if !found || len(answer.Warnings) == 0 {
		t.Errorf("%+v", answer)
	}
}
