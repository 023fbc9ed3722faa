package fencing

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox/bmc"
)

var wholeFence = []string{"claimed", "power_off", "verify", "fenced", "recover", "done"}

func checkFenced(t *testing.T, b *bench, r cluster.FenceRecord, err error) {
	t.Helper()
	if err != nil || r.Stage != cluster.FenceDone || r.Proof != ProofVerifiedOff {
		t.Fatalf("ended in %s with proof %q: %v (%s)", r.Stage, r.Proof, err, r.Result)
	}
	if !reflect.DeepEqual(b.store.record(), r) {
		t.Errorf("the store holds %+v", b.store.record())
	}
	if got := b.store.get(bRouter); got != cluster.RouterSecondary {
		t.Errorf("router state %v", got)
	}
	if got := b.store.get(bDaemon); got != cluster.DaemonFenced {
		t.Errorf("daemon state %v", got)
	}
	if on, offs, _ := b.node.state(); !on || offs == 0 {
		t.Errorf("machine on=%v after %d power cuts", on, offs)
	}
	if b.store.get(bAlive) != nil {
		t.Error("an alive record was left behind")
	}
	if b.store.locked {
		t.Error("the fence lock is still held")
	}
	if b.store.count() != 1 {
		t.Errorf("%d of the budget are spent", b.store.count())
	}
}

func TestFenceThroughARealController(t *testing.T) {
	b := newBench(t)
	device := startBMC(t, b.node, nil)
	b.Config = Config{Nodes: map[string]NodeConfig{"b": {Levels: [][]Device{{device}}}}}.WithDefaults()
	b.Runner = childRunner(t)
	started := time.Now()
	r, refusal, err := b.Fence(t.Context(), live(7), b.action())
	if refusal != nil {
		t.Fatalf("refused: %+v", refusal)
	}
	checkFenced(t, b, r, err)
	t.Logf("claimed to done in %s", time.Since(started))
	if got := b.store.stages(); !slices.Equal(got, wholeFence) {
		t.Errorf("history tells of %v", got)
	}
	var did []string
	for _, a := range r.Attempts {
		did = append(did, a.Action+"="+a.Result)
	}
	if !slices.Equal(did, []string{"off=off", "status=off", "on=on"}) {
		t.Errorf("attempts %v", did)
	}
}

func TestCleaningTouchesOnlyWhatTheProofAllows(t *testing.T) {
	b := newBench(t)
	if _, _, err := b.Fence(t.Context(), live(7), b.action()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memused": "0", "cpuload": "0.00", "runningdomains": "vm1 vm2"} {
		if got := b.store.get(cluster.Key{Kind: cluster.KeyNodeField, Node: "b", Name: name}); got != want {
			t.Errorf("%s is %v, want %s", name, got, want)
		}
	}

	h := newBench(t)
	h.store.put(bRouter, cluster.RouterClient)
	if _, _, err := h.Fence(t.Context(), live(7), h.action()); err != nil {
		t.Fatal(err)
	}
	if got := h.store.get(bRouter); got != cluster.RouterClient {
		t.Errorf("a hypervisor became %v", got)
	}
}

func TestAFailedFenceChangesNoRoleRecord(t *testing.T) {
	for name, breakIt := range map[string]func(*bench){"lying": func(b *bench) { b.lying = true }, "unreachable": func(b *bench) { b.broken = true }} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			breakIt(b)
			r, refusal, err := b.Fence(t.Context(), live(7), b.action())
			if err != nil || refusal != nil || r.Stage != cluster.FenceFailed {
				t.Fatalf("%s: %+v, %v", r.Stage, refusal, err)
			}
			if b.store.get(bRouter) != cluster.RouterPrimary || b.store.get(bDaemon) != cluster.DaemonRun {
				t.Error("a role record was changed")
			}
			if !strings.Contains(r.Result, "left as they are") {
				t.Errorf("result %q", r.Result)
			}
			// The controller heals: the retry succeeds and spends nothing more.
			b.lying, b.broken = false, false
			if due := DueNodes(b.snapshotNow()); !slices.Equal(due, []cluster.NodeID{"b"}) {
				t.Errorf("due: %v", due)
			}
			r, _, err = b.Resume(t.Context(), live(7), "b")
			checkFenced(t, b, r, err)
			if r.Tries != 2 {
				t.Errorf("%d tries", r.Tries)
			}
		})
	}
}

