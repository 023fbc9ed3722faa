package zkhandler

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"pvc.internal/cluster"
)

// lateRoots are what a daemon needs before it can register or take the role:
// they are made last and at once, so that none acts on a half tree.
var lateRoots = []string{configTop, schemaRecord, leaseDir, aliveTop}

// tree is what is restored, parents first: early, and what comes with the last
// write. Nothing in it has a daemon fenced, a fence, a hand-over or an order go
// on, or an old holder's right come back:
//   - every node counts as stopped until it registers, which is no silence (I4);
//   - the lease is released, EpochGap above all epochs known (I2), and
//     primary_node is "none";
//   - workloads keep where they were to be, and are begun anew there: nothing that
//     was under way goes on, and orders that were not carried out are answered so;
//   - a hand-over that was under way is aborted, a fence canceled, or done where
//     its node was proven dead; orders are taken back; maintenance is off;
//   - the history's entries are numbered anew, since ZooKeeper counts from zero.
func (r *restore) tree(nowMS int64) (early, late []leaf, err error) {
	values := map[string]string{}
	for _, rec := range r.b.Records {
		if value, kept := restoredValue(rec); kept {
			values[rec.Path] = value
		}
	}
	bare := schema{}
	fill := func(tree []leaf) {
		for _, l := range tree {
			if _, there := values[l.path]; !there {
				values[l.path] = l.value
			}
		}
	}
	fill(bare.freshTree(r.b.Cluster, r.b.Schema))
	r.done.Cluster, r.done.BackupMS, r.done.Nodes = r.b.Cluster, r.b.MadeMS, r.b.nodes()
	r.done.Maintenance = strings.TrimSpace(r.b.text(maintenanceFlag)) == "true"
	for _, n := range r.done.Nodes {
		mode, err := decodeMode([]byte(values[nodesTop+"/"+n]))
		if id := cluster.NodeID(n); err != nil || id.Validate() != nil {
			continue // a hand's: left as it is
		}
		dir := nodesTop + "/" + n + "/"
		router := cluster.RouterSecondary
		if mode == cluster.Hypervisor {
			router = cluster.RouterClient
		}
		fill(bare.freshNode(cluster.NodeID(n), mode, 0))
		if r.b.Schema >= cluster.FactsSchema {
			fill(bare.freshFacts(cluster.NodeID(n)))
		}
		values[dir+"daemonstate"], values[dir+"routerstate"] = string(cluster.DaemonStop), string(router)
	}
	r.done.Epoch = r.mark.Epoch + EpochGap
	lease := cluster.Lease{Epoch: r.done.Epoch}
	if old, err := decodeLease([]byte(r.b.text(leaseRecord))); err == nil {
		lease.Unproven = old.Unproven
	}
	raw, err := encode(cluster.KeyLease, lease)
	if err != nil {
		return nil, nil, err
	}
	values[leaseRecord] = string(raw)
	if err := r.history(values, nowMS); err != nil {
		return nil, nil, err
	}
	delete(values, agentTop) // it stands, with the mark in it
	var paths []string
	for p := range values {
		paths = append(paths, p)
	}
	slices.Sort(paths) // what is above comes first
	size := 0
	for _, p := range paths {
		l := leaf{p, values[p]}
		if slices.ContainsFunc(lateRoots, func(top string) bool { return p == top || strings.HasPrefix(p, top+"/") }) {
			late, size = append(late, l), size+opOverhead+len(p)+len(l.value)+r.h.aclSize
			continue
		}
		early = append(early, l)
	}
	if size > maxRequest {
		return nil, nil, fmt.Errorf("%w: /config holds %d bytes, more than one write takes", cluster.ErrTooLarge, size)
	}
	return early, late, nil
}

// nodes are the names of the backup's nodes.
func (b Backup) nodes() []string {
	var names []string
	for _, r := range b.Records {
		if name, ok := strings.CutPrefix(r.Path, nodesTop+"/"); ok && !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}
	return names
}

