package zkhandler

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
)

// EpochGap is by how much the epochs of a restored tree are above every one that
// the backup, or the tree that it replaces, tells of. A backup is older than the
// last takeover; a role that moves each minute uses this up in two years (I2).
const EpochGap = cluster.RestoreGap

// eventRestored is the kind of the history's entry that tells of a restore.
const eventRestored = "restored"

// restoring is the mark's value.
type restoring struct {
	Version   int           `json:"v"`
	ID        string        `json:"id"`
	Cluster   string        `json:"cluster"`
	BackupMS  int64         `json:"backup_ms"`
	StartedMS int64         `json:"started_ms"`
	By        string        `json:"by,omitempty"`
	Epoch     cluster.Epoch `json:"epoch"` // the restored tree begins above this one
}

// halfway is the error of whoever finds the mark.
func (m *restoring) halfway() error {
	return fmt.Errorf("%w of cluster %q from the backup of %s, begun at %s by %s: run `pvc cluster restore FILE` again, if nobody is at it",
		cluster.ErrHalfRestored, m.Cluster, clockText(m.BackupMS), clockText(m.StartedMS), m.By)
}

func clockText(unixMS int64) string {
	return time.UnixMilli(unixMS).UTC().Format("2006-01-02 15:04:05 UTC")
}

// readMark returns the mark of a restore that has not ended, nil where none
// stands; one that cannot be read stands for a restore of nobody knows what.
func (h *Handler) readMark(ctx context.Context) (*restoring, int32, error) {
	d, err := h.get(ctx, h.schema.root+restoreMark)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	m, err := decodeRecord[restoring](d.data)
	if err != nil || m.Epoch > cluster.MaxEpoch {
		m = restoring{By: "somebody"}
	}
	return &m, d.stat.Version, nil
}

// RestoreOptions say how a tree is restored.
type RestoreOptions struct {
	// Cluster is the name that this node's settings give; empty: any.
	Cluster string
	// Overwrite replaces a tree that is there, of the same cluster.
	Overwrite bool
	// Watch is how long records of a tree that is there must stay unchanged
	// before it is taken for one that no daemon lives on: longer than two
	// keepalive intervals. The lease's own time is waited for in any case.
	Watch time.Duration
	By    string // who restores, for people
	// Lost is how long the last lease of a tree that is gone may still give its
	// holder. It is waited for where the backup was made in maintenance, in which a
	// daemon that stops leaves its addresses up; 0: it is not.
	Lost time.Duration
	// Say is told what is waited for and how far it is; nil: nobody.
	Say func(format string, more ...any)
}

// Restored is what a restore has come to.
type Restored struct {
	Cluster   string        `json:"cluster"`
	BackupMS  int64         `json:"backup_ms"`
	Epoch     cluster.Epoch `json:"epoch"` // of the released lease; the next holder's is larger
	Records   int           `json:"records"`
	Writes    int           `json:"writes"`
	Nodes     []string      `json:"nodes"`
	Overwrote bool          `json:"overwrote"`
	Carried   bool          `json:"carried_on"` // a restore that had not ended was found
	// Maintenance: the backup was made in maintenance. A restored cluster is in
	// none, since nobody takes the role of his own accord in it.
	Maintenance bool `json:"backup_in_maintenance"`
}

// Restore writes a backup's tree. It refuses (cluster.ErrRefused) the tree of
// another cluster, a tree that is not empty without Overwrite, and any that a
// daemon lives on. It goes by Multis of at most 512 KiB, each on the version of
// a mark, so that of two at once one goes on and one that was killed is found as
// such by CheckTree; run again it begins anew. What daemons need to register or
// to take the role comes with the last Multi, which takes the mark away.
func (h *Handler) Restore(ctx context.Context, b Backup, o RestoreOptions) (Restored, error) {
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	if err := b.check(); err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	if o.Cluster != "" && o.Cluster != b.Cluster {
		return Restored{}, fmt.Errorf("restore: %w: the backup is of cluster %q, and the settings here say %q; nothing was changed", cluster.ErrRefused, b.Cluster, o.Cluster)
	}
	if b.Schema > h.knownSchema {
		return Restored{}, fmt.Errorf("restore: %w", cluster.SchemaTooNew(b.Schema, h.knownSchema))
	}
	r := &restore{h: h, b: b, o: o}
	if err := r.run(ctx); err != nil {
		return Restored{}, fmt.Errorf("restore: %w", err)
	}
	return r.done, nil
}

// restore is one run of Restore.
type restore struct {
	h       *Handler
	b       Backup
	o       RestoreOptions
	mark    restoring
	version int32 // of the mark
	done    Restored
}

