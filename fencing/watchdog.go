package fencing

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"pvc.internal/cluster"
)

// Watchdog is a device that resets this machine once nobody has fed it for the
// granted time-out. It is what ends work that nothing else can end (I3), and
// its bound is what others count as a dead-proof (I4). One goroutine uses it.
type Watchdog interface {
	// Arm opens the device, which starts it, asks for the time-out (whole
	// seconds, rounded up), feeds it and returns what the device itself reads
	// back: feeding and proof times are computed from that alone. A grant of
	// more than 1 s beyond what was wanted is an error. After an error that is
	// not ErrWatchdogRuns the device is not running by our doing.
	Arm(timeout time.Duration) (granted time.Duration, err error)
	// Feed starts the time-out again. An error means that it may not have.
	Feed() error
	// Disarm stops the device, in an orderly way only: StepFeeding has said
	// FeedDisarm. After ErrWatchdogRuns it still runs, is still open, and
	// resets the machine unless it is fed on.
	Disarm() error
}

// The refusals of a watchdog; the wrapping error says what to do.
var (
	// ErrWatchdogHeld: somebody has the device open, and it admits one.
	ErrWatchdogHeld = errors.New("the watchdog is in use")
	// ErrWatchdogRuns: it runs and cannot be stopped. It is kept open, so that
	// it can be fed; the machine resets if it is not.
	ErrWatchdogRuns = cluster.ErrWatchdogRuns
	// ErrWatchdogGrant: the device does not do the time-out that was asked for.
	ErrWatchdogGrant = errors.New("the watchdog grants another time-out than was asked for")
	// ErrWatchdogUnsafe: closing the device stops it, so that the death of the
	// process that feeds it would disarm it. Its bound would prove nothing.
	ErrWatchdogUnsafe = errors.New("the watchdog stops when it is closed")
	// ErrWatchdogUnarmed: Feed or Disarm without Arm.
	ErrWatchdogUnarmed = errors.New("the watchdog is not armed")
)

// grantSlack is how much longer than wanted a granted time-out may be: devices
// count in whole seconds.
const grantSlack = time.Second

// softdogIdentity is what the kernel's software watchdog calls itself. It is a
// timer of the very kernel that may be what hangs.
const softdogIdentity = "Software Watchdog"

// WatchdogInfo is what is known of a device.
type WatchdogInfo = cluster.WatchdogInfo

// wholeSeconds is the time-out as devices take it: at least one second, rounded up.
func wholeSeconds(wanted time.Duration) (int, error) {
	if wanted < time.Second || wanted > time.Hour {
		return 0, fmt.Errorf("watchdog time-out %v: want 1 s to 1 h", wanted)
	}
	return int((wanted + time.Second - 1) / time.Second), nil
}

// checkGrant refuses what would make the proof time too short.
func checkGrant(path string, wanted, granted time.Duration) error {
	if granted < time.Second || granted > wanted+grantSlack {
		return fmt.Errorf("%s: asked for %v and was granted %v: set the watchdog time-out to a value that the device does: %w",
			path, wanted, granted, ErrWatchdogGrant)
	}
	return nil
}

// FakeWatchdog is a Watchdog for tests and the sandbox. It bites by a call, at
// last feed + time-out on its clock, from a goroutine of its own unless Look
// finds it overdue first. The zero value of an optional field is the ordinary
// device. Discard it at the end of a test.
type FakeWatchdog struct {
	Clock    cluster.Clock
	Bite     func(due cluster.Instant) // once; then the machine is gone
	NoWayOut bool                      // optional
	// Grant, if set, replaces what is asked for.
	Grant func(wanted time.Duration) time.Duration
	// FeedErr, if set, is asked at each Feed; an error leaves the device unfed.
	FeedErr func() error

	mu      sync.Mutex
	open    bool // by the process that feeds it
	running bool
	bitten  bool
	timeout time.Duration
	whole   time.Duration // the time-out that a feeding restores
	fed     cluster.Instant
	feeds   int
	timer   *time.Timer
}

