package lease

import (
	"math/bits"
	"time"
)

// RoundTrips is a history of round-trip times in bounded space: four buckets
// for each doubling from 1 µs to 67 s, so that a quantile is at most a quarter
// too large. Older times weigh less: after each 4 096 all counts are halved. It
// is not safe for concurrent use.
type RoundTrips struct {
	counts [4 * 26]uint16
	total  int
	all    uint64
	sum    time.Duration
}

const roundTripMemory = 4096

// Add takes in one time. Negative ones count as 0.
func (r *RoundTrips) Add(d time.Duration) {
	d = max(d, 0)
	r.counts[roundTripBucket(d)]++
	r.total++
	r.all++
	r.sum += d
	if r.total < roundTripMemory {
		return
	}
	r.total = 0
	for i := range r.counts {
		r.counts[i] /= 2
		r.total += int(r.counts[i])
	}
}

// Quantile returns the time that a part q (0 to 1) of the newer ones did not
// exceed; 0 where none is known.
func (r *RoundTrips) Quantile(q float64) time.Duration {
	if r.total == 0 {
		return 0
	}
	want := max(1, int(q*float64(r.total)+0.999999))
	for i, n := range r.counts {
		if want -= int(n); want <= 0 {
			return roundTripBound(i)
		}
	}
	return roundTripBound(len(r.counts) - 1)
}

// Count returns how many times were added, and their sum.
func (r *RoundTrips) Count() (uint64, time.Duration) { return r.all, r.sum }

// roundTripBucket: 4 per doubling, by the two bits after the leading one.
func roundTripBucket(d time.Duration) int {
	us := uint64(d/time.Microsecond) + 4 // the first buckets are 1 µs each
	top := bits.Len64(us) - 1            // ≥ 2
	return min(4*(top-2)+int(us>>(top-2)&3), len(RoundTrips{}.counts)-1)
}

// roundTripBound is the upper bound of a bucket.
func roundTripBound(i int) time.Duration {
	top, step := i/4+2, i%4
	return time.Duration((uint64(4+step+1)<<(top-2))-4) * time.Microsecond
}
