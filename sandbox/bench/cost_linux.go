package bench

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/sandbox"
)

// observed is how long what runs steadily is watched.
func (b *bench) observed(full, quick time.Duration) time.Duration {
	if b.config.Quick {
		return quick
	}
	return full
}

// log reads what the ZooKeeper server of the first coordinator has written
// down since then.
func (l *lab) log(from time.Time) ([]txn, error) {
	return transactions(filepath.Join(l.Nodes()[0].Dir, "zk"), from)
}

// watched is a program that is watched for its cost.
type watched struct {
	process
	node   cluster.NodeID
	before usage
}

// watch notes what the named daemon of each node has cost so far.
func (l *lab) watch(ctx context.Context, word string) ([]watched, error) {
	var out []watched
	for _, n := range l.Nodes() {
		p, err := l.daemon(ctx, n.Plan.Name, word)
		if err != nil {
			return nil, err
		}
		u, err := p.usage()
		if err != nil {
			return nil, err
		}
		out = append(out, watched{p, n.Plan.Name, u})
	}
	return out, nil
}

// since returns what each has cost since: percent of one processor, and the
// resident memory in MiB now.
func since(all []watched, took time.Duration) (percent, resident []float64, err error) {
	for _, w := range all {
		u, err := w.usage()
		if err != nil {
			return nil, nil, err
		}
		percent = append(percent, 100*float64(u.cpu-w.before.cpu)/float64(took))
		resident = append(resident, u.resident)
	}
	return percent, resident, nil
}

// afterGain is how long after the role was gained the cost at rest begins. A new
// primary tests the fence device of each node once, 10 s after it has gained the
// role, and writes down what it found: a few writes for each hand-over, which in
// the minute that is measured would count as if there were as many in every one.
const afterGain = 30 * time.Second

// atRest waits until the role has been where it is for afterGain, and all nodes
// have come to rest.
func (l *lab) atRest(ctx context.Context) error {
	for {
		if err := l.WaitConverged(ctx); err != nil {
			return err
		}
		left := l.gained().Add(afterGain).Sub(now())
		if left <= 0 {
			return nil
		}
		if err := pause(ctx, left); err != nil {
			return err
		}
	}
}

// gained is when the role's present epoch was first seen; Never: none was.
func (l *lab) gained() cluster.Instant {
	at, epoch := cluster.Never, cluster.Epoch(0)
	for _, e := range l.History().Entries() {
		if e.Kind == sandbox.KindLease && e.Node != "" && e.Epoch != epoch {
			at, epoch = e.At, e.Epoch
		}
	}
	return at
}

func measureCost(ctx context.Context, b *bench) error {
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	if err := l.atRest(ctx); err != nil {
		return err
	}
	agents, err := l.watch(ctx, "agent")
	if err != nil {
		return err
	}
	guards, err := l.watch(ctx, "guard")
	if err != nil {
		return err
	}
	from := time.Now()
	if err := pause(ctx, b.observed(60*time.Second, 30*time.Second)); err != nil {
		return err
	}
	took := time.Since(from)
	for _, w := range []struct {
		who      string
		all      []watched
		cpu, mem limit
	}{{"agent", agents, atMost(0.5), atMost(30)}, {"guard", guards, none, none}} {
		percent, resident, err := since(w.all, took)
		if err != nil {
			return err
		}
		note := fmt.Sprintf("one primary, %d secondaries, %.0f s", len(w.all)-1, took.Seconds())
		b.add(figure(w.who+": of one processor", "%", percent, w.cpu), note)
		b.add(figure(w.who+": resident memory", "MiB", resident, w.mem), "")
	}
	log, err := l.log(from)
	if err != nil {
		return err
	}
	b.addWrites(log)
	return nil
}

