package membership

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

const now = cluster.Instant(time.Hour)

func seen[T any](v T) cluster.Versioned[T] {
	return cluster.Versioned[T]{Value: v, Present: true, SeenAt: now.Add(-time.Second), Mzxid: 7, Version: 3}
}

func absent[T any]() cluster.Versioned[T] { return cluster.Versioned[T]{SeenAt: now} }

// three coordinators, hv1 primary, hv3 stopped in order, and hv4, a hypervisor.
func three() Input {
	s := &cluster.Snapshot{
		Live: true, Complete: true, PrimaryNode: seen("hv1"), Transition: absent[cluster.Transition](),
		Lease:   seen(cluster.Lease{Version: 1, Holder: "hv1", Incarnation: "b1.1", Epoch: 5}),
		Quorum:  seen(cluster.QuorumSet{Version: 1, Nodes: []cluster.NodeID{"hv1", "hv2", "hv3"}, IDs: map[cluster.NodeID]string{"hv1": "id-hv1", "hv2": "id-hv2", "hv3": "id-hv3"}, Epoch: 4, N: 1}),
		Members: cluster.Versioned[cluster.Members]{SeenAt: now, Mzxid: 1},
		Nodes:   map[cluster.NodeID]cluster.NodeView{},
	}
	for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3", "hv4"} {
		v := cluster.NodeView{
			Name: n, Mode: seen(cluster.Coordinator), Keepalive: seen(int64(1)), Daemon: seen(cluster.DaemonRun), Router: seen(cluster.RouterSecondary),
			Record: seen(cluster.NodeRecord{ID: "id-" + string(n), Incarnation: "b.1"}), Alive: seen(cluster.Alive{Incarnation: "b.1"}), Fence: absent[cluster.FenceRecord](),
		}
		switch n {
		case "hv3":
			v.Daemon, v.Alive = seen(cluster.DaemonStop), absent[cluster.Alive]()
		case "hv4":
			v.Mode = seen(cluster.Hypervisor)
		}
		s.Nodes[n] = v
	}
	in := Input{Self: "hv1", Epoch: 5, Now: now, WallMS: 9, Snapshot: s, Fences: true}
	in.See = func(cluster.NodeID) cluster.Liveness { return cluster.LiveUp }
	return in
}

func (in *Input) node(n cluster.NodeID, edit func(*cluster.NodeView)) {
	v := in.Snapshot.Nodes[n]
	v.Name = n
	edit(&v)
	in.Snapshot.Nodes[n] = v
}

func (in *Input) removed(list ...cluster.RemovedNode) {
	in.Snapshot.Members = seen(cluster.Members{Version: 1, N: 3, Removed: list})
}

// what a decision is, in one line.
func line(d Decision) string {
	switch {
	case d.Refusal.Code != "":
		return fmt.Sprintf("refused %s: %s", d.Refusal.Code, d.Refusal.Detail)
	case d.Wait != "":
		return "waits: " + d.Wait
	}
	text := d.Effect.String()
	if d.Ends {
		text += " ends"
	}
	if d.Set != nil {
		text += fmt.Sprintf(" %v→%v", d.Old, d.Set.Nodes)
	}
	if d.Members != nil {
		for _, r := range d.Members.Removed {
			text += fmt.Sprintf(" out:%s/%s", r.Node, r.Host)
			if r.Free {
				text += "/free"
			}
		}
	}
	return text
}

