package cluster

// Versioned is a record as observed: its value, the znode's version, and when
// this observer first saw that version. A record that is there but cannot be
// read has Present true and Err set; its Value is zero. One that stands emptied,
// as a fence order that was answered does, is not present and has its Version
// and Mzxid.
type Versioned[T any] struct {
	Value   T
	Version int32
	Present bool
	SeenAt  Instant // first observation of (Mzxid); liveness is judged by this alone
	Mzxid   int64   // changes with every write, over deletion and re-creation too
	// WrittenMS is the write's instant by the wall clock of ZooKeeper's leader,
	// UNIX milliseconds, 0 if not known: for people and for measuring on one
	// machine, never for a decision.
	WrittenMS int64
	Err       error
}

// NodeView is one node as observed.
type NodeView struct {
	Name      NodeID
	Mode      Versioned[Mode]
	Keepalive Versioned[int64]
	Daemon    Versioned[DaemonState]
	Router    Versioned[RouterState]
	Domain    Versioned[DomainState]
	Record    Versioned[NodeRecord]
	Alive     Versioned[Alive]
	Fence     Versioned[FenceRecord]
	Order     Versioned[FenceOrder] // an operator's, not carried out yet
}

// Settles reports whether the node has said that its copies of workloads are ending:
// nothing is placed there any more.
func (v NodeView) Settles() bool { return v.Record.Err == nil && v.Record.Value.Settling }

// Snapshot is an immutable view of the coordination records. A consumer never
// edits it; a producer never edits one it has handed out.
type Snapshot struct {
	Complete   bool    // every watched record has been read in this session
	Live       bool    // the session was connected when this was made
	Session    int64   // ZooKeeper session id; 0 before the first
	Since      Instant // when the session, or its latest reconnect, became live
	ObservedAt Instant
	Zxid       int64 // largest Mzxid seen

	ClusterName       Versioned[string]
	PrimaryNode       Versioned[string]
	Lease             Versioned[Lease]
	Transition        Versioned[Transition]
	Maintenance       Versioned[bool]
	MaintenanceRecord Versioned[MaintenanceRecord]
	Failover          Versioned[FailoverSettings]
	Quorum            Versioned[QuorumSet]
	Members           Versioned[Members]     // emptied: nobody was removed yet
	MemberOrder       Versioned[MemberOrder] // an operator's, not carried out yet
	Schema            Versioned[int]         // the tree's, which all that write to it keep to
	RoleLock          []LockChild            // ordered by Seq
	// Workloads are all records of workloads, by name; those that cannot be read, too.
	Workloads   map[string]Versioned[Workload]
	Reprovision Versioned[ReprovisionSettings]
	Rebalance   Versioned[Rebalance]
	Nodes       map[NodeID]NodeView
}

// MaintenanceRecord says who put the cluster into maintenance, why, and until when.
type MaintenanceRecord struct {
	Version   int    `json:"v"`
	Owner     string `json:"owner"`
	Reason    string `json:"reason"`
	SinceMS   int64  `json:"since_ms"`
	ExpiresMS int64  `json:"expires_ms,omitempty"` // unix milliseconds; 0 never
}

// FailoverSettings are the automatic failover's settings and its spent budget.
type FailoverSettings struct {
	Version  int   `json:"v"`
	Enabled  bool  `json:"enabled"`
	Timeout  int64 `json:"timeout_s"` // 1–3600; 0: F × K
	MaxCount int   `json:"max_count"` // 1–100
	Count    int   `json:"count"`
}

// DefaultFailoverSettings is what holds while the record is absent.
func DefaultFailoverSettings() FailoverSettings {
	return FailoverSettings{Version: 1, Enabled: true, MaxCount: 1}
}
