package guard

import (
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A guard that is killed while it makes a child leaves its lock to that for a moment;
// its successor waits for it, and for no guard that lives.
func TestASuccessorWaitsForTheLockOfADeadGuard(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "guard.json")
	// The shell that takes the lock ends; who has inherited it ends later.
	holder := exec.Command("flock", "--nonblock", "--no-fork", state+".lock", "sh", "-c", "sleep 0.3 & exit 0")
	if err := holder.Run(); err != nil {
		t.Skip("needs flock, of util-linux:", err)
	}
	if _, err := lockState(state); !errors.Is(err, cluster.ErrRefused) {
		t.Skip("this machine was too slow: the lock is free already")
	}
	lock, err := inheritLock(state)
	if err != nil {
		t.Fatalf("the lock of a dead holder: %v", err)
	}
	defer lock.Close()
	began := time.Now()
	if again, err := inheritLock(state); !errors.Is(err, cluster.ErrRefused) || time.Since(began) >= sweepKillWait {
		t.Errorf("the lock of a living guard, after %v: %v, want ErrRefused at once", time.Since(began), err)
		if again != nil {
			again.Close()
		}
	}
}
