package fencing

import (
	"testing"
	"time"

	"pvc.internal/cluster"
)

// TestTheBoundIsNotPassedBeforeTheMinuteThatAShutdownInMaintenanceLeaves: the
// lost node held the role and its daemon was stopped in maintenance, so that its
// guard feeds for 60 s more without a keepalive. Its successor takes the role
// when the lengthened lease has run out, 62 s after it was written.
func TestTheBoundIsNotPassedBeforeTheMinuteThatAShutdownInMaintenanceLeaves(t *testing.T) {
	const linger, lease = 60 * time.Second, 62*time.Second + 100*time.Millisecond
	for name, word := range map[string]cluster.WatchdogWord{
		"stored": goodWord, "not stored": {Armed: true, Hardware: true, TimeoutMS: 5000, StopMS: 4000},
	} {
		inRealm(t, func(t *testing.T, r *realm) {
			r.broken["left"], r.broken["bmc"] = true, true
			r.config.FailedFence, r.config.Watchdog = PolicyMigrate, true
			r.word(word)
			r.keepalive()
			p := r.lead("a")
			written := p.seenKeepalive() // and with it the long lease
			time.Sleep(lease)            // the role is taken only then
			bites := written.Add(linger + time.Duration(word.TimeoutMS)*time.Millisecond)
			if !word.Stored {
				bites = bites.Add(time.Duration(word.TimeoutMS) * time.Millisecond)
			}
			record := p.watch(time.Minute, true)
			if record.Stage != cluster.FenceDone || record.Proof != ProofWatchdog {
				t.Fatalf("%s: ended in %s by %q: %s", name, record.Stage, record.Proof, record.Result)
			}
			if now := p.clock.Now(); now < bites || now > bites.Add(10*time.Second) {
				t.Errorf("%s: proven dead %v after its watchdog may bite", name, now.Sub(bites))
			}
		})
	}
}

func TestReign(t *testing.T) {
	var r reign
	var now cluster.Instant
	clock := clockFunc(func() cluster.Instant { return now })
	r.see(1, nil)
	if r.began() != cluster.Never {
		t.Error("began without a clock")
	}
	for _, c := range []struct {
		epoch cluster.Epoch
		at    cluster.Instant
		want  cluster.Instant
	}{{3, 10, 10}, {3, 20, 10}, {2, 30, 10}, {4, 40, 40}} {
		now = c.at
		if r.see(c.epoch, clock); r.began() != c.want {
			t.Errorf("epoch %d at %d: since %d, want %d", c.epoch, c.at, r.began(), c.want)
		}
	}
}

// A fence that an earlier primary left with its order out, and that nobody may
// carry on since too few node leases are held, ends once no attempt of it can run
// any more: the node waits for that before it registers, and without it there may
// never be enough leases (I7). No order is sent for it.
func TestAFenceThatCannotBeCarriedOnLetsItsNodeRegister(t *testing.T) {
	for _, stage := range []cluster.FenceStage{cluster.FencePowerOff, cluster.FenceVerify} {
		inRealm(t, func(t *testing.T, r *realm) {
			p := r.lead("a")
			p.fencer.Reign(r.snap().Lease.Value.Epoch)
			r.plantRecord(stage, r.snap().Nodes[bID].Record.Value.Incarnation, func(f *cluster.FenceRecord) { f.Epoch-- })
			ripe := func() bool {
				ripe, try := p.fencer.Ripe(r.snap().Nodes[bID], r.clock.Now())
				return ripe && !try
			}
			if ripe() {
				t.Errorf("%s: ripe at once", stage)
			}
			time.Sleep(DefaultTimeout + 2*childSlack)
			if !ripe() {
				t.Fatalf("%s: nobody ends it", stage)
			}
			record, _, err := p.fencer.Settle(p.ctx, live(7), bID, false)
			if err != nil || record.Stage != cluster.FenceFailed || len(r.orders) != 0 {
				t.Errorf("%s led to %s after %v: %v", stage, record.Stage, r.orders, err)
			}
		})
	}
}
