package janitor

import "pvc.internal/cluster"

// Known is what a pass has found out before it plans: what nodes have said of
// their copies, and which nodes count as what. Plan looks at nothing else but the
// snapshot. It is never edited.
type Known struct {
	// Pass names this pass: random, written with each chain that it changes. A pass
	// that begins anew after its writes takes another one; one whose write had no
	// known reply keeps it, so that nothing is counted twice.
	Pass  string
	Epoch cluster.Epoch
	// Queried tells that the copies were asked for; a pass plans once before (what
	// must be written before anybody is asked) and once after.
	Queried bool
	// Reports are the answers, by workload and node, of the nodes of its chain, its
	// unfinished move and its list. Silent are the nodes that did not answer, with the
	// reason; a report that is Unknown, or missing, counts as one for its workload.
	// Every workload that has one of those in its chain or its unfinished move stays
	// untouched.
	Reports map[string]map[cluster.NodeID]cluster.CopyReport
	Silent  map[cluster.NodeID]string
	// Active are the members that may be given copies now: registered, not removed,
	// not proven dead, not being drained. Gone are those with a dead-proof of their
	// present start, which count as having nothing (I4). FailingOver are nodes of a
	// failover that is under way: they count as silent, whatever they answer, until
	// their proof is there; they are not copied from, and never added.
	Active      []cluster.NodeID
	Gone        map[cluster.NodeID]bool
	FailingOver map[cluster.NodeID]bool
	// Busy are the workloads of which something is being done beside the pass: a move,
	// an operator's order, an apply that takes long. They stay untouched.
	Busy map[string]bool
	// Failed are the workloads whose copies could not be brought to their chain the
	// last time, with the reason: it is theirs as long as they do not run.
	Failed map[string]string
	// Runnable tells whether the node may run the driver; nil: all may.
	Runnable func(cluster.NodeID, cluster.Workload) bool
}

// State is what the janitor keeps from one pass to the next: nothing that safety
// needs, since the next primary begins with an empty one. Plan never edits it; a
// shell keeps the one that Plan returned only once what came with it is done.
type State struct {
	// Told are the faults that stand, by FaultKey, with their texts. A shell that
	// begins puts in what stands in the store (any text will do), so that nothing is
	// told twice as new and what is over is taken back.
	Told map[string]string
}

// FaultKey names a fault in State.Told; each part may be empty.
func FaultKey(code, workload string, node cluster.NodeID) string {
	return code + "/" + workload + "/" + string(node)
}

// The codes of faults. Those of a workload clear by themselves once it is well.
const (
	FaultCorruptedNodeList = "corrupted_node_list" // the list, the chain or the move names a node that is no member
	FaultUnreadable        = "unreadable_workload" // its record cannot be read
	FaultNoNode            = "no_node_for_copy"    // no node may run it
	FaultBadCopies         = "bad_copies"          // several active copies, none of which is the head's
	FaultUnsafe            = "unsafe_nodes"        // its head came back empty; not brought online
	FaultHeadEmptied       = "head_emptied"        // its head had no copy while others had; activated nevertheless
	FaultLastCopyLost      = "last_copy_lost"      // the head's node is proven dead and nobody else has a copy
	FaultReprovisioned     = "reprovisioned"       // a node was reprovisioned: it is empty until a rebalance
	FaultReprovisionOff    = "reprovision_off"     // the maximum is reached: a further empty copy is activated
	FaultReprovision       = "reprovision_unreadable"
)

// ActionKind is what a pass does.
type ActionKind string

// The actions, in the order in which Plan returns them.
const (
	// ActionWrite writes records: all of a plan's in one transaction, or not at all.
	// If that fails nothing else of the plan is done.
	ActionWrite ActionKind = "write"
	// ActionAgain begins the pass anew once the writes are done, before anything is
	// applied: what was planned beyond them rests on chains that are not written yet.
	// Faults that come with it are told.
	ActionAgain ActionKind = "again"
	// ActionApply brings the copies of one workload to its chain, step by step, in an
	// activity of the quorum all(Members). Before its first step the shell proves, by
	// a transaction that checks the role's epoch, that the record still has version
	// Seen: a snapshot may be older than another's write. A step that fails ends the
	// apply; the next pass plans from what is then found.
	ActionApply ActionKind = "apply"
	// ActionFault raises a fault (see the Fault codes) or clears one (Text empty).
	ActionFault ActionKind = "fault"
)

// Action is one thing to do. Which fields count depends on Kind.
type Action struct {
	Kind     ActionKind
	Workload string // write ("": only Reprovision is written), apply, fault
	// Seen is the record's version that the decision rests on; a write of anything
	// else than that is a conflict, and the pass begins anew. An apply's is the
	// version that the record has once the plan's writes are done.
	Seen int32
	// Write is the workload's new record.
	Write *cluster.Workload
	// Reprovision are the new settings, on version ReprovisionSeen (−1: the record is
	// to be created), in the same transaction as every Write of the plan.
	Reprovision     *cluster.ReprovisionSettings
	ReprovisionSeen int32
	// Members are the nodes whose leases the apply needs; Steps come in order, those
	// of one Stage at once.
	Members []cluster.NodeID
	Steps   []Step
	// Fault is the fault's code; Node whom it is about, if anybody; Text what a tired
	// operator reads: what happened, what is true now, what to do. History: it is also
	// an event of the history (told once).
	Fault   string
	Node    cluster.NodeID
	Text    string
	History bool
}

// Step is one order to one node's copy.
type Step struct {
	Stage  int
	Node   cluster.NodeID
	Op     cluster.CopyOp
	Source cluster.NodeID // follow: whom
	// Expect goes into the order: what the step was planned on; nil: on nothing.
	Expect *cluster.CopyExpect
	// NewSecret: the step belongs to a new activation, for which the shell makes a
	// secret; all steps of one apply share it.
	NewSecret bool
}
