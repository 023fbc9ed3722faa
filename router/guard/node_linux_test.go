package guard

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// beginNode begins the node's own right.
func (b *bed) beginNode(lasts time.Duration) cluster.Instant {
	b.t.Helper()
	d := cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: clock.Now().Add(lasts)}
	if err := b.client.Begin(b.ctx(), d); err != nil {
		b.t.Fatal(err)
	}
	return d.Deadline
}

// startUnder starts a hook under an owner and returns its pid.
func (b *bed) startUnder(o cluster.DeadlineOwner, e cluster.Epoch, name string) int {
	b.t.Helper()
	spec := cluster.ServiceSpec{Name: name, Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}}
	if err := b.client.StartService(b.ctx(), o, e, spec); err != nil {
		b.t.Fatal(err)
	}
	for _, s := range b.state().Services {
		if s.Name == name {
			return s.PID
		}
	}
	b.t.Fatalf("service %s is not in the state", name)
	return 0
}

// goneAt waits until the processes are dead, which must be at the deadline.
func (b *bed) goneAt(deadline cluster.Instant, pids ...int) {
	b.t.Helper()
	for _, pid := range pids {
		for looked := clock.Now(); alive(pid); looked = clock.Now() {
			if late := looked.Sub(deadline); late > grace {
				b.t.Fatalf("process %d lives %v after the deadline", pid, late)
			}
		}
	}
	if early := deadline.Sub(clock.Now()); early > 0 {
		b.t.Fatalf("ended %v before the deadline", early)
	}
}

// TestTheNodesDeadlineEndsTheRoleAndProtectedWork: but not what has a deadline
// of its own.
func TestTheNodesDeadlineEndsTheRoleAndProtectedWork(t *testing.T) {
	b := newBed(t, true)
	b.beginNode(time.Minute)
	b.begin(1, time.Minute, all...)
	fence := cluster.DeadlineOwner("fence:x")
	if err := b.client.Begin(b.ctx(), cluster.RoleDeadline{Owner: fence, Epoch: 1, Deadline: clock.Now().Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	work, service, attempt := b.startUnder(cluster.OwnerNode, 0, "work"), b.startHook("service", "sleep 1000"), b.startUnder(fence, 1, "attempt")
	deadline := clock.Now().Add(600 * time.Millisecond)
	if err := b.client.Extend(b.ctx(), cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: deadline}); err != nil {
		t.Fatal(err)
	}
	if s := b.state(); len(s.Deadlines) != 3 || s.Deadlines[1] != (cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: deadline}) {
		t.Errorf("told as %+v", s.Deadlines)
	}
	b.goneBy(deadline, true)
	b.goneAt(deadline, work, service)
	b.eventually(time.Second, "both are verified gone", func() bool { return len(b.state().Services) == 1 })
	if s := b.state(); len(s.Deadlines) != 1 || s.Deadlines[0].Owner != fence || len(s.GateOpen) != 0 || !alive(attempt) {
		t.Errorf("afterwards: %+v, the attempt lives: %v", s, alive(attempt))
	}
	for owner := range map[cluster.DeadlineOwner]bool{cluster.OwnerNode: true, cluster.OwnerPrimary: true} {
		err := b.client.Extend(b.ctx(), cluster.RoleDeadline{Owner: owner, Epoch: b.epochOf(owner), Deadline: clock.Now().Add(time.Minute)})
		if !errors.Is(err, cluster.ErrDeadline) {
			t.Errorf("Extend of %s: %v, want ErrDeadline", owner, err)
		}
	}
	again := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 2, Deadline: clock.Now().Add(time.Minute)}
	if err := b.client.Begin(b.ctx(), again); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "node") {
		t.Errorf("a role on a node without a right: %v, want ErrRefused", err)
	}
	b.beginNode(time.Minute)
	b.begin(2, time.Minute, all...)
}

func (b *bed) epochOf(o cluster.DeadlineOwner) cluster.Epoch {
	if o == cluster.OwnerNode {
		return 0
	}
	return b.state().MaxEpoch
}

