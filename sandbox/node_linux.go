package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/sandbox/bmc"
)

// Node is one machine of the sandbox.
type Node struct {
	Plan NodePlan
	Dir  string

	sandbox *Sandbox
	mu      sync.Mutex // serialises power changes
	running *runningNode
	// lastRunning is running for readers that must not wait for a power change.
	lastRunning atomic.Pointer[runningNode]

	bmc      *bmc.Faults
	watchdog *Watchdog // nil: it has none

	cutMu sync.Mutex // never held while mu is taken
	cuts  map[string]cut
}

// runningNode is one power-on of a node.
type runningNode struct {
	cmd    *exec.Cmd
	pid    int
	ended  chan struct{} // closed when PID 1 has been waited for
	cgroup string
	watch  *addressWatch
	device *deviceMount // of its watchdog; nil: none
}

// On powers the node on: its PID 1, its links, and everything that starts with
// a machine. A node that is on already stays as it is.
func (n *Node) On() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.alive() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), nodeStartTimeout)
	defer cancel()
	r, err := n.boot(ctx)
	if err != nil {
		return fmt.Errorf("power on %s: %w", n.Plan.Name, err)
	}
	n.running = r
	n.lastRunning.Store(r)
	n.sandbox.saveState()
	n.sandbox.history.Add(Entry{Kind: KindPower, Node: n.Plan.Name, On: true})
	for _, spec := range n.sandbox.programs(n) {
		if err := n.start(ctx, spec); err != nil {
			n.cut()
			return fmt.Errorf("power on %s: %w", n.Plan.Name, err)
		}
	}
	return nil
}

