package main

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTheGuardsUnitKeepsTheWatchdogsDescriptor: systemd closes what it has stored
// as soon as the unit is not to be restarted, and the last close feeds the device
// once more than others count (I4).
func TestTheGuardsUnitKeepsTheWatchdogsDescriptor(t *testing.T) {
	raw, err := os.ReadFile("../../systemd/pvc-guard.service")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	for _, want := range []string{"Restart=always", "StartLimitIntervalSec=0", "FileDescriptorStoreMax=1", "NotifyAccess=main"} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %s", want)
		}
	}
	for _, line := range lines {
		if strings.HasPrefix(line, "RestartPreventExitStatus=") || strings.HasPrefix(line, "SuccessExitStatus=") {
			t.Errorf("%s: the unit would not be restarted after that", line)
		}
	}
}

// TestAGuardWhoseSettingsAreRefusedDoesNotSpin: its unit starts it again.
func TestAGuardWhoseSettingsAreRefusedDoesNotSpin(t *testing.T) {
	file := t.TempDir() + "/pvcnoded.yaml"
	if err := os.WriteFile(file, []byte("nonsense: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if code := run([]string{"pvcnoded", "guard", "-c", file}); code != exitSettings || time.Since(began) < refusalPause {
		t.Errorf("status %d after %v", code, time.Since(began))
	}
	began = time.Now()
	if code := run([]string{"pvcnoded", "guard", "sweep", "-c", file}); code != exitSettings || time.Since(began) >= refusalPause {
		t.Errorf("sweep: status %d after %v, which an agent waits for", code, time.Since(began))
	}
}
