package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pvc.internal/cluster"
)

// ocfBed is the driver of one node over a real guard.
type ocfBed struct {
	*guardBed
	ocf *OCF
	dir string
}

// newOCFBed makes one with the agents of this machine, or those below root.
func newOCFBed(t *testing.T, root, netns string) *ocfBed {
	t.Helper()
	if root == "" {
		if _, err := os.Stat("/usr/lib/ocf/resource.d/heartbeat/Dummy"); err != nil {
			t.Skip("needs Debian's resource-agents: make deps")
		}
	}
	b := &ocfBed{guardBed: newGuardBed(t, netns), dir: t.TempDir()}
	b.open(root)
	return b
}

// open makes the driver, as a new process of the agent does.
func (b *ocfBed) open(root string) {
	b.t.Helper()
	var err error
	b.ocf, err = NewOCF(OCFConfig{Node: "hv1", Guard: b.client, Root: root, StateDir: b.dir + "/ocf", RunDir: b.dir + "/run"})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *ocfBed) workload(kind cluster.WorkloadKind, agent string, params map[string]string) cluster.Workload {
	w := cluster.Workload{Version: 1, Name: "web", ID: "id-1", Kind: kind, Driver: cluster.DriverOCF, Agent: agent, Params: params, Wanted: true, Chain: []cluster.NodeID{"hv1"}}
	if kind == cluster.WorkloadReplicated {
		w.Chain = []cluster.NodeID{"hv1", "hv2"}
	}
	return w
}

// order gives an order and expects it to succeed.
func (b *ocfBed) order(w cluster.Workload, op cluster.CopyOp) cluster.CopyReport {
	b.t.Helper()
	r, err := b.give(cluster.CopyOrder{Op: op, Workload: w})
	if err != nil {
		b.t.Fatalf("%s: %v", op, err)
	}
	return r
}

func (b *ocfBed) give(o cluster.CopyOrder) (cluster.CopyReport, error) {
	return b.ocf.Order(deadlined(b.t), orders(7), o)
}

// is expects the copy to be this.
func (b *ocfBed) is(w cluster.Workload, want cluster.CopyState) cluster.CopyReport {
	b.t.Helper()
	r, err := b.ocf.Probe(deadlined(b.t), w)
	if err != nil {
		b.t.Fatal(err)
	}
	if r.State != want {
		b.t.Fatalf("the copy is %s (%s), want %s", r.State, r.Error, want)
	}
	return r
}

// holds expects the guard to hold the copy, or not to.
func (b *ocfBed) holds(w cluster.Workload, want bool) {
	b.t.Helper()
	held, err := b.ocf.held(deadlined(b.t), w)
	if err != nil || (held != nil) != want {
		b.t.Fatalf("the guard holds %+v (%v), want that it holds it: %v", held, err, want)
	}
}

func TestAMovableOCFCopyOfDebian(t *testing.T) {
	t.Parallel()
	b := newOCFBed(t, "", "")
	w := b.workload(cluster.WorkloadMovable, "heartbeat:Dummy", map[string]string{"fake": "x"})
	if err := b.ocf.Check(deadlined(t), w); err != nil {
		t.Fatal(err)
	}
	b.is(w, cluster.CopyMissing)
	first := b.order(w, cluster.CopyStart)
	if first.State != cluster.CopyActive || first.Start == "" {
		t.Fatalf("started: %+v", first)
	}
	b.holds(w, true)
	if again := b.order(w, cluster.CopyStart); again.Start != first.Start {
		t.Errorf("a second start was not a no-op: %+v, %+v", first, again)
	}
	b.restart() // a guard that is killed keeps it
	b.open("")  // and so does an agent that is restarted
	if r := b.is(w, cluster.CopyActive); r.Start != first.Start {
		t.Errorf("after restarts of guard and agent it is another start: %+v, %+v", first, r)
	}
	b.order(w, cluster.CopyStop)
	b.is(w, cluster.CopyMissing)
	b.holds(w, false)
	if next := b.order(w, cluster.CopyStart); next.Start == first.Start {
		t.Error("another start has the name of the first")
	}
	b.expire() // the node's own right ends, and the copy with it
	b.is(w, cluster.CopyMissing)
}

