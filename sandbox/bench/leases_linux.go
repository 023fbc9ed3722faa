package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/agent/activity"
	"pvc.internal/agent/subtask"
	"pvc.internal/cluster"
	"pvc.internal/proc"
)

// measureLeases looks how soon what an activity runs is dead when its lease is
// lost, a failover wants its domain, or its process is killed; and what it costs
// a primary to hold the leases of a thousand nodes.
func measureLeases(ctx context.Context, b *bench) error {
	var dead, left, begins, late, early, unlisted, bound, others []float64
	for range b.runs(5) {
		d, l, err := lostLease(ctx)
		if err != nil {
			return fmt.Errorf("lose a lease: %w", err)
		}
		dead, left = append(dead, d), append(left, l)
		p, err := preempted(ctx)
		if err != nil {
			return fmt.Errorf("demand a failover: %w", err)
		}
		begins, late = append(begins, millis(p.begins)), append(late, float64(p.alive))
		early, unlisted = append(early, p.early), append(unlisted, p.unlisted)
		k, err := b.brutallyKilled(ctx)
		if err != nil {
			return fmt.Errorf("kill what runs an activity: %w", err)
		}
		bound, others = append(bound, millis(k.bound)), append(others, float64(k.alive))
		b.say("   dead %.0f ms after a loss, failover after %.0f ms, children dead %.0f ms after a kill -9", d, millis(p.begins), millis(k.bound))
	}
	b.add(figure("lease lost: nothing of its activity in /proc", "ms", dead, atMost(1250)),
		"1 s and the kill; children ignore SIGTERM, fork twice, begin sessions")
	b.add(figure("processes that live when the loss counts as settled", "", left, atMost(0)), "")
	b.add(figure("failover begins, a rebalance ignores its stop", "ms", begins, atMost(2000)), "with the same children")
	b.add(figure("processes of the rebalance that live then", "", late, atMost(0)), "")
	b.add(figure("clean-ups begun before the failover's end", "", early, atMost(0)), fmt.Sprintf("of 60 s, shortened to %v", cleanUpTakes))
	b.add(figure("clean-ups not listed by themselves", "", unlisted, atMost(0)), "")
	b.add(figure("kill -9 of the activity's process: registered children dead", "ms", bound, atMost(1000)), "")
	b.add(figure("its processes that live when the next has the domain", "", others, atMost(0)), "")
	return b.measureThousandLeases(ctx)
}

// benchNodes are the quorum set of the activities that run in this process.
var benchNodes = []cluster.NodeID{"a", "b", "c", "d", "e"}

// leading is a manager of a leader that holds all leases.
func leading() *activity.Manager {
	m := activity.New(activity.Config{Self: benchNodes[0]})
	m.Update(holdings(len(benchNodes)))
	return m
}

// holdings are a leader's that holds the first n leases.
func holdings(n int) activity.Holdings {
	return activity.Holdings{Leader: true, Lease: cluster.NodeLeaseID{Holder: benchNodes[0], Start: "bench", Epoch: 1},
		Held: benchNodes[:n], Set: benchNodes}
}

// kinMark is in the environment of all that a kin has started.
const kinMark = "PVC_BENCH_KIN"

// resisting is a program that ignores SIGTERM, as do one that it has in a session
// of its own and one that it has forked twice. Each says so by a line.
const resisting = `trap '' TERM
(setsid sh -c 'trap "" TERM; echo >>$F; while :; do sleep 1; done' &)
(sh -c '(trap "" TERM; echo >>$F; while :; do sleep 1; done) &' &)
echo >>$F; while :; do sleep 1; done`

// kin is a resisting program with all that it has started.
type kin struct{ dir, mark, slice string }

func newKin(slice string) (*kin, error) {
	dir, err := newFolder("", "kin")
	return &kin{dir, rand.Text(), slice}, err
}

// start runs the program.
func (k *kin) start() (*proc.Process, error) {
	return proc.StartBound(proc.Command{Argv: []string{"/bin/sh", "-c", resisting}, Slice: k.slice,
		Env: map[string]string{"F": filepath.Join(k.dir, "lines"), kinMark: k.mark}})
}

// whole waits until all of it runs.
func (k *kin) whole(ctx context.Context) error {
	return await(ctx, 20*time.Second, func() error {
		raw, _ := os.ReadFile(filepath.Join(k.dir, "lines"))
		if n := bytes.Count(raw, []byte("\n")); n < 3 {
			return fmt.Errorf("only %d of 3 programs run", n)
		}
		return nil
	})
}

