package cluster

import "time"

// Epoch numbers the holders of the primary role; each holder's is larger than
// every earlier one's (I2). Zero is before the first holder.
type Epoch uint64

// RestoreGap is how far above every epoch that backup and tree tell of a restored
// cluster begins: versions of records count from their beginning again then.
const RestoreGap Epoch = 1 << 20

// Lease is the record of who is primary. It is released by an empty holder and
// never deleted. Its znode version is the token every renewal compares and sets.
type Lease struct {
	Version     int         `json:"v"`
	Holder      NodeID      `json:"holder"` // empty: released
	Incarnation Incarnation `json:"incarnation"`
	Epoch       Epoch       `json:"epoch"`
	TTLMillis   int64       `json:"ttl_ms"`
	N           uint64      `json:"n"` // counts writes, so that a late write of one's own is recognised
	// Unproven are earlier holders that were lost and not yet proven dead,
	// where require_dead_proof is set: whoever takes the role owes their proofs
	// before it may answer for an address.
	Unproven []Unproven `json:"unproven,omitempty"`
	// Coordinators are those that its holder asks before it goes on without the
	// store, where the failsafe is on; in order, itself among them. Who is not
	// named takes no lease that has merely expired: the holder may be going on by
	// the word of those who are (I1). Empty: the holder never goes on.
	Coordinators []NodeID `json:"coordinators,omitempty"`
	// IDs are the node ids (NodeRecord.ID) of its holder and of the Coordinators,
	// as far as they were known: another host of one of these names is not the one
	// that is named. None at all: an older version wrote it, and names count.
	IDs map[NodeID]string `json:"ids,omitempty"`
}

// Means reports whether the host with that id is the one that the lease means by
// the name.
func (l Lease) Means(n NodeID, id string) bool { return len(l.IDs) == 0 || l.IDs[n] == id }

// Unproven names one start of a lost holder.
type Unproven struct {
	Node        NodeID      `json:"node"`
	Incarnation Incarnation `json:"incarnation"`
}

// MaxEpoch bounds what is taken for an epoch: a larger number is rubbish, and
// adding to it must never wrap around (I2).
const MaxEpoch Epoch = 1 << 53

// TTL is how long a renewal lasts, counted from its send instant by the holder
// (minus grace) and from its observation by everybody else (plus margin).
func (l Lease) TTL() time.Duration { return time.Duration(l.TTLMillis) * time.Millisecond }

// Released reports whether nobody holds the lease.
func (l Lease) Released() bool { return l.Holder == "" }

// HeldBy reports whether exactly this incarnation of the node holds the lease.
func (l Lease) HeldBy(n NodeID, inc Incarnation) bool {
	return l.Holder == n && l.Incarnation == inc
}
