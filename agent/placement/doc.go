// Package placement decides where workloads go: which node takes one, what a
// recovery, a drain, a `ready` or a rebalance moves next, and when a start that has
// failed is tried again. It is pure: no clock, goroutine or I/O, the same answer to
// the same question, and nothing that it is given is edited.
//
// node.go says which nodes may take anything; book.go counts what they have left;
// batch.go how many moves run at once; upkeep.go what a movable workload needs next;
// drain.go and rebalance.go which chains are to change.
package placement
