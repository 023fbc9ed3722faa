package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// holdMain is another process that holds a sandbox, for the tests that kill it:
// `hold DIR NAME`. It prints a line once it is up.
func holdMain(args []string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, stop := interruptible()
	defer stop()
	s, err := Up(ctx, Options{Name: args[1], Dir: args[0], Coordinators: 1, Helper: []string{exe}, NoDaemons: true, APIListen: "none", Watchdogs: true})
	if err != nil {
		return err
	}
	defer s.Down()
	fmt.Println("up")
	<-ctx.Done()
	return nil
}

// holder starts such a process and waits until its sandbox is up.
func holder(t *testing.T) (cmd *exec.Cmd, dir, name string) {
	t.Helper()
	rootOnly(t)
	dir = filepath.Join(os.TempDir(), fmt.Sprintf("pvcsb-hold-%d", os.Getpid()))
	name = fmt.Sprintf("h%d", os.Getpid())
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(exe, "hold", dir, name)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = Sweep(dir) })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("the other process said %q: %v", line, err)
	}
	return cmd, dir, name
}

func TestAKilledSupervisorTakesEverythingWithItAndIsSweptUp(t *testing.T) {
	cmd, dir, _ := holder(t)
	st, err := loadState(dir)
	if err != nil || len(st.Inits) != 1 || !st.Inits[0].alive() {
		t.Fatalf("state %+v (%v), want one living PID 1", st, err)
	}
	mounts := fmt.Sprintf("/proc/%d/mountinfo", st.Inits[0].PID)
	if inside, err := os.ReadFile(mounts); err != nil || !strings.Contains(string(inside), watchdogFile+" ") {
		t.Errorf("the node has no watchdog (%v):\n%s", err, inside)
	}
	if err := Sweep(dir); !errors.Is(err, ErrRunning) {
		t.Errorf("sweeping under a living supervisor: %v, want ErrRunning", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	until(t, "the node's death with its supervisor", func() bool { return !st.Inits[0].alive() })
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, st.Cgroup} {
		if _, err := os.Stat(path); path != "" && err == nil {
			t.Errorf("%s is left behind", path)
		}
	}
	if here, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(here), dir) {
		t.Errorf("something of %s is mounted (%v):\n%s", dir, err, here)
	}
}

func TestAnInterruptLeavesNothingBehind(t *testing.T) {
	cmd, dir, _ := holder(t)
	st, err := loadState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after an interrupt: %v", err)
	}
	if st.Inits[0].alive() {
		t.Error("the node outlived its supervisor")
	}
	for _, path := range []string{dir, st.Cgroup} {
		if _, err := os.Stat(path); path != "" && err == nil {
			t.Errorf("%s is left behind", path)
		}
	}
}

func TestSweepRefusesAFolderThatIsNotASandboxs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mine")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(dir); err == nil {
		t.Error("swept a folder that holds something else")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("removed somebody's file")
	}
}
