package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// settingParams are what an operator may say of a workload at any time.
func settingParams() []param {
	return []param{
		{name: "priority", kind: argInt, max: cluster.MaxWorkloadPriority, about: "0–1000; larger first in a recovery and a drain"},
		{name: "selector", kind: argText, choices: append(slices.Clone(cluster.Selectors), "default"), about: "how a node is picked; default: as the cluster's setting says"},
		{name: "memory", kind: argInt, max: 1 << 30, about: "MiB that it needs"},
		{name: "vcpus", kind: argInt, max: 1 << 16, about: "virtual processors that it needs"},
		{name: "autostart", kind: argBool, about: "what was stopped for want of a place starts by itself once there is one; true otherwise"},
		{name: "protected", kind: argBool, about: "its node is fenced before others"},
		{name: "live", kind: argBool, about: "it is moved while it runs, where its OCF agent announces migrate_to and migrate_from; movable ones only"},
		{name: "ephemeral", kind: argBool, about: "a copy that is restarted comes back empty"},
		{name: "nodes", kind: argText, about: "the nodes that may have a copy, separated by commas; \"all\": each that may run workloads"},
		{name: "replicas", kind: argInt, max: cluster.MaxChain - 1, about: "copies beside the active one, where no chain is named"},
		{name: "coordinators_only", kind: argBool, about: "no copy may be on a hypervisor; without nodes those are the coordinators of this moment"},
		{name: "params", kind: argText, about: "the driver's parameters, a JSON object of texts; null takes one away"},
		{name: "unchecked", kind: argBool, about: "do not have the driver here check agent and parameters, as where the agent is installed on other nodes only"},
	}
}

func addParams() []param {
	return append([]param{
		{name: "name", kind: argText, required: true, complain: "A name of 1–63 small letters, digits, '-' or '_' must be specified.", about: "the workload's name"},
		{name: "driver", kind: argText, required: true, complain: "A driver must be specified: redis, exec, ocf:PROVIDER:AGENT or systemd:NAME@.service.", about: "redis, exec, ocf:PROVIDER:AGENT or systemd:NAME@.service"},
		{name: "agent", kind: argText, about: "the agent, where the driver does not name it"},
		{name: "kind", kind: argText, choices: workloadKinds, about: "replicated: a copy on each node of the chain, one of them active; movable: one copy. Otherwise redis, and an OCF agent with a chain of more than one node, is replicated, all else movable"},
		{name: "chain", kind: argText, about: "where its copies are, separated by commas, the active one first; otherwise it is made by itself"},
		{name: "stopped", kind: argBool, about: "it is not to run before it is started"},
		waitForOrder,
	}, settingParams()...)
}

// newWorkload makes what the arguments say, without looking at the cluster.
func newWorkload(a args) (cluster.Workload, *failure) {
	w := cluster.Workload{Version: 1, Name: a.text("name"), ID: newOrderID(), Wanted: !a.truth("stopped"), Autostart: true, State: cluster.WorkloadNew, SinceMS: time.Now().UnixMilli()}
	if err := cluster.ValidWorkloadName(w.Name); err != nil {
		return w, badArgument("name", err.Error()+".")
	}
	driver, agent, _ := strings.Cut(a.text("driver"), ":")
	w.Driver, w.Agent = cluster.DriverName(driver), agent
	switch given := a.text("agent"); {
	case !slices.Contains(cluster.Drivers, w.Driver):
		return w, badArgument("driver", fmt.Sprintf("There is no driver %q; use redis, exec, ocf:PROVIDER:AGENT or systemd:NAME@.service.", cut(driver)))
	case given != "" && agent != "" && given != agent:
		return w, badArgument("agent", fmt.Sprintf("The driver names the agent %q already.", cut(agent)))
	case given != "":
		w.Agent = given
	}
	takesAgent := w.Driver == cluster.DriverOCF || w.Driver == cluster.DriverSystemd
	switch {
	case takesAgent && w.Agent == "":
		return w, badArgument("driver", "Name its agent: ocf:PROVIDER:AGENT, like ocf:heartbeat:Dummy, or systemd:NAME@.service.")
	case !takesAgent && w.Agent != "":
		return w, badArgument("driver", fmt.Sprintf("The driver %s takes no agent.", w.Driver))
	}
	chain, fail := nodeList("chain", a.text("chain"))
	if fail != nil {
		return w, fail
	}
	w.Chain = chain
	if fail := setWorkload(&w, a); fail != nil {
		return w, fail
	}
	return w, placeWorkload(&w, a)
}

