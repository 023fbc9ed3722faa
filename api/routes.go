package api

import (
	"context"
	"fmt"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// route is one method of one path. Handlers, arguments, rights and the document
// all come from here.
type route struct {
	method   string
	path     string // without Prefix; {node} and alike are path values
	summary  string
	need     Role
	open     bool // needs no key unless protect_all
	lenient  bool // PVC's: unknown arguments are ignored, as its clients expect
	bare     bool // not below Prefix
	settings bool // wrong arguments are answered as {"errors": {…}}
	params   []param
	reply    any    // a value of the answer's type, for the document; nil: it is no JSON
	media    string // of an answer that is no JSON
	also     []otherAnswer
	handle   func(*Server, *request) (answer, error)
	stream   func(*Server, http.ResponseWriter, *request) error // instead of handle
}

// otherAnswer is an answer of a route with another status than 200 and than the
// failures that all have.
type otherAnswer struct {
	status int
	about  string
	reply  any // nil: no body
}

// either are values of the types of which an answer has one.
type either []any

// ordered202 is the answer to an order that stands and is carried out later.
func ordered202(reply any) []otherAnswer {
	return []otherAnswer{{http.StatusAccepted, "Ordered; it is carried out later", reply}}
}

// request is an authenticated request with checked arguments.
type request struct {
	ctx    context.Context // ends at the request's deadline
	route  route
	http   *http.Request
	args   args
	caller caller
	access *access // that it was authenticated by
}

// node is the path's node.
func (r *request) node() cluster.NodeID { return cluster.NodeID(r.http.PathValue("node")) }

func (rt route) paramNames() string {
	if len(rt.params) == 0 {
		return "none"
	}
	names := make([]string, len(rt.params))
	for i, p := range rt.params {
		names[i] = p.name
	}
	return strings.Join(names, ", ")
}

func (rt route) fullPath() string {
	if rt.bare {
		return rt.path
	}
	return Prefix + rt.path
}

const (
	get  = http.MethodGet
	post = http.MethodPost
	put  = http.MethodPut
	del  = http.MethodDelete
)

var stateFilters = []param{
	{name: "limit", kind: argRegexp, about: "regular expression on the name"},
	{name: "daemon_state", kind: argText, choices: []string{"init", "run", "shutdown", "stop", "dead", "fenced"}, about: "only nodes in this state"},
	{name: "coordinator_state", kind: argText, choices: []string{"primary", "secondary", "takeover", "relinquish", "client"}, about: "only nodes in this state"},
	{name: "domain_state", kind: argText, choices: []string{"ready", "flush", "flushed", "unflush", "fence-flush"}, about: "only nodes in this state"},
}

var switchParams = []param{
	{name: "to", kind: argText, required: true, complain: "A node's name must be specified, or \"none\" for the best other candidate.", about: "the node that shall be primary, or none"},
	{name: "from", kind: argText, about: "refuse unless this node holds the role"},
	{name: "wait", kind: argDuration, about: "answer when the switch has ended, or after this long"},
	{name: "dry_run", kind: argBool, about: "only say what would happen"},
}

// waitForEchoes makes the maintenance switch wait for the nodes.
var waitForEchoes = param{name: "wait", kind: argDuration, about: "answer when every live node has confirmed it, or fail with those that have not after this long"}

var maintenanceParams = []param{
	{name: "state", kind: argBool, required: true, complain: "A valid state must be specified"},
	{name: "owner", kind: argText, about: "who asks; the key's name otherwise"},
	{name: "reason", kind: argText},
	{name: "expires", kind: argText, about: "duration after which it shall end, like 2h; none: never"},
	waitForEchoes,
}

// routeTable lists every path, PVC's first.
func routeTable() []route {
	valid := func(choices ...string) []param {
		return []param{{name: "state", kind: argText, required: true, choices: choices, complain: "A valid state must be specified"}}
	}
	pvc := []route{
		{method: get, path: "/{$}", summary: "Version of the API", handle: (*Server).getVersion, reply: Message{}},
		{method: post, path: "/initialize", summary: "Make the tree of a new cluster", need: RoleAdmin, handle: (*Server).postInitialize, reply: Message{}, params: []param{
			{name: "yes-i-really-mean-it", kind: argText, required: true, complain: "Initialization is destructive; please confirm with the argument 'yes-i-really-mean-it'."},
			{name: "overwrite", kind: argBool, about: "replace the data of a cluster that is there"},
			{name: "name", kind: argText, about: "the cluster's name; the configured one otherwise"},
		}},
		{method: get, path: "/status", summary: "Health and counts of the cluster", handle: (*Server).getStatus, reply: Status{}},
		{method: post, path: "/status", summary: "Maintenance on or off", need: RoleOperate, handle: (*Server).postStatus, reply: Message{}, params: append(valid("true", "false"), waitForEchoes)},
		{method: get, path: "/status/primary_node", summary: "Who holds the primary role", open: true, handle: (*Server).getPrimaryNode, reply: PrimaryNode{}, also: []otherAnswer{{http.StatusNoContent, "Nobody holds it", nil}}},
		{method: get, path: "/node", summary: "Nodes", handle: (*Server).getNodes, reply: []Node{}, params: stateFilters},
		{method: get, path: "/node/{node}", summary: "One node", handle: (*Server).getNode, reply: Node{}},
		{method: get, path: "/node/{node}/daemon-state", summary: "A node's daemon state", handle: (*Server).getDaemonState, reply: NodeDaemonState{}},
		{method: get, path: "/node/{node}/coordinator-state", summary: "A node's part in the primary role", handle: (*Server).getCoordinatorState, reply: NodeCoordinatorState{}},
		{method: post, path: "/node/{node}/coordinator-state", summary: "Make a node primary, or make it give the role up", need: RoleOperate, handle: (*Server).postCoordinatorState, reply: Message{}, params: valid("primary", "secondary")},
		{method: get, path: "/node/{node}/domain-state", summary: "A node's readiness for workloads", handle: (*Server).getDomainState, reply: NodeDomainState{}},
		{method: post, path: "/node/{node}/domain-state", summary: "Take a node out of service for workloads, or back; refused with 501 where workloads run that are not managed", need: RoleOperate, handle: (*Server).postDomainState, reply: Message{}, also: []otherAnswer{{http.StatusNotImplemented, "Workloads run there that are not managed", Message{}}}, params: append(valid("flush", "ready"), param{name: "wait", kind: argDuration, about: "answer when the node has done it, or fail after this long"})},
		{method: get, path: "/node/{node}/log", summary: "A node's newest log lines", handle: (*Server).getNodeLog, reply: NodeLog{}, params: []param{
			{name: "lines", kind: argInt, min: 1, max: 10000, about: "how many; 10 otherwise"}}},
		{method: get, path: "/faults", summary: "Faults of the cluster", handle: (*Server).getFaults, reply: []Fault{}, params: faultParams},
		{method: put, path: "/faults", summary: "Acknowledge every fault", need: RoleOperate, handle: (*Server).putFaults, reply: Message{}},
		{method: del, path: "/faults", summary: "Delete every fault", need: RoleOperate, handle: (*Server).deleteFaults, reply: Message{}},
		{method: get, path: "/faults/{fault}", summary: "One fault, as a list", handle: (*Server).getFaults, reply: []Fault{}},
		{method: put, path: "/faults/{fault}", summary: "Acknowledge a fault", need: RoleOperate, handle: (*Server).putFaults, reply: Message{}},
		{method: del, path: "/faults/{fault}", summary: "Delete a fault", need: RoleOperate, handle: (*Server).deleteFaults, reply: Message{}},
		{method: get, path: "/tasks", summary: "What runs or was ordered, by node", handle: (*Server).getTasks, reply: Tasks{}},
		{method: get, path: "/tasks/{task}", summary: "One task: an activity, a hand-over, a fence or an order", handle: (*Server).getTask, reply: Task{}},
		{method: get, path: "/provisioner/status", summary: "The same, by its older name", handle: (*Server).getTasks, reply: Tasks{}},
	}
	for i := range pvc {
		pvc[i].lenient = true
	}
	return slices.Concat(pvc, ourRoutes(), memberRoutes(), activityRoutes(), workloadRoutes(), reprovisionRoutes(), rebalanceRoutes())
}

func ourRoutes() []route {
	return []route{
		{method: get, path: "/cluster", summary: "Everything the page shows, with a version", handle: (*Server).getCluster, reply: ClusterView{}},
		{method: get, path: "/watch", summary: "Changes, as server-sent events or by long poll", stream: (*Server).watch, reply: ClusterView{}, params: []param{
			{name: "since", kind: argText, about: "the version you have; answered at once if it is another"},
			{name: "wait", kind: argDuration, about: "of a long poll; 30 s otherwise"}}},
		{method: get, path: "/transition", summary: "The running or last hand-over", handle: (*Server).getTransition, reply: TransitionAnswer{}},
		{method: get, path: "/history", summary: "What happened, newest first", handle: (*Server).getHistory, reply: []cluster.Event{}, params: []param{
			{name: "limit", kind: argInt, min: 1, max: 1000, about: "how many; 100 otherwise"},
			{name: "kind", kind: argText, about: "only this kind"}}},
		{method: get, path: "/timing", summary: "The settings of time and the worst cases that follow", handle: (*Server).getTiming, reply: TimingView{}},
		{method: post, path: "/switch", summary: "Hand the primary role to a node", need: RoleOperate, handle: (*Server).postSwitch, reply: SwitchAnswer{}, also: append(ordered202(SwitchAnswer{}), otherAnswer{http.StatusConflict, "It was aborted or superseded while it was waited for; or somebody else has asked at the same moment", either{SwitchAnswer{}, Message{}}}), params: switchParams},
		{method: post, path: "/maintenance", summary: "Maintenance on or off, with owner and reason", need: RoleOperate, handle: (*Server).postMaintenance, reply: MaintenanceAnswer{}, also: []otherAnswer{{http.StatusGatewayTimeout, "It is set, and not every node has confirmed it; or what became of it cannot be told", either{MaintenanceAnswer{}, Message{}}}}, params: maintenanceParams},
		{method: get, path: "/maintenance", summary: "Who put the cluster into maintenance, and why", handle: (*Server).getMaintenance, reply: MaintenanceView{}},
		{method: get, path: "/settings/autoFailover", summary: "The automatic failover's settings and its spent budget", handle: (*Server).getAutoFailover, reply: AutoFailover{}},
		{method: post, path: "/settings/autoFailover", settings: true, summary: "Change the automatic failover's settings; what is not named stays", need: RoleOperate, handle: (*Server).postAutoFailover, reply: either{SettingsAnswer{}, SettingsErrors{}}, params: autoFailoverParams},
		{method: post, path: "/settings/autoFailover/resetCount", settings: true, summary: "Give the automatic failover its whole budget back", need: RoleOperate, handle: (*Server).postResetFailoverCount, reply: either{SettingsAnswer{}, SettingsErrors{}}, params: []param{
			{name: "just_validate", kind: argBool, about: "nothing is changed"}}},
		{method: get, path: "/fences", summary: "Fence records, operators' orders, what happened to fences, and the tests of fence devices", handle: (*Server).getFences, reply: FencesView{}, params: fencesParams},
		{method: get, path: "/fence/{node}", summary: "The same of one node", handle: (*Server).getFence, reply: FencesView{}, params: fencesParams},
		{method: post, path: "/fence/{node}", summary: "Order a node to be fenced, its fence confirmed or canceled, or its fence devices tested", need: RoleOperate, handle: (*Server).postFence, reply: FenceAnswer{}, also: ordered202(FenceAnswer{}), params: fenceParams},
		leaseRoute(),
		{method: get, path: "/secrets", summary: "The sealed passwords of fence devices, by name", handle: (*Server).getSecrets, reply: []SecretView{}},
		{method: post, path: "/secret/{name}", summary: "Store a sealed password of fence devices", need: RoleOperate, handle: (*Server).postSecret, reply: Message{}, params: secretParams},
		{method: del, path: "/secret/{name}", summary: "Remove a sealed password of fence devices", need: RoleOperate, handle: (*Server).deleteSecret, reply: Message{}},
		{method: get, path: "/explain/{what}", summary: "Evidence for a node's, a workload's or the role's state, and what stands against change", handle: (*Server).getExplain, reply: Explanation{}},
		doctorRoute(),
		pageRoute(),
		{method: get, path: "/healthz", bare: true, open: true, summary: "This server lives", handle: (*Server).getHealthz, reply: Message{}},
		{method: get, path: "/readyz", bare: true, open: true, summary: "The store can be reached", handle: (*Server).getReadyz, reply: Message{}},
		{method: get, path: "/openapi.json", bare: true, open: true, summary: "This document", handle: (*Server).getOpenAPI, reply: map[string]any{}},
	}
}

// buildHandler hangs the table into a mux, one handler a path, so that a wrong
// method is told from an unknown path.
func (s *Server) buildHandler(reg *Registry) http.Handler {
	s.routes = append(s.routes, s.metricsRoute(reg))
	patterns := map[string]map[string]route{}
	for _, rt := range s.routes {
		for _, p := range rt.patterns() {
			if patterns[p] == nil {
				patterns[p] = map[string]route{}
			}
			patterns[p][rt.method] = rt
		}
	}
	mux := http.NewServeMux()
	for p, methods := range patterns {
		mux.Handle(p, s.dispatch(methods))
	}
	mux.HandleFunc("/", notFound)
	return foreignPagesRefused(plainPaths(mux))
}

// plainPaths keeps paths with empty or dotted segments, however they are
// encoded, from being tidied up into others: nobody who means well sends them.
func plainPaths(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := r.URL.Path; p == "" || p[0] != '/' || strings.Contains(p, "//") || path.Clean(p) != p && path.Clean(p)+"/" != p {
			notFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func notFound(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusNotFound, Message{fmt.Sprintf("There is nothing at %s; /openapi.json lists every path.", cut(strings.ToValidUTF8(r.URL.Path, "\uFFFD")))})
}

// foreignPagesRefused keeps a browser's page of another origin from changing
// anything: it could send the form of a POST without asking.
func foreignPagesRefused(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusForbidden, Message{"A page of another origin may not change anything here."})
	}))
	return protection.Handler(next)
}

