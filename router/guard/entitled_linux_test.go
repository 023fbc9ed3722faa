package guard

import (
	"context"

	"pvc.internal/cluster"
	"pvc.internal/router"
)

// entitled is a client with the right to whatever it orders: what a guard does
// with orders is tested here, not who may give them.
type entitled struct{ *router.Client }

func may(e cluster.Epoch) cluster.Token {
	return cluster.MintToken(cluster.NewTokenWire(cluster.NodeLeaseID{Epoch: e}, "", "", false), func() error { return nil })
}

func (c entitled) Begin(ctx context.Context, d cluster.RoleDeadline) error {
	return c.Client.Begin(ctx, may(d.Epoch), d)
}

func (c entitled) Extend(ctx context.Context, d cluster.RoleDeadline) error {
	return c.Client.Extend(ctx, may(d.Epoch), d)
}

func (c entitled) Present(ctx context.Context, e cluster.Epoch, addrs []cluster.FloatingAddress) error {
	return c.Client.Present(ctx, may(e), e, addrs)
}

func (c entitled) StartService(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch, s cluster.ServiceSpec) error {
	return c.Client.StartService(ctx, may(e), o, e, s)
}

func (c entitled) StopService(ctx context.Context, o cluster.DeadlineOwner, e cluster.Epoch, name string) error {
	return c.Client.StopService(ctx, may(e), o, e, name)
}

func (c entitled) Run(ctx context.Context, r cluster.RunRequest) (cluster.RunResult, error) {
	return c.Client.Run(ctx, may(r.Epoch), r)
}
