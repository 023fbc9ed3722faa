package cluster

// ActionKind is what may be done to the cluster of one's own accord.
type ActionKind string

// ActionFence takes power from a node and proves that it is gone.
const ActionFence ActionKind = "fence"

// Action is a decision to act, with its reason. It names the incarnation it
// was decided about: whoever carries it out refuses a later one (I5).
type Action struct {
	Kind        ActionKind  `json:"kind"`
	Node        NodeID      `json:"node"`
	Incarnation Incarnation `json:"incarnation"`
	Reason      string      `json:"reason"`
	// Keepalive is the Mzxid of the newest keepalive that the decision rests
	// on: a newer one withdraws it.
	Keepalive int64 `json:"keepalive_mzxid,omitempty"`
	// Spend is the share of the failover budget that the effect's own Multi
	// writes; nil where nothing is counted.
	Spend *Spend `json:"spend,omitempty"`
}
