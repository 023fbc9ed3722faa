package sandbox

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// redisPassword is the clients' of the sandbox's Redis: of simulated machines, so it
// is no secret.
const redisPassword = "sandbox-redis"

// usualRedisPasswords is where the driver looks for a workload's password, if none is
// named.
const usualRedisPasswords = "/etc/pvc/redis"

// redisPatience bounds one conversation with a copy.
const redisPatience = 5 * time.Second

// redisPasswordFile is where every node finds it.
func (s *Sandbox) redisPasswordFile() string { return filepath.Join(s.options.Dir, "redis.pass") }

// writeRedisPassword makes that file.
func (s *Sandbox) writeRedisPassword() error {
	return os.WriteFile(s.redisPasswordFile(), []byte(redisPassword+"\n"), 0o600)
}

// redisClient talks to one copy of a Redis, from the client's namespace.
type redisClient struct {
	conn net.Conn
	r    *bufio.Reader
}

// redis connects to the workload's active copy. It fails where that serves nobody.
func (s *Sandbox) redis(ctx context.Context, name string) (*redisClient, error) {
	n, err := s.head(name)
	if err != nil {
		return nil, err
	}
	auth, err := redisAuth(s.store.latest().Workloads[name].Value)
	if err != nil {
		return nil, err
	}
	return s.redisOf(ctx, n, s.redisPort(name), auth)
}

// redisAuth is how a client of the workload makes itself known, as AUTH takes it; nil:
// it need not. An operator's own workload may have any password, or none.
func redisAuth(w cluster.Workload) ([]string, error) {
	user, file := cmp.Or(w.Params["user"], "default"), w.Params["password_file"]
	var raw []byte
	var err error
	if file != "" {
		raw, err = os.ReadFile(file)
	} else if raw, err = os.ReadFile(filepath.Join(usualRedisPasswords, w.Name+".password")); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	password := strings.TrimRight(string(raw), "\r\n")
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the password of workload %s: %w", w.Name, err)
	case password == "" && user == "default":
		return nil, nil
	}
	return []string{user, cmp.Or(password, "none")}, nil // of who needs none any will do
}

// redisPort is the workload's.
func (s *Sandbox) redisPort(name string) int {
	if port, err := strconv.Atoi(s.store.latest().Workloads[name].Value.Params["port"]); err == nil {
		return port
	}
	return 6379
}

func (s *Sandbox) redisOf(ctx context.Context, n *Node, port int, auth []string) (*redisClient, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := s.dialClient(ctx, "tcp", fmt.Sprintf("%s:%d", n.Plan.Cluster.Addr(), port))
	if err != nil {
		return nil, fmt.Errorf("connect to the Redis of %s: %w", n.Plan.Name, err)
	}
	_ = conn.SetDeadline(time.Now().Add(redisPatience))
	c := &redisClient{conn, bufio.NewReader(conn)}
	if auth == nil {
		return c, nil
	}
	if _, err := c.do(append([]string{"AUTH"}, auth...)...); err != nil {
		c.close()
		return nil, fmt.Errorf("the Redis of %s lets nobody in: %w", n.Plan.Name, err)
	}
	return c, nil
}

func (c *redisClient) close() { _ = c.conn.Close() }

// do is one command; its answer is a number, or a text.
func (c *redisClient) do(args ...string) (string, error) {
	if err := c.send(args...); err != nil {
		return "", err
	}
	return c.answer()
}

func (c *redisClient) send(args ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	_, err := io.WriteString(c.conn, b.String())
	return err
}

func (c *redisClient) answer() (string, error) {
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	switch {
	case strings.HasPrefix(line, "-"):
		return "", errors.New(line[1:])
	case strings.HasPrefix(line, "+"), strings.HasPrefix(line, ":"):
		return line[1:], nil
	case strings.HasPrefix(line, "$"):
		size, err := strconv.Atoi(line[1:])
		if err != nil || size < 0 {
			return "", err
		}
		text := make([]byte, size+2)
		if _, err := io.ReadFull(c.r, text); err != nil {
			return "", err
		}
		return string(text[:size]), nil
	}
	return "", fmt.Errorf("an answer that is none: %.40q", line)
}

// keyBatch is how many keys are written, or counted, in one piece.
const keyBatch = 1000

// keys are what a client has written into a workload.
type keys struct {
	workload, prefix string
	acked            int // of them a replica has said that it has them
}

