package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"pvc.internal/cluster"
)

// noiseWindow is how long the resting cluster is watched for the noise floor.
const noiseWindow = 3 * time.Second

// demoTimeout bounds a whole demo, so that one that hangs ends with a reason.
const demoTimeout = 6 * time.Minute

// Step is one fault of a script. Phase, between 0 and 1, is when it strikes,
// as a part of the renewal period after a renewal was seen; 0 is whenever.
type Step struct {
	Fault Fault
	Phase float64
}

// Script says what comes next; ok is false at its end.
type Script func() (step Step, ok bool)

// InOrder is the demo's script: each fault once.
func InOrder(faults []Fault) Script {
	return func() (Step, bool) {
		if len(faults) == 0 {
			return Step{}, false
		}
		f := faults[0]
		faults = faults[1:]
		return Step{Fault: f}, true
	}
}

// Repeated is a script that goes through the faults so many times.
func Repeated(faults []Fault, rounds int) Script {
	return InOrder(slices.Repeat(faults, max(1, rounds)))
}

// Drawn is a script of faults drawn by the seed until the time is over.
func Drawn(faults []Fault, seed uint64, lasting time.Duration) Script {
	draw := rand.New(rand.NewPCG(seed, 0))
	end := time.Now().Add(lasting)
	return func() (Step, bool) {
		return Step{Fault: faults[draw.IntN(len(faults))], Phase: draw.Float64()}, time.Now().Before(end)
	}
}

// Demo builds a cluster, runs the script on it and takes it down. Each fault's
// line goes to out as soon as it is known.
func Demo(ctx context.Context, o Options, script Script, out io.Writer) (Report, error) {
	o = o.Defaults()
	fmt.Fprintf(out, "starting %d coordinators and %d hypervisors, each with namespaces of its own\n", o.Coordinators, o.Hypervisors)
	s, err := Up(ctx, o)
	if err != nil {
		return Report{}, err
	}
	defer s.Down()
	return s.Run(ctx, script, out)
}

// Run runs a script on a cluster that is up. The report is as complete as it
// could be made, also beside an error, which means that the script ended early.
func (s *Sandbox) Run(ctx context.Context, script Script, out io.Writer) (Report, error) {
	began, from := time.Now(), now()
	rep := Report{Name: s.options.Name, Coordinators: s.options.Coordinators, Hypervisors: s.options.Hypervisors,
		Profile: s.options.Profile, Hooks: !s.options.NoHooks, PeriodMS: millis(probePeriod), Results: []Result{}, Violations: []Violation{}}
	err := s.runScript(ctx, script, out, &rep)
	rep.Violations = append(rep.Violations, s.check(context.WithoutCancel(ctx), from, rep.limits(s.timing()))...)
	if sums := Summarise(rep.Results); len(sums) < len(rep.Results) {
		rep.Summary = sums
	}
	rep.Seconds = time.Since(began).Seconds()
	if err != nil {
		rep.Error = err.Error()
	}
	return rep, err
}

