package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace held by a descriptor only: no name is left
// anywhere, and it ends when the last descriptor and process are gone.
type namespace struct{ file *os.File }

// newNamespace makes an empty network namespace.
func newNamespace() (*namespace, error) {
	var made *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		made, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	return &namespace{file: made}, nil
}

// namespaceOf opens the network namespace of a process.
func namespaceOf(pid int) (*namespace, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	return &namespace{file: f}, nil
}

func (n *namespace) fd() int { return int(n.file.Fd()) }

func (n *namespace) close() {
	if n != nil && n.file != nil {
		_ = n.file.Close()
	}
}

// do runs f on a thread that stands in the namespace. Sockets that f opens
// stay in it; goroutines that f starts do not.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// dial connects from inside the namespace.
func (n *namespace) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := n.do(func() error {
		var d net.Dialer
		// A literal address: no resolver, no racing goroutines in the
		// wrong namespace.
		d.FallbackDelay = -1
		var err error
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// onThread runs f on a thread of its own and puts the thread back into the
// process's network namespace afterwards. The thread is not given back when
// that fails: it ends with its goroutine.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
