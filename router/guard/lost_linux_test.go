package guard

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// TestALostLedgerEndsTheNodesRight: what had which deadline is not known, so that
// nothing is taken over, and no role begins by the right of before.
func TestALostLedgerEndsTheNodesRight(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"gone":            os.Remove,
		"voided":          func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"gone, and swept": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, true)
			b.beginNode(time.Minute)
			b.begin(1, time.Minute, all...)
			pid := b.startHook("sleeper", "sleep 1000")
			b.kill()
			if err := spoil(b.cfg.ledgerPath()); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(name, "swept") {
				var err error
				inNamespace(t, b.host, func() { err = Sweep(b.cfg) })
				if err != nil {
					t.Fatal(err)
				}
			}
			b.start()
			if s := b.state(); len(s.Deadlines)+len(s.Addresses)+len(s.Services)+len(s.GateOpen) != 0 || alive(pid) {
				t.Errorf("taken over: %+v, hook alive %v", s, alive(pid))
			}
			again := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 2, Deadline: clock.Now().Add(time.Minute)}
			if err := b.client.Begin(b.ctx(), again); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "this node's own deadline") {
				t.Errorf("a role by a right that is not known: %v", err)
			}
			b.beginNode(time.Minute)
			b.begin(2, time.Minute, all...)
			b.kill() // from now on there is a ledger again
			b.start()
			if s := b.state(); len(s.Deadlines) != 2 {
				t.Errorf("not taken over: %+v", s.Deadlines)
			}
		})
	}
}

// TestABootHasLostNoLedger: there is none yet.
func TestABootHasLostNoLedger(t *testing.T) {
	b := newBed(t, true)
	b.kill()
	if err := errors.Join(os.Remove(b.cfg.ledgerPath()), os.WriteFile(b.cfg.markPath(), []byte("another boot\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.begin(1, time.Minute, all...) // where no watchdog is fed a role needs no right of the node's
	if !b.cfg.servedThisBoot() {
		t.Error("this boot is not marked")
	}
}

// TestWhatALostLedgerIsTakenFor: the worst that it can have said.
func TestWhatALostLedgerIsTakenFor(t *testing.T) {
	now := clock.Now()
	c := Config{Services: []cluster.ServiceSpec{{Name: "a", Kind: cluster.ServiceUnit, Unit: "a.service"}, {Name: "b", Kind: cluster.ServiceHook}}}
	for name, f := range map[string]struct {
		fence SelfFence
		mode  cluster.FeedMode
	}{
		"no watchdog":             {SelfFence{}, cluster.FeedUnarmed},
		"stored":                  {SelfFence{Device: &devices{}, Store: &devices{}, Inherited: 5}, cluster.FeedHolding},
		"nothing is in the store": {SelfFence{Device: &devices{}, Store: &devices{}, Inherited: -1}, cluster.FeedUnarmed},
		"there is no store":       {SelfFence{Device: &devices{}, Inherited: -1}, cluster.FeedHolding},
	} {
		c.SelfFence = f.fence
		s := c.unknown(now)
		if s.NodeUntil != now || s.Feeding.Mode != f.mode || len(s.Roles) != 1 {
			t.Errorf("%s: %+v", name, s)
		}
		units := slices.DeleteFunc(slices.Clone(s.Roles[0].Services), func(h heldService) bool { return h.Spec.Unit != "a.service" })
		if len(units) != 1 || len(s.Roles[0].Services) != 1 {
			t.Errorf("%s: to be ended are %+v", name, s.Roles[0].Services)
		}
	}
	inProcess(t, clock, func(g *Guard, b *bed) {
		g.mu.Lock()
		g.expired, g.leftovers, g.node = nil, "", nodeRight{}
		expired := g.takeOver(c.unknown(clock.Now()))
		err := g.refusesPrimary()
		g.mu.Unlock()
		if len(expired) != 1 || len(expired[0].Services) != 1 || !errors.Is(err, cluster.ErrRefused) {
			t.Errorf("to be ended: %+v; a role: %v", expired, err)
		}
		if in := g.feedInput(); !in.ProtectedWork || in.EffectsVerifiedGone || in.PromisesUntil > clock.Now() {
			t.Errorf("judged by %+v, want work without a right", in)
		}
		g.mu.Lock()
		g.expired, g.leftovers = nil, ""
		g.mu.Unlock()
	})
}
