package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// A device file is a whole file system of the kernel's FUSE that consists of
// one file: its root. It is mounted in the node's own mount namespace, by its
// PID 1, and served from outside the node, so that it goes with the node and
// leaves nothing behind, whoever is killed. The protocol is spoken here: the
// ready library answers each ioctl with as much as its number says, and what
// feeds a watchdog has no room for an answer.

// deviceFile is what a file of a node does. None of its methods may wait.
type deviceFile interface {
	open() (handle uint64, errno unix.Errno)
	write(handle uint64, data []byte) unix.Errno
	ioctl(handle uint64, request uint32, in []byte) (out []byte, errno unix.Errno)
	release(handle uint64)
}

// The kernel's requests, and what of the protocol is used (linux/fuse.h).
const (
	fuseForget      = 2
	fuseGetattr     = 3
	fuseOpen        = 14
	fuseWrite       = 16
	fuseRelease     = 18
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseIoctl       = 39
	fuseBatchForget = 42

	fuseMajor, fuseMinor = 7, 31
	fuseInHeader         = 40
	fuseMaxWrite         = 4096
	fuseBuffer           = 64 << 10 // above the kernel's least

	fuseDirectIO, fuseNonSeekable = 1, 4 // how a file is opened
)

// deviceMount is one mount of a device file, from before the node's boot on.
type deviceMount struct {
	file deviceFile
	pass *os.File // for PID 1, until it has mounted
	conn *os.File // nil: not served yet
	done sync.WaitGroup
}

// newDeviceMount opens the kernel's side. The caller passes pass to the process
// that mounts, and closes it.
func newDeviceMount(file deviceFile) (*deviceMount, error) {
	// Blocking, and so unknown to the runtime's poller: the kernel tells of
	// nothing through a descriptor that was watched before it was mounted.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse for the simulated watchdog: %w", err)
	}
	return &deviceMount{file: file, pass: os.NewFile(uintptr(fd), "/dev/fuse")}, nil
}

// mountDevice mounts the device file of the descriptor on the path, an ordinary
// file, in this process's mount namespace.
func mountDevice(fd int, path string) error {
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other", fd, unix.S_IFREG|0o600)
	if err := unix.Mount("watchdog", path, "fuse", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount the simulated watchdog on %s: %w", path, err)
	}
	return nil
}

// serve answers from now on; the device is mounted.
func (m *deviceMount) serve() error {
	fd, err := unix.FcntlInt(m.pass.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return err
	}
	m.conn = os.NewFile(uintptr(fd), "/dev/fuse")
	m.done.Go(m.run)
	return m.pass.Close()
}

// close ends the mount: whoever uses the file gets errors. Nil is none.
func (m *deviceMount) close() {
	if m == nil {
		return
	}
	_ = m.pass.Close()
	if m.conn != nil {
		_ = m.conn.Close()
	}
	m.done.Wait()
}

// run answers until the mount is gone or close is called.
func (m *deviceMount) run() {
	buf := make([]byte, fuseBuffer)
	for {
		n, err := m.conn.Read(buf)
		switch {
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR): // taken back meanwhile
			continue
		case err != nil || n < fuseInHeader:
			return
		}
		m.answer(buf[:n])
	}
}

// answer serves one request.
func (m *deviceMount) answer(request []byte) {
	e := binary.NativeEndian
	opcode, unique, body := e.Uint32(request[4:]), e.Uint64(request[8:]), request[fuseInHeader:]
	var out []byte
	var errno unix.Errno
	switch opcode {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return // these have no answer
	case fuseInit:
		out = fuseInitAnswer(body)
	case fuseGetattr:
		out = fuseAttributes()
	case fuseOpen:
		var handle uint64
		if handle, errno = m.file.open(); errno == 0 {
			out = e.AppendUint64(nil, handle)
			out = e.AppendUint32(out, fuseDirectIO|fuseNonSeekable)
			out = e.AppendUint32(out, 0)
		}
	case fuseWrite:
		data := body[40:]
		if errno = m.file.write(e.Uint64(body), data); errno == 0 {
			out = e.AppendUint32(nil, uint32(len(data)))
			out = e.AppendUint32(out, 0)
		}
	case fuseIoctl:
		var answer []byte
		if answer, errno = m.file.ioctl(e.Uint64(body), e.Uint32(body[12:]), body[32:]); errno == 0 {
			out = append(make([]byte, 16), answer...) // the call itself returns 0
		}
	case fuseRelease:
		m.file.release(e.Uint64(body))
	default:
		errno = unix.ENOSYS
	}
	head := e.AppendUint32(nil, uint32(16+len(out)))
	head = e.AppendUint32(head, uint32(-int32(errno)))
	head = e.AppendUint64(head, unique)
	// What fails is the asker's: it has been killed, or the mount is gone.
	_, _ = m.conn.Write(append(head, out...))
}

// fuseInitAnswer agrees on the protocol's version, and on nothing else.
func fuseInitAnswer(body []byte) []byte {
	e := binary.NativeEndian
	out := make([]byte, 64)
	e.PutUint32(out, fuseMajor)
	e.PutUint32(out[4:], min(fuseMinor, e.Uint32(body[4:])))
	e.PutUint32(out[20:], fuseMaxWrite)
	e.PutUint32(out[24:], 1) // nanoseconds are the unit of times
	return out
}

// fuseAttributes are the file's: root's alone, for a second.
func fuseAttributes() []byte {
	e := binary.NativeEndian
	out := make([]byte, 104)
	e.PutUint64(out, 1)                          // how long they hold
	e.PutUint64(out[16:], 1)                     // the file's number
	e.PutUint32(out[16+60:], unix.S_IFREG|0o600) // what it is
	e.PutUint32(out[16+64:], 1)                  // one name
	return out
}
