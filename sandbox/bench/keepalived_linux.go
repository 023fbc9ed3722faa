package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// rivals is a cluster of keepalived on the sandbox's own nodes, bridges and
// addresses, watched by the same client.
type rivals struct {
	*lab
	b        *bench
	priority map[cluster.NodeID]int
	preempt  bool // the larger priority takes the role back
}

// overlapWindow is how long two answering nodes are watched: keepalived ends
// it never by itself.
const overlapWindow = 5 * time.Second

// measureKeepalived runs Debian's keepalived: VRRPv3 with an advertisement each
// 0.2 s, one instance for all addresses.
func measureKeepalived(ctx context.Context, b *bench) error {
	if _, err := exec.LookPath("keepalived"); err != nil {
		return fmt.Errorf("keepalived is not installed: apt-get install --no-install-recommends keepalived (%w)", err)
	}
	l, err := b.cluster(ctx, sandbox.Options{Coordinators: 1, Hypervisors: 2, NoDaemons: true})
	if err != nil {
		return err
	}
	b.say("   %s", keepalivedVersion(ctx))
	r := &rivals{lab: l, b: b, priority: map[cluster.NodeID]int{}}
	if err := r.restartAll(ctx, false); err != nil {
		return err
	}
	if l.noise, err = l.Noise(ctx, 3*time.Second); err != nil {
		return err
	}
	b.report.NoiseMS = max(b.report.NoiseMS, millis(l.noise))
	b.say("   its noise floor %.1f ms", millis(l.noise))
	for _, step := range []func(context.Context) error{r.measureTerm, r.measurePriority, r.measurePower, r.measureTwice} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// restartAll gives every node a fresh keepalived, priorities falling by node.
func (r *rivals) restartAll(ctx context.Context, preempt bool) error {
	r.preempt = preempt
	for i, n := range r.Nodes() {
		r.priority[n.Plan.Name] = 150 - 5*i // as its manual's examples have it
		if err := r.stop(ctx, n); err != nil {
			return err
		}
	}
	for _, n := range r.Nodes() {
		if err := r.start(ctx, n); err != nil {
			return err
		}
	}
	_, err := r.settled(ctx)
	return err
}

func (r *rivals) configPath(n *sandbox.Node) string { return filepath.Join(n.Dir, "keepalived.conf") }

func (r *rivals) writeConfig(n *sandbox.Node) error {
	first, excluded := "", ""
	for _, a := range sandbox.FloatingAddresses() {
		line := fmt.Sprintf("    %s dev %s\n", a.Prefix, a.Interface)
		if first == "" {
			first = line
		} else {
			excluded += line
		}
	}
	nopreempt := "  nopreempt\n"
	if r.preempt {
		nopreempt = ""
	}
	text := fmt.Sprintf("global_defs {\n  router_id %s\n  vrrp_version 3\n}\nvrrp_instance bench {\n  state BACKUP\n%s  interface upstream\n  virtual_router_id 51\n"+
		"  priority %d\n  advert_int 0.2\n  virtual_ipaddress {\n%s  }\n  virtual_ipaddress_excluded {\n%s  }\n}\n",
		n.Plan.Name, nopreempt, r.priority[n.Plan.Name], first, excluded)
	return os.WriteFile(r.configPath(n), []byte(text), 0o600)
}

// start runs keepalived inside the node: it ends with the node, stopped or not.
func (r *rivals) start(ctx context.Context, n *sandbox.Node) error {
	if err := r.writeConfig(n); err != nil {
		return err
	}
	// One that has just ended is known to the node's PID 1 a moment longer.
	err := await(ctx, 5*time.Second, func() error {
		return n.Run(ctx, "keepalived", "--dont-fork", "--vrrp", "--log-console", "--use-file", r.configPath(n), "--pid", pidPath(n), "--vrrp_pid", vrrpPath(n))
	})
	if err != nil {
		return fmt.Errorf("start keepalived on %s: %w", n.Plan.Name, err)
	}
	return nil
}

// stop ends the node's keepalived in order and waits for it.
func (r *rivals) stop(ctx context.Context, n *sandbox.Node) error {
	if !n.Powered() {
		return n.On()
	}
	return await(ctx, 5*time.Second, func() error {
		all, err := r.processes(ctx, n.Plan.Name, "keepalived")
		if err != nil || len(all) == 0 {
			return err
		}
		signalAll(all, unix.SIGTERM)
		return fmt.Errorf("keepalived has not ended on %s", n.Plan.Name)
	})
}

// cycle cuts the node's power, whatever runs there, and brings it back with a
// fresh keepalived.
func (r *rivals) cycle(ctx context.Context, n *sandbox.Node) error {
	if err := n.Off(); err != nil {
		return err
	}
	// As on a real machine, whose /run is gone: a number in them may be that of
	// another process by now, and keepalived would not start.
	if err := errors.Join(removed(pidPath(n)), removed(vrrpPath(n)), n.On()); err != nil {
		return err
	}
	return r.start(ctx, n)
}

func pidPath(n *sandbox.Node) string  { return filepath.Join(n.Dir, "keepalived.pid") }
func vrrpPath(n *sandbox.Node) string { return filepath.Join(n.Dir, "vrrp.pid") }

// removed removes a file that need not be there.
func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// holders are the nodes whose kernel holds all addresses now. What is seen
// counts by address, since one may be told twice; a node that lost its power
// holds none, whether its end was seen or not.
func (r *rivals) holders() []cluster.NodeID {
	held := map[cluster.NodeID]map[string]bool{}
	for _, e := range r.History().Entries() {
		switch {
		case e.Kind == sandbox.KindPower:
			delete(held, e.Node)
		case e.Kind != sandbox.KindHeld:
		case !e.On:
			delete(held[e.Node], e.Addr)
		case held[e.Node] == nil:
			held[e.Node] = map[string]bool{e.Addr: true}
		default:
			held[e.Node][e.Addr] = true
		}
	}
	var out []cluster.NodeID
	for _, n := range r.Nodes() {
		if len(held[n.Plan.Name]) == len(sandbox.FloatingAddresses()) && n.Powered() {
			out = append(out, n.Plan.Name)
		}
	}
	return out
}

// settled waits until one node has been master for a second, and returns it.
func (r *rivals) settled(ctx context.Context) (*sandbox.Node, error) {
	var since time.Time
	var last cluster.NodeID
	err := await(ctx, 15*time.Second, func() error {
		holders := r.holders()
		if len(holders) != 1 || holders[0] != last {
			since, last = time.Now(), ""
			if len(holders) == 1 {
				last = holders[0]
			}
			return fmt.Errorf("keepalived: the addresses are held by %v", holders)
		}
		if time.Since(since) < time.Second {
			return errors.New("keepalived: the master is new")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r.Node(last), nil
}

// silence waits until the role has moved and its announcements are over, and
// returns the longest silence of any address since the instant.
func (r *rivals) silence(ctx context.Context, from cluster.Instant, gone cluster.NodeID) (float64, error) {
	err := await(ctx, 15*time.Second, func() error {
		for _, h := range r.holders() {
			if h != gone {
				return nil
			}
		}
		return fmt.Errorf("keepalived: nobody took over from %s", gone)
	})
	if err != nil {
		return 0, err
	}
	if err := pause(ctx, 800*time.Millisecond); err != nil {
		return 0, err
	}
	return longest(r.lab, from, sandbox.KindSilence), nil
}

// strike repeats one fault of the master and returns the silences.
func (r *rivals) strike(ctx context.Context, text string, runs int, inject, heal func(context.Context, *sandbox.Node) error) ([]float64, error) {
	var values []float64
	for i := range runs {
		master, err := r.settled(ctx)
		if err != nil {
			return values, err
		}
		// Advertisements have no phase that a client sees: the strikes are
		// spread over their period by the run.
		if err := pause(ctx, time.Duration(phase(i)*float64(200*time.Millisecond))); err != nil {
			return values, err
		}
		from := now()
		if err := inject(ctx, master); err != nil {
			return values, err
		}
		ms, err := r.silence(ctx, from, master.Plan.Name)
		if err != nil {
			return values, err
		}
		values = append(values, ms)
		twice := longest(r.lab, from, sandbox.KindTwice)
		r.b.noteTwice("keepalived, "+text, twice)
		r.b.say("   keepalived, %s: %s silent for %s, two answer for %s", text, master.Plan.Name, quantity(ms, "ms"), quantity(twice, "ms"))
		if err := heal(ctx, master); err != nil {
			return values, err
		}
	}
	return values, nil
}

func (r *rivals) measureTerm(ctx context.Context) error {
	if err := r.restartAll(ctx, false); err != nil {
		return err
	}
	values, err := r.strike(ctx, "SIGTERM of the master", r.b.runs(5),
		func(ctx context.Context, n *sandbox.Node) error {
			all, err := r.processes(ctx, n.Plan.Name, "keepalived")
			signalAll(all, unix.SIGTERM)
			return err
		},
		func(ctx context.Context, n *sandbox.Node) error {
			if err := r.stop(ctx, n); err != nil {
				return err
			}
			return r.start(ctx, n)
		})
	r.b.add(figure("keepalived: silence, SIGTERM of the master", "ms", values, none), r.b.ratio("sigterm", values))
	return err
}

// measurePriority has the master's priority lowered below the next one's and
// the configuration read again: keepalived's planned switch.
func (r *rivals) measurePriority(ctx context.Context) error {
	if err := r.restartAll(ctx, true); err != nil {
		return err
	}
	values, err := r.strike(ctx, "priority lowered", r.b.runs(5),
		func(ctx context.Context, n *sandbox.Node) error {
			r.priority[n.Plan.Name] -= 15
			if err := r.writeConfig(n); err != nil {
				return err
			}
			all, err := r.processes(ctx, n.Plan.Name, "keepalived")
			if err != nil || len(all) == 0 {
				return errors.Join(err, fmt.Errorf("no keepalived runs on %s", n.Plan.Name))
			}
			return unix.Kill(all[0].pid, unix.SIGHUP) // the parent is the oldest
		},
		func(ctx context.Context, n *sandbox.Node) error {
			if r.priority[n.Plan.Name] > 30 {
				return nil
			}
			return r.restartAll(ctx, true)
		})
	r.b.add(figure("keepalived: silence, planned switch by priority", "ms", values, none), r.b.ratio("switch", values))
	return err
}

func (r *rivals) measurePower(ctx context.Context) error {
	if err := r.restartAll(ctx, false); err != nil {
		return err
	}
	values, err := r.strike(ctx, "power loss of the master", r.b.runs(3),
		func(_ context.Context, n *sandbox.Node) error { return n.Off() }, r.cycle)
	r.b.add(figure("keepalived: silence, power loss of the master", "ms", values, none), "advertisements each 0.2 s, priorities 150, 145, 140")
	return err
}

// ratio compares our silence with keepalived's, where ours was measured.
func (b *bench) ratio(fault string, theirs []float64) string {
	ours := median(b.switches[fault])
	if ours <= 0 || len(theirs) == 0 {
		return ""
	}
	if median(theirs) == 0 {
		return "0 stands for at most 20 ms; ours " + quantity(ours, "ms")
	}
	return fmt.Sprintf("%.1f times ours of %s, by medians", median(theirs)/ours, quantity(ours, "ms"))
}

// measureTwice is what two nodes answer at once after kill -9 and SIGSTOP.
func (r *rivals) measureTwice(ctx context.Context) error {
	for _, c := range []struct {
		text string
		sig  unix.Signal
	}{{"kill -9", unix.SIGKILL}, {"SIGSTOP", unix.SIGSTOP}} {
		if err := r.restartAll(ctx, false); err != nil {
			return err
		}
		for range min(3, r.b.runs(1)) { // it is the same each time
			ms, err := r.overlap(ctx, c.sig)
			if err != nil {
				return err
			}
			r.b.say("   keepalived, %s: two answer for %s, until the power was cut", c.text, quantity(ms, "ms"))
			r.b.noteTwice(fmt.Sprintf("keepalived, %s, until its power is cut after %s", c.text, quantity(millis(overlapWindow), "ms")), ms)
		}
	}
	return nil
}

func (r *rivals) overlap(ctx context.Context, sig unix.Signal) (float64, error) {
	master, err := r.settled(ctx)
	if err != nil {
		return 0, err
	}
	from := now()
	all, err := r.processes(ctx, master.Plan.Name, "keepalived")
	if err != nil {
		return 0, err
	}
	signalAll(all, sig)
	if err := pause(ctx, overlapWindow); err != nil {
		return 0, err
	}
	if err := r.cycle(ctx, master); err != nil {
		return 0, err
	}
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return 0, err
	}
	return longest(r.lab, from, sandbox.KindTwice), nil
}

// longest is the longest stretch of the kind since the instant, in ms; of
// silences only those above 20 ms are recorded.
func longest(l *lab, from cluster.Instant, kind sandbox.Kind) float64 {
	worst := 0.0
	for _, e := range l.History().Since(from) {
		if e.Kind == kind {
			worst = max(worst, millis(e.Until.Sub(max(e.At, from))))
		}
	}
	return worst
}

// keepalivedVersion is what the program says of itself.
func keepalivedVersion(ctx context.Context) string {
	out, _ := exec.CommandContext(ctx, "keepalived", "--version").CombinedOutput()
	line, _, _ := strings.Cut(string(out), "\n")
	line, _, _ = strings.Cut(line, "(")
	return strings.TrimSpace(line)
}