func TestNoDeviceIsARefusalAndAManualRecord(t *testing.T) {
	b := newBench(t)
	b.Config.Nodes = nil
	r, refusal, err := b.Fence(t.Context(), live(7), b.action())
	if err != nil || refusal == nil || refusal.Code != cluster.RefuseNoDevice || r.Stage != cluster.FenceManual {
		t.Fatalf("%s, %+v, %v", r.Stage, refusal, err)
	}
	if len(b.orders) != 0 || b.store.get(bRouter) != cluster.RouterPrimary {
		t.Errorf("orders %v, router state %v", b.orders, b.store.get(bRouter))
	}
	if !strings.Contains(r.Result, "fencing.nodes.b") || b.store.count() != 0 {
		t.Errorf("result %q, %d of the budget spent", r.Result, b.store.count())
	}
}

// A sign of life between the decision and the Multi to power_off, whatever it
// is and however late, wins: no order is sent.
func TestASignOfLifeBeforePowerOffCancels(t *testing.T) {
	signs := map[string]struct {
		show  func(*fakeStore)
		proof string
	}{
		"keepalive": {func(s *fakeStore) { s.put(bBeat, int64(2)) }, ""},
		"session":   {func(s *fakeStore) { s.put(bAlive, cluster.Alive{Incarnation: "boot-b.1"}) }, ""},
		"new start": {func(s *fakeStore) {
			s.put(bRecord, cluster.NodeRecord{ID: "b", Incarnation: "boot-b.2"})
			s.put(bAlive, cluster.Alive{Incarnation: "boot-b.2"})
			s.put(bBeat, int64(2))
		}, ""}, // of the same boot: its work may still run
		"new boot": {func(s *fakeStore) {
			s.put(bRecord, cluster.NodeRecord{ID: "b", Incarnation: "boot-b2.1"})
			s.put(bAlive, cluster.Alive{Incarnation: "boot-b2.1"})
			s.put(bBeat, int64(2))
		}, ProofReturned},
	}
	for name, sign := range signs {
		for _, when := range []string{"fence.claimed", "fence.power_off"} {
			t.Run(name+" at "+when, func(t *testing.T) {
				b := newBench(t)
				shown := false
				b.store.before = func(purpose string) {
					if purpose == when && !shown {
						shown = true
						sign.show(b.store)
					}
				}
				r, _, err := b.Fence(t.Context(), live(7), b.action())
				if err != nil || r.Stage != cluster.FenceCanceled || r.Proof != sign.proof {
					t.Errorf("%s, proof %q, %v", r.Stage, r.Proof, err)
				}
				if len(b.orders) != 0 {
					t.Errorf("orders %v were sent to a living node", b.orders)
				}
				if b.store.count() != 0 {
					t.Error("the budget was spent")
				}
			})
		}
	}
}

func TestASignOfLifeBeforeTheClaimIsARefusal(t *testing.T) {
	b := newBench(t)
	a := b.action()
	b.store.put(bBeat, int64(2))
	r, refusal, err := b.Fence(t.Context(), live(7), a)
	if err != nil || refusal == nil || r.ID != "" || len(b.store.commits) != 0 {
		t.Errorf("%+v, %+v, %v", r, refusal, err)
	}
}

func TestSwitchedOffBeforePowerOffWithdraws(t *testing.T) {
	for name, off := range map[string]func(*fakeStore){
		"maintenance": func(s *fakeStore) { s.put(cluster.Key{Kind: cluster.KeyMaintenance}, true) },
		"disabled": func(s *fakeStore) {
			s.put(cluster.Key{Kind: cluster.KeyFailover}, cluster.FailoverSettings{MaxCount: 1})
		},
	} {
		b := newBench(t)
		done := false
		b.store.before = func(purpose string) {
			if purpose == "fence.claimed" && !done {
				done = true
				off(b.store)
			}
		}
		if r, _, err := b.Fence(t.Context(), live(7), b.action()); err != nil || r.Stage != cluster.FenceCanceled || len(b.orders) != 0 {
			t.Errorf("%s: %s, orders %v, %v", name, r.Stage, b.orders, err)
		}
	}
}

func TestOnlyThePrimaryFences(t *testing.T) {
	b := newBench(t)
	b.store.put(leaseKey, cluster.Lease{Holder: "a", Incarnation: "boot-a.2", Epoch: 8})
	if _, _, err := b.Fence(t.Context(), live(7), b.action()); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("an earlier start of the primary's daemon: %v", err)
	}
	if len(b.store.commits) != 0 || len(b.orders) != 0 {
		t.Errorf("commits %v, orders %v", b.store.commits, b.orders)
	}
}

