package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// NodeLeaseID names one acquirer of node leases (protocol §7): the leader, one
// start of it, and the epoch of its role. Two with the same epoch and different
// starts are different holders.
type NodeLeaseID struct {
	Holder NodeID `json:"holder"`
	Start  string `json:"start"` // random, new with each acquirer that begins
	Epoch  Epoch  `json:"epoch"`
}

// IsZero reports whether the id names nobody.
func (id NodeLeaseID) IsZero() bool { return id == NodeLeaseID{} }

// Valid returns nil for an id that may ask for a lease, else what is wrong with it.
func (id NodeLeaseID) Valid() error {
	switch {
	case id.Holder == "" || len(id.Holder) > maxLeaseName:
		return fmt.Errorf("the lease's holder %.32q is no node's name", id.Holder)
	case id.Start == "" || len(id.Start) > maxLeaseName:
		return fmt.Errorf("the start %.32q of the lease's holder is none", id.Start)
	case id.Epoch < 1 || id.Epoch > MaxEpoch:
		return fmt.Errorf("the epoch %d of the lease's holder is not between 1 and %d", id.Epoch, MaxEpoch)
	}
	return nil
}

// String renders the id for people.
func (id NodeLeaseID) String() string {
	if id.IsZero() {
		return "nobody"
	}
	return fmt.Sprintf("%s (epoch %d, start %.8s)", id.Holder, id.Epoch, id.Start)
}

// The kinds of questions between nodes about leases.
const (
	// NodeLeaseQuestion carries a NodeLeaseRequest to the node whose lease is
	// meant, and a NodeLeaseAnswer back.
	NodeLeaseQuestion = "node-lease"
	// NodeLeaseFree carries a NodeLeaseNotice to who was refused: ask again now.
	// It is a hint, and its answer is empty.
	NodeLeaseFree = "node-lease-free"
)

// NodeLeaseOp is what is asked of a node.
type NodeLeaseOp string

// The questions.
const (
	LeaseGrant   NodeLeaseOp = "grant"   // serve me, or go on
	LeaseExtend  NodeLeaseOp = "extend"  // go on; lease_lost where it was interrupted
	LeaseAbolish NodeLeaseOp = "abolish" // I am done
)

// The refusals of node leases. Those that Revokes names end the asker's belief
// that it holds the node's lease.
const (
	RefuseLeaseAcquired  RefusalCode = "already_acquired"    // another holder is served, or its work is being ended
	RefuseLeaseLost      RefusalCode = "lease_lost"          // the asker's own lease has ended
	RefuseLeaseMember    RefusalCode = "not_in_cluster"      // the asker, or the node asked, is no member
	RefuseLeaseStale     RefusalCode = "stale_epoch"         // a newer epoch was seen, or this one at another node
	RefuseLeaseStopping  RefusalCode = "not_serving"         // the node's daemon starts or stops
	RefuseLeaseNotKept   RefusalCode = "lease_not_persisted" // the node could not write it down
	RefuseLeaseReplayed  RefusalCode = "replayed"            // a later question of the same holder was answered
	RefuseLeaseBusy      RefusalCode = "busy"                // too many of its questions wait for the disk
	RefuseLeaseMalformed RefusalCode = "malformed"           // the question makes no sense here
)

// Revokes reports whether a refusal says that the node does not serve the asker
// any more, so that the asker's belief ends at once.
func (c RefusalCode) Revokes() bool {
	switch c {
	case RefuseLeaseAcquired, RefuseLeaseLost, RefuseLeaseMember, RefuseLeaseStale:
		return true
	}
	return false
}

// Bounds of what nodes tell each other about leases.
const (
	nodeLeaseVersion = 1
	maxLeaseName     = 253
	maxLeaseText     = 1000
	maxLeaseBytes    = 16 << 10
	// MaxNodeLeaseWait is the longest lease, and the longest wait, that is believed.
	MaxNodeLeaseWait = 10 * time.Minute
	maxLeaseHeld     = 100 * 365 * 24 * time.Hour
)

// NodeLeaseRequest is one question of a leader to a node. N grows with each
// question of one start of the leader to that node: a late copy of an earlier
// one does nothing.
type NodeLeaseRequest struct {
	V  int         `json:"v"`
	Op NodeLeaseOp `json:"op"`
	ID NodeLeaseID `json:"id"`
	N  uint64      `json:"n"`
}

// Valid returns nil for a question that makes sense, else what does not.
func (r NodeLeaseRequest) Valid() error {
	switch r.Op {
	case LeaseGrant, LeaseExtend, LeaseAbolish:
	default:
		return fmt.Errorf("the lease question %.32q is not known here: update this node's daemon, or the asker's", r.Op)
	}
	if r.N == 0 {
		return fmt.Errorf("the lease question has no number")
	}
	return r.ID.Valid()
}