// TestTheRolesOwnDeadlineLeavesTheNodes: each thing ends by its own.
func TestTheRolesOwnDeadlineLeavesTheNodes(t *testing.T) {
	b := newBed(t, true)
	b.beginNode(time.Minute)
	work := b.startUnder(cluster.OwnerNode, 0, "work")
	b.goneBy(b.begin(1, 400*time.Millisecond, all...), true)
	b.eventually(time.Second, "the role is over", func() bool { return len(b.state().Deadlines) == 1 })
	if s := b.state(); s.Deadlines[0].Owner != cluster.OwnerNode || !alive(work) {
		t.Errorf("after the role: %+v, work lives: %v", s.Deadlines, alive(work))
	}
	b.begin(2, time.Minute, all...)
	if err := b.client.End(b.ctx(), cluster.OwnerNode, 0); err != nil {
		t.Fatal(err)
	}
	if alive(work) || b.kernelHas(all...) != 0 || len(b.state().Deadlines) != 0 {
		t.Errorf("after End of the node: work lives %v, %d addresses, %+v", alive(work), b.kernelHas(all...), b.state().Deadlines)
	}
}

func TestANodesDeadlineOfAnotherClockIsRefused(t *testing.T) {
	b := newBed(t, false)
	far := cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: cluster.Instant(time.Now().UnixNano())}
	if err := b.client.Begin(b.ctx(), far); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("Begin: %v, want ErrRefused", err)
	}
	b.beginNode(time.Minute)
	if err := b.client.Extend(b.ctx(), far); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("Extend: %v, want ErrRefused", err)
	}
}

func TestAKilledGuardsSuccessorKeepsTheNodesDeadlineAndNoLonger(t *testing.T) {
	b := newBed(t, true)
	deadline := b.beginNode(1500 * time.Millisecond)
	b.begin(4, time.Minute, all...)
	work := b.startUnder(cluster.OwnerNode, 0, "work")
	b.kill()
	b.start()
	if s := b.state(); len(s.Deadlines) != 2 || s.Deadlines[0].Deadline != deadline || len(s.GateOpen) != 3 || !alive(work) {
		t.Fatalf("adopted: %+v, work lives: %v", s, alive(work))
	}
	b.goneBy(deadline, true)
	b.goneAt(deadline, work)
}

// TestASuccessorEndsTheRoleWithTheNodesRight: nobody was there to do it in time,
// and the role's own deadline lies ahead still.
func TestASuccessorEndsTheRoleWithTheNodesRight(t *testing.T) {
	b := newBed(t, true)
	deadline := b.beginNode(600 * time.Millisecond)
	b.begin(4, time.Minute, all...)
	pid := b.startHook("service", "sleep 1000")
	b.kill()
	b.eventually(2*time.Second, "the deadline passes", func() bool { return clock.Now() > deadline })
	b.start()
	if s := b.state(); len(s.Deadlines)+len(s.Addresses)+len(s.GateOpen)+len(s.Services) != 0 || alive(pid) {
		t.Errorf("after the restart: %+v, service lives: %v", s, alive(pid))
	}
	again := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 4, Deadline: clock.Now().Add(time.Minute)}
	if err := b.client.Begin(b.ctx(), again); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("Begin of the role without the node's right: %v, want ErrRefused", err)
	}
	b.kill() // that it is over is remembered, too
	b.start()
	if err := b.client.Begin(b.ctx(), again); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("after one more restart: %v, want ErrRefused", err)
	}
}

