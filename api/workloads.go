package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// WorkloadView is one workload as its record has it. Where that cannot be read,
// Error says why, and there is nothing else but the name.
type WorkloadView struct {
	Name             string                   `json:"name"`
	ID               string                   `json:"id"` // of this creation
	Kind             cluster.WorkloadKind     `json:"kind"`
	Driver           cluster.DriverName       `json:"driver"`
	Agent            string                   `json:"agent,omitempty"`
	Params           map[string]string        `json:"params,omitempty"` // what is named like a secret is not shown
	Ephemeral        bool                     `json:"ephemeral"`
	Wanted           bool                     `json:"wanted"`
	Autostart        bool                     `json:"autostart"`
	Priority         int                      `json:"priority"`
	Selector         string                   `json:"selector,omitempty"` // empty: the cluster's
	MemoryMiB        int64                    `json:"memory_mib,omitempty"`
	VCPUs            int                      `json:"vcpus,omitempty"`
	Protected        bool                     `json:"protected"`
	Live             bool                     `json:"live"` // it is moved while it runs, where its agent can
	Nodes            []cluster.NodeID         `json:"nodes"`
	Replicas         int                      `json:"replicas"`
	CoordinatorsOnly bool                     `json:"coordinators_only"`
	Chain            []cluster.NodeID         `json:"chain"` // the active copy's node first; empty: nobody fills that place
	Next             *cluster.ChainMove       `json:"next,omitempty"`
	Home             cluster.NodeID           `json:"home,omitempty"`
	State            cluster.WorkloadState    `json:"state"`
	Reason           string                   `json:"reason,omitempty"`
	Attempts         int                      `json:"attempts"`
	SinceMS          int64                    `json:"since_ms,omitempty"` // unix milliseconds
	Request          *cluster.WorkloadRequest `json:"request,omitempty"`  // an operator's order, not carried out yet
	Answer           *cluster.WorkloadAnswer  `json:"answer,omitempty"`   // what became of the newest that was
	Version          int32                    `json:"version"`            // of the record
	Error            string                   `json:"error,omitempty"`
}

// WorkloadUnreadable is the state of a workload whose record cannot be read.
const WorkloadUnreadable cluster.WorkloadState = "unreadable"

// workloadStates are all that a workload can be in.
var workloadStates = []cluster.WorkloadState{cluster.WorkloadNew, cluster.WorkloadStarting, cluster.WorkloadRunning, cluster.WorkloadMoving,
	cluster.WorkloadRecovering, cluster.WorkloadStopped, cluster.WorkloadFailed, cluster.WorkloadUnsafe, cluster.WorkloadFaulty, WorkloadUnreadable}

func asTexts[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, w := range list {
		out[i] = string(w)
	}
	return out
}

var workloadFilters = []param{
	{name: "limit", kind: argRegexp, about: "regular expression on the name"},
	{name: "node", kind: argText, about: "only those in whose chain, or unfinished move, this node is"},
	{name: "state", kind: argText, choices: asTexts(workloadStates), about: "only workloads in this state"},
	{name: "kind", kind: argText, choices: workloadKinds, about: "only workloads of this kind"},
	{name: "driver", kind: argText, choices: asTexts(cluster.Drivers), about: "only workloads of this driver"},
}

var workloadKinds = []string{string(cluster.WorkloadReplicated), string(cluster.WorkloadMovable)}

// waitForOrder makes an order wait for what becomes of it.
var waitForOrder = param{name: "wait", kind: argDuration, about: "answer when it was carried out, refused or overtaken by another order, or after this long"}