func TestACopyThatSomebodyElseHasStarted(t *testing.T) {
	t.Parallel()
	b := newOCFBed(t, "", "")
	state := filepath.Join(b.dir, "by-hand")
	w := b.workload(cluster.WorkloadMovable, "heartbeat:Dummy", map[string]string{"state": state})
	byHand := func() {
		if err := os.WriteFile(state, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	byHand()
	if r := b.is(w, cluster.CopyActive); r.Start != "" {
		t.Errorf("the start of a copy that was started by hand has a name: %+v", r)
	}
	b.holds(w, false)
	b.order(w, cluster.CopyStart) // takes it over as it is
	b.holds(w, true)
	b.expire()
	b.is(w, cluster.CopyMissing)
	b.entitle(bedPatience)
	byHand()
	b.order(w, cluster.CopyStop)
	b.is(w, cluster.CopyMissing)
	if _, err := os.Stat(state); err == nil {
		t.Error("it was not stopped")
	}
}

// A workload that was removed while this node was away, and made anew under its
// name, does not begin with the copy of the first.
func TestACopyOfAnEarlierWorkloadOfTheName(t *testing.T) {
	t.Parallel()
	b := newOCFBed(t, "", "")
	w := b.workload(cluster.WorkloadReplicated, "heartbeat:Stateful", nil)
	b.order(w, cluster.CopyPromote)
	w.ID = "id-2"
	if r := b.is(w, cluster.CopyDead); !strings.Contains(r.Error, "an earlier workload") {
		t.Errorf("the copy of the first: %+v", r)
	}
	if r := b.order(w, cluster.CopyStart); r.State != cluster.CopyReplica {
		t.Errorf("the new one's copy is %s", r.State)
	}
	held, err := b.ocf.held(deadlined(t), w)
	if err != nil || held == nil || held.Note != w.ID {
		t.Errorf("the guard holds %+v, %v", held, err)
	}
}

func TestAReplicatedOCFCopyOfDebian(t *testing.T) {
	t.Parallel()
	b := newOCFBed(t, "", "")
	w := b.workload(cluster.WorkloadReplicated, "heartbeat:Stateful", nil)
	if err := b.ocf.Check(deadlined(t), w); err != nil {
		t.Fatal(err)
	}
	b.is(w, cluster.CopyMissing)
	if r := b.order(w, cluster.CopyPromote); r.State != cluster.CopyActive || r.HasOffset {
		t.Fatalf("promoted: %+v", r)
	}
	if score, ok := b.ocf.store.load(w.Name, w.ID).score(w.Name); !ok || score != 10 {
		t.Errorf("the promotion score that the agent has said is %d (%v), want 10", score, ok)
	}
	b.order(w, cluster.CopyPromote)
	if r := b.order(w, cluster.CopyDemote); r.State != cluster.CopyReplica || r.Follows != cluster.NoCopy {
		t.Fatalf("demoted: %+v", r)
	}
	b.order(w, cluster.CopyPromote)
	r, err := b.give(cluster.CopyOrder{Op: cluster.CopyFollow, Workload: w, Source: &cluster.CopySource{Node: "hv2", Host: "192.0.2.2"}, Secret: "s"})
	if err != nil || r.State != cluster.CopyReplica || r.Follows != "hv2" || !r.HasOffset || r.Offset != 5 {
		t.Fatalf("following: %+v, %v", r, err)
	}
	b.order(w, cluster.CopyPromote)
	b.order(w, cluster.CopyStop) // of one that refuses to be stopped while it is promoted
	b.is(w, cluster.CopyMissing)
	b.order(w, cluster.CopyPromote)
	b.expire()
	b.is(w, cluster.CopyMissing)
	if _, ok := b.ocf.store.load(w.Name, w.ID).score(w.Name); ok {
		t.Error("a stopped copy has a score")
	}
	b.entitle(bedPatience)
	b.order(w, cluster.CopyStart)
	if r := b.order(w, cluster.CopyDestroy); r.State != cluster.CopyMissing {
		t.Fatalf("destroyed: %+v", r)
	}
	if _, err := os.Stat(b.ocf.store.file(w.Name)); err == nil {
		t.Error("its record stays")
	}
}

func TestCheckOfOCFWorkloads(t *testing.T) {
	t.Parallel()
	b := newOCFBed(t, "", "")
	for name, c := range map[string]struct {
		kind   cluster.WorkloadKind
		agent  string
		params map[string]string
		want   string
		is     error
	}{
		"unknown agent":      {cluster.WorkloadMovable, "heartbeat:dUmmy", nil, "is heartbeat:Dummy meant?", cluster.ErrNotFound},
		"another provider":   {cluster.WorkloadMovable, "pacemaker:Stateful", nil, "heartbeat:Stateful", cluster.ErrNotFound},
		"out of the folder":  {cluster.WorkloadMovable, "heartbeat:../../../bin/sh", nil, "no OCF agent's name", cluster.ErrRefused},
		"no agent":           {cluster.WorkloadMovable, "", nil, "no OCF agent's name", cluster.ErrRefused},
		"unknown parameter":  {cluster.WorkloadMovable, "heartbeat:Dummy", map[string]string{"stat": "x"}, `does not know parameter "stat"`, cluster.ErrRefused},
		"missing parameter":  {cluster.WorkloadMovable, "heartbeat:IPaddr2", nil, `misses parameter "ip"`, cluster.ErrRefused},
		"no number":          {cluster.WorkloadMovable, "heartbeat:IPaddr2", map[string]string{"ip": "192.0.2.1", "arp_count": "five"}, "not a whole number", cluster.ErrRefused},
		"no boolean":         {cluster.WorkloadMovable, "heartbeat:IPaddr2", map[string]string{"ip": "192.0.2.1", "lvs_support": "maybe"}, "not true or false", cluster.ErrRefused},
		"no promote":         {cluster.WorkloadReplicated, "heartbeat:Dummy", nil, "knows neither promote nor demote", cluster.ErrRefused},
		"timeout of nothing": {cluster.WorkloadMovable, "heartbeat:Dummy", map[string]string{"timeout_promote": "5s"}, `no action "promote"`, cluster.ErrRefused},
		"timeout too long":   {cluster.WorkloadMovable, "heartbeat:Dummy", map[string]string{"timeout_start": "9h"}, "not within", cluster.ErrRefused},
		"no timeout":         {cluster.WorkloadMovable, "heartbeat:Dummy", map[string]string{"timeout_start": "soon"}, "no time", cluster.ErrRefused},
		"refused by itself":  {cluster.WorkloadMovable, "heartbeat:Dummy", map[string]string{"state": "/proc/no/such"}, "is not writable", cluster.ErrRefused},
		"as it should be":    {cluster.WorkloadMovable, "ocf:heartbeat:Dummy", map[string]string{"timeout_start": "5s", "check_level": "10"}, "", nil},
	} {
		err := b.ocf.Check(deadlined(t), b.workload(c.kind, c.agent, c.params))
		if (c.want == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), c.want) || !errors.Is(err, c.is)) {
			t.Errorf("%s: %v, want %q and %v", name, err, c.want, c.is)
		}
	}
}

