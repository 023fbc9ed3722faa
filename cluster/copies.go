package cluster

// CopyState is what a node's copy of a workload is, as its driver finds it.
type CopyState string

// The states of a copy.
const (
	CopyMissing CopyState = "missing" // there is none; a process that came back empty and serves nobody is none
	CopyReplica CopyState = "replica" // it follows the head, and has what that had when it was asked
	CopyPending CopyState = "pending" // it has data, and neither serves nor follows yet
	CopyActive  CopyState = "active"  // it serves; of a movable one: it runs
	CopyDead    CopyState = "dead"    // its data is there, and nothing runs, or what runs has failed
)

// CopyReport is what one node says of its copy of a workload.
type CopyReport struct {
	Workload string    `json:"workload"`
	ID       string    `json:"id"` // Workload.ID of the question
	Node     NodeID    `json:"node"`
	State    CopyState `json:"state"`
	// Offset is how far the copy has come, in the driver's unit; it only compares
	// with those of the same History. HasOffset false: the driver knows none.
	Offset    int64  `json:"offset,omitempty"`
	HasOffset bool   `json:"has_offset,omitempty"`
	History   string `json:"history,omitempty"` // redis: the replication id
	// Follows is the head that a replica follows, as it says; NoCopy: nobody.
	Follows NodeID `json:"follows,omitempty"`
	// Start names this start of the copy's process: another one means that it was
	// restarted meanwhile. "": the driver does not know.
	Start string `json:"start,omitempty"`
	// Error is what the driver could not find out, or what has failed; the state is
	// what is known nevertheless. A copy whose state is not known is reported by an
	// error of the whole question, never by a guess.
	Error string `json:"error,omitempty"`
	// Left: of a copy that is dead something runs here, or may: a stop is to end it. Its
	// driver may not know; data alone is none.
	Left bool `json:"left,omitempty"`
	// Unknown: the driver could not tell the state; it counts as no answer of this
	// node for this workload.
	Unknown bool `json:"unknown,omitempty"`
	// NotifyMS is how many milliseconds this copy may take to be told of what happens
	// to another one of its workload (CopyNotify); 0: it does not want to be told.
	NotifyMS int64 `json:"notify_ms,omitempty"`
	// Live: this node can give the workload away, and take it, while it runs.
	Live bool `json:"live,omitempty"`
}

// CopyOp is what a leader orders of a copy.
type CopyOp string

// The orders. Each is idempotent: one that is already so does nothing and reports.
const (
	CopyStart   CopyOp = "start"   // movable: run it. replicated: bring it up, serving nobody
	CopyFollow  CopyOp = "follow"  // start it if need be and follow Source with Secret
	CopyPromote CopyOp = "promote" // start it if need be and serve; followers come in with Secret
	CopyAdmit   CopyOp = "admit"   // the active copy lets followers in with Secret from now on, and no other
	CopyDemote  CopyOp = "demote"  // serve nobody any more, keep the data
	CopyStop    CopyOp = "stop"    // nothing of it is left running
	CopyDestroy CopyOp = "destroy" // stop, and its data goes
	CopyNotify  CopyOp = "notify"  // OCF: tell the copy of what happens, or has happened, to others (Note)
	// OCF, movable, where the agent announces both: the running copy goes over to the
	// node of Source, there CopyMigrateFrom (Source: whence) takes it over, and a
	// CopyStop here ends the move. Both only by a record whose Next says just that move,
	// as LiveMigrating: any other is refused.
	CopyMigrateTo   CopyOp = "migrate_to"
	CopyMigrateFrom CopyOp = "migrate_from"
)

// CopyOrder is one order of a leader to one node. The token that stands behind it
// travels beside it.
type CopyOrder struct {
	Op       CopyOp   `json:"op"`
	Workload Workload `json:"workload"`
	// Seen is the version of the workload's record that the order rests on. A node
	// refuses one that rests on an older record than another that it has carried
	// out for the same Workload.ID: an order that was long under way starts nothing
	// of what was moved since.
	Seen   int32       `json:"seen,omitempty"`
	Source *CopySource `json:"source,omitempty"` // follow: whom
	// Secret lets followers in; it is of one activation, random, and never stored.
	Secret string `json:"secret,omitempty"`
	Note   string `json:"note,omitempty"` // notify: "post-promote hv2", as OCF names it; several nodes of one operation: "pre-start hv2 hv3"
	// Expect is what the decision behind the order was made on; nil: on nothing. A
	// node refuses an order whose copy is another one now, and leaves it as it is.
	Expect *CopyExpect `json:"expect,omitempty"`
	// Still is asked once it is the order's turn at its node, right before it has an
	// effect: an error refuses it, since a later one has been taken meanwhile. It does
	// not travel. nil: nobody knows of a later one.
	Still func() error `json:"-"`
}

// CopyExpect is the copy as its leader saw it. A copy that was restarted between
// the leader's look and its order may have come back empty, and to promote that
// would empty all others (protocol §9): where Start is known on both sides another
// one is refused, and a copy that is missing now though State is not.
type CopyExpect struct {
	State CopyState `json:"state"`
	Start string    `json:"start,omitempty"`
}

// Against tells what has changed, as found, since the leader looked; "": nothing
// that matters.
func (e CopyExpect) Against(found CopyReport) string {
	switch {
	case found.Unknown:
		return "what the copy is now cannot be told: " + found.Error
	case e.State != CopyMissing && found.State == CopyMissing:
		return "the copy was " + string(e.State) + " when that was decided and is missing now"
	case e.Start != "" && found.Start != "" && e.Start != found.Start:
		return "the copy was restarted since that was decided (start " + e.Start + ", now " + found.Start + ")"
	}
	return ""
}

// CopySource is the active copy as others reach it.
type CopySource struct {
	Node NodeID `json:"node"`
	Host string `json:"host"` // address on the cluster network, without a port
}

// CopyChange is a hint that a copy ended, or started, without an order.
type CopyChange struct {
	Node     NodeID `json:"node"`
	Workload string `json:"workload"` // "": all of the node's
	Text     string `json:"text"`
}
