package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// TestTheDaemonOutlivesItsCopies: where the guard is being stopped, too, the daemon
// goes on until its copies have ended, or their time is over; else it stops at once.
func TestTheDaemonOutlivesItsCopies(t *testing.T) {
	after := func(d time.Duration) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-time.After(d):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	for name, c := range map[string]struct {
		is   bool
		err  error
		ends time.Duration // of the copies
		want time.Duration // of the daemon, after it was told to stop
	}{
		"a restart of the daemon":     {ends: time.Hour},
		"systemd does not answer":     {err: errors.New("no bus"), ends: time.Hour},
		"copies that end":             {is: true, ends: 20 * time.Second, want: 20 * time.Second},
		"copies that do not":          {is: true, ends: time.Hour, want: settleLimit},
		"nothing is here that stops ": {is: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var left time.Time // when the role was left
				told, stop := context.WithCancel(t.Context())
				ctx, done := settleFirst(told, func(context.Context) (bool, error) { return c.is, c.err }, func() { left = time.Now() }, after(c.ends), zap.NewNop())
				defer done()
				synctest.Wait()
				if ctx.Err() != nil {
					t.Fatal("it stops before it is told to")
				}
				began := time.Now()
				stop()
				<-ctx.Done()
				if took := time.Since(began); took != c.want {
					t.Errorf("it stopped after %v, not %v", took, c.want)
				}
				if c.is != left.Equal(began) {
					t.Errorf("the role was left at %v, and it was told to stop at %v", left, began)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // one that ends by itself waits for nothing
		_, done := settleFirst(t.Context(), nil, nil, nil, zap.NewNop())
		done()
	})
}