// emptied removes what is in the folder.
func emptied(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(folder, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// boot starts PID 1 and wires the node.
func (n *Node) boot(ctx context.Context) (*runningNode, error) {
	_ = os.Remove(n.initSocket())
	if err := emptied(n.runFolder()); err != nil { // as the /run of a machine that boots
		return nil, err
	}
	cgroupMount := cgroupRoot()
	if cgroupMount == "" {
		cgroupMount = noCgroup
	}
	argv := append(append([]string{}, n.sandbox.options.Helper...), "sandbox-init", n.Dir, string(n.Plan.Name), cgroupMount)
	r := &runningNode{ended: make(chan struct{})}
	if n.watchdog != nil {
		var err error
		if r.device, err = newDeviceMount(n.watchdog); err != nil {
			return nil, err
		}
		argv = append(argv, n.watchdogPath())
	}
	if err := n.boots(ctx, r, argv, cgroupMount); err != nil {
		r.device.close()
		return nil, err
	}
	return r, nil
}

// boots starts PID 1 with its arguments.
func (n *Node) boots(ctx context.Context, r *runningNode, argv []string, cgroupMount string) error {
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // the node outlives the call that boots it
	log, err := os.OpenFile(filepath.Join(n.Dir, "log", "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL, // nothing outlives the supervisor
		Setsid:     true,         // a terminal's Ctrl-C is the supervisor's to handle
	}
	r.cmd = cmd
	if r.device != nil {
		cmd.ExtraFiles = []*os.File{r.device.pass} // watchdogFD
	}
	if cgroupMount != noCgroup {
		r.cgroup = filepath.Join(n.sandbox.cgroup, string(n.Plan.Name))
		if err := os.MkdirAll(r.cgroup, 0o755); err != nil {
			return fmt.Errorf("make a control group: %w", err)
		}
		dir, err := os.Open(r.cgroup)
		if err != nil {
			return err
		}
		defer dir.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	}
	cmd.SysProcAttr = attr
	if err := n.sandbox.forker.start(cmd); err != nil {
		return fmt.Errorf("start PID 1: %w", err)
	}
	r.pid = cmd.Process.Pid
	go func() {
		_ = cmd.Wait()
		close(r.ended)
	}()
	err = n.wire(ctx, r, n.initSocket())
	if err != nil {
		_ = cmd.Process.Kill()
		<-r.ended
		n.sandbox.net.detachNode(n.Plan)
		removeCgroup(r.cgroup)
		return err
	}
	return nil
}

// wire waits for PID 1 to take orders, attaches the links and the address watch.
func (n *Node) wire(ctx context.Context, r *runningNode, socket string) error {
	for {
		// The socket's file is there a moment before anybody listens on it.
		if _, err := askInit(ctx, socket, initRequest{Op: "list"}); err == nil {
			break
		}
		select {
		case <-r.ended:
			said, _ := os.ReadFile(filepath.Join(n.Dir, "log", "init.log"))
			return fmt.Errorf("PID 1 ended at once and said: %s", bytes.TrimSpace(said[max(0, len(said)-500):]))
		case <-ctx.Done():
			return errors.New("PID 1 did not take orders in time")
		case <-time.After(2 * time.Millisecond):
		}
	}
	if r.device != nil { // it is mounted by now, and nobody has opened it
		if err := r.device.serve(); err != nil {
			return fmt.Errorf("serve its watchdog: %w", err)
		}
	}
	if err := n.sandbox.net.attachNode(n.Plan, r.pid); err != nil {
		return err
	}
	if err := n.restoreCuts(r.pid); err != nil {
		return err
	}
	watch, err := watchAddresses(n.sandbox, n.Plan, r.pid)
	if err != nil {
		return err
	}
	r.watch = watch
	return nil
}

// Off is the power cut: SIGKILL for PID 1, its ports dead at the same moment,
// so that not even the node's kernel answers any more. It returns when nothing
// of the node is left. A node that is off already is no error.
func (n *Node) Off() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut()
	return nil
}

func (n *Node) cut() {
	r := n.running
	if r == nil {
		return
	}
	_ = unix.Kill(r.pid, unix.SIGKILL)
	_ = n.sandbox.net.setPorts(n.Plan, false, linkUpstream, linkCluster, linkMgmt)
	n.sandbox.history.Add(Entry{Kind: KindPower, Node: n.Plan.Name, On: false})
	select {
	case <-r.ended:
	case <-time.After(5 * time.Second):
		n.sandbox.log.Error("the node's PID 1 did not end", zap.String("node", string(n.Plan.Name)), zap.Int("pid", r.pid))
	}
	r.device.close()
	if n.watchdog != nil {
		n.watchdog.powerOff()
	}
	r.watch.close()
	n.sandbox.net.detachNode(n.Plan)
	removeCgroup(r.cgroup)
	n.running = nil
	n.lastRunning.Store(nil)
	n.sandbox.saveState()
}

// watchdogFile is a node's watchdog, in its folder. Outside of the node it is an
// ordinary file.
const watchdogFile = "watchdog"

func (n *Node) watchdogPath() string { return filepath.Join(n.Dir, watchdogFile) }

func (n *Node) initSocket() string { return filepath.Join(n.Dir, "init.sock") }

// Watchdog is the node's watchdog; nil without Options.Watchdogs. Each of its
// faults may be switched at any time.
func (n *Node) Watchdog() *Watchdog { return n.watchdog }

// PublishedWatchdog is what the node's present start has published of its
// watchdog, as it was seen last; nil: nothing that could be counted on.
func (n *Node) PublishedWatchdog() *cluster.WatchdogWord {
	if n.sandbox.store == nil {
		return nil
	}
	snap := n.sandbox.store.latest()
	if snap == nil {
		return nil
	}
	view := snap.Nodes[n.Plan.Name]
	if !view.Alive.Present || view.Alive.Value.Incarnation != view.Record.Value.Incarnation {
		return nil
	}
	return view.Record.Value.Watchdog
}

// reset is the bite of the node's watchdog in that boot: its power is cut as by
// hand, and where that is set it comes again, unless life has ended.
func (n *Node) reset(life context.Context, boot uint64, due cluster.Instant) {
	if !n.bitten(boot, due) {
		return
	}
	again := n.sandbox.options.WatchdogReboots
	if again <= 0 || pause(life, again) != nil {
		return
	}
	n.watchdog.remember()
	if err := n.On(); err != nil {
		n.sandbox.log.Error("a node does not boot after its watchdog has reset it", zap.Error(err))
	}
}

// bitten cuts the power, unless somebody else has since the device's decision.
func (n *Node) bitten(boot uint64, due cluster.Instant) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watchdog.boots() != boot {
		return false
	}
	n.sandbox.history.Add(Entry{Kind: KindPower, Node: n.Plan.Name, On: false, By: byWatchdog,
		Text: fmt.Sprintf("%v after it was due", now().Sub(due))})
	n.cut()
	return true
}

// byWatchdog is who takes power when a watchdog bites.
const byWatchdog = "watchdog"

func (n *Node) alive() bool {
	if n.running == nil {
		return false
	}
	select {
	case <-n.running.ended:
		return false
	default:
		return true
	}
}

// Powered reports whether the node is on.
func (n *Node) Powered() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alive()
}

