package cluster

// ActivityRecord is an activity as the node that runs it keeps it in the store,
// from when it runs, or has waited for a while, until nothing of it is left. It
// tells people and the next primary what is under way; what may run is decided
// on that node alone. Only that start of its daemon writes it, but for Stop, and
// for the sweep of what a start that is over left behind.
type ActivityRecord struct {
	Version int `json:"v"`
	Activity
	Epoch       Epoch         `json:"epoch"`          // of the lease that it runs under; 0 while it waits
	Incarnation Incarnation   `json:"incarnation"`    // of the daemon that runs it
	Stop        *ActivityStop `json:"stop,omitempty"` // an operator's, not answered yet
}

// ActivityStop is an operator's wish that an activity be ended. It stands in the
// activity's record: the node that runs the activity carries it out and answers
// it in the Multi that takes it away, with an entry in the history whose field
// "order" names it. So it is answered once, whether the activity ends by it or by
// itself at that very moment (I8).
type ActivityStop struct {
	ID     string `json:"id"`
	By     string `json:"by"` // the caller, as the audit record names it
	Reason string `json:"reason,omitempty"`
	UnixMS int64  `json:"unix_ms"` // when it was ordered, for people
}

// The kinds of the history's entries about orders to end an activity; their
// fields "order" and "activity" name what they are about. That one was carried
// out is told by the activity's own entry (EventActivity).
const (
	EventActivityStop    = "activity_stop"         // an order was given
	EventActivityRefused = "activity_stop_refused" // an order was not carried out
)

// CauseInterrupted is the cause of an activity that its node has not ended: its
// daemon, its node or its leader was lost, and the record was swept.
const CauseInterrupted = "interrupted"
