package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// copyOrder is an order of a copy as it goes over the wire.
type copyOrder struct {
	V           int                 `json:"v"`
	ID          string              `json:"id"`
	Node        cluster.NodeID      `json:"node"`
	Incarnation cluster.Incarnation `json:"incarnation"`
	N           uint64              `json:"n"`
	Token       cluster.TokenWire   `json:"token"`
	Order       cluster.CopyOrder   `json:"order"`
}

// inOrders runs a test in a cluster with copies whose primary orders nothing of its
// own: there are no records of workloads.
func inOrders(t *testing.T, fn func(b *bubble, w *copyWorld)) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) { fn(b, w) })
}

// copyOf is a start of a movable workload's copy.
func copyOf(name string) cluster.CopyOrder {
	return cluster.CopyOrder{Op: cluster.CopyStart, Workload: cluster.Workload{Version: 1, Name: name, ID: "id-" + name, Kind: cluster.WorkloadMovable, Driver: cluster.DriverExec}}
}

func (b *bubble) incarnation(n cluster.NodeID) cluster.Incarnation {
	var record cluster.NodeRecord
	if err := json.Unmarshal([]byte(b.read("/agent/nodes/"+string(n))), &record); err != nil {
		b.t.Fatalf("record of %s: %v", n, err)
	}
	return record.Incarnation
}

// puts has one host send such an order as it is.
func (b *bubble) puts(by cluster.NodeID, q copyOrder) (string, error) {
	body, err := json.Marshal(q)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	b.talk.mu.Lock()
	talker := b.talk.by[by]
	b.talk.mu.Unlock()
	raw, err := talker.Ask(ctx, q.Node, "copies-order", body)
	return string(raw), err
}

// A node carries out what the leader orders whom it serves, once: no copy of it, no
// late one, none that rests on an older record, none for an earlier start of it, and
// nobody else's (I2, S79).
func TestWhoseOrdersOfCopiesANodeObeys(t *testing.T) {
	inOrders(t, func(b *bubble, w *copyWorld) {
		to := b.incarnation("hv3")
		b.inActivity("hv1", cluster.Majority(), func(token cluster.Token) {
			ask := func(n uint64, edit func(*copyOrder)) copyOrder {
				wire, err := token.Wire(fmt.Sprintf("r%d", n))
				if err != nil {
					b.t.Error(err)
				}
				q := copyOrder{1, fmt.Sprintf("o%d", n), "hv3", to, n, wire, copyOf("vm")}
				q.Order.Seen = 7
				if edit != nil {
					edit(&q)
				}
				return q
			}
			good := ask(1000, nil)
			for range 2 { // and a copy of it, which asks what has become of it
				if said, err := b.puts("hv1", good); err != nil || !strings.Contains(said, `"done":true`) || !strings.Contains(said, `"state":"active"`) {
					b.t.Errorf("its leader's own: %q, %v", said, err)
				}
			}
			for name, c := range map[string]struct {
				by   cluster.NodeID
				q    copyOrder
				says string
			}{
				"of another start of the leader": {"hv1", ask(1001, func(q *copyOrder) { q.Token.Lease.Start = "other" }), "hv3 serves hv1"},
				"of an earlier epoch":            {"hv1", ask(1002, func(q *copyOrder) { q.Token.Lease.Epoch-- }), "epoch"},
				"of one that is yet to come":     {"hv1", ask(1003, func(q *copyOrder) { q.Token.Lease.Epoch++ }), "has granted no lease"},
				"in his name":                    {"hv2", ask(1004, nil), "by the lease of"},
				"by who was granted none":        {"hv2", ask(1005, func(q *copyOrder) { q.Token.Lease.Holder = "hv2" }), "hv3 serves hv1"},
				"for an earlier start of hv3":    {"hv1", ask(1006, func(q *copyOrder) { q.Incarnation = "hv3.0" }), "this is start"},
				"for another node":               {"hv1", ask(1007, func(q *copyOrder) { q.Order.Workload.ID = "" }), "in no way"},
				"that came late":                 {"hv1", ask(999, nil), "a later order"},
				"on an older record":             {"hv1", ask(1008, func(q *copyOrder) { q.Order.Seen = 6 }), "rests on version 6"},
				"of a form that is not known":    {"hv1", ask(1009, func(q *copyOrder) { q.Token.V = 9 }), "one version"},
				"of another's name":              {"hv2", func() copyOrder { q := good; q.Token.Lease.Holder = "hv2"; return q }(), "has given an order of this name"},
			} {
				switch said, err := b.puts(c.by, c.q); {
				case err != nil && !errors.Is(err, cluster.ErrRefused):
					b.t.Errorf("an order %s: %v", name, err)
				case err != nil && strings.Contains(err.Error(), c.says), err == nil && strings.Contains(said, `"refused":true`) && strings.Contains(said, c.says):
				default:
					b.t.Errorf("an order %s: %q, %v; want a refusal that says %q", name, said, err, c.says)
				}
			}
			if said := w.said(); said != "start vm on hv3" {
				b.t.Errorf("carried out: %s", said)
			}
		})
	})
}

