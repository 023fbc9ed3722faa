package sandbox

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// The simulated watchdog's own limits, as a chassis timer has them.
const (
	watchdogIdentity = "Sandbox chassis timer" // not softdog's: it lies outside the machine
	watchdogLongest  = 10 * time.Minute
	watchdogDefault  = time.Minute
)

// Watchdog is a node's watchdog, outside the node as its BMC is: a timer that
// resets the machine unless it is fed. The node sees it as a file that takes
// what Linux's watchdog API describes (serveDevice), so that the guard's own
// code for real devices runs over it:
//
//	         open: feeds                    not fed for the time-out
//	stopped ─────────────▶ running, open ───────────────────────────▶ bitten
//	   ▲                    │    ▲    │                                 ▲
//	   │ closed after a 'V' │    │    │ closed without: fed once more   │
//	   ├────────────────────┘    │    ▼                                 │
//	   │              open: feeds└─ running, not open ──────────────────┘
//	   └── power goes, from any state
//
// It admits one opener. It has no WDIOC_SETOPTIONS: a file system's server is
// never shown that call's argument, which the API has the wrong way round; such
// a driver stops by the magic close alone. It is safe for concurrent use.
type Watchdog struct {
	// bite resets the machine in that boot of it; it is called at most once for
	// each, from a goroutine of the device's own, and may call powerOff.
	bite func(boot uint64, due cluster.Instant)

	mu         sync.Mutex
	boot       uint64 // how often power has gone
	opens      uint64 // how often it was opened
	stops      uint64 // how often it was closed after the magic
	handle     uint64 // the present opener; 0: none
	running    bool
	magic      bool // the last write was a 'V'
	timeout    time.Duration
	pretimeout time.Duration
	fed        cluster.Instant
	feeds      uint64
	wasReset   bool
	timer      *time.Timer
	closed     bool
	biting     sync.WaitGroup

	pulled    bool          // the machine has none
	toothless bool          // it counts and does not bite
	skew      time.Duration // it bites so much later than it says
}

// WatchdogStatus is how a node's watchdog stands.
type WatchdogStatus struct {
	Running bool            // it bites unless it is fed
	Open    bool            // some process of the node has it open
	Timeout time.Duration   // as it says itself
	Fed     cluster.Instant // last; Never: not since power came
	Feeds   uint64          // since the sandbox came up
	Opens   uint64          // likewise
	Stops   uint64          // likewise: closed after the magic
}

func newWatchdog(bite func(boot uint64, due cluster.Instant)) *Watchdog {
	return &Watchdog{bite: bite, timeout: watchdogDefault}
}

// Status tells how it stands.
func (w *Watchdog) Status() WatchdogStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return WatchdogStatus{Running: w.running, Open: w.handle != 0, Timeout: w.timeout, Fed: w.fed, Feeds: w.feeds, Opens: w.opens, Stops: w.stops}
}

// Pull takes the device out of the machine, or puts it back: whoever opens it
// finds none. What is open stays so.
func (w *Watchdog) Pull(out bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pulled = out
}

// Toothless makes a device that takes all calls, counts, and never resets.
func (w *Watchdog) Toothless(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.toothless = on
}

// Skew makes it bite d later than it says, or earlier where d is negative, from
// the next feeding on.
func (w *Watchdog) Skew(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.skew = d
}

// powerOff is the end of the machine's power: the device forgets all. A reset
// by itself it remembers until then.
func (w *Watchdog) powerOff() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop()
	w.boot++
	w.handle, w.magic, w.timeout, w.pretimeout, w.wasReset, w.fed = 0, false, watchdogDefault, 0, false, cluster.Never
}

// boots is which boot of the machine this is.
func (w *Watchdog) boots() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.boot
}

// remember has the next boot read that the device had reset the machine.
func (w *Watchdog) remember() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wasReset = true
}

// close ends the device; it returns when no bite is under way any more.
func (w *Watchdog) close() {
	w.mu.Lock()
	w.closed = true
	w.stop()
	w.mu.Unlock()
	w.biting.Wait()
}

