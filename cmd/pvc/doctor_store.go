package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/doctor"
	"pvc.internal/proc"
	"pvc.internal/zkhandler"
)

// storeConfig is how the doctor reaches ZooKeeper: as this node's daemon does.
func storeConfig(s settings.Node) (zkhandler.Config, error) {
	z := s.ZooKeeper
	auth, err := zkhandler.ReadDigest(z.Auth.User, z.Auth.PasswordFile)
	if err != nil {
		return zkhandler.Config{}, err
	}
	c := zkhandler.Config{Servers: z.Servers, Root: z.Root, SessionTimeout: s.Timing.SessionTimeout,
		RequestTimeout: s.Timing.RequestTimeout(), Auth: auth, WatchNodes: true}
	if z.TLS.Set() {
		c.TLS = &zkhandler.TLSFiles{CA: z.TLS.CA, Cert: z.TLS.Cert, Key: z.TLS.Key, ServerName: z.TLS.ServerName}
	}
	return c, c.Validate()
}

// identityOf is as who this node writes, for people.
func identityOf(s settings.Node) string {
	var all []string
	if s.ZooKeeper.Auth.User != "" {
		all = append(all, "password of user "+s.ZooKeeper.Auth.User)
	}
	if s.ZooKeeper.TLS.Cert != "" {
		all = append(all, "client certificate")
	}
	return strings.Join(all, " or the ")
}

func askServers(ctx context.Context, s settings.Node) ([]zkhandler.ServerReport, error) {
	c, err := storeConfig(s)
	if err != nil {
		return nil, err
	}
	return c.AskServers(ctx)
}

// anyServes reports whether a session can be had.
func anyServes(reports []zkhandler.ServerReport) bool {
	return slices.ContainsFunc(reports, func(r zkhandler.ServerReport) bool { return r.Err == nil && !r.Idle })
}

func serversOf(reports []zkhandler.ServerReport) []doctor.Server {
	servers := make([]doctor.Server, len(reports))
	for i, r := range reports {
		servers[i] = doctor.Server{Address: r.Server, Idle: r.Idle, Refused: r.Refused, Version: r.Version, Mode: r.Mode, Tick: r.Tick, Sync: r.Sync,
			Clients: r.Clients, Members: r.Members, Fsync: r.Fsync, FsyncAvg: r.FsyncAvg, FsyncMax: r.FsyncMax}
		if r.Err != nil {
			servers[i].Trouble = r.Err.Error()
		}
	}
	return servers
}

// treeRead is what one session has shown.
type treeRead struct {
	records doctor.Records
	access  doctor.Access
	granted time.Duration     // the session time-out
	secrets map[string]string // sealed passwords, as the records hold them
}

// readTree reads the cluster's records in a session of its own, which holds
// nothing and ends with it.
func readTree(ctx context.Context, s settings.Node) (read treeRead, err error) {
	c, err := storeConfig(s)
	if err != nil {
		return read, err
	}
	h, err := zkhandler.New(c, proc.BootClock{}, zap.NewNop(), nil)
	if err != nil {
		return read, err
	}
	running, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- h.Run(running) }()
	defer func() {
		end()
		<-ended //nolint:errcheck // it ends because it is told to
	}()
	snap, err := firstSnapshot(ctx, h)
	if err != nil {
		return read, err
	}
	read.granted = h.State().Granted
	read.records = doctor.Records{Snapshot: snap, Views: map[cluster.NodeID]cluster.View{}, Tests: map[cluster.NodeID]cluster.FenceTests{}}
	for n := range snap.Nodes {
		readRecord(ctx, h, cluster.Key{Kind: cluster.KeyView, Node: n}, read.records.Views, &read.records.Doubts)
		readRecord(ctx, h, cluster.Key{Kind: cluster.KeyFenceTests, Node: n}, read.records.Tests, &read.records.Doubts)
	}
	if _, _, err := h.CheckTree(ctx); errors.Is(err, cluster.ErrHalfRestored) {
		read.records.Half = err.Error()
	}
	if read.secrets, err = h.ReadSecrets(ctx); err != nil {
		read.records.Doubts = append(read.records.Doubts, err.Error())
	}
	open, err := h.OpenToAll(ctx)
	if read.access.Open = open; err != nil {
		read.access.Tree = err.Error()
	}
	return read, nil
}

// firstSnapshot waits for a whole view of the tree.
func firstSnapshot(ctx context.Context, h *zkhandler.Handler) (*cluster.Snapshot, error) {
	snapshots, leave := h.Subscribe()
	defer leave()
	for {
		select {
		case s := <-snapshots:
			if s.Complete && s.Live {
				return s, nil
			}
		case <-ctx.Done():
			why := h.State().Err
			if why == nil {
				why = errors.New("no server that takes part in a majority has answered in time")
			}
			return nil, fmt.Errorf("the cluster's records could not be read: %w", why)
		}
	}
}

// readRecord reads what snapshots leave out. What is there and cannot be read
// is a doubt; what is not there is missing.
func readRecord[T any](ctx context.Context, h *zkhandler.Handler, k cluster.Key, into map[cluster.NodeID]T, doubts *[]string) {
	text, err := h.ReadText(ctx, k)
	if err == nil && !text.Present {
		return
	}
	var value T
	if err == nil {
		err = json.Unmarshal([]byte(text.Value), &value)
	}
	if err != nil {
		*doubts = append(*doubts, fmt.Sprintf("%s cannot be read: %v", k, err))
		return
	}
	into[k.Node] = value
}
