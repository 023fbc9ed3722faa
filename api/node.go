package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"pvc.internal/cluster"
)

// Node is a node as PVC's clients know it. Numbers that a node has not
// published, or that cannot be read, are 0, and Faults (an addition of ours)
// names them: one broken node never fails a list.
type Node struct {
	Name             string              `json:"name"`
	DaemonState      string              `json:"daemon_state"`
	CoordinatorState string              `json:"coordinator_state"`
	DomainState      string              `json:"domain_state"`
	PVCVersion       string              `json:"pvc_version"`
	CPUCount         int                 `json:"cpu_count"`
	Kernel           string              `json:"kernel"`
	OS               string              `json:"os"`
	Arch             string              `json:"arch"`
	Health           any                 `json:"health"` // 0–100, or "N/A"
	HealthPlugins    []string            `json:"health_plugins"`
	HealthDetails    []HealthDetail      `json:"health_details"`
	Load             float64             `json:"load"`
	DomainsCount     int                 `json:"domains_count"`
	RunningDomains   []string            `json:"running_domains"`
	VCPU             NodeVCPU            `json:"vcpu"`
	Memory           NodeMemory          `json:"memory"`
	Interfaces       map[string]struct{} `json:"interfaces"`
	Faults           []string            `json:"faults,omitempty"`
	// Settling (an addition of ours): its daemon runs, and ends all copies of
	// workloads here, since the node is being stopped. It is given none any more.
	Settling bool `json:"settling,omitempty"`
}

// HealthDetail is a monitoring plugin's last result.
type HealthDetail struct {
	Name        string `json:"name"`
	LastRun     int64  `json:"last_run"` // unix seconds; 0 never
	HealthDelta int    `json:"health_delta"`
	Message     string `json:"message"`
	Data        any    `json:"data"`
}

// NodeVCPU counts virtual processors.
type NodeVCPU struct {
	Total     int `json:"total"`
	Allocated int `json:"allocated"`
}

// NodeMemory is memory in MiB.
type NodeMemory struct {
	Total       int `json:"total"`
	Allocated   int `json:"allocated"`
	Provisioned int `json:"provisioned"`
	Used        int `json:"used"`
	Free        int `json:"free"`
}

// NodeDaemonState is the answer of /node/<n>/daemon-state.
type NodeDaemonState struct {
	Name        string `json:"name"`
	DaemonState string `json:"daemon_state"`
}

// NodeCoordinatorState is the answer of /node/<n>/coordinator-state.
type NodeCoordinatorState struct {
	Name             string `json:"name"`
	CoordinatorState string `json:"coordinator_state"`
}

// NodeDomainState is the answer of /node/<n>/domain-state.
type NodeDomainState struct {
	Name        string `json:"name"`
	DomainState string `json:"domain_state"`
}

// NodeLog is a node's newest log lines, oldest of them first.
type NodeLog struct {
	Name string `json:"name"`
	Data string `json:"data"`
}

func nodeNotFound() *failure { return refuse(http.StatusNotFound, "Node not found.") }

func (s *Server) getNodes(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		all, err := s.rendered(r.ctx, st)
		if err != nil {
			return nil, err
		}
		if len(r.args) == 0 && len(all.nodes) > 0 {
			return all.list, nil
		}
		limit := regexp.MustCompile(r.args.text("limit")) // checked by the table
		var chosen [][]byte
		for i, n := range all.nodes {
			if limit.MatchString(n.Name) && matches(n, r.args) {
				chosen = append(chosen, all.each[i])
			}
		}
		if len(chosen) == 0 {
			return nil, nodeNotFound()
		}
		return listOf(chosen), nil
	})
}

// matches reports whether the node passes every filter given.
func matches(n Node, a args) bool {
	return (!a.has("daemon_state") || a.text("daemon_state") == n.DaemonState) &&
		(!a.has("coordinator_state") || a.text("coordinator_state") == n.CoordinatorState) &&
		(!a.has("domain_state") || a.text("domain_state") == n.DomainState)
}

// getNode reads the figures of the one node only.
func (s *Server) getNode(r *request) (answer, error) {
	return s.withNode(r, func(st state, n cluster.NodeView) any {
		ctx, cancel := patiently(r.ctx)
		defer cancel()
		f := s.figuresOf(ctx, st, n, false)
		return renderNode(n, f.leaves, f.err)
	})
}

func (s *Server) getDaemonState(r *request) (answer, error) {
	return s.withNode(r, func(_ state, n cluster.NodeView) any {
		return NodeDaemonState{string(n.Name), string(n.Daemon.Value)}
	})
}

func (s *Server) getCoordinatorState(r *request) (answer, error) {
	return s.withNode(r, func(_ state, n cluster.NodeView) any {
		return NodeCoordinatorState{string(n.Name), string(n.Router.Value)}
	})
}

func (s *Server) getDomainState(r *request) (answer, error) {
	return s.withNode(r, func(_ state, n cluster.NodeView) any {
		return NodeDomainState{string(n.Name), string(n.Domain.Value)}
	})
}

func (s *Server) withNode(r *request, render func(state, cluster.NodeView) any) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		n, known := st.snap.Nodes[r.node()]
		if !known {
			return nil, nodeNotFound()
		}
		return render(st, n), nil
	})
}

