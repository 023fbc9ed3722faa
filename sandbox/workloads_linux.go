package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// dummyAgent is Debian's OCF resource agent that does nothing but remember that it
// was started.
const dummyAgent = "/usr/lib/ocf/resource.d/heartbeat/Dummy"

// cacheName is the demo's Redis pair.
const cacheName = "cache"

// DemoWorkloads are what a cluster to show runs, as far as this machine has the
// programs: a program of one's own, a few OCF agents, one of them moved live, and a Redis pair that comes
// back empty when it is restarted. notes says what is missing.
func (s *Sandbox) DemoWorkloads() (list []cluster.Workload, notes []string) {
	list = append(list, s.CopyWorkload("job"))
	if _, err := os.Stat(dummyAgent); err == nil {
		for _, name := range []string{"web", "mail", "queue"} {
			w := cluster.Workload{Name: name, Kind: cluster.WorkloadMovable, Driver: cluster.DriverOCF, Agent: "heartbeat:Dummy", Live: name == "web"}
			list = append(list, s.whole(w))
		}
	} else {
		notes = append(notes, "without OCF workloads: Debian's package resource-agents is missing")
	}
	if _, err := exec.LookPath("redis-server"); err == nil {
		list = append(list, s.RedisWorkload(cacheName, s.lastTwo()...))
	} else {
		notes = append(notes, "without a Redis pair: Debian's package redis-server is missing")
	}
	return list, notes
}

// CopyWorkload is a movable workload whose processes the sandbox sees (CopyMain).
func (s *Sandbox) CopyWorkload(name string) cluster.Workload {
	return s.whole(cluster.Workload{Name: name, Kind: cluster.WorkloadMovable, Driver: cluster.DriverExec,
		Params: map[string]string{"command": strings.Join(append(slices.Clone(s.options.Helper), "sandbox-copy", name, s.hookSocket()), " ")}})
}

// seen reports whether the sandbox sees the workload's processes.
func (s *Sandbox) seen(w cluster.Workload) bool {
	return w.Driver == cluster.DriverExec && strings.HasSuffix(w.Params["command"], s.hookSocket())
}

// RedisWorkload is an ephemeral Redis on these nodes, the first one active.
func (s *Sandbox) RedisWorkload(name string, chain ...cluster.NodeID) cluster.Workload {
	return s.whole(cluster.Workload{Name: name, Kind: cluster.WorkloadReplicated, Driver: cluster.DriverRedis, Ephemeral: true,
		Replicas: max(0, len(chain)-1), Nodes: chain, Chain: chain, Params: map[string]string{"password_file": s.redisPasswordFile()}})
}

// lastTwo are the last two coordinators: the first one is most often primary.
func (s *Sandbox) lastTwo() []cluster.NodeID {
	var names []cluster.NodeID
	for _, n := range s.coordinators() {
		names = append(names, n.Plan.Name)
	}
	return names[max(0, len(names)-2):]
}

// whole fills in what a new workload has.
func (s *Sandbox) whole(w cluster.Workload) cluster.Workload {
	w.Version, w.ID, w.Wanted, w.Autostart, w.State = 1, fmt.Sprintf("%s-%d", w.Name, now()), true, true, cluster.WorkloadNew
	w.SinceMS = time.Now().UnixMilli()
	return w
}

// StartWorkloads has every node take workloads, writes the records, as an
// operator's orders would, and waits until all of them run.
func (s *Sandbox) StartWorkloads(ctx context.Context, list ...cluster.Workload) error {
	for _, n := range s.nodes {
		if err := s.setDomain(ctx, n, cluster.DomainReady, cluster.DomainUnflush); err != nil {
			return err
		}
	}
	for _, w := range list {
		key := cluster.Key{Kind: cluster.KeyWorkload, Name: w.Name}
		res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.workload", Ops: []cluster.Op{cluster.Create(key, w)}})
		if res.Outcome != cluster.OutcomeOK {
			return fmt.Errorf("add workload %s: %s: %w", w.Name, res.Outcome, res.Err)
		}
	}
	limited, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	err := s.store.wait(limited, func(snap *cluster.Snapshot) error {
		for _, w := range list {
			if snap.Workloads[w.Name].Value.ID != w.ID {
				return fmt.Errorf("the record of workload %s is not seen yet", w.Name)
			}
		}
		return nil
	})
	if err = errors.Join(err, s.WaitConverged(ctx)); err != nil {
		return err
	}
	// A Redis that holds nothing has no copies to speak of: a replica that loses its
	// link without having a key counts as none.
	for _, w := range list {
		if w.Driver == cluster.DriverRedis && len(w.Chain) > 1 {
			if _, err := s.acknowledged(ctx, keys{workload: w.Name, prefix: "first"}, 10); err != nil {
				return err
			}
		}
	}
	return nil
}

// Ready waits for the cluster, and has it run its workloads where the options want
// them and none is there yet. What is returned says, for people, what runs where.
func (s *Sandbox) Ready(ctx context.Context) (says []string, err error) {
	if err := s.WaitConverged(ctx); err != nil || !s.options.Workloads {
		return nil, err
	}
	if len(s.store.latest().Workloads) == 0 {
		list, notes := s.DemoWorkloads()
		says = notes
		if err := s.StartWorkloads(ctx, list...); err != nil {
			return says, err
		}
	}
	var parts []string
	snap := s.store.latest()
	for _, name := range slices.Sorted(maps.Keys(snap.Workloads)) {
		w := snap.Workloads[name].Value
		parts = append(parts, fmt.Sprintf("%s (%s) on %s", name, w.Driver, strings.Trim(fmt.Sprint(w.Members()), "[]")))
	}
	return append(says, "workloads: "+strings.Join(parts, ", ")), nil
}