func (r *restore) run(ctx context.Context) error {
	if err := r.h.sync(ctx); err != nil {
		return err
	}
	there, err := r.look(ctx)
	if err != nil {
		return err
	}
	if _, _, err := r.tree(time.Now().UnixMilli()); err != nil { // before anything is deleted for it
		return err
	}
	if err := r.begin(ctx, there); err != nil {
		return err
	}
	for try := 1; ; try++ {
		err := r.fill(ctx)
		if err == nil || errors.Is(err, cluster.ErrRefused) || !errors.Is(err, cluster.ErrConflict) || try == refills {
			return err
		}
		r.o.Say("begun anew: %v", err)
	}
}

// refills is how often the tree is filled anew where somebody has made a record in
// it meanwhile, as a daemon does that still runs and waits.
const refills = 5

// fill makes the whole tree, which is this run's while its mark stands.
func (r *restore) fill(ctx context.Context) error {
	if err := r.clear(ctx); err != nil {
		return err
	}
	early, late, err := r.tree(time.Now().UnixMilli())
	if err != nil {
		return err
	}
	if err := r.write(ctx, early); err != nil {
		return err
	}
	var last []any
	for _, l := range late {
		last = append(last, r.create(l))
	}
	last = append(last, &zk.DeleteRequest{Path: r.path(restoreMark), Version: r.version})
	if err := r.commit(ctx, last, r.path(configTop)); err != nil {
		return err
	}
	r.done.Records = len(early) + len(late)
	return nil
}

func (r *restore) path(p string) string { return r.h.schema.root + p }

func (r *restore) create(l leaf) *zk.CreateRequest {
	return &zk.CreateRequest{Path: r.path(l.path), Data: []byte(l.value), Acl: r.h.acl}
}

// standing is what stands where the backup is to go.
type standing struct {
	empty   bool
	mark    *restoring
	version int32 // of the mark
	epoch   cluster.Epoch
	lease   *zk.CheckVersionRequest // as it was last seen; nil: there is none
}

// look judges what is there.
func (r *restore) look(ctx context.Context) (standing, error) {
	var s standing
	var err error
	if s.mark, s.version, err = r.h.readMark(ctx); err != nil {
		return s, err
	}
	tops, err := r.h.getAll(ctx, r.h.schema.root, treeRoots)
	if err != nil {
		return s, err
	}
	s.empty = !slices.ContainsFunc(tops, func(d *datum) bool { return d != nil })
	if s.empty {
		return s, r.lingers(ctx)
	}
	name := ""
	if config := tops[slices.Index(treeRoots, configTop)]; config != nil {
		name = strings.TrimSpace(string(config.data))
	}
	if s.mark != nil && s.mark.Cluster != "" {
		name, s.epoch = s.mark.Cluster, s.mark.Epoch
	}
	switch {
	case name != "" && name != r.b.Cluster:
		return s, fmt.Errorf("%w: the tree here is of cluster %q, the backup of %q; nothing was changed. Another zookeeper.root keeps them apart", cluster.ErrRefused, name, r.b.Cluster)
	case s.mark == nil && !r.o.Overwrite:
		return s, fmt.Errorf("%w: the tree is not empty (cluster %q): nothing was changed. With --overwrite everything in it is replaced by the backup", cluster.ErrRefused, name)
	}
	r.done.Overwrote, r.done.Carried = s.mark == nil, s.mark != nil
	return s, r.quiet(ctx, &s)
}

// quiet refuses a tree that a daemon lives on, and takes its largest epoch. A
// holder that was shut down in maintenance is gone and its addresses are not:
// what its lease still gives it is waited for (I1).
func (r *restore) quiet(ctx context.Context, s *standing) error {
	alive, err := r.h.children(ctx, r.h.schema.aliveDir())
	switch {
	case err != nil && !errors.Is(err, cluster.ErrNotFound):
		return err
	case len(alive) > 0:
		slices.Sort(alive)
		return fmt.Errorf("%w: the daemons of %s are alive on this tree; nothing was changed. Stop them all first: `systemctl stop pvcnoded` on each node", cluster.ErrRefused, strings.Join(alive, ", "))
	}
	before, lease, err := r.moving(ctx, s)
	if err != nil {
		return err
	}
	wait := r.o.Watch
	if !lease.Released() {
		wait = max(wait, outlives(lease.TTL()))
	}
	r.o.Say("watching the tree for %v: no daemon may be alive on it", wait.Round(100*time.Millisecond))
	if !sleep(ctx, wait) {
		return fmt.Errorf("%w: interrupted; nothing was changed: %w", cluster.ErrDeadline, ctx.Err())
	}
	if err := r.h.sync(ctx); err != nil {
		return err
	}
	after, _, err := r.moving(ctx, s)
	if err != nil {
		return err
	}
	for p, zxid := range after {
		if before[p] != zxid {
			return fmt.Errorf("%w: %s was written while it was watched: a daemon is alive on this tree. Nothing was changed; stop pvcnoded on every node first", cluster.ErrRefused, p)
		}
	}
	return nil
}