// alive lists what of it is in /proc; what is dead and not reaped has no environment.
func (k *kin) alive() []int {
	entry := []byte(kinMark + "=" + k.mark)
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	var pids []int
	for _, file := range files {
		raw, _ := os.ReadFile(file)
		if slices.ContainsFunc(bytes.Split(raw, []byte{0}), func(e []byte) bool { return bytes.Equal(e, entry) }) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// gone waits until nothing of it is in /proc and tells how long after from.
func (k *kin) gone(ctx context.Context, from cluster.Instant) (time.Duration, error) {
	err := await(ctx, 10*time.Second, func() error {
		if pids := k.alive(); len(pids) > 0 {
			return fmt.Errorf("alive: %v", pids)
		}
		return nil
	})
	return now().Sub(from), err
}

// end kills what is left, whatever was measured.
func (k *kin) end() {
	for _, pid := range k.alive() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	_ = os.RemoveAll(k.dir)
}

// stubborn is the body of an activity that waits for its program and for nothing
// else: it knows of no stop.
func (k *kin) stubborn(running chan<- error) activity.Body {
	return func(ctx context.Context, a *activity.Activity) error {
		var p *proc.Process
		err := a.Start("resists", func() (subtask.Child, error) {
			var err error
			p, err = k.start()
			return p, err
		})
		if err == nil {
			err = k.whole(ctx)
		}
		if running <- err; err != nil {
			return err
		}
		<-p.Done()
		return nil
	}
}

// rebalance is the activity in whose way others are.
func rebalance() activity.Spec {
	return activity.Spec{Name: "rebalance", Quorum: cluster.Majority()}
}

// closeIn ends a manager.
func closeIn(m *activity.Manager) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return m.Close(ctx)
}

// lostLease has an activity lose its majority, and tells when its processes were
// dead, in ms, and how many lived when the loss was settled.
func lostLease(ctx context.Context) (dead, left float64, err error) {
	k, err := newKin("")
	if err != nil {
		return 0, 0, err
	}
	defer k.end()
	m := leading()
	defer func() { err = errors.Join(err, closeIn(m)) }()
	running := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := m.Run(ctx, rebalance(), k.stubborn(running)); err != nil {
			select {
			case running <- err: // it never ran
			default:
			}
		}
	})
	if err := <-running; err != nil {
		m.Update(activity.Holdings{})
		return 0, 0, err
	}
	from := now()
	m.Update(holdings(2))
	settled := make(chan int, 1)
	wg.Go(func() {
		_ = m.Settled(ctx)
		settled <- len(k.alive())
	})
	took, err := k.gone(ctx, from)
	return millis(took), float64(<-settled), err
}

// cleanUpTakes stands for a clean-up of 60 s: nothing depends on its length.
const cleanUpTakes = time.Second

// preemption is what became of a rebalance that a failover ended.
type preemption struct {
	begins          time.Duration // from the demand to the failover's body
	alive           int           // processes of the rebalance then
	early, unlisted float64       // of its one clean-up
}

// preempted has a failover want the domain of a rebalance that ignores its stop
// and leaves a clean-up behind.
func preempted(ctx context.Context) (p preemption, err error) {
	k, err := newKin("")
	if err != nil {
		return p, err
	}
	defer k.end()
	m := leading()
	defer func() { err = errors.Join(err, closeIn(m)) }()
	running, cleaned := make(chan error, 1), make(chan cluster.Instant, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_ = m.Run(ctx, rebalance(), func(ctx context.Context, a *activity.Activity) error {
			a.CleanUp("clean up", func(ctx context.Context, a *activity.Activity) error {
				from := now()
				if err := pause(ctx, cleanUpTakes); err != nil {
					return err
				}
				if !slices.ContainsFunc(m.List(), func(x cluster.Activity) bool { return x.ID == a.ID() && x.Name == "clean up" && x.Parent == "" }) {
					from = cluster.Never
				}
				cleaned <- from
				return nil
			})
			return k.stubborn(running)(ctx, a)
		})
	})
	select {
	case err = <-running:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		m.Update(activity.Holdings{})
		return p, err
	}
	from, ended := now(), cluster.Never
	err = m.Run(ctx, activity.Spec{Name: "failover", Quorum: cluster.Majority(), Urgency: activity.Failover}, func(ctx context.Context, _ *activity.Activity) error {
		p.begins, p.alive = now().Sub(from), len(k.alive())
		err := pause(ctx, 200*time.Millisecond)
		ended = now()
		return err
	})
	if err != nil {
		return p, err
	}
	select {
	case began := <-cleaned:
		switch {
		case began.IsZero():
			p.unlisted = 1
		case began.Before(ended):
			p.early = 1
		}
	case <-time.After(cleanUpTakes + 10*time.Second):
		return p, errors.New("the clean-up has not ended")
	}
	return p, nil
}

