package cluster

import (
	"fmt"
	"net/netip"
	"regexp"
)

// NodeID is a node's name as it stands in ZooKeeper: the short host name.
type NodeID string

// NoNode is the wire value of "nobody" in /config/primary_node.
const NoNode = "none"

var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,62})$`)

// Validate reports why the name cannot be a node's: it must be a host-name
// label sequence of 1–63 characters and none of the reserved words.
func (n NodeID) Validate() error {
	if string(n) == NoNode {
		return fmt.Errorf("%q is reserved for \"nobody\" and cannot name a node", n)
	}
	if !nodeName.MatchString(string(n)) {
		return fmt.Errorf("%q is not a node name: use 1–63 letters, digits, '-', '_' or '.', beginning with a letter or digit", n)
	}
	return nil
}

// Incarnation identifies one start of one node's daemon: "<boot id>.<random>".
// A fence, a lease and an alive record name it so that none of them is ever
// mistaken for a later start's.
type Incarnation string

// Mode is what a node may become.
type Mode string

// The daemon modes.
const (
	Coordinator Mode = "coordinator"
	Hypervisor  Mode = "hypervisor"
)

// Valid reports whether m is a known mode.
func (m Mode) Valid() bool { return m == Coordinator || m == Hypervisor }

// DaemonState is the life-cycle state of a node's daemon.
type DaemonState string

// The daemon states, by their wire values.
const (
	DaemonInit     DaemonState = "init"
	DaemonRun      DaemonState = "run"
	DaemonShutdown DaemonState = "shutdown"
	DaemonStop     DaemonState = "stop"
	DaemonDead     DaemonState = "dead"
	DaemonFenced   DaemonState = "fenced"
)

// Valid reports whether s is a known daemon state.
func (s DaemonState) Valid() bool {
	switch s {
	case DaemonInit, DaemonRun, DaemonShutdown, DaemonStop, DaemonDead, DaemonFenced:
		return true
	}
	return false
}

// RouterState is a node's part in the primary role.
type RouterState string

// The router states, by their wire values.
const (
	RouterSecondary  RouterState = "secondary"
	RouterTakeover   RouterState = "takeover"
	RouterPrimary    RouterState = "primary"
	RouterRelinquish RouterState = "relinquish"
	RouterClient     RouterState = "client"
)

// Valid reports whether s is a known router state.
func (s RouterState) Valid() bool {
	switch s {
	case RouterSecondary, RouterTakeover, RouterPrimary, RouterRelinquish, RouterClient:
		return true
	}
	return false
}

// DomainState is a node's readiness for workloads.
type DomainState string

// The domain states, by their wire values.
const (
	DomainReady      DomainState = "ready"
	DomainFlush      DomainState = "flush"
	DomainFlushed    DomainState = "flushed"
	DomainUnflush    DomainState = "unflush"
	DomainFenceFlush DomainState = "fence-flush"
)

// Valid reports whether s is a known domain state.
func (s DomainState) Valid() bool {
	switch s {
	case DomainReady, DomainFlush, DomainFlushed, DomainUnflush, DomainFenceFlush:
		return true
	}
	return false
}

// Alive is the ephemeral record that a node's session keeps while it lives.
type Alive struct {
	Version     int         `json:"v"`
	Incarnation Incarnation `json:"incarnation"`
	BootID      string      `json:"boot_id"`
	Host        string      `json:"host"` // kernel host name and address, for the message that refuses a duplicate
}

// NodeRecord is what a node tells of itself at registration.
type NodeRecord struct {
	Version     int         `json:"v"`
	ID          string      `json:"id"` // random, kept in the state folder: tells a re-installed namesake apart
	Incarnation Incarnation `json:"incarnation"`
	Priority    int         `json:"priority"` // larger is preferred as primary
	API         string      `json:"api,omitempty"`
	Peer        string      `json:"peer,omitempty"`      // host:port at which it answers other nodes
	Addresses   []string    `json:"addresses,omitempty"` // floating addresses it can carry, CIDR@interface
	MACs        []string    `json:"macs,omitempty"`      // hardware addresses of the floating interfaces, so that a conflict probe knows the holder
	Fencing     string      `json:"fencing,omitempty"`   // device kind, for display only
	// LatestSchema is the newest schema that this start's program can write; 0, of
	// a program that tells nothing, counts as 1. The leaf latestschema says the
	// same to people only: it would outlive a program that was taken back.
	LatestSchema int `json:"latest_schema,omitempty"`
	// Watchdog is this start's word on its watchdog; nil: there is none to count on.
	Watchdog *WatchdogWord `json:"watchdog,omitempty"`
	// Settling says that this start's copies of workloads are ending, since the whole
	// node is being stopped: it is given none any more. Nothing is moved off it by
	// that, and it lives: it is fenced as any other. A program that tells nothing of
	// it does not settle.
	Settling bool `json:"settling,omitempty"`
}

// FloatingAddress is an address that the primary, and nobody else, answers for.
type FloatingAddress struct {
	Name      string       `json:"name"`
	Prefix    netip.Prefix `json:"prefix"`
	Interface string       `json:"interface"`
}

// String renders the address as "name=cidr@interface".
func (a FloatingAddress) String() string {
	return fmt.Sprintf("%s=%s@%s", a.Name, a.Prefix, a.Interface)
}
