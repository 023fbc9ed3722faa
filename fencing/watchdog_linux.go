package fencing

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultWatchdogPath is the first device of the machine.
const DefaultWatchdogPath = "/dev/watchdog"

// WatchdogOptions say which device and how.
type WatchdogOptions struct {
	Path string // default DefaultWatchdogPath
	// Pretimeout, if set, is asked for where the device has it: so long before
	// the reset the kernel does what its governor says. Whole seconds.
	Pretimeout time.Duration
}

// WatchdogDevice is the Watchdog of a Linux device. Its descriptor is a bare
// number that nothing finalises: only Disarm closes it, and only with the
// magic 'V', so that the device never stops by accident. Children do not
// inherit it. When the process dies the kernel feeds the device once more and
// lets it run, unless another process holds a copy of the descriptor.
type WatchdogDevice struct {
	options WatchdogOptions
	kernel  watchdogKernel
	fd      int // −1: not open
	info    WatchdogInfo

	hastened bool // it runs with less than info.Timeout
}

// NewWatchdogDevice returns the device without touching it: to open is to start.
func NewWatchdogDevice(o WatchdogOptions) *WatchdogDevice {
	return newWatchdogDevice(o, linuxWatchdog())
}

func newWatchdogDevice(o WatchdogOptions, k watchdogKernel) *WatchdogDevice {
	if o.Path == "" {
		o.Path = DefaultWatchdogPath
	}
	return &WatchdogDevice{options: o, kernel: k, fd: -1}
}

// Info returns what is known of the device. While it is not armed this is read
// from sysfs, which starts nothing; the error is why there is nothing to read.
func (d *WatchdogDevice) Info() (WatchdogInfo, error) {
	if d.fd >= 0 {
		return d.info, nil
	}
	if _, _, err := d.kernel.number(d.options.Path); err != nil {
		return WatchdogInfo{Path: d.options.Path}, missingWatchdog(d.options.Path, err)
	}
	return d.inspect(), nil
}

// Descriptor returns the open descriptor, or −1. Its only use is to put a copy
// where it outlives this process (systemd's descriptor store), so that the
// death of the guard is no feeding; the next guard adopts it.
func (d *WatchdogDevice) Descriptor() int { return d.fd }

// Arm is Watchdog's. ErrWatchdogHeld names the holder where it can be found.
func (d *WatchdogDevice) Arm(wanted time.Duration) (time.Duration, error) {
	seconds, err := wholeSeconds(wanted)
	if err != nil {
		return 0, err
	}
	if d.fd >= 0 {
		return 0, fmt.Errorf("open %s: this process (%d) has armed it already: %w", d.options.Path, os.Getpid(), ErrWatchdogHeld)
	}
	info := d.inspect() // before the open, and what only sysfs tells
	fd, err := d.kernel.open(d.options.Path)
	if err != nil {
		return 0, d.openError(err)
	}
	d.fd, d.info = fd, info
	if err := d.configure(seconds, wanted); err != nil {
		if stop := d.Disarm(); stop != nil {
			return 0, fmt.Errorf("arm %s: %w; what is more: %w", d.options.Path, err, stop)
		}
		return 0, fmt.Errorf("arm %s: %w (it was stopped again)", d.options.Path, err)
	}
	return d.info.Timeout, nil
}

// Adopt takes over a descriptor that an earlier process armed and left behind
// open, without feeding the device. wanted is checked as Arm does. After an
// error about the time-out the device is open and runs: Disarm it or feed it.
func (d *WatchdogDevice) Adopt(fd int, wanted time.Duration) (time.Duration, error) {
	if d.fd >= 0 {
		return 0, fmt.Errorf("adopt %s: this process (%d) has armed it already: %w", d.options.Path, os.Getpid(), ErrWatchdogHeld)
	}
	if _, err := d.kernel.support(fd); err != nil {
		return 0, fmt.Errorf("adopt descriptor %d as %s: it is no watchdog: %w", fd, d.options.Path, err)
	}
	d.kernel.closeOnExec(fd)
	d.fd, d.info = fd, d.inspect()
	if err := d.learn(wanted); err != nil {
		return 0, fmt.Errorf("adopt %s: %w", d.options.Path, err)
	}
	return d.info.Timeout, nil
}

