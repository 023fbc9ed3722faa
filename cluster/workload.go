package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// WorkloadKind is how many copies of a workload there are at once.
type WorkloadKind string

// The kinds of workload.
const (
	// WorkloadReplicated has a copy on each node of its chain, of which the head's
	// alone is active; the others are promoted and demoted.
	WorkloadReplicated WorkloadKind = "replicated"
	// WorkloadMovable has one copy, which is started elsewhere once its node is
	// proven dead, or after it was stopped where it is.
	WorkloadMovable WorkloadKind = "movable"
)

// DriverName is what runs a workload's copies.
type DriverName string

// The drivers (package driver).
const (
	DriverOCF     DriverName = "ocf"     // an OCF resource agent, Workload.Agent "heartbeat:Dummy"
	DriverSystemd DriverName = "systemd" // a template unit, Workload.Agent "name@.service"
	DriverRedis   DriverName = "redis"   // redis-server behind a gate of users
	DriverExec    DriverName = "exec"    // one's own program, Params["command"]
)

// Drivers lists the drivers' names, for messages.
var Drivers = []DriverName{DriverExec, DriverOCF, DriverRedis, DriverSystemd}

// NoCopy is a place of a chain that no node fills. It keeps the chain's length,
// and with it what "replicated n times" means, until somebody fills it (J3).
const NoCopy NodeID = ""

// WorkloadState is what the primary says of a workload; it writes it only when it
// changes.
type WorkloadState string

// The states of a workload.
//
//	new ─▶ starting ─▶ running ◀──▶ moving
//	          ▲  │         │
//	          │  ▼         ▼
//	       recovering ─▶ failed      stopped (wanted, or nowhere to run: Reason says)
const (
	WorkloadNew        WorkloadState = "new"        // no chain yet
	WorkloadStarting   WorkloadState = "starting"   // its head is being started or promoted
	WorkloadRunning    WorkloadState = "running"    // its head's copy was seen active
	WorkloadMoving     WorkloadState = "moving"     // Next is being carried out
	WorkloadRecovering WorkloadState = "recovering" // its node is proven dead; it starts elsewhere
	WorkloadStopped    WorkloadState = "stopped"    // as wanted; or nothing could take it: then Reason says why, and Wanted stays
	WorkloadFailed     WorkloadState = "failed"     // its starts have failed too often: Reason; an operator's start tries again
	WorkloadUnsafe     WorkloadState = "unsafe"     // its head came back empty, and it is not brought online
	WorkloadFaulty     WorkloadState = "faulty"     // it is left alone: Reason has the fault
)

// Workload is one workload: what an operator has said of it, where its copies
// are to be, and what the primary says of it. One record; each change is a
// compare-and-set of it.
type Workload struct {
	Version int    `json:"v"`
	Name    string `json:"name"`
	// ID names this creation: a workload that was removed and made anew under the
	// same name is another one, and nothing that was ordered of the first counts.
	ID     string            `json:"id"`
	Kind   WorkloadKind      `json:"kind"`
	Driver DriverName        `json:"driver"`
	Agent  string            `json:"agent,omitempty"`  // "heartbeat:Dummy" · "name@.service" · "" for the others
	Params map[string]string `json:"params,omitempty"` // the driver's, or the agent's own

	// Ephemeral: a copy that is restarted comes back empty.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// Wanted: it is to run. An operator's stop clears it; nothing else does.
	Wanted bool `json:"wanted"`
	// Autostart: what had to be stopped for want of a place starts by itself once
	// there is one.
	Autostart bool   `json:"autostart"`
	Priority  int    `json:"priority,omitempty"` // 0–1000; larger first in a recovery and a drain
	Selector  string `json:"selector,omitempty"` // mem, memprov, load, vcpus, vms; "": the cluster's
	MemoryMiB int64  `json:"memory_mib,omitempty"`
	VCPUs     int    `json:"vcpus,omitempty"`
	Protected bool   `json:"protected,omitempty"` // its node is fenced before others'

	// Live: it is moved while it runs, where its agent can on both nodes (OCF, movable:
	// migrate_to and migrate_from); else, and without, it is stopped and started.
	Live bool `json:"live,omitempty"`

	// Nodes may have a copy; empty: the list is not made yet. Replicas is how many
	// copies beside the head a chain that is made by itself has.
	Nodes    []NodeID `json:"nodes,omitempty"`
	Replicas int      `json:"replicas,omitempty"`
	// CoordinatorsOnly: whoever adds or changes it is told where Nodes or Chain name
	// another node. The API fills Nodes with the coordinators where none are named,
	// so that placing has nothing to look at but Nodes.
	CoordinatorsOnly bool `json:"coordinators_only,omitempty"`
	// Chain is where the copies are to be, the active one's node first; NoCopy is a
	// place that nobody fills. nil: not made yet. A movable one's has one place.
	Chain []NodeID `json:"chain,omitempty"`
	// Pass names the janitor's pass, or the move, that has written Chain.
	Pass string `json:"pass,omitempty"`
	// History is the head's (CopyReport.History) when it was last seen active: a copy of
	// an earlier one lacks what was written since, however far it says it has come.
	History string `json:"history,omitempty"`
	// Next is an unfinished move.
	Next *ChainMove `json:"next,omitempty"`
	// Home is where `ready` brings back to what a drain has moved away; "": nowhere.
	Home NodeID `json:"home,omitempty"`
	// Away are the nodes whose replica a drain has taken out of the chain, each with
	// the node that stands in for it (NoCopy: none): once it is ready it gets that
	// place back.
	Away map[NodeID]NodeID `json:"away,omitempty"`

	State    WorkloadState `json:"state"`
	Reason   string        `json:"reason,omitempty"`   // of that state, for people
	Attempts int           `json:"attempts,omitempty"` // starts that have failed since the last that did not
	SinceMS  int64         `json:"since_ms,omitempty"` // of State, unix ms, for people

	// Request is an operator's order that the primary has not carried out yet.
	Request *WorkloadRequest `json:"request,omitempty"`
	// Answer is what became of the newest one that was.
	Answer *WorkloadAnswer `json:"answer,omitempty"`
}

