package failsafe

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// AskerConfig is what an asker needs to know for good.
type AskerConfig struct {
	Node        cluster.NodeID
	Incarnation cluster.Incarnation
	Right       Right
	Timing      cluster.Timing
}

// term is how long one acknowledged write carries the right, from its send instant.
func (c AskerConfig) term(record time.Duration) time.Duration {
	switch {
	case c.Right == RightWork:
		return c.Timing.StopAfter()
	case record > 0:
		return record - c.Timing.Grace
	}
	return c.Timing.RoleTerm()
}

// ttl is the longest promise to ask for.
func (c AskerConfig) ttl(record time.Duration) time.Duration {
	if record > 0 {
		return min(record, c.Timing.RoleTTL)
	}
	return c.Timing.RoleTTL
}

// lead is how long before the right's end the first question goes out; repeat
// lies between any two questions, a tenth of a term and at least 0.1 s, also
// where what is promised is short: others may have another role_ttl.
func (c AskerConfig) lead() time.Duration   { return c.Timing.RoleTerm() / 2 }
func (c AskerConfig) repeat() time.Duration { return max(c.Timing.RoleTerm()/10, 100*time.Millisecond) }

// AskerInput is what is known at one instant, and at most one answer. It is
// built anew for each step; nothing in it is edited or kept but Members.
type AskerInput struct {
	Now cluster.Instant
	// InUse: the role is held, or protected work runs here.
	InUse bool
	// Sent is the send instant of the newest acknowledged write that carries
	// the right: the lease's renewal, or the keepalive.
	Sent cluster.Instant
	// Epoch and TTL are the held lease's; zero for work.
	Epoch cluster.Epoch
	TTL   time.Duration
	// Unresolved: a write of one's own may still hand the role over, or release
	// it; nothing is asked meanwhile.
	Unresolved bool
	Members    Members // all coordinators, oneself among them or not
	Answer     *Answer
}

// AskerState is an asker between two steps. The zero value has asked nothing.
// A State that Step was given or has returned is never edited.
type AskerState struct {
	Until   cluster.Instant // end of the right; Never while not in use
	Over    bool            // the end has come: no late answer brings the right back
	Why     Answer          // the newest refusal, or whose answer is missing; for people
	Granted int             // questions that everybody promised

	epoch    cluster.Epoch
	sent     cluster.Instant // of the write that began or carries the right
	granted  cluster.Instant // end by promises; Never: none
	n        uint64
	last     cluster.Instant // of the newest question of all; Never: none
	asked    cluster.Instant // of the question in flight; Never: none
	members  Members
	promises []Answer // to the question in flight, in order of arrival
}

// AskerOutput is what a step asks for, in this order: Extend or End, then Ask.
type AskerOutput struct {
	// Extend moves the right's end to this instant: guard, gate and lifetimes
	// follow. Never: not moved.
	Extend cluster.Instant
	// ExtendSent is the send instant that Extend is anchored at.
	ExtendSent cluster.Instant
	// End: the right is over. Stop the work and drop the role, do not feed the
	// watchdog; the text is for the journal. Empty: go on. Told once.
	End string
	// Ask goes to all of To at once, each with a deadline of 0.3 K. It counts
	// as sent at Now, so it must not be sent before this step has returned.
	Ask *Question
	To  []cluster.NodeID
	// Wake is when to step again, if nothing happens before; Never: on input.
	Wake cluster.Instant
}

// StepAsker takes in what is known and at most one answer.
func StepAsker(c AskerConfig, s AskerState, in AskerInput) (AskerState, AskerOutput) {
	if !in.InUse || in.Sent.IsZero() {
		return AskerState{n: s.n, last: s.last}, AskerOutput{}
	}
	if in.Epoch != s.epoch || s.sent.IsZero() {
		s = AskerState{n: s.n, last: s.last, epoch: in.Epoch}
	}
	if in.Sent.After(s.sent) {
		s.sent, s.Over = in.Sent, s.Over && c.Right == RightRole // a role that has ended comes back by a new epoch only
		s.members, s.promises, s.asked = Members{}, nil, cluster.Never
	}
	var out AskerOutput
	s.Until = max(s.sent.Add(c.term(in.TTL)), s.granted)
	if s.Over {
		return s, out
	}
	if !in.Now.Before(s.Until) {
		return s.end(c, in)
	}
	others := except(in.Members.Nodes, c.Node)
	if !s.asked.IsZero() && (!s.members.Equal(in.Members) || in.Unresolved) {
		s.asked, s.promises = cluster.Never, nil // whose word counts has changed: asked anew
	}
	if in.Answer != nil {
		s.hear(c, *in.Answer, others)
	}
	s.settle(c, in, others, &out)
	s.ask(c, in, others, &out)
	return s, out
}

