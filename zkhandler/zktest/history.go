package zktest

import (
	"fmt"
	"sort"
	"strings"
	"time"
)

// OpInfo describes a request to the rules that lose it or its reply.
type OpInfo struct {
	Client  string // name given to Dialer
	Session int64
	Op      string // create, delete, set, check, multi, get, exists, children, sync, ping, close, auth, setWatches, connect, …
	Path    string // as asked for: a sequential create has no number yet; empty for a multi
	Version int32
	Data    []byte
	Ops     []OpInfo // of a multi
}

// Touches reports whether the request, or an operation of a multi, names the path.
func (o OpInfo) Touches(path string) bool {
	for _, sub := range o.Ops {
		if sub.Touches(path) {
			return true
		}
	}
	return o.Path == path
}

// TouchesBelow reports whether the request, or an operation of a multi, names
// a path that begins with the prefix.
func (o OpInfo) TouchesBelow(prefix string) bool {
	for _, sub := range o.Ops {
		if sub.TouchesBelow(prefix) {
			return true
		}
	}
	return o.Path != "" && strings.HasPrefix(o.Path, prefix)
}

// Does matches requests of this kind that touch the path.
func Does(op, path string) func(OpInfo) bool {
	return func(o OpInfo) bool { return o.Op == op && o.Touches(path) }
}

// HistoryEntry is one committed operation. The operations of a multi share a
// zxid. Session is 0 for what the test itself did.
type HistoryEntry struct {
	Zxid    int64
	At      time.Time
	Client  string
	Session int64
	Op      string // create, delete, set, setACL, createSession, closeSession, expireSession
	Path    string
	Version int32 // the record's after the operation; of a deleted one: its last
	Data    []byte
}

// String renders the entry on one line.
func (h HistoryEntry) String() string {
	return fmt.Sprintf("%x %s %s/%x %s %s v%d %q",
		h.Zxid, h.At.Format("15:04:05.000"), h.Client, h.Session, h.Op, h.Path, h.Version, h.Data)
}

func (s *Server) describe(c *conn, r *request) OpInfo {
	o := OpInfo{Client: c.client, Op: opNames[r.code], Path: r.path, Version: r.version, Data: r.data}
	if o.Op == "" {
		o.Op = fmt.Sprintf("op%d", r.code)
	}
	if c.session != nil {
		o.Session = c.session.id
	}
	for i := range r.ops {
		o.Ops = append(o.Ops, s.describe(c, &r.ops[i]))
	}
	return o
}

// History returns every committed operation since the start, in commit order.
func (s *Server) History() []HistoryEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]HistoryEntry(nil), s.history...)
}

// Dump renders the tree, one znode a line, without ZooKeeper's own.
func (s *Server) Dump() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	paths := make([]string, 0, len(s.tree.nodes))
	for p := range s.tree.nodes {
		if !strings.HasPrefix(p, "/zookeeper") && p != "/" {
			paths = append(paths, p)
		}
	}
	sort.Strings(paths)
	var b strings.Builder
	for _, p := range paths {
		n := s.tree.nodes[p]
		fmt.Fprintf(&b, "%s v%d %q", p, n.stat.Version, n.data)
		if n.stat.EphemeralOwner != 0 {
			fmt.Fprintf(&b, " ephemeral of %x", n.stat.EphemeralOwner)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
