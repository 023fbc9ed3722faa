package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/proc"
	"pvc.internal/zkhandler"
)

// The limits of a backup and a restore. The latter may have to wait for the end
// of what the last holder's lease still gives it, a minute at most.
const (
	sessionWait  = 15 * time.Second
	backupLimit  = 2 * time.Minute
	restoreLimit = 5 * time.Minute
)

// configFlag is where commands that go to ZooKeeper itself find the way.
func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "pvcnoded's settings `FILE` of this node", Value: defaultNodeSettings}
}

func (t *terminal) backupCommands() []*cli.Command {
	return []*cli.Command{
		{Name: "backup", Usage: "write the cluster's tree into a file, on a node", ArgsUsage: "FILE", Action: t.clusterBackup, Flags: []cli.Flag{
			configFlag(),
			&cli.BoolFlag{Name: "force", Usage: "replace a file that is there"}},
			Description: "It asks ZooKeeper itself, as this node's settings say, so that it works while no pvcapid does. It changes nothing.\n" +
				"The file has mode 0600; sealed passwords stay sealed in it."},
		{Name: "restore", Usage: "write a backup's tree into an empty ZooKeeper, on a node", ArgsUsage: "FILE", Action: t.clusterRestore, Flags: []cli.Flag{
			configFlag(),
			&cli.BoolFlag{Name: "overwrite", Usage: "replace a tree of the same cluster that is there"},
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}},
			Description: "It refuses while any node's daemon is alive, and the tree of another cluster. Daemons that wait at an empty tree\n" +
				"go on by themselves. Nobody is fenced for it, and epochs go on above all earlier ones. Killed, it is run again."},
	}
}

// madeBackup is the answer of `pvc cluster backup`.
type madeBackup struct {
	File      string        `json:"file"`
	Cluster   string        `json:"cluster"`
	Records   int           `json:"records"`
	Bytes     int           `json:"bytes"`
	ZxidFirst string        `json:"zxid_first"`
	ZxidLast  string        `json:"zxid_last"`
	Epoch     cluster.Epoch `json:"epoch"`
	SHA256    string        `json:"sha256"`
}

func (t *terminal) clusterBackup(c *cli.Context) error {
	given, err := names(c, "the FILE to write")
	if err != nil {
		return err
	}
	if _, err := format(c); err != nil {
		return err
	}
	file := given[0]
	if _, err := os.Lstat(file); err == nil && !c.Bool("force") {
		return fmt.Errorf("%s is there already; nothing was written. Choose another name, or --force: %w", file, cluster.ErrRefused)
	}
	var b zkhandler.Backup
	err = inStore(c, backupLimit, func(ctx context.Context, h *zkhandler.Handler, _ settings.Node) error {
		b, err = h.Backup(ctx)
		return err
	})
	if err != nil {
		return err
	}
	b.Program = version
	b.By, _ = os.Hostname()
	raw, err := b.Encode()
	if err != nil {
		return err
	}
	if err := writeNewFile(file, raw, c.Bool("force")); err != nil {
		return err
	}
	written, err := readBackup(file) // what cannot be read back is no backup
	if err != nil {
		return err
	}
	made := madeBackup{File: file, Cluster: b.Cluster, Records: len(b.Records), Bytes: len(raw), ZxidFirst: b.ZxidFirst, ZxidLast: b.ZxidLast, Epoch: b.Epoch, SHA256: written.SHA256}
	return t.show(c, made, func() {
		t.say("%s: cluster %s, %d records, %d bytes, as the tree was from zxid %s to %s, epoch %d", file, made.Cluster, made.Records, made.Bytes, made.ZxidFirst, made.ZxidLast, made.Epoch)
		t.say("Keep it off these machines, together with the key of sealed passwords (fencing.secrets.key_file) and the certificates' ca.key.")
	})
}

// writeNewFile writes the file so that it is there as a whole or not at all, with
// mode 0600: under another name first, onto the disk, then by its name. One that
// is there is replaced only with force, whoever is faster.
func writeNewFile(file string, raw []byte, force bool) error {
	dir := filepath.Dir(file)
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(file)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(raw)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if force {
		err = os.Rename(tmp.Name(), file)
	} else {
		err = os.Link(tmp.Name(), file)
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there by now; it was left as it is: %w", file, cluster.ErrRefused)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("write %s onto the disk: %w", file, err)
	}
	return nil
}

