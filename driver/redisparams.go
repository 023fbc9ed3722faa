package driver

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// redisParams are a redis workload's parameters, parsed.
type redisParams struct {
	port         int
	bind         []string // beside the node's cluster address
	user         string   // clients'
	passwordFile string   // as ordered; "": usualFile, if there is one
	usualFile    string
	restart      time.Duration // 0: never
	maxmemory    string
	appendonly   bool
	save         string            // "": none
	config       map[string]string // directives as they stand in the file
}

// Bounds and defaults of the parameters.
const (
	redisPort        = 6379
	redisRestart     = 200 * time.Millisecond
	redisSoonest     = 100 * time.Millisecond // the guard's own bound
	redisPasswords   = "/etc/pvc/redis/"      // <workload>.password
	minRedisPassword = 8                      // bytes
	maxRedisPassword = 512                    // bytes
	// redisReserved begins the names of the driver's own users.
	redisReserved = "pvc-"
)

var (
	redisName   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)
	redisWord   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	redisAmount = regexp.MustCompile(`^[0-9]{1,18}([kKmMgG][bB]?)?$`)
	redisValue  = regexp.MustCompile(`^[A-Za-z0-9$*.,:;+/% _-]{1,256}$`)
	redisSave   = regexp.MustCompile(`^[0-9]{1,9} [0-9]{1,9}( [0-9]{1,9} [0-9]{1,9}){0,7}$`)
)

// redisTuning are the directives that config_<directive> may set, by their
// beginnings: what tunes. All others are refused, also those of a later redis:
// what makes users, listens, follows, names a file, loads code, or keeps what an
// ephemeral copy must lose would open the gate.
var redisTuning = []string{"maxmemory-", "maxclients", "timeout", "tcp-keepalive", "tcp-backlog", "databases", "hz", "dynamic-hz", "lazyfree-",
	"replica-lazy-flush", "io-threads", "activedefrag", "active-defrag-", "active-expire-effort", "activerehashing", "hash-max-", "list-max-", "list-compress-depth",
	"set-max-", "zset-max-", "stream-node-", "hll-", "notify-keyspace-events", "client-output-buffer-limit", "client-query-buffer-limit", "proto-max-bulk-len",
	"slowlog-", "latency-", "lfu-", "repl-backlog-", "repl-timeout", "repl-ping-replica-period", "repl-disable-tcp-nodelay", "min-replicas-",
	"appendfsync", "no-appendfsync-on-rewrite", "auto-aof-rewrite-", "aof-rewrite-incremental-fsync", "aof-load-truncated", "rdbcompression", "rdbchecksum",
	"rdb-save-incremental-fsync", "stop-writes-on-bgsave-error", "lua-time-limit", "busy-reply-threshold", "loglevel", "jemalloc-bg-thread", "tracking-table-max-keys"}

// parseRedis reads a workload's parameters; the error lists all that is wrong.
func parseRedis(w cluster.Workload) (redisParams, error) {
	p := redisParams{port: redisPort, user: "default", usualFile: redisPasswords + w.Name + ".password", restart: redisRestart, config: map[string]string{}}
	var bad []error
	names := make([]string, 0, len(w.Params))
	for name := range w.Params {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := p.set(name, w.Params[name]); err != nil {
			bad = append(bad, fmt.Errorf("parameter %s of workload %s: %w", name, w.Name, err))
		}
	}
	if w.Ephemeral && (p.appendonly || p.save != "") {
		bad = append(bad, fmt.Errorf("workload %s is ephemeral and cannot have appendonly or save: a restarted copy of it comes back empty", w.Name))
	}
	if w.Kind != cluster.WorkloadReplicated {
		bad = append(bad, fmt.Errorf("workload %s is %s: the redis driver runs replicated ones only; a chain of one node has no replica", w.Name, w.Kind))
	}
	return p, errors.Join(bad...)
}

// set takes one parameter in.
func (p *redisParams) set(name, value string) error {
	switch name {
	case "port":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("%q is no port: 1–65535", value)
		}
		p.port = n
	case "bind":
		p.bind = strings.Fields(value)
		for _, a := range p.bind {
			if a != "*" && net.ParseIP(a) == nil {
				return fmt.Errorf("%q is no address; give addresses, or * for all, beside the node's own in the cluster network", a)
			}
		}
	case "user":
		if !redisWord.MatchString(value) || strings.HasPrefix(value, redisReserved) {
			return fmt.Errorf("%q is no user's name: letters, digits, . _ -, not beginning with %q", value, redisReserved)
		}
		p.user = value
	case "password_file":
		if !strings.HasPrefix(value, "/") || strings.ContainsAny(value, "\n\r") {
			return fmt.Errorf("%q is no absolute path", value)
		}
		p.passwordFile = value
	case "restart":
		d, err := time.ParseDuration(value)
		if value == "never" {
			d, err = 0, nil
		} else if err == nil && (d < redisSoonest || d > time.Hour) {
			err = errors.New("out of range")
		}
		if err != nil {
			return fmt.Errorf("%q is neither a time of %v to 1h nor never", value, redisSoonest)
		}
		p.restart = d
	default:
		return p.setMemory(name, value)
	}
	return nil
}

