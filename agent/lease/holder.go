package lease

import (
	"time"

	"pvc.internal/cluster"
)

// HolderMode is what a holder waits for.
type HolderMode uint8

// The modes of a holder; see Holder.
const (
	HolderIdle HolderMode = iota
	HolderAsking
	HolderHeld
	HolderBackoff
)

func (m HolderMode) String() string {
	return [...]string{"idle", "asking", "held", "backoff"}[min(m, HolderBackoff)]
}

// Holder is what the primary knows of its lease of one node, and when it asks
// next. It is a value; Step returns the next and edits none.
//
//	idle ──wanted──▶ asking ──yes──▶ held ──renew──▶ asking
//	  ▲                │ ▲
//	  │                │ └──────the wait is over, or the node invites──┐
//	  │                └──no, or no answer──▶ backoff ─────────────────┘
//	  └──not wanted any more (with abolish, if it may be held)── any
//
// The mode tells what is waited for; whether the lease is held is Until alone:
// a renewal without an answer leaves the belief as it was until its deadline, a
// refusal that revokes ends it at once.
type Holder struct {
	c        HolderConfig
	mode     HolderMode
	until    cluster.Instant // the lease is believed in before; Never: not held
	since    cluster.Instant // held without a gap
	n        uint64          // number of the newest question
	sent     cluster.Instant // and when it was sent
	wake     cluster.Instant
	op       cluster.NodeLeaseOp
	attempts int  // without an answer, in a row
	told     bool // the node said how long to wait
	// settled is when no copy of an abolition can arrive any more: asked again
	// before, the node might take it for the end of what it gives then.
	settled  cluster.Instant
	maybe    bool // the node may serve this leader, whatever is believed here
	known    acquisitions
	last     Refusal
	counters HolderCounters
}

// HolderConfig is what a holder knows for good.
type HolderConfig struct {
	ID      cluster.NodeLeaseID
	Node    cluster.NodeID
	Period  time.Duration
	Renew   time.Duration
	Grace   time.Duration
	Timeout time.Duration // of one question
}

// NewHolderConfig returns the configuration that follows from the timing.
func NewHolderConfig(id cluster.NodeLeaseID, n cluster.NodeID, t cluster.Timing) HolderConfig {
	return HolderConfig{ID: id, Node: n, Period: min(t.NodeLeasePeriod, cluster.MaxNodeLeaseWait), Renew: t.NodeLeaseRenew, Grace: t.NodeLeaseGrace, Timeout: t.RequestTimeout()}
}

// Waits for a node that does not answer: the first, doubled each time, and the
// longest while no majority is held, when each node counts. leastWait keeps a
// node that answers nonsense from being asked without a pause.
const (
	firstBackoff = 500 * time.Millisecond
	soonBackoff  = time.Second
	leastWait    = 10 * time.Millisecond
)

// HolderInputKind says what has happened to a holder.
type HolderInputKind uint8

// What happens to a holder.
const (
	HolderTimer    HolderInputKind = iota // look again; also to begin
	HolderAnswer                          // HolderInput.Answer has come
	HolderNoAnswer                        // HolderInput.N failed or took too long
	HolderInvited                         // the node serves nobody now
)

// HolderInput is one thing that happened, and what is wanted now: the latest
// membership wins (L18).
type HolderInput struct {
	Kind   HolderInputKind
	Wanted bool // this leader leads and the node is a member
	// Majority: a majority of the quorum set is held now.
	Majority bool
	// Dead: nothing that hung on the lease lives any more here, so that it may be
	// given back where it is not wanted.
	Dead   bool
	Answer cluster.NodeLeaseAnswer
	N      uint64 // of the question without an answer
	Why    string // for people
}

// Refusal is why a lease was not given, or given up.
type Refusal struct {
	Code   cluster.RefusalCode // no_answer where there was none
	Detail string
	At     cluster.Instant
}

// HolderOutput is what a step asks for, in this order: Lost, then Held, then Ask.
type HolderOutput struct {
	// Lost: the lease is not believed in any more. What hangs on it ends now; the
	// ledger's entry is withdrawn first.
	Lost *Refusal
	// Held is set when the belief has begun or moved: Until and Since say to when.
	Held  bool
	Until cluster.Instant
	Since cluster.Instant
	// Ask goes to the node with the deadline Timeout. It counts as sent at the
	// instant of the step, so that it must not be sent before the step.
	Ask     *cluster.NodeLeaseRequest
	Timeout time.Duration
	// RTT is the round trip of the answer that came with this step; 0: none.
	RTT time.Duration
	// Wake is when to step again if nothing happens before; Never: on input only.
	Wake cluster.Instant
}