// ChainMove is a move under way. Whoever is primary next goes on with it, or
// recognises it as done by the copies that it finds.
type ChainMove struct {
	ID    string   `json:"id"`
	Chain []NodeID `json:"chain"`
	// From is the chain before it, to which a move that fails goes back.
	From  []NodeID `json:"from,omitempty"`
	Cause string   `json:"cause"` // move, drain, ready, rebalance, recovery
	Epoch Epoch    `json:"epoch"` // of who began it
	// Live: it is made while the workload runs. Only then may both the chain's node and
	// the next one have a copy; whoever does anything else with the workload clears both
	// first.
	Live LiveMove `json:"live,omitempty"`
}

// LiveMove is how far a live move is; "": it is none, or none any more.
type LiveMove string

// The stages of a live move.
const (
	LiveMigrating  LiveMove = "migrating"  // under way, by whoever has written it
	LiveRecovering LiveMove = "recovering" // it is over, and what is on either node is not believed: it is stopped on both
)

// WorkloadOp is what an operator orders of a workload.
type WorkloadOp string

// The operators' orders.
const (
	WorkloadMove    WorkloadOp = "move"    // to Node, or to where the selector says
	WorkloadPromote WorkloadOp = "promote" // the copy on Node becomes the head
	WorkloadStart   WorkloadOp = "start"   // also after failed
	WorkloadStop    WorkloadOp = "stop"
	WorkloadRemove  WorkloadOp = "remove" // its copies are stopped, then the record goes
	WorkloadProbe   WorkloadOp = "probe"  // every node is asked of its copy; the answer has what they said (Copies), and nothing is changed
)

// RefuseWithoutLeases is why nothing is done for workloads where node leases are
// not in use: nobody could tell how long a silent node's copies may still run.
const RefuseWithoutLeases RefusalCode = "workloads_without_leases"

// The kinds of the history's entries of what operators order of workloads. The
// field "workload" names it, "order" the order's id.
const (
	EventWorkloadOrder  = "workload_order"  // added, changed, or ordered to be moved, promoted, started, stopped, removed
	EventRebalanceOrder = "rebalance_order" // a rebalance was ordered, or its end
	// EventWorkload is of what the primary has done with a workload: recovered, moved,
	// promoted, stopped for want of a place, failed.
	EventWorkload = "workload"
	// EventRebalance is of a rebalance's end; EventDrain of what a drain cannot move.
	EventRebalance = "rebalance"
	EventDrain     = "drain"
)

