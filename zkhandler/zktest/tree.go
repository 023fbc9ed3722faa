package zktest

import (
	"fmt"
	"path"
	"sort"
	"strings"
	"time"
)

// Stat is a znode's bookkeeping, as the protocol has it.
type Stat struct {
	Czxid          int64
	Mzxid          int64
	Ctime          int64 // unix milliseconds
	Mtime          int64 // unix milliseconds
	Version        int32
	Cversion       int32 // child creates and deletes
	Aversion       int32
	EphemeralOwner int64
	DataLength     int32
	NumChildren    int32
	Pzxid          int64
}

// znode is one node. creates counts its children's creations: it numbers
// sequential children, and unlike Stat.Cversion a deletion does not move it.
type znode struct {
	data     []byte
	acl      []ACL
	stat     Stat
	creates  int32
	children map[string]bool
}

// tree is the data of the ensemble, or what a cut-off follower remembers of it.
type tree struct {
	zxid       int64 // up to which a copy goes; unused in the leader's
	nodes      map[string]*znode
	ephemerals map[int64]map[string]bool // by session
}

func newTree() *tree {
	t := &tree{nodes: map[string]*znode{}, ephemerals: map[int64]map[string]bool{}}
	for _, p := range []string{"/", "/zookeeper", "/zookeeper/config", "/zookeeper/quota"} {
		t.nodes[p] = &znode{acl: OpenACL(), children: map[string]bool{}}
	}
	t.nodes["/"].children["zookeeper"] = true
	t.nodes["/zookeeper"].children["config"] = true
	t.nodes["/zookeeper"].children["quota"] = true
	return t
}

// clone copies the tree, as of zxid, for a follower that does not hear of
// later commits.
func (t *tree) clone(zxid int64) *tree {
	c := &tree{zxid: zxid, nodes: make(map[string]*znode, len(t.nodes)), ephemerals: map[int64]map[string]bool{}}
	for p, n := range t.nodes {
		copied := *n
		copied.children = make(map[string]bool, len(n.children))
		for name := range n.children {
			copied.children[name] = true
		}
		c.nodes[p] = &copied
	}
	return c
}

func (n *znode) fullStat() Stat {
	s := n.stat
	s.DataLength = int32(len(n.data))
	s.NumChildren = int32(len(n.children))
	s.Cversion = n.creates*2 - s.NumChildren
	return s
}

