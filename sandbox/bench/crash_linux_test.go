package bench

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAKilledBenchsFoldersAreRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	mine, err := newFolder("", "redis")
	if err != nil {
		t.Fatal(err)
	}
	// No process has a number above the kernel's own limit.
	gone, foreign := filepath.Join(os.TempDir(), "pvc-bench-hv1-guard0-4999999-123"), filepath.Join(os.TempDir(), "pvc-bench-4999999")
	for _, dir := range []string{gone, foreign} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	sweepKilled()
	for dir, want := range map[string]bool{mine: true, gone: false, foreign: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", dir, err == nil, want)
		}
	}
}
