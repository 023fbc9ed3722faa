package acceptance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// TestWatchdogs is what becomes of a node that nothing but its watchdog ends:
// its BMC does not answer. A hung primary and an orderly stop always, the rest
// with PVC_SOAK=1. Addresses are all that the role has here: they move by the
// lease, with the kernel's gate for whoever hangs, before anything is proven.
func TestWatchdogs(t *testing.T) {
	c := newWatchdogCluster(t, sandbox.Options{NoHooks: true})
	c.run("the primary hangs", c.endedByWatchdog(true, hang))
	c.run("stopped in order", c.stopsUnbitten)
	if os.Getenv("PVC_SOAK") != "" {
		c.run("a secondary hangs", c.endedByWatchdog(false, hang))
		c.run("the primary loses power", c.endedByWatchdog(true, losePower))
		c.run("a secondary loses power", c.endedByWatchdog(false, losePower))
		c.run("the guard is killed", c.guardAdopts)
		c.run("no watchdog", c.withoutWatchdog)
		c.run("it bites a second early", c.skewed(-time.Second))
		c.run("it bites a second late", c.skewed(time.Second))
		c.run("it never bites", c.toothless)
		c.bitesAgainAndAgain(5)
	}
	c.keepsInvariants(t)
}

// newWatchdogCluster starts a cluster whose nodes have watchdogs outside of
// them, as they have BMCs.
func newWatchdogCluster(t *testing.T, o sandbox.Options) *testCluster {
	t.Helper()
	needs(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("needs FUSE for the simulated watchdogs: %v", err)
	}
	o.Coordinators, o.Watchdogs = 3, true
	c := upCluster(t, o)
	for _, n := range c.Nodes() {
		c.armed(t, n)
	}
	return c
}

// armed waits until the node's watchdog runs and the others know of it.
func (c *testCluster) armed(t *testing.T, n *sandbox.Node) {
	t.Helper()
	eventually(t, 30*time.Second, "the watchdog of "+string(n.Plan.Name)+" is armed and published", func() error {
		if s := n.Watchdog().Status(); !s.Running || !s.Open {
			return fmt.Errorf("%+v", s)
		}
		if word := n.PublishedWatchdog(); word == nil || !word.Armed || !word.Hardware || !word.Stored || word.TimeoutMS != cluster.ProfileLAN().Watchdog.Milliseconds() {
			return fmt.Errorf("it is published as %+v", word)
		}
		return nil
	})
}

