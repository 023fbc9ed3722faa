package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
)

// Initialize creates the tree of a new cluster in one Multi, the released
// lease record included, which nothing else ever creates. If there is a
// cluster already it fails with cluster.ErrConflict, unless overwrite is set:
// then everything of it is deleted first, and the epochs go on from the old
// ones (I2).
func (h *Handler) Initialize(ctx context.Context, clusterName string, overwrite bool) error {
	if clusterName == "" || strings.ContainsAny(clusterName, "\r\n") || len(clusterName) > 255 {
		return fmt.Errorf("initialize: %q is not a cluster name: give 1–255 characters in one line", clusterName)
	}
	if err := h.ensureRoot(ctx); err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	lease := cluster.Lease{}
	switch old, err := h.get(ctx, h.schema.configPath()); {
	case err == nil && !overwrite:
		return fmt.Errorf("initialize: %w: the cluster %s is there already", cluster.ErrConflict, excerpt(old.data))
	case err == nil:
		if lease.Epoch, err = h.clearTree(ctx); err != nil {
			return fmt.Errorf("initialize: remove the old cluster: %w", err)
		}
	case !errors.Is(err, cluster.ErrNotFound):
		return fmt.Errorf("initialize: %w", err)
	case overwrite: // parts of a tree may stand, such as a half restored one's
		if lease.Epoch, err = h.clearTree(ctx); err != nil {
			return fmt.Errorf("initialize: remove what is left of a tree: %w", err)
		}
	}
	if err := h.createTree(ctx, clusterName, lease); err != nil {
		return fmt.Errorf("initialize: %w", err)
	}
	return nil
}

func (h *Handler) createTree(ctx context.Context, clusterName string, lease cluster.Lease) error {
	path, err := h.schema.path(cluster.Key{Kind: cluster.KeyLease})
	if err != nil {
		return err
	}
	data, err := encode(cluster.KeyLease, lease)
	if err != nil {
		return err
	}
	err = h.createAll(ctx, append(h.schema.freshTree(clusterName, h.knownSchema), leaf{path, string(data)}))
	if errors.Is(err, cluster.ErrConflict) {
		return fmt.Errorf("%w (somebody else initialises, or parts of an old tree are left: see the path, or overwrite)", err)
	}
	return err
}

// createAll makes the znodes in one Multi, on the conditions.
func (h *Handler) createAll(ctx context.Context, tree []leaf, conditions ...any) error {
	ops := slices.Clone(conditions)
	for _, l := range tree {
		ops = append(ops, &zk.CreateRequest{Path: l.path, Data: []byte(l.value), Acl: h.acl})
	}
	results, _, err := h.multi(ctx, ops)
	for i, r := range results {
		if r.Error != nil && !rolledBack(r.Error) {
			if i < len(conditions) {
				return err
			}
			return fmt.Errorf("create %s: %w", tree[i-len(conditions)].path, err)
		}
	}
	return err
}

// ensureRoot creates what lies above the tree.
func (h *Handler) ensureRoot(ctx context.Context) error {
	for _, parent := range h.schema.rootParents() {
		_, err := h.get(ctx, parent)
		if !errors.Is(err, cluster.ErrNotFound) {
			if err != nil {
				return err
			}
			continue
		}
		if err := h.createAll(ctx, []leaf{{parent, ""}}); err != nil && !errors.Is(err, cluster.ErrConflict) {
			return err
		}
	}
	return nil
}