// The role is lost between any two writes: nothing more is written or ordered.
func TestARoleLostMidwayStopsTheFence(t *testing.T) {
	for _, stage := range wholeFence[1:] {
		b := newBench(t)
		lost := 0
		b.store.before = func(purpose string) {
			if purpose == "fence."+stage {
				lost = len(b.orders)
				b.store.put(leaseKey, cluster.Lease{Holder: "c", Incarnation: "boot-c.1", Epoch: 8})
			}
		}
		_, _, err := b.Fence(t.Context(), live(7), b.action())
		if !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("%s: %v", stage, err)
		}
		if got := string(b.store.record().Stage); got == stage || len(b.orders) != lost {
			t.Errorf("%s: the record stands in %s, orders %v", stage, got, b.orders)
		}
	}
}

func TestRenewalsOfOnesOwnLeaseAreNoObstacle(t *testing.T) {
	b := newBench(t)
	renewals := 0
	b.store.before = func(string) {
		if renewals%4 != 3 {
			b.store.put(leaseKey, cluster.Lease{Holder: "a", Incarnation: "boot-a.1", Epoch: 7, N: uint64(renewals)})
		}
		renewals++
	}
	r, _, err := b.Fence(t.Context(), live(7), b.action())
	checkFenced(t, b, r, err)
}

// The reply to each write in turn is lost, with and without effect: the fence
// ends the same, the budget is spent once and each stage is told once.
func TestLostRepliesChangeNothing(t *testing.T) {
	for i := range wholeFence {
		for _, mode := range []reply{lostApplied, lostDropped, notSent} {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.store.replies = append(make([]reply, i), mode)
				r, _, err := b.Fence(t.Context(), live(7), b.action())
				checkFenced(t, b, r, err)
				if got := b.store.stages(); !slices.Equal(got, wholeFence) {
					t.Errorf("reply %d lost (%d): history tells of %v", i, mode, got)
				}
			})
		}
	}
}

// The fencer dies before, in or after each write; the next primary carries on
// from the record and ends the same.
func TestANewPrimaryCarriesOnFromEveryStage(t *testing.T) {
	for i := 1; i < len(wholeFence); i++ {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			ctx, die := context.WithCancelCause(t.Context())
			commits := 0
			b.store.before = func(string) {
				if commits++; commits == i+1 {
					die(errors.New("the role ended"))
				}
			}
			if _, _, err := b.Fence(ctx, live(7), b.action()); err == nil {
				t.Fatal("the fence went on without the role")
			}
			b.store.before = nil
			left := b.store.record().Stage
			if string(left) != wholeFence[i-1] {
				t.Fatalf("died before write %d, the record stands in %s", i, left)
			}
			if b.store.locked {
				t.Error("the fence lock is still held")
			}
			b.store.put(leaseKey, cluster.Lease{Holder: "c", Incarnation: "boot-c.1", Epoch: 8})
			b.Owner = cluster.LockOwner{Version: 1, Node: "c", Incarnation: "boot-c.1"}
			if due := DueNodes(b.snapshotNow()); !slices.Equal(due, []cluster.NodeID{"b"}) {
				t.Errorf("due in %s: %v", left, due)
			}
			r, err := b.resumeWhole(t)
			checkFenced(t, b, r, err)
			if r.By != "c" || r.Epoch != 8 || r.Tries != 1 {
				t.Errorf("after %s: by %s in epoch %d, try %d", left, r.By, r.Epoch, r.Tries)
			}
		})
	}
}

func TestAResumerVerifiesAndDoesNotTrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.store.put(bFence, cluster.FenceRecord{
			ID: "old", Node: "b", Incarnation: "boot-b.1", Epoch: 6, By: "c", Stage: cluster.FenceVerify, Tries: 1,
			Keepalive: b.action().Keepalive, Attempts: []cluster.FenceAttempt{{Device: "bmc", Action: ActionOff, Result: ResultOff}},
		})
		// The record says off; the machine has power.
		r, _, err := b.Resume(t.Context(), live(7), "b")
		if err != nil || r.Stage != cluster.FenceFailed {
			t.Fatalf("%s, %v", r.Stage, err)
		}
		if b.store.get(bRouter) != cluster.RouterPrimary {
			t.Error("the role records were cleaned on another's word")
		}
	})
}

func TestAResumerPowersOnOnlyAfterTheEarlierOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		_ = b.node.Off()
		b.store.put(bFence, cluster.FenceRecord{
			ID: "old", Node: "b", Incarnation: "boot-b.1", Epoch: 6, By: "c", Stage: cluster.FencePowerOff, Tries: 1, Keepalive: b.action().Keepalive,
		})
		poweredOn := false
		b.during = func(action string) { poweredOn = poweredOn || action == ActionOn }
		if r, _, err := b.Resume(t.Context(), live(7), "b"); err != nil || r.Stage != cluster.FenceRecover || poweredOn {
			t.Fatalf("%s, powered on %v, %v: an order may be under way, and another node must not wait for it", r.Stage, poweredOn, err)
		}
		left := cluster.Versioned[cluster.FenceRecord]{Present: true, Value: b.store.get(bFence).(cluster.FenceRecord), SeenAt: 1}
		if b.Due(left, left.SeenAt.Add(DefaultTimeout)) {
			t.Error("due while the earlier order may still be carried out")
		}
		if !b.Due(left, left.SeenAt.Add(DefaultTimeout+2*childSlack)) {
			t.Error("never due again")
		}
		if r, _, err := b.Resume(t.Context(), live(7), "b"); err != nil || r.Stage != cluster.FenceDone || !poweredOn {
			t.Fatalf("%s, powered on %v, %v", r.Stage, poweredOn, err)
		}
	})
}

