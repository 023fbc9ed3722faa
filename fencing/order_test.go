package fencing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// obeyed carries an order out as the agent of a primary does, and tries again
// where the fence lock is held or a write was lost.
func (p *primary) obeyed(o cluster.Versioned[cluster.FenceOrder]) (cluster.FenceRecord, *cluster.Refusal) {
	for range 20 {
		if p.isDead() {
			break
		}
		record, refusal, err := p.fencer.Order(p.ctx, live(7), o, p.snap().Nodes[bID].Keepalive.Mzxid)
		if err == nil {
			return record, refusal
		}
		time.Sleep(time.Second)
	}
	return cluster.FenceRecord{}, nil
}

func fenceOrder() cluster.FenceOrder {
	return cluster.FenceOrder{ID: "o1", Incarnation: bStart, Action: cluster.OrderFence, By: "ann", Reason: "it hangs"}
}

// A node that lives, keepalives and all, is fenced by an operator's order: the
// order goes with the claim, the budget is not touched.
func TestAnOrderedFenceOfALivingNode(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		p := r.lead("a")
		var life sync.WaitGroup
		beating, stop := context.WithCancel(r.ctx)
		life.Go(func() {
			for n := int64(10); beating.Err() == nil; n++ {
				r.oper.Commit(beating, cluster.Txn{Purpose: "beat", Ops: []cluster.Op{cluster.Set(nodeKey(cluster.KeyKeepalive), cluster.AnyVersion, n)}})
				time.Sleep(100 * time.Millisecond)
			}
		})
		r.commit(cluster.Op{Kind: cluster.OpCreateEphemeral, Key: nodeKey(cluster.KeyAlive), Value: cluster.Alive{Incarnation: bStart}})
		order := r.order(fenceOrder())
		stood := map[string]bool{} // whether the order stood when each stage was about to be written
		p.fencer.Store = beforeCommit{p, func(purpose string) { stood[purpose] = r.stands() }}
		record, refusal := p.obeyed(order)
		stop()
		life.Wait()
		if record.Stage != cluster.FenceDone || refusal != nil || record.Order != "o1" || !strings.Contains(record.Reason, "ann") {
			t.Errorf("ended in %s, %+v: %+v", record.Stage, refusal, record)
		}
		if !stood["fence.claimed"] || stood["fence.power_off"] {
			t.Errorf("the order stood at %v; it is to go with the claim", stood)
		}
		if r.stands() {
			t.Error("the order was left behind")
		}
		if n := r.snap().Failover.Value.Count; n != 0 {
			t.Errorf("%d of the automatic failover's budget spent", n)
		}
	})
}

// An ordered fence of a living node that fails is over: it must not hit the node
// when its device answers again, long after. That of a silent one is tried on.
func TestAnOrderedFenceThatFails(t *testing.T) {
	for _, living := range []bool{true, false} {
		inRealm(t, func(t *testing.T, r *realm) {
			r.broken["left"], r.broken["bmc"] = true, true
			p := r.lead("a")
			record, _ := p.obeyed(r.order(fenceOrder()))
			if record.Stage != cluster.FenceFailed {
				t.Fatalf("stands in %s", record.Stage)
			}
			if living {
				r.keepalive()
			}
			p.watch(time.Second, false)
			r.mu.Lock()
			r.broken = map[string]bool{"right": true}
			r.mu.Unlock()
			record = p.watch(time.Minute, false)
			want := cluster.FenceDone
			if living {
				want = cluster.FenceCanceled
			}
			if record.Stage != want || living && (!r.on["bmc"] || !strings.Contains(record.Result, "off of bmc: unknown")) {
				t.Errorf("living %v: %s, power %v: %s", living, record.Stage, r.on, record.Result)
			}
		})
	}
}

// The primary dies at each write of an ordered fence: it is carried out once.
func TestAnOrderIsNeitherLostNorDoubled(t *testing.T) {
	for at := 1; at <= wholeCommits; at++ {
		for _, after := range []bool{false, true} {
			inRealm(t, func(t *testing.T, r *realm) {
				what := fmt.Sprintf("killed at commit %d, applied %v", at, after)
				p := r.lead("a")
				order := r.order(fenceOrder())
				p.doomed, p.after = at, after
				p.obeyed(order)
				if !p.isDead() {
					t.Fatalf("%s: it lives", what)
				}
				c := r.lead("c")
				if left := r.snap().Nodes[bID].Order; left.Present {
					c.obeyed(left)
				}
				record := c.watch(3*time.Minute, false)
				if record.Stage != cluster.FenceDone || record.Order != "o1" || !slices.Equal(r.told(), wholeFence) {
					t.Errorf("%s: ended in %s, told %v", what, record.Stage, r.told())
				}
				if r.stands() {
					t.Errorf("%s: the order was left behind", what)
				}
			})
		}
	}
}

