package api

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// sees publishes hv1's view, the primary's, with its judgement of hv2.
func (w *world) sees(seen cluster.NodeSeen, change ...func(*cluster.View)) {
	w.t.Helper()
	v := cluster.View{Version: 1, Mode: "primary", Epoch: 4, Nodes: map[cluster.NodeID]cluster.NodeSeen{"hv2": seen}}
	for _, c := range change {
		c(&v)
	}
	w.publish("hv1", v)
}

// gone makes a node lose its session and its keepalive, while others go on.
func (w *world) gone(name cluster.NodeID) {
	w.clock.advance(7 * time.Second)
	w.edit(func(s *cluster.Snapshot) {
		now := w.clock.Now()
		s.Lease.SeenAt = now
		for other, n := range s.Nodes {
			if other != name {
				n.Keepalive.SeenAt = now
				s.Nodes[other] = n
			}
		}
	})
	w.node(name, func(n *cluster.NodeView) { n.Alive = cluster.Versioned[cluster.Alive]{} })
}

func (w *world) explain(what string) Explanation {
	w.t.Helper()
	status, body := w.get("/api/v1/explain/" + what)
	if status != 200 {
		w.t.Fatalf("explain %s: %d %s", what, status, body)
	}
	return decode[Explanation](w.t, body)
}

func dead(code cluster.RefusalCode) cluster.NodeSeen {
	seen := cluster.NodeSeen{Liveness: "dead"}
	if code != "" {
		seen.Refusal = &cluster.Refusal{Code: code, Node: "hv2", Detail: "node hv2: dead, but …"}
	}
	return seen
}

