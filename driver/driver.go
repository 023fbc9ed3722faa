// Package driver runs the copies of workloads on this node, each by the means that
// its workload names: an OCF resource agent, a systemd template unit, redis-server,
// or a program of one's own. What runs hangs on the node's own deadline, in the
// guard (I3): it outlives the agent, and ends where the node must end (I4).
package driver

import (
	"context"

	"pvc.internal/cluster"
)

// Driver is one kind of copy. Every call is bounded by its context and by the
// driver's own limit for the action; what a call has begun when it is cut off is
// found by the next Probe. A call that gives something asks the token right before
// each of its effects.
type Driver interface {
	// Check reports what is wrong with a workload for this driver: unknown or missing
	// parameters, an agent that is not installed here, an ability that the kind needs
	// and the agent does not announce. It changes nothing.
	Check(ctx context.Context, w cluster.Workload) error
	// Probe tells what the copy is now. The error means that it is not known.
	Probe(ctx context.Context, w cluster.Workload) (cluster.CopyReport, error)
	// Order carries out one order, which is a no-op where it is so already, and
	// returns what the copy is afterwards. The error says what is true now.
	Order(ctx context.Context, t cluster.Token, o cluster.CopyOrder) (cluster.CopyReport, error)
}

// Guard is what drivers need of the process that holds their copies
// (router.Client). The owner is always cluster.OwnerNode.
type Guard interface {
	State(ctx context.Context) (cluster.GuardState, error)
	// StartCopy starts a service on the node's own deadline, or adopts it, by the
	// token of whatever activity ordered it.
	StartCopy(ctx context.Context, t cluster.Token, s cluster.ServiceSpec) error
	// StopCopy returns when nothing of it is left.
	StopCopy(ctx context.Context, t cluster.Token, name string) error
}

// ServiceName is the guard's name for a workload's copy.
func ServiceName(workload string) string { return "copy-" + workload }
