package agent

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

func TestTheWatchdogIsFedOnlyWhileTheLoopTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewSystemdNotifier(bubbleClock{}, zap.NewNop(), 3*time.Second)
		n.interval = 10 * time.Second
		var fed []time.Time
		n.send = func(message string) error {
			if strings.Contains(message, "WATCHDOG=1") {
				fed = append(fed, time.Now())
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); n.Run(ctx) }()
		turn := func(seconds int) {
			for range seconds {
				n.Turned(bubbleClock{}.Now())
				pass(time.Second)
			}
		}
		turn(60)
		if len(fed) != 0 {
			t.Fatalf("fed %d times before it was ready", len(fed))
		}
		n.Ready()
		turn(60)
		for i := 1; i < len(fed); i++ {
			if gap := fed[i].Sub(fed[i-1]); gap > 5*time.Second {
				t.Fatalf("a gap of %v with a watchdog of 10 s", gap)
			}
		}
		if len(fed) < 12 {
			t.Fatalf("fed %d times in a minute", len(fed))
		}
		hung := time.Now()
		pass(time.Minute)
		if last := fed[len(fed)-1].Sub(hung); last > 3*time.Second {
			t.Fatalf("fed %v after the loop hung", last)
		}
		cancel()
		<-done
	})
}

func TestASystemdThatHangsBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewSystemdNotifier(bubbleClock{}, zap.NewNop(), time.Second)
		release := make(chan struct{})
		n.send = func(string) error { <-release; return nil }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); n.Run(ctx) }()
		began := time.Now()
		for range 1000 {
			n.Status("busy")
			n.Turned(bubbleClock{}.Now())
		}
		if time.Since(began) != 0 || len(n.pending) > 1 {
			t.Fatalf("took %v, %d lines pile up", time.Since(began), len(n.pending))
		}
		close(release)
		cancel()
		<-done
	})
}

func TestSystemdIsToldOverItsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	n := NewSystemdNotifier(bubbleClock{}, zap.NewNop(), time.Second)
	n.Status("waiting for ZooKeeper")
	n.Status("primary since\n12:00")
	n.Ready()
	n.Stopping()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.Run(ctx)
	_ = socket.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 4096)
	size, err := socket.Read(buf)
	if got, want := string(buf[:size]), "STATUS=primary since 12:00\nREADY=1\nSTOPPING=1"; err != nil || got != want {
		t.Fatalf("told %q, %v", got, err)
	}
}

// systemd hears of a reload's beginning and of its end, in this order and apart,
// but only of a daemon that has started and does not stop.
func TestSystemdHearsOfAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := NewSystemdNotifier(bubbleClock{}, zap.NewNop(), time.Second)
		var told []string
		var busy chan struct{} // nil: systemd takes what it is told at once
		n.send = func(message string) error {
			if busy != nil {
				<-busy
			}
			told = append(told, message)
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); n.Run(ctx) }()
		heard := func() string {
			synctest.Wait()
			all := strings.Join(told, " / ")
			told = nil
			return strings.ReplaceAll(all, "\n", " ")
		}
		n.Reloading()
		n.Reloaded("too early")
		if got := heard(); got != "STATUS=too early" {
			t.Errorf("before the start: %q", got)
		}
		n.Ready()
		heard()
		busy = make(chan struct{})
		n.Status("busy")
		synctest.Wait()
		for range 2 { // twice before systemd hears of one
			n.Reloading()
			n.Reloaded("restart needed: timing.profile")
		}
		close(busy)
		got := strings.TrimPrefix(heard(), "STATUS=busy / ")
		begin, rest, _ := strings.Cut(got, " / ")
		if !strings.HasPrefix(begin, "RELOADING=1 MONOTONIC_USEC=") || strings.Contains(begin, "READY") || !strings.HasSuffix(rest, "READY=1") || !strings.Contains(rest, "STATUS=restart needed: timing.profile") || strings.Contains(rest, "RELOADING") {
			t.Errorf("%q", got)
		}
		n.Stopping()
		n.Reloading()
		n.Reloaded("")
		if got := heard(); strings.Contains(got, "READY") || strings.Contains(got, "RELOADING") {
			t.Errorf("while it stops: %q", got)
		}
		cancel()
		<-done
	})
}