// An order whose activity has ended does nothing.
func TestAnOCFOrderWithoutAToken(t *testing.T) {
	t.Parallel()
	b := newOCFBed(t, "", "")
	w := b.workload(cluster.WorkloadMovable, "heartbeat:Dummy", nil)
	over := cluster.MintToken(cluster.TokenWire{}, func() error { return context.Canceled })
	r, err := b.ocf.Order(deadlined(t), over, cluster.CopyOrder{Op: cluster.CopyStart, Workload: w})
	if !errors.Is(err, cluster.ErrNoToken) || r.State != cluster.CopyMissing {
		t.Errorf("%+v, %v", r, err)
	}
	b.holds(w, false)
}

// What an agent says of its failure comes with the last error that it has logged, which
// names the parameter, unless that is the same.
func TestWhatAnAgentSaysOfItsFailure(t *testing.T) {
	for stderr, want := range map[string]string{
		"Nov 21 11:58:16 ERROR: Invalid netmask specification [abc].\nocf-exit-reason:[findif] failed\n": "[findif] failed; Invalid netmask specification [abc].",
		"ocf-exit-reason:no such file\nNov 21 11:58:16 ERROR: no such file\n":                            "no such file",
		"Nov 21 11:58:16 ERROR: first\nNov 21 11:58:16 ERROR: second\nocf-exit-reason:it failed\n":       "it failed; second",
		"Nov 21 11:58:16 ERROR: first\nthe end\n":                                                        "the end",
		"ocf-exit-reason:a\nocf-exit-reason:b\nocf-exit-reason:a\nINFO: it goes on\n":                    "a; b",
		"": "",
	} {
		if got := exitReason([]byte(stderr)); got != want {
			t.Errorf("%q: %q, want %q", stderr, got, want)
		}
	}
}
