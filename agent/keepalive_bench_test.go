package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// BenchmarkKeepaliveLateness runs the loop in real time beside collectors that
// hang and a store that takes its time, and reports how late the latest
// keepalive was begun.
func BenchmarkKeepaliveLateness(b *testing.B) {
	release := make(chan struct{})
	hung := &fakeCollector{name: "hung", do: func(context.Context) (map[string]string, error) { <-release; return nil, nil }}
	late := &fakeCollector{name: "late", do: func(ctx context.Context) (map[string]string, error) { <-ctx.Done(); return nil, ctx.Err() }}
	clock := bubbleClock{}
	all, err := NewCollection(clock, zap.NewNop(), 40*time.Millisecond, hung, late)
	if err != nil {
		b.Fatal(err)
	}
	var acked atomic.Int64
	k, err := NewKeepalive(KeepaliveConfig{
		Node: "hv1", Interval: 50 * time.Millisecond, Clock: clock, Collection: all,
		Publish: func(context.Context, []cluster.Op) cluster.TxnResult {
			sent := clock.Now()
			<-time.After(20 * time.Millisecond)
			acked.Add(1)
			return cluster.TxnResult{Outcome: cluster.OutcomeOK, SentAt: sent, FailedOp: -1}
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = k.Run(ctx) }()
	for b.Loop() {
		for n := acked.Load(); acked.Load() == n; {
			<-time.After(5 * time.Millisecond)
		}
	}
	cancel()
	<-done
	close(release)
	s := k.Status()
	b.ReportMetric(float64(s.Lateness.Worst.Microseconds()), "µs-worst")
	b.ReportMetric(float64(s.Missed), "missed")
}
