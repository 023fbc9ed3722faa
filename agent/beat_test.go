package agent

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

// TestABeatKeepsToTheKeepalivesGrid: each wait ends on a line, and no two looks
// come closer than a quarter or further apart than five quarters of the spacing.
func TestABeatKeepsToTheKeepalivesGrid(t *testing.T) {
	const every = 250 * time.Millisecond
	var b beat
	if got := b.next(12345, every); got != every {
		t.Errorf("without a grid: %v, want %v", got, every)
	}
	line := cluster.Instant(0).Add(100 * time.Second)
	b.mark(line)
	for off := -2 * time.Second; off < 2*time.Second; off += 7 * time.Millisecond {
		now := line.Add(off)
		wait := b.next(now, every)
		if wait < every/4 || wait >= every+every/4 {
			t.Errorf("%v from the line: waits %v", off, wait)
		}
		if rest := now.Add(wait).Sub(line) % every; rest != 0 {
			t.Errorf("%v from the line: ends %v beside the grid", off, rest)
		}
	}
}