func (s *Server) getNodeLog(r *request) (answer, error) {
	if _, err := s.withNode(r, func(state, cluster.NodeView) any { return nil }); err != nil {
		return answer{}, err
	}
	text, err := s.deps.Texts.ReadText(r.ctx, cluster.Key{Kind: cluster.KeyLog, Node: r.node()})
	if err != nil {
		return answer{}, fmt.Errorf("read the log of %s: %w", r.node(), err)
	}
	return ok(NodeLog{string(r.node()), newestLines(text.Value, r.args.number("lines", 10))})
}

func newestLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// nodeReaders bounds the nodes whose records are read at once for one answer.
const nodeReaders = 8

// settles reports whether the node runs, and its copies are ending.
func settles(n cluster.NodeView) bool { return n.Daemon.Value == cluster.DaemonRun && n.Settles() }

// settlingText says what that means.
const settlingText = "it is being stopped: its copies of workloads are ending, and none is given to it any more"

// renderNode makes a node's answer. One whose leaves cannot be read has its
// states all the same, zeros, and a fault.
func renderNode(n cluster.NodeView, leaves map[string]string, readErr error) Node {
	f := &fields{leaves: leaves, read: readErr == nil}
	if readErr != nil {
		f.faults = append(f.faults, "details: "+readErr.Error())
	}
	static := strings.Fields(leaves["staticdata"])
	for len(static) < 4 {
		static = append(static, "")
	}
	f.expect("staticdata")
	node := Node{
		Name: string(n.Name), DaemonState: string(n.Daemon.Value), Settling: settles(n),
		CoordinatorState: string(n.Router.Value), DomainState: string(n.Domain.Value),
		PVCVersion: leaves["pvcversion"], Kernel: static[1], OS: static[2], Arch: static[3],
		CPUCount: f.parse("staticdata", static[0]),
		Load:     f.decimal("cpuload"), DomainsCount: f.integer("domainscount"),
		RunningDomains: list(leaves["runningdomains"]),
		Memory: NodeMemory{Total: f.integer("memtotal"), Allocated: f.integer("memalloc"),
			Provisioned: f.integer("memprov"), Used: f.integer("memused"), Free: f.integer("memfree")},
		Health: "N/A", HealthPlugins: list(leaves["monitoring_plugins"]),
		Interfaces: map[string]struct{}{},
	}
	node.VCPU = NodeVCPU{Total: node.CPUCount, Allocated: f.integer("vcpualloc")}
	if text := leaves["monitoring_health"]; text != "" {
		if h, err := strconv.Atoi(text); err == nil {
			node.Health = h
		} else {
			f.faults = append(f.faults, fmt.Sprintf("monitoring_health: %.40q is not a whole number", text))
		}
	}
	node.HealthDetails = f.details(node.HealthPlugins)
	for _, e := range []error{n.Mode.Err, n.Keepalive.Err, n.Daemon.Err, n.Router.Err, n.Domain.Err, n.Record.Err, n.Alive.Err, n.Fence.Err, n.Order.Err} {
		if e != nil {
			f.faults = append(f.faults, e.Error())
		}
	}
	node.Faults = f.faults
	return node
}

func list(words string) []string {
	if l := strings.Fields(words); l != nil {
		return l
	}
	return []string{}
}

// fields reads numbers out of a node's leaves and collects those that are none.
type fields struct {
	leaves map[string]string
	read   bool // the leaves were read: one that is not among them is missing
	faults []string
}

// integer reads a number that every node has.
func (f *fields) integer(leaf string) int {
	f.expect(leaf)
	return f.parse(leaf, f.leaves[leaf])
}

// expect tells of a leaf that is missing.
func (f *fields) expect(leaf string) {
	if _, there := f.leaves[leaf]; f.read && !there {
		f.faults = append(f.faults, leaf+": the record is missing; the node's daemon makes it when it is started")
	}
}

func (f *fields) parse(leaf, text string) int {
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		f.faults = append(f.faults, fmt.Sprintf("%s: %.40q is not a whole number", leaf, text))
		return 0 // Atoi's largest integer is no figure either
	}
	return n
}

func (f *fields) decimal(leaf string) float64 {
	f.expect(leaf)
	text := f.leaves[leaf]
	if text == "" {
		return 0
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n != n || n > 1e12 || n < -1e12 { // NaN and infinities have no JSON
		f.faults = append(f.faults, fmt.Sprintf("%s: %.40q is not a number", leaf, text))
		return 0
	}
	return n
}

func (f *fields) details(plugins []string) []HealthDetail {
	details := make([]HealthDetail, 0, len(plugins))
	for _, name := range plugins {
		at := "monitoring_data/" + name + "/"
		d := HealthDetail{Name: name, LastRun: int64(f.parse(at+"last_run", f.leaves[at+"last_run"])), // missing until its first run
			HealthDelta: f.parse(at+"health_delta", f.leaves[at+"health_delta"]), Message: f.leaves[at+"message"]}
		if raw := f.leaves[at+"data"]; json.Valid([]byte(raw)) {
			d.Data = json.RawMessage(raw)
		} else if raw != "" {
			d.Data = raw
		}
		details = append(details, d)
	}
	return details
}
