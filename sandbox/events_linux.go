package sandbox

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// eventThread reads what the kernel tells (addresses that come and go,
// services that start and end) on one instrument thread, so that each event is
// stamped when it happens, not when a busy machine gets round to it.
type eventThread struct {
	epoll, wake int
	done        chan struct{}

	mu    sync.Mutex // held while a handler runs
	ready map[int32]func()
}

func startEvents() (*eventThread, error) {
	t := &eventThread{done: make(chan struct{}), ready: map[int32]func(){}}
	var err error
	if t.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make an event queue: %w", err)
	}
	if t.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = unix.EpollCtl(t.epoll, unix.EPOLL_CTL_ADD, t.wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(t.wake)})
	}
	if err != nil {
		_ = unix.Close(t.epoll)
		return nil, fmt.Errorf("make an event queue: %w", err)
	}
	go func() {
		defer close(t.done)
		asInstrument(2, t.run)
	}()
	return t, nil
}

func (t *eventThread) run() {
	events := make([]unix.EpollEvent, 16)
	for {
		n, err := unix.EpollWait(t.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd == int32(t.wake) {
				return
			}
			t.mu.Lock()
			if ready := t.ready[e.Fd]; ready != nil {
				ready()
			}
			t.mu.Unlock()
		}
	}
}

// add has ready called on the thread whenever the descriptor, which must not
// block, can be read. A handler must not call add or remove; it returns more
// or stops the watch by the means of addLocked and removeLocked.
func (t *eventThread) add(fd int, ready func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addLocked(fd, ready)
}

func (t *eventThread) addLocked(fd int, ready func()) error {
	if err := unix.EpollCtl(t.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("watch a descriptor: %w", err)
	}
	t.ready[int32(fd)] = ready
	return nil
}

// remove ends the watch of a descriptor and closes it; its handler does not
// run any more.
func (t *eventThread) remove(fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeLocked(fd)
}

func (t *eventThread) removeLocked(fd int) {
	if _, ok := t.ready[int32(fd)]; ok {
		delete(t.ready, int32(fd))
		_ = unix.Close(fd)
	}
}

// close ends the thread and closes every descriptor that is still watched.
func (t *eventThread) close() {
	if t == nil {
		return
	}
	_, _ = unix.Write(t.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-t.done
	t.mu.Lock()
	defer t.mu.Unlock()
	for fd := range t.ready {
		t.removeLocked(int(fd))
	}
	_ = unix.Close(t.epoll)
	_ = unix.Close(t.wake)
}
