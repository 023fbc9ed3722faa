package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/agent/activity"
	"pvc.internal/cluster"
)

// softOrder is a question about a soft stop as it goes over the wire.
type softOrder struct {
	Fence       string              `json:"fence"`
	Node        cluster.NodeID      `json:"node"`
	Incarnation cluster.Incarnation `json:"incarnation"`
	Epoch       cluster.Epoch       `json:"epoch"`
	Token       *cluster.TokenWire  `json:"token,omitempty"`
}

// leasedTalkers is a cluster of three whose nodes talk and use node leases, but
// for those named.
func leasedTalkers(without ...cluster.NodeID) bubbleOptions {
	o := leased(bubbleOptions{names: []cluster.NodeID{"hv1", "hv2", "hv3"}, talk: true, tune: func(*agent.Config, *agent.Deps) {}})
	tune := o.tune
	o.tune = func(c *agent.Config, d *agent.Deps) {
		tune(c, d)
		for _, n := range without {
			c.NodeLeases = c.NodeLeases && c.Node != n
		}
	}
	return o
}

// inActivity runs fn in an activity of a node that leads, as a fence's.
func (b *bubble) inActivity(by cluster.NodeID, q cluster.Quorum, fn func(cluster.Token)) {
	b.t.Helper()
	err := b.nodes[by].agent.Activities().Run(b.t.Context(), activity.Spec{Name: "fence-hv3", Quorum: q, Urgency: activity.Failover},
		func(_ context.Context, a *activity.Activity) error { fn(a.Token()); return nil })
	if err != nil {
		b.t.Fatal(err)
	}
}

// orders has one host send such a question as it is.
func (b *bubble) orders(by cluster.NodeID, q softOrder) (string, error) {
	body, err := json.Marshal(q)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), 3*b.timing.KeepaliveInterval/10)
	defer cancel()
	b.talk.mu.Lock()
	talker := b.talk.by[by]
	b.talk.mu.Unlock()
	raw, err := talker.Ask(ctx, q.Node, "soft", body)
	return string(raw), err
}

// count is how many questions of "HOST KIND" were put so far.
func (k *talkers) count(what string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked[what]
}

// A node carries out the stop that its leader orders under the lease that it has
// granted him, and nothing else: not a copy, not a foreign lease, not an epoch
// that is not its leader's.
func TestASoftStopIsWorkForTheLeaderThatIsServed(t *testing.T) {
	t.Parallel()
	inBubble(t, leasedTalkers(), func(b *bubble) {
		b.elect("hv2")
		b.restful() // in the second epoch at least
		fence := b.softFence("hv3", nil)
		b.inActivity("hv1", cluster.Majority(), func(token cluster.Token) {
			ask := func(request string, edit func(*softOrder)) softOrder {
				w, err := token.Wire(request)
				if err != nil {
					b.t.Error(err)
				}
				q := softOrder{fence.ID, "hv3", fence.Incarnation, fence.Epoch, &w}
				if edit != nil {
					edit(&q)
				}
				return q
			}
			before := b.nodes["hv3"].agent.Activities().Counts().Started
			good := ask("r1", nil)
			if said, err := b.orders("hv1", good); err != nil || !strings.Contains(said, `"stopped":true`) {
				b.t.Errorf("its leader's own: %q, %v", said, err)
			}
			if n := b.nodes["hv3"].agent.Activities().Counts().Started - before; n != 1 {
				b.t.Errorf("%d activities at hv3, want the stop", n)
			}
			for name, c := range map[string]struct {
				by   cluster.NodeID
				q    softOrder
				says string
			}{
				"a copy":                       {"hv1", good, "was received already"},
				"of another start of him":      {"hv1", ask("r2", func(q *softOrder) { q.Token.Lease.Start = "other" }), "hv3 serves hv1"},
				"of an earlier epoch":          {"hv1", ask("r3", func(q *softOrder) { q.Epoch--; q.Token.Lease.Epoch-- }), "serves epoch"},
				"of one that is yet to come":   {"hv1", ask("r4", func(q *softOrder) { q.Epoch++; q.Token.Lease.Epoch++ }), "has granted no lease"},
				"epochs that do not agree":     {"hv1", ask("r5", func(q *softOrder) { q.Epoch++ }), "by the lease of"},
				"in his name":                  {"hv2", ask("r6", nil), "by the lease of"},
				"by who was granted none":      {"hv2", ask("r7", func(q *softOrder) { q.Token.Lease.Holder = "hv2" }), "hv3 serves hv1"},
				"of an earlier start of hv3":   {"hv1", ask("r8", func(q *softOrder) { q.Incarnation = "hv3.0" }), "this is start"},
				"of a form that is not known":  {"hv1", ask("r9", func(q *softOrder) { q.Token.V = 9 }), "one version"},
				"without a name of the order":  {"hv1", ask("r10", func(q *softOrder) { q.Token.Request = "" }), "request"},
				"none at all, and no record":   {"hv1", ask("r11", func(q *softOrder) { q.Token = nil; q.Fence = "f0" }), `no fence record "f0"`},
				"none at all, by a stranger":   {"hv2", ask("r12", func(q *softOrder) { q.Token = nil }), "not the primary"},
				"none at all, as of old: obey": {"hv1", ask("r13", func(q *softOrder) { q.Token = nil }), ""},
			} {
				switch said, err := b.orders(c.by, c.q); {
				case c.says == "" && err != nil:
					b.t.Errorf("%s: %v", name, err)
				case c.says != "" && (!errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), c.says)):
					b.t.Errorf("%s: %q, %v; want a refusal with %q", name, said, err, c.says)
				}
			}
			b.softFence("hv3", func(f *cluster.FenceRecord) { f.Stage = cluster.FenceCanceled })
			b.eventually(time.Second, "hv3 refuses once it sees that the fence was called off", func() bool {
				_, err := b.orders("hv1", ask(time.Now().String(), nil))
				return err != nil && strings.Contains(err.Error(), "in stage canceled")
			})
		})
	})
}