// setDomain writes a node's domain state unless it says the answer already.
func (s *Sandbox) setDomain(ctx context.Context, n *Node, answer, wish cluster.DomainState) error {
	for {
		snap, err := s.store.Refresh(ctx)
		if err != nil {
			return fmt.Errorf("read the domain state of %s: %w", n.Plan.Name, err)
		}
		record := snap.Nodes[n.Plan.Name].Domain
		if record.Value == answer || record.Value == wish {
			return nil
		}
		key := cluster.Key{Kind: cluster.KeyDomainState, Node: n.Plan.Name}
		res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.domain", Ops: []cluster.Op{cluster.Put(key, record, wish)}})
		if res.Outcome == cluster.OutcomeOK {
			s.history.Add(Entry{Kind: KindIntent, Name: intentDomain, Node: n.Plan.Name, Text: string(wish)})
			return nil
		}
		if res.Outcome != cluster.OutcomeConflict || ctx.Err() != nil {
			return fmt.Errorf("write the domain state %s of %s: %s: %w", wish, n.Plan.Name, res.Outcome, res.Err)
		}
	}
}

// intentDomain is the name of an operator's acknowledged flush or ready.
const intentDomain = "domain_state"

// waitDomain waits until the node has answered.
func (s *Sandbox) waitDomain(ctx context.Context, n *Node, want cluster.DomainState, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return s.store.wait(ctx, func(snap *cluster.Snapshot) error {
		if is := snap.Nodes[n.Plan.Name].Domain.Value; is != want {
			return fmt.Errorf("%s is %q, not %q; of the workloads: %v", n.Plan.Name, is, want, s.workloadsMissing(snap))
		}
		return nil
	})
}

// changeWorkload changes a workload's record as an operator's order would.
func (s *Sandbox) changeWorkload(ctx context.Context, name string, change func(*cluster.Workload)) error {
	for {
		snap, err := s.store.Refresh(ctx)
		if err != nil {
			return fmt.Errorf("read workload %s: %w", name, err)
		}
		record := snap.Workloads[name]
		if !record.Present || record.Err != nil {
			return fmt.Errorf("workload %s cannot be changed: it is not there, or cannot be read (%w)", name, record.Err)
		}
		w := record.Value.Clone()
		change(&w)
		key := cluster.Key{Kind: cluster.KeyWorkload, Name: name}
		res := s.store.Commit(ctx, cluster.Txn{Purpose: "sandbox.workload", Ops: []cluster.Op{cluster.Set(key, record.Version, w)}})
		if res.Outcome == cluster.OutcomeOK {
			return nil
		}
		if res.Outcome != cluster.OutcomeConflict || ctx.Err() != nil {
			return fmt.Errorf("change workload %s: %s: %w", name, res.Outcome, res.Err)
		}
	}
}

// orderMove orders a workload to another node.
func (s *Sandbox) orderMove(ctx context.Context, name string, to cluster.NodeID) error {
	return s.changeWorkload(ctx, name, func(w *cluster.Workload) {
		w.Request = &cluster.WorkloadRequest{ID: fmt.Sprintf("sandbox-%d", now()), Op: cluster.WorkloadMove, Node: to, By: "sandbox", AtMS: time.Now().UnixMilli()}
	})
}

// workloadsMissing says what workloads lack of running where they are to be.
func (s *Sandbox) workloadsMissing(snap *cluster.Snapshot) []string {
	var missing []string
	add := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	for _, name := range slices.Sorted(maps.Keys(snap.Workloads)) {
		v := snap.Workloads[name]
		w := v.Value
		switch {
		case !v.Present:
		case v.Err != nil:
			add("the record of workload %s cannot be read: %v", name, v.Err)
		case w.Request != nil:
			add("the order to %s workload %s is not answered", w.Request.Op, name)
		case w.Next != nil:
			add("workload %s is on its way to %v", name, w.Next.Chain)
		case w.Wanted && w.State != cluster.WorkloadRunning:
			add("workload %s is %s at %v: %s", name, w.State, w.Chain, w.Reason)
		case w.Wanted && s.seen(w) && !slices.Equal(s.hooks.copies(name), []cluster.NodeID{w.Head()}):
			add("the processes of workload %s are on %v, not on %s alone", name, s.hooks.copies(name), w.Head())
		}
	}
	return missing
}

// head is the node of the workload's active copy, by its record.
func (s *Sandbox) head(name string) (*Node, error) {
	w := s.store.latest().Workloads[name]
	if n := s.Node(w.Value.Head()); w.Present && n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("workload %s runs nowhere", name)
}

// heads are the workloads whose active copy is to be on the node.
func (s *Sandbox) heads(snap *cluster.Snapshot, n *Node) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(snap.Workloads)) {
		if w := snap.Workloads[name]; w.Present && w.Err == nil && w.Value.Head() == n.Plan.Name {
			names = append(names, name)
		}
	}
	return names
}

// errNoWorkloads says that a fault needs workloads.
var errNoWorkloads = errors.New("no workloads run here: start the sandbox with its workloads")
