package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
)

// deviceTester asks fence devices whether they could be used now, and orders no
// power change. It blocks until all have answered or run into their deadlines.
type deviceTester interface {
	TestDevices(ctx context.Context, nodes ...cluster.NodeID) []cluster.DeviceReport
}

// The times of device tests.
const (
	// FenceTestSchedule is when the devices are tested where the settings do not
	// say (`fencing.test_schedule`).
	FenceTestSchedule = "@hourly"
	// firstTest is how long after the role was gained the devices are tested: a
	// failover's own orders come first.
	firstTest = 10 * time.Second

	publishTries = 20
	publishPause = 100 * time.Millisecond
)

// deviceTests tests the fence devices from the primary: soon after it has
// become that, and on a schedule. Who is primary is who would use them, and a
// device that one coordinator reaches another may not.
type deviceTests struct {
	c      Config
	d      Deps
	tester deviceTester // nil: there is nothing to test with

	due    cluster.Instant // of the first test; Never: done
	wanted atomic.Bool     // by the schedule
	busy   atomic.Bool
	mu     sync.Mutex
	newest map[cluster.NodeID][]cluster.DeviceReport
}

func newDeviceTests(c Config, d Deps) *deviceTests {
	t := &deviceTests{c: c, d: d, newest: map[cluster.NodeID][]cluster.DeviceReport{}}
	t.tester, _ = d.Fencer.(deviceTester)
	return t
}

// schedule has the devices tested at the times of the expression, wherever the
// role is then; empty is FenceTestSchedule.
func (o *fenceOrders) schedule(s *Schedule, expression string) error {
	if o.tests.tester == nil {
		return nil
	}
	if expression == "" {
		expression = FenceTestSchedule
	}
	return s.Add("test fence devices", expression, func(context.Context) { o.tests.wanted.Store(true) })
}

// begin is called when this node has become primary.
func (t *deviceTests) begin(now cluster.Instant) {
	t.due = now.Add(firstTest)
	t.wanted.Store(false)
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.newest) // what was found under an earlier role may be long ago
}

// step begins a test where one is due.
func (t *deviceTests) step(lead context.Context, work *sync.WaitGroup, snap *cluster.Snapshot, now cluster.Instant) {
	first := !t.due.IsZero() && !now.Before(t.due)
	if t.tester == nil || !first && !t.wanted.Load() || !t.busy.CompareAndSwap(false, true) {
		return
	}
	t.wanted.Store(false)
	if first {
		t.due = cluster.Never
	}
	nodes := testable(snap)
	work.Go(func() {
		defer t.busy.Store(false)
		for _, n := range nodes {
			if reports := t.tester.TestDevices(lead, n); len(reports) > 0 && lead.Err() == nil {
				if err := t.publish(lead, n, reports); err != nil {
					t.d.Log.Warn("the test of a node's fence devices could not be published", zap.String("peer", string(n)), zap.Error(err))
				}
			}
		}
	})
}