// ReplacedBy says what a newer order replaces an older one with, for whoever waits
// for that.
func (r WorkloadRequest) ReplacedBy() string {
	text := string(r.Op)
	if r.Node != "" {
		text += " to " + string(r.Node)
	}
	if r.By != "" {
		text += ", by " + r.By
	}
	return text
}

// WorkloadRequest is an operator's order. A second one replaces a first that is
// not carried out yet, whose waiter is told by whom.
type WorkloadRequest struct {
	ID      string     `json:"id"`
	Op      WorkloadOp `json:"op"`
	Node    NodeID     `json:"node,omitempty"`
	Destroy bool       `json:"destroy,omitempty"` // the last copy may go
	By      string     `json:"by,omitempty"`
	AtMS    int64      `json:"at_ms"`
}

// WorkloadAnswer is what became of an operator's order.
type WorkloadAnswer struct {
	ID    string `json:"id"`
	Done  bool   `json:"done"` // else Text says what is true now and what to do
	Text  string `json:"text"`
	AtMS  int64  `json:"at_ms"`
	Epoch Epoch  `json:"epoch,omitempty"` // of the primary that answered
	// Copies are what the nodes have said, of a probe. A node that did not answer is
	// Unknown with an Error.
	Copies []CopyReport `json:"copies,omitempty"`
}

// Head is the node whose copy is to be the active one; NoCopy: nobody's.
func (w Workload) Head() NodeID {
	if len(w.Chain) == 0 {
		return NoCopy
	}
	return w.Chain[0]
}

// How the reason begins of a workload that runs with fewer copies than its chain has
// places.
const (
	LacksPlace = "a place of its chain has no copy"
	LacksCopy  = "a copy of its chain does not follow, so that nobody could take over for it"
)

// Lacks reports whether the workload runs with fewer copies to fall back on than its
// chain has places, as the primary has found.
func (w Workload) Lacks() bool {
	return w.Wanted && w.State == WorkloadRunning && (strings.HasPrefix(w.Reason, LacksPlace) || strings.HasPrefix(w.Reason, LacksCopy))
}

// HasAway reports a node whose replica is to come back to it.
func (w Workload) HasAway(n NodeID) bool {
	_, is := w.Away[n]
	return is
}

// Drained counts how far a drain of the node has come: how many of the workloads that
// it concerns are away (their records know the way back), of how many.
func Drained(workloads map[string]Versioned[Workload], n NodeID) (away, of int) {
	for _, v := range workloads {
		w := v.Value
		switch {
		case !v.Present || v.Err != nil || !w.Wanted:
		case slices.Contains(w.Chain, n):
			of++
		case w.Home == n || w.HasAway(n):
			away++
			of++
		}
	}
	return away, of
}

// Members are the chain's nodes without its empty places, the head first.
func (w Workload) Members() []NodeID {
	return slices.DeleteFunc(slices.Clone(w.Chain), func(n NodeID) bool { return n == NoCopy })
}

// Clone is a copy that shares nothing with w.
func (w Workload) Clone() Workload {
	w.Nodes, w.Chain, w.Away = slices.Clone(w.Nodes), slices.Clone(w.Chain), maps.Clone(w.Away)
	if w.Params != nil {
		w.Params = maps.Clone(w.Params)
	}
	if w.Next != nil {
		next := *w.Next
		next.Chain, next.From = slices.Clone(next.Chain), slices.Clone(next.From)
		w.Next = &next
	}
	if w.Request != nil {
		r := *w.Request
		w.Request = &r
	}
	if w.Answer != nil {
		a := *w.Answer
		a.Copies = slices.Clone(a.Copies)
		w.Answer = &a
	}
	return w
}

// Bounds of a workload.
const (
	MaxWorkloads      = 2000
	MaxWorkloadParams = 64
	MaxWorkloadParam  = 4096 // bytes of one value
	MaxChain          = 8
	// MaxWorkloadBytes bounds what an operator says of a workload, as JSON: each order
	// to a node carries it, with what the primary adds, and those hold 63 KiB.
	MaxWorkloadBytes    = 56 << 10
	MaxWorkloadPriority = 1000
)

var workloadName = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)

// Selectors are the words by which a node is picked for a workload.
var Selectors = []string{"mem", "memprov", "load", "vcpus", "vms"}

// ValidWorkloadName reports why the name cannot be a workload's.
func ValidWorkloadName(name string) error {
	if !workloadName.MatchString(name) {
		return fmt.Errorf("%q is not a workload's name: use 1–63 small letters, digits, '-' or '_', beginning and ending with a letter or digit", name)
	}
	return nil
}

