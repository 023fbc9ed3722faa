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
}

// Ended reports whether nothing further happens to the record by itself.
func (f FenceRecord) Ended() bool {
	return f.Stage == FenceDone || f.Stage == FenceCanceled || f.Stage == FenceManual
}