// HelperMain is a process that a part of the bench needs beside this one.
func HelperMain(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "orchestrator":
			return orchestratorMain(args[1:])
		case "granters":
			return grantersMain(args[1:])
		case "load":
			return loadMain(args[1:])
		case "watchers":
			return watchersMain(args[1:])
		}
	}
	return fmt.Errorf("%v: orchestrator, granters, load or watchers", args)
}

// helper is such a process; it ends when its standard input does.
type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// help starts one, in a network namespace where one is given.
func (b *bench) help(from *namespace, args ...string) (*helper, error) {
	cmd := exec.Command(filepath.Join(b.config.BinDir, "pvc"), append([]string{"sandbox-bench"}, args...)...) //nolint:noctx // end ends it
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	start := cmd.Start
	if from != nil {
		start = func() error { return from.do(cmd.Start) }
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("start a helper: %w", err)
	}
	return &helper{cmd, in, bufio.NewReader(out)}, nil
}

// hear reads one line of JSON.
func (h *helper) hear(v any) error {
	line, err := h.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("hear a helper: %w", err)
	}
	return json.Unmarshal(line, v)
}

// kill ends it at once.
func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	_ = h.in.Close()
	_ = h.cmd.Wait()
}

// brutality is what became of an activity whose process was killed.
type brutality struct {
	bound time.Duration // from the kill to the death of its registered children
	alive int           // processes of it when the next one had the domain
}

// brutallyKilled runs an activity in a process of its own, kills that, and has
// another take its place.
func (b *bench) brutallyKilled(ctx context.Context) (brutality, error) {
	var out brutality
	slice := "pvc-bench-" + rand.Text()[:8]
	defer dissolve(slice)
	var all [2]*kin
	for i := range all {
		var err error
		if all[i], err = newKin(slice); err != nil {
			return out, err
		}
		defer all[i].end()
	}
	orchestrate := func(k *kin) (*helper, int, error) {
		h, err := b.help(nil, "orchestrator", k.dir, k.mark, slice)
		if err != nil {
			return nil, 0, err
		}
		var pid int
		if err := h.hear(&pid); err != nil {
			h.kill()
			return nil, 0, err
		}
		return h, pid, nil
	}
	first, pid, err := orchestrate(all[0])
	if err != nil {
		return out, err
	}
	from := now()
	first.kill()
	err = await(ctx, 10*time.Second, func() error {
		if slices.Contains(all[0].alive(), pid) {
			return fmt.Errorf("the registered child %d lives", pid)
		}
		return nil
	})
	if out.bound = now().Sub(from); err != nil {
		return out, err
	}
	second, _, err := orchestrate(all[1])
	if err != nil {
		return out, err
	}
	out.alive = len(all[0].alive())
	second.kill()
	return out, nil
}

// dissolve removes the control groups below a slice whose processes were killed.
func dissolve(slice string) {
	for range 100 {
		proc.SweepRuns(slice)
		left := false
		for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
			if err := os.Remove(filepath.Join(root, slice)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				left = true
			}
		}
		if !left {
			return
		}
		time.Sleep(10 * time.Millisecond) // until the dead have left
	}
}

// orchestratorMain runs an activity with a nested one that has a program, says
// which, and goes on until it is killed or its standard input ends.
func orchestratorMain(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("orchestrator %v: a folder, a mark and a slice", args)
	}
	k := &kin{args[0], args[1], args[2]}
	proc.SweepRuns(k.slice) // what a start that was killed has left
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	m := leading()
	err := m.Run(ctx, rebalance(), func(ctx context.Context, a *activity.Activity) error {
		return a.Run(ctx, activity.Spec{Name: "move", Quorum: cluster.All("a", "b")}, func(ctx context.Context, a *activity.Activity) error {
			var p *proc.Process
			if err := a.Start("resists", func() (subtask.Child, error) {
				var err error
				p, err = k.start()
				return p, err
			}); err != nil {
				return err
			}
			if err := k.whole(ctx); err != nil {
				return err
			}
			fmt.Println(p.Pid())
			<-ctx.Done()
			return nil
		})
	})
	return errors.Join(err, closeIn(m))
}
