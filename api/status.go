package api

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// Status is the cluster's health and counts, a superset that older and newer
// clients of PVC can read.
type Status struct {
	Maintenance      string                `json:"maintenance"` // "true" or "false"
	PrimaryNode      string                `json:"primary_node"`
	UpstreamIP       string                `json:"upstream_ip"`
	PVCVersion       string                `json:"pvc_version"`
	ClusterName      string                `json:"cluster_name"`
	Health           string                `json:"health"` // Optimal, Degraded, Maintenance
	HealthMsg        []string              `json:"health_msg"`
	StorageHealth    string                `json:"storage_health"`
	StorageHealthMsg []string              `json:"storage_health_msg"`
	ClusterHealth    ClusterHealth         `json:"cluster_health"`
	NodeHealth       map[string]NodeHealth `json:"node_health"`
	Nodes            map[string]int        `json:"nodes"` // total, and "<daemon>,<domain>"
	VMs              map[string]int        `json:"vms"`
	OSDs             map[string]int        `json:"osds"`
	Networks         int                   `json:"networks"`
	Pools            int                   `json:"pools"`
	Volumes          int                   `json:"volumes"`
	Snapshots        int                   `json:"snapshots"`
	Resources        Resources             `json:"resources"`
}

// ClusterHealth is 100 less what each message costs.
type ClusterHealth struct {
	Health   int             `json:"health"` // 0–100
	Messages []HealthMessage `json:"messages"`
}

// HealthMessage is one thing that is not as it should be.
type HealthMessage struct {
	ID          string `json:"id"`
	HealthDelta int    `json:"health_delta"`
	Text        string `json:"text"`
}

// NodeHealth is a node's own health with its plugins' complaints.
type NodeHealth struct {
	Health   any      `json:"health"` // 0–100, or "N/A"
	Messages []string `json:"messages"`
}

// Resources are sums over the nodes; utilization is in per cent.
type Resources struct {
	Memory MemoryResources `json:"memory"`
	CPU    CPUResources    `json:"cpu"`
	Disk   DiskResources   `json:"disk"`
}

// MemoryResources are in MiB.
type MemoryResources struct {
	Total       int     `json:"total"`
	Free        int     `json:"free"`
	Used        int     `json:"used"`
	Allocated   int     `json:"allocated"`
	Provisioned int     `json:"provisioned"`
	Utilization float64 `json:"utilization"`
}

// CPUResources count processors and load.
type CPUResources struct {
	Total       int     `json:"total"`
	Load        float64 `json:"load"`
	Allocated   int     `json:"allocated"`
	Utilization float64 `json:"utilization"`
}

// DiskResources are 0 until there is a storage collector.
type DiskResources struct {
	Total       int     `json:"total"`
	Used        int     `json:"used"`
	Free        int     `json:"free"`
	Utilization float64 `json:"utilization"`
}

func (s *Server) getStatus(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		all, err := s.rendered(r.ctx, st)
		if err != nil {
			return nil, err
		}
		status, err := all.status()
		if err != nil {
			return nil, fmt.Errorf("encode the status: %w", err)
		}
		return status, nil
	})
}

func statusFrom(st state, nodes []Node, words []NodeWord, tests []DeviceTest) Status {
	out := Status{Maintenance: fmt.Sprint(st.snap.Maintenance.Value), PrimaryNode: cluster.NoNode,
		UpstreamIP: cluster.NoNode, ClusterName: st.snap.ClusterName.Value,
		HealthMsg: []string{}, StorageHealth: "N/A", StorageHealthMsg: []string{},
		NodeHealth: map[string]NodeHealth{}, Nodes: map[string]int{"total": len(nodes)},
		VMs: workloadCounts(st, nodes), OSDs: map[string]int{"total": 0}}
	if h := st.holder(); h != "" {
		out.PrimaryNode = string(h)
	}
	for _, n := range nodes {
		out.Nodes[n.DaemonState+","+n.DomainState]++
		out.NodeHealth[n.Name] = nodeHealth(n)
		out.Resources.add(n)
	}
	out.Resources.conclude()
	out.ClusterHealth = clusterHealth(st, nodes, words, tests)
	out.Health = "Optimal"
	for _, m := range out.ClusterHealth.Messages {
		out.Health = "Degraded"
		out.HealthMsg = append(out.HealthMsg, m.Text)
	}
	if st.snap.Maintenance.Value {
		out.Health = "Maintenance"
	}
	return out
}

func nodeHealth(n Node) NodeHealth {
	h := NodeHealth{Health: n.Health, Messages: []string{}}
	for _, d := range n.HealthDetails {
		if d.HealthDelta > 0 {
			h.Messages = append(h.Messages, fmt.Sprintf("%s: %s", d.Name, d.Message))
		}
	}
	return h
}

// What a fault of each kind takes from the cluster's health.
const (
	deltaNodeDown  = 50
	deltaNodeAway  = 10 // stopping, starting: on purpose, and passing
	deltaNoPrimary = 25
	deltaRubbish   = 10
	deltaService   = 25
	deltaGuard     = 10
	deltaFault     = 10 // of what a node publishes against its own health
	deltaDevice    = 10 // a fence device that could not be used now
	deltaWorkload  = 10 // one that should run and does not come up by itself, or lacks copies
)

