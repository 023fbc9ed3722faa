package fencing

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// coreFake does what the kernel's watchdog core and one driver do with a device.
type coreFake struct {
	identity        string
	magic, nowayout bool
	noOptions       bool // the driver cannot be stopped by a call
	stubborn        bool // it runs on after a magic close
	busy            bool // somebody else has it open
	least, most     int  // seconds; others are refused
	rounds          int  // seconds; time-outs are rounded up to a multiple

	open, active, release bool
	timeout               int
	opens, pings, stops   int
	written               string
	root                  string
}

func newCoreFake(t *testing.T) *coreFake {
	k := &coreFake{identity: "iTCO_wdt", magic: true, least: 1, most: 600, rounds: 1, timeout: 30, root: t.TempDir()}
	k.file(t, "sys/class/watchdog/watchdog0/identity", k.identity)
	k.file(t, "sys/class/watchdog/watchdog0/nowayout", "0")
	k.file(t, "sys/class/watchdog/watchdog0/bootstatus", "0")
	return k
}

func (k *coreFake) file(t *testing.T, name, content string) {
	t.Helper()
	path := filepath.Join(k.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// process adds one that has the device open.
func (k *coreFake) process(t *testing.T, pid, comm, target string) {
	t.Helper()
	k.file(t, "proc/"+pid+"/comm", comm)
	link := filepath.Join(k.root, "proc", pid, "fd/7")
	if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
}

func (k *coreFake) device() *WatchdogDevice {
	return newWatchdogDevice(WatchdogOptions{}, watchdogKernel{
		open:        k.openIt,
		support:     k.support,
		get:         k.get,
		set:         k.set,
		ping:        func(int) error { k.pings++; return nil },
		write:       func(_ int, b []byte) (int, error) { k.written += string(b); k.release = k.magic; return len(b), nil },
		close:       k.closeIt,
		closeOnExec: func(int) {},
		number:      func(string) (uint32, uint32, error) { return miscMajor, watchdogMinor, nil },
		sysfs:       filepath.Join(k.root, "sys"), procfs: filepath.Join(k.root, "proc"),
	})
}

func (k *coreFake) openIt(string) (int, error) {
	if k.open || k.busy {
		return -1, unix.EBUSY
	}
	k.open, k.active, k.release = true, true, false
	k.opens++
	return 7, nil
}

func (k *coreFake) support(int) (watchdogSupport, error) {
	options := uint32(unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING)
	if k.magic {
		options |= unix.WDIOF_MAGICCLOSE
	}
	return watchdogSupport{identity: k.identity, options: options, firmware: 3}, nil
}

func (k *coreFake) get(_ int, request uint) (int, error) {
	switch request {
	case unix.WDIOC_GETTIMEOUT:
		return k.timeout, nil
	case unix.WDIOC_GETBOOTSTATUS:
		return 0, nil
	}
	return 0, unix.EOPNOTSUPP
}

func (k *coreFake) set(_ int, request uint, value int) error {
	switch {
	case request == unix.WDIOC_SETTIMEOUT && (value < k.least || value > k.most):
		return unix.EINVAL
	case request == unix.WDIOC_SETTIMEOUT:
		k.timeout = (value + k.rounds - 1) / k.rounds * k.rounds
		return nil
	case request == unix.WDIOC_SETOPTIONS && k.noOptions:
		return unix.ENOTTY
	case request == unix.WDIOC_SETOPTIONS:
		return k.stop()
	}
	return unix.EOPNOTSUPP
}

func (k *coreFake) stop() error {
	if k.nowayout {
		return unix.EBUSY
	}
	k.active = false
	k.stops++
	return nil
}

func (k *coreFake) closeIt(int) error {
	k.open = false
	if k.release || !k.magic {
		_ = k.stop()
	}
	if k.stubborn {
		k.active = true
	}
	return nil
}

func TestArmBelievesOnlyWhatIsReadBack(t *testing.T) {
	for _, c := range []struct {
		name        string
		wanted      time.Duration
		least, most int
		rounds      int
		granted     time.Duration // 0: refused
	}{
		{"as asked", 5 * time.Second, 1, 600, 1, 5 * time.Second},
		{"whole seconds, rounded up", 2500 * time.Millisecond, 1, 600, 1, 3 * time.Second},
		{"one second more", 5 * time.Second, 1, 600, 6, 6 * time.Second},
		{"two seconds more", 5 * time.Second, 1, 600, 7, 0},
		{"a minute", 5 * time.Second, 1, 600, 60, 0},
		{"out of the device's range", 5 * time.Second, 10, 600, 1, 0},
		{"too short for any device", 400 * time.Millisecond, 1, 600, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newCoreFake(t)
			k.least, k.most, k.rounds = c.least, c.most, c.rounds
			d := k.device()
			granted, err := d.Arm(c.wanted)
			if granted != c.granted || (err == nil) != (c.granted > 0) {
				t.Fatalf("granted %v, %v; want %v", granted, err, c.granted)
			}
			if err != nil {
				if k.active || k.open || d.Descriptor() != -1 {
					t.Errorf("runs on after %v", err)
				}
				return
			}
			if info, _ := d.Info(); k.pings == 0 || info.Timeout != granted || !info.Hardware {
				t.Errorf("fed %d times, known as %+v", k.pings, info)
			}
		})
	}
}

func TestARefusedGrantOfAnUnstoppableDeviceCanBeFed(t *testing.T) {
	k := newCoreFake(t)
	k.nowayout, k.rounds = true, 60
	d := k.device()
	_, err := d.Arm(5 * time.Second)
	if !errors.Is(err, ErrWatchdogGrant) || !errors.Is(err, ErrWatchdogRuns) {
		t.Fatalf("%v", err)
	}
	if err := d.Feed(); err != nil || !k.open {
		t.Errorf("cannot be fed: %v", err)
	}
}

func TestOnlyDisarmStopsIt(t *testing.T) {
	k := newCoreFake(t)
	d := k.device()
	if err := d.Feed(); !errors.Is(err, ErrWatchdogUnarmed) {
		t.Errorf("fed unarmed: %v", err)
	}
	if _, err := d.Info(); err != nil || k.opens != 0 {
		t.Errorf("to look at it has opened it: %v", err)
	}
	if _, err := d.Arm(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	pings := k.pings
	for range 3 {
		if err := d.Feed(); err != nil {
			t.Fatal(err)
		}
	}
	if k.pings != pings+3 || k.written != "" || !k.active {
		t.Errorf("after feeding: %d pings, written %q, active %v", k.pings-pings, k.written, k.active)
	}
	if _, err := d.Arm(5 * time.Second); !errors.Is(err, ErrWatchdogHeld) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("armed twice: %v", err)
	}
	if err := d.Disarm(); err != nil || k.active || k.open || k.written != "V" {
		t.Errorf("disarmed: %v, active %v, open %v, written %q", err, k.active, k.open, k.written)
	}
	if err := d.Disarm(); !errors.Is(err, ErrWatchdogUnarmed) {
		t.Errorf("disarmed twice: %v", err)
	}
	if _, err := d.Arm(5 * time.Second); err != nil || !k.active {
		t.Errorf("armed again: %v", err)
	}
}

// TestHastened: what is left counts in whole seconds, and a feeding restores.
func TestHastened(t *testing.T) {
	k := newCoreFake(t)
	d := k.device()
	if err := d.Hasten(time.Second); !errors.Is(err, ErrWatchdogUnarmed) {
		t.Errorf("unarmed: %v", err)
	}
	if _, err := d.Arm(8 * time.Second); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		left        time.Duration
		least, want int
		err         error
	}{
		{5900 * time.Millisecond, 1, 5, nil}, {900 * time.Millisecond, 1, 1, nil}, {-time.Second, 1, 1, nil}, {time.Minute, 1, 8, nil},
		{time.Second, 4, 4, ErrWatchdogGrant}, {time.Second, 9, 8, ErrWatchdogGrant},
	} {
		k.least = c.least
		if err := d.Hasten(c.left); !errors.Is(err, c.err) || k.timeout != c.want {
			t.Errorf("within %v of a device of at least %d s: %d s, %v", c.left, c.least, k.timeout, err)
		}
		k.least = 1
		if err := d.Feed(); err != nil || k.timeout != 8 {
			t.Errorf("fed after that: %d s, %v", k.timeout, err)
		}
	}
	if err := d.Hasten(time.Second); err != nil {
		t.Fatal(err)
	}
	k.least, k.pings = 9, 0
	if err := d.Feed(); err == nil || k.pings != 0 {
		t.Errorf("fed %d times with a time-out that is not counted on: %v", k.pings, err)
	}
}

