package bench

import (
	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// now reads the clock that all namespaces of the machine share.
func now() cluster.Instant { return proc.BootClock{}.Now() }
