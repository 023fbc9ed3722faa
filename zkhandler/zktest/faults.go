package zktest

import (
	"time"
)

// direction is which way a link is blocked, as bits.
type direction uint8

const (
	toServer direction = 1
	toClient direction = 2
)

// Direction says which half of a client's network OneWay cuts.
type Direction = direction

// The two halves of a network.
const (
	ToServer Direction = toServer // requests are lost, replies and events arrive
	ToClient Direction = toClient // requests arrive and are carried out, replies are lost
)

// route is a client's way to a server; an empty server is all of them.
type route struct{ client, server string }

func (s *Server) isBlocked(client, server string, d direction) bool {
	return (s.blocked[route{client, ""}]|s.blocked[route{client, server}])&d != 0
}

func (s *Server) holdsIn(c *conn) bool {
	m := s.members[c.addr]
	return m.hung || s.isBlocked(c.client, c.addr, toServer)
}

func (s *Server) holdsOut(c *conn) bool { return s.isBlocked(c.client, c.addr, toClient) }

// faultsChanged wakes whoever waits for a fault to begin or end.
func (s *Server) faultsChanged() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Partition blackholes the client's network both ways: nothing fails, nothing
// arrives, and dials hang until their context ends. What was sent is kept and
// arrives after Heal if its connection still stands, as TCP would have it.
func (s *Server) Partition(client string) { s.block(route{client, ""}, toServer|toClient) }

// PartitionFrom blackholes the client's way to one server only.
func (s *Server) PartitionFrom(client, server string) {
	s.block(route{client, server}, toServer|toClient)
}

// OneWay blackholes one half of the client's network. New connections need
// both halves, so dials hang.
func (s *Server) OneWay(client string, d Direction) { s.block(route{client, ""}, d) }

func (s *Server) block(r route, d direction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blocked[r] |= d
	s.faultsChanged()
}

// Heal ends every Partition, PartitionFrom, OneWay and Delay of the client.
func (s *Server) Heal(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.blocked {
		if r.client == client {
			delete(s.blocked, r)
		}
	}
	delete(s.delays, client)
	s.faultsChanged()
}

// Delay makes everything between the client and the servers take d longer,
// each way. It holds for what is sent from now on.
func (s *Server) Delay(client string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delays[client] = d
	s.faultsChanged()
}

// Drop resets every connection of the client. Its session lives on, and it may
// dial again at once.
func (s *Server) Drop(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropWhere(func(c *conn) bool { return c.client == client })
}

func (s *Server) dropWhere(match func(*conn) bool) {
	for c := range s.conns {
		if match(c) {
			c.reset()
		}
	}
}

// Expire ends every session that the client has created, now: ephemerals go,
// the servers close its connections.
func (s *Server) Expire(client string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sess := range s.sortedSessions() {
		if sess.client == client {
			s.endSession(sess, "expireSession")
		}
	}
}

// Sessions returns the ids of the client's live sessions, oldest first.
func (s *Server) Sessions(client string) []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []int64
	for _, sess := range s.sortedSessions() {
		if sess.client == client {
			ids = append(ids, sess.id)
		}
	}
	return ids
}

// Connections returns how many connections of the client the servers hold.
func (s *Server) Connections(client string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for c := range s.conns {
		if c.client == client {
			n++
		}
	}
	return n
}

// effect is what a rule does to a request.
type effect uint8

const (
	noEffect effect = iota
	dropRequest
	dropReply
	lateCommit
)

// Rule is a planted loss; it strikes once unless told otherwise by Times.
type Rule struct {
	s      *Server
	client string
	match  func(OpInfo) bool
	effect effect
	after  time.Duration
	left   int
	hits   int
}

// Times makes the rule strike n times; negative is for ever, 0 disarms it.
func (r *Rule) Times(n int) *Rule {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.left = n
	return r
}

// Hits returns how often the rule has struck.
func (r *Rule) Hits() int {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.hits
}

