package agent_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
	"pvc.internal/zkhandler/zktest"
)

// inCopyWorld runs a test in a cluster of three coordinators with copies, hv1 being
// primary and everybody sighted.
func inCopyWorld(t *testing.T, tune func(*agent.Config, *agent.Deps), fn func(b *bubble, w *copyWorld)) {
	t.Parallel()
	copyWorldOf(t, tune, fn)
}

// copyWorldOf is inCopyWorld for a test that needs several.
func copyWorldOf(t *testing.T, tune func(*agent.Config, *agent.Deps), fn func(b *bubble, w *copyWorld)) {
	w := newCopyWorld()
	o := nodesCalled("hv1", "hv2", "hv3")
	o.talk = true
	o.tune = func(c *agent.Config, d *agent.Deps) {
		w.tune(c, d)
		if tune != nil {
			tune(c, d)
		}
	}
	inBubble(t, o, func(b *bubble) {
		b.restful()
		for _, n := range o.names {
			b.store.Set("/nodes/"+string(n)+"/domainstate", []byte(cluster.DomainReady))
		}
		fn(b, w)
		for _, wrong := range w.faults() {
			t.Error(wrong)
		}
		if t.Failed() {
			t.Logf("orders: %s", w.said())
		}
	})
}

// cache is the workload of most tests: [hv2, hv3], in memory.
func (b *bubble) cache(w *copyWorld) {
	b.t.Helper()
	b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: []cluster.NodeID{"hv2", "hv3"}, Nodes: []cluster.NodeID{"hv1", "hv2", "hv3"}, Replicas: 1})
	b.runs(w, "hv2", "hv3")
	w.write("cache", 1000)
}

// runs waits until the cache is active on one node, followed by another.
func (b *bubble) runs(w *copyWorld, head, replica cluster.NodeID) {
	b.t.Helper()
	b.eventually(30*time.Second, fmt.Sprintf("the cache runs on %s, followed by %s", head, replica), func() bool {
		return w.state(head, "cache") == cluster.CopyActive && (replica == "" || w.state(replica, "cache") == cluster.CopyReplica) &&
			b.workload("cache").State == cluster.WorkloadRunning
	})
}

// A record is all it takes: list and chain are made, the head promoted, the replica
// follows; and then nothing is written any more, whatever passes run (I8).
func TestAWorkloadIsBroughtUpAndThenLeftAlone(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Replicas: 1})
		b.eventually(30*time.Second, "it runs with a replica", func() bool {
			r := b.workload("cache")
			return len(r.Chain) == 2 && w.state(r.Chain[0], "cache") == cluster.CopyActive && w.state(r.Chain[1], "cache") == cluster.CopyReplica && r.State == cluster.WorkloadRunning
		})
		if r := b.workload("cache"); !slices.Equal(r.Nodes, []cluster.NodeID{"hv1", "hv2", "hv3"}) {
			t.Errorf("its list is %v", r.Nodes)
		}
		time.Sleep(10 * time.Second) // what was begun is over and told
		from, probes := len(b.store.History()), w.count(&w.probes)
		b.eventually(600*time.Second, "100 passes", func() bool { return w.count(&w.probes) >= probes+300 })
		for _, h := range b.store.History()[from:] {
			if strings.HasPrefix(h.Path, "/agent/workloads") || strings.HasPrefix(h.Path, "/agent/activities") || strings.HasPrefix(h.Path, "/agent/history") || h.Path == reprovisionPath {
				t.Errorf("passes that change nothing write: %s", h)
			}
		}
	})
}

