package sandbox

import (
	"encoding/binary"

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