func TestWhatBecomesOfAnOrder(t *testing.T) {
	const add, remove = cluster.MemberAdd, cluster.MemberRemove
	dead := func(n cluster.NodeID) func(*Input) {
		return func(in *Input) {
			in.node(n, func(v *cluster.NodeView) { v.Daemon, v.Alive = seen(cluster.DaemonRun), absent[cluster.Alive]() })
			in.See = func(cluster.NodeID) cluster.Liveness { return cluster.LiveDead }
		}
	}
	fence := func(f cluster.FenceRecord) func(*Input) {
		return func(in *Input) {
			dead("hv3")(in)
			f.ID = "f"
			in.node("hv3", func(v *cluster.NodeView) { v.Fence = seen(f) })
		}
	}
	unregistered := func(n cluster.NodeID) func(*Input) { return func(in *Input) { delete(in.Snapshot.Nodes, n) } }
	set := func(nodes ...cluster.NodeID) func(*Input) {
		return func(in *Input) { in.Snapshot.Quorum = seen(cluster.QuorumSet{Version: 1, Nodes: nodes, N: 1}) }
	}
	comes := func(to cluster.NodeID) func(*Input) {
		return func(in *Input) {
			in.Snapshot.Workloads = map[string]cluster.Versioned[cluster.Workload]{"vm1": seen(cluster.Workload{Name: "vm1", Chain: []cluster.NodeID{"hv1"},
				Next: &cluster.ChainMove{Chain: []cluster.NodeID{to}, Live: cluster.LiveRecovering}})}
		}
	}
	for _, c := range []struct {
		name, action string
		node         cluster.NodeID
		edit         func(*Input)
		want         string // how the line begins
		words        string // what is in it
	}{
		{"stopped in order", remove, "hv3", nil, "removed ends [hv1 hv2 hv3]→[hv1 hv2] out:hv3/id-hv3", ""},
		{"a hypervisor", remove, "hv4", func(in *Input) {
			in.node("hv4", func(v *cluster.NodeView) { v.Daemon, v.Alive = seen(cluster.DaemonStop), absent[cluster.Alive]() })
		}, "removed ends out:hv4/id-hv4", ""},
		{"stopped while a workload came to it live", remove, "hv3", comes("hv3"), "refused holds_something", `workload "vm1" was on its way`},
		{"stopped while a workload went from it live", remove, "hv3", comes("hv2"), "removed ends", ""},
		{"fenced while a workload came to it live", remove, "hv3", func(in *Input) {
			comes("hv3")(in)
			fence(cluster.FenceRecord{Stage: cluster.FenceDone, Proof: "confirmed", Incarnation: "b.1"})(in)
		}, "removed ends", ""},
		{"alive", remove, "hv2", nil, "refused alive_still_present", "its last keepalive is 1s old"},
		{"oneself", remove, "hv1", nil, "refused oneself", "switch the role first"},
		{"unknown", remove, "hv9", nil, "refused unknown_node", "hv9"},
		{"a path", remove, "../hv3", nil, "refused order_not_understood", "not a node name"},
		{"removed already", remove, "hv9", func(in *Input) { in.removed(cluster.RemovedNode{Node: "hv9", Host: "x"}) }, "already ends", ""},
		{"its records were deleted by hand", remove, "hv3", unregistered("hv3"), "removed ends [hv1 hv2 hv3]→[hv1 hv2] out:hv3/id-hv3", ""},
		{"another host has the name by now", remove, "hv3", func(in *Input) {
			in.node("hv3", func(v *cluster.NodeView) { v.Record.Value.ID = "id-new" })
		}, "refused other_host", `"id-new"`},
		{"the last that counts", remove, "hv3", set("hv3"), "refused last_coordinator", ""},
		{"one that does not count", remove, "hv3", set("hv1"), "removed ends out:hv3/id-hv3", ""},
		{"holds the lease, run out", remove, "hv3", func(in *Input) { in.Snapshot.Lease.Value.Holder = "hv3" }, "refused holds_something", "primary role"},
		{"owes its proof", remove, "hv3", func(in *Input) {
			in.Snapshot.Lease.Value.Unproven = []cluster.Unproven{{Node: "hv3", Incarnation: "b.0"}}
		}, "refused dead_proof_missing", "fence confirm hv3"},
		{"shall be primary", remove, "hv3", func(in *Input) { in.Snapshot.PrimaryNode.Value = "hv3" }, "refused holds_something", "primary_node"},
		{"waits for the lock", remove, "hv3", func(in *Input) {
			in.Snapshot.RoleLock = []cluster.LockChild{{Owner: cluster.LockOwner{Node: "hv3"}}}
		}, "waits", "lock"},
		{"in a hand-over", remove, "hv3", func(in *Input) {
			in.Snapshot.Transition = seen(cluster.Transition{ID: "t", State: cluster.TransitionRunning, From: "hv1", To: "hv3"})
		}, "waits", "hand-over"},
		{"in one for long", remove, "hv3", func(in *Input) {
			in.Snapshot.Transition = seen(cluster.Transition{ID: "t", State: cluster.TransitionRunning, From: "hv1", To: "hv3"})
			in.Waited = Patience
		}, "refused holds_something", "for 5m0s: a hand-over"},
		{"dead, not proven", remove, "hv3", dead("hv3"), "refused not_dead", "nothing proves it dead"},
		{"dead where nobody fences", remove, "hv3", func(in *Input) { dead("hv3")(in); in.Fences = false }, "removed", ""},
		{"suspect where nobody fences", remove, "hv3", func(in *Input) {
			dead("hv3")(in)
			in.Fences, in.See = false, func(cluster.NodeID) cluster.Liveness { return cluster.LiveSuspect }
		}, "refused not_dead", "is suspect: its last keepalive is 1s old"},
		{"dead, judged by a blind one", remove, "hv3", func(in *Input) { dead("hv3")(in); in.Fences, in.Blind = false, "young session" }, "waits", "young session"},
		{"being fenced", remove, "hv3", fence(cluster.FenceRecord{Stage: cluster.FencePowerOff, By: "hv1"}), "refused fence_under_way", "stage power_off"},
		{"its fence failed", remove, "hv3", fence(cluster.FenceRecord{Stage: cluster.FenceFailed, By: "hv1"}), "refused fence_under_way", ""},
		{"its fence waits for a word", remove, "hv3", fence(cluster.FenceRecord{Stage: cluster.FenceManual, Incarnation: "b.1"}), "refused fence_under_way", "fence confirm"},
		{"fenced", remove, "hv3", fence(cluster.FenceRecord{Stage: cluster.FenceDone, Proof: "verified_off", Incarnation: "b.1"}), "removed ends", ""},
		{"an earlier start fenced", remove, "hv3", fence(cluster.FenceRecord{Stage: cluster.FenceDone, Proof: "verified_off", Incarnation: "b.0"}), "refused not_dead", ""},
		{"a fence record that cannot be read", remove, "hv3", func(in *Input) {
			in.node("hv3", func(v *cluster.NodeView) { v.Fence = seen(cluster.FenceRecord{}); v.Fence.Err = errors.New("rubbish") })
		}, "refused record_unreadable", "rubbish"},
		{"a fence order stands", remove, "hv3", func(in *Input) {
			in.node("hv3", func(v *cluster.NodeView) { v.Order = seen(cluster.FenceOrder{ID: "o"}) })
		}, "waits", "about its fence"},
		{"no set yet", remove, "hv3", func(in *Input) { in.Snapshot.Quorum = absent[cluster.QuorumSet]() }, "waits", "no quorum set yet"},
		{"a set of rubbish", remove, "hv3", func(in *Input) {
			in.Snapshot.Quorum = cluster.Versioned[cluster.QuorumSet]{Present: true, SeenAt: now, Err: errors.New("rubbish")}
			in.Waited = Patience
		}, "refused record_unreadable", "rubbish"},
		{"records that are being read", remove, "hv3", func(in *Input) {
			in.node("hv3", func(v *cluster.NodeView) { v.Record = cluster.Versioned[cluster.NodeRecord]{} })
		}, "waits", "being read"},
		{"never registered, heard of late", remove, "hv3", func(in *Input) {
			in.node("hv3", func(v *cluster.NodeView) { v.Daemon, v.Record = seen(cluster.DaemonInit), absent[cluster.NodeRecord]() })
		}, "waits", "no registration"},
		{"never registered, silent", remove, "hv3", func(in *Input) {
			in.node("hv3", func(v *cluster.NodeView) {
				v.Daemon, v.Record = seen(cluster.DaemonInit), absent[cluster.NodeRecord]()
				v.Keepalive.SeenAt = now.Add(-Patience)
			})
		}, "removed", ""},
		{"the order is rubbish", remove, "hv3", func(in *Input) { in.Snapshot.MemberOrder.Err = errors.New("rubbish") }, "refused order_not_understood", "rubbish"},
		{"what is that", "tickle", "hv3", nil, "refused order_not_understood", "tickle"},

		{"a new coordinator", add, "hv2", set("hv1", "hv3"), "counted ends [hv1 hv3]→[hv1 hv2 hv3]", ""},
		{"one that counts", add, "hv2", nil, "already ends", "already"},
		{"one that is away", add, "hv3", set("hv1", "hv2"), "waits", "does not run"},
		{"one that is suspect", add, "hv2", func(in *Input) {
			set("hv1")(in)
			in.See = func(cluster.NodeID) cluster.Liveness { return cluster.LiveSuspect }
		}, "waits", "does not run"},
		{"judged by a blind one", add, "hv2", func(in *Input) { set("hv1")(in); in.Blind = "young" }, "waits", "young"},
		{"another host by a name that counts", add, "hv2", func(in *Input) { in.node("hv2", func(v *cluster.NodeView) { v.Record.Value.ID = "id-new" }) }, "refused other_host", "--host id-new"},
		{"unknown", add, "hv9", nil, "refused unknown_node", "start pvcnoded there first"},
		{"a hypervisor by its own word", add, "hv4", nil, "already ends", ""},
		{"a hypervisor as a coordinator", add + " coordinator", "hv4", nil, "refused not_coordinator", "node.mode"},
		{"a coordinator that shall count no more", add + " hypervisor", "hv2", nil, "counts_no_more ends [hv1 hv2 hv3]→[hv1 hv3]", ""},
		{"the last that counts as no more", add + " hypervisor", "hv2", set("hv2"), "refused last_coordinator", ""},
		{"a removed name", add, "hv9", func(in *Input) { in.removed(cluster.RemovedNode{Node: "hv9", Host: "x"}) }, "admitted out:hv9/x/free", ""},
		{"a removed name, as a hypervisor", add + " hypervisor", "hv9", func(in *Input) { in.removed(cluster.RemovedNode{Node: "hv9", Host: "x"}) }, "admitted ends out:hv9/x/free", ""},
		{"a removed host", add + " host=x", "hv9", func(in *Input) {
			in.removed(cluster.RemovedNode{Node: "hv9", Host: "x", Free: true}, cluster.RemovedNode{Node: "hv9", Host: "y"})
		}, "admitted out:hv9/y/free", ""},
		{"let in and not here yet", add, "hv9", func(in *Input) { in.removed(cluster.RemovedNode{Node: "hv9", Host: "x", Free: true}) }, "waits", "has not yet"},
		{"let in and never came", add, "hv9", func(in *Input) {
			in.removed(cluster.RemovedNode{Node: "hv9", Host: "x", Free: true})
			in.Waited = Patience
		}, "refused not_registered", ""},
		{"let in, and another host came", add + " host=x", "hv2", func(in *Input) { set("hv1")(in) }, "refused other_host", "id-hv2"},
		{"who was removed cannot be read", add, "hv2", func(in *Input) { in.Snapshot.Members.Err = errors.New("rubbish") }, "waits", "rubbish"},
	} {
		in := three()
		words := strings.Fields(c.action)
		o := cluster.MemberOrder{ID: "o", Action: words[0], Node: c.node, By: "ann"}
		if o.Action == remove {
			o.Host = "id-" + string(c.node)
		}
		for _, w := range words[1:] {
			if host, is := strings.CutPrefix(w, "host="); is {
				o.Host = host
			} else {
				o.Mode = cluster.Mode(w)
			}
		}
		in.Snapshot.MemberOrder = seen(o)
		if c.edit != nil {
			c.edit(&in)
		}
		got := line(Order(in))
		if !strings.HasPrefix(got, c.want) || !strings.Contains(got+Order(in).Text, c.words) {
			t.Errorf("%s, %s %s:\n got %s\nwant %s … %s", c.name, c.action, c.node, got, c.want, c.words)
		}
		if strings.HasPrefix(got, "refused") && !strings.Contains(got, "node "+string(c.node)+": ") {
			t.Errorf("%s: which node? %s", c.name, got)
		}
	}
}

