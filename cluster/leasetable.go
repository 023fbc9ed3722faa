package cluster

import "time"

// NodeLeases is what the primary publishes of the node leases that it holds
// (protocol §7): for people, and for nothing that is decided.
type NodeLeases struct {
	Version int         `json:"v"`
	Lease   NodeLeaseID `json:"lease"` // under which it asks
	Set     []NodeID    `json:"set"`   // the quorum set, in order
	// Majority: of the set was held at the write.
	Majority bool                     `json:"majority"`
	PeriodMS int64                    `json:"period_ms"` // a lease's time from its last renewal
	UnixMS   int64                    `json:"unix_ms"`   // of the write, for people
	Nodes    map[NodeID]NodeLeaseSeen `json:"nodes"`
}

// NodeLeaseSeen is how the primary stands to one node's lease.
type NodeLeaseSeen struct {
	State   string        `json:"state"`             // held, asking or refused
	LeftMS  int64         `json:"left_ms,omitempty"` // at the write, if it is not renewed
	SinceMS int64         `json:"since_unix_ms,omitempty"`
	RTT     RoundTripSeen `json:"rtt_us"`
	// Code and Detail are why it is not held.
	Code   RefusalCode `json:"code,omitempty"`
	Detail string      `json:"detail,omitempty"`
}

// RoundTripSeen are times from a question's send to its answer, µs; 0: none yet.
type RoundTripSeen struct {
	Median int64 `json:"median"`
	P99    int64 `json:"p99"`
	Last   int64 `json:"last"`
}

// The states of a node's lease as they are published.
const (
	LeaseSeenHeld    = "held"
	LeaseSeenAsking  = "asking"  // no answer yet
	LeaseSeenRefused = "refused" // Code and Detail say why; asked again by itself
)

// Left is how much is left of the lease when the record has this age; 0: it has
// ended unless it was renewed since.
func (s NodeLeaseSeen) Left(age time.Duration) time.Duration {
	return max(0, time.Duration(s.LeftMS)*time.Millisecond-max(0, age))
}
