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
	"pvc.internal/driver"
	"pvc.internal/fencing"
	"pvc.internal/router"
	"pvc.internal/zkhandler"
)

// zooKeeperConfig turns the settings' ZooKeeper part into the adapter's. A
// coordinator follows every node's records; a hypervisor, which judges nobody, its
// own and the cluster's only, or each of a thousand would read a thousand
// keepalives.
func zooKeeperConfig(s settings.Node) (zkhandler.Config, error) {
	z, t := s.ZooKeeper, s.Timing
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
	if s.Node.Mode == cluster.Hypervisor {
		c.WatchNodes, c.WatchNode = false, s.Node.Name
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
func collectors(s settings.Node, clock cluster.Clock, log *zap.Logger, copies *driver.Host) (*agent.Collection, error) {
	list := []agent.Collector{collector.NewHost(), programVersion{}}
	if copies != nil {
		list = append(list, collector.NewCopies(copies.Held, copies.Busy))
	}
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
// It asks peers whom it has promised to go on, and a node to stop by itself.
func newFencer(s settings.Node, c agent.Config, store fenceStore, guard *router.Client, clock cluster.Clock,
	peers *talk, log *zap.Logger) (agent.Fencer, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	f, err := fencing.New(fencing.Options{
		Store:  store,
		Runner: fencing.Runner{Run: guard.Run, Argv: []string{self, "fence-attempt"}, WallMS: c.WallMS, Owner: cluster.OwnerPrimary},
		Config: fencingConfig(s).WithSecrets(sealedIn(store)),
		Owner:  cluster.LockOwner{Version: 1, Node: c.Node, Incarnation: c.Incarnation},
		NewID:  uuid.NewString, WallMS: c.WallMS, Log: log.Named("fencing"),
		Clock: clock, StopAfter: s.Timing.StopAfter(), Promised: peers.promised, Soft: peers.soft(),
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// fenceStore is what the fencer needs of ZooKeeper.
type fenceStore interface {
	fencing.Store
	ReadText(ctx context.Context, k cluster.Key) (cluster.Versioned[string], error)
}

// sealedIn finds the sealed passwords that the cluster keeps.
func sealedIn(store fenceStore) fencing.Lookup {
	return func(ctx context.Context, name string) (string, error) {
		text, err := store.ReadText(ctx, cluster.Key{Kind: cluster.KeySecret, Name: name})
		if err != nil {
			return "", err
		}
		if !text.Present {
			return "", fmt.Errorf("%w: there is none of that name; store it by `pvc fence secret set %s`", cluster.ErrNotFound, name)
		}
		record, err := cluster.DecodeSecret(text.Value)
		if err != nil {
			return "", fmt.Errorf("%w; store it again by `pvc fence secret set %s`", err, name)
		}
		return record.Sealed, nil
	}
}
