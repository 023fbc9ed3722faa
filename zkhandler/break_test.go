package zkhandler_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pvc.internal/zkhandler/zktest"
)

// A lease record with a nonsensical ttl, or none, must not let a taker act at
// once while the holder whose record it replaced may still act for L − G.
func TestANonsensicalTTLIsNoLease(t *testing.T) {
	for _, raw := range []string{
		`{"v":1,"holder":"hv1","incarnation":"a","epoch":3,"ttl_ms":9223372036854775807}`,
		`{"v":1,"holder":"hv1","incarnation":"a","epoch":3,"ttl_ms":0}`,
		`{"v":1,"holder":"hv1","incarnation":"a","epoch":3,"ttl_ms":31536000000000}`,
		`{}`,
	} {
		inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
			h, stop := e.start(t, "one", nil)
			defer stop()
			for h.State().Session == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			e.fake.Set("/case/agent/lease/primary", []byte(raw))
			time.Sleep(time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			s, err := h.Refresh(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if l := s.Lease; l.Err == nil && (l.Value.TTL() < time.Second || l.Value.TTL() > time.Hour) {
				t.Errorf("%s is read as a lease of %q that lasts %v", raw, l.Value.Holder, l.Value.TTL())
			}
		})
	}
}

// However many entries a fault has left there, the history can be read and trimmed.
func TestALongHistoryIsStillTrimmed(t *testing.T) {
	inFake(t, zktest.Options{}, func(t *testing.T, e *env) {
		h, stop := e.start(t, "one", nil)
		defer stop()
		for h.State().Session == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		for i := range 50000 {
			e.fake.Set(fmt.Sprintf("/case/agent/history/%010d", i), []byte(`{"v":1}`))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if _, err := h.TrimHistory(ctx, 49990); err != nil {
			t.Errorf("trim: %v", err)
		}
		if _, err := h.ReadHistory(ctx, 10); err != nil {
			t.Errorf("read: %v", err)
		}
		if s := h.State(); s.Phase.String() != "live" {
			t.Errorf("the link is %v", s.Phase)
		}
	})
}
