package cluster

import (
	"errors"
	"fmt"
	"strings"
)

// ActivityID names one run of one activity, of all nodes and for ever:
// "<name>-<random>". Stops, tokens and reports name it; nothing is matched by
// its position or its name.
type ActivityID string

// ActivityDomain is what two activities that must not run beside each other
// share. An activity's children are of its domain.
type ActivityDomain string

// DomainCluster is the domain of whatever may change where things run: failover,
// fence and recovery, drain, rebalance, janitor pass. It is the default.
const DomainCluster ActivityDomain = "cluster"

// ActivityState is how far an activity has come.
//
//	waiting ──► running ──► ending ──► ended
//	   └──────────────────────────────► refused
//
// An activity that is over leaves the list; what had to be killed, and what
// survives it, stands in its last record.
type ActivityState string

// The states of an activity.
const (
	ActivityWaiting ActivityState = "waiting" // a condition does not hold yet
	ActivityRunning ActivityState = "running"
	ActivityEnding  ActivityState = "ending"  // its stop has begun; something of it still runs
	ActivityEnded   ActivityState = "ended"   // nothing of it runs any more
	ActivityRefused ActivityState = "refused" // it never ran
)

// Activity is one activity as it is listed and told of.
type Activity struct {
	ID      ActivityID     `json:"id"`
	Name    string         `json:"name"`
	Domain  ActivityDomain `json:"domain"`
	Quorum  string         `json:"quorum"` // in the quorum language
	State   ActivityState  `json:"state"`
	Since   int64          `json:"since_unix_ms"` // when it came to that state, for people
	Node    NodeID         `json:"node"`          // where it runs
	Lease   NodeLeaseID    `json:"lease"`         // under whose leases; zero while it waits
	Parent  ActivityID     `json:"parent,omitempty"`
	Unsafe  bool           `json:"unsafe,omitempty"`
	Hard    bool           `json:"hard,omitempty"`    // it runs and nobody interrupts it: it, or one above it, is a hard failover
	Quiet   bool           `json:"quiet,omitempty"`   // told of only where it lasts or fails
	Retry   bool           `json:"retry,omitempty"`   // of what the history has told already: not told again
	Running []string       `json:"running,omitempty"` // its subtasks
	Killed  []string       `json:"killed,omitempty"`  // those that had to be killed
	// Survives are subtasks that outlived their stop.
	Survives []string `json:"survives,omitempty"`
	// Waits says for what a waiting one waits, or why one was refused.
	Waits *Refusal `json:"waits,omitempty"`
	// Cause is why it ended or is being ended, as a code (EndCode); "" for one
	// that ended by itself and well. Detail is the same for people.
	Cause  string `json:"cause,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// EventActivity is the kind of the history's entries about activities.
const EventActivity = "activity"

// ActivityEvent tells of one transition.
type ActivityEvent struct {
	Activity Activity // as it is after the transition
	UnixMS   int64
}

// Event renders the transition for the history.
func (e ActivityEvent) Event() Event {
	a := e.Activity
	fields := map[string]string{"activity": string(a.ID), "name": a.Name, "domain": string(a.Domain), "quorum": a.Quorum, "state": string(a.State)}
	for key, value := range map[string]string{"cause": a.Cause, "detail": a.Detail, "parent": string(a.Parent),
		"killed": strings.Join(a.Killed, ", "), "survives": strings.Join(a.Survives, ", ")} {
		if value != "" {
			fields[key] = value
		}
	}
	text := fmt.Sprintf("activity %s (%s) is %s", a.Name, a.ID, a.State)
	if a.Unsafe {
		fields["unsafe"], text = "true", text+", without its quorum as ordered"
	}
	if a.Waits != nil {
		fields["refusal"] = string(a.Waits.Code)
		text += ": " + a.Waits.Detail
	}
	if !a.Lease.IsZero() {
		fields["lease"] = a.Lease.String()
	}
	if a.Detail != "" {
		text += ": " + a.Detail
	}
	if len(a.Killed) > 0 {
		text += "; killed: " + fields["killed"]
	}
	if len(a.Survives) > 0 {
		text += "; still there: " + fields["survives"]
	}
	return Event{Version: 1, UnixMS: e.UnixMS, Node: a.Node, Kind: EventActivity, Text: text, Fields: fields}
}

// The refusals of activities, in the order in which the conditions are checked.
const (
	RefuseActivitySpec   RefusalCode = "activity_spec"   // what was asked for makes no sense
	RefuseDomainConflict RefusalCode = "domain_conflict" // another activity has the domain
	RefuseRetry          RefusalCode = "retry"           // one failover waits for the domain already
	RefuseNoLease        RefusalCode = "no_lease"        // the token's lease is not the current one
	RefuseNotLeader      RefusalCode = "not_leader"
	RefuseReplayed       RefusalCode = "activity_replayed" // this very request was received already
	RefuseUninterrupted  RefusalCode = "not_interruptible" // a hard failover is never interrupted
	RefuseEnding         RefusalCode = "ending"            // the activity, or the daemon, is being ended
)

// RefusedActivity says that an activity did not start, or was not changed, and
// why; errors.Is finds ErrRefused in it.
type RefusedActivity struct {
	Name string
	Refusal
}

// Error says what was refused and why.
func (e *RefusedActivity) Error() string {
	return fmt.Sprintf("activity %s was refused (%s): %s", e.Name, e.Code, e.Detail)
}

// Unwrap returns ErrRefused.
func (e *RefusedActivity) Unwrap() error { return ErrRefused }

// Why an activity is ended before it has ended by itself.
var (
	ErrLeadershipLost = errors.New("this node is not the leader any more")
	ErrNodeLeaseLost  = errors.New("the lease that it ran under is not the current one any more")
	ErrSetReplaced    = errors.New("the quorum set was changed by somebody else")
	ErrAgentEnds      = errors.New("the daemon ends")
)

// QuorumLost is the cause of an activity's end whose quorum holds no more.
type QuorumLost struct {
	Quorum string
	Nodes  []NodeID // whose leases were lost; where none was, whose are missing
}

// Error names the nodes.
func (e *QuorumLost) Error() string {
	return fmt.Sprintf("quorum_lost(%s): the quorum %q holds no more", strings.Trim(fmt.Sprint(e.Nodes), "[]"), e.Quorum)
}

// StopOrdered is the cause of an activity's end that an operator ordered.
type StopOrdered struct{ By, Reason string }

// Error names the operator and his reason.
func (e *StopOrdered) Error() string { return fmt.Sprintf("stopped by %s: %s", e.By, e.Reason) }

// Preempted is the cause of an activity's end that a more urgent one needs.
type Preempted struct {
	Name string
	By   ActivityID // empty: it has not begun yet
}

// Error names who needs the domain.
func (e *Preempted) Error() string {
	if e.By == "" {
		return fmt.Sprintf("interrupted: %s is due and comes first", e.Name)
	}
	return fmt.Sprintf("stopped because %s (%s) needs the domain at once", e.Name, e.By)
}

// EndCode is the code of an activity's end: "" for nil, else quorum_lost,
// leadership_lost, lease_lost, set_replaced, stopped, preempted, shutdown or,
// for its own error, failed.
func EndCode(err error) string {
	var lost *QuorumLost
	var stop *StopOrdered
	var preempted *Preempted
	switch {
	case err == nil:
		return ""
	case errors.As(err, &lost):
		return "quorum_lost"
	case errors.As(err, &stop):
		return "stopped"
	case errors.As(err, &preempted):
		return "preempted"
	case errors.Is(err, ErrLeadershipLost):
		return "leadership_lost"
	case errors.Is(err, ErrNodeLeaseLost):
		return "lease_lost"
	case errors.Is(err, ErrSetReplaced):
		return "set_replaced"
	case errors.Is(err, ErrAgentEnds):
		return "shutdown"
	}
	return "failed"
}
