package cluster

// What an operator may order of a node's fence.
const (
	OrderFence   = "fence"   // take its power and prove that it is gone, whatever it looks like
	OrderConfirm = "confirm" // take the operator's word that it has no power as the proof
	OrderCancel  = "cancel"  // end the fence, as long as no power has been ordered off
	OrderTest    = "test"    // ask its devices whether they could be used; no power changes
)

// FenceOrder is an operator's wish about one node's fence. The primary carries
// it out: it ends the order (EndOrder) in the Multi that is the effect, or in
// one with an event of the kind EventOrderRefused that says why not. An order is
// for one start of the node (I5): a later one makes it void.
type FenceOrder struct {
	Version     int         `json:"v"`
	ID          string      `json:"id"`
	Node        NodeID      `json:"node"`
	Incarnation Incarnation `json:"incarnation"` // as the node was registered when it was ordered
	Action      string      `json:"action"`      // OrderFence, OrderConfirm, OrderCancel or OrderTest
	Reason      string      `json:"reason"`      // never empty for OrderConfirm
	By          string      `json:"by"`          // the caller, as the audit record names it
	UnixMS      int64       `json:"unix_ms"`     // when it was ordered, for people
	// Unsafe, of OrderFence, has its first try made without a majority of the node
	// leases, and skips nothing else. Programs that do not know it wait for one.
	Unsafe bool `json:"unsafe,omitempty"`
}

// EndOrder ends an order that has been answered or taken back, as it was seen.
// Its record stays and is emptied, so that its versions only grow and a late
// answer to one order never meets the next: Put writes that on the version that
// the empty record is seen at.
func EndOrder(n NodeID, seen Versioned[FenceOrder]) Op {
	return Set(Key{Kind: KeyFenceOrder, Node: n}, seen.Version, nil)
}

// EventOrderRefused is the kind of the history's entry for an order that was
// not carried out; its fields "order" and "node" name the order.
const EventOrderRefused = "fence_order_refused"

// DeviceReport is how the latest test of one node's fence device went, as the
// coordinator saw it that made the test (FenceTests). It holds no secret.
type DeviceReport struct {
	Node   NodeID   `json:"node"` // whose power the device switches
	Device string   `json:"device"`
	Type   string   `json:"type"`            // ipmi, redfish, agent or exec
	Fault  string   `json:"fault,omitempty"` // unreachable, denied, misconfigured or unclear; empty: ready
	Power  string   `json:"power"`           // on, off or unknown
	Detail string   `json:"detail,omitempty"`
	Notes  []string `json:"notes,omitempty"`
	Micros int64    `json:"us"`
	UnixMS int64    `json:"unix_ms"` // when it was tested, for people
}