// plantRecord leaves a record of an earlier fence.
func (r *realm) plantRecord(stage cluster.FenceStage, i cluster.Incarnation, edit func(*cluster.FenceRecord)) {
	record := cluster.FenceRecord{ID: "left", Node: bID, Incarnation: i, Epoch: 1, By: "c", Stage: stage, Tries: 1, Keepalive: r.snap().Nodes[bID].Keepalive.Mzxid}
	if edit != nil {
		edit(&record)
	}
	r.commit(cluster.Create(nodeKey(cluster.KeyFence), record))
}

// What an order does to what is there, or why it is refused. Nothing is ordered
// of a device by a refused one, and it stands until its refusal is written.
func TestOrdersAndWhatStandsAgainstThem(t *testing.T) {
	fence := fenceOrder()
	with := func(edit func(*cluster.FenceOrder)) cluster.FenceOrder { o := fence; edit(&o); return o }
	confirm := with(func(o *cluster.FenceOrder) { o.Action = cluster.OrderConfirm })
	cancel := with(func(o *cluster.FenceOrder) { o.Action = cluster.OrderCancel })
	maintenance := func(r *realm) {
		r.commit(cluster.Set(cluster.Key{Kind: cluster.KeyMaintenance}, cluster.AnyVersion, true))
	}
	left := func(stage cluster.FenceStage) func(*realm) {
		return func(r *realm) { r.plantRecord(stage, bStart, nil) }
	}
	proven := func(r *realm) {
		r.plantRecord(cluster.FenceDone, bStart, func(f *cluster.FenceRecord) { f.Proof = ProofVerifiedOff })
	}
	cases := []struct {
		name  string
		order cluster.FenceOrder
		plant func(*realm)
		code  cluster.RefusalCode // "": carried out
		stage cluster.FenceStage  // afterwards
		proof string
	}{
		{"fence", fence, nil, "", cluster.FenceDone, ProofVerifiedOff},
		{"fence, an older start's record", fence, func(r *realm) { r.plantRecord(cluster.FenceDone, "boot-b.0", nil) }, "", cluster.FenceDone, ProofVerifiedOff},
		{"fence, after a failed one", fence, left(cluster.FenceFailed), "", cluster.FenceDone, ProofVerifiedOff},
		{"fence, after one without a device", fence, left(cluster.FenceManual), "", cluster.FenceDone, ProofVerifiedOff},
		{"fence, under way", fence, left(cluster.FencePowerOff), cluster.RefuseUnderWay, cluster.FencePowerOff, ""},
		{"fence, proven already", fence, proven, cluster.RefuseProven, cluster.FenceDone, ProofVerifiedOff},
		{"fence in maintenance", fence, maintenance, cluster.RefuseMaintenance, "", ""},
		{"fence while failover is disabled", fence, func(r *realm) {
			r.commit(cluster.Create(cluster.Key{Kind: cluster.KeyFailover}, cluster.FailoverSettings{MaxCount: 1, Count: 1}))
		}, "", cluster.FenceDone, ProofVerifiedOff},
		{"fence of an older start", with(func(o *cluster.FenceOrder) { o.Incarnation = "boot-b.0" }), nil, cluster.RefuseIncarnation, "", ""},
		{"fence of no start", with(func(o *cluster.FenceOrder) { o.Incarnation = "" }), nil, cluster.RefuseIncarnation, "", ""},
		{"fence of a node that starts", fence, func(r *realm) { r.register("boot-b2.1") }, cluster.RefuseIncarnation, "", ""},
		{"what is that", with(func(o *cluster.FenceOrder) { o.Action = "tickle" }), nil, cluster.RefuseOrder, "", ""},

		{"confirm", confirm, nil, "", cluster.FenceDone, ProofConfirmed},
		{"confirm, failed", confirm, left(cluster.FenceFailed), "", cluster.FenceDone, ProofConfirmed},
		{"confirm, no device", confirm, left(cluster.FenceManual), "", cluster.FenceDone, ProofConfirmed},
		{"confirm, no reason", with(func(o *cluster.FenceOrder) { o.Action, o.Reason = cluster.OrderConfirm, "" }), nil, cluster.RefuseNoReason, "", ""},
		{"confirm, proven already", confirm, proven, cluster.RefuseProven, cluster.FenceDone, ProofVerifiedOff},
		{"confirm in maintenance", confirm, maintenance, "", cluster.FenceDone, ProofConfirmed},

		{"cancel a claim", cancel, left(cluster.FenceClaimed), "", cluster.FenceManual, ""},
		{"cancel a soft stop", cancel, left(cluster.FenceSoft), "", cluster.FenceManual, ""},
		{"cancel a failed one", cancel, left(cluster.FenceFailed), "", cluster.FenceManual, ""},
		{"cancel what is out", cancel, left(cluster.FenceVerify), cluster.RefuseUnderWay, cluster.FenceVerify, ""},
		{"cancel nothing", cancel, nil, cluster.RefuseNoFence, "", ""},
		{"cancel what is over", cancel, proven, cluster.RefuseNoFence, cluster.FenceDone, ProofVerifiedOff},
	}
	for _, c := range cases {
		inRealm(t, func(t *testing.T, r *realm) {
			if c.plant != nil {
				c.plant(r)
			}
			p := r.lead("a")
			record, refusal := p.obeyed(r.order(c.order))
			code := cluster.RefusalCode("")
			if refusal != nil {
				code = refusal.Code
			}
			stands := r.stands()
			got := r.record()
			if code != c.code || stands != (c.code != "") || (record.ID == "") != (c.code != "") {
				t.Errorf("%s: refusal %+v, the order stands: %v", c.name, refusal, stands)
			}
			if got.Stage != c.stage || got.Proof != c.proof {
				t.Errorf("%s: stands in %s with proof %q, want %s, %q", c.name, got.Stage, got.Proof, c.stage, c.proof)
			}
			if (c.code != "" || c.order.Action != cluster.OrderFence) && len(r.orders) != 0 {
				t.Errorf("%s: ordered %v", c.name, r.orders)
			}
			if c.proof == ProofConfirmed && (!strings.Contains(got.Result, "ann") || !strings.Contains(got.Result, "it hangs")) {
				t.Errorf("%s: who vouched and why is not told: %q", c.name, got.Result)
			}
		})
	}
}