// HolderCounters count since the holder began.
type HolderCounters struct {
	Asked     uint64
	Granted   uint64
	Extended  uint64
	Refused   uint64
	NoAnswer  uint64
	Late      uint64 // answers to questions that nobody waited for any more
	Future    uint64 // estimates discarded since they lay in the future (L9)
	Estimated uint64 // deadlines that count from the node's own difference (L8)
	TooLate   uint64 // yes, but over before it came
	Lost      uint64
}

// HolderView is a holder for people and metrics.
type HolderView struct {
	Node     cluster.NodeID
	Mode     HolderMode
	Held     bool
	Left     time.Duration // of the belief
	Since    cluster.Instant
	Last     Refusal // the newest; Code empty: never refused
	Next     time.Duration
	Counters HolderCounters
}

// NewHolder returns a holder that has asked nothing.
func NewHolder(c HolderConfig) Holder { return Holder{c: c} }

// Until is the instant before which the lease is held; Never: it is not.
func (h Holder) Until() cluster.Instant { return h.until }

// View shows the holder at an instant.
func (h Holder) View(now cluster.Instant) HolderView {
	v := HolderView{Node: h.c.Node, Mode: h.mode, Held: now.Before(h.until), Since: h.since, Last: h.last, Counters: h.counters}
	if v.Held {
		v.Left = h.until.Sub(now)
	}
	if h.wake.After(now) {
		v.Next = h.wake.Sub(now)
	}
	return v
}

// Step takes in one thing that happened.
func (h Holder) Step(in HolderInput, now cluster.Instant) (Holder, HolderOutput) {
	s := holding{h: h, in: in, now: now}
	if !s.h.until.IsZero() && !now.Before(s.h.until) {
		s.lose(cluster.RefuseNoAnswer, "it was not extended in time: "+s.h.last.Detail)
	}
	switch in.Kind {
	case HolderAnswer:
		s.answered(in.Answer)
	case HolderNoAnswer:
		s.noAnswer()
	case HolderInvited:
		if s.h.mode == HolderBackoff {
			s.h.wake = now
		}
	}
	s.next()
	return s.h, s.out
}

// holding is one step under way.
type holding struct {
	h   Holder
	in  HolderInput
	now cluster.Instant
	out HolderOutput
}

// next asks, or says when.
func (s *holding) next() {
	h := &s.h
	due := !s.now.Before(h.wake)
	switch {
	case !s.in.Wanted:
		s.end()
	case h.mode == HolderAsking && due: // whoever asks has not told of the end
		s.unanswered("no answer within twice the time for it")
	case h.mode == HolderIdle && s.now.Before(h.settled):
		h.wake = h.settled
	case h.mode == HolderIdle, h.mode != HolderAsking && due:
		s.ask()
	case h.mode == HolderBackoff && !h.told && !s.in.Majority:
		h.wake = min(h.wake, s.now.Add(soonBackoff)) // now each node counts
	}
	s.out.Wake = cluster.Earliest(h.wake, h.until)
}

// ask sends the next question: to go on where the lease is held, so that a gap
// at the node is told of, else to begin.
func (s *holding) ask() {
	op := cluster.LeaseGrant
	if !s.h.until.IsZero() {
		op = cluster.LeaseExtend
	}
	s.send(op)
	s.h.mode, s.h.maybe, s.h.told = HolderAsking, true, false
	s.h.wake = s.now.Add(2 * s.h.c.Timeout)
}

func (s *holding) send(op cluster.NodeLeaseOp) {
	h := &s.h
	h.n++
	h.op, h.sent = op, s.now
	h.counters.Asked++
	s.out.Ask, s.out.Timeout = &cluster.NodeLeaseRequest{Op: op, ID: h.c.ID, N: h.n}, h.c.Timeout
}

