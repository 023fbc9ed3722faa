package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// filled gives a Redis keys that its replica has acknowledged, and returns its
// node. One with another restart time is made for it.
func filled(name, restart string) func(context.Context, *Sandbox) (*Node, error) {
	return func(ctx context.Context, s *Sandbox) (*Node, error) {
		if err := errors.Join(s.armReprovision(ctx), s.rebalance(ctx)); err != nil {
			return nil, err
		}
		if !s.store.latest().Workloads[name].Present {
			w := s.RedisWorkload(name, s.lastTwo()...)
			w.Params["restart"], w.Params["port"] = restart, "6380"
			if err := s.StartWorkloads(ctx, w); err != nil {
				return nil, err
			}
		}
		if err := s.WaitConverged(ctx); err != nil {
			return nil, err
		}
		var err error
		if s.keys, err = s.fillKeys(ctx, name); err != nil {
			return nil, err
		}
		return s.head(name)
	}
}

// filledApart is filled for faults of the Redis' whole node: that is neither primary
// nor leads the ensemble. Where it leads, and is back before the others have elected,
// it promises them nothing, since it is not registered: everybody's own right ends, and
// with it every copy, which is another fault's story.
func filledApart(name string) func(context.Context, *Sandbox) (*Node, error) {
	return func(ctx context.Context, s *Sandbox) (*Node, error) {
		if err := s.MakeWhole(ctx); err != nil {
			return nil, err
		}
		if err := s.headOnFollower(ctx, name); err != nil {
			return nil, err
		}
		n, err := filled(name, "")(ctx, s)
		if err != nil {
			return nil, err
		}
		for _, other := range s.coordinators() {
			if s.holder() == n.Plan.Name && other != n {
				return n, s.movePrimary(ctx, other)
			}
		}
		return n, nil
	}
}

// headOnFollower has a copy become the active one whose node does not lead the
// ensemble.
func (s *Sandbox) headOnFollower(ctx context.Context, name string) error {
	leader, err := s.ZooKeeperLeader(ctx)
	if err != nil {
		return err
	}
	members := s.store.latest().Workloads[name].Value.Members()
	if len(members) < 2 || members[0] != leader.Plan.Name {
		return nil
	}
	err = s.changeWorkload(ctx, name, func(w *cluster.Workload) {
		w.Request = &cluster.WorkloadRequest{ID: fmt.Sprintf("sandbox-%d", now()), Op: cluster.WorkloadPromote, Node: members[1], By: "sandbox", AtMS: time.Now().UnixMilli()}
	})
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	err = s.store.wait(limited, func(snap *cluster.Snapshot) error {
		if w := snap.Workloads[name].Value; w.Head() != members[1] {
			return fmt.Errorf("workload %s was to serve on %s and is on %s: %+v", name, members[1], w.Head(), w.Answer)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.WaitConverged(ctx)
}

// fillKeys writes acknowledged keys; until a replica follows none are.
func (s *Sandbox) fillKeys(ctx context.Context, name string) (keys, error) {
	return s.acknowledged(ctx, keys{workload: name, prefix: fmt.Sprintf("f%d", s.strikes)}, faultKeys)
}

// acknowledged writes keys until a replica has all of them.
func (s *Sandbox) acknowledged(ctx context.Context, k keys, count int) (keys, error) {
	ctx, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	for {
		written, err := s.writeKeys(ctx, k, 0, count, true)
		if err == nil || pause(ctx, 100*time.Millisecond) != nil {
			return written, err
		}
	}
}

func killRedis(name string) func(context.Context, *Sandbox, *Node) error {
	return func(_ context.Context, s *Sandbox, n *Node) error {
		return s.signalRedis(n, s.redisPort(name), unix.SIGKILL)
	}
}

// restartPause is how long a node that is restarted has no power: with what it needs
// until its daemon registers, less than anybody waits before suspecting it.
const restartPause = 500 * time.Millisecond

// offAndOn restarts the node: its copies are gone with its memory.
func offAndOn(ctx context.Context, _ *Sandbox, n *Node) error {
	if err := n.Off(); err != nil {
		return err
	}
	if err := pause(ctx, restartPause); err != nil {
		return err
	}
	return n.On()
}

// killInRepair ends the active copy, and the primary's agent as soon as the janitor
// has written who is to serve instead: nobody has been given an order by then, or not
// all have. The next one has nothing but the records.
func killInRepair(name string) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		if err := killRedis(name)(ctx, s, n); err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, redisLimit)
		defer cancel()
		err := s.store.wait(limited, func(snap *cluster.Snapshot) error {
			if head := snap.Workloads[name].Value.Head(); head == n.Plan.Name {
				return fmt.Errorf("the janitor leaves workload %s on %s", name, head)
			}
			return nil
		})
		if err != nil {
			return err
		}
		primary, err := s.primary()
		if err != nil {
			return err
		}
		s.tell(faultOf(s), "the agent of %s was killed when workload %s was %s", primary.Plan.Name, name, s.store.latest().Workloads[name].Value.State)
		return killAndRestart(ctx, s, primary)
	}
}

