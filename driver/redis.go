package driver

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// RedisConfig is what the redis driver needs of its node.
type RedisConfig struct {
	Guard Guard
	// Dir has one folder for each copy; it is made where it is missing. With User set
	// that user must be able to pass through all folders above it.
	Dir  string
	Host string         // this node's address in the cluster network, on which copies listen
	Node cluster.NodeID // this node
	// User is whom redis-server runs as; "": as the guard.
	User string
	// Program is redis-server; "": that of PATH.
	Program string
}

// Names within a copy's folder, and of the driver's users in its process.
const (
	redisSocket   = "redis.sock"
	redisConf     = "redis.conf"
	redisSecret   = "admin"       // the driver's own password, plain, for root alone
	redisSource   = "source.json" // whom the copy was told to follow last
	redisData     = "data"
	redisOf       = "workload"                 // the id of the workload that the copy is of
	redisAdmin    = redisReserved + "admin"    // the driver; in the configuration file
	redisFollower = redisReserved + "follower" // followers of the active copy; in memory only
	redisHolds    = redisReserved + "holds"    // a mark: see redisFacts.holds
	redisBlank    = redisReserved + "blank-"   // a mark, with the replication id
)

// Times of the driver's actions.
const (
	redisStartLimit = 10 * time.Second // until a process that was started answers
	redisBootLimit  = time.Second      // until one that the guard has just started listens
	redisPoll       = 10 * time.Millisecond
	redisSettle     = time.Second // how long an order to follow waits for the link
)

// Redis runs copies that are processes of redis-server, each behind a gate of
// users (protocol §9). The configuration file of a copy names the driver's own
// user and no other, so whoever starts the process, the guard after a crash
// included, gets one that is detached: no client can authenticate, and no other
// copy can follow it, since no user exists for either. Those exist in the memory of
// the process alone, from its activation on: followers come in by the secret of
// that activation, which is stored nowhere. A process that came back empty
// therefore serves nobody, and empties nobody, until the janitor has judged it.
//
//	down ──start──▶ detached ──promote──▶ active ──demote──▶ detached, with data
//	  ▲                │  ▲                  │
//	  │              follow│promote          │ follow: gate closed in the same step
//	  │                ▼  │                  ▼
//	  └─ process ends ─ following ◀──────────┘
//
// What a process is, it is asked for each time; the driver keeps nothing that
// counts, and a restart of the agent changes nothing.
type Redis struct {
	c RedisConfig

	mu       sync.Mutex
	sessions map[string]*redisSession // kept connections, by folder
}

// NewRedis makes the driver. It starts nothing.
func NewRedis(c RedisConfig) *Redis {
	if c.Program == "" {
		c.Program = "redis-server"
	}
	return &Redis{c: c, sessions: map[string]*redisSession{}}
}

// Close ends the kept connections; copies go on.
func (d *Redis) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for folder, s := range d.sessions {
		s.close()
		delete(d.sessions, folder)
	}
}

var redisVersion = regexp.MustCompile(`\bv=(\d+)\.`)

// Check reports what is wrong with a workload: its parameters, the clients'
// password, redis-server itself.
func (d *Redis) Check(ctx context.Context, w cluster.Workload) error {
	p, bad := parseRedis(w)
	if _, err := p.password(); err != nil {
		bad = errors.Join(bad, err)
	}
	return errors.Join(bad, d.installed(ctx))
}

// installed reports why redis-server cannot be run on this node. It is asked before
// each start of a copy.
func (d *Redis) installed(ctx context.Context) error {
	r, err := proc.Run(ctx, proc.Command{Argv: []string{d.c.Program, "--version"}, Timeout: 5 * time.Second})
	if err != nil || r.ExitCode != 0 {
		return fmt.Errorf("redis-server is not installed on node %s, or does not work there (apt-get install redis-server, then systemctl disable --now redis-server): %w",
			d.c.Node, orExit(err, r))
	}
	said := redisVersion.FindSubmatch(r.Stdout)
	if major, err := strconv.Atoi(string(first(said, 1))); err != nil || major < 7 {
		return fmt.Errorf("redis-server on node %s says %q: version 7 or later is needed", d.c.Node, strings.TrimSpace(string(r.Stdout)))
	}
	return nil
}

func first(found [][]byte, i int) []byte {
	if i < len(found) {
		return found[i]
	}
	return nil
}

func orExit(err error, r proc.Result) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("exit status %d: %s", r.ExitCode, strings.TrimSpace(string(r.Stderr)))
}

// redisCopy is one workload's copy on this node, while it is looked at.
type redisCopy struct {
	d      *Redis
	w      cluster.Workload
	p      redisParams
	folder string
}

