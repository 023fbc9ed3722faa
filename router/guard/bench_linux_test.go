package guard

import (
	"slices"
	"testing"
	"time"

	"pvc.internal/cluster"
)

// times collects how long named steps took.
type times map[string][]time.Duration

func (l times) measure(b *testing.B, name string, f func() error) {
	began := time.Now()
	if err := f(); err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	l[name] = append(l[name], time.Since(began))
}

// report gives each step's median and its 99th percentile (of few: the worst).
func (l times) report(b *testing.B) {
	for name, list := range l {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds()), name+"-us")
		b.ReportMetric(float64(list[len(list)*99/100].Microseconds()), name+"-p99-us")
	}
}

// BenchmarkRole measures, through the socket, what the agent waits for while it
// holds the role: two IPv4 addresses and one IPv6 behind the gate.
func BenchmarkRole(b *testing.B) {
	bed := newBed(b, true)
	took := times{}
	ctx := bed.ctx()
	for b.Loop() {
		d := func() cluster.RoleDeadline {
			return cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: 1, Deadline: clock.Now().Add(2500 * time.Millisecond), Sent: clock.Now()}
		}
		took.measure(b, "begin", func() error { return bed.client.Begin(ctx, d()) })
		took.measure(b, "present", func() error { return bed.client.Present(ctx, 1, all) })
		for range 5 {
			took.measure(b, "extend", func() error { return bed.client.Extend(ctx, d()) })
		}
		took.measure(b, "withdraw", func() error { return bed.client.Withdraw(ctx, 1) })
	}
	took.report(b)
}

// BenchmarkTakeOver measures the silence of the addresses that is the guard's
// part of a take-over, each at an epoch of its own: with it written down by
// pre-flight, as before a planned switch, and without.
func BenchmarkTakeOver(b *testing.B) {
	for name, prepared := range map[string]bool{"prepared": true, "unprepared": false} {
		b.Run(name, func(b *testing.B) {
			bed := newBed(b, true)
			took := times{}
			ctx := bed.ctx()
			for epoch := cluster.Epoch(1); b.Loop(); epoch++ {
				if prepared {
					took.measure(b, "preflight", func() error {
						_, err := bed.client.Preflight(ctx, cluster.PreflightRequest{Addresses: all, Epoch: epoch})
						return err
					})
				}
				d := cluster.RoleDeadline{Owner: cluster.OwnerPrimary, Epoch: epoch, Deadline: clock.Now().Add(2500 * time.Millisecond)}
				took.measure(b, "both", func() error {
					took.measure(b, "begin", func() error { return bed.client.Begin(ctx, d) })
					took.measure(b, "present", func() error { return bed.client.Present(ctx, epoch, all) })
					return nil
				})
				took.measure(b, "end", func() error { return bed.client.End(ctx, cluster.OwnerPrimary, epoch) })
			}
			took.report(b)
		})
	}
}
