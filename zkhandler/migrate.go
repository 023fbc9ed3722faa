package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"pvc.internal/cluster"
)

// newestSchema is the newest schema of the tree that this program can write. The
// linker can hold it back (-X pvc.internal/zkhandler.newestSchema=1), so that an
// earlier program is built of the same source.
var newestSchema = "2"

// migration raises the tree's schema by one step. What it does before the last
// step programs of the earlier schema do not see; it is idempotent, and goes on
// from what is in the tree, whoever began it.
type migration struct {
	from, to int
	what     string // for the history
	// next returns the operations of the next batch; none: nothing is missing.
	next func(h *Handler, ctx context.Context, snap *cluster.Snapshot) ([]cluster.Op, error)
}

// migrations are all steps, in their order; the last one leads to newestSchema.
var migrations = []migration{
	{from: 1, to: cluster.FactsSchema, what: "what a node publishes stands in one record beside its leaves", next: (*Handler).nextFacts},
}

// programSchema is the newest schema that this program can write; a program that
// was built with one that it does not know writes the first.
func programSchema() int {
	known, err := strconv.Atoi(newestSchema)
	if err != nil || known < cluster.FirstSchema || known > migrations[len(migrations)-1].to {
		return cluster.FirstSchema
	}
	return known
}

// newestSchema is the newest schema that a client with these settings may write.
func (c Config) newestSchema() int {
	if c.NewestSchema == 0 {
		return programSchema()
	}
	return min(max(c.NewestSchema, cluster.FirstSchema), programSchema())
}

// NewestSchema is the newest schema of the tree that this program can write.
func (h *Handler) NewestSchema() int { return h.knownSchema }

// PlanSchema says what may become of the tree's schema, as seen in the snapshot,
// which must be of a client that follows every node.
func (h *Handler) PlanSchema(snap *cluster.Snapshot) cluster.SchemaPlan {
	return planSchema(h.knownSchema, snap)
}

// planSchema is pure. The schema is raised by one step at a time, and only while
// the program of every node that lives can write the next one.
func planSchema(newest int, snap *cluster.Snapshot) cluster.SchemaPlan {
	s := snap.Schema
	if !s.Present || s.Err != nil {
		return cluster.SchemaPlan{}
	}
	plan := cluster.SchemaPlan{From: s.Value}
	if s.Value >= newest {
		return plan
	}
	step := migrations[slices.IndexFunc(migrations, func(m migration) bool { return m.from == s.Value })]
	plan.To, plan.What = step.to, step.what
	for _, n := range slices.Sorted(maps.Keys(snap.Nodes)) {
		view := snap.Nodes[n]
		knows := knownSchema(view)
		if knows >= plan.To {
			continue
		}
		switch state, lives := livesAs(view); {
		case lives:
			plan.Waits = append(plan.Waits, fmt.Sprintf("%s (%s) runs a program that knows schema %d; update it, stop it, or remove the node", n, state, knows))
		case snap.ObservedAt.Sub(view.Daemon.SeenAt) < restartGrace:
			plan.Waits = append(plan.Waits, fmt.Sprintf("%s (%s) ran a program that knows schema %d and may be about to start again; it is waited for until it has been down for %v, or is removed", n, state, knows, restartGrace))
		}
	}
	return plan
}

// restartGrace is how long a node that has ended holds the schema back still: one
// whose old program is just started again is not shut out by that.
const restartGrace = 5 * time.Minute

// livesAs reports whether a program may run on the node that never looks at the
// schema again, and the word for its state. Who has stopped in order, or is
// proven off, looks at it when it starts. A node that is only given up for lost
// may come back as it was.
func livesAs(view cluster.NodeView) (state string, lives bool) {
	switch d := view.Daemon; {
	case d.Err != nil:
		state = "state unreadable"
	case !d.Present:
		state = "state unknown"
	default:
		state = string(d.Value)
	}
	switch {
	case view.Alive.Present:
		return state, true
	case view.Daemon.Present && view.Daemon.Err == nil:
		return state, view.Daemon.Value != cluster.DaemonStop && view.Daemon.Value != cluster.DaemonFenced
	}
	return state, true
}