func clusterHealth(st state, nodes []Node, words []NodeWord, tests []DeviceTest) ClusterHealth {
	h := ClusterHealth{Health: 100, Messages: []HealthMessage{}}
	add := func(id string, delta int, format string, more ...any) {
		h.Health = max(0, h.Health-delta)
		h.Messages = append(h.Messages, HealthMessage{id, delta, fmt.Sprintf(format, more...)})
	}
	if st.holder() == "" {
		add("PRIMARY_NONE", deltaNoPrimary, "nobody holds the primary role")
	}
	for _, d := range st.damaged() {
		add("RECORD_"+d.id, deltaRubbish, "%s", d)
	}
	for _, w := range words {
		if !w.current() {
			continue // of the past
		}
		if v := w.View; v.ServiceFault != "" {
			add("SERVICE_"+string(w.Node), deltaService, "%s", serviceTrouble(w.Node, v.ServiceFault))
		}
		for i, fault := range w.View.GuardFaults {
			add(fmt.Sprintf("GUARD_%s_%d", w.Node, i+1), deltaGuard, "node %s: its guard complains: %s", w.Node, fault)
		}
		for i, fault := range w.View.Faults {
			add(fmt.Sprintf("NODE_FAULT_%s_%d", w.Node, i+1), deltaFault, "node %s: %s", w.Node, fault)
		}
	}
	for _, d := range tests {
		if d.Fault != "" && !h.tells(d.Detail) {
			add("FENCE_DEVICE_"+string(d.Node)+"_"+d.Device, deltaDevice, "%s", deviceTrouble(d))
		}
	}
	for _, name := range st.workloads() {
		if text := workloadTrouble(name, st.snap.Workloads[name]); text != "" {
			add("WORKLOAD_"+name, deltaWorkload, "%s", text)
		}
	}
	for _, n := range nodes {
		switch cluster.DaemonState(n.DaemonState) {
		case cluster.DaemonRun:
			if !st.snap.Nodes[cluster.NodeID(n.Name)].Alive.Present {
				add("NODE_SILENT_"+n.Name, deltaNodeDown, "node %s says %q but has no live session", n.Name, n.DaemonState)
			}
		case cluster.DaemonDead, cluster.DaemonFenced:
			add("NODE_DOWN_"+n.Name, deltaNodeDown, "node %s is %s", n.Name, n.DaemonState)
		default:
			add("NODE_AWAY_"+n.Name, deltaNodeAway, "node %s is in state %q", n.Name, n.DaemonState)
		}
		for _, fault := range n.Faults {
			add("NODE_RECORD_"+n.Name, deltaRubbish, "node %s: %s", n.Name, fault)
		}
		for _, d := range n.HealthDetails {
			if d.HealthDelta > 0 {
				add("NODE_PLUGIN_"+n.Name+"_"+d.Name, d.HealthDelta, "node %s: %s: %s", n.Name, d.Name, d.Message)
			}
		}
	}
	return h
}

// tells reports whether the detail is among the messages already: the primary
// publishes what it has found itself as faults of its own, too.
func (h ClusterHealth) tells(detail string) bool {
	detail = strings.TrimSpace(detail)
	return detail != "" && slices.ContainsFunc(h.Messages, func(m HealthMessage) bool { return strings.Contains(m.Text, detail) })
}

// deviceTrouble says that a fence device could not be used now, and whose power
// it switches.
func deviceTrouble(d DeviceTest) string {
	return fmt.Sprintf("fence device %s of node %s, as node %s last tested it: %s. `pvc fence test %s --wait` tests it anew",
		d.Device, d.Node, d.By, strings.TrimSuffix(d.Finding(), "."), d.Node)
}

// serviceTrouble says that a primary-only service fails on the node that holds
// the role, and what the operator does.
func serviceTrouble(n cluster.NodeID, fault string) string {
	return fmt.Sprintf("node %s holds the primary role and lacks a primary-only service: %s. It is started again and again. "+
		"`journalctl -u pvc-guard -u pvcnoded` on %s says what the service printed; repair it there, or move the role: `pvc node secondary %s --wait`",
		n, fault, n, n)
}

func (r *Resources) add(n Node) {
	r.Memory.Total += n.Memory.Total
	r.Memory.Free += n.Memory.Free
	r.Memory.Used += n.Memory.Used
	r.Memory.Allocated += n.Memory.Allocated
	r.Memory.Provisioned += n.Memory.Provisioned
	r.CPU.Total += n.CPUCount
	r.CPU.Load += n.Load
	r.CPU.Allocated += n.VCPU.Allocated
}

func (r *Resources) conclude() {
	r.Memory.Utilization = percent(float64(r.Memory.Used), r.Memory.Total)
	r.CPU.Utilization = percent(r.CPU.Load, r.CPU.Total)
}

// percent is rounded to two decimals; of nothing it is 0.
func percent(part float64, whole int) float64 {
	if whole == 0 {
		return 0
	}
	return math.Round(part/float64(whole)*10000) / 100
}