// The process of the head is restarted empty: it is not brought online, the replica
// is promoted, the count is one, and no key is lost (S121).
func TestAHeadThatCameBackEmptyIsNotBroughtOnline(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		w.restartEmpty("hv2", "cache")
		b.eventually(2*time.Second, "hv3 serves", func() bool { return w.state("hv3", "cache") == cluster.CopyActive })
		b.runs(w, "hv3", "")
		if r := b.workload("cache"); !slices.Equal(r.Chain, []cluster.NodeID{"hv3", ""}) {
			t.Errorf("its chain is %v", r.Chain)
		}
		s := b.reprovision()
		if s.Count != 1 || !slices.Equal(s.Nodes, []cluster.NodeID{"hv2"}) || s.Armed() {
			t.Errorf("the count is %+v", s)
		}
		codes := map[string]int{}
		for _, e := range b.told("workload_fault") {
			codes[e.Fields["code"]]++
		}
		if codes["reprovisioned"] != 1 || codes["reprovision_off"] != 1 {
			t.Errorf("the history tells %v", codes)
		}
		const remains = "hv2 is empty: rebalance when healthy"
		if !slices.ContainsFunc(b.told("workload_fault"), func(e cluster.Event) bool {
			return e.Fields["code"] == "reprovisioned" && e.Fields["node"] == "hv2" && strings.Contains(e.Text, remains)
		}) {
			t.Errorf("no event says that %s", remains)
		}
		if faults := b.store.Children("/faults"); len(faults) != 1 || !strings.Contains(b.read("/faults/"+faults[0]+"/message"), remains) || b.read("/faults/"+faults[0]+"/status") != "new" {
			t.Errorf("the alerts are %v", faults)
		}
		b.eventually(5*time.Second, "the primary's health says so", func() bool {
			return slices.ContainsFunc(b.viewOf("hv1").Faults, func(f string) bool { return strings.Contains(f, "hv2") && strings.Contains(f, "rebalance") })
		})
		f := b.figures("hv1")
		for name, want := range map[string]float64{"pvc_reprovision_nodes_count{}": 1, "pvc_workload_faults_count{reprovisioned}": 1, "pvc_workload_faults_count{reprovision_off}": 1,
			"pvc_workload_unsafe_nodes_count{}": 0, "pvc_workloads_count{running}": 1, "pvc_janitor_passes_total{failed}": 0} {
			if f[name] != want {
				t.Errorf("%s is %v, want %v", name, f[name], want)
			}
		}
		if age := float64(time.Now().UnixMilli())/1000 - f["pvc_janitor_last_success_unix_seconds{}"]; age < 0 || age > 7 || f["pvc_janitor_passes_total{done}"] < 2 || f["pvc_janitor_applies_total{done}"] < 2 {
			t.Errorf("the last pass was %v s ago, of %v, with %v applies", age, f["pvc_janitor_passes_total{done}"], f["pvc_janitor_applies_total{done}"])
		}
		b.setReset("again")
		b.eventually(5*time.Second, "the reset is carried out", func() bool { s := b.reprovision(); return s.Done == "again" && s.Count == 0 && s.Reset == "" })
		b.eventually(10*time.Second, "and the faults are over", func() bool { return len(b.viewOf("hv1").Faults) == 0 })
	})
}

func (b *bubble) setReset(id string) {
	s := b.reprovision()
	s.Reset = id
	b.setReprovision(s)
}

// reprovisions matches the Multi that counts.
func reprovisions(o zktest.OpInfo) bool { return o.Op == "multi" && o.Touches(reprovisionPath) }

// reprovisionsTold is how often the history tells of a reprovisioned node.
func (b *bubble) reprovisionsTold() (times int) {
	for _, e := range b.told("workload_fault") {
		if e.Fields["code"] == "reprovisioned" {
			times++
		}
	}
	return times
}

