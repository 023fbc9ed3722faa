package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
)

// notRemoved returns the condition under which a node's znodes may be made: that
// the record of the removed still is as it was read, and does not name the node.
// Read after it was seen that something is missing, it shows a removal that took
// it away. A tree that has no such record yet gets it with what is made.
func (h *Handler) notRemoved(ctx context.Context, n cluster.NodeID) ([]any, error) {
	path := h.schema.root + membersPath
	d, err := h.get(ctx, path)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !emptied(d.data) {
		m, err := decodeMembers(d.data)
		if err != nil {
			return nil, fmt.Errorf("%s, which says who was removed, cannot be read: %w", path, err)
		}
		if r, out := m.Out(n, ""); out {
			return nil, fmt.Errorf("%w: %s", cluster.ErrRemoved, r)
		}
	}
	return []any{&zk.CheckVersionRequest{Path: path, Version: d.stat.Version}}, nil
}

// NodeRecords lists the records that are kept of a node, children before their
// parents, so that they can be deleted in this order; of an unknown node none.
// The fence order's record, whose versions are to grow for ever, is not among
// them.
func (h *Handler) NodeRecords(ctx context.Context, n cluster.NodeID) ([]cluster.NodeLeaf, error) {
	if err := n.Validate(); err != nil {
		return nil, fmt.Errorf("list the records of a node: %w", err)
	}
	var leaves []cluster.NodeLeaf
	for _, kind := range []cluster.KeyKind{cluster.KeyAlive, cluster.KeyFence, cluster.KeyFenceTests, cluster.KeyFacts, cluster.KeyView, cluster.KeyNodeRecord, cluster.KeyLog, cluster.KeyLogDir} {
		k := cluster.Key{Kind: kind, Node: n}
		path, err := h.schema.path(k)
		if err != nil {
			return nil, err
		}
		d, err := h.get(ctx, path)
		if errors.Is(err, cluster.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the records of node %s: %w", n, err)
		}
		leaves = append(leaves, cluster.NodeLeaf{Key: k, Version: d.stat.Version})
	}
	below, err := h.nodeLeaves(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("list the records of node %s: %w", n, err)
	}
	return append(leaves, below...), nil
}

// nodeLeaves lists what stands at and below the node's own znode, deepest first.
func (h *Handler) nodeLeaves(ctx context.Context, n cluster.NodeID) ([]cluster.NodeLeaf, error) {
	top := h.schema.nodeDir(n)
	tree, err := h.readTree(ctx, top)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range tree {
		if name != "" {
			names = append(names, "/"+name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(b, a) }) // what is below comes first
	names = append(names, "")
	found, err := h.getAll(ctx, top, names)
	if err != nil {
		return nil, err
	}
	var leaves []cluster.NodeLeaf
	for i, d := range found {
		if d == nil {
			continue
		}
		k := cluster.Key{Kind: cluster.KeyNodeMode, Node: n}
		if name := strings.TrimPrefix(names[i], "/"); name != "" {
			k = leafKey(n, name)
		}
		leaves = append(leaves, cluster.NodeLeaf{Key: k, Version: d.stat.Version})
	}
	return leaves, nil
}

// leafKeys are the leaves of a node that have a key of their own.
var leafKeys = map[string]cluster.KeyKind{
	"keepalive": cluster.KeyKeepalive, "daemonmode": cluster.KeyDaemonMode, "daemonstate": cluster.KeyDaemonState,
	"routerstate": cluster.KeyRouterState, "domainstate": cluster.KeyDomainState,
}

func leafKey(n cluster.NodeID, name string) cluster.Key {
	if kind, own := leafKeys[name]; own {
		return cluster.Key{Kind: kind, Node: n}
	}
	return cluster.Key{Kind: cluster.KeyNodeField, Node: n, Name: name}
}