// An order that is under way when the lease ends has no effect any more, however
// long its driver was held up; nor has one whose leader has given it up.
func TestAnOrderHasNoEffectOnceItsRightIsOver(t *testing.T) {
	for name, over := range map[string]func(b *bubble, cancel func()){
		"cut off from its leader": func(b *bubble, _ func()) { b.talk.net.Part("hv1", "hv3") },
		"called off":              func(_ *bubble, cancel func()) { cancel() },
		"its leader was lost":     func(b *bubble, _ func()) { b.powerOff("hv1") },
	} {
		t.Run(name, func(t *testing.T) {
			inOrders(t, func(b *bubble, w *copyWorld) {
				w.set(func() { w.slow = 20 * time.Second })
				ctx, cancel := context.WithCancel(b.t.Context())
				defer cancel()
				ended := make(chan error, 1)
				leader := b.nodes["hv1"].agent
				go b.inActivityOrGone("hv1", func(token cluster.Token) {
					_, err := leader.Rounds().Order(ctx, token, "hv3", copyOf("vm"))
					ended <- err
				})
				b.eventually(10*time.Second, "it is under way", func() bool { return w.count(&w.begun) == 1 })
				over(b, cancel)
				limit := 30 * time.Second
				if name == "called off" {
					limit = 5 * time.Second // which the silence of its leader alone would not do
				}
				b.eventually(limit, "nothing of it runs at hv3 any more", func() bool { return b.idle("hv3") })
				b.always(30*time.Second, "it has had no effect", func() bool { return w.said() == "" })
				if name != "its leader was lost" {
					if err := <-ended; err == nil || errors.Is(err, cluster.ErrRefused) {
						t.Errorf("the leader was told %v, want that it may or may not be done", err)
					}
				}
			})
		})
	}
}

// An order takes as long as it takes: the leader asks until it has ended, here and
// at another node, and one that its driver refuses is known to have done nothing.
func TestALongOrderIsWaitedFor(t *testing.T) {
	inOrders(t, func(b *bubble, w *copyWorld) {
		w.set(func() {
			w.slow = 40 * time.Second
			w.fail = map[string]error{"stop hv3": fmt.Errorf("not now: %w", cluster.ErrRefused), "stop hv1": errors.New("it hangs")}
		})
		b.inActivity("hv1", cluster.Majority(), func(token cluster.Token) {
			rounds := b.nodes["hv1"].agent.Rounds()
			for _, n := range []cluster.NodeID{"hv1", "hv3"} {
				began := time.Now()
				r, err := rounds.Order(b.t.Context(), token, n, copyOf("vm-"+string(n)))
				if err != nil || r.State != cluster.CopyActive || r.Node != n || r.Workload != "vm-"+string(n) || time.Since(began) < 40*time.Second {
					t.Errorf("on %s: %+v, %v, after %v", n, r, err, time.Since(began))
				}
			}
			for n, refused := range map[cluster.NodeID]bool{"hv3": true, "hv1": false} {
				o := copyOf("vm-" + string(n))
				o.Op = cluster.CopyStop
				if r, err := rounds.Order(b.t.Context(), token, n, o); err == nil || errors.Is(err, cluster.ErrRefused) != refused || r.State != cluster.CopyActive {
					t.Errorf("a stop that fails on %s: %+v, %v", n, r, err)
				}
			}
			large := copyOf("large")
			large.Workload.Params = map[string]string{"command": strings.Repeat("x", 70<<10)}
			if _, err := rounds.Order(b.t.Context(), token, "hv3", large); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "shorten") {
				t.Errorf("an order that does not fit: %v", err)
			}
			if _, err := rounds.Order(b.t.Context(), cluster.MintToken(cluster.NewTokenWire(token.Lease(), "a", "a", false), func() error { return errors.New("over") }), "hv3", copyOf("vm9")); !errors.Is(err, cluster.ErrNoToken) {
				t.Errorf("by a token that is over: %v", err)
			}
		})
	})
}

