// Package cluster is the vocabulary of the project: the words every other
// package uses for nodes, leases, transitions, transactions and time. It
// imports the standard library only and does no I/O.
//
// The invariants that comments elsewhere name as I1…I10 are:
//
//	I1  one primary: at most one node answers for a floating address or runs a
//	    primary-only service at any instant.
//	I2  epochs grow: every holder of the primary role has a larger epoch than
//	    all before, and whoever receives a smaller one refuses.
//	I3  the holder stops first: all effects of a role end at the latest at
//	    (send instant of the last acknowledged renewal) + ttl − grace.
//	I4  dead-proof: no workload starts elsewhere before its node's current
//	    incarnation is proven dead.
//	I5  a fence names an incarnation and never hits a later one.
//	I6  the majority lives: nobody fences from a blind or minority position.
//	I7  no state without an exit.
//	I8  acknowledged means kept.
//	I9  an agent's restart moves nothing.
//	I10 a stuck part never stops the keepalive.
package cluster