// testable are the nodes whose devices are at rest: who asks a controller in
// the middle of a fence may take its one session away.
func testable(snap *cluster.Snapshot) []cluster.NodeID {
	var nodes []cluster.NodeID
	for _, n := range slices.Sorted(maps.Keys(snap.Nodes)) {
		if f := snap.Nodes[n].Fence; !f.Present || f.Err != nil || f.Value.Ended() {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// ordered tests one node's devices by an operator's order and publishes the
// result in the Multi that ends the order.
func (t *deviceTests) ordered(ctx context.Context, view cluster.NodeView) (*cluster.Refusal, error) {
	var reports []cluster.DeviceReport
	if t.tester != nil {
		reports = t.tester.TestDevices(ctx, view.Name)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("test the fence devices of node %s: %w", view.Name, context.Cause(ctx))
	}
	if len(reports) == 0 {
		return &cluster.Refusal{Code: cluster.RefuseNoDevice, Node: view.Name, Detail: fmt.Sprintf(
			"node %s: no fence device is configured for it on node %s, the primary", view.Name, t.c.Node)}, nil
	}
	return nil, t.publish(ctx, view.Name, reports, cluster.EndOrder(view.Name, view.Order))
}

// publish writes a node's results under this very role, with what belongs to
// them, and tells of what has changed since the last test.
func (t *deviceTests) publish(ctx context.Context, n cluster.NodeID, reports []cluster.DeviceReport, extra ...cluster.Op) error {
	key := cluster.Key{Kind: cluster.KeyFenceTests, Node: n}
	events := t.keep(n, reports)
	create := false
	for range publishTries {
		snap, err := t.d.Store.Refresh(ctx)
		if err != nil {
			return fmt.Errorf("publish the test of node %s's fence devices: %w", n, err)
		}
		lease := snap.Lease
		if !lease.Present || !lease.Value.HeldBy(t.c.Node, t.c.Incarnation) {
			return fmt.Errorf("publish the test of node %s's fence devices: %w", n, errNotPrimary)
		}
		value := cluster.FenceTests{Version: 1, UnixMS: t.c.WallMS(), By: t.c.Node, Epoch: lease.Value.Epoch, Devices: reports}
		write := cluster.Set(key, cluster.AnyVersion, value)
		if create {
			write = cluster.Create(key, value)
		}
		ops := append([]cluster.Op{cluster.Check(cluster.Key{Kind: cluster.KeyLease}, lease.Version), write}, extra...)
		r := t.d.Store.Commit(ctx, cluster.Txn{Purpose: "fence.tests", Ops: append(ops, events...)})
		switch r.Outcome {
		case cluster.OutcomeOK:
			return nil
		case cluster.OutcomeRefused:
			return fmt.Errorf("publish the test of node %s's fence devices: %w", n, r.Err)
		case cluster.OutcomeConflict:
			if r.FailedOp > 1 && r.FailedOp < 2+len(extra) {
				return fmt.Errorf("publish the test of node %s's fence devices: the order was withdrawn: %w", n, cluster.ErrConflict)
			}
			create = create != (r.FailedOp == 1)
		}
		pause(ctx, publishPause)
	}
	return fmt.Errorf("publish the test of node %s's fence devices: %w", n, cluster.ErrConflict)
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// keep remembers a node's results, logs them, and returns the history's entries
// for what has changed: a device that has failed, with its cure, or is well again.
func (t *deviceTests) keep(n cluster.NodeID, reports []cluster.DeviceReport) []cluster.Op {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := map[string]string{}
	for _, r := range t.newest[n] {
		before[r.Device] = r.Fault
	}
	t.newest[n] = reports
	var ops []cluster.Op
	for _, r := range reports {
		fields := []zap.Field{zap.String("peer", string(n)), zap.String("device", r.Device), zap.String("type", r.Type), zap.String("fault", r.Fault), zap.String("detail", r.Detail)}
		if r.Fault != "" {
			t.d.Log.Warn("fence device not usable", fields...)
		} else {
			t.d.Log.Debug("fence device ready", fields...)
		}
		if before[r.Device] == r.Fault {
			continue
		}
		text := r.Detail
		if r.Fault == "" {
			text = fmt.Sprintf("fence device %s of node %s can be used again", r.Device, n)
		}
		ops = append(ops, cluster.Op{Kind: cluster.OpCreateSequential, Key: cluster.Key{Kind: cluster.KeyHistory}, Value: cluster.Event{
			Version: 1, UnixMS: t.c.WallMS(), Node: t.c.Node, Kind: "fence_device", Text: text,
			Fields: map[string]string{"node": string(n), "device": r.Device, "type": r.Type, "fault": r.Fault},
		}})
	}
	return ops
}

// latest are the newest results, by node and device.
func (t *deviceTests) latest() []cluster.DeviceReport {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []cluster.DeviceReport
	for _, n := range slices.Sorted(maps.Keys(t.newest)) {
		all = append(all, t.newest[n]...)
	}
	return all
}

// faults are the devices that could not be used if they were needed now, in
// words that name the cure: health faults of the primary.
func (o *fenceOrders) faults() []string {
	var list []string
	for _, r := range o.tests.latest() {
		if r.Fault != "" {
			list = append(list, strings.TrimSpace(r.Detail))
		}
	}
	return list
}
