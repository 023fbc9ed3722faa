package guard

import (
	"sort"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// BenchmarkRole measures, through the socket, what the agent waits for: two
// IPv4 addresses and one IPv6 behind the gate. The reported figures are medians.
func BenchmarkRole(b *testing.B) {
	bed := newBed(b, true)
	took := map[string][]time.Duration{}
	measure := func(name string, f func() error) {
		began := time.Now()
		if err := f(); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		took[name] = append(took[name], time.Since(began))
	}
	ctx := bed.ctx()
	for b.Loop() {
		d := func() cluster.RoleDeadline {
			return cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: clock.Now().Add(2500 * time.Millisecond), Sent: clock.Now()}
		}
		measure("begin", func() error { return bed.client.Begin(ctx, d()) })
		measure("present", func() error { return bed.client.Present(ctx, 1, all) })
		for range 5 {
			measure("extend", func() error { return bed.client.Extend(ctx, d()) })
		}
		measure("withdraw", func() error { return bed.client.Withdraw(ctx, 1) })
	}
	for name, list := range took {
		sort.Slice(list, func(i, j int) bool { return list[i] < list[j] })
		b.ReportMetric(float64(list[len(list)/2].Microseconds()), name+"-us")
		b.ReportMetric(float64(list[len(list)*99/100].Microseconds()), name+"-p99-us")
	}
}
