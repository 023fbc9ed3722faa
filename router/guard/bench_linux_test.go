package guard

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
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

// BenchmarkCopies measures what 50 copies, half of them of actions, cost their guard:
// each renewal of the node's right, each state, and, with nobody asking, its
// processor time; and how soon all are gone at the end.
func BenchmarkCopies(b *testing.B) {
	bed := newBed(b, false)
	ctx := bed.ctx()
	took := times{}
	right := func() cluster.RoleDeadline {
		return cluster.RoleDeadline{Owner: cluster.OwnerNode, Epoch: cluster.NodeEpoch, Deadline: clock.Now().Add(time.Minute)}
	}
	begin := func() {
		if err := bed.client.Begin(ctx, right()); err != nil {
			b.Fatal(err)
		}
		for i := range 50 {
			s := cluster.ServiceSpec{Name: fmt.Sprintf("copy-%d", i), Kind: cluster.ServiceHook, Command: []string{"sleep", "1000"}, Env: make([]string, 20)}
			for j := range s.Env {
				s.Env[j] = fmt.Sprintf("OCF_RESKEY_parameter_%d=%s", j, strings.Repeat("x", 40))
			}
			if i%2 == 1 {
				s.Kind, s.Command, s.Stop = cluster.ServiceActions, []string{"/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 &"}, []string{"true"}
			}
			took.measure(b, "start", func() error { return bed.client.StartCopy(ctx, may(1), s) })
		}
	}
	begin()
	cpu := func() time.Duration {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", bed.guard.Process.Pid))
		f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		user, _ := strconv.Atoi(f[11])
		sys, _ := strconv.Atoi(f[12])
		return time.Duration(user+sys) * 10 * time.Millisecond
	}
	before := cpu()
	pause(5 * time.Second)
	idle := cpu() - before
	for b.Loop() {
		took.measure(b, "extend", func() error { return bed.client.Extend(ctx, right()) })
		took.measure(b, "state", func() error { _, err := bed.client.State(ctx); return err })
	}
	took.measure(b, "end", func() error { return bed.client.End(ctx, cluster.OwnerNode, cluster.NodeEpoch) })
	took.report(b)
	b.ReportMetric(float64(idle.Microseconds())/5, "idle-us/s")
}
