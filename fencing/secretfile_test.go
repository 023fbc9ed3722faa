package fencing

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// TestAFileThatDoesNotAnswerHoldsNobody: its readers go their way at their own
// deadline, and however many ask, one read of it is left behind.
func TestAFileThatDoesNotAnswerHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var begun atomic.Int32
		answer := make(chan struct{})
		files := smallFiles{fetch: func(path string, _ int64) (smallFile, error) {
			if path != "/nfs/password" {
				return smallFile{data: []byte(path)}, nil
			}
			begun.Add(1)
			<-answer
			return smallFile{data: []byte("word"), mode: 0o600}, nil
		}}
		for want, limit := range map[time.Duration]time.Duration{2 * time.Second: 2 * time.Second, secretWait: time.Hour} {
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				began := time.Now()
				_, err := files.read(ctx, "/nfs/password", 10)
				cancel()
				if took := time.Since(began); !errors.Is(err, cluster.ErrDeadline) || took != want {
					t.Errorf("after %v of %v: %v", took, limit, err)
				}
			}
		}
		ended, end := context.WithCancel(t.Context())
		end()
		if _, err := files.read(ended, "/nfs/password", 10); !errors.Is(err, context.Canceled) {
			t.Errorf("for a daemon that ends: %v", err)
		}
		if n := begun.Load(); n != 1 {
			t.Errorf("%d reads of one file are left behind", n)
		}
		if file, err := files.read(t.Context(), "/etc/other", 10); err != nil || string(file.data) != "/etc/other" {
			t.Errorf("another file: %q, %v", file.data, err)
		}
		time.AfterFunc(time.Second, func() { close(answer) }) // the server is back
		if file, err := files.read(t.Context(), "/nfs/password", 10); err != nil || string(file.data) != "word" {
			t.Errorf("once it answers: %q, %v", file.data, err)
		}
		if file, err := files.read(t.Context(), "/nfs/password", 10); err != nil || string(file.data) != "word" || begun.Load() != 2 {
			t.Errorf("read anew: %q, %v, read %d times", file.data, err, begun.Load())
		}
	})
}

// TestAPasswordThatIsNoFileIsRefusedAtOnce: a pipe nobody writes to would hang,
// a device would never end.
func TestAPasswordThatIsNoFileIsRefusedAtOnce(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "password")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // whoever hangs there goes on
		if f, err := os.OpenFile(pipe, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
			_ = f.Close()
		}
	})
	for _, path := range []string{pipe, "/dev/zero"} {
		d := testDevice(t, "bmc", "127.0.0.1:1")
		d.PasswordFile, d.Timeout = path, 4*time.Second
		told := make(chan AttemptResult, 1)
		go func() {
			runner := childRunner(t)
			runner.token = live(1)
			result, err := runner.child(t.Context(), d, ActionOff)
			if err != nil {
				result.Error = err.Error()
			}
			told <- result
		}()
		select {
		case r := <-told:
			if !strings.Contains(r.Error, "no regular file") {
				t.Errorf("%s: %+v", path, r)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: still being read", path)
		}
	}
}
