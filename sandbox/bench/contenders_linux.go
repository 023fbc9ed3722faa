package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
	"pvc.internal/zkhandler"
)

// contenders is how many agents contend.
const contenders = 8

// contest is the agents of this process around one real ensemble.
type contest struct {
	b       *bench
	e       *ensemble
	store   *zkhandler.Handler
	seen    *witness
	members []*member
}

// contestRounds is how many rounds of each kind there are.
func (b *bench) contestRounds() (released, expired, orphaned int) {
	switch {
	case b.config.Runs < 5:
		return 4, 2, 1
	case b.config.Quick:
		return 20, 5, 3
	}
	return 140, 40, 20
}

// measureContenders lets the role fall free again and again: released, as
// after a dead-proof; expired; and released while the lock's holder is dead.
func measureContenders(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{Coordinators: 3, NoDaemons: true})
	if err != nil {
		return err
	}
	l.key = "" // its tree is used up afterwards
	c := &contest{b: b, seen: newWitness()}
	if c.e, err = l.ensemble(ctx, cluster.ProfileLAN()); err != nil {
		return err
	}
	defer c.e.close()
	if err := c.begin(ctx); err != nil {
		return err
	}
	t := c.e.timing
	released, expired, orphaned := b.contestRounds()
	var winners []float64
	for _, kind := range []struct {
		text   string
		rounds int
		run    func(context.Context) (taken float64, err error)
		target limit
	}{
		{"a released role is taken after", released, c.released, atMost(1000)},
		{"an expired role is taken after its L + M", expired, c.expired, atMost(1000)},
		{"a released role whose lock's holder died is taken after", orphaned, c.orphaned, atMost(millis(t.RoleTTL + t.TakerMargin + time.Second))},
	} {
		var taken []float64
		for range kind.rounds {
			before := c.seen.count()
			ms, err := kind.run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", kind.text, err)
			}
			taken = append(taken, max(0, ms))
			winners = append(winners, float64(len(c.seen.since(before))))
		}
		f := figure(kind.text, "ms", taken, kind.target)
		b.say("   %s: median %s, worst %s", kind.text, quantity(f.Median, "ms"), quantity(f.Worst, "ms"))
		b.add(f, fmt.Sprintf("%d contenders", contenders))
	}
	other := 0.0
	for _, n := range winners {
		if n != 1 {
			other++
		}
	}
	b.add(figure("rounds without exactly one winner", "", []float64{other}, atMost(0)), fmt.Sprintf("of %d, on a real ensemble", len(winners)))
	broken := c.seen.verdict()
	b.add(figure("two served at once, or with an older epoch", "", []float64{float64(len(broken))}, atMost(0)), strings.Join(broken[:min(1, len(broken))], ""))
	return nil
}