// placeWorkload settles the kind and the length of the chain.
func placeWorkload(w *cluster.Workload, a args) *failure {
	w.Kind = cluster.WorkloadKind(a.text("kind"))
	several := len(w.Chain) > 1 || len(w.Chain) == 0 && w.Replicas > 0
	if w.Kind == "" {
		w.Kind = cluster.WorkloadMovable
		if w.Driver == cluster.DriverRedis || w.Driver == cluster.DriverOCF && several {
			w.Kind = cluster.WorkloadReplicated
		}
	}
	switch {
	case w.Kind == cluster.WorkloadMovable && several:
		return badArgument("chain", "A movable workload has one copy, so that its chain has one place and no replicas. The nodes that may have it are given as nodes; several copies at once need kind=replicated, and a driver that can.")
	case w.Kind == cluster.WorkloadMovable:
		w.Replicas = 0
	case len(w.Chain) > 0:
		if a.has("replicas") && w.Replicas != len(w.Chain)-1 {
			return badArgument("replicas", fmt.Sprintf("The chain has %d replicas; give one of the two.", len(w.Chain)-1))
		}
		w.Replicas = len(w.Chain) - 1
	case !a.has("replicas"):
		w.Replicas = 1
	}
	if len(w.Nodes) > 0 {
		for _, n := range w.Chain {
			if !slices.Contains(w.Nodes, n) {
				return badArgument("chain", fmt.Sprintf("Node %q is in the chain and not among the nodes that may have a copy (%s).", n, joinNodes(w.Nodes)))
			}
		}
	}
	return checkWorkload(*w)
}

func checkWorkload(w cluster.Workload) *failure {
	if err := cmp.Or(w.Validate(), w.Fits()); err != nil {
		return refuse(http.StatusBadRequest, capital(err.Error())+". Nothing was changed.")
	}
	return nil
}

// nodeList reads names that are separated by commas or blanks.
func nodeList(argument, text string) ([]cluster.NodeID, *failure) {
	var list []cluster.NodeID
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		n := cluster.NodeID(word)
		if err := n.Validate(); err != nil {
			return nil, badArgument(argument, capital(err.Error())+".")
		}
		if slices.Contains(list, n) {
			return nil, badArgument(argument, fmt.Sprintf("Node %q is named twice.", n))
		}
		list = append(list, n)
	}
	return list, nil
}

// setWorkload puts in what the arguments name.
func setWorkload(w *cluster.Workload, a args) *failure {
	if text := a.text("nodes"); text == "all" {
		w.Nodes = nil
	} else if text != "" {
		nodes, fail := nodeList("nodes", text)
		if fail != nil {
			return fail
		}
		w.Nodes = nodes
	}
	if text := a.text("selector"); text == "default" {
		w.Selector = ""
	} else if text != "" {
		w.Selector = text
	}
	w.Priority = a.number("priority", w.Priority)
	w.MemoryMiB = int64(a.number("memory", int(w.MemoryMiB)))
	w.VCPUs = a.number("vcpus", w.VCPUs)
	w.Replicas = a.number("replicas", w.Replicas)
	for name, into := range map[string]*bool{"autostart": &w.Autostart, "protected": &w.Protected, "live": &w.Live, "ephemeral": &w.Ephemeral, "coordinators_only": &w.CoordinatorsOnly} {
		if a.has(name) {
			*into = a.truth(name)
		}
	}
	return setParams(w, a.text("params"))
}

// setParams merges a JSON object into the driver's parameters.
func setParams(w *cluster.Workload, text string) *failure {
	if text == "" {
		return nil
	}
	var given map[string]any
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&given); err != nil || given == nil || d.More() {
		return badArgument("params", `Must be a JSON object of texts, like {"command": "/usr/bin/job"}.`)
	}
	merged := w.Clone().Params
	if merged == nil {
		merged = map[string]string{}
	}
	for name, value := range given {
		switch v := value.(type) {
		case nil:
			delete(merged, name)
		case string:
			merged[name] = v
		case bool, json.Number:
			merged[name] = fmt.Sprint(v)
		default:
			return badArgument("params", fmt.Sprintf("The value of %q must be a text.", cut(name)))
		}
	}
	if w.Params = merged; len(merged) == 0 {
		w.Params = nil
	}
	return nil
}