// setMemory takes in what is about memory and disk, and the tuning directives.
func (p *redisParams) setMemory(name, value string) error {
	directive, tuning := strings.CutPrefix(name, "config_")
	switch {
	case name == "maxmemory":
		if !redisAmount.MatchString(value) {
			return fmt.Errorf("%q is no amount, as 512mb", value)
		}
		p.maxmemory = value
	case name == "appendonly":
		if value != "yes" && value != "no" {
			return fmt.Errorf("%q is not yes or no", value)
		}
		p.appendonly = value == "yes"
	case name == "save":
		if value != "" && !redisSave.MatchString(value) {
			return fmt.Errorf("%q is no list of seconds and changes, as \"3600 1 300 100\"", value)
		}
		p.save = value
	case !tuning:
		return errors.New("the redis driver does not know it; it knows port, bind, user, password_file, restart, maxmemory, appendonly, save and config_<directive>")
	case !redisName.MatchString(directive) || !slices.ContainsFunc(redisTuning, func(t string) bool {
		return directive == t || strings.HasSuffix(t, "-") && strings.HasPrefix(directive, t)
	}):
		return fmt.Errorf("the directive %q is none of those that tune: users, addresses, files, replication and code are the driver's", directive)
	case !redisValue.MatchString(value):
		return fmt.Errorf("%q has signs that its configuration file would not take, or is longer than 256", value)
	default:
		p.config[directive] = value
	}
	return nil
}

// persistent reports whether the copy keeps anything on disk.
func (p redisParams) persistent() bool { return p.appendonly || p.save != "" }

// withoutPassword is what ACL SETUSER is given where clients need no password.
const withoutPassword = "nopass"

// password reads what clients authenticate with, and returns it as ACL SETUSER takes
// it. Where no file is ordered and the usual one is absent clients need none, as
// redis has it by itself: they are let in by the gate alone.
func (p redisParams) password() (rule string, err error) {
	if p.passwordFile == "" {
		if p.passwordFile = p.usualFile; absent(p.usualFile) {
			return withoutPassword, nil
		}
	}
	info, err := os.Stat(p.passwordFile)
	if err != nil {
		return "", fmt.Errorf("read the clients' password: %w; put it on this node into that file, readable by root only, the same on all nodes of the chain", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || info.Size() > 4096 {
		return "", fmt.Errorf("the clients' password file %s has mode %v: it must be a plain file that its owner alone can read (chmod 600)", p.passwordFile, info.Mode())
	}
	raw, err := os.ReadFile(p.passwordFile)
	if err != nil {
		return "", fmt.Errorf("read the clients' password: %w", err)
	}
	word := strings.TrimRight(string(raw), "\r\n")
	if len(word) < minRedisPassword || len(word) > maxRedisPassword || strings.ContainsAny(word, "\n\r\x00") {
		return "", fmt.Errorf("the clients' password in %s has %d bytes: one line of %d–%d", p.passwordFile, len(word), minRedisPassword, maxRedisPassword)
	}
	return hashed(word), nil
}

func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}

// hashed is a password as ACL SETUSER takes it: redis keeps no plain one.
func hashed(password string) string {
	sum := sha256.Sum256([]byte(password))
	return "#" + hex.EncodeToString(sum[:])
}

// file is the copy's configuration. It names no user but the driver's own, so that
// a process that was started by it, whoever did it, serves nobody and is copied by
// nobody. Paths in it are relative to the data folder, in which redis works: a
// socket's path is short everywhere then.
func (p redisParams) file(data, host, adminHash string, ephemeral bool) string {
	var b strings.Builder
	line := func(words ...string) { b.WriteString(strings.Join(words, " ") + "\n") }
	line("# Written by the redis driver at each start of the copy.")
	line("daemonize no")
	line("supervised no")
	line("protected-mode yes")
	line("port", strconv.Itoa(p.port))
	bind := []string{"bind", host}
	for _, a := range p.bind {
		if a == "*" {
			bind = []string{"bind", "*", "-::*"}
			break
		}
		bind = append(bind, "-"+a) // an address that is elsewhere now keeps no copy down
	}
	line(bind...)
	line("dir", data)
	line("unixsocket", redisSocket)
	line("unixsocketperm 600")
	line("user default reset off")
	line("user", redisAdmin, "reset on", adminHash, "~* &* +@all")
	line("enable-debug-command no")
	line("enable-module-command no")
	// A resynchronisation goes into a file first: while it comes the process answers,
	// and one that is cut off, or that a promotion ends, leaves what was there before.
	// Loaded without a file between, a source that hangs would hang the copy, too.
	line("repl-diskless-load disabled")
	line("repl-diskless-sync yes")
	line("repl-diskless-sync-delay 0")
	line("repl-timeout 20")
	line("repl-ping-replica-period 2")
	line("replica-read-only yes")
	line("shutdown-timeout 2")
	line("shutdown-on-sigterm force") // else a stop is refused while a first append-only file is written
	line("dbfilename dump.rdb")
	line("rdb-del-sync-files yes")
	if p.maxmemory != "" {
		line("maxmemory", p.maxmemory)
	}
	switch {
	case ephemeral || p.save == "":
		line(`save ""`)
	default:
		line("save", p.save)
	}
	line("appendonly", map[bool]string{true: "yes", false: "no"}[p.appendonly && !ephemeral])
	names := make([]string, 0, len(p.config))
	for name := range p.config {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		line(name, p.config[name])
	}
	return b.String()
}