// begin initialises the tree and waits for the first holder.
func (c *contest) begin(ctx context.Context) error {
	var err error
	if c.store, err = c.e.handler(newWire(c.e.inside), 0); err != nil {
		return err
	}
	err = await(ctx, 15*time.Second, func() error {
		one, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return c.store.Initialize(one, c.e.name, false)
	})
	if err != nil {
		return err
	}
	for i := range contenders {
		m, err := c.e.join(cluster.NodeID(fmt.Sprintf("c%d", i+1)), cluster.Coordinator, c.seen, i)
		if err != nil {
			return err
		}
		c.members = append(c.members, m)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := c.seen.wait(ctx, 0); err != nil {
		return fmt.Errorf("nobody became primary: %w", err)
	}
	return pause(ctx, c.e.timing.RoleTTL+time.Second) // everybody's first L
}

// lease is the record as it stands.
func (c *contest) lease(ctx context.Context) (cluster.Versioned[cluster.Lease], error) {
	one, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	snap, err := c.store.Refresh(one)
	if err != nil {
		return cluster.Versioned[cluster.Lease]{}, fmt.Errorf("read the lease: %w", err)
	}
	return snap.Lease, nil
}

// victim waits until half of the others may contend and returns the member
// that holds the role.
func (c *contest) victim(ctx context.Context) (*member, error) {
	var holder *member
	err := await(ctx, 20*time.Second, func() error {
		lease, err := c.lease(ctx)
		if err != nil {
			return err
		}
		fit := 0
		holder = nil
		for _, m := range c.members {
			switch {
			case m.name == lease.Value.Holder:
				holder = m
			case time.Since(m.left) > c.e.timing.RoleTTL+time.Second:
				fit++
			}
		}
		if holder == nil || fit < contenders/2 {
			return fmt.Errorf("%d may contend, the role is held by %q", fit, lease.Value.Holder)
		}
		// Its hand-over is done, so that each round is one of its own.
		if now().Sub(lease.SeenAt) > c.e.timing.RenewInterval*2 {
			return errors.New("the holder does not renew")
		}
		return pause(ctx, 100*time.Millisecond)
	})
	return holder, err
}

// cutOff takes the holder's host away.
func (c *contest) cutOff(m *member) {
	m.left = time.Now()
	m.wire.sever()
	m.guard.vanish()
}

// release writes the role free, as the cleaning after a dead-proof does, and
// returns when that was acknowledged.
func (c *contest) release(ctx context.Context, from cluster.NodeID) (cluster.Instant, error) {
	for {
		lease, err := c.lease(ctx)
		if err != nil {
			return 0, err
		}
		if lease.Value.Holder != from {
			return now(), nil
		}
		free := lease.Value
		free.Holder, free.Incarnation, free.N = "", "", free.N+1
		one, cancel := context.WithTimeout(ctx, time.Second)
		res := c.store.Commit(one, cluster.Txn{Purpose: "bench.release", Ops: []cluster.Op{cluster.Put(cluster.Key{Kind: cluster.KeyLease}, lease, free)}})
		cancel()
		switch res.Outcome {
		case cluster.OutcomeOK:
			return now(), nil
		case cluster.OutcomeConflict:
		default:
			return 0, fmt.Errorf("release the role: %s: %w", res.Outcome, res.Err)
		}
	}
}

// winner waits for the next one to serve and a little longer for a second.
func (c *contest) winner(ctx context.Context, before int, limit time.Duration) (winner, error) {
	one, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	w, err := c.seen.wait(one, before)
	if err != nil {
		return w, fmt.Errorf("nobody took the role within %v: %w", limit, err)
	}
	return w, pause(ctx, 200*time.Millisecond)
}

func (c *contest) released(ctx context.Context) (float64, error) {
	m, err := c.victim(ctx)
	if err != nil {
		return 0, err
	}
	before := c.seen.count()
	c.cutOff(m)
	defer m.wire.heal()
	free, err := c.release(ctx, m.name)
	if err != nil {
		return 0, err
	}
	w, err := c.winner(ctx, before, 20*time.Second)
	return millis(w.at.Sub(free)), err
}

func (c *contest) expired(ctx context.Context) (float64, error) {
	m, err := c.victim(ctx)
	if err != nil {
		return 0, err
	}
	before := c.seen.count()
	c.cutOff(m)
	defer m.wire.heal()
	lease, err := c.lease(ctx) // its last renewal has been seen
	if err != nil {
		return 0, err
	}
	w, err := c.winner(ctx, before, 20*time.Second)
	return millis(w.at.Sub(lease.SeenAt.Add(lease.Value.TTL() + c.e.timing.TakerMargin))), err
}

// orphaned is released with a dead contender at the head of the lock's queue.
func (c *contest) orphaned(ctx context.Context) (float64, error) {
	m, err := c.victim(ctx)
	if err != nil {
		return 0, err
	}
	rogue := newWire(c.e.inside)
	h, err := c.e.handler(rogue, 1)
	if err != nil {
		return 0, err
	}
	defer rogue.heal() // its session is closed with the contest
	err = await(ctx, 5*time.Second, func() error {
		one, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := h.Lock(one, cluster.KeyRoleLockChild, cluster.LockOwner{Version: 1, Node: "rogue", Incarnation: "rogue"})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("take the lock: %w", err)
	}
	before := c.seen.count()
	rogue.sever()
	c.cutOff(m)
	defer m.wire.heal()
	free, err := c.release(ctx, m.name)
	if err != nil {
		return 0, err
	}
	w, err := c.winner(ctx, before, 30*time.Second)
	return millis(w.at.Sub(free)), err
}
