package api

import (
	"context"

	"pvc.internal/cluster"
)

// Store is the part of the ZooKeeper handler that intents are written through
// and snapshots come from. Every call is bounded by its context.
type Store interface {
	// Subscribe returns a channel that always holds the latest snapshot only,
	// and a function that ends the subscription.
	Subscribe() (<-chan *cluster.Snapshot, func())
	// Commit sends one Multi and classifies what became of it.
	Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult
	// Refresh syncs with the leader, re-reads the role's records and returns
	// the view.
	Refresh(ctx context.Context) (*cluster.Snapshot, error)
}

// Details reads what snapshots leave out.
type Details interface {
	// ReadNode returns every leaf below a node by its relative path
	// ("memtotal", "monitoring_data/load/message").
	ReadNode(ctx context.Context, n cluster.NodeID) (map[string]string, error)
	// ReadHistory returns at most newest events, oldest first.
	ReadHistory(ctx context.Context, newest int) ([]cluster.Event, error)
	// ReadActivities returns the records of all activities. One that cannot be read
	// has Err set and nothing but its ID in its Value.
	ReadActivities(ctx context.Context) ([]cluster.Versioned[cluster.ActivityRecord], error)
	// ReadActivity returns one; an absent one is not present and no error.
	ReadActivity(ctx context.Context, id cluster.ActivityID) (cluster.Versioned[cluster.ActivityRecord], error)
}

// Initializer makes the tree of a new cluster.
type Initializer interface {
	// Initialize creates the tree. With overwrite it replaces a cluster's data;
	// without, a tree that is there is cluster.ErrConflict or cluster.ErrRefused.
	Initialize(ctx context.Context, clusterName string, overwrite bool) error
}

// Texts reads records that no snapshot holds.
type Texts interface {
	// ReadText returns a record's raw text; an absent one is not present and
	// no error.
	ReadText(ctx context.Context, k cluster.Key) (cluster.Versioned[string], error)
}

// Secrets lists what only its keys can open.
type Secrets interface {
	// ReadSecrets returns every secret's record as raw text, by its name.
	ReadSecrets(ctx context.Context) (map[string]string, error)
}

// Deps is what a Server works with. None but Check may be nil.
type Deps struct {
	Store       Store
	Details     Details
	Initializer Initializer
	Texts       Texts
	Secrets     Secrets
	Faults      Faults
	Clock       cluster.Clock
	// Check has a workload's driver, as it is installed on this host, say what is
	// wrong with its agent and parameters; it changes nothing. nil: nothing is checked.
	Check func(ctx context.Context, w cluster.Workload) error
}