// addWrites counts, from ZooKeeper's own log, the transactions of each node's
// session beside its keepalives. A renewal that does not coincide with a
// keepalive is a transaction of its own and told apart.
func (b *bench) addWrites(log []txn) {
	owner := map[int64]string{}
	for _, t := range log {
		if node := t.keepaliveNode(); node != "" {
			owner[t.session] = node
		}
	}
	keepalives, others, renewals, riding := map[string]float64{}, map[string]float64{}, 0.0, 0.0
	for _, t := range log {
		node := owner[t.session]
		_, lease := t.sets(leasePath)
		switch {
		case node == "":
		case t.keepaliveNode() != "":
			keepalives[node]++
			if lease {
				riding++
			}
		case lease:
			renewals++
		default:
			others[node]++
			b.say("   beside a keepalive, %s wrote %s", node, paths(t))
		}
	}
	var each []float64
	for node, n := range keepalives {
		each = append(each, (n+others[node])/n)
	}
	b.add(figure("transactions for each keepalive, by ZooKeeper's log", "", each, atMost(1)),
		fmt.Sprintf("beside %.0f renewals of the lease on their own; %.0f rode in a keepalive", renewals, riding))
}

func paths(t txn) []string {
	var out []string
	for _, w := range t.writes {
		out = append(out, w.path)
	}
	return out
}

// lateness is by how much the longest interval between a znode's writes
// exceeds the planned one, in ms; at least 0.
func lateness(log []txn, path string, planned time.Duration) float64 {
	all := intervals(log, path)
	if len(all) == 0 {
		return 0
	}
	return max(0, millis(slices.Max(all)-planned))
}

func measureStress(ctx context.Context, b *bench) error {
	if _, err := exec.LookPath("stress-ng"); err != nil {
		return fmt.Errorf("stress-ng is not installed: apt-get install --no-install-recommends stress-ng (%w)", err)
	}
	l, err := b.cluster(ctx, sandbox.Options{})
	if err != nil {
		return err
	}
	if err := l.WaitConverged(ctx); err != nil {
		return err
	}
	before, from, wall := l.Status(ctx).Primary, now(), time.Now()
	lasting := b.observed(60*time.Second, 20*time.Second)
	cmd := exec.CommandContext(ctx, "stress-ng", "--quiet", "--cpu", fmt.Sprint(runtime.NumCPU()), "--timeout", fmt.Sprintf("%ds", int(lasting.Seconds())))
	cmd.SysProcAttr = withUs()
	if out, err := cmd.CombinedOutput(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("stress-ng: %w: %s", err, out)
	}
	ended := l.Status(ctx)
	lost, fences := 0.0, 0.0
	if ended.Primary != before {
		lost++
	}
	var epochs []cluster.Epoch
	for _, e := range l.History().Since(from) {
		switch e.Kind {
		case sandbox.KindLease:
			if epochs = append(epochs, e.Epoch); e.Epoch != epochs[0] {
				lost++
			}
		case sandbox.KindFence:
			fences++
		}
	}
	log, err := l.log(wall)
	if err != nil {
		return err
	}
	timing := cluster.ProfileLAN()
	var late []float64
	for _, n := range l.Nodes() {
		late = append(late, lateness(log, keepalivePath(string(n.Plan.Name)), timing.KeepaliveInterval))
	}
	note := fmt.Sprintf("%.0f s on %d processors", lasting.Seconds(), runtime.NumCPU())
	b.add(figure("roles lost under load", "", []float64{lost}, atMost(0)), note)
	b.add(figure("nodes fenced under load", "", []float64{fences}, atMost(0)), "")
	b.add(figure("keepalive's worst lateness under load, by node", "ms", late, none), "")
	b.add(figure("renewal's worst lateness under load", "ms", []float64{lateness(log, leasePath, timing.RenewInterval)}, none), "")
	b.add(figure("silence under load", "ms", []float64{longest(l, from, sandbox.KindSilence)}, none), "0 stands for at most 20 ms")
	if ended.Missing != "" {
		return errors.New("after the load: " + ended.Missing)
	}
	return nil
}
