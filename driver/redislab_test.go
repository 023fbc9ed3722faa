package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"pvc.internal/cluster"
)

const (
	labPassword = "the clients' own word"
	patience    = 60 * time.Second // of a wait on a loaded machine
)

var liveToken = cluster.MintToken(cluster.TokenWire{Activity: "test"}, func() error { return nil })

// redisLab is a pair of nodes, with an address of the loopback each and redis
// processes that are started again when they end, as the guard does it.
type redisLab struct {
	t     *testing.T
	w     cluster.Workload
	nodes map[cluster.NodeID]*labNode
}

type labNode struct {
	name  cluster.NodeID
	host  string
	dir   string
	guard *labGuard
	d     *Redis
}

func newRedisLab(t *testing.T, change func(*cluster.Workload)) *redisLab {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is not installed: apt-get install --no-install-recommends redis-server")
	}
	l := &redisLab{t: t, nodes: map[cluster.NodeID]*labNode{}}
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(labPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.w = cluster.Workload{Name: "cache", ID: "first", Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Ephemeral: true, Wanted: true,
		Chain: []cluster.NodeID{"hv1", "hv2"}, Params: map[string]string{"port": strconv.Itoa(freePort(t)), "password_file": password, "restart": "100ms"}}
	if change != nil {
		change(&l.w)
	}
	for i, name := range []cluster.NodeID{"hv1", "hv2"} {
		g := &labGuard{running: map[string]*labService{}}
		n := &labNode{name: name, host: fmt.Sprintf("127.0.0.%d", 2+i), dir: t.TempDir(), guard: g}
		n.d = l.driver(n)
		l.nodes[name] = n
		t.Cleanup(g.end)
		t.Cleanup(n.d.Close)
	}
	return l
}

// driver is one of a start of the agent.
func (l *redisLab) driver(n *labNode) *Redis {
	return NewRedis(RedisConfig{Guard: n.guard, Dir: n.dir, Host: n.host, Node: n.name})
}

// freePort is one that nobody has on either address.
func freePort(t *testing.T) int {
	t.Helper()
	first, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	return first.Addr().(*net.TCPAddr).Port
}

func (l *redisLab) order(node cluster.NodeID, o cluster.CopyOrder) (cluster.CopyReport, error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	if o.Workload.Name == "" {
		o.Workload = l.w
	}
	if o.Source != nil && o.Source.Host == "" {
		o.Source.Host = l.nodes[o.Source.Node].host
	}
	return l.nodes[node].d.Order(ctx, liveToken, o)
}

