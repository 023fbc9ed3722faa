package agent

import (
	"slices"
	"testing"
	"time"
)

// Who did not let itself be told in time is told nothing for a short while, and for a
// longer one each time that it does so again; once it is told in time that is forgotten.
func TestWhoHangsAgainAndAgainIsToldNothingForLonger(t *testing.T) {
	clock := &handClock{now: 1}
	n := newNotices(&workloadWatch{d: Deps{Clock: clock}})
	var spans []time.Duration
	hangs := func() {
		n.hung("cache hv2", true)
		spans = append(spans, n.mute["cache hv2"].Sub(clock.now))
	}
	for range 6 {
		hangs()
	}
	n.hung("cache hv3", true) // another one is its own
	n.hung("cache hv2", false)
	hangs()
	s := time.Second
	if want := []time.Duration{10 * s, 20 * s, 40 * s, 80 * s, 120 * s, 120 * s, 10 * s}; !slices.Equal(spans, want) {
		t.Errorf("told nothing for %v, want %v", spans, want)
	}
}
