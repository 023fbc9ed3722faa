// Package fencing takes power from nodes that are proven to need it, and
// proves that it is gone.
//
//	machine.go   the states of a fence record (pure)
//	topology.go  levels and devices to the order of attempts (pure)
//	config.go    what is configured for each node
//	ipmi.go      the ipmi device
//	attempt.go   one try of one device, in a child process of its own
//	runner.go    starts those children and drives a node's levels with them
//	fencing.go   the Fencer: carries a record through its stages
//
// Success is verified off and nothing else (I5): a device that acknowledges
// and does nothing, does not answer or answers rubbish has failed.
package fencing
