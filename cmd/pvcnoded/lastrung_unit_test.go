package main

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestADaemonThatGaveUpIsStartedAgain: by its own exit, and by the guard's kill.
func TestADaemonThatGaveUpIsStartedAgain(t *testing.T) {
	raw, err := os.ReadFile("../../systemd/pvcnoded.service")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	for _, want := range []string{"Restart=always", "StartLimitIntervalSec=0"} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %s", want)
		}
	}
	for _, line := range lines {
		for _, key := range []string{"RestartPreventExitStatus=", "SuccessExitStatus="} {
			for _, word := range strings.Fields(strings.TrimPrefix(line, key)) {
				if strings.HasPrefix(line, key) && (word == strconv.Itoa(exitAbandoned) || word == "SIGKILL" || word == "TEMPFAIL") {
					t.Errorf("%s: the unit would not be restarted after that, or not as after a failure", line)
				}
			}
		}
	}
}