// No record that a decision makes shares a part with the one that it was made of.
func TestDecisionsEditNothing(t *testing.T) {
	in := three()
	in.removed(cluster.RemovedNode{Node: "hv3", Host: "old", Free: true})
	in.Snapshot.MemberOrder = seen(cluster.MemberOrder{ID: "o", Action: cluster.MemberRemove, Node: "hv3", Host: "id-hv3"})
	d := Order(in)
	d.Set.Nodes[0], d.Set.IDs["hv1"], d.Members.Removed[0].Host = "x", "x", "x"
	if q := in.Snapshot.Quorum.Value; q.Nodes[0] != "hv1" || q.IDs["hv1"] != "id-hv1" || in.Snapshot.Members.Value.Removed[0].Host != "old" {
		t.Errorf("%+v, %+v", q, in.Snapshot.Members.Value)
	}
	if d.Set.N != 2 || d.Set.Epoch != 5 || d.Members.N != 4 || d.Members.Epoch != 5 {
		t.Errorf("%+v, %+v", d.Set, d.Members)
	}
}

// A host that is let in again is waited for, as a name that is free again is: what
// lets it in takes it off the list of those who are out, where it may have been the
// only one.
func TestAHostThatIsLetInIsWaitedFor(t *testing.T) {
	for _, host := range []string{"id-hv9", ""} {
		in := three()
		in.removed(cluster.RemovedNode{Node: "hv9", Host: "id-hv9"})
		in.Snapshot.MemberOrder = seen(cluster.MemberOrder{ID: "o", Action: cluster.MemberAdd, Node: "hv9", Host: host})
		d := Order(in)
		if d.Effect != Admit || d.Ends {
			t.Fatalf("host %q: %s", host, line(d))
		}
		in.Snapshot.Members = seen(*d.Members)
		if got := line(Order(in)); !strings.HasPrefix(got, "waits: it may register and has not yet") {
			t.Errorf("host %q, let in: %s", host, got)
		}
		in.Waited = Patience
		if got := line(Order(in)); !strings.HasPrefix(got, "refused not_registered") {
			t.Errorf("host %q, five minutes later: %s", host, got)
		}
	}
}