// A node that has lost ZooKeeper obeys the leader whom it serves, whose question
// needs none; once its lease is another's, or nobody's, it does not.
func TestANodeWithoutZooKeeperObeysItsLeader(t *testing.T) {
	t.Parallel()
	inBubble(t, leasedTalkers(), func(b *bubble) {
		b.restful()
		fence := b.softFence("hv3", nil)
		b.store.Partition("hv3")
		b.eventually(2*b.timing.SuspectAfter(), "hv3 is isolated", func() bool { return b.viewOf("hv1").Nodes["hv3"].Liveness == "isolated" })
		var over cluster.Token
		b.inActivity("hv1", cluster.Majority("hv1", "hv2"), func(token cluster.Token) {
			if took, err := b.asksBy("hv1", token, fence); err != nil || took > b.timing.KeepaliveInterval/10 {
				b.t.Errorf("asked by its leader: %v within %v", err, took)
			}
			b.talk.net.Part("hv1", "hv3")
			time.Sleep(2 * b.timing.NodeLeasePeriod) // it serves nobody now
			b.talk.net.Heal()
			w, err := token.Wire("r1")
			if err != nil {
				b.t.Error(err)
			}
			w.Lease.Start = "long ago" // hv1 may have its lease again by now, not by this name
			if _, err := b.orders("hv1", softOrder{fence.ID, "hv3", fence.Incarnation, fence.Epoch, &w}); !errors.Is(err, cluster.ErrRefused) {
				b.t.Errorf("by a lease that is over: %v", err)
			}
			over = token
		})
		asked := b.talk.count("hv1 soft")
		if _, err := b.asksBy("hv1", over, fence); !errors.Is(err, cluster.ErrNoToken) {
			b.t.Errorf("by an activity that is over: %v", err)
		}
		if n := b.talk.count("hv1 soft") - asked; n != 0 {
			b.t.Errorf("%d questions by an activity that is over", n)
		}
	})
}

// Where one side uses no node leases the records decide, as they always did.
func TestWithoutNodeLeasesTheRecordsDecide(t *testing.T) {
	t.Parallel()
	for name, without := range map[string]cluster.NodeID{"the asker": "hv1", "the asked node": "hv3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, leasedTalkers(without), func(b *bubble) {
				b.restful()
				fence := b.softFence("hv3", func(f *cluster.FenceRecord) { f.ID = "f0" })
				b.inActivity("hv1", cluster.All("hv1"), func(token cluster.Token) {
					if _, err := b.asksBy("hv1", token, fence); !errors.Is(err, cluster.ErrRefused) || !strings.Contains(err.Error(), "no fence record") {
						b.t.Errorf("without a record: %v", err)
					}
					if _, err := b.asksBy("hv1", token, b.softFence("hv3", nil)); err != nil {
						b.t.Errorf("with one: %v", err)
					}
				})
			})
		})
	}
}