// Validate reports what is wrong with a workload in itself; what its driver and
// the cluster's nodes say of it is theirs.
func (w Workload) Validate() error {
	if err := ValidWorkloadName(w.Name); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("workload %q: "+format, append([]any{w.Name}, args...)...)
	}
	switch {
	case w.ID == "":
		return bad("it has no id")
	case w.Kind != WorkloadReplicated && w.Kind != WorkloadMovable:
		return bad("its kind is %q, not replicated or movable", w.Kind)
	case !slices.Contains(Drivers, w.Driver):
		return bad("its driver is %q, which this program does not know: use one of %s", w.Driver, joined(Drivers))
	case w.Kind == WorkloadMovable && len(w.Chain) > 1:
		return bad("its chain has %d places, a movable one's has one", len(w.Chain))
	case len(w.Chain) > MaxChain || w.Replicas < 0 || w.Replicas >= MaxChain:
		return bad("its chain may have 1–%d places", MaxChain)
	case w.Priority < 0 || w.Priority > MaxWorkloadPriority:
		return bad("its priority is %d, not 0–%d", w.Priority, MaxWorkloadPriority)
	case w.Selector != "" && !slices.Contains(Selectors, w.Selector):
		return bad("its selector is %q: use one of %s", w.Selector, strings.Join(Selectors, ", "))
	case w.Live && (w.Kind != WorkloadMovable || w.Driver != DriverOCF):
		return bad("only a movable workload of the ocf driver can be moved live")
	case w.MemoryMiB < 0 || w.VCPUs < 0:
		return bad("its memory and vcpus cannot be below zero")
	case len(w.Params) > MaxWorkloadParams:
		return bad("it has %d parameters, at most %d are kept", len(w.Params), MaxWorkloadParams)
	}
	for name, value := range w.Params {
		if name == "" || len(name) > 128 || len(value) > MaxWorkloadParam || strings.ContainsRune(name+value, 0) {
			return bad("its parameter %q is empty, too long, or has a zero byte in it", name)
		}
	}
	if next := w.Next; next != nil {
		if err := validChain(next.Chain); err != nil || len(next.Chain) == 0 {
			return bad("the chain of its move: %v", err)
		}
		if err := validChain(next.From); err != nil {
			return bad("the chain before its move: %w", err)
		}
		if next.Live != "" && (w.Kind != WorkloadMovable || next.Live != LiveMigrating && next.Live != LiveRecovering) {
			return bad("its move is %q, which a movable one's can only be as %s or %s", next.Live, LiveMigrating, LiveRecovering)
		}
	}
	if err := validChain(w.Chain); err != nil {
		return bad("its chain: %w", err)
	}
	if err := validChain(w.Nodes); err != nil || slices.Contains(w.Nodes, NoCopy) {
		return bad("its node list: %v", err)
	}
	for n, instead := range w.Away {
		if err := validChain([]NodeID{n, instead}); err != nil || n == NoCopy {
			return bad("its list of drained nodes: %v", err)
		}
	}
	return nil
}

// Fits reports that an operator says more of the workload than an order to a node can
// carry (MaxWorkloadBytes). It is no part of Validate, by which records are read: one
// that is there is not lost for that.
func (w Workload) Fits() error {
	raw, err := json.Marshal(Workload{Name: w.Name, ID: w.ID, Agent: w.Agent, Params: w.Params, Nodes: w.Nodes})
	if err != nil {
		return fmt.Errorf("workload %q: %w", w.Name, err)
	}
	if len(raw) > MaxWorkloadBytes {
		return fmt.Errorf("workload %q: its parameters and its list of nodes take %d bytes, and %d are the most that an order to a node carries: put long values into files on the nodes, and name those", w.Name, len(raw), MaxWorkloadBytes)
	}
	return nil
}

// validChain reports a chain that names a node twice, or what is no node's name.
func validChain(chain []NodeID) error {
	for i, n := range chain {
		if n == NoCopy {
			continue
		}
		if err := n.Validate(); err != nil {
			return err
		}
		if slices.Contains(chain[:i], n) {
			return fmt.Errorf("node %q stands in it twice", n)
		}
	}
	return nil
}

func joined[T ~string](list []T) string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = string(w)
	}
	return strings.Join(words, ", ")
}
