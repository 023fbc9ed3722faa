package proc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of this package. Those of a deadline wrap cluster.ErrDeadline.
var (
	// ErrNotStarted says that the program never ran: it is missing, not
	// executable, or the host refused a new process.
	ErrNotStarted = errors.New("program was not started")
	// ErrGone says that the process to adopt no longer exists.
	ErrGone = errors.New("process is gone")
	// ErrStraggler says that something could not be verified as dead.
	ErrStraggler = errors.New("processes survive SIGKILL")
)

// Exit is how a process ended.
type Exit struct {
	Code   int    // exit status; −1 when a signal ended it or it is not known
	Signal string // name of the signal that ended it, "" for none
	Known  bool   // false for an adopted process: only its parent learns the status
}

// Process is a running child and everything that it started.
// All methods may be called from several goroutines.
type Process struct {
	pid   int
	start uint64
	name  string
	group *group // nil where there are no control groups
	mark  string // set where there are none

	done chan struct{} // closed when the main process has ended
	exit Exit          // valid once done is closed
}

// Start runs a program that lives on its own: Timeout, Stdin and OutputLimit
// are not used. Its output goes to c.Output, or where this process's standard
// error goes, and never through a pipe to this process, so that the child
// outlives a restart of its parent. Whoever starts it must Stop it or leave it
// to an adopter.
func Start(c Command) (*Process, error) {
	out := c.Output
	if out == nil {
		out = os.Stderr
	}
	return launch(c, servicePrefix, nil, out, out)
}

// StartBound is Start for a program that must not outlive this process, as an
// activity's: it dies with it, and what it leaves then is ended by the first Run
// or Start of a later process below the same slice.
func StartBound(c Command) (*Process, error) {
	out := c.Output
	if out == nil {
		out = os.Stderr
	}
	return launch(c, runPrefix, nil, out, out)
}

// launch starts the program with these descriptors; a nil stdin is /dev/null.
func launch(c Command, prefix string, stdin, stdout, stderr *os.File) (*Process, error) {
	path, err := c.lookup()
	if err != nil {
		return nil, err
	}
	if !c.noGroup {
		p := &Process{name: filepath.Base(path), done: make(chan struct{})}
		if p.group, err = c.group(prefix, label(p.name)); err == nil {
			if err = p.begin(c, prefix, path, stdin, stdout, stderr); err == nil {
				return p, nil
			}
			p.group.remove() // perhaps a sandbox without clone3: once more without a group
		}
	}
	p := &Process{name: filepath.Base(path), done: make(chan struct{}), mark: c.mark()}
	if err := p.begin(c, prefix, path, stdin, stdout, stderr); err != nil {
		return nil, fmt.Errorf("start %s: %w: %w", path, ErrNotStarted, err)
	}
	return p, nil
}

// begin starts the program and enters it among the direct children.
func (p *Process) begin(c Command, prefix, path string, stdin, stdout, stderr *os.File) error {
	cmd := &exec.Cmd{Path: path, Args: c.Argv, Env: c.environ(p.mark), Dir: cmp.Or(c.Dir, "/"), Stdout: stdout, Stderr: stderr}
	if stdin != nil {
		cmd.Stdin = stdin
	}
	// A session of its own: no terminal, and one signal reaches the whole group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.User != "" {
		who, home, err := credential(c.User)
		if err != nil {
			return err
		}
		cmd.SysProcAttr.Credential = who
		if _, told := c.Env["HOME"]; !told {
			cmd.Env = append(cmd.Env, "HOME="+home)
		}
	}
	if prefix == runPrefix {
		// Nobody waits for a run whose caller is gone: an order to a fence device
		// must not reach it later (I5). Should a thread of ours end, it ends early,
		// which its caller sees.
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if p.group != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(p.group.dir.Fd())
	}
	// No lock is held here: an executable on dead storage may block for ever.
	direct.starting.Add(1)
	defer direct.starting.Add(-1)
	if err := cmd.Start(); err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	if prefix == servicePrefix || c.Ordinary {
		makeOrdinary(p)
	}
	p.start, _ = StartTime(p.pid) // a zombie still has one: nobody but await reaps it
	direct.Lock()
	direct.byPID[p.pid] = p
	direct.Unlock()
	if p.group != nil {
		p.group.started()
	}
	go p.await(cmd) // ends with the main process
	return nil
}

// await reaps the main process.
func (p *Process) await(cmd *exec.Cmd) {
	_ = cmd.Wait() // the state below says more
	direct.Lock()
	delete(direct.byPID, p.pid)
	direct.Unlock()
	p.exit = Exit{Code: -1}
	if cmd.ProcessState != nil {
		p.exit = Exit{Code: cmd.ProcessState.ExitCode(), Known: true}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.exit.Signal = unix.SignalName(ws.Signal())
		}
	}
	close(p.done)
}

// Adopt finds a process that an earlier incarnation of this program started,
// by its pid and start time. The error is ErrGone when the pid is unused or
// belongs to a later process; what the old one may have left in its control
// group is then EndGroup's.
func Adopt(pid int, starttime uint64) (*Process, error) {
	handle, s, err := holdPid(pid, starttime)
	if err != nil {
		return nil, fmt.Errorf("adopt process %d: %w", pid, err)
	}
	p := &Process{pid: pid, start: starttime, name: s.comm, done: make(chan struct{}), exit: Exit{Code: -1}}
	if path := groupOf(pid); isOurs(path) {
		p.group = openGroup(path)
	} else if mark := markOf(pid); mark != noMark {
		p.mark = mark
	}
	go p.awaitAdopted(handle) // ends with the process
	return p, nil
}

