package guard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/proc"
	"pvc.internal/router"
)

// askerEnv makes the test binary an agent that asks the guard at this socket to
// end it, and then behaves as the word behind it says.
const askerEnv = "PVC_GUARD_ASKER"

// askedWithin is what an asker asks for.
const askedWithin = time.Second

func init() {
	if socket, manner, ok := strings.Cut(os.Getenv(askerEnv), " "); ok {
		os.Exit(asker(socket, manner))
	}
}

// asker prints "asked", or why it was refused, once the guard has answered.
func asker(socket, manner string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := router.NewClient(socket, zap.NewNop())
	switch manner {
	case "another":
		if err := askFor(socket, 1); err == nil {
			return 1
		}
		fmt.Println("refused")
	case "lives":
		if _, err := client.State(ctx); err != nil {
			return 1
		}
		fmt.Println("lives")
	default:
		if err := client.EndCaller(ctx, askedWithin); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("asked")
	}
	switch manner {
	case "hangs":
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
	case "hangs up":
		client.Close()
	case "ends":
		return 0
	}
	select {}
}

// askFor asks to be ended with another start time than the caller's.
func askFor(socket string, start uint64) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil //nolint:nilerr // the guard was not asked
	}
	defer conn.Close()
	line, _ := router.EncodeMessage(router.Message{ID: 1, Method: router.MethodEndCaller, Params: fmt.Appendf(nil, `{"start":%d,"at":1}`, start)})
	if _, err := conn.Write(line); err != nil {
		return nil //nolint:nilerr // likewise
	}
	r := router.NewReader(conn)
	for {
		m, err := router.ReadMessage(r)
		if err != nil {
			return nil //nolint:nilerr // likewise
		}
		if m.ID == 1 {
			return router.FromWire(m.Error)
		}
	}
}

// ask starts an asker and returns once it has printed its word.
func (b *bed) ask(manner, word string) *exec.Cmd {
	b.t.Helper()
	cmd := exec.Command(selfExe())
	cmd.Env = append(os.Environ(), askerEnv+"="+b.cfg.Socket+" "+manner)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	if lines.Scan(); lines.Text() != word {
		b.t.Fatalf("an asker that %s said %q, not %q", manner, lines.Text(), word)
	}
	return cmd
}

// killed waits until the asker has ended, and fails unless by SIGKILL.
func (b *bed) killed(cmd *exec.Cmd) {
	b.t.Helper()
	watch := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Signal(unix.SIGQUIT); _ = cmd.Process.Signal(unix.SIGCONT) })
	defer watch.Stop()
	_ = cmd.Wait()
	if s, ok := cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }); !ok || s.Signal() != unix.SIGKILL {
		b.t.Fatalf("it ended with %v, not by the guard's SIGKILL", cmd.ProcessState)
	}
}

// TestWhoAsksToBeEndedIsKilledWhereverItHangs, and nothing else with it: neither
// what the guard holds nor who runs beside it.
func TestWhoAsksToBeEndedIsKilledWhereverItHangs(t *testing.T) {
	for _, manner := range []string{"hangs", "hangs up", "spins"} {
		t.Run(manner, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, false)
			b.begin(1, time.Minute, v4a)
			beside := b.ask("lives", "lives")
			before := clock.Now()
			cmd := b.ask(manner, "asked")
			asked := clock.Now()
			b.killed(cmd)
			gone := clock.Now()
			if gone.Sub(before) < askedWithin {
				t.Errorf("killed %v after it asked, it had %v", gone.Sub(before), askedWithin)
			}
			t.Logf("gone at most %v after its time", gone.Sub(asked)-askedWithin)
			if err := beside.Process.Signal(unix.Signal(0)); err != nil {
				t.Errorf("who runs beside it: %v", err)
			}
			if b.kernelHas(v4a) != 1 || len(b.state().Deadlines) != 1 {
				t.Error("the role ended with it; only its owner ends that")
			}
		})
	}
}

// TestWhoEndsByItselfIsForgotten: no timer of its own hits who comes after it, and
// nobody can have another process killed.
func TestWhoEndsByItselfIsForgotten(t *testing.T) {
	t.Parallel()
	b := newBed(t, false)
	if err := b.ask("ends", "asked").Wait(); err != nil {
		t.Fatal(err)
	}
	successor, other := b.ask("lives", "lives"), b.ask("another", "refused")
	b.eventually(30*time.Second, "the guard has let go of who ended", func() bool {
		raw, _ := os.ReadFile(b.log)
		return strings.Contains(string(raw), "has ended")
	})
	pause(askedWithin)
	for _, cmd := range []*exec.Cmd{successor, other} {
		if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
			t.Errorf("a process that never asked was hit: %v", err)
		}
	}
	if raw, _ := os.ReadFile(b.log); strings.Contains(string(raw), "was killed") {
		t.Errorf("somebody was killed:\n%s", raw)
	}
}

// TestAGuardThatEndsKillsWhoHasAsked: no later guard knows of it.
func TestAGuardThatEndsKillsWhoHasAsked(t *testing.T) {
	t.Parallel()
	b := newBed(t, false)
	cmd := b.ask("hangs", "asked")
	b.signal(unix.SIGTERM)
	b.killed(cmd)
}

// TestAQuestionThatIsReadLateKillsAllTheSame: no deadline travels with it, and
// whom it means is no matter of time.
func TestAQuestionThatIsReadLateKillsAllTheSame(t *testing.T) {
	t.Parallel()
	b := newBed(t, false)
	g := &Guard{cfg: b.cfg, clock: lateClock{}, log: zap.NewNop()}
	cmd := b.ask("lives", "lives")
	start, err := proc.StartTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{pid: cmd.Process.Pid, out: make(chan []byte, 1)}
	g.endCaller(t.Context(), p, router.Message{ID: 1, Expires: 1, Params: fmt.Appendf(nil, `{"start":%d,"at":1}`, start)})
	b.killed(cmd)
	if err := g.tooLate(router.Message{Expires: 1}); !errors.Is(err, cluster.ErrDeadline) {
		t.Errorf("any other question: %v", err)
	}
}

// lateClock is long after everything.
type lateClock struct{}

func (lateClock) Now() cluster.Instant { return cluster.Instant(time.Hour) }