// "Why was it not fenced?" for each thing that can stand against it.
func TestWhyNotFenced(t *testing.T) {
	fence := func(stage cluster.FenceStage) func(*world) {
		return func(w *world) {
			w.node("hv2", func(n *cluster.NodeView) {
				n.Fence = present(cluster.FenceRecord{ID: "f1", Incarnation: "b.1", By: "hv1", Stage: stage, Tries: 2, Result: "bmc: no answer", Proof: "verified_off"})
			})
		}
	}
	for _, c := range []struct {
		name string
		do   func(*world)
		why  string
		code cluster.RefusalCode // that is among the refusals; "" any
	}{
		{"refused by the primary", func(w *world) { w.sees(dead(cluster.RefuseTooMany)) }, "Node hv1, the primary, refuses to fence it: [too_many_at_once] node hv2: dead, but …. Look at the network", cluster.RefuseTooMany},
		{"maintenance", func(w *world) {
			w.sees(cluster.NodeSeen{Liveness: "suspect"})
			w.edit(func(s *cluster.Snapshot) { s.Maintenance.Value = true })
		}, "the cluster is in maintenance, so that nobody is fenced. When the work is done", cluster.RefuseMaintenance},
		{"a refusal that no longer stands", func(w *world) { w.sees(dead(cluster.RefuseObserverBlind)) }, "holds nothing against fencing it", ""},
		{"disabled", func(w *world) {
			w.sees(dead(""))
			w.edit(func(s *cluster.Snapshot) { s.Failover = present(cluster.FailoverSettings{MaxCount: 1}) })
		}, "automatic failover is disabled. If that is not meant: `pvc settings autofailover --enabled=true`", cluster.RefuseDisabled},
		{"budget", func(w *world) {
			w.sees(cluster.NodeSeen{Liveness: "late"})
			w.edit(func(s *cluster.Snapshot) {
				s.Failover = present(cluster.FailoverSettings{Enabled: true, MaxCount: 1, Count: 1})
			})
		}, "sees it as late; it counts as suspect after 5s", cluster.RefuseBudget},
		{"excused", func(w *world) { w.sees(cluster.NodeSeen{Liveness: "suspect", Excuse: "it is starting"}) }, "does not count that as death: it is starting", ""},
		{"suspect", func(w *world) { w.sees(cluster.NodeSeen{Liveness: "suspect"}) }, "its ZooKeeper session lives. It is fenced once that has ended, at most 6s", ""},
		{"isolated", func(w *world) { w.sees(cluster.NodeSeen{Liveness: "isolated"}) }, "fenced after 14s of silence", ""},
		{"isolated, and refused for that", func(w *world) {
			seen := dead(cluster.RefuseNotSuspectEnough)
			seen.Liveness = "isolated"
			w.sees(seen)
		}, "sees it as isolated: it answers direct probes", cluster.RefuseNotSuspectEnough},
		{"up", func(w *world) { w.sees(cluster.NodeSeen{Liveness: "up"}) }, "sees it as up", ""},
		{"due", func(w *world) { w.sees(dead("")) }, "holds nothing against fencing it: a fence record appears within a second", ""},
		{"not judged", func(w *world) { w.sees(dead(""), func(v *cluster.View) { v.Nodes = nil }) }, "does not judge it: it has no record of registration", ""},
		{"primary is blind", func(w *world) { w.sees(dead(""), func(v *cluster.View) { v.Blind = "first look" }) }, "does not count what it sees now, so it fences nobody: first look", ""},
		{"primary is silent", func(w *world) {
			w.sees(dead(""))
			w.node("hv1", func(n *cluster.NodeView) { n.Alive = cluster.Versioned[cluster.Alive]{} })
		}, "node hv1, which holds the role, may be lost itself: its session has gone since", ""},
		{"no view", func(*world) {}, "what node hv1 decides is not known: it has published no view yet", ""},
		{"rubbish as a view", func(w *world) { w.store.views["hv1"] = "{" }, "its view is unreadable", ""},
		{"no primary", func(w *world) { w.edit(func(s *cluster.Snapshot) { s.Lease.Value.Holder = "" }) }, "Only the primary fences, and there is none now", ""},
		{"it is the primary", func(w *world) { w.edit(func(s *cluster.Snapshot) { s.Lease.Value.Holder = "hv2" }) }, "only its successor fences it", ""},
		{"stopped", func(w *world) { w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) }) }, "stopped on purpose", ""},
		{"being fenced", fence(cluster.FencePowerOff), "It is being fenced by hv1, in stage power_off, try 2: bmc: no answer.", ""},
		{"fence failed", fence(cluster.FenceFailed), "Its fence by hv1 failed 2 times: bmc: no answer. It is tried again", ""},
		{"fence waits", fence(cluster.FenceManual), "waits for you: bmc: no answer.", ""},
		{"fenced", fence(cluster.FenceDone), `has been fenced by hv1; the proof is "verified_off"`, ""},
		{"fence of an earlier start", func(w *world) {
			fence(cluster.FenceDone)(w)
			w.node("hv2", func(n *cluster.NodeView) { n.Record.Value.Incarnation = "b.2" })
		}, "what node hv1 decides is not known", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.gone("hv2")
			c.do(w)
			e := w.explain("hv2")
			if !strings.Contains(e.Why, c.why) {
				t.Errorf("why: %s\nwant %s", e.Why, c.why)
			}
			at := slices.IndexFunc(e.Refusals, func(r Objected) bool { return r.Code == c.code })
			if c.code != "" && (at < 0 || e.Refusals[at].Remedy == "") {
				t.Errorf("%s with its remedy is not in %+v", c.code, e.Refusals)
			}
		})
	}
}