// Feed is Watchdog's.
func (d *WatchdogDevice) Feed() error {
	if d.fd < 0 {
		return fmt.Errorf("feed %s: %w", d.options.Path, ErrWatchdogUnarmed)
	}
	err := d.restore()
	if err == nil {
		err = d.kernel.ping(d.fd)
	}
	if err != nil {
		return fmt.Errorf("feed %s: %w; unless the next feeding succeeds the machine resets within %v", d.options.Path, err, d.info.Timeout)
	}
	return nil
}

// Hasten has the device reset the machine within left, in whole seconds and at
// least one, unless it is fed before. Feed restores the time-out. To set one
// feeds, too, so that what is asked for counts from now on. A device that does
// none so short is given its shortest, which the error tells.
func (d *WatchdogDevice) Hasten(left time.Duration) error {
	if d.fd < 0 {
		return fmt.Errorf("hasten %s: %w", d.options.Path, ErrWatchdogUnarmed)
	}
	wanted, most := max(1, int(left/time.Second)), int(d.info.Timeout/time.Second)
	for seconds := wanted; seconds < most; seconds++ {
		err := d.kernel.set(d.fd, unix.WDIOC_SETTIMEOUT, seconds)
		if errors.Is(err, unix.EINVAL) {
			continue // shorter than it can
		}
		if err != nil {
			return fmt.Errorf("hasten %s: it resets within %v and not %v: %w", d.options.Path, d.info.Timeout, left, err)
		}
		d.hastened = true
		if granted, err := d.kernel.get(d.fd, unix.WDIOC_GETTIMEOUT); err != nil || granted > wanted {
			return fmt.Errorf("hasten %s: asked for %d s and was granted %d s: %w", d.options.Path, wanted, granted, errors.Join(err, ErrWatchdogGrant))
		}
		return nil
	}
	if most > wanted {
		return fmt.Errorf("hasten %s: it does nothing shorter than its %v: %w", d.options.Path, d.info.Timeout, ErrWatchdogGrant)
	}
	return nil
}

// restore gives a hastened device its time-outs back.
func (d *WatchdogDevice) restore() error {
	if !d.hastened {
		return nil
	}
	if err := d.kernel.set(d.fd, unix.WDIOC_SETTIMEOUT, int(d.info.Timeout/time.Second)); err != nil {
		return fmt.Errorf("set its time-out to %v again: %w", d.info.Timeout, err)
	}
	if d.info.Pretimeout > 0 { // the kernel has dropped one that did not fit
		_ = d.kernel.set(d.fd, unix.WDIOC_SETPRETIMEOUT, int(d.info.Pretimeout/time.Second))
	}
	d.hastened = false
	return nil
}

// Disarm is Watchdog's. It asks the kernel to stop the device before it closes
// it, so that with nowayout nothing is closed and the caller can feed on.
func (d *WatchdogDevice) Disarm() error {
	if d.fd < 0 {
		return fmt.Errorf("disarm %s: %w", d.options.Path, ErrWatchdogUnarmed)
	}
	err := d.kernel.set(d.fd, unix.WDIOC_SETOPTIONS, unix.WDIOS_DISABLECARD)
	if errors.Is(err, unix.EBUSY) || (err != nil && d.info.NoWayOut) {
		d.info.NoWayOut = true
		return d.stillRuns("it was loaded with nowayout", err)
	}
	// A driver without that call stops at a close after the magic character.
	if n, err := d.kernel.write(d.fd, []byte{'V'}); n != 1 {
		return d.stillRuns("the magic close was not taken", err)
	}
	fd := d.fd
	d.fd = -1
	if err := d.kernel.close(fd); err != nil {
		return fmt.Errorf("close %s: %w; whether it still runs is not known", d.options.Path, err)
	}
	if d.attribute("state") == "active" {
		return d.reopen()
	}
	d.info.Timeout = 0
	return nil
}

