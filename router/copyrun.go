package router

import (
	"context"

	"pvc.internal/cluster"
)

// The requests by which programs run for copies. They came after version 1.
const (
	MethodRunInCopy Method = "run_in_copy"
	MethodLook      Method = "look"
)

// CopyRunParams are the parameters of run_in_copy.
type CopyRunParams struct {
	Name string             `json:"name"` // the service's
	Run  cluster.RunRequest `json:"run"`
}

// RunInCopy runs a program under the node's own deadline, by a token as StartCopy's.
// What it starts is a part of the service by this name, if that is one of actions
// that the guard holds, and ends with it; of any other, and of one that is killed,
// nothing is left. It fails with cluster.ErrDeadline while this node's own right is
// not held. A program that failed is told in the result.
func (c *Client) RunInCopy(ctx context.Context, t cluster.Token, name string, r cluster.RunRequest) (cluster.RunResult, error) {
	res := cluster.RunResult{ExitCode: -1}
	r.Owner, r.Epoch = cluster.OwnerNode, cluster.NodeEpoch
	err := c.send(ctx, t.Check, MethodRunInCopy, CopyRunParams{Name: name, Run: r}, &res)
	return res, err
}

// Look runs a program that changes nothing, under no deadline but its own; nothing
// of it is left. A program that failed is told in the result.
func (c *Client) Look(ctx context.Context, r cluster.RunRequest) (cluster.RunResult, error) {
	res := cluster.RunResult{ExitCode: -1}
	err := c.call(ctx, MethodLook, r, &res)
	return res, err
}
