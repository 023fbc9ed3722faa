package cluster

import "fmt"

// ReprovisionSettings are auto-reprovision's settings and what it has spent:
// where an ephemeral workload's head came back empty and another of its chain
// still has a copy, that one is promoted, on MaxNodes nodes at most before
// somebody has looked.
type ReprovisionSettings struct {
	Version  int  `json:"v"`
	Enabled  bool `json:"enabled"`
	MaxNodes int  `json:"max_nodes"` // 1–100
	// Count is how many nodes were reprovisioned since the last reset. At MaxNodes
	// it does nothing more.
	Count int `json:"count"`
	// Pass names the pass that has raised Count last, so that an unknown reply is
	// never counted twice.
	Pass string `json:"pass,omitempty"`
	// Nodes are those that were reprovisioned since the last reset.
	Nodes []NodeID `json:"nodes,omitempty"`
	// Reset is an operator's reset that the primary has not carried out yet: its id.
	Reset string `json:"reset,omitempty"`
	// Done is the id of the newest reset that was.
	Done string `json:"done,omitempty"`
}

// DefaultReprovisionSettings is what holds while the record is absent.
func DefaultReprovisionSettings() ReprovisionSettings {
	return ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 1}
}

// Armed reports whether an empty head keeps its workload offline.
func (s ReprovisionSettings) Armed() bool { return s.Enabled && s.Count < s.MaxNodes }

// Validate reports what is wrong with the settings.
func (s ReprovisionSettings) Validate() error {
	if s.MaxNodes < 1 || s.MaxNodes > 100 {
		return fmt.Errorf("max_nodes is %d, not 1–100", s.MaxNodes)
	}
	if s.Count < 0 || s.Count > 1<<20 {
		return fmt.Errorf("count is %d, not 0 or more", s.Count)
	}
	return nil
}

// Rebalance is the newest rebalance that an operator has ordered.
type Rebalance struct {
	Version int    `json:"v"`
	ID      string `json:"id"`
	By      string `json:"by,omitempty"`
	AtMS    int64  `json:"at_ms"`
	// State is ordered, running, done, failed or stopped.
	State string `json:"state"`
	Done  int    `json:"done"`           // moves that are finished
	Total int    `json:"total"`          // of all that were found necessary
	Text  string `json:"text,omitempty"` // why it failed, or what it could not do
	Epoch Epoch  `json:"epoch,omitempty"`
	// Stop: an operator has asked to stop it.
	Stop bool `json:"stop,omitempty"`
}

// The states of a rebalance.
const (
	RebalanceOrdered = "ordered"
	RebalanceRunning = "running"
	RebalanceDone    = "done"
	RebalanceFailed  = "failed"
	RebalanceStopped = "stopped"
)

// Ended reports whether nothing more happens to it.
func (r Rebalance) Ended() bool {
	return r.State == RebalanceDone || r.State == RebalanceFailed || r.State == RebalanceStopped
}
