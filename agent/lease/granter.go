package lease

import (
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// Granter is a node's word to leaders: whom it serves and until when. It is a
// value; Step returns the next and edits none.
//
//	unstarted ──start──▶ none ──grant──▶ active ──deadline, abolish, leave──▶ expiring
//	    │                 ▲               │ ▲                                   │
//	    ├─a record────────┼──────────────▶│ └─grant, extend: the same holder    │
//	    └─unreadable──────┼──────────────▶┘   (a grant that cannot be           │
//	                      │                    written down goes to expiring)   │
//	                      └──────────────────────work gone──────────────────────┤
//	    any but left ──stop──▶ stopped                     left ◀──work gone────┘
//	                                                             (after leave)
//
// Expiring has no deadline of its own: until the work is dead nobody else may
// begin (I4). Its exit is the registry's ladder, whose last rung ends the agent.
type Granter struct {
	c      GranterConfig
	state  GrantState
	holder cluster.NodeLeaseID // of active and expiring; zero there: not known who
	// last and n are the newest question that did something: a copy of it, or of
	// an earlier one of that start, does nothing more.
	last     cluster.NodeLeaseID
	n        uint64
	deadline cluster.Instant
	period   time.Duration // of the lease: an earlier start may have promised for longer than this one would
	chain    uint64
	began    cluster.Instant // of the chain; Never: unknown, the lease is of an earlier start (L6)
	acquired cluster.Instant // the newest acquisition
	epoch    cluster.Epoch
	epochOf  cluster.NodeID
	revoke   uint64 // number of the newest revocation
	leaving  bool
	waiter   cluster.NodeLeaseID
	disk     diskState
	pending  pendingGrant
	counters GranterCounters
}

// GranterConfig is what a granter knows for good.
type GranterConfig struct {
	Node   cluster.NodeID
	Start  string // random, of this start of the daemon
	Period time.Duration
	Retry  time.Duration // when to ask again while work is being ended
	// LongestPeriod is the longest ever in use on this node: what an unreadable
	// file may have promised. 0: Period.
	LongestPeriod time.Duration
}

// NewGranterConfig returns the configuration that follows from the timing.
func NewGranterConfig(n cluster.NodeID, start string, t cluster.Timing) GranterConfig {
	return GranterConfig{Node: n, Start: start, Period: min(t.NodeLeasePeriod, cluster.MaxNodeLeaseWait), Retry: t.NodeLeaseRenew / 4}
}

// again is how long after a failed write, or a kill that had no end yet, it is
// asked for once more.
const again = time.Second

// diskState is what is known of the file.
type diskState struct {
	record Record // what it says, if known
	known  bool
	seq    uint64 // of the newest write
	flying bool   // which has no answer yet
	next   Record // what it writes
	retry  cluster.Instant
}

// pendingGrant are questions of the holder that wait for the disk.
type pendingGrant struct {
	count  int
	first  bool            // the holder was not served before
	before cluster.Instant // its deadline then
	asked  [4]struct{ ticket, n uint64 }
}

// NewGranter returns a granter that waits for InputStart.
func NewGranter(c GranterConfig) Granter { return Granter{c: c} }

// Step takes in one thing that happened and returns what is to be done, in that
// order. It never fails: what must not happen is counted and returned as
// EffectIllegal.
func (g Granter) Step(in Input, now cluster.Instant) (Granter, []Effect) {
	s := stepping{g: g, now: now}
	s.overdue()
	switch in.Kind {
	case InputStart:
		s.start(in.Found)
	case InputRequest:
		s.request(in)
	case InputTimer:
		s.timer()
	case InputPersisted:
		s.persisted(in)
	case InputWorkGone:
		s.workGone(in.Seq)
	case InputStop:
		s.stop()
	case InputLeave:
		s.leave()
	default:
		s.illegal(fmt.Sprintf("the input %d is not known", in.Kind))
	}
	return s.g, s.out
}

// View shows the granter at an instant.
func (g Granter) View(now cluster.Instant) GranterView {
	v := GranterView{State: g.state, Holder: g.holder, Epoch: g.epoch, Waiting: g.waiter, Pending: g.pending.count > 0, Counters: g.counters}
	if g.state == StateActive {
		v.Left = max(0, g.deadline.Sub(now))
	}
	return v
}

// Check is asked at the instant of an effect that somebody ordered under a lease
// (protocol §7: every remote command carries its id). An empty code is leave.
func (g Granter) Check(id cluster.NodeLeaseID, now cluster.Instant) cluster.Refusal {
	refuse := func(code cluster.RefusalCode, format string, args ...any) cluster.Refusal {
		return cluster.Refusal{Code: code, Node: g.c.Node, Detail: fmt.Sprintf(format, args...)}
	}
	switch {
	case id.IsZero():
		return refuse(cluster.RefuseLeaseMalformed, "an order without a lease is carried out for nobody")
	case id.Epoch < g.epoch:
		return refuse(cluster.RefuseLeaseStale, "the order is of epoch %d, and %d was seen here: another node is primary", id.Epoch, g.epoch)
	case g.state != StateActive || g.holder.IsZero():
		return refuse(cluster.RefuseLeaseLost, "node %s serves nobody now (%s)", g.c.Node, g.state)
	case g.holder != id:
		return refuse(cluster.RefuseLeaseAcquired, "node %s serves %s, not %s", g.c.Node, g.holder, id)
	case !now.Before(g.deadline):
		return refuse(cluster.RefuseLeaseLost, "the lease ended %s ago", now.Sub(g.deadline))
	case g.pending.first && g.pending.count > 0:
		return refuse(cluster.RefuseLeaseLost, "the lease is not written down yet")
	}
	return cluster.Refusal{}
}

// stepping is one step under way: a copy of the granter, and what it asks for.
type stepping struct {
	g   Granter
	now cluster.Instant
	out []Effect
}

func (s *stepping) do(e Effect) { s.out = append(s.out, e) }

func (s *stepping) illegal(what string) {
	s.g.counters.Illegal++
	s.do(Effect{Kind: EffectIllegal, Detail: fmt.Sprintf("%s (the granter is %s)", what, s.g.state)})
}

// overdue ends a lease whose deadline has passed, whatever comes next: a timer
// may be late, and no question may overtake it (L5).
func (s *stepping) overdue() {
	if s.g.state == StateActive && !s.now.Before(s.g.deadline) {
		s.g.counters.Expired++
		s.expire("its time is over")
	}
}

// start takes up what an earlier start promised.
func (s *stepping) start(f Found) {
	g := &s.g
	if g.state != StateUnstarted {
		s.illegal("it was started twice")
		return
	}
	switch f.Kind {
	case FoundNothing:
		g.state = StateNone
	case FoundUnreadable:
		g.counters.Unknown++
		g.period = max(g.c.Period, g.c.LongestPeriod)
		s.restore(cluster.NodeLeaseID{}, g.period)
	default:
		g.disk.record, g.disk.known = f.Record, true
		g.epoch, g.epochOf = f.Record.Epoch, f.Record.EpochOf
		g.period = max(f.Record.Period, g.c.Period)
		switch {
		case !f.Record.Held:
			g.state = StateNone
		case f.Record.Clean:
			s.restore(f.Record.Holder, f.Record.Left)
		default:
			s.restore(f.Record.Holder, g.period)
		}
	}
}

// restore goes on with a lease of an earlier start. Nothing is invented about
// when it was acquired (L6), and the file stays until it says something new (L3).
func (s *stepping) restore(id cluster.NodeLeaseID, left time.Duration) {
	g := &s.g
	g.state, g.holder, g.deadline = StateActive, id, s.now.Add(left)
	g.counters.Restored++
	s.do(Effect{Kind: EffectServe, Lease: id, Until: g.deadline, Detail: "a lease of an earlier start is honoured"})
	if left <= 0 {
		s.overdue()
		return
	}
	s.arm()
}

// timer looks again at what was waited for.
func (s *stepping) timer() {
	g := &s.g
	told := len(s.out) > 0 // it has ended just now
	retry := !g.disk.retry.IsZero() && !s.now.Before(g.disk.retry)
	switch {
	case retry && g.state == StateLeft:
		s.remove()
	case retry:
		s.save()
	}
	if g.state == StateExpiring && !told {
		s.do(Effect{Kind: EffectRevoke, Lease: g.holder, Seq: g.revoke, Detail: "its work still lives"})
	}
	s.arm()
}

// arm sets the timer to what comes next.
func (s *stepping) arm() {
	g := &s.g
	next := g.disk.retry
	switch g.state {
	case StateActive:
		next = cluster.Earliest(next, g.deadline)
	case StateExpiring:
		next = cluster.Earliest(next, s.now.Add(again))
	}
	s.do(Effect{Kind: EffectArm, Until: next})
}

// expire ends the lease: its work must die before anybody else begins.
func (s *stepping) expire(why string) {
	g := &s.g
	g.state = StateExpiring
	g.revoke++
	s.do(Effect{Kind: EffectRevoke, Lease: g.holder, Seq: g.revoke, Detail: why})
	s.arm()
	s.drop(cluster.RefuseLeaseLost, "the lease ended before it was written down")
}

// drop refuses what waits for the disk.
func (s *stepping) drop(code cluster.RefusalCode, why string) {
	p := s.g.pending
	s.g.pending = pendingGrant{}
	for _, w := range p.asked[:p.count] {
		s.refuse(w.ticket, w.n, code, 0, why)
	}
}

// workGone lets the next one in: the record is written and who waits is told.
func (s *stepping) workGone(seq uint64) {
	g := &s.g
	switch {
	case seq == 0 || seq > g.revoke:
		s.illegal(fmt.Sprintf("the end of work that nobody was asked to end (%d, after %d) was told", seq, g.revoke))
		return
	case seq != g.revoke || g.state != StateExpiring: // told twice, or late: it says nothing of what began since
		return
	}
	g.holder, g.began, g.acquired, g.deadline = cluster.NodeLeaseID{}, cluster.Never, cluster.Never, cluster.Never
	if g.leaving {
		s.left()
		return
	}
	g.state = StateNone
	s.save()
	s.arm()
	if !g.waiter.IsZero() && g.waiter.Epoch >= g.epoch {
		s.do(Effect{Kind: EffectInvite, To: g.waiter})
	}
	g.waiter = cluster.NodeLeaseID{}
}

// stop writes down what is left, and grants nothing any more.
func (s *stepping) stop() {
	g := &s.g
	before := g.state
	if before == StateStopped || before == StateLeft {
		return
	}
	s.drop(cluster.RefuseLeaseStopping, "the node's daemon stops")
	record, written := g.record(), g.saved()
	g.state = StateStopped
	s.do(Effect{Kind: EffectArm})
	switch before {
	case StateUnstarted: // what the disk says is not even known
	case StateActive:
		record.Clean, record.Left = true, g.deadline.Sub(s.now)
		s.write(record)
	case StateExpiring: // its work may live: the next start ends it first
		record.Clean = true
		s.write(record)
	default:
		if !written {
			s.write(record)
		}
	}
}

// leave ends all, and then the file goes (L19).
func (s *stepping) leave() {
	g := &s.g
	g.leaving = true
	g.waiter = cluster.NodeLeaseID{}
	switch g.state {
	case StateActive:
		s.expire("this node leaves the cluster")
	case StateExpiring:
	default:
		s.left()
	}
}

func (s *stepping) left() {
	s.g.state, s.g.epoch, s.g.epochOf = StateLeft, 0, ""
	s.remove()
	s.arm()
}