func (w *Watchdog) stop() {
	w.running = false
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

// feed starts the time-out again; the caller holds mu.
func (w *Watchdog) feed() {
	if w.closed || !w.running {
		return
	}
	w.fed = now()
	w.feeds++
	if w.timer != nil {
		w.timer.Stop()
	}
	start := w.fed
	w.timer = time.AfterFunc(max(0, w.timeout+w.skew), func() { w.expire(start) })
}

// expire bites unless it was fed since start.
func (w *Watchdog) expire(start cluster.Instant) {
	w.mu.Lock()
	if !w.running || w.fed != start || w.closed || w.toothless {
		w.mu.Unlock()
		return
	}
	due, boot := w.fed.Add(w.timeout+w.skew), w.boot
	w.running = false
	w.biting.Add(1)
	w.mu.Unlock()
	defer w.biting.Done()
	w.bite(boot, due)
}

// open implements deviceFile.
func (w *Watchdog) open() (uint64, unix.Errno) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.pulled:
		return 0, unix.ENODEV
	case w.handle != 0:
		return 0, unix.EBUSY
	}
	w.opens++
	w.handle, w.running, w.magic = w.opens, true, false
	w.feed()
	return w.handle, 0
}

// write implements deviceFile: each feeds, and the last one says whether a close
// is meant to stop the device.
func (w *Watchdog) write(handle uint64, data []byte) unix.Errno {
	w.mu.Lock()
	defer w.mu.Unlock()
	if handle != w.handle {
		return unix.ENODEV // opened before the last power loss
	}
	if len(data) == 0 {
		return 0
	}
	w.magic = false
	for _, c := range data {
		w.magic = w.magic || c == 'V'
	}
	w.feed()
	return 0
}

// release implements deviceFile: a close without the magic is taken for a crash.
func (w *Watchdog) release(handle uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if handle != w.handle {
		return
	}
	w.handle = 0
	if w.magic {
		w.stops++
		w.stop()
		return
	}
	w.feed()
}

// ioctl implements deviceFile.
func (w *Watchdog) ioctl(handle uint64, request uint32, in []byte) ([]byte, unix.Errno) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if handle != w.handle {
		return nil, unix.ENODEV
	}
	switch uint(request) {
	case unix.WDIOC_GETSUPPORT:
		out := make([]byte, 40)
		binary.NativeEndian.PutUint32(out, unix.WDIOF_SETTIMEOUT|unix.WDIOF_PRETIMEOUT|unix.WDIOF_MAGICCLOSE|unix.WDIOF_KEEPALIVEPING|unix.WDIOF_CARDRESET)
		binary.NativeEndian.PutUint32(out[4:], 1)
		copy(out[8:], watchdogIdentity)
		return out, 0
	case unix.WDIOC_GETSTATUS:
		return word(0), 0
	case unix.WDIOC_GETBOOTSTATUS:
		if w.wasReset {
			return word(unix.WDIOF_CARDRESET), 0
		}
		return word(0), 0
	case unix.WDIOC_KEEPALIVE: // its argument is ignored, and need be no address
		w.feed()
		return nil, 0
	case unix.WDIOC_SETTIMEOUT:
		return w.setTimeout(in)
	case unix.WDIOC_GETTIMEOUT:
		return seconds(w.timeout), 0
	case unix.WDIOC_SETPRETIMEOUT:
		return w.setPretimeout(in)
	case unix.WDIOC_GETPRETIMEOUT:
		return seconds(w.pretimeout), 0
	case unix.WDIOC_GETTIMELEFT:
		return seconds(max(0, w.fed.Add(w.timeout).Sub(now()))), 0
	}
	return nil, unix.ENOTTY
}

// setTimeout feeds, too.
func (w *Watchdog) setTimeout(in []byte) ([]byte, unix.Errno) {
	d, ok := asked(in)
	if !ok || d < time.Second || d > watchdogLongest {
		return nil, unix.EINVAL
	}
	w.timeout = d
	if w.pretimeout >= d {
		w.pretimeout = 0
	}
	w.feed()
	return seconds(d), 0
}

func (w *Watchdog) setPretimeout(in []byte) ([]byte, unix.Errno) {
	d, ok := asked(in)
	if !ok || d < 0 || d >= w.timeout {
		return nil, unix.EINVAL
	}
	w.pretimeout = d
	return seconds(d), 0
}

func asked(in []byte) (time.Duration, bool) {
	if len(in) != 4 {
		return 0, false
	}
	return time.Duration(int32(binary.NativeEndian.Uint32(in))) * time.Second, true
}

func word(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func seconds(d time.Duration) []byte { return word(uint32(d / time.Second)) }