// TestABootAfterAPowerLossLeavesNothingOfTheRole: what a power loss takes with it
// is taken here by hand: processes, addresses, the gate, and the run folder. The
// state folder stays.
func TestABootAfterAPowerLossLeavesNothingOfTheRole(t *testing.T) {
	for name, boot := range map[string]func(b *bed) error{
		"the run folder is gone": func(b *bed) error { return os.Remove(b.cfg.ledgerPath()) },
		"its file is of another boot": func(b *bed) error {
			l, held, err := openLedger(b.cfg.ledgerPath())
			if err != nil {
				return err
			}
			defer l.close()
			held.Feeding = cluster.FeedState{Mode: cluster.FeedStarving, Why: "it was fenced"}
			l.bootID = "another"
			return l.save(held)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, true)
			b.beginNode(time.Minute)
			b.begin(9, time.Minute, all...)
			pid := b.startHook("service", "sleep 1000")
			b.kill()
			_ = unix.Kill(-pid, unix.SIGKILL)
			for _, a := range all {
				ip(t, "-n", b.host, "addr", "del", a.Prefix.String(), "dev", "up0")
			}
			inNamespace(t, b.host, func() {
				g, err := openGate(b.cfg.withDefaults().Table)
				if err == nil {
					err = g.dropTables()
					g.close()
				}
				if err != nil {
					t.Error(err)
				}
			})
			if err := errors.Join(boot(b), os.WriteFile(b.cfg.markPath(), []byte("another\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
			b.start()
			s := b.state()
			if len(s.Deadlines)+len(s.Addresses)+len(s.Services)+len(s.GateOpen)+len(s.Faults) != 0 || !s.Gate || s.MaxEpoch != 9 {
				t.Errorf("after the boot: %+v; want nothing held, the gate shut, and epoch 9 remembered", s)
			}
			if s.Watchdog.Mode != cluster.FeedUnarmed {
				t.Errorf("an earlier boot's watchdog: %+v", s.Watchdog)
			}
			old := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 8, Deadline: clock.Now().Add(time.Minute)}
			if err := b.client.Begin(b.ctx(), old); !errors.Is(err, cluster.ErrStaleEpoch) {
				t.Errorf("an older epoch: %v, want ErrStaleEpoch", err)
			}
			b.begin(10, time.Minute, all...) // of a daemon that sets no deadline of the node
			if !b.answers(v4a) {
				t.Error("a role that is begun after it does not answer")
			}
		})
	}
}

// TestAnAddressThatVanishesUnderASuccessorComesBack within the deadline, and the
// gate is not opened for it: that is Present's, after a Begin.
func TestAnAddressThatVanishesUnderASuccessorComesBack(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, time.Minute, all...)
	deadline := b.mustExtend(1, 2500*time.Millisecond)
	b.kill()
	ip(t, "-n", b.host, "addr", "del", v4a.Prefix.String(), "dev", "up0") // while nobody looks
	b.start()
	b.eventually(time.Second, "the address is back", func() bool { return b.kernelHas(v4a) == 1 })
	if !b.answers(v4a) {
		t.Error("the address that came back does not answer")
	}
	ip(t, "-n", b.host, "addr", "del", v6a.Prefix.String(), "dev", "up0")
	b.eventually(time.Second, "the other is back", func() bool { return b.kernelHas(v6a) == 1 })
	if err := b.client.Present(b.ctx(), 1, all); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("Present without a Begin since the restart: %v, want ErrRefused", err)
	}
	b.goneBy(deadline, true)
}

// TestASuccessorOpensNoGate: an element that went while nobody looked comes back
// with a later renewal only, whatever the tick does about the address.
func TestASuccessorOpensNoGate(t *testing.T) {
	b := newBed(t, true)
	b.begin(1, time.Minute, all...)
	b.kill()
	inNamespace(t, b.host, func() {
		g, err := openGate(b.cfg.withDefaults().Table)
		if err == nil {
			defer g.close()
			g.mu.Lock()
			defer g.mu.Unlock()
			err = g.shut()
		}
		if err != nil {
			t.Error(err)
		}
	})
	b.start()
	for end := time.Now().Add(600 * time.Millisecond); time.Now().Before(end); pause(10 * time.Millisecond) { // some ticks
		if n := b.opened(); n != 0 {
			t.Fatalf("the gate is open for %d", n)
		}
	}
	b.mustExtend(1, time.Minute)
	b.eventually(time.Second, "all is back by a renewal", func() bool { return b.opened() == 3 && b.kernelHas(all...) == 3 })
}

