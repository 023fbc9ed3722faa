package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// What a round of the Redis lab is: keys that the one replica has acknowledged, a
// primary without persistence that is killed and is back, empty, soon after, and
// a count once everybody has settled. A full resynchronisation of Redis's own
// begins after 5 s, so a count before that sees keys that are about to go.
const (
	redisKeys    = 20000
	redisBatch   = 1000
	redisRestart = 200 * time.Millisecond
	redisSettles = 20 * time.Second
	redisRounds  = 20
)

// measureRedis counts the keys that are lost when a primary without persistence is
// restarted empty: with plain replication, with Sentinel, with us.
func measureRedis(ctx context.Context, b *bench) error {
	if _, err := exec.LookPath("redis-sentinel"); err != nil {
		return fmt.Errorf("redis is not installed: apt-get install --no-install-recommends redis-server redis-sentinel (%w)", err)
	}
	redis.SetLogger(quietRedis{}) // that nobody listens is what is measured
	ours := b.measureRedisCluster(ctx)
	if ours != nil {
		b.say("   FAILED: %v", ours)
	}
	return errors.Join(ours, b.measureRedisRivals(ctx))
}

// quietRedis drops what the Redis client would write to standard error.
type quietRedis struct{}

// Printf drops the line.
func (quietRedis) Printf(context.Context, string, ...any) {}

func (b *bench) redisRounds() int {
	if b.config.Quick {
		return 3
	}
	return redisRounds
}

// redisRival is another way to keep a Redis alive.
type redisRival struct {
	text string
	down time.Duration // Sentinel's down-after; 0: no Sentinel
	many int           // Sentinels, a majority of which is the quorum
}

var redisRivals = []redisRival{{"plain replication", 0, 0}, {"one Sentinel, down-after 1 s", time.Second, 1}, {"three Sentinels, down-after 1 s", time.Second, 3},
	{"three Sentinels, down-after 5 s", 5 * time.Second, 3}, {"three Sentinels, down-after 30 s", 30 * time.Second, 3}}

// measureRedisRivals runs the control rounds, those of all rivals side by side:
// they wait most of the time.
func (b *bench) measureRedisRivals(ctx context.Context) error {
	lost := make([][]float64, len(redisRivals))
	failed := make([]error, len(redisRivals))
	for i := range b.redisRounds() {
		var wg sync.WaitGroup
		for j, rival := range redisRivals {
			wg.Go(func() {
				n, err := rival.round(ctx)
				for again := 0; errors.Is(err, errNoLab) && again < 3; again++ {
					n, err = rival.round(ctx)
				}
				if err != nil {
					failed[j] = fmt.Errorf("%s, round %d: %w", rival.text, i+1, err)
					return
				}
				lost[j] = append(lost[j], float64(n))
			})
		}
		wg.Wait()
		if err := errors.Join(failed...); err != nil {
			return err
		}
		words := make([]string, len(redisRivals))
		for j, rival := range redisRivals {
			words[j] = fmt.Sprintf("%s %.0f", rival.text, lost[j][i])
		}
		b.say("   round %d, keys lost: %s", i+1, strings.Join(words, "; "))
	}
	for j, rival := range redisRivals {
		b.add(figure("keys lost of 20 000, "+rival.text, "keys", lost[j], none), "counted 20 s later; by round "+spread(lost[j]))
	}
	return nil
}

// spread says how often each value came.
func spread(values []float64) string {
	sorted := slices.Sorted(slices.Values(values))
	var words []string
	for i := 0; i < len(sorted); {
		n := i
		for n < len(sorted) && sorted[n] == sorted[i] {
			n++
		}
		words = append(words, fmt.Sprintf("%d × %.0f", n-i, sorted[i]))
		i = n
	}
	return strings.Join(words, ", ")
}

// errNoLab says that a round's machines did not come together: nothing was measured.
var errNoLab = errors.New("the lab did not come up")

// round is one control round; it returns how many keys are lost.
func (r redisRival) round(ctx context.Context) (lost int, err error) {
	dir, err := newFolder("", "redis")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	ports, err := freePorts(5)
	if err != nil {
		return 0, err
	}
	m := &redisMachines{dir: dir}
	defer m.end()
	primary, replica := ports[0], ports[1]
	// The first synchronisation need not wait; that after the restart does, as by default.
	first, err := m.server(primary, "--repl-diskless-sync-delay", "0")
	if err != nil {
		return 0, err
	}
	if _, err := m.server(replica, "--replicaof", "127.0.0.1 "+primary); err != nil {
		return 0, err
	}
	if err := await(ctx, 30*time.Second, func() error { return linked(ctx, replica) }); err != nil {
		return 0, fmt.Errorf("%w: wait for the replica: %w", errNoLab, err)
	}
	sentinels := ports[2 : 2+r.many]
	if r.down > 0 {
		if err := m.sentinels(ctx, sentinels, primary, r.down); err != nil {
			return 0, fmt.Errorf("%w: %w", errNoLab, err)
		}
	}
	c := redisClient("127.0.0.1:"+primary, "", nil)
	defer c.Close()
	if err := writeAcknowledged(ctx, c, "k"); err != nil {
		return 0, fmt.Errorf("%w: %w", errNoLab, err)
	}
	first.kill()
	if err := pause(ctx, redisRestart); err != nil {
		return 0, err
	}
	if _, err := m.server(primary); err != nil {
		return 0, err
	}
	if err := pause(ctx, redisSettles); err != nil {
		return 0, err
	}
	at := "127.0.0.1:" + primary
	if r.down > 0 {
		s := redisClient("127.0.0.1:"+sentinels[0], "", nil)
		defer s.Close()
		words, err := s.Do(ctx, "sentinel", "get-master-addr-by-name", "m").StringSlice()
		if err != nil || len(words) != 2 {
			return 0, fmt.Errorf("ask Sentinel for the primary: %q %w", words, err)
		}
		at = net.JoinHostPort(words[0], words[1])
	}
	now := redisClient(at, "", nil)
	defer now.Close()
	return countLost(ctx, now, "k")
}