// awaitAdopted waits until the descriptor becomes readable: the process ended.
func (p *Process) awaitAdopted(handle *os.File) {
	defer close(p.done)
	defer handle.Close()
	err := awaitEnd(handle)
	for err != nil && alive(p.pid, p.start) {
		time.Sleep(10 * time.Millisecond) // a kernel that cannot poll the descriptor
	}
}

// isOurs reports whether the control group is one that this package made.
func isOurs(path string) bool {
	base := filepath.Base(path)
	return strings.HasPrefix(base, servicePrefix) || strings.HasPrefix(base, runPrefix)
}

// ofThisPackage reports whether the path names a control group of this package,
// with or without processes in it.
func ofThisPackage(path string) bool {
	return mountPoint() != "" && strings.HasPrefix(path, mountPoint()+"/") && isOurs(path)
}

// alive reports whether exactly this process still runs.
func alive(pid int, start uint64) bool {
	s, err := readStat(pid)
	return err == nil && s.start == start && !s.ended()
}

// Pid returns the main process's id.
func (p *Process) Pid() int { return p.pid }

// StartTime returns the main process's start time, for Adopt.
func (p *Process) StartTime() uint64 { return p.start }

// Group returns the directory of the child's control group, for EndGroup; ""
// where there are none.
func (p *Process) Group() string {
	if p.group == nil {
		return ""
	}
	return p.group.path
}

// Done is closed when the main process has ended; others of its group may live on.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the main process to end. The error is the context's cause.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, nil
	case <-ctx.Done():
		return Exit{Code: -1}, fmt.Errorf("wait for %s (pid %d): %w", p.name, p.pid, context.Cause(ctx))
	}
}

// Stop asks the child's process group to end (SIGTERM), kills everything that
// it and its descendants have left after grace or when the main process has
// ended, and returns once nothing is left. Where ctx ends first everything is
// killed at once; verification then gets 200 ms and a few looks more. The error
// is ErrStraggler and names what still lives. Stop may be called again.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if grace > 0 && ctx.Err() == nil {
		_ = p.signal(unix.SIGTERM)
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return p.end(ctx, 200*time.Millisecond)
}

// Kill sends SIGKILL to everything of the child, without waiting. With control
// groups it is a write to a descriptor that is open already; the main process
// and its process group are signalled besides, since root may have moved itself
// out of the control group.
func (p *Process) Kill() {
	if p.group != nil {
		p.group.killAll()
		_ = p.signal(unix.SIGKILL)
		return
	}
	for _, m := range p.members() {
		if alive(m.pid, m.start) { // the number may be a stranger's by now
			_ = unix.Kill(m.pid, unix.SIGKILL)
		}
	}
}

// signal signals the child's process group, unless its id may have been reused.
func (p *Process) signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if !alive(p.pid, p.start) {
		return nil
	}
	return unix.Kill(-p.pid, sig)
}

// members lists the living processes of the child's tree.
func (p *Process) members() []stat {
	if p.group == nil {
		return treeOf(p)
	}
	return statsOf(p.group.pids())
}

// Gone reports whether nothing of the child, or of what it started, runs any more.
func (p *Process) Gone() bool {
	select {
	case <-p.done:
	default:
		return false
	}
	if p.group != nil {
		return !p.group.populated()
	}
	return len(treeOf(p)) == 0
}

// end kills everything of the child until it is verified gone, ctx ends, but
// at least for the time given. On a busy machine the killing and the looking
// take their time, too: only a look that was begun after that, and after a
// pause for those that were killed before it, says that something survives.
func (p *Process) end(ctx context.Context, least time.Duration) error {
	limit := time.Now().Add(least)
	overtime := 0
	for pause := time.Millisecond; !p.Gone(); pause = min(2*pause, 20*time.Millisecond) {
		if ctx.Err() != nil && time.Now().After(limit) {
			if overtime++; overtime > overtimeLooks {
				return fmt.Errorf("end %s (pid %d): %w: %s", p.name, p.pid, ErrStraggler, describe(p.members()))
			}
		}
		p.Kill() // again each time: a fork may have slipped between listing and killing
		select {
		case <-p.done:
			time.Sleep(pause)
		case <-time.After(pause):
		}
	}
	if p.group != nil {
		p.group.remove()
	}
	reapOrphans()
	return nil
}

// overtimeLooks is how often more a child is looked for, and killed, once its
// time is over.
const overtimeLooks = 5

// describe names processes for a person: "1234 (rsync, state D)".
func describe(living []stat) string {
	var words []string
	for _, s := range living {
		words = append(words, fmt.Sprintf("%d (%s, state %c)", s.pid, s.comm, s.state))
	}
	if len(words) == 0 {
		return "the main process is not reaped yet"
	}
	return strings.Join(words, ", ")
}

// EndGroup kills everything in a control group that a Process left (Group) and
// returns once it is verified empty and removed. A path that does not name a
// group of this package is refused; one that is gone already is no error.
func EndGroup(ctx context.Context, path string) error {
	if !ofThisPackage(filepath.Clean(path)) {
		return fmt.Errorf("end control group %s: it is not one of ours, nothing was touched", path)
	}
	g := openGroup(filepath.Clean(path))
	defer g.remove()
	limit := time.Now().Add(200 * time.Millisecond)
	for g.populated() {
		if ctx.Err() != nil && time.Now().After(limit) {
			return fmt.Errorf("end control group %s: %w: %s", path, ErrStraggler, describe(statsOf(g.pids())))
		}
		g.killAll()
		time.Sleep(time.Millisecond)
	}
	return nil
}

// Services lists the control groups of long-running children below a slice, so
// that what a dead parent left can be ended with EndGroup.
func Services(slice string) []string {
	if mountPoint() == "" {
		return nil
	}
	found, _ := filepath.Glob(filepath.Join(mountPoint(), filepath.Clean("/"+slice), servicePrefix+"*"))
	return found
}
