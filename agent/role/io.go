package role

import (
	"time"

	"pvc.internal/cluster"
)

// ID matches an effect to its result. Zero is no effect.
type ID uint64

// Effect is something the shell is to do. Exactly one of the pointers is set.
type Effect struct {
	ID ID

	Commit    *Commit
	Lock      *Lock
	Unlock    *cluster.LockChild
	BreakLock *cluster.LockChild
	Refresh   bool
	Raise     *Raise
	Extend    *cluster.RoleDeadline
	Withdraw  *cluster.RoleDeadline
	Start     *Services
	Stop      *Services
	End       *cluster.RoleDeadline
	Linger    *cluster.RoleDeadline
	Preflight *Preflight
	Keepalive *KeepaliveResult
	Note      *Note
}

// Commit asks for one Multi; its result is CommitDone.
type Commit struct {
	Txn     cluster.Txn
	Timeout time.Duration
}

// Lock asks for the role lock; its result is LockDone.
type Lock struct {
	Owner   cluster.LockOwner
	Timeout time.Duration
}

// Raise asks the guard to begin the role and to present all floating
// addresses; its result is StepDone.
type Raise struct {
	Deadline cluster.RoleDeadline
	// Bare leaves the addresses: the role is held for what must not outlive it,
	// the attempts of a fence.
	Bare bool
}

// Linger (an Effect's field) asks the guard to keep the role's effects until
// the deadline although this daemon ends; its result is StepDone.

// Services asks the guard to start (in order) or stop (in reverse) all
// primary-only services; its result is StepDone.
type Services struct {
	Epoch   cluster.Epoch
	Timeout time.Duration
}

// Preflight asks whether this host could serve; its result is PreflightDone.
type Preflight struct {
	Epoch     cluster.Epoch // at which the role would be begun: made durable beforehand
	Conflicts bool          // probe for strangers that hold an address
	KnownMACs []string      // of the present holder, who may answer
	Timeout   time.Duration
}

// KeepaliveResult tells the keepalive loop what became of its Multi.
type KeepaliveResult struct {
	ID     uint64
	Result cluster.TxnResult
}

// Note is a line for the log, and for the history if Record is set.
type Note struct {
	Record bool
	Kind   string
	Text   string
	Fields map[string]string
}

// Event is what happened since the last Step. Exactly one pointer is set, or
// none for a mere change of time or snapshot.
type Event struct {
	Commit     *CommitDone
	Lock       *LockDone
	Refresh    *RefreshDone
	Step       *StepDone
	Preflight  *PreflightDone
	Keepalive  *KeepaliveDue
	Registered *Registered
	GuardEnded *cluster.GuardEvent
	// GuardState is what the guard holds, asked at the start and now and then.
	GuardState *cluster.GuardState
	// ServiceExited says that a primary-only service ended by itself.
	ServiceExited *cluster.GuardEvent
	// RoleExtended says that the held role may go on by the others' word.
	RoleExtended *RoleExtended
	// EpochSeen is the largest epoch that a node says it has seen; 0: none is told.
	EpochSeen cluster.Epoch
	// NodeEnded says why this node's own right to protected work is over; empty:
	// it is not.
	NodeEnded string
	Stop      bool // the daemon shuts down: give the role up
	Suspended bool // BOOTTIME has jumped against MONOTONIC: this host slept
}

// RoleExtended says that every other coordinator has promised not to take the
// role, nor to act on a take under way (protocol §4, store outage).
type RoleExtended struct {
	Epoch cluster.Epoch
	Until cluster.Instant // send instant of the question + shortest promise − G
	Sent  cluster.Instant // of the question
}

// CommitDone is the result of a Commit.
type CommitDone struct {
	ID     ID
	Result cluster.TxnResult
}

// LockDone is the result of a Lock.
type LockDone struct {
	ID    ID
	Child cluster.LockChild
	Err   error
}

// RefreshDone is the result of a Refresh.
type RefreshDone struct {
	ID       ID
	Snapshot *cluster.Snapshot // nil on error
	Err      error
}

// StepDone is the result of Raise, Withdraw, Start, Stop and End.
type StepDone struct {
	ID   ID
	Took time.Duration
	Err  error
}

// PreflightDone is the result of a Preflight, or the shell's own warm one (ID 0).
type PreflightDone struct {
	ID       ID
	Problems []string
	MaxEpoch cluster.Epoch // the largest that the guard has seen; 0: it did not say
}

// KeepaliveDue offers the keepalive's operations, to be sent alone or, where
// they coincide, together with the lease renewal.
type KeepaliveDue struct {
	ID  uint64
	Ops []cluster.Op
}

// Registered says that this node's alive record of this session was acknowledged.
type Registered struct {
	At      cluster.Instant
	Session int64
	// Usurped says that the alive record of another host's daemon of this name
	// was replaced. What that host may still hold is not this one's to resume.
	Usurped bool
}

// Input is one step's input.
type Input struct {
	Now      cluster.Instant
	WallMS   int64 // unix milliseconds, for records that people read
	Snapshot *cluster.Snapshot
	Promise  Promise
	Event    Event
}

// Promise binds this node (protocol §4, store outage): until its end it neither
// takes the role nor acts on a take under way. The zero value binds nothing. It
// is read at the effect: before a take's Multi and again before phase D (I1).
type Promise struct {
	Until cluster.Instant
	Why   cluster.Refusal // shown to operators
}