// clearTree deletes the cluster and returns the first epoch that is larger
// than any it has had.
func (h *Handler) clearTree(ctx context.Context) (cluster.Epoch, error) {
	var epoch cluster.Epoch
	keep := func(kind cluster.KeyKind, read func([]byte) (cluster.Epoch, error)) error {
		path, err := h.schema.path(cluster.Key{Kind: kind})
		if err != nil {
			return err
		}
		d, err := h.get(ctx, path)
		if errors.Is(err, cluster.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if e, err := read(d.data); err == nil { // an unreadable one is what overwriting is for
			epoch = max(epoch, e+1)
		}
		return nil
	}
	if err := keep(cluster.KeyLease, func(b []byte) (cluster.Epoch, error) {
		lease, err := decodeLease(b)
		return lease.Epoch, err
	}); err != nil {
		return 0, err
	}
	if err := keep(cluster.KeyTransition, func(b []byte) (cluster.Epoch, error) {
		transition, err := decodeRecord[cluster.Transition](b)
		return transition.Epoch, err
	}); err != nil {
		return 0, err
	}
	mark, _, err := h.readMark(ctx)
	if err != nil {
		return 0, err
	}
	if mark != nil { // the lease may have gone already
		epoch = max(epoch, mark.Epoch+1)
	}
	for i := len(treeRoots) - 1; i >= 0; i-- { // the config last: while it stands, a retry overwrites
		if err := h.deleteTree(ctx, h.schema.root+treeRoots[i]); err != nil {
			return 0, err
		}
	}
	return epoch, nil
}

// CheckTree reports whether the tree is initialised and the cluster's name. A
// schema newer than this program's is cluster.ErrSchemaNewer. A tree that is
// there in part, or makes no sense, is an error that names the path.
func (h *Handler) CheckTree(ctx context.Context) (clusterName string, initialised bool, err error) {
	if err := h.sync(ctx); err != nil {
		return "", false, fmt.Errorf("check the tree: %w", err)
	}
	config, err := h.ReadText(ctx, cluster.Key{Kind: cluster.KeyClusterName})
	if err != nil {
		return "", false, fmt.Errorf("check the tree: %w", err)
	}
	version, err := h.ReadText(ctx, cluster.Key{Kind: cluster.KeySchema})
	if err != nil {
		return "", false, fmt.Errorf("check the tree: %w", err)
	}
	configPath, schemaPath := h.schema.configPath(), h.schema.schemaPath()
	mark, _, err := h.readMark(ctx)
	if err != nil {
		return "", false, fmt.Errorf("check the tree: %w", err)
	}
	switch {
	case mark != nil:
		return "", false, fmt.Errorf("check the tree: %w", mark.halfway())
	case !config.Present && !version.Present:
		return "", false, nil
	case !version.Present:
		return "", false, fmt.Errorf("check the tree: %s holds the cluster %q, but %s is missing: not a tree of this program, or half removed; choose another zookeeper.root, or initialise with overwrite", configPath, config.Value, schemaPath)
	case !config.Present:
		return "", false, fmt.Errorf("check the tree: %s is there, but %s is missing: half removed; restore it, or initialise with overwrite", schemaPath, configPath)
	}
	n, err := decodeSchema([]byte(version.Value))
	switch {
	case err != nil:
		return "", false, fmt.Errorf("check the tree: %s holds %w", schemaPath, err)
	case n > h.knownSchema:
		return "", false, fmt.Errorf("check the tree: %s: %w", schemaPath, cluster.SchemaTooNew(n, h.knownSchema))
	}
	clusterName = strings.TrimSpace(config.Value)
	if clusterName == "" {
		return "", false, fmt.Errorf("check the tree: %s, the cluster's name, is empty", configPath)
	}
	return clusterName, true, nil
}

// EnsureNode creates what is missing of a node's znodes, with PVC's defaults;
// what exists is left as it is. It fails with cluster.ErrNotFound while the
// cluster is not initialised, and makes nothing of a node that was removed
// (cluster.ErrRemoved).
func (h *Handler) EnsureNode(ctx context.Context, n cluster.NodeID, mode cluster.Mode) error {
	if err := n.Validate(); err != nil {
		return fmt.Errorf("ensure node: %w", err)
	}
	if !mode.Valid() {
		return fmt.Errorf("ensure node %s: %q is not a daemon mode", n, mode)
	}
	tree := h.schema.freshNode(n, mode, time.Now().Unix())
	for try := 1; ; try++ {
		err := h.createMissing(ctx, n, tree)
		if !errors.Is(err, cluster.ErrConflict) || try == appendTries {
			return wrapPath(err, "ensure node", string(n))
		}
	}
}

func (h *Handler) createMissing(ctx context.Context, n cluster.NodeID, tree []leaf) error {
	tree = append(slices.Clone(tree), h.schema.freshFacts(n)...)
	paths := []string{h.schema.schemaPath()}
	for _, l := range tree {
		paths = append(paths, l.path)
	}
	found, err := h.getAll(ctx, "", paths)
	if err != nil {
		return err
	}
	version := found[0]
	if version == nil {
		return fmt.Errorf("%w: the tree has no %s: there is no cluster in it, or a restore is under way", cluster.ErrNotFound, h.schema.schemaPath())
	}
	var missing []leaf
	for i, d := range found[1:] {
		if d == nil && (!h.ofFacts(tree[i]) || keepsFacts(version)) {
			missing = append(missing, tree[i])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	standing, err := h.notRemoved(ctx, n)
	if err != nil {
		return err
	}
	// Neither a restore nor a migration that comes between finds a part of a node.
	standing = append(standing, &zk.CheckVersionRequest{Path: h.schema.schemaPath(), Version: version.stat.Version})
	return h.createAll(ctx, missing, standing...)
}

func (h *Handler) ofFacts(l leaf) bool { return strings.HasPrefix(l.path, h.schema.factsDir()) }

// keepsFacts reports whether the tree's schema, as read, has the nodes' facts.
func keepsFacts(version *datum) bool {
	n, err := decodeSchema(version.data)
	return err == nil && n >= cluster.FactsSchema
}
