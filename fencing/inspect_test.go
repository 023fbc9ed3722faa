package fencing_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pvc.internal/fencing"
)

// Agents that give their password away are known by their program's name,
// wherever it lies; without a password there is nothing to give.
func TestLeak(t *testing.T) {
	for name, c := range map[string]struct {
		device fencing.Device
		leaks  bool
	}{
		"ipmilan":         {fencing.Device{Type: fencing.TypeAgent, Agent: "fence_ipmilan", PasswordFile: "/p"}, true},
		"by its path":     {fencing.Device{Type: fencing.TypeAgent, Agent: "/usr/sbin/fence_ilo4", PasswordSealed: "x"}, true},
		"without one":     {fencing.Device{Type: fencing.TypeAgent, Agent: "fence_ipmilan"}, false},
		"a careful one":   {fencing.Device{Type: fencing.TypeAgent, Agent: "fence_apc", PasswordFile: "/p"}, false},
		"no agent at all": {fencing.Device{Type: fencing.TypeIPMI, PasswordFile: "/p"}, false},
	} {
		if said := c.device.Leak(); (said != "") != c.leaks || c.leaks && !strings.Contains(said, "type ipmi") {
			t.Errorf("%s: %q", name, said)
		}
	}
}

// What an attempt would not find is found before.
func TestCheckPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pass")
	d := fencing.Device{Name: "bmc", Type: fencing.TypeIPMI, PasswordFile: file}
	if err := d.CheckPassword(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(file, []byte("secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.CheckPassword(); err != nil {
		t.Error(err)
	}
	if said := d.Exposed(); len(said) != 1 || !strings.Contains(said[0], "chmod 600") || strings.Contains(said[0], "secret") {
		t.Errorf("a file that others can read: %q", said)
	}
}