// hear takes in an answer to the question in flight, once from each.
func (s *AskerState) hear(c AskerConfig, a Answer, others []cluster.NodeID) {
	if s.asked.IsZero() || a.ID != s.id(c) || !slices.Contains(others, a.From) ||
		slices.ContainsFunc(s.promises, func(p Answer) bool { return p.From == a.From }) {
		return
	}
	if !s.members.means(a.From, a.Host) {
		s.Why = Answer{From: a.From, Code: cluster.RefuseOtherMembers, Detail: "another host than the one that may take the role answers by this name"}
		return
	}
	if a.Promise <= 0 || a.Code != "" {
		s.Why = a
		return
	}
	s.promises = append(slices.Clone(s.promises), a)
}

// settle moves the end once every other coordinator has promised.
func (s *AskerState) settle(c AskerConfig, in AskerInput, others []cluster.NodeID, out *AskerOutput) {
	if s.asked.IsZero() || len(s.promises) < len(others) {
		return
	}
	shortest := c.ttl(in.TTL)
	for _, p := range s.promises {
		shortest = min(shortest, p.Promise)
	}
	until := s.asked.Add(shortest - c.Timing.Grace)
	if until.After(s.Until) {
		s.granted, s.Until = until, until
		out.Extend, out.ExtendSent = until, s.asked
		s.Granted++
	}
	s.asked, s.promises, s.Why = cluster.Never, nil, Answer{}
}

// ask sends a question when half of the right is left, and again until all
// have promised; none where the set of coordinators is not known.
func (s *AskerState) ask(c AskerConfig, in AskerInput, others []cluster.NodeID, out *AskerOutput) {
	from := s.Until.Add(-c.lead())
	if !s.last.IsZero() {
		from = max(from, s.last.Add(c.repeat()))
	}
	out.Wake = s.Until
	if in.Unresolved || len(in.Members.Nodes) == 0 {
		return
	}
	if in.Now.Before(from) {
		out.Wake = min(from, s.Until)
		return
	}
	s.note(others)
	s.n++
	s.last, s.asked, s.promises = in.Now, in.Now, nil
	s.members = Members{Version: in.Members.Version, Nodes: slices.Clone(in.Members.Nodes), IDs: maps.Clone(in.Members.IDs)}
	if len(others) == 0 { // the only coordinator: nobody else can take
		s.settle(c, in, others, out)
		out.Wake = max(s.Until.Add(-c.lead()), in.Now.Add(c.repeat()))
		return
	}
	out.Ask = &Question{ID: s.id(c), From: c.Node, Epoch: in.Epoch, TTL: c.ttl(in.TTL), Members: s.members}
	out.To = others
	out.Wake = min(in.Now.Add(c.repeat()), s.Until)
}

// note remembers whose answer to the last question is missing, unless a
// refusal is known.
func (s *AskerState) note(others []cluster.NodeID) {
	if s.asked.IsZero() || s.Why.Code != "" {
		return
	}
	for _, n := range others {
		if !slices.ContainsFunc(s.promises, func(p Answer) bool { return p.From == n }) {
			s.Why = Answer{From: n, Code: cluster.RefuseNoAnswer, Detail: "it has not answered"}
			return
		}
	}
}

// end says once that the right is over, and why nobody extended it.
func (s AskerState) end(c AskerConfig, in AskerInput) (AskerState, AskerOutput) {
	s.note(except(in.Members.Nodes, c.Node))
	s.Over, s.asked, s.promises = true, cluster.Never, nil
	what := "the primary role ends here"
	if c.Right == RightWork {
		what = "protected work stops here"
	}
	why := "nobody was asked"
	switch {
	case s.Why.Code != "":
		why = fmt.Sprintf("node %s: %s (%s)", s.Why.From, s.Why.Detail, s.Why.Code)
	case in.Unresolved:
		why = "a hand-over of its own was not settled"
	case len(in.Members.Nodes) == 0:
		why = "the coordinators are not known"
	}
	text := fmt.Sprintf("%s: no write was acknowledged since %s ago, and not every coordinator promised; %s",
		what, in.Now.Sub(s.sent).Round(time.Millisecond), why)
	return s, AskerOutput{End: text}
}

func (s *AskerState) id(c AskerConfig) QuestionID {
	return QuestionID{Incarnation: c.Incarnation, Right: c.Right, N: s.n}
}

func except(nodes []cluster.NodeID, self cluster.NodeID) []cluster.NodeID {
	list := make([]cluster.NodeID, 0, len(nodes))
	for _, n := range nodes {
		if n != self && !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}