func (l *redisLab) must(node cluster.NodeID, o cluster.CopyOrder) cluster.CopyReport {
	l.t.Helper()
	r, err := l.order(node, o)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func (l *redisLab) probe(node cluster.NodeID) cluster.CopyReport {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	r, err := l.nodes[node].d.Probe(ctx, l.w)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// until waits for the copy's state.
func (l *redisLab) until(node cluster.NodeID, state cluster.CopyState, also func(cluster.CopyReport) bool) cluster.CopyReport {
	l.t.Helper()
	var r cluster.CopyReport
	eventually(l.t, func() error {
		r = l.probe(node)
		if r.State != state || also != nil && !also(r) {
			return fmt.Errorf("the copy on %s is %+v, waiting for %s", node, r, state)
		}
		return nil
	})
	return r
}

func eventually(t *testing.T, ok func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; <-time.After(5 * time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// client connects as somebody to a node's copy.
func (l *redisLab) client(node cluster.NodeID, user, password string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: net.JoinHostPort(l.nodes[node].host, l.w.Params["port"]), Username: user, Password: password, Protocol: 2,
		DisableIdentity: true, MaxRetries: -1, DialerRetries: 1, PoolSize: 1, ReadTimeout: 20 * time.Second,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}})
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

// try runs one command as a client.
func (l *redisLab) try(node cluster.NodeID, user, password string, command ...any) (any, error) {
	c := l.client(node, user, password)
	defer c.Close()
	return c.Do(l.t.Context(), command...).Result()
}

// whole brings up hv1 as the head and hv2 as its replica, and writes keys that the
// replica has acknowledged.
func (l *redisLab) whole(secret string, keys int) *redis.Client {
	l.t.Helper()
	l.must("hv1", cluster.CopyOrder{Op: cluster.CopyPromote, Secret: secret})
	l.must("hv2", cluster.CopyOrder{Op: cluster.CopyFollow, Secret: secret, Source: &cluster.CopySource{Node: "hv1"}})
	l.until("hv2", cluster.CopyReplica, nil)
	c := l.client("hv1", "default", labPassword)
	l.write(c, keys)
	return c
}

func (l *redisLab) write(c *redis.Client, keys int) {
	l.t.Helper()
	_, err := c.Pipelined(l.t.Context(), func(p redis.Pipeliner) error {
		for i := range keys {
			p.Set(l.t.Context(), "key"+strconv.Itoa(i), i, 0)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if n, err := c.Wait(l.t.Context(), 1, 15*time.Second).Result(); err != nil || n != 1 {
		l.t.Fatalf("%d replicas have acknowledged: %v", n, err)
	}
}

// keys counts what a copy has, asked as the driver.
func (l *redisLab) keys(node cluster.NodeID) int {
	l.t.Helper()
	s := l.admin(node)
	defer s.close()
	n, err := s.client.DBSize(l.t.Context()).Result()
	if err != nil {
		l.t.Fatal(err)
	}
	return int(n)
}

func (l *redisLab) admin(node cluster.NodeID) *redisSession {
	l.t.Helper()
	folder := filepath.Join(l.nodes[node].dir, l.w.Name)
	password, err := os.ReadFile(filepath.Join(folder, redisSecret))
	if err != nil {
		l.t.Fatal(err)
	}
	var s *redisSession
	eventually(l.t, func() error {
		if s, err = openRedis(l.t.Context(), folder, string(password)); err != nil {
			return err
		}
		f, err := s.look(l.t.Context())
		if err == nil && f.loading {
			err = errors.New("it is loading")
		}
		if err != nil {
			s.close()
		}
		return err
	})
	return s
}

// killed kills the copy's process, and waits until the guard has another.
func (l *redisLab) killed(node cluster.NodeID) {
	l.t.Helper()
	g := l.nodes[node].guard
	pid, starts := g.process(ServiceName(l.w.Name))
	if pid == 0 {
		l.t.Fatal("nothing runs on", node)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
	eventually(l.t, func() error {
		if again, n := g.process(ServiceName(l.w.Name)); again == 0 || n == starts {
			return errors.New("it is not started again")
		}
		return nil
	})
}

// labGuard runs services as the guard does, as far as the driver sees.
type labGuard struct {
	mu      sync.Mutex
	running map[string]*labService
	silent  bool
}

type labService struct {
	cancel context.CancelFunc
	done   chan struct{}
	pid    int
	starts int
	err    string
}

func (g *labGuard) State(context.Context) (cluster.GuardState, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.silent {
		return cluster.GuardState{}, errors.New("the guard does not answer")
	}
	var state cluster.GuardState
	for name, s := range g.running {
		state.Services = append(state.Services, cluster.ServiceState{Name: name, Running: s.pid != 0, PID: s.pid, Starts: s.starts, Error: s.err, Owner: cluster.OwnerNode})
	}
	return state, nil
}

func (g *labGuard) process(name string) (pid, starts int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.running[name]; s != nil {
		return s.pid, s.starts
	}
	return 0, 0
}

func (g *labGuard) StartCopy(_ context.Context, t cluster.Token, spec cluster.ServiceSpec) error {
	if err := t.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.running[spec.Name]; s != nil {
		select {
		case <-s.done:
		default:
			return nil
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &labService{cancel: cancel, done: make(chan struct{})}
	g.running[spec.Name] = s
	started := make(chan struct{})
	go g.run(ctx, s, spec, sync.OnceFunc(func() { close(started) }))
	g.mu.Unlock()
	<-started
	g.mu.Lock()
	return nil
}

func (g *labGuard) run(ctx context.Context, s *labService, spec cluster.ServiceSpec, started func()) {
	defer close(s.done)
	defer started()
	for ctx.Err() == nil {
		cmd := exec.CommandContext(ctx, spec.Command[0], spec.Command[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if spec.User != "" {
			cmd.SysProcAttr.Credential = credential(spec.User)
		}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 5 * time.Second
		g.mu.Lock()
		err := cmd.Start()
		if s.starts++; err == nil {
			s.pid = cmd.Process.Pid
		}
		g.mu.Unlock()
		started()
		if err == nil {
			err = cmd.Wait()
		}
		g.mu.Lock()
		s.pid, s.err = 0, fmt.Sprint(err)
		g.mu.Unlock()
		if spec.Restart == 0 {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(spec.Restart):
		}
	}
}

func (g *labGuard) StopCopy(_ context.Context, t cluster.Token, name string) error {
	if err := t.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	s := g.running[name]
	delete(g.running, name)
	g.mu.Unlock()
	if s != nil {
		s.cancel()
		<-s.done
	}
	return nil
}

func (g *labGuard) end() {
	for _, name := range []string{ServiceName("cache"), ServiceName("other")} {
		if pid, _ := g.process(name); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
		_ = g.StopCopy(context.Background(), liveToken, name)
	}
}

// credential is a user's; nobody's where there is none.
func credential(name string) *syscall.Credential {
	u, err := user.Lookup(name)
	if err != nil {
		return &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}
