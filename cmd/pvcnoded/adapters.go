package main

import (
	"context"
	"fmt"
	"os"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"pvc.internal/agent"
	"pvc.internal/agent/collector"
	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/fencing"
	"pvc.internal/router"
	"pvc.internal/zkhandler"
)

// zooKeeperConfig turns the settings' ZooKeeper part into the adapter's.
func zooKeeperConfig(z settings.ZooKeeper, t cluster.Timing) (zkhandler.Config, error) {
	auth, err := zkhandler.ReadDigest(z.Auth.User, z.Auth.PasswordFile)
	if err != nil {
		return zkhandler.Config{}, err
	}
	reader, err := zkhandler.ReadDigest(z.Reader.User, z.Reader.PasswordFile)
	if err != nil {
		return zkhandler.Config{}, err
	}
	c := zkhandler.Config{
		Servers: z.Servers, Root: z.Root, SessionTimeout: t.SessionTimeout,
		RequestTimeout: t.KeepaliveInterval * 8 / 10, Auth: auth, Reader: reader, WatchNodes: true,
		CheckServers: true,
	}
	if z.TLS.Set() {
		c.TLS = &zkhandler.TLSFiles{CA: z.TLS.CA, Cert: z.TLS.Cert, Key: z.TLS.Key, ServerName: z.TLS.ServerName}
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("zookeeper settings: %w", err)
	}
	return c, nil
}

// collectors makes the node's subthreads.
func collectors(s settings.Node, clock cluster.Clock, log *zap.Logger) (*agent.Collection, error) {
	list := []agent.Collector{collector.NewHost(), programVersion{}}
	configs := make([]collector.PluginConfig, len(s.Plugins))
	for i, p := range s.Plugins {
		configs[i] = collector.PluginConfig{Name: p.Name, Command: p.Command, Interval: p.Interval, Timeout: p.Timeout}
	}
	plugins, health, err := collector.NewPlugins(configs)
	if err != nil {
		return nil, fmt.Errorf("plugins settings: %w", err)
	}
	for _, p := range plugins {
		list = append(list, p)
	}
	if len(plugins) > 0 {
		list = append(list, health)
	}
	return agent.NewCollection(clock, log.Named("collect"), s.Timing.CollectorDeadline, list...)
}

// programVersion publishes which program runs here.
type programVersion struct{}

// Name implements agent.Collector.
func (programVersion) Name() string { return "version" }

// Collect implements agent.Collector.
func (programVersion) Collect(context.Context) (map[string]string, error) {
	return map[string]string{"pvcversion": version}, nil
}

// newFencer makes the fencer, whose attempts are child processes of the guard.
// promised is the end of this node's last promise to another that it may go on.
func newFencer(s settings.Node, c agent.Config, store fencing.Store, guard *router.Client, clock cluster.Clock,
	promised func(cluster.NodeID) cluster.Instant, log *zap.Logger) (agent.Fencer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	f, err := fencing.New(fencing.Options{
		Store:  store,
		Runner: fencing.Runner{Run: guard.Run, Argv: []string{self, "fence-attempt"}, WallMS: c.WallMS, Owner: cluster.OwnerPrimary},
		Config: fencingConfig(s),
		Owner:  cluster.LockOwner{Version: 1, Node: c.Node, Incarnation: c.Incarnation},
		NewID:  uuid.NewString, WallMS: c.WallMS, Log: log.Named("fencing"),
		Clock: clock, StopAfter: s.Timing.StopAfter(), Promised: promised,
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}