// outlives is longer than a lease lasts on any clock.
func outlives(ttl time.Duration) time.Duration { return ttl + ttl/50 + time.Second }

// lingers waits for what nobody can look up any more: what the lease of the lost
// tree gives a holder that was shut down in maintenance (I1).
func (r *restore) lingers(ctx context.Context) error {
	if r.o.Lost == 0 || strings.TrimSpace(r.b.text(maintenanceFlag)) != "true" {
		return nil
	}
	wait := outlives(r.o.Lost)
	r.o.Say("the backup was made in maintenance: waiting for %v, for which a daemon that was stopped in it may have left its addresses up", wait.Round(time.Second))
	if !sleep(ctx, wait) {
		return fmt.Errorf("%w: interrupted; nothing was changed: %w", cluster.ErrDeadline, ctx.Err())
	}
	return nil
}

// LongestLease is what a lease that is missing, or cannot be read, may have given
// its holder: a shutdown in maintenance leaves as much (agent/role, lingerTTL).
const LongestLease = 62 * time.Second

// moving are the last writes of what living daemons write, with the lease.
func (r *restore) moving(ctx context.Context, s *standing) (map[string]int64, cluster.Lease, error) {
	paths := []string{leaseRecord, transitionRecord, wishRecord}
	nodes, err := r.h.children(ctx, r.h.schema.nodesDir())
	if err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return nil, cluster.Lease{}, err
	}
	for _, n := range nodes {
		paths = append(paths, nodesTop+"/"+n+"/keepalive", fencesTop+"/"+n)
	}
	found, err := r.h.getAll(ctx, r.h.schema.root, paths)
	if err != nil {
		return nil, cluster.Lease{}, err
	}
	writes, lease := map[string]int64{}, cluster.Lease{}
	for i, d := range found {
		if d == nil {
			continue
		}
		writes[paths[i]] = d.stat.Mzxid
		s.epoch = max(s.epoch, epochsIn(d.data))
		if i == 0 {
			lease, err = decodeLease(d.data)
			s.lease = &zk.CheckVersionRequest{Path: r.path(leaseRecord), Version: d.stat.Version}
		}
	}
	if s.mark == nil && (found[0] == nil || err != nil) { // of an earlier run's mark the lease went with its tree
		lease = cluster.Lease{Holder: "somebody", TTLMillis: LongestLease.Milliseconds()}
	}
	return writes, lease, nil
}

// begin puts the mark up, or takes over the one that an earlier run has left.
func (r *restore) begin(ctx context.Context, s standing) error {
	r.mark = restoring{Version: 1, ID: rand.Text(), Cluster: r.b.Cluster, BackupMS: r.b.MadeMS, StartedMS: time.Now().UnixMilli(), By: r.o.By,
		Epoch: max(r.b.Epoch, s.epoch)}
	if r.mark.Epoch > cluster.MaxEpoch-2*EpochGap {
		return fmt.Errorf("%w: the epochs have come to %d, near their end", cluster.ErrRefused, r.mark.Epoch)
	}
	raw, err := json.Marshal(r.mark)
	if err != nil {
		return err
	}
	if err := r.h.ensureRoot(ctx); err != nil {
		return err
	}
	var ops []any
	switch {
	case s.mark != nil:
		r.version = s.version + 1
		ops = []any{&zk.SetDataRequest{Path: r.path(restoreMark), Data: raw, Version: s.version}}
	default:
		if _, err := r.h.get(ctx, r.path(agentTop)); errors.Is(err, cluster.ErrNotFound) {
			ops = append(ops, r.create(leaf{agentTop, ""}))
		} else if err != nil {
			return err
		}
		ops = append(ops, r.create(leaf{restoreMark, string(raw)}))
		if s.lease != nil { // whoever has begun since the tree was watched renews it (I1)
			ops = append(ops, s.lease)
		}
	}
	return r.putUp(ctx, ops)
}

// putUp writes the mark. Where the reply was lost the mark itself says whose it
// is; while it is not there the write is tried again, and meets a late one.
func (r *restore) putUp(ctx context.Context, ops []any) error {
	for {
		_, _, err := r.h.multi(ctx, ops)
		fate := fateOf(err)
		if fate == fateDone || fate == fateRefused {
			return err
		}
		mark, version, readErr := r.h.readMark(ctx)
		switch {
		case readErr == nil && mark != nil && mark.ID == r.mark.ID:
			r.version = version
			return nil
		case readErr == nil && fate == fateConflict:
			return fmt.Errorf("%w: somebody else restores or initialises this tree, or a daemon has begun on it; nothing was changed: %w", cluster.ErrRefused, err)
		case !sleep(ctx, 200*time.Millisecond):
			return err
		}
	}
}

