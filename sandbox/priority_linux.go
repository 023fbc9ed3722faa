package sandbox

import (
	"runtime"

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

// niced runs f on a thread of that priority, which the processes that f starts
// inherit; where it is refused they have the ordinary one.
func niced(nice int, f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), nice) == nil {
		defer func() { _ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 0) }()
	}
	f()
}