func TestWithoutMajorities(t *testing.T) {
	in := three()
	in.Snapshot.MemberOrder = seen(cluster.MemberOrder{ID: "o", Action: cluster.MemberRemove, Node: "hv3", Host: "id-hv3"})
	d := Order(in)
	if got := line(Unheld(in, d, "1 of 3")); got != "waits: majorities of [hv1 hv2 hv3] and of [hv1 hv2] are not held: 1 of 3" {
		t.Error(got)
	}
	in.Waited = Patience
	if got := line(Unheld(in, d, "1 of 3")); !strings.HasPrefix(got, "refused no_quorum") || !strings.Contains(got, "1 of 3. Nothing was changed") || !strings.Contains(got, "--hypervisor") {
		t.Error(got)
	}
}

func TestTheFirstSet(t *testing.T) {
	in := three()
	in.Snapshot.Quorum = absent[cluster.QuorumSet]()
	var s FirstState
	step := func(after time.Duration) string {
		in.Now = in.Now.Add(after)
		var d Decision
		s, d = First(s, in)
		return line(d)
	}
	if got := step(0); got != "waits: the coordinators [hv1 hv2 hv3] have just registered" {
		t.Error(got)
	}
	in.node("hv5", func(v *cluster.NodeView) { v.Mode = seen(cluster.Coordinator) })
	if got := step(Settle); got != "waits: the records of node hv5 are not known" {
		t.Error(got)
	}
	in.node("hv5", func(v *cluster.NodeView) { v.Record = seen(cluster.NodeRecord{}) })
	if got := step(Settle) + step(Settle-1); strings.Count(got, "[hv1 hv2 hv3 hv5] have just") != 2 {
		t.Error(got)
	}
	if got := step(1); got != "bootstrap []→[hv1 hv2 hv3 hv5]" {
		t.Error(got)
	}
	_, d := First(s, in)
	if d.Set.Epoch != 5 || d.Set.N != 1 || d.Set.IDs["hv3"] != "id-hv3" || len(d.Set.IDs) != 3 || d.Set.Validate() != nil {
		t.Errorf("%+v", d.Set)
	}
	in.Snapshot.Quorum = seen(cluster.QuorumSet{Nodes: []cluster.NodeID{"hv1"}})
	if got := step(time.Hour); got != "none" {
		t.Errorf("a set that stands is made anew: %s", got)
	}
	in.Snapshot.Quorum = cluster.Versioned[cluster.QuorumSet]{Present: true, SeenAt: now, Err: errors.New("rubbish")}
	if got := step(time.Hour) + step(time.Hour); got != "nonenone" {
		t.Errorf("a set that cannot be read is made anew: %s", got)
	}
}

