package cluster

// The refusals of automatic failover that rest on what other coordinators and
// later parts say, and those of the failsafe's questions.
const (
	RefuseMixedPicture    RefusalCode = "mixed_picture"      // some coordinators reach the node or hear it, others do not
	RefuseNoQuorum        RefusalCode = "no_quorum"          // no majority of node leases (protocol §7)
	RefuseLastCopy        RefusalCode = "last_copy"          // a workload would lose its last copy
	RefuseStoreWrites     RefusalCode = "store_takes_writes" // asked for a promise by somebody who alone is cut off
	RefuseStoreUnknown    RefusalCode = "store_not_known"    // whether the store takes writes here is being tried
	RefuseOtherHolder     RefusalCode = "other_holder"       // another holder or epoch was seen than the asker's
	RefuseOtherMembers    RefusalCode = "other_members"      // the asker counts other coordinators
	RefuseTakeUnresolved  RefusalCode = "take_unresolved"    // a write of one's own may still take the role, or claim a fence
	RefuseFenceClaimed    RefusalCode = "fence_claimed"      // a fence of the asker is claimed
	RefusePromiseStanding RefusalCode = "promise_stands"     // a promise to the holder, or to the node, has not ended
	RefuseNotCounted      RefusalCode = "not_counted"        // the lease's holder did not know of this coordinator when it last wrote
	RefuseNoAnswer        RefusalCode = "no_answer"          // a coordinator has not answered yet
)

// The refusals of the janitor: why it leaves a workload's copies as they are.
const (
	RefuseCopiesSilent      RefusalCode = "copies_silent"       // a node of its chain has not said what it has
	RefuseCorruptedNodeList RefusalCode = "corrupted_node_list" // its list or chain names what is no member
	RefuseBadCopies         RefusalCode = "bad_copies"          // several copies are active, none of them the head's
	RefuseLastCopyLost      RefusalCode = "last_copy_lost"      // its head's node is proven dead, and nobody else has a copy
	RefuseNoNodeForCopy     RefusalCode = "no_node_for_copy"    // no node may have a copy of it now
)

// Spend is an action's share of the failover budget. It belongs into the very
// Multi that is the effect, so that a failover that did not happen costs
// nothing and none is ever counted twice.
type Spend struct {
	Seen Versioned[FailoverSettings] `json:"-"`     // the record that the decision rests on
	Next FailoverSettings            `json:"after"` // as it shall read afterwards: one more spent
}

// Op writes the count on the version that was decided on, or makes the record
// where there was none: either race is a conflict, and the decision is made anew.
func (s Spend) Op() Op { return Put(Key{Kind: KeyFailover}, s.Seen, s.Next) }

// Reach is what one coordinator says of one node.
type Reach struct {
	Answer ProbeAnswer `json:"answer"` // to its own direct probes: answered, silent or not known
	// Heard says that it sees the node's keepalives change.
	Heard bool `json:"heard,omitempty"`
	// AgeMillis is how long before the report was made the newest probe was
	// sent that Answer rests on. An older answer is worth less, never more.
	AgeMillis int64 `json:"age_ms"`
}