// hang stops a node's whole user space, as far as it is of this project: nobody
// there feeds, renews or ends anything any more.
func hang(t *testing.T, n *sandbox.Node) {
	t.Helper()
	for _, program := range []string{"guard", "pvcnoded"} {
		if err := n.Signal(t.Context(), program, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
}

func losePower(t *testing.T, n *sandbox.Node) {
	t.Helper()
	if err := n.Off(); err != nil {
		t.Fatal(err)
	}
}

// watchdogVictim is the primary, or a coordinator that is not.
func (c *testCluster) watchdogVictim(t *testing.T, primary bool) *sandbox.Node {
	t.Helper()
	name := c.primary(t)
	if !primary {
		name = c.other(name)
	}
	return c.Node(cluster.NodeID(name))
}

// endedByWatchdog: the fence's device fails, the bound is waited for, and the
// proof comes after the node is dead in truth, never before.
func (c *testCluster) endedByWatchdog(primary bool, strike func(*testing.T, *sandbox.Node)) func(t *testing.T) {
	return func(t *testing.T) { c.provenByWatchdog(t, primary, strike) }
}

// watchdogCourse is when what happened, from the strike on.
type watchdogCourse struct {
	keepalive                 cluster.Instant // the last, by when it was written
	dead, proof, clean, taken time.Duration
}

func (c *testCluster) provenByWatchdog(t *testing.T, primary bool, strike func(*testing.T, *sandbox.Node)) watchdogCourse {
	t.Helper()
	if err := c.Rest(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := c.watchdogVictim(t, primary)
	name := string(n.Plan.Name)
	c.armed(t, n)
	n.BMC().Unreachable(true)
	defer n.BMC().Clear()
	from, began := len(c.History().Entries()), cluster.Instant(monotonic())
	strike(t, n)
	c.fenceDone(t, n.Plan.Name, from)
	eventually(t, 10*time.Second, "the records of "+name+" are cleaned", func() error { // each is seen at its own time
		if !slices.ContainsFunc(c.History().Entries()[from:], func(e sandbox.Entry) bool {
			return e.Kind == sandbox.KindDaemon && e.Node == n.Plan.Name && e.Text == string(cluster.DaemonFenced)
		}) {
			return errors.New("its daemon state is as it was")
		}
		return nil
	})
	course := c.course(t, n.Plan.Name, from, began)
	n.BMC().Clear()
	back := len(c.History().Entries())
	c.returns(t, name)
	eventually(t, 30*time.Second, name+" has registered anew", func() error {
		if !c.registered(back, n.Plan.Name) {
			return errors.New("it has not")
		}
		return nil
	})
	return course
}

// fenceDone waits until a fence of the node has ended with a proof since then,
// and returns that.
func (c *testCluster) fenceDone(t *testing.T, node cluster.NodeID, from int) (proof string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			out, _, _ := c.cli(t, "explain", string(node))
			t.Log(out)
		}
	}()
	eventually(t, 90*time.Second, "the fence of "+string(node)+" is done", func() error {
		entries := c.History().Entries()[from:]
		i := slices.IndexFunc(entries, func(e sandbox.Entry) bool {
			return e.Kind == sandbox.KindFence && e.Node == node && e.Stage == cluster.FenceDone
		})
		if i < 0 {
			return fmt.Errorf("its stages are %s", stagesOf(entries, node))
		}
		proof = entries[i].Text
		return nil
	})
	return proof
}

// course judges what the history says of the node's end.
func (c *testCluster) course(t *testing.T, node cluster.NodeID, from int, began cluster.Instant) watchdogCourse {
	t.Helper()
	timing := cluster.ProfileLAN()
	all := c.History().Entries()
	var dead, proof, clean, cleaned, taken, last cluster.Instant
	for i, e := range all {
		if i < from && (e.Kind != sandbox.KindKeepalive || e.Node != node) {
			continue
		}
		switch {
		case e.Kind == sandbox.KindKeepalive && e.Node == node && proof.IsZero():
			last = e.Written
		case e.Kind == sandbox.KindPower && e.Node == node && !e.On && dead.IsZero():
			dead = e.At
		case e.Kind == sandbox.KindLease && e.Node != "" && e.Node != node && taken.IsZero():
			taken = e.At
		case e.Kind == sandbox.KindFence && e.Node == node && e.Text != "": // each of its stages has the proof
			if e.Text != "watchdog" {
				t.Errorf("the proof is %q: %+v", e.Text, e)
			}
			if proof.IsZero() {
				proof = e.At
			}
			if e.Stage == cluster.FenceDone {
				clean = e.At
			}
		case e.Kind == sandbox.KindDaemon && e.Node == node && e.Text == string(cluster.DaemonFenced) && cleaned.IsZero():
			cleaned = e.At
		}
	}
	bound := last.Add(timing.WatchdogProof())
	switch {
	case dead.IsZero() || proof.IsZero():
		t.Fatalf("dead %v, proof %v: %s", dead, proof, stagesOf(all[from:], node))
	case dead > last.Add(timing.StopAfter()+timing.Watchdog):
		t.Errorf("%s was dead %v after its last keepalive, its bound is %v", node, dead.Sub(last), timing.StopAfter()+timing.Watchdog)
	case proof < dead:
		t.Errorf("%s counted as dead %v before it was", node, dead.Sub(proof))
	case proof < bound:
		t.Errorf("%s counted as dead %v before the bound of %v", node, bound.Sub(proof), timing.WatchdogProof())
	}
	if cleaned < bound {
		t.Errorf("the records of %s were cleaned %v before its bound", node, bound.Sub(cleaned))
	}
	t.Logf("%s: last keepalive %+.2f s, dead %.2f s, role elsewhere %.2f s, bound %.2f s, proof %.2f s, clean %.2f s; stages %s", node, last.Sub(began).Seconds(),
		dead.Sub(began).Seconds(), taken.Sub(began).Seconds(), bound.Sub(began).Seconds(), proof.Sub(began).Seconds(), clean.Sub(began).Seconds(), stagesOf(all[from:], node))
	return watchdogCourse{keepalive: last, dead: dead.Sub(began), proof: proof.Sub(began), clean: clean.Sub(began), taken: taken.Sub(began)}
}

// stagesOf are the stages of the node's fences, with their proofs.
func stagesOf(entries []sandbox.Entry, node cluster.NodeID) string {
	var out []string
	for _, e := range entries {
		if e.Kind == sandbox.KindFence && e.Node == node {
			out = append(out, strings.TrimSpace(string(e.Stage)+" "+e.Text))
		}
	}
	return strings.Join(out, ", ")
}

// stopsUnbitten: whoever leaves in order stops his watchdog, by the magic close.
func (c *testCluster) stopsUnbitten(t *testing.T) {
	n := c.watchdogVictim(t, false)
	from, before := len(c.History().Entries()), n.Watchdog().Status()
	for _, program := range []string{"pvcnoded", "guard"} { // as their units are ordered
		was := c.programs(t, n)[program]
		if err := n.Signal(t.Context(), program, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, program+" has ended", func() error {
			if now := c.programs(t, n)[program]; now == was {
				return errors.New("it runs")
			}
			return nil
		})
	}
	eventually(t, 20*time.Second, "the watchdog is stopped", func() error { // a guard that is started again may have armed it by now
		if s := n.Watchdog().Status(); s.Stops != before.Stops+1 {
			return fmt.Errorf("%+v, before %+v", s, before)
		}
		return nil
	})
	if err := n.Start(t.Context(), "pvcnoded"); err != nil {
		t.Fatal(err)
	}
	c.armed(t, n)
	c.rests(t)
	for _, e := range c.History().Entries()[from:] {
		if e.Node == n.Plan.Name && (e.Kind == sandbox.KindPower || e.Kind == sandbox.KindFence) {
			t.Errorf("something was done to it: %+v", e)
		}
	}
}

// programs are the numbers of the node's programs that run.
func (c *testCluster) programs(t *testing.T, n *sandbox.Node) map[string]int {
	t.Helper()
	all, err := n.Programs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pids := map[string]int{}
	for name, p := range all {
		if p.Running {
			pids[name] = p.PID
		}
	}
	return pids
}

// guardAdopts: a guard that is killed leaves the open device to the next, which
// neither opens it again nor lets it bite.
func (c *testCluster) guardAdopts(t *testing.T) {
	n := c.watchdogVictim(t, true)
	before := n.Watchdog().Status()
	if err := n.Signal(t.Context(), "guard", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(c.Dir(), string(n.Plan.Name), "log", "guard.log")
	eventually(t, 10*time.Second, "the next guard adopts the watchdog", func() error {
		if raw, err := os.ReadFile(log); err != nil || !strings.Contains(string(raw), "watchdog adopted") {
			return fmt.Errorf("its log does not say so (%v)", err) //nolint:errorlint // which may be nil
		}
		return nil
	})
	fed := n.Watchdog().Status().Feeds
	eventually(t, 10*time.Second, "it feeds it", func() error {
		if s := n.Watchdog().Status(); !s.Running || s.Feeds < fed+3 || s.Opens != before.Opens {
			return fmt.Errorf("%+v, before %+v", s, before)
		}
		return nil
	})
}

// skewed: a device, or a guard, that is a second off what the node has published.
// The bound has a second beyond the arithmetic, so that a late bite by so much
// comes before the proof all the same.
func (c *testCluster) skewed(by time.Duration) func(t *testing.T) {
	return func(t *testing.T) {
		n := c.watchdogVictim(t, true)
		n.Watchdog().Skew(by)
		defer n.Watchdog().Skew(0)
		fed := n.Watchdog().Status().Feeds
		eventually(t, 10*time.Second, "it is fed with that", func() error {
			if now := n.Watchdog().Status().Feeds; now <= fed {
				return fmt.Errorf("fed %d times", now)
			}
			return nil
		})
		c.provenByWatchdog(t, true, hang)
	}
}

// toothless: a device that takes every call and does not reset the machine. The
// others cannot know, and count it as dead: whoever sets failed_fence to migrate
// answers for his watchdogs. What protects then is the lease: the hung node's
// addresses answer no more, and when it wakes it ends what it holds.
func (c *testCluster) toothless(t *testing.T) {
	if err := c.Rest(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := c.watchdogVictim(t, true)
	name := string(n.Plan.Name)
	n.Watchdog().Toothless(true)
	n.BMC().Unreachable(true)
	defer func() { n.Watchdog().Toothless(false); n.BMC().Clear() }()
	from := len(c.History().Entries())
	hang(t, n)
	if proof := c.fenceDone(t, n.Plan.Name, from); proof != "watchdog" {
		t.Errorf("proven by %q", proof)
	}
	if !n.Powered() {
		t.Error("it has lost its power")
	}
	for _, program := range []string{"guard", "pvcnoded"} {
		if err := n.Signal(t.Context(), program, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 20*time.Second, "the woken node holds no address", func() error {
		held := map[string]bool{}
		for _, e := range c.History().Entries() {
			if e.Kind == sandbox.KindHeld && e.Node == n.Plan.Name {
				held[e.Addr] = e.On
			}
		}
		for address, on := range held {
			if on {
				return fmt.Errorf("it holds %s", address)
			}
		}
		return nil
	})
	if c.primary(t) == name {
		t.Error("it is primary")
	}
	n.BMC().Clear()
	losePower(t, n) // its guard feeds no more: a reset is what it waits for
	c.returns(t, name)
	t.Logf("stages %s", stagesOf(c.History().Entries()[from:], n.Plan.Name))
}

// withoutWatchdog: nothing but a person's word proves a node dead that has
// neither.
func (c *testCluster) withoutWatchdog(t *testing.T) {
	n := c.watchdogVictim(t, false)
	name := string(n.Plan.Name)
	n.Watchdog().Pull(true)
	defer n.Watchdog().Pull(false)
	from := len(c.History().Entries())
	losePower(t, n)
	c.returns(t, name)
	eventually(t, 30*time.Second, name+" has registered this start, without a watchdog", func() error {
		if c.registered(from, n.Plan.Name) && n.PublishedWatchdog() == nil {
			return nil
		}
		return fmt.Errorf("published %+v", n.PublishedWatchdog())
	})
	if err := c.Rest(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.BMC().Unreachable(true)
	defer n.BMC().Clear()
	from = len(c.History().Entries())
	hang(t, n)
	eventually(t, time.Minute, "the fence of "+name+" fails", func() error {
		if s := stagesOf(c.History().Entries()[from:], n.Plan.Name); !strings.Contains(s, string(cluster.FenceFailed)) {
			return fmt.Errorf("its stages are %s", s)
		}
		return nil
	})
	c.explained(t, name, "verified_off missing", "watchdog missing: this start has published no armed watchdog", "confirmed missing", "pvc fence confirm "+name)
	wait := time.NewTimer(2 * cluster.ProfileLAN().WatchdogProof())
	defer wait.Stop()
	<-wait.C // longer than any bound
	if s := stagesOf(c.History().Entries()[from:], n.Plan.Name); strings.Contains(s, string(cluster.FenceFenced)) {
		t.Errorf("it counts as dead: %s", s)
	}
	losePower(t, n) // what the person then vouches for
	if _, errs, code := c.cli(t, "fence", "confirm", name, "--reason", "both cables pulled", "-y"); code != 0 {
		t.Fatalf("confirm: exit code %d: %s", code, errs)
	}
	if proof := c.fenceDone(t, n.Plan.Name, from); proof != "confirmed" {
		t.Errorf("proven by %q", proof)
	}
	n.Watchdog().Pull(false)
	n.BMC().Clear()
	c.returns(t, name)
}

// registered reports whether a new start of the node has registered since then.
func (c *testCluster) registered(from int, node cluster.NodeID) bool {
	return slices.ContainsFunc(c.History().Entries()[from:], func(e sandbox.Entry) bool {
		return e.Kind == sandbox.KindIncarnation && e.Node == node
	})
}

// bitesAgainAndAgain measures, beside what `pvc timing` computes.
func (c *testCluster) bitesAgainAndAgain(rounds int) {
	var dead, proof, clean []time.Duration
	for round := range rounds {
		c.run(fmt.Sprintf("round %d", round+1), func(t *testing.T) {
			course := c.provenByWatchdog(t, round%2 == 0, hang)
			dead, proof, clean = append(dead, course.dead), append(proof, course.proof), append(clean, course.clean)
		})
	}
	out, _, _ := c.cli(c.t, "timing")
	for line := range strings.SplitSeq(out, "\n") {
		if strings.Contains(line, "watchdog") {
			c.t.Log(line)
		}
	}
	for what, all := range map[string][]time.Duration{"dead": dead, "proof": proof, "clean": clean} {
		if slices.Sort(all); len(all) > 0 {
			c.t.Logf("from the hang to %s: median %.2f s, worst %.2f s of %d", what, all[len(all)/2].Seconds(), all[len(all)-1].Seconds(), len(all))
		}
	}
}

// monotonic is this machine's time since its boot, as the history's is.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}