// NodeLeaseAnswer is a node's answer. Durations count on the node's own clock
// and are differences only; no clock is compared with another host's.
type NodeLeaseAnswer struct {
	V int    `json:"v"`
	N uint64 `json:"n"` // the question's
	// Code is empty for yes.
	Code   RefusalCode `json:"code,omitempty"`
	Detail string      `json:"detail,omitempty"` // for people
	// Left is, with a yes, how long the lease lasts from the question's arrival
	// at most; with a refusal, when to ask again (0: not known).
	Left time.Duration `json:"left_ns"`
	// Chain names an unbroken time of service in one start of the node's daemon,
	// and Held how far into it the question arrived: two answers of one chain
	// tell what time lay between them at the node.
	Chain string        `json:"chain,omitempty"`
	Held  time.Duration `json:"held_ns,omitempty"`
	// Epoch is the largest that the node has seen.
	Epoch Epoch `json:"epoch,omitempty"`
}

// Valid returns nil for an answer within its bounds, else what is out of them.
func (a NodeLeaseAnswer) Valid() error {
	switch {
	case a.N == 0:
		return fmt.Errorf("the lease answer has no number")
	case a.Left < 0 || a.Left > MaxNodeLeaseWait:
		return fmt.Errorf("the lease answer tells of %s, which is not between 0 and %s", a.Left, MaxNodeLeaseWait)
	case a.Held < 0 || a.Held > maxLeaseHeld:
		return fmt.Errorf("the lease answer's time of service %s is not believable", a.Held)
	case len(a.Chain) > maxLeaseName || len(a.Detail) > maxLeaseText || len(a.Code) > maxLeaseName:
		return fmt.Errorf("the lease answer has a text that is too long")
	case a.Epoch > MaxEpoch:
		return fmt.Errorf("the lease answer's epoch %d is not between 0 and %d", a.Epoch, MaxEpoch)
	}
	return nil
}

// NodeLeaseNotice tells a leader that was refused that the node serves nobody now.
type NodeLeaseNotice struct {
	V  int         `json:"v"`
	To NodeLeaseID `json:"to"`
}

// EncodeNodeLeaseRequest renders a question; its version is filled in.
func EncodeNodeLeaseRequest(r NodeLeaseRequest) ([]byte, error) {
	r.V = nodeLeaseVersion
	if err := r.Valid(); err != nil {
		return nil, err
	}
	return json.Marshal(r)
}

// DecodeNodeLeaseRequest reads a question. The error says what is wrong with it
// and never contains more than a few bytes of it.
func DecodeNodeLeaseRequest(body []byte) (NodeLeaseRequest, error) {
	var r NodeLeaseRequest
	if err := decodeLease(body, &r, &r.V); err != nil {
		return NodeLeaseRequest{}, err
	}
	if err := r.Valid(); err != nil {
		return NodeLeaseRequest{}, err
	}
	return r, nil
}

// EncodeNodeLeaseAnswer renders an answer; its version is filled in, and its
// detail cut where it is too long.
func EncodeNodeLeaseAnswer(a NodeLeaseAnswer) ([]byte, error) {
	a.V = nodeLeaseVersion
	a.Detail = a.Detail[:min(len(a.Detail), maxLeaseText)]
	if err := a.Valid(); err != nil {
		return nil, err
	}
	return json.Marshal(a)
}

// DecodeNodeLeaseAnswer reads an answer.
func DecodeNodeLeaseAnswer(body []byte) (NodeLeaseAnswer, error) {
	var a NodeLeaseAnswer
	if err := decodeLease(body, &a, &a.V); err != nil {
		return NodeLeaseAnswer{}, err
	}
	if err := a.Valid(); err != nil {
		return NodeLeaseAnswer{}, err
	}
	return a, nil
}

// EncodeNodeLeaseNotice renders a notice; its version is filled in.
func EncodeNodeLeaseNotice(n NodeLeaseNotice) ([]byte, error) {
	n.V = nodeLeaseVersion
	if err := n.To.Valid(); err != nil {
		return nil, err
	}
	return json.Marshal(n)
}

// DecodeNodeLeaseNotice reads a notice.
func DecodeNodeLeaseNotice(body []byte) (NodeLeaseNotice, error) {
	var n NodeLeaseNotice
	if err := decodeLease(body, &n, &n.V); err != nil {
		return NodeLeaseNotice{}, err
	}
	if err := n.To.Valid(); err != nil {
		return NodeLeaseNotice{}, err
	}
	return n, nil
}

// decodeLease reads one JSON object of the version that this program speaks.
// Keys that are not known are a newer program's and do not matter.
func decodeLease(body []byte, into any, version *int) error {
	if len(body) > maxLeaseBytes {
		return fmt.Errorf("a lease message of %d bytes is longer than %d", len(body), maxLeaseBytes)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) {
		return fmt.Errorf("a lease message is a JSON object, not %.16q", body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read lease message: %w", err)
	}
	if *version != nodeLeaseVersion {
		return fmt.Errorf("a lease message of version %d is not understood (this program speaks %d): run one version on all nodes", *version, nodeLeaseVersion)
	}
	return nil
}
