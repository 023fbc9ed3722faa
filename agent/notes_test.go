package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// While the store is away the newest entries wait in order; the lost ones are
// counted where they would stand, and a flush ends with its context.
func TestHistoryEntriesWaitForTheStoreInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const over = 10
		var back atomic.Bool
		var got []cluster.Event
		n := newNotes(Config{Node: "hv1", Timing: cluster.ProfileLAN(), WallMS: func() int64 { return 0 }}, func(_ context.Context, tx cluster.Txn) cluster.TxnResult {
			if !back.Load() {
				return cluster.TxnResult{Outcome: cluster.OutcomeNotSent}
			}
			got = append(got, tx.Ops[0].Value.(cluster.Event))
			return cluster.TxnResult{Outcome: cluster.OutcomeOK}
		}, zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); n.run(ctx) }()
		n.add(cluster.Event{Kind: "first"})
		synctest.Wait() // it is being tried
		for i := range notesKept + over {
			n.add(cluster.Event{Kind: fmt.Sprint(i)})
		}
		short, end := context.WithTimeout(ctx, time.Second)
		began := time.Now()
		n.flush(short)
		end()
		if took := time.Since(began); took != time.Second || len(got) > 0 {
			t.Errorf("a flush without a store took %v and wrote %d", took, len(got))
		}
		back.Store(true)
		n.flush(ctx)
		if len(got) != notesKept+2 || got[0].Kind != "first" || got[1].Kind != "history_lost" || got[1].Fields["count"] != fmt.Sprint(over) {
			t.Fatalf("%d entries, begin with %+v", len(got), got[:min(2, len(got))])
		}
		for i, e := range got[2:] {
			if e.Kind != fmt.Sprint(i+over) {
				t.Fatalf("entry %d is %s", i, e.Kind)
			}
		}
		n.flush(ctx) // nothing waits: returns at once
		cancel()
		<-done
	})
}
