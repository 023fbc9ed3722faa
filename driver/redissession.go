package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// redisPatience bounds one command to a copy, and the connection before it: one
// that hangs is told as such.
const redisPatience = 2 * time.Second

// errOtherProcess says that a session's process is gone.
var errOtherProcess = errors.New("the process that was asked is gone")

// redisSession is a kept connection to one process of redis-server, over its unix
// socket. It is dialled once: should the process be replaced by another, all
// further commands fail, so that what was found of one is never applied to the
// next, which may have come back empty.
type redisSession struct {
	client *redis.Client
}

// quiet keeps the client from writing to standard error what its callers are told.
type quiet struct{}

// Printf drops the line.
func (quiet) Printf(context.Context, string, ...any) {}

var quieten = sync.OnceFunc(func() { redis.SetLogger(quiet{}) })

// openRedis connects as the driver's own user. It fails with ECONNREFUSED or
// ENOENT where nothing listens yet. It asks by a command that is answered also while
// a process loads, alone: the client's pipelines may dial anew after a first one.
func openRedis(ctx context.Context, folder, password string) (*redisSession, error) {
	quieten()
	var dialled atomic.Bool
	var trouble atomic.Pointer[error] // with the one connection
	dial := func(ctx context.Context, _, _ string) (_ net.Conn, err error) {
		if dialled.Swap(true) {
			if first := trouble.Load(); first != nil {
				return nil, fmt.Errorf("%w: %w", errOtherProcess, *first)
			}
			return nil, errOtherProcess
		}
		defer func() {
			if err != nil {
				trouble.Store(&err)
			}
		}()
		dir, err := os.Open(filepath.Join(folder, redisData))
		if err != nil {
			return nil, err
		}
		defer dir.Close() // a socket's path has at most 107 bytes, the folder's may have more
		path := filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), redisSocket)
		conn, err := (&net.Dialer{Timeout: redisPatience}).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return &soberConn{Conn: conn, state: lineBegins, trouble: &trouble}, nil
	}
	s := &redisSession{redis.NewClient(&redis.Options{
		Network: "unix", Addr: redisSocket, Dialer: dial, Protocol: 2, Username: redisAdmin, Password: password, DisableIdentity: true,
		MaxRetries: -1, DialerRetries: 1, DialTimeout: redisPatience, ReadTimeout: redisPatience, WriteTimeout: redisPatience, PoolTimeout: 2 * redisPatience,
		ContextTimeoutEnabled: true, PoolSize: 1, ConnMaxIdleTime: -1, ConnMaxLifetime: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})}
	if err := s.guarded(func() error { return s.client.Info(ctx, "server").Err() }); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *redisSession) close() { _ = s.client.Close() }

// guarded turns what the client panics with, on an answer that is none, into an error.
func (s *redisSession) guarded(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("an answer that is none: %v", r)
		}
	}()
	return do()
}

// together runs the commands as one transaction: all of them, in one step of the
// server, or, where it refuses one of them when it is queued, none.
func (s *redisSession) together(ctx context.Context, commands ...[]any) ([]any, error) {
	var done []redis.Cmder
	err := s.guarded(func() error {
		var err error
		done, err = s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
			for _, c := range commands {
				p.Do(ctx, c...)
			}
			return nil
		})
		return err
	})
	var answers []any
	for _, c := range done {
		if cmd, ok := c.(*redis.Cmd); ok {
			answers = append(answers, cmd.Val())
		}
	}
	return answers, err
}

// redisFacts is one look at a process, in one step of it.
type redisFacts struct {
	runID      string
	follows    bool // it is a replica, of host
	host, port string
	linkUp     bool
	downFor    string // seconds that the link has been down, as it says
	syncing    bool   // a resynchronisation is under way
	loading    bool
	offset     int64
	history    string
	keys       bool
	users      map[string]bool // by name: switched on
}

// look asks the process for what it is.
func (s *redisSession) look(ctx context.Context) (redisFacts, error) {
	answers, err := s.together(ctx, []any{"info", "server", "replication", "persistence", "keyspace"}, []any{"acl", "list"})
	if err != nil {
		return redisFacts{}, err
	}
	info, ok := answers[0].(string)
	list, also := answers[1].([]any)
	if !ok || !also {
		return redisFacts{}, errors.New("it answers INFO or ACL LIST by what is neither")
	}
	return readFacts(info, list)
}

