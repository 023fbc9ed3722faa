package cluster

// View is what a node publishes under KeyView of what it sees and decides, so
// that "why?" has an answer without asking its process.
type View struct {
	Version  int       `json:"v"`
	Mode     string    `json:"mode"` // of its role machine: idle, contending, primary, …
	Epoch    Epoch     `json:"epoch"`
	Refusals []Refusal `json:"refusals,omitempty"` // of taking the role; a zero Node means itself
	Problems []string  `json:"problems,omitempty"` // of its latest pre-flight
	// GuardFaults are what the node's guard complains of, in words.
	GuardFaults []string `json:"guard_faults,omitempty"`
	// ServiceFault is why a primary-only service does not run here; empty where
	// all do, or none should.
	ServiceFault string              `json:"service_fault,omitempty"`
	Nodes        map[NodeID]NodeSeen `json:"nodes"`           // every other registered node
	Blind        string              `json:"blind,omitempty"` // why its judgement counts for nothing now
	// Maintenance echoes the maintenance switch as the node has seen it.
	Maintenance bool `json:"maintenance"`
	// MaintenanceVersion is that switch's znode version: an older echo of the
	// same value confirms nothing.
	MaintenanceVersion int32 `json:"maintenance_version"`
}

// NodeSeen is how one node judges another.
type NodeSeen struct {
	Liveness string   `json:"liveness"`          // Liveness.String
	Excuse   string   `json:"excuse,omitempty"`  // why its silence is no sign of death
	Refusal  *Refusal `json:"refusal,omitempty"` // why it is not fenced
}
