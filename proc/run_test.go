package proc

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// both runs a test with control groups and with the walk of descendants.
func both(t *testing.T, test func(t *testing.T, c Command)) {
	t.Run("walk", func(t *testing.T) { test(t, Command{noGroup: true}) })
	t.Run("group", func(t *testing.T) {
		g, err := newGroup("", runPrefix, "probe")
		if err != nil {
			t.Skipf("no writable cgroup v2 here: %v", err)
		}
		g.remove()
		test(t, Command{})
	})
}

func sh(c Command, script string) Command {
	c.Argv = []string{"/bin/sh", "-c", script}
	return c
}

// eventually polls for something a real process does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func pidIn(t *testing.T, file string) int {
	t.Helper()
	pid := 0
	eventually(t, "a pid in "+file, func() bool {
		raw, _ := os.ReadFile(file)
		if !bytes.HasSuffix(raw, []byte("\n")) {
			return false
		}
		pid, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		return pid > 0
	})
	return pid
}

func running(pid int) bool {
	s, err := readStat(pid)
	return err == nil && !s.ended()
}

// survives reports whether a process lives on that is said to be gone. One that has
// left its control group for good has let go of its memory and files before it is shown
// as dead, and a busy machine may take its time over that.
func survives(pid int) bool {
	for deadline := time.Now().Add(30 * time.Second); running(pid); <-time.After(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			return true
		}
	}
	return false
}

func TestRunReportsHowAProgramEnded(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		c = sh(c, `cat; echo problem >&2; exit 3`)
		c.Stdin = []byte("secret on stdin")
		r, err := Run(t.Context(), c)
		if err != nil || r.ExitCode != 3 || r.Killed || r.Truncated || r.Duration <= 0 {
			t.Fatalf("got %+v, %v", r, err)
		}
		if string(r.Stdout) != "secret on stdin" || string(r.Stderr) != "problem\n" {
			t.Fatalf("stdout %q stderr %q", r.Stdout, r.Stderr)
		}
		r, err = Run(t.Context(), sh(c, `kill -9 $$`))
		if err != nil || r.ExitCode != -1 || r.Signal != "SIGKILL" || r.Killed {
			t.Fatalf("a program ended by a signal: %+v, %v", r, err)
		}
	})
}

func TestRunOfAMissingProgramSaysSo(t *testing.T) {
	for _, argv := range [][]string{nil, {""}, {"/no/such/program"}, {"no-such-program-anywhere"}, {"/etc/passwd"}} {
		r, err := Run(t.Context(), Command{Argv: argv})
		if !errors.Is(err, ErrNotStarted) || r.ExitCode != -1 {
			t.Errorf("%q: %+v, %v", argv, r, err)
		}
	}
}

func TestRunKillsAtTheDeadline(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		c = sh(c, `trap "" TERM INT HUP; echo begun; sleep 1000`)
		c.Timeout = 150 * time.Millisecond
		r, err := Run(t.Context(), c)
		if !errors.Is(err, cluster.ErrDeadline) || !r.Killed || string(r.Stdout) != "begun\n" {
			t.Fatalf("got %+v, %v", r, err)
		}
		if r.Duration < c.Timeout || r.Duration > c.Timeout+2*waitDelay {
			t.Fatalf("killed after %v", r.Duration)
		}
	})
}

func TestRunKillsWhenItsContextEnds(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		lost := errors.New("role lost")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(100*time.Millisecond, func() { cancel(lost) })
		r, err := Run(ctx, sh(c, `sleep 1000`))
		if !errors.Is(err, lost) || !r.Killed {
			t.Fatalf("got %+v, %v", r, err)
		}
	})
}

func TestAGrandchildInItsOwnSessionDiesToo(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		for name, script := range map[string]string{
			"deadline":      `setsid sh -c 'echo $$ > FILE; exec sleep 1000' & sleep 1000`,
			"left behind":   `setsid sh -c 'echo $$ > FILE; exec sleep 1000' >/dev/null 2>&1 & while ! test -s FILE; do :; done`,
			"holds stdout":  `setsid sh -c 'echo $$ > FILE; exec sleep 1000' & while ! test -s FILE; do :; done`,
			"without marks": `env -i /usr/bin/setsid /bin/sh -c 'echo $$ > FILE; exec sleep 1000' & while ! test -s FILE; do :; done`,
		} {
			t.Run(name, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "pid")
				c := sh(c, strings.ReplaceAll(script, "FILE", file))
				c.Timeout = time.Second
				r, _ := Run(t.Context(), c)
				if pid := pidIn(t, file); survives(pid) {
					unix.Kill(pid, unix.SIGKILL)
					t.Fatalf("the grandchild lives on after %+v", r)
				}
				if name != "deadline" && (r.Killed || r.Duration > 900*time.Millisecond) {
					t.Fatalf("waited for what was left behind: %+v", r)
				}
			})
		}
	})
}