func (s *Sandbox) runScript(ctx context.Context, script Script, out io.Writer, rep *Report) error {
	runs, err := s.Ready(ctx)
	if err != nil {
		return err
	}
	noise, err := s.Noise(ctx, noiseWindow)
	if err != nil {
		return err
	}
	events, err := s.EventNoise(ctx)
	if err != nil {
		return err
	}
	rep.NoiseMS, rep.EventNoiseMS = millis(noise), millis(events)
	s.announce(out, rep)
	for _, line := range runs {
		fmt.Fprintln(out, line)
	}
	if line := s.leases(ctx); line != "" {
		fmt.Fprintln(out, line)
	}
	for step, ok := script(); ok; step, ok = script() {
		s.wholeBefore(ctx, out)
		from := now()
		res, err := s.Measure(ctx, step)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		res.Violations = s.check(ctx, from, rep.limits(s.timing()))
		if err != nil && res.Error == "" {
			res.Error = err.Error()
		}
		rep.Results = append(rep.Results, res)
		fmt.Fprintln(out, res.Line(rep.EventNoiseMS))
		for _, v := range res.Violations {
			fmt.Fprintf(out, "    ! BROKEN %s: %s\n", v.Invariant, v.Text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wholeWithin is how long a demo waits for its workloads to have all their copies.
const wholeWithin = time.Minute

// wholeBefore does between two faults what an operator does: a node that has the last
// copy of a workload is not fenced, which is another story than the next fault's.
func (s *Sandbox) wholeBefore(ctx context.Context, out io.Writer) {
	if !s.options.Workloads {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, wholeWithin)
	defer cancel()
	if err := s.MakeWhole(ctx); err != nil {
		fmt.Fprintf(out, "    the workloads do not have all their copies again: %v\n", err)
	}
}

// announce says what is up and what the lines to come mean.
func (s *Sandbox) announce(out io.Writer, rep *Report) {
	var names []string
	for _, a := range FloatingAddresses() {
		names = append(names, a.Name)
	}
	fmt.Fprintf(out, "up: %s is primary. Each floating address is asked every %v: %s.\n", s.holder(), probePeriod, strings.Join(names, "/"))
	fmt.Fprintf(out, "noise floor: silence %.1f ms (measured again before each fault), held twice %.1f ms\n", rep.NoiseMS, rep.EventNoiseMS)
}

// leasesWithin is how long the demo waits for the primary to hold every node's
// lease and to say so: one that another leader had runs out first.
const leasesWithin = 10 * time.Second

// leases tells of how many nodes the primary holds the lease, as it publishes it;
// empty where node leases are not in use.
func (s *Sandbox) leases(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, leasesWithin)
	defer cancel()
	line, all := s.leasesNow(ctx)
	for !all && pause(ctx, 100*time.Millisecond) == nil {
		if next, held := s.leasesNow(ctx); next != "" {
			line, all = next, held
		}
	}
	return line
}

func (s *Sandbox) leasesNow(ctx context.Context) (line string, all bool) {
	raw, err := s.store.ReadText(ctx, cluster.Key{Kind: cluster.KeyNodeLeases})
	if err != nil || !raw.Present {
		return "", false
	}
	var l cluster.NodeLeases
	if err := json.Unmarshal([]byte(raw.Value), &l); err != nil {
		return "", false
	}
	return leasesLine(l, len(s.nodes))
}

// leasesLine puts the record into a line; all: of every node the lease is held.
func leasesLine(l cluster.NodeLeases, nodes int) (line string, all bool) {
	held, worst := 0, int64(0)
	for _, n := range l.Nodes {
		if n.State == cluster.LeaseSeenHeld {
			held, worst = held+1, max(worst, n.RTT.Last)
		}
	}
	majority := "no majority"
	if l.Majority {
		majority = "a majority"
	}
	return fmt.Sprintf("node leases: %s holds those of %d of %d nodes, %s, at epoch %d; worst round trip %.1f ms",
		l.Lease.Holder, held, nodes, majority, l.Lease.Epoch, float64(worst)/1000), held == nodes && l.Majority
}

// limits are what the checker allows for what was measured.
func (r *Report) limits(t cluster.Timing) Limits {
	return limitsOf(t, time.Duration(r.NoiseMS*float64(time.Millisecond)), time.Duration(r.EventNoiseMS*float64(time.Millisecond)))
}

// limitsOf are what the checker allows a cluster of that timing, given the
// measured resolution of answers and of events.
func limitsOf(t cluster.Timing, noise, events time.Duration) Limits {
	return Limits{Noise: max(5*time.Millisecond, noise), Events: events, Grace: t.Grace, Missed: 5 * t.KeepaliveInterval / 2,
		Right: t.StopAfter(), Stop: stopOf}
}

// check examines the whole history so far and returns what was broken at or
// after the instant: a fence, say, is judged by what was registered long before.
func (s *Sandbox) check(ctx context.Context, from cluster.Instant, limits Limits) []Violation {
	s.prober.settle(ctx)
	var out []Violation
	for _, v := range Check(s.history.Entries(), limits) {
		if v.At >= from {
			out = append(out, v)
		}
	}
	return out
}

// timing is what the cluster runs with, as far as the sandbox uses it.
func (s *Sandbox) timing() cluster.Timing {
	t, err := cluster.Profile(s.options.Profile)
	if err != nil {
		t = cluster.ProfileLAN() // not reached: the options were validated
	}
	for key, field := range map[string]*time.Duration{"grace": &t.Grace, "renew_interval": &t.RenewInterval, "role_ttl": &t.RoleTTL, "write_gap": &t.WriteGap} {
		if d, err := time.ParseDuration(s.options.Timing[key]); err == nil {
			*field = d
		}
	}
	return t
}