func (d *Redis) copyOf(w cluster.Workload) (*redisCopy, error) {
	if err := cluster.ValidWorkloadName(w.Name); err != nil { // it becomes a path
		return nil, err
	}
	p, err := parseRedis(w)
	if err != nil {
		return nil, err
	}
	return &redisCopy{d, w, p, filepath.Join(d.c.Dir, w.Name)}, nil
}

// Probe tells what the copy is. The error means that it is not known: the guard
// does not answer, or a process that runs does not, in time.
func (d *Redis) Probe(ctx context.Context, w cluster.Workload) (cluster.CopyReport, error) {
	c, err := d.copyOf(w)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	running, _, err := c.service(ctx)
	if err != nil {
		return cluster.CopyReport{}, err
	}
	if id := c.foreign(); id != "" {
		r := c.blankReport()
		r.Error = "what is here is of an earlier workload of this name (id " + id + ") and does not count; the next start does away with it"
		return r, nil
	}
	if !running {
		return c.down(), nil
	}
	_, f, err := c.seen(ctx)
	if err == nil {
		return c.report(f), nil
	}
	// It may have ended meanwhile, which is known again.
	if running, _, again := c.service(ctx); again == nil && !running {
		return c.down(), nil
	}
	return cluster.CopyReport{}, err
}

// foreign is the id of the workload that the copy's folder is of, where that is
// another one, which was removed while this node was away: "" where it is not.
func (c *redisCopy) foreign() string {
	id, err := os.ReadFile(filepath.Join(c.folder, redisOf))
	if err != nil || string(id) == c.w.ID {
		return ""
	}
	return string(id)
}

// service asks the guard whether the copy's process runs, and what has become of it.
func (c *redisCopy) service(ctx context.Context) (running bool, trouble string, err error) {
	state, err := c.d.c.Guard.State(ctx)
	if err != nil {
		return false, "", fmt.Errorf("ask the guard for the copy of workload %s: %w", c.w.Name, err)
	}
	for _, s := range state.Services {
		if s.Name == ServiceName(c.w.Name) {
			return s.Running, s.Error, nil
		}
	}
	return false, "", nil
}

// down reports a copy of which no process runs.
func (c *redisCopy) down() cluster.CopyReport {
	r := c.blankReport()
	if !c.w.Ephemeral && c.onDisk() {
		r.State = cluster.CopyDead
	}
	return r
}

func (c *redisCopy) blankReport() cluster.CopyReport {
	return cluster.CopyReport{Workload: c.w.Name, ID: c.w.ID, Node: c.d.c.Node, State: cluster.CopyMissing}
}

// onDisk reports whether a process that is started would load anything.
func (c *redisCopy) onDisk() bool {
	for _, name := range []string{"dump.rdb", "appendonlydir/*.manifest"} {
		if found, _ := filepath.Glob(filepath.Join(c.folder, redisData, name)); len(found) > 0 {
			return true
		}
	}
	return false
}

// report says what a process is, by one look at it.
func (c *redisCopy) report(f redisFacts) cluster.CopyReport {
	r := c.blankReport()
	r.Start = f.runID
	if f.holds(c.w.Ephemeral) || !f.follows && f.users[c.p.user] {
		r.State, r.HasOffset, r.Offset, r.History = cluster.CopyPending, true, f.offset, f.history
	}
	if f.follows {
		r.Follows = c.sourceNode(f.host)
	}
	switch {
	case !f.follows && f.users[c.p.user]:
		r.State = cluster.CopyActive
	case f.loading && !f.follows:
		r.Error = "it is loading what is on disk"
	case !f.follows:
	case f.linkUp && !f.syncing && !f.loading && r.State == cluster.CopyPending:
		r.State = cluster.CopyReplica
	case f.syncing || f.loading:
		r.Error = "its resynchronisation with " + f.host + " is under way"
	default:
		r.Error = "its link to " + f.host + " is down since " + f.downFor + " s"
	}
	return r
}

// redisFollowed is whom the copy was told to follow last: redis knows an address,
// not a node.
type redisFollowed struct {
	Host string         `json:"host"`
	Node cluster.NodeID `json:"node"`
}

func (c *redisCopy) sourceNode(host string) cluster.NodeID {
	var s redisFollowed
	raw, err := os.ReadFile(filepath.Join(c.folder, redisSource))
	if err != nil || json.Unmarshal(raw, &s) != nil || s.Host != host {
		return cluster.NoCopy
	}
	return s.Node
}

// seen is a look at the process, which is waited for where nothing listens yet. It
// uses the kept connection, and makes a new one, once, where that is to a process
// that is gone.
func (c *redisCopy) seen(ctx context.Context) (*redisSession, redisFacts, error) {
	end := time.Now().Add(redisBootLimit)
	for {
		s, f, err := c.lookOnce(ctx)
		if err == nil {
			return s, f, nil
		}
		absent := !errors.Is(err, os.ErrDeadlineExceeded) &&
			(errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, errOtherProcess))
		if !absent || time.Now().After(end) || ctx.Err() != nil {
			return nil, f, fmt.Errorf("the redis of workload %s on %s does not answer as it should: %w", c.w.Name, c.d.c.Node, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(redisPoll):
		}
	}
}

