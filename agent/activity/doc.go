// Package activity runs what needs coordination, failover, fence and recovery,
// drain, rebalance, a janitor's pass, so that it begins only while its conditions
// hold and is dead, not merely told to end, soon after they do not.
//
// An activity has a domain, which only one activity and its children may have
// at a time, and a quorum, a condition on the node leases that the leader holds.
// Its life:
//
//	           conditions hold            body returned, or a cause to end it
//	waiting ───────────────────► running ───────────────────────────────────► ending ──► ended
//	   │                                                                         (nothing of it is left)
//	   └──► refused: the deadline passed; the condition that failed is the error
//
// The manager is fed with values (Update, Follower): it asks nobody, writes
// nothing, and ends activities without contacting any node. Who loses a lease
// tells the manager, waits until it has Settled and only then lets the loss be
// seen: so two leaders' activities never overlap on a node.
//
// preconditions.go decides (pure); manager.go admits and is fed; run.go is one
// activity's life; end.go ends; follower.go is work that another node's leader
// ordered here; right.go is what a role acts by; list.go tells of it.
package activity