// knownSchema is the newest schema that the node's program can write, by the
// record of its present start: a leaf would outlive that program.
func knownSchema(view cluster.NodeView) int {
	r := view.Record
	if !r.Present || r.Err != nil || view.Alive.Present && view.Alive.Value.Incarnation != r.Value.Incarnation {
		return cluster.FirstSchema
	}
	return max(r.Value.LatestSchema, cluster.FirstSchema)
}

// MigrationBatch returns what is to be written next for the plan that PlanSchema
// made of this snapshot; its operations are to be written in one Multi, together
// with a check of the role that they are written under. The last batch raises the
// schema, on the very records of the nodes by which it was judged, so that a
// start of any program that the plan has not seen comes before it, and makes it
// conflict, or after it.
func (h *Handler) MigrationBatch(ctx context.Context, snap *cluster.Snapshot, plan cluster.SchemaPlan) (cluster.MigrationBatch, error) {
	at := slices.IndexFunc(migrations, func(m migration) bool { return m.from == plan.From && m.to == plan.To })
	if at < 0 || len(plan.Waits) > 0 {
		return cluster.MigrationBatch{}, fmt.Errorf("migrate: %w: there is no step from schema %d to %d now", cluster.ErrRefused, plan.From, plan.To)
	}
	schemaKey := cluster.Key{Kind: cluster.KeySchema}
	ops, err := migrations[at].next(h, ctx, snap)
	if err != nil {
		return cluster.MigrationBatch{}, fmt.Errorf("migrate from schema %d to %d: %w", plan.From, plan.To, err)
	}
	if len(ops) > 0 {
		return cluster.MigrationBatch{Ops: append(ops, cluster.Check(schemaKey, snap.Schema.Version))}, nil
	}
	ops = []cluster.Op{cluster.Set(schemaKey, snap.Schema.Version, plan.To)}
	for _, n := range slices.Sorted(maps.Keys(snap.Nodes)) {
		if r := snap.Nodes[n].Record; r.Present {
			ops = append(ops, cluster.Check(cluster.Key{Kind: cluster.KeyNodeRecord, Node: n}, r.Version))
		}
	}
	return cluster.MigrationBatch{Ops: ops, Last: true}, nil
}

// factsAtOnce is how many nodes' records one batch makes: few enough that the
// role's lock is held for some milliseconds.
const factsAtOnce = 25

// nextFacts makes the records of facts, empty: the folder, then a few nodes' at a
// time. A node that was removed meanwhile gets none.
func (h *Handler) nextFacts(ctx context.Context, snap *cluster.Snapshot) ([]cluster.Op, error) {
	made, err := h.children(ctx, h.schema.factsDir())
	if errors.Is(err, cluster.ErrNotFound) {
		return []cluster.Op{cluster.Create(cluster.Key{Kind: cluster.KeyFactsDir}, "")}, nil
	}
	if err != nil {
		return nil, err
	}
	has := map[cluster.NodeID]bool{}
	for _, n := range made {
		has[cluster.NodeID(n)] = true
	}
	var ops []cluster.Op
	for _, n := range slices.Sorted(maps.Keys(snap.Nodes)) {
		mode := snap.Nodes[n].Mode
		if !mode.Present || has[n] { // of the former only a session is left
			continue
		}
		ops = append(ops,
			cluster.Check(cluster.Key{Kind: cluster.KeyNodeMode, Node: n}, mode.Version),
			cluster.Create(cluster.Key{Kind: cluster.KeyFacts, Node: n}, ""))
		if len(ops) >= 2*factsAtOnce {
			break
		}
	}
	return ops, nil
}