// Whatever becomes of the reply to the Multi that counts, one empty head is counted
// once, and served by nobody who has lost its keys (P5).
func TestAnUnknownReplyNeverCountsTwice(t *testing.T) {
	for name, lose := range map[string]func(*bubble){
		"happened": func(b *bubble) { b.store.DropReply("hv1", reprovisions) },
		"did not":  func(b *bubble) { b.store.DropRequest("hv1", reprovisions) },
		"late":     func(b *bubble) { b.store.LateCommit("hv1", reprovisions, 300*time.Millisecond) },
	} {
		t.Run(name, func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.setReprovision(cluster.ReprovisionSettings{Version: 1, Enabled: true, MaxNodes: 3})
				b.cache(w)
				lose(b)
				w.restartEmpty("hv2", "cache")
				b.runs(w, "hv3", "")
				if s := b.reprovision(); s.Count != 1 {
					t.Errorf("the count is %+v", s)
				}
				if told := b.reprovisionsTold(); told != 1 || len(b.store.Children("/faults")) != 1 {
					t.Errorf("it is told %d times, with alerts %v", told, b.store.Children("/faults"))
				}
			})
		})
	}
}

// The primary is switched, or dies, at any moment of the repair: the next one ends
// it, and counts once.
func TestAnotherPrimaryEndsTheRepair(t *testing.T) {
	for name, move := range map[string]func(*bubble, *copyWorld){
		"switched": func(b *bubble, _ *copyWorld) { b.wish("hv2") },
		"killed":   func(b *bubble, _ *copyWorld) { b.kill("hv1") },
	} {
		for _, after := range []time.Duration{0, 30 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond} {
			t.Run(fmt.Sprint(name, after), func(t *testing.T) {
				inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
					b.cache(w)
					w.set(func() { w.slow = 200 * time.Millisecond })
					w.restartEmpty("hv2", "cache")
					time.Sleep(after)
					move(b, w)
					b.eventually(40*time.Second, "another primary", func() bool { p := b.primary(); return p != "" && p != "hv1" })
					b.eventually(40*time.Second, "hv3 serves", func() bool { return w.state("hv3", "cache") == cluster.CopyActive })
					b.runs(w, "hv3", "")
					time.Sleep(10 * time.Second) // its first passes are over
					if s := b.reprovision(); s.Count != 1 || b.reprovisionsTold() != 1 {
						t.Errorf("the count is %+v, told %d times", s, b.reprovisionsTold())
					}
				})
			})
		}
	}
}

// No order of a primary has its effect after a planned switch has begun to hand over,
// however long it takes.
func TestASwitchWaitsForNoPass(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		w.set(func() { w.slow = 10 * time.Second })
		b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: []cluster.NodeID{"hv2", "hv3"}, Replicas: 1})
		b.eventually(30*time.Second, "an order has begun", func() bool { return w.count(&w.begun) > 0 })
		w.set(func() { w.slow = 0 })
		b.wish("hv3")
		b.eventually(4*time.Second, "hv3 is primary", func() bool { return b.primary() == "hv3" })
		b.runs(w, "hv2", "hv3")
	})
}

// While a node is silent its workloads stay as they are; whatever comes back is
// taken up then.
func TestASilentNodesWorkloadsStay(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.addWorkload(cluster.Workload{Name: "other", Ephemeral: true, Chain: []cluster.NodeID{"hv1"}, Nodes: []cluster.NodeID{"hv1"}})
		w.set(func() { w.deaf["hv3"] = true })
		w.restartEmpty("hv2", "cache")
		b.eventually(30*time.Second, "the other workload runs", func() bool { return w.state("hv1", "other") == cluster.CopyActive })
		if got := w.state("hv2", "cache"); got != cluster.CopyMissing {
			t.Errorf("the head that came back empty is %s", got)
		}
		w.set(func() { w.deaf["hv3"] = false })
		b.runs(w, "hv3", "")
	})
}

// An operator who asks for a pass is answered by one that began after that; the
// answer has what every node said.
func TestAProbeIsAnsweredByALaterPass(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.editWorkload("cache", func(r *cluster.Workload) { r.Request = &cluster.WorkloadRequest{ID: "p1", Op: cluster.WorkloadProbe} })
		b.eventually(3*time.Second, "it is answered", func() bool { a := b.workload("cache").Answer; return a != nil && a.ID == "p1" && a.Done })
		r := b.workload("cache")
		if r.Request != nil || len(r.Answer.Copies) != 3 {
			t.Errorf("request %+v, answer %+v", r.Request, r.Answer)
		}
		states := map[cluster.NodeID]cluster.CopyState{}
		for _, c := range r.Answer.Copies {
			states[c.Node] = c.State
		}
		if states["hv1"] != cluster.CopyMissing || states["hv2"] != cluster.CopyActive || states["hv3"] != cluster.CopyReplica {
			t.Errorf("the copies are %v", states)
		}
	})
}

