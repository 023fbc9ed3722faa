package zktest

import (
	"encoding/binary"
	"time"
)

// session is a client's session. It outlives its connections.
type session struct {
	id       int64
	password []byte
	client   string // name of the dialer that created it
	timeout  time.Duration
	expires  time.Duration // since the server's start, rounded up to a tick
	conn     *conn         // latest connection, may be closed
	addr     string        // server it was last attached at: writes by way of another are refused
}

// negotiate clamps a wanted timeout into what the server allows.
func (s *Server) negotiate(wantedMS int32) time.Duration {
	wanted := time.Duration(wantedMS) * time.Millisecond
	return min(max(wanted, s.opts.MinSessionTimeout), s.opts.MaxSessionTimeout)
}

// touch restarts the session's clock. Expiry falls on tick boundaries: it
// comes up to one tick late and never early, as the real tracker's.
func (s *Server) touch(sess *session) {
	tick := s.opts.TickTime
	sess.expires = ((time.Since(s.started)+sess.timeout)/tick + 1) * tick
	select {
	case s.sessionWake <- struct{}{}:
	default:
	}
}

// connect answers the first frame of a connection: a new session, a
// re-attachment, or "expired".
func (s *Server) connect(c *conn, r *request) {
	if r.relativeZxid > s.seen(c.addr) {
		c.shut() // the client has seen more than this server: it must try another
		return
	}
	sess := s.sessions[r.session]
	switch {
	case r.session == 0:
		sess = s.newSession(c)
	case sess == nil || string(sess.password) != string(r.password):
		c.replyConnect(r, 0, 0, make([]byte, 16))
		c.shut()
		return
	default:
		s.commitLate(sess, c.addr)
		if old := sess.conn; old != nil && old.addr == c.addr {
			old.shut()
		}
	}
	sess.timeout = s.negotiate(r.timeoutMS)
	sess.conn, sess.addr, c.session = c, c.addr, sess
	s.touch(sess)
	c.replyConnect(r, sess.timeout, sess.id, sess.password)
}

func (s *Server) newSession(c *conn) *session {
	s.zxid++
	s.nextSession++
	sess := &session{id: s.nextSession, client: c.client, password: make([]byte, 16)}
	binary.BigEndian.PutUint64(sess.password, uint64(sess.id)*0x9e3779b97f4a7c15)
	s.sessions[sess.id] = sess
	s.remember(sess, HistoryEntry{Op: "createSession"})
	return sess
}

func (c *conn) replyConnect(r *request, timeout time.Duration, id int64, password []byte) {
	e := &encoder{}
	e.int32(0)
	e.int32(int32(timeout / time.Millisecond))
	e.int64(id)
	e.bytes(password)
	if r.readOnly {
		e.bool(false)
	}
	c.send(e.frame())
}

// remember appends an entry about a session to the history.
func (s *Server) remember(sess *session, h HistoryEntry) {
	h.Zxid, h.At, h.Client, h.Session = s.zxid, time.Now(), sess.client, sess.id
	s.history = append(s.history, h)
}

// endSession deletes the session's ephemerals in one transaction and closes
// its connections. The reason is closeSession or expireSession.
func (s *Server) endSession(sess *session, reason string) {
	s.zxid++
	ch := &change{tree: s.tree, zxid: s.zxid, now: time.Now(), session: sess.id, trusted: true}
	for _, p := range sortedKeys(s.tree.ephemerals[sess.id]) {
		ch.delete(p, -1)
	}
	delete(s.sessions, sess.id)
	delete(s.tree.ephemerals, sess.id)
	s.remember(sess, HistoryEntry{Op: reason})
	s.publish(ch, sess.client)
	for c := range s.conns {
		cut := s.members[c.addr].stale != nil // a cut-off follower goes on serving the dead session
		if c.session == sess && !cut && (reason == "expireSession" || c != sess.conn) {
			c.shut()
		}
	}
}

// expire ends sessions whose time has come, until the server closes. While
// nobody can commit nothing expires: ending a session is a commit too.
func (s *Server) expire() {
	defer s.wg.Done()
	for {
		wait := time.Hour
		s.mu.Lock()
		for _, sess := range s.sortedSessions() {
			left := sess.expires - time.Since(s.started)
			switch {
			case s.stalled:
			case left <= 0:
				s.endSession(sess, "expireSession")
			default:
				wait = min(wait, left)
			}
		}
		s.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-s.done:
			timer.Stop()
			return
		case <-timer.C:
		case <-s.sessionWake:
			timer.Stop()
		}
	}
}