func (k keys) name(i int) string { return fmt.Sprintf("%s-%d", k.prefix, i) }

// writeKeys writes keys from number `from` on, and with acked waits after each batch
// until a replica has it.
func (s *Sandbox) writeKeys(ctx context.Context, k keys, from, count int, acked bool) (keys, error) {
	c, err := s.redis(ctx, k.workload)
	if err != nil {
		return k, err
	}
	defer c.close()
	for at := from; at < from+count; at += keyBatch {
		_ = c.conn.SetDeadline(time.Now().Add(redisPatience))
		end := min(at+keyBatch, from+count)
		msets := make([]string, 0, 2*keyBatch+1)
		msets = append(msets, "MSET")
		for i := at; i < end; i++ {
			msets = append(msets, k.name(i), "v")
		}
		if _, err := c.do(msets...); err != nil {
			return k, fmt.Errorf("write keys: %w", err)
		}
		if !acked {
			continue
		}
		if have, err := c.do("WAIT", "1", "3000"); err != nil || have == "0" {
			return k, fmt.Errorf("no replica has acknowledged the keys (%s): %w", have, err)
		}
		k.acked = end
	}
	return k, nil
}

// lostKeys counts the acknowledged keys that are gone, and records it.
func (s *Sandbox) lostKeys(ctx context.Context, k keys, armed bool) (lost int, err error) {
	c, err := s.redis(ctx, k.workload)
	if err != nil {
		return 0, err
	}
	defer c.close()
	there := 0
	for at := 0; at < k.acked; at += keyBatch {
		_ = c.conn.SetDeadline(time.Now().Add(redisPatience))
		ask := make([]string, 0, keyBatch+1)
		ask = append(ask, "EXISTS")
		for i := at; i < min(at+keyBatch, k.acked); i++ {
			ask = append(ask, k.name(i))
		}
		have, err := c.do(ask...)
		if err != nil {
			return 0, fmt.Errorf("count keys: %w", err)
		}
		n, _ := strconv.Atoi(have)
		there += n
	}
	lost = k.acked - there
	s.history.Add(Entry{Kind: KindKeys, Name: k.workload, N: uint64(k.acked), Lost: uint64(lost), On: armed})
	return lost, nil
}

// signalRedis sends a signal to the node's redis-server on the port.
func (s *Sandbox) signalRedis(n *Node, port int, sig unix.Signal) error {
	r := n.lastRunning.Load()
	if r == nil {
		return fmt.Errorf("%s has no power", n.Plan.Name)
	}
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", r.pid))
	if err != nil {
		return fmt.Errorf("find the network of %s: %w", n.Plan.Name, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if net, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); net != home {
			continue
		}
		// redis-server titles itself "redis-server ADDRESS:PORT".
		title, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if text := string(title); strings.Contains(text, "redis-server") && strings.Contains(text, fmt.Sprintf(":%d", port)) {
			s.history.Add(Entry{Kind: KindProgram, Node: n.Plan.Name, Name: "redis-server", Text: unix.SignalName(sig)})
			return unix.Kill(pid, sig)
		}
	}
	return fmt.Errorf("no redis-server runs on %s at port %d", n.Plan.Name, port)
}

