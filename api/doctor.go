package api

import (
	"context"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/doctor"
)

// doctorRoute is the judgement of the records; what only a node itself can see
// stands in no record.
func doctorRoute() route {
	return route{method: get, path: "/doctor", summary: "What is wrong with the cluster as its records show it, and how to mend it",
		handle: (*Server).getDoctor, reply: doctor.Report{}}
}

func (s *Server) getDoctor(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		records := s.records(r.ctx, st)
		var findings []doctor.Finding
		for _, found := range [][]doctor.Finding{doctor.Cluster(records), doctor.Members(records), doctor.Clocks(records),
			doctor.Tests(records, time.Now().UnixMilli()), doctor.Locks(records), doctor.OtherNodes("", records)} {
			findings = append(findings, found...)
		}
		return doctor.NewReport("", st.snap.ClusterName.Value, findings), nil
	})
}

// records are what the snapshot shows, with what snapshots leave out.
func (s *Server) records(ctx context.Context, st state) doctor.Records {
	r := doctor.Records{Snapshot: st.snap, Views: map[cluster.NodeID]cluster.View{}, Tests: map[cluster.NodeID]cluster.FenceTests{}}
	for _, w := range s.readWords(ctx, st, st.names()) {
		if w.current() {
			r.Views[w.Node] = *w.View
		}
	}
	for _, d := range s.deviceTests(ctx, st, st.names()) {
		t := r.Tests[d.Node]
		t.By, t.Devices = d.By, append(t.Devices, d.DeviceReport)
		r.Tests[d.Node] = t
	}
	return r
}

// Doctor returns what a pvcapid finds wrong with the cluster's records.
func (c *Client) Doctor(ctx context.Context) (doctor.Report, error) {
	return fetch[doctor.Report](ctx, c, get, "/doctor", nil)
}