// placeable says why the cluster's nodes do not fit the workload and its chain; with
// coordinators_only and no nodes it fills in the coordinators there are.
func (st state) placeable(w *cluster.Workload, chain []cluster.NodeID) *failure {
	if w.CoordinatorsOnly && len(w.Nodes) == 0 {
		w.Nodes = st.coordinators()
	}
	for _, list := range []struct {
		name  string
		nodes []cluster.NodeID
	}{{"chain", chain}, {"nodes", w.Nodes}} {
		for _, n := range list.nodes {
			v, known := st.snap.Nodes[n]
			switch {
			case !known || !v.Mode.Present && !v.Record.Present:
				return badArgument(list.name, fmt.Sprintf("No node named %q is present in the cluster; nodes: %s.", n, joinNodes(st.names())))
			case w.CoordinatorsOnly && v.Mode.Value != cluster.Coordinator:
				return badArgument(list.name, fmt.Sprintf("Node %q is a hypervisor, and copies of this workload are to be on coordinators only (%s).", n, joinNodes(st.coordinators())))
			}
		}
	}
	if len(w.Nodes) > 0 && w.Kind == cluster.WorkloadReplicated && w.Replicas >= len(w.Nodes) {
		return badArgument("replicas", fmt.Sprintf("%d copies need as many nodes, and %d may have one (%s).", w.Replicas+1, len(w.Nodes), joinNodes(w.Nodes)))
	}
	return nil
}

// checkPatience bounds what a driver takes to check a workload: an agent may hang
// when it is asked for its metadata.
const checkPatience = 4 * time.Second

// driverCheck has the driver look at agent and parameters. It runs on this host.
func (s *Server) driverCheck(r *request, w cluster.Workload) *failure {
	if r.args.truth("unchecked") || s.deps.Check == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, checkPatience)
	defer cancel()
	err := s.deps.Check(ctx, w.Clone())
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil || errors.Is(err, cluster.ErrDeadline) || errors.Is(err, context.DeadlineExceeded):
		return refuse(http.StatusBadRequest, fmt.Sprintf("Whether driver %s can run workload %q could not be checked on %s in time (%v); nothing was changed. Does the agent hang? With --unchecked it is not checked here.", driverText(w), w.Name, s.cfg.Node, err))
	}
	return refuse(http.StatusBadRequest, fmt.Sprintf("Driver %s cannot run workload %q so: %s. Nothing was changed. (This was checked on %s; --unchecked leaves that out, for what is installed on other nodes only.)", driverText(w), w.Name, plainFault(err), s.cfg.Node))
}

// plainFault is the error's text without the class at its end.
func plainFault(err error) string {
	text := strings.TrimSuffix(err.Error(), ".")
	for _, class := range []error{cluster.ErrRefused, cluster.ErrNotFound} {
		text = strings.TrimSuffix(text, ": "+class.Error())
	}
	return text
}

func driverText(w cluster.Workload) string {
	if w.Agent == "" {
		return string(w.Driver)
	}
	return string(w.Driver) + ":" + w.Agent
}

func (s *Server) postWorkload(r *request) (answer, error) {
	w, fail := newWorkload(r.args)
	if fail != nil {
		return answer{}, fail
	}
	checked := false
	written, err := s.writeWorkload(r, w.Name, w.ID, func(st state, seen cluster.Versioned[cluster.Workload]) (workloadWrite, *failure) {
		switch {
		case seen.Present:
			return workloadWrite{}, refuse(http.StatusConflict, fmt.Sprintf("There is a workload %q already; nothing was changed. `pvc workload info %s` shows it, `pvc workload set` changes it.", w.Name, w.Name))
		case len(st.snap.Workloads) >= cluster.MaxWorkloads:
			return workloadWrite{}, refuse(http.StatusBadRequest, fmt.Sprintf("There are %d workloads, and no more are managed; nothing was changed.", len(st.snap.Workloads)))
		}
		if fail := st.placeable(&w, w.Members()); fail != nil {
			return workloadWrite{}, fail
		}
		if fail := checkWorkload(w); fail != nil {
			return workloadWrite{}, fail
		}
		if !checked { // nothing is run for what is refused anyway
			if fail := s.driverCheck(r, w); fail != nil {
				return workloadWrite{}, fail
			}
			checked = true
		}
		text := fmt.Sprintf("Added workload %q (%s, %s).%s", w.Name, w.Kind, driverText(w), st.laterText())
		return workloadWrite{next: w, text: text, event: fmt.Sprintf("workload %s was added: %s, driver %s, chain %s", w.Name, w.Kind, driverText(w), chainText(w.Chain))}, nil
	})
	if err != nil {
		return answer{}, err
	}
	if wait := r.args.wait(0); wait > 0 && w.Wanted {
		return s.awaitOrder(r.ctx, written, wait, (*awaited).added)
	}
	return written.accepted(http.StatusAccepted)
}