// Arm starts the fake.
func (f *FakeWatchdog) Arm(wanted time.Duration) (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seconds, err := wholeSeconds(wanted)
	if err != nil {
		return 0, err
	}
	if f.open {
		return 0, fmt.Errorf("arm the fake watchdog: %w", ErrWatchdogHeld)
	}
	granted := time.Duration(seconds) * time.Second
	if f.Grant != nil {
		granted = f.Grant(wanted)
	}
	f.open, f.running, f.timeout, f.whole = true, true, granted, granted
	f.feedLocked()
	if err := checkGrant("fake watchdog", wanted, granted); err != nil {
		return 0, errors.Join(err, f.disarmLocked())
	}
	return granted, nil
}

// Feed feeds the fake.
func (f *FakeWatchdog) Feed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.open {
		return fmt.Errorf("feed the fake watchdog: %w", ErrWatchdogUnarmed)
	}
	if f.FeedErr != nil {
		if err := f.FeedErr(); err != nil {
			return err
		}
	}
	f.feeds++
	f.timeout = f.whole
	f.feedLocked()
	return nil
}

// Hasten has the fake bite within left, at least a second, unless it is fed.
func (f *FakeWatchdog) Hasten(left time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.open {
		return fmt.Errorf("hasten the fake watchdog: %w", ErrWatchdogUnarmed)
	}
	f.timeout = min(f.timeout, max(time.Second, left.Truncate(time.Second)))
	f.feedLocked()
	return nil
}

// Disarm stops the fake, unless NoWayOut.
func (f *FakeWatchdog) Disarm() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.open {
		return fmt.Errorf("disarm the fake watchdog: %w", ErrWatchdogUnarmed)
	}
	return f.disarmLocked()
}

func (f *FakeWatchdog) disarmLocked() error {
	if f.NoWayOut {
		return fmt.Errorf("disarm the fake watchdog: %w", ErrWatchdogRuns)
	}
	f.open, f.running = false, false
	f.stopTimer()
	return nil
}

// Abandon is what the kernel does when the process that holds the device dies:
// it feeds once more and lets the device run.
func (f *FakeWatchdog) Abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open && f.running {
		f.open = false
		f.feedLocked()
	}
}

// Discard takes the fake away: it will not bite any more.
func (f *FakeWatchdog) Discard() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running = false
	f.stopTimer()
}

// Look bites if that is due, for clocks that are moved by hand, and reports
// whether the fake has ever bitten.
func (f *FakeWatchdog) Look() bool {
	f.mu.Lock()
	due := f.fed.Add(f.timeout)
	bites := f.running && f.Clock.Now() >= due
	if bites {
		f.running, f.bitten = false, true
		f.stopTimer()
	}
	bitten := f.bitten
	f.mu.Unlock()
	if bites && f.Bite != nil {
		f.Bite(due) // without the lock: it may take the whole node down
	}
	return bitten
}

// Feeds counts the calls of Feed that fed; Arm's own is not among them.
func (f *FakeWatchdog) Feeds() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.feeds
}

// Running reports whether the fake would bite if nobody fed it.
func (f *FakeWatchdog) Running() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running
}

func (f *FakeWatchdog) feedLocked() {
	if !f.running {
		return // it has bitten: there is no machine any more
	}
	f.fed = f.Clock.Now()
	f.stopTimer()
	f.timer = time.AfterFunc(f.timeout, f.wake)
}

// wake looks, and waits on where the clock did not move as the timer did.
func (f *FakeWatchdog) wake() {
	if f.Look() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if left := f.fed.Add(f.timeout).Sub(f.Clock.Now()); f.running {
		f.stopTimer()
		f.timer = time.AfterFunc(max(left, time.Millisecond), f.wake)
	}
}

func (f *FakeWatchdog) stopTimer() {
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
}
