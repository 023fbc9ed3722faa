package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// CopyMain is a copy of one of the sandbox's workloads: `sandbox-copy WORKLOAD
// SOCKET`. It tells the sandbox on which node it runs, and runs until it is ended;
// as with the primary-only service, the end of its connection is what is recorded.
// All nodes run the same command, so that the host's name tells which one this is.
func CopyMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("sandbox-copy needs a workload and a socket, got %d arguments", len(args))
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find out on which node this runs: %w", err)
	}
	// Without a sandbox to tell, the copy still runs.
	if conn, err := new(net.Dialer).DialContext(context.Background(), "unix", args[1]); err == nil {
		defer conn.Close()
		_, _ = fmt.Fprintln(conn, host, args[0])
	}
	<-end
	return nil
}
