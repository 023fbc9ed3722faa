package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/driver"
	"pvc.internal/router"
)

// newCopies makes what runs the copies of workloads here, and what lets go of it;
// nil without node leases: then this node obeys nobody's orders of copies.
func newCopies(s settings.Node, c agent.Config, guard *router.Client, log *zap.Logger) (*driver.Host, func(), error) {
	if !s.NodeLeases {
		return nil, func() {}, nil
	}
	state, run := filepath.Join(s.StateDir, "workloads"), filepath.Join(s.RunDir, "ocf")
	for _, folder := range []string{state, run} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, nil, fmt.Errorf("make a folder for workloads: %w", err)
		}
	}
	ocf, err := driver.NewOCF(driver.OCFConfig{Node: c.Node, Guard: guard, Root: s.Workloads.OCFRoot, StateDir: filepath.Join(state, "ocf"), RunDir: run})
	if err != nil {
		return nil, nil, err
	}
	host, _, err := net.SplitHostPort(c.Peer)
	if err != nil {
		return nil, nil, fmt.Errorf("peer.advertise %q: %w", c.Peer, err)
	}
	redis := driver.NewRedis(driver.RedisConfig{Node: c.Node, Guard: guard, Dir: s.Workloads.RedisDir, Host: host, User: s.Workloads.RedisUser})
	sweepEmptyCopies(redis, log)
	h := driver.NewHost(c.Node, guard, guard, map[cluster.DriverName]driver.Driver{
		cluster.DriverExec: driver.NewExec(c.Node, guard), cluster.DriverSystemd: driver.NewSystemd(c.Node, guard),
		cluster.DriverOCF: ocf, cluster.DriverRedis: redis,
	}, log)
	return h, func() { h.Close(); redis.Close() }, nil
}

// sweepLimit bounds the wait for a guard that does not answer: the next start sweeps.
const sweepLimit = time.Second

// sweepEmptyCopies removes what copies have left that were taken from this node while
// it was away.
func sweepEmptyCopies(redis *driver.Redis, log *zap.Logger) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), sweepLimit, cluster.ErrDeadline)
	defer cancel()
	switch removed, err := redis.SweepEmpty(ctx); {
	case err != nil:
		log.Info("empty folders of workloads not looked for", zap.Error(err))
	case len(removed) > 0:
		log.Info("empty folders of workloads removed", zap.Strings("workloads", removed))
	}
}