func TestNoWayOutIsToldAndFedOn(t *testing.T) {
	for _, noOptions := range []bool{false, true} {
		k := newCoreFake(t)
		k.nowayout, k.noOptions = true, noOptions
		k.file(t, "sys/class/watchdog/watchdog0/nowayout", "1")
		d := k.device()
		if _, err := d.Arm(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		if info, _ := d.Info(); !info.NoWayOut {
			t.Errorf("known as %+v", info)
		}
		err := d.Disarm()
		if !errors.Is(err, ErrWatchdogRuns) || !strings.Contains(err.Error(), "nowayout") || !strings.Contains(err.Error(), "5s") {
			t.Errorf("disarmed: %v", err)
		}
		if !k.open || k.written != "" || d.Feed() != nil {
			t.Errorf("cannot be fed on: open %v, written %q", k.open, k.written)
		}
	}
}

func TestADriverWithoutACallToStopItIsClosedByTheBook(t *testing.T) {
	k := newCoreFake(t)
	k.noOptions = true
	d := k.device()
	if _, err := d.Arm(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := d.Disarm(); err != nil || k.active {
		t.Errorf("disarmed: %v, active %v", err, k.active)
	}
	k.stubborn = true
	k.file(t, "sys/class/watchdog/watchdog0/state", "active")
	if _, err := d.Arm(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if err := d.Disarm(); !errors.Is(err, ErrWatchdogRuns) || !k.open || d.Feed() != nil {
		t.Errorf("one that runs on after its close: %v, open %v", err, k.open)
	}
}

func TestADeviceThatAnyCloseStopsIsRefused(t *testing.T) {
	k := newCoreFake(t)
	k.magic = false
	if _, err := k.device().Arm(5 * time.Second); !errors.Is(err, ErrWatchdogUnsafe) || k.active {
		t.Errorf("armed: %v, active %v", err, k.active)
	}
	k.file(t, "sys/class/watchdog/watchdog0/nowayout", "1")
	if _, err := k.device().Arm(5 * time.Second); err != nil {
		t.Errorf("with nowayout: %v", err)
	}
	ipmi := newCoreFake(t)
	ipmi.magic, ipmi.identity = false, "IPMI" // it has magic close and does not say so
	if _, err := ipmi.device().Arm(5 * time.Second); err != nil {
		t.Errorf("IPMI: %v", err)
	}
}

func TestTheHolderIsNamed(t *testing.T) {
	for _, c := range []struct{ pid, comm, target, want string }{
		{"4242", "watchdogd", "/dev/watchdog0", "process 4242 (watchdogd) has it open: stop it"},
		{"1", "systemd", "/dev/watchdog", "process 1 (systemd) has it open: set RuntimeWatchdogSec=off"},
		{"77", "cat", "/dev/null", "could not be found"},
	} {
		k := newCoreFake(t)
		k.busy = true
		k.process(t, c.pid, c.comm, c.target)
		_, err := k.device().Arm(5 * time.Second)
		if !errors.Is(err, ErrWatchdogHeld) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.comm, err)
		}
	}
}

func TestSoftdogIsNoHardwareAndAResetIsRemembered(t *testing.T) {
	k := newCoreFake(t)
	k.identity = softdogIdentity
	k.file(t, "sys/class/watchdog/watchdog0/identity", softdogIdentity)
	k.file(t, "sys/class/watchdog/watchdog0/bootstatus", fmt.Sprint(unix.WDIOF_CARDRESET|unix.WDIOF_OVERHEAT))
	d := k.device()
	before, err := d.Info()
	if err != nil || before.Hardware || !before.WasReset || before.Timeout != 0 {
		t.Errorf("not armed: %+v, %v", before, err)
	}
	if _, err := d.Arm(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if after, _ := d.Info(); after.Hardware || !after.WasReset || after.Identity != softdogIdentity {
		t.Errorf("armed: %+v", after)
	}
}

func TestAdoptDoesNotFeed(t *testing.T) {
	k := newCoreFake(t)
	if _, err := k.device().Arm(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	pings, opens := k.pings, k.opens
	d := k.device()
	granted, err := d.Adopt(7, 5*time.Second)
	if err != nil || granted != 5*time.Second || k.pings != pings || k.opens != opens {
		t.Errorf("adopted: %v, %v, %d pings, %d opens", granted, err, k.pings-pings, k.opens-opens)
	}
	if err := d.Feed(); err != nil || k.pings != pings+1 {
		t.Errorf("fed: %v", err)
	}
	if _, err := k.device().Adopt(7, 2*time.Second); !errors.Is(err, ErrWatchdogGrant) {
		t.Errorf("adopted with 5 s where 2 s are wanted: %v", err)
	}
}

// With the real calls: what is no watchdog is let go of, and nothing that is
// opened is passed on to children.
func TestWhatIsNoWatchdogIsRefused(t *testing.T) {
	before, _ := os.ReadDir("/proc/self/fd")
	for _, path := range []string{"/dev/null", "/dev/no-such-watchdog", t.TempDir()} {
		d := NewWatchdogDevice(WatchdogOptions{Path: path})
		if _, err := d.Arm(5 * time.Second); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
		if d.Descriptor() != -1 {
			t.Errorf("%s is still open", path)
		}
	}
	if after, _ := os.ReadDir("/proc/self/fd"); len(after) > len(before) {
		t.Errorf("%d descriptors before, %d after", len(before), len(after))
	}
	fd, err := linuxWatchdog().open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %x: a child would inherit the device: %v", flags, err)
	}
	if _, err := NewWatchdogDevice(WatchdogOptions{}).Adopt(fd, 5*time.Second); err == nil {
		t.Error("adopted /dev/null")
	}
}

// bubbleClock is a cluster.Clock on the bubble's virtual time.
type bubbleClock struct{ start time.Time }

func (c bubbleClock) Now() cluster.Instant {
	return cluster.Instant(time.Hour + time.Since(c.start))
}

func TestTheFakeBitesWhereTheDeviceWould(t *testing.T) {
	const w = 5 * time.Second
	for _, c := range []struct {
		name     string
		nowayout bool
		life     func(f *FakeWatchdog)
		bites    time.Duration // after the arming; 0: never
	}{
		{"unfed", false, func(*FakeWatchdog) {}, w},
		{"fed twice", false, func(f *FakeWatchdog) {
			time.Sleep(4 * time.Second)
			_ = f.Feed()
			time.Sleep(4 * time.Second)
			_ = f.Feed()
		}, 8*time.Second + w},
		{"disarmed", false, func(f *FakeWatchdog) { time.Sleep(time.Second); _ = f.Disarm() }, 0},
		{"nowayout", true, func(f *FakeWatchdog) {
			time.Sleep(time.Second)
			if err := f.Disarm(); !errors.Is(err, ErrWatchdogRuns) {
				panic(err)
			}
		}, w},
		{"abandoned", false, func(f *FakeWatchdog) { time.Sleep(3 * time.Second); f.Abandon() }, 3*time.Second + w},
		{"armed again after the process died", false, func(f *FakeWatchdog) {
			time.Sleep(3 * time.Second)
			f.Abandon()
			time.Sleep(time.Second)
			_, _ = f.Arm(w)
		}, 4*time.Second + w},
		{"a feeding that fails", false, func(f *FakeWatchdog) {
			time.Sleep(2 * time.Second)
			f.FeedErr = func() error { return unix.EIO }
			_ = f.Feed()
		}, w},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := bubbleClock{time.Now()}
				var bites []time.Duration
				armed := clock.Now()
				f := &FakeWatchdog{Clock: clock, NoWayOut: c.nowayout}
				f.Bite = func(due cluster.Instant) {
					if due != clock.Now() {
						t.Errorf("bites at %v what was due at %v", clock.Now(), due)
					}
					bites = append(bites, due.Sub(armed))
				}
				if granted, err := f.Arm(w); err != nil || granted != w {
					t.Fatalf("%v, %v", granted, err)
				}
				c.life(f)
				time.Sleep(time.Minute)
				synctest.Wait()
				var want []time.Duration
				if c.bites > 0 {
					want = []time.Duration{c.bites}
				}
				if !slices.Equal(bites, want) || f.Look() != (c.bites > 0) || f.Running() {
					t.Errorf("bites at %v, want %v", bites, want)
				}
				f.Discard()
			})
		})
	}
}