// reopen takes a device back that runs on though it was closed by the book.
func (d *WatchdogDevice) reopen() error {
	fd, err := d.kernel.open(d.options.Path)
	if err != nil {
		return fmt.Errorf("disarm %s: it runs on after its close and cannot be opened again (%w): the machine resets within %v: %w",
			d.options.Path, err, d.info.Timeout, ErrWatchdogRuns)
	}
	d.fd = fd
	return d.stillRuns("it ran on after its close", nil)
}

func (d *WatchdogDevice) stillRuns(why string, err error) error {
	if err != nil {
		why += " (" + err.Error() + ")"
	}
	bound := "its time-out"
	if d.info.Timeout > 0 {
		bound = d.info.Timeout.String()
	}
	return fmt.Errorf("disarm %s: %s: it runs on, and %s after the last feeding the machine resets: keep feeding it, or let the machine reboot: %w",
		d.options.Path, why, bound, ErrWatchdogRuns)
}

// configure asks for the time-outs and believes only what is read back.
func (d *WatchdogDevice) configure(seconds int, wanted time.Duration) error {
	err := d.kernel.set(d.fd, unix.WDIOC_SETTIMEOUT, seconds)
	if err != nil && !unsupported(err) {
		return fmt.Errorf("ask for a time-out of %d s: %w: %w", seconds, err, ErrWatchdogGrant)
	}
	if d.options.Pretimeout > 0 {
		pre := int(d.options.Pretimeout / time.Second)
		if err := d.kernel.set(d.fd, unix.WDIOC_SETPRETIMEOUT, pre); err != nil && !unsupported(err) {
			return fmt.Errorf("ask for a pretimeout of %d s in a time-out of %d s: %w", pre, seconds, err)
		}
	}
	if err := d.learn(wanted); err != nil {
		return err
	}
	return d.Feed() // some devices start with the first feeding only
}

// learn reads the device's own word on everything.
func (d *WatchdogDevice) learn(wanted time.Duration) error {
	support, err := d.kernel.support(d.fd)
	if err != nil {
		return fmt.Errorf("ask what it is: %w", err)
	}
	d.info.Identity, d.info.Firmware = support.identity, support.firmware
	d.info.Hardware = isHardware(support.identity)
	if status, err := d.kernel.get(d.fd, unix.WDIOC_GETBOOTSTATUS); err == nil && status&unix.WDIOF_CARDRESET != 0 {
		d.info.WasReset = true
	}
	granted, err := d.kernel.get(d.fd, unix.WDIOC_GETTIMEOUT)
	if err != nil {
		return fmt.Errorf("read its time-out back: %w: without it nobody knows when it resets: %w", err, ErrWatchdogGrant)
	}
	d.info.Timeout = time.Duration(granted) * time.Second
	// The IPMI driver has magic close and does not say so.
	if !d.info.NoWayOut && support.options&unix.WDIOF_MAGICCLOSE == 0 && support.identity != "IPMI" {
		return fmt.Errorf("%q has neither magic close nor nowayout: load its driver with nowayout=1, or use another device: %w",
			support.identity, ErrWatchdogUnsafe)
	}
	if pre, err := d.kernel.get(d.fd, unix.WDIOC_GETPRETIMEOUT); err == nil {
		d.info.Pretimeout = time.Duration(pre) * time.Second
	}
	return checkGrant(d.options.Path, wanted, d.info.Timeout)
}

// inspect reads sysfs. What is not there, or not readable, stays zero; the
// IPMI driver is none of the kernel's watchdog core and has no entry.
func (d *WatchdogDevice) inspect() WatchdogInfo {
	info := WatchdogInfo{Path: d.options.Path, Identity: d.attribute("identity"), NoWayOut: d.attribute("nowayout") == "1"}
	info.Hardware = isHardware(info.Identity)
	status, _ := strconv.Atoi(d.attribute("bootstatus"))
	info.WasReset = status > 0 && status&unix.WDIOF_CARDRESET != 0
	return info
}

func isHardware(identity string) bool { return identity != "" && identity != softdogIdentity }