// patterns returns the mux patterns of a route; the prefix itself is answered
// with and without its slash.
func (rt route) patterns() []string {
	switch {
	case rt.path == "/{$}" && !rt.bare:
		return []string{Prefix, Prefix + "/{$}"}
	case rt.path == "/":
		return []string{"/{$}"}
	}
	return []string{rt.fullPath()}
}

func (s *Server) dispatch(methods map[string]route) http.Handler {
	var allowed []string
	for method := range methods {
		allowed = append(allowed, method)
		if method == get {
			allowed = append(allowed, http.MethodHead)
		}
	}
	slices.Sort(allowed)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = get
		}
		rt, known := methods[method]
		if !known {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			writeJSON(w, http.StatusMethodNotAllowed, Message{fmt.Sprintf("%s is not possible here; possible: %s.", cut(r.Method), strings.Join(allowed, ", "))})
			return
		}
		s.serveRoute(rt, w, r)
	})
}

// serveRoute is the life of a request: who, what, do, answer, account.
func (s *Server) serveRoute(rt route, w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	status := http.StatusOK
	var who caller
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a handler failed", zap.String("path", rt.path), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			status = http.StatusInternalServerError
			s.audit(rt, r, who, nil, status, "a fault of this server")
			writeJSON(w, status, Message{"This server has a fault; its log names it."})
		}
		s.metrics.served(rt, status, time.Since(started))
	}()
	r.Body = http.MaxBytesReader(w, r.Body, maxBodyBytes)
	acc := s.access.Load()
	who, fail := s.authenticate(acc, rt, r)
	var checked args
	if fail == nil {
		fail = checkNames(rt, r)
	}
	if fail == nil {
		checked, fail = parseArgs(rt, r)
	}
	if fail != nil {
		status = fail.status
		s.audit(rt, r, who, nil, status, fail.text)
		fail.write(w)
		return
	}
	status = s.carryOut(w, &request{route: rt, http: r, args: checked, caller: who, access: acc})
}