func TestTheLastWordIsRefusedWhileSomethingIsHeld(t *testing.T) {
	b := newBed(t, false)
	b.beginNode(time.Minute)
	b.begin(1, time.Minute)
	if err := b.client.Relinquish(b.ctx()); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("while the role is held: %v, want ErrRefused", err)
	}
	if err := b.client.End(b.ctx(), cluster.OwnerPrimary, 1); err != nil {
		t.Fatal(err)
	}
	b.startUnder(cluster.OwnerNode, 0, "work")
	if err := b.client.Relinquish(b.ctx()); !errors.Is(err, cluster.ErrRefused) {
		t.Errorf("while protected work is here: %v, want ErrRefused", err)
	}
	if err := b.client.StopService(b.ctx(), cluster.OwnerNode, 0, "work"); err != nil {
		t.Fatal(err)
	}
	if err := b.client.Relinquish(b.ctx()); err != nil {
		t.Error(err)
	}
}

// TestASweepForgetsTheRolesAndNotThatTheMachineIsGivenUp (I3).
func TestASweepForgetsTheRolesAndNotThatTheMachineIsGivenUp(t *testing.T) {
	b := newBed(t, true)
	until := b.beginNode(time.Minute)
	b.begin(1, time.Minute, all...)
	b.kill()
	l, held, err := openLedger(b.cfg.ledgerPath())
	if err != nil {
		t.Fatal(err)
	}
	held.Feeding = cluster.FeedState{Mode: cluster.FeedStarving, Why: "test"}
	if err := l.save(held); err != nil {
		t.Fatal(err)
	}
	l.close()
	inNamespace(t, b.host, func() { err = Sweep(b.cfg) })
	if err != nil {
		t.Fatal(err)
	}
	_, held, err = openLedger(b.cfg.ledgerPath())
	if err != nil || len(held.Roles) != 0 || held.NodeUntil != until || held.Feeding.Mode != cluster.FeedStarving {
		t.Errorf("after the sweep: %+v %v", held, err)
	}
}

// withFeeder gives a guard of this process a feeder with a small decision.
func withFeeder(g *Guard, c SelfFence) *devices {
	d := &devices{fd: -1}
	c.Device, c.Decide, c.Timeout = d, decideShortly, 2*time.Second
	g.cfg.SelfFence = c
	g.startFeeding(true)
	return d
}

// TestWhatIsNotVerifiedGoneIsNotFed breaks the guard's netlink socket: an end
// that nobody can verify starves the machine, whatever is found out later.
func TestWhatIsNotVerifiedGoneIsNotFed(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		g.reconcile()
		withFeeder(g, SelfFence{})
		defer g.feeder.stop(time.Second)
		node := cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: clock.Now().Add(time.Minute)}
		if err := g.begin(context.Background(), node); err != nil {
			t.Error(err)
			return
		}
		if !holding(t, g, 1, time.Minute) {
			return
		}
		mode := func() cluster.FeedMode { return g.feeder.report().Mode }
		b.eventually(time.Second, "fed", func() bool { return mode() == cluster.FeedFeeding })
		g.addrs.mu.Lock()
		whole := g.addrs.sock.fd
		g.addrs.sock.fd = -1
		g.addrs.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if err := g.end(ctx, cluster.OwnerPrimary, 1); err == nil {
			t.Error("End: nothing is verified, and yet no error")
		}
		cancel()
		b.eventually(time.Second, "held", func() bool { return mode() == cluster.FeedHolding })
		if err := g.relinquish(); !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("the last word: %v, want ErrRefused", err)
		}
		if res := g.preflight(context.Background(), cluster.PreflightRequest{}); !strings.Contains(strings.Join(res.Problems, " "), "verified gone") {
			t.Errorf("pre-flight: %q", res.Problems)
		}
		b.eventually(3*time.Second, "given up", func() bool { return mode() == cluster.FeedStarving })
		g.mu.Lock()
		_, held, _ := readSlot(g.ledger.mem[int(g.ledger.seq%2)*slotSize:][:slotSize])
		g.mu.Unlock()
		if held.Feeding.Mode != cluster.FeedStarving {
			t.Errorf("the next guard would find %+v", held.Feeding)
		}
		g.addrs.mu.Lock()
		g.addrs.sock.fd = whole
		g.addrs.mu.Unlock()
		g.work.Wait()
		again := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 2, Deadline: clock.Now().Add(time.Minute)}
		if err := g.begin(context.Background(), again); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "reset") {
			t.Errorf("Begin on a machine that is to reset: %v, want ErrRefused", err)
		}
	})
}

