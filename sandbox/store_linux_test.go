package sandbox

import (
	"context"
	"path/filepath"
	"testing"

	"pvc.internal/cluster"
)

// deposed is a server that was the leader, has been stopped, and answers on
// before it learns that it has been replaced: its reads are old, and writes
// fail against what the new leader has.
type deposed struct {
	coordination
	renewed bool // by the new leader
	asked   chan struct{}
}

func (d *deposed) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	select {
	case d.asked <- struct{}{}:
	case <-ctx.Done():
	}
	if d.renewed && t.Ops[0].Kind == cluster.OpCheck {
		return cluster.TxnResult{Outcome: cluster.OutcomeConflict}
	}
	return cluster.TxnResult{Outcome: cluster.OutcomeOK}
}

func TestOnlyAWriteProvesThatALeaseWasNotRenewed(t *testing.T) {
	for _, renewed := range []bool{true, false} {
		h, err := OpenHistory(filepath.Join(t.TempDir(), "history.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		lease := cluster.Versioned[cluster.Lease]{Present: true, Version: 22, Value: cluster.Lease{Holder: "hv1", Epoch: 5, N: 22, TTLMillis: 1}}
		d := &deposed{renewed: renewed, asked: make(chan struct{})}
		w := &storeWatch{coordination: d, history: h, snap: &cluster.Snapshot{Lease: lease}, changed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.followExpiry(ctx, 0)
		}()
		<-d.asked
		<-d.asked // by now the first answer has been dealt with
		cancel()
		<-done
		if recorded := len(h.Entries()) > 0; recorded == renewed {
			t.Errorf("renewed %v, recorded as expired %v", renewed, recorded)
		}
	}
}