func TestANodeThatRegistersAfterTheProofIsLeftAlone(t *testing.T) {
	for name, daemon := range map[string]cluster.DaemonState{"with its state": cluster.DaemonInit, "before its state": cluster.DaemonRun} {
		b := newBench(t)
		b.store.before = func(purpose string) {
			if purpose == "fence.recover" && b.store.get(bAlive) == nil {
				b.store.put(bRecord, cluster.NodeRecord{ID: "b", Incarnation: "boot-b.2"})
				b.store.put(bAlive, cluster.Alive{Incarnation: "boot-b.2"})
				if daemon != cluster.DaemonRun {
					b.store.put(bDaemon, daemon)
				}
			}
		}
		r, _, err := b.Fence(t.Context(), live(7), b.action())
		if err != nil || r.Stage != cluster.FenceDone {
			t.Fatalf("%s: %s, %v", name, r.Stage, err)
		}
		if got := b.store.get(bDaemon); got != daemon {
			t.Errorf("%s: the new start's daemon state became %v", name, got)
		}
	}
}

func TestOneFenceAtATime(t *testing.T) {
	b := newBench(t)
	b.store.locked = true
	if _, _, err := b.Fence(t.Context(), live(7), b.action()); !errors.Is(err, cluster.ErrLockTimeout) {
		t.Errorf("fenced beside another: %v", err)
	}
	if len(b.store.commits) != 0 {
		t.Errorf("commits %v", b.store.commits)
	}
}

func TestARoleThatEndsDuringAnAttemptLeavesTheStage(t *testing.T) {
	b := newBench(t)
	ctx, end := context.WithCancelCause(t.Context())
	ended := errors.New("the role ended")
	b.during = func(string) { end(ended) }
	_, _, err := b.Fence(ctx, live(7), b.action())
	if !errors.Is(err, ended) {
		t.Errorf("ended with %v", err)
	}
	if got := b.store.record().Stage; got != cluster.FencePowerOff || b.store.locked {
		t.Errorf("the record stands in %s, lock held %v", got, b.store.locked)
	}
}

// A guard that is lost in an attempt leaves the record where no start of the
// node registers, for the order may be out still (I5); the fence is carried on
// once there is a guard again.
func TestAGuardThatIsLostInAnAttemptLeavesTheStage(t *testing.T) {
	b := newBench(t)
	b.lost = true
	if r, _, err := b.Fence(t.Context(), live(7), b.action()); !errors.Is(err, cluster.ErrUnknown) || r.Stage != cluster.FencePowerOff {
		t.Fatalf("%+v, %v", r, err)
	}
	b.lost = false
	if r, err := b.resumeWhole(t); err != nil || r.Stage != cluster.FenceDone || r.Proof != "verified_off" {
		t.Errorf("%+v, %v", r, err)
	}
}

// live is the right of an activity at this epoch that never ends.
func live(e cluster.Epoch) cluster.Token {
	lease := cluster.NodeLeaseID{Holder: "a", Start: "s", Epoch: e}
	return cluster.MintToken(cluster.NewTokenWire(lease, "fence-1", "fence-1", false), func() error { return nil })
}

func TestResumeWithoutARecord(t *testing.T) {
	if _, _, err := newBench(t).Resume(t.Context(), live(7), "b"); !errors.Is(err, cluster.ErrNotFound) {
		t.Error(err)
	}
}

func TestANewDeathOfTheSameNodeIsANewFence(t *testing.T) {
	b := newBench(t)
	b.store.put(bFence, cluster.FenceRecord{ID: "old", Node: "b", Incarnation: "boot-b.0", Stage: cluster.FencePowerOff, Tries: 3, Epoch: 5})
	r, _, err := b.Fence(t.Context(), live(7), b.action())
	checkFenced(t, b, r, err)
	if r.ID == "old" || r.Incarnation != "boot-b.1" || r.Tries != 1 {
		t.Errorf("record %+v", r)
	}
}

var _ bmc.Power = (*machine)(nil)