func readBackup(file string) (zkhandler.Backup, error) {
	f, err := os.Open(file)
	if err != nil {
		return zkhandler.Backup{}, fmt.Errorf("read the backup: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, zkhandler.MaxBackup+1))
	if err != nil {
		return zkhandler.Backup{}, fmt.Errorf("read the backup: %w", err)
	}
	b, err := zkhandler.DecodeBackup(raw)
	if err != nil {
		return b, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}

func (t *terminal) clusterRestore(c *cli.Context) error {
	given, err := names(c, "the backup's FILE")
	if err != nil {
		return err
	}
	if _, err := format(c); err != nil {
		return err
	}
	b, err := readBackup(given[0])
	if err != nil {
		return err
	}
	made := time.UnixMilli(b.MadeMS).UTC().Format("2006-01-02 15:04:05 UTC")
	if c.Bool("overwrite") && !c.Bool("yes") {
		question := fmt.Sprintf("Every record of cluster %s is replaced by what it was at %s: what was changed since is lost.", b.Cluster, made)
		if !t.confirm(question+" Write "+b.Cluster+" to go on: ", b.Cluster) {
			return usagef("not confirmed; nothing was changed")
		}
	}
	var done zkhandler.Restored
	err = inStore(c, restoreLimit, func(ctx context.Context, h *zkhandler.Handler, s settings.Node) error {
		by, _ := os.Hostname()
		done, err = h.Restore(ctx, b, zkhandler.RestoreOptions{
			Cluster: s.Cluster.Name, Overwrite: c.Bool("overwrite"), By: by, Watch: 5*s.Timing.KeepaliveInterval/2 + 500*time.Millisecond, Lost: zkhandler.LongestLease,
			Say: func(text string, more ...any) { fmt.Fprintf(t.err, text+"\n", more...) }})
		return err
	})
	if err != nil {
		return err
	}
	return t.show(c, done, func() {
		t.say("restored cluster %s as it was at %s: %d records of %d nodes (%s), epochs go on above %d", done.Cluster, made, done.Records, len(done.Nodes), strings.Join(done.Nodes, ", "), done.Epoch)
		if done.Maintenance {
			t.say("! the backup was made in maintenance; the restored cluster is in none, since nobody would take the role in it. `pvc cluster maintenance on` once there is a primary")
		}
		t.say("Daemons that wait register by themselves; a node that does not come back counts as stopped and is never fenced for that. See `pvc node list`.")
	})
}

// inStore does the work in a ZooKeeper session of its own, as the node whose
// settings --config names.
func inStore(c *cli.Context, limit time.Duration, work func(context.Context, *zkhandler.Handler, settings.Node) error) error {
	s, err := loadNode(c.String("config"))
	if err != nil {
		return fmt.Errorf("this goes to ZooKeeper itself, as a node does: run it on a node, or give its settings by --config: %w", err)
	}
	config, err := storeConfig(s)
	if err != nil {
		return err
	}
	config.WatchNodes, config.RequestTimeout = false, config.SessionTimeout/2
	h, err := zkhandler.New(config, proc.BootClock{}, zap.NewNop(), nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, limit)
	defer cancel()
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- h.Run(running) }()
	defer func() {
		end()
		<-ended //nolint:errcheck // it ends because it is told to
	}()
	if err := untilLive(ctx, h, s); err != nil {
		return err
	}
	return work(ctx, h, s)
}

// untilLive waits for the session.
func untilLive(ctx context.Context, h *zkhandler.Handler, s settings.Node) error {
	ctx, cancel := context.WithTimeout(ctx, sessionWait)
	defer cancel()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for h.State().Phase != zkhandler.Live {
		select {
		case <-look.C:
		case <-ctx.Done():
			if why := h.State().Err; why != nil {
				return why
			}
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%w: none of the servers %s has served within %v; `pvc doctor` says more", cluster.ErrNotLive, strings.Join(s.ZooKeeper.Servers, ", "), sessionWait)
		}
	}
	return nil
}
