package cluster

// FenceStage is a stage of a fence record's machine (fencing/machine.go).
type FenceStage string

// The stages of a fence (protocol §6).
const (
	FenceClaimed  FenceStage = "claimed"
	FenceSoft     FenceStage = "soft"
	FencePowerOff FenceStage = "power_off"
	FenceVerify   FenceStage = "verify"
	FenceFenced   FenceStage = "fenced"
	FenceRecover  FenceStage = "recover"
	FenceDone     FenceStage = "done"
	FenceFailed   FenceStage = "failed"
	FenceManual   FenceStage = "manual"
	FenceCanceled FenceStage = "canceled"
)

// Known reports whether this program knows what to do in the stage: a record in
// another one (a newer program's, or a hand's) is replaced, never carried on.
func (s FenceStage) Known() bool {
	switch s {
	case FenceClaimed, FenceSoft, FencePowerOff, FenceVerify, FenceFenced, FenceRecover, FenceDone, FenceFailed, FenceManual, FenceCanceled:
		return true
	}
	return false
}

// FenceAttempt is one try of one device.
type FenceAttempt struct {
	Device        string `json:"device"`
	Action        string `json:"action"` // off, status, on
	StartedUnixMS int64  `json:"started_ms"`
	Micros        int64  `json:"us"`
	Result        string `json:"result"` // off, on, unknown, failed
	Error         string `json:"error,omitempty"`
}

// FenceRecord is the persisted state of one node's fence; the next primary
// resumes it. It names the incarnation it aims at (I5).
type FenceRecord struct {
	Version     int            `json:"v"`
	ID          string         `json:"id"`
	Node        NodeID         `json:"node"`
	Incarnation Incarnation    `json:"incarnation"`
	Epoch       Epoch          `json:"epoch"`
	By          NodeID         `json:"by"`
	Stage       FenceStage     `json:"stage"`
	Reason      string         `json:"reason"`
	StartedMS   int64          `json:"started_ms"`
	Tries       int            `json:"tries"`
	Attempts    []FenceAttempt `json:"attempts,omitempty"`
	Result      string         `json:"result,omitempty"`
	Proof       string         `json:"proof,omitempty"` // verified_off, watchdog, confirmed, returned
	// Keepalive is the Mzxid of the newest keepalive of the node that the claim
	// rests on; a newer one is a sign of life, for whoever carries the record on.
	Keepalive int64 `json:"keepalive_mzxid,omitempty"`
	// Order is the id of the operator's order that made the fence, or changed it
	// last; a fence that an order made spends nothing of the failover budget.
	Order string `json:"order,omitempty"`
	// Held: an operator has ended the tries. Nothing more is tried by itself;
	// the node's return, a confirmation or a new order goes on.
	Held bool `json:"held,omitempty"`
	// Policy is what follows for the node's workloads, written with the proof:
	// migrate or none.
	Policy string `json:"policy,omitempty"`
}

// Ended reports whether nothing further happens to the record by itself.
func (f FenceRecord) Ended() bool {
	return f.Stage == FenceDone || f.Stage == FenceCanceled || f.Stage == FenceManual
}

// WatchdogWord is what one start of a node publishes of its watchdog, in its
// node record. It is the only ground on which others count the watchdog's bound
// as a dead-proof (I4), so that it says less than is known, never more.
type WatchdogWord struct {
	// Armed: the device runs and is fed by the acknowledged keepalive alone.
	Armed bool `json:"armed"`
	// Hardware: not a timer of the kernel that may be what hangs.
	Hardware bool `json:"hardware"`
	// Stored: the device's descriptor outlives the process that feeds it. Where
	// it does not, the kernel feeds once more when that process ends.
	Stored bool `json:"stored"`
	// TimeoutMS is W as read back from the device.
	TimeoutMS int64 `json:"timeout_ms"`
	// StopMS is Q·K of this node: so long after the send of its last acknowledged
	// keepalive the device is fed at the latest; by a holder of the primary role
	// that was shut down in maintenance until its lengthened lease runs out.
	StopMS int64 `json:"stop_ms"`
}

// FenceTests is how the devices of one node did when they were last asked,
// under KeyFenceTests.
type FenceTests struct {
	Version int            `json:"v"`
	UnixMS  int64          `json:"unix_ms"` // when, for people
	By      NodeID         `json:"by"`      // from where: another coordinator may reach them, or not
	Epoch   Epoch          `json:"epoch"`
	Devices []DeviceReport `json:"devices"`
}

// The refusals of operators' fence orders, beside those that automatic failover has.
const (
	RefuseOneself     RefusalCode = "oneself"             // the primary does not fence itself; another is to hold the role first
	RefuseIncarnation RefusalCode = "unknown_incarnation" // the order names no start of the node, or not its present one
	RefuseUnderWay    RefusalCode = "fence_under_way"     // an order to a device is out already
	RefuseProven      RefusalCode = "already_proven"      // this start of the node is proven dead
	RefuseNoFence     RefusalCode = "no_fence"            // there is nothing that could be cancelled
	RefuseNoReason    RefusalCode = "no_reason"           // a confirmation needs one, and a name
	RefuseOrder       RefusalCode = "order_not_understood"
	RefuseOverdue     RefusalCode = "not_in_time" // it could not be carried out within the time given
)