// killRedisAhead stops the replica, lets the active copy run ahead of it, and kills
// that: what no replica has acknowledged is lost, and nothing else.
func killRedisAhead(name string) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		port := s.redisPort(name)
		for _, m := range s.store.latest().Workloads[name].Value.Members()[1:] {
			replica := s.Node(m)
			if err := s.signalRedis(replica, port, unix.SIGSTOP); err != nil {
				return err
			}
			defer func() { _ = s.signalRedis(replica, port, unix.SIGCONT) }()
		}
		if _, err := s.writeKeys(ctx, s.keys, s.keys.acked, faultKeys, false); err != nil {
			return err
		}
		return s.signalRedis(n, port, unix.SIGKILL)
	}
}

// writable waits until the workload's active copy, on another start than the one
// that was killed, takes a write.
func (s *Sandbox) writable(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, redisLimit)
	defer cancel()
	for {
		c, err := s.redis(ctx, name)
		if err == nil {
			_, err = c.do("SET", "after-the-fault", "v")
			c.close()
		}
		if err == nil {
			return nil
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return fmt.Errorf("workload %s takes no write: %w", name, err)
		}
	}
}

// keysKept waits until writes are possible again and a replica follows, and counts.
func keysKept(name string) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		began := cluster.Instant(s.started.Load())
		if err := s.writable(ctx, name); err != nil {
			return err
		}
		took := now().Sub(began)
		if err := s.waitWorkloads(ctx, redisLimit); err != nil {
			return err
		}
		lost, err := s.lostKeys(ctx, s.keys, true)
		if err != nil {
			return err
		}
		head, _ := s.head(name)
		s.tell(faultOf(s), "writes were possible again after %.2f s, on %s; %d of %d acknowledged keys lost", took.Seconds(), head.Plan.Name, lost, s.keys.acked)
		if head == n {
			return fmt.Errorf("workload %s is still on %s, whose copy came back empty", name, n.Plan.Name)
		}
		return nil
	}
}

// exhausted kills the promoted copy, too: by then the count is used up, the empty
// copy comes online, and that is told.
func exhausted(name string) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		if err := keysKept(name)(ctx, s, n); err != nil {
			return err
		}
		if s.armed() {
			return errors.New("auto-reprovision is still armed after it was used once")
		}
		second, err := s.head(name)
		if err != nil {
			return err
		}
		if err := s.signalRedis(second, s.redisPort(name), unix.SIGKILL); err != nil {
			return err
		}
		if err := pause(ctx, time.Second); err != nil { // it is restarted after 0.2 s
			return err
		}
		if err := s.writable(ctx, name); err != nil {
			return err
		}
		if err := s.waitWorkloads(ctx, redisLimit); err != nil {
			return err
		}
		lost, err := s.lostKeys(ctx, s.keys, false)
		s.tell(faultOf(s), "the second time, the count used up, %d of %d keys are lost", lost, s.keys.acked)
		return err
	}
}

// redisMoves waits for the fence of the Redis' node, and counts.
func redisMoves(name string) func(context.Context, *Sandbox, *Node) error {
	return func(ctx context.Context, s *Sandbox, n *Node) error {
		if err := s.waitFence(ctx, n, 25*time.Second+s.timing().SuspectAfter(), "has not been fenced", proven); err != nil {
			return err
		}
		if err := s.writable(ctx, name); err != nil {
			return err
		}
		took := now().Sub(cluster.Instant(s.started.Load()))
		lost, err := s.lostKeys(ctx, s.keys, true)
		s.tell(faultOf(s), "writes were possible again after %.2f s; %d of %d acknowledged keys lost", took.Seconds(), lost, s.keys.acked)
		return err
	}
}