// Status reports the chassis power, for the BMC.
func (n *Node) Status() (bool, error) { return n.Powered(), nil }

func (n *Node) ask(ctx context.Context, req initRequest) (initReply, error) {
	reply, err := askInit(ctx, n.initSocket(), req)
	if err != nil {
		return reply, fmt.Errorf("node %s: %w", n.Plan.Name, err)
	}
	return reply, nil
}

func (n *Node) start(ctx context.Context, spec procSpec) error {
	_, err := n.ask(ctx, initRequest{Op: "start", Spec: &spec})
	return err
}

// Start starts one of the node's programs again, by its name.
func (n *Node) Start(ctx context.Context, program string) error {
	for _, spec := range n.sandbox.programs(n) {
		if spec.Name != program {
			continue
		}
		err := n.start(ctx, spec)
		if err == nil {
			n.sandbox.history.Add(Entry{Kind: KindProgram, Node: n.Plan.Name, Name: program, Text: "start"})
		}
		return err
	}
	return fmt.Errorf("node %s has no program %q", n.Plan.Name, program)
}

// Run starts a program on the node that is none of the sandbox's own, as a child of
// its PID 1: it ends with the node, also where it has been stopped. What it prints is
// appended to log/PROGRAM.log in the node's folder. It fails where the node is off or
// one of that name still runs.
func (n *Node) Run(ctx context.Context, program string, args ...string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("node %s: %w", n.Plan.Name, err)
	}
	return n.start(ctx, procSpec{Name: program, Argv: append([]string{path}, args...), Log: filepath.Join(n.Dir, "log", program+".log")})
}

// Signal sends a signal to one of the node's programs.
func (n *Node) Signal(ctx context.Context, program string, sig unix.Signal) error {
	_, err := n.ask(ctx, initRequest{Op: "signal", Name: program, Signal: int(sig)})
	if err == nil {
		n.sandbox.history.Add(Entry{Kind: KindProgram, Node: n.Plan.Name, Name: program, Text: unix.SignalName(sig)})
	}
	return err
}

// Programs tells what runs on the node, by program name.
func (n *Node) Programs(ctx context.Context) (map[string]procStatus, error) {
	reply, err := n.ask(ctx, initRequest{Op: "list"})
	if err != nil {
		return nil, err
	}
	out := make(map[string]procStatus, len(reply.Procs))
	for _, p := range reply.Procs {
		out[p.Name] = p
	}
	return out, nil
}

// ensureRunning starts the program unless it runs.
func (n *Node) ensureRunning(ctx context.Context, program string) error {
	have, err := n.Programs(ctx)
	if err != nil {
		return err
	}
	if have[program].Running {
		return nil
	}
	err = n.Start(ctx, program)
	if have, again := n.Programs(ctx); again == nil && have[program].Running {
		return nil // somebody else was faster
	}
	return err
}

// namespace opens the node's network namespace; the caller closes it.
func (n *Node) namespace() (*namespace, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.alive() {
		return nil, fmt.Errorf("node %s is powered off", n.Plan.Name)
	}
	return namespaceOf(n.running.pid)
}

// BMC is how the node's baseboard controller misbehaves; each fault may be
// switched at any time.
func (n *Node) BMC() *bmc.Faults { return n.bmc }

// Mode is what the node may become.
func (n *Node) Mode() cluster.Mode { return n.Plan.Mode }
