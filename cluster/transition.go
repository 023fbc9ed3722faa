package cluster

import "slices"

// Phase is a step of a hand-over; see agent/role for the machine that walks them.
type Phase string

// The phases of a hand-over (protocol §4).
const (
	PhaseAnnounce  Phase = "A" // announce and pre-flight; nothing has changed yet
	PhaseStop      Phase = "B" // the holder stops its primary-only services
	PhaseHandOver  Phase = "C" // addresses removed, lease handed over in one Multi
	PhaseAddresses Phase = "D" // the new holder anchors its lease and adds addresses
	PhaseStart     Phase = "E" // the new holder starts its primary-only services
	PhaseDone      Phase = "F" // recorded; the lock is released
)

// TransitionState says whether a hand-over is under way or how it ended.
type TransitionState string

// The transition states.
const (
	TransitionRunning TransitionState = "running"
	TransitionDone    TransitionState = "done"
	TransitionAborted TransitionState = "aborted"
)

// Cause says why the role moved.
type Cause string

// The causes of a transition.
const (
	CauseSwitch   Cause = "switch"   // an operator's or foreign tool's wish
	CauseReleased Cause = "released" // the lease had no holder
	CauseExpired  Cause = "expired"  // the lease was not renewed
	CauseResume   Cause = "resume"   // the holder's own daemon restarted
	CauseDead     Cause = "dead_proof"
)

// TransitionStep is one finished step, for the record and for `--wait`.
type TransitionStep struct {
	Node          NodeID `json:"node"`
	Phase         Phase  `json:"phase"`
	Name          string `json:"name"`
	StartedUnixMS int64  `json:"started_ms"` // the node's wall clock, for people only
	Micros        int64  `json:"us"`         // measured on the node's monotonic clock
	Error         string `json:"error,omitempty"`
}

// Transition is the record of the running or last hand-over. Both sides resume
// from it after a restart.
type Transition struct {
	Version int    `json:"v"`
	ID      string `json:"id"`
	Epoch   Epoch  `json:"epoch"` // the lease's epoch when it began
	// NextEpoch is at which epoch the candidate can act, at least: larger than any
	// that its host has seen. C hands the role over at this one or a larger (I2).
	NextEpoch    Epoch            `json:"next_epoch,omitempty"`
	From         NodeID           `json:"from"` // empty when nobody held the role
	To           NodeID           `json:"to"`
	ToIncarn     Incarnation      `json:"to_incarnation"`
	FromHost     string           `json:"from_host,omitempty"` // the ids of the hosts (NodeRecord.ID) that From and To name,
	ToHost       string           `json:"to_host,omitempty"`   // where these may go on without the store; else empty
	Cause        Cause            `json:"cause"`
	State        TransitionState  `json:"state"`
	Phase        Phase            `json:"phase"`
	Lock         string           `json:"lock"`         // name of the candidate's lock child, checked by C's Multi
	WishVersion  int32            `json:"wish_version"` // version of primary_node that asked
	Acknowledged bool             `json:"acknowledged"` // the holder has seen it
	Ready        uint64           `json:"ready"`        // stamped by the candidate each K while it waits
	Started      int64            `json:"started_ms"`
	Steps        []TransitionStep `json:"steps,omitempty"`
	Error        string           `json:"error,omitempty"`
	SupersededBy string           `json:"superseded_by,omitempty"`
}

// Running reports whether the hand-over is still under way.
func (t Transition) Running() bool { return t.ID != "" && t.State == TransitionRunning }

// WithStep returns a copy with the step appended; the receiver's slice is not shared.
func (t Transition) WithStep(s TransitionStep) Transition {
	t.Steps = slices.Concat(t.Steps, []TransitionStep{s})
	return t
}
