package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"
	"golang.org/x/sync/errgroup"

	"pvc.internal/cluster"
)

const (
	readers      = 6        // concurrent reads of one bulk request
	maxLog       = 64 << 10 // bytes of a node's log
	appendTries  = 5
	deleteAtOnce = 100
)

// Refresh syncs with the leader, re-reads the role's records, the role lock's
// queue and every node's alive record, publishes and returns the view. It
// fails with cluster.ErrNotLive when the link is down or lost meanwhile.
func (h *Handler) Refresh(ctx context.Context) (*cluster.Snapshot, error) {
	if err := h.sync(ctx); err != nil {
		return nil, fmt.Errorf("refresh: %w", err)
	}
	r := &refresh{done: make(chan *cluster.Snapshot, 1), fail: make(chan error, 1)}
	select {
	case h.mirror.refreshes <- r:
	case <-ctx.Done():
		return nil, fmt.Errorf("refresh: %w: %w", cluster.ErrDeadline, ctx.Err())
	}
	select {
	case snapshot := <-r.done:
		return snapshot, nil
	case err := <-r.fail:
		return nil, fmt.Errorf("refresh: %w", err)
	case <-ctx.Done():
		return nil, fmt.Errorf("refresh: %w: %w", cluster.ErrDeadline, ctx.Err())
	}
}

// ReadNode returns every leaf below a node's znode by its relative path, such
// as "keepalive" or "monitoring_data/disk/message", and the node's own value
// as "". It fails with cluster.ErrNotFound for an unknown node. Where the node
// keeps its facts in one record that one is read, and the leaves by which nodes
// are coordinated come from the latest snapshot.
func (h *Handler) ReadNode(ctx context.Context, n cluster.NodeID) (map[string]string, error) {
	if err := n.Validate(); err != nil {
		return nil, fmt.Errorf("read node: %w", err)
	}
	if leaves, ok := h.readFacts(ctx, n); ok {
		return leaves, nil
	}
	return h.ReadLeaves(ctx, n)
}

// factsKept is within which time of its keepalive a node has written its facts,
// changed or not (agent, valueRefresh, and as much again for lost keepalives): a
// record that is older is nobody's care any more, and hides no leaf.
const factsKept = 150 * time.Second

// readFacts returns what ReadNode does, out of the record of facts; false where
// there is none that counts: the tree's schema has none, another start than the
// registered one wrote it, or its node writes it no more.
func (h *Handler) readFacts(ctx context.Context, n cluster.NodeID) (map[string]string, bool) {
	h.subscribers.Lock()
	snap := h.latest
	h.subscribers.Unlock()
	if snap == nil || !snap.Schema.Present || snap.Schema.Err != nil || snap.Schema.Value < cluster.FactsSchema {
		return nil, false
	}
	view, known := snap.Nodes[n]
	if !known || !view.Record.Present || view.Record.Err != nil || !view.Keepalive.Present || !view.Mode.Present {
		return nil, false
	}
	if view.Daemon.Value == cluster.DaemonFenced { // whoever fenced it has written its leaves since
		return nil, false
	}
	path, err := h.schema.path(cluster.Key{Kind: cluster.KeyFacts, Node: n})
	if err != nil {
		return nil, false
	}
	d, err := h.get(ctx, path)
	if err != nil {
		return nil, false // the leaves tell the same, or the same error
	}
	facts, ok, err := cluster.DecodeFacts(string(d.data))
	if err != nil || !ok || facts.Incarnation != view.Record.Value.Incarnation || view.Keepalive.WrittenMS-d.stat.Mtime > factsKept.Milliseconds() {
		return nil, false
	}
	maps.Copy(facts.Leaves, coordinating(view))
	return facts.Leaves, true
}

// coordinating are the leaves of a node that no record of facts holds.
func coordinating(view cluster.NodeView) map[string]string {
	return map[string]string{
		"": string(view.Mode.Value), "daemonmode": string(view.Mode.Value), "keepalive": strconv.FormatInt(view.Keepalive.Value, 10),
		"daemonstate": string(view.Daemon.Value), "routerstate": string(view.Router.Value), "domainstate": string(view.Domain.Value),
	}
}

// ReadLeaves is ReadNode out of the leaves themselves.
func (h *Handler) ReadLeaves(ctx context.Context, n cluster.NodeID) (map[string]string, error) {
	if err := n.Validate(); err != nil {
		return nil, fmt.Errorf("read node: %w", err)
	}
	leaves, err := h.readTree(ctx, h.schema.nodeDir(n))
	if err != nil {
		return nil, fmt.Errorf("read node %s: %w", n, err)
	}
	return leaves, nil
}