// A pass that crashes takes nothing with it: whoever waits is told once, and the next
// pass does what is to be done (S113).
func TestAPassThatCrashesIsTold(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		w.set(func() { w.fail["promote hv3"] = errors.New("it will not") })
		w.restartEmpty("hv2", "cache")
		b.eventually(20*time.Second, "the chain has moved on", func() bool { return b.workload("cache").Head() == "hv3" })
		time.Sleep(10 * time.Second)
		if got := w.state("hv3", "cache"); got == cluster.CopyActive {
			t.Fatalf("hv3's copy is %s", got)
		}
		w.set(func() { delete(w.fail, "promote hv3") })
		b.runs(w, "hv3", "")
	})
}

// A burst of hints is few passes, and a copy that crashes all the time has no more
// than one pass a second (J14, J15).
func TestBurstsOfHintsAreFewPasses(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		time.Sleep(10 * time.Second)
		before := w.count(&w.probes)
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			w.set(func() {
				select {
				case w.hosts["hv3"].changed <- cluster.CopyChange{Workload: "cache", Text: "again"}:
				default:
				}
			})
		}
		if passes := (w.count(&w.probes) - before) / 3; passes < 3 || passes > 25 {
			t.Errorf("500 hints in 10 s were %d passes", passes)
		}
	})
}

// The primary dies in the middle of an apply: the next one finds what there is, and
// nobody is emptied.
func TestAJanitorKilledInTheMiddleIsGoneOnWith(t *testing.T) {
	for _, orders := range []int{1, 2} {
		t.Run(fmt.Sprint(orders), func(t *testing.T) {
			inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
				b.cache(w)
				b.addWorkload(cluster.Workload{Name: "more", Ephemeral: true, Chain: []cluster.NodeID{"hv3", "hv2"}, Nodes: []cluster.NodeID{"hv2", "hv3"}, Replicas: 1})
				w.set(func() { w.slow = 100 * time.Millisecond })
				at := w.count(&w.begun)
				b.eventually(20*time.Second, "orders have begun", func() bool { return w.count(&w.begun) >= at+orders })
				b.kill("hv1")
				b.eventually(60*time.Second, "another primary has brought it up", func() bool {
					return w.state("hv3", "more") == cluster.CopyActive && w.state("hv2", "more") == cluster.CopyReplica && b.workload("more").State == cluster.WorkloadRunning
				})
				b.runs(w, "hv2", "hv3")
			})
		})
	}
}

// A fence that would lose the last copy of a workload in memory is refused, and the
// operator sees why.
func TestNobodyIsFencedWithTheLastCopy(t *testing.T) {
	words := &asked{}
	inCopyWorld(t, func(c *agent.Config, d *agent.Deps) { d.Fencer = askedFencer{words, c.Node} }, func(b *bubble, w *copyWorld) {
		b.cache(w)
		b.addWorkload(cluster.Workload{Name: "alone", Ephemeral: true, Chain: []cluster.NodeID{"hv3"}, Nodes: []cluster.NodeID{"hv2", "hv3"}})
		b.eventually(30*time.Second, "it runs", func() bool { return b.workload("alone").State == cluster.WorkloadRunning })
		time.Sleep(6 * time.Second) // a pass has seen it
		b.powerOff("hv3")
		b.eventually(2*b.timing.SuspectAfter()+b.timing.SessionTimeout, "the fence is refused", func() bool {
			r := b.viewOf("hv1").Nodes["hv3"].Refusal
			return r != nil && r.Code == cluster.RefuseLastCopy && strings.Contains(r.Detail, "alone")
		})
		b.always(30*time.Second, "nobody is fenced", func() bool { return words.all() == "" })
		b.store.Delete(workloadPath("alone"))
		b.eventually(20*time.Second, "and it is fenced once nothing is lost with it", func() bool { return words.all() == "hv1 fences hv3" })
	})
}

