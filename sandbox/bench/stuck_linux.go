package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/pprof"
	"slices"
	"time"

	"pvc.internal/agent"
	"pvc.internal/agent/collector"
	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// hangingPlugin forks one that leaves its session, and never ends.
var hangingPlugin = []string{"/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"}

// endless is a collector that never returns.
type endless struct{}

// Name implements agent.Collector.
func (endless) Name() string { return "endless" }

// Collect implements agent.Collector. It ends with the program.
func (endless) Collect(context.Context) (map[string]string, error) { select {} }

// stuckNode is the agent of this process, whose collector never returns.
const stuckNode = "stuck"

// measureStuck watches two agents: the shipped one with a plugin that hangs
// and forks, and one in this process that has a collector which never returns
// besides.
func measureStuck(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{Coordinators: 1, NoHooks: true})
	if err != nil {
		return err
	}
	err = l.reconfigure(ctx, func(settings map[string]any) {
		settings["plugins"] = []map[string]any{{"name": "hang", "command": hangingPlugin, "interval": "2s", "timeout": "2s"}}
	})
	if err != nil {
		return err
	}
	e, err := l.ensemble(ctx, cluster.ProfileLAN())
	if err != nil {
		return err
	}
	// The endless collector's goroutine outlives the agent; nothing waits for it.
	defer e.close()
	plugins, health, err := collector.NewPlugins([]collector.PluginConfig{{Name: "hang", Command: hangingPlugin, Interval: 2 * time.Second, Timeout: 2 * time.Second}})
	if err != nil {
		return err
	}
	all := []agent.Collector{endless{}, health}
	for _, p := range plugins {
		all = append(all, p)
	}
	if _, err := e.join(stuckNode, cluster.Hypervisor, newWitness(), 0, all...); err != nil {
		return err
	}
	return b.watchStuck(ctx, l)
}

// sample is what runs at one moment.
type sample struct{ goroutines, children, daemonThreads, daemonChildren int }

func (b *bench) watchStuck(ctx context.Context, l *lab) error {
	node := l.Nodes()[0].Plan.Name
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	daemon, err := l.daemon(ctx, node, "agent")
	if err != nil {
		return err
	}
	lasting := b.observed(120*time.Second, 40*time.Second)
	from := time.Now()
	var samples []sample
	self := process{pid: selfPID()}
	for time.Since(from) < lasting {
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return err
		}
		u, err := daemon.usage()
		if err != nil {
			return err
		}
		own, err := self.usage()
		if err != nil {
			return err
		}
		samples = append(samples, sample{runtime.NumGoroutine(), own.children, u.threads, u.children})
	}
	log, err := l.log(from)
	if err != nil {
		return err
	}
	note := fmt.Sprintf("%.0f s", lasting.Seconds())
	for _, who := range []string{string(node), stuckNode} {
		var off []float64
		for _, d := range intervals(log, keepalivePath(who)) {
			off = append(off, math.Abs(millis(d-cluster.ProfileLAN().KeepaliveInterval)))
		}
		if len(off) < int(lasting.Seconds())-3 {
			return errors.Join(fmt.Errorf("%s wrote only %d keepalives in %v", who, len(off)+1, lasting))
		}
		b.add(figure("keepalive's distance from K, "+stuckText(who), "ms", off, atMost(50)), note)
	}
	if third := max(1, len(samples)/3); samples[len(samples)-1].goroutines > samples[third-1].goroutines {
		b.say("   more goroutines than before; by stack:")
		_ = pprof.Lookup("goroutine").WriteTo(b.out, 1)
	}
	b.addGrowth("goroutines of the agent in this process", samples, func(s sample) int { return s.goroutines })
	b.addGrowth("its children and this cluster's", samples, func(s sample) int { return s.children })
	b.addGrowth("children of the shipped agent", samples, func(s sample) int { return s.daemonChildren })
	b.addGrowth("threads of the shipped agent", samples, func(s sample) int { return s.daemonThreads })
	return nil
}

func stuckText(who string) string {
	if who == stuckNode {
		return "a collector that never returns and a plugin that hangs and forks"
	}
	return "the shipped agent with a plugin that hangs and forks"
}

// addGrowth compares how many there mostly were in the last third with the
// first: a burst, such as a reconnect, passes; what leaks stays.
func (b *bench) addGrowth(what string, all []sample, of func(sample) int) {
	mostly := func(part []sample) int {
		counts := make([]int, len(part))
		for i, s := range part {
			counts[i] = of(s)
		}
		slices.Sort(counts)
		return counts[len(counts)/2]
	}
	third := max(1, len(all)/3)
	first, last := mostly(all[:third]), mostly(all[len(all)-third:])
	target := atMost(0)
	if what == "threads of the shipped agent" {
		target = none // Go's, which it makes as it likes
	}
	b.add(figure("growth: "+what, "", []float64{float64(last - first)}, target), fmt.Sprintf("mostly %d, then %d", first, last))
}