// clear removes all that stands but the mark, deepest first. What names the
// cluster goes with the first of it: no daemon takes the rest for a tree.
func (r *restore) clear(ctx context.Context) error {
	for _, top := range treeRoots {
		leaves, err := r.h.readTree(ctx, r.path(top))
		if errors.Is(err, cluster.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		var paths []string
		for l := range leaves {
			if p := strings.TrimRight(top+"/"+l, "/"); p != agentTop && p != restoreMark {
				paths = append(paths, p)
			}
		}
		slices.Sort(paths)
		slices.Reverse(paths)
		for batch := range slices.Chunk(paths, deleteAtOnce) {
			ops := make([]any, len(batch))
			for i, p := range batch {
				ops[i] = &zk.DeleteRequest{Path: r.path(p), Version: -1}
			}
			if err := r.onMark(ctx, ops, func() (bool, error) {
				_, err := r.h.get(ctx, r.path(batch[len(batch)-1]))
				return errors.Is(err, cluster.ErrNotFound), ignore(err, cluster.ErrNotFound)
			}); err != nil {
				return fmt.Errorf("delete below %s: %w", top, err)
			}
		}
	}
	return nil
}

func ignore(err, known error) error {
	if errors.Is(err, known) {
		return nil
	}
	return err
}

// restoreAtOnce bounds the records of one Multi beside its bytes: a server does
// all of it before it does anything else.
const restoreAtOnce = 500

// write makes the records in their order, parents first.
func (r *restore) write(ctx context.Context, tree []leaf) error {
	for len(tree) > 0 {
		n, size := 0, opOverhead
		for n < len(tree) && n < restoreAtOnce {
			size += opOverhead + len(r.path(tree[n].path)) + len(tree[n].value) + r.h.aclSize
			if n > 0 && size > maxRequest {
				break
			}
			n++
		}
		n = wholeNodes(tree, n)
		ops := make([]any, n)
		for i, l := range tree[:n] {
			ops[i] = r.create(l)
		}
		if err := r.commit(ctx, ops, r.path(tree[n-1].path)); err != nil {
			return err
		}
		tree = tree[n:]
	}
	return nil
}

// wholeNodes is the largest number of first records, n at most, that splits no
// node's: a daemon that waits makes what is missing below its own node.
func wholeNodes(tree []leaf, n int) int {
	if n == len(tree) {
		return n
	}
	of := func(l leaf) string {
		if parts := strings.SplitN(l.path, "/", 4); len(parts) > 2 && (strings.HasPrefix(l.path, nodesTop+"/") || strings.HasPrefix(l.path, logsTop+"/")) {
			return parts[1] + "/" + parts[2]
		}
		return ""
	}
	for whole := n; whole > 0; whole-- {
		if unit := of(tree[whole]); unit == "" || unit != of(tree[whole-1]) {
			return whole
		}
	}
	return n
}

// commit makes records; made is one of them, by which a write whose reply was
// lost is found again.
func (r *restore) commit(ctx context.Context, ops []any, made string) error {
	return r.onMark(ctx, ops, func() (bool, error) {
		_, err := r.h.get(ctx, made)
		return err == nil, ignore(err, cluster.ErrNotFound)
	})
}

// onMark sends a Multi on the mark's version until it is known to have happened,
// or refused. A write whose reply was lost may still come: the next try then
// meets what it has made, and finds it.
func (r *restore) onMark(ctx context.Context, ops []any, happened func() (bool, error)) error {
	guarded := append([]any{&zk.CheckVersionRequest{Path: r.path(restoreMark), Version: r.version}}, ops...)
	lost := false
	for {
		results, _, err := r.h.multi(ctx, guarded)
		r.done.Writes++
		switch fate := fateOf(err); {
		case err == nil:
			return nil
		case fate == fateRefused:
			return err
		case fate == fateConflict && !lost:
			if len(results) > 0 && results[0].Error != nil && !rolledBack(results[0].Error) {
				return fmt.Errorf("%w: another restore of this tree has begun, and goes on: %w", cluster.ErrRefused, err)
			}
			return fmt.Errorf("%w: the tree is being changed by somebody else: %w", cluster.ErrConflict, err)
		case ctx.Err() != nil:
			return fmt.Errorf("%w; the tree is half restored: run it again", err)
		case fate == fateUnknown:
			lost = true
		}
		if !sleep(ctx, 200*time.Millisecond) {
			continue
		}
		if there, readErr := happened(); readErr == nil && there && lost {
			return nil
		} else if fateOf(err) == fateConflict && readErr == nil {
			return fmt.Errorf("%w: the tree is being changed by somebody else: %w", cluster.ErrConflict, err)
		}
	}
}