// replicated waits until every Redis has as many replicas as its chain has places
// for, and all of them follow: before that the loss of one more node is another
// fault than the one that is meant, since it may hold the only copy.
func (s *Sandbox) replicated(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	for {
		err := s.unreplicated(ctx)
		if err == nil || pause(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

func (s *Sandbox) unreplicated(ctx context.Context) error {
	for name, w := range s.store.latest().Workloads {
		if !w.Present || w.Err != nil || w.Value.Driver != cluster.DriverRedis || !w.Value.Wanted {
			continue
		}
		c, err := s.redis(ctx, name)
		if err != nil {
			return err
		}
		text, err := c.do("INFO", "replication")
		c.close()
		if err != nil {
			return fmt.Errorf("ask workload %s for its replicas: %w", name, err)
		}
		if have, want := strings.Count(text, "state=online"), len(w.Value.Members())-1; have < want {
			return fmt.Errorf("workload %s has %d replicas of %d", name, have, want)
		}
	}
	return nil
}

// armReprovision gives auto-reprovision its whole count back, as an operator's reset
// after a look would.
func (s *Sandbox) armReprovision(ctx context.Context) error {
	for {
		snap, err := s.store.Refresh(ctx)
		if err != nil {
			return fmt.Errorf("read auto-reprovision's settings: %w", err)
		}
		want := cluster.DefaultReprovisionSettings()
		if r := snap.Reprovision; !r.Present || r.Err == nil && r.Value.Enabled && r.Value.Count == 0 && r.Value.MaxNodes == want.MaxNodes {
			return nil
		}
		key := cluster.Key{Kind: cluster.KeyReprovision}
		res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.reprovision", Ops: []cluster.Op{cluster.Put(key, snap.Reprovision, want)}})
		if res.Outcome == cluster.OutcomeOK {
			return nil
		}
		if res.Outcome != cluster.OutcomeConflict || ctx.Err() != nil {
			return fmt.Errorf("write auto-reprovision's settings: %s: %w", res.Outcome, res.Err)
		}
	}
}

// armed reports whether an empty head keeps its workload offline now.
func (s *Sandbox) armed() bool {
	r := s.store.latest().Reprovision
	if !r.Present {
		return cluster.DefaultReprovisionSettings().Armed()
	}
	return r.Err == nil && r.Value.Armed()
}

// Bounds of a rebalance that the sandbox orders.
const (
	rebalanceLimit = time.Minute
	rebalanceAnew  = 500 * time.Millisecond
)

// rebalance has the places that nobody fills in chains filled, as an operator does
// once the node that came back empty is well. One that ends with gaps is ordered
// anew: a node that has just come back takes copies only once the primary has heard
// from it, and a rebalance that can do nothing is done.
func (s *Sandbox) rebalance(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, rebalanceLimit)
	defer cancel()
	for {
		snap, err := s.store.Refresh(limited)
		if err != nil {
			return fmt.Errorf("read the workloads: %w", err)
		}
		left := gaps(snap)
		if len(left) == 0 {
			return nil
		}
		text, err := s.rebalanceOnce(limited, snap)
		if err != nil {
			return err
		}
		if text == "" {
			continue
		}
		if pause(limited, rebalanceAnew) != nil {
			return fmt.Errorf("no rebalance fills %s: %s", strings.Join(left, "; "), text)
		}
	}
}

// gaps are the workloads with a place in their chain that nobody fills.
func gaps(snap *cluster.Snapshot) []string {
	var left []string
	for _, name := range slices.Sorted(maps.Keys(snap.Workloads)) {
		if w := snap.Workloads[name]; w.Present && w.Err == nil && slices.Contains(w.Value.Chain, cluster.NoCopy) {
			left = append(left, fmt.Sprintf("the chain of workload %s, %v (it is %s %s)", name, w.Value.Chain, w.Value.State, w.Value.Reason))
		}
	}
	return left
}

// rebalanceOnce orders one, upon that snapshot, and waits for its end, of which it
// returns what was said; empty where chains are whole by then, or somebody else's
// order came first. An error: it does not end.
func (s *Sandbox) rebalanceOnce(ctx context.Context, snap *cluster.Snapshot) (text string, err error) {
	order := cluster.Rebalance{Version: 1, ID: fmt.Sprintf("sandbox-%d", now()), By: "sandbox", AtMS: time.Now().UnixMilli(), State: cluster.RebalanceOrdered}
	res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.rebalance", Ops: []cluster.Op{cluster.Put(cluster.Key{Kind: cluster.KeyRebalance}, snap.Rebalance, order)}})
	switch res.Outcome {
	case cluster.OutcomeOK:
	case cluster.OutcomeConflict:
		return "", nil
	default:
		return "", fmt.Errorf("order a rebalance: %s: %w", res.Outcome, res.Err)
	}
	err = s.store.wait(ctx, func(snap *cluster.Snapshot) error {
		r := snap.Rebalance.Value
		switch {
		case snap.Rebalance.Version < res.Versions[0]:
			return errors.New("the order of a rebalance is not seen yet")
		case !r.Ended(): // it may be another one, which has overtaken ours
			return fmt.Errorf("the rebalance is %s, %d of %d: %s; it is to fill %s", r.State, r.Done, r.Total, r.Text, strings.Join(gaps(snap), "; "))
		case len(gaps(snap)) > 0:
			text = strings.TrimSpace(fmt.Sprintf("the rebalance was %s, %d of %d. %s", r.State, r.Done, r.Total, r.Text))
		}
		return nil
	})
	return text, err
}
