package sandbox

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"testing"
)

// TestMain lets this test binary be the nodes' PID 1, responder and hook.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		entry := map[string]func([]string) error{
			"sandbox-init": InitMain, "sandbox-responder": ResponderMain, "sandbox-hook": HookMain,
			"hold": holdMain,
		}[os.Args[1]]
		if entry != nil {
			// Not on the main thread, as in a program that has done
			// something before.
			done := make(chan error)
			go func() { done <- entry(os.Args[2:]) }()
			if err := <-done; err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt)
}

func rootOnly(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network and PID namespaces")
	}
	if _, err := os.Stat("/usr/share/java/zookeeper.jar"); err != nil {
		t.Skip("needs Debian's zookeeper package")
	}
}