// DropReply loses the reply to the client's next request that matches, after
// it was carried out, and closes the connection. An empty client is any; match
// must not call the server and may not be nil.
func (s *Server) DropReply(client string, match func(op OpInfo) bool) *Rule {
	return s.addRule(&Rule{client: client, match: match, effect: dropReply})
}

// DropRequest loses the client's next request that matches before it is
// carried out, and closes the connection.
func (s *Server) DropRequest(client string, match func(op OpInfo) bool) *Rule {
	return s.addRule(&Rule{client: client, match: match, effect: dropRequest})
}

// LateCommit closes the connection on the client's next request that matches,
// and carries it out d later. Nothing happens if by then its session has ended
// or has moved to another server, as with the real ensemble; a re-attachment at
// the same server brings it forward.
func (s *Server) LateCommit(client string, match func(op OpInfo) bool, d time.Duration) *Rule {
	return s.addRule(&Rule{client: client, match: match, effect: lateCommit, after: d})
}

func (s *Server) addRule(r *Rule) *Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.s, r.left = s, 1
	s.rules = append(s.rules, r)
	return r
}

func (s *Server) applyRules(c *conn, req *request) (effect, time.Duration) {
	if len(s.rules) == 0 {
		return noEffect, 0
	}
	info := s.describe(c, req)
	for _, r := range s.rules {
		if r.left != 0 && (r.client == "" || r.client == c.client) && r.match(info) {
			r.left--
			r.hits++
			return r.effect, r.after
		}
	}
	return noEffect, 0
}

// heldRequest waits for a leader that can commit.
type heldRequest struct {
	c *conn
	r *request
}

// lateRequest is one that a server has taken and not yet passed on.
type lateRequest struct {
	heldRequest
	timer *time.Timer
	done  bool
}

// postpone keeps a request of a connection that is about to close.
func (s *Server) postpone(c *conn, r *request, after time.Duration) {
	l := &lateRequest{heldRequest: heldRequest{c, r}}
	l.timer = time.AfterFunc(after, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.runLate(l)
	})
	s.late = append(s.late, l)
	s.timers = append(s.timers, l.timer)
}

func (s *Server) runLate(l *lateRequest) {
	if l.done || s.closed {
		return
	}
	l.done = true
	if l.c.session != nil && s.sessions[l.c.session.id] != nil {
		s.execute(l.c, l.r)
	}
}

// commitLate carries out what a session has left at this server: requests stay
// in order behind a re-attachment at the same server.
func (s *Server) commitLate(sess *session, addr string) {
	var rest []*lateRequest
	for _, l := range s.late {
		if l.c.session == sess && l.c.addr == addr {
			l.timer.Stop()
			s.runLate(l)
		}
		if !l.done {
			rest = append(rest, l)
		}
	}
	s.late = rest
}

// Stall stops all commits: writes, syncs, new sessions and re-attachments
// wait, each with everything behind it on its connection; reads and pings are
// served, and no session expires.
func (s *Server) Stall() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled = true
}

// Outage resets every connection and refuses new ones, as an ensemble without
// a quorum does. No session expires meanwhile.
func (s *Server) Outage() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled, s.outage = true, true
	s.dropWhere(func(*conn) bool { return true })
	s.faultsChanged()
}

// Resume ends a Stall or Outage as the election of a leader does: the clocks of
// all sessions start anew, and what waited is carried out in order, also for
// clients that have given up on the connection it came by.
func (s *Server) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stalled, s.outage = false, false
	s.zxid = (s.zxid>>32 + 1) << 32
	for _, sess := range s.sessions {
		s.touch(sess)
	}
	held := s.held
	s.held = nil
	for _, h := range held {
		s.resumeHeld(h)
	}
	s.faultsChanged()
}

