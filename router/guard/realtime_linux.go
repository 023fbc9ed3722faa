package guard

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// niceness of the guard's threads other than the deadline's.
const niceness = -10

// prepareProcess locks the guard into memory and lifts its priority. What is
// refused is said once; the gate still ends a role that the guard is late for.
func prepareProcess(log *zap.Logger) {
	// On fault: locks what has been touched, not the runtime's reservations.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		log.Warn("guard not locked in memory, swapping may delay it", zap.Error(err))
	}
	tasks, err := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		if tid, convErr := strconv.Atoi(t.Name()); convErr == nil && err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, tid, niceness) // a new thread takes its maker's
		}
	}
	if err != nil {
		log.Warn("guard runs at ordinary priority, a busy host may delay it", zap.Error(err))
	}
}

// schedParam is struct sched_param.
type schedParam struct{ priority int32 }

// realtimeThread gives the calling thread SCHED_FIFO; children and threads that
// it makes start ordinary.
func realtimeThread() error {
	p := schedParam{priority: 10}
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_FIFO|unix.SCHED_RESET_ON_FORK, uintptr(unsafe.Pointer(&p)))
	if errno != 0 {
		return errno
	}
	return nil
}

// alarm calls back at an instant of CLOCK_BOOTTIME, from a thread of its own
// that waits in the kernel. After a suspend it fires at once.
type alarm struct {
	fd    int
	wake  int // eventfd that ends the thread
	clock cluster.Clock
}

func newAlarm(clock cluster.Clock) (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer on CLOCK_BOOTTIME: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	return &alarm{fd: fd, wake: wake, clock: clock}, nil
}

// set arms the alarm for the instant; Never disarms it, the past fires at once.
func (a *alarm) set(at cluster.Instant) error {
	var spec unix.ItimerSpec
	if at != cluster.Never {
		// A day at most: the holder of the alarm looks again and sets it anew.
		at = min(at, a.clock.Now().Add(24*time.Hour))
		spec.Value = unix.NsecToTimespec(max(int64(at), 1))
	}
	if err := unix.TimerfdSettime(a.fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return fmt.Errorf("arm the deadline's timer: %w", err)
	}
	return nil
}

// run waits and calls fire each time the alarm goes off, until ctx ends.
func (a *alarm) run(ctx context.Context, log *zap.Logger, fire func()) {
	runtime.LockOSThread() // never unlocked: the thread ends with its priority
	if err := realtimeThread(); err != nil {
		log.Warn("guard's deadlines not at real-time priority, a busy host may delay them", zap.Error(err))
	}
	stop := context.AfterFunc(ctx, func() { _, _ = unix.Write(a.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stop()
	fds := []unix.PollFd{{Fd: int32(a.fd), Events: unix.POLLIN}, {Fd: int32(a.wake), Events: unix.POLLIN}}
	buf := make([]byte, 8)
	for ctx.Err() == nil {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			log.Error("deadline's timer failed, deadlines are kept by the tick alone", zap.Error(err))
			return
		}
		if _, err := unix.Read(a.fd, buf); err == nil {
			fire()
		}
	}
}

func (a *alarm) close() {
	_ = unix.Close(a.fd)
	_ = unix.Close(a.wake)
}

// suspended returns how long the host has been suspended since boot: what
// CLOCK_BOOTTIME counts and CLOCK_MONOTONIC does not.
func suspended() time.Duration {
	for {
		var before, boot, after unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &before) != nil ||
			unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil ||
			unix.ClockGettime(unix.CLOCK_MONOTONIC, &after) != nil {
			return 0
		}
		if after.Nano()-before.Nano() < int64(10*time.Millisecond) {
			return time.Duration(boot.Nano() - before.Nano())
		} // stopped in between: not a suspend, read again
	}
}
