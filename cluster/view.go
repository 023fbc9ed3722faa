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
	// Reach is what its own direct probes say of the nodes that somebody misses;
	// written anew each keepalive interval while there is one.
	Reach map[NodeID]Reach `json:"reach,omitempty"`
	// Maintenance echoes the maintenance switch as the node has seen it.
	Maintenance bool `json:"maintenance"`
	// Faults are what else stands against the node's health, in words with their
	// cures: a certificate that runs out, a coordinator that it cannot ask.
	Faults []string `json:"faults,omitempty"`
	// MaintenanceVersion is that switch's znode version: an older echo of the
	// same value confirms nothing.
	MaintenanceVersion int32 `json:"maintenance_version"`
}

// NodeSeen is how one node judges another.
type NodeSeen struct {
	Liveness string   `json:"liveness"`          // Liveness.String
	Excuse   string   `json:"excuse,omitempty"`  // why its silence is no sign of death
	Refusal  *Refusal `json:"refusal,omitempty"` // why it is not fenced
	// Picture says, of a suspect, which coordinators reach or hear it and which
	// do not, in words; empty where nobody probes.
	Picture string `json:"picture,omitempty"`
	// Vetoes are the answers of everything that may stand against fencing it,
	// as it would be asked next; none of a node that is up or excused.
	Vetoes []VetoSeen `json:"vetoes,omitempty"`
}

// VetoSeen is the answer of one thing that may stand against fencing a node.
type VetoSeen struct {
	Name    string   `json:"name"`
	Refusal *Refusal `json:"refusal,omitempty"` // nil: nothing stands against it
	Unused  bool     `json:"unused,omitempty"`  // the part that would know is not in use yet
}