func TestTenMegabytesOfOutputDoNoHarm(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		c = sh(c, `head -c 10485760 /dev/zero; echo end >&2`)
		c.OutputLimit = 1000
		r, err := Run(t.Context(), c)
		if err != nil || r.ExitCode != 0 || !r.Truncated || len(r.Stdout) != 1000 || string(r.Stderr) != "end\n" {
			t.Fatalf("kept %d, %+v, %v", len(r.Stdout), r.Truncated, err)
		}
	})
}

func TestAProgramNeedNotReadItsInput(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		c = sh(c, `exit 0`)
		c.Stdin = bytes.Repeat([]byte("x"), 10<<20)
		if r, err := Run(t.Context(), c); err != nil || r.ExitCode != 0 {
			t.Fatalf("got %+v, %v", r, err)
		}
	})
}

func TestAChildGetsNothingOfOurEnvironment(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/secret")
	t.Setenv("PVC_TOKEN", "secret")
	both(t, func(t *testing.T, c Command) {
		c = sh(c, `env; pwd`)
		c.Env = map[string]string{"OCF_ROOT": "/usr/lib/ocf"}
		r, err := Run(t.Context(), c)
		if err != nil || strings.Contains(string(r.Stdout), "secret") {
			t.Fatalf("%s, %v", r.Stdout, err)
		}
		if !strings.Contains(string(r.Stdout), "OCF_ROOT=/usr/lib/ocf\n") || !strings.HasSuffix(string(r.Stdout), "\n/\n") {
			t.Fatalf("own variable or folder is missing: %s", r.Stdout)
		}
	})
}

func TestRunsLeaveNothing(t *testing.T) {
	groups := func() int {
		found, _ := filepath.Glob(filepath.Join(groupOf(os.Getpid()), runPrefix+ownerTag()+".*"))
		return len(found)
	}
	descriptors := func() int {
		found, _ := os.ReadDir("/proc/self/fd")
		return len(found)
	}
	both(t, func(t *testing.T, c Command) {
		if _, err := Run(t.Context(), sh(c, "exit 0")); err != nil {
			t.Fatal(err)
		}
		fds, before := descriptors(), groups()
		for range 5 {
			_, _ = Run(t.Context(), sh(c, `setsid sleep 1000 & exit 0`))
			_, _ = Run(t.Context(), Command{Argv: []string{"/no/such"}, noGroup: c.noGroup})
		}
		if descriptors() > fds || groups() != before {
			t.Fatalf("descriptors %d → %d, groups %d → %d", fds, descriptors(), before, groups())
		}
		for _, s := range allStats() {
			if s.ppid == os.Getpid() {
				t.Errorf("left process %+v", s)
			}
		}
	})
}