// The primary does not fence itself, whoever orders it.
func TestNobodyFencesItself(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		p := r.lead("b")
		if _, refusal := p.obeyed(r.order(fenceOrder())); refusal == nil || refusal.Code != cluster.RefuseOneself {
			t.Errorf("%+v", refusal)
		}
	})
}

// A sign of life in the last moment before a confirmation is written wins.
func TestAConfirmationAndASignOfLifeCannotBothWin(t *testing.T) {
	for name, show := range map[string]func(*realm){
		"keepalive": (*realm).keepalive,
		"new boot":  func(r *realm) { r.register("boot-b2.1") },
	} {
		inRealm(t, func(t *testing.T, r *realm) {
			p := r.lead("a")
			o := fenceOrder()
			o.Action = cluster.OrderConfirm
			order := r.order(o)
			var once sync.Once
			p.fencer.Store = beforeCommit{p, func(purpose string) {
				if purpose == "fence.fenced" {
					once.Do(func() { show(r) })
				}
			}}
			record, refusal, err := p.fencer.Order(p.ctx, live(7), order, r.snap().Nodes[bID].Keepalive.Mzxid)
			if record.Proof != "" || refusal == nil || r.record().Proof != "" {
				t.Errorf("%s: proof %q, refusal %+v, %v", name, record.Proof, refusal, err)
			}
		})
	}
}

