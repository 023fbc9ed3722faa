package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// Config says what to measure.
type Config struct {
	Name   string   // of the sandboxes; default "bench"
	BinDir string   // of pvcnoded, pvcapid and pvc; default: the running program's
	Only   []string // parts; none: all
	Runs   int      // of each fault, 1–100; default 10
	Quick  bool     // fewer runs of what takes long
	Keep   bool     // leave the sandboxes' folders in place
}

// part is one section of the bench.
type part struct {
	name, text string
	run        func(context.Context, *bench) error
}

// parts lists all of them; those that share a cluster stand side by side.
func parts() []part {
	return []part{
		{"switch", "planned switch, SIGTERM, none: silence of each address, no services to stop", measureSwitch},
		{"keepalived", "the same faults under keepalived, on the same bridges", measureKeepalived},
		{"guard", "the guard stopped between its deadline check and the kernel", measureGuard},
		{"loss", "power loss and link down: silence, time to verified power-off", measureLoss},
		{"fence", "power loss: claimed, verified off, roles and records clean; cold start", measureFence},
		{"twice", "kill -9 and SIGSTOP: answers given twice", measureTwice},
		{"zkleader", "the ZooKeeper leader killed: the address stays", measureZooKeeperLeader},
		{"restart", "the agent killed and back after 200 ms: nothing moves", measureRestart},
		{"cost", "writes of a keepalive, memory and processor of the agent", measureCost},
		{"stress", "stress-ng on all processors for 60 s", measureStress},
		{"fast", "power loss with the profile fast", measureFast},
		{"contenders", "eight contenders, one winner each round", measureContenders},
		{"nodes", "a thousand nodes' keepalives on three servers", measureNodes},
		{"leases", "what a lost lease, a failover and a kill -9 end; a thousand node leases", measureLeases},
		{"stuck", "a collector that never returns and a plugin that hangs and forks", measureStuck},
		{"rest", "pvcapid with a hundred nodes: requests a second, five hundred watchers", measureREST},
		{"redis", "a Redis restarted empty: keys lost, writes again; plain, Sentinel, ours", measureRedis},
		{"workloads", "a node drained, a node lost: when its workloads run elsewhere", measureWorkloads},
		{"shutdown", "shutdown with a service that takes 60 s", measureShutdown},
	}
}

// Parts names the parts and says what each measures.
func Parts() []string {
	var out []string
	for _, p := range parts() {
		out = append(out, fmt.Sprintf("%-11s %s", p.name, p.text))
	}
	return out
}

// selectParts returns the named parts in the order of parts; all for none.
func selectParts(only []string) ([]part, error) {
	all := parts()
	if len(only) == 0 {
		return all, nil
	}
	for _, name := range only {
		if !slices.ContainsFunc(all, func(p part) bool { return p.name == name }) {
			return nil, fmt.Errorf("no part is named %q; there are:\n  %s", name, strings.Join(Parts(), "\n  "))
		}
	}
	return slices.DeleteFunc(all, func(p part) bool { return !slices.Contains(only, p.name) }), nil
}

// withDefaults fills in what is unset.
func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = "bench"
	}
	if c.Runs == 0 {
		c.Runs = 10
	}
	if c.BinDir == "" {
		if exe, err := os.Executable(); err == nil {
			c.BinDir = filepath.Dir(exe)
		}
	}
	return c
}

// Validate reports what cannot be measured.
func (c Config) Validate() error {
	if c.Runs < 0 || c.Runs > 100 {
		return fmt.Errorf("%d runs: 1 to 100", c.Runs)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("the bench makes namespaces and must run as root, not as uid %d", os.Geteuid())
	}
	_, err := selectParts(c.Only)
	return err
}

// bench is one run of it.
type bench struct {
	config Config
	out    io.Writer
	report Report
	part   string
	lab    *lab
	labs   int // brought up so far
	// twice is the worst overlap of answers in each run of each fault, by the
	// fault's text, in ms; keepalived's beside it.
	twice      map[string][]float64
	twiceOrder []string
	switches   map[string][]float64 // our silence, for the ratio to keepalived's
}

