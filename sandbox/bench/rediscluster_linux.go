package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// redisPair is one workload of a cluster: a Redis on two nodes, as a client on a
// third sees it.
type redisPair struct {
	*lab
	port  string
	nodes []*sandbox.Node
	from  *namespace // where the client is
}

// measureRedisCluster has the guard restart the active Redis empty.
func (b *bench) measureRedisCluster(ctx context.Context) error {
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	defer b.closeLab() // no other part is to have workloads beside it
	all := l.Nodes()
	client, err := l.initPID(ctx, all[0].Plan.Name)
	if err != nil {
		return err
	}
	from, err := namespaceOf(client)
	if err != nil {
		return err
	}
	defer from.close()
	pairs := map[string]*redisPair{}
	var list []cluster.Workload
	for i, restart := range []string{"200ms", "2s", "100ms"} {
		p := &redisPair{lab: l, port: strconv.Itoa(6379 + i), nodes: []*sandbox.Node{all[1], all[2]}, from: from}
		w := l.RedisWorkload("cache-"+restart, all[1].Plan.Name, all[2].Plan.Name)
		w.Params["port"], w.Params["restart"] = p.port, restart
		pairs[restart], list = p, append(list, w)
	}
	if err := l.StartWorkloads(ctx, list...); err != nil {
		return err
	}
	if err := b.measureRestartedEmpty(ctx, pairs["200ms"], "after 0.2 s", b.redisRounds(), atMost(2000)); err != nil {
		return err
	}
	// The promotion is mostly done by 0.2 s, and always by 2 s; after 0.1 s, the least
	// that the guard takes, the empty process is there while it is being decided.
	if err := b.measureRestartedEmpty(ctx, pairs["2s"], "after 2 s", b.runs(1), atMost(2000)); err != nil {
		return err
	}
	if err := b.measureRestartedEmpty(ctx, pairs["100ms"], "after 0.1 s", b.runs(2), atMost(2000)); err != nil {
		return err
	}
	return errors.Join(b.measureBehind(ctx, pairs["200ms"], b.runs(1)), b.measureTwiceEmpty(ctx, pairs["200ms"]))
}

// measureRestartedEmpty kills the active copy, round by round, and fills the chain
// between.
func (b *bench) measureRestartedEmpty(ctx context.Context, p *redisPair, text string, rounds int, target limit) error {
	var lost, again []float64
	var failed error
	for i := range rounds {
		n, took, err := p.round(ctx, fmt.Sprintf("%s-%d-", p.port, i))
		if err == nil {
			lost, again = append(lost, float64(n)), append(again, millis(took))
			b.say("   %d keys lost, writes again after %.0f ms", n, millis(took))
			err = p.MakeWhole(ctx)
		}
		if err != nil {
			failed = fmt.Errorf("round %d, restarted empty %s: %w", i+1, text, err)
			break
		}
	}
	b.add(figure("keys lost of 20 000, ours, restarted empty "+text, "keys", lost, atMost(0)), "acknowledged by the replica")
	b.add(figure("writes possible again, restarted empty "+text, "ms", again, target), "from the kill -9")
	return failed
}