func TestALaterOwnersFirstRunEndsWhatADeadOneLeft(t *testing.T) {
	g, err := newGroup("", runPrefix, "probe")
	if err != nil {
		t.Skipf("no writable cgroup v2 here: %v", err)
	}
	defer g.remove()
	// A group whose owner, pid 1 at another start time, is gone.
	dead := filepath.Join(filepath.Dir(g.path), runPrefix+pidNamespace()+".1.1.1.sleep")
	if err := os.Mkdir(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := Start(Command{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(t.Context(), 0)
	if err := os.WriteFile(filepath.Join(dead, "cgroup.procs"), []byte(strconv.Itoa(p.Pid())), 0); err != nil {
		t.Fatal(err)
	}
	sweepRuns(filepath.Dir(g.path))
	eventually(t, "the leftover ends", func() bool { return !running(p.Pid()) })
	sweepRuns(filepath.Dir(g.path))
	if _, err := os.Stat(dead); err == nil {
		t.Fatal("the dead owner's group is still there")
	}
	if _, err := os.Stat(g.path); err != nil {
		t.Fatal("a living owner's group was removed")
	}
}

func TestBootClockGoesOn(t *testing.T) {
	a := BootClock{}.Now()
	<-time.After(time.Millisecond)
	b := BootClock{}.Now()
	if !b.After(a) || a.IsZero() {
		t.Fatalf("%d then %d", a, b)
	}
}

// Many at a time: nobody's orphan is taken for another's, and all die.
// callerFile names, in the process that is to be killed, where its run tells its number.
const callerFile = "PVC_TEST_CALLER_FILE"

// A run does not outlive whoever waits for it: an order that is still out would
// reach a machine that has come back (I5).
func TestARunDiesWithItsCaller(t *testing.T) {
	if file := os.Getenv(callerFile); file != "" { // the caller
		_, _ = Run(t.Context(), sh(Command{Timeout: time.Minute, noGroup: true}, "echo $$ > "+file+".new; mv "+file+".new "+file+"; exec sleep 1000"))
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pid")
	caller := exec.CommandContext(t.Context(), self, "-test.run=^TestARunDiesWithItsCaller$")
	caller.Env = append(os.Environ(), callerFile+"="+file)
	if err := caller.Start(); err != nil {
		t.Fatal(err)
	}
	var text []byte
	eventually(t, "the run begins", func() bool {
		text, err = os.ReadFile(file)
		return err == nil
	})
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
	if err := caller.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = caller.Wait()
	eventually(t, "the run is gone", func() bool {
		state, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

func TestConcurrentRunsEndTheirOwnOnly(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		dir := t.TempDir()
		var wait sync.WaitGroup
		for i := range 24 {
			wait.Go(func() {
				file := filepath.Join(dir, strconv.Itoa(i))
				r, err := Run(t.Context(), sh(c, strings.ReplaceAll(
					`env -i /usr/bin/setsid /bin/sh -c 'echo $$ > FILE; exec sleep 1000' & setsid sleep 1000 & while ! test -s FILE; do :; done; echo fine; exit 5`, "FILE", file)))
				if err != nil || r.ExitCode != 5 || string(r.Stdout) != "fine\n" {
					t.Errorf("run %d: %+v, %v", i, r, err)
				}
			})
		}
		wait.Wait()
		// One more, alone: it ends what could be anybody's while there were many.
		if _, err := Run(t.Context(), sh(c, "exit 0")); err != nil {
			t.Fatal(err)
		}
		for i := range 24 {
			if pid := pidIn(t, filepath.Join(dir, strconv.Itoa(i))); survives(pid) {
				unix.Kill(pid, unix.SIGKILL)
				t.Errorf("run %d left process %d", i, pid)
			}
		}
	})
}

// An orphan that could have been anybody's while several lived falls to the
// next that is alone, though it is older than that one.
func TestAnOrphanOfEarlierRunsIsEndedByALaterOne(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	older, err := Start(Command{Argv: []string{"sleep", "1000"}, noGroup: true})
	if err != nil {
		t.Fatal(err)
	}
	defer older.Stop(t.Context(), 0)
	script := strings.ReplaceAll(`env -i /usr/bin/setsid /bin/sh -c 'echo $$ > FILE; exec sleep 1000' & while ! test -s FILE; do :; done`, "FILE", file)
	if _, err := Run(t.Context(), sh(Command{noGroup: true}, script)); err != nil {
		t.Fatal(err)
	}
	orphan := pidIn(t, file)
	defer unix.Kill(orphan, unix.SIGKILL)
	if !running(orphan) {
		t.Fatal("it was taken for the run's, though an older child lives")
	}
	_ = unix.Kill(older.Pid(), unix.SIGKILL)
	<-older.Done()
	<-time.After(50 * time.Millisecond) // start times are in ticks of 10 ms
	if _, err := Run(t.Context(), sh(Command{noGroup: true}, "exit 0")); err != nil {
		t.Fatal(err)
	}
	if running(orphan) {
		t.Error("it lives on")
	}
}

func BenchmarkRun(b *testing.B) {
	for name, c := range map[string]Command{"group": {}, "walk": {noGroup: true}} {
		c.Argv = []string{"/bin/true"}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Run(b.Context(), c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
