package cluster

// Liveness is how an observer judges another node by the evidence it has seen
// itself (protocol §5).
type Liveness uint8

// The judgements, from best to worst.
const (
	LiveUp       Liveness = iota + 1 // its keepalive changes as it should
	LiveLate                         // one keepalive is missing
	LiveSuspect                      // as many as fence_intervals are missing
	LiveIsolated                     // suspect, but it answers direct probes
	LiveDead                         // suspect, and its session is gone or nobody reaches it
)

// String names the judgement.
func (l Liveness) String() string {
	names := [...]string{"unknown", "up", "late", "suspect", "isolated", "dead"}
	if int(l) >= len(names) {
		return names[0]
	}
	return names[l]
}

// Down reports whether the node is anything but up.
func (l Liveness) Down() bool { return l > LiveUp }

// ProbeAnswer is what direct probes of a node by all coordinators say.
type ProbeAnswer uint8

// The answers; the zero value proves nothing either way.
const (
	ProbeUnknown  ProbeAnswer = iota // nobody has asked, or the answers are not known
	ProbeAnswered                    // at least one coordinator reaches it
	ProbeSilent                      // no coordinator reaches it
)