// round is one round: acknowledged keys, a kill -9, the first write that is taken
// again, wherever, and a count.
func (p *redisPair) round(ctx context.Context, prefix string) (lost int, again time.Duration, err error) {
	head, c, err := p.filled(ctx, prefix)
	if err != nil {
		return 0, 0, err
	}
	_ = c.Close()
	if err := p.signal(head, unix.SIGKILL); err != nil {
		return 0, 0, err
	}
	killed := now()
	_, c, err = p.active(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	again = now().Sub(killed)
	lost, err = countLost(ctx, c, prefix)
	return lost, again, err
}

// filled empties the Redis and writes the round's keys. Until a replica follows none
// are acknowledged: the chain is filled once more then, since an order of that may
// rest on a snapshot that does not know of the last round yet.
func (p *redisPair) filled(ctx context.Context, prefix string) (head *sandbox.Node, c *redis.Client, err error) {
	for range 5 {
		if head, c, err = p.active(ctx); err != nil {
			return nil, nil, err
		}
		if err = c.FlushAll(ctx).Err(); err == nil {
			err = writeAcknowledged(ctx, c, prefix)
		}
		if err == nil {
			return head, c, nil
		}
		_ = c.Close()
		if again := p.MakeWhole(ctx); again != nil {
			return nil, nil, errors.Join(err, again)
		}
	}
	return nil, nil, err
}

// active waits until a copy takes a write.
func (p *redisPair) active(ctx context.Context) (head *sandbox.Node, c *redis.Client, err error) {
	err = await(ctx, 60*time.Second, func() error {
		var missing []error
		for _, n := range p.nodes {
			c = redisClient(net.JoinHostPort(n.Plan.Cluster.Addr().String(), p.port), sandbox.RedisPassword(), p.from.dial)
			short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			err := c.Set(short, "written", n.Plan.Index, 0).Err()
			cancel()
			if err == nil {
				head = n
				return nil
			}
			_ = c.Close()
			missing = append(missing, err)
		}
		return errors.Join(missing...)
	})
	return head, c, err
}

// signal sends one to the node's redis-server, which titles itself with its address.
func (p *redisPair) signal(n *sandbox.Node, sig unix.Signal) error {
	all, err := p.processesLike(context.Background(), n.Plan.Name, func(title string) bool {
		return strings.HasPrefix(filepath.Base(title), "redis-server ") && strings.HasSuffix(strings.TrimSpace(title), ":"+p.port)
	})
	if err != nil || len(all) != 1 {
		return fmt.Errorf("%d redis-servers run on %s at port %s: %w", len(all), n.Plan.Name, p.port, err)
	}
	return unix.Kill(all[0].pid, sig)
}

// measureBehind stops the replica, so that what is written then is not
// acknowledged, and kills the active copy: that is lost, and nothing else.
func (b *bench) measureBehind(ctx context.Context, p *redisPair, rounds int) error {
	var lost, beyond []float64
	for i := range rounds {
		n, m, err := p.behind(ctx, fmt.Sprintf("b%d-", i))
		if err == nil {
			lost, beyond = append(lost, float64(n)), append(beyond, float64(m))
			err = p.MakeWhole(ctx)
		}
		if err != nil {
			return fmt.Errorf("a replica that is behind, round %d: %w", i+1, err)
		}
	}
	b.add(figure("keys lost of 20 000 acknowledged, the replica behind", "keys", lost, atMost(0)), "")
	b.add(figure("keys lost of 20 000 more that WAIT did not acknowledge", "keys", beyond, none), "its replica was stopped before them")
	return nil
}

func (p *redisPair) behind(ctx context.Context, prefix string) (lost, beyond int, err error) {
	head, c, err := p.filled(ctx, prefix)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	replica := p.nodes[0]
	if replica == head {
		replica = p.nodes[1]
	}
	if err := p.signal(replica, unix.SIGSTOP); err != nil {
		return 0, 0, err
	}
	goOn := func() error { return p.signal(replica, unix.SIGCONT) }
	for at := 0; at < redisKeys; at += redisBatch {
		if _, err := c.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			for i := at; i < at+redisBatch; i++ {
				pipe.Set(ctx, "more-"+prefix+strconv.Itoa(i), strings.Repeat("v", 1000), 0)
			}
			return nil
		}); err != nil {
			return 0, 0, errors.Join(err, goOn())
		}
	}
	if n, err := acknowledged(ctx, c, "more-last", 200*time.Millisecond); err != nil || n != 0 {
		return 0, 0, errors.Join(fmt.Errorf("a stopped replica on %s, the head on %s: %d have acknowledged", replica.Plan.Name, head.Plan.Name, n), err, goOn())
	}
	if err := errors.Join(p.signal(head, unix.SIGKILL), goOn()); err != nil {
		return 0, 0, err
	}
	_, again, err := p.active(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer again.Close()
	if lost, err = countLost(ctx, again, prefix); err != nil {
		return 0, 0, err
	}
	beyond, err = countLost(ctx, again, "more-"+prefix)
	return lost, beyond, err
}

// measureTwiceEmpty kills the promoted copy, too, before anybody has looked: the
// count is used up, and it comes online empty.
func (b *bench) measureTwiceEmpty(ctx context.Context, p *redisPair) error {
	lost, _, err := p.round(ctx, "t-")
	if err != nil {
		return fmt.Errorf("twice in a row, the first time: %w", err)
	}
	head, c, err := p.active(ctx)
	if err != nil {
		return err
	}
	_ = c.Close()
	if err := p.signal(head, unix.SIGKILL); err != nil {
		return err
	}
	killed := now()
	if _, c, err = p.active(ctx); err != nil {
		return fmt.Errorf("twice in a row, the count used up: %w", err)
	}
	defer c.Close()
	took := now().Sub(killed)
	second, err := countLost(ctx, c, "t-")
	if err != nil {
		return err
	}
	b.add(figure("keys lost of 20 000, twice in a row: the first time", "keys", []float64{float64(lost)}, atMost(0)), "")
	b.add(figure("keys lost of 20 000, twice in a row: the second time, nobody else has a copy", "keys", []float64{float64(second)}, none),
		fmt.Sprintf("activated empty %.0f ms after the kill -9", millis(took)))
	return p.MakeWhole(ctx)
}