func TestADamagedSet(t *testing.T) {
	in := three()
	last := in.Snapshot.Quorum.Value
	last.N = 7
	for name, q := range map[string]cluster.Versioned[cluster.QuorumSet]{
		"rubbish": {Present: true, SeenAt: now, Version: 9, Err: errors.New("rubbish")}, "gone": {SeenAt: now},
	} {
		in.Snapshot.Quorum = q
		if d := Mend(in, last); d.Effect != Restore || !slices.Equal(d.Set.Nodes, last.Nodes) || d.Set.N != 8 || d.Set.Epoch != 5 {
			t.Errorf("%s: %s", name, line(d))
		}
		if d := Mend(in, cluster.QuorumSet{}); d.Effect != None {
			t.Errorf("%s, and nobody remembers: %s", name, line(d))
		}
	}
	delete(in.Snapshot.Nodes, "hv2") // another tree
	if d := Mend(in, last); d.Effect != None {
		t.Error(line(d))
	}
}

func TestAForeignSet(t *testing.T) {
	at := func(epoch cluster.Epoch, n uint64, version int32) cluster.Versioned[cluster.QuorumSet] {
		return cluster.Versioned[cluster.QuorumSet]{Present: true, Version: version, Mzxid: int64(version), Value: cluster.QuorumSet{Nodes: []cluster.NodeID{"hv1"}, Epoch: epoch, N: n}}
	}
	broken := at(5, 3, 4)
	broken.Err = errors.New("rubbish")
	for name, c := range map[string]struct {
		before, now cluster.Versioned[cluster.QuorumSet]
		want        bool
	}{
		"the same":         {at(4, 2, 3), at(4, 2, 3), false},
		"my own":           {at(4, 2, 3), at(5, 3, 4), false},
		"of another epoch": {at(4, 2, 3), at(4, 3, 4), true},
		"an older one":     {at(5, 2, 3), at(5, 2, 4), true},
		"deleted":          {at(4, 2, 3), cluster.Versioned[cluster.QuorumSet]{}, true},
		"unreadable":       {at(4, 2, 3), broken, true},
		"the first":        {cluster.Versioned[cluster.QuorumSet]{}, at(4, 2, 3), false},
	} {
		if got := Foreign(5, c.before, c.now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Identity is the name and the host (F7).
func TestWhoStaysOut(t *testing.T) {
	var m cluster.Members
	m = m.Removing(cluster.RemovedNode{Node: "hv3", Host: "a"}, 5)
	out := func(n cluster.NodeID, host string) bool { _, is := m.Out(n, host); return is }
	if !out("hv3", "a") || !out("hv3", "b") || !out("hv3", "") || out("hv2", "a") {
		t.Error("removed", m)
	}
	m = m.Admitting("hv3", "", 5)
	if !out("hv3", "a") || out("hv3", "b") || out("hv3", "") {
		t.Error("the name is free", m)
	}
	m = m.Removing(cluster.RemovedNode{Node: "hv3", Host: "b"}, 6)
	if !out("hv3", "c") || !out("hv3", "b") || !out("hv3", "a") {
		t.Error("the next is removed", m)
	}
	m = m.Admitting("hv3", "b", 6)
	if out("hv3", "b") || !out("hv3", "a") || out("hv3", "c") || m.N != 4 {
		t.Error("that host comes back", m)
	}
	for i := range 2 * cluster.MostRemoved {
		m = m.Removing(cluster.RemovedNode{Node: "hv9", Host: fmt.Sprint(i)}, 6)
	}
	if len(m.Removed) != cluster.MostRemoved || !out("hv9", "none") || out("hv3", "a") {
		t.Error("many", len(m.Removed))
	}
}
