package api

import (
	"encoding/json"
	"strings"
	"testing"

	"pvc.internal/cluster"
	"pvc.internal/doctor"
)

// What stands in the records is judged; what does not is said to be unchecked.
func TestDoctor(t *testing.T) {
	w := newWorld(t)
	w.store.tests["hv2"] = `{"v":1,"by":"hv1","devices":[{"node":"hv2","device":"bmc","fault":"denied","detail":"wrong password","unix_ms":1}]}`
	w.store.views["hv1"] = `{"v":1,"guard_faults":["no room"]}`
	w.store.edit(func(s *cluster.Snapshot) {
		n := s.Nodes["hv3"]
		n.Alive.Present = false
		s.Nodes["hv3"] = n
	})
	status, body := w.get(Prefix + "/doctor")
	var r doctor.Report
	if err := json.Unmarshal([]byte(body), &r); err != nil || status != 200 {
		t.Fatalf("%d %v %s", status, err, body)
	}
	if r.Cluster != "demo" || r.Problems != 3 || r.Unchecked == 0 {
		t.Errorf("%s", body)
	}
	for _, want := range []string{"wrong password", "pvc fence test hv2", "no room", "no live session"} {
		if !strings.Contains(body, want) {
			t.Errorf("it does not say %q: %s", want, body)
		}
	}
}

// While the store is away nothing is judged.
func TestDoctorWhileTheStoreIsAway(t *testing.T) {
	w := newWorld(t)
	w.store.edit(func(s *cluster.Snapshot) { s.Live = false })
	if status, body := w.get(Prefix + "/doctor"); status != 503 {
		t.Errorf("%d %s", status, body)
	}
}
