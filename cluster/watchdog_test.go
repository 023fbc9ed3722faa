package cluster

import (
	"testing"
	"time"
)

// TestTheWordSaysLessThanIsKnownNeverMore: others count on it (I4).
func TestTheWordSaysLessThanIsKnownNeverMore(t *testing.T) {
	armed := WatchdogState{WatchdogInfo: WatchdogInfo{Hardware: true, Timeout: 5 * time.Second}, Mode: FeedFeeding, Stored: true}
	w := armed.Word(4 * time.Second)
	if w == nil || *w != (WatchdogWord{Armed: true, Hardware: true, Stored: true, TimeoutMS: 5000, StopMS: 4000}) {
		t.Errorf("of an armed one: %+v", w)
	}
	for _, mode := range []FeedMode{FeedUnarmed, FeedHolding, FeedStarving, FeedDisarmed} {
		s := armed
		s.Mode = mode
		if w := s.Word(4 * time.Second); w != nil {
			t.Errorf("while %q: %+v", mode, w)
		}
	}
	unread := armed
	unread.Timeout = 0
	if w := unread.Word(4 * time.Second); w != nil {
		t.Errorf("without a time-out that was read back: %+v", w)
	}
}