// A canceled fence stays so: no proof by time, no retry. The node's return, a
// confirmation or a new order goes on from there.
func TestAHeldFenceIsLeftAlone(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		r.broken["left"], r.broken["bmc"] = true, true
		r.config.FailedFence, r.config.Watchdog = PolicyMigrate, true
		r.word(goodWord)
		p := r.lead("a")
		p.watch(3*time.Second, true)
		o := fenceOrder()
		o.Action = cluster.OrderCancel
		if record, refusal := p.obeyed(r.order(o)); record.Stage != cluster.FenceManual || !record.Held || refusal != nil {
			t.Fatalf("%+v, %+v", record, refusal)
		}
		made := len(r.orders)
		record := p.watch(2*time.Minute, false)
		if record.Stage != cluster.FenceManual || record.Proof != "" || len(r.orders) != made {
			t.Errorf("stands in %s with proof %q after %d more orders", record.Stage, record.Proof, len(r.orders)-made)
		}
		a := cluster.Action{Kind: cluster.ActionFence, Node: bID, Incarnation: bStart, Keepalive: r.snap().Nodes[bID].Keepalive.Mzxid}
		if _, refusal, err := p.fencer.Fence(p.ctx, live(7), a); err != nil || refusal == nil || !strings.Contains(refusal.Detail, "cancelled by ann") {
			t.Errorf("failover of its own accord: %+v, %v", refusal, err)
		}
		o.ID, o.Action = "o2", cluster.OrderConfirm
		if record, _ := p.obeyed(r.order(o)); record.Proof != ProofConfirmed || record.Held {
			t.Errorf("%+v", record)
		}
	})
}

// The order stands again, put back by a writer who got no reply: it has had its
// effect, whatever became of that, and ends without another.
func TestAnOrderThatStandsAgainEnds(t *testing.T) {
	for _, stage := range []cluster.FenceStage{cluster.FenceFailed, cluster.FenceDone, cluster.FenceManual} {
		for _, lost := range []int{0, 1} {
			inRealm(t, func(t *testing.T, r *realm) {
				r.plantRecord(stage, bStart, func(f *cluster.FenceRecord) { f.Order, f.Held = "o1", stage == cluster.FenceManual })
				p := r.lead("a")
				left := lost
				p.fencer.Store = lostReply{p, "fence.order.done", &left}
				record, refusal := p.obeyed(r.order(fenceOrder()))
				if r.stands() || refusal != nil || record.Stage != stage || len(r.orders) != 0 {
					t.Errorf("%s, %d replies lost: stands %v, %s, %+v, ordered %v", stage, lost, r.stands(), record.Stage, refusal, r.orders)
				}
			})
		}
	}
}

// A late answer to an order that was answered leaves the next one standing.
func TestALateAnswerLeavesTheNextOrder(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		p := r.lead("a")
		first := r.order(fenceOrder())
		p.obeyed(first)
		next := fenceOrder()
		next.ID = "o2"
		second := r.order(next)
		if _, _, err := p.fencer.Order(p.ctx, live(7), first, 0); err != nil || !r.stands() {
			t.Errorf("by the fencer: %v, stands %v", err, r.stands())
		}
		res := r.oper.Commit(r.ctx, cluster.Txn{Purpose: "test", Ops: []cluster.Op{cluster.EndOrder(bID, first)}})
		if res.Outcome != cluster.OutcomeConflict || !r.stands() {
			t.Errorf("by a write that was under way: %s, stands %v", res.Outcome, r.stands())
		}
		if _, refusal := p.obeyed(second); refusal == nil || refusal.Code != cluster.RefuseProven {
			t.Errorf("the next: %+v", refusal)
		}
	})
}

// An operator's fence that was left before its first try is aimed at a living
// node for a while, and then at a silent one only; each later try only at that.
func TestHowLongAnOrderIsAimedAtALivingNode(t *testing.T) {
	for name, c := range map[string]struct {
		wait  time.Duration
		tries int
		stage cluster.FenceStage
		end   cluster.FenceStage
	}{
		"soon":                   {orderAim - time.Minute, 0, cluster.FenceClaimed, cluster.FenceDone},
		"soon, being asked":      {orderAim - time.Minute, 0, cluster.FenceSoft, cluster.FenceDone},
		"long after":             {orderAim + time.Minute, 0, cluster.FenceClaimed, cluster.FenceCanceled},
		"long after, from soft":  {orderAim + time.Minute, 0, cluster.FenceSoft, cluster.FenceCanceled},
		"a try failed":           {0, 1, cluster.FenceFailed, cluster.FenceCanceled},
		"a later try has begun":  {0, 1, cluster.FenceClaimed, cluster.FenceCanceled},
		"and got as far as soft": {0, 2, cluster.FenceSoft, cluster.FenceCanceled},
	} {
		inRealm(t, func(t *testing.T, r *realm) {
			p := r.lead("a")
			r.plantRecord(c.stage, bStart, func(f *cluster.FenceRecord) { f.Order, f.Tries = "o1", c.tries })
			p.watchNothing(c.wait)
			r.keepalive()
			record := p.watch(time.Minute, false)
			if record.Stage != c.end || (len(r.orders) > 0) != (c.end == cluster.FenceDone) {
				t.Errorf("%s: %s after %v: %s", name, record.Stage, r.orders, record.Result)
			}
		})
	}
}

