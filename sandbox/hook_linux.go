package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// HookMain is the primary-only service of a sandbox's primary:
// `sandbox-hook NAME SOCKET`. It writes its pid file beside the socket, tells
// the sandbox that it runs, and runs until it is ended. How it ends makes no
// difference: its connection closes with it, and that is what is recorded.
func HookMain(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("sandbox-hook needs a name and a socket, got %d arguments", len(args))
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	pidFile := filepath.Join(filepath.Dir(args[1]), args[0], "hook.pid")
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o640); err != nil {
		return fmt.Errorf("write the pid file: %w", err)
	}
	// Without a sandbox to tell, the service still runs.
	if conn, err := new(net.Dialer).DialContext(context.Background(), "unix", args[1]); err == nil {
		defer conn.Close()
		_, _ = fmt.Fprintln(conn, args[0])
	}
	<-end
	_ = os.Remove(pidFile)
	return nil
}

// hookWatch records when each node's primary-only service runs.
type hookWatch struct {
	events  *eventThread
	history *History
	listen  int
	conns   map[int]cluster.NodeID // touched on the event thread only
}

func (s *Sandbox) hookSocket() string { return filepath.Join(s.options.Dir, "hooks.sock") }

func startHookWatch(path string, events *eventThread, h *History) (*hookWatch, error) {
	w := &hookWatch{events: events, history: h, conns: map[int]cluster.NodeID{}}
	var err error
	if w.listen, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("listen for hooks: %w", err)
	}
	if err = unix.Bind(w.listen, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.Listen(w.listen, 16)
	}
	if err == nil {
		err = events.add(w.listen, w.accept)
	}
	if err != nil {
		_ = unix.Close(w.listen)
		return nil, fmt.Errorf("listen for hooks: %w", err)
	}
	return w, nil
}

func (w *hookWatch) accept() {
	for {
		fd, _, err := unix.Accept4(w.listen, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return
		}
		if w.events.addLocked(fd, func() { w.read(fd) }) != nil {
			_ = unix.Close(fd)
		}
	}
}

// read records one run of the service: it begins with the line that names the
// node, and the end of its connection is the end of its process, whatever
// ended it.
func (w *hookWatch) read(fd int) {
	var b [128]byte
	n, err := unix.Read(fd, b[:])
	if err == unix.EINTR || err == unix.EAGAIN {
		return
	}
	node, known := w.conns[fd]
	if n > 0 {
		if !known {
			w.conns[fd] = cluster.NodeID(strings.TrimSpace(string(b[:n])))
			w.history.Add(Entry{Kind: KindHook, Node: w.conns[fd], Name: hookService, On: true})
		}
		return
	}
	w.events.removeLocked(fd)
	if known {
		delete(w.conns, fd)
		w.history.Add(Entry{Kind: KindHook, Node: node, Name: hookService, On: false})
	}
}

// close ends the watch; the event thread closes what is still connected.
func (w *hookWatch) close() { w.events.remove(w.listen) }
