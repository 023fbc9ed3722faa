package cluster

import "fmt"

// KeyKind names a kind of record in the store. Only zkhandler/schema.go knows
// the path that a Key stands for.
type KeyKind uint8

// The kinds of record. Those marked (node) need Key.Node, (name) Key.Name.
const (
	KeyNone              KeyKind = iota
	KeyClusterName               // string
	KeyPrimaryNode               // string: node name or NoNode
	KeyMaintenance               // bool
	KeyUpstreamIP                // string
	KeySelector                  // string
	KeyLease                     // Lease
	KeyTransition                // Transition
	KeyRoleLockChild             // (name) child of KeyPrimaryNode: the exclusive role lock; LockOwner
	KeyFenceLockChild            // (name) child of /config/fence_lock; LockOwner
	KeyNodeMode                  // (node) Mode, the node's own znode
	KeyKeepalive                 // (node) int64, unix seconds
	KeyDaemonMode                // (node) Mode
	KeyDaemonState               // (node) DaemonState
	KeyRouterState               // (node) RouterState
	KeyDomainState               // (node) DomainState
	KeyNodeField                 // (node, name) string: staticdata, memtotal, … the leaf under /nodes/<n>
	KeyPluginField               // (node, name) string: "<plugin>/<leaf>" under monitoring_data
	KeyNodeRecord                // (node) NodeRecord
	KeyAlive                     // (node) Alive, ephemeral
	KeyView                      // (node) json of what a coordinator sees
	KeyFence                     // (node) FenceRecord
	KeyFailover                  // FailoverSettings
	KeyMaintenanceRecord         // MaintenanceRecord
	KeyHistory                   // (name) Event; created sequential with empty name
	KeySchema                    // int
	KeyLog                       // (node) string, newest lines
	KeyFault                     // (name) "<id>/<leaf>"
	KeyFaultRoot                 // (name) fault id
	KeyFenceOrder                // (node) FenceOrder; nil: none stands
	KeyFenceTests                // (node) FenceTests
	KeySecret                    // (name) SealedSecret
	KeyQuorumSet                 // QuorumSet
	KeyMembers                   // Members; nil: nobody was removed yet
	KeyMemberOrder               // MemberOrder; nil: none stands
	KeyNodeLeases                // NodeLeases, as the primary holds them
	KeyLogDir                    // (node) what holds KeyLog; to be deleted only
	KeyActivity                  // (name) ActivityRecord
	KeyFactsDir                  // "": what holds KeyFacts; made once, by migration
	KeyFacts                     // (node) string: Facts, encoded by Facts.Encode; "" none yet
	KeyWorkload                  // (name) Workload
	KeyReprovision               // ReprovisionSettings
	KeyRebalance                 // Rebalance
)

// Key identifies one record.
type Key struct {
	Kind KeyKind
	Node NodeID
	Name string
}

// String renders the key for messages.
func (k Key) String() string {
	return fmt.Sprintf("%d/%s/%s", k.Kind, k.Node, k.Name)
}

// OpKind is what an Op does.
type OpKind uint8

// The operations of a transaction.
const (
	OpCheck OpKind = iota + 1
	OpSet
	OpCreate
	OpCreateEphemeral
	OpCreateSequential
	OpDelete
)

// AnyVersion matches every version; use it only where a lost race is harmless.
const AnyVersion int32 = -1

// Op is one operation of a Txn. Value must have the type that the key's kind
// names; zkhandler encodes it.
type Op struct {
	Kind    OpKind
	Key     Key
	Version int32
	Value   any
}

// Check makes the transaction fail unless the record has this version.
func Check(k Key, version int32) Op { return Op{Kind: OpCheck, Key: k, Version: version} }

// Set writes the record if it still has this version.
func Set(k Key, version int32, value any) Op {
	return Op{Kind: OpSet, Key: k, Version: version, Value: value}
}

// Create makes the record; it conflicts if there is one.
func Create(k Key, value any) Op { return Op{Kind: OpCreate, Key: k, Value: value} }

// Put writes the record as observed: a Set on its version where it was there,
// emptied or not, a Create where it was not, so that either race is a conflict.
func Put[T any](k Key, seen Versioned[T], value T) Op {
	if seen.Present || seen.Mzxid != 0 {
		return Set(k, seen.Version, value)
	}
	return Create(k, value)
}

// Delete removes the record if it still has this version.
func Delete(k Key, version int32) Op { return Op{Kind: OpDelete, Key: k, Version: version} }

// Txn is a list of operations that happen together or not at all. Purpose is a
// short name for logs, metrics and fault points ("keepalive", "role.take").
type Txn struct {
	Purpose string
	Ops     []Op
}

// Outcome classifies what became of a transaction.
type Outcome uint8

// The outcomes. Unknown means that it may or may not have happened, or may
// still happen: re-read to learn "it did", write to the same record to make
// sure that it will not.
const (
	OutcomeOK       Outcome = iota + 1
	OutcomeConflict         // a version or existence check failed: nothing happened
	OutcomeNotSent          // refused before it left this process: nothing happened
	OutcomeUnknown          // the reply was lost
	OutcomeRefused          // the server refused for good (ACL, size): nothing happened, do not retry
)

// String names the outcome.
func (o Outcome) String() string {
	switch o {
	case OutcomeOK:
		return "ok"
	case OutcomeConflict:
		return "conflict"
	case OutcomeNotSent:
		return "not_sent"
	case OutcomeUnknown:
		return "unknown"
	case OutcomeRefused:
		return "refused"
	}
	return "invalid"
}

// TxnResult is what became of a Txn.
type TxnResult struct {
	Outcome  Outcome
	SentAt   Instant // read before the request was handed to the connection; the anchor of a lease
	DoneAt   Instant // when the reply, or the end of waiting for it, was seen
	Versions []int32 // new version of each op's record when OK: Set n+1, Create 0
	Created  string  // full child name of the first sequential create
	FailedOp int     // index of the op that conflicted, −1 if none or not known
	Err      error   // detail for people; nil when OK
}

// LockOwner is the data of a lock child of ours. A child that does not carry
// it belongs to a foreign client and is never deleted by us.
type LockOwner struct {
	Version     int         `json:"v"`
	Node        NodeID      `json:"node"`
	Incarnation Incarnation `json:"incarnation"`
}

// LockChild is one contender in a lock's queue.
type LockChild struct {
	Name    string    // "<32 hex>__lock__<10 digits>"
	Seq     int64     // the digits; the queue's only order
	Session int64     // ephemeralOwner
	Foreign bool      // carries no LockOwner
	Owner   LockOwner // zero when Foreign
	SeenAt  Instant   // when this observer first saw it
}