// Each coordinator's judgement is told, with what is to be thought of it.
func TestExplainGathersEveryView(t *testing.T) {
	w := newWorld(t)
	w.node("hv3", func(n *cluster.NodeView) { n.Mode = present(cluster.Coordinator) })
	w.gone("hv3")
	views := map[cluster.NodeID]cluster.NodeSeen{"hv3": dead(cluster.RefuseSetChanging)}
	w.publish("hv1", cluster.View{Mode: "primary", Nodes: views})
	w.publish("hv2", cluster.View{Mode: "idle", Blind: "this daemon was late itself", Nodes: map[cluster.NodeID]cluster.NodeSeen{"hv3": {Liveness: "late", Excuse: "it is shutting down"}}})
	w.publish("hv3", cluster.View{Mode: "contending", Refusals: []cluster.Refusal{{Code: cluster.RefuseGaveUp, Detail: "of the past"}}, Nodes: map[cluster.NodeID]cluster.NodeSeen{"hv1": {Liveness: "dead"}}})
	e := w.explain("hv3")
	for _, want := range []string{
		"node hv1 sees it as dead",
		"node hv1 does not fence it: [down_set_changing] node hv2: dead, but …",
		"node hv2 sees it as late; its silence does not count: it is shutting down; it does not count what it sees: this daemon was late itself",
		`node hv3: its role machine is "contending" when it last wrote, and its session has gone since`,
	} {
		if !slices.Contains(e.Evidence, want) {
			t.Errorf("%q is not in\n%s", want, strings.Join(e.Evidence, "\n"))
		}
	}
	if e.Verdict != "Lost: neither session nor keepalive." || len(e.Words) != 3 {
		t.Errorf("%+v", e)
	}
	if slices.ContainsFunc(e.Refusals, func(r Objected) bool { return r.Code == cluster.RefuseGaveUp }) {
		t.Error("a lost node's last refusal is told as if it still held")
	}
	// A healthy node that somebody alive sees otherwise is not called fine.
	w.sees(cluster.NodeSeen{Liveness: "late"})
	if e := w.explain("hv2"); !strings.Contains(e.Why, "sees it as late") {
		t.Errorf("%s", e.Why)
	}
	w.sees(cluster.NodeSeen{Liveness: "up"})
	if e := w.explain("hv2"); e.Why != "Nothing is wrong with it as far as anybody sees, so nobody acts on it." {
		t.Errorf("%s", e.Why)
	}
}

// "Why did the role not move?" for each thing that can stand against it.
func TestWhyTheRoleDidNotMove(t *testing.T) {
	vacant := func(w *world) {
		w.later(3 * time.Second)
		w.edit(func(s *cluster.Snapshot) {
			n := s.Nodes["hv2"]
			n.Keepalive.SeenAt = w.clock.Now()
			s.Nodes["hv2"] = n
		})
		w.node("hv1", func(n *cluster.NodeView) { n.Alive = cluster.Versioned[cluster.Alive]{} })
	}
	refuses := func(code cluster.RefusalCode, detail string) cluster.View {
		return cluster.View{Mode: "idle", Refusals: []cluster.Refusal{{Code: code, Detail: detail}}}
	}
	wished := func(to string) func(*world) {
		return func(w *world) { w.edit(func(s *cluster.Snapshot) { s.PrimaryNode.Value = to }) }
	}
	for _, c := range []struct {
		name string
		do   func(*world)
		why  string
	}{
		{"held", func(*world) {}, "Node hv1 renews its lease, so that nobody else may take it"},
		{"vacant, refused", func(w *world) {
			vacant(w)
			w.publish("hv2", refuses(cluster.RefuseUnhealthy, "interface upstream is missing"))
		}, `No coordinator can take it: hv1 [not_running] Node "hv1" is not active: its daemon has no live session.; hv2 [preflight_failed] interface upstream is missing`},
		{"vacant, about to be taken", func(w *world) {
			vacant(w)
			w.publish("hv2", cluster.View{Mode: "contending"})
		}, "It is about to be taken: nothing stands against hv2. If this stays for more than 2.9s"},
		{"vacant, the lock is held", func(w *world) {
			vacant(w)
			w.publish("hv2", cluster.View{Mode: "contending"})
			w.edit(func(s *cluster.Snapshot) {
				s.RoleLock = []cluster.LockChild{{Name: "x", Foreign: true, SeenAt: w.clock.Now().Add(-4 * time.Second)}}
			})
		}, "The role lock is with a foreign client for 4s"},
		{"vacant, maintenance", func(w *world) {
			vacant(w)
			w.edit(func(s *cluster.Snapshot) { s.Maintenance.Value = true })
		}, "the cluster is in maintenance"},
		{"lease gone", func(w *world) { w.edit(func(s *cluster.Snapshot) { s.Lease.Present = false }) }, "made anew a little over a minute"},
		{"wish refused by the wished", func(w *world) {
			wished("hv2")(w)
			w.publish("hv2", refuses(cluster.RefuseRecentStart, "registered less than 2.8s ago"))
		}, "Node hv2 shall become primary; the wish is given up unless it has begun within 8 s. What it says: [recent_registration] registered less than 2.8s ago."},
		{"wish for one that cannot", func(w *world) {
			wished("hv2")(w)
			w.node("hv2", func(n *cluster.NodeView) { n.Daemon = present(cluster.DaemonStop) })
		}, `Node hv2 shall become primary and cannot: Node "hv2" is not active`},
		{"none, nobody else", func(w *world) {
			wished("none")(w)
			w.publish("hv1", cluster.View{Mode: "primary", Refusals: []cluster.Refusal{{Code: cluster.RefuseNoCandidate, Detail: "there is no other coordinator that could serve"}}})
		}, "Node hv1 was asked to give the role up. What it says: [no_candidate] there is no other"},
		{"runs", func(w *world) { w.move(cluster.TransitionRunning, cluster.PhaseStop, "") }, "A hand-over from hv1 to hv2 runs, in phase B."},
		{"aborted", func(w *world) { w.move(cluster.TransitionAborted, cluster.PhaseAnnounce, "an address is in use") }, "It stays with hv1: the last switch, to hv2, was aborted: an address is in use."},
		{"waits for a dead-proof", func(w *world) {
			w.node("hv1", func(n *cluster.NodeView) { n.Router = present(cluster.RouterTakeover) })
			w.publish("hv1", cluster.View{Mode: "taking", Refusals: []cluster.Refusal{{Code: cluster.RefuseDeadProof, Node: "hv2", Detail: "the addresses wait until hv2 is proven dead"}}})
		}, `holds the lease and does not serve yet: it is in coordinator state "takeover". What it says: [dead_proof_missing] the addresses wait`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.do(w)
			if e := w.explain("role"); !strings.Contains(e.Why, c.why) {
				t.Errorf("why: %s\nwant %s", e.Why, c.why)
			}
		})
	}
}

