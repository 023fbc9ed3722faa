package cluster

import "time"

// DeadlineOwner names what a guard's deadline belongs to: each thing the guard
// runs or holds hangs on exactly one.
type DeadlineOwner string

// The owners known by name; a fence attempt's is "fence:<record id>".
const (
	OwnerPrimary DeadlineOwner = "primary" // the primary role: addresses, gate, primary-only services
	// OwnerNode is the node's own right: Q·K after the send of the last
	// acknowledged keepalive, or the end of the promises that cover it. Protected
	// work hangs on it, the feeding of the watchdog, and, beside its own deadline,
	// the primary role: where it ends, that ends, too. Its epoch is always the
	// same, since nobody else could hold it, and not kept over reboots. Once it
	// has been begun, or where this machine may be reset, no role is begun while
	// it is not held.
	OwnerNode DeadlineOwner = "node"
)

// NodeEpoch is the epoch of every deadline of OwnerNode, and of what hangs on it.
const NodeEpoch Epoch = 1

// RoleDeadline is an absolute instant of this host at which the guard ends all
// that hangs on the owner, whatever the agent does (I3).
type RoleDeadline struct {
	Owner    DeadlineOwner `json:"owner"`
	Epoch    Epoch         `json:"epoch"`
	Deadline Instant       `json:"deadline"`
	// Sent is the send instant of the renewal that moved the deadline; Never if
	// the caller does not tell. After a firewall flush addresses return only
	// with a renewal sent after it.
	Sent Instant `json:"sent,omitempty"`
}

// ServiceKind is how a primary-only service runs.
type ServiceKind string

// The service kinds.
const (
	ServiceHook ServiceKind = "hook" // a program that runs as long as the role
	ServiceUnit ServiceKind = "unit" // a systemd unit, started and stopped over D-Bus
	// ServiceActions is what a program brings up and another takes down (an OCF
	// agent's start and stop): Command runs to its end in the service's own control
	// group, and what it leaves there, if anything, is the service. To end it Stop
	// is run, and then nothing is left in the group.
	ServiceActions ServiceKind = "actions"
)

// ServiceSpec is a primary-only service.
type ServiceSpec struct {
	Name         string        `json:"name"`
	Kind         ServiceKind   `json:"kind"`
	Command      []string      `json:"command,omitempty"` // hook: argv of the long-running program
	Check        []string      `json:"check,omitempty"`   // hook: argv that exits 0 once it serves; none: running is enough
	Unit         string        `json:"unit,omitempty"`
	StartTimeout time.Duration `json:"start_timeout"` // default 10 s
	StopTimeout  time.Duration `json:"stop_timeout"`  // SIGTERM to SIGKILL, default 5 s
	// Stop is the argv that takes an actions service down, within StopTimeout; it
	// runs also where the start has failed or was cut off. Its exit status must be 0.
	Stop []string `json:"stop,omitempty"`
	// Env is what Command, Check and Stop get beside the guard's own few variables.
	Env []string `json:"env,omitempty"`
	// Restart starts a hook again so long after it has ended by itself; 0: never.
	Restart time.Duration `json:"restart,omitempty"`
	// User is whom Command runs as, a name; "": as the guard.
	User string `json:"user,omitempty"`
	// Note is kept with the service and given back by ServiceState.
	Note string `json:"note,omitempty"`
}

// ServiceState is a service as the guard sees it.
type ServiceState struct {
	Name    string `json:"name"`
	Running bool   `json:"running"`
	PID     int    `json:"pid,omitempty"`
	Checked bool   `json:"checked"` // its check has passed since it was started
	Error   string `json:"error,omitempty"`
	// Owner is whose deadline it hangs on. Kind and Note are the specification's.
	Owner DeadlineOwner `json:"owner,omitempty"`
	Kind  ServiceKind   `json:"kind,omitempty"`
	Note  string        `json:"note,omitempty"`
	// Starts counts how often a hook was started, the first time included.
	Starts int `json:"starts,omitempty"`
	// Left: though it does not run something of it is here, or may be: a process of
	// its group, or what an actions service has made and its Stop has not taken down.
	Left bool `json:"left,omitempty"`
	// Ending: what it hung on is over, and it is being ended. Nothing can be made of it
	// any more; a start by its name waits for its end.
	Ending bool `json:"ending,omitempty"`
}

// GuardState is all that a guard holds, as verified against the kernel.
type GuardState struct {
	Deadlines []RoleDeadline    `json:"deadlines"` // live ones only; an ended role is absent
	MaxEpoch  Epoch             `json:"max_epoch"` // largest epoch ever seen for OwnerPrimary
	Addresses []FloatingAddress `json:"addresses"` // ours, present in the kernel
	Gate      bool              `json:"gate"`      // the nftables gate is in force
	GateOpen  []string          `json:"gate_open"` // names of addresses whose element lives
	Services  []ServiceState    `json:"services"`
	Faults    []string          `json:"faults"` // health faults, in words
	Watchdog  WatchdogState     `json:"watchdog,omitzero"`
}

// GuardEvent is something the guard did or saw of its own accord.
type GuardEvent struct {
	Kind  string        `json:"kind"` // ended, address_lost, address_conflict, gate_lost, service_exited, service_restarted, fault
	Owner DeadlineOwner `json:"owner,omitempty"`
	Epoch Epoch         `json:"epoch,omitempty"`
	Name  string        `json:"name,omitempty"`
	Text  string        `json:"text"`
}

// PreflightRequest asks whether this host could serve the role now.
type PreflightRequest struct {
	Addresses []FloatingAddress `json:"addresses"`
	Services  []ServiceSpec     `json:"services"`
	// Conflicts asks for an ARP/ND probe of each address; an answer from a
	// MAC outside KnownMACs (the holder's) is a problem.
	Conflicts bool          `json:"conflicts"`
	KnownMACs []string      `json:"known_macs"`
	Timeout   time.Duration `json:"timeout"` // of the conflict probe
	// Epoch, if set, is the one at which the role would be begun: it is made
	// durable now, so that Begin does not wait for the disk while the addresses
	// are silent.
	Epoch Epoch `json:"epoch,omitempty"`
}

// PreflightResult lists what stands against serving, in words; empty is fit.
type PreflightResult struct {
	Problems []string `json:"problems"`
	// MaxEpoch is the largest epoch that the guard has seen for the primary role.
	MaxEpoch Epoch `json:"max_epoch,omitempty"`
}

// RunRequest asks the guard to run one program under an owner's deadline.
type RunRequest struct {
	Owner   DeadlineOwner     `json:"owner"`
	Epoch   Epoch             `json:"epoch"`
	Argv    []string          `json:"argv"`
	Stdin   []byte            `json:"stdin,omitempty"` // secrets travel here, never in argv
	Env     map[string]string `json:"env,omitempty"`
	Timeout time.Duration     `json:"timeout"`
}

// RunResult is how a program ended.
type RunResult struct {
	ExitCode int    `json:"exit_code"` // −1 when it was killed or never ran
	Stdout   []byte `json:"stdout,omitempty"`
	Stderr   []byte `json:"stderr,omitempty"`
	Error    string `json:"error,omitempty"`
}