// restoredValue is what a record of the backup is restored as.
func restoredValue(r BackupRecord) (value string, kept bool) {
	data := r.data()
	dir, name, _ := strings.Cut(strings.TrimPrefix(r.Path, agentTop+"/"), "/")
	switch {
	case r.Path == wishRecord:
		return cluster.NoNode, true
	case r.Path == maintenanceFlag:
		return "false", true
	case r.Path == maintenanceRecord, r.Path == restoreMark, lockContender(r.Path):
		return "", false
	case r.Path == memberOrder, strings.HasPrefix(r.Path, orderDir+"/"):
		return "", true
	case r.Path == transitionRecord:
		return endedTransition(data)
	case strings.HasPrefix(r.Path, agentTop+"/") && dir == "fences" && name != "":
		return endedFence(data)
	case strings.HasPrefix(r.Path, workloadDir+"/"):
		return endedWorkload(data), true
	case r.Path == rebalanceRecord:
		return endedRebalance(data)
	case r.Path == reprovisionRecord:
		return endedReset(data), true
	case toldAnew(r.Path):
		return "", true
	case strings.HasPrefix(r.Path, historyTop+"/"):
		return "", false // numbered anew, below
	}
	for _, dir := range leftOut { // a backup made by hand, or by a later program
		if strings.HasPrefix(r.Path, dir+"/") {
			return "", false
		}
	}
	return string(data), true
}

// endedByRestore is what records say that were under way.
const endedByRestore = "the tree was restored from a backup"

func endedTransition(data []byte) (string, bool) {
	t, err := decodeTransition(data)
	if err != nil {
		return "", false
	}
	if t.Running() {
		t.State, t.Error = cluster.TransitionAborted, endedByRestore
	}
	raw, err := encode(cluster.KeyTransition, t)
	return string(raw), err == nil
}

func endedFence(data []byte) (string, bool) {
	f, err := decodeFence(data)
	if err != nil {
		return "", false
	}
	switch {
	case f.Ended() && f.Stage != cluster.FenceManual:
	case f.Proof != "":
		f.Stage = cluster.FenceDone
	default:
		f.Stage, f.Result = cluster.FenceCanceled, endedByRestore
	}
	raw, err := encode(cluster.KeyFence, f)
	return string(raw), err == nil
}

// endedWorkload is a workload as it was to be, with nothing under way. Its chain is
// as old as the backup: what runs elsewhere is found by asking, since nothing is
// started before the nodes have answered (I4). A record that cannot be read stays
// for people to see.
func endedWorkload(data []byte) string {
	w, err := decodeWorkload(data)
	if err != nil {
		return string(data)
	}
	if r := w.Request; r != nil {
		w.Answer = &cluster.WorkloadAnswer{ID: r.ID, AtMS: r.AtMS, Text: endedByRestore + "; order it again"}
	}
	w.Request, w.Next, w.Attempts, w.History = nil, nil, 0, "" // what was the newest history then need not be now
	switch w.State {
	case cluster.WorkloadStopped, cluster.WorkloadFailed, cluster.WorkloadFaulty:
	default:
		w.State, w.Reason = cluster.WorkloadStarting, endedByRestore
		if len(w.Chain) == 0 {
			w.State = cluster.WorkloadNew
		}
	}
	raw, err := encode(cluster.KeyWorkload, w)
	if err != nil {
		return string(data)
	}
	return string(raw)
}

func endedRebalance(data []byte) (string, bool) {
	r, err := decodeRebalance(data)
	if err != nil {
		return "", false
	}
	if !r.Ended() {
		r.State, r.Text = cluster.RebalanceStopped, endedByRestore
	}
	raw, err := encode(cluster.KeyRebalance, r)
	return string(raw), err == nil
}

// endedReset takes back a reset of the count that nobody has carried out.
func endedReset(data []byte) string {
	s, err := decodeReprovision(data)
	if err != nil {
		return string(data)
	}
	s.Reset = ""
	raw, err := encode(cluster.KeyReprovision, s)
	if err != nil {
		return string(data)
	}
	return string(raw)
}

// history numbers the entries anew and adds what happens now.
func (r *restore) history(values map[string]string, nowMS int64) error {
	n := 0
	add := func(value string) {
		values[fmt.Sprintf("%s/%010d", historyTop, n)] = value
		n++
	}
	for _, rec := range r.b.Records { // in order
		if strings.HasPrefix(rec.Path, historyTop+"/") {
			add(string(rec.data()))
		}
	}
	raw, err := json.Marshal(cluster.Event{Version: 1, UnixMS: nowMS, Kind: eventRestored,
		Text:   fmt.Sprintf("the tree was restored by %s from the backup of %s; epochs go on above %d", r.o.By, clockText(r.b.MadeMS), r.done.Epoch),
		Fields: map[string]string{"backup_zxid": r.b.ZxidLast, "epoch": fmt.Sprint(r.done.Epoch)}})
	if err != nil {
		return err
	}
	add(string(raw))
	return nil
}