func (n *znode) childNames() []string {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// validPath is the server's own check of a path.
func validPath(p string) bool {
	if p == "/" {
		return true
	}
	if !strings.HasPrefix(p, "/") || strings.HasSuffix(p, "/") {
		return false
	}
	for _, part := range strings.Split(p[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return !strings.ContainsFunc(p, func(r rune) bool {
		return r < 0x20 || r >= 0x7f && r <= 0x9f || r >= 0xd800 && r <= 0xf8ff || r >= 0xfff0 && r <= 0xffff
	})
}

// special reports the paths that ZooKeeper keeps to itself.
func special(p string) bool {
	return p == "/" || p == "/zookeeper" || p == "/zookeeper/quota" || p == "/zookeeper/config"
}

// trigger is a change that watches may be waiting for.
type trigger struct {
	event int32
	path  string
}

// change is one transaction under way: it edits the tree at once and can take
// it all back, so that a Multi happens whole or not at all.
type change struct {
	tree     *tree
	zxid     int64
	now      time.Time
	session  int64
	who      []identity // nil and trusted: the test itself
	trusted  bool
	undo     []func()
	triggers []trigger
	entries  []HistoryEntry
}

func (c *change) rollback() {
	for i := len(c.undo) - 1; i >= 0; i-- {
		c.undo[i]()
	}
	c.undo, c.triggers, c.entries = nil, nil, nil
}

func (c *change) may(acl []ACL, perms int32) bool {
	return c.trusted || allowed(acl, c.who, perms)
}

func (c *change) record(op, p string, version int32, data []byte) {
	c.entries = append(c.entries, HistoryEntry{
		Zxid: c.zxid, At: c.now, Session: c.session, Op: op, Path: p, Version: version, Data: data})
}

// result is what one operation yields.
type result struct {
	code int32 // errOK or the error
	path string
	stat Stat
}

func failed(code int32) result { return result{code: code} }

// do carries out one writing operation.
func (c *change) do(r *request) result {
	switch r.code {
	case codeCreate, codeCreate2, codeCreateContainer:
		return c.create(r)
	case codeDelete:
		return c.delete(r.path, r.version)
	case codeSetData:
		return c.setData(r.path, r.data, r.version)
	case codeSetACL:
		return c.setACL(r.path, r.acl, r.version)
	case codeCheck:
		return c.check(r.path, r.version)
	}
	return failed(errUnimplemented)
}

func (c *change) create(r *request) result {
	if r.flags < 0 || r.flags > 6 || !validPath(r.path) && r.flags&2 == 0 {
		return failed(errBadArguments)
	}
	if r.flags > 4 {
		return failed(errUnimplemented)
	}
	slash := strings.LastIndex(r.path, "/")
	if slash < 0 {
		return failed(errBadArguments)
	}
	acl := r.acl
	if !c.trusted {
		var code int32
		if acl, code = fixupACL(r.acl, c.who); code != errOK {
			return failed(code)
		}
	}
	parentPath := max(r.path[:slash], "/")
	parent := c.tree.nodes[parentPath]
	if parent == nil {
		return failed(errNoNode)
	}
	if !c.may(parent.acl, PermCreate) {
		return failed(errNoAuth)
	}
	full := r.path
	if r.flags == 2 || r.flags == 3 {
		full = fmt.Sprintf("%s%010d", r.path, parent.creates)
	}
	switch {
	case !validPath(full):
		return failed(errBadArguments)
	case c.tree.nodes[full] != nil:
		return failed(errNodeExists)
	case parent.stat.EphemeralOwner != 0:
		return failed(errNoChildrenForEph)
	}
	ephemeral := r.flags == 1 || r.flags == 3
	return c.insert(parentPath, full, r.data, acl, ephemeral)
}

func (c *change) insert(parentPath, full string, data []byte, acl []ACL, ephemeral bool) result {
	ms := c.now.UnixMilli()
	n := &znode{data: data, acl: acl, children: map[string]bool{},
		stat: Stat{Czxid: c.zxid, Mzxid: c.zxid, Pzxid: c.zxid, Ctime: ms, Mtime: ms}}
	if ephemeral {
		n.stat.EphemeralOwner = c.session
	}
	parent, name := c.tree.nodes[parentPath], path.Base(full)
	before := *parent
	c.tree.nodes[full] = n
	parent.children[name] = true
	parent.creates++
	parent.stat.Pzxid = c.zxid
	c.tree.own(n.stat.EphemeralOwner, full, true)
	c.undo = append(c.undo, func() {
		delete(c.tree.nodes, full)
		delete(parent.children, name)
		parent.creates, parent.stat = before.creates, before.stat
		c.tree.own(n.stat.EphemeralOwner, full, false)
	})
	c.triggers = append(c.triggers, trigger{eventCreated, full}, trigger{eventChildrenChanged, parentPath})
	c.record("create", full, 0, data)
	return result{path: full, stat: n.fullStat()}
}

// own keeps the index of a session's ephemerals.
func (t *tree) own(session int64, p string, has bool) {
	if session == 0 {
		return
	}
	if !has {
		delete(t.ephemerals[session], p)
		return
	}
	if t.ephemerals[session] == nil {
		t.ephemerals[session] = map[string]bool{}
	}
	t.ephemerals[session][p] = true
}

func (c *change) delete(p string, version int32) result {
	if !validPath(p) || special(p) {
		return failed(errBadArguments)
	}
	parentPath, name := path.Dir(p), path.Base(p)
	n, parent := c.tree.nodes[p], c.tree.nodes[parentPath]
	switch {
	case n == nil:
		return failed(errNoNode)
	case !c.may(parent.acl, PermDelete):
		return failed(errNoAuth)
	case version != -1 && version != n.stat.Version:
		return failed(errBadVersion)
	case len(n.children) > 0:
		return failed(errNotEmpty)
	}
	pzxid := parent.stat.Pzxid
	delete(c.tree.nodes, p)
	delete(parent.children, name)
	parent.stat.Pzxid = c.zxid
	c.tree.own(n.stat.EphemeralOwner, p, false)
	c.undo = append(c.undo, func() {
		c.tree.nodes[p] = n
		parent.children[name] = true
		parent.stat.Pzxid = pzxid
		c.tree.own(n.stat.EphemeralOwner, p, true)
	})
	c.triggers = append(c.triggers, trigger{eventDeleted, p}, trigger{eventChildrenChanged, parentPath})
	c.record("delete", p, n.stat.Version, nil)
	return result{}
}

func (c *change) setData(p string, data []byte, version int32) result {
	n := c.tree.nodes[p]
	switch {
	case !validPath(p):
		return failed(errBadArguments)
	case n == nil:
		return failed(errNoNode)
	case !c.may(n.acl, PermWrite):
		return failed(errNoAuth)
	case version != -1 && version != n.stat.Version:
		return failed(errBadVersion)
	}
	stat, old := n.stat, n.data
	n.data = data
	n.stat.Version++
	n.stat.Mzxid = c.zxid
	n.stat.Mtime = c.now.UnixMilli()
	c.undo = append(c.undo, func() { n.data, n.stat = old, stat })
	c.triggers = append(c.triggers, trigger{eventDataChanged, p})
	c.record("set", p, n.stat.Version, data)
	return result{stat: n.fullStat()}
}

func (c *change) setACL(p string, acl []ACL, version int32) result {
	fixed, code := fixupACL(acl, c.who)
	n := c.tree.nodes[p]
	switch {
	case code != errOK:
		return failed(code)
	case n == nil:
		return failed(errNoNode)
	case !c.may(n.acl, PermAdmin):
		return failed(errNoAuth)
	case version != -1 && version != n.stat.Aversion:
		return failed(errBadVersion)
	}
	n.acl = fixed
	n.stat.Aversion++
	c.record("setACL", p, n.stat.Aversion, nil)
	return result{stat: n.fullStat()}
}

func (c *change) check(p string, version int32) result {
	n := c.tree.nodes[p]
	switch {
	case n == nil:
		return failed(errNoNode)
	case !c.may(n.acl, PermRead):
		return failed(errNoAuth)
	case version != -1 && version != n.stat.Version:
		return failed(errBadVersion)
	}
	return result{}
}
