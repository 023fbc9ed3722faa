package agent_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pvc.internal/agent"
	"pvc.internal/cluster"
)

// leased has the nodes' fences and orders run under node leases.
func leased(o bubbleOptions) bubbleOptions {
	tune := o.tune
	o.tune = func(c *agent.Config, d *agent.Deps) {
		tune(c, d)
		c.NodeLeases, d.LeaseFile = true, leaseFileOf{&leaseFile{}, 0}
	}
	return o
}

// A primary that reaches no majority of the coordinators past ZooKeeper takes
// nobody's power, and says what is missing; it does once it reaches one (I6).
func TestNobodyIsFencedWithoutAMajorityOfNodeLeases(t *testing.T) {
	t.Parallel()
	o, asked := talkingFencers("hv1", "hv2", "hv3")
	inBubble(t, leased(o), func(b *bubble) {
		b.restful()
		b.talk.net.Part("hv1", "hv2")
		b.powerOff("hv3")
		b.eventually(2*b.timing.SuspectAfter()+b.timing.NodeLeasePeriod, "hv1 says that it holds no quorum", func() bool {
			r := b.viewOf("hv1").Nodes["hv3"].Refusal
			return r != nil && r.Code == cluster.RefuseNoQuorum && strings.Contains(r.Detail, "hv2")
		})
		b.always(3*b.timing.SuspectAfter(), "nobody is fenced", func() bool { return asked.all() == "" })
		b.talk.net.Heal()
		b.eventually(b.timing.NodeLeasePeriod, "hv3 is fenced", func() bool { return asked.all() == "hv1 fences hv3" })
	})
}

// Where most nodes are gone an operator's word must do: of two coordinators one
// never holds a majority, and is to go on all the same (I7).
func TestAConfirmationNeedsNoMajority(t *testing.T) {
	t.Parallel()
	o, _ := talkingFencers("hv1", "hv2")
	words, tune, known := &asked{}, o.tune, new(*bubble)
	o.tune = func(c *agent.Config, d *agent.Deps) {
		tune(c, d)
		d.Fencer = obeyingFencer{askedFencer{words, c.Node}, known}
	}
	inBubble(t, leased(o), func(b *bubble) {
		*known = b
		b.restful()
		b.powerOff("hv2")
		b.eventually(b.timing.SuspectAfter()+b.timing.SessionTimeout+b.timing.NodeLeasePeriod, "hv2 is dead", func() bool {
			return b.viewOf("hv1").Nodes["hv2"].Liveness == cluster.LiveDead.String()
		})
		time.Sleep(2 * b.timing.NodeLeasePeriod) // its lease is over by then
		b.orderAbout("hv2", cluster.OrderConfirm)
		b.eventually(5*time.Second, "it is confirmed", func() bool { return words.all() == "hv1 obeys confirm of hv2" })
	})
}

// slowFencer cuts power at once, and then verifies for some seconds as with a real controller.
type slowFencer struct {
	obeyingFencer
}

func (f slowFencer) Order(ctx context.Context, t cluster.Token, o cluster.Versioned[cluster.FenceOrder], _ int64) (cluster.FenceRecord, *cluster.Refusal, error) {
	f.add("%s cuts the power of %s", f.by, o.Value.Node)
	(*f.b).powerOff(o.Value.Node)
	select {
	case <-ctx.Done():
		f.add("it is ended halfway: %v", context.Cause(ctx))
		return cluster.FenceRecord{}, nil, ctx.Err()
	case <-time.After(8 * time.Second):
	}
	(*f.b).store.Delete("/agent/fence-orders/" + string(o.Value.Node))
	f.add("and gives it again")
	return cluster.FenceRecord{ID: "f1"}, nil, nil
}

