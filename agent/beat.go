package agent

import (
	"sync/atomic"
	"time"

	"pvc.internal/cluster"
)

// beat is the keepalive's grid in time. Loops that look at the cluster several
// times a tick look on its lines, so that the processor wakes once for all of
// them: an idle agent's cost is the number of its wake-ups, not its work.
type beat struct {
	line atomic.Int64 // a cluster.Instant on the grid; Never until the keepalive has begun
}

// mark tells where the grid lies.
func (b *beat) mark(line cluster.Instant) { b.line.Store(int64(line)) }

// after is the first line of a grid of this spacing that does not lie before the
// instant; without a grid the instant itself.
func (b *beat) after(at cluster.Instant, every time.Duration) cluster.Instant {
	line := cluster.Instant(b.line.Load())
	if line.IsZero() || every <= 0 {
		return at
	}
	over := at.Sub(line) % every
	switch {
	case over == 0:
		return at
	case over < 0: // the line lies ahead
		return at.Add(-over)
	}
	return at.Add(every - over)
}

// next is how long to wait from now for the next line of a grid of this
// spacing, a quarter of it at least. Without a grid it is the spacing itself.
func (b *beat) next(now cluster.Instant, every time.Duration) time.Duration {
	line := cluster.Instant(b.line.Load())
	if line.IsZero() || every <= 0 {
		return every
	}
	wait := every - now.Sub(line)%every
	if wait > every { // the line lies ahead
		wait -= every
	}
	if wait < every/4 {
		wait += every
	}
	return wait
}
