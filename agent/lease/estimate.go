package lease

import (
	"time"

	"pvc.internal/cluster"
)

// acquisitions are the newest questions of one chain to which the node said yes,
// each with its send instant here and how far into the chain it arrived there.
type acquisitions struct {
	chain string
	size  int
	list  [8]acquisition // the oldest is overwritten
	next  int
}

type acquisition struct {
	sent cluster.Instant
	held time.Duration
}

// count returns the instant from which the lease that was just given counts on
// this clock, never later than when the node gave it but for what the two clocks
// drift apart within one period. A question was sent before it arrived, so that
// its send instant is safe; where it was slow on its way, an earlier one that
// was faster tells more: its send instant plus what the node measured between
// the two (L8). Nothing older than one period is asked for that, since drift
// grows with it, and nothing in the future is believed (L9): one clock is so
// much faster then that the rest of what is known is forgotten, too.
func (k *acquisitions) count(a cluster.NodeLeaseAnswer, sent, now cluster.Instant, period time.Duration) (counted cluster.Instant, discarded uint64) {
	if a.Chain == "" || a.Chain != k.chain {
		*k = acquisitions{chain: a.Chain}
	}
	counted = sent
	for _, e := range k.list[:k.size] {
		between := a.Held - e.held
		if between < 0 || between > period {
			continue
		}
		estimate := e.sent.Add(between)
		if estimate.After(now) {
			discarded++
			continue
		}
		counted = max(counted, estimate)
	}
	if discarded > 0 {
		counted = sent
		*k = acquisitions{chain: a.Chain}
	}
	if a.Chain != "" {
		k.list[k.next] = acquisition{sent: sent, held: a.Held}
		k.next, k.size = (k.next+1)%len(k.list), min(k.size+1, len(k.list))
	}
	return counted, discarded
}
