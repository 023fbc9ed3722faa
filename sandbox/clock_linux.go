package sandbox

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// now reads CLOCK_BOOTTIME, the one clock of all namespaces and of the history.
func now() cluster.Instant {
	var ts unix.Timespec
	// CLOCK_BOOTTIME cannot fail on a kernel that has network namespaces.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return cluster.Instant(ts.Nano())
}

// nativeUint32 reads a number as this machine's kernel writes it.
func nativeUint32(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

// bootInstant turns an instant of this machine's wall clock, which was read off
// it before seen, into one of its boot clock, to the millisecond below. It is
// zero where that cannot be: nothing was read, or the clock was set since.
func bootInstant(unixMS int64, seen cluster.Instant) cluster.Instant {
	if unixMS == 0 {
		return cluster.Never
	}
	offset := wallOffset()
	at := cluster.Instant(time.UnixMilli(unixMS).UnixNano() - int64(offset))
	if at > seen.Add(wallTick) || at <= 0 {
		return cluster.Never
	}
	return min(at, seen)
}

// wallTick is how coarse the instants in ZooKeeper's records are.
const wallTick = time.Millisecond

// wallOffset is the wall clock less the boot clock. It is the best of a few
// tries: this thread may be stopped between the two readings.
func wallOffset() time.Duration {
	var best, offset time.Duration
	for i := range 5 {
		before := now()
		wall := time.Now().UnixNano()
		after := now()
		if took := after.Sub(before); i == 0 || took < best {
			best, offset = took, time.Duration(wall-int64(before)-int64(took/2))
		}
	}
	return offset
}
