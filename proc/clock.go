package proc

import (
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// BootClock reads CLOCK_BOOTTIME: monotonic, not touched by wall-clock steps,
// and counting through suspend, so that a lease cannot outlive a lid's closing.
type BootClock struct{}

// Now returns nanoseconds since boot. It never returns cluster.Never.
func (BootClock) Now() cluster.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// Cannot happen on a kernel since 2.6.39; a daemon that cannot tell
		// the time must not hold a lease (I3).
		panic("proc: clock_gettime(CLOCK_BOOTTIME): " + err.Error())
	}
	return cluster.Instant(ts.Nano())
}
