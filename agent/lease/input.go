package lease

import (
	"time"

	"pvc.internal/cluster"
)

// InputKind says what has happened to a granter.
type InputKind uint8

// What happens to a granter.
const (
	// InputStart tells what the disk said (Input.Found). It comes first, once.
	InputStart InputKind = iota + 1
	// InputRequest is a question (Input.Request, From, Member, Ticket).
	InputRequest
	// InputTimer: the instant last armed has come.
	InputTimer
	// InputPersisted answers EffectPersist or EffectRemove (Input.Seq, Failed).
	InputPersisted
	// InputWorkGone answers EffectRevoke (Input.Seq): nothing that was started
	// for that lease lives on this node any more.
	InputWorkGone
	// InputStop: the daemon stops in order. Nothing is granted from here on; when
	// the record that it asks for is on disk the process may end.
	InputStop
	// InputLeave: this node is a member of the cluster no more. Told again after
	// a restart it does no harm.
	InputLeave
)

// FoundKind says what the disk had to tell at a start.
type FoundKind uint8

// What the disk has to tell.
const (
	FoundNothing    FoundKind = iota // no file: never served anybody, or left the cluster
	FoundRecord                      // Found.Record
	FoundUnreadable                  // somebody may have been promised anything
)

// Found is what the lease file said at a start.
type Found struct {
	Kind   FoundKind
	Record Record
	Detail string // why it is unreadable
}

// Input is one thing that happened. It is never edited, and nothing in it kept
// by reference.
type Input struct {
	Kind    InputKind
	Found   Found
	Request cluster.NodeLeaseRequest
	// From is who asks, by its certificate; Member says that it and this node
	// are members of the cluster, as far as this node knows.
	From   cluster.NodeID
	Member bool
	// Ticket names the question for its one EffectReply; not 0.
	Ticket uint64
	Seq    uint64
	Failed string // why it could not be written; empty: it is on disk
}

// EffectKind says what is to be done.
type EffectKind uint8

// What a granter asks for.
const (
	// EffectServe tells the activity manager that Lease is served from now on.
	// No work is accepted for it before the reply, which its order makes sure of.
	EffectServe EffectKind = iota + 1
	// EffectRevoke tells the activity manager that work for Lease (zero: for
	// whomever) is not accepted any more, and that what there is must die;
	// InputWorkGone with Seq answers. It is told again each second until then.
	EffectRevoke
	// EffectArm sets the one timer to Until; Never disarms it.
	EffectArm
	// EffectPersist writes Record and syncs it; InputPersisted with Seq answers.
	// Changes of the file happen in the order in which they are asked for; one
	// that has not begun may be left out, unanswered, where a newer one follows.
	EffectPersist
	// EffectRemove removes the file and syncs; InputPersisted with Seq answers.
	EffectRemove
	// EffectReply answers the question with Ticket. Each gets exactly one.
	EffectReply
	// EffectInvite sends a NodeLeaseNotice to To.Holder; its loss costs time only.
	EffectInvite
	// EffectIllegal is a mistake of the program around (Detail), counted and to
	// be logged; the state is as before.
	EffectIllegal
)

// Effect is one thing to be done. Effects are carried out in the order given,
// which is binding: the activity manager is told before the timer is armed,
// that before the disk is written, and that before anybody has an answer.
type Effect struct {
	Kind   EffectKind
	Lease  cluster.NodeLeaseID
	Until  cluster.Instant
	Seq    uint64
	Record Record
	Ticket uint64
	Answer cluster.NodeLeaseAnswer
	To     cluster.NodeLeaseID
	Detail string
}

// GrantState is where a granter stands.
type GrantState uint8

// The states of a granter; see Granter.
const (
	StateUnstarted GrantState = iota
	StateNone
	StateActive
	StateExpiring
	StateStopped
	StateLeft
)

func (s GrantState) String() string {
	return [...]string{"unstarted", "none", "active", "expiring", "stopped", "left"}[min(s, StateLeft)]
}

// GranterCounters count since the start of the daemon.
type GranterCounters struct {
	Granted   uint64 // to somebody who was not served
	Extended  uint64
	Refused   uint64
	Expired   uint64 // nobody extended it
	Released  uint64 // abolished
	Persists  uint64 // writes asked for
	Failed    uint64 // writes that failed
	Illegal   uint64
	Restored  uint64 // a lease of an earlier start is honoured
	Unknown   uint64 // and it is not known whose
	Replayed  uint64
	Displaced uint64 // a newer epoch was seen while an older one was served
}

// GranterView is a granter for people and metrics.
type GranterView struct {
	State    GrantState
	Holder   cluster.NodeLeaseID // zero: nobody, or not known who
	Left     time.Duration       // of the lease; 0 while expiring
	Epoch    cluster.Epoch
	Waiting  cluster.NodeLeaseID // who was refused last and will be told
	Pending  bool                // the grant waits for the disk
	Counters GranterCounters
}
