package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// The bounds and defaults of a Config.
const (
	defaultSessionTimeout = 6 * time.Second
	defaultRequestTimeout = 800 * time.Millisecond
	defaultResync         = 15 * time.Second
	minSessionTimeout     = 400 * time.Millisecond
	maxSessionTimeout     = time.Minute
)

// Digest is an identity of ZooKeeper's digest scheme.
type Digest struct {
	User     string
	Password string
}

// ReadDigest makes a Digest of a user and the first line of a password file.
// It returns nil, nil when both are empty.
func ReadDigest(user, passwordFile string) (*Digest, error) {
	if user == "" && passwordFile == "" {
		return nil, nil
	}
	text, err := os.ReadFile(passwordFile)
	if err != nil {
		return nil, fmt.Errorf("read the ZooKeeper password of user %q: %w", user, err)
	}
	password, _, _ := strings.Cut(string(text), "\n")
	return &Digest{User: user, Password: strings.TrimRight(password, "\r")}, nil
}

func (d *Digest) validate(key string) error {
	switch {
	case d == nil:
		return nil
	case d.User == "" || strings.ContainsAny(d.User, ":\n"):
		return fmt.Errorf("%s.user %q: give a name without ':'", key, d.User)
	case d.Password == "":
		return fmt.Errorf("%s: the password of user %q is empty", key, d.User)
	}
	return nil
}

// Config says how to reach ZooKeeper and what to watch there.
type Config struct {
	// Servers are "host", "host:port" or "[v6]:port"; the first is this
	// node's own and is preferred. At least one.
	Servers []string
	// Root prefixes all paths; "" and "/" mean none.
	Root string
	// SessionTimeout is what is asked for, 0.4–60 s; default 6 s. The server
	// may grant another: see SessionState.Granted.
	SessionTimeout time.Duration
	// RequestTimeout bounds each request to ZooKeeper, whatever its context
	// says; default 0.8 s, at most SessionTimeout.
	RequestTimeout time.Duration
	// Auth, when set, is who we are and who may write what we create.
	Auth *Digest
	// Reader, when set, may read what we create. Only with Auth or TLS.
	Reader *Digest
	// TLS, when set, is used to every server.
	TLS *TLSFiles
	// Dial replaces the TCP dialer; nil is the real one.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// WatchNodes adds every node's and every workload's records to the snapshot.
	// Small clients leave it out; their Snapshot.Nodes is empty, but for WatchNode,
	// and their Workloads, Reprovision and Rebalance are.
	WatchNodes bool
	// WatchNode, where set and WatchNodes is not, adds the records of one node,
	// this client's own, also while there are none: of who judges no other, what
	// is asked of the servers must not grow with the number of nodes. Its
	// keepalive is read with each Refresh only.
	WatchNode cluster.NodeID
	// Calm is how long to wait after a watch has fired before reading again, so
	// that clients that only look on leave the servers to those that act in the
	// moment of a change; default none.
	Calm time.Duration
	// Resync is how often all watched records are read again although no
	// watch fired; default 15 s.
	Resync time.Duration
	// CheckServers reads the intervals of each server that a session comes to
	// live on (the four-letter word conf) and warns, once, when they do not fit
	// the session's time-out. For daemons; it opens a connection of its own.
	CheckServers bool
	// NewestSchema holds the program back to an earlier schema than it knows, as
	// the linker does; 0: the newest that it knows.
	NewestSchema int
}

func (c Config) withDefaults() Config {
	if c.SessionTimeout == 0 {
		c.SessionTimeout = defaultSessionTimeout
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = min(defaultRequestTimeout, c.SessionTimeout/3)
	}
	if c.Resync == 0 {
		c.Resync = defaultResync
	}
	return c
}

// Validate reports everything that is wrong with the settings, in the words of
// the configuration file.
func (c Config) Validate() error {
	c = c.withDefaults()
	var faults []error
	add := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	_, err := parseServers(c.Servers)
	add(err)
	_, err = newSchema(c.Root)
	add(err)
	add(c.Auth.validate("zookeeper.auth"))
	add(c.Reader.validate("zookeeper.reader"))
	add(c.TLS.validate())
	if c.WatchNode != "" {
		add(c.WatchNode.Validate())
		if c.WatchNodes {
			add(fmt.Errorf("either all nodes are watched or %s alone", c.WatchNode))
		}
	}
	if c.Reader != nil && c.Auth == nil && !c.TLS.identifies() {
		add(errors.New("zookeeper.reader is set without zookeeper.auth or a TLS client certificate: without a writer's identity everybody may write"))
	}
	if c.SessionTimeout < minSessionTimeout || c.SessionTimeout > maxSessionTimeout {
		add(fmt.Errorf("session_timeout %s is outside %s–%s", c.SessionTimeout, minSessionTimeout, maxSessionTimeout))
	}
	if c.RequestTimeout < time.Millisecond || c.RequestTimeout > c.SessionTimeout {
		add(fmt.Errorf("the request time-out %s must lie between 1ms and the session_timeout %s", c.RequestTimeout, c.SessionTimeout))
	}
	if c.Resync < 100*time.Millisecond {
		add(fmt.Errorf("the resync interval %s is below 100ms", c.Resync))
	}
	return errors.Join(faults...)
}
