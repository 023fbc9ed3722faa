package cluster

import (
	"math"
	"time"
)

// Instant is a point on this host's CLOCK_BOOTTIME, in nanoseconds since boot.
// It keeps counting through suspend, is never compared across hosts, and is
// never written into a record. The zero Instant means "never".
type Instant int64

// Never is the Instant that no clock reads; it sorts before all others.
const Never Instant = 0

// Forever is later than every Instant a clock will read.
const Forever Instant = math.MaxInt64

// Add returns the instant d after i.
func (i Instant) Add(d time.Duration) Instant { return i + Instant(d) }

// Sub returns the time from j to i.
func (i Instant) Sub(j Instant) time.Duration { return time.Duration(i - j) }

// Before reports whether i is earlier than j.
func (i Instant) Before(j Instant) bool { return i < j }

// After reports whether i is later than j.
func (i Instant) After(j Instant) bool { return i > j }

// IsZero reports whether i is Never.
func (i Instant) IsZero() bool { return i == Never }

// Earliest returns the earlier of the given instants, ignoring Never; it
// returns Never when all are.
func Earliest(instants ...Instant) Instant {
	earliest := Never
	for _, i := range instants {
		if i != Never && (earliest == Never || i < earliest) {
			earliest = i
		}
	}
	return earliest
}

// Clock reads the current Instant. Shells carry one; pure cores are given the
// instant itself.
type Clock interface{ Now() Instant }
