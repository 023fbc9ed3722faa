package fencing

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
)

// TestARecordInAnUnknownStageIsReplacedAndNotCarriedOn: a newer program's, or a
// hand's. It must neither be due for ever nor keep its node from being fenced.
func TestARecordInAnUnknownStageIsReplacedAndNotCarriedOn(t *testing.T) {
	b := newBench(t)
	b.store.put(bFence, cluster.FenceRecord{ID: "odd", Node: "b", Incarnation: "boot-b.1", Stage: "levitating", Epoch: 3, By: "c"})
	snap, now := b.snapshotNow()
	if Due(snap.Nodes["b"].Fence, now) {
		t.Error("a record in a stage that nobody can carry on is due, each tick anew")
	}
	r, refusal, err := b.Fence(t.Context(), live(7), b.action())
	if refusal != nil {
		t.Fatalf("refused: %+v", refusal)
	}
	checkFenced(t, b, r, err)
	if r.ID == "odd" {
		t.Error("the unreadable record was carried on")
	}
}

// TestRubbishInARecordHitsNobody puts wrong figures into an otherwise legal record.
func TestRubbishInARecordHitsNobody(t *testing.T) {
	for name, r := range map[string]cluster.FenceRecord{
		"other incarnation":  {ID: "x", Node: "b", Incarnation: "boot-b.0", Stage: cluster.FenceClaimed, Epoch: 7, By: "a", Keepalive: 1},
		"no incarnation":     {ID: "x", Node: "b", Stage: cluster.FenceClaimed, Epoch: 7, By: "a", Keepalive: 1},
		"keepalive unknown":  {ID: "x", Node: "b", Incarnation: "boot-b.1", Stage: cluster.FenceClaimed, Epoch: 7, By: "a"},
		"soft, older return": {ID: "x", Node: "b", Incarnation: "boot-b.0", Stage: cluster.FenceSoft, Epoch: 7, By: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.store.put(bFence, r)
			got, _, err := b.Resume(t.Context(), live(7), "b")
			if err != nil || got.Stage != cluster.FenceCanceled || len(b.orders) != 0 {
				t.Errorf("stage %s, orders %v: %v; want it canceled and nothing ordered", got.Stage, b.orders, err)
			}
		})
	}
}

// TestAControllerThatReadsOffAndThenOnIsNoProof: it lied, or somebody powered on.
func TestAControllerThatReadsOffAndThenOnIsNoProof(t *testing.T) {
	b := newBench(t)
	b.during = func(action string) {
		if action == ActionStatus {
			_ = b.node.On()
		}
	}
	r, _, err := b.Fence(t.Context(), live(7), b.action())
	if err != nil || r.Stage != cluster.FenceFailed || r.Proof != "" {
		t.Errorf("stage %s, proof %q: %v", r.Stage, r.Proof, err)
	}
	if b.store.get(bRouter) != cluster.RouterPrimary {
		t.Error("role records were cleaned without a proof")
	}
}

// TestALateResultAfterTheRoleWasGainedAnewIsDropped: an order outlives the
// epoch in which it was given, and the same daemon is primary again.
func TestALateResultAfterTheRoleWasGainedAnewIsDropped(t *testing.T) {
	synctest.Test(t, lateResult)
}

func lateResult(t *testing.T) {
	b := newBench(t)
	b.during = func(action string) {
		if action == ActionOff {
			b.store.put(leaseKey, cluster.Lease{Holder: "a", Incarnation: "boot-a.1", Epoch: 9})
		}
	}
	r, _, err := b.Fence(t.Context(), live(7), b.action())
	if err == nil || b.store.record().Stage != cluster.FencePowerOff {
		t.Errorf("stage %s in the store (%s told): %v", b.store.record().Stage, r.Stage, err)
	}
	b.during = nil
	r, err = b.resumeWhole(t)
	checkFenced(t, b, r, err)
}

// TestTheFencerDiesAtEveryCommit ends the role at each Multi in turn, before and
// after it took effect; the next primary brings every one to its end.
func TestTheFencerDiesAtEveryCommit(t *testing.T) {
	for _, mode := range []reply{lostDropped, lostApplied} {
		for at := range len(wholeFence) {
			synctest.Test(t, func(t *testing.T) { dieAtCommit(t, at, mode) })
		}
	}
}

