package sandbox

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// descriptorStore is what a node's PID 1 does of systemd's store of descriptors
// (FileDescriptorStoreMax=): it keeps what a program sends to its socket over
// that program's end, and passes it on to the program's next start.
type descriptorStore struct {
	socket string
	mu     sync.Mutex
	name   string
	file   *os.File // nil: nothing is stored; one is enough
}

// newDescriptorStore listens in the node's folder; it ends with PID 1.
func newDescriptorStore(dir string) (*descriptorStore, error) {
	d := &descriptorStore{socket: filepath.Join(dir, "store.sock")}
	_ = os.Remove(d.socket) // of the last power-on
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: d.socket, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for descriptors to keep: %w", err)
	}
	go func() {
		text, rights := make([]byte, 4096), make([]byte, 256)
		for {
			n, r, _, _, err := conn.ReadMsgUnix(text, rights)
			if err != nil {
				return
			}
			d.take(string(text[:n]), received(rights[:r]))
		}
	}()
	return d, nil
}

// received are the descriptors that came with a message.
func received(rights []byte) []*os.File {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "stored"))
		}
	}
	return files
}

// take does what one message asks for. Whatever is not kept is closed, which is
// all that a barrier wants.
func (d *descriptorStore) take(text string, files []*os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := "stored"
	for line := range strings.SplitSeq(text, "\n") {
		if given, ok := strings.CutPrefix(line, "FDNAME="); ok {
			name = given
		}
	}
	lines := "\n" + text + "\n"
	switch {
	case strings.Contains(lines, "\nFDSTOREREMOVE=1\n"):
		if d.name == name {
			d.keep("", nil)
		}
	case strings.Contains(lines, "\nFDSTORE=1\n") && len(files) > 0:
		d.keep(name, files[0])
		files = files[1:]
	}
	for _, f := range files {
		_ = f.Close()
	}
}

func (d *descriptorStore) keep(name string, file *os.File) {
	if d.file != nil {
		_ = d.file.Close()
	}
	d.name, d.file = name, file
}

// pass adds what is stored to a start of the program, and where to store more.
// The program's own number, which the protocol wants told, is known to nobody
// before it runs: a shell tells it.
func (d *descriptorStore) pass(argv, env []string, files []uintptr) ([]string, []string, []uintptr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	env = append(env, "NOTIFY_SOCKET="+d.socket)
	if d.file == nil {
		return argv, env, files
	}
	env = append(env, "LISTEN_FDS=1", "LISTEN_FDNAMES="+d.name)
	argv = append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, argv...)
	return argv, env, append(files, d.file.Fd())
}