// A query tells of each node that answers, and of each that does not; a workload of
// another creation than was asked for is not known, and neither is what does not fit.
func TestAQueryTellsWhatIsKnownAndWhatIsNot(t *testing.T) {
	inOrders(t, func(b *bubble, w *copyWorld) {
		b.inActivity("hv1", cluster.Majority(), func(token cluster.Token) {
			rounds := b.nodes["hv1"].agent.Rounds()
			if _, err := rounds.Order(b.t.Context(), token, "hv3", copyOf("vm")); err != nil {
				b.t.Fatal(err)
			}
			var list []cluster.Workload
			for i := range 300 {
				o := copyOf(fmt.Sprintf("vm%d", i)).Workload
				o.Params = map[string]string{"command": strings.Repeat("x", 1000)}
				list = append(list, o)
			}
			huge := copyOf("huge").Workload
			huge.Params = map[string]string{}
			for i := range 30 {
				huge.Params[fmt.Sprint(i)] = strings.Repeat("x", 4096)
			}
			list = append(list, copyOf("vm").Workload, huge)
			b.talk.net.Part("hv1", "hv2")
			reports, silent := rounds.Query(b.t.Context(), map[cluster.NodeID][]cluster.Workload{"hv1": list[:1], "hv2": list[:1], "hv3": list})
			if len(silent) != 1 || silent["hv2"] == "" {
				t.Errorf("silent: %v", silent)
			}
			if len(reports) != len(list) || reports["vm"]["hv3"].State != cluster.CopyActive || reports["vm0"]["hv1"].State != cluster.CopyMissing ||
				reports["vm299"]["hv3"].State != cluster.CopyMissing || !reports["huge"]["hv3"].Unknown {
				t.Errorf("%d reports: %+v, %+v, %+v", len(reports), reports["vm"], reports["vm0"], reports["huge"])
			}
			if held, _, known := rounds.Held("hv3"); !known || len(held) != 1 || held[0] != "vm" {
				t.Errorf("held at hv3: %v, %v", held, known)
			}
			w.set(func() { w.deaf = map[cluster.NodeID]bool{"hv3": true} })
			began := time.Now()
			reports, silent = rounds.Query(b.t.Context(), map[cluster.NodeID][]cluster.Workload{"hv3": list[:1]})
			if took := time.Since(began); took > 6*time.Second || silent["hv3"] == "" && !reports["vm0"]["hv3"].Unknown {
				t.Errorf("a node that hangs: %v, %v, after %v", reports, silent, took)
			}
		})
	})
}

// A copy whose look hangs keeps no other of its node from being told of, however short
// the time is in which its asker wants to know: here, and there.
func TestACopyWhoseLookHangsHidesNoOther(t *testing.T) {
	inOrders(t, func(b *bubble, w *copyWorld) {
		list := []cluster.Workload{copyOf("stuck").Workload, copyOf("other").Workload}
		for _, n := range []cluster.NodeID{"hv1", "hv2"} {
			w.set(func() { w.mute = string(n) + " stuck" })
			for _, limit := range []time.Duration{1500 * time.Millisecond, 5 * time.Second, time.Minute} {
				ctx, cancel := context.WithTimeout(b.t.Context(), limit)
				reports, silent := b.nodes["hv1"].agent.Rounds().Query(ctx, map[cluster.NodeID][]cluster.Workload{n: list})
				cancel()
				if len(silent) > 0 || !reports["stuck"][n].Unknown || reports["other"][n].Unknown || reports["other"][n].State != cluster.CopyMissing {
					t.Errorf("node %s, asked for %s: %+v, silent: %v", n, limit, reports, silent)
				}
			}
		}
	})
}

// What changes without an order is told to the primary at once, from the primary's
// own node, too; and a node whose primary is away tells it once more.
func TestTheChangesOfCopiesAreTold(t *testing.T) {
	inOrders(t, func(b *bubble, w *copyWorld) {
		before := w.count(&w.probes)
		b.addWorkload(cluster.Workload{Name: "cache", Ephemeral: true, Chain: []cluster.NodeID{"hv2", "hv3"}, Nodes: []cluster.NodeID{"hv2", "hv3"}})
		b.runs(w, "hv2", "hv3")
		b.eventually(30*time.Second, "it was looked at", func() bool { return w.count(&w.probes) > before })
		b.eventually(30*time.Second, "a pass is over", func() bool { return b.idle("hv1") })
		w.restartEmpty("hv3", "cache")
		b.eventually(2*time.Second, "hv3 follows again long before the next pass would be", func() bool { return w.state("hv3", "cache") == cluster.CopyReplica })
	})
}