// TestARightThatEndedIsSeenHoweverFastAllWasGone: the feeder comes when the last
// of it has been verified gone.
func TestARightThatEndedIsSeenHoweverFastAllWasGone(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		g.reconcile()
		node := cluster.RoleDeadline{Owner: cluster.OwnerNode, Deadline: clock.Now().Add(time.Minute)}
		if err := g.begin(context.Background(), node); err != nil {
			t.Error(err)
			return
		}
		if in := g.feedInput(); in.ProtectedWork || !in.EffectsVerifiedGone || in.PromisesUntil != node.Deadline {
			t.Errorf("a node with nothing here: %+v", in)
		}
		if !holding(t, g, 1, time.Minute) {
			return
		}
		if in := g.feedInput(); !in.ProtectedWork || in.EffectsVerifiedGone || in.Overdue != "" {
			t.Errorf("with the role: %+v", in)
		}
		g.mu.Lock()
		g.roles[cluster.OwnerNode].deadline = 1
		g.mu.Unlock()
		g.expire()
		g.work.Wait()
		now := clock.Now()
		if in := g.feedInput(); !in.ProtectedWork || in.PromisesUntil > now || in.PromisesUntil == cluster.Never || in.Overdue != "" {
			t.Errorf("the first look after the end: %+v, want work without a right", in)
		}
		if in := g.feedInput(); in.ProtectedWork || !in.EffectsVerifiedGone {
			t.Errorf("the second: %+v, want all gone", in)
		}
	})
}

// TestWhatAnEarlierGuardLeftIsJudgedByWhatItHungOn: what outlived the node's
// right is work without a right, all else is overdue.
func TestWhatAnEarlierGuardLeftIsJudgedByWhatItHungOn(t *testing.T) {
	inProcess(t, clock, func(g *Guard, b *bed) {
		now := clock.Now()
		primary := heldRole{RoleDeadline: cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: now.Add(time.Minute)}}
		past := primary
		past.Deadline = now - 1
		for _, c := range []struct {
			name    string
			held    ledgerState
			expired int
			overdue bool
			work    bool
		}{
			{name: "nothing", held: ledgerState{}},
			{name: "a role past its deadline", held: ledgerState{Roles: []heldRole{past}}, expired: 1, overdue: true},
			{name: "and the node's right ahead", held: ledgerState{Roles: []heldRole{past}, NodeUntil: now.Add(time.Minute)}, expired: 1, overdue: true},
			{name: "a role without the node's right", held: ledgerState{Roles: []heldRole{primary}, NodeUntil: now - 1}, expired: 1, work: true},
		} {
			g.mu.Lock()
			g.expired, g.leftovers, g.node = nil, "", nodeRight{}
			expired := g.takeOver(c.held)
			g.mu.Unlock()
			g.feedInput() // what nobody had seen
			in := g.feedInput()
			if len(expired) != c.expired || (in.Overdue != "") != c.overdue || in.ProtectedWork != c.work {
				t.Errorf("%s: %d expired, %+v", c.name, len(expired), in)
			}
		}
	})
}
