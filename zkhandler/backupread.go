package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// backupReads is how often the tree is read until two readings after each other
// agree.
const backupReads = 12

// leftOut are the directories whose contents a backup leaves out.
var leftOut = []string{aliveTop, viewsTop, activityDir}

// leftOutRecords are records that a backup leaves out: what each primary tells
// anew, what is ordered and not done, and a restore's own mark.
var leftOutRecords = []string{leasesRecord, memberOrder, restoreMark}

// Backup reads the whole tree as one consistent view. ZooKeeper reads one znode
// at a time, so that the tree is read again until two readings after each other
// show every record that matters with the same last write: then all of them had
// these values at once between the two. It writes nothing. It fails with
// cluster.ErrNotFound where there is no cluster, and with cluster.ErrDeadline
// where the tree never held still.
func (h *Handler) Backup(ctx context.Context) (Backup, error) {
	if mark, _, err := h.readMark(ctx); err != nil || mark != nil {
		if err == nil {
			err = mark.halfway()
		}
		return Backup{}, fmt.Errorf("back up: %w", err)
	}
	before, err := h.readWhole(ctx)
	if err != nil {
		return Backup{}, fmt.Errorf("back up: %w", err)
	}
	differs := ""
	for range backupReads {
		last, err := h.newest(ctx, before)
		if err != nil {
			return Backup{}, fmt.Errorf("back up: %w", err)
		}
		again, err := h.readWhole(ctx)
		if err != nil {
			return Backup{}, fmt.Errorf("back up: %w", err)
		}
		if differs = before.differs(again); differs == "" {
			return before.backup(last)
		}
		before = again
	}
	return Backup{}, fmt.Errorf("back up: %w: the tree changed in each of %d readings, the last time %s; try again when no switch or fence is under way", cluster.ErrDeadline, backupReads, differs)
}

// treeReading is the tree as one pass over it has found it, by path below the root.
type treeReading struct {
	found map[string]datum
	first int64 // the largest zxid that it shows
}

// readWhole reads everything that belongs in a backup, after a sync.
func (h *Handler) readWhole(ctx context.Context) (treeReading, error) {
	r := treeReading{found: map[string]datum{}}
	if err := h.sync(ctx); err != nil {
		return r, err
	}
	level := slices.Clone(treeRoots)
	for len(level) > 0 {
		found, err := h.getAll(ctx, h.schema.root, level)
		if err != nil {
			return r, err
		}
		var below []string
		for i, d := range found {
			if d == nil || d.stat.EphemeralOwner != 0 {
				continue
			}
			p := level[i]
			r.found[p] = *d
			r.first = max(r.first, d.stat.Mzxid, d.stat.Czxid)
			if d.stat.NumChildren == 0 || slices.Contains(leftOut, p) {
				continue
			}
			names, err := h.children(ctx, h.schema.root+p)
			if err != nil && !errors.Is(err, cluster.ErrNotFound) {
				return r, err
			}
			for _, name := range names {
				if child := p + "/" + name; !slices.Contains(leftOutRecords, child) && !lockContender(child) {
					below = append(below, child)
				}
			}
		}
		level = below
	}
	if _, there := r.found[configTop]; !there {
		return r, fmt.Errorf("%w: there is no cluster below %q: the tree has no /config", cluster.ErrNotFound, "/"+strings.TrimPrefix(h.schema.root, "/"))
	}
	return r, nil
}

// lockContender recognises a contender of one of the two locks, ours or foreign.
func lockContender(p string) bool {
	dir, name := path.Split(p)
	return (dir == wishRecord+"/" && name != "sync_lock") || dir == fenceLockDir+"/"
}

// newest is the largest zxid that what changes all the time shows now: this
// server is no further behind than that.
func (h *Handler) newest(ctx context.Context, r treeReading) (int64, error) {
	var moving []string
	for p := range r.found {
		if path.Base(p) == "keepalive" || p == leaseRecord {
			moving = append(moving, p)
		}
	}
	found, err := h.getAll(ctx, h.schema.root, moving)
	newest := r.first
	for _, d := range found {
		if d != nil {
			newest = max(newest, d.stat.Mzxid)
		}
	}
	return newest, err
}

// differs says what of the records that matter another treeReading shows
// differently; empty: nothing. A directory's Pzxid tells of children that came
// and went between.
func (r treeReading) differs(o treeReading) string {
	for p, d := range r.found {
		if moves(p) {
			continue
		}
		now, there := o.found[p]
		switch {
		case !there:
			return p + " was removed"
		case now.stat.Mzxid != d.stat.Mzxid || now.stat.Czxid != d.stat.Czxid:
			return p + " was written"
		case !crowded(p) && now.stat.Pzxid != d.stat.Pzxid:
			return "records came or went below " + p
		}
	}
	for p := range o.found {
		if _, there := r.found[p]; !there && !moves(p) {
			return p + " was made"
		}
	}
	return ""
}

// toldAnew reports whether each node tells the value anew once it has registered,
// or has it in its journal: the znode is kept, and emptied.
func toldAnew(p string) bool {
	return strings.HasPrefix(p, logsTop+"/") || strings.HasPrefix(p, factsDir+"/")
}

// moves reports whether the record may change while a backup is made: what each
// node measures and tells each second, the lease's count, logs, the history's
// entries, which are complete by themselves.
func moves(p string) bool {
	parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
	switch {
	case p == leaseRecord, parts[0] == "logs":
		return true
	case parts[0] == "faults":
		return len(parts) == 3 && parts[2] == "last_time"
	case parts[0] == "agent":
		return len(parts) == 3 && slices.Contains([]string{"history", "fence-tests", "facts"}, parts[1])
	case parts[0] == "nodes" && len(parts) > 2:
		return parts[2] != "daemonmode" && parts[2] != "domainstate"
	}
	return false
}

// crowded are directories whose children come and go all the time, and do not
// matter here.
func crowded(p string) bool {
	return p == wishRecord || p == fenceLockDir || p == historyTop || p == agentTop || slices.Contains(leftOut, p)
}

// backup makes the file's contents; last is the largest zxid that was known when
// the comparison began.
func (r treeReading) backup(last int64) (Backup, error) {
	b := Backup{Format: backupFormat, Version: backupVersion, MadeMS: time.Now().UnixMilli(),
		ZxidFirst: fmt.Sprintf("%#x", r.first), ZxidLast: fmt.Sprintf("%#x", max(r.first, last))}
	for p, d := range r.found {
		data := d.data
		if toldAnew(p) {
			data = nil
		}
		b.Records = append(b.Records, newBackupRecord(p, data))
		if strings.HasPrefix(p, agentTop+"/") {
			b.Epoch = max(b.Epoch, epochsIn(d.data))
		}
	}
	slices.SortFunc(b.Records, func(a, b BackupRecord) int { return strings.Compare(a.Path, b.Path) })
	b.Cluster = strings.TrimSpace(b.text(configTop))
	var err error
	if b.Schema, err = strconv.Atoi(strings.TrimSpace(b.text(schemaRecord))); err != nil {
		return Backup{}, fmt.Errorf("back up: the schema record holds %q, not a version number: this is no tree of this program's", b.text(schemaRecord))
	}
	if err := b.check(); err != nil {
		return Backup{}, fmt.Errorf("back up: %w", err)
	}
	return b, nil
}
