package subtask

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pvc.internal/proc"
)

// start begins a shell script as a child of the registry and returns the pids
// that it wrote down, its own first; each line of the file is one.
func start(t *testing.T, r *Registry, script string, pids int) []int {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pids")
	err := r.Start("script", func() (Child, error) {
		p, err := proc.StartBound(proc.Command{Argv: []string{"/bin/sh", "-c", script}, Env: map[string]string{"F": file}, Output: null(t)})
		if err == nil {
			t.Cleanup(func() { _ = p.Stop(context.Background(), 0) })
		}
		return p, err
	})
	if err != nil {
		t.Fatal(err)
	}
	var list []int
	for end := time.Now().Add(time.Minute); len(list) < pids; <-time.After(2 * time.Millisecond) {
		raw, _ := os.ReadFile(file)
		list = nil
		for line := range strings.Lines(string(raw)) {
			if pid, err := strconv.Atoi(strings.TrimSuffix(line, "\n")); err == nil && strings.HasSuffix(line, "\n") {
				list = append(list, pid)
			}
		}
		if time.Now().After(end) {
			t.Fatalf("the script wrote %d of %d pids within 20 s", len(list), pids)
		}
	}
	return list
}

func null(t *testing.T) *os.File {
	f, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// lives reads in /proc whether a process runs; one that is not yet reaped does not.
func lives(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(raw), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

// resisting are programs that do what they can to outlive their stop, with how
// many pids they write down.
var resisting = map[string]struct {
	script string
	pids   int
}{
	"ignores SIGTERM": {`trap '' TERM; echo $$ >>$F; while :; do sleep 1; done`, 1},
	"double fork and setsid": {`trap '' TERM; echo $$ >>$F
		(setsid sh -c 'trap "" TERM; echo $$ >>$F; while :; do sleep 1; done' &)
		while :; do sleep 1; done`, 2},
	"main ends, the rest not": {`echo $$ >>$F; setsid sh -c 'trap "" TERM; echo $$ >>$F; while :; do sleep 1; done' &
		while test $(wc -l <$F) -lt 2; do :; done`, 2},
	"stops itself": {`echo $$ >>$F; kill -STOP $$; sleep 1000`, 1},
}

func TestNothingOfARealChildSurvivesAStop(t *testing.T) {
	for name, program := range resisting {
		t.Run(name, func(t *testing.T) {
			r := New(t.Context(), "fence", Options{})
			pids := start(t, r, program.script, program.pids)
			if err := r.Stop(t.Context(), errQuorum, Ladder{Grace: 50 * time.Millisecond, Kill: time.Minute}); err != nil {
				t.Fatal(err)
			}
			for _, pid := range pids {
				if lives(pid) {
					t.Errorf("process %d runs although the registry is empty", pid)
				}
			}
		})
	}
}

func TestARealChildIsAskedBeforeItIsKilled(t *testing.T) {
	r := New(t.Context(), "drain", Options{})
	said := filepath.Join(t.TempDir(), "said")
	start(t, r, `trap 'echo goodbye >`+said+`; exit 0' TERM; echo $$ >>$F; while :; do sleep 0.01; done`, 1)
	if err := r.Stop(t.Context(), errQuorum, Ladder{Grace: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if raw, _ := os.ReadFile(said); string(raw) != "goodbye\n" || len(r.Shot()) != 0 {
		t.Fatalf("it said %q, killed %q", raw, r.Shot())
	}
}

// S142: the job of one that ends by itself dies, too, with whatever it started.
func TestWhatAnEndedChildLeavesIsKilled(t *testing.T) {
	r := New(t.Context(), "probe", Options{})
	pids := start(t, r, resisting["main ends, the rest not"].script, 2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if lives(pids[0]) || lives(pids[1]) {
		t.Fatalf("of %v something runs although the registry is empty", pids)
	}
}

func TestARealChildWhoseAdoptionIsRefusedIsKilled(t *testing.T) {
	r := New(t.Context(), "fence", Options{})
	if err := r.Stop(t.Context(), errQuorum, Ladder{}); err != nil {
		t.Fatal(err)
	}
	p, err := proc.StartBound(proc.Command{Argv: []string{"/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"}, Output: null(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Adopt("late", p); !errors.Is(err, ErrStopped) {
		t.Fatalf("adopted: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := r.Wait(ctx); err != nil || !p.Gone() {
		t.Fatalf("%v, gone %v", err, p.Gone())
	}
}
