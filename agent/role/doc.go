// Package role decides, as a pure function, what a node does about the primary
// role: when it contends, how it takes the role over, how it holds, hands over
// and gives it up (protocol §4). It does no I/O, starts no goroutine and reads
// no clock: a Step takes the state, the latest snapshot, one event and the
// current instant, and returns the next state and the effects to carry out.
// Results of effects come back as events that carry the effect's id; a result
// whose id is no longer awaited is dropped.
//
// The machine (modes in state.go):
//
//	         lease expired/released                take ok
//	Idle ───────────────────────────► Contending ─────────────► Taking
//	 ▲ │ wish = me, another holds                                 │ D,E,F
//	 │ └────────────► Candidate ── lease handed to me ───────────►│
//	 │                    │ aborted                               ▼
//	 │◄───────────────────┘        abort acknowledged          Primary
//	 │                         ┌──────────────────────────────►   │
//	 │                      Aborting ◄── failure before C ──┐     │ transition from me
//	 │                                                      │     ▼
//	 │◄──────────────── C acknowledged ──────────────── Relinquish (A,B,C)
//	 │
//	 └──── Dropping ◄── deadline, lost lease, guard ended the role, stop: from every holding mode
//
//	Starting ── own node holds the lease ──► Resuming ── acknowledged ──► Taking
//	Primary ── nodes have seen a larger epoch; written (outgrown.go) ──► Taking
package role
