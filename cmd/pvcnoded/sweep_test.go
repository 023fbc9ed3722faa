package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/proc"
)

// killedDaemonEnv makes the test binary a daemon with a child that forks away and
// writes the pid of what it forked to this file.
const killedDaemonEnv = "PVC_KILLED_DAEMON"

func init() {
	file := os.Getenv(killedDaemonEnv)
	if file == "" {
		return
	}
	forks := `setsid sh -c '(trap "" TERM; sh -c "echo \$PPID" > ` + file + `; while :; do sleep 1; done) & exit 0' & while :; do sleep 1; done`
	p, err := proc.StartBound(proc.Command{Argv: []string{"/bin/sh", "-c", forks}})
	if err != nil {
		os.Exit(1)
	}
	<-p.Done()
	os.Exit(0)
}

// TestADaemonEndsWhatItsKilledPredecessorHasLeft before it does anything else: its
// state folder cannot even be made.
func TestADaemonEndsWhatItsKilledPredecessorHasLeft(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pid")
	predecessor := exec.Command(os.Args[0])
	predecessor.Env = append(os.Environ(), killedDaemonEnv+"="+file)
	if err := predecessor.Start(); err != nil {
		t.Fatal(err)
	}
	forked := 0
	for begin := time.Now(); forked == 0; <-time.After(2 * time.Millisecond) {
		if raw, _ := os.ReadFile(file); bytes.HasSuffix(raw, []byte("\n")) {
			forked, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatal("nothing was forked")
		}
	}
	t.Cleanup(func() { _ = unix.Kill(forked, unix.SIGKILL) })
	group, _ := os.ReadFile("/proc/" + strconv.Itoa(forked) + "/cgroup")
	if !bytes.Contains(group, []byte("pvc-run.")) {
		t.Skip("no writable cgroup v2 here, by which alone a later process finds it")
	}
	if !processLives(forked) {
		t.Fatal("nothing is left to end")
	}
	_ = predecessor.Process.Kill() // from here on, any daemon that starts may end it
	_ = predecessor.Wait()
	if err := os.WriteFile(filepath.Join(dir, "state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, output := capture(t, "-c", settingsFile(t, "state_dir: "+filepath.Join(dir, "state")+"\n")); code != exitFailed {
		t.Fatalf("status %d: %s", code, output)
	}
	for begin := time.Now(); processLives(forked); <-time.After(2 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatal("it lives on")
		}
	}
}