func workloadRoutes() []route {
	refused := otherAnswer{http.StatusConflict, "It was refused or overtaken while it was waited for; or somebody else has changed the workload at the same moment", either{WorkloadOrder{}, Message{}}}
	order := func(what, summary string, params ...param) route {
		return route{method: post, path: "/workloads/{workload}/" + what, summary: summary, need: RoleOperate, reply: WorkloadOrder{},
			also: append(ordered202(WorkloadOrder{}), refused), params: append(params, waitForOrder),
			handle: func(s *Server, r *request) (answer, error) { return s.postOrder(r, cluster.WorkloadOp(what)) }}
	}
	return []route{
		{method: get, path: "/workloads", summary: "Workloads, as their records have them", handle: (*Server).getWorkloads, reply: []WorkloadView{}, params: workloadFilters},
		{method: post, path: "/workloads", summary: "Add a workload", need: RoleOperate, handle: (*Server).postWorkload, reply: WorkloadOrder{}, also: append(ordered202(WorkloadOrder{}), refused), params: addParams()},
		{method: get, path: "/workloads/{workload}", summary: "One workload", handle: (*Server).getWorkload, reply: WorkloadView{}},
		{method: put, path: "/workloads/{workload}", summary: "Change a workload's settings; what is not named stays", need: RoleOperate, handle: (*Server).putWorkload, reply: WorkloadOrder{}, params: settingParams()},
		{method: del, path: "/workloads/{workload}", summary: "Order a workload to be removed: its copies are stopped, then its record goes", need: RoleOperate, handle: (*Server).deleteWorkload, reply: WorkloadOrder{},
			also: append(ordered202(WorkloadOrder{}), refused), params: []param{
				{name: "destroy", kind: argBool, about: "its last copy may go, with its data"}, waitForOrder}},
		order("move", "Order a workload to be moved", param{name: "node", kind: argText, about: "where to; otherwise where its selector says"}),
		order("promote", "Order a replica to become the active copy", param{name: "node", kind: argText, required: true, complain: "The node whose copy shall be active must be specified.", about: "the node whose copy shall be active"}),
		order("start", "Order a workload to run; also one whose starts have failed too often"),
		order("stop", "Order a workload to be stopped, and to stay so"),
		order("probe", "Have every node asked for its copy now; the answer has what they say"),
	}
}

// workload is the path's workload.
func (r *request) workload() string { return r.http.PathValue("workload") }

// workloads are the records by their names.
func (st state) workloads() []string { return slices.Sorted(maps.Keys(st.snap.Workloads)) }

func workloadView(name string, v cluster.Versioned[cluster.Workload]) WorkloadView {
	if v.Err != nil {
		return WorkloadView{Name: name, Version: v.Version, State: WorkloadUnreadable, Error: v.Err.Error(), Chain: []cluster.NodeID{}, Nodes: []cluster.NodeID{}}
	}
	w := v.Value.Clone()
	for param := range w.Params {
		if secretArgument(param) && !strings.HasSuffix(param, "_file") {
			w.Params[param] = hiddenValue
		}
	}
	return WorkloadView{Name: name, ID: w.ID, Kind: w.Kind, Driver: w.Driver, Agent: w.Agent, Params: w.Params, Ephemeral: w.Ephemeral, Wanted: w.Wanted, Autostart: w.Autostart,
		Priority: w.Priority, Selector: w.Selector, MemoryMiB: w.MemoryMiB, VCPUs: w.VCPUs, Protected: w.Protected, Live: w.Live, Nodes: orEmpty(w.Nodes), Replicas: w.Replicas,
		CoordinatorsOnly: w.CoordinatorsOnly, Chain: orEmpty(w.Chain), Next: w.Next, Home: w.Home, State: w.State, Reason: w.Reason, Attempts: w.Attempts,
		SinceMS: w.SinceMS, Request: w.Request, Answer: w.Answer, Version: v.Version}
}

// hiddenValue stands in place of what is named like a secret.
const hiddenValue = "[secret]"

func orEmpty(list []cluster.NodeID) []cluster.NodeID {
	if list == nil {
		return []cluster.NodeID{}
	}
	return list
}

// touches reports whether a copy of the workload is, or is to be, on the node.
func (v WorkloadView) touches(n cluster.NodeID) bool {
	return slices.Contains(v.Chain, n) || v.Next != nil && (slices.Contains(v.Next.Chain, n) || slices.Contains(v.Next.From, n))
}

func (s *Server) getWorkloads(r *request) (answer, error) {
	limit := regexp.MustCompile(r.args.text("limit")) // checked by the table
	return s.facts(r.ctx, func(st state) (any, error) {
		list := []WorkloadView{}
		for _, name := range st.workloads() {
			v := workloadView(name, st.snap.Workloads[name])
			a := r.args
			if limit.MatchString(name) && (!a.has("node") || v.touches(cluster.NodeID(a.text("node")))) && (!a.has("state") || a.text("state") == string(v.State)) &&
				(!a.has("kind") || a.text("kind") == string(v.Kind)) && (!a.has("driver") || a.text("driver") == string(v.Driver)) {
				list = append(list, v)
			}
		}
		return list, nil
	})
}

func (s *Server) getWorkload(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		v, known := st.snap.Workloads[r.workload()]
		if !known {
			return nil, noWorkload(r.workload())
		}
		return workloadView(r.workload(), v), nil
	})
}

func noWorkload(name string) *failure {
	return refuse(http.StatusNotFound, fmt.Sprintf("There is no workload %q; `pvc workload list` shows those there are.", cut(name)))
}

// managed reports whether the name is that of a workload whose record is here.
func (st state) managed(name string) bool {
	_, known := st.snap.Workloads[name]
	return known
}

