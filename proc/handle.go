package proc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Handle holds on to one process that somebody else started: whatever becomes of
// its number later, the handle never means another one.
type Handle struct {
	file *os.File // a pidfd
	pid  int
	done chan struct{}
}

// Hold takes a handle of the process with this id and start time (StartTime). The
// error is ErrGone when the id is unused or is a later process's. Close it.
func Hold(pid int, start uint64) (*Handle, error) {
	file, _, err := holdPid(pid, start)
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	h := &Handle{file: file, pid: pid, done: make(chan struct{})}
	go h.await() // ends with the process, or with Close
	return h, nil
}

// holdPid opens a descriptor of exactly this process, while it still runs.
func holdPid(pid int, start uint64) (*os.File, stat, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, stat{}, ErrGone
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	// Read after the descriptor was opened, so that both mean one process.
	s, err := readStat(pid)
	if err != nil || s.start != start || s.ended() {
		file.Close()
		return nil, stat{}, ErrGone
	}
	return file, s, nil
}

// awaitEnd waits until the descriptor becomes readable: its process has ended.
func awaitEnd(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
}

func (h *Handle) await() {
	if awaitEnd(h.file) == nil {
		close(h.done)
	}
}

// Done is closed once the process has ended. It never is after a Close that came
// before that.
func (h *Handle) Done() <-chan struct{} { return h.done }

// Kill sends SIGKILL to the process itself, not to what it has started, and does
// not wait. One that has ended already is no error.
func (h *Handle) Kill() error {
	raw, err := h.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("kill process %d: %w", h.pid, err)
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if err == nil {
		err = sent
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", h.pid, err)
	}
	return nil
}

// Close lets go of the process.
func (h *Handle) Close() { h.file.Close() }
