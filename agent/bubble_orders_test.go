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

// obeyingFencer carries orders out by taking them away, and finds no device.
type obeyingFencer struct {
	askedFencer
	b **bubble // known once the nodes have been started
}

func (f obeyingFencer) Order(_ context.Context, _ cluster.Token, o cluster.Versioned[cluster.FenceOrder], _ int64) (cluster.FenceRecord, *cluster.Refusal, error) {
	f.add("%s obeys %s of %s", f.by, o.Value.Action, o.Value.Node)
	(*f.b).store.Delete("/agent/fence-orders/" + string(o.Value.Node))
	return cluster.FenceRecord{ID: "f1"}, nil, nil
}

func (obeyingFencer) Ripe(cluster.NodeView, cluster.Instant) (bool, bool) { return false, false }

func (obeyingFencer) Settle(context.Context, cluster.Token, cluster.NodeID, bool) (cluster.FenceRecord, *cluster.Refusal, error) {
	return cluster.FenceRecord{}, nil, nil
}

func (obeyingFencer) TestDevices(_ context.Context, nodes ...cluster.NodeID) []cluster.DeviceReport {
	var reports []cluster.DeviceReport
	for _, n := range nodes {
		reports = append(reports, cluster.DeviceReport{Node: n, Device: "bmc", Type: "ipmi", Fault: "unreachable", Detail: "device bmc of node " + string(n) + ": Check the address"})
	}
	return reports
}

// withOrdersServed is a cluster whose fencers obey orders; the test sets the
// bubble once it runs.
func withOrdersServed(names ...cluster.NodeID) (bubbleOptions, *asked, **bubble) {
	o, a, b := nodesCalled(names...), &asked{}, new(*bubble)
	o.tune = func(c *agent.Config, d *agent.Deps) { d.Fencer = obeyingFencer{askedFencer{a, c.Node}, b} }
	return o, a, b
}

// orderAbout plants an operator's order about the node's present start.
func (b *bubble) orderAbout(n cluster.NodeID, action string) {
	b.t.Helper()
	var record cluster.NodeRecord
	if err := json.Unmarshal([]byte(b.read("/agent/nodes/"+string(n))), &record); err != nil {
		b.t.Fatalf("record of %s: %v", n, err)
	}
	raw, err := json.Marshal(cluster.FenceOrder{Version: 1, ID: "o1", Node: n, Incarnation: record.Incarnation, Action: action, By: "ann", Reason: "it hangs"})
	if err != nil {
		b.t.Fatal(err)
	}
	b.store.Set("/agent/fence-orders/"+string(n), raw)
}

// An operator's order is carried out by the primary within a second; one that
// is given while there is none waits for the next.
func TestThePrimaryServesOrders(t *testing.T) {
	t.Parallel()
	o, asked, known := withOrdersServed("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		*known = b
		b.restful()
		b.orderAbout("hv3", cluster.OrderFence)
		b.eventually(time.Second, "hv1 obeys", func() bool { return asked.all() == "hv1 obeys fence of hv3" })
		b.powerOff("hv1")
		b.orderAbout("hv3", cluster.OrderCancel)
		b.eventually(2*b.timing.SuspectAfter(), "the next primary obeys", func() bool {
			return strings.Contains(asked.all(), "hv2 obeys cancel of hv3") || strings.Contains(asked.all(), "hv3 obeys cancel of hv3") || b.read("/agent/fence-orders/hv3") == ""
		})
	})
}

// A confirmation of a node that is heard is refused in the history, with the age
// of its last keepalive; the same of a node without power is carried out.
func TestAConfirmationNeedsASilentNode(t *testing.T) {
	t.Parallel()
	o, asked, known := withOrdersServed("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		*known = b
		b.restful()
		b.orderAbout("hv3", cluster.OrderConfirm)
		b.eventually(2*time.Second, "the order is answered", func() bool { return b.read("/agent/fence-orders/hv3") == "" })
		if asked.all() != "" || !strings.Contains(b.story(), cluster.EventOrderRefused) || !strings.Contains(b.story(), "its last keepalive is") {
			b.t.Errorf("asked %q; %s", asked.all(), b.story())
		}
		b.powerOff("hv3")
		b.eventually(b.timing.SuspectAfter()+b.timing.SessionTimeout, "hv3 is suspect", func() bool {
			seen := b.viewOf("hv1").Nodes["hv3"].Liveness
			return seen == cluster.LiveSuspect.String() || seen == cluster.LiveDead.String()
		})
		b.orderAbout("hv3", cluster.OrderConfirm)
		b.eventually(b.timing.SessionTimeout, "it is confirmed", func() bool { return strings.Contains(asked.all(), "hv1 obeys confirm of hv3") })
	})
}

// Soon after a node has become primary every device has been tested from there,
// and what fails stands in its view with the cure.
func TestDevicesAreTestedAtStart(t *testing.T) {
	t.Parallel()
	o, _, known := withOrdersServed("hv1", "hv2", "hv3")
	inBubble(t, o, func(b *bubble) {
		*known = b
		b.elect("hv1")
		b.eventually(15*time.Second, "all are published", func() bool {
			for _, n := range o.names {
				if !strings.Contains(b.read("/agent/fence-tests/"+string(n)), `"fault":"unreachable"`) {
					return false
				}
			}
			return true
		})
		b.eventually(30*time.Second, "hv1 says so", func() bool { return strings.Contains(b.read("/agent/views/hv1"), "Check the address") })
	})
}