// readTree returns the values of a subtree by path relative to its top, whose
// own value is "". What disappears meanwhile is left out.
func (h *Handler) readTree(ctx context.Context, top string) (map[string]string, error) {
	d, err := h.get(ctx, top)
	if err != nil {
		return nil, err
	}
	leaves := map[string]string{"": string(d.data)}
	level := []string{""}
	if d.stat.NumChildren == 0 {
		level = nil
	}
	for len(level) > 0 {
		var below []string
		for _, dir := range level {
			names, err := h.children(ctx, top+dir)
			if errors.Is(err, cluster.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				below = append(below, dir+"/"+name)
			}
		}
		level = nil
		found, err := h.getAll(ctx, top, below)
		if err != nil {
			return nil, err
		}
		for i, d := range found {
			if d == nil {
				continue
			}
			leaves[below[i][1:]] = string(d.data)
			if d.stat.NumChildren > 0 {
				level = append(level, below[i])
			}
		}
	}
	return leaves, nil
}

// getAll reads top+each; a missing one is nil.
func (h *Handler) getAll(ctx context.Context, top string, paths []string) ([]*datum, error) {
	found := make([]*datum, len(paths))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, p := range paths {
		group.Go(func() error {
			d, err := h.get(ctx, top+p)
			if errors.Is(err, cluster.ErrNotFound) {
				return nil
			}
			if err == nil {
				found[i] = &d
			}
			return err
		})
	}
	return found, group.Wait()
}

