package acceptance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"pvc.internal/sandbox"
)

// workPrefix begins the name of each run's folder, which ends in its pid.
const workPrefix = "pvc-acceptance-"

// work is this run's folder: the built programs and all clusters. It is short,
// since Unix sockets lie below it.
var work = filepath.Join(workBase(), fmt.Sprint(workPrefix, os.Getpid()))

// workBase is in memory where the machine has room for it: other packages' tests
// write to its disk, and a store that waits seconds for each of its own writes is a
// fault that no test here has ordered.
func workBase() string {
	const shared, room = "/dev/shm", 2 << 30
	var fs unix.Statfs_t
	if unix.Statfs(shared, &fs) != nil || fs.Type != unix.TMPFS_MAGIC || fs.Flags&unix.ST_NOEXEC != 0 || fs.Bavail*uint64(fs.Bsize) < room {
		return os.TempDir()
	}
	return shared
}

// TestMain builds the programs once, and removes what a killed run left.
func TestMain(m *testing.M) {
	code := 1
	defer func() { os.Exit(code) }()
	if os.Geteuid() != 0 {
		code = m.Run() // every test says that it needs root
		return
	}
	sweepKilledRuns()
	defer os.RemoveAll(work)
	if err := buildPrograms(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	if code = m.Run(); code != 0 {
		reasons.print(os.Stdout)
	}
}

// buildPrograms builds the tree's programs, or takes those of the folder
// PVC_ACCEPTANCE_BIN.
func buildPrograms() error {
	if err := os.MkdirAll(filepath.Join(work, "bin"), 0o700); err != nil {
		return err
	}
	if ready := os.Getenv("PVC_ACCEPTANCE_BIN"); ready != "" {
		return os.CopyFS(filepath.Join(work, "bin"), os.DirFS(ready))
	}
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(work, "bin")+"/", "../cmd/pvcnoded", "../cmd/pvcapid", "../cmd/pvc")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// sweepKilledRuns removes the clusters and folders of runs whose process is gone.
func sweepKilledRuns() {
	folders, _ := filepath.Glob(filepath.Join(workBase(), workPrefix+"*"))
	for _, folder := range folders {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(folder), workPrefix))
		if err != nil || pid != os.Getpid() && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		clusters, _ := filepath.Glob(filepath.Join(folder, "c-*"))
		for _, dir := range clusters {
			if err := sandbox.Sweep(dir); err != nil {
				fmt.Fprintln(os.Stderr, "a killed run's cluster stays:", err)
			}
		}
		_ = os.RemoveAll(folder)
	}
}

// needs skips where the machine lacks what every test here uses.
func needs(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network and PID namespaces")
	}
	if testing.Short() {
		t.Skip("builds whole clusters: not with -short")
	}
	if _, err := os.Stat("/usr/share/java/zookeeper.jar"); err != nil {
		t.Skip("needs Debian's package zookeeper")
	}
	if err := exec.Command(python, "-c", "import kazoo").Run(); err != nil {
		t.Skip("needs Debian's package python3-kazoo")
	}
}

// python is Debian's own, which has Debian's packages.
const python = "/usr/bin/python3"
