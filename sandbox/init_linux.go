package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// procTable is a node's PID 1: it starts what it is told to, reaps every
// child, orphans included, and knows how each of its own ended.
type procTable struct {
	mu    sync.Mutex // held across fork and registration, so that the reaper never meets an unknown child of ours
	procs map[string]*initProc
	store *descriptorStore // of the programs that want one; one of them
}

type initProc struct {
	spec   procSpec
	pid    int // 0: not running
	exit   string
	starts int
}

// InitMain is PID 1 of a node: `sandbox-init DIR NAME CGROUP [WATCHDOG]`, the
// last where the watchdog of descriptor 3 is to be found. It returns only on an
// error at start; it is ended by SIGKILL, which ends the whole node at once, as
// a power cut would.
func InitMain(args []string) error {
	if len(args) != 3 && len(args) != 4 {
		return fmt.Errorf("sandbox-init needs a folder, a name, a control group folder and perhaps a watchdog, got %d arguments", len(args))
	}
	dir, name, cgroup := args[0], args[1], args[2]
	if os.Getpid() != 1 {
		return errors.New("sandbox-init is a node's PID 1 and is started by the sandbox only")
	}
	if os.Getenv("PVC_SANDBOX_CGROUP") == "" && cgroup != noCgroup {
		return enterCgroupNamespace()
	}
	_ = os.Unsetenv("PVC_SANDBOX_CGROUP")
	if err := prepareMounts(cgroup); err != nil {
		return err
	}
	if len(args) == 4 {
		if err := attachWatchdog(dir, args[3]); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the host name to %s: %w", name, err)
	}
	if err := quietNewLinks(); err != nil {
		return err
	}
	store, err := newDescriptorStore(dir)
	if err != nil {
		return err
	}
	t := &procTable{procs: map[string]*initProc{}, store: store}
	children := make(chan os.Signal, 1)
	// Caught and dropped, not ignored: what is ignored would be inherited by
	// every program of the node.
	signal.Reset()
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	signal.Notify(children, unix.SIGCHLD)
	ln, err := new(net.ListenConfig).Listen(context.Background(), "unix", filepath.Join(dir, "init.sock"))
	if err != nil {
		return fmt.Errorf("listen for orders: %w", err)
	}
	go t.serve(ln)
	t.reap(children)
	return nil
}

// enterCgroupNamespace runs this program again in a control group namespace:
// the new one is rooted where the sandbox has put this process, so that
// whatever the guard makes stays below it and is swept with the node.
func enterCgroupNamespace() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a control group namespace: %w", err)
	}
	// The parent-death signal is a thread's own, and this one may not be the
	// thread that got it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("tie PID 1 to its supervisor: %w", err)
	}
	env := append(os.Environ(), "PVC_SANDBOX_CGROUP=1")
	return fmt.Errorf("run PID 1 again: %w", unix.Exec("/proc/self/exe", os.Args, env))
}

// prepareMounts gives the node its own /proc, /tmp-like /run is left shared:
// all that the daemons write goes to the node's folder.
func prepareMounts(cgroup string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if cgroup != noCgroup {
		// The machine's view goes first: the kernel refuses the same file
		// system twice on one mount point.
		if err := unix.Unmount(cgroup, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", cgroup, err)
		}
		if err := unix.Mount("cgroup2", cgroup, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mount control groups on %s: %w", cgroup, err)
		}
	}
	return nil
}

// attachWatchdog gives the node the watchdog that the sandbox holds, and, since
// that may end this boot, a boot id of the node's own: what was written down in
// a boot that a reset has ended says nothing in the next.
func attachWatchdog(dir, device string) error {
	err := mountDevice(watchdogFD, device)
	_ = unix.Close(watchdogFD) // the programs have no use for it
	if err != nil {
		return err
	}
	own := filepath.Join(dir, "boot_id")
	if err := os.WriteFile(own, []byte(uuid.NewString()+"\n"), 0o644); err != nil { //nolint:gosec // as the kernel's own
		return fmt.Errorf("make a boot id: %w", err)
	}
	if err := unix.Mount(own, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("give the node its own boot id: %w", err)
	}
	return nil
}

// watchdogFD is the first that a process is given beside its standard ones.
const watchdogFD = 3

func (t *procTable) reap(children <-chan os.Signal) {
	for range children {
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if pid <= 0 || err != nil {
				break
			}
			t.ended(pid, status)
		}
	}
}

func (t *procTable) ended(pid int, status unix.WaitStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.procs {
		if p.pid != pid {
			continue
		}
		p.pid = 0
		if status.Signaled() {
			p.exit = "killed by " + unix.SignalName(status.Signal())
		} else {
			p.exit = fmt.Sprintf("exit status %d", status.ExitStatus())
		}
		if p.spec.Again > 0 {
			// Owned by PID 1, whose end is everybody's.
			time.AfterFunc(p.spec.Again, func() { _ = t.start(p.spec) })
		}
	}
}

// start runs the program; one that runs already is an error.
func (t *procTable) start(spec procSpec) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.procs[spec.Name]
	if p == nil {
		p = &initProc{}
		t.procs[spec.Name] = p
	}
	if p.pid != 0 {
		return fmt.Errorf("%s is running already, pid %d", spec.Name, p.pid)
	}
	p.spec = spec
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", spec.Name, err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	argv, attr := spec.Argv, &syscall.ProcAttr{
		Dir: spec.Dir, Env: append(os.Environ(), spec.Env...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if spec.Stores {
		argv, attr.Env, attr.Files = t.store.pass(argv, attr.Env, attr.Files)
	}
	var pid int
	fork := func() { pid, err = syscall.ForkExec(argv[0], argv, attr) }
	switch {
	case spec.Instrument:
		asInstrument(1, fork)
	case spec.Nice != 0:
		asUnit(spec.Nice, spec.TimerSlack, fork)
	default:
		fork()
	}
	if err != nil {
		return fmt.Errorf("start %s (%s): %w", spec.Name, spec.Argv[0], err)
	}
	p.pid = pid
	p.starts++
	return nil
}

// signal sends to the program itself; its children are not meant.
func (t *procTable) signal(name string, sig int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.procs[name]
	if p == nil || p.pid == 0 {
		return fmt.Errorf("%s is not running", name)
	}
	return unix.Kill(p.pid, unix.Signal(sig))
}

func (t *procTable) list() []procStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]procStatus, 0, len(t.procs))
	for name, p := range t.procs {
		out = append(out, procStatus{Name: name, PID: p.pid, Running: p.pid != 0, Exit: p.exit, Starts: p.starts})
	}
	slices.SortFunc(out, func(a, b procStatus) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}

// serve answers orders one connection after the other: the only client is the
// sandbox.
func (t *procTable) serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		t.answer(conn)
	}
}

func (t *procTable) answer(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	var req initRequest
	if err := json.NewDecoder(conn).Decode(&req); err != nil {
		return
	}
	var reply initReply
	var err error
	switch {
	case req.Op == "start" && req.Spec != nil && len(req.Spec.Argv) > 0:
		err = t.start(*req.Spec)
	case req.Op == "signal":
		err = t.signal(req.Name, req.Signal)
	case req.Op == "list":
		reply.Procs = t.list()
	default:
		err = fmt.Errorf("unknown order %q", req.Op)
	}
	if err != nil {
		reply.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(reply)
}