func (c *redisCopy) lookOnce(ctx context.Context) (*redisSession, redisFacts, error) {
	d := c.d
	d.mu.Lock()
	s, kept := d.sessions[c.folder]
	d.mu.Unlock()
	if kept {
		f, err := s.look(ctx)
		if err == nil {
			return s, f, nil
		}
		d.drop(c.folder, s)
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, f, err // it hangs: another connection would, too
		}
	}
	password, err := os.ReadFile(filepath.Join(c.folder, redisSecret))
	if err != nil {
		return nil, redisFacts{}, err
	}
	if s, err = openRedis(ctx, c.folder, string(password)); err != nil {
		return nil, redisFacts{}, err
	}
	f, err := s.look(ctx)
	if err != nil {
		s.close()
		return nil, f, err
	}
	d.keep(c.folder, s)
	return s, f, nil
}

// keep keeps a connection in place of an earlier one.
func (d *Redis) keep(folder string, s *redisSession) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.sessions[folder]; old != nil && old != s {
		old.close()
	}
	d.sessions[folder] = s
}

// drop gives up a connection that has failed.
func (d *Redis) drop(folder string, s *redisSession) {
	s.close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sessions[folder] == s {
		delete(d.sessions, folder)
	}
}

// prepare writes what a start of the copy needs. It must not run: the file's
// changes hold from the next start on, and an ephemeral copy's folder is emptied.
func (c *redisCopy) prepare() error {
	data := filepath.Join(c.folder, redisData)
	if err := os.MkdirAll(data, 0o711); err != nil {
		return err
	}
	if c.w.Ephemeral {
		entries, err := os.ReadDir(data)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Name() == redisSocket {
				continue // of a process that the guard may have started again just now
			}
			if err := os.RemoveAll(filepath.Join(data, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := c.write(redisOf, []byte(c.w.ID)); err != nil {
		return err
	}
	secret := filepath.Join(c.folder, redisSecret)
	password, err := os.ReadFile(secret)
	if err != nil || len(password) < 20 {
		password = []byte(rand.Text())
		if err := c.write(redisSecret, password); err != nil {
			return err
		}
	}
	host := c.d.c.Host
	if net.ParseIP(host) == nil {
		return fmt.Errorf("this node's address in the cluster network is %q, which is none", host)
	}
	if err := c.write(redisConf, []byte(c.p.file(data, host, hashed(string(password)), c.w.Ephemeral))); err != nil {
		return err
	}
	return c.handOver(data, filepath.Join(c.folder, redisConf))
}

// write replaces a file of the copy's folder in one step.
func (c *redisCopy) write(name string, content []byte) error {
	path := filepath.Join(c.folder, name)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// handOver closes the copy's folder to others, and gives what is in paths to the
// user whom redis-server runs as. The folder itself stays root's, who writes into
// it: that user must not be able to put a link in the way.
func (c *redisCopy) handOver(data, conf string) error {
	if err := os.Chmod(data, 0o700); err != nil {
		return err
	}
	if c.d.c.User == "" {
		return os.Chmod(c.folder, 0o700)
	}
	u, err := user.Lookup(c.d.c.User)
	if err != nil {
		return fmt.Errorf("find the user whom redis-server runs as: %w", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	// To pass through, not to look.
	return errors.Join(os.Chmod(c.d.c.Dir, 0o711), os.Chmod(c.folder, 0o711), os.Chown(data, uid, gid), os.Chown(conf, uid, gid))
}

// closedAbove reports the first folder above the copies' that, by its mode, the user
// cannot pass through whom redis-server runs as: that one says only that it cannot
// open its file. Access lists may allow more, so it explains a failure, no more.
func (c *redisCopy) closedAbove() error {
	if c.d.c.User == "" {
		return nil
	}
	u, err := user.Lookup(c.d.c.User)
	if err != nil {
		return err
	}
	groups, _ := u.GroupIds()
	for dir := c.d.c.Dir; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		bit := fs.FileMode(0o001)
		switch {
		case ok && strconv.FormatUint(uint64(st.Uid), 10) == u.Uid:
			bit = 0o100
		case ok && slices.Contains(groups, strconv.FormatUint(uint64(st.Gid), 10)):
			bit = 0o010
		}
		if u.Uid != "0" && info.Mode().Perm()&bit == 0 {
			return fmt.Errorf("user %s (workloads.redis_user) may not pass through %s, mode %04o: set workloads.redis_dir elsewhere, or run chmod o+x on it", u.Username, dir, info.Mode().Perm())
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}
