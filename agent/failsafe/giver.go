package failsafe

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// tryFor is how long a write of one's own must have been without an answer to
// count as one that the store does not take.
const tryFor = 200 * time.Millisecond

// GiverConfig is what a giver needs to know for good.
type GiverConfig struct {
	Node    cluster.NodeID
	ID      string // of this host (NodeRecord.ID)
	Timing  cluster.Timing
	Started cluster.Instant // of this start of the daemon
	// LongestTTL is the largest role_ttl that this state folder has seen in
	// use, kept there: an earlier start may have promised for as long. 0: L.
	LongestTTL time.Duration
}

// quiet ends the time in which a promise of an earlier start may stand.
func (c GiverConfig) quiet() cluster.Instant {
	return c.Started.Add(max(c.Timing.RoleTTL, c.LongestTTL) + c.Timing.TakerMargin)
}

// GiverInput is what is known at one instant, and at most one question. It is
// built anew for each step, in the goroutine that also decides on taking.
type GiverInput struct {
	Now cluster.Instant

	// Connected: the session to ZooKeeper is up.
	Connected bool
	// Acked is when a write of this node was last acknowledged, Pending when
	// its oldest unanswered write was sent; Never: none.
	Acked   cluster.Instant
	Pending cluster.Instant

	// Holder and Epoch are the role's, the largest epoch that was seen or is
	// written down here; an empty Holder: not known, or released.
	Holder cluster.NodeID
	Epoch  cluster.Epoch
	// GivenUp is an epoch whose holder itself was seen to have handed the role
	// over or released it: it stops before it writes that, so a promise to it
	// has no object any more. 0: none.
	GivenUp cluster.Epoch
	// TakeUnresolved: a write of this node may still make it the holder.
	TakeUnresolved bool

	Members Members
	// Fences are the nodes with a fence record that has not ended, and those
	// that a claim of this node's own, in flight, may still give one.
	Fences []cluster.NodeID

	Question *Question
}

// GiverState is a giver between two steps. The zero value has promised
// nothing. A State that Step was given or has returned is never edited.
type GiverState struct {
	role promise
	work map[cluster.NodeID]cluster.Instant // until when no fence of the node is claimed
}

type promise struct {
	to    cluster.NodeID
	epoch cluster.Epoch
	until cluster.Instant
}

// GiverOutput is what a step asks for.
type GiverOutput struct {
	// Answer goes back to the asker after the state has been kept; nil without
	// a question.
	Answer *Answer
	// TryWrite: send a write of one's own now, a keepalive say, unless one is
	// in flight, so that the next question can be answered.
	TryWrite bool
}

// StepGiver takes in what is known and answers at most one question. The
// promise stands from the moment the state is returned, whether or not the
// answer arrives.
func StepGiver(c GiverConfig, s GiverState, in GiverInput) (GiverState, GiverOutput) {
	s = s.prune(in)
	if in.Question == nil {
		return s, GiverOutput{}
	}
	q := *in.Question
	answer := Answer{ID: q.ID, From: c.Node, Host: c.ID}
	d := min(q.TTL, c.Timing.RoleTTL)
	code, detail := c.refuse(in, q)
	if code == "" && d <= c.Timing.Grace {
		code, detail = cluster.RefuseOtherHolder, fmt.Sprintf("a promise for %s would be over before it is of use", d)
	}
	if code != "" {
		answer.Code, answer.Detail = code, detail
		return s, GiverOutput{Answer: &answer, TryWrite: code != "" && in.Connected && in.Pending.IsZero()}
	}
	answer.Promise = d
	until := in.Now.Add(d + c.Timing.TakerMargin)
	switch q.ID.Right {
	case RightRole:
		s.role = promise{to: q.From, epoch: q.Epoch, until: max(until, s.role.until)}
	case RightWork:
		s.work = maps.Clone(s.work)
		if s.work == nil {
			s.work = map[cluster.NodeID]cluster.Instant{}
		}
		s.work[q.From] = max(until, s.work[q.From])
	}
	return s, GiverOutput{Answer: &answer}
}

// prune forgets a role's promise that has ended. Those to nodes stay: the bound
// of a watchdog counts from the last of them, long after it has ended (I4).
func (s GiverState) prune(in GiverInput) GiverState {
	if !in.Now.Before(s.role.until) || (in.GivenUp != 0 && in.GivenUp == s.role.epoch) {
		s.role = promise{}
	}
	return s
}

