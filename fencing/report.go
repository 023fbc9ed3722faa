package fencing

import (
	"context"

	"pvc.internal/cluster"
)

// TestDevices asks the devices of these nodes whether they could be used now,
// at most eight at a time, and orders no power change. A node without devices
// has no report. It takes as long as Tester.Test.
func (f *Fencer) TestDevices(ctx context.Context, nodes ...cluster.NodeID) []cluster.DeviceReport {
	some := f.Config
	some.Nodes = make(map[string]NodeConfig)
	for _, n := range nodes {
		if node, ok := f.Config.Node(n); ok {
			some.Nodes[string(n)] = node
		}
	}
	results := Tester{Config: some, Argv: f.Runner.Argv, Run: f.TestRun}.Test(ctx)
	reports := make([]cluster.DeviceReport, len(results))
	for i, r := range results {
		reports[i] = r.Report(f.WallMS())
	}
	return reports
}

// Report is the result as it is published. The detail of a fault names the cure.
func (t DeviceTest) Report(unixMS int64) cluster.DeviceReport {
	r := cluster.DeviceReport{
		Node: t.Node, Device: t.Device, Type: string(t.Type), Fault: string(t.Fault), Power: t.Power,
		Detail: t.Detail, Notes: t.Notes, Micros: t.Micros, UnixMS: unixMS,
	}
	if !t.Ready() {
		r.Detail = t.String()
	}
	return r
}