// Three coordinators, one of them down for long, and two hypervisors: an operator
// has a second one fenced, which hangs. Its own lease counts for nothing in that:
// the order waits, and nobody is left dark halfway.
func TestAFenceIsNotEndedByItsOwnVictim(t *testing.T) {
	t.Parallel()
	o, _ := talkingFencers("hv1", "hv2", "hv3", "hv4", "hv5")
	words, tune, known := &asked{}, o.tune, new(*bubble)
	o.tune = func(c *agent.Config, d *agent.Deps) {
		tune(c, d)
		d.Fencer = slowFencer{obeyingFencer{askedFencer{words, c.Node}, known}}
		if c.Node == "hv4" || c.Node == "hv5" {
			c.Mode = cluster.Hypervisor
		}
	}
	inBubble(t, leased(o), func(b *bubble) {
		*known = b
		time.Sleep(3 * b.timing.SessionTimeout)
		b.store.Set(wishPath, []byte("hv1"))
		time.Sleep(2 * b.timing.SessionTimeout)
		b.powerOff("hv3")
		time.Sleep(5 * b.timing.SessionTimeout)
		b.orderAbout("hv2", cluster.OrderFence)
		time.Sleep(time.Minute)
		if strings.Contains(words.all(), "ended halfway") {
			t.Error("the fence took hv2's power and was ended by the loss of hv2's lease")
		}
	})
}

// A fence that cannot be carried on for want of a majority is told once, and not
// at each look.
func TestAFenceWithoutAMajorityFloodsNothing(t *testing.T) {
	t.Parallel()
	o, _ := talkingFencers("hv1", "hv2", "hv3")
	inBubble(t, leased(o), func(b *bubble) {
		b.restful()
		b.leaveFence("hv3", cluster.FencePowerOff)
		b.talk.net.Part("hv1", "hv2")
		b.powerOff("hv3")
		count := func() (n int) {
			for _, h := range b.store.History() {
				var e cluster.Event
				told := strings.HasPrefix(h.Path, "/agent/history/") && json.Unmarshal(h.Data, &e) == nil && e.Kind == cluster.EventActivity
				if told || strings.HasPrefix(h.Path, "/agent/activities/") {
					n++
				}
			}
			return n
		}
		time.Sleep(30 * time.Second)
		before := count()
		time.Sleep(5 * time.Minute)
		if n := count() - before; n > 10 {
			t.Errorf("%d writes about activities in 5 minutes without a majority", n)
		}
	})
}

// An order that an operator calls unsafe is carried out without a majority of the
// node leases, as its own activity says; an ordinary one waits for that.
func TestAnUnsafeOrderWaitsForNoMajority(t *testing.T) {
	t.Parallel()
	o, _ := talkingFencers("hv1", "hv2", "hv3")
	words, tune, known := &asked{}, o.tune, new(*bubble)
	o.tune = func(c *agent.Config, d *agent.Deps) {
		tune(c, d)
		d.Fencer = obeyingFencer{askedFencer{words, c.Node}, known}
	}
	inBubble(t, leased(o), func(b *bubble) {
		*known = b
		b.restful()
		b.talk.net.Part("hv1", "hv2")
		b.powerOff("hv3")
		b.eventually(2*b.timing.SuspectAfter()+b.timing.NodeLeasePeriod, "hv1 says that it holds no quorum", func() bool {
			r := b.viewOf("hv1").Nodes["hv3"].Refusal
			return r != nil && r.Code == cluster.RefuseNoQuorum
		})
		b.orderAbout("hv3", cluster.OrderFence)
		b.always(20*time.Second, "an ordinary order waits", func() bool { return words.all() == "" })
		var order cluster.FenceOrder
		if err := json.Unmarshal([]byte(b.read("/agent/fence-orders/hv3")), &order); err != nil {
			t.Fatal(err)
		}
		order.ID, order.Unsafe = "o2", true
		raw, err := json.Marshal(order)
		if err != nil {
			t.Fatal(err)
		}
		b.store.Set("/agent/fence-orders/hv3", raw)
		b.eventually(5*time.Second, "the unsafe one does not", func() bool { return words.all() == "hv1 obeys fence of hv3" })
	})
}
