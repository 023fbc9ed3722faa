package guard

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// testUnit installs a unit that restarts itself whenever it is killed, and that
// does not heed the signal by which systemd asks it to stop.
func testUnit(t *testing.T) (*units, *unitHandle, context.Context) {
	t.Helper()
	if _, err := os.Stat("/run/systemd/system"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and a running systemd")
	}
	const name = "pvc-guard-test.service"
	file := filepath.Join("/run/systemd/system", name)
	unit := "[Service]\nExecStart=/bin/sh -c \"setsid sleep 1000 & exec sleep 1000\"\nKillSignal=SIGWINCH\nRestart=always\nRestartSec=0\nTimeoutStopSec=60\n"
	if err := os.WriteFile(file, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	reload := func() { _ = exec.Command("systemctl", "daemon-reload").Run() }
	reload()
	t.Cleanup(func() {
		_ = exec.Command("systemctl", "kill", "-s", "KILL", name).Run()
		_ = exec.Command("systemctl", "stop", name).Run()
		_ = os.Remove(file)
		reload()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	u := newUnits()
	t.Cleanup(u.close)
	h, err := u.handle(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.start(ctx); err != nil {
		t.Fatal(err)
	}
	if !h.active() || h.empty() || h.groupDir() == "" {
		t.Fatalf("started, and yet active %v, empty %v, group %q", h.active(), h.empty(), h.groupDir())
	}
	return u, h, ctx
}

func TestAUnitIsKilledAtOnceAndDoesNotRestart(t *testing.T) {
	_, h, ctx := testUnit(t)
	began := time.Now()
	if err := h.stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	t.Logf("gone after %v", time.Since(began))
	pause(300 * time.Millisecond)
	if h.active() || !h.empty() {
		t.Errorf("the unit is back: active %v, empty %v", h.active(), h.empty())
	}
}

func TestAUnitThatIgnoresItsStopIsKilledAfterItsGrace(t *testing.T) {
	u, h, ctx := testUnit(t)
	began := time.Now()
	if err := h.stop(ctx, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 300*time.Millisecond || took > 3*time.Second {
		t.Errorf("stopped after %v, want its grace of 0.3 s and little more", took)
	}
	if err := u.loadable(ctx, "no-such-thing.service"); err == nil {
		t.Error("a unit that is not installed counts as loadable")
	}
}

// What ends by itself is heard of; what systemd starts again is no end, and neither is
// a stop that was ordered.
func TestTheEndOfAUnitIsHeard(t *testing.T) {
	_, h, ctx := testUnit(t)
	told := make(chan string, 10)
	h.units.ends.watch(h, func() { told <- "ended" }, func() { told <- "active" })
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	hear := func(want string) {
		t.Helper()
		for {
			select {
			case got := <-told:
				if got == want {
					return
				}
				if got == "ended" {
					t.Fatal("it has not ended")
				}
			case <-ctx.Done():
				t.Fatalf("not told: %s", want)
			}
		}
	}
	run("kill", "-s", "KILL", h.name)
	hear("active") // again, by its Restart=always
	run("kill", "-s", "KILL", h.name)
	hear("active")
	run("stop", "--no-block", h.name)
	run("kill", "-s", "KILL", h.name)
	hear("ended")
	run("start", h.name)
	hear("active")
	if err := h.stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	h.units.ends.mu.Lock()
	defer h.units.ends.mu.Unlock()
	if len(h.units.ends.watched) != 0 {
		t.Error("what was stopped is watched still")
	}
}