// Run measures and reports; a line for each run goes to out as soon as it is
// known. The report is as complete as it could be made, also beside an error.
func Run(ctx context.Context, c Config, out io.Writer) (Report, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return Report{}, err
	}
	selected, err := selectParts(c.Only)
	if err != nil {
		return Report{}, err
	}
	sweepKilled()
	b := &bench{config: c, out: out, twice: map[string][]float64{}, switches: map[string][]float64{},
		report: Report{Machine: lookAtMachine(), Quick: c.Quick, Runs: c.Runs, Violations: []sandbox.Violation{}}}
	began := time.Now()
	for _, p := range selected {
		b.part = p.name
		b.say("== %s: %s", p.name, p.text)
		from := time.Now()
		if err := p.run(ctx, b); err != nil {
			if ctx.Err() != nil {
				break
			}
			b.report.Failed = append(b.report.Failed, fmt.Sprintf("%s: %v", p.name, err))
			b.say("   FAILED: %v", err)
			b.closeLab()
		}
		b.say("   %.0f s", time.Since(from).Seconds())
	}
	b.closeLab()
	b.addTwice()
	b.report.Machine.LoadAfter = load()
	b.report.Seconds = time.Since(began).Seconds()
	if ctx.Err() != nil {
		return b.report, ctx.Err()
	}
	return b.report, b.report.Err()
}

func (b *bench) say(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

// add files a figure under the running part.
func (b *bench) add(f Figure, note string) {
	f.Part = b.part
	if note != "" {
		f.Note = strings.TrimPrefix(f.Note+"; "+note, "; ")
	}
	b.report.Figures = append(b.report.Figures, f)
}

// runs is how many runs a fault gets: long ones fewer when in a hurry.
func (b *bench) runs(quick int) int {
	if b.config.Quick {
		return min(quick, b.config.Runs)
	}
	return b.config.Runs
}

// phase is the part of the renewal period at which run i strikes: 0.1 to 0.9,
// then 1 and 0.5, and again.
func phase(i int) float64 {
	all := []float64{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1}
	if i%20 == 19 {
		return 0.5
	}
	return all[i%10]
}

// lab is a cluster that is up.
type lab struct {
	*sandbox.Sandbox
	key   string
	grace time.Duration
	noise time.Duration
	ours  bool // it runs our daemons, whose invariants hold
}

// cluster brings up the cluster that the options describe, or returns the
// running one if it is the same.
func (b *bench) cluster(ctx context.Context, o sandbox.Options) (*lab, error) {
	o.Name, o.BinDir, o.APIListen, o.KeepFiles, o.Log = b.config.Name, b.config.BinDir, "none", b.config.Keep, zap.NewNop()
	o = o.Defaults()
	key := fmt.Sprintf("%d/%d/%s/%v/%v", o.Coordinators, o.Hypervisors, o.Profile, o.NoHooks, o.NoDaemons)
	if b.lab != nil && b.lab.key == key {
		return b.lab, nil
	}
	b.closeLab()
	if b.config.Keep { // each in a folder of its own
		b.labs++
		o.Name, o.Dir = fmt.Sprintf("%s-%d", o.Name, b.labs), ""
		o = o.Defaults()
	}
	timing, err := cluster.Profile(o.Profile)
	if err != nil {
		return nil, err
	}
	s, err := sandbox.Up(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("bring up a cluster: %w", err)
	}
	b.lab = &lab{Sandbox: s, key: key, grace: timing.Grace, ours: !o.NoDaemons}
	if !o.NoDaemons {
		if err := s.WaitConverged(ctx); err != nil {
			return nil, err
		}
		if b.lab.noise, err = s.Noise(ctx, 3*time.Second); err != nil {
			return nil, err
		}
		b.report.NoiseMS = max(b.report.NoiseMS, millis(b.lab.noise))
	}
	if o.NoDaemons {
		b.say("   %d coordinators, %d hypervisors, none of our daemons", o.Coordinators, o.Hypervisors)
	} else {
		b.say("   %d coordinators, %d hypervisors, profile %s; noise floor %.1f ms", o.Coordinators, o.Hypervisors, o.Profile, millis(b.lab.noise))
	}
	return b.lab, nil
}

// closeLab checks the running cluster's whole history and takes it down.
func (b *bench) closeLab() {
	l := b.lab
	if l == nil {
		return
	}
	b.lab = nil
	time.Sleep(200 * time.Millisecond) // the last rounds' answers
	if l.ours {
		found := sandbox.Check(l.History().Entries(), sandbox.Limits{Noise: max(5*time.Millisecond, l.noise), Grace: l.grace})
		for _, v := range found {
			b.say("   BROKEN %s: %s", v.Invariant, v.Text)
		}
		b.report.Violations = append(b.report.Violations, found...)
	}
	l.Down()
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// await polls until ok returns nil, at most for the limit; the error is the
// last thing that was missing.
func await(ctx context.Context, limit time.Duration, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		missing := ok()
		if missing == nil {
			return nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("not within %v: %w", limit, errors.Join(missing, context.Cause(ctx)))
		}
	}
}