// watchNothing lets time pass with the primary's view kept fresh.
func (p *primary) watchNothing(d time.Duration) {
	time.Sleep(d)
	_, err := p.Refresh(p.ctx)
	p.must(err)
}

// A sign of life in the last moment before a later try of an order wins.
func TestALaterTryAndASignOfLifeCannotBothWin(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		p := r.lead("a")
		r.plantRecord(cluster.FenceClaimed, bStart, func(f *cluster.FenceRecord) { f.Order = "o1" })
		var once sync.Once
		p.fencer.Store = beforeCommit{p, func(purpose string) {
			if purpose == "fence.power_off" {
				once.Do(r.keepalive)
			}
		}}
		if record := p.watch(time.Minute, false); record.Stage != cluster.FenceCanceled || len(r.orders) != 0 {
			t.Errorf("%s after %v", record.Stage, r.orders)
		}
	})
}

// A try of an order that its caller has not weighed orders nothing; what needs
// no try goes on.
func TestAnUnweighedTryIsNotMade(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		p := r.lead("a")
		r.plantRecord(cluster.FenceFailed, bStart, func(f *cluster.FenceRecord) { f.Order = "o1" })
		time.Sleep(backoffFirst)
		if ripe, try := p.fencer.Ripe(r.snap().Nodes[bID], r.clock.Now()); !ripe || !try {
			t.Errorf("ripe %v, for a try %v", ripe, try)
		}
		record, refusal, err := p.fencer.Settle(p.ctx, live(7), bID, false)
		if err != nil || refusal != nil || record.Stage != cluster.FenceFailed || len(r.orders) != 0 {
			t.Errorf("%s, %+v, %v after %v", record.Stage, refusal, err, r.orders)
		}
		r.keepalive()
		if ripe, try := p.fencer.Ripe(r.snap().Nodes[bID], r.clock.Now()); !ripe || try {
			t.Errorf("back: ripe %v, for a try %v", ripe, try)
		}
		if record, _, err = p.fencer.Settle(p.ctx, live(7), bID, false); err != nil || record.Stage != cluster.FenceCanceled {
			t.Errorf("back: %s, %v", record.Stage, err)
		}
	})
}

// Who has become primary while an order against it was out ends that fence, once
// no attempt of it can run any more: nobody else would (I7). It sends no order.
func TestThePrimaryEndsWhatAnEarlierOneLeftOfItsOwnFence(t *testing.T) {
	for _, stage := range []cluster.FenceStage{cluster.FencePowerOff, cluster.FenceVerify, cluster.FenceFailed} {
		inRealm(t, func(t *testing.T, r *realm) {
			p := r.lead("b")
			r.plantRecord(stage, r.snap().Nodes[bID].Record.Value.Incarnation, func(f *cluster.FenceRecord) { f.Epoch-- })
			r.keepalive()
			ripe := func() bool {
				ripe, try := p.fencer.Ripe(r.snap().Nodes[bID], r.clock.Now())
				return ripe && !try
			}
			if stage != cluster.FenceFailed && ripe() {
				t.Errorf("%s: ripe at once", stage)
			}
			// The first look sees its own reign, and what an earlier primary has begun
			// before that may last an attempt longer.
			for range 3 {
				time.Sleep(DefaultTimeout + 2*childSlack)
				if ripe() {
					if _, _, err := p.fencer.Settle(p.ctx, live(7), bID, false); err != nil {
						t.Errorf("%s: %v", stage, err)
					}
				}
			}
			if record := r.snap().Nodes[bID].Fence.Value; record.Stage != cluster.FenceCanceled || len(r.orders) != 0 {
				t.Errorf("%s led to %s after %v", stage, record.Stage, r.orders)
			}
		})
	}
}

// softly stands in for the questions past ZooKeeper.
type softly struct {
	answers bool
	err     error
	asked   []cluster.Incarnation
}

func (s *softly) Answers(cluster.NodeID) bool { return s.answers }