// There is an answer whatever the records and views say.
func TestThereIsAlwaysAnAnswer(t *testing.T) {
	w := newWorld(t)
	for i := range 2 * 2 * 2 * 6 * 3 * 4 * 3 {
		pick := func(n int) int { p := i % n; i /= n; return p }
		w.edit(func(s *cluster.Snapshot) {
			w.fill(s)
			s.Maintenance.Value = pick(2) == 1
			s.Failover = present(cluster.FailoverSettings{Enabled: pick(2) == 1, MaxCount: 1})
			alive := pick(2) == 1
			n := s.Nodes["hv2"]
			n.Alive.Present = alive
			liveness := []string{"", "up", "late", "suspect", "isolated", "dead"}[pick(6)]
			s.Lease.Value.Holder = []cluster.NodeID{"", "hv1", "hv2"}[pick(3)]
			n.Daemon.Value = []cluster.DaemonState{"run", "init", "stop", "fenced"}[pick(4)]
			switch pick(3) {
			case 1:
				n.Fence = present(cluster.FenceRecord{Incarnation: "b.1", Stage: cluster.FenceVerify})
			case 2:
				n.Fence = present(cluster.FenceRecord{Incarnation: "b.1", Stage: cluster.FenceCanceled})
			}
			s.Nodes["hv2"] = n
			w.store.views["hv1"] = fmt.Sprintf(`{"mode":"primary","nodes":{"hv2":{"liveness":%q}}}`, liveness)
		})
		for _, what := range []string{"hv1", "hv2", "hv3", "primary"} {
			if e := w.explain(what); e.Why == "" || e.Verdict == "" || strings.Contains(fmt.Sprint(e), "%!") {
				t.Fatalf("%s: %+v", what, e)
			}
		}
	}
}

// Every code of the vocabulary has a remedy.
func TestEveryRefusalHasARemedy(t *testing.T) {
	files, err := filepath.Glob("../cluster/*.go")
	if err != nil {
		t.Fatal(err)
	}
	known := map[cluster.RefusalCode]bool{}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`RefusalCode\s+= "([a-z_]+)"`).FindAllSubmatch(source, -1) {
			known[cluster.RefusalCode(m[1])] = true
		}
	}
	for code := range known {
		if remedies[code] == "" {
			t.Errorf("%s has none", code)
		}
	}
	for code := range remedies {
		if !known[code] {
			t.Errorf("%s has one and is no code any more", code)
		}
	}
	if !known[cluster.RefuseBudget] || !known[cluster.RefuseMixedPicture] {
		t.Errorf("found only %d codes", len(known))
	}
}