// end gives up what is not wanted. The node is told only when nothing that hung
// on the lease lives any more: it lets the next leader in. It is told once; if
// that is lost its promise runs out by itself.
func (s *holding) end() {
	h := &s.h
	if !h.until.IsZero() {
		s.lose(cluster.RefuseNotPrimary, "it is not wanted any more: this node leads no more, or the other is no member")
	}
	h.mode, h.wake, h.told, h.attempts = HolderIdle, cluster.Never, false, 0
	if s.in.Dead && h.maybe {
		h.maybe = false
		s.send(cluster.LeaseAbolish)
		h.settled = s.now.Add(2 * h.c.Timeout)
	}
}

// lose ends the belief.
func (s *holding) lose(code cluster.RefusalCode, detail string) {
	h := &s.h
	h.last = Refusal{Code: code, Detail: detail, At: s.now}
	if h.until.IsZero() {
		return
	}
	h.until, h.since = cluster.Never, cluster.Never
	h.counters.Lost++
	lost := h.last
	s.out.Lost = &lost
}

// answered takes an answer, if it is to the question that is under way.
func (s *holding) answered(a cluster.NodeLeaseAnswer) {
	h := &s.h
	if h.mode == HolderIdle && h.op == cluster.LeaseAbolish && a.N == h.n {
		h.settled = cluster.Never
		return
	}
	if h.mode != HolderAsking || a.N != h.n {
		h.counters.Late++
		return
	}
	s.out.RTT = s.now.Sub(h.sent)
	if a.Code != "" {
		s.refused(a)
		return
	}
	counted, discarded := h.known.count(a, h.sent, s.now, h.c.Period)
	if counted.After(h.sent) {
		h.counters.Estimated++
	}
	h.counters.Future += discarded
	deadline := counted.Add(min(a.Left, cluster.MaxNodeLeaseWait) - h.c.Grace)
	if !deadline.After(s.now) {
		h.counters.TooLate++
		s.unanswered("the lease was over before the answer came")
		return
	}
	if h.until.IsZero() {
		h.since = s.now
		h.counters.Granted++
	} else {
		h.counters.Extended++
	}
	h.until = max(h.until, deadline)
	h.mode, h.wake, h.attempts = HolderHeld, h.sent.Add(h.c.Renew), 0
	s.out.Held, s.out.Until, s.out.Since = true, h.until, h.since
}

// refused waits exactly as long as the node said.
func (s *holding) refused(a cluster.NodeLeaseAnswer) {
	h := &s.h
	h.counters.Refused++
	h.last = Refusal{Code: a.Code, Detail: a.Detail, At: s.now}
	if a.Code.Revokes() {
		s.lose(a.Code, a.Detail)
		h.known = acquisitions{}
		h.maybe = h.maybe && a.Code == cluster.RefuseLeaseStale // which is not extended, and yet keeps others out
	}
	switch {
	case a.Left > 0:
		h.mode, h.told, h.attempts = HolderBackoff, true, 0
		h.wake = s.now.Add(max(leastWait, min(a.Left, cluster.MaxNodeLeaseWait)))
	case a.Code == cluster.RefuseLeaseLost && h.op == cluster.LeaseExtend:
		h.mode, h.wake = HolderBackoff, s.now // nobody is served: begin anew
	default:
		s.backoff()
	}
}

// noAnswer takes the failure of the question that is under way.
func (s *holding) noAnswer() {
	if s.h.mode != HolderAsking || s.in.N != s.h.n {
		s.h.counters.Late++
		return
	}
	s.unanswered(s.in.Why)
}

func (s *holding) unanswered(why string) {
	s.h.counters.NoAnswer++
	s.h.last = Refusal{Code: cluster.RefuseNoAnswer, Detail: why, At: s.now}
	s.backoff()
}

// backoff waits twice as long each time, but never long while each node counts,
// and not beyond the next renewal while the lease is held.
func (s *holding) backoff() {
	h := &s.h
	wait := min(firstBackoff, h.c.Renew) << min(h.attempts, 8)
	if !s.in.Majority {
		wait = min(wait, soonBackoff)
	}
	h.attempts++
	h.mode, h.told = HolderBackoff, false
	h.wake = s.now.Add(min(wait, h.c.Period))
	if !h.until.IsZero() {
		h.wake = max(s.now.Add(leastWait), min(h.wake, h.sent.Add(h.c.Renew)))
	}
}