func (s *softly) Stop(ctx context.Context, t cluster.Token, r cluster.FenceRecord) error {
	if err := t.Check(); err != nil {
		return err
	}
	if s.asked = append(s.asked, r.Incarnation); r.Stage != cluster.FenceSoft || r.ID == "" || r.Epoch == 0 || r.By == "" {
		return fmt.Errorf("asked by %+v: %w", r, cluster.ErrRefused)
	}
	if errors.Is(s.err, context.DeadlineExceeded) {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.err
}

// A node that answers is asked to stop first, once; whatever it says, its power
// is taken. One that does not answer is not waited for.
func TestTheSoftStage(t *testing.T) {
	withSoft := slices.Insert(slices.Clone(wholeFence), 1, "soft")
	for name, c := range map[string]struct {
		soft softly
		told []string
		said string
	}{
		"it stops":       {softly{answers: true}, withSoft, ResultStopped},
		"it refuses":     {softly{answers: true, err: cluster.ErrRefused}, withSoft, ResultUnknown},
		"it hangs":       {softly{answers: true, err: context.DeadlineExceeded}, withSoft, ResultUnknown},
		"nobody answers": {softly{}, wholeFence, ""},
	} {
		inRealm(t, func(t *testing.T, r *realm) {
			soft := c.soft
			r.soft = &soft
			record := r.lead("a").watch(time.Minute, true)
			if record.Stage != cluster.FenceDone || !slices.Equal(r.told(), c.told) {
				t.Errorf("%s: ended in %s, told %v", name, record.Stage, r.told())
			}
			said := ""
			if record.Attempts[0].Action == ActionSoft {
				said = record.Attempts[0].Result
			}
			if said != c.said || len(soft.asked) > 1 || (len(soft.asked) == 1) != soft.answers {
				t.Errorf("%s: %q, asked %v", name, said, soft.asked)
			}
		})
	}
}

// The fencer dies once the node is to be asked: the next one asks it and goes on.
func TestTheSoftStageIsCarriedOn(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		soft := softly{answers: true}
		r.soft = &soft
		p := r.lead("a")
		p.doomed, p.after = 2, true // the step to soft
		p.watch(time.Minute, true)
		record := r.lead("c").watch(time.Minute, false)
		if record.Stage != cluster.FenceDone || !slices.Contains(r.told(), "soft") || !slices.Equal(soft.asked, []cluster.Incarnation{bStart}) {
			t.Errorf("ended in %s, told %v, asked %v", record.Stage, r.told(), soft.asked)
		}
	})
}

// The devices of the nodes that are asked about, each with its cure.
func TestDeviceReports(t *testing.T) {
	inRealm(t, func(t *testing.T, r *realm) {
		p := r.lead("a")
		p.fencer.TestRun = func(ctx context.Context, q cluster.RunRequest) (cluster.RunResult, error) {
			return p.run(ctx, cluster.Token{}, q)
		}
		reports := p.fencer.TestDevices(r.ctx, "B", "c")
		if len(reports) != 3 {
			t.Fatalf("%+v", reports)
		}
		for _, report := range reports {
			ready := report.Device != "right"
			if (report.Fault == "") != ready || report.UnixMS != 1 || report.Type != string(TypeIPMI) || report.Node != "B" {
				t.Errorf("%+v", report)
			}
			if !ready && !strings.Contains(report.Detail, "never taken for off") {
				t.Errorf("no cure in %q", report.Detail)
			}
		}
		if slices.ContainsFunc(r.orders, func(o string) bool { return !strings.HasPrefix(o, ActionTest+" ") }) {
			t.Errorf("a test ordered %v", r.orders)
		}
	})
}

// lostReply applies one commit and loses its reply.
type lostReply struct {
	Store
	purpose string
	left    *int
}

func (s lostReply) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	r := s.Store.Commit(ctx, t)
	if t.Purpose == s.purpose && *s.left > 0 {
		*s.left--
		return cluster.TxnResult{Outcome: cluster.OutcomeUnknown, FailedOp: -1}
	}
	return r
}

// The reply to an order's effect is lost: it is found to have happened, and the
// fence goes on.
func TestAnOrdersLostReply(t *testing.T) {
	for _, purpose := range []string{"fence.claimed", "fence.power_off", "fence.fenced"} {
		inRealm(t, func(t *testing.T, r *realm) {
			p := r.lead("a")
			left := 1
			p.fencer.Store = lostReply{p, purpose, &left}
			record, refusal, err := p.fencer.Order(p.ctx, live(7), r.order(fenceOrder()), 0)
			if err != nil || refusal != nil || record.Stage != cluster.FenceDone || left != 0 || !slices.Equal(r.told(), wholeFence) {
				t.Errorf("%s: %s, %+v, %v, told %v", purpose, record.Stage, refusal, err, r.told())
			}
		})
	}
}
