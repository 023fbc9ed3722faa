package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/fencing"
)

// withDevice runs body on a thread with a mount namespace of its own, in which
// the watchdog is the file of that path, as in a node.
func withDevice(t *testing.T, w *Watchdog, body func(path string)) {
	t.Helper()
	rootOnly(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	path := filepath.Join(t.TempDir(), watchdogFile)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := newDeviceMount(w)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	defer m.close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = mountDevice(int(m.pass.Fd()), path)
		}
		if err == nil {
			err = m.serve()
		}
		if err == nil {
			body(path)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// bites are the instants at which a device has bitten.
func bites() (chan cluster.Instant, *Watchdog) {
	bitten := make(chan cluster.Instant, 8)
	return bitten, newWatchdog(func(_ uint64, due cluster.Instant) { bitten <- due })
}

// The guard's code for real devices takes the simulated one for hardware: it
// reads its time-out back, and what it feeds does not bite.
func TestTheGuardsDeviceRunsOverTheSimulatedWatchdog(t *testing.T) {
	bitten, w := bites()
	withDevice(t, w, func(path string) {
		d := fencing.NewWatchdogDevice(fencing.WatchdogOptions{Path: path, Pretimeout: time.Second})
		granted, err := d.Arm(2500 * time.Millisecond)
		info, _ := d.Info()
		if err != nil || granted != 3*time.Second || !info.Hardware || info.Identity != watchdogIdentity || info.Pretimeout != time.Second || info.WasReset {
			t.Errorf("armed: %v, %+v, %v", granted, info, err)
			return
		}
		if _, err := fencing.NewWatchdogDevice(fencing.WatchdogOptions{Path: path}).Arm(time.Second); !errors.Is(err, fencing.ErrWatchdogHeld) {
			t.Errorf("armed twice: %v", err)
		}
		before := w.Status()
		if err := d.Feed(); err != nil {
			t.Errorf("feed: %v", err)
		}
		if after := w.Status(); !after.Running || !after.Open || after.Feeds != before.Feeds+1 || after.Fed <= before.Fed {
			t.Errorf("fed: %+v after %+v", after, before)
		}
		if err := d.Hasten(time.Second); err != nil || w.Status().Timeout != time.Second {
			t.Errorf("hasten: %v, %+v", err, w.Status())
		}
		if err := d.Feed(); err != nil || w.Status().Timeout != 3*time.Second {
			t.Errorf("fed again: %v, %+v", err, w.Status())
		}
		if err := d.Disarm(); err != nil {
			t.Errorf("disarm: %v", err)
		}
		until(t, "the magic close", func() bool { s := w.Status(); return !s.Open && !s.Running })
	})
	if len(bitten) > 0 {
		t.Error("a device that was fed and disarmed has bitten")
	}
}

// What is closed without the magic runs on, fed once more, and bites.
func TestACrashedOpenerIsBitten(t *testing.T) {
	bitten, w := bites()
	withDevice(t, w, func(path string) {
		d := fencing.NewWatchdogDevice(fencing.WatchdogOptions{Path: path})
		if _, err := d.Arm(time.Second); err != nil {
			t.Error(err)
			return
		}
		armed := w.Status().Fed
		_ = unix.Close(d.Descriptor())
		until(t, "the close", func() bool { return !w.Status().Open })
		closed := w.Status()
		if !closed.Running || closed.Fed <= armed {
			t.Errorf("closed: %+v", closed)
		}
		select {
		case due := <-bitten:
			if due != closed.Fed.Add(time.Second) {
				t.Errorf("bitten at %v, closed at %v", due, closed.Fed)
			}
		case <-time.After(10 * time.Second):
			t.Error("never bitten")
		}
	})
}

// A node without power has no watchdog that runs, and what a process of an
// earlier boot has open feeds and stops nothing.
func TestPowerLossStopsTheWatchdog(t *testing.T) {
	bitten, w := bites()
	old, errno := w.open()
	if errno != 0 {
		t.Fatal(errno)
	}
	w.powerOff()
	if s := w.Status(); s.Running || s.Open {
		t.Errorf("without power: %+v", s)
	}
	fresh, errno := w.open()
	if errno != 0 {
		t.Fatal(errno)
	}
	if errno := w.write(old, []byte("V")); errno != unix.ENODEV {
		t.Errorf("an old descriptor: %v", errno)
	}
	w.release(old)
	if s := w.Status(); !s.Running || !s.Open {
		t.Errorf("after an old one's close: %+v", s)
	}
	if errno := w.write(fresh, []byte("xVx")); errno != 0 {
		t.Error(errno)
	}
	w.release(fresh)
	if s := w.Status(); s.Running {
		t.Errorf("after the magic close: %+v", s)
	}
	w.Pull(true)
	if _, errno := w.open(); errno != unix.ENODEV {
		t.Errorf("without a device: %v", errno)
	}
	w.close()
	if len(bitten) > 0 {
		t.Error("it has bitten")
	}
}
