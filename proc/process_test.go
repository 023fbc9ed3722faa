package proc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func start(t *testing.T, c Command) *Process {
	t.Helper()
	p, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop(context.Background(), 0) })
	return p
}

func TestStopAsksFirst(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		file := filepath.Join(t.TempDir(), "said")
		p := start(t, sh(c, `trap 'echo goodbye > `+file+`; exit 7' TERM; echo > `+file+`.up; while :; do sleep 0.01; done`))
		eventually(t, "it is up", func() bool { _, err := os.Stat(file + ".up"); return err == nil })
		if err := p.Stop(t.Context(), 5*time.Second); err != nil {
			t.Fatal(err)
		}
		exit, err := p.Wait(t.Context())
		if err != nil || exit.Code != 7 || !exit.Known {
			t.Fatalf("exit %+v, %v", exit, err)
		}
		if raw, _ := os.ReadFile(file); string(raw) != "goodbye\n" {
			t.Fatalf("it was not asked: %q", raw)
		}
		if err := p.Stop(t.Context(), time.Second); err != nil {
			t.Fatalf("second stop: %v", err)
		}
	})
}

func TestStopKillsWhatDoesNotGo(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		file := filepath.Join(t.TempDir(), "pid")
		p := start(t, sh(c, `trap "" TERM; setsid sh -c 'trap "" TERM; echo $$ > `+file+`; while :; do sleep 1; done' & while :; do sleep 1; done`))
		grandchild := pidIn(t, file)
		began := time.Now()
		if err := p.Stop(t.Context(), 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 100*time.Millisecond || took > 20*time.Second {
			t.Errorf("took %v with a grace of 100 ms", took)
		}
		if survives(p.Pid()) || survives(grandchild) {
			t.Fatal("something of it lives on")
		}
	})
}

func TestAStoppedProcessIsEndedToo(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		p := start(t, sh(c, `sleep 1000`))
		unix.Kill(p.Pid(), unix.SIGSTOP)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // no time to ask: everything is killed at once
		if err := p.Stop(ctx, time.Minute); err != nil {
			t.Fatal(err)
		}
		if running(p.Pid()) {
			t.Fatal("a stopped process survived")
		}
	})
}

func TestWaitIsBounded(t *testing.T) {
	p := start(t, sh(Command{}, `sleep 1000`))
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := p.Wait(ctx); !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
}

func TestAdoptFindsTheSameProcessOnly(t *testing.T) {
	both(t, func(t *testing.T, c Command) {
		file := filepath.Join(t.TempDir(), "pid")
		p := start(t, sh(c, `setsid sh -c 'echo $$ > `+file+`; exec sleep 1000' & sleep 1000`))
		grandchild := pidIn(t, file)
		if _, err := Adopt(p.Pid(), p.StartTime()+1); !errors.Is(err, ErrGone) {
			t.Fatalf("adopted a process of another start time: %v", err)
		}
		a, err := Adopt(p.Pid(), p.StartTime())
		if err != nil {
			t.Fatal(err)
		}
		if a.Group() != p.Group() {
			t.Fatalf("group %q instead of %q", a.Group(), p.Group())
		}
		select {
		case <-a.Done():
			t.Fatal("done while it runs")
		case <-time.After(20 * time.Millisecond):
		}
		if err := a.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if survives(p.Pid()) || survives(grandchild) {
			t.Fatal("something of it lives on")
		}
		if exit, err := a.Wait(t.Context()); err != nil || exit.Known {
			t.Fatalf("exit %+v, %v: an adopter cannot know the status", exit, err)
		}
		if _, err := Adopt(p.Pid(), p.StartTime()); !errors.Is(err, ErrGone) {
			t.Fatalf("adopted the dead: %v", err)
		}
	})
}

func TestEndGroupEndsWhatADeadMainProcessLeft(t *testing.T) {
	c := Command{Slice: "pvc-proc-test.slice"}
	file := filepath.Join(t.TempDir(), "pid")
	p := start(t, sh(c, `setsid sh -c 'echo $$ > `+file+`; exec sleep 1000' & while ! test -s `+file+`; do :; done`))
	if p.Group() == "" {
		t.Skip("no writable cgroup v2 here")
	}
	t.Cleanup(func() { os.Remove(filepath.Dir(p.Group())) })
	grandchild := pidIn(t, file)
	<-p.Done()
	if got := Services(c.Slice); len(got) != 1 || got[0] != p.Group() {
		t.Fatalf("services %q, want %q", got, p.Group())
	}
	if err := EndGroup(t.Context(), p.Group()); err != nil {
		t.Fatal(err)
	}
	if survives(grandchild) || len(Services(c.Slice)) != 0 {
		t.Fatal("something is left")
	}
	if err := EndGroup(t.Context(), p.Group()); err != nil {
		t.Fatalf("ending a group that is gone: %v", err)
	}
	for _, foreign := range []string{"/", "/sys/fs/cgroup", mountPoint() + "/system.slice", mountPoint() + "/pvc-svc.x/../../..", "/tmp/pvc-svc.1"} {
		if err := EndGroup(t.Context(), foreign); err == nil || !strings.Contains(err.Error(), "not one of ours") {
			t.Errorf("%s: %v", foreign, err)
		}
	}
}