// laterText is what an operator is told where nobody carries anything out now.
func (st state) laterText() string {
	switch {
	case st.holder() == "":
		return " Nobody holds the primary role now; it is carried out once somebody does (`pvc explain primary`)."
	case st.withoutLeases() != nil:
		return " The first quorum set of node leases is just being made; it is carried out as soon as the leases of its nodes are held, in some seconds (`pvc lease list`)."
	}
	return ""
}

func (s *Server) putWorkload(r *request) (answer, error) {
	if len(r.args) == 0 || len(r.args) == 1 && r.args.has("unchecked") {
		return answer{}, refuse(http.StatusBadRequest, fmt.Sprintf("Nothing is named that shall change; known: %s.", r.route.paramNames()))
	}
	id, checked := newOrderID(), false
	written, err := s.writeWorkload(r, r.workload(), id, func(st state, seen cluster.Versioned[cluster.Workload]) (workloadWrite, *failure) {
		if fail := readableWorkload(r.workload(), seen); fail != nil {
			return workloadWrite{}, fail
		}
		w, before := seen.Value.Clone(), seen.Value
		if fail := setWorkload(&w, r.args); fail != nil {
			return workloadWrite{}, fail
		}
		if fail := st.changeable(before, &w, r.args); fail != nil {
			return workloadWrite{}, fail
		}
		if fail := st.placeable(&w, nil); fail != nil { // what its chain names is the primary's
			return workloadWrite{}, fail
		}
		if fail := checkWorkload(w); fail != nil {
			return workloadWrite{}, fail
		}
		changed := changedSettings(before, w)
		if len(changed) == 0 {
			return workloadWrite{next: before, already: true, text: fmt.Sprintf("Workload %q is so already.", w.Name)}, nil
		}
		if !checked && (slices.Contains(changed, "params") || slices.Contains(changed, "live") && w.Live) {
			if fail := s.driverCheck(r, w); fail != nil {
				return workloadWrite{}, fail
			}
			checked = true
		}
		text := fmt.Sprintf("Changed of workload %q: %s.", w.Name, strings.Join(changed, ", "))
		if slices.Contains(changed, "params") {
			text += " Parameters count from its next start on."
		}
		return workloadWrite{next: w, text: text, event: fmt.Sprintf("workload %s was changed: %s", w.Name, strings.Join(changed, ", "))}, nil
	})
	if err != nil {
		return answer{}, err
	}
	return written.accepted(http.StatusOK)
}

// changeable says what of a workload that is there cannot be changed so.
func (st state) changeable(before cluster.Workload, w *cluster.Workload, a args) *failure {
	switch {
	case w.Kind == cluster.WorkloadMovable && w.Replicas > 0:
		return badArgument("replicas", "A movable workload has one copy.")
	case w.Kind == cluster.WorkloadReplicated && len(before.Chain) > 0 && w.Replicas != before.Replicas:
		return badArgument("replicas", fmt.Sprintf("Its chain is made and has %d places, and the length of a chain never changes; add another workload.", len(before.Chain)))
	}
	if !a.has("nodes") {
		return nil
	}
	for _, n := range before.Members() { // one that was removed has no copy to be moved
		if _, known := st.snap.Nodes[n]; known && len(w.Nodes) > 0 && !slices.Contains(w.Nodes, n) {
			return badArgument("nodes", fmt.Sprintf("Node %q is in its chain (%s): move its copy away first (`pvc workload move`, or `pvc node flush %s`).", n, chainText(before.Chain), n))
		}
	}
	return nil
}

// changedSettings names what differs, in order.
func changedSettings(a, b cluster.Workload) []string {
	var changed []string
	for _, c := range []struct {
		name    string
		differs bool
	}{
		{"priority", a.Priority != b.Priority}, {"selector", a.Selector != b.Selector}, {"memory", a.MemoryMiB != b.MemoryMiB}, {"vcpus", a.VCPUs != b.VCPUs},
		{"autostart", a.Autostart != b.Autostart}, {"protected", a.Protected != b.Protected}, {"live", a.Live != b.Live}, {"ephemeral", a.Ephemeral != b.Ephemeral}, {"nodes", !slices.Equal(a.Nodes, b.Nodes)},
		{"replicas", a.Replicas != b.Replicas}, {"coordinators_only", a.CoordinatorsOnly != b.CoordinatorsOnly}, {"params", !sameParams(a.Params, b.Params)},
	} {
		if c.differs {
			changed = append(changed, c.name)
		}
	}
	return changed
}

func sameParams(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for name, value := range a {
		if other, there := b[name]; !there || other != value {
			return false
		}
	}
	return true
}
