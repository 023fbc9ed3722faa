package agent

import (
	"context"

	"pvc.internal/cluster"
)

// Store is what the agent needs of ZooKeeper. Every call is bounded by its
// context; a Commit that is not answered by then closes the socket, so that
// the same session goes on at the next server, and is OutcomeUnknown.
type Store interface {
	// Commit sends one Multi and classifies what became of it. It never
	// queues: without a connection the outcome is OutcomeNotSent at once.
	Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult
	// Refresh syncs with the leader, re-reads the role's records, the role
	// lock's queue and every node's alive record, publishes and returns the view.
	Refresh(ctx context.Context) (*cluster.Snapshot, error)
	// Subscribe returns a channel that always holds the latest snapshot only,
	// and a function that ends the subscription.
	Subscribe() (<-chan *cluster.Snapshot, func())
}

// Locker takes and gives up the store's exclusive locks.
type Locker interface {
	// Lock enqueues a child under the lock of this kind
	// (cluster.KeyRoleLockChild or cluster.KeyFenceLockChild) and returns once
	// it heads the queue and is verified as this session's. When ctx ends
	// first it removes its child and returns cluster.ErrLockTimeout.
	Lock(ctx context.Context, kind cluster.KeyKind, owner cluster.LockOwner) (cluster.LockChild, error)
	// Unlock deletes the child; one that is gone already is no error.
	Unlock(ctx context.Context, kind cluster.KeyKind, child cluster.LockChild) error
}

