// Package fencing takes power from nodes that are proven to need it, and
// proves that it is gone.
//
//	machine.go   the states of a fence record (pure)
//	proof.go     what proves a node dead, and what is missing for it (pure)
//	topology.go  levels and devices to the order of attempts (pure)
//	config.go    what is configured for each node
//	ipmi.go      the ipmi device
//	redfish.go   the redfish device; redfish_http.go its requests
//	agents.go    the agent device: ClusterLabs fence agents
//	exec.go      the exec device: a program of the operator's
//	probe.go     the test of a device, before it is needed
//	secret.go    passwords: where they come from, and that nothing prints them
//	attempt.go   one try of one device, in a child process of its own
//	runner.go    starts those children and drives a node's levels with them
//	fencing.go   the Fencer: claims and adopts records, and drives them
//	work.go      the work of each stage
//	order.go     operators' orders, and what goes on without a verdict
//	report.go    what is published of device tests
//
// Success is verified off and nothing else (I5): a device that acknowledges
// and does nothing, does not answer or answers rubbish has failed.
package fencing