// refuse says what stands against a promise; what is not known never counts as
// a yes.
func (c GiverConfig) refuse(in GiverInput, q Question) (cluster.RefusalCode, string) {
	if code, detail := in.store(); code != "" {
		return code, detail
	}
	switch {
	case !in.Members.Within(q.Members) || len(in.Members.Nodes) == 0: // one that is not asked might act on what is promised here
		return cluster.RefuseOtherMembers, fmt.Sprintf("here the coordinators are %v (version %d), there %v (%d)", in.Members.Nodes, in.Members.Version, q.Members.Nodes, q.Members.Version)
	case !slices.Contains(in.Members.Nodes, c.Node):
		return cluster.RefuseOtherMembers, "this node is no coordinator"
	case !q.Members.means(c.Node, c.ID):
		return cluster.RefuseOtherMembers, fmt.Sprintf("another host of the name %s is meant, with the id %s", c.Node, q.Members.IDs[c.Node])
	case in.TakeUnresolved:
		return cluster.RefuseTakeUnresolved, "a write of this node may still take the role"
	}
	switch q.ID.Right {
	case RightRole:
		if in.Holder != q.From || in.Epoch != q.Epoch || q.Epoch == 0 {
			return cluster.RefuseOtherHolder, fmt.Sprintf("the holder seen here is %q of epoch %d, and %q of epoch %d asks", in.Holder, in.Epoch, q.From, q.Epoch)
		}
	case RightWork:
		if slices.Contains(in.Fences, q.From) {
			return cluster.RefuseFenceClaimed, fmt.Sprintf("a fence of node %s is claimed", q.From)
		}
	default:
		return cluster.RefuseOtherHolder, fmt.Sprintf("the right %q is not known here", q.ID.Right)
	}
	return "", ""
}

// store says whether this node's own link to the store takes writes, or why
// that is not known yet.
func (in GiverInput) store() (cluster.RefusalCode, string) {
	if !in.Connected {
		return "", "" // no session: surely none
	}
	switch {
	case in.Pending.IsZero() && !in.Acked.IsZero() && in.Now.Sub(in.Acked) <= tryFor:
		return cluster.RefuseStoreWrites, fmt.Sprintf("a write of this node was acknowledged %s ago", in.Now.Sub(in.Acked).Round(time.Millisecond))
	case in.Pending.IsZero():
		return cluster.RefuseStoreUnknown, "no write of this node is without an answer; one is being tried"
	case in.Acked.After(in.Pending):
		return cluster.RefuseStoreWrites, fmt.Sprintf("a write of this node was acknowledged %s ago", in.Now.Sub(in.Acked).Round(time.Millisecond))
	case in.Now.Sub(in.Pending) < tryFor:
		return cluster.RefuseStoreUnknown, fmt.Sprintf("this node's write has been without an answer for only %s", in.Now.Sub(in.Pending).Round(time.Millisecond))
	}
	return "", ""
}

// MayTake is asked at the effect: before a Multi that takes the role is sent,
// and again before anything is done on a take under way (protocol §4, D).
// Resume of one's own lease needs no leave. An empty code is leave.
func MayTake(c GiverConfig, s GiverState, now cluster.Instant) cluster.Refusal {
	if now.Before(c.quiet()) {
		return cluster.Refusal{Code: cluster.RefuseRecentStart, Node: c.Node, Detail: fmt.Sprintf(
			"this daemon started %s ago; an earlier start may have promised not to take the role", now.Sub(c.Started).Round(time.Millisecond))}
	}
	if now.Before(s.role.until) {
		return cluster.Refusal{Code: cluster.RefusePromiseStanding, Node: c.Node, Detail: fmt.Sprintf(
			"node %s (epoch %d) was promised for %s more that the role is not taken", s.role.to, s.role.epoch, s.role.until.Sub(now).Round(time.Millisecond))}
	}
	return cluster.Refusal{}
}

// MayFence is asked before a fence of the node is claimed. An empty code is leave.
func MayFence(c GiverConfig, s GiverState, node cluster.NodeID, now cluster.Instant) cluster.Refusal {
	if until := Promised(c, s, node); now.Before(until) {
		return cluster.Refusal{Code: cluster.RefusePromiseStanding, Node: node, Detail: fmt.Sprintf(
			"node %s may go on with its work for %s more by this node's word", node, until.Sub(now).Round(time.Millisecond))}
	}
	return cluster.Refusal{}
}

// Promised is the end of the last promise to the node that it may go on with
// its work: the watchdog's bound (protocol §6) counts from the later of it and
// the last keepalive. After a restart an earlier start's may stand until L + M.
func Promised(c GiverConfig, s GiverState, node cluster.NodeID) cluster.Instant {
	return max(s.work[node], c.quiet())
}

// Binding is until when any promise, or the quiet after the start, binds this
// node's role: when to look again.
func Binding(c GiverConfig, s GiverState) cluster.Instant { return max(s.role.until, c.quiet()) }