// freePorts are ports of the loopback that nobody listens on.
func freePorts(n int) (ports []string, err error) {
	for range n {
		ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		ports = append(ports, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}

// redisMachines are the processes of a control round.
type redisMachines struct {
	dir string
	all []*redisProcess
}

type redisProcess struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func (m *redisMachines) run(argv ...string) (*redisProcess, error) {
	p := &redisProcess{exec.Command(argv[0], argv[1:]...), make(chan struct{})} //nolint:noctx // end ends it
	p.cmd.SysProcAttr = withUs()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	m.all = append(m.all, p)
	return p, nil
}

func (p *redisProcess) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (m *redisMachines) end() {
	for _, p := range m.all {
		p.kill()
	}
}

// server starts a redis-server without persistence, all else by default.
func (m *redisMachines) server(port string, more ...string) (*redisProcess, error) {
	return m.run(append([]string{"redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", m.dir,
		"--dbfilename", port + ".rdb", "--logfile", filepath.Join(m.dir, port+".log")}, more...)...)
}

// sentinels starts three, and waits until each knows the replica and the others.
func (m *redisMachines) sentinels(ctx context.Context, ports []string, primary string, down time.Duration) error {
	for _, port := range ports {
		conf := filepath.Join(m.dir, "sentinel-"+port+".conf")
		text := fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nlogfile %s.log\nsentinel monitor m 127.0.0.1 %s %d\nsentinel down-after-milliseconds m %d\n",
			port, m.dir, conf, primary, len(ports)/2+1, down.Milliseconds())
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return err
		}
		if _, err := m.run("redis-sentinel", conf); err != nil {
			return err
		}
	}
	for _, port := range ports {
		c := redisClient("127.0.0.1:"+port, "", nil)
		defer c.Close()
		err := await(ctx, 60*time.Second, func() error {
			words, err := c.Do(ctx, "sentinel", "master", "m").StringSlice()
			if err != nil {
				return err
			}
			said := map[string]string{}
			for i := 0; i+1 < len(words); i += 2 {
				said[words[i]] = words[i+1]
			}
			if said["num-slaves"] != "1" || said["num-other-sentinels"] != strconv.Itoa(len(ports)-1) || said["flags"] != "master" {
				return fmt.Errorf("a Sentinel knows %s replicas, %s others, of a %s", said["num-slaves"], said["num-other-sentinels"], said["flags"])
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// redisClient connects as a client of the lab does, without retries of its own.
func redisClient(addr, password string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: addr, Password: password, Dialer: dial, Protocol: 2, DisableIdentity: true, PoolSize: 1, MaxRetries: -1, DialerRetries: 1,
		DialTimeout: time.Second, ReadTimeout: 20 * time.Second, ContextTimeoutEnabled: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
}

func linked(ctx context.Context, port string) error {
	c := redisClient("127.0.0.1:"+port, "", nil)
	defer c.Close()
	info, err := c.Info(ctx, "replication").Result()
	if err == nil && !strings.Contains(info, "master_link_status:up") {
		err = errors.New("its link is down")
	}
	return err
}

// writeAcknowledged writes the round's keys, and returns once a replica has said
// that it has them all.
func writeAcknowledged(ctx context.Context, c *redis.Client, prefix string) error {
	for at := 0; at < redisKeys; at += redisBatch {
		if _, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := at; i < at+redisBatch; i++ {
				p.Set(ctx, prefix+strconv.Itoa(i), "v", 0)
			}
			return nil
		}); err != nil {
			return fmt.Errorf("write keys: %w", err)
		}
	}
	n, err := acknowledged(ctx, c, prefix+"last", 10*time.Second)
	if err == nil && n < 1 {
		err = errors.New("no replica has acknowledged the keys")
	}
	return err
}

// acknowledged writes one more key and tells how many replicas have, within the
// time, all that was written up to it. The write and the WAIT are one pipeline: on a
// connection that was made anew between them nothing was written, which every
// replica has.
func acknowledged(ctx context.Context, c *redis.Client, key string, limit time.Duration) (int64, error) {
	var wait *redis.Cmd
	_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, key, "v", 0)
		wait = p.Do(ctx, "wait", 1, limit.Milliseconds())
		return nil
	})
	if err != nil {
		return 0, err
	}
	return wait.Int64()
}

// countLost counts the round's keys that are not there.
func countLost(ctx context.Context, c *redis.Client, prefix string) (int, error) {
	there := 0
	for at := 0; at < redisKeys; at += redisBatch {
		names := make([]string, redisBatch)
		for i := range names {
			names[i] = prefix + strconv.Itoa(at+i)
		}
		n, err := c.Exists(ctx, names...).Result()
		if err != nil {
			return 0, fmt.Errorf("count keys: %w", err)
		}
		there += int(n)
	}
	return redisKeys - there, nil
}