// withoutLeases is why workloads are not managed, nil if they are. Where the
// quorum set cannot be read that is not known, and the primary says so.
func (st state) withoutLeases() *failure {
	if st.snap.Quorum.Present || st.snap.Quorum.Err != nil {
		return nil //nolint:nilerr // the primary says so
	}
	return refuse(http.StatusBadRequest, fmt.Sprintf("Workloads are managed only where node leases are in use, and they are not (%s); nothing was changed. Nodes must talk directly (`peer` in pvcnoded.yaml) and have node_leases on; `pvc lease list` shows it.", cluster.RefuseWithoutLeases))
}

// foundingRetry is after how many seconds a cluster that is just coming up is worth
// another try: its first quorum set is made three seconds after its nodes are there.
const foundingRetry = 3

// leasesMissing is why nothing can be ordered of workloads, nil if it can: node leases
// are in use, or their first quorum set is about to be made by a primary that has
// published that it asks for them. What is ordered then waits in its record, and a copy
// is touched only under the lease of its node. Where a primary that talks to
// other nodes has published nothing yet, or there is none, that may be so in a moment,
// and the answer is one to try again after (503).
func (s *Server) leasesMissing(ctx context.Context, st state) *failure {
	no := st.withoutLeases()
	if no == nil {
		return nil
	}
	holder := st.holder()
	text, err := s.deps.Texts.ReadText(ctx, cluster.Key{Kind: cluster.KeyNodeLeases})
	if err != nil {
		return s.failureFor(fmt.Errorf("read the node leases: %w", err))
	}
	var record cluster.NodeLeases
	if text.Present && json.Unmarshal([]byte(text.Value), &record) == nil && holder != "" &&
		record.Lease.Holder == holder && record.Lease.Epoch == st.snap.Lease.Value.Epoch {
		return nil
	}
	why := "nobody holds the primary role yet"
	switch {
	case holder != "" && st.snap.Nodes[holder].Record.Value.Peer == "":
		return no // it never will
	case holder != "":
		why = fmt.Sprintf("%s, the primary, has not begun with them", holder)
	}
	later := fmt.Sprintf("Workloads are managed only where node leases are in use, and they are not in use yet (%s): %s. In a cluster that has just come up that takes some seconds: try again; `pvc workload add --wait` does. If it lasts they are switched off (node_leases in pvcnoded.yaml), or nobody can take the role (`pvc explain primary`). Nothing was changed.", cluster.RefuseWithoutLeases, why)
	return &failure{status: http.StatusServiceUnavailable, text: later, body: Away{Message: later}, retryAfter: foundingRetry}
}

// workloadCounts are the workloads by their states, and those that run without
// being managed, which count into the total only.
func workloadCounts(st state, nodes []Node) map[string]int {
	counts := map[string]int{"total": len(st.snap.Workloads)}
	for _, v := range st.snap.Workloads {
		state := v.Value.State
		if v.Err != nil {
			state = WorkloadUnreadable
		}
		if state == "" {
			state = cluster.WorkloadNew
		}
		counts[string(state)]++
	}
	for _, n := range nodes {
		ours := 0
		for _, running := range n.RunningDomains {
			if st.managed(running) {
				ours++
			}
		}
		counts["total"] += max(0, n.DomainsCount-ours)
	}
	return counts
}

// chainText is a chain for people.
func chainText(chain []cluster.NodeID) string {
	if len(chain) == 0 {
		return "none yet"
	}
	places := make([]string, len(chain))
	for i, n := range chain {
		places[i] = cmp.Or(string(n), "—")
	}
	return strings.Join(places, ", ")
}

// workloadTrouble says why a workload that should run does not, or lacks copies,
// where that does not pass by itself; empty: it runs with all of them, or is on its way.
func workloadTrouble(name string, v cluster.Versioned[cluster.Workload]) string {
	w := v.Value
	switch {
	case v.Err != nil:
		return fmt.Sprintf("the record of workload %s cannot be read, and it is left alone: %v", name, v.Err)
	case w.State == cluster.WorkloadFailed, w.State == cluster.WorkloadUnsafe, w.State == cluster.WorkloadFaulty, w.State == cluster.WorkloadStopped && w.Wanted:
		return fmt.Sprintf("workload %s is %s: %s. `pvc explain %s` says more", name, w.State, strings.TrimSuffix(orUnknown(w.Reason), "."), name)
	case w.Lacks():
		return fmt.Sprintf("workload %s runs, but %s. `pvc explain %s` says more", name, strings.TrimSuffix(w.Reason, "."), name)
	}
	return ""
}