// Guard is the process that holds the effects of roles (router.Client). What
// gives something takes a token of exactly that epoch (agent/activity), which is
// asked as the last thing before the order leaves this process: it fails with
// cluster.ErrNoToken then, and nothing was ordered. What only takes away, or
// looks, needs none, and is never refused for want of one.
type Guard interface {
	State(ctx context.Context) (cluster.GuardState, error)
	// Begin starts or adopts a role at this epoch until the deadline: the only
	// call after which Present may add an address that is not there.
	Begin(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error
	// Extend moves a live role's deadline; it fails with cluster.ErrDeadline
	// if the guard has ended the role, cluster.ErrStaleEpoch for an old epoch.
	Extend(ctx context.Context, t cluster.Token, d cluster.RoleDeadline) error
	// Present adds the addresses, opens the gate for them and announces;
	// it returns when the kernel has them.
	Present(ctx context.Context, t cluster.Token, e cluster.Epoch, addrs []cluster.FloatingAddress) error
	// Withdraw shuts the gate and removes the addresses; it returns when the
	// kernel is verified to be rid of them.
	Withdraw(ctx context.Context, e cluster.Epoch) error
	// StartService returns when the service's check has passed.
	StartService(ctx context.Context, t cluster.Token, o cluster.DeadlineOwner, e cluster.Epoch, s cluster.ServiceSpec) error
	// StopService returns when nothing of the service is left.
	StopService(ctx context.Context, t cluster.Token, o cluster.DeadlineOwner, e cluster.Epoch, name string) error
	// End ends all that hangs on the owner, now, and returns when verified gone.
	End(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch) error
	Preflight(ctx context.Context, r cluster.PreflightRequest) (cluster.PreflightResult, error)
	// Events delivers what the guard did of its own accord, oldest dropped.
	Events() <-chan cluster.GuardEvent
}

// Relinquisher is a Guard that has to know of an agent's orderly end, since it
// feeds a watchdog.
type Relinquisher interface {
	// Relinquish is the last word: what was held is released and acknowledged.
	Relinquish(ctx context.Context) error
}

// Tree prepares the records that a node needs before it registers.
type Tree interface {
	// CheckTree reports the cluster's name and whether the tree is initialised.
	CheckTree(ctx context.Context) (clusterName string, initialised bool, err error)
	// EnsureNode creates what is missing below the node's own records.
	EnsureNode(ctx context.Context, n cluster.NodeID, m cluster.Mode) error
}

// Schemas knows the schemas of the store's tree, and the steps from one to the next.
type Schemas interface {
	// NewestSchema is the newest that this program can write.
	NewestSchema() int
	// PlanSchema says what may become of the tree's schema, as the snapshot shows it.
	PlanSchema(snap *cluster.Snapshot) cluster.SchemaPlan
	// MigrationBatch returns what is to be written next, in one Multi, for the plan
	// that PlanSchema made of this snapshot.
	MigrationBatch(ctx context.Context, snap *cluster.Snapshot, plan cluster.SchemaPlan) (cluster.MigrationBatch, error)
	// ReadLeaves returns every leaf below a node by its relative path.
	ReadLeaves(ctx context.Context, n cluster.NodeID) (map[string]string, error)
}

// Historian keeps the cluster's history bounded.
type Historian interface {
	// TrimHistory removes all but the newest entries and tells how many went.
	TrimHistory(ctx context.Context, keep int) (removed int, err error)
	// HistoryLength tells how many entries there are.
	HistoryLength(ctx context.Context) (int, error)
}

// Sweeper ends whatever a dead or stuck guard has left behind and returns when
// it is verified gone.
type Sweeper interface {
	Sweep(ctx context.Context) error
}

// Notifier tells the service manager how the daemon fares.
type Notifier interface {
	Ready()
	Stopping()
	Status(text string)
}

// Peers carries questions to other nodes past ZooKeeper.
type Peers interface {
	// Ask sends one question and returns the answer; errors.Is(err,
	// cluster.ErrRefused) when the peer answered no. It is bounded by its context.
	Ask(ctx context.Context, n cluster.NodeID, kind string, body []byte) ([]byte, error)
	// Handle registers the answer to a kind of question; before Run only.
	// Handlers are called concurrently and may be called twice for one question.
	Handle(kind string, answer func(ctx context.Context, from cluster.NodeID, body []byte) ([]byte, error))
	// Probes are this node's own answers, by node; a missing one is unknown.
	Probes() map[cluster.NodeID]cluster.ProbeAnswer
	// Watch names whom to probe; addresses come from the node records.
	Watch(targets map[cluster.NodeID]string)
}

// Fencer carries fences through their stages. Fence and Resume block for as
// long as one takes and end with their context, the activity's; power is taken
// and given only while the activity's token lives.
type Fencer interface {
	Fence(ctx context.Context, t cluster.Token, a cluster.Action) (cluster.FenceRecord, *cluster.Refusal, error)
	Resume(ctx context.Context, t cluster.Token, n cluster.NodeID) (cluster.FenceRecord, *cluster.Refusal, error)
	// Due reports whether the record needs a fencer now.
	Due(r cluster.Versioned[cluster.FenceRecord], now cluster.Instant) bool
}

// Copies is what runs the copies of workloads on this node (driver.Host). Its calls
// are bounded by their contexts, and may be made from several goroutines.
type Copies interface {
	// Check reports what is wrong with a workload for its driver on this node. It
	// changes nothing.
	Check(ctx context.Context, w cluster.Workload) error
	// Probe tells what this node's copy is now: Unknown, with Error, where that
	// cannot be told by the context's end.
	Probe(ctx context.Context, w cluster.Workload) cluster.CopyReport
	// Order carries out one order, and reports what the copy is afterwards; the token
	// is asked right before each of its effects. One order of a workload runs at a
	// time: another waits for it, a stop ends it. The error says what is true now.
	Order(ctx context.Context, t cluster.Token, o cluster.CopyOrder) (cluster.CopyReport, error)
	// Held names the workloads of which something is here, in order, also those that
	// no record names any more. The error means that it is not known.
	Held(ctx context.Context) ([]string, error)
	// Changed delivers that a copy ended or started outside an order; hints only, of
	// which the oldest are dropped. It is never closed.
	Changed() <-chan cluster.CopyChange
}