// ReadHistory returns up to newest events of the cluster's history, oldest
// first. Entries that cannot be decoded appear with Kind "unreadable". One that
// was written again because its reply was lost appears once.
func (h *Handler) ReadHistory(ctx context.Context, newest int) ([]cluster.Event, error) {
	dir := h.schema.historyDir()
	names, err := h.children(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	slices.Sort(names) // ten digits each
	if newest >= 0 && len(names) > newest {
		names = names[len(names)-newest:]
	}
	found, err := h.getAll(ctx, dir+"/", names)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	events := make([]cluster.Event, 0, len(found))
	seen := map[string]bool{}
	for i, d := range found {
		if d == nil || seen[string(d.data)] {
			continue
		}
		seen[string(d.data)] = true
		event, err := decodeRecord[cluster.Event](d.data)
		if err != nil {
			event = cluster.Event{Kind: "unreadable", UnixMS: d.stat.Ctime, Text: fmt.Sprintf("history entry %s: %v", names[i], err)}
		}
		events = append(events, event)
	}
	return events, nil
}

// TrimHistory removes the oldest entries until keep are left and returns how
// many it removed. Another trimmer at the same time does no harm.
func (h *Handler) TrimHistory(ctx context.Context, keep int) (removed int, err error) {
	dir := h.schema.historyDir()
	names, err := h.children(ctx, dir)
	if err != nil {
		return 0, fmt.Errorf("trim history: %w", err)
	}
	slices.Sort(names)
	for batch := range slices.Chunk(names[:max(0, len(names)-keep)], deleteAtOnce) {
		if err := h.removeAll(ctx, dir, batch); err != nil {
			return removed, fmt.Errorf("trim history: %w", err)
		}
		removed += len(batch)
	}
	return removed, nil
}

// removeAll deletes children in one Multi, or, where one of them has gone
// meanwhile, each by itself.
func (h *Handler) removeAll(ctx context.Context, dir string, names []string) error {
	var ops []any
	for _, name := range names {
		ops = append(ops, &zk.DeleteRequest{Path: path.Join(dir, name), Version: -1})
	}
	if _, _, err := h.multi(ctx, ops); fateOf(err) != fateConflict {
		return err
	}
	for _, name := range names {
		if err := h.remove(ctx, path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// HistoryLength returns how many entries the history has.
func (h *Handler) HistoryLength(ctx context.Context) (int, error) {
	d, err := h.get(ctx, h.schema.historyDir())
	if err != nil {
		return 0, fmt.Errorf("measure history: %w", err)
	}
	return int(d.stat.NumChildren), nil
}

// Fault is a cluster fault with its leaves (last_time, first_time, ack_time,
// status, delta, message) as they are written.
type Fault struct {
	ID     string
	Fields map[string]string
}

// ReadFaults returns all faults, ordered by id.
func (h *Handler) ReadFaults(ctx context.Context) ([]Fault, error) {
	leaves, err := h.readTree(ctx, h.schema.faultsDir())
	if err != nil {
		return nil, fmt.Errorf("read faults: %w", err)
	}
	byID := map[string]map[string]string{}
	for leaf, value := range leaves {
		id, field, below := strings.Cut(leaf, "/")
		if id == "" {
			continue
		}
		if byID[id] == nil {
			byID[id] = map[string]string{}
		}
		if below {
			byID[id][field] = value
		}
	}
	faults := make([]Fault, 0, len(byID))
	for id, fields := range byID {
		faults = append(faults, Fault{id, fields})
	}
	slices.SortFunc(faults, func(a, b Fault) int { return strings.Compare(a.ID, b.ID) })
	return faults, nil
}

// FaultIDs returns the ids of all faults, in order; where there has never been one
// there are none.
func (h *Handler) FaultIDs(ctx context.Context) ([]string, error) {
	ids, err := h.children(ctx, h.schema.faultsDir())
	if err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return nil, fmt.Errorf("list the faults: %w", err)
	}
	slices.Sort(ids)
	return ids, nil
}

// ReadText returns the raw text of a record that no snapshot holds, such as
// KeyUpstreamIP, KeySelector, KeyLog or KeyView. An absent one is not present
// and no error. SeenAt is the instant of this read.
func (h *Handler) ReadText(ctx context.Context, k cluster.Key) (cluster.Versioned[string], error) {
	path, err := h.schema.path(k)
	if err != nil {
		return cluster.Versioned[string]{}, err
	}
	d, err := h.get(ctx, path)
	if errors.Is(err, cluster.ErrNotFound) {
		return cluster.Versioned[string]{SeenAt: h.clock.Now()}, nil
	}
	if err != nil {
		return cluster.Versioned[string]{}, err
	}
	return cluster.Versioned[string]{
		Value: string(d.data), Present: true,
		Version: d.stat.Version, Mzxid: d.stat.Mzxid, SeenAt: h.clock.Now(),
	}, nil
}

// ReadSecrets returns the raw text of every sealed secret by its name; of a tree
// without them none.
func (h *Handler) ReadSecrets(ctx context.Context) (map[string]string, error) {
	leaves, err := h.readTree(ctx, h.schema.root+secretDir)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the secrets: %w", err)
	}
	delete(leaves, "")
	return leaves, nil
}

// AppendLog adds lines to a node's log, newest last, dropping the oldest
// beyond 64 KiB. The log must exist (EnsureNode). After a lost reply the lines
// may stand there or not; they are not written twice.
func (h *Handler) AppendLog(ctx context.Context, n cluster.NodeID, lines ...string) error {
	k := cluster.Key{Kind: cluster.KeyLog, Node: n}
	for try := 1; ; try++ {
		old, err := h.ReadText(ctx, k)
		if err != nil {
			return fmt.Errorf("append to the log of %s: %w", n, err)
		}
		if !old.Present {
			return fmt.Errorf("append to the log of %s: %w", n, cluster.ErrNotFound)
		}
		text := boundLog(old.Value, lines)
		r := h.Commit(ctx, cluster.Txn{Purpose: "log", Ops: []cluster.Op{cluster.Set(k, old.Version, text)}})
		if r.Outcome != cluster.OutcomeConflict || try == appendTries {
			return r.Err
		}
	}
}

func boundLog(old string, lines []string) string {
	text := strings.Join(lines, "\n")
	if old = strings.TrimRight(old, "\n"); old != "" {
		text = old + "\n" + text
	}
	if len(text) <= maxLog {
		return text
	}
	text = text[len(text)-maxLog:]
	if _, rest, cut := strings.Cut(text, "\n"); cut {
		return rest
	}
	return strings.ToValidUTF8(text, "")
}

// deleteTree removes a subtree, deepest first, in Multis of 100.
func (h *Handler) deleteTree(ctx context.Context, top string) error {
	leaves, err := h.readTree(ctx, top)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var paths []string
	for leaf := range leaves {
		paths = append(paths, strings.TrimRight(top+"/"+leaf, "/"))
	}
	slices.Sort(paths)
	slices.Reverse(paths)
	for batch := range slices.Chunk(paths, deleteAtOnce) {
		var ops []any
		for _, p := range batch {
			ops = append(ops, &zk.DeleteRequest{Path: p, Version: -1})
		}
		if _, _, err := h.multi(ctx, ops); err != nil {
			return fmt.Errorf("delete below %s: %w", top, err)
		}
	}
	return nil
}