// A node's own right is begun with its first keepalive and kept by each, so that its
// guard takes copies; a daemon that ends in order leaves them that long, and a
// removed one at once nothing.
func TestTheNodesRightIsThereForCopies(t *testing.T) {
	inOrders(t, func(b *bubble, _ *copyWorld) {
		guard := b.guard("hv3")
		b.eventually(10*time.Second, "hv3, which serves nothing, has its right", guard.hasRight)
		b.always(30*time.Second, "and keeps it", guard.hasRight)
		b.nodes["hv3"].stop()
		<-b.nodes["hv3"].done
		if !guard.hasRight() {
			t.Error("its right has ended with its daemon")
		}
		b.eventually(2*b.timing.StopAfter(), "nobody keeps it", func() bool { return !guard.hasRight() })
		b.start("hv3")
		b.eventually(20*time.Second, "the next daemon begins it anew", guard.hasRight)
		b.parted("hv3")
		b.eventually(4*b.timing.StopAfter(), "whom nobody hears, nor promises anything, has none", func() bool { return !guard.hasRight() })
		b.joined()
		b.eventually(60*time.Second, "and has it again when he is back", guard.hasRight)
	})
}

var _ agent.Copies = hostCopies{}

// hasRight reports whether the guard holds the node's own right.
func (g *bubbleGuard) hasRight() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rightLive
}

// idle reports whether no activity runs at the node.
func (b *bubble) idle(n cluster.NodeID) bool { return len(b.nodes[n].agent.Activities().List()) == 0 }

// inActivityOrGone is inActivity, of a node that may be lost meanwhile.
func (b *bubble) inActivityOrGone(by cluster.NodeID, fn func(cluster.Token)) {
	_ = b.nodes[by].agent.Activities().Run(b.t.Context(), activity.Spec{Name: "order", Quorum: cluster.Majority(), Urgency: activity.Failover},
		func(_ context.Context, a *activity.Activity) error { fn(a.Token()); return nil })
}

// No outage of the store alone ends what runs on a hypervisor, either: it asks the
// coordinators, of whom its leader has told it (I6).
func TestAHypervisorKeepsItsRightThroughAnOutageOfTheStore(t *testing.T) {
	t.Parallel()
	w := newCopyWorld()
	o, _ := withHypervisor()
	tune := o.tune
	o.tune = func(c *agent.Config, d *agent.Deps) {
		w.tune(c, d)
		if tune != nil {
			tune(c, d)
		}
	}
	inBubble(t, o, func(b *bubble) {
		b.restful()
		guard := b.guard("hy1")
		b.eventually(10*time.Second, "it has its right", guard.hasRight)
		ask := func() {
			_, silent := b.nodes["hv1"].agent.Rounds().Query(b.t.Context(), map[cluster.NodeID][]cluster.Workload{"hy1": nil})
			if len(silent) > 0 {
				b.t.Errorf("asked: %v", silent)
			}
		}
		ask()
		b.store.Outage()
		b.always(time.Minute, "it keeps it while nobody reaches the store", guard.hasRight)
		b.store.Resume()
		b.always(30*time.Second, "and afterwards", guard.hasRight)
		b.parted("hy1")
		for _, n := range []cluster.NodeID{"hv1", "hv2", "hv3"} {
			b.talk.net.Part("hy1", string(n))
		}
		b.store.Partition("hy1")
		b.eventually(4*b.timing.StopAfter(), "alone it has none", func() bool { return !guard.hasRight() })
	})
}

// A node never says that it is flushed while something of a workload is here, also of
// one that no record names; the primary's drain has nothing to move then.
func TestANodeThatHoldsACopyIsNotFlushed(t *testing.T) {
	inOrders(t, func(b *bubble, w *copyWorld) {
		const path = "/nodes/hv3/domainstate"
		w.set(func() { w.host("hv3").copies["stray"] = &worldCopy{state: cluster.CopyActive} })
		b.store.Set(path, []byte(cluster.DomainFlush))
		b.always(20*b.timing.KeepaliveInterval, "it does not claim to be flushed", func() bool { return b.read(path) == string(cluster.DomainFlush) })
		w.set(func() { delete(w.host("hv3").copies, "stray") })
		b.eventually(10*b.timing.KeepaliveInterval, "it is flushed once nothing is here", func() bool { return b.read(path) == string(cluster.DomainFlushed) })
	})
}
