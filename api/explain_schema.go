package api

import "pvc.internal/cluster"

// schema tells of a node whose program, as it has published, is older than others'
// and so keeps the tree at the schema that it has.
func (x *explainer) schema(n cluster.NodeView) {
	s := x.st.snap.Schema
	if !s.Present || s.Err != nil {
		return
	}
	newest := cluster.FirstSchema
	for _, other := range x.st.snap.Nodes {
		newest = max(newest, other.Record.Value.LatestSchema)
	}
	if knows := max(n.Record.Value.LatestSchema, cluster.FirstSchema); knows <= s.Value && newest > s.Value {
		x.saw("its program knows schema %d only, that of others schema %d: the tree keeps schema %d until it is updated, stopped or removed", knows, newest, s.Value)
	}
}