// readFacts takes apart what INFO and ACL LIST have said.
func readFacts(info string, list []any) (redisFacts, error) {
	said := map[string]string{}
	f := redisFacts{users: map[string]bool{}}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok {
			said[name] = value
			f.keys = f.keys || strings.HasPrefix(name, "db") && strings.HasPrefix(value, "keys=")
		}
	}
	for _, entry := range list {
		line, _ := entry.(string)
		if words := strings.Fields(line); len(words) > 2 && words[0] == "user" {
			f.users[words[1]] = slices.Contains(words[2:], "on")
		}
	}
	f.runID, f.history, f.host, f.port = said["run_id"], said["master_replid"], said["master_host"], said["master_port"]
	f.follows, f.linkUp, f.downFor = said["role"] == "slave", said["master_link_status"] == "up", said["master_link_down_since_seconds"]
	f.syncing, f.loading = said["master_sync_in_progress"] == "1", said["loading"] == "1" || said["async_loading"] == "1"
	count := "master_repl_offset"
	if f.follows {
		count = "slave_repl_offset"
	}
	var err error
	f.offset, err = strconv.ParseInt(said[count], 10, 64)
	switch {
	case f.runID == "" || f.history == "" || !f.follows && said["role"] != "master":
		return f, fmt.Errorf("INFO names no run_id, master_replid or role (%q)", said["role"])
	case err != nil:
		return f, fmt.Errorf("INFO's %s: %w", count, err)
	case !f.users[redisAdmin]:
		return f, errors.New("ACL LIST does not name the driver's own user")
	}
	return f, nil
}

// holds reports whether what the process has counts as a copy: it was activated
// once, or has finished a resynchronisation, or, where copies outlive their
// process, it has loaded one. The marks are users without any right, in the
// process's memory alone, so that they end with what they speak of. A process that
// was given a source while it held nothing bears the mark of the replication id
// that it had then; the end of its first resynchronisation changes that id. A
// follower without a link and without any key has lost what it had: a disk that is
// full just as a resynchronisation is about to be loaded does that.
func (f redisFacts) holds(ephemeral bool) bool {
	if f.follows && !f.syncing && !f.loading && (f.linkUp || !f.keys) {
		return f.linkUp
	}
	if _, ok := f.users[redisHolds]; ok {
		return true
	}
	for name := range f.users {
		if blank, ok := strings.CutPrefix(name, redisBlank); ok {
			return blank != f.history
		}
	}
	return !ephemeral && (f.keys || f.loading)
}

// mark is the step that marks what the process has now, before it is told whom to
// follow; none where it is marked already.
func (f redisFacts) mark(ephemeral bool) [][]any {
	if f.holds(ephemeral) {
		return [][]any{marked(redisHolds)}
	}
	for name := range f.users {
		if strings.HasPrefix(name, redisBlank) {
			return nil
		}
	}
	return [][]any{marked(redisBlank + f.history)}
}

// soberConn refuses answers that announce more than the driver ever asks for: the
// client makes room for what is announced before any of it has come. No answer
// has anything in it that a client of the workload has written.
type soberConn struct {
	net.Conn
	trouble *atomic.Pointer[error] // what a Read failed with
	state   int                    // lineBegins, withinLine, or how many digits of a length have come
}

const (
	soberDigits = 7 // of a length at most: below 10 MB
	lineBegins  = -1
	withinLine  = -2
)

func (c *soberConn) Read(b []byte) (n int, err error) {
	defer func() {
		if err != nil {
			c.trouble.Store(&err)
		}
	}()
	n, err = c.Conn.Read(b)
	for _, x := range b[:n] {
		switch {
		case x == '\n':
			c.state = lineBegins
		case c.state == lineBegins && (x == '$' || x == '*'):
			c.state = 0
		case c.state >= 0 && x >= '0' && x <= '9':
			if c.state++; c.state > soberDigits {
				return 0, errors.New("it announces an answer of more than 10 MB")
			}
		default:
			c.state = withinLine
		}
	}
	return n, err
}
