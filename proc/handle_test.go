package proc

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper starts a program that does nothing; it ends with the test.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func hold(t *testing.T, pid int) *Handle {
	t.Helper()
	start, err := StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	h, err := Hold(pid, start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func TestAHandleKillsItsProcessAndTellsItsEnd(t *testing.T) {
	cmd := sleeper(t)
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	h := hold(t, cmd.Process.Pid)
	select {
	case <-h.Done():
		t.Fatal("told as ended while it lives")
	default:
	}
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-h.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("its end is not told")
	}
	_ = cmd.Wait()
	if err := h.Kill(); err != nil {
		t.Errorf("killing what is gone: %v", err)
	}
}

func TestAHandleIsOfNoOtherProcess(t *testing.T) {
	cmd := sleeper(t)
	start, err := StartTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pid   int
		start uint64
	}{"an earlier one of its number": {cmd.Process.Pid, start - 1}, "a later one": {cmd.Process.Pid, start + 1}, "no process": {1 << 30, start}, "not known": {0, start}} {
		if h, err := Hold(c.pid, c.start); !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v, %v", name, h, err)
		}
	}
}

// TestAHandleNeverHitsALaterProcessOfItsNumber has the kernel give the number out
// again.
func TestAHandleNeverHitsALaterProcessOfItsNumber(t *testing.T) {
	const lastPid = "/proc/sys/kernel/ns_last_pid"
	if f, err := os.OpenFile(lastPid, os.O_WRONLY, 0); err != nil {
		t.Skipf("needs root, and a kernel that can be told which number is next: %v", err)
	} else {
		f.Close()
	}
	for range 20 { // others start processes, too
		cmd := sleeper(t)
		pid := cmd.Process.Pid
		h := hold(t, pid)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := os.WriteFile(lastPid, []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Skipf("the next number cannot be chosen: %v", err)
		}
		later := sleeper(t)
		if later.Process.Pid != pid {
			continue
		}
		if err := h.Kill(); err != nil {
			t.Errorf("killing what is gone: %v", err)
		}
		if err := later.Process.Signal(unix.SIGSTOP); err != nil { // a stop is shown only by one that lives
			t.Fatal(err)
		}
		eventually(t, "the later process lives on", func() bool {
			s, err := readStat(pid)
			return err == nil && s.state == 'T'
		})
		return
	}
	t.Skip("somebody else was always faster")
}
