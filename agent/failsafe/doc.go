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
// nothing for the first L + M. The promise alone makes it safe; that a giver
// whose own writes are acknowledged refuses only decides that who alone is cut
// off steps down (I6: nobody else stops in an outage of the store alone).
package failsafe

import (
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

// Members is the set of coordinators as one node knows it: no promise is asked
// or given between nodes that count differently.
type Members struct {
	Version int64            `json:"version"` // of the record; 0 where there is none
	Nodes   []cluster.NodeID `json:"nodes"`   // in order, each once
}

// Equal reports whether both are the same set at the same version.
func (m Members) Equal(other Members) bool {
	return m.Version == other.Version && slices.Equal(m.Nodes, other.Nodes)
}

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
	Promise time.Duration       `json:"promise_ns,omitempty"` // from receipt on; 0: refused
	Code    cluster.RefusalCode `json:"code,omitempty"`
	Detail  string              `json:"detail,omitempty"`
}
