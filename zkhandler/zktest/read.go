package zktest

import (
	"fmt"
	"sort"
	"strings"
)

// view is the tree as this server knows it.
func (s *Server) view(addr string) *tree {
	if old := s.members[addr].knows(); old != nil {
		return old
	}
	return s.tree
}

// seen is the latest transaction that this server knows of.
func (s *Server) seen(addr string) int64 {
	if old := s.members[addr].knows(); old != nil {
		return old.zxid
	}
	return s.zxid
}

// read carries out what needs no leader.
func (s *Server) read(c *conn, r *request) {
	switch r.code {
	case codePing:
		r.xid = xidPing
		c.reply(r, errOK, nil)
	case codeAuth:
		s.auth(c, r)
	case codeSetWatches:
		s.setWatches(c, r)
		c.reply(r, errOK, nil)
	case codeExists, codeGetData, codeGetACL, codeGetChildren, codeGetChildren2:
		code, body := s.readNode(c, r)
		c.reply(r, code, body)
	default:
		c.reply(r, errUnimplemented, nil)
		c.shut()
	}
}

// auth adds an identity to the connection. A wrong password is no error: it
// merely proves to be somebody else. An unknown scheme ends the connection.
func (s *Server) auth(c *conn, r *request) {
	if r.scheme != "digest" {
		c.reply(r, errAuthFailed, nil)
		c.shut()
		return
	}
	c.who = append(c.who, digestIdentity(r.data))
	c.reply(r, errOK, nil)
}

func (s *Server) readNode(c *conn, r *request) (int32, []byte) {
	n := s.view(c.addr).nodes[r.path]
	if r.code == codeExists && r.watch {
		s.watch(s.dataWatches, c.data, r.path, c)
	}
	if n == nil {
		return errNoNode, nil
	}
	perms := PermRead
	switch r.code {
	case codeExists:
		perms = PermAll
	case codeGetACL:
		perms = PermRead | PermAdmin
	}
	if r.code != codeExists && !allowed(n.acl, c.who, perms) {
		return errNoAuth, nil
	}
	e := &encoder{}
	switch r.code {
	case codeExists:
		e.stat(n.fullStat())
	case codeGetData:
		if r.watch {
			s.watch(s.dataWatches, c.data, r.path, c)
		}
		e.bytes(n.data)
		e.stat(n.fullStat())
	case codeGetACL:
		acl := n.acl
		if !allowed(n.acl, c.who, PermAdmin) {
			acl = maskACL(acl)
		}
		e.acl(acl)
		e.stat(n.fullStat())
	default:
		if r.watch {
			s.watch(s.childWatches, c.childs, r.path, c)
		}
		e.strings(n.childNames())
		if r.code == codeGetChildren2 {
			e.stat(n.fullStat())
		}
	}
	return errOK, e.buf
}

// watch registers a one-shot watch in the index and with its connection.
func (s *Server) watch(index map[string]map[*conn]bool, own map[string]bool, path string, c *conn) {
	if c.closed {
		return
	}
	if index[path] == nil {
		index[path] = map[*conn]bool{}
	}
	index[path][c] = true
	own[path] = true
}

func unwatch(index map[string]map[*conn]bool, path string, c *conn) {
	delete(index[path], c)
	if len(index[path]) == 0 {
		delete(index, path)
	}
}

// fire tells whoever watches for the change. A deletion fires data and child
// watches of the path, but tells each connection once.
func (s *Server) fire(t trigger) {
	told := map[*conn]bool{}
	if t.event != eventChildrenChanged {
		s.fireIndex(s.dataWatches, t, told)
	}
	if t.event == eventChildrenChanged || t.event == eventDeleted {
		s.fireIndex(s.childWatches, t, told)
	}
}

func (s *Server) fireIndex(index map[string]map[*conn]bool, t trigger, told map[*conn]bool) {
	watchers := make([]*conn, 0, len(index[t.path]))
	for c := range index[t.path] {
		if s.members[c.addr].knows() == nil { // else it does not hear of the change
			watchers = append(watchers, c)
		}
	}
	sort.Slice(watchers, func(i, j int) bool { return watchers[i].id < watchers[j].id })
	for _, c := range watchers {
		unwatch(index, t.path, c)
		own := c.data
		if t.event == eventChildrenChanged || t.event == eventDeleted && !c.data[t.path] {
			own = c.childs
		}
		delete(own, t.path)
		if !told[c] {
			c.event(t.event, t.path)
		}
		told[c] = true
	}
}

// setWatches re-registers a reconnected client's watches, and fires at once
// those whose change it has missed.
func (s *Server) setWatches(c *conn, r *request) {
	nodes := s.view(c.addr).nodes
	for _, p := range r.dataPaths {
		switch n := nodes[p]; {
		case n == nil:
			c.event(eventDeleted, p)
		case n.stat.Mzxid > r.relativeZxid:
			c.event(eventDataChanged, p)
		default:
			s.watch(s.dataWatches, c.data, p, c)
		}
	}
	for _, p := range r.existPaths {
		if nodes[p] != nil {
			c.event(eventCreated, p)
		} else {
			s.watch(s.dataWatches, c.data, p, c)
		}
	}
	for _, p := range r.childs {
		switch n := nodes[p]; {
		case n == nil:
			c.event(eventDeleted, p)
		case n.stat.Pzxid > r.relativeZxid:
			c.event(eventChildrenChanged, p)
		default:
			s.watch(s.childWatches, c.childs, p, c)
		}
	}
}

// words are the four-letter words that are answered.
var words = []string{"ruok", "srvr", "conf", "mntr"}

func isWord(head []byte) bool {
	for _, w := range words {
		if string(head) == w {
			return true
		}
	}
	return false
}

// word answers a four-letter word with the lines that tools look for.
func (s *Server) word(w, addr string) string {
	role := "follower"
	if addr == s.opts.Servers[0] {
		role = "leader"
	}
	var b strings.Builder
	switch w {
	case "ruok":
		b.WriteString("imok")
	case "srvr":
		fmt.Fprintf(&b, "Zookeeper version: 3.8.0\nZxid: %#x\nMode: %s\nNode count: %d\n", s.zxid, role, len(s.tree.nodes))
	case "conf":
		fmt.Fprintf(&b, "tickTime=%d\nminSessionTimeout=%d\nmaxSessionTimeout=%d\ninitLimit=10\nsyncLimit=%d\n",
			s.opts.TickTime.Milliseconds(), s.opts.MinSessionTimeout.Milliseconds(),
			s.opts.MaxSessionTimeout.Milliseconds(), s.opts.SyncLimit)
	case "mntr":
		fmt.Fprintf(&b, "zk_server_state\t%s\nzk_znode_count\t%d\nzk_num_alive_connections\t%d\n",
			role, len(s.tree.nodes), len(s.conns))
	}
	return b.String()
}
