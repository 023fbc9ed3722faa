package guard

import (
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// stepClock jumps past the deadline after it was read so often, as the clock of
// a process that is stopped between reading it and acting.
type stepClock struct {
	base  cluster.Clock
	reads int
	jump  time.Duration
}

func (c *stepClock) Now() cluster.Instant {
	if c.reads--; c.reads < 0 {
		return c.base.Now().Add(c.jump)
	}
	return c.base.Now()
}

// TestARefreshThatRecreatesAnAddressIsUndone walks a tick with a clock that
// passes the deadline at each of its reads in turn: wherever the process was
// stopped, nothing is left once it goes on (I3).
func TestARefreshThatRecreatesAnAddressIsUndone(t *testing.T) {
	b := newBed(t, false) // for its namespace; this guard here is another
	b.kill()
	inNamespace(t, b.host, func() {
		for reads := range 12 {
			c := &stepClock{base: clock, reads: 1 << 30, jump: time.Hour}
			g := openForTest(t, b, c)
			now := clock.Now()
			d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: cluster.Epoch(reads + 1), Deadline: now.Add(30 * time.Second)}
			if err := g.begin(b.ctx(), d); err != nil {
				t.Error(err)
				return
			}
			if err := g.present(d.Epoch, all); err != nil {
				t.Error(err)
				return
			}
			// The kernel has just removed them, as it does at the end of their
			// lifetime; the plan of the tick still knows them.
			g.addrs.mu.Lock()
			plan, _ := g.plan(all)
			_, _ = g.addrs.removeOurs()
			g.addrs.until = 0
			g.addrs.mu.Unlock()
			c.reads = reads // from here on the process is stopped at one of its reads of the clock
			g.addrs.mu.Lock()
			err := g.stepLifetimes(g.roles[cluster.OwnerPrimary], plan.Keep)
			recreated, _ := g.plan(all)
			g.addrs.mu.Unlock()
			g.reconcile()
			c.reads = 0
			began := time.Now()
			g.expire()
			g.work.Wait()
			took := time.Since(began)
			g.addrs.mu.Lock()
			left, _ := g.plan(nil)
			g.addrs.mu.Unlock()
			t.Logf("stopped at read %d (%v): %d re-created, gone after %v", reads, err, len(recreated.Keep), took)
			if len(left.Remove) != 0 {
				t.Errorf("stopped at read %d: %v left", reads, left.Remove)
			}
			g.close()
		}
	})
}

// openForTest makes a guard of this process in the namespace of its thread.
func openForTest(t *testing.T, b *bed, c cluster.Clock) *Guard {
	cfg := b.cfg.withDefaults()
	cfg.StateFile = filepath.Join(t.TempDir(), "guard.json")
	g, err := open(cfg, c, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	l, _, err := openLedger(filepath.Join(t.TempDir(), "held"))
	if err != nil {
		t.Fatal(err)
	}
	g.ledger = l
	return g
}
