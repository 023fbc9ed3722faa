package driver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// ocfFeatureSet is the version of Pacemaker's interface by which agents choose how
// they call its commands.
const ocfFeatureSet = "3.16.2"

// recurringMonitor is what a monitor of a copy that was started is told to be: one
// of many, not a first look at what may be there.
const recurringMonitor = 10 * time.Second

// agentPath is where agents find programs, after the commands that we answer.
const agentPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// env is the whole environment of one action, but for what ocfEvent adds.
func (o *OCF) env(a *ocfAgent, w cluster.Workload, action string, interval time.Duration) map[string]string {
	members := o.members(w)
	env := map[string]string{
		"OCF_ROOT": o.cfg.Root, "OCF_RESOURCE_INSTANCE": w.Name, "OCF_RESOURCE_TYPE": a.kind, "OCF_RESOURCE_PROVIDER": a.provider,
		"OCF_RA_VERSION_MAJOR": "1", "OCF_RA_VERSION_MINOR": "1",
		"PATH": o.shims + ":" + agentPath, "LC_ALL": "C", "HA_SBIN_DIR": o.shims,
		"OCF_RESKEY_crm_feature_set":  ocfFeatureSet,
		"OCF_RESKEY_CRM_meta_name":    action,
		"OCF_RESKEY_CRM_meta_timeout": strconv.FormatInt(a.timeout(w, action).Milliseconds(), 10), "OCF_RESKEY_CRM_meta_interval": strconv.FormatInt(interval.Milliseconds(), 10),
		"OCF_RESKEY_CRM_meta_on_node": string(o.cfg.Node), "OCF_RESKEY_CRM_meta_on_node_uuid": strconv.Itoa(slices.Index(members, string(o.cfg.Node)) + 1),
		shimRecord: o.store.file(w.Name), shimID: w.ID, shimNode: string(o.cfg.Node), shimMembers: strings.Join(members, " "),
		shimInstance: w.Name, shimAgent: a.String(),
	}
	if o.cfg.RunDir != "" {
		env["HA_RSCTMP"] = o.cfg.RunDir
	}
	if level, ok := w.Params[checkLevelParam]; ok && !a.takes(checkLevelParam) {
		env["OCF_CHECK_LEVEL"] = level
	}
	if w.Kind == cluster.WorkloadReplicated {
		maps.Copy(env, cloneEnv(a, len(members)))
	}
	for name, value := range w.Params {
		if a.takes(name) {
			env["OCF_RESKEY_"+name] = value
		}
	}
	return env
}

// cloneEnv says to the agent that it is one of several copies, of which one is
// promoted.
func cloneEnv(a *ocfAgent, members int) map[string]string {
	max := strconv.Itoa(members)
	return map[string]string{
		"OCF_RESKEY_CRM_meta_clone": "0", "OCF_RESKEY_CRM_meta_clone_max": max, "OCF_RESKEY_CRM_meta_clone_node_max": "1",
		"OCF_RESKEY_CRM_meta_globally_unique": "false", "OCF_RESKEY_CRM_meta_promotable": "true",
		"OCF_RESKEY_CRM_meta_promoted_max": "1", "OCF_RESKEY_CRM_meta_promoted_node_max": "1",
		"OCF_RESKEY_CRM_meta_master_max": "1", "OCF_RESKEY_CRM_meta_master_node_max": "1",
		"OCF_RESKEY_CRM_meta_notify": strconv.FormatBool(a.meta.announces("notify")),
	}
}

// members are the nodes of the workload, this one included, in order.
func (o *OCF) members(w cluster.Workload) []string {
	list := []string{string(o.cfg.Node)}
	for _, n := range w.Members() {
		list = append(list, string(n))
	}
	if w.Next != nil {
		for _, n := range w.Next.Chain {
			list = append(list, string(n))
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	return slices.DeleteFunc(list, func(n string) bool { return n == string(cluster.NoCopy) })
}

// ocfEvent is what an agent is told of that happens, or has happened, to copies of
// its workload.
type ocfEvent struct {
	when  string // pre, post
	what  string // start, stop, promote, demote
	nodes []cluster.NodeID
}

// parseOCFEvent reads "post-promote hv2", "pre-start hv2 hv3".
func parseOCFEvent(note string) (ocfEvent, error) {
	words := strings.Fields(note)
	if len(words) >= 2 && len(words) <= 1+cluster.MaxChain {
		when, what, _ := strings.Cut(words[0], "-")
		e := ocfEvent{when: when, what: what}
		for _, n := range words[1:] {
			e.nodes = append(e.nodes, cluster.NodeID(n))
		}
		named := !slices.ContainsFunc(e.nodes, func(n cluster.NodeID) bool { return n.Validate() != nil })
		named = named && (what != "promote" || len(e.nodes) == 1)
		if (when == "pre" || when == "post") && slices.Contains([]string{"start", "stop", "promote", "demote"}, what) && named {
			return e, nil
		}
	}
	return ocfEvent{}, fmt.Errorf("the note %q is none that OCF agents are told: write \"post-promote NODE\", with pre or post, start, stop, promote or demote: %w", note, cluster.ErrRefused)
}

// notifyEnv are the lists by which Pacemaker tells who is what, and what happens.
// Where a list is empty it says one blank, as Pacemaker does.
func (o *OCF) notifyEnv(w cluster.Workload, promoted cluster.NodeID, e ocfEvent) map[string]string {
	members := o.members(w)
	lists := map[string][]string{"active": nil, "all": members, "available": members, "inactive": nil, "start": nil, "stop": nil, "promote": nil, "demote": nil}
	for _, m := range members {
		if e.when == "pre" && e.what == "start" && slices.Contains(e.nodes, cluster.NodeID(m)) { // not yet
			lists["inactive"] = append(lists["inactive"], m)
			continue
		}
		lists["active"] = append(lists["active"], m)
		if cluster.NodeID(m) == promoted {
			lists["master"], lists["promoted"] = []string{m}, []string{m}
			continue
		}
		lists["slave"], lists["unpromoted"] = append(lists["slave"], m), append(lists["unpromoted"], m)
	}
	env := map[string]string{}
	if e.what != "" {
		for _, n := range e.nodes {
			lists[e.what] = append(lists[e.what], string(n))
		}
		env["OCF_RESKEY_CRM_meta_notify_type"], env["OCF_RESKEY_CRM_meta_notify_operation"] = e.when, e.what
	}
	for _, name := range []string{"active", "all", "available", "inactive", "start", "stop", "promote", "demote", "master", "promoted", "slave", "unpromoted"} {
		list := lists[name]
		unames, instances := strings.Join(list, " "), strings.TrimSpace(strings.Repeat(w.Name+" ", len(list)))
		if len(list) == 0 {
			unames, instances = " ", " "
		}
		env["OCF_RESKEY_CRM_meta_notify_"+name+"_uname"] = unames
		env["OCF_RESKEY_CRM_meta_notify_"+name+"_resource"] = instances
	}
	return env
}

// envList is the environment as a service's specification has it.
func envList(env map[string]string) []string {
	list := make([]string, 0, len(env))
	for _, name := range sortedKeys(env) {
		list = append(list, name+"="+env[name])
	}
	return list
}
