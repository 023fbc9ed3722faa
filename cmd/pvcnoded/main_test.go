package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// capture runs the command line and returns its status and what it printed.
func capture(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = file, file
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()
	code = run(append([]string{"pvcnoded"}, args...))
	content, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return code, string(content)
}

func settingsFile(t *testing.T, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pvcnoded.yaml")
	content := "node: {name: hv1}\ncluster: {name: demo}\nzookeeper: {servers: [\"127.0.0.1:1\"]}\n" + more
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigCheck(t *testing.T) {
	good := settingsFile(t, "timing: {profile: fast}\n")
	bad := settingsFile(t, "tming: {}\n")
	device := settingsFile(t, "fencing: {nodes: {hv2: {levels: [[{name: a, type: ipmi, address: x, user: u, password_file: /p, cipher_suite: 9}]]}}}\n")
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"good", []string{"config", "check", "-c", good}, 0, "good: node hv1 (coordinator) of cluster demo, timing fast"},
		{"flag before the command", []string{"-c", good, "config", "check"}, 0, "good: node hv1"},
		{"its warning", []string{"config", "check", "-c", good}, 0, "warning: renew_interval + write_gap"},
		{"unknown key", []string{"config", "check", "-c", bad}, 78, `did you mean "timing"`},
		{"refused by the package", []string{"config", "check", "-c", device}, 78, "cipher_suite 9"},
		{"no file", []string{"config", "check", "-c", "/nonexistent"}, 78, "no such file"},
		{"agent with bad settings", []string{"-c", bad}, 78, `did you mean "timing"`},
		{"guard with bad settings", []string{"guard", "-c", bad}, 78, `did you mean "timing"`},
		{"unknown command", []string{"guardd"}, 2, `unknown command "guardd"`},
		{"unknown subcommand", []string{"guard", "sweeep", "-c", good}, 2, `unknown command "sweeep"`},
		{"no subcommand", []string{"config"}, 2, "needs a subcommand"},
		{"unknown flag", []string{"--frobnicate"}, 2, "frobnicate"},
		{"version", []string{"--version"}, 0, "unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, output := capture(t, c.args...)
			if code != c.code || !strings.Contains(output, c.want) {
				t.Errorf("status %d, want %d; output, which should hold %q:\n%s", code, c.code, c.want, output)
			}
		})
	}
}

func TestFenceAttemptIsHiddenAndRefusesRubbish(t *testing.T) {
	stdin := os.Stdin
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	os.Stdin = null
	defer func() { os.Stdin = stdin }()
	if code, output := capture(t, "fence-attempt"); code != 2 || !strings.Contains(output, `"result":"unknown"`) {
		t.Errorf("status %d: %s", code, output)
	}
	if _, output := capture(t, "--help"); strings.Contains(output, "fence-attempt") {
		t.Errorf("the help shows an internal command:\n%s", output)
	}
}
