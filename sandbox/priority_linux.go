package sandbox

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// The scheduling classes of a thread (sched(7)).
const (
	schedOther      = 0
	schedRoundRobin = 2
)

// asInstrument runs f on a thread that is scheduled before all ordinary ones,
// and so are the processes that f starts: what measures must not wait for what
// it measures. Where real time is refused the thread is only nicer; the noise
// floor tells what that costs.
func asInstrument(priority uint32, f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: schedRoundRobin, Priority: priority}, 0)
	if err != nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -15)
		defer func() { _ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 0) }()
	} else {
		defer func() {
			_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: schedOther}, 0)
		}()
	}
	f()
}

// asUnit runs f on a thread of that priority and with timers that may be late by
// slack, as TimerSlackNSec= gives it (prctl(2), PR_SET_TIMERSLACK); the
// processes that f starts inherit both. What is refused stays as it is.
func asUnit(nice int, slack time.Duration, f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), nice) == nil {
		defer func() { _ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 0) }()
	}
	if slack > 0 && unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0) == nil {
		defer func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }() // back to the default
	}
	f()
}