func TestTheFakeOnAClockMovedByHand(t *testing.T) {
	now := cluster.Instant(time.Hour)
	var due cluster.Instant
	f := &FakeWatchdog{Clock: clockFunc(func() cluster.Instant { return now }), Bite: func(d cluster.Instant) { due = d }}
	t.Cleanup(f.Discard)
	if _, err := f.Arm(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Arm(5 * time.Second); !errors.Is(err, ErrWatchdogHeld) {
		t.Errorf("armed twice: %v", err)
	}
	now = now.Add(5*time.Second - 1)
	if f.Look() {
		t.Error("bites early")
	}
	now = now.Add(time.Second)
	if !f.Look() || due != cluster.Instant(time.Hour+5*time.Second) {
		t.Errorf("bitten at %v", due)
	}
	f.Grant = func(time.Duration) time.Duration { return time.Minute }
	if _, err := (&FakeWatchdog{Clock: f.Clock, Grant: f.Grant}).Arm(5 * time.Second); !errors.Is(err, ErrWatchdogGrant) {
		t.Errorf("a minute granted for 5 s: %v", err)
	}
}

type clockFunc func() cluster.Instant

func (f clockFunc) Now() cluster.Instant { return f() }

// The decision and the device together: however news and the guard's own stalls
// fall, a node that cannot renew is gone by Q·K + W after its last keepalive.
func TestFedByTheDecisionTheDeviceBitesInTime(t *testing.T) {
	for seed := range 200 {
		synctest.Test(t, func(t *testing.T) {
			c := lanFeeding()
			clock := bubbleClock{time.Now()}
			var bittenAt atomic.Int64
			f := &FakeWatchdog{Clock: clock, Bite: func(due cluster.Instant) { bittenAt.Store(int64(due)) }}
			if _, err := f.Arm(c.Granted); err != nil {
				t.Fatal(err)
			}
			s := cluster.ArmedFeed(clock.Now())
			acked := clock.Now()
			lastAck := acked.Add(time.Duration(seed%40) * 250 * time.Millisecond)
			for i := 0; i < 400 && bittenAt.Load() == 0; i++ {
				now := clock.Now()
				if now <= lastAck {
					acked = now
				}
				var out FeedOutput
				s, out = StepFeeding(c, s, now, FeedInput{KeepaliveAcked: acked, ProtectedWork: true})
				if out.Action == FeedFeed {
					if err := f.Feed(); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Duration(20+(i*7919+seed*104729)%1300) * time.Millisecond)
			}
			bitten := cluster.Instant(bittenAt.Load())
			bound := acked.Add(c.StopAfter + c.Granted)
			if bitten == cluster.Never || bitten > bound {
				t.Errorf("seed %d: bitten at %v, the bound is %v", seed, bitten, bound)
			}
			f.Discard()
		})
	}
}
