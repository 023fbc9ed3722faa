package guard

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

const (
	// storedName is the watchdog's in the service manager's store.
	storedName = "pvc-watchdog"
	// firstInherited is the first descriptor that a service manager passes on.
	firstInherited = 3
	// notifyTimeout bounds each exchange with the service manager.
	notifyTimeout = time.Second
)

// SystemdStore is systemd's store of descriptors (FileDescriptorStoreMax= of the
// unit): what is put there lives as long as the unit is not stopped, and is
// passed on to the service's next process. It implements DescriptorStore.
type SystemdStore struct{ socket string }

// NewSystemdStore returns the store of this process's service; nil if it runs
// under no service manager. The way there is not passed on to children: it must
// be called before any is started, and once.
func NewSystemdStore() DescriptorStore {
	socket := os.Getenv("NOTIFY_SOCKET")
	_ = os.Unsetenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	return SystemdStore{socket: socket}
}

// Keep implements DescriptorStore.
func (s SystemdStore) Keep(fd int) error {
	if err := s.send("FDSTORE=1\nFDNAME="+storedName, fd); err != nil {
		return fmt.Errorf("store the watchdog's descriptor with the service manager: %w", err)
	}
	return nil
}

// Drop implements DescriptorStore.
func (s SystemdStore) Drop() error {
	err := s.send("FDSTOREREMOVE=1\nFDNAME=" + storedName)
	if err == nil {
		err = s.barrier()
	}
	if err != nil {
		return fmt.Errorf("drop the watchdog's descriptor from the service manager: %w", err)
	}
	return nil
}

func (s SystemdStore) send(text string, fds ...int) error {
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(sock) }()
	limit := unix.NsecToTimeval(notifyTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(sock, []byte(text), rights, &unix.SockaddrUnix{Name: s.socket}, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// barrier returns once the service manager has done what was sent before: it
// closes its end of a pipe then.
func (s SystemdStore) barrier() error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer func() { _ = unix.Close(ends[0]) }()
	err := s.send("BARRIER=1", ends[1])
	_ = unix.Close(ends[1])
	if err != nil {
		return err
	}
	for limit := time.Now().Add(notifyTimeout); ; {
		left := time.Until(limit)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(ends[0])}}, int(max(left, 0)/time.Millisecond))
		switch {
		case errors.Is(err, unix.EINTR) && left > 0:
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("the service manager did not answer: %w", cluster.ErrDeadline)
		default:
			return nil
		}
	}
}

// InheritedWatchdog returns the descriptor that an earlier guard has left in
// systemd's store, or −1. Nothing that was passed on reaches this process's
// children: it must be called before any is started, and once.
func InheritedWatchdog() int {
	defer func() {
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(name)
		}
	}()
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return -1
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	found := -1
	for i := range count {
		fd := firstInherited + i
		unix.CloseOnExec(fd)
		if found < 0 && i < len(names) && names[i] == storedName {
			found = fd
		} else {
			_ = unix.Close(fd) // a second copy, or none of ours
		}
	}
	return found
}