// attribute reads one of the device's files in sysfs; empty if there is none.
func (d *WatchdogDevice) attribute(name string) string {
	entry := d.entry()
	if entry == "" {
		return ""
	}
	raw, err := os.ReadFile(filepath.Join(d.kernel.sysfs, "class/watchdog", entry, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// The number of /dev/watchdog, which the kernel gives to watchdog0 as well as a
// number of its own.
const miscMajor, watchdogMinor = 10, 130

// entry is the device's name in sysfs, watchdogN, or empty.
func (d *WatchdogDevice) entry() string {
	major, minor, err := d.kernel.number(d.options.Path)
	if err != nil {
		return ""
	}
	if major == miscMajor && minor == watchdogMinor {
		return "watchdog0"
	}
	target, err := os.Readlink(filepath.Join(d.kernel.sysfs, "dev/char", fmt.Sprintf("%d:%d", major, minor)))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

func (d *WatchdogDevice) openError(err error) error {
	if !errors.Is(err, unix.EBUSY) {
		return missingWatchdog(d.options.Path, err)
	}
	holders := d.holders()
	if len(holders) == 0 {
		return fmt.Errorf("open %s: another process has it open and could not be found (%w): find it with lsof, or use another device: %w",
			d.options.Path, err, ErrWatchdogHeld)
	}
	advice := "stop it, or use another device"
	if slices.Contains(holders, "process 1 (systemd)") {
		advice = "set RuntimeWatchdogSec=off in system.conf and reboot, or use another device"
	}
	return fmt.Errorf("open %s: %s has it open: %s: %w", d.options.Path, strings.Join(holders, " and "), advice, ErrWatchdogHeld)
}

func missingWatchdog(path string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("open %s: there is no such watchdog (%w): load the driver of this machine's, or softdog", path, err)
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// holders finds who has the device open, by the names it goes by.
func (d *WatchdogDevice) holders() []string {
	names := []string{d.options.Path}
	if real, err := filepath.EvalSymlinks(d.options.Path); err == nil {
		names = append(names, real)
	}
	switch entry := d.entry(); entry {
	case "":
	case "watchdog0":
		names = append(names, "/dev/watchdog0", "/dev/watchdog")
	default:
		names = append(names, "/dev/"+entry)
	}
	links, _ := filepath.Glob(filepath.Join(d.kernel.procfs, "[0-9]*/fd/*"))
	var found []string
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !slices.Contains(names, target) {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		comm, _ := os.ReadFile(filepath.Join(process, "comm"))
		holder := fmt.Sprintf("process %s (%s)", filepath.Base(process), strings.TrimSpace(string(comm)))
		if !slices.Contains(found, holder) {
			found = append(found, holder)
		}
	}
	return found
}

// unsupported are the answers of drivers that do not have a call.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY)
}

// watchdogSupport is a driver's word on itself.
type watchdogSupport struct {
	identity string
	options  uint32 // WDIOF_*
	firmware uint32
}

// watchdogKernel is all that is asked of the kernel; tests put another here.
type watchdogKernel struct {
	open          func(path string) (fd int, err error)
	support       func(fd int) (watchdogSupport, error)
	get           func(fd int, request uint) (int, error)
	set           func(fd int, request uint, value int) error
	ping          func(fd int) error
	write         func(fd int, b []byte) (int, error)
	close         func(fd int) error
	closeOnExec   func(fd int)
	number        func(path string) (major, minor uint32, err error)
	sysfs, procfs string
}

func linuxWatchdog() watchdogKernel {
	return watchdogKernel{
		open:        func(path string) (int, error) { return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0) },
		support:     supportOf,
		get:         unix.IoctlGetInt,
		set:         unix.IoctlSetPointerInt,
		ping:        unix.IoctlWatchdogKeepalive,
		write:       unix.Write,
		close:       unix.Close,
		closeOnExec: unix.CloseOnExec,
		number:      deviceNumber,
		sysfs:       "/sys",
		procfs:      "/proc",
	}
}

func supportOf(fd int) (watchdogSupport, error) {
	info, err := unix.IoctlGetWatchdogInfo(fd)
	if err != nil {
		return watchdogSupport{}, err
	}
	return watchdogSupport{identity: unix.ByteSliceToString(info.Identity[:]), options: info.Options, firmware: info.Version}, nil
}

func deviceNumber(path string) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return 0, 0, fmt.Errorf("it is no device: %w", unix.ENODEV)
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), nil
}
