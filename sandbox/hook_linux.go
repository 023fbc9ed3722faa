package sandbox

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"

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
	conns   map[int]Entry // touched on the event thread only

	mu      sync.Mutex
	running map[string]map[cluster.NodeID]int // processes of workloads' copies
}

func (s *Sandbox) hookSocket() string { return filepath.Join(s.options.Dir, "hooks.sock") }

func startHookWatch(path string, events *eventThread, h *History) (*hookWatch, error) {
	w := &hookWatch{events: events, history: h, conns: map[int]Entry{}, running: map[string]map[cluster.NodeID]int{}}
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

// read records one run of the service, or of a workload's copy: it begins with the
// line that names the node, and of a copy its workload, and the end of its
// connection is the end of its process, whatever ended it.
func (w *hookWatch) read(fd int) {
	var b [128]byte
	n, err := unix.Read(fd, b[:])
	if err == unix.EINTR || err == unix.EAGAIN {
		return
	}
	ran, known := w.conns[fd]
	if n > 0 {
		if !known {
			ran = Entry{Kind: KindHook, Name: hookService, On: true}
			node, workload, copied := strings.Cut(strings.TrimSpace(string(b[:n])), " ")
			if ran.Node = cluster.NodeID(node); copied {
				ran.Kind, ran.Name = KindCopy, workload
			}
			w.conns[fd] = ran
			w.count(ran, 1)
			w.history.Add(ran)
		}
		return
	}
	w.events.removeLocked(fd)
	if known {
		delete(w.conns, fd)
		ran.On = false
		w.count(ran, -1)
		w.history.Add(ran)
	}
}

func (w *hookWatch) count(ran Entry, by int) {
	if ran.Kind != KindCopy {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	nodes := w.running[ran.Name]
	if nodes == nil {
		nodes = map[cluster.NodeID]int{}
		w.running[ran.Name] = nodes
	}
	if nodes[ran.Node] += by; nodes[ran.Node] == 0 {
		delete(nodes, ran.Node)
	}
}

// copies are the nodes on which processes of the workload run now; a node with two
// of them stands in it twice.
func (w *hookWatch) copies(name string) []cluster.NodeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []cluster.NodeID
	for node, count := range w.running[name] {
		out = append(out, slices.Repeat([]cluster.NodeID{node}, count)...)
	}
	slices.Sort(out)
	return out
}

// close ends the watch; the event thread closes what is still connected.
func (w *hookWatch) close() { w.events.remove(w.listen) }
