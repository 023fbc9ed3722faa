package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/api"
)

func completed(t *testing.T, words ...string) []string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(t.Context(), append(append([]string{"pvc"}, words...), completionFlag), strings.NewReader(""), &out, &errs); code != exitOK || errs.Len() > 0 {
		t.Errorf("%q: exit %d, %s", words, code, errs.String())
	}
	return strings.Fields(out.String())
}

func TestCompletion(t *testing.T) {
	_, do := typist(t)
	s := newServer(t, map[string]any{"GET /node": []api.Node{{Name: "hv1"}, {Name: "hv2"}, {Name: "other"}}})
	do("", "connection", "add", "prod", s.URL)
	for line, want := range map[string]string{
		"no":                         "node",
		"node pri":                   "primary",
		"cluster ma":                 "maintenance",
		"cluster maintenance ":       "on off show",
		"node info hv":               "hv1 hv2",
		"node info hv1 ":             "",
		"explain p":                  "primary",
		"node primary --wait hv":     "hv1 hv2",
		"node list -o ":              "table json yaml",
		"-o j":                       "json",
		"fence list --node o":        "other",
		"node primary hv1 --wait-":   "--wait-timeout",
		"node primary hv1 --no":      "",
		"completion ":                "bash zsh",
		"--connection ":              "prod",
		"connection show p":          "prod",
		"--api " + s.URL + " node i": "info",
		"nod info h":                 "",
		"cluster restore ":           "",
		"pki issue h":                "",
		"node info -- h":             "",
	} {
		if got := completed(t, strings.Split(line, " ")...); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
	if got := completed(t); !slices.Contains(got, "cluster") || slices.Contains(got, "sandbox-init") {
		t.Errorf("at the head: %q", got)
	}
	s.Close()
	if got := completed(t, "node", "info", ""); len(got) > 0 {
		t.Errorf("nobody there: %q", got)
	}
}

// The script does in a real bash what it is for.
func TestBashCompletes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash")
	}
	dir := t.TempDir()
	var script bytes.Buffer
	if code := run(t.Context(), []string{"pvc", "completion", "bash"}, nil, &script, &script); code != exitOK {
		t.Fatal(script.String())
	}
	// This test's own program stands in for pvc.
	pvc := "#!/bin/sh\nPVC_TEST_ARGV=1 exec " + os.Args[0] + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "pvc"), []byte(pvc), 0o700); err != nil { //nolint:gosec // it is to be run
		t.Fatal(err)
	}
	text := script.String() + "\nCOMP_WORDS=(pvc cluster maintenance '') COMP_CWORD=3; _pvc; echo \"${COMPREPLY[*]}\"\nCOMP_WORDS=(pvc node primary --dry) COMP_CWORD=3; _pvc; echo \"${COMPREPLY[*]}\"\n"
	cmd := exec.CommandContext(t.Context(), bash, "--norc", "-c", text)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Join(strings.Fields(string(out)), " ") != "on off show --dry-run" {
		t.Errorf("%v: %s", err, out)
	}
	if got := completed(t, "completion", "fish"); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// TestMain lets this test's program be pvc for the shell above.
func TestMain(m *testing.M) {
	if os.Getenv("PVC_TEST_ARGV") != "" {
		main()
	}
	watchLook, pursuitLook, completionPatience = 10*time.Millisecond, 20*time.Millisecond, 30*time.Second
	os.Exit(m.Run())
}
