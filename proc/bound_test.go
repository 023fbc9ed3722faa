package proc

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestABoundChildDiesWithItsParent has this binary, run anew, start a child, and
// kills it.
func TestABoundChildDiesWithItsParent(t *testing.T) {
	if file := os.Getenv("BOUND_CHILD_OF"); file != "" {
		p, err := StartBound(sh(Command{}, `echo $$ > `+file+`; exec sleep 1000`))
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		return
	}
	file := filepath.Join(t.TempDir(), "pid")
	parent := start(t, Command{Argv: []string{os.Args[0], "-test.run=^TestABoundChildDiesWithItsParent$"}, Env: map[string]string{"BOUND_CHILD_OF": file}})
	child := pidIn(t, file)
	if group := groupOf(child); group != "" && isOurs(group) && !strings.HasPrefix(filepath.Base(group), runPrefix) {
		t.Errorf("its group %s is not one that a later start sweeps", group)
	}
	if err := unix.Kill(parent.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child is gone", func() bool { return !running(child) })
}

// TestADaemonsStartEndsWhatItsKilledPredecessorHasForked: the child dies with its
// parent, what it has forked does not, in a session of its own, its signals
// trapped, its own parent gone.
func TestADaemonsStartEndsWhatItsKilledPredecessorHasForked(t *testing.T) {
	const script = `trap "" TERM HUP INT; setsid sh -c '(trap "" TERM HUP INT; sh -c "echo \$PPID" > FILE; while :; do sleep 1; done) & exit 0' & while :; do sleep 1; done`
	if file := os.Getenv("FORKING_CHILD_OF"); file != "" {
		p, err := StartBound(sh(Command{}, strings.ReplaceAll(script, "FILE", file)))
		if err != nil {
			t.Fatal(err)
		}
		<-p.Done()
		return
	}
	g, err := newGroup("", runPrefix, "probe")
	if err != nil {
		t.Skipf("no writable cgroup v2 here, by which alone a later process finds it: %v", err)
	}
	g.remove()
	file := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$") // in this process's group, as a unit's next start is
	cmd.Env = append(os.Environ(), "FORKING_CHILD_OF="+file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	forked := pidIn(t, file)
	t.Cleanup(func() { _ = unix.Kill(forked, unix.SIGKILL) })
	SweepRuns("")
	if !running(forked) {
		t.Fatal("ended although its parent lives")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if !running(forked) {
		t.Fatal("nothing is left to sweep")
	}
	SweepRuns("")
	eventually(t, "what was forked is gone", func() bool { return !running(forked) })
}