func dieAtCommit(t *testing.T, at int, mode reply) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	left := at
	b.store.before = func(string) {
		if left--; left == -1 {
			b.store.mu.Lock()
			b.store.replies = []reply{mode}
			b.store.mu.Unlock()
			time.AfterFunc(commitPause/2, cancel) // while it waits to ask again
		}
	}
	_, _, _ = b.Fence(ctx, live(7), b.action())
	cancel()
	b.store.before = nil
	b.store.put(leaseKey, cluster.Lease{Holder: "a", Incarnation: "boot-a.1", Epoch: 8})
	var r cluster.FenceRecord
	var err error
	if snap, now := b.snapshotNow(); Due(snap.Nodes["b"].Fence, now) {
		r, err = b.resumeWhole(t)
	} else if r = b.store.record(); !r.Ended() {
		r, _, err = b.Fence(t.Context(), live(7), b.action())
	}
	if err != nil || r.Stage != cluster.FenceDone || b.store.count() != 1 {
		t.Errorf("died at commit %d (applied %v): ended in %s, %d of the budget spent: %v", at, mode == lostApplied, r.Stage, b.store.count(), err)
	}
}

// spoiled is a store whose switches cannot be read.
type spoiled struct {
	*fakeStore
	spoil func(*cluster.Snapshot)
}

func (s spoiled) Refresh(ctx context.Context) (*cluster.Snapshot, error) {
	snap, err := s.fakeStore.Refresh(ctx)
	if err == nil {
		s.spoil(snap)
	}
	return snap, err
}

// TestSwitchesThatCannotBeReadForbid: damage must not switch fencing on again.
func TestSwitchesThatCannotBeReadForbid(t *testing.T) {
	rubbish := errors.New("rubbish")
	for name, spoil := range map[string]func(*cluster.Snapshot){
		"failover settings": func(s *cluster.Snapshot) {
			s.Failover = cluster.Versioned[cluster.FailoverSettings]{Present: true, Err: rubbish}
		},
		"maintenance": func(s *cluster.Snapshot) { s.Maintenance = cluster.Versioned[bool]{Present: true, Err: rubbish} },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.Store = spoiled{b.store, spoil}
			if _, refusal, err := b.Fence(t.Context(), live(7), b.action()); err != nil || refusal == nil || b.store.record().ID != "" {
				t.Errorf("claimed %+v, refusal %+v: %v", b.store.record(), refusal, err)
			}
			b.store.put(bFence, cluster.FenceRecord{ID: "x", Node: "b", Incarnation: "boot-b.1", Stage: cluster.FenceClaimed, Epoch: 7, By: "a", Keepalive: b.action().Keepalive})
			r, _, err := b.Resume(t.Context(), live(7), "b")
			if err != nil || r.Stage != cluster.FenceCanceled || len(b.orders) != 0 {
				t.Errorf("resumed to %s, orders %v: %v", r.Stage, b.orders, err)
			}
		})
	}
}

// lagging is a store whose view of the fence record is one look behind.
type lagging struct {
	*fakeStore
	before *cluster.Versioned[cluster.FenceRecord]
}

func (s lagging) Refresh(ctx context.Context) (*cluster.Snapshot, error) {
	snap, err := s.fakeStore.Refresh(ctx)
	if err == nil {
		view := snap.Nodes["b"]
		now := view.Fence
		view.Fence, *s.before = *s.before, now
		snap.Nodes["b"] = view
	}
	return snap, err
}

// TestAViewThatLagsBehindOnesOwnWrites is no other fencer's doing: the record's
// version decides.
func TestAViewThatLagsBehindOnesOwnWrites(t *testing.T) {
	b := newBench(t)
	b.Store = lagging{b.store, &cluster.Versioned[cluster.FenceRecord]{}}
	r, _, err := b.Fence(t.Context(), live(7), b.action())
	checkFenced(t, b, r, err)
}
