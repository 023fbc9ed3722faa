package cluster

// Event is an entry of the cluster's history: what happened, by whom, why.
type Event struct {
	Version int               `json:"v"`
	UnixMS  int64             `json:"unix_ms"`
	Node    NodeID            `json:"node"` // who writes it
	Kind    string            `json:"kind"` // transition, fence, refusal, lock_broken, …
	Text    string            `json:"text"`
	Fields  map[string]string `json:"fields,omitempty"`
}
