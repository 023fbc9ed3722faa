package api

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// LeasesView is who holds the node leases, as the primary published it.
type LeasesView struct {
	InUse bool `json:"in_use"`
	// Doubt says why what follows is missing or may be out of date; empty: nothing
	// speaks against it.
	Doubt  string              `json:"doubt,omitempty"`
	Holder cluster.NodeID      `json:"holder,omitempty"`
	Lease  cluster.NodeLeaseID `json:"lease"` // under which the holder asks
	// AgeSeconds is how old the record is; the figures are written each ten
	// seconds, a change at once.
	AgeSeconds float64          `json:"age_s"`
	Period     float64          `json:"period_s"` // of a lease from its last renewal
	Set        []cluster.NodeID `json:"quorum_set"`
	Majority   bool             `json:"majority"` // of the set is held
	Nodes      []NodeLeaseView  `json:"nodes"`
}

// NodeLeaseView is the lease of one node.
type NodeLeaseView struct {
	Node   cluster.NodeID `json:"node"`
	State  string         `json:"state"`            // held, asking, refused, or unknown
	Holder cluster.NodeID `json:"holder,omitempty"` // where it is held
	// LeftSeconds is how long it lasted from the record's write without another
	// renewal; UntilMS is that instant, unix milliseconds by the holder's clock.
	LeftSeconds float64             `json:"left_s"`
	UntilMS     int64               `json:"until_unix_ms,omitempty"`
	SinceMS     int64               `json:"since_unix_ms,omitempty"` // in this state
	RTT         RoundTripView       `json:"rtt_ms"`
	Code        cluster.RefusalCode `json:"code,omitempty"` // why it is not held
	Detail      string              `json:"detail,omitempty"`
	Counts      bool                `json:"counts"` // it is in the quorum set
}

// RoundTripView are times from a question to its answer, milliseconds; 0: none yet.
type RoundTripView struct {
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Last   float64 `json:"last"`
}

func leaseRoute() route {
	return route{method: get, path: "/leases", summary: "Who holds each node's lease, until when, the round-trip time, and why not",
		handle: (*Server).getLeases, reply: LeasesView{}}
}

func (s *Server) getLeases(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		if st.away > 0 {
			return newLeasesView("the records cannot be read while ZooKeeper is away"), nil
		}
		text, err := s.deps.Texts.ReadText(r.ctx, cluster.Key{Kind: cluster.KeyNodeLeases})
		switch {
		case err != nil:
			return nil, fmt.Errorf("read the node leases: %w", err)
		case !text.Present:
			return newLeasesView("no primary has published node leases yet: they need nodes that talk directly (peer in pvcnoded.yaml)"), nil
		}
		var record cluster.NodeLeases
		if err := json.Unmarshal([]byte(text.Value), &record); err != nil {
			return newLeasesView(fmt.Sprintf("the record of node leases cannot be read (%v); the primary writes it anew", err)), nil
		}
		return st.leases(record, time.Now()), nil
	})
}

func newLeasesView(doubt string) LeasesView {
	return LeasesView{Doubt: doubt, Set: []cluster.NodeID{}, Nodes: []NodeLeaseView{}}
}

// staleRecord is the age from which the record says nothing about now: the
// figures are written each ten seconds.
const staleRecord = 30 * time.Second

// leases renders the record beside what is registered.
func (st state) leases(record cluster.NodeLeases, now time.Time) LeasesView {
	v := newLeasesView("")
	age := max(0, now.Sub(time.UnixMilli(record.UnixMS)))
	v.InUse, v.AgeSeconds, v.Period = true, age.Seconds(), float64(record.PeriodMS)/1000
	v.Holder, v.Lease, v.Majority = record.Lease.Holder, record.Lease, record.Majority
	if len(record.Set) > 0 {
		v.Set = record.Set
	}
	lease := st.snap.Lease
	switch {
	case !lease.Present || lease.Err != nil || lease.Value.Released():
		v.Doubt = fmt.Sprintf("nobody holds the primary role now; this is what %s published", v.Holder)
	case (lease.Value.Holder != v.Holder || lease.Value.Epoch != record.Lease.Epoch) && age > staleRecord:
		v.InUse = false
		v.Doubt = fmt.Sprintf("%s, the primary, publishes none: they are switched off there (node_leases in its pvcnoded.yaml, or no peer)", lease.Value.Holder)
	case lease.Value.Holder != v.Holder || lease.Value.Epoch != record.Lease.Epoch:
		v.Doubt = fmt.Sprintf("%s is primary now and has published nothing yet; this is of %s", lease.Value.Holder, record.Lease)
	case age > staleRecord:
		v.Doubt = fmt.Sprintf("published %s ago: %s does not write its keepalives, or its clock is wrong", age.Round(time.Second), v.Holder)
	}
	for _, n := range st.names() {
		v.Nodes = append(v.Nodes, nodeLease(n, record))
	}
	return v
}

func nodeLease(n cluster.NodeID, record cluster.NodeLeases) NodeLeaseView {
	seen, told := record.Nodes[n]
	v := NodeLeaseView{Node: n, State: seen.State, SinceMS: seen.SinceMS, Code: seen.Code, Detail: seen.Detail, RTT: RoundTripView{
		Median: float64(seen.RTT.Median) / 1000, P99: float64(seen.RTT.P99) / 1000, Last: float64(seen.RTT.Last) / 1000,
	}}
	for _, member := range record.Set {
		v.Counts = v.Counts || member == n
	}
	switch {
	case !told:
		v.State = "unknown"
	case seen.State == cluster.LeaseSeenHeld:
		v.Holder, v.LeftSeconds, v.UntilMS = record.Lease.Holder, float64(seen.LeftMS)/1000, record.UnixMS+seen.LeftMS
	}
	return v
}

// Leases returns who holds the node leases.
func (c *Client) Leases(ctx context.Context) (LeasesView, error) {
	return fetch[LeasesView](ctx, c, get, "/leases", nil)
}
