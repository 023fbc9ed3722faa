package proc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// act runs a script that ends by itself and stops what it has left after the test.
func act(t *testing.T, c Command) (Result, *Process) {
	t.Helper()
	r, p, err := Act(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop(context.Background(), 0) })
	return r, p
}

// left is a script that leaves a daemon in a session of its own, which holds
// standard error open, and says its number in the file.
func left(file string) string {
	return `setsid sh -c 'echo $$ > ` + file + `.new; mv ` + file + `.new ` + file + `; exec sleep 1000' & echo out; echo reason >&2; while [ ! -e ` + file + ` ]; do sleep 0.01; done; exit 3`
}

func TestWhatAnActionLeavesIsEndedWithIt(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		file := filepath.Join(t.TempDir(), "pid")
		r, p := act(t, sh(c, left(file)))
		if r.ExitCode != 3 || string(r.Stdout) != "out\n" || string(r.Stderr) != "reason\n" {
			t.Errorf("exit %d, %q, %q", r.ExitCode, r.Stdout, r.Stderr)
		}
		daemon := pidIn(t, file)
		if p.Gone() || !running(daemon) {
			t.Fatal("what it has left is gone")
		}
		if err := p.Stop(t.Context(), 0); err != nil || survives(daemon) {
			t.Fatalf("Stop: %v, the daemon runs: %v", err, running(daemon))
		}
	})
}

func TestAnActionThatIsCutOffLeavesNothing(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		file := filepath.Join(t.TempDir(), "pid")
		c.Timeout = 300 * time.Millisecond
		r, p, err := Act(t.Context(), sh(c, left(file)+`& trap "" TERM; while :; do sleep 1; done`))
		if p != nil || !r.Killed || !errors.Is(err, cluster.ErrDeadline) {
			t.Errorf("process %v, killed %v, %v", p, r.Killed, err)
		}
		if raw, err := os.ReadFile(file); err == nil && len(raw) > 0 && survives(pidIn(t, file)) {
			t.Error("what it has started lives on")
		}
	})
}

// What an action starts within another's tree is ended with that, and what is
// cut off there takes nothing else with it.
func TestAnActionWithinAnother(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		dir := t.TempDir()
		_, copyOf := act(t, sh(c, left(dir+"/first")))
		first := pidIn(t, dir+"/first")
		c.Within = copyOf
		if _, p, err := Act(t.Context(), sh(c, left(dir+"/second"))); err != nil || p == nil {
			t.Fatal(err)
		}
		second := pidIn(t, dir+"/second")
		c.Timeout = 300 * time.Millisecond
		if _, p, err := Act(t.Context(), sh(c, `sh -c 'echo $$ > `+dir+`/third; exec sleep 1000' & wait`)); p != nil || !errors.Is(err, cluster.ErrDeadline) {
			t.Fatalf("process %v, %v", p, err)
		}
		if third := pidIn(t, dir+"/third"); survives(third) || !running(first) || !running(second) {
			t.Fatalf("running: what was cut off %v, what was there %v %v", running(third), running(first), running(second))
		}
		if err := copyOf.Stop(t.Context(), 0); err != nil || survives(first) || survives(second) {
			t.Fatalf("Stop: %v; running %v %v", err, running(first), running(second))
		}
		if path := copyOf.Group(); path != "" {
			if _, err := os.Stat(path); err == nil {
				t.Errorf("the control group %s stays", path)
			}
		}
	})
}

func TestWhatAnActionLeftIsFoundByItsGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	_, p := act(t, sh(Command{}, left(file)))
	if p.Group() == "" {
		t.Skip("no writable cgroup v2 here")
	}
	daemon := pidIn(t, file)
	again, err := AdoptGroup(p.Group())
	if err != nil || again.Gone() {
		t.Fatalf("%v", err)
	}
	if err := again.Stop(t.Context(), time.Second); err != nil || survives(daemon) {
		t.Fatalf("Stop: %v, runs %v", err, running(daemon))
	}
	if _, err := AdoptGroup(p.Group()); !errors.Is(err, ErrGone) {
		t.Errorf("an ended one: %v", err)
	}
	if _, err := AdoptGroup(mountPoint()); err == nil {
		t.Error("the root of the hierarchy was adopted")
	}
}

// What outlives its parent has not its parent's place before the scheduler and the
// OOM killer.
func TestWhatOutlivesItsParentIsOrdinary(t *testing.T) {
	if os.Getenv("ORDINARY_CHILD") == "" {
		r, err := Run(t.Context(), Command{Argv: []string{"/bin/sh", "-c", `echo -500 2>/dev/null >/proc/self/oom_score_adj; exec nice -n -$(($(nice) + 5)) ` + os.Args[0] + ` -test.run='^TestWhatOutlivesItsParentIsOrdinary$' -test.v`},
			Env: map[string]string{"ORDINARY_CHILD": "1"}})
		if err != nil || r.ExitCode != 0 {
			t.Fatalf("exit %d, %v: %s%s", r.ExitCode, err, r.Stdout, r.Stderr)
		}
		return
	}
	r, _ := act(t, sh(Command{}, `sleep 0.05; cat /proc/self/oom_score_adj; nice`))
	if string(r.Stdout) != "0\n0\n" {
		t.Errorf("its OOM score and niceness are %q", r.Stdout)
	}
}

// Nor its limits: neither the child, nor what that has started before they were taken.
func TestWhatOutlivesItsParentHasOrdinaryLimits(t *testing.T) {
	var has unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &has); err != nil || has.Max < 2<<20 {
		t.Skip("this process may lock next to no memory:", err)
	}
	ordinary := ordinaryLimits
	defer func() { ordinaryLimits = ordinary }()
	ordinaryLimits = slices.Clone(ordinary)
	for i := range ordinaryLimits { // as if this process had raised its own
		if ordinaryLimits[i].resource == unix.RLIMIT_MEMLOCK {
			ordinaryLimits[i].most = 1 << 20
		}
	}
	file := filepath.Join(t.TempDir(), "pid")
	p, err := Start(Command{Argv: []string{"/bin/sh", "-c", `sleep 1000 & echo $! >` + file + `.new; mv ` + file + `.new ` + file + `; wait`}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop(context.Background(), 0) })
	early := pidIn(t, file)
	looked := []int{p.Pid()}
	if p.group != nil { // else it is not told from others' children
		looked = append(looked, early)
	}
	for _, pid := range looked {
		if limits := limitsOf(t, pid); limits != (unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) {
			t.Errorf("process %d may lock %+v", pid, limits)
		}
	}
	if limits := limitsOf(t, os.Getpid()); limits != has {
		t.Errorf("this process itself may lock %+v, before %+v", limits, has)
	}
	// What a child has begun before it was made ordinary.
	ordinaryLimits = []ordinaryLimit{{unix.RLIMIT_MEMLOCK, 1 << 19}}
	makeOrdinary(p)
	for _, pid := range looked {
		if limits := limitsOf(t, pid); limits.Max != 1<<19 {
			t.Errorf("process %d, which was there before, may lock %+v", pid, limits)
		}
	}
}

func limitsOf(t *testing.T, pid int) (memlock unix.Rlimit) {
	t.Helper()
	if err := unix.Prlimit(pid, unix.RLIMIT_MEMLOCK, nil, &memlock); err != nil {
		t.Fatal(err)
	}
	return memlock
}
