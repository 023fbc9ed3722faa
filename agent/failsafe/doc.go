// Package failsafe decides how a right is kept while nobody can write to
// ZooKeeper: the primary's right to act (protocol §4, store outage) and a
// node's right to go on with its protected work (§6, self-fence). It is pure:
// Step functions take a state and an input and return the next state and
// effects; time is an argument.
//
// Two machines, one for who asks and one for who is asked:
//
//	Asker   calm ──half of the right is left──▶ asking ──every coordinator promised──▶ calm
//	                                             │ ▲└─ one refused or is missing: asked anew
//	                                             ▼ └──────────────┘
//	                                            over: the right's end has come; only a new write begins it again
//
//	Giver   free ──promised──▶ bound until receipt + d + M ──▶ free
//
// Why two never act at once (I1): let a question be sent at s. Each giver
// promises at r ≥ s that for d + M on its clock it will not take the role, and
// has no take that may still land. The asker acts until s + min d − G on its
// own clock, and only if every other coordinator has promised. So whoever takes
// it does so after r + d + M ≥ s + d + M; M covers the clocks' drift over d ≤ L,
// G the time that ending takes. A giver that restarts forgets, and so takes
// nothing for the first L + M. Who could take the role is whom the lease in the
// store names, by name and host; the asker asks all of them and whom it sees
// besides, so that a set which has shrunk or grown meanwhile costs it at most the
// role, and never gives two holders. The promise alone makes it safe; that a giver
// whose own writes are acknowledged refuses only decides that who alone is cut
// off steps down (I6: nobody else stops in an outage of the store alone).
package failsafe

import (
	"maps"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// Right is what is asked for.
type Right string

// The rights.
const (
	RightRole Right = "role" // act as primary beyond L − G after the last acknowledged renewal
	RightWork Right = "work" // go on with protected work beyond Q·K after the last acknowledged keepalive
)

// Members is the set of coordinators as one node knows it. An asker's are all
// that could take its role; who knows of one more promises nothing.
type Members struct {
	Version int64            `json:"version"` // of the record; 0 where there is none
	Nodes   []cluster.NodeID `json:"nodes"`   // in order, each once
	// IDs are the ids of the hosts that are meant (NodeRecord.ID), as far as they
	// are known: the word of another host of that name counts for nothing.
	IDs map[cluster.NodeID]string `json:"ids,omitempty"`
}

// Equal reports whether both are the same hosts at the same version.
func (m Members) Equal(other Members) bool {
	return m.Version == other.Version && slices.Equal(m.Nodes, other.Nodes) && maps.Equal(m.IDs, other.IDs)
}

// Within reports whether the other set, at the same version, has all of this one.
func (m Members) Within(other Members) bool {
	return m.Version == other.Version && !slices.ContainsFunc(m.Nodes, func(n cluster.NodeID) bool { return !slices.Contains(other.Nodes, n) })
}

// means reports whether the host with that id is the one that is meant by the name.
func (m Members) means(n cluster.NodeID, id string) bool { return m.IDs[n] == "" || m.IDs[n] == id }

// QuestionID names one question for ever: a late answer never counts for
// another question, nor for that of another start of the asker.
type QuestionID struct {
	Incarnation cluster.Incarnation `json:"incarnation"`
	Right       Right               `json:"right"`
	N           uint64              `json:"n"`
}

// Question is what an asker sends to every other coordinator at once. All
// durations are relative: no clock is compared with another host's.
type Question struct {
	ID      QuestionID     `json:"id"`
	From    cluster.NodeID `json:"from"`
	Epoch   cluster.Epoch  `json:"epoch,omitempty"` // of the role; 0 for work
	TTL     time.Duration  `json:"ttl_ns"`          // the longest promise that is of use: the record's ttl, L
	Members Members        `json:"members"`
}

// Answer is one coordinator's: a promise, or a refusal with its reason.
type Answer struct {
	ID      QuestionID          `json:"id"`
	From    cluster.NodeID      `json:"from"`
	Host    string              `json:"host,omitempty"`       // the id of the host that answers (NodeRecord.ID)
	Promise time.Duration       `json:"promise_ns,omitempty"` // from receipt on; 0: refused
	Code    cluster.RefusalCode `json:"code,omitempty"`
	Detail  string              `json:"detail,omitempty"`
}
