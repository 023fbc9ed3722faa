package agent_test

import (
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// A node that is away without a proof: its workloads' records say `running`, as seen
// last, and that this is not known; written once, and taken back when it is back.
func TestARecordSaysThatItsNodeIsAway(t *testing.T) {
	inCopyWorld(t, nil, func(b *bubble, w *copyWorld) {
		b.movable("vm1", on("hv3"))
		b.movable("vm2", on("hv2"))
		b.addWorkload(cluster.Workload{Name: "db", Chain: []cluster.NodeID{"hv3", "hv2"}, Nodes: []cluster.NodeID{"hv2", "hv3"}, Replicas: 1})
		b.onlyOn(w, 30*time.Second, "vm1", "hv3")
		b.onlyOn(w, 30*time.Second, "vm2", "hv2")
		b.eventually(30*time.Second, "db runs", func() bool {
			return w.state("hv3", "db") == cluster.CopyActive && b.workload("db").State == cluster.WorkloadRunning
		})
		b.kill("hv3")
		b.store.Set("/nodes/hv3/daemonstate", []byte(cluster.DaemonStop))
		for _, name := range []string{"vm1", "db"} {
			b.eventually(time.Minute, name+" says that its node is away", func() bool {
				r := b.workload(name)
				return r.State == cluster.WorkloadRunning && strings.Contains(r.Reason, "hv3 is away") && strings.Contains(r.Reason, `"stop"`)
			})
		}
		if r := b.workload("vm2"); r.Reason != "" {
			t.Errorf("vm2 says %q", r.Reason)
		}
		writes := len(b.store.History())
		time.Sleep(30 * time.Second)
		for _, h := range b.store.History()[writes:] {
			for _, name := range []string{"vm1", "db"} {
				if h.Path == workloadPath(name) {
					t.Errorf("%s is written again: %s", name, h.Data)
				}
			}
		}
		b.start("hv3")
		for _, name := range []string{"vm1", "db"} {
			b.eventually(time.Minute, name+" says nothing any more", func() bool { r := b.workload(name); return r.State == cluster.WorkloadRunning && r.Reason == "" })
		}
	})
}