// A new primary does not know yet who else has a copy: it does not fence the old one
// that may have had the last, and says so.
func TestANewPrimaryDoesNotFenceTheLastCopy(t *testing.T) {
	words := &asked{}
	inCopyWorld(t, func(c *agent.Config, d *agent.Deps) { d.Fencer = askedFencer{words, c.Node} }, func(b *bubble, w *copyWorld) {
		b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: []cluster.NodeID{"hv1"}, Nodes: []cluster.NodeID{"hv1", "hv2"}})
		b.runs(w, "hv1", "")
		b.powerOff("hv1")
		b.eventually(2*b.timing.SuspectAfter()+b.timing.SessionTimeout, "the fence is refused", func() bool {
			for _, n := range []cluster.NodeID{"hv2", "hv3"} {
				if r := b.viewOf(n).Nodes["hv1"].Refusal; r != nil && r.Code == cluster.RefuseLastCopy && strings.Contains(r.Detail, "cache") {
					return true
				}
			}
			return false
		})
		b.always(2*time.Minute, "nobody is fenced", func() bool { return words.all() == "" })
	})
}

// A fence needs the domain at once: a pass whose order hangs is ended for it.
func TestAFenceDoesNotWaitForAPass(t *testing.T) {
	words := &asked{}
	inCopyWorld(t, func(c *agent.Config, d *agent.Deps) { d.Fencer = askedFencer{words, c.Node} }, func(b *bubble, w *copyWorld) {
		b.powerOff("hv3")
		w.set(func() { w.slow = 20 * time.Second })
		b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: []cluster.NodeID{"hv2"}, Nodes: []cluster.NodeID{"hv1", "hv2"}})
		b.eventually(b.timing.SuspectAfter()+b.timing.SessionTimeout+3*time.Second, "hv3 is fenced", func() bool { return words.all() == "hv1 fences hv3" })
		if w.count(&w.begun) == 0 {
			t.Error("no order was under way")
		}
		w.set(func() { w.slow = 0 })
		b.runs(w, "hv2", "")
	})
}

// A driver that crashes in an order takes neither the pass nor the daemon with it.
func TestAnOrderThatCrashesStopsNobodyElse(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		w.set(func() { w.broken = "hv1" })
		b.addWorkload(cluster.Workload{Name: "broken", Ephemeral: true, Chain: []cluster.NodeID{"hv1"}, Nodes: []cluster.NodeID{"hv1"}})
		b.cache(w)
		b.eventually(20*time.Second, "the history tells of it", func() bool {
			return slices.ContainsFunc(b.told(cluster.EventActivity), func(e cluster.Event) bool {
				return e.Fields["name"] == "apply-broken" && strings.Contains(e.Text, "crashed in an order")
			})
		})
		w.set(func() { w.broken = "" })
		b.eventually(20*time.Second, "it runs", func() bool { return w.state("hv1", "broken") == cluster.CopyActive })
	})
}

// A record that cannot be read is a fault as long as it is there.
func TestAnUnreadableRecordIsAFault(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.cache(w)
		raw, _ := json.Marshal(map[string]any{"v": 1, "name": "broken", "kind": 7})
		b.store.Set(workloadPath("broken"), raw)
		b.eventually(20*time.Second, "the health says so", func() bool {
			return slices.ContainsFunc(b.viewOf("hv1").Faults, func(f string) bool { return strings.Contains(f, "broken") })
		})
		b.store.Delete(workloadPath("broken"))
		b.eventually(20*time.Second, "and that it is over", func() bool { return len(b.viewOf("hv1").Faults) == 0 })
	})
}
