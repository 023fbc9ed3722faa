package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Netlink messages by which the guard refreshes what it holds, and nothing else.
const (
	newElement = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM
	newAddress = unix.RTM_NEWADDR
)

// tracer stops a whole process at a system call's entry and lets it go on
// later: exactly what SIGSTOP does when it hits that instant, but never beside
// it. All its calls run on one thread, as the kernel wants it.
type tracer struct {
	pid   int
	tasks map[int]bool // traced; true: stopped
}

// holdAt waits until the process is about to send the kernel a netlink message
// of the type, holds all of it from then on for as long as told, and returns
// when it was held and when it went on. Without such a message within the
// limit it fails, and the process goes on untouched.
func holdAt(pid int, message uint16, hold, limit time.Duration) (held, released time.Time, err error) {
	err = onLockedThread(func() error {
		t := &tracer{pid: pid, tasks: map[int]bool{}}
		defer t.detach()
		if err := t.seize(); err != nil {
			return err
		}
		if err := t.until(message, time.Now().Add(limit)); err != nil {
			return err
		}
		if err := t.stopAll(); err != nil {
			return err
		}
		held = time.Now()
		time.Sleep(hold)
		released = time.Now()
		return nil
	})
	return held, released, err
}

// onLockedThread runs f on a thread of its own that ends with it: whatever is
// still traced by it is let go by the kernel.
func onLockedThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// seize attaches to every thread, those that are born meanwhile included.
func (t *tracer) seize() error {
	for range 5 {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", t.pid))
		if err != nil {
			return fmt.Errorf("list the threads of process %d: %w", t.pid, err)
		}
		fresh := 0
		for _, e := range tasks {
			tid, err := strconv.Atoi(e.Name())
			if err != nil || has(t.tasks, tid) {
				continue
			}
			if err := unix.PtraceSeize(tid); err != nil {
				continue // it has ended, or was seized by birth
			}
			_ = unix.PtraceInterrupt(tid)
			t.tasks[tid] = false
			fresh++
		}
		if fresh == 0 {
			return nil
		}
	}
	return nil
}

func has(m map[int]bool, key int) bool {
	_, ok := m[key]
	return ok
}

// traceOptions mark system calls in a stop's signal and trace new threads too.
const traceOptions = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE

// until lets the process run from system call to system call up to the one
// that sends the message. The thread that is about to send it stays stopped.
func (t *tracer) until(message uint16, deadline time.Time) error {
	for {
		tid, status, err := t.next(deadline)
		if err != nil {
			return err
		}
		if !status.Stopped() {
			delete(t.tasks, tid)
			continue
		}
		if !has(t.tasks, tid) || !t.tasks[tid] {
			_ = unix.PtraceSetOptions(tid, traceOptions)
		}
		t.tasks[tid] = true
		if status.StopSignal() == unix.SIGTRAP|0x80 && sends(tid, message) {
			return nil
		}
		t.resume(tid, status)
	}
}

// next is the next stop or end of a thread. It waits actively at first: each
// stop's delay is the traced process's.
func (t *tracer) next(deadline time.Time) (int, unix.WaitStatus, error) {
	for tries := 0; ; tries++ {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD|unix.WNOHANG, nil)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return 0, 0, fmt.Errorf("wait for a traced thread: %w", err)
		case err == nil && tid > 0:
			return tid, status, nil
		case tries%16 == 0 && time.Now().After(deadline):
			return 0, 0, errors.New("the process did not send what it was to be stopped at")
		}
		if tries > 50 {
			time.Sleep(20 * time.Microsecond)
		}
	}
}

// resume lets a stopped thread go on to its next system call, delivering the
// signal it was stopped by, if it was one.
func (t *tracer) resume(tid int, status unix.WaitStatus) {
	sig := 0
	if s := status.StopSignal(); status.TrapCause() <= 0 && s != unix.SIGTRAP|0x80 && s != unix.SIGTRAP && s != unix.SIGSTOP {
		sig = int(s)
	}
	if unix.PtraceSyscall(tid, sig) == nil {
		t.tasks[tid] = false
	}
}

// stopAll stops what still runs.
func (t *tracer) stopAll() error {
	for tid, stopped := range t.tasks {
		if !stopped {
			_ = unix.PtraceInterrupt(tid)
		}
	}
	deadline := time.Now().Add(time.Second)
	for {
		left := 0
		for _, stopped := range t.tasks {
			if !stopped {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		tid, status, err := t.next(deadline)
		if err != nil {
			return fmt.Errorf("stop all threads: %w", err)
		}
		if status.Stopped() {
			t.tasks[tid] = true
		} else {
			delete(t.tasks, tid)
		}
	}
}

// detach lets everything go on. What could not be stopped for it is let go by
// the kernel when the tracer's thread ends.
func (t *tracer) detach() {
	_ = t.stopAll()
	for tid := range t.tasks {
		_ = unix.PtraceDetach(tid)
	}
}

// sends reports whether the thread, stopped at a system call, is about to send
// a netlink datagram that holds a message of the type.
func sends(tid int, message uint16) bool {
	call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", tid))
	if err != nil {
		return false
	}
	// The number and its arguments, on every architecture alike.
	var number, fd, address, size uint64
	if n, _ := fmt.Sscanf(string(call), "%d 0x%x 0x%x 0x%x", &number, &fd, &address, &size); n < 4 || number != unix.SYS_SENDTO || size < 16 || size > 1<<20 {
		return false
	}
	datagram := make([]byte, size)
	local := []unix.Iovec{{Base: &datagram[0], Len: size}}
	n, err := unix.ProcessVMReadv(tid, local, []unix.RemoteIovec{{Base: uintptr(address), Len: int(size)}}, 0)
	if err != nil || n < int(size) {
		return false
	}
	for m := datagram; len(m) >= unix.SizeofNlMsghdr; {
		length := int(binary.NativeEndian.Uint32(m))
		if binary.NativeEndian.Uint16(m[4:]) == message {
			return true
		}
		if length < unix.SizeofNlMsghdr || length >= len(m) {
			break
		}
		m = m[min((length+3)&^3, len(m)):]
	}
	return false
}