// resumeHeld carries out a request that has waited for the leader.
func (s *Server) resumeHeld(h heldRequest) {
	if s.members[h.c.addr].stale != nil {
		s.held = append(s.held, h)
		return
	}
	h.c.busy = false
	switch {
	case h.c.session != nil:
		s.execute(h.c, h.r)
	case !h.c.closed:
		s.execute(h.c, h.r) // a connect request
	}
	h.c.in.nudge()
}

// ServerDown kills a server: its connections are reset, dials refused.
func (s *Server) ServerDown(addr string) {
	s.changeMember(addr, true, func(m *member) { m.down, m.hung = true, false })
}

// ServerHang freezes a server: it accepts connections and says nothing more.
func (s *Server) ServerHang(addr string) {
	s.changeMember(addr, false, func(m *member) { m.hung = true })
}

// LagFollower makes a server fall behind its leader: it serves reads from what
// it knows now and fires no watch. A sync or a write by way of it brings it up
// to date first, and then it falls behind again, until ServerUp.
func (s *Server) LagFollower(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members[addr].lag = s.tree.clone(s.zxid)
}

// catchUp ends a server's lag and fires the watches that it has missed.
func (s *Server) catchUp(addr string) {
	old := s.members[addr].lag
	s.members[addr].lag = nil
	if old == nil {
		return
	}
	for _, p := range changedPaths(old, s.tree) {
		before, now := old.nodes[p], s.tree.nodes[p]
		switch {
		case before == nil:
			s.fire(trigger{eventCreated, p})
		case now == nil || now.stat.Czxid != before.stat.Czxid:
			s.fire(trigger{eventDeleted, p})
		case now.stat.Mzxid != before.stat.Mzxid:
			s.fire(trigger{eventDataChanged, p})
		}
		if before != nil && now != nil && now.stat.Pzxid != before.stat.Pzxid {
			s.fire(trigger{eventChildrenChanged, p})
		}
	}
}

// changedPaths lists, sorted, the znodes that differ between two states.
func changedPaths(old, now *tree) []string {
	changed := map[string]bool{}
	for p, n := range now.nodes {
		if before := old.nodes[p]; before == nil || before.stat != n.stat {
			changed[p] = true
		}
	}
	for p := range old.nodes {
		if now.nodes[p] == nil {
			changed[p] = true
		}
	}
	return sortedKeys(changed)
}

// ServerUp ends ServerDown, ServerHang, CutFollower and LagFollower.
func (s *Server) ServerUp(addr string) {
	s.mu.Lock()
	s.catchUp(addr)
	rejoined := s.members[addr].stale != nil
	s.mu.Unlock()
	s.changeMember(addr, rejoined, func(m *member) { *m = member{} })
}

// CutFollower cuts a server off from its leader. For SyncLimit ticks it goes on
// answering pings and reads, from what it knew, and keeps writes and syncs
// without an answer; meanwhile the leader hears of none of its sessions and
// expires them. Then it drops its connections and refuses new ones, until
// ServerUp.
func (s *Server) CutFollower(addr string) {
	s.mu.Lock()
	stale := s.tree.clone(s.zxid)
	s.members[addr].stale = stale
	s.mu.Unlock()
	limit := time.Duration(s.opts.SyncLimit) * s.opts.TickTime
	notice := time.AfterFunc(limit, func() {
		s.mu.Lock()
		cut := s.members[addr].stale == stale && !s.closed
		s.mu.Unlock()
		if cut {
			s.changeMember(addr, true, func(m *member) { m.down = true })
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timers = append(s.timers, notice)
}

// changeMember edits a server's state; with reset its connections die and what
// they had forwarded to no avail is lost.
func (s *Server) changeMember(addr string, reset bool, edit func(*member)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit(s.members[addr])
	if reset {
		s.dropWhere(func(c *conn) bool { return c.addr == addr })
		var kept []heldRequest
		for _, h := range s.held {
			if h.c.addr != addr {
				kept = append(kept, h)
			}
		}
		s.held = kept
	}
	s.faultsChanged()
}