// longestName bounds a name in a path, in bytes.
const longestName = 253

// checkNames refuses names in the path that name nothing and could be taken for
// something else further on: a path of the store, or lines of a log.
func checkNames(rt route, r *http.Request) *failure {
	for _, name := range rt.names() {
		value := r.PathValue(name)
		if value != "" && len(value) <= longestName && utf8.ValidString(value) && value != "." && value != ".." &&
			!strings.ContainsFunc(value, func(c rune) bool { return c == '/' || unicode.IsControl(c) }) {
			continue
		}
		if rt.method == get && name == "node" {
			return nodeNotFound()
		}
		if rt.method == get {
			return refuse(http.StatusNotFound, fmt.Sprintf("There is no %s of that name: a name has at most %d bytes, and neither slashes nor control characters.", name, longestName))
		}
		return refuse(http.StatusBadRequest, fmt.Sprintf("That is no %s's name: one has at most %d bytes, and neither slashes nor control characters. Nothing was changed.", name, longestName))
	}
	return nil
}

// names are those of the values in the path.
func (rt route) names() []string {
	var names []string
	for segment := range strings.SplitSeq(rt.path, "/") {
		if strings.HasPrefix(segment, "{") && segment != "{$}" {
			names = append(names, strings.Trim(segment, "{}"))
		}
	}
	return names
}

func (s *Server) carryOut(w http.ResponseWriter, req *request) int {
	rt, r, who, checked := req.route, req.http, req.caller, req.args
	if rt.stream != nil {
		req.ctx = r.Context()
		if err := rt.stream(s, w, req); err != nil {
			f := s.failureFor(err)
			f.write(w)
			return f.status
		}
		return http.StatusOK
	}
	wait := checked.wait(0)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout + wait))
	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.RequestTimeout+wait)
	defer cancel()
	req.ctx = ctx
	a, err := rt.handle(s, req)
	if err != nil {
		f := s.failureFor(err)
		s.audit(rt, r, who, checked, f.status, f.text)
		f.write(w)
		return f.status
	}
	s.audit(rt, r, who, checked, a.status, a.change)
	writeAnswer(w, r, a)
	return a.status
}
