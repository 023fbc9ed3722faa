package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// measureLimit bounds one run of a fault with all that is waited for around it. Each
// wait within has a bound of its own; this one is for a cluster that breaks so that
// they follow one another.
const measureLimit = 6 * time.Minute

// measured runs the fault once; one that does not end is an error.
func (l *lab) measured(ctx context.Context, step sandbox.Step) (sandbox.Result, error) {
	limited, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	res, err := l.Measure(limited, step)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("%s: not over after %v: %w", step.Fault.Text, measureLimit, err)
	}
	return res, err
}

// repeat runs the fault so often at the phases and tells each run in a line.
func (b *bench) repeat(ctx context.Context, l *lab, fault string, phases []float64) ([]sandbox.Result, error) {
	f, err := sandbox.FaultNamed(fault)
	if err != nil {
		return nil, err
	}
	var all []sandbox.Result
	for _, p := range phases {
		res, err := l.measured(ctx, sandbox.Step{Fault: f, Phase: p})
		if err != nil {
			return all, err
		}
		b.say("   %.1f R  %s", p, res.Line(millis(l.noise)))
		b.noteTwice(f.Text, overlap(res))
		all = append(all, res)
		if res.Error != "" {
			return all, fmt.Errorf("%s: %s", f.Text, res.Error)
		}
	}
	return all, nil
}

func phases(n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = phase(i)
	}
	return out
}

// noteTwice keeps how long two nodes answered in a run of a fault.
func (b *bench) noteTwice(fault string, ms float64) {
	if _, ok := b.twice[fault]; !ok {
		b.twiceOrder = append(b.twiceOrder, fault)
	}
	b.twice[fault] = append(b.twice[fault], ms)
}

// addTwice files what all parts have seen of answers given twice.
func (b *bench) addTwice() {
	b.part = "twice"
	for _, fault := range b.twiceOrder {
		target := atMost(0)
		if strings.HasPrefix(fault, "keepalived") {
			target = none
		}
		b.add(figure("answers given twice, "+fault, "ms", b.twice[fault], target), "")
	}
}

func overlap(r sandbox.Result) float64 {
	var worst float64
	for _, a := range r.Addresses {
		worst = max(worst, a.TwiceMS)
	}
	return worst
}

// silences are each run's longest silence over all addresses, or of the one
// that is named.
func silences(results []sandbox.Result, address string) []float64 {
	var out []float64
	for _, r := range results {
		var worst float64
		for _, a := range r.Addresses {
			if address == "" || a.Name == address {
				worst = max(worst, a.SilenceMS)
			}
		}
		out = append(out, worst)
	}
	return out
}

// powerOffs are the runs' times to verified power-off.
func powerOffs(results []sandbox.Result) []float64 {
	var out []float64
	for _, r := range results {
		if r.OffMS >= 0 {
			out = append(out, r.OffMS)
		}
	}
	return out
}

func measureSwitch(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{NoHooks: true})
	if err != nil {
		return err
	}
	for _, fault := range []string{"switch", "sigterm", "wish-none"} {
		results, err := b.repeat(ctx, l, fault, phases(b.runs(5)))
		for _, a := range sandbox.FloatingAddresses() {
			if len(results) > 0 {
				b.add(figure("silence, "+results[0].Text+", "+a.Name, "ms", silences(results, a.Name), atMost(20)), "")
			}
		}
		b.switches[fault] = silences(results, "")
		if err != nil {
			return err
		}
	}
	return nil
}

func measureLoss(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	for _, c := range []struct {
		fault   string
		silence limit
		off     limit
		quick   int
	}{
		{"power-loss-follower", atMost(3100).medianAtMost(2800), atMost(8000), 3},
		{"power-loss-leader", atMost(4000), atMost(10000), 3},
		{"link-down", atMost(3100).medianAtMost(2800), none, 2},
	} {
		results, err := b.repeat(ctx, l, c.fault, phases(b.runs(c.quick)))
		if len(results) > 0 {
			b.add(figure("silence, "+results[0].Text, "ms", silences(results, ""), c.silence), "")
			b.add(figure("verified power-off, "+results[0].Text, "ms", powerOffs(results), c.off), "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func measureFast(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{Profile: "fast"})
	if err != nil {
		return err
	}
	results, err := b.repeat(ctx, l, "power-loss-follower", phases(b.runs(3)))
	b.add(figure("silence, power loss, ZooKeeper follower, profile fast", "ms", silences(results, ""), atMost(2100)), "")
	return err
}

func measureTwice(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	for _, fault := range []string{"kill9", "sigstop"} {
		results, err := b.repeat(ctx, l, fault, phases(b.runs(2)))
		if len(results) > 0 {
			b.add(figure("silence, "+results[0].Text, "ms", silences(results, ""), none), "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// moved counts what a role that should have stayed did: another holder, or an
// address that left a kernel, from the instant on.
func moved(l *lab, r sandbox.Result, from cluster.Instant) float64 {
	n := 0.0
	if r.Before != r.After {
		n++
	}
	for _, e := range l.History().Since(from) {
		if e.Kind == sandbox.KindHeld && !e.On {
			n++
		}
	}
	return n
}

// stays runs a fault that must move nothing.
func (b *bench) stays(ctx context.Context, l *lab, fault string, at []float64) (results []sandbox.Result, moves []float64, err error) {
	for _, p := range at {
		from := now()
		one, err := b.repeat(ctx, l, fault, []float64{p})
		for _, r := range one {
			moves = append(moves, moved(l, r, from))
		}
		results = append(results, one...)
		if err != nil {
			return results, moves, err
		}
	}
	return results, moves, nil
}

func measureZooKeeperLeader(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	results, moves, err := b.stays(ctx, l, "zk-leader-kill", phases(b.runs(5)))
	b.add(figure("silence, ZooKeeper leader killed", "ms", silences(results, ""), atMost(20)), "")
	b.add(figure("role or address that moved, ZooKeeper leader killed", "", moves, atMost(0)), "")
	return err
}

func measureRestart(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	five := []float64{0.1, 0.3, 0.5, 0.7, 0.9}
	var results []sandbox.Result
	var moves, others []float64
	for i := range b.runs(5) {
		before := hooks(l)
		r, m, err := b.stays(ctx, l, "kill9-restart", five[i%5:i%5+1])
		results, moves = append(results, r...), append(moves, m...)
		changed := 0.0
		if after := hooks(l); after != before || after == "" {
			b.say("   services were %q, are %q", before, after)
			changed = 1
		}
		others = append(others, changed)
		if err != nil {
			return err
		}
	}
	b.add(figure("silence, agent killed and back after 200 ms", "ms", silences(results, ""), atMost(20)), "")
	b.add(figure("role or address that moved, agent killed and back", "", moves, atMost(0)), "")
	b.add(figure("services with another process, agent killed and back", "", others, atMost(0)), "")
	return nil
}

// hooks names the process of every service that runs, by node.
func hooks(l *lab) string {
	var all []string
	for _, n := range l.Nodes() {
		if pid, err := os.ReadFile(filepath.Join(n.Dir, "hook.pid")); err == nil {
			all = append(all, fmt.Sprintf("%s:%s", n.Plan.Name, strings.TrimSpace(string(pid))))
		}
	}
	return strings.Join(all, " ")
}
