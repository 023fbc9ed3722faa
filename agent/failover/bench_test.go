package failover

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/agent/detector"
	"pvc.internal/cluster"
)

// threadTime is the processor's time that this thread has had.
func threadTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// report tells the spread of single steps.
func report(b *testing.B, steps []time.Duration, unit string) {
	slices.Sort(steps)
	micros := func(permille int) float64 { return float64(steps[(len(steps)-1)*permille/1000].Nanoseconds()) / 1000 }
	b.ReportMetric(micros(500), unit+"-median")
	b.ReportMetric(micros(990), unit+"-p99")
	b.ReportMetric(micros(1000), unit+"-worst")
}

// BenchmarkStep is one look at 1 000 nodes, of which ten are down: detector and
// failover together. It is to stay below 1 ms, the worst of many as well: µs-worst
// is that by the wall clock, cpu-µs-worst what of it this thread worked, which no
// other process of the machine adds to.
func BenchmarkStep(b *testing.B) {
	timing := cluster.ProfileLAN()
	now := cluster.Instant(1000 * time.Second)
	snap := &cluster.Snapshot{Complete: true, Live: true, Session: 1, Since: now.Add(-time.Minute), Nodes: map[cluster.NodeID]cluster.NodeView{}}
	reports := map[cluster.NodeID]detector.Report{}
	for i := range 1000 {
		v := cluster.NodeView{Name: cluster.NodeID(fmt.Sprintf("node%04d", i))}
		v.Record = cluster.Versioned[cluster.NodeRecord]{Present: true, Value: cluster.NodeRecord{ID: string(v.Name), Incarnation: "1"}}
		v.Daemon = cluster.Versioned[cluster.DaemonState]{Present: true, Value: cluster.DaemonRun}
		v.Keepalive = cluster.Versioned[int64]{Present: true, Mzxid: 1, SeenAt: now}
		v.Mode.Value = cluster.Hypervisor
		if i < 5 {
			v.Mode.Value = cluster.Coordinator
			reports[v.Name] = detector.Report{SeenAt: now}
		}
		snap.Nodes[v.Name] = v
	}
	var seen detector.State
	var held State
	look := func() {
		now = now.Add(Cadence(timing))
		seen, _ = detector.Step(seen, detector.Observation{Now: now, Self: "node0000", Snapshot: snap, Timing: timing, OwnKeepalive: now, Reports: reports})
		f := Frame{
			Every: Cadence(timing), Self: "node0000", Timing: timing, Settings: cluster.DefaultFailoverSettings(), Primary: true, Holder: "node0000",
			Blind: seen.Blind,
		}
		f.Look(snap, func(n cluster.NodeID) Seen {
			s := seen.Nodes[n]
			return Seen{Liveness: s.Liveness, Excused: s.Excuse != ""}
		})
		held, _, _ = Step(held, f)
	}
	beat := func(alive int) {
		i := 0
		for name, v := range snap.Nodes {
			if i++; name >= "node0010" || alive == 1000 {
				v.Keepalive.Mzxid++
				v.Keepalive.SeenAt = now
				snap.Nodes[name] = v
			}
		}
	}
	for range 8 {
		look()
		beat(1000)
	}
	b.ReportAllocs()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var wall, cpu []time.Duration
	for b.Loop() {
		b.StopTimer()
		beat(990)
		b.StartTimer()
		began, worked := time.Now(), threadTime()
		look()
		wall, cpu = append(wall, time.Since(began)), append(cpu, threadTime()-worked)
	}
	report(b, wall, "µs")
	report(b, cpu, "cpu-µs")
	if len(held.Down) == 0 || seen.Blind != "" {
		b.Fatalf("nobody is down, blind: %q", seen.Blind)
	}
}
